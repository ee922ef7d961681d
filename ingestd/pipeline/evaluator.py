"""The evaluator: works off what the commits of files marked as due, many files together.

A file's commit leaves a mark (`stats.mark_due`) and goes on. One pass takes the marks, reads what
changed, computes every group of votings anew (each expectation hangs on all peers, and that takes
milliseconds), writes the cells, alerts and scores that differ, and deletes the marks it took. So
the same data give the same alerts in any order; a pass that is killed is done again.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    String,
    bindparam,
    cast,
    delete,
    func,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import AnyRow, is_postgresql, not_searched
from ingestd.job_state import JobState
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    Evaluation,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    table_of,
)
from ingestd.pipeline import alerts, fleet, stats, surprises
from ingestd.pipeline.fleet import CLOSED, COUNTED, MISSING, OPEN, PROVISIONAL, Rows, Voting, Window
from ingestd.pipeline.peers import Flags, Floats, Ints
from ingestd.pipeline.rules import MOST_LISTED, Finding
from ingestd.pipeline.slot import WHOLE
from ingestd.pipeline.step import Step
from ingestd.pipeline.surprises import Group, Surprise
from ingestd.pipeline.touched import (
    ACCEPTED,
    by_bytes,
    chunks,
    insert_missing,
    start_of,
    transaction,
)
from ingestd.thresholds import Alerts, MissingHour

TOLD = (
    *("coverage", "bulletin_velocity", "vote_velocity"),
    *("bulletin_velocity_ewma", "vote_velocity_ewma"),
    *("expected_bulletins", "expected_votes", "phi", "z_bulletins", "z_votes"),
)
"""The columns of an hour that are the evaluator's, with `status`."""

_DECIMALS = np.array([3, 3, 3, 3, 3, 3, 3, 4, 2, 2])
HALF_LIFE_HOURS = 2.0
_LEAST_COVERAGE = 0.25
_BUSY = timedelta(seconds=60)
_CELLS_AT_ONCE, _ROWS_AT_ONCE = 20_000, 5_000
_SOME = 500  # constituencies read by their ids; more of them are read in one go
_WARNING_SCORE = 0.7  # an active integrity warning lifts the score to this, a critical one to 1

