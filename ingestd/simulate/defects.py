"""Everything that can be wrong with an export, one named function each.

A defect adds single lines, marks slots, or renames files of one constituency, and tells what it
did. The order of `DEFECTS` is the order in which they are applied: what takes slots away comes
first, what has to outnumber everything else comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .bad_rows import bad_rows, cheap_bad_row
from .contest import EVENING_SLOTS, Contest, Dress, Edition, Kind, Line, Naming
from .ids import Mint
from .life import results_text
from .plan import Plan
from .rows import Row, call_row, compact, entries, failed_vote, issue_row, vote_row
from .shape import generator

MINIMUM_HOURS = 4
ERROR_BUDGET_ROWS = 20


@dataclass(frozen=True, slots=True)
class Defect:
    """What a defect is for, what it does, and whether it is one of hourly files."""

    description: str
    apply: Callable[[Contest], None]
    hourly: bool = False


def assign_defects(plan: Plan) -> dict[int, tuple[str, ...]]:
    """Choose a constituency for each defect of the plan; they share only where they must.

    Raises ValueError for an unknown name, too short a voting, or a plan without hourly files.
    """
    unknown = sorted(set(plan.defects) - set(DEFECTS))
    if unknown:
        msg = f"unknown defects {', '.join(unknown)}; known are {', '.join(DEFECTS)}"
        raise ValueError(msg)
    if plan.defects and plan.hours < MINIMUM_HOURS:
        msg = f"defects need a voting of at least {MINIMUM_HOURS} hours, the plan has {plan.hours}"
        raise ValueError(msg)
    stray = [name for name in plan.defects if DEFECTS[name].hourly and not plan.hourly]
    if stray:
        msg = f"{', '.join(stray)}: defects of hourly files in a plan without them"
        raise ValueError(msg)
    order = generator(plan, 7).permutation(plan.constituencies).tolist()
    chosen: dict[int, tuple[str, ...]] = {}
    for turn, name in enumerate(name for name in DEFECTS if name in plan.defects):
        for number in dict.fromkeys(order[(turn + at) % len(order)] for at in range(_owners(name))):
            chosen[number] = (*chosen.get(number, ()), name)
    return chosen


def _owners(name: str) -> int:
    """How many constituencies a defect needs."""
    return 2 if name == "two_contracts" else 1


def apply_defects(contest: Contest, names: Iterable[str]) -> None:
    """Bend one constituency, in the order of the table."""
    for name in names:
        DEFECTS[name].apply(contest)


def _pick_slots(contest: Contest, count: int, *, avoid: Iterable[int] = ()) -> list[int]:
    """Voting slots that are read, in order; distinct, and not in `avoid`, as far as they reach."""
    sound = [slot for slot in contest.voting if slot not in contest.lost]
    shuffled: list[int] = contest.mint.rng.permutation(sound).tolist()
    # sorted() is stable: the shuffle decides among slots that are equally free.
    free = sorted(shuffled, key=set(avoid).__contains__)
    return sorted((free * count)[:count])


def _bulletin(contest: Contest, slot: int, part: float) -> Line:
    """One more accepted issue."""
    chain = contest.moment(slot, part)
    return contest.add(issue_row(contest.mint, contest.office, chain - 900), chain)


def _vote(contest: Contest, slot: int, part: float, *, sender: str = "") -> tuple[Row, Line]:
    """One more accepted vote, with a bulletin a moment before it."""
    _bulletin(contest, slot, part - 0.04)
    chain = contest.moment(slot, part)
    row = vote_row(contest.mint, contest.office, chain - 900, sender=sender)
    return row, contest.add(row, chain)


def _issue(contest: Contest, slot: int, part: float) -> tuple[Row, Line]:
    chain = contest.moment(slot, part)
    row = issue_row(contest.mint, contest.office, chain - 900)
    return row, contest.add(row, chain)


def _rollback(contest: Contest, row: Row, slot: int, part: float, *, bare: bool) -> Line:
    """A −1 row: the whole row again, or only its first and last column."""
    text = f"{row.tx_id}{';' * 11}-1".encode() if bare else None
    return contest.add(row, contest.moment(slot, part), -1, text=text)


def _again(contest: Contest, row: Row, slot: int, part: float) -> Line:
    return contest.add(row, contest.moment(slot, part))


def _rollback_final(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    row, line = _vote(contest, early, 0.2)
    lines = [line, _rollback(contest, row, late, 0.6, bare=False)]
    row, line = _issue(contest, early, 0.5)
    lines += [line, _rollback(contest, row, early, 0.7, bare=True)]
    contest.tell("rollback_final", lines, "+1, later −1: rolled_back")


def _rollback_return(contest: Contest) -> None:
    early, middle, late = _pick_slots(contest, 3)
    row, line = _vote(contest, early, 0.2)
    lines = [line, _rollback(contest, row, early, 0.5, bare=False)]
    lines.append(_again(contest, row, early, 0.7))
    row, line = _issue(contest, early, 0.3)
    lines += [line, _rollback(contest, row, middle, 0.5, bare=True)]
    lines.append(_again(contest, row, late, 0.8))
    contest.tell("rollback_return", lines, "+1, −1, +1 of one id: on chain")


def _rollback_refail(contest: Contest) -> None:
    early, middle, late = _pick_slots(contest, 3)
    row, line = _vote(contest, early, 0.2)
    lines = [line, _rollback(contest, row, middle, 0.5, bare=True)]
    failed = failed_vote(contest.mint, row, "Voting is not active")
    lines.append(_again(contest, failed, late, 0.8))
    row, line = _issue(contest, early, 0.4)
    lines += [line, _rollback(contest, row, early, 0.6, bare=False)]
    failure = entries(**{f"FAIL_{row.tx_id}_blindSig": "Voter has a bulletin already"})
    lines.append(_again(contest, replace(row, diff=failure), early, 0.8))
    contest.tell("rollback_refail", lines, "accepted, rolled back, then failed: rejected")


def _rollback_first(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    for slot, bare in ((early, True), (late, False)):
        row, line = _vote(contest, late, 0.8)
        lines = [_rollback(contest, row, slot, 0.3, bare=bare), line]
        contest.tell("rollback_first", lines, "−1 stands before its +1: rolled_back")


def _rejected(contest: Contest) -> None:
    mint, office = contest.mint, contest.office
    lines = []
    for slot in _pick_slots(contest, 3):
        chain = contest.moment(slot, 0.45)
        vote = vote_row(mint, office, chain - 900, failure="Invalid blind signature")
        issue = issue_row(mint, office, chain - 900, failure="Voter is not on the list")
        lines += [contest.add(vote, chain), contest.add(issue, chain + 1)]
    contest.tell("rejected", lines, "FAIL votes and issues")


def _revote_blocked(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    row, line = _vote(contest, early, 0.3)
    chain = contest.moment(late, 0.8)
    again = vote_row(
        contest.mint, contest.office, chain - 900, failure="Revote is blocked", sender=row.sender
    )
    lines = [line, contest.add(again, chain)]
    contest.tell("revote_blocked", lines, "second vote of one sender key, rejected")


def _revotes(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    row, line = _vote(contest, early, 0.3)
    _, again = _vote(contest, late, 0.8, sender=row.sender)
    contest.tell("revotes", [line, again], "two accepted votes of one sender key")


def _rewritten(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    row, line = _vote(contest, early, 0.3)
    chain = contest.moment(late, 0.8)
    other = vote_row(contest.mint, contest.office, chain - 900, tx_id=row.tx_id)
    lines = [line, contest.add(other, chain, content=1)]
    contest.tell("rewritten", lines, "one id with another content and no −1 between")


def _republish(contest: Contest) -> int:
    slot = _pick_slots(contest, 1, avoid=contest.republished)[0]
    contest.republished.add(slot)
    return slot


def _tell_republished(contest: Contest, name: str, lines: Sequence[Line], note: str) -> None:
    for edition in (Edition.FIRST, Edition.SECOND):
        held = [line for line in lines if getattr(line, edition.value)]
        if held:
            contest.tell(name, held, note, edition=edition)


def _republished_changed(contest: Contest) -> None:
    slot = _republish(contest)
    lines = []
    for part in (0.3, 0.5, 0.7):
        row, line = _vote(contest, slot, part)
        line.second = line.whole = False
        chain = line.chain
        other = vote_row(contest.mint, contest.office, chain - 800, tx_id=row.tx_id)
        changed = contest.add(other, chain, content=1)
        changed.first = False
        lines += [line, changed]
    _tell_republished(contest, "republished_changed", lines, "three votes differ in drop-2")


def _republished_gone(contest: Contest) -> None:
    _remove_rows(contest, "republished_gone", "gone from drop-2; a whole file holds them still")


def _withdrawn(contest: Contest) -> None:
    for line in _remove_rows(contest, "withdrawn", "gone from every current file"):
        line.whole = False


def _remove_rows(contest: Contest, name: str, note: str) -> list[Line]:
    slot = _republish(contest)
    lines = [_vote(contest, slot, 0.35)[1], _issue(contest, slot, 0.5)[1]]
    lines.append(_vote(contest, slot, 0.65)[1])
    for line in lines:
        line.second = False
    contest.tell(name, lines, note)
    return lines


def _republished_added(contest: Contest) -> None:
    slot = _republish(contest)
    before = len(contest.lines)
    _vote(contest, slot, 0.4)
    _issue(contest, slot, 0.6)
    added = contest.lines[before:]
    for line in added:
        line.first = False
    contest.tell("republished_added", added, "only in drop-2", edition=Edition.SECOND)


def _republished_same(contest: Contest) -> None:
    slot = _republish(contest)
    row, line = _issue(contest, slot, 0.5)
    line.second = False
    spaced = row.params.replace('","', '", "').replace("},{", "}, {")
    again = contest.add(replace(row, params=spaced), line.chain)
    again.first = again.whole = False
    contest.dresses[slot, Edition.SECOND] = Dress(crlf=True)
    note = "drop-2 differs in JSON whitespace and line ends only"
    _tell_republished(contest, "republished_same", [line, again], note)


def _missing_hours(contest: Contest) -> None:
    slot = _expendable_slot(contest)
    contest.missing.add(slot)
    contest.tell_slot("missing_hours", slot, "no hourly file is written")


def _too_many_bad(contest: Contest) -> None:
    slot = _expendable_slot(contest)
    good = contest.plain_count(slot) + len(contest.singles(slot, Edition.FIRST))
    count = max(ERROR_BUDGET_ROWS + 10, good // 10)
    contest.refused.add(slot)
    lines = [
        _add_bad(contest, contest.moment(slot, (at + 1) / (count + 2)), cheap_bad_row(contest))
        for at in range(count)
    ]
    contest.tell_slot(
        "too_many_bad", slot, f"{count} bad rows of {count + good}", lines=tuple(lines)
    )


def _add_bad(contest: Contest, chain: int, text: bytes) -> Line:
    line = Line(chain=chain, text=text, kind=Kind.BAD, whole=not contest.plan.hourly)
    contest.lines.append(line)
    return line


def _expendable_slot(contest: Contest) -> int:
    """A slot with ballots, and such that without it the votes still never pass the bulletins."""
    free = [slot for slot in contest.voting if slot not in contest.lost]
    shuffled: list[int] = contest.mint.rng.permutation(free).tolist()
    return max(shuffled, key=lambda slot: (_keeps_margin(contest, slot), _has_rows(contest, slot)))


def _has_rows(contest: Contest, slot: int) -> bool:
    return contest.plain_count(slot) > 0


def _keeps_margin(contest: Contest, lost: int) -> bool:
    margin = 0
    for slot in range(contest.slots):
        if slot not in contest.lost and slot != lost:
            issues, votes = plain_ballots(contest, slot)
            margin += issues - votes
            if margin < 0:
                return False
    return True


def plain_ballots(contest: Contest, slot: int) -> tuple[int, int]:
    """Plain issues and votes in a slot."""
    voted = contest.timeline.is_vote[contest.bounds[slot] : contest.bounds[slot + 1]]
    votes = int(voted.sum())
    return voted.size - votes, votes


def _bad_rows(contest: Contest) -> None:
    slots = _pick_slots(contest, 3)
    for number, (what, text) in enumerate(bad_rows(contest, contest.moment(slots[0], 0.5))):
        slot = slots[number % len(slots)]
        part = 0.0 if what == "header line" else 0.04 * (number + 1)
        contest.tell("bad_rows", [_add_bad(contest, contest.moment(slot, part), text)], what)


def _unknown_operation(contest: Contest) -> None:
    chain = contest.moment(_pick_slots(contest, 1)[0], 0.5)
    row = call_row(
        contest.mint,
        contest.office,
        "recountBallots",
        chain - 900,
        params=entries(operation="recountBallots", round=2),
        diff=entries(RECOUNT="2"),
    )
    contest.tell("unknown_operation", [contest.add(row, chain)], "recountBallots")


def _odd_encodings(contest: Contest) -> None:
    slots = _pick_slots(contest, 4, avoid=contest.republished)
    dresses = (Dress(bom=True), Dress(crlf=True), Dress(last_newline=False), Dress())
    notes = ("BOM", "CRLF", "no last newline", "blank lines")
    for slot, dress, note in zip(slots, dresses, notes, strict=True):
        for edition in (Edition.FIRST, Edition.SECOND):
            contest.dresses.setdefault((slot, edition), dress)
        contest.tell("odd_encodings", [_odd_row(contest, slot, note)], note)
    for part in (0.0, 0.3, 0.45):
        chain = contest.moment(slots[3], part)
        contest.lines.append(Line(chain=chain, text=b"", kind=Kind.BLANK, whole=False))
    for note in ("12 empty", "raw semicolon", "bare sequence", "intValue as string"):
        contest.tell("odd_encodings", [_odd_row(contest, slots[0], note)], note)
    if contest.plan.hourly:
        empty = EVENING_SLOTS - 2
        contest.always_written.add(empty)
        contest.tell_slot("odd_encodings", empty, "empty file")


def _odd_row(contest: Contest, slot: int, note: str) -> Line:
    """An accepted issue whose writing departs from the usual; by default a semicolon's escape."""
    row, line = _issue(contest, slot, 0.5)
    noted = row.params[:-1] + ',{"key":"note","stringValue":"a\\u003bb"}]'
    line.text = replace(row, params=noted).text()
    if note == "12 empty":
        line.text = row.text("")
    if note == "raw semicolon":
        line.text = replace(row, params=noted.replace("\\u003b", ";")).text()
    if note == "bare sequence":
        line.text = replace(row, params=row.params[1:-1]).text()
    if note == "intValue as string":
        uik = contest.office.uik
        line.text = row.text().replace(b'"intValue":%d' % uik, b'"intValue":"%d"' % uik)
    return line


