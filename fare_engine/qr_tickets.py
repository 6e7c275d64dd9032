"""QR tickets: signed by their issuer, shown by the phone that holds them, checked by a terminal that asks nobody.

Decides what stands in a ticket and in a QR code, and whether a terminal may believe what it reads. Leaves to others whether
the token in it is denied, what the ride costs, and whether another terminal saw the same code a moment ago.
docs/qr-tickets.md is the specification, and says what this cannot prevent.

A *ticket* is a COSE_Sign1 by the issuer; it names the public key of the phone that may show it. A *presentation* is the
ticket with the time at which it is shown, signed by the phone; it is made anew every few seconds, and what was shown longer
ago than the window is worth nothing. Bytes are verified as received and then parsed, by the strict reader of
fare_engine/cose.py; both keys are Ed25519 and nothing in a code can say otherwise."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from typing import Final, Literal

import cbor2
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fare_engine.cose import CoseError, octets, read_cbor, read_map, read_sign1, sign1, text, uint
from fare_engine.errors import QrError

FORMAT: Final = "motthe-qr-1"
PREFIX: Final = b"MT1:"
"""How every code begins, so that a reader knows ours from others."""
MAX_CODE_BYTES: Final = 600
WINDOW_MS: Final = 30_000
ROTATE_MS: Final = 10_000
"""How often a phone shows a new code: often enough that a reader never meets one near the end of its window."""

TICKET_ID_BYTES: Final = 16
TOKEN_BYTES: Final = 16
KEY_BYTES: Final = 32

_SHOWN: Final = "motthe-qr-show-1"


class QrTicket(msgspec.Struct, frozen=True, kw_only=True):
    """What an issuer signs. Times are milliseconds UTC; it is valid from `valid_from` on and before `valid_to`."""

    ticket_id: bytes
    token: bytes
    """Terminal token of the traveller's instrument, as every tap has one: deny lists and prices go by it."""
    token_key_version: int
    medium: str = "qr"
    valid_from: int
    valid_to: int
    holder_key: bytes
    """Ed25519 public key of the phone that may show it."""
    persons: int = 1


class CheckedTicket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket that a terminal may act upon: what goes into the tap, and which presentation of which ticket it was."""

    token: bytes
    token_key_version: int
    medium: str
    persons: int
    ticket_id: bytes
    shown_at: int


FindIssuerKey = Callable[[bytes], Ed25519PublicKey | None]
"""The issuer's public key by its key id; None for one that is not known, or no longer believed."""


# ---- the issuer


def issue_ticket(issuer_key: Ed25519PrivateKey, key_id: bytes, ticket: QrTicket) -> bytes:
    """The ticket, signed; raises QrError malformed for one that no terminal would take."""
    payload = cbor2.dumps(_ticket_out(ticket))
    _read_ticket(payload)
    return sign1(issuer_key, key_id, payload)


def _ticket_out(ticket: QrTicket) -> dict[int, object]:
    fields: dict[int, object] = {
        1: FORMAT,
        2: ticket.ticket_id,
        3: ticket.token,
        4: ticket.token_key_version,
        5: ticket.medium,
        6: ticket.valid_from,
        7: ticket.valid_to,
        8: ticket.holder_key,
    }
    return fields if ticket.persons == 1 else fields | {9: ticket.persons}


# ---- the phone


def present(ticket: bytes, holder_key: Ed25519PrivateKey, shown_at: int) -> bytes:
    """What stands in the QR code at `shown_at` (milliseconds UTC, by the phone's corrected clock): plain ASCII."""
    signature = holder_key.sign(_to_be_signed(ticket, shown_at))
    return PREFIX + base45(cbor2.dumps([ticket, shown_at, signature]))


def _to_be_signed(ticket: bytes, shown_at: int) -> bytes:
    return cbor2.dumps([_SHOWN, sha256(ticket).digest(), shown_at])


