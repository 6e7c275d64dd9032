"""Accounts, tokens and travellers: who pays, what is tapped, who rides."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, select, update

from fare_engine.booking import Record, decode, encode
from fare_engine.errors import NotFoundError
from fare_engine.store import schema
from fare_engine.store.database import bytewise, cipher_of
from fare_engine.store.hashes import hashed
from fare_engine.store.many import execute_many, find_many
from fare_engine.windows import REACH_MS, open_again, reaches

logger = logging.getLogger(__name__)

CASH = "cash"
"""The account of every paper ticket: whoever runs the leg holds its money, so he owes it."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token stands for: a traveller, and from some instants on another one."""

    token_id: str
    traveller_id: str
    """Whose it was first."""
    account_id: str
    """The account that this traveller had then."""
    blocked_at: int | None
    links: tuple[tuple[int, str], ...] = ()
    """(from when, traveller), oldest first."""

    def traveller_at(self, at: int) -> str:
        """Whose it was at an instant."""
        found = self.traveller_id
        for valid_from, traveller_id in self.links:
            if valid_from <= at:
                found = traveller_id
        return found


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be known from now on, with what terminals send for it (None: it will not be in any deny list)."""

    token_id: str
    traveller_id: str
    account_id: str
    terminal_token: bytes | None = None
    former_token_id: str | None = None
    """The token that the same medium had under the key of before."""
    blocked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A token is a traveller's from an instant on."""

    token_id: str
    valid_from: int
    traveller_id: str
    made_at: int
    made_by: str


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays. `balance` is the stored value, or minus what a post-paid account owes."""

    account_id: str
    kind: str
    balance: int
    card_number_hash: str | None = None
    card_label: str | None = None


@dataclass(slots=True)
class Traveller:
    """A traveller's row with its record. `account_id` is who pays now; for what days another did, the record says."""

    traveller_id: str
    account_id: str
    record: Record
    next_due: int
    dirty_since: int | None = None
    dirty_reason: str | None = None
    stored: tuple[object, ...] | None = None
    """What `beside` was when the row was read."""
    closed: list[Record] = field(default_factory=list)
    """Windows that were closed since the row was read."""
    opened: list[int] = field(default_factory=list)
    """Where those ended that were opened again."""
    reopened: bool = False
    """Whether some were, also after it was saved."""

    def beside(self) -> tuple[object, ...]:
        """What its row holds beside the record: most taps leave it as it is, and it is not written again then, for it stands in
        indexes."""
        return self.account_id, self.next_due, self.dirty_since, self.dirty_reason


_tokens, _accounts, _travellers = schema.tokens, schema.accounts, schema.travellers
_links = schema.links
_TOKENS = (
    select(
        _tokens.c.token_id,
        _tokens.c.traveller_id,
        _tokens.c.account_id,
        _tokens.c.blocked_at,
        _links.c.valid_from,
        _links.c.traveller_id.label("later_traveller_id"),
    )
    .join_from(_tokens, _links, _links.c.token_id == _tokens.c.token_id, isouter=True)
    .order_by(_tokens.c.token_id, _links.c.valid_from)
)
_FIND_TOKENS = _TOKENS.where(_tokens.c.token_id.in_(bindparam("ids", expanding=True)))
_FIND_ACCOUNTS = (
    select(_accounts)
    .where(_accounts.c.account_id.in_(bindparam("ids", expanding=True)))
    .order_by(_accounts.c.account_id)
    .with_for_update()
)
_GET_TRAVELLERS = (
    select(_travellers)
    .where(_travellers.c.traveller_id.in_(bindparam("ids", expanding=True)))
    .order_by(_travellers.c.traveller_id)
    .with_for_update()
)
_windows = schema.closed_windows
_FIND_WINDOWS = (
    select(_windows.c.traveller_id, _windows.c.ends, _windows.c.record)
    .where(_windows.c.traveller_id.in_(bindparam("ids", expanding=True)), _windows.c.ends > bindparam("after"))
    .order_by(_windows.c.traveller_id, _windows.c.ends)
)
_THIS_TRAVELLER = update(_travellers).where(_travellers.c.traveller_id == bindparam("key"))
_SAVE_TRAVELLER = _THIS_TRAVELLER.values(
    {name: bindparam(name) for name in ("account_id", "record", "next_due", "dirty_since", "dirty_reason", "row_hash")}
)
_SAVE_RECORD = _THIS_TRAVELLER.values({name: bindparam(name) for name in ("record", "row_hash")})
_CHANGE_BALANCE = (
    update(_accounts).where(_accounts.c.account_id == bindparam("key")).values(balance=_accounts.c.balance + bindparam("change"))
)
# Statements of the tap path are built once: building one costs as much as running it.


