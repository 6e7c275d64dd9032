"""The order to the bank: ISO 20022 pain.001.001.09, one credit transfer for each party that is owed money.

Ids and times follow from the accounting date and the payments, so the same order always is the same bytes: whoever sends it
twice sends one message with one id. Nothing leaves that its XSD does not accept."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import xmlschema
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from clearing.bank.accounts import Account, Accounts
from clearing.payments import Payment
from fare_engine.errors import CloseError, Fault, InputError

NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
XSD = Path(__file__).parents[1] / "schemas" / "pain.001.001.09.xsd"
TAGS = re.compile(r"\{[^}]*\}")
MAX_TEXT = 140
SATURDAY = 5
CARRIED = re.compile(r"[^A-Za-z0-9/\-?:().,'+ ]")
"""Everything but the letters that every bank hands on (the SWIFT character set x)."""


class Order(msgspec.Struct, frozen=True):
    """What the bank is asked to pay under one accounting date."""

    accounting_date: str
    message_id: str
    batch_id: str
    """PmtInfId: a bank that books the order in one sum names it."""
    payments: tuple[Payment, ...]

    @property
    def total(self) -> int:
        """The control sum."""
        return sum(payment.amount for payment in self.payments)


def order_of(accounting_date: str, payments: Sequence[Payment]) -> Order:
    """The order for a date's payments: those that are paid out. What parties owe, they are asked for, not the bank."""
    outgoing = tuple(sorted(payment for payment in payments if payment.amount > 0))
    content = "\n".join(f"{payment.payment_id} {payment.amount}" for payment in outgoing)
    digest = hashlib.sha256(f"order/{accounting_date}\n{content}".encode()).hexdigest()[:16].upper()
    day = accounting_date.replace("-", "")
    return Order(accounting_date, f"MM{day}{digest}", f"MB{day}{digest}", outgoing)


def pain001(order: Order, accounts: Accounts, minor_digits: int = 0) -> bytes:
    """The message, checked against its XSD. InputError for parties without an account, CloseError where nobody is paid."""
    if not order.payments:
        raise CloseError(f"nobody is paid for {order.accounting_date}")
    faults = [
        Fault("payments.toml: parties", payment.party_id, f"has no account; {payment.amount} is due for {order.accounting_date}")
        for payment in order.payments
        if payment.party_id not in accounts.parties
    ]
    if faults:
        raise InputError(faults)
    content = _message(order, accounts, minor_digits)
    check(content)
    return content


def check(content: bytes) -> None:
    """InputError with place and reason where a message is not valid against the XSD of pain.001.001.09."""
    try:
        message = fromstring(content, forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise InputError([Fault("pain.001", type(error).__name__, f"not XML: {error}")]) from None
    faults = [
        Fault(
            TAGS.sub("", error.path or "Document"),
            getattr(error.elem, "text", None),
            (error.reason or "not valid").splitlines()[0],
        )
        for error in _schema().iter_errors(message, use_location_hints=False)
    ]
    if faults:
        raise InputError(faults)


def carried(text: str) -> str:
    """A text in the letters that every bank hands on: diacritics dropped, other letters as spaces, no slash at its edges."""
    plain = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    bare = "".join(char for char in plain if not unicodedata.combining(char))
    found = " ".join(CARRIED.sub(" ", bare).replace("//", "/ /").split())[:MAX_TEXT].strip(" /-:")
    return found or "NOTPROVIDED"


def execution_date(accounting_date: str) -> date:
    """The first day after the accounting date that is neither Saturday nor Sunday; of holidays, the bank knows."""
    day = date.fromisoformat(accounting_date) + timedelta(days=1)
    while day.weekday() >= SATURDAY:
        day += timedelta(days=1)
    return day


@cache
def _schema() -> xmlschema.XMLSchema10:
    return xmlschema.XMLSchema10(str(XSD), allow="local", defuse="always")


def _message(order: Order, accounts: Accounts, minor_digits: int) -> bytes:
    total = _decimal(order.total, minor_digits)
    document = ElementTree.Element("Document", xmlns=NAMESPACE)
    root = ElementTree.SubElement(document, "CstmrCdtTrfInitn")
    head = ElementTree.SubElement(root, "GrpHdr")
    _add(head, "MsgId", order.message_id)
    _add(head, "CreDtTm", f"{date.fromisoformat(order.accounting_date) + timedelta(days=1)}T00:00:00Z")
    _add(head, "NbOfTxs", str(len(order.payments)))
    _add(head, "CtrlSum", total)
    _add(head, "InitgPty/Nm", carried(accounts.own.holder))
    batch = ElementTree.SubElement(root, "PmtInf")
    _add(batch, "PmtInfId", order.batch_id)
    _add(batch, "PmtMtd", "TRF")
    _add(batch, "BtchBookg", "false")
    _add(batch, "NbOfTxs", str(len(order.payments)))
    _add(batch, "CtrlSum", total)
    _add(batch, "ReqdExctnDt/Dt", execution_date(order.accounting_date).isoformat())
    _add(batch, "Dbtr/Nm", carried(accounts.own.holder))
    _add_account(batch, "DbtrAcct", accounts.own, accounts.currency)
    _add(batch, "DbtrAgt/FinInstnId/BICFI", accounts.own.bank_bic)
    _add(batch, "ChrgBr", "DEBT")
    for payment in order.payments:
        account = accounts.parties[payment.party_id]
        transfer = ElementTree.SubElement(batch, "CdtTrfTxInf")
        ids = ElementTree.SubElement(transfer, "PmtId")
        _add(ids, "InstrId", payment.payment_id)
        _add(ids, "EndToEndId", payment.payment_id)
        amount = ElementTree.SubElement(ElementTree.SubElement(transfer, "Amt"), "InstdAmt", Ccy=accounts.currency)
        amount.text = _decimal(payment.amount, minor_digits)
        _add(transfer, "CdtrAgt/FinInstnId/BICFI", account.bank_bic)
        _add(transfer, "Cdtr/Nm", carried(account.holder))
        _add_account(transfer, "CdtrAcct", account, accounts.currency)
        _add(transfer, "RmtInf/Ustrd", carried(f"{payment.payment_id} {payment.accounting_date} {payment.party_id}"))
    ElementTree.indent(document)
    found: bytes = ElementTree.tostring(document, encoding="UTF-8", xml_declaration=True)
    return found + b"\n"


def _add(parent: ElementTree.Element, path: str, text: str) -> None:
    for name in path.split("/"):
        parent = ElementTree.SubElement(parent, name)
    parent.text = text


def _add_account(parent: ElementTree.Element, name: str, account: Account, currency: str) -> None:
    found = ElementTree.SubElement(parent, name)
    _add(found, "Id/Othr/Id", account.number)
    _add(found, "Ccy", currency)


def _decimal(amount: int, minor_digits: int) -> str:
    whole, minor = divmod(amount, 10**minor_digits)
    return f"{whole}.{minor:0{minor_digits}}" if minor_digits else f"{whole}"