def draw(code: bytes, kind: Literal["svg", "png"] = "svg", scale: int = 4) -> bytes:
    """The QR code as a picture: alphanumeric mode, error level M, four modules of margin, `scale` pixels a module."""
    import segno  # here and not above: a terminal reads codes and draws none

    picture = BytesIO()
    segno.make_qr(code.decode("ascii"), error="m", mode="alphanumeric", boost_error=False).save(
        picture, kind=kind, scale=scale, border=4
    )
    return picture.getvalue()


# ---- the terminal


class SeenPresentations:
    """What one terminal has taken within its window: of each ticket the newest time at which it was shown.

    A code that is not newer than the last one taken of its ticket was used before, or was photographed before that. What was
    shown before the memory reaches back is not believed, so a restart opens no door: the first window after it, no code
    that may have been used before is taken."""

    def __init__(self, begun_at: int, window_ms: int = WINDOW_MS) -> None:
        """`begun_at`: when the terminal began to remember, milliseconds UTC by its corrected clock."""
        self.window_ms: Final = window_ms
        self._newest: dict[bytes, int] = {}
        self._reaches_back_to = begun_at + window_ms  # a phone's clock may have been that much ahead before we began
        self._sweep_at = 0

    def take(self, ticket_id: bytes, shown_at: int, at_ms: int) -> None:
        """Remember that this was taken; raises QrError stale or replayed where it must not be."""
        if shown_at < self._reaches_back_to:
            raise QrError("stale", f"shown at {shown_at}, this terminal remembers from {self._reaches_back_to} on")
        if shown_at <= self._newest.get(ticket_id, -1):
            raise QrError(
                "replayed", f"ticket {ticket_id.hex()} was shown at {self._newest[ticket_id]} already, now again of {shown_at}"
            )
        self._newest[ticket_id] = shown_at
        self._sweep(at_ms)

    def _sweep(self, at_ms: int) -> None:
        """Forget, once a window, what is too old to be taken again; and take nothing that old should the clock go back."""
        if at_ms < self._sweep_at:
            return
        self._sweep_at = at_ms + self.window_ms
        self._reaches_back_to = max(self._reaches_back_to, at_ms - self.window_ms)
        self._newest = {ticket: shown for ticket, shown in self._newest.items() if shown >= self._reaches_back_to}

    def __len__(self) -> int:
        return len(self._newest)


def check_presentation(
    code: bytes, find_issuer_key: FindIssuerKey, *, at_ms: int, seen: SeenPresentations, window_ms: int = WINDOW_MS
) -> CheckedTicket:
    """The ticket in a code that was read at `at_ms` (milliseconds UTC, the terminal's corrected clock), taken once.

    Raises QrError with one of the causes malformed, unsupported_algorithm, unknown_issuer, bad_signature, not_yet, expired,
    stale, replayed; what raised was not taken, and may be shown again. `window_ms` is at most that of `seen`."""
    if window_ms > seen.window_ms:
        raise ValueError(f"a window of {window_ms} ms, but what was seen is remembered for {seen.window_ms} ms")
    ticket_bytes, shown_at, signature = _parts(_unwrapped(code))
    ticket = _open_ticket(ticket_bytes, find_issuer_key)
    _check_holder(ticket, signature, _to_be_signed(ticket_bytes, shown_at))
    _check_times(ticket, shown_at, at_ms, window_ms)
    seen.take(ticket.ticket_id, shown_at, at_ms)
    return CheckedTicket(
        token=ticket.token,
        token_key_version=ticket.token_key_version,
        medium=ticket.medium,
        persons=ticket.persons,
        ticket_id=ticket.ticket_id,
        shown_at=shown_at,
    )


def _unwrapped(code: bytes) -> bytes:
    if len(code) > MAX_CODE_BYTES:
        raise QrError("malformed", f"{len(code)} bytes, at most {MAX_CODE_BYTES}")
    if not code.startswith(PREFIX):
        raise QrError("malformed", "the code does not begin with MT1:")
    try:
        return unbase45(code[len(PREFIX) :])
    except ValueError as fault:
        raise QrError("malformed", str(fault)) from None


