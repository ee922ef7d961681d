"""A file that is complete, on its way into the tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingestd.pipeline.evidence import Claim
from ingestd.pipeline.validate import storable


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is complete: where it lies under which root, and how we know."""

    root: Path
    relative: Path
    evidence: str
    # What markers and manifests say of it.
    claim: Claim | None = None
    # As it was when it was found complete.
    stamp: str = ""
    # Its manifest proves it complete, or it waits: a writer need not have closed it.
    may_be_open: bool = False
    # It contradicted its manifest for long: it does not wait any more.
    is_last_chance: bool = False

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.root / self.relative

    @property
    def label(self) -> str:
        """Its path as a text that every database can hold."""
        return label_of(self.relative)


def label_of(path: Path) -> str:
    """Write a path as clean text: bytes that are not UTF-8 are spelt out."""
    return storable(bytes(path).decode("utf-8", "backslashreplace"))
