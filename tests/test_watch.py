"""Finding files and telling when they are complete."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from watchdog.events import FileClosedEvent, FileModifiedEvent, FileMovedEvent

from ingestd.pipeline.events import Wakeup
from ingestd.pipeline.mounts import file_system_of, file_system_on, is_remote, mountinfo
from ingestd.pipeline.watch import SENTINEL, Seen, Settling, look_at, scan


def test_files_are_found_in_all_folders(tmp_path: Path) -> None:
    """`.csv` and `.zip` in any case, however deep."""
    for name in ("a.csv", "deep/er/b.ZIP", "№ 1 '\"/c.Csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(seen.relative) for seen in scan(tmp_path, ())}
    assert {"a.csv", "deep/er/b.ZIP", "№ 1 '\"/c.Csv"} == found


def test_names_that_are_still_being_written_are_left_alone(tmp_path: Path) -> None:
    """What downloaders and rsync write under is not a file yet."""
    for name in ("a.csv.part", ".b.csv.x7Yz", "c.csv"):
        (tmp_path / name).touch()
    found = [str(seen.relative) for seen in scan(tmp_path, ("*.part", ".*"))]
    assert ["c.csv"] == found


def test_odd_files_are_said_once_and_never_opened(tmp_path: Path) -> None:
    """A FIFO would hang whoever opens it; a link may point anywhere."""
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    (tmp_path / "loop.csv").symlink_to(tmp_path)
    (tmp_path / "notes.txt").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.csv"))
        odd: set[str] = set()
        with capture_logs() as logs:
            assert [] == list(scan(tmp_path, (), odd))
            assert [] == list(scan(tmp_path, (), odd))
    assert sorted(["fifo.csv", "link.csv", "loop.csv", "notes.txt", "socket.csv"]) == sorted(
        entry["path"] for entry in logs
    )


def test_a_name_that_is_no_text_is_found_all_the_same(tmp_path: Path) -> None:
    """File names are bytes; a newline or a stray byte is a name like any other."""
    for name in (b"a\xff.csv", b"b\n.csv"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    assert 2 == len(list(scan(tmp_path, ())))


def test_folders_are_told_beside_files(tmp_path: Path) -> None:
    """Each folder that could be listed, and which folder bears the inbox's name just now."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    look = look_at(tmp_path, (".*",), set())
    assert {Path(), Path("a"), Path("a/b")} == set(look.folders)
    assert (tmp_path.stat().st_dev, tmp_path.stat().st_ino) == look.identity


def test_no_pattern_ignores_nothing(tmp_path: Path) -> None:
    """An empty list of patterns is not the empty pattern."""
    (tmp_path / ".a.csv").touch()
    assert [Path(".a.csv")] == [seen.relative for seen in scan(tmp_path, ())]


def test_a_root_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """An empty inbox and a missing one are not the same."""
    with pytest.raises(FileNotFoundError):
        list(scan(tmp_path / "gone", ()))


def look(stamp: str, *, mtime: int = 0, name: str = "a.csv") -> Seen:
    """One file at one look."""
    return Seen(Path(name), stamp, 1, mtime)


def test_a_file_is_complete_when_it_stays_equal_long_enough() -> None:
    """Two looks, `settle_seconds` apart, with the same stamp."""
    settling = Settling(settle_seconds=2)
    root = Path("/in")
    assert [] == settling.complete(root, [look("1")], {}, 0)
    assert [] == settling.complete(root, [look("2")], {}, 2)
    assert [] == settling.complete(root, [look("2")], {}, 3)
    (found,) = settling.complete(root, [look("2")], {}, 4)
    assert ("stable", root / "a.csv") == (found.evidence, found.path)


def test_a_file_that_was_renamed_is_complete_at_once() -> None:
    """Nobody renames what is not yet written."""
    settling = Settling(settle_seconds=60)
    (found,) = settling.complete(Path("/in"), [look("1")], {Path("a.csv"): "renamed"}, 0)
    assert "renamed" == found.evidence


def test_a_file_that_was_closed_must_settle_all_the_same() -> None:
    """Many writers close a file and open it again for the next rows."""
    settling = Settling(settle_seconds=60)
    hints = {Path("a.csv"): "closed"}
    assert [] == settling.complete(Path("/in"), [look("1")], hints, 0)
    (found,) = settling.complete(Path("/in"), [look("1")], hints, 60)
    assert "closed" == found.evidence


def test_the_older_file_comes_first() -> None:
    """Which publication is newer is known by arrival: in one scan by mtime, then path."""
    settling = Settling(settle_seconds=0)
    seen = [
        look("1", mtime=2, name="a"),
        look("1", mtime=1, name="c"),
        look("1", mtime=1, name="b"),
    ]
    found = [str(item.relative) for item in settling.complete(Path("/in"), seen, {}, 0)]
    assert ["b", "c", "a"] == found


