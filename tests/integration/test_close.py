"""The close on a real store: taps come in over signed messages, days are closed, and money is shared once and for ever."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path

import pytest

from clearing.close import freeze
from clearing.commands import end_of
from clearing.statements import GIVEN
from fare_engine.errors import BooksError, CloseError
from fare_engine.tap_format import Decision, Outcome
from tests.builders import NETWORK, Town, row, version, write_city

CAP = row("caps", rule_id="day", period="service_day", amount=12_000, bearer="operators")
JOINT = row(
    "joining_rules",
    rule_id="joint",
    from_networks=("bus",),
    to_networks=("metro",),
    window_minutes=120,
    window_from="entry",
    off_first=1000,
    off_second=2000,
    bearer="CITY",
)
DAY_PASS = row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro", "bus"), days=1)
THREE_DAYS = row("products", product_id="WEEK", kind="pass", price=10_000, networks=("metro", "bus"), days=3, starts="purchase")
BOOK = row("products", product_id="BOOK", kind="book", price=10_000, networks=("bus",), trips=3)
HOLD = 'hold = "highest_fare"\n'

TUESDAY, WEDNESDAY, THURSDAY = "2026-03-03", "2026-03-04", "2026-03-05"
A_DAY = """07:00 board 10 card=ana
           07:20 enter A card=ana
           07:40 leave C card=ana
           08:00 board 11 card=ben
           08:10 board 10 cash card=paper
           09:00 board F card=ben"""


def town(folder: Path, *rules: str, riders: tuple[str, ...] = ("ana", "ben"), **options: object) -> Town:
    """A store of the little city with these riders' cards."""
    found = Town(folder / "data", write_city(folder / "city", *rules, **options))  # type: ignore[arg-type]
    found.issue(*riders)
    return found


def rows_of(document: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(document.decode())))


def settled(documents: dict[str, bytes]) -> dict[str, int]:
    """Each operator's `settled` of his statement."""
    return {
        name.removesuffix(".csv"): next(int(r["amount"]) for r in rows_of(content) if r["what"] == "settled")
        for name, content in documents.items()
        if name.removesuffix(".csv") in ("BOATS", "BUSCO", "COOP", "RAIL")
    }


def positions(documents: dict[str, bytes]) -> dict[str, int]:
    return {r["party_id"]: int(r["net"]) for r in rows_of(documents["positions.csv"])}


def proof(documents: dict[str, bytes]) -> dict[str, int]:
    return json.loads(documents["proof.json"])


def lines_of(document: bytes, section: str) -> list[str]:
    """A statement's rows of one section, without the empty cells."""
    rows = [row for row in rows_of(document) if row["section"] == section]
    return [" ".join(cell for name, cell in row.items() if cell and name not in ("line", "vat")) for row in rows]


def balance_of(found: Town, account: str) -> int:
    ((debits,),) = found.rows(f"select coalesce(sum(amount), 0) from postings where debit like '{account}'")
    ((credits,),) = found.rows(f"select coalesce(sum(amount), 0) from postings where credit like '{account}'")
    return int(debits) - int(credits)  # type: ignore[call-overload]


# ---- one day


def test_what_comes_in_goes_out(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT, CAP, metro=HOLD)
    found.take(A_DAY)
    documents = found.close(TUESDAY)
    # ana pays 4,000 + 7,000 and the city 3,000; ben 5,000 and 15,000, of which the cap takes 8,000 off; the ticket 5,000
    assert proof(documents) | {"seal": "", "tree_size": 0} == {
        "accounting_date": TUESDAY,
        "agreement_version": "1",
        "charged": 11_000 + 12_000 + 5000,
        "borne": 3000,
        "products": 0,
        "settled": 31_000,
        "net_sum": 0,
        "debits": proof(documents)["credits"],
        "credits": proof(documents)["credits"],
        "seal": "",
        "tree_size": 0,
        "taps": 6,
        "despite": "",
    }
    assert settled(documents) == {"BOATS": 9000, "BUSCO": 10_000, "COOP": 3000, "RAIL": 9000}
    assert positions(documents) == {
        "BOATS": 9000,
        "BUSCO": 5000,
        "CITY": -3000,
        "COOP": 3000,
        "RAIL": 9000,
        "riders": -23_000,
    }
    assert sum(positions(documents).values()) == 0
    assert balance_of(found, "fares:%") == 0
    assert balance_of(found, "holds") == 0
    assert found.audit(TUESDAY).differences == ()
    assert (found.balance("ana"), found.balance("ben")) == (-11_000, -12_000)


