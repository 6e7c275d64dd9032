"""What the auditor says a day should have cost, worked out by hand from the published tables and docs/tariff.md."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from clearing.auditor import (
    Audit,
    AuditTariff,
    RecordedCancellation,
    RecordedFact,
    RecordedPurchase,
    RecordedTap,
    audit_traveller,
)
from fare_engine.errors import TariffError
from tests.builders import row, write_city

CITY = Path(__file__).parent.parent.parent / "tariffs" / "hcmc"
IN_FORCE = AuditTariff.load(CITY)
ADOPTED = AuditTariff.load(CITY, ["proposal-2026-03"])


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+07:00").timestamp()) * 1000


def _fact(number: int, line: str) -> RecordedFact:
    """`2026-03-03 07:00 entry L1-01 emv adult`; a board names a route, a buy a product, a cancel the number of a tap."""
    day, clock, action, what, *rest = line.split()
    media, category, persons = [*rest, "emv", "adult", "1"][: len(rest)] + ["emv", "adult", "1"][len(rest) :]
    stamp = {"fact_id": str(number), "at_ms": _instant(f"{day} {clock}")}
    place = {"device_id": "d1", "epoch": "a", "sequence": number}
    if action == "cancel":
        return RecordedCancellation(**stamp, **place, tap_id=what)
    rider = {"token_id": "card", "media": media, "rider_category": category}
    if action == "buy":
        return RecordedPurchase(**stamp, **place, **rider, product_id=what)
    stop, route = (None, what) if action == "board" else (what, None)
    return RecordedTap(**stamp, **place, **rider, action=action, stop_id=stop, route_id=route, persons=int(persons))


def audit(tariff: AuditTariff, day: str, as_of: str) -> Audit:
    lines = [line.strip() for line in day.strip().splitlines()]
    return audit_traveller(tariff, [_fact(number, line) for number, line in enumerate(lines, 1)], _instant(as_of))


def bill(found: Audit) -> list[str]:
    """One line a leg: status, what the rider pays, what is held, what others pay."""
    return [
        " ".join(
            [leg.status, "?" if leg.charge is None else str(leg.charge)]
            + ([f"held {leg.held}"] if leg.held else [])
            + [f"{bearer} {amount}" for bearer, amount in sorted(leg.funded.items())]
        )
        for _, leg in sorted(found.legs.items(), key=lambda item: int(item[0]))
    ]


EXAMPLES = [
    pytest.param(
        ADOPTED,
        """2026-03-03 07:00 board 1
           2026-03-03 09:00 entry L1-01
           2026-03-03 09:20 exit L1-09""",
        ["complete 3000 AU-BUDGET 3000", "complete 6000 AU-BUDGET 3000"],
        id="joint ticket, bus then metro, entered at the last instant: 6,000 and 9,000 become 3,000 and 6,000",
    ),
    pytest.param(
        ADOPTED,
        """2026-03-03 07:00 board 1
           2026-03-03 09:01 entry L1-01
           2026-03-03 09:20 exit L1-09""",
        ["complete 6000", "complete 9000"],
        id="no joint ticket a minute after the window",
    ),
    pytest.param(
        ADOPTED,
        """2026-03-03 07:00 entry L1-01
           2026-03-03 07:30 exit L1-14
           2026-03-03 09:30 board 79""",
        ["complete 16000 AU-BUDGET 3000", "complete 5000 AU-BUDGET 3000"],
        id="joint ticket, metro then bus: two hours from the exit",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 board 1
           2026-03-03 07:20 entry L1-01
           2026-03-03 07:40 exit L1-09""",
        ["complete 5000", "complete 9000"],
        id="without the proposal every leg is paid in full",
    ),
    pytest.param(
        ADOPTED,
        """2026-03-03 06:00 entry L1-01
           2026-03-03 06:30 exit L1-14
           2026-03-03 09:00 entry L1-14
           2026-03-03 09:30 exit L1-01
           2026-03-03 13:00 entry L1-01
           2026-03-03 13:30 exit L1-14
           2026-03-03 18:00 entry L1-14
           2026-03-03 18:30 exit L1-01""",
        ["complete 19000", "complete 19000", "complete 12000", "complete 0"],
        id="the daily cap of 50,000, reached on the third ride and borne by the operators",
    ),
    pytest.param(
        ADOPTED,
        """2026-03-03 06:00 entry L1-01
           2026-03-03 06:30 exit L1-14
           2026-03-03 09:00 entry L1-14
           2026-03-03 09:30 exit L1-01
           2026-03-03 13:00 board 1
           2026-03-03 13:10 board 1
           2026-03-03 13:20 entry L1-01
           2026-03-03 13:40 exit L1-02""",
        # 19,000 + 19,000 + 6,000 + 6,000 = 50,000; then 6,000 − 3,000 more on the metro and 3,000 less on the bus
        ["complete 19000", "complete 19000", "complete 6000", "complete 3000 AU-BUDGET 3000", "complete 3000 AU-BUDGET 3000"],
        id="at the cap a joint ticket still moves its own money",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 board 1 qr elderly
           2026-03-03 07:20 entry L1-01 qr elderly
           2026-03-03 07:40 exit L1-09 qr elderly
           2026-03-03 09:00 board 79 qr student""",
        ["complete 0 AU-BUDGET 5000", "complete 0 AU-BUDGET 9000", "complete 3000 AU-BUDGET 4000"],
        id="concessions: free for the elderly, 3,000 for a student on a bus of 7,000",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 entry L1-01
           2026-03-03 12:00 entry L1-07
           2026-03-03 12:20 exit L1-01""",
        ["missing_exit 19000", "complete 6000"],
        id="a missing exit costs the dearest fare from there",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 entry L1-01
           2026-03-03 10:01 exit L1-02
           2026-03-03 10:02 exit L1-02""",
        ["late_exit 19000", "missing_entry 19000"],
        id="an exit after the longest stay closes the leg, once",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 entry L1-01
           2026-03-03 10:00 exit L1-02""",
        ["complete 6000"],
        id="an exit exactly at the longest stay is in time",
    ),
    pytest.param(
        IN_FORCE,
        "\n".join(["2026-03-03 06:00 buy BUS-B30-7", *[f"2026-03-03 {hour:02}:00 board 1" for hour in range(7, 9)]]),
        ["complete 0 product:BUS-B30-7 5250", "complete 0 product:BUS-B30-7 5250"],
        id="a book's coupon pays the leg and is worth a thirtieth of the book",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 06:00 buy ML1-1D
           2026-03-04 08:00 entry L1-01
           2026-03-04 08:20 exit L1-14
           2026-03-05 02:20 entry L1-14
           2026-03-05 02:50 exit L1-01
           2026-03-05 08:00 entry L1-01
           2026-03-05 08:20 exit L1-14""",
        ["complete 0", "complete 0", "complete 19000"],
        id="a day pass lasts for the service day of its first ride, and a ride belongs to the day of its first tap",
    ),
    pytest.param(IN_FORCE, "2026-03-03 09:30 entry L1-04", ["open 0 held 16000"], id="a hold is open"),
    pytest.param(
        IN_FORCE,
        """2026-03-03 06:00 buy ML1-1D
           2026-03-03 09:30 entry L1-04""",
        ["open 0"],
        id="no hold where a pass will pay",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-06 06:00 board 1 wallet:zalopay
           2026-03-06 06:10 board 1 wallet:momo
           2026-03-06 07:00 board 1 wallet
           2026-03-06 08:00 board 1 wallet
           2026-03-06 09:00 board 1 wallet
           2026-03-06 09:10 board 1 wallet""",
        ["complete 0 PS-WALLETS 5000", "complete 5000", *["complete 0 PS-WALLETS 5000"] * 3, "complete 5000"],
        id="Cashless Friday: four free rides, none by an excepted wallet",
    ),
    pytest.param(
        IN_FORCE,
        """2026-03-03 07:00 board 1 qr student 3
           2026-03-03 07:10 board DL01
           2026-03-03 07:20 board 1
           2026-03-03 07:20 cancel 3""",
        ["complete 13000 AU-BUDGET 2000", "unknown ?"],
        id="companions pay the list fare, an unknown price is not zero, a cancelled tap is nothing",
    ),
]


