"""Mutants of the engine: small changes of its source that tests ought to notice. mutmut makes them, `tests.mutant_plugin` runs
the tests against them.

A mutant is one function with one change, as mutmut's own operators make it, so its name and its difference tell all of it."""

from __future__ import annotations

import difflib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import libcst
import msgspec
from mutmut.mutation.file_mutation import Mutation, create_mutations, deep_replace

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).parent / "equivalent_mutants.txt"
TESTS = (
    "tests/unit/test_money.py",
    "tests/unit/test_pricing_edges.py",
    "tests/unit/test_pricing.py",
    "tests/unit/test_new_rules.py",
    "tests/unit/test_gtfs_transfers.py",
    "tests/unit/test_cases.py",
)
"""The tests that ought to kill: those that say what rides cost."""


class Mutant(msgspec.Struct, frozen=True):
    """A function of a module, by its qualified name, with a change; `change` is the difference, line by line."""

    module: str
    function: str
    change: tuple[str, ...]
    source: str

    def text(self) -> str:
        """As it stands in the file of equivalent mutants."""
        return "\n".join([f"{self.module} {self.function}", *self.change])


class Verdict(msgspec.Struct, frozen=True):
    """What became of a mutant: `killer` is the test that failed under it, or did not come to an end; None: it survived."""

    mutant: Mutant
    killer: str | None
    seconds: float


def mutants_of(path: str) -> list[Mutant]:
    """Every mutant of a module of the engine (`fare_engine/money.py`), in the order of its lines."""
    module, mutations, _, _ = create_mutations(path, (ROOT / path).read_text(encoding="utf-8"))
    owners = _owners(module)
    made = (
        _mutant(_name(path), owners, mutation) for mutation in mutations if mutation.contained_by_top_level_function is not None
    )
    return [mutant for mutant in made if mutant is not None]


def sample(path: str, size: int, seed: int) -> list[Mutant]:
    """Some mutants of a module, without those that are known to be no change at all."""
    candidates = {mutant.text(): mutant for mutant in mutants_of(path)}
    for text in equivalent():
        if text.startswith(f"{_name(path)} "):
            assert candidates.pop(text, None) is not None, f"no longer a mutant: {text}"
    return random.Random(f"{seed} {path}").sample([*candidates.values()], min(size, len(candidates)))


def equivalent() -> dict[str, str]:
    """The mutants that no test can tell from the engine, each with the reason why."""
    found: dict[str, str] = {}
    for block in EQUIVALENT.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            *mutant, because = lines
            assert because.startswith("because "), f"no reason is given for {mutant}"
            found["\n".join(mutant)] = because.removeprefix("because ")
    return found


class Trial:
    """Tests that run against mutants of some modules: in a process of its own, which collects them once and is forked for each
    mutant. First they run without one, and it is noted which functions each calls: only those tests can kill."""

    def __init__(self, folder: Path, modules: tuple[str, ...], tests: tuple[str, ...] = TESTS, patience: float = 10) -> None:
        self.folder = folder
        self.modules = modules
        self.tests = tests
        self.patience = patience
        """Seconds; a test takes a small part of one. Under a mutant that takes longer, it will never end."""
        self.callers = folder / "callers.json"

    def run(self, mutants: list[Mutant]) -> list[Verdict]:
        """Run the tests against each mutant."""
        verdicts = self.folder / "verdicts.json"
        task = {
            "watch": [] if self.callers.exists() else [str(ROOT / path) for path in self.modules],
            "callers": str(self.callers),
            "mutants": msgspec.to_builtins(mutants),
            "verdicts": str(verdicts),
            "patience": self.patience,
        }
        self._run(task)
        return msgspec.json.decode(verdicts.read_bytes(), type=list[Verdict])

    def _run(self, task: dict[str, object]) -> None:
        path = self.folder / "task.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        command = [
            sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "tests.mutant_plugin",
            "--mutants", str(path), *self.tests,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _owners(module: libcst.Module) -> dict[libcst.FunctionDef, str]:
    """The functions and methods of a module, with the class of each (empty: none)."""
    found: dict[libcst.FunctionDef, str] = {}
    for statement in module.body:
        if isinstance(statement, libcst.FunctionDef):
            found[statement] = ""
        elif isinstance(statement, libcst.ClassDef):
            found |= {method: statement.name.value for method in statement.body.body if isinstance(method, libcst.FunctionDef)}
    return found


def _mutant(module: str, owners: dict[libcst.FunctionDef, str], mutation: Mutation) -> Mutant | None:
    """A mutation as a function's new source; None where it is no function's, or no Python."""
    before = mutation.contained_by_top_level_function
    if not isinstance(before, libcst.FunctionDef):
        return None
    after = deep_replace(before, mutation.original_node, mutation.mutated_node)
    assert isinstance(after, libcst.FunctionDef)
    owner = owners[before]
    old, new = _source(before, owner), _source(after, owner)
    try:
        compile(new, module, "exec")
    except SyntaxError:
        return None
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    change = tuple(f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "-+" and line[:3] not in ("---", "+++"))
    return Mutant(module, f"{owner}.{before.name.value}" if owner else before.name.value, change, new) if change else None


def _source(function: libcst.FunctionDef, owner: str) -> str:
    statement: libcst.BaseCompoundStatement = function
    if owner:
        statement = libcst.ClassDef(name=libcst.Name(owner), body=libcst.IndentedBlock(body=[function]))
    return libcst.Module(body=[statement]).code
