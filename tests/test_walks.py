"""Random walks: anything may happen to files, processes, database and disk, in any order.

Hypothesis draws the steps; the real program does the work; `tests/model.py` says what must come
of it. The program's clock is the wall clock, so "clock" here means the times of files (1970,
2100) and processes that stand still while the world goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import make_url, select, text

from ingestd.models import Constituency, FileProcessing, HourlyStats, Transaction, table_of
from ingestd.pipeline.step import Step

from .conftest import (
    DATABASES,
    MIDNIGHT_MS,
    Databases,
    Did,
    Voting,
    csv_of,
    rolled_back,
    zip_of,
)
from .model import MOST_REJECTS, Csv, Job, Key, Label, Line, Model, Parcel, Shown, When
from .oracle import unsound
from .running import is_empty, jobs_on, open_sessions, soon, states_on
from .steps import CRASH_VARIABLE, FREEZE_VARIABLE
from .victims import Mode, Victim

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

STEPS_OF_A_WALK = 60
# With ten examples or more Hypothesis begins to vary those that it has; new ones see more.
WALKS_OF_A_SEED = 9
WALKING = settings(
    max_examples=WALKS_OF_A_SEED,
    stateful_step_count=STEPS_OF_A_WALK,
    deadline=None,
    database=None,
    # A walk takes seconds and is told in full: a person cuts it short faster.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

WHEN: tuple[When, ...] = (8, 9, 10, "day", "whole", "untold")
# Here the two worlds must agree though nothing can change both at once.
BETWEEN_TABLES_AND_FOLDERS = (Step.STORED, Step.REFUSED, Step.ADDRESSED, Step.EXPLAINED, Step.MOVED)
COUNTS = (
    *("bulletins_issued", "issues_rejected", "votes_cast", "votes_rejected"),
    *("rolled_back", "transaction_count"),
)


@dataclass
class Course:
    """Where walks are taken, and what came of all of them."""

    kind: str
    databases: Databases
    folder: Path
    small_volume: Path
    can_fill: bool
    did: Counter[str] = field(default_factory=Counter)
    seed: int = 0


@dataclass
class Lying:
    """A file in the inbox, and whether a process may have seen it."""

    parcel: Parcel
    is_seen: bool = False


class Walk(RuleBasedStateMachine):
    """One walk, on a database and in folders of its own."""

    def __init__(self, course: Course) -> None:
        """Prepare the ground."""
        super().__init__()
        self.course = course
        self.story: list[str] = []
        self.ending = ExitStack()
        self.votings: list[Voting] = []
        self.there = Path()
        self.folder = Path(tempfile.mkdtemp(dir=course.folder))
        self.inbox = self.folder / "inbox"
        self.inbox.mkdir()
        self.url = self.ending.enter_context(course.databases.fresh(course.kind))
        self.sessions = self.ending.enter_context(open_sessions(self.url))
        self.told_url = self.url
        self.socket: Path | None = None
        self.locker: sqlite3.Connection | None = None
        self.volume = self.folder
        self.daemon: Victim | None = None
        self.frozen: Victim | None = None
        self.model = Model()
        self.lying: dict[str, Lying] = {}
        self.taken: list[Parcel] = []
        self.sent: list[tuple[str, Parcel]] = []
        self.latest: dict[Label, Csv] = {}
        self.lines: dict[str, list[Line]] = {}
        self.has_settled = True  # nothing but files has happened since the last rest
        self.number = 0
        self.steps_since_a_look = 0
        self.is_quiet = False
        self.has_failed = False

    @initialize(seed=st.integers(0, 1000), small=st.booleans())
    def begin(self, seed: int, small: bool) -> None:
        """Two constituencies; archive and quarantine beside the inbox or on a small volume."""
        self.votings = [Voting(), Voting()]
        for number, voting in enumerate(self.votings):
            voting.rng.seed(2 * seed + number)
            voting.contract = voting.new_id()
        self.lines = {voting.contract: [] for voting in self.votings}
        if small:
            self.volume = Path(tempfile.mkdtemp(dir=self.course.small_volume))
        if self.course.kind == "postgresql":
            # The path of a Unix socket is 107 bytes at most: too short for this folder.
            self.socket = Path("/tmp") / f"ingestd-walk-{uuid.uuid4().hex}"
            self.there = Path(str(make_url(self.url).query["host"]))
            self.socket.symlink_to(self.there)
            away = make_url(self.url).update_query_dict({"host": str(self.socket)}, append=False)
            self.told_url = away.render_as_string(hide_password=False)

    # ── files ─────────────────────────────────────────────────────────────

    @rule(
        who=st.integers(0, 1),
        when=st.sampled_from(WHEN),
        rows=st.integers(0, 5),
        spice=st.sampled_from(
            ("", "", "bad rows", "unfit", "rollback", "seen before", "blank", "begun", "nameless")
        ),
    )
    def drop(self, who: int, when: When, rows: int, spice: str) -> None:
        """A new file."""
        voting = self.votings[who]
        label = Label("" if spice == "nameless" else voting.contract, when)
        lines = [self._line(voting, label.when) for _ in range(rows)]
        former = self.lines[voting.contract]
        if spice in ("bad rows", "unfit"):
            bad = MOST_REJECTS + (spice == "unfit")
            lines += [Line(f"torn {self.number};{number}", "bad") for number in range(bad)]
        elif spice == "rollback" and (former or lines):
            lines.append(_rolled_back([*former, *lines][-1 - rows // 2]))
        elif spice == "seen before":
            lines += former[-3:]
        elif spice == "blank":
            lines.insert(len(lines) // 2, Line("", "blank"))
        csv = Csv(label, tuple(lines))
        parcel = _begun(csv) if spice == "begun" and lines else _bare(csv)
        if spice != "begun":
            self.latest[label] = csv
        self._put(label.path(f" ({self.number})" if spice == "blank" else ""), parcel, spice)

    @rule(
        which=st.integers(0, 7), place=st.sampled_from(("tail", "folder", "same", "zip", "other"))
    )
    def drop_again(self, which: int, place: str) -> None:
        """The same bytes under another name, in another place, packed, or misnamed."""
        if not self.sent:
            return
        name, parcel = self.sent[-1 - which % len(self.sent)]
        if place == "tail":
            name = name.removesuffix(name[-4:]) + "-copy" + name[-4:]
        elif place == "folder":
            name = f"{self.number}/{name}"
        elif place == "zip" and not parcel.is_zip:
            name, parcel = f"{self.number}.zip", _packed(list(parcel.csvs))
        elif place == "other" and not parcel.is_zip and parcel.csvs[0].label.contract:
            (other,) = (v for v in self.votings if v.contract != parcel.csvs[0].label.contract)
            label = replace(parcel.csvs[0].label, contract=other.contract)
            name, parcel = label.path(), _bare(replace(parcel.csvs[0], label=label))
        self._put(name, replace(parcel, rest=b"", whole=None), place)

    @rule(
        which=st.integers(0, 5),
        how=st.sampled_from(("leave out", "change", "add", "roll back", "swap")),
    )
    def publish_again(self, which: int, how: str) -> None:
        """Another content for a slot that has one."""
        if not self.latest:
            return
        label = list(self.latest)[which % len(self.latest)]
        voting = next((v for v in self.votings if v.contract == label.contract), None)
        if voting is None:
            return
        lines = list(self.latest[label].lines)
        if how == "leave out":
            lines = lines[1:]
        elif how == "swap":
            lines = lines[::-1]
        elif how == "add":
            lines.append(self._line(voting, label.when))
        else:
            at = next((n for n, line in enumerate(lines) if line.sign > 0), None)
            if at is None:
                return
            if how == "change":
                lines[at] = self._line(voting, label.when, tx=lines[at].tx)
            else:
                lines.append(_rolled_back(lines[at]))
        self.latest[label] = csv = Csv(label, tuple(lines))
        self._put(f"{self.number}/{label.path()}", _bare(csv), how)

    @rule(
        who=st.integers(0, 1),
        rows=st.integers(0, 3),
        how=st.sampled_from(("hours", "with the day", "nested", "unfit", "broken", "begun")),
    )
    def drop_zip(self, who: int, rows: int, how: str) -> None:
        """Several CSVs in one file."""
        voting = self.votings[who]
        whens: tuple[When, ...] = (8, 9, "day") if how == "with the day" else (9, 10)
        csvs = [
            Csv(label, tuple(self._line(voting, label.when) for _ in range(rows)))
            for label in (Label(voting.contract, when) for when in whens)
        ]
        if how == "unfit":
            bad = tuple(Line(f"torn;{n}", "bad") for n in range(MOST_REJECTS + 1))
            csvs[-1] = replace(csvs[-1], lines=csvs[-1].lines + bad)
        parcel = _packed(csvs, is_nested=how == "nested")
        if how == "broken":
            parcel = replace(parcel, data=parcel.data[:-9], csvs=(), is_broken=True)
        if how == "begun":
            half = len(parcel.data) // 2
            begun = replace(parcel, data=parcel.data[:half], csvs=(), is_broken=True)
            parcel = replace(begun, rest=parcel.data[half:], whole=parcel)
        self._put(f"hours {self.number}.zip", parcel, how)

    @rule(which=st.integers(0, 7), how=st.sampled_from(("row", "row", "bad row")))
    def write_on(self, which: int, how: str) -> None:
        """Append a row to a file that lies in the inbox, or what its writer has still to write."""
        with self._stillness():
            found = self._pick(which, begun_first=True)
            if found is None:
                return
            name, lying = found
            old = lying.parcel
            if old.whole is not None:
                new, more = old.whole, old.rest
            elif old.is_zip or old.csvs[0].is_torn:
                return
            else:
                (csv,) = old.csvs
                line = Line("torn;", "bad")
                if how == "row" and csv.label.contract:
                    line = self._line(self._voting_of(csv), csv.label.when)
                new, more = _bare(replace(csv, lines=(*csv.lines, line))), f"{line.text}\n".encode()
            with self._open(name, os.O_APPEND) as handle:
                if handle is None:
                    return
                self._note("write_on", name, how)
                self._forget(name)
                os.write(handle, more)
            self._lay(name, new)

    @rule(which=st.integers(0, 7), how=st.sampled_from(("in place", "by rename")))
    def overwrite(self, which: int, how: str) -> None:
        """Other bytes under a name that lies in the inbox."""
        with self._stillness():
            found = self._pick(which)
            if found is None or found[1].parcel.is_zip:
                return
            name, lying = found
            (csv,) = lying.parcel.csvs
            if not csv.label.contract:
                return
            line = self._line(self._voting_of(csv), csv.label.when)
            new = _bare(replace(csv, lines=(line, *csv.lines[1:]), is_torn=False))
            if how == "in place":
                with self._open(name, os.O_TRUNC) as handle:
                    if handle is None:
                        return
                    os.write(handle, new.data)
            else:
                (self.inbox / ".new").write_bytes(new.data)
                (self.inbox / ".new").replace(self.inbox / name)
            self._note("overwrite", name, how)
            self._forget(name)
            self._lay(name, new)

    @rule(which=st.integers(0, 7), how=st.sampled_from(("folder", "tail", "hour")))
    def rename(self, which: int, how: str) -> None:
        """Another name or place; or another hour."""
        with self._stillness():
            found = self._pick(which)
            if found is None:
                return
            name, lying = found
            parcel = lying.parcel
            new_name = f"{self.number}/{name}"
            if how == "tail":
                new_name = f"{name[:-4]} ({self.number}){name[-4:]}"
            elif how == "hour" and not parcel.is_zip and not parcel.rest:
                label = replace(parcel.csvs[0].label, when=11)
                new_name, parcel = label.path(), _bare(replace(parcel.csvs[0], label=label))
            if new_name in self.lying or len(new_name) > 200:
                return
            self._note("rename", name, new_name)
            self._forget(name)
            (self.inbox / new_name).parent.mkdir(parents=True, exist_ok=True)
            (self.inbox / name).rename(self.inbox / new_name)
            self._lay(new_name, parcel)

    @rule(which=st.integers(0, 7))
    def delete(self, which: int) -> None:
        """A person takes a file away."""
        with self._stillness():
            found = self._pick(which)
            if found is None:
                return
            self._note("delete", found[0])
            self._forget(found[0])
            (self.inbox / found[0]).unlink()

    @rule(which=st.integers(0, 7), year=st.sampled_from((1970, 2100, 0)))
    def touch(self, which: int, year: int) -> None:
        """An odd time of modification; 0 is now."""
        with self._stillness():
            found = self._pick(which)
            if found is None:
                return
            self._note("touch", found[0], year)
            moment = (year - 1970) * 31_556_952 + self.number if year else time.time()
            os.utime(self.inbox / found[0], (moment, moment))
            self.has_settled &= not found[1].is_seen

    # ── the program ───────────────────────────────────────────────────────

    @rule(
        how=st.sampled_from(
            (
                *("quietly", "quietly", "die", "die", "freeze", "freeze", "freeze", "freeze"),
                *("kill", "stop", "two at once"),
            )
        ),
        step=st.sampled_from((*Step, *BETWEEN_TABLES_AND_FOLDERS)),
        nth=st.sampled_from((1, 1, 1, 2, 3)),
        batch=st.sampled_from((1, 3, 5000)),
    )
    def look(self, how: str, step: Step, nth: int, batch: int) -> None:
        """`ingestd once`: undisturbed, killed or stopped on the way, or beside another one."""
        if self.steps_since_a_look < 2:
            return  # processes cost the most and have little to see yet
        if not self.lying:
            hour: When = 8 + nth
            self.drop(nth % 2, hour, nth, "bad rows")
        self._note("look", how, *((str(step), nth) if how in ("die", "freeze") else ()), batch)
        if how == "quietly":
            self._come_to_rest(batch)
            return
        self.has_settled = False
        self._thaw()
        armed = f"{step}:{nth}"
        if how == "die":
            if -signal.SIGKILL == self._process(batch, {CRASH_VARIABLE: armed}).wait():
                self.course.did["kills"] += 1
        elif how == "freeze":
            self.frozen = self._process(batch, {FREEZE_VARIABLE: armed})
            while self.frozen.is_alive and not self.frozen.is_frozen:
                time.sleep(0.002)
            self.course.did["freezes"] += self.frozen.is_frozen
        elif how == "two at once":
            one, other = self._process(batch), self._process(batch)
            one.wait()
            other.wait()
        else:
            victim = self._process(batch)
            victim.process.join(0.04 * nth)
            if how == "kill":
                victim.kill()
                self.course.did["kills"] += 1
            else:
                victim.stop()
                self.course.did["stops"] += 1
        self._look_around()

    @rule(how=st.sampled_from(("start", "start", "kill", "stop", "let it work")))
    def daemon_is(self, how: str) -> None:
        """`ingestd run` comes and goes; while it is there, all other steps are under its eyes."""
        if (self.daemon is None) != (how == "start"):
            return
        self._note("daemon", how)
        self.has_settled = False
        if self.daemon is None:
            self.daemon = self._process(5000, mode="run")
        elif how == "let it work":
            self.daemon.process.join(0.1)
        else:
            self._end_daemon(gently=how == "stop")
        self._look_around()

    @rule(what=st.sampled_from(("database away", "sessions cut", "disk full", "over")))
    def trouble(self, what: str) -> None:
        """The database is locked or gone, or loses its sessions; the archive's disk is full."""
        self._note("trouble", what)
        self.has_settled = False
        if what == "over":
            self._end_trouble()
        elif what == "disk full" and self.volume != self.folder and self.course.can_fill:
            self.course.did["full disks"] += 1
            with suppress(OSError), (self.course.small_volume / "ballast").open("ab") as stream:
                while True:
                    stream.write(bytes(4096))
                    stream.flush()
        elif what == "sessions cut" and self.course.kind == "postgresql":
            self.course.did["outages"] += 1
            self._cut_sessions()
        elif what == "database away":
            self.course.did["outages"] += 1
            self._take_database_away()

    # ── how it is done ────────────────────────────────────────────────────

    def _note(self, what: str, *details: object) -> None:
        self.number += 1
        self.course.did["steps"] += 1
        self.steps_since_a_look += 1
        self.story.append(f"{self.number} {what} {' '.join(map(str, details))}")

    def _line(self, voting: Voting, when: When, tx: str = "") -> Line:
        """A row nobody has seen yet."""
        self.number += 1
        minute = 60 * (when if isinstance(when, int) else 9) + self.number % 60
        tx = tx or voting.new_id()
        match self.number % 4:
            case 0:
                line = Line(voting.issue(minute, tx=tx, failure="No"), "refused issue", tx)
            case 1:
                line = Line(voting.vote(minute, tx=tx, failure="No"), "refused vote", tx)
            case 2:
                line = Line(voting.issue(minute, tx=tx), "issue", tx)
            case _:
                line = Line(voting.vote(minute, tx=tx), "vote", tx)
        line = replace(line, sign=1, minute=minute)
        self.lines[voting.contract].append(line)
        return line

    def _voting_of(self, csv: Csv) -> Voting:
        return next(voting for voting in self.votings if voting.contract == csv.label.contract)

    def _put(self, name: str, parcel: Parcel, *said: object) -> None:
        """Drop a file, unless one of this name lies there still."""
        with self._stillness():
            if name in self.lying or len(name) > 200:
                return
            self._note("drop", name, *said, f"{len(parcel.data)} bytes")
            path = self.inbox / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parcel.data)
            self._lay(name, parcel)
            self.sent.append((name, parcel))

    def _lay(self, name: str, parcel: Parcel) -> None:
        self.model.learn(name, parcel)
        self.lying[name] = Lying(parcel, is_seen=self._is_watched)

    def _forget(self, name: str) -> None:
        """A person takes the bytes at a name away, or makes others of them."""
        lying = self.lying.pop(name)
        if lying.is_seen:
            self.model.took_away(lying.parcel)
            self.has_settled = False

    @contextmanager
    def _open(self, name: str, how: int) -> Iterator[int | None]:
        """Open a file to write it; None while the program keeps writers out: they would wait."""
        try:
            handle = os.open(self.inbox / name, os.O_WRONLY | os.O_NONBLOCK | how)
        except BlockingIOError:
            yield None
            return
        try:
            yield handle
        finally:
            os.close(handle)

    def _pick(self, which: int, *, begun_first: bool = False) -> tuple[str, Lying] | None:
        begun = [name for name, lying in self.lying.items() if lying.parcel.rest]
        names = begun if begun and begun_first else list(self.lying)
        return (name := names[which % len(names)], self.lying[name]) if names else None

    @property
    def _is_watched(self) -> bool:
        return self.daemon is not None or self.frozen is not None

    @contextmanager
    def _stillness(self) -> Iterator[None]:
        """No process does anything for a moment, so that what is seen is what is true."""
        if self.daemon is not None:
            self.daemon.freeze()
        self._look_around()
        try:
            yield
        finally:
            if self.daemon is not None:
                self.daemon.thaw()

    def _look_around(self) -> None:
        """What no longer lies in the inbox was taken by the program."""
        for name in [name for name in self.lying if not (self.inbox / name).exists()]:
            self.taken.append(self.lying.pop(name).parcel)

    def _process(
        self, batch: int, armed: dict[str, str] | None = None, mode: Mode = "once"
    ) -> Victim:
        for lying in self.lying.values():
            lying.is_seen = True
        self.course.did["processes"] += 1
        self.steps_since_a_look = 0
        named = {
            "INGEST__BATCH_ROWS": batch,
            "INGEST__MAX_REJECT_ROWS": MOST_REJECTS,
            "INGEST__MAX_REJECT_RATIO": 0,
            "INGEST__RETRY_SECONDS": 0,
            "DATABASE__BUSY_TIMEOUT_SECONDS": 60 if self.is_quiet else 0.1,
            "WATCH__SETTLE_SECONDS": 0.02,
            "WATCH__POLL_SECONDS": 0.05,
            "WATCH__ARCHIVE": self.volume / "archive",
            "WATCH__QUARANTINE": self.volume / "quarantine",
        }
        told = {f"INGESTD_{name}": str(value) for name, value in named.items()}
        return Victim(self.folder, self.told_url, mode, settings=told | (armed or {}))

    def _thaw(self) -> None:
        """Let the process that stands still go on to its end."""
        if self.frozen is not None:
            self.frozen.thaw()
            self.frozen.wait()
            self.frozen = None
            self._look_around()

    def _end_daemon(self, *, gently: bool) -> None:
        if self.daemon is None:
            return
        if gently and f':{self.daemon.process.pid}"' in self.daemon.log():
            status = self.daemon.stop()
            assert 0 == status, self._told("the daemon ended badly", status)
            self.course.did["stops"] += 1
        else:  # it does not hear a SIGTERM yet
            self.daemon.kill()
            self.course.did["kills"] += 1
        self.daemon = None
        self._look_around()

    def _take_database_away(self) -> None:
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
            self._cut_sessions()
        elif self.locker is None:
            file = make_url(self.url).database or ""
            locker = sqlite3.connect(file, isolation_level=None, timeout=0)
            try:
                locker.execute("BEGIN IMMEDIATE")
                self.locker = locker
            except sqlite3.OperationalError:  # a process stands still in a commit
                locker.close()

    def _cut_sessions(self) -> None:
        with self.sessions.begin() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    def _end_trouble(self) -> None:
        if self.socket is not None and not self.socket.is_symlink():
            self.socket.symlink_to(self.there)
        if self.locker is not None:
            self.locker.close()
            self.locker = None
        (self.course.small_volume / "ballast").unlink(missing_ok=True)

    # ── what must be true ─────────────────────────────────────────────────

    def _come_to_rest(self, batch: int = 5000) -> None:
        """All trouble is over and one run is left alone: then everything must be as it ought."""
        self._end_trouble()
        self._thaw()
        self._end_daemon(gently=True)
        order = sorted(self.lying, key=lambda name: ((self.inbox / name).stat().st_mtime_ns, name))
        self.is_quiet = True
        victim = self._process(batch)
        status = victim.wait()
        for _ in range(2):
            # Twins: the first look may leave one to the other, which comes later in its order.
            if status and not self.has_settled:
                victim = self._process(batch)
                status = victim.wait()
        self.is_quiet = False
        assert 0 == status, self._told("it did not come to its end", victim.log()[-3000:])
        self.taken += [
            self.lying[name].parcel for name in order if not (self.inbox / name).exists()
        ]
        left = [name for name in order if (self.inbox / name).exists()]
        assert [] == left, self._told("left in the inbox", left)
        self.lying = {}
        self._check(in_order=self.has_settled)
        self.taken = []
        self.has_settled = True
        self.course.did["rests"] += 1

    def _check(self, *, in_order: bool) -> None:
        wrong = self.model.hear(self._jobs(), self.taken, in_order=in_order)
        assert [] == wrong, self._told("the ledger", *wrong)
        wrong = unsound(self.sessions)
        assert [] == wrong, self._told("the books", *wrong)
        wrong = _differences(self.model.transactions(), self._transactions())
        assert [] == wrong, self._told("transactions", *wrong)
        wrong = _differences(self.model.hours(), self._hours())
        assert [] == wrong, self._told("hours", *wrong)
        wrong = self.model.misplaced(
            _contents(self.volume / "archive"), _contents(self.volume / "quarantine")
        )
        where = [path for path in self.volume.rglob("*") if path.is_file()]
        assert [] == wrong, self._told("folders", *wrong, *where)

    def _jobs(self) -> list[Job]:
        with self.sessions() as session:
            return [
                Job(
                    Key(job.contract_id or "", job.slot or "", job.sha256),
                    job.id.hex,
                    job.status,
                    job.publication,
                    +Counter(
                        {
                            "stored or known": job.rows_stored + job.rows_known,
                            "rollbacks": job.rows_rollbacks,
                            "rejected": job.rows_rejected,
                            "blank": job.rows_blank,
                        }
                    ),
                )
                for job in session.scalars(
                    select(FileProcessing).where(
                        FileProcessing.status.in_(("completed", "superseded"))
                    )
                )
            ]

    def _transactions(self) -> dict[tuple[str, str], Shown]:
        columns = table_of(Transaction).c
        query = select(
            Constituency.contract_id,
            *(columns[n] for n in ("tx_id", "status", "type", "timestamp")),
        ).join(Constituency, Constituency.id == columns.constituency_id)
        with self.sessions() as session:
            return {
                (row.contract_id, row.tx_id): (
                    row.status,
                    row.type,
                    round(row.timestamp.timestamp() * 1000 - MIDNIGHT_MS) // 60_000,
                )
                for row in session.execute(query)
            }

    def _hours(self) -> dict[tuple[str, int], Counter[str]]:
        query = select(Constituency.contract_id, HourlyStats).join(
            HourlyStats, HourlyStats.constituency_id == Constituency.id
        )
        query = query.where(HourlyStats.is_empty.is_(False))
        with self.sessions() as session:
            return {
                (contract, hour.hour.hour): +Counter({n: getattr(hour, n) for n in COUNTS})
                for contract, hour in session.execute(query)
            }

    def _told(self, what: str, *lines: object) -> str:
        """A failure with the walk that led to it."""
        self.has_failed = True
        names = {
            voting.contract: f"{letter}…" for letter, voting in zip("AB", self.votings, strict=True)
        }
        told = "\n".join(
            [f"{what}:", *map(str, lines), "", f"the walk, seed {self.course.seed}:", *self.story]
        )
        for contract, name in names.items():
            told = told.replace(contract, name)
        return told

    def teardown(self) -> None:
        """The last rest; then clean up."""
        try:
            if self.number and not self.has_failed:
                self._come_to_rest()
                unforeseen = [line for line in _log(self.folder) if '"attempt_failed"' in line]
                assert [] == unforeseen, self._told("unforeseen", *unforeseen)
        finally:
            for victim in (self.daemon, self.frozen):
                if victim is not None:
                    victim.kill()
            self._end_trouble()
            if self.socket is not None:
                self.socket.unlink(missing_ok=True)
            self.ending.close()
            shutil.rmtree(self.folder)
            if self.volume != self.folder:
                shutil.rmtree(self.volume)


