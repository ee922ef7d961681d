"""Fuzz one target with atheris: `python -m tests.fuzz.run rows 60`, needs the extra `fuzz`.

New inputs go to `.fuzz/<target>`; what breaks a claim is written to `.fuzz/` and ends the run.
`python -m tests.fuzz.run rows merge` puts those that reach more code into the kept corpus.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

KEPT = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")
TARGETS = ("rows", "zips", "names")
LONGEST = {"rows": 6000, "zips": 3000, "names": 600}


def main(target: str, seconds: str) -> None:
    """Run a target for so many seconds, or merge what was found."""
    atheris = importlib.import_module("atheris")
    found = FOUND / target
    found.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["ingestd.pipeline", "zipfile"]):
        check = importlib.import_module(f"tests.fuzz.{target}").check
    options = [f"-max_len={LONGEST[target]}", f"-artifact_prefix={FOUND}/{target}-", "-timeout=20"]
    if seconds == "merge":
        folders = [str(KEPT / target), str(found)]
        options.append("-merge=1")
    else:
        folders = [str(found), str(KEPT / target)]
        options += [f"-max_total_time={seconds}", "-print_final_stats=1", "-rss_limit_mb=2000"]
    atheris.Setup([sys.argv[0], *options, *folders], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:3])
