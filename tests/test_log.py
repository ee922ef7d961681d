"""The log: one event is one line, whatever a hostile file puts into it."""

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ingestd import log
from ingestd.log import Format, Level, configure, escape, redact

FORGED = "a.csv\n2026-01-01T00:00:00Z [info     ] file_ingested \x1b[2K\u202e stored=1"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, complains = root.handlers, root.level, logging.raiseExceptions
    yield
    logging.raiseExceptions = complains
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers = handlers
    root.setLevel(level)


def written(*, level: Level = "info", format: Format = "json", **values: object) -> str:
    """The text that the event `seen` with these values leaves in the log."""
    stream = io.StringIO()
    configure(level, format, stream)
    structlog.get_logger().info("seen", **values)
    return stream.getvalue()


def logged(value: object) -> Any:
    """The value as a reader of the JSON log gets it."""
    return json.loads(written(value=value))["value"]


# The shape of a line


def test_a_line_is_json_with_time_and_level_first() -> None:
    """Machines parse it; people see the three things they look for first."""
    line = json.loads(written(path="a.csv", stored=5))
    assert list(line) == ["timestamp", "level", "event", "path", "stored"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])


def test_cyrillic_stays_readable() -> None:
    """Names are not turned into escapes."""
    assert "Округ №1_3" in written(path="Округ №1_3")


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_auto_is_json_unless_it_is_a_terminal(stream: io.StringIO, is_json: bool) -> None:
    """Under systemd JSON lines, before a person a console."""
    configure("info", "auto", stream)
    structlog.get_logger().info("seen")
    assert stream.getvalue().startswith("{") is is_json


def test_the_default_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the answer of a command."""
    configure("info", "json")
    structlog.get_logger().info("seen")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "seen"


def test_what_is_less_important_than_the_level_is_not_written() -> None:
    """`level` is the least that is written."""
    assert written(level="warning") == ""


def test_a_console_that_is_no_terminal_has_no_colours() -> None:
    """Escape codes in a file help nobody."""
    assert "\x1b" not in written(format="console")


def test_libraries_write_the_same_lines() -> None:
    """Alembic and SQLAlchemy log through the standard library."""
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("sqlalchemy.pool").warning("lost %s", "a\nb")
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"]) == ("warning", r"lost a\nb")


def test_libraries_do_not_chat() -> None:
    """Alembic tells at info what it is about to do; nobody asked."""
    stream = io.StringIO()
    configure("debug", "json", stream)
    logging.getLogger("alembic.runtime.migration").info("Context impl SQLiteImpl.")
    assert stream.getvalue() == ""


def test_a_python_warning_is_a_line_like_any_other() -> None:
    """Free text between JSON lines would break their reader."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure("info", "json", stream)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "DeprecationWarning: old" in json.loads(stream.getvalue())["event"]


def test_a_full_disk_does_not_stop_the_program() -> None:
    """The line is lost, the ingest goes on."""
    program = (
        "import ingestd.log, structlog; ingestd.log.configure('info', 'json');"
        "structlog.get_logger().info('seen'); print('went on')"
    )
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=True
        )
    assert run.stdout == b"went on\n"


def test_a_lost_line_is_not_followed_by_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """A closed log must not fill standard error with the inside of the logging module."""
    stream = io.StringIO()
    configure("info", "json", stream)
    stream.close()
    structlog.get_logger().info("seen")
    assert capsys.readouterr().err == ""


# Hostile values


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_forged_name_stays_in_its_line(format: Format) -> None:
    """Neither a line end nor an escape code nor a bidi override gets through."""
    text = written(format=format, path=FORGED)
    assert text.count("\n") == 1
    assert not set("\x1b\u202e") & set(text)


@pytest.mark.parametrize("format", ["json", "console"])
@given(value=st.text(st.characters()))
def test_any_text_is_one_printable_line(format: Format, value: str) -> None:
    """Whatever Unicode has, lone surrogates among it."""
    text = written(format=format, value=value, nested=[{value: value}])
    assert text.endswith("\n")
    assert text[:-1].isprintable()


def test_a_name_that_is_not_utf_8_is_shown() -> None:
    """os.fsdecode gives surrogates, which no stream can encode."""
    assert logged(b"\xff.csv".decode("utf-8", "surrogateescape")) == r"\udcff.csv"
    assert logged(b"\xff.csv") == r"\udcff.csv"


def test_a_path_is_shown_as_text() -> None:
    """Events carry paths as they are."""
    assert logged(Path("in\nbox")) == r"in\nbox"


@pytest.mark.parametrize("format", ["json", "console"])
def test_the_message_of_an_exception_can_not_forge_a_line(format: Format) -> None:
    """A traceback has many lines, but none that begins like ours."""
    stream = io.StringIO()
    configure("info", format, stream)
    try:
        raise ValueError(FORGED)  # noqa: TRY301 - to have a traceback
    except ValueError:
        structlog.get_logger().exception("file_failed")
    first, *more = stream.getvalue().splitlines()
    assert "file_failed" in first
    assert all(line.startswith("    | ") for line in more)
    assert not set("\x1b\u202e") & set(stream.getvalue())


def test_a_huge_cell_does_not_make_a_huge_line() -> None:
    """50 MB of hostile cell is cut, and the cut is said."""
    assert logged("x" * 50_000_000) == "x" * log.MAX_VALUE_CHARS + "… (50000000 characters)"


def test_a_huge_number_is_written_without_counting_its_digits() -> None:
    """Python refuses to print more than 4300 decimal digits."""
    assert logged(1 << 20_000).startswith("0x1000")


@pytest.mark.parametrize("value", [None, True, 5, 0.5, [1, {"a": 2}]])
def test_plain_values_stay_what_they_are(value: object) -> None:
    """Numbers are numbers for the reader of the log."""
    assert value == logged(value)


# escape and redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Округ №1_3 «а»", "Округ №1_3 «а»"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("\u202e\u2066\u200b\ufeff", r"\u202e\u2066\u200b\ufeff"),
        ("\u2028", r"\u2028"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("a\\b", "a\\b"),
    ],
)
def test_escape_shows_what_can_not_be_seen(text: str, shown: str) -> None:
    """Letters stay, everything that moves the cursor or hides becomes visible."""
    assert shown == escape(text)


@given(st.text(st.characters()))
def test_escaping_twice_changes_nothing(text: str) -> None:
    """So a caller need not know whether it was done before."""
    assert escape(text) == escape(escape(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql+psycopg://u:geheim@h/n", "at postgresql+psycopg://u:***@h/n"),
        ("host=h password=geheim user=u", "host=h password=*** user=u"),
        ("postgresql://h/n?user=u&password=geheim", "postgresql://h/n?user=u&password=***"),
        ("{'password': 'geheim'}", "{'password': ***"),
        ("http://h:80/a@b", "http://h:80/a@b"),
    ],
)
def test_a_password_is_hidden(text: str, shown: str) -> None:
    """In URLs, in connection strings and in printed settings."""
    assert shown == redact(text)


def test_a_value_named_password_is_hidden() -> None:
    """Also when nothing in the text itself gives it away."""
    assert json.loads(written(db_password="geheim"))["db_password"] == "***"
    assert logged({"password": "geheim"}) == {"password": "***"}


def test_a_password_in_an_exception_is_hidden() -> None:
    """Drivers put the URL into their messages."""
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        raise ValueError("no route to postgresql://u:geheim@h/n")  # noqa: TRY301 - see above
    except ValueError:
        structlog.get_logger().exception("database_away")
    assert "u:***@h" in stream.getvalue()
    assert "geheim" not in json.loads(stream.getvalue())["exception"][-1]
