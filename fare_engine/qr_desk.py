"""Issuing QR tickets: a traveller's ticket for one service day, for a phone that holds its own key, or for our page.

A traveller's QR token is made from the server's key, so it is the same on every phone; it is known like any other token from
the first ticket on, and blocked like it. For a page without an app the service holds the phone's key and shows the codes
itself."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from fare_engine.qr_tickets import QrTicket, issue_ticket, present
from fare_engine.service_day import DAY_MS
from fare_engine.settings import secret_file
from fare_engine.store import travellers
from fare_engine.store.travellers import NewToken, Traveller
from fare_engine.tokens import stored_token

KEY_ID = b"qr-1"
VALID_MS = DAY_MS


class QrDesk:
    """Issues tickets with the issuer's key of a store's folder."""

    def __init__(self, data: Path, server_key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret_file(data / "keys" / "qr-issuer.key"))
        self._server_key = server_key

    @property
    def issuers(self) -> Mapping[bytes, Ed25519PublicKey]:
        """What terminals need to check tickets offline."""
        return {KEY_ID: self._key.public_key()}

    def token_of(self, traveller_id: str) -> bytes:
        """What a terminal reads from a traveller's codes, in place of what it would make of a card."""
        return self._secret("token", traveller_id)[:16]

    def open_token(self, connection: Connection, traveller: Traveller) -> None:
        """From now on the traveller's QR token is known."""
        token = self.token_of(traveller.traveller_id)
        token_id = stored_token(self._server_key, token)
        if token_id not in travellers.find_tokens(connection, [token_id]):
            travellers.add_tokens(connection, [NewToken(token_id, traveller.traveller_id, traveller.account_id, token)])

    def ticket(self, traveller_id: str, holder_key: bytes, now: int) -> bytes:
        """A ticket from now on for a day, for the phone with this public key (32 bytes). ValueError for another length."""
        if len(holder_key) != 32:
            raise ValueError(f"a phone's public key has 32 bytes, not {len(holder_key)}")
        ticket = QrTicket(
            ticket_id=self._secret("ticket", traveller_id, holder_key.hex(), str(now // VALID_MS))[:16],
            token=self.token_of(traveller_id),
            token_key_version=1,
            valid_from=now,
            valid_to=now + VALID_MS,
            holder_key=holder_key,
        )
        return issue_ticket(self._key, KEY_ID, ticket)

    def code(self, traveller_id: str, now: int) -> bytes:
        """A code to be shown now, for a page without a key of its own."""
        holder = Ed25519PrivateKey.from_private_bytes(self._secret("page", traveller_id))
        public = holder.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return present(self.ticket(traveller_id, public, now - now % 60_000), holder, now)

    def _secret(self, *purpose: str) -> bytes:
        return hmac.digest(self._server_key, "/".join(("qr", *purpose)).encode(), "sha256")
