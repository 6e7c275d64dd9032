"""A payment provider on this machine, with books of its own: it declines, takes its time, answers with an error after it has
taken the money, tells things twice and in any order, and charges back, or pays a chargeback again, when it is told to.

What it decides comes from its seed and the key of an order, so that an order that is repeated is answered the same. Its books
are a SQLite file that outlives it, and `GET /v1/settlement` gives them as a settlement report. `/control/…` is for tests."""

from __future__ import annotations

import csv
import io
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec
import typer

from clearing.collection.provider import (
    KEY,
    MAX_BODY,
    SIGNATURE,
    TIMESTAMP,
    Answer,
    ChargeOrder,
    Notice,
    RefundOrder,
    check_signature,
    request_key,
    sign,
    webhook_key,
)
from fare_engine.errors import CollectionError
from fare_engine.settings import secret_file

app = typer.Typer()
TABLES = """
create table if not exists charges (
    charge_id text primary key, source text, amount integer, currency text, state text, reason text, at integer, asked integer);
create table if not exists moves (
    kind text, charge_id text, reference text, amount integer, at integer, primary key (kind, charge_id, reference));
create table if not exists notices (
    event_id text primary key, body blob, due real, left integer);
create table if not exists sources (source text primary key, behaviour text);
"""
BEHAVIOURS = ("captures", "declines", "pends", "loses")
"""What a source does to every order; `loses` captures and answers with an error."""
TICK_S = 0.02


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source that always does the same from now on."""

    source: str
    behaviour: str


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens at the provider without our asking: `captured`, `declined`, `refunded`, `charged_back` or, for a
    chargeback that it pays again, `won_back`."""

    kind: str
    charge_id: str
    amount: int = 0
    reference: str = ""
    told: bool = True
    """Whether it sends a webhook."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How it treats orders: rates from 0 to 1, times in seconds at most."""

    seed: str = "1"
    decline: float = 0.0
    pending: float = 0.0
    fail: float = 0.0
    delay: float = 0.0
    repeat: float = 0.0


