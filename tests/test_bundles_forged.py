"""Bundles in other hands: what was tampered with is seen, and what is good is not refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd import once
from ingestd.config import Settings
from ingestd.models import Alert, FileProcessing
from ingestd.pipeline.bundle_check import is_sound, row_of
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.read import Row
from ingestd.pipeline.validate import Record, Validator

from .conftest import Databases, DropFile, Voting, csv_of, zip_of
from .running import open_sessions
from .test_bundles import check, export
from .test_replay import broken, take_back

Sessions = sessionmaker[Session]
Cells = list[dict[str, str]]
Numbers = dict[str, Any]


@dataclass
class Exported:
    """Bundles of one election by their rule, and the folder of its files."""

    folder: Path
    bundles: dict[str, Path]

    def copy(self, rule: str, to: Path) -> Path:
        """A bundle to tamper with."""
        return shutil.copytree(self.bundles[rule], to / rule)


def unsound(row: str, at: int, text: str) -> str:
    """A row with another text in one column."""
    parts = row.split(";")
    parts[at] = text
    return ";".join(parts)


@pytest.fixture(scope="module")
def exported(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """More votes than bulletins, one transaction twice, and a refused row; one file in a ZIP."""
    folder = tmp_path_factory.mktemp("forged")
    inbox, voting = folder / "inbox", Voting()
    inbox.mkdir()
    ballots = voting.ballots(9, 3)
    eight = [voting.start(8 * 60), voting.issue(481), *(voting.vote(482 + at) for at in range(4))]
    mad = [unsound(voting.vote(490), 10, "[1]"), unsound(voting.vote(491), 2, "0" * 87)]
    (inbox / voting.name(8)).write_bytes(csv_of([*eight, *mad]))
    zipped = zip_of({voting.name(9): csv_of([*ballots, ballots[1]])})
    (inbox / voting.name(9, ".zip")).write_bytes(zipped)
    found = Exported(folder / "archive", {})
    with databases.fresh("sqlite") as url:
        watch = {"inbox": inbox, "archive": found.folder}
        settings = Settings.model_validate({"database": {"url": url}, "watch": watch})
        once.once(settings)
        with open_sessions(url) as sessions:
            with sessions() as session:
                alerts = session.scalars(select(Alert).where(Alert.cleared_at.is_(None))).all()
            for alert in alerts:
                found.bundles[alert.type] = export(sessions, alert, folder, settings)
    return found


def rewrite(bundle: Path, change: Callable[[Cells], Cells]) -> None:
    """Write the lines of a bundle anew."""
    path = bundle / "lines.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = list(rows[0])
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(change(rows))


def retell(bundle: Path, change: Callable[[Numbers], None]) -> None:
    """Write the finding of a bundle anew."""
    path = bundle / "finding.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def no_bulletins(rows: Cells) -> Cells:
    """Leave the bulletins out."""
    return [row for row in rows if "blindSigIssue" not in row["text"]]


def first_twice(rows: Cells) -> Cells:
    """Write one line twice."""
    return [rows[0], *rows]


def first_under_another_contract(rows: Cells) -> Cells:
    """Write one line again as if it stood in another contract's file."""
    return [*rows, rows[0] | {"contract": Voting().new_id()}]


def bulletins_later(rows: Cells) -> Cells:
    """Let the bulletins stand in the next hour."""
    return [
        row | {"slot": row["slot"].replace("_0800-0900", "_1000-1100")}
        if "blindSigIssue" in row["text"]
        else row
        for row in rows
    ]


def told_as_cumulative(rows: Cells) -> Cells:
    """Let files tell the same again that add up."""
    return [row | {"is_cumulative": "1"} for row in rows]


