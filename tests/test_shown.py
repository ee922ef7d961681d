"""What the documents show: every command is one, is run, and answers as it is shown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ingestd import once
from ingestd.cli import app
from ingestd.config import load_settings
from ingestd.models import Alert, Constituency, FileProcessing
from ingestd.simulate import Plan, simulate

from . import shown
from .hook import hook_server
from .running import ROOT, open_sessions

pytestmark = pytest.mark.usefixtures("logging_is_put_back")

LIST = typer.main.get_command(app)

PLAN = Plan(
    constituencies=2,
    hours=4,
    voters_median=20,
    voters_max=30,
    defects=("bad_rows", "too_many_bad", "republished_gone"),
)


@pytest.mark.slow
def test_the_first_screen_of_the_readme_is_what_is_said() -> None:
    """`make docs` writes it."""
    assert shown.first_screen() == shown.block_of_readme()


@pytest.mark.parametrize("document", shown.documents())
def test_every_command_in_a_block_is_run_somewhere(document: str) -> None:
    """By tests of the README, by a campaign on a machine, or by what `ELSEWHERE` names."""
    ways = (
        shown.table_of_readme().__contains__,
        shown.is_run_by_the_first_screen,
        shown.is_run_on_a_machine,
        shown.is_run_elsewhere,
    )
    assert [] == [
        command
        for command in shown.in_blocks(document)
        if not any(is_run(command) for is_run in ways)
    ]


def test_what_runs_elsewhere_is_still_shown() -> None:
    """A list that nobody needs any more would hide the next hole."""
    told = {command for document in shown.documents() for command in shown.in_blocks(document)}
    assert set() == shown.ELSEWHERE.keys() - told


def test_the_blocks_are_found() -> None:
    """A test that finds nothing would hold nothing."""
    assert {"ingestd unit uninstall", "systemctl restart ingestd"} <= set(
        shown.in_blocks("docs/install.md")
    )
    assert "make reliability" in shown.in_sentences("README.md")


@pytest.mark.parametrize("document", shown.documents())
def test_every_command_in_a_sentence_is_one(document: str) -> None:
    """Its name, and each of its options."""
    told = [*shown.in_sentences(document), *shown.in_blocks(document)]
    assert [] == [trouble for command in told for trouble in mistakes(command)]


def test_a_command_that_is_none_is_found() -> None:
    """In its name or its options."""
    wrong = ["ingestd jobs frob", "ingestd run --frob", "make frob"]
    told = ["ingestd jobs show JOB", *wrong, "make test"]
    assert wrong == [trouble for command in told for trouble in mistakes(command)]


def mistakes(told: str) -> Iterator[str]:
    """The command, if there is none of that name, or without that option."""
    if told.startswith("make "):
        target = told.split()[1]
        if not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            yield told
    elif told.startswith("ingestd ") and not is_one(shlex.split(told)[1:]):
        yield told


def is_one(words: list[str]) -> bool:
    """Whether our program knows all names and options; what words stand for is not looked at."""
    here: Any = LIST
    flags, options = {"--help"}, set[str]()
    left = iter(words)
    for word in left:
        for each in here.params:
            (flags if getattr(each, "is_flag", False) else options).update(each.opts)
            flags.update(each.secondary_opts)
        if word in ("&&", ">", "|"):
            break
        if word.startswith("--"):
            if word.split("=")[0] not in flags | options:
                return False
            if word in options:
                next(left, None)
        elif commands := getattr(here, "commands", None):
            if word not in commands:
                return False
            here = commands[word]
    return True


@pytest.mark.slow
def test_the_questions_of_the_readme_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of its table, in its order, on an election with defects."""
    monkeypatch.chdir(tmp_path)
    simulate(tmp_path / "sim", PLAN)
    assert 0 == said("ingestd init .")[0]
    once.once(load_settings(), [tmp_path / "sim" / "drop"])
    once.once(load_settings(), [tmp_path / "sim" / "drop-2"])
    words = things(load_settings().database.url)
    with hook_server() as hook:
        monkeypatch.setenv("INGESTD_NOTIFY__CHANNELS", json.dumps({"duty": hook.url}))
        for command in shown.table_of_readme():
            if command == "ingestd unit install":
                continue  # on a machine of its own
            status, answer = said(typed(command, words))
            assert status in (0, 1), f"{command}\n{answer}"
            assert "internal error" not in answer


def things(url: str) -> dict[str, str]:
    """What the words in capitals stand for, by the command that takes them."""
    with open_sessions(url) as sessions, sessions() as session:
        jobs = {
            job.status: str(job.id) for job in session.query(FileProcessing).order_by("created_at")
        }
        bad = next(
            str(job.id)
            for job in session.query(FileProcessing)
            if job.rows_rejected and job.status == "completed"
        )
        return {
            "retry JOB": jobs["quarantined"],
            "forget JOB": f"{jobs['completed']} --yes",
            "make-current JOB": jobs["superseded"],
            "JOB": bad,
            "ID": str(session.query(Alert.id).limit(1).scalar()),
            "CONTRACT": session.query(Constituency.contract_id).limit(1).scalar(),
            "try FILE": shlex.quote(str(next(Path("sim/drop").rglob("*.csv")))),
            "backup FILE": "kept.db",
            "restore FILE": "kept.db --database-url sqlite:///restored.db",
            "FOLDER": "sim/drop",
            "ROLE": "observer",
            "URL": "sqlite:///copy.db",
            "NAME": "2024",
        }


def typed(command: str, words: dict[str, str]) -> str:
    """The command with things in the place of words."""
    for told in sorted(words, key=len, reverse=True):
        verb = told.rpartition(" ")[0]
        command = re.sub(rf"\b{told}\b", f"{verb} {words[told]}".strip(), command)
    return command


def said(command: str) -> tuple[int, str]:
    """Run a command of ours in this process; its exit status and all that it said."""
    program, _, file = command.partition(" > ")
    answer = CliRunner().invoke(app, shlex.split(program)[1:])
    if file:
        Path(file).write_text(answer.stdout, encoding="utf-8")
    return answer.exit_code, answer.output


@pytest.mark.campaign
def test_the_demo_ends_well() -> None:
    """What `make demo` runs."""
    demo = [sys.executable, str(ROOT / "tests/demo.py")]
    done = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
