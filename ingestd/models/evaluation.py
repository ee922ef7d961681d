"""What the evaluator of the statistical rules has to do, and who is at it."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, Integer, Text, Uuid, false
from sqlalchemy.orm import Mapped, mapped_column

from ingestd.models.base import Base


class EvaluationDue(Base):
    """A constituency whose counts changed; written in that commit, deleted when evaluated.

    One row for each commit and no key but its own, so that no worker ever waits for another or
    for the evaluator.
    """

    __tablename__ = "evaluation_due"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    # No foreign key: it is a note, and the constituency may be gone when it is read.
    constituency_id: Mapped[uuid.UUID] = mapped_column(Uuid())
    # Its own rules are to look at all of it again: what they are held to has changed.
    is_anew: Mapped[bool] = mapped_column(default=False, server_default=false())


class Evaluation(Base):
    """Whose turn it is: one row; a pass takes the next generation, and writes only while it is."""

    __tablename__ = "evaluation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    busy_until: Mapped[datetime | None]
    # By which settings what is stored was judged (`pipeline.standard`), as JSON.
    judged_by: Mapped[str | None] = mapped_column(Text)
    # What was here when the rules about all constituencies looked, and when they read every id.
    feed_seen: Mapped[str | None] = mapped_column(Text)
    ids_seen: Mapped[str | None] = mapped_column(Text)
