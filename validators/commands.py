"""`motthe terminal`: one terminal on the command line, for a demonstration and for trying a server by hand.

The edge of the package: the only place that reads the clock, files and the keyboard."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fare_engine.errors import MottheError, QrError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.publications import read_publishers
from fare_engine.qr_tickets import PREFIX
from fare_engine.tap_format import TapFormatError, TapKind, terminal_token
from validators.outbox import Outbox
from validators.qr import QrReader
from validators.state import StateFolder
from validators.terminal import FlushReport, Presented, TapResult, Terminal, TerminalConfig, TerminalError
from validators.uplink import Backoff, HttpUplink

app = typer.Typer(no_args_is_help=True)

ACTIONS: Final = {kind.name.lower(): kind for kind in TapKind if kind is not TapKind.OUTCOME}
OUTBOX: Final = "outbox"
MOST_FETCHES: Final = 20


@app.command("terminal")
def run_terminal(
    url: Annotated[str, typer.Option(help="The server, as http://127.0.0.1:8000")],
    device: Annotated[str, typer.Option(help="Device id under which the server knows the key")],
    key_file: Annotated[Path, typer.Option(help="Ed25519 private key, PEM (PKCS 8)")],
    domain_key_file: Annotated[Path, typer.Option(help="Key that makes tokens of media, hexadecimal")],
    state: Annotated[Path | None, typer.Option(help="Folder that keeps the outbox, deny list, rules and clock")] = None,
    outbox: Annotated[Path | None, typer.Option(help="File that keeps taps, instead of the one in the folder")] = None,
    former_domain_key_file: Annotated[Path | None, typer.Option(help="The domain key before, while both are in use")] = None,
    token_key_version: Annotated[int, typer.Option(help="Version of the domain key")] = 1,
    trust_file: Annotated[Path | None, typer.Option(help="Whose publications are taken, JSON")] = None,
    qr_issuer: Annotated[list[str] | None, typer.Option(help="An issuer of QR tickets, KEYID=PUBLICKEYHEX; repeatable")] = None,
    stop: Annotated[str | None, typer.Option(help="Stop id")] = None,
    route: Annotated[str | None, typer.Option(help="Route id")] = None,
) -> None:
    """Be one terminal: each line of the input is a tap, `ACTION MEDIUM RAWHEX [PERSONS]`, as `entry emv 04a1b2`, or a code read
    from a phone, `ACTION MT1:…`.

    ACTION is entry, exit, board or inspection. An empty line sends what waits and fetches what is new."""
    try:
        keys = tuple(_read_domain_key(path) for path in (domain_key_file, former_domain_key_file) if path)
        config = TerminalConfig(
            device_id=DeviceId(device),
            key=_read_key(key_file),
            stop_id=StopId(stop) if stop else None,
            route_id=RouteId(route) if route else None,
            token_key_version=token_key_version,
        )
        station = _open_station(config, url, state, outbox, trust_file)
        reader = QrReader(_issuers(qr_issuer or []), station.terminal.corrected(_now()))
    except (MottheError, OSError, ValueError) as fault:
        typer.echo(f"cannot begin: {fault}", err=True)
        raise typer.Exit(2) from None
    with closing(station.uplink), closing(station.terminal.outbox):
        station.contact()
        for line in sys.stdin:
            _take(station, reader, keys, line)
        station.contact()


@dataclass
class Station:
    """A terminal with what stands around it: the way to the server and the folder."""

    terminal: Terminal
    uplink: HttpUplink
    folder: StateFolder | None

    def contact(self) -> None:
        """Send what waits, fetch what is new, keep what was learnt."""
        _tell(self.terminal.flush(_now()))
        for _ in range(MOST_FETCHES):  # deltas may come one after the other
            if not self._fetch_next():
                break
        if self.folder is not None:
            published = self.terminal.published
            self.folder.keep(published.deny_list, published.rules, self.terminal.clock)

    def _fetch_next(self) -> bool:
        """Fetch one publication; whether another may follow."""
        for wanted in self.terminal.wanted_publications(_now()):
            data = self.uplink.fetch(wanted.path)
            if data is None:
                continue
            refused = self.terminal.take_publication(wanted.kind, data, _now())
            typer.echo(f"{wanted.kind}: " + (f"kept out, {refused.cause}: {refused.detail}" if refused else "taken"), err=True)
            return True
        return False


def _open_station(config: TerminalConfig, url: str, state: Path | None, outbox: Path | None, trust_file: Path | None) -> Station:
    """Everything opened, with what was kept over the last boot."""
    path = outbox or (state / OUTBOX if state else None)
    if path is None:
        raise ValueError("where are taps kept? give --state or --outbox")
    publishers = read_publishers(trust_file.read_bytes()) if trust_file else {}
    uplink = HttpUplink(url)
    folder = StateFolder(state) if state else None
    backoff = Backoff(random.SystemRandom().random)
    box = Outbox(path, config.device_id)
    if folder is None:
        return Station(
            Terminal(config, box, uplink, random_bytes=os.urandom, backoff=backoff, publishers=publishers), uplink, None
        )
    loaded = folder.load(config.built_in_rules)
    if loaded.damaged:
        typer.echo(f"damaged: {', '.join(loaded.damaged)}", err=True)
    terminal = Terminal(
        config,
        box,
        uplink,
        random_bytes=os.urandom,
        backoff=backoff,
        deny_list=loaded.deny_list,
        rules=loaded.rules,
        clock=loaded.clock,
        publishers=publishers,
    )
    return Station(terminal, uplink, folder)


def _read_domain_key(path: Path) -> bytes:
    return bytes.fromhex(path.read_text().strip())


def _read_key(path: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds no Ed25519 key")
    return key


def _issuers(named: Sequence[str]) -> dict[bytes, Ed25519PublicKey]:
    """Whose QR tickets are believed, from the command line."""
    pairs = [name.partition("=") for name in named]
    return {key_id.encode(): Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)) for key_id, _, public in pairs}


def _take(station: Station, reader: QrReader, domain_keys: Sequence[bytes], line: str) -> None:
    """One line of the input: a tap, or nothing, which makes contact. A wrong line is said and passed over."""
    if not line.strip():
        station.contact()
        return
    try:
        now = _now()
        action, _, read = line.strip("\r\n").partition(" ")  # a code may hold spaces
        if action in ACTIONS and read.encode().startswith(PREFIX):
            presented = reader.read(read.encode(), ACTIONS[action], station.terminal.corrected(now))
        else:
            presented = read_line(line, *domain_keys)
        result = station.terminal.tap(presented, now)
    except (QrError, TerminalError, TapFormatError, ValueError) as fault:
        typer.echo(f"? {fault}", err=True)
        return
    typer.echo(describe(result))


def read_line(line: str, domain_key: bytes, former_key: bytes | None = None) -> Presented:
    """What a line presents; raises ValueError for a line that is none."""
    words = line.split()
    if len(words) not in (3, 4) or words[0] not in ACTIONS:
        raise ValueError(f"not `ACTION MEDIUM RAWHEX [PERSONS]` with one of {', '.join(ACTIONS)}: {line.strip()!r}")
    action, medium, raw = words[:3]
    read = bytes.fromhex(raw)
    return Presented(
        kind=ACTIONS[action],
        token=terminal_token(domain_key, read),
        medium=medium,
        persons=int(words[3]) if len(words) == 4 else 1,
        former_token=terminal_token(former_key, read) if former_key else None,
    )


def describe(result: TapResult) -> str:
    """One line for the rider, or for who inspects him."""
    parts = [result.tap_id, "admitted" if result.admitted else f"refused ({result.reason})", result.decided.value]
    answer = result.answer
    if answer is None or answer.fare is None:
        parts.append("fare follows")
    else:
        parts += [f"fare {answer.fare}", f"balance {answer.balance}"]
        parts += [f"{cap.rule_id} {cap.spent}/{cap.amount}" for cap in answer.caps]
        parts += [f"to pay {answer.post_paid_total}"] if answer.post_paid_total is not None else []
        parts += [f"exit at most {answer.exit_fare}"] if answer.exit_fare is not None else []
    if result.seen is not None:
        parts.append(f"here before: {result.seen.kind.name.lower()}, {'admitted' if result.seen.admitted else 'refused'}")
    return "  ".join(parts)


def _tell(report: FlushReport) -> None:
    """How contact went, for the operator."""
    said = [f"{report.acknowledged} acknowledged, {report.pending} waiting"]
    said += [f"stopped: {report.stopped}"] if report.stopped else []
    said += [f"epoch {epoch} given up: {cause}" for epoch, cause in report.stuck.items()]
    said += [f"damaged: epoch {one.epoch or '?'} from {one.from_sequence} on {one.detail}".rstrip() for one in report.damage]
    said += [f"{one.kind} {one.serial} kept out: {one.cause}" for one in report.refused_publications]
    typer.echo(", ".join(said), err=True)


def _now() -> int:
    return time.time_ns() // 1_000_000
