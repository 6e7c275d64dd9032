"""Keys and certificates: what is believed of a device, and every reason for which it is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fare_engine import certificates
from fare_engine.certificates import (
    DeviceLimits,
    check_certificate,
    check_request,
    check_rotation,
    hash_code,
    issue,
    make_ca,
    make_code,
    make_request,
    make_rotation,
    serial_from,
)
from fare_engine.errors import CertificateError
from fare_engine.ids import DeviceId


def key_of(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


GATE = DeviceId("gate-bến-thành-01")
DAY = 86_400_000
NOW = 1_767_243_600_123
CA = make_ca("metro", key_of(1), not_before=NOW - DAY, not_after=NOW + 3650 * DAY, serial=serial_from(bytes(16)))
BUS_CA = make_ca("bus", key_of(2), not_before=NOW - DAY, not_after=NOW + 3650 * DAY, serial=serial_from(bytes(16)))
KEY, NEXT = key_of(3), key_of(4)
REQUEST = make_request(KEY, GATE)


def issued(request: bytes = REQUEST, **changes: Any) -> x509.Certificate:
    given = {"device_id": GATE, "operator_id": "metro", "not_before": NOW, "not_after": NOW + DAY, "serial": 7}
    return issue(CA, request, **(given | changes))


CERTIFICATE = issued().public_bytes(Encoding.DER)


def cause(error: pytest.ExceptionInfo[CertificateError]) -> str:
    return error.value.cause


# ---- certificates


def test_a_certificate_says_which_device_of_which_operator_has_which_key() -> None:
    found = check_certificate(CERTIFICATE, CA.certificate, NOW)
    assert found == (GATE, "metro", KEY.public_key(), 7)


def test_a_certificate_carries_the_uses_and_names_that_the_documentation_gives() -> None:
    extensions = issued().extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert constraints.critical
    assert not constraints.value.ca
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["motthe:device:gate-b%E1%BA%BFn-th%C3%A0nh-01"]


@pytest.mark.parametrize(
    ("at", "expected"),
    [(NOW - 1000, "not_yet"), (NOW + DAY + 1000, "expired"), (NOW, None), (NOW + DAY, None), (NOW + DAY + 800, None)],
)
def test_a_certificate_holds_from_its_first_to_its_last_second(at: int, expected: str | None) -> None:
    if expected is None:
        assert check_certificate(CERTIFICATE, CA.certificate, at).device_id == GATE
    else:
        with pytest.raises(CertificateError) as error:
            check_certificate(CERTIFICATE, CA.certificate, at)
        assert cause(error) == expected


def test_a_certificate_ends_with_its_authority() -> None:
    short = make_ca("metro", key_of(1), not_before=NOW - DAY, not_after=NOW + 1000, serial=1)
    with pytest.raises(CertificateError) as error:
        check_certificate(CERTIFICATE, short.certificate, NOW + 5000)
    assert cause(error) == "expired"


def test_another_operator_s_certificate_is_refused() -> None:
    with pytest.raises(CertificateError) as error:
        check_certificate(CERTIFICATE, BUS_CA.certificate, NOW)
    assert cause(error) == "wrong_issuer"


def test_an_authority_of_the_same_name_with_another_key_is_not_believed() -> None:
    namesake = make_ca("metro", key_of(9), not_before=NOW - DAY, not_after=NOW + DAY, serial=1)
    with pytest.raises(CertificateError) as error:
        check_certificate(CERTIFICATE, namesake.certificate, NOW)
    assert cause(error) == "bad_signature"


def test_an_authority_issues_for_its_own_operator_only() -> None:
    with pytest.raises(CertificateError) as error:
        issued(operator_id="bus")
    assert cause(error) == "wrong_issuer"


def test_an_authority_s_own_certificate_is_no_device_s() -> None:
    with pytest.raises(CertificateError) as error:
        check_certificate(CA.certificate.public_bytes(Encoding.DER), CA.certificate, NOW)
    assert cause(error) in ("wrong_use", "malformed")


def hand_made(*, ca: bool = False, uri: str = "motthe:device:gate", usage: bool = True, more: bool = False) -> bytes:
    """A certificate that the authority did sign, with something wrong in it."""
    issuer, key = CA.certificate.subject, KEY.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gate")])
    start, end = CA.certificate.not_valid_before_utc, CA.certificate.not_valid_after_utc
    builder = (
        x509.CertificateBuilder(issuer, subject, key, 5, start, end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(certificates._usage(ca=not usage), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), critical=False)
    )
    if more:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    return builder.sign(CA.private_key, None).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"ca": True}, "wrong_use"),
        ({"usage": False}, "wrong_use"),
        ({"more": True}, "wrong_use"),
        ({"uri": "motthe:device:another"}, "wrong_name"),
        ({"uri": "motthe:operator:gate"}, "wrong_name"),
    ],
)
def test_a_certificate_that_says_more_or_other_than_ours_is_refused(changes: dict[str, Any], expected: str | None) -> None:
    if expected is None:
        assert check_certificate(hand_made(), CA.certificate, NOW).device_id == "gate"
    else:
        with pytest.raises(CertificateError) as error:
            check_certificate(hand_made(**changes), CA.certificate, NOW)
        assert cause(error) == expected


@given(bit=st.integers(0, 8 * len(CERTIFICATE) - 1))
def test_any_changed_bit_of_a_certificate_is_found(bit: int) -> None:
    changed = bytearray(CERTIFICATE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateError):
        check_certificate(bytes(changed), CA.certificate, NOW)


@pytest.mark.parametrize("data", [b"", b"\x30", CERTIFICATE[:-1], CERTIFICATE + b"\x00", REQUEST, bytes(5000)])
def test_what_is_no_certificate_is_malformed(data: bytes) -> None:
    with pytest.raises(CertificateError) as error:
        check_certificate(data, CA.certificate, NOW)
    assert cause(error) == "malformed"


def test_a_serial_number_is_never_nothing_and_fits_the_standard() -> None:
    assert 0 < serial_from(bytes(16)) < serial_from(b"\xff" * 16) < 1 << 159
    with pytest.raises(ValueError, match="16 random bytes, not 3"):
        serial_from(b"abc")


def test_a_name_too_long_for_a_certificate_is_refused_by_name() -> None:
    with pytest.raises(CertificateError, match="ăăă") as error:
        make_request(KEY, DeviceId("ă" * 33))
    assert cause(error) == "wrong_name"


# ---- requests


def test_a_request_proves_that_the_device_has_its_key() -> None:
    assert check_request(REQUEST, GATE) == KEY.public_key()


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ECPublicKey secp256r1"),
        (ed448.Ed448PrivateKey.generate(), "Ed448PublicKey"),
        (rsa.generate_private_key(65537, 2048), "RSAPublicKey"),
    ],
    ids=["P-256", "Ed448", "RSA"],
)
def test_a_key_of_another_algorithm_is_refused_and_named(key: Any, named: str) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, GATE)])
    digest = None if isinstance(key, ed448.Ed448PrivateKey) else SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest).public_bytes(Encoding.DER)
    with pytest.raises(CertificateError, match=f"{named}, only Ed25519 is taken") as error:
        check_request(request, GATE)
    assert cause(error) == "unsupported_algorithm"


def test_a_request_for_another_device_is_refused() -> None:
    with pytest.raises(CertificateError, match="not for the device 'gate-2'") as error:
        check_request(REQUEST, DeviceId("gate-2"))
    assert cause(error) == "wrong_name"


def test_a_request_for_somebody_else_s_key_is_refused() -> None:
    ours, theirs = KEY.public_key().public_bytes_raw(), NEXT.public_key().public_bytes_raw()
    assert REQUEST.count(ours) == 1
    with pytest.raises(CertificateError) as error:
        check_request(REQUEST.replace(ours, theirs), GATE)
    assert cause(error) == "bad_signature"


@given(bit=st.integers(0, 8 * len(REQUEST) - 1))
def test_any_changed_bit_of_a_request_is_found(bit: int) -> None:
    changed = bytearray(REQUEST)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateError):
        check_request(bytes(changed), GATE)


NO_SIGNATURE = bytes([1]) + bytes(63)
"""R is the neutral point and S is 0: made without a key, it holds where the hash is a multiple of the key's order."""