def test_a_statement_s_rows_sum_to_its_settled_and_every_statement_to_the_pools(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT, CAP)
    found.take(A_DAY)
    documents = found.close(TUESDAY)
    for name, content in documents.items():
        if name.removesuffix(".csv") in ("BOATS", "BUSCO", "COOP", "RAIL"):
            parts = [int(r["amount"]) for r in rows_of(content) if r["section"] in GIVEN]
            assert sum(parts) == settled(documents)[name.removesuffix(".csv")]
    assert sum(settled(documents).values()) == proof(documents)["settled"]
    pools = dict(found.rows("select pool, sum(amount) from settlements group by pool"))
    assert pools == {
        "CITY|bus|single": 1000,
        "CITY|metro|single": 2000,
        "rider|boat|single": 15_000,
        "rider|bus|single": 14_000,
        "rider|cap:day|single": -8000,
        "rider|metro|single": 7000,
    }


@pytest.mark.parametrize("arrivals", [("07:00 board 10", "07:30 board F"), ("07:30 board F", "07:00 board 10")])
def test_an_operator_owes_the_cash_of_his_own_legs_whichever_tap_came_first(tmp_path: Path, arrivals: tuple[str, str]) -> None:
    found = town(tmp_path)
    for arrival in arrivals:
        found.take(f"{arrival} cash card=paper")
    documents = found.close(TUESDAY)
    assert lines_of(documents["BUSCO.csv"], "total") == [
        f"total {TUESDAY} opening 0",
        f"total {TUESDAY} settled 5000",
        f"total {TUESDAY} cash_held -5000",
        f"total {TUESDAY} borne 0",
        f"total {TUESDAY} net 0",
        f"total {TUESDAY} paid 0",
        f"total {TUESDAY} closing 0",
    ]
    assert positions(documents) == {}
    assert lines_of(documents["BOATS.csv"], "legs") == [f"legs {TUESDAY} list_fare boat boat/boat cash own-legs 1 15000"]


def test_an_operator_without_a_leg_but_with_cash_has_a_statement_too(tmp_path: Path) -> None:
    found = town(tmp_path, row("discounts", rule_id="free", kind="percent", value=100, bearer="operators", routes=("10",)))
    found.take("07:00 board 10 cash card=paper")
    found.take("07:30 board F cash card=paper")
    assert "BUSCO.csv" in found.close(TUESDAY)


def test_a_day_without_any_ride_is_closed_and_its_proof_holds(tmp_path: Path) -> None:
    documents = town(tmp_path).close(TUESDAY)
    assert sorted(documents) == ["open-items.csv", "payments.csv", "positions.csv", "proof.json", "ridership.csv"]
    assert proof(documents)["settled"] == 0


def test_a_cap_that_the_city_bears_costs_the_operators_nothing(tmp_path: Path) -> None:
    found = town(tmp_path, CAP.replace("operators", "CITY"))
    found.take("07:00 board 10 card=ana\n08:00 board 11 card=ana\n09:00 board 10 card=ana")
    documents = found.close(TUESDAY)
    assert settled(documents) == {"BUSCO": 10_000, "COOP": 5000}
    assert positions(documents)["CITY"] == -3000


def test_companions_on_a_tap_do_not_weigh_when_a_cap_is_shared(tmp_path: Path) -> None:
    found = town(tmp_path, CAP)
    found.take("07:00 board 10 card=ana x3\n08:00 board 11 card=ana\n09:00 board 11 card=ana")
    # the cap takes 3,000 off, shared by 5,000 to 10,000
    assert settled(found.close(TUESDAY)) == {"BUSCO": 15_000 - 1000, "COOP": 10_000 - 2000}


