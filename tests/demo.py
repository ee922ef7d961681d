"""`make demo`: the real daemon takes a simulated election, dies on the way, and is checked.

Everything happens in `.demo/`, which is made anew. Exit status 0 means that every figure in the
database is the one that the simulator knows to be true.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
SIMULATED = DEMO / "simulated"
INBOX = DEMO / "inbox"
LOG = DEMO / "daemon.log"

COPY_SECONDS = 9.0
TIMEOUT_SECONDS = 120.0
LOG_TAIL_LINES = 20
DEFECTS = (
    *("missing_hours", "too_many_bad", "republished_gone", "republished_added", "rollback_final"),
    *("rejected", "revotes", "bad_rows", "unknown_operation", "duplicates", "stuffing"),
)
TOTALS = ("registered_voters", "bulletins_issued", "votes_cast", "votes_rejected")
INGESTD = (sys.executable, "-m", "ingestd.cli")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")},
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "150",
}

COPIER = """
import os, sys, time
from pathlib import Path
source, inbox, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
files = sorted(path for path in source.rglob("*") if path.is_file())
for path in files:
    target = inbox / path.relative_to(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    with target.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(seconds / len(files) / 2)
        file.write(content[len(content) // 2 :])
    time.sleep(seconds / len(files) / 2)
"""


def main() -> int:
    """Tell the story; the exit status says whether it ended well."""
    started = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    tell(run("init", str(DEMO)).splitlines()[0])
    simulate = ("simulate", str(SIMULATED), "--seed", "7", "--constituencies", "6")
    print(run(*simulate, *(f"--defect={name}" for name in DEFECTS)).split("\nNext")[0])
    truth = json.loads((SIMULATED / "truth.json").read_text(encoding="utf-8"))

    tell("starting `ingestd run`; another process copies the files into its inbox")
    with daemon() as first, copying("drop", COPY_SECONDS) as copier:
        wait_until(lambda: jobs_done() > len(truth["files"]) // 3, "a third of the files")
        tell(f"kill -9 of the daemon after {jobs_done()} jobs, while files keep coming")
        first.kill()
        first.wait()
        with daemon() as second:
            wait_for(copier)
            tell("every file is copied; now what was published a second time")
            wait_until(is_all_done, "the files of drop/")
            with copying("drop-2", 1.0) as again:
                wait_for(again)
            wait_until(is_all_done, "the files of drop-2/")
            tell("nothing is waiting any more: SIGTERM")
            stop(second)

    for command in (("status",), ("alerts",), ("stats",)):
        tell(f"$ ingestd {' '.join(command)}")
        print(run(*command))
    wrong = list(mistakes(truth))
    tell("the tables against the truth of the simulator")
    print("\n".join(wrong) or told_right(truth))
    print(f"\n{time.monotonic() - started:.0f} seconds in all. To look further:\n{FURTHER}")
    return 1 if wrong else 0


# Processes ----------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    """Run one command of ingestd in the demo's folder; gives its output."""
    done = subprocess.run(
        [*INGESTD, *arguments],
        cwd=DEMO if DEMO.exists() else ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        fail(f"ingestd {' '.join(arguments)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout.rstrip("\n")


@contextmanager
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    """A running `ingestd run`, which logs to a file; it never outlives the demo."""
    with LOG.open("ab") as log:
        process = subprocess.Popen([*INGESTD, "run"], cwd=DEMO, env=ENVIRONMENT, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def copying(drop: str, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that copies a drop into the inbox, each file in two writes."""
    where = (str(SIMULATED / drop), str(INBOX), str(seconds))
    process = subprocess.Popen([sys.executable, "-c", COPIER, *where])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the daemon as systemd would."""
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        fail("the daemon did not stop within 30 seconds of SIGTERM")
    if status:
        fail(f"the daemon stopped with exit status {status}")


def wait_for(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that must end well."""
    if process.wait(timeout=TIMEOUT_SECONDS):
        fail("the copying process failed")


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Ask again until it is so; too long is a failure."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            fail(f"waited {TIMEOUT_SECONDS:.0f} seconds for {what}")
        time.sleep(0.3)


def fail(reason: str) -> NoReturn:
    """End the demo loudly, with the last lines of the daemon's log."""
    print(f"FAILED: {reason}", file=sys.stderr)
    if LOG.exists():
        tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        print(f"--- the end of {LOG}", *tail, sep="\n", file=sys.stderr)
    sys.exit(1)


# The database -------------------------------------------------------------------------------


def ask(query: str) -> list[tuple[Any, ...]]:
    """Ask the demo's database; a table that is not there yet is empty."""
    connection = sqlite3.connect(f"file:{DEMO / 'ingestd.db'}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def jobs_done() -> int:
    """How many jobs are at their end."""
    try:
        ((count,),) = ask("SELECT count(*) FROM file_processing WHERE finished_at IS NOT NULL")
    except sqlite3.OperationalError:
        return 0  # not made yet
    return int(count)


def is_all_done() -> bool:
    """No file lies in the inbox and no job asks for work."""
    if any(path.is_file() for path in INBOX.rglob("*")):
        return False
    queued = (
        "SELECT count(*) FROM file_processing WHERE status IN ('pending','processing','failed')"
    )
    return ask(queued) == [(0,)]


# The truth ----------------------------------------------------------------------------------


def mistakes(truth: dict[str, Any]) -> Iterator[str]:
    """One line for each figure that is not the true one."""
    status = json.loads(run("status", "--json"))
    jobs = {state: count for state, count in status["jobs"].items() if count}
    yield from compared("files", truth["totals"]["outcomes"], jobs)
    found = dict(ask('SELECT status, count(*) FROM "transaction" GROUP BY status'))
    true = {name: count for name, count in truth["totals"]["statuses"].items() if count}
    yield from compared("transactions", true, found)
    yield from compared("transactions told", sum(true.values()), status["transactions"])
    taken = [file for file in truth["files"] if file["outcome"] in ("completed", "superseded")]
    lines = sum(file["lines"] for file in taken)
    bad = sum(file["bad"] for file in taken)
    yield from compared("rows read", lines, status["rows"]["read"])
    yield from compared("rejects", bad, status["rejects"])
    yield from compared("books balance", True, status["is_balanced"])
    yield from compared_constituencies(truth)
    hours = Counter(
        contract for contract, told in truth["constituencies"].items() for _ in told["hours"]
    )
    counted = dict(
        ask(
            "SELECT c.contract_id, count(*) FROM hourly_stats h "
            "JOIN constituency c ON c.id = h.constituency_id "
            "WHERE h.transaction_count + h.rolled_back > 0 GROUP BY c.contract_id"
        )
    )
    yield from compared("hours with transactions", dict(hours), counted)


def compared_constituencies(truth: dict[str, Any]) -> Iterator[str]:
    """The totals of every constituency."""
    stats = json.loads(run("stats", "--json"))
    found = {each["contract_id"]: each for each in stats["constituencies"]}
    yield from compared("constituencies", sorted(truth["constituencies"]), sorted(found))
    for contract, told in truth["constituencies"].items():
        for name in TOTALS:
            yield from compared(f"{contract} {name}", told[name], found[contract][name])


def compared(what: str, expected: object, found: object) -> Iterator[str]:
    """Nothing where they are equal."""
    if expected != found:
        yield f"WRONG {what}: expected {expected}, found {found}"


def told_right(truth: dict[str, Any]) -> str:
    """What was found to be true, in words."""
    totals = truth["totals"]
    statuses = ", ".join(f"{count} {name}" for name, count in totals["statuses"].items())
    outcomes = ", ".join(f"{count} {name}" for name, count in totals["outcomes"].items())
    return (
        f"right: {totals['files']} files ({outcomes})\n"
        f"right: {sum(totals['statuses'].values())} transactions ({statuses})\n"
        f"right: voters, bulletins and votes of all {totals['constituencies']} constituencies\n"
        "right: every row read is stored, known, a rollback, rejected or blank"
    )


FURTHER = """  cd .demo
  ingestd jobs --state quarantined
  ingestd rejects
  ingestd alerts --all --json
  ingestd stats --contract CONTRACT
  less daemon.log; ls archive quarantine"""


def tell(line: str) -> None:
    """One step of the story."""
    print(f"\n▸ {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
