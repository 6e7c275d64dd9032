"""What reaches the door from outside: messages changed in every way we know, bombs, and noise. None is believed that no
device wrote, nothing is raised but what the format documents, and no message takes more memory than stated here.

Two kinds are tried. *Forged* messages are made without a device's key: one is taken only if it is, byte for byte, a message
that the device did write. *Signed* ones are made with the key around headers and taps that are nonsense, as a faulty device
would: they may be taken, but what is in them may then only be read or refused tap by tap.

Everything comes from a seed: run `check(seed, count)` to see a failure again."""

from __future__ import annotations

import json
import multiprocessing
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fare_engine import cose
from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId
from fare_engine.tap_format import (
    MAX_MESSAGE_BYTES,
    MAX_TAP_BYTES,
    Predecessor,
    TapFormatError,
    encode_tap,
    genesis_head,
    header_for,
    open_message,
    reopen_message,
    seal,
)
from tests.vectors import make_vectors

PEAK_MIB = 96
"""Most memory that reading one message may take, the largest (1 MiB) included: it is reached by a million empty maps."""
BIG = 8000
"""One message in about so many is as large as a message may be; each of those costs seconds."""
MEASURED_FROM = 1 << 16
"""Every message from this size on is measured, and every 25th below it: to count allocations makes reading ten times slower."""
CAUSES = {
    "too_large", "not_cbor", "bad_structure", "unsupported_algorithm", "unknown_device", "bad_signature", "bad_header",
    "device_mismatch", "broken_chain",
}  # fmt: skip

KEY, DEVICE = make_vectors.KEY, make_vectors.DEVICE
STRANGER = Ed25519PrivateKey.from_private_bytes(b"stranger" * 4)
TAPS = [encode_tap(tap) for tap in make_vectors.tap_events().values()]
Chance = random.Random


def find_keys(device_id: DeviceId) -> tuple[Ed25519PublicKey, ...]:
    return (KEY.public_key(),) if device_id == DEVICE else ()


# ---- messages that the device wrote


@cache
def written() -> tuple[bytes, ...]:
    """The messages of the test vectors, and others of up to 200 taps."""
    vectors = json.loads((Path(make_vectors.__file__).parent / "messages.json").read_text(encoding="utf-8"))["messages"]
    chance = random.Random(0)
    sizes = [0, 0, 1, 1, 1, 1, 2, 3, 5, 8, 20, 200]
    return (
        *(bytes.fromhex(vector["message"]) for vector in vectors),
        *(message_of(chance, size) for size in sizes for _ in range(5)),
    )


def message_of(
    chance: Chance, size: int, key: Ed25519PrivateKey = KEY, make_tap: Callable[[Chance], bytes] | None = None
) -> bytes:
    """A message of `size` taps at some place of some epoch."""
    epoch, first = chance.randbytes(8), chance.choice([1, 1, 2, 77, 1 << 40])
    taps = [make_tap(chance) if make_tap else chance.choice(TAPS) for _ in range(size)]
    before = (
        Predecessor(chance.randbytes(8), chance.randrange(99), chance.randbytes(32))
        if first == 1 and chance.random() < 0.7
        else None
    )
    head = genesis_head(DEVICE, epoch, before) if first == 1 else chance.randbytes(32)
    header = header_for(
        device_id=DEVICE,
        epoch=epoch,
        first_sequence=first,
        previous_head=head,
        taps=taps,
        sent_at=chance.randrange(1 << 41),
        predecessor=before,
    )
    return seal(key, header, taps)


# ---- changes that anybody can make


def flip_bits(chance: Chance, message: bytes) -> bytes:
    changed = bytearray(message)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def change_bytes(chance: Chance, message: bytes) -> bytes:
    """Some bytes inserted, deleted, replaced or doubled."""
    at, length = chance.randrange(len(message)), chance.choice([1, 1, 2, 4, 32])
    piece = chance.choice([chance.randbytes(length), bytes(length), b"\xff" * length, message[at : at + length] * 2, b""])
    return message[:at] + piece + message[at + chance.choice([0, length]) :]


def cut(chance: Chance, message: bytes) -> bytes:
    at = chance.randrange(len(message))
    return chance.choice([message[:at], message[at:], message + message[:at]])


def splice(chance: Chance, message: bytes) -> bytes:
    """The beginning of one message and the end of another, where each of them may be cut at any place or at the same."""
    other = chance.choice(written())
    at = chance.randrange(min(len(message), len(other)))
    return message[:at] + other[chance.choice([at, chance.randrange(len(other))]) :]


def rearrange_taps(chance: Chance, message: bytes) -> bytes:
    """Whole taps swapped, doubled, dropped, put in, or taken from another message."""
    sign1, taps = cbor2.loads(message)
    other = cbor2.loads(chance.choice(written()))[1]
    ways: list[Callable[[], list[bytes]]] = [
        lambda: chance.sample(taps, len(taps)),
        lambda: taps + taps[-1:],
        lambda: taps[1:],
        lambda: taps[:-1],
        lambda: [*taps, chance.choice(TAPS)],
        lambda: other,
        lambda: [chance.choice(TAPS) if chance.random() < 0.3 else tap for tap in taps],
    ]
    return cbor2.dumps([sign1, chance.choice(ways)()])


