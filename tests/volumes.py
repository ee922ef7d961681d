"""Real volumes that are small, full, read-only; and the program as a user without privileges."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .running import ROOT, soon

NOBODY = 65534


@dataclass(frozen=True)
class Volume:
    """A small file system in memory."""

    folder: Path

    @property
    def ballast(self) -> Path:
        """What fills it."""
        return self.folder / "ballast"

    def fill(self) -> None:
        """Write until there is no room for a single byte."""
        with self.ballast.open("ab", buffering=0) as stream:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        stream.write(b"x" * size)
                except OSError as full:
                    if full.errno != errno.ENOSPC:
                        raise

    def fill_inodes(self) -> None:
        """Make empty files until there can be no more."""
        self.ballast.mkdir()
        try:
            for number in range(1_000_000):
                (self.ballast / str(number)).touch()
        except OSError as full:
            if full.errno != errno.ENOSPC:
                raise

    def empty(self) -> None:
        """Make room."""
        if self.ballast.is_dir():
            shutil.rmtree(self.ballast)
        else:
            self.ballast.unlink()

    def remount(self, option: str) -> None:
        """Mount it again: `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)

    def files(self) -> list[Path]:
        """All files on it but the ballast, also hidden ones."""
        return sorted(
            path
            for path in self.folder.rglob("*")
            if path.is_file() and self.ballast not in (path, path.parent)
        )


@contextmanager
def mounted(options: str) -> Iterator[Volume]:
    """A tmpfs with these options; its path is short and open to every user."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root: sudo, or unshare --user --map-root-user --mount")
    folder = Path(tempfile.mkdtemp(prefix="ingestd-vol-", dir="/tmp"))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        folder.chmod(0o777)
        yield Volume(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


Mount = Callable[[str], Volume]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts volumes and takes them away in the end."""
    with ExitStack() as volumes:
        yield lambda options: volumes.enter_context(mounted(options))


@dataclass
class Disk:
    """An ext4 of its own on a loop device, of which the power can be cut."""

    image: Path
    device: str
    folder: Path

    def mount(self) -> None:
        """Attach and mount it; nothing is written back by time alone."""
        soon(self._attach)
        run("mount", "-o", "commit=600", self.device, self.folder)

    def _attach(self) -> bool:
        """Whether it has the same device as before, which is a part of every file's stamp."""
        command = ["losetup", self.device, str(self.image)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def unmount(self) -> None:
        """Take it away, all of it written."""
        run("umount", self.folder)
        run("losetup", "--detach", self.device)

    def cut_power(self) -> None:
        """Go on with what had been written to the device until now, and with nothing else."""
        rest = self.image.with_suffix(".rest")
        shutil.copyfile(self.image, rest)
        self.unmount()
        rest.replace(self.image)
        self.mount()


def run(*command: str | Path) -> str:
    """Run a tool of the system."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 64 MB, mounted."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("a disk whose power can be cut needs root and loop devices")
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as stream:
        stream.truncate(64 << 20)
    run("mkfs.ext4", "-q", image)
    # The upper ones, since everybody takes the first that is free.
    disk = Disk(image, f"/dev/loop{random.randrange(100, 200)}", folder)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@dataclass(frozen=True)
class Commoner:
    """A user without privileges, how to start a program as one, and a folder of its own."""

    uid: int
    prefix: tuple[str, ...]
    folder: Path

    def own(self, path: Path) -> Path:
        """Give a file or folder to this user."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.uid)
        return path


@pytest.fixture
def commoner() -> Iterator[Commoner]:
    """Root sees no refusals, so the program runs as nobody, or as root without capabilities."""
    folder = Path(tempfile.mkdtemp(prefix="ingestd-user-", dir="/tmp"))
    uid, prefix = _unprivileged()
    user = Commoner(uid, prefix, user_folder := folder / "home")
    folder.chmod(0o755)
    try:
        for each in (user_folder, *(user_folder / name for name in ("inbox", "archive"))):
            each.mkdir()
            user.own(each)
        yield user
    finally:
        shutil.rmtree(folder)


def _unprivileged() -> tuple[int, tuple[str, ...]]:
    if os.geteuid() != 0:
        return os.geteuid(), ()
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    trial = [*nobody, sys.executable, "-c", "import ingestd"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if subprocess.run(trial, env=env, capture_output=True, check=False).returncode == 0:
        return NOBODY, nobody
    # The checkout or its Python lies where nobody may look: root, but without its powers.
    return 0, ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@contextmanager
def idle(pid: int) -> Iterator[None]:
    """Hold that a process has next to nothing to do during the block."""
    before = _cpu_seconds(pid)
    yield
    used = _cpu_seconds(pid) - before
    assert used < 1, f"it was busy for {used} s"


def _cpu_seconds(pid: int) -> float:
    """User and system time; the fields are numbered in proc(5), behind a name in brackets."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
