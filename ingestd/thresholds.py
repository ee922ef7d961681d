"""What each rule is held to: one table of settings for each, with the defaults of the ruleset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

_TABLE = ConfigDict(frozen=True, extra="forbid", validate_default=True)

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Minutes = Annotated[int, Field(ge=0)]


class Table(BaseModel):
    """The settings of one rule."""

    model_config = _TABLE

    enabled: bool = Field(default=True, description="Whether the rule is looked at.")


class WholeExportDiffers(Table):
    """Rows that only one of a cumulative file and the hourly files has."""

    margin_minutes: Minutes = Field(
        default=30,
        description="So long before the end of the voting, rows are too near to it to be judged.",
    )


class OutsideVotingWindow(Table):
    """Ballots before the voting began or after it ended."""

    bulletin_grace_minutes: Minutes = Field(
        default=0, description="Bulletins are issued for so long after the end."
    )
    vote_grace_minutes: Minutes = Field(
        default=20, description="Votes are accepted for so long after the end (15, and 5 of grace)."
    )


class DuplicateVoteKey(Table):
    """Several votes by one voter key."""

    refused_share: Share = Field(
        default=0.01, description="Refused second votes are told above this share of the votes."
    )
    refused_least: Count = Field(default=3, description="And only from so many on.")


class RollChangedDuringVoting(Table):
    """Changes of the roll while people vote."""

    least: Count = Field(
        default=10, description="So many voters added or removed in an hour are normal."
    )
    share: Share = Field(default=0.01, description="And so is this share of the roll.")


class MissingHour(Table):
    """Hourly files that should be here and are not."""

    slots_past: int = Field(
        default=2, ge=1, description="An hour is missing when the feed is so many hours past it."
    )
    watermark: Share = Field(
        default=0.9, description="The feed is where this share of constituencies is."
    )
    in_a_row: int = Field(default=3, ge=1, description="So many in a row are critical.")
    fleet_share: Share = Field(
        default=0.1, description="An hour that this share of constituencies lacks is critical."
    )
    fleet_least: Count = Field(default=3, description="And that so many of them lack.")
    empty_hours: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Whether the source publishes hours in which nothing happened; auto means "
        "yes as soon as one such file was seen. If so, an hour without a file is unknown; if not, "
        "it is taken for empty. Statistics go by the same answer.",
    )
    least_expected: Count = Field(
        default=7,
        description="Where it does not, an hour is missing when so many transactions were "
        "expected in it.",
    )

    def publishes_empty(self, *, seen: bool) -> bool:
        """Say whether an hour without a file is unknown; `seen`: an empty one was delivered."""
        return self.empty_hours == "yes" or (self.empty_hours == "auto" and seen)


class ConstituencyMissing(Table):
    """Constituencies of which no hourly file came."""

    slots_past: int = Field(
        default=2, ge=1, description="How many hours the rest of the feed must be on its way."
    )
    contracts: tuple[str, ...] = Field(
        default=(), description="Contracts that must be here, even if nothing names them."
    )
    twins_share: Share = Field(
        default=0.9,
        description="Where this share of a region's constituencies has a second ballot of the "
        "same roll, the others should have it, too.",
    )
    twins_least: int = Field(default=5, ge=1, description="And so many have it, at least.")


class SilentFeed(Table):
    """Nothing for anybody, while people vote."""

    hours: FiniteFloat = Field(default=2, gt=0, description="How long nothing came.")
    from_hour: int = Field(
        default=8,
        ge=0,
        le=23,
        description="Where the source publishes no empty hours, only the time from this local "
        "hour counts,",
    )
    to_hour: int = Field(default=20, ge=1, le=24, description="and to this one.")

    @model_validator(mode="after")
    def _is_a_time(self) -> SilentFeed:
        if self.from_hour >= self.to_hour:
            message = f"from_hour = {self.from_hour} must be before to_hour = {self.to_hour}"
            raise ValueError(message)
        return self


class RejectShare(Table):
    """Rows of a file that could not be read."""

    rows: Count = Field(default=10, description="So many are a warning.")
    share: Share = Field(default=0.01, description="So is this share of a file's rows.")


class LateFile(Table):
    """Files that were written long after those of the same hour."""

    hours: FiniteFloat = Field(
        default=2, gt=0, description="How long after the middle one of the hour's files."
    )
    least: int = Field(default=3, ge=2, description="The hour has so many files, at least.")
    several: int = Field(
        default=3, ge=2, description="The late files of so many constituencies are one alert,"
    )
    fleet_share: Share = Field(default=0.01, description="if they are this share of the hour's.")


class TsOutOfSlot(Table):
    """Rows whose time lies outside of the hour of their file."""

    tolerance_minutes: Minutes = Field(
        default=30, description="Less is normal: what is tried again may be 25 minutes late."
    )
    far_minutes: Minutes = Field(default=60, description="One row so far outside is a warning.")
    share: Share = Field(default=0.05, description="So is this share of a file's rows.")
    least_rows: Count = Field(default=20, description="The share is looked at from so many on.")


class RollbackBurst(Table):
    """Many rollbacks in one hour."""

    least: int = Field(default=3, ge=1, description="Fewer in an hour are never a burst.")
    share: Share = Field(default=0.01, description="This share of the hour's rows is one.")
    z: FiniteFloat = Field(
        default=4.5, gt=0, description="So is a count so far above that of the others."
    )
    several: int = Field(
        default=3, ge=2, description="So many constituencies in one hour are one alert."
    )


class RolledBackForGood(Table):
    """Ballots that were rolled back and never returned."""

    minutes: Minutes = Field(
        default=60, description="How much later data must be here before that is said."
    )


class TransactionInTwoContracts(Table):
    """One transaction in two contracts."""

    most_rows: Count = Field(
        default=200_000,
        description="Beyond so many rows it is looked at when nothing has come for five minutes, "
        "and at the end of `ingestd once`, not between two files: it reads every id.",
    )


class Rules(BaseModel):
    """A table for each rule."""

    model_config = _TABLE

    votes_exceed_bulletins: Table = Table()
    turnout_over_registered: Table = Table()
    duplicate_transaction: Table = Table()
    transaction_rewritten: Table = Table()
    transaction_in_two_contracts: TransactionInTwoContracts = TransactionInTwoContracts()
    slot_republished: Table = Table()
    history_withdrawn: Table = Table()
    whole_export_differs: WholeExportDiffers = WholeExportDiffers()
    outside_voting_window: OutsideVotingWindow = OutsideVotingWindow()
    vote_without_main_key: Table = Table()
    lifecycle_order: Table = Table()
    duplicate_vote_key: DuplicateVoteKey = DuplicateVoteKey()
    roll_changed_during_voting: RollChangedDuringVoting = RollChangedDuringVoting()
    results_mismatch: Table = Table()
    bulletin_for_many: Table = Table()
    unknown_operation: Table = Table()
    missing_hour: MissingHour = MissingHour()
    constituency_missing: ConstituencyMissing = ConstituencyMissing()
    silent_feed: SilentFeed = SilentFeed()
    file_rejected: Table = Table()
    reject_share: RejectShare = RejectShare()
    late_file: LateFile = LateFile()
    ts_out_of_slot: TsOutOfSlot = TsOutOfSlot()
    rollback_burst: RollbackBurst = RollbackBurst()
    rolled_back_for_good: RolledBackForGood = RolledBackForGood()

    def is_on(self, rule: str) -> bool:
        """Say whether a rule is looked at; one without a table always is."""
        table = getattr(self, rule, None)
        return table is None or bool(table.enabled)

    def of(self, rule: str) -> dict[str, Any]:
        """The thresholds of a rule, by name."""
        table = getattr(self, rule, None)
        return {} if table is None else table.model_dump(mode="json", exclude={"enabled"})


# What is asked of the whole feed once, and so cannot be otherwise for one election.
_OF_ALL: dict[str, frozenset[str]] = {
    "missing_hour": frozenset({"watermark"}),
    "constituency_missing": frozenset({"contracts"}),
    "late_file": frozenset({"several", "fleet_share"}),
    "silent_feed": frozenset(SilentFeed.model_fields),
    "rollback_burst": frozenset(RollbackBurst.model_fields) - {"enabled"},
    "transaction_in_two_contracts": frozenset(TransactionInTwoContracts.model_fields),
}


class Alerts(Rules):
    """Rules and thresholds of the alerts, one table for each rule.

    What one election, or one type of election, is held to otherwise stands in
    [alerts.elections."name".rule] and [alerts.types."type".rule].
    """

    elections: dict[str, Rules] = Field(
        default_factory=dict, description="Thresholds of single elections, by name."
    )
    types: dict[str, Rules] = Field(
        default_factory=dict, description="Thresholds of types of elections."
    )

    @model_validator(mode="after")
    def _can_be_of_one_election(self) -> Alerts:
        for kind, tables in (("elections", self.elections), ("types", self.types)):
            for name, rules in tables.items():
                for rule in rules.model_fields_set & _OF_ALL.keys():
                    told = getattr(rules, rule).model_fields_set
                    if refused := sorted(_OF_ALL[rule] & told):
                        message = (
                            f'[alerts.{kind}."{name}".{rule}] cannot set {", ".join(refused)}: '
                            f"that is about all elections together; set it in [alerts.{rule}]"
                        )
                        raise ValueError(message)
        return self

    @property
    def differs(self) -> bool:
        """Say whether any election is held to something else."""
        return bool(self.elections or self.types)

    def for_election(self, name: str | None, type_: str | None) -> Rules:
        """The rules for an election: its own before those of its type before all others."""
        merged = self.model_dump(exclude={"elections", "types"})
        for other in (self.types.get(type_ or ""), self.elections.get(name or "")):
            for rule, table in other.model_dump(exclude_unset=True).items() if other else ():
                merged[rule] |= table
        return Rules.model_validate(merged)
