"""Which rows of published statements gave somebody the money that is disputed.

Pure. Whoever disputes a row of another's statement means that row. Whoever disputes a row of his own means the rows by which
others were given what it took: those of the operators whose legs he paid for, or the other side of a share, fee or subsidy.
Single legs are found in the rows that sum them."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from clearing.agreements import RIDERS
from clearing.disputes.claims import Claim, Holding, LegLine
from clearing.documents import harmless
from fare_engine.errors import NotFoundError

Rows = Mapping[str, dict[int, dict[str, str]]]
"""Party → the rows of its statement, by number."""
LEGS = ("legs", "late")
DISPUTABLE = (*LEGS, "shared", "rides", "subsidies", "commissions")
"""Sections by which a party is given something that another may claim."""
MIRRORED = ("service_date", "what", "network_id", "rule_id", "paid_by", "agreement_id")
"""What the two sides of a share, fee or subsidy have in common."""


def read_rows(content: bytes) -> dict[int, dict[str, str]]:
    """The numbered rows of a published statement."""
    return {int(row["line"]): row for row in csv.DictReader(io.StringIO(content.decode())) if row["line"]}


def amounts(rows: Rows) -> dict[tuple[str, int], int]:
    """What each row gave its party: (party, line) → minor units."""
    return {(party, line): int(row["amount"] or 0) for party, found in rows.items() for line, row in found.items()}


def holdings(claim: Claim, rows: Rows, booked: Iterable[LegLine]) -> list[Holding]:
    """What is disputed, as it was given. `booked`: what was booked of the claim's legs under its date. NotFoundError for a
    statement, row or leg that there is not."""
    if claim.party_id not in rows:
        raise NotFoundError(f"no statement {claim.accounting_date}/{claim.party_id}")
    row = rows[claim.party_id].get(claim.line)
    if claim.line and row is None:
        raise NotFoundError(f"the statement {claim.accounting_date}/{claim.party_id} has no line {claim.line}")
    found = _of_legs(claim, rows, row, list(booked)) if claim.leg_ids else _of_rows(claim, rows, row)
    if row is not None and claim.party_id == claim.claimant and int(row["amount"] or 0) >= 0:
        return []  # a row that took nothing from whoever disputes it
    meant = [one for one in found if one.amount > 0 and one.party_id != claim.claimant]
    return sorted(one for one in meant if not claim.against or one.party_id in claim.against)


def _of_rows(claim: Claim, rows: Rows, row: dict[str, str] | None) -> Iterator[Holding]:
    if row is None:
        raise NotFoundError("a dispute names a line, or legs")
    if claim.party_id != claim.claimant:
        if row["section"] in DISPUTABLE:
            yield _whole(claim.party_id, row)
        return
    for party, listed in rows.items():
        yield from (_whole(party, other) for other in listed.values() if _is_other_side(row, claim.party_id, other))


def _whole(party: str, row: dict[str, str]) -> Holding:
    return Holding(party, int(row["line"]), "", int(row["count"] or 1), int(row["amount"]))


def _is_other_side(row: dict[str, str], party: str, other: dict[str, str]) -> bool:
    if row["section"] == "borne":
        same = all(row[name] == other[name] for name in ("service_date", "what", "network_id", "rule_id"))
        return same and other["section"] in LEGS and other["paid_by"] == party
    if row["section"] in LEGS or row["section"] not in DISPUTABLE:
        return False
    return row["section"] == other["section"] and all(row[name] == other[name] for name in MIRRORED)


def _of_legs(claim: Claim, rows: Rows, row: dict[str, str] | None, booked: list[LegLine]) -> Iterator[Holding]:
    unknown = sorted(set(claim.leg_ids) - {line.leg_id for line in booked})
    if unknown:
        raise NotFoundError(f"nothing was booked of {', '.join(unknown[:5])} under {claim.accounting_date}")
    places = {
        (party, other["section"], *(other[name] for name in MIRRORED[:5])): number
        for party, listed in rows.items()
        for number, other in listed.items()
        if other["section"] in LEGS
    }
    given: dict[tuple[str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for line in booked:
        section = "legs" if line.service_date == claim.accounting_date else "late"
        of_row = (line.service_date, line.kind, line.network_id, harmless(line.rule_id))
        for paid_by, amount in (("cash" if line.by_cash else RIDERS, line.amount), (line.bearer, line.funded)):
            number = places.get((line.operator_id, section, *of_row, harmless(paid_by)))
            if number is not None and _is_meant(claim, row, line.operator_id, rows[line.operator_id][number]):
                given[line.operator_id, line.leg_id][number] += amount
    for (party, leg_id), parts in given.items():
        left = sum(parts.values())
        for number, amount in sorted(parts.items()):
            of_this = max(0, min(amount, left))
            left -= of_this
            yield Holding(party, number, leg_id, 1, of_this)


def _is_meant(claim: Claim, row: dict[str, str] | None, operator_id: str, found: dict[str, str]) -> bool:
    if claim.party_id != claim.claimant:
        return operator_id == claim.party_id and (row is None or found["line"] == row["line"])
    return row is None or row["section"] != "borne" or _is_other_side(row, claim.party_id, found)
