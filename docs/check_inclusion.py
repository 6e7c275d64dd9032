"""Checks, alone, that a tap was received unchanged and is counted: an inclusion proof (motthe-inclusion/1) against the root
that was published for its accounting date, and against the device's own public key.

    python check_inclusion.py proof.json --root HEX --public-key HEX

It needs Python 3.10 or newer and nothing else, but for one step: the signature is checked with the package `cryptography`
if that is installed. It was written from docs/tap-format.md and docs/keys.md and shares no code with the system it checks.
Give the root as you found it published, and the key as your device shows it; what you leave out is taken from the
proof itself, which then proves less, and this is said.

It ends with 0 if everything was checked and holds, 1 if something does not hold, 2 if nothing was found wrong but something
could not be checked."""

import argparse
import base64
import hashlib
import json
import sys

LARGEST_PROOF = 4 << 20
COLUMNS = ["answers", "device_id", "epoch", "first_sequence", "last_sequence", "message_sha256", "received_at"]  # sorted
FIELDS = {"format", "accounting_date", "tree_size", "leaf_index", "root", "path", "leaf", "evidence"}


class ProofError(Exception):
    """Something does not hold; the text says what."""


def main() -> int:
    arguments = argparse.ArgumentParser(description="Check that a tap was received and is under a published root.")
    arguments.add_argument("proof", help="the proof, a JSON file")
    arguments.add_argument("--root", help="the root published for the accounting date, in hexadecimal")
    arguments.add_argument("--public-key", help="your device's Ed25519 public key, in hexadecimal")
    given = arguments.parse_args()
    try:
        left_open = check(read_proof(given.proof), given.root, given.public_key)
    except ProofError as fault:
        say(f"WRONG: {fault}")
        return 1
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as fault:
        say(f"WRONG: this is no proof that can be read: {type(fault).__name__}: {fault}")
        return 1
    for gap in left_open:
        say(f"NOT CHECKED: {gap}")
    say("Nothing wrong was found, but not everything was checked." if left_open else "Everything holds.")
    return 2 if left_open else 0


def check(proof: dict, published_root: str | None, own_key: str | None) -> list[str]:
    """Check everything; gives what could not be checked. Raises ProofError."""
    left_open = []
    evidence, row = proof["evidence"], proof["leaf"]["columns"]
    message = unbase64(evidence["message"])

    row_hash = check_row(proof["leaf"], message)
    say(f"row        its hash {row_hash.hex()} is that of its columns, and it holds this message")
    check_path(proof, row_hash)
    say(f"path       the row is leaf {proof['leaf_index']} (of {proof['tree_size']}, the proof says) under {proof['root']}")
    if published_root is None:
        left_open.append("whether that root is the published one: give it with --root")
    elif unhex(published_root, 32) != unhex(proof["root"], 32):
        raise ProofError(f"the proof leads to the root {proof['root']}, published is {published_root}")
    else:
        say(f"root       it is the one you gave for {proof['accounting_date']}")

    header, tap, signed, signature = check_message(message, row, evidence["tap_sequence"])
    say(f"message    {header[5]} taps of {header[2]}, epoch {header[3].hex()}, from {header[4]} on, form an unbroken chain")
    if own_key is None:
        left_open.append("whether the key is your device's: give it with --public-key")
    elif unhex(own_key, 32) != unhex(evidence["public_key"], 32):
        raise ProofError(f"the proof speaks of the key {evidence['public_key']}, your device's is {own_key}")
    left_open += check_signature(unhex(evidence["public_key"], 32), signature, signed)
    say(f"tap        {header[2]}/{header[3].hex()}/{evidence['tap_sequence']}: {shown(tap)}")
    return left_open


# ---- the row and its path (RFC 6962, 2.1)


def check_row(leaf: dict, message: bytes) -> bytes:
    """The row's hash, computed from its columns."""
    row = leaf["columns"]
    if set(leaf) != {"table", "columns", "row_hash"} or leaf["table"] != "batches" or sorted(row) != COLUMNS:
        raise ProofError("the leaf is not a row of the table batches")
    if unhex(row["message_sha256"], 32) != hashlib.sha256(message).digest():
        raise ProofError(f"the row was made for another message than this one of {len(message)} bytes")
    values = row | {"message_sha256": unhex(row["message_sha256"], 32), "answers": unbase64(row["answers"])}
    packed = msgpack(["batches", COLUMNS]) + msgpack([values[name] for name in COLUMNS])
    row_hash = hashlib.sha256(packed).digest()[:16]
    if row_hash != unhex(leaf["row_hash"], 16):
        raise ProofError(f"the row says its hash is {leaf['row_hash']}, its columns give {row_hash.hex()}")
    return row_hash


