"""Targets for coverage-guided fuzzing: each has `check(data)`, which fails where a claim does.

`make fuzz` runs them with atheris; `tests/test_fuzz_corpus.py` replays the kept inputs without.
"""
