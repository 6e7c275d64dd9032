"""Encryption at rest: what was sealed opens at its place and nowhere else, and a changed bit is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine.at_rest import OVERHEAD, Cipher
from fare_engine.errors import AtRestError

KEY = bytes(range(32))
CIPHER = Cipher(KEY)
PLACE = b"batches/gate-1/0102030405060708/1"


@given(plain=st.binary(max_size=200), place=st.binary(max_size=40))
def test_what_was_sealed_opens_at_its_place(plain: bytes, place: bytes) -> None:
    sealed = CIPHER.seal(plain, place)
    assert Cipher(KEY).open(sealed, place) == plain
    assert len(sealed) == len(plain) + OVERHEAD


def test_sealed_bytes_stay_readable_by_later_versions() -> None:
    sealed = bytes.fromhex("0172649df7161ca5a098bfe057db73a58804764df55a1a300c8e328b0b59d2ff783eb07578a6")
    assert CIPHER.open(sealed, PLACE) == b"a tap"


def test_the_same_row_is_the_same_bytes_on_a_rerun() -> None:
    assert CIPHER.seal(b"a tap", PLACE) == Cipher(KEY).seal(b"a tap", PLACE)


def test_a_nonce_never_meets_two_contents_or_two_places() -> None:
    sealed = [CIPHER.seal(plain, place) for plain in (b"", b"a", b"b") for place in (b"", b"x", PLACE)]
    assert len({each[5:17] for each in sealed}) == len(sealed)


def test_the_end_of_a_place_cannot_pass_for_the_beginning_of_the_content() -> None:
    with pytest.raises(AtRestError):
        CIPHER.open(CIPHER.seal(b"bc", b"a"), b"ab")


def test_nothing_of_the_content_stands_in_the_sealed_bytes() -> None:
    assert b"gate" not in CIPHER.seal(b"gate-ben-thanh-01" * 10, PLACE)


@given(plain=st.binary(max_size=60), bit=st.integers(0))
def test_any_changed_bit_is_found(plain: bytes, bit: int) -> None:
    sealed = bytearray(CIPHER.seal(plain, PLACE))
    bit %= 8 * len(sealed)
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AtRestError):
        CIPHER.open(bytes(sealed), PLACE)


@pytest.mark.parametrize("length", range(OVERHEAD + 5))
def test_sealed_bytes_that_were_cut_short_are_refused(length: int) -> None:
    with pytest.raises(AtRestError):
        CIPHER.open(CIPHER.seal(b"a tap", PLACE)[:length], PLACE)


def test_a_row_that_was_moved_does_not_open_and_its_place_is_named() -> None:
    with pytest.raises(AtRestError, match="batches/gate-2/1: 38 bytes that were changed, or were sealed at another place"):
        CIPHER.open(CIPHER.seal(b"a tap", PLACE), b"batches/gate-2/1")


def test_another_key_opens_nothing() -> None:
    with pytest.raises(AtRestError, match="no key that is known here"):
        Cipher(bytes(32)).open(CIPHER.seal(b"a tap", PLACE), PLACE)


def test_old_rows_open_after_a_change_of_keys_and_new_ones_are_sealed_with_the_new_key() -> None:
    changed = Cipher(bytes(32), older=[KEY])
    old = CIPHER.seal(b"a tap", PLACE)
    assert changed.open(old, PLACE) == b"a tap"
    assert not changed.is_current(old)
    new = changed.seal(b"a tap", PLACE)
    assert changed.is_current(new)
    with pytest.raises(AtRestError):
        CIPHER.open(new, PLACE)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {length}"):
        Cipher(bytes(length))
