"""Random base58 texts that decode to exactly 32 or 64 bytes, drawn without any arithmetic on them.

The base58 alphabet is in ASCII order, so among texts of one length the order of the texts is the
order of the numbers: a text of full width is valid if it is not above the text of 2^(8·size) − 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

ALPHABET = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LETTERS = np.frombuffer(ALPHABET, dtype=np.uint8)


def base58_texts(rng: np.random.Generator, count: int, size: int) -> list[bytes]:
    """Return `count` base58 texts of uniformly random values of `size` bytes.

    Lengths come out as nature has them: of 32 bytes 44 characters in 94 %, 43 in nearly all others,
    and one in 256 begins with "1".
    """
    top = _greatest(size, 0)
    texts = _wide_texts(rng, count, top)
    while (above := np.flatnonzero(texts > top)).size:
        texts[above] = _wide_texts(rng, above.size, top)
    found: list[bytes] = texts.tolist()
    for short in np.flatnonzero(texts < b"2"):
        found[short] = _without_padding(found[short], size)
    return found


def _wide_texts(rng: np.random.Generator, count: int, top: bytes) -> np.ndarray:
    digits = rng.integers(0, 58, (count, len(top)), dtype=np.uint8)
    digits[:, 0] = rng.integers(0, ALPHABET.index(top[:1]) + 1, count, dtype=np.uint8)
    return _LETTERS[digits].view(f"S{len(top)}").ravel()


def _without_padding(text: bytes, size: int) -> bytes:
    """A leading "1" stands for a zero byte, so keep as many as the value has zero bytes."""
    zeros = 0
    while zeros < size and text <= _greatest(size, zeros + 1):
        zeros += 1
    return b"1" * zeros + text.lstrip(b"1")


@cache
def _greatest(size: int, zeros: int) -> bytes:
    """The greatest value of `size` bytes with `zeros` leading zero bytes, as padded digits."""
    width = len(_digits(256**size - 1))
    return _digits(256 ** (size - zeros) - 1).rjust(width, b"1")


def _digits(value: int) -> bytes:
    text = bytearray()
    while value:
        value, digit = divmod(value, 58)
        text.append(ALPHABET[digit])
    return bytes(reversed(text))


class Mint:
    """Single ids and keys for rows that are written one by one, from a stream of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw from `rng`, which belongs to the mint from now on."""
        self.rng = rng
        self._stock: dict[int, list[bytes]] = {32: [], 64: []}

    def tx_id(self) -> str:
        """A fresh base58 text of 32 bytes."""
        return self._draw(32)

    def key(self) -> str:
        """A fresh base58 text of 64 bytes: a public key or a signature."""
        return self._draw(64)

    def hex(self, size: int) -> str:
        """`size` fresh bytes as hexadecimal digits."""
        return self.rng.bytes(size).hex()

    def _draw(self, size: int) -> str:
        if not self._stock[size]:
            self._stock[size] = base58_texts(self.rng, 64, size)
        return self._stock[size].pop().decode()