@pytest.mark.parametrize(
    ("rule", "forge"),
    [
        ("votes_exceed_bulletins", no_bulletins),
        ("votes_exceed_bulletins", bulletins_later),
        ("votes_exceed_bulletins", told_as_cumulative),
        ("duplicate_transaction", first_twice),
        ("duplicate_transaction", first_under_another_contract),
    ],
)
def test_a_bundle_that_was_tampered_with_does_not_hold(
    exported: Exported, rule: str, forge: Callable[[Cells], Cells], tmp_path: Path
) -> None:
    """Lines left out, written twice, or told to stand elsewhere."""
    bundle = exported.copy(rule, tmp_path)
    rewrite(bundle, forge)
    status, told = check(bundle)
    assert (1, False) == (status, "it holds" in told), told


def test_lines_left_out_are_found_in_the_files(exported: Exported, tmp_path: Path) -> None:
    """Though the counts of finding.json were made to fit."""
    bundle = exported.copy("votes_exceed_bulletins", tmp_path)

    def none_issued(told: Numbers) -> None:
        for file in told["files"]:
            file["bulletins"] = 0

    rewrite(bundle, no_bulletins)
    retell(bundle, none_issued)
    status, told = check(bundle, exported.folder)
    assert (1, True) == (status, "left out of the bundle" in told), told
    status, told = check(bundle)
    assert "was not checked against the files" in told


def test_a_folder_without_the_file_cannot_tell(exported: Exported, tmp_path: Path) -> None:
    """That a file is not here says nothing against the bundle; ZIPs are looked into."""
    (tmp_path / "empty").mkdir()
    bundle = exported.bundles["votes_exceed_bulletins"]
    status, told = check(bundle, tmp_path / "empty")
    assert (2, True) == (status, "not here" in told), told
    status, told = check(bundle, exported.folder)
    assert (0, True) == (status, "none is left out" in told), told


def test_a_file_that_the_finding_does_not_know_may_tell_more(
    exported: Exported, tmp_path: Path
) -> None:
    """Such as the next hour, which holds the bulletins."""
    files = shutil.copytree(exported.folder, tmp_path / "files")
    (one,) = files.rglob("*_0800-0900.csv")
    one.with_name(one.name.replace("_0800-0900", "_0700-0800")).write_bytes(b"later\n")
    status, told = check(exported.bundles["votes_exceed_bulletins"], files)
    assert (2, True) == (status, "does not know" in told), told


def test_what_could_not_be_read_cannot_be_checked(exported: Exported, tmp_path: Path) -> None:
    """An archive that was pruned is nothing against the finding."""
    bundle = exported.copy("votes_exceed_bulletins", tmp_path)
    rewrite(bundle, lambda _rows: [])
    retell(bundle, lambda told: told.update(unread=["x.csv: it is no longer there"]))
    status, told = check(bundle)
    assert (2, True) == (status, "could not be read" in told), told


def test_rows_that_were_refused_for_what_the_script_does_not_know(
    exported: Exported, tmp_path: Path
) -> None:
    """Their reasons are told; where it finds no fault itself, it says so and which lines."""
    status, told = check(exported.bundles["reject_share"], exported.folder)
    assert (0, True) == (status, "2 of 2 lines" in told), told
    bundle = exported.copy("reject_share", tmp_path)
    good = Voting().vote(490)

    def mended(told: Numbers) -> None:
        where = {name: told["rejected"][0][name] for name in ("file", "file_sha256", "line")}
        told["mended"] = [where | {"text": good}]

    retell(bundle, mended)
    status, told = check(bundle)
    assert (2, True) == (status, "nothing is wrong here with line" in told), told


MUTATIONS = (
    *((0, ""), (1, "105"), (2, "0OIl"), (3, "x"), (3, "-1"), (4, "-5"), (4, "9" * 18)),
    *((4, "253402300800000"), (4, " 1710489600000"), (4, "1_710489600000"), (5, ""), (5, "abc")),
    *((6, "abc"), (6, "-1"), (6, "9" * 30), (7, "x" * 500), (8, '{"a":1}'), (8, "5"), (9, "5")),
    *((8, '[{"key":"operation","intValue":3}]'), (9, '[{"stringValue":"x"}]'), (10, "[1]")),
    *((10, "{"), (10, '{"a":NaN}'), (10, '{"a":"\\ud800"}'), (10, '{"a":"\\u0000"}')),
    *((10, '{"a":"\\u0041"}'), (11, "2"), (11, "0"), (11, "+1"), (11, ""), (9, ""), (8, "")),
)


