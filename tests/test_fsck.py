"""fsck: whatever is changed behind the program's back is named, and mended where it can be."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session, sessionmaker

from ingestd import assembly
from ingestd.config import Settings
from ingestd.errors import StopRequested
from ingestd.models import (
    Alert,
    AuditLog,
    Constituency,
    FileProcessing,
    HourlyStats,
    Reject,
    Sighting,
    Transaction,
    TransactionContent,
    table_of,
)
from ingestd.pipeline.feed import evaluate_feed
from ingestd.pipeline.forget import forget
from ingestd.pipeline.found import Found
from ingestd.pipeline.fsck.check import Fsck, Places
from ingestd.pipeline.fsck.difference import HINTS, Difference
from ingestd.pipeline.fsck.repair import Outcome, Plan, Repair
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.ledger import owner_name
from ingestd.pipeline.replay import MendedRow, replay
from ingestd.pipeline.standard import review_due, take_up
from ingestd.pipeline.validate import constituency_prefix, transaction_id
from ingestd.thresholds import Alerts

from .conftest import (
    DATABASES,
    Clock,
    Databases,
    Did,
    DropFile,
    Simulated,
    Voting,
    csv_of,
    rolled_back,
    terms_in,
    zip_of,
)
from .oracle import differences, snapshot, unsound
from .running import Start, environment, open_sessions, soon
from .test_two_at_once import stop_after_a_batch

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

Sessions = sessionmaker[Session]


def check(folder: Path, ingest: Ingest, *, is_quick: bool = False) -> list[Difference]:
    """What fsck names in a database and its folders."""
    return list(fsck_of(folder, ingest, is_quick=is_quick).differences())


def fsck_of(folder: Path, ingest: Ingest, **how: Any) -> Fsck:
    """Compares a database with its folders."""
    places = Places(
        inbox=folder / "inbox",
        archive=folder / "archive",
        quarantine=folder / "quarantine",
        is_archiving=True,
    )
    return Fsck(
        sessions=ingest.sessions,
        terms=ingest.terms,
        places=places,
        owner=owner_name(),
        clock=ingest.clock,
        patience_seconds=0,
        **how,
    )


# A world with everything in it --------------------------------------------------------------


@dataclass
class World:
    """Folders and a database with publications, rollbacks, rejects, a replay, a refused file."""

    folder: Path
    sessions: Sessions
    is_broken: bool = False
    deeds: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fill it."""
        self.clock = Clock()
        self.ingest = Ingest(self.sessions, terms_in(self.folder), self.clock, owner_name())
        voting, other = Voting(), Voting(rng=random.Random(7))
        first, second, third = (voting.ballots(hour, 3) for hour in (8, 9, 10))
        bad = [voting.vote(490).replace(";104;", ";105;", 1) for _ in range(2)]
        rewritten = first[1].replace('"contractVersion":1', '"contractVersion":2')
        protocol = [voting.create(1), voting.voters_list(2, 50), voting.start(3)]
        self.drop(voting.name(8), csv_of([*protocol, *first, *bad]))
        hour = csv_of([*second, rolled_back(first[2]), first[0], rewritten])
        self.drop(f"{voting.contract}/nine.zip", zip_of({voting.name(9): hour}))
        self.drop(voting.name(10), csv_of([*third, voting.row("odd", 610)]))
        self.drop(f"new/{voting.name(10)}", csv_of(third[1:]))
        self.drop(f"{voting.contract}/export.csv", csv_of([*first, *second]))
        self.drop(f"again/{voting.name(10)}", csv_of(third[1:]))
        self.drop(other.name(8), csv_of(other.ballots(8, 3)))
        self.drop("nameless.csv", b"no row\n")
        (job,) = self.jobs(name=voting.name(8))
        mended = MendedRow(job.id, 10, bad[0].replace(";105;", ";104;", 1))
        assert ["stored"] == [a.became for a in replay(self.ingest, iter([mended]), self.note)]
        self.voting, self.other = voting, other
        assert [] == self.check()

    def note(self, session: Session, action: str, subject: str, **images: Any) -> None:
        """Keep the deeds in the audit log, as the command line does."""
        self.deeds.append((action, subject))
        session.add(
            AuditLog(
                id=uuid.uuid4(),
                at=self.clock(),
                who="test",
                action=action,
                subject=subject,
                **images,
            )
        )

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file, and take it."""
        path = self.folder / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.ingest.take(Found(self.folder / "inbox", Path(name), "asked"))

    def jobs(self, **values: object) -> list[FileProcessing]:
        """The jobs with these values."""
        with self.sessions() as session:
            query = select(FileProcessing).filter_by(**values)
            return list(session.scalars(query.order_by(FileProcessing.publication)))

    def check(self, *, is_quick: bool = False) -> list[Difference]:
        """What fsck names."""
        return check(self.folder, self.ingest, is_quick=is_quick)

    def codes(self, *, is_quick: bool = False) -> set[str]:
        """The codes of what fsck names."""
        return {difference.code for difference in self.check(is_quick=is_quick)}

    def repair(self, found: Iterable[Difference]) -> Outcome:
        """Mend what can be mended."""
        plan = Plan()
        for difference in found:
            plan.add(difference)
        return Repair(self.ingest, self.note).carry_out(plan)

    def fees(self) -> set[int]:
        """The fees of all rows: what tells an altered row here."""
        with self.sessions() as session:
            return set(session.scalars(select(Transaction.fee)))

    def run(self, *statements: Any) -> None:
        """Change the tables behind the program's back."""
        with self.sessions.begin() as session:
            for statement in statements:
                session.execute(statement)

    def one(self, model: Any, *conditions: Any) -> Any:
        """The first row of a table that fits, in the order of its key."""
        with self.sessions() as session:
            return session.scalars(
                select(model).where(*conditions).order_by(*table_of(model).primary_key).limit(1)
            ).one()


