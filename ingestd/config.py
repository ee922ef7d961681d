"""The configuration: what can be set, where it is read from, and what is wrong with it.

A command-line flag wins over the environment (`INGESTD_SECTION__KEY`), that over the TOML
file, that over the default. `load_settings` asks these once, at the edge; a `Settings` made
by hand sees nothing but its arguments.
"""

import difflib
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ingestd.elections import Elections, KnownElection
from ingestd.thresholds import Alerts

ENV_PREFIX = "INGESTD_"
CONFIG_VARIABLE = "INGESTD_CONFIG"
LOCAL_CONFIG = Path("ingestd.toml")
SYSTEM_CONFIG = Path("/etc/ingestd/config.toml")

_HIGHEST_PORT = 65_535
KIB, MIB, GB = 1024, 1024**2, 1000**3


class ConfigError(ValueError):
    """The configuration can't be used; the message names place, key, value and remedy."""


def _known_database(url: str) -> str:
    """The URL with its driver; a bare `postgresql://` means psycopg 3."""
    parsed = _parsed(url)
    if parsed is None:
        raise ValueError("must be a database URL, such as sqlite:///ingestd.db")
    if parsed.drivername in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise ValueError("must start with sqlite:/// or postgresql://")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ValueError("must name a file, such as sqlite:///ingestd.db")
    return url


