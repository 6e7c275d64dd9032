"""What can be disputed of a statement, how much of it, and what a decision gives to whom.

Pure. A **holding** is what one row of a published statement gave its party, in all or for one leg; a dispute holds parts of
holdings. All that is open or was granted of a holding is never more than the holding, and never more than its row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from fare_engine import ledger
from fare_engine.errors import DisputeError
from fare_engine.ledger import Code, Posting
from fare_engine.money import apportion

State = Literal["open", "accepted", "partly", "declined"]
CLEARING_HOUSE, AUDITOR = "clearing house", "auditor"
"""Who disputes without claiming money for himself: whom it goes to is said by the decision."""
MOST_TEXT = 2000


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody disputes: a row of a published statement, single legs of it, or single legs of the date."""

    claimant: str
    accounting_date: str
    party_id: str
    """Whose statement it is: the claimant's own, or that of who holds the money."""
    line: int = 0
    """The number of the row; 0: legs of any row."""
    leg_ids: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """Who holds the money, where not everybody who does is meant."""
    amount: int | None = None
    """In minor units; None: all that is left of it."""
    text: str = ""


class Holding(msgspec.Struct, frozen=True, order=True):
    """What a row of a party's statement gave it: in all (`leg_id` empty), or for one leg."""

    party_id: str
    line: int
    leg_id: str
    legs: int
    amount: int

    @property
    def key(self) -> tuple[str, int, str]:
        """Where it stands among the statements of its date."""
        return self.party_id, self.line, self.leg_id