@pytest.fixture(scope="module", params=DATABASES[:1])
def worlds(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], World]]:
    """Gives a sound world on one database, the same again while it stays sound."""
    with ExitStack() as stack:
        kept: list[World] = []

        def world() -> World:
            if not kept or kept[-1].is_broken:
                url = stack.enter_context(databases.fresh(request.param))
                sessions = stack.enter_context(open_sessions(url))
                kept.append(World(tmp_path_factory.mktemp("world"), sessions))
            return kept[-1]

        yield world


@pytest.fixture
def world(worlds: Callable[[], World]) -> World:
    """A sound world; who changes it must mend it, or say that it is broken."""
    return worlds()


# What somebody changes ----------------------------------------------------------------------

T, F, S = table_of(Transaction), table_of(FileProcessing), table_of(Sighting)
ELSEWHERE = uuid.UUID(int=0x1234)


def a_job(world: World) -> FileProcessing:
    """The job of the first hour, whose rows others hold, too."""
    (job,) = world.jobs(name=world.voting.name(8))
    return job


def a_vote(world: World) -> Transaction:
    """An accepted vote of the other constituency, which one file holds."""
    (job,) = world.jobs(name=world.other.name(8))
    found: Transaction = world.one(
        Transaction, Transaction.file_id == job.id, Transaction.type == "vote"
    )
    return found


def change(world: World, row: Any, **values: Any) -> None:
    """Change columns of one row."""
    table = table_of(type(row))
    keys = [column == getattr(row, column.key) for column in table.primary_key]
    world.run(update(table).where(*keys).values(**values))


def add_a_stray(world: World, **values: Any) -> None:
    """Add a copy of a row under another id."""
    row = a_vote(world)
    columns = {column.key: getattr(row, column.key) for column in T.columns}
    world.run(insert(T).values(columns | {"id": uuid.UUID(int=row.id.int + 1)} | values))


def lose_a_transaction(world: World) -> None:
    """Delete one."""
    world.run(delete(T).where(T.c.id == a_vote(world).id))


def lose_a_sighting(world: World, *, own: bool) -> None:
    """Delete the sighting of a row's own line, or that of another line that holds it."""
    is_own = (T.c.file_id == S.c.file_id) & (T.c.line_number == S.c.line_number)
    keys = (S.c.transaction_id, S.c.file_id, S.c.line_number)
    query = select(*keys).join(T, T.c.id == S.c.transaction_id).where(S.c.sign == 1)
    with world.sessions() as session:
        row = session.execute(query.where(is_own if own else ~is_own).order_by(*keys)).first()
    assert row is not None
    world.run(delete(S).where(*(key == row[at] for at, key in enumerate(keys))))


