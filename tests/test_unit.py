"""The files of the service, and the commands that put them in place."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from ingestd.cli import app
from ingestd.config import ConfigError, Metrics, Settings, load_settings, place_of
from ingestd.unit import configuration, files, refuse_unstartable, units

from .running import ROOT

UNIT = Path("etc/systemd/system/ingestd.service")
DROP_IN = Path("etc/systemd/system/ingestd.service.d/network-database.conf")

analyzing = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze; .ci/run installs it"
)


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    """Commands configure logging for a process of their own; here they share one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def ingestd(*arguments: str | Path, status: int = 0) -> str:
    """What `ingestd unit …` says, with what it complains of."""
    done = CliRunner().invoke(app, ["unit", *map(str, arguments)], prog_name="ingestd")
    assert status == done.exit_code, done.output
    return done.output


def analyze(*arguments: str | Path) -> str:
    """What `systemd-analyze …` says; it must be content."""
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout
    return done.stdout


def install(root: Path, *arguments: str) -> str:
    """Install below a folder."""
    return ingestd("install", "--root", root, "--program", "/bin/true", *arguments)


def settings_in(unit: str) -> dict[str, str]:
    """The settings of a unit that stand there once."""
    return dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))


def seconds(told: str) -> float:
    """A time span of systemd."""
    number, unit = re.fullmatch(r"(\d+)(min|s)?", told).groups()  # type: ignore[union-attr]  # or fail
    return int(number) * (60 if unit == "min" else 1)


# Hardened -----------------------------------------------------------------------------------


@analyzing
@pytest.mark.parametrize(
    "variant",
    [
        (),
        ("--database-at", "192.0.2.7"),
        ("--metrics",),
        ("--database-at", "192.0.2.7", "--metrics"),
        ("--database-at", "192.0.2.7", "--metrics", "--notify-at", "any"),
    ],
    ids=["local", "network", "metrics", "both", "notices"],
)
def test_systemd_accepts_the_unit_and_finds_little_exposed(
    tmp_path: Path, variant: tuple[str, ...]
) -> None:
    """At most 1.5 of 10; no word in it that systemd does not know."""
    install(tmp_path, *variant)
    # A warning about an unknown word changes no exit status.
    assert "" == analyze("verify", "--man=no", tmp_path / UNIT)
    told = ("--offline=true", "--threshold=15", "--no-pager")
    assert "exposure level" in analyze("security", *told, tmp_path / UNIT)


def test_the_port_of_the_unit_is_one_and_local() -> None:
    """What it listens at is what it may open, and what the documents name."""
    told = settings_in(units("/bin/true", has_metrics=True)[-1].content)
    listen = told["Environment"].partition("INGESTD_METRICS__LISTEN=")[2]
    assert listen == Metrics(listen=listen).listen
    host, port = place_of(listen)
    assert "127.0.0.1" == host
    assert f"ipv4:tcp:{port}" == told["SocketBindAllow"]
    assert "any" == told["SocketBindDeny"]
    assert f"127.0.0.1:{port}" in (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def test_the_times_of_the_unit_leave_the_daemon_its_own() -> None:
    """What the daemon gives up by itself, systemd does not end before."""
    told, ours = settings_in(units("/bin/true")[0].content), Settings()
    assert ours.ingest.stop_seconds + 30 < seconds(told["TimeoutStopSec"])
    assert ours.database.answer_timeout_seconds + 60 < seconds(told["WatchdogSec"])
    assert "notify" == told["Type"]
    assert "2" == told["RestartPreventExitStatus"]


def test_the_folders_of_the_unit_are_those_of_its_configuration(tmp_path: Path) -> None:
    """All in one, which is the one that the service may write."""
    (tmp_path / "config.toml").write_text(configuration())
    settings = load_settings(tmp_path / "config.toml")
    watch = settings.watch
    home = Path("/var/lib") / settings_in(units("/bin/true")[0].content)["StateDirectory"]
    assert {home} == {watch.inbox.parent, watch.archive.parent, watch.quarantine.parent}
    assert f"sqlite:///{home}/ingestd.db" == settings.database.url
    tmpfiles = next(each for each in files("/bin/true") if "tmpfiles" in str(each.path)).content
    for folder in (home, watch.inbox, watch.archive, watch.quarantine):
        assert f"\nd {folder} " in tmpfiles


def test_a_database_on_the_network_has_its_address_in_the_configuration() -> None:
    """And its password nowhere."""
    url = tomllib.loads(configuration(["192.0.2.7"]))["database"]["url"]
    assert "postgresql://ingestd@192.0.2.7/ingestd" == url


def test_the_channels_of_the_service_come_from_a_file_that_only_root_can_read() -> None:
    """By systemd's credentials; and it may reach what was named."""
    drop_in = units("/bin/true", notified=["192.0.2.9"])[1]
    assert "network-notices.conf" == drop_in.path.name
    told = settings_in(drop_in.content)
    assert "192.0.2.9/32" == told["IPAddressAllow"]
    assert "INGESTD_NOTIFY__CHANNELS_FILE=%d/notify-channels" == told["Environment"]
    assert told["LoadCredential"].startswith("notify-channels:")


# In place -----------------------------------------------------------------------------------


def test_an_install_writes_every_file_once_and_keeps_the_configuration(tmp_path: Path) -> None:
    """Again after an upgrade: what is ours is brought up to date, what is a person's stays."""
    assert {"wrote"} == {line.split()[0] for line in install(tmp_path).splitlines()}
    for placed in files("/bin/true"):
        assert placed.content == placed.below(tmp_path).read_text()
        assert 0o644 == placed.below(tmp_path).stat().st_mode & 0o777
    config = tmp_path / "etc/ingestd/config.toml"
    config.write_text("# mine\n")
    (tmp_path / UNIT).write_text("# old\n")
    told = [line.split() for line in install(tmp_path).splitlines()]
    assert ["kept"] == [word for word, path in told if path == str(config)]
    assert [str(tmp_path / UNIT)] == [path for word, path in told if word == "wrote"]
    assert "# mine\n" == config.read_text()


def test_an_uninstall_leaves_the_configuration_alone(tmp_path: Path) -> None:
    """And a drop-in of a person's own."""
    install(tmp_path, "--database-at", "192.0.2.7", "--metrics")
    own = (tmp_path / DROP_IN).with_name("own.conf")
    own.touch()
    ingestd("uninstall", "--root", tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {tmp_path / "etc/ingestd/config.toml", own} == set(left)
    own.unlink()
    install(tmp_path)
    ingestd("uninstall", "--root", tmp_path)
    assert not own.parent.exists()


def test_the_unit_is_shown_as_it_would_be_installed(tmp_path: Path) -> None:
    """For people who put it in place by other means."""
    told = ("--program", "/bin/true", "--database-at", "192.0.2.7")
    install(tmp_path, "--database-at", "192.0.2.7")
    shown = json.loads(ingestd("print", *told, "--json"))
    assert {str(Path("/") / path) for path in (UNIT, DROP_IN)} == shown.keys()
    assert shown[f"/{UNIT}"] == (tmp_path / UNIT).read_text()
    text = ingestd("print", *told)
    assert f"# /{UNIT}\n{shown[f'/{UNIT}']}\n# /{DROP_IN}\n{shown[f'/{DROP_IN}']}" == text
    assert "# /etc/sysusers.d/ingestd.conf" in ingestd("print", "--all")


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("/opt/ingestd/bin/ingestd", "/opt/ingestd/bin/ingestd"),
        ("/opt/my ingestd/100%/$x", '"/opt/my ingestd/100%%/$$x"'),
    ],
)
def test_the_program_is_named_as_systemd_reads_it(program: str, line: str) -> None:
    """A blank, a per cent sign and a dollar mean something there."""
    assert f"\nExecStart={line} --config" in units(program)[0].content


