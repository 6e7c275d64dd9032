"""How a device gets its key into the register: with a one-time code the first time, by its current key ever after.

Decides who may have a certificate for which device, and for how long an old key goes on. A device id is enrolled once: one that
is in the register, revoked or not, is refused, and a terminal that was lost or set up anew gets a new id, for its taps are of
another stream of keys. Whoever repeats a request whose answer was lost gets the same certificate again."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from sqlalchemy import Connection

from fare_engine import certificates
from fare_engine.certificates import Authority, DeviceLimits
from fare_engine.errors import EnrolmentError
from fare_engine.ids import DeviceId
from fare_engine.service_day import DAY_MS
from fare_engine.store import registry
from fare_engine.store.database import Database
from fare_engine.store.registry import Device, DeviceKey

Random = Callable[[int], bytes]
"""So many random bytes."""

OVERLAP_MS = DAY_MS
"""How long a device's old key goes on after a change: messages that were signed with it are still on their way."""
CERTIFICATE_MS = 3 * 365 * DAY_MS
AUTHORITY_MS = 10 * 365 * DAY_MS


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a device is given; both certificates in DER."""

    device_id: str
    operator_id: str
    certificate: bytes
    authority: bytes


# ---- an operator's authority


def authority_of(data: Path, operator_id: str, now: int, random: Random) -> Authority:
    """An operator's authority, in `keys/ca-<operator>.pem` (its key, for the owner only) and `.crt`; made on first use."""
    folder = data / "keys"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"ca-{quote(operator_id, safe='')}"
    key_file, certificate_file = folder / f"{name}.pem", folder / f"{name}.crt"
    if not key_file.exists():
        key = Ed25519PrivateKey.from_private_bytes(random(32))
        _write_once(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    held = load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(held, Ed25519PrivateKey):
        raise EnrolmentError("unsupported_algorithm", f"{key_file} holds no Ed25519 key")
    if not certificate_file.exists():
        serial = certificates.serial_from(random(certificates.SERIAL_BYTES))
        made = certificates.make_ca(operator_id, held, not_before=now, not_after=now + AUTHORITY_MS, serial=serial)
        _write_once(certificate_file, made.certificate.public_bytes(Encoding.PEM))
    return Authority(held, x509.load_pem_x509_certificate(certificate_file.read_bytes()))


def _write_once(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all; whoever writes it first has written it."""
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    own.touch(mode=0o600)
    own.write_bytes(content)
    with suppress(FileExistsError):
        os.link(own, path)
    own.unlink()


# ---- codes


def make_code(
    connection: Connection, device_id: str, operator_id: str, limits: DeviceLimits | None, expires_at: int, random: Random
) -> str:
    """A one-time code for a device, to be typed there. EnrolmentError known_device for one that is in the register."""
    if registry.find_device(connection, device_id) is not None:
        raise EnrolmentError("known_device", f"{device_id} is in the register: a terminal that is set up anew gets a new id")
    code = certificates.make_code(random(certificates.CODE_BYTES))
    kept = msgspec.json.encode(limits).decode() if limits is not None else None
    registry.add_code(connection, certificates.hash_code(code), device_id, operator_id, kept, expires_at)
    return code


# ---- the first key


def enrol(database: Database, data: Path, code: str, request: bytes, client: str, now: int, random: Random) -> Enrolled:
    """The certificate for the device that a code was made for. `client`: the address it comes from, for whoever tries codes.

    Raises EnrolmentError (wrong_code, locked, known_device, key_in_use) and CertificateError as `certificates.issue`."""
    subject = f"enrol/{_network_of(client)}"
    with database.read() as connection:
        if registry.is_locked(connection, subject, now):
            raise EnrolmentError("locked", f"too many wrong codes from {client}; wait a quarter of an hour")
    code_hash = certificates.hash_code(code)
    try:
        return database.transact(lambda connection: _enrol(connection, data, code_hash, request, now, random))
    except EnrolmentError as error:
        if error.cause == "wrong_code":
            database.transact(lambda connection: registry.begin_attempt(connection, subject, now))
        raise


def _enrol(connection: Connection, data: Path, code_hash: str, request: bytes, now: int, random: Random) -> Enrolled:
    made_for = registry.find_code(connection, code_hash)
    if made_for is None:
        raise EnrolmentError("wrong_code", "there is no such code")
    device_id = DeviceId(made_for.device_id)
    public_key = certificates.check_request(request, device_id).public_bytes_raw()
    authority = authority_of(data, made_for.operator_id, now, random)
    if registry.use_code(connection, code_hash, now) is None:
        return _given_before(connection, device_id, made_for.operator_id, public_key, authority)
    if registry.find_device(connection, device_id) is not None:
        raise EnrolmentError("known_device", f"{device_id} is in the register")
    _check_new(connection, public_key)
    certificate = _issue(authority, request, device_id, made_for.operator_id, now, random)
    registry.enrol_devices(connection, [Device(device_id, made_for.operator_id, public_key, None, made_for.limits)], now)
    registry.save_key(connection, DeviceKey(device_id, public_key, now, None, certificate))
    return Enrolled(device_id, made_for.operator_id, certificate, _der(authority))


def _given_before(connection: Connection, device_id: str, operator_id: str, public_key: bytes, authority: Authority) -> Enrolled:
    """A code that is used up: the same key gets the same certificate again, for its answer may have been lost."""
    for key in registry.list_keys(connection, device_id):
        if key.public_key == public_key and key.certificate is not None:
            return Enrolled(device_id, operator_id, key.certificate, _der(authority))
    raise EnrolmentError("wrong_code", "the code was used or has expired")


# ---- another key


def rotate(
    database: Database, data: Path, device_id: DeviceId, request: bytes, signature: bytes, now: int, random: Random
) -> Enrolled:
    """The certificate for a device's next key, which its newest key must have signed for. That one goes on for OVERLAP_MS.

    Raises EnrolmentError (unknown_device, revoked_device, key_in_use) and CertificateError as `certificates.check_rotation`."""
    return database.transact(lambda connection: _rotate(connection, data, device_id, request, signature, now, random))


def _rotate(
    connection: Connection, data: Path, device_id: DeviceId, request: bytes, signature: bytes, now: int, random: Random
) -> Enrolled:
    device = registry.lock_devices(connection, [device_id]).get(device_id)
    if device is None:
        raise EnrolmentError("unknown_device", f"{device_id} is not enrolled")
    if device.revoked_at is not None and device.revoked_at <= now:
        raise EnrolmentError("revoked_device", f"{device_id} was revoked at {device.revoked_at} ms")
    authority = authority_of(data, device.operator_id, now, random)
    newest, *older = [key for key in registry.list_keys(connection, device_id) if key.valid_to is None or now < key.valid_to]
    wanted = certificates.check_request(request, device_id).public_bytes_raw()
    if wanted == newest.public_key and newest.certificate is not None and older:
        certificates.check_rotation(_public(older[0]), device_id, request, signature)  # its answer was lost
        return Enrolled(device_id, device.operator_id, newest.certificate, _der(authority))
    certificates.check_rotation(_public(newest), device_id, request, signature)
    _check_new(connection, wanted)
    certificate = _issue(authority, request, device_id, device.operator_id, now, random)
    ending = DeviceKey(device_id, newest.public_key, newest.valid_from, now + OVERLAP_MS, newest.certificate)
    registry.save_key(connection, ending)
    registry.save_key(connection, DeviceKey(device_id, wanted, now, None, certificate))
    return Enrolled(device_id, device.operator_id, certificate, _der(authority))


# ---- small things


def _issue(authority: Authority, request: bytes, device_id: DeviceId, operator_id: str, now: int, random: Random) -> bytes:
    ends = int(authority.certificate.not_valid_after_utc.timestamp() * 1000)
    found = certificates.issue(
        authority,
        request,
        device_id=device_id,
        operator_id=operator_id,
        not_before=now,
        not_after=min(now + CERTIFICATE_MS, ends),
        serial=certificates.serial_from(random(certificates.SERIAL_BYTES)),
    )
    return found.public_bytes(Encoding.DER)


def _check_new(connection: Connection, public_key: bytes) -> None:
    if registry.is_key_known(connection, public_key):
        raise EnrolmentError("key_in_use", f"the key {public_key.hex()} is or was in use: make a new one")


def _public(key: DeviceKey) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key.public_key)


def _der(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(Encoding.DER)


def _network_of(client: str) -> str:
    """Whose attempts are counted together: an address, of IPv6 its network, for one customer has all of it."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    return str(ipaddress.ip_network(f"{address}/64", strict=False)) if address.version == 6 else client
