"""Revotes: the second vote of a sender is one only as long as the first one stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import StopRequested
from ingestd.pipeline.forget import forget
from ingestd.pipeline.ingest import Ingest

from .conftest import DropFile, Voting
from .oracle import unsound
from .test_forget import note_nothing
from .test_two_at_once import go_on, stop_after_a_batch

Sessions = sessionmaker[Session]
pytestmark = pytest.mark.promise(11)


def test_a_forgotten_vote_makes_a_revote_of_another_hour_the_only_one(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, voting: Voting
) -> None:
    """The hour in which it was a revote is in no file that was forgotten."""
    sender = voting.new_id(64)
    (job,) = ingest.take(drop_file(voting.name(8), [voting.vote(500, sender=sender)]))
    ingest.take(drop_file(voting.name(9), [voting.vote(560, sender=sender)]))
    forget(ingest, job.id, note_nothing)
    assert [] == unsound(sessions)


def test_a_refused_vote_makes_a_revote_of_another_hour_the_only_one(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, voting: Voting
) -> None:
    """A file was counted with what another one held that was then undone."""
    ingest.terms = replace(ingest.terms, batch_rows=2)
    sender = voting.new_id(64)
    rows = [voting.vote(500, sender=sender), *voting.ballots(8, 2), *["no row"] * 300]
    found = drop_file(voting.name(8), rows)
    stop_after_a_batch(ingest)
    with pytest.raises(StopRequested):
        ingest.take(found)
    go_on(ingest)
    ingest.take(drop_file(voting.name(9), [voting.vote(560, sender=sender)]))
    assert ["quarantined"] == [str(job.status) for job in ingest.take(found)]
    assert [] == unsound(sessions)


def test_a_vote_that_now_shows_another_sender_leaves_a_revote_the_only_one(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, voting: Voting
) -> None:
    """A later publication rewrote it."""
    sender, tx = voting.new_id(64), voting.new_id()
    ingest.take(drop_file(f"a/{voting.name(8)}", [voting.vote(500, tx=tx, sender=sender)]))
    ingest.take(drop_file(voting.name(9), [voting.vote(560, sender=sender)]))
    ingest.take(drop_file(f"b/{voting.name(8)}", [voting.vote(500, tx=tx)]))
    assert [] == unsound(sessions)