hourly, due, turn = table_of(HourlyStats), table_of(EvaluationDue), table_of(Evaluation)
job, alert = table_of(FileProcessing), table_of(Alert)
constituency, election = table_of(Constituency), table_of(Election)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The settings of the statistical rules; `overrides` by an election's name or type."""

    values: Mapping[str, float]
    overrides: Mapping[str, Mapping[str, float]]
    held: Alerts
    voting_hours: int
    first_hour: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did."""

    marks: int
    constituencies: int
    cells_changed: int
    findings: int


class LostTurn(Exception):
    """Another evaluator took over: what this one has read is old."""


@dataclass(slots=True)
class Evaluator:
    """Evaluates a database; keeps between passes what it has read, as long as nobody else wrote."""

    sessions: sessionmaker[Session]
    thresholds: Thresholds
    clock: Callable[[], datetime]
    on_step: Callable[[Step], None] = lambda _step: None
    _generation: int | None = None
    _rows: dict[uuid.UUID, Rows] = field(default_factory=dict)

    def work_off(self, *, is_alone: bool = False) -> Pass | None:
        """Evaluate what is due; None when nothing is, or when another evaluator is at it.

        `is_alone` takes the turn over from one that may have died.
        """
        with self.sessions() as session:
            # A mark to judge anew goes when the rules of its constituency have looked.
            if session.scalar(select(due.c.id).where(~due.c.is_anew).limit(1)) is None:
                return None
        if not self._begin(is_alone=is_alone):
            return None
        try:
            return self._evaluate()
        except LostTurn:
            self._generation = None
            return None
        except BaseException:
            self._generation = None
            self._give_back()
            raise

    def _begin(self, *, is_alone: bool) -> bool:
        """Take the turn; what was kept is good only if the last turn was ours."""
        now = self.clock()
        is_free = or_(turn.c.busy_until.is_(None), turn.c.busy_until < now)
        with self.sessions.begin() as session:
            if session.scalar(select(turn.c.id)) is None:
                insert_missing(session, turn, [{"id": 1, "generation": 0}])
            taken = session.execute(
                update(turn)
                .where(turn.c.id == 1, *(() if is_alone else (is_free,)))
                .values(generation=turn.c.generation + 1, busy_until=now + _BUSY)
                .returning(turn.c.generation)
            ).scalar_one_or_none()
        if taken is None:
            return False
        if self._generation is None or taken != self._generation + 1:
            self._rows = {}
        self._generation = int(taken)
        return True

    def _give_back(self) -> None:
        """Let others have the turn at once after a fault, if the database is there."""
        try:
            with self.sessions.begin() as session:
                session.execute(update(turn).values(busy_until=None))
        except Exception:  # noqa: BLE001, S110 - the fault itself is on its way up
            pass

    def _hold_turn(self, session: Session) -> None:
        """Make sure that nobody has taken over, and that nobody does before this commit.

        Raises:
            LostTurn: somebody has.
        """
        query = select(turn.c.generation).where(turn.c.id == 1).with_for_update()
        if session.scalar(query) != self._generation:
            raise LostTurn

    def _evaluate(self) -> Pass:
        with self.sessions() as session:
            # The marks first: what is committed after them comes with marks of its own.
            marks = session.execute(select(due.c.id, due.c.constituency_id, due.c.is_anew)).all()
            changed = {mark.constituency_id for mark in marks}
            votings = read_votings(session)
            here = {voting.id for voting in votings}
            if not self._rows or len(changed) > _SOME:
                self._rows = dict(read_rows(session, None))
            else:
                for one in changed:
                    self._rows.pop(one, None)
                self._rows.update(read_rows(session, changed & here))
            integrity = read_integrity(session)
        known = [voting for voting in votings if voting.id in self._rows]
        judged = judge(known, self._rows, self.thresholds)
        number = self._write_cells(judged)
        self.on_step(Step.JUDGED)
        # Those to judge anew stay: `review_due` has not come to them yet.
        taken = [mark.id for mark in marks if not mark.is_anew]
        self._write_findings(judged, votings, integrity, taken)
        self.on_step(Step.EVALUATED)
        return Pass(
            len(marks), len(known), number, sum(len(one.surprises) for one in judged.groups)
        )

    def _write_cells(self, judged: Judged) -> int:
        """Write what differs, a part in each commit, so that no file waits for long."""
        for part in _parts(judged.changes):
            with self._writing() as session:
                write_cells(session, part)
        for part in _parts(judged.empties):
            with self._writing() as session:
                insert_empties(session, part)
        if judged.carried or judged.stray:
            with self._writing() as session:
                carry(session, judged.carried)
                delete_empties(session, judged.stray)
        # What is kept says what the table says; where a file was quicker, its mark says so.
        for rows, told, status in judged.written:
            rows.told, rows.status = told, status
        for cells in judged.empties:
            _insert(self._rows[cells.one], cells)
        return sum(len(cells.hours) for cells in (*judged.changes, *judged.empties))

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self.sessions.begin() as session:
            self._hold_turn(session)
            yield session

    def _write_findings(
        self,
        judged: Judged,
        votings: Sequence[Voting],
        integrity: Mapping[uuid.UUID, str],
        marks: Sequence[uuid.UUID],
    ) -> None:
        now = self.clock()
        with self._writing() as session:
            settle(session, judged, now)
            # Last: a file's commit waits for its constituency's row.
            write_scores(session, votings, judged.scores, integrity)
            for chunk in chunks(marks):
                session.execute(delete(due).where(due.c.id.in_(chunk)))
            if judged.reread:
                self._rows.update(read_rows(session, judged.reread))
            session.execute(update(turn).values(busy_until=None))


Unlike = tuple[uuid.UUID | None, int | None, str]
"""A constituency (None: all), a UTC hour if it is about one, and what would change."""


def unlike(session: Session, thresholds: Thresholds) -> Iterator[Unlike]:
    """Tell what a pass over everything would change, and write nothing.

    Nothing may be due, or the tables rightly say what was true before.
    """
    votings = read_votings(session)
    rows = dict(read_rows(session, None))
    judged = judge([voting for voting in votings if voting.id in rows], rows, thresholds)
    for what, several in (
        ("it would be evaluated otherwise", judged.changes),
        ("an empty hour is not there", judged.empties),
    ):
        for cells in several:
            yield from ((cells.one, int(hour), what) for hour in cells.hours)
    yield from ((one, hour, "it is no hour of the voting") for one, hour in judged.stray)
    yield from ((one, hour, "its sums are old") for one, hour, _, _ in judged.carried)
    wanted = scores_of(votings, judged.scores, read_integrity(session))
    for one, found in session.execute(select(constituency.c.id, constituency.c.anomaly_score)):
        if wanted[one] != found:
            yield one, None, f"anomaly_score is {found}, computed {wanted[one]}"
    yield from _unlike_findings(session, judged)


def _unlike_findings(session: Session, judged: Judged) -> Iterator[Unlike]:
    found = {
        (
            None if each.one is None else one.group.ids[each.one],
            each.finding.rule,
            each.finding.subject,
        )
        for one in judged.groups
        for each in one.surprises
    }
    query = select(alert.c.constituency_id, alert.c.type, alert.c.subject).where(
        alert.c["class"] == "statistical", alert.c.cleared_at.is_(None)
    )
    is_open = {(row[0], row[1], row[2]) for row in session.execute(query)}
    for whose, rule, subject in sorted(is_open - found, key=str):
        yield whose, None, f"the alert {rule} {subject} is open, and nothing finds it"
    for whose, rule, subject in sorted(found - is_open, key=str):
        yield whose, None, f"the alert {rule} {subject} is not open"


# Reading ------------------------------------------------------------------------------------


def read_votings(session: Session) -> list[Voting]:
    """Read every constituency with its election."""
    c = constituency.c
    query = (
        select(
            *(c.id, c.contract_id, c.name, c.region_code, c.region_name, c.election_id),
            *(c.registered_voters, c.voting_start, c.voting_end, c.timezone),
            election.c.name.label("election"),
            election.c.type.label("election_type"),
        )
        .select_from(constituency.outerjoin(election, election.c.id == c.election_id))
        .order_by(c.contract_id)
    )
    return [
        Voting(
            id=row.id,
            contract_id=row.contract_id,
            name=row.name or "",
            region=row.region_code or "",
            region_name=row.region_name or "",
            election=row.election or "",
            election_type=row.election_type or "",
            roll=row.registered_voters,
            start=fleet.hour_near(row.voting_start),
            end=fleet.hour_near(row.voting_end),
            zone=row.timezone,
        )
        for row in session.execute(query)
    ]


def read_rows(
    session: Session, wanted: Iterable[uuid.UUID] | None
) -> Iterator[tuple[uuid.UUID, Rows]]:
    """Read the hours of constituencies, and what their files cover; None means of all."""
    if wanted is None:
        yield from _read(session, None)
        return
    for chunk in chunks(sorted(wanted)):
        yield from _read(session, chunk)


def _read(session: Session, wanted: Sequence[uuid.UUID] | None) -> Iterator[tuple[uuid.UUID, Rows]]:
    files: dict[uuid.UUID, list[fleet.Told]] = {}
    whose = () if wanted is None else (job.c.constituency_id.in_(wanted),)
    query = (
        select(
            *(_text_of(session, job.c.constituency_id), job.c.slot, job.c.is_cumulative),
            *(job.c.slot_bulletins + job.c.slot_votes, job.c.rows_read),
        )
        .where(
            not_searched(job.c.status) == JobState.COMPLETED,
            job.c.duplicate_of_id.is_(None),
            job.c.constituency_id.is_not(None),
            *whose,
        )
        .order_by(job.c.constituency_id)
    )
    for key, group in groupby(_streamed(session, query), itemgetter(0)):
        files[uuid.UUID(key)] = [
            fleet.Told(slot, bool(total), int(number), int(rows))
            for _, slot, total, number, rows in group
        ]
    whose = () if wanted is None else (hourly.c.constituency_id.in_(wanted),)
    for key, group in groupby(_streamed(session, _hours(session).where(*whose)), itemgetter(0)):
        one = uuid.UUID(key)
        rows = _rows_from(list(group))
        fleet.cover(rows, files.pop(one, ()))
        yield one, rows
    for one, slots in files.items():
        rows = _rows_from([])
        fleet.cover(rows, slots)
        yield one, rows


def _streamed(session: Session, query: Select[Any]) -> Iterator[AnyRow]:
    """Rows of a long answer, some thousand at a time."""
    result = session.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE})
    return chain.from_iterable(result.partitions())


_NUMBERS = (
    *("bulletins_issued", "votes_cast", "votes_rejected", "issues_rejected"),
    *("cumulative_bulletins", "cumulative_votes", *TOLD),
)


def _hours(session: Session) -> Select[Any]:
    h = hourly.c
    columns = [h[name] for name in _NUMBERS]
    return select(
        _text_of(session, h.constituency_id),
        _hour_number(session),
        *columns,
        h.status,
        h.is_empty,
    ).order_by(h.constituency_id, h.hour)


def _text_of(session: Session, column: ColumnElement[Any]) -> ColumnElement[str]:
    """An id as text: making objects of hundreds of thousands takes a second."""
    return cast(column, String) if is_postgresql(session) else type_coerce(column, String)


def _hour_number(session: Session) -> ColumnElement[int]:
    if is_postgresql(session):
        return cast(func.extract("epoch", hourly.c.hour) / 3600, BigInteger)
    return cast(func.strftime("%s", hourly.c.hour), BigInteger) // 3600


def _rows_from(found: Sequence[AnyRow]) -> Rows:
    columns = list(zip(*found, strict=True)) or [()] * (len(_NUMBERS) + 4)
    numbers = np.array(columns[2:-2], np.float64).T
    return Rows(
        hours=np.array(columns[1], np.int64),
        counts=numbers[:, :4],
        cumulative=numbers[:, 4:6],
        told=numbers[:, 6:],
        status=np.array([_STATUS_CODES.get(each, -1) for each in columns[-2]], np.int64),
        is_empty=np.array(columns[-1], np.bool_),
    )


_STATUS_CODES = {name: number for number, name in enumerate(fleet.STATUSES)}


def read_integrity(session: Session) -> dict[uuid.UUID, str]:
    """The worst severity of the active integrity alerts of each constituency."""
    query = (
        select(alert.c.constituency_id, func.min(alert.c.severity))
        .where(
            alert.c["class"] == "integrity",
            alert.c.cleared_at.is_(None),
            alert.c.severity.in_(("critical", "warning")),  # in the order of the alphabet, too
            alert.c.constituency_id.is_not(None),
        )
        .group_by(alert.c.constituency_id)
    )
    worst = {row[0]: row[1] for row in session.execute(query)}
    for severity, contracts in _integrity_of_several(session):
        for contract in contracts:
            one = stats.constituency_id_of(contract)
            worst[one] = min(severity, worst.get(one, severity))
    return worst


def _integrity_of_several(session: Session) -> Iterator[tuple[str, list[str]]]:
    """Each integrity alert that is about several constituencies: they stand in its details."""
    query = select(alert.c.severity, alert.c.details).where(
        alert.c["class"] == "integrity",
        alert.c.cleared_at.is_(None),
        alert.c.severity.in_(("critical", "warning")),
        alert.c.constituency_id.is_(None),
    )
    for row in session.execute(query):
        yield row.severity, row.details.get("contracts", [])


# Judging ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cells:
    """The evaluator's columns of some hours of one constituency; `sums` for hours to be added."""

    one: uuid.UUID
    hours: Ints  # UTC hours since the epoch
    told: Floats  # (hours, TOLD); nan is null
    status: Ints
    sums: Ints | None = None

    def rows(self) -> Iterator[tuple[int, list[float | None], str]]:
        """Hour, values and status, as a database takes them."""
        values = self.told.astype(object)
        values[np.isnan(self.told)] = None
        names = [fleet.STATUSES[code] for code in self.status.tolist()]
        return zip(self.hours.tolist(), values.tolist(), names, strict=True)


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """A group of votings with what the rules found in it."""

    group: Group
    surprises: Sequence[Surprise]


