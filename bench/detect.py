"""How well the statistical rules tell noise from injections; writes docs/detection.md.

`make detect`, or `python -m bench.detect --help`. Clean elections and injections are written into
an SQLite database in memory through the real models and judged by the evaluator; further clean
elections are judged by the same rules without the tables, to make the bounds on false alerts
narrow. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2, norm
from sqlalchemy import bindparam, create_engine, insert, select, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from bench import study
from ingestd.config import Statistics
from ingestd.models import Alert, Base, Constituency, EvaluationDue, HourlyStats, table_of
from ingestd.pipeline import levels, surprises
from ingestd.pipeline.evaluator import Evaluator, Thresholds
from ingestd.pipeline.peers import Fleet
from ingestd.pipeline.surprises import Figures, Group, Surprise
from ingestd.thresholds import Alerts
from tests.elections import OPENS, Counts, Drawn, draw, key_of, twin, write

ROOT = Path(__file__).parent.parent
AT_ONCE = 20  # injections in one election: one for each region
ROLL = 2_000
HOURS = 60
SEED = 20_240_906
hourly, alert = table_of(HourlyStats), table_of(Alert)
constituency, due = table_of(Constituency), table_of(EvaluationDue)


@dataclass(frozen=True)
class Cell:
    """One kind of injection into a constituency of 2 000 voters."""

    name: str
    kind: str  # bulletins (with their votes), votes, silence, twin
    hours: tuple[int, ...]
    number: int
    bar: float | None = None
    study: str = ""  # recall of the alert study's detector


QUIET, MIDDLE, SECOND, OPENING, NIGHT = (13, 26, 49), (10,), (1,), (0,), (19,)
CELLS = (
    Cell("quiet hour (mu 18)", "bulletins", QUIET, 20, study=".15"),
    Cell("quiet hour (mu 18)", "bulletins", QUIET, 40, 0.75, ".85"),
    Cell("quiet hour (mu 18)", "bulletins", QUIET, 100, 0.95, "1.0"),
    Cell("evening hour (mu 32)", "bulletins", MIDDLE, 40, study=".72"),
    Cell("evening hour (mu 32)", "bulletins", MIDDLE, 100, study="1.0"),
    Cell("second hour (mu 264)", "bulletins", SECOND, 200, study=".31"),
    Cell("opening (mu 402)", "bulletins", OPENING, 600, 0.95, "1.0"),
    Cell("night", "bulletins", NIGHT, 10, 0.95, "1.0"),
    Cell("one silent hour (mu ≥ 18)", "silence", (9, 10, 11), 0, 0.85),
    Cell("twin, quiet hour", "twin", QUIET, 8, 0.9),
    Cell("quiet hour (mu 18)", "votes", QUIET, 10),
    Cell("quiet hour (mu 18)", "votes", QUIET, 20),
    Cell("quiet hour (mu 18)", "votes", QUIET, 40),
    Cell("second hour (mu 264)", "votes", SECOND, 50),
    Cell("second hour (mu 264)", "votes", SECOND, 200),
    Cell("night", "votes", NIGHT, 10),
)


# Elections on tables ------------------------------------------------------------------------


@dataclass
class Judged:
    """An election in a database of its own, with an evaluator on it."""

    drawn: Drawn
    sessions: sessionmaker[Session]
    evaluator: Evaluator
    known: set[uuid.UUID] = field(default_factory=set)  # alerts before anything was injected

    def alerts(self) -> list[Any]:
        """The open alerts."""
        with self.sessions() as session:
            query = select(alert).where(alert.c.cleared_at.is_(None)).order_by(alert.c.id)
            return list(session.execute(query))

    def scores(self) -> list[float]:
        """The scores of all constituencies."""
        with self.sessions() as session:
            query = select(constituency.c.anomaly_score).order_by(constituency.c.contract_id)
            return [score or 0.0 for score in session.scalars(query)]

    def put(self, ones: Sequence[int], drawn: Drawn) -> None:
        """Let the hours of these constituencies say what `drawn` says."""
        rows = [
            {
                "one": key_of(one),
                "at": OPENS + timedelta(hours=each),
                "bulletins_issued": int(drawn.bulletins[one, each]),
                "votes_cast": int(drawn.votes[one, each]),
            }
            for one in ones
            for each in range(HOURS)
        ]
        change = update(hourly).where(
            hourly.c.constituency_id == bindparam("one"), hourly.c.hour == bindparam("at")
        )
        marks = [{"id": uuid.uuid4(), "constituency_id": key_of(one)} for one in ones]
        with self.sessions.begin() as session:
            session.connection().execute(change, rows)
            session.connection().execute(insert(due), marks)
        self.evaluator.work_off()


def thresholds() -> Thresholds:
    """The defaults."""
    told = Statistics()
    return Thresholds(
        values={name: getattr(told, name) for name in told.thresholds()},
        overrides={},
        held=Alerts(),
        voting_hours=HOURS,
        first_hour=told.first_hour,
    )


def on_tables(drawn: Drawn) -> Judged:
    """Write an election and evaluate it."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine, expire_on_commit=False)
    write(sessions, drawn)
    judged = Judged(drawn, sessions, Evaluator(sessions, thresholds(), lambda: datetime.now(UTC)))
    judged.evaluator.work_off()
    judged.known = {row.id for row in judged.alerts()}
    return judged


