"""`motthe taps`: whether what was received still says what it said, proofs of single taps, and what waits for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from sqlalchemy import Connection

from clearing import seals
from clearing.bank import store as bank_store
from clearing.close import check_shares
from clearing.collection.verify import check as check_collection
from clearing.commands import now, rules_of
from clearing.disputes.verify import check as check_disputes
from fare_engine import jobs
from fare_engine.application import Application
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import NotFoundError
from fare_engine.gaps import Gap, find_gaps
from fare_engine.ids import tap_id
from fare_engine.publishing import trusted
from fare_engine.store import hashes, receipts, registry
from fare_engine.store.receipts import QuarantinedTap
from fare_engine.store.verify import Finding, Known, Verified, verify

app = typer.Typer()
taps_app = typer.Typer(help="Received taps: checks, proofs, gaps, alarms, quarantine.", no_args_is_help=True)
app.add_typer(taps_app, name="taps")

HOUR_MS = 3_600_000
Check = Callable[[Connection], Iterable[Finding]]


TapId = Annotated[str, typer.Argument(metavar="TAP_ID", help="device/epoch/sequence, as gate-7/0102030405060708/42.")]


@taps_app.command("verify")
def verify_store(data: Store = None) -> None:
    """Check every row, message, seal and sum again. What was changed is named, one line each, and the exit code is 1."""
    try:
        opened = open_store(data)
    except NotFoundError:
        raise
    except Exception as error:  # a changed file may break anything on the way in: that it breaks is what was asked for
        _tell_changed([Finding("database", "file", f"cannot be opened: {_in_a_line(error)}")])
    found = verify_opened(opened)
    if found.findings:
        _tell_changed(found.findings)
    counts = ", ".join(f"{count:,} {table}" for table, count in sorted(found.rows.items()) if count)
    typer.echo(f"VERIFIED {found.taps:,} taps; {counts}: nothing was changed")


def verify_opened(opened: Opened) -> Verified:
    """What of a store was changed."""
    known = Known(opened.server_key, opened.tariff.default_category, trusted(opened.data))
    found = Verified({}, 0, ())

    def check_store(connection: Connection) -> tuple[Finding, ...]:
        nonlocal found
        found = verify(connection, known)
        return found.findings

    def check_shared(connection: Connection) -> list[Finding]:
        return check_shares(connection, rules_of(opened.tariff, opened.tariff_folder))

    findings: list[Finding] = []
    checks: dict[str, Check] = {
        "database": check_store,
        "closes": seals.check,
        "settlements": check_shared,
        "charges": check_collection,
        "bank_lines": check_bank,
        "disputes": check_disputes,
    }
    for table, check in checks.items():
        try:
            with opened.database.read(long=True) as connection:
                findings += check(connection)
        except Exception as error:  # whatever a changed row breaks: that it breaks is what was asked for
            findings.append(Finding(table, "-", f"cannot be read: {_in_a_line(error)}"))
    return Verified(found.rows, found.taps, tuple(findings))


def check_bank(connection: Connection) -> list[Finding]:
    """What of the bank's lines was changed, or is not in the books as they say."""
    return [Finding(*changed) for changed in bank_store.changed_rows(connection)]


def _tell_changed(findings: Iterable[Finding]) -> NoReturn:
    for finding in findings:
        typer.echo(f"CHANGED {finding}")
    raise typer.Exit(1)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@taps_app.command("fill-hashes")
def fill_hashes(data: Store = None) -> None:
    """After a rolling upgrade from the first release: give rows that it still wrote meanwhile their hashes."""
    opened = open_store(data)
    filled = opened.database.transact(hashes.fill_missing)
    typer.echo(f"{filled:,} rows have hashes now that had none")


@taps_app.command("prove")
def prove_tap(
    tap: TapId,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: standard output.")] = None,
    data: Store = None,
) -> None:
    """The proof that a tap was received and is under the seal of a closed date; docs/check_inclusion.py checks it alone."""
    opened = open_store(data)
    device_id, epoch, sequence = parse_tap_id(tap)
    with opened.database.read() as connection:
        document = seals.prove(connection, device_id, epoch, sequence)
    text = json.dumps(document, ensure_ascii=False, indent=1)
    if out is None:
        typer.echo(text)
        return
    out.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"{out}: {tap} is under the seal of {document['accounting_date']}, {document['root']}")


