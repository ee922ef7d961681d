"""What a rule is, what it finds, and the register of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

RULESET = "2026.4"
MOST_LISTED = 20
"""Transaction ids named in one alert; the number is always the full one."""

Severity = Literal["critical", "warning", "info"]
AlertClass = Literal["integrity", "statistical", "feed"]
RANKS: dict[str, int] = {"info": 1, "warning": 2, "critical": 3}

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found; `subject` tells it from other findings of the rule in a constituency.

    `weight` says how much was found: a person's decision holds until it grows. `details` has
    what was observed, what was expected and the threshold; the evidence is added to it.
    """

    rule: str
    subject: str
    severity: Severity
    title: str
    description: str
    details: dict[str, Any]
    detected_at: datetime | None
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is known of a rule before it finds anything."""

    id: str
    alert_class: AlertClass
    severities: tuple[Severity, ...]
    reads: str
    sentence: str
    formula: str
    benign: tuple[str, ...] = ()
    is_clock: bool = False
    # Names of its thresholds in [statistics]; the others have a table [alerts.ID].
    settings: tuple[str, ...] = ()


RULES: dict[str, Rule] = {}
"""Every rule by its id, in the order of the catalogue."""

CLASSES: dict[str, str] = {}
"""The class of every rule."""


def rule(  # noqa: PLR0913 - what is to be said of a rule
    id_: str,
    alert_class: AlertClass,
    *severities: Severity,
    reads: str,
    sentence: str,
    formula: str,
    benign: tuple[str, ...] = (),
    is_clock: bool = False,
) -> Callable[[_F], _F]:
    """Register a rule; the function that is it stays as it is."""
    known = Rule(
        id=id_,
        alert_class=alert_class,
        severities=severities,
        reads=reads,
        sentence=sentence,
        formula=formula,
        benign=benign,
        is_clock=is_clock,
    )

    def register(function: _F) -> _F:
        enter(known)
        return function

    return register


def enter(known: Rule) -> None:
    """Put a rule into the register."""
    if known.id in RULES:
        message = f"the rule {known.id} is registered twice"
        raise ValueError(message)
    RULES[known.id] = known
    CLASSES[known.id] = known.alert_class


def many(number: int, what: str, more: str = "") -> str:
    """`1 vote`, `2 votes`."""
    return f"{number} {what}" if number == 1 else f"{number} {more or what + 's'}"