def test_a_surcharge_goes_to_whoever_ran_the_ride_and_a_cap_on_surcharges_to_who_raised_them(tmp_path: Path) -> None:
    fee = row("surcharges", rule_id="fee", amount=4000, networks=("bus",))
    cap = row("caps", rule_id="fees", period="service_day", amount=6000, counts="surcharge")
    found = town(tmp_path, fee, cap)
    found.take("07:00 board F card=ana\n08:00 board 10 card=ana\n09:00 board 11 card=ana")
    assert settled(found.close(TUESDAY)) == {"BOATS": 15_000, "BUSCO": 5000 + 4000 - 1000, "COOP": 5000 + 4000 - 1000}


def test_the_cheapest_of_several_candidates_is_shared_by_what_the_rides_would_have_cost(tmp_path: Path) -> None:
    best = """
[[best_of]]
rule_id = "day"
name = { vi = "day", en = "day" }
period = "service_day"
networks = ["bus"]
[[best_of.candidates]]
candidate_id = "ticket"
name = { vi = "ticket", en = "ticket" }
amount = 12_000
"""
    found = town(tmp_path, best)
    found.take("07:00 board F card=ana\n08:00 board 10 card=ana\n09:00 board 11 card=ana\n10:00 board 10 card=ana")
    assert settled(found.close(TUESDAY)) == {"BOATS": 15_000, "BUSCO": 8000, "COOP": 4000}


def test_the_second_ride_at_half_price_and_the_month_s_rebate_are_paid_by_their_bearers(tmp_path: Path) -> None:
    reward = """
[[rewards]]
rule_id = "second"
name = { vi = "second", en = "second" }
period = "service_day"
steps = [{ after = 1, percent = 50 }]
bearer = "SPONSOR"
"""
    rebate = """
[[rebates]]
rule_id = "month"
name = { vi = "month", en = "month" }
period = "month"
tiers = [{ above = 5000, percent = 40 }]
bearer = "CITY"
"""
    found = town(tmp_path, reward, rebate)
    found.take("08:00 board 10 card=ana\n09:00 board 11 card=ana")
    first = found.close(TUESDAY)
    assert settled(first) == {"BUSCO": 5000, "COOP": 5000}
    assert positions(first)["SPONSOR"] == -2500
    paid = found.close("2026-04-02")  # the month has ended, and a day more for rides across its turn
    assert positions(paid)["CITY"] == -1000
    assert positions(found.close("2026-04-03")) == {}


def test_a_tap_that_cannot_be_used_is_named_in_its_operator_s_statement(tmp_path: Path) -> None:
    found = town(tmp_path)
    answers = found.take("07:00 board 10 card=nobody\n07:01 board 10 card=ana\n07:02 board 10 coin card=ana")
    assert [answer.result for answer in answers] == ["QUARANTINED", "ACCEPTED", "QUARANTINED"]
    documents = found.close(TUESDAY)
    assert lines_of(documents["BUSCO.csv"], "not_settled") == [
        f"not_settled {TUESDAY} unknown_medium quarantined clearing house 1",
        f"not_settled {TUESDAY} unknown_token quarantined clearing house 1",
    ]
    assert settled(documents) == {"BUSCO": 5000}


def test_a_missing_exit_is_charged_before_its_day_is_closed(tmp_path: Path) -> None:
    found = town(tmp_path, metro=HOLD)
    found.take("07:00 enter A card=ana")
    assert found.balance("ana") == -9000
    documents = found.close(TUESDAY)
    assert lines_of(documents["RAIL.csv"], "legs") == [
        f"legs {TUESDAY} list_fare metro gates/missing_exit riders own-legs 1 9000"
    ]
    assert found.audit(TUESDAY).differences == ()


def test_a_ride_under_way_at_the_close_is_settled_when_it_ends(tmp_path: Path) -> None:
    found = town(tmp_path, metro=HOLD)
    found.take("2026-03-04 02:00 enter A card=ana")
    assert settled(found.close(TUESDAY)) == {}
    assert balance_of(found, "holds") == -9000
    found.take("2026-03-04 02:40 leave B card=ana")
    documents = found.close(WEDNESDAY)
    assert lines_of(documents["RAIL.csv"], "late") == [f"late {TUESDAY} list_fare metro metro/short riders own-legs 1 6000"]
    assert balance_of(found, "holds") == 0


# ---- again, and late


