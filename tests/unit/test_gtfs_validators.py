"""The city's feed with each version's fares is GTFS: three validators, written apart, find no error in it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import gtfs_analyzer
import gtfs_guru
import pytest

from tests.builders import HCMC

DATE = "2026-03-15"
VERSIONS = ("2019-now", "proposal-2026-03", "free-bus-draft")


def merged(folder: Path, version: str, change: Callable[[dict[str, str]], None] | None = None) -> Path:
    """The network and a version's tables in one zip."""
    files = {
        path.name: path.read_text(encoding="utf-8")
        for part in (HCMC / "network", HCMC / version)
        for path in sorted(part.glob("*.txt"))
    }
    if change is not None:
        change(files)
    feed = folder / f"{version}.zip"
    with zipfile.ZipFile(feed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return feed


def guru_errors(feed: Path) -> int:
    return int(gtfs_guru.validate(str(feed), country_code="VN", date=DATE).error_count)


def validator_errors(feed: Path) -> int:
    out = feed.parent / "out"
    command = [Path(sys.executable).parent / "gtfs-validator", "-i", feed, "-o", out, "-c", "VN", "-d", DATE]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    system = json.loads((out / "system_errors.json").read_text(encoding="utf-8"))
    found = sum(notice["totalNotices"] for notice in report["notices"] if notice["severity"] == "ERROR")
    return int(found) + len(system["notices"])


def analyzer_errors(feed: Path) -> int:
    result = gtfs_analyzer.validate_gtfs(feed, today=DATE)
    assert result["validation_status"] == "COMPLETE"
    metrics = result["metrics"]
    found = metrics["spec_notice_count"] + metrics["interop_notice_count"]
    assert found or result["reports"]["r1"]["publishable"]
    return int(found)


TOOLS = [guru_errors, validator_errors, analyzer_errors]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("errors", TOOLS)
def test_the_feed_with_a_version_s_fares_has_no_error(tmp_path: Path, errors: Callable[[Path], int], version: str) -> None:
    assert errors(merged(tmp_path, version)) == 0


def a_fare_for_a_network_that_is_not_there(files: dict[str, str]) -> None:
    files["fare_leg_rules.txt"] += "tram,tram,,,metro-7\n"


def a_trip_of_a_route_that_is_not_there(files: dict[str, str]) -> None:
    files["trips.txt"] = files["trips.txt"].replace("ML1,DAILY,ML1-0", "ML9,DAILY,ML1-0")


@pytest.mark.parametrize("errors", TOOLS)
@pytest.mark.parametrize("change", [a_trip_of_a_route_that_is_not_there, a_fare_for_a_network_that_is_not_there])
def test_the_validator_does_find_the_error_of_a_broken_feed(
    tmp_path: Path, errors: Callable[[Path], int], change: Callable[[dict[str, str]], None]
) -> None:
    assert errors(merged(tmp_path, "2019-now", change)) > 0
