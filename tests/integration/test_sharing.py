"""Agreements at the close of a real store: journeys, weeks, amounts for rides, fees, and items that come late."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clearing import apart, close, store
from clearing.commands import audit_date, rules_of
from clearing.pools import PoolState
from clearing.sharing import share_of_date
from fare_engine.errors import CloseError
from tests.builders import NETWORK, Town, row, write_city

MONDAY, TUESDAY, WEDNESDAY, SUNDAY = "2026-03-02", "2026-03-03", "2026-03-04", "2026-03-08"
JOINT = row(
    "joining_rules",
    rule_id="joint",
    from_networks=("bus", "metro"),
    to_networks=("metro", "bus"),
    window_minutes=120,
    window_from="entry",
    off_second=2000,
    max_transfers=3,
    bearer="CITY",
)
WEEK_CAP = row("caps", rule_id="week", period="week", amount=20_000, bearer="operators")
NAME = 'name = { vi = "x", en = "x" }\nvalid_from = 2026-01-01\n'
A_JOURNEY = "07:00 board 10 card=ana\n07:20 enter A card=ana\n07:40 leave C card=ana\n08:10 board 11 card=ana"


def agreements(*tables: str) -> str:
    """The little city's agreements, these tables of other rows before them."""
    first = NETWORK["clearing.toml"].index("[[agreements]]")
    return "\n".join([NETWORK["clearing.toml"][:first], *tables, NETWORK["clearing.toml"][first:]])


def an_agreement(fields: str, name: str = "shared") -> str:
    return f'[[agreements]]\nagreement_id = "{name}"\n{NAME}{fields}\n'


JOURNEYS = an_agreement('covers = "legs"\nscope = "journey"\nmethod = "boardings"')


def town(folder: Path, clearing: str, *rules: str, riders: tuple[str, ...] = ("ana", "ben")) -> Town:
    found = Town(folder / "data", write_city(folder / "city", *rules, files={"clearing.toml": clearing}))
    found.issue(*riders)
    return found


def totals(documents: dict[str, bytes], what: str) -> dict[str, int]:
    """One of the sums of each party's statement; zeros left out."""
    found = {}
    for name, content in documents.items():
        rows = list(csv.DictReader(io.StringIO(content.decode()))) if name.endswith(".csv") else []
        for one in rows:
            if one.get("section") == "total" and one["what"] == what and int(one["amount"]):
                found[name.removesuffix(".csv")] = int(one["amount"])
    return found


def sections(documents: dict[str, bytes], party: str) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for one in csv.DictReader(io.StringIO(documents[f"{party}.csv"].decode())):
        if one["line"] and one["amount"]:
            found[one["section"]] += int(one["amount"])
    return dict(found)


def published(found: Town) -> dict[tuple[str, str], int]:
    """(pool with agreement, party) → everything published so far."""
    rows = found.rows("select pool || '@' || agreement_id, party, sum(amount) from settlements group by 1, 2")
    return {(str(pool), str(party)): int(str(amount)) for pool, party, amount in rows if amount}


def test_a_journey_s_fares_are_shared_by_boardings(tmp_path: Path) -> None:
    found = town(tmp_path, agreements(JOURNEYS), JOINT)
    found.take(A_JOURNEY)
    # 5,000 + 9,000 + 5,000, of which the city pays 2,000 twice: a third each
    documents = found.close(TUESDAY)
    assert totals(documents, "settled") == {"BUSCO": 6333, "COOP": 6333, "RAIL": 6334}
    assert sections(documents, "RAIL") == {"legs": 9000, "shared": -2666}
    assert totals(documents, "net")["CITY"] == -4000


def test_a_leg_that_comes_late_moves_only_the_difference_of_its_journey(tmp_path: Path) -> None:
    in_time, late = (town(tmp_path / name, agreements(JOURNEYS), JOINT) for name in ("one", "other"))
    in_time.take(A_JOURNEY)
    in_time.close(TUESDAY)
    *most, last = A_JOURNEY.splitlines()
    late.take("\n".join(most))
    assert totals(late.close(TUESDAY), "settled") == {"BUSCO": 7000, "RAIL": 7000}
    late.take(last, now=f"{WEDNESDAY} 12:00")
    second = totals(late.close(WEDNESDAY), "settled")
    assert second == {"BUSCO": -667, "COOP": 6333, "RAIL": -666}
    assert published(late) == published(in_time)


def test_a_journey_over_the_turn_of_the_day_is_still_one(tmp_path: Path) -> None:
    found = town(tmp_path, agreements(JOURNEYS), JOINT)
    found.take(f"{MONDAY} 23:30 board 10 card=ana")
    found.close(MONDAY)
    found.take(f"{TUESDAY} 00:20 board 11 card=ana")
    assert totals(found.close(TUESDAY), "settled") == {"COOP": 5000}


