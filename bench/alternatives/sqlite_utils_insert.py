"""`sqlite-utils insert`, the command itself, once for each file."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

# Made for CSVs with quotes: an export has none, so a character that no export holds stands in.
OPTIONS = ("--csv", "--no-headers", "--delimiter", ";", "--quotechar", "\x01")


def main(url: str, files: list[str]) -> None:
    """Load the files."""
    database = url.removeprefix("sqlite:///")
    command = str(Path(sys.executable).with_name("sqlite-utils"))
    began = time.monotonic()
    for file in files:
        subprocess.run([command, "insert", database, "transaction", file, *OPTIONS], check=True)
    seconds = time.monotonic() - began
    (rows,) = sqlite3.connect(database).execute('SELECT count(*) FROM "transaction"').fetchone()
    print(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
