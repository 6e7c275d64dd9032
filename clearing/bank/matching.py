"""Which payment a bank line is: by our key wherever it comes back, else by account and amount if only one payment fits.

Pure. A line is matched only where key, amount and direction fit one payment; everything else waits for somebody, with its
reason. A movement that goes the other way gives a payment back, which then is open again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

from clearing.bank.camt053 import BankLine
from clearing.payments import Payment

KEY = re.compile(r"MT[0-9]{8}[0-9A-F]{16}")
CUT_KEY = re.compile(r"MT[0-9]{8}[0-9A-F]{0,15}$")
"""What is left of a key that was cut off: at the end of a text, or of a word in it."""
TELLING = 16
"""A cut key of so many letters says by itself which payment is meant; a shorter one only among those of one account."""
BATCH = re.compile(r"MB[0-9]{8}[0-9A-F]{16}")
NOISE = re.compile(r"[^0-9A-Z]+")


class Reason(StrEnum):
    """Why a line waits for somebody."""

    NO_KEY = "no_key"
    UNKNOWN_KEY = "unknown_key"
    SEVERAL_KEYS = "several_keys"
    WRONG_AMOUNT = "wrong_amount"
    WRONG_DIRECTION = "wrong_direction"
    PAID_ALREADY = "paid_already"
    RETURN_OF_UNPAID = "return_of_unpaid"
    SEVERAL_PAYMENTS = "several_payments"
    OTHER_PARTY = "other_party"
    """The key is one party's, the account another's."""


class OpenPayment(msgspec.Struct, frozen=True):
    """A payment, and what of it was moved so far (positive: paid out)."""

    payment: Payment
    moved: int

    @property
    def is_paid(self) -> bool:
        """Whether all of it was moved and not given back."""
        return self.moved == self.payment.amount


class Match(msgspec.Struct, frozen=True):
    """A line is this payment's."""

    line_id: str
    payment_id: str
    amount: int
    """What it moved: positive was paid out, negative came in."""


class Payments:
    """The payments, by all that a line may name. What is matched changes what is open."""

    def __init__(self, payments: Iterable[OpenPayment], accounts: Mapping[str, str], batches: Mapping[str, str]) -> None:
        """`accounts`: account number → party; `batches`: PmtInfId → accounting date."""
        self.by_id = {found.payment.payment_id: found for found in payments}
        self.ids = sorted(self.by_id)
        self.accounts = accounts
        self.batches = batches
        self.by_party: dict[tuple[str, int], list[str]] = {}
        self.by_date: dict[str, list[str]] = {}
        for payment_id, found in self.by_id.items():
            payment = found.payment
            self.by_party.setdefault((payment.party_id, abs(payment.amount)), []).append(payment_id)
            self.by_date.setdefault(payment.accounting_date, []).append(payment_id)

    def match(self, line: BankLine) -> tuple[Match, ...] | Reason:
        """The payments of a line, which then are no longer open (or open again); or why there is none."""
        keys = _found(KEY, line)
        ids = self._named(line, keys) if keys else self._meant(line)
        if isinstance(ids, Reason):
            return ids
        matches = tuple(Match(line.line_id, found, self._moved_by(line, found, ids)) for found in ids)
        for match in matches:
            before = self.by_id[match.payment_id]
            self.by_id[match.payment_id] = OpenPayment(before.payment, before.moved + match.amount)
        return matches

    def fits(self, line: BankLine, payment_id: str) -> Reason | None:
        """Why a line cannot be this payment's, or None: it can."""
        found = self.by_id[payment_id]
        due, out = found.payment.amount, -line.amount
        if abs(out) != abs(due):
            return Reason.WRONG_AMOUNT
        if found.is_paid:
            return Reason.PAID_ALREADY if out == due else None
        if out != due:
            return Reason.RETURN_OF_UNPAID if line.is_return else Reason.WRONG_DIRECTION
        return None

    def _moved_by(self, line: BankLine, payment_id: str, ids: list[str]) -> int:
        return -line.amount if len(ids) == 1 else self.by_id[payment_id].payment.amount

    def _named(self, line: BankLine, keys: set[str]) -> list[str] | Reason:
        if len(keys) > 1:
            return sorted(keys) if self._is_sum_of(line, keys) else Reason.SEVERAL_KEYS
        (key,) = keys
        if key not in self.by_id:
            return Reason.UNKNOWN_KEY
        if self.accounts.get(line.other_account, found := self.by_id[key].payment.party_id) != found:
            return Reason.OTHER_PARTY
        return self.fits(line, key) or [key]

    def _meant(self, line: BankLine) -> list[str] | Reason:
        """Without a whole key: by what is left of it, by the party's account, or by the order that the line is of. Only if
        one payment can be meant, or the whole order."""
        stubs = cut_keys(line)
        dates = {self.batches[found] for found in _found(BATCH, line) if found in self.batches}
        candidates = self._candidates(line, stubs, dates)
        fitting = [found for found in candidates if self.fits(line, found) is None and self._goes_as_called(line, found)]
        if len(fitting) == 1:
            return fitting
        if fitting:
            return Reason.SEVERAL_PAYMENTS
        if len(dates) == 1:
            order = [found for found in self.by_date[min(dates)] if self.by_id[found].payment.amount > 0]
            if self._is_sum_of(line, order):
                return order
        if len(candidates) == 1 and stubs:
            return self.fits(line, candidates[0]) or Reason.WRONG_DIRECTION
        return Reason.UNKNOWN_KEY if stubs else Reason.NO_KEY

    def _candidates(self, line: BankLine, stubs: set[str], dates: set[str]) -> list[str]:
        telling = [stub for stub in stubs if len(stub) >= TELLING]
        if telling:
            return [found for stub in telling for found in self._beginning_with(stub)]
        party = self.accounts.get(line.other_account)
        if party is not None:
            own = self.by_party.get((party, abs(line.amount)), [])
            return [found for found in own if not stubs or found.startswith(tuple(stubs))]
        return self.by_date[min(dates)] if len(dates) == 1 else []

    def _beginning_with(self, stub: str) -> list[str]:
        return self.ids[bisect_left(self.ids, stub) : bisect_left(self.ids, f"{stub}~")]

    def _goes_as_called(self, line: BankLine, payment_id: str) -> bool:
        """Without a whole key, only what the bank calls a return is one."""
        return self.by_id[payment_id].is_paid == line.is_return

    def _is_sum_of(self, line: BankLine, ids: Collection[str]) -> bool:
        """Whether a line moves exactly these payments, none of which was moved before."""
        found = [self.by_id[key] for key in ids if key in self.by_id]
        whole = len(found) == len(ids) > 0 and all(payment.moved == 0 for payment in found)
        return whole and sum(payment.payment.amount for payment in found) == -line.amount


def cut_keys(line: BankLine) -> set[str]:
    """What is left of our keys in the line's texts."""
    found = _found(CUT_KEY, line)
    for _, text in line.texts:
        found.update(word for word in NOISE.sub(" ", text.upper()).split() if CUT_KEY.fullmatch(word))
    return found


def _found(pattern: re.Pattern[str], line: BankLine) -> set[str]:
    """All that looks so in the line's texts, whatever stands around or between its letters."""
    return {key for _, text in line.texts for key in pattern.findall(NOISE.sub("", text.upper()))}
