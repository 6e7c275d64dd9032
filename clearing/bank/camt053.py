"""The bank's statements: ISO 20022 camt.053, versions 02 and later, as lines of money in and out.

Pure. Decides what a line is and whether a file can be believed: it is of our account and currency, and its balances add up;
else nothing of it is taken. What a line is for, is decided by clearing/bank/matching.py.

An entry of several transactions gives a line for each where their amounts add up to the entry's, else one line for all."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from xml.etree.ElementTree import Element, ParseError

import msgspec
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from fare_engine.errors import Fault, InputError

MAX_BYTES = 64 << 20
MAX_DEPTH = 40
MAX_TEXT = 10_000
"""What is kept of one line's texts."""
NAMESPACE = re.compile(r"urn:iso:std:iso:20022:tech:xsd:camt\.053\.001\.(0[2-9]|[1-9][0-9])")
AMOUNT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,5})?")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
OPENING, CLOSING = ("OPBD", "PRCD"), ("CLBD",)
SIGNS = {"CRDT": 1, "DBIT": -1}
NO_REFERENCE = frozenset({"", "NONREF", "NOTPROVIDED", "NOTPROVIDE"})


class OwnAccount(msgspec.Struct, frozen=True):
    """Whose statements are taken."""

    number: str
    currency: str
    minor_digits: int = 0


class BankLine(msgspec.Struct, frozen=True, kw_only=True):
    """One movement on the account. `amount` in minor units: positive came in, negative went out."""

    line_id: str
    """From account, reference, day and amount: the same line in another file has the same."""
    account: str
    statement_id: str
    booked_on: str
    amount: int
    other_account: str
    other_name: str
    is_return: bool
    """The bank says that it gives back or takes back an earlier movement."""
    texts: tuple[tuple[str, str], ...]
    """Everything that is written in the line: (element, text), texts of the same element joined."""


class BankStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of a file, whose lines lead from its opening to its closing balance."""

    statement_id: str
    account: str
    opening: int
    closing: int
    lines: tuple[BankLine, ...]


def read_camt053(content: bytes, own: OwnAccount) -> list[BankStatement]:
    """The statements of a file. InputError with place and value if anything in it is not as it must be."""
    if len(content) > MAX_BYTES:
        raise InputError([Fault("camt.053", len(content), f"longer than {MAX_BYTES} bytes")])
    reader = _Reader(own)
    try:
        for event, element in iterparse(io.BytesIO(content), events=("start", "end"), forbid_dtd=True):
            reader.take(event, element)
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise InputError([Fault("camt.053", type(error).__name__, f"not XML: {error}")]) from None
    if reader.faults:
        raise InputError(reader.faults)
    if not reader.statements:
        raise InputError([Fault("camt.053", None, "has no statement")])
    return reader.statements


class _Reader:
    """Reads a file element by element, so that a long one needs little memory."""

    def __init__(self, own: OwnAccount) -> None:
        self.own = own
        self.path: list[str] = []
        self.statements: list[BankStatement] = []
        self.faults: list[Fault] = []
        self.entries: list[_Line] = []
        self.number = 0

    def take(self, event: str, element: Element) -> None:
        if event == "start":
            if not self.path and not NAMESPACE.fullmatch(_namespace(element)):
                raise InputError([Fault("camt.053: Document", element.tag, "not a camt.053 of version 02 or later")])
            self.path.append(_name(element))
            if len(self.path) > MAX_DEPTH:
                raise InputError([Fault("camt.053", "/".join(self.path[:5]), f"more than {MAX_DEPTH} elements deep")])
            return
        self.path.pop()
        if _name(element) == "Ntry" and self.path[-1:] == ["Stmt"]:
            self.number += 1
            place = f"Stmt[{len(self.statements) + 1}]/Ntry[{self.number}]"
            try:
                self.entries += _entry(element, place, self.own)
            except _FaultError as wrong:
                self.faults.append(wrong.fault)
            element.clear()
        elif _name(element) == "Stmt":
            self._end(element)
            element.clear()

    def _end(self, statement: Element) -> None:
        place = f"Stmt[{len(self.statements) + 1}]"
        try:
            self.statements.append(_statement(statement, place, self.entries, self.number, self.own, bool(self.faults)))
        except _FaultError as wrong:
            self.faults.append(wrong.fault)
        self.entries, self.number = [], 0


class _FaultError(Exception):
    """One fault, on its way to the file's list."""

    def __init__(self, place: str, value: object, problem: str) -> None:
        self.fault = Fault(place, value, problem)
        super().__init__(str(self.fault))


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line that does not know its statement yet."""

    reference: str
    """The bank's own, unique for the account; empty where it gave none."""
    entry_reference: str
    """Unique in its statement only."""
    part: int
    booked_on: str
    amount: int
    other_account: str
    other_name: str
    is_return: bool
    texts: tuple[tuple[str, str], ...]


