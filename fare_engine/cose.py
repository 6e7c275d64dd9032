"""Deterministic CBOR and COSE signatures as this project uses them: few types, one algorithm, nothing left to choose.

Decides what bytes are CBOR or a signed structure, and whether a signature holds. Leaves to others what the signed bytes
say and whose keys are trusted. Bytes are verified as received and only then parsed, by a reader that takes nothing but
deterministic CBOR (RFC 8949, 4.2.1): no tags, no floats, no indefinite lengths, and no memory taken on a declared length.

A key has one algorithm for good: EdDSA with Ed25519. So nothing that a message says can choose another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from fare_engine.errors import MottheError

LARGEST: Final = (1 << 48) - 1
"""Largest number anywhere in our formats: as milliseconds the year 10889, and exact in every language and database."""
MAX_SIGNERS: Final = 16
MAX_ITEMS: Final = 2_200
"""Most items in all arrays and maps of what is read: 2,000 taps and what stands around them. Without it a message of empty
arrays would cost a second before anybody asks who signed it."""

_SIGNATURE_BYTES: Final = 64
_DEPTH: Final = 3
"""How deep an item of ours may nest; only a COSE_Sign with its signatures goes one deeper."""
_SIGN1_TAG: Final = b"\xd2"  # tag 18 (RFC 9052, 4.2)
_SIGN_TAG: Final = b"\xd8\x62"  # tag 98 (RFC 9052, 4.1)
_ALGORITHM, _KEY_ID, _EDDSA = 1, 4, -8  # RFC 9052, 3.1; RFC 9053, 2.2


class CoseError(MottheError):
    """Bytes that are no signed structure of ours; `cause` is not_cbor, bad_structure or unsupported_algorithm."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = detail
        super().__init__(f"{cause}: {detail}")


class Signature(NamedTuple):
    """One signature that has been read, not yet verified."""

    key_id: bytes
    signature: bytes
    signed: bytes
    """The Sig_structure (RFC 9052, 4.4), over which it must hold."""

    def holds(self, public_key: Ed25519PublicKey) -> bool:
        """Whether this key made it. libsodium takes half of OpenSSL's time, and no key or signature of small order, which would
        hold for any bytes."""
        if len(self.signature) != _SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(self.signature + self.signed, public_key.public_bytes_raw())
        except BadSignatureError:
            return False
        return True


# ---- COSE_Sign1: one signer


def sign1(private_key: Ed25519PrivateKey, key_id: bytes, payload: bytes) -> bytes:
    """The payload, signed by one key."""
    protected = _protected(key_id)
    signature = private_key.sign(_to_be_signed1(protected, payload))
    return _SIGN1_TAG + cbor2.dumps([protected, {}, payload, signature])


def read_sign1(data: bytes) -> tuple[bytes, Signature]:
    """Payload and signature; raises CoseError. Nothing may stand in the unprotected header."""
    if data[:1] != _SIGN1_TAG:
        raise CoseError("bad_structure", "the signed part does not begin with CBOR tag 18")
    match _read(data[1:], "COSE_Sign1"):
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature] if not unprotected:
            return payload, Signature(_read_key_id(protected), signature, _to_be_signed1(protected, payload))
    raise CoseError("bad_structure", "the signed part is not [protected, {}, payload, signature]")


_CONTEXT1: Final = cbor2.dumps("Signature1")
_NO_BYTES: Final = cbor2.dumps(b"")


def _to_be_signed1(protected: bytes, payload: bytes) -> bytes:
    """The array ["Signature1", protected, h'', payload] (RFC 9052, 4.4). Made of its parts: cbor2 takes several times longer."""
    return b"\x84" + _CONTEXT1 + _byte_string(protected) + _NO_BYTES + _byte_string(payload)


def _byte_string(data: bytes) -> bytes:
    length = len(data)
    if length < 24:
        return bytes((0x40 | length,)) + data
    if length < 256:
        return bytes((0x58, length)) + data
    return cbor2.dumps(data)


# ---- COSE_Sign: several signers of one payload


