"""Fills an empty store with the simulated city: devices, vehicles, accounts, cards, entitlements, operators' logins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from fare_engine import ledger
from fare_engine.application import Application
from fare_engine.booking import Entitlement, Record
from fare_engine.facts import Purchase
from fare_engine.pricing.state import NEVER
from fare_engine.store import books, registry, travellers
from fare_engine.store.database import Database
from fare_engine.store.registry import Device
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tokens import issued_pin, stored_card_number, stored_token
from simulators.city import City
from simulators.riders import Rider

CHUNK = 5_000
SALES = 200


def seed_equipment(database: Database, city: City, seed: int, at: int) -> None:
    """Enrol every validator and say who runs each vehicle."""
    devices = [
        Device(v.device_id, v.operator_id, v.key(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), None)
        for v in city.validators.values()
    ]
    with database.write() as connection:
        registry.enrol_devices(connection, devices, at)
        registry.assign_vehicles(
            connection, [(v.vehicle_id, at, v.operator_id) for v in city.validators.values() if v.vehicle_id]
        )


def seed_riders(database: Database, riders: list[Rider], server_key: bytes, seed: int, service_date: str) -> None:
    """Open an account with a card for every rider who has one."""
    random = Random(f"accounts/{seed}")
    with_card = [rider for rider in riders if rider.card is not None]
    for start in range(0, len(with_card), CHUNK):
        chunk = with_card[start : start + CHUNK]
        with database.write() as connection:
            accounts = [_account(rider, server_key, seed, random) for rider in chunk]
            travellers.add_accounts(connection, accounts)
            _book_top_ups(connection, accounts, service_date)
            travellers.add_tokens(
                connection,
                [
                    NewToken(stored_token(server_key, rider.card or b""), rider.rider_id, _account_id(rider), rider.card)
                    for rider in chunk
                ],
            )
            travellers.add_travellers(
                connection, [Traveller(rider.rider_id, _account_id(rider), _record(rider), NEVER) for rider in chunk]
            )


def sell_products(database: Database, application: Application, riders: Iterable[Rider]) -> int:
    """Book the passes that riders buy before their day; how many."""
    bought = [(rider, purchase) for rider in riders for purchase in rider.purchases if rider.card is not None]
    for start in range(0, len(bought), SALES):
        with database.write() as connection:
            for number, (rider, purchase) in enumerate(bought[start : start + SALES], start=start):
                fact = Purchase(
                    f"shop/{rider.rider_id}/{number}",
                    purchase.at,
                    "shop",
                    rider.rider_id,
                    number,
                    stored_token(application.server_key, rider.card or b""),
                    rider.medium,
                    rider.category,
                    purchase.product_id,
                )
                application.purchase(connection, rider.rider_id, fact, purchase.at)
    return len(bought)


def seed_users(database: Database, operators: Iterable[str], seed: int) -> dict[str, str]:
    """A login for each operator; user name → password. The demo prints one; a real city gives its own."""
    found: dict[str, str] = {}
    with database.write() as connection:
        for operator_id in operators:
            password = password_of(operator_id, seed)
            username = operator_id.removeprefix("OP-").lower()
            registry.add_user(connection, username, operator_id, password)
            found[username] = password
    return found


def password_of(operator_id: str, seed: int) -> str:
    """The password of an operator's login in the demo."""
    return hashlib.sha256(f"{seed}/{operator_id}/password".encode()).hexdigest()[:10]


def card_number(rider_id: str, seed: int) -> str:
    """The number printed on a rider's card: sixteen digits, which open the rider's pages and are not what is tapped."""
    digits = int.from_bytes(hashlib.sha256(f"{seed}/{rider_id}/card".encode()).digest()[:8]) % 10**12
    number = f"9704{digits:012d}"
    return " ".join(number[i : i + 4] for i in range(0, 16, 4))


def pin_of(rider_id: str, seed: int, server_key: bytes) -> str:
    """The PIN that came with the card."""
    return issued_pin(server_key, card_number(rider_id, seed))


def write_keys(data: Path, seed: int) -> None:
    """The demo's server key comes from the seed, so that two runs of a seed are the same to the byte."""
    for name in ("server", "at-rest"):
        path = data / "keys" / f"{name}.key"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(hashlib.sha256(f"motthe demo {name} {seed}".encode()).digest())


def _account_id(rider: Rider) -> str:
    return f"A{rider.rider_id[1:]}"


def _account(rider: Rider, server_key: bytes, seed: int, random: Random) -> Account:
    number = card_number(rider.rider_id, seed)
    balance = random.choice((50_000, 100_000, 200_000)) if rider.prepaid else 0
    kind = "prepaid" if rider.prepaid else "postpaid"
    return Account(_account_id(rider), kind, balance, stored_card_number(server_key, number), number[-4:])


def _book_top_ups(connection: Connection, accounts: list[Account], service_date: str) -> None:
    """What prepaid riders put on their cards that morning."""
    entries = books.Booking(books.last_closed(connection))
    for account in accounts:
        if account.balance:
            transaction = hashlib.sha256(f"top-up/{account.account_id}".encode()).hexdigest()[:32]
            posting = ledger.Posting(ledger.TOP_UPS, ledger.rider(account.account_id), account.balance)
            entries.add_posting(transaction, 0, ledger.Code.TOPPED_UP, posting, service_date, service_date)
    entries.write(connection)


def _record(rider: Rider) -> Record:
    entitlements = [Entitlement(rider.category, 0, None)] if rider.category != "adult" else []
    return Record(entitlements=entitlements)