@pytest.mark.parametrize("key", sorted(certificates._WEAK_KEYS))
def test_under_a_weak_key_a_signature_that_nobody_made_holds_so_none_is_enrolled(key: bytes) -> None:
    for number in range(1000):
        device_id = DeviceId(f"gate-{number}")
        request = make_request(KEY, device_id)[:-64].replace(KEY.public_key().public_bytes_raw(), key) + NO_SIGNATURE
        if x509.load_der_x509_csr(request).is_signature_valid:
            break
    with pytest.raises(CertificateError, match=key.hex()) as error:
        check_request(request, device_id)
    assert cause(error) == "weak_key"


@pytest.mark.parametrize(("last", "named"), [(b"\x6e", "X25519PublicKey"), (b"\x79", "Unknown key type")])
def test_another_algorithm_under_the_same_bytes_is_refused_and_named(last: bytes, named: str) -> None:
    ours = KEY.public_key().public_bytes_raw()
    before = b"\x2b\x65\x70\x03\x21\x00"  # Ed25519's object identifier (RFC 8410, 3), then the key
    with pytest.raises(CertificateError, match=named) as error:
        check_request(REQUEST.replace(before + ours, before[:2] + last + before[3:] + ours), GATE)
    assert cause(error) == "unsupported_algorithm"


