"""Which agreement shares a line's money of a service date, and what a wrong clearing.toml is told."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from clearing.agreements import Agreements, load_agreements, period_of
from clearing.commands import rules_of
from fare_engine.errors import CloseError, InputError
from tests.builders import HCMC, NETWORK, TOWN

GOOD = NETWORK["clearing.toml"]
NAME = 'name = { vi = "x", en = "x" }\nvalid_from = 2026-01-01\n'
RIDER = ("rule", "bus", "riders", "2026-03-03")


def load(folder: Path, text: str) -> Agreements:
    path = folder / "clearing.toml"
    path.write_text(text, encoding="utf-8")
    return load_agreements(path, TOWN)


def before_the_others(row: str) -> str:
    """The little city's agreements with another one that is looked at first."""
    return GOOD.replace("[[agreements]]", f"[[agreements]]\n{NAME}{row}\n\n[[agreements]]", 1)


@pytest.mark.parametrize(
    ("line", "agreement"),
    [
        (("list_fare", "rule", "bus", "riders"), "own-legs"),
        (("discount", "rule", "metro", "CITY"), "own-legs"),
        (("product", "rule/BOOK", "bus", "product:BOOK"), "own-legs"),
        (("cap", "rule", "bus", "riders"), "caps-by-day"),
        (("release", "rule/DAY", None, "product:DAY"), "passes"),
        (("expiry", "rule/BOOK", None, "product:BOOK"), "passes"),
    ],
)
def test_a_line_s_money_is_shared_by_the_agreement_that_covers_it(
    tmp_path: Path, line: tuple[str, str | None, str, str], agreement: str
) -> None:
    assert load(tmp_path, GOOD).find(*line, "2026-03-03").agreement_id == agreement


def test_agreements_hold_between_their_dates_both_included_and_the_first_that_fits_shares(tmp_path: Path) -> None:
    old = GOOD.replace("valid_from = 2026-01-01", "valid_from = 2026-01-01\nvalid_to = 2026-03-03", 1)
    new = GOOD[GOOD.index("[[agreements]]") : GOOD.index("[[agreements]]", 100)].replace("own-legs", "new-legs")
    found = load(tmp_path, old + new)
    dates = ("2026-01-01", "2026-03-03", "2026-03-04")
    ids = [found.find("list_fare", "rule", "bus", "riders", date).agreement_id for date in dates]
    assert ids == ["own-legs", "own-legs", "new-legs"]


@pytest.mark.parametrize(
    ("filters", "fitting", "others"),
    [
        ('networks = ["metro"]', ("list_fare", "rule", "metro", "riders"), ("list_fare", "rule", "bus", "riders")),
        ('paid_by = ["CITY"]', ("discount", "rule", "bus", "CITY"), ("discount", "rule", "bus", "riders")),
        ('rules = ["day"]', ("discount", "day", "bus", "CITY"), ("discount", "other", "bus", "CITY")),
        ('products = ["BOOK"]', ("product", "rule/BOOK", "bus", "product:BOOK"), ("product", "rule/WEEK", "bus", "product:WEEK")),
    ],
)
def test_an_agreement_may_be_for_some_networks_payers_or_products_only(
    tmp_path: Path, filters: str, fitting: tuple[str, ...], others: tuple[str, ...]
) -> None:
    found = load(tmp_path, before_the_others(f'agreement_id = "some"\ncovers = "legs"\nmethod = "own_leg"\n{filters}'))
    assert found.find(*fitting, "2026-03-03").agreement_id == "some"  # type: ignore[arg-type]
    assert found.find(*others, "2026-03-03").agreement_id == "own-legs"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("covers", "kinds"),
    [
        ("fares", ("list_fare", "companions")),
        ("surcharges", ("surcharge",)),
        ("coupons", ("product",)),
        ("discounts", ("discount",)),
        ("transfers", ("transfer",)),
        ("rewards", ("reward", "rebate")),
    ],
)
def test_an_agreement_may_be_for_some_kinds_of_line_only(tmp_path: Path, covers: str, kinds: tuple[str, ...]) -> None:
    found = load(tmp_path, before_the_others(f'agreement_id = "some"\ncovers = "{covers}"\nmethod = "own_leg"'))
    every = ("list_fare", "companions", "surcharge", "product", "discount", "transfer", "reward", "rebate")
    assert tuple(kind for kind in every if found.find(kind, *RIDER).agreement_id == "some") == kinds