def _statement(statement: Element, place: str, lines: list[_Line], entries: int, own: OwnAccount, broken: bool) -> BankStatement:
    statement_id = _text(statement, "Id")
    if not statement_id:
        raise _FaultError(f"{place}/Id", None, "is missing")
    account = _account(_child(statement, "Acct"))
    if account != own.number:
        raise _FaultError(f"{place}/Acct/Id", account, "is not the clearing house's account")
    currency = _text(statement, "Acct", "Ccy")
    if currency and currency != own.currency:
        raise _FaultError(f"{place}/Acct/Ccy", currency, f"the account is in {own.currency}")
    opening = _balance(statement, place, OPENING, own)
    closing = _balance(statement, place, CLOSING, own)
    moved = sum(line.amount for line in lines)
    if opening + moved != closing and not broken:
        raise _FaultError(f"{place}/Bal", closing, f"opening {opening} and entries {moved} give {opening + moved}")
    stated = _text(statement, "TxsSummry", "TtlNtries", "NbOfNtries")
    if stated and stated != str(entries):
        raise _FaultError(f"{place}/TxsSummry/TtlNtries/NbOfNtries", stated, f"there are {entries} entries")
    return BankStatement(
        statement_id=statement_id,
        account=account,
        opening=opening,
        closing=closing,
        lines=tuple(_identified(lines, account, statement_id)),
    )


def _identified(lines: list[_Line], account: str, statement_id: str) -> Iterator[BankLine]:
    """The lines with their ids. Lines that are alike in one statement are told apart by their number."""
    seen: Counter[str] = Counter()
    for line in lines:
        if line.reference:
            whose = f"bank/{line.reference}/{line.part}"
        elif line.entry_reference:
            whose = f"entry/{statement_id}/{line.entry_reference}/{line.part}"
        else:
            whose = f"content/{line.other_account}/{line.other_name}/{line.texts}"
        key = hashlib.sha256(f"{account}/{whose}/{line.booked_on}/{line.amount}".encode()).hexdigest()
        seen[key] += 1
        yield BankLine(
            line_id=hashlib.sha256(f"{key}/{seen[key]}".encode()).hexdigest()[:16],
            account=account,
            statement_id=statement_id,
            booked_on=line.booked_on,
            amount=line.amount,
            other_account=line.other_account,
            other_name=line.other_name,
            is_return=line.is_return,
            texts=line.texts,
        )


def _entry(entry: Element, place: str, own: OwnAccount) -> list[_Line]:
    """An entry's lines; none for one that is not booked."""
    status = _text(entry, "Sts") or _text(entry, "Sts", "Cd") or "BOOK"
    if status != "BOOK":
        return []
    amount = _amount(_child(entry, "Amt"), f"{place}/Amt", own) * _sign(entry, place)
    booked_on = (_text(entry, "BookgDt", "Dt") or _text(entry, "BookgDt", "DtTm"))[:10]
    if not DAY.fullmatch(booked_on):
        raise _FaultError(f"{place}/BookgDt", booked_on, "not a date")
    parts = [part for details in _children(entry, "NtryDtls") for part in _children(details, "TxDtls")]
    amounts = [_part_amount(part, place, amount, own) for part in parts]
    if len(parts) < 2 or None in amounts or sum(filter(None, amounts)) != amount:
        return [_line(entry, parts, 0, booked_on, amount, entry, own)]
    return [
        _line(entry, [part], number, booked_on, part_amount, part, own)
        for number, (part, part_amount) in enumerate(zip(parts, amounts, strict=True), start=1)
        if part_amount is not None
    ]