def draw_clean(seed: int, noise: float = 0.10) -> Drawn:
    """Draw a clean election, three of its territories with a second ballot."""
    rng = np.random.default_rng([SEED, seed])
    drawn = draw(rng, noise=noise)
    for one in range(3):
        twin(rng, drawn, one, one + AT_ONCE)
    return drawn


def draw_base(seed: int) -> Drawn:
    """Draw an election to inject into: in each region 2 000 voters, and their second ballot."""
    rng = np.random.default_rng([SEED, seed, 2])
    drawn = draw(rng, rolls=(ROLL,) * AT_ONCE)
    for one in range(AT_ONCE):
        twin(rng, drawn, one, one + AT_ONCE)
    return drawn


def stuffed(drawn: Drawn, cell: Cell, hour: int, rng: np.random.Generator) -> Drawn:
    """Inject into the first constituency of each region; no more are issued than the roll has."""
    new = Drawn(
        drawn.roll,
        drawn.region,
        drawn.bulletins.copy(),
        drawn.votes.copy(),
        drawn.share,
        drawn.ballots,
    )
    for one in range(AT_ONCE):
        if cell.kind == "silence":
            new.bulletins[one, hour] = new.votes[one, hour] = 0
        elif cell.kind == "votes":
            new.stuff_votes(one, hour, cell.number)
        else:
            new.stuff(one, hour, cell.number)
            _keep_to_roll(new, one, hour, rng)
    return new


def _keep_to_roll(drawn: Drawn, one: int, hour: int, rng: np.random.Generator) -> None:
    """Whose bulletin was taken cannot come later."""
    later = drawn.bulletins[one, hour + 1 :]
    excess = int(drawn.bulletins[one].sum() - drawn.roll[one])
    if excess > 0 and later.sum() > 0:
        gone = rng.multivariate_hypergeometric(later, min(excess, int(later.sum())))
        drawn.bulletins[one, hour + 1 :] -= gone
        votes = drawn.votes[one, hour + 1 :]
        drawn.votes[one, hour + 1 :] = np.maximum(0, votes - gone)


# Elections on arrays ------------------------------------------------------------------------


