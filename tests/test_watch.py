"""Finding files and telling when they are complete."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from watchdog.events import FileClosedEvent, FileModifiedEvent, FileMovedEvent

from ingestd.pipeline.events import Wakeup
from ingestd.pipeline.watch import Seen, Settling, scan


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
