"""`rules`: what is looked for, and the thresholds that hold here."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

from typing import Annotated, Any

import typer

from ingestd.cli.flags import Flags, Json, command


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd rules", "ingestd rules --json")
    command(app, "rules", examples=examples)(rules)


def rules(
    flags: Flags,
    *,
    election: Annotated[
        str | None, typer.Option(help="The thresholds that hold for this election.")
    ] = None,
    is_json: Json = False,
) -> None:
    """List the rules: class, severities, thresholds, and what each one says.

    integrity: an identity of the protocol is broken. statistical: unlikely among its peers.
    feed: about files. Thresholds are set in the configuration: [alerts.RULE], [statistics].
    """
    from ingestd.cli import screen
    from ingestd.pipeline.rules import RULES, RULESET

    settings = flags.settings()
    held = settings.alerts.for_election(election, None)
    statistics = settings.statistics.for_election(election)
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
        screen.print_json({"ruleset": RULESET, "rules": told})
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
