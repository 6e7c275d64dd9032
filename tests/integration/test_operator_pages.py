"""What an accountant sees of his own settlement, and that he sees nothing of anybody else's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from clearing import store
from clearing.bank import booking
from clearing.pages import disputes, operator, reconciliation, settlement
from clearing.pages.words import WORDS
from clearing.statements import SECTIONS, digest
from fare_engine.service.app import create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import registry
from fare_engine.tap_format import Decision
from tests.builders import SERVER_KEY, row
from tests.camt import ACCOUNTS, camt, entry
from tests.disputing import A_DAY, JOINT, NOW, TUESDAY, WEDNESDAY, DisputingTown, disputing

CAP = row("caps", rule_id="day", period="service_day", amount=12_000, bearer="operators")
MORE = A_DAY + "\n18:00 board 10 card=ben\n18:30 board 11 card=ben\n19:00 board 10 card=nobody"
PAYMENTS = f"""
[payments]
payments_version = "1"
currency = "VND"
[clearing_house]
holder = "Clearing house"
bank_bic = "{ACCOUNTS.own.bank_bic}"
number = "{ACCOUNTS.own.number}"
""" + "".join(
    f'[[parties]]\nparty_id = "{party}"\nbank_bic = "{account.bank_bic}"\nnumber = "{account.number}"\n'
    for party, account in ACCOUNTS.parties.items()
)
USERS = {"BUSCO": "busco", "COOP": "coop", "RAIL": "rail", "CITY": "city"}


class Site:
    """The pages over a little city with two closed days, a dispute, a late tap and a tap in quarantine."""

    def __init__(self, town: DisputingTown, application: FastAPI) -> None:
        self.town = town
        self.application = application

    def as_(self, party: str, language: str = "en") -> TestClient:
        """The browser of a party's accountant."""
        client = TestClient(self.application, base_url="http://127.0.0.1")
        assert client.post("/operator/login", data={"name": USERS[party], "secret": "password"}).status_code == 200
        client.get(f"/operator?lang={language}")
        return client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    town = disputing(tmp_path_factory.mktemp("pages"), JOINT, CAP, day=MORE)
    town.take(f"{TUESDAY} 10:00 board 10 card=ben", now=f"{WEDNESDAY} 09:00")
    town.take(f"{WEDNESDAY} 10:00 enter A card=ana\n10:20 leave B card=ana", decision=Decision.ADMITTED_ALONE)
    (town.data / "keys" / "server.key").write_bytes(SERVER_KEY)
    (town.opened.tariff_folder / "payments.toml").write_text(PAYMENTS, encoding="utf-8")
    with town.database.write() as connection:
        for party, name in USERS.items():
            registry.add_user(connection, name, party, "password")
    town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"), amount=3000, text="these were our vehicles")
    town.close(WEDNESDAY, despite="disputed")
    service = open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: NOW)
    routers = (operator.router, settlement.router, reconciliation.router, disputes.router)
    yield Site(town, create_app(service, routers))
    service.database.dispose()


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def dong(text: str) -> int:
    digits = int(re.sub(r"\D", "", text))
    return -digits if "−" in text else digits


def links(html: str) -> list[str]:
    return re.findall(r'href="(/operator[^"?]*)"', html)


# ---- home


def test_home_says_what_is_to_be_received_and_what_needs_somebody_each_with_a_link(site: Site) -> None:
    page = site.as_("BUSCO").get("/operator").text
    closing = next(int(r["amount"]) for r in site.town.statement("BUSCO", WEDNESDAY) if r["what"] == "closing")
    shown = re.search(r'id="to-receive"><a href="/operator/settlement/2026-03-04">([^<]+)<', page)
    assert shown is not None
    assert dong(shown[1]) == closing
    for name, link in (
        ("period", "/operator/reconciliation"),
        ("silent", "/operator/devices"),
        ("disputes", "/operator/disputes"),
    ):
        assert re.search(rf'id="{name}"><a href="{link}">', page), name
    assert re.search(r'id="disputes"><a href="[^"]+">1<', page)
    assert re.search(r'id="silent"><a href="[^"]+">0<', page)


# ---- settlement


