"""Every exception that this project raises on purpose. What is expected (a repeated tap, a denied token) is no exception
but an outcome; what is wrong with somebody's input says where it stands and which value it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MottheError(Exception):
    """Base of all our exceptions."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: where it stands, the value found there, and what is wrong with it."""

    place: str
    value: object
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem} (found {self.value!r})"


class InputError(MottheError):
    """An input that cannot be used. All its faults are reported together and nothing of it was taken."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class TariffError(InputError):
    """A tariff folder that does not hold together."""


class EnvelopeError(MottheError):
    """A message from a terminal that is refused whole; `cause` is a stable word from docs/tap-format.md."""

    def __init__(self, cause: str, detail: str, resume_from: int | None = None) -> None:
        self.cause = cause
        self.detail = detail
        self.resume_from = resume_from
        """With the cause `gap`: the sequence from which the server wants the stream."""
        super().__init__(f"{cause}: {detail}")


class PublicationError(MottheError):
    """A publication to terminals that is refused; `cause` is a stable word from docs/terminal-protocol.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class BooksError(MottheError):
    """The books would not balance, or a closed date would change. Never expected: processing stops."""


class NotFoundError(MottheError):
    """A named thing that does not exist."""


class MissingFactError(MottheError):
    """A ride cannot be priced for want of a fact, which the message names."""


class CloseError(MottheError):
    """A service date that cannot be closed as asked."""


class AtRestError(MottheError):
    """Stored bytes that are not what was sealed at this place: changed, moved, or sealed under a key that is not here."""


class InclusionError(MottheError):
    """An inclusion proof that cannot be made, for the message, the row and the tap do not fit together."""


class CertificateError(MottheError):
    """A key, request or certificate that is refused; `cause` is a stable word from docs/keys.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class EnrolmentError(MottheError):
    """A device that is not enrolled, or whose key is not changed; `cause` is a stable word from docs/keys.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class QrError(MottheError):
    """A QR ticket that is refused; `cause` is a stable word from docs/qr-tickets.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class LinkError(MottheError):
    """A token or payer that cannot be linked as asked."""


class ClaimError(MottheError):
    """A rider's claim that cannot be taken, or that is decided already."""


class CollectionError(MottheError):
    """A charge, refund, card or provider's message that is refused; `cause` is a stable word from docs/collection.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class PaymentError(MottheError):
    """A bank line that is not the payment it is said to be."""


class DisputeError(MottheError):
    """A dispute or decision that is refused; `cause` is a stable word from docs/disputes.md."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")
