"""By-id reads and small writes for the command line and the API; never on the ingest path.

with sessions.begin() as session:
    page = crud.jobs.find(session, statuses={JobState.FAILED})
"""

from ingestd.crud.alert import SEVERITIES, alerts
from ingestd.crud.audit_log import audit
from ingestd.crud.base import (
    DEFAULT_LIMIT,
    LIMIT_CAP,
    Crud,
    Page,
    Reader,
    UnknownColumnError,
    Window,
)
from ingestd.crud.constituency import constituencies
from ingestd.crud.election import elections
from ingestd.crud.file_processing import Totals, jobs
from ingestd.crud.hourly_stats import NationalHour, hours
from ingestd.crud.notice import Standing, notices
from ingestd.crud.reject import rejects
from ingestd.crud.transaction import transactions

__all__ = [
    "DEFAULT_LIMIT",
    "LIMIT_CAP",
    "SEVERITIES",
    "Crud",
    "NationalHour",
    "Page",
    "Reader",
    "Standing",
    "Totals",
    "UnknownColumnError",
    "Window",
    "alerts",
    "audit",
    "constituencies",
    "elections",
    "hours",
    "jobs",
    "notices",
    "rejects",
    "transactions",
]
