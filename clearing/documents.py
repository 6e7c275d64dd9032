"""One document as a workbook for accountants and as a page to print; the same document gives the same bytes.

Texts come from others (names, ids, reasons): in a workbook none of them is a formula, in the page none is markup, for the
template gets them as data. What a document says is decided by whoever makes it."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import typst
import xlsxwriter
from xlsxwriter.format import Format
from xlsxwriter.worksheet import Worksheet

from fare_engine.money import format_amount

TEMPLATE = Path(__file__).with_name("templates") / "document.typ"
FORMULA_SIGNS = "=+-@＝＋－＠"
"""What makes a spreadsheet take a text for a formula, also in full width."""
SHEET_ROWS = 1_000_000
EXACT_DIGITS = 15
"""Spreadsheets keep no more digits of a number; a longer one is written as text."""
SHEET_NAME = 31

Cell = str | int | None
Row = tuple[Cell, ...]


class Column(msgspec.Struct, frozen=True):
    """A heading, and what stands under it: texts, amounts in minor units, or counts."""

    heading: str
    kind: Literal["text", "amount", "count"] = "text"


class Section(msgspec.Struct, frozen=True):
    """A table with its title."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Row]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a statement, in the words of its language."""

    title: str
    date: str
    """The day it is of, as 2026-03-02; the files are dated by it, too."""
    language: Literal["vi", "en"]
    currency: str
    minor_digits: int = 0
    heads: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()
    totals: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


def xlsx(document: Document) -> bytes:
    """A workbook: head, sums and notes on the first sheet, each section on a sheet of its own. Numbers are numbers."""
    out = io.BytesIO()
    options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    with xlsxwriter.Workbook(out, options) as book:
        book.set_properties({"title": harmless(document.title), "created": _dated(document)})
        formats = _formats(book, document.minor_digits)
        names = _sheet_names(document)
        front = book.add_worksheet(next(names))
        front.set_column(0, 0, 36)
        front.set_column(1, 1, 24)
        _write(front, 0, (document.title,), ("title",), formats, document.minor_digits)
        rows: list[Row] = [*document.heads, *document.totals, *((note,) for note in document.notes)]
        kinds = [("text", "text")] * len(document.heads) + [("text", "amount")] * len(document.totals)
        kinds += [("text", "text")] * len(document.notes)
        for number, (row, kind) in enumerate(zip(rows, kinds, strict=True), start=2):
            _write(front, number, row, kind, formats, document.minor_digits)
        for section in document.sections:
            for first in _parts(section):
                part = section.rows[first : first + SHEET_ROWS]
                _add_sheet(book.add_worksheet(next(names)), section.columns, part, formats, document.minor_digits)
    return out.getvalue()


def pdf(document: Document) -> bytes:
    """Pages to print, tagged for screen readers, with a font of the package that has Vietnamese; no system font is used."""

    def shown(cell: Cell, kind: str) -> str:
        if cell is None:
            return ""
        if isinstance(cell, str):
            return plain(cell)
        if kind == "amount":
            return format_amount(cell, document.currency, document.language, document.minor_digits)
        return f"{cell:,}".replace(",", "." if document.language == "vi" else ",")

    content = {
        "title": plain(document.title),
        "date": document.date,
        "language": document.language,
        "heads": [[plain(name), plain(value)] for name, value in document.heads],
        "sections": [
            {
                "title": plain(section.title),
                "columns": [[plain(column.heading), column.kind] for column in section.columns],
                "rows": [
                    [shown(cell, column.kind) for cell, column in zip(row, section.columns, strict=True)] for row in section.rows
                ],
            }
            for section in document.sections
        ],
        "totals": [[plain(name), shown(amount, "amount")] for name, amount in document.totals],
        "notes": [plain(note) for note in document.notes],
    }
    found = typst.compile(
        TEMPLATE,
        root=TEMPLATE.parent,
        ignore_system_fonts=True,
        format="pdf",
        sys_inputs={"document": msgspec.json.encode(content).decode()},
        timestamp=_dated(document),
    )
    assert isinstance(found, bytes)
    return found


def plain(text: str) -> str:
    """A text on one line, without characters that control how it is shown."""
    shown = ("" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char for char in " ".join(text.splitlines()))
    return "".join(shown).strip()


def harmless(text: str) -> str:
    """A cell on one line that no spreadsheet takes for a formula, also when it is saved as another kind of file."""
    found = plain(text)
    return f"'{found}" if found[:1] in tuple(FORMULA_SIGNS) else found


def _dated(document: Document) -> datetime:
    return datetime.fromisoformat(document.date).replace(tzinfo=UTC)


def _formats(book: xlsxwriter.Workbook, minor_digits: int) -> dict[str, Format]:
    amount = "#,##0" + ("." + "0" * minor_digits if minor_digits else "")
    styles: dict[str, dict[str, Any]] = {
        "title": {"bold": True, "font_size": 14},
        "heading": {"bold": True, "bottom": 1},
        "text": {"num_format": "@"},
        "amount": {"num_format": amount},
        "count": {"num_format": "#,##0"},
    }
    return {name: book.add_format(style) for name, style in styles.items()}


def _sheet_names(document: Document) -> Iterator[str]:
    """Names that a workbook may have, each once: the title's, then the sections' with the number of the sheet."""
    yield _sheet_name(document.title)
    number = 1
    for section in document.sections:
        for _ in _parts(section):
            number += 1
            ending = f" ({number})"
            yield _sheet_name(section.title)[: SHEET_NAME - len(ending)] + ending


def _parts(section: Section) -> range:
    """Where each sheet of a section begins in its rows."""
    return range(0, max(len(section.rows), 1), SHEET_ROWS)


def _sheet_name(text: str) -> str:
    return "".join(" " if char in "[]:*?/\\'" else char for char in plain(text))[:SHEET_NAME].strip() or "-"


def _add_sheet(
    sheet: Worksheet, columns: tuple[Column, ...], rows: Sequence[Row], formats: dict[str, Format], minor_digits: int
) -> None:
    kinds = tuple(column.kind for column in columns)
    for number, kind in enumerate(kinds):
        sheet.set_column(number, number, 28 if kind == "text" else 16)
    sheet.freeze_panes(1, 0)
    _write(sheet, 0, tuple(column.heading for column in columns), ("heading",) * len(columns), formats, minor_digits)
    for at, row in enumerate(rows, start=1):
        _write(sheet, at, row, kinds, formats, minor_digits)
    if rows:
        sheet.autofilter(0, 0, len(rows), len(columns) - 1)


def _write(sheet: Worksheet, at: int, row: Row, kinds: Sequence[str], formats: dict[str, Format], minor_digits: int) -> None:
    for column, (cell, kind) in enumerate(zip(row, kinds, strict=False)):
        if isinstance(cell, str):
            sheet.write_string(at, column, harmless(cell), formats[kind if kind in ("title", "heading") else "text"])
        elif cell is not None:
            exact = Decimal(cell).scaleb(-minor_digits) if kind == "amount" else Decimal(cell)
            if len(str(abs(cell))) <= EXACT_DIGITS:
                sheet.write_number(at, column, exact, formats[kind])
            else:
                sheet.write_string(at, column, f"{exact}", formats["text"])
