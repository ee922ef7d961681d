"""Where the CPU of ingestd goes: samples of py-spy, added up by stage."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.daemon import BenchmarkFailed, environment
from bench.drops import Drop
from bench.instead import tool

SAMPLES_A_SECOND = 250
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")
_OWN = re.compile(r"(?:^|/)ingestd/(?P<module>[a-z_/]+)\.py$")
_ONCE = (sys.executable, "-m", "ingestd.cli", "once", "--archive")
# Where a commit's own work is done; its caller would be all that is seen of it.
_COMMITS = ("do_commit", "_do_commit")
_IMPORTS = "_find_and_load"
STARTING = "start and imports"


def sample(folder: Path, url: str, drop: Drop, tools: Path) -> Counter[str]:
    """Run the real program over some files under py-spy; seconds of CPU by stage."""
    spy = tool("py-spy", "py-spy>=0.4", tools)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inbox").mkdir(parents=True)
    for path in drop.paths:
        (folder / "inbox" / path.name).hardlink_to(path)
    target = folder / "samples.txt"
    options = ("--format", "raw", "--subprocesses", "--rate", str(SAMPLES_A_SECOND))
    try:
        done = subprocess.run(
            [str(spy), "record", *options, "--output", str(target), "--", *_ONCE],
            cwd=folder,
            env=environment(folder, url, 1),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not target.exists():
            raise BenchmarkFailed(f"py-spy: {done.stderr[-2_000:]}")
        return by_stage(target.read_text(encoding="utf-8").splitlines())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def by_stage(lines: Iterable[str]) -> Counter[str]:
    """Seconds by stage, of lines as py-spy writes them: `frame;frame;… samples`."""
    seconds: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        seconds[stage_of(stack.split(";"))] += int(count)
    return Counter({stage: count / SAMPLES_A_SECOND for stage, count in seconds.items()})


def stage_of(stack: Iterable[str]) -> str:
    """The innermost module of ingestd that a sample was in; commits by themselves."""
    stage = STARTING
    for frame in stack:
        found = _FRAME.match(frame)
        if found is None:
            continue
        if found["function"] == _IMPORTS:
            return STARTING
        if found["function"] in _COMMITS:
            return "commit"
        own = _OWN.search(found["file"])
        if own is not None:
            stage = own["module"].removeprefix("pipeline/").split("/")[0]
    return stage
