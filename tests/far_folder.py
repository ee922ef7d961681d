"""A folder whose files others write: a file system in this process, read only, by way of FUSE.

`python -m tests.far_folder FOLDER FILES COMMAND…` mounts it at FOLDER, shows what lies in the
folder FILES, and becomes COMMAND. The kernel tells nobody when a file comes into FILES; so it
is with NFS and SMB. See fuse(4) and linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

_ROOT = 1
_PR_SET_PDEATHSIG = 1
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 25, 26, 27, 28, 29
_INTERRUPT, _BATCH_FORGET = 36, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
_HEAD = struct.Struct("<IIQQIIII")


class FarFolder:
    """Answers the kernel; a file's number is its inode below FILES."""

    def __init__(self, files: Path) -> None:
        """Show these files."""
        self.files = files
        self.answers: dict[int, Callable[[int, bytes], bytes]] = {
            _INIT: lambda _node, _body: struct.pack(
                "<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 16, 0, 0
            ),
            _LOOKUP: self.lookup,
            _GETATTR: lambda node, _body: struct.pack("<QII", 0, 0, 0) + self.attributes(node),
            _OPENDIR: lambda _node, _body: bytes(16),
            _OPEN: lambda _node, _body: bytes(16),
            _READDIR: self.list,
            _READ: self.read,
            _STATFS: lambda _node, _body: struct.pack("<5Q4I24x", 9, 9, 9, 9, 9, 512, 255, 512, 0),
            **dict.fromkeys((_RELEASE, _RELEASEDIR, _FLUSH), lambda _node, _body: b""),
        }

    def path_of(self, node: int) -> Path:
        """Where a file really lies."""
        if node == _ROOT:
            return self.files
        for path in self.files.iterdir():
            if path.stat().st_ino == node:
                return path
        raise FileNotFoundError(errno.ENOENT, str(node))

    def attributes(self, node: int) -> bytes:
        """`struct fuse_attr`."""
        told = self.path_of(node).stat()
        seconds, rest = divmod(told.st_mtime_ns, 10**9)
        kind = stat.S_IFDIR if node == _ROOT else stat.S_IFREG
        times = (*(seconds,) * 3, *(rest,) * 3)
        return struct.pack(
            "<6Q10I", node, told.st_size, 1, *times, kind | 0o555, 1, 0, 0, 0, 4096, 0
        )

    def lookup(self, _node: int, body: bytes) -> bytes:
        """`struct fuse_entry_out`."""
        node = (self.files / os.fsdecode(body.rstrip(b"\0"))).stat().st_ino
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def list(self, _node: int, body: bytes) -> bytes:
        """All names at once; nothing more from there on."""
        _handle, offset = struct.unpack_from("<QQ", body)
        told = b""
        for number, path in enumerate(sorted(self.files.iterdir()), start=1):
            name = os.fsencode(path.name)
            if number > offset:
                told += struct.pack("<QQII", path.stat().st_ino, number, len(name), 8) + name
                told += bytes(-len(told) % 8)
        return told

    def read(self, node: int, body: bytes) -> bytes:
        """Some bytes."""
        _handle, offset, size = struct.unpack_from("<QQI", body)
        with self.path_of(node).open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def serve(self, device: int) -> None:
        """Answer until it is unmounted."""
        while True:
            try:
                question = os.read(device, 1 << 20)
            except OSError:
                return
            _length, opcode, unique, node, *_who = _HEAD.unpack_from(question)
            if opcode in _UNANSWERED:
                continue
            error, answer = 0, b""
            try:
                if opcode not in self.answers:
                    raise OSError(errno.ENOSYS, str(opcode))  # noqa: TRY301 - to the kernel
                answer = self.answers[opcode](node, question[_HEAD.size :])
            except OSError as refusal:
                error = -(refusal.errno or errno.EIO)
            os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)


def main(folder: str, files: str, *command: str) -> None:
    """Mount, answer in a child, become the command."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if libc.mount(b"far", os.fsencode(folder), b"fuse.far", flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    if os.fork() == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        FarFolder(Path(files)).serve(device)
        os._exit(0)
    os.close(device)
    os.execvp(command[0], command)  # noqa: S606 - the point of it


if __name__ == "__main__":
    main(*sys.argv[1:])
