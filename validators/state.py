"""What a terminal keeps over a boot beside its outbox: the deny list, the rules, what it knows of its clock.

Decides how a file is replaced so that a crash at any moment leaves the old or the new one, and what is taken when a file
is damaged: the one before it, or nothing. Each file begins with a digest of the rest, so that any changed bit is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import cbor2

from fare_engine.cose import LARGEST, read_cbor, uint
from fare_engine.errors import MottheError
from fare_engine.publications import TerminalRules
from validators.clock import ClockEstimate
from validators.deny_list import EMPTY, DenyList, read_list, write_list
from validators.rules import RuleBook, read_book, write_book

DENY_LIST: Final = "deny-list"
RULES: Final = "rules"
CLOCK: Final = "clock"
BEFORE: Final = ".before"
"""What the name of the file before ends with."""

_DIGEST_BYTES: Final = 32
_Value = TypeVar("_Value")


class StateError(MottheError):
    """The state cannot be stored: a full disk, no such folder."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at boot. Damage never keeps a terminal from booting."""

    deny_list: DenyList
    rules: RuleBook
    clock: ClockEstimate | None
    damaged: tuple[str, ...]
    """Names of the files that were damaged; what was taken instead is the one before or nothing."""


class StateFolder:
    """The folder of one terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rules: RuleBook | None = None
        self._clock: ClockEstimate | None = None
        self._deny_list = EMPTY
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, built_in: TerminalRules) -> Loaded:
        """What was kept, or as much of it as is intact."""
        damaged: list[str] = []
        deny_list = self._read(DENY_LIST, read_list, damaged)
        self._deny_list = EMPTY if deny_list is None else deny_list
        self._rules = self._read(RULES, lambda data: read_book(data, built_in), damaged) or RuleBook(built_in)
        self._clock = self._read(CLOCK, _read_clock, damaged)
        return Loaded(self._deny_list, self._rules, self._clock, tuple(damaged))

    def keep(self, deny_list: DenyList, rules: RuleBook, clock: ClockEstimate | None) -> None:
        """Store what has changed since; raises StateError. Call it after each contact."""
        if deny_list.version != self._deny_list.version:
            self._write(DENY_LIST, write_list(deny_list))
            self._deny_list = deny_list
        if self._rules is None or rules.held != self._rules.held:
            self._write(RULES, write_book(rules))
            self._rules = rules
        if clock is not None and clock != self._clock:
            self._write(CLOCK, cbor2.dumps([clock.offset_ms, clock.error_ms, clock.learnt_at]))
            self._clock = clock

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_file(self.folder / name, data)
        except OSError as fault:
            raise StateError(f"{self.folder / name}: {fault}") from fault

    def _read(self, name: str, read: Callable[[bytes], _Value], damaged: list[str]) -> _Value | None:
        """The file, or the one before it if the file is damaged or missing; None: neither is there."""
        for path in (self.folder / name, self.folder / (name + BEFORE)):
            if not path.exists():
                continue
            try:
                return read(read_file(path))
            except (MottheError, OSError):
                damaged.append(path.name)
        return None


def write_file(path: Path, data: bytes) -> None:
    """Put `data` where `path` was, and that where the one before was. After a crash `path` or the one before is whole."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(sha256(data).digest())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + BEFORE))
    new.replace(path)
    _force_folder(path.parent)


def read_file(path: Path) -> bytes:
    """What was put there; raises StateError if it is not that any more."""
    with path.open("rb") as file:
        expected, data = file.read(_DIGEST_BYTES), file.read()
    if sha256(data).digest() != expected:
        raise StateError(f"{path} is damaged")
    return data


def _force_folder(folder: Path) -> None:
    """A file's new name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_clock(data: bytes) -> ClockEstimate:
    try:
        match read_cbor(data):
            case [offset, error, learnt_at]:
                return ClockEstimate(offset_ms=uint(-LARGEST)(offset), error_ms=uint()(error), learnt_at=uint()(learnt_at))
    except ValueError as fault:
        raise StateError(str(fault)) from None
    raise StateError("not [offset, error, learnt at]")
