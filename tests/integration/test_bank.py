"""The bank on a real store: orders are written, statements come in, what was paid is booked, and the rest waits."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from clearing import store as clearing_store
from clearing.bank import booking, store
from clearing.bank.accounts import Accounts, load_accounts
from clearing.payments import Payment, payments_of
from fare_engine.errors import NotFoundError, PaymentError
from fare_engine.store.database import Database
from fare_engine.tariff.compile import CompiledTariff
from simulators.bank import bank_files
from tests.builders import HCMC
from tests.camt import ACCOUNTS, camt, entry
from tests.demos import DAY, PlayedDemo, motthe
from tests.integration.desk import AT_REST_KEY

NEXT = "2026-03-03"
PAYMENTS = payments_of(DAY, {"BUSCO": 5000, "COOP": 3000, "CITY": -4000})
BUSCO, CITY, COOP = (payment.payment_id for payment in PAYMENTS)


class Bank:
    """A store with a day's payments, and the bank's files coming in."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, AT_REST_KEY)
        self.database.create()
        with self.database.write() as connection:
            clearing_store.add_payments(connection, PAYMENTS)

    def take(self, content: bytes) -> booking.Imported:
        with self.database.write(alone=True) as connection:
            return booking.import_file(connection, content, ACCOUNTS, 0, 1)

    def waiting(self) -> list[tuple[int, str]]:
        with self.database.read() as connection:
            return [(found.line.amount, found.reason) for found in store.list_waiting(connection)]

    def lines(self) -> list[str]:
        with self.database.read() as connection:
            return [found.line.line_id for found in store.list_waiting(connection)]

    def unpaid(self) -> list[str]:
        with self.database.read() as connection:
            return [found.payment.party_id for found in booking.list_open(connection)]

    def postings(self) -> list[tuple[str, str, int]]:
        """(debit, credit, amount) in the order in which they were booked."""
        statement = "select debit, credit, amount from postings where code = 'PAID' order by row_number"
        with self.database.read() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def by_hand(self, line: str, payment: str) -> None:
        with self.database.write(alone=True) as connection:
            booking.match_by_hand(connection, ACCOUNTS, line, payment, 1)


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    if request.param == "sqlite":
        return Bank(f"sqlite:///{tmp_path / 'motthe.db'}")
    return Bank(request.getfixturevalue("empty_postgres"))


def test_what_the_bank_paid_and_received_is_booked_against_the_parties_positions(bank: Bank) -> None:
    content = camt(entry(-5000, text=BUSCO), entry(4000, text=CITY.lower()), moved=-1000)
    assert bank.take(content) == booking.Imported(is_new=True, lines=2, added=2, matched=2, waiting=0)
    assert sorted(bank.postings()) == [("bank", "net:CITY", 4000), ("net:BUSCO", "bank", 5000)]
    assert bank.unpaid() == ["COOP"]
    assert bank.waiting() == []
    bank.database.dispose()


def test_a_line_that_makes_no_sense_yet_is_matched_once_it_does(bank: Bank) -> None:
    back = camt(entry(5000, text=BUSCO, head="<RvslInd>true</RvslInd>", bank_ref="R2"), moved=5000, statement="S2")
    assert bank.take(back).waiting == 1
    assert bank.waiting() == [(5000, "return_of_unpaid")]
    assert bank.take(camt(entry(-5000, text=BUSCO, bank_ref="R1", day="2026-03-04"), moved=-5000)).matched == 2
    assert sorted(bank.postings()) == [("bank", "net:BUSCO", 5000), ("net:BUSCO", "bank", 5000)]
    assert bank.unpaid() == ["BUSCO", "CITY", "COOP"]
    bank.database.dispose()


def test_somebody_says_which_payment_a_line_is_and_both_sides_must_fit(bank: Bank) -> None:
    bank.take(camt(entry(-5000, text="illegible"), entry(-11, text="fee"), moved=-5011))
    paid, fee = bank.lines() if bank.waiting()[0][0] == -5000 else reversed(bank.lines())
    for line, payment, said in ((paid, COOP, "wrong_amount"), (fee, BUSCO, "wrong_amount"), (paid, CITY, "wrong_amount")):
        with pytest.raises(PaymentError, match=said):
            bank.by_hand(line, payment)
    for line, payment in (("0000", BUSCO), (paid, "MT0")):
        with pytest.raises(NotFoundError):
            bank.by_hand(line, payment)
    bank.by_hand(paid, BUSCO)
    assert bank.postings() == [("net:BUSCO", "bank", 5000)]
    assert bank.waiting() == [(-11, "no_key")]
    with pytest.raises(NotFoundError):
        bank.by_hand(paid, BUSCO)
    bank.take(camt(entry(-5000, text="again"), moved=-5000, statement="S9"))
    (again,) = [line for line in bank.lines() if line != fee]
    with pytest.raises(PaymentError, match="paid_already"):
        bank.by_hand(again, BUSCO)
    bank.database.dispose()


def test_paid_after_its_date_was_closed_it_is_booked_under_the_first_open_date(bank: Bank) -> None:
    with bank.database.write(alone=True) as connection:
        clearing_store.freeze(connection, NEXT, 1)
    bank.take(camt(entry(-5000, text=BUSCO), moved=-5000))
    with bank.database.read() as connection:
        found = connection.exec_driver_sql("select service_date, accounting_date from postings").all()
    assert [tuple(row) for row in found] == [(DAY, "2026-03-04")]
    bank.database.dispose()


