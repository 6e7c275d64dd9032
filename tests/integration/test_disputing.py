"""Disputes over a real store: what is kept, what is held and given, who gets it, also with several at once, and as a command."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clearing.audit import Difference
from clearing.disputes import commands, desk, store
from clearing.disputes.claims import Claim, Dispute
from clearing.tap_commands import verify_opened
from clearing.tracing import trace
from fare_engine.errors import DisputeError
from fare_engine.service_day import DAY_MS
from tests.disputing import NOW, THURSDAY, TUESDAY, WEDNESDAY, DisputingTown, disputing


def evidence(town: DisputingTown, dispute: Dispute) -> list[store.Evidence]:
    with town.database.read() as connection:
        return store.evidence_of(connection, dispute.dispute_id)


def amounts(town: DisputingTown, party: str, on: str, section: str) -> dict[str, int]:
    return {row["what"]: int(row["amount"]) for row in town.statement(party, on) if row["section"] == section}


# ---- what is kept


def test_the_signed_taps_of_a_disputed_row_are_kept_with_their_hashes_keys_and_clocks(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"))
    told = evidence(town, dispute)
    taps = {one.key: one.content for one in told if one.kind == "tap"}
    assert sorted(taps) == sorted(town.legs("BUSCO")[:1] + town.legs("BUSCO")[1:2])
    device = town._device("BUSCO")
    for content in taps.values():
        assert content["public_key"] == device.public_key.hex()
        assert len(content["message_sha256"]) == 64
        assert content["device_time"] > 0
        assert (content["clock_offset_ms"], content["clock_error_ms"]) == (0, None)
    (known,) = [one for one in told if one.kind == "device"]
    assert (known.key, known.content["missing"]) == ("dev-BUSCO", 0)
    (published,) = [one for one in told if one.kind == "statement"]
    assert published.content["agreement_version"] == "1"
    assert published.content["row"]["amount"] == "10000"
    with town.database.read() as connection:
        assert store.digest(told) == dispute.evidence_sha256 == store.evidence_digest(connection, dispute.dispute_id)


def test_the_tariff_version_of_disputed_legs_is_kept(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", 0, town.legs("BUSCO")[0])
    assert [(one.key, one.content) for one in evidence(town, dispute) if one.kind == "tariff"] == [("now", {"lines": 2})]


def test_evidence_stays_when_the_messages_are_gone(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"))
    before = evidence(town, dispute)
    town.change("delete from batches")
    assert evidence(town, dispute) == before
    late = town.dispute("RAIL", "COOP", town.line("COOP", "list_fare"))
    assert [one.content for one in evidence(town, late) if one.kind == "tap"] == [{"held": False}]


# ---- what is held, and given


def test_what_is_held_and_decided_stands_in_the_next_statements_and_is_followed_to_its_postings(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"), amount=7001)
    assert dispute.held_under == WEDNESDAY
    town.close(WEDNESDAY, despite="held")
    assert amounts(town, "BUSCO", WEDNESDAY, "disputes") == {"held": -7001}
    decided = town.decide(dispute, 3000)
    assert (decided.state, decided.decided_under) == ("partly", THURSDAY)
    town.close(THURSDAY)
    assert amounts(town, "BUSCO", THURSDAY, "disputes") == {"decided": 4001}
    assert amounts(town, "COOP", THURSDAY, "disputes") == {"decided": 3000}
    with town.database.read() as connection:
        line = next(int(row["line"]) for row in town.statement("COOP", THURSDAY) if row["section"] == "disputes")
        found = trace(connection, town.rules, THURSDAY, "COOP", line)
    assert [one.detail for one in found.found] == [f"DECIDED held:{dispute.dispute_id} → operator:COOP"]
    town.assert_sound()
    assert verify_opened(town.opened).findings == ()


def test_a_bearer_s_own_row_is_claimed_from_everybody_who_was_given_it(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    bus = [row for row in town.statement("CITY") if row["section"] == "borne"]
    disputes = [town.dispute("CITY", "CITY", int(row["line"])) for row in bus]
    assert sorted(dispute.amount for dispute in disputes) == [1000, 2000]
    for dispute in disputes:
        town.decide(dispute, None)
    assert town.balances() == {"operator:BUSCO": 1000, "operator:RAIL": 2000, "operator:CITY": -3000}
    town.assert_sound()


def test_a_dispute_is_seen_by_its_two_sides_and_nobody_else(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"))
    with town.database.read() as connection:
        seen = {party: store.list_disputes(connection, party) for party in ("COOP", "BUSCO", "RAIL", "CITY")}
    assert seen == {"COOP": [dispute], "BUSCO": [dispute], "RAIL": [], "CITY": []}


# ---- the auditor


def test_a_disagreement_of_the_auditor_holds_the_legs_concerned_once(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    first, second = town.legs("BUSCO")[0], town.legs("COOP")[0]
    differences = [Difference("ana", first, "charge", 4000, 5000), Difference("ben", second, "charge", 0, 5000)]

    def hold() -> list[Dispute]:
        return town.database.transact(lambda connection: desk.hold_legs(connection, town.rules, differences, NOW))

    opened = hold()
    assert [(one.claimant, one.party_id, one.amount, one.held_under) for one in opened] == [
        ("auditor", "BUSCO", 5000, WEDNESDAY),
        ("auditor", "COOP", 5000, WEDNESDAY),
    ]
    assert [one.content for one in evidence(town, opened[0]) if one.kind == "audit"] == [
        {"what": "charge", "audited": "4000", "booked": "5000"}
    ]
    assert hold() == []
    town.decide(opened[0], 0)
    differences.append(Difference("ben", town.legs("BUSCO")[1], "charge", 1, 5000))
    assert [one.amount for one in hold()] == [5000], "the leg that is new, and none that was decided"
    differences.append(Difference("ben", "a leg/of nobody/1", "charge", 1, None))
    assert hold() == []
    town.assert_sound()


# ---- several at once


def test_of_two_that_claim_the_same_row_at_once_together_no_more_is_held_than_it_gave(
    tmp_path: Path, empty_postgres: str
) -> None:
    town = disputing(tmp_path, url=empty_postgres)
    line, rules = town.line("BUSCO", "list_fare"), town.rules
    outcomes: list[str] = []

    def work(number: int) -> None:
        claim = Claim(claimant="COOP", accounting_date=TUESDAY, party_id="BUSCO", line=line, amount=3000, text=f"thread {number}")
        try:
            town.database.transact(lambda connection: desk.open_dispute(connection, rules, claim, NOW))
            outcomes.append("opened")
        except DisputeError as error:
            outcomes.append(error.cause)

    run([lambda number=number: work(number) for number in range(6)])  # type: ignore[misc]
    assert sorted(outcomes) == ["above_row"] * 3 + ["opened"] * 3
    town.assert_sound()
    (dispute, *_) = disputes_of(town)
    decided: list[str] = []

    def decide() -> None:
        try:
            town.decide(dispute, 1000)
            decided.append("done")
        except DisputeError as error:
            decided.append(error.cause)

    run([decide] * 4)
    assert sorted(decided) == ["decided"] * 3 + ["done"]
    town.assert_sound()
    town.database.dispose()


def disputes_of(town: DisputingTown) -> list[Dispute]:
    with town.database.read() as connection:
        return store.list_disputes(connection)


def run(works: list[object]) -> None:
    threads = [threading.Thread(target=work) for work in works]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- what was changed


@pytest.mark.parametrize(
    "change",
    [
        "update disputes set claimant = 'RAIL'",
        "update dispute_items set granted = 1",
        "update dispute_evidence set content = '{}'",
        "delete from dispute_evidence where number = 1",
        "delete from dispute_items where number = 0",
        "delete from disputes",
        "delete from postings where code = 'HELD'",
        "update postings set amount = amount + 1 where code = 'HELD'",
    ],
)
def test_a_dispute_that_was_changed_or_taken_out_is_named(tmp_path: Path, change: str) -> None:
    town = disputing(tmp_path)
    town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"))
    assert verify_opened(town.opened).findings == ()
    town.change(change)
    assert verify_opened(town.opened).findings != ()


# ---- as a command


def test_a_dispute_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    town = disputing(tmp_path)
    monkeypatch.setattr(commands, "open_store", lambda _: town.opened)
    line = town.line("BUSCO", "list_fare")

    def command(*arguments: object, code: int = 0) -> str:
        done = CliRunner().invoke(commands.app, ["dispute", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return done.output

    opened = command("open", f"{TUESDAY}/BUSCO", "--line", line, "--amount", 4000, "--by", "COOP", "--text", "they were ours")
    name = opened.split()[0]
    assert opened == f"{name} COOP 4.000 ₫ of {TUESDAY}/BUSCO line {line}: open, held under {WEDNESDAY}\n"
    with monkeypatch.context() as later:
        begun = commands.now()
        later.setattr(commands, "now", lambda: begun + 31 * DAY_MS)
        assert "open, held for 31 days, TOO LONG" in command("list")
    assert command("list", "--party", "RAIL") == "0 disputes, 0 ₫ held\n"
    assert command("list", "--state", "open").endswith("1 disputes, 4.000 ₫ held\n")
    assert "they were ours" in command("show", name)
    told = json.loads(command("show", name, "--json"))
    assert (told["amount"], told["items"][0]["party_id"]) == (4000, "BUSCO")
    command("decide", name, "--reason", "r", "--by", "lan", code=2)
    assert "1.000 ₫ to COOP" in command("decide", name, "--grant", 1000, "--reason", "a quarter was", "--by", "lan")
    assert f"by lan, booked under {WEDNESDAY}: a quarter was" in command("show", name)
    assert command("list").endswith("1 disputes, 0 ₫ held\n")
    assert isinstance(CliRunner().invoke(commands.app, ["dispute", "show", "none"]).exception, Exception)
    town.assert_sound()
