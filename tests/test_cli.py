"""The command line: what it answers, on which stream, with which exit status."""

import csv
import getpass
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from ingestd import crud, migrate, once
from ingestd.cli import app, screen
from ingestd.config import load_settings
from ingestd.db import make_engine, make_sessions
from ingestd.simulate import Plan, Truth, simulate
from tests.conftest import DATABASES, PostgreSQL, Voting, csv_of
from tests.hook import hook_server

PLAN = Plan(
    constituencies=3,
    hours=4,
    voters_median=30,
    voters_max=60,
    defects=("bad_rows", "too_many_bad", "republished_gone", "unknown_operation"),
)
PROGRAM = (sys.executable, "-m", "ingestd.cli")
FORGERY = "\x1b[2J\x9b31m\u202e[bold]ok"

pytestmark = pytest.mark.usefixtures("logging_is_put_back")

COMMANDS = [
    *("init", "run", "once", "try", "check", "status", "jobs", "jobs show", "jobs make-current"),
    *("jobs forget", "rejects", "rejects export", "rejects replay", "retry", "audit"),
    *("alerts", "alerts explain", "alerts export", "rules", "coverage", "stats", "fsck"),
    "simulate",
    *("db upgrade", "db downgrade", "db current", "db check", "db copy", "db grant-reader"),
    *("backup", "restore", "prune"),
    *("notify", "notify status", "notify test", "notify list", "notify send", "notify retry"),
    *("unit install", "unit print", "unit uninstall"),
]


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


class Ingestd(Protocol):
    """Runs a command in this process."""

    def __call__(self, *arguments: str | Path) -> Answer:
        """Give its answer."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the commands."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ingestd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Ingestd:
    """Runs a command in the working folder, as in a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's own, which would fold the tables

    def run(*arguments: str | Path) -> Answer:
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def on_database(database_url: str, monkeypatch: pytest.MonkeyPatch, ingestd: Ingestd) -> Ingestd:
    """The same, configured for this test's database, which is empty."""
    monkeypatch.setenv("INGESTD_DATABASE__URL", database_url)
    return ingestd


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated election; look, don't touch."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, PLAN)
    return folder


