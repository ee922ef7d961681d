"""The simulator is held to its own promises, and its truth to a naive recount of its bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest

from ingestd.simulate import Packing, Plan, Truth, defect_descriptions, defect_names, simulate
from ingestd.simulate.ids import base58_texts
from ingestd.simulate.rows import Office, plain_rows

RULES: dict[str, set[str]] = {
    "missing_hours": {"missing_hour"},
    "republished_changed": {"slot_republished"},
    "republished_gone": {"history_withdrawn", "slot_republished"},
    "republished_added": {"slot_republished"},
    "republished_same": {"slot_republished"},
    "withdrawn": {"history_withdrawn", "slot_republished"},
    "revotes": {"duplicate_vote_key"},
    # Shown with the content that a later hour gave it.
    "rewritten": {"transaction_rewritten", "ts_out_of_slot"},
    "too_many_bad": {"file_rejected", "missing_hour"},
    "bad_rows": {"reject_share"},
    "unknown_operation": {"unknown_operation"},
    "rollback_final": {"rolled_back_for_good"},
    "rollback_first": {"rolled_back_for_good"},
    "outside_window": {"outside_voting_window"},
    "wrong_clock": {"outside_voting_window"},
    "far_clock": {"ts_out_of_slot"},
    "late_key": {"vote_without_main_key"},
    "second_key": {"lifecycle_order"},
    "after_finish": {"lifecycle_order", "outside_voting_window"},
    "early_decryption": {"lifecycle_order"},
    "late_list": {"roll_changed_during_voting"},
    "purge": {"roll_changed_during_voting"},
    "for_many": {"bulletin_for_many"},
    "twice_delivered": {"duplicate_transaction"},
    "two_contracts": {"transaction_in_two_contracts"},
    "rollback_burst": {"rolled_back_for_good", "rollback_burst"},
    "refused_again": {"duplicate_vote_key"},
    "late_file": {"late_file"},
    "constituency_missing": {"constituency_missing"},
    "results_more": {"results_mismatch"},
    "results_fewer": {"results_mismatch"},
    "results_twice": {"results_mismatch"},
    "over_registered": {"turnout_over_registered"},
    "stuffing": {"votes_exceed_bulletins"},
}
# A whole file knows what an hour that is missing, or gone, had held.
RULES_WITH_WHOLE: dict[str, set[str]] = {
    "missing_hours": set(),
    "too_many_bad": {"file_rejected"},
    "republished_gone": {"slot_republished", "whole_export_differs", "results_mismatch"},
    "whole_lacks": {"whole_export_differs"},
}
WHOLE_DEFECTS = (
    *("rollback_final", "rollback_return", "rollback_refail", "rollback_first", "rejected"),
    *("revote_blocked", "revotes", "rewritten", "bad_rows", "unknown_operation"),
    *("over_registered", "stuffing", "late_key", "results_more", "rollback_burst"),
)

Event = tuple[bool, str, int, int, list[str]]


def read_member(directory: Path, record: dict[str, Any]) -> bytes:
    """The CSV bytes of a file of the truth."""
    data: bytes = (directory / record["path"]).read_bytes()
    if record["member"] is None:
        return data
    parts: list[str] = record["member"].split("/")
    for part in parts:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(part)
    return data


def columns_of(line: str) -> list[str] | None:
    """Twelve columns, or None for a row that is no row; the poor man's validation."""
    parts = line.split(";")
    if len(parts) < 12:
        return None
    rest = ";".join(parts[8:]).rsplit(";", 2)
    if len(rest) != 3:
        return None
    if parts[11:] == ["-1"] and not any(parts[1:11]):
        return parts
    body = rest[0]
    cut = next((at + 1 for at in range(len(body)) if body[at : at + 3] in ("];[", "};[")), None)
    if cut is None:
        return None
    columns = [*parts[:8], body[:cut], body[cut + 1 :], *rest[1:]]
    return columns if is_good(columns) else None