def test_an_agreement_of_a_pair_holds_only_where_nobody_else_took_part(tmp_path: Path) -> None:
    row = 'agreement_id = "pair"\ncovers = "legs"\nmethod = "standalone_fares"\nscope = "journey"\noperators = ["RAIL", "BUSCO"]'
    found = load(tmp_path, before_the_others(row))
    assert found.find("list_fare", *RIDER, {"RAIL", "BUSCO"}).agreement_id == "pair"
    assert found.find("list_fare", *RIDER, {"RAIL", "BUSCO", "COOP"}).agreement_id == "own-legs"
    assert found.find("list_fare", *RIDER).agreement_id == "own-legs"


@pytest.mark.parametrize(
    ("scope", "date", "period"),
    [
        ("service_day", "2026-03-03", ("2026-03-03", "2026-03-03")),
        (None, "2026-03-03", ("2026-03-03", "2026-03-03")),
        ("week", "2026-03-02", ("2026-03-02", "2026-03-08")),
        ("week", "2026-03-08", ("2026-03-02", "2026-03-08")),
        ("month", "2026-03-01", ("2026-03-01", "2026-03-31")),
        ("month", "2026-02-28", ("2026-02-01", "2026-02-28")),
        ("month", "2026-12-31", ("2026-12-01", "2026-12-31")),
    ],
)
def test_periods_are_days_weeks_from_monday_and_calendar_months(scope: str | None, date: str, period: tuple[str, str]) -> None:
    assert period_of(scope, date) == period


def test_vat_is_exempt_unless_a_row_says_otherwise(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD + f'\n[[vat]]\n{NAME}state = "taxed"\npercent = "8"\nnetworks = ["boat"]\n')
    taxed = found.tax("boat", "single", "2026-03-03")
    assert taxed is not None
    assert (taxed.state, taxed.percent) == ("taxed", "8")
    assert found.tax("bus", "single", "2026-03-03") is None
    assert found.tax("boat", "single", "2025-03-03") is None


def test_the_share_of_open_items_is_one_in_a_thousand_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).most_open == 1
    assert load(tmp_path, GOOD.replace('open_items_share = "100%"\n', "")).most_open == Fraction(1, 1000)


def test_a_line_that_no_agreement_covers_cannot_be_closed(tmp_path: Path) -> None:
    with pytest.raises(CloseError, match=r"no agreement covers list_fare rule paid by riders on bus of 2025-12-31"):
        load(tmp_path, GOOD).find("list_fare", "rule", "bus", "riders", "2025-12-31")


