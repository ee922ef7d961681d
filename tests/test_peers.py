"""The statistical rules: what is likely among peers, what is not, and what is not known."""

import numpy as np
import pytest
from scipy import stats

from ingestd.config import Statistics
from ingestd.pipeline import fleet, levels, surprises
from ingestd.pipeline.fleet import Rows, Voting
from ingestd.pipeline.peers import Fleet, Floats, expect, in_words, likely, z_of
from ingestd.pipeline.surprises import Group, Surprise

from .elections import OPENS, Drawn, draw, key_of, twin

START = int(OPENS.timestamp()) // 3600
QUIET, NIGHT = 26, 19


def group_of(drawn: Drawn, *, known: Floats | None = None) -> Group:
    """An election whose files are all here, or those that `known` tells."""
    size, hours = drawn.bulletins.shape
    here = np.ones((size, hours), bool) if known is None else known.astype(bool)
    told = Statistics()
    none = np.zeros((size, hours))
    return Group(
        ids=[key_of(number) for number in range(size)],
        contracts=[f"{number:044d}" for number in range(size)],
        names=[f"No. {number}" for number in range(size)],
        fleet=Fleet(drawn.roll.astype(float), drawn.region, here),
        region_names=[f"Region {number}" for number in range(int(drawn.region.max()) + 1)],
        starts=np.full(size, START),
        first_hour=8,
        counts={
            "bulletins": drawn.bulletins * here.astype(float),
            "votes": drawn.votes * here.astype(float),
            "votes_rejected": none.copy(),
            "issues_rejected": none.copy(),
        },
        is_provisional=~np.logical_and.accumulate(here, axis=1),
        coverage=here.astype(float),
        elections=drawn.ballots,
        limits={name: np.full(size, float(getattr(told, name))) for name in told.thresholds()},
    )


def found(group: Group) -> list[Surprise]:
    """What all rules say."""
    return list(surprises.find(group, surprises.figures_of(group)))


def about(group: Group, one: int, hour: int) -> set[str]:
    """The rules that say something of an hour of a constituency."""
    return {each.finding.rule for each in found(group) if each.one == one and hour in each.hours}


@pytest.fixture
def drawn() -> Drawn:
    """A clean election with 2 000 voters in the first constituency."""
    return draw(np.random.default_rng(7), constituencies=300, rolls=(2_000,))


def test_clean_elections_raise_few_alerts_and_nearly_no_critical_one() -> None:
    """The budget of a clean election is one warning; docs/detection.md has the measured rate."""
    severities = [
        each.finding.severity
        for seed in range(6)
        for each in found(group_of(draw(np.random.default_rng(seed))))
    ]
    assert 0 == severities.count("critical")
    assert 12 >= len(severities)


@pytest.mark.parametrize(
    ("hour", "number", "rule"),
    [(QUIET, 100, "unusual_spike"), (0, 600, "unusual_spike"), (NIGHT, 10, "night_surge")],
)
def test_stuffed_ballots_are_found(drawn: Drawn, hour: int, number: int, rule: str) -> None:
    """A hundred at a quiet hour, six hundred at the opening, ten by night."""
    assert rule not in about(group_of(drawn), 0, hour)
    drawn.stuff(0, hour, number)
    assert rule in about(group_of(drawn), 0, hour)


def test_votes_without_bulletins_are_found_where_they_are_few(drawn: Drawn) -> None:
    """Twenty votes that no bulletin explains, at an hour in which eighteen are usual."""
    drawn.stuff_votes(0, QUIET, 20)
    lags = [each for each in found(group_of(drawn)) if each.finding.details.get("kind") == "lag"]
    assert [(0, (QUIET,))] == [(each.one, each.hours) for each in lags]


def test_a_silent_hour_is_a_drop_and_a_missing_file_is_none(drawn: Drawn) -> None:
    """A file that says "nobody" is a finding; no file is nothing at all: unknown, never zero."""
    drawn.bulletins[0, 10] = drawn.votes[0, 10] = 0
    assert "unusual_drop" in about(group_of(drawn), 0, 10)
    known = np.ones(drawn.bulletins.shape)
    known[0, 10] = 0
    group = group_of(drawn, known=known)
    assert set() == about(group, 0, 10)
    assert np.isnan(surprises.figures_of(group).bulletins.z[0, 10])
    assert group.is_provisional[0, 11]


