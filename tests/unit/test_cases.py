"""The nine cities: every published case comes out, through the command that anybody can run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import motthe
from fare_engine.errors import InputError
from fare_engine.pricing.cases import Outcome, read_cases, run_cases
from fare_engine.tariff.checks import check
from fare_engine.tariff.files import load

TARIFFS = Path(__file__).parents[2] / "tariffs"
CITIES = sorted(path.parent.name for path in TARIFFS.glob("*/cases.json"))
KNOWN_TO_DIFFER = {"LON-005"}
"""Of medium confidence: the page prints 2.40 where its own fare table says 2.50 (tariffs/london/NOTES.md)."""


def cases_of(city: str) -> list[dict[str, Any]]:
    path = TARIFFS / city / "cases.json"
    return read_cases(path.read_text(encoding="utf-8"), path.name)


def outcomes(city: str, cases: list[dict[str, Any]]) -> list[Outcome]:
    tariff = load(TARIFFS / city)
    check(tariff)
    return list(run_cases(tariff, cases))


def test_there_are_nine_cities_with_343_cases() -> None:
    assert len(CITIES) == 9
    assert sum(len(cases_of(city)) for city in CITIES) == 343


@pytest.mark.parametrize("city", CITIES)
def test_every_published_case_of_a_city_comes_out(city: str) -> None:
    found = outcomes(city, cases_of(city))
    assert [outcome.text() for outcome in found if outcome.result != "PASS" and outcome.case_id not in KNOWN_TO_DIFFER] == []


@pytest.mark.parametrize("city", CITIES)
def test_a_case_that_expects_one_unit_more_fails(city: str) -> None:
    cases = [case for case in cases_of(city) if case["expect"].get("charges")][:5]
    for case in cases:
        case["expect"]["charges"][0]["amount"] += 1
        case["expect"]["charges"][0].pop("amount_any_of", None)
    assert {outcome.result for outcome in outcomes(city, cases)} == {"FAIL"}


def test_the_engine_knows_no_city() -> None:
    cities = "london|sydney|seoul|singapore|hong.?kong|istanbul|netherlands|hcmc|saigon|opal|oyster|octopus"
    names = re.compile(cities, re.IGNORECASE)
    sources = sorted((TARIFFS.parent / "fare_engine").rglob("*.py"))
    assert len(sources) > 40
    assert [path.name for path in sources if names.search(path.read_text(encoding="utf-8"))] == []


def test_the_smallest_city_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (TARIFFS.parent / "docs" / "tariff.md").read_text(encoding="utf-8")
    text = text.partition("## The smallest city")[2].partition("\n## ")[0]
    path = tmp_path
    for line in text.splitlines():
        if line.startswith("    little/"):
            path = tmp_path / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
        if path.is_file() and line.startswith("    "):
            path.write_text(path.read_text(encoding="utf-8") + line[36:] + "\n", encoding="utf-8")
    tariff = load(tmp_path / "little")
    check(tariff)
    rides = [
        {"mode": "bus", "on": {"t": f"2026-03-02T{at}"}, "off": None} for at in ("08:00", "10:00", "12:01", "15:00", "18:00")
    ]
    case = {"id": "L-1", "policy": "2026", "rides": [ride | {"id": str(n)} for n, ride in enumerate(rides)], "expect": {}}
    (outcome,) = run_cases(tariff, [case])
    assert list(outcome.charges.values()) == [200, 0, 200, 200, 0]


# ---- the command

RIDE = {"id": "r1", "mode": "tube", "on": {"t": "2018-03-14T06:30", "zone": "4"}, "off": {"t": "2018-03-14T07:30", "zone": "1"}}


def london(tmp_path: Path, *arguments: str, **changes: Any) -> tuple[int, list[str]]:
    case = {
        "id": "X-1", "policy": "2018", "confidence": "high", "rider": {"category": "adult"}, "media": "oyster", "rides": [RIDE],
        "expect": {"charges": [{"ride": "r1", "amount": 390}], "totals": [{"scope": "case", "amount": 390}]},
    }  # fmt: skip
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"format": "fare-cases/1", "cases": [case | changes]}), encoding="utf-8")
    result = CliRunner().invoke(motthe.app, ["tariff", "cases", "--tariff", str(TARIFFS / "london"), str(path), *arguments])
    return result.exit_code, result.stdout.splitlines()


def test_a_case_that_comes_out_passes(tmp_path: Path) -> None:
    assert london(tmp_path) == (0, ["PASS X-1"])


def test_a_case_of_high_confidence_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    wrong = {"charges": [{"ride": "r1", "amount": 391}], "totals": [{"scope": "case", "amount": 391}]}
    assert london(tmp_path, expect=wrong) == (1, ["FAIL X-1 expected r1 391, case 391 got r1 390, case 390"])
    assert london(tmp_path, expect=wrong, confidence="medium")[0] == 0


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"policy": "1999"}, "the policy 1999"),
        ({"media": "cowries"}, "the medium cowries"),
        ({"rider": {"category": "giant"}}, "the rider category giant"),
        ({"rider": {"category": "adult", "juggler": True}}, "rider juggler"),
        ({"rides": [RIDE | {"mode": "zeppelin"}]}, "the network of r1 (mode zeppelin)"),
        ({"account": {"products": [{"id": "moon-pass"}]}}, "the product moon-pass"),
        ({"account": {"step": 3}}, "what the account's step means"),
        ({"rides": [RIDE | {"off": {"t": "2018-03-14T07:30"}}]}, "zone (r1)"),
    ],
)
def test_a_case_that_lacks_a_fact_is_unsupported_and_says_which(tmp_path: Path, changes: dict[str, Any], missing: str) -> None:
    assert london(tmp_path, **changes) == (0, [f"UNSUPPORTED X-1 missing fact: {missing}"])


def test_json_gives_charges_and_lines(tmp_path: Path) -> None:
    code, lines = london(tmp_path, "--json")
    (found,) = [json.loads(line) for line in lines]
    assert code == 0
    assert found["result"] == "PASS"
    assert found["charges"] == {"r1": 390}
    assert [(line["kind"], line["amount"]) for line in found["lines"]["r1"]] == [("list_fare", 390)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ('{"format": "fare-cases/2", "cases": []}', "must be fare-cases/1"),
        ('{"format": "fare-cases/1", "cases": {}}', "must be a list"),
        ('{"format": "fare-cases/1", "cases": [{"id": "a", "policy": "b"}]}', "is missing"),
        ('{"format": "fare-cases/1", "cases": [{"id": "a", "policy": "b", "rides": {}}]}', "rides: is of another kind"),
        ('{"format": "fare-cases/1", "cases": [{"id": "a", "policy": "b", "rides": [], "rider": "x"}]}', "rider: is of another"),
        (
            '{"format": "fare-cases/1", "cases": [{"id": "a", "policy": "b", "rides": [],'
            ' "expect": {"charges": [{"ride": "z"}]}}]}',
            "cases.0. expect.charges: names no ride of the case .found 'z'.",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_holds_no_cases_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_cases(text, "x.json")


@pytest.mark.parametrize("ride", [RIDE | {"on": {"t": "noon"}}, RIDE | {"distance_km": "far"}, {"id": "r1", "mode": "tube"}])
def test_a_ride_that_is_none_is_refused_with_its_case(ride: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="X-2"):
        outcomes("london", [{"id": "X-2", "policy": "2018", "media": "oyster", "rides": [ride]}])