def check_path(proof: dict, row_hash: bytes) -> None:
    """That the row's hash leads to the root (RFC 9162, 2.1.3.2)."""
    at, last = whole(proof["leaf_index"]), whole(proof["tree_size"]) - 1
    if at > last:
        raise ProofError(f"leaf {at} of a tree of {last + 1}")
    node = hashlib.sha256(b"\x00" + row_hash).digest()
    for beside in (unhex(text, 32) for text in proof["path"]):
        if last == 0:
            raise ProofError("the path is too long")
        if at % 2 or at == last:
            node = hashlib.sha256(b"\x01" + beside + node).digest()
            while at and at % 2 == 0:
                at, last = at // 2, last // 2
        else:
            node = hashlib.sha256(b"\x01" + node + beside).digest()
        at, last = at // 2, last // 2
    if last or node != unhex(proof["root"], 32):
        raise ProofError(f"the path leads to {node.hex()}, not to the root {proof['root']}")


# ---- the message (docs/tap-format.md)


def check_message(message: bytes, row: dict, sequence: int) -> tuple[dict, bytes, bytes, bytes]:
    """Header, the tap asked for, what was signed, and the signature, after the chain was checked."""
    sign1, taps = cbor(message)
    if sign1[:1] != b"\xd2":
        raise ProofError("the signed part is no COSE_Sign1")
    protected, unprotected, payload, signature = cbor(sign1[1:])
    names, header = cbor(protected), cbor(payload)
    if unprotected != {} or set(names) != {1, 4} or names[1] != -8:
        raise ProofError("the message does not say that it is signed with Ed25519, and by whom")
    if header[1] != 1 or header[2].encode() != names[4] or header[5] != len(taps):
        raise ProofError("the message's header does not fit its signer or its taps")
    if (header[2], header[3].hex()) != (row["device_id"], row["epoch"]):
        raise ProofError(
            f"the message is of {header[2]}, epoch {header[3].hex()}; the row says {row['device_id']}, {row['epoch']}"
        )
    check_chain(header, taps)
    first, last = whole(row["first_sequence"]), whole(row["last_sequence"])
    if not header[4] <= first <= whole(sequence) <= last <= header[4] + header[5] - 1:
        raise ProofError(f"tap {sequence} is not among the taps {first} to {last} that this row is for")
    signed = to_cbor(["Signature1", protected, b"", payload])  # RFC 9052, 4.4
    return header, taps[sequence - header[4]], signed, signature


def check_chain(header: dict, taps: list) -> None:
    """That the taps lead from the header's previous head to its head, and that an epoch begins where it must."""
    head = header[6]
    if header[4] == 1 and head != hashlib.sha256(to_cbor(["motthe-epoch-1", header[2], header[3], header[9]])).digest():
        raise ProofError("the epoch does not begin at the value it must")
    for tap in taps:
        head = hashlib.sha256(head + hashlib.sha256(tap).digest()).digest()
    if head != header[7]:
        raise ProofError("the taps are not those that the device signed: the chain leads elsewhere")


def check_signature(key: bytes, signature: bytes, signed: bytes) -> list[str]:
    """Empty if the signature holds; otherwise why it could not be checked."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return ["the device's signature, for the Python package cryptography is not installed here"]
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except InvalidSignature:
        raise ProofError(f"the message was not signed with the key {key.hex()}") from None
    say(f"signature  it is by the key {key.hex()}")
    return []


NAMES = {
    1: "kind", 2: "token", 3: "token_key_version", 4: "medium", 5: "stop_id", 6: "route_id", 7: "vehicle_id", 8: "section",
    9: "persons", 10: "device_time", 11: "clock_offset_ms", 12: "clock_error_ms", 13: "decision", 14: "reason",
    15: "deny_list_version", 16: "tariff_version", 17: "spoken_of", 18: "outcome", 19: "former_token",
}  # fmt: skip


def shown(tap: bytes) -> str:
    """The tap's fields in a line; its bytes where they are no tap, for it was received all the same."""
    try:
        fields = cbor(tap)
        values = {NAMES.get(key, key): value.hex() if isinstance(value, bytes) else value for key, value in fields.items()}
    except (ValueError, IndexError, AttributeError):
        return f"bytes that cannot be read as a tap: {tap.hex()}"
    return ", ".join(f"{name} {value!r}" for name, value in values.items())


