"""Names and folders: what they say of contract, slot and place, and what they must not say."""

from __future__ import annotations

import time
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.pipeline.slot import (
    WHOLE,
    Place,
    Slot,
    contract_of_folders,
    is_contract_id,
    next_slot,
    parse_name,
    place_of,
    tidy,
)

ID = "AsrxMqfGWsXEgTmvdw95omtQ4Gv1Vi4mGAvLYy23DHpM"
OTHER = "C2PNTNPsNdVycjJs7BRD7aixkmPPbxj7PWjCxbo7ikC4"
ID_43 = "1" + "2" * 42
SHORTEST = "1" * 32
HOUR = Slot("2024-09-06_0800-0900", is_cumulative=False)
HOURLY = f"{ID}_2024-09-06_0800-0900"
FOLDERS = "90 - Пермский край/Выборы депутатов Думы/Округ №1_3"


def interval(text: str) -> Slot:
    """A slot of at most one hour."""
    return Slot(text, is_cumulative=False)


@pytest.mark.parametrize("ending", [".csv", ".zip", ".CSV", ".Zip", ""])
def test_a_name_tells_contract_and_slot(ending: str) -> None:
    """The form of the observer portal, as CSV, as ZIP and as a folder."""
    assert (ID, HOUR) == parse_name(HOURLY + ending)


@pytest.mark.parametrize("ending", [".csv", ".zip"])
def test_a_bare_contract_is_a_whole_voting(ending: str) -> None:
    """`<contract>.zip` covers everything and is cumulative."""
    assert (ID, Slot(WHOLE, is_cumulative=True)) == parse_name(ID + ending)


def test_a_contract_and_a_date_are_a_day() -> None:
    """A day is longer than an hour: cumulative."""
    assert (ID, Slot("2024-09-06", is_cumulative=True)) == parse_name(f"{ID}_2024-09-06.csv")


@pytest.mark.parametrize(
    "tail", ["-copy", " (1)", " - копия", "-anomaly2024-09-07-10-11-12", "-anomaly-x (2)-copy"]
)
@pytest.mark.parametrize("stem", [HOURLY, ID, f"{ID}_2024-09-06"])
def test_a_tail_changes_nothing(stem: str, tail: str) -> None:
    """A copy names the slot of its original; the date of an anomaly is not the slot's."""
    assert parse_name(stem) == parse_name(f"{stem}{tail}.csv")


@pytest.mark.parametrize("end", ["0000", "2400"])
def test_the_last_hour_of_a_day_is_one_slot_in_both_spellings(end: str) -> None:
    """2300-0000 and 2300-2400 are the same hour."""
    name = f"{ID}_2024-09-06_2300-{end}.csv"
    assert (ID, interval("2024-09-06_2300-0000")) == parse_name(name)


@pytest.mark.parametrize(
    ("clock", "is_cumulative"),
    [
        ("0800-0801", False),
        ("0800-0900", False),
        ("0830-0930", False),
        ("2330-0030", False),
        ("0800-0901", True),
        ("0800-2000", True),
        ("2300-0001", True),
        ("0000-2400", True),
        ("0000-0000", True),
    ],
)
def test_more_than_an_hour_is_cumulative(clock: str, is_cumulative: bool) -> None:
    """Files of at most one hour add up; longer ones do not."""
    _contract, slot = parse_name(f"{ID}_2024-09-06_{clock}.csv")
    assert slot is not None
    assert is_cumulative == slot.is_cumulative


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}_2024-02-30_0800-0900.csv",
        f"{ID}_2024-13-01_0800-0900.csv",
        f"{ID}_0000-00-00_0800-0900.csv",
        f"{ID}_9999-12-31_2300-0000.csv",
        f"{ID}_2024-09-06_0860-0900.csv",
        f"{ID}_2024-09-06_0800-2500.csv",
        f"{ID}_2024-09-06_2400-0100.csv",
        f"{ID}_2024-09-06_08-09.csv",
        f"{ID}_2024-09-06_0800.csv",
        f"{ID}_2024-09-06T08.csv",
        f"{ID}_2024-09-06 08-00.csv",
        f"{ID}_2024-09-06_08000-09000.csv",
        f"{ID}_2024-09-06_2024-09-08.csv",
        f"{ID}_2024-13-45.csv",
        f"{ID}_20240906.csv",
        f"{ID}_06.09.2024.csv",
        f"{ID}_٢٠٢٤-٠٩-٠٦_٠٨٠٠-٠٩٠٠_2024-09.06.csv",
    ],
)
def test_a_date_that_cannot_be_read_tells_no_slot(name: str) -> None:
    """Read as a day or a whole voting it would replace another file of that slot."""
    assert (ID, None) == parse_name(name)


