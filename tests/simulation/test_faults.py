"""The simulated world in which everything goes wrong: that no acknowledged tap is lost, doubled or mispriced, that a run can
be had again, and that the checks see what they are there to see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from simulators import faults
from simulators.faults import FailedRunError, Rates, Totals, run_world, run_worlds
from simulators.proof import FORGETFUL
from simulators.world import Service, World
from tests.builders import ROOT
from validators.outbox import Outbox
from validators.terminal import Terminal

SEED = os.environ.get("MOTTHE_SEED", "1")
QUIET = Rates(**dict.fromkeys(Rates.__slots__, 0))


def simulated(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "motthe", "simulate", "faults", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.long(170)
@pytest.mark.timeout(600)
def test_fifty_thousand_taps_survive_whatever_goes_wrong() -> None:
    totals = Totals()
    for run in run_worlds(SEED, 50_000, processes=2):
        totals.add(run)
    proof = totals.proof
    assert proof.held + sum(missing.taps for missing in proof.missing) == proof.written >= 50_000
    assert proof.acknowledged >= proof.held - proof.never_acknowledged
    everything = {name for name, count in totals.injected.items() if count}
    assert {
        "databases restored",
        "disks rolled back",
        "disks dead",
        "rows damaged",
        "processes killed",
        "keys changed",
    } <= everything
    assert proof.legs > 20_000
    assert proof.alarms["rolled_back"] > 0


@pytest.mark.prove
@pytest.mark.timeout(7200)
def test_a_million_taps_survive_whatever_goes_wrong(record_property: Callable[[str, object], None]) -> None:
    totals = Totals()
    for run in run_worlds(f"{SEED}/prove", 1_000_000, processes=2):
        totals.add(run)
    record_property("taps", totals.proof.written)
    record_property("acknowledged", totals.proof.acknowledged)
    record_property("lost", 0)
    record_property("doubled", 0)
    record_property("mispriced", 0)
    record_property("never_acknowledged", totals.proof.never_acknowledged)
    record_property("injected", dict(sorted(totals.injected.items())))
    assert totals.proof.written >= 1_000_000


def test_the_same_seed_is_the_same_run_whatever_the_order_of_sets() -> None:
    runs = [simulated("--seed", "5", "--taps", "800", hash_seed=hash_seed) for hash_seed in ("1", "2")]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    assert re.search(r"^FAULTS seed 5: \d+ taps, \d+ acknowledged, 0 lost, 0 doubled, 0 mispriced, \d+ never", runs[0].stdout)
    other = simulated("--seed", "6", "--taps", "800")
    assert runs[0].stdout.splitlines()[0] != other.stdout.splitlines()[0]


def test_a_run_that_is_stopped_at_a_step_shows_what_led_there() -> None:
    stopped = simulated("--seed", "5", "--taps", "800", "--until", "900")
    assert stopped.returncode == 1
    assert "seed 5, step 901: stopped at step 900, as asked for" in stopped.stderr
    assert len(stopped.stderr.splitlines()) > 20


def test_a_world_in_which_nothing_goes_wrong_loses_nothing_and_raises_no_alarm() -> None:
    run = run_world("quiet", 500, QUIET)
    assert run.proof.written == run.proof.acknowledged == run.proof.held
    assert run.proof.missing == []
    assert not FORGETFUL & run.proof.alarms.keys()
    assert {name for name, count in run.injected.items() if count} <= {"gates that did not open"}


# ---- the checks see what they are there to see


def test_a_service_that_forgets_a_message_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at_settling(
        monkeypatch, "delete from batches where batch_id = (select min(batch_id) from batches where last_sequence > 0)"
    )
    with pytest.raises(FailedRunError, match=r"step \d+: .* acknowledged, \d+ held"):
        run_world("forgets", 400, QUIET)


def test_a_line_that_is_booked_twice_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (
        "transaction_id, line_id, generation, booked_for, traveller_id, payer, leg_id, kind, rule_id, cause, version_id, amount,"
        " bearer, funded, operator_id, network_id, service_date, accounting_date, revision, row_hash"
    )
    breaks_at_settling(monkeypatch, f"insert into lines ({columns}) select {columns} from lines where amount > 0 limit 1")
    with pytest.raises(FailedRunError, match=r"stands twice|mispriced"):
        run_world("twice", 400, QUIET)


def test_money_that_no_line_explains_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at_settling(
        monkeypatch, "update accounts set balance = balance + 1 where account_id = (select min(account_id) from accounts)"
    )
    with pytest.raises(FailedRunError, match=r"the balance of R\d+ is"):
        run_world("money", 400, QUIET)


def test_a_price_that_the_auditor_does_not_find_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one = "(select min(row_number) from lines where kind = 'list_fare' and amount > 0)"
    breaks_at_settling(monkeypatch, f"update lines set amount = amount + 1000 where row_number = {one}")
    with pytest.raises(FailedRunError, match=r"legs are mispriced"):
        run_world("price", 400, QUIET)


def test_a_terminal_that_leaves_its_backlog_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends the live epoch only, and does not heed what the server misses."""
    monkeypatch.setattr(Outbox, "list_pending", lambda self: [self.live] if self.live.pending else [])
    monkeypatch.setattr(Terminal, "_resend_missing", lambda self, wanted: None)
    with pytest.raises(FailedRunError, match="no fault explains it"):
        run_world("leaves", 400, replace(QUIET, power_cuts=2000, splits=1500))


def breaks_at_settling(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Somebody changes the database behind everybody's back, after the last tap."""

    def settle(self: World) -> None:
        real(self)
        broken(self.service, statement)

    real = World.settle
    monkeypatch.setattr(World, "settle", settle)


def broken(service: Service, statement: str) -> None:
    with service.any.database.write() as connection:
        assert connection.execute(text(statement)).rowcount == 1


def test_the_worlds_of_a_run_add_up_to_its_taps_and_can_each_be_had_again_alone() -> None:
    worlds = list(faults.worlds_of("3", 25_000))
    assert worlds == [("3", 10_000), ("3.1", 10_000), ("3.2", 5_000)]


def test_files_of_a_world_are_gone_when_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults, "MEMORY", tmp_path)
    run_world("files", 200, QUIET)
    assert list(tmp_path.iterdir()) == []
