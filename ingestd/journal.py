"""The journal of systemd, by its own protocol: a priority and fields for each event.

One datagram for each event, one `NAME=value` for each field. A value here has no line
end (`log` has escaped it), so that the form with a length is never needed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Any, TextIO

SOCKET = "/run/systemd/journal/socket"

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_USUAL = 6
_SEND_SECONDS = 1.0
_LONGEST_NAME = 64
_STRANGE = re.compile(r"[^A-Z0-9_]")
_PLAIN = re.compile(r"""[^\s"'=]+""")
_OWN = {"timestamp", "level", "event"}


def is_behind(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Say whether what is written to the stream goes to the journal: systemd tells its inode."""
    told = environment.get("JOURNAL_STREAM", "")
    if stream is None or not told:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # in memory, or closed
        return False
    return told == f"{status.st_dev}:{status.st_ino}"


def priority_of(event: Mapping[str, Any]) -> int:
    """The level as syslog counts it."""
    return _PRIORITIES.get(str(event.get("level")), _USUAL)


def datagram_of(event: Mapping[str, Any]) -> str:
    """An event as the journal takes it; its message first, for people."""
    fields = {
        "MESSAGE": _sentence(event),
        "PRIORITY": str(priority_of(event)),
        "SYSLOG_IDENTIFIER": "ingestd",
        "INGESTD_EVENT": str(event.get("event")),
    }
    for key, value in event.items():
        if key not in _OWN:
            name = _STRANGE.sub("_", f"INGESTD_{key.upper()}")[:_LONGEST_NAME]
            fields[name] = _text(value)
    return "".join(f"{name}={value}\n" for name, value in fields.items())


def send(datagram: str) -> None:
    """Send it.

    Raises:
        OSError: nobody is there, it is too long, or nobody takes it in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(_SEND_SECONDS)
        out.connect(SOCKET)
        out.send(datagram.encode(errors="backslashreplace"))


def as_line(datagram: str) -> str:
    """The same for standard error, where a number in front is the priority."""
    message, priority, *_ = (line.partition("=")[2] for line in datagram.split("\n"))
    return f"<{priority}>{message}"


def _sentence(event: Mapping[str, Any]) -> str:
    told = [str(event.get("event"))]
    for key, value in event.items():
        if key in _OWN or value is None:
            continue
        shown = value[-1] if key == "exception" and isinstance(value, list) and value else value
        text = _text(shown)
        # Backslashes are what `escape` made visible: not doubled.
        quoted = text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
        told.append(f"{key}={quoted}")
    return " ".join(told)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