def test_what_is_missing_does_not_change_what_is_expected_of_others(drawn: Drawn) -> None:
    """Half of a region away moves its rate by its noise; counted as zero it would halve it."""
    known = np.ones(drawn.bulletins.shape)
    absent = np.flatnonzero(drawn.region == drawn.region[0])[1::2]
    known[absent, QUIET] = 0
    whole = surprises.figures_of(group_of(drawn)).bulletins.mu[0, QUIET]
    part = surprises.figures_of(group_of(drawn, known=known)).bulletins.mu[0, QUIET]
    assert part == pytest.approx(whole, rel=0.25)


def test_a_stuffed_peer_does_not_hide_another(drawn: Drawn) -> None:
    """Counts are cut in the second pass: two of fifteen in a region are found both."""
    other = int(np.flatnonzero(drawn.region == drawn.region[0])[1])
    drawn.roll[other] = 2_000
    for one in (0, other):
        drawn.stuff(one, QUIET, 150)
    group = group_of(drawn)
    assert "unusual_spike" in about(group, 0, QUIET)
    assert "unusual_spike" in about(group, other, QUIET)


def test_consecutive_hours_are_one_alert(drawn: Drawn) -> None:
    """An episode lists its hours; its subject is the first of them."""
    for hour in (QUIET, QUIET + 1):
        drawn.stuff(0, hour, 100)
    spikes = [
        each
        for each in found(group_of(drawn))
        if each.one == 0 and each.finding.rule == "unusual_spike"
    ]
    assert [(QUIET, QUIET + 1)] == [each.hours for each in spikes]
    assert "2024-09-07T07:00Z" == spikes[0].finding.subject


def test_a_finding_tells_numbers_chance_and_usual_causes(drawn: Drawn) -> None:
    """In local time, with what the peers make likely; never a word about a violation."""
    drawn.stuff(0, QUIET, 300)
    [spike] = [each for each in found(group_of(drawn)) if each.one == 0 and each.hours == (QUIET,)]
    finding = spike.finding
    issued = int(drawn.bulletins[0, QUIET])
    assert f"At 10:00–11:00 local, {issued} bulletins were issued; its 14 peers" in (
        finding.description
    )
    assert "likely. By chance: " in finding.description
    assert "Usual causes: " in finding.description
    assert "critical" == finding.severity
    assert {"utc", "local"} == finding.details["window"].keys()
    assert issued == finding.details["observed"]
    assert finding.details["threshold"] == {"z": 4.3}
    assert not {"fraud", "violation"} & set(finding.description.lower().split())


def test_twins_that_part_are_found_and_strangers_of_one_roll_are_no_twins(drawn: Drawn) -> None:
    """Eight ballots more than the other ballot of the same voters; equal rolls alone prove none."""
    rng = np.random.default_rng(3)
    same = np.flatnonzero(drawn.region == drawn.region[0])
    mate, stranger = int(same[1]), int(same[2])
    twin(rng, drawn, 0, mate)
    drawn.roll[stranger], drawn.ballots[stranger] = drawn.roll[0], "referendum"
    drawn.bulletins[mate, QUIET] = drawn.bulletins[0, QUIET]
    drawn.stuff(0, QUIET, 8)
    group = group_of(drawn)
    pairs = {(pair.one, pair.other) for pair in surprises.figures_of(group).twins}
    assert {(0, mate)} == {pair for pair in pairs if 0 in pair}
    assert (0, QUIET) in [
        (each.one, each.hours[0])
        for each in found(group)
        if each.finding.details.get("kind") == "twin"
    ]


def test_a_region_that_moves_as_a_whole_is_one_alert(drawn: Drawn) -> None:
    """Three times as many everywhere in a region: nobody stands out among its peers."""
    mine = drawn.region == 4
    drawn.bulletins[mine, QUIET] *= 3
    drawn.votes[mine, QUIET] *= 3
    regional = [each for each in found(group_of(drawn)) if each.one is None]
    assert [("region_correlated", (QUIET,))] == [
        (each.finding.rule, each.hours) for each in regional
    ]
    assert "Region 4" in regional[0].finding.title