def _line(
    entry: Element, parts: list[Element], number: int, booked_on: str, amount: int, said: Element, own: OwnAccount
) -> _Line:
    """One line; `said` is the element whose texts are the line's own."""
    sides = ("CdtrAcct", "DbtrAcct") if amount < 0 else ("DbtrAcct", "CdtrAcct")
    others = [_account(_child(part, "RltdPties", side)) for part in parts for side in sides]
    names = [_text(part, "RltdPties", side[:4], *deeper, "Nm") for part in parts for side in sides for deeper in ((), ("Pty",))]
    reference = _text(entry, "AcctSvcrRef")
    if not number and not reference and len(parts) == 1:
        reference = _text(parts[0], "Refs", "AcctSvcrRef")
    return _Line(
        reference="" if reference in NO_REFERENCE else reference,
        entry_reference="" if (found := _text(entry, "NtryRef")) in NO_REFERENCE else found,
        part=number,
        booked_on=booked_on,
        amount=amount,
        other_account=next((found for found in others if found and found != own.number), ""),
        other_name=next(filter(None, names), ""),
        is_return=_text(entry, "RvslInd") in ("true", "1") or any(_child(part, "RtrInf") is not None for part in parts),
        texts=_texts(said),
    )


def _texts(element: Element) -> tuple[tuple[str, str], ...]:
    found: dict[str, list[str]] = {}
    room = MAX_TEXT
    for part in element.iter():
        text = " ".join((part.text or "").split())[:room]
        if text and not len(part):
            found.setdefault(_name(part), []).append(text)
            room -= len(text)
    return tuple((name, " ".join(texts)) for name, texts in found.items())


def _part_amount(part: Element, place: str, whole: int, own: OwnAccount) -> int | None:
    """What one transaction of an entry moved, or None where the bank does not say it in our currency."""
    element = _child(part, "Amt")
    if element is None:
        element = _child(part, "AmtDtls", "TxAmt", "Amt")
    if element is None or element.get("Ccy") != own.currency:
        return None
    amount = _amount(element, f"{place}/NtryDtls/TxDtls/Amt", own)
    sign = SIGNS.get(_text(part, "CdtDbtInd"), 1 if whole > 0 else -1)
    return amount * sign


def _balance(statement: Element, place: str, codes: tuple[str, ...], own: OwnAccount) -> int:
    for balance in _children(statement, "Bal"):
        if _text(balance, "Tp", "CdOrPrtry", "Cd") in codes:
            return _amount(_child(balance, "Amt"), f"{place}/Bal[{codes[0]}]/Amt", own) * _sign(balance, f"{place}/Bal")
    raise _FaultError(f"{place}/Bal", None, f"no balance {' or '.join(codes)}")


def _amount(element: Element | None, place: str, own: OwnAccount) -> int:
    text = "" if element is None else (element.text or "").strip()
    if element is None or not AMOUNT.fullmatch(text):
        raise _FaultError(place, text or None, "not an amount")
    if element.get("Ccy") != own.currency:
        raise _FaultError(f"{place}/@Ccy", element.get("Ccy"), f"the account is in {own.currency}")
    minor = Decimal(text).scaleb(own.minor_digits)
    if minor != int(minor):
        raise _FaultError(place, text, f"{own.currency} has {own.minor_digits} decimals")
    return int(minor)


def _sign(element: Element, place: str) -> int:
    found = _text(element, "CdtDbtInd")
    if found not in SIGNS:
        raise _FaultError(f"{place}/CdtDbtInd", found or None, "neither CRDT nor DBIT")
    return SIGNS[found]


def _account(element: Element | None) -> str:
    if element is None:
        return ""
    return "".join((_text(element, "Id", "IBAN") or _text(element, "Id", "Othr", "Id")).split())


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _namespace(element: Element) -> str:
    return str(element.tag).rpartition("}")[0].removeprefix("{")


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if _name(child) == name]


def _child(element: Element, *names: str) -> Element | None:
    for name in names:
        found = next((child for child in element if _name(child) == name), None)
        if found is None:
            return None
        element = found
    return element


def _text(element: Element, *names: str) -> str:
    found = _child(element, *names)
    return "" if found is None else (found.text or "").strip()