@pytest.mark.parametrize("contract", [ID, OTHER, ID_43, SHORTEST])
def test_contract_ids_come_in_many_lengths(contract: str) -> None:
    """What decodes to 32 bytes is an id, from 32 characters to 44."""
    assert is_contract_id(contract)
    assert (contract, HOUR) == parse_name(f"{contract}_2024-09-06_0800-0900.csv")


@pytest.mark.parametrize("text", ["", "z" * 44, "2" * 32, ID[:-4], ID + "1", ID[:-1] + "l"])
def test_what_is_not_32_bytes_is_no_contract(text: str) -> None:
    """The alphabet and the length in characters are not enough."""
    assert not is_contract_id(text)
    assert parse_name(f"{text}_2024-09-06_0800-0900.csv") == (None, HOUR)


def test_a_name_is_read_from_the_right() -> None:
    """Another contract and another hour may stand further left."""
    name = f"{OTHER}_2024-09-05_0700-0800_{HOURLY}.csv"
    assert (ID, HOUR) == parse_name(name)


@pytest.mark.parametrize(
    "name",
    [
        f"Округ №1_3_{HOURLY}.csv",
        f'"Выборы" {HOURLY}.csv',
        f"г. Москва_{HOURLY}.zip",
        f"2024-09-06_0800-0900 {ID}.csv",
    ],
)
def test_cyrillic_and_signs_around_a_name_do_no_harm(name: str) -> None:
    """Names hold spaces, №, quotes, `_` and Cyrillic."""
    assert (ID, HOUR) == parse_name(name)


@pytest.mark.parametrize("name", ["2024-09-06_0800-0900.csv", "Округ №1 2024-09-06_0800-0900.zip"])
def test_an_interval_without_a_contract_is_still_a_slot(name: str) -> None:
    """The contract is then found elsewhere."""
    assert parse_name(name) == (None, HOUR)


@pytest.mark.parametrize("name", ["", ".csv", "export.csv", "Округ №1_3.zip", "Выборы 2024.csv"])
def test_a_name_without_both_tells_nothing(name: str) -> None:
    """Whole-voting is said of a contract, never of nothing."""
    assert parse_name(name) == (None, None)


@pytest.mark.parametrize(
    ("path", "contract"),
    [
        (f"a/{ID}/b/c.csv", ID),
        (f"{OTHER}/{ID}/c.csv", ID),
        (f"{ID}/{OTHER} /c.csv", OTHER),
        (f"a/{ID}.csv", None),
        (f"a/{HOURLY}/c.csv", None),
        ("c.csv", None),
        ("", None),
    ],
)
def test_the_nearest_folder_that_is_a_contract_tells_it(path: str, contract: str | None) -> None:
    """Only folders count, and only whole ones."""
    assert contract == contract_of_folders(path)


def test_folders_tell_the_place() -> None:
    """Code, region, election and constituency; the raw path is kept."""
    path = f"{FOLDERS}/{ID}/{HOURLY}/{HOURLY}.csv"
    expected = Place("90", "Пермский край", "Выборы депутатов Думы", "Округ №1_3", path)
    assert expected == place_of(path)


def test_names_are_tidied_and_the_path_is_not() -> None:
    """Names carry double and trailing spaces."""
    path = f" 77  -  г.  Москва /Выборы\u00a0 депутатов  /Округ  №1 /{ID}.csv"
    place = place_of(path)
    assert Place("77", "г. Москва", "Выборы депутатов", "Округ №1", path) == place


