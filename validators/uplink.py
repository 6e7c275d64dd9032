"""How a terminal's message reaches the server and what comes back: one attempt, with a deadline for all of it.

Decides whether there was an answer and what it says. Leaves to the terminal what to do then, and when to try again;
`Backoff` only says how long to wait. docs/terminal-protocol.md is the specification."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

import msgspec

MAX_PUBLICATION_BYTES: Final = 64 << 20
CONTENT_TYPE: Final = "application/cose"
TAPS_PATH: Final = "/v1/taps"
MAX_ANSWER_BYTES: Final = 4 << 20


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a price: what the rule moved, in minor units."""

    kind: str
    rule_id: str
    amount: int


class Cap(msgspec.Struct, frozen=True, kw_only=True):
    """How far a cap has got, in minor units."""

    rule_id: str
    spent: int
    amount: int


class TapAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of one tap."""

    sequence: int
    result: Literal["ACCEPTED", "EXISTS", "QUARANTINED"]
    reason: str | None = None
    decision: Literal["admitted", "refused", "none"] = "none"
    fare: int | None = None
    """Minor units; None: the fare follows."""
    lines: tuple[Line, ...] = ()
    caps: tuple[Cap, ...] = ()
    balance: int | None = None
    post_paid_total: int | None = None
    """What a post-paid account owes, minor units."""
    exit_fare: int | None = None
    """What an exit would still cost at most, minor units."""
    provisional: bool = False
    """Whether the fare may still change without another tap: a hold, a missing exit."""


class WantedTaps(msgspec.Struct, frozen=True):
    """Taps of an earlier epoch that the server misses, from one on."""

    epoch: str
    """Hexadecimal."""
    first: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of a batch that it has taken."""

    device_id: str
    epoch: str
    """Hexadecimal."""
    acknowledged_through: int
    server_time: int
    """Milliseconds UTC, when the answer was made."""
    deny_list_version: int
    rules_version: int = 0
    """Serial of the newest rules; 0: there are none."""
    wanted: tuple[WantedTaps, ...] = ()
    answers: tuple[TapAnswer, ...] = ()

    def find(self, sequence: int) -> TapAnswer | None:
        """The answer to one tap of the batch."""
        return next((answer for answer in self.answers if answer.sequence == sequence), None)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why the server did not take a batch (RFC 9457), or could not now."""

    status: int = 0
    cause: str = ""
    """A stable word from docs/tap-format.md; empty where whoever answered gave none."""
    detail: str = ""
    resume_from: int | None = None
    """With the cause gap: the sequence that the server wants next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The server answered."""

    content: Answer | Problem
    elapsed_ms: int
    """From before the first byte sent to after the last byte received."""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """Nobody answered, or nobody who speaks this protocol; whether the message arrived is not known."""

    detail: str
    elapsed_ms: int


class Uplink(Protocol):
    """The way to the server. Never raises for what a network does."""

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        """Deliver one message; all of it takes at most `timeout_s` seconds."""
        ...


def read_reply(status: int, body: bytes, elapsed_ms: int, retry_after: str | None = None) -> Reply | Unreachable:
    """What an HTTP response says. A 200 that is no answer of ours (a captive portal's page) counts as nobody there."""
    if status == 200:
        try:
            return Reply(content=_ANSWERS.decode(body), elapsed_ms=elapsed_ms)
        except msgspec.MsgspecError as fault:
            return Unreachable(detail=f"answer not understood: {fault}", elapsed_ms=elapsed_ms)
    return Reply(content=_read_problem(status, body), elapsed_ms=elapsed_ms, retry_after_s=_seconds(retry_after))


def _read_problem(status: int, body: bytes) -> Problem:
    """The problem in a body; of a body by somebody else (a proxy), only the HTTP status."""
    try:
        return msgspec.structs.replace(_PROBLEMS.decode(body), status=status)
    except msgspec.MsgspecError:
        return Problem(status=status)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, would need a clock that agrees and is passed over."""
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None


_ANSWERS: Final = msgspec.json.Decoder(Answer)
_PROBLEMS: Final = msgspec.json.Decoder(Problem)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after failures: twice as long after each, up to a ceiling, the upper half of it at random, so
    that a city's terminals do not come back in one moment."""

    random: Callable[[], float]
    """Uniform in [0, 1)."""
    first_s: float = 1.0
    ceiling_s: float = 300.0

    def delay_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Seconds until the next attempt after so many failures in a row; never before `retry_after_s`."""
        doubled = self.first_s * 2.0 ** min(max(failures - 1, 0), 32)
        delay = min(self.ceiling_s, doubled) * (0.5 + 0.5 * self.random())
        return delay if retry_after_s is None else max(delay, retry_after_s * (1.0 + 0.5 * self.random()))


_Connection: TypeAlias = http.client.HTTPConnection


class _Response(NamedTuple):
    """What came back over HTTP, not yet understood."""

    status: int
    body: bytes
    elapsed_ms: int
    retry_after: str | None


class HttpUplink:
    """HTTP with a kept connection and one deadline over all of an attempt. Not for several threads.

    Only the making of a connection is looser: the look-up of a host name is the system's, and each step of TCP and TLS
    has the whole time-out. So give an address or have names cached, and keep the connection warm with heartbeats."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url!r}")
        self._host, self._port, self._root = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._connection: _Connection | None = None

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        """See Uplink. Sending twice does no harm, for the message names its place in the chain."""
        heard = self._exchange("POST", TAPS_PATH, message, timeout_s, MAX_ANSWER_BYTES)
        if isinstance(heard, Unreachable):
            return heard
        return read_reply(heard.status, heard.body, heard.elapsed_ms, heard.retry_after)

    def fetch(self, path: str, timeout_s: float = 60.0) -> bytes | None:
        """GET a publication by its path; None if there is nothing newer, or nobody to ask."""
        heard = self._exchange("GET", path, None, timeout_s, MAX_PUBLICATION_BYTES)
        return heard.body if isinstance(heard, _Response) and heard.status == 200 else None

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float, most: int) -> _Response | Unreachable:
        """One request. A kept connection that the server has closed meanwhile is made anew once, in the same deadline."""
        begun = time.monotonic()
        kept = self._connection is not None
        try:
            try:
                return self._attempt(method, path, body, begun, begun + timeout_s, most)
            except ConnectionError:
                self.close()
                if not kept:
                    raise
                return self._attempt(method, path, body, begun, begun + timeout_s, most)
        except (OSError, http.client.HTTPException) as fault:
            self.close()
            return Unreachable(detail=f"{type(fault).__name__}: {fault}", elapsed_ms=_elapsed_ms(begun))

    def close(self) -> None:
        """Let go of the connection; the next `send` makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _attempt(self, method: str, path: str, body: bytes | None, begun: float, deadline: float, most: int) -> _Response:
        connection = self._connected(deadline)
        self._connection = connection
        wanted = {"Content-Type": CONTENT_TYPE, "Accept": "application/json"} if body else {"Accept": CONTENT_TYPE}
        connection.request(method, self._root + path, body, wanted)
        response = connection.getresponse()
        content = response.read(most + 1)
        if len(content) > most:
            raise http.client.HTTPException(f"an answer of more than {most} bytes")
        return _Response(response.status, content, _elapsed_ms(begun), response.headers.get("Retry-After"))

    def _connected(self, deadline: float) -> _Connection:
        """The kept connection or a new one, with this deadline."""
        if self._connection is not None and isinstance(self._connection.sock, _Deadlined):
            self._connection.sock.deadline = deadline
            return self._connection
        connection = self._new_connection(_remaining(deadline))
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = _Deadlined(connection.sock, deadline)
        return connection

    def _new_connection(self, timeout_s: float) -> _Connection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)


class _Deadlined:
    """A socket whose every wait ends at one deadline: a time-out per wait would let a trickle of bytes go on for ever.
    Has what http.client uses of a socket; as there, it stays open until what reads from it is closed too."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._readers = 0
        self._closed = False
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_remaining(self.deadline))
        self._sock.sendall(data)

    def recv_into(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining(self.deadline))
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_Received(self))

    def reader_closed(self) -> None:
        self._readers -= 1
        self._close_unread()

    def close(self) -> None:
        self._closed = True
        self._close_unread()

    def _close_unread(self) -> None:
        if self._closed and self._readers == 0:
            self._sock.close()


class _Received(io.RawIOBase):
    """What comes in on a socket, for http.client to read."""

    def __init__(self, sock: _Deadlined) -> None:
        self._from = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._from.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._from.reader_closed()
        super().close()


def _remaining(deadline: float) -> float:
    """Seconds left; raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _elapsed_ms(begun: float) -> int:
    """Milliseconds since `begun`, rounded up."""
    return int((time.monotonic() - begun) * 1000) + 1
