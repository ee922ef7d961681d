"""Transactions: they come from files alone, so a person may look and set nothing."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from ingestd.schemas.base import Changes, Incoming, Moment, Outgoing


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


class TransactionBase(BaseModel):
    """The voting system's record: columns 1 to 11 of its row."""

    tx_id: str
    tx_type: int
    type: str
    version: int
    timestamp: Moment
    sender: str
    signature: str
    fee: int
    fee_asset_id: str
    raw_data: list[Any]
    operation_data: list[Any]
    extra: dict[str, Any]


class TransactionCreate(Incoming):
    """Empty on purpose: a transaction without a row in a file would be an invention."""


class TransactionUpdate(Changes):
    """Empty on purpose: a transaction changes with its files."""


class TransactionResponse(TransactionBase, Outgoing):
    """A transaction, what it counts as, and the row that it came from."""

    constituency_id: uuid.UUID
    status: str
    tally: str | None
    persons: int | None
    slot: str | None
    file_id: uuid.UUID
    line_number: int
    voter_key: int | None
    content_hash: Annotated[str, BeforeValidator(_hex)]
    block_height: int | None