def sign(signers: Mapping[bytes, Ed25519PrivateKey], payload: bytes) -> bytes:
    """The payload, signed by each of the keys, which are given by their key id."""
    signatures = []
    for key_id, private_key in signers.items():
        protected = _protected(key_id)
        signatures.append([protected, {}, private_key.sign(_to_be_signed(protected, payload))])
    return write_sign(payload, signatures)


def add_signature(data: bytes, key_id: bytes, private_key: Ed25519PrivateKey) -> bytes:
    """The same with one more signature, by somebody who signs later; raises CoseError."""
    payload, held = read_sign(data)
    if any(signature.key_id == key_id for signature in held):
        raise CoseError("bad_structure", f"{_named(key_id)} has signed already")
    protected = _protected(key_id)
    new = [protected, {}, private_key.sign(_to_be_signed(protected, payload))]
    return write_sign(payload, [*([_protected(one.key_id), {}, one.signature] for one in held), new])


def write_sign(payload: bytes, signatures: Sequence[Sequence[object]]) -> bytes:
    """A COSE_Sign of these COSE_Signature arrays, with nothing in the headers of the body."""
    return _SIGN_TAG + cbor2.dumps([b"", {}, payload, [list(signature) for signature in signatures]])


def read_sign(data: bytes) -> tuple[bytes, tuple[Signature, ...]]:
    """Payload and signatures; raises CoseError. The headers of the body are empty, and no key signs twice."""
    if data[:2] != _SIGN_TAG:
        raise CoseError("bad_structure", "the publication does not begin with CBOR tag 98")
    match _read(data[2:], "COSE_Sign", _DEPTH + 1):
        case [b"", dict() as unprotected, bytes() as payload, [*parts]] if not unprotected and 0 < len(parts) <= MAX_SIGNERS:
            signatures = tuple(_read_signature(part, payload) for part in parts)
            if len({signature.key_id for signature in signatures}) != len(signatures):
                raise CoseError("bad_structure", "a key signed twice")
            return payload, signatures
    raise CoseError("bad_structure", f"not [h'', {{}}, payload, [1 to {MAX_SIGNERS} signatures]]")


def _read_signature(part: object, payload: bytes) -> Signature:
    match part:
        case [bytes() as protected, dict() as unprotected, bytes() as signature] if not unprotected:
            return Signature(_read_key_id(protected), signature, _to_be_signed(protected, payload))
    raise CoseError("bad_structure", "a signature is not [protected, {}, signature]")


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature", b"", protected, b"", payload])


# ---- the protected header of a signer


def _protected(key_id: bytes) -> bytes:
    return cbor2.dumps({_ALGORITHM: _EDDSA, _KEY_ID: key_id})


def _read_key_id(protected: bytes) -> bytes:
    """Who says that he signed, from a protected header that holds an algorithm, a key id and nothing else."""
    fields = _read(protected, "protected header")
    if not isinstance(fields, dict) or fields.keys() - {_ALGORITHM, _KEY_ID}:
        raise CoseError("bad_structure", "the protected header is not {1: algorithm, 4: key id}")
    if fields.get(_ALGORITHM) != _EDDSA:
        raise CoseError("unsupported_algorithm", f"{shown(fields.get(_ALGORITHM))}, only {_EDDSA} (EdDSA) is taken")
    key_id = fields.get(_KEY_ID)
    if not isinstance(key_id, bytes) or not key_id:
        raise CoseError("bad_structure", "there is no key id")
    return key_id


def _named(key_id: bytes) -> str:
    return key_id.decode("utf-8", "backslashreplace")


def _read(data: bytes, what: str, depth: int = _DEPTH) -> object:
    try:
        return read_cbor(data, depth)
    except ValueError as fault:
        raise CoseError("not_cbor", f"{what}: {fault}") from None


# ---- values of one field: each takes what the reader gave and raises ValueError for what does not fit


def uint(lowest: int = 0, highest: int = LARGEST) -> Callable[[object], int]:
    """Reads a whole number within these bounds."""

    def read(value: object) -> int:
        if not isinstance(value, int) or not lowest <= value <= highest:
            raise ValueError(f"not a whole number from {lowest} to {highest}: {shown(value)}")
        return value

    return read


