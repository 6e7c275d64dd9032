"""The uplink: one attempt with a deadline, over real sockets."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from validators.uplink import Answer, Backoff, Cap, HttpUplink, Line, Problem, Reply, Unreachable, read_reply

ANSWER = b"""{"device_id": "bus-07", "epoch": "0102030405060708", "acknowledged_through": 3, "server_time": 1700000000123,
"deny_list_version": 9, "new_in_a_later_version": true, "answers": [{"sequence": 3, "result": "ACCEPTED", "reason": null,
"decision": "admitted", "fare": 6000, "lines": [{"kind": "list", "rule_id": "bus", "amount": 7000}],
"caps": [{"rule_id": "day", "spent": 6000, "amount": 40000}], "balance": 94000, "provisional": false}]}"""


class Handler(BaseHTTPRequestHandler):
    """Does what its server's `behave` says; keeps connections as HTTP/1.1 does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Content-Type"], body, self.client_address))  # type: ignore[attr-defined]
        self.server.behave(self)  # type: ignore[attr-defined]

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(behave: Callable[[Handler], None]) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.behave = behave  # type: ignore[attr-defined]
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def uplink_to(server: ThreadingHTTPServer) -> Iterator[HttpUplink]:
    uplink = HttpUplink(f"http://127.0.0.1:{server.server_address[1]}/")
    try:
        yield uplink
    finally:
        uplink.close()


def seen(server: ThreadingHTTPServer) -> list[tuple[str, str, bytes, tuple[str, int]]]:
    found: list[tuple[str, str, bytes, tuple[str, int]]] = server.seen  # type: ignore[attr-defined]
    return found


def test_a_message_is_posted_and_its_answer_read() -> None:
    with serving(lambda handler: handler.answer(200, ANSWER)) as server, uplink_to(server) as uplink:
        reply = uplink.send(b"\x82message", 2)
    assert isinstance(reply, Reply)
    assert isinstance(reply.content, Answer)
    assert reply.content.acknowledged_through == 3
    mine = reply.content.find(3)
    assert mine is not None
    assert (mine.fare, mine.balance, mine.decision) == (6000, 94000, "admitted")
    assert mine.lines == (Line(kind="list", rule_id="bus", amount=7000),)
    assert mine.caps == (Cap(rule_id="day", spent=6000, amount=40000),)
    assert reply.content.find(4) is None
    assert seen(server)[0][:3] == ("/v1/taps", "application/cose", b"\x82message")


def test_a_connection_is_kept_for_the_next_message() -> None:
    with serving(lambda handler: handler.answer(200, ANSWER)) as server, uplink_to(server) as uplink:
        for _ in range(5):
            assert isinstance(uplink.send(b"m", 2), Reply)
    assert len({client for *_, client in seen(server)}) == 1


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew() -> None:
    def answer_and_hang_up(handler: Handler) -> None:
        handler.answer(200, ANSWER)
        handler.close_connection = True

    with serving(answer_and_hang_up) as server, uplink_to(server) as uplink:
        for _ in range(3):
            assert isinstance(uplink.send(b"m", 2), Reply)
            time.sleep(0.05)
    assert len({client for *_, client in seen(server)}) == 3


def test_a_server_that_says_it_will_close_is_read_to_the_end() -> None:
    closing, long_answer = {"Connection": "close"}, ANSWER + b" " * 1_000_000
    with serving(lambda handler: handler.answer(200, long_answer, closing)) as server, uplink_to(server) as uplink:
        assert [type(uplink.send(b"m", 2)) for _ in range(2)] == [Reply, Reply]


def test_a_problem_comes_with_its_cause() -> None:
    body = b'{"type": "about:blank", "status": 409, "cause": "gap", "detail": "4 missing", "resume_from": 4}'
    with serving(lambda handler: handler.answer(409, body)) as server, uplink_to(server) as uplink:
        reply = uplink.send(b"m", 2)
    assert isinstance(reply, Reply)
    assert reply.content == Problem(status=409, cause="gap", detail="4 missing", resume_from=4)


def test_a_busy_server_says_when_to_come_back() -> None:
    with serving(lambda handler: handler.answer(503, b"busy", {"Retry-After": "7"})) as server, uplink_to(server) as uplink:
        reply = uplink.send(b"m", 2)
    assert isinstance(reply, Reply)
    assert (reply.content, reply.retry_after_s) == (Problem(status=503), 7.0)