def _odd_names(contest: Contest) -> None:
    contest.odd_folder = contest.plan.folders
    namings = (Naming(tail="-copy"), Naming(tail=" (1)"), Naming(nameless=True))
    for slot, naming in zip(_pick_slots(contest, 3), namings, strict=True):
        contest.namings[slot] = naming
    late = next(slot for slot in range(24) if contest.slot_name(slot).endswith("-0000"))
    contest.namings[late] = replace(contest.namings.get(late, Naming()), midnight="2400")
    contest.always_written.add(late)
    for slot, naming in sorted(contest.namings.items()):
        contest.tell_slot("odd_names", slot, repr(naming))


def _duplicates(contest: Contest) -> None:
    nameless = {slot for slot, naming in contest.namings.items() if naming.nameless}
    for slot in _pick_slots(contest, 3, avoid=nameless):
        # An empty hour has no content that could be there twice.
        _bulletin(contest, slot, 0.5)
        contest.copied.add(slot)
        contest.tell_slot("duplicates", slot, "the same bytes under other names")


def _outside_window(contest: Contest) -> None:
    """Ballots in a slot before the start, and a bulletin and a refusal after the end."""
    before, after = EVENING_SLOTS - 2, contest.voting.stop
    _, vote = _vote(contest, before, 0.5)
    lines = [vote, _bulletin(contest, after, 0.2)]
    chain = contest.moment(after + 1, 0.1)
    refused = vote_row(contest.mint, contest.office, chain - 900, failure="Voting is not active")
    lines.append(contest.add(refused, chain))
    contest.tell("outside_window", lines, "before the start, or after the end")


