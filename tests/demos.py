"""Demos that were played once in a test run, for every test that needs one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        """The folder once more, for a test that changes it."""
        return Path(shutil.copytree(self.data, to))


def statements(data: Path, day: str = DAY) -> dict[str, bytes]:
    """The files of a day's statements, by name."""
    return {path.name: path.read_bytes() for path in sorted((data / "statements" / day).iterdir())}


def motthe(
    *arguments: str, timeout: float = 120, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own that sees no setting of this one."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MOTTHE_")} | {"COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "motthe", *arguments],
        cwd=ROOT,
        env=own | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def played(factory: pytest.TempPathFactory, name: str, seed: int) -> PlayedDemo:
    """The demo `name` of a seed, played when it is first asked for."""
    if name not in _played:
        data = factory.mktemp("demos") / name
        done = motthe("demo", "--no-serve", "--seed", f"{seed}", "--riders", f"{RIDERS}", "--port", "0", "--data", f"{data}")
        _played[name] = PlayedDemo(data, seed, done.returncode, done.stdout + done.stderr)
    return _played[name]