@pytest.mark.parametrize(("tariff", "day", "expected"), EXAMPLES)
def test_a_day_costs_what_the_documentation_says(tariff: AuditTariff, day: str, expected: list[str]) -> None:
    last = day.strip().splitlines()[-1].split()
    assert bill(audit(tariff, day, f"{last[0]} {last[1]}")) == expected


def test_the_passing_of_time_charges_a_missing_exit() -> None:
    entry = "2026-03-03 07:00 entry L1-04"
    assert bill(audit(IN_FORCE, entry, "2026-03-03 10:00")) == ["open 0 held 16000"]
    assert bill(audit(IN_FORCE, entry, "2026-03-03 10:01")) == ["missing_exit 16000"]


def test_a_leg_names_its_day_operator_and_version() -> None:
    leg = audit(ADOPTED, "2026-03-02 02:29 entry L1-01", "2026-03-02 02:30").legs["1"]
    assert (leg.service_date, leg.operator_id, leg.version) == ("2026-03-01", "OP-HURC1", "proposal-2026-03")
    assert audit(ADOPTED, "2026-03-01 02:29 board 1", "2026-03-01 02:30").legs["1"].version == "2019-now"


def test_a_leg_names_its_persons_how_far_it_went_and_the_ride_that_began_its_journey() -> None:
    found = audit(
        ADOPTED,
        """2026-03-03 07:00 entry L1-01 emv adult 2
           2026-03-03 07:10 exit L1-02
           2026-03-03 07:20 board 1 emv adult 3
           2026-03-03 12:00 entry L1-02 emv student
           2026-03-03 12:10 exit L1-01
           2026-03-03 13:00 entry L1-01""",
        "2026-03-03 18:00",
    ).legs
    told = [(leg.persons, leg.rider_category, leg.route_id, leg.distance_m, leg.journey) for leg in found.values()]
    assert told == [
        (2, "adult", None, 694, "1"),
        (3, "adult", "1", None, "1"),
        (1, "student", None, 694, "4"),
        (1, "adult", None, None, "6"),
    ]


