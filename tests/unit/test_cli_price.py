"""`motthe price` and `motthe tariff check`: what a planner types, and what comes out or is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import motthe
from tests.builders import HCMC, row, version, write_city

TAPS = [
    {"action": "board", "route_id": "10", "time": "2026-03-03T07:00:00+07:00"},
    {"action": "entry", "stop_id": "A", "time": "2026-03-03T07:20:00+07:00"},
    {"action": "exit", "stop_id": "C", "time": "2026-03-03T07:40:00+07:00"},
    {"action": "board", "route_id": "11", "time": "2026-03-03T08:00:00.500+07:00", "media": "wallet:momo", "token": "t2"},
    {"action": "purchase", "product_id": "DAY", "time": "2026-03-04T07:00:00+07:00"},
    {"action": "entry", "stop_id": "A", "time": "2026-03-04T07:20:00+07:00"},
]
DAY_PASS = row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro",), days=1)
JOINT = row(
    "joining_rules",
    rule_id="joint",
    from_networks=("bus",),
    to_networks=("metro",),
    window_minutes=60,
    window_from="entry",
    off_first=1000,
    off_second=2000,
    bearer="CITY",
)
Run = Callable[..., "Ran"]


class Ran:
    """What a command printed and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`motthe` with some arguments, in this process, as its `main` runs it."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["motthe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            motthe.main()
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """The little city with a joint ticket and a pass, and a proposal that makes buses dearer from 4 March."""
    plan = version("plan", state="proposed")
    plan["plan/fare_products.txt"] = plan["plan/fare_products.txt"].replace("bus,Bus ride,,,5000", "bus,Bus ride,,,8000")
    plan["plan/tariff.toml"] = plan["plan/tariff.toml"].replace("2026-01-01", "2026-03-03")
    return write_city(tmp_path / "city", JOINT, DAY_PASS, files=plan, metro='hold = "highest_fare"\n')


def taps(folder: Path, records: list[dict], name: str = "taps.jsonl") -> Path:
    """A file of these taps, each with a device and sequence unless it has its own."""
    path = folder / name
    lines = [
        json.dumps({"token": "t1", "media": "emv", "device": "d1", "sequence": number, **record})
        for number, record in enumerate(records, start=1)
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_file_of_taps_becomes_legs_and_sales_with_their_lines(run: Run, city: Path, tmp_path: Path) -> None:
    ran = run("price", "--tariff", city, "--taps", taps(tmp_path, TAPS))
    assert ran.code == 0
    assert ran.err == "note: not in force and not used: plan (--adopt uses one)\n"
    assert [(r["type"], r.get("status", r.get("product_id")), r["charge"]) for r in ran.records] == [
        ("leg", "complete", 4000),
        ("leg", "complete", 7000),
        ("leg", "missing_exit", 0),
        ("sale", "DAY", 10_000),
        ("leg", "complete", 5000),
    ]
    assert ran.records[1] == {
        "type": "leg",
        "leg_id": "d1/-/2",
        "token": "t1",
        "media": "emv",
        "rider_category": "adult",
        "status": "complete",
        "reason": None,
        "network_id": "metro",
        "route_id": None,
        "operator_id": "RAIL",
        "from_stop_id": "A",
        "to_stop_id": "C",
        "entry_time": "2026-03-03T07:20:00+07:00",
        "exit_time": "2026-03-03T07:40:00+07:00",
        "service_date": "2026-03-03",
        "version": "now",
        "currency": "VND",
        "charge": 7000,
        "lines": [
            {"kind": "hold", "rule_id": "gates/hold", "amount": 9000, "bearer": "rider", "funded": 0, "cause": "d1/-/2"},
            {"kind": "hold", "rule_id": "gates/hold", "amount": -9000, "bearer": "rider", "funded": 0, "cause": "d1/-/3"},
            {"kind": "list_fare", "rule_id": "metro/long", "amount": 9000, "bearer": "rider", "funded": 0, "cause": "d1/-/3"},
            {"kind": "transfer", "rule_id": "joint", "amount": -2000, "bearer": "CITY", "funded": 2000, "cause": "d1/-/3"},
        ],
    }
    assert ran.records[2]["lines"][-1]["bearer"] == "product:DAY"
    assert ran.records[2]["lines"][-1]["cause"] == "d1/-/6/overdue"
    assert ran.records[4]["entry_time"] == "2026-03-03T08:00:00.500+07:00"


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_repetition_nor_empty_lines_change_a_byte(run: Run, city: Path, tmp_path: Path, seed: int) -> None:
    plain = taps(tmp_path, TAPS)
    lines = plain.read_text(encoding="utf-8").splitlines()
    chance = random.Random(seed)
    disturbed = [*lines, *chance.sample(lines, 3), "", "  "]
    chance.shuffle(disturbed)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(disturbed), encoding="utf-8")
    expected = run("price", "--tariff", city, "--taps", plain)
    assert run("price", "--tariff", city, "--taps", other).out == expected.out


