"""The pages in a real browser, over the store of a demo that was closed: what is shown, to whom, and how it can be used."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, sync_playwright

from clearing.commands import rules_of
from clearing.disputes.claims import Claim
from clearing.disputes.desk import open_dispute
from fare_engine.commands import open_store
from fare_engine.ids import RouteId
from fare_engine.store.database import sqlite_url
from fare_engine.tap_format import TapKind
from simulators.seeding import card_number, password_of, pin_of
from tests.demos import DAY, PlayedDemo
from tests.integration.desk import ADOPTED, SERVER_KEY, Stream, equip, rows
from tests.served import serving_process

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
TOO_WIDE = """limit => [...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > limit && !e.closest('.scroll') && !e.closest('svg'))
    .map(e => e.outerHTML.slice(0, 90)).slice(0, 5)"""
"""The elements that stick out, but for those in a part that scrolls by itself."""
OPERATOR, OTHER = "OP-HURC1", "OP-FUTA"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as installed; without one the tests are skipped, or fail where it is required."""
    executable = os.environ.get("MOTTHE_CHROMIUM") or shutil.which("chromium")
    if executable is None:
        if os.environ.get("MOTTHE_REQUIRE_BROWSER"):
            pytest.fail("no Chromium: MOTTHE_CHROMIUM names none and none is on the path")
        pytest.skip("no Chromium: MOTTHE_CHROMIUM names one")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield found
        found.close()


@dataclass(frozen=True)
class Card:
    """A rider of the demo, with what opens the pages."""

    rider: str
    number: str
    pin: str


@dataclass(frozen=True)
class Site:
    """The served store."""

    url: str
    data: Path
    seed: int
    cards: tuple[Card, ...]
    """Riders, those with most legs first."""


