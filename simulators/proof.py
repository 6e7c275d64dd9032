"""Whether all was right in the end: what is held against what was written and acknowledged, books, prices, and every tap that is
missing with its name and the injected fault that explains it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, text

from clearing.audit import audit_store
from fare_engine.gaps import find_gaps
from fare_engine.store import receipts, travellers
from fare_engine.tap_format import reopen_message
from simulators.world import SERVER_KEY, ViolationError, World

FORGETFUL = frozenset({"lost_memory", "rolled_back", "two_successors", "forked_chain"})
"""Alarms about a device that does not remember what it wrote."""
Place = tuple[str, str, int]
"""Device, epoch, sequence."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Taps of one epoch that were written and are not held, and why."""

    device_id: str
    epoch: str
    taps: int
    acknowledged: int
    """How many of them were acknowledged before database and disk both lost them."""
    why: str
    told_by: str
    """How the service knows: a gap, an alarm, or not at all."""


@dataclass(slots=True)
class Proof:
    """What a run was found to be."""

    written: int = 0
    acknowledged: int = 0
    held: int = 0
    travellers: int = 0
    legs: int = 0
    quarantined: int = 0
    alarms: Counter[str] = field(default_factory=Counter)
    missing: list[Missing] = field(default_factory=list)

    @property
    def never_acknowledged(self) -> int:
        """Taps that are not held and of which nobody was told that they were."""
        return sum(entry.taps - entry.acknowledged for entry in self.missing)

    @property
    def lost_twice(self) -> int:
        """Acknowledged taps that two faults took: the database was set back, and their terminal's disk had lost them."""
        return sum(entry.acknowledged for entry in self.missing)

    def add(self, other: Proof) -> None:
        """What was found of another world, too."""
        for name in ("written", "acknowledged", "held", "travellers", "legs", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.alarms += other.alarms
        self.missing += other.missing


def prove(world: World, folder: Path, adopted: tuple[str, ...], restored_to: list[int]) -> Proof:
    """Check everything; raises ViolationError with the first promise that was broken. `restored_to`: the instants of the
    backups to which the database was set back."""
    proof = Proof()
    with world.service.any.database.read() as connection:
        held = held_taps(connection)
        check_held(world, connection, held)
        check_missing(world, connection, held, proof, restored_to)
        check_alarms(world, connection, held)
        check_facts(connection)
        report = audit_store(connection, folder, adopted, world.service.tariff, SERVER_KEY, world.now)
        if report.differences:
            raise ViolationError(f"{len(report.differences)} legs are mispriced: {report.differences[0]}")
        if report.taps != len(held):
            raise ViolationError(f"the auditor saw {report.taps} taps, {len(held)} are held")
        proof.quarantined = len(receipts.list_quarantined(connection))
        proof.alarms = Counter(alarm.kind for alarm in receipts.list_alarms(connection))
        opening = {card.rider: card.balance for card in world.cards.values() if card.known}
        check_books(connection, opening)
    proof.written = sum(map(len, world.ledger.written.values()))
    proof.acknowledged = sum(world.ledger.acknowledged.values())
    proof.held, proof.travellers, proof.legs = len(held), report.travellers, report.legs
    return proof


def held_taps(connection: Connection) -> dict[Place, bytes]:
    """Every tap that is held, with its bytes; ViolationError if one stands in two messages."""
    held: dict[Place, bytes] = {}
    for stored in receipts.all_batches(connection):
        message = reopen_message(stored.message)
        for sequence in range(stored.first_sequence, stored.last_sequence + 1):
            place = (stored.device_id, stored.epoch, sequence)
            if place in held:
                raise ViolationError(f"{place} stands in two messages")
            held[place] = message.taps[sequence - message.header.first_sequence]
    return held


def check_held(world: World, connection: Connection, held: dict[Place, bytes]) -> None:
    """Nothing is held that no terminal wrote, and streams have no holes."""
    for (device, epoch, sequence), tap in held.items():
        written = world.ledger.written.get((device, epoch), [])
        if sequence > len(written) or written[sequence - 1] != tap:
            raise ViolationError(f"{device}/{epoch}/{sequence} is held with bytes that its terminal never wrote")
    count = Counter((device, epoch) for device, epoch, _ in held)
    for stream in receipts.all_streams(connection):
        found = count.pop((stream.device_id, stream.epoch), 0)
        whole = all((stream.device_id, stream.epoch, n) in held for n in range(1, stream.acknowledged_through + 1))
        if found != stream.acknowledged_through or not whole:
            raise ViolationError(f"{stream.device_id}/{stream.epoch}: {stream.acknowledged_through} acknowledged, {found} held")
    if count:
        raise ViolationError(f"messages without a stream: {count}")


def check_now(world: World) -> None:
    """In the middle of a run: nothing foreign is held, nothing twice, and no stream has a hole."""
    with world.service.any.database.read() as connection:
        check_held(world, connection, held_taps(connection))


def check_missing(world: World, connection: Connection, held: dict[Place, bytes], proof: Proof, restored_to: list[int]) -> None:
    """Each tap that was written and is not held is explained by an injected fault, an acknowledged one only by two: its
    terminal's disk and a database set back. The service knows of it, but for what a disk lost before anybody was told of it."""
    gaps = {(gap.device_id, gap.epoch): gap for gap in find_gaps(receipts.all_streams(connection))}
    alarms: dict[str, set[str]] = defaultdict(set)
    for alarm in receipts.list_alarms(connection):
        if alarm.kind in FORGETFUL:
            alarms[alarm.device_id].add(alarm.kind)
    for (device, epoch), taps in sorted(world.ledger.written.items()):
        missing = [n for n in range(1, len(taps) + 1) if (device, epoch, n) not in held]
        if not missing:
            continue
        acknowledged = [n for n in missing if n <= world.ledger.acknowledged.get((device, epoch), 0)]
        why = Counter(_why(world, device, epoch, n) for n in missing)
        if "" in why:
            raise ViolationError(
                f"{device}/{epoch}: {why['']} of {len(taps)} taps are missing, no fault explains it: {missing[:3]}"
            )
        if acknowledged and not (restored_to and all(_is_gone(world, device, epoch, n) for n in acknowledged)):
            raise ViolationError(f"{device}/{epoch}: acknowledged taps are lost: {acknowledged[:5]} of {len(taps)}")
        gap = gaps.get((device, epoch))
        told = "gap" if gap is not None and gap.last >= missing[-1] else ", ".join(sorted(alarms[device])) or "nobody"
        known = any(place[0] == device for place in held)
        if told == "nobody" and known and not all("disk rolled back" in reason for reason in why):
            raise ViolationError(f"{device}/{epoch}: {len(missing)} taps are missing ({', '.join(why)}), and nobody was told")
        proof.missing.append(Missing(device, epoch, len(missing), len(acknowledged), ", ".join(sorted(why)), told))


def check_alarms(world: World, connection: Connection, held: dict[Place, bytes]) -> None:
    """Where the service holds taps that their terminal forgot and wrote on without, somebody was told; or ViolationError."""
    alarmed = {alarm.device_id for alarm in receipts.list_alarms(connection) if alarm.kind in FORGETFUL}
    for loss in world.ledger.losses:
        if loss.kind in ("disk rolled back", "disk dead") and loss.device_id not in alarmed:
            known = _remembered(world, loss.device_id)
            mine = [(epoch, sequence) for device, epoch, sequence in held if device == loss.device_id]
            forgotten = [place for place in mine if loss.covers(*place) and place[1] > known.get(place[0], 0)]
            if forgotten:
                raise ViolationError(f"{loss.device_id} forgot {len(forgotten)} taps that are held, and nobody was told: {loss}")


def _remembered(world: World, device_id: str) -> dict[str, int]:
    """The last tap of each epoch that a terminal knows of: an image that was put back may be from before the loss."""
    outbox = world.devices[device_id].outbox
    return {state.epoch.hex(): state.last_sequence for state in outbox.list_epochs()} if outbox is not None else {}


def _is_gone(world: World, device: str, epoch: str, sequence: int) -> bool:
    return any(loss.covers(epoch, sequence) for loss in world.ledger.losses if loss.device_id == device)


def _why(world: World, device: str, epoch: str, sequence: int) -> str:
    """The faults that took a tap; empty if there was none."""
    losses = [loss for loss in world.ledger.losses if loss.device_id == device]
    covering = sorted({loss.kind for loss in losses if loss.covers(epoch, sequence)})
    if covering:
        return " and ".join(covering)
    cause = world.devices[device].given_up.get(epoch)
    forked = any(loss.kind == "disk rolled back" for loss in losses)
    return "history forked" if cause == "forked_chain" and forked else ""


def check_facts(connection: Connection) -> None:
    """No tap is twice in the records of travellers, and no traveller is left dirty."""
    seen: set[str] = set()
    for traveller in travellers.all_travellers(connection):
        for fact in (*traveller.record.facts, *traveller.record.refused):
            if not fact.fact_id.startswith(("correction/", "completion/")) and fact.fact_id in seen:
                raise ViolationError(f"{fact.fact_id} is twice in the facts")
            seen.add(fact.fact_id)
        if traveller.dirty_since is not None:
            raise ViolationError(f"{traveller.traveller_id} is left dirty: {traveller.dirty_reason}")


def check_books(connection: Connection, opening: dict[str, int]) -> None:
    """Each line's money is posted once, nothing is posted without a line, no line stands twice, and each balance is what its
    account began with less its lines; raises ViolationError."""
    posted = dict(_rows(connection, "select transaction_id, sum(amount) from postings where code <> 'WAIVED' group by 1"))
    lines = dict(_rows(connection, "select transaction_id, abs(amount) + abs(funded) from lines"))
    if {key: amount for key, amount in lines.items() if amount} != posted:
        raise ViolationError("lines and postings differ")
    twice = (
        "select traveller_id, line_id from lines group by traveller_id, line_id "
        "having sum(1 - 2 * (generation % 2)) not in (0, 1) or max(generation) + 1 != count(*)"
    )
    for traveller, line in _rows(connection, twice):
        raise ViolationError(f"line {line} of {traveller} stands twice")
    owed = dict(
        _rows(
            connection,
            "select account, sum(amount) from (select debit account, amount from postings "
            "union all select credit, -amount from postings) group by 1",
        )
    )
    spent = dict(_rows(connection, "select payer, sum(amount) from lines group by 1"))
    for account, balance in _rows(connection, "select account_id, balance from accounts"):
        payer = account if account.startswith("collector:") else f"rider:{account}"
        if balance != opening.get(account, 0) - owed.get(payer, 0):
            raise ViolationError(f"the balance of {account} is {balance}, the postings say {owed.get(payer, 0)}")
        if owed.get(payer, 0) != spent.get(payer, 0):
            raise ViolationError(f"{account} owes {owed.get(payer, 0)}, its lines are {spent.get(payer, 0)}")


def _rows(connection: Connection, statement: str) -> Iterator[tuple[str, int]]:
    for row in connection.execute(text(statement)).all():
        yield row[0], row[1]
