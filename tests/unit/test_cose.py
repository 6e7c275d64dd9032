"""What is signed, against a library that writes the same."""

from __future__ import annotations

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fare_engine.cose import Signature, read_sign1, sign1

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


def test_a_key_of_small_order_signs_nothing() -> None:
    """With the neutral point as key and R, and S zero, the equation of RFC 8032, 5.1.7 holds for any bytes."""
    neutral = b"\x01" + bytes(31)
    key, signature = Ed25519PublicKey.from_public_bytes(neutral), neutral + bytes(32)
    key.verify(signature, b"anything")
    assert not Signature(b"key", signature, b"anything").holds(key)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), KEY.sign(b"that"), KEY.sign(b"this") + b"\x00"])
def test_what_is_no_signature_of_these_bytes_does_not_hold(signature: bytes) -> None:
    assert not Signature(b"key", signature, b"this").holds(KEY.public_key())
    assert Signature(b"key", KEY.sign(b"this"), b"this").holds(KEY.public_key())
