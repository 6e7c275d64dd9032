"""Errors over HTTP: problem+json (RFC 9457) that names the cause in a stable word."""

from __future__ import annotations

import msgspec

from fare_engine.errors import EnvelopeError

MEDIA_TYPE = "application/problem+json"
STATUS = {
    "wrong_method": 405,
    "too_large": 413,
    "unknown_device": 401,
    "bad_signature": 401,
    "revoked_device": 403,
    "gap": 409,
    "forked_chain": 409,
    "overloaded": 429,
    "too_slow": 408,
    "too_fast": 429,
    "unavailable": 503,
}
TITLES = {
    "wrong_method": "Messages are posted",
    "too_large": "The message is larger than allowed",
    "not_cbor": "The message is not deterministic CBOR",
    "bad_structure": "The message is not an envelope with taps",
    "unsupported_algorithm": "Only Ed25519 signatures are taken",
    "unknown_device": "The device is not enrolled",
    "device_mismatch": "The signer is not the device of the header",
    "bad_signature": "The signature does not hold",
    "broken_chain": "The taps do not lead to the signed head",
    "bad_header": "The batch header is not as the format says",
    "revoked_device": "The device is revoked",
    "gap": "Taps before this message are missing",
    "forked_chain": "Another story is held of these taps",
    "too_slow": "The message did not come in whole in time",
    "overloaded": "Too much is waiting; come back later",
    "too_fast": "The device sends more than it may; come back later",
    "unavailable": "The message could not be stored; come back later",
}


def status_of(error: EnvelopeError) -> int:
    """The HTTP status of a refused message."""
    return STATUS.get(error.cause, 400)


def body_of(error: EnvelopeError) -> bytes:
    """The problem+json of a refused message."""
    problem: dict[str, object] = {
        "type": f"urn:motthe:problem:{error.cause}",
        "title": TITLES.get(error.cause, error.cause),
        "status": status_of(error),
        "detail": error.detail,
        "cause": error.cause,
    }
    if error.resume_from is not None:
        problem["resume_from"] = error.resume_from
    return msgspec.json.encode(problem)
