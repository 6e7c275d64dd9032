"""A service date of full size: closed, exported and audited within the time and memory that a night has."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulators.full_day import make_day

DAY = "2026-03-02"
LEGS = int(os.environ.get("MOTTHE_FULL_LEGS", "1000000"))


def motthe(data: Path, *words: str) -> float:
    """A command in a process of its own; how many seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "motthe", *words, "--data", str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return time.monotonic() - begun


@pytest.mark.prove
def test_a_day_of_a_million_legs_is_closed_exported_and_audited(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data = tmp_path / "day"
    make_day(data, DAY, LEGS, 7, slot_hours=3.0)
    record_property("advance_s", round(motthe(data, "advance", "2026-03-03T03:00:00+07:00"), 1))
    record_property("clear_s", round(motthe(data, "clear", DAY, "--quiet"), 1))
    record_property("clear_again_s", round(motthe(data, "clear", DAY, "--quiet"), 1))
    record_property("payments_s", round(motthe(data, "payments", DAY, "--out", str(tmp_path / "pain.xml")), 1))
    record_property("tides_s", round(motthe(data, "export", "tides", DAY, str(tmp_path / "tides")), 1))
    record_property("audit_s", round(motthe(data, "audit", DAY), 1))
    record_property("most_memory_mib", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)


def test_a_small_day_made_the_same_way_is_closed_and_audited(tmp_path: Path) -> None:
    data = tmp_path / "day"
    assert make_day(data, DAY, 400, 7, slot_hours=6.0) > 400
    motthe(data, "clear", DAY, "--quiet")
    motthe(data, "audit", DAY)
