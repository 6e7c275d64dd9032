"""The bank's statements: what a line is, which files are taken, and which are refused with place and value."""

from __future__ import annotations

import pytest

from clearing.bank import camt053
from clearing.bank.camt053 import BankLine, OwnAccount, read_camt053
from fare_engine.errors import InputError
from tests.camt import OURS, balance, camt, entry

OWN = OwnAccount(OURS, "VND")


def lines(content: bytes) -> list[BankLine]:
    return [line for statement in read_camt053(content, OWN) for line in statement.lines]


def faults(content: bytes, own: OwnAccount = OWN) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_camt053(content, own)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("version", ["02", "03", "04", "06", "08", "09", "13"])
def test_every_version_from_02_on_is_read(version: str) -> None:
    (line,) = lines(camt(entry(-5000, account="8880", text="a b", bank_ref="R1"), moved=-5000, version=version))
    assert (line.amount, line.other_account, line.booked_on, line.statement_id) == (-5000, "8880", "2026-03-05", "S1")
    assert dict(line.texts)["Ustrd"] == "a b"


def test_an_entry_of_several_transactions_is_a_line_for_each() -> None:
    parts = "".join(
        f'<TxDtls><Refs><EndToEndId>E{n}</EndToEndId></Refs><Amt Ccy="VND">{amount}</Amt><CdtDbtInd>DBIT</CdtDbtInd></TxDtls>'
        for n, amount in ((1, 3000), (2, 2000))
    )
    found = lines(
        camt(entry(-5000, f"<NtryDtls>{parts}</NtryDtls>", ref="1", head="<AddtlNtryInf>both</AddtlNtryInf>"), moved=-5000)
    )
    assert [(line.amount, dict(line.texts).get("EndToEndId"), dict(line.texts).get("AddtlNtryInf")) for line in found] == [
        (-3000, "E1", None),
        (-2000, "E2", None),
    ]
    assert len({line.line_id for line in found}) == 2


@pytest.mark.parametrize("second", ["", '<Amt Ccy="VND">1999</Amt>', '<Amt Ccy="USD">2000</Amt>'])
def test_transactions_that_do_not_add_up_to_their_entry_are_one_line_with_all_their_texts(second: str) -> None:
    parts = '<TxDtls><Refs><TxId>E1</TxId></Refs><Amt Ccy="VND">3000</Amt></TxDtls>'
    parts += f"<TxDtls><Refs><TxId>E2</TxId></Refs>{second}</TxDtls>"
    (line,) = lines(camt(entry(-5000, f"<NtryDtls>{parts}</NtryDtls>"), moved=-5000))
    assert (line.amount, dict(line.texts)["TxId"]) == (-5000, "E1 E2")


def test_an_entry_without_details_is_a_line_of_what_stands_in_it() -> None:
    (line,) = lines(camt(entry(700, head="<AddtlNtryInf>interest</AddtlNtryInf>"), moved=700))
    assert (line.amount, dict(line.texts)["AddtlNtryInf"], line.is_return) == (700, "interest", False)


@pytest.mark.parametrize("said", [{"head": "<RvslInd>true</RvslInd>"}, {"inside": "<RtrInf><Rsn><Cd>AC01</Cd></Rsn></RtrInf>"}])
def test_a_reversal_and_a_return_are_known_as_such(said: dict[str, str]) -> None:
    (line,) = lines(camt(entry(5000, **said), moved=5000))
    assert line.is_return


@pytest.mark.parametrize("status", ["<Sts>PDNG</Sts>", "<Sts><Cd>PDNG</Cd></Sts>", "<Sts><Cd>INFO</Cd></Sts>"])
def test_what_is_not_booked_is_no_line(status: str) -> None:
    assert lines(camt(entry(5000, status=status))) == []


def test_a_whole_amount_may_be_written_with_decimals() -> None:
    (line,) = lines(camt(entry("-5000.00"), moved=-5000))
    assert line.amount == -5000


def test_the_same_entry_in_another_statement_has_the_same_id_if_the_bank_gave_it_a_reference_or_it_says_the_same() -> None:
    for given in ({"bank_ref": "R1"}, {"text": "fee of March"}):
        one, other = (lines(camt(entry(-5000, **given), moved=-5000, statement=name))[0] for name in ("S1", "S2"))
        assert one.line_id == other.line_id


