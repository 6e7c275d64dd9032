"""The bank: it makes the payments it was asked for, and tells of them in its own way, as banks do.

One seed gives one set of files, ISO 20022 camt.053 of several versions. Our key comes back in any field, split, spelt otherwise
or cut off; entries stand for one transaction, for several, or say no details; between them stand fees, interest, strangers'
transfers, returns, wrong amounts, and entries that were in the statement before. Beside each file stands the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from itertools import count
from random import Random
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import msgspec

from clearing.bank.accounts import Accounts
from clearing.payments import Payment

VERSIONS = ("02", "04", "06", "08", "10")
BATCHED, TOLD_AGAIN, STRANGE, RETURNED, WRONG = 0.1, 0.03, 0.05, 0.02, 0.01
"""How often payments stand in one entry, an entry is told again, a stranger's stands between, one comes back, one is wrong."""


class BankFile(msgspec.Struct, frozen=True):
    """A statement, and which payment each of its lines is, by the line's own reference; None: none."""

    content: bytes
    truth: dict[str, str | None]


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """One movement, as the bank knows it. `amount`: positive came in."""

    reference: str
    amount: int
    booked_on: date
    account: str
    name: str
    key: str
    payment_id: str | None
    """The truth."""
    is_return: bool = False


Teller = Callable[[Element, Element, _Told, Random], None]
"""Writes a movement's key somewhere into (its entry, its details)."""


def bank_files(payments: Sequence[Payment], accounts: Accounts, seed: int, opening: int = 0) -> list[BankFile]:
    """What the bank says of these payments: a statement a week, in the order of time."""
    random = Random(seed)
    numbers = count(1)
    weeks: dict[date, list[_Told]] = {}
    for payment in sorted(payments):
        for told in _movements(payment, accounts, random, numbers):
            weeks.setdefault(told.booked_on - timedelta(days=told.booked_on.weekday()), []).append(told)
    files = []
    balance = opening
    before: list[Element] = []
    for number, (week, movements) in enumerate(sorted(weeks.items()), start=1):
        statement = _Statement(random, accounts, number, week, balance)
        random.shuffle(movements)
        movements.sort(key=lambda told: told.booked_on)
        statement.tell_all(movements, before, numbers)
        files.append(BankFile(statement.bytes(), statement.truth))
        balance, before = statement.balance, statement.entries
    return files


def _movements(payment: Payment, accounts: Accounts, random: Random, numbers: count[int]) -> list[_Told]:
    """What happens to one payment: it is made; some come back and are made again; some are made with a wrong amount."""
    account = accounts.parties[payment.party_id]
    day = date.fromisoformat(payment.accounting_date) + timedelta(days=1 + random.randrange(3))

    def told(amount: int, on: date, payment_id: str | None, *, is_return: bool = False) -> _Told:
        return _Told(
            reference=f"CS{next(numbers):09}",
            amount=-amount,
            booked_on=on,
            account=account.number,
            name=account.holder,
            key=payment.payment_id,
            payment_id=payment_id,
            is_return=is_return,
        )

    chance = random.random()
    if chance < WRONG:
        return [told(payment.amount + random.choice((-1, 1, 5500)), day, None)]
    made = [told(payment.amount, day, payment.payment_id)]
    if chance < WRONG + RETURNED:
        made.append(told(-payment.amount, day + timedelta(days=2), payment.payment_id, is_return=True))
        made.append(told(payment.amount, day + timedelta(days=4), payment.payment_id))
    return made


