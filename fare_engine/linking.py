"""Whose a token is, and who pays for a traveller: links with a date, changed without moving anything that is settled.

A link holds from its instant on, at the earliest from the first day that is not closed. The facts of that token since then are
the new traveller's from now on, also those that are still on their way; both are folded anew. A family is several travellers
whose payer is one account. Whether a tap comes in before or after the link that concerns it, changes nothing.

Whose a token is, taps ask before they lock its traveller. So what changes that runs `alone` (Database.transact), while no tap is
on its way through another process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import date

import msgspec
from sqlalchemy import Connection

from fare_engine.application import Application
from fare_engine.booking import Payer, Record
from fare_engine.errors import LinkError, NotFoundError
from fare_engine.facts import Cancellation, Completion, Correction, Fact, Purchase, Tap
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg
from fare_engine.pricing.state import NEVER
from fare_engine.refold import Change
from fare_engine.service_day import day_starts_at, to_day
from fare_engine.store import books, travellers
from fare_engine.store.travellers import Link, Traveller
from fare_engine.tariff.compile import CompiledTariff

LEAST_OCCASIONS = 2
"""So often one token's exit must have been missing where the other's came without an entry, before a link is proposed."""


def first_open_day(connection: Connection, tariff: CompiledTariff, now: int) -> tuple[int, int]:
    """The first service day that is not closed (its number, the instant at which it begins); long ago where none is."""
    closed = books.last_closed(connection)
    if closed is None:
        return 0, 0
    day = to_day(date.fromisoformat(closed)) + 1
    version = tariff.version_at(now)
    return day, day_starts_at(day, tariff.zone, version.day_start_ms if version else 0)


def link_token(
    connection: Connection, application: Application, token_id: str, traveller_id: str, valid_from: int, now: int, made_by: str
) -> int:
    """From an instant on a token is a traveller's; gives the instant, which is later where days are closed already.

    NotFoundError for a token or traveller that is not known, LinkError where another link begins at the same instant. Where
    the medium has other tokens, under a key of before or since, they go with it."""
    tokens = travellers.tokens_of_medium(connection, token_id)
    effective = max(valid_from, first_open_day(connection, application.tariff, now)[1])
    unlinked = [token for token in tokens if (effective, traveller_id) not in token.links]
    for token in unlinked:
        if any(begins == effective for begins, _ in token.links):
            raise LinkError(f"a link of {token.token_id} begins at {effective} ms already")
    linked = {
        token.token_id: replace(token, links=tuple(sorted((*token.links, (effective, traveller_id))))) for token in unlinked
    }
    concerned = {traveller_id} | {
        name for token in unlinked for name in (token.traveller_id, *(owner for _, owner in token.links))
    }
    rows = travellers.get_travellers(connection, concerned, dict.fromkeys(concerned, effective))
    if traveller_id not in rows:
        raise NotFoundError(f"no traveller {traveller_id}")
    for name in linked:
        travellers.add_link(connection, Link(name, effective, traveller_id, now, made_by))
    changes: dict[str, Change] = defaultdict(Change)
    for owner, row in rows.items():
        moving = {
            fact.fact_id: target
            for fact in (*row.record.facts, *row.record.refused)
            if isinstance(fact, Tap | Purchase)
            and fact.token_id in linked
            and (target := linked[fact.token_id].traveller_at(fact.at)) != owner
        }
        _move(row.record, owner, moving, changes)
    changed = {name: rows[name] for name in rows if name in changes}
    application.refold(connection, changed, changes, now, booked_for="link")
    return effective


def change_payer(
    connection: Connection, application: Application, traveller_id: str, account_id: str, first_day: int, now: int
) -> int:
    """From a service day on an account pays for a traveller; gives the day, which is later where days are closed already, and
    today at the latest. What was booked for those days is booked anew."""
    today = application.tariff.service_day(now)
    day = min(max(first_day, first_open_day(connection, application.tariff, now)[0]), today)
    version = application.tariff.version_at(now)
    begins = day_starts_at(day, application.tariff.zone, version.day_start_ms if version else 0)
    rows = travellers.get_travellers(connection, [traveller_id], {traveller_id: begins})
    if traveller_id not in rows:
        raise NotFoundError(f"no traveller {traveller_id}")
    traveller = rows[traveller_id]
    if account_id not in travellers.find_accounts(connection, {account_id, traveller.account_id}):
        raise NotFoundError(f"no account {account_id}")
    record = traveller.record
    payers = [payer for payer in record.payers if payer.first_day != day] or [Payer(traveller.account_id, 0)]
    record.payers = sorted([*payers, Payer(account_id, day)], key=lambda payer: payer.first_day)
    traveller.account_id = record.payers[-1].account_id
    application.refold(connection, rows, {traveller_id: Change()}, now, booked_for="payer")
    return day


def _move(record: Record, owner: str, moving: dict[str, str], changes: dict[str, Change]) -> None:
    """Facts of a record that are others' from now on, with what was said of them."""
    for fact in record.facts:
        target = moving.get(_spoken_of(fact))
        if target is not None:
            changes[owner].withdrawn.add(fact.fact_id)
            changes[target].facts.append(fact)
    for refused in record.refused:
        target = moving.get(refused.fact_id)
        if target is not None:
            changes[owner].withdrawn.add(refused.fact_id)
            changes[target].refused.append(refused)
    for target in set(moving.values()):
        changes[target].facts += [fact for fact in record.facts if isinstance(fact, Correction)]


