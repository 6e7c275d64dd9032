"""Documents as workbooks and pages: read back by other programs, the same bytes every time, and nothing in them acts."""

from __future__ import annotations

import io
import time
import zipfile
from datetime import datetime

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader

from clearing import documents
from clearing.documents import Column, Document, Section, harmless, pdf, xlsx

LETTERS = "ĂÂĐÊÔƠƯăâđêôơư ẮẰẲẴẶắằẳẵặ ẤẦẨẪẬấầẩẫậ ẾỀỂỄỆếềểễệ ỐỒỔỖỘốồổỗộ ỚỜỞỠỢớờởỡợ ỨỪỬỮỰứừửữự ÁÀẢÃẠáàảãạ ÍÌỈĨỊ ÝỲỶỸỴ ₫ − →"
COLUMNS = (Column("Ngày"), Column("Nội dung"), Column("Số chặng", "count"), Column("Số tiền", "amount"))
ROWS = (
    ("2026-03-02", "Giá vé niêm yết", 12_345, 1_234_567),
    ("2026-03-02", '=HYPERLINK("http://example.org")', 1, -5000),
    ("2026-03-02", "#panic() $x$ *b* <label> @ref", None, 0),
)


def document(**changes: object) -> Document:
    found: dict[str, object] = {
        "title": "Quyết toán: Hợp tác xã Quyết Thắng",
        "date": "2026-03-02",
        "language": "vi",
        "currency": "VND",
        "heads": (("Thỏa thuận", "2026-03"), ("Chữ", LETTERS)),
        "sections": (Section("Chặng", COLUMNS, ROWS), Section("Chuyển sang: [trễ]", COLUMNS, ())),
        "totals": (("Được chia", 1_229_567),),
        "notes": ("SHA-256 0f0f",),
    }
    return Document(**(found | changes))  # type: ignore[arg-type]


def sheets(content: bytes) -> dict[str, list[tuple[object, ...]]]:
    book = openpyxl.load_workbook(io.BytesIO(content))
    return {sheet.title: [tuple(cell.value for cell in row) for row in sheet.iter_rows()] for sheet in book}


def text(content: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)


def test_a_workbook_reads_back_with_its_numbers_as_numbers() -> None:
    found = sheets(xlsx(document()))
    assert list(found) == ["Quyết toán  Hợp tác xã Quyết Th", "Chặng (2)", "Chuyển sang   trễ (3)"]
    assert found["Chặng (2)"] == [
        ("Ngày", "Nội dung", "Số chặng", "Số tiền"),
        ("2026-03-02", "Giá vé niêm yết", 12_345, 1_234_567),
        ("2026-03-02", '\'=HYPERLINK("http://example.org")', 1, -5000),
        ("2026-03-02", "#panic() $x$ *b* <label> @ref", None, 0),
    ]
    front = [row for row in next(iter(found.values())) if any(row)]
    assert front[0][0] == "Quyết toán: Hợp tác xã Quyết Thắng"
    assert front[1:] == [("Thỏa thuận", "2026-03"), ("Chữ", LETTERS), ("Được chia", 1_229_567), ("SHA-256 0f0f", None)]


def test_no_cell_of_a_workbook_is_a_formula_or_a_link() -> None:
    content = xlsx(document(title="=1+1", heads=(("=1", "+1"), ("http://example.org", "-1"))))
    book = openpyxl.load_workbook(io.BytesIO(content))
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells if cell.value is not None} == {"s", "n"}
    assert [cell.value for cell in cells if cell.hyperlink] == []
    assert [cell.value for cell in cells if isinstance(cell.value, str) and cell.value[:1] in documents.FORMULA_SIGNS] == []


def test_amounts_with_minor_units_are_exact_and_longer_ones_than_a_spreadsheet_keeps_are_text() -> None:
    content = xlsx(document(currency="GBP", minor_digits=2, totals=(("a", 123_456), ("b", -1), ("c", 10**15 + 1))))
    front = next(iter(sheets(content).values()))
    assert front[4:7] == [("a", 1234.56), ("b", -0.01), ("c", "10000000000000.01")]


def test_a_section_longer_than_a_sheet_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SHEET_ROWS", 2)
    found = sheets(xlsx(document()))
    assert [(name, len(rows)) for name, rows in found.items()][1:] == [
        ("Chặng (2)", 3),
        ("Chặng (3)", 2),
        ("Chuyển sang   trễ (4)", 1),
    ]


def test_the_same_document_gives_the_same_bytes() -> None:
    workbook, pages = xlsx(document()), pdf(document())
    time.sleep(2.1)  # a zip's times have two seconds
    assert (xlsx(document()), pdf(document())) == (workbook, pages)
    assert {entry.date_time for entry in zipfile.ZipFile(io.BytesIO(workbook)).infolist()} == {(1980, 1, 31, 0, 0, 0)}
    properties = openpyxl.load_workbook(io.BytesIO(workbook)).properties
    assert (properties.created, properties.modified) == (datetime(2026, 3, 2), datetime(2026, 3, 2))  # noqa: DTZ001


def test_pages_hold_every_vietnamese_letter_and_amounts_as_they_are_written_here() -> None:
    found = text(pdf(document()))
    assert "Quyết toán: Hợp tác xã Quyết Thắng" in found
    assert [letter for letter in LETTERS if letter not in found] == []
    assert "12.345 1.234.567 ₫" in found
    assert "−5.000 ₫" in found
    english = text(pdf(document(language="en")))
    assert "12,345 ₫1,234,567" in english


def test_the_fonts_of_a_page_are_in_it_and_have_the_letters() -> None:
    fonts = [
        font.get_object()
        for page in PdfReader(io.BytesIO(pdf(document()))).pages
        for font in page["/Resources"]["/Font"].values()  # type: ignore[index]
    ]
    assert fonts
    for font in fonts:
        assert "/FontFile3" in font["/DescendantFonts"][0].get_object()["/FontDescriptor"]


@pytest.mark.parametrize(
    "hostile", ["#panic()", '#read("document.typ")', "$1/0$", "= a", "@nobody", '"); panic("', "\\", "</script>", "{{ 1 }}"]
)
def test_texts_are_shown_on_pages_and_never_run(hostile: str) -> None:
    row = ("2026-03-02", hostile, 1, 1)
    found = text(pdf(document(title=hostile, heads=((hostile, "a"),), sections=(Section(hostile, COLUMNS, (row,)),))))
    assert found.count(hostile) >= 4


@pytest.mark.parametrize("strange", ["漢字", "😀", "\ud800x", "a\x00\x1b[31mb", "\u202eevil"])
def test_what_the_font_has_not_stops_nothing(strange: str) -> None:
    assert pdf(document(title=f"a{strange}")).startswith(b"%PDF")
    assert xlsx(document(title=f"a{strange}")).startswith(b"PK")


@given(st.text(st.characters(codec=None)))
def test_a_harmless_cell_is_one_line_that_begins_with_no_sign_of_a_formula(found: str) -> None:
    cell = harmless(found)
    assert cell.strip()[:1] not in tuple(documents.FORMULA_SIGNS)
    assert len(cell.splitlines()) <= 1
    assert cell == cell.encode().decode()
    assert harmless(cell) == cell


@given(st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_a_harmless_cell_of_letters_and_numbers_is_unchanged(found: str) -> None:
    assert harmless(found) == found