def mix_signed_parts(chance: Chance, message: bytes) -> bytes:
    """Header, protected header and signature of two messages, in any combination; or a header with other values."""
    sign1, taps = cbor2.loads(message)
    mine, yours = cbor2.loads(sign1).value, cbor2.loads(cbor2.loads(chance.choice(written()))[0]).value
    parts = [chance.choice(pair) for pair in zip(mine, yours, strict=True)]
    if chance.random() < 0.5:
        header = cbor2.loads(parts[2])
        header[chance.choice(list(header))] = chance.choice([0, 1, 2, None, b"", "gate-2", bytes(8), bytes(32), 1 << 63, -1])
        parts[2] = cbor2.dumps(header)
    if chance.random() < 0.3:
        parts[0] = cbor2.dumps(
            {1: chance.choice([-8, -7, 5, None, "EdDSA"]), 4: chance.choice([DEVICE.encode(), b"gate-2", b"\xff", ""])}
        )
    return cbor2.dumps([b"\xd2" + cbor2.dumps(parts), taps])


def sign_as_somebody_else(chance: Chance, message: bytes) -> bytes:
    """A message with all in it right, but for the key it was signed with."""
    return message_of(chance, chance.choice([0, 1, 3]), STRANGER)


def lengthen_a_number(chance: Chance, message: bytes) -> bytes:
    """The same content in CBOR that is not deterministic: a length or number in more bytes than it needs."""
    body = message[1:]
    return chance.choice([b"\x98\x02", b"\x99\x00\x02", b"\x9a\x00\x00\x00\x02", b"\x9b" + bytes(7) + b"\x02", b"\x9f"]) + body


def noise(chance: Chance, message: bytes) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 2, 8, 100, 1000]))


