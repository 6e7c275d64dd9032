"""`motthe terminal`: one terminal on the command line, for a demonstration and for trying a server by hand.

The edge of the package: the only place that reads the clock, files and the keyboard."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fare_engine.errors import MottheError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.tap_format import TapFormatError, TapKind, terminal_token
from validators.outbox import Outbox
from validators.terminal import Presented, TapResult, Terminal, TerminalConfig, TerminalError
from validators.uplink import Backoff, HttpUplink

app = typer.Typer(no_args_is_help=True)

ACTIONS: Final = {kind.name.lower(): kind for kind in TapKind if kind is not TapKind.OUTCOME}


@app.command("terminal")
def run_terminal(
    url: Annotated[str, typer.Option(help="The server, as http://127.0.0.1:8000")],
    device: Annotated[str, typer.Option(help="Device id under which the server knows the key")],
    key_file: Annotated[Path, typer.Option(help="Ed25519 private key, PEM (PKCS 8)")],
    domain_key_file: Annotated[Path, typer.Option(help="Key that makes tokens of media, hexadecimal")],
    outbox: Annotated[Path, typer.Option(help="File that keeps taps until long after their acknowledgement")],
    stop: Annotated[str | None, typer.Option(help="Stop id")] = None,
    route: Annotated[str | None, typer.Option(help="Route id")] = None,
) -> None:
    """Be one terminal: each line of the input is a tap, `ACTION MEDIUM RAWHEX`, as `entry emv 04a1b2`.

    ACTION is entry, exit, board or inspection. An empty line sends what waits."""
    try:
        domain_key = bytes.fromhex(domain_key_file.read_text().strip())
        config = _config(DeviceId(device), _read_key(key_file), stop, route)
        uplink, box = HttpUplink(url), Outbox(outbox, config.device_id)
    except (MottheError, OSError, ValueError) as fault:
        typer.echo(f"cannot begin: {fault}", err=True)
        raise typer.Exit(2) from None
    backoff = Backoff(random.SystemRandom().random)
    with closing(uplink), closing(box):
        terminal = Terminal(config, box, uplink, random_bytes=os.urandom, backoff=backoff)
        _flush(terminal)
        for line in sys.stdin:
            _take(terminal, domain_key, line)
        _flush(terminal)


def _config(device: DeviceId, key: Ed25519PrivateKey, stop: str | None, route: str | None) -> TerminalConfig:
    return TerminalConfig(
        device_id=device,
        key=key,
        stop_id=StopId(stop) if stop else None,
        route_id=RouteId(route) if route else None,
    )


def _read_key(path: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds no Ed25519 key")
    return key


def _take(terminal: Terminal, domain_key: bytes, line: str) -> None:
    """One line of the input: a tap, or nothing, which flushes. A wrong line is said and passed over."""
    if not line.strip():
        _flush(terminal)
        return
    try:
        result = terminal.tap(read_line(line, domain_key), _now())
    except (TerminalError, TapFormatError, ValueError) as fault:
        typer.echo(f"? {fault}", err=True)
        return
    typer.echo(describe(result))


def read_line(line: str, domain_key: bytes) -> Presented:
    """What a line presents; raises ValueError for a line that is none."""
    words = line.split()
    if len(words) != 3 or words[0] not in ACTIONS:
        raise ValueError(f"not `ACTION MEDIUM RAWHEX` with one of {', '.join(ACTIONS)}: {line.strip()!r}")
    action, medium, raw = words
    return Presented(kind=ACTIONS[action], token=terminal_token(domain_key, bytes.fromhex(raw)), medium=medium)


def describe(result: TapResult) -> str:
    """One line for the rider."""
    parts = [result.tap_id, "admitted" if result.admitted else f"refused ({result.reason})", result.decided.value]
    if result.answer is None or result.answer.fare is None:
        parts.append("fare follows")
    else:
        parts += [f"fare {result.answer.fare}", f"balance {result.answer.balance}"]
        parts += [f"{cap.rule_id} {cap.spent}/{cap.amount}" for cap in result.answer.caps]
    return "  ".join(parts)


def _flush(terminal: Terminal) -> None:
    report = terminal.flush(_now())
    said = f"{report.acknowledged} acknowledged, {report.pending} waiting"
    typer.echo(said + (f", stopped: {report.stopped}" if report.stopped else ""), err=True)


def _now() -> int:
    return time.time_ns() // 1_000_000
