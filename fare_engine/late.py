"""What comes too late to be collected or given back: the tariff's limits, and what they waive.

Lines are a function of facts and stay as they are; money collected is their sum less waivers. A waiver depends on when a fact
came in, so it is a posting with a bearer and a reason, not a line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

import msgspec

from fare_engine.booking import Movement
from fare_engine.service_day import to_day
from fare_engine.tariff.compile import CompiledTariff


class Waiver(msgspec.Struct, frozen=True):
    """What is not collected for a service date (`amount`; less than zero: not given back), and who bears it."""

    service_date: str
    account_id: str
    bearer: str
    amount: int


def waivers(
    tariff: CompiledTariff, movements: Iterable[Movement], account_id: str, waived: Mapping[str, int], now: int
) -> list[Waiver]:
    """What of some movements is waived at `now`; `waived` is what was before, by service date.

    A charge later than `charge_within_days` is not collected. What is then taken back of it gives nothing back, for nothing
    was paid; what was paid is given back up to `refund_within_days`, then kept."""
    moved: dict[tuple[str, str], int] = {}
    for movement in movements:
        key = (movement.service_date, movement.account_id or account_id)
        moved[key] = moved.get(key, 0) + movement.line.amount
    found = []
    for (service_date, paying), amount in sorted(moved.items()):
        waiver = _waiver(tariff, service_date, amount, waived.get(service_date, 0), now)
        if waiver is not None and waiver[1]:
            found.append(Waiver(service_date, paying, *waiver))
    return found


def _waiver(tariff: CompiledTariff, service_date: str, amount: int, waived: int, now: int) -> tuple[str, int] | None:
    version = tariff.version_at(now)
    if version is None or not amount:
        return None
    limits = version.version.file.accounts
    age = version.service_day(now) - to_day(date.fromisoformat(service_date))
    if amount > 0:
        undone = min(amount, max(0, -waived))  # what was kept is charged first: it was never given back
        late = limits.charge_within_days is not None and age > limits.charge_within_days
        return limits.waivers_borne_by, (amount if late else undone)
    undone = min(-amount, max(0, waived))  # what was never collected is not given back
    late = limits.refund_within_days is not None and age > limits.refund_within_days
    return limits.waivers_borne_by, amount if late else -undone
