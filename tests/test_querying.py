"""docs/querying.md: every question in it is asked, on both databases and with Datasette."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest

from ingestd import once
from ingestd.config import Settings
from ingestd.db import make_engine
from ingestd.moving.copying import copy

from .conftest import Databases, Simulated
from .running import ROOT

BLOCK = re.compile(r"\*\*(?P<number>\d+)\. .*?```sql\n(?P<sql>.*?);\n```", re.DOTALL)
QUESTIONS = {
    int(found["number"]): found["sql"]
    for found in BLOCK.finditer((ROOT / "docs" / "querying.md").read_text(encoding="utf-8"))
}
NONE_HERE = {10, 11, 15}
"""Nothing of that kind happens in the election that is simulated."""

ASK = """
import asyncio, json, sys
from datasette.app import Datasette

async def main():
    limits = {"sql_time_limit_ms": 60_000, "max_returned_rows": 100_000}
    datasette = Datasette([sys.argv[1]], settings=limits)
    for sql in json.load(sys.stdin):
        asked = {"sql": sql, "_shape": "arrays"}
        answer = await datasette.client.get("/ingestd.json", params=asked)
        told = answer.json()
        print(json.dumps([answer.status_code, len(told.get("rows", ())), told.get("error")]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def answers(
    election: Simulated, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The URLs of databases that hold the same election, one of each kind."""
    folder = tmp_path_factory.mktemp("answers")
    places = {name: folder / name for name in ("inbox", "archive", "quarantine")}
    places["inbox"].mkdir()
    url = f"sqlite:///{folder / 'ingestd.db'}"
    settings = {"database": {"url": url}, "watch": places | {"after": "leave"}}
    for drop in ("drop", "drop-2"):
        once.once(Settings.model_validate(settings), [election.folder / drop])
    with copied(databases, url) as other:
        yield {"sqlite": url, "postgresql": other}


@contextmanager
def copied(databases: Databases, url: str) -> Iterator[str]:
    """The URL of a copy on PostgreSQL; the same again where SQLite alone was asked for."""
    if databases.server is None:
        yield url
        return
    engine = make_engine(url)
    with databases.server.new_database() as other:
        copy(engine, other, on_progress=lambda _stage, _done, _total: None)
        engine.dispose()
        yield other


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of an answer, with numbers as both databases would write them."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(sql).all()
    finally:
        engine.dispose()
    return [tuple(map(_plain, row)) for row in rows]


def _plain(value: object) -> object:
    return round(float(value), 4) if isinstance(value, int | float | Decimal) else str(value)


def test_there_are_twenty_questions() -> None:
    """Numbered, each with its SQL."""
    assert list(range(1, 21)) == list(QUESTIONS)


@pytest.mark.parametrize("number", QUESTIONS)
def test_a_question_has_the_same_answer_on_both_databases(
    answers: dict[str, str], number: int
) -> None:
    """The SQL of the document as it stands; only the order of equal texts may differ."""
    one, other = (ask(url, QUESTIONS[number]) for url in answers.values())

    assert one or number in NONE_HERE
    assert Counter(one) == Counter(other)


def test_the_answers_are_true(answers: dict[str, str], election: Simulated) -> None:
    """Nothing is unaccounted for, and the totals are those of the simulated election."""
    (books,) = ask(answers["sqlite"], QUESTIONS[2])
    (totals,) = ask(answers["sqlite"], QUESTIONS[8])
    told = election.truth["constituencies"].values()

    assert 0 == books[-1]
    assert len(told) == totals[0]
    names = ("bulletins_issued", "votes_cast", "votes_rejected")
    assert [sum(each[name] for each in told) for name in names] == list(totals[2:5])


def test_datasette_answers_every_question(answers: dict[str, str]) -> None:
    """The real one, on the very file of the database."""
    file = answers["sqlite"].removeprefix("sqlite:///")
    told = subprocess.run(
        [sys.executable, "-c", ASK, file],
        input=json.dumps(list(QUESTIONS.values())),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert 0 == told.returncode, told.stderr

    found = [tuple(json.loads(line)) for line in told.stdout.splitlines()]
    wanted = [(200, len(ask(answers["sqlite"], sql)), None) for sql in QUESTIONS.values()]
    assert wanted == found