def test_closing_twice_gives_the_same_bytes_and_changes_nothing(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT, CAP, DAY_PASS, metro=HOLD)
    found.take("06:00 buy DAY card=ben\n" + A_DAY)
    first = found.close(TUESDAY)
    before = found.everything()
    again = found.close_all(TUESDAY)
    assert [closed.newly for closed in again] == [False]
    assert again[0].documents == first
    assert found.everything() == before


def test_two_stores_that_heard_the_same_taps_close_with_the_same_bytes_but_for_the_seal(tmp_path: Path) -> None:
    one, other = town(tmp_path / "one", JOINT, CAP), town(tmp_path / "other", JOINT, CAP)
    one.take(A_DAY)
    for line in A_DAY.splitlines():
        other.take(line)
    first, second = (
        {name: content for name, content in found.close(TUESDAY).items() if name.endswith(".csv") and "devices" not in name}
        for found in (one, other)  # devices were heard of at other times
    )
    assert first == second


def test_a_late_tap_stands_in_the_next_statement_with_its_own_date_and_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT)
    found.take("07:20 enter A card=ana\n07:40 leave C card=ana")
    tuesday = found.close(TUESDAY)
    found.take("07:00 board 10 card=ana", now="2026-03-04 09:00")
    found.take("2026-03-04 08:00 board 10 card=ana")
    wednesday = found.close(WEDNESDAY)
    assert lines_of(wednesday["BUSCO.csv"], "late") == [
        f"late {TUESDAY} list_fare bus bus/bus riders own-legs 1 5000",
        f"late {TUESDAY} transfer bus joint CITY own-legs 1 1000",
        f"late {TUESDAY} transfer bus joint riders own-legs 1 -1000",
    ]
    assert lines_of(wednesday["BUSCO.csv"], "legs") == [f"legs {WEDNESDAY} list_fare bus bus/bus riders own-legs 1 5000"]
    assert settled(wednesday) == {"BUSCO": 10_000, "RAIL": 0}
    assert found.close(TUESDAY) == tuesday
    assert found.audit(WEDNESDAY).differences == ()
    assert balance_of(found, "fares:%") == 0


@pytest.mark.parametrize("bearer", ["operators", "CITY"])
def test_a_late_tap_that_changes_a_cap_s_weights_ends_with_what_was_due_had_it_come_in_time(tmp_path: Path, bearer: str) -> None:
    cap = CAP.replace("operators", bearer)
    early, late = "07:00 board 11 card=ana", "07:20 enter A card=ana\n07:40 leave C card=ana\n09:00 board 10 card=ana"
    in_time, behind = town(tmp_path / "a", cap), town(tmp_path / "b", cap)
    in_time.take(f"{early}\n{late}")
    due = settled(in_time.close(TUESDAY))
    behind.take(late)
    first = settled(behind.close(TUESDAY))
    behind.take(early, now="2026-03-04 09:00")
    second = settled(behind.close(WEDNESDAY))
    assert {name: first.get(name, 0) + second.get(name, 0) for name in first | second} == due
    if bearer == "operators":
        assert first == {"BUSCO": 4286, "RAIL": 7714}
        assert due == {"BUSCO": 3158, "COOP": 3158, "RAIL": 5684}
        assert sum(second.values()) == 0
        assert [line.split()[:3] for line in lines_of(behind.close(WEDNESDAY)["COOP.csv"], "shared")] == [
            ["shared", WEDNESDAY, "cap"]
        ]


def test_a_ride_that_turns_out_to_be_none_is_given_back_at_the_next_close(tmp_path: Path) -> None:
    found = town(tmp_path, CAP)
    found.take("07:00 board 10 card=ana\n08:00 board 11 card=ana\n09:00 board 10 card=ana")
    first = settled(found.close(TUESDAY))
    assert sum(first.values()) == 12_000
    found.tell("dev-COOP", 1, "2026-03-04 08:00")
    documents = found.close(WEDNESDAY)
    assert lines_of(documents["COOP.csv"], "late") == [f"late {TUESDAY} list_fare bus bus/bus riders own-legs -1 -5000"]
    second = settled(documents)
    assert {name: first[name] + second[name] for name in first} == {"BUSCO": 10_000, "COOP": 0}
    assert found.balance("ana") == -10_000
    assert found.audit(WEDNESDAY).differences == ()


