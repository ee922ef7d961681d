"""Checking everything against everything: folders, ledger, tables, counts, alerts, bytes."""
