"""Which payment a bank line is: by its key in any field and spelling, else only where one payment can be meant."""

from __future__ import annotations

import pytest

from clearing.bank.camt053 import OwnAccount, read_camt053
from clearing.bank.matching import Match, OpenPayment, Payments, Reason
from clearing.bank.pain001 import order_of
from clearing.payments import Payment, payments_of
from tests.camt import ACCOUNTS, OURS, camt, entry

DAY, NEXT = "2026-03-02", "2026-03-03"
FIRST = payments_of(DAY, {"BUSCO": 5000, "COOP": 3000, "CITY": -4000, "RAIL": 5000})
SECOND = payments_of(NEXT, {"BUSCO": 5000, "COOP": 3100})
KEYS = {(payment.accounting_date, payment.party_id): payment.payment_id for payment in (*FIRST, *SECOND)}
BUSCO, COOP, CITY = (KEYS[DAY, party] for party in ("BUSCO", "COOP", "CITY"))
NUMBERS = {party: account.number for party, account in ACCOUNTS.parties.items()}


def payments(*found: Payment) -> Payments:
    found = found or (*FIRST, *SECOND)
    batches = {order_of(date, [p for p in found if p.accounting_date == date]).batch_id: date for date in (DAY, NEXT)}
    accounts = {account.number: party for party, account in ACCOUNTS.parties.items()}
    return Payments([OpenPayment(payment, 0) for payment in found], accounts, batches)


def told(*entries: str) -> list[tuple[str, ...] | Reason]:
    """What each entry is matched with, in turn."""
    known = payments()
    moved = sum(int(e.split("<Amt")[1].split(">")[1].split("<")[0]) * (1 if "CRDT" in e else -1) for e in entries)
    (statement,) = read_camt053(camt(*entries, moved=moved), OwnAccount(OURS, "VND"))
    found = [known.match(line) for line in statement.lines]
    return [one if isinstance(one, Reason) else tuple(match.payment_id for match in one) for one in found]


@pytest.mark.parametrize(
    "inside",
    [
        *(f"<Refs><{name}>{BUSCO}</{name}></Refs>" for name in ("EndToEndId", "InstrId", "PmtInfId", "TxId", "MsgId", "ChqNb")),
        f"<Refs><EndToEndId>NOTPROVIDED</EndToEndId><Prtry><Ref>{BUSCO}</Ref></Prtry></Refs>",
        f"<RmtInf><Ustrd>{BUSCO}</Ustrd></RmtInf>",
        f"<RmtInf><Ustrd>{BUSCO.lower()}</Ustrd></RmtInf>",
        f"<RmtInf><Ustrd>TT QT {BUSCO[:7]}</Ustrd><Ustrd>{BUSCO[7:]} CAM ON</Ustrd></RmtInf>",
        f"<RmtInf><Ustrd>{' '.join(BUSCO)}</Ustrd></RmtInf>",
        f"<RmtInf><Strd><CdtrRefInf><Ref>{BUSCO}</Ref></CdtrRefInf></Strd></RmtInf>",
        f"<RmtInf><Strd><AddtlRmtInf>{BUSCO}</AddtlRmtInf></Strd></RmtInf>",
        f"<AddtlTxInf>/EREF/{BUSCO}/REMI/x</AddtlTxInf>",
        f"<RmtInf><Ustrd>{BUSCO[:16]}</Ustrd></RmtInf>",
        f"<RmtInf><Ustrd>{BUSCO[:20]} THANH TOAN</Ustrd></RmtInf>",
    ],
)
def test_a_key_is_found_in_whatever_field_it_comes_back(inside: str) -> None:
    assert told(entry(-5000, inside)) == [(BUSCO,)]


