"""What has gone wrong at banks and clearing houses elsewhere, each as a test: `pytest -k classic_faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from clearing import store
from clearing.bank.pain001 import order_of, pain001
from clearing.payments import payments_of
from fare_engine.errors import InputError
from tests.camt import ACCOUNTS, camt, entry
from tests.integration.test_bank import BUSCO, CITY, DAY, PAYMENTS, Bank

BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.08">&c;</Document>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.08">&x;</Document>"""


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(f"sqlite:///{tmp_path / 'motthe.db'}")


def test_classic_faults_a_bank_line_that_comes_twice_is_booked_once(bank: Bank) -> None:
    line = entry(-5000, text=BUSCO, bank_ref="R1")
    first = camt(line, moved=-5000)
    for content in (first, first, camt(line, entry(-11, text="fee"), moved=-5011, statement="S2"), first):
        bank.take(content)
    assert bank.postings() == [("net:BUSCO", "bank", 5000)]
    assert bank.waiting() == [(-11, "no_key")]


def test_classic_faults_a_payment_that_the_bank_made_twice_waits_for_somebody(bank: Bank) -> None:
    bank.take(camt(entry(-5000, text=BUSCO, bank_ref="R1"), entry(-5000, text=BUSCO, bank_ref="R2"), moved=-10_000))
    assert bank.postings() == [("net:BUSCO", "bank", 5000)]
    assert bank.waiting() == [(-5000, "paid_already")]


def test_classic_faults_a_payment_that_comes_back_is_owed_again(bank: Bank) -> None:
    bank.take(camt(entry(-5000, text=BUSCO, bank_ref="R1"), moved=-5000))
    assert "BUSCO" not in bank.unpaid()
    back = entry(5000, f"<Refs><EndToEndId>{BUSCO}</EndToEndId></Refs><RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf>", bank_ref="R2")
    bank.take(camt(back, moved=5000, statement="S2"))
    bank.take(camt(back, moved=5000, statement="S2"))
    assert bank.postings() == [("net:BUSCO", "bank", 5000), ("bank", "net:BUSCO", 5000)]
    assert "BUSCO" in bank.unpaid()
    bank.take(camt(entry(-5000, text=BUSCO, bank_ref="R3"), moved=-5000, statement="S3"))
    assert "BUSCO" not in bank.unpaid()


def test_classic_faults_a_payment_of_a_wrong_amount_is_not_taken_for_made(bank: Bank) -> None:
    bank.take(camt(entry(-4945, text=BUSCO), moved=-4945))
    assert bank.postings() == []
    assert bank.waiting() == [(-4945, "wrong_amount")]
    assert "BUSCO" in bank.unpaid()


def test_classic_faults_a_payment_to_the_account_of_another_party_is_not_taken_for_made(bank: Bank) -> None:
    bank.take(camt(entry(-5000, text=BUSCO, account=ACCOUNTS.parties["COOP"].number), moved=-5000))
    assert bank.postings() == []
    assert bank.waiting() == [(-5000, "other_party")]


def test_classic_faults_a_key_in_another_field_is_found(bank: Bank) -> None:
    split = f"<RmtInf><Ustrd>NOP TIEN {CITY[:9].lower()}</Ustrd><Ustrd>{CITY[9:]}</Ustrd></RmtInf>"
    bank.take(camt(entry(4000, f"<Refs><EndToEndId>NOTPROVIDED</EndToEndId></Refs>{split}"), moved=4000))
    assert bank.postings() == [("bank", "net:CITY", 4000)]


def test_classic_faults_two_payments_of_one_amount_and_no_key_wait_for_somebody(bank: Bank) -> None:
    with bank.database.write() as connection:
        store.add_payments(connection, payments_of("2026-03-03", {"BUSCO": 5000}))
    bank.take(camt(entry(-5000, account=ACCOUNTS.parties["BUSCO"].number), moved=-5000))
    assert bank.postings() == []
    assert bank.waiting() == [(-5000, "several_payments")]


@pytest.mark.parametrize(
    "content",
    [
        camt(entry(-5000, text=BUSCO), moved=-5000, account="777"),
        camt(entry(-5000, text=BUSCO), moved=-5000, currency="USD"),
        camt(entry(-5000, text=BUSCO, currency="USD"), moved=-5000),
        camt(entry(-5000, text=BUSCO), moved=-4000),
        camt(entry(-5000, text=BUSCO), entry(7, day="?"), moved=-4993),
        camt(entry(-5000, text=BUSCO), moved=-5000)[:-40],
        camt(entry(-5000, text=BUSCO), moved=-5000).replace(b"<Ntry>", b"<Ntry><Ntry>"),
        BOMB,
        OUTSIDE,
    ],
    ids=["account", "currency", "entry_currency", "balances", "one_entry", "truncated", "not_well_formed", "bomb", "outside"],
)
def test_classic_faults_of_a_file_that_cannot_be_believed_nothing_is_taken(bank: Bank, content: bytes) -> None:
    before = bank.unpaid()
    with pytest.raises(InputError):
        bank.take(content)
    assert (bank.postings(), bank.waiting(), bank.unpaid()) == ([], [], before)


def test_classic_faults_an_order_sent_twice_asks_for_the_same_payments_once() -> None:
    first, again = (pain001(order_of(DAY, PAYMENTS), ACCOUNTS) for _ in range(2))
    assert first == again
    assert payments_of(DAY, {"BUSCO": 5000, "COOP": 3000, "CITY": -4000}) == PAYMENTS
    other = order_of(DAY, payments_of(DAY, {"BUSCO": 5001}))
    assert order_of(DAY, PAYMENTS).message_id != other.message_id
