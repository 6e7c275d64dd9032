"""However facts come in, the books end the same: what stands, what it sums to, and what was reversed on the way."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fare_engine.booking import Entitlement, Movement, Record, book, charge, decode, encode, price, with_categories
from fare_engine.facts import Fact, Purchase, Tap
from fare_engine.ledger import postings
from fare_engine.service_day import parse_instant
from fare_engine.tariff.compile import CompiledTariff
from tests.builders import facts, little_tariff, row

DAY_MS = 86_400_000
WORDS = st.sampled_from(
    [
        "board 10", "board 11", "board F cash", "enter A", "leave C", "enter B card=two", "leave C card=two", "leave A",
        "board 10 emv student x2", "buy DAY", "buy BOOK", "board P", "cancel 1", "cancel 2", "cancel 4",
    ]
)  # fmt: skip
MOMENTS = st.tuples(st.integers(2, 5), st.integers(0, 23), st.sampled_from([0, 10, 20, 30])).map(
    lambda moment: f"2026-03-{moment[0]:02} {moment[1]:02}:{moment[2]:02}"
)
DAYS = st.lists(st.tuples(MOMENTS, WORDS).map(" ".join), min_size=1, max_size=12).map("\n".join)
EXAMPLES = settings(max_examples=70, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def tariff(tmp_path_factory: pytest.TempPathFactory) -> CompiledTariff:
    """The little city with joint tickets, caps, a quota, a pass, a book and holds."""
    return little_tariff(
        tmp_path_factory.mktemp("city"),
        row("discounts", rule_id="first", kind="amount", value=700, bearer="SPONSOR", quota_per_day=1),
        row(
            "joining_rules",
            rule_id="joint",
            from_networks=("bus", "metro"),
            to_networks=("metro", "bus"),
            window_minutes=60,
            window_from="entry",
            off_first=1000,
            off_second=2000,
            bearer="CITY",
        ),
        row("caps", rule_id="day", period="service_day", amount=12_000),
        row("caps", rule_id="week", period="week", amount=20_000, bearer="CITY"),
        row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro",), days=3),
        row("products", product_id="BOOK", kind="book", price=10_000, networks=("bus",), trips=3),
        metro='hold = "highest_fare"\n',
    )


def standing(tariff: CompiledTariff, arrivals: Iterable[list[Fact]], as_of: int) -> tuple[list[tuple], list[Movement]]:
    """Arrivals one after the other, each refolded and booked as the store does it, through the record's bytes: what stands
    in the end, without how often it was moved, and every movement."""
    record, movements = Record(), []
    for arrived in arrivals:
        known = {fact.fact_id for fact in record.facts}
        record.facts += [fact for fact in arrived if fact.fact_id not in known]
        movements += book("anna", record, price(tariff, record, as_of))
        record = decode(encode(record))
    stood = [
        (key, booked.line, booked.service_date, booked.operator_id, booked.network_id)
        for key, booked in sorted(record.booked.items())
        if booked.generation % 2 == 0
    ]
    return stood, movements


def sums(movements: Iterable[Movement]) -> dict[str, int]:
    """Each account's balance after all movements; accounts at zero left out."""
    found: dict[str, int] = defaultdict(int)
    for movement in movements:
        for posting in postings(movement.line, "rider:ana", movement.service_date, movement.network_id):
            found[posting.debit] += posting.amount
            found[posting.credit] -= posting.amount
    return {account: amount for account, amount in sorted(found.items()) if amount}