def test_a_journey_goes_on_from_ride_to_ride_and_a_ride_without_a_price_has_no_distance(tmp_path: Path) -> None:
    fields = {"from_networks": ("bus", "metro"), "to_networks": ("bus", "metro"), "window_minutes": 60, "window_from": "entry"}
    joint = row("joining_rules", rule_id="joint", **fields, off_second=1000, max_transfers=2, bearer="CITY")
    tariff = AuditTariff.load(write_city(tmp_path, joint))
    found = audit(
        tariff,
        """2026-03-03 07:00 board 10
           2026-03-03 07:20 entry A
           2026-03-03 07:30 exit B
           2026-03-03 07:40 board 11
           2026-03-03 07:50 board 10""",
        "2026-03-03 09:00",
    ).legs
    assert [leg.journey for leg in found.values()] == ["1", "1", "1", "5"]
    taps = [_fact(1, "2026-03-03 08:00 entry A"), replace(_fact(2, "2026-03-03 08:10 exit X"), route_id="M")]
    leg = audit_traveller(tariff, taps, _instant("2026-03-03 09:00")).legs["1"]
    assert (leg.status, leg.distance_m) == ("unknown", None)


def test_a_rule_that_takes_something_off_is_named_with_its_bearer() -> None:
    pupil = audit(ADOPTED, "2026-03-03 07:00 board 1 emv student", "2026-03-03 08:00").legs["1"]
    assert pupil.off == (("discount", "student-bus", "AU-BUDGET", 3000),)
    day = "2026-03-03 07:00 board 1\n2026-03-03 07:20 entry L1-01\n2026-03-03 07:30 exit L1-08"
    joined = audit(ADOPTED, day, "2026-03-03 08:00").legs
    assert [leg.off for leg in joined.values()] == [(("transfer", "joint-bus-metro", "AU-BUDGET", 3000),)] * 2


def test_how_far_it_is_between_stops_the_table_says_in_either_direction_else_the_great_circle(tmp_path: Path) -> None:
    table = "from_stop_id,to_stop_id,km\nA,B,1.4\nB,C,2\nC,B,3.0004\n"
    tariff = AuditTariff.load(write_city(tmp_path, files={"network/distances.csv": table}))
    assert (tariff.metres("A", "B"), tariff.metres("B", "A")) == (1400, 1400)
    assert (tariff.metres("B", "C"), tariff.metres("C", "B")) == (2000, 3000)
    assert tariff.metres("A", "C") == 3117  # 0.02 degrees each way at 10.78 degrees north: 2,223.9 m by 2,184.7 m
    assert tariff.metres("A", "A") == 0
    assert (tariff.metres("A", "nowhere"), tariff.metres(None, "A"), tariff.metres("A", None)) == (None, None, None)


def test_sales_and_taps_that_mean_nothing_are_named() -> None:
    found = audit(
        IN_FORCE,
        """2026-03-03 06:00 buy ML1-3D
           2026-03-03 06:00 buy JNT-1D
           2026-03-03 09:30 exit SWB1-01""",
        "2026-03-03 10:00",
    )
    assert {sale.sale_id: sale.charge for sale in found.sales.values()} == {"1": 90_000}
    assert found.ignored == {"2", "3"}
    assert found.legs == {}


@pytest.mark.parametrize("adopt", [["no-such-version"], ["proposal-2026-03", "x"]])
def test_an_unknown_version_is_not_adopted(adopt: Collection[str]) -> None:
    with pytest.raises(TariffError, match="no such version"):
        AuditTariff.load(CITY, adopt)
