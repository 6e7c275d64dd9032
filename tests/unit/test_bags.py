"""What several operators share of one traveller's rides: by every method and scope, and always summing to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.agreements import Agreements, load_agreements
from clearing.bags import BagLine, BagRide, corrections
from clearing.pools import EMPTY, settle
from fare_engine.errors import CloseError
from fare_engine.money import PARTS
from fare_engine.tariff.compile import CapScope
from tests.builders import TOWN
from tests.shares import Told, Trip, by_the_close, sums_of

MONDAY, TUESDAY, SUNDAY = "2026-03-02", "2026-03-03", "2026-03-08"
HEAD = """\
[clearing]
agreement_version = "1"
currency = "VND"
"""
NAME = 'name = { vi = "x", en = "x" }\nvalid_from = 2026-01-01\n'
OWN = f'[[agreements]]\nagreement_id = "own"\n{NAME}covers = "legs"\nmethod = "own_leg"\n'
CAPS: Mapping[str, CapScope] = {"day": CapScope(frozenset(), "fare"), "rail-day": CapScope(frozenset(("metro",)), "fare")}


def agreed(*rows: str) -> Agreements:
    """Agreements of these rows, the first of them first, and own legs for the rest."""
    listed = [f'[[agreements]]\nagreement_id = "a{number}"\n{NAME}{row}\n' for number, row in enumerate(rows)]
    found = "\n".join([HEAD, *listed, OWN])
    path = Path(agreed.folder) / "clearing.toml"  # type: ignore[attr-defined]
    path.write_text(found, encoding="utf-8")
    return load_agreements(path, TOWN)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    agreed.folder = tmp_path_factory.mktemp("agreements")  # type: ignore[attr-defined]


def fare(leg: str, operator: str, amount: int, network: str = "bus", on: str = TUESDAY) -> BagLine:
    return BagLine(leg, "list_fare", f"{network}/x", "rider", operator, network, on, amount, 0)


def line(
    leg: str, operator: str, kind: str, amount: int, rule: str = "rule", bearer: str = "operators", funded: int = 0
) -> BagLine:
    return BagLine(leg, kind, rule, bearer, operator, "bus", TUESDAY, amount, funded)


def rides(*journey: str, persons: int = 1, metres: Mapping[str, int | None] | None = None) -> dict[str, BagRide]:
    """Legs that are one journey."""
    return {leg: BagRide(journey[0], persons, (metres or {}).get(leg)) for leg in journey}


def received(
    lines: list[BagLine], ridden: Mapping[str, BagRide], agreements: Agreements, through: str = TUESDAY
) -> dict[str, int]:
    """What each operator gets of some lines, in parts."""
    found: dict[str, int] = {}
    for one in lines:
        found[one.operator_id or ""] = found.get(one.operator_id or "", 0) + (one.amount + one.funded) * PARTS
    for shares in corrections(lines, ridden, agreements, CAPS, through).values():
        assert sum(shares.values()) == 0
        for party, parts in shares.items():
            found[party] = found.get(party, 0) + parts
    return found


def units(found: dict[str, int]) -> dict[str, float]:
    return {party: round(parts / PARTS, 3) for party, parts in found.items()}


JOURNEY = 'covers = "legs"\nscope = "journey"\nmethod = '


def test_the_published_split_of_a_regional_fare_system() -> None:
    """ORCA's published example: legs of $2.50 and $2.75, $2.75 paid, gives $1.31 and $1.44."""
    lines = [fare("1", "RAIL", 250), fare("2", "BUSCO", 275), line("2", "BUSCO", "transfer", -250)]
    exact = received(lines, rides("1", "2"), agreed(JOURNEY + '"standalone_fares"'))
    assert units(exact) == {"RAIL": 130.952, "BUSCO": 144.048}
    assert settle("ORCA", EMPTY, exact)[1] == {"RAIL": 131, "BUSCO": 144}


