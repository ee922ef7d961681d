"""Rules about files: missing, late, refused, silent, out of their hour, and bursts of rollbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from typing import Any

from ingestd.pipeline.rules.base import MOST_LISTED, Finding, Severity, many, rule
from ingestd.thresholds import (
    ConstituencyMissing,
    LateFile,
    MissingHour,
    RejectShare,
    RollbackBurst,
    SilentFeed,
    TsOutOfSlot,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Neighbouring hours of which a constituency has no file; `shares` of others lack each."""

    slots: tuple[str, ...]
    lacking: tuple[int, ...]
    constituencies: int


@rule(
    "missing_hour",
    "feed",
    "critical",
    "warning",
    reads="which hourly files are here, of every constituency",
    sentence="An hourly file that should be here is not.",
    formula="a slot inside the voting is absent and the feed is two slots past it",
    benign=("the file was not downloaded", "the source leaves out hours in which nothing happened"),
)
def missing_hour(gap: Gap, held: MissingHour) -> Finding:
    """Hours inside the voting of which no file is here although the feed is past them.

    Source: alerts catalogue, rule 14. Neighbouring hours are one finding. It does not say where the
    feed is: it would say something else every hour.
    """
    number = len(gap.slots)
    worst = max(gap.lacking)
    is_fleet = worst >= held.fleet_least and worst >= held.fleet_share * gap.constituencies
    is_critical = number >= held.in_a_row or is_fleet
    span = gap.slots[0] if number == 1 else f"{gap.slots[0]} to {gap.slots[-1]}"
    return Finding(
        rule="missing_hour",
        subject=gap.slots[0],
        severity="critical" if is_critical else "warning",
        title=f"{many(number, 'hourly file')} missing",
        description=(
            f"No file of {span} is here, and the feed is past it. What happened then is unknown, "
            f"not zero. Of {gap.constituencies} constituencies, up to {worst} lack it."
        ),
        details={
            "slots": list(gap.slots[:MOST_LISTED]),
            "number": number,
            "constituencies": gap.constituencies,
            "constituencies_lacking": worst,
            "observed": number,
            "expected": "0",
            "threshold": {"in_a_row": held.in_a_row, "fleet_share": held.fleet_share},
            "episode": {"of": "", "first": gap.slots[0], "last": gap.slots[-1]},
        },
        detected_at=None,
        weight=number,
    )