def add_accounts(connection: Connection, accounts: Iterable[Account]) -> None:
    """New accounts."""
    rows = [
        {
            "account_id": account.account_id,
            "kind": account.kind,
            "balance": account.balance,
            "card_number_hash": account.card_number_hash,
            "card_label": account.card_label,
        }
        for account in accounts
    ]
    if rows:
        connection.execute(schema.accounts.insert(), rows)


def ensure_cash(connection: Connection) -> None:
    """The account of paper tickets is there. Nobody locks it, for it has no balance."""
    if connection.execute(select(_accounts.c.account_id).where(_accounts.c.account_id == CASH)).first() is None:
        add_accounts(connection, [Account(CASH, "collector", 0)])


def add_tokens(connection: Connection, tokens: Iterable[NewToken]) -> None:
    """New tokens, each with its traveller and account."""
    cipher = cipher_of(connection)
    rows = [
        {
            "token_id": token.token_id,
            "traveller_id": token.traveller_id,
            "account_id": token.account_id,
            "blocked_at": token.blocked_at,
            "former_token_id": token.former_token_id,
            "terminal_token": None
            if token.terminal_token is None
            else cipher.seal(token.terminal_token, _token_place(token.token_id)),
        }
        for token in tokens
    ]
    if rows:
        connection.execute(schema.tokens.insert(), hashed(schema.tokens, rows))


def find_terminal_token(connection: Connection, token_id: str) -> bytes | None:
    """What terminals send for a token; None where that was never told."""
    sealed = connection.execute(select(_tokens.c.terminal_token).where(_tokens.c.token_id == token_id)).scalar()
    return None if sealed is None else cipher_of(connection).open(sealed, _token_place(token_id))


def _token_place(token_id: str) -> bytes:
    return f"tokens/{token_id}".encode()


def add_link(connection: Connection, link: Link) -> None:
    """A token is another traveller's from an instant on."""
    row = {name: getattr(link, name) for name in Link.__slots__}
    connection.execute(_links.insert(), hashed(_links, [row]))


def add_travellers(connection: Connection, travellers: Iterable[Traveller]) -> None:
    """New travellers."""
    rows = [_row(traveller) for traveller in travellers]
    if rows:
        connection.execute(schema.travellers.insert(), hashed(schema.travellers, rows))


def find_tokens(connection: Connection, token_ids: Collection[str]) -> dict[str, Token]:
    """The tokens that are known."""
    return _tokens_of(find_many(connection, _FIND_TOKENS, ids=list(token_ids)))


def all_tokens(connection: Connection) -> Iterable[Token]:
    """Every token."""
    return _tokens_of(connection.execute(_TOKENS)).values()


def tokens_of_traveller(connection: Connection, traveller_id: str) -> list[Token]:
    """The tokens that are or were a traveller's."""
    linked = select(_links.c.token_id).where(_links.c.traveller_id == traveller_id)
    mine = (_tokens.c.traveller_id == traveller_id) | _tokens.c.token_id.in_(linked)
    return list(_tokens_of(connection.execute(_TOKENS.where(mine))).values())


def _tokens_of(rows: Iterable[Sequence[Any]]) -> dict[str, Token]:
    found: dict[str, Token] = {}
    for token_id, traveller_id, account_id, blocked_at, valid_from, later_traveller_id in rows:
        token = found.get(token_id) or Token(token_id, traveller_id, account_id, blocked_at)
        if valid_from is not None:
            token = replace(token, links=(*token.links, (valid_from, later_traveller_id)))
        found[token_id] = token
    return found


def tokens_of_medium(connection: Connection, token_id: str) -> list[Token]:
    """The tokens that one medium has had, one for each key of before and since. NotFoundError for an unknown token."""
    found = {token_id}
    while True:
        same = _tokens.c.token_id.in_(found) | _tokens.c.former_token_id.in_(found)
        rows = connection.execute(select(_tokens.c.token_id, _tokens.c.former_token_id).where(same)).all()
        if not rows:
            raise NotFoundError(f"no token {token_id}")
        more = {name for row in rows for name in row if name is not None}
        if more == found:
            return list(find_tokens(connection, sorted(found)).values())
        found = more


