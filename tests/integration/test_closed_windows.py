"""Weeks of rides in a real store: old windows are put away, and nobody can tell but by the time that a tap takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from fare_engine.booking import Record, encode
from fare_engine.claims import make_claim
from fare_engine.linking import change_payer, link_token
from fare_engine.service_day import DAY_MS, MINUTE_MS
from fare_engine.store import schema, travellers
from fare_engine.store.database import sqlite_url
from fare_engine.store.travellers import Account
from fare_engine.store.verify import Known, verify
from fare_engine.tap_format import Decision, TapKind
from fare_engine.tokens import stored_token
from fare_engine.windows import Ages
from tests.integration.desk import (
    BEN_THANH,
    DAY,
    SERVER_KEY,
    SUOI_TIEN,
    Desk,
    Stream,
    at,
    equip,
    rows,
    terminal_token,
)

WEEKS = 3
ALONE = {"decision": Decision.ADMITTED_ALONE}


@dataclass
class Season:
    """Some weeks of two riders on a bus and the metro, and what comes late of them."""

    desk: Desk

    def ride(self, first: int, days: int) -> None:
        """Every day to work by metro and bus, and back; now and then the exit is missing."""
        for day in range(first, first + days):
            morning = at("07:30") + day * DAY_MS
            gate, out, bus = (Stream(name, 1000 + day) for name in ("gate-1", "gate-2", "bus-1"))
            for card, minute in (("anna", 0), ("binh", 3)):
                gate.add(TapKind.ENTRY, morning + minute * MINUTE_MS, card, stop_id=BEN_THANH, **ALONE)
                if day % 9 != 8:
                    out.add(TapKind.EXIT, morning + (minute + 25) * MINUTE_MS, card, stop_id=SUOI_TIEN, **ALONE)
                bus.add(TapKind.BOARD, morning + (minute + 35) * MINUTE_MS, card, route_id="1", **ALONE)
                bus.add(TapKind.BOARD, morning + 10 * 60 * MINUTE_MS + minute * MINUTE_MS, card, route_id="1", **ALONE)
            for stream in (gate, out, bus):
                if stream.taps:
                    self.take(stream, morning + 12 * 60 * MINUTE_MS)
            with self.desk.database.write() as connection:
                self.desk.application.advance(connection, morning + 18 * 60 * MINUTE_MS)

    def take(self, stream: Stream, now: int) -> None:
        """What a device has not sent yet comes in."""
        self.desk.receipt.accept_group([stream.new()], now)

    def late(self, now: int) -> None:
        """Taps of the second day, a rider's claim for the ninth, a card and a payer of other days."""
        desk, second = self.desk, at("12:00") + DAY_MS
        bus = Stream("bus-2", 5000)
        bus.add(TapKind.BOARD, second, "anna", route_id="1", **ALONE)
        bus.add(TapKind.BOARD, second + 20 * MINUTE_MS, "anna", route_id="1", **ALONE)
        self.take(bus, now)
        leg_id = f"gate-1/{Stream('gate-1', 1008).epoch.hex()}/1"
        with desk.database.write() as connection:
            make_claim(connection, desk.application, "anna", leg_id, SUOI_TIEN, "as always", now)
        with desk.database.write() as connection:
            travellers.add_accounts(connection, [Account("family", "postpaid", 0)])
        token_id = stored_token(SERVER_KEY, terminal_token("chi"))
        with desk.database.write(alone=True) as connection:
            link_token(connection, desk.application, token_id, "anna", now - 10 * DAY_MS, now, "test")
        with desk.database.write(alone=True) as connection:
            change_payer(connection, desk.application, "binh", "family", 20_514 + 8, now)

    def told(self) -> list[object]:
        """Everything that was booked, in the end, and what everybody has to pay."""
        with self.desk.database.read() as connection:
            records = {found.traveller_id: found.record for found in travellers.all_travellers(connection)}
        lines = "select line_id, generation, traveller_id, amount, bearer, funded, payer, accounting_date from lines"
        return [
            sorted(rows(self.desk.database, lines)),
            sorted(rows(self.desk.database, "select account_id, balance from accounts")),
            {name: _content(record) for name, record in records.items()},
        ]

    def put_away(self) -> int:
        """How many windows are put away."""
        with self.desk.database.read() as connection:
            return connection.execute(select(func.count()).select_from(schema.closed_windows)).scalar_one()


def _content(record: Record) -> tuple[object, ...]:
    facts = sorted(record.facts, key=lambda fact: fact.fact_id)
    return facts, record.refused, sorted(record.booked.items()), sorted(record.rides.items()), record.waived


def season(desk: Desk) -> Season:
    """The weeks, what comes late, and one more week."""
    found = Season(desk)
    found.ride(0, 7 * WEEKS)
    found.late(at("12:00") + 7 * WEEKS * DAY_MS)
    found.ride(7 * WEEKS + 1, 7)
    return found


def test_weeks_of_rides_cost_the_same_whether_old_ones_are_put_away_or_not(desk: Desk, tmp_path: Path) -> None:
    put_away = season(desk)
    equip(sqlite_url(tmp_path / "kept.db"))
    without = Desk(sqlite_url(tmp_path / "kept.db"), desk.tariff)
    without.application.refolder.ages = Ages(open_ms=1 << 60)
    kept = season(without)
    assert put_away.told() == kept.told()
    assert kept.put_away() == 0
    assert put_away.put_away() > WEEKS
    with put_away.desk.database.read() as connection:
        assert verify(connection, Known(SERVER_KEY, desk.tariff.default_category, ())).findings == ()
        open_windows = rows(put_away.desk.database, "select length(record) from travellers where traveller_id = 'anna'")
        anna = travellers.find_traveller(connection, "anna")
    assert anna is not None
    assert open_windows[0][0] * 2 < len(encode(anna.record))


def test_a_record_whose_beginning_the_release_before_forgot_is_looked_up(desk: Desk) -> None:
    found = Season(desk)
    found.ride(0, 14)
    with found.desk.database.write() as connection:
        row = travellers.get_travellers(connection, ["anna"], {"anna": at("12:00") + 14 * DAY_MS})["anna"]
        assert row.record.since > at("00:00", DAY)
        row.record.since, row.record.earlier = 0, []
        travellers.save_travellers(connection, [row])
    with found.desk.database.read() as connection:
        whole = travellers.get_travellers(connection, ["anna"], {"anna": at("12:00") + 14 * DAY_MS})["anna"]
    assert (whole.record.base, whole.record.since) == (None, 0)
    assert len(whole.record.facts) == 14 * 4  # one exit among them is completed by habit