# ---- change of a key


def test_a_device_changes_its_key_with_the_key_it_has() -> None:
    request = make_request(NEXT, GATE)
    assert check_rotation(KEY.public_key(), GATE, request, make_rotation(KEY, GATE, request)) == NEXT.public_key()


def test_nobody_else_changes_a_device_s_key() -> None:
    request = make_request(NEXT, GATE)
    with pytest.raises(CertificateError, match="current key of") as error:
        check_rotation(KEY.public_key(), GATE, request, make_rotation(NEXT, GATE, request))
    assert cause(error) == "bad_signature"


def test_a_change_of_key_is_good_for_its_device_and_its_request_only() -> None:
    request, other = make_request(NEXT, GATE), make_request(key_of(5), GATE)
    word = make_rotation(KEY, GATE, request)
    for device_id, asked in ((DeviceId("gate-2"), request), (GATE, other), (GATE, request + b"\x00")):
        with pytest.raises(CertificateError) as error:
            check_rotation(KEY.public_key(), device_id, asked, word)
        assert cause(error) == "bad_signature"


def test_a_change_to_the_same_key_is_none() -> None:
    with pytest.raises(CertificateError) as error:
        check_rotation(KEY.public_key(), GATE, REQUEST, make_rotation(KEY, GATE, REQUEST))
    assert cause(error) == "same_key"


def test_a_change_to_a_key_that_the_sender_does_not_have_is_refused() -> None:
    request = make_request(NEXT, GATE).replace(NEXT.public_key().public_bytes_raw(), key_of(5).public_key().public_bytes_raw())
    with pytest.raises(CertificateError, match="the key that it is for"):
        check_rotation(KEY.public_key(), GATE, request, make_rotation(KEY, GATE, request))


# ---- one-time codes


def test_a_code_can_be_typed_in_any_way_people_type() -> None:
    code = make_code(bytes(range(10)))
    assert code == "AAAQ-EAYE-AUDA-OCAJ"
    assert hash_code("aaaqeayeaudaocaj") == hash_code(" AAAQ eaye-AUDA-ocaj\n") == hash_code(code)
    assert hash_code(make_code(bytes(10))) != hash_code(code)


def test_a_code_of_too_little_chance_is_not_made() -> None:
    with pytest.raises(ValueError, match="10 random bytes, not 4"):
        make_code(bytes(4))


# ---- limits


def test_a_device_bound_to_routes_and_places_breaches_by_any_other_and_by_none() -> None:
    limits = DeviceLimits(routes=frozenset({"metro-1"}), stops=frozenset({"ben-thanh"}), taps_a_minute=60, taps_a_day=20_000)
    assert limits.breach(route_id="metro-1", stop_id="ben-thanh") is None
    assert limits.breach(route_id="metro-2", stop_id="ben-thanh") == "wrong_route"
    assert limits.breach(route_id="metro-1", stop_id="suoi-tien") == "wrong_place"
    assert limits.breach(route_id="metro-1", stop_id=None) == "wrong_place"
    assert limits.breach(route_id=None, stop_id="ben-thanh") == "wrong_route"


def test_a_device_without_limits_may_be_anywhere() -> None:
    assert DeviceLimits().breach(route_id=None, stop_id=None) is None
    assert DeviceLimits(routes=frozenset()).breach(route_id="metro-1", stop_id=None) == "wrong_route"


def test_limits_are_kept_as_json() -> None:
    limits = DeviceLimits(routes=frozenset({"metro-1"}), taps_a_day=20_000)
    assert msgspec.json.decode(msgspec.json.encode(limits), type=DeviceLimits) == limits