def group_of(drawn: Drawn) -> Group:
    """The same election as the evaluator would hand it to the rules, without tables."""
    size, hours = drawn.bulletins.shape
    everything = np.ones((size, hours), bool)
    none = np.zeros((size, hours))
    limits = {name: np.full(size, float(value)) for name, value in thresholds().values.items()}
    return Group(
        ids=[key_of(number) for number in range(size)],
        contracts=[f"{number:044d}" for number in range(size)],
        names=[f"No. {number}" for number in range(size)],
        fleet=Fleet(drawn.roll.astype(float), drawn.region, everything),
        region_names=[f"Region {number}" for number in range(int(drawn.region.max()) + 1)],
        starts=np.full(size, int(OPENS.timestamp()) // 3600),
        first_hour=8,
        counts={
            "bulletins": drawn.bulletins.astype(float),
            "votes": drawn.votes.astype(float),
            "votes_rejected": none,
            "issues_rejected": none,
        },
        is_provisional=~everything,
        coverage=none + 1,
        elections=drawn.ballots,
        limits=limits,
    )


def judged_on_arrays(drawn: Drawn) -> tuple[Figures, list[Surprise], np.ndarray]:
    """Figures, findings and scores."""
    group = group_of(drawn)
    figures = surprises.figures_of(group)
    return figures, list(surprises.find(group, figures)), surprises.scores(group, figures)


# Other rules --------------------------------------------------------------------------------


def _before(counts: Counts) -> np.ndarray:
    before = np.zeros(counts.shape)
    before[:, 1:] = counts[:, :-1]
    return before


def more_than_last_hour(counts: Counts, drawn: Drawn) -> np.ndarray:
    """+ 300 % on the last hour."""
    del drawn
    before = _before(counts)
    return (before > 0) & (counts > 4 * before)


def much_more_than_last_hour(counts: Counts, drawn: Drawn) -> np.ndarray:
    """+ 500 %, base of at least 10."""
    del drawn
    before = _before(counts)
    return (before >= 10) & (counts > 6 * before)


def own_history(counts: Counts, drawn: Drawn) -> np.ndarray:
    """Poisson z ≥ 25 against the own last three hours."""
    del drawn
    mean = np.zeros(counts.shape)
    for hour in range(3, counts.shape[1]):
        mean[:, hour] = counts[:, hour - 3 : hour].mean(axis=1)
    found = (counts - mean) / np.sqrt(np.maximum(mean, 1)) >= 25
    found[:, :3] = False
    return found


def peers_as_poisson(counts: Counts, drawn: Drawn) -> np.ndarray:
    """Poisson z ≥ 15 against the region's mean rate."""
    region, roll = drawn.region, drawn.roll.astype(float)
    sums = np.zeros((int(region.max()) + 1, counts.shape[1]))
    np.add.at(sums, region, counts)
    voters = np.bincount(region, roll)
    rate = (sums[region] - counts) / (voters[region] - roll)[:, None]
    mu = np.maximum(roll[:, None] * rate, 1)
    return np.asarray((counts - mu) / np.sqrt(mu) >= 15)


def as_in_the_study(counts: Counts, drawn: Drawn) -> np.ndarray:
    """Negative binomial z ≥ 4.5 against the peers."""
    return study.found(counts, drawn.roll, drawn.region)


STUDY = "the study's detector, run here"
OTHERS: dict[str, Callable[[Counts, Drawn], np.ndarray]] = {
    "+ 300 % on the last hour": more_than_last_hour,
    "+ 500 %, base ≥ 10": much_more_than_last_hour,
    "Poisson z, own last 3 h ≥ 25": own_history,
    "Poisson z, peers ≥ 15": peers_as_poisson,
    STUDY: as_in_the_study,
}


# Measuring ----------------------------------------------------------------------------------


@dataclass
class Measured:
    """Everything that the page tells."""

    clean: int = 0
    on_tables: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    by_noise: dict[float, tuple[int, Counter[str]]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    tails: Counter[float] = field(default_factory=Counter)
    cells: int = 0
    scores: Counter[float] = field(default_factory=Counter)
    recall: dict[Cell, list[bool]] = field(default_factory=lambda: defaultdict(list))
    others_recall: dict[tuple[Cell, str], list[bool]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ranks: list[bool] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    critical: dict[Cell, int] = field(default_factory=Counter)
    seconds: float = 0.0


def measure_clean(measured: Measured, drawn: Drawn, *, tables: bool) -> None:
    """Count the false alerts of one clean election."""
    measured.clean += 1
    figures, found, scores = judged_on_arrays(drawn)
    told = Counter(_label(one.finding.rule, one.finding.severity) for one in found)
    if tables:
        measured.on_tables += 1
        judged = on_tables(drawn)
        said = Counter(_label(row.type, row.severity) for row in judged.alerts())
        if said != told:
            raise AssertionError(f"tables and arrays differ: {said} and {told}")
        scores = np.array(judged.scores())
    measured.by_rule += told
    for name, rule in OTHERS.items():
        measured.others[name] += int(rule(drawn.bulletins, drawn).sum())
    z = figures.bulletins.z
    measured.cells += z.size
    for limit in (2.0, 3.0, 4.0):
        measured.tails[limit] += int((np.abs(z) >= limit).sum())
    for limit in (0.3, 0.5, 0.6):
        measured.scores[limit] += int((scores >= limit).sum())


def _label(rule: str, severity: str) -> str:
    return f"{rule} {severity}"


def measure_cell(
    measured: Measured, judged: Judged, cell: Cell, hour: int, rng: np.random.Generator
) -> None:
    """Inject into twenty constituencies (nothing else is injected any more) and look."""
    ones = range(AT_ONCE)
    new = stuffed(judged.drawn, cell, hour, rng)
    judged.put(ones, new)
    found = defaultdict(list)
    for row in judged.alerts():
        if row.id not in judged.known and _is_about(row, hour):
            found[row.constituency_id].append(row)
    scores = judged.scores()
    for one in ones:
        mine = [row for row in found[key_of(one)] if _is_meant(row, cell)]
        measured.recall[cell].append(bool(mine))
        end = OPENS + timedelta(hours=hour + 1)
        for row in mine:
            measured.delays.append((row.detected_at - end).total_seconds() / 3600)
        measured.critical[cell] += any(row.severity == "critical" for row in mine)
        if cell.kind == "bulletins":
            for name, rule in OTHERS.items():
                hit = bool(rule(new.bulletins, new)[one, hour])
                measured.others_recall[cell, name].append(hit)
    if cell.name.startswith("quiet") and cell.kind == "bulletins" and cell.number == 40:
        # Each of the twenty against the 480 that nobody touched.
        others = max(scores[AT_ONCE * 2 :])
        measured.ranks += [scores[one] > others for one in ones]


def _is_about(row: Any, hour: int) -> bool:
    since, until = row.details["window"]["utc"]
    begin = f"{OPENS + timedelta(hours=hour):%Y-%m-%dT%H:%MZ}"
    return bool(since <= begin < until)


def _is_meant(row: Any, cell: Cell) -> bool:
    if cell.kind == "twin":
        return bool(row.details.get("kind") == "twin")
    if cell.kind == "silence":
        return bool(row.type == "unusual_drop")
    # A stuffed ballot of twins is found by its twin, too; the cells tell what is found without.
    return bool(row.details.get("kind") != "twin")


# The page -----------------------------------------------------------------------------------


def bound(count: int, elections: int) -> float:
    """The upper end of the exact 95 % interval of a Poisson rate (Garwood 1936)."""
    return float(chi2.ppf(0.975, 2 * (count + 1)) / 2 / elections)


def interval(hits: Sequence[bool]) -> tuple[float, float, float]:
    """A share with its 95 % interval (Wilson 1927)."""
    number, share = len(hits), sum(hits) / len(hits)
    square = 1.96**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    off = 1.96 * np.sqrt(share * (1 - share) / number + square / (4 * number**2))
    off /= 1 + square / number
    return share, float(middle - off), float(middle + off)


def page(measured: Measured) -> str:
    """docs/detection.md."""
    return "\n".join(
        [
            *_head(measured),
            *_bars(measured),
            *_false_alerts(measured),
            *_recall(measured),
            *_others(measured),
            *_calibration(measured),
            *_published(),
            "",
        ]
    )


def _head(measured: Measured) -> Iterator[str]:
    yield "# How well the statistical rules work"
    yield ""
    yield (
        "Written by `make detect` (`bench/detect.py`); every number is measured, on elections "
        "drawn from fixed seeds: 500 constituencies in 20 regions, 60 hours of vote, rolls "
        "log-normal around 600, turnout about 0.90, an AR(1) effect of the region, an early or "
        "late tilt of each constituency, two national reminders, gamma noise of each hour "
        "(CV 0.10, the one parameter without real data). Some constituencies have a twin (two "
        "ballots of the same voters). What holds here need not hold for an election that is not "
        "like that."
    )
    yield ""
    yield (
        f"{measured.clean} clean elections, {measured.on_tables} of them through the tables and "
        f"the evaluator, the others by the same rules on arrays (where both ran they agreed). "
        f"Injections through the tables. {measured.seconds:.0f} s of one core "
        f"({platform.machine()}, Python {platform.python_version()})."
    )


def _bars(measured: Measured) -> Iterator[str]:
    yield ""
    yield "## The bars"
    yield ""
    yield "| bar | measured | holds |"
    yield "|---|---|---|"
    for label, limit in (("warning", 1.0), ("critical", 0.05)):
        count = sum(n for key, n in measured.by_rule.items() if key.endswith(label))
        upper = bound(count, measured.clean)
        yield (
            f"| statistical {label}s per clean election ≤ {limit} (upper 95 %) | "
            f"{count / measured.clean:.3f}, at most {upper:.3f} | {_yes(upper <= limit)} |"
        )
    for cell, hits in measured.recall.items():
        if cell.bar is not None:
            share = sum(hits) / len(hits)
            yield (
                f"| {_what(cell)} ≥ {cell.bar} | {share:.3f} ({len(hits)} injections) | "
                f"{_yes(share >= cell.bar)} |"
            )
    cells = [cell for cell in measured.recall if cell.kind == "bulletins"]
    more = [
        (sum(measured.recall[cell]), sum(measured.others_recall[cell, STUDY])) for cell in cells
    ]
    yield (
        "| in every cell at least what the study's detector finds here | "
        f"{', '.join(f'{ours} : {theirs}' for ours, theirs in more)} | "
        f"{_yes(all(ours >= theirs for ours, theirs in more))} |"
    )
    spikes = sum(n for key, n in measured.by_rule.items() if key.startswith("unusual_spike"))
    yield (
        "| and no more false spikes in clean elections | "
        f"{spikes} : {measured.others[STUDY]} | {_yes(spikes <= measured.others[STUDY])} |"
    )
    per = measured.scores[0.5] / measured.clean
    yield f"| score ≥ 0.5 at most 1.0 per 500 clean ones | {per:.2f} | {_yes(per <= 1.0)} |"


def _yes(holds: bool) -> str:  # noqa: FBT001 - a word for it
    return "yes" if holds else "**no**"


def _what(cell: Cell) -> str:
    if cell.kind == "silence":
        return cell.name
    kind = "ballots" if cell.kind == "twin" else cell.kind
    return f"{cell.name}: +{cell.number} {kind}"


def _false_alerts(measured: Measured) -> Iterator[str]:
    yield ""
    yield "## False alerts per clean election"
    yield ""
    yield "| rule | alerts | per election | upper end of 95 % |"
    yield "|---|---|---|---|"
    for rule in surprises.RULES:
        for severity in ("critical", "warning", "info"):
            key = _label(rule, severity)
            if severity != "warning" and not measured.by_rule[key]:
                continue
            count = measured.by_rule[key]
            yield (
                f"| `{rule}` {severity} | {count} | {count / measured.clean:.3f} | "
                f"{bound(count, measured.clean):.3f} |"
            )
    yield ""
    yield "The noise of an hour is the one parameter that no published data tell:"
    yield ""
    yield "| CV of an hour | elections | warnings per election | critical |"
    yield "|---|---|---|---|"
    for noise, (elections, by_rule) in sorted(measured.by_noise.items()):
        told = [
            sum(n for key, n in by_rule.items() if key.endswith(label)) / elections
            for label in ("warning", "critical")
        ]
        yield f"| {noise:.2f} | {elections} | {told[0]:.2f} | {told[1]:.3f} |"


def _recall(measured: Measured) -> Iterator[str]:
    yield ""
    yield "## What is found of an injection into 2 000 voters"
    yield ""
    yield "| injection | found | 95 % interval | critical | the study's detector, here | there |"
    yield "|---|---|---|---|---|---|"
    for cell, hits in measured.recall.items():
        share, low, high = interval(hits)
        critical = measured.critical[cell] / len(hits)
        theirs = measured.others_recall[cell, STUDY]
        here = f"{sum(theirs) / len(theirs):.3f}" if theirs else ""
        yield (
            f"| {_what(cell)} | {share:.3f} | {low:.2f}–{high:.2f} | {critical:.2f} | {here} | "
            f"{cell.study} |"
        )
    latest = max(measured.delays, default=0.0)
    yield ""
    yield (
        "Bulletins are injected with their votes, votes without bulletins. An alert is dated with "
        f"the end of its window, here at most {latest:.0f} h after the hour of the injection (the "
        "episode it is in); it is raised as soon as that hour is closed, that is when every slot "
        "of the region up to it is here, or two hours later by the watermark of the fleet. "
        "What the alert study measured of its detector it measured in its own elections (there); "
        "the same detector in ours is beside it (here). "
        "30 % more in one hour is below the noise for every detector: it is not promised."
    )


def _others(measured: Measured) -> Iterator[str]:
    cells = [cell for cell in measured.recall if cell.kind == "bulletins"]
    yield ""
    yield "## Beside other rules"
    yield ""
    yield "Flagged hours per clean election, and the share of injected hours found (bulletins)."
    yield ""
    yield "| detector | false | " + " | ".join(_what(cell) for cell in cells) + " |"
    yield "|---|---|" + "---|" * len(cells)
    for name in OTHERS:
        shares = [
            f"{sum(hits) / len(hits):.2f}"
            for hits in (measured.others_recall[cell, name] for cell in cells)
        ]
        yield f"| {name} | {measured.others[name] / measured.clean:.2f} | {' | '.join(shares)} |"
    ours = [f"{sum(measured.recall[cell]) / len(measured.recall[cell]):.2f}" for cell in cells]
    count = sum(measured.by_rule.values()) / measured.clean
    yield f"| **ingestd, all statistical rules** | {count:.2f} | {' | '.join(ours)} |"


def _calibration(measured: Measured) -> Iterator[str]:
    yield ""
    yield "## Calibration"
    yield ""
    yield "| \\|z\\| of an hour at least | share of clean hours | a normal z would have |"
    yield "|---|---|---|"
    for limit, count in sorted(measured.tails.items()):
        normal = 2 * float(norm.sf(limit))
        yield f"| {limit:.0f} | {count / measured.cells:.5f} | {normal:.5f} |"
    yield ""
    yield "| score at least | clean constituencies of 500 |"
    yield "|---|---|"
    for limit, count in sorted(measured.scores.items()):
        yield f"| {limit} | {count / measured.clean:.2f} |"
    if measured.ranks:
        share = sum(measured.ranks) / len(measured.ranks)
        yield ""
        yield f"+40 ballots at a quiet hour score above every clean constituency in {share:.0%}."


def _published() -> Iterator[str]:
    """Tell what the rules of levels say about published totals."""
    yield ""
    yield "## On published totals"
    yield ""
    yield (
        "Totals of two real elections (`bench/published_totals.csv`), each unit compared with all "
        "others of its election, as the rules compare constituencies at a day's end. Units of "
        "different regions differ for many good reasons (who is on the roll, who could choose "
        "another way to vote, how the service was made known; where only those are on the roll who "
        "came for a ballot, everybody has voted): **what stands here is a question, "
        "not an answer**, and says nothing against anybody."
    )
    with (ROOT / "bench/published_totals.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in sorted({row["election"] for row in rows}):
        yield from _one_published(name, [row for row in rows if row["election"] == name])


def _one_published(name: str, rows: list[dict[str, str]]) -> Iterator[str]:
    roll, issued, cast = (
        np.array([float(row[key]) for row in rows]) for key in ("roll", "issued", "cast")
    )
    region = np.zeros(len(rows), np.int64)
    fleet = Fleet(roll, region, np.ones((len(rows), 1), bool))
    median, t, chance = levels.turnout(issued[:, None], fleet, 0)
    left, mu, z = levels.uncast(issued[:, None], cast[:, None], fleet, 0)
    yield ""
    yield (
        f"**{name}**: {len(rows)} units, half of them with a turnout below {median[0]:.1%}, "
        f"{1 - cast.sum() / issued.sum():.2%} of the bulletins not cast."
    )
    yield ""
    yield "| unit | turnout | t | bulletins not cast | likely | z | said by |"
    yield "|---|---|---|---|---|---|---|"
    everybody = range(len(rows))
    shown = sorted(everybody, key=lambda one: -abs(t[one]))[:5]
    shown += sorted(everybody, key=lambda one: -abs(z[one]))[:3]
    for one in dict.fromkeys(shown):
        share = issued[one] / roll[one]
        yield _unit(rows[one]["unit"], share, t[one], left[one], mu[one], z[one], chance[one])


def _unit(  # noqa: PLR0913, PLR0917 - the columns of a table
    unit: str, share: float, t: float, left: float, mu: float, z: float, chance: float
) -> str:
    said = [
        rule for rule, is_far in (("turnout", chance < 1e-5), ("uncast", abs(z) >= 4.5)) if is_far
    ]
    return (
        f"| {unit} | {share:.1%} | {t:.1f} | {left:.0f} | {mu:.0f} | {z:.1f} | "
        f"{', '.join(said) or 'no rule'} |"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=int, default=40, help="clean elections through the tables")
    parser.add_argument("--more", type=int, default=200, help="clean elections on arrays")
    parser.add_argument("--injections", type=int, default=200, help="for each cell")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/detection.md")
    told = parser.parse_args()
    measured = Measured()
    elections = -(-told.injections // AT_ONCE)
    for seed in range(told.clean):
        measure_clean(measured, draw_clean(seed), tables=True)
        print(f"clean {seed + 1} of {told.clean}, {time.process_time():.0f} s", flush=True)
    for seed in range(elections):
        judged = on_tables(draw_base(seed))
        rng = np.random.default_rng([SEED, seed, 1])
        for cell in CELLS:
            measure_cell(measured, judged, cell, cell.hours[seed % len(cell.hours)], rng)
        print(f"injected {seed + 1} of {elections}, {time.process_time():.0f} s", flush=True)
    for seed in range(told.clean, told.clean + told.more):
        measure_clean(measured, draw_clean(seed), tables=False)
    for noise in (0.05, 0.20):
        by_rule: Counter[str] = Counter()
        number = max(1, told.more // 2)
        for seed in range(number):
            _, found, _ = judged_on_arrays(draw_clean(10_000 + seed, noise))
            by_rule += Counter(_label(one.finding.rule, one.finding.severity) for one in found)
        measured.by_noise[noise] = (number, by_rule)
    measured.by_noise[0.10] = (measured.clean, measured.by_rule)
    measured.seconds = time.process_time()
    told.out.write_text(page(measured), encoding="utf-8")
    print(f"written {told.out}")


if __name__ == "__main__":
    main()
