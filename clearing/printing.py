"""A statement in the words of its readers: as a workbook and as pages to print. The CSV is the statement; these show it."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from clearing.documents import Column, Document, Section
from clearing.statements import OPEN, SECTIONS, Row, Statement
from fare_engine.pages.base import Names
from fare_engine.tariff.compile import CompiledTariff

LANGUAGE: Final = "vi"
"""Statements are printed in the city's language; pages show them in both."""
WORDS = {
    "traceable_until": "Truy được đến từng lượt chạm đến ngày",
    "date": "Ngày",
    "what": "Khoản",
    "network": "Mạng lưới",
    "section_opening": "Số dư đầu kỳ",
    "section_rides": "Thanh toán theo lượt",
    "section_subsidies": "Trợ giá",
    "section_commissions": "Phí và hoa hồng",
    "section_rounding": "Làm tròn",
    "section_borne": "Phần chịu thay hành khách",
    "section_collected": "Tiền đang giữ",
    "section_waived": "Miễn thu",
    "section_losses": "Nợ không thu được",
    "section_fees": "Phí dịch vụ",
    "section_disputes": "Khiếu nại",
    "section_paid": "Đã thanh toán",
    "section_missing": "Lượt chạm còn thiếu",
    "total_opening": "Số dư đầu kỳ",
    "total_settled": "Được chia",
    "total_cash_held": "Tiền đang giữ",
    "total_borne": "Khoản phải chịu",
    "total_net": "Số ròng",
    "total_paid": "Đã thanh toán",
    "total_closing": "Số dư cuối kỳ",
}
"""Words of statements only; the others are those of the pages."""


class Printer:
    """Makes documents of statements under one tariff's names."""

    def __init__(self, tariff: CompiledTariff) -> None:
        self._names = Names(tariff, LANGUAGE)
        self._tariff = tariff
        self._words = self._names.words | WORDS

    def document(self, statement: Statement, sha256: str) -> Document:
        """The document of a statement whose CSV has this hash."""
        words = self._words
        return Document(
            title=f"{words['settlement_of']} {statement.accounting_date}: {self._names.party(statement.party_id)}",
            date=statement.accounting_date,
            language=LANGUAGE,
            currency=self._tariff.currency,
            minor_digits=self._tariff.minor_digits,
            heads=(
                (words["agreement"], statement.agreement_version),
                (words["traceable_until"], statement.traceable_until),
                (words["hash"], sha256),
            ),
            sections=tuple(self._sections(statement)),
            totals=tuple((words[f"total_{name}"], amount) for name, amount in statement.totals.items()),
        )

    def _sections(self, statement: Statement) -> list[Section]:
        words = self._words
        columns = (
            Column("#", "count"),
            Column(words["date"]),
            Column(words["what"]),
            Column(words["network"]),
            Column(words["rule"]),
            Column(words["paid_by"]),
            Column(words["agreement"]),
            Column(words["count"], "count"),
            Column(words["amount"], "amount"),
        )
        numbered = list(enumerate(statement.rows, start=1))
        found = []
        for section, rows in groupby(numbered, key=lambda pair: pair[1].section):
            assert section in SECTIONS
            found.append(Section(words[f"section_{section}"], columns, [self._row(number, row) for number, row in rows]))
        return found

    def _row(self, number: int, row: Row) -> tuple[str | int | None, ...]:
        names = self._names
        return (
            number,
            row.service_date,
            self._words.get(f"kind_{row.what}", row.what),
            self._tariff.network.networks.get(row.network_id, row.network_id),
            names.find_rule(row.rule_id) or row.rule_id,
            names.party(row.paid_by) if row.paid_by else "",
            row.agreement_id,
            row.count or None,
            None if row.section in OPEN else row.amount,
        )
