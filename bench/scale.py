"""How large everything is that is measured: for development, for the usual run, in full."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of one kind of run; rows are about that many, since turnout is drawn."""

    name: str
    repeats: int
    eight_rows: int
    big_rows: int
    zips: int
    republished_zips: int
    alternative_files: int
    alternative_repeats: int
    small_rows: int
    memory_rows: int
    growth_sizes: tuple[int, ...]
    growth_files: int
    growth_zips: int
    growth_repeats: int
    latency_files: int
    stage_zips: int
    election_part: int


USUAL = Scale(
    name="usual",
    repeats=3,
    eight_rows=60_000,
    big_rows=350_000,
    zips=2_000,
    republished_zips=300,
    alternative_files=1,
    alternative_repeats=2,
    small_rows=50_000,
    memory_rows=500_000,
    growth_sizes=(100_000, 1_000_000, 2_500_000),
    growth_files=1,
    growth_zips=200,
    growth_repeats=2,
    latency_files=1_500,
    stage_zips=500,
    election_part=100,
)
FULL = Scale(
    name="full",
    repeats=5,
    eight_rows=60_000,
    big_rows=350_000,
    zips=2_000,
    republished_zips=1_000,
    alternative_files=2,
    alternative_repeats=3,
    small_rows=50_000,
    memory_rows=5_000_000,
    growth_sizes=(100_000, 1_000_000, 5_000_000, 10_000_000),
    growth_files=2,
    growth_zips=300,
    growth_repeats=3,
    latency_files=6_000,
    stage_zips=2_000,
    election_part=20,
)
QUICK = Scale(
    name="quick",
    repeats=1,
    eight_rows=1_500,
    big_rows=6_000,
    zips=40,
    republished_zips=10,
    alternative_files=1,
    alternative_repeats=1,
    small_rows=1_500,
    memory_rows=6_000,
    growth_sizes=(10_000, 20_000),
    growth_files=1,
    growth_zips=10,
    growth_repeats=1,
    latency_files=100,
    stage_zips=40,
    election_part=5_000,
)
SCALES = {scale.name: scale for scale in (QUICK, USUAL, FULL)}