def test_a_weekly_cap_is_trued_up_when_the_week_ends(tmp_path: Path) -> None:
    week = an_agreement('covers = "caps"\nscope = "week"\nmethod = "paid_fares"\nrules = ["week"]')
    found = town(tmp_path, agreements(week), WEEK_CAP)
    found.take(f"{MONDAY} 07:00 enter A card=ana\n07:20 leave C card=ana\n18:00 enter C card=ana\n18:20 leave A card=ana")
    found.close(MONDAY)
    found.take(f"{TUESDAY} 07:00 board 10 card=ana")  # 18,000 + 5,000: 3,000 above the cap
    assert totals(found.close(TUESDAY), "settled") == {"BUSCO": 2000}
    documents = found.close(SUNDAY)  # of the week's 23,000 the bus carried 5,000
    assert totals(documents, "settled") == {"RAIL": -2348, "BUSCO": 2348}
    assert sections(documents, "BUSCO") == {"opening": 2000, "shared": 2348}


def test_a_week_on_whose_last_date_nobody_rode_is_trued_up_by_the_next_close(tmp_path: Path) -> None:
    week = an_agreement('covers = "caps"\nscope = "week"\nmethod = "paid_fares"\nrules = ["week"]')
    found = town(tmp_path, agreements(week), WEEK_CAP)
    found.take(f"{MONDAY} 07:00 enter A card=ana\n07:20 leave C card=ana\n18:00 enter C card=ana\n18:20 leave A card=ana")
    found.close(MONDAY)
    found.take(f"{TUESDAY} 07:00 board 10 card=ana")
    found.take("2026-03-17 07:00 board 10 card=ben")
    closed = found.close_all("2026-03-17")
    assert [(one.accounting_date, totals(one.documents, "settled")) for one in closed] == [
        (TUESDAY, {"BUSCO": 2000}),
        (SUNDAY, {"RAIL": -2348, "BUSCO": 2348}),
        ("2026-03-17", {"BUSCO": 5000}),
    ]
    found.take("2026-03-31 07:00 board 10 card=ben")
    assert [one.accounting_date for one in found.close_all("2026-03-31")] == ["2026-03-22", "2026-03-31"]


def test_an_amount_for_each_ride_and_the_rest_to_the_authority(tmp_path: Path) -> None:
    gross = an_agreement('covers = "legs"\nmethod = "per_ride"\namount = 3000\nresidual = "CITY"\nnetworks = ["bus"]')
    found = town(tmp_path, agreements(gross))
    found.take("07:00 board 10 card=ana\n08:00 board 11 card=ana\n09:00 enter A card=ben\n09:10 leave B card=ben")
    documents = found.close(TUESDAY)
    assert totals(documents, "settled") == {"BUSCO": 3000, "COOP": 3000, "CITY": 4000, "RAIL": 6000}
    assert sections(documents, "BUSCO") == {"rides": 3000}


def test_fixed_shares_and_gross_cost(tmp_path: Path) -> None:
    fixed = an_agreement('covers = "legs"\nmethod = "fixed"\nshares = { BUSCO = 2, COOP = 1 }\nnetworks = ["bus"]')
    gross = an_agreement('covers = "legs"\nmethod = "gross_cost"\nresidual = "CITY"\nnetworks = ["metro"]', "gross")
    found = town(tmp_path, agreements(fixed, gross))
    found.take("07:00 board 10 card=ana\n09:00 enter A card=ben\n09:10 leave B card=ben")
    assert totals(found.close(TUESDAY), "settled") == {"BUSCO": 3333, "COOP": 1667, "CITY": 6000}


def test_subsidies_are_paid_for_recorded_rides_and_taken_back_with_them(tmp_path: Path) -> None:
    subsidy = f'[[subsidies]]\nsubsidy_id = "free"\n{NAME}paid_by = "CITY"\namount = 700\nnetworks = ["bus"]\n'
    found = town(tmp_path, agreements(subsidy))
    found.take("07:00 board 10 card=ana\n07:01 board 10 x2 card=ben")
    documents = found.close(TUESDAY)
    assert sections(documents, "BUSCO") == {"legs": 15_000, "subsidies": 2100}
    assert totals(documents, "net") == {"BUSCO": 17_100, "CITY": -2100}


def test_fees_are_taken_of_what_is_settled_held_sold_or_ridden(tmp_path: Path) -> None:
    def fee(name: str, fields: str) -> str:
        return f'[[fees]]\nfee_id = "{name}"\n{NAME}paid_to = "CITY"\n{fields}\n'

    tables = [
        fee("house", 'paid_by = "operators"\nbase = "settled"\npercent = "1"'),
        fee("tills", 'paid_by = "operators"\nbase = "cash_held"\npercent = "2"'),
        fee("sales", 'paid_by = "RAIL"\nbase = "sales"\npercent = "0.5"'),
        fee("gates", 'paid_by = "RAIL"\nbase = "rides"\namount = 10'),
    ]
    book = row("products", product_id="BOOK", kind="book", price=10_000, networks=("bus",), trips=3)
    found = town(tmp_path, agreements(*tables), book)
    found.take("06:00 buy BOOK card=ana\n07:00 board 11 cash card=paper\n09:00 enter A card=ben\n09:10 leave B card=ben")
    documents = found.close(TUESDAY)
    assert sections(documents, "COOP") == {"legs": 5000, "commissions": -50 - 100, "collected": -5000}
    assert sections(documents, "RAIL") == {"legs": 6000, "commissions": -60 - 50 - 10}
    assert totals(documents, "net") == {"COOP": -150, "RAIL": 5880, "CITY": 270}