def test_closing_a_date_closes_every_open_date_before_it_each_by_itself(tmp_path: Path) -> None:
    found = town(tmp_path)
    for day in (TUESDAY, THURSDAY):
        found.take(f"{day} 07:00 board 10 card=ana")
    closed = found.close_all("2026-03-07")
    assert [one.accounting_date for one in closed] == [TUESDAY, THURSDAY, "2026-03-07"]
    assert [settled(one.documents) for one in closed] == [{"BUSCO": 5000}, {"BUSCO": 5000}, {"BUSCO": 0}]
    assert all(one.newly for one in closed)


def test_a_date_that_was_passed_over_has_no_statements_to_give(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.close(THURSDAY)
    with pytest.raises(CloseError, match="2026-03-03 was passed over"):
        found.close(TUESDAY)


def test_every_document_names_the_one_of_its_name_before_it(tmp_path: Path) -> None:
    found = town(tmp_path)
    for day in (TUESDAY, WEDNESDAY):
        found.take(f"{day} 07:00 board 10 card=ana")
        found.close(day)
    rows = found.rows("select name, sha256, previous_sha256 from statements order by accounting_date, name")
    digest = {name: sha for name, sha, before in rows if before is None}
    assert {name: before for name, _, before in rows if before is not None} == digest


# ---- passes and books


def test_a_pass_s_day_is_shared_by_the_list_fares_it_paid_that_day(tmp_path: Path) -> None:
    found = town(tmp_path, DAY_PASS)
    found.take("06:00 buy DAY card=ana\n07:00 board 10 card=ana\n08:00 enter A card=ana\n08:10 leave C card=ana")
    documents = found.close(TUESDAY)
    # 10,000 by 5,000 to 9,000
    assert settled(documents) == {"BUSCO": 3571, "RAIL": 6429}
    assert positions(documents) == {"BUSCO": 3571, "RAIL": 6429, "riders": -10_000}
    assert balance_of(found, "deferred:%") == 0
    assert found.audit(TUESDAY).differences == ()


def test_a_pass_s_day_without_rides_goes_by_the_agreed_weights_and_late_rides_move_it(tmp_path: Path) -> None:
    found = town(tmp_path, THREE_DAYS)
    found.take("06:00 buy WEEK card=ana\n07:00 board 10 card=ana")
    assert settled(found.close(TUESDAY)) == {"BUSCO": 3333}
    assert settled(found.close(WEDNESDAY)) == {"BUSCO": 1111, "RAIL": 2222}
    found.take("2026-03-04 07:00 board 11 card=ana", now="2026-03-05 09:00")
    thursday = settled(found.close(THURSDAY))
    # Thursday's own 3,334 by two to one, and Wednesday's 3,333 from those two to the bus that carried the rider
    assert sum(thursday.values()) == 3334
    assert thursday["COOP"] == 3333
    assert found.audit(THURSDAY).differences == ()


def test_coupons_go_to_their_leg_s_operator_and_the_rest_of_a_book_is_shared_in_the_end(tmp_path: Path) -> None:
    found = town(tmp_path, BOOK)
    found.take("2026-12-30 06:00 buy BOOK card=ana\n2026-12-30 07:00 board 11 card=ana")
    assert settled(found.close("2026-12-30")) == {"COOP": 3333}
    closed = found.close_all("2027-01-04")
    totals: dict[str, int] = {}
    for one in closed:
        for name, amount in settled(one.documents).items():
            totals[name] = totals.get(name, 0) + amount
    assert sum(totals.values()) == 6667
    assert balance_of(found, "deferred:%") == 0


# ---- the long run


def test_after_thirty_days_each_party_is_within_one_dong_of_its_exact_share(tmp_path: Path) -> None:
    found = town(tmp_path, CAP.replace("12000", "10000"))
    totals: dict[str, int] = {}
    exact: dict[str, Fraction] = {}
    for number in range(30):
        day = (date(2026, 3, 3) + timedelta(days=number)).isoformat()
        found.take(f"{day} 07:00 board 11 card=ana\n07:20 enter A card=ana\n07:40 leave {'BC'[number % 2]} card=ana")
        for name, amount in settled(found.close(day)).items():
            totals[name] = totals.get(name, 0) + amount
        metro = (6000, 9000)[number % 2]
        over = metro + 5000 - 10_000
        for name, fare in (("COOP", 5000), ("RAIL", metro)):
            exact[name] = exact.get(name, Fraction(0)) + fare - Fraction(over * fare, metro + 5000)
            assert abs(totals[name] - exact[name]) < 1
    assert sum(totals.values()) == 300_000


# ---- what must not happen


def test_one_amount_changed_by_one_dong_is_found_by_the_audit_and_named(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT, CAP)
    found.take(A_DAY)
    found.close(TUESDAY)
    assert found.audit(TUESDAY).differences == ()
    ((leg,),) = found.rows("select leg_id from lines where kind = 'list_fare' and network_id = 'boat'")
    found.change("update lines set amount = amount + 1 where kind = 'list_fare' and network_id = 'boat'")
    (difference,) = found.audit(TUESDAY).differences
    assert (difference.traveller_id, difference.leg_id, difference.what) == ("ben", leg, "rider")
    assert (difference.audited, difference.booked) == (7000, 7001)


def test_a_pool_in_which_nobody_has_anything_any_more_is_no_difference(shop: Town, run) -> None:  # type: ignore[no-untyped-def]
    shop.take("07:00 board 10 card=ana\n08:10 board F card=ben")
    shop.close(TUESDAY)
    shop.tell("dev-BOATS", 1, f"{WEDNESDAY} 09:00")
    assert settled(shop.close(WEDNESDAY))["BOATS"] == -12_000
    assert run("audit", WEDNESDAY, "--data", shop.data)[0] == 0


def test_what_a_bearer_pays_changed_by_one_dong_is_found_too(tmp_path: Path) -> None:
    found = town(tmp_path, JOINT)
    found.take(A_DAY)
    found.change("update lines set funded = funded - 1 where kind = 'transfer' and network_id = 'metro'")
    (difference,) = found.audit(TUESDAY).differences
    assert (difference.what, difference.audited, difference.booked) == ("CITY", 2000, 1999)


def test_a_leg_that_nobody_rode_and_one_that_is_not_booked_are_found(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take("07:00 board 10 card=ana\n07:01 board 11 card=ben")
    found.change("update lines set leg_id = 'invented' where traveller_id = 'ana'")
    found.change("update lines set traveller_id = 'nobody' where traveller_id = 'ben'")
    differences = found.audit(TUESDAY).differences
    assert {(d.traveller_id, d.leg_id.split("/")[0]) for d in differences} == {
        ("ana", "invented"),
        ("ana", "dev-BUSCO"),
        ("ben", "dev-COOP"),
        ("nobody", "dev-COOP"),
    }


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (
            "update lines set operator_id = null where network_id = 'boat'",
            CloseError,
            "list_fare boat/boat of 2026-03-03 name no",
        ),
        (
            "insert into postings (transaction_id, number, code, debit, credit, amount, service_date, accounting_date)"
            " select 'x', 0, code, debit, 'riders', 7, service_date, accounting_date"
            " from postings where debit like 'fares:%' limit 1",
            BooksError,
            "the account fares:2026-03-03:.* is not zero",
        ),
        (
            "update lines set amount = amount + 1 where kind = 'list_fare' and network_id = 'boat'",
            BooksError,
            "the account fares:2026-03-03:.* is not zero",
        ),
    ],
)
def test_a_day_that_cannot_be_proved_is_frozen_and_nothing_of_it_is_published(
    tmp_path: Path, spoil: str, error: type[Exception], says: str
) -> None:
    found = town(tmp_path, JOINT)
    found.take(A_DAY)
    found.change(spoil)
    before = found.everything()
    with pytest.raises(error, match=says):
        found.close(TUESDAY)
    assert found.everything() | {"closes": []} == before
    with pytest.raises(error, match=says):
        found.close(TUESDAY)


