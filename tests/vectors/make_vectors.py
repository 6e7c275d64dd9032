"""Writes the test vectors of docs/tap-format.md and docs/terminal-protocol.md: `python tests/vectors/make_vectors.py`.
The same bytes on every run.

The private keys in them are for tests only and are published with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.cose import sign1
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.publications import (
    Publisher,
    Role,
    TerminalRules,
    approve,
    make_delta,
    make_rules,
    make_snapshot,
    sign,
)
from fare_engine.tap_format import (
    BatchHeader,
    Decision,
    Outcome,
    Predecessor,
    TapEvent,
    TapKind,
    TapPlace,
    encode_tap,
    genesis_head,
    header_for,
    heads_after,
    seal,
    terminal_token,
)

FOLDER = Path(__file__).parent
SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
DEVICE = DeviceId("gate-ben-thanh-01")
FIRST_EPOCH, SECOND_EPOCH = bytes.fromhex("0102030405060708"), bytes.fromhex("f1f2f3f4f5f6f7f8")
READ_AT = 9
"""Sequence at which the refused taps are read."""
DOMAIN_KEY = bytes(range(64, 96))
NOON = 1_767_243_600_000
"""2026-01-01 12:00 in Ho Chi Minh City."""


def tokens() -> list[dict[str, str]]:
    """Tokens of some media."""
    media = [b"", bytes.fromhex("04a1b2c3d4e5f6"), "thẻ mẫu".encode()]
    return [{"domain_key": DOMAIN_KEY.hex(), "medium": m.hex(), "token": terminal_token(DOMAIN_KEY, m).hex()} for m in media]


def tap_events() -> dict[str, TapEvent]:
    """Taps of one epoch, in their order."""
    token = terminal_token(DOMAIN_KEY, bytes.fromhex("04a1b2c3d4e5f6"))
    first = TapEvent(
        device_id=DEVICE,
        epoch=FIRST_EPOCH,
        sequence=1,
        kind=TapKind.ENTRY,
        token=token,
        token_key_version=1,
        medium="emv",
        device_time=NOON,
        decision=Decision.ASKED_ONLINE,
    )
    change = msgspec.structs.replace
    return {
        "the least an entry holds": first,
        "an exit with all that a terminal knows": change(
            first,
            sequence=2,
            kind=TapKind.EXIT,
            stop_id=StopId("suoi-tien"),
            route_id=RouteId("metro-1"),
            vehicle_id="train-07",
            device_time=NOON + 1_800_000,
            clock_offset_ms=-1250,
            clock_error_ms=40,
            decision=Decision.ADMITTED_ALONE,
            deny_list_version=311,
            tariff_version="2019-now",
        ),
        "a conductor's sale to three persons": change(
            first,
            sequence=3,
            kind=TapKind.BOARD,
            medium="wallet:zalopay-code",
            route_id=RouteId("bus-01"),
            section="Bến Thành – Chợ Lớn",
            persons=3,
            clock_offset_ms=70_000,
        ),
        "refused alone": change(first, sequence=4, decision=Decision.REFUSED_ALONE, reason="deny_list", deny_list_version=311),
        "an inspection": change(first, sequence=5, kind=TapKind.INSPECTION, decision=Decision.ADMITTED_ALONE),
        "timed out and admitted alone": TapEvent(
            device_id=DEVICE,
            epoch=FIRST_EPOCH,
            sequence=6,
            kind=TapKind.OUTCOME,
            device_time=NOON + 300,
            decision=Decision.ADMITTED_ALONE,
            deny_list_version=311,
            spoken_of=TapPlace(FIRST_EPOCH, 1),
            outcome=Outcome.TIMED_OUT,
        ),
        "the gate did not open": TapEvent(
            device_id=DEVICE,
            epoch=FIRST_EPOCH,
            sequence=7,
            kind=TapKind.OUTCOME,
            device_time=NOON + 5000,
            spoken_of=TapPlace(FIRST_EPOCH, 1),
            outcome=Outcome.GATE_NOT_OPENED,
        ),
        "while the domain key changes": change(
            first,
            sequence=8,
            token=terminal_token(DOMAIN_KEY[::-1], bytes.fromhex("04a1b2c3d4e5f6")),
            token_key_version=2,
            former_token=token,
        ),
    }


def taps() -> list[dict[str, Any]]:
    """Each tap as its place, its keys as numbers, and its bytes."""
    return [
        {
            "name": name,
            "tap_id": tap.tap_id,
            "event_time_ms": tap.event_time_ms,
            "keys": readable(cbor2.loads(encode_tap(tap))),
            "bytes": encode_tap(tap).hex(),
        }
        for name, tap in tap_events().items()
    ]


def refused_taps() -> list[dict[str, Any]]:
    """Bytes that are no tap, each from the least entry by one change."""
    least = cbor2.loads(encode_tap(tap_events()["the least an entry holds"]))
    outcome = cbor2.loads(encode_tap(tap_events()["timed out and admitted alone"]))
    changed = {
        "an unknown key": least | {20: 1},
        "a former token of 15 bytes": least | {19: bytes(15)},
        "a former token and no key before": sorted_map(least | {3: 0, 19: bytes(16)}),
        "a former token without a token": outcome | {19: bytes(16)},
        "kind 6": least | {1: 6},
        "no device time": {key: value for key, value in least.items() if key != 10},
        "no token": {key: value for key, value in least.items() if key not in (2, 3, 4)},
        "a token of 15 bytes": least | {2: bytes(15)},
        "a token without its key version": {key: value for key, value in least.items() if key != 3},
        "one person, said": sorted_map(least | {9: 1}),
        "an offset of nothing, said": sorted_map(least | {11: 0}),
        "a time as a float": least | {10: 1.5},
        "a stop that is null": sorted_map(least | {5: None}),
        "a stop with a line break": sorted_map(least | {5: "a\nb"}),
        "a refusal without a reason": least | {13: 2},
        "a reason without a refusal": least | {14: "deny_list"},
        "no decision": {key: value for key, value in least.items() if key != 13},
        "an entry with an outcome": least | {18: 2},
        "an outcome of itself": outcome | {17: [FIRST_EPOCH, READ_AT]},
        "an outcome that timed out and decided nothing": {key: value for key, value in outcome.items() if key != 13},
        "keys out of order": dict(reversed(least.items())),
    }
    least_bytes = cbor2.dumps(least)
    raw = {
        "empty": b"",
        "cut short": least_bytes[:-1],
        "one byte more": least_bytes + b"\x00",
        "a key twice": bytes([0xA2]) + b"\x01\x01\x01\x01",
        "a number in more bytes than it needs": least_bytes.replace(b"\x01\x01", b"\x01\x18\x01", 1),
        "of indefinite length": b"\xbf" + least_bytes[1:] + b"\xff",
    }
    raw |= {name: cbor2.dumps(fields) for name, fields in changed.items()}
    place = {"epoch": FIRST_EPOCH.hex(), "sequence": READ_AT}
    return [{"name": name, **place, "bytes": data.hex()} for name, data in raw.items()]


def sorted_map(fields: dict[int, Any]) -> dict[int, Any]:
    return dict(sorted(fields.items()))


def batches() -> dict[str, tuple[BatchHeader, list[bytes]]]:
    """Messages that are taken, in the order in which a terminal sends them."""
    data = [encode_tap(tap) for tap in tap_events().values()][:7]
    heads = heads_after(genesis_head(DEVICE, FIRST_EPOCH, None), data)
    before = Predecessor(FIRST_EPOCH, len(data), heads[-1])

    def batch(first: int, count: int) -> tuple[BatchHeader, list[bytes]]:
        chosen = data[first - 1 : first - 1 + count]
        return header_for(
            device_id=DEVICE,
            epoch=FIRST_EPOCH,
            first_sequence=first,
            previous_head=heads[first - 1],
            taps=chosen,
            sent_at=NOON + first * 1000,
        ), chosen

    following = header_for(
        device_id=DEVICE,
        epoch=SECOND_EPOCH,
        first_sequence=1,
        previous_head=genesis_head(DEVICE, SECOND_EPOCH, before),
        taps=[],
        sent_at=NOON + 60_000,
        predecessor=before,
    )
    return {
        "a device's first epoch is announced": batch(1, 0),
        "its first tap": batch(1, 1),
        "the taps after it": batch(2, 6),
        "a heartbeat": batch(8, 0),
        "an epoch after it is announced": (following, []),
    }


def messages() -> dict[str, Any]:
    """Messages with the key that signed them."""
    return {
        "private_key": SEED.hex(),
        "public_key": KEY.public_key().public_bytes_raw().hex(),
        "messages": [
            {
                "name": name,
                "header": readable(msgspec.structs.asdict(header)),
                "heads": [head.hex() for head in heads_after(header.previous_head, chosen)],
                "taps": [tap.hex() for tap in chosen],
                "message": seal(KEY, header, chosen).hex(),
            }
            for name, (header, chosen) in batches().items()
        ],
    }


def refused_messages() -> list[dict[str, str]]:
    """Messages that are refused, with their cause."""
    header, chosen = batches()["the taps after it"]
    first_header, first_taps = batches()["its first tap"]
    change = msgspec.structs.replace
    good = seal(KEY, header, chosen)
    sign1, _ = cbor2.loads(good)
    parts = cbor2.loads(sign1).value
    algorithm = cbor2.dumps({1: -7, 4: DEVICE.encode()})

    def sealed(header: BatchHeader, taps: list[bytes], key: Ed25519PrivateKey = KEY) -> bytes:
        return seal(key, header, taps)

    def signed_for_another() -> bytes:
        payload = cbor2.loads(seal(KEY, change(header, device_id=DeviceId("gate-other")), []))[0]
        payload = cbor2.loads(payload).value[2]
        signature = KEY.sign(cbor2.dumps(["Signature1", parts[0], b"", payload]))
        return with_sign1([parts[0], {}, payload, signature])

    def signed_under(protected: dict[int, Any]) -> bytes:
        data = cbor2.dumps(protected)
        signature = KEY.sign(cbor2.dumps(["Signature1", data, b"", parts[2]]))
        return with_sign1([data, {}, parts[2], signature])

    def with_sign1(parts: list[Any], tag: int = 18) -> bytes:
        return cbor2.dumps([cbor2.dumps(cbor2.CBORTag(tag, parts)), chosen])

    cases = [
        ("not CBOR", "not_cbor", b"hello"),
        ("cut short", "not_cbor", good[:-1]),
        ("a length of 2^63", "not_cbor", bytes.fromhex("9b8000000000000000")),
        ("a map", "bad_structure", cbor2.dumps({})),
        ("tag 17", "bad_structure", with_sign1(parts, 17)),
        ("something unprotected", "bad_structure", with_sign1([parts[0], {4: b"x"}, *parts[2:]])),
        ("one more key protected", "bad_structure", signed_under({1: -8, 4: DEVICE.encode(), 5: b"iv"})),
        ("no key id", "bad_structure", signed_under({1: -8})),
        ("a device id with a slash", "bad_structure", signed_under({1: -8, 4: b"gate/1"})),
        ("ES256 instead of EdDSA", "unsupported_algorithm", with_sign1([algorithm, *parts[1:]])),
        ("a device that nobody knows", "unknown_device", sealed(change(header, device_id=DeviceId("x")), chosen)),
        ("another device's key", "bad_signature", sealed(header, chosen, OTHER_KEY)),
        ("a signature cut short", "bad_signature", with_sign1([*parts[:3], parts[3][:-1]])),
        ("a payload exchanged", "bad_signature", with_sign1([*parts[:2], parts[2] + b"\x00", parts[3]])),
        ("signed by one device, the header of another", "device_mismatch", signed_for_another()),
        ("a count of 2001", "bad_header", sealed(change(header, count=2001), chosen)),
        ("sequence 0", "bad_header", sealed(change(header, first_sequence=0), chosen)),
        (
            "a predecessor in the middle",
            "bad_header",
            sealed(change(header, predecessor=Predecessor(SECOND_EPOCH, 0, bytes(32))), chosen),
        ),
        ("a count that is one too small", "broken_chain", sealed(change(header, count=5), chosen)),
        ("a tap left out", "broken_chain", sealed(header, chosen[:-1])),
        ("a tap changed", "broken_chain", sealed(header, [*chosen[:-1], chosen[0]])),
        ("taps exchanged", "broken_chain", sealed(header, [chosen[1], chosen[0], *chosen[2:]])),
        (
            "an epoch that begins elsewhere",
            "broken_chain",
            sealed(change(first_header, epoch=SECOND_EPOCH), first_taps),
        ),
    ]
    return [{"name": name, "cause": cause, "message": message.hex()} for name, cause, message in cases]


SERVICE_KEY, LAN_KEY, MINH_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
PUBLISHERS = {
    b"service-1": (Publisher(name="service", role=Role.SERVICE, public_key=SERVICE_KEY.public_key()), SERVICE_KEY),
    b"lan-1": (Publisher(name="lan", role=Role.PERSON, public_key=LAN_KEY.public_key()), LAN_KEY),
    b"minh-1": (Publisher(name="minh", role=Role.PERSON, public_key=MINH_KEY.public_key()), MINH_KEY),
}


def publication_payloads() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Payloads and who signs them."""
    tokens = [terminal_token(DOMAIN_KEY, bytes([number])) for number in range(4)]
    rules = TerminalRules(
        tariff_version="2026-03",
        pass_back_ms=300_000,
        most_persons=9,
        media_offline=("card", "emv", "wallet"),
        stale_list_ms=86_400_000,
        media_when_stale=("card",),
        offline_floor=-10_000,
        card_clash_ms=800,
    )
    return {
        "a deny list": (make_snapshot(311, NOON, tokens[:3]), ("service-1",)),
        "a change of it": (make_delta(312, 311, NOON + 60_000, tokens[3:], tokens[:1]), ("service-1",)),
        "an empty deny list that two persons signed": (make_snapshot(313, NOON, []), ("service-1", "lan-1", "minh-1")),
        "one that may be taken for a day": (make_snapshot(314, NOON, [], NOON + 86_400_000), ("service-1",)),
        "rules for next month": (make_rules(7, NOON, rules, NOON + 2_592_000_000), ("service-1", "lan-1")),
        "rules that leave out what may be left out": (make_rules(8, NOON, TerminalRules(), NOON), ("service-1",)),
    }