def test_too_many_open_items_stop_the_publishing_and_are_named(tmp_path: Path) -> None:
    found = town(tmp_path, NETWORK["clearing.toml"].replace('"100%"', '"30%"'))
    found.take("07:00 board 10 card=nobody\n07:01 board 10 card=ana\n07:02 board 10 card=ben")
    with pytest.raises(CloseError, match=r"1 items of 3 taps are open, more than 30.00%: 1 quarantined unknown_token \(BUSCO"):
        found.close(TUESDAY)
    documents = found.close(TUESDAY, despite="the card was never issued")
    assert b'"despite": "the card was never issued"' in documents["proof.json"]
    assert b"unknown_token" in documents["BUSCO.csv"]


def test_nothing_is_begun_of_a_large_date_that_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = town(tmp_path, NETWORK["clearing.toml"].replace('"100%"', '"30%"'))
    found.take("07:00 board 10 card=nobody\n07:01 board 10 card=ana")
    begun: list[object] = []
    monkeypatch.setattr(close, "APART", -1)
    monkeypatch.setattr(apart, "begin", lambda work, _: begun.append(work) or (lambda: pytest.fail("was waited for")))
    with pytest.raises(CloseError, match="not published"):
        found.close(TUESDAY)
    assert begun == []


@pytest.mark.long(37)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    late=st.sets(st.integers(0, 7), max_size=5),
    method=st.sampled_from(("standalone_fares", "paid_fares", "boardings")),
    scope=st.sampled_from(("journey", "service_day", "week")),
)
def test_what_is_published_so_far_is_the_share_of_all_that_is_known_whenever_it_came(
    tmp_path_factory: pytest.TempPathFactory, late: set[int], method: str, scope: str
) -> None:
    how = f'scope = "{scope}"\nmethod = "{method}"'
    clearing = agreements(*(an_agreement(f'covers = "{covers}"\n{how}', covers) for covers in ("legs", "caps")))
    taps = [f"{MONDAY} 07:00 board 10 card=ana", f"{MONDAY} 07:30 enter A card=ana", f"{MONDAY} 07:50 leave C card=ana"]
    taps += [f"{MONDAY} 08:10 board 11 card=ana", f"{MONDAY} 09:30 board 10 card=ben", f"{TUESDAY} 07:00 enter B card=ana"]
    taps += [f"{TUESDAY} 07:10 leave C card=ana", f"{TUESDAY} 08:00 board 11 card=ben"]
    folder = tmp_path_factory.mktemp("late")
    in_time, other = (town(folder / name, clearing, JOINT, WEEK_CAP) for name in ("one", "other"))
    for on in (MONDAY, TUESDAY):
        in_time.take("\n".join(tap for tap in taps if tap.startswith(on)))
        if in_time_too := [tap for n, tap in enumerate(taps) if tap.startswith(on) and n not in late]:
            other.take("\n".join(in_time_too))
        for town_ in (in_time, other):
            town_.close(on)
    for number in sorted(late):
        other.take(taps[number], now=f"{WEDNESDAY} 12:00")
    for on in (WEDNESDAY, SUNDAY):
        for town_ in (in_time, other):
            town_.close(on)
    assert published(other) == published(in_time)
    assert anew(other, SUNDAY) == exact(other)
    audited = audit_date(other.opened, SUNDAY)
    assert (audited.differences, audited.shared, audited.notes) == ((), (), ())


def anew(found: Town, through: str) -> dict[tuple[str, str], int]:
    """(pool with agreement, party) → its exact shares of all service dates, from nothing but what is known at a close."""
    rules = rules_of(found.tariff, found.opened.tariff_folder)
    sums: dict[tuple[str, str], int] = defaultdict(int)
    with found.database.read() as connection:
        for on in (MONDAY, TUESDAY, WEDNESDAY, SUNDAY):
            _, _, shares = share_of_date(connection, rules.agreements, rules.caps, on, through)
            for (pool, agreement), parts in shares.items():
                for party, share in parts.items():
                    sums[f"{pool}@{agreement}", party] += share
    return {key: share for key, share in sums.items() if share}


def exact(found: Town) -> dict[tuple[str, str], int]:
    """The same as the closes kept it."""
    states: dict[str, PoolState] = {}
    with found.database.read() as connection:
        for on in (MONDAY, TUESDAY, WEDNESDAY, SUNDAY):
            states |= store.list_pools(connection, on)
    return {(pool, party): share for pool, state in states.items() for party, share in state.exact.items() if share}