def _parsed(url: str) -> URL | None:
    """None without a reason: what can't be parsed may still hold a password."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None


def _as_wanted(value: object) -> object:
    """The three words of watch.events; true and false were all there was once."""
    spelt = str(value).lower()
    return {"true": "auto", "1": "auto", "false": "never", "0": "never"}.get(spelt, value)


_SECTION = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Database(BaseModel):
    """Where the tables are."""

    model_config = _SECTION

    url: Annotated[str, AfterValidator(_known_database)] = Field(
        default="sqlite:///ingestd.db",
        repr=False,  # may hold a password
        description="sqlite:///file (relative to this file; four slashes for an absolute path) or "
        "postgresql://user:password@host/name.",
    )
    password_file: Path | None = Field(
        default=None,
        description="A file with nothing but PostgreSQL's password, for a url without one. The "
        "service takes it from systemd (docs/install.md).",
    )
    sqlite_cache_mb: int = Field(
        default=48, ge=1, description="Memory that SQLite may use to keep pages of the database."
    )
    sqlite_synchronous: Literal["FULL", "NORMAL"] = Field(
        default="FULL",
        description="A file is archived after its commit, so a power cut must not take that "
        "commit back: FULL. NORMAL is about 10 % faster and gives this promise up.",
    )
    busy_timeout_seconds: FiniteFloat = Field(
        default=60,
        ge=0,
        description="How long to wait for a lock that another program holds; on PostgreSQL also "
        "how long an ingestd that was stopped may keep its own.",
    )
    answer_timeout_seconds: FiniteFloat = Field(
        default=600,
        gt=0,
        description="A database that leaves one statement without an answer for so long is given "
        "up, and asked again after a pause.",
    )
    wal_warn_mb: int = Field(
        default=512,
        ge=1,
        description="Say so when SQLite's write-ahead log grows beyond this: some program reads "
        "the database without a break.",
    )
    postgresql_programs: str = Field(
        default="",
        description="The folder of pg_dump and pg_restore, which `ingestd backup` and `restore` "
        "call for PostgreSQL; empty means the PATH, then /usr/lib/postgresql/*/bin.",
    )


class Watch(BaseModel):
    """Where files arrive, and where they go."""

    model_config = _SECTION

    inbox: Path = Field(default=Path("inbox"), description="The folder into which files are put.")
    archive: Path = Field(
        default=Path("archive"), description="Ingested files are moved here; nothing is deleted."
    )
    quarantine: Path = Field(
        default=Path("quarantine"),
        description="Files that can't be ingested are moved here, with the reason beside them.",
    )
    after: Literal["archive", "leave"] = Field(
        default="archive",
        description="What happens to a file after its commit: moved to the archive, or left.",
    )
    poll_seconds: FiniteFloat = Field(
        default=2.0, gt=0, description="Time between two full looks at the inbox."
    )
    settle_seconds: FiniteFloat = Field(
        default=1.0,
        ge=0,
        description="A file is complete when its size and time stay the same for this long; "
        "used where there is no stronger evidence.",
    )
    require_marker: bool = Field(
        default=False,
        description="Take only files with a marker or a manifest beside them: name.csv.done, "
        "name.csv.ok, name.csv.rows, name.csv.sha256 or SHA256SUMS.",
    )
    manifest_wait_seconds: FiniteFloat = Field(
        default=600.0,
        ge=0,
        description="A file that contradicts its manifest waits; when neither has changed for "
        "this long, it is quarantined.",
    )
    events: Annotated[Literal["auto", "always", "never"], BeforeValidator(_as_wanted)] = Field(
        default="auto",
        description="Be woken by the file system, too; auto means where it can tell, so not on "
        "NFS, SMB, FUSE and their like. The full looks find every file without it.",
    )
    probe_seconds: FiniteFloat = Field(
        default=10.0,
        gt=0,
        description="How often it is tried whether events still come, and how long one may take.",
    )
    give_up_seconds: FiniteFloat = Field(
        default=600.0,
        ge=0,
        description="The daemon stops with status 4 when the inbox could not be listed for this "
        "long; 0 means that it waits for ever.",
    )
    ignore: tuple[str, ...] = Field(
        default=(
            ".*",
            "~*",
            "*~",
            "*.part",
            "*.partial",
            "*.filepart",
            "*.crdownload",
            "*.download",
            "*.tmp",
            "*.temp",
            "*.swp",
        ),
        description="Names of files that are still on their way (shell patterns).",
    )

    @model_validator(mode="after")
    def _folders_are_apart(self) -> Self:
        inbox, archive, quarantine = (
            Path(os.path.normpath(path)) for path in (self.inbox, self.archive, self.quarantine)
        )
        for name, folder in (("archive", archive), ("quarantine", quarantine)):
            # A file moved into the inbox would be found there again.
            if folder.is_relative_to(inbox):
                raise ValueError(f"{name} ({folder}) must not be inside the inbox ({inbox})")
        if archive == quarantine:
            raise ValueError("archive and quarantine must be two folders")
        return self


class Ingest(BaseModel):
    """How rows are stored, and when a file is given up."""

    model_config = _SECTION

    batch_rows: int = Field(default=5000, ge=1, description="Rows in one commit, at most.")
    batch_bytes: int = Field(
        default=8 * MIB, ge=1, description="Bytes of CSV in one commit, at most (or one row)."
    )
    attempts: int = Field(
        default=3, ge=1, description="Failed attempts after which a file is quarantined."
    )
    retry_seconds: FiniteFloat = Field(
        default=30.0, ge=0, description="Pause before the second attempt; it doubles each time."
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="So many processes take files at the same time, each those of other "
        "constituencies, when much waits. 0 means one for each core, but not more than 2. With "
        "SQLite, which has one writer, it always is 1.",
    )
    workers_from_mb: int = Field(
        default=4,
        ge=0,
        description="The processes are started when so many megabytes wait, or eight small files "
        "for each; below, the daemon has taken them itself before others are ready.",
    )
    reader_from_mb: int = Field(
        default=16,
        ge=0,
        description="A file (of a ZIP: a CSV in it) with so many megabytes left to read is read "
        "and validated by a process of its own, while the batch before goes into the database; so "
        "are up to 32 small files at once, where they have an eighth of that together. 0 means "
        "never. Workers read by themselves.",
    )
    lease_seconds: FiniteFloat = Field(
        default=60,
        gt=0,
        description="A job whose owner gave no sign of life for this long is free for others.",
    )
    stop_seconds: FiniteFloat = Field(
        default=20,
        ge=0,
        description="How long the batch in work may go on after a stop was asked for; then it is "
        "given up, and read again at the next start.",
    )
    max_reject_ratio: FiniteFloat = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A file is quarantined when its rejects are more than this share of its rows "
        "and also more than max_reject_rows.",
    )
    max_reject_rows: int = Field(
        default=20, ge=0, description="So many rejects are borne in any file, however short."
    )


class Keep(BaseModel):
    """How long what is not needed any more is kept."""

    model_config = _SECTION

    redundant_days: int = Field(
        default=0,
        ge=0,
        description="After so many days `ingestd prune` removes archived files of which another "
        "one holds every row: duplicates, and publications that a later one repeats whole. 0 "
        "means never. Jobs, rows, rejects, alerts and all other files are kept for ever.",
    )
    notices_days: int = Field(
        default=90, ge=1, description="So long it is kept to whom an alert was told, and when."
    )


class Limits(BaseModel):
    """Where a file stops being believed; beyond a limit it is refused, never read in part."""

    model_config = _SECTION

    max_line_bytes: int = Field(
        default=64 * MIB,
        ge=1,
        le=256 * MIB,
        description="The longest line. A row in work takes some eight times its length in memory.",
    )
    max_field_bytes: int = Field(
        default=32 * MIB,
        ge=1,
        le=256 * MIB,  # PostgreSQL has no longer string in JSON
        description="The longest column of a row; a voters list stands in two of them.",
    )
    max_member_bytes: int = Field(
        default=200 * GB, ge=1, description="The largest CSV inside a ZIP, unpacked."
    )
    max_ratio: int = Field(
        default=200, ge=1, description="Unpacked bytes for each packed byte of a ZIP member."
    )
    max_nesting: int = Field(
        default=3, ge=1, description="How deep ZIPs may lie in ZIPs, the outermost one counted."
    )
    max_members: int = Field(
        default=100_000,
        ge=1,
        description="Members of one ZIP, with those of the ZIPs inside it.",
    )
    max_name_bytes: int = Field(
        default=4096, ge=1, description="The longest name of a ZIP's member, with its folders."
    )
    max_hours: int = Field(
        default=20_000,
        ge=1,
        description="Different hours that the rows of one file may lie in. Each is recounted in "
        "one commit; a whole voting has some hundred.",
    )
    max_manifest_bytes: int = Field(
        default=16 * MIB, ge=1, description="A longer marker or manifest is ignored."
    )
    max_json_depth: int = Field(
        default=64, ge=1, le=1000, description="Levels of lists and objects in a JSON column."
    )
    max_entries: int = Field(
        default=200_000, ge=1, description="Entries in one row's params or diff."
    )
    raw_text_bytes: int = Field(
        default=64 * KIB, ge=0, description="How much of a reject's raw text is kept."
    )


class Statistics(BaseModel):
    """When a count is unlikely enough for an alert (docs/detection.md has the error rates)."""

    model_config = _SECTION

    spike_z: FiniteFloat = Field(
        default=4.3, gt=0, description="unusual_spike and night_surge: bulletins in an hour."
    )
    spike_z_large: FiniteFloat = Field(
        default=5.0, gt=0, description="The same in a fleet of large_fleet constituencies or more."
    )
    large_fleet: int = Field(default=2_000, ge=1, description="See spike_z_large.")
    spike_z_critical: FiniteFloat = Field(
        default=6.0,
        gt=0,
        description="From here on a spike is critical, if it is also 20 ballots and 1 % of the "
        "roll above what is expected.",
    )
    votes_z_more: FiniteFloat = Field(
        default=0.25,
        ge=0,
        description="Votes repeat what bulletins say: by so much more must they be off.",
    )
    least_off: FiniteFloat = Field(
        default=5.0, ge=0, description="An hour's count is off by at least so many ballots."
    )
    drop_z: FiniteFloat = Field(default=4.5, gt=0, description="unusual_drop.")
    shift_z: FiniteFloat = Field(
        default=5.0,
        gt=0,
        description="sustained_shift: six hours against the constituency's level.",
    )
    region_t: FiniteFloat = Field(
        default=5.5, gt=0, description="region_correlated: a region against the other regions."
    )
    turnout_chance: FiniteFloat = Field(
        default=1e-5, gt=0, lt=1, description="peer_outlier: turnout at a day's end."
    )
    uncast_z: FiniteFloat = Field(
        default=4.5, gt=0, description="peer_outlier: bulletins without a vote at a day's end."
    )
    uncast_least: FiniteFloat = Field(
        default=10.0, ge=0, description="Off by at least so many bulletins without a vote."
    )
    twin_t: FiniteFloat = Field(
        default=5.0, gt=0, description="peer_outlier: two ballots of one territory in an hour."
    )
    lag_z: FiniteFloat = Field(
        default=5.0, gt=0, description="peer_outlier: votes given the bulletins of their hour."
    )
    rejected_share: FiniteFloat = Field(
        default=0.01, ge=0, le=1, description="rejected_share: what is borne anywhere."
    )
    rejected_times: FiniteFloat = Field(
        default=3.0, gt=0, description="rejected_share: times the share of the region's others."
    )
    rejected_least: int = Field(
        default=5, ge=1, description="rejected_share: rejected ballots in the hour."
    )
    voting_hours: int = Field(
        default=60, ge=1, le=24 * 14, description="Length of a voting of which no end is known."
    )
    first_hour: int = Field(
        default=8, ge=0, le=23, description="The local hour at which votings begin."
    )
    overrides: dict[str, dict[str, FiniteFloat]] = Field(
        default={},
        description="Other thresholds for one election (its name) or one type of elections: "
        '[statistics.overrides."Выборы депутатов думы"] and below it spike_z = 5.0.',
    )

    @classmethod
    def thresholds(cls) -> list[str]:
        """The names of the settings that are thresholds."""
        return sorted(cls.model_fields.keys() - {"voting_hours", "first_hour", "overrides"})

    def for_election(self, election: str | None, type_: str | None = None) -> dict[str, Any]:
        """The thresholds of an election: its own before those of its type before all others."""
        held = {name: getattr(self, name) for name in self.thresholds()}
        for key in (type_, election):
            held |= self.overrides.get(key or "", {})
        return held

    @model_validator(mode="after")
    def _overrides_are_thresholds(self) -> Self:
        known = set(self.thresholds()) - {"large_fleet", "spike_z_large"}
        for election, keys in self.overrides.items():
            if strangers := sorted(keys.keys() - known):
                raise ValueError(
                    f"overrides of {election}: {', '.join(strangers)} cannot be set for one "
                    f"election; these can: {', '.join(sorted(known))}"
                )
        return self


_CHANNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_CHANNEL_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def _shown_name(name: str, number: int) -> str:
    """The name of a channel, unless it is what should stand on the other side, with its secrets."""
    return f"name number {number}" if any(sign in name for sign in ":/@") else repr(name)


def _known_channels(channels: dict[str, str]) -> dict[str, str]:
    """The channels; what is wrong with one is said without its URL, which holds secrets."""
    for number, (name, url) in enumerate(channels.items(), 1):
        if not _CHANNEL_NAME.fullmatch(name):
            shown = _shown_name(name, number)
            raise ValueError(f"{shown}: a channel's name has letters, digits, dots, _ and - only")
        if not _CHANNEL_URL.fullmatch(url):
            raise ValueError(f"{name}: must be a URL, such as https://host/hook or mailtos://…")
    return channels


class Notify(BaseModel):
    """Whom to tell of alerts, and of a daemon that is unhealthy.

    Channels are named below [notify.channels], or in the file of channels_file: duty =
    "https://example.org/hook" gets JSON by POST; any other URL (mailtos://, tgram://, …) goes
    through apprise, which must be there: pip install 'ingestd[notify]'. See docs/operating.md.
    """

    model_config = _SECTION

    channels: Annotated[dict[str, str], AfterValidator(_known_channels)] = Field(
        default={},
        repr=False,  # hold passwords and tokens
        description='Where to: [notify.channels] and below it duty = "https://example.org/hook".',
    )
    channels_file: Path | None = Field(
        default=None,
        description='A file with more channels, one on a line: duty = "mailtos://user:word@host". '
        "Passwords and tokens are better kept there than here.",
    )
    webhook_secret_file: Path | None = Field(
        default=None,
        description="A file with nothing but a secret: webhooks are signed with it (HMAC-SHA-256).",
    )
    at_once: Literal["critical", "warning", "info", "nothing"] = Field(
        default="critical", description="The least severity of alerts that are told at once."
    )
    digest: Literal["critical", "warning", "info", "nothing"] = Field(
        default="warning",
        description="The least severity of alerts that are told in a digest; nothing means that "
        "there is none.",
    )
    digest_minutes: FiniteFloat = Field(
        default=60, ge=0, description="A digest gathers what there is for so long."
    )
    gather_seconds: FiniteFloat = Field(
        default=30,
        ge=0,
        description="At once means after so long: alerts come in crowds, and some clear "
        "themselves when the next file is read.",
    )
    cleared: bool = Field(
        default=False, description="Tell, in the digest, also when such an alert cleared itself."
    )
    troubles: bool = Field(
        default=True,
        description="Tell when the daemon is unhealthy: database or inbox away, disk full, …",
    )
    trouble_seconds: FiniteFloat = Field(
        default=60, ge=0, description="What is over within this time is not worth a message."
    )
    most_per_hour: int = Field(
        default=20,
        ge=1,
        description="Messages by each channel; beyond that, what waits becomes one message.",
    )
    timeout_seconds: FiniteFloat = Field(
        default=15, gt=0, le=300, description="How long one message may take to be sent."
    )
    give_up_hours: FiniteFloat = Field(
        default=72,
        gt=0,
        description="A message that could not be sent for so long is given up; `ingestd notify "
        "retry` tries it again.",
    )


class Log(BaseModel):
    """What is said on standard error."""

    model_config = _SECTION

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important event that is written."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="auto is console on a terminal, fields and priorities in the journal under "
        "systemd, and JSON lines elsewhere.",
    )


def place_of(listen: str) -> tuple[str, int]:
    """The address and the port of `metrics.listen`.

    Raises:
        ValueError: it is none.
    """
    host, _, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise ValueError("must be an address and a port, such as 127.0.0.1:9641")
    try:
        return str(ip_address(host)), int(port)
    except ValueError:
        raise ValueError("must begin with an address in numbers, or localhost") from None


def _place_or_nothing(listen: str) -> str:
    if listen:
        place_of(listen)
    return listen


class Metrics(BaseModel):
    """A local port that says how the daemon does: /metrics, /healthz, /readyz."""

    model_config = _SECTION

    listen: Annotated[str, AfterValidator(_place_or_nothing)] = Field(
        default="",
        description="Where it answers, such as 127.0.0.1:9641; nowhere when empty. Whoever "
        "reaches it may read it: no password, no names of files, but of the inbox's folders.",
    )
    silent_seconds: FiniteFloat = Field(
        default=720.0,
        gt=0,
        description="/healthz says no when the daemon came no step further for so long; keep it "
        "above database.answer_timeout_seconds.",
    )


class Settings(BaseSettings):
    """Everything that can be configured; frozen, and a pure function of its arguments."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
    )

    database: Database = Database()
    watch: Watch = Watch()
    ingest: Ingest = Ingest()
    keep: Keep = Keep()
    limits: Limits = Limits()
    statistics: Statistics = Statistics()
    alerts: Alerts = Alerts()
    metrics: Metrics = Metrics()
    elections: Elections = Elections()
    notify: Notify = Notify()
    log: Log = Log()

    @property
    def held(self) -> Alerts:
        """The thresholds of the alerts; contracts of known elections must be here, too."""
        expected = (*self.alerts.constituency_missing.contracts, *self.elections.contracts)
        table = self.alerts.constituency_missing.model_copy(update={"contracts": expected})
        return self.alerts.model_copy(update={"constituency_missing": table})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the name is Pydantic's
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: `load_settings` asks the environment and the file, and says so."""
        return (init_settings,)


SECTIONS: dict[str, type[BaseModel]] = {
    "database": Database,
    "watch": Watch,
    "ingest": Ingest,
    "keep": Keep,
    "limits": Limits,
    "statistics": Statistics,
    "alerts": Alerts,
    "metrics": Metrics,
    "elections": Elections,
    "notify": Notify,
    "log": Log,
}


def load_settings(path: Path | None = None, **overrides: object) -> Settings:
    """The settings from flags, environment, file and defaults; the first that has a value wins.

    An override is named `section__key`; None means that the flag was not given. Relative paths
    from the file (and defaults, where there is a file) start at its folder, those from flags and
    environment at the working folder; all come back absolute. Raises ConfigError.
    """
    cwd = Path.cwd()
    file = path or _find_config(os.environ)
    base = cwd / file.parent if file else cwd
    places = [
        Place("flag {section}.{key}", _from_flags(overrides), cwd),
        Place(f"environment {ENV_PREFIX}{{SECTION}}__{{KEY}}", _from_environment(os.environ), cwd),
        Place(f"{_literal(file)}: {{section}}.{{key}}", _from_file(file) if file else {}, base),
        Place("default of {section}.{key}", _defaults(), base),
    ]
    if strangers := [line for place in places for line in place.strangers()]:
        raise ConfigError("\n".join(strangers))
    try:
        return _with_channels(_with_password(Settings.model_validate(_merged(places))))
    except ValidationError as error:
        lines = [_in_plain_words(details, places) for details in error.errors()]
    # Outside the handler: Pydantic's own text, chained to ours, may show a password.
    raise ConfigError("\n".join(lines))


_MOST_SECRET_BYTES = 65_536


def _with_password(settings: Settings) -> Settings:
    """The settings with the password that a file holds in their URL; never in a message."""
    file, url = settings.database.password_file, make_url(settings.database.url)
    if file is None:
        return settings
    if url.get_backend_name() != "postgresql":
        raise ConfigError("database.password_file: only a postgresql:// url has a password")
    if url.password:
        raise ConfigError("database.password_file: the url has a password already; keep one")
    password = _one_line("database.password_file", file, "the password")
    whole = url.set(password=password).render_as_string(hide_password=False)
    database = settings.database.model_copy(update={"url": whole})
    return settings.model_copy(update={"database": database})


def _one_line(setting: str, file: Path, what: str) -> str:
    """The only line of a file with a secret; an error names the setting and the file alone."""
    line = _secret_text(setting, file).rstrip("\r\n")
    if not line or "\n" in line:
        raise ConfigError(f"{setting}: {file} must hold one line, {what}")
    return line


def _secret_text(setting: str, file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_MOST_SECRET_BYTES).decode()
    except OSError as error:
        # Not `…password: …`: what follows would be hidden like a password.
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{setting}: {file} is not UTF-8") from error


def _with_channels(settings: Settings) -> Settings:
    """The settings with the channels that a file holds; never in a message."""
    file = settings.notify.channels_file
    if file is None:
        return settings
    known = settings.notify.channels
    text = _secret_text("notify.channels_file", file)
    try:
        more = _channels_in(text, known)
    except ValueError as error:
        told = str(error)
    else:
        notify = settings.notify.model_copy(update={"channels": {**known, **more}})
        return settings.model_copy(update={"notify": notify})
    raise ConfigError(f"notify.channels_file: {file}: {told}")


def _channels_in(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """The channels of a file. Raises ValueError, in words that show no URL."""
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'a line must be like duty = "https://…": {error}') from None
    for number, (name, url) in enumerate(found.items(), 1):
        if not isinstance(url, str):
            shown = _shown_name(name, number)
            raise ValueError(f'{shown}: must be a URL in quotes: duty = "https://…"')  # noqa: TRY004 - of a file, not of an argument
        if name in known:
            raise ValueError(f"{name} is a channel of the configuration, too; keep one")
    return _known_channels(found)


def webhook_secret(notify: Notify) -> str | None:
    """What webhooks are signed with, where that is wanted. Raises ConfigError."""
    file = notify.webhook_secret_file
    return None if file is None else _one_line("notify.webhook_secret_file", file, "the secret")


def redacted_url(url: str) -> str:
    """The URL as it may be shown: its password and secret parameters as ***."""
    parsed = _parsed(url)
    if parsed is None:
        return "***"
    hidden = {key: "***" for key in parsed.query if "password" in key.lower()}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def example_toml() -> str:
    """A configuration file that sets nothing and explains everything."""
    head = (
        "# The configuration of ingestd. Every line that sets a value is commented out and shows\n"
        "# the default. Relative paths start at the folder of this file. The environment wins\n"
        "# over this file: INGESTD_WATCH__INBOX=/srv/inbox sets inbox in [watch].\n"
    )
    return head + "".join(_section_toml(name, model) for name, model in SECTIONS.items())


def reference() -> str:
    """The same for reading, in Markdown: every setting, its default, what it does."""
    head = (
        "# Configuration\n\n"
        "<!-- Made by `make docs` from the descriptions in ingestd/config.py. -->\n\n"
        "A flag wins over the environment, that over the file, that over the default. The file is\n"
        "the one named by `--config` or `INGESTD_CONFIG`, else `ingestd.toml` in the working\n"
        "folder, else `/etc/ingestd/config.toml`; `ingestd init` writes one that explains itself.\n"
        "Relative paths in it start at its folder. `ingestd check` says whether all fits.\n"
        "\n"
        "In the environment `poll_seconds` of `[watch]` is `INGESTD_WATCH__POLL_SECONDS`; lists\n"
        "are JSON there.\n"
    )
    return head + "".join(_section_markdown(name, model) for name, model in SECTIONS.items())


def write_config(folder: Path) -> Path:
    """Make a folder to work in: ingestd.toml, inbox, archive, quarantine; nothing is overwritten.

    Raises ConfigError when there is an ingestd.toml already.
    """
    config = folder / LOCAL_CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with config.open("x", encoding="utf-8") as file:
            file.write(example_toml())
        for name in ("inbox", "archive", "quarantine"):
            (folder / name).mkdir(exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} is already there; it was not changed") from error
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return config


# The places ---------------------------------------------------------------------------------


Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where values come from: how a key is spelled there, and where its relative paths start."""

    spelling: str
    values: dict[str, Any]  # Values, once it has no strangers
    base: Path

    def spell(self, section: str, key: str = "") -> str:
        """The key, or the section, as a person would look for it in this place."""
        return self.spelling.format(
            section=section, key=key, SECTION=section.upper(), KEY=key.upper()
        ).rstrip("._")

    def strangers(self) -> Iterator[str]:
        """One line for each name that is not a setting, with the one that may be meant."""
        for section, keys in self.values.items():
            if not isinstance(keys, dict):
                yield f"{self.spell(section)}: not a section{self._hint('', section)}"
            elif section not in SECTIONS and not keys:
                yield f"{self.spell(section)}: unknown section"
            else:
                known = SECTIONS[section].model_fields if section in SECTIONS else {}
                for key in set() if _entry_of(section) else keys.keys() - known.keys():
                    yield f"{self.spell(section, key)}: unknown key{self._hint(section, key)}"

    def _hint(self, section: str, key: str) -> str:
        nearest = _nearest(section, key)
        return f"; did you mean {self.spell(*nearest)}?" if nearest else ""

    def anchored(self) -> Values:
        """The values with every relative path made absolute."""
        return {
            section: {key: _anchored(section, key, value, self.base) for key, value in keys.items()}
            for section, keys in self.values.items()
        }


