"""HMAC-SHA-256 (RFC 2104) of many short things under few keys."""

from __future__ import annotations

import hmac
from functools import lru_cache


def keyed_hash(key: bytes, data: bytes) -> bytes:
    """The 32 bytes of the HMAC. What a key begins with is computed once: it takes OpenSSL longer than a short message."""
    found = _begun(key).copy()
    found.update(data)
    return found.digest()


@lru_cache(16)
def _begun(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod="sha256")