def lose_a_rollback(world: World) -> None:
    """Delete the event that took a transaction back."""
    world.run(delete(S).where(S.c.sign == -1))


def swap_files(world: World) -> None:
    """Let a row say that it comes from another file of its constituency."""
    (newer,) = world.jobs(path=f"new/{world.voting.name(10)}")
    row = world.one(Transaction, Transaction.file_id == a_job(world).id)
    change(world, row, file_id=newer.id)


def a_content(world: World, **values: Any) -> None:
    """Alter a content that is kept and not shown."""
    row = world.one(TransactionContent)
    change(world, row, content=row.content | values)


def lose_contents(world: World) -> None:
    """Delete all contents that are not shown."""
    world.run(delete(table_of(TransactionContent)))


def lose_a_reject(world: World) -> None:
    """Delete the row that stayed refused."""
    row = world.one(Reject, Reject.replayed_at.is_(None))
    world.run(delete(table_of(Reject)).where(Reject.id == row.id))


def an_alert(world: World, rule: str, **values: Any) -> None:
    """Change an alert of a rule."""
    change(world, world.one(Alert, Alert.type == rule), **values)


def add_an_alert(world: World) -> None:
    """Add one that no rule finds."""
    row = world.one(Alert)
    columns = {column.key: getattr(row, column.key, None) for column in table_of(Alert).columns}
    columns["class"] = row.alert_class
    world.run(insert(table_of(Alert)).values(columns | {"id": ELSEWHERE, "subject": "made up"}))


def an_hour(world: World) -> HourlyStats:
    """An hour with votes."""
    found: HourlyStats = world.one(HourlyStats, HourlyStats.votes_cast > 0)
    return found


def current(world: World) -> FileProcessing:
    """The newest publication of the slot that has two."""
    (job,) = world.jobs(path=f"new/{world.voting.name(10)}")
    return job


def move_away(world: World) -> None:
    """Put an archived file elsewhere in the archive, as a tidy person may."""
    job = a_job(world)
    path = Path(job.archived_to or "")
    target = world.folder / "archive" / f"tidy-{uuid.uuid4().hex}" / path.name
    target.parent.mkdir()
    path.rename(target)


Tampering = tuple[str, str, Callable[[World], None]]

