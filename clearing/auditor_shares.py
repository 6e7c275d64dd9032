"""The second half of the auditor: who should have been given what, from audited rides and `clearing.toml` alone.

Written apart from the close and on purpose in another way: it knows no pools and no close before, only rides, sales and the words
of docs/clearing.md. It gives each party's exact sum for all service dates up to one, as a fraction. It knows the methods
`own_leg`, `fixed`, `gross_cost`, `paid_fares` and `standalone_fares` over a service day or week, and `use`; what it does not
know it names, and then it says nothing of the sums."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from clearing.auditor import AuditedLeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A part of a pass or book that is given to those whose rides it paid: for a service date."""

    product_id: str
    service_date: str
    amount: int


@dataclass(slots=True)
class Shared:
    """Each party's exact sum, and what of the file is not understood."""

    sums: dict[str, Fraction]
    not_understood: list[str]


def share(
    path: Path,
    rides: Mapping[str, Iterable[AuditedLeg]],
    released: Iterable[Released],
    cap_networks: Mapping[str, frozenset[str]],
    through: str,
) -> Shared:
    """What everybody should have been given for the service dates up to `through`: `rides` by traveller. `cap_networks` are the
    networks whose rides each cap counts; none: all."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["agreements"]
    unknown = sorted({_name(row) for row in rows if not _is_understood(row)})
    found = Shared(defaultdict(Fraction), unknown)
    if unknown:
        return found
    used: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for legs in rides.values():
        known = [leg for leg in legs if leg.service_date <= through and leg.operator_id is not None and leg.status != "open"]
        for leg in known:
            _give_leg(found.sums, rows, leg)
            if leg.product is not None:
                used[leg.product, leg.service_date][leg.operator_id or ""] += leg.fare
        _share_caps(found.sums, rows, known, cap_networks, through)
    for part in released:
        if part.service_date <= through:
            row = _find(rows, "products", part.service_date, product=part.product_id)
            _give(found.sums, _by(row, part.amount, used[part.product_id, part.service_date]))
    return found


def _give_leg(sums: dict[str, Fraction], rows: list[dict[str, Any]], leg: AuditedLeg) -> None:
    """What riders and bearers pay for a ride, caps apart."""
    assert leg.operator_id is not None
    taken_by_bearers = sum(amount for _, bearer, amount in leg.capped if bearer != "operators")
    paid = (leg.charge or 0) + sum(amount for _, _, amount in leg.capped) + sum(leg.funded.values()) - taken_by_bearers
    row = _find(rows, "legs", leg.service_date, network=leg.network_id)
    if row["method"] == "fixed":
        _give(sums, _split(paid, row["shares"]))
    else:
        sums[row.get("residual") or leg.operator_id] += paid


def _share_caps(
    sums: dict[str, Fraction],
    rows: list[dict[str, Any]],
    legs: list[AuditedLeg],
    cap_networks: Mapping[str, frozenset[str]],
    through: str,
) -> None:
    """What caps took off one traveller, by what his rides of the day or week cost."""
    for leg in legs:
        for cap, bearer, amount in leg.capped:
            if bearer != "operators" or not amount:
                continue
            row = _find(rows, "caps", leg.service_date, rule=cap)
            first, last = _period(row.get("scope"), leg.service_date)
            if last > through:
                first = last = leg.service_date
            networks = cap_networks.get(cap)
            weights: dict[str, int] = defaultdict(int)
            for other in legs:
                if first <= other.service_date <= last and (not networks or other.network_id in networks):
                    worth = other.fare if row["method"] == "standalone_fares" else other.before_caps
                    weights[other.operator_id or ""] += worth
            _give(sums, _by(row, -amount, weights))


def _find(
    rows: list[dict[str, Any]], covers: str, on: str, *, network: str | None = None, rule: str = "", product: str = ""
) -> dict[str, Any]:
    """The first row that covers something of a service date."""
    for row in rows:
        fits = (
            row["covers"] == covers
            and str(row["valid_from"]) <= on <= str(row.get("valid_to", "9999"))
            and (not row.get("networks") or network in row["networks"])
            and (not row.get("rules") or rule in row["rules"])
            and (not row.get("products") or product in row["products"])
        )
        if fits:
            return row
    raise LookupError(f"no row covers {covers} {network or rule or product} of {on}")


def _is_understood(row: Mapping[str, Any]) -> bool:
    methods = {
        "legs": ("own_leg", "fixed", "gross_cost"),
        "caps": ("paid_fares", "standalone_fares", "fixed", "gross_cost"),
        "products": ("use", "fixed", "gross_cost"),
    }
    scopes = {"caps": ("service_day", "week"), "products": (None, "service_day")}.get(row["covers"], (None,))
    if row["method"] not in ("paid_fares", "standalone_fares", "use"):
        scopes = (None,)
    return (
        row["method"] in methods.get(row["covers"], ())
        and row.get("scope") in scopes
        and not row.get("operators")
        and not row.get("paid_by")
        and row.get("weigh_by", "standalone_fares") == "standalone_fares"
    )


def _name(row: Mapping[str, Any]) -> str:
    return str(row["agreement_id"])


def _period(scope: str | None, on: str) -> tuple[str, str]:
    if scope != "week":
        return on, on
    day = date.fromisoformat(on)
    monday = day - timedelta(days=day.weekday())
    return monday.isoformat(), (monday + timedelta(days=6)).isoformat()


def _by(row: Mapping[str, Any], amount: int, weights: Mapping[str, int]) -> dict[str, Fraction]:
    if row["method"] == "fixed":
        return _split(amount, row["shares"])
    if row["method"] == "gross_cost":
        return {row["residual"]: Fraction(amount)}
    positive = {party: weight for party, weight in weights.items() if weight > 0}
    return _split(amount, positive or row.get("without_use") or dict.fromkeys(weights, 1))


def _split(amount: int, weights: Mapping[str, int]) -> dict[str, Fraction]:
    whole = sum(weights.values())
    return {party: Fraction(amount * weight, whole) for party, weight in weights.items()}


def _give(sums: dict[str, Fraction], shares: Mapping[str, Fraction]) -> None:
    for party, amount in shares.items():
        sums[party] += amount
