"""A machine of its own: a Debian booted with systemd in a container, thrown away at its end.

Its disk is made once, with debootstrap, and kept below /var/tmp; what a boot writes lies in memory.
It has no network. Needs root, debootstrap and systemd-nspawn (Debian: systemd-container).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .running import ROOT, soon

WHEELS = Path("/var/tmp/ingestd-wheels")
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "procps", "passwd", "acl", "rsync"),
    *("python3", "python3-venv", "postgresql", "sqlite3"),
)
# A disk that lacks a package is another one.
DISK = Path(f"/var/tmp/ingestd-machine-bookworm-{zlib.crc32(repr(PACKAGES).encode()):08x}")
# The Python of that Debian.
PYTHON = "3.11"
NEEDED = ("debootstrap", "systemd-nspawn", "nsenter")


def what_is_missing() -> str:
    """Why no machine can be booted here; nothing when one can."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"missing: {', '.join(missing)}" if missing else ""


def make_disk() -> None:
    """Make the disk, if it is not there yet: some minutes, and the network."""
    if DISK.is_dir():
        return
    partial = DISK.with_name(f"{DISK.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    included = f"--include={','.join(PACKAGES)}"
    run("debootstrap", "--variant=minbase", included, "bookworm", str(partial), MIRROR)
    partial.rename(DISK)


def make_wheels() -> None:
    """Build ours, and fetch what it depends on."""
    WHEELS.mkdir(exist_ok=True)
    for old in WHEELS.glob("ingestd-*.whl"):
        old.unlink()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(WHEELS), str(ROOT))
    ours = next(WHEELS.glob("ingestd-*.whl"))
    told = ("--only-binary", ":all:", "--python-version", PYTHON, "--find-links", str(WHEELS))
    run(*pip, "download", *told, "--dest", str(WHEELS), f"{ours}[postgresql]")


def run(*command: str) -> None:
    """Run a command here; what it says is shown when it fails."""
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert 0 == done.returncode, f"{shlex.join(command)}\n{done.stdout}"


@dataclass
class Machine:
    """A booted one."""

    process: subprocess.Popen[bytes]
    leader: int

    def try_(self, command: str, *, stdin: bytes = b"", user: str = "root") -> tuple[int, str]:
        """Run a shell command in it; its exit status and all that it said."""
        inside: tuple[str, ...] = ("bash", "-c", command)
        if user != "root":
            inside = ("runuser", "-u", user, "--", *inside)
        done = subprocess.run(
            ["nsenter", "--target", str(self.leader), "--all", "--", *inside],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def run(self, command: str, *, stdin: bytes = b"", user: str = "root") -> str:
        """Run what must succeed; all that it said."""
        status, told = self.try_(command, stdin=stdin, user=user)
        assert 0 == status, f"{command}\nended with {status}: {told}"
        return told

    def write(self, path: str, content: bytes | str, *, user: str = "root") -> None:
        """Write a file in it."""
        data = content.encode() if isinstance(content, str) else content
        self.run(f"cat > {shlex.quote(path)}", stdin=data, user=user)

    def told(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --value --property={name} {unit}").strip()


@contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine; power it off at the end."""
    make_disk()
    make_wheels()
    options = ("--volatile=overlay", "--register=no", "--keep-unit", "--private-network")
    name = f"ingestd-{os.getpid()}"
    with subprocess.Popen(
        [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={DISK}", f"--machine={name}"),
            *options,
            *("--console=pipe", f"--bind-ro={WHEELS}:/wheels"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            soon(lambda: _init_of(process.pid), seconds=120)
            machine = Machine(process, _init_of(process.pid))
            soon(lambda: _is_up(machine), seconds=180)
            yield machine
        finally:
            _power_off(process)


def _power_off(process: subprocess.Popen[bytes]) -> None:
    if leader := _init_of(process.pid):
        os.kill(leader, signal.SIGRTMIN + 4)  # as systemd(1) says: power off
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()


def _init_of(pid: int) -> int:
    """The first process of the machine, or 0: a child that has become systemd."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        inits = [child for child in children if _name_of(child) == "systemd"]
    except OSError:
        return 0
    return int(inits[0]) if inits else 0


def _name_of(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()


def _is_up(machine: Machine) -> bool:
    _, told = machine.try_("systemctl is-system-running")
    time.sleep(0.2)
    return told.strip() in {"running", "degraded"}