MENDED: list[Tampering] = [
    # the ledger
    ("more rows stored", "books_wrong", lambda w: change(
        w, a_job(w), rows_stored=a_job(w).rows_stored + 1, rows_read=a_job(w).rows_read + 1)),
    ("blank for known", "books_wrong", lambda w: change(
        w, a_job(w), rows_blank=1, rows_stored=a_job(w).rows_stored - 1)),
    ("fewer rejected", "rejects_wrong", lambda w: change(
        w, a_job(w), rows_rejected=0, rows_blank=1)),
    ("another checkpoint", "checkpoint_wrong", lambda w: change(
        w, a_job(w), checkpoint_line=3, checkpoint_byte=9)),
    ("another hash", "identity_wrong", lambda w: change(w, a_job(w), sha256="0" * 64)),
    ("another slot", "identity_wrong", lambda w: change(w, a_job(w), slot="whole")),
    ("another contract", "identity_wrong", lambda w: change(
        w, a_job(w), contract_id=w.other.contract)),
    ("another size", "checkpoint_wrong", lambda w: change(w, a_job(w), size=1)),
    ("no hours known", "touched_wrong", lambda w: change(
        w, a_job(w), touched={"hours": [], "slots": []})),
    ("two current", "publications_wrong", lambda w: w.run(
        update(F).where(F.c.status == "superseded").values(status="completed"))),
    ("none current", "publications_wrong", lambda w: change(w, current(w), status="superseded")),
    ("no chain", "publications_wrong", lambda w: change(w, current(w), supersedes_id=None)),
    ("no place", "archived_to_missing", lambda w: change(w, a_job(w), archived_to=None)),
    ("wrong place", "archived_to_missing", lambda w: change(w, a_job(w), archived_to="/nowhere")),
    ("moved away", "archived_to_missing", move_away),
    ("no reason", "reason_missing", lambda w: next(
        (w.folder / "quarantine").glob("*.reason.txt")).unlink()),
    # the tables
    ("a vote is gone", "transaction_missing", lose_a_transaction),
    ("a sighting is gone", "books_wrong", lambda w: lose_a_sighting(w, own=False)),
    ("an own sighting is gone", "sighting_missing", lambda w: lose_a_sighting(w, own=True)),
    ("a rollback is gone", "books_wrong", lose_a_rollback),
    ("a reject is gone", "rejects_wrong", lose_a_reject),
    ("contents are gone", "content_wrong", lose_contents),
    ("a kept content altered", "transaction_altered", lambda w: a_content(w, fee=77)),
    ("a stray of another key", "key_wrong", add_a_stray),
    ("a stray of no file", "key_wrong", lambda w: add_a_stray(w, file_id=ELSEWHERE)),
    ("a stray of nobody", "constituency_unknown", lambda w: add_a_stray(
        w, constituency_id=ELSEWHERE)),
    ("a stray far away", "key_wrong", lambda w: add_a_stray(w, id=ELSEWHERE)),
    ("a row of no file", "file_id_unknown", lambda w: change(w, a_vote(w), file_id=ELSEWHERE)),
    ("a row of another file", "transaction_altered", swap_files),
    ("another line", "transaction_altered", lambda w: change(w, a_vote(w), line_number=99)),
    ("a line twice", "line_twice", lambda w: change(
        w, a_vote(w), line_number=3 - a_vote(w).line_number)),
    ("another constituency", "key_wrong", lambda w: change(
        w, a_vote(w), constituency_id=a_job(w).constituency_id)),
    ("another id", "key_wrong", lambda w: change(w, a_vote(w), tx_id="1" * 32)),
    ("another time", "transaction_altered", lambda w: change(
        w, a_vote(w), timestamp=a_vote(w).timestamp + timedelta(days=9))),
    ("another status", "status_wrong", lambda w: change(w, a_vote(w), status="withdrawn")),
    ("another tally", "transaction_altered", lambda w: change(w, a_vote(w), tally="bulletin")),
    ("another slot of a row", "status_wrong", lambda w: change(w, a_vote(w), slot=None)),
    ("another voter", "transaction_altered", lambda w: change(w, a_vote(w), voter_key=5)),
    ("another sender", "transaction_altered", lambda w: change(w, a_vote(w), sender="x")),
    ("another ballot", "transaction_altered", lambda w: change(w, a_vote(w), raw_data=[
        {"key": "operation", "stringValue": "vote"}, {"key": "vote", "binaryValue": ""},
        {"key": "blindSig", "binaryValue": ""}])),
    ("another fee", "transaction_altered", lambda w: change(w, a_vote(w), fee=5)),
    ("another content", "transaction_altered", lambda w: change(
        w, a_vote(w), content_hash=b"0" * 16)),
    # what is derived
    ("an hour altered", "hour_wrong", lambda w: change(w, an_hour(w), votes_cast=77)),
    ("an hour's sum altered", "hour_wrong", lambda w: change(w, an_hour(w), cumulative_votes=77)),
    ("an hour gone", "hour_wrong", lambda w: w.run(
        delete(table_of(HourlyStats)).where(HourlyStats.id == an_hour(w).id))),
    ("an hour made up", "hour_wrong", lambda w: change(
        w, an_hour(w), hour=datetime(2031, 1, 1, tzinfo=UTC))),
    ("a slot altered", "slot_wrong", lambda w: change(w, current(w), slot_votes=77)),
    ("a total altered", "total_wrong", lambda w: w.run(
        update(table_of(Constituency)).values(votes_cast=77))),
    ("a status altered", "total_wrong", lambda w: w.run(
        update(table_of(Constituency)).values(status="completed"))),
    ("an alert altered", "alert_altered", lambda w: an_alert(
        w, "history_withdrawn", severity="info")),
    ("an alert of another class", "alert_altered", lambda w: an_alert(
        w, "transaction_rewritten", **{"class": "feed"})),
    ("an alert cleared", "alert_missing", lambda w: an_alert(
        w, "slot_republished", cleared_at=datetime(2024, 9, 9, tzinfo=UTC))),
    ("an alert gone", "alert_missing", lambda w: w.run(
        delete(table_of(Alert)).where(Alert.type == "file_rejected"))),
    ("an alert about no constituency gone", "alert_missing", lambda w: w.run(
        delete(table_of(Alert)).where(Alert.type == "transaction_rewritten"))),
    ("an alert made up", "alert_stray", add_an_alert),
]  # fmt: skip


