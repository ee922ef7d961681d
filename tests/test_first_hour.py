"""docs/first-hour.md: it is lived through again, and what is committed is the whole of it."""

from __future__ import annotations

import re

import pytest

from . import first_hour
from .conftest import Did
from .machine import what_is_missing


def test_the_page_tells_the_whole_story() -> None:
    """A part that was added since must be lived through: `make first-hour`."""
    page = first_hour.TARGET.read_text(encoding="utf-8")
    assert len(first_hour.STORY) == len(chapters(page))


@pytest.mark.campaign
@pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())
def test_the_first_hour_of_a_new_user_ends_well(did: Did) -> None:
    """Each step ends as the page shows it."""
    page = first_hour.told()
    assert chapters(first_hour.TARGET.read_text(encoding="utf-8")) == chapters(page)
    did(f"{len(re.findall(r'^(root#|bob[$]) ', page, re.MULTILINE))} commands of a new user")


def chapters(page: str) -> list[str]:
    """Its headings."""
    return re.findall(r"^## (.+)$", page, re.MULTILINE)