def _spoken_of(fact: Fact) -> str:
    """The fact whose owner has this one, too."""
    if isinstance(fact, Cancellation):
        return fact.tap_id
    return fact.leg_id if isinstance(fact, Completion) else fact.fact_id


# ---- proposals


class Proposal(msgspec.Struct, frozen=True):
    """Two tokens that seem to be one person's: where one's exit was missing, the other's came, `occasions` times."""

    token_id: str
    other_token_id: str
    occasions: tuple[str, ...]
    """Each as `stop → stop at ms`."""


def propose_links(tariff: CompiledTariff, folded: Iterable[Folded]) -> list[Proposal]:
    """Pairs of tokens of different travellers that fit each other at least twice, and nobody else as often."""
    entries: list[Leg] = []
    exits: list[Leg] = []
    for found in folded:
        entries += [leg for leg in found.legs.values() if leg.status == "missing_exit"]
        exits += [leg for leg in found.legs.values() if leg.status == "missing_entry"]
    occasions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in entries:
        for leg in exits:
            if leg.token_id != entry.token_id and _fits(tariff, entry, leg):
                occasions[entry.token_id, leg.token_id].append(f"{entry.from_stop_id} → {leg.to_stop_id} at {leg.exit_at}")
    return [
        Proposal(one, other, tuple(sorted(found)))
        for (one, other), found in sorted(occasions.items())
        if len(found) >= LEAST_OCCASIONS and _is_best(one, other, len(found), occasions)
    ]


def _fits(tariff: CompiledTariff, entry: Leg, leg: Leg) -> bool:
    """Whether an exit may be the one that an entry lacks."""
    if entry.network_id != leg.network_id or entry.entry_at is None or leg.exit_at is None:
        return False
    version = tariff.versions.get(entry.version_id)
    terms = version.terms(entry.network_id or "", entry.route_id, entry.media, entry.rider_category) if version else None
    return terms is not None and 0 < leg.exit_at - entry.entry_at <= terms.longest_stay_ms


def _is_best(one: str, other: str, count: int, occasions: dict[tuple[str, str], list[str]]) -> bool:
    rivals = [len(found) for pair, found in occasions.items() if pair != (one, other) and (pair[0] == one or pair[1] == other)]
    return count > max(rivals, default=0)


def open_traveller(connection: Connection, traveller_id: str, account_id: str) -> None:
    """A traveller without facts, whom tokens can be linked to."""
    travellers.add_travellers(connection, [Traveller(traveller_id, account_id, Record(), NEVER)])
