"""The table of promises is complete."""

from __future__ import annotations

import re
from pathlib import Path

from .reliability import PROMISES

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
