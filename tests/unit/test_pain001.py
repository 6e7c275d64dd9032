"""The order to the bank: valid against its XSD, sums that are right, letters that every bank hands on."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.bank import pain001
from clearing.bank.accounts import load_accounts
from clearing.bank.pain001 import CARRIED, carried, check, execution_date, order_of
from clearing.payments import payments_of
from fare_engine.errors import CloseError, InputError
from fare_engine.tariff.compile import CompiledTariff
from tests.builders import HCMC
from tests.camt import ACCOUNTS

DAY = "2026-03-02"
PAYMENTS = payments_of(DAY, {"BUSCO": 5000, "CITY": -8000, "COOP": 3000, "riders": -70})
SPACE = {"p": pain001.NAMESPACE}


def order() -> bytes:
    return pain001.pain001(order_of(DAY, PAYMENTS), ACCOUNTS)


def texts(content: bytes, path: str) -> list[str | None]:
    return [found.text for found in ElementTree.fromstring(content).iterfind(f".//{path}", SPACE)]


def test_the_order_pays_what_is_owed_in_whole_amounts_to_accounts_without_iban() -> None:
    content = order()
    check(content)
    assert texts(content, "p:InstdAmt") == ["5000", "3000"]
    assert texts(content, "p:CtrlSum") == ["8000", "8000"]
    assert texts(content, "p:NbOfTxs") == ["2", "2"]
    assert texts(content, "p:CdtrAcct/p:Id/p:Othr/p:Id") == ["88801", "88802"]
    assert texts(content, "p:IBAN") == []
    assert texts(content, "p:EndToEndId") == [payment.payment_id for payment in PAYMENTS if payment.amount > 0]
    assert texts(content, "p:Dbtr/p:Nm") == ["Trung tam bu tru"]
    assert b"<CreDtTm>2026-03-03T00:00:00Z<" in content


def test_the_same_payments_are_the_same_message_to_the_byte_and_others_another() -> None:
    assert order() == order()
    ids = {order_of(day, payments_of(day, {"BUSCO": amount})).message_id for day in (DAY, "2026-03-03") for amount in (1, 2)}
    assert len(ids) == 4
    assert all(len(found) <= 35 for found in ids)


def test_a_party_without_an_account_stops_the_order_and_is_named() -> None:
    found = order_of(DAY, payments_of(DAY, {"BUSCO": 1, "NOBODY": 2, "NOONE": 3}))
    with pytest.raises(InputError) as caught:
        pain001.pain001(found, ACCOUNTS)
    assert [fault.value for fault in caught.value.faults] == ["NOBODY", "NOONE"]


def test_where_nobody_is_paid_there_is_no_order() -> None:
    with pytest.raises(CloseError, match="nobody is paid"):
        pain001.pain001(order_of(DAY, payments_of(DAY, {"CITY": -1})), ACCOUNTS)


def test_amounts_with_minor_units_have_their_decimals() -> None:
    assert b">50.05<" in pain001.pain001(order_of(DAY, payments_of(DAY, {"BUSCO": 5005})), ACCOUNTS, 2)


@pytest.mark.parametrize(
    ("was", "is_now", "place"),
    [
        (b"<NbOfTxs>2<", b"<NbOfTxs>two<", "/Document/CstmrCdtTrfInitn/GrpHdr/NbOfTxs"),
        (b">5000<", b">-5000<", "/Document/CstmrCdtTrfInitn/PmtInf/CdtTrfTxInf[1]/Amt/InstdAmt"),
        (b'Ccy="VND"', b'Ccy="dong"', "/Document/CstmrCdtTrfInitn/PmtInf/CdtTrfTxInf[1]/Amt/InstdAmt"),
        (b"XXAAVNVX", b"XX", "/Document/CstmrCdtTrfInitn/PmtInf/CdtTrfTxInf[1]/CdtrAgt/FinInstnId/BICFI"),
        (b"<PmtMtd>TRF</PmtMtd>", b"", "/Document/CstmrCdtTrfInitn/PmtInf"),
        (b"<Othr>", b"<Other>", "pain.001"),
        (b"<Document", b"<!DOCTYPE a [<!ENTITY b 'c'>]><Document", "pain.001"),
    ],
)
def test_an_order_that_its_xsd_does_not_accept_is_refused_with_its_place(was: bytes, is_now: bytes, place: str) -> None:
    with pytest.raises(InputError) as caught:
        check(order().replace(was, is_now))
    assert place in {fault.place for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Công ty TNHH MTV Đường sắt đô thị số 1", "Cong ty TNHH MTV Duong sat do thi so 1"),
        ("HTX 19/5 – Quyết Thắng & các bên", "HTX 19/5 Quyet Thang cac ben"),
        ("//a//b//", "a/ /b"),
        ("漢字", "NOTPROVIDED"),
        ("x" * 200, "x" * 140),
    ],
)
def test_texts_are_in_letters_that_every_bank_hands_on(text: str, found: str) -> None:
    assert carried(text) == found


@given(st.text())
def test_any_text_becomes_one_that_every_bank_hands_on(text: str) -> None:
    found = carried(text)
    assert 0 < len(found) <= 140
    assert not CARRIED.search(found)
    assert found[0] not in "/-: "
    assert "//" not in found


def test_orders_are_carried_out_on_a_weekday_after_the_accounting_date() -> None:
    assert [execution_date(f"2026-03-0{day}") for day in (5, 6, 7, 8)] == [date(2026, 3, 6), *[date(2026, 3, 9)] * 3]


# ---- accounts


def test_every_party_of_the_city_that_ships_has_an_account(hcmc: CompiledTariff) -> None:
    accounts = load_accounts(HCMC / "payments.toml", hcmc.network.parties, "VND")
    assert accounts.parties.keys() == hcmc.network.parties.keys()
    due = payments_of(DAY, dict.fromkeys(accounts.parties, 1_000_000))
    check(pain001.pain001(order_of(DAY, due), accounts))


@pytest.mark.parametrize(
    ("was", "is_now", "said"),
    [
        ('"XXMTVNVX"', '"x"', "clearing_house bank_bic: not a BIC"),
        ('"9990000000001"', '"99 9"', "clearing_house number: not 4 to 34 letters and digits (found '99 9')"),
        ('currency = "VND"', 'currency = "USD"', "payments.currency: the tariff's is VND (found 'USD')"),
        ('"OP-FUTA"', '"OP-NOBODY"', "OP-NOBODY party_id: names no party"),
        ('"OP-FUTA"', '"OP-HURC1"', "OP-HURC1 party_id: has an account already"),
        ('"99900001002"', '"99900001001"', "number: is the account of OP-HURC1"),
        ('"99900001002"', '"9990000000001"', "number: is the account of clearing_house"),
        ("number =", "nummer =", "not a payments.toml"),
        ("[payments]", "[payments", "not a payments.toml"),
        ('holder = "Trung tâm bù trừ vé giao thông công cộng"', 'holder = " "', "clearing_house holder: is empty"),
    ],
)
def test_a_wrong_file_of_accounts_is_refused_with_place_and_value(
    hcmc: CompiledTariff, tmp_path: Path, was: str, is_now: str, said: str
) -> None:
    path = tmp_path / "payments.toml"
    path.write_text((HCMC / "payments.toml").read_text(encoding="utf-8").replace(was, is_now), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_accounts(path, hcmc.network.parties, "VND")
    assert any(said in str(fault) for fault in caught.value.faults), caught.value.faults


def test_a_missing_file_of_accounts_is_named(hcmc: CompiledTariff, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file is missing"):
        load_accounts(tmp_path / "payments.toml", hcmc.network.parties, "VND")
