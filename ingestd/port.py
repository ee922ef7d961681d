"""The local port: /metrics for Prometheus, /healthz and /readyz for whoever keeps us running.

It answers in threads of its own, from what the loop has told; nobody who asks can hold up
a file. Nothing of a request is used but its path, and that is only compared.
"""

from __future__ import annotations

import io
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog

from ingestd.config import place_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = structlog.get_logger()

TEXT = "text/plain; version=0.0.4; charset=utf-8"
JSON = "application/json"
# A request that is longer, or takes longer, is not one of ours.
_MOST_BYTES = 8192
_REQUEST_SECONDS = 5.0
_MOST_AT_ONCE = 8
_RETRY_SECONDS = 30.0
_LOOK_SECONDS = 0.25
_SAID_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    content: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


def verdict(word: str, reasons: list[str]) -> Page:
    """Answer yes, or no with the reasons: 200 or 503, in JSON."""
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    told = {word: not reasons, "reasons": reasons}
    return Page(json.dumps(told).encode() + b"\n", JSON, status)


@dataclass(slots=True)
class Port:
    """Listens where the settings say, or nowhere; a port that is taken is tried again."""

    pages: Mapping[str, Callable[[], Page]]
    clock: Callable[[], float] = time.monotonic
    _wanted: str = ""
    _server: _Server | None = None
    _next_try: float = 0.0
    _is_said: bool = field(default=False, repr=False)

    def listen_at(self, wanted: str) -> None:
        """Listen at an address from now on; nowhere where it is empty."""
        if wanted != self._wanted:
            self.close()
            self._wanted, self._is_said, self._next_try = wanted, False, 0.0
        self.attend()

    def attend(self) -> None:
        """Try again what did not work."""
        now = self.clock()
        if not self._wanted or self._server is not None or now < self._next_try:
            return
        self._next_try = now + _RETRY_SECONDS
        try:
            self._server = _serving(place_of(self._wanted), self.pages)
        except (OSError, RuntimeError) as error:  # it is taken; there are too many threads
            if not self._is_said:
                self._is_said = True
                log.error(  # noqa: TRY400 - no traceback for a port that is taken
                    "port_not_opened", listen=self._wanted, error=str(error), remedy=_REMEDY
                )
            return
        host, port = self._server.server_address[:2]
        log.info("port_opened", address=str(host), port=port)
        if not ip_address(str(host)).is_loopback:
            log.warning("port_open_to_others", address=str(host), port=port)

    def close(self) -> None:
        """Answer no more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


_REMEDY = (
    "another program may have this port: choose another by metrics.listen; a service of systemd "
    "may open one after `ingestd unit install --metrics`"
)


def _serving(place: tuple[str, int], pages: Mapping[str, Callable[[], Page]]) -> _Server:
    server = _Server(place, pages)
    try:
        threading.Thread(target=server.serve_forever, args=(_LOOK_SECONDS,), daemon=True).start()
    except RuntimeError:
        server.server_close()
        raise
    return server


class _Server(socketserver.ThreadingTCPServer):
    """Answers a few at a time; who comes beyond them is hung up on."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, place: tuple[str, int], pages: Mapping[str, Callable[[], Page]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self.pages = pages
        self._failed_at: float | None = None
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(place, _Request)

    def get_request(self) -> tuple[socket.socket, object]:
        try:
            return super().get_request()
        except OSError:  # as many files are open as may be: who asks is still there in a moment
            time.sleep(_LOOK_SECONDS)
            raise

    def process_request(self, request: _Socket, client_address: object) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._room.release()
            raise

    def process_request_thread(self, request: _Socket, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def note_failure(self, error: Exception) -> None:
        """Say, once a minute at most, that a page could not be made: that is our own mistake."""
        now = time.monotonic()
        if self._failed_at is None or now - self._failed_at >= _SAID_EVERY_SECONDS:
            self._failed_at = now
            log.error("page_failed", exc_info=error)

    def handle_error(self, request: _Socket, client_address: object) -> None:
        """Note it for who looks closely: what a stranger does is no event of ours."""
        del request, client_address
        log.debug("request_failed", error=str(sys.exception()))


_Socket = socket.socket | tuple[bytes, socket.socket]


class _Request(BaseHTTPRequestHandler):
    """One request: its head, no body, one answer, the end."""

    server: _Server
    server_version = "ingestd"
    sys_version = ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s: %(explain)s\n"

    def setup(self) -> None:
        """Read the head, all of it or none, within a time that no trickle makes longer."""
        self.connection = self.request
        self.rfile = io.BufferedReader(io.BytesIO(_head_of(self.connection)))
        self.connection.settimeout(_REQUEST_SECONDS)
        self.wfile = _Whole(self.connection)

    def finish(self) -> None:
        """Nothing is kept back."""

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        """Answer without its content."""
        self._answer(with_content=False)

    def _answer(self, *, with_content: bool) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            self.send_error(
                HTTPStatus.NOT_FOUND, explain=f"there are {' '.join(self.server.pages)}"
            )
            return
        try:
            page = make()
        except Exception as error:  # noqa: BLE001 - whatever it is, who asks is answered
            self.server.note_failure(error)
            self.send_error(
                HTTPStatus.INTERNAL_SERVER_ERROR, explain="the log says more (page_failed)"
            )
            return
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_content:
            self.wfile.write(page.content)

    def log_message(self, format: str, *told: object) -> None:
        """Say nothing: a page that is read every few seconds is no news."""


class _Whole(io.BufferedIOBase):
    """Sends all that is written."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, content: ReadableBuffer) -> int:
        self._connection.sendall(content)
        return len(memoryview(content))


def _head_of(connection: socket.socket) -> bytes:
    """Read up to the empty line; nothing where that does not come in time, or too late."""
    until = time.monotonic() + _REQUEST_SECONDS
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left = until - time.monotonic()
        if left <= 0 or len(head) >= _MOST_BYTES:
            return b""
        connection.settimeout(left)
        part = b""
        with suppress(OSError):
            part = connection.recv(_MOST_BYTES - len(head))
        if not part:
            return b""
        head += part
    return head
