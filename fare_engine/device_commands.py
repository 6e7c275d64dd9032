"""`motthe devices`: enrolment codes, revocation and limits, and what the city publishes to its terminals."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from sqlalchemy import Connection

from fare_engine import enrolment, publishing
from fare_engine.certificates import DeviceLimits
from fare_engine.commands import Opened, Store, open_store, parse_instant_option
from fare_engine.errors import NotFoundError
from fare_engine.store import registry, travellers
from fare_engine.store.registry import Device
from fare_engine.tokens import stored_card_number

app = typer.Typer()
devices_app = typer.Typer(help="Terminals: enrolment, limits, deny list, rules.", no_args_is_help=True)
app.add_typer(devices_app, name="devices")

HOUR_MS = 3_600_000
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="A device id.")]
Routes = Annotated[list[str] | None, typer.Option("--route", help="A route it may speak of; repeatable. Default: any.")]
Stops = Annotated[list[str] | None, typer.Option("--stop", help="A stop it may speak of; repeatable. Default: any.")]
Minute = Annotated[int | None, typer.Option(min=1, help="Most taps a minute.")]
Day = Annotated[int | None, typer.Option(min=1, help="Most taps a day.")]
SignedBy = Annotated[
    list[Path] | None, typer.Option(help="A person's key (PEM) that signs too; twice, by two persons, for what changes much.")
]


@devices_app.command("code")
def make_code(
    device: DeviceName,
    operator: Annotated[str, typer.Option(help="The operator whose device it is.")],
    route: Routes = None,
    stop: Stops = None,
    taps_a_minute: Minute = None,
    taps_a_day: Day = None,
    hours: Annotated[int, typer.Option(min=1, max=24 * 30, help="How long the code is good.")] = 24,
    data: Store = None,
) -> None:
    """A one-time code with which a device gets its certificate."""
    opened = open_store(data)
    if operator not in opened.tariff.network.parties:
        raise typer.BadParameter(f"--operator {operator!r} is no party of {opened.tariff.tariff.name}")
    limits = _limits(route, stop, taps_a_minute, taps_a_day)
    expires_at = _now() + hours * HOUR_MS
    code = opened.database.transact(
        lambda connection: enrolment.make_code(connection, device, operator, limits, expires_at, secrets.token_bytes)
    )
    typer.echo(code)
    typer.echo(f"for {device} of {operator}, good for {hours} h", err=True)


@devices_app.command("list")
def list_devices(operator: Annotated[str | None, typer.Option(help="Only this one's.")] = None, data: Store = None) -> None:
    """The register: device, operator, state, limits, newest key."""
    opened = open_store(data)
    with opened.database.read() as connection:
        found = [device for device in registry.list_devices(connection) if operator in (None, device.operator_id)]
        for device in found:
            typer.echo(_shown(connection, device))
    typer.echo(f"{len(found):,} devices", err=True)


@devices_app.command("revoke")
def revoke(device: DeviceName, data: Store = None) -> None:
    """A stolen or broken terminal: what was not acknowledged before is set aside from now on. There is no way back."""
    opened = open_store(data)
    opened.database.transact(lambda connection: registry.revoke_device(connection, device, _now()))
    typer.echo(f"{device} is revoked")


@devices_app.command("limit")
def limit(
    device: DeviceName,
    route: Routes = None,
    stop: Stops = None,
    taps_a_minute: Minute = None,
    taps_a_day: Day = None,
    data: Store = None,
) -> None:
    """What a device may speak of from now on, instead of what it might before; nothing named: anything."""
    opened = open_store(data)
    limits = _limits(route, stop, taps_a_minute, taps_a_day)
    kept = msgspec.json.encode(limits).decode() if limits is not None else None
    opened.database.transact(lambda connection: registry.limit_device(connection, device, kept))
    typer.echo(f"{device}: {kept or 'no limits'}")


# ---- publications


@devices_app.command("person")
def add_person(
    name: Annotated[str, typer.Argument(help="Who.")],
    key_file: Annotated[Path, typer.Argument(help="Their Ed25519 key (PEM); made if it is not there.")],
    key_id: Annotated[str | None, typer.Option(help="The key's id. Default: made of the name.")] = None,
    data: Store = None,
) -> None:
    """Somebody whose signature terminals count. The terminals' trust files are to be brought up to date then."""
    opened = open_store(data)
    publishing.add_person(opened.data, name, key_file, key_id or f"{name.lower().replace(' ', '-')}-1")
    typer.echo(f"{name} may sign; `motthe devices trust` prints the terminals' trust file")


@devices_app.command("trust")
def print_trust(data: Store = None) -> None:
    """The trust file of this service's terminals: whose publications they take."""
    opened = open_store(data)
    typer.echo(msgspec.json.format(msgspec.json.encode(publishing.trust_anchors(opened.data)), indent=2).decode())