def test_legs_of_other_journeys_do_not_count() -> None:
    lines = [fare("1", "RAIL", 250), fare("2", "BUSCO", 275), line("2", "BUSCO", "transfer", -250), fare("3", "COOP", 500)]
    ridden = rides("1", "2") | rides("3")
    assert units(received(lines, ridden, agreed(JOURNEY + '"standalone_fares"')))["COOP"] == 500


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("standalone_fares", {"RAIL": 6000, "BUSCO": 4000}),  # 9,000 to 6,000
        ("paid_fares", {"RAIL": 9000, "BUSCO": 1000}),  # 9,000 to 1,000
        ("tariff_km", {"RAIL": 2500, "BUSCO": 7500}),  # 3 km to 9 km
        ("passenger_km", {"RAIL": 1428.571, "BUSCO": 8571.429}),  # 3 km to 2 x 9 km
        ("boardings", {"RAIL": 3333.333, "BUSCO": 6666.667}),  # 1 to 2 persons
    ],
)
def test_a_journey_s_money_goes_by_what_the_method_weighs(method: str, expected: dict[str, float]) -> None:
    lines = [fare("1", "RAIL", 9000), fare("2", "BUSCO", 6000), line("2", "BUSCO", "transfer", -5000)]
    ridden = {"1": BagRide("1", 1, 3000), "2": BagRide("1", 2, 9000)}
    assert units(received(lines, ridden, agreed(JOURNEY + f'"{method}"'))) == expected


def test_a_distance_that_is_not_known_is_what_the_agreement_says_or_stops_the_close() -> None:
    lines = [fare("1", "RAIL", 1000, "metro"), fare("2", "BUSCO", 1000)]
    ridden = rides("1", "2", metres={"1": 3000})
    told = agreed(JOURNEY + '"tariff_km"\nunknown_m = { bus = 1000 }')
    assert units(received(lines, ridden, told)) == {"RAIL": 1500, "BUSCO": 500}
    with pytest.raises(CloseError, match="how far the leg 2 went is not known, and a0 has no unknown_m for bus"):
        received(lines, ridden, agreed(JOURNEY + '"tariff_km"'))


def test_a_pair_s_agreement_holds_only_where_nobody_else_rode_along() -> None:
    pair = JOURNEY + '"boardings"\noperators = ["RAIL", "BUSCO"]'
    two = [fare("1", "RAIL", 1000), fare("2", "BUSCO", 3000)]
    assert units(received(two, rides("1", "2"), agreed(pair))) == {"RAIL": 2000, "BUSCO": 2000}
    three = [*two, fare("3", "COOP", 500)]
    assert units(received(three, rides("1", "2", "3"), agreed(pair))) == {"RAIL": 1000, "BUSCO": 3000, "COOP": 500}


def test_where_the_pair_s_agreement_does_not_hold_the_next_one_does_whatever_its_method() -> None:
    pair = JOURNEY + '"boardings"\noperators = ["RAIL", "BUSCO"]'
    agreements = agreed(pair, 'covers = "legs"\nmethod = "gross_cost"\nresidual = "CITY"')

    def given(*operators: str) -> dict[str, int]:
        fares = {"RAIL": 1000, "BUSCO": 3000, "COOP": 500}
        trips = [
            Trip(leg_id=name, operator=name, network="bus", on=TUESDAY, fare=fares[name], journey="1", traveller="ana")
            for name in operators
        ]
        return {party: int(amount) for party, amount in sums_of(by_the_close(Told(trips), agreements, TUESDAY)).items() if amount}

    assert given("RAIL", "BUSCO") == {"RAIL": 2000, "BUSCO": 2000}
    assert given("RAIL", "BUSCO", "COOP") == {"CITY": 4500}
    assert given("BUSCO") == {"BUSCO": 3000}, "one of the pair alone is among the pair"
    assert given("COOP") == {"CITY": 500}


def test_a_cap_is_shared_by_the_legs_that_it_counts() -> None:
    caps = 'covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"'
    lines = [
        fare("1", "RAIL", 40_000, "metro"),
        fare("2", "BUSCO", 20_000),
        line("2", "BUSCO", "cap", -10_000, rule="day"),
    ]
    assert units(received(lines, {}, agreed(caps))) == {"RAIL": 33_333.333, "BUSCO": 16_666.667}
    of_rail = [*lines[:2], line("2", "BUSCO", "cap", -10_000, rule="rail-day")]
    assert units(received(of_rail, {}, agreed(caps))) == {"RAIL": 30_000, "BUSCO": 20_000}


def test_what_a_bearer_pays_of_a_cap_is_shared_like_what_the_rider_does_not() -> None:
    caps = 'covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"'
    lines = [
        fare("1", "RAIL", 30_000, "metro"),
        fare("2", "BUSCO", 30_000),
        line("2", "BUSCO", "cap", -10_000, rule="day", bearer="CITY", funded=10_000),
    ]
    assert units(received(lines, {}, agreed(caps))) == {"RAIL": 30_000, "BUSCO": 30_000}


