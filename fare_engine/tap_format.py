"""The one signed format in which terminals tell what they saw: taps, the chain they hang on, and the signed envelope.

Decides what bytes are a message, what is a tap, and that both are what their device wrote. Leaves to others: whether
the device may still speak (revocation), whether the batch continues what is already held (gaps, forks), what a tap
means. docs/tap-format.md is the specification, for whoever builds a terminal in another language, with test vectors.

Bytes are verified as received and only then parsed, by the strict reader of fare_engine/cose.py."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from enum import IntEnum
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar, cast

import cbor2
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fare_engine.cose import LARGEST, CoseError, Signature, octets, read_cbor, read_map, read_sign1, shown, sign1, text, uint
from fare_engine.errors import EnvelopeError, MottheError
from fare_engine.ids import DeviceId, FactId, RouteId, StopId, tap_id

FORMAT: Final = 1
MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_TAPS: Final = 2000
MAX_TAP_BYTES: Final = 1024
EPOCH_BYTES: Final = 8
HEAD_BYTES: Final = 32
TOKEN_BYTES: Final = 16

_GENESIS: Final = "motthe-epoch-1"


class TapFormatError(MottheError):
    """One tap that cannot be read. Its text is the reason under which the tap is quarantined; the batch goes on."""


class TapKind(IntEnum):
    """What the tap is. OUTCOME speaks of an earlier tap of the same device, the others of a token presented."""

    ENTRY = 1
    EXIT = 2
    BOARD = 3
    OUTCOME = 4
    INSPECTION = 5


class Decision(IntEnum):
    """Who decided at the device: the server was asked, or the terminal let the rider in or kept him out by itself."""

    ASKED_ONLINE = 0
    ADMITTED_ALONE = 1
    REFUSED_ALONE = 2


class Outcome(IntEnum):
    """How the tap spoken of ended, where that differs from what it says itself."""

    TIMED_OUT = 1
    """No decision came in time; the OUTCOME's own decision is what the terminal then decided alone."""
    GATE_NOT_OPENED = 2
    CANCELLED = 3


class TapPlace(msgspec.Struct, frozen=True, gc=False):
    """A tap's place in its device's streams."""

    epoch: bytes
    sequence: int


class TapEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one terminal saw and decided. It carries no price: terminals do not know fares.

    Where the tap stands (device, epoch, sequence) is known from the batch and its chain; its bytes do not repeat it.
    Absent values are None, but `persons` 1 and `clock_offset_ms` 0."""

    device_id: DeviceId
    epoch: bytes
    sequence: int
    kind: TapKind
    token: bytes | None = None
    """Terminal token, 16 bytes; only an OUTCOME may come without."""
    token_key_version: int | None = None
    """Version of the domain key that made `token`."""
    former_token: bytes | None = None
    """The same medium's token under the domain key before that one; only while a change of the domain key overlaps."""
    medium: str | None = None
    """What holds the token: "emv", "wallet:zalopay-code", …"""
    stop_id: StopId | None = None
    route_id: RouteId | None = None
    vehicle_id: str | None = None
    section: str | None = None
    """The section of the route that a conductor sold."""
    persons: int = 1
    device_time: int
    """Milliseconds UTC by the device's own clock."""
    clock_offset_ms: int = 0
    """What to add to `device_time`, learnt at the last contact."""
    clock_error_ms: int | None = None
    """Half-width of what the terminal believes about its offset; None: it does not know."""
    decision: Decision | None = None
    """None only in an OUTCOME that decides nothing."""
    reason: str | None = None
    """Why the terminal refused alone; None when it did not."""
    deny_list_version: int | None = None
    tariff_version: str | None = None
    spoken_of: TapPlace | None = None
    """The tap that an OUTCOME speaks of."""
    outcome: Outcome | None = None

    @property
    def event_time_ms(self) -> int:
        """Corrected time of the tap, milliseconds UTC."""
        return self.device_time + self.clock_offset_ms

    @property
    def tap_id(self) -> FactId:
        """`device/epoch in hex/sequence`."""
        return tap_id(self.device_id, self.epoch.hex(), self.sequence)

    @property
    def spoken_of_id(self) -> FactId | None:
        """Id of the tap that an OUTCOME speaks of."""
        place = self.spoken_of
        return None if place is None else tap_id(self.device_id, place.epoch.hex(), place.sequence)


