"""A proxy before PostgreSQL that reads what passes: it hangs, or loses a COMMIT or its answer."""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sqlalchemy import make_url

Fate = Literal["commit swallowed", "answer lost"]
Kind = Literal["record", "batch", "last batch", "archive note"]

ROWS = b"rows of a COPY"
_SOCKET = ".s.PGSQL.5432"


@dataclass
class Fault:
    """What is to happen at the n-th commit of a kind."""

    kind: Kind
    number: int
    fate: Fate
    is_over: bool = False


@dataclass
class Proxy:
    """Forwards between a folder of its own and the server's socket."""

    folder: Path
    server: Path
    fault: Fault | None = None
    hangs_at: bytes = b""
    lets_pass: threading.Event = field(default_factory=threading.Event)

    def url(self, url: str) -> str:
        """The URL of a database, by way of this proxy."""
        through = {"host": str(self.folder), "connect_timeout": "2"}
        query = make_url(url).update_query_dict(through, append=False)
        return query.render_as_string(hide_password=False)

    def arm(self, kind: Kind, number: int, fate: Fate) -> Fault:
        """Let one commit go wrong."""
        self.fault = Fault(kind, number, fate)
        return self.fault

    def hang(self) -> None:
        """Take everything, pass nothing on, say nothing."""
        self.lets_pass.clear()

    def hang_at(self, beginning: bytes) -> None:
        """Hang as soon as a statement begins so; `ROWS` are those of a COPY."""
        self.hangs_at = beginning

    def look_at(self, message: bytes) -> None:
        """Hang if this is what was waited for."""
        if self.hangs_at and message.startswith(self.hangs_at):
            self.hangs_at = b""
            self.hang()

    def go_on(self) -> None:
        """Pass on what was held back, too."""
        self.lets_pass.set()

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            Link(self, client).start()


@contextmanager
def proxy_before(server: Path) -> Iterator[Proxy]:
    """A proxy to the server whose socket is in a folder."""
    # Not under tmp_path: the path of a Unix socket is 107 bytes at most.
    proxy = Proxy(Path(tempfile.mkdtemp(prefix="ingestd-proxy-", dir="/tmp")), server)
    proxy.go_on()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(proxy.folder / _SOCKET))
    listener.listen()
    thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        proxy.go_on()
        shutil.rmtree(proxy.folder)


class Link:
    """One connection: two threads, and what its open transaction has written so far."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        """Take a client; the server is not asked yet."""
        self.proxy = proxy
        self.client = client
        self.server = socket.socket(socket.AF_UNIX)
        self.statements: dict[bytes, bytes] = {}
        self.written = b""
        self.loses_answer = False

    def start(self) -> None:
        """Forward both ways until either side ends."""
        try:
            self.server.connect(str(self.proxy.server / _SOCKET))
        except OSError:
            self.client.close()
            self.server.close()
            return
        works = [threading.Thread(target=work, daemon=True) for work in (self.up, self.down)]
        for work in works:
            work.start()
        threading.Thread(target=self.close, args=(works,), daemon=True).start()

    def close(self, works: list[threading.Thread]) -> None:
        """Close both sockets when nobody uses them any more."""
        for work in works:
            work.join()
        self.client.close()
        self.server.close()

    def cut(self) -> None:
        """End both sides."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        """Forward to the server message by message, and look at each."""
        with suppress(OSError, struct.error), self.client.makefile("rb") as stream:
            (length,) = struct.unpack("!i", head := stream.read(4))
            self.pass_on(head + stream.read(length - 4))
            while kind := stream.read(1):
                (length,) = struct.unpack("!i", head := stream.read(4))
                body = stream.read(length - 4)
                if self.is_swallowed(kind, body):
                    break
                self.pass_on(kind + head + body)
        self.cut()

    def pass_on(self, message: bytes) -> None:
        """Forward, unless the proxy hangs."""
        self.proxy.lets_pass.wait()
        self.server.sendall(message)

    def down(self) -> None:
        """Forward to the client; an answer that is to be lost ends the connection instead."""
        with suppress(OSError):
            while chunk := self.server.recv(65536):
                self.proxy.lets_pass.wait()
                if self.loses_answer and b"COMMIT\0" in chunk:
                    break
                self.client.sendall(chunk)
        self.cut()

    def is_swallowed(self, kind: bytes, body: bytes) -> bool:
        """Note what is written; at a COMMIT decide what becomes of it."""
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            self.statements[name] = query
        elif kind == b"B":
            _portal, name, _ = body.split(b"\0", 2)
            query = self.statements[name]
        elif kind == b"Q":
            query = body.rstrip(b"\0")
        else:
            self.proxy.look_at(ROWS if kind == b"d" else b"")
            return False
        self.proxy.look_at(query)
        if query == b"COMMIT":
            return kind != b"P" and self.commit()
        if query.startswith((b"BEGIN", b"ROLLBACK")):
            self.written = b""
        self.written += query
        return False

    def commit(self) -> bool:
        """Say whether this COMMIT is swallowed."""
        kind, self.written = kind_of(self.written), b""
        fault = self.proxy.fault
        if fault is None or fault.is_over or fault.kind != kind:
            return False
        fault.number -= 1
        if fault.number > 0:
            return False
        fault.is_over = True
        self.loses_answer = fault.fate == "answer lost"
        return fault.fate == "commit swallowed"


def kind_of(written: bytes) -> Kind | None:
    """What a transaction was for, by what it wrote."""
    if b"INSERT INTO file_processing" in written:
        return "record"
    if b"checkpoint_byte=" in written:
        return "last batch" if b"finished_at=" in written else "batch"
    return "archive note" if b"archived_to=" in written else None
