"""The Merkle tree and the proof for one tap: every leaf proves, and no changed bit does."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fare_engine import merkle
from fare_engine.errors import InclusionError
from fare_engine.merkle import Builder, inclusion, inclusion_document, inclusion_proof, root, verify_inclusion
from fare_engine.row_hash import BATCHES, batch_row
from fare_engine.tap_format import header_for, reopen_message, seal
from tests.vectors import make_vectors

leaves_of_a_tree = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=70)


# ---- the tree


def split_root(leaves: list[bytes]) -> bytes:
    """The root as RFC 6962, 2.1 defines it, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\x01" + split_root(leaves[:half]) + split_root(leaves[half:])).digest()


def test_the_roots_are_those_of_the_certificate_transparency_reference_implementation() -> None:
    """The well-known eight leaves of its tests, and the roots of the first 0, 1, 2 and 8 of them."""
    leaves = [
        bytes.fromhex(text)
        for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
    ]
    assert root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root(leaves[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(leaves[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(leaves=leaves_of_a_tree)
def test_a_root_that_grew_leaf_by_leaf_is_the_defined_one_at_every_size(leaves: list[bytes]) -> None:
    builder = Builder()
    for size, leaf in enumerate(leaves, start=1):
        builder.add(leaf)
        assert builder.root() == split_root(leaves[:size])
    assert builder.size == len(leaves)


@given(leaves=leaves_of_a_tree)
def test_every_leaf_of_a_tree_proves(leaves: list[bytes]) -> None:
    for index, leaf in enumerate(leaves):
        proof = inclusion(iter(leaves), index)
        assert proof == (index, len(leaves), root(leaves), inclusion_proof(leaves, index))
        assert verify_inclusion(leaf, index, len(leaves), proof.path, proof.root)


@given(leaves=leaves_of_a_tree, data=st.data())
def test_any_changed_bit_of_leaf_path_or_root_fails(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = inclusion(leaves, index)
    parts = [leaves[index], *proof.path, proof.root]
    which = data.draw(st.integers(0, len(parts) - 1))
    changed = flipped(parts[which], data.draw(st.integers(0, 8 * len(parts[which]) - 1)))
    leaf, *path, top = [*parts[:which], changed, *parts[which + 1 :]]
    assert not verify_inclusion(leaf, index, len(leaves), path, top)


@given(leaves=st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=70, unique=True), data=st.data())
def test_a_proof_holds_at_its_own_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.integers(-1, len(leaves) + 1).filter(lambda place: place != index))
    proof = inclusion(leaves, index)
    assert not verify_inclusion(leaves[index], other, len(leaves), proof.path, proof.root)
    assert not verify_inclusion(leaves[index], index, len(leaves), (*proof.path, proof.root), proof.root)
    assert not (proof.path and verify_inclusion(leaves[index], index, len(leaves), proof.path[:-1], proof.root))


def test_a_node_cannot_be_passed_off_as_a_leaf() -> None:
    leaves = [bytes(16), bytes([1]) * 16]
    node = b"".join(merkle.leaf_hash(leaf) for leaf in leaves)
    assert root([node]) != root(leaves)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_leaf_that_is_not_there_has_no_proof(index: int) -> None:
    with pytest.raises(IndexError, match=f"leaf {index} of 3"):
        inclusion([bytes(16)] * 3, index)


def test_a_tree_of_many_leaves_keeps_one_node_per_level() -> None:
    builder = Builder()
    for number in range(100_000):
        builder.add(number.to_bytes(16, "big"))
    assert len(builder._peaks) == (100_000).bit_count()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- the proof for one tap

SCRIPT = Path(__file__).parents[2] / "docs" / "check_inclusion.py"
KEY = make_vectors.KEY.public_key().public_bytes_raw()
MESSAGES = [
    bytes.fromhex(vector["message"])
    for vector in json.loads((SCRIPT.parents[1] / "tests" / "vectors" / "messages.json").read_text())["messages"]
]
MESSAGE = max(MESSAGES, key=lambda message: reopen_message(message).header.count)


def row_of(message: bytes, **changes: Any) -> dict[str, Any]:
    header = reopen_message(message).header
    given = {"first_sequence": header.first_sequence, "last_sequence": header.last_sequence, "received_at": 1_767_243_600_123}
    return dict(
        batch_row(device_id=header.device_id, epoch=header.epoch_hex, message=message, answers=b"[]" * 200, **(given | changes))
    )


def document_for(message: bytes = MESSAGE, tap_sequence: int | None = None, **changes: Any) -> dict[str, Any]:
    """A proof as the operator gets it, in a day of 13 rows."""
    row = row_of(message, **changes)
    leaves = [bytes([number]) * 16 for number in range(13)]
    leaves[9] = BATCHES.of(row)
    sequence = reopen_message(message).header.last_sequence if tap_sequence is None else tap_sequence
    made = inclusion_document(
        accounting_date="2026-03-02",
        proof=inclusion(leaves, 9),
        row=row,
        message=message,
        public_key=KEY,
        tap_sequence=sequence,
    )
    return dict(json.loads(json.dumps(made)))


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the script as an operator would, apart from the project; gives its exit code and what it said."""

    def run(document: object, *options: str, root: str | None = None, python: tuple[str, ...] = ()) -> tuple[int, str]:
        path = tmp_path / "proof.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        given = ["--root", root or DOCUMENT["root"], "--public-key", KEY.hex()] if not options else list(options)
        command = [sys.executable, *(python or ("-I",)), str(SCRIPT), str(path), *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


DOCUMENT = document_for()
Checked = Callable[..., tuple[int, str]]


def test_an_operator_checks_alone_that_a_tap_was_received_and_is_counted(checked: Checked) -> None:
    code, said = checked(DOCUMENT)
    assert code == 0, said
    assert said.endswith("Everything holds.\n")
    assert f"tap        {make_vectors.DEVICE}/" in said


@pytest.mark.parametrize("message", [message for message in MESSAGES if reopen_message(message).header.count])
def test_every_kind_of_message_can_be_proved(message: bytes, checked: Checked) -> None:
    document = document_for(message)
    code, said = checked(document, root=document["root"])
    assert code == 0, said


def test_a_tap_that_cannot_be_read_was_received_all_the_same(checked: Checked) -> None:
    header = reopen_message(MESSAGE).header
    fields = {"device_id": header.device_id, "epoch": header.epoch, "first_sequence": 900, "previous_head": bytes(32)}
    taps = [b"\xff no tap"]
    message = seal(make_vectors.KEY, header_for(**fields, taps=taps, sent_at=1), taps)  # type: ignore[arg-type]
    document = document_for(message)
    code, said = checked(document, root=document["root"])
    assert code == 0, said
    assert "bytes that cannot be read as a tap" in said


def leaves_in(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """Every value of a document that holds no others, and where it stands."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves_in(inner, (*path, key))
    else:
        yield path, value


def with_value(document: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    changed: Any = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return dict(changed)


def tampered(path: tuple[object, ...], value: Any) -> object:
    """A small change of a value that keeps its form."""
    if isinstance(value, int):
        return value + 1
    if path[-1] in ("message", "answers"):
        return base64.b64encode(flipped(base64.b64decode(value), 77)).decode()
    return value[:-1] + ("0" if value[-1] != "0" else "1")


UNPROVED = {("accounting_date",), ("evidence", "tap_sequence"), ("tree_size",)}
"""The date says which root to look up, and the sequence which tap is asked for: another one is another question. A root does
not fix the size of its tree (13 and 14 leaves give leaf 9 a path of one shape), which is why it is published with it."""
EVERYTHING = [(path, value) for path, value in leaves_in(DOCUMENT) if path not in UNPROVED]


@pytest.mark.parametrize(("path", "value"), EVERYTHING, ids=["/".join(map(str, path)) for path, _ in EVERYTHING])
def test_a_proof_with_any_value_changed_does_not_hold(path: tuple[object, ...], value: object, checked: Checked) -> None:
    code, said = checked(with_value(DOCUMENT, path, tampered(path, value)))
    assert code == 1, said
    assert "WRONG: " in said
    assert "holds." not in said


def rebuilt(document: dict[str, Any], message: bytes) -> dict[str, Any]:
    """A proof whose row, path and root were all made anew for another message: only the device's own key can tell."""
    changed = copy.deepcopy(document)
    row = row_of(MESSAGE) | {"message_sha256": sha256(message).digest()}
    proof = inclusion([BATCHES.of(row)], 0)
    changed["leaf"]["columns"]["message_sha256"] = sha256(message).hexdigest()
    changed["leaf"]["row_hash"] = BATCHES.of(row).hex()
    changed["evidence"]["message"] = base64.b64encode(message).decode()
    return changed | {"tree_size": 1, "leaf_index": 0, "root": proof.root.hex(), "path": []}


@pytest.mark.parametrize("size", [0, 9, 12, 17, 10**30, -1])
def test_a_tree_of_a_size_that_its_path_does_not_fit_does_not_hold(size: int, checked: Checked) -> None:
    code, _ = checked(DOCUMENT | {"tree_size": size})
    assert code == 1


def test_a_tap_changed_by_whoever_owns_the_database_breaks_the_chain(checked: Checked) -> None:
    forged = rebuilt(DOCUMENT, flipped(MESSAGE, 8 * len(MESSAGE) - 1))
    code, said = checked(forged, root=forged["root"])
    assert code == 1
    assert "the chain leads elsewhere" in said


def test_a_message_made_up_with_another_key_is_not_the_device_s(checked: Checked) -> None:
    batch = reopen_message(MESSAGE)
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = rebuilt(DOCUMENT, seal(stranger, batch.header, batch.taps))
    code, said = checked(forged, root=forged["root"])
    assert code == 1
    assert "the message was not signed with the key" in said
    forged["evidence"]["public_key"] = stranger.public_key().public_bytes_raw().hex()
    code, said = checked(forged, root=forged["root"])
    assert code == 1
    assert "your device's is" in said


def test_another_root_than_the_published_one_does_not_hold(checked: Checked) -> None:
    code, said = checked(DOCUMENT, root="00" * 32)
    assert code == 1
    assert "published is 0000" in said


def test_what_was_not_given_is_said_to_be_unchecked(checked: Checked) -> None:
    code, said = checked(DOCUMENT, "--root", DOCUMENT["root"])
    assert code == 2
    assert "NOT CHECKED: whether the key is your device's" in said
    code, said = checked(DOCUMENT, "--public-key", KEY.hex())
    assert code == 2
    assert "NOT CHECKED: whether that root is the published one" in said


def test_without_the_package_for_signatures_the_rest_is_checked_and_the_gap_is_said(checked: Checked) -> None:
    code, said = checked(DOCUMENT, python=("-I", "-S"))  # -S: no installed packages
    assert code == 2, said
    assert "NOT CHECKED: the device's signature" in said
    code, said = checked(with_value(DOCUMENT, ("leaf_index",), 8), python=("-I", "-S"))
    assert code == 1


NO_PROOFS: list[object] = [
    "", "{", "[]", "null", "[" * 5000, "{}", {"format": "motthe-inclusion/2"}, DOCUMENT | {"more": 1},
    DOCUMENT | {"leaf": []}, DOCUMENT | {"path": "00"}, DOCUMENT | {"path": [1]}, DOCUMENT | {"leaf_index": True},
    DOCUMENT | {"tree_size": "13"}, DOCUMENT | {"evidence": {}}, DOCUMENT | {"path": ["00" * 32] * 200},
    with_value(DOCUMENT, ("evidence", "message"), "ä"), with_value(DOCUMENT, ("evidence", "tap_sequence"), 0),
    with_value(DOCUMENT, ("evidence", "tap_sequence"), None), with_value(DOCUMENT, ("leaf", "columns", "epoch"), None),
    with_value(DOCUMENT, ("leaf", "table"), "lines"), with_value(DOCUMENT, ("leaf", "columns", "more"), 1),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NO_PROOFS)))
def test_what_is_no_proof_is_refused_without_a_traceback(number: int, checked: Checked) -> None:
    code, said = checked(NO_PROOFS[number])
    assert code == 1
    assert said.splitlines()[-1].startswith("WRONG: ")


@pytest.mark.parametrize(
    ("changes", "tap_sequence", "problem"),
    [
        ({}, 99, "tap 99 is not among"),
        ({"first_sequence": 4}, 3, "tap 3 was held before; the row covers 4 to"),
    ],
)
def test_no_proof_is_made_for_a_tap_that_the_row_does_not_cover(changes: dict[str, int], tap_sequence: int, problem: str) -> None:
    with pytest.raises(InclusionError, match=problem):
        document_for(MESSAGE, tap_sequence, **changes)


def test_no_proof_is_made_where_row_message_and_tree_do_not_fit() -> None:
    row = row_of(MESSAGE)
    proof = inclusion([BATCHES.of(row)], 0)

    def made(**changes: Any) -> None:
        given = {"proof": proof, "row": row, "message": MESSAGE, "public_key": KEY, "tap_sequence": row["first_sequence"]}
        inclusion_document(accounting_date="2026-03-02", **(given | changes))

    with pytest.raises(InclusionError, match="the row is of another message"):
        made(message=MESSAGES[0])
    with pytest.raises(InclusionError, match="or of another epoch"):
        made(row=row | {"epoch": "00" * 8})
    with pytest.raises(InclusionError, match="is not leaf 0 of 1"):
        made(proof=proof._replace(root=bytes(32)))
    with pytest.raises(InclusionError, match="does not open"):
        made(message=b"", row=row | {"message_sha256": sha256(b"").digest()})