class Predecessor(msgspec.Struct, frozen=True, gc=False):
    """How the device's stream before this one ended; `last_sequence` 0: it had no taps."""

    epoch: bytes
    last_sequence: int
    head: bytes


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The signed part of a message: `count` taps from `first_sequence` on, leading from `previous_head` to `head`."""

    device_id: DeviceId
    epoch: bytes
    first_sequence: int
    """Sequence of the first tap, from 1; of the next tap to come when `count` is 0."""
    count: int
    previous_head: bytes
    head: bytes
    sent_at: int
    """Milliseconds UTC by the device's own clock."""
    predecessor: Predecessor | None = None
    """Given where `first_sequence` is 1, and nowhere else; None there: the device's first stream."""

    @property
    def epoch_hex(self) -> str:
        """The epoch as it stands in tap ids and in JSON."""
        return self.epoch.hex()

    @property
    def last_sequence(self) -> int:
        """Sequence of the last tap in the batch; one less than `first_sequence` in a batch without taps."""
        return self.first_sequence + self.count - 1


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A message whose size, shape, signature and chain are right; its taps have not been read yet."""

    header: BatchHeader
    taps: tuple[bytes, ...]
    message: bytes
    """The bytes as received."""
    heads: tuple[bytes, ...]
    """The chain's value before the first tap and after each tap: one more than there are taps."""

    def head_after(self, sequence: int) -> bytes:
        """The chain's value after the tap `sequence`, from the one before the batch's first to its last.

        Raises ValueError for others."""
        at = sequence - self.header.first_sequence + 1
        if not 0 <= at < len(self.heads):
            raise ValueError(f"sequence {sequence} is not in the batch {self.header}")
        return self.heads[at]

    def decode(self, sequence: int) -> TapEvent:
        """The tap at `sequence`; raises TapFormatError."""
        header = self.header
        return decode_tap(self.taps[sequence - header.first_sequence], header.device_id, header.epoch, sequence)


FindKeys = Callable[[DeviceId], Sequence[Ed25519PublicKey]]
"""The keys that a device may sign with, newest first: two while it changes keys, none if it is not known."""


# ---- tokens and the chain


def terminal_token(domain_key: bytes, medium: bytes) -> bytes:
    """What a terminal writes for a medium, whose own bytes it forgets: the first 16 bytes of HMAC-SHA256."""
    return hmac.digest(domain_key, medium, "sha256")[:TOKEN_BYTES]


def genesis_head(device_id: str, epoch: bytes, predecessor: Predecessor | None) -> bytes:
    """The chain's value before the first tap of an epoch."""
    return sha256(cbor2.dumps([_GENESIS, device_id, epoch, _predecessor_out(predecessor)])).digest()


def extend(head: bytes, tap: bytes) -> bytes:
    """The chain's value after `tap`. A tap shown or erased by itself is stood for by its hash."""
    return sha256(head + sha256(tap).digest()).digest()


def heads_after(head: bytes, taps: Sequence[bytes]) -> tuple[bytes, ...]:
    """`head`, and the chain's value after each of the taps."""
    heads = [head]
    for tap in taps:
        heads.append(extend(heads[-1], tap))
    return tuple(heads)


# ---- writing


def encode_tap(tap: TapEvent) -> bytes:
    """The tap's bytes, without its place; raises TapFormatError for what `decode_tap` would not take back."""
    fields: dict[int, object] = {}
    for key, field in _FIELDS.items():
        value = getattr(tap, field.name)
        if value != field.absent:
            fields[key] = field.write(value)
            _read_field(field, fields[key])
    _check_together(tap)
    data = cbor2.dumps(fields)
    _check_size(data)
    return data