def agreement(row: str) -> str:
    return f'\n[[agreements]]\nagreement_id = "odd"\n{NAME}{row}\n'


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('currency = "VND"', 'currency = "EUR"', "clearing.toml: clearing.currency: the tariff's is VND (found 'EUR')"),
        ('"100%"', '"half"', "clearing.toml: clearing.open_items_share: a share is written as \"0.1%\" (found 'half')"),
        ('"100%"', '"100.5%"', "clearing.toml: clearing.open_items_share: more than all (found '100.5%')"),
        ('"100%"', '"1%"\nraw_taps_kept_days = 0', "clearing.toml: clearing.raw_taps_kept_days: less than a day (found 0)"),
        (
            '"own-legs"',
            '"own legs"',
            "clearing.toml: agreements[0] agreement_id: letters, digits, - _ and . only (found 'own legs')",
        ),
        ('"own-legs"', '"passes"', "clearing.toml: agreements[2] agreement_id: stands twice (found 'passes')"),
        (
            'method = "own_leg"',
            'method = "use"',
            "clearing.toml: agreements[0] own-legs method: use is for products (found 'use')",
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
        ('method = "own_leg"', 'methods = "own_leg"', "clearing.toml: not a clearing.toml (found "),
    ],
)
def test_a_wrong_clearing_toml_is_refused_with_place_and_value(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert [str(fault) for fault in error.value.faults if str(fault).startswith(says)], str(error.value)


LEGS = 'covers = "legs"\n'


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('covers = "products"\nmethod = "own_leg"', "method: passes and books are shared by use, fixed shares or gross_cost"),
        (LEGS + 'method = "standalone_fares"', "scope: a method that weighs needs one"),
        (LEGS + 'method = "own_leg"\nscope = "journey"', "scope: own_leg has none (found 'journey')"),
        ('covers = "caps"\nmethod = "paid_fares"\nscope = "leg"', "scope: a cap stands for several legs"),
        (
            'covers = "products"\nmethod = "use"\nscope = "journey"\nwithout_use = { RAIL = 1 }',
            "scope: use is counted by service_day, week or month",
        ),
        (LEGS + 'method = "fixed"', "shares: method fixed needs shares"),
        (LEGS + 'method = "fixed"\nshares = { RAIL = 0 }', "shares: method fixed needs shares"),
        (LEGS + 'method = "own_leg"\nshares = { RAIL = 1 }', "shares: method fixed needs shares"),
        (LEGS + 'method = "fixed"\nshares = { TRAM = 1 }', "shares: names no party (found 'TRAM')"),
        (LEGS + 'method = "per_ride"\nresidual = "CITY"', "amount: method per_ride needs an amount"),
        (LEGS + 'method = "per_ride"\namount = -1\nresidual = "CITY"', "amount: below zero"),
        (LEGS + 'method = "per_ride"\namount = 1', "residual: methods per_ride and gross_cost name who has the rest"),
        (LEGS + 'method = "gross_cost"\nresidual = "TRAM"', "residual: names no party (found 'TRAM')"),
        (
            'covers = "fares"\nmethod = "per_ride"\namount = 1\nresidual = "CITY"',
            "covers: an amount for each ride needs the whole legs",
        ),
        (LEGS + 'method = "own_leg"\noperators = ["RAIL"]', "operators: only a method that weighs journeys or periods"),
        (LEGS + 'method = "own_leg"\nunknown_m = { bus = 5000 }', "unknown_m: only methods by distance have it"),
        (
            LEGS + 'method = "tariff_km"\nscope = "journey"\nunknown_m = { tram = 1 }',
            "unknown_m: names no network (found 'tram')",
        ),
        (LEGS + 'method = "own_leg"\nnetworks = ["tram"]', "networks: names no network (found 'tram')"),
        (LEGS + 'method = "own_leg"\nrules = ["none"]', "rules: names no rule (found 'none')"),
        (LEGS + 'method = "own_leg"\nproducts = ["TRAM"]', "products: names no product (found 'TRAM')"),
        (LEGS + 'method = "own_leg"\npaid_by = ["NOBODY"]', "paid_by: names no payer (found 'NOBODY')"),
    ],
)
def test_an_agreement_that_does_not_hold_together_is_refused(tmp_path: Path, row: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, GOOD + agreement(row))
    assert [fault for fault in error.value.faults if str(fault).startswith(f"clearing.toml: agreements[3] odd {says}")], str(
        error.value
    )