def _log(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _bare(csv: Csv) -> Parcel:
    return Parcel(csv.data, (csv,))


def _begun(csv: Csv) -> Parcel:
    """The file as far as its writer has come: in the middle of the last row."""
    whole = _bare(csv)
    *lines, last = csv.lines
    half = Line(last.text[:20], "bad")
    begun = Csv(csv.label, (*lines, half), is_torn=True)
    return replace(_bare(begun), rest=whole.data[len(begun.data) :], whole=whole)


def _packed(csvs: list[Csv], *, is_nested: bool = False) -> Parcel:
    members = {csv.label.path(): csv.data for csv in csvs}
    if is_nested:
        members = {f"{name[:-4]}.zip": zip_of({name: data}) for name, data in members.items()}
    return Parcel(zip_of(members), tuple(csvs), is_zip=True)


def _rolled_back(line: Line) -> Line:
    return replace(line, text=rolled_back(line.text), sign=-1)


def _contents(folder: Path) -> Counter[str]:
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"\.reason( \(\d+\))?\.txt$", path.name)
    )


def _differences(expected: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    return [
        f"{key}: {expected.get(key)} expected, {found.get(key)} found"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]


@pytest.fixture(scope="module")
def small_volume() -> Iterator[Path]:
    """A small volume of its own where mounting works; else at least another file system."""
    folder = Path(tempfile.mkdtemp(prefix="ingestd-walks-", dir="/dev/shm"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "ingestd-walks", str(folder)]
    is_mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    yield folder
    if is_mounted:
        subprocess.run(["umount", str(folder)], check=True)
    shutil.rmtree(folder)


def _take_walks(course: Course, seed: Callable[[], int], *, steps: int) -> str:
    """Walk until so many steps are taken; says what was done."""
    while course.did["steps"] < steps:
        course.seed = seed()
        start: Any = hypothesis.seed(course.seed)(lambda: Walk(course))
        run_state_machine_as_test(start, settings=WALKING)
    return ", ".join(f"{number} {what}" for what, number in course.did.items())


@pytest.fixture(params=DATABASES)
def course(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path, small_volume: Path
) -> Course:
    """Where to walk: on SQLite in one run, on PostgreSQL in the next."""
    can_fill = os.path.ismount(small_volume)
    return Course(request.param, databases, tmp_path, small_volume, can_fill=can_fill)


@pytest.mark.promise(36)
def test_a_random_walk_ends_where_the_model_says(course: Course, did: Did) -> None:
    """At every rest, tables, ledger and folders are what follows from what was delivered."""
    did(_take_walks(course, itertools.count(1).__next__, steps=1_000))


@pytest.mark.campaign
@pytest.mark.promise(36)
def test_long_random_walks_end_where_the_model_says(course: Course, did: Did) -> None:
    """The same with new walks every time."""
    did(_take_walks(course, partial(random.randrange, 2**32), steps=10_000))


# What walks have found ----------------------------------------------------------------------


SMALL_BATCHES = {"INGESTD_INGEST__BATCH_ROWS": "2"}


def test_a_half_read_file_that_was_the_last_in_the_inbox_is_undone_by_once(
    migrated_url: str, voting: Voting, inbox: Path, tmp_path: Path
) -> None:
    """Nothing to take does not mean nothing to do."""
    path = inbox / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 3)))
    dying = Victim(tmp_path, migrated_url, settings=SMALL_BATCHES | {CRASH_VARIABLE: "stored:1"})
    assert -signal.SIGKILL == dying.wait()
    path.unlink()
    assert 0 == Victim(tmp_path, migrated_url).wait()
    assert [(path.name, "vanished", 0)] == states_on(migrated_url)
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