@pytest.mark.parametrize("party", ["BUSCO", "COOP", "RAIL", "CITY"])
@pytest.mark.parametrize("day", [TUESDAY, WEDNESDAY])
def test_every_section_and_sum_of_the_published_statement_is_on_the_page(site: Site, party: str, day: str) -> None:
    rows = site.town.statement(party, day)
    page = site.as_(party).get(f"/operator/settlement/{day}").text
    for name in ("opening", "settled", "cash_held", "borne", "net", "paid", "closing"):
        shown = re.search(rf'id="{name}">([^<]+)<', page)
        assert shown is not None, name
        assert dong(shown[1]) == next(int(r["amount"]) for r in rows if r["section"] == "total" and r["what"] == name)
    for section in {r["section"] for r in rows if r["line"]}:
        assert WORDS[f"section_{section}"][1] in page
    for r in rows:
        if r["line"]:
            assert f'href="/operator/settlement/{day}/line/{r["line"]}"' in page
    headings = [dong(text) for text in re.findall(r'<h2 class="split"><span>[^<]+</span><span class="amount">([^<]+)<', page)]
    assert sum(headings) == next(int(r["amount"]) for r in rows if r["what"] == "closing")
    with site.town.database.read() as connection:
        content = store.find_document(connection, day, f"{party}.csv")
    assert content is not None
    assert digest(content) in page


def test_the_sections_have_words_in_both_languages() -> None:
    assert [name for name in SECTIONS if not all(WORDS[f"section_{name}"])] == []
    assert {key for key, pair in WORDS.items() if not all(pair)} == set()


def test_the_page_says_version_lock_and_until_when_it_can_be_followed(site: Site) -> None:
    english = text_of(site.as_("BUSCO").get(f"/operator/settlement/{TUESDAY}").text)
    assert "closed and locked" in english
    assert "Agreement version 1" in english
    assert f"Can be followed to its taps until {site.town.statement('BUSCO')[1]['service_date']}" in english
    vietnamese = text_of(site.as_("BUSCO", "vi").get(f"/operator/settlement/{TUESDAY}").text)
    assert "đã khóa sổ" in vietnamese
    assert "Chặng đi trong ngày" in vietnamese


def test_without_caps_an_operator_would_have_earned_what_the_caps_took_besides(site: Site) -> None:
    rows = site.town.statement("BUSCO")
    settled = next(int(r["amount"]) for r in rows if r["what"] == "settled")
    capped = sum(int(r["amount"]) for r in rows if r["what"] == "cap")
    assert capped < 0
    shown = re.search(r'id="without-caps">([^<]+)<', site.as_("BUSCO").get(f"/operator/settlement/{TUESDAY}").text)
    assert shown is not None
    assert dong(shown[1]) == settled - capped


def test_what_was_published_is_downloaded_byte_for_byte_and_nothing_that_was_not(site: Site) -> None:
    client = site.as_("BUSCO")
    with site.town.database.read() as connection:
        documents = store.published(connection, TUESDAY)
    for word, name in (("csv", "BUSCO.csv"), ("devices", "BUSCO.devices.csv"), ("xlsx", "BUSCO.xlsx"), ("pdf", "BUSCO.pdf")):
        heard = client.get(f"/operator/settlement/{TUESDAY}/{word}")
        linked = f"/operator/settlement/{TUESDAY}/{word}" in links(client.get(f"/operator/settlement/{TUESDAY}").text)
        assert linked == (name in documents)
        assert (heard.status_code, heard.content == documents.get(name)) == ((200, True) if name in documents else (404, False))
    assert client.get(f"/operator/settlement/{TUESDAY}/COOP.csv").status_code == 404


# ---- one row


def test_every_row_is_followed_to_the_signed_taps_of_one_s_own_devices(site: Site) -> None:
    client = site.as_("BUSCO")
    for day in (TUESDAY, WEDNESDAY):
        for r in site.town.statement("BUSCO", day):
            if r["line"]:
                heard = client.get(f"/operator/settlement/{day}/line/{r['line']}")
                assert heard.status_code == 200, r
                assert "built-in" not in heard.text
                assert "does not give the published figure" not in heard.text
                if r["section"] in ("legs", "late"):
                    assert "✓ signed" in heard.text
                assert not re.search(r"dev-(COOP|RAIL)", heard.text), r