def test_a_pool_without_an_agreement_stops_the_close_and_nothing_is_half_done(tmp_path: Path) -> None:
    nobody = NETWORK["clearing.toml"].replace('covers = "caps"', 'covers = "rewards"')
    found = town(tmp_path, CAP, files={"clearing.toml": nobody})
    found.take(A_DAY)
    before = found.everything()
    with pytest.raises(CloseError, match=r"no agreement covers cap day paid by riders on boat of 2026-03-03"):
        found.close(TUESDAY)
    assert found.everything() | {"closes": []} == before
    found.take("23:00 board 10 card=ana", now="2026-03-04 09:00")
    (tmp_path / "city" / "clearing.toml").write_text(NETWORK["clearing.toml"], encoding="utf-8")
    (tuesday,) = found.close_all(TUESDAY)
    assert tuesday.newly
    assert proof(tuesday.documents)["net_sum"] == 0
    assert lines_of(found.close(WEDNESDAY)["BUSCO.csv"], "late") == [
        f"late {TUESDAY} list_fare bus bus/bus riders own-legs 1 5000"
    ]


def test_a_close_that_died_after_the_freeze_is_taken_up_and_gives_the_bytes_it_would_have_given(tmp_path: Path) -> None:
    whole, broken = town(tmp_path / "whole", JOINT, CAP), town(tmp_path / "broken", JOINT, CAP)
    for found in (whole, broken):
        found.take(A_DAY)
    with broken.database.write() as connection:
        freeze(connection, TUESDAY, end_of(broken.tariff, TUESDAY), broken.tariff)
    for found in (whole, broken):
        if found is whole:
            due = whole.close(TUESDAY)
        found.take("07:05 board 11 card=ana", now="2026-03-04 09:00")
    assert broken.close(TUESDAY) == due
    assert broken.close(WEDNESDAY) == whole.close(WEDNESDAY)


