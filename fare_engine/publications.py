"""What the city publishes to its terminals, signed: the deny list, and the rules by which a terminal decides alone.

Decides what bytes are a publication and who signed it. Leaves to the terminal whether it follows what is held, and
whether it changes so much at once that people must have signed it. docs/terminal-protocol.md is the specification.

A publication is a COSE_Sign (fare_engine/cose.py) with the signature of the service, which signs by itself, and with
those of persons, who looked at it. Its serial only ever grows: what is rolled back comes again under a newer one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias, cast

import cbor2
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fare_engine import cose
from fare_engine.cose import CoseError, read_map, read_sign, shown, text, uint
from fare_engine.errors import PublicationError

FORMAT: Final = 1
MAX_BYTES: Final = 64 << 20
CUT_BYTES: Final = 8
"""A deny list holds the first 8 bytes of each token."""
MAX_WINDOW_MS: Final = 366 * 24 * 3600 * 1000
MAX_MEDIA: Final = 100


class Kind(StrEnum):
    """What is published."""

    DENY_LIST = "deny-list"
    RULES = "rules"


class Role(StrEnum):
    """Who signs."""

    SERVICE = "service"
    """The server, by itself."""
    PERSON = "person"
    """Somebody who approved it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """A key that a terminal trusts. A person may have several keys and is still one person."""

    name: str
    role: Role
    public_key: Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A deny list as a whole: cut tokens one after the other, ascending, none twice."""

    tokens: bytes


@dataclass(frozen=True, slots=True)
class Delta:
    """What becomes of the base version: cut tokens as in a snapshot. What is added was not in it, what is removed was."""

    added: bytes
    removed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalRules:
    """How a terminal decides. Windows are in milliseconds, and 0 switches them off."""

    tariff_version: str | None = None
    """Written into each tap; None: as the terminal was set up."""
    double_tap_ms: int = 3000
    """Within this time the same token is the same tap."""
    pass_back_ms: int = 0
    """Within this time after a ride began (or ended) here, the same token does not begin (or end) another one here."""
    most_persons: int = 255
    """Most persons on one tap."""
    media_offline: tuple[str, ...] | None = None
    """Media that the terminal admits alone to a ride: a name, or the part of it before a colon. None: all."""
    stale_list_ms: int | None = None
    """From this age of the deny list on, only `media_when_stale` are admitted alone. None: never."""
    media_when_stale: tuple[str, ...] = ()
    last_known_ms: int = 300_000
    """How long a refusal by the server, and the balance that it told, count when it cannot be asked."""
    offline_floor: int | None = None
    """Minor units: a token whose last known balance is below this is not admitted alone. None: no floor."""
    card_clash_ms: int = 0
    """Within this time another token takes the place of one that has not passed the gate: two media held up at once."""


Content: TypeAlias = Snapshot | Delta | TerminalRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A publication whose form and signatures are right. Times are milliseconds UTC."""

    kind: Kind
    serial: int
    """Of a deny list: its version."""
    made_at: int
    content: Content
    base: int | None = None
    """Of a delta: the version to which it applies."""
    activates_at: int | None = None
    """Of rules: they do not act before."""
    expires_at: int | None = None
    """From then on a terminal does not take it any more; what it has taken before, it keeps."""
    publishers: frozenset[str] = frozenset()
    """Names of all whose signatures hold."""
    persons: frozenset[str] = frozenset()
    """Names of the persons among them."""


# ---- making


def make_snapshot(version: int, made_at: int, tokens: Iterable[bytes], expires_at: int | None = None) -> bytes:
    """The payload of a whole deny list of these terminal tokens, in any order, whole or cut."""
    content = Snapshot(join_cut(tokens))
    return encode(
        Publication(kind=Kind.DENY_LIST, serial=version, made_at=made_at, content=content, expires_at=expires_at),
    )


def make_delta(
    version: int, base: int, made_at: int, added: Iterable[bytes], removed: Iterable[bytes], expires_at: int | None = None
) -> bytes:
    """The payload that turns version `base` of the deny list into `version`."""
    content = Delta(join_cut(added), join_cut(removed))
    return encode(
        Publication(kind=Kind.DENY_LIST, serial=version, base=base, made_at=made_at, content=content, expires_at=expires_at),
    )


