"""Devices, vehicles, settings, operators' people and failed logins: what the service knows before any tap comes."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from fare_engine.store import schema
from fare_engine.tokens import password_hash

MAX_FAILURES = 5
LOCK_MS = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Device:
    """A terminal as it was enrolled. `revoked_at` is an instant or None."""

    device_id: str
    operator_id: str
    public_key: bytes
    revoked_at: int | None


_devices = schema.devices
_FIND_DEVICES = select(_devices.c.device_id, _devices.c.operator_id, _devices.c.public_key, _devices.c.revoked_at).where(
    _devices.c.device_id.in_(bindparam("ids", expanding=True))
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
        }
        for device in devices
    ]
    if rows:
        connection.execute(schema.devices.insert(), rows)


def list_devices(connection: Connection) -> list[Device]:
    """Every device."""
    table = schema.devices
    rows = connection.execute(
        select(table.c.device_id, table.c.operator_id, table.c.public_key, table.c.revoked_at).order_by(table.c.device_id)
    )
    return [Device(*row) for row in rows]


def find_device(connection: Connection, device_id: str) -> Device | None:
    """One device, or None."""
    table = schema.devices
    row = connection.execute(
        select(table.c.device_id, table.c.operator_id, table.c.public_key, table.c.revoked_at).where(
            table.c.device_id == device_id
        )
    ).first()
    return Device(*row) if row else None


def find_devices(connection: Connection, device_ids: Collection[str]) -> dict[str, Device]:
    """The devices that are known, by id."""
    rows = connection.execute(_FIND_DEVICES, {"ids": sorted(device_ids)})
    return {row.device_id: Device(*row) for row in rows}


def revoke_device(connection: Connection, device_id: str, at: int) -> None:
    """From now on nothing of this device is acknowledged."""
    connection.execute(update(schema.devices).where(schema.devices.c.device_id == device_id).values(revoked_at=at))


def assign_vehicles(connection: Connection, assignments: Iterable[tuple[str, int, str]]) -> None:
    """(vehicle, from when, operator): who ran it from then on."""
    rows = [{"vehicle_id": v, "valid_from": at, "operator_id": o} for v, at, o in assignments]
    if rows:
        connection.execute(schema.vehicles.insert(), rows)


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
        for row in connection.execute(_FIND_VEHICLES, {"ids": sorted(vehicle_ids)}):
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
    connection.execute(
        schema.users.insert(),
        {
            "username": username,
            "operator_id": operator_id,
            "salt": salt,
            "password_hash": password_hash(password, salt),
        },
    )


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


def note_attempt(connection: Connection, subject: str, now: int, *, succeeded: bool) -> None:
    """Count a failed login, or forget the failures after one that succeeded."""
    table = schema.attempts
    row = connection.execute(select(table).where(table.c.subject == subject)).first()
    if row is None:
        if not succeeded:
            connection.execute(table.insert(), {"subject": subject, "failures": 1, "since": now})
        return
    failures = 0 if succeeded else (row.failures + 1 if now - row.since < LOCK_MS else 1)
    connection.execute(update(table).where(table.c.subject == subject).values(failures=failures, since=now))
