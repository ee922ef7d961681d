"""The benchmark: ingestd against the database below it, and against what people would use instead.

`python -m bench` runs the scenarios, keeps their figures in `bench/results/latest.json` and writes
docs/performance.md from them; `make bench` calls it.
"""