def header_for(
    *,
    device_id: DeviceId,
    epoch: bytes,
    first_sequence: int,
    previous_head: bytes,
    taps: Sequence[bytes],
    sent_at: int,
    predecessor: Predecessor | None = None,
) -> BatchHeader:
    """The header that fits these taps."""
    return BatchHeader(
        device_id=device_id,
        epoch=epoch,
        first_sequence=first_sequence,
        count=len(taps),
        previous_head=previous_head,
        head=heads_after(previous_head, taps)[-1],
        sent_at=sent_at,
        predecessor=predecessor,
    )


def seal(private_key: Ed25519PrivateKey, header: BatchHeader, taps: Sequence[bytes]) -> bytes:
    """The message with these taps, signed. Whether header and taps fit is checked where it is opened."""
    signed = sign1(private_key, header.device_id.encode(), cbor2.dumps(_header_out(header)))
    return cbor2.dumps([signed, list(taps)])


def _header_out(header: BatchHeader) -> dict[int, object]:
    """The header map. Key 9 stands in the first batch of an epoch only, and there always."""
    fields: dict[int, object] = {
        1: FORMAT,
        2: header.device_id,
        3: header.epoch,
        4: header.first_sequence,
        5: header.count,
        6: header.previous_head,
        7: header.head,
        8: header.sent_at,
    }
    if header.first_sequence == 1 or header.predecessor:
        fields[9] = _predecessor_out(header.predecessor)
    return fields


def _predecessor_out(predecessor: Predecessor | None) -> list[object] | None:
    if predecessor is None:
        return None
    return [predecessor.epoch, predecessor.last_sequence, predecessor.head]


# ---- opening a message


class ReadMessage(NamedTuple):
    """A message of the right shape. Whether the device that it names has signed it is not known yet."""

    device_id: DeviceId
    message: bytes
    taps: tuple[bytes, ...]
    payload: bytes
    signature: Signature


def open_message(message: bytes, find_keys: FindKeys, *, limit: int = MAX_MESSAGE_BYTES) -> Batch:
    """The batch in a message, after its size, shape, signature and chain were checked, in this order.

    `find_keys` gives the device's public keys. Raises EnvelopeError with one of the causes too_large, not_cbor,
    bad_structure, unsupported_algorithm, unknown_device, bad_signature, bad_header, device_mismatch, broken_chain. No
    part of a message that raised may be used."""
    read = read_message(message, limit=limit)
    return verified(read, find_keys(read.device_id))


def read_message(message: bytes, *, limit: int = MAX_MESSAGE_BYTES) -> ReadMessage:
    """The first half of `open_message`: size and shape. Raises EnvelopeError."""
    if len(message) > limit:
        raise EnvelopeError("too_large", f"{len(message)} bytes, at most {limit}")
    try:
        sign1, taps = _outer_parts(message)
        payload, signature = read_sign1(sign1)
    except CoseError as fault:
        raise EnvelopeError(fault.cause, fault.detail) from None
    return ReadMessage(_device_of(signature.key_id), message, taps, payload, signature)


def verified(read: ReadMessage, keys: Sequence[Ed25519PublicKey]) -> Batch:
    """The second half: signature, header and chain. `keys` are the device's, of which one must have signed: a device that
    changes its key has two for a while. Raises EnvelopeError."""
    if not keys:
        raise EnvelopeError("unknown_device", repr(read.device_id))
    if not any(read.signature.holds(key) for key in keys):
        raise EnvelopeError("bad_signature", f"not signed by a key of {read.device_id!r}")
    return _batch(read)


def reopen_message(message: bytes) -> Batch:
    """The batch in a message that was opened before and kept as received: its shape and chain, not its signature."""
    return _batch(read_message(message, limit=len(message)))


def _batch(read: ReadMessage) -> Batch:
    header = _read_header(read.payload)
    if header.device_id != read.device_id:
        raise EnvelopeError("device_mismatch", f"signed by {read.device_id!r}, header of {header.device_id!r}")
    return Batch(header, read.taps, read.message, _checked_heads(header, read.taps))


