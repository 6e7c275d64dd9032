"""Fixtures of the simulation tests: three demos, each played once."""

from __future__ import annotations

import pytest

from tests.demos import PlayedDemo, played


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> PlayedDemo:
    """Seed 7. Only read it, or work on a copy."""
    return played(tmp_path_factory, "first", 7)


@pytest.fixture(scope="session")
def same_demo(tmp_path_factory: pytest.TempPathFactory) -> PlayedDemo:
    """Seed 7 in another folder."""
    return played(tmp_path_factory, "second", 7)


@pytest.fixture(scope="session")
def other_demo(tmp_path_factory: pytest.TempPathFactory) -> PlayedDemo:
    """Seed 8."""
    return played(tmp_path_factory, "other", 8)
