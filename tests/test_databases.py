"""The databases that the tests run on."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from .conftest import PostgreSQL


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the database of this test."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def test_the_database_answers(engine: Engine) -> None:
    """Each kind of database is there and takes SQL."""
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("_round", [1, 2])
def test_every_test_gets_an_empty_database(engine: Engine, _round: int) -> None:
    """A table that one test makes is not there in the next."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE left_behind (id INTEGER)"))


def test_a_database_can_be_a_copy_of_a_migrated_one(postgresql: PostgreSQL) -> None:
    """A template with tables in it makes a database with tables in it."""
    with postgresql.new_database() as template_url:
        template = create_engine(template_url)
        with template.begin() as connection:
            connection.execute(text("CREATE TABLE job AS SELECT 42 AS id"))
        template.dispose()
        with postgresql.new_database(template=make_url(template_url).database or "") as url:
            copy = create_engine(url)
            with copy.connect() as connection:
                assert connection.scalar(text("SELECT id FROM job")) == 42
            copy.dispose()
