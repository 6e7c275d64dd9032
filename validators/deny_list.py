"""A terminal's own copy of the deny list: which tokens are refused when the server cannot be asked.

First form: a snapshot that is replaced whole. Tokens are cut to 8 bytes and sorted, so that a list of a million takes
8 MB and a look-up takes microseconds; one token in 10^13 would be refused for another's sake with such a list. What is
in a list is the server's decision; only whether a new one may replace the old one is checked here."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from fare_engine.errors import MottheError

CUT_BYTES = 8


class DenyListError(MottheError):
    """A deny list that is not taken; the terminal keeps the one it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyList:
    """One version of the list."""

    version: int
    made_at: int
    """When the server made it, milliseconds UTC."""
    tokens: array[int]
    """Tokens cut to 8 bytes, read as big-endian numbers, ascending."""

    def __contains__(self, token: bytes) -> bool:
        """Whether the list names this terminal token."""
        wanted = int.from_bytes(token[:CUT_BYTES], "big")
        at = bisect_left(self.tokens, wanted)
        return at < len(self.tokens) and self.tokens[at] == wanted

    def __len__(self) -> int:
        return len(self.tokens)

    def age_ms(self, at: int) -> int:
        """How old the list is at `at`, milliseconds UTC."""
        return at - self.made_at


EMPTY = DenyList(version=0, made_at=0, tokens=array("Q"))
"""What a terminal holds before it was given a list: it refuses nobody."""


def deny_list_of(version: int, made_at: int, tokens: Iterable[bytes]) -> DenyList:
    """The list of these terminal tokens, in any order, whole or cut."""
    cut = sorted({int.from_bytes(token[:CUT_BYTES], "big") for token in tokens})
    return DenyList(version=version, made_at=made_at, tokens=array("Q", cut))


def read_snapshot(version: int, made_at: int, data: bytes) -> DenyList:
    """The list from the bytes of a snapshot: cut tokens one after the other, ascending, none twice."""
    if len(data) % CUT_BYTES:
        raise DenyListError(f"{len(data)} bytes are no whole number of tokens of {CUT_BYTES}")
    tokens = array("Q", data)
    if sys.byteorder == "little":
        tokens.byteswap()
    if any(tokens[at] >= tokens[at + 1] for at in range(len(tokens) - 1)):
        raise DenyListError(f"the tokens of version {version} are not ascending")
    return DenyList(version=version, made_at=made_at, tokens=tokens)


def write_snapshot(deny_list: DenyList) -> bytes:
    """The bytes that `read_snapshot` takes."""
    tokens = deny_list.tokens[:]
    if sys.byteorder == "little":
        tokens.byteswap()
    return tokens.tobytes()


def check_replacement(held: DenyList, new: DenyList, most_added: int) -> None:
    """Raise DenyListError unless `new` is later than `held` and adds at most `most_added` tokens.

    A bad overnight list once blocked some 60,000 cards of a city: a jump is asked about, not obeyed."""
    if new.version <= held.version:
        raise DenyListError(f"version {new.version} does not follow version {held.version}")
    added = len(set(new.tokens) - set(held.tokens))
    if added > most_added:
        raise DenyListError(f"version {new.version} adds {added} tokens, at most {most_added} at once")
