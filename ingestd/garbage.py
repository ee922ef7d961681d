"""Garbage: how often Python looks for objects that only hold each other."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 100_000


def look_for_cycles_rarely() -> None:
    """Let Python look after a hundred thousand new objects, not after seven hundred.

    A batch is tens of thousands of tuples and no cycle. To look through them again and again took a
    tenth of the time of a row; what has no cycle is freed at once all the same.
    """
    gc.freeze()  # what was imported stays
    gc.set_threshold(_NEW_OBJECTS)
