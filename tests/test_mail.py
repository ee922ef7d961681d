"""Alerts come by mail: what a real mail server takes, what it refuses, and how that is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from ingestd.models import Alert, Notice

from .conftest import Voting, csv_of
from .oracle import unsound
from .postbox import Postbox, Security, mail_server
from .running import environment, open_sessions
from .test_telling_daemon import lose_leases

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

PLACE = "77 - Город Москва/Выборы/Округ №1"
WORD = "geheim-7"


@dataclass
class Program:
    """The real program in a folder, told to send by mail; and all that it ever said."""

    folder: Path
    url: str
    postbox: Postbox
    said: str = ""
    out: str = ""

    def __call__(self, *arguments: str, word: str = WORD, security: Security = "starttls") -> int:
        """Run a command; its exit status."""
        done = subprocess.run(
            [sys.executable, "-m", "ingestd.cli", *arguments],
            env=self.environment(word, security),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        self.out = done.stdout
        self.said += done.stdout + done.stderr
        return done.returncode

    def environment(self, word: str, security: Security) -> dict[str, str]:
        """Its settings: one channel, and whom it trusts."""
        channels = {"duty": self.postbox.url(security, word=word)}
        told = {
            "INGESTD_NOTIFY__CHANNELS": json.dumps(channels),
            "INGESTD_NOTIFY__GATHER_SECONDS": "0",
            "INGESTD_LOG__LEVEL": "debug",
            "SSL_CERT_FILE": str(self.postbox.authority),
        }
        return environment(self.folder, self.url, **told)

    def drop(self, path: str, content: bytes) -> None:
        """Put a file into the inbox, and let it be taken, and people be told."""
        (self.folder / "inbox" / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "inbox" / path).write_bytes(content)
        assert self("once") in (0, 1), self.said
        assert [] == list((self.folder / "inbox").rglob("*.csv"))


@pytest.fixture
def postbox(tmp_path: Path) -> Iterator[Postbox]:
    """A mail server that wants STARTTLS and a password."""
    with mail_server(tmp_path) as postbox:
        yield postbox


@pytest.fixture
def ingestd(inbox: Path, sqlite_url: str, postbox: Postbox) -> Program:
    """The program; which database it has is nothing to a mail server."""
    return Program(inbox.parent, sqlite_url, postbox)


@pytest.mark.parametrize("security", ["starttls", "ssl", "insecure"])
def test_a_test_comes_by_mail(
    inbox: Path, sqlite_url: str, tmp_path: Path, security: Security
) -> None:
    """By each way that apprise has, with a password; as plain text."""
    with mail_server(tmp_path, security) as postbox:
        ingestd = Program(inbox.parent, sqlite_url, postbox)
        assert 0 == ingestd("notify", "test", security=security), ingestd.said
    [mail] = postbox.mails
    assert ("ingestd@example.org", "duty@example.org") == tuple(
        mail[name].addresses[0].addr_spec for name in ("From", "To")
    )
    assert "a test" in mail["Subject"]
    assert "text/plain" == mail.get_content_type()
    assert WORD not in ingestd.said


def test_a_mail_says_what_was_found_where_by_which_rule_and_how_to_look(
    ingestd: Program, sqlite_url: str, postbox: Postbox, voting: Voting
) -> None:
    """Whoever reads it need not know the program."""
    rows = voting.ballots(8, 5)
    ingestd.drop(f"{PLACE}/{voting.name(8)}", csv_of(rows))
    assert [] == postbox.mails
    ingestd.drop(f"{PLACE}/{voting.name(8)}", csv_of(rows[:-1]))
    [mail] = postbox.mails
    [text] = postbox.texts()
    with open_sessions(sqlite_url) as sessions, sessions() as session:
        alert = session.scalars(select(Alert).where(Alert.type == "history_withdrawn")).one()
    assert "critical" == alert.severity
    for words in (
        *(alert.title, alert.description, alert.type),
        *("77", "Округ №1", voting.contract),
        f"ingestd alerts explain {str(alert.id)[:8]}",
    ):
        assert words in text
    assert "critical" in mail["Subject"]
    with open_sessions(sqlite_url) as sessions:
        assert [] == unsound(sessions)


@pytest.mark.parametrize(
    ("trouble", "reply"),
    [("a wrong password", "535 5.7.8"), ("an unknown address", "550 5.1.1 nobody of that name")],
)
def test_what_the_mail_server_refuses_is_said_and_tried_again(
    ingestd: Program, sqlite_url: str, postbox: Postbox, voting: Voting, trouble: str, reply: str
) -> None:
    """In the words of the server; once it is mended the mail goes. No password is shown."""
    if trouble == "a wrong password":
        postbox.word = "another-8"
    else:
        postbox.unknown.add("duty@example.org")
    assert 1 == ingestd("notify", "test")
    assert reply in " ".join(ingestd.out.split())  # a narrow terminal wraps it
    ingestd.drop(voting.name(8), csv_of(["torn"] * 50))
    assert "notice_not_sent" in ingestd.said
    told = notices_on(sqlite_url)
    assert [("waiting", 1)] == [(each.status, each.attempts) for each in told]
    assert reply in str(told[0].last_error)
    assert [] == postbox.mails
    postbox.word = WORD
    postbox.unknown.clear()
    lose_leases(sqlite_url)
    assert 0 == ingestd("notify", "send")
    sent = notices_on(sqlite_url)
    assert [("sent", None)] == [(each.status, each.last_error) for each in sent]
    assert 1 == len(postbox.mails)
    assert WORD not in ingestd.said
    assert WORD not in "".join(repr(vars(each)) for each in (*told, *sent))
    with open_sessions(sqlite_url) as sessions:
        assert [] == unsound(sessions)


def notices_on(url: str) -> list[Notice]:
    """All that people were to be told."""
    with open_sessions(url) as sessions, sessions() as session:
        return list(session.scalars(select(Notice)))