@dataclass(slots=True)
class Judged:
    """What the tables should say."""

    groups: list[JudgedGroup] = field(default_factory=list)
    scores: dict[uuid.UUID, float] = field(default_factory=dict)
    shifts: dict[uuid.UUID, int] = field(default_factory=dict)
    changes: list[Cells] = field(default_factory=list)
    carried: list[tuple[uuid.UUID, int, int, int]] = field(default_factory=list)
    empties: list[Cells] = field(default_factory=list)
    stray: list[tuple[uuid.UUID, int]] = field(default_factory=list)
    written: list[tuple[Rows, Floats, Ints]] = field(default_factory=list)
    reread: set[uuid.UUID] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Cells:
    """The evaluator's columns of one constituency's hours of vote."""

    start: int
    told: Floats  # (hours, TOLD)
    status: Ints
    is_shown: Flags  # closed or covered: an hour without a row gets one


def judge(
    votings: Sequence[Voting], rows: Mapping[uuid.UUID, Rows], thresholds: Thresholds
) -> Judged:
    """Say what all tables should say; pure."""
    spans = fleet.windows(votings, usual_hours=thresholds.voting_hours)
    shifts = _shifts(votings, rows)
    covered = {voting.id: _covered(rows[voting.id], shifts[voting.region]) for voting in votings}
    judged = Judged(shifts={voting.id: shifts[voting.region] for voting in votings})
    cells: dict[uuid.UUID, _Cells] = {}
    for group in fleet.grouped(votings, spans):
        cells |= _judge_group(judged, group, spans, rows, covered, thresholds)
    for voting in votings:
        _compare(judged, voting, rows[voting.id], covered[voting.id], cells.get(voting.id))
    return judged


