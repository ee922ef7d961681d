"""`pandas.read_csv` and `to_sql`: text columns as they are, nothing checked."""

from __future__ import annotations

import csv
import json
import sys
import time

import pandas as pd
from sqlalchemy import create_engine

NAMES = (
    *("tx_id", "type", "signature", "version", "timestamp", "sender", "fee", "fee_asset_id"),
    *("params", "diff", "extra", "rollback"),
)
ROWS_AT_ONCE = 10_000


def main(url: str, files: list[str]) -> None:
    """Load the files."""
    engine = create_engine(url)
    began, rows = time.monotonic(), 0
    for file in files:
        frames = pd.read_csv(
            file,
            sep=";",
            header=None,
            names=list(NAMES),
            quoting=csv.QUOTE_NONE,
            chunksize=ROWS_AT_ONCE,
        )
        for frame in frames:
            frame.to_sql("transaction", engine, if_exists="append", index=False)
            rows += len(frame)
    print(json.dumps({"rows": rows, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
