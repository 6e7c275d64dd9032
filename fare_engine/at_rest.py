"""Encryption of what is stored: AES-256-GCM (NIST SP 800-38D), so that a stolen disk or backup tells nothing, and a byte
changed on it is found when it is read.

Decides how bytes are sealed and opened. Leaves to others where the key comes from and which columns are sealed.

    sealed = 01 ‖ key tag (4) ‖ nonce (12) ‖ ciphertext ‖ GCM tag (16)

The associated data is the first five bytes and the place, so a sealed row does not open at another's place. The nonce
is made from the place and the content: a rerun writes the same bytes, and two contents meet in one nonce only by the
chance of two 96-bit hashes being equal (after 2**32 rows: 1 in 2**33). That two rows at *one place* are equal is therefore
visible; at two places it is not. The key tag names the key, so that old rows open after the key was changed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fare_engine.errors import AtRestError
from fare_engine.keyed_hash import keyed_hash

KEY_BYTES: Final = 32
OVERHEAD: Final = 1 + 4 + 12 + 16
"""How many bytes longer the sealed bytes are."""

_FORMAT: Final = b"\x01"
_PURPOSE: Final = b"motthe-at-rest-1/"
_TAG_BYTES, _NONCE_BYTES = 4, 12
_NONCE_AT: Final = len(_FORMAT) + _TAG_BYTES
_CONTENT_AT: Final = _NONCE_AT + _NONCE_BYTES


class _Key(NamedTuple):
    """What is derived from one secret; each part for one purpose."""

    aead: AESGCM
    nonce_key: bytes
    head: bytes
    """Format and key tag: how everything begins that is sealed with it."""


class Cipher:
    """Seals with one key; opens also what was sealed with the keys before it."""

    __slots__ = ("_known", "_sealing")

    def __init__(self, key: bytes, older: Sequence[bytes] = ()) -> None:
        """`key` and each of `older`: 32 secret bytes. Raises ValueError for another length."""
        self._sealing: Final = _derived(key)
        self._known: Final = {found.head: found for found in (*map(_derived, older), self._sealing)}

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """`plain`, encrypted; the same bytes whenever key, plain and place are the same.

        `place` says where it will stand, as b"batches/gate-1/0102030405060708/1"; it is needed again to open it."""
        key = self._sealing
        nonce = keyed_hash(key.nonce_key, place + sha256(plain).digest())[:_NONCE_BYTES]
        return key.head + nonce + key.aead.encrypt(nonce, plain, key.head + place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """What was sealed at this place; raises AtRestError if it was not, or if any bit has changed."""
        key = self._known.get(sealed[:_NONCE_AT])
        if key is None:
            raise AtRestError(
                f"{_shown(place)}: sealed with no key that is known here, or changed: begins {sealed[:_NONCE_AT].hex()}"
            )
        try:
            return key.aead.decrypt(sealed[_NONCE_AT:_CONTENT_AT], sealed[_CONTENT_AT:], key.head + place)
        except (InvalidTag, ValueError):  # ValueError: too short for a nonce
            raise AtRestError(
                f"{_shown(place)}: {len(sealed)} bytes that were changed, or were sealed at another place"
            ) from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether it was sealed with the newest key, so that it need not be sealed anew after a change of keys."""
        return sealed[:_NONCE_AT] == self._sealing.head


def _derived(secret: bytes) -> _Key:
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a key at rest has {KEY_BYTES} bytes, not {len(secret)}")
    return _Key(
        AESGCM(_expanded(secret, b"content", 32)),
        _expanded(secret, b"nonce", 32),
        _FORMAT + _expanded(secret, b"tag", _TAG_BYTES),
    )


def _expanded(secret: bytes, purpose: bytes, length: int) -> bytes:
    """HKDF (RFC 5869) without salt: the secret is uniformly random already."""
    return HKDF(SHA256(), length, None, _PURPOSE + purpose).derive(secret)


def _shown(place: bytes) -> str:
    return place.decode(errors="backslashreplace")