def test_dates_that_wait_for_their_close_are_closed_in_their_order(tmp_path: Path) -> None:
    nobody = NETWORK["clearing.toml"].replace("valid_from = 2026-01-01", "valid_from = 2026-03-04", 1)
    found = town(tmp_path, files={"clearing.toml": nobody})
    for day in (TUESDAY, WEDNESDAY):
        found.take(f"{day} 07:00 board 10 card=ana")
    with pytest.raises(CloseError, match="no agreement covers"):
        found.close(WEDNESDAY)
    assert found.rows("select * from statements") == []
    (tmp_path / "city" / "clearing.toml").write_text(NETWORK["clearing.toml"], encoding="utf-8")
    assert [one.accounting_date for one in found.close_all(WEDNESDAY)] == [TUESDAY, WEDNESDAY]


def test_the_same_books_closed_under_another_agreement_give_another_sharing(tmp_path: Path) -> None:
    found = town(tmp_path, THREE_DAYS)
    found.take("06:00 buy WEEK card=ana\n06:30 board 10 card=ben")
    other = NETWORK["clearing.toml"].replace("RAIL = 2, BUSCO = 1", "COOP = 1")
    (tmp_path / "city" / "clearing.toml").write_text(other, encoding="utf-8")
    assert settled(found.close(TUESDAY)) == {"BUSCO": 5000, "COOP": 3333}


def test_the_auditor_reads_a_cap_whose_bearer_is_not_written_down(tmp_path: Path) -> None:
    found = town(tmp_path, row("caps", rule_id="day", period="service_day", amount=12_000))
    found.take(A_DAY)
    assert found.audit(TUESDAY).differences == ()


def test_a_rider_refused_at_the_gate_pays_nothing_and_one_with_money_is_let_in(tmp_path: Path) -> None:
    found = town(tmp_path, riders=("ana",))
    found.issue("poor", kind="prepaid", balance=0)
    found.issue("rich", kind="prepaid", balance=20_000)
    day = "07:00 board 10 card=poor\n07:01 board 10 card=rich\n07:02 board 10 card=ana"
    answers = found.take(day, decision=Decision.ASKED_ONLINE)
    assert [(answer.decision, answer.reason) for answer in answers] == [
        ("refused", "insufficient_balance"),
        ("admitted", None),
        ("admitted", None),
    ]
    assert settled(found.close(TUESDAY)) == {"BUSCO": 10_000}
    assert (found.balance("poor"), found.balance("rich")) == (0, 15_000)
    assert found.audit(TUESDAY).differences == ()


