"""Whose a pool's money is: exactly, in whole đồng, and in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clearing.pools import EMPTY, PoolState, add, by_weights, own, settle
from fare_engine.money import PARTS

WEIGHTS = st.dictionaries(st.sampled_from(["RAIL", "BUSCO", "COOP", "BOATS"]), st.integers(0, 10**6), max_size=4)
DAYS = st.lists(st.tuples(st.integers(-(10**6), 10**6), WEIGHTS), min_size=1, max_size=30)
AGREED = {"RAIL": 2, "BUSCO": 1}


def units(shares: dict[str, int]) -> dict[str, int]:
    """Whole units as shares are kept."""
    return {party: amount * PARTS for party, amount in shares.items()}


def test_own_legs_are_each_operator_s_own() -> None:
    assert own([("RAIL", 9000), ("BUSCO", 5000), ("RAIL", -2000)]) == {"RAIL": 7000 * PARTS, "BUSCO": 5000 * PARTS}
    assert own([]) == {}


def test_a_total_goes_by_the_day_s_weights_else_by_the_agreed_ones_else_in_equal_parts() -> None:
    assert by_weights(100, {"RAIL": 3, "BUSCO": 1}, AGREED) == units({"RAIL": 75, "BUSCO": 25})
    assert by_weights(90, {}, AGREED) == units({"RAIL": 60, "BUSCO": 30})
    assert by_weights(90, {"COOP": 0, "BUSCO": -5}, AGREED) == units({"RAIL": 60, "BUSCO": 30})
    assert by_weights(90, {"COOP": 0, "BUSCO": 0}, {}) == units({"COOP": 45, "BUSCO": 45})
    assert by_weights(0, {}, {}) == {}


def test_a_weight_below_zero_neither_pays_nor_takes() -> None:
    assert by_weights(90, {"RAIL": 10, "BUSCO": -5}, {}) == units({"RAIL": 90})


def test_shares_that_cancel_out_leave_nobody_behind() -> None:
    state, paid = settle("pool", PoolState({"RAIL": 7}, {"RAIL": 0}), {"RAIL": -7, "BUSCO": PARTS})
    assert (state.exact, paid) == (units({"BUSCO": 1}), {"BUSCO": 1})


def test_the_example_of_the_documentation() -> None:
    change = by_weights(-10_000, {"metro": 40_000, "bus": 20_000}, {})
    first, paid = settle("pool", EMPTY, change)
    assert paid == {"bus": -3333, "metro": -6667}
    second, paid = settle("pool", first, change)
    assert second.published == {"bus": -6667, "metro": -13_333}
    assert paid == {"bus": -3334, "metro": -6666}


@given(days=DAYS, salt=st.text(max_size=3))
def test_every_closing_s_shares_sum_to_its_money_and_each_party_s_error_stays_below_one_unit_for_ever(
    days: list[tuple[int, dict[str, int]]], salt: str
) -> None:
    state = EMPTY
    exact: dict[str, int] = {}
    paid_so_far: dict[str, int] = {}
    for total, weights in days:
        change = by_weights(total, weights, AGREED)
        state, paid = settle(salt, state, change)
        assert sum(paid.values()) == total
        assert 0 not in paid.values()
        add(exact, change)
        for party, amount in paid.items():
            paid_so_far[party] = paid_so_far.get(party, 0) + amount
        for party in {*exact, *paid_so_far}:
            assert abs(paid_so_far.get(party, 0) * PARTS - exact.get(party, 0)) < PARTS
    assert {party: amount for party, amount in state.published.items() if amount} == {
        party: amount for party, amount in sorted(paid_so_far.items()) if amount
    }


@given(days=DAYS)
def test_a_day_that_is_shared_otherwise_afterwards_moves_only_the_difference(
    days: list[tuple[int, dict[str, int]]],
) -> None:
    total, weights = days[0]
    shared, _ = settle("pool", EMPTY, by_weights(total, weights, AGREED))
    moved = by_weights(total, AGREED, {})
    add(moved, by_weights(-total, weights, AGREED))
    state, paid = settle("pool", shared, moved)
    assert sum(paid.values()) == 0
    assert settle("pool", EMPTY, by_weights(total, AGREED, {}))[0] == state


def test_a_party_that_no_longer_has_a_share_gives_back_what_was_published() -> None:
    before = PoolState(units({"RAIL": 5}), {"RAIL": 5})
    state, paid = settle("pool", before, units({"RAIL": -5, "BUSCO": 5}))
    assert paid == {"BUSCO": 5, "RAIL": -5}
    assert state.exact == units({"BUSCO": 5})
