"""Fuzz one target with atheris: `python -m tests.fuzz.run rows 60`, needs the extra `fuzz`.

New inputs go to `.fuzz/<target>`; what breaks a claim is written to `.fuzz/` and ends the run.
`python -m tests.fuzz.run rows keep` copies those that take a way through the code that no
kept input takes, the shortest first.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

KEPT = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")
TARGETS = ("rows", "zips", "names")
LONGEST = {"rows": 6000, "zips": 3000, "names": 600}


Steps = set[tuple[str, int, int]]


def main(target: str, asked: str) -> None:
    """Run a target for so many seconds, or keep what was found."""
    if asked == "keep":
        keep(target)
        return
    atheris = importlib.import_module("atheris")
    found = FOUND / target
    found.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["ingestd.pipeline", "zipfile"]):
        check = importlib.import_module(f"tests.fuzz.{target}").check
    options = (
        f"-max_total_time={asked}",
        f"-max_len={LONGEST[target]}",
        f"-artifact_prefix={FOUND}/{target}-",
        "-timeout=20",
        "-rss_limit_mb=2000",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *options, str(found), str(KEPT / target)], check)
    atheris.Fuzz()


def keep(target: str) -> None:
    """Copy what was found and takes a new way."""
    check = importlib.import_module(f"tests.fuzz.{target}").check
    steps: Steps = set()
    for path in (KEPT / target).iterdir():
        steps |= steps_of(check, path.read_bytes())
    for path in sorted((FOUND / target).iterdir(), key=lambda path: path.stat().st_size):
        more = steps_of(check, path.read_bytes())
        if more - steps:
            steps |= more
            shutil.copyfile(path, KEPT / target / path.name)


def steps_of(check: Callable[[bytes], None], data: bytes) -> Steps:
    """From which line to which line the program goes, in our code and in `zipfile`."""
    steps: Steps = set()

    def begin(frame: FrameType, _event: str, _more: object) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if "ingestd/pipeline" not in file and "zipfile" not in file:
            return None
        last = 0

        def step(frame: FrameType, _event: str, _more: object) -> Callable[..., Any]:
            nonlocal last
            steps.add((file, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    sys.settrace(begin)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return steps


if __name__ == "__main__":
    main(*sys.argv[1:3])
