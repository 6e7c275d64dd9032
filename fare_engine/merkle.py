"""One hash for all rows of a day, and the proof that one row is under it.

Decides how a day's row hashes become its root, how a row's path to the root is made and checked, and what stands in an
inclusion proof for one tap. Leaves to others which rows make a day and in which order, and where roots are published.

The tree is that of RFC 6962, 2.1 (in RFC 9162, 2.1 with other words): leaf = SHA-256(00 ‖ row hash), node = SHA-256(01 ‖ left ‖
right), a tree of n leaves split at the largest power of two below n, and the root of none is SHA-256 of nothing. Leaves and
nodes begin with different bytes so that no node can be passed off as a row. Everything here takes one pass over the leaves
and keeps one node per level, however many millions there are.

`docs/check_inclusion.py` checks a proof with none of this code."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from hashlib import sha256
from typing import Final, NamedTuple, cast

from fare_engine.errors import EnvelopeError, InclusionError
from fare_engine.row_hash import BATCHES
from fare_engine.tap_format import Batch, reopen_message

FORMAT: Final = "motthe-inclusion/1"


class Inclusion(NamedTuple):
    """That one leaf is under a root: its place, and the nodes beside its way up, from the leaf on."""

    leaf_index: int
    tree_size: int
    root: bytes
    path: tuple[bytes, ...]


class Builder:
    """A root that grows leaf by leaf; it keeps as many hashes as the number of leaves has binary digits."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        """Empty, or as another builder was after `size` leaves, with its `peaks`."""
        self.size = size
        self._peaks: list[bytes] = list(peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Roots of the full subtrees so far, largest first: one for each 1 in the binary form of `size`."""
        return tuple(self._peaks)

    def add(self, leaf: bytes) -> None:
        """Put one more leaf (a row hash) at the end."""
        node, peaks, full = leaf_hash(leaf), self._peaks, self.size
        while full & 1:
            node = node_hash(peaks.pop(), node)
            full >>= 1
        peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root of the leaves so far, 32 bytes; more may follow."""
        if not self._peaks:
            return sha256().digest()
        return reduce(lambda right, left: node_hash(left, right), reversed(self._peaks))


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf's content."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node, from its two children's."""
    return sha256(b"\x01" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """The root of these leaves, 32 bytes."""
    builder = Builder()
    for leaf in leaves:
        builder.add(leaf)
    return builder.root()


# ---- proofs


class _Node(NamedTuple):
    """A node, and whether the leaf to be proved is below it."""

    hash: bytes
    above: bool


def inclusion(leaves: Iterable[bytes], index: int) -> Inclusion:
    """The proof that the leaf at `index` (from 0) is under the leaves' root, in one pass; IndexError where there is none."""
    path: list[bytes] = []

    def join(left: _Node, right: _Node) -> _Node:
        if left.above:
            path.append(right.hash)
        elif right.above:
            path.append(left.hash)
        return _Node(node_hash(left.hash, right.hash), left.above or right.above)

    peaks: list[_Node] = []
    size = 0
    for leaf in leaves:
        node = _Node(leaf_hash(leaf), size == index)
        full = size
        while full & 1:
            node = join(peaks.pop(), node)
            full >>= 1
        peaks.append(node)
        size += 1
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} of {size}")
    top = reduce(lambda right, left: join(left, right), reversed(peaks))
    return Inclusion(index, size, top.hash, tuple(path))


def inclusion_proof(leaves: Iterable[bytes], index: int) -> tuple[bytes, ...]:
    """The nodes beside the way from the leaf at `index` to the root (RFC 9162, 2.1.3.1); IndexError where there is none."""
    return inclusion(leaves, index).path


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether this leaf stands at `index` of the `size` leaves under `root` (the steps of RFC 9162, 2.1.3.2).

    A root alone does not fix its tree's size, only that the path has the shape that such a size gives; publish both."""
    if not 0 <= index < size:
        return False
    at, last, node = index, size - 1, leaf_hash(leaf)
    for beside in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(beside, node)
            while at and not at & 1:  # the last node of an odd level goes up without a partner
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, beside)
        at, last = at >> 1, last >> 1
    return last == 0 and node == root


# ---- the proof for one tap


def inclusion_document(
    *,
    accounting_date: str,
    proof: Inclusion,
    row: Mapping[str, object],
    message: bytes,
    public_key: bytes,
    tap_sequence: int,
) -> dict[str, object]:
    """What an operator needs to check alone that one tap of its device was received and is under a date's root; for JSON.

    `row` as `row_hash.batch_row` makes it, `message` as received, `public_key` the device's 32 bytes. The document holds the
    whole message, for the row speaks of all of it, so it is for the device's own operator. Raises InclusionError where
    message, row, tap and proof do not fit together: nobody is handed a proof that fails."""
    leaf = BATCHES.of(row)
    _check_evidence(row, message, tap_sequence)
    if not verify_inclusion(leaf, proof.leaf_index, proof.tree_size, proof.path, proof.root):
        raise InclusionError(f"row {leaf.hex()} is not leaf {proof.leaf_index} of {proof.tree_size} under {proof.root.hex()}")
    return {
        "format": FORMAT,
        "accounting_date": accounting_date,
        "tree_size": proof.tree_size,
        "leaf_index": proof.leaf_index,
        "root": proof.root.hex(),
        "path": [node.hex() for node in proof.path],
        "leaf": {"table": BATCHES.table, "columns": _shown_columns(row), "row_hash": leaf.hex()},
        "evidence": {
            "message": base64.b64encode(message).decode(),
            "public_key": public_key.hex(),
            "tap_sequence": tap_sequence,
        },
    }


def _shown_columns(row: Mapping[str, object]) -> dict[str, object]:
    """The row's columns as they stand in JSON, which has no bytes."""
    shown = {name: row[name] for name in BATCHES.columns}
    return shown | {
        "message_sha256": cast(bytes, row["message_sha256"]).hex(),
        "answers": base64.b64encode(cast(bytes, row["answers"])).decode(),
    }


def _check_evidence(row: Mapping[str, object], message: bytes, tap_sequence: int) -> None:
    """That the row was made from this message, and that the tap was new in it."""
    if sha256(message).digest() != row["message_sha256"]:
        raise InclusionError(
            f"the row is of another message than the one of {len(message)} bytes with {sha256(message).hexdigest()}"
        )
    header = _reopened(message).header
    if (header.device_id, header.epoch_hex) != (row["device_id"], row["epoch"]):
        raise InclusionError(f"a message of {header.device_id!r} in a row of {row['device_id']!r}, or of another epoch")
    if not header.first_sequence <= tap_sequence <= header.last_sequence:
        raise InclusionError(f"tap {tap_sequence} is not among {header.first_sequence} to {header.last_sequence} of the message")
    if not cast(int, row["first_sequence"]) <= tap_sequence <= cast(int, row["last_sequence"]):
        raise InclusionError(
            f"tap {tap_sequence} was held before; the row covers {row['first_sequence']} to {row['last_sequence']}"
        )


def _reopened(message: bytes) -> Batch:
    try:
        return reopen_message(message)
    except EnvelopeError as fault:
        raise InclusionError(f"the stored message does not open: {fault}") from fault
