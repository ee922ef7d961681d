"""What the rules about all constituencies must find, recounted from what each leaves behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from .contest import Contest
from .files import WHOLE, FileRecord

IN_A_ROW = FLEET_LEAST = FEWEST_FILES = 3
BURST_LEAST = BURST_SEVERAL = LATE_SEVERAL = 3
BURST_Z = 4.5
LATE = timedelta(hours=2)


class Feed:
    """The rules that need all constituencies, recounted from what each of them leaves here."""

    def __init__(self) -> None:
        self._gaps: list[tuple[str, list[str]]] = []
        self._hours: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
        self._written: dict[str, dict[str, datetime]] = defaultdict(dict)
        self._owners: dict[str, set[str]] = defaultdict(set)
        self._constituencies = 0

    def add(
        self,
        contest: Contest,
        records: Iterable[FileRecord],
        *,
        gaps: Iterable[list[int]],
        rollbacks: Mapping[int, tuple[int, int]],
        ids: Iterable[str],
    ) -> None:
        """Keep what matters of one constituency."""
        contract = contest.constituency.contract
        self._constituencies += 1
        for run in gaps:
            self._gaps.append((contract, [contest.slot_name(slot) for slot in run]))
        for hour, (rolled_back, rows) in rollbacks.items():
            self._hours[hour].append((contract, rolled_back, rows))
        for record in records:
            if record.slot != WHOLE and record.outcome in ("completed", "superseded"):
                written = datetime.fromisoformat(record.written_at)
                earliest = min(written, self._written[record.slot].get(contract, written))
                self._written[record.slot][contract] = earliest
        for tx_id in ids:
            self._owners[tx_id].add(contract)

    def alerts(self) -> Iterator[dict[str, Any]]:
        """The alerts expected at the end."""
        lacking = Counter(slot for _contract, run in self._gaps for slot in run)
        for contract, run in self._gaps:
            most = max(lacking[slot] for slot in run)
            is_fleet = most >= FLEET_LEAST and most >= 0.1 * self._constituencies
            severity = "critical" if len(run) >= IN_A_ROW or is_fleet else "warning"
            yield alert_of("missing_hour", severity, contract, run[0])
        yield from self._bursts()
        yield from self._late()
        for tx_id, owners in self._owners.items():
            if len(owners) > 1:
                yield alert_of("transaction_in_two_contracts", "critical", None, tx_id)

    def _late(self) -> Iterator[dict[str, Any]]:
        """Neighbouring late hours are one; those of many constituencies are the fleet's."""
        single: dict[str, list[str]] = defaultdict(list)
        shared: list[str] = []
        for slot, written in sorted(self._written.items()):
            in_order = sorted(written.values())
            first, usual, last = (in_order[at * (len(in_order) - 1) // 4] for at in (1, 2, 3))
            if len(written) < FEWEST_FILES or last - first > LATE:
                continue
            late = [contract for contract, moment in written.items() if moment - usual > LATE]
            if len(late) >= LATE_SEVERAL:
                shared.append(slot)
            else:
                for contract in late:
                    single[contract].append(slot)
        for first_slot in _first_of_runs(shared):
            yield alert_of("late_file", "info", None, f"fleet {first_slot}")
        for contract, slots in single.items():
            for first_slot in _first_of_runs(slots):
                yield alert_of("late_file", "info", contract, first_slot)

    def _bursts(self) -> Iterator[dict[str, Any]]:
        for hour, rows in self._hours.items():
            total = sum(one[2] for one in rows)
            rolled_back = sum(one[1] for one in rows)
            found = [
                contract
                for contract, number, of in rows
                if number >= BURST_LEAST
                and (number >= 0.01 * of or _z(number, of, rolled_back, total) >= BURST_Z)
            ]
            name = hour_name(hour)[:13]
            if len(found) >= BURST_SEVERAL:
                yield alert_of("rollback_burst", "warning", None, f"fleet {name}")
            else:
                for contract in found:
                    yield alert_of("rollback_burst", "warning", contract, f"{contract} {name}")


def _first_of_runs(slots: list[str]) -> Iterator[str]:
    """The first of slots that follow each other: each ends where the next begins."""
    last = ""
    for slot in slots:
        if _begin(slot) != (_begin(last) + timedelta(hours=1) if last else None):
            yield slot
        last = slot


def _begin(slot: str) -> datetime:
    return datetime.strptime(slot[:15], "%Y-%m-%d_%H%M").replace(tzinfo=UTC)


def _z(number: int, rows: int, all_rolled_back: int, all_rows: int) -> float:
    share = (all_rolled_back - number + 1) / (all_rows - rows + 2)
    spread = max((share * rows * (1 - share)) ** 0.5, 1.0)
    return float((number - share * rows) / spread)


def alert_of(rule: str, severity: str | None, contract: str | None, subject: str) -> dict[str, Any]:
    """An alert as truth.json tells it."""
    return {"rule": rule, "contract": contract, "subject": subject, "severity": severity}


def hour_name(hour: int) -> str:
    """An hour since the epoch as truth.json tells it."""
    return f"{datetime.fromtimestamp(hour * 3600, UTC):%Y-%m-%dT%H:00:00Z}"
