"""A tariff that does not hold together prices nothing, and whoever wrote it is told where; what GTFS Fares v2 means."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fare_engine.errors import TariffError
from fare_engine.revision import revision_of
from fare_engine.tariff.checks import RULES, check
from fare_engine.tariff.compile import load_compiled
from fare_engine.tariff.files import Table, load
from tests.builders import HCMC, costs, little_tariff, priced, row, version, write_city

BAD = Path(__file__).parent.parent / "bad_tariffs"


def faults_of(folder: Path) -> list[str]:
    with pytest.raises(TariffError) as error:
        check(load(folder))
    return [str(fault) for fault in error.value.faults]


def changed(folder: Path, change: dict[str, str]) -> None:
    path = folder / change["file"]
    if "delete" in change:
        path.unlink()
        return
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    old, new = change.get("old"), change["new"]
    if old is not None:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
        new = text.replace(old, new)
    elif path.suffix == ".toml":
        new = text + new
    path.parent.mkdir(exist_ok=True)
    path.write_text(new, encoding="utf-8")


@pytest.mark.parametrize("name", [path.stem for path in sorted(BAD.glob("*.toml"))])
def test_a_bad_tariff_is_refused_with_file_row_and_value(tmp_path: Path, name: str) -> None:
    bad = tomllib.loads((BAD / f"{name}.toml").read_text(encoding="utf-8"))
    folder = write_city(tmp_path)
    check(load(folder))
    for change in bad["changes"]:
        changed(folder, change)
    assert [fault for fault in faults_of(folder) if fault.startswith(bad["says"])], faults_of(folder)


def test_all_faults_of_all_files_are_reported_together(tmp_path: Path) -> None:
    folder = write_city(tmp_path)
    changed(folder, {"file": "network/routes.txt", "old": "11,COOP", "new": "11,COOPS"})
    changed(folder, {"file": "now/fare_products.txt", "old": "15000", "new": "x"})
    changed(folder, {"file": "now/tariff.toml", "old": 'version = "now"', "new": 'version = "then"'})
    assert len(faults_of(folder)) == 3
    folder = write_city(folder, row("caps", rule_id="c", period="week", amount=0, networks=("tram",), bearer="STATE"))
    assert len(faults_of(folder)) == 3


def test_a_time_zone_that_is_none_is_named(tmp_path: Path) -> None:
    folder = write_city(tmp_path)
    agencies = folder / "network" / "agency.txt"
    agencies.write_text(agencies.read_text(encoding="utf-8").replace("Asia/Ho_Chi_Minh", "Mars/Phobos"), encoding="utf-8")
    assert "network/agency.txt: agency_timezone is no time zone (found 'Mars/Phobos')" in faults_of(folder)


def test_files_as_an_editor_of_windows_writes_them_are_read(tmp_path: Path) -> None:
    """With a byte order mark, and lines that end in CR LF."""
    plain, folder = load(write_city(tmp_path / "plain")), write_city(tmp_path / "marked")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(folder).versions == plain.versions


@pytest.mark.parametrize("name", ["network/stops.txt", "now/tariff.toml"])
def test_a_folder_where_a_file_belongs_is_named(tmp_path: Path, name: str) -> None:
    folder = write_city(tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert faults_of(folder)[0].startswith(f"{name}: not a")


def test_routes_need_no_more_than_gtfs_asks_for(tmp_path: Path) -> None:
    """GTFS: one of the two names is enough, and with one agency it need not be said."""
    folder = write_city(tmp_path)
    table = Table(folder / "network" / "routes.txt", folder, [])
    lines = ["route_id,route_short_name,route_type", *(f"{row['route_id']},{row['route_id']},3" for _, row in table)]
    (folder / "network" / "routes.txt").write_text("\n".join(lines), encoding="utf-8")
    assert all(fault.endswith("agency_id names nothing that exists (found '')") for fault in faults_of(folder))
    agencies = (folder / "network" / "agency.txt").read_text(encoding="utf-8").splitlines()
    (folder / "network" / "agency.txt").write_text("\n".join(agencies[:2]), encoding="utf-8")
    loaded = load(folder)
    assert {route.agency_id for route in loaded.network.routes.values()} == {"RAIL"}
    assert {route.long_name for route in loaded.network.routes.values()} == {""}


def test_a_folder_without_a_tariff_is_named(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "nowhere") == [f"{tmp_path}/nowhere: no such folder (found None)"]
    empty = tmp_path / "empty"
    (empty / "now").mkdir(parents=True)
    assert faults_of(empty) == ["empty/network: the network's folder is missing (found None)"]
    city = write_city(tmp_path / "city")
    (city / "now" / "tariff.toml").unlink()
    assert faults_of(city) == ["city: no version folder with a tariff.toml (found None)"]


def test_a_file_that_is_not_in_utf_8_is_named(tmp_path: Path) -> None:
    folder = write_city(tmp_path)
    (folder / "network" / "networks.txt").write_bytes("network_id,network_name\nmetro,Métro\n".encode("latin-1"))
    (folder / "now" / "tariff.toml").write_bytes("# é".encode("latin-1"))
    found = [fault.split(" (found")[0] for fault in faults_of(folder)]
    assert found[0] == "network/networks.txt: not a CSV file in UTF-8"
    assert "now/tariff.toml: not a TOML file" in found


def test_two_versions_in_force_from_the_same_day_contradict_each_other(tmp_path: Path) -> None:
    folder = write_city(tmp_path, files=version("other"))
    assert faults_of(folder) == ["other/tariff.toml: tariff.valid_from: now is in force from the same day (found '2026-01-01')"]
    check(load(write_city(tmp_path / "proposed", files=version("other", state="proposed"))))


def test_a_product_sold_twice_is_said_to_stand_in_tariff_toml(tmp_path: Path) -> None:
    twice = row("products", product_id="p", kind="pass", price=1, networks=("bus",), days=1)
    (fault,) = faults_of(write_city(tmp_path, twice, twice))
    assert "products[1] p" in fault


@pytest.mark.parametrize("part", ["", "2019-now", "proposal-2026-03", "free-bus-draft"])
def test_the_city_s_own_tariffs_hold_together(part: str) -> None:
    tariff = load(HCMC / part)
    check(tariff)
    assert tariff.forced is bool(part)
    assert [version.version_id for version in tariff.versions] == (
        [part] if part else ["2019-now", "proposal-2026-03", "free-bus-draft"]
    )


def test_every_rule_of_the_data_is_checked_by_a_bad_tariff() -> None:
    """A new check needs a bad tariff of its own: their number must not fall behind."""
    assert len(list(BAD.glob("*.toml"))) >= 130
    assert len(RULES) == 14


# ---- GTFS Fares v2

RULES_HEADER = "leg_group_id,network_id,from_area_id,to_area_id,fare_product_id"


def with_leg_rules(folder: Path, text: str, **files: str) -> Path:
    return write_city(
        folder, files={"now/fare_leg_rules.txt": text, **{f"now/{name}.txt": found for name, found in files.items()}}
    )


def ride(folder: Path, day: str) -> list[str]:
    return costs(priced(load_compiled(folder), day))


def test_without_priorities_an_empty_area_excludes_the_areas_that_other_rows_name(tmp_path: Path) -> None:
    rules = f"{RULES_HEADER}\nm,metro,A,,short\nm,metro,,,long\nb,bus,,,bus\n"
    folder = with_leg_rules(tmp_path, rules)
    assert ride(folder, "07:00 enter A\n07:10 leave C") == ["complete 6000"]
    assert ride(folder, "07:00 enter B\n07:10 leave C") == ["complete 9000"]


def test_without_priorities_an_empty_network_excludes_the_networks_that_other_rows_name(tmp_path: Path) -> None:
    folder = with_leg_rules(tmp_path, f"{RULES_HEADER}\nb,bus,,,bus\nr,,,,boat\n")
    assert ride(folder, "07:00 board 10\n08:00 board F") == ["complete 5000", "complete 15000"]


def test_with_priorities_an_empty_field_means_any_and_the_highest_priority_wins(tmp_path: Path) -> None:
    rules = f"{RULES_HEADER},rule_priority\nm,metro,A,,long,1\nm,metro,,C,short,2\nm,metro,,,bus,\nr,,,,boat,\n"
    folder = with_leg_rules(tmp_path, rules)
    assert ride(folder, "07:00 enter A\n07:10 leave C") == ["complete 6000"]
    assert ride(folder, "07:00 enter A\n07:10 leave B") == ["complete 9000"]
    assert ride(folder, "07:00 enter B\n07:10 leave A") == ["complete 5000"]
    assert ride(folder, "07:00 board F") == ["complete 15000"]


def test_of_equal_candidates_the_cheapest_is_taken_and_the_earlier_row_where_two_cost_the_same(tmp_path: Path) -> None:
    rules = f"{RULES_HEADER},rule_priority\ndear,bus,,,boat,5\nfirst,bus,,,bus,5\nsecond,bus,,,bus,5\n"
    found = priced(load_compiled(with_leg_rules(tmp_path, rules)), "07:00 board 10")
    assert [line.rule_id for line in found.lines] == ["first/bus"]


def test_a_rule_whose_product_has_no_price_for_the_rider_is_no_candidate(tmp_path: Path) -> None:
    products = "fare_product_id,rider_category_id,fare_media_id,amount,currency\nbus,student,,1000,VND\nboat,,,15000,VND\n"
    rules = f"{RULES_HEADER},rule_priority\nb,bus,,,bus,5\nr,bus,,,boat,5\n"
    folder = with_leg_rules(tmp_path, rules, fare_products=products)
    assert ride(folder, "07:00 board 10 emv student\n08:00 board 10") == ["complete 1000", "complete 15000"]


def test_the_most_specific_price_wins_whatever_its_place_in_the_file(tmp_path: Path) -> None:
    products = """\
