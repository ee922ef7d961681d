"""A web server of our own that takes messages, or refuses, or lets wait: whatever a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Posted:
    """One message as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)


@dataclass
class Hook:
    """What came, and what is answered: the next of `answers`, the last one for ever."""

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [200])
    headers: dict[str, str] = field(default_factory=dict)
    posted: list[Posted] = field(default_factory=list)
    # Called before the answer, with the message; may wait, or kill who sent it.
    before: Callable[[Posted], object] = lambda _posted: None

    @property
    def url(self) -> str:
        """Where to post to; its path is a secret."""
        return f"http://127.0.0.1:{self.port}/services/SECRET-TOKEN"

    def ids(self) -> list[str]:
        """The ids of the messages, in order."""
        return [each.json["id"] for each in self.posted]

    def titles(self) -> list[str]:
        """What was told, change by change, in order."""
        return [change["title"] for each in self.posted for change in each.json["changes"]]


@contextmanager
def hook_server() -> Iterator[Hook]:
    """A server on a port of its own, for the time of the block."""
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            posted = Posted(self.path, dict(self.headers), self.rfile.read(size))
            hook.posted.append(posted)
            hook.before(posted)
            answers = hook.answers
            status = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in hook.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_told: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            with suppress(OSError):  # who asked may be gone
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hook
    finally:
        hook.before = lambda _posted: None
        server.shutdown()
        thread.join()
        server.server_close()
