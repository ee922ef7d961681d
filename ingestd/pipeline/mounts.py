"""Mounts: which file system holds a folder, and whether it tells of what others do there.

On a network file system the kernel tells only of what this machine does itself, and nothing
of what other machines write: a watcher there is deaf and healthy.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

# Where others may write without this kernel knowing; FUSE in all its kinds, since nobody can
# tell what is behind it. `fuseblk` is a disk of our own.
_REMOTE = frozenset(
    """
    9p acfs afpfs afs beegfs ceph cifs coda fuse gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4
    ocfs2 orangefs panfs prl_fs pvfs2 smb2 smb3 smbfs vboxsf virtiofs vmhgfs
    """.split()  # noqa: SIM905 - thirty words, not thirty lines
)
_MOUNT_POINT = 4
_ESCAPED = re.compile(r"\\([0-7]{3})")


def mountinfo() -> str:
    """What the kernel says is mounted for this process; empty where there is no /proc."""
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def file_system_of(path: PurePath, mounts: str) -> str:
    """Name the type of the file system that holds a resolved path; empty when nobody knows.

    `mounts` is the text of proc_pid_mountinfo(5). The longest mount point wins, and of equal
    ones the last: it lies on top.
    """
    found, most = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if not after or len(fields) <= _MOUNT_POINT:
            continue
        point = PurePath(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[_MOUNT_POINT]))
        if len(point.parts) >= most and path.is_relative_to(point):
            found, most = after.split(" ")[0], len(point.parts)
    return found


def is_remote(file_system: str) -> bool:
    """Say whether files of this type of file system may change without an event."""
    return file_system in _REMOTE or file_system.startswith("fuse.")