@devices_app.command("deny")
def deny(
    token_id: Annotated[str | None, typer.Argument(metavar="[TOKEN_ID]", help="A token's id in the store.")] = None,
    card: Annotated[str | None, typer.Option(help="Instead: the number printed on the card.")] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "lost",
    signed_by: SignedBy = None,
    data: Store = None,
) -> None:
    """A lost card: it is let in nowhere from now on, and terminals that decide alone hear of it."""
    opened = open_store(data)
    found = _token(opened, token_id, card)
    told = opened.database.transact(lambda connection: publishing.block(connection, found, _now(), reason))
    typer.echo(f"{found} is blocked" + ("" if told else ", but terminals cannot be told: what they send for it is not known"))
    _sign_list(opened, signed_by)


@devices_app.command("allow")
def allow(
    token_id: Annotated[str | None, typer.Argument(metavar="[TOKEN_ID]", help="A token's id in the store.")] = None,
    card: Annotated[str | None, typer.Option(help="Instead: the number printed on the card.")] = None,
    signed_by: SignedBy = None,
    data: Store = None,
) -> None:
    """A card that was found again."""
    opened = open_store(data)
    found = _token(opened, token_id, card)
    opened.database.transact(lambda connection: publishing.unblock(connection, found, _now(), "found"))
    typer.echo(f"{found} is good again")
    _sign_list(opened, signed_by)


@devices_app.command("publish-deny-list")
def publish_deny_list(signed_by: SignedBy = None, data: Store = None) -> None:
    """Say anew that the deny list is as it is, so that no terminal's grows old; with --signed-by, sign it as a whole."""
    opened = open_store(data)
    if not signed_by:
        version = opened.database.transact(lambda connection: publishing.confirm(connection, _now()))
        typer.echo(f"the deny list is confirmed as version {version}")
    _sign_list(opened, signed_by)


@devices_app.command("publish-rules")
def publish_rules(
    file: Annotated[Path, typer.Argument(help="A TOML file with rules for terminals (docs/terminal-protocol.md).")],
    activates_at: Annotated[str, typer.Option(help="From when on they act, RFC 3339.")],
    signed_by: SignedBy = None,
    data: Store = None,
) -> None:
    """New rules by which terminals decide alone; they act everywhere from one instant on."""
    opened = open_store(data)
    rules, acts = publishing.read_rules_file(file), parse_instant_option(activates_at)
    signers = publishing.signers_of(opened.data, signed_by or [])
    serial = opened.database.transact(lambda connection: publishing.publish_rules(connection, rules, acts, signers, _now()))
    persons = publishing.persons_in(signers, publishing.trusted(opened.data))
    typer.echo(f"rules {serial} act from {activates_at} on; signed by the service" + "".join(f", {name}" for name in persons))


def _sign_list(opened: Opened, signed_by: list[Path] | None) -> None:
    if signed_by:
        signers = publishing.signers_of(opened.data, signed_by)
        version = opened.database.transact(lambda connection: publishing.publish_whole_list(connection, signers, _now()))
        typer.echo(f"version {version} is signed as a whole")


# ---- small things


def _token(opened: Opened, token_id: str | None, card: str | None) -> str:
    """The token that is meant; one that is not the card's only one must be named."""
    if (token_id is None) == (card is None):
        raise typer.BadParameter("name a token, or --card")
    if token_id is not None:
        return token_id
    with opened.database.read() as connection:
        account = travellers.find_account_by_card(connection, stored_card_number(opened.server_key, card or ""))
        if account is None:
            raise NotFoundError("no card has this number")
        found = {
            token.token_id
            for traveller in travellers.travellers_of_account(connection, account.account_id)
            for token in travellers.tokens_of_traveller(connection, traveller.traveller_id)
        }
    if len(found) != 1:
        raise NotFoundError(f"the card's account has {len(found)} tokens, name one: {', '.join(sorted(found))}")
    return found.pop()


def _limits(route: list[str] | None, stop: list[str] | None, minute: int | None, day: int | None) -> DeviceLimits | None:
    found = DeviceLimits(
        routes=frozenset(route) if route else None,
        stops=frozenset(stop) if stop else None,
        taps_a_minute=minute,
        taps_a_day=day,
    )
    return None if found == DeviceLimits() else found


def _shown(connection: Connection, device: Device) -> str:
    state = "enrolled" if device.revoked_at is None else f"revoked at {device.revoked_at} ms"
    newest = registry.list_keys(connection, device.device_id)[0]
    return f"{device.device_id} {device.operator_id} {state} key {newest.public_key.hex()} limits {device.limits or 'none'}"


def _now() -> int:
    """Milliseconds UTC, by the machine's clock."""
    return time.time_ns() // 1_000_000
