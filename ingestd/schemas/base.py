"""What every schema shares: strictness on the way in, attributes on the way out."""

from __future__ import annotations

import math
import uuid
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, model_validator


def _not_blank(text: str) -> str:
    if not (text := text.strip()):
        raise ValueError("must hold more than spaces")
    return text


def _finite(number: float | None) -> float | None:
    """JSON has no NaN."""
    return number if number is None or math.isfinite(number) else None


Name = Annotated[str, AfterValidator(_not_blank)]
Moment = AwareDatetime
Measure = Annotated[float | None, AfterValidator(_finite)]


class Incoming(BaseModel):
    """What a person may set; anything else is refused by name, not dropped in silence."""

    model_config = ConfigDict(extra="forbid")


class Changes(Incoming):
    """A change: what is not given stays as it is; `never_null` can be changed, not emptied."""

    never_null: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _is_not_emptied(self) -> Self:
        for name in sorted(self.never_null & self.model_fields_set):
            if getattr(self, name) is None:
                raise ValueError(f"{name} can't be null; leave it out to keep it")
        return self


class Outgoing(BaseModel):
    """What a row of a table looks like from outside."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID


class Stamped(Outgoing):
    """A row that says when it was written and last changed (wall clock)."""

    created_at: Moment
    updated_at: Moment