def _parts(data: bytes) -> tuple[bytes, int, bytes]:
    """Ticket, time of showing and the phone's signature."""
    try:
        match read_cbor(data, 1):
            case [bytes() as ticket, shown_at, signature]:
                return ticket, uint()(shown_at), octets(64)(signature)
    except ValueError as fault:
        raise QrError("malformed", str(fault)) from None
    raise QrError("malformed", "not [ticket, shown_at, signature]")


def _open_ticket(data: bytes, find_issuer_key: FindIssuerKey) -> QrTicket:
    """The ticket, after the issuer's signature was checked."""
    try:
        payload, signature = read_sign1(data)
    except CoseError as fault:
        raise QrError("unsupported_algorithm" if fault.cause == "unsupported_algorithm" else "malformed", fault.detail) from None
    key = find_issuer_key(signature.key_id)
    if key is None:
        raise QrError("unknown_issuer", f"key id {signature.key_id.hex()}")
    if not signature.holds(key):
        raise QrError("bad_signature", f"the ticket was not signed by the issuer's key {signature.key_id.hex()}")
    return _read_ticket(payload)


def _read_ticket(payload: bytes) -> QrTicket:
    try:
        fields = read_map(payload)
        if fields.keys() | {9} != set(range(1, 10)):
            raise ValueError(f"keys {sorted(fields)}")
        if fields[1] != FORMAT:
            raise ValueError(f"format {str(fields[1])[:40]!r}, only {FORMAT!r} is taken")
        return QrTicket(
            ticket_id=octets(TICKET_ID_BYTES)(fields[2]),
            token=octets(TOKEN_BYTES)(fields[3]),
            token_key_version=uint()(fields[4]),
            medium=text(64)(fields[5]),
            valid_from=uint()(fields[6]),
            valid_to=uint()(fields[7]),
            holder_key=octets(KEY_BYTES)(fields[8]),
            persons=uint(2, 255)(fields[9]) if 9 in fields else 1,
        )
    except ValueError as fault:
        raise QrError("malformed", f"ticket: {fault}") from None


def _check_holder(ticket: QrTicket, signature: bytes, signed: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(ticket.holder_key).verify(signature, signed)
    except InvalidSignature:
        raise QrError("bad_signature", f"ticket {ticket.ticket_id.hex()} is not shown by the phone that holds it") from None


def _check_times(ticket: QrTicket, shown_at: int, at_ms: int, window_ms: int) -> None:
    if at_ms < ticket.valid_from:
        raise QrError("not_yet", f"ticket {ticket.ticket_id.hex()} is valid from {ticket.valid_from}, it is {at_ms}")
    if at_ms >= ticket.valid_to:
        raise QrError("expired", f"ticket {ticket.ticket_id.hex()} was valid before {ticket.valid_to}, it is {at_ms}")
    if abs(at_ms - shown_at) > window_ms:
        raise QrError("stale", f"shown at {shown_at}, it is {at_ms}, at most {window_ms} ms may lie between")


# ---- base 45 (RFC 9285), which fills a QR code's alphanumeric mode: any reader gives back what was drawn

_ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}


def base45(data: bytes) -> bytes:
    """Two bytes as three characters, least first; a last single byte as two."""
    characters = bytearray()
    for at in range(0, len(data), 2):
        pair = data[at : at + 2]
        number = int.from_bytes(pair, "big")
        for _ in range(len(pair) + 1):
            number, character = divmod(number, 45)
            characters.append(_ALPHABET[character])
    return bytes(characters)


def unbase45(characters: bytes) -> bytes:
    """The bytes again; raises ValueError for what `base45` does not write."""
    data = bytearray()
    for at in range(0, len(characters), 3):
        group = characters[at : at + 3]
        number = 0
        for character in reversed(group):
            if character not in _VALUES:
                raise ValueError(f"{chr(character)!r} is no character of base 45")
            number = number * 45 + _VALUES[character]
        size = len(group) - 1
        if size == 0 or number >= 1 << 8 * size:
            raise ValueError(f"{group!r} is no group of base 45")
        data += number.to_bytes(size, "big")
    return bytes(data)
