"""The ways to people: a webhook that is posted JSON, and through apprise a hundred others.

URLs of channels hold passwords and tokens. No error, no log line and no exception shows one: what
went wrong is said in words of our own.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
import warnings
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import urllib3

from ingestd import __version__
from ingestd.config import ConfigError, Notify, webhook_secret
from ingestd.errors import Undelivered
from ingestd.telling.message import Message

_TYPES = {"critical": "failure", "warning": "warning", "info": "info"}
_LONGEST_PAUSE = timedelta(hours=1)
_SLICE_SECONDS, _STOP_SECONDS = 0.25, 2.0
_OK, _REDIRECTS, _ERRORS = 200, 300, 400
# About the message, not the channel: not understood, too large, not as it should be.
_REFUSALS = (400, 413, 422)
# A message in parts of so many characters would be dozens: of a short message, the beginning.
_SHORT = 1000


class Channel(Protocol):
    """One way to people."""

    @property
    def name(self) -> str:
        """As the settings name it."""

    @property
    def kind(self) -> str:
        """What it is, without its secrets: `webhook`, or a scheme of apprise."""

    def send(self, message: Message) -> None:
        """Send a message. Raises Undelivered."""


def channels_of(told: Notify) -> list[Channel]:
    """The channels of the settings.

    Raises:
        ConfigError: one that cannot be used, or apprise is not installed.
    """
    secret = webhook_secret(told)
    found: list[Channel] = []
    for name, url in sorted(told.channels.items()):
        if url.lower().startswith(("http://", "https://")):
            found.append(Webhook(name, _sound(name, url), told.timeout_seconds, secret))
        else:
            found.append(ThroughApprise(name, url, told.timeout_seconds))
    return found


def send_in_time(
    channel: Channel,
    message: Message,
    seconds: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Send a message, and wait for it no longer than so; a library may wait for each byte anew.

    At a stop it is waited for a moment only.

    Raises:
        Undelivered: it was not taken, or nobody knows yet.
    """
    ended: list[Exception | None] = []

    def send() -> None:
        try:
            channel.send(message)
        except Exception as error:  # noqa: BLE001 - it belongs to the thread that waits
            ended.append(error)
        else:
            ended.append(None)

    at_it = threading.Thread(target=send, name=f"notify {channel.name}", daemon=True)
    at_it.start()
    until = time.monotonic() + seconds
    while at_it.is_alive() and (left := until - time.monotonic()) > 0:
        at_it.join(min(left, _SLICE_SECONDS))
        if should_stop():
            at_it.join(min(left, _STOP_SECONDS))
            break
    if not ended:
        is_stopped = time.monotonic() < until
        reason = "stopped before its end" if is_stopped else f"no end of it within {seconds:g} s"
        raise Undelivered(reason)
    if isinstance(ended[0], Undelivered):
        raise ended[0]
    if ended[0] is not None:
        # Its own words may show the URL.
        raise Undelivered(f"it failed: {type(ended[0]).__name__}")


# A webhook ----------------------------------------------------------------------------------


def _sound(name: str, url: str) -> str:
    try:
        host = urllib3.util.parse_url(url).host
    except urllib3.exceptions.LocationParseError:
        host = None
    if not host:
        raise ConfigError(f"notify.channels.{name}: not a URL of a web server")
    return url