@taps_app.command("gaps")
def list_gaps(data: Store = None) -> None:
    """Taps that are known to be missing: device, operator, epoch, which, how many, since when the server knows."""
    opened = open_store(data)
    with opened.database.read() as connection:
        gaps = find_gaps(receipts.all_streams(connection))
        operators = {device.device_id: device.operator_id for device in registry.list_devices(connection)}
    for gap in gaps:
        typer.echo(_gap_line(gap, operators.get(gap.device_id, "?"), now()))
    typer.echo(f"{sum(gap.taps for gap in gaps):,} taps missing in {len(gaps):,} gaps")


@taps_app.command("alarms")
def list_alarms(data: Store = None) -> None:
    """What somebody must look at: devices that were rolled back, cloned or lost their memory."""
    opened = open_store(data)
    with opened.database.read() as connection:
        alarms = receipts.list_alarms(connection)
    for alarm in alarms:
        typer.echo(f"{_moment(alarm.raised_at)} {alarm.kind} {alarm.device_id}: {alarm.detail}")
    typer.echo(f"{len(alarms):,} alarms")


@taps_app.command("quarantine")
def list_quarantine(
    reason: Annotated[str | None, typer.Option(help="Only those set aside for this reason.")] = None, data: Store = None
) -> None:
    """Taps that were received and cannot be used, each with its reason and age."""
    opened = open_store(data)
    found = _waiting(opened, lambda tap: reason is None or tap.reason == reason)
    for tap in found:
        typer.echo(f"{_id_of(tap)} {tap.reason} {tap.service_date} {_age(tap.received_at, now())}: {tap.detail}")
    typer.echo(f"{len(found):,} taps in quarantine")


@taps_app.command("release")
def release(
    taps: Annotated[list[str] | None, typer.Argument(metavar="[TAP_ID]...", help="Which taps.")] = None,
    device: Annotated[str | None, typer.Option(help="Instead: all that were set aside of this device.")] = None,
    data: Store = None,
) -> None:
    """Decide that taps in quarantine count: they are booked under the first open date. Those that still cannot be used stay."""
    if bool(taps) == (device is not None):
        raise typer.BadParameter("name taps, or --device")
    opened = open_store(data)
    wanted = set(taps or [])
    found = _waiting(opened, lambda tap: tap.device_id == device or _id_of(tap) in wanted)
    for name in sorted(wanted - {_id_of(tap) for tap in found}):
        raise NotFoundError(f"{name} is not in quarantine")
    application = Application(opened.tariff, opened.server_key)
    used = 0
    for start in range(0, len(found), jobs.PART):
        part = found[start : start + jobs.PART]
        used += opened.database.transact(lambda connection, part=part: _release(connection, application, part))  # type: ignore[misc]
    typer.echo(f"{used:,} of {len(found):,} taps released" + ("" if used == len(found) else "; the others still cannot be used"))


def _release(connection: Connection, application: Application, taps: Iterable[QuarantinedTap]) -> int:
    events = [receipts.find_tap(connection, tap.device_id, tap.epoch, tap.sequence) for tap in taps]
    return application.release(connection, [event for event in events if event is not None], now())


def _waiting(opened: Opened, wanted: Callable[[QuarantinedTap], bool]) -> list[QuarantinedTap]:
    with opened.database.read() as connection:
        return [tap for tap in receipts.list_quarantined(connection) if wanted(tap)]


def parse_tap_id(text: str) -> tuple[str, str, int]:
    """Device, epoch and sequence of a tap id; exit code 2 for what is none."""
    device_id, _, rest = text.partition("/")
    epoch, _, sequence = rest.partition("/")
    if not device_id or len(epoch) != 16 or not sequence.isdecimal():
        raise typer.BadParameter(f"{text!r} is no tap id like gate-7/0102030405060708/42")
    return device_id, epoch, int(sequence)


def _id_of(tap: QuarantinedTap) -> str:
    return tap_id(tap.device_id, tap.epoch, tap.sequence)


def _gap_line(gap: Gap, operator_id: str, at: int) -> str:
    place = f"{gap.device_id} {operator_id} {gap.epoch}"
    return f"{place} {gap.first}-{gap.last}: {gap.taps:,} taps, known for {_age(gap.known_since, at)}"


def _age(since: int, at: int) -> str:
    hours = max(0, at - since) // HOUR_MS
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="seconds")
