"""A little city that collects: its rules, its riders' sources, and a payment provider that runs as a process of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from clearing.collection import reconcile, store
from clearing.collection.charges import Charge, Event, Refund
from clearing.collection.collector import Collector
from clearing.collection.opening import open_collector, provider_secret
from clearing.collection.provider import PaymentProvider
from clearing.collection.reconcile import Break
from clearing.collection.verify import check
from clearing.commands import end_of
from fare_engine.service_day import DAY_MS
from fare_engine.store import travellers
from tests.builders import NETWORK, ROOT, Town, write_city
from tests.served import free_port

RULES = """\
[collection]
rules_version = "1"
currency = "VND"

[provider]
party = "ACQ"
fee_percent = "1.5"
fee_fixed = 100
chargeback_fee = 20_000
fees_paid_by = "CITY"

[charging]
least = 1_000
retry_days = [1, 3, 7]
deny_after = 2
pending_hours = 24

[debts]
write_off_days = 30
first_ride = { limit = 8_000, bearer = "CITY" }
rest_bearer = "SPONSOR"

[top_up]
least = 10_000
most = 500_000
balance_limit = 1_000_000
most_a_day = 3
auto_below = 20_000
auto_amount = 50_000

[refunds]
borne_by = "operator"

[cards]
valid_months = 60
keeps_days = 365
residual_to = "CITY"
deposit = 15_000
"""
PARTIES = NETWORK["parties.csv"] + "ACQ,Ngân hàng,An acquirer,acquirer\n"
FILES = {"collection.toml": RULES, "parties.csv": PARTIES}
MONDAY, TUESDAY, WEDNESDAY, THURSDAY = "2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05"


class FakeProvider:
    """A provider that answers what it is told to, and remembers what it was asked; it keeps each answer for its key."""

    def __init__(self) -> None:
        self.states: dict[str, str | None] = {}
        """Account's source → `captured` (the default), `declined`, `pending`, or None: no answer."""
        self.answers: dict[str, Event] = {}
        self.asked: list[str] = []

    def charge(self, charge: Charge) -> Event | None:
        """Decide once for a key."""
        self.asked.append(charge.charge_id)
        state = self.states.get(charge.source, "captured")
        if state is None:
            return None
        held = self.answers.get(charge.charge_id)
        if held is None or held.kind == "pending":
            event_id = f"answer/{charge.charge_id}/{state}"
            held = Event(event_id=event_id, charge_id=charge.charge_id, kind=state, amount=charge.amount, at=charge.made_at)  # type: ignore[arg-type]
            self.answers[charge.charge_id] = held
        return held

    def refund(self, refund: Refund) -> Event | None:
        """Give it back."""
        self.asked.append(refund.refund_id)
        return refunded(refund)


def refunded(refund: Refund, event_id: str = "") -> Event:
    """The provider gave a refund back."""
    return Event(
        event_id=event_id or f"answer/{refund.refund_id}/refunded",
        charge_id=refund.charge_id or "",
        kind="refunded",
        reference=refund.refund_id,
        amount=refund.amount,
        at=refund.made_at,
    )


