"""Collection without a store: rules, what events come to, and where an account that owes stands."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clearing.collection.cards import months_after
from clearing.collection.charges import CLEAR, Charge, Event, Mark, Refund, Standing, fold, is_due, loss_parts, standing
from clearing.collection.provider import WINDOW_MS, Notice, check_signature, request_key, sign, webhook_key
from clearing.collection.reconcile import read_report
from clearing.collection.rules import Rules, find_rules, load_rules
from fare_engine.errors import CollectionError, InputError
from tests.builders import HCMC
from tests.collecting import RULES

PARTIES = ("ACQ", "CITY", "SPONSOR", "RAIL")
CHARGE = Charge(charge_id="c", account_id="a", purpose="fares", service_date="2026-03-03", amount=100, source="s", made_at=1)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return written(tmp_path, RULES)


def written(folder: Path, text: str) -> Rules:
    (folder / "collection.toml").write_text(text, encoding="utf-8")
    return load_rules(folder / "collection.toml", PARTIES, "VND")


def event(kind: str, amount: int = 100, reference: str = "", number: int = 0) -> Event:
    return Event(
        event_id=f"{kind}/{reference}/{number}", charge_id="c", kind=kind, reference=reference, amount=amount, at=number  # type: ignore[arg-type]
    )  # fmt: skip


def refund(refund_id: str, amount: int) -> Refund:
    return Refund(
        refund_id=refund_id, charge_id="c", account_id="a", line_transaction="l", leg_id="g", amount=amount, bearer="b",
        reason="", service_date="2026-03-03", made_at=1,
    )  # fmt: skip


# ---- rules


def test_the_city_s_rules_hold_together_and_a_city_without_them_collects_nothing(tmp_path: Path) -> None:
    from fare_engine.tariff.files import load

    parties = load(HCMC).network.parties.keys()
    found = find_rules(HCMC, parties, "VND")
    assert found is not None
    assert found.provider.party in parties
    (tmp_path / "city").mkdir()
    assert find_rules(tmp_path / "city", parties, "VND") is None


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('party = "ACQ"', 'party = "NOBODY"', "provider.party"),
        ('fees_paid_by = "CITY"', 'fees_paid_by = "X"', "provider.fees_paid_by"),
        ('currency = "VND"', 'currency = "EUR"', "collection.currency"),
        ("deny_after = 2", "deny_after = 0", "charging.deny_after"),
        ("retry_days = [1, 3, 7]", "retry_days = [0]", "charging.retry_days"),
        ("write_off_days = 30", "write_off_days = 5", "debts.write_off_days"),
        ("most = 500_000", "most = 5", "top_up.most"),
        ("auto_amount = 50_000", "auto_amount = 600_000", "top_up.auto_amount"),
        ('fee_percent = "1.5"', 'fee_percent = "101"', "provider.fee_percent"),
        ('residual_to = "CITY"', 'residual_to = "X"', "cards.residual_to"),
        ('borne_by = "operator"', 'borne_by = "X"', "refunds.borne_by"),
        ("least = 1_000", "lest = 1_000", "not a collection.toml"),
    ],
)
def test_a_fault_in_the_rules_is_named_with_its_place(tmp_path: Path, old: str, new: str, place: str) -> None:
    assert old in RULES
    with pytest.raises(InputError) as caught:
        written(tmp_path, RULES.replace(old, new, 1))
    assert place in str(caught.value)


def test_a_fee_is_a_part_and_a_fixed_sum_rounded_as_the_rules_say(rules: Rules) -> None:
    assert [rules.fee(amount) for amount in (0, 5000, 5033, 5034)] == [100, 175, 175, 176]


# ---- events


def test_a_charge_is_what_its_events_say() -> None:
    assert fold(CHARGE, {}, []).state == "begun"
    assert fold(CHARGE, {}, [event("pending")]).state == "pending"
    assert fold(CHARGE, {}, [event("pending"), event("declined")]).state == "declined"
    assert fold(CHARGE, {}, [event("captured"), event("pending")]).state == "captured"
    assert fold(CHARGE, {}, [event("captured"), event("captured", number=1)]).left == 100


def test_money_that_was_taken_counts_though_it_was_said_to_be_declined() -> None:
    found = fold(CHARGE, {}, [event("declined"), event("captured")])
    assert (found.state, found.left) == ("captured", 100)
    assert [misfit.why for misfit in found.misfits] == ["declined_and_captured"]


def test_a_refund_before_its_capture_moves_nothing_and_then_what_it_is() -> None:
    early = [event("refunded", 40, "r")]
    found = fold(CHARGE, {"r": refund("r", 40)}, early)
    assert (found.effects, [misfit.why for misfit in found.misfits]) == ((), ["refund_before_capture"])
    later = fold(CHARGE, {"r": refund("r", 40)}, [*early, event("captured")])
    assert (later.left, later.misfits) == (60, ())


@pytest.mark.parametrize(
    ("moves", "why"),
    [
        ([("refunded", 100, "r1"), ("refunded", 100, "r2")], "refund_twice"),
        ([("refunded", 40, "unasked")], "refund_not_asked"),
        ([("refunded", 30, "r1")], "refund_otherwise"),
        ([("charged_back", 100, "b1"), ("charged_back", 100, "b2")], "chargeback_twice"),
        ([("refunded", 100, "r1"), ("charged_back", 100, "b1")], "chargeback_after_refund"),
        ([("charged_back", 100, "b1"), ("refunded", 100, "r1")], "refund_after_chargeback"),
        ([("charged_back", 101, "b1")], "chargeback_above_capture"),
        ([("charged_back", 0, "b1")], "chargeback_above_capture"),
        ([("won_back", 60, "b1")], "won_back_before_chargeback"),
        ([("charged_back", 60, "b1"), ("won_back", 60, "b2")], "won_back_before_chargeback"),
        ([("charged_back", 60, "b1"), ("won_back", 61, "b1")], "won_back_above_chargeback"),
        ([("charged_back", 60, "b1"), ("won_back", 0, "b1")], "won_back_above_chargeback"),
        ([("charged_back", 60, "b1"), ("won_back", 60, "b1"), ("won_back", 50, "b1")], "won_back_twice"),
        ([("charged_back", 99, "b1"), ("won_back", 98, "b1"), ("charged_back", 100, "b2")], "chargeback_twice"),
    ],
)
def test_what_would_give_more_than_was_taken_moves_nothing_and_is_named(moves: list[tuple[str, int, str]], why: str) -> None:
    asked = {name: refund(name, 100) for name in ("r1", "r2")}
    found = fold(CHARGE, asked, [event("captured"), *(event(*move) for move in moves)])
    assert [misfit.why for misfit in found.misfits] == [why]
    assert found.left >= 0


def test_what_was_won_back_can_be_refunded_or_charged_back_once_more() -> None:
    told = [event("captured"), event("charged_back", 100, "b1"), event("won_back", 100, "b1")]
    assert fold(CHARGE, {}, told).left == 100
    assert fold(CHARGE, {"r": refund("r", 40)}, [*told, event("refunded", 40, "r")]).left == 60
    again = [*told, event("charged_back", 100, "b2"), event("won_back", 30, "b2")]
    assert (fold(CHARGE, {}, again).left, fold(CHARGE, {}, again).misfits) == (30, ())


def test_what_was_won_back_before_its_chargeback_or_capture_waits_for_them() -> None:
    told = [event("won_back", 70, "b1"), event("charged_back", 100, "b1")]
    early = fold(CHARGE, {}, told)
    assert [misfit.why for misfit in early.misfits] == ["won_back_before_chargeback", "chargeback_before_capture"]
    late = fold(CHARGE, {}, [*told, event("captured")])
    assert ([effect.kind for effect in late.effects], late.left) == (["captured", "charged_back", "won_back"], 70)
    assert late.misfits == ()


def test_a_capture_of_another_amount_is_booked_as_it_was_taken_and_named() -> None:
    found = fold(CHARGE, {}, [event("captured", 90)])
    assert (found.left, [misfit.why for misfit in found.misfits]) == (90, ["captured_otherwise"])
    assert fold(CHARGE, {}, [event("captured", 0)]).state == "begun"


# ---- standing


def declined(*days: str) -> list[Mark]:
    return [Mark("declined", day, 5000) for day in days]


def test_who_owes_nothing_is_clear_whatever_was_before(rules: Rules) -> None:
    assert standing(rules, declined("2026-03-03", "2026-03-04"), 0, 0) == CLEAR


def test_declines_lead_through_the_schedule_to_the_deny_list_and_the_end(rules: Rules) -> None:
    days = ["2026-03-03", "2026-03-04", "2026-03-07", "2026-03-14"]
    found = [standing(rules, declined(*days[: n + 1]), 5000, 0) for n in range(4)]
    assert [one.next_try for one in found] == ["2026-03-04", "2026-03-07", "2026-03-14", None]
    assert [one.denied for one in found] == [False, True, True, True]
    assert {one.write_off_on for one in found} == {"2026-04-02"}
    assert [is_due(rules, found[0], 5000, day) for day in days[:2]] == [False, True]
    assert not is_due(rules, found[3], 5000, "2027-01-01")


def test_a_capture_begins_anew(rules: Rules) -> None:
    marks = [*declined("2026-03-03"), Mark("captured", "2026-03-04", 5000), *declined("2026-03-06")]
    found = standing(rules, marks, 9000, 0)
    assert (found.failures, found.since, found.denied) == (1, "2026-03-06", False)
    assert is_due(rules, standing(rules, marks[:2], 9000, 0), 9000, "2026-03-05")


def test_a_chargeback_denies_at_once_and_is_not_tried_again(rules: Rules) -> None:
    marks = [Mark("captured", "2026-03-03", 5000), Mark("charged_back", "2026-03-20", 5000)]
    found = standing(rules, marks, 5000, 0)
    assert (found.denied, found.next_try) == (True, None)
    assert not is_due(rules, found, 5000, "2026-06-01")


def test_a_debt_that_was_given_up_still_denies(rules: Rules) -> None:
    assert standing(rules, declined("2026-03-03"), 0, 5000).denied


def test_small_totals_wait(rules: Rules) -> None:
    assert not is_due(rules, CLEAR, 999, "2026-03-03")
    assert is_due(rules, CLEAR, 1000, "2026-03-03")


@pytest.mark.parametrize(
    ("first", "owed", "parts"),
    [
        (5000, 5000, {"CITY": 5000}),
        (5000, 12_000, {"CITY": 5000, "SPONSOR": 7000}),
        (20_000, 30_000, {"CITY": 8000, "SPONSOR": 22_000}),
        (20_000, 3000, {"CITY": 3000}),
    ],
)
def test_the_first_unpaid_day_has_a_bearer_of_its_own_up_to_its_limit(
    rules: Rules, first: int, owed: int, parts: dict[str, int]
) -> None:
    assert loss_parts(rules, Standing(first_amount=first), owed) == parts
    assert sum(parts.values()) == owed


# ---- the wire


def test_a_signature_holds_for_its_body_path_and_time_only() -> None:
    key, now = webhook_key(b"s" * 32), 1_000_000_000
    signature = sign(key, str(now), "POST", "/p", b"body")
    check_signature(key, str(now), signature, "/p", b"body", now + WINDOW_MS)
    for wrong, cause in [
        ((request_key(b"s" * 32), str(now), signature, "/p", b"body", now), "bad_signature"),
        ((key, str(now), signature, "/p", b"bodY", now), "bad_signature"),
        ((key, str(now), signature, "/q", b"body", now), "bad_signature"),
        ((key, str(now + 1), signature, "/p", b"body", now), "bad_signature"),
        ((key, str(now), "", "/p", b"body", now), "bad_signature"),
        ((key, str(now), signature, "/p", b"body", now + WINDOW_MS + 1), "stale"),
        ((key, str(now), signature, "/p", b"body", now - WINDOW_MS - 1), "stale"),
        ((key, "soon", sign(key, "soon", "POST", "/p", b""), "/p", b"", now), "stale"),
    ]:
        with pytest.raises(CollectionError) as caught:
            check_signature(*wrong)
        assert caught.value.cause == cause


@pytest.mark.parametrize(
    "changed",
    [{"amount": -1}, {"amount": 1 << 60}, {"kind": "refunded"}, {"kind": "paid"}, {"event_id": ""}, {"more": 1}, {"at": "x"},
     {"reference": "r"}, {"charge_id": "c" * 101}],
)  # fmt: skip
def test_a_notice_that_no_event_can_be_is_refused(changed: dict[str, object]) -> None:
    good = {"event_id": "e", "charge_id": "c", "kind": "captured", "amount": 1, "at": 1}
    assert msgspec.json.decode(msgspec.json.encode(good), type=Notice).as_event(2).received_at == 2
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(good | changed), type=Notice)


def test_a_report_is_read_whole_or_its_faults_are_named() -> None:
    head = "kind,charge_id,reference,amount,at\n"
    assert [row.amount for row in read_report(head + "captured,c,,100,1\n", "f")] == [100]
    for text, problem in [
        ("", "columns"),
        (head + "captured,c,,x,1\n", "f:2"),
        (head + "paid,c,,1,1\n", "f:2"),
        (head + "a\n", "f:2"),
    ]:
        with pytest.raises(InputError) as caught:
            read_report(text, "f")
        assert problem in str(caught.value)


def test_a_term_ends_on_the_same_day_or_the_month_s_last() -> None:
    assert months_after("2026-03-31", 60) == "2031-03-31"
    assert months_after("2026-01-31", 1) == "2026-02-28"
    assert months_after("2026-12-15", 1) == "2027-01-15"
