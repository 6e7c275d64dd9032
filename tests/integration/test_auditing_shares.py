"""`motthe audit` under agreements of every kind: it gives everybody what the close gave him, and names what was changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import NETWORK, Town, row, write_city
from tests.shares import an_agreement

MONDAY, TUESDAY, WEDNESDAY, SUNDAY = "2026-03-02", "2026-03-03", "2026-03-04", "2026-03-08"
RULES = (
    row(
        "joining_rules",
        rule_id="joint",
        from_networks=("bus", "metro"),
        to_networks=("metro", "bus"),
        window_minutes=120,
        window_from="entry",
        off_first=500,
        off_second=2000,
        max_transfers=3,
        bearer="CITY",
    ),
    row("discounts", rule_id="half", kind="percent", value=50, bearer="CITY", rider_categories=("student",)),
    row("caps", rule_id="week", period="week", amount=30_000, bearer="operators"),
    row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro", "bus"), days=3, starts="purchase"),
)
NAME = 'name = { vi = "x", en = "x" }\nvalid_from = 2026-01-01\n'
TABLES = (
    an_agreement("boats", 'covers = "legs"\nmethod = "per_ride"\namount = 4000\nresidual = "CITY"\nnetworks = ["boat"]'),
    an_agreement("pair", 'covers = "fares"\nmethod = "boardings"\nscope = "journey"\noperators = ["RAIL", "BUSCO"]'),
    an_agreement(
        "concessions",
        'covers = "discounts"\nmethod = "passenger_km"\nscope = "service_day"\n'
        'unknown_m = { bus = 4000, boat = 900 }\npaid_by = ["CITY"]',
    ),
    an_agreement("transfers", 'covers = "transfers"\nmethod = "standalone_fares"\nscope = "month"'),
    an_agreement("journeys", 'covers = "legs"\nmethod = "tariff_km"\nscope = "journey"\nunknown_m = { bus = 3000 }'),
    an_agreement("weeks", 'covers = "caps"\nmethod = "paid_fares"\nscope = "week"'),
    an_agreement(
        "pass",
        'covers = "products"\nmethod = "use"\nscope = "week"\nweigh_by = "boardings"\nwithout_use = { RAIL = 2, BUSCO = 1 }',
    ),
    f'[[subsidies]]\nsubsidy_id = "pupils"\n{NAME}paid_by = "CITY"\namount = 700\n'
    'networks = ["bus"]\nroutes = ["10"]\nrider_categories = ["student"]\n',
    f'[[fees]]\nfee_id = "house"\n{NAME}paid_by = "operators"\npaid_to = "CITY"\nbase = "settled"\npercent = "1"\n',
)
DISTANCES = "from_stop_id,to_stop_id,km\nA,B,1.4\nC,B,1.8\n"
"""From A to C nobody measured: the straight line counts."""
DAYS = {
    MONDAY: """06:00 buy DAY card=ben
               07:00 board 10 card=ana
               07:20 enter A card=ana
               07:40 leave C card=ana
               08:10 board 11 card=ana
               08:30 board 10 x3 card=eva
               08:50 enter B card=eva
               09:00 leave C card=eva
               12:00 board F x2 card=eva
               12:10 enter C card=ben
               12:20 leave B card=ben
               23:40 board 10 card=ana""",
    TUESDAY: """00:20 board 11 card=ana
                07:00 enter A card=ana
                07:20 leave B card=ana
                08:00 board 11 card=ben
                08:10 board 10 card=ben
                18:00 board 10 card=ana
                18:10 enter B card=ana
                18:20 leave A card=ana
                18:50 board 10 card=eva""",
    WEDNESDAY: """07:00 enter C card=ana
                  07:20 leave A card=ana
                  18:00 enter A card=ana
                  23:00 board 11 card=ana""",
    SUNDAY: "10:00 board F card=ben",
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """A city whose operators share by journeys, kilometres, boardings, weeks and months, with a store that commands open."""
    clearing = NETWORK["clearing.toml"]
    first = clearing.index("[[agreements]]")
    files = {"clearing.toml": "\n".join([clearing[:first], *TABLES]), "network/distances.csv": DISTANCES}
    found = Town(tmp_path / "data", write_city(tmp_path / "city", *RULES, files=files))
    found.issue("ana", "ben")
    found.issue("eva", category="student")
    found.let_commands_open_it()
    return found


def ride_and_close(town: Town, through: str) -> None:
    for on, day in DAYS.items():
        if on <= through:
            first, *rest = day.splitlines()
            town.take("\n".join([f"{on} {first}", *rest]))
            town.close(on)


@pytest.mark.parametrize("through", [MONDAY, TUESDAY, WEDNESDAY, SUNDAY])
def test_the_auditor_gives_everybody_what_the_closes_gave_him(town: Town, run: Run, through: str) -> None:
    ride_and_close(town, through)
    code, out, _ = run("audit", through, "--data", town.data)
    assert (code, out.splitlines()[:-1]) == (0, []), out
    assert out.endswith(": 0 differences\n")


def test_a_month_is_shared_once_over_when_it_has_ended(town: Town, run: Run) -> None:
    ride_and_close(town, SUNDAY)
    before = town.rows("select count(*) from settlements where agreement_id = 'transfers'")
    town.close("2026-04-02")  # nobody rode on the month's last date
    assert town.rows("select count(*) from settlements where agreement_id = 'transfers'") > before
    code, out, _ = run("audit", "2026-04-02", "--data", town.data)
    assert (code, out.splitlines()[:-1]) == (0, []), out


def test_what_came_late_is_where_the_auditor_gives_it(town: Town, run: Run) -> None:
    ride_and_close(town, TUESDAY)
    town.take(f"{MONDAY} 07:50 board 10 card=ana\n17:00 board 11 card=eva", now=f"{WEDNESDAY} 12:00")
    town.close(WEDNESDAY)
    code, out, _ = run("audit", WEDNESDAY, "--data", town.data)
    assert (code, out.splitlines()[:-1]) == (0, []), out
    code, out, _ = run("audit", TUESDAY, "--data", town.data)
    assert (code, out.splitlines()[0]) == (
        0,
        f"shares: rides up to {TUESDAY} moved since its close; they are audited with the close that says so",
    )


@pytest.mark.parametrize("told_on", [TUESDAY, WEDNESDAY])
def test_who_was_not_let_through_was_not_there(tmp_path: Path, run: Run, told_on: str) -> None:
    shared = an_agreement("days", 'covers = "legs"\nscope = "service_day"\nmethod = "boardings"')
    clearing = NETWORK["clearing.toml"].replace("[[agreements]]", f"{shared}\n[[agreements]]", 1)
    found = Town(tmp_path / "data", write_city(tmp_path / "city", files={"clearing.toml": clearing}))
    found.issue("ana")
    found.let_commands_open_it()
    found.take("07:00 board 10 card=ana\n07:20 enter A card=ana\n07:40 leave C card=ana\n08:10 board 11 card=ana")
    if told_on == WEDNESDAY:
        found.close(TUESDAY)
    found.tell("dev-COOP", 1, f"{told_on} 09:00")
    found.close(told_on)
    given = found.rows("select party, sum(amount) from settlements group by party having sum(amount) <> 0 order by party")
    assert given == [("BUSCO", 7000), ("RAIL", 7000)]
    code, out, _ = run("audit", told_on, "--data", found.data)
    assert (code, out.splitlines()[:-1]) == (0, []), out


def test_a_settlement_changed_by_one_dong_is_named(town: Town, run: Run) -> None:
    ride_and_close(town, TUESDAY)
    where = f"accounting_date = '{TUESDAY}' and agreement_id = 'journeys' and party = 'COOP' and pool = 'rider|bus|single'"
    ((pool, amount),) = town.rows(f"select pool, amount from settlements where {where}")
    town.change(f"update settlements set amount = amount + 1 where {where}")
    code, out, _ = run("audit", TUESDAY, "--data", town.data)
    assert code == 1
    key = f"CHANGED settlements {TUESDAY}/{pool}/journeys/COOP"
    assert f"{key}: {amount} is not what the date's lines give" in out
    assert "given up to" not in out, "one unit may be rounding"


def test_an_amount_for_a_ride_that_was_never_ridden_is_found_by_the_auditor_too(town: Town, run: Run) -> None:
    ride_and_close(town, TUESDAY)
    town.change("update settlements set amount = amount + 4000 where pool = 'ride|boats|BOATS' and party = 'BOATS'")
    code, out, _ = run("audit", TUESDAY, "--data", town.data)
    assert code == 1
    assert f"party BOATS given up to {TUESDAY}: audited 8635, published 12634" in out


@pytest.mark.parametrize(
    ("written", "otherwise", "parties"),
    [
        ("unknown_m = { bus = 3000 }", "unknown_m = { bus = 9000 }", {"BUSCO", "COOP", "RAIL"}),
        ('residual = "CITY"', 'residual = "SPONSOR"', {"CITY", "SPONSOR"}),
        ("amount = 700", "amount = 800", {"BUSCO", "CITY"}),
    ],
)
def test_a_close_by_another_agreement_than_the_written_one_is_found(
    town: Town, run: Run, written: str, otherwise: str, parties: set[str]
) -> None:
    ride_and_close(town, TUESDAY)
    path = town.opened.tariff_folder / "clearing.toml"
    text = path.read_text(encoding="utf-8")
    assert written in text
    path.write_text(text.replace(written, otherwise), encoding="utf-8")
    code, out, _ = run("audit", TUESDAY, "--data", town.data)
    assert code == 1
    assert {line.split()[1] for line in out.splitlines() if line.startswith("party ")} == parties, out