@pytest.mark.parametrize("step", [Step.STORED, Step.EXPLAINED, Step.COPIED])
def test_what_replaces_a_file_that_is_being_put_away_is_read(
    migrated_url: str,
    voting: Voting,
    inbox: Path,
    tmp_path: Path,
    small_volume: Path,
    step: Step,
) -> None:
    """A rename onto the name asks nobody; archive and quarantine are on another volume."""
    path = inbox / voting.name(8)
    rows = voting.ballots(8, 3)
    # What goes to the quarantine is explained first.
    path.write_bytes(csv_of([*rows[1:], *["torn"] * 3 * (step == Step.EXPLAINED)]))
    volume = Path(tempfile.mkdtemp(dir=small_volume))
    told = {
        "INGESTD_INGEST__MAX_REJECT_ROWS": "2",
        "INGESTD_WATCH__ARCHIVE": str(volume / "archive"),
        "INGESTD_WATCH__QUARANTINE": str(volume / "quarantine"),
    }
    frozen = Victim(tmp_path, migrated_url, settings=told | {FREEZE_VARIABLE: f"{step}:1"})
    soon(lambda: frozen.is_frozen)
    (inbox / ".new").write_bytes(csv_of(rows))
    (inbox / ".new").replace(path)
    frozen.thaw()
    frozen.wait()
    assert 0 == Victim(tmp_path, migrated_url, settings=told).wait()
    (job,) = [job for job in jobs_on(migrated_url) if job.status == "completed"]
    assert 6 == job.rows_read
    assert is_empty(inbox)


def test_a_refused_zip_is_quarantined_though_its_twin_came_between(
    migrated_url: str, voting: Voting, inbox: Path, tmp_path: Path
) -> None:
    """The twin takes over the refused member's job; what is left must not look like a good ZIP."""
    members = {
        voting.name(8): csv_of(voting.ballots(8, 1)),
        voting.name(9): csv_of(["torn"] * 3),
    }
    told = {"INGESTD_INGEST__MAX_REJECT_ROWS": "2"}
    (inbox / "hours.zip").write_bytes(zip_of(members))
    dying = Victim(tmp_path, migrated_url, settings=told | {CRASH_VARIABLE: "refused:1"})
    assert -signal.SIGKILL == dying.wait()
    shutil.copyfile(inbox / "hours.zip", inbox / "again.zip")
    os.utime(inbox / "again.zip", (0, 0))
    assert 0 == Victim(tmp_path, migrated_url, settings=told).wait()
    assert is_empty(inbox)
    quarantined = {path.name for path in (tmp_path / "quarantine").glob("*.zip")}
    assert {"again.zip", "hours.zip"} == quarantined
