"""What the documents say is what the code does."""

import re
import tomllib
from pathlib import Path

import pytest

from ingestd import config

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
WARNING = re.compile(
    r'(?:log\.(?:warning|error|exception)\(|_say_once\((?:odd, [^"]+, )?)\s*"([a-z_]+)"'
)
OBSTACLES = ("full", "not_writable", "failing")
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


def events() -> set[str]:
    """Every warning and error that the program logs; those of obstacles are put together."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "ingestd").rglob("*.py")]
    told = {event for text in sources for event in WARNING.findall(text)}
    places = ("inbox", "archive", "quarantine")
    return told | {f"{place}_{what}" for place in places for what in OBSTACLES}


def test_every_warning_of_the_log_is_explained() -> None:
    """Who reads the journal must find what to do."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert {"storage_away", "folder_not_readable", "archive_full"} <= events()
    assert [] == sorted(event for event in events() if f"`{event}`" not in page)


def test_every_dependency_has_its_reason() -> None:
    """What others wrote is there since it is better than our own lines; the page says why."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(each for more in project["project"]["optional-dependencies"].values() for each in more),
    ]
    names = {re.split(r"[\[<>=; ]", each)[0].lower() for each in asked} - {"ingestd"}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").lower()
    reasons = page.split("## dependencies")[1].split("\n## ")[0]

    assert [] == sorted(name for name in names if name not in reasons)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Relative links name files that are there, and headings that are in them."""
    for target, anchor in links(document):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_the_links_are_found() -> None:
    """A test that finds nothing would hold nothing."""
    assert ("docs/install.md", "") in links("README.md")
    assert ("", "operations") in links("docs/format.md")
    assert "what-an-observer-counts" in anchors(ROOT / "docs" / "format.md")


def test_every_page_is_in_the_index_of_the_readme() -> None:
    """Who looks for a page begins there."""
    assert set() == set(DOCUMENTS) - {"README.md"} - {target for target, _ in links("README.md")}


def links(document: str) -> list[tuple[str, str]]:
    """File and anchor of each link that stays among our files."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text)
    return [(target, anchor) for target, anchor in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """What headings are called in links: letters, digits, _ and -, blanks as -."""
    text = re.sub(
        r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