def block_token(connection: Connection, token_id: str, at: int | None) -> None:
    """A lost card: nothing that is tapped with it from now on is let through, under whatever key. None: it was found."""
    names = [token.token_id for token in tokens_of_medium(connection, token_id)]
    rows = connection.execute(select(_tokens).where(_tokens.c.token_id.in_(names)))
    for changed in hashed(_tokens, [{**row._mapping, "blocked_at": at} for row in rows]):
        connection.execute(update(_tokens).where(_tokens.c.token_id == changed["token_id"]).values(changed))


def get_travellers(
    connection: Connection, traveller_ids: Collection[str], back_to: Mapping[str, int] | None = None
) -> dict[str, Traveller]:
    """Some travellers, locked in the order of their ids where the database locks rows. One whose record cannot be read is
    left out: `motthe taps verify` names its row.

    Their records hold all that a fact of the time `back_to` (by traveller) may touch; without it all there is."""
    found = {}
    for row in find_many(connection, _GET_TRAVELLERS, ids=sorted(traveller_ids)):
        try:
            traveller = _traveller(row)
            at = 0 if back_to is None else back_to.get(row.traveller_id, 0)
            if not reaches(traveller.record, at):
                _open_again(connection, [traveller], at - REACH_MS if traveller.record.since else -1)
            found[row.traveller_id] = traveller
        except msgspec.DecodeError:
            logger.exception("the record of traveller %s cannot be read", row.traveller_id)
    return found


def _open_again(connection: Connection, travellers: Iterable[Traveller], after: int = -1) -> None:
    """Put closed windows that end after an instant back into their travellers' records."""
    shut = {traveller.traveller_id: traveller for traveller in travellers if traveller.record.base is not None}
    if not shut:
        return
    found: dict[str, list[Record]] = {}
    for row in connection.execute(_FIND_WINDOWS, {"ids": sorted(shut), "after": after}):
        found.setdefault(row.traveller_id, []).append(decode(row.record))
        shut[row.traveller_id].opened.append(row.ends)
        shut[row.traveller_id].reopened = True
    for traveller_id, closed in found.items():
        shut[traveller_id].record = open_again(closed, shut[traveller_id].record)


def find_traveller(connection: Connection, traveller_id: str) -> Traveller | None:
    """One traveller, not locked: to be looked at; or None."""
    row = connection.execute(select(_travellers).where(_travellers.c.traveller_id == traveller_id)).first()
    return _whole(connection, [row])[0] if row else None


def read_records(connection: Connection, traveller_ids: Collection[str]) -> dict[str, Record]:
    """The whole records of some travellers, not locked."""
    rows = connection.execute(select(_travellers).where(_travellers.c.traveller_id.in_(traveller_ids))).all()
    return {traveller.traveller_id: traveller.record for traveller in _whole(connection, rows)}


def list_due(connection: Connection, as_of: int, most: int) -> list[str]:
    """Travellers for whom something happens before `as_of` without a tap; not those whose last fold failed (`list_dirty`)."""
    table = schema.travellers
    due = (table.c.next_due < as_of) & table.c.dirty_since.is_(None)
    rows = connection.execute(
        select(table.c.traveller_id).where(due).order_by(table.c.next_due, table.c.traveller_id).limit(most)
    )
    return [row.traveller_id for row in rows]


def list_dirty(connection: Connection, after: str, most: int) -> list[str]:
    """Travellers whose last fold failed and is to be tried again, by id, from the next after one; not those whose lines
    drifted, who wait for a decision."""
    table = schema.travellers
    name = table.c.traveller_id.concat("")  # so that SQLite looks at the few that are dirty, and not at all by their names
    waiting = table.c.dirty_since.is_not(None) & (table.c.dirty_reason != "drift") & (name > after)
    rows = connection.execute(select(table.c.traveller_id).where(waiting).order_by(name).limit(most))
    return [row.traveller_id for row in rows]


def list_unpriced(connection: Connection) -> list[str]:
    """Travellers with a ride that had no price when it was folded last."""
    table = schema.travellers
    rows = connection.execute(select(table.c.traveller_id).where(table.c.dirty_reason == "unknown_price"))
    return sorted(row.traveller_id for row in rows)