@pytest.fixture(scope="module")
def truth(simulated: Path) -> Truth:
    """What is true about it."""
    return Truth(**json.loads((simulated / "truth.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module", params=DATABASES)
def filled_url(
    request: pytest.FixtureRequest, simulated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database that holds the simulated election; look, don't touch."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('filled') / 'ingestd.db'}"
        else:
            server: PostgreSQL = request.getfixturevalue("postgresql")
            url = stack.enter_context(server.new_database())
        settings = load_settings(database__url=url)
        for drop in ("drop", "drop-2"):
            once.once(settings, [simulated / drop])
        yield url


@pytest.fixture
def filled(filled_url: str, monkeypatch: pytest.MonkeyPatch, ingestd: Ingestd) -> Ingestd:
    """Runs a command on the database that holds the simulated election."""
    monkeypatch.setenv("INGESTD_DATABASE__URL", filled_url)
    return ingestd


@pytest.fixture
def refused_file(simulated: Path, truth: Truth) -> Path:
    """The file that has too many bad rows."""
    (told,) = (file for file in truth.files if file["outcome"] == "quarantined")
    return simulated / str(told["path"])


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """With no rights of root's for a while."""
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def is_quiet(answer: Answer) -> bool:
    """Nothing of Python shows through."""
    return "Traceback" not in answer.out + answer.err and "internal error" not in answer.err


# Every command ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(ingestd: Ingestd, command: str) -> None:
    """The help of a command shows how it is called."""
    answer = ingestd(*command.split(), "--help")

    assert answer.status == 0
    assert "Example: ingestd" in answer.out


def test_help_imports_nothing_heavy() -> None:
    """`ingestd --help` answers at once: no SQLAlchemy, no Pydantic, no NumPy."""
    heavy = "{'sqlalchemy', 'pydantic', 'numpy', 'alembic', 'structlog'}"
    program = f"import sys, ingestd.cli; print(sorted({heavy} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout == b"[]\n"


def test_the_version_is_told(ingestd: Ingestd) -> None:
    """A bug report begins with it."""
    assert re.fullmatch(r"ingestd \S+\n", ingestd("--version").out)


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["jobs", "--limit", "0"], ["jobs", "--state", "lost"], ["try"]]
)
def test_wrong_usage_is_2(ingestd: Ingestd, arguments: list[str]) -> None:
    """What was mistyped is no finding."""
    assert ingestd(*arguments).status == 2


def test_an_unknown_key_is_2_and_the_right_one_is_told(ingestd: Ingestd, folder: Path) -> None:
    """A typing mistake in the file costs one look at the message."""
    (folder / "ingestd.toml").write_text("[watch]\npol_seconds = 3\n")

    answer = ingestd("status")

    assert answer.status == 2
    assert "did you mean" in answer.err
    assert "poll_seconds" in answer.err
    assert is_quiet(answer)


def test_a_config_file_that_is_not_there_is_2(ingestd: Ingestd) -> None:
    """Named and absent is a mistake; defaults would be the worst answer."""
    answer = ingestd("--config", "nowhere.toml", "status")

    assert (answer.status, "nowhere.toml" in answer.err) == (2, True)


def test_common_options_work_before_and_after_the_command(
    filled_url: str, ingestd: Ingestd
) -> None:
    """Nobody has to remember where `--database-url` goes."""
    before = ingestd("--database-url", filled_url, "jobs", "--json")
    between = ingestd("jobs", "--database-url", filled_url, "--json")

    assert before.json["total"] == between.json["total"] > 0


def test_the_flag_wins_over_the_environment(
    filled_url: str, ingestd: Ingestd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag over environment over file."""
    monkeypatch.setenv("INGESTD_DATABASE__URL", "sqlite:///nowhere.db")

    assert ingestd("status", "--json").status == 2
    assert ingestd("status", "--json", "--database-url", filled_url).status == 0


def test_a_database_that_is_away_is_2_and_keeps_its_password(ingestd: Ingestd) -> None:
    """One sentence, without a traceback or a secret."""
    answer = ingestd("status", "--database-url", "postgresql://me:geheim@127.0.0.1:1/x")

    assert answer.status == 2
    assert "the database does not answer" in answer.err
    assert "geheim" not in answer.err + answer.out
    assert is_quiet(answer)


def test_looking_makes_no_database(ingestd: Ingestd, folder: Path) -> None:
    """`status` in the wrong folder says so and leaves nothing behind."""
    answer = ingestd("status")

    assert answer.status == 2
    assert "no database yet" in answer.err
    assert list(folder.iterdir()) == []


def test_an_error_of_ours_is_3_and_one_line(
    filled: Ingestd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the program is no riddle of fifty lines."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of\nours")

    monkeypatch.setattr(type(crud.jobs), "totals", broken)

    answer = filled("status")

    assert answer.status == 3
    assert answer.err.count("\n") == 1
    assert "internal error: ZeroDivisionError: of ours; run with --debug" in answer.err


def test_debug_shows_the_traceback(filled: Ingestd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants to mend it can see where it broke."""
    monkeypatch.setattr(type(crud.jobs), "totals", lambda *_: 1 // 0)

    answer = filled("status", "--debug")

    assert answer.status == 3
    assert "Traceback" in answer.err


def test_ctrl_c_is_130_and_quiet(filled: Ingestd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops a command knows it already."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(crud.jobs), "totals", interrupted)

    answer = filled("status")

    assert (answer.status, answer.err) == (130, "")


def test_an_old_schema_is_refused_with_the_command_that_upgrades(
    on_database: Ingestd, database_url: str, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer program does not touch an older database by itself."""
    migrate.upgrade(database_url)
    monkeypatch.setattr(migrate, "head", lambda: "9999")

    for command in (("status",), ("once", simulated / "drop"), ("retry", "--all-quarantined")):
        answer = on_database(*command)
        assert answer.status == 2
        assert "ingestd db upgrade" in answer.err


# init, check --------------------------------------------------------------------------------


def test_init_makes_a_folder_that_passes_the_check(ingestd: Ingestd, folder: Path) -> None:
    """Two commands after the installation, everything is in place."""
    assert ingestd("init", "new").status == 0
    assert ingestd("check", "--config", folder / "new" / "ingestd.toml").status == 0
    assert {"ingestd.toml", "inbox", "archive", "quarantine"} == {
        path.name for path in Path("new").iterdir()
    }


def test_init_overwrites_nothing(ingestd: Ingestd, folder: Path) -> None:
    """A second `init` is a mistake, not a reset."""
    (folder / "ingestd.toml").write_text("# mine\n")

    assert ingestd("init").status == 2
    assert (folder / "ingestd.toml").read_text() == "# mine\n"


def findings(answer: Answer) -> dict[str, str]:
    """The status of each thing that `check` looked at."""
    return {each["what"]: each["status"] for each in answer.json["findings"]}


def test_check_tells_a_database_with_our_schema(filled: Ingestd) -> None:
    """Reachable and current."""
    assert findings(filled("check", "--json"))["database"] == "ok"


def test_check_fails_for_an_old_schema(filled: Ingestd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is in the finding."""
    monkeypatch.setattr(migrate, "head", lambda: "9999")

    answer = filled("check", "--json")

    assert (answer.status, findings(answer)["database"]) == (1, "fail")
    assert "ingestd db upgrade" in answer.out


def test_check_fails_where_the_inbox_is_a_file(ingestd: Ingestd, folder: Path) -> None:
    """A finding is exit status 1."""
    (folder / "inbox").write_text("")

    answer = ingestd("check", "--json")

    assert (answer.status, findings(answer)["inbox"]) == (1, "fail")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_database_that_may_not_be_read_is_not_said_to_be_away(ingestd: Ingestd) -> None:
    """Nor does a working folder that may not be entered stop anybody: it has no configuration."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        url = f"sqlite:///{place}/ingestd.db"
        assert 0 == ingestd("--database-url", url, "db", "upgrade").status
        Path(place, "ingestd.db").chmod(0o600)
        assert 0 == ingestd("--database-url", url, "status").status
        with as_somebody_else():
            answer = ingestd("--database-url", url, "status")
    assert 2 == answer.status
    assert "uid 65534 may not read it; say this as root or as its owner (uid 0)" in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_check_tells_uid_and_mode_of_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """Permission denied, to whom and by which mode, is told before the first file comes."""
    shutil.copytree(Path(__file__).parent.parent / "ingestd", tmp_path / "code" / "ingestd")
    for each in (tmp_path, *tmp_path.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    inbox = tmp_path / "inbox"
    inbox.mkdir(mode=0o700)
    program = [*("setpriv", "--reuid=65534", "--clear-groups", "--"), *PROGRAM, "check"]

    done = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )

    # 126 and 127: it could not be started, or not find its own shared library.
    if done.returncode in {126, 127} or ("Permission denied" in done.stderr and not done.stdout):
        pytest.skip("this interpreter can't be read by others")
    assert done.returncode == 1
    assert "can't be used by uid 65534" in done.stdout
    assert "drwx------" in done.stdout


# once, try, run -----------------------------------------------------------------------------


def test_once_tells_files_and_rows_and_finds_what_was_refused(
    on_database: Ingestd, simulated: Path, truth: Truth
) -> None:
    """A quarantined file is a finding: exit status 1. The database is made by itself."""
    answer = on_database("once", simulated / "drop", "--json")

    assert answer.status == 1
    assert answer.json["files"]["quarantined"] == 1
    assert sum(answer.json["files"].values()) == sum(
        file["path"].startswith("drop/") for file in truth.files
    )
    assert (simulated / "drop").exists()


def test_once_is_0_when_only_rows_were_refused(
    on_database: Ingestd, simulated: Path, refused_file: Path, folder: Path
) -> None:
    """Rejects are shown, but they are the file's business."""
    shutil.copytree(simulated / "drop", folder / "inbox")
    (folder / "inbox" / refused_file.relative_to(simulated / "drop")).unlink()

    answer = on_database("once")

    assert answer.status == 0
    assert "rows rejected: `ingestd rejects`" in answer.out
    assert not [path for path in (folder / "inbox").rglob("*") if path.is_file()]


def test_once_leaves_the_inbox_when_told_so(
    on_database: Ingestd, simulated: Path, folder: Path
) -> None:
    """`--leave` wins over the configuration."""
    shutil.copytree(simulated / "drop-2", folder / "inbox")
    before = sorted((folder / "inbox").rglob("*"))

    assert on_database("once", "--leave").status == 0
    assert before == sorted((folder / "inbox").rglob("*"))


def test_once_refuses_a_path_that_is_not_there(on_database: Ingestd) -> None:
    """Nothing is ingested in place of what was meant."""
    answer = on_database("once", "nowhere")

    assert answer.status == 2
    assert "nowhere" in answer.err


def test_try_finds_what_would_be_refused_and_writes_nothing(
    ingestd: Ingestd, refused_file: Path, folder: Path
) -> None:
    """The verdict before the deed."""
    answer = ingestd("try", refused_file, "--json", "--rejects", "2")

    assert answer.status == 1
    assert answer.json["would_quarantine"] is True
    assert len(answer.json["files"][0]["rejects"]) == 2
    assert list(folder.iterdir()) == []


def test_try_is_0_for_a_sound_file(ingestd: Ingestd, simulated: Path, truth: Truth) -> None:
    """Every row would be taken."""
    sound = next(file for file in truth.files if file["plus"] and not file["bad"])

    answer = ingestd("try", simulated / str(sound["path"]))

    assert answer.status == 0
    assert "would be taken as it is" in answer.out


def test_try_finds_a_zip_that_cannot_be_opened(ingestd: Ingestd, folder: Path) -> None:
    """A container that is none would be quarantined."""
    (folder / "whole.zip").write_bytes(b"PK\x03\x04 and then nothing")

    answer = ingestd("try", "whole.zip")

    assert (answer.status, is_quiet(answer)) == (1, True)
    assert "would be quarantined" in answer.out


def environment(**more: str) -> dict[str, str]:
    """The environment of a process: the checkout can be imported."""
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", **more}


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Ask again until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_run_takes_files_and_stops_on_sigterm(
    on_database: Ingestd, database_url: str, simulated: Path, folder: Path
) -> None:
    """The real program, from its first file to exit status 0, with JSON lines on standard error."""
    on_database("init")
    program = [*PROGRAM, "run", "--database-url", database_url]
    with subprocess.Popen(
        program, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            shutil.copytree(simulated / "drop-2", folder / "inbox", dirs_exist_ok=True)
            wait_until(lambda: any(path.is_file() for path in (folder / "archive").rglob("*")))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 0
    assert "stopped" in [json.loads(line)["event"] for line in errors.splitlines()]


# status -------------------------------------------------------------------------------------


def test_status_tells_the_true_number_of_transactions(filled: Ingestd, truth: Truth) -> None:
    """Counted, and by the jobs: the same."""
    expected = sum(truth.totals["statuses"].values())

    assert expected == filled("status", "--json").json["transactions"]
    assert expected == filled("status", "--json", "--fast").json["transactions"]


def test_status_has_keys_that_scripts_rely_on(filled: Ingestd, truth: Truth) -> None:
    """Stable keys, balanced books, jobs by their outcome."""
    told = filled("status", "--json").json

    assert {"at", "database", "jobs", "transactions", "transactions_counted", "rows"} < set(told)
    assert {"is_balanced", "rejects", "constituencies", "hours", "alerts", "inbox"} < set(told)
    assert {"last_finished", "oldest_queued", "working"} < set(told)
    assert truth.totals["outcomes"] == {name: n for name, n in told["jobs"].items() if n}
    assert told["is_balanced"] is True


def test_status_counts_the_files_in_the_inbox(filled: Ingestd, folder: Path) -> None:
    """What waits is seen before the daemon is started."""
    (folder / "inbox").mkdir()
    (folder / "inbox" / "a.csv").write_text("123")
    (folder / "inbox" / "b.csv.part").write_text("on its way")

    inbox = filled("status", "--json").json["inbox"]

    assert (1, 3) == (inbox["files"], inbox["bytes"])
    assert "1 file, 3 B" in filled("status").out


# jobs, rejects, retry -----------------------------------------------------------------------


def test_jobs_are_found_by_state_and_path(filled: Ingestd, refused_file: Path) -> None:
    """The one that was refused."""
    answer = filled("jobs", "--state", "quarantined", "--path", refused_file.name, "--json")

    assert [refused_file.name] == [job["name"] for job in answer.json["items"]]


def test_pages_say_where_they_are_and_how_to_go_on(filled: Ingestd) -> None:
    """Nobody takes a page for the whole."""
    total = filled("jobs", "--json", "--limit", "1").json["total"]

    answer = filled("jobs", "--limit", "2", "--offset", "1")

    assert f"showing 2–3 of {total} jobs, --offset 3 for more" in answer.out


def test_a_job_is_found_by_the_beginning_of_its_id(filled: Ingestd) -> None:
    """Eight characters are enough, and so is all of it."""
    id_ = filled("jobs", "--json", "--limit", "1").json["items"][0]["id"]

    for prefix in (id_, id_[:8], id_[:13].upper()):
        assert id_ == filled("jobs", "show", prefix, "--json").json["id"]


@pytest.mark.parametrize("prefix", ["1234567", "zzzzzzzz", "00000000", "-"])
def test_a_job_that_is_not_there_is_2(filled: Ingestd, prefix: str) -> None:
    """Too short, no id at all, or unknown."""
    answer = filled("jobs", "show", "--", prefix)

    assert (answer.status, is_quiet(answer)) == (2, True)


def test_rejects_come_as_table_json_csv_and_raw_text(filled: Ingestd) -> None:
    """The same rows in each."""
    rows = filled("rejects", "--json").json["items"]

    raw = filled("rejects", "--raw").out
    read = list(csv.DictReader(io.StringIO(filled("rejects", "--csv").out)))

    assert rows
    assert [row["line_number"] for row in rows] == [int(row["line"]) for row in read]
    assert "".join(row["raw_text"].rstrip("\r\n") + "\n" for row in rows) == raw
    assert rows[0]["reason"] in filled("rejects").out


def test_rejects_can_be_narrowed_to_a_job_and_a_kind(filled: Ingestd) -> None:
    """One kind of mistake in one file."""
    one = filled("rejects", "--json").json["items"][0]

    found = filled("rejects", "--job", one["file_id"], "--kind", one["kind"], "--json").json

    assert {(one["file_id"], one["kind"])} == {(r["file_id"], r["kind"]) for r in found["items"]}


def test_retry_puts_a_quarantined_file_back_and_leaves_a_line(
    on_database: Ingestd, database_url: str, refused_file: Path, folder: Path
) -> None:
    """The job is pending, its file in the inbox again, and the audit log says who asked."""
    (folder / "inbox").mkdir()
    shutil.copy(refused_file, folder / "inbox")
    assert on_database("once").status == 1
    assert not list((folder / "inbox").iterdir())

    answer = on_database("retry", "--all-quarantined")

    assert answer.status == 0
    assert [refused_file.name] == [path.name for path in Path("inbox").iterdir()]
    assert on_database("status", "--json").json["jobs"]["pending"] == 1
    ((who, action),) = deeds(database_url)
    assert (getpass.getuser(), "retry") == (who, action)


def test_a_file_is_taken_on_its_second_chance(
    on_database: Ingestd, refused_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `retry` the same job is worked on again, now with a greater allowance."""
    (folder / "inbox").mkdir()
    shutil.copy(refused_file, folder / "inbox")
    on_database("once")
    on_database("retry", "--all-quarantined")
    monkeypatch.setenv("INGESTD_INGEST__MAX_REJECT_RATIO", "1")

    assert on_database("once", "--json").json["files"] == {"completed": 1}


@pytest.mark.parametrize("is_opened", [False, True])
def test_a_zip_that_was_refused_is_asked_for_again_by_its_own_job(
    on_database: Ingestd,
    folder: Path,
    simulated: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_opened: bool,
) -> None:
    """Refused once more it is the same job; opened now, it names the job of its first member."""
    (folder / "inbox").mkdir()
    csv_file = max((simulated / "drop").rglob("*.csv"), key=lambda path: path.stat().st_size)
    with zipfile.ZipFile(folder / "inbox" / "hour.zip", "w") as packed:
        packed.write(csv_file, csv_file.name)
    monkeypatch.setenv("INGESTD_LIMITS__MAX_MEMBER_BYTES", "10")
    on_database("once")
    (asked,) = on_database("jobs", "--json").json["items"]
    assert asked["status"] == "quarantined"
    assert on_database("retry", asked["id"]).status == 0
    if is_opened:
        monkeypatch.delenv("INGESTD_LIMITS__MAX_MEMBER_BYTES")

    on_database("once")

    jobs = {job["id"]: job for job in on_database("jobs", "--json").json["items"]}
    wanted = {"duplicate", "completed"} if is_opened else {"quarantined"}
    assert {job["status"] for job in jobs.values()} == wanted
    assert jobs[asked["id"]]["status"] == ("duplicate" if is_opened else "quarantined")
    assert on_database("alerts", "--json").json["total"] == (0 if is_opened else 1)
    assert not list((folder / "inbox").iterdir())


def test_refused_rows_are_exported_mended_and_replayed(
    on_database: Ingestd, folder: Path, voting: Voting
) -> None:
    """A person edits the text in the exported CSV; doing it twice changes nothing."""
    row, *others = voting.ballots(8, 4)
    (folder / voting.name(8)).write_bytes(csv_of(["=cmd" + row[4:], *others]))
    on_database("once", folder / voting.name(8))
    (job,) = on_database("jobs", "--json").json["items"]
    assert job["rows_rejected"] == 1

    exported = on_database("rejects", "export", job["id"]).out
    assert not any(
        cell.startswith("=") for cells in csv.reader([*exported.splitlines()]) for cell in cells
    )
    (folder / "bad.csv").write_text(exported.replace("=cmd", row[:4]))
    answer = on_database("rejects", "replay", "bad.csv", "--json")

    assert (answer.status, answer.json["rows"]) == (0, {"stored": 1})
    assert on_database("jobs", "show", job["id"], "--json").json["rows_rejected"] == 0
    again = on_database("rejects", "replay", "bad.csv", "--json")
    assert (again.status, again.json["rows"]) == (0, {"replayed before": 1})
    (deed,) = on_database("audit", "--json").json["items"]
    assert (deed["who"], deed["action"]) == (getpass.getuser(), "replay")


@pytest.mark.parametrize(
    "content",
    ["", "a,b\n1,2\n", "job,line,text\nx,1,y\n", 'job,line,text\n"', "job,line,text\n\xff"],
)
def test_what_is_no_export_is_2(filled: Ingestd, folder: Path, content: str) -> None:
    """One sentence says what is wrong with the file."""
    (folder / "bad.csv").write_bytes(content.encode("latin-1"))
    answer = filled("rejects", "replay", "bad.csv")
    assert (answer.status, is_quiet(answer)) == (2, True)


def test_a_file_is_forgotten_only_when_it_is_meant(on_database: Ingestd, simulated: Path) -> None:
    """Without a terminal it takes --yes; the audit log keeps the job as it was."""
    on_database("once", simulated / "drop")
    job = on_database("jobs", "--state", "completed", "--json").json["items"][0]
    assert on_database("jobs", "forget", job["id"]).status == 2
    assert on_database("jobs", "show", job["id"]).status == 0

    assert on_database("jobs", "forget", job["id"], "--yes").status == 0

    assert on_database("jobs", "show", job["id"]).status == 2
    (deed,) = on_database("audit", "--json").json["items"]
    assert ("forget", job["id"]) == (deed["action"], deed["subject"])
    assert (job["sha256"], job["rows_read"]) == (
        deed["before"]["sha256"],
        deed["before"]["rows_read"],
    )
    assert "forget" in on_database("audit").out


def test_retry_of_a_completed_job_is_a_finding(filled: Ingestd) -> None:
    """Nothing is read twice by mistake, and the refusal leaves no line."""
    id_ = filled("jobs", "--state", "completed", "--json").json["items"][0]["id"]

    answer = filled("retry", id_)

    assert answer.status == 1
    assert "cannot go from completed to pending" in answer.err


def test_retry_of_a_job_whose_file_is_gone_changes_nothing(
    on_database: Ingestd, refused_file: Path, folder: Path
) -> None:
    """A job without its file would only vanish again."""
    (folder / "inbox").mkdir()
    shutil.copy(refused_file, folder / "inbox")
    on_database("once")
    shutil.rmtree(folder / "quarantine")

    answer = on_database("retry", "--all-quarantined")

    assert answer.status == 1
    assert "put it into the inbox again" in answer.err
    assert on_database("status", "--json").json["jobs"]["quarantined"] == 1


def test_retry_wants_to_know_what(filled: Ingestd) -> None:
    """Neither nothing nor both."""
    assert filled("retry").status == 2
    assert filled("retry", "12345678", "--all-quarantined").status == 2


def test_an_earlier_publication_can_be_made_current(
    on_database: Ingestd, database_url: str, simulated: Path
) -> None:
    """What the later one withdrew is back, and the audit log says who asked."""
    for drop in ("drop", "drop-2"):
        on_database("once", simulated / drop)
    superseded = on_database("jobs", "--state", "superseded", "--json").json["items"][0]["id"]
    assert transactions(database_url, "withdrawn") > 0

    assert on_database("jobs", "make-current", superseded).status == 0

    assert transactions(database_url, "withdrawn") == 0
    assert on_database("jobs", "show", superseded, "--json").json["status"] == "completed"
    assert [(getpass.getuser(), "make_current")] == deeds(database_url)


def test_a_completed_publication_cannot_be_made_current(filled: Ingestd) -> None:
    """It is current already."""
    id_ = filled("jobs", "--state", "completed", "--json").json["items"][0]["id"]

    answer = filled("jobs", "make-current", id_)

    assert (answer.status, is_quiet(answer)) == (2, True)


def deeds(url: str) -> list[tuple[str, str]]:
    """Who did what, by the audit log."""
    engine = make_engine(url)
    with make_sessions(engine).begin() as session:
        found = [(deed.who, deed.action) for deed in crud.audit.list(session).items]
    engine.dispose()
    return found


def transactions(url: str, status: str) -> int:
    """How many transactions have this status."""
    engine = make_engine(url)
    with engine.connect() as connection:
        query = text('SELECT count(*) FROM "transaction" WHERE status = :status')
        count = connection.scalar(query, {"status": status})
    engine.dispose()
    return int(count or 0)


# alerts, stats ------------------------------------------------------------------------------


def test_alerts_show_the_worst_first(filled: Ingestd) -> None:
    """The refused file is critical, the unknown operation is information."""
    told = filled("alerts", "--json").json["items"]

    severities = [alert["severity"] for alert in told]
    assert sorted(severities, key=crud.SEVERITIES.index) == severities
    assert {"file_rejected", "unknown_operation"} <= {alert["type"] for alert in told}
    assert told[0]["title"] in filled("alerts").out


@pytest.mark.parametrize("scope", [(), ("--all",)])
def test_alerts_can_be_narrowed(filled: Ingestd, scope: tuple[str, ...]) -> None:
    """By rule, severity and contract together."""
    one = filled("alerts", "--type", "file_rejected", *scope, "--json").json["items"][0]

    narrowed = filled(
        *("alerts", *scope, "--contract", one["contract_id"], "--severity", one["severity"]),
        *("--type", "file_rejected", "--json"),
    )

    assert [one] == narrowed.json["items"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["alerts", "--severity", "fatal"],
        ["alerts", "--all", "--contract", "x"],
        ["stats", "--contract", "x"],
        ["stats", "--contract", "x", "--region", "77"],
    ],
)
def test_what_does_not_exist_is_2(filled: Ingestd, arguments: list[str]) -> None:
    """An empty answer would look like good news."""
    answer = filled(*arguments)

    assert (answer.status, is_quiet(answer)) == (2, True)


def test_stats_tell_the_true_totals(filled: Ingestd, truth: Truth) -> None:
    """Every constituency, and all together."""
    told = filled("stats", "--json").json

    names = ("registered_voters", "bulletins_issued", "votes_cast", "votes_rejected")
    assert {
        contract: [true[name] for name in names] for contract, true in truth.constituencies.items()
    } == {each["contract_id"]: [each[name] for name in names] for each in told["constituencies"]}
    assert {name: truth.totals[name] for name in names} == told["totals"]


def test_stats_of_a_contract_are_its_hours(filled: Ingestd, truth: Truth) -> None:
    """As JSON and as CSV the same."""
    contract, true = next(iter(truth.constituencies.items()))

    hours = filled("stats", "--contract", contract, "--json").json["hours"]
    read = list(csv.DictReader(io.StringIO(filled("stats", "--contract", contract, "--csv").out)))

    votes = [hour["votes_cast"] for hour in hours]
    assert true["votes_cast"] == sum(votes)
    assert votes == [int(row["votes_cast"]) for row in read]


def test_stats_of_a_region_leave_the_others_out(filled: Ingestd, truth: Truth) -> None:
    """Only the constituencies of one region."""
    region = next(iter(truth.constituencies.values()))["region_code"]

    told = filled("stats", "--region", region, "--json").json["constituencies"]

    assert {region} == {each["region_code"] for each in told}


# simulate, db -------------------------------------------------------------------------------


def test_simulate_writes_files_and_their_truth(ingestd: Ingestd, folder: Path) -> None:
    """All options of the plan are flags."""
    answer = ingestd(
        *("simulate", "new", "--constituencies", "1", "--hours", "4", "--voters-max", "40"),
        *("--seed", "3", "--zip", "--flat", "--whole", "--defect", "rejected", "--json"),
    )

    plan = json.loads((folder / "new" / "truth.json").read_text(encoding="utf-8"))["plan"]
    assert answer.json["totals"]["constituencies"] == 1
    assert plan["packing"] == "zip"
    assert (plan["seed"], plan["folders"], plan["whole"]) == (3, False, True)
    assert list((folder / "new" / "drop").rglob("*.zip"))


@pytest.mark.parametrize(
    "arguments", [["--defect", "gremlins"], ["--zip", "--csv"], ["--no-hourly"], ["--day", "soon"]]
)
def test_an_impossible_plan_is_2(ingestd: Ingestd, arguments: list[str]) -> None:
    """The message names what cannot be."""
    answer = ingestd("simulate", "new", *arguments)

    assert (answer.status, is_quiet(answer)) == (2, True)


def test_simulate_needs_a_folder_of_its_own(ingestd: Ingestd, folder: Path) -> None:
    """Nothing is mixed with what is there."""
    (folder / "new").mkdir()
    (folder / "new" / "mine").write_text("")

    assert ingestd("simulate", "new").status == 2


def test_the_defects_are_listed(ingestd: Ingestd) -> None:
    """With what each one does."""
    assert "too_many_bad" in ingestd("simulate", "--list-defects").out


def test_the_schema_is_made_told_compared_and_taken_back(on_database: Ingestd) -> None:
    """The four commands of `db` in a row."""
    assert on_database("db", "current").status == 1
    assert on_database("db", "upgrade").status == 0
    assert on_database("db", "current").status == 0
    assert on_database("db", "check").status == 0
    assert on_database("db", "downgrade", "base").status == 2
    assert on_database("db", "downgrade", "base", "--yes").status == 0
    assert on_database("db", "check").status == 1


def test_an_unknown_revision_is_2(on_database: Ingestd) -> None:
    """Alembic's complaint in one line."""
    answer = on_database("db", "upgrade", "nowhere")

    assert (answer.status, is_quiet(answer)) == (2, True)


# Hostile text -------------------------------------------------------------------------------


def test_names_of_files_cannot_forge_the_terminal(
    on_database: Ingestd, refused_file: Path, folder: Path
) -> None:
    """Escape codes, C1 controls, bidi marks and markup in a name stay text everywhere."""
    (folder / "inbox").mkdir()
    shutil.copy(refused_file, folder / "inbox" / f"{FORGERY}{refused_file.name}")
    commands = [("once",), ("jobs",), ("status",), ("alerts",)]

    said = [on_database(*command) for command in commands]
    id_ = on_database("jobs", "--json").json["items"][0]["id"]
    said += [on_database("jobs", "show", id_), on_database("jobs", "--json")]

    for answer in said:
        for bad in ("\x1b", "\x9b", "\u202e"):
            assert bad not in answer.out + answer.err
    assert "[bold]ok" in said[1].out
    assert on_database("jobs", "--json").json["items"][0]["name"].startswith(FORGERY)


def test_cells_cannot_forge_the_terminal(on_database: Ingestd, folder: Path, truth: Truth) -> None:
    """A row is shown as text by `try` and `rejects`, in every form but the raw one."""
    contract = next(iter(truth.constituencies))
    name = f"{contract}_2024-09-06_0800-0900.csv"
    (folder / name).write_text(f"{FORGERY};2;3\n", encoding="utf-8")
    on_database("once", name)

    commands = (("try", name), ("try", name, "--json"))
    looks = (("rejects",), ("rejects", "--json"), ("rejects", "--csv"))

    said = [on_database(*command) for command in (*commands, *looks)]

    for answer in said:
        for bad in ("\x1b", "\x9b", "\u202e"):
            assert bad not in answer.out + answer.err
    assert FORGERY in on_database("rejects", "--raw").out


def test_an_argument_cannot_forge_the_terminal(ingestd: Ingestd) -> None:
    """Not even a path that a script passes on."""
    answer = ingestd("try", FORGERY)

    assert answer.status == 2
    assert "\x1b" not in answer.err
    assert "\\x1b[2J" in answer.err


def test_a_cell_is_no_formula_for_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    """A text that begins like a formula gets an apostrophe; a number stays a number."""
    screen.print_csv(("a", "b"), [("=HYPERLINK()", -1)])

    assert capsys.readouterr().out == "a,b\n'=HYPERLINK(),-1\n"


# Notices ------------------------------------------------------------------------------------


def test_notify_tries_shows_and_sends(
    on_database: Ingestd, folder: Path, voting: Voting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel by itself, with an exit status that a script can use, and no URL anywhere."""
    said = []

    def ingestd(*arguments: str) -> Answer:
        answer = on_database("notify", *arguments)
        said.append(answer.out + answer.err)
        return answer

    with hook_server() as hook:
        channels = {"duty": hook.url, "closed": "http://127.0.0.1:1/SECRET-TOKEN"}
        monkeypatch.setenv("INGESTD_NOTIFY__CHANNELS", json.dumps(channels))
        monkeypatch.setenv("INGESTD_NOTIFY__GATHER_SECONDS", "0")
        tried = ingestd("test", "--json")
        assert [(False, "Connection refused"), (True, None)] == [
            (each["is_sent"], each["error"]) for each in tried.json["channels"]
        ]
        assert [1, 0, 2] == [
            answer.status for answer in (tried, ingestd("test", "duty"), ingestd("test", "nobody"))
        ]
        assert [True, True] == [each.json["is_test"] for each in hook.posted]
        (folder / voting.name(8)).write_bytes(csv_of(["torn"] * 50))
        on_database("once", voting.name(8))
    closed, duty = ingestd("status", "--json").json["channels"]
    assert (1, 0, "Connection refused") == (closed["waiting"], closed["sent"], closed["error"])
    assert (0, 1, None) == (duty["waiting"], duty["sent"], duty["error"])
    told = on_database("status")
    said.append(told.out)
    assert re.search(
        r"closed: 1 waiting since .*Z; Connection refused\n.*duty: 0 waiting\n", told.out
    )
    listed = ingestd("list", "--status", "waiting", "--json").json
    assert (1, "closed") == (listed["total"], listed["items"][0]["channel"])
    assert "opened: " in ingestd("list").out
    assert 2 == ingestd("list", "--status", "odd").status
    assert {"notices": 0} == ingestd("retry", "--json").json
    # Whether it goes at once or waits for its next try: the port is still closed.
    assert {"messages": 0} == ingestd("send", "--json").json
    assert "SECRET-TOKEN" not in "".join(said)


def test_without_a_channel_it_is_said_how_to_name_one(filled: Ingestd) -> None:
    """A test of nothing must not look like one that went well."""
    answer = filled("notify", "test")
    assert (2, True) == (answer.status, "[notify.channels]" in answer.err)
    assert "nobody is told" in filled("notify").out
