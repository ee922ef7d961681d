"""The service for real: installed, dropped into, killed, hung, reloaded, on a machine of its own.

The tests tell one story on one machine, in this order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial

import pytest

from . import running
from .conftest import Did, Voting, csv_of
from .machine import Machine, booted, what_is_missing

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing()),
]

# Machines that test share their cores.
soon = partial(running.soon, seconds=180)

HOME = "/var/lib/ingestd"
INBOX = f"{HOME}/inbox"
UNIT = "ingestd.service"
READ = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
GET = f"python3 -c '{READ}'"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with ingestd in /opt, and bob, who may drop files."""
    with booted() as machine:
        machine.run("python3 -m venv /opt/ingestd")
        pip = "/opt/ingestd/bin/pip --quiet --disable-pip-version-check"
        machine.run(f"{pip} install --no-index --find-links /wheels 'ingestd[postgresql]'")
        machine.run("ln -s /opt/ingestd/bin/ingestd /usr/local/bin/ingestd")
        yield machine


@pytest.fixture(scope="module")
def voting() -> Voting:
    """One constituency for the whole story."""
    return Voting()


COUNT = """
import sqlite3
base = sqlite3.connect("file:/var/lib/ingestd/ingestd.db?mode=ro", uri=True)
print(base.execute('SELECT count(*) FROM "transaction"').fetchone()[0])
"""


def rows(machine: Machine) -> int:
    """How many transactions are in the tables; asked often, so not by way of our own program."""
    return int(machine.run("runuser -u ingestd -- python3 -", stdin=COUNT.encode()))


def is_inbox_empty(machine: Machine) -> bool:
    """Whether every file is taken."""
    return not machine.run(f"find {INBOX} -type f -not -path '*/.*'").strip()


def is_active(machine: Machine) -> bool:
    """Whether the service runs and is ready."""
    return machine.told(UNIT, "ActiveState") == "active"


def journal(machine: Machine) -> str:
    """All that the service said."""
    return machine.run(f"journalctl --no-pager --output=cat --unit={UNIT}")


def assert_sound(machine: Machine) -> None:
    """Folders, ledger, tables, counts and archived bytes, whoever owns them, fit together."""
    machine.run("ingestd fsck")


def test_one_command_makes_it_a_service(machine: Machine, did: Did) -> None:
    """Installed, started, ready; what its files say, systemd accepts."""
    told = machine.run("ingestd unit install --now")
    assert "wrote     /etc/systemd/system/ingestd.service" in told
    soon(partial(is_active, machine))
    assert "enabled" == machine.told(UNIT, "UnitFileState")
    assert "nothing queued" == machine.told(UNIT, "StatusText")
    machine.run(f"systemd-analyze verify {UNIT}")
    exposure = machine.run(f"systemd-analyze security --no-pager --threshold=15 {UNIT}")
    did(exposure.strip().splitlines()[-1].strip("→ "))


def test_the_service_may_do_what_it_needs_and_nothing_else(machine: Machine, did: Did) -> None:
    """Asked from inside of its own namespace, with its own rights."""
    pid = machine.told(UNIT, "MainPID")
    rights = machine.run(f"grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/{pid}/status").split()
    assert ["CapBnd:", "0000000010000002", "NoNewPrivs:", "1"] == rights[2:]
    assert "0000000010000002" == rights[1]
    inside = f"nsenter --target {pid} --mount --net"
    for path in ("/etc/x", "/usr/x", "/var/x", "/opt/ingestd/x"):
        refused = machine.try_(f"{inside} touch {path}")
        assert 0 != refused[0], path
        assert "Read-only file system" in refused[1]
    assert "root:" in machine.run("cat /etc/shadow")
    assert "" == machine.run(f"{inside} cat /etc/shadow"), "an empty file lies over it"
    machine.run(f"{inside} touch {HOME}/x && rm {HOME}/x")
    did("5 writes and reads outside of its folder, all refused")