def _shifts(votings: Sequence[Voting], rows: Mapping[uuid.UUID, Rows]) -> dict[str, int]:
    by_region: dict[str, list[Rows]] = defaultdict(list)
    for voting in votings:
        by_region[voting.region].append(rows[voting.id])
    usual = fleet.shift_of([rows[voting.id] for voting in votings]) or 0
    found = {region: fleet.shift_of(each) for region, each in by_region.items()}
    return {region: usual if shift is None else shift for region, shift in found.items()}


def _covered(rows: Rows, shift: int) -> dict[int, float]:
    """The share of each UTC hour for which files are here."""
    shares: dict[int, float] = defaultdict(float)
    for hour, share in zip(rows.named.tolist(), rows.share.tolist(), strict=True):
        shares[hour - shift] = min(1.0, shares[hour - shift] + share)
    return shares


def _judge_group(
    judged: Judged,
    votings: Sequence[Voting],
    spans: Mapping[uuid.UUID, Window],
    rows: Mapping[uuid.UUID, Rows],
    covered: Mapping[uuid.UUID, Mapping[int, float]],
    thresholds: Thresholds,
) -> dict[uuid.UUID, _Cells]:
    group, here = _assembled(votings, spans, rows, covered, thresholds)
    figures = None
    if len(votings) > surprises.LEAST_PEERS:
        figures = surprises.figures_of(group)
        judged.groups.append(JudgedGroup(group, list(surprises.find(group, figures))))
        score = surprises.scores(group, figures)
        judged.scores |= {
            voting.id: round(float(one), 4)
            for voting, one in zip(votings, score, strict=True)
            if not np.isnan(one)
        }
    told = _told(group, figures, here)
    status = np.full(here.coverage.shape, OPEN)
    is_here = here.coverage > 0
    status[here.is_closed & is_here] = CLOSED
    status[here.is_closed & is_here & here.is_provisional] = PROVISIONAL
    status[here.is_closed & ~is_here] = MISSING
    shown = here.inside & (here.is_closed | is_here)
    return {
        voting.id: _Cells(int(group.starts[number]), told[number], status[number], shown[number])
        for number, voting in enumerate(votings)
    }


