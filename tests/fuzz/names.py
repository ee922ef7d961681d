"""Any bytes as a path: what it tells can be told again in the plain form."""

from __future__ import annotations

import os
from pathlib import Path

from ingestd.log import escape
from ingestd.pipeline.found import label_of
from ingestd.pipeline.slot import (
    WHOLE,
    Slot,
    contract_of_folders,
    is_contract_id,
    next_slot,
    parse_name,
    place_of,
    tidy,
)


def check(data: bytes) -> None:
    """Read a path as the ingest does: its label, then base name and folders."""
    label = label_of(Path(os.fsdecode(data.replace(b"\x00", b""))))
    label.encode()
    name = label.rsplit("/", 1)[-1]
    contract, slot = parse_name(name)
    if contract:
        assert is_contract_id(contract)
        assert len(contract) <= 44
    if slot:
        assert len(slot.text) <= 24
        # A number alone is no slot; a contract alone is a whole voting.
        parts = [contract, None if slot.text == WHOLE else slot.text]
        plain = "_".join(part for part in parts if part)
        assert (contract, slot) == parse_name(f"{plain}.csv") == parse_name(f"{plain}.ZIP")
        check_next(slot)
    check_folders(label)
    assert escape(label).isprintable()


def check_next(slot: Slot) -> None:
    """The next hour has a name, too, and is as long."""
    if not slot.is_cumulative:
        following = next_slot(slot.text)
        assert following > slot.text
        assert len(following) == len(slot.text)


def check_folders(label: str) -> None:
    """What folders tell fits its columns, and is told again by tidy ones."""
    told = contract_of_folders(label)
    assert told is None or is_contract_id(told)
    place = place_of(label)
    if place is None:
        return
    assert len(place.region_code) <= 3
    names = [name for name in (place.election, place.constituency) if name]
    assert all(name == tidy(name) for name in [*names, place.region_name])
    plain = "/".join([f"{place.region_code} - {place.region_name}", *names, "a.csv"])
    again = place_of(plain)
    assert again is not None
    assert (place.region_code, place.region_name, place.election, place.constituency) == (
        again.region_code,
        again.region_name,
        again.election,
        again.constituency,
    )
