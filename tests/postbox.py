"""A mail server of our own, with TLS and a password, that takes mail or refuses it."""

from __future__ import annotations

import asyncio
import email.policy
import socket
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Security = Literal["starttls", "ssl", "insecure"]

HOST = "localhost"


@dataclass
class Postbox:
    """What came, and who and what is refused."""

    authority: Path
    port: int = 0
    user: str = "observer"
    word: str = "geheim-7"
    # Addresses that nobody has here.
    unknown: set[str] = field(default_factory=set)
    mails: list[EmailMessage] = field(default_factory=list)

    def url(self, security: Security = "starttls", *, word: str = "geheim-7") -> str:
        """Where to send to, for apprise."""
        scheme = "mailto" if security == "insecure" else "mailtos"
        told = f"from=ingestd@example.org&to=duty@example.org&mode={security}"
        return f"{scheme}://{self.user}:{word}@{HOST}:{self.port}?{told}"

    def texts(self) -> list[str]:
        """What they say, in words."""
        bodies = [mail.get_body(("plain",)) for mail in self.mails]
        return [str(body.get_content()) for body in bodies if body is not None]

    async def handle_RCPT(  # noqa: N802 - by this name aiosmtpd asks
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        """Take an address, or refuse it."""
        if not session.authenticated:
            return "530 5.7.0 first say who you are"
        if address in self.unknown:
            return "550 5.1.1 nobody of that name lives here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802 - the same
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Take a mail."""
        content = envelope.content
        assert isinstance(content, bytes)
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 2.0.0 OK"

    def check(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _way: str, told: Any
    ) -> AuthResult:
        """Know who may send by user and password."""
        assert isinstance(told, LoginPassword)
        is_right = (told.login, told.password) == (self.user.encode(), self.word.encode())
        return AuthResult(success=is_right, handled=False)


class _Server(Controller):
    """On a port that is ours already, so that nobody else can take it meanwhile."""

    bound: socket.socket

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        made = self._factory_invoker
        return self.loop.create_server(made, sock=self.bound, ssl=self.ssl_context)


@contextmanager
def mail_server(folder: Path, security: Security = "starttls") -> Iterator[Postbox]:
    """A server on a port of its own, for the time of the block.

    Whoever is to trust it reads `authority`, as by SSL_CERT_FILE.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    postbox = Postbox(folder / "authority.pem")
    ways: dict[Security, dict[str, Any]] = {
        "starttls": {"tls_context": context, "require_starttls": True},
        "ssl": {"ssl_context": context, "auth_require_tls": False},
        "insecure": {"auth_require_tls": False},
    }
    with socket.create_server(("127.0.0.1", 0)) as bound:
        postbox.port = bound.getsockname()[1]
        server = _Server(
            postbox,
            hostname=HOST,
            port=postbox.port,
            ready_timeout=60,
            authenticator=postbox.check,
            **ways[security],
        )
        server.bound = bound
        server.start()
        try:
            yield postbox
        finally:
            server.stop()
