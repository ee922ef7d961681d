"""What a message says: in words for people, as JSON for programs. Pure functions."""

from __future__ import annotations

import socket
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from ingestd.db import AnyRow
from ingestd.log import escape, redact
from ingestd.pipeline.outbox import OVER, TROUBLE, Contents, Trouble

MOST_LISTED = 30
_MOST_CHARS = 600
_WORDS = {
    "opened": "new",
    "worse": "graver than before",
    "back": "holds again",
    "again": "more was found than when it was answered",
    "cleared": "no longer holds",
    TROUBLE: "the daemon is in trouble",
    OVER: "is over",
}
_ORDER = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent; who gets the same `id` twice has the same message twice."""

    id: uuid.UUID
    severity: str
    title: str
    text: str
    payload: Mapping[str, Any]

    def json(self) -> bytes:
        """The payload as it is posted."""
        return orjson.dumps(self.payload, option=orjson.OPT_UTC_Z)


_GOOD = ("cleared", OVER)


def of_contents(message_id: uuid.UUID, contents: Contents) -> Message:
    """A message about what waited in the outbox."""
    changes = [_change(row) for row in contents.gravest]
    return _listed(message_id, changes, contents.counts, contents.since)


def of_troubles(message_id: uuid.UUID, troubles: Sequence[Trouble]) -> Message:
    """A message about the daemon that no outbox could hold."""
    gravest = sorted(troubles, key=lambda each: (_ORDER.index(each.severity), each.at))
    changes = [
        {
            "kind": trouble.kind,
            "severity": trouble.severity,
            "title": safe(trouble.title),
            "description": safe(trouble.description),
            "at": trouble.at,
            "alert_id": None,
        }
        for trouble in gravest[:MOST_LISTED]
    ]
    counts = Counter((trouble.kind, trouble.severity) for trouble in troubles)
    return _listed(message_id, changes, counts, min(trouble.at for trouble in troubles))


def _listed(
    message_id: uuid.UUID,
    changes: Sequence[Mapping[str, Any]],
    counts: Mapping[tuple[str, str], int],
    since: datetime,
) -> Message:
    """A message that lists the gravest changes and counts the rest."""
    by_severity = {
        severity: sum(number for (_, one), number in counts.items() if one == severity)
        for severity in _ORDER
    }
    total = sum(counts.values())
    is_bad = sum(number for (kind, _), number in counts.items() if kind not in _GOOD)
    counted = ", ".join(f"{number} {name}" for name, number in by_severity.items() if number)
    title = f"{counted}: {changes[0]['title']}" if total > 1 else changes[0]["title"]
    lines = [_line(change) for change in changes]
    if total > len(changes):
        lines.append(f"… and {total - len(changes)} more.")
    if any(change["alert_id"] for change in changes):
        lines.append("`ingestd alerts` lists all that is open, `ingestd alerts explain ID` one.")
    worst = next((name for name, number in by_severity.items() if number and is_bad), "info")
    return _made(
        message_id,
        severity=worst,
        title=title,
        lines=lines,
        more={
            "since": since,
            "counts": [
                {"kind": kind, "severity": severity, "number": number}
                for (kind, severity), number in counts.items()
            ],
            "changes": changes,
            "left_out": total - len(changes),
        },
    )


def of_test(now: datetime) -> Message:
    """A message that only tries the way."""
    text = "This is a test of `ingestd notify test`: whoever reads it will be told of alerts."
    return _made(
        uuid.uuid4(),
        severity="info",
        title="a test",
        lines=[text],
        more={"since": now, "counts": [], "changes": [], "left_out": 0, "is_test": True},
    )


def safe(text: str) -> str:
    """A text of files or of the system for a message: one line, without passwords, not too long."""
    shown = escape(redact(text))
    return shown if len(shown) <= _MOST_CHARS else f"{shown[:_MOST_CHARS]}…"


def _made(
    message_id: uuid.UUID, *, severity: str, title: str, lines: list[str], more: dict[str, Any]
) -> Message:
    host = socket.gethostname()
    whole = f"ingestd on {host}: {title}"
    text = "\n\n".join([*lines, f"Message {message_id}"])
    payload = {
        "id": message_id,
        "source": "ingestd",
        "host": host,
        "severity": severity,
        "title": whole,
        "text": text,
        "is_test": False,
    }
    return Message(message_id, severity, whole, text, payload | more)


def _change(row: AnyRow) -> dict[str, Any]:
    """One change as a program reads it; names and cells of files are made harmless."""
    told: dict[str, Any] = {
        "kind": row.kind,
        "severity": row.severity,
        "title": safe(row.title),
        "description": safe(row.about or row.description),
        "at": row.at,
        "alert_id": row.alert_id,
    }
    if row.alert_id is not None:
        told |= {
            "rule": row.rule,
            "class": row.class_,
            "detected_at": row.detected_at,
            "contract_id": row.contract_id,
            "region": row.region_code,
            "constituency": None if row.name is None else safe(row.name),
        }
    return told


def _line(change: Mapping[str, Any]) -> str:
    head = f"[{change['severity']}] {change['title']} ({_WORDS[change['kind']]})"
    names = ("rule", "region", "constituency", "contract_id")
    place = ", ".join(str(change[name]) for name in names if change.get(name))
    told = [head, *([place] if place else []), change["description"]]
    if change["alert_id"]:
        told.append(f"ingestd alerts explain {str(change['alert_id'])[:8]}")
    return "\n".join(line for line in told if line)