def test_a_refused_rider_whom_the_gate_let_in_all_the_same_pays_and_the_auditor_agrees(tmp_path: Path) -> None:
    found = town(tmp_path, riders=())
    found.issue("poor", kind="prepaid", balance=0)
    found.take("07:00 board 10 card=poor\n07:10 board 10 card=poor", decision=Decision.ASKED_ONLINE)
    found.tell("dev-BUSCO", 1, "2026-03-03 07:11", Outcome.TIMED_OUT, Decision.ADMITTED_ALONE)
    found.tell("dev-BUSCO", 2, "2026-03-03 07:12", Outcome.TIMED_OUT, Decision.REFUSED_ALONE)
    assert settled(found.close(TUESDAY)) == {"BUSCO": 5000}
    assert found.audit(TUESDAY).differences == ()


def test_a_student_s_entitlement_is_known_to_the_close_and_to_the_auditor(tmp_path: Path) -> None:
    found = town(tmp_path, row("discounts", rule_id="s", kind="price", value=3000, bearer="CITY", rider_categories=("student",)))
    found.issue("eva", category="student")
    found.take("07:00 board 10 card=eva\n07:01 board 10 card=ana")
    assert positions(found.close(TUESDAY)) == {"BUSCO": 10_000, "CITY": -2000, "riders": -8000}
    assert found.audit(TUESDAY).differences == ()


def test_a_new_tariff_between_two_closes_prices_each_day_by_its_own(tmp_path: Path) -> None:
    files = version("later", valid_from=date(2026, 3, 4))
    files["later/fare_products.txt"] = files["later/fare_products.txt"].replace("bus,Bus ride,,,5000", "bus,Bus ride,,,8000")
    found = town(tmp_path, files=files)
    found.take(f"{TUESDAY} 07:00 board 10 card=ana\n{WEDNESDAY} 02:29 board 10 card=ana\n{WEDNESDAY} 02:30 board 10 card=ana")
    assert [settled(one.documents) for one in found.close_all(WEDNESDAY)] == [{"BUSCO": 10_000}, {"BUSCO": 8000}]


# ---- the commands


@pytest.fixture
def shop(tmp_path: Path) -> Town:
    """A store that commands can open."""
    found = town(tmp_path, JOINT, CAP, metro=HOLD)
    found.let_commands_open_it()
    return found


def test_the_commands_close_a_day_audit_it_and_write_its_statements(shop: Town, run) -> None:  # type: ignore[no-untyped-def]
    shop.take(A_DAY + "\n10:00 enter A card=ana")
    code, out, _ = run("advance", "2026-03-03T14:00:00+07:00", "--data", shop.data)
    assert (code, out) == (0, "time passed to 2026-03-03T14:00:00+07:00 for 1 travellers\n")
    code, out, _ = run("clear", TUESDAY, "--data", shop.data)
    assert code == 0
    assert f"PROOF {TUESDAY}: charged 37.000 ₫ + borne by others 3.000 ₫ + passes and books 0 ₫ = shared 40.000 ₫" in out
    assert "Little Metro" in out
    folder = shop.data / "statements" / TUESDAY
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == shop.close(TUESDAY)
    code, again, _ = run("clear", TUESDAY, "--data", shop.data)
    assert "closed before; the same bytes" in again
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    code, out, _ = run("audit", TUESDAY, "--data", shop.data)
    assert (code, out) == (
        0,
        f"AUDIT {TUESDAY}: 7 taps, 3 travellers, 6 legs, charged 37.000 ₫: 0 differences\n",
    )


def test_an_audit_that_finds_something_ends_with_exit_code_1_and_names_it(shop: Town, run) -> None:  # type: ignore[no-untyped-def]
    shop.take(A_DAY)
    shop.change("update lines set amount = amount + 1 where kind = 'list_fare' and network_id = 'boat'")
    code, out, _ = run("audit", TUESDAY, "--data", shop.data)
    assert code == 1
    assert out.splitlines()[0].startswith("traveller ben leg dev-BOATS/")
    assert out.splitlines()[0].endswith("rider: audited 7000, booked 7001")


@pytest.mark.parametrize("command", ["clear", "audit"])
def test_a_date_that_is_none_and_a_store_that_is_not_there_are_refused(run, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    assert run(command, "3 March", "--data", tmp_path)[0] in (1, 2)
    code, out, err = run(command, TUESDAY, "--data", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert "there is no store in" in err