def is_good(columns: list[str]) -> bool:
    """Whether the columns are what format.md asks for."""
    try:
        params = json.loads(columns[8] if columns[8][0] == "[" else f"[{columns[8]}]")
        values = {entry["key"]: entry for entry in params}
        int(columns[4])
        needed = {
            "vote": ("vote", "blindSig"),
            "blindSigIssue": ("data",),
            "addVotersList": ("userIdHashes",),
            "addToVotersList": ("userIdHashes",),
            "results": ("results",),
        }.get(values["operation"]["stringValue"] if "operation" in values else "", ())
        ballot = values.get("vote", {}).get("binaryValue", "")
        return (
            len(base58.b58decode(columns[0])) == 32
            and columns[1] in ("103", "104")
            and all(key in values for key in needed)
            and "@" not in ballot
        )
    except (ValueError, KeyError, TypeError):
        return False


def parsed(data: bytes) -> tuple[list[tuple[int, list[str]]], int, int]:
    """Good rows with their line numbers, and how many rows are bad and blank."""
    rows, bad, blank = [], 0, 0
    lines = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1):
        if not line:
            blank += 1
            continue
        try:
            columns = columns_of(line.decode())
        except UnicodeDecodeError:
            columns = None
        if columns is None or b"\x00" in line:
            bad += 1
        else:
            rows.append((number, columns))
    return rows, bad, blank


def recount(directory: Path, truth: Truth) -> dict[str, dict[str, Any]]:
    """Statuses and hours of every contract, from the bytes and the outcome of each file alone."""
    events: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    gone: dict[str, set[str]] = defaultdict(set)
    for record in truth.files:
        rows, bad, blank = parsed(read_member(directory, record))
        signs = Counter(columns[11] == "-1" for _, columns in rows)
        told = (record["plus"], record["rollbacks"], record["bad"], record["blank"])
        assert (signs[False], signs[True], bad, blank) == told, record["path"]
        assert record["lines"] == sum(told)
        for number, columns in rows:
            tx_id, whole = columns[0], record["slot"] == "whole"
            if record["outcome"] == "superseded":
                gone[record["contract"]].add(tx_id)
            elif record["outcome"] == "completed":
                sign = -1 if columns[11] == "-1" else 1
                event = (whole, record["slot"], number, sign, columns)
                events[record["contract"]][tx_id].append(event)
    return {
        contract: counted(events[contract], gone[contract] - set(events[contract]))
        for contract in truth.constituencies
    }


