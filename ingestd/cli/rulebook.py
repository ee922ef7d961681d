"""`rules`: what is looked for, and the thresholds that hold here."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import Flags, Json, command

if TYPE_CHECKING:
    from ingestd.config import Settings


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd rules", "ingestd rules --type regional", "ingestd rules --json")
    command(app, "rules", examples=examples)(rules)


def rules(
    flags: Flags,
    *,
    election: Annotated[
        str | None, typer.Option(help="The thresholds that hold for this election.")
    ] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Those that hold for this type of elections.")
    ] = None,
    is_json: Json = False,
) -> None:
    """List the rules: class, severities, thresholds, and what each one says.

    integrity: an identity of the protocol is broken. statistical: unlikely among its peers.
    feed: about files. Thresholds are set in the configuration: [alerts.RULE], [statistics]; for
    an election or a type in [alerts.elections."name".RULE], [alerts.types."type".RULE] and
    [statistics.overrides."name or type"]; an election has a type by [elections."name"].
    """
    from ingestd.cli import screen
    from ingestd.pipeline.rules import RULES, RULESET

    settings = flags.settings()
    if election is not None:
        type_ = _type_of(settings, election, type_)
    elif type_ is not None:
        by_any = {*settings.statistics.overrides} - {*settings.elections.by_name}
        _refuse_unknown("type", type_, _types(settings) | by_any)
    held = settings.alerts.for_election(election, type_)
    statistics = settings.statistics.for_election(election, type_)
    told: list[dict[str, Any]] = [
        {
            "id": rule.id,
            "class": rule.alert_class,
            "severities": list(rule.severities),
            "enabled": held.is_on(rule.id),
            "thresholds": held.of(rule.id) | {name: statistics[name] for name in rule.settings},
            "sentence": rule.sentence,
            "formula": rule.formula,
            "reads": rule.reads,
            "benign_causes": list(rule.benign),
        }
        for rule in sorted(RULES.values(), key=lambda rule: (rule.alert_class, rule.id))
    ]
    if is_json:
        whose = {"ruleset": RULESET, "election": election, "type": type_}
        screen.print_json(whose | {"rules": told})
        return
    rows = [
        (
            one["id"] if one["enabled"] else f"{one['id']} (off)",
            one["class"],
            ", ".join(one["severities"]),
            one["sentence"],
            ", ".join(f"{name} {value}" for name, value in one["thresholds"].items()),
        )
        for one in told
    ]
    screen.show(("rule", "class", "severities", "what it says", "thresholds"), rows)


def _type_of(settings: Settings, election: str, type_: str | None) -> str | None:
    """The type of an election that is known, by settings or database.

    Raises ConfigError for one that is not, and for another type than it has.
    """
    known = settings.elections.get(election)
    has = known.type if known else None
    told = {*settings.alerts.elections, *settings.statistics.overrides} - _types(settings)
    if known is None and election not in told:
        here = _elections_here(settings)
        named = {*settings.elections.by_name, *told, *here}
        _refuse_unknown("election", election, named)
        has = here[election]
    if type_ not in (None, has):
        from ingestd.config import ConfigError

        raise ConfigError(f"--type {type_}: the type of {election} is {has or 'not told'}")
    return has


def _elections_here(settings: Settings) -> dict[str, str | None]:
    """The elections in the database, with their types; a database that is not there has none."""
    from sqlalchemy import select

    from ingestd.cli.database import reading, sqlite_file
    from ingestd.models import Election

    file = sqlite_file(settings.database.url)
    if file is not None and not file.exists():
        return {}
    with reading(settings) as session:
        return {row.name: row.type for row in session.execute(select(Election.name, Election.type))}


def _types(settings: Settings) -> set[str]:
    types = {one.type for one in settings.elections.by_name.values() if one.type}
    return types | {*settings.alerts.types}


def _refuse_unknown(what: str, name: str, known: Iterable[str]) -> None:
    from ingestd.config import ConfigError

    listed = sorted(set(known))
    if name in listed:
        return
    told = "; ".join(listed) if listed else "none, neither in the settings nor in the database"
    raise ConfigError(f"--{what} {name}: no such {what}; known are: {told}")
