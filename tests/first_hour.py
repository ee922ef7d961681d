"""A new user's first hour, on a machine of its own; `make first-hour` writes docs/first-hour.md.

Commands stand here as in the documents that show them; `WORDS` says what is typed for the words in
capitals. What is shown is what was said: lines that are left out leave a `…`, nothing is changed.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .machine import Machine, booted, what_is_missing
from .running import ROOT
from .shown import trimmed

TARGET = ROOT / "docs" / "first-hour.md"
INBOX = "/var/lib/ingestd/inbox/"
BIG = "~/big/drop/*_0800-0900.csv"
SECONDS = 180
"""How long a change may take on a machine that tests share."""

WORDS = {
    "NAME": "bob",
    "grant-reader ROLE": "grant-reader observer",
    "FILE": "~/big/drop/*_1000-1100.csv",
    "observer@host": "observer@localhost",
    "192.0.2.7": "127.0.0.1",
    "/srv/backups/ingestd-20240909T120000Z.db": "/srv/backups/ingestd-*.db",
}
"""What the documents show, and what is typed here."""

INTRODUCTION = """\
# The first hour

This page is written by `make first-hour`; nobody edits it. A Debian 12 that knows nothing of
ingestd is booted in a container and lives through what a new user meets in an hour: install, drop,
look, and then everything that goes wrong sooner or later. Every answer below is what the programs
said; `…` stands for lines that are left out. Each step has to end as it is shown, or no page is
written.

Two things are made for the purpose: the machine has no network, so `pip` finds its packages in a
folder (`/etc/pip.conf`); and `/var/lib/ingestd` is a disk of its own of 700 MB, to be filled up.
`root#` is the administrator, `bob$` one of those who drop files.
"""


@dataclass
class Hour:
    """What was done so far, as a page."""

    machine: Machine
    lines: list[str] = field(default_factory=list)
    is_open: bool = False

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self.tell(f"## {title}")
        self.lines.pop()

    def tell(self, sentence: str) -> None:
        """Say what it means."""
        if self.is_open:
            self.lines.append("```")
        self.is_open = False
        self.lines += ["", *textwrap.wrap(sentence, 100, break_on_hyphens=False), ""]

    def root(self, command: str, *shown: str, status: int = 0, typed: str = "") -> str:
        """Let the administrator say a command, in /root."""
        return self._say("root", command, shown, status, typed)

    def bob(self, command: str, *shown: str, status: int = 0) -> str:
        """Let bob say a command, in his home."""
        return self._say("bob", command, shown, status, "")

    def until(self, command: str, wanted: str) -> str:
        """Say a command again and again until its answer has it; that answer is shown."""
        deadline = time.monotonic() + SECONDS
        while wanted not in self.machine.try_(command)[1]:
            assert time.monotonic() < deadline, f"{command}: never {wanted!r}"
            time.sleep(0.2)
        return self.root(command, re.escape(wanted))

    def _say(self, user: str, command: str, shown: tuple[str, ...], status: int, typed: str) -> str:
        for word, meant in WORDS.items():
            command = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", meant, command)
        ended, said = self.machine.try_(f"cd ~{user}; {command}", stdin=typed.encode(), user=user)
        assert status == ended, f"{command}\nended with {ended}: {said}"
        if not self.is_open:
            self.lines += [""] * bool(self.lines[-1]) + ["```console"]
        self.is_open = True
        self.lines.append(f"{'root#' if user == 'root' else 'bob$'} {command}")
        if typed.endswith(";"):
            self.lines.append(typed)
        self.lines += trimmed(said, shown)
        return said

    def page(self) -> str:
        """All of it."""
        if self.is_open:
            self.lines.append("```")
        self.is_open = False
        return "\n".join([INTRODUCTION.rstrip("\n"), *self.lines]) + "\n"


TYPE_IT = "install -m 600 /dev/stdin /etc/ingestd/database-password    # type it, then Ctrl-D"
STATUS = "systemctl show --value --property=StatusText ingestd"
FSCK = "ingestd fsck --quick"
SOUND = "sound: nothing differs"


def install(hour: Hour) -> None:
    """From nothing to a service."""
    hour.chapter("Install")
    hour.tell(
        "The commands of [install.md](install.md), as they stand there. The last one writes what "
        "makes it a service, and starts it; the configuration is yours from then on."
    )
    hour.root("apt install python3-venv", "python3-venv")
    hour.root("python3 -m venv /opt/ingestd")
    hour.root("/opt/ingestd/bin/pip install ingestd-*.whl", "^Processing ./ing")
    hour.root("ln -s /opt/ingestd/bin/ingestd /usr/local/bin/")
    hour.root("ingestd unit install --now", "^wrote", "^Next", "^  ")
    hour.root(
        "systemctl status ingestd", "Loaded:", "Active: active", 'Status: "nothing queued"', "start"
    )
    hour.tell("It runs, it starts at every boot, and nothing waits. Is everything as it should be?")
    hour.root("ingestd check", "^(ok|warn) ")


def drop(hour: Hour) -> None:
    """Another user's files."""
    hour.chapter("Drop files")
    hour.tell(
        "bob downloads the exports. Who may drop files is in the group `ingestd-drop`; nothing "
        "else is asked of him. His files are simulated, with bad rows, copies, and an hour that "
        "is published twice."
    )
    hour.machine.run("useradd --create-home bob")
    hour.root("usermod --append --groups ingestd-drop NAME")
    hour.bob(
        "ingestd simulate election --constituencies 3 --hours 6 "
        "--defect bad_rows --defect republished_gone --defect duplicates",
        "^64 files",
    )
    hour.bob(f"cp -r election/drop/. {INBOX}")
    hour.until(STATUS, "nothing queued; 63 taken")
    hour.bob(f"cp -r election/drop-2/. {INBOX}")
    hour.until(STATUS, "nothing queued; 64 taken")
    hour.tell(
        "All 64 are taken, seconds after they were complete. What bob may not do is said to him, "
        "too:"
    )
    hour.bob("ls /var/lib/ingestd/archive", "Permission denied", status=2)
    hour.bob("ingestd status", "may not read it", status=2)


