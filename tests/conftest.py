"""Fixtures that many tests share: the tariffs of Ho Chi Minh City, compiled once."""

from __future__ import annotations

import pytest

from fare_engine.tariff.compile import CompiledTariff, load_compiled
from tests.builders import HCMC


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left with one of them when the others have nothing to do any more."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("long")), default=0))


@pytest.fixture(scope="session")
def hcmc() -> CompiledTariff:
    """Today's fares."""
    return load_compiled(HCMC)


@pytest.fixture(scope="session")
def hcmc_adopted() -> CompiledTariff:
    """As if the proposal of March 2026 were in force from its first day."""
    return load_compiled(HCMC, ["proposal-2026-03"])


@pytest.fixture(scope="session")
def hcmc_proposal() -> CompiledTariff:
    """Everything by the proposal, whatever its dates."""
    return load_compiled(HCMC / "proposal-2026-03")
