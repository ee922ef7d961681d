"""Rules are pure: facts in, findings out."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingestd.pipeline import rules
from ingestd.pipeline.rules import (
    Burst,
    Content,
    Gap,
    OutOfSlot,
    ProtocolRow,
    RejectedRows,
    Republication,
    Results,
    SlotCount,
    Totals,
)
from ingestd.pipeline.rules.protocol import shift_of
from ingestd.pipeline.stats import Revote
from ingestd.pipeline.verdict import Event, SeenFile, decide
from ingestd.thresholds import Rules

EIGHT, NINE, TEN = (f"2024-09-06_{hour:02d}00-{hour + 1:02d}00" for hour in (8, 9, 10))
NOON = datetime(2024, 9, 6, 12, tzinfo=UTC)
HOURLY, LATER, WHOLE = (uuid.UUID(int=number) for number in (1, 2, 3))
FILES = {
    HOURLY: SeenFile(is_cumulative=False, slot=EIGHT, publication=1, is_current=True),
    LATER: SeenFile(is_cumulative=False, slot=NINE, publication=1, is_current=True),
    WHOLE: SeenFile(is_cumulative=True, slot="whole", publication=1, is_current=True),
}
A, B = b"a" * 16, b"b" * 16


def totals(**changes: object) -> Totals:
    """A quiet constituency, with changes."""
    facts: dict[str, object] = {
        "bulletins": 100,
        "votes": 90,
        "list_added": 120,
        "list_removed": 0,
        "has_voters_list": True,
        "is_revote_blocked": True,
        "last_activity": NOON,
    }
    return Totals(**(facts | changes))  # type: ignore[arg-type]  # the names are checked by Totals


# votes_exceed_bulletins


def test_one_vote_over_the_bulletins_is_found() -> None:
    """The identity is exact: there is no tolerance."""
    slots = [SlotCount(EIGHT, 10, 11)]
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=10, votes=11), slots, start_slot=EIGHT, has_whole=False
    )
    assert ("critical", 11, 10) == (
        finding.severity,
        finding.details["votes"],
        finding.details["bulletins"],
    )


def test_an_excess_that_later_bulletins_would_hide_is_still_found() -> None:
    """Cumulative over the slots in order, not only at the end."""
    slots = [SlotCount(EIGHT, 10, 12), SlotCount(NINE, 30, 20)]
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=40, votes=32), slots, start_slot=EIGHT, has_whole=False
    )
    assert EIGHT == finding.details["slot"]


def test_an_hour_with_more_votes_than_bulletins_is_normal() -> None:
    """People vote minutes after their bulletin: a tenth of clean hours look like this."""
    slots = [SlotCount(EIGHT, 20, 10), SlotCount(NINE, 5, 12)]
    assert [] == rules.votes_exceed_bulletins(
        totals(bulletins=25, votes=22), slots, start_slot=EIGHT, has_whole=False
    )


@pytest.mark.parametrize(
    ("slots", "start_slot", "has_whole", "severity"),
    [
        ([EIGHT, NINE, TEN], EIGHT, False, "critical"),
        ([EIGHT, TEN], EIGHT, False, "warning"),
        ([EIGHT, NINE], None, False, "warning"),
        ([EIGHT, TEN], None, True, "critical"),
    ],
)
def test_missing_hours_make_the_finding_provisional(
    slots: list[str], start_slot: str | None, has_whole: bool, severity: str
) -> None:
    """A missing file may hold the bulletins: then it is a warning, and says so."""
    counts = [SlotCount(slot, 1, 2) for slot in slots]
    number = len(slots)
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=number, votes=2 * number),
        counts,
        start_slot=start_slot,
        has_whole=has_whole,
    )
    assert severity == finding.severity
    assert finding.details["is_provisional"] == (severity == "warning")


def test_bulletins_of_a_whole_voting_file_count_from_the_start() -> None:
    """What only a cumulative file tells must never make a finding by its order."""
    slots = [SlotCount(NINE, 0, 5)]
    assert [] == rules.votes_exceed_bulletins(
        totals(bulletins=5, votes=5), slots, start_slot=EIGHT, has_whole=True
    )


# turnout_over_registered


@pytest.mark.parametrize(
    ("bulletins", "removed", "severity"),
    [(120, 0, None), (121, 0, "critical"), (115, 10, "warning"), (110, 10, None)],
)
def test_turnout_is_held_against_the_present_and_the_greatest_roll(
    bulletins: int, removed: int, severity: str | None
) -> None:
    """Over the greatest roll is critical, over what removals left is a warning."""
    found = rules.turnout_over_registered(totals(bulletins=bulletins, list_removed=removed))
    assert ([severity] if severity else []) == [finding.severity for finding in found]


def test_without_a_voters_list_nothing_is_said_about_turnout() -> None:
    """Unknown is not zero."""
    facts = totals(has_voters_list=False, list_added=0)
    assert [] == rules.turnout_over_registered(facts)


# duplicate_vote_key


@pytest.mark.parametrize(
    ("blocked", "severity"), [(True, "critical"), (None, "critical"), (False, "info")]
)
def test_two_votes_by_one_key_are_critical_unless_the_contract_allows_it(
    blocked: bool | None, severity: str
) -> None:
    """`isRevoteBlocked = false` makes it a normal thing, worth a note."""
    revote = Revote("key", ((NOON, "one"), (NOON, "two")))
    (finding,) = rules.duplicate_vote_key(totals(is_revote_blocked=blocked), [revote])
    assert ("key", severity) == (finding.subject, finding.severity)


# transaction_rewritten


def contents(*, body: str = "same", diff: str = "same") -> dict[bytes, Content]:
    """Content A, and content B that may differ from it."""
    return {A: Content({"body": "same"}, "same"), B: Content({"body": body}, diff)}


@pytest.mark.parametrize(
    ("events", "known", "is_found"),
    [
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(body="other"), True),
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(diff="other"), True),
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(), False),
        (
            [(HOURLY, 1, 1, A), (HOURLY, 2, -1, None), (LATER, 1, 1, B)],
            contents(diff="other"),
            False,
        ),
        (
            [(HOURLY, 1, 1, A), (HOURLY, 2, -1, None), (LATER, 1, 1, B)],
            contents(body="other"),
            True,
        ),
        (
            [(HOURLY, 1, -1, None), (HOURLY, 2, 1, A), (LATER, 1, 1, B)],
            contents(diff="other"),
            True,
        ),
        (
            [
                (HOURLY, 1, 1, A),
                (HOURLY, 2, -1, None),
                (LATER, 1, 1, B),
                (WHOLE, 1, 1, A),
                (WHOLE, 2, -1, None),
                (WHOLE, 3, 1, B),
            ],
            contents(diff="other"),
            False,
        ),
    ],
)
def test_a_transaction_is_rewritten_when_no_rollback_explains_the_difference(
    events: list[tuple[uuid.UUID, int, int, bytes | None]],
    known: dict[bytes, Content],
    is_found: bool,
) -> None:
    """A transaction that was rolled back and run again may rightly have another diff."""
    history = [Event(*event) for event in events]
    assert is_found == rules.is_rewritten(history, FILES, known)
    assert is_found == rules.is_rewritten(history[::-1], FILES, known)


# slot_republished


@pytest.mark.parametrize(
    ("changed", "lost", "added", "severity"),
    [(1, 0, 0, "critical"), (0, 1, 0, "critical"), (0, 0, 3, "warning"), (0, 0, 0, "info")],
)
def test_a_republication_is_as_grave_as_what_it_did_to_rows(
    changed: int, lost: int, added: int, severity: str
) -> None:
    """Changed or gone is critical, only added a warning, only reformatted a note."""
    step = Republication(
        older_sha256="a",
        newer_sha256="b",
        added=added,
        gone=lost,
        gone_without_rollback=lost,
        changed=changed,
        is_part_of_older=False,
        tx_ids=(),
    )
    (finding,) = rules.slot_republished(EIGHT, [step])
    assert severity == finding.severity


# What a set of sightings means


def event(file: uuid.UUID, line: int, sign: int = 1, content: bytes | None = A) -> Event:
    """A sighting."""
    return Event(file, line, sign, content if sign > 0 else None)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([event(HOURLY, 1)], "accepted"),
        ([event(HOURLY, 1), event(WHOLE, 1)], "accepted"),
        ([event(HOURLY, 1), event(HOURLY, 2, -1)], "rolled_back"),
        ([event(HOURLY, 1), event(LATER, 1, -1)], "rolled_back"),
        ([event(HOURLY, 1), event(LATER, 1, -1), event(LATER, 2)], "accepted"),
        (
            [event(HOURLY, 1), event(LATER, 1, -1), event(WHOLE, 1), event(WHOLE, 2, -1)],
            "rolled_back",
        ),
        ([event(HOURLY, 1), event(WHOLE, 1), event(WHOLE, 2, -1)], "rolled_back"),
    ],
)
def test_the_net_sign_is_a_function_of_the_set_of_files(events: list[Event], status: str) -> None:
    """Interval files add up, a cumulative file tells the same again."""
    for order in (events, events[::-1]):
        verdict = decide(order, FILES)
        assert verdict is not None
        assert status == verdict.status("vote")


def test_what_only_superseded_publications_hold_is_withdrawn() -> None:
    """Kept, marked, not counted; withdrawn wins over everything else."""
    files = {HOURLY: FILES[HOURLY]._replace(is_current=False)}
    verdict = decide([event(HOURLY, 1), event(HOURLY, 2, -1)], files)
    assert verdict is not None
    assert "withdrawn" == verdict.status("vote_rejected")


def test_the_content_shown_is_that_of_the_last_row_in_slot_order() -> None:
    """By slot start, cumulative files last, then line; never by arrival."""
    verdict = decide([event(LATER, 1, content=B), event(HOURLY, 9)], FILES)
    assert verdict is not None
    assert B == verdict.shown.content_hash
    verdict = decide([event(WHOLE, 1), event(LATER, 1, content=B)], FILES)
    assert verdict is not None
    assert A == verdict.shown.content_hash


def test_a_transaction_belongs_to_the_first_interval_slot_that_holds_it() -> None:
    """Whatever came first: rules about chain order depend on it."""
    verdict = decide([event(LATER, 1), event(WHOLE, 1), event(HOURLY, 5)], FILES)
    assert verdict is not None
    assert EIGHT == verdict.slot


def test_a_rollback_alone_makes_no_transaction() -> None:
    """A −1 row never supplies content."""
    assert decide([event(HOURLY, 1, -1)], FILES) is None


# The protocol


def row(operation: str, slot: str | None, minute: int = 0, persons: int | None = None) -> Any:
    """A protocol row at noon and so many minutes."""
    at = NOON + timedelta(minutes=minute)
    return ProtocolRow(operation, at, slot, f"{operation} {minute}", persons)


def test_votes_before_the_main_key_are_counted_by_slots() -> None:
    """Those of the same hour are not judged: their order is not known from counts."""
    slots = [SlotCount(EIGHT, 3, 2), SlotCount(NINE, 3, 2)]
    (finding,) = rules.vote_without_main_key(slots, row("addMainKey", NINE), NOON)
    assert 2 == finding.details["votes"]
    assert [] == rules.vote_without_main_key(slots, row("addMainKey", EIGHT), NOON)
    assert [] == rules.vote_without_main_key(slots, None, NOON)


def test_what_comes_after_the_finish_or_too_early_is_out_of_order() -> None:
    """Results before decryptions are normal; decryptions before the finish are not."""
    slots = [SlotCount(NINE, 1, 1), SlotCount(TEN, 0, 1)]
    rows = [row("finishVoting", NINE), row("decryption", EIGHT), row("results", TEN, 1)]
    found = rules.lifecycle_order(rows, slots, contradicted=["finishVoting"], at=NOON)
    assert ["after_finish", "before_finish", "finishVoting"] == [one.subject for one in found]


@pytest.mark.parametrize(
    ("vector", "votes", "provisional", "found"),
    [
        ([[3, 4]], 7, False, []),
        ([[3, 5]], 7, False, ["more 1"]),
        ([[3, 5]], 7, True, []),
        ([[3, 3]], 7, False, ["fewer 1"]),
        ([[3, 3]], 7, True, ["fewer 1"]),
        ("nonsense", 7, False, []),
        ([[3, "x"]], 7, False, []),
    ],
)
def test_results_are_held_against_the_votes(
    vector: object, votes: int, provisional: bool, found: list[str]
) -> None:
    """Votes of missing hours are unknown: then only too few marks say anything."""
    results = Results(
        vectors=(vector,),
        tx_ids=("r",),
        dimension=[[1, 1, 2]],
        votes=votes,
        revotes=0,
        is_provisional=provisional,
        at=NOON,
    )
    assert found == [one.subject for one in rules.results_mismatch(results)]


def test_the_zone_of_file_names_is_the_commonest_difference() -> None:
    """One row at the edge of an hour moves nothing."""
    rows = [row("createContract", NINE, -120), row("startVoting", NINE, -59 - 60), row("x", TEN)]
    assert timedelta(hours=-1) == shift_of(rows)
    assert shift_of([row("startVoting", None)]) is None


# Files


@pytest.mark.parametrize(
    ("rejected", "rows", "severity"), [(0, 9, []), (1, 500, ["info"]), (10, 5000, ["warning"])]
)
def test_refused_rows_are_told_and_many_are_a_warning(
    rejected: int, rows: int, severity: list[str]
) -> None:
    """From ten rows or one in a hundred on."""
    found = rules.reject_share([RejectedRows(EIGHT, "a", rejected, rows)], Rules().reject_share)
    assert severity == [one.severity for one in found]


@pytest.mark.parametrize(
    ("slots", "lacking", "severity"),
    [
        ((EIGHT,), (1,), "warning"),
        ((EIGHT, NINE, TEN), (1, 1, 1), "critical"),
        ((EIGHT,), (5,), "critical"),
    ],
)
def test_three_missing_hours_or_a_tenth_of_the_fleet_are_critical(
    slots: tuple[str, ...], lacking: tuple[int, ...], severity: str
) -> None:
    """One hour of one constituency is a warning."""
    gap = Gap(slots=slots, lacking=lacking, constituencies=50)
    assert severity == rules.missing_hour(gap, Rules().missing_hour).severity


@pytest.mark.parametrize(
    ("numbers", "subjects"),
    [
        ([(2, 10)], []),
        ([(3, 300)], ["c0 2024-09-06T12"]),
        ([(3, 5_000)], []),
        ([(3, 300)] * 3, ["fleet 2024-09-06T12"]),
        ([(30, 5_000)], ["c0 2024-09-06T12"]),
    ],
)
def test_many_rollbacks_in_an_hour_are_a_burst(
    numbers: list[tuple[int, int]], subjects: list[str]
) -> None:
    """By their share of the hour or against the others; several at once are one alert."""
    bursts = [
        Burst(f"c{at}", rolled_back, rows, 2, 100_000)
        for at, (rolled_back, rows) in enumerate(numbers)
    ]
    found = rules.rollback_burst(NOON, bursts, Rules().rollback_burst)
    assert subjects == [one.subject for one in found]


@pytest.mark.parametrize(
    ("rows", "outside", "minutes", "severity"),
    [
        (50, 0, 0.0, []),
        (50, 1, 40.0, ["info"]),
        (50, 1, 61.0, ["warning"]),
        (20, 2, 31.0, ["warning"]),
    ],
)
def test_rows_outside_of_their_hour_are_judged_by_number_and_distance(
    rows: int, outside: int, minutes: float, severity: list[str]
) -> None:
    """One row an hour out, or one in twenty."""
    counted = OutOfSlot(
        slot=EIGHT,
        rows=rows,
        outside=outside,
        farthest_minutes=minutes,
        shift_hours=3.0,
        tx_ids=(),
        at=NOON,
    )
    found = rules.ts_out_of_slot(counted, Rules().ts_out_of_slot)
    assert severity == [one.severity for one in found]
