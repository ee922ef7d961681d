"""What goes in and out, one module per entity: Base, Create, Update and Response."""

from ingestd.schemas.alert import AlertBase, AlertCreate, AlertResponse, AlertUpdate
from ingestd.schemas.audit_log import AuditLogResponse
from ingestd.schemas.constituency import (
    ConstituencyBase,
    ConstituencyCreate,
    ConstituencyResponse,
    ConstituencyUpdate,
)
from ingestd.schemas.election import ElectionBase, ElectionCreate, ElectionResponse, ElectionUpdate
from ingestd.schemas.file_processing import (
    FileProcessingBase,
    FileProcessingCreate,
    FileProcessingResponse,
    FileProcessingUpdate,
)
from ingestd.schemas.hourly_stats import (
    HourlyStatsBase,
    HourlyStatsCreate,
    HourlyStatsResponse,
    HourlyStatsUpdate,
)
from ingestd.schemas.notice import NoticeResponse
from ingestd.schemas.reject import RejectResponse
from ingestd.schemas.transaction import (
    TransactionBase,
    TransactionCreate,
    TransactionResponse,
    TransactionUpdate,
)

__all__ = [
    "AlertBase",
    "AlertCreate",
    "AlertResponse",
    "AlertUpdate",
    "AuditLogResponse",
    "ConstituencyBase",
    "ConstituencyCreate",
    "ConstituencyResponse",
    "ConstituencyUpdate",
    "ElectionBase",
    "ElectionCreate",
    "ElectionResponse",
    "ElectionUpdate",
    "FileProcessingBase",
    "FileProcessingCreate",
    "FileProcessingResponse",
    "FileProcessingUpdate",
    "HourlyStatsBase",
    "HourlyStatsCreate",
    "HourlyStatsResponse",
    "HourlyStatsUpdate",
    "NoticeResponse",
    "RejectResponse",
    "TransactionBase",
    "TransactionCreate",
    "TransactionResponse",
    "TransactionUpdate",
]