# Where the databases store otherwise: keys, times, JSON, bytes; the rest is the same code.
ON_BOTH = {
    *("another slot", "no hours known", "two current", "moved away", "a vote is gone"),
    *("a rollback is gone", "a reject is gone", "a kept content altered", "a stray far away"),
    *("a line twice", "another constituency", "another time", "another ballot"),
    *("another content", "an hour made up", "a total altered", "an alert altered"),
}
CASES = [
    pytest.param(kind, code, tamper, id=f"{kind}-{name}")
    for kind in DATABASES
    for name, code, tamper in MENDED
    if kind == DATABASES[0] or name in ON_BOTH
]


@pytest.mark.promise(34)
@pytest.mark.parametrize(("worlds", "code", "tamper"), CASES, indirect=["worlds"])
def test_what_was_changed_is_named_and_mended(
    world: World, code: str, tamper: Callable[[World], None], did: Did
) -> None:
    """The tables are what they were, and the audit log says who mended them."""
    before = snapshot(world.sessions)
    deeds = len(world.deeds)
    world.is_broken = True

    tamper(world)
    found = world.check()
    world.repair(found)

    assert code in {difference.code for difference in found}
    assert all(difference.hint for difference in found)
    assert [] == [(one.code, one.about, one.what) for one in world.check()]
    assert [] == differences(before, snapshot(world.sessions))
    assert [] == unsound(world.sessions)
    assert deeds < len(world.deeds)
    world.is_broken = False
    did("1 change behind the program's back, named and mended")


# What nothing can mend ----------------------------------------------------------------------


def archived(world: World, job: FileProcessing) -> Path:
    """Where the bytes of a job lie."""
    del world
    return Path(job.archived_to or "")


def append(path: Path) -> None:
    """Alter the bytes of a file."""
    with path.open("ab") as stream:
        stream.write(b"\n")


def a_zip(world: World) -> FileProcessing:
    """The job of the hour that came in a ZIP."""
    return world.jobs(name=world.voting.name(9))[0]


def lose_bytes_and_row(world: World) -> None:
    """Delete a transaction, and the only file that tells of it."""
    archived(world, world.jobs(name=world.other.name(8))[0]).unlink()
    lose_a_transaction(world)


LOST: list[Tampering] = [
    ("a file is gone", "archive_missing", lambda w: archived(w, a_job(w)).unlink()),
    ("a file is altered", "archive_altered", lambda w: append(archived(w, a_job(w)))),
    ("a ZIP is no ZIP", "archive_altered", lambda w: append(archived(w, a_zip(w)))),
    ("a ZIP is gone", "archive_missing", lambda w: archived(w, a_zip(w)).unlink()),
    ("a duplicate is gone", "archive_missing", lambda w: archived(
        w, w.jobs(status="duplicate")[0]).unlink()),
    ("a refused file is gone", "quarantine_missing", lambda w: archived(
        w, w.jobs(status="quarantined")[0]).unlink()),
    ("a strange file", "file_unknown", lambda w: append(w.folder / "archive" / "strange.csv")),
    ("bytes and row", "archive_missing", lose_bytes_and_row),
    ("a duplicate of nothing", "duplicate_of_nothing", lambda w: change(
        w, w.jobs(status="duplicate")[0], duplicate_of_id=ELSEWHERE)),
    ("rows of a refused file", "rows_of_refused", lambda w: change(
        w, a_job(w), status="quarantined")),
]  # fmt: skip


