"""A slot that comes again with other bytes: what counts, what is kept, what is said about it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import LostClaim, StopRequested
from ingestd.models import Alert, Constituency, FileProcessing, HourlyStats, Transaction
from ingestd.pipeline.ingest import Ingest

from .conftest import Clock, Databases, DropFile, Voting, csv_of, rolled_back, terms_in, tx_of
from .oracle import differences, snapshot, unsound
from .running import open_sessions

Sessions = sessionmaker[Session]
SLOT = "2024-09-06_0800-0900"


def open_alerts(sessions: Sessions) -> dict[str, Alert]:
    """The open alerts by rule (one of each in these tests)."""
    with sessions() as session:
        found = list(session.scalars(select(Alert).where(Alert.cleared_at.is_(None))))
    by_rule = {alert.type: alert for alert in found}
    assert len(found) == len(by_rule)
    return by_rule


def status_of(sessions: Sessions, row: str) -> str:
    """Where the transaction of a row stands."""
    with sessions() as session:
        query = select(Transaction.status).where(Transaction.tx_id == tx_of(row))
        return session.scalars(query).one()


def publications(sessions: Sessions) -> list[tuple[int, str]]:
    """The numbers and states of all jobs that are no duplicates."""
    with sessions() as session:
        jobs = session.execute(
            select(FileProcessing.publication, FileProcessing.status)
            .where(FileProcessing.duplicate_of_id.is_(None))
            .order_by(FileProcessing.publication)
        )
        return [(job.publication, job.status) for job in jobs]


def votes_cast(sessions: Sessions) -> int:
    """What the one constituency counts."""
    with sessions() as session:
        return session.scalars(select(Constituency.votes_cast)).one()


def rewritten(row: str) -> str:
    """The row with another signature."""
    cells = row.split(";")
    cells[2] = Voting().new_id(64)
    return ";".join(cells)


def spaced(row: str) -> str:
    """The row with spaces in its JSON."""
    return re.sub(r'","', '", "', row)


# What differs -------------------------------------------------------------------------------


@pytest.mark.promise(11)
def test_a_row_that_is_gone_is_withdrawn_and_never_deleted(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Counts follow the newer publication; the older one's row is kept as evidence."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(8), rows[:-1]))
    assert [(1, "superseded"), (2, "completed")] == publications(sessions)
    assert ("withdrawn", 2) == (status_of(sessions, rows[-1]), votes_cast(sessions))
    alerts = open_alerts(sessions)
    assert {"slot_republished", "history_withdrawn"} == alerts.keys()
    assert {"critical"} == {alert.severity for alert in alerts.values()}
    assert [tx_of(rows[-1])] == alerts["history_withdrawn"].details["tx_ids"]
    assert alerts["slot_republished"].details["perhaps_an_older_copy"]
    assert [] == unsound(sessions)


@pytest.mark.promise(11)
def test_a_row_that_changed_shows_its_newer_content(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """And the alert names it."""
    rows = voting.ballots(8, 3)
    changed = rewritten(rows[1])
    ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(8), [rows[0], changed, *rows[2:]]))
    with sessions() as session:
        query = select(Transaction.signature).where(Transaction.tx_id == tx_of(changed))
        assert [changed.split(";")[2]] == list(session.scalars(query))
    alerts = open_alerts(sessions)
    assert {"slot_republished"} == alerts.keys()
    told = alerts["slot_republished"]
    assert ("critical", 1, 0, 0, [tx_of(changed)]) == (
        told.severity,
        told.details["changed"],
        told.details["gone"],
        told.details["added"],
        told.details["tx_ids"],
    )
    assert [] == unsound(sessions)


@pytest.mark.promise(11)
def test_rows_that_were_added_are_a_warning(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A file that was published too early is no forgery."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows[:4]))
    ingest.take(drop_file(voting.name(8), rows))
    told = open_alerts(sessions)["slot_republished"]
    assert ("warning", 2, 3) == (told.severity, told.details["added"], votes_cast(sessions))
    assert not told.details["perhaps_an_older_copy"]


def test_the_same_rows_in_another_form_are_only_worth_a_note(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Spaces in JSON, line ends and order are no content."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    before = snapshot(sessions)
    ingest.take(drop_file(voting.name(8), "\r\n".join(map(spaced, reversed(rows))).encode()))
    after = snapshot(sessions)
    assert ["slot_republished"] == list(open_alerts(sessions))
    assert "info" == open_alerts(sessions)["slot_republished"].severity
    assert before["hourly_stats"] == after["hourly_stats"]
    assert before["constituency"] == after["constituency"]
    assert [(1, "superseded"), (2, "completed")] == publications(sessions)


def test_a_rollback_in_another_file_excuses_a_row_that_is_gone(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Whichever comes first, the rollback or the publication without the row."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(8), rows[:-1]))
    assert "critical" == open_alerts(sessions)["slot_republished"].severity
    ingest.take(drop_file(voting.name(9), [rolled_back(rows[-1])]))
    alerts = open_alerts(sessions)
    assert {"slot_republished"} == alerts.keys()
    assert ("info", 1, 0) == (
        alerts["slot_republished"].severity,
        alerts["slot_republished"].details["gone"],
        alerts["slot_republished"].details["gone_without_rollback"],
    )
    # A current file speaks of it, and says that it was rolled back.
    assert "rolled_back" == status_of(sessions, rows[-1])
    assert [] == unsound(sessions)


# Several of them ----------------------------------------------------------------------------


@pytest.mark.promise(11)
def test_the_third_publication_counts_and_the_alert_speaks_of_all(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """One alert for the slot, not one for each step."""
    rows = voting.ballots(8, 4)
    for content in (rows[:6], rows[:4], rows):
        ingest.take(drop_file(voting.name(8), content))
    assert [(1, "superseded"), (2, "superseded"), (3, "completed")] == publications(sessions)
    alerts = open_alerts(sessions)
    assert {"slot_republished"} == alerts.keys()
    assert (3, 2, 4) == (
        len(alerts["slot_republished"].details["publications"]),
        alerts["slot_republished"].details["gone"],
        alerts["slot_republished"].details["added"],
    )
    assert 4 == votes_cast(sessions)
    assert [] == unsound(sessions)


def test_a_superseded_publication_that_comes_again_changes_nothing(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """It may be an old copy; to make it count takes a person."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(8), rows[:-1]))
    before = snapshot(sessions)
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    assert "duplicate" == job.status
    assert [] == differences(before, snapshot(sessions))


