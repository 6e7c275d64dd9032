"""Devices and their keys, vehicles, settings, operators' people and failed logins: what the service knows before any tap."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, exists, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from fare_engine.errors import NotFoundError
from fare_engine.store import schema
from fare_engine.store.hashes import hashed
from fare_engine.store.many import find_many
from fare_engine.tokens import password_hash

MAX_FAILURES = 5
LOCK_MS = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Device:
    """A terminal as it was enrolled. `revoked_at` is an instant or None, `limits` the JSON of its limits or None."""

    device_id: str
    operator_id: str
    public_key: bytes
    revoked_at: int | None
    limits: str | None = None
    is_corrected: bool = False
    """Whether there are corrections of its clock; known of devices that are locked."""


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A key that a device may sign with from one instant until before another (None: until further notice)."""

    device_id: str
    public_key: bytes
    valid_from: int
    valid_to: int | None = None
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """A device's taps of some corrected times, `begins <= t < ends`, were off: `shift_ms` is added to them."""

    correction_id: str
    device_id: str
    begins: int
    ends: int
    shift_ms: int
    made_at: int
    made_by: str


_COUNT_ATTEMPT = text(
    "INSERT INTO attempts (subject, failures, since) VALUES (:subject, 1, :now) ON CONFLICT (subject) DO UPDATE "
    "SET failures = attempts.failures + 1, since = CASE WHEN attempts.failures >= :most THEN attempts.since ELSE :now END "
    "RETURNING failures"
)
_devices = schema.devices
_DEVICE = (_devices.c.device_id, _devices.c.operator_id, _devices.c.public_key, _devices.c.revoked_at, _devices.c.limits)
_FIND_DEVICES = select(*_DEVICE).where(_devices.c.device_id.in_(bindparam("ids", expanding=True))).order_by(_devices.c.device_id)
_KEY = schema.device_keys.c
_FIND_KEYS = (
    select(
        _devices.c.device_id, _devices.c.public_key, _devices.c.enrolled_at,
        _KEY.device_id, _KEY.public_key, _KEY.valid_from, _KEY.valid_to, _KEY.certificate,
    )
    .outerjoin_from(_devices, schema.device_keys, _KEY.device_id == _devices.c.device_id)
    .where(_devices.c.device_id.in_(bindparam("ids", expanding=True)))
    .order_by(_KEY.valid_from.desc())
)  # fmt: skip
_LOCK_DEVICES = (
    select(*_DEVICE, exists().where(schema.corrections.c.device_id == _devices.c.device_id).label("is_corrected"))
    .where(_devices.c.device_id.in_(bindparam("ids", expanding=True)))
    .order_by(_devices.c.device_id)
    .with_for_update(key_share=True, of=_devices)
)
_FIND_CORRECTIONS = (
    select(schema.corrections)
    .where(schema.corrections.c.device_id.in_(bindparam("ids", expanding=True)))
    .order_by(schema.corrections.c.made_at, schema.corrections.c.correction_id)
)
_FIND_VEHICLES = (
    select(schema.vehicles)
    .where(schema.vehicles.c.vehicle_id.in_(bindparam("ids", expanding=True)))
    .order_by(schema.vehicles.c.vehicle_id, schema.vehicles.c.valid_from)
)


def enrol_devices(connection: Connection, devices: Iterable[Device], at: int) -> None:
    """Take new devices in; one that is known already is an error of the caller."""
    rows = [
        {
            "device_id": device.device_id,
            "operator_id": device.operator_id,
            "public_key": device.public_key,
            "enrolled_at": at,
            "revoked_at": device.revoked_at,
            "limits": device.limits,
        }
        for device in devices
    ]
    if rows:
        connection.execute(schema.devices.insert(), hashed(schema.devices, rows))


def list_devices(connection: Connection) -> list[Device]:
    """Every device."""
    return [Device(*row) for row in connection.execute(select(*_DEVICE).order_by(_devices.c.device_id))]


def find_device(connection: Connection, device_id: str) -> Device | None:
    """One device, or None."""
    return find_devices(connection, [device_id]).get(device_id)


def find_devices(connection: Connection, device_ids: Collection[str]) -> dict[str, Device]:
    """The devices that are known, by id."""
    rows = find_many(connection, _FIND_DEVICES, ids=sorted(device_ids))
    return {row.device_id: Device(*row) for row in rows}