def make_rules(serial: int, made_at: int, rules: TerminalRules, activates_at: int, expires_at: int | None = None) -> bytes:
    """The payload of rules that act from `activates_at` on."""
    return encode(
        Publication(
            kind=Kind.RULES,
            serial=serial,
            made_at=made_at,
            content=rules,
            activates_at=activates_at,
            expires_at=expires_at,
        ),
    )


def join_cut(tokens: Iterable[bytes]) -> bytes:
    """Tokens cut, ascending and none twice, as they stand in a snapshot or delta."""
    return b"".join(sorted({bytes(token[:CUT_BYTES]) for token in tokens}))


def encode(publication: Publication) -> bytes:
    """The payload to sign; raises PublicationError for what no terminal would read."""
    fields = {
        1: FORMAT,
        2: publication.kind.value,
        3: publication.serial,
        4: publication.base,
        5: publication.made_at,
        6: _content_out(publication.content),
        7: publication.activates_at,
        8: publication.expires_at,
    }
    payload = cbor2.dumps({key: value for key, value in fields.items() if value is not None})
    _read_payload(payload)
    return payload


def sign(payload: bytes, signers: Mapping[bytes, Ed25519PrivateKey]) -> bytes:
    """The publication, signed by keys given by their key id. Persons who look at it later add theirs by `approve`."""
    return cose.sign(signers, payload)


def approve(data: bytes, key_id: bytes, private_key: Ed25519PrivateKey) -> bytes:
    """The same publication with one more signature."""
    try:
        return cose.add_signature(data, key_id, private_key)
    except CoseError as fault:
        raise PublicationError(fault.cause, fault.detail) from None


def _content_out(content: Content) -> object:
    match content:
        case Snapshot():
            return content.tokens
        case Delta():
            return {1: content.added, 2: content.removed}
        case TerminalRules():
            return _rules_out(content)


def _rules_out(rules: TerminalRules) -> dict[int, object]:
    """Every rule is said, so that a terminal's own defaults decide nothing."""
    values = {key: getattr(rules, rule.name) for key, rule in _RULES.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None}


# ---- whom a terminal trusts


class _PublisherIn(msgspec.Struct, forbid_unknown_fields=True):
    key_id: str
    name: str
    role: Role
    public_key: str
    """Hexadecimal."""


def read_publishers(data: bytes) -> dict[bytes, Publisher]:
    """Publishers by key id, from a trust file: a JSON list of {key_id, name, role, public_key in hexadecimal}.

    Raises PublicationError: not_trusted for a file that makes one key two persons, bad_content for any other fault."""
    try:
        items = msgspec.json.decode(data, type=list[_PublisherIn])
        found = {item.key_id.encode(): _publisher(item) for item in items}
    except (msgspec.MsgspecError, ValueError) as fault:
        raise PublicationError("bad_content", f"the trust file: {fault}") from None
    if len(found) < len(items) or len({item.public_key.lower() for item in items}) < len(items):
        raise PublicationError("not_trusted", "the trust file names a key id or a key twice")
    return found


def _publisher(item: _PublisherIn) -> Publisher:
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(item.public_key))
    return Publisher(name=item.name, role=item.role, public_key=key)


# ---- opening


def open_publication(data: bytes, trusted: Mapping[bytes, Publisher], limit: int = MAX_BYTES) -> Publication:
    """The publication in `data`, with those who signed it.

    The service must have signed. Signatures under key ids that nobody here knows are passed over: a terminal hears late
    of new people. A wrong one under a known key id refuses the whole. Raises PublicationError with one of the causes
    too_large, not_cbor, bad_structure, unsupported_algorithm, bad_signature, not_trusted, bad_content."""
    if len(data) > limit:
        raise PublicationError("too_large", f"{len(data)} bytes, at most {limit}")
    try:
        payload, signatures = read_sign(data)
    except CoseError as fault:
        raise PublicationError(fault.cause, fault.detail) from None
    signers = []
    for signature in signatures:
        publisher = trusted.get(signature.key_id)
        if publisher is None:
            continue
        if not signature.holds(publisher.public_key):
            raise PublicationError("bad_signature", f"not signed by the key of {publisher.name!r}")
        signers.append(publisher)
    if not any(signer.role is Role.SERVICE for signer in signers):
        raise PublicationError("not_trusted", f"not signed by the service, but by {sorted(one.name for one in signers)}")
    return _read_payload(payload, signers)


