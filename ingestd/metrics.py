"""What the daemon counts and measures, as Prometheus reads it.

The loop tells what happens; whoever reads does so in a thread of their own and never asks the
database or a file. Files and rows are counted from the ledger's word on each job, once, when it
is final: what a worker did, what was done again after a kill, is in the same sums.
"""

from __future__ import annotations

import os
import resource
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestd import __version__
from ingestd.log import escape
from ingestd.pipeline.events import Heard
from ingestd.pipeline.outbox import Waiting
from ingestd.pipeline.tally import STAGES
from ingestd.pipeline.worker import Told
from ingestd.standing import Standing

OTHERS = "(others)"
DIRECT = "."
OUTCOMES = ("completed", "duplicate", "quarantined", "vanished", "changed")
NOTICES = ("sent", "given_up")
ROWS = ("stored", "known", "rollbacks", "rejected", "blank")
_MOST_SOURCES = 100
_LONGEST_SOURCE = 80
_LAG_SECONDS = (0.5, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 14_400)
_DATABASE_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600)
# A disk that does not answer is left out; so is what comes behind it.
_DISK_SECONDS = 1.0
_FINAL = ("completed", "superseded", "duplicate", "quarantined")

# When a counter began is said by ingestd_start_time_seconds, once.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class Figures:
    """All figures of one daemon, from its start on, over reloads of its settings."""

    def __init__(self, started: datetime, standing: Standing) -> None:
        """Count what is final from `started` on; what waits now is as the standing says."""
        self._started = started
        self._standing = standing
        self._told: dict[Path, set[uuid.UUID]] = {}
        self._heard: Heard | None = None
        self._oldest: float | None = None
        self._sources: set[str] = set()
        self.registry = prometheus.CollectorRegistry()
        self.registry.register(Process())
        self.volumes = Volumes()
        self.registry.register(self.volumes)
        self.notices = Notices(
            self._counter("notices", "Notices that came to an end.", "channel", "outcome")
        )
        self.registry.register(self.notices)
        self._make_counters()
        self._make_gauges()
        prometheus.Info("ingestd", "Version.", registry=self.registry).info(
            {"version": __version__}
        )
        self._gauge("start_time_seconds", "When the daemon was started.").set(started.timestamp())

    def _make_counters(self) -> None:
        self._files = self._counter("files", "Files that came to an end, by outcome.", "outcome")
        self._rows = self._counter(
            "rows", "Rows of completed files, by what became of them.", "outcome"
        )
        self._bytes = self._counter("bytes", "Bytes of CSV of completed files.")
        self._stages = self._counter(
            "stage_seconds", "Time that went into a stage, of all workers.", "stage"
        )
        self._failed = self._counter("attempts_failed", "Attempts that broke unforeseen.")
        self._died = self._counter("workers_died", "Worker processes that ended by themselves.")
        self._faults = self._counter("storage_faults", "Times that database or disk was away.")
        self._missed = self._counter("scan_only_files", "Files that no event told of.")
        self._overflows = self._counter("event_overflows", "Times that events were lost in a rush.")
        self._rebuilds = self._counter("event_rebuilds", "Times that listening was begun anew.")
        self._lag = prometheus.Histogram(
            "ingestd_lag_seconds",
            "From the drop of a file (its ctime) to its rows being visible.",
            buckets=_LAG_SECONDS,
            registry=self.registry,
        )
        self._database = prometheus.Histogram(
            "ingestd_database_seconds",
            "How long the database takes for a small statement and its commit.",
            buckets=_DATABASE_SECONDS,
            registry=self.registry,
        )
        # Each is there from the start, so that an increase from nothing is one.
        for counter, labels in (
            (self._files, OUTCOMES),
            (self._rows, ROWS),
            (self._stages, (*dict.fromkeys(STAGES.values()), "scan", "feed")),
        ):
            for label in labels:
                counter.labels(label)

    def _make_gauges(self) -> None:
        self.ready = self._gauge("ready", "1 while /readyz says so.")
        self.progress = self._gauge(
            "last_progress_timestamp_seconds", "When the daemon last came a step further."
        )
        queued = self._gauge("queue_files", "Files in the inbox that wait.")
        queued.set_function(lambda: self._standing.queued)
        self._queued_bytes = self._gauge("queue_bytes", "Their bytes.")
        age = self._gauge("queue_oldest_age_seconds", "How long the oldest of them lies there.")
        age.set_function(self._oldest_age)
        held_up = self._gauge("held_up_files", "Files for which an obstacle must go first.")
        held_up.set_function(lambda: self._standing.held_up)
        self.workers = self._gauge("workers", "Worker processes.")
        self.in_work = self._gauge("files_in_work", "Files that worker processes have at hand.")
        self._listening = self._gauge("events_listening", "1 while file events are listened to.")
        self.due = self._gauge("evaluation_due", "Commits that wait for the statistical rules.")
        self._success = self._gauge(
            "source_last_success_timestamp_seconds",
            "When a file of a source (the first folder below the inbox) was last completed.",
            "source",
        )

    def _counter(self, name: str, about: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(f"ingestd_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> prometheus.Gauge:
        return prometheus.Gauge(f"ingestd_{name}", about, labels, registry=self.registry)

    # ── what the loop tells ───────────────────────────────────────────────

    def took(self, relative: Path, jobs: Iterable[Told]) -> None:
        """Count the jobs of a file, each once: while it lies there it may be told of again."""
        known = self._told.setdefault(relative, set())
        for job in jobs:
            if job.status not in _FINAL or job.finished_at is None or job.id in known:
                continue
            known.add(job.id)
            if job.finished_at >= self._started:  # else an earlier daemon has done it
                self._count(relative, job, job.finished_at)
        if not known:
            del self._told[relative]

    def _count(self, relative: Path, job: Told, finished_at: datetime) -> None:
        if job.status in ("duplicate", "quarantined"):
            self._files.labels(job.status).inc()
            return
        self._files.labels("completed").inc()
        for name in ROWS:
            self._rows.labels(name).inc(getattr(job.books, name))
        self._bytes.inc(job.size)
        finished = finished_at.timestamp()
        self._lag.observe(max(0.0, finished - _changed_at(job.stamp)))
        self.succeeded(relative, finished)

    def succeeded(self, relative: Path, at: float) -> None:
        """Note when a file of its source was completed; the first `_MOST_SOURCES` have names."""
        source = source_of(relative)
        if source not in self._sources and len(self._sources) >= _MOST_SOURCES:
            source = OTHERS
        self._sources.add(source)
        self._success.labels(source).set(at)

    def looked(self, waiting: Sequence[tuple[str, int]], here: Iterable[Path]) -> None:
        """Note what waits, as stamps and sizes, and forget the files that are not `here`."""
        self._queued_bytes.set(sum(size for _, size in waiting))
        self._oldest = min((_changed_at(stamp) for stamp, _ in waiting), default=None)
        if self._told:
            still = set(here)
            self._told = {path: ids for path, ids in self._told.items() if path in still}

    def hear(self, heard: Heard) -> None:
        """Note what came of listening; after a reload its own counts begin at nothing."""
        self._listening.set(heard.is_listening)
        before = self._heard
        for counter, name in (
            (self._missed, "missed"),
            (self._overflows, "overflows"),
            (self._rebuilds, "rebuilds"),
        ):
            now, then = getattr(heard, name), getattr(before, name, 0)
            counter.inc(now - then if now >= then else now)
        self._heard = heard

    def spent(self, seconds: Mapping[str, float], events: Counter[str]) -> None:
        """Add seconds by stage, and what happened that no job tells of."""
        for stage, number in seconds.items():
            self._stages.labels(stage).inc(max(0.0, number))
        for name in ("vanished", "changed"):
            self._files.labels(name).inc(events[name])
        self._failed.inc(events["failed"])
        self._died.inc(events["worker_died"])

    def answered(self, seconds: float) -> None:
        """Note that the database took so long."""
        self._database.observe(seconds)

    def faulted(self) -> None:
        """Note that database or disk was away."""
        self._faults.inc()

    # ── what is read ──────────────────────────────────────────────────────

    def _oldest_age(self) -> float:
        oldest = self._oldest
        if oldest is None or not self._standing.queued:
            return 0.0
        return max(0.0, time.time() - oldest)

    def page(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class Notices(Collector):
    """How people are told: what waits for each channel, and what came of the rest.

    Ages go on growing while the outbox cannot be looked at: nothing leaves it then.
    """

    def __init__(self, counter: prometheus.Counter) -> None:
        """Nobody is to be told yet."""
        self._counter = counter
        self._channels: Sequence[str] = ()
        self._waiting: Mapping[str, Waiting] = {}

    def begin(self, channels: Sequence[str]) -> None:
        """From now on people are told by these."""
        self._waiting, self._channels = {}, channels
        for channel in (*channels, *([OTHERS] if channels else [])):
            for outcome in NOTICES:
                self._counter.labels(channel, outcome)

    def looked(self, waiting: Iterable[Waiting]) -> None:
        """Note what waits."""
        self._waiting = {each.channel: each for each in waiting}

    def came_to(self, channel: str, outcome: str, number: int) -> None:
        """Count what was sent, or given up."""
        self._counter.labels(channel, outcome).inc(number)

    def collect(self) -> Iterator[Metric]:
        """Give number and ages, zeros where nothing waits."""
        waiting, now = self._waiting, time.time()
        for name, about, value in (
            ("waiting", "Notices that wait.", lambda each: each.number),
            ("oldest_age_seconds", "For how long the oldest waits.", _since(now, "oldest")),
            ("overdue_seconds", "For how long it should have gone.", _since(now, "due_since")),
        ):
            family = GaugeMetricFamily(f"ingestd_notices_{name}", about, labels=["channel"])
            for channel in self._channels:
                each = waiting.get(channel)
                family.add_metric([channel], 0 if each is None else value(each))
            yield family


def _since(now: float, name: str) -> Callable[[Waiting], float]:
    return lambda each: max(0.0, now - getattr(each, name).timestamp())


class Process(Collector):
    """The daemon's own process, under the usual names.

    The library's collector says nothing where /proc/stat is hidden, as it is from a service
    with ProcSubset=pid.
    """

    def collect(self) -> Iterator[Metric]:
        """Give processor time, memory and open files."""
        used = os.times()
        cpu = CounterMetricFamily("process_cpu_seconds", "Processor time, user and system.")
        cpu.add_metric([], used.user + used.system)
        yield cpu
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        for name, about, value in (
            ("resident_memory_bytes", "Memory.", pages * resource.getpagesize()),
            ("open_fds", "Open files.", sum(1 for _ in Path("/proc/self/fd").iterdir())),
            ("max_fds", "So many may be.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        ):
            yield GaugeMetricFamily(f"process_{name}", about, value=value)


class Volumes(Collector):
    """How much room there is where files and database lie.

    A network disk may never answer: it is asked in a thread of its own, which is waited for
    a moment only.
    """

    def __init__(self) -> None:
        """Measure nothing yet."""
        self.folders: Mapping[str, Path] = {}
        self._rooms: dict[str, os.statvfs_result] = {}
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None

    def collect(self) -> Iterator[Metric]:
        """Give free and all bytes of each folder's file system."""
        rooms = self._ask()
        for name, about, blocks in (
            ("free", "Bytes that ingestd may still write there.", "f_bavail"),
            ("size", "Bytes of the whole file system.", "f_blocks"),
        ):
            family = GaugeMetricFamily(f"ingestd_disk_{name}_bytes", about, labels=["folder"])
            for folder, room in rooms.items():
                family.add_metric([folder], getattr(room, blocks) * room.f_frsize)
            yield family

    def _ask(self) -> dict[str, os.statvfs_result]:
        with self._lock:
            if self._asking is None or not self._asking.is_alive():
                self._rooms = {}
                arguments = (dict(self.folders), self._rooms)
                self._asking = threading.Thread(target=_measure, args=arguments, daemon=True)
                self._asking.start()
            self._asking.join(_DISK_SECONDS)
            return dict(self._rooms)


def _measure(folders: Mapping[str, Path], rooms: dict[str, os.statvfs_result]) -> None:
    for name, folder in folders.items():
        try:
            rooms[name] = os.statvfs(folder)
        except OSError:  # it is away; that is said elsewhere
            continue


def source_of(relative: Path) -> str:
    """Name who delivers a file: the first folder below the inbox, as a text that can be shown."""
    if len(relative.parts) <= 1:
        return DIRECT
    return escape(relative.parts[0])[:_LONGEST_SOURCE]


def _changed_at(stamp: str) -> float:
    """When a file came to its place, in seconds since 1970: the ctime in its stamp."""
    return int(stamp.rpartition(":")[2]) / 1e9
