"""The commands that the documents show, and where each of them is run.

A command that stands in a block of shell must be run by a test or a campaign; one that stands in a
sentence must be one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from .running import ROOT

WRITTEN = ("first-hour", "service", "reliability", "performance", "detection", "configuration")
"""Pages that programs write, from what they did."""

MACHINE = ("tests/first_hour.py", "tests/test_service.py", "tests/machine.py")
"""Where a command is run on a machine of its own, it stands there as in the document."""

ELSEWHERE = {
    "make demo": ("tests/test_shown.py", '"tests/demo.py"'),
    "make test": (".ci/run", "make test"),
    "pip install '.[postgresql]'": (".ci/run", "install --editable '.[dev]'"),
    "ingestd init /srv/ingestd && cd /srv/ingestd": (".ci/run", "ingestd init ."),
    "ingestd check": ("tests/first_hour.py", "ingestd check"),
    "ingestd run": ("tests/test_cli.py", '[*PROGRAM, "run"'),
    "pipx run datasette serve ingestd.db": ("tests/test_querying.py", "Datasette([sys.argv[1]]"),
    "ingestd backup": ("tests/test_shown.py", "BACKUP"),
}
"""Of the others: the file that runs it, and the words by which it does."""

_BLOCK = re.compile(r"^ *```(sh|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
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


def is_run_on_a_machine(command: str) -> bool:
    """Whether the campaigns that boot one say it, remark or not."""
    return any(
        command == _REMARK.sub("", said).strip() or f"&& {command}" in said
        for said in _said_on_machines()
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
