"""Logs: one line per event, safe to show, the same for our own and for library messages.

File names and cells are hostile: nothing in a value may end a line, colour a terminal, or
reverse the reading direction. Values that look like passwords are hidden.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from ingestd import journal

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

# A cell can have 50 MB; a log line should not.
MAX_VALUE_CHARS = 4096
MAX_INT_BITS = 64

# Libraries that narrate their work at lower levels.
QUIET = ("alembic", "sqlalchemy", "watchdog")

_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@/\s]+(?=@)")
_NAMED_PASSWORD = re.compile(
    r"(\b\w*(?:password|passwd)\b['\"]?\s*[=:]\s*)[^\s&;,]+", re.IGNORECASE
)
_SECRET_KEY = re.compile(r"password|passwd|secret|token", re.IGNORECASE)


_chosen: list[tuple[Level, Format]] = []

Listener = Callable[[str, Mapping[str, object]], None]
_listeners: list[Listener] = []


@contextmanager
def overheard(listener: Listener) -> Iterator[None]:
    """Tell a listener every event of ours, whatever its level, for the time of the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _overhear(_logger: object, _name: str, event: EventDict) -> EventDict:
    for listener in tuple(_listeners):
        listener(str(event.get("event")), event)
    return event


def chosen() -> tuple[Level, Format]:
    """What was configured last, so that another process may do the same."""
    return _chosen[-1] if _chosen else ("warning", "auto")


def configure(level: Level, format: Format, stream: TextIO | None = None) -> None:
    """Send every log line, ours and the libraries', to the stream (standard error by default).

    `auto` is console on a terminal, the journal's fields under systemd and JSON lines elsewhere.
    """
    _chosen[:] = [(level, format)]
    there: TextIO | None = stream or sys.stderr
    is_terminal = there is not None and there.isatty()
    is_console = format == "console" or (format == "auto" and is_terminal)
    is_journal = format != "console" and journal.is_behind(there, os.environ)
    has_fields = is_journal and format == "auto"
    if has_fields:
        finish = _journal_fields()
    else:
        lines = _json_lines(has_priority=is_journal)
        finish = _console(colors=is_terminal) if is_console else lines
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Nor is there any use in a traceback of the log itself, which goes to the same full disk,
    # and unescaped.
    logging.raiseExceptions = False
    writer = _JournalLines if has_fields else _WholeLines
    handler = writer(there) if there is not None else _nowhere()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            _overhear,
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _nowhere() -> logging.Handler:
    """For a daemon that was started without a standard error."""
    # Takes its free number, lest the database get it: C libraries write to number 2.
    os.open(os.devnull, os.O_WRONLY)
    return logging.NullHandler()


class _WholeLines(logging.StreamHandler[TextIO]):
    """Writes lines whole or not at all, and never stops the ingest.

    While the disk is full or the pipe closed, lines are lost; the first that can be
    written again is behind one that says how many.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lost = 0
        self._is_torn = False
        try:
            self._file: int | None = stream.fileno()
        except (OSError, AttributeError):  # in memory
            self._file = None

    def emit(self, record: logging.LogRecord) -> None:
        if (self._lost and not self._confess()) or not self._write(record):
            self._lost += 1

    def _confess(self) -> bool:
        lost, self._lost = self._lost, 0
        structlog.get_logger().error("log_lines_lost", lines=lost)
        if not self._lost:
            return True
        self._lost = lost
        return False

    def _write(self, record: logging.LogRecord) -> bool:
        try:
            line = self._line_of(record)
            if not line:
                return True
            line += self.terminator
            if self._file is None:
                self.stream.write(line)
                self.flush()
            else:
                self._write_to(self._file, line.encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - whatever it is, it is the log's trouble alone
            return False
        return True

    def _line_of(self, record: logging.LogRecord) -> str:
        """What is to be written; nothing where it has gone another way."""
        return self.format(record)

    def _write_to(self, file: int, line: bytes) -> None:
        """Past Python's buffers, which would give out the rest of a torn line later."""
        if self._is_torn:
            line = b"\n" + line
        while line:
            line = line[os.write(file, line) :]
            self._is_torn = bool(line)


class _JournalLines(_WholeLines):
    """Sends events to the journal; one that it does not take goes there as a line."""

    def _line_of(self, record: logging.LogRecord) -> str:
        datagram = self.format(record)
        try:
            journal.send(datagram)
        except OSError:
            return journal.as_line(datagram)
        return ""


def escape(text: str) -> str:
    r"""The text with everything that is not printable made visible, as Python's repr would.

    Control characters, line ends, bidi overrides, invisible marks and the surrogates of
    undecodable file names become `\n`, `\x1b`, `\u202e`, `\udcff`. Backslashes stay
    single, so escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def redact(text: str) -> str:
    """The text without the passwords in its URLs, query strings and `password=` pairs."""
    return _NAMED_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***", text))


def _json_lines(*, has_priority: bool) -> list[Processor]:
    render = _render_json_with_priority if has_priority else _render_json
    return [_exception_as_lines, _make_safe, render]


def _journal_fields() -> list[Processor]:
    return [_exception_as_lines, _make_safe, _render_fields]


def _render_fields(_logger: object, _name: str, event: EventDict) -> str:
    return journal.datagram_of(event)


def _console(*, colors: bool) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback
    )
    return [_exception_as_lines, _make_safe, _exception_as_block, renderer]


def _exception_as_lines(logger: object, name: str, event: EventDict) -> EventDict:
    """An exception as a list of lines, so that its message is escaped like any value."""
    event = structlog.processors.format_exc_info(logger, name, event)
    if isinstance(text := event.get("exception"), str):
        event["exception"] = text.split("\n")
    return event


def _exception_as_block(_logger: object, _name: str, event: EventDict) -> EventDict:
    """The lines of an exception behind a margin: a forged line can't start at the left."""
    if lines := event.get("exception"):
        event["exception"] = "\n".join(f"    | {line}" for line in lines)
    return event


def _make_safe(_logger: object, _name: str, event: EventDict) -> EventDict:
    return _safe_items(event)


def _safe_items(items: Mapping[Any, object]) -> dict[str, Any]:
    return {
        _safe_text(str(key)): "***" if _SECRET_KEY.search(str(key)) else _safe(value)
        for key, value in items.items()
    }


def _safe(value: object) -> Any:
    match value:
        case int() if value.bit_length() > MAX_INT_BITS:
            return _safe_text(hex(value))  # decimal digits of a huge one take quadratic time
        case None | int() | float():
            return value
        case bytes():
            return _safe_text(value.decode("utf-8", "surrogateescape"))
        case Mapping():
            return _safe_items(value)
        case list() | tuple() | set() | frozenset():
            return [_safe(item) for item in value]
        case _:
            return _safe_text(str(value))


def _safe_text(text: str) -> str:
    text = redact(text)
    if len(text) > MAX_VALUE_CHARS:
        text = f"{text[:MAX_VALUE_CHARS]}… ({len(text)} characters)"
    return escape(text)


def _render_json(_logger: object, _name: str, event: EventDict) -> str:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return json.dumps({**first, **event}, ensure_ascii=False)


def _render_json_with_priority(logger: object, name: str, event: EventDict) -> str:
    """A JSON line behind its priority, which the journal takes off again."""
    priority = journal.priority_of(event)
    return f"<{priority}>{_render_json(logger, name, event)}"