@pytest.mark.promise(34)
@pytest.mark.parametrize(("code", "tamper"), [each[1:] for each in LOST], ids=[m[0] for m in LOST])
def test_what_nothing_proves_is_named_and_left(
    world: World, code: str, tamper: Callable[[World], None], did: Did
) -> None:
    """Repairing takes nothing away: neither a row, nor what is left of the evidence."""
    before = snapshot(world.sessions)
    folder = world.folder.with_name(f"{world.folder.name}-kept")
    shutil.copytree(world.folder, folder, copy_function=shutil.copy2)
    kept = {job.id: job for job in world.jobs()}
    world.is_broken = True

    tamper(world)
    rows = snapshot(world.sessions)["transaction"]
    found = world.check()
    world.repair(found)

    assert code in {difference.code for difference in found}
    assert code in world.codes()
    assert rows == snapshot(world.sessions)["transaction"]
    shutil.rmtree(world.folder)
    folder.rename(world.folder)
    for job in world.jobs():
        change(world, job, status=kept[job.id].status, duplicate_of_id=kept[job.id].duplicate_of_id)
    world.repair(world.check())
    assert set() == world.codes()
    assert [] == differences(before, snapshot(world.sessions))
    world.is_broken = False
    did("1 change of the evidence, named; mended only when the evidence was back")


def test_a_quick_look_reads_no_bytes_and_sees_what_the_tables_say(world: World) -> None:
    """Altered bytes of the same size are seen by the long look only."""
    path = archived(world, a_job(world))
    content = path.read_bytes()
    world.is_broken = True
    path.write_bytes(content.replace(b"vote", b"VOTE"))
    assert set() == world.codes(is_quick=True)
    assert {"archive_altered"} == world.codes()
    path.write_bytes(content + b"\n")
    assert {"archive_altered"} == world.codes(is_quick=True)
    path.write_bytes(content)
    change(world, a_vote(world), tally="bulletin")
    found = world.check(is_quick=True)
    assert "transaction_altered" in {difference.code for difference in found}
    world.repair(found)
    assert set() == world.codes()
    world.is_broken = False


@pytest.mark.promise(34)
@pytest.mark.parametrize("database", DATABASES)
def test_an_election_with_every_defect_is_sound(
    tmp_path: Path, databases: Databases, database: str, election: Simulated, did: Did
) -> None:
    """Results, revotes, lists, rollbacks: whatever rules read of the tables, fsck counts as well.

    A total that could not be counted was called damaged where results were published.
    """
    with databases.fresh(database) as url, open_sessions(url) as sessions:
        ingest = Ingest(sessions, terms_in(tmp_path), Clock(), owner_name())
        for found in election.files:
            path = tmp_path / "inbox" / found.relative
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.path, path)
            ingest.take(Found(tmp_path / "inbox", found.relative, "asked"))
        assert [] == check(tmp_path, ingest)
        did(f"fsck of {len(election.files)} files with every defect: no difference")


def test_the_bytes_of_a_forgotten_file_are_no_strangers(world: World) -> None:
    """They lie where they were; without the audit log's line they would be unknown."""
    (job,) = world.jobs(name=world.other.name(8))
    world.is_broken = True
    forget(world.ingest, job.id, world.note)
    assert set() == world.codes()
    world.run(delete(table_of(AuditLog)))
    assert {"file_unknown"} == world.codes()


def test_alerts_that_are_still_to_be_judged_are_left_out_and_counted(world: World) -> None:
    """By other settings, or by these ones, while the daemon has not come to all of them."""
    world.is_broken = True
    settings = Settings.model_validate({"alerts": {"reject_share": {"rows": 1}}})
    former, now = (assembly.standard_of(each) for each in (Settings(), settings))
    ingest = replace(world.ingest, terms=replace(world.ingest.terms, alerts=now.alerts))
    fsck = fsck_of(world.folder, ingest, is_quick=True)
    assert {"alert_altered"} <= {each.code for each in fsck.differences()}
    fsck.judged_by = assembly.thresholds_of(settings), now.text()
    for standard in (former, now):
        with world.sessions.begin() as session:
            take_up(session, standard, world.clock())
        assert not [each for each in fsck.differences() if each.code.startswith("alert")]
        assert fsck.seen.not_judged
    assert review_due(ingest, lambda: False)
    look_at_feed(ingest)
    assert not [each for each in fsck.differences() if each.code.startswith("alert")]
    assert 0 == fsck.seen.not_judged


def look_at_feed(ingest: Ingest) -> None:
    """Let the rules about all constituencies look, as the daemon does after a batch of files."""
    with ingest.sessions.begin() as session:
        evaluate_feed(session, now=ingest.clock(), held=ingest.terms.alerts, is_thorough=True)


