"""Demos that were played once in a test run, for every test that needs one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forks
from tests.builders import ROOT

RIDERS = 400
DAY = "2026-03-02"
_played: dict[str, PlayedDemo] = {}


@dataclass(frozen=True)
class PlayedDemo:
    """A demo's folder and how its command ended."""

    data: Path
    seed: int
    exit_code: int
    output: str

    def statements(self, day: str = DAY) -> dict[str, bytes]:
        """The published documents of a day, by name."""
        return statements(self.data, day)

    def copy(self, to: Path) -> Path:
        """The folder once more, for a test that changes it. Others may be reading the store: what they have beside it is not."""
        return Path(shutil.copytree(self.data, to, ignore=shutil.ignore_patterns("*.db-shm", "*.db-wal")))


def statements(data: Path, day: str = DAY) -> dict[str, bytes]:
    """The files of a day's statements, by name."""
    return {path.name: path.read_bytes() for path in sorted((data / "statements" / day).iterdir())}


def motthe(
    *arguments: str, timeout: float = 120, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own that sees no setting of this one."""
    return forks.run(arguments, ROOT, _environment() | dict(environment or {}), timeout)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MOTTHE_")} | {"COLUMNS": "200"}


def played(factory: pytest.TempPathFactory, name: str, seed: int) -> PlayedDemo:
    """The demo `name` of a seed, played when it is first asked for, by whichever of the run's processes."""
    if name not in _played:
        own = factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "demos"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ended = folder / f"{name}.json"
            if not ended.exists():
                ended.write_text(json.dumps(_play(folder / name, seed)), encoding="utf-8")
            _played[name] = PlayedDemo(folder / name, seed, *json.loads(ended.read_text(encoding="utf-8")))
    return _played[name]


def _play(data: Path, seed: int) -> tuple[int, str]:
    """The exit code and what was said; the store is left as one file."""
    command = [sys.executable, "-m", "motthe", "demo", "--no-serve", "--seed", f"{seed}", "--riders", f"{RIDERS}", "--port", "0"]
    done = subprocess.run(
        [*command, "--data", f"{data}"], cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120
    )
    if (data / "motthe.db").exists():
        with closing(sqlite3.connect(data / "motthe.db")) as connection:
            connection.execute("pragma wal_checkpoint(truncate)")
    return done.returncode, done.stdout + done.stderr
