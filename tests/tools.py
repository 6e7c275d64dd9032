"""Programs of others that confirm what we export; where one is missing its tests are skipped, in .ci/run they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import ROOT


def run_tool(name: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run hledger, ledger, bean-check or frictionless."""
    beside = (Path(sys.executable).with_name(name), ROOT / ".venv" / "frictionless" / "bin" / name)
    found = next((str(path) for path in beside if path.exists()), shutil.which(name))
    if found is None:
        if os.environ.get("MOTTHE_REQUIRE_BOOKS"):
            pytest.fail(f"{name} is needed")
        pytest.skip(f"{name} is not installed")
    return subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
