"""`stats`: what the election comes to, and the hours of one constituency."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import uuid
from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import Csv, Flags, Json, command

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ingestd.config import Settings
    from ingestd.models import Constituency, HourlyStats

_BARS, _UNKNOWN = " ▁▂▃▄▅▆▇█", "×"
_ABOUT = ("region_code", "name", "contract_id", "status")
_TOTALS = ("registered_voters", "bulletins_issued", "votes_cast", "votes_rejected")
_SHARES = ("participation_rate", "anomaly_score")
_HOUR = (
    *("hour", "status", "coverage", "bulletins_issued", "expected_bulletins", "z_bulletins"),
    *("votes_cast", "expected_votes", "z_votes", "votes_rejected", "issues_rejected", "revotes"),
    *("rolled_back", "list_added", "list_removed", "transaction_count"),
    *("cumulative_bulletins", "cumulative_votes"),
)
_MORE_OF_AN_HOUR = (
    *("bulletin_velocity", "vote_velocity", "bulletin_velocity_ewma", "vote_velocity_ewma"),
    *("phi", "is_empty"),
)
_SHORT = {
    "bulletins_issued": "bulletins",
    "votes_cast": "votes",
    "votes_rejected": "votes rejected",
    "issues_rejected": "issues rejected",
    "registered_voters": "registered",
    "transaction_count": "transactions",
    "expected_bulletins": "expected",
    "expected_votes": "expected",
    "z_bulletins": "z",
    "z_votes": "z",
    "cumulative_bulletins": "bulletins so far",
    "cumulative_votes": "votes so far",
}


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd stats --region 77", "ingestd stats --contract CONTRACT --csv > hours.csv")
    command(app, "stats", examples=examples)(stats)


def stats(
    flags: Flags,
    *,
    contract: Annotated[
        str | None, typer.Option(help="The hours of this constituency, in its local time.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only constituencies of this region.")
    ] = None,
    is_json: Json = False,
    is_csv: Csv = False,
) -> None:
    """Show the totals of every constituency, or the hours of one.

    The table tells hours in local time and names the zone; --json and --csv tell UTC. What lacks
    a file is provisional.
    """
    from ingestd.cli.database import reading
    from ingestd.config import ConfigError

    if contract and region:
        raise ConfigError("--contract names one constituency: leave --region out")
    settings = flags.settings()
    with reading(settings) as session:
        if contract:
            _show_hours(session, contract, settings, is_json=is_json, is_csv=is_csv)
        else:
            _show_totals(session, region, settings, is_json=is_json, is_csv=is_csv)


def the_constituency(session: Session, contract: str) -> Constituency:
    """The constituency of a contract. Raises ConfigError where there is none."""
    from ingestd import crud
    from ingestd.config import ConfigError

    found = crud.constituencies.by_contract(session, contract)
    if found is None:
        raise ConfigError(
            f"no constituency with the contract {contract}; `ingestd stats` lists them"
        )
    return found


# Totals -------------------------------------------------------------------------------------


def _show_totals(
    session: Session, region: str | None, settings: Settings, *, is_json: bool, is_csv: bool
) -> None:
    from ingestd import crud
    from ingestd.cli import screen

    found = list(_constituencies(session, region))
    lacking = crud.constituencies.provisional(session)
    here = {each.contract_id for each in found}
    expected = {} if region else settings.held.constituency_missing.contracts
    absent = sorted({*expected} - here)
    is_lacking = bool(absent) or any(each.id in lacking for each in found)
    if is_json:
        items = [_constituency_told(each, lacking) for each in found]
        told = {"constituencies": items, "totals": _sums(found), "is_provisional": is_lacking}
        screen.print_json(told | {"expected_and_absent": absent})
        return
    if is_csv:
        columns = (*_ABOUT, *_TOTALS, *_SHARES)
        cells = ([*(getattr(each, name) for name in columns), each.id in lacking] for each in found)
        screen.print_csv((*columns, "is_provisional"), cells)
        return
    if not found:
        screen.say("no constituencies")
    else:
        _say_hours_of_all(session, region)
        _draw_totals(found, lacking, is_lacking=is_lacking)
    if absent:
        number = screen.amount(len(absent), "expected constituency")
        number = number.replace("constituencys", "constituencies")
        screen.say(f"not in it: {number} of which nothing came (`ingestd coverage`)")


def _draw_totals(
    found: Sequence[Constituency], lacking: Container[uuid.UUID], *, is_lacking: bool
) -> None:
    from ingestd.cli import screen

    sums = _sums(found)
    rows: list[Sequence[Any]] = [
        (
            *(getattr(each, name) for name in (*_ABOUT[:3], *_TOTALS)),
            _percent(each.participation_rate),
            each.anomaly_score,
            _provisional(each.id in lacking),
        )
        for each in found
    ]
    all_ = ("", "all", "", *(sums[name] for name in _TOTALS), "", "", _provisional(is_lacking))
    heads = ("region", "constituency", "contract", *map(_short, _TOTALS), "turnout", "score", "")
    screen.show(heads, [*rows, all_])


def _say_hours_of_all(session: Session, region: str | None) -> None:
    """One bar for each UTC hour from the first ballot to the last."""
    from ingestd import crud
    from ingestd.cli import screen

    hours = crud.hours.national(session, region_code=region)
    busy = [hour for hour in hours if hour.bulletins_issued or hour.votes_cast]
    if not busy:
        return
    first, last = busy[0].hour, busy[-1].hour
    if (number := int((last - first) / timedelta(hours=1)) + 1) > _MOST_BARS:
        return
    by_hour = {hour.hour: hour for hour in busy}
    line = [by_hour.get(first + timedelta(hours=at)) for at in range(number)]
    nothing = [False] * number
    issued = _spark([hour.bulletins_issued if hour else 0 for hour in line], nothing)
    cast = _spark([hour.votes_cast if hour else 0 for hour in line], nothing)
    screen.say(f"bulletins {issued}  {screen.moment(first)} to {screen.moment(last)}")
    screen.say(f"votes     {cast}")


_MOST_BARS = 14 * 24


def _constituency_told(owner: Constituency, lacking: Container[uuid.UUID]) -> dict[str, Any]:
    from ingestd.schemas import ConstituencyResponse

    told = ConstituencyResponse.model_validate(owner).model_dump()
    return told | {"is_provisional": owner.id in lacking}


def _provisional(is_lacking: bool) -> str:  # noqa: FBT001 - said as a word
    """Nobody shall quote what is here in part."""
    return "provisional" if is_lacking else ""


def _constituencies(session: Session, region: str | None) -> Iterator[Constituency]:
    from ingestd import crud

    filters = {"region_code": region} if region else {}
    offset = 0
    while True:
        window = crud.Window(offset, crud.LIMIT_CAP)
        page = crud.constituencies.list(
            session, filters=filters, order="region_code", window=window
        )
        yield from page.items
        offset += len(page.items)
        if offset >= page.total:
            return


def _sums(found: Sequence[Constituency]) -> dict[str, int | None]:
    """Each total over all; None where no constituency knows it."""
    sums: dict[str, int | None] = {}
    for name in _TOTALS:
        known = [value for each in found if (value := getattr(each, name)) is not None]
        sums[name] = sum(known) if known else None
    return sums


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _short(name: str) -> str:
    return _SHORT.get(name, name.replace("_", " "))


# Hours --------------------------------------------------------------------------------------


def _show_hours(
    session: Session, contract: str, settings: Settings, *, is_json: bool, is_csv: bool
) -> None:
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.pipeline.proof import zone_of
    from ingestd.schemas import HourlyStatsResponse

    owner = the_constituency(session, contract)
    hours = crud.hours.of_constituency(session, owner.id)
    lacking = crud.constituencies.provisional(session)
    if is_json:
        told = _constituency_told(owner, lacking)
        items = [HourlyStatsResponse.model_validate(hour).model_dump() for hour in hours]
        screen.print_json({"constituency": told, "hours": items})
        return
    if is_csv:
        columns = (*_HOUR, *_MORE_OF_AN_HOUR)
        cells = (
            [*(getattr(hour, name) for name in columns), owner.id in lacking] for hour in hours
        )
        screen.print_csv((*columns, "is_provisional"), cells)
        return
    note = ", provisional: files are missing" if owner.id in lacking else ""
    screen.say(f"{owner.region_code or '–'} {owner.name or 'no name'}, {contract}{note}")
    for line in _two_series(hours):
        screen.say(line)
    if any(hour.status == "missing" for hour in hours):
        screen.say(f"{_UNKNOWN} no file of this hour is here: what happened in it is unknown")
    opens = timedelta(hours=settings.statistics.first_hour)
    zone = zone_of(owner.timezone, owner.voting_start, opens)
    screen.say(f"hours     {_zone_in_words(owner, zone, settings.statistics.first_hour)}")
    screen.show(
        tuple(map(_short, _HOUR)),
        [[_clock(hour.hour, zone), *(getattr(hour, name) for name in _HOUR[1:])] for hour in hours],
    )


def _zone_in_words(owner: Constituency, zone: tzinfo | None, first_hour: int) -> str:
    if owner.timezone:
        return f"in local time, {owner.timezone}"
    if zone is None:
        return "in UTC: neither the settings nor a start of the voting tell its zone"
    return f"in local time, {zone}: its voting began at {first_hour:02d}:00"


def _clock(hour: datetime, zone: tzinfo | None) -> str:
    if zone is None:
        return f"{hour:%Y-%m-%d %H:%M}Z"
    return f"{hour.astimezone(zone):%Y-%m-%d %H:%M}"


def bars(hours: Sequence[HourlyStats], window: Sequence[str]) -> Iterator[str]:
    """Lines with a bar for each hour, and a mark below those of a window of UTC moments."""
    yield from _two_series(hours)
    begin, end = (datetime.fromisoformat(each).replace(tzinfo=UTC) for each in window)
    hour = timedelta(hours=1)
    marks = (
        "^" if each.hour < max(end, begin + hour) and each.hour + hour > begin else " "
        for each in hours
    )
    yield f"          {''.join(marks)}".rstrip()


def _two_series(hours: Sequence[HourlyStats]) -> Iterator[str]:
    unknown = [hour.status == "missing" for hour in hours]
    yield f"bulletins {_spark([hour.bulletins_issued for hour in hours], unknown)}"
    yield f"votes     {_spark([hour.votes_cast for hour in hours], unknown)}"


def _spark(numbers: Sequence[int], unknown: Sequence[bool]) -> str:
    """A line of bars, one for each number; the tallest is the greatest, what is unknown a cross."""
    most = max(1, *numbers) if numbers else 1
    return "".join(
        _UNKNOWN if is_unknown and not number else _BARS[-(-number * (len(_BARS) - 1) // most)]
        for number, is_unknown in zip(numbers, unknown, strict=True)
    )