def _assembled(
    votings: Sequence[Voting],
    spans: Mapping[uuid.UUID, Window],
    rows: Mapping[uuid.UUID, Rows],
    covered: Mapping[uuid.UUID, Mapping[int, float]],
    thresholds: Thresholds,
) -> tuple[Group, fleet.Delivered]:
    """Put the hours of comparable votings side by side, by hour of vote."""
    hours = max(spans[voting.id].hours for voting in votings)
    coverage = np.zeros((len(votings), hours))
    counts = {name: np.zeros((len(votings), hours)) for name in COUNTED}
    for number, voting in enumerate(votings):
        start, mine = spans[voting.id].start, rows[voting.id]
        for hour, share in covered[voting.id].items():
            if 0 <= hour - start < hours:
                coverage[number, hour - start] = share
        place = mine.hours - start
        inside = (place >= 0) & (place < hours)
        if mine.has_whole:
            coverage[number] = 1.0
        elif mine.has_slotless:
            coverage[number, place[inside & ~mine.is_empty]] = 1.0
        for column, name in enumerate(COUNTED):
            counts[name][number, place[inside]] = mine.counts[inside, column]
    starts = np.array([spans[voting.id].start for voting in votings], np.int64)
    region = fleet.regions_of(votings, spans)
    here = fleet.delivered(
        coverage,
        np.array([spans[voting.id].hours for voting in votings], np.int64),
        starts,
        region[0],
        empty=_empty_hours(
            votings, thresholds, has_empty=any(one.has_empty_file for one in rows.values())
        ),
        ballots=counts["bulletins"] + counts["votes"],
    )
    limits = _limits(votings, thresholds)
    group = fleet.assemble(
        votings, spans, counts, here, region, limits=limits, first_hour=thresholds.first_hour
    )
    return group, here


def group_of(session: Session, thresholds: Thresholds, contracts: Collection[str]) -> Group | None:
    """The votings that one of these is compared with, as the rules see them; writes nothing."""
    rows = dict(read_rows(session, None))
    votings = [voting for voting in read_votings(session) if voting.id in rows]
    spans = fleet.windows(votings, usual_hours=thresholds.voting_hours)
    shifts = _shifts(votings, rows)
    for some in fleet.grouped(votings, spans):
        if {voting.contract_id for voting in some} & set(contracts):
            covered = {one.id: _covered(rows[one.id], shifts[one.region]) for one in some}
            return _assembled(some, spans, rows, covered, thresholds)[0]
    return None


def _empty_hours(
    votings: Sequence[Voting], thresholds: Thresholds, *, has_empty: bool
) -> fleet.EmptyHours:
    """Whether hours without a file were empty: the settings of `missing_hour` say it, for each."""
    held: dict[tuple[str, str], MissingHour] = {}
    for voting in votings:
        whose = voting.election, voting.election_type
        if whose not in held:
            rules = thresholds.held
            held[whose] = (rules.for_election(*whose) if rules.differs else rules).missing_hour
    mine = [held[voting.election, voting.election_type] for voting in votings]
    return fleet.EmptyHours(
        are_published=np.array([one.publishes_empty(seen=has_empty) for one in mine], bool),
        least_expected=np.array([float(one.least_expected) for one in mine]),
    )


def _limits(votings: Sequence[Voting], thresholds: Thresholds) -> dict[str, Floats]:
    """Every threshold by constituency: an election's own, its type's, the fleet's."""
    values = dict(thresholds.values)
    if len(votings) >= values["large_fleet"]:
        values["spike_z"] = max(values["spike_z"], values["spike_z_large"])
    limits = {name: np.full(len(votings), float(value)) for name, value in values.items()}
    for number, voting in enumerate(votings):
        for key in (voting.election_type, voting.election):
            for name, value in thresholds.overrides.get(key, {}).items() if key else ():
                limits[name][number] = value
    return limits


