"""What trouble cost whom: the simulator's truth against what was charged.

The auditor asks whether recorded facts were priced right. This asks something else: what riders truly did, priced by true
times and with no tap lost, against what they were charged. The difference is harm, and each has its trouble."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from fare_engine.facts import Fact, Purchase, Tap
from fare_engine.pricing.fold import fold
from fare_engine.store import travellers
from fare_engine.store.database import Database
from fare_engine.tap_format import TapKind
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token
from simulators.city import City
from simulators.riders import Presentation, Rider
from simulators.troubles import Troubles

ACTIONS = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}


class Harm(msgspec.Struct):
    """Of one kind of trouble: how many tokens it touched, what their riders paid too much and too little."""

    tokens: int = 0
    overcharged: int = 0
    undercharged: int = 0


def measure(
    database: Database,
    city: City,
    riders: list[Rider],
    troubles: Troubles,
    lost: list[Presentation],
    kept_out: list[Presentation],
    server_key: bytes,
    as_of: int,
) -> dict[str, Harm]:
    """Harm by trouble. `none` is every token that no trouble touched: it must be zero."""
    charged = _charged(database)
    causes = {p.token: "kept out (no money left)" for p in kept_out} | _causes(riders, troubles, lost)
    found: dict[str, Harm] = defaultdict(Harm)
    for rider in riders:
        for token, facts in _true_facts(rider, city).items():
            token_id = stored_token(server_key, token)
            owner = rider.rider_id if token == rider.card else f"ticket:{token_id}"
            difference = charged.get(owner, 0) - _true_price(city.tariff, facts, as_of)
            harm = found[causes.get(token, "none")]
            harm.tokens += 1
            harm.overcharged += max(0, difference)
            harm.undercharged += max(0, -difference)
    return dict(sorted(found.items()))


def _charged(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {
            traveller.traveller_id: sum(
                booked.line.amount for booked in traveller.record.booked.values() if booked.generation % 2 == 0
            )
            for traveller in travellers.all_travellers(connection)
        }


def _causes(riders: list[Rider], troubles: Troubles, lost: list[Presentation]) -> dict[bytes, str]:
    """The trouble that touched each token; where several did, the gravest."""
    causes: dict[bytes, str] = {}
    dead = {outage.device_id: outage for outage in troubles.outages if outage.dies}
    for rider in riders:
        for p in rider.day:
            if p.device_id == troubles.fast_device:
                causes[p.token] = "fast clock"
            if (p.rider_id, p.at) in troubles.forgotten:
                causes[p.token] = "forgotten tap-out"
            outage = dead.get(p.device_id)
            if outage is not None and outage.begins <= p.at < outage.ends:
                causes[p.token] = "lost taps"
    for p in lost:
        causes[p.token] = "lost taps"
    if troubles.lost_card is not None:
        causes[troubles.lost_card.token] = "lost card"
    return causes


def _true_facts(rider: Rider, city: City) -> dict[bytes, list[Fact]]:
    """What a rider truly did, by token, with an identity of its own for each fact."""
    found: dict[bytes, list[Fact]] = defaultdict(list)
    for number, p in enumerate(rider.day):
        validator = city.validators[p.device_id]
        found[p.token].append(
            Tap(
                f"truth/{number}",
                p.at,
                p.device_id,
                "truth",
                number,
                ACTIONS[p.kind],  # type: ignore[arg-type]  # one of the three
                p.token.hex(),
                p.medium,
                rider.category,
                p.stop_id,
                p.route_id,
                validator.operator_id,
            )
        )
    if rider.card is not None:
        for number, bought in enumerate(rider.purchases):
            fact_id = f"truth/shop/{number}"
            found[rider.card].append(
                Purchase(
                    fact_id,
                    bought.at,
                    "shop",
                    "truth",
                    number,
                    rider.card.hex(),
                    rider.medium,
                    rider.category,
                    bought.product_id,
                )
            )
    return found


def _true_price(tariff: CompiledTariff, facts: list[Fact], as_of: int) -> int:
    return sum(line.amount for line in fold(tariff, facts, as_of).lines)
