"""Collection at work: what is written down before the provider is asked, what is booked when it has told, and who is denied.

Money moves in three steps, each resumable: the intent is committed; the provider is asked under the intent's key; what it told
is taken, in an answer or in a webhook, whichever comes first, and booked once. Whoever dies in between leaves an intent that the
next run asks for again. Accounts are locked before anything of theirs is read, so several processes wait for each other."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec
from sqlalchemy import Connection

from clearing.collection import booking, store
from clearing.collection.booking import Entries
from clearing.collection.charges import (
    OWED,
    TOP_UPS,
    UNDECIDED,
    Charge,
    Effect,
    Event,
    Purpose,
    Refund,
    Standing,
    digest,
    fold,
    is_due,
    loss_parts,
    standing,
)
from clearing.collection.provider import PaymentProvider
from clearing.collection.rules import OPERATOR, Rules
from clearing.collection.store import Block, Source, WriteOff
from fare_engine import publishing
from fare_engine.errors import CollectionError, NotFoundError
from fare_engine.money import apportion
from fare_engine.service_day import to_date
from fare_engine.store import travellers
from fare_engine.store.database import Database
from fare_engine.store.travellers import Account
from fare_engine.tariff.compile import CompiledTariff

ASK_AGAIN_MS = 30_000
"""What was asked this short a time ago may still be answered."""
LONGEST_WAIT_MS = 900_000
"""What is not decided is asked for again after twice as long each time, at most after so long."""
PART = 50
"""How many questions a turn takes up."""
AWAY_AFTER = 12
"""So many questions without an answer in a row, and a run asks for nothing new: the provider is away."""
AUTO_AGAIN_MS = 86_400_000
"""After an automatic top-up was declined, the next one waits so long."""
AT_ONCE = 4
"""So many questions are with the provider at once."""


class Collected(msgspec.Struct):
    """What a run came to."""

    resumed: int = 0
    """Charges and refunds of earlier runs that are decided now."""
    charged: int = 0
    amount: int = 0
    declined: int = 0
    undecided: int = 0
    without_source: int = 0
    waiting: int = 0
    """Accounts that owe and are not to be charged on this date."""
    left: int = 0
    """Accounts that were not charged because the provider is away."""
    written_off: int = 0


class Collector:
    """Collection of one store, by one city's rules and through one provider (None: nobody can be asked)."""

    def __init__(self, database: Database, tariff: CompiledTariff, rules: Rules, provider: PaymentProvider | None) -> None:
        self.database = database
        self.tariff = tariff
        self.rules = rules
        self.provider = provider
        self._silent = 0
        """Questions without an answer since the last one that had one."""
        self._again: dict[str, tuple[int, int]] = {}
        """Charge or refund → (when it is asked for again, how long that was)."""

    def day_of(self, at: int) -> str:
        """The service date of an instant."""
        return to_date(self.tariff.service_day(at)).isoformat()

    # ---- the day's charges

    def collect(self, on: str, now: int) -> Collected:
        """Charge what each post-paid account owes of the dates up to one, once for that date; ask again for what is not decided.
        A second run charges nobody again."""
        self._silent = 0
        found = Collected(resumed=self.resume(now))
        with self.database.read() as connection:
            owing = store.list_owing(connection, on)

        def collect_one(account_id: str) -> Charge | str | None:
            if self._silent >= AWAY_AFTER:
                return "left"
            begun = self.database.transact(lambda connection: self._begin_due(connection, account_id, owing[account_id], on, now))
            return self.ask(begun, now) if isinstance(begun, Charge) else begun

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for outcome in pool.map(collect_one, owing):
                _count(found, outcome)
        found.written_off = self._settle_debts(on, now)
        return found

    def _begin_due(self, connection: Connection, account_id: str, owed_then: int, on: str, now: int) -> Charge | str | None:
        """Write down a date's charge of an account; or why there is none."""
        account = locked(connection, account_id)
        charge_id = digest("fares", account_id, on)
        if store.find_charge(connection, charge_id) is not None:
            return None
        owed = min(owed_then, -account.balance)
        if self._is_busy(connection, account_id) or not is_due(self.rules, self.standing_of(connection, account), owed, on):
            return "waiting"
        source = store.find_source(connection, account_id)
        if source is None:
            return "without_source"
        return self._begin(connection, charge_id, source, "fares", on, owed, now)

    def _begin(
        self,
        connection: Connection,
        charge_id: str,
        source: Source,
        purpose: Purpose,
        on: str,
        amount: int,
        now: int,
        recovers: int = 0,
    ) -> Charge:
        """Write a charge down. What the provider told of it before, for it was lost here with a disk, is booked now."""
        charge = Charge(
            charge_id=charge_id,
            account_id=source.account_id,
            purpose=purpose,
            service_date=on,
            amount=amount,
            recovers=recovers,
            source=source.source,
            made_at=now,
        )
        store.add_charge(connection, charge)
        if store.events_of(connection, charge_id):
            self._apply(connection, charge, 0, now)
        return store.find_charge(connection, charge_id) or charge

    def _settle_debts(self, on: str, now: int) -> int:
        """Put right whose tokens are denied, and give up debts that are too old; how much."""
        with self.database.read() as connection:
            blamed = store.list_blamed(connection)
        return sum(
            self.database.transact(lambda connection, name=name: self._settle_debt(connection, name, on, now))  # type: ignore[misc]
            for name in blamed
        )

    def _settle_debt(self, connection: Connection, account_id: str, on: str, now: int) -> int:
        account = locked(connection, account_id)
        found, owed = self.standing_of(connection, account), -account.balance
        given_up = 0
        due = found.write_off_on is not None and found.write_off_on <= on
        if due and owed > 0 and not self._is_busy(connection, account_id):
            transaction_id = digest("written_off", account_id, found.since or "", on)
            losses = [
                WriteOff(transaction_id=transaction_id, bearer=bearer, account_id=account_id, service_date=on, amount=amount)
                for bearer, amount in loss_parts(self.rules, found, owed).items()
            ]
            self.book(connection, booking.written_off(losses), on)
            for loss in losses:
                store.save_write_off(connection, loss)
            given_up = owed
        self.enforce(connection, account_id, now)
        return given_up

    # ---- asking, and taking what is told

    def ask(self, charge: Charge, now: int) -> Charge:
        """Ask the provider for a charge that is written down, and take its answer; the charge as it then is."""
        self._hear(self.provider.charge(charge) if self.provider is not None else None, now)
        with self.database.read() as connection:
            return store.find_charge(connection, charge.charge_id) or charge

    def ask_refund(self, refund: Refund, now: int) -> Refund:
        """The same for a refund to a source."""
        self._hear(self.provider.refund(refund) if self.provider is not None else None, now)
        with self.database.read() as connection:
            return store.find_refund(connection, refund.refund_id) or refund

    def _hear(self, event: Event | None, now: int) -> None:
        self._silent = 0 if event is not None else self._silent + 1
        if event is not None:
            self.take(event, now)

    def resume(self, now: int) -> int:
        """Ask again for everything that was written down and is not decided, as long as there are answers; how much is now."""
        with self.database.read() as connection:
            return self._resume(store.list_undecided(connection, now + 1), store.list_asked(connection, now + 1), now)

    def _resume(self, charges: Iterable[Charge], refunds: Iterable[Refund], now: int) -> int:
        def ask_charge(charge: Charge) -> bool:
            return self._silent < AWAY_AFTER and self.ask(charge, now).state not in UNDECIDED

        def ask_refund(refund: Refund) -> bool:
            return self._silent < AWAY_AFTER and self.ask_refund(refund, now).state != "asked"

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return sum(pool.map(ask_charge, charges)) + sum(pool.map(ask_refund, refunds))

    def take(self, event: Event, now: int) -> bool:
        """Take what the provider told; whether it was new. CollectionError for an id under which it told something else."""
        told = msgspec.structs.replace(event, received_at=now)
        return self.database.transact(lambda connection: self._take(connection, told, now))

    def _take(self, connection: Connection, event: Event, now: int) -> bool:
        charge = store.find_charge(connection, event.charge_id)
        if charge is not None:
            locked(connection, charge.account_id)
            charge = store.find_charge(connection, event.charge_id) or charge
        told = store.find_event(connection, event.event_id)
        if told is not None:
            if not told.says_as(event):
                raise CollectionError("different_content", f"the event {event.event_id} told something else before")
            return False
        store.add_event(connection, event)
        if charge is not None:
            self._apply(connection, charge, -1, now)
        return True

    def _apply(self, connection: Connection, charge: Charge, since: int, now: int) -> None:
        """Book what a charge's events from a number on (-1: the last) add to what is booked."""
        refunds = store.refunds_of_charge(connection, charge.charge_id)
        events = store.events_of(connection, charge.charge_id)
        before, after = fold(charge, refunds, events[:since]), fold(charge, refunds, events)
        for effect in after.effects[len(before.effects) :]:
            refund = refunds.get(effect.reference)
            on = charge.service_date if effect.kind == "captured" else self.day_of(now)
            recovered = self._recovered(connection, charge, effect, on)
            self.book(connection, booking.transactions_of(self.rules, charge, effect, recovered, refund), on)
            if effect.kind == "refunded" and refund is not None:
                store.save_refund(connection, msgspec.structs.replace(refund, state="refunded"))
        for event in events[since:]:
            failed = refunds.get(event.reference) if event.kind == "refund_failed" else None
            if failed is not None and failed.state == "asked":
                store.save_refund(connection, msgspec.structs.replace(failed, state="failed"))
        if after.state != charge.state:
            store.save_charge(connection, msgspec.structs.replace(charge, state=after.state))
        self.enforce(connection, charge.account_id, now)

    def _recovered(self, connection: Connection, charge: Charge, effect: Effect, on: str) -> dict[str, int]:
        """What of an effect pays debts that were given up, by who bore them."""
        if effect.kind == "captured" and charge.recovers:
            return self._recovered_by_capture(connection, charge, effect.amount)
        return self._recovered_by_dispute(connection, charge, effect, on) if effect.kind == "won_back" else {}

    def _recovered_by_capture(self, connection: Connection, charge: Charge, amount: int) -> dict[str, int]:
        """All that is given up, or nothing, where more is by now than was asked for."""
        losses = store.write_offs_of(connection, charge.account_id)
        if amount != charge.amount or sum(loss.amount for loss in losses) > charge.recovers:
            return {}
        for loss in losses:
            store.save_write_off(connection, msgspec.structs.replace(loss, recovered_by=charge.charge_id))
        return borne_by(losses)

    def _recovered_by_dispute(self, connection: Connection, charge: Charge, effect: Effect, on: str) -> dict[str, int]:
        """As much as is given up, of what was won back; to each in proportion to what he bears."""
        borne = borne_by(store.write_offs_of(connection, charge.account_id))
        given_up = sum(borne.values())
        transaction_id = booking.won_back_id(charge, effect.reference)
        shares = apportion(min(effect.amount, given_up), borne, transaction_id) if given_up else {}
        parts = {bearer: part for bearer, part in shares.items() if part}
        for bearer, part in parts.items():
            less = WriteOff(
                transaction_id=transaction_id, bearer=bearer, account_id=charge.account_id, service_date=on, amount=-part
            )
            store.save_write_off(connection, less)
        return parts

    def book(self, connection: Connection, found: Iterable[booking.Transaction], on: str) -> None:
        """Add transactions to the books, for a service date, with the balances that they move."""
        entries = Entries(connection)
        for transaction_id, code, postings in found:
            entries.add(transaction_id, code, on, postings)
        entries.write()

    # ---- what riders ask for

    def top_up(self, account_id: str, amount: int, key: str, now: int) -> Charge:
        """Put money on a card, once for a key, as soon as its source has given it. CollectionError says why not."""
        charge_id = digest("top_up", account_id, key)
        begun = self.database.transact(lambda connection: self._begin_top_up(connection, account_id, charge_id, amount, now))
        return self.ask(begun, now) if begun.state in UNDECIDED else begun

    def _begin_top_up(self, connection: Connection, account_id: str, charge_id: str, amount: int, now: int) -> Charge:
        account = locked(connection, account_id)
        known = store.find_charge(connection, charge_id)
        if known is not None:
            return _the_same(known, amount)
        limits, on = self.rules.top_up, self.day_of(now)
        if account.kind != "prepaid":
            raise CollectionError("not_prepaid", f"the account {account_id} has no stored value")
        if not limits.least <= amount <= limits.most:
            raise CollectionError("amount", f"a top-up is {limits.least} to {limits.most}, not {amount}")
        mine = [charge for charge in store.charges_of(connection, account_id) if charge.purpose in TOP_UPS]
        coming = sum(charge.amount for charge in mine if charge.state in UNDECIDED)
        if account.balance + coming + amount > limits.balance_limit:
            raise CollectionError("balance_limit", f"a card holds {limits.balance_limit} at most")
        if sum(charge.service_date == on for charge in mine) >= limits.most_a_day:
            raise CollectionError("too_many", f"{limits.most_a_day} top-ups a day are the most, with those that were declined")
        return self._begin(connection, charge_id, _source(connection, account_id), "top_up", on, amount, now)

    def take_at_till(self, account_id: str, amount: int, party: str, receipt: str, now: int) -> Charge:
        """Money that a party took at its till is on the card, once for a receipt; the party owes it from now on."""

        def work(connection: Connection) -> Charge:
            locked(connection, account_id)
            known = store.find_charge(connection, charge_id)
            if known is not None:
                return _the_same(known, amount)
            till = Source(account_id=account_id, source=party, added_at=now)
            begun = self._begin(connection, charge_id, till, "till", self.day_of(now), amount, now)
            told = Event(
                event_id=f"till/{charge_id}", charge_id=charge_id, kind="captured", amount=amount, at=now, received_at=now
            )
            self._take(connection, told, now)
            return msgspec.structs.replace(begun, state="captured")

        if party not in self.tariff.network.parties:
            raise CollectionError("no_party", f"{party!r} names no party")
        if amount < 1:
            raise CollectionError("amount", f"{amount} is nothing that can be put on a card")
        charge_id = digest("till", party, receipt)
        return self.database.transact(work)

    def pay_debt(self, account_id: str, key: str, now: int) -> Charge:
        """Pay all that an account owes now, with what was given up of it before, once for a key."""
        charge_id = digest("debt", account_id, key)
        begun = self.database.transact(lambda connection: self._begin_debt(connection, account_id, charge_id, now))
        return self.ask(begun, now) if begun.state in UNDECIDED else begun

    def _begin_debt(self, connection: Connection, account_id: str, charge_id: str, now: int) -> Charge:
        account = locked(connection, account_id)
        known = store.find_charge(connection, charge_id)
        if known is not None:
            return known
        given_up = sum(loss.amount for loss in store.write_offs_of(connection, account_id))
        owed = max(-account.balance, 0) + given_up
        if not owed:
            raise CollectionError("nothing_owed", f"the account {account_id} owes nothing")
        if self._is_busy(connection, account_id):
            raise CollectionError("undecided", f"a charge of the account {account_id} is under way")
        tried = [charge for charge in store.charges_of(connection, account_id) if charge.purpose == "debt"]
        if sum(charge.service_date == self.day_of(now) for charge in tried) >= self.rules.top_up.most_a_day:
            raise CollectionError("too_many", f"{len(tried)} times were tried; tomorrow again")
        source = _source(connection, account_id)
        return self._begin(connection, charge_id, source, "debt", self.day_of(now), owed, now, recovers=given_up)

    def set_source(self, account_id: str, source: str, now: int) -> None:
        """From now on an account's money is taken from this source; what its holder chose stays."""

        def work(connection: Connection) -> None:
            locked(connection, account_id)
            held = store.find_source(connection, account_id) or Source(account_id=account_id, source=source, added_at=now)
            store.save_source(connection, msgspec.structs.replace(held, source=source, added_at=now))

        self.database.transact(work)

    def set_auto(self, account_id: str, below: int | None, amount: int | None) -> None:
        """Top an account up by `amount` whenever less than `below` is left; None: no more. CollectionError says why not."""

        def work(connection: Connection) -> None:
            locked(connection, account_id)
            source = _source(connection, account_id)
            store.save_source(connection, msgspec.structs.replace(source, auto_below=below, auto_amount=amount))

        limits = self.rules.top_up
        if amount is not None and not limits.least <= amount <= limits.most:
            raise CollectionError("amount", f"a top-up is {limits.least} to {limits.most}, not {amount}")
        if (below is None) != (amount is None) or (below is not None and not 0 < below <= limits.balance_limit - limits.most):
            raise CollectionError("amount", f"{below} is no balance below which a card can be topped up")
        self.database.transact(work)

    def run_turn(self, now: int) -> int:
        """What happens without anybody asking: automatic top-ups, and questions that nobody has answered; how much was done."""
        if self.provider is None:
            return 0
        with self.database.read() as connection:
            low = store.list_low(connection)
        begun = [self.database.transact(lambda connection, name=name: self._begin_auto(connection, name, now)) for name in low]  # type: ignore[misc]
        for charge in filter(None, begun):
            self.ask(charge, now)
        return sum(charge is not None for charge in begun) + self._ask_again(now)

    def _ask_again(self, now: int) -> int:
        """Ask for some of what was asked a while ago and is not decided; how much is now."""
        with self.database.read() as connection:
            charges = store.list_undecided(connection, now - ASK_AGAIN_MS)
            refunds = store.list_asked(connection, now - ASK_AGAIN_MS)
        waits = {
            name: self._again.get(name, (0, ASK_AGAIN_MS))
            for name in (*(charge.charge_id for charge in charges), *(refund.refund_id for refund in refunds))
        }
        due = [name for name, (at, _) in waits.items() if at <= now][:PART]
        waits |= {name: (now + waits[name][1], min(2 * waits[name][1], LONGEST_WAIT_MS)) for name in due}
        self._again, self._silent = waits, 0
        asked = [charge for charge in charges if charge.charge_id in due]
        return self._resume(asked, [refund for refund in refunds if refund.refund_id in due], now)

    def _begin_auto(self, connection: Connection, account_id: str, now: int) -> Charge | None:
        account, source = locked(connection, account_id), store.find_source(connection, account_id)
        if source is None or source.auto_below is None or source.auto_amount is None or account.balance >= source.auto_below:
            return None
        mine = [charge for charge in store.charges_of(connection, account_id) if charge.purpose == "auto_top_up"]
        if any(charge.state in UNDECIDED for charge in mine):
            return None
        if mine and mine[-1].state == "declined" and now - mine[-1].made_at < AUTO_AGAIN_MS:
            return None
        if self.standing_of(connection, account).denied:
            return None
        charge_id = digest("auto_top_up", account_id, str(len(mine)))
        return self._begin(connection, charge_id, source, "auto_top_up", self.day_of(now), source.auto_amount, now)

    # ---- refunds

    def refund(self, line_transaction: str, amount: int, reason: str, now: int, key: str = "") -> Refund:
        """Give back of a booked line, to the source that paid it; to the account where none has. Once for a line and key.

        CollectionError: there is no such line, it does not stand, or more would be given back than was paid."""
        begun = self.database.transact(
            lambda connection: self._begin_refund(connection, line_transaction, amount, reason, now, key)
        )
        return self.ask_refund(begun, now) if begun.state == "asked" else begun

    def _begin_refund(
        self, connection: Connection, line_transaction: str, amount: int, reason: str, now: int, key: str
    ) -> Refund:
        line = store.find_paid_line(connection, line_transaction)
        if line is None:
            raise CollectionError(
                "no_line", f"no line that stands and cost a rider something has the transaction {line_transaction}"
            )
        locked(connection, line.account_id)
        refund_id = digest("refund", line_transaction, key)
        known = store.find_refund(connection, refund_id)
        if known is not None:
            if known.amount != amount:
                raise CollectionError(
                    "refund_twice", f"{known.amount} of {line_transaction} was given back before; another needs a key"
                )
            return known
        given = store.refunds_of_leg(connection, line.leg_id)
        of_line = sum(refund.amount for refund in given if refund.line_transaction == line_transaction)
        left = min(line.amount - of_line, line.leg_amount - sum(refund.amount for refund in given))
        if not 0 < amount <= left:
            raise CollectionError("above_line", f"of {line_transaction} {left} can be given back, not {amount}")
        charge = self._paid_by(connection, line, amount)
        refund = Refund(
            refund_id=refund_id,
            charge_id=charge.charge_id if charge is not None else None,
            account_id=line.account_id,
            line_transaction=line_transaction,
            leg_id=line.leg_id,
            amount=amount,
            bearer=(line.operator_id or "") if self.rules.refunds.borne_by == OPERATOR else self.rules.refunds.borne_by,
            reason=reason,
            service_date=self.day_of(now),
            made_at=now,
            state="asked" if charge is not None else "credited",
        )
        store.save_refund(connection, refund)
        if charge is None:
            self.book(connection, [booking.credited(refund)], refund.service_date)
            self.enforce(connection, refund.account_id, now)
        return refund

    def _paid_by(self, connection: Connection, line: store.PaidLine, amount: int) -> Charge | None:
        """The charge that paid a line: of post-paid ones the first at or after its date, of top-ups the latest up to it."""
        found = []
        for charge in store.charges_of(connection, line.account_id):
            refunds = store.refunds_of_charge(connection, charge.charge_id)
            promised = sum(refund.amount for refund in refunds.values() if refund.state == "asked")
            left = fold(charge, refunds, store.events_of(connection, charge.charge_id)).left - promised
            if charge.state == "captured" and charge.purpose != "till" and amount <= left:
                found.append(charge)
        after = [charge for charge in found if charge.purpose in OWED and charge.service_date >= line.service_date]
        before = [charge for charge in found if charge.purpose not in OWED and charge.service_date <= line.service_date]
        return next(iter(after), None) or next(reversed(before), None)

    # ---- the deny list

    def standing_of(self, connection: Connection, account: Account) -> Standing:
        """Where an account stands."""
        marks = store.marks_of(connection, account.account_id, self.day_of)
        given_up = sum(loss.amount for loss in store.write_offs_of(connection, account.account_id))
        return standing(self.rules, marks, -account.balance, given_up)

    def _is_busy(self, connection: Connection, account_id: str) -> bool:
        """Whether a charge for what an account owes is not decided: another one would take it twice."""
        mine = store.charges_of(connection, account_id)
        return any(charge.purpose in OWED and charge.state in UNDECIDED for charge in mine)

    def enforce(self, connection: Connection, account_id: str, now: int) -> None:
        """Bring the deny list to where the account stands. A token that something else blocked is let be."""
        account = locked(connection, account_id)
        mine = store.blocks_of(connection, account_id)
        if not self.standing_of(connection, account).denied:
            for block in mine:
                self._lift(connection, block, now)
            return
        token_ids = sorted(tokens_of(connection, account_id))
        for token_id, blocked_at in store.blocked_tokens(connection, token_ids).items():
            if blocked_at is None:
                for block in mine:
                    if block.token_id == token_id:  # somebody let it ride all the same; the debt is still there
                        store.save_block(connection, msgspec.structs.replace(block, lifted_at=now))
                publishing.block(connection, token_id, now, store.DEBT)
                store.save_block(connection, Block(token_id=token_id, blocked_at=now, account_id=account_id))

    def _lift(self, connection: Connection, block: Block, now: int) -> None:
        """A debt blocks a token no longer; it is good again unless it was blocked for something else since."""
        if is_debts_own(connection, block):
            publishing.unblock(connection, block.token_id, now, store.PAID)
        store.save_block(connection, msgspec.structs.replace(block, lifted_at=now))


