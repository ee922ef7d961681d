"""The spine, in flow order: watch, ledger, read, validate, load, stats, alerts; see `ingest`."""
