"""The configuration: what wins, what is refused, and in which words."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from ingestd import config
from ingestd.config import (
    SECTIONS,
    ConfigError,
    Settings,
    example_toml,
    load_settings,
    redacted_url,
    write_config,
)
from ingestd.thresholds import Rules

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, on a machine without a system-wide configuration."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "etc" / "config.toml")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a configuration file goes that is not in the working folder."""
    folder = tmp_path / "conf"
    folder.mkdir()
    return folder / "config.toml"


def refusal(path: Path | None = None, /, **overrides: object) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(ConfigError) as refused:
        load_settings(path, **overrides)
    return str(refused.value)


# What wins


def test_without_any_configuration_the_defaults_hold() -> None:
    """No file and no variable: it just works."""
    assert Settings().ingest == load_settings().ingest


def test_the_file_wins_over_the_default(file: Path) -> None:
    """A value in the file is used."""
    file.write_text("[ingest]\nbatch_rows = 7\n")
    assert load_settings(file).ingest.batch_rows == 7


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable changes one key and leaves its neighbours in the file alone."""
    file.write_text("[ingest]\nbatch_rows = 7\nattempts = 9\n")
    monkeypatch.setenv("INGESTD_INGEST__BATCH_ROWS", "8")
    ingest = load_settings(file).ingest
    assert (ingest.batch_rows, ingest.attempts) == (8, 9)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed last, by hand, counts most."""
    monkeypatch.setenv("INGESTD_LOG__LEVEL", "error")
    assert load_settings(log__level="debug").log.level == "debug"


def test_a_flag_that_was_not_given_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line passes None for a flag that nobody typed."""
    monkeypatch.setenv("INGESTD_LOG__LEVEL", "error")
    assert load_settings(log__level=None).log.level == "error"


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patterns to ignore are a JSON list, so that a pattern may hold a comma."""
    monkeypatch.setenv("INGESTD_WATCH__IGNORE", '["*.a,b"]')
    assert load_settings().watch.ignore == ("*.a,b",)


def test_settings_made_by_hand_see_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only load_settings asks the outside."""
    monkeypatch.setenv("INGESTD_LOG__LEVEL", "error")
    assert Settings().log.level == "info"


def test_settings_do_not_change() -> None:
    """What travels through the daemon is frozen, section by section."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().log.level = "debug"


# Which file is read


def test_the_working_folder_comes_before_the_system(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """./ingestd.toml is read, and /etc only when there is none."""
    (tmp_path / "system.toml").write_text("[ingest]\nbatch_rows = 1\n")
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "system.toml")
    assert load_settings().ingest.batch_rows == 1
    (cwd / "ingestd.toml").write_text("[ingest]\nbatch_rows = 2\n")
    assert load_settings().ingest.batch_rows == 2


def test_the_environment_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INGESTD_CONFIG comes before the usual places."""
    file.write_text("[ingest]\nbatch_rows = 3\n")
    monkeypatch.setenv("INGESTD_CONFIG", str(file))
    assert load_settings().ingest.batch_rows == 3


def test_a_named_file_must_be_there(file: Path) -> None:
    """Falling back to defaults in silence would ingest into the wrong database."""
    assert f"{file}: No such file or directory" == refusal(file)


# Where paths start


def test_paths_in_the_file_start_at_its_folder(file: Path) -> None:
    """The daemon may be started from anywhere; so for the SQLite file."""
    file.write_text('[watch]\ninbox = "in"\n[database]\nurl = "sqlite:///a.db"\n')
    settings = load_settings(file)
    assert file.parent / "in" == settings.watch.inbox
    assert f"sqlite:///{file.parent}/a.db" == settings.database.url


def test_defaults_beside_a_file_start_at_its_folder(file: Path) -> None:
    """Taking the comment sign off a line of the example changes nothing."""
    file.write_text("")
    commented = load_settings(file)
    file.write_text(example_toml().replace("\n#", "\n").replace("\n ", "\n# "))
    assert commented == load_settings(file)


def test_paths_in_the_environment_start_at_the_working_folder(
    cwd: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell completes paths from where it stands; so for flags."""
    file.write_text("")
    monkeypatch.setenv("INGESTD_WATCH__INBOX", "in")
    settings = load_settings(file, database__url="sqlite:///b.db")
    assert cwd / "in" == settings.watch.inbox
    assert f"sqlite:///{cwd}/b.db" == settings.database.url