@pytest.mark.parametrize("program", ["ingestd", "/opt/a\nExecStartPre=/x", '/opt/"x"'])
def test_a_program_that_systemd_cannot_be_told_is_refused(program: str) -> None:
    """No path can forge a line of the unit."""
    with pytest.raises(ConfigError):
        units(program)


def test_what_is_no_address_is_refused() -> None:
    """The kernel's filter knows numbers, and a typing mistake must not open it."""
    told = ingestd("print", "--database-at", "db.example.org", status=2)
    assert "db.example.org: not an address" in told
    drop_in = units("/x", ["10.1.2.3/8", "localhost"])[1].content
    assert "\nIPAddressAllow=10.0.0.0/8 localhost\n" in drop_in


def test_a_program_in_a_home_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """The service would not see it, and systemd would only say so at its start."""
    with pytest.raises(ConfigError, match="cannot see what is below /home; install ingestd into"):
        refuse_unstartable("/home/bob/.local/bin/ingestd")


def test_who_is_not_root_is_told_so(tmp_path: Path) -> None:
    """Before anything is written."""
    if os.geteuid() == 0:
        if Path("/run/systemd/system").is_dir():
            pytest.skip("root on a machine with systemd: the command would be carried out")
        told = ingestd("install", "--program", "/bin/true", status=2)
        assert "systemd does not run here" in told
    else:
        assert "only root" in ingestd("install", "--program", "/bin/true", status=2)


# Completion ---------------------------------------------------------------------------------


def test_bash_completes_the_commands(tmp_path: Path) -> None:
    """By the file that an install puts in place, in a real bash."""
    script = next(each for each in files("/bin/true") if "bash-completion" in str(each.path))
    path = tmp_path / "completion"
    path.write_text(script.content)
    asked = (
        f"source {path}; COMP_WORDS=(ingestd uni); COMP_CWORD=1; "
        '_ingestd_completion ingestd; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", asked],
        env=with_program(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "unit\n" == done.stdout, done.stderr


def with_program(folder: Path) -> dict[str, str]:
    """An environment in which `ingestd` is this very code."""
    program = folder / "ingestd"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m ingestd.cli\n")
    program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_the_program_in_the_way_that_it_understands(
    tmp_path: Path, shell: str
) -> None:
    """With the variables of their scripts."""
    name = {"zsh": "site-functions", "fish": "fish"}[shell]
    script = next(each for each in files("/bin/true") if name in str(each.path)).content
    assert f"_INGESTD_COMPLETE=complete_{shell}" in script
    more = {"_INGESTD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "ingestd uni"}
    if shell == "fish":
        more["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        [tmp_path / "ingestd"],
        env=with_program(tmp_path) | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "unit" in done.stdout, done.stderr
