"""The files that make ingestd a systemd service: which there are, and where each one goes."""

from __future__ import annotations

import ipaddress
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingestd.config import SYSTEM_CONFIG, ConfigError, example_toml

NAME = "ingestd.service"
HOME = Path("/var/lib/ingestd")
SYSUSERS = Path("/etc/sysusers.d/ingestd.conf")
TMPFILES = Path("/etc/tmpfiles.d/ingestd.conf")
SYSCTL = Path("/etc/sysctl.d/60-ingestd.conf")
_UNITS = Path("/etc/systemd/system")
_DROP_INS = _UNITS / f"{NAME}.d"

# The unit hides these from the service (ProtectHome=, PrivateTmp=).
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
_WORDS = ("localhost", "link-local", "multicast", "any")


@dataclass(frozen=True, slots=True)
class Placed:
    """One file where it belongs; what is `kept` is a person's as soon as it is there."""

    path: Path
    content: str
    is_kept: bool = False

    def below(self, root: Path) -> Path:
        """Where it lies in another root."""
        return root / self.path.relative_to("/")


def files(
    program: str,
    addresses: Sequence[str] = (),
    *,
    has_metrics: bool = False,
    notified: Sequence[str] = (),
) -> list[Placed]:
    """Every file, in the order in which they are written.

    With the `addresses` of a PostgreSQL on the network also the drop-in that reaches it, with
    metrics the one that may open a port, with those by which people are `notified` the one that
    reaches them.

    Raises:
        ConfigError: what is no address.
    """
    made = [
        Placed(SYSTEM_CONFIG, configuration(addresses), is_kept=True),
        Placed(SYSUSERS, _template("sysusers.conf")),
        Placed(TMPFILES, _template("tmpfiles.conf")),
        Placed(SYSCTL, _template("sysctl.conf")),
        *units(program, addresses, has_metrics=has_metrics, notified=notified),
    ]
    for path, name in _COMPLETIONS.items():
        made.append(Placed(Path(path), _template(f"completion/{name}")))
    return made


_COMPLETIONS = {
    "/usr/local/share/bash-completion/completions/ingestd": "ingestd.bash",
    "/usr/local/share/zsh/site-functions/_ingestd": "_ingestd",
    "/etc/fish/completions/ingestd.fish": "ingestd.fish",
}


def units(
    program: str,
    addresses: Sequence[str] = (),
    *,
    has_metrics: bool = False,
    notified: Sequence[str] = (),
) -> list[Placed]:
    """The unit, and its drop-ins for what it reaches on the network and for the port."""
    text = _template("ingestd.service").replace("@INGESTD@", _quoted(program))
    made = [Placed(_UNITS / NAME, text)]
    for name, reached in (("network-database.conf", addresses), ("network-notices.conf", notified)):
        if reached:
            told = " ".join(_address(each) for each in reached)
            made.append(Placed(_DROP_INS / name, _template(name).replace("@ADDRESSES@", told)))
    if has_metrics:
        made.append(Placed(_DROP_INS / "metrics.conf", _template("metrics.conf")))
    return made


def leftovers(program: str) -> list[Placed]:
    """What an uninstall removes: all but the configuration, which is a person's."""
    all_of_them = files(program, ["localhost"], has_metrics=True, notified=["localhost"])
    return [each for each in all_of_them if not each.is_kept]


def configuration(addresses: Sequence[str] = ()) -> str:
    """The configuration of the service: the example with its database and its folders."""
    url = f"sqlite:///{HOME}/ingestd.db"
    if addresses:
        url = f"postgresql://ingestd@{addresses[0]}/ingestd"
    values = {
        "url": url,
        "inbox": f"{HOME}/inbox",
        "archive": f"{HOME}/archive",
        "quarantine": f"{HOME}/quarantine",
    }
    lines = example_toml().splitlines(keepends=True)
    for number, line in enumerate(lines):
        key = line.removeprefix("#").split(" =")[0]
        if line.startswith("#") and key in values:
            lines[number] = f'{key} = "{values.pop(key)}"\n'
    return "".join(lines)


def this_program() -> str:
    """The program that is running."""
    return str(Path(sysconfig.get_path("scripts"), "ingestd"))


def refuse_unstartable(program: str) -> None:
    """Say beforehand what systemd would only say at the start.

    Raises:
        ConfigError: it is not there, or the service would not see it.
    """
    for needed in (Path(program), Path(sys.executable).resolve()):
        for hidden in _HIDDEN:
            if needed.is_relative_to(hidden):
                message = (
                    f"{needed}: the service cannot see what is below {hidden}; install ingestd "
                    "into /opt/ingestd, as docs/install.md shows, and say this again from there; "
                    "or name the program by --program"
                )
                raise ConfigError(message)
    if not Path(program).exists():
        message = f"{program}: there is no such program; name the one to start by --program"
        raise ConfigError(message)


def _quoted(program: str) -> str:
    """As systemd reads it: % and $ mean something there, a blank ends a word."""
    if not program.startswith("/"):
        message = f"{program}: the program needs its whole path, from / on"
        raise ConfigError(message)
    if any(not char.isprintable() or char in "\"'\\" for char in program):
        message = f"{program!r}: systemd cannot be told this path; choose one without quotes"
        raise ConfigError(message)
    word = program.replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if " " in word else word


def _address(told: str) -> str:
    if told in _WORDS:
        return told
    try:
        return str(ipaddress.ip_network(told, strict=False))
    except ValueError:
        message = (
            f"{told}: not an address; systemd lets numbers through, such as 192.0.2.7 or "
            "192.0.2.0/24, and localhost"
        )
        raise ConfigError(message) from None


def _template(name: str) -> str:
    """In this order, since "beside" is a folder of everybody's packages when installed."""
    package = Path(__file__).parent
    inside, beside = package / "deploy", package.parent / "deploy"
    folder = inside if inside.is_dir() else beside
    return (folder / name).read_text(encoding="utf-8")
