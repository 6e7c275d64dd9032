"""What a ride would cost, and why: `motthe quote`, and the rules that did not act."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import motthe
from fare_engine.pricing.why import REASONS, TABLES
from fare_engine.quote import quote
from fare_engine.tariff.compile import load_compiled
from tests.builders import write_city

TARIFFS = Path(__file__).parents[2] / "tariffs"
METRO = ["--from", "Bến Thành", "--to", "Bến xe Suối Tiên", "--at", "2026-03-02T07:58", "--mode", "metro"]


def quoted(city: str, *arguments: str, stdin: str | None = None) -> list[dict[str, Any]]:
    result = CliRunner().invoke(motthe.app, ["quote", "--tariff", str(TARIFFS / city), "--json", *arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(city: str, *arguments: str, stdin: str | None = None) -> str:
    """Through the command as it runs, which turns our errors into messages."""
    with pytest.raises(Exception, match=r".+") as error:
        CliRunner().invoke(
            motthe.app, ["quote", "--tariff", str(TARIFFS / city), *arguments], input=stdin, catch_exceptions=False
        )
    return str(error.value)


def test_a_ride_is_quoted_for_a_rider_of_whom_nothing_is_known() -> None:
    (ride,) = quoted("hcmc", *METRO)
    assert (ride["charge"], ride["media"], ride["rider_category"], ride["version"]) == (20_000, "ic_card", "adult", "2019-now")
    assert [line["amount"] for line in ride["lines"]] == [20_000, -20_000, 20_000]
    assert "Metro số 1" in ride["lines"][-1]["vi"]


def test_the_rider_the_medium_and_an_adopted_version_change_the_quote() -> None:
    assert quoted("hcmc", *METRO, "--media", "emv")[0]["charge"] == 19_000
    assert quoted("hcmc", *METRO, "--rider", "elderly")[0]["charge"] == 0
    assert quoted("hcmc", *METRO, "--adopt", "proposal-2026-03")[0]["version"] == "proposal-2026-03"


def test_a_list_of_rides_is_quoted_as_one_history() -> None:
    bus = {"mode": "bus", "off": None}
    rides = [
        bus | {"on": {"t": "2025-06-10T08:00"}},
        bus | {"on": {"t": "2025-06-10T08:30"}},
        bus | {"on": {"t": "2025-06-10T09:01"}},
    ]
    found = quoted("london/2025", "--rides", "-", stdin=json.dumps(rides))
    assert [ride["charge"] for ride in found] == [175, 0, 175]
    assert [line["rule_id"] for line in found[1]["lines"]] == ["bus", "hopper"]
    assert found[1]["lines"][1]["en"].startswith("Hopper")


def test_every_rule_of_the_version_either_acts_or_says_why_not() -> None:
    (ride,) = quoted("hcmc", *METRO, "--why")
    acted = {line["rule_id"] for line in ride["lines"]}
    file = load_compiled(TARIFFS / "hcmc").versions["2019-now"].version.file
    rules = {row.rule_id for table in TABLES for row in getattr(file, table)}
    assert {other["rule_id"] for other in ride["others"]} == rules - acted
    reasons = {other["rule_id"]: other["reason"] for other in ride["others"]}
    assert reasons["student-bus"] == "networks"
    assert reasons["concession-free"] == "rider_categories"
    assert reasons["C-2026-0315-M"] == "valid_from"
    assert all(other["vi"] and other["en"] for other in ride["others"])


def test_a_cap_says_that_it_is_not_reached_and_a_window_that_the_time_has_passed() -> None:
    bus = {"mode": "bus", "off": None}
    rides = [bus | {"on": {"t": "2025-06-10T08:00"}}, bus | {"on": {"t": "2025-06-10T09:01"}}]
    found = quoted("london/2025", "--rides", "-", "--why", "--media", "oyster", stdin=json.dumps(rides))
    reasons = {other["rule_id"]: other["reason"] for other in found[1]["others"]}
    assert reasons["hopper"] == "window_minutes"
    assert reasons["bus-day-cap"] == "not reached"


@pytest.mark.parametrize("city", sorted(path.parent.name for path in TARIFFS.glob("*/cases.json")))
def test_every_reason_of_every_published_case_has_words(city: str) -> None:
    """The reasons are words of the code; what a reader is told stands in one table."""
    cases = json.loads((TARIFFS / city / "cases.json").read_text(encoding="utf-8"))["cases"]
    policies = {case["policy"]: case for case in cases}
    for case in policies.values():
        version = next(
            path.parent
            for path in sorted((TARIFFS / city).glob("*/tariff.toml"))
            if path.parent.name == case["policy"] or f'"{case["policy"]}"' in path.read_text(encoding="utf-8").split("[[")[0]
        )
        for ride in quoted(f"{city}/{version.name}", "--rides", "-", "--why", stdin=json.dumps(case["rides"])):
            assert {other["reason"].partition(" ")[0] for other in ride["others"]} <= {
                reason.partition(" ")[0] for reason in REASONS
            }


def test_a_quote_is_readable_in_both_languages() -> None:
    for language, word in (("vi", "Giá vé"), ("en", "List fare")):
        result = CliRunner().invoke(motthe.app, ["quote", "--tariff", str(TARIFFS / "hcmc"), *METRO, "--language", language])
        assert word in result.stdout
        assert "[metro/metro-20]" in result.stdout
        assert "20" in result.stdout.splitlines()[0]


def test_a_stop_that_nobody_lists_is_named_with_those_that_may_be_meant() -> None:
    command = ["quote", "--tariff", str(TARIFFS / "hcmc"), "--at", "2026-03-03T08:00", "--from", "L1-01", "--to"]
    for said, hint in (
        ("Bến xe Suối", "no stop 'Bến xe Suối' is listed; is it Bến xe Suối Tiên?"),
        ("Ba Sonn", "no stop 'Ba Sonn' is listed; is it Ba Son"),
        ("xyzzy", "no stop 'xyzzy' is listed\n"),
        ("Suối Tiên", "no ride of that network ends at 'Suối Tiên'; is it Bến xe Suối Tiên or Khu DL Suối Tiên?"),
    ):
        assert hint in CliRunner().invoke(motthe.app, [*command, said]).stderr
    assert CliRunner().invoke(motthe.app, [*command, "L1-14"]).stderr == ""


def test_amounts_have_the_decimals_of_their_currency() -> None:
    rides = json.dumps([{"mode": "bus", "on": {"t": "2025-06-10T08:00"}, "off": None}])
    command = ["quote", "--tariff", str(TARIFFS / "london" / "2025"), "--rides", "-", "--language"]
    assert "1.75 GBP" in CliRunner().invoke(motthe.app, [*command, "en"], input=rides).stdout
    assert "1,75 GBP" in CliRunner().invoke(motthe.app, [*command, "vi"], input=rides).stdout


def test_what_cannot_be_quoted_says_what_is_missing() -> None:
    assert "the rider category giant" in refused("hcmc", *METRO, "--rider", "giant")
    assert "zeppelin" in refused("hcmc", "--at", "2026-03-02T07:58", "--mode", "zeppelin")
    assert "noon" in refused("hcmc", "--at", "noon", "--mode", "metro")
    assert "line 1" in refused("hcmc", "--rides", "-", stdin="[{")
    assert "list of rides" in refused("hcmc", "--rides", "-", stdin="7")
    (ride,) = quoted("hcmc", "--from", "Atlantis", "--to", "Bến Thành", "--at", "2026-03-02T07:58", "--mode", "metro")
    assert (ride["charge"], ride["status"]) == (None, "unknown")


@pytest.mark.parametrize(
    ("ride", "place"),
    [
        ('[{"mode": "bus", "on": [1]}]', "ride 1 on: is no object"),
        ('[{"mode": ["bus"], "on": {"t": "2026-03-02T08:00"}}]', "ride 1 mode: is no text"),
        ('[{"mode": "bus", "on": {"t": "2026-03-02T08:00", "stop": 5}}]', "ride 1 on stop: is no text"),
        ('[{"mode": "bus", "on": {"t": "2026-03-02T08:00", "lat": "x", "lon": 5}}]', "lat: not a number"),
        ('[{"mode": "bus", "distance_km": NaN, "on": {"t": "2026-03-02T08:00"}}]', "distance_km: not a number up to"),
        ('[{"mode": "bus", "distance_km": 1e400, "on": {"t": "2026-03-02T08:00"}}]', "distance_km: not a number up to"),
        ('[{"mode": "bus", "single_fare": 1e30, "on": {"t": "2026-03-02T08:00"}}]', "single_fare: not a number up to"),
        ('[{"mode": "bus", "on": {"t": "0001-01-01T00:00"}}]', "t: not a time at which anybody rides"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_rides_that_are_none_are_refused_with_place_and_value(ride: str, place: str) -> None:
    assert place in refused("hcmc", "--rides", "-", stdin=ride)


def test_a_ride_that_ends_before_it_begins_or_at_no_time_is_refused() -> None:
    assert "--minutes: a ride does not end before it begins" in refused("hcmc", *METRO, "--minutes", "-5")
    assert "--at, --minutes: not a time" in refused("hcmc", *METRO, "--minutes", "999999999999")


def test_a_price_that_is_unknown_names_the_zones_that_were_said() -> None:
    rides = [{"mode": "tube", "on": {"t": "2025-06-02T08:40", "zone": "1"}, "off": {"t": "2025-06-02T09:05", "zone": "3"}}]
    (ride,) = quoted("london/2025", "--rides", "-", stdin=json.dumps(rides))
    assert ride["reason"] == "no rule of 2025 gives a fare on tube from 1 to 3"


def test_a_ride_on_a_mode_without_a_word_of_its_own_is_named_by_its_network(tmp_path: Path) -> None:
    folder = write_city(tmp_path)
    routes = folder / "network" / "routes.txt"
    text = routes.read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("10,")]
    routes.write_text(text.replace(row, f"10,{row.split(',')[1]},10,,0"), encoding="utf-8")
    tariff = load_compiled(folder, ())
    (bus,) = quote(tariff, [{"route": "10", "on": {"t": "2026-03-03T08:00"}, "off": None}], {}, "", {}, why=False)
    assert bus["lines"][0]["en"].endswith(tariff.network.networks["bus"])
