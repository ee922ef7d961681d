"""Leaving: how a file whose jobs are final goes from the inbox into archive or quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import structlog
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import FileChanged, FileVanished, LostClaim, NotPutAway
from ingestd.models import FileProcessing
from ingestd.pipeline import archive, ledger
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.read import Source, is_moved_unchanged
from ingestd.pipeline.step import Step
from ingestd.pipeline.writers import Writers, writers_kept_out

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Leaving:
    """One file on its way out; `jobs` are all of its CSVs'."""

    found: Found
    source: Source
    jobs: list[FileProcessing]
    _: KW_ONLY
    sessions: sessionmaker[Session]
    on_step: Callable[[Step], None]
    heed_stop: Callable[[], None]

    def go_to(self, folder: Path, reason: Sequence[str]) -> None:
        """Move it below `folder`, with the lines of a `reason` and its markers beside it.

        Raises:
            FileChanged: it stays, since somebody writes it, or has.
            NotPutAway: it stays, since a folder refuses.
        """
        target, is_renamed = self._move(folder, reason)
        if is_renamed and not is_moved_unchanged(self.source.stamp, target):
            home = archive.put_back(target, self.found.path)
            self._note(None)
            back = label_of(home)
            log.warning("file_changed_while_put_away", path=self.found.label, put_back=back)
            return
        # Last, since a file without its marker might wait for one for ever.
        if self.found.claim:
            markers = [self.found.root / path for path in self.found.claim.beside]
            archive.put_beside(markers, target)

    def _move(self, folder: Path, reason: Sequence[str]) -> tuple[Path, bool]:
        """Move a file below a folder by a free name, which its jobs say beforehand.

        Returns where it went, and whether by a rename.

        Raises:
            FileChanged: it stays, since somebody writes it, or has.
        """
        wanted = folder / self.found.relative
        copy = self._copy_at(wanted)
        if copy is not None:
            with _kept_unchanged(self.source):
                archive.finish(self.found.path)
            return copy, False
        while True:
            target = archive.free_name(wanted)
            # The lease last: a writer that it keeps waiting goes on in the moved file.
            with self._addressed(target), _kept_unchanged(self.source):
                return target, archive.put_away(
                    self.found.path,
                    target,
                    folder=folder,
                    stamp=self.source.stamp,
                    reason=reason,
                    on_step=self.on_step,
                    heed_stop=self.heed_stop,
                )

    @contextmanager
    def _addressed(self, target: Path) -> Iterator[None]:
        """Let the jobs say where their file goes before it goes: a kill between leaves no doubt.

        The only job of a file has said so when it was completed: the less time between its last
        look and its move, the better. A name that was taken a moment ago ends the block without
        an error.
        """
        before = self.jobs[0].archived_to
        if any(job.archived_to != label_of(target) for job in self.jobs):
            self._note(label_of(target))
        self.on_step(Step.ADDRESSED)
        try:
            yield
        except FileExistsError:
            self._note(None)
        except (LostClaim, FileVanished):  # another process is moving it, or has: it said where
            if not os.path.lexists(target):
                self._note(before)
            raise
        except (NotPutAway, FileChanged):
            if not os.path.lexists(target):
                self._note(None)
            raise

    def _note(self, target: str | None) -> None:
        with self.sessions.begin() as session:
            ledger.note_archived(session, self.jobs, target)

    def _copy_at(self, wanted: Path) -> Path | None:
        """Give the copy of a file that was moved but for the last step, by a process now gone.

        Its jobs name it; only in the ledger does that differ from the same bytes dropped twice.
        """
        for label in {job.archived_to for job in self.jobs}:
            for target in ledger.paths_of(label or ""):
                if target.parent == wanted.parent and archive.is_copy(self.found.path, target):
                    return target
        return None


@contextmanager
def _kept_unchanged(source: Source) -> Iterator[None]:
    """Keep writers out for the time of the block.

    Raises:
        FileChanged: one was quicker.
    """
    with writers_kept_out(source.path) as writers:
        if writers is Writers.SOME or not source.is_unchanged():
            raise FileChanged(str(source.path))
        yield