def test_a_cap_of_rides_that_cost_nothing_goes_in_equal_parts_or_as_agreed() -> None:
    lines = [
        fare("1", "RAIL", 5000), line("1", "RAIL", "discount", -5000),
        fare("2", "BUSCO", 5000), line("2", "BUSCO", "discount", -5000),
        line("2", "BUSCO", "cap", -900, rule="day"),
    ]  # fmt: skip
    caps = 'covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"'
    assert units(received(lines, {}, agreed(caps))) == {"RAIL": -450, "BUSCO": -450}
    assert units(received(lines, {}, agreed(caps + "\nwithout_use = { RAIL = 2, BUSCO = 1 }"))) == {"RAIL": -600, "BUSCO": -300}


def test_a_week_is_shared_day_by_day_until_it_ends_and_then_once_over_all_of_it() -> None:
    week = 'covers = "caps"\nscope = "week"\nmethod = "paid_fares"'
    lines = [
        fare("1", "RAIL", 30_000, on=MONDAY),
        fare("2", "BUSCO", 10_000, on=TUESDAY),
        line("2", "BUSCO", "cap", -4000, rule="day"),
    ]
    assert units(received(lines, {}, agreed(week), through=TUESDAY)) == {"RAIL": 30_000, "BUSCO": 6000}
    assert units(received(lines, {}, agreed(week), through=SUNDAY)) == {"RAIL": 27_000, "BUSCO": 9000}


def test_surcharges_are_shared_only_where_an_agreement_says_so() -> None:
    lines = [fare("1", "RAIL", 1000), fare("2", "BUSCO", 1000), line("2", "BUSCO", "surcharge", 600)]
    only_fares = 'covers = "fares"\nscope = "journey"\nmethod = "boardings"'
    assert units(received(lines, rides("1", "2"), agreed(only_fares))) == {"RAIL": 1000, "BUSCO": 1600}


SURCHARGES: Mapping[str, CapScope] = {"fees": CapScope(frozenset(), "surcharge"), "of-bus": CapScope(frozenset(("bus",)), "fare")}


def moved(
    lines: list[BagLine], ridden: Mapping[str, BagRide], agreements: Agreements, caps: Mapping[str, CapScope]
) -> dict[str, dict[str, float]]:
    """What each pool moves, in units."""
    found = corrections(lines, ridden, agreements, caps, TUESDAY)
    return {pool: units(shares) for (pool, _), shares in found.items()}


def test_each_payer_s_and_product_s_money_moves_in_its_own_pool() -> None:
    lines = [
        fare("1", "RAIL", 1000, "metro"),
        BagLine("1", "discount", "student", "CITY", "RAIL", "metro", TUESDAY, -400, 400),
        fare("2", "BUSCO", 1000),
        BagLine("2", "product", "book/BOOK", "product:BOOK", "BUSCO", "bus", TUESDAY, -1000, 800),
    ]
    half = agreed(JOURNEY + '"boardings"')
    assert moved(lines, rides("1", "2"), half, CAPS) == {
        "rider|metro|single": {"BUSCO": 300.0, "RAIL": -300.0},
        "CITY|metro|single": {"BUSCO": 200.0, "RAIL": -200.0},
        "rider|bus|single": {"BUSCO": -500.0, "RAIL": 500.0},
        "rider|bus|BOOK": {"BUSCO": 500.0, "RAIL": -500.0},
        "product:BOOK|bus|BOOK": {"BUSCO": -400.0, "RAIL": 400.0},
    }


def test_a_cap_s_money_moves_in_the_cap_s_own_pools() -> None:
    caps = agreed('covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"')
    lines = [fare("1", "RAIL", 1000), fare("2", "BUSCO", 1000), line("2", "BUSCO", "cap", -500, "day/adult", "CITY", 500)]
    assert moved(lines, {}, caps, CAPS) == {
        "rider|cap:day/adult|single": {"BUSCO": 250.0, "RAIL": -250.0},
        "CITY|cap:day/adult|single": {"BUSCO": -250.0, "RAIL": 250.0},
    }