def publications() -> dict[str, Any]:
    """Publications with the keys that signed them."""
    return {
        "publishers": [
            {
                "key_id": key_id.decode(),
                "name": publisher.name,
                "role": publisher.role.value,
                "private_key": key.private_bytes_raw().hex(),
                "public_key": key.public_key().public_bytes_raw().hex(),
            }
            for key_id, (publisher, key) in PUBLISHERS.items()
        ],
        "publications": [
            {
                "name": name,
                "keys": readable(cbor2.loads(payload)),
                "signed_by": list(names),
                "publication": sign(payload, keys_of(names)).hex(),
            }
            for name, (payload, names) in publication_payloads().items()
        ],
    }


def keys_of(names: tuple[str, ...]) -> dict[bytes, Ed25519PrivateKey]:
    return {name.encode(): PUBLISHERS[name.encode()][1] for name in names}


def refused_publications() -> list[dict[str, str]]:
    """Publications that are refused, with their cause."""
    payload, names = publication_payloads()["a deny list"]
    good = sign(payload, keys_of(names))
    fields = cbor2.loads(payload)
    parts = cbor2.loads(good).value
    [[protected, _, signature]] = parts[3]

    def with_parts(parts: list[Any], tag: int = 98) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(tag, parts))

    def signed(changed: dict[int, Any]) -> bytes:
        return sign(cbor2.dumps(dict(sorted(changed.items()))), keys_of(names))

    cases = [
        ("not a publication", "bad_structure", b"hello"),
        ("cut short", "not_cbor", good[:-1]),
        ("a COSE_Sign1", "bad_structure", sign1(SERVICE_KEY, b"service-1", payload)),
        ("nobody signed", "bad_structure", with_parts([*parts[:3], []])),
        ("signed twice by one key", "bad_structure", with_parts([*parts[:3], [*parts[3], *parts[3]]])),
        ("a header of the body", "bad_structure", with_parts([cbor2.dumps({1: -8}), *parts[1:]])),
        ("something unprotected", "bad_structure", with_parts([*parts[:3], [[protected, {4: b"x"}, signature]]])),
        (
            "ES256 instead of EdDSA",
            "unsupported_algorithm",
            with_parts([*parts[:3], [[cbor2.dumps({1: -7, 4: b"service-1"}), {}, signature]]]),
        ),
        ("another key under the name of the service", "bad_signature", sign(payload, {b"service-1": OTHER_KEY})),
        ("a wrong signature beside a good one", "bad_signature", approve(good, b"lan-1", OTHER_KEY)),
        ("a payload exchanged", "bad_signature", with_parts([*parts[:2], payload + b"\x00", parts[3]])),
        ("persons without the service", "not_trusted", sign(payload, keys_of(("lan-1", "minh-1")))),
        ("somebody unknown", "not_trusted", sign(payload, {b"hoa-1": OTHER_KEY})),
        ("format 2", "bad_content", signed(fields | {1: 2})),
        ("another kind", "bad_content", signed(fields | {2: "fares"})),
        ("an unknown key", "bad_content", signed(fields | {9: 1})),
        ("tokens of 9 bytes in all", "bad_content", signed(fields | {6: bytes(9)})),
        ("a change of itself", "bad_content", signed(fields | {4: 311, 6: {1: b"", 2: b""}})),
        ("a list with an activation", "bad_content", signed(fields | {7: NOON})),
        ("rules without an activation", "bad_content", signed(fields | {2: "rules", 6: {2: 0, 3: 0, 4: 1, 7: [], 8: 0, 10: 0}})),
        ("rules of nobody", "bad_content", signed(fields | {2: "rules", 6: {2: 0, 3: 0, 4: 0, 7: [], 8: 0, 10: 0}, 7: NOON})),
    ]
    return [{"name": name, "cause": cause, "publication": data.hex()} for name, cause, data in cases]


def readable(value: Any) -> Any:
    """The value with bytes as hexadecimal text, for JSON."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {str(key): readable(item) for key, item in value.items()}
        case list():
            return [readable(item) for item in value]
        case Predecessor():
            return readable(msgspec.structs.asdict(value))
    return value


FILES = {
    "tokens.json": tokens,
    "taps.json": taps,
    "refused_taps.json": refused_taps,
    "messages.json": messages,
    "refused_messages.json": refused_messages,
    "publications.json": publications,
    "refused_publications.json": refused_publications,
}


def text_of(name: str) -> str:
    """What stands in one of the files."""
    return json.dumps(FILES[name](), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")
