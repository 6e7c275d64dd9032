"""Journals for accountants' own programs: names they take, sums that are ours, and the programs' own word for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.exports.journals import PROGRAMS, Entry, Journal, account_name, journal
from fare_engine.errors import BooksError
from tests.tools import run_tool

DAY = "2026-03-02"
ENTRIES = [
    Entry("JOURNEY_CHARGED", DAY, "riders", f"fares:{DAY}:rider|metro|single", 9000, 3),
    Entry("SETTLED", DAY, f"fares:{DAY}:rider|metro|single", "operator:RAIL", 9000, 1),
    Entry("FARE_CAPPED", "2026-03-01", f"fares:{DAY}:rider|cap:day/zone-1|single", "riders", 500, 1),
]
BALANCES = {
    "riders": 8500,
    f"fares:{DAY}:rider|metro|single": 0,
    f"fares:{DAY}:rider|cap:day/zone-1|single": 500,
    "operator:RAIL": -9000,
}
CHECKS = {
    "hledger": ("hledger", "check", "--strict", "-f"),
    "ledger": ("ledger", "--pedantic", "bal", "-f"),
    "beancount": ("bean-check",),
}


def found(minor_digits: int = 0, **changes: object) -> Journal:
    content: dict[str, object] = {"entries": ENTRIES, "balances": BALANCES, "total": 18_500}
    return journal(DAY, "VND", minor_digits, **(content | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("minor_digits", [0, 2])
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_confirms_a_journal_and_finds_a_changed_balance(tmp_path: Path, program: str, minor_digits: int) -> None:
    name, *arguments = CHECKS[program]
    path = tmp_path / f"day.{program}"
    path.write_bytes(PROGRAMS[program](found(minor_digits)))
    done = run_tool(name, *arguments, f"{path}")
    assert (done.returncode, done.stderr) == (0, "")
    path.write_bytes(PROGRAMS[program](found(minor_digits, balances=BALANCES | {"riders": 8501})))
    assert run_tool(name, *arguments, f"{path}").returncode != 0


def test_a_journal_whose_entries_do_not_sum_to_the_books_is_not_made() -> None:
    with pytest.raises(BooksError, match="sums to 18500, its proof to 18499"):
        found(total=18_499)


def test_the_same_entries_in_any_order_are_the_same_bytes() -> None:
    for program in PROGRAMS.values():
        assert program(found()) == program(found(entries=ENTRIES[::-1], balances=dict(reversed(BALANCES.items()))))


@pytest.mark.parametrize(
    ("account", "name"),
    [
        ("riders", "Assets:Riders"),
        ("collector:OP-FUTA", "Assets:Collectors:OP-FUTA"),
        (f"fares:{DAY}:AU-BUDGET|bus-s6|single", "Liabilities:Fares:AU-BUDGET:Bus-s6:Single"),
        (f"fares:{DAY}:product:ML1-1D|release|ML1-1D", "Liabilities:Fares:Product:ML1-1D:Release:ML1-1D"),
        ("net:OP-HURC1", "Liabilities:Net:OP-HURC1"),
        ("something:new", "Equity:Other:Something:New"),
    ],
)
def test_accounts_have_names_that_all_programs_take(account: str, name: str) -> None:
    assert account_name(account) == name


IDS = st.text(st.characters(codec="utf-8", exclude_characters="|:"), min_size=1, max_size=12)


@given(st.lists(IDS, min_size=2, max_size=6, unique=True))
def test_two_accounts_never_share_a_name_and_every_name_is_one_for_beancount(ids: list[str]) -> None:
    names = [account_name(f"operator:{found}") for found in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        part = name.rpartition(":")[2]
        assert part.isascii()
        assert part[0].isupper() or part[0].isdigit()
        assert part.replace("-", "").isalnum()