class _Statement:
    """One statement on its way to its bytes."""

    def __init__(self, random: Random, accounts: Accounts, number: int, week: date, opening: int) -> None:
        self.random = random
        self.accounts = accounts
        self.version = random.choice(VERSIONS)
        self.number = number
        self.week = week
        self.opening = self.balance = opening
        self.entries: list[Element] = []
        self.truth: dict[str, str | None] = {}

    def tell_all(self, movements: list[_Told], before: list[Element], numbers: count[int]) -> None:
        """Each movement once, alone or with others of its day and direction, and what else stands in a statement."""
        while movements:
            some = [movements.pop(0)]
            if self.random.random() < BATCHED:
                fitting = [t for t in movements if t.booked_on == some[0].booked_on and (t.amount > 0) == (some[0].amount > 0)]
                some += fitting[: self.random.randrange(1, 8)]
                movements[:] = [told for told in movements if told not in some]
            self.tell(some)
            if self.random.random() < STRANGE:
                self.tell([self._stranger(next(numbers), some[0].booked_on)])
        for entry in before:
            if self.random.random() < TOLD_AGAIN:
                self._add(entry)

    def tell(self, some: list[_Told]) -> None:
        """An entry of one or several movements."""
        entry = Element("Ntry")
        total = sum(told.amount for told in some)
        first = some[0]
        SubElement(entry, "NtryRef").text = f"{len(self.entries) + 1}"
        self._amount(entry, total)
        SubElement(entry, "CdtDbtInd").text = "CRDT" if total > 0 else "DBIT"
        if first.is_return and len(some) == 1:
            SubElement(entry, "RvslInd").text = "true"
        status = SubElement(entry, "Sts")
        (status if self.version < "08" else SubElement(status, "Cd")).text = "BOOK"
        _path(entry, "BookgDt/Dt").text = first.booked_on.isoformat()
        SubElement(entry, "AcctSvcrRef").text = first.reference
        _path(entry, "BkTxCd/Prtry/Cd").text = "TRF"
        if len(some) == 1 and self.random.random() < 0.1:
            SubElement(entry, "AddtlNtryInf").text = f"CK {first.name} ND {_spelt(first.key, self.random)}"
        else:
            details = SubElement(entry, "NtryDtls")
            for told in some:
                self._details(entry, SubElement(details, "TxDtls"), told, alone=len(some) == 1)
        self.truth |= {told.reference: told.payment_id for told in some}
        self._add(entry)

    def bytes(self) -> bytes:
        """The file."""
        namespace = f"urn:iso:std:iso:20022:tech:xsd:camt.053.001.{self.version}"
        document = Element("Document", xmlns=namespace)
        root = SubElement(document, "BkToCstmrStmt")
        _path(root, "GrpHdr/MsgId").text = f"STMT{self.number:05}"
        _path(root, "GrpHdr/CreDtTm").text = f"{self.week}T23:00:00+07:00"
        statement = SubElement(root, "Stmt")
        SubElement(statement, "Id").text = f"{self.week:%Y%m%d}-{self.number}"
        _path(statement, "Acct/Id/Othr/Id").text = self.accounts.own.number
        _path(statement, "Acct/Ccy").text = self.accounts.currency
        for code, amount in (("OPBD", self.opening), ("CLBD", self.balance)):
            balance = SubElement(statement, "Bal")
            _path(balance, "Tp/CdOrPrtry/Cd").text = code
            self._amount(balance, amount)
            SubElement(balance, "CdtDbtInd").text = "CRDT" if amount >= 0 else "DBIT"
            _path(balance, "Dt/Dt").text = self.week.isoformat()
        statement.extend(self.entries)
        indent(document)
        found: bytes = tostring(document, encoding="UTF-8", xml_declaration=True)
        return found

    def _add(self, entry: Element) -> None:
        sign = 1 if entry.findtext("CdtDbtInd") == "CRDT" else -1
        self.balance += sign * int(entry.findtext("Amt", "0").partition(".")[0])
        self.entries.append(entry)

    def _amount(self, parent: Element, amount: int) -> None:
        found = SubElement(parent, "Amt", Ccy=self.accounts.currency)
        found.text = f"{abs(amount)}" + (".00" if self.random.random() < 0.3 else "")

    def _details(self, entry: Element, details: Element, told: _Told, *, alone: bool) -> None:
        _path(details, "Refs/ClrSysRef").text = told.reference
        if self.version == "02":
            self._amount(_path(details, "AmtDtls/TxAmt"), told.amount)
        else:
            self._amount(details, told.amount)
            SubElement(details, "CdtDbtInd").text = "CRDT" if told.amount > 0 else "DBIT"
        side = "Cdtr" if told.amount < 0 else "Dbtr"
        _path(details, f"RltdPties/{side}/Nm" if self.version < "08" else f"RltdPties/{side}/Pty/Nm").text = told.name
        _path(details, f"RltdPties/{side}Acct/Id/Othr/Id").text = told.account
        if told.is_return:
            _path(details, "RtrInf/Rsn/Cd").text = self.random.choice(("AC01", "AC04", "MS03"))
        tellers = TELLERS if alone or told.key == "" else TELLERS[:-1]
        self.random.choice(tellers)(entry, details, told, self.random)

    def _stranger(self, number: int, on: date) -> _Told:
        """A fee, interest, or somebody else's transfer: nothing of ours."""
        name, key, amount = self.random.choice(
            (
                ("", "PHI QUAN LY TAI KHOAN", -11_000),
                ("", "LAI TIEN GUI", self.random.randrange(1000, 90_000)),
                ("Acme Pte Ltd", f"INV {number} USD 1,250.00 RATE 25410", 31_762_500),
                ("Nguyễn Thị Lan", f"nap the MT2026 {number}", 100_000),
                ("Công ty Lạ", f"MT20260302{number:016X}", -self.random.randrange(10_000, 10_000_000)),
            )
        )
        return _Told(
            reference=f"CS{number:09}",
            amount=amount,
            booked_on=on,
            account=f"777{number:010}",
            name=name,
            key=key,
            payment_id=None,
        )