@pytest.mark.parametrize(
    ("pair", "per_ride", "refused"),
    [
        ("", "", True),
        ("", '\nnetworks = ["bus"]', True),
        ('\nnetworks = ["bus", "boat"]', '\nnetworks = ["bus"]', True),
        ('\nnetworks = ["metro"]', '\nnetworks = ["bus"]', False),
    ],
)
def test_whether_a_ride_is_paid_an_amount_does_not_hang_on_who_else_carried_its_rider(
    tmp_path: Path, pair: str, per_ride: str, refused: bool
) -> None:
    rows = [
        f'covers = "legs"\nmethod = "boardings"\nscope = "journey"\noperators = ["RAIL", "BUSCO"]{pair}',
        f'covers = "legs"\nmethod = "per_ride"\namount = 1000\nresidual = "CITY"{per_ride}',
    ]
    text = "".join([GOOD, agreement(rows[0]), agreement(rows[1]).replace('"odd"', '"rides"')])
    if not refused:
        assert load(tmp_path, text).row("rides").amount == 1000
        return
    with pytest.raises(InputError, match=r"agreements\[4\] rides method: stands behind odd, which is of some operators only"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "row", "says"),
    [
        ("fees", 'paid_by = "TRAM"\npaid_to = "CITY"\nbase = "settled"\npercent = "1"', "paid_by: names no party (found 'TRAM')"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "TRAM"\nbase = "settled"\npercent = "1"', "paid_to: names no party (found 'TRAM')"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "settled"', "percent: a fee is either a percent or an amount"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "settled"\namount = 5', "base: an amount is for each ride"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "rides"\namount = 0', "amount: a fee is above zero"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "settled"\npercent = "x"', "percent: no number"),
        ("fees", 'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "settled"\npercent = "101"', "percent: not between 0 and 100"),
        (
            "fees",
            'paid_by = "operators"\npaid_to = "CITY"\nbase = "sales"\npercent = "1"',
            "paid_by: sales are not one operator's",
        ),
        (
            "fees",
            'paid_by = "RAIL"\npaid_to = "CITY"\nbase = "cash_held"\npercent = "1"\nnetworks = ["bus"]',
            "networks: cash_held is not known by network",
        ),
        ("subsidies", 'paid_by = "TRAM"\namount = 5', "paid_by: names no party (found 'TRAM')"),
        ("subsidies", 'paid_by = "CITY"\namount = 0', "amount: a subsidy is above zero"),
        ("subsidies", 'paid_by = "CITY"\namount = 1\nroutes = ["99"]', "routes: names no route (found '99')"),
        ("subsidies", 'paid_by = "CITY"\namount = 1\nrider_categories = ["cat"]', "rider_categories: names no rider category"),
    ],
)
def test_a_fee_or_subsidy_that_does_not_hold_together_is_refused(tmp_path: Path, table: str, row: str, says: str) -> None:
    field = {"fees": "fee_id", "subsidies": "subsidy_id"}[table]
    with pytest.raises(InputError) as error:
        load(tmp_path, GOOD + f'\n[[{table}]]\n{field} = "odd"\n{NAME}{row}\n')
    assert [fault for fault in error.value.faults if str(fault).startswith(f"clearing.toml: {table}[0] odd {says}")], str(
        error.value
    )


def test_what_is_exempt_has_no_rate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what is exempt has no rate"):
        load(tmp_path, GOOD + f'\n[[vat]]\n{NAME}state = "exempt"\npercent = "8"\n')


def test_a_city_without_a_clearing_toml_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file is missing"):
        load_agreements(tmp_path / "clearing.toml", TOWN)


def test_the_city_s_agreements_cover_every_product_that_its_tariffs_sell(hcmc, hcmc_adopted) -> None:  # type: ignore[no-untyped-def]
    for tariff, date in ((hcmc, "2024-12-22"), (hcmc_adopted, "2026-03-01")):
        found = rules_of(tariff, HCMC).agreements
        version = list(tariff.versions.values())[-1]
        for product in version.products:
            assert found.find("release", f"x/{product}", None, f"product:{product}", date)