# What somebody does to the alerts about the whole feed.
OF_FEED: dict[str, tuple[str, Callable[[World], None]]] = {
    "altered": ("alert_altered", lambda w: an_alert(w, "missing_hour", severity="info")),
    "of another class": ("alert_altered", lambda w: an_alert(
        w, "constituency_missing", **{"class": "statistical"})),
    "gone": ("alert_missing", lambda w: w.run(
        delete(table_of(Alert)).where(Alert.type == "missing_hour"))),
    "cleared": ("alert_missing", lambda w: an_alert(
        w, "transaction_in_two_contracts", cleared_at=datetime(2024, 9, 9, tzinfo=UTC))),
    "made up": ("alert_stray", lambda w: an_alert(w, "constituency_missing", subject="made up")),
}  # fmt: skip


@pytest.mark.promise(34)
@pytest.mark.parametrize("database", DATABASES)
def test_alerts_about_all_constituencies_are_held_to_their_rules(
    tmp_path: Path, databases: Databases, database: str, did: Did
) -> None:
    """What was deleted or edited is named and set right; what was not looked at yet is left out."""
    with databases.fresh(database) as url, open_sessions(url) as sessions:
        world = World(tmp_path, sessions)
        held = {
            "missing_hour": {"empty_hours": "yes"},
            "constituency_missing": {"contracts": ["never delivered"]},
        }
        world.ingest.terms = replace(world.ingest.terms, alerts=Alerts.model_validate(held))
        strayed = world.voting.ballots(13, 2)
        world.drop(world.voting.name(13), csv_of(strayed))
        world.drop(world.other.name(13), csv_of(strayed[:2]))
        fsck = fsck_of(tmp_path, world.ingest, is_quick=True)
        assert ([], 1) == ([*fsck.differences()], fsck.seen.not_judged)
        look_at_feed(world.ingest)
        assert ([], 0) == ([*fsck.differences()], fsck.seen.not_judged)
        before = snapshot(sessions)
        for name, (code, tamper) in OF_FEED.items():
            tamper(world)
            found = [*fsck.differences()]
            assert code in {each.code for each in found}, name
            assert {"alert"} == {each.code.partition("_")[0] for each in found}, name
            world.repair(found)
            assert ([], 0) == ([*fsck.differences()], fsck.seen.not_judged), name
            assert [] == differences(before, snapshot(sessions)), name
        assert "fsck_feed" in {action for action, _ in world.deeds}
        assert [] == unsound(sessions)
    did(f"{len(OF_FEED)} changes of alerts about all constituencies, named and mended")


def test_every_hint_can_be_met() -> None:
    """Each code that somebody may see is shown by a test here, or is about something simple."""
    shown = {code for _name, code, _tamper in (*MENDED, *LOST)}
    elsewhere = {"archive_unreadable", "file_lost", "job_stuck", "reject_missing", "reject_stray"}
    # What the evaluator writes is held in tests/test_standard.py.
    elsewhere |= {"schema_wrong", "transaction_stray", "evaluation_wrong"}
    assert set(HINTS) == shown | elsewhere


def test_a_row_that_its_file_does_not_hold_is_named(world: World) -> None:
    """The file's line holds another transaction, whichever of the two came later."""
    row = a_vote(world)
    tx_id = "1" * 31 + "2"
    world.is_broken = True
    add_a_stray(world, tx_id=tx_id, id=derived(world.other.contract, tx_id))
    found = world.check()
    strays = [each.about for each in found if each.code == "transaction_stray"]
    assert [tx_id in about for about in strays] == [True], row.tx_id
    world.repair(found)
    assert set() == world.codes()
    world.is_broken = False


def derived(contract: str, tx_id: str) -> uuid.UUID:
    """The key of a transaction."""
    return transaction_id(constituency_prefix(contract), tx_id)


def test_a_file_that_lies_nowhere_is_named(world: World) -> None:
    """It left the inbox, and no folder has it."""
    (job,) = world.jobs(name=world.other.name(8))
    world.is_broken = True
    archived(world, job).unlink()
    change(world, job, archived_to=None)
    assert {"file_lost"} == world.codes()


