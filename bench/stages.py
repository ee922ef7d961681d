"""Where the CPU of ingestd goes: samples of py-spy, added up by stage."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.daemon import BenchmarkFailed, Daemon
from bench.drops import Drop
from bench.instead import tool

SAMPLES_A_SECOND = 100
STOP_SECONDS = 120
# Blocking, it would stop the program for each sample, and measure a slower one.
_OPTIONS = (
    *("--nonblocking", "--subprocesses", "--format", "raw"),
    *("--rate", str(SAMPLES_A_SECOND)),
)
# A frame is `Class.function (file.py:line)`: what is not its function's name.
_FUNCTION = re.compile(r"^(?:[^ ]*\.)?(?=[^ .]+ \()| \(.*$")
_OWN = re.compile(r"[(/]ingestd/(?P<module>[a-z_/]+)\.py")
# Where a commit's own work is done; its caller would be all that is seen of it.
_COMMITS = ("do_commit",)
# What waits is not always seen to be idle where cores are few.
_WAITS = ("_happened", "_check_inotify_fd", "wait", "get", "select", "poll")
ELSEWHERE = "libraries"


def sample(running: Daemon, drop: Drop, target: Path) -> dict[str, float]:
    """Let a daemon take some files under py-spy; seconds of CPU by stage.

    The samples tell the shares, the kernel how much there was to share. They stay in `target`, for
    whoever wants to look at them as a flame graph.
    """
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    spy = tool("py-spy", "py-spy>=0.4", target.parent.parent)
    command = [str(spy), "record", *_OPTIONS, "--output", str(target)]
    command += ["--pid", str(running.process.pid)]
    with target.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        run = running.take(drop)
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
    if not target.exists() or run.cpu_seconds is None:
        said = target.with_suffix(".log").read_text(encoding="utf-8")
        raise BenchmarkFailed(f"py-spy: {said[-2_000:]}")
    samples = by_stage(target.read_text(encoding="utf-8").splitlines())
    return {stage: run.cpu_seconds * n / samples.total() for stage, n in samples.items()}


def by_stage(lines: Iterable[str]) -> Counter[str]:
    """Samples by stage, of lines as py-spy writes them: `frame;frame;… samples`."""
    samples: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        stage = stage_of(stack.split(";"))
        if stage is not None:
            samples[stage] += int(count)
    return samples


def stage_of(stack: Sequence[str]) -> str | None:
    """The innermost module of ingestd that a sample was in; commits by themselves, None for waits.

    Every statement on PostgreSQL goes through `db`: it belongs to the stage that asked.
    """
    stage = ELSEWHERE
    if _FUNCTION.sub("", stack[-1]) in _WAITS:
        return None
    for frame in stack:
        if _FUNCTION.sub("", frame) in _COMMITS:
            return "commit"
        own = _OWN.search(frame)
        if own is not None and (own["module"] != "db" or stage == ELSEWHERE):
            stage = own["module"].removeprefix("pipeline/").split("/")[0]
    return stage