WAYS = {
    "cp": "cp {file} sub/",
    "cp -p": "cp -p {file} sub/",
    "mv": "mv {file} sub/",
    "mv of a file that is its owner's alone": "chmod 600 {file} && mv {file} sub/",
    "rsync": "rsync {file} sub/",
    "rsync -a": "rsync -a {file} sub/",
    "cp -r of a folder": "cp -r {folder} .",
    "cp -rp of a folder": "cp -rp {folder} .",
    "mv of a folder": "mv {folder} .",
    "rsync -a of a folder": "rsync -a {folder} .",
    "tar": "tar -C {folder}/.. -c part | tar -x",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_another_user_is_taken_however_it_came(
    machine: Machine, voting: Voting, did: Did, way: str
) -> None:
    """With umask 022, from a home on the same file system, into a sub-folder of his own."""
    number = list(WAYS).index(way)
    name = voting.name(number)
    machine.try_("id bob || useradd --create-home --groups ingestd-drop bob")
    folder = "/home/bob/part"
    machine.run(f"rm -rf {folder} && mkdir {folder}", user="bob")
    machine.write(f"{folder}/{name}", csv_of(voting.ballots(number, 2)), user="bob")
    before = rows(machine)
    command = WAYS[way].format(file=f"{folder}/{name}", folder=folder)
    machine.run(f"umask 022; cd {INBOX}; mkdir -p sub; {command}", user="bob")
    soon(partial(is_inbox_empty, machine))
    assert before + 4 == rows(machine)
    machine.run(f"find {HOME}/archive -name '{name}*' | grep .")
    machine.run(f"rm -rf {INBOX}/sub {INBOX}/part")
    did("1 file", files=1)


def test_nobody_else_may_drop_files_or_read_what_is_there(machine: Machine, did: Did) -> None:
    """Who is not in the group sees nothing."""
    machine.run("useradd --create-home eve")
    for attempt in (f"touch {INBOX}/x.csv", f"ls {INBOX}", f"ls {HOME}", f"cat {HOME}/ingestd.db"):
        refused = machine.try_(attempt, user="eve")
        assert 0 != refused[0], attempt
        assert "Permission denied" in refused[1]
    did("4 attempts of a stranger")


def in_work(machine: Machine, voting: Voting, hour: int, voters: int) -> int:
    """Drop a file that takes a while; its rows, once some of them are in the tables."""
    before = rows(machine)
    machine.write(f"{INBOX}/{voting.name(hour)}", csv_of(voting.ballots(hour, voters)))
    soon(lambda: rows(machine) > before)
    return before + 2 * voters


def test_each_file_left_one_event_with_fields_in_the_journal(machine: Machine, did: Did) -> None:
    """Sent by the service itself, hardened as it is."""
    asked = f"journalctl --no-pager --output=json --unit={UNIT} INGESTD_EVENT=file_ingested"
    events = [json.loads(line) for line in machine.run(asked).splitlines()]
    assert len(WAYS) == len({each["INGESTD_PATH"] for each in events}) == len(events)
    assert {("6", "journal")} == {(each["PRIORITY"], each["_TRANSPORT"]) for each in events}
    did(f"{len(events)} files")


def test_its_port_is_opened_where_it_is_asked_for(machine: Machine, did: Did) -> None:
    """By the drop-in: this port, this machine, and what is behind it says that all is well."""
    machine.run("ingestd unit install --metrics --now")
    soon(partial(is_active, machine))
    at = "http://127.0.0.1:9641"
    assert '"ready": true' in machine.run(f"{GET} {at}/readyz")
    assert '"healthy": true' in machine.run(f"{GET} {at}/healthz")
    figures = machine.run(f"{GET} {at}/metrics")
    assert "\ningestd_ready 1.0\n" in figures
    assert "\nprocess_resident_memory_bytes " in figures
    assert 'ingestd_disk_free_bytes{folder="database"}' in figures
    exposure = machine.run(f"systemd-analyze security --no-pager --threshold=15 {UNIT}")
    did(f"/readyz, /healthz, /metrics; {exposure.strip().splitlines()[-1].strip('→ ')}")


HOOK = """
import http.server
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/told", "ab") as told:
            told.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\\n")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *told):
        pass
http.server.HTTPServer(("127.0.0.1", 8099), Hook).serve_forever()
"""


def test_people_are_told_where_it_is_asked_for(machine: Machine, voting: Voting, did: Did) -> None:
    """By a webhook whose URL the service alone can read; what waits is in the figures."""
    machine.write("/root/hook.py", HOOK)
    machine.run("systemd-run --unit=hook python3 /root/hook.py")
    channel = 'duty = "http://127.0.0.1:8099/SECRET-TOKEN"'
    machine.run("install -m 600 /dev/stdin /etc/ingestd/notify-channels", stdin=channel.encode())
    machine.run("ingestd unit install --metrics --notify-at 127.0.0.1 --now")
    soon(partial(is_active, machine))
    machine.write(f"{INBOX}/{voting.name(16)}", csv_of(["torn"] * 50))
    soon(lambda: machine.try_("cat /run/told")[1].startswith("{"))
    [change] = json.loads(machine.run("cat /run/told").splitlines()[0])["changes"]
    assert ("file_rejected", "critical") == (change["rule"], change["severity"])
    sent = 'ingestd_notices_total{channel="duty",outcome="sent"} 1.0'
    soon(lambda: sent in machine.run(f"{GET} http://127.0.0.1:9641/metrics"))
    everything = machine.run("journalctl --no-pager") + machine.run(f"systemctl status {UNIT}")
    assert "SECRET-TOKEN" not in everything
    exposure = machine.run(f"systemd-analyze security --no-pager --threshold=15 {UNIT}")
    machine.run(f"systemctl stop hook && rm /etc/systemd/system/{UNIT}.d/*notices*.conf")
    machine.run("systemctl daemon-reload && systemctl restart ingestd")
    soon(partial(is_active, machine))
    did(f"1 refused file, told by a webhook; {exposure.strip().splitlines()[-1].strip('→ ')}")


def test_a_kill_costs_nothing(machine: Machine, voting: Voting, did: Did) -> None:
    """SIGKILL in the midst of a file: systemd starts it again, and it goes on."""
    machine.run("sed -i 's/^#batch_rows.*/batch_rows = 100/' /etc/ingestd/config.toml")
    machine.run("systemctl restart ingestd")
    wanted = in_work(machine, voting, 12, 8_000)
    machine.run(f"systemctl kill --signal=KILL {UNIT}")
    soon(lambda: machine.told(UNIT, "NRestarts") == "1")
    soon(lambda: rows(machine) == wanted and is_inbox_empty(machine))
    assert_sound(machine)
    did("1 SIGKILL in a file of 16 000 rows", kills=1)


def test_a_daemon_that_hangs_is_ended_and_begins_again(
    machine: Machine, voting: Voting, did: Did
) -> None:
    """The watchdog finds it frozen; the journal says where."""
    machine.run(f"mkdir -p /etc/systemd/system/{UNIT}.d")
    machine.write(f"/etc/systemd/system/{UNIT}.d/soon.conf", "[Service]\nWatchdogSec=5\n")
    machine.run("systemctl daemon-reload && systemctl restart ingestd")
    assert "watchdog_too_short" in journal(machine)
    time.sleep(12)
    restarts = int(machine.told(UNIT, "NRestarts"))
    assert 0 == restarts, "idle, it was fed"
    wanted = in_work(machine, voting, 13, 8_000)
    machine.run(f"systemctl kill --kill-whom=main --signal=STOP {UNIT}")
    soon(lambda: machine.told(UNIT, "NRestarts") == "1")
    assert "Watchdog timeout" in machine.run(f"journalctl --no-pager --unit={UNIT}")
    assert "most recent call first" in journal(machine)
    soon(lambda: rows(machine) == wanted and is_inbox_empty(machine))
    assert_sound(machine)
    machine.run(f"rm /etc/systemd/system/{UNIT}.d/soon.conf && systemctl daemon-reload")
    machine.run("systemctl restart ingestd")
    did("1 SIGSTOP in a file of 16 000 rows, WatchdogSec=5", kills=1)


def test_a_stop_in_a_file_is_quick_and_the_next_start_goes_on(
    machine: Machine, voting: Voting, did: Did
) -> None:
    """At the end of a batch, with exit status 0."""
    wanted = in_work(machine, voting, 14, 8_000)
    began = time.monotonic()
    machine.run("systemctl stop ingestd")
    seconds = time.monotonic() - began
    assert ["inactive", "success"] == [
        machine.told(UNIT, "ActiveState"),
        machine.told(UNIT, "Result"),
    ]
    assert rows(machine) < wanted
    machine.run("systemctl start ingestd")
    soon(lambda: rows(machine) == wanted and is_inbox_empty(machine))
    assert_sound(machine)
    did(f"stopped within {seconds:.1f} s in a file of 16 000 rows")


def test_a_reload_takes_what_is_good_and_refuses_what_is_not(machine: Machine, did: Did) -> None:
    """A typing mistake ends nothing; the status says what it was."""
    pid = machine.told(UNIT, "MainPID")
    machine.run("systemctl reload ingestd")
    soon(lambda: "configuration_reloaded" in journal(machine))
    machine.run("sed -i 's/^batch_rows.*/batch_rows = \"many\"/' /etc/ingestd/config.toml")
    machine.run("systemctl reload ingestd")
    soon(lambda: "configuration was refused" in machine.told(UNIT, "StatusText"))
    soon(partial(is_active, machine))
    assert pid == machine.told(UNIT, "MainPID")
    did("2 reloads, 1 of a broken configuration")


def test_a_configuration_that_cannot_be_used_is_not_tried_again_and_again(
    machine: Machine, did: Did
) -> None:
    """The start fails, the reason is the last line of the journal, and it stays down."""
    assert 0 != machine.try_("systemctl restart ingestd")[0]
    time.sleep(7)  # longer than RestartSec
    assert ["failed", "2"] == [
        machine.told(UNIT, "ActiveState"),
        machine.told(UNIT, "ExecMainStatus"),
    ]
    assert "batch_rows" in journal(machine)
    machine.run("sed -i 's/^batch_rows.*/batch_rows = 100/' /etc/ingestd/config.toml")
    machine.run("systemctl restart ingestd")
    assert is_active(machine)
    did("1 start with a broken configuration")


def test_a_postgresql_with_a_password_is_waited_for_and_its_password_never_shown(
    machine: Machine, voting: Voting, did: Did
) -> None:
    """By the variant for the network: a wrong password is said, the right one mends it."""
    machine.run("systemctl start postgresql")
    soon(lambda: machine.try_("pg_lsclusters -h | grep online")[0] == 0)
    sql = "CREATE ROLE ingestd LOGIN PASSWORD 'geheim-3'; "
    machine.run(f'runuser -u postgres -- psql -c "{sql}"')
    machine.run("runuser -u postgres -- createdb --owner=ingestd ingestd")
    machine.run("systemctl stop ingestd")
    machine.run("rm /etc/ingestd/config.toml")
    machine.run("install -m 600 /dev/null /etc/ingestd/database-password")
    machine.write("/etc/ingestd/database-password", "geheim-1\n")
    machine.run("ingestd unit install --database-at 127.0.0.1")
    machine.run("systemctl start --no-block ingestd")
    soon(lambda: "waiting for the database" in machine.told(UNIT, "StatusText"))
    assert "password authentication failed" in machine.told(UNIT, "StatusText")
    assert "activating" == machine.told(UNIT, "ActiveState")
    machine.write("/etc/ingestd/database-password", "geheim-3\n")
    machine.run("systemctl restart ingestd")
    soon(partial(is_active, machine))
    machine.write(f"{INBOX}/{voting.name(15)}", csv_of(voting.ballots(15, 5)))
    soon(partial(is_inbox_empty, machine))
    counted = "runuser -u postgres -- psql -At ingestd -c 'SELECT count(*) FROM \"transaction\"'"
    assert "10" == machine.run(counted).strip()
    everything = machine.run("journalctl --no-pager") + machine.run(f"systemctl status {UNIT}")
    assert "geheim" not in everything
    exposure = machine.run(f"systemd-analyze security --no-pager --threshold=15 {UNIT}")
    did(f"a wrong password, then the right one; {exposure.strip().splitlines()[-1].strip('→ ')}")


def test_an_uninstall_leaves_what_is_a_persons(machine: Machine, did: Did) -> None:
    """The unit goes; configuration, database and evidence stay."""
    machine.run("ingestd unit uninstall")
    assert "not-found" == machine.told(UNIT, "LoadState")
    machine.run(f"test -e /etc/ingestd/config.toml -a -e {HOME}/ingestd.db -a -d {HOME}/archive")
    assert 0 != machine.try_("ls /etc/systemd/system/ingestd.service")[0]
    did("1 uninstall")
