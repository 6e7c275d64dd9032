"""The deny list and the rules that a terminal holds: what may take their place, what a boot finds, what they weigh."""

from __future__ import annotations

import random
import sys
import time
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine.publications import Delta, Kind, Publication, Snapshot, TerminalRules, join_cut
from validators.clock import ClockEstimate
from validators.deny_list import (
    EMPTY,
    DenyList,
    DenyListError,
    Limits,
    applied,
    check_change,
    count_added,
    deny_list_of,
    read_list,
    write_list,
    write_snapshot,
)
from validators.rules import RuleBook, RulesError, TimedRules, read_book, write_book
from validators.state import BEFORE, CLOCK, DENY_LIST, RULES, StateError, StateFolder, read_file, write_file

NOON = 1_767_243_600_000
DAY = 86_400_000
TOKENS = st.sets(st.binary(min_size=16, max_size=16), max_size=50)


def token(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(8)


def held_of(version: int, numbers: Iterable[int]) -> DenyList:
    return deny_list_of(version, NOON, (token(number) for number in numbers))


def change(version: int, base: int, added: Iterable[bytes], removed: Iterable[bytes]) -> Publication:
    content = Delta(join_cut(added), join_cut(removed))
    return Publication(kind=Kind.DENY_LIST, serial=version, base=base, made_at=NOON, content=content)


def whole(version: int, tokens: Iterable[bytes]) -> Publication:
    return Publication(kind=Kind.DENY_LIST, serial=version, made_at=NOON, content=Snapshot(join_cut(tokens)))


def cause_of(held: DenyList, new: DenyList, persons: int = 0, recently_added: int = 0) -> str | None:
    try:
        check_change(held, new, persons, Limits(), recently_added)
    except DenyListError as error:
        return error.cause
    return None


# ---- the list


@given(TOKENS, st.binary(min_size=16, max_size=16))
def test_a_deny_list_names_its_tokens_and_no_other(tokens: set[bytes], other: bytes) -> None:
    deny_list = read_list(write_list(applied(EMPTY, whole(3, tokens))))
    assert all(token in deny_list for token in tokens)
    assert (other in deny_list) == (other[:8] in {token[:8] for token in tokens})
    assert (len(deny_list), deny_list.version, deny_list.made_at) == (len({token[:8] for token in tokens}), 3, NOON)
    assert write_snapshot(deny_list) == join_cut(tokens)
    assert deny_list.age_ms(NOON + 5) == 5


@given(TOKENS, TOKENS)
def test_a_change_leads_from_one_list_to_the_other(before: set[bytes], after: set[bytes]) -> None:
    held, wanted = deny_list_of(1, NOON, before), deny_list_of(2, NOON, after)
    cut_before, cut_after = {token[:8] for token in before}, {token[:8] for token in after}
    found = applied(held, change(2, 1, cut_after - cut_before, cut_before - cut_after))
    assert found == wanted
    assert count_added(held.tokens, wanted.tokens) == len(cut_after - cut_before)


def test_a_change_of_another_list_is_refused_and_the_held_one_stays() -> None:
    held = held_of(5, [1, 3])
    for publication, cause in (
        (change(6, 4, [], []), "unknown_base"),
        (change(5, 4, [], []), "not_newer"),
        (change(6, 5, [token(3)], []), "wrong_base"),
        (change(6, 5, [], [token(2)]), "wrong_base"),
        (change(6, 5, [token(3), token(4)], [token(1)]), "wrong_base"),
        (change(6, 5, [], [token(1), token(2), token(3)]), "wrong_base"),
        (whole(5, []), "not_newer"),
    ):
        with pytest.raises(DenyListError) as caught:
            applied(held, publication)
        assert caught.value.cause == cause
    assert token(1) in held


def test_tokens_in_disorder_are_refused() -> None:
    for data in (bytes(8) + bytes(8), b"\x01" + bytes(15)):
        publication = Publication(kind=Kind.DENY_LIST, serial=1, made_at=NOON, content=Snapshot(data))
        with pytest.raises(DenyListError, match="ascend"):
            applied(EMPTY, publication)
    with pytest.raises(DenyListError, match="no list"):
        read_list(bytes(9))


# ---- the guard


def test_small_steps_are_taken_and_jumps_need_two_persons() -> None:
    small, large = held_of(1, range(900)), held_of(1, range(100_000))
    for held, new, expected in (
        (EMPTY, held_of(2, range(1000)), None),
        (EMPTY, held_of(2, range(1001)), "needs_persons"),
        (small, held_of(2, range(1900)), None),
        (small, held_of(2, range(1901)), "needs_persons"),
        (small, held_of(2, []), None),
        (large, held_of(2, range(120_000)), None),
        (large, held_of(2, range(120_001)), "needs_persons"),
        (large, held_of(2, range(50_000)), None),
        (large, held_of(2, range(49_999)), "needs_persons"),
        (held_of(1, range(10_000)), held_of(2, range(12_001)), "needs_persons"),
        (large, held_of(1, range(100_000)), "not_newer"),
    ):
        assert cause_of(held, new) == expected, (len(held), len(new))
        if expected == "needs_persons":
            assert cause_of(held, new, persons=1) == expected
            assert cause_of(held, new, persons=2) is None


def test_what_was_added_lately_counts_with_it() -> None:
    held, new = held_of(1, range(100_000)), held_of(2, range(110_000))
    assert cause_of(held, new, recently_added=10_000) is None
    assert cause_of(held, new, recently_added=10_001) == "needs_persons"
    assert cause_of(held, held_of(2, range(99_000)), recently_added=20_000) is None, "which adds nothing"


# ---- rules


def rules_of(serial: int, activates_at: int, rules: TerminalRules, persons: int = 2) -> Publication:
    names = frozenset(["lan", "minh"][:persons])
    return Publication(
        kind=Kind.RULES, serial=serial, made_at=NOON, content=rules, activates_at=activates_at, publishers=names, persons=names
    )


def test_rules_act_from_their_time_on_and_not_a_millisecond_before() -> None:
    first, second = TerminalRules(tariff_version="one"), TerminalRules(tariff_version="two")
    book = RuleBook(TerminalRules()).with_publication(rules_of(1, NOON, first), NOON)
    book = book.with_publication(rules_of(2, NOON + 21 * DAY, second), NOON)
    for at, expected in ((NOON - 1, None), (NOON, "one"), (NOON + 21 * DAY - 1, "one"), (NOON + 21 * DAY, "two")):
        assert book.at(at).tariff_version == expected


def test_what_is_rolled_back_comes_again_under_a_newer_serial() -> None:
    good, bad = TerminalRules(tariff_version="good"), TerminalRules(tariff_version="bad")
    book = RuleBook(TerminalRules()).with_publication(rules_of(1, NOON, good), NOON)
    book = book.with_publication(rules_of(2, NOON + DAY, bad), NOON)
    with pytest.raises(RulesError, match="not_newer"):
        book.with_publication(rules_of(1, NOON + DAY, good), NOON + DAY)
    book = book.with_publication(rules_of(3, NOON + DAY, good), NOON + DAY + 1)
    assert book.at(NOON + 2 * DAY).tariff_version == "good"


def test_rules_that_do_not_act_yet_are_given_up_for_newer_ones() -> None:
    book = RuleBook(TerminalRules()).with_publication(rules_of(1, NOON, TerminalRules(tariff_version="one")), NOON)
    book = book.with_publication(rules_of(2, NOON + DAY, TerminalRules(tariff_version="two")), NOON)
    book = book.with_publication(rules_of(3, NOON + 9 * DAY, TerminalRules(tariff_version="two")), NOON)
    assert [timed.serial for timed in book.held] == [1, 3]
    assert book.at(NOON + 8 * DAY).tariff_version == "one"
    for serial in range(4, 9):
        book = book.with_publication(rules_of(serial, NOON + serial * DAY, TerminalRules()), NOON + serial * DAY)
    assert len(book.held) == 2


@pytest.mark.parametrize(
    ("new", "activates_at", "needs_persons"),
    [
        (TerminalRules(tariff_version="2027"), NOON, False),
        (TerminalRules(double_tap_ms=6000), NOON, False),
        (TerminalRules(double_tap_ms=6001), NOON, True),
        (TerminalRules(double_tap_ms=0), NOON, True),
        (TerminalRules(pass_back_ms=2001), NOON, True),
        (TerminalRules(stale_list_ms=DAY), NOON, True),
        (TerminalRules(most_persons=127), NOON, True),
        (TerminalRules(media_offline=("card",)), NOON, True),
        (TerminalRules(), NOON - DAY, False),
        (TerminalRules(), NOON - DAY - 1, True),
    ],
)
def test_rules_that_change_much_at_once_need_two_persons(new: TerminalRules, activates_at: int, needs_persons: bool) -> None:
    book = RuleBook(TerminalRules())
    for persons in (0, 1):
        publication = rules_of(1, activates_at, new, persons)
        if needs_persons:
            with pytest.raises(RulesError, match="needs_persons"):
                book.with_publication(publication, NOON)
        else:
            assert book.with_publication(publication, NOON).newest_serial == 1
    assert book.with_publication(rules_of(1, activates_at, new), NOON).newest_serial == 1


def test_a_list_of_media_that_loses_half_needs_two_persons() -> None:
    book = RuleBook(TerminalRules(media_offline=("a", "b", "c", "d")))
    book.with_publication(rules_of(1, NOON, TerminalRules(media_offline=("a", "b", "c")), 0), NOON)
    for media in (("a", "b"), ("a", "b", "e", "f"), None, ("a", "b", "c", "d", "e", "f", "g", "h", "i")):
        with pytest.raises(RulesError, match="media_offline"):
            book.with_publication(rules_of(1, NOON, TerminalRules(media_offline=media), 0), NOON)


def test_a_day_of_doublings_needs_two_persons() -> None:
    book = RuleBook(TerminalRules(double_tap_ms=3000))
    book = book.with_publication(rules_of(1, NOON, TerminalRules(double_tap_ms=6000), 0), NOON)
    with pytest.raises(RulesError, match="double_tap_ms"):
        book.with_publication(rules_of(2, NOON, TerminalRules(double_tap_ms=12_000), 0), NOON + 1000)
    book.with_publication(rules_of(2, NOON + DAY, TerminalRules(double_tap_ms=12_000), 0), NOON + DAY)


# ---- over a boot


LIST = held_of(7, [1, 2, 3])
BOOK = RuleBook(
    TerminalRules(), (TimedRules(serial=4, activates_at=NOON, rules=TerminalRules(media_offline=("emv",), offline_floor=-1)),)
)
CLOCK_BELIEF = ClockEstimate(offset_ms=-5, error_ms=3, learnt_at=NOON)


def test_everything_is_there_after_a_boot(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    fresh = folder.load(TerminalRules())
    assert (fresh.deny_list, fresh.rules.held, fresh.clock, fresh.damaged) == (EMPTY, (), None, ())
    folder.keep(LIST, BOOK, CLOCK_BELIEF)
    found = StateFolder(tmp_path / "state").load(TerminalRules())
    assert (found.deny_list, found.rules, found.clock, found.damaged) == (LIST, BOOK, CLOCK_BELIEF, ())
    assert read_book(write_book(BOOK), TerminalRules()) == BOOK


def test_an_empty_list_keeps_its_version_over_a_boot(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.load(TerminalRules())
    folder.keep(held_of(9, []), BOOK, None)
    assert StateFolder(tmp_path).load(TerminalRules()).deny_list.version == 9


def test_a_damaged_file_falls_back_to_the_one_before_and_then_to_nothing(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.load(TerminalRules())
    folder.keep(LIST, BOOK, CLOCK_BELIEF)
    folder.keep(held_of(8, [1, 2, 3, 4]), BOOK, CLOCK_BELIEF)
    flip(tmp_path / DENY_LIST)
    found = folder.load(TerminalRules())
    assert (found.deny_list, found.damaged) == (LIST, (DENY_LIST,))
    for name in (DENY_LIST + BEFORE, RULES, CLOCK):
        flip(tmp_path / name)
    found = folder.load(TerminalRules())
    assert (found.deny_list, found.rules.held, found.clock) == (EMPTY, (), None)
    assert found.damaged == (DENY_LIST, DENY_LIST + BEFORE, RULES, CLOCK)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_crash_between_the_two_renames_leaves_the_file_before(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.load(TerminalRules())
    folder.keep(LIST, BOOK, None)
    (tmp_path / DENY_LIST).replace(tmp_path / (DENY_LIST + BEFORE))
    assert folder.load(TerminalRules()).deny_list == LIST


def test_every_flipped_bit_of_a_kept_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"some state")
    good = path.read_bytes()
    assert read_file(path) == b"some state"
    for bit in range(len(good) * 8):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(StateError, match="damaged"):
            read_file(path)


def test_state_that_cannot_be_stored_is_said(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.load(TerminalRules())
    (tmp_path / "state").rmdir()
    with pytest.raises(StateError, match="deny-list"):
        folder.keep(LIST, BOOK, None)


# ---- what it weighs


def large_list(count: int) -> DenyList:
    step = (1 << 64) // count
    return DenyList(version=1, made_at=NOON, tokens=array("Q", range(7, 7 + step * count, step))[:])


def test_a_list_holds_eight_bytes_a_token_and_nothing_else() -> None:
    held = read_list(write_list(large_list(500_000)))
    assert sys.getsizeof(held.tokens) <= 500_000 * 8 + 200
    changed = applied(held, change(2, 1, [token(8)], [token(7)]))
    assert sys.getsizeof(changed.tokens) <= 500_000 * 8 + 200


def measured(count: int = 5_000_000) -> dict[str, float]:
    """Size and times of a list of so many tokens, for the documentation; not a test, for it takes a while."""
    held = read_list(write_list(large_list(count)))
    wanted = [random.Random(number).randbytes(16) for number in range(100_000)]
    begun = time.perf_counter()
    for one in wanted:
        _ = one in held
    look_up = time.perf_counter() - begun
    begun = time.perf_counter()
    new = applied(held, change(2, 1, (one[:8] for one in wanted[:1000]), []))
    apply = time.perf_counter() - begun
    begun = time.perf_counter()
    check_change(held, new, 0, Limits())
    guard = time.perf_counter() - begun
    return {
        "megabytes": sys.getsizeof(held.tokens) / 1e6,
        "look-up µs": look_up / len(wanted) * 1e6,
        "a change of 1,000 applied, s": apply,
        "guard, s": guard,
    }