def test_writing_again_takes_the_evidence_back(tmp_path: Path) -> None:
    """open, close, open again: the first close proves nothing any more."""
    wakeup = Wakeup(tmp_path)
    path = Path("a.csv")
    wakeup.on_any_event(FileClosedEvent(str(tmp_path / path)))
    assert {path: "closed"} == wakeup.take_hints([path])
    wakeup.on_any_event(FileModifiedEvent(str(tmp_path / path)))
    assert {} == wakeup.take_hints([path])
    wakeup.on_any_event(FileMovedEvent(str(tmp_path / "a.part"), str(tmp_path / path)))
    assert {path: "renamed"} == wakeup.take_hints([path])
    assert {} == wakeup.take_hints([])


def test_evidence_that_comes_during_a_look_is_kept(tmp_path: Path) -> None:
    """The look may have passed the place before the file came; the next one finds it."""
    wakeup = Wakeup(tmp_path)
    wakeup.begin_look()
    wakeup.on_any_event(FileMovedEvent(str(tmp_path / "a.part"), str(tmp_path / "a.csv")))
    assert {} == wakeup.take_hints([])
    wakeup.begin_look()
    assert {Path("a.csv"): "renamed"} == wakeup.take_hints([Path("a.csv")])
    wakeup.begin_look()
    assert {} == wakeup.take_hints([])
    assert {Path("a.csv")} == wakeup.untold([Path("a.csv")])


def test_our_own_sentinels_wake_nobody(tmp_path: Path) -> None:
    """They are heard, and that is all."""
    wakeup = Wakeup(tmp_path)
    wakeup.on_any_event(FileClosedEvent(str(tmp_path / f"{SENTINEL}-x-1")))
    assert not wakeup.woken.is_set()
    assert f"{SENTINEL}-x-1" == wakeup.sentinel


# As real machines say it: the last line lies on top of the one before it.
MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 27 0:40 / /srv rw,relatime shared:3 - xfs /dev/sdb1 rw,attr2
45 31 0:52 / /srv/in\\040box rw,relatime shared:200 - nfs4 10.0.0.5:/export rw,vers=4.2,hard
46 31 0:53 / /srv/share rw,relatime - cifs //nas/share rw,vers=3.1.1
47 31 0:54 / /srv/ssh rw,nosuid,nodev - fuse.sshfs me@host: rw,user_id=0
48 31 8:17 / /srv/stick rw,relatime - fuseblk /dev/sdc1 rw,user_id=0
49 27 0:55 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs
50 31 0:56 / /srv/auto rw,relatime - autofs systemd-1 rw,fd=43
51 50 0:57 / /srv/auto rw,relatime - nfs nas:/auto rw
a line that no kernel writes
"""


@pytest.mark.parametrize(
    ("path", "file_system", "is_looked_at_only"),
    [
        ("/srv/inbox", "xfs", False),
        ("/srv/in box/deep/er", "nfs4", True),
        ("/srv/in boxes", "xfs", False),
        ("/srv/share", "cifs", True),
        ("/srv/ssh/a", "fuse.sshfs", True),
        ("/srv/stick", "fuseblk", False),
        ("/mnt/c/inbox", "9p", True),
        ("/srv/auto/in", "nfs", True),
        ("/home/me/inbox", "ext4", False),
        ("/proc/1", "proc", False),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(
    path: str, file_system: str, is_looked_at_only: bool
) -> None:
    """There, others write without an event; a disk of our own tells, even by way of FUSE."""
    assert file_system == file_system_of(Path(path), MOUNTS)
    assert is_looked_at_only == is_remote(file_system)


@pytest.mark.parametrize(
    ("device", "file_system"), [((0, 52), "nfs4"), ((254, 0), "ext4"), ((9, 9), "")]
)
def test_a_file_system_is_known_by_its_device(device: tuple[int, int], file_system: str) -> None:
    """Of an open file nothing else is known for certain; its name may be another's by now."""
    assert file_system == file_system_on(os.makedev(*device), MOUNTS)


def test_where_others_may_write_is_known_by_the_type() -> None:
    """NFS and CIFS refuse leases as if somebody wrote; FUSE grants them and knows nothing."""
    remote = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "9p",
        "fuse",
        "fuse.sshfs",
        "ceph",
        "glusterfs",
        "virtiofs",
        "vboxsf",
        "ocfs2",
    ]
    assert remote == [kind for kind in remote if is_remote(kind)]
    local = ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", ""]
    assert [] == [kind for kind in local if is_remote(kind)]


def test_what_holds_a_folder_here_is_known(tmp_path: Path) -> None:
    """Asked of the kernel; where it says nothing, nothing is assumed."""
    assert "proc" == file_system_of(Path("/proc/self"), mountinfo())
    assert "proc" == file_system_on(Path("/proc/self").stat().st_dev, mountinfo())
    assert file_system_of(tmp_path.resolve(), mountinfo())
    assert "" == file_system_of(tmp_path, "")
    assert not is_remote("")
