"""Tokens: how an instrument is known without its number.

A terminal sends a keyed hash of the medium; the server stores a hash of that under a key no terminal has, so that neither a
stolen terminal nor a stolen database leads back to a medium. A card's printed number and PIN open the rider's pages; they
are not what is tapped, and the number is stored hashed."""

from __future__ import annotations

import hashlib
import hmac

from fare_engine.keyed_hash import keyed_hash


def stored_token(server_key: bytes, terminal_token: bytes) -> str:
    """The id under which the server keeps a terminal's token."""
    return keyed_hash(server_key, b"token" + terminal_token).hex()[:32]


def stored_card_number(server_key: bytes, card_number: str) -> str:
    """The id under which the server finds an account by the number printed on its card."""
    digits = "".join(character for character in card_number if character.isalnum())
    return hmac.new(server_key, b"card" + digits.encode(), hashlib.sha256).hexdigest()[:32]


def issued_pin(server_key: bytes, card_number: str) -> str:
    """The six digits that come with a new card; whoever has the server's key can print them, nobody can read them back."""
    digits = "".join(character for character in card_number if character.isalnum())
    code = hmac.new(server_key, b"pin" + digits.encode(), hashlib.sha256).digest()
    return f"{int.from_bytes(code[:8]) % 1_000_000:06d}"


def password_hash(password: str, salt: bytes) -> str:
    """A slow hash of an operator's password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32).hex()