def look(hour: Hour) -> None:
    """What there is to see."""
    hour.chapter("Look")
    hour.tell("What became of them: every file, every row.")
    hour.root("ingestd status", "^(inbox|constituencies|transactions|completed|duplicate)", *BOOKS)
    hour.root("ingestd rejects --limit 2", ".")
    hour.root("ingestd stats", ".")
    hour.tell("An hour came a second time, and three transactions are no longer in it:")
    hour.root("ingestd alerts --type history_withdrawn", "^id", "withdrawn")
    found = hour.machine.run("ingestd alerts --type history_withdrawn --json")
    (identity,) = re.findall(r'"id": "(\w{8})', found)[:1]
    hour.root(
        f"ingestd alerts explain {identity}", "withdrawn", "^rule", "^formula", "^It is", "^  - "
    )
    hour.tell("The tables themselves, read-only ([querying.md](querying.md) has twenty questions):")
    hour.root("cd /var/lib/ingestd && sqlite3 -readonly -box ingestd.db", ".", typed=TURNOUT)


BOOKS = ("^superseded", "^(read|stored|known|rollbacks|rejected|blank) ", "^balanced")


def kill(hour: Hour) -> None:
    """SIGKILL in the midst of a file."""
    hour.chapter("kill -9")
    hour.tell("A large file, and the daemon is killed while it reads it.")
    hour.bob(
        "ingestd simulate big --constituencies 1 --hours 2 --roll 30000 --option 2 "
        "--no-empty-hours --flat --seed 2",
        "files",
    )
    hour.bob(f"cp ~/big/drop/*_0900-1000.csv {INBOX}")
    # In one command, since it is a matter of tenths of a second.
    killed = f"until {STATUS} | grep ' [3-9]. %'; do sleep 0.05; done; systemctl kill -s KILL "
    hour.root(f"{killed}ingestd", "reading")
    hour.until("systemctl show --property=NRestarts ingestd", "NRestarts=1")
    hour.until(STATUS, "nothing queued; 1 taken")
    hour.root(
        "journalctl --no-pager --output=cat --unit=ingestd",
        "status=9/KILL",
        "Scheduled restart",
        "jobs_taken_over",
        r"_0900-1000.csv.*read\W+22124",
    )
    hour.tell(
        "systemd started it again; it took its own job over and went on behind the last commit. "
        "No row is lost, none is there twice:"
    )
    hour.root(FSCK, "^transactions", SOUND)


