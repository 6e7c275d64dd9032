"""A terminal's reader of QR tickets: a code is checked here, without asking anybody, and becomes what a card would present.

Decides which codes are believed (docs/qr-tickets.md); deny list, passing back and price go by the token in it, as for a card.
A reader that sees one code for some seconds hands it over once."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fare_engine.qr_tickets import WINDOW_MS, SeenPresentations, check_presentation
from fare_engine.tap_format import TapKind
from validators.terminal import Presented

SAME_CODE_MS = 3000


class QrReader:
    """Reads codes at one terminal. `begun_at`: when it began to remember, milliseconds UTC by its corrected clock."""

    def __init__(self, issuers: Mapping[bytes, Ed25519PublicKey], begun_at: int, window_ms: int = WINDOW_MS) -> None:
        self.issuers = dict(issuers)
        self.window_ms = window_ms
        self._seen = SeenPresentations(begun_at, window_ms)
        self._last: tuple[bytes, int, Presented] | None = None

    def read(self, code: bytes, kind: TapKind, at: int) -> Presented:
        """What a code presents at `at` (corrected clock). Raises QrError for one that is not believed, with the cause that the
        rider is told."""
        if self._last is not None and self._last[0] == code and abs(at - self._last[1]) < SAME_CODE_MS:
            return self._last[2]
        ticket = check_presentation(code, self.issuers.get, at_ms=at, seen=self._seen, window_ms=self.window_ms)
        presented = Presented(kind=kind, token=ticket.token, medium=ticket.medium, persons=ticket.persons)
        self._last = (code, at, presented)
        return presented
