"""A charge's money under any order and repetition of its events."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from clearing.collection.charges import Charge, Event, Refund, fold

AMOUNT = 100
CHARGE = Charge(charge_id="c", account_id="a", purpose="fares", service_date="2026-03-03", amount=AMOUNT, source="s", made_at=1)


def asked(amounts: Sequence[int]) -> dict[str, Refund]:
    """Refunds of these amounts, as we would have asked for them."""
    return {
        f"r{number}": Refund(
            refund_id=f"r{number}", charge_id="c", account_id="a", line_transaction="l", leg_id="g", amount=amount, bearer="b",
            reason="", service_date="2026-03-03", made_at=1,
        )
        for number, amount in enumerate(amounts)
    }  # fmt: skip


@st.composite
def stories(draw: st.DrawFn) -> tuple[dict[str, Refund], list[Event]]:
    """What a provider may tell of a charge, right or wrong, in any order, some of it twice."""
    refunds = asked(draw(st.lists(st.integers(1, AMOUNT), max_size=3)))
    kinds = st.sampled_from(["captured", "declined", "pending"])
    told = [(kind, "", AMOUNT) for kind in draw(st.lists(kinds, max_size=4))]
    told += [("refunded", name, refund.amount) for name, refund in refunds.items() if draw(st.booleans())]
    names = st.sampled_from(["b1", "b2", "r0", "r9"])
    kinds = st.sampled_from(["refunded", "charged_back", "won_back"])
    told += draw(st.lists(st.tuples(kinds, names, st.sampled_from([30, AMOUNT]) | st.integers(0, 150)), max_size=6))
    told += draw(st.lists(st.sampled_from(told), max_size=4)) if told else []
    shuffled = draw(st.permutations(told))
    return refunds, [
        Event(event_id=str(number), charge_id="c", kind=kind, reference=reference, amount=amount, at=number)  # type: ignore[arg-type]
        for number, (kind, reference, amount) in enumerate(shuffled)
    ]


@given(stories())
def test_what_is_booked_only_grows_and_never_gives_back_more_than_was_taken(story: tuple[dict[str, Refund], list[Event]]) -> None:
    refunds, events = story
    before = fold(CHARGE, refunds, [])
    for count in range(1, len(events) + 1):
        after = fold(CHARGE, refunds, events[:count])
        assert after.effects[: len(before.effects)] == before.effects
        assert 0 <= after.left <= AMOUNT
        before = after
    captures = [effect for effect in before.effects if effect.kind == "captured"]
    assert len(captures) == any(event.kind == "captured" for event in events)
    moved = {(effect.kind, effect.reference): effect.amount for effect in before.effects}
    assert len(moved) == len(before.effects)
    for (kind, reference), amount in moved.items():
        assert kind != "won_back" or amount <= moved["charged_back", reference]
    if any(effect.kind != "captured" for effect in before.effects):
        assert before.effects[0].kind == "captured"


@given(stories())
def test_the_same_events_again_move_nothing(story: tuple[dict[str, Refund], list[Event]]) -> None:
    refunds, events = story
    again = [msgspec.structs.replace(event, event_id=f"again/{event.event_id}") for event in events]
    assert fold(CHARGE, refunds, events + again).effects == fold(CHARGE, refunds, events).effects


@given(st.permutations(["captured", "declined", "r0", "r1", "b1", "w1", "b2"]))
def test_events_that_fit_come_to_the_same_in_any_order(order: list[str]) -> None:
    refunds = asked([30, 20])
    of_kind = {
        "r0": ("refunded", 30),
        "r1": ("refunded", 20),
        "b1": ("charged_back", 70),
        "w1": ("won_back", 70),
        "b2": ("charged_back", 50),
    }
    events = [
        Event(
            event_id=name,
            charge_id="c",
            kind=of_kind.get(name, (name, 0))[0],  # type: ignore[arg-type]
            reference=name.replace("w", "b") if name in of_kind else "",
            amount=of_kind.get(name, (name, AMOUNT))[1],
            at=1,
        )
        for name in order
    ]
    found = fold(CHARGE, refunds, events)
    assert (found.state, found.left, len(found.effects)) == ("captured", 0, 6)
    assert [misfit.why for misfit in found.misfits] == ["declined_and_captured"]


@given(st.lists(st.sampled_from(["captured", "declined", "pending"]), max_size=6))
def test_a_decided_charge_stays_decided(kinds: list[str]) -> None:
    events = [Event(event_id=str(n), charge_id="c", kind=kind, amount=AMOUNT, at=n) for n, kind in enumerate(kinds)]  # type: ignore[arg-type]
    states = [fold(CHARGE, {}, events[:count]).state for count in range(len(events) + 1)]
    rank = {"begun": 0, "pending": 1, "declined": 2, "captured": 3}
    assert [rank[state] for state in states] == sorted(rank[state] for state in states)
