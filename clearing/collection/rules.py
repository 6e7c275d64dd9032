"""How a city collects what riders owe, as data: who charges, when it is tried again, who bears what is never paid.

`collection.toml` stands in the city's folder; docs/collection.md says what each field means. A city without it collects nothing:
its post-paid totals and stored value are what somebody else books."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Literal

import msgspec

from fare_engine.errors import Fault, InputError
from fare_engine.money import rate_of, rounded_to

OPERATOR = "operator"
"""`refunds.borne_by`: whoever ran the leg."""


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's own version."""

    rules_version: str
    currency: str


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who charges riders' sources and holds the money until it is netted; what that costs, and whom."""

    party: str
    fee_percent: Decimal
    fee_fixed: int
    fee_rounding: Literal["half_up", "half_even", "up", "down"] = "half_up"
    chargeback_fee: int = 0
    fees_paid_by: str


class Charging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Post-paid totals: one charge a day."""

    least: int
    """A smaller total waits for another day."""
    retry_days: tuple[int, ...]
    """So many days after the first decline it is tried again, after the second, …; then no more."""
    deny_after: int
    """So many declines in a row, and the account's tokens are on the deny list."""
    pending_hours: int
    """What the provider has not decided by then is named."""


class FirstRide(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the first unpaid day cost, up to a limit."""

    limit: int
    bearer: str


class Debts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a debt is given up, and who bears it."""

    write_off_days: int
    first_ride: FirstRide
    rest_bearer: str


class TopUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be put on a card, and what is put on it by itself where its holder wants that."""

    least: int
    most: int
    balance_limit: int
    most_a_day: int
    """So many top-ups of an account in one service day."""
    auto_below: int
    auto_amount: int


class Refunds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who bears what is given back: a party, or `operator`."""

    borne_by: str


class Cards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a card at its end."""

    valid_months: int
    keeps_days: int
    """So long after its end the stored value still goes to another card."""
    residual_to: str
    deposit: int = 0
    """Taken from the stored value when a card is issued, given back at its end."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole `collection.toml`."""

    collection: Head
    provider: Provider
    charging: Charging
    debts: Debts
    top_up: TopUp
    refunds: Refunds
    cards: Cards

    def fee(self, amount: int) -> int:
        """What the provider takes for a charge."""
        exact = rate_of(amount, self.provider.fee_percent) + self.provider.fee_fixed
        return rounded_to(exact, self.provider.fee_rounding)


def find_rules(folder: Path, parties: Collection[str], currency: str) -> Rules | None:
    """The rules in a city's folder, or beside a version's; None where there are none."""
    for path in (folder / "collection.toml", folder.parent / "collection.toml"):
        if path.exists():
            return load_rules(path, parties, currency)
    return None


def load_rules(path: Path, parties: Collection[str], currency: str) -> Rules:
    """The checked rules of a file. InputError names every fault with its place and value."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), Rules)
    except FileNotFoundError:
        raise InputError([Fault(str(path), None, "the file is missing")]) from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([Fault(path.name, str(error), "not a collection.toml")]) from None
    faults = [
        Fault(f"{path.name}: {place}", value, problem)
        for place, value, problem in (*_of_head(found, currency), *_of_parties(found, parties), *_of_numbers(found))
    ]
    if faults:
        raise InputError(faults)
    return found


_Wrong = list[tuple[str, object, str]]


def _of_head(rules: Rules, currency: str) -> _Wrong:
    if rules.collection.currency == currency:
        return []
    return [("collection.currency", rules.collection.currency, f"the tariff's is {currency}")]


def _of_parties(rules: Rules, parties: Collection[str]) -> _Wrong:
    named = {
        "provider.party": rules.provider.party,
        "provider.fees_paid_by": rules.provider.fees_paid_by,
        "debts.first_ride.bearer": rules.debts.first_ride.bearer,
        "debts.rest_bearer": rules.debts.rest_bearer,
        "cards.residual_to": rules.cards.residual_to,
    }
    if rules.refunds.borne_by != OPERATOR:
        named["refunds.borne_by"] = rules.refunds.borne_by
    return [(place, party, "names no party") for place, party in named.items() if party not in parties]


def _of_numbers(rules: Rules) -> _Wrong:
    charging, top_up, provider = rules.charging, rules.top_up, rules.provider
    least: dict[str, tuple[int, int]] = {
        "provider.fee_fixed": (provider.fee_fixed, 0),
        "provider.chargeback_fee": (provider.chargeback_fee, 0),
        "charging.least": (charging.least, 1),
        "charging.deny_after": (charging.deny_after, 1),
        "charging.pending_hours": (charging.pending_hours, 1),
        "debts.write_off_days": (rules.debts.write_off_days, sum(charging.retry_days)),
        "debts.first_ride.limit": (rules.debts.first_ride.limit, 0),
        "top_up.least": (top_up.least, 1),
        "top_up.most": (top_up.most, top_up.least),
        "top_up.balance_limit": (top_up.balance_limit, top_up.most),
        "top_up.most_a_day": (top_up.most_a_day, 1),
        "top_up.auto_amount": (top_up.auto_amount, top_up.least),
        "cards.valid_months": (rules.cards.valid_months, 1),
        "cards.keeps_days": (rules.cards.keeps_days, 0),
        "cards.deposit": (rules.cards.deposit, 0),
    }
    wrong: _Wrong = [(place, value, f"is below {bound}") for place, (value, bound) in least.items() if value < bound]
    if not 0 <= provider.fee_percent <= 100:
        wrong.append(("provider.fee_percent", str(provider.fee_percent), "is no part of a hundred"))
    if any(days < 1 for days in charging.retry_days):
        wrong.append(("charging.retry_days", charging.retry_days, "a day that is not after the one before"))
    if top_up.auto_amount > top_up.most:
        wrong.append(("top_up.auto_amount", top_up.auto_amount, f"is above top_up.most, {top_up.most}"))
    return wrong
