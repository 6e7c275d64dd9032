"""What may import what, and that no city's name stands in the engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import ROOT

PACKAGES = ("fare_engine", "validators", "clearing", "simulators")
CITIES = re.compile(
    "london|sydney|seoul|singapore|hong.?kong|istanbul|netherlands|hcmc|saigon|opal|oyster|octopus", re.IGNORECASE
)
BY_NO_TERMINAL = ("sqlalchemy", "fastapi", "starlette", "pydantic", "uvicorn", "jinja2")


def test_the_import_contracts_of_pyproject_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept is not None
    assert int(kept[1]) == (ROOT / "pyproject.toml").read_text(encoding="utf-8").count("[[tool.importlinter.contracts]]") > 0


def test_the_engine_names_no_city() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "fare_engine").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if CITIES.search(line)
    ]
    assert named == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_load_nothing_by_being_imported(package: str) -> None:
    found = sorted((ROOT / package).rglob("__init__.py"))
    assert found
    assert [path for path in found if path.read_bytes()] == []


def test_a_terminal_loads_no_database_and_no_web_server() -> None:
    program = "import sys, validators.terminal, validators.uplink; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "validators" in loaded
    assert loaded.isdisjoint(BY_NO_TERMINAL)


def test_nothing_connects_or_starts_when_a_module_is_imported() -> None:
    program = """
import socket, sqlite3, threading
def no(*_, **__):
    raise SystemExit("connected")
sqlite3.connect = socket.socket.connect = no
import motthe
print(threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