def _wrong_clock(contest: Contest) -> None:
    slot = contest.voting.start
    _bulletin(contest, slot, 0.05)
    chain = contest.moment(slot, 0.1)
    row = vote_row(contest.mint, contest.office, contest.moment(slot, 0) - 600_000)
    contest.tell("wrong_clock", [contest.add(row, chain)], "its clock says before the start")


def _far_clock(contest: Contest) -> None:
    slot = contest.voting.stop - 1
    _bulletin(contest, slot, 0.05)
    chain = contest.moment(slot, 0.1)
    row = vote_row(contest.mint, contest.office, chain - 2 * 3_600_000)
    contest.tell("far_clock", [contest.add(row, chain)], "its clock is two hours behind")


def _late_key(contest: Contest) -> None:
    """The main key comes in the second hour of the voting."""
    for line in contest.lines:
        if line.facts is not None and line.facts.operation == "addMainKey":
            contest.lines.remove(line)
            break
    _vote(contest, contest.voting.start, 0.5)
    line = _main_key(contest, contest.voting.start + 1)
    contest.tell("late_key", [line], "votes stand before it")


def _main_key(contest: Contest, slot: int) -> Line:
    chain = contest.moment(slot, 0.3)
    key = contest.mint.hex(33)
    params = entries(operation="addMainKey", mainKey=key)
    row = call_row(
        contest.mint,
        contest.office,
        "addMainKey",
        chain - 600,
        params=params,
        diff=entries(MAIN_KEY=key),
    )
    return contest.add(row, chain)


