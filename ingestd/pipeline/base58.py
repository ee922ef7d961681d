"""Base58 text that must decode to exactly 32 or 64 bytes, checked without decoding it.

The Bitcoin base58 alphabet is in ASCII order, so among texts of one length the
order of the text is the order of the number. Whether a text without leading
"1" (a zero byte each) decodes to n bytes is then two comparisons: with the
smallest and the greatest number of n bytes. Most texts are as long as the
greatest, and need only the second; the tests hold it against real decoding.
"""

from __future__ import annotations

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = ALPHABET.encode()


def encode_number(number: int) -> str:
    """Write a positive number in base58."""
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


# For each count of bytes: the texts of its smallest and its greatest number
# whose first byte is not zero.
_RANGES = {
    size: (encode_number(1 << 8 * (size - 1)), encode_number((1 << 8 * size) - 1))
    for size in range(1, 65)
}


_GREATEST = {size: high for size, (_low, high) in _RANGES.items()}


def decodes_to(text: str, size: int) -> bool:
    """Say whether `text` is base58 of exactly `size` bytes (1 to 64)."""
    return has_alphabet(text) and has_size(text, size)


def has_alphabet(text: str) -> bool:
    """Say whether there is nothing but base58 digits in a text, or in several put together."""
    # Deleting bytes is four times as fast as deleting characters.
    return not text.encode("utf-8", "surrogatepass").translate(None, _DIGITS)


def has_size(text: str, size: int) -> bool:
    """Say whether base58 digits are those of exactly `size` bytes (1 to 64)."""
    greatest = _GREATEST[size]
    if len(text) == len(greatest) and not text.startswith("1"):
        return text <= greatest
    rest = text.lstrip("1")
    size -= len(text) - len(rest)
    if size <= 0:
        return size == 0 and not rest
    low, high = _RANGES[size]
    return (len(low), low) <= (len(rest), rest) <= (len(high), high)