@dataclass(frozen=True, slots=True)
class Webhook:
    """JSON by POST; taken is what is answered with 2xx, and a redirect leads nowhere."""

    name: str
    url: str = field(repr=False)
    seconds: float
    secret: str | None = field(default=None, repr=False)
    clock: Callable[[], float] = time.time
    kind: str = "webhook"

    def send(self, message: Message) -> None:
        """Post it. Raises Undelivered."""
        # It says at warning level which URL sent a strange header.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        body = message.json()
        timeout = urllib3.Timeout(connect=self.seconds, read=self.seconds)
        with urllib3.PoolManager(1, timeout=timeout, retries=False) as pool:
            try:
                answer = pool.request(
                    "POST",
                    self.url,
                    body=body,
                    headers=self._headers(message, body),
                    redirect=False,
                    preload_content=False,
                )
            except urllib3.exceptions.HTTPError as error:
                raise Undelivered(_in_words(error, self.seconds)) from None
            status, headers = answer.status, answer.headers
            answer.close()
        if _REDIRECTS <= status < _ERRORS:
            raise Undelivered(f"answered {status}: redirects are not followed, name the new place")
        if not _OK <= status < _REDIRECTS:
            raise Undelivered(
                f"answered {status}",
                pause=_asked_for(headers.get("Retry-After")),
                is_refused=status in _REFUSALS,
            )

    def _headers(self, message: Message, body: bytes) -> Mapping[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"ingestd/{__version__}",
            "Idempotency-Key": str(message.id),
        }
        if auth := urllib3.util.parse_url(self.url).auth:
            # By ourselves: urllib3 knows no letters but those of Latin-1.
            word = b64encode(unquote(auth).encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        if self.secret is not None:
            at = str(int(self.clock()))
            headers["X-Ingestd-Timestamp"] = at
            headers["X-Ingestd-Signature"] = signature(self.secret, at, body)
        return headers


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256 of timestamp, full stop and body, in hexadecimal."""
    signed = timestamp.encode() + b"." + body
    return f"sha256={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def _in_words(error: Exception, seconds: float) -> str:
    """What went wrong, by its type: the texts of urllib3 show the URL."""
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "unknown host"
        case urllib3.exceptions.NewConnectionError():
            cause = error.__cause__ or error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else None
            return reason or "no connection"
        case urllib3.exceptions.ConnectTimeoutError():
            return f"no connection within {seconds:g} s"
        case urllib3.exceptions.TimeoutError():
            return f"no answer within {seconds:g} s"
        case urllib3.exceptions.SSLError():
            cause = error.args[0] if error.args else None
            reason = getattr(cause, "verify_message", None) or getattr(cause, "reason", None)
            return f"TLS: {reason or 'failed'}"
        case urllib3.exceptions.ProtocolError():
            return "the connection was closed"
    return f"it failed: {type(error).__name__}"


def _asked_for(retry_after: str | None) -> timedelta:
    """The pause that the other end asks for, within reason; a date is not believed."""
    if retry_after is None or not retry_after.isascii() or not retry_after.isdigit():
        return timedelta()
    return min(timedelta(seconds=int(retry_after[:6])), _LONGEST_PAUSE)


# Through apprise ----------------------------------------------------------------------------

_MAIL = {"mailto", "mailtos"}
_ANSWER = "Socket Exception: "
_REPLY = re.compile(r"""\((\d{3}), b(['"])(.*?)\2\)""")
_WITH_HOST = {"mailto", "json", "xml", "form"}


class ThroughApprise:
    """Mail, chats, short messages and a hundred more, by the URLs of apprise."""

    def __init__(self, name: str, url: str, seconds: float) -> None:
        """Raises ConfigError: apprise is not installed, or knows no such URL."""
        self.name = name
        self.kind = urlsplit(url).scheme.lower()
        self._hidden = _secrets_of(url)
        self._notifier = _notifier(name, self.kind, url, seconds)

    def send(self, message: Message) -> None:
        """Send it. Raises Undelivered."""
        import apprise  # noqa: PLC0415 - optional

        # Only of mail do we read further: elsewhere what is said there shows the URL in parts.
        level = logging.DEBUG if self.kind in _MAIL else logging.WARNING
        with apprise.LogCapture(level=level) as said:  # type: ignore[no-untyped-call]  # apprise 2 has half of its types
            is_sent = self._notifier.notify(
                body=message.text,
                title=message.title,
                notify_type=_TYPES[message.severity],
                # Else what stands in files would be taken for HTML or Markdown.
                body_format="text",
            )
            lines = said.getvalue().splitlines()
        if not is_sent:
            raise Undelivered(self._shown(_reason(lines)))

    def _shown(self, text: str) -> str:
        """What apprise says, without what it was told to keep."""
        for hidden in self._hidden:
            text = text.replace(hidden, "***")
        return text[:300]


def _reason(lines: Sequence[str]) -> str:
    """Why it could not be sent: what apprise says first, and what a mail server has answered."""
    said = [line.split(" - ", 2) for line in lines]
    told = [part for part in said if len(part) == len(("time", "level", "text"))]
    first = next((text for _, level, text in told if level not in ("DEBUG", "INFO")), "")
    answers = [text.removeprefix(_ANSWER) for *_, text in told if text.startswith(_ANSWER)]
    # As smtplib shows it, for each address: (535, b'5.7.8 Authentication credentials invalid')
    replies = [f"{code} {text}" for code, _, text in _REPLY.findall("".join(answers))]
    why = dict.fromkeys(replies or answers)
    return ": ".join([first.rstrip(".") or "apprise could not send it", *why])


def _notifier(name: str, kind: str, url: str, seconds: float) -> Any:
    # It imports a hundred modules for as many services, some of them past their time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apprise = _apprise(name, kind)
        notifier = apprise.Apprise()
        is_known = notifier.add(_with_usual(url, seconds, overflow="split"))
        if is_known and any(each.body_maxlen < _SHORT for each in notifier):
            notifier.clear()
            is_known = notifier.add(_with_usual(url, seconds, overflow="truncate"))
    if not is_known:
        raise ConfigError(
            f"notify.channels.{name}: apprise knows no such URL of {kind}://; see "
            "https://github.com/caronc/apprise/wiki"
        )
    return notifier


def _with_usual(url: str, seconds: float, *, overflow: str) -> str:
    """The URL with what we want of every service, where it does not say so itself.

    Left to itself apprise sends a text that is too long as it is, and a chat refuses it; and it
    follows redirects with all that the message says.
    """
    half = f"{seconds / 2:g}"
    usual = {"cto": half, "rto": half, "overflow": overflow, "redirect": "no"}
    for key, value in usual.items():
        if not re.search(rf"[?&]{key}=", url, re.IGNORECASE):
            url = f"{url}{'&' if '?' in url else '?'}{key}={value}"
    return url


def _apprise(name: str, kind: str) -> ModuleType:
    """The library, which keeps its own log of what it sends where to itself."""
    try:
        import apprise  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"notify.channels.{name}: {kind}:// needs one package more: "
            "pip install 'ingestd[notify]'"
        ) from error
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    for library in ("urllib3", "requests"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return apprise


def _secrets_of(url: str) -> list[str]:
    """Whatever stands in a URL but its scheme, the longest first.

    And but its host, where that is one: with most services it is a token.
    """
    parts = urlsplit(url)
    is_host = parts.scheme.lower().removesuffix("s") in _WITH_HOST
    host = (parts.hostname or "").lower() if is_host else ""
    words = re.split(r"[/?&=:@,#]", url.partition("://")[2])
    found = {word for word in words for word in (word, unquote(word)) if len(word) > 2}  # noqa: PLR2004 - shorter ones are no secret
    return sorted((word for word in found if word.lower() != host), key=len, reverse=True)