@pytest.mark.parametrize("url", ["sqlite:////srv/a.db", "postgresql+psycopg://h/n"])
def test_a_url_without_a_relative_file_stays_as_it_is(url: str) -> None:
    """Absolute or on a server: there is nothing to anchor."""
    assert url == load_settings(database__url=url).database.url


# What is refused


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """It would be gone with the process, and every connection would see its own."""
    with pytest.raises(ConfigError, match="must name a file"):
        load_settings(database__url=url)


def test_an_unknown_key_in_the_file_is_refused_with_the_one_meant(file: Path) -> None:
    """A typo must not mean the default."""
    file.write_text("[ingest]\nbatch_row = 7\n")
    expected = f"{file}: ingest.batch_row: unknown key; did you mean {file}: ingest.batch_rows?"
    assert expected == refusal(file)


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(file: Path) -> None:
    """The same key elsewhere is the best guess."""
    file.write_text('[ingest]\ninbox = "in"\n')
    assert "ingest.inbox: unknown key; did you mean" in refusal(file)
    assert refusal(file).endswith("watch.inbox?")


def test_an_unknown_section_is_refused(file: Path) -> None:
    """Also when it is empty."""
    file.write_text("[databse]\n")
    assert f"{file}: databse: unknown section" == refusal(file)


@pytest.mark.parametrize("of", ['elections."Mayor"', 'types."local"'])
def test_what_is_about_all_elections_is_not_set_for_one(file: Path, of: str) -> None:
    """Else it would be taken and do nothing; what can be of one election is taken."""
    file.write_text(f"[alerts.{of}.missing_hour]\nslots_past = 3\n")
    load_settings(file)
    file.write_text(f"[alerts.{of}.silent_feed]\nhours = 2\n")
    assert "cannot set hours: that is about all elections together" in refusal(file)


def test_a_day_that_ends_before_it_begins_is_refused(file: Path) -> None:
    """Or the feed would never be silent."""
    file.write_text("[alerts.silent_feed]\nfrom_hour = 20\nto_hour = 8\n")
    assert "from_hour = 20 must be before to_hour = 8" in refusal(file)


def test_a_key_outside_of_every_section_is_refused(file: Path) -> None:
    """TOML forgives a forgotten section line; we say where the key belongs."""
    file.write_text("batch_rows = 7\n")
    assert "batch_rows: not a section" in refusal(file)
    assert refusal(file).endswith("ingest.batch_rows?")


def test_an_unknown_variable_is_refused_with_the_one_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """INGESTD_…__… is ours alone, so a stranger there is a typo."""
    monkeypatch.setenv("INGESTD_WATCH__INBX", "in")
    message = refusal()
    assert "environment INGESTD_WATCH__INBX: unknown key" in message
    assert message.endswith("environment INGESTD_WATCH__INBOX?")


def test_a_variable_with_one_underscore_too_few_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commonest slip would otherwise write into the default database."""
    monkeypatch.setenv("INGESTD_DATABASE_URL", "sqlite:///a.db")
    assert "did you mean INGESTD_DATABASE__URL" in refusal()


def test_a_variable_of_the_tests_is_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """INGESTD_ names that look like no setting are left alone."""
    monkeypatch.setenv("INGESTD_TEST_DATABASES", "sqlite")
    assert load_settings().ingest == Settings().ingest


def test_every_problem_is_told_at_once(file: Path) -> None:
    """Nobody should have to start the daemon five times."""
    file.write_text('[ingest]\nbatch_rows = 0\nattempts = "many"\n')
    lines = refusal(file).splitlines()
    assert f"{file}: ingest.batch_rows = 0: must be greater than or equal to 1" == lines[0]
    assert lines[1].startswith(f"{file}: ingest.attempts = 'many': must be a valid integer")


def test_a_choice_is_refused_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is allowed."""
    monkeypatch.setenv("INGESTD_WATCH__AFTER", "delete")
    expected = "environment INGESTD_WATCH__AFTER = 'delete': must be 'archive' or 'leave'"
    assert expected == refusal()


