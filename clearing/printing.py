"""A statement in the words of its readers: as a workbook and as pages to print. The CSV is the statement; these show it."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from clearing.documents import Column, Document, Section
from clearing.pages.words import WORDS
from clearing.statements import OPEN, SECTIONS, Row, Statement
from fare_engine.pages.names import LANGUAGES, Names
from fare_engine.tariff.compile import CompiledTariff

LANGUAGE: Final = "vi"
"""Statements are printed in the city's language; pages show them in both."""


class Printer:
    """Makes documents of statements under one tariff's names."""

    def __init__(self, tariff: CompiledTariff) -> None:
        self._names = Names(tariff, LANGUAGE)
        self._tariff = tariff
        self._words = self._names.words | {key: pair[LANGUAGES.index(LANGUAGE)] for key, pair in WORDS.items()}

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
            self._words.get(f"what_{row.what}") or self._words.get(f"kind_{row.what}", row.what),
            self._tariff.network.networks.get(row.network_id, row.network_id),
            names.find_rule(row.rule_id) or row.rule_id,
            names.party(row.paid_by) if row.paid_by else "",
            row.agreement_id,
            row.count or None,
            None if row.section in OPEN else row.amount,
        )