def test_time_passes_only_as_far_as_it_is_said(run: Run, city: Path, tmp_path: Path) -> None:
    entry = taps(tmp_path, [TAPS[1]])
    arguments = ("price", "--tariff", city, "--taps", entry)
    assert run(*arguments).records[0]["status"] == "missing_exit"
    assert run(*arguments, "--as-of", "2026-03-03T07:30:00+07:00").records[0]["status"] == "open"
    wrong = run(*arguments, "--as-of", "2026-03-03T07:30:00")
    assert (wrong.code, wrong.out) == (2, "")
    assert "needs its offset" in wrong.err


def test_a_proposal_prices_when_it_is_adopted_and_always_when_its_folder_is_named(run: Run, city: Path, tmp_path: Path) -> None:
    days = [{**TAPS[0], "time": f"2026-03-0{day}T07:00:00+07:00"} for day in (2, 3)]
    file = taps(tmp_path, days)

    def fares(*arguments: object) -> list[int]:
        return [r["charge"] for r in run("price", "--taps", file, *arguments).records]

    assert fares("--tariff", city) == [5000, 5000]
    assert fares("--tariff", city, "--adopt", "plan") == [5000, 8000]
    assert fares("--tariff", city / "plan") == [8000, 8000]
    refused = run("price", "--taps", file, "--tariff", city, "--adopt", "no-plan")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "error: city: version: no such version (found 'no-plan')\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"time": "2026-03-03T07:20:00"},
            "time: a time needs its offset, as in 2026-03-02T07:58:00+07:00 (found '2026-03-03T07:20:00')",
        ),
        ({"time": "yesterday"}, "time: Invalid isoformat string: 'yesterday' (found 'yesterday')"),
        ({"action": "jump"}, "action: must be entry, exit, board or purchase (found 'jump')"),
        ({"media": "coin"}, "media: must be one of cash, emv, wallet (found 'coin')"),
        ({"rider_category": "pupil"}, "rider_category: must be one of adult, elderly, student (found 'pupil')"),
        ({"persons": 0}, "persons: must be at least 1 (found 0)"),
        ({"product_id": "DAY"}, "product_id: goes with the action purchase, and only with it (found 'DAY')"),
        ({"action": "purchase"}, "product_id: goes with the action purchase, and only with it (found None)"),
    ],
)
def test_a_bad_tap_is_refused_with_file_line_field_and_value_and_nothing_is_printed(
    run: Run, city: Path, tmp_path: Path, change: dict, says: str
) -> None:
    file = taps(tmp_path, [TAPS[0], {**TAPS[1], **change}])
    ran = run("price", "--tariff", city, "--taps", file)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: {file} line 2: {says}\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"token": "t1"}', "Object missing required field `media`"),
        ('{"token": 7, "media": "emv"}', "Expected `str`, got `int` - at `$.token`"),
        ('{"token": "t1", "colour": "red"}', "Object contains unknown field `colour`"),
        ("x" * 200, "invalid character"),
    ],
)
def test_a_line_that_is_no_tap_is_refused_with_its_place_and_text(
    run: Run, city: Path, tmp_path: Path, line: str, says: str
) -> None:
    file = taps(tmp_path, [TAPS[0]])
    file.write_text(file.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    ran = run("price", "--tariff", city, "--taps", file)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: {file} line 2: ")
    assert says in ran.err
    assert line[:120] in ran.err


def test_all_bad_lines_are_named_at_once(run: Run, city: Path, tmp_path: Path) -> None:
    file = taps(tmp_path, [{**TAPS[0], "media": "coin", "persons": -1}, TAPS[1], {**TAPS[2], "action": "jump"}])
    ran = run("price", "--tariff", city, "--taps", file)
    assert [line.split(": ")[1:3] for line in ran.err.splitlines()] == [
        [f"{file} line 1", "media"],
        [f"{file} line 1", "persons"],
        [f"{file} line 3", "action"],
    ]


def test_a_file_that_is_not_there_or_no_text_is_said_to_be_so(run: Run, city: Path, tmp_path: Path) -> None:
    missing = run("price", "--tariff", city, "--taps", tmp_path / "nothing.jsonl")
    assert (missing.code, missing.out) == (2, "")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe")
    assert run("price", "--tariff", city, "--taps", binary).code == 2


def test_taps_that_contradict_each_other_are_set_aside_and_priced_neither_way(run: Run, city: Path, tmp_path: Path) -> None:
    same_place = [{**TAPS[0], "sequence": 1}, {**TAPS[0], "sequence": 1, "route_id": "11"}, {**TAPS[3], "sequence": 2}]
    ran = run("price", "--tariff", city, "--taps", taps(tmp_path, same_place))
    assert [r["type"] for r in ran.records] == ["leg", "quarantined"]
    assert ran.records[-1] == {
        "type": "quarantined",
        "tap": "d1/-/1",
        "reason": "the same device and sequence with different content: none of them is priced",
        "contents": 2,
    }
    assert ran.records[0]["token"] == "t2"
    again = run("price", "--tariff", city, "--taps", taps(tmp_path, [same_place[index] for index in (1, 2, 0)], "again.jsonl"))
    assert again.out == ran.out


def test_a_tap_that_means_nothing_and_an_unknown_price_are_named(run: Run, city: Path, tmp_path: Path) -> None:
    file = taps(tmp_path, [{**TAPS[0], "action": "exit"}, {**TAPS[0], "route_id": "P"}, {**TAPS[4], "product_id": "NONE"}])
    leg, *ignored = run("price", "--tariff", city, "--taps", file).records
    assert (leg["status"], leg["charge"], leg["reason"]) == ("unknown", None, "now has no fares for the network charter")
    assert [(r["type"], r["tap"], r["reason"]) for r in ignored] == [
        ("ignored", "d1/-/1", "the network bus has no exit taps"),
        ("ignored", "d1/-/3", "no version in force sells the product NONE"),
    ]


def test_companions_and_the_operator_of_a_tap_are_taken_from_its_line(run: Run, city: Path, tmp_path: Path) -> None:
    file = taps(tmp_path, [{**TAPS[0], "persons": 3, "operator_id": "COOP", "rider_category": None}])
    (leg,) = run("price", "--tariff", city, "--taps", file).records
    assert (leg["charge"], leg["operator_id"], leg["rider_category"]) == (15_000, "COOP", "adult")


def test_no_taps_cost_nothing(run: Run, city: Path, tmp_path: Path) -> None:
    ran = run("price", "--tariff", city, "--taps", taps(tmp_path, []))
    assert (ran.code, ran.out) == (0, "")


def test_taps_can_come_from_standard_input(city: Path, tmp_path: Path) -> None:
    text = taps(tmp_path, [TAPS[0]]).read_text(encoding="utf-8")
    result = CliRunner().invoke(motthe.app, ["price", "--tariff", str(city), "--taps", "-"], input=text)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["charge"] == 5000


def test_a_sound_tariff_is_summed_up(run: Run, city: Path) -> None:
    ran = run("tariff", "check", city)
    assert ran.code == 0
    assert ran.out == (
        "city: 6 routes, 6 stops, 4 networks\n"
        "  now (in_force from 2026-01-01): 11 leg rules, 0 discounts, 1 joining rules, 0 caps, 1 products\n"
        "  plan (proposed from 2026-03-03): 11 leg rules, 0 discounts, 0 joining rules, 0 caps, 0 products\n"
        "no fault found\n"
    )
    assert run("tariff", "check", HCMC).code == 0


@pytest.mark.parametrize("command", ["check", "price"])
def test_a_broken_reference_is_named_with_file_row_and_value(run: Run, city: Path, tmp_path: Path, command: str) -> None:
    path = city / "now" / "fare_leg_rules.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("boat,boat,,,boat", "boat,boat,Pier,,boot"), encoding="utf-8")
    price = ("price", "--taps", taps(tmp_path, TAPS), "--tariff", city)
    ran = run("tariff", "check", city) if command == "check" else run(*price)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "error: now/fare_leg_rules.txt row 12 from_area_id: from_area_id names nothing that exists (found 'Pier')",
        "error: now/fare_leg_rules.txt row 12 fare_product_id: fare_product_id names nothing that exists (found 'boot')",
    ]
