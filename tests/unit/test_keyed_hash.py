"""HMACs whose keys are prepared once."""

from __future__ import annotations

import hmac

from hypothesis import given
from hypothesis import strategies as st

from fare_engine.keyed_hash import keyed_hash


@given(st.lists(st.tuples(st.binary(max_size=80), st.binary(max_size=200)), max_size=20))
def test_each_is_the_hmac_of_its_key_and_data_whatever_came_before(asked: list[tuple[bytes, bytes]]) -> None:
    for key, data in (*asked, *asked):
        assert keyed_hash(key, data) == hmac.digest(key, data, "sha256")