def _path(parent: Element, path: str) -> Element:
    for name in path.split("/"):
        found = parent.find(name)
        parent = SubElement(parent, name) if found is None else found
    return parent


def _spelt(key: str, random: Random) -> str:
    """A key as people and old systems write it."""
    return random.choice(
        (
            key,
            key.lower(),
            " ".join(key[at : at + 4] for at in range(0, len(key), 4)),
            f"{key[:10]}-{key[10:]}",
            f"THANH TOAN {key} CAM ON",
            f"ND:{key}/TT QUYET TOAN",
        )
    )


def _reference(name: str) -> Teller:
    def tell(_: Element, details: Element, told: _Told, random: Random) -> None:
        _path(details, f"Refs/{name}").text = told.key[:35]

    return tell


def _in_text(entry: Element, details: Element, told: _Told, random: Random) -> None:
    _path(details, "RmtInf/Ustrd").text = _spelt(told.key, random)


def _split_text(entry: Element, details: Element, told: _Told, random: Random) -> None:
    text = f"QT NGAY {told.booked_on:%d%m%y} {_spelt(told.key, random)} HET"
    size = random.randrange(8, 36)
    remittance = SubElement(details, "RmtInf")
    for at in range(0, len(text), size):
        SubElement(remittance, "Ustrd").text = text[at : at + size]


def _structured(entry: Element, details: Element, told: _Told, random: Random) -> None:
    _path(details, "RmtInf/Strd/CdtrRefInf/Ref").text = told.key[:35]


def _additional(entry: Element, details: Element, told: _Told, random: Random) -> None:
    SubElement(details, "AddtlTxInf").text = f"/EREF/{told.key}/REMI/{told.name}"


def _cut(entry: Element, details: Element, told: _Told, random: Random) -> None:
    kept = told.key[: random.randrange(16, 26)]
    _path(details, "Refs/EndToEndId").text = "NOTPROVIDED"
    _path(details, "RmtInf/Ustrd").text = random.choice((kept, kept.lower(), f"QUYET TOAN {kept}", f"{kept} THANH TOAN"))


def _account_only(entry: Element, details: Element, told: _Told, random: Random) -> None:
    _path(details, "Refs/EndToEndId").text = "NOTPROVIDED"
    _path(details, "RmtInf/Ustrd").text = "CHUYEN KHOAN"


def _beside_the_entry(entry: Element, details: Element, told: _Told, random: Random) -> None:
    SubElement(entry, "AddtlNtryInf").text = f"TT {_spelt(told.key, random)}"


TELLERS: tuple[Teller, ...] = (
    *(_reference(name) for name in ("EndToEndId", "InstrId", "PmtInfId", "TxId", "MsgId", "ChqNb")),
    _in_text,
    _split_text,
    _structured,
    _additional,
    _cut,
    _account_only,
    _beside_the_entry,
)
