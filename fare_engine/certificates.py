"""Whose key is it: a device's request, the certificate that its operator's authority gives it, the change of a key, and
how far a device's word reaches.

Decides what a request, certificate or change of key must be to be believed. Leaves to others who may ask for what, which
codes and certificates have been used or revoked (that is in the database), and how many taps came in a minute. docs/keys.md
tells of all keys of the system, and of the causes with which things are refused here.

X.509 (RFC 5280) and PKCS 10 (RFC 2986) so that an operator can use the tools it has. A key has one algorithm, and it is
Ed25519 (RFC 8410): anything else is refused and named, whatever else may be right with it."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

import cbor2
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from fare_engine.errors import CertificateError
from fare_engine.ids import DeviceId

MAX_DER_BYTES: Final = 4096
CODE_BYTES: Final = 10
SERIAL_BYTES: Final = 16

_ROTATION: Final = "motthe-rotate-1"
_EXTENSIONS: Final = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}
_WEAK_KEYS: Final = {
    bytes.fromhex(text)
    for text in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
}
"""The points of small order: a signature that anybody can make holds under such a key, so its owner could deny his own."""


# ---- one-time codes, with which a device asks for its first certificate


def make_code(random: bytes) -> str:
    """A code to be typed at a device, like "ABCD-EFGH-IJKL-MNOP", from 10 random bytes; ValueError for another number.

    80 bits cannot be tried through, so a plain hash of them can be stored."""
    if len(random) != CODE_BYTES:
        raise ValueError(f"a code is made of {CODE_BYTES} random bytes, not {len(random)}")
    letters = base64.b32encode(random).decode()
    return "-".join(letters[at : at + 4] for at in range(0, len(letters), 4))


def hash_code(code: str) -> str:
    """What is stored of a code. It may be typed in small letters, and without hyphens or with spaces."""
    letters = "".join(character for character in code.upper() if character.isalnum())
    return sha256(b"motthe-code-1" + letters.encode()).hexdigest()


# ---- requests


def make_request(private_key: Ed25519PrivateKey, device_id: DeviceId) -> bytes:
    """A device's request for a certificate (PKCS 10, DER), signed with the key that it is for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(device_id))
    return builder.sign(private_key, None).public_bytes(Encoding.DER)


def check_request(request: bytes, device_id: DeviceId) -> Ed25519PublicKey:
    """The key in a device's request; whoever sent it has the private key. Of the rest nothing is taken over.

    Raises CertificateError: malformed, unsupported_algorithm, weak_key, bad_signature, wrong_name."""
    with _readable("request", request):
        csr = x509.load_der_x509_csr(request)
        key = _ed25519(csr.public_key())
        _check_end(request, csr.signature)
        if not csr.is_signature_valid:
            raise CertificateError("bad_signature", "the request was not signed with the key that it is for")
        subject = csr.subject
    if key.public_bytes_raw() in _WEAK_KEYS:
        raise CertificateError("weak_key", f"{key.public_bytes_raw().hex()} is a point of small order")
    if subject != _name(device_id):
        raise CertificateError("wrong_name", f"the request is for {subject.rfc4514_string()!r}, not for the device {device_id!r}")
    return key


# ---- an operator's authority and its certificates


class Authority(NamedTuple):
    """An operator's certificate authority. Its key signs devices' certificates and nothing else."""

    private_key: Ed25519PrivateKey
    certificate: x509.Certificate


class DeviceCertificate(NamedTuple):
    """What a device's certificate says, after it was checked."""

    device_id: DeviceId
    operator_id: str
    public_key: Ed25519PublicKey
    serial: int


def serial_from(random: bytes) -> int:
    """A serial number from 16 random bytes: never 0, and less than 20 octets (RFC 5280, 4.1.2.2)."""
    if len(random) != SERIAL_BYTES:
        raise ValueError(f"a serial number is made of {SERIAL_BYTES} random bytes, not {len(random)}")
    return int.from_bytes(random, "big") | 1 << 8 * SERIAL_BYTES