@pytest.fixture(scope="module")
def site(demo: PlayedDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = demo.copy(tmp_path_factory.mktemp("site") / "demo")
    opened = open_store(data)
    riders = rows(
        opened.database,
        "select traveller_id from lines where payer like 'rider:%' and kind = 'list_fare' "
        "group by 1 having sum(amount) > 0 order by count(distinct kind || rule_id) desc, count(*) desc, 1 limit 8",
    )
    key = opened.server_key
    opened.database.dispose()
    cards = tuple(Card(str(r), card_number(str(r), demo.seed), pin_of(str(r), demo.seed, key)) for (r,) in riders)
    with serving_process(data) as url:
        yield Site(url, data, demo.seed, cards)


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of; empty at the end of every test."""
    return []


@pytest.fixture
def context(browser: Browser, site: Site, complaints: list[str]) -> Iterator[BrowserContext]:
    """A visitor of their own, whose console stays quiet."""
    found = browser.new_context(base_url=site.url, viewport=DESK)  # type: ignore[arg-type]
    found.set_default_timeout(10_000)
    found.on("page", lambda page: watch(page, complaints))
    yield found
    found.close()
    assert complaints == []


def watch(page: Page, complaints: list[str]) -> None:
    def on_console(message: ConsoleMessage) -> None:
        expected = "status of 401" in message.text or "status of 404" in message.text
        if message.type in ("error", "warning") and not expected:
            complaints.append(message.text)

    def on_response(response: Response) -> None:
        if response.status >= 500 or (response.status >= 400 and "/static/" in response.url):
            complaints.append(f"{response.status} {response.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", on_response)


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def log_in_rider(page: Page, card: Card, language: str = "vi") -> None:
    page.request.post("/card/login", form={"name": card.number, "secret": card.pin})
    page.goto(f"/card?lang={language}")


def log_in_operator(page: Page, seed: int) -> None:
    form = {"name": OPERATOR.removeprefix("OP-").lower(), "secret": password_of(OPERATOR, seed)}
    page.request.post("/operator/login", form=form)


def fill_in(page: Page, path: str, name: str, secret: str) -> None:
    """The form of a login, by hand."""
    page.goto(path)
    page.fill("#name", name)
    page.fill("#secret", secret)
    page.click(f"form[action='{path}/login'] button")
    page.wait_for_load_state()


def is_logged_in(page: Page) -> bool:
    return page.locator("#secret").count() == 0


def dong(text: str) -> int:
    """An amount as it is written, in either language."""
    digits = re.sub(r"[^\d]", "", text)
    assert digits, text
    assert "₫" in text, text
    return -int(digits) if re.search(r"[−-]", text) else int(digits)


# ---- the public page


def test_the_public_page_shows_counts_and_nothing_of_anybody(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server.key").write_bytes(SERVER_KEY)
    equip(sqlite_url(tmp_path / "motthe.db"))
    environment = {"MOTTHE_PUBLIC_DELAY_MINUTES": "0", "MOTTHE_ADOPT": f'["{ADOPTED[0]}"]'}
    with serving_process(tmp_path, environment) as url:
        bus = Stream("bus-1")
        now = time.time_ns() // 1_000_000
        bus.add(TapKind.BOARD, now, "anna", route_id=RouteId("1"))
        bus.add(TapKind.BOARD, now, "binh", route_id=RouteId("1"))
        request = urllib.request.Request(f"{url}/v1/taps", data=bus.message(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.read().count(b"ACCEPTED") == 2
        page = browser.new_page()
        page.goto(url)
        assert page.locator("#taps").inner_text() == "2"
        shown = page.content()
        body = page.locator("main").inner_text()
        page.close()
    assert "₫" not in body
    assert page_has_no_tap(shown)


def page_has_no_tap(shown: str) -> bool:
    """No list of taps, no device, no latency, no button that breaks something."""
    return not any(word in shown for word in ("<table", "bus-1", "p95", "/demo/", "admitted", "anna"))


def test_nobody_can_break_something_outside_of_the_demo(context: BrowserContext) -> None:
    assert context.request.post("/demo/break/outage").status == 404
    assert context.request.post("/demo/clock", data="{}").status == 404


# ---- the rider


def test_a_wrong_pin_opens_nothing_and_says_what_is_wrong(page: Page, site: Site) -> None:
    card = site.cards[1]
    fill_in(page, "/card", card.number, "000000" if card.pin != "000000" else "111111")
    assert page.locator("[role=alert]").inner_text() == "Số thẻ hoặc mã PIN không đúng."
    assert not is_logged_in(page)
    page.goto("/card")
    assert not is_logged_in(page)


def test_the_right_pin_opens_the_riders_own_journeys(page: Page, site: Site) -> None:
    card = site.cards[0]
    fill_in(page, "/card", card.number, card.pin)
    assert page.locator("h1").inner_text() == "Chuyến đi của tôi"
    assert card.number[-4:] in page.locator("main").inner_text()
    assert page.locator(".leg").count() >= 1
    for section in page.locator("main section").all():
        charges = [dong(text) for text in section.locator(".leg > .amount").all_inner_texts()]
        assert sum(charges) == dong(section.locator("h2 .amount").inner_text())


def test_five_wrong_pins_lock_the_card_also_for_the_right_one(page: Page, site: Site) -> None:
    card = site.cards[2]
    for _ in range(5):
        heard = page.request.post("/card/login", form={"name": card.number, "secret": "9" + card.pin})
        assert heard.status == 401
        assert "mã PIN không đúng" in heard.text()
    fill_in(page, "/card", card.number, card.pin)
    assert not is_logged_in(page)
    assert "15" in page.locator("[role=alert]").inner_text()
    log_in_rider(page, site.cards[3])
    assert is_logged_in(page), "another card is not locked"


@pytest.mark.parametrize("language", ["vi", "en"])
def test_the_reasons_of_every_leg_add_up_to_what_is_charged(page: Page, site: Site, language: str) -> None:
    log_in_rider(page, site.cards[0], language=language)
    shown = [
        (leg.get_attribute("data-leg"), dong(leg.locator(".amount").inner_text()), leg.locator("a").get_attribute("href"))
        for leg in page.locator(".leg").all()
    ]
    assert shown
    seen: set[str] = set()
    for _, charge, link in shown:
        assert link is not None
        page.goto(link)
        assert page.locator("html").get_attribute("lang") == language
        assert page.locator("h1").inner_text() == {"vi": "Vì sao giá này?", "en": "Why this price?"}[language]
        assert sum(dong(text) for text in page.locator("tbody td.amount").all_inner_texts()) == charge
        assert dong(page.locator("tfoot .amount").inner_text()) == charge
        seen |= {kind for kind in page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.dataset.kind)") if kind}
        assert all(cell.strip() for cell in page.locator("tbody td").all_inner_texts()), "each line has a name and a bearer"
    assert "list_fare" in seen
    assert len(seen) > 1, "a rider with more than plain fares is looked at"


@pytest.mark.parametrize(("language", "question"), [("vi", "quy định khác"), ("en", "other rules")])
def test_a_rider_may_ask_why_the_other_rules_did_not_act(page: Page, site: Site, language: str, question: str) -> None:
    log_in_rider(page, site.cards[0], language=language)
    link = page.locator(".leg a").first.get_attribute("href")
    assert link is not None
    page.goto(link)
    summary = page.locator("details summary")
    assert question in summary.inner_text()
    assert not page.locator("details li").first.is_visible()
    summary.click()
    acted = set(page.locator("tbody td small").all_inner_texts())
    others = page.locator("details li").all_inner_texts()
    assert len(others) > 5
    assert not acted & set(page.locator("details li small").all_inner_texts())
    assert all(": " in other for other in others)


def test_both_languages_say_the_same_amounts_in_their_own_way(page: Page, site: Site) -> None:
    log_in_rider(page, site.cards[0], language="vi")
    vietnamese = page.locator(".leg > .amount").all_inner_texts()
    page.goto("/card?lang=en")
    english = page.locator(".leg > .amount").all_inner_texts()
    assert [dong(text) for text in vietnamese] == [dong(text) for text in english]
    assert all(text.rstrip().endswith("₫") for text in vietnamese)
    assert not any(text.rstrip().endswith("₫") for text in english)


def test_somebody_elses_leg_is_not_shown(page: Page, site: Site, context: BrowserContext) -> None:
    log_in_rider(page, site.cards[0])
    own = {leg.get_attribute("data-leg") for leg in page.locator(".leg").all()}
    opened = open_store(site.data)
    other, foreign = rows(
        opened.database, f"select traveller_id, leg_id from lines where traveller_id = '{site.cards[1].rider}' limit 1"
    )[0]
    opened.database.dispose()
    assert foreign not in own
    heard = context.request.get("/card/why", params={"leg": str(foreign)})
    assert heard.status == 404
    assert "₫" not in heard.text()
    assert str(other) not in heard.text()
    assert context.request.get("/card/why", params={"leg": "' or 1=1 --"}).status == 404


def test_after_logging_out_nothing_is_shown_any_more(page: Page, site: Site) -> None:
    log_in_rider(page, site.cards[0])
    link = page.locator(".leg a").first.get_attribute("href")
    page.click("form[action='/card/logout'] button")
    page.wait_for_load_state()
    assert not is_logged_in(page)
    page.goto(str(link))
    assert not is_logged_in(page)
    assert "₫" not in page.locator("main").inner_text()


def test_a_cookie_that_was_changed_opens_nothing(context: BrowserContext, page: Page, site: Site) -> None:
    log_in_rider(page, site.cards[0])
    (cookie,) = [cookie for cookie in context.cookies() if cookie["name"] == "motthe"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    value = cookie["value"]
    context.clear_cookies()
    context.add_cookies([{"name": "motthe", "value": ("a" if value[0] != "a" else "b") + value[1:], "url": site.url}])
    page.goto("/card")
    assert not is_logged_in(page)


# ---- the operator


def totals(data: Path, operator: str) -> dict[str, int]:
    content = (data / "statements" / DAY / f"{operator}.csv").read_text(encoding="utf-8")
    return {row["what"]: int(row["amount"]) for row in csv.DictReader(content.splitlines()) if row["section"] == "total"}


def test_an_operator_sees_the_net_of_his_own_statement(page: Page, site: Site) -> None:
    fill_in(page, "/operator", "hurc1", password_of(OPERATOR, site.seed))
    expected = totals(site.data, OPERATOR)
    home = page.locator("tbody tr", has_text=DAY)
    assert [dong(text) for text in home.locator("td.amount").all_inner_texts()] == [
        expected[name] for name in ("settled", "cash_held", "net")
    ]
    page.click(f"a[href='/operator/settlement/{DAY}']")
    assert dong(page.locator("#net").inner_text()) == expected["net"]
    figures = page.locator("details.rows > summary > .amount:last-child").all_inner_texts()
    assert sum(dong(text) for text in figures if text.strip()) == expected["closing"], "every figure on the page adds up"


def test_the_csv_is_what_was_published_byte_for_byte(page: Page, site: Site, context: BrowserContext) -> None:
    log_in_operator(page, site.seed)
    heard = context.request.get(f"/operator/settlement/{DAY}/csv")
    assert heard.status == 200
    assert heard.headers["content-type"].startswith("text/csv")
    assert f"{OPERATOR}-{DAY}.csv" in heard.headers["content-disposition"]
    assert heard.body() == (site.data / "statements" / DAY / f"{OPERATOR}.csv").read_bytes()


def test_another_operators_statement_cannot_be_reached(page: Page, site: Site, context: BrowserContext) -> None:
    log_in_operator(page, site.seed)
    foreign = (site.data / "statements" / DAY / f"{OTHER}.csv").read_bytes()
    for path in (
        f"/operator/settlement/{DAY}/csv?operator={OTHER}",
        f"/operator/settlement/{DAY}/csv?operator_id={OTHER}",
        f"/operator/settlement/{DAY}%2F{OTHER}/csv",
        f"/operator/settlement/{DAY}/{OTHER}.csv",
        f"/static/../statements/{DAY}/{OTHER}.csv",
        f"/static/..%2f..%2f..%2fstatements/{DAY}/{OTHER}.csv",
        "/operator/settlement/2026-03-99",
        "/operator/settlement/%27",
    ):
        heard = context.request.get(path)
        assert heard.status < 500, path
        assert OTHER not in heard.text(), path
        assert heard.body() != foreign, path


def test_a_rider_is_no_operator_and_an_operator_no_rider(page: Page, site: Site) -> None:
    log_in_rider(page, site.cards[0])
    page.goto(f"/operator/settlement/{DAY}")
    assert not is_logged_in(page)
    page.context.clear_cookies()
    log_in_operator(page, site.seed)
    page.goto("/card")
    assert not is_logged_in(page)


def test_an_operators_wrong_password_opens_nothing_and_five_lock_the_name(page: Page, site: Site) -> None:
    for _ in range(5):
        assert page.request.post("/operator/login", form={"name": "futa", "secret": "wrong"}).status == 401
    fill_in(page, "/operator", "futa", password_of(OTHER, site.seed))
    assert not is_logged_in(page)
    assert "15" in page.locator("[role=alert]").inner_text()


def test_an_operator_logs_out(page: Page, site: Site, context: BrowserContext) -> None:
    log_in_operator(page, site.seed)
    page.goto("/operator")
    page.click("form[action='/operator/logout'] button")
    page.wait_for_load_state()
    assert not is_logged_in(page)
    heard = context.request.get(f"/operator/settlement/{DAY}/csv")
    assert "net" not in heard.text().split()
    assert "text/csv" not in heard.headers["content-type"]


# ---- how the pages can be used


def every_page(page: Page, site: Site) -> Iterator[str]:
    """Each page there is, one after the other."""
    for path in ("/", "/card", "/operator"):
        page.goto(path)
        yield path
    log_in_rider(page, site.cards[0])
    yield "/card, logged in"
    page.goto("/card/pay")
    yield "/card/pay"
    page.goto("/card")
    page.locator(".leg a").first.click()
    page.wait_for_load_state()
    yield "/card/why"
    log_in_operator(page, site.seed)
    page.goto("/operator")
    yield "/operator, logged in"
    page.goto(f"/operator/settlement/{DAY}")
    page.locator("details.rows summary").first.click()
    yield "/operator/settlement"
    for path in (f"settlement/{DAY}/line/1", "reconciliation", "disputes", "devices", "disputes/0000000000000000"):
        page.goto(f"/operator/{path}")
        yield f"/operator/{path}"
    page.goto("/operator/devices")
    page.locator("tbody a").first.click()
    page.wait_for_load_state()
    yield "/operator/devices, one"
    page.goto("/operator/reconciliation")
    page.locator("a[href^='/operator/payments']").first.click()
    page.wait_for_load_state()
    yield "/operator/payments"
    page.goto(f"/operator/disputes/{disputed(site)}")
    yield "/operator/disputes, one"


def disputed(site: Site) -> str:
    """A dispute of the operator's first row that gave it something."""
    opened = open_store(site.data)
    statement = (site.data / "statements" / DAY / f"{OPERATOR}.csv").read_text(encoding="utf-8")
    given = [row for row in csv.DictReader(statement.splitlines()) if row["section"] == "legs" and int(row["amount"]) > 0]
    claim = Claim(
        claimant=OTHER, accounting_date=DAY, party_id=OPERATOR, line=int(given[0]["line"]), amount=1000, text="one of ours"
    )
    rules = rules_of(opened.tariff, opened.tariff_folder)
    found = opened.database.transact(lambda connection: open_dispute(connection, rules, claim, 0))
    opened.database.dispose()
    return found.dispute_id


def test_every_page_fits_a_phone(page: Page, site: Site) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    wide: dict[str, list[str]] = {}
    for name in every_page(page, site):
        width = page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        if width > PHONE["width"]:
            wide[f"{name} is {width} px wide"] = page.evaluate(TOO_WIDE, PHONE["width"])
    assert wide == {}


def test_every_page_has_a_language_one_heading_a_title_and_labelled_inputs(page: Page, site: Site) -> None:
    for name in every_page(page, site):
        assert page.locator("html").get_attribute("lang") in ("vi", "en"), name
        assert page.locator("h1").count() == 1, name
        assert page.locator("h1").inner_text().strip(), name
        assert page.title().strip(), name
        assert page.locator("main").count() == 1, name
        unlabelled = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter(i => !(i.labels && i.labels.length && i.labels[0].innerText.trim()) && !i.ariaLabel).map(i => i.outerHTML)"
        )
        assert unlabelled == [], name
        nameless = page.evaluate(
            "[...document.querySelectorAll('a, button')].filter(b => !b.innerText.trim() && !b.ariaLabel).map(b => b.outerHTML)"
        )
        assert nameless == [], name
        dangling = page.evaluate(
            "[...document.querySelectorAll('[aria-describedby], [aria-labelledby]')].filter(e =>"
            " ['aria-describedby', 'aria-labelledby'].map(a => e.getAttribute(a)).some(i => i && !document.getElementById(i)))"
            ".map(e => e.outerHTML.slice(0, 120))"
        )
        assert dangling == [], name


def test_the_login_is_reached_and_done_with_the_keyboard_alone(page: Page, site: Site) -> None:
    page.goto("/card")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "name":
            break
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type(site.cards[0].number)
    page.keyboard.press("Tab")
    page.keyboard.type(site.cards[0].pin)
    page.keyboard.press("Enter")
    page.wait_for_url("**/card")
    page.wait_for_selector(".leg")


def test_the_way_to_the_other_language_is_kept(page: Page) -> None:
    page.goto("/")
    assert page.locator("html").get_attribute("lang") == "vi"
    page.click("a[hreflang=en]")
    page.goto("/card")
    assert page.locator("html").get_attribute("lang") == "en"


def test_a_page_may_load_nothing_from_elsewhere(context: BrowserContext) -> None:
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    response = page.goto("/")
    page.wait_for_load_state("networkidle")
    assert response is not None
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {response.url.split("/")[2]}
