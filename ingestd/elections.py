"""Elections as a person knows them: what neither a file nor a folder tells of them."""
# Annotations are not put off: Pydantic 2.5 wants the type of __pydantic_extra__, not its name.

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            "must be a time zone that this machine knows, such as Europe/Moscow"
        ) from None
    return name


def _or_none(value: object) -> object:
    """TOML has no other word for nothing than ""."""
    return value or None


Zone = Annotated[str, Field(max_length=50), AfterValidator(_known_zone)]
Nothing = BeforeValidator(_or_none)


class KnownElection(BaseModel):
    """One election, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Annotated[str | None, Nothing] = Field(
        default=None,
        max_length=50,
        description="Its type, any word: thresholds of [alerts.types] and [statistics.overrides] "
        "are found by it.",
    )
    country: Annotated[str | None, Nothing] = Field(
        default=None, max_length=100, description="Its country."
    )
    timezone: Annotated[Zone | None, Nothing] = Field(
        default=None,
        description="The zone in which its hours are shown, such as Europe/Moscow. Without one, "
        "local time is what makes votings begin at statistics.first_hour.",
    )
    zones: dict[str, Zone] = Field(
        default={},
        description='Zones of single regions, by their code: zones = {"41" = "Asia/Kamchatka"}.',
    )
    starts: Annotated[datetime | None, Nothing] = Field(
        default=None,
        description="When its voting begins, by the local clock of each zone: "
        "2024-09-06T08:00:00. Used where no row of a contract tells it.",
    )
    ends: Annotated[datetime | None, Nothing] = Field(
        default=None, description="When it ends, likewise."
    )
    contracts: tuple[str, ...] = Field(
        default=(),
        description="Its contracts, whatever folders say. Each must be delivered: one of which "
        "nothing comes is an alert (constituency_missing), and `ingestd coverage` lists it.",
    )

    def moment(self, local: datetime | None) -> datetime | None:
        """A local time of the election as a moment."""
        if local is None or self.timezone is None:
            return None
        return local.replace(tzinfo=ZoneInfo(self.timezone)).astimezone(UTC)

    @model_validator(mode="after")
    def _times_are_local(self) -> Self:
        times = [one for one in (self.starts, self.ends) if one is not None]
        if any(one.tzinfo for one in times):
            raise ValueError("starts and ends are local: leave the offset out, name the timezone")
        if times and self.timezone is None:
            raise ValueError("starts and ends are local: name the timezone")
        if self.starts and self.ends and self.ends <= self.starts:
            raise ValueError("ends must be later than starts")
        return self


class Elections(BaseModel):
    """What is known of elections: a table [elections."name"] for each.

    The name is that of the folder, with single spaces.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, KnownElection]
    _contracts: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def by_name(self) -> Mapping[str, KnownElection]:
        """Each election by its name."""
        return self.__pydantic_extra__

    def model_post_init(self, _context: object) -> None:
        """Find the contracts once: they are asked for every constituency that is new."""
        self._contracts.update(
            (contract, name) for name, one in self.by_name.items() for contract in one.contracts
        )

    @property
    def contracts(self) -> Mapping[str, str]:
        """The election of each contract that is named."""
        return self._contracts

    def get(self, name: str | None) -> KnownElection | None:
        """What is known of an election."""
        return self.by_name.get(name) if name else None

    def zone_of(self, name: str | None, region_code: str | None) -> str | None:
        """The zone of a constituency: of its region before that of its election."""
        one = self.get(name)
        if one is None:
            return None
        return one.zones.get(region_code or "", one.timezone)

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        for name in self.by_name:
            if name != " ".join(name.split()):
                raise ValueError(f"{name!r}: write the name with single spaces")
        named = Counter(contract for one in self.by_name.values() for contract in one.contracts)
        if twice := sorted(contract for contract, number in named.items() if number > 1):
            raise ValueError(f"the contract {twice[0]} is named twice")
        return self
