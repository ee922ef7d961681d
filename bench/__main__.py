"""`python -m bench`: measure, keep the figures, write docs/performance.md from them."""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path

from bench import page, results, scenarios
from bench.results import LATEST, ROOT, Result
from bench.scale import SCALES

EXAMPLES = """\
examples:
  python -m bench                         everything, about 30 minutes on 2 cores
  python -m bench --only pg-8-files,pg-1gb   these; the other figures stay as they are
  python -m bench --only 'sqlite-*'       all on SQLite
  python -m bench --full                  the sizes of the bars: hours of time, 60 GB of disk
  python -m bench --quick                 tiny sizes, to see that it works; nothing is written
                                          but .bench/quick.json and .bench/quick.md
  python -m bench --page                  only write the page anew
"""


def main() -> int:
    """Measure; exit status 1 when a scenario failed, 2 for one that is not known."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="scale", action="store_const", const="quick")
    sizes.add_argument("--full", dest="scale", action="store_const", const="full")
    parser.add_argument("--only", metavar="NAMES", help="with commas; * stands for anything")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and stop")
    parser.add_argument("--page", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="to work in")
    parser.set_defaults(scale="usual")
    options = parser.parse_args()
    if options.list:
        print("\n".join(scenarios.names()))
        return 0
    chosen = _chosen(options.only)
    if not chosen:
        print(f"--only {options.only}: no such scenario; --list names them", file=sys.stderr)
        return 2
    target, kept = page.TARGET, LATEST
    if options.scale == "quick":
        target, kept = options.folder / "quick.md", options.folder / "quick.json"
    options.folder.mkdir(parents=True, exist_ok=True)
    lock = (options.folder / "lock").open("w")
    try:
        # Two at once would measure each other, and share their folders.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another benchmark works in {options.folder}; wait for it", file=sys.stderr)
        return 2
    failed = [] if options.page else _measure(options.folder, options.scale, chosen, kept)
    target.write_text(page.page(results.load(kept)), encoding="utf-8")
    print(f"wrote {target}")
    if failed:
        print(f"failed, and their figures are as before: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _chosen(only: str | None) -> list[str]:
    patterns = only.split(",") if only else ["*"]
    return [name for name in scenarios.names() if any(fnmatch(name, each) for each in patterns)]


def _measure(folder: Path, scale: str, chosen: list[str], kept: Path) -> list[str]:
    """Run the scenarios, keep the figures of each at once; gives the names of those that failed."""
    bench = scenarios.Bench(folder, SCALES[scale], tell=lambda line: print(line, flush=True))
    failed = []
    try:
        for name in chosen:
            try:
                _run(bench, name, kept)
            except Exception:  # noqa: BLE001 - hours of other figures must not be lost with it
                traceback.print_exc()
                failed.append(name)
    finally:
        bench.close()
        for left in ("work", "databases", "ready", "published-again"):
            shutil.rmtree(folder / left, ignore_errors=True)
    return failed


def _run(bench: scenarios.Bench, name: str, kept: Path) -> None:
    print(name, flush=True)
    began = time.monotonic()
    result = Result(taken=results.taken_now(bench.scale.name))
    scenarios.run(bench, name, result)
    result.minutes = (time.monotonic() - began) / 60
    results.keep(kept, name, result)
    print(f"  {result.minutes:.1f} minutes in all", flush=True)


if __name__ == "__main__":
    sys.exit(main())