@pytest.mark.parametrize("behaviour", ["silent", "trickling head", "trickling body"])
def test_the_deadline_holds_whatever_the_server_does(behaviour: str) -> None:
    stop = threading.Event()

    def dawdle(handler: Handler) -> None:
        if behaviour == "trickling body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        while not stop.wait(0.03):
            if behaviour != "silent":
                handler.wfile.write(b"x")
                handler.wfile.flush()
        handler.close_connection = True

    def dawdle_quietly(handler: Handler) -> None:
        try:
            dawdle(handler)
        except OSError:
            handler.close_connection = True

    with serving(dawdle_quietly) as server, uplink_to(server) as uplink:
        begun = time.monotonic()
        heard = uplink.send(b"m", 0.3)
        took = time.monotonic() - begun
        stop.set()
    assert isinstance(heard, Unreachable)
    assert "deadline" in heard.detail or "timed out" in heard.detail
    assert 0.29 < took < 0.6
    assert 290 <= heard.elapsed_ms <= 600


def test_the_deadline_of_a_message_is_its_own_also_on_a_kept_connection() -> None:
    pauses = iter([0.0, 0.4, 0.0])

    def pause(handler: Handler) -> None:
        time.sleep(next(pauses))
        handler.answer(200, ANSWER)

    with serving(pause) as server, uplink_to(server) as uplink:
        assert isinstance(uplink.send(b"m", 0.2), Reply)
        assert isinstance(uplink.send(b"m", 5), Reply)
        time.sleep(0.2)
        assert isinstance(uplink.send(b"m", 0.2), Reply)
    assert len({client for *_, client in seen(server)}) == 1


def test_the_answer_to_a_message_that_was_given_up_is_not_taken_for_the_next_one_s() -> None:
    late = threading.Event()

    def first_late(handler: Handler) -> None:
        if not late.is_set():
            late.set()
            time.sleep(0.3)
        try:
            handler.answer(200, ANSWER.replace(b"1700000000123", str(len(seen(server))).encode()))
        except OSError:
            handler.close_connection = True

    with serving(first_late) as server, uplink_to(server) as uplink:
        assert isinstance(uplink.send(b"first", 0.1), Unreachable)
        reply = uplink.send(b"second", 2)
    assert isinstance(reply, Reply)
    assert isinstance(reply.content, Answer)
    assert reply.content.server_time == 2


def test_nobody_there_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    heard = HttpUplink(f"http://127.0.0.1:{port}").send(b"m", 2)
    assert isinstance(heard, Unreachable)
    assert "refused" in heard.detail


@pytest.mark.parametrize("body", [b"<html>Sign in to our network</html>", b"[]", b"{}", b"\xff", b""])
def test_a_page_of_somebody_else_is_no_answer(body: bytes) -> None:
    assert isinstance(read_reply(200, body, 5), Unreachable)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"cause": 7}', b"\xff"])
def test_an_error_of_somebody_else_has_no_cause(body: bytes) -> None:
    reply = read_reply(502, body, 5, "Fri, 31 Dec 1999 23:59:59 GMT")
    assert reply == Reply(content=Problem(status=502), elapsed_ms=5, retry_after_s=None)


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        try:
            for _ in range(1 << 10):
                handler.wfile.write(bytes(1 << 20))
        except OSError:
            handler.close_connection = True

    with serving(flood) as server, uplink_to(server) as uplink:
        heard = uplink.send(b"m", 5)
    assert isinstance(heard, Unreachable)
    assert "more than" in heard.detail


def test_other_urls_are_refused() -> None:
    for url in ("ftp://example.org", "example.org", "http://"):
        with pytest.raises(ValueError, match="not an http"):
            HttpUplink(url)


def test_waiting_doubles_up_to_its_ceiling_and_is_never_the_same_for_all() -> None:
    longest = Backoff(lambda: 1.0)
    assert [longest.delay_s(failures) for failures in (1, 2, 3, 4, 20, 10_000)] == [1, 2, 4, 8, 300, 300]
    shortest = Backoff(lambda: 0.0)
    assert [shortest.delay_s(failures) for failures in (1, 2, 20)] == [0.5, 1, 150]
    source = random.Random(5)
    delays = [Backoff(source.random).delay_s(20) for _ in range(1000)]
    assert len({round(delay) for delay in delays}) > 100


def test_nobody_comes_back_before_the_server_asked() -> None:
    source = random.Random(6)
    delays = [Backoff(source.random).delay_s(1, 60) for _ in range(1000)]
    assert min(delays) >= 60
    assert max(delays) > 80
