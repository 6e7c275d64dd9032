"""The way to a payment provider: one request signed and keyed, one answer within a deadline, or none.

An answer is an event of the charge or refund. No answer says nothing: the money may have been taken. So whoever asked asks
again under the same key, and a provider that knows the key does nothing but answer. Signatures are HMAC-SHA256 (RFC 2104) over
`timestamp.method.path.body`, in both directions, under keys derived from one shared secret. docs/collection.md has the format."""

from __future__ import annotations

import hmac
import http.client
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from clearing.collection.charges import Charge, Event, Kind, Refund
from fare_engine.errors import CollectionError

SIGNATURE, TIMESTAMP, KEY = "Motthe-Signature", "Motthe-Timestamp", "Idempotency-Key"
EVENTS_PATH: Final = "/v1/provider/events"
WINDOW_MS: Final = 300_000
"""A signature is good for so long before and after its time."""
MAX_BODY: Final = 16_384
TIMEOUT_S: Final = 10.0


class ChargeOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What we ask to be taken."""

    charge_id: str
    source: str
    amount: int
    currency: str


class RefundOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What we ask to be given back of a charge."""

    refund_id: str
    charge_id: str
    amount: int


class Answer(msgspec.Struct, frozen=True):
    """What the provider knows of an order."""

    state: Literal["pending", "captured", "declined", "refunded", "refund_failed"]
    amount: int
    at: int
    reason: str = ""


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a webhook: one event, which the provider sends until it is taken."""

    event_id: str
    charge_id: str
    kind: Kind
    amount: int
    at: int
    reference: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what no event can be. ValueError says what."""
        names = (self.event_id, self.charge_id, self.reference, self.reason)
        if any(len(name) > 100 for name in names) or not self.event_id or not self.charge_id:
            raise ValueError("names have 1 to 100 characters")
        if not 0 <= self.amount < 1 << 53 or not 0 <= self.at < 1 << 53:
            raise ValueError("amounts and times are whole numbers from 0 below 2**53")
        if (self.kind in ("refunded", "refund_failed", "charged_back", "won_back")) != bool(self.reference):
            raise ValueError("a refund or chargeback has a reference, nothing else has")

    def as_event(self, now: int) -> Event:
        """The event, as it came in now."""
        return Event(**msgspec.structs.asdict(self), received_at=now)


class PaymentProvider(Protocol):
    """Whoever takes riders' money."""

    def charge(self, charge: Charge) -> Event | None:
        """Ask for a charge, or again for what became of it; None where nothing is known."""

    def refund(self, refund: Refund) -> Event | None:
        """The same for a refund."""


class HttpProvider:
    """A provider over HTTP."""

    def __init__(self, url: str, key: bytes, currency: str, clock: Callable[[], int], timeout_s: float = TIMEOUT_S) -> None:
        """`key`: the secret shared with the provider. CollectionError for a URL that is none."""
        self._url = urlsplit(url)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise CollectionError("malformed", f"{url!r} is no address of a provider")
        self._key = request_key(key)
        self._currency = currency
        self._clock = clock
        self._timeout_s = timeout_s

    def charge(self, charge: Charge) -> Event | None:
        """Ask for a charge, or again for what became of it; None where nothing is known."""
        order = ChargeOrder(charge.charge_id, charge.source, charge.amount, self._currency)
        answer = self._post("/v1/charges", charge.charge_id, msgspec.json.encode(order))
        return None if answer is None else _event(answer, charge.charge_id, "", self._clock())

    def refund(self, refund: Refund) -> Event | None:
        """The same for a refund."""
        if refund.charge_id is None:
            raise CollectionError("malformed", f"the refund {refund.refund_id} is no provider's")
        order = RefundOrder(refund.refund_id, refund.charge_id, refund.amount)
        answer = self._post("/v1/refunds", refund.refund_id, msgspec.json.encode(order))
        return None if answer is None else _event(answer, refund.charge_id, refund.refund_id, self._clock())

    def _post(self, path: str, key: str, body: bytes) -> Answer | None:
        where = self._url.path.rstrip("/") + path
        timestamp = str(self._clock())
        headers = {
            "Content-Type": "application/json",
            KEY: key,
            TIMESTAMP: timestamp,
            SIGNATURE: sign(self._key, timestamp, "POST", where, body),
        }
        deadline = time.monotonic() + self._timeout_s
        connection = self._connect()
        try:
            connection.request("POST", where, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_BODY + 1)
            if response.status != 200 or len(content) > MAX_BODY or time.monotonic() > deadline:
                return None
            return msgspec.json.decode(content, type=Answer)
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            return None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)


def _event(answer: Answer, charge_id: str, reference: str, now: int) -> Event | None:
    """An answer as an event; it is the same one however often it is given. What is still pending at a refund tells nothing."""
    is_refunds = answer.state in ("refunded", "refund_failed")
    if bool(reference) != is_refunds:
        return None
    return Event(
        event_id=f"answer/{reference or charge_id}/{answer.state}",
        charge_id=charge_id,
        kind=answer.state,
        reference=reference,
        amount=answer.amount,
        reason=answer.reason[:100],
        at=answer.at,
        received_at=now,
    )


# ---- signatures


def request_key(secret: bytes) -> bytes:
    """The key under which we sign what we ask."""
    return hmac.digest(secret, b"motthe-provider-1/requests", "sha256")


def webhook_key(secret: bytes) -> bytes:
    """The key under which the provider signs what it tells: another one, so that nothing can be turned back on its sender."""
    return hmac.digest(secret, b"motthe-provider-1/webhooks", "sha256")


def sign(key: bytes, timestamp: str, method: str, path: str, body: bytes) -> str:
    """The signature of a request, in hexadecimal."""
    return hmac.new(key, f"{timestamp}.{method}.{path}.".encode() + body, "sha256").hexdigest()


def check_signature(key: bytes, timestamp: str, signature: str, path: str, body: bytes, now: int) -> None:
    """CollectionError unless the shared key signed this, and not long ago: `bad_signature` or `stale`."""
    expected = sign(key, timestamp, "POST", path, body)
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise CollectionError("bad_signature", "the signature does not hold")
    if not (timestamp.isascii() and timestamp.isdecimal()) or abs(now - int(timestamp[:16])) > WINDOW_MS:
        raise CollectionError("stale", f"the signature is of {timestamp} ms, it is {now} ms now")