def test_riders_have_a_name_on_one_statement_only(site: Site) -> None:
    client, line = site.as_("BUSCO"), site.town.line("BUSCO", "cap")
    page = client.get(f"/operator/settlement/{TUESDAY}/line/{line}").text
    assert WORDS["found_part"][1] in unescape(page)
    assert not re.search(r"\b(ana|ben)\b", text_of(page))
    other = site.as_("COOP").get(f"/operator/settlement/{TUESDAY}/line/{site.town.line('COOP', 'cap')}").text
    assert set(re.findall(r"<code>([0-9a-f]{12})</code>", page)).isdisjoint(re.findall(r"<code>([0-9a-f]{12})</code>", other))


def test_a_long_row_is_turned_page_by_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearing.pages.visitors.ON_A_PAGE", 1)
    client = site.as_("BUSCO")
    path = f"/operator/settlement/{TUESDAY}/line/{site.town.line('BUSCO', 'list_fare')}"
    keys = []
    for number in (1, 2, 3):
        page = client.get(f"{path}?number={number}").text
        keys += re.findall(r"Line <code>([0-9a-f]+)</code>", page)
        assert ("Next" in page, "Previous" in page) == (number < 3, number > 1)
    assert len(set(keys)) == 3
    assert client.get(f"{path}?number=99").status_code == 200


def test_a_row_that_is_not_explained_any_more_says_so(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    with town.database.write() as connection:
        registry.add_user(connection, "busco", "BUSCO", "password")
    town.change("update lines set amount = amount + 1 where operator_id = 'BUSCO' and kind = 'list_fare'")
    service = open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: NOW)
    found = Site(town, create_app(service, (operator.router, settlement.router))).as_("BUSCO")
    heard = found.get(f"/operator/settlement/{TUESDAY}/line/{town.line('BUSCO', 'list_fare')}")
    assert heard.status_code == 200
    assert WORDS["not_explained"][1] in unescape(heard.text)
    service.database.dispose()


# ---- reconciliation


def test_payments_of_each_closed_date_with_their_state(site: Site) -> None:
    client = site.as_("RAIL")
    with site.town.database.read() as connection:
        own = [one for day in (TUESDAY, WEDNESDAY) for one in store.list_payments(connection, day) if one.party_id == "RAIL"]
    page = client.get("/operator/reconciliation").text
    assert re.findall(r"/operator/payments/(\w+)", page) == [one.payment_id for one in reversed(own)]
    assert page.count("waiting for the bank") == len(own) == 2
    wrong = own[0].amount - 1
    content = camt(
        entry(-own[1].amount, text=own[1].payment_id, bank_ref="R1"),
        entry(-wrong, text=own[0].payment_id, bank_ref="R2", account=ACCOUNTS.parties["RAIL"].number),
        moved=-wrong - own[1].amount,
    )
    with site.town.database.write(alone=True) as connection:
        booking.import_file(connection, content, ACCOUNTS, 0, NOW)
    page = client.get("/operator/reconciliation").text
    assert (page.count("paid by the bank"), page.count("waiting for the bank")) == (1, 1)
    assert re.search(rf'id="waiting">.*₫{wrong:,}<.*another amount', page, re.DOTALL)
    assert re.search(r'id="unmatched"><a href="/operator/reconciliation">1<', client.get("/operator").text)
    one = text_of(client.get(f"/operator/payments/{own[1].payment_id}").text)
    assert "paid by the bank" in one
    assert f"₫{own[1].amount:,}" in one.split("The bank's lines")[1]
    rival = site.as_("BUSCO")
    assert 'id="waiting"' not in rival.get("/operator/reconciliation").text
    assert re.search(r'id="unmatched"><a href="/operator/reconciliation">0<', rival.get("/operator").text)


def test_late_taps_are_one_file_with_device_time_fare_and_a_reason_each(site: Site) -> None:
    client = site.as_("BUSCO")
    page = client.get("/operator/reconciliation").text
    assert "/operator/reconciliation/late.csv" in links(page)
    for path in ("late.csv", f"late-{WEDNESDAY}.csv"):
        heard = client.get(f"/operator/reconciliation/{path}")
        assert heard.headers["content-disposition"].startswith('attachment; filename="BUSCO-late')
        rows = list(csv.DictReader(io.StringIO(heard.text)))
        (own,) = [one for one in rows if one["began_at"] == f"{TUESDAY}T10:00:00+07:00" and int(one["fare"]) > 0]
        assert (own["device_id"], own["fare"], own["days_late"]) == ("dev-BUSCO", "5000", "1")
        assert (own["received_at"], own["reason"]) == (
            f"{WEDNESDAY}T09:00:00+07:00",
            "the tap came in after its day was closed",
        )
        total = sum(int(r["amount"]) for r in site.town.statement("BUSCO", WEDNESDAY) if r["section"] == "late")
        assert sum(int(one["fare"]) for one in rows) == total
        assert all(one["reason"] for one in rows)
    assert client.get(f"/operator/reconciliation/late-{TUESDAY}.csv").text.count("\n") == 1
    assert client.get("/operator/reconciliation/late-2020-01-01.csv").status_code == 404


