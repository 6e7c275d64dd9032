"""Keeps each long proof's last result as JSON: its outcome, how long it took, and whatever figures it recorded.

A proof records a figure with pytest's `record_property`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--prove-results", type=Path, default=None, help="write the proofs' results to this file")


class Results:
    """Collects each test's outcome."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, object]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        outcome = yield
        report = outcome.get_result()  # type: ignore[attr-defined]
        if report.when == "call" or report.failed:
            self.found[item.nodeid] = {
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                "figures": dict(report.user_properties),
            }

    def pytest_sessionfinish(self) -> None:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        earlier = json.loads(self.path.read_text(encoding="utf-8"))["proofs"] if self.path.exists() else {}
        proofs = {**earlier, **collapsed(self.found)}
        text = json.dumps({"machine": machine, "proofs": proofs}, ensure_ascii=False, indent=2, sort_keys=True)
        self.path.write_text(text + "\n", encoding="utf-8")


def collapsed(found: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The results with one entry for all cases of a proof that passed and recorded no figures."""
    cases: dict[str, list[str]] = {}
    for name, result in found.items():
        if result["outcome"] == "passed" and not result["figures"]:
            cases.setdefault(name.partition("[")[0], []).append(name)
    kept = {name: result for name, result in found.items() if name not in {one for names in cases.values() for one in names}}
    for name, names in cases.items():
        seconds = sum(float(str(found[one]["seconds"])) for one in names)
        kept[name] = {"outcome": "passed", "cases": len(names), "seconds": round(seconds, 1)}
    return kept


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--prove-results")
    if path is not None:
        config.pluginmanager.register(Results(path), "prove-results")
