"""The load generators against a real service: what they count is what it holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.builders import ROOT
from tests.served import free_port, serving_process

DEVICES = 200
"""More than lines that ask at once, so that no terminal asks twice at once."""


def load_city(data: Path, *options: str) -> Path:
    """A city to put load on, in a new store; its file."""
    command = [sys.executable, "-m", "motthe", "simulate", "load-city", "--data", str(data), *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return data / "load-city.json"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A served load city: its address, and its file."""
    data = tmp_path_factory.mktemp("load") / "city"
    city = load_city(data, "--devices", f"{DEVICES}", "--riders", "600")
    with serving_process(data) as url:
        yield url, city


def open_loop(url: str, city: Path, *options: str) -> tuple[int, dict[str, object], str]:
    """Exit code, the line of results, and what was said of errors."""
    command = [sys.executable, "load/open_loop.py", "--url", url, "--city", str(city), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.parametrize("options", [("--rate", "0", "--taps", "300"), ("--rate", "150", "--seconds", "2")])
def test_taps_in_an_open_loop_are_accepted_and_held_once(load: tuple[str, Path], options: tuple[str, ...]) -> None:
    code, found, said = open_loop(*load, *options)
    assert code == 0, said
    assert (found["taps"], found["outcomes"], found["streams_not_held_once"]) == (300, {"ACCEPTED": 300}, 0)
    assert 0 < float(str(found["p50_ms"])) <= float(str(found["p99_ms"])) <= float(str(found["max_ms"]))


def test_cards_that_nobody_knows_are_counted_as_what_they_are(load: tuple[str, Path], tmp_path: Path) -> None:
    url, city = load
    other = tmp_path / "load-city.json"
    other.write_text(json.dumps(json.loads(city.read_text()) | {"domain_key": "00" * 32}))
    code, found, _ = open_loop(url, other, "--rate", "0", "--taps", "80")
    assert (code, found["outcomes"]) == (1, {"QUARANTINED": 80})


def test_a_service_that_is_not_there_is_an_error(load: tuple[str, Path]) -> None:
    code, found, said = open_loop(f"http://127.0.0.1:{free_port()}", load[1], "--rate", "0", "--taps", "80")
    assert (code, found) == (1, {})
    assert "Connect" in said


def test_terminals_of_locust_find_everything_held_once(load: tuple[str, Path]) -> None:
    url, city = load
    command = [sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--headless", "--host", url]
    done = subprocess.run(
        [*command, "-u", "20", "-r", "20", "-t", "6s"],
        cwd=ROOT,
        env=os.environ | {"MOTTHE_LOAD_CITY": str(city)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counted = re.search(r"CHECK: (\d+) terminals, (\d+) taps acknowledged, \d+ not .*, 0 streams", done.stdout)
    assert counted is not None, done.stdout[-2000:]
    assert int(counted[1]) == 20 <= int(counted[2])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile stays on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.prove
def test_how_many_single_taps_a_core_answers_and_how_soon(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The service has a core of its own, the load another. Figures are of this machine; `ratio_to_verify` is of any."""
    city = load_city(tmp_path / "city")
    served, loading = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        with on_core(served):
            url = stack.enter_context(serving_process(tmp_path / "city"))
        with on_core(loading):
            most = open_loop(url, city, "--rate", "0", "--taps", "20000")
            at_seventy = open_loop(url, city, "--rate", "1050", "--seconds", "20", "--seed", "2")
    for code, found, said in (most, at_seventy):
        assert (code, found["outcomes"]) == (0, {"ACCEPTED": found["taps"]}), said
    for name in ("done_per_second", "verifications_per_second", "ratio_to_verify"):
        record_property(name, most[1][name])
    for name in ("offered_per_second", "p50_ms", "p95_ms", "p99_ms", "max_ms"):
        record_property(name, at_seventy[1][name])