def test_a_number_that_counts_entries_of_one_statement_does_not_make_entries_of_two_the_same() -> None:
    one, other = (lines(camt(entry(-5000, ref="1"), moved=-5000, statement=name))[0] for name in ("S1", "S2"))
    assert one.line_id != other.line_id


def test_two_entries_alike_in_one_statement_are_two_lines() -> None:
    found = lines(camt(entry(-11, text="fee"), entry(-11, text="fee"), moved=-22))
    assert len({line.line_id for line in found}) == 2


def test_a_bank_that_gives_the_same_reference_to_a_payment_and_its_return_does_not_hide_the_return() -> None:
    found = lines(camt(entry(-5000, bank_ref="R1"), entry(5000, bank_ref="R1"), moved=0))
    assert len({line.line_id for line in found}) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (camt(entry(-5000), moved=-4000), "Stmt[1]/Bal: opening 1000000 and entries -5000 give 995000 (found 996000)"),
        (camt(account="777"), "Stmt[1]/Acct/Id: is not the clearing house's account (found '777')"),
        (camt(currency="USD"), "Stmt[1]/Acct/Ccy: the account is in VND (found 'USD')"),
        (camt(entry(5, currency="USD"), moved=5), "Stmt[1]/Ntry[1]/Amt/@Ccy: the account is in VND (found 'USD')"),
        (camt(entry("5.50"), moved=5), "Stmt[1]/Ntry[1]/Amt: VND has 0 decimals (found '5.50')"),
        (camt(entry("5e3"), moved=5000), "Stmt[1]/Ntry[1]/Amt: not an amount (found '5e3')"),
        (camt(entry("NaN"), moved=5), "Stmt[1]/Ntry[1]/Amt: not an amount (found 'NaN')"),
        (camt(entry(5, day="05/03/2026"), moved=5), "Stmt[1]/Ntry[1]/BookgDt: not a date (found '05/03/2026')"),
        (camt(entry(5).replace("CRDT", "C"), moved=5), "Stmt[1]/Ntry[1]/CdtDbtInd: neither CRDT nor DBIT (found 'C')"),
        (
            camt(entry(5), moved=5, summary="<TxsSummry><TtlNtries><NbOfNtries>2</NbOfNtries></TtlNtries></TxsSummry>"),
            "Stmt[1]/TxsSummry/TtlNtries/NbOfNtries: there are 1 entries (found '2')",
        ),
        (camt().replace(b"<Id>S1</Id>", b""), "Stmt[1]/Id: is missing (found None)"),
        (camt().replace(b"CLBD", b"CLAV"), "Stmt[1]/Bal: no balance CLBD (found None)"),
        (camt(version="01"), "not a camt.053 of version 02 or later"),
        (camt().replace(b"camt.053", b"camt.054"), "not a camt.053 of version 02 or later"),
        (b"<a/>", "not a camt.053 of version 02 or later"),
        (b"", "not XML"),
        (camt().replace(b"<Stmt>", b"<Rpt>").replace(b"</Stmt>", b"</Rpt>"), "has no statement"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "not XML"),
    ],
)
def test_a_file_that_cannot_be_believed_is_refused_with_place_and_value(content: bytes, said: str) -> None:
    assert any(said in fault for fault in faults(content)), faults(content)


def test_all_faults_of_a_file_are_told_together() -> None:
    assert len(faults(camt(entry("x"), entry(5, day="x"), account="777"))) == 3


def test_a_file_that_is_nested_too_deep_or_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = camt(head := entry(5, head="<A>" * 500 + "</A>" * 500), moved=5)
    assert "elements deep" in faults(deep)[0]
    monkeypatch.setattr(camt053, "MAX_BYTES", 100)
    assert "longer than 100 bytes" in faults(camt(head))[0]


def test_a_file_of_two_statements_is_taken_or_refused_as_a_whole() -> None:
    good = camt(entry(5), moved=5)
    body = good[good.index(b"<Stmt>") : good.index(b"</Stmt>") + 7]
    both = good.replace(body, body + body.replace(b"S1", b"S2"))
    assert len(read_camt053(both, OWN)) == 2
    broken = good.replace(
        body, body + body.replace(b"S1", b"S2").replace(balance("CLBD", 1_000_005).encode(), balance("CLBD", 1).encode())
    )
    assert faults(broken) == ["Stmt[2]/Bal: opening 1000000 and entries 5 give 1000005 (found 1)"]