def _entry_of(section: str) -> type[BaseModel] | None:
    """The table that stands below a section under any name, where a person gives the names."""
    return KnownElection if SECTIONS.get(section) is Elections else None


def _find_config(environment: Mapping[str, str]) -> Path | None:
    """The file named by the environment (it must exist), else the first that is there."""
    if named := environment.get(CONFIG_VARIABLE):
        return Path(named)
    return next((file for file in (LOCAL_CONFIG, SYSTEM_CONFIG) if is_there(file)), None)


def is_there(file: Path) -> bool:
    """Whether a file exists; none does in a folder that may not be entered."""
    return os.path.exists(file)  # noqa: PTH110 - Path.exists raises there


def _from_flags(overrides: Mapping[str, object]) -> Values:
    values: Values = {}
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        if value is not None:
            values.setdefault(section, {})[key] = value
    return values


def _from_environment(environment: Mapping[str, str]) -> Values:
    """The values of INGESTD_SECTION__KEY, lists as JSON; INGESTD_ names without __ are not ours."""
    known = {f"{section}_{key}": f"{section}__{key}" for section, key, _ in _fields()}
    values: Values = {}
    for variable in environment:
        name = variable.lower()
        if not name.startswith(ENV_PREFIX.lower()):
            continue
        section, *keys = name.removeprefix(ENV_PREFIX.lower()).split("__")
        if keys:
            values.setdefault(section, {})[keys[0]] = environment[variable]
        elif section in known or section in SECTIONS:
            # Silence would mean the default, which is the worst answer to a near miss.
            meant = known.get(section, f"{section}__key")
            raise ConfigError(
                f"environment {variable}: did you mean {ENV_PREFIX}{meant.upper()}"
                " (with two underscores)?"
            )
    try:
        return _deep_update(values, EnvSettingsSource(Settings)())
    except ValueError:
        told = _not_json(environment)
    # Outside the handler: the text of a variable may be a secret.
    raise ConfigError(told)