fare_product_id,rider_category_id,fare_media_id,amount,currency
bus,,,5000,VND
bus,student,cash,1000,VND
bus,student,,2000,VND
bus,,cash,3000,VND
boat,,,15000,VND
boat,,cash,14000,VND
boat,student,,13000,VND
short,,,1,VND
long,,,1,VND
"""
    folder = write_city(tmp_path, files={"now/fare_products.txt": products})
    day = "07:00 board 10 cash student\n08:00 board 10 emv student\n09:00 board 10 cash\n10:00 board 10"
    assert ride(folder, day) == ["complete 1000", "complete 2000", "complete 3000", "complete 5000"]
    assert ride(folder, "07:00 board F cash student") == ["complete 13000"]  # the category's before the medium's


def test_a_finer_medium_finds_the_row_of_its_first_part(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path)
    assert costs(priced(tariff, "07:00 enter A cash:coins\n07:10 leave C cash:coins")) == ["complete 10000"]


TIMED = f"{RULES_HEADER},from_timeframe_group_id,to_timeframe_group_id"
FRAMES = "timeframe_group_id,start_time,end_time,service_id\n"


def test_a_timeframe_holds_from_its_start_and_no_longer_at_its_end(tmp_path: Path) -> None:
    folder = with_leg_rules(
        tmp_path,
        f"{TIMED}\npeak,bus,,,long,peak,\nbus,bus,,,bus,off,\n",
        timeframes=FRAMES + "peak,07:00:00,09:00:00,WORK\noff,00:00:00,07:00:00,WORK\noff,09:00:00,24:00:00,WORK\n",
    )
    day = "06:59:59.999 board 10\n07:00 board 10\n08:59:59.999 board 10\n09:00 board 10\n23:59:59.999 board 10"
    assert ride(folder, day) == ["complete 5000", "complete 9000", "complete 9000", "complete 5000", "complete 5000"]


def test_a_timeframe_s_days_are_those_of_its_service_by_the_local_date(tmp_path: Path) -> None:
    folder = with_leg_rules(tmp_path, f"{TIMED}\nwork,bus,,,long,work,\nany,bus,,,boat,,\n", timeframes=FRAMES + "work,,,WORK\n")
    days = """2026-03-03 07:00 board 10
              2026-03-04 00:10 board 10
              2026-03-05 00:10 board 10
              2026-03-07 07:00 board 10
              2026-03-08 07:00 board 10"""
    # Wednesday is taken out and Saturday added; at 00:10 the service day is still the day before, the local date is not
    assert ride(folder, days) == [f"complete {fare}" for fare in (9000, 15_000, 9000, 9000, 15_000)]


def test_an_exit_s_timeframe_is_that_of_the_exit(tmp_path: Path) -> None:
    folder = with_leg_rules(
        tmp_path,
        f"{TIMED}\nlate,metro,,,long,,late\nearly,metro,,,short,,early\n",
        timeframes=FRAMES + "late,08:00:00,,DAILY\nearly,,08:00:00,DAILY\n",
    )
    assert ride(folder, "07:00 enter A\n07:59:59 leave B\n07:30 enter A card=b\n08:00 leave B card=b") == [
        "complete 6000",
        "complete 9000",
    ]


def test_a_service_that_only_has_exceptions_runs_on_those_days(tmp_path: Path) -> None:
    folder = write_city(tmp_path, files={"network/calendar_dates.txt": "service_id,date,exception_type\nFAIR,20260303,1\n"})
    calendar = load(folder).network.calendars["FAIR"]
    days = [20514, 20515, 20516]
    assert [calendar.runs_on(day) for day in days] == [False, True, False]


def test_distances_are_a_part_of_a_tariff_s_revision_in_whatever_order_they_stand(tmp_path: Path) -> None:
    def revision(name: str, *rows: str) -> str:
        table = "\n".join(["from_stop_id,to_stop_id,km", *rows, ""])
        return revision_of(little_tariff(tmp_path / name / "city", files={"network/distances.csv": table}))

    assert revision("none") == revision_of(little_tariff(tmp_path / "without" / "city"))
    one = revision("one", "A,B,1.4", "B,C,2")
    assert one == revision("other order", "B,C,2", "A,B,1.4")
    assert len({revision("none"), one, revision("longer", "A,B,1.4", "B,C,2.1")}) == 3


def test_a_tap_at_a_stop_without_a_route_belongs_to_the_one_network_that_calls_there(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path)
    assert tariff.network_of(None, "A") == "metro"
    assert tariff.network_of(None, "S1") == "bus"
    assert tariff.network_of(None, "X") is None
    assert tariff.network_of("M", "X") == "metro"
    assert tariff.operator_of(None, "A") == "RAIL"
    assert tariff.operator_of(None, "X") is None
    assert tariff.operator_of("nowhere", None) is None