def test_what_a_rival_s_device_brought_late_is_not_named(site: Site) -> None:
    for party, rival in (("COOP", "BUSCO"), ("RAIL", "BUSCO")):
        assert f"dev-{rival}" not in site.as_(party).get("/operator/reconciliation/late.csv").text


def test_open_items_have_an_owner_and_an_age(site: Site) -> None:
    page = text_of(site.as_("BUSCO").get("/operator/reconciliation").text)
    assert "Taps set aside unknown_token The clearing house 1 1 days" in page
    assert "Disputed dispute" in page


# ---- disputes


def test_a_bearer_disputes_a_row_of_its_own_and_both_sides_see_claim_evidence_and_decision(site: Site) -> None:
    city, bus, rail = site.as_("CITY"), site.as_("BUSCO"), site.as_("RAIL")
    line = site.town.line("CITY", "transfer", "")
    path = f"/operator/settlement/{TUESDAY}/line/{line}"
    assert "at most ₫1,000" in text_of(city.get(path).text)
    for fields, status, error in (
        ({"text": " ", "amount": ""}, 409, "error_text"),
        ({"text": "no", "amount": "1001"}, 409, "error_above_row"),
        ({"text": "no", "amount": "²"}, 409, "error_above_row"),
        ({"text": "no", "leg": "dev-RAIL/0101010101010101/1"}, 409, "error_legs"),
    ):
        heard = city.post(f"{path}/dispute", data=fields)
        assert (heard.status_code, WORDS[error][1] in unescape(heard.text)) == (status, True), fields
    heard = city.post(f"{path}/dispute", data={"text": "not <our> discount", "amount": "600"})
    name = heard.url.path.removeprefix("/operator/disputes/")
    assert heard.status_code == 200
    for client in (city, bus):
        page = client.get(f"/operator/disputes/{name}").text
        assert "not &lt;our&gt; discount" in page
        assert "₫600" in page
        assert "✓ signed" in page
        assert "clock offset 0 ms" in text_of(page)
        assert "Not decided yet." in page
        assert f"/operator/disputes/{name}" in links(client.get("/operator/disputes").text)
    assert rail.get(f"/operator/disputes/{name}").status_code == 404
    with site.town.database.read() as connection:
        found = disputes.store.find(connection, name)
    assert found is not None
    site.town.decide(found, 200)
    for client in (city, bus):
        shown = text_of(client.get(f"/operator/disputes/{name}").text)
        assert "accepted in part" in shown
        assert "Granted ₫200 → The city Reason as the taps say Decided by lan" in shown
        assert "posted under 2026-03-05" in shown
    site.town.assert_sound()


def test_a_bearer_disputes_single_legs_that_it_pays_for(site: Site) -> None:
    client = site.as_("CITY")
    rows = [r for r in site.town.statement("CITY") if r["section"] == "borne" and r["network_id"] == "metro"]
    path = f"/operator/settlement/{TUESDAY}/line/{rows[0]['line']}"
    legs = re.findall(r'name="leg" value="([^"]+)"', client.get(path).text)
    assert legs == site.town.legs("RAIL")[:1]
    heard = client.post(f"{path}/dispute", data={"text": "not this one", "leg": legs})
    assert heard.status_code == 200
    assert re.search(r'id="held">₫2,000<', heard.text)
    assert f"<code>{legs[0]}</code>" in heard.text
    site.town.assert_sound()


