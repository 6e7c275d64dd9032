"""What the city publishes to terminals: what was signed comes out, and nothing else is taken."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cwt import COSE, COSEKey, Signer
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_engine.cose import CoseError, add_signature, read_sign, read_sign1, sign1
from fare_engine.errors import PublicationError
from fare_engine.publications import (
    Delta,
    Kind,
    Publication,
    Publisher,
    Role,
    Snapshot,
    TerminalRules,
    approve,
    encode,
    join_cut,
    make_delta,
    make_rules,
    make_snapshot,
    open_publication,
    read_publishers,
    sign,
)
from tests.vectors import make_vectors

NOON = make_vectors.NOON


def person(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def publisher(name: str, role: Role, key: Ed25519PrivateKey | None = None) -> Publisher:
    return Publisher(name=name, role=role, public_key=(key or person(name)).public_key())


PUBLISHERS = {
    b"service-1": publisher("service", Role.SERVICE),
    b"lan-1": publisher("lan", Role.PERSON),
    b"lan-2": publisher("lan", Role.PERSON, person("lan's new key")),
    b"minh-1": publisher("minh", Role.PERSON),
}


def signers(*names: str) -> dict[bytes, Ed25519PrivateKey]:
    return {f"{name}-1".encode(): person(name) for name in names}


SIGNED = sign(make_snapshot(7, NOON, [bytes([9]) * 16, bytes([3]) * 16]), signers("service", "lan"))
BY_SERVICE = sign(make_snapshot(7, NOON, [bytes([9]) * 16]), signers("service"))


def cause_of(data: bytes, **options: Any) -> str:
    with pytest.raises(PublicationError) as caught:
        open_publication(data, PUBLISHERS, **options)
    return caught.value.cause


def signed_content(payload: object) -> bytes:
    return sign(cbor2.dumps(payload), signers("service"))


# ---- the published vectors


def vectors(name: str) -> Any:
    return json.loads((Path(make_vectors.__file__).parent / name).read_text(encoding="utf-8"))


def named(items: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(item, id=item["name"]) for item in items]


OF_VECTORS = {
    item["key_id"].encode(): Publisher(
        name=item["name"],
        role=Role(item["role"]),
        public_key=Ed25519PublicKey.from_public_bytes(bytes.fromhex(item["public_key"])),
    )
    for item in vectors("publications.json")["publishers"]
}


@pytest.mark.parametrize("vector", named(vectors("publications.json")["publications"]))
def test_a_publication_of_the_vectors_is_opened_here_and_by_another_implementation(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["publication"])
    found = open_publication(data, OF_VECTORS)
    payload = cbor2.loads(data).value[2]
    assert encode(found) == payload
    assert make_vectors.readable(cbor2.loads(payload)) == vector["keys"]
    assert found.publishers == {OF_VECTORS[name.encode()].name for name in vector["signed_by"]}
    for name in vector["signed_by"]:
        public = OF_VECTORS[name.encode()].public_key.public_bytes_raw()
        theirs = COSEKey.new({1: 1, 2: name.encode(), 3: -8, -1: 6, -2: public})
        assert COSE.new().decode(data, keys=[theirs]) == payload


@pytest.mark.parametrize("vector", named(vectors("refused_publications.json")))
def test_a_wrong_publication_is_refused_with_its_cause(vector: dict[str, Any]) -> None:
    with pytest.raises(PublicationError) as caught:
        open_publication(bytes.fromhex(vector["publication"]), OF_VECTORS)
    assert caught.value.cause == vector["cause"]


# ---- what comes back


def test_a_snapshot_comes_back_with_who_signed_it() -> None:
    assert open_publication(SIGNED, PUBLISHERS) == Publication(
        kind=Kind.DENY_LIST,
        serial=7,
        made_at=NOON,
        content=Snapshot(bytes([3]) * 8 + bytes([9]) * 8),
        publishers=frozenset({"service", "lan"}),
        persons=frozenset({"lan"}),
    )


def test_a_change_and_rules_come_back() -> None:
    delta = make_delta(8, 7, NOON, [bytes([4]) * 16], [bytes([3]) * 16], expires_at=NOON + 1)
    found = open_publication(sign(delta, signers("service")), PUBLISHERS)
    assert (found.base, found.expires_at, found.content) == (7, NOON + 1, Delta(bytes([4]) * 8, bytes([3]) * 8))
    rules = TerminalRules(
        tariff_version="2026",
        pass_back_ms=300_000,
        most_persons=9,
        media_offline=("card", "emv"),
        stale_list_ms=1,
        media_when_stale=("card",),
        offline_floor=-5000,
        card_clash_ms=500,
    )
    for one in (rules, TerminalRules()):
        found = open_publication(sign(make_rules(1, NOON, one, NOON + 5), signers("service")), PUBLISHERS)
        assert (found.content, found.activates_at, found.kind) == (one, NOON + 5, Kind.RULES)


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30))
def test_tokens_are_cut_sorted_and_none_stands_twice(tokens: set[bytes]) -> None:
    joined = join_cut([*tokens, *tokens])
    cut = [joined[at : at + 8] for at in range(0, len(joined), 8)]
    assert cut == sorted({token[:8] for token in tokens})


# ---- who signed


def test_a_person_with_two_keys_is_one_person() -> None:
    both = sign(make_snapshot(1, NOON, []), {**signers("service", "lan"), b"lan-2": person("lan's new key")})
    assert open_publication(both, PUBLISHERS).persons == {"lan"}
    assert open_publication(approve(both, b"minh-1", person("minh")), PUBLISHERS).persons == {"lan", "minh"}


def test_a_signature_of_somebody_unknown_is_passed_over_and_a_wrong_one_refuses_all() -> None:
    assert open_publication(approve(SIGNED, b"hoa-1", person("hoa")), PUBLISHERS).persons == {"lan"}
    assert cause_of(approve(SIGNED, b"minh-1", person("hoa"))) == "bad_signature"
    for names in (("lan", "minh"), ("hoa",)):
        assert cause_of(sign(make_snapshot(1, NOON, []), signers(*names))) == "not_trusted"


def test_nobody_signs_twice() -> None:
    with pytest.raises(PublicationError, match="signed already"):
        approve(SIGNED, b"lan-1", person("lan"))
    payload, held = read_sign(SIGNED)
    doubled = cbor2.loads(SIGNED).value
    doubled[3].append(doubled[3][0])
    assert payload
    assert held
    assert cause_of(cbor2.dumps(cbor2.CBORTag(98, doubled))) == "bad_structure"


def test_a_signature_for_one_signer_is_none_for_several() -> None:
    """The two Sig_structures differ in their first word, so that one cannot stand for the other."""
    payload = make_snapshot(1, NOON, [])
    alone = cbor2.loads(sign1(person("service"), b"service-1", payload)).value
    moved = cbor2.dumps(cbor2.CBORTag(98, [b"", {}, payload, [[alone[0], {}, alone[3]]]]))
    assert cause_of(moved) == "bad_signature"


# ---- what is refused


@pytest.mark.parametrize(
    "change",
    [
        {1: 2},
        {2: "fares"},
        {2: 1},
        {3: 0},
        {3: 1.5},
        {4: 7},
        {4: 3},
        {5: -1},
        {6: bytes(9)},
        {6: None},
        {6: {1: bytes(8), 2: b""}},
        {7: NOON},
        {8: None},
        {9: 1},
        {2: "rules", 6: {}, 7: NOON},
        {2: "rules", 6: {2: 0, 3: 0, 4: 0, 7: [], 8: 0, 10: 0}, 7: NOON},
        {2: "rules", 6: {2: None, 3: 0, 4: 1, 7: [], 8: 0, 10: 0}, 7: NOON},
        {2: "rules", 6: {2: 0, 3: 0, 4: 1, 7: ["emv", "card"], 8: 0, 10: 0}, 7: NOON},
        {2: "rules", 6: {2: 0, 3: 0, 4: 1, 7: [], 8: 0, 10: 0, 11: 1}, 7: NOON},
        {2: "rules", 6: {2: 0, 3: 0, 4: 1, 7: [], 8: 0, 10: 0}},
        {2: "rules", 4: 1, 6: {2: 0, 3: 0, 4: 1, 7: [], 8: 0, 10: 0}, 7: NOON},
    ],
    ids=str,
)
def test_a_signed_payload_of_another_form_is_refused(change: dict[int, Any]) -> None:
    good = cbor2.loads(make_snapshot(7, NOON, []))
    open_publication(signed_content(good), PUBLISHERS)
    assert cause_of(signed_content(dict(sorted((good | change).items())))) in {"bad_content", "not_cbor"}


def test_what_no_terminal_would_read_is_not_made() -> None:
    with pytest.raises(PublicationError, match="base 7"):
        make_delta(7, 7, NOON, [], [])
    with pytest.raises(PublicationError, match="not a whole number"):
        make_rules(1, NOON, TerminalRules(double_tap_ms=-1), NOON)
    with pytest.raises(PublicationError, match="ascend"):
        make_rules(1, NOON, TerminalRules(media_offline=("emv", "card")), NOON)
    with pytest.raises(PublicationError, match="activates_at"):
        encode(Publication(kind=Kind.RULES, serial=1, made_at=NOON, content=TerminalRules()))


def test_a_publication_is_measured_before_it_is_read() -> None:
    assert cause_of(SIGNED, limit=len(SIGNED) - 1) == "too_large"


def test_every_flipped_bit_is_refused() -> None:
    data = sign(make_snapshot(7, NOON, [bytes(16)]), signers("service"))
    open_publication(data, PUBLISHERS)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert cause_of(bytes(changed))


@given(st.binary(max_size=200), st.integers(0, 300), st.binary(max_size=6))
@settings(max_examples=500)
def test_other_bytes_are_refused_and_nothing_worse(data: bytes, at: int, inserted: bytes) -> None:
    assert cause_of(data)
    assert cause_of(b"\xd8\x62" + data)
    changed = BY_SERVICE[:at] + inserted + BY_SERVICE[at + len(inserted) :]
    if changed != BY_SERVICE:
        assert cause_of(changed)


def test_an_approval_can_be_taken_away_on_the_way_and_then_it_is_missing() -> None:
    tag = cbor2.loads(SIGNED)
    del tag.value[3][1]
    assert open_publication(cbor2.dumps(tag), PUBLISHERS).persons == frozenset()


@pytest.mark.parametrize(
    "bomb", ["d8629b00007fffffffffff", "d862" + "81" * 100_000, "d862840000009fff", "d8628440a0409affffffff"]
)
def test_a_parser_bomb_is_refused(bomb: str) -> None:
    assert cause_of(bytes.fromhex(bomb)) in {"not_cbor", "bad_structure"}


def test_another_algorithm_is_refused() -> None:
    payload = make_snapshot(1, NOON, [])
    protected = cbor2.dumps({1: -7, 4: b"service-1"})
    assert cause_of(cbor2.dumps(cbor2.CBORTag(98, [b"", {}, payload, [[protected, {}, bytes(64)]]]))) == "unsupported_algorithm"


# ---- the trust file


def test_a_trust_file_says_whose_publications_are_taken() -> None:
    items = [
        {"key_id": key_id.decode(), "name": one.name, "role": one.role, "public_key": one.public_key.public_bytes_raw().hex()}
        for key_id, one in PUBLISHERS.items()
    ]
    found = read_publishers(json.dumps(items).encode())
    assert open_publication(SIGNED, found) == open_publication(SIGNED, PUBLISHERS)
    assert found.keys() == PUBLISHERS.keys()


@pytest.mark.parametrize(
    "change", [{"role": "king"}, {"public_key": "00"}, {"public_key": "zz"}, {"colour": "red"}, {"name": 3}], ids=str
)
def test_a_trust_file_with_a_fault_is_refused(change: dict[str, object]) -> None:
    item = {"key_id": "a", "name": "a", "role": "person", "public_key": person("a").public_key().public_bytes_raw().hex()}
    read_publishers(json.dumps([item]).encode())
    with pytest.raises(PublicationError, match="bad_content"):
        read_publishers(json.dumps([item | change]).encode())
    with pytest.raises(PublicationError, match="twice"):
        read_publishers(json.dumps([item, item | {"key_id": "b", "name": "b"}]).encode())


# ---- a second implementation of COSE


def cose_key(name: str, key_id: bytes) -> Any:
    key = person(name)
    return COSEKey.new({1: 1, 2: key_id, 3: -8, -1: 6, -2: key.public_key().public_bytes_raw(), -4: key.private_bytes_raw()})


def test_another_implementation_of_cose_verifies_each_of_our_signatures() -> None:
    payload = cbor2.loads(SIGNED).value[2]
    for name in ("service", "lan"):
        assert COSE.new().decode(SIGNED, keys=[cose_key(name, f"{name}-1".encode())]) == payload
    with pytest.raises(Exception, match=r"verify|not found"):
        COSE.new().decode(SIGNED, keys=[cose_key("hoa", b"lan-1")])


def test_what_another_implementation_of_cose_signed_is_opened() -> None:
    payload = make_snapshot(7, NOON, [])
    theirs = [
        Signer.new(cose_key=cose_key(name, f"{name}-1".encode()), protected={1: -8, 4: f"{name}-1".encode()}, unprotected={})
        for name in ("service", "minh")
    ]
    data = COSE.new().encode(payload, signers=theirs, protected={}, unprotected={})
    assert open_publication(data, PUBLISHERS).publishers == {"service", "minh"}


def test_one_signer_alone_works_both_ways_too() -> None:
    data = sign1(person("lan"), b"lan-1", b"payload")
    assert COSE.new().decode(data, keys=[cose_key("lan", b"lan-1")]) == b"payload"
    theirs = COSE.new().encode(b"payload", cose_key("lan", b"lan-1"), protected={1: -8, 4: b"lan-1"}, unprotected={})
    payload, signature = read_sign1(theirs)
    assert (payload, signature.key_id) == (b"payload", b"lan-1")
    assert signature.holds(person("lan").public_key())
    assert not signature.holds(person("minh").public_key())


def test_a_structure_for_several_is_not_read_as_one_for_one() -> None:
    with pytest.raises(CoseError, match="tag 18"):
        read_sign1(SIGNED)
    with pytest.raises(CoseError, match="tag 98"):
        add_signature(sign1(person("lan"), b"lan-1", b""), b"minh-1", person("minh"))