def _second_key(contest: Contest) -> None:
    line = _main_key(contest, contest.voting.start + 2)
    contest.tell("second_key", [line], "another main key")


def _after_finish(contest: Contest) -> None:
    _, vote = _vote(contest, contest.voting.stop + 1, 0.6)
    contest.tell("after_finish", [vote], "a bulletin and a vote after finishVoting")


def _early_decryption(contest: Contest) -> None:
    chain = contest.moment(contest.voting.stop - 1, 0.9)
    tx_id = contest.mint.tx_id()
    row = call_row(
        contest.mint,
        contest.office,
        "decryption",
        chain - 500,
        params=entries(operation="decryption", decryption="[]"),
        diff=entries(DECRYPTION_0=tx_id),
    )
    line = contest.add(replace(row, tx_id=tx_id), chain)
    contest.tell("early_decryption", [line], "a decryption before finishVoting")


def _change_of_roll(contest: Contest, operation: str, state: str, slot: int, voters: int) -> Line:
    chain = contest.moment(slot, 0.35)
    tx_id = contest.mint.tx_id()
    hashes = compact([contest.mint.hex(32) for _ in range(voters)])
    params = entries(operation=operation, userIdHashes=hashes, primaryUikNumber=1)
    row = call_row(
        contest.mint,
        contest.office,
        operation,
        chain - 500,
        params=params,
        diff=entries(**{f"{state}_{tx_id}": hashes}),
    )
    return contest.add(replace(row, tx_id=tx_id), chain, voters=voters)


