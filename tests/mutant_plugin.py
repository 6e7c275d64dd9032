"""Runs tests against mutants: a plugin of the pytest that `tests.mutants` starts, by a task that it reads from a file.

The tests are collected once, and everything is imported. For each mutant a child is forked, which puts the mutant's code into
the function, runs the tests that call it, and ends at the first that fails."""

from __future__ import annotations
import __future__

import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

IN_MEMORY = "/dev/shm"
"""The tests write many little cities; here that costs nothing."""
NOT_INSTALLED = 3
"""How a child ends that could not begin."""
ROOT = Path(__file__).resolve().parent.parent
MEMORY = 4 << 30
"""What a mutant that never stops collecting may have."""

settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutants")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutants", type=Path, required=True, help="the task")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Instead of running the tests, do the task."""
    if session.testsfailed:
        raise session.Failed(f"{session.testsfailed} tests cannot be collected")
    task = json.loads(session.config.getoption("--mutants").read_text(encoding="utf-8"))
    callers = Path(task["callers"])
    with TemporaryDirectory(prefix="mutants-", dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as scratch:
        work = Work(session.items, Path(scratch), task["patience"])
        if task["watch"]:
            work.watch(set(task["watch"]), callers)
        known = json.loads(callers.read_text(encoding="utf-8"))
        verdicts = [work.try_out(mutant, known) for mutant in task["mutants"]]
        Path(task["verdicts"]).write_text(json.dumps(verdicts), encoding="utf-8")
    return True


class Work:
    """The tests, a folder for what they write, and for how many seconds one may tell nothing."""

    def __init__(self, items: list[pytest.Item], scratch: Path, patience: float) -> None:
        self.patience = patience
        self.items = {item.nodeid: item for item in items}
        self.scratch = scratch / "child"
        self.kills: Counter[str] = Counter()
        """How many mutants each test has killed."""
        gc.collect()
        gc.freeze()

    def watch(self, files: set[str], callers: Path) -> None:
        """Run every test; note its time, and the functions of these files that it calls."""
        found: dict[str, tuple[float, list[str]]] = {}
        with self._forked() as child:
            if child.is_it:
                for name, item, following in self._in_turn(list(self.items)):
                    called: set[CodeType] = set()
                    began = time.perf_counter()
                    child.say(name)
                    with _calls_of(files, called):
                        if _fails(item, following):
                            child.leave(1)
                    found[name] = time.perf_counter() - began, sorted({_name(code) for code in called})
                callers.write_text(json.dumps(found), encoding="utf-8")
                child.leave(0)
            status, failed = child.wait(60)
        if status != 0:
            raise pytest.UsageError(f"without any mutant a test fails: {failed}")

    def try_out(self, mutant: dict[str, Any], known: dict[str, tuple[float, list[str]]]) -> dict[str, Any]:
        """Run the tests against a mutant; a test that fails, or tells nothing for long, kills it."""
        began = time.perf_counter()
        with self._forked() as child:
            if child.is_it:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                try:
                    _install(mutant)
                except Exception:
                    child.leave(NOT_INSTALLED)
                for name, item, following in self._in_turn(self._callers(mutant, known)):
                    child.say(name)
                    if _fails(item, following):
                        child.leave(1)
                child.leave(0)
            status, last = child.wait(self.patience)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == NOT_INSTALLED:
            raise pytest.UsageError(f"cannot be put into the engine: {mutant['function']}\n{mutant['source']}")
        if status != 0:
            self.kills[last] += 1
        return {"mutant": mutant, "killer": last if status != 0 else None, "seconds": round(time.perf_counter() - began, 3)}

    def _callers(self, mutant: dict[str, Any], known: dict[str, tuple[float, list[str]]]) -> list[str]:
        """The tests that may kill a mutant; those first that have killed many, and the quick ones."""
        name = f"{mutant['module']}:{mutant['function']}"
        return sorted(
            (test for test in self.items if name in known[test][1]), key=lambda test: known[test][0] / (1 + 10 * self.kills[test])
        )

    def _in_turn(self, names: list[str]) -> Iterator[tuple[str, pytest.Item, pytest.Item | None]]:
        """Tests, each with the one after it."""
        items = [self.items[name] for name in names]
        return zip(names, items, [*items[1:], None], strict=True)

    @contextmanager
    def _forked(self) -> Iterator[Child]:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        child = Child(self.scratch)
        try:
            yield child
        except BaseException:
            child.leave(1)
            raise


class Child:
    """A forked process that tells, by its name, which test it runs."""

    def __init__(self, scratch: Path) -> None:
        self._news, tell = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        self.is_it = self.pid == 0
        if self.is_it:
            os.close(self._news)
            self._tell = tell
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(scratch)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
        else:
            os.close(tell)

    def say(self, name: str) -> None:
        os.write(self._tell, name.encode() + b"\n")

    def leave(self, status: int) -> None:
        """End the child, without any of what pytest does at its end."""
        if self.is_it:
            os._exit(status)

    def wait(self, patience: float) -> tuple[int, str]:
        """How it ended, and what it said last. Who says nothing for too long is ended."""
        said = b""
        while select.select([self._news], [], [], patience)[0]:
            news = os.read(self._news, 65_536)
            if not news:
                break
            said = (said + news)[-65_536:]
        else:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._news)
        _, status = os.waitpid(self.pid, 0)
        return status, said.decode().rstrip("\n").rpartition("\n")[2]


def _install(mutant: dict[str, Any]) -> None:
    """Put the mutant's code into the function: every module that imported it, and every class that holds it, has it then."""
    module = importlib.import_module(mutant["module"])
    assert module.__file__ is not None
    code = compile(mutant["source"], module.__file__, "exec", flags=__future__.annotations.compiler_flag)
    names = dict(vars(module))
    exec(code, names)
    old, new = _function(vars(module), mutant["function"]), _function(names, mutant["function"])
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _function(names: dict[str, Any], qualified: str) -> FunctionType:
    owner, _, name = qualified.rpartition(".")
    found = vars(names[owner])[name] if owner else names[name]
    found = getattr(found, "__func__", found)
    assert isinstance(found, FunctionType), qualified
    return found


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


@contextmanager
def _calls_of(files: set[str], called: set[CodeType]) -> Iterator[None]:
    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename in files:
            called.add(frame.f_code)

    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(None)


def _name(code: CodeType) -> str:
    parts = Path(code.co_filename).relative_to(ROOT).with_suffix("").parts
    return f"{'.'.join(parts)}:{code.co_qualname.partition('.<locals>')[0]}"
