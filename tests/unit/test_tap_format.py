"""The tap format: what a device wrote comes back, and nothing else is taken."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cwt import COSE, COSEKey, COSEMessage
from cwt.cose_key_interface import COSEKeyInterface
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_engine.cose import LARGEST
from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.tap_format import (
    MAX_TAP_BYTES,
    MAX_TAPS,
    Batch,
    Decision,
    Outcome,
    Predecessor,
    TapEvent,
    TapFormatError,
    TapKind,
    TapPlace,
    decode_tap,
    encode_tap,
    extend,
    genesis_head,
    header_for,
    open_message,
    reopen_message,
    seal,
    terminal_token,
)
from tests.vectors import make_vectors

VECTORS = Path(make_vectors.__file__).parent
KEY = make_vectors.KEY
DEVICE = make_vectors.DEVICE
EPOCH = make_vectors.FIRST_EPOCH


def find_keys(device_id: DeviceId) -> list[Ed25519PublicKey]:
    return [KEY.public_key()] if device_id == DEVICE else []


def opened(message: bytes) -> Batch:
    return open_message(message, find_keys)


def cause_of(message: bytes, **options: Any) -> str:
    with pytest.raises(EnvelopeError) as caught:
        open_message(message, find_keys, **options)
    return caught.value.cause


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def named(items: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(item, id=item["name"]) for item in items]


def message_of(count: int, tap: bytes | None = None) -> bytes:
    """A message with `count` times the same tap."""
    least = encode_tap(make_vectors.tap_events()["the least an entry holds"])
    taps = [least if tap is None else tap] * count
    header = header_for(
        device_id=DEVICE,
        epoch=EPOCH,
        first_sequence=1,
        previous_head=genesis_head(DEVICE, EPOCH, None),
        taps=taps,
        sent_at=0,
    )
    return seal(KEY, header, taps)


# ---- the published vectors


@pytest.mark.parametrize("name", make_vectors.FILES)
def test_the_vectors_are_what_their_script_writes(name: str) -> None:
    assert (VECTORS / name).read_text(encoding="utf-8") == make_vectors.text_of(name)


@pytest.mark.parametrize("vector", named(vectors("taps.json")))
def test_a_tap_of_the_vectors_is_read_and_written_back(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    device, epoch, sequence = vector["tap_id"].split("/")
    tap = decode_tap(data, DeviceId(device), bytes.fromhex(epoch), int(sequence))
    assert tap == make_vectors.tap_events()[vector["name"]]
    assert encode_tap(tap) == data
    assert (tap.tap_id, tap.event_time_ms) == (vector["tap_id"], vector["event_time_ms"])
    assert data == cbor2.dumps(cbor2.loads(data), canonical=True)


@pytest.mark.parametrize("vector", named(vectors("refused_taps.json")))
def test_what_is_no_tap_is_refused_alone(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    with pytest.raises(TapFormatError):
        decode_tap(data, DEVICE, bytes.fromhex(vector["epoch"]), vector["sequence"])
    assert opened(message_of(1, data)).taps == (data,)


@pytest.mark.parametrize("vector", named(vectors("messages.json")["messages"]))
def test_a_message_of_the_vectors_is_opened(vector: dict[str, Any]) -> None:
    batch = opened(bytes.fromhex(vector["message"]))
    assert make_vectors.readable(msgspec.structs.asdict(batch.header)) == vector["header"]
    assert [tap.hex() for tap in batch.taps] == vector["taps"]
    assert [head.hex() for head in batch.heads] == vector["heads"]
    assert batch.message.hex() == vector["message"]


@pytest.mark.parametrize("vector", named(vectors("refused_messages.json")))
def test_a_wrong_message_is_refused_with_its_cause(vector: dict[str, Any]) -> None:
    assert cause_of(bytes.fromhex(vector["message"])) == vector["cause"]


def test_a_token_is_cut_from_the_hmac_of_its_medium() -> None:
    for vector in vectors("tokens.json"):
        token = terminal_token(bytes.fromhex(vector["domain_key"]), bytes.fromhex(vector["medium"]))
        assert token.hex() == vector["token"]
    # RFC 4231, test case 2
    assert terminal_token(b"Jefe", b"what do ya want for nothing?").hex() == "5bdcc146bf60754e6a042426089575c7"


# ---- taps


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64)
NUMBERS = st.integers(0, LARGEST)


@st.composite
def tap_events(draw: st.DrawFn) -> TapEvent:
    """Any tap that a terminal may write."""
    decision = draw(st.sampled_from(Decision))
    offset = draw(st.integers(-1_000_000, 1_000_000))
    token_known = draw(st.booleans())
    kind = draw(st.sampled_from(TapKind))
    place = TapPlace(draw(st.binary(min_size=8, max_size=8)), draw(st.integers(1, 4)))
    common: dict[str, Any] = {
        "device_id": DEVICE,
        "epoch": EPOCH,
        "sequence": 5,
        "kind": kind,
        "device_time": draw(st.integers(1_000_000, LARGEST)),
        "clock_offset_ms": offset,
        "clock_error_ms": draw(st.none() | NUMBERS),
        "deny_list_version": draw(st.none() | NUMBERS),
        "tariff_version": draw(st.none() | NAMES),
    }
    if kind is TapKind.OUTCOME:
        common["outcome"] = draw(st.sampled_from(Outcome))
        common["spoken_of"] = place
        alone = draw(st.sampled_from([Decision.ADMITTED_ALONE, Decision.REFUSED_ALONE]))
        decision = alone if common["outcome"] is Outcome.TIMED_OUT else None
    if kind is not TapKind.OUTCOME or token_known:
        common |= {"token": draw(st.binary(min_size=16, max_size=16)), "token_key_version": draw(NUMBERS)}
        common["medium"] = draw(NAMES)
        if common["token_key_version"]:
            common["former_token"] = draw(st.none() | st.binary(min_size=16, max_size=16))
    if kind is not TapKind.OUTCOME:
        common |= {"persons": draw(st.integers(1, 255)), "section": draw(st.none() | NAMES)}
        common |= {"stop_id": draw(st.none() | NAMES.map(StopId)), "route_id": draw(st.none() | NAMES.map(RouteId))}
        common |= {"vehicle_id": draw(st.none() | NAMES)}
    reason = draw(NAMES) if decision is Decision.REFUSED_ALONE else None
    return TapEvent(**common, decision=decision, reason=reason)


@given(tap_events())
def test_any_tap_comes_back_as_it_was_written_in_deterministic_cbor(tap: TapEvent) -> None:
    data = encode_tap(tap)
    assert decode_tap(data, tap.device_id, tap.epoch, tap.sequence) == tap
    assert cbor2.dumps(cbor2.loads(data), canonical=True) == data


def test_the_corrected_time_is_the_device_s_with_its_offset() -> None:
    tap = make_vectors.tap_events()["an exit with all that a terminal knows"]
    assert tap.event_time_ms == tap.device_time - 1250


@pytest.mark.parametrize(
    "change",
    [
        {"token": b"short"},
        {"medium": None},
        {"former_token": b"short"},
        {"former_token": bytes(16), "token_key_version": 0},
        {"stop_id": ""},
        {"stop_id": "x" * 65},
        {"persons": 0},
        {"device_time": -1},
        {"device_time": LARGEST + 1},
        {"clock_offset_ms": -make_vectors.NOON - 1},
        {"decision": None},
        {"decision": Decision.REFUSED_ALONE},
        {"outcome": Outcome.CANCELLED},
    ],
    ids=str,
)
def test_a_tap_that_nobody_would_take_is_not_written(change: dict[str, Any]) -> None:
    good = make_vectors.tap_events()["the least an entry holds"]
    encode_tap(good)
    with pytest.raises(TapFormatError):
        encode_tap(msgspec.structs.replace(good, **change))


def test_a_tap_of_more_than_a_kibibyte_is_neither_written_nor_read() -> None:
    names = dict.fromkeys(("medium", "stop_id", "route_id", "vehicle_id", "section", "tariff_version"), "𝐀" * 39)
    tap = msgspec.structs.replace(make_vectors.tap_events()["the least an entry holds"], **names)
    data = encode_tap(tap)
    assert 980 < len(data) <= MAX_TAP_BYTES
    fields = cbor2.loads(data)
    fields[8] += "𝐀" * 20
    with pytest.raises(TapFormatError, match="at most 1024"):
        decode_tap(cbor2.dumps(fields), DEVICE, EPOCH, 1)
    with pytest.raises(TapFormatError, match="at most 1024"):
        encode_tap(msgspec.structs.replace(tap, section=fields[8]))


@given(st.binary(max_size=200))
@settings(max_examples=3000)
def test_random_bytes_are_no_tap_or_one_that_is_written_the_same(data: bytes) -> None:
    assert_read_strictly(data)


@given(tap_events(), st.data())
@settings(max_examples=500)
def test_a_changed_tap_is_refused_or_another_tap(tap: TapEvent, data: st.DataObject) -> None:
    changed = bytearray(encode_tap(tap))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    assert_read_strictly(bytes(changed))


def assert_read_strictly(data: bytes) -> None:
    """Either no tap, or the one form in which that tap is written."""
    try:
        tap = decode_tap(data, DEVICE, EPOCH, 5)
    except TapFormatError:
        return
    assert encode_tap(tap) == data


# ---- messages


def test_an_empty_batch_announces_an_epoch() -> None:
    before = Predecessor(bytes(8), 41, bytes(32))
    genesis = genesis_head(DEVICE, EPOCH, before)
    header = header_for(
        device_id=DEVICE, epoch=EPOCH, first_sequence=1, previous_head=genesis, taps=[], sent_at=7, predecessor=before
    )
    batch = opened(seal(KEY, header, []))
    assert batch.header.predecessor == before
    assert (batch.header.last_sequence, batch.heads) == (0, (genesis,))


def test_a_batch_tells_the_chain_s_value_at_each_of_its_places() -> None:
    batch = opened(message_of(3))
    head = batch.header.previous_head
    for sequence, tap in enumerate(batch.taps, start=1):
        assert batch.head_after(sequence - 1) == head
        head = extend(head, tap)
        assert batch.decode(sequence).sequence == sequence
    assert batch.head_after(3) == head == batch.header.head
    with pytest.raises(ValueError, match="sequence 4"):
        batch.head_after(4)
    with pytest.raises(ValueError, match="sequence -1"):
        batch.head_after(-1)


def test_a_message_kept_as_received_is_read_again_without_its_device_s_key() -> None:
    assert reopen_message(MESSAGE) == opened(MESSAGE)
    with pytest.raises(EnvelopeError, match="broken_chain"):
        reopen_message(MESSAGE[:-1] + bytes([MESSAGE[-1] ^ 1]))


def test_two_thousand_taps_fit_and_one_more_does_not() -> None:
    assert opened(message_of(MAX_TAPS)).header.count == MAX_TAPS
    assert cause_of(message_of(MAX_TAPS + 1)) == "bad_header"


def test_a_message_is_measured_before_it_is_read() -> None:
    message = message_of(1)
    assert open_message(message, find_keys, limit=len(message)).header.count == 1
    assert cause_of(message, limit=len(message) - 1) == "too_large"
    assert cause_of(bytes(1 << 20) + b"\x00") == "too_large"


def test_the_key_is_looked_up_once_and_by_the_name_in_the_protected_header() -> None:
    asked: list[str] = []

    def find(device_id: DeviceId) -> list[Ed25519PublicKey]:
        asked.append(device_id)
        return [KEY.public_key()]

    open_message(message_of(1), find)
    assert asked == [DEVICE]


def test_a_device_that_changes_its_key_is_known_by_both() -> None:
    new = Ed25519PrivateKey.from_private_bytes(bytes(32))
    both = [new.public_key(), KEY.public_key()]
    header = opened(message_of(1)).header
    for key in (new, KEY):
        message = seal(key, header, opened(message_of(1)).taps)
        assert open_message(message, lambda _: both).header == header
    with pytest.raises(EnvelopeError, match="bad_signature"):
        open_message(message_of(1), lambda _: both[:1])
    with pytest.raises(EnvelopeError, match="unknown_device"):
        open_message(message_of(1), lambda _: [])


def test_every_flipped_bit_of_a_message_is_refused() -> None:
    message = message_of(2)
    opened(message)
    for bit in range(len(message) * 8):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        assert cause_of(bytes(changed))


@given(st.binary(max_size=400))
@settings(max_examples=3000)
def test_random_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    assert cause_of(data) in {"not_cbor", "bad_structure"}


SCRAPS = st.recursive(
    st.none() | st.integers() | st.binary(max_size=40) | st.text(max_size=10) | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)


@given(SCRAPS, SCRAPS, st.integers(0, 60))
@settings(max_examples=250)
def test_any_other_cbor_is_refused_and_nothing_worse(outer: object, inner: object, tag: int) -> None:
    assert cause_of(cbor2.dumps(outer))
    assert cause_of(cbor2.dumps([cbor2.dumps(cbor2.CBORTag(tag, inner)), [b""]]))
    assert cause_of(cbor2.dumps([cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps(inner), {}, b"", b""])), []]))


@given(st.data())
@settings(max_examples=1500)
def test_a_mutated_message_is_refused_and_nothing_worse(data: st.DataObject) -> None:
    message = MESSAGE
    start = data.draw(st.integers(0, len(message) - 1))
    end = data.draw(st.integers(start, min(len(message), start + 8)))
    changed = message[:start] + data.draw(st.binary(max_size=8)) + message[end:]
    if changed != message:
        assert cause_of(changed)


MESSAGE = message_of(2)


@given(SCRAPS | st.dictionaries(st.integers(1, 9), SCRAPS, max_size=9))
@settings(max_examples=250)
def test_a_signed_header_of_anything_else_is_refused_and_nothing_worse(payload: object) -> None:
    protected = cbor2.dumps({1: -8, 4: DEVICE.encode()})
    signed = cbor2.dumps(payload)
    signature = KEY.sign(cbor2.dumps(["Signature1", protected, b"", signed]))
    sign1 = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, signed, signature]))
    assert cause_of(cbor2.dumps([sign1, []])) == "bad_header"


@pytest.mark.parametrize(
    "bomb",
    [
        "9b00007fffffffffff",
        "9affffffff",
        "bb00007fffffffffff",
        "5b00007fffffffffff",
        "7affffffff",
        "82" + "5affffffff",
        "81" * 400_000,
        "a100" * 200_000,
        "d8" + "1c" * 1000,
        "9f" * 1000,
        "c4821b00000000ffffffff01",
        "d823582028613f2b292b",
    ],
    ids=lambda bomb: bomb[:20],
)
def test_a_parser_bomb_is_refused_without_taking_memory(bomb: str) -> None:
    data = bytes.fromhex(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cause_of(data) in {"not_cbor", "bad_structure"}
    with pytest.raises(TapFormatError):
        decode_tap(data[:1000], DEVICE, EPOCH, 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 8 << 20


@pytest.mark.parametrize("bomb", ["9a000fff00", "9901f4" + "9907d0", "9a000fff00a0"])
def test_a_message_of_too_many_items_is_refused_before_they_are_read(bomb: str) -> None:
    with pytest.raises(EnvelopeError, match="not_cbor: message: CBOR of more than 2200 items"):
        opened(bytes.fromhex(bomb).ljust(1 << 20, b"\x80"))


# ---- a second implementation of COSE


def cose_key() -> COSEKeyInterface:
    """Our key for the other implementation: kty OKP, kid, alg EdDSA, crv Ed25519, x, d (RFC 9053, 7.2)."""
    public, private = KEY.public_key().public_bytes_raw(), KEY.private_bytes_raw()
    return COSEKey.new({1: 1, 2: DEVICE.encode(), 3: -8, -1: 6, -2: public, -4: private})


def test_another_implementation_of_cose_opens_our_signed_part() -> None:
    sign1, _ = cbor2.loads(message_of(1))
    assert COSE.new().decode(sign1, keys=cose_key()) == cbor2.loads(sign1).value[2]
    assert COSEMessage.loads(sign1).protected == {1: -8, 4: DEVICE.encode()}
    with pytest.raises(Exception, match="Failed to verify"):
        COSE.new().decode(sign1[:-1] + bytes([sign1[-1] ^ 1]), keys=cose_key())


def test_what_another_implementation_of_cose_signed_is_opened() -> None:
    sign1, taps = cbor2.loads(message_of(1))
    payload = cbor2.loads(sign1).value[2]
    theirs = COSE.new().encode(payload, cose_key(), protected={1: -8, 4: DEVICE.encode()}, unprotected={})
    assert opened(cbor2.dumps([theirs, taps])).taps == tuple(taps)


def test_a_key_of_another_device_opens_nothing() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    with pytest.raises(EnvelopeError, match="bad_signature"):
        open_message(message_of(1), lambda _: [other])
