"""An alert is raised once for each finding, and what a person wrote on it stays."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ingestd.models import Alert

from .conftest import Did, Voting, csv_of
from .oracle import unsound
from .running import Start, is_empty, open_sessions, soon

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

FOUND = {
    "duplicate_vote_key",
    "file_rejected",
    "history_withdrawn",
    "slot_republished",
    "unknown_operation",
    "votes_exceed_bulletins",
}


def alerts_on(url: str) -> dict[Any, tuple[str, str, datetime | None, datetime | None]]:
    """What the engine says: rule, subject, when in the data, and whether it still holds."""
    with open_sessions(url) as sessions, sessions() as session:
        return {
            alert.id: (alert.type, alert.subject, alert.detected_at, alert.cleared_at)
            for alert in session.scalars(select(Alert))
        }


def look_into_all(url: str) -> int:
    """A person writes on every alert; how many there are."""
    with open_sessions(url) as sessions, sessions.begin() as session:
        alerts = session.scalars(select(Alert)).all()
        for alert in alerts:
            alert.status = "investigating"
            alert.assigned_to = "observer"
            alert.notes = [{"text": f"asked about {alert.subject}"}]
        return len(alerts)


def looked_into(url: str) -> int:
    """How many alerts still say what that person wrote."""
    with open_sessions(url) as sessions, sessions() as session:
        return sum(
            (alert.status, alert.assigned_to, alert.notes)
            == ("investigating", "observer", [{"text": f"asked about {alert.subject}"}])
            for alert in session.scalars(select(Alert))
        )


def telling_files(voting: Voting) -> list[tuple[str, bytes]]:
    """Files in which every rule of `FOUND` finds something."""
    sender = voting.new_id(64)
    first = voting.ballots(8, 6)
    again = [voting.vote(9 * 60 + minute, sender=sender) for minute in range(3)]
    strange = [voting.row("burnBallots", 10 * 60 + minute) for minute in range(3)]
    return [
        (voting.name(7), csv_of([voting.create(7 * 60, isRevoteBlocked=True)])),
        (voting.name(8), csv_of(first)),
        (voting.name(8), csv_of(first[:-2])),
        (voting.name(9), csv_of(again)),
        (voting.name(10), csv_of(strange)),
        (voting.name(11), csv_of(["torn"] * 50)),
    ]


@pytest.mark.promise(31)
def test_an_alert_is_raised_once_through_kills_restarts_and_the_same_files_again(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Its id, its time and a person's notes are the same afterwards."""
    inbox = tmp_path / "inbox"
    files = telling_files(voting)

    def drop_all(*, folder: str) -> None:
        (inbox / folder).mkdir()
        for name, content in files:
            (inbox / folder / f"{name}.tmp").write_bytes(content)
            (inbox / folder / f"{name}.tmp").rename(inbox / folder / name)
            soon(lambda: is_empty(inbox))

    daemon = start_on_each(WATCH__SETTLE_SECONDS="0", INGEST__BATCH_ROWS="2")
    drop_all(folder="first")
    found = alerts_on(migrated_url)
    assert FOUND == {alert[0] for alert in found.values()}
    assert len(found) == look_into_all(migrated_url)
    for kill in range(2):
        drop_all(folder=f"again {kill}")
        daemon.stop()
        # Killed in a file of the same constituency, whose alerts are settled anew by it; of an
        # earlier hour, since the time of some alerts is that of the newest row.
        (inbox / voting.name(5 + kill)).write_bytes(csv_of(voting.ballots(5 + kill, 5)))
        daemon = start_on_each(
            wait=False,
            WATCH__SETTLE_SECONDS="0",
            INGEST__BATCH_ROWS="2",
            TEST__FREEZE_AT="stored:2",
        )
        daemon.wait_until_frozen().kill()
        daemon = start_on_each(WATCH__SETTLE_SECONDS="0", INGEST__BATCH_ROWS="2")
        soon(lambda: is_empty(inbox))
    assert 0 == daemon.stop()
    assert found == alerts_on(migrated_url)
    assert len(found) == looked_into(migrated_url)
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    did(f"{len(found)} alerts of {len(FOUND)} rules, 2 SIGKILLs, every file dropped 3 times")
