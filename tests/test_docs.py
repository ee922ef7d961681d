"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest

from ingestd import config

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PIPELINE = ROOT / "ingestd" / "pipeline"
KIND = re.compile(
    r"""kind="([a-z0-9_]+)"
    | _Refusal\([^,]+,\ "([a-z0-9_]+)"
    | PydanticCustomError\(\s*"([a-z0-9_]+)"
    | reason,\ kind\ =\ "[^"]+",\ "([a-z0-9_]+)"
    | return\ "([a-z0-9]+)",\ f?"
    | \bkind\ =\ "([a-z0-9_]+)" """,
    re.VERBOSE,
)


def kinds() -> set[str]:
    """Every kind of reject or refusal that the pipeline names."""
    sources = [(PIPELINE / name).read_text() for name in ("validate.py", "read.py", "ingest.py")]
    return {kind for text in sources for match in KIND.findall(text) for kind in match if kind}


def test_the_kinds_are_found() -> None:
    """A test that finds nothing would hold nothing."""
    assert {"base58", "too_many_rejects", "bomb", "columns", "depth"} <= kinds()


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_kind_of_refusal_is_explained(kind: str) -> None:
    """Who gets a reject must be able to look it up."""
    assert f"`{kind}`" in (ROOT / "docs" / "format.md").read_text()


def test_the_configuration_is_told_as_it_is() -> None:
    """`make docs` writes it."""
    assert config.reference() == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    """Relative links name files that are there."""
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target
