"""The worked examples of docs/clearing.md, run as they stand there."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from clearing.agreements import Agreements, Method, load_agreements
from clearing.bags import BagLine, BagRide, Pool, corrections
from clearing.pools import EMPTY, Shares, add, settle
from clearing.share_store import DayUse, RideRow
from clearing.sharing import add_own, add_rides, product_shares
from clearing.store import PoolRow
from fare_engine.tariff.compile import CapScope
from tests.builders import ROOT, TOWN

DOCUMENT = (ROOT / "docs" / "clearing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```clearing\n(.*?)```", DOCUMENT, re.DOTALL)
TUESDAY = "2026-03-03"
NAME = 'name = { vi = "x", en = "x" }\nvalid_from = 2026-01-01\n'
REST = f"""
[[agreements]]
agreement_id = "rest"
{NAME}covers = "legs"
method = "own_leg"

[[agreements]]
agreement_id = "rest-of-caps"
{NAME}covers = "caps"
method = "paid_fares"
scope = "service_day"
"""


@dataclass
class Example:
    """What an example tells: its agreement, one traveller's legs or a pass's day, and who is given what as of a date."""

    agreement: str
    lines: list[BagLine] = field(default_factory=list)
    rides: dict[str, BagRide] = field(default_factory=dict)
    uses: list[DayUse] = field(default_factory=list)
    expected: list[tuple[str, dict[str, int]]] = field(default_factory=list)


def read(text: str) -> Example:
    agreement, _, story = text.partition("--\n")
    found = Example(agreement)
    for line in filter(None, map(str.strip, story.splitlines())):
        if line.startswith("=>"):
            found.expected.append(_expected(line.removeprefix("=>").strip()))
        elif line.startswith("pass "):
            found.uses += _pass_day(line.split()[1:])
        else:
            _add_leg(found, line.split())
    return found


def _expected(text: str) -> tuple[str, dict[str, int]]:
    dated = re.match(r"(\d{4}-\d\d-\d\d) (.*)", text)
    on, shares = dated.groups() if dated else (TUESDAY, text)
    return on, {party: int(amount) for party, amount in (part.split() for part in shares.split(", "))}


def _pass_day(words: list[str]) -> list[DayUse]:
    product, amount, *used = words
    rides = [
        DayUse(TUESDAY, product, TUESDAY, "use", operator, int(fare), 1) for operator, fare in (one.split(":") for one in used)
    ]
    return [DayUse(TUESDAY, product, TUESDAY, "release", "", int(amount), 1), *rides]


def _add_leg(found: Example, words: list[str]) -> None:
    leg, operator, network, *rest = words
    named = dict(word.split("=") for word in rest if "=" in word)
    metres = int(named["km"]) * 1000 if "km" in named else None
    found.rides[leg] = BagRide(named.get("journey", leg), int(named.get("persons", 1)), metres)
    for word in rest:
        if "=" not in word:
            kind, amount, bearer = re.fullmatch(r"(\w+):(-?\d+)(?:@(\w+))?", word).groups()  # type: ignore[union-attr]
            funded = -int(amount) if bearer else 0
            rule = {"cap": "day"}.get(kind, f"{network}/{kind}")
            on = named.get("on", TUESDAY)
            found.lines.append(BagLine(leg, kind, rule, bearer or "operators", operator, network, on, int(amount), funded))


def _as_row(line: BagLine) -> PoolRow:
    place = (line.operator_id, line.network_id, line.service_date)
    return PoolRow(line.kind, line.rule_id, line.bearer, *place, "rider", "", line.amount, line.funded, 1)


def given(example: Example, agreements: Agreements, through: str) -> dict[str, int]:
    """Who is given what, in whole units, when `through` is closed."""
    changes: dict[Pool, Shares] = defaultdict(dict)
    rows = [_as_row(one) for one in example.lines]
    add_own(changes, rows, agreements)
    caps = {"day": CapScope(frozenset(), "fare")}
    legs = {one.leg_id: one for one in example.lines}
    rides = [
        RideRow(one.operator_id, one.network_id, None, "adult", one.service_date, example.rides[leg].persons, 1, 0)
        for leg, one in legs.items()
    ]
    add_rides(changes, rides, agreements)
    shared = corrections(example.lines, example.rides, agreements, caps, through)
    for key, shares in [*shared.items(), *product_shares(example.uses, agreements, through).items()]:
        add(changes[key], shares)
    found: dict[str, int] = defaultdict(int)
    for (pool, agreement), shares in changes.items():
        for party, amount in settle(f"{pool}@{agreement}", EMPTY, shares)[1].items():
            found[party] += amount
    return {party: amount for party, amount in found.items() if amount}


@pytest.mark.parametrize("text", EXAMPLES, ids=[f"example {number}" for number in range(1, len(EXAMPLES) + 1)])
def test_the_examples_of_the_specification_are_what_the_close_does(tmp_path: Path, text: str) -> None:
    example = read(text)
    path = tmp_path / "clearing.toml"
    head = '[clearing]\nagreement_version = "1"\ncurrency = "VND"\n\n'
    own = f'[[agreements]]\nagreement_id = "example"\n{NAME}{example.agreement}'
    path.write_text(head + own + REST, encoding="utf-8")
    agreements = load_agreements(path, TOWN)
    assert example.expected
    for through, expected in example.expected:
        assert given(example, agreements, through) == expected


def test_there_is_an_example_of_every_method() -> None:
    shown = {method for text in EXAMPLES for method in re.findall(r'method = "(\w+)"', text)}
    assert shown == set(get_args(Method))