@pytest.mark.parametrize(
    ("path", "election", "constituency"),
    [
        ("90 - Край/x.csv", None, None),
        ("90 - Край/Выборы/x.csv", "Выборы", None),
        (f"90 - Край/Выборы/{ID}/x.csv", "Выборы", None),
        (f"90 - Край/{ID}/{HOURLY}/x.csv", None, None),
        ("90 - Край/Выборы/часы.zip/x.csv", "Выборы", None),
        ("90 - Край/ /x.csv", None, None),
        ("inbox/2026/90 - Край/Выборы/Округ/deep/er/x.csv", "Выборы", "Округ"),
        ("1 - Старый/А/Б/90 - Край/Выборы/Округ/x.csv", "Выборы", "Округ"),
    ],
)
def test_a_place_may_be_told_in_part(
    path: str, election: str | None, constituency: str | None
) -> None:
    """What no folder says stays open; the nearest region counts."""
    assert Place("90", "Край", election, constituency, path) == place_of(path)


@pytest.mark.parametrize(
    "path", ["", "x.csv", f"{ID}/x.csv", "Край/Выборы/x.csv", "1234 - А/x.csv"]
)
def test_without_a_region_there_is_no_place(path: str) -> None:
    """A bare file without folders is normal."""
    assert place_of(path) is None


@pytest.mark.parametrize(
    ("slot", "following"),
    [
        ("2024-09-06_0800-0900", "2024-09-06_0900-1000"),
        ("2024-09-06_2200-2300", "2024-09-06_2300-0000"),
        ("2024-09-06_2300-0000", "2024-09-07_0000-0100"),
        ("2024-02-28_2300-0000", "2024-02-29_0000-0100"),
        ("2024-12-31_2300-0000", "2025-01-01_0000-0100"),
        ("2024-09-06_2330-0030", "2024-09-07_0030-0130"),
        ("2024-09-06_2230-2330", "2024-09-06_2330-0030"),
        ("2024-09-06_0815-0830", "2024-09-06_0830-0845"),
    ],
)
def test_the_next_slot_is_as_long_and_knows_midnight(slot: str, following: str) -> None:
    """Days end, months end, leap days exist."""
    assert following == next_slot(slot)


@given(st.dates(max_value=date(9998, 12, 30)), st.integers(0, 23))
def test_hours_in_a_row_sort_like_time(day: date, hour: int) -> None:
    """Slots are compared as texts."""
    slot = f"{day}_{hour:02d}00-{(hour + 1) % 24:02d}00"
    following = next_slot(slot)
    assert slot < following
    assert (ID, interval(following)) == parse_name(f"{ID}_{following}.csv")


letters = st.one_of(
    st.text(),
    st.text("0123456789-_/.: ()AZaz№Ж", max_size=60),
    st.lists(
        st.sampled_from(
            [ID, HOURLY, "2024-09-06", "_", "0800-0900", "-anomaly", ".csv", "/", "90 - К", "9999"]
        )
    ).map("".join),
)


@given(letters)
def test_no_text_breaks_a_reader(text: str) -> None:
    """Names are anybody's: each is read or not, none raises."""
    contract, slot = parse_name(text)
    assert contract is None or is_contract_id(contract)
    if slot and slot.text not in (WHOLE, slot.text[:10]) and not slot.is_cumulative:
        assert slot.text < next_slot(slot.text)
    place = place_of(text)
    assert place is None or tidy(place.region_name) == place.region_name
    assert contract_of_folders(text) is None or ID in text


@given(letters)
def test_a_slot_fits_its_column(text: str) -> None:
    """At most 24 characters of ASCII, whatever the name."""
    _contract, slot = parse_name(text)
    assert slot is None or (len(slot.text) <= 24 and slot.text.isascii())


@pytest.mark.parametrize("part", ["-", "_ ", "2024-01-01_", "1 - ", f"{ID} ", "-anomaly", "z" * 44])
def test_a_name_of_any_length_is_read_in_one_pass(part: str) -> None:
    """A name in a ZIP may have 65 535 bytes, and a ZIP a hundred thousand of them."""
    name = part * (65_535 // len(part))
    began = time.process_time()
    for text in (name, f"{name}.csv", f"{ID}{name}.zip", f"{name}/a.csv", f"{name}x"):
        parse_name(text)
        place_of(text)
        contract_of_folders(text)
    assert time.process_time() - began < 2