def fill(hour: Hour) -> None:
    """A disk without room."""
    hour.chapter("The disk is full")
    hour.tell("80 MB are left; a file of 67 MB comes, and the database has no room for its rows.")
    free = "$(($(df --output=avail --block-size=1 /var/lib/ingestd | tail -1) - 80000000))"
    hour.root(f"fallocate --length {free} /var/lib/ingestd/filler")
    hour.bob(f"cp {BIG} {INBOX}")
    hour.until(STATUS, "disk is full")
    hour.root("df --human-readable /var/lib/ingestd", ".")
    hour.tell(
        "The file stays in the inbox. What was committed stays, too, and the daemon tries again "
        "and again to go on behind it. Room is all that it needs:"
    )
    hour.root("rm /var/lib/ingestd/filler")
    hour.until(STATUS, "nothing queued; 2 taken")
    hour.root("journalctl -u ingestd -p warning", "storage_away")
    hour.root(
        "journalctl --no-pager --output=cat --unit=ingestd",
        r"_0800-0900.csv.*read\W+33812",
        "storage_back",
    )
    hour.root(FSCK, "^transactions", SOUND)


def keep(hour: Hour) -> None:
    """A backup, and a database made of it."""
    hour.chapter("A backup, and back")
    hour.tell("While it runs ([moving.md](moving.md)):")
    hour.root("mkdir --parents /srv/backups")
    hour.root("ingestd backup /srv/backups/", "whole", "archive and quarantine")
    hour.root("cd /var/lib/ingestd && rsync -a archive quarantine /srv/backups/files/")
    hour.tell("The database is lost; that of the backup takes its place.")
    hour.root("systemctl stop ingestd")
    hour.root("cd /var/lib/ingestd && mkdir broken && mv ingestd.db* broken/")
    hour.root("ingestd restore /srv/backups/ingestd-20240909T120000Z.db", "as it was in")
    hour.root("ingestd fsck", "^rows read again", SOUND)
    hour.root("systemctl start ingestd")
    hour.root("stat --format=%U /var/lib/ingestd/ingestd.db", "^ingestd$")
    hour.machine.run("rm -r /var/lib/ingestd/broken")


def upgrade(hour: Hour) -> None:
    """From the schema of an earlier program."""
    hour.chapter("Upgrade")
    hour.tell(
        "There is no earlier release yet, so the schema is taken back to an earlier one. The "
        "service then meets what it meets after an upgrade of the program:"
    )
    hour.root("systemctl stop ingestd")
    hour.root("runuser -u ingestd -- ingestd db downgrade 0003 --yes --no-backup", "→")
    hour.root("systemctl start ingestd", "failed", status=1)
    hour.root(
        "systemctl status ingestd", "Active: failed", "status=2", "run `ingestd db up", status=3
    )
    hour.tell(
        "It says what to do, and is not started again and again. Now as it is documented; the "
        "database as it was is kept beside it."
    )
    hour.root("systemctl stop ingestd")
    hour.root("/opt/ingestd/bin/pip install --upgrade ingestd-*.whl", "^Processing ./ing")
    hour.root("runuser -u ingestd -- ingestd db upgrade", "^backup:", "→", "^the rules")
    hour.root("runuser -u ingestd -- ingestd fsck --quick --repair", SOUND)
    hour.root("ingestd unit install --now", "^kept")
    hour.root("systemctl is-active ingestd", "^active")
    hour.machine.run("rm /var/lib/ingestd/ingestd.db.*")


def move(hour: Hour) -> None:
    """From SQLite to PostgreSQL."""
    hour.chapter("To PostgreSQL")
    hour.tell("The database has grown; a PostgreSQL with a password is to hold it.")
    hour.machine.run("systemctl start postgresql")
    ready = "runuser -u postgres -- psql --command='SELECT 1'"
    deadline = time.monotonic() + SECONDS
    while hour.machine.try_(ready)[0]:
        assert time.monotonic() < deadline, "PostgreSQL never came up"
        time.sleep(0.2)
    hour.root('/opt/ingestd/bin/pip install "$(ls ingestd-*.whl)[postgresql]"', "^Successfully")
    hour.root("runuser -u postgres -- createuser ingestd")
    hour.root("runuser -u postgres -- createdb --owner=ingestd ingestd")
    hour.root(password("first"))
    hour.root("systemctl stop ingestd")
    hour.root(TYPE_IT, typed="first\n")
    hour.root(
        'PGPASSWORD="$(cat /etc/ingestd/database-password)" '
        "ingestd db copy --to postgresql://ingestd@localhost/ingestd",
        "read back",
        "^transaction ",
        "^fsck of the source: sound",
        "^fsck of the copy: sound",
    )
    hour.root(
        "sed --in-place 's|^url = .*|url = \"postgresql://ingestd@127.0.0.1/ingestd\"|' "
        "/etc/ingestd/config.toml"
    )
    hour.root("ingestd unit install --database-at 192.0.2.7 --now", "network-database")
    hour.root("systemctl status ingestd", "Active: active", "Status:")
    told = "INGESTD_DATABASE__PASSWORD_FILE=/etc/ingestd/database-password ingestd status"
    hour.root(told, "^(database|transactions) ")


