"""The commands that the documents show, and where each of them is run.

A command that stands in a block of shell must be run by a test or a campaign; one that stands in a
sentence must be one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .running import ROOT

README = ROOT / "README.md"

BOOKS = ("^(completed|duplicate|superseded|read|stored|known|rollbacks|rejected|blank) ",)
"""The lines of an answer that say what became of every file and every row."""

WRITTEN = ("first-hour", "service", "reliability", "performance", "detection", "configuration")
"""Pages that programs write, from what they did."""

MACHINE = ("tests/first_hour.py", "tests/test_service.py", "tests/machine.py")
"""Where a command is run on a machine of its own, it stands there as in the document."""

ELSEWHERE = {
    "make quick": (".ci/run", '-m "not slow and not campaign"'),
    "INGESTD_TEST_DATABASES=sqlite .venv/bin/pytest -q tests/test_slot.py": (
        ".ci/run",
        "INGESTD_TEST_DATABASES=sqlite",
    ),
    "journalctl -u ingestd INGESTD_EVENT=file_quarantined": (
        "tests/test_service.py",
        "INGESTD_EVENT=",
    ),
    "journalctl -u ingestd INGESTD_PATH=77/x.csv -o verbose": (
        "tests/test_service.py",
        "INGESTD_PATH",
    ),
    "make demo": ("tests/test_shown.py", '"tests/demo.py"'),
    "make test": (".ci/run", "make test"),
    "pip install '.[postgresql]'": (".ci/run", "install --editable '.[dev]'"),
    '/opt/ingestd/bin/pip install "$(ls ingestd-*.whl)[notify]"': (
        ".ci/run",
        "install --editable '.[dev]'",
    ),
    "install -m 600 /dev/stdin /etc/ingestd/notify-channels": (
        "tests/first_hour.py",
        "install -m 600 /dev/stdin",
    ),
    "ingestd unit install --notify-at any --now": ("tests/test_unit.py", '"--notify-at", "any"'),
    "ingestd notify list": ("tests/test_cli.py", 'ingestd("list")'),
    "ingestd notify retry": ("tests/test_cli.py", 'ingestd("retry"'),
    "ingestd init /srv/ingestd && cd /srv/ingestd": (".ci/run", "ingestd init ."),
    "ingestd check": ("tests/first_hour.py", "ingestd check"),
    "ingestd run": ("tests/test_cli.py", '[*PROGRAM, "run"'),
    "pipx run datasette serve ingestd.db": ("tests/test_querying.py", "Datasette([sys.argv[1]]"),
    "ingestd backup": (".ci/run", "ingestd backup kept.db"),
    "ingestd prune --yes": ("tests/test_prune.py", '"--yes"'),
}
"""Of the others: the file that runs it, and the words by which it does."""

_BLOCK = re.compile(r"^ *```(sh|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|[^|]+\| (.*) \|$", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_REMARK = re.compile(r"(?:^|\s+)# .*$")


def documents() -> list[str]:
    """README and docs/, without the pages that programs write."""
    pages = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in WRITTEN)
    return ["README.md", *(f"docs/{path.name}" for path in pages)]


def in_blocks(document: str) -> Iterator[str]:
    """The commands of the blocks of shell, without remarks and answers."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for kind, block in _BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        if kind == "console":
            lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        yield from filter(None, (_REMARK.sub("", line).strip() for line in lines))


def in_sentences(document: str) -> Iterator[str]:
    """What is called a command of ours in a sentence or a table."""
    text = _FENCED.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for span in _SPAN.findall(text):
        told = " ".join(span.split())
        if told.startswith(("ingestd ", "make ")):
            yield told


# The first screen of the README -------------------------------------------------------------

SIMULATED = (
    "ingestd init . && ingestd simulate sim --constituencies 3 --hours 6 "
    "--defect bad_rows --defect republished_gone --defect duplicates"
)
FIRST_SCREEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (SIMULATED, ("^made", "^64 files")),
    ("cp -r sim/drop/. inbox/ && ingestd once", BOOKS),
    ("ingestd rejects --limit 2", (".",)),
    ("cp -r sim/drop-2/. inbox/ && ingestd once", ("^completed", "^known")),
    ("ingestd alerts --type history_withdrawn", (".",)),
)
"""Its commands, and which lines of their answers are shown."""


def first_screen() -> str:
    """The commands, with what they say today."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "bin", "ingestd")
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ingestd.cli "$@"\n')
        program.chmod(0o755)
        work = Path(folder, "work")
        work.mkdir()
        answers = [_answer(work, program.parent, *each) for each in FIRST_SCREEN]
    return "\n".join(answers)


def _answer(work: Path, programs: Path, command: str, shown: tuple[str, ...]) -> str:
    outside = {name: told for name, told in os.environ.items() if not name.startswith("INGESTD_")}
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run(
        ("bash", "-c", command),
        cwd=work,
        env=outside | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, f"{command}\n{done.stdout}{done.stderr}"
    folded = command.replace(" --defect", " \\\n      --defect", 1)
    return "\n".join([f"$ {folded}", *trimmed(done.stdout, shown)])


def block_of_readme() -> str:
    """What the README shows."""
    return README.read_text(encoding="utf-8").split("```console\n", 1)[1].split("\n```", 1)[0]


def write_readme() -> None:
    """Let it show what is true today; `make docs` calls this."""
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(block_of_readme(), first_screen()), encoding="utf-8")


def trimmed(said: str, shown: tuple[str, ...]) -> Iterator[str]:
    """The lines in which one of the patterns is found, and a `…` for others; each must be found."""
    lines = [line.rstrip() for line in said.splitlines()]
    for pattern in shown:
        assert any(re.search(pattern, line) for line in lines), f"no {pattern!r} in\n{said}"
    is_left_out = False
    for line in lines:
        if any(re.search(pattern, line) for pattern in shown):
            yield from ["…"] * is_left_out
            yield line
            is_left_out = False
        else:
            is_left_out = True
    yield from ["…"] * is_left_out


def table_of_readme() -> list[str]:
    """The commands of its table of questions, which a test asks in that order."""
    rows = _ROW.findall(README.read_text(encoding="utf-8"))
    spans = (span for row in rows for span in _SPAN.findall(row))
    return [span for span in spans if span.startswith("ingestd ")]


# Who runs them ------------------------------------------------------------------------------


def is_run_by_the_first_screen(command: str) -> bool:
    """Whether it is one of those above."""
    return command in {each for each, _shown in FIRST_SCREEN}


def is_run_on_a_machine(command: str) -> bool:
    """Whether the campaigns that boot one say it: as it stands, in a folder, or as a user."""
    said = (_REMARK.sub("", each).strip() for each in _said_on_machines())
    return any(
        each == command or each.endswith((f"&& {command}", f"-- {command}")) for each in said
    )


def is_run_elsewhere(command: str) -> bool:
    """Whether the file that is named for it still has the words that run it."""
    if command not in ELSEWHERE:
        return False
    file, words = ELSEWHERE[command]
    return words in (ROOT / file).read_text(encoding="utf-8")


@cache
def _said_on_machines() -> tuple[str, ...]:
    return tuple(said for file in MACHINE for said in _texts(file))


def _texts(file: str) -> Iterator[str]:
    """The texts of a program; what is put into one stands in braces."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


if __name__ == "__main__":
    write_readme()