def is_debts_own(connection: Connection, block: Block) -> bool:
    """Whether nothing but this debt blocks a token."""
    if store.blocked_tokens(connection, [block.token_id]).get(block.token_id) != block.blocked_at:
        return False
    terminal_token = travellers.find_terminal_token(connection, block.token_id)
    if terminal_token is None:
        return True
    told = store.list_denials(connection, terminal_token)
    return not told or told[-1] == (True, store.DEBT)


def locked(connection: Connection, account_id: str) -> Account:
    """An account that nobody else touches until this transaction ends. NotFoundError for an unknown one."""
    found = travellers.find_accounts(connection, [account_id]).get(account_id)
    if found is None:
        raise NotFoundError(f"no account {account_id}")
    return found


def _source(connection: Connection, account_id: str) -> Source:
    found = store.find_source(connection, account_id)
    if found is None:
        raise CollectionError("no_source", f"nothing is known that the account {account_id} could be charged by")
    return found


def borne_by(losses: Iterable[WriteOff]) -> dict[str, int]:
    """Who bears how much of debts that were given up."""
    found: dict[str, int] = {}
    for loss in losses:
        found[loss.bearer] = found.get(loss.bearer, 0) + loss.amount
    return found


def _the_same(known: Charge, amount: int) -> Charge:
    if known.amount != amount:
        raise CollectionError("different_content", f"a top-up of {known.amount} has this key, not one of {amount}")
    return known


def tokens_of(connection: Connection, account_id: str) -> set[str]:
    """The tokens with which an account's travellers ride now."""
    return {
        token.token_id
        for traveller in travellers.travellers_of_account(connection, account_id)
        for token in travellers.tokens_of_traveller(connection, traveller.traveller_id)
        if token.links[-1:] == () or token.links[-1][1] == traveller.traveller_id
    }


def _count(found: Collected, outcome: Charge | str | None) -> None:
    if isinstance(outcome, Charge):
        found.charged += outcome.state == "captured"
        found.amount += outcome.amount if outcome.state == "captured" else 0
        found.declined += outcome.state == "declined"
        found.undecided += outcome.state in UNDECIDED
    elif outcome == "without_source":
        found.without_source += 1
    elif outcome == "waiting":
        found.waiting += 1
    elif outcome == "left":
        found.left += 1