def octets(length: int) -> Callable[[object], bytes]:
    """Reads so many bytes."""

    def read(value: object) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise ValueError(f"not {length} bytes: {shown(value)}")
        return value

    return read


def text(longest: int) -> Callable[[object], str]:
    """Reads text without control characters: some stores take no NUL, and no log line should break."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
            raise ValueError(f"not printable text of 1 to {longest} characters: {shown(value)}")
        return value

    return read


def shown(value: object) -> str:
    """A value for a message: short, and never the content of bytes, which may be a token."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)[:80]


# ---- deterministic CBOR, the few types in use
# cbor2 writes; it does not read what comes in, for it acts on tags (dates, regular expressions, big numbers).

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP = range(6)
_NULL: Final = 0xF6
_ARGUMENT_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_LEAST_ARGUMENT: Final = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}


def read_map(data: bytes) -> dict[int, object]:
    """The map that `data` is; raises ValueError."""
    fields = read_cbor(data)
    if not isinstance(fields, dict):
        raise ValueError(f"not a map: {shown(fields)}")
    return fields


def read_cbor(data: bytes, depth: int = _DEPTH) -> object:
    """The one item that `data` is; raises ValueError, also for anything after it."""
    try:
        value, end = _read_item(data, 0, depth, _Room())
    except IndexError:
        raise ValueError("CBOR ends too early") from None
    except UnicodeDecodeError:
        raise ValueError("CBOR text that is not UTF-8") from None
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes after the CBOR item")
    return value


class _Room:
    """How many items the arrays and maps that are still to come may declare."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_ITEMS

    def take(self, items: int) -> None:
        """Count what is declared, before any of it is read."""
        self.left -= items
        if self.left < 0:
            raise ValueError(f"CBOR of more than {MAX_ITEMS} items")


def _read_item(data: bytes, at: int, depth: int, room: _Room) -> tuple[object, int]:
    """The item that begins at `at`, and where the next one begins. IndexError: the data ends within it."""
    initial = data[at]
    major, argument = initial >> 5, initial & 31
    at += 1
    if argument > 23:
        argument, at = _long_argument(data, at, argument)
    if major == _UNSIGNED:
        return argument, at
    if major in (_TEXT, _BYTES):
        end = at + argument
        if end > len(data):
            raise IndexError
        return (data[at:end] if major == _BYTES else str(data[at:end], "utf-8")), end
    if major == _NEGATIVE:
        return -1 - argument, at
    if initial == _NULL:
        return None, at
    if depth == 0 or major not in (_ARRAY, _MAP):
        raise ValueError(f"CBOR that the format does not use: {initial:#04x} at byte {at - 1}")
    room.take(argument)
    return (_read_array if major == _ARRAY else _read_fields)(data, at, argument, depth - 1, room)


def _long_argument(data: bytes, at: int, form: int) -> tuple[int, int]:
    """An argument of 1 to 8 bytes, in the shortest form that holds it."""
    size = _ARGUMENT_BYTES.get(form)
    if size is None:
        raise ValueError("CBOR of indefinite length or a reserved form")
    if at + size > len(data):
        raise IndexError
    argument = int.from_bytes(data[at : at + size], "big")
    if argument < _LEAST_ARGUMENT[form]:
        raise ValueError(f"CBOR argument {argument} in more bytes than it needs")
    return argument, at + size


def _read_array(data: bytes, at: int, length: int, depth: int, room: _Room) -> tuple[list[object], int]:
    """As many items as declared: the list grows with what is there, not with what is declared."""
    items: list[object] = []
    for _ in range(length):
        item, at = _read_item(data, at, depth, room)
        items.append(item)
    return items, at


def _read_fields(data: bytes, at: int, length: int, depth: int, room: _Room) -> tuple[dict[int, object], int]:
    """A map from the keys 0 to 23, each larger than the one before it (RFC 8949, 4.2.1: sorted, and none twice)."""
    fields: dict[int, object] = {}
    last = -1
    for _ in range(length):
        key = data[at]
        if not last < key < 24:
            raise ValueError(f"CBOR map key {key:#04x} after {last}")
        fields[key], at = _read_item(data, at + 1, depth, room)
        last = key
    return fields, at