def test_an_own_row_that_took_nothing_has_no_form(site: Site) -> None:
    client = site.as_("BUSCO")
    for what in ("cap", "list_fare"):  # what the cap took, it gave to riders
        path = f"/operator/settlement/{TUESDAY}/line/{site.town.line('BUSCO', what)}"
        assert "<textarea" not in client.get(path).text
    heard = client.post(f"{path}/dispute", data={"text": "more"})
    assert (heard.status_code, WORDS["error_nothing_held"][1] in heard.text) == (409, True)


def test_whoever_was_given_the_money_sees_what_is_held_of_his_own_rows_only(tmp_path: Path) -> None:
    town = disputing(tmp_path, JOINT.replace('to_networks = ["metro"]', 'to_networks = ["metro", "bus"]'))
    with town.database.write() as connection:
        for party, name in USERS.items():
            registry.add_user(connection, name, party, "password")
    lines = [r["line"] for r in town.statement("CITY") if r["section"] == "borne" and r["network_id"] == "bus"]
    found = town.dispute("CITY", "CITY", int(lines[0]))
    with town.database.read() as connection:
        items = disputes.store.items_of(connection, found.dispute_id)
    holders = {item.party_id: item.amount for item in items}
    assert len(holders) == 2
    service = open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: NOW)
    pages = Site(town, create_app(service, (operator.router, disputes.router)))
    for party in holders:
        page = pages.as_(party).get(f"/operator/disputes/{found.dispute_id}").text
        (rival,) = holders.keys() - {party}
        assert f"dev-{party}" in page
        assert f"dev-{rival}" not in page
        assert f">₫{holders[party]:,}<" in page
        assert f"₫{found.amount:,}<" not in page
    service.database.dispose()


# ---- nobody else's


def test_an_operator_reads_nothing_of_a_rival(site: Site) -> None:
    town, rail = site.town, site.as_("RAIL")
    with town.database.read() as connection:
        payments = [one for one in store.list_payments(connection, TUESDAY) if one.party_id == "BUSCO"]
        (dispute,) = [one for one in disputes.store.list_disputes(connection) if one.claimant == "COOP"]
    lines = len([r for r in town.statement("RAIL") if r["line"]])
    for path in (
        f"/operator/disputes/{dispute.dispute_id}",
        "/operator/devices/dev-BUSCO",
        f"/operator/payments/{payments[0].payment_id}",
        f"/operator/settlement/{TUESDAY}/BUSCO",
        f"/operator/settlement/{TUESDAY}/BUSCO.csv",
        f"/operator/settlement/{TUESDAY}/positions",
        f"/operator/settlement/{TUESDAY}/line/{lines + 1}",
        f"/operator/settlement/{TUESDAY}/line/0",
        "/operator/settlement/2026-03-20",
        "/operator/settlement/2026-03-20/line/1",
    ):
        heard = rail.get(path)
        assert heard.status_code == 404, path
        assert "BUSCO" not in heard.text, path
    for path in ("/operator", "/operator/devices", "/operator/disputes", "/operator/reconciliation"):
        assert not re.search(r"dev-(BUSCO|COOP)|BUSCO|Little Buses", rail.get(path).text), path
    for party in ("BUSCO", "COOP", "RAIL"):
        assert site.as_(party).get(f"/operator/devices/dev-{party}").status_code == 200


def test_who_is_not_logged_in_is_sent_to_the_login(site: Site) -> None:
    client = TestClient(site.application, base_url="http://127.0.0.1")
    for path in (
        "devices", "devices/dev-BUSCO", "disputes", "disputes/0123456789abcdef", "reconciliation", "reconciliation/late.csv",
        f"reconciliation/late-{TUESDAY}.csv", "payments/MT1", f"settlement/{TUESDAY}", f"settlement/{TUESDAY}/csv",
        f"settlement/{TUESDAY}/line/1",
    ):  # fmt: skip
        heard = client.get(f"/operator/{path}", follow_redirects=False)
        assert (heard.status_code, heard.headers["location"]) == (303, "/operator"), path
    heard = client.post(f"/operator/settlement/{TUESDAY}/line/1/dispute", data={"text": "x"}, follow_redirects=False)
    assert heard.status_code == 303


@pytest.mark.parametrize("path", ["settlement/%00", "settlement/1' or 1=1", "disputes/%00", "payments/a%00", "devices/%00"])
def test_addresses_that_are_none_are_refused(site: Site, path: str) -> None:
    assert site.as_("RAIL").get(f"/operator/{path}").status_code in (404, 422)