class CollectingTown(Town):
    """A town with rules for collection, through a provider: a fake one unless a URL is named."""

    def __init__(self, folder: Path, *rules: str, url: str | None = None) -> None:
        city = write_city(folder / "city", *rules, files=FILES)
        super().__init__(folder / "data", city)
        self.fake = FakeProvider()
        self.collector = self.open(url)

    def open(self, url: str | None = None) -> Collector:
        """A collector of this store, as another process would have."""
        found = open_collector(
            self.database, self.tariff, self.opened.tariff_folder, self.data, url, lambda: time.time_ns() // 10**6
        )
        assert found is not None
        found.provider = found.provider if url is not None else self.fake
        return found

    def sources(self, *cards: str) -> None:
        """Each card's account is charged by a source of its name."""
        for card in cards:
            self.collector.set_source(f"account-{card}", f"src-{card}", 0)

    def ride(self, on: str, *cards: str) -> None:
        """One bus ride of 5,000 of each on a date."""
        self.take("\n".join(f"{on} {7 + i // 60:02}:{i % 60:02} board 10 card={card}" for i, card in enumerate(cards)))

    def after(self, on: str, days: int = 0) -> int:
        """An hour after the end of a date, and some days more."""
        return end_of(self.tariff, on) + 3_600_000 + days * DAY_MS

    def collect(self, on: str):  # type: ignore[no-untyped-def]
        """The run for a date, an hour after its end."""
        return self.collector.collect(on, self.after(on))

    def charges(self, card: str) -> list[Charge]:
        """An account's charges."""
        with self.database.read() as connection:
            return store.charges_of(connection, f"account-{card}")

    def booked(self, account: str) -> int:
        """Debits less credits of an account."""
        with self.database.read() as connection:
            return sum(amount for name, amount in store.balances_of(connection, [account]).items() if name == account)

    def is_blocked(self, card: str) -> bool:
        """Whether a card's token is let ride no more."""
        with self.database.read() as connection:
            return travellers.find_tokens(connection, [self._token_id(card)])[self._token_id(card)].blocked_at is not None

    def token_id(self, card: str) -> str:
        """The id of a card's token."""
        return self._token_id(card)

    def line_of(self, card: str) -> str:
        """The transaction of a card's first line."""
        ((found,),) = self.rows(
            f"select transaction_id from lines where traveller_id = '{card}' and amount > 0 order by row_number limit 1"
        )
        return str(found)

    def breaks(self, now: int, report: str | None = None) -> list[Break]:
        """What the reconciliation names."""
        with self.database.read() as connection:
            ours = reconcile.snapshot(connection)
            hours = self.collector.rules.charging.pending_hours
            rows = reconcile.read_report(report, "report.csv") if report is not None else None
            found = reconcile.own_breaks(ours, now, hours) if rows is None else reconcile.compare(rows, ours, now, hours)
            return found + reconcile.deny_breaks(self.collector, connection)

    def kinds(self, now: int, report: str | None = None) -> list[str]:
        """The names of what the reconciliation found."""
        return sorted({found.kind for found in self.breaks(now, report)})

    def assert_sound(self) -> None:
        """Every row is what was written, and balances are what postings give."""
        with self.database.read() as connection:
            assert check(connection) == []
        owed = dict.fromkeys((name for (name,) in self.rows("select account_id from accounts")), 0)
        for debit, credit, amount in self.rows("select debit, credit, amount from postings"):
            for account, sign in ((debit, -1), (credit, 1)):
                if str(account).startswith("rider:"):
                    owed[str(account).removeprefix("rider:")] += sign * int(amount)  # type: ignore[call-overload]
        assert owed == dict(self.rows("select account_id, balance from accounts"))


def collecting(folder: Path, *cards: str, kind: str = "postpaid", provider: PaymentProvider | None = None) -> CollectingTown:
    """A town in which these cards can be charged."""
    found = CollectingTown(folder)
    if provider is not None:
        found.collector.provider = provider
    found.issue(*cards, kind=kind)
    found.sources(*cards)
    return found


# ---- the provider as a process


class ProviderProcess:
    """`motthe simulate provider` over a file of its own."""

    def __init__(self, folder: Path, key_file: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.books = folder / "provider.db"
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "motthe", "simulate", "provider", "--port", f"{self.port}", "--books", f"{self.books}"]
        self._process = subprocess.Popen(
            [*command, "--key-file", f"{key_file}", *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.settlement()
                return
            except OSError:
                assert self._process.poll() is None, "the provider ended"
                assert time.monotonic() < deadline, "the provider did not answer within 30 s"
                time.sleep(0.05)

    def settlement(self) -> str:
        """Its settlement report."""
        with urllib.request.urlopen(f"{self.url}/v1/settlement", timeout=10) as response:
            return str(response.read().decode())

    def tell(self, what: str, **values: object) -> None:
        """Make something happen at the provider: `behave` or `move`."""
        request = urllib.request.Request(f"{self.url}/control/{what}", json.dumps(values).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200

    def captured(self) -> int:
        """How many charges it has captured."""
        with closing(sqlite3.connect(self.books)) as database:
            return int(database.execute("select count(*) from moves where kind = 'captured'").fetchone()[0])

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@contextmanager
def provider_process(town: CollectingTown, *options: str) -> Iterator[ProviderProcess]:
    """A provider that shares a town's secret; the town's collector asks it."""
    provider_secret(town.data)
    found = ProviderProcess(town.data, town.data / "keys" / "provider.key", *options)
    try:
        town.collector = town.open(found.url)
        yield found
    finally:
        found.stop()


def start_collecting(town: CollectingTown, on: str, url: str) -> subprocess.Popen[bytes]:
    """`motthe collect DATE` as a process, which may be killed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MOTTHE_")}
    own |= {"MOTTHE_PROVIDER_URL": url, "MOTTHE_TARIFF": f"{town.opened.tariff_folder}", "MOTTHE_DATA": f"{town.data}"}
    return subprocess.Popen([sys.executable, "-m", "motthe", "collect", on], cwd=ROOT, env=own, stdout=subprocess.DEVNULL)
