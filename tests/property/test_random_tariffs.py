"""What must hold of every price under every tariff: tariffs are drawn at random from all kinds of rule, not only from those that
some city has (`tests.tariff_strategies`)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fare_engine.facts import Fact, Purchase, in_order
from fare_engine.money import rounded_to
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Leg, Line, line_id
from fare_engine.pricing.state import State
from fare_engine.service_day import monday_of, month_of, to_date
from fare_engine.tariff.compile import PERIODS, CompiledTariff, CompiledVersion, ReadyBest, ReadyCap, Terms
from fare_engine.tariff.conditions import Ready
from fare_engine.tariff.model import AS_ONE, BestOf, Cap, Rebate, Tariff
from fare_engine.tariff.prices import NoPrice
from tests.tariff_strategies import DAY, EVERYTHING, HOUR, World, a_world, worlds

WAITS = (0, 1, HOUR, 3 * HOUR, DAY, 9 * DAY, 70 * DAY)
"""How long after the last fact a traveller is looked at: at once, or when all that time alone changes has happened."""
ONE_WINDOW = EVERYTHING._replace(best_of=1, rewards=0, rebates=0, credits=False)
"""Nothing that looks at what is left to pay after a window with candidates."""


def sample(examples: int) -> Callable[..., Any]:
    """The same examples on every run: what fails, fails for everybody."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def proof(examples: int) -> Callable[..., Any]:
    """New examples on every run; a failure prints its seed."""
    return settings(max_examples=examples, database=None, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


def last(facts: Iterable[Fact]) -> int:
    """The instant of the last fact."""
    return max(fact.at for fact in facts)


def lines_of_legs(folded: Folded) -> dict[str, list[Line]]:
    """The lines of each leg and sale."""
    found: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        found[line.leg_id].append(line)
    return found


def total(lines: Iterable[Line], *kinds: str) -> int:
    """What the lines of some kinds sum to."""
    return sum(line.amount for line in lines if line.kind in kinds)


BEFORE_LIMITS = ("list_fare", "product", "discount", "transfer", "reward")

# ---- the order of arrival


def check_order_of_arrival(world: World, seed: int, wait: int) -> None:
    tariff, chance = world.compiled, random.Random(seed)
    disturbed = [*world.facts, *chance.sample(world.facts, chance.randint(0, len(world.facts)))]
    chance.shuffle(disturbed)
    as_of = last(world.facts) + wait
    expected, found = fold(tariff, world.facts, as_of), fold(tariff, disturbed, as_of)
    assert found.lines == expected.lines
    assert found.legs == expected.legs
    assert msgspec.msgpack.encode(found.state) == msgspec.msgpack.encode(expected.state)


def check_batches(world: World, seed: int, wait: int) -> None:
    tariff, chance = world.compiled, random.Random(seed)
    acting = in_order(world.facts)
    as_of = last(world.facts) + wait
    cuts = sorted({fact.at for fact in acting if chance.random() < 0.4})
    lines: list[Line] = []
    legs: dict[str, Leg] = {}
    state = b""
    for begin, end in zip([-(1 << 62), *cuts], [*cuts, None], strict=True):
        piece = [fact for fact in acting if begin <= fact.at and (end is None or fact.at < end)]
        until = as_of if end is None else chance.choice([end, max((fact.at for fact in piece), default=end)])
        before = msgspec.msgpack.decode(state, type=State) if state else None
        chance.shuffle(piece)
        folded = fold(tariff, piece, until, before)
        state = msgspec.msgpack.encode(folded.state)
        lines += folded.lines
        legs |= folded.legs
    whole = fold(tariff, world.facts, as_of)
    assert lines == whole.lines
    assert legs == whole.legs


def check_a_later_fact(world: World, seed: int, wait: int) -> None:
    tariff, acting = world.compiled, in_order(world.facts)
    if not acting:
        return
    cut = random.Random(seed).randrange(len(acting))
    before = fold(tariff, acting[:cut], acting[cut].at)
    after = fold(tariff, acting, last(acting) + wait)
    assert after.lines[: len(before.lines)] == before.lines


def check_time_passing(world: World, seed: int, wait: int) -> None:
    tariff, chance = world.compiled, random.Random(seed)
    end = last(world.facts)
    earlier, later = fold(tariff, world.facts, end + chance.randint(0, wait)), fold(tariff, world.facts, end + wait)
    assert later.lines[: len(earlier.lines)] == earlier.lines


# ---- what lines sum to


def check_sums(world: World, wait: int) -> None:
    folded = fold(world.compiled, world.facts, last(world.facts) + wait)
    lines = lines_of_legs(folded)
    assert lines.keys() <= folded.legs.keys() | folded.sales.keys()
    for leg in folded.legs.values():
        own = lines[leg.leg_id]
        held = total(own, "hold")
        if leg.status == "open":
            assert held == leg.hold == total(own, *{line.kind for line in own})
            continue
        assert held == 0
        if leg.status in ("unknown", "cancelled"):
            assert {line.kind for line in own} <= {"hold"}
            continue
        assert [line.kind for line in own].count("list_fare") == 1
        assert total(own, "companions") == (leg.persons - 1) * total(own, "list_fare")
        assert total(own, *BEFORE_LIMITS) == leg.net
        settled = [line for line in own if line.cause == next(line.cause for line in own if line.kind == "list_fare")]
        if leg.net >= 0:
            assert total(settled, *{line.kind for line in settled} - {"hold"}) >= 0, "what a leg pays when it is settled"
            assert total(settled, "cap", "surcharge", *BEFORE_LIMITS) >= 0


def check_nobody_is_paid_for_riding(world: World, wait: int) -> None:
    if any(row.below_zero == "paid_back" for version in world.tariff.versions for row in version.file.joining_rules):
        return
    folded = fold(world.compiled, world.facts, last(world.facts) + wait)
    for leg in folded.legs.values():
        assert leg.net >= 0
    for kind in ("surcharge", "list_fare", "companions", "sale"):
        assert all(line.amount >= 0 for line in folded.lines if line.kind == kind)
    joining = [row for version in world.tariff.versions for row in version.file.joining_rules]
    dearer = {row.rule_id for row in joining if row.worth in AS_ONE}  # one ride may cost more than its two halves
    for kind in ("discount", "product", "reward", "transfer", "rebate"):
        assert all(line.amount <= 0 for line in folded.lines if line.kind == kind and line.rule_id not in dearer)
    assert sum(line.amount for line in folded.lines if line.kind not in ("rebate", "sale")) >= 0


def check_bearers(world: World, wait: int) -> None:
    folded = fold(world.compiled, world.facts, last(world.facts) + wait)
    for line in folded.lines:
        if line.bearer in ("rider", "operators"):
            assert line.funded == 0
        elif not line.bearer.startswith("product:"):
            assert line.funded == -line.amount


def check_ids(world: World, wait: int) -> None:
    folded = fold(world.compiled, world.facts, last(world.facts) + wait)
    often = Counter(map(line_id, folded.lines)).most_common(1)
    assert not often or often[0][1] == 1, [line for line in folded.lines if line_id(line) == often[0][0]]


def check_every_tap(world: World, wait: int) -> None:
    folded = fold(world.compiled, world.facts, last(world.facts) + wait)
    exits = {leg.exit_at for leg in folded.legs.values()}
    for fact in in_order(world.facts):
        if isinstance(fact, Purchase):
            assert fact.fact_id in folded.sales or fact.fact_id in folded.ignored
        elif fact.action == "exit":
            assert fact.fact_id in folded.ignored or fact.fact_id in folded.legs or fact.at in exits
        else:
            assert fact.fact_id in folded.legs


# ---- caps


def _terms(version: CompiledVersion, leg: Leg) -> Terms | None:
    return version.terms(leg.network_id or "", leg.route_id, leg.media, leg.rider_category)


def _as_settled(leg: Leg) -> Leg:
    """A leg whose exit came too late was settled without it, and conditions on its exit were asked then."""
    return msgspec.structs.replace(leg, to_stop_id=None, exit_at=None, exit_given=None) if leg.status == "late_exit" else leg


def _holds(version: CompiledVersion, conditions: Ready, leg: Leg) -> bool:
    return conditions.always or conditions.failing(leg, version.network, version.prices.groups) is None


def _counted(terms: Terms, leg: Leg) -> bool:
    return leg.status == "complete" or terms.tap_rule.missing_counts_toward_caps


def _cost(lines: list[Line], above: Iterable[ReadyCap | ReadyBest], counts: str) -> int:
    """What a leg costs after some limits."""
    names = {limit.rule.rule_id for limit in above}
    kinds = ("surcharge",) if counts == "surcharge" else BEFORE_LIMITS
    return sum(
        line.amount for line in lines if line.kind in kinds or (line.kind == "cap" and line.rule_id.split("/")[0] in names)
    )


def _period(rule: Cap | BestOf, leg: Leg) -> int | None:
    """The period of a leg. Those that begin with a leg are as the engine began them; None: it counted no such leg."""
    calendar: dict[str, Callable[[int], int]] = {"service_day": int, "week": monday_of, "month": month_of}
    return calendar[rule.period](leg.service_day) if rule.period in calendar else (leg.periods or {}).get(rule.rule_id)


def _acts_on(limit: ReadyCap | ReadyBest, counts: str) -> bool:
    return counts == (limit.rule.counts if isinstance(limit, ReadyCap) else "fare")


def check_caps(world: World, wait: int) -> None:
    """For every cap whose row says the same amount, period and kind in every version that has it: the legs of a period pay
    together what they would without it, or its amount, whichever is less."""
    tariff = world.compiled
    folded = fold(tariff, world.facts, last(world.facts) + wait)
    lines = lines_of_legs(folded)
    said: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for version in world.tariff.versions:
        for row in version.file.caps:
            said[row.rule_id].add((row.amount, row.period, row.counts, row.period_days, row.window_minutes, row.end))
    costs: dict[tuple[str, int | None], tuple[int, int]] = defaultdict(lambda: (0, 0))
    amounts: dict[str, int] = {}
    for leg in folded.legs.values():
        if leg.status in ("open", "unknown", "cancelled"):
            continue
        version = tariff.versions[leg.version_id]
        terms = _terms(version, leg)
        assert terms is not None
        for number, limit in enumerate(terms.limits):
            rule = limit.rule
            if not isinstance(rule, Cap) or len(said[rule.rule_id]) > 1 or not _holds(version, limit.ready, _as_settled(leg)):
                continue
            if rule.counts == "fare" and not _counted(terms, leg):
                continue
            above = [other for other in terms.limits[: number + 1] if _acts_on(other, rule.counts)]
            before, after = _cost(lines[leg.leg_id], above[:-1], rule.counts), _cost(lines[leg.leg_id], above, rule.counts)
            period = _period(rule, leg)
            assert period is not None or before == after == 0
            sums = costs[rule.rule_id, period]
            costs[rule.rule_id, period] = (sums[0] + before, sums[1] + after)
            amounts[rule.rule_id] = rule.amount
    for (rule_id, period), (before, after) in costs.items():
        assert after == min(before, amounts[rule_id]), (rule_id, period)


# ---- rebates


def _rebate(rule: Rebate, spent: int, legs: int) -> int:
    """What a period's rebate must be, tier by tier and leg by leg."""
    exact = Fraction(0)
    if rule.by == "legs":
        reached = [tier for tier in rule.tiers if legs > tier.above]
        exact += sum(Fraction(tier.percent) * spent / 100 + tier.amount * legs for tier in reached[-1:])
    for unit in range(max(0, spent) if rule.by == "spending" else 0):
        tiers = [tier for tier in rule.tiers if unit >= tier.above]
        exact += Fraction(tiers[-1].percent) / 100 if tiers else 0
    amount = max(0, min(spent, rounded_to(exact, rule.rounding, rule.round_to))) if legs >= rule.at_least else 0
    return min(amount, rule.maximum) if rule.maximum else amount


def check_rebates(world: World) -> None:
    """Of every rebate that all versions have, and have alike."""
    tariff = world.compiled
    folded = fold(tariff, world.facts, last(world.facts) + 70 * DAY)
    lines = lines_of_legs(folded)
    versions = [version.file.rebates for version in world.tariff.versions]
    for row in versions[0]:
        if any(row not in rows for rows in versions):
            continue
        spent: Counter[int] = Counter()
        legs: Counter[int] = Counter()
        for leg in folded.legs.values():
            if leg.status != "complete":
                continue
            version = tariff.versions[leg.version_id]
            terms = _terms(version, leg)
            found = next((rebate for rebate in terms.rebates if rebate.rule == row), None) if terms else None
            if found is None or terms is None or not _holds(version, found.ready, leg):
                continue
            period = monday_of(leg.service_day) if row.period == "week" else month_of(leg.service_day)
            spent[period] += _cost(lines[leg.leg_id], [limit for limit in terms.limits if _acts_on(limit, "fare")], "fare")
            legs[period] += 1
        given_back: Counter[str] = Counter()
        for line in folded.lines:
            if line.kind == "rebate" and line.rule_id == row.rule_id:
                given_back[line.cause] -= line.amount
        expected = {f"{row.rule_id}/{to_date(period)}": _rebate(row, spent[period], legs[period]) for period in legs}
        assert given_back == {cause: amount for cause, amount in expected.items() if amount}


# ---- windows with candidates


def _with_limits(tariff: Tariff, *, window: bool) -> Tariff:
    """The tariff without the caps that would act after its window, and (where so asked) without the window."""
    versions = []
    longest = {row.period for version in tariff.versions for row in version.file.best_of}
    shortest = min((PERIODS.index(period) for period in longest), default=0)
    for version in tariff.versions:
        caps = tuple(row for row in version.file.caps if PERIODS.index(row.period) <= shortest or row.counts == "surcharge")
        file = msgspec.structs.replace(version.file, caps=caps, best_of=version.file.best_of if window else ())
        versions.append(msgspec.structs.replace(version, file=file))
    return msgspec.structs.replace(tariff, versions=tuple(versions))


def _left_under(version: CompiledVersion, best: ReadyBest, choice: tuple[int, ...], leg: Leg, cost: int) -> int:
    """What is left to pay for a leg when some candidates are bought."""
    left = [cost]
    for number in choice:
        candidate, conditions = best.candidates[number]
        if version.covers(candidate, conditions, leg):
            left.append(0)
        elif candidate.within_areas and version.covers(candidate, conditions, leg, whole=False):
            price = version.prices.ride(leg, "extension", candidate=candidate.candidate_id)
            left += [] if isinstance(price, NoPrice) else [price.amount]
    return min(left)


def _first_counted(folded: Folded, legs: list[tuple[Leg, ReadyBest]]) -> ReadyBest:
    """The candidates are those of the window's first leg: the first that cost something when it was settled."""
    settled = [line for line in folded.lines if line.kind == "list_fare"]
    for listed in settled:
        cost = sum(
            line.amount
            for line in folded.lines
            if (line.leg_id, line.cause) == (listed.leg_id, listed.cause) and line.kind in BEFORE_LIMITS
        )
        found = [best for leg, best in legs if leg.leg_id == listed.leg_id]
        if found and cost:
            return found[0]
    return legs[0][1]


def check_windows(world: World, wait: int) -> None:
    """Against every choice of candidates, by what the legs cost under the same tariff without the window."""
    as_of = last(world.facts) + wait
    with_it = CompiledTariff(_with_limits(world.tariff, window=True))
    folded = fold(with_it, world.facts, as_of)
    without = lines_of_legs(fold(CompiledTariff(_with_limits(world.tariff, window=False)), world.facts, as_of))
    lines = lines_of_legs(folded)
    windows: dict[int, list[tuple[Leg, ReadyBest, CompiledVersion, int]]] = defaultdict(list)
    paid: dict[int, int] = defaultdict(int)
    for leg in folded.legs.values():
        version = with_it.versions.get(leg.version_id)
        terms = _terms(version, leg) if version else None
        if version is None or terms is None or leg.status in ("open", "unknown", "cancelled"):
            continue
        surcharge_caps = {row.rule_id for row in version.version.file.caps if row.counts == "surcharge"}

        def cost(found: list[Line], outside: set[str] = surcharge_caps) -> int:
            return sum(line.amount for line in found if line.kind in (*BEFORE_LIMITS, "cap") and line.rule_id not in outside)

        best = next((limit for limit in terms.limits if isinstance(limit, ReadyBest)), None)
        if best is None or not _counted(terms, leg) or not _holds(version, best.ready, _as_settled(leg)):
            assert cost(lines[leg.leg_id]) == cost(without[leg.leg_id])
            continue
        period = _period(best.rule, leg)
        own = cost(without[leg.leg_id])
        assert period is not None or own == 0
        if period is not None:
            windows[period].append((_as_settled(leg), best, version, own))
            paid[period] += cost(lines[leg.leg_id])
    for period, legs in windows.items():
        best = _first_counted(folded, [(leg, best) for leg, best, _, _ in legs])
        numbers = range(len(best.rule.candidates))
        worth = [
            sum(best.rule.candidates[number].amount for number in choice)
            + sum(_left_under(version, best, choice, leg, own) for leg, _, version, own in legs)
            for size in range(best.rule.at_most + 1)
            for choice in combinations(numbers, size)
        ]
        assert paid[period] == min(worth), period


# ---- the tests

seeds = st.integers(0, 2**32)
waits = st.sampled_from(WAITS)


@sample(200)
@given(world=worlds(), seed=seeds, wait=waits)
def test_late_repeated_and_shuffled_facts_cost_the_same_under_any_tariff(world: World, seed: int, wait: int) -> None:
    check_order_of_arrival(world, seed, wait)


@sample(200)
@given(world=worlds(), seed=seeds, wait=waits)
def test_a_history_folded_in_pieces_costs_what_it_costs_as_a_whole(world: World, seed: int, wait: int) -> None:
    check_batches(world, seed, wait)


@sample(200)
@given(world=worlds(), seed=seeds, wait=waits)
def test_a_later_fact_adds_lines_and_changes_none(world: World, seed: int, wait: int) -> None:
    check_a_later_fact(world, seed, wait)


@sample(200)
@given(world=worlds(), seed=seeds, wait=waits)
def test_time_that_passes_adds_lines_and_changes_none(world: World, seed: int, wait: int) -> None:
    check_time_passing(world, seed, wait)


@sample(200)
@given(world=worlds(), wait=waits)
def test_a_leg_s_lines_sum_to_what_it_costs_and_its_holds_to_nothing_once_it_is_settled(world: World, wait: int) -> None:
    check_sums(world, wait)
    check_bearers(world, wait)
    check_every_tap(world, wait)


@sample(200)
@given(world=worlds(), wait=waits)
def test_nobody_is_paid_for_riding_unless_the_tariff_says_so(world: World, wait: int) -> None:
    check_nobody_is_paid_for_riding(world, wait)


@sample(200)
@given(world=worlds(), wait=waits)
def test_no_two_lines_of_a_traveller_have_the_same_id(world: World, wait: int) -> None:
    check_ids(world, wait)


@sample(200)
@given(world=worlds(EVERYTHING._replace(caps=3)), wait=waits)
def test_the_legs_of_a_cap_s_period_cost_its_amount_or_less_and_never_less_than_they_must(world: World, wait: int) -> None:
    check_caps(world, wait)


@sample(200)
@given(world=worlds(ONE_WINDOW), wait=waits)
def test_no_choice_of_candidates_would_be_cheaper_than_the_one_taken(world: World, wait: int) -> None:
    check_windows(world, wait)


@sample(200)
@given(world=worlds())
def test_a_rebate_is_what_its_tiers_say_of_what_its_period_s_legs_cost(world: World) -> None:
    check_rebates(world)


@pytest.mark.prove
@proof(5_000)
@given(world=worlds(), seed=seeds, wait=waits)
def test_every_price_under_any_tariff_holds_at_full_size(world: World, seed: int, wait: int) -> None:
    check_order_of_arrival(world, seed, wait)
    check_batches(world, seed, wait)
    check_a_later_fact(world, seed, wait)
    check_time_passing(world, seed, wait)
    check_sums(world, wait)
    check_bearers(world, wait)
    check_every_tap(world, wait)
    check_nobody_is_paid_for_riding(world, wait)
    check_ids(world, wait)
    check_caps(world, wait)
    check_rebates(world)


@pytest.mark.prove
@proof(5_000)
@given(world=worlds(ONE_WINDOW), wait=waits)
def test_no_cheaper_choice_is_missed_at_full_size(world: World, wait: int) -> None:
    check_windows(world, wait)


CANDIDATES = EVERYTHING._replace(best_of=2)


@sample(200)
@given(world=worlds(CANDIDATES))
def test_a_price_does_not_hang_on_what_was_priced_before(world: World) -> None:
    check_nothing_is_remembered_wrongly(world)


@pytest.mark.parametrize("seed", [447, 480])
def test_a_window_s_candidates_are_not_taken_for_those_of_a_later_version(seed: int) -> None:
    check_nothing_is_remembered_wrongly(a_world(random.Random(seed), CANDIDATES, 16))


def check_nothing_is_remembered_wrongly(world: World) -> None:
    """A tariff remembers much of what it found out: prices under it are those under one that was just loaded."""
    if not world.facts:
        return
    facts, used = sorted(world.facts, key=lambda fact: fact.at), world.compiled
    for number in range(len(facts)):
        fold(used, facts[:number], last(facts))
        fold(used, facts[number:], last(facts))
    assert fold(used, facts, last(facts)) == fold(world.compiled, facts, last(facts))