def test_a_cap_on_surcharges_is_weighed_by_surcharges_and_others_are_not() -> None:
    caps = agreed('covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"')
    lines = [
        fare("1", "RAIL", 9000), line("1", "RAIL", "surcharge", 200), line("1", "RAIL", "surcharge", 100),
        fare("2", "BUSCO", 1000), line("2", "BUSCO", "surcharge", 700), line("2", "BUSCO", "companions", 5000),
        line("2", "BUSCO", "cap", -100, rule="fees"),
    ]  # fmt: skip
    assert moved(lines, {}, caps, SURCHARGES) == {"rider|cap:fees|single": {"BUSCO": 30.0, "RAIL": -30.0}}
    other = [*lines[:-1], line("2", "BUSCO", "cap", -100, rule="unknown")]
    assert moved(other, {}, caps, SURCHARGES) == {"rider|cap:unknown|single": {"BUSCO": 90.0, "RAIL": -90.0}}


def test_only_the_networks_that_a_cap_or_an_agreement_names_are_weighed() -> None:
    caps = agreed('covers = "caps"\nscope = "service_day"\nmethod = "paid_fares"\nnetworks = ["bus"]')
    lines = [
        fare("1", "RAIL", 9000, "metro"), fare("2", "BUSCO", 1000), fare("3", "COOP", 3000),
        line("2", "BUSCO", "cap", -100, rule="of-bus"),
    ]  # fmt: skip
    assert moved(lines, {}, caps, SURCHARGES) == {"rider|cap:of-bus|single": {"BUSCO": 75.0, "COOP": -75.0}}
    buses = agreed(JOURNEY + '"boardings"\nnetworks = ["bus"]')
    fares = [fare("1", "RAIL", 9000, "metro"), fare("2", "BUSCO", 1000), fare("3", "COOP", 3000)]
    assert moved(fares, rides("1", "2", "3"), buses, CAPS) == {"rider|bus|single": {"BUSCO": 1000.0, "COOP": -1000.0}}


def test_an_agreement_for_one_payer_or_rule_leaves_the_rest_to_the_next() -> None:
    city = JOURNEY + '"boardings"\npaid_by = ["CITY"]'
    lines = [
        fare("1", "RAIL", 1000), fare("2", "BUSCO", 1000),
        BagLine("2", "discount", "student", "CITY", "BUSCO", "bus", TUESDAY, -400, 400),
    ]  # fmt: skip
    assert moved(lines, rides("1", "2"), agreed(city), CAPS) == {"CITY|bus|single": {"BUSCO": -200.0, "RAIL": 200.0}}
    day = 'covers = "caps"\nscope = "service_day"\nmethod = "boardings"\nrules = ["day"]'
    rest = 'covers = "caps"\nmethod = "fixed"\nshares = { RAIL = 1 }'
    capped = [fare("1", "RAIL", 1000), fare("2", "BUSCO", 1000), line("2", "BUSCO", "cap", -100, rule="other")]
    assert moved(capped, {}, agreed(day, rest), CAPS) == {}


def test_lines_without_an_operator_and_of_other_dates_are_passed_over_and_the_others_are_not() -> None:
    shared = agreed(JOURNEY + '"boardings"')
    lost = BagLine("0", "release", "pass/DAY", "product:DAY", None, None, TUESDAY, 0, 100)
    lines = [lost, fare("9", "RAIL", 800, on=MONDAY), fare("1", "RAIL", 1000), fare("2", "BUSCO", 600)]
    ridden = rides("1", "2") | {"9": BagRide("1", 1, None)}
    found = corrections(lines, ridden, shared, CAPS, TUESDAY, only=TUESDAY)
    assert {pool: units(shares) for (pool, _), shares in found.items()} == {
        "rider|bus|single": {"RAIL": 66.667, "BUSCO": -66.667}
    }


def test_what_was_given_as_if_alone_is_taken_back_where_others_rode_along() -> None:
    pair = JOURNEY + '"boardings"\noperators = ["RAIL", "BUSCO"]\npaid_by = ["CITY"]'
    fixed = 'covers = "legs"\nmethod = "fixed"\nshares = { COOP = 1 }\npaid_by = ["CITY"]\nnetworks = ["bus"]'
    lines = [
        fare("1", "RAIL", 1000, "metro"), fare("2", "BUSCO", 1000),
        BagLine("2", "discount", "student", "CITY", "BUSCO", "bus", TUESDAY, -400, 400),
    ]  # fmt: skip
    assert moved(lines, rides("1", "2"), agreed(pair, fixed), CAPS) == {"CITY|bus|single": {"BUSCO": -200.0, "RAIL": 200.0}}
    with_another = [*lines, fare("3", "BOATS", 1000, "boat")]
    assert moved(with_another, rides("1", "2", "3"), agreed(pair, fixed), CAPS) == {
        "CITY|bus|single": {"BUSCO": -400.0, "COOP": 400.0}
    }