def lock_devices(connection: Connection, device_ids: Collection[str]) -> dict[str, Device]:
    """The devices that are known, by id, locked in the order of their ids: what a device sends is taken one after the other."""
    rows = find_many(connection, _LOCK_DEVICES, ids=sorted(device_ids))
    return {row[0]: Device(*row) for row in rows}


def revoke_device(connection: Connection, device_id: str, at: int) -> None:
    """From now on what this device sends is taken as evidence only."""
    _change_device(connection, device_id, revoked_at=at)


def limit_device(connection: Connection, device_id: str, limits: str | None) -> None:
    """What the device may speak of from now on (JSON of certificates.DeviceLimits), or None for anything."""
    _change_device(connection, device_id, limits=limits)


def _change_device(connection: Connection, device_id: str, **changes: object) -> None:
    table = schema.devices
    row = connection.execute(select(table).where(table.c.device_id == device_id).with_for_update(key_share=True)).first()
    if row is None:
        raise NotFoundError(f"no device {device_id}")
    (changed,) = hashed(table, [{**row._mapping, **changes}])
    connection.execute(update(table).where(table.c.device_id == device_id).values(changed))


def list_keys(connection: Connection, device_id: str) -> list[DeviceKey]:
    """All keys of a device, the newest first; none for a device that is not known."""
    return find_keys(connection, [device_id]).get(device_id, [])


def find_keys(connection: Connection, device_ids: Collection[str]) -> dict[str, list[DeviceKey]]:
    """All keys of the devices that are known, by device, the newest first."""
    enrolled: dict[str, DeviceKey] = {}
    found: dict[str, list[DeviceKey]] = {}
    for device_id, enrolled_with, enrolled_at, *row in find_many(connection, _FIND_KEYS, ids=sorted(device_ids)):
        enrolled[device_id] = DeviceKey(device_id, enrolled_with, enrolled_at)
        found.setdefault(device_id, []).extend([DeviceKey(*row)] if row[0] is not None else [])
    for device_id, first in enrolled.items():
        same = [key for key in found[device_id] if key.public_key == first.public_key]
        later = [key for key in found[device_id] if key.public_key != first.public_key]
        found[device_id] = later + (same or [first])
    return found


def save_key(connection: Connection, key: DeviceKey) -> None:
    """Add a device's key, or say anew from when to when it may sign."""
    table = schema.device_keys
    (row,) = hashed(
        table,
        [
            {
                "device_id": key.device_id,
                "public_key": key.public_key,
                "valid_from": key.valid_from,
                "valid_to": key.valid_to,
                "certificate": key.certificate,
            }
        ],
    )
    is_this = (table.c.device_id == key.device_id) & (table.c.public_key == key.public_key)
    if connection.execute(update(table).where(is_this).values(row)).rowcount == 0:
        connection.execute(table.insert(), row)


def add_code(
    connection: Connection, code_hash: str, device_id: str, operator_id: str, limits: str | None, expires_at: int
) -> None:
    """A one-time code with which a device may be enrolled."""
    connection.execute(
        schema.enrolment_codes.insert(),
        {
            "code_hash": code_hash,
            "device_id": device_id,
            "operator_id": operator_id,
            "limits": limits,
            "expires_at": expires_at,
            "used_at": None,
        },
    )


@dataclass(frozen=True, slots=True)
class EnrolmentCode:
    """What a one-time code was made for."""

    device_id: str
    operator_id: str
    limits: str | None


def find_code(connection: Connection, code_hash: str) -> EnrolmentCode | None:
    """What a code was made for, whether it is still good or not; None: there is no such code."""
    table = schema.enrolment_codes
    row = connection.execute(select(table).where(table.c.code_hash == code_hash)).first()
    return EnrolmentCode(row.device_id, row.operator_id, row.limits) if row else None


def is_key_known(connection: Connection, public_key: bytes) -> bool:
    """Whether any device has or had this key: a key belongs to one device for good."""
    return any(
        connection.execute(select(table.c.device_id).where(table.c.public_key == public_key).limit(1)).first() is not None
        for table in (schema.devices, schema.device_keys)
    )


def use_code(connection: Connection, code_hash: str, now: int) -> tuple[str, str, str | None] | None:
    """(device, operator, limits) of a code that is good now, which it then no longer is; else None."""
    table = schema.enrolment_codes
    good = (table.c.code_hash == code_hash) & table.c.used_at.is_(None) & (table.c.expires_at > now)
    if connection.execute(update(table).where(good).values(used_at=now)).rowcount == 0:
        return None
    row = connection.execute(select(table).where(table.c.code_hash == code_hash)).one()
    return row.device_id, row.operator_id, row.limits


