"""The test build of the settings: the program kills or stops itself at a named step.

It alone knows INGESTD_TEST__CRASH_AT, by which a process kills itself with SIGKILL as soon as a
step is over for the n-th time (`loaded:2`), INGESTD_TEST__FREEZE_AT, by which it stops there
(`stored:2`, or `stored:2 stored:102`) so that a test may do something before it goes on, and
INGESTD_TEST__TELL_STEPS, a file into which it writes at its end when each batch was stored.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from ingestd.pipeline.step import Step

CRASH_VARIABLE = "INGESTD_TEST__CRASH_AT"
STEPS_VARIABLE = "INGESTD_TEST__TELL_STEPS"
FREEZE_VARIABLE = "INGESTD_TEST__FREEZE_AT"


class TestBuild(BaseSettings):
    """What only the program in tests can be told."""

    __test__ = False  # no class of tests
    model_config = SettingsConfigDict(env_prefix="INGESTD_TEST__")

    crash_at: str = ""
    tell_steps: Path | None = None
    freeze_at: str = ""


@dataclass
class Steps:
    """Counts the steps that were told; dies at the one that is armed, or stops there."""

    crash_at: str = ""
    freeze_at: str = ""
    tell_in: Path | None = None
    told: Counter[Step] = field(default_factory=Counter)
    stored_at: list[float] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        """Note a step; no handler, no `finally`, no buffer survives the last one."""
        self.told[step] += 1
        if step == Step.STORED:
            self.stored_at.append(time.monotonic())
        name = f"{step}:{self.told[step]}"
        if self.crash_at == name:
            os.kill(os.getpid(), signal.SIGKILL)
        if name in self.freeze_at.split():
            os.kill(os.getpid(), signal.SIGSTOP)

    def tell(self) -> None:
        """Write when each batch was stored, if somebody wants to know."""
        if self.tell_in:
            self.tell_in.write_text(json.dumps(self.stored_at), encoding="ascii")


def armed() -> Steps:
    """Steps as the environment says; what is left there is what the program itself knows."""
    build = TestBuild()
    for variable in (CRASH_VARIABLE, FREEZE_VARIABLE, STEPS_VARIABLE):
        os.environ.pop(variable, None)
    return Steps(build.crash_at, build.freeze_at, build.tell_steps)


def is_frozen(pid: int | None) -> bool:
    """Whether a process was stopped, by itself or by a signal."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] == "T"