def _told(group: Group, figures: surprises.Figures | None, here: fleet.Delivered) -> Floats:
    """The evaluator's columns as they are stored; nan is null."""
    unknown = here.coverage <= 0
    covered = np.maximum(here.coverage, _LEAST_COVERAGE)
    velocities = [
        np.where(unknown, np.nan, group.counts[name] / covered) for name in ("bulletins", "votes")
    ]
    columns = [here.coverage, *velocities, *map(smoothed, velocities)]
    if figures is None:
        columns += [np.full(unknown.shape, np.nan)] * (len(TOLD) - len(columns))
    else:
        known = group.fleet.known & figures.enough[None, :]
        series = (figures.bulletins.mu, figures.votes.mu, figures.bulletins.phi)
        columns += [np.where(known, values, np.nan) for values in series]
        columns += [figures.bulletins.z, figures.votes.z]
    return _rounded(np.stack(columns, axis=2))


def smoothed(velocity: Floats) -> Floats:
    """Smooth velocities by hour of vote: the mean of those known so far; nan where these are.

    A weight halves in two hours.
    """
    out = np.full(velocity.shape, np.nan)
    total, weight = np.zeros(len(velocity)), np.zeros(len(velocity))
    fades = 0.5 ** (1 / HALF_LIFE_HOURS)
    for hour in range(velocity.shape[1]):
        known = ~np.isnan(velocity[:, hour])
        total = fades * total + np.where(known, velocity[:, hour], 0.0)
        weight = fades * weight + known
        out[known, hour] = total[known] / weight[known]
    return out


def _rounded(told: Floats) -> Floats:
    for column, decimals in enumerate(_DECIMALS):
        told[..., column] = np.round(told[..., column], decimals)
    return told + 0.0  # no minus zero


def _compare(
    judged: Judged,
    voting: Voting,
    rows: Rows,
    covered: Mapping[int, float],
    cells: _Cells | None,
) -> None:
    """Find what differs between the table and what it should say, for one constituency."""
    told = np.full(rows.told.shape, np.nan)
    status = np.full(rows.hours.shape, OPEN)
    hours = len(cells.status) if cells else 0
    place = rows.hours - (cells.start if cells else 0)
    inside = (place >= 0) & (place < hours)
    if cells:
        told[inside], status[inside] = cells.told[place[inside]], cells.status[place[inside]]
    for number in np.flatnonzero(~inside):
        told[number], status[number] = _outside(rows, int(number), covered)
    differs = (status != rows.status) | ~_same(told, rows.told).all(axis=1)
    shown = np.zeros(len(rows.hours), bool)
    if cells:
        shown[inside] = cells.is_shown[place[inside]]
    # Hours that this module made and that no longer are hours of the voting.
    stray = rows.is_empty & ~shown
    judged.stray += [(voting.id, int(hour)) for hour in rows.hours[stray]]
    if stray.any():
        judged.reread.add(voting.id)
    differs &= ~stray
    if differs.any():
        new = Cells(voting.id, rows.hours[differs], told[differs], status[differs])
        judged.changes.append(new)
        judged.written.append((rows, told, status))
    if rows.is_empty.any():
        _carry(judged, voting, rows, stray)
    if cells:
        _add_empties(judged, voting, rows, cells, place[inside])


def _carry(judged: Judged, voting: Voting, rows: Rows, stray: Flags) -> None:
    """Carry the sums on through hours that were added while a file was being counted."""
    # A run of empty hours takes its sums from the last hour that is not empty.
    source = np.maximum.accumulate(np.where(rows.is_empty, -1, np.arange(len(rows.hours))))
    before = np.where((source >= 0)[:, None], rows.cumulative[source], 0.0)
    for number in np.flatnonzero(rows.is_empty & ~stray & (before != rows.cumulative).any(axis=1)):
        issued, cast_ = before[number]
        judged.carried.append((voting.id, int(rows.hours[number]), int(issued), int(cast_)))
        judged.reread.add(voting.id)


def _insert(rows: Rows, cells: Cells) -> None:
    """Note hours that were added to the table."""
    if cells.sums is None:
        return
    at = np.searchsorted(rows.hours, cells.hours)
    rows.hours = np.insert(rows.hours, at, cells.hours)
    rows.counts = np.insert(rows.counts, at, 0.0, axis=0)
    rows.cumulative = np.insert(rows.cumulative, at, cells.sums, axis=0)
    rows.told = np.insert(rows.told, at, cells.told, axis=0)
    rows.status = np.insert(rows.status, at, cells.status)
    rows.is_empty = np.insert(rows.is_empty, at, True)


def _outside(rows: Rows, number: int, covered: Mapping[int, float]) -> tuple[Floats, int]:
    """An hour before or after the voting, or of a voting of which no beginning is known."""
    share = covered.get(int(rows.hours[number]), 0.0)
    if rows.has_whole or (rows.has_slotless and not rows.is_empty[number]):
        share = 1.0
    told = np.full(len(TOLD), np.nan)
    told[0] = share
    if share > 0:
        told[1:3] = rows.counts[number, :2] / max(share, _LEAST_COVERAGE)
    return _rounded(told), CLOSED if share >= 1 else PROVISIONAL