def test_a_line_that_is_sound_is_not_refused(world: World) -> None:
    """Neither may a reject be lost, nor a sound line be called one."""
    row = world.one(Reject, Reject.replayed_at.is_(None))
    world.is_broken = True
    change(world, row, line_number=1)
    assert {"reject_missing", "reject_stray"} <= world.codes()


# At work ------------------------------------------------------------------------------------


@pytest.mark.promise(34)
def test_a_job_whose_process_died_is_freed_and_goes_on(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """It goes on at its checkpoint; until then its constituency is not counted."""
    ingest.terms = replace(ingest.terms, batch_rows=4)
    stop_after_a_batch(ingest)
    found = drop_file(voting.name(8), voting.ballots(8, 5))
    with pytest.raises(StopRequested):
        ingest.take(found)
    world = object.__new__(World)
    world.folder, world.sessions, world.ingest = tmp_path, sessions, ingest
    world.clock, world.deeds = ingest.clock, []  # type: ignore[assignment]  # a clock it is
    values = {"status": "processing", "owner": "gone:1", "lease_until": None}
    world.run(update(F).values(**values))
    differing = world.check()
    assert ["job_stuck"] == [difference.code for difference in differing]
    world.repair(differing)
    assert [("fsck_release", str(world.jobs()[0].id))] == world.deeds
    ingest.should_stop = lambda: False
    (job,) = ingest.take(found)
    assert "completed" == job.status
    assert set() == world.codes()
    assert [] == unsound(sessions)


def program(*arguments: str, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Run `ingestd` as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "ingestd.cli", *arguments],
        env=environment(folder, url),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.promise(34)
def test_the_program_says_by_its_exit_status_whether_all_is_sound(
    start_on_each: Start, migrated_url: str, tmp_path: Path, voting: Voting, did: Did
) -> None:
    """0 while a daemon is at work, 1 for a change, 0 when it was mended, 1 for lost evidence."""
    daemon = start_on_each()
    for hour in range(6):
        (daemon.inbox / voting.name(hour)).write_bytes(csv_of(voting.ballots(hour, 40)))
    meanwhile = program("fsck", "--json", folder=tmp_path, url=migrated_url)
    assert (0, True) == (meanwhile.returncode, json.loads(meanwhile.stdout)["is_sound"]), meanwhile
    soon(lambda: not list(daemon.inbox.iterdir()), seconds=60)
    assert 0 == daemon.stop()

    with open_sessions(migrated_url) as sessions, sessions.begin() as session:
        session.execute(update(T).where(T.c.type == "vote").values(fee=1))
    changed = program("fsck", folder=tmp_path, url=migrated_url)
    mended = program("fsck", "--repair", "--json", folder=tmp_path, url=migrated_url)
    (tmp_path / "archive" / voting.name(2)).unlink()
    lost = program("fsck", "--repair", folder=tmp_path, url=migrated_url)

    assert [1, 0, 1] == [each.returncode for each in (changed, mended, lost)]
    assert "transaction_altered: transaction " in changed.stdout
    assert "archive_missing: job " in lost.stdout
    assert json.loads(mended.stdout)["repaired"]["mended"]
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    did("480 rows, a daemon at work, 240 rows altered, 1 file removed")


@pytest.mark.promise(1, 34)
@pytest.mark.parametrize("worlds", DATABASES, indirect=True)
def test_a_repair_that_is_killed_leaves_what_the_next_one_mends(
    worlds: Callable[[], World], did: Did
) -> None:
    """SIGKILL at any moment: each commit is whole, and the tables come out the same."""
    world = worlds()
    before = snapshot(world.sessions)
    url = world.sessions.kw["bind"].url.render_as_string(hide_password=False)
    world.is_broken = True
    kills = 0
    for number in range(2):
        world.run(update(T).values(fee=number + 1), delete(table_of(HourlyStats)))
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestd.cli", "fsck", "--repair"],
            env=environment(world.folder, url),
            cwd=world.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        soon(lambda: world.fees() != {number + 1} or process.poll() is not None, seconds=60)  # noqa: B023 - called at once
        time.sleep(0.02 * number)
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        world.repair(world.check())
        assert set() == world.codes()
    assert [] == differences(before, snapshot(world.sessions))
    assert [] == unsound(world.sessions)
    world.is_broken = False
    did(f"2 repairs, {kills} of them killed half-way")