@rule(
    "constituency_missing",
    "feed",
    "critical",
    reads="contracts that are known or expected, and whether any hourly file of theirs is here",
    sentence="A constituency that should be here has no file of its own.",
    formula="no hourly file of the contract although the feed is in its second hour or later",
    benign=("a part of the source was not downloaded",),
)
def constituency_missing(
    contract: str, *, held: ConstituencyMissing, span: tuple[str, ...] = ()
) -> Finding:
    """A contract without any hourly file although the rest of the feed is on its way.

    Source: alerts catalogue, rule 15: whole shards were missed in 2026.
    """
    return Finding(
        rule="constituency_missing",
        subject=contract,
        severity="critical",
        title="A constituency without any file",
        description=(
            f"No hourly file of the contract {contract} is here, while others have "
            f"{many(held.slots_past, 'hour')} or more."
        ),
        details={
            "contract": contract,
            "slots": list(span),
            "observed": 0,
            "expected": f"at least 1 after {held.slots_past} hours",
            "threshold": held.slots_past,
        },
        detected_at=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A second ballot that a territory should have, as `paired` of the region's `of` have it."""

    ballot: str
    roll: int
    paired: int
    of: int
    slots: tuple[str, ...]


def twin_missing(twin: Twin, held: ConstituencyMissing) -> Finding:
    """A territory of which one ballot is here and the other is not, though nearly all have both.

    Source: alerts catalogue, rule 15 (its twin is here) and 24 (what twins are).
    """
    return Finding(
        rule="constituency_missing",
        subject=f"twin {twin.ballot}",
        severity="critical",
        title=f"No file of the same voters' other ballot: {twin.ballot}",
        description=(
            f"{twin.paired} of {twin.of} constituencies of this election in the region have a "
            f"second ballot of the same roll, {twin.ballot}. Of these {twin.roll} voters no such "
            "constituency is here."
        ),
        details={
            "ballot": twin.ballot,
            "roll": twin.roll,
            "paired": twin.paired,
            "constituencies": twin.of,
            "slots": list(twin.slots),
            "observed": 0,
            "expected": f"1, as {twin.paired} of {twin.of} have it",
            "threshold": {"twins_share": held.twins_share, "twins_least": held.twins_least},
        },
        detected_at=None,
    )


@rule(
    "silent_feed",
    "feed",
    "critical",
    reads="when the last file came, and whether anybody is voting",
    sentence="Nothing came for anybody, though people are voting.",
    formula="now - time of the last file > 2 h, inside a voting; hours of the day only, where the "
    "source publishes no empty hours",
    benign=("the downloader has stopped",),
    is_clock=True,
)
def silent_feed(last: datetime, *, voting: int, held: SilentFeed) -> list[Finding]:
    """Nothing for anybody for hours in which `voting` constituencies were to send something.

    Source: alerts catalogue, rule 15.
    """
    if not voting:
        return []
    return [
        Finding(
            rule="silent_feed",
            subject="",
            severity="critical",
            title="Nothing comes any more",
            description=(
                f"The last file came at {last:%Y-%m-%d %H:%M} UTC, and {many(voting, 'voting')} "
                "are open."
            ),
            details={
                "last_file": last.isoformat(),
                "window": [
                    last.isoformat(),
                    (last + timedelta(hours=held.hours)).isoformat(),
                ],
                "votings": voting,
                "observed": last.isoformat(),
                "expected": f"a file in {held.hours:g} h",
                "threshold": held.hours,
            },
            detected_at=last,
        )
    ]


@rule(
    "file_rejected",
    "feed",
    "critical",
    reads="files in quarantine",
    sentence="A file could not be read and is in quarantine.",
    formula="jobs in quarantine > 0",
    benign=("the download broke off",),
)
def file_rejected(  # noqa: PLR0913 - what is known of the file
    name: str,
    *,
    subject: str,
    reason: str,
    line: int | None,
    sha256: str,
    slot: str | None = None,
    times: tuple[datetime, datetime] | None = None,
) -> Finding:
    """A file went to quarantine: nothing of it is in the tables.

    `times` are those of its slot by the clock of its name: the zone of a file that cannot be read
    is anybody's guess. Source: alerts catalogue, rule 16.
    """
    return Finding(
        rule="file_rejected",
        subject=subject,
        severity="critical",
        title=f"File refused: {name}",
        description=f"Nothing of this file was stored: {reason}",
        details={
            "name": name,
            "sha256": sha256,
            "reason": reason,
            "line": line,
            "slot": slot,
            "files": [{"slot": slot or "-", "sha256": sha256, "lines": [line] if line else []}],
            "window": {
                "utc": [f"{moment:%Y-%m-%dT%H:%MZ}" for moment in times],
                "local": None,
                "local_ahead_hours": None,
            }
            if times
            else None,
            "coverage": 0.0,
            "observed": 1,
            "expected": "0",
            "threshold": 0,
        },
        detected_at=times[1] if times else None,
    )


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """How many rows of a current file were refused."""

    subject: str
    sha256: str
    rejected: int
    rows: int


@rule(
    "reject_share",
    "feed",
    "warning",
    "info",
    reads="rows read and refused of each current file",
    sentence="Rows of a file could not be read and were set aside.",
    formula="rejected rows > 0; warning from 10 rows or 1 % on",
    benign=("the format has changed a little", "lines were torn by a download"),
)
def reject_share(files: Sequence[RejectedRows], held: RejectShare) -> list[Finding]:
    """Rows that were set aside: any is told, many are a warning.

    Source: alerts catalogue, rule 16.
    """
    found: list[Finding] = []
    for file in files:
        if not file.rejected:
            continue
        is_many = file.rejected >= held.rows or file.rejected >= held.share * file.rows
        found.append(
            Finding(
                rule="reject_share",
                subject=file.subject,
                severity="warning" if is_many else "info",
                title=f"{many(file.rejected, 'row')} of {file.rows} refused",
                description=(
                    f"{many(file.rejected, 'row')} of {file.rows} in {file.subject} could not be "
                    "read; they are kept as rejects and not counted."
                ),
                details={
                    "slot": file.subject,
                    "sha256": file.sha256,
                    "rejected": file.rejected,
                    "rows": file.rows,
                    "observed": file.rejected,
                    "expected": "0",
                    "threshold": {"rows": held.rows, "share": held.share},
                },
                detected_at=None,
                weight=file.rejected,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Late:
    """When a slot's file was written, and when the middle one of that slot was.

    `contracts` where those of several constituencies were late together.
    """

    slot: str
    written_at: datetime
    usual_at: datetime
    others: int
    contracts: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """How late it was."""
        return (self.written_at - self.usual_at).total_seconds() / 3600


@rule(
    "late_file",
    "feed",
    "info",
    reads="the modification times of the files of one hour",
    sentence="Files were written long after those of the same hours.",
    formula="time of the file - median of its hour > 2 h, where half of the hour's files were "
    "written within 2 h",
    benign=("they were downloaded again later", "a part of the source was downloaded later"),
)
def late_file(run: Sequence[Late], held: LateFile) -> Finding:
    """Files of neighbouring hours that were written hours after the middle one of their slot.

    By the files' own times, so that the order of reading them does not matter. Those of many
    constituencies at once are one finding. Source: alerts catalogue, rule 17.
    """
    first, last = run[0], run[-1]
    worst = max(run, key=lambda one: (one.hours, one.slot))
    contracts = sorted({contract for one in run for contract in one.contracts})
    whose = f"of {len(contracts)} constituencies " if contracts else ""
    span = first.slot if len(run) == 1 else f"{first.slot} to {last.slot}"
    return Finding(
        rule="late_file",
        subject=f"fleet {first.slot}" if contracts else first.slot,
        severity="info",
        title=f"{many(len(run), 'hourly file')} {whose}came up to {worst.hours:.1f} h late",
        description=(
            f"Of {span} {whose}files were late; that of {worst.slot} was written at "
            f"{worst.written_at:%Y-%m-%d %H:%M} UTC, and half of the {worst.others} files of that "
            f"hour by {worst.usual_at:%Y-%m-%d %H:%M} UTC."
        ),
        details={
            "slots": [one.slot for one in run[:MOST_LISTED]],
            "number": len(run),
            "worst_slot": worst.slot,
            "written_at": worst.written_at.isoformat(),
            "usual_at": worst.usual_at.isoformat(),
            "files_of_the_hour": worst.others,
            **({"contracts": contracts[:MOST_LISTED]} if contracts else {}),
            "constituencies": len(contracts) or 1,
            "observed": round(worst.hours, 2),
            "expected": f"at most {held.hours:g} h",
            "threshold": held.hours,
            "episode": {
                "of": "fleet" if contracts else "",
                "first": first.slot,
                "last": last.slot,
            },
        },
        detected_at=max(one.written_at for one in run),
        weight=len(run),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfSlot:
    """Rows of a slot whose time is outside of it by more than the tolerance."""

    slot: str
    rows: int
    outside: int
    farthest_minutes: float
    shift_hours: float
    tx_ids: tuple[str, ...]
    at: datetime | None


@rule(
    "ts_out_of_slot",
    "feed",
    "warning",
    "info",
    reads="the time of each row against the hour in its file's name",
    sentence="Rows carry a time that lies outside of the hour of their file.",
    formula="ts outside of [slot, slot + 1 h] by more than 30 min; the names' whole-hour shift out",
    benign=("a voter's clock is wrong", "a request was tried again"),
)
def ts_out_of_slot(found: OutOfSlot, held: TsOutOfSlot) -> list[Finding]:
    """Rows whose time is outside of the slot, after the whole-hour shift of the names.

    Up to 25 minutes are normal, because what is tried again keeps its time.
    Source: alerts catalogue, rule 17; docs/format.md, facts.
    """
    if not found.outside:
        return []
    share = found.outside / max(1, found.rows)
    is_far = found.farthest_minutes > held.far_minutes
    is_warning = is_far or (found.rows >= held.least_rows and share > held.share)
    return [
        Finding(
            rule="ts_out_of_slot",
            subject=found.slot,
            severity="warning" if is_warning else "info",
            title=f"{many(found.outside, 'row')} outside of their hour",
            description=(
                f"{many(found.outside, 'row')} of {found.rows} in {found.slot} carry a time up to "
                f"{found.farthest_minutes:.0f} minutes outside of it."
            ),
            details={
                "slot": found.slot,
                "rows": found.rows,
                "outside": found.outside,
                "farthest_minutes": round(found.farthest_minutes, 1),
                "shift_hours": found.shift_hours,
                "tx_ids": list(found.tx_ids[:MOST_LISTED]),
                "observed": found.outside,
                "expected": f"within {held.tolerance_minutes} minutes",
                "threshold": {"far_minutes": held.far_minutes, "share": held.share},
            },
            detected_at=found.at,
            weight=found.outside,
        )
    ]


@dataclass(frozen=True, slots=True)
class Burst:
    """Rollbacks of one constituency in one hour, against all others in that hour."""

    contract: str
    rolled_back: int
    rows: int
    others_rolled_back: int
    others_rows: int

    @property
    def z(self) -> float:
        """How far above the others, in standard deviations of a binomial share.

        One more rollback is added on both sides, so that a fleet without any gives no division
        by zero. Source: score test of two shares.
        """
        share = (self.others_rolled_back + 1) / (self.others_rows + 2)
        expected = share * self.rows
        spread = sqrt(max(expected * (1 - share), 1e-9))
        return (self.rolled_back - expected) / max(spread, 1.0)


@rule(
    "rollback_burst",
    "feed",
    "warning",
    reads="rolled back transactions of every constituency in an hour",
    sentence="Many transactions of one hour were rolled back.",
    formula="rolled back >= 3 and (z against the others >= 4.5 or >= 1 % of the hour's rows)",
    benign=("a fork of the chain was resolved",),
)
def rollback_burst(hour: datetime, bursts: Sequence[Burst], held: RollbackBurst) -> list[Finding]:
    """Bursts of rollbacks in one hour; several constituencies at once are one alert of the fleet.

    Source: alerts catalogue, rule 18.
    """
    found = [burst for burst in bursts if _is_burst(burst, held)]
    if not found:
        return []
    name = f"{hour:%Y-%m-%dT%H}"
    window = [hour.isoformat(), (hour + timedelta(hours=1)).isoformat()]
    if len(found) >= held.several:
        number = sum(burst.rolled_back for burst in found)
        worst = sorted(found, key=lambda burst: (-burst.rolled_back, burst.contract))
        return [
            _burst(
                f"fleet {name}",
                f"{many(number, 'rollback')} in {len(found)} constituencies within an hour",
                f"In the hour from {hour:%Y-%m-%d %H:%M} UTC, {many(number, 'transaction')} of "
                f"{len(found)} constituencies were rolled back.",
                number,
                {
                    "window": window,
                    "contracts": [burst.contract for burst in worst[:MOST_LISTED]],
                    "constituencies": len(found),
                },
                hour,
                held,
            )
        ]
    return [
        _burst(
            f"{burst.contract} {name}",
            f"{many(burst.rolled_back, 'rollback')} within an hour",
            f"In the hour from {hour:%Y-%m-%d %H:%M} UTC, {burst.rolled_back} of {burst.rows} "
            f"transactions were rolled back; elsewhere {burst.others_rolled_back} of "
            f"{burst.others_rows}.",
            burst.rolled_back,
            {"window": window, "contract": burst.contract, "statistic": round(burst.z, 2)},
            hour,
            held,
        )
        for burst in found
    ]


def _is_burst(burst: Burst, held: RollbackBurst) -> bool:
    if burst.rolled_back < held.least:
        return False
    return burst.rolled_back >= held.share * burst.rows or burst.z >= held.z


def _burst(  # noqa: PLR0913, PLR0917 - the parts of one finding
    subject: str,
    title: str,
    words: str,
    number: int,
    details: dict[str, Any],
    hour: datetime,
    held: RollbackBurst,
) -> Finding:
    severity: Severity = "warning"
    return Finding(
        rule="rollback_burst",
        subject=subject,
        severity=severity,
        title=title,
        description=words,
        details={
            **details,
            "observed": number,
            "expected": f"under {held.least}, or under {held.share:.0%} and z under {held.z:g}",
            "threshold": {"least": held.least, "share": held.share, "z": held.z},
        },
        detected_at=hour + timedelta(hours=1),
        weight=number,
    )
