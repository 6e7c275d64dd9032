"""Names of persons' things in an export: HMACs under a key of that export alone, so that two exports cannot be joined by them."""

from __future__ import annotations

from pathlib import Path

from fare_engine.errors import Fault, InputError
from fare_engine.keyed_hash import keyed_hash
from fare_engine.settings import secret_file

LENGTH = 16
MIN_KEY = 16


class Pseudonyms:
    """Names under one key."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def of(self, kind: str, name: str) -> str:
        """The name of a `token`, `traveller`, …: the same for the same in this export, and nothing elsewhere."""
        return keyed_hash(self.key, f"{kind}/{name}".encode())[:LENGTH].hex()


def key_of(data: Path, kind: str, period: str, given: Path | None) -> bytes:
    """The key in a file, or this export's own in the store's keys, made when it is first needed."""
    if given is None:
        return secret_file(data / "keys" / f"export-{kind}-{period}.key")
    try:
        key = given.read_bytes()
    except OSError as error:
        raise InputError([Fault(str(given), error.strerror, "cannot be read")]) from None
    if len(key) < MIN_KEY:
        raise InputError([Fault(str(given), len(key), f"a key has at least {MIN_KEY} bytes")])
    return key