def test_a_broken_list_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message shows how a list is written."""
    monkeypatch.setenv("INGESTD_WATCH__IGNORE", "*.part,*.tmp")
    assert "INGESTD_WATCH__IGNORE: must be a JSON list" in refusal()


@pytest.mark.parametrize(
    ("told", "meant"), [("true", "auto"), ("false", "never"), ('"always"', "always")]
)
def test_events_may_be_switched_as_they_once_were(file: Path, told: str, meant: str) -> None:
    """True and false were all there was."""
    file.write_text(f"[watch]\nevents = {told}\n")
    assert meant == load_settings(file).watch.events


def test_a_word_for_events_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which there are."""
    monkeypatch.setenv("INGESTD_WATCH__EVENTS", "sometimes")
    expected = (
        "environment INGESTD_WATCH__EVENTS = 'sometimes': must be 'auto', 'always' or 'never'"
    )
    assert expected == refusal()


def test_an_infinite_pause_is_refused(file: Path) -> None:
    """TOML knows inf and nan; a clock does not."""
    file.write_text("[watch]\npoll_seconds = inf\n")
    assert "watch.poll_seconds = inf: must be a finite number" in refusal(file)


def test_a_file_that_is_not_toml_is_refused_with_the_line(file: Path) -> None:
    """The parser knows where it stumbled."""
    file.write_text("[watch]\ninbox = in\n")
    assert f"{file}: not TOML: Invalid value (at line 2, column 9)" == refusal(file)


def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(file: Path) -> None:
    """windows-1251 is refused, not guessed."""
    file.write_bytes("[watch]\ninbox = 'папка'\n".encode("cp1251"))
    assert f"{file}: not UTF-8 at byte 17" == refusal(file)


def test_a_byte_order_mark_is_no_problem(file: Path) -> None:
    """Notepad writes one."""
    file.write_bytes("[ingest]\nbatch_rows = 7\n".encode("utf-8-sig"))
    assert load_settings(file).ingest.batch_rows == 7


def test_a_brace_in_the_name_of_the_file_is_just_a_letter(tmp_path: Path) -> None:
    """Messages are built from templates; names are not."""
    file = tmp_path / "{x}.toml"
    file.write_text("[ingest]\nbatch_rows = 0\n")
    assert refusal(file).startswith(f"{file}: ingest.batch_rows")


@pytest.mark.parametrize("folder", ["inbox", "inbox/done", "x/../inbox"])
@pytest.mark.parametrize("key", ["archive", "quarantine"])
def test_what_leaves_the_inbox_must_not_go_back_into_it(key: str, folder: str) -> None:
    """An archive in the inbox would be found and ingested again."""
    assert f"{key} (" in refusal(**{f"watch__{key}": folder})
    assert "must not be inside the inbox" in refusal(**{f"watch__{key}": folder})


# Secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:geheim@h/n", "postgresql://u:***@h/n"),
        ("postgresql://h/n?password=geheim&user=u", "postgresql://h/n?password=%2A%2A%2A&user=u"),
        ("postgresql://u:geheim@h:port/n", "***"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """Wherever the password stands; what can't be parsed is not shown at all."""
    assert shown == redacted_url(url)


@pytest.mark.parametrize("url", ["mysql://u:geheim@h/n", "postgresql://u:geheim@h:port/n"])
def test_a_refused_url_keeps_its_password(url: str) -> None:
    """Neither the message nor the exception behind it shows it."""
    with pytest.raises(ConfigError) as refused:
        load_settings(database__url=url)
    assert "geheim" not in str(refused.value)
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_settings_print_without_the_url() -> None:
    """A settings object in a log line or a traceback gives nothing away."""
    assert "geheim" not in repr(load_settings(database__url="postgresql://u:geheim@h/n"))


def test_a_password_may_come_from_a_file(file: Path) -> None:
    """Neither configuration nor environment holds it; its line end is none of it."""
    file.with_name("password").write_text("a@b:c/%\n")
    file.write_text("[database]\nurl = 'postgresql://u@h/d'\npassword_file = 'password'\n")
    settings = load_settings(file)
    assert "a@b:c/%" == make_url(settings.database.url).password
    assert "a@b" not in repr(settings)
    assert "postgresql+psycopg://u:***@h/d" == redacted_url(settings.database.url)


def test_no_password_file_is_an_empty_name(file: Path) -> None:
    """As the example shows it."""
    file.write_text("[database]\npassword_file = ''\n")
    assert load_settings(file).database.password_file is None


@pytest.mark.parametrize(
    ("url", "content", "told"),
    [
        ("postgresql://u@h/d", None, "No such file or directory"),
        ("postgresql://u@h/d", b"", "must hold one line"),
        ("postgresql://u@h/d", b"geheim\nzwei\n", "must hold one line"),
        ("postgresql://u@h/d", b"\xffgeheim", "is not UTF-8"),
        ("postgresql://u:geheim@h/d", b"geheim", "has a password already"),
        ("sqlite:///x.db", b"geheim", "only a postgresql:// url has a password"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_refused_without_showing_it(
    file: Path, url: str, content: bytes | None, told: str
) -> None:
    """The sentence says what is wrong, and nothing of what is in it."""
    if content is not None:
        file.with_name("password").write_bytes(content)
    file.write_text(f"[database]\nurl = '{url}'\npassword_file = 'password'\n")
    with pytest.raises(ConfigError, match=told) as refused:
        load_settings(file)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_bare_postgresql_url_means_psycopg(scheme: str) -> None:
    """People copy URLs without a driver; the password comes through whole."""
    url = load_settings(database__url=f"{scheme}://u:p%40ss@h/n").database.url
    assert url == "postgresql+psycopg://u:p%40ss@h/n"


# The example and init


def test_the_example_in_the_repository_is_the_one_in_the_program() -> None:
    """Made again with: python -c 'from ingestd.config import *; print(example_toml(), end="")'."""
    assert example_toml() == (ROOT / "config.example.toml").read_text(encoding="utf-8")


def test_the_example_sets_nothing() -> None:
    """New defaults reach those who never changed them."""
    assert {
        name: {key: {} for key in model.model_fields if hasattr(Rules(), key)}
        for name, model in SECTIONS.items()
    } == tomllib.loads(example_toml())


def test_every_setting_is_explained() -> None:
    """The documentation is made from the descriptions."""
    tables = {type(getattr(Rules(), rule)) for rule in Rules.model_fields}
    silent = [
        key
        for model in (*SECTIONS.values(), *tables)
        for key, field in model.model_fields.items()
        if not field.description and key not in Rules.model_fields
    ]
    assert silent == []


def test_every_section_is_in_the_settings() -> None:
    """SECTIONS and Settings name the same things."""
    assert {key: field.annotation for key, field in Settings.model_fields.items()} == SECTIONS


def test_a_rule_has_a_table_of_its_own(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and environment may each set a part of it, and an election something else again."""
    (cwd / "ingestd.toml").write_text(
        "[alerts.missing_hour]\nwatermark = 0.5\n"
        '[alerts.elections."Duma".missing_hour]\nin_a_row = 9\n'
    )
    monkeypatch.setenv("INGESTD_ALERTS__MISSING_HOUR__SLOTS_PAST", "4")
    alerts = load_settings().alerts
    held = alerts.for_election("Duma", None).missing_hour
    assert (0.5, 4, 9) == (held.watermark, held.slots_past, held.in_a_row)
    assert 3 == alerts.for_election("another", "duma").missing_hour.in_a_row


def test_a_wrong_threshold_is_named_with_its_rule(cwd: Path) -> None:
    """The message says which rule, which key, and what is allowed."""
    (cwd / "ingestd.toml").write_text("[alerts.reject_share]\nshare = 2\n")
    with pytest.raises(ConfigError, match=r"alerts\.reject_share\.share = 2: .*less than"):
        load_settings()


def test_init_makes_a_folder_to_work_in(cwd: Path) -> None:
    """One command, and there is a configuration with its three folders."""
    written = write_config(cwd / "votes")
    settings = load_settings(written)
    assert cwd / "votes" / "ingestd.toml" == written
    for folder in (settings.watch.inbox, settings.watch.archive, settings.watch.quarantine):
        assert folder.is_dir()


def test_init_never_overwrites(cwd: Path) -> None:
    """A second init changes nothing and says so."""
    (cwd / "ingestd.toml").write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"ingestd\.toml is already there"):
        write_config(cwd)
    assert (cwd / "ingestd.toml").read_text() == "# mine\n"


def test_init_says_which_file_is_in_the_way(cwd: Path) -> None:
    """A file where a folder should be is named."""
    (cwd / "inbox").write_text("")
    with pytest.raises(ConfigError, match="inbox"):
        write_config(cwd)
