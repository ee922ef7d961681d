"""Rules are pure: facts in, findings out."""

import uuid
from datetime import UTC, datetime

import pytest

from ingestd.pipeline import rules
from ingestd.pipeline.rules import Content, Republication, SlotCount, Totals
from ingestd.pipeline.stats import Revote
from ingestd.pipeline.verdict import Event, SeenFile, decide

EIGHT, NINE, TEN = (f"2024-09-06_{hour:02d}00-{hour + 1:02d}00" for hour in (8, 9, 10))
NOON = datetime(2024, 9, 6, 12, tzinfo=UTC)
HOURLY, LATER, WHOLE = (uuid.UUID(int=number) for number in (1, 2, 3))
FILES = {
    HOURLY: SeenFile(is_cumulative=False, slot=EIGHT, publication=1, is_current=True),
    LATER: SeenFile(is_cumulative=False, slot=NINE, publication=1, is_current=True),
    WHOLE: SeenFile(is_cumulative=True, slot="whole", publication=1, is_current=True),
}
A, B = b"a" * 16, b"b" * 16


def totals(**changes: object) -> Totals:
    """A quiet constituency, with changes."""
    facts: dict[str, object] = {
        "bulletins": 100,
        "votes": 90,
        "list_added": 120,
        "list_removed": 0,
        "has_voters_list": True,
        "is_revote_blocked": True,
        "last_activity": NOON,
    }
    return Totals(**(facts | changes))  # type: ignore[arg-type]  # the names are checked by Totals


# votes_exceed_bulletins


def test_one_vote_over_the_bulletins_is_found() -> None:
    """The identity is exact: there is no tolerance."""
    slots = [SlotCount(EIGHT, 10, 11)]
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=10, votes=11), slots, start_slot=EIGHT, has_whole=False
    )
    assert ("critical", 11, 10) == (
        finding.severity,
        finding.details["votes"],
        finding.details["bulletins"],
    )


def test_an_excess_that_later_bulletins_would_hide_is_still_found() -> None:
    """Cumulative over the slots in order, not only at the end."""
    slots = [SlotCount(EIGHT, 10, 12), SlotCount(NINE, 30, 20)]
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=40, votes=32), slots, start_slot=EIGHT, has_whole=False
    )
    assert EIGHT == finding.details["slot"]


def test_an_hour_with_more_votes_than_bulletins_is_normal() -> None:
    """People vote minutes after their bulletin: a tenth of clean hours look like this."""
    slots = [SlotCount(EIGHT, 20, 10), SlotCount(NINE, 5, 12)]
    assert [] == rules.votes_exceed_bulletins(
        totals(bulletins=25, votes=22), slots, start_slot=EIGHT, has_whole=False
    )


@pytest.mark.parametrize(
    ("slots", "start_slot", "has_whole", "severity"),
    [
        ([EIGHT, NINE, TEN], EIGHT, False, "critical"),
        ([EIGHT, TEN], EIGHT, False, "warning"),
        ([EIGHT, NINE], None, False, "warning"),
        ([EIGHT, TEN], None, True, "critical"),
    ],
)
def test_missing_hours_make_the_finding_provisional(
    slots: list[str], start_slot: str | None, has_whole: bool, severity: str
) -> None:
    """A missing file may hold the bulletins: then it is a warning, and says so."""
    counts = [SlotCount(slot, 1, 2) for slot in slots]
    number = len(slots)
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=number, votes=2 * number),
        counts,
        start_slot=start_slot,
        has_whole=has_whole,
    )
    assert severity == finding.severity
    assert finding.details["is_provisional"] == (severity == "warning")


def test_bulletins_of_a_whole_voting_file_count_from_the_start() -> None:
    """What only a cumulative file tells must never make a finding by its order."""
    slots = [SlotCount(NINE, 0, 5)]
    assert [] == rules.votes_exceed_bulletins(
        totals(bulletins=5, votes=5), slots, start_slot=EIGHT, has_whole=True
    )


# turnout_over_registered


@pytest.mark.parametrize(
    ("bulletins", "removed", "severity"),
    [(120, 0, None), (121, 0, "critical"), (115, 10, "warning"), (110, 10, None)],
)
def test_turnout_is_held_against_the_present_and_the_greatest_roll(
    bulletins: int, removed: int, severity: str | None
) -> None:
    """Over the greatest roll is critical, over what removals left is a warning."""
    found = rules.turnout_over_registered(totals(bulletins=bulletins, list_removed=removed))
    assert ([severity] if severity else []) == [finding.severity for finding in found]


def test_without_a_voters_list_nothing_is_said_about_turnout() -> None:
    """Unknown is not zero."""
    facts = totals(has_voters_list=False, list_added=0)
    assert [] == rules.turnout_over_registered(facts)


# duplicate_vote_key


@pytest.mark.parametrize(
    ("blocked", "severity"), [(True, "critical"), (None, "critical"), (False, "info")]
)
def test_two_votes_by_one_key_are_critical_unless_the_contract_allows_it(
    blocked: bool | None, severity: str
) -> None:
    """`isRevoteBlocked = false` makes it a normal thing, worth a note."""
    revote = Revote("key", ((NOON, "one"), (NOON, "two")))
    (finding,) = rules.duplicate_vote_key(totals(is_revote_blocked=blocked), [revote])
    assert ("key", severity) == (finding.subject, finding.severity)