def test_a_key_beside_the_entry_is_found_too() -> None:
    assert told(entry(-5000, head=f"<AddtlNtryInf>CK DI {BUSCO}</AddtlNtryInf>")) == [(BUSCO,)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (entry(-4999, text=BUSCO), Reason.WRONG_AMOUNT),
        (entry(-4999, text=BUSCO[:18]), Reason.WRONG_AMOUNT),
        (entry(5000, text=BUSCO), Reason.WRONG_DIRECTION),
        (entry(5000, text=BUSCO, head="<RvslInd>true</RvslInd>"), Reason.RETURN_OF_UNPAID),
        (entry(-5000, text="MT202603020123456789ABCDEF"), Reason.UNKNOWN_KEY),
        (entry(-5000, text=BUSCO[:-1] + ("0" if BUSCO[-1] != "0" else "1"), account=NUMBERS["BUSCO"]), Reason.UNKNOWN_KEY),
        (entry(-5000, text=f"{BUSCO} {COOP}"), Reason.SEVERAL_KEYS),
        (entry(-5000, text=BUSCO, account=NUMBERS["COOP"]), Reason.OTHER_PARTY),
        (entry(-5000, account=NUMBERS["BUSCO"]), Reason.SEVERAL_PAYMENTS),
        (entry(-5000), Reason.NO_KEY),
        (entry(-5000, account="unknown"), Reason.NO_KEY),
        (entry(-11, text="phi"), Reason.NO_KEY),
        (entry(3000, account=NUMBERS["COOP"]), Reason.NO_KEY),
        (entry(3000, account=NUMBERS["COOP"], head="<RvslInd>true</RvslInd>"), Reason.NO_KEY),
    ],
)
def test_whatever_does_not_fit_waits_with_its_reason(said: str, reason: Reason) -> None:
    assert told(said) == [reason]


def test_without_a_key_the_only_open_payment_of_that_account_and_amount_is_meant() -> None:
    assert told(entry(-3000, account=NUMBERS["COOP"])) == [(COOP,)]
    assert told(entry(4000, account=NUMBERS["CITY"])) == [(CITY,)]
    later = KEYS[NEXT, "BUSCO"]
    assert told(entry(-5000, text=later), entry(-5000, account=NUMBERS["BUSCO"])) == [(later,), (BUSCO,)]


def test_a_short_rest_of_a_key_tells_two_payments_of_one_account_apart() -> None:
    later = KEYS[NEXT, "BUSCO"]
    assert told(entry(-5000, text=f"QT {later[:12]}", account=NUMBERS["BUSCO"])) == [(later,)]
    assert told(entry(-5000, text=f"QT {later[:12]}")) == [Reason.UNKNOWN_KEY]


def test_a_payment_that_was_made_is_not_made_again() -> None:
    assert told(entry(-5000, text=BUSCO), entry(-5000, text=BUSCO)) == [(BUSCO,), Reason.PAID_ALREADY]
    assert told(entry(-3000, text=COOP), entry(-3000, account=NUMBERS["COOP"])) == [(COOP,), Reason.NO_KEY]


def test_a_payment_that_comes_back_is_open_again() -> None:
    back = entry(5000, text=BUSCO, head="<RvslInd>true</RvslInd>")
    assert told(entry(-5000, text=BUSCO), back, entry(-5000, text=BUSCO)) == [(BUSCO,)] * 3
    unnamed = entry(3000, account=NUMBERS["COOP"], inside="<RtrInf><Rsn><Cd>AC01</Cd></Rsn></RtrInf>")
    assert told(entry(-3000, text=COOP), unnamed, unnamed) == [(COOP,), (COOP,), Reason.NO_KEY]


def test_an_order_that_the_bank_booked_in_one_sum_is_all_its_payments() -> None:
    order = order_of(DAY, FIRST)
    assert told(entry(-13_000, f"<Refs><PmtInfId>{order.batch_id}</PmtInfId></Refs>")) == [
        tuple(payment.payment_id for payment in order.payments)
    ]
    assert told(entry(-12_999, f"<Refs><PmtInfId>{order.batch_id}</PmtInfId></Refs>")) == [Reason.NO_KEY]
    assert told(entry(-3000, f"<Refs><PmtInfId>{order.batch_id}</PmtInfId></Refs>")) == [(COOP,)]


def test_several_keys_whose_payments_add_up_are_all_of_them() -> None:
    known = payments()
    (statement,) = read_camt053(camt(entry(-8000, text=f"{BUSCO} {COOP}"), moved=-8000), OwnAccount(OURS, "VND"))
    (line,) = statement.lines
    found = known.match(line)
    assert isinstance(found, tuple)
    assert sorted(found, key=lambda match: match.amount) == [Match(line.line_id, COOP, 3000), Match(line.line_id, BUSCO, 5000)]
    assert known.match(line) is Reason.SEVERAL_KEYS