class Provider:
    """The provider's books, and what it decides."""

    def __init__(self, path: Path, manners: Manners) -> None:
        self.manners = manners
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.executescript(TABLES)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a statement gives."""
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def chance(self, what: str, key: str) -> float:
        """A number from 0 to 1 that belongs to an order."""
        return Random(f"{self.manners.seed}/{what}/{key}").random()

    def charge(self, order: ChargeOrder) -> tuple[int, Answer | None]:
        """Take an order once, and answer; the status says 409 for a key under which another order came."""
        with self._lock:
            known = self.rows("select source, amount, currency from charges where charge_id = ?", order.charge_id)
            if known and known[0] != (order.source, order.amount, order.currency):
                return 409, None
            if not known:
                self._decide(order)
            self.rows("update charges set asked = asked + 1 where charge_id = ?", order.charge_id)
            columns = "state, amount, at, reason, asked, source"
            ((state, amount, at, reason, asked, source),) = self.rows(
                f"select {columns} from charges where charge_id = ?", order.charge_id
            )
        lost = self._behaviour(source) == "loses" or self.chance("fail", order.charge_id) < self.manners.fail
        return (500, None) if lost and asked == 1 else (200, Answer(state, amount, at, reason))

    def refund(self, order: RefundOrder) -> tuple[int, Answer | None]:
        """Give back what was captured and is left, once for a key."""
        with self._lock:
            known = self.rows(
                "select amount, at from moves where kind = 'refunded' and charge_id = ? and reference = ?",
                order.charge_id,
                order.refund_id,
            )
            if known:
                return 200, Answer("refunded", *known[0])
            if not 0 < order.amount <= self._left(order.charge_id):
                return 200, Answer("refund_failed", order.amount, _now(), "nothing is left of the charge")
            self.move(Move("refunded", order.charge_id, order.amount, order.refund_id))
        lost = self.chance("fail", order.refund_id) < self.manners.fail
        return (500, None) if lost else (200, Answer("refunded", order.amount, _now()))

    def behave(self, wanted: Behaviour) -> None:
        """From now on a source always does this."""
        self.rows("insert or replace into sources values (?, ?)", wanted.source, wanted.behaviour)

    def move(self, move: Move) -> None:
        """Book something, and tell of it."""
        at = _now()
        with self._lock:
            if move.kind in ("captured", "declined"):
                self.rows("update charges set state = ?, at = ? where charge_id = ?", move.kind, at, move.charge_id)
            if move.kind != "declined":
                values = (move.kind, move.charge_id, move.reference, move.amount, at)
                self.rows("insert into moves values (?, ?, ?, ?, ?)", *values)
            if move.told:
                self._tell(move, at)

    def settlement(self) -> str:
        """The report: what was captured, refunded, charged back and won back."""
        found = io.StringIO()
        writer = csv.writer(found, lineterminator="\n")
        writer.writerow(("kind", "charge_id", "reference", "amount", "at"))
        writer.writerows(
            self.rows("select kind, charge_id, reference, amount, at from moves order by at, charge_id, kind, reference")
        )
        return found.getvalue()

    def decide_pending(self) -> None:
        """What was pending by chance is decided a while later."""
        if not self.manners.pending:
            return
        with self._lock:
            waiting = self.rows("select charge_id, amount, source, at from charges where state = 'pending'")
            for charge_id, amount, source, at in waiting:
                if self._behaviour(source) != "pends" and _now() - at >= 5000 * self.manners.delay:
                    kind = "declined" if self.chance("later", charge_id) < self.manners.decline else "captured"
                    self.move(Move(kind, charge_id, amount))

    # ---- webhooks

    def due(self) -> list[tuple[str, bytes]]:
        """The notices to be sent now."""
        return [tuple(row) for row in self.rows("select event_id, body from notices where left > 0 and due <= ?", time.time())]

    def sent(self, event_id: str, *, taken: bool) -> None:
        """A notice that was taken is sent once less; any other one again in a while."""
        less, wait = (1, 0.05) if taken else (0, 0.3)
        self.rows("update notices set left = left - ?, due = ? where event_id = ?", less, time.time() + wait, event_id)

    def _tell(self, move: Move, at: int) -> None:
        event_id = f"evt-{move.kind}-{move.charge_id}-{move.reference}"
        reason = "by the issuer" if move.kind == "declined" else ""
        notice = Notice(event_id, move.charge_id, move.kind, move.amount, at, move.reference, reason)  # type: ignore[arg-type]  # one of the kinds
        wanted = 2 if self.chance("repeat", event_id) < self.manners.repeat else 1
        due = time.time() + 3 * self.manners.delay * self.chance("late", event_id)
        self.rows("insert or ignore into notices values (?, ?, ?, ?)", event_id, msgspec.json.encode(notice), due, wanted)

    def _decide(self, order: ChargeOrder) -> None:
        behaviour = self._behaviour(order.source)
        chance = self.chance("decide", order.charge_id)
        if behaviour == "declines" or (behaviour is None and chance < self.manners.decline):
            state = "declined"
        elif behaviour == "pends" or (behaviour is None and chance < self.manners.decline + self.manners.pending):
            state = "pending"
        else:
            state = "captured"
        reason = "by the issuer" if state == "declined" else ""
        values = (order.charge_id, order.source, order.amount, order.currency, state, reason, _now(), 0)
        self.rows("insert into charges values (?, ?, ?, ?, ?, ?, ?, ?)", *values)
        if state != "pending":
            self.move(Move(state, order.charge_id, order.amount))

    def _behaviour(self, source: str) -> str | None:
        found = self.rows("select behaviour from sources where source = ?", source)
        return str(found[0][0]) if found else None

    def _left(self, charge_id: str) -> int:
        sign_of = "case when kind in ('captured', 'won_back') then amount else -amount end"
        ((left,),) = self.rows(f"select coalesce(sum({sign_of}), 0) from moves where charge_id = ?", charge_id)
        return int(left)


def send_notices(provider: Provider, url: str, key: bytes, ended: threading.Event) -> None:
    """Send webhooks until told to end, each until it is taken."""
    path = "/" + url.split("/", 3)[3]
    while not ended.wait(TICK_S):
        provider.decide_pending()
        for event_id, body in provider.due():
            timestamp = str(_now())
            headers = {TIMESTAMP: timestamp, SIGNATURE: sign(key, timestamp, "POST", path, body)}
            request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
            try:
                with urllib.request.urlopen(request, timeout=5) as response:
                    provider.sent(event_id, taken=response.status == 200)
            except (urllib.error.URLError, OSError):
                provider.sent(event_id, taken=False)


def handler_of(provider: Provider, key: bytes) -> type[BaseHTTPRequestHandler]:
    """What answers the provider's requests."""
    controls: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "/control/behave": (Behaviour, provider.behave),
        "/control/move": (Move, provider.move),
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/settlement":
                self._answer(404, b"{}")
                return
            self._answer(200, provider.settlement().encode(), "text/csv")

        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length", "0")), MAX_BODY))
            try:
                self._answer(*self._act(body))
            except CollectionError as error:
                self._answer(401, msgspec.json.encode({"cause": error.cause, "detail": error.detail}))
            except (msgspec.DecodeError, sqlite3.IntegrityError) as error:
                self._answer(400, msgspec.json.encode({"cause": "malformed", "detail": str(error)}))

        def _act(self, body: bytes) -> tuple[int, bytes]:
            if self.path in controls:
                kind, act = controls[self.path]
                act(msgspec.json.decode(body, type=kind))
                return 200, b"{}"
            timestamp, signature = self.headers.get(TIMESTAMP, ""), self.headers.get(SIGNATURE, "")
            check_signature(key, timestamp, signature, self.path, body, _now())
            order_key = self.headers.get(KEY, "")
            wait = provider.manners.delay * provider.chance("delay", order_key)
            before = provider.chance("before", order_key) < 0.5
            time.sleep(wait if before else 0)
            if self.path == "/v1/charges":
                status, answer = provider.charge(msgspec.json.decode(body, type=ChargeOrder))
            else:
                status, answer = provider.refund(msgspec.json.decode(body, type=RefundOrder))
            time.sleep(0 if before else wait)
            return status, msgspec.json.encode(answer)

        def _answer(self, status: int, content: bytes, media_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@app.command("provider")
def simulate_provider(
    key_file: Annotated[Path, typer.Option(help="The secret shared with the service: keys/provider.key of its folder.")],
    books: Annotated[Path, typer.Option(help="The file of the provider's own books; made if it is not there.")],
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8100,
    webhook: Annotated[str | None, typer.Option(help="Where it tells what happened: the service's /v1/provider/events.")] = None,
    seed: Annotated[str, typer.Option(help="Everything it decides comes from it.")] = "1",
    decline: Annotated[float, typer.Option(min=0, max=1, help="How many orders it declines.")] = 0.05,
    pending: Annotated[float, typer.Option(min=0, max=1, help="How many it decides later.")] = 0.0,
    fail: Annotated[float, typer.Option(min=0, max=1, help="How many it answers with an error after it has done them.")] = 0.0,
    delay: Annotated[float, typer.Option(min=0, help="How long an answer takes at most, in seconds.")] = 0.0,
    repeat: Annotated[float, typer.Option(min=0, max=1, help="How many webhooks it sends twice.")] = 0.0,
) -> None:
    """A payment provider with books of its own, which declines, delays, repeats, and fails after it has taken the money."""
    secret = secret_file(key_file)
    provider = Provider(books, Manners(seed, decline, pending, fail, delay, repeat))
    ended = threading.Event()
    if webhook is not None:
        threading.Thread(target=send_notices, args=(provider, webhook, webhook_key(secret), ended), daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(provider, request_key(secret)))
    typer.echo(f"the provider listens on http://127.0.0.1:{port}, its books are {books}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()


def _now() -> int:
    return time.time_ns() // 1_000_000
