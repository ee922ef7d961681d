"""Mounts: which file system holds a folder, and whether this kernel knows all that write there.

On a network file system the kernel tells only of what this machine does itself, and nothing
of what other machines write: a watcher there is deaf and healthy, and a lease proves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

# Where others may write without this kernel knowing; FUSE in all its kinds, since nobody can
# tell what is behind it. `fuseblk` is a disk of our own.
_REMOTE = frozenset(
    """
    9p acfs afpfs afs beegfs ceph cifs coda fuse gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4
    ocfs2 orangefs panfs prl_fs pvfs2 smb2 smb3 smbfs vboxsf virtiofs vmhgfs
    """.split()  # noqa: SIM905 - thirty words, not thirty lines
)
_ESCAPED = re.compile(r"\\([0-7]{3})")
_DEVICE, _POINT = 2, 4


@dataclass(frozen=True, slots=True)
class _Mount:
    """One line of the list."""

    device: str
    point: PurePath
    file_system: str


def mountinfo() -> str:
    """What the kernel says is mounted for this process; empty where there is no /proc."""
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _parsed(mounts: str) -> Iterator[_Mount]:
    """Read the text of proc_pid_mountinfo(5)."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after and len(fields) > _POINT:
            point = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[_POINT])
            yield _Mount(fields[_DEVICE], PurePath(point), after.split(" ")[0])


def file_system_of(path: PurePath, mounts: str) -> str:
    """Name the type of the file system that holds a resolved path; empty when nobody knows.

    `mounts` is what `mountinfo` says. The longest mount point wins, and of equal ones the
    last: it lies on top.
    """
    found, most = "", -1
    for mount in _parsed(mounts):
        depth = len(mount.point.parts)
        if depth >= most and path.is_relative_to(mount.point):
            found, most = mount.file_system, depth
    return found


def file_system_on(device: int, mounts: str) -> str:
    """Name the type of the file system on a device (`st_dev`); empty when nobody knows."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((each.file_system for each in _parsed(mounts) if each.device == number), "")


def is_remote(file_system: str) -> bool:
    """Say whether others may write to this type of file system unseen by this kernel."""
    return file_system in _REMOTE or file_system.startswith("fuse.")