def make_ca(operator_id: str, private_key: Ed25519PrivateKey, *, not_before: int, not_after: int, serial: int) -> Authority:
    """An operator's authority with its self-signed certificate; times are milliseconds UTC.

    Raises CertificateError wrong_name for an operator id that fits in no certificate."""
    name, key = _operator_name(operator_id), private_key.public_key()
    builder = (
        _certificate(name, name, key, not_before, not_after, serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(_uri("operator", operator_id), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    return Authority(private_key, builder.sign(private_key, None))


def issue(
    ca: Authority, request: bytes, *, device_id: DeviceId, operator_id: str, not_before: int, not_after: int, serial: int
) -> x509.Certificate:
    """The certificate that a device asked for; times are milliseconds UTC. Raises CertificateError as `check_request` does,
    and wrong_issuer where the authority is another operator's."""
    key = check_request(request, device_id)
    issuer = ca.certificate.subject
    if issuer != _operator_name(operator_id):
        raise CertificateError("wrong_issuer", f"{issuer.rfc4514_string()!r} issues nothing for {operator_id!r}")
    builder = (
        _certificate(_name(device_id), issuer, key, not_before, not_after, serial)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(_uri("device", device_id), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.private_key.public_key()), critical=False)
    )
    return builder.sign(ca.private_key, None)


def check_certificate(certificate: bytes, ca_certificate: x509.Certificate, at_ms: int) -> DeviceCertificate:
    """What a device's certificate (DER) says, if this authority issued it and it holds at that time (milliseconds UTC).

    Both end points of its time belong to it (RFC 5280, 4.1.2.5). Whether it was revoked is not known here. Raises
    CertificateError: malformed, unsupported_algorithm, wrong_issuer, bad_signature, not_yet, expired, wrong_use, wrong_name."""
    with _readable("certificate", certificate):
        found = x509.load_der_x509_certificate(certificate)
        key = _ed25519(found.public_key())
        _check_end(certificate, found.signature)
        _check_issuer(found, ca_certificate)
        _check_time(ca_certificate, at_ms)
        _check_time(found, at_ms)
        _check_use(found)
        return DeviceCertificate(_device_of(found), _operator_of(ca_certificate), key, found.serial_number)


def _check_issuer(found: x509.Certificate, ca_certificate: x509.Certificate) -> None:
    _ed25519(ca_certificate.public_key())
    if found.issuer != ca_certificate.subject:
        raise CertificateError("wrong_issuer", f"{found.issuer.rfc4514_string()!r}")
    try:
        found.verify_directly_issued_by(ca_certificate)
    except (InvalidSignature, ValueError, TypeError):
        raise CertificateError("bad_signature", "the certificate was not signed with the authority's key") from None


def _check_time(found: x509.Certificate, at_ms: int) -> None:
    at = _moment(at_ms)
    if at < found.not_valid_before_utc:
        raise CertificateError("not_yet", f"valid from {found.not_valid_before_utc.isoformat()}, it is {at.isoformat()}")
    if at > found.not_valid_after_utc:
        raise CertificateError("expired", f"valid until {found.not_valid_after_utc.isoformat()}, it is {at.isoformat()}")


def _check_use(found: x509.Certificate) -> None:
    """That it says of a device all that ours say, and nothing more."""
    extensions = found.extensions
    if {extension.oid for extension in extensions} != _EXTENSIONS:
        raise CertificateError("wrong_use", f"extensions {sorted(extension.oid.dotted_string for extension in extensions)}")
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise CertificateError("wrong_use", "it is an authority's")
    if extensions.get_extension_for_class(x509.KeyUsage).value != _usage(ca=False):
        raise CertificateError("wrong_use", "its key is not for signatures, or not only")


def _device_of(found: x509.Certificate) -> DeviceId:
    """The device it names, which must stand in subject and alternative name alike."""
    names = [str(attribute.value) for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    device_id = DeviceId(names[0] if names else "")
    alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if not device_id or found.subject != _name(device_id) or alternative != _uri("device", device_id):
        raise CertificateError("wrong_name", f"subject {found.subject.rfc4514_string()!r}, alternative name {alternative!r}")
    return device_id


def _operator_of(ca_certificate: x509.Certificate) -> str:
    return str(ca_certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, not_before: int, not_after: int, serial: int
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, subject, key, serial, _moment(not_before), _moment(not_after))


def _name(device_id: DeviceId) -> x509.Name:
    return _x509_name(NameOID.COMMON_NAME, device_id)


def _operator_name(operator_id: str) -> x509.Name:
    return _x509_name(NameOID.ORGANIZATION_NAME, operator_id)


def _x509_name(kind: x509.ObjectIdentifier, value: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(kind, value)])
    except ValueError as fault:  # X.520 allows 64, which cryptography counts in bytes of UTF-8
        raise CertificateError("wrong_name", f"{value!r}: {fault}") from None


def _uri(kind: str, name: str) -> x509.SubjectAlternativeName:
    """`motthe:device:gate-7`; what is no plain letter or digit is percent-encoded, for a URI is ASCII."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"motthe:{kind}:{quote(name, safe='')}")])


def _usage(*, ca: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists of revoked ones; a device signs data."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


# ---- change of a key


def make_rotation(current_key: Ed25519PrivateKey, device_id: DeviceId, request: bytes) -> bytes:
    """A device's word, 64 bytes, that its next key is the one in this request: signed with the key it has now."""
    return current_key.sign(_rotation(device_id, request))


def check_rotation(current_key: Ed25519PublicKey, device_id: DeviceId, request: bytes, signature: bytes) -> Ed25519PublicKey:
    """The device's next key. Raises CertificateError: bad_signature where the current key did not sign this change,
    same_key where nothing would change, and as `check_request`."""
    try:
        current_key.verify(signature, _rotation(device_id, request))
    except InvalidSignature:
        raise CertificateError(
            "bad_signature", f"the change of key was not signed with the current key of {device_id!r}"
        ) from None
    new = check_request(request, device_id)
    if new == current_key:
        raise CertificateError("same_key", f"{device_id!r} has this key already")
    return new


def _rotation(device_id: DeviceId, request: bytes) -> bytes:
    """What is signed: an array, so that no end of a name passes for the beginning of a request."""
    return cbor2.dumps([_ROTATION, device_id, request])


# ---- how far a device's word reaches


class DeviceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What taps a device may report, so that a stolen one is of little use elsewhere. None: no such limit."""

    routes: frozenset[str] | None = None
    stops: frozenset[str] | None = None
    taps_a_minute: int | None = None
    """Counted by whoever receives; so is the next."""
    taps_a_day: int | None = None

    def breach(self, *, route_id: str | None, stop_id: str | None) -> str | None:
        """`wrong_route` or `wrong_place` for a presentation that this device should never see; None if it may.

        A device that is bound to places and names none is in breach too: leaving the stop out is no way around."""
        if self.routes is not None and route_id not in self.routes:
            return "wrong_route"
        if self.stops is not None and stop_id not in self.stops:
            return "wrong_place"
        return None


# ---- small things

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    Warning,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@contextmanager
def _readable(what: str, data: bytes) -> Iterator[None]:
    """Everything that `cryptography` raises over bad input, as ours; it parses parts only when they are asked for."""
    if len(data) > MAX_DER_BYTES:
        raise CertificateError("malformed", f"{what} of {len(data)} bytes, at most {MAX_DER_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns of what the standards forbid and it does not refuse yet
            yield
    except UnsupportedAlgorithm as fault:
        raise CertificateError("unsupported_algorithm", f"{what}: {fault}") from None
    except _UNREADABLE as fault:
        raise CertificateError("malformed", f"{what}: {str(fault)[:200]}") from None


def _check_end(data: bytes, signature: bytes) -> None:
    """That the signature, which nothing signs, ends the data as whole bytes: no bits of it are said to be unused."""
    if not data.endswith(b"\x03\x41\x00" + signature):
        raise CertificateError("malformed", "the signature is no bit string of 64 whole bytes")


def _ed25519(key: object) -> Ed25519PublicKey:
    if not isinstance(key, Ed25519PublicKey):
        curve = getattr(getattr(key, "curve", None), "name", "")
        raise CertificateError("unsupported_algorithm", f"{type(key).__name__} {curve}".strip() + ", only Ed25519 is taken")
    return key


def _moment(at_ms: int) -> datetime:
    """Milliseconds UTC as X.509 has them, in whole seconds."""
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=at_ms // 1000)
