"""Evaluation: what the evaluator wrote, held against what it would write now."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.models import Evaluation, EvaluationDue
from ingestd.pipeline import stats
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.rules import RULESET
from ingestd.pipeline.standard import Standard
from ingestd.pipeline.touched import start_of

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Thresholds


def is_judged_otherwise(session: Session, constituency_id: uuid.UUID | None, standard: str) -> bool:
    """Whether alerts were raised by settings other than these, and the daemon will judge anew.

    Where the rules themselves are others, a repair may do so.
    """
    judged_by = session.scalar(select(Evaluation.judged_by))
    if judged_by is not None and judged_by != standard:
        former = Standard.read(judged_by)
        if former is not None and former.ruleset == RULESET:
            return True
    marked = (EvaluationDue.constituency_id == constituency_id, EvaluationDue.is_anew)
    return session.scalar(select(EvaluationDue.id).where(*marked).limit(1)) is not None


def check_evaluation(
    session: Session, contracts: Mapping[uuid.UUID, str], thresholds: Thresholds, standard: str
) -> Iterator[Difference]:
    """Compare hours, scores and statistical alerts with what the same settings make of them.

    Where something is due, or was judged by other settings, the daemon has yet to do its work.
    """
    judged_by = session.scalar(select(Evaluation.judged_by))
    if judged_by != standard or stats.has_due(session):
        return
    # numpy takes a while to import.
    from ingestd.pipeline.evaluator import unlike  # noqa: PLC0415

    for one, hour, what in unlike(session, thresholds):
        about = "its evaluation" if hour is None else f"hour {start_of(hour):%Y-%m-%d %H}"
        yield Difference(
            code="evaluation_wrong",
            about=f"{about} of {contracts[one] if one else 'all constituencies'}",
            what=what,
            mend=Mend.EVALUATE,
            constituency_id=one,
        )