def _outer_parts(message: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The signed part and the taps."""
    try:
        outer = read_cbor(message)
    except ValueError as fault:
        raise EnvelopeError("not_cbor", f"message: {fault}") from None
    match outer:
        case [bytes() as sign1, [*taps]] if all(type(tap) is bytes for tap in taps):
            return sign1, tuple(cast(list[bytes], taps))
    raise EnvelopeError("bad_structure", "the message is not [sign1 bytes, [tap bytes, …]]")


def _device_of(key_id: bytes) -> DeviceId:
    try:
        return _device(str(key_id, "utf-8"))
    except ValueError:
        raise EnvelopeError("bad_structure", "the key id is not the UTF-8 of a device id") from None


def _read_header(payload: bytes) -> BatchHeader:
    """The header from a payload whose signature holds."""
    try:
        fields = read_map(payload)
        first = fields.get(4) == 1
        if fields.keys() != (_FIRST_HEADER_KEYS if first else _HEADER_KEYS):
            raise ValueError(f"keys {sorted(fields)} in a batch whose first sequence is {shown(fields.get(4))}")
        if fields[1] != FORMAT:
            raise ValueError(f"format {shown(fields[1])}, only {FORMAT} is taken")
        return BatchHeader(
            device_id=_device(fields[2]),
            epoch=_epoch(fields[3]),
            first_sequence=_position(fields[4]),
            count=_count(fields[5]),
            previous_head=_hash(fields[6]),
            head=_hash(fields[7]),
            sent_at=_number(fields[8]),
            predecessor=_predecessor(fields[9]) if first else None,
        )
    except ValueError as fault:
        raise EnvelopeError("bad_header", str(fault)) from None


def _checked_heads(header: BatchHeader, taps: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The chain's values, if they lead from the header's previous head to its head."""
    if len(taps) != header.count:
        raise EnvelopeError("broken_chain", f"{len(taps)} taps, the header says {header.count}")
    if header.first_sequence == 1:
        genesis = genesis_head(header.device_id, header.epoch, header.predecessor)
        if header.previous_head != genesis:
            raise EnvelopeError("broken_chain", f"the epoch begins at {genesis.hex()}, not {header.previous_head.hex()}")
    heads = heads_after(header.previous_head, taps)
    if heads[-1] != header.head:
        raise EnvelopeError("broken_chain", f"the taps lead to {heads[-1].hex()}, the header says {header.head.hex()}")
    return heads


# ---- reading a tap


def decode_tap(data: bytes, device_id: DeviceId, epoch: bytes, sequence: int) -> TapEvent:
    """The tap in `data`, which stands at this place of its device's stream; raises TapFormatError."""
    _check_size(data)
    try:
        fields = read_map(data)
    except ValueError as fault:
        raise TapFormatError(str(fault)) from None
    values: dict[str, Any] = {}
    for key, value in fields.items():
        field = _FIELDS.get(key)
        if field is None:
            raise TapFormatError(f"unknown key {key}")
        values[field.name] = _read_field(field, value)
    if "kind" not in values or "device_time" not in values:
        raise TapFormatError("kind or device_time is missing")
    tap = TapEvent(device_id=device_id, epoch=epoch, sequence=sequence, **values)
    _check_together(tap)
    return tap


def _check_size(data: bytes) -> None:
    if len(data) > MAX_TAP_BYTES:
        raise TapFormatError(f"{len(data)} bytes, at most {MAX_TAP_BYTES}")


def _check_together(tap: TapEvent) -> None:
    """What the fields of a tap must be to each other; raises TapFormatError."""
    if tap.kind is TapKind.OUTCOME:
        _check_outcome(tap)
    else:
        _check_presentation(tap)
    if (tap.token is None) != (tap.medium is None) or (tap.token is None) != (tap.token_key_version is None):
        raise TapFormatError("token, token_key_version and medium stand together or not at all")
    if tap.former_token is not None and not tap.token_key_version:
        raise TapFormatError(f"a former token beside token_key_version {tap.token_key_version!r}: there was no key before")
    if (tap.reason is None) != (tap.decision is not Decision.REFUSED_ALONE):
        raise TapFormatError(f"decision {tap.decision!r} with reason {tap.reason!r}: a reason is for a refusal")
    if tap.event_time_ms < 0:
        raise TapFormatError(f"corrected time {tap.event_time_ms} is before 1970")


def _check_presentation(tap: TapEvent) -> None:
    if tap.token is None:
        raise TapFormatError(f"no token in a tap of kind {tap.kind.name}")
    if tap.decision is None:
        raise TapFormatError(f"no decision in a tap of kind {tap.kind.name}")
    if tap.spoken_of is not None or tap.outcome is not None:
        raise TapFormatError(f"an outcome in a tap of kind {tap.kind.name}")


def _check_outcome(tap: TapEvent) -> None:
    if tap.spoken_of is None or tap.outcome is None:
        raise TapFormatError("an OUTCOME names the tap spoken of and how it ended")
    if tap.spoken_of.epoch == tap.epoch and tap.spoken_of.sequence >= tap.sequence:
        raise TapFormatError(f"an OUTCOME at {tap.sequence} speaks of {tap.spoken_of.sequence}, which does not come before")
    alone = tap.decision in (Decision.ADMITTED_ALONE, Decision.REFUSED_ALONE)
    if alone != (tap.outcome is Outcome.TIMED_OUT) or (tap.decision is not None and not alone):
        raise TapFormatError(f"outcome {tap.outcome.name} with decision {tap.decision!r}")


# ---- values of one field: each takes what the reader gave and raises ValueError for what does not fit

_Value = TypeVar("_Value")
_Read = Callable[[object], object]


_epoch, _hash, _token = octets(EPOCH_BYTES), octets(HEAD_BYTES), octets(TOKEN_BYTES)
_number, _position, _count = uint(), uint(1), uint(0, MAX_TAPS)
_name = text(64)


def _device(value: object) -> DeviceId:
    """A device id: as other names, and without the slash that parts it from the epoch in a tap id."""
    name = _name(value)
    if "/" in name:
        raise ValueError(f"a device id has no slash: {name!r}")
    return DeviceId(name)


def _predecessor(value: object) -> Predecessor | None:
    match value:
        case None:
            return None
        case [epoch, last_sequence, head]:
            return Predecessor(_epoch(epoch), _number(last_sequence), _hash(head))
    raise ValueError(f"the predecessor is neither null nor [epoch, last sequence, head]: {shown(value)}")


def _offset(value: object) -> int:
    offset = uint(-LARGEST)(value)
    if offset == 0:
        raise ValueError("an offset of 0 is left out")
    return offset


def _place(value: object) -> TapPlace:
    match value:
        case [epoch, sequence]:
            return TapPlace(_epoch(epoch), _position(sequence))
    raise ValueError(f"not [epoch, sequence]: {shown(value)}")


def _place_out(place: TapPlace) -> list[object]:
    return [place.epoch, place.sequence]


def _itself(value: _Value) -> _Value:
    return value


class _Field(NamedTuple):
    """One key of a tap: which attribute, how to read it, how to write it, and the value for which it is left out."""

    name: str
    read: _Read
    write: Callable[[Any], object] = _itself
    absent: object = None


_HEADER_KEYS: Final = frozenset(range(1, 9))
_FIRST_HEADER_KEYS: Final = frozenset(range(1, 10))
_FIELDS: Final[dict[int, _Field]] = {
    1: _Field("kind", cast(_Read, TapKind), int),
    2: _Field("token", _token),
    3: _Field("token_key_version", _number),
    4: _Field("medium", _name),
    5: _Field("stop_id", _name),
    6: _Field("route_id", _name),
    7: _Field("vehicle_id", _name),
    8: _Field("section", _name),
    9: _Field("persons", uint(2, 255), absent=1),
    10: _Field("device_time", _number),
    11: _Field("clock_offset_ms", _offset, absent=0),
    12: _Field("clock_error_ms", _number),
    13: _Field("decision", cast(_Read, Decision), int),
    14: _Field("reason", text(200)),
    15: _Field("deny_list_version", _number),
    16: _Field("tariff_version", _name),
    17: _Field("spoken_of", _place, _place_out),
    18: _Field("outcome", cast(_Read, Outcome), int),
    19: _Field("former_token", _token),
}


def _read_field(field: _Field, value: object) -> object:
    try:
        return field.read(value)
    except ValueError as fault:
        raise TapFormatError(f"{field.name}: {fault}") from None