def test_turnout_and_uncast_bulletins_are_held_against_the_region(drawn: Drawn) -> None:
    """At each day's end: a turnout of 2 %, and two hundred bulletins that nobody cast."""
    drawn.bulletins[0] //= 40
    drawn.votes[0] = drawn.bulletins[0]
    drawn.roll[1] = 3_000
    drawn.votes[1, 3] -= min(200, int(drawn.votes[1, 3]))
    kinds = {
        (each.one, each.finding.details["kind"])
        for each in found(group_of(drawn))
        if each.finding.rule == "peer_outlier"
    }
    assert {(0, "turnout"), (1, "uncast")} <= kinds


def test_many_rejected_ballots_are_found(drawn: Drawn) -> None:
    """Thirty of fifty against a region where nobody is rejected; four never are."""
    group = group_of(drawn)
    group.counts["votes_rejected"][0, QUIET] = 30
    group.counts["votes_rejected"][1, QUIET] = 4
    rules = [each.one for each in found(group) if each.finding.rule == "rejected_share"]
    assert [0] == rules


def test_six_hours_that_are_off_are_a_shift(drawn: Drawn) -> None:
    """The level of a day does not follow them, as that of the last hours does."""
    drawn.roll[0] = 3_000
    drawn.bulletins[0, 30:36] += 40
    drawn.votes[0, 30:36] = drawn.bulletins[0, 30:36]
    assert "sustained_shift" in about(group_of(drawn), 0, 32)


def test_the_score_of_a_clean_constituency_is_low_and_a_stuffed_one_ranks_first(
    drawn: Drawn,
) -> None:
    """0.5 means one in a thousand clean constituencies."""
    drawn.stuff(0, QUIET, 60)
    group = group_of(drawn)
    scores = surprises.scores(group, surprises.figures_of(group))
    assert 0 == int(np.argmax(scores))
    assert 0.5 < scores[0] <= 1
    assert 0.3 > float(np.median(scores))


# The numbers --------------------------------------------------------------------------------


def test_z_is_the_mid_p_of_the_negative_binomial() -> None:
    """Against scipy's own distribution, on both sides and at zero."""
    counts, mu, phi = np.array([0.0, 3, 18, 60, 400]), np.array([5.0, 3, 20, 20, 400]), 0.05
    size = 1 / phi
    exact = stats.nbinom(size, size / (size + mu))
    tail = np.where(
        counts >= mu,
        exact.sf(counts) + exact.pmf(counts) / 2,
        exact.cdf(counts) - exact.pmf(counts) / 2,
    )
    wanted = np.where(counts >= mu, stats.norm.isf(tail), stats.norm.ppf(tail))
    assert wanted == pytest.approx(z_of(counts, mu, phi), abs=1e-6)


def test_a_tail_too_small_for_a_number_has_the_highest_z() -> None:
    """A million where one is expected is no overflow."""
    assert 37.0 == z_of(np.array([1e6]), np.array([1.0]), 0.01)[0]


def test_wilsons_bound_is_the_published_one() -> None:
    """The lower bound of 5 of 50 with z 3.09, by the formula of 1927 solved another way."""
    bound = levels.refused_bound(np.array([5.0]), np.array([50.0]))[0]
    # At the bound, the observed share is exactly 3.0902 standard errors away.
    assert 3.0902 == pytest.approx((0.1 - bound) / np.sqrt(bound * (1 - bound) / 50), abs=1e-3)


def test_chances_are_told_in_two_digits() -> None:
    """As people say them."""
    assert "about 1 in 3.3 million" == in_words(3e-7)
    assert "about 1 in 50" == in_words(0.02)
    assert "about 1 in 26 thousand" == in_words(1 / 26_123)
    assert "less than 1 in a million million" == in_words(0.0)
    assert (60, 140) == likely(100.0, 0.0316)


def test_nobody_is_expected_to_vote_twice() -> None:
    """What is expected never exceeds the voters who are left."""
    roll = np.full(40, 100.0)
    counts = np.zeros((40, 3))
    counts[:, 0], counts[:, 1] = 90, 9
    expected = expect(counts, Fleet(roll, np.zeros(40, np.int64), np.ones((40, 3), bool)))
    assert (expected.mu[:, 1] <= 10).all()
    assert (expected.mu[:, 2] <= 1).all()