@pytest.mark.parametrize("method", ["tariff_km", "boardings", "paid_fares"])
def test_who_was_there_alone_has_all_of_it_whatever_there_is_to_weigh(method: str) -> None:
    shared = agreed(JOURNEY + f'"{method}"\nwithout_use = {{ COOP = 1 }}')
    lines = [fare("1", "RAIL", 1000, "metro"), line("1", "RAIL", "discount", -1000, bearer="CITY", funded=1000)]
    assert moved([*lines, fare("2", "BUSCO", 500)], rides("1") | rides("2", metres={"2": 5}), shared, CAPS) == {}


AMOUNTS = st.integers(-50_000, 50_000)
OPERATORS = st.sampled_from(("RAIL", "BUSCO", "COOP", "BOATS"))
NETWORKS = st.sampled_from(("metro", "bus", "boat"))
KINDS = st.sampled_from(("list_fare", "companions", "surcharge", "discount", "transfer", "cap", "reward"))
UNKNOWN = "\nunknown_m = { metro = 1, bus = 2, boat = 3 }"
ROWS = st.sampled_from(
    [
        f'covers = "{covers}"\nscope = "{scope}"\nmethod = "{method}"'
        + ("\nunknown_m = { metro = 1, bus = 2, boat = 3 }" if "km" in method else "")
        for covers in ("legs", "caps", "transfers")
        for scope in ("journey", "service_day", "week", "month")
        for method in ("standalone_fares", "paid_fares", "tariff_km", "passenger_km", "boardings")
    ]
)


@st.composite
def travels(draw: st.DrawFn) -> tuple[list[BagLine], dict[str, BagRide]]:
    legs = draw(st.lists(st.tuples(OPERATORS, NETWORKS, st.sampled_from((MONDAY, TUESDAY))), min_size=1, max_size=5))
    lines, ridden = [], {}
    for number, (operator, network, on) in enumerate(legs):
        leg = str(number)
        ridden[leg] = BagRide(
            draw(st.sampled_from([str(n) for n in range(number + 1)])),
            draw(st.integers(1, 4)),
            draw(st.none() | st.integers(0, 9999)),
        )
        lines.append(fare(leg, operator, abs(draw(AMOUNTS)), network, on))
        for kind in draw(st.lists(KINDS, max_size=3)):
            rule = "day" if kind == "cap" else kind
            lines.append(BagLine(leg, kind, rule, "CITY", operator, network, on, draw(AMOUNTS), draw(AMOUNTS)))
    return lines, ridden


@given(travelled=travels(), rows=st.lists(ROWS, min_size=1, max_size=3), order=st.randoms(use_true_random=False))
def test_whatever_is_agreed_nothing_is_lost_or_made_and_the_order_of_lines_does_not_matter(
    travelled: tuple[list[BagLine], dict[str, BagRide]], rows: list[str], order: object
) -> None:
    lines, ridden = travelled
    agreements = agreed(*rows)
    found = received(lines, ridden, agreements)
    assert sum(found.values()) == sum(one.amount + one.funded for one in lines) * PARTS
    shuffled = list(lines)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = received(shuffled, ridden, agreements)
    assert {party: parts for party, parts in again.items() if parts} == {party: parts for party, parts in found.items() if parts}


@given(travelled=travels(), rows=st.lists(ROWS, min_size=1, max_size=3))
def test_who_rode_with_one_operator_only_need_not_be_looked_at(
    travelled: tuple[list[BagLine], dict[str, BagRide]], rows: list[str]
) -> None:
    lines, ridden = travelled
    alone = [
        BagLine(one.leg_id, one.kind, one.rule_id, one.bearer, "RAIL", one.network_id, one.service_date, one.amount, one.funded)
        for one in lines
    ]
    assert corrections(alone, ridden, agreed(*rows), CAPS, TUESDAY) == {}