def _same(one: Floats, other: Floats) -> Flags:
    return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))


def _add_empties(judged: Judged, voting: Voting, rows: Rows, cells: _Cells, present: Ints) -> None:
    wanted = cells.is_shown.copy()
    wanted[present] = False
    places = np.flatnonzero(wanted)
    if not len(places):
        return
    hours = cells.start + places
    before = np.searchsorted(rows.hours, hours)
    sums = np.vstack([np.zeros((1, 2)), rows.cumulative])[before].astype(np.int64)
    new = Cells(voting.id, hours, cells.told[places], cells.status[places], sums)
    judged.empties.append(new)


# Writing ------------------------------------------------------------------------------------


def _parts(items: Sequence[Cells]) -> Iterator[list[Cells]]:
    """Cut into commits."""
    part: list[Cells] = []
    for cells in items:
        part.append(cells)
        if sum(len(each.hours) for each in part) >= _CELLS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


@cache
def _on_sqlite() -> str:
    columns = ", ".join(f"{name} = ?" for name in (*TOLD, "status"))
    return f"UPDATE hourly_stats SET {columns} WHERE constituency_id = ? AND hour = ?"  # noqa: S608 - names of columns


def write_cells(session: Session, changes: Sequence[Cells]) -> None:
    """Write the evaluator's columns of these hours, and nothing else of them."""
    connection = session.connection()
    if not is_postgresql(session):
        rows = [
            (*values, status, cells.one.hex, _text(hour))
            for cells in changes
            for hour, values, status in cells.rows()
        ]
        connection.exec_driver_sql(_on_sqlite(), rows)
        return
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE IF NOT EXISTS evaluated (constituency_id uuid, hour timestamptz, "
        + "".join(f"{name} double precision, " for name in TOLD)
        + "status text) ON COMMIT DELETE ROWS"
    )
    cursor = connection.connection.cursor()
    with cursor.copy("COPY evaluated FROM STDIN") as copy:
        for cells in changes:
            for hour, values, status in cells.rows():
                copy.write_row((cells.one, start_of(hour), *values, status))
    cursor.close()
    # In the order in which a file's commit locks the hours of its constituency: no deadlock.
    connection.exec_driver_sql(
        "SELECT count(*) FROM (SELECT 1 FROM hourly_stats h JOIN evaluated e USING "
        "(constituency_id, hour) ORDER BY constituency_id, hour FOR UPDATE OF h) AS locked"
    )
    assignments = ", ".join(f"{name} = e.{name}" for name in (*TOLD, "status"))
    connection.exec_driver_sql(
        f"UPDATE hourly_stats h SET {assignments} FROM evaluated e "  # noqa: S608 - names of columns
        "WHERE h.constituency_id = e.constituency_id AND h.hour = e.hour"
    )


_NONE = (
    *("bulletins_issued", "votes_cast", "votes_rejected", "issues_rejected", "revotes"),
    *("rolled_back", "list_added", "list_removed", "transaction_count"),
)
_OF_EMPTY = (
    *("id", "constituency_id", "hour", "cumulative_bulletins", "cumulative_votes"),
    *(*TOLD, "status"),
)


@cache
def _new_empty(mark: str) -> str:
    """Statement by names of columns: SQLAlchemy's own takes as long as all the rest of a pass."""
    columns = ", ".join((*_OF_EMPTY, "is_empty", *_NONE))
    values = ", ".join([mark] * len(_OF_EMPTY) + ["true"] + ["0"] * len(_NONE))
    return f"INSERT INTO hourly_stats ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of columns


def insert_empties(session: Session, empties: Sequence[Cells]) -> None:
    """Add hours of the voting in which no transaction lies; a file that is quicker wins."""
    is_text = not is_postgresql(session)
    rows = [
        (
            *(key.hex if is_text else key, cells.one.hex if is_text else cells.one),
            *(_text(hour) if is_text else start_of(hour), *sums, *values, status),
        )
        for cells in empties
        if cells.sums is not None
        for (hour, values, status), sums in zip(cells.rows(), cells.sums.tolist(), strict=True)
        for key in (uuid.uuid5(cells.one, str(hour)),)
    ]
    session.connection().exec_driver_sql(_new_empty("?" if is_text else "%s"), rows)


@lru_cache(maxsize=10_000)
def _text(hour: int) -> str:
    """An hour as SQLite stores it."""
    return start_of(hour).replace(tzinfo=None).isoformat(" ", "microseconds")


_CARRY = update(hourly).where(hourly.c.id == bindparam("key"), hourly.c.is_empty)


def carry(session: Session, carried: Sequence[tuple[uuid.UUID, int, int, int]]) -> None:
    """Set the sums of empty hours."""
    rows = [
        {
            "key": uuid.uuid5(one, str(hour)),
            "cumulative_bulletins": issued,
            "cumulative_votes": cast_,
        }
        for one, hour, issued, cast_ in carried
    ]
    if rows:
        session.connection().execute(_CARRY, rows)


