"""Episodes: what lasts is one alert, and a person's decision about it outlives its first hour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd import crud
from ingestd.models import Alert
from ingestd.pipeline import surprises
from ingestd.pipeline.alerts import Settlement
from ingestd.pipeline.rules import Finding, Gap, missing_hour
from ingestd.pipeline.surprises import Group, Surprise
from ingestd.schemas import AlertUpdate
from ingestd.thresholds import Alerts

from .elections import Drawn, draw, key_of, twin, write
from .test_evaluator import QUIET, evaluator, put_back, take_away
from .test_evaluator import drawn as drawn  # noqa: PLC0414 - a fixture
from .test_peers import group_of

Sessions = sessionmaker[Session]
NOON = datetime(2024, 9, 12, 12, tzinfo=UTC)


def found(group: Group, rule: str, kind: str | None = None) -> list[Surprise]:
    """What one rule says."""
    return [
        each
        for each in surprises.find(group, surprises.figures_of(group))
        if each.finding.rule == rule and each.finding.details.get("kind") == kind
    ]


@pytest.fixture
def large() -> Drawn:
    """Four hundred constituencies of ten regions."""
    rolls = (2_000,) * 7 + (20_000,)
    return draw(np.random.default_rng(3), constituencies=400, regions=10, rolls=rolls)


def refuse_many(group: Group) -> None:
    """Three hours in which half of the votes are rejected."""
    group.counts["votes_rejected"][5, 24:27] = group.counts["votes"][5, 24:27] + 10


@dataclass(frozen=True)
class _Case:
    rule: str
    kind: str | None
    hours: tuple[int, ...]
    one: int | None


@pytest.mark.parametrize(
    "case",
    [
        _Case("rejected_share", None, (24, 25, 26), 5),
        _Case("region_correlated", None, (24, 25, 26), None),
        _Case("sustained_shift", None, tuple(range(24, 60)), 7),
        _Case("peer_outlier", "lag", (24, 25), 9),
        _Case("peer_outlier", "twin", (27, 28, 29), 3),
    ],
    ids=lambda case: case.kind or case.rule,
)
def test_hours_that_follow_each_other_are_one_alert(large: Drawn, case: _Case) -> None:
    """Of every statistical rule; the alert lists the hours and tells the worst one."""
    if case.rule == "region_correlated":
        # A region's own level follows at once: it must go on growing.
        large.bulletins[large.region == 0, 24:27] *= np.array([6, 40, 200])
    if case.rule == "sustained_shift":
        large.bulletins[7, 24:36] *= np.repeat([3, 9], 6)
    if case.kind == "lag":
        large.votes[9, 24:26] += 300
    if case.kind == "twin":
        large.roll[3] = 3_000
        large.bulletins[3] = large.bulletins[10:40].mean(axis=0) * 5
        twin(np.random.default_rng(1), large, 3, 4)
        large.bulletins[3, 27:30] += 60
    group = group_of(large)
    if case.rule == "rejected_share":
        refuse_many(group)
    told = [
        each
        for each in found(group, case.rule, case.kind)
        if each.one == case.one and set(case.hours) & set(each.hours)
    ]
    assert [case.hours] == [each.hours for each in told]
    details = told[0].finding.details
    blocks = len(case.hours) // 6 if case.rule == "sustained_shift" else len(case.hours)
    assert blocks == len(details["hours"])
    assert details["worst_hour"] in {each["hour"] for each in details["hours"]}


def test_the_regions_of_two_votings_have_alerts_of_their_own() -> None:
    """One of each begins a day later; both moved in the same hour."""
    told = []
    for seed, days in ((3, 0), (4, 1)):
        drawn = draw(np.random.default_rng(seed), constituencies=400, regions=10)
        drawn.bulletins[drawn.region == 0, 30 - 24 * days] *= 9
        group = group_of(drawn)
        later = replace(group, starts=group.starts + 24 * days)
        told += [each.finding.subject for each in found(later, "region_correlated")]
    assert 2 == len(told) == len(set(told))
    assert told[0].split(":")[-2:] == told[1].split(":")[-2:]


def test_one_subject_is_one_alert(sessions: Sessions) -> None:
    """Whatever a rule says: the first of two findings counts."""
    grave = replace(missing(2, 6), subject=SLOTS[2])
    assert [SLOTS[2]] == [*settle_missing(sessions, missing(2, 4), grave)]
    with sessions() as session:
        assert 2 == session.scalars(select(Alert)).one().details["number"]


def spike_of(sessions: Sessions) -> Alert:
    """The one standing spike of constituency 0."""
    with sessions() as session:
        query = select(Alert).where(Alert.type == "unusual_spike", Alert.cleared_at.is_(None))
        return session.scalars(query.where(Alert.constituency_id == key_of(0))).one()


def test_a_decision_holds_when_a_late_file_adds_an_earlier_hour(
    sessions: Sessions, drawn: Drawn
) -> None:
    """The subject is the first hour, and it changes; what a person said does not get lost."""
    drawn.stuff(0, QUIET - 1, 150)
    write(sessions, drawn, is_hourly=True)
    kept = take_away(sessions, 0, QUIET - 1)
    evaluator(sessions).work_off()
    first = spike_of(sessions)
    with sessions.begin() as session:
        answer = AlertUpdate(status="resolved", notes=["asked"], assigned_to="Anna")
        crud.alerts.answer(session, first.id, answer, at=NOON)
    put_back(sessions, 0, kept)
    evaluator(sessions).work_off()
    both = spike_of(sessions)
    assert both.subject < first.subject
    assert ("resolved", ["asked"], "Anna") == (both.status, both.notes, both.assigned_to)
    with sessions() as session:
        # Another hour of it is new evidence: it is asked about again, with the notes.
        assert both.id in {one.id for one in crud.alerts.open(session).items}
    again = take_away(sessions, 0, QUIET - 1)
    evaluator(sessions).work_off()
    with sessions() as session:
        assert first.id not in {one.id for one in crud.alerts.open(session).items}
    assert ("resolved", ["asked"]) == (spike_of(sessions).status, spike_of(sessions).notes)
    put_back(sessions, 0, again)
    evaluator(sessions).work_off()
    assert (both.id, ["asked"]) == (spike_of(sessions).id, spike_of(sessions).notes)


SLOTS = [f"2024-09-06_{hour:02d}00-{hour + 1:02d}00" for hour in range(8, 20)]


def missing(first: int, past: int) -> Finding:
    """Hours that nobody delivered."""
    slots = tuple(SLOTS[first:past])
    lacking = (1,) * len(slots)
    gap = Gap(slots=slots, lacking=lacking, constituencies=9)
    return missing_hour(gap, Alerts().missing_hour)


def settle_missing(sessions: Sessions, *found: Finding) -> dict[str, Any]:
    """Let the alerts say so; gives a person's side of each, by the hour in which it begins."""
    with sessions.begin() as session:
        Settlement(session, None, NOON)("missing_hour", found)
    with sessions() as session:
        return {
            alert.subject: (alert.status, alert.notes, alert.assigned_to, alert.cleared_at)
            for alert in session.scalars(select(Alert))
        }


