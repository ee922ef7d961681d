"""Statements that are sent for every file: compiled once, and then sent by the driver itself.

SQLite needs a tenth of the time for a statement that finds one row that SQLAlchemy needs around
it. Text, types and errors are SQLAlchemy's all the same.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Dialect, Select, Update
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from ingestd.db import AnyRow, driver_at_work

_Process = Callable[[Any], Any]
if TYPE_CHECKING:  # SQLAlchemy 2.0 knows a single type of rows at run time
    Statement = Select[*tuple[Any, ...]] | Update


@dataclass(frozen=True, slots=True)
class _Form:
    """A statement in the words of one database, for one set of parameters."""

    text: str
    # In the order of the text; a parameter that the statement itself gives has its value.
    names: Sequence[tuple[str, _Process | None]]
    fixed: dict[str, Any]
    is_positional: bool
    make_row: Callable[[Any], AnyRow]
    columns: Sequence[ColumnElement[Any]]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        bound = self.fixed | {
            name: process(values[name]) if process else values[name]
            for name, process in self.names
            if name not in self.fixed
        }
        return [bound[name] for name, _ in self.names] if self.is_positional else bound

    def rows(
        self, found: list[Sequence[Any]], description: Sequence[Any], dialect: Dialect
    ) -> list[AnyRow]:
        """Give what a SELECT found, as SQLAlchemy's types read it."""
        if not found:
            return []
        processes = [
            (place, process)
            for place, (column, told) in enumerate(zip(self.columns, description, strict=True))
            if (process := _reader(column.type, dialect, told[1]))
        ]
        if not processes:
            return [self.make_row(each) for each in found]
        rows = []
        for each in map(list, found):
            for place, process in processes:
                each[place] = process(each[place])
            rows.append(self.make_row(each))
        return rows


@lru_cache(maxsize=1024)
def _reader(kind: TypeEngine[Any], dialect: Dialect, code: Any) -> _Process | None:
    return kind.dialect_impl(dialect).result_processor(dialect, code)


class Prepared:
    """One such statement; its parameters are all given by name."""

    def __init__(self, statement: Statement) -> None:
        """Note a statement; it is compiled when it is sent for the first time."""
        self._statement = statement
        self._forms: WeakKeyDictionary[Dialect, dict[tuple[str, ...], _Form]] = WeakKeyDictionary()

    def all(self, session: Session, values: Mapping[str, Any]) -> list[AnyRow]:
        """Send a SELECT; all of its rows."""
        connection = session.connection()
        form = self._form(connection.dialect, values)
        with driver_at_work(connection) as driver:
            cursor = driver.execute(form.text, form.parameters(values))
            found = cursor.fetchall()
        return form.rows(found, cursor.description, connection.dialect)

    def change(self, session: Session, values: Mapping[str, Any]) -> int:
        """Send an UPDATE that sets the columns named in `values`; how many rows it found."""
        connection = session.connection()
        form = self._form(connection.dialect, values)
        with driver_at_work(connection) as driver:
            number: int = driver.execute(form.text, form.parameters(values)).rowcount
        return number

    def _form(self, dialect: Dialect, values: Mapping[str, Any]) -> _Form:
        forms = self._forms.setdefault(dialect, {})
        keys = tuple(values)
        if keys not in forms:
            forms[keys] = _compile(self._statement, dialect, values)
        return forms[keys]


def _compile(statement: Statement, dialect: Dialect, values: Mapping[str, Any]) -> _Form:
    is_update = isinstance(statement, Update)
    compiled = statement.compile(dialect=dialect, column_keys=list(values) if is_update else None)
    assert isinstance(compiled, SQLCompiler)  # noqa: S101 - what statements are compiled by
    state = compiled.construct_expanded_state(dict(values))
    names = list(state.parameters if state.positiontup is None else state.positiontup)
    process_of = {
        name: process
        for name, bind in compiled.binds.items()
        if (process := bind.type.dialect_impl(dialect).bind_processor(dialect))
    } | dict(state.processors)
    fixed = {
        name: process_of[name](value) if name in process_of else value
        for name, value in state.parameters.items()
        if name not in values
    }
    columns = [] if isinstance(statement, Update) else list(statement.selected_columns)
    row = namedtuple("Row", [str(column.key) for column in columns], rename=True)  # type: ignore[misc]  # noqa: PYI024 - its names come from the query
    return _Form(
        state.statement,
        [(name, process_of.get(name)) for name in names],
        fixed,
        state.positiontup is not None,
        row._make,
        columns,
    )