def counted(transactions: dict[str, list[Event]], withdrawn: set[str]) -> dict[str, Any]:
    """The counts of one contract."""
    statuses, hours = Counter({"withdrawn": len(withdrawn)}), Counter[tuple[int, str]]()
    by_sender: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for tx_id, events in transactions.items():
        net = 0
        for sign in (1, -1):
            cumulative = sum(event[3] == sign for event in events if event[0])
            net += sign * max(sum(event[3] == sign for event in events if not event[0]), cumulative)
        shown = max((event for event in events if event[3] > 0), key=lambda event: event[:3])[4]
        status = "rejected" if '"FAIL_' in shown[9] else "accepted"
        status = status if net > 0 else "rolled_back"
        statuses[status] += 1
        hour = int(shown[4]) // 3_600_000
        for name, amount in amounts(shown, status):
            hours[hour, name] += amount
        if '"stringValue":"vote"' in shown[8] and status == "accepted":
            by_sender[shown[5]].append((int(shown[4]), tx_id))
    for votes in by_sender.values():
        for ts, _ in sorted(votes)[1:]:
            hours[ts // 3_600_000, "revotes"] += 1
    return {"statuses": +statuses, "hours": +hours}


def amounts(columns: list[str], status: str) -> list[tuple[str, int]]:
    """What one transaction adds to its hour."""
    if status == "rolled_back":
        return [("rolled_back", 1)]
    found = [("transaction_count", 1)]
    text = columns[8] if columns[8][0] == "[" else f"[{columns[8]}]"
    params = {entry["key"]: entry for entry in json.loads(text)}
    operation = params.get("operation", {}).get("stringValue")
    ballots = {
        "vote": ("votes_cast", "votes_rejected"),
        "blindSigIssue": ("bulletins_issued", "issues_rejected"),
    }
    if operation in ballots:
        found.append((ballots[operation][status == "rejected"], 1))
    if "userIdHashes" in params:
        size = len(json.loads(params["userIdHashes"]["stringValue"]))
        found.append(
            ("list_removed" if operation == "removeFromVotersList" else "list_added", size)
        )
    return found


def hour_number(name: str) -> int:
    """Hours since the epoch."""
    return int(np.datetime64(name.removesuffix("Z"), "h").astype(np.int64))


def assert_recounted(directory: Path, truth: Truth) -> None:
    """The truth agrees with the naive recount in statuses and in every hour."""
    for contract, found in recount(directory, truth).items():
        told = truth.constituencies[contract]
        hours = Counter(
            {
                (hour_number(hour), name): count
                for hour, counts in told["hours"].items()
                for name, count in counts.items()
            }
        )
        assert +Counter(told["statuses"]) == found["statuses"]
        assert +hours == found["hours"]


def digest(directory: Path) -> str:
    """One hash over all names and bytes."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        total.update(str(path.relative_to(directory)).encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


@pytest.mark.parametrize("packing", ["csv", "zip", "zip-of-zips"])
def test_the_same_plan_writes_the_same_bytes(tmp_path: Path, packing: Packing) -> None:
    """A plan determines everything, ZIP headers and truth.json included."""
    plan = Plan(rolls=(40, 60), constituencies=2, packing=packing, defects=("republished_gone",))
    simulate(tmp_path / "one", plan)
    simulate(tmp_path / "two", plan)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_another_seed_is_another_election(tmp_path: Path) -> None:
    """Seeds share no contract."""
    plans = (Plan(seed=seed, rolls=(20,), constituencies=1) for seed in (1, 2))
    one, two = (simulate(tmp_path / str(plan.seed), plan) for plan in plans)
    assert not set(one.constituencies) & set(two.constituencies)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """Nothing is mixed into what stands there."""
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        simulate(tmp_path, Plan())


def test_an_unknown_defect_is_refused_by_name(tmp_path: Path) -> None:
    """The message names the known ones."""
    with pytest.raises(ValueError, match=r"no_such.*rollback_final"):
        simulate(tmp_path, Plan(defects=("no_such",)))


@pytest.mark.parametrize("size", [32, 64])
def test_ids_decode_to_their_exact_size(size: int) -> None:
    """Also the short ones, and those with a leading 1."""
    texts = base58_texts(np.random.default_rng(3), 20_000, size)
    assert {size} == {len(base58.b58decode(text)) for text in texts}
    assert all(base58.b58encode(base58.b58decode(text)) == text for text in texts[:2_000])
    assert any(text.startswith(b"1") for text in texts)


def test_id_lengths_are_those_of_random_values() -> None:
    """94.2 % of ids have 44 characters, 5.7 % have 43."""
    lengths = Counter(map(len, base58_texts(np.random.default_rng(4), 50_000, 32)))
    assert lengths[44] / 50_000 == pytest.approx(0.942, abs=0.005)
    assert lengths[43] / 50_000 == pytest.approx(0.057, abs=0.005)


@pytest.mark.parametrize(
    ("options", "size"), [(2, 2_225), (3, 2_693), (5, 3_621), (6, 4_089), (10, 5_949), (25, 12_929)]
)
def test_rows_are_as_large_as_real_ones(options: int, size: int) -> None:
    """Votes within 10 % of the table in format.md, issues between 1.3 and 1.9 KB."""
    office = Office(contract="C", region_code="77", uik=150, options=options, server="S" * 88)
    rng = np.random.default_rng(1)
    vote, issue = plain_rows(rng, office, [1_725_600_087_000] * 2, [True, False])
    assert len(vote) + 1 == pytest.approx(size, rel=0.10)
    assert 1_300 <= len(issue) <= 1_900


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("hours", [1, 12, 60])
def test_a_clean_election_raises_nothing(tmp_path: Path, seed: int, hours: int) -> None:
    """No defect, no alert, and every vote has a bulletin before it in chain and time."""
    truth = simulate(tmp_path, Plan(seed=seed, hours=hours, voters_median=60, voters_max=300))
    assert truth.alerts == []
    for contract, found in truth.constituencies.items():
        margins = itertools.accumulate(
            hour["bulletins_issued"] - hour["votes_cast"] for hour in found["hours"].values()
        )
        assert min(margins) >= 0
        assert found["bulletins_issued"] <= found["registered_voters"]
        assert lowest_margin(tmp_path, truth, contract) >= 0


def lowest_margin(directory: Path, truth: Truth, contract: str) -> int:
    """The least that bulletins are ahead of votes, over all lines in order."""
    margin, lowest = 0, 0
    for record in sorted(truth.files, key=lambda record: str(record["slot"])):
        if record["contract"] == contract:
            for line in read_member(directory, record).decode().splitlines():
                margin += ('"BLINDSIG_' in line) - ('"VOTE_' in line)
                lowest = min(lowest, margin)
    return lowest


@pytest.mark.parametrize("name", defect_names())
@pytest.mark.parametrize("whole", [False, True])
def test_every_defect_is_told_and_can_be_recounted(tmp_path: Path, name: str, whole: bool) -> None:
    """A defect names its rows, its files hold them, and its alert is the only one."""
    number = 3 if name == "late_file" else 2
    plan = Plan(
        rolls=(300, 15, 15)[:number],
        constituencies=number,
        hours=5,
        options=(2,),
        whole=whole,
        defects=(name,),
    )
    truth = simulate(tmp_path, plan)
    assert truth.defects[name]
    for finding in truth.defects[name]:
        if finding["path"] is not None:
            text = (tmp_path / finding["path"]).read_bytes()
            lines = text.replace(b"\xef\xbb\xbf", b"").split(b"\n")
            ids = {lines[number - 1].split(b";")[0].decode() for number in finding["lines"]}
            assert set(finding["tx_ids"]) <= ids
    expected = RULES.get(name, set())
    if whole:
        expected = RULES_WITH_WHOLE.get(name, expected)
    assert expected == {alert["rule"] for alert in truth.alerts}
    assert_recounted(tmp_path, truth)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("packing", ["csv", "zip", "zip-of-zips"])
def test_all_defects_at_once_can_be_recounted(tmp_path: Path, seed: int, packing: Packing) -> None:
    """In one constituency or in three, with a whole file or without."""
    plan = Plan(
        seed=seed,
        constituencies=1 + 2 * (seed % 2),
        voters_median=100,
        voters_max=300,
        hours=12 if seed < 3 else 4,
        packing=packing,
        folders=seed != 2,
        whole=seed == 2,
        empty_hours=seed != 3,
        defects=defect_names(),
    )
    truth = simulate(tmp_path, plan)
    assert set(defect_names()) == set(truth.defects)
    assert_recounted(tmp_path, truth)


def test_a_whole_file_alone_can_be_recounted(tmp_path: Path) -> None:
    """Without hourly files all events stand in one file in order."""
    plan = Plan(rolls=(200,), constituencies=1, hourly=False, whole=True, defects=WHOLE_DEFECTS)
    truth = simulate(tmp_path, plan)
    assert [record["slot"] for record in truth.files] == ["whole"]
    assert_recounted(tmp_path, truth)


def test_defects_of_hourly_files_need_hourly_files(tmp_path: Path) -> None:
    """A plan that cannot show a defect is refused."""
    with pytest.raises(ValueError, match="missing_hours"):
        simulate(tmp_path, Plan(hourly=False, whole=True, defects=("missing_hours",)))


def test_sums_agree_with_hours_and_totals(tmp_path: Path) -> None:
    """Hours add up to their constituency, constituencies to the totals."""
    truth = simulate(tmp_path, Plan(voters_median=60, defects=("rollback_final", "revotes")))
    for key in ("bulletins_issued", "votes_cast", "votes_rejected", "revotes"):
        found = truth.constituencies.values()
        assert truth.totals[key] == sum(one[key] for one in found)
        for one in found:
            assert one[key] == sum(hour[key] for hour in one["hours"].values())


def test_truth_on_disk_is_what_is_returned(tmp_path: Path) -> None:
    """truth.json and the returned value have the same keys."""
    truth = simulate(tmp_path, Plan(rolls=(20,), constituencies=1))
    told = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert truth.constituencies == told["constituencies"]
    assert truth.files == told["files"]
    assert "transactions" not in told


def test_transactions_are_told_when_asked(tmp_path: Path) -> None:
    """Every transaction is there with the status that is counted."""
    plan = Plan(rolls=(160,), constituencies=1, defects=defect_names(), transactions_in_truth=True)
    truth = simulate(tmp_path, plan)
    assert truth.transactions is not None
    for contract, found in truth.transactions.items():
        statuses = Counter(one["status"] for one in found.values())
        assert statuses == +Counter(truth.constituencies[contract]["statuses"])
        assert found[contract]["type"] == "createContract"


def test_bad_rows_stay_under_the_error_budget(tmp_path: Path) -> None:
    """Only the file that is meant to be refused has more bad rows than max(20, 5 %)."""
    truth = simulate(tmp_path, Plan(rolls=(150,), constituencies=1, defects=defect_names()))
    for record in truth.files:
        rows = record["lines"] - record["blank"]
        over = record["bad"] > max(20, 0.05 * rows)
        assert over == (record["outcome"] == "quarantined")


def test_duplicates_have_the_bytes_of_another_file(tmp_path: Path) -> None:
    """Under another tail, in another folder, and packed the other way."""
    truth = simulate(tmp_path, Plan(rolls=(160,), constituencies=1, defects=("duplicates",)))
    seen = Counter(
        hashlib.sha256(read_member(tmp_path, record)).digest()
        for record in truth.files
        if record["bytes"]
    )
    assert sum(record["outcome"] == "duplicate" for record in truth.files) == 3
    assert sum(count == 2 for count in seen.values()) == 3


def test_sizes_and_paths_are_told(tmp_path: Path) -> None:
    """Every file on disk is in the truth, with the size of its CSV."""
    truth = simulate(tmp_path, Plan(rolls=(160,), constituencies=1, defects=defect_names()))
    drops = [path for drop in ("drop", "drop-2") for path in (tmp_path / drop).rglob("*")]
    on_disk = {str(path.relative_to(tmp_path)) for path in drops if path.is_file()}
    assert on_disk == {record["path"] for record in truth.files}
    for record in truth.files:
        assert record["bytes"] == len(read_member(tmp_path, record))


def test_the_shape_follows_the_published_profile(tmp_path: Path) -> None:
    """The opening hour of a long voting brings about a fifth of the ballots."""
    truth = simulate(tmp_path, Plan(hours=60, voters_median=200, voters_max=600))
    issued: Counter[int] = Counter()
    for found in truth.constituencies.values():
        names = list(found["hours"])
        start = next(
            hour_number(name) for name in names if found["hours"][name]["bulletins_issued"]
        )
        for name, counts in found["hours"].items():
            issued[hour_number(name) - start] += counts["bulletins_issued"]
    assert 0.12 <= issued[0] / sum(issued.values()) <= 0.40


def test_voters_lists_are_split_and_add_up(tmp_path: Path) -> None:
    """The lists' sizes sum up to the roll; each row holds its hashes twice."""
    truth = simulate(tmp_path, Plan(rolls=(250,), constituencies=1, voters_per_list=100))
    added = next(iter(truth.constituencies.values()))["hours"]
    evening = added[min(added)]
    lines = read_member(tmp_path, truth.files[0]).decode().splitlines()
    lists = [line.split(";") for line in lines if '"addVotersList"' in line]
    assert [len(lists), evening["list_added"]] == [3, 250]
    assert all(columns[8].count('\\"') == columns[9].count('\\"') - 4 for columns in lists)


def test_csv_readers_see_twelve_columns(tmp_path: Path) -> None:
    """Exactly 11 semicolons in every line of a clean election."""
    truth = simulate(tmp_path, Plan(rolls=(40,), constituencies=1))
    for record in truth.files:
        text = read_member(tmp_path, record).decode()
        rows = csv.reader(io.StringIO(text), delimiter=";", quoting=csv.QUOTE_NONE)
        assert all(len(row) == 12 for row in rows)


def test_every_defect_has_a_description() -> None:
    """The help text leaves none out."""
    assert set(defect_names()) == set(defect_descriptions())
    assert all(defect_descriptions().values())
