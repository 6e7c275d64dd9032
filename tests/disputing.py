"""Disputes over the statements of a little city, and what always holds of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from clearing.close import Rules
from clearing.commands import rules_of
from clearing.disputes import desk, store, verify
from clearing.disputes.claims import Claim, Dispute
from clearing.store import find_document
from tests.builders import Town, row, write_city

MONDAY, TUESDAY, WEDNESDAY, THURSDAY = "2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05"
JOINT = row(
    "joining_rules",
    rule_id="joint",
    from_networks=("bus",),
    to_networks=("metro",),
    window_minutes=120,
    window_from="entry",
    off_first=1000,
    off_second=2000,
    bearer="CITY",
)
A_DAY = """07:00 board 10 card=ana
           07:20 enter A card=ana
           07:40 leave C card=ana
           08:00 board 11 card=ben
           08:10 board 10 card=ben
           08:20 board 10 cash card=paper"""
"""BUSCO is given 5,000 + 5,000 by riders (of which the city pays 1,000) and 5,000 in cash, COOP 5,000, RAIL 9,000 (2,000)."""
NOW = 1_772_700_000_000


class DisputingTown(Town):
    """A closed Tuesday whose statements are disputed."""

    opened_disputes: int = 0

    @property
    def rules(self) -> Rules:
        """As the city's folder says now."""
        return rules_of(self.tariff, self.opened.tariff_folder)

    def line(self, party: str, what: str, paid_by: str = "riders", on: str = TUESDAY) -> int:
        """The number of a row of a party's statement."""
        for found in self.statement(party, on):
            if found["line"] and found["what"] == what and found["paid_by"] == paid_by:
                return int(found["line"])
        raise AssertionError((party, what, self.statement(party, on)))

    def statement(self, party: str, on: str = TUESDAY) -> list[dict[str, str]]:
        """The rows of a published statement."""
        with self.database.read() as connection:
            content = find_document(connection, on, f"{party}.csv")
        assert content is not None, party
        return list(csv.DictReader(io.StringIO(content.decode())))

    def legs(self, operator: str) -> list[str]:
        """The legs of an operator, by their first tap."""
        return [str(leg) for (leg,) in self.rows(f"select leg_id from legs where operator_id = '{operator}' order by began_at")]

    def dispute(self, claimant: str, party: str, line: int = 0, *legs: str, **more: object) -> Dispute:
        """Somebody disputes a row of Tuesday's statements, or legs; each time with another text."""
        self.opened_disputes += 1
        said = {"accounting_date": TUESDAY, "text": f"claim {self.opened_disputes}", **more}
        claim = Claim(claimant=claimant, party_id=party, line=line, leg_ids=legs, **said)  # type: ignore[arg-type]
        return self.database.transact(lambda connection: desk.open_dispute(connection, self.rules, claim, NOW))

    def decide(self, dispute: Dispute, granted: int | None, to: str | None = None) -> Dispute:
        """The clearing house decides."""
        return self.database.transact(
            lambda connection: desk.decide(
                connection, self.rules, dispute.dispute_id, granted, "lan", "as the taps say", NOW + 1, to
            )
        )

    def found(self, dispute: Dispute) -> Dispute:
        """A dispute as it stands now."""
        with self.database.read() as connection:
            now = store.find(connection, dispute.dispute_id)
        assert now is not None
        return now

    def balances(self) -> dict[str, int]:
        """Debits less credits of each account but zeros, of what disputes moved."""
        found: dict[str, int] = {}
        for debit, credit, amount in self.rows("select debit, credit, amount from postings where code in ('HELD', 'DECIDED')"):
            found[str(debit)] = found.get(str(debit), 0) + int(str(amount))
            found[str(credit)] = found.get(str(credit), 0) - int(str(amount))
        return {account: amount for account, amount in sorted(found.items()) if amount}

    def assert_sound(self) -> None:
        """Debits are credits, nothing is held but what is open, and nothing more than its row gave is held or granted."""
        balances = self.balances()
        assert sum(balances.values()) == 0
        with self.database.read() as connection:
            assert verify.check(connection) == []
            disputes = store.list_disputes(connection)
            items = [item for dispute in disputes for item in store.items_of(connection, dispute.dispute_id)]
        held = {name.partition(":")[2]: -amount for name, amount in balances.items() if name.startswith("held:")}
        assert held == {dispute.dispute_id: dispute.amount for dispute in disputes if dispute.state == "open"}
        taken: dict[tuple[str, str, int], int] = {}
        for item in items:
            key = (item.accounting_date, item.party_id, item.line)
            taken[key] = taken.get(key, 0) + item.taken
        for (on, party, line), amount in taken.items():
            (row_,) = [found for found in self.statement(party, on) if found["line"] == str(line)]
            assert amount <= int(row_["amount"])


def disputing(folder: Path, *rules: str, day: str = A_DAY, url: str = "", **options: object) -> DisputingTown:
    """A little city whose Tuesday is closed."""
    city = write_city(folder / "city", *(rules or (JOINT,)), **options)  # type: ignore[arg-type]
    found = DisputingTown(folder / "data", city, url=url)
    found.issue("ana", "ben")
    found.take(day)
    found.close(TUESDAY)
    return found
