"""A terminal's own copy of the deny list: which tokens are refused when the server cannot be asked.

Tokens are cut to 8 bytes and sorted, so that five million take 40 MB and a look-up takes microseconds; one token in 10^12
would be refused for another's sake with such a list. What is in a list is the city's decision; only whether a new one may
take the place of the old one is decided here."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from operator import lt
from typing import Final

from fare_engine.errors import MottheError
from fare_engine.publications import CUT_BYTES, Delta, Publication, Snapshot, join_cut

_BLOCK: Final = 1 << 16
_FILE_HEADER: Final = 8 + 8


class DenyListError(MottheError):
    """A deny list that is not taken; the terminal keeps the one it has. `cause` is a word of docs/terminal-protocol.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


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


EMPTY: Final = DenyList(version=0, made_at=0, tokens=array("Q"))
"""What a terminal holds before it was given a list: it refuses nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a list may change at once on the word of the service alone.

    A bad overnight list once blocked some 60,000 cards of a city: a jump is asked about, not obeyed."""

    most_added: int = 20_000
    floor: int = 1_000
    """Changes of up to so many tokens are always small."""
    most_growth_percent: int = 20
    most_removed_percent: int = 50
    persons: int = 2
    """So many different persons must have signed for a change beyond these limits."""


def deny_list_of(version: int, made_at: int, tokens: Iterable[bytes]) -> DenyList:
    """The list of these terminal tokens, in any order, whole or cut."""
    return DenyList(version=version, made_at=made_at, tokens=_numbers(join_cut(tokens)))


def write_snapshot(deny_list: DenyList) -> bytes:
    """The tokens as they stand in a snapshot."""
    return _swapped(deny_list.tokens).tobytes()


def check_change(
    held: DenyList, new: DenyList, persons: int, limits: Limits, recently_added: int = 0, added: int | None = None
) -> int:
    """How many tokens the new list adds on the word of the service alone: 0 if enough persons signed it.

    Raises DenyListError with the cause not_newer, or needs_persons for a step that is too large; what was added like that
    lately counts with it, for many small steps are a large one. A change knows what it adds; of a snapshot it is counted."""
    if new.version <= held.version:
        raise DenyListError("not_newer", f"version {new.version} does not follow version {held.version}")
    if persons >= limits.persons:
        return 0
    added = count_added(held.tokens, new.tokens) if added is None else added
    removed = len(held) + added - len(new)
    most = min(limits.most_added, max(limits.floor, len(held) * limits.most_growth_percent // 100))
    if added and added + recently_added > most:
        said = f"version {new.version} adds {added} tokens to {len(held)}, after {recently_added} lately: at most {most}"
        raise DenyListError("needs_persons", said)
    if removed > max(limits.floor, len(held) * limits.most_removed_percent // 100):
        raise DenyListError("needs_persons", f"version {new.version} removes {removed} of {len(held)} tokens")
    return added


def applied(held: DenyList, publication: Publication) -> DenyList:
    """The list that a publication makes of the held one.

    Raises DenyListError with one of the causes not_newer, unknown_base and wrong_base (a snapshot helps against both),
    not_ascending. Whether it may take the held one's place is `check_change`'s to say."""
    content = publication.content
    if publication.serial <= held.version:
        raise DenyListError("not_newer", f"version {publication.serial} does not follow version {held.version}")
    if isinstance(content, Snapshot):
        tokens = _numbers(content.tokens)
    elif isinstance(content, Delta) and publication.base == held.version:
        tokens = _changed(held.tokens, _numbers(content.added), _numbers(content.removed))
    else:
        raise DenyListError("unknown_base", f"a change of version {publication.base}, version {held.version} is held")
    return DenyList(version=publication.serial, made_at=publication.made_at, tokens=tokens)


# ---- sorted arrays of tokens


def _numbers(data: bytes | memoryview) -> array[int]:
    """The tokens in the bytes of a snapshot; raises DenyListError where they do not ascend. Takes no byte too many: an
    array that grew would have room to spare."""
    tokens = array("Q", bytes(CUT_BYTES)) * (len(data) // CUT_BYTES)
    memoryview(tokens).cast("B")[:] = data
    if sys.byteorder == "little":
        tokens.byteswap()
    if not all(map(lt, tokens, islice(tokens, 1, None))):
        raise DenyListError("not_ascending", f"{len(tokens)} tokens that do not ascend, or one of them twice")
    return tokens


def _swapped(tokens: array[int]) -> array[int]:
    """A copy in the order of bytes in which tokens stand in a snapshot."""
    copy = tokens[:]
    if sys.byteorder == "little":
        copy.byteswap()
    return copy


def count_added(held: array[int], new: array[int]) -> int:
    """How many tokens of `new` are not in `held`: by blocks, since a set of all would take ten times the list."""
    added = 0
    for start in range(0, len(new), _BLOCK):
        block = new[start : start + _BLOCK]
        part = held[bisect_left(held, block[0]) : bisect_right(held, block[-1])]
        if part != block:
            added += len(block) - len(set(block).intersection(part))
    return added


def _changed(held: array[int], added: array[int], removed: array[int]) -> array[int]:
    """`held` with and without these tokens, as one copy; raises DenyListError if it is not the list that the change is of.

    What lies between two changes is copied at once."""
    size = len(held) + len(added) - len(removed)
    if size < 0:
        raise DenyListError("wrong_base", f"{len(removed)} tokens to remove of {len(held)}")
    new = array("Q", bytes(CUT_BYTES)) * size
    source, target = memoryview(held), memoryview(new)
    read = written = 0
    for token, is_added in sorted([*((token, True) for token in added), *((token, False) for token in removed)]):
        at = bisect_left(held, token, read)
        if (at < len(held) and held[at] == token) == is_added or written + at - read + is_added > size:
            raise DenyListError("wrong_base", "the change adds what is held or removes what is not")
        target[written : written + at - read] = source[read:at]
        written += at - read
        read = at + (not is_added)
        if is_added:
            target[written] = token
            written += 1
    target[written:] = source[read:]
    return new


# ---- as a file


def write_list(deny_list: DenyList) -> bytes:
    """The list as a terminal keeps it over a boot."""
    return deny_list.version.to_bytes(8, "big") + deny_list.made_at.to_bytes(8, "big") + write_snapshot(deny_list)


def read_list(data: bytes) -> DenyList:
    """The list that `write_list` wrote; raises DenyListError for other bytes."""
    if len(data) < _FILE_HEADER or len(data) % CUT_BYTES:
        raise DenyListError("bad_content", f"{len(data)} bytes are no list")
    version, made_at = (int.from_bytes(data[at : at + 8], "big") for at in (0, 8))
    return DenyList(version=version, made_at=made_at, tokens=_numbers(memoryview(data)[_FILE_HEADER:]))
