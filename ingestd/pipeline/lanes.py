"""Lanes: which files may be taken at the same time, by their names alone.

Which publication of a slot is the newer, arrival alone tells, and one constituency is loaded
by one worker at a time. So files of one constituency keep their order, in one lane; what no
name tells of may belong to any, and is taken by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from ingestd.errors import FileRefused, FileVanished
from ingestd.pipeline.found import label_of
from ingestd.pipeline.read import ReadLimits, open_source, refusing_bad_zips
from ingestd.pipeline.slot import contract_of_folders, parse_name

Lanes = frozenset[str]

_MOST_MEMBERS = 500


def lanes_of(root: Path, relative: Path, limits: ReadLimits) -> Lanes | None:
    """Name the constituencies that a file may concern; None when it may be any.

    Of a ZIP that cannot be opened, or is gone, nothing will be stored: it is in nobody's way.
    """
    label = label_of(relative)
    if not label.lower().endswith(".zip"):
        return _together([_contract_of(label)])
    try:
        with closing(open_source(root / relative, limits)) as source, refusing_bad_zips():
            names = source.names()
    except (FileRefused, FileVanished, OSError):
        return frozenset()
    if len(names) > _MOST_MEMBERS or any(name.lower().endswith(".zip") for name in names):
        return None
    folder = label.rpartition("/")[0]
    of_zip = parse_name(label.rpartition("/")[2])[0]
    return _together(
        _contract_of(f"{folder}/{name}") or of_zip
        for name in names
        if name.lower().endswith(".csv")
    )


def _contract_of(label: str) -> str | None:
    return parse_name(label.rpartition("/")[2])[0] or contract_of_folders(label)


def _together(contracts: Iterable[str | None]) -> Lanes | None:
    known = frozenset(contracts)
    return None if None in known else frozenset(contract for contract in known if contract)