def test_an_earlier_publication_can_be_made_current(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """What it holds counts again, and what only the other held is withdrawn."""
    rows = voting.ballots(8, 3)
    (first,) = ingest.take(drop_file(voting.name(8), rows[:4]))
    (second,) = ingest.take(drop_file(voting.name(8), rows[2:]))
    assert ("withdrawn", "accepted") == (status_of(sessions, rows[0]), status_of(sessions, rows[5]))
    ingest.make_current(first.id)
    assert ("accepted", "withdrawn") == (status_of(sessions, rows[0]), status_of(sessions, rows[5]))
    assert [(2, "superseded"), (3, "completed")] == publications(sessions)
    assert 2 == votes_cast(sessions)
    ingest.make_current(second.id)
    assert ("withdrawn", "accepted") == (status_of(sessions, rows[0]), status_of(sessions, rows[5]))
    assert [] == unsound(sessions)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_copy_without_a_slot_in_its_name_holds_nothing_back(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, place: int
) -> None:
    """Whenever it comes: what the next publication leaves out is withdrawn."""
    rows = voting.ballots(8, 3)
    drops = [(voting.name(8), rows), (f"again/{voting.name(8)}", rows[2:])]
    drops.insert(place, (f"{voting.contract}/hour.csv", rows))
    for name, content in drops:
        ingest.take(drop_file(name, content))
    assert "withdrawn" == status_of(sessions, rows[0])
    alerts = open_alerts(sessions)
    assert {SLOT} == {alerts[rule].subject for rule in ("history_withdrawn", "slot_republished")}
    assert [] == unsound(sessions)


def test_only_a_superseded_publication_can_be_made_current(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A quarantined one, for example, has no rows."""
    (job,) = ingest.take(drop_file(voting.name(8), ["torn"] * 30))
    with pytest.raises(LostClaim, match="only a superseded one"):
        ingest.make_current(job.id)


@pytest.mark.promise(11)
def test_an_older_publication_that_is_finished_late_does_not_count(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """It was stopped in the middle; meanwhile the newer one arrived."""
    rows = voting.ballots(8, 10)
    ingest.terms = replace(ingest.terms, batch_rows=5)
    older = drop_file(voting.name(8), rows)
    done: list[int] = []
    ingest.on_progress = lambda *_progress: done.append(1)
    ingest.should_stop = lambda: len(done) == 2
    with pytest.raises(StopRequested):
        ingest.take(older)
    ingest.should_stop = lambda: False
    ingest.take(drop_file(voting.name(8, " (1).csv"), rows[4:]))
    assert [(1, "pending"), (2, "completed")] == publications(sessions)
    ingest.take(older)
    assert [(1, "superseded"), (2, "completed")] == publications(sessions)
    assert ("withdrawn", "accepted") == (status_of(sessions, rows[0]), status_of(sessions, rows[5]))
    assert 8 == votes_cast(sessions)
    assert {"slot_republished", "history_withdrawn"} == open_alerts(sessions).keys()
    assert [] == unsound(sessions)


@pytest.mark.promise(11)
def test_a_withdrawn_row_that_another_file_holds_comes_back(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The alert about it is cleared by itself; the one about the slot stays."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(8), rows[:-1]))
    assert "withdrawn" == status_of(sessions, rows[-1])
    ingest.take(drop_file(f"{voting.contract}.csv", rows))
    assert ("accepted", 3) == (status_of(sessions, rows[-1]), votes_cast(sessions))
    assert {"slot_republished"} == open_alerts(sessions).keys()
    assert [] == unsound(sessions)


# Rewritten, or run again --------------------------------------------------------------------


def test_one_id_with_two_contents_is_rewritten(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Two current files contradict each other; the later slot is shown."""
    vote = voting.vote(485)
    ingest.take(drop_file(voting.name(8), [voting.issue(484), vote]))
    ingest.take(drop_file(voting.name(9), [rewritten(vote)]))
    alerts = open_alerts(sessions)
    assert {"transaction_rewritten"} == alerts.keys()
    assert tx_of(vote) == alerts["transaction_rewritten"].subject
    with sessions() as session:
        query = select(Transaction.signature).where(Transaction.tx_id == tx_of(vote))
        assert [rewritten(vote).split(";")[2]] == list(session.scalars(query))
    assert 1 == votes_cast(sessions)


def test_a_transaction_that_was_rolled_back_and_run_again_is_not_rewritten(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Accepted first, refused after the rollback: its diff may rightly differ."""
    vote = voting.vote(485, tx=voting.new_id())
    cells, failed = vote.split(";"), voting.vote(485, tx=tx_of(vote), failure="closed").split(";")
    again = ";".join([*cells[:9], failed[9], *cells[10:]])
    ingest.take(drop_file(voting.name(8), [voting.issue(484), vote]))
    ingest.take(drop_file(voting.name(9), [rolled_back(vote), again]))
    assert {} == open_alerts(sessions)
    assert ("rejected", 0) == (status_of(sessions, vote), votes_cast(sessions))
    assert [] == unsound(sessions)


def test_a_rewritten_row_is_no_longer_one_when_its_file_is_superseded(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Only current files contradict each other."""
    vote = voting.vote(485)
    ingest.take(drop_file(voting.name(8), [voting.issue(484), vote]))
    ingest.take(drop_file(voting.name(9), [rewritten(vote)]))
    assert {"transaction_rewritten"} == open_alerts(sessions).keys()
    ingest.take(drop_file(voting.name(9), [voting.issue(550)]))
    assert {"slot_republished"} == open_alerts(sessions).keys()
    with sessions() as session:
        query = select(Transaction.signature).where(Transaction.tx_id == tx_of(vote))
        assert [vote.split(";")[2]] == list(session.scalars(query))
    assert [] == unsound(sessions)


# Alerts -------------------------------------------------------------------------------------


def test_an_alert_is_raised_once(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Not once for each file that finds it again."""
    sender = voting.new_id(64)
    twice = [voting.issue(480), voting.issue(481)]
    twice += [voting.vote(minute, sender=sender) for minute in (485, 486)]
    ingest.take(drop_file(voting.name(8), twice))
    first = open_alerts(sessions)["duplicate_vote_key"]
    ingest.take(drop_file(f"{voting.contract}.csv", [*twice, *voting.ballots(8, 2)]))
    ingest.take(drop_file(voting.name(9), voting.ballots(9, 2)))
    again = open_alerts(sessions)["duplicate_vote_key"]
    assert (first.id, first.created_at, first.details) == (
        again.id,
        again.created_at,
        again.details,
    )


def test_an_alert_that_no_longer_holds_is_cleared_and_a_persons_side_is_kept(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """More votes than bulletins, until the hour before arrives; and again when it is withdrawn."""
    issues = [voting.issue(485), voting.issue(486)]
    ingest.take(drop_file(voting.name(9), [voting.vote(545), voting.vote(546)]))
    with sessions.begin() as session:
        alert = session.scalars(select(Alert)).one()
        alert.status, alert.notes = "investigating", [{"text": "asked the commission"}]
        alert.assigned_to = "Анна"
    ingest.take(drop_file(voting.name(8), issues))
    assert {} == open_alerts(sessions)
    with sessions() as session:
        cleared = session.scalars(select(Alert)).one()
    assert cleared.cleared_reason
    ingest.take(drop_file(voting.name(8), issues[:1]))
    again = open_alerts(sessions)["votes_exceed_bulletins"]
    for found in (cleared, again):
        assert ("investigating", [{"text": "asked the commission"}], "Анна") == (
            found.status,
            found.notes,
            found.assigned_to,
        )
    assert alert.id == again.id


def test_an_unknown_operation_that_is_shown_no_longer_is_no_alert(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A later hour shows another content of the transaction that raised it."""
    strange = voting.row("recountBallots", 485)
    usual = voting.row("startVoting", 485, tx=tx_of(strange))
    ingest.take(drop_file(voting.name(8), [strange]))
    assert {"unknown_operation"} == open_alerts(sessions).keys()
    ingest.take(drop_file(voting.name(9), [usual]))
    assert {"transaction_rewritten"} == open_alerts(sessions).keys()


# Any order ----------------------------------------------------------------------------------


def tables_of(
    databases: Databases, files: Iterable[tuple[str, list[str]]], drop_file: DropFile, clock: Clock
) -> Any:
    """The tables after these files, on a database of their own."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        ingest = Ingest(sessions, terms_in(drop_file("x").root, is_archiving=False), clock, "me:1")
        for number, (name, rows) in enumerate(files):
            ingest.take(drop_file(f"{number}/{name}", csv_of(rows)))
        assert [] == unsound(sessions)
        with sessions() as session:
            slots = session.execute(
                select(FileProcessing.slot, FileProcessing.slot_votes)
                .where(FileProcessing.status == "completed")
                .order_by(FileProcessing.slot)
            ).all()
        return snapshot(sessions), [tuple(slot) for slot in slots]


@pytest.mark.parametrize("is_blocked", [True, False])
def test_revotes_are_judged_by_what_the_contract_says_in_any_order(
    databases: Databases, drop_file: DropFile, voting: Voting, clock: Clock, is_blocked: bool
) -> None:
    """The file that says whether revotes are allowed may come last."""
    sender = voting.new_id(64)
    files = [
        (voting.name(7), [voting.create(430, isRevoteBlocked=is_blocked)]),
        (voting.name(8), [*voting.ballots(8, 4), voting.vote(500, sender=sender)]),
        (voting.name(9), [*voting.ballots(9, 4), voting.vote(550, sender=sender)]),
    ]
    first, *others = [
        tables_of(databases, order, drop_file, clock)[0] for order in itertools.permutations(files)
    ]
    (severity,) = [
        alert["severity"]
        for alert in first["alert"].values()
        if alert["type"] == "duplicate_vote_key"
    ]
    assert ("critical" if is_blocked else "info") == severity
    for other in others:
        assert [] == differences(first, other)


def test_a_ballot_belongs_to_the_first_slot_that_still_holds_it_in_any_order(
    databases: Databases, drop_file: DropFile, voting: Voting, clock: Clock
) -> None:
    """It moves on to the next slot when the first one is published without it."""
    vote = voting.vote(485)
    eight, again = (
        (voting.name(8), [voting.issue(484), vote]),
        (voting.name(8), [voting.issue(486)]),
    )
    nine = (voting.name(9), [vote])
    orders = [[eight, again, nine], [eight, nine, again], [nine, eight, again]]
    first, *others = [tables_of(databases, order, drop_file, clock) for order in orders]
    assert [("2024-09-06_0800-0900", 0), ("2024-09-06_0900-1000", 1)] == first[1]
    for other in others:
        assert [] == differences(first[0], other[0])
        assert first[1] == other[1]


def test_hours_vanish_with_the_last_row_that_they_counted(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A time that was corrected moves its row to another hour."""
    vote = voting.vote(485)
    ingest.take(drop_file(voting.name(8), [vote]))
    later = vote.split(";")
    later[4] = str(int(later[4]) + 3_600_000)
    ingest.take(drop_file(voting.name(8), [";".join(later)]))
    with sessions() as session:
        assert [9] == [hour.hour.hour for hour in session.scalars(select(HourlyStats))]
    assert [] == unsound(sessions)