@pytest.mark.parametrize(("at", "text"), MUTATIONS)
def test_the_script_knows_the_reasons_for_which_rows_are_refused(at: int, text: str) -> None:
    """Column by column, as whoever reads the files does."""
    voting = Voting()
    raw = unsound(voting.vote(490), at, text).encode()
    validator = Validator(voting.contract, max_entries=1_000, max_json_depth=64, raw_text_bytes=99)
    is_taken = isinstance(validator.check(Row(1, len(raw), raw, is_too_long=False)), Record)
    assert is_taken == is_sound(row_of({}, 1, raw))


def test_a_bundle_that_is_not_whole_cannot_tell(exported: Exported, tmp_path: Path) -> None:
    """A table that is not there is nothing against the finding."""
    bundle = exported.copy("votes_exceed_bulletins", tmp_path)
    (bundle / "lines.csv").unlink()
    status, told = check(bundle)
    assert (2, True) == (status, "cannot be checked" in told), told


def test_twins_are_counted_on_both_sides(exported: Exported, tmp_path: Path) -> None:
    """Of two territories with the same roll, one other ballot is the twin of one only."""
    bundle = exported.copy("reject_share", tmp_path)
    rewrite(bundle, lambda _rows: [])
    (bundle / "slots.csv").write_text("contract,slot,rows\n")
    rolls = "contract,region,election,roll\nA,1,duma,1000\nB,1,duma,1000\nC,1,mayor,1000\n"
    (bundle / "rolls.csv").write_text(rolls)
    finding = {"rule": "constituency_missing", "class": "feed", "subject": "twin mayor"}
    details = {"roll": 1000, "ballot": "mayor"}
    for contract, expected in (("A", 1), ("B", 0)):
        retell(bundle, partial(dict.update, **finding, contract_id=contract, details=details))
        assert expected == check(bundle)[0], contract


def test_the_window_of_the_settings_is_told_and_used(exported: Exported, tmp_path: Path) -> None:
    """A contract need not say when its voting ends."""
    bundle = exported.copy("votes_exceed_bulletins", tmp_path)
    grace = {"vote_grace_minutes": 0, "bulletin_grace_minutes": 0}
    details = {"threshold": grace, "tx_ids": [], "slots": ["2024-09-06_0900-1000"]}
    told = {"rule": "outside_voting_window", "subject": "accepted", "details": details}
    retell(bundle, lambda one: one.update(told))
    assert 1 == check(bundle)[0]
    retell(bundle, lambda one: one.update(voting={"end": "2024-09-06T09:00:00+00:00"}))
    status, words = check(bundle)
    assert 0 == status, words


def test_a_mended_row_counts_as_a_person_wrote_it(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """The bundle brings both texts, and the script says for which lines it took the other."""
    fixed = voting.vote(482)
    rows = [voting.start(480), voting.vote(481), broken(fixed)]
    ingest.take(drop_file(voting.name(8), rows))
    with sessions() as session:
        job = session.scalars(select(FileProcessing)).one()
    assert ["stored"] == [answer.became for answer in take_back(ingest, job, {3: fixed})]
    with sessions() as session:
        alert = session.scalars(select(Alert).where(Alert.type == "votes_exceed_bulletins")).one()
    bundle = export(sessions, alert, tmp_path, Settings())
    status, told = check(bundle)
    assert (0, True) == (status, "2 more votes" in told), told
    assert f"mended them: {voting.name(8)} line 3" in told
