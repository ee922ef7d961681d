"""The audit log: append and read; nobody changes what was written."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ingestd.crud.base import Reader
from ingestd.models import AuditLog


class Audit(Reader[AuditLog]):
    """What people did to the tables by hand, the newest first."""

    def append(  # noqa: PLR0913 - one argument for each column
        self,
        session: Session,
        *,
        who: str,
        action: str,
        subject: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        at: datetime,
    ) -> AuditLog:
        """Write one deed down, in the same commit as the deed."""
        deed = AuditLog(
            id=uuid.uuid4(),
            at=at,
            who=who,
            action=action,
            subject=subject,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
        )
        session.add(deed)
        session.flush()
        return deed


audit = Audit(
    AuditLog,
    columns=[AuditLog.at, AuditLog.who, AuditLog.action, AuditLog.subject],
    usual_order="-at",
)