def bomb(chance: Chance, message: bytes) -> bytes:
    """CBOR that promises or nests more than there is; now and then as large as a message may be, or larger."""
    most = MAX_MESSAGE_BYTES - 3 + chance.choice([0, 0, 0, 4]) if chance.randrange(BIG // 20) == 0 else 2000
    head = chance.choice([0x40, 0x60, 0x80, 0xA0])  # bytes, text, array, map
    declared = bytes([head | 27]) + chance.choice(
        [b"\xff" * 8, b"\x7f" + b"\xff" * 7, (1 << 32).to_bytes(8, "big"), most.to_bytes(8, "big")]
    )
    array = b"\x9a" + (most - 7).to_bytes(4, "big")
    inner: list[bytes] = [
        bytes([head | 1]) * most,  # nested, each of one
        b"\x81" * most,
        b"\xa1\x01" * (most // 2),
        declared,
        declared + bytes(most - 20),
        array + b"\x00" * (most - 7),  # as many items as can be: numbers, nulls, empty strings, arrays and maps
        array + b"\xf6" * (most - 7),
        array + b"\x60" * (most - 7),
        array + b"\x80" * (most - 7),
        array + b"\xa0" * (most - 7),
        b"\xc2" + declared,  # a big number
        b"\x9f" * most,
    ]
    item = chance.choice(inner)
    return chance.choice([item, b"\x82" + item, b"\x82\x40" + item, b"\x82" + item + b"\x80"])[: MAX_MESSAGE_BYTES + 1]


CHANGES: list[Callable[[Chance, bytes], bytes]] = [
    flip_bits, flip_bits, change_bytes, change_bytes, cut, splice, splice, rearrange_taps, mix_signed_parts,
    sign_as_somebody_else, lengthen_a_number, noise, bomb,
]  # fmt: skip


# ---- nonsense that a device signed


def nonsense_tap(chance: Chance) -> bytes:
    tap = chance.choice(TAPS)
    ways: list[Callable[[], bytes]] = [
        lambda: flip_bits(chance, tap),
        lambda: change_bytes(chance, tap),
        lambda: cut(chance, tap),
        lambda: noise(chance, tap),
        lambda: bomb(chance, tap)[: MAX_TAP_BYTES + chance.choice([0, 1])],
        lambda: cbor2.dumps({key: chance.choice(VALUES) for key in sorted(chance.sample(range(1, 20), 6))}),
        lambda: cbor2.dumps(cbor2.loads(tap) | {chance.randrange(20): chance.choice(VALUES)}, canonical=True),
    ]
    return chance.choice(ways)()


VALUES: list[Any] = [
    0, 1, 2, 255, 256, -1, 1 << 48, (1 << 64) - 1, -(1 << 64), 1 << 64, 1.5, None, True, b"", bytes(16), "", "a", "\n", "\ud7ff",
    "\u202e", "x" * 300, [], [bytes(8), 1], [1, bytes(8)], {}, {1: {2: {3: 4}}}, [[[[]]]],
]  # fmt: skip


def signed_nonsense(chance: Chance) -> bytes:
    """A message by the device with taps, or a header, or an envelope that make no sense."""
    if chance.random() < 0.6:
        return message_of(chance, chance.choice([1, 1, 2, 5]), KEY, nonsense_tap)
    sign1, taps = cbor2.loads(chance.choice(written()))
    payload = cbor2.loads(sign1).value[2]
    change = chance.choice([flip_bits, change_bytes, cut, mix_header, bomb, noise])
    key_id = chance.choice([DEVICE.encode()] * 4 + [b"gate-2", b"\xff\xfe", b"/", b"x" * 65])
    return cbor2.dumps([cose.sign1(KEY, key_id, change(chance, payload)[:5000]), taps])


def mix_header(chance: Chance, payload: bytes) -> bytes:
    return cbor2.dumps(cbor2.loads(payload) | {chance.randrange(12): chance.choice(VALUES)}, canonical=True)


# ---- the checks


def check(seed: int, count: int) -> Counter[str]:
    """Try `count` messages; gives how often which outcome came, and under `peak_kib` the most memory that one took."""
    chance, found, peak = random.Random(seed), Counter[str](), 0
    ours = set(written())
    for number in range(count):
        forged = number % 5 != 0
        change = chance.choice(CHANGES)
        message = change(chance, chance.choice(written())) if forged else signed_nonsense(chance)
        is_measured = number % 50 < 2 or len(message) > MEASURED_FROM
        outcome, memory = measured(message) if is_measured else (opened(message), 0)
        read_taps(message)
        peak = max(peak, memory)
        made = change.__name__ if forged else "signed"
        where = f"message {number} of seed {seed} ({made}): {outcome}: {message[:2000].hex()}"
        assert outcome == "taken" or outcome in CAUSES, where
        assert outcome != "taken" or not forged or message in ours, where
        found[f"{'forged' if forged else 'signed'} {'the same again' if message in ours else outcome}"] += 1
    found["peak_kib"] = peak >> 10
    return found


def measured(message: bytes) -> tuple[str, int]:
    """What became of a message, and the most memory that this took at once, in bytes."""
    tracemalloc.start()
    try:
        return opened(message), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def opened(message: bytes) -> str:
    """`taken`, or the cause of the refusal."""
    try:
        batch = open_message(message, find_keys)
    except EnvelopeError as refusal:
        return refusal.cause
    assert batch.message == message
    return "taken"


def read_taps(message: bytes) -> None:
    """Read a message and its taps as if its signature were good."""
    if len(message) > MAX_MESSAGE_BYTES:
        return
    try:
        batch = reopen_message(message)
    except EnvelopeError:
        return
    for sequence in range(batch.header.first_sequence, batch.header.last_sequence + 1):
        try:
            tap = batch.decode(sequence)
        except TapFormatError:
            continue
        assert encode_tap(tap) == batch.taps[sequence - batch.header.first_sequence]


def test_what_the_device_wrote_is_taken() -> None:
    assert {opened(message) for message in written()} == {"taken"}


def test_no_mutated_message_is_believed_nothing_else_is_raised_and_memory_is_bounded() -> None:
    found = check(seed=1, count=20_000)
    assert found["peak_kib"] < PEAK_MIB << 10
    tried = {key.removeprefix("forged ") for key in found if key.startswith("forged ")}
    assert tried - {"the same again", "too_large"} == CAUSES - {"bad_header", "device_mismatch", "too_large"}
    assert {"signed taken", "signed bad_header", "signed device_mismatch"} <= found.keys()


@pytest.mark.parametrize("item", [b"\x00", b"\x80", b"\xa0"], ids=["numbers", "arrays", "maps"])
def test_the_largest_bombs_stay_within_the_stated_memory(item: bytes) -> None:
    message = b"\x82\x40\x9a" + (MAX_MESSAGE_BYTES - 7).to_bytes(4, "big") + item * (MAX_MESSAGE_BYTES - 7)
    assert len(message) == MAX_MESSAGE_BYTES
    outcome, memory = measured(message)
    assert outcome in ("not_cbor", "bad_structure")
    assert memory < PEAK_MIB << 20


@pytest.mark.prove
def test_a_million_mutated_messages_are_all_refused_within_the_stated_memory(
    record_property: Callable[[str, object], None],
) -> None:
    runs, each = 20, 50_000
    found, peak = Counter[str](), 0
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(check, range(100, 100 + runs), [each] * runs):
            peak = max(peak, part.pop("peak_kib"))
            found += part
    assert found.total() == runs * each
    record_property("messages", found.total())
    record_property("believed_but_not_written", found["forged taken"])
    record_property("most_memory_for_a_message_mib", peak >> 10)
    record_property("outcomes", dict(sorted(found.items())))
    assert found["forged taken"] == 0
    assert peak < PEAK_MIB << 10