# What is closed, and what is compared with what ---------------------------------------------


def publishes(constituencies: int) -> fleet.EmptyHours:
    """Every source publishes its empty hours."""
    return fleet.EmptyHours(
        are_published=np.ones(constituencies, bool), least_expected=np.full(constituencies, 7.0)
    )


def test_an_hour_is_closed_when_its_region_is_here_or_the_fleet_is_two_hours_on() -> None:
    """Nobody waits for one file for ever, and nothing is judged before its time."""
    coverage = np.zeros((20, 6))
    coverage[:, :4] = 1
    coverage[3, 1] = 0  # one file of region 1 is missing
    region = np.arange(20) % 2
    starts, lengths = np.full(20, START), np.full(20, 6)
    here = fleet.delivered(coverage, lengths, starts, region, empty=publishes(len(lengths)))
    assert [True, True, True, True, False, False] == here.is_closed[0].tolist()
    assert [True, True, False, False, False, False] == here.is_closed[1].tolist()
    assert [False, True, True, True, True, True] == here.is_provisional[3].tolist()


def test_one_that_has_delivered_everything_holds_nobody_up() -> None:
    """The far east ends hours before; the watermark goes on without it."""
    coverage = np.ones((10, 6))
    coverage[5:, 5] = 0
    starts = np.repeat([START - 9, START], 5)
    region = np.repeat([0, 1], 5)
    here = fleet.delivered(coverage, np.full(10, 6), starts, region, empty=publishes(10))
    assert here.is_closed[0].all()
    assert [True, True, True, True, True, False] == here.is_closed[9].tolist()


def test_the_clock_of_file_names_is_found_from_the_ballots() -> None:
    """Names in Moscow time, rows in UTC: three hours."""
    hours = np.arange(START, START + 5)
    ballots = np.array([40.0, 20, 11, 7, 5])
    counts = np.stack([ballots / 2, ballots / 2, ballots * 0, ballots * 0], axis=1)
    none = np.zeros((5, 2))
    rows = Rows(hours, counts, none, np.zeros((5, 10)), np.zeros(5, np.int64), np.zeros(5, bool))
    slots = [f"2024-09-06_{hour:02d}00-{hour + 1:02d}00" for hour in range(8, 13)]
    fleet.cover(
        rows, [fleet.Told(slot, False, int(n), 1) for slot, n in zip(slots, ballots, strict=True)]
    )
    assert 3 == fleet.shift_of([rows])
    assert 1.0 == sum(share for _, share in fleet.hours_of_slot("2024-09-06_2330-0030"))


def voting(number: int, **values: object) -> Voting:
    """A voting of three days in region 77."""
    told: dict[str, object] = {
        "id": key_of(number),
        "contract_id": f"{number:044d}",
        "name": "",
        "region": "77",
        "region_name": "Moscow",
        "election": "",
        "election_type": "",
        "roll": 100,
        "start": START,
        "end": START + 60,
    }
    return Voting(**(told | values))  # type: ignore[arg-type]  # by name, with other values


def test_votings_of_one_and_of_three_days_are_never_compared() -> None:
    """Nor those of two dates; a start that is not told is that of the region."""
    votings = [
        voting(0),
        voting(1, end=START + 12),
        voting(2, start=START - 9, end=START + 51),
        voting(3, start=START + 24, end=START + 84),
        voting(4, start=None, end=None),
    ]
    spans = fleet.windows(votings, usual_hours=60)
    groups = fleet.grouped(votings, spans)
    numbers = [[int(one.contract_id) for one in group] for group in groups]
    assert [[1], [0, 2, 4], [3]] == numbers


def test_small_regions_are_pooled_by_time_zone() -> None:
    """Fifteen constituencies are a region of their own, fourteen are not."""
    votings = [voting(number, region="77") for number in range(15)]
    votings += [voting(20 + number, region="41", start=START - 9) for number in range(14)]
    votings += [voting(40 + number, region="87", start=START - 9) for number in range(3)]
    spans = fleet.windows(votings, usual_hours=60)
    numbers, names = fleet.regions_of(votings, spans)
    assert 2 == len(set(numbers.tolist()))
    assert ["Moscow", ""] == [names[numbers[0]], names[numbers[15]]]
    assert numbers[15] == numbers[-1]