def _not_json(environment: Mapping[str, str]) -> str:
    """Which variable should be JSON and is not."""
    if channels := environment.get(f"{ENV_PREFIX}NOTIFY__CHANNELS"):
        try:
            json.loads(channels)
        except ValueError:
            return (
                f"environment {ENV_PREFIX}NOTIFY__CHANNELS: must be a JSON object, "
                'such as {"duty": "https://example.org/hook"}'
            )
    return (
        f'environment {ENV_PREFIX}WATCH__IGNORE: must be a JSON list, such as ["*.part", "*.tmp"]'
    )


def _from_file(file: Path) -> Values:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error


def _defaults() -> Values:
    values: Values = {}
    for section, key, field in _fields():
        values.setdefault(section, {})[key] = field.get_default(call_default_factory=True)
    return values


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            yield section, key, field


def _merged(places: list[Place]) -> Values:
    """One value for each key, from the first place that has one."""
    merged: Values = {}
    for place in reversed(places):
        merged = _deep_update(merged, place.anchored())
    return merged


def _deep_update(values: Values, stronger: Values) -> Values:
    sections = {**values, **stronger}
    return {name: _over(values.get(name, {}), stronger.get(name, {})) for name in sections}


def _over(values: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    """The stronger values over the others, table by table: a rule has a table of its own."""
    merged = {**values, **stronger}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(merged[key], dict) and key in stronger:
            merged[key] = _over(value, merged[key])
    return merged


def _anchored(section: str, key: str, value: object, base: Path) -> object:
    if _entry_of(section):
        return value
    kind = SECTIONS[section].model_fields[key].annotation
    if kind == Path | None and not value:
        return None  # TOML has no other word for nothing than ""
    if kind in {Path, Path | None} and isinstance(value, str | Path):
        return base / value
    if (section, key) == ("database", "url") and isinstance(value, str):
        return _anchored_url(value, base)
    return value


def _anchored_url(url: str, base: Path) -> str:
    """The URL with the file of an SQLite database made absolute; any other as it is."""
    parsed = _parsed(url)
    if parsed is None or not parsed.drivername.startswith("sqlite"):
        return url
    name = parsed.database
    if not name or name == ":memory:" or name.startswith("file:"):
        return url
    return parsed.set(database=str(base / name)).render_as_string(hide_password=False)


# Words for people ---------------------------------------------------------------------------


def _literal(file: Path | None) -> str:
    """A file name that can stand in a format string."""
    return str(file).replace("{", "{{").replace("}", "}}")


def _nearest(section: str, key: str) -> tuple[str, str] | None:
    """The setting that may be meant: the same key elsewhere, else the closest spelling."""
    known = {f"{section}.{key}": (section, key) for section, key, _ in _fields()}
    same = [name for name, (_, known_key) in known.items() if known_key == key]
    near = same or difflib.get_close_matches(f"{section}.{key}", known, n=1)
    return known[near[0]] if near else None


def _in_plain_words(details: ErrorDetails, places: list[Place]) -> str:
    """One problem: place and key, the value, what is allowed."""
    section, key = (*map(str, details["loc"]), "")[:2]
    rule = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    place = next(
        place
        for place in places
        if section in place.values and (not key or key in place.values[section])
    )
    if not key:
        return f"{place.spell(section)}: {rule}"
    shown = redacted_url(str(details["input"])) if key == "url" else repr(details["input"])
    if (section, key) == ("notify", "channels"):
        shown = "***"
    inner = "".join(f".{part}" for part in details["loc"][2:])
    if shown == "***" and any(sign in inner for sign in ":/@"):
        inner = ".***"
    return f"{place.spell(section, key)}{inner} = {shown}: {rule}"


def _section_toml(name: str, model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    lines = ["", *textwrap.wrap(about, 96, initial_indent="# ", subsequent_indent="# ")]
    lines += [f"[{name}]"]
    tables = ""
    for key, field in model.model_fields.items():
        value = getattr(model(), key)
        if isinstance(value, BaseModel):
            tables += _table_toml(f"{name}.{key}", value)
        else:
            lines += _field_toml(key, field, value)
    if entry := _entry_of(name):
        lines += ["", f'# [{name}."name"]']
        for key, field in entry.model_fields.items():
            told = f"{key} = {_toml(getattr(entry(), key))}: {field.description}"
            lines += textwrap.wrap(told, 96, initial_indent="# ", subsequent_indent="#   ")
    return "\n".join([*lines, ""]) + tables


def _table_toml(name: str, table: BaseModel) -> str:
    """The table of one rule; its lines are commented out, so that it sets nothing."""
    lines = ["", f"[{name}]"]
    for key, field in type(table).model_fields.items():
        lines += _field_toml(key, field, getattr(table, key))[key == "enabled" and 2 :]
    return "\n".join([*lines, ""])


def _section_markdown(name: str, model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    lines = ["", f"## [{name}]", "", about, "", "| setting | default | what it does |"]
    entry = _entry_of(name)
    lines += ["|---|---|---|", *_rows_markdown("", model())]
    lines += _rows_markdown('"name".', entry()) if entry else []
    return "\n".join([*lines, ""])


def _rows_markdown(prefix: str, values: BaseModel) -> list[str]:
    """One row for each setting; those of a rule stand behind its name."""
    rows: list[str] = []
    for key, field in type(values).model_fields.items():
        value = getattr(values, key)
        if isinstance(value, BaseModel):
            rows += _rows_markdown(f"{prefix}{key}.", value)
        else:
            words = f"{field.description}{_choices(field)}".replace("|", "\\|")
            rows += [f"| `{prefix}{key}` | `{_toml(value)}` | {words} |"]
    return rows


def _field_toml(key: str, field: FieldInfo, value: object) -> list[str]:
    words = f"{field.description}{_choices(field)}"
    wrapped = textwrap.wrap(words, 96, initial_indent="# ", subsequent_indent="# ")
    return ["", *wrapped, f"#{key} = {_toml(value)}"]


def _choices(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not Literal:
        return ""
    return f" One of {', '.join(map(_toml, get_args(field.annotation)))}."


def _toml(value: object) -> str:
    match value:
        case None:
            return '""'
        case bool() | list() | tuple() | dict():
            return json.dumps(value)
        case int():
            return f"{value:_}"
        case float():
            return repr(value)
        case _:
            return json.dumps(str(value), ensure_ascii=False)
