"""Which agreement shares a pool's money of a service date, and what a wrong clearing.toml is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from clearing.agreements import Agreements, load_agreements
from fare_engine.errors import CloseError, InputError
from tests.builders import HCMC, NETWORK

PARTIES = ("RAIL", "BUSCO", "CITY")
GOOD = NETWORK["clearing.toml"]


def load(folder: Path, text: str) -> Agreements:
    path = folder / "clearing.toml"
    path.write_text(text, encoding="utf-8")
    return load_agreements(path, PARTIES, "VND")


@pytest.mark.parametrize(
    ("pool", "agreement"),
    [
        ("rider|bus|single", "own-legs"),
        ("CITY|metro|single", "own-legs"),
        ("product:BOOK|bus|BOOK", "own-legs"),
        ("rider|cap:day|single", "caps-by-day"),
        ("product:DAY|release|DAY", "passes"),
        ("product:BOOK|expiry|BOOK", "passes"),
    ],
)
def test_a_pool_is_shared_by_the_agreement_that_covers_what_it_is(tmp_path: Path, pool: str, agreement: str) -> None:
    found = load(tmp_path, GOOD)
    assert found.find(pool, "2026-03-03").agreement_id == agreement


def test_agreements_hold_between_their_dates_both_included_and_the_first_that_fits_shares(tmp_path: Path) -> None:
    old = GOOD.replace("valid_from = 2026-01-01", "valid_from = 2026-01-01\nvalid_to = 2026-03-03", 1)
    new = GOOD[GOOD.index("[[agreements]]") : GOOD.index("[[agreements]]", 70)].replace("own-legs", "new-legs")
    found = load(tmp_path, old + new)
    ids = [found.find("rider|bus|single", date).agreement_id for date in ("2026-01-01", "2026-03-03", "2026-03-04")]
    assert ids == ["own-legs", "own-legs", "new-legs"]
    assert (found.covers("new-legs"), found.covers("passes")) == ("legs", "products")


@pytest.mark.parametrize(
    ("pool", "date"),
    [("rider|bus|single", "2025-12-31"), ("product:MONTH|release|MONTH", "2026-03-03"), ("rider|cap:day|single", "2025-12-31")],
)
def test_a_pool_that_no_agreement_covers_cannot_be_closed(tmp_path: Path, pool: str, date: str) -> None:
    with pytest.raises(CloseError, match=f"no agreement covers the pool {pool.replace('|', '[|]')} on {date}"):
        load(tmp_path, GOOD).find(pool, date)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('currency = "VND"', 'currency = "EUR"', "clearing.toml: clearing.currency: the tariff's is VND (found 'EUR')"),
        (
            'method = "own_leg"',
            'method = "use"',
            "clearing.toml: agreements[0] own-legs method: legs are shared by own_leg (found 'use')",
        ),
        (
            "valid_from = 2026-01-01",
            "valid_from = 2026-01-01\nvalid_to = 2025-12-31",
            "clearing.toml: agreements[0] own-legs valid_to: before valid_from (found '2025-12-31')",
        ),
        ("RAIL = 2", "TRAM = 2", "clearing.toml: agreements[2] passes without_use: names no party (found 'TRAM')"),
        ("RAIL = 2", "RAIL = -2", "clearing.toml: agreements[2] passes without_use: a weight is below zero (found -2)"),
        (
            "without_use = { RAIL = 2, BUSCO = 1 }\n",
            "",
            "clearing.toml: agreements[2] passes without_use: a day without rides would pay nobody (found {})",
        ),
        ('covers = "caps"', 'covers = "hats"', "clearing.toml: not a clearing.toml (found \"Invalid enum value 'hats'"),
        ("[clearing]", "[clearing", "clearing.toml: not a clearing.toml (found "),
    ],
)
def test_a_wrong_clearing_toml_is_refused_with_place_and_value(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert [str(fault) for fault in error.value.faults if str(fault).startswith(says)], str(error.value)


def test_a_city_without_a_clearing_toml_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file is missing"):
        load_agreements(tmp_path / "clearing.toml", PARTIES, "VND")


def test_the_city_s_agreements_cover_every_product_that_its_tariffs_sell(hcmc, hcmc_adopted) -> None:  # type: ignore[no-untyped-def]
    found = load_agreements(HCMC / "clearing.toml", hcmc.network.parties.keys(), "VND")
    for tariff, date in ((hcmc, "2024-12-22"), (hcmc_adopted, "2026-03-01")):
        version = list(tariff.versions.values())[-1]
        for product in version.products:
            assert found.find(f"product:{product}|release|{product}", date)
