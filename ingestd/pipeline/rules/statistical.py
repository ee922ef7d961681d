"""What is known of the statistical rules; `surprises` finds by them, with numpy, when it must."""

from ingestd.pipeline.rules.base import Rule, enter

_PEERS = "hours of a region's constituencies, from closed hours"

enter(
    Rule(
        id="rejected_share",
        alert_class="statistical",
        severities=("warning",),
        reads="rejected and accepted ballots of an hour, and those of the region",
        sentence="In an hour many ballots were rejected.",
        formula="Wilson's 99.9 % lower bound of the share > max(1 %, 3 x the region's), 5 or more",
        benign=("a fault of the service or of an app", "voters who tried again"),
        settings=("rejected_share", "rejected_times", "rejected_least"),
    )
)
enter(
    Rule(
        id="unusual_spike",
        alert_class="statistical",
        severities=("warning", "critical"),
        reads=_PEERS,
        sentence="In an hour far more bulletins or votes came than its peers make likely.",
        formula="z of the negative binomial among the peers >= spike_z, and 5 above",
        benign=("a reminder was sent to these voters", "an outage ended and voters came back"),
        settings=("spike_z", "spike_z_large", "spike_z_critical", "votes_z_more", "least_off"),
    )
)
enter(
    Rule(
        id="unusual_drop",
        alert_class="statistical",
        severities=("warning",),
        reads=_PEERS,
        sentence="In an hour far fewer came than its peers make likely, while voters were left.",
        formula="z <= -drop_z, 5 below, and max(20, 2 %) of the voters left",
        benign=("the service was out of reach for them", "a file of the hour is not complete"),
        settings=("drop_z", "votes_z_more", "least_off"),
    )
)
enter(
    Rule(
        id="night_surge",
        alert_class="statistical",
        severities=("warning", "critical"),
        reads=_PEERS,
        sentence="At night far more came than its peers make likely.",
        formula="as unusual_spike, in the local hours 0 to 5, by a floor of 5e-5 of the roll",
        benign=("voters in another time zone", "people who work at night"),
        settings=("spike_z", "votes_z_more", "least_off"),
    )
)
enter(
    Rule(
        id="sustained_shift",
        alert_class="statistical",
        severities=("warning",),
        reads=_PEERS,
        sentence="For six hours more, or fewer, came than the constituency's own level.",
        formula="z of a block of six hours against the slow level (discount 0.95) >= shift_z",
        benign=("a local event", "a reminder that was sent in parts"),
        settings=("shift_z",),
    )
)
enter(
    Rule(
        id="region_correlated",
        alert_class="statistical",
        severities=("warning", "info"),
        reads="hours of all regions",
        sentence="A whole region had far more in an hour than the other regions.",
        formula="(rel - median) / max(1.4826 MAD, 0.10) >= region_t, where 20 or more are expected",
        benign=("a reminder in this region", "an outage that ended"),
        settings=("region_t",),
    )
)
enter(
    Rule(
        id="peer_outlier",
        alert_class="statistical",
        severities=("warning",),
        reads="totals at each day's end, votes and bulletins by hour, ballots of one territory",
        sentence="A constituency is far off its region: turnout, uncast bulletins, votes, twin.",
        formula="turnout: robust t of its logit; uncast, votes: z; twins: |B1 - B2| by its spread",
        benign=("a closed group of voters", "one of two ballots could not be issued for a while"),
        settings=("turnout_chance", "uncast_z", "uncast_least", "twin_t", "lag_z"),
    )
)