# transaction_rewritten


def contents(*, body: str = "same", diff: str = "same") -> dict[bytes, Content]:
    """Content A, and content B that may differ from it."""
    return {A: Content({"body": "same"}, "same"), B: Content({"body": body}, diff)}


@pytest.mark.parametrize(
    ("events", "known", "is_found"),
    [
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(body="other"), True),
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(diff="other"), True),
        ([(HOURLY, 1, 1, A), (LATER, 1, 1, B)], contents(), False),
        (
            [(HOURLY, 1, 1, A), (HOURLY, 2, -1, None), (LATER, 1, 1, B)],
            contents(diff="other"),
            False,
        ),
        (
            [(HOURLY, 1, 1, A), (HOURLY, 2, -1, None), (LATER, 1, 1, B)],
            contents(body="other"),
            True,
        ),
        (
            [(HOURLY, 1, -1, None), (HOURLY, 2, 1, A), (LATER, 1, 1, B)],
            contents(diff="other"),
            True,
        ),
        (
            [
                (HOURLY, 1, 1, A),
                (HOURLY, 2, -1, None),
                (LATER, 1, 1, B),
                (WHOLE, 1, 1, A),
                (WHOLE, 2, -1, None),
                (WHOLE, 3, 1, B),
            ],
            contents(diff="other"),
            False,
        ),
    ],
)
def test_a_transaction_is_rewritten_when_no_rollback_explains_the_difference(
    events: list[tuple[uuid.UUID, int, int, bytes | None]],
    known: dict[bytes, Content],
    is_found: bool,
) -> None:
    """A transaction that was rolled back and run again may rightly have another diff."""
    history = [Event(*event) for event in events]
    assert is_found == rules.is_rewritten(history, FILES, known)
    assert is_found == rules.is_rewritten(history[::-1], FILES, known)


# slot_republished


@pytest.mark.parametrize(
    ("changed", "lost", "added", "severity"),
    [(1, 0, 0, "critical"), (0, 1, 0, "critical"), (0, 0, 3, "warning"), (0, 0, 0, "info")],
)
def test_a_republication_is_as_grave_as_what_it_did_to_rows(
    changed: int, lost: int, added: int, severity: str
) -> None:
    """Changed or gone is critical, only added a warning, only reformatted a note."""
    step = Republication(
        older_sha256="a",
        newer_sha256="b",
        added=added,
        gone=lost,
        gone_without_rollback=lost,
        changed=changed,
        is_part_of_older=False,
        tx_ids=(),
    )
    (finding,) = rules.slot_republished(EIGHT, [step])
    assert severity == finding.severity


# What a set of sightings means


def event(file: uuid.UUID, line: int, sign: int = 1, content: bytes | None = A) -> Event:
    """A sighting."""
    return Event(file, line, sign, content if sign > 0 else None)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([event(HOURLY, 1)], "accepted"),
        ([event(HOURLY, 1), event(WHOLE, 1)], "accepted"),
        ([event(HOURLY, 1), event(HOURLY, 2, -1)], "rolled_back"),
        ([event(HOURLY, 1), event(LATER, 1, -1)], "rolled_back"),
        ([event(HOURLY, 1), event(LATER, 1, -1), event(LATER, 2)], "accepted"),
        (
            [event(HOURLY, 1), event(LATER, 1, -1), event(WHOLE, 1), event(WHOLE, 2, -1)],
            "rolled_back",
        ),
        ([event(HOURLY, 1), event(WHOLE, 1), event(WHOLE, 2, -1)], "rolled_back"),
    ],
)
def test_the_net_sign_is_a_function_of_the_set_of_files(events: list[Event], status: str) -> None:
    """Interval files add up, a cumulative file tells the same again."""
    for order in (events, events[::-1]):
        verdict = decide(order, FILES)
        assert verdict is not None
        assert status == verdict.status("vote")


def test_what_only_superseded_publications_hold_is_withdrawn() -> None:
    """Kept, marked, not counted; withdrawn wins over everything else."""
    files = {HOURLY: FILES[HOURLY]._replace(is_current=False)}
    verdict = decide([event(HOURLY, 1), event(HOURLY, 2, -1)], files)
    assert verdict is not None
    assert "withdrawn" == verdict.status("vote_rejected")


def test_the_content_shown_is_that_of_the_last_row_in_slot_order() -> None:
    """By slot start, cumulative files last, then line; never by arrival."""
    verdict = decide([event(LATER, 1, content=B), event(HOURLY, 9)], FILES)
    assert verdict is not None
    assert B == verdict.shown.content_hash
    verdict = decide([event(WHOLE, 1), event(LATER, 1, content=B)], FILES)
    assert verdict is not None
    assert A == verdict.shown.content_hash


def test_a_transaction_belongs_to_the_first_interval_slot_that_holds_it() -> None:
    """Whatever came first: rules about chain order depend on it."""
    verdict = decide([event(LATER, 1), event(WHOLE, 1), event(HOURLY, 5)], FILES)
    assert verdict is not None
    assert EIGHT == verdict.slot


def test_a_rollback_alone_makes_no_transaction() -> None:
    """A −1 row never supplies content."""
    assert decide([event(HOURLY, 1, -1)], FILES) is None
