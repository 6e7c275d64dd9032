"""The tests of what rides cost notice a mistake in the modules that price them: they kill mutmut's mutants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import Mutant, Trial, mutants_of, sample

PRICING = ("fold", "legs", "as_one", "groups", "joins", "periods", "rewards", "products")
MODULES = (
    *(f"fare_engine/pricing/{name}.py" for name in PRICING),
    "fare_engine/tariff/prices.py",
    "fare_engine/tariff/conditions.py",
    "fare_engine/money.py",
)
SEED = 2026
MUTANTS = 300
ENOUGH = 0.85
CLEARING = ("clearing/pools.py", "clearing/netting.py", "clearing/bags.py", "clearing/payments.py", "fare_engine/ledger.py")
CLEARING_TESTS = tuple(
    f"tests/unit/test_{name}.py"
    for name in ("pools", "netting", "bags", "payments", "clearing_specification", "ledger", "booking")
)
ENOUGH_OF_CLEARING = 0.9


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """All tests of prices."""
    return Trial(tmp_path_factory.mktemp("mutants"), MODULES)


@pytest.fixture(scope="module")
def clearing_trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """All tests of who gets what."""
    return Trial(tmp_path_factory.mktemp("clearing mutants"), CLEARING, CLEARING_TESTS)


@pytest.mark.prove
@pytest.mark.parametrize("module", MODULES)
def test_of_each_pricing_module_s_mutants_85_per_cent_are_killed(
    trial: Trial, module: str, record_property: Callable[[str, object], None]
) -> None:
    _kill(trial, module, ENOUGH, record_property)


@pytest.mark.prove
@pytest.mark.parametrize("module", CLEARING)
def test_of_the_mutants_of_pools_netting_and_ledger_90_per_cent_are_killed(
    clearing_trial: Trial, module: str, record_property: Callable[[str, object], None]
) -> None:
    _kill(clearing_trial, module, ENOUGH_OF_CLEARING, record_property)


def _kill(trial: Trial, module: str, enough: float, record_property: Callable[[str, object], None]) -> None:
    verdicts = trial.run(sample(module, MUTANTS, SEED))
    survivors = [verdict for verdict in verdicts if verdict.killer is None]
    killed = len(verdicts) - len(survivors)
    record_property("mutants", len(verdicts))
    record_property("killed", killed)
    record_property("per cent", round(100 * killed / len(verdicts), 1))
    record_property("seconds a mutant", round(sum(verdict.seconds for verdict in verdicts) / len(verdicts), 2))
    record_property("survivors", [verdict.mutant.text() for verdict in survivors])
    assert killed >= enough * len(verdicts), "\n\n".join(verdict.mutant.text() for verdict in survivors)


# ---- the trial itself, in a few seconds

MONEY = "fare_engine/money.py"
FOLD = "fare_engine/pricing/fold.py"


def changed(path: str, text: str) -> Mutant:
    """The first mutant of a module whose difference has this line."""
    return next(mutant for mutant in mutants_of(path) if text in mutant.change)


HALVES = "tests/unit/test_money.py::test_per_cents_are_rounded_to_whole_units_halves_away_from_zero[7001-50-3501]"
WEEK = "tests/unit/test_pricing.py::test_a_weekly_cap_begins_on_monday"


def test_a_mutant_is_killed_by_a_test_that_fails_or_hangs_and_survives_where_nothing_is_changed(tmp_path: Path) -> None:
    wrong = changed(MONEY, "+ return sign * ((abs(amount) * percent * 2 - 100) // 200)")
    endless = Mutant(wrong.module, wrong.function, (), wrong.source.replace("return", "while True: pass\n    return"))
    same = Mutant(wrong.module, wrong.function, (), wrong.source.replace("2 - 100", "2 + 100"))
    method = changed(FOLD, "+ work.take(None)")
    trial = Trial(tmp_path, (MONEY, FOLD), (HALVES, WEEK), patience=3)
    verdicts = trial.run([wrong, endless, same, method])
    assert [verdict.killer for verdict in verdicts] == [HALVES, HALVES, None, WEEK]
    called = {test: functions for test, (_, functions) in json.loads(trial.callers.read_bytes()).items()}
    assert called[HALVES] == ["fare_engine.money:percent_of"]
    assert "fare_engine.pricing.fold:Fold.take" in called[WEEK]