def _late_list(contest: Contest) -> None:
    slot = contest.voting.start + 1
    line = _change_of_roll(contest, "addVotersList", "VOTERS_LIST", slot, 25)
    contest.tell("late_list", [line], "a list of 25 voters after the start")


def _purge(contest: Contest) -> None:
    most = max(10, sum(_voters_added(contest)) // 100)
    slot = contest.voting.start + 2
    line = _change_of_roll(contest, "removeFromVotersList", "VOTERS_LIST_REMOVE", slot, most + 3)
    contest.tell("purge", [line], "many voters removed in an hour")


def _voters_added(contest: Contest) -> list[int]:
    facts = [line.facts for line in contest.lines if line.facts is not None]
    return [fact.voters for fact in facts if fact.operation.startswith("add")]


def _results_more(contest: Contest) -> None:
    contest.results_off_by += 500
    contest.tell_slot("results_more", contest.voting.stop + 1, "results of 500 votes too many")


def _results_fewer(contest: Contest) -> None:
    contest.results_off_by -= 3
    contest.tell_slot("results_fewer", contest.voting.stop + 1, "results leave 3 votes out")


def _results_twice(contest: Contest) -> None:
    contest.other_results += 1
    chain = contest.moment(contest.voting.stop + 1, 0.45)
    head = call_row(contest.mint, contest.office, "results", chain - 500, params="", diff="")
    text = partial(results_text, contest, head, 1)
    line = contest.add(head, chain, text=text)
    contest.tell("results_twice", [line], "results again, with other figures")


def _for_many(contest: Contest) -> None:
    chain = contest.moment(_pick_slots(contest, 1)[0], 0.5)
    row = issue_row(contest.mint, contest.office, chain - 900)
    data = compact([{"userId": contest.mint.hex(32), "maskedSig": "00"} for _ in range(2)])
    params = entries(operation="blindSigIssue", data=data)
    both = replace(row, params=params, diff=entries(**{f"BLINDSIG_{row.tx_id}": data}))
    line = contest.add(both, chain, persons=2)
    contest.tell("for_many", [line], "one bulletin for two persons")


def _twice_delivered(contest: Contest) -> None:
    early, late = _pick_slots(contest, 2)
    row, line = _vote(contest, early, 0.3)
    again = _again(contest, row, late, 0.8)
    contest.tell("twice_delivered", [line, again], "one row in two hours, no −1 between")


def _two_contracts(contest: Contest) -> None:
    tx_id = Mint(generator(contest.plan, 9)).tx_id()
    chain = contest.moment(_pick_slots(contest, 1)[0], 0.5)
    row = issue_row(contest.mint, contest.office, chain - 900)
    moved = replace(row, tx_id=tx_id, diff=row.diff.replace(row.tx_id, tx_id))
    contest.tell("two_contracts", [contest.add(moved, chain)], "one id in two contracts")


def _whole_lacks(contest: Contest) -> None:
    _, line = _vote(contest, contest.voting.start + 1, 0.5)
    line.whole = False
    contest.tell("whole_lacks", [line], "not in the whole file, where there is one")


def _rollback_burst(contest: Contest) -> None:
    slot = contest.voting.start + 1
    lines = []
    for at in range(6):
        row, line = _issue(contest, slot, 0.3 + 0.02 * at)
        lines += [line, _rollback(contest, row, slot, 0.6 + 0.02 * at, bare=True)]
    contest.tell("rollback_burst", lines, "six bulletins of one hour rolled back")


def _refused_again(contest: Contest) -> None:
    slot = contest.voting.start + 1
    row, line = _vote(contest, slot, 0.3)
    lines = [line]
    votes = int(contest.timeline.is_vote.sum()) + len(contest.lines)
    for at in range(max(4, votes // 50)):
        chain = contest.moment(slot, 0.4 + 0.0005 * at)
        again = vote_row(
            contest.mint,
            contest.office,
            chain - 900,
            failure="Revote is blocked",
            sender=row.sender,
        )
        lines.append(contest.add(again, chain))
    contest.tell("refused_again", lines, "many second votes, all refused")


def _late_file(contest: Contest) -> None:
    slot = _pick_slots(contest, 1, avoid=contest.republished)[0]
    contest.late.add(slot)
    contest.tell_slot("late_file", slot, "written five hours after the others")


def _constituency_missing(contest: Contest) -> None:
    contract = contest.mint.tx_id()
    contest.never_written.append(contract)
    contest.tell_slot("constituency_missing", contest.voting.start, f"no file of {contract}")


def _over_registered(contest: Contest) -> None:
    facts = [line.facts for line in contest.lines if line.facts is not None]
    greatest = sum(fact.voters for fact in facts if fact.operation.startswith("add"))
    issued = sum(
        plain_ballots(contest, slot)[0] for slot in range(contest.slots) if slot not in contest.lost
    )
    lines = _spread(contest, greatest - issued + 5, _bulletin)
    contest.tell("over_registered", lines, "more bulletins than voters")


def _stuffing(contest: Contest) -> None:
    kept = [slot for slot in range(contest.slots) if slot not in contest.lost]
    margin = sum(issues - votes for issues, votes in (plain_ballots(contest, at) for at in kept))
    facts = [line.facts for line in contest.lines if line.facts is not None]
    issued = {fact.tx_id for fact in facts if fact.operation == "blindSigIssue"}
    lines = _spread(contest, max(0, margin) + len(issued) + 5, _lone_vote)
    contest.tell("stuffing", lines, "votes without bulletins")


def _lone_vote(contest: Contest, slot: int, part: float) -> Line:
    chain = contest.moment(slot, part)
    return contest.add(vote_row(contest.mint, contest.office, chain - 900), chain)


def _spread(
    contest: Contest, count: int, make: Callable[[Contest, int, float], Line]
) -> list[Line]:
    """Make `count` lines, spread over some slots."""
    slots = _pick_slots(contest, 3)
    return [make(contest, slots[at % len(slots)], 0.1 + 0.8 * at / count) for at in range(count)]


DEFECTS: dict[str, Defect] = {
    "missing_hours": Defect("an hourly file is not written", _missing_hours, hourly=True),
    "too_many_bad": Defect("a file over the error budget", _too_many_bad, hourly=True),
    "republished_changed": Defect(
        "a slot again, rows with another content", _republished_changed, hourly=True
    ),
    "republished_gone": Defect("a slot again, rows left out", _republished_gone, hourly=True),
    "republished_added": Defect("a slot again with more rows", _republished_added, hourly=True),
    "republished_same": Defect(
        "a slot again, only whitespace differs", _republished_same, hourly=True
    ),
    "withdrawn": Defect("rows that no current file holds", _withdrawn, hourly=True),
    "rollback_final": Defect("rolled back for good", _rollback_final),
    "rollback_return": Defect("rolled back and on the chain again", _rollback_return),
    "rollback_refail": Defect("rolled back, then failed", _rollback_refail),
    "rollback_first": Defect("the rollback stands before its row", _rollback_first),
    "rejected": Defect("votes and issues that failed", _rejected),
    "revote_blocked": Defect("a second vote of one key, rejected", _revote_blocked),
    "revotes": Defect("two accepted votes of one key", _revotes),
    "rewritten": Defect("one id with two contents", _rewritten),
    "bad_rows": Defect("a bad row of every kind", _bad_rows),
    "unknown_operation": Defect("an operation nobody has heard of", _unknown_operation),
    "odd_encodings": Defect("BOM, CRLF, blank lines, odd JSON", _odd_encodings),
    "odd_names": Defect("odd file and folder names", _odd_names, hourly=True),
    "duplicates": Defect("the same bytes under other names", _duplicates, hourly=True),
    "outside_window": Defect("ballots before the start and after the end", _outside_window),
    "wrong_clock": Defect("a vote whose clock says before the start", _wrong_clock),
    "far_clock": Defect("a vote whose clock is hours behind", _far_clock),
    "late_key": Defect("votes before the main key", _late_key),
    "second_key": Defect("a second main key", _second_key),
    "after_finish": Defect("ballots after the finish", _after_finish),
    "early_decryption": Defect("a decryption before the finish", _early_decryption),
    "late_list": Defect("a list of voters after the start", _late_list),
    "purge": Defect("many voters removed in an hour", _purge),
    "for_many": Defect("a bulletin for two persons", _for_many),
    "twice_delivered": Defect("one row in two hours", _twice_delivered, hourly=True),
    "two_contracts": Defect("one transaction in two contracts", _two_contracts),
    "whole_lacks": Defect("rows that the whole file lacks", _whole_lacks, hourly=True),
    "rollback_burst": Defect("many rollbacks in an hour", _rollback_burst),
    "refused_again": Defect("many second votes, refused", _refused_again),
    "late_file": Defect("a file written hours late", _late_file, hourly=True),
    "constituency_missing": Defect("a contract without any file", _constituency_missing),
    "results_more": Defect("results of more votes than there are", _results_more),
    "results_fewer": Defect("results of fewer votes than there are", _results_fewer),
    "results_twice": Defect("results twice, not the same", _results_twice),
    "over_registered": Defect("more bulletins than voters", _over_registered),
    "stuffing": Defect("more votes than bulletins", _stuffing),
}
