"""Base58 is checked without decoding; here it is held against real decoding."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.pipeline.base58 import ALPHABET, decodes_to, encode_number

SIZES = (32, 64)
texts = st.text(ALPHABET, max_size=90)


def really_decodes_to(text: str, size: int) -> bool:
    """The oracle: decode and measure."""
    return len(base58.b58decode(text)) == size


@pytest.mark.parametrize("size", SIZES)
@given(text=texts, ones=st.integers(0, 70))
def test_any_base58_text_is_judged_as_decoding_judges_it(size: int, text: str, ones: int) -> None:
    """Leading ones are zero bytes; everything else is a number."""
    text = "1" * ones + text
    assert really_decodes_to(text, size) == decodes_to(text, size)


@pytest.mark.parametrize("size", SIZES)
@given(data=st.data(), zeros=st.integers(0, 64))
def test_all_bytes_of_the_right_size_pass(size: int, data: st.DataObject, zeros: int) -> None:
    """Whatever an id or key is made of, leading zero bytes too, its base58 is good."""
    tail = data.draw(st.binary(min_size=size, max_size=size))[min(zeros, size) :]
    raw = tail.rjust(size, b"\0")
    assert decodes_to(base58.b58encode(raw).decode(), size)


@pytest.mark.parametrize("size", SIZES)
@given(data=st.data(), wrong=st.integers(0, 70))
def test_bytes_of_another_size_fail(size: int, data: st.DataObject, wrong: int) -> None:
    """One byte more or less is another thing."""
    raw = data.draw(st.binary(min_size=wrong, max_size=wrong))
    assert (wrong == size) == decodes_to(base58.b58encode(raw).decode(), size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lost", [0, 1, 2, 31])
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_borders_of_each_size_are_sharp(size: int, lost: int, step: int) -> None:
    """2^256 - 1 is 32 bytes and 2^256 is 33; the same behind leading zero bytes."""
    for number in ((1 << 8 * (size - lost)) + step, (1 << 8 * (size - lost - 1)) + step):
        text = "1" * lost + encode_number(number)
        assert really_decodes_to(text, size) == decodes_to(text, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", range(91))
@pytest.mark.parametrize("letter", ["1", "2", "A", "z"])
def test_every_length_is_judged_rightly(size: int, length: int, letter: str) -> None:
    """Lengths in the format's table are typical, never a rule."""
    for text in (letter * length, "1" * (length // 2) + letter * (length - length // 2)):
        assert really_decodes_to(text, size) == decodes_to(text, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("letter", [*"0OIl+/=_- \n\0", "Ж", "１", "\ud800"])
def test_a_letter_outside_the_alphabet_fails_wherever_it_stands(size: int, letter: str) -> None:
    """Neither look-alikes nor white space are forgiven."""
    good = base58.b58encode(b"\xff" * size).decode()
    for at in (0, len(good) // 2, len(good)):
        assert not decodes_to(good[:at] + letter + good[at:], size)
        assert not decodes_to(good[:at] + letter + good[at + 1 :], size)


@given(st.integers(1, 1 << 512))
def test_numbers_are_written_as_the_oracle_writes_them(number: int) -> None:
    """The table of borders is built from these."""
    assert base58.b58encode_int(number).decode() == encode_number(number)


@pytest.mark.parametrize("size", SIZES)
def test_fifty_megabytes_of_anything_are_no_id(size: int) -> None:
    """A field can be huge; saying no must not depend on decoding it."""
    assert not decodes_to("z" * (50 << 20), size)
