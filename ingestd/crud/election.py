"""Elections."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.crud.base import Crud
from ingestd.models import Election
from ingestd.schemas import ElectionCreate, ElectionUpdate


class Elections(Crud[Election, ElectionCreate, ElectionUpdate]):
    """Elections; the only writes are a person's."""

    def by_name(self, session: Session, name: str) -> Election | None:
        """The election with exactly this (tidied) name."""
        query = select(Election).where(Election.name == name).order_by(Election.id)
        return session.scalars(query.limit(1)).first()


elections = Elections(
    Election,
    columns=[
        Election.name,
        Election.country,
        Election.type,
        Election.status,
        Election.start_date,
        Election.end_date,
    ],
    usual_order="name",
)
