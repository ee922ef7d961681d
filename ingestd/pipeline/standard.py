"""Standard: by which settings what is stored was judged, and what to judge again when they change.

Thresholds and what is known of elections may change between two starts, or on SIGHUP. What is
stored was judged by the former ones: each constituency that is held to something else now is
marked in the same commit that notes the new ones, and worked off one by one, after any kill.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ingestd.elections import Elections
from ingestd.job_state import QUEUED
from ingestd.models import (
    Constituency,
    Election,
    Evaluation,
    EvaluationDue,
    FileProcessing,
    table_of,
)
from ingestd.pipeline import alerts, stats
from ingestd.pipeline.amend import amending
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.rules import RULESET
from ingestd.pipeline.slot import place_of
from ingestd.pipeline.touched import Touched, chunks, insert_missing
from ingestd.thresholds import Alerts, Rules

due, turn = table_of(EvaluationDue), table_of(Evaluation)
job = table_of(FileProcessing).c


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """What is stored is judged by this; `statistics` as its settings are written."""

    alerts: Alerts
    elections: Elections
    statistics: Mapping[str, Any]
    ruleset: str = RULESET

    def text(self) -> str:
        """All of it in one form, so that it can be kept and compared."""
        told = self.alerts.model_dump(mode="json")
        for key in ("elections", "types"):
            # What an election leaves to the others must stay so when it is read again.
            tables: Mapping[str, Rules] = getattr(self.alerts, key)
            told[key] = {
                name: rules.model_dump(mode="json", exclude_unset=True)
                for name, rules in tables.items()
            }
        whole = {
            "ruleset": self.ruleset,
            "alerts": told,
            "elections": self.elections.model_dump(mode="json"),
            "statistics": self.statistics,
        }
        return orjson.dumps(whole, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def read(cls, text: str | None) -> Standard | None:
        """The one that was kept; None where there is none, or none that this program can read."""
        try:
            told = orjson.loads(text or "")
            return cls(
                alerts=Alerts.model_validate(told["alerts"]),
                elections=Elections.model_validate(told["elections"]),
                statistics=told["statistics"],
                ruleset=told["ruleset"],
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError):
            return None

    def rules_for(self, election: str | None, type_: str | None) -> Rules:
        """What an election is held to; `type_` where its settings name none."""
        known = self.elections.get(election)
        return self.alerts.for_election(election, known.type if known else type_)

    def voting_of(self, election: str | None) -> tuple[datetime | None, datetime | None]:
        """When the settings say that the voting of an election is, as its row tells it."""
        known = self.elections.get(election)
        return (known.moment(known.starts), known.moment(known.ends)) if known else (None, None)


def take_up(session: Session, now: Standard, at: datetime) -> int | None:
    """Note what holds from now on, and mark what was judged otherwise; None: nothing changed.

    Gives how many constituencies are to be looked at again; the caller commits.
    """
    insert_missing(session, turn, [{"id": 1, "generation": 0}])
    text = now.text()
    kept = session.scalar(select(turn.c.judged_by).where(turn.c.id == 1).with_for_update())
    if kept == text:
        return None
    former = Standard.read(kept)
    anew = _held_otherwise(session, former, now)
    _describe(session, former, now.elections)
    anew |= _assign(session, former, now.elections)
    alerts.note_refused_files(session, None, at, now.alerts)
    for constituency_id in sorted(anew):
        stats.mark_due(session, constituency_id, is_anew=True)
    if not anew and (one := session.scalar(select(Constituency.id).limit(1))):
        # One mark is enough for the evaluator, which holds everything against everything.
        stats.mark_due(session, one)
    session.execute(update(turn).where(turn.c.id == 1).values(judged_by=text))
    return len(anew)


def _held_otherwise(session: Session, former: Standard | None, now: Standard) -> set[uuid.UUID]:
    """Find the constituencies whose own rules have other thresholds now."""
    c = Constituency
    query = select(c.id, Election.name, Election.type).outerjoin(Election, c.election)
    found: set[uuid.UUID] = set()
    differs: dict[tuple[str | None, str | None], bool] = {}
    for key, name, type_ in session.execute(query):
        whose = name, type_
        if whose not in differs:
            differs[whose] = (
                former is None
                or former.ruleset != now.ruleset
                or former.rules_for(*whose) != now.rules_for(*whose)
                or former.voting_of(name) != now.voting_of(name)
            )
        if differs[whose]:
            found.add(key)
    return found


def _describe(session: Session, former: Standard | None, known: Elections) -> None:
    """Let the elections be what the settings say; one that they no longer name says nothing."""
    named = {*known.by_name, *(former.elections.by_name if former else ())}
    for election in session.scalars(select(Election).order_by(Election.id)):
        if election.name in named:
            stats.describe(election, known)
    session.flush()


def _assign(session: Session, former: Standard | None, known: Elections) -> set[uuid.UUID]:
    """Let constituencies belong where the settings, else their folders, say; give those changed."""
    named = {*known.contracts, *(former.elections.contracts if former else ())}
    changed: set[uuid.UUID] = set()
    names = {each.id: each.name for each in session.scalars(select(Election))}
    for each in session.scalars(select(Constituency).order_by(Constituency.id)):
        name = names.get(each.election_id) if each.election_id else None
        if each.contract_id in named:
            wanted = known.contracts.get(each.contract_id) or _told_by_folders(each)
            if wanted != name:
                stats.move_to(session, each, wanted, known)
                changed.add(each.id)
                name = wanted
        zone = known.zone_of(name, each.region_code)
        if each.timezone != zone:
            each.timezone = zone
            changed.add(each.id)  # its alerts tell local time
    session.flush()
    return changed


def _told_by_folders(constituency: Constituency) -> str | None:
    place = place_of(constituency.named_by) if constituency.named_by else None
    return place.election if place else None


def review_due(ingest: Ingest, should_stop: Callable[[], bool]) -> int:
    """Let the rules of every marked constituency look at all of it, each in a commit of its own.

    One of which a file is in work waits until that is done.

    Raises:
        StorageFault: the database did not answer; what is left stays marked.
    """
    with ingest.sessions() as session:
        marked = select(due.c.constituency_id).where(due.c.is_anew).distinct()
        keys = sorted(session.scalars(marked))
    reviewed = 0
    for key in keys:
        if should_stop():
            break
        with amending(ingest, key) as amendment:
            session = amendment.session
            mine = (due.c.constituency_id == key, due.c.is_anew)
            marks = session.scalars(select(due.c.id).where(*mine)).all()
            if not marks or _is_in_work(session, key):
                continue
            if session.get(Constituency, key) is not None:
                amendment.touch(Touched())  # everything is looked at, nothing counted
                alerts.note_refused_files(session, key, ingest.clock(), ingest.terms.alerts)
            for chunk in chunks(sorted(marks)):
                # They stay as marks for the evaluator: a finding may lift the score.
                session.execute(update(due).where(due.c.id.in_(chunk)).values(is_anew=False))
            reviewed += 1
    return reviewed


def _is_in_work(session: Session, constituency_id: uuid.UUID) -> bool:
    number = session.scalar(
        select(func.count()).where(
            job.constituency_id == constituency_id,
            job.status.in_(QUEUED),
            job.checkpoint_line > 0,
        )
    )
    return bool(number)