# ---- deterministic CBOR (RFC 8949, 4.2.1), as far as the format uses it


def cbor(data: bytes) -> object:
    """The one item that `data` is; ValueError or IndexError for anything else."""
    value, end = cbor_item(data, 0, 3)
    if end != len(data):
        raise ValueError("something stands after the CBOR")
    return value


def cbor_item(data: bytes, at: int, depth: int) -> tuple[object, int]:
    """The item at `at`, and where the next one begins."""
    major, size, at = data[at] >> 5, data[at] & 31, at + 1
    if (major, size) == (7, 22):
        return None, at
    if size >= 24:
        if size > 27:
            raise ValueError("CBOR of indefinite length")
        width = 1 << (size - 24)
        size, at = int.from_bytes(data[at : at + width], "big"), at + width
        if size < (24 if width == 1 else 1 << (4 * width)):
            raise ValueError("a CBOR number is not in its shortest form")
    if major < 2:
        return (size if major == 0 else -1 - size), at
    if major < 4:
        if at + size > len(data):
            raise ValueError("the CBOR ends too early")
        content = data[at : at + size]
        return (content if major == 2 else content.decode()), at + size
    if major > 5 or depth == 0:
        raise ValueError("CBOR of a kind that the format does not use")
    return (cbor_array if major == 4 else cbor_map)(data, at, size, depth - 1)


def cbor_array(data: bytes, at: int, size: int, depth: int) -> tuple[list, int]:
    items = []
    for _ in range(size):
        item, at = cbor_item(data, at, depth)
        items.append(item)
    return items, at


def cbor_map(data: bytes, at: int, size: int, depth: int) -> tuple[dict, int]:
    fields, last = {}, -1
    for _ in range(size):
        key = data[at]
        if not last < key < 24:
            raise ValueError("the CBOR map's keys are not in order")
        fields[key], at = cbor_item(data, at + 1, depth)
        last = key
    return fields, at


def to_cbor(value: object) -> bytes:
    """An array, number, text, byte string or null, in its one deterministic form."""
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return cbor_start(0, value)
    if isinstance(value, list):
        return cbor_start(4, len(value)) + b"".join(map(to_cbor, value))
    content = value.encode() if isinstance(value, str) else value
    return cbor_start(3 if isinstance(value, str) else 2, len(content)) + content


def cbor_start(major: int, size: int) -> bytes:
    if size < 24:
        return bytes([major << 5 | size])
    width = next(width for width in (1, 2, 4, 8) if size < 1 << (8 * width))
    return bytes([major << 5 | (23 + width.bit_length())]) + size.to_bytes(width, "big")


# ---- MessagePack, as far as a row's hash needs it


def msgpack(value: object) -> bytes:
    """An array, text, byte string or whole number from 0 on, in its shortest form."""
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(msgpack, value))  # none here is longer than 15
    if isinstance(value, str):
        content = value.encode()
        return msgpack_start(len(content), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + content
    if isinstance(value, bytes):
        return msgpack_start(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    return msgpack_start(whole(value), 0, 128, (0xCC, 0xCD, 0xCE, 0xCF))


def msgpack_start(size: int, short: int, below: int, forms: tuple[int, ...]) -> bytes:
    if size < below:
        return bytes([short | size])
    form = next(form for form in range(len(forms)) if size < 1 << (8 << form))
    return bytes([forms[form]]) + size.to_bytes(1 << form, "big")


# ---- small things


def read_proof(path: str) -> dict:
    with open(path, "rb") as file:
        data = file.read(LARGEST_PROOF + 1)
    if len(data) > LARGEST_PROOF:
        raise ProofError(f"longer than {LARGEST_PROOF} bytes")
    proof = json.loads(data)
    if proof["format"] != "motthe-inclusion/1" or set(proof) != FIELDS:
        raise ProofError(f"not a proof of the format motthe-inclusion/1: {sorted(proof)}")
    return proof


def whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ProofError(f"not a whole number: {value!r}")
    return value


def unhex(text: str, length: int) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != length:
        raise ProofError(f"not {length} bytes in hexadecimal: {text}")
    return data


def unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
