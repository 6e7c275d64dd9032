"""QR tickets: what is shown by the right phone at the right time is taken once, and nothing else."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest
import segno
import zxingcpp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cwt import COSE, COSEKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_engine.cose import sign1
from fare_engine.errors import QrError
from fare_engine.qr_tickets import (
    MAX_CODE_BYTES,
    PREFIX,
    WINDOW_MS,
    CheckedTicket,
    QrTicket,
    SeenPresentations,
    base45,
    check_presentation,
    draw,
    issue_ticket,
    present,
    unbase45,
)

ISSUER = Ed25519PrivateKey.from_private_bytes(b"i" * 32)
PHONE = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
KEY_ID = b"qr-2026-1"
NOW = 1_767_243_600_123
HOUR = 3_600_000
TICKET = QrTicket(
    ticket_id=bytes(range(16)),
    token=bytes(range(16, 32)),
    token_key_version=1,
    valid_from=NOW - HOUR,
    valid_to=NOW + HOUR,
    holder_key=PHONE.public_key().public_bytes_raw(),
)
ISSUED = issue_ticket(ISSUER, KEY_ID, TICKET)
CODE = present(ISSUED, PHONE, NOW)
PAYLOAD = cbor2.loads(cbor2.loads(ISSUED).value[2])


def find_issuer(key_id: bytes) -> Ed25519PublicKey | None:
    return ISSUER.public_key() if key_id == KEY_ID else None


def memory() -> SeenPresentations:
    """Of a terminal that has been running for an hour."""
    return SeenPresentations(NOW - HOUR)


def taken(code: bytes, at: int = NOW, seen: SeenPresentations | None = None) -> CheckedTicket:
    return check_presentation(code, find_issuer, at_ms=at, seen=memory() if seen is None else seen)


def cause_of(code: bytes, at: int = NOW, seen: SeenPresentations | None = None) -> str:
    with pytest.raises(QrError) as error:
        taken(code, at, seen)
    assert str(error.value).startswith(f"{error.value.cause}: ")
    return error.value.cause


def changed(**changes: Any) -> bytes:
    """A code with a ticket that the issuer signed, changed in some fields."""
    return present(issue_ticket(ISSUER, KEY_ID, msgspec.structs.replace(TICKET, **changes)), PHONE, NOW)


# ---- what is taken


def test_a_ticket_shown_by_its_phone_gives_the_tap_its_token_medium_and_persons() -> None:
    assert taken(changed(medium="qr:special", persons=3)) == CheckedTicket(
        token=TICKET.token, token_key_version=1, medium="qr:special", persons=3, ticket_id=TICKET.ticket_id, shown_at=NOW
    )


def test_the_same_ticket_is_taken_again_when_it_is_shown_anew() -> None:
    seen = memory()
    for later in (0, 10_000, 3_000_000):
        assert taken(present(ISSUED, PHONE, NOW + later), NOW + later, seen).shown_at == NOW + later


@pytest.mark.parametrize("difference", [-WINDOW_MS, 0, WINDOW_MS])
def test_clocks_may_differ_by_the_window(difference: int) -> None:
    assert taken(CODE, NOW + difference).ticket_id == TICKET.ticket_id


# ---- what is not


@pytest.mark.parametrize("difference", [-WINDOW_MS - 1, WINDOW_MS + 1, 20 * 60_000])
def test_a_screenshot_is_worth_nothing_after_the_window(difference: int) -> None:
    assert cause_of(CODE, NOW + difference) == "stale"


def test_a_code_is_taken_once_at_a_terminal() -> None:
    seen = memory()
    taken(CODE, NOW, seen)
    assert cause_of(CODE, NOW + 1, seen) == "replayed"


def test_a_screenshot_made_before_the_code_that_was_taken_is_refused_too() -> None:
    seen = memory()
    taken(present(ISSUED, PHONE, NOW + 10_000), NOW + 10_000, seen)
    assert cause_of(CODE, NOW + 11_000, seen) == "replayed"


def test_a_code_that_was_refused_may_be_shown_again_when_it_is_good() -> None:
    seen = memory()
    early = changed(valid_from=NOW + 5_000)
    assert cause_of(early, NOW, seen) == "not_yet"
    assert taken(early, NOW + 5_000, seen).shown_at == NOW


def test_another_terminal_cannot_know_and_takes_the_code_within_the_window() -> None:
    taken(CODE, NOW, memory())
    assert taken(CODE, NOW + 1, memory()).ticket_id == TICKET.ticket_id


def test_a_ticket_is_valid_from_its_first_millisecond_and_before_its_last() -> None:
    assert taken(changed(valid_from=NOW)).shown_at == NOW
    assert cause_of(changed(valid_from=NOW + 1)) == "not_yet"
    assert taken(changed(valid_to=NOW + 1)).shown_at == NOW
    assert cause_of(changed(valid_to=NOW)) == "expired"


def test_another_phone_cannot_show_a_copied_ticket() -> None:
    assert cause_of(present(ISSUED, STRANGER, NOW)) == "bad_signature"


def test_nobody_but_the_issuer_makes_tickets() -> None:
    assert cause_of(present(issue_ticket(STRANGER, KEY_ID, TICKET), PHONE, NOW)) == "bad_signature"
    assert cause_of(present(issue_ticket(STRANGER, b"another", TICKET), PHONE, NOW)) == "unknown_issuer"


def parts_of(code: bytes) -> list[Any]:
    return list(cbor2.loads(unbase45(code[len(PREFIX) :])))


def code_of(*parts: object) -> bytes:
    return PREFIX + base45(cbor2.dumps(list(parts)))


def test_a_time_of_showing_cannot_be_moved() -> None:
    ticket, shown_at, signature = parts_of(CODE)
    assert cause_of(code_of(ticket, shown_at + 1, signature)) == "bad_signature"


def test_a_phone_s_word_about_one_ticket_does_not_serve_another() -> None:
    _, shown_at, signature = parts_of(CODE)
    other = issue_ticket(ISSUER, KEY_ID, msgspec.structs.replace(TICKET, persons=2))
    assert cause_of(code_of(other, shown_at, signature)) == "bad_signature"


def test_any_other_algorithm_is_refused_even_where_it_would_hold() -> None:
    key = COSEKey.from_symmetric_key(ISSUER.public_key().public_bytes_raw(), alg="HS256", kid=KEY_ID)  # known to everybody
    mac = COSE.new(alg_auto_inclusion=True, kid_auto_inclusion=True).encode_and_mac(cbor2.dumps(PAYLOAD), key)
    assert cause_of(code_of(mac, NOW, bytes(64))) == "malformed"
    for algorithm in (-7, -19, -35, 5, "EdDSA"):
        protected = cbor2.dumps({1: algorithm, 4: KEY_ID})
        ticket = b"\xd2" + cbor2.dumps([protected, {}, b"", bytes(64)])
        assert cause_of(code_of(ticket, NOW, bytes(64))) == "unsupported_algorithm"


def test_a_ticket_is_a_cose_sign1_that_another_implementation_verifies() -> None:
    public = COSEKey.new({1: 1, 2: KEY_ID, 3: -8, -1: 6, -2: ISSUER.public_key().public_bytes_raw()})
    payload = COSE.new().decode(ISSUED, public)
    assert cbor2.loads(payload)[2] == TICKET.ticket_id


@pytest.mark.parametrize(
    "fields",
    [
        {}, PAYLOAD | {1: 1}, PAYLOAD | {1: "motthe-qr-2"}, PAYLOAD | {2: bytes(15)}, PAYLOAD | {3: b""}, PAYLOAD | {4: -1},
        PAYLOAD | {5: ""}, PAYLOAD | {5: "a\nb"}, PAYLOAD | {5: "q" * 65}, PAYLOAD | {6: 1 << 48}, PAYLOAD | {7: None},
        PAYLOAD | {8: bytes(33)}, PAYLOAD | {9: 1}, PAYLOAD | {9: 256}, PAYLOAD | {10: 0}, PAYLOAD | {0: 0}, PAYLOAD | {6: 1.5},
        dict(reversed(PAYLOAD.items())),
    ],
)  # fmt: skip
def test_a_ticket_of_another_shape_is_malformed_though_its_issuer_signed_it(fields: dict[int, object]) -> None:
    assert cause_of(present(sign1(ISSUER, KEY_ID, cbor2.dumps(fields)), PHONE, NOW)) == "malformed"


NO_CODES = [
    b"", PREFIX, b"MT1", b"HC1:" + CODE[4:], CODE.lower(), CODE + b"0", CODE[:-1], CODE[:-2], PREFIX + b":::",
    PREFIX + b"\xff\xff",
    PREFIX + b"0" * MAX_CODE_BYTES, b"\x00" * 100_000, code_of(), code_of(ISSUED, NOW), code_of(ISSUED, NOW, bytes(63)),
    code_of(ISSUED, -1, bytes(64)), code_of(ISSUED, "1", bytes(64)), code_of(ISSUED, [NOW], bytes(64)),
    code_of(b"", NOW, bytes(64)), code_of(ISSUED, NOW, bytes(64), 1), PREFIX + base45(b"\x9f\xff"),
    PREFIX + base45(b"\x81" * 300), PREFIX + base45(b"\x9b" + b"\xff" * 8),
]  # fmt: skip


@pytest.mark.parametrize("code", NO_CODES)
def test_what_is_no_code_of_ours_is_malformed(code: bytes) -> None:
    assert cause_of(code) == "malformed"


def test_an_issuer_does_not_sign_what_no_terminal_would_take() -> None:
    with pytest.raises(QrError, match="malformed: ticket: not 16 bytes"):
        issue_ticket(ISSUER, KEY_ID, msgspec.structs.replace(TICKET, token=b"card number"))


@settings(max_examples=300)
@given(bit=st.integers(0, 8 * len(unbase45(CODE[4:])) - 1))
def test_any_changed_bit_is_refused(bit: int) -> None:
    data = bytearray(unbase45(CODE[4:]))
    data[bit // 8] ^= 1 << bit % 8
    cause_of(PREFIX + base45(bytes(data)))


@given(data=st.binary(max_size=300))
def test_random_codes_are_refused_with_a_cause(data: bytes) -> None:
    assert cause_of(PREFIX + base45(data)) in ("malformed", "unsupported_algorithm")
    assert cause_of(PREFIX + data) in ("malformed", "unsupported_algorithm")


# ---- what a terminal remembers


def test_a_terminal_that_has_just_started_takes_nothing_that_may_have_been_used_before() -> None:
    seen = SeenPresentations(NOW)
    assert cause_of(CODE, NOW + 1, seen) == "stale"
    ahead = present(ISSUED, PHONE, NOW + WINDOW_MS - 1)  # by a phone whose clock runs ahead, perhaps used before the restart
    assert cause_of(ahead, NOW + 2, seen) == "stale"
    assert taken(present(ISSUED, PHONE, NOW + WINDOW_MS), NOW + WINDOW_MS, seen).shown_at == NOW + WINDOW_MS


def test_what_is_forgotten_is_not_taken_again_when_the_clock_goes_back() -> None:
    seen = memory()
    taken(CODE, NOW, seen)
    later = NOW + 3 * WINDOW_MS
    other = msgspec.structs.replace(TICKET, ticket_id=bytes(16))
    taken(present(issue_ticket(ISSUER, KEY_ID, other), PHONE, later), later, seen)
    assert len(seen) == 1
    assert cause_of(CODE, NOW, seen) == "stale"


def test_memory_is_bounded_by_the_tickets_of_two_windows() -> None:
    seen = memory()
    for second in range(600):
        seen.take(second.to_bytes(16, "big"), NOW + second * 1000, NOW + second * 1000)
    assert len(seen) <= 2 * WINDOW_MS // 1000 + 1


def test_a_wider_window_than_what_is_remembered_is_refused() -> None:
    with pytest.raises(ValueError, match="remembered for 30000 ms"):
        check_presentation(CODE, find_issuer, at_ms=NOW, seen=memory(), window_ms=WINDOW_MS + 1)


# ---- base 45 and the picture


@pytest.mark.parametrize(
    ("data", "text"), [(b"AB", b"BB8"), (b"Hello!!", b"%69 VD92EX0"), (b"base-45", b"UJCLQE7W581"), (b"ietf!", b"QED8WEX0")]
)
def test_the_examples_of_rfc_9285(data: bytes, text: bytes) -> None:
    assert base45(data) == text
    assert unbase45(text) == data


@given(data=st.binary())
def test_base_45_gives_back_what_was_written(data: bytes) -> None:
    assert unbase45(base45(data)) == data


@pytest.mark.parametrize("text", [b"GGW", b":::", b"A", b"AAAA", b"ab", b"::", b"\x80A"])
def test_what_base_45_does_not_write_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="of base 45"):
        unbase45(text)


def read_back(png: bytes) -> bytes:
    """What a reader sees in a picture. The PNG is unpacked here (one bit a pixel), so that no image library is needed."""
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (1, 0)
    lines = unfiltered(zlib.decompress(chunks[b"IDAT"]), (width + 7) // 8)
    pixels = bytes(255 * (line[x // 8] >> 7 - x % 8 & 1) for line in lines for x in range(width))
    (found,) = zxingcpp.read_barcodes(memoryview(pixels).cast("B", (height, width)))
    return bytes(found.bytes)


def unfiltered(data: bytes, step: int) -> list[bytes]:
    """The lines of a PNG with filters 0 (as it is) and 2 (difference to the line above)."""
    lines = [bytes(step)]
    for at in range(0, len(data), step + 1):
        above = {0: bytes(step), 2: lines[-1]}[data[at]]
        lines.append(bytes((one + other) % 256 for one, other in zip(data[at + 1 : at + 1 + step], above, strict=True)))
    return lines[1:]


LARGEST = changed(ticket_id=b"\xff" * 16, token_key_version=70_000, medium="wallet:zalopay-code", persons=255)


@pytest.mark.parametrize("code", [CODE, LARGEST], ids=["the usual one", "a large one"])
@pytest.mark.parametrize("scale", [2, 4])
def test_a_drawn_code_is_read_back_and_taken(code: bytes, scale: int) -> None:
    assert taken(read_back(draw(code, "png", scale))).ticket_id[:1] in (b"\x00", b"\xff")


def test_a_code_fits_a_qr_code_of_version_13_at_error_level_m() -> None:
    versions = [
        segno.make_qr(code.decode(), error="m", mode="alphanumeric", boost_error=False).version for code in (CODE, LARGEST)
    ]
    assert (len(CODE), versions) == (417, [12, 13])


def test_a_code_is_drawn_as_an_image_for_pages_too() -> None:
    svg = draw(CODE)
    assert svg.startswith(b"<?xml")
    assert b"</svg>" in svg


def test_a_terminal_loads_nothing_that_draws() -> None:
    program = "import sys, fare_engine.qr_tickets; sys.exit('segno' in sys.modules or 'sqlalchemy' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