@EXAMPLES
@given(day=DAYS, seed=st.integers(0, 2**16))
def test_any_order_and_splitting_of_arrivals_ends_with_the_same_lines_and_the_same_sums(
    tariff: CompiledTariff, day: str, seed: int
) -> None:
    found = facts(day)
    as_of = max(fact.at for fact in found) + DAY_MS
    at_once, first = standing(tariff, [found], as_of)
    chance = random.Random(seed)
    arrivals: list[list[Fact]] = [[]]
    for fact in chance.sample(found, len(found)):
        if chance.random() < 0.5:
            arrivals.append([])
        arrivals[-1] += [fact] * chance.randint(1, 2)
    bit_by_bit, second = standing(tariff, [*arrivals, chance.sample(found, len(found) // 2)], as_of)
    assert bit_by_bit == at_once
    assert sums(second) == sums(first)


@EXAMPLES
@given(day=DAYS, seed=st.integers(0, 2**16))
def test_time_that_passes_bit_by_bit_ends_like_time_that_passes_at_once(tariff: CompiledTariff, day: str, seed: int) -> None:
    found = sorted(facts(day), key=lambda fact: fact.at)
    as_of = found[-1].at + 4 * DAY_MS
    record, movements = Record(), []
    for fact in found:
        record.facts.append(fact)
        movements += book("anna", record, price(tariff, record, fact.at))
    chance = random.Random(seed)
    for moment in sorted(chance.randint(found[-1].at, as_of) for _ in range(3)):
        movements += book("anna", record, price(tariff, record, moment))
    movements += book("anna", record, price(tariff, record, as_of))
    assert sums(movements) == sums(standing(tariff, [found], as_of)[1])


@EXAMPLES
@given(day=DAYS, seed=st.integers(0, 2**16))
def test_every_line_is_booked_and_reversed_in_turn_and_reversals_balance(tariff: CompiledTariff, day: str, seed: int) -> None:
    found = facts(day)
    as_of = max(fact.at for fact in found) + DAY_MS
    _, movements = standing(tariff, [[fact] for fact in random.Random(seed).sample(found, len(found))], as_of)
    by_line: dict[str, list[Movement]] = defaultdict(list)
    for movement in movements:
        by_line[movement.line_id].append(movement)
    for moves in by_line.values():
        assert [move.generation for move in moves] == list(range(len(moves)))
        for booked, reversal in zip(moves[::2], moves[1::2], strict=False):
            assert (reversal.line.amount, reversal.line.funded) == (-booked.line.amount, -booked.line.funded)
            assert reversal.service_date == booked.service_date
    ids = [movement.transaction_id for movement in movements]
    assert len(set(ids)) == len(ids)


@EXAMPLES
@given(day=DAYS)
def test_booking_the_same_again_moves_nothing(tariff: CompiledTariff, day: str) -> None:
    record = Record(facts=facts(day))
    as_of = max(fact.at for fact in record.facts) + DAY_MS
    movements = book("anna", record, price(tariff, record, as_of))
    assert charge(movements) == sum(line.amount for line in price(tariff, record, as_of).lines)
    assert book("anna", record, price(tariff, record, as_of)) == []


def test_a_late_bus_tap_makes_a_joint_ticket_and_reverses_nothing_that_still_holds(tariff: CompiledTariff) -> None:
    bus, *metro = facts("07:00 board 10\n07:20 enter A\n07:40 leave C")
    record = Record(facts=[*metro])
    assert charge(book("anna", record, price(tariff, record, metro[-1].at))) == 9000 - 700
    record.facts.append(bus)
    late = book("anna", record, price(tariff, record, metro[-1].at))
    assert [(move.line.kind, move.line.amount) for move in late if move.line.leg_id == "1"] == [
        ("list_fare", 5000),
        ("discount", -700),
        ("transfer", -1000),
    ]
    assert charge(late) == 5000 - 700 - 1000 - 2000 + 700


def test_a_line_that_comes_and_goes_keeps_its_id_and_counts_its_movements(tariff: CompiledTariff) -> None:
    ride, cancel = facts("07:00 board 10\n07:01 cancel 1")
    record = Record(facts=[ride])
    book("anna", record, price(tariff, record, ride.at))
    record.facts.append(cancel)
    gone = book("anna", record, price(tariff, record, ride.at))
    assert sorted(move.line.amount for move in gone) == [-5000, 700]
    record.facts.remove(cancel)
    again = book("anna", record, price(tariff, record, ride.at))
    assert {move.generation for move in again} == {2}
    assert charge(again) == 4300


def test_a_rider_has_the_category_that_held_at_the_tap_s_own_time(tariff: CompiledTariff) -> None:
    found = facts("07:00 board 10\n08:00 board 10\n09:00 buy BOOK\n10:00 board 10\n10:01 cancel 4")
    at = {hour: parse_instant(f"2026-03-03T{hour:02}:00:00+07:00") for hour in (8, 9, 10)}
    student, elderly = Entitlement("student", at[8], at[10]), Entitlement("elderly", at[9], at[10])
    record = Record(facts=found, entitlements=[student, elderly])
    categories = [fact.rider_category for fact in with_categories(record, "adult") if isinstance(fact, Tap | Purchase)]
    assert categories == ["adult", "student", "elderly", "adult"]
    without = with_categories(Record(facts=found), "adult")
    assert list(without) == found


def test_a_record_is_read_back_as_it_was_written(tariff: CompiledTariff) -> None:
    record = Record(facts=facts("07:00 board 10\n07:20 enter A\n07:21 cancel 1"), entitlements=[Entitlement("student", 0, None)])
    book("anna", record, price(tariff, record, record.facts[-1].at))
    assert decode(encode(record)) == record