def _read_payload(payload: bytes, signers: Iterable[Publisher] = ()) -> Publication:
    """The publication from a payload whose signatures hold."""
    signers = tuple(signers)
    try:
        fields = read_map(payload)
        if fields.keys() - _KEYS or not fields.keys() >= _ALWAYS:
            raise ValueError(f"keys {sorted(fields)}")
        if fields[1] != FORMAT:
            raise ValueError(f"format {shown(fields[1])}, only {FORMAT} is taken")
        publication = Publication(
            kind=Kind(cast(str, fields[2])),
            serial=_position(fields[3]),
            made_at=_number(fields[5]),
            base=_optional(_number, fields, 4),
            content=_read_content(Kind(cast(str, fields[2])), 4 in fields, fields[6]),
            activates_at=_optional(_number, fields, 7),
            expires_at=_optional(_number, fields, 8),
            publishers=frozenset(one.name for one in signers),
            persons=frozenset(one.name for one in signers if one.role is Role.PERSON),
        )
        _check_together(publication)
    except (ValueError, TypeError) as fault:
        raise PublicationError("bad_content", str(fault)) from None
    return publication


def _check_together(publication: Publication) -> None:
    """Times and versions that must fit; raises ValueError."""
    if (publication.activates_at is None) != (publication.kind is Kind.DENY_LIST):
        raise ValueError(f"{publication.kind} with activates_at {publication.activates_at}")
    if publication.base is not None and (publication.kind is Kind.RULES or publication.base >= publication.serial):
        raise ValueError(f"{publication.kind} {publication.serial} with base {publication.base}")


def _read_content(kind: Kind, is_delta: bool, value: object) -> Content:
    if kind is Kind.RULES:
        return read_rules(value)
    if not is_delta:
        return Snapshot(_cut_tokens(value))
    if not isinstance(value, dict) or value.keys() != {1, 2}:
        raise ValueError(f"a delta is not {{1: added, 2: removed}}: {shown(value)}")
    return Delta(_cut_tokens(value[1]), _cut_tokens(value[2]))


def _cut_tokens(value: object) -> bytes:
    """Whole tokens; whether they ascend is seen where they are used, once."""
    if not isinstance(value, bytes) or len(value) % CUT_BYTES:
        raise ValueError(f"no whole number of tokens of {CUT_BYTES} bytes: {shown(value)}")
    return value


def read_rules(value: object) -> TerminalRules:
    """The rules in a map as it stands in a publication; raises ValueError."""
    if not isinstance(value, dict) or value.keys() - _RULES.keys():
        raise ValueError(f"not a map of the rules {sorted(_RULES)}: {shown(value)}")
    read: dict[str, Any] = {}
    for key, rule in _RULES.items():
        if key not in value and not rule.optional:
            raise ValueError(f"no {rule.name}")
        read[rule.name] = _optional(rule.read, value, key)
    return TerminalRules(**read)


def write_rules(rules: TerminalRules) -> dict[int, object]:
    """The map that `read_rules` takes."""
    return _rules_out(rules)


def _media(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_MEDIA:
        raise ValueError(f"not a list of at most {MAX_MEDIA} media: {shown(value)}")
    names = tuple(_name(item) for item in value)
    if list(names) != sorted(set(names)):
        raise ValueError(f"media that do not ascend: {names}")
    return names


def _optional(read: Callable[[object], Any], fields: Mapping[int, object], key: int) -> Any:
    """None where the key is left out; null never stands in a publication."""
    return read(fields[key]) if key in fields else None


_number, _position = uint(), uint(1)
_window = uint(0, MAX_WINDOW_MS)
_name = text(64)


class _Rule(NamedTuple):
    """One key of the rules: which attribute, how to read it, and whether it may be left out, as None."""

    name: str
    read: Callable[[object], object]
    optional: bool = False


_KEYS: Final = frozenset(range(1, 9))
_ALWAYS: Final = frozenset({1, 2, 3, 5, 6})
_RULES: Final[dict[int, _Rule]] = {
    1: _Rule("tariff_version", _name, optional=True),
    2: _Rule("double_tap_ms", _window),
    3: _Rule("pass_back_ms", _window),
    4: _Rule("most_persons", uint(1, 255)),
    5: _Rule("media_offline", _media, optional=True),
    6: _Rule("stale_list_ms", _window, optional=True),
    7: _Rule("media_when_stale", _media),
    8: _Rule("last_known_ms", _window),
    9: _Rule("offline_floor", uint(-cose.LARGEST), optional=True),
    10: _Rule("card_clash_ms", _window),
}
