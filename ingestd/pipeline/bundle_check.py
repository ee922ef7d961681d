"""Check a finding of ingestd again from its raw lines.

Call it as python3 check.py [FOLDER OF THE FILES]. It needs nothing but Python; beside it lie
finding.json and lines.csv. Who alters a line can alter its SHA-256 beside it: with a folder that
holds the delivered CSV files, each line is looked up in the file of its SHA-256.
Exit status: 0 it holds, 1 it does not, 2 these lines alone cannot tell.
"""

# ruff: noqa: T201 - it stands alone, and talks to a person

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ID, TS, SENDER, PARAMS, DIFF, SIGN = 0, 4, 5, 8, 9, 11
COLUMNS = 12
HERE = Path(__file__).resolve().parent


def read_lines() -> list[dict[str, str]]:
    """The raw lines, each with its file, number and SHA-256."""
    csv.field_size_limit(1 << 30)
    with (HERE / "lines.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def altered(lines: list[dict[str, str]]) -> list[str]:
    """Lines whose text is not what its SHA-256 says."""
    return [
        f"{line['file']} line {line['line']}"
        for line in lines
        if hashlib.sha256(line["text"].encode()).hexdigest() != line["line_sha256"]
    ]


def columns_of(line: dict[str, str]) -> list[str]:
    """The twelve columns of a line; JSON columns may hold semicolons."""
    parts = line["text"].rstrip("\r\n").split(";")
    if len(parts) == COLUMNS:
        return parts
    body = ";".join(parts[8:-2])
    cut = max(body.find("];["), 0) + 1
    return [*parts[:8], body[:cut], body[cut + 1 :], *parts[-2:]]


def by_id(lines: list[dict[str, str]]) -> dict[str, list[tuple[dict[str, str], list[str]]]]:
    """The lines of each transaction."""
    found = defaultdict(list)
    for line in lines:
        columns = columns_of(line)
        found[columns[ID]].append((line, columns))
    return found


def plus(rows: list[tuple[dict[str, str], list[str]]]) -> list[tuple[dict[str, str], list[str]]]:
    """The rows that are no rollbacks."""
    return [row for row in rows if row[1][SIGN].strip() != "-1"]


def check(finding: dict[str, Any], lines: list[dict[str, str]]) -> bool | None:  # noqa: PLR0911 - rule by rule
    """Say whether the finding holds by these lines and counts; None where they cannot tell."""
    ids, details, files = by_id(lines), finding["details"], finding["files"]
    rule = finding["rule"]
    if rule == "votes_exceed_bulletins":
        hourly = [one for one in files if one["slot"] and not one["is_cumulative"]]
        slot = details["slot"]
        until = [one for one in hourly if slot == "all files" or one["slot"] <= slot]
        outside = details["total_bulletins"] - sum(one["bulletins"] for one in hourly)
        bulletins = outside + sum(one["bulletins"] for one in until)
        return bool(slot == "all files" or sum(one["votes"] for one in until) > bulletins)
    if rule == "turnout_over_registered":
        return bool(details["bulletins"] > details["registered"])
    if rule == "duplicate_vote_key" and details.get("sender"):
        voted = {
            tx_id
            for tx_id, rows in ids.items()
            for _line, columns in plus(rows)
            if columns[SENDER] == details["sender"] and '"VOTE_' in columns[DIFF]
        }
        return len(voted) > 1
    if rule == "duplicate_transaction":
        return any(len(plus(rows)) > 1 for rows in ids.values())
    if rule == "transaction_rewritten":
        return any(len({tuple(row[1:]) for _l, row in plus(rows)}) > 1 for rows in ids.values())
    if rule == "transaction_in_two_contracts":
        return any(len({line["contract"] for line, _c in rows}) > 1 for rows in ids.values())
    if rule == "bulletin_for_many":
        return any(row[PARAMS].count("userId") > 1 for rows in ids.values() for _l, row in rows)
    if rule == "unknown_operation":
        told = json.dumps(details["operation"])
        return any(told in row[PARAMS] for rows in ids.values() for _line, row in rows)
    if rule == "rolled_back_for_good":
        return any(len(plus(rows)) < len(rows) for rows in ids.values())
    return None


def strange_lines(folder: Path, lines: list[dict[str, str]]) -> list[str]:
    """Lines that do not stand so in a file of the folder with that SHA-256."""
    wanted = {line["file_sha256"] for line in lines}
    here: dict[str, list[bytes]] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() == ".csv" and path.is_file():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if digest in wanted:
                end = b"\n" if b"\n" in content else b"\r"
                here[digest] = content.removeprefix(b"\xef\xbb\xbf").split(end)
    return [
        f"{line['file']} line {line['line']}"
        for line in lines
        if _raw(here.get(line["file_sha256"], []), int(line["line"])) != line["text"].encode()
    ]


def _raw(rows: list[bytes], number: int) -> bytes | None:
    return rows[number - 1].removesuffix(b"\r") if 0 < number <= len(rows) else None


def main() -> int:
    """Tell what was found out; the exit status says it, too."""
    finding = json.loads((HERE / "finding.json").read_text(encoding="utf-8"))
    lines = read_lines()
    print(finding["title"])
    if bad := altered(lines):
        print(f"altered: {', '.join(bad)}")
        return 1
    print(f"{len(lines)} raw lines, each as its SHA-256 says")
    if len(sys.argv) > 1 and (strange := strange_lines(Path(sys.argv[1]), lines)):
        print(f"not so in these files: {', '.join(strange)}")
        return 1
    holds = check(finding, lines)
    if holds is None:
        print("these lines alone cannot tell: see the formula in finding.txt")
        return 2
    print("it holds" if holds else "it does NOT hold by these lines")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
