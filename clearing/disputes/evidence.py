"""What is known about disputed money when a dispute is opened: the statement as published, the tariff versions, the signed taps
with their messages' hashes and keys, and how the devices were heard of. It is kept with the dispute, for messages are erased
one day and devices change."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from sqlalchemy import Connection

from clearing import frozen, tracing
from clearing.close import Rules
from clearing.disputes.claims import Claim, Item, LegLine
from clearing.disputes.store import Evidence
from clearing.statements import digest
from fare_engine.errors import CloseError, EnvelopeError
from fare_engine.store import receipts
from fare_engine.tap_format import TapFormatError, reopen_message

MOST_TAPS = 500
"""So many taps are kept with a dispute; the rest of a row can be followed like any figure."""


def gather(
    connection: Connection, rules: Rules, claim: Claim, items: Iterable[Item], statements: dict[str, bytes], booked: list[LegLine]
) -> list[Evidence]:
    """Everything that speaks for or against a claim."""
    held = list(items)
    found = [_statement(claim, party, statements[party]) for party in sorted({claim.party_id, *(item.party_id for item in held)})]
    taps: dict[str, None] = dict.fromkeys(tap for line in booked for tap in (line.leg_id, line.cause) if _is_tap(tap))
    for party, line in sorted({(item.party_id, item.line) for item in held if not item.leg_id}):
        try:
            traced = tracing.trace(connection, rules, claim.accounting_date, party, line).found
        except CloseError as error:  # that a row is not explained any more speaks for whoever disputes it
            found.append(Evidence("not_explained", f"{party} line {line}", {"why": str(error)}))
            continue
        taps |= dict.fromkeys(tap for one in traced for tap in one.taps)
    versions = Counter(line.version_id for line in booked)
    found += [Evidence("tariff", version, {"lines": count}) for version, count in sorted(versions.items())]
    kept = list(taps)[:MOST_TAPS]
    found += _taps(connection, kept)
    found += _devices(connection, claim.accounting_date, {tap.rsplit("/", 2)[0] for tap in kept})
    if len(taps) > len(kept):
        found.append(Evidence("more_taps", "", {"count": len(taps) - len(kept)}))
    return found


def _statement(claim: Claim, party: str, content: bytes) -> Evidence:
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    told: dict[str, object] = {"sha256": digest(content), "agreement_version": rows[0]["agreement_id"]}
    if party == claim.party_id and claim.line:
        told["row"] = next(row for row in rows if row["line"] == str(claim.line))
    return Evidence("statement", f"{claim.accounting_date}/{party}", told)


def _is_tap(name: str) -> bool:
    return name.count("/") >= 2 and name.rpartition("/")[2].isdigit()


def _taps(connection: Connection, taps: Iterable[str]) -> Iterator[Evidence]:
    """Each tap as its message tells it, and which key of its device signed that message."""
    for tap in taps:
        signed = next(iter(tracing.signed_taps(connection, [tap])), None)
        if signed is None:
            yield Evidence("tap", tap, {"held": False})
            continue
        device_id, epoch, sequence = tap.rsplit("/", 2)
        (stored,) = receipts.list_batches(connection, device_id, epoch, int(sequence), int(sequence))
        told: dict[str, object] = {
            "message": signed.message,
            "message_sha256": hashlib.sha256(stored.message).hexdigest(),
            "received_at": signed.received_at,
            "public_key": signed.public_key,
        }
        try:
            event = reopen_message(stored.message).decode(int(sequence))
        except (EnvelopeError, TapFormatError):
            yield Evidence("tap", tap, told)
            continue
        told |= {
            "device_time": event.device_time,
            "clock_offset_ms": event.clock_offset_ms,
            "clock_error_ms": event.clock_error_ms,
            "tariff_held": event.tariff_version,
            "stop_id": event.stop_id,
            "route_id": event.route_id,
            "vehicle_id": event.vehicle_id,
        }
        yield Evidence("tap", tap, told)


def _devices(connection: Connection, accounting_date: str, devices: Collection[str]) -> Iterator[Evidence]:
    for device in frozen.list_positions(connection, accounting_date):
        if device.device_id in devices:
            told = {
                "operator_id": device.operator_id,
                "last_contact": device.last_contact,
                "epoch": device.epoch,
                "sequence": device.sequence,
                "missing": device.missing,
            }
            yield Evidence("device", device.device_id, told)
