"""Constituencies: a person may name them; the counts come from files alone."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ingestd.schemas.base import Changes, Incoming, Measure, Moment, Stamped

# Base58 of 32 bytes; whether it decodes to them is the reader's question.
ContractId = Annotated[str, Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,44}$")]


class ConstituencyBase(BaseModel):
    """What a folder name or a person says of a constituency."""

    election_id: uuid.UUID | None = None
    name: str | None = None
    region_code: str | None = Field(default=None, max_length=10)
    region_name: str | None = None
    type: str | None = Field(default=None, max_length=50)
    voting_start: Moment | None = None
    voting_end: Moment | None = None


class ConstituencyCreate(ConstituencyBase, Incoming):
    """A constituency known before its first file."""

    contract_id: ContractId


class ConstituencyUpdate(ConstituencyBase, Changes):
    """Names and times put right by hand; the contract is the identity and stays."""


class ConstituencyResponse(ConstituencyBase, Stamped):
    """A constituency with its totals; `registered_voters` is null while unknown."""

    contract_id: str
    named_by: str | None
    status: str
    timezone: str | None
    registered_voters: int | None
    bulletins_issued: int
    votes_cast: int
    votes_rejected: int
    participation_rate: Measure
    anomaly_score: Measure
    first_activity: Moment | None
    last_activity: Moment | None
    dimension: list[Any] | None
    published_results: list[Any] | None
    is_revote_blocked: bool | None
