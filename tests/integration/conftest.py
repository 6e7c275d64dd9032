"""Fixtures of the integration tests: a receipt over a real file, and a demo's store that was played once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fare_engine.tariff.compile import CompiledTariff
from tests.demos import PlayedDemo, played
from tests.integration.desk import Desk, equip


@pytest.fixture(scope="session")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file with four devices and the cards anna, binh and chi, to be copied."""
    path = tmp_path_factory.mktemp("equipped") / "motthe.db"
    equip(path)
    return path


@pytest.fixture
def desk(tmp_path: Path, equipped: Path, hcmc_adopted: CompiledTariff) -> Iterator[Desk]:
    """A store of its own, as `equipped`."""
    shutil.copy(equipped, tmp_path / "motthe.db")
    found = Desk(tmp_path / "motthe.db", hcmc_adopted)
    yield found
    found.database.dispose()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> PlayedDemo:
    """The demo of seed 7. Only read it, or work on a copy."""
    return played(tmp_path_factory, "first", 7)