def test_what_a_person_wrote_outlives_episodes_that_join_and_part(sessions: Sessions) -> None:
    """Nothing that another episode was answered takes its place; notes are put behind notes."""
    early, late, third = SLOTS[2], SLOTS[6], SLOTS[9]
    parted = missing(2, 4), missing(6, 8)
    settle_missing(sessions, *parted)
    with sessions.begin() as session:
        ids = {alert.subject: alert.id for alert in session.scalars(select(Alert))}
        crud.alerts.answer(session, ids[early], AlertUpdate(assigned_to="Bob"), at=NOON)
        answer = AlertUpdate(status="resolved", notes=["lost"], assigned_to="Anna")
        crud.alerts.answer(session, ids[late], answer, at=NOON)
    for _ in range(2):
        told = settle_missing(sessions, missing(2, 8))
        assert ("active", ["lost"], "Bob", None) == told[early]
        assert ("resolved", ["lost"], "Anna", NOON) == told[late]
        told = settle_missing(sessions, *parted)
        assert ("active", ["lost"], "Bob", None) == told[early]
        assert ("resolved", ["lost"], "Anna", None) == told[late]
    # One of which nobody said anything takes what was said of what it is a part of.
    settle_missing(sessions, missing(2, 4), missing(6, 8), missing(9, 10))
    settle_missing(sessions, missing(2, 4), missing(6, 10))
    told = settle_missing(sessions, missing(2, 4), missing(9, 10))
    assert ("resolved", ["lost"], "Anna", None) == told[third]
