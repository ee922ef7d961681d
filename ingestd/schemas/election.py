"""Elections, as a person enters and sees them."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ingestd.schemas.base import Changes, Incoming, Moment, Name, Stamped

ElectionStatus = Literal["scheduled", "active", "completed"]


class ElectionBase(BaseModel):
    """What is said of an election besides its name."""

    country: str | None = Field(default=None, max_length=100)
    type: str | None = Field(default=None, max_length=50)
    description: str | None = None
    timezone: str | None = Field(default=None, max_length=50)
    start_date: Moment | None = None
    end_date: Moment | None = None


class ElectionInput(ElectionBase):
    """Both dates given together are in order."""

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        if self.start_date and self.end_date and self.end_date < self.start_date:
            raise ValueError("end_date is before start_date")
        return self


class ElectionCreate(ElectionInput, Incoming):
    """A new election."""

    name: Name
    status: ElectionStatus = "active"


class ElectionUpdate(ElectionInput, Changes):
    """A change of an election; its name is its identity and stays."""

    never_null: ClassVar[frozenset[str]] = frozenset({"status"})

    status: ElectionStatus | None = None


class ElectionResponse(ElectionBase, Stamped):
    """An election."""

    name: str
    status: str
