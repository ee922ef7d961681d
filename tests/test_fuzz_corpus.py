"""What fuzzing found is kept, and every run reads it again (`make fuzz` looks for more)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Did
from .fuzz import names, rows, zips

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
CHECKS = {"rows": rows.check, "zips": zips.check, "names": names.check}


@pytest.mark.promise(14, 17, 18, 19, 20)
@pytest.mark.parametrize("target", CHECKS)
def test_what_fuzzing_found_holds_every_claim(target: str, did: Did) -> None:
    """Each input once broke something, or reaches code that no other does."""
    inputs = sorted((CORPUS / target).iterdir())
    for path in inputs:
        try:
            CHECKS[target](path.read_bytes())
        except Exception as error:
            error.add_note(f"input {path.name}")
            raise
    assert len(inputs) >= 10
    did(f"{len(inputs)} kept inputs of the fuzzer for {target}")
