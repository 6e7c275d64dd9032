"""The worked examples of docs/clearing.md, run as they stand there: by the close, and by the auditor."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from clearing.agreements import Method, load_agreements
from clearing.auditor import TakenOff
from clearing.auditor_shares import Released
from clearing.bags import Pool
from clearing.pools import EMPTY, Shares, settle
from tests.builders import ROOT, TOWN
from tests.shares import REST, Told, Trip, an_agreement, by_the_auditor, by_the_close, clearing_toml, differences, sums_of

DOCUMENT = (ROOT / "docs" / "clearing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```clearing\n(.*?)```", DOCUMENT, re.DOTALL)
TUESDAY = "2026-03-03"


@dataclass
class Example:
    """What an example tells: its agreement, one traveller's legs or a pass's day, and who is given what as of a date."""

    agreement: str
    told: Told = field(default_factory=Told)
    expected: list[tuple[str, dict[str, int]]] = field(default_factory=list)


def read(text: str) -> Example:
    agreement, _, story = text.partition("--\n")
    found = Example(agreement)
    for line in filter(None, map(str.strip, story.splitlines())):
        if line.startswith("=>"):
            found.expected.append(_expected(line.removeprefix("=>").strip()))
        elif line.startswith("pass "):
            _add_pass_day(found.told, line.split()[1:])
        else:
            found.told.trips.append(_trip(line.split()))
    return found


def _expected(text: str) -> tuple[str, dict[str, int]]:
    dated = re.match(r"(\d{4}-\d\d-\d\d) (.*)", text)
    on, shares = dated.groups() if dated else (TUESDAY, text)
    return on, {party: int(amount) for party, amount in (part.split() for part in shares.split(", "))}


def _add_pass_day(told: Told, words: list[str]) -> None:
    product, amount, *used = words
    told.released.append(Released(product_id=product, service_date=TUESDAY, amount=int(amount)))
    for number, (operator, fare) in enumerate(one.split(":") for one in used):
        place = {"leg_id": str(number), "journey": str(number), "operator": operator, "network": "bus", "on": TUESDAY}
        told.trips.append(Trip(**place, fare=int(fare), product=product))  # type: ignore[arg-type]


def _trip(words: list[str]) -> Trip:
    leg, operator, network, *rest = words
    named = dict(word.split("=") for word in rest if "=" in word)
    amounts: dict[str, int] = defaultdict(int)
    off: list[TakenOff] = []
    for word in rest:
        if "=" not in word:
            found = re.fullmatch(r"(\w+):(-?\d+)(?:@(\w+))?", word)
            assert found is not None
            kind: Any = found[1]
            if kind in ("list_fare", "companions"):
                amounts[kind] += int(found[2])
            else:
                off.append((kind, "day" if kind == "cap" else f"{network}-{kind}", found[3] or "operators", -int(found[2])))
    return Trip(
        leg_id=leg,
        operator=operator,
        network=network,
        on=named.get("on", TUESDAY),
        fare=amounts["list_fare"],
        companions=amounts["companions"],
        persons=int(named.get("persons", 1)),
        metres=int(named["km"]) * 1000 if "km" in named else None,
        journey=named.get("journey", leg),
        off=tuple(off),
    )


def in_units(changes: dict[Pool, Shares]) -> dict[str, int]:
    """Who is given what, in whole units."""
    found: dict[str, int] = defaultdict(int)
    for (pool, agreement), shares in changes.items():
        for party, amount in settle(f"{pool}@{agreement}", EMPTY, shares)[1].items():
            found[party] += amount
    return {party: amount for party, amount in found.items() if amount}


@pytest.mark.parametrize("text", EXAMPLES, ids=[f"example {number}" for number in range(1, len(EXAMPLES) + 1)])
def test_the_examples_of_the_specification_are_what_the_close_and_the_auditor_do(tmp_path: Path, text: str) -> None:
    example = read(text)
    path = clearing_toml(tmp_path / "clearing.toml", an_agreement("example", example.agreement), *REST)
    agreements = load_agreements(path, TOWN)
    assert example.expected
    for through, expected in example.expected:
        changes = by_the_close(example.told, agreements, through)
        assert in_units(changes) == expected
        audited = by_the_auditor(example.told, path, through)
        assert {party: round(amount) for party, amount in audited.items()} == expected
        assert differences(audited, sums_of(changes), splits=len(changes)) == {}


def test_there_is_an_example_of_every_method() -> None:
    shown = {method for text in EXAMPLES for method in re.findall(r'method = "(\w+)"', text)}
    assert shown == set(get_args(Method))
