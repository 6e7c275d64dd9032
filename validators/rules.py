"""The rules by which a terminal decides: those that act now, those that will, and those before them.

Decides which rules act at a time, and whether new ones may be taken. Rules change by the clock and need no contact: they
never act before their time, however early they came. What they say is fare_engine.publications.TerminalRules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cbor2

from fare_engine.cose import read_cbor, uint
from fare_engine.errors import MottheError
from fare_engine.publications import Publication, TerminalRules, read_rules, write_rules

DAY_MS: Final = 24 * 3600 * 1000
"""Rules that should have acted since longer than this are asked about, and a day's changes are taken together."""
PERSONS: Final = 2
_STEADY_MS: Final = 1000
"""Windows below this count as this when they are compared."""
_NEVER_MS: Final = 366 * 24 * 3600 * 1000


class RulesError(MottheError):
    """Rules that are not taken; the terminal keeps those it has. `cause` is a word of docs/terminal-protocol.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRules:
    """Rules and from when on they act, milliseconds UTC."""

    serial: int
    activates_at: int
    rules: TerminalRules


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All that a terminal holds, in the order in which it came: at most those before, those in force and those to come."""

    built_in: TerminalRules
    """What acts before the first of them does."""
    held: tuple[TimedRules, ...] = ()

    @property
    def newest_serial(self) -> int:
        """Serial of what came last; 0: nothing did."""
        return max((timed.serial for timed in self.held), default=0)

    def find_at(self, now: int) -> TimedRules | None:
        """Those that act at `now`, corrected time: the newest of those whose time has come."""
        return max((timed for timed in self.held if timed.activates_at <= now), key=lambda timed: timed.serial, default=None)

    def at(self, now: int) -> TerminalRules:
        """What acts at `now`, corrected time."""
        found = self.find_at(now)
        return found.rules if found else self.built_in

    def with_publication(self, publication: Publication, now: int) -> RuleBook:
        """The book with new rules. Those not yet in force are given up for them: there is one next at a time, and so a
        date that was set wrongly can be put off. Raises RulesError with the cause not_newer or needs_persons."""
        rules, activates_at = publication.content, publication.activates_at
        assert isinstance(rules, TerminalRules)
        assert activates_at is not None
        if publication.serial <= self.newest_serial:
            raise RulesError("not_newer", f"rules {publication.serial} do not follow rules {self.newest_serial}")
        if len(publication.persons) < PERSONS:
            for since in (now, now - DAY_MS):  # many small steps in a day are a large one
                check_change(self.at(since), rules, activates_at, now)
        new = TimedRules(serial=publication.serial, activates_at=activates_at, rules=rules)
        begun = sorted((timed for timed in self.held if timed.activates_at <= now), key=lambda timed: timed.serial)
        keep = 2 if activates_at > now else 1
        return replace(self, held=(*begun[-keep:], new))


# ---- the guard


def check_change(held: TerminalRules, new: TerminalRules, activates_at: int, now: int) -> None:
    """Raise RulesError for a change that needs persons: much at once, or long ago."""
    jumps = [name for name in _WINDOWS if _jumps(getattr(held, name), getattr(new, name))]
    jumps += [name for name in _MEDIA if _swaps(getattr(held, name), getattr(new, name))]
    if _jumps(held.most_persons * _STEADY_MS, new.most_persons * _STEADY_MS):
        jumps.append("most_persons")
    if activates_at < now - DAY_MS:
        jumps.append("activates_at")
    if jumps:
        raise RulesError("needs_persons", f"too much at once in {', '.join(jumps)}")


def _jumps(held: int | None, new: int | None) -> bool:
    """Whether a window becomes more than twice or less than half as long."""
    lengths = [max(_STEADY_MS, _NEVER_MS if value is None else value) for value in (held, new)]
    return max(lengths) > 2 * min(lengths)


def _swaps(held: tuple[str, ...] | None, new: tuple[str, ...] | None) -> bool:
    """Whether a list of media loses half of itself or more than doubles; "all" is no list."""
    if held is None or new is None:
        return held != new
    lost, gained = set(held) - set(new), set(new) - set(held)
    return (bool(lost) and 2 * len(lost) >= len(held)) or len(gained) > len(held) > 0


_WINDOWS: Final = ("double_tap_ms", "pass_back_ms", "stale_list_ms", "last_known_ms", "card_clash_ms")
_MEDIA: Final = ("media_offline", "media_when_stale")


# ---- as a file


def write_book(book: RuleBook) -> bytes:
    """What a terminal keeps of the book over a boot."""
    return cbor2.dumps([[timed.serial, timed.activates_at, write_rules(timed.rules)] for timed in book.held])


def read_book(data: bytes, built_in: TerminalRules) -> RuleBook:
    """The book that `write_book` wrote; raises RulesError for other bytes."""
    try:
        held = read_cbor(data, 4)
        if not isinstance(held, list):
            raise ValueError("not a list")
        return RuleBook(built_in, tuple(_read_timed(item) for item in held))
    except ValueError as fault:
        raise RulesError("bad_content", str(fault)) from None


def _read_timed(item: object) -> TimedRules:
    match item:
        case [serial, activates_at, rules]:
            return TimedRules(serial=uint(1)(serial), activates_at=uint()(activates_at), rules=read_rules(rules))
    raise ValueError("not [serial, activates_at, rules]")
