"""dlt's filesystem source into a database: columns as it finds them."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"

import dlt
from dlt.destinations import postgres, sqlalchemy
from dlt.sources.filesystem import filesystem, read_csv
from sqlalchemy import make_url

NAMES = (
    *("tx_id", "type", "signature", "version", "timestamp", "sender", "fee", "fee_asset_id"),
    *("params", "diff", "extra", "rollback"),
)


def main(url: str, files: list[str]) -> None:
    """Load the files; they lie in one folder, linked there."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "files"
        source.mkdir()
        for file in files:
            (source / Path(file).name).symlink_to(file)
        began = time.monotonic()
        pipeline = dlt.pipeline(
            pipeline_name="bench",
            pipelines_dir=f"{folder}/pipelines",
            destination=_destination(url),
            dataset_name="main" if url.startswith("sqlite") else "exports",
        )
        rows = filesystem(bucket_url=source.as_uri(), file_glob="*.csv") | read_csv(
            chunksize=10_000, sep=";", header=None, names=list(NAMES), quoting=csv.QUOTE_NONE
        )
        pipeline.run(rows.with_name("transaction"))
        seconds = time.monotonic() - began
        counts = pipeline.last_trace.last_normalize_info.row_counts
    print(json.dumps({"rows": counts["transaction"], "seconds": seconds}))


def _destination(url: str) -> object:
    if url.startswith("sqlite"):
        return sqlalchemy(url)
    # dlt asks for a host and a password; the server's socket needs neither.
    parsed = make_url(url)
    return postgres(
        {
            "database": parsed.database,
            "username": parsed.username,
            "password": "none",
            "host": quote(str(parsed.query["host"]), safe=""),
            "port": 5432,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
