"""The life of a contract: its state transactions, and the small change of every clean election."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np

from .contest import EVENING_SLOTS, Contest
from .ids import Mint
from .plan import Plan
from .rows import Office, Row, call_row, compact, entries, issue_row, vote_row
from .shape import Constituency, generator
from .timeline import draw_timeline

MANY_BALLOTS = 1_000  # enough for a refusal to be expected
ROLL_THAT_CHANGES = 30  # a smaller one has no voter to spare


def begin_contest(plan: Plan, constituency: Constituency) -> Contest:
    """A constituency with everything a clean one has."""
    mint = Mint(generator(plan, 4, constituency.number))
    contest = Contest(
        plan=plan,
        constituency=constituency,
        office=Office(
            contract=constituency.contract,
            region_code=constituency.region.code,
            uik=constituency.uik,
            options=constituency.options,
            server=mint.key(),
        ),
        timeline=draw_timeline(generator(plan, 2, constituency.number), constituency),
        mint=mint,
    )
    _add_evening(contest)
    _add_voting(contest)
    _add_finish(contest)
    return contest


def _add_evening(contest: Contest) -> None:
    contest.add(_create_row(contest), contest.moment(0, 0.05))
    keys = {name: contest.mint.hex(33) for name in ("mainKey", "commissionKey", "dkgKey")}
    states = dict(zip(("MAIN_KEY", "COMMISSION_KEY", "DKG_KEY"), keys.values(), strict=True))
    _add_call(contest, "addMainKey", contest.moment(0, 0.10), keys, states)
    roll, size = contest.constituency.roll, contest.plan.voters_per_list
    lists = -(-roll // size)
    for number in range(lists):
        chain = contest.moment(0, 0.2 + 0.7 * number / lists)
        _add_voters_list(contest, number, chain, min(size, roll - number * size))


def _create_row(contest: Contest) -> Row:
    mint, constituency = contest.mint, contest.constituency
    start, end = _utc_text(constituency.start_ms), _utc_text(constituency.end_ms)
    poll, bulletin = str(constituency.uik), mint.hex(32)
    dimension = compact([[1, 1, constituency.options]])
    params = entries(
        pollId=poll,
        bulletinHash=bulletin,
        dimension=dimension,
        keys=compact([contest.office.server]),
        registrators=compact([contest.office.server]),
        dateStart=start,
        dateEnd=end,
        isRevoteBlocked=True,
    )
    base = {
        "pollId": poll,
        "bulletinHash": bulletin,
        "dimension": dimension,
        "dateStart": start,
        "dateEnd": end,
        "isRevoteBlocked": True,
    }
    image = {"image": "voting-contract", "imageHash": mint.hex(32), "contractName": "voting"}
    return Row(
        tx_id=constituency.contract,
        operation="createContract",
        signature=mint.key(),
        ts=contest.moment(0, 0.05) - 700,
        sender=contest.office.server,
        params=params,
        diff=entries(
            VOTING_BASE=compact(base),
            SERVERS=compact([contest.office.server]),
            MAIN_REGISTRATOR=contest.office.server,
        ),
        tx_type="103",
        version="3",
        extra=compact(image),
    )


def _add_voters_list(contest: Contest, number: int, chain: int, voters: int) -> None:
    """A list is written anew at each reading: it may be megabytes."""
    head = call_row(contest.mint, contest.office, "addVotersList", chain - 900, params="", diff="")
    seed = (5, contest.constituency.number, number)
    text = partial(_voters_list_text, contest, head, seed, voters)
    contest.add(head, chain, text=text, voters=voters)


def _voters_list_text(contest: Contest, head: Row, seed: tuple[int, ...], voters: int) -> bytes:
    hashes = _hashes(generator(contest.plan, *seed), voters)
    office = contest.office
    params = entries(
        operation=head.operation,
        contractId=office.contract,
        votersCount=voters,
        userIdHashes=hashes,
        primaryUikRegionCode=office.region_code,
        primaryUikNumber=office.uik,
    )
    state = compact({"userIdHashes": "@", "primaryUikNumber": office.uik})
    diff = entries(**{f"VOTERS_LIST_{head.tx_id}": state.replace('"@"', hashes)})
    return replace(head, params=params, diff=diff).text()


def _hashes(rng: np.random.Generator, count: int) -> str:
    digits = rng.bytes(32 * count).hex()
    return "[" + ",".join(f'"{digits[i : i + 64]}"' for i in range(0, len(digits), 64)) + "]"


def _add_voting(contest: Contest) -> None:
    """The start, a few refusals, and voters who join or leave the list."""
    rng, mint, office = contest.mint.rng, contest.mint, contest.office
    start = contest.constituency.start_ms
    state = {"VOTING_BASE": compact({"status": "Active", "dateStart": _utc_text(start)})}
    params = {"dateStart": _utc_text(start)}
    _add_call(contest, "startVoting", start + 5_000, params, state, late=200)
    refusals = int(rng.integers(0, 3)) + int(contest.timeline.ts.size > MANY_BALLOTS)
    for _ in range(refusals):
        chain = _some_moment(contest)
        contest.add(vote_row(mint, office, chain - 800, failure="Invalid blind signature"), chain)
        chain = _some_moment(contest)
        contest.add(issue_row(mint, office, chain - 800, failure="Voter is not on the list"), chain)
    if contest.constituency.roll >= ROLL_THAT_CHANGES:
        _add_list_change(contest, "addToVotersList", "ADD", voters=int(rng.integers(1, 4)))
        _add_list_change(contest, "removeFromVotersList", "REMOVE", voters=int(rng.integers(1, 4)))


def _add_list_change(contest: Contest, operation: str, state: str, *, voters: int) -> None:
    chain, office = _some_moment(contest), contest.office
    hashes, tx_id = _hashes(contest.mint.rng, voters), contest.mint.tx_id()
    params = entries(
        operation=operation,
        userIdHashes=hashes,
        primaryUikRegionCode=office.region_code,
        primaryUikNumber=office.uik,
    )
    diff = entries(**{f"VOTERS_LIST_{state}_{tx_id}": hashes})
    row = call_row(contest.mint, office, operation, chain - 400, params=params, diff=diff)
    contest.add(replace(row, tx_id=tx_id), chain, voters=voters)


def _add_finish(contest: Contest) -> None:
    """Late votes are over by 20:15; then the finish, the decryptions, and the results."""
    tail, mint = contest.voting.stop, contest.mint
    ended = contest.moment(tail, 0.30)
    state = {"VOTING_BASE": compact({"status": "Completed", "dateEnd": _utc_text(ended)})}
    _add_call(contest, "finishVoting", ended, {}, state)
    for operation, key, part in (
        ("decryption", f"DECRYPTION_{mint.hex(33)}", 0.10),
        ("commissionDecryption", "COMMISSION_DECRYPTION", 0.20),
    ):
        tx_id = mint.tx_id()
        row = call_row(
            mint,
            contest.office,
            operation,
            contest.moment(tail + 1, part) - 500,
            params=entries(operation=operation, decryption=compact([[mint.hex(33)]])),
            diff=entries(**{key: tx_id}),
        )
        contest.add(replace(row, tx_id=tx_id), contest.moment(tail + 1, part))
    chain = contest.moment(tail + 1, 0.4)
    head = call_row(mint, contest.office, "results", chain - 500, params="", diff="")
    # How many votes there are to share out is known when the defects are in.
    contest.add(head, chain, text=partial(results_text, contest, head))


def results_text(contest: Contest, head: Row, moved: int = 0) -> bytes:
    """The results row; `moved` marks more for the first option."""
    rng = generator(contest.plan, 6, contest.constituency.number)
    shares = rng.dirichlet(np.full(contest.constituency.options, 2.0))
    marks = rng.multinomial(marks_given(contest), shares).tolist()
    marks[0] += moved
    results = compact([marks])
    params = entries(operation="results", results=results)
    return replace(head, params=params, diff=entries(RESULTS=results)).text()


def marks_given(contest: Contest) -> int:
    """What the results sum to: the votes, unless a defect has it otherwise."""
    return _accepted_votes(contest) + contest.results_off_by


def _accepted_votes(contest: Contest) -> int:
    """Votes on the chain at the end, were every file there."""
    net: Counter[str] = Counter()
    failed: dict[str, bool] = {}
    for line in sorted(contest.lines, key=lambda line: line.chain):
        if line.facts is not None and line.facts.operation == "vote" and line.second:
            net[line.facts.tx_id] += line.sign
            failed[line.facts.tx_id] = line.facts.failed
    on_chain = sum(sign > 0 and not failed[tx_id] for tx_id, sign in net.items())
    return int(contest.timeline.is_vote.sum()) + on_chain


def _add_call(
    contest: Contest,
    operation: str,
    chain: int,
    params: dict[str, str],
    states: dict[str, str],
    *,
    late: int = 600,
) -> None:
    row = call_row(
        contest.mint,
        contest.office,
        operation,
        chain - late,
        params=entries(operation=operation, **params),
        diff=entries(**states),
    )
    contest.add(row, chain)


def _some_moment(contest: Contest) -> int:
    slot = EVENING_SLOTS + int(contest.mint.rng.integers(0, contest.plan.hours))
    return contest.moment(slot, float(contest.mint.rng.uniform(0.05, 0.95)))


def _utc_text(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%d-%m-%Y %H:%M:%S}"