def list_with_missing_taps(connection: Connection) -> list[str]:
    """Travellers who were charged for a missing entry or exit."""
    table = schema.lines
    missing = table.c.rule_id.like("%/missing_exit") | table.c.rule_id.like("%/missing_entry")
    return sorted(row.traveller_id for row in connection.execute(select(table.c.traveller_id).where(missing).distinct()))


def add_drift(connection: Connection, traveller_id: str, found_at: int, revision: str, changed: list[str]) -> None:
    """A traveller's lines that changed though no fact explains it."""
    row = {
        "traveller_id": traveller_id,
        "found_at": found_at,
        "revision": revision,
        "detail": "\n".join(changed),
        "decided_at": None,
    }
    connection.execute(schema.drifts.insert(), row)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a rider says of a ride whose exit is missing, and what was decided: `open`, `accepted` or `declined`."""

    claim_id: str
    traveller_id: str
    leg_id: str
    stop_id: str | None
    at: int | None
    text: str
    made_at: int
    state: str
    decided_at: int | None = None
    decided_by: str | None = None
    reason: str | None = None


def save_claim(connection: Connection, claim: Claim) -> None:
    """Add a claim, or what was decided of it."""
    table = schema.claims
    row = {name: getattr(claim, name) for name in Claim.__slots__}
    if connection.execute(update(table).where(table.c.claim_id == claim.claim_id).values(row)).rowcount == 0:
        connection.execute(table.insert(), row)


def list_claims(connection: Connection, *, traveller_id: str | None = None, state: str | None = None) -> list[Claim]:
    """Claims, the oldest first."""
    table = schema.claims
    statement = select(table).order_by(table.c.made_at, table.c.claim_id)
    if traveller_id is not None:
        statement = statement.where(table.c.traveller_id == traveller_id)
    if state is not None:
        statement = statement.where(table.c.state == state)
    return [Claim(*row) for row in connection.execute(statement)]


def find_claim(connection: Connection, claim_id: str) -> Claim | None:
    """One claim, or None."""
    row = connection.execute(select(schema.claims).where(schema.claims.c.claim_id == claim_id).with_for_update()).first()
    return Claim(*row) if row else None


def save_proposal(connection: Connection, token_id: str, other_token_id: str, made_at: int, evidence: str) -> bool:
    """Keep that two tokens seem to be one person's; whether it was not known yet."""
    table = schema.proposals
    same = (table.c.token_id == token_id) & (table.c.other_token_id == other_token_id)
    if connection.execute(select(table.c.state).where(same)).first() is not None:
        return False
    row = {"token_id": token_id, "other_token_id": other_token_id, "made_at": made_at, "evidence": evidence, "state": "open"}
    connection.execute(table.insert(), row)
    return True


def list_proposals(connection: Connection) -> list[tuple[str, str, str]]:
    """(token, other token, evidence) of the proposals that nobody has decided."""
    table = schema.proposals
    rows = connection.execute(select(table).where(table.c.state == "open").order_by(table.c.token_id, table.c.other_token_id))
    return [(row.token_id, row.other_token_id, row.evidence) for row in rows]


def decide_proposal(connection: Connection, token_id: str, other_token_id: str, state: str) -> None:
    """A proposal was accepted or declined."""
    table = schema.proposals
    same = (table.c.token_id == token_id) & (table.c.other_token_id == other_token_id)
    connection.execute(update(table).where(same).values(state=state))


def list_drifts(connection: Connection) -> list[tuple[str, int, str, str]]:
    """(traveller, found when, under which revision, lines) of drift that waits for a decision."""
    table = schema.drifts
    rows = connection.execute(select(table).where(table.c.decided_at.is_(None)).order_by(table.c.found_at, table.c.traveller_id))
    return [(row.traveller_id, row.found_at, row.revision, row.detail) for row in rows]


def decide_drift(connection: Connection, traveller_id: str, at: int) -> None:
    """A traveller's drift was looked at."""
    table = schema.drifts
    connection.execute(
        update(table).where(table.c.traveller_id == traveller_id, table.c.decided_at.is_(None)).values(decided_at=at)
    )