def delete_empties(session: Session, stray: Sequence[tuple[uuid.UUID, int]]) -> None:
    """Delete hours that are none of the voting's any more."""
    keys = [uuid.uuid5(one, str(hour)) for one, hour in stray]
    for chunk in chunks(keys):
        session.execute(delete(hourly).where(hourly.c.id.in_(chunk), hourly.c.is_empty))


_SET_SCORE = (
    update(constituency)
    .where(constituency.c.id == bindparam("key"))
    # When a score was computed is no change of the constituency.
    .values(anomaly_score=bindparam("anomaly_score"), updated_at=constituency.c.updated_at)
)


def write_scores(
    session: Session,
    votings: Sequence[Voting],
    scores: Mapping[uuid.UUID, float],
    integrity: Mapping[uuid.UUID, str],
) -> None:
    """Write anomaly_score where it differs; an active integrity alert lifts it."""
    c = constituency.c
    now = {row.id: row.anomaly_score for row in session.execute(select(c.id, c.anomaly_score))}
    # In the order in which a commit that names many constituencies locks them: no deadlock.
    changed = [
        {"key": one, "anomaly_score": score}
        for one, score in sorted(scores_of(votings, scores, integrity).items())
        if one in now and now[one] != score
    ]
    if changed:
        session.connection().execute(_SET_SCORE, changed)


def scores_of(
    votings: Sequence[Voting],
    scores: Mapping[uuid.UUID, float],
    integrity: Mapping[uuid.UUID, str],
) -> dict[uuid.UUID, float | None]:
    """The score of every constituency: an active integrity alert lifts it."""
    floors = {"critical": 1.0, "warning": _WARNING_SCORE}
    lifted: dict[uuid.UUID, float | None] = {}
    for voting in votings:
        score = scores.get(voting.id)
        if floor := floors.get(integrity.get(voting.id, "")):
            score = max(score or 0.0, floor)
        lifted[voting.id] = score
    return lifted


def settle(session: Session, judged: Judged, now: datetime) -> None:
    """Let the statistical alerts say what was found, with the evidence for it."""
    open_rules: dict[uuid.UUID | None, set[str]] = defaultdict(set)
    query = select(alert.c.constituency_id, alert.c.type).where(
        alert.c["class"] == "statistical", alert.c.cleared_at.is_(None)
    )
    for row in session.execute(query.distinct()):
        open_rules[row[0]].add(row[1])
    found: dict[uuid.UUID | None, dict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for one in judged.groups:
        for surprise in one.surprises:
            whose = None if surprise.one is None else one.group.ids[surprise.one]
            finding = _with_evidence(session, one.group, surprise, judged.shifts)
            found[whose][finding.rule].append(finding)
    for whose in sorted({*open_rules, *found}, key=str):
        by_rule = found.get(whose, {})
        alerts.settle_unlikely(
            session, whose, by_rule, open_rules=open_rules.get(whose, ()), now=now
        )


def _with_evidence(
    session: Session, group: Group, surprise: Surprise, shifts: Mapping[uuid.UUID, int]
) -> Finding:
    """Add the first transactions of the hours, and the files that cover them."""
    finding = surprise.finding
    if surprise.one is None:
        return finding
    one = group.ids[surprise.one]
    start = int(group.starts[surprise.one])
    since, until = (start_of(start + hour) for hour in (surprise.hours[0], surprise.hours[-1] + 1))
    t = transaction.c
    shown: list[str] = []
    if surprise.series:
        tally = "bulletin" if surprise.series == "bulletins" else "vote"
        query = (
            select(t.tx_id)
            .where(
                t.constituency_id == one,
                t.timestamp >= since,
                t.timestamp < until,
                t.tally == tally,
                t.status == ACCEPTED,
            )
            .order_by(t.timestamp, by_bytes(t.tx_id, session))
            .limit(MOST_LISTED)
        )
        shown = list(session.scalars(query))
    finding.details["transactions"] = shown
    finding.details["files"] = _files_behind(
        session, one, {start + hour + shifts[one] for hour in surprise.hours}
    )
    return finding


def _files_behind(session: Session, one: uuid.UUID, named: set[int]) -> list[dict[str, Any]]:
    """The current files that cover these hours, by the hours of their names."""
    query = select(job.c.slot, job.c.sha256).where(
        job.c.constituency_id == one,
        not_searched(job.c.status) == JobState.COMPLETED,
        job.c.duplicate_of_id.is_(None),
    )
    files = sorted(session.execute(query), key=lambda file: (file.slot or "", file.sha256))
    return [
        {"slot": row.slot, "sha256": row.sha256}
        for row in files
        if row.slot in {None, WHOLE}
        or any(hour in named for hour, _ in fleet.hours_of_slot(row.slot))
    ]