def told(folder: Path, accounts: Accounts, due: list[Payment], seed: int) -> tuple[int, int, dict[str, str]]:
    """(lines that are payments, those of them that were matched, those that were matched wrongly) of all that a bank tells."""
    database = Database(f"sqlite:///{folder / 'motthe.db'}", AT_REST_KEY)
    database.create()
    truth: dict[str, str | None] = {}
    with database.write() as connection:
        clearing_store.add_payments(connection, due)
        for file in bank_files(due, accounts, seed):
            truth |= file.truth
            for _ in range(2):
                booking.import_file(connection, file.content, accounts, 0, 0)
    with database.read() as connection:
        texts = connection.exec_driver_sql("select line_id, texts from bank_lines").all()
        matched = dict(connection.exec_driver_sql("select line_id, payment_id from bank_matches").all())
        paid = connection.exec_driver_sql("select count(*) from postings where code = 'PAID'").scalar_one()
    database.dispose()
    assert len(texts) == len(truth)
    assert paid == len(matched)
    names = {line_id: re.findall(r"CS\d{9}", text)[0] for line_id, text in texts}
    assert names.keys() >= matched.keys()
    wrong = {names[line]: payment for line, payment in matched.items() if truth[names[line]] != payment}
    ours = [line for line, name in names.items() if truth[name] is not None]
    return len(ours), sum(line in matched for line in ours), wrong


def owed(accounts: Accounts, seed: int, days: int, alike: int) -> list[Payment]:
    """Payments of some days; every `alike`-th party is owed the same amount again and again."""
    random = Random(seed)
    return [
        payment
        for day in range(1, days + 1)
        for payment in payments_of(
            f"2026-{1 + day // 28:02}-{1 + day % 28:02}",
            {
                party: 1_000_000 if alike and number % alike == 0 else random.choice((1, 1, -1)) * random.randrange(1, 10**9)
                for number, party in enumerate(accounts.parties)
            },
        )
    ]


@pytest.mark.parametrize("seed", range(3))
def test_999_of_1000_lines_that_a_bank_makes_are_matched_and_none_wrongly(
    tmp_path: Path, hcmc: CompiledTariff, seed: int
) -> None:
    accounts = load_accounts(HCMC / "payments.toml", hcmc.network.parties, "VND")
    ours, matched, wrong = told(tmp_path, accounts, owed(accounts, seed, 60, 0), seed)
    assert ours > 2300
    assert matched >= ours * 0.999
    assert wrong == {}


@pytest.mark.parametrize("seed", range(3))
def test_where_amounts_are_alike_what_nobody_could_tell_waits_and_nothing_is_matched_wrongly(
    tmp_path: Path, hcmc: CompiledTariff, seed: int
) -> None:
    accounts = load_accounts(HCMC / "payments.toml", hcmc.network.parties, "VND")
    ours, matched, wrong = told(tmp_path, accounts, owed(accounts, seed, 28, 2), seed)
    assert wrong == {}
    assert ours * 0.9 < matched < ours


# ---- commands


@pytest.fixture
def paid(demo: PlayedDemo, tmp_path: Path) -> Path:
    """A demo's store whose day has payments."""
    return demo.copy(tmp_path / "data")


@pytest.mark.long(30)
def test_a_day_s_payments_go_out_and_come_back_by_commands(paid: Path, hcmc: CompiledTariff) -> None:
    done = motthe("payments", DAY, "--data", f"{paid}")
    assert done.returncode == 0, done.stderr
    order = paid / "payments" / f"{DAY}.xml"
    first = order.read_bytes()
    assert b"pain.001.001.09" in first
    assert motthe("payments", DAY, "--data", f"{paid}", "--out", f"{paid / 'again.xml'}").returncode == 0
    assert (paid / "again.xml").read_bytes() == first
    accounts = load_accounts(HCMC / "payments.toml", hcmc.network.parties, "VND")
    with Database(f"sqlite:///{paid / 'motthe.db'}", (paid / "keys" / "at-rest.key").read_bytes()).read() as connection:
        due = clearing_store.list_payments(connection, DAY)
    assert due
    waits = motthe("bank", "queue", "--data", f"{paid}")
    assert f"0 lines and {len(due)} payments wait" in waits.stdout
    for number, file in enumerate(bank_files(due, accounts, 1)):
        path = paid / f"{number}.xml"
        path.write_bytes(file.content)
        taken = motthe("bank", "import", f"{path}", "--data", f"{paid}")
        assert taken.returncode == 0, taken.stderr
        again = motthe("bank", "import", f"{path}", "--data", f"{paid}")
        assert "0 new, 0 matched" in again.stdout
        assert "imported before" in again.stdout
    assert "and 0 payments wait" in motthe("bank", "queue", "--data", f"{paid}").stdout
    assert motthe("taps", "verify", "--data", f"{paid}").returncode == 0


def test_a_date_that_is_not_closed_has_no_order_and_a_wrong_file_is_refused(paid: Path) -> None:
    done = motthe("payments", NEXT, "--data", f"{paid}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "2026-03-03 is not closed" in done.stderr
    wrong = paid / "wrong.xml"
    wrong.write_bytes(camt(account="777"))
    done = motthe("bank", "import", f"{wrong}", "--data", f"{paid}")
    assert done.returncode == 1
    assert "is not the clearing house's account (found '777')" in done.stderr
    assert motthe("bank", "import", f"{paid / 'none.xml'}", "--data", f"{paid}").returncode == 1
