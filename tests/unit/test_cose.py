"""What is signed, against a library that writes the same."""

from __future__ import annotations

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.cose import read_sign1, sign1

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LENGTHS = (0, 1, 23, 24, 255, 256, 65_535, 65_536)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("key_length", [1, 13, 14, 15, 16, 17, 18, 240, 250])
def test_what_is_signed_is_the_sig_structure_whatever_its_lengths(length: int, key_length: int) -> None:
    payload, key_id = b"p" * length, b"k" * key_length
    read, signature = read_sign1(sign1(KEY, key_id, payload))
    protected = cbor2.dumps({1: -8, 4: key_id})
    assert (read, signature.key_id) == (payload, key_id)
    assert signature.signed == cbor2.dumps(["Signature1", protected, b"", payload])
    assert signature.holds(KEY.public_key())