def password(new: str) -> str:
    """The command by which PostgreSQL learns another password."""
    return f"runuser -u postgres -- psql -qc \"ALTER ROLE ingestd PASSWORD '{new}'\""


def lock_out(hour: Hour) -> None:
    """The password of the database is broken, and mended."""
    hour.chapter("A wrong password")
    hour.tell("Somebody changes the password of the database, and the server is restarted.")
    hour.root(password("second"))
    hour.root("systemctl restart postgresql")
    hour.bob("cp FILE /var/lib/ingestd/inbox/")
    hour.until(STATUS, "password authentication failed")
    hour.root("systemctl is-active ingestd", "^active")
    hour.bob(f"ls {INBOX}", "_1000-1100.csv")
    hour.tell(
        "It waits, and says for what; the file lies where it lay. With the right password, it "
        "goes on:"
    )
    hour.root(TYPE_IT, typed="second\n")
    hour.root("systemctl restart ingestd")
    hour.until(STATUS, "nothing queued; 1 taken")
    journal = hour.machine.run("journalctl --no-pager")
    assert not re.search(r"'(first|second)'", journal), "a password is in the journal"


def let_read(hour: Hour) -> None:
    """A role for those who query."""
    hour.chapter("Let others query")
    hour.tell("The service's role may make no roles, so the superuser makes the reader's.")
    hour.root(
        "runuser -u postgres -- ingestd --database-url "
        "'postgresql:///ingestd?host=/run/postgresql' db grant-reader ROLE --password",
        "may read ingestd",
        typed="third\n",
    )
    hour.machine.run("echo 'localhost:*:ingestd:observer:third' >~/.pgpass; chmod 600 ~/.pgpass")
    asked = 'psql "postgresql://observer@host/ingestd"'
    hour.root(asked, "status", "completed", "superseded", typed=QUESTION)
    hour.root(f"{asked} --command='DELETE FROM alert'", "read-only", status=1)


QUESTION = "SELECT status, count(*), sum(rows_read) AS row_count FROM v_files GROUP BY status;"
TURNOUT = "SELECT region_name, name, registered_voters, votes_cast FROM v_constituencies;"


def leave(hour: Hour) -> None:
    """The uninstall."""
    hour.chapter("Uninstall")
    hour.tell("The service goes, and what the install wrote.")
    hour.root("ingestd unit uninstall", "^removed   /etc/systemd", "still there")
    hour.root("systemctl status ingestd", "could not be found", status=4)
    hour.root("ls /var/lib/ingestd /etc/ingestd", "^archive", "^quarantine", "^config.toml")
    hour.tell("What was delivered, and what was made of it, is evidence. It stays until you go.")
    hour.root("rm -r /opt/ingestd /usr/local/bin/ingestd")


STORY: tuple[Callable[[Hour], None], ...] = (
    *(install, drop, look, kill, fill, keep, upgrade, move, lock_out, let_read, leave),
)


@contextmanager
def bare_machine() -> Iterator[Machine]:
    """One with a wheel in /root, a small disk for the data, and nothing of ours."""
    with booted() as machine:
        machine.run("cp /wheels/ingestd-*.whl /root/")
        machine.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /wheels\n")
        machine.run("mkdir /var/lib/ingestd")
        machine.run("mount -t tmpfs -o size=700m,mode=755 tmpfs /var/lib/ingestd")
        yield machine


def told() -> str:
    """Live through it; the page."""
    with bare_machine() as machine:
        hour = Hour(machine)
        for part in STORY:
            print(f"{part.__name__} …", flush=True)
            part(hour)
        return hour.page()


def main() -> int:
    """Write the page."""
    if missing := what_is_missing():
        sys.exit(f"no machine can be booted here: {missing}")
    TARGET.write_text(told(), encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
