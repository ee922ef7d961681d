"""The tables. One module per entity."""

from ingestd.models.alert import Alert
from ingestd.models.audit import AuditLog
from ingestd.models.base import Base, UtcDateTime, table_of
from ingestd.models.constituency import Constituency
from ingestd.models.election import Election
from ingestd.models.evaluation import Evaluation, EvaluationDue
from ingestd.models.file_processing import FileProcessing
from ingestd.models.hourly_stats import HourlyStats
from ingestd.models.notice import Notice
from ingestd.models.reject import Reject
from ingestd.models.transaction import Sighting, Transaction, TransactionContent

__all__ = [
    "Alert",
    "AuditLog",
    "Base",
    "Constituency",
    "Election",
    "Evaluation",
    "EvaluationDue",
    "FileProcessing",
    "HourlyStats",
    "Notice",
    "Reject",
    "Sighting",
    "Transaction",
    "TransactionContent",
    "UtcDateTime",
    "table_of",
]
