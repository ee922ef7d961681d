"""The table of promises is complete."""

from __future__ import annotations

import re
from pathlib import Path

from .reliability import PROMISES, ROOT, TARGET

TESTS = Path(__file__).parent


def test_every_promise_has_a_test() -> None:
    """A promise that nothing holds is a wish."""
    marked = {
        int(number)
        for path in TESTS.glob("test_*.py")
        for numbers in re.findall(r"mark\.promise\(([\d, ]+)\)", path.read_text(encoding="utf-8"))
        for number in numbers.split(",")
    }
    assert set(range(1, len(PROMISES) + 1)) == marked


def test_the_page_names_tests_that_exist() -> None:
    """It is written from a run; a test that was renamed since then shows that it is out of date."""
    named = re.findall(r"\| \[([^]]+)\]\(\.\./(tests/\w+\.py)\) \|", TARGET.read_text("utf-8"))
    assert named, "docs/reliability.md names no test: make reliability"
    defined = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert set() == {(path, name_of(title)) for title, path in named} - defined


def name_of(title: str) -> str:
    """The function of a test, from how the page calls it."""
    return f"test_{title.replace(' ', '_')}"