def save_travellers(connection: Connection, travellers: Iterable[Traveller]) -> None:
    """Write travellers' rows back."""
    held = list(travellers)
    records: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for traveller, row in zip(held, hashed(schema.travellers, map(_row, held)), strict=True):
        row["key"] = row.pop("traveller_id")
        beside = traveller.beside()
        (records if beside == traveller.stored else whole).append(row)
        traveller.stored = beside
    execute_many(connection, _SAVE_RECORD, records)
    execute_many(connection, _SAVE_TRAVELLER, whole)
    for traveller in held:
        if traveller.closed or traveller.opened:
            _save_windows(connection, traveller)


def _save_windows(connection: Connection, traveller: Traveller) -> None:
    """Bring a traveller's closed windows to what his record leaves out."""
    mine = _windows.c.traveller_id == traveller.traveller_id
    connection.execute(delete(_windows).where(mine, _windows.c.ends.in_(traveller.opened)))
    rows = [
        {"traveller_id": traveller.traveller_id, "ends": closed.as_of, "record": encode(closed)} for closed in traveller.closed
    ]
    if rows:
        connection.execute(_windows.insert(), hashed(_windows, rows))
    traveller.closed, traveller.opened = [], []


def all_travellers(connection: Connection) -> Iterable[Traveller]:
    """Every traveller, by id."""
    in_order = select(_travellers).order_by(bytewise(connection, _travellers.c.traveller_id))
    rows = connection.execute(in_order, execution_options={"yield_per": 1000})
    for part in rows.partitions():
        yield from _whole(connection, part)


def all_records(connection: Connection) -> Iterator[tuple[str, list[bytes]]]:
    """(traveller, his records as they are stored: the closed windows, oldest first, then the open one), in the order of the
    travellers' bytes."""
    streams = []
    for table, *later in ((_windows, _windows.c.ends), (_travellers,)):
        stored = select(table.c.traveller_id, table.c.record).order_by(bytewise(connection, table.c.traveller_id), *later)
        streams.append(connection.execute(stored, execution_options={"yield_per": 1000}))
    for traveller_id, rows in groupby(merge(*streams, key=itemgetter(0)), itemgetter(0)):
        yield traveller_id, [record for _, record in rows]


def find_accounts(connection: Connection, account_ids: Collection[str]) -> dict[str, Account]:
    """Some accounts."""
    rows = find_many(connection, _FIND_ACCOUNTS, ids=sorted(account_ids))
    return {row[0]: Account(*row) for row in rows}


def find_account_by_card(connection: Connection, card_number_hash: str) -> Account | None:
    """The account whose card has this printed number."""
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.card_number_hash == card_number_hash)).first()
    return Account(*row) if row else None


def change_card(connection: Connection, account_id: str, card_number_hash: str | None, card_label: str | None) -> None:
    """An account has another card from now on, or none."""
    changed = {"card_number_hash": card_number_hash, "card_label": card_label}
    connection.execute(update(_accounts).where(_accounts.c.account_id == account_id).values(changed))


def travellers_of_account(connection: Connection, account_id: str) -> list[Traveller]:
    """The travellers whose rides an account pays now."""
    table = schema.travellers
    rows = connection.execute(select(table).where(table.c.account_id == account_id).order_by(table.c.traveller_id))
    return _whole(connection, rows.all())


def change_balances(connection: Connection, changes: Mapping[str, int]) -> None:
    """Add to accounts' balances, in the order of their ids."""
    rows = [{"key": account_id, "change": change} for account_id, change in sorted(changes.items()) if change]
    execute_many(connection, _CHANGE_BALANCE, rows)


def _row(traveller: Traveller) -> dict[str, object]:
    return {
        "traveller_id": traveller.traveller_id,
        "account_id": traveller.account_id,
        "record": encode(traveller.record),
        "next_due": traveller.next_due,
        "dirty_since": traveller.dirty_since,
        "dirty_reason": traveller.dirty_reason,
    }


def _whole(connection: Connection, rows: Sequence[Row[Any]]) -> list[Traveller]:
    """Travellers with all their windows, to be looked at."""
    found = [_traveller(row) for row in rows]
    _open_again(connection, found)
    return found


def _traveller(row: Row[Any]) -> Traveller:
    traveller = Traveller(row.traveller_id, row.account_id, decode(row.record), row.next_due, row.dirty_since, row.dirty_reason)
    traveller.stored = traveller.beside()
    return traveller