class LegLine(msgspec.Struct, frozen=True):
    """A line of a leg as it was booked under a date, or reversed."""

    leg_id: str
    operator_id: str
    service_date: str
    kind: str
    network_id: str
    rule_id: str
    bearer: str
    by_cash: bool
    amount: int
    funded: int
    version_id: str
    cause: str


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What a dispute holds of a holding, and what of that was granted to the claimant."""

    dispute_id: str
    number: int
    accounting_date: str
    party_id: str
    line: int
    leg_id: str
    legs: int
    amount: int
    granted: int | None = None
    """None: not decided."""

    @property
    def taken(self) -> int:
        """What nobody else can dispute."""
        return self.amount if self.granted is None else self.granted


class Dispute(msgspec.Struct, frozen=True, kw_only=True):
    """A dispute, from its opening to its decision. `held_under` and `decided_under` are the dates under which money moved."""

    dispute_id: str
    claimant: str
    accounting_date: str
    party_id: str
    line: int
    amount: int
    text: str
    opened_at: int
    held_under: str
    evidence_sha256: str
    state: State = "open"
    granted: int | None = None
    granted_to: str | None = None
    decided_at: int | None = None
    decided_by: str | None = None
    decided_under: str | None = None
    reason: str | None = None


def dispute_id(claim: Claim) -> str:
    """The id of a claim, made of all that it says: the same claim again is the same dispute."""
    parts = (
        claim.claimant, claim.accounting_date, claim.party_id, claim.line, sorted(claim.leg_ids), sorted(claim.against),
        claim.amount, claim.text,
    )  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(("dispute", *parts))).hexdigest()[:16]


def hold(
    claim: Claim, holdings: Sequence[Holding], rows: Mapping[tuple[str, int], int], taken: Iterable[Item]
) -> tuple[Item, ...]:
    """What is held of each holding, in proportion to what is left of it. `rows`: what each (party, line) gave; `taken`: what
    other disputes hold or were granted of these rows. DisputeError where nothing is there, or less than is claimed; of a row of
    his own nobody claims more than it took."""
    if not holdings:
        raise DisputeError("nothing_held", f"nobody else was given anything by {_place(claim)}")
    free = _free(holdings, rows, taken)
    left = sum(free.values())
    if claim.line and claim.party_id == claim.claimant:
        left = min(left, -rows[claim.party_id, claim.line])
    wanted = left if claim.amount is None else claim.amount
    if wanted <= 0 or wanted > left:
        raise DisputeError("above_row", f"{wanted} of {_place(claim)} is claimed, and {left} is left of it")
    parts = apportion(wanted, {str(number): amount for number, amount in enumerate(free.values())}, dispute_id(claim))
    legs = {holding.key: holding.legs for holding in holdings}
    found = [(key, parts[str(number)]) for number, key in enumerate(free) if parts[str(number)]]
    return tuple(
        Item(
            dispute_id=dispute_id(claim),
            number=number,
            accounting_date=claim.accounting_date,
            party_id=key[0],
            line=key[1],
            leg_id=key[2],
            legs=legs[key],
            amount=amount,
        )
        for number, (key, amount) in enumerate(found)
    )


def _free(
    holdings: Sequence[Holding], rows: Mapping[tuple[str, int], int], taken: Iterable[Item]
) -> dict[tuple[str, int, str], int]:
    """What is left of each holding; holdings of one row together never have more than is left of the row."""
    of_row, of_leg = dict(rows), {holding.key: holding.amount for holding in holdings}
    for item in taken:
        place = (item.party_id, item.line)
        of_row[place] = of_row.get(place, 0) - item.taken
        key = (*place, item.leg_id)
        if item.leg_id and key in of_leg:
            of_leg[key] -= item.taken
    found = {}
    for key, amount in sorted(of_leg.items()):
        found[key] = max(0, min(amount, of_row[key[:2]]))
        of_row[key[:2]] -= found[key]
    return found


def _place(claim: Claim) -> str:
    legs = f" ({len(claim.leg_ids)} legs)" if claim.leg_ids else ""
    line = f" line {claim.line}" if claim.line else ""
    return f"{claim.accounting_date}/{claim.party_id}{line}{legs}"


def decide(dispute: Dispute, items: Sequence[Item], granted: int) -> tuple[State, tuple[Item, ...]]:
    """What of each item is granted, in proportion to what is held. DisputeError for a second decision, or one above what is
    held."""
    if dispute.state != "open":
        raise DisputeError("decided", f"dispute {dispute.dispute_id} was decided before: {dispute.state}")
    if not 0 <= granted <= dispute.amount:
        raise DisputeError("above_held", f"{granted} is granted, and {dispute.amount} is held")
    parts = apportion(granted, {str(item.number): item.amount for item in items}, dispute.dispute_id)
    state: State = "accepted" if granted == dispute.amount else "partly" if granted else "declined"
    return state, tuple(msgspec.structs.replace(item, granted=parts[str(item.number)]) for item in items)


def held_postings(items: Iterable[Item]) -> list[Posting]:
    """What is disputed is taken from who was given it, and held."""
    return [
        Posting(ledger.operator(party), ledger.held(name), amount)
        for (name, party), amount in _by_party((item, item.amount) for item in items).items()
    ]


def decided_postings(items: Sequence[Item], granted_to: str | None) -> list[Posting]:
    """What is held goes to who is right: then nothing of the dispute is held any more."""
    to_claimant = _by_party((item, item.granted or 0) for item in items)
    back = _by_party((item, item.amount - (item.granted or 0)) for item in items)
    found = [Posting(ledger.held(name), ledger.operator(granted_to or ""), amount) for (name, _), amount in to_claimant.items()]
    return found + [Posting(ledger.held(name), ledger.operator(party), amount) for (name, party), amount in back.items()]


def _by_party(amounts: Iterable[tuple[Item, int]]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for item, amount in amounts:
        if amount:
            found[item.dispute_id, item.party_id] = found.get((item.dispute_id, item.party_id), 0) + amount
    return found


def transaction_id(code: Code, name: str) -> str:
    """The transaction of a dispute's opening or decision."""
    return hashlib.sha256(f"dispute/{code}/{name}".encode()).hexdigest()[:32]