def add_correction(connection: Connection, correction: Correction) -> None:
    """What a device's clock was off by, found out afterwards."""
    fields = {name: getattr(correction, name) for name in Correction.__slots__}
    connection.execute(schema.corrections.insert(), hashed(schema.corrections, [fields]))


def all_corrections(connection: Connection) -> list[Correction]:
    """Every correction, the oldest first."""
    table = schema.corrections
    rows = connection.execute(select(table).order_by(table.c.made_at, table.c.correction_id))
    return [Correction(*tuple(row)[:-1]) for row in rows]


def find_corrections(connection: Connection, device_ids: Collection[str]) -> dict[str, list[Correction]]:
    """The corrections of some devices, the oldest first."""
    found: dict[str, list[Correction]] = {}
    for row in find_many(connection, _FIND_CORRECTIONS, ids=sorted(device_ids)):
        found.setdefault(row.device_id, []).append(Correction(*tuple(row)[:-1]))
    return found


def assign_vehicles(connection: Connection, assignments: Iterable[tuple[str, int, str]]) -> None:
    """(vehicle, from when, operator): who ran it from then on."""
    rows = [{"vehicle_id": v, "valid_from": at, "operator_id": o} for v, at, o in assignments]
    if rows:
        connection.execute(schema.vehicles.insert(), hashed(schema.vehicles, rows))


def list_vehicles(connection: Connection) -> dict[str, list[tuple[int, str]]]:
    """Each vehicle's operators with the instants from which they ran it, oldest first."""
    table = schema.vehicles
    found: dict[str, list[tuple[int, str]]] = {}
    for row in connection.execute(select(table).order_by(table.c.vehicle_id, table.c.valid_from)):
        found.setdefault(row.vehicle_id, []).append((row.valid_from, row.operator_id))
    return found


def find_vehicles(connection: Connection, vehicle_ids: Collection[str]) -> dict[str, list[tuple[int, str]]]:
    """Some vehicles' operators with the instants from which they ran them, oldest first."""
    found: dict[str, list[tuple[int, str]]] = {}
    if vehicle_ids:
        for row in find_many(connection, _FIND_VEHICLES, ids=sorted(vehicle_ids)):
            found.setdefault(row.vehicle_id, []).append((row.valid_from, row.operator_id))
    return found


def save_settings(connection: Connection, values: Mapping[str, str]) -> None:
    """Write settings, replacing those of the same names."""
    make = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement = make(schema.settings)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value})
    connection.execute(statement, [{"name": name, "value": value} for name, value in values.items()])


def load_settings(connection: Connection) -> dict[str, str]:
    """All settings."""
    return {row.name: row.value for row in connection.execute(select(schema.settings))}


def add_user(connection: Connection, username: str, operator_id: str, password: str) -> None:
    """An operator's person with a password."""
    salt = secrets.token_bytes(16)
    row = {"username": username, "operator_id": operator_id, "salt": salt, "password_hash": password_hash(password, salt)}
    connection.execute(schema.users.insert(), hashed(schema.users, [row]))


def check_password(connection: Connection, username: str, password: str) -> str | None:
    """The operator whose person this is, or None. A name nobody has takes as long as one with a wrong password."""
    row = connection.execute(select(schema.users).where(schema.users.c.username == username)).first()
    salt = row.salt if row else b"\x00" * 16
    matches = secrets.compare_digest(password_hash(password, salt), row.password_hash if row else "")
    return row.operator_id if row and matches else None


def is_locked(connection: Connection, subject: str, now: int) -> bool:
    """Whether so many logins of a subject failed lately that no more are tried."""
    row = connection.execute(select(schema.attempts).where(schema.attempts.c.subject == subject)).first()
    return row is not None and row.failures >= MAX_FAILURES and now - row.since < LOCK_MS


def begin_attempt(connection: Connection, subject: str, now: int) -> bool:
    """Count a login of a subject before it is looked at, so that none of many at once goes uncounted; whether it may be tried.
    One that succeeds is forgotten with those before it (`forget_attempts`)."""
    table = schema.attempts
    connection.execute(delete(table).where(table.c.since <= now - LOCK_MS))
    row = connection.execute(_COUNT_ATTEMPT, {"subject": subject, "now": now, "most": MAX_FAILURES}).one()
    return bool(row.failures <= MAX_FAILURES)


def forget_attempts(connection: Connection, subject: str) -> None:
    """A login succeeded."""
    connection.execute(delete(schema.attempts).where(schema.attempts.c.subject == subject))
