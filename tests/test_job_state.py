"""The states of a job and the moves between them."""

from ingestd.job_state import DELIVERED, MOVES, QUEUED, JobState, may_move


def test_every_state_has_its_moves() -> None:
    """A state that the table forgets would be a trap."""
    assert set(JobState) == set(MOVES)


def test_a_completed_job_can_only_be_superseded() -> None:
    """What is in the tables is never processed again."""
    assert {JobState.SUPERSEDED} == MOVES[JobState.COMPLETED]
    assert not may_move(JobState.COMPLETED, JobState.PROCESSING)


def test_a_duplicate_is_final() -> None:
    """It names its original and has no life of its own."""
    assert frozenset() == MOVES[JobState.DUPLICATE]


def test_every_state_can_be_reached() -> None:
    """No state is there for nothing (pending is where a job begins)."""
    reachable = {state for moves in MOVES.values() for state in moves}
    assert set(JobState) == reachable


def test_no_state_is_both_waiting_and_delivered() -> None:
    """A job asks for work or is in the tables, never both."""
    assert not QUEUED & DELIVERED
