"""The server's side of publications: what terminals are given of the deny list and the rules, and who signed it.

Decides which tokens are denied, what a terminal that holds some version is sent (a change, or the whole list), and that what is
published is signed by the service and by persons where they did. Leaves the form to `publications`, and to terminals what
they take. Blocking a token and denying it to terminals that decide alone is one step here."""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from sqlalchemy import Connection

from fare_engine import publications
from fare_engine.errors import PublicationError
from fare_engine.publications import Publisher, Role, TerminalRules
from fare_engine.settings import secret_file
from fare_engine.store import deny, travellers
from fare_engine.store.database import Database

SERVICE_KEY_ID = b"service-1"


# ---- keys


CONFIRM_AFTER_MS = 12 * 3_600_000


def service_key(data: Path) -> Ed25519PrivateKey:
    """The key with which the service signs publications; made on first use."""
    return Ed25519PrivateKey.from_private_bytes(secret_file(data / "keys" / "publication.key"))


def trusted(data: Path) -> dict[bytes, Publisher]:
    """Whose publications terminals of this service take: the service, and whoever stands in its trust file.

    PublicationError for a trust file that cannot be used."""
    own = Publisher(name="service", role=Role.SERVICE, public_key=service_key(data).public_key())
    path = _trust_file(data)
    others = publications.read_publishers(path.read_bytes()) if path.exists() else {}
    if SERVICE_KEY_ID in others:
        raise PublicationError("not_trusted", f"{path} names the service's own key id {SERVICE_KEY_ID.decode()!r}")
    return {SERVICE_KEY_ID: own, **others}


def trust_anchors(data: Path) -> list[dict[str, str]]:
    """The same as it stands in a terminal's trust file."""
    return [
        {
            "key_id": key_id.decode(),
            "name": publisher.name,
            "role": publisher.role.value,
            "public_key": publisher.public_key.public_bytes_raw().hex(),
        }
        for key_id, publisher in trusted(data).items()
    ]


def add_person(data: Path, name: str, key_file: Path, key_id: str) -> None:
    """A person whose signature counts from now on. The key is made in `key_file` (PEM) if that is not there; it belongs to the
    person and should not stay on this machine. PublicationError for a key or key id that is taken."""
    if not key_file.exists():
        key = Ed25519PrivateKey.generate()
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = _trust_file(data)
    others: list[dict[str, str]] = msgspec.json.decode(path.read_bytes()) if path.exists() else []
    public = read_private_key(key_file).public_key().public_bytes_raw().hex()
    others.append({"key_id": key_id, "name": name, "role": Role.PERSON.value, "public_key": public})
    content = msgspec.json.format(msgspec.json.encode(others), indent=2)
    publications.read_publishers(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content + b"\n")


def signers_of(data: Path, key_files: Iterable[Path]) -> dict[bytes, Ed25519PrivateKey]:
    """The service and the persons who own some key files; PublicationError for a key that terminals do not know."""
    known = {publisher.public_key.public_bytes_raw(): key_id for key_id, publisher in trusted(data).items()}
    found = {SERVICE_KEY_ID: service_key(data)}
    for path in key_files:
        key = read_private_key(path)
        key_id = known.get(key.public_key().public_bytes_raw())
        if key_id is None:
            raise PublicationError("not_trusted", f"{path}: terminals do not know this key; `motthe devices person` adds it")
        found[key_id] = key
    return found


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key from a PEM file; PublicationError for anything else."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as fault:
        raise PublicationError("unsupported_algorithm", f"{path}: {fault}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PublicationError("unsupported_algorithm", f"{path} holds no Ed25519 key")
    return key


def _trust_file(data: Path) -> Path:
    return data / "keys" / "publishers.json"


# ---- the deny list


def block(connection: Connection, token_id: str, at: int, reason: str) -> bool:
    """A token is blocked from an instant on, in the service and in every terminal's list. False: terminals cannot be told, for
    what they send for this token is not known. NotFoundError for an unknown token."""
    travellers.block_token(connection, token_id, at)
    return _deny_medium(connection, token_id, at, reason, added=True)


def unblock(connection: Connection, token_id: str, at: int, reason: str) -> bool:
    """A token is good again, in the service and in every terminal's list; as `block`."""
    travellers.block_token(connection, token_id, None)
    return _deny_medium(connection, token_id, at, reason, added=False)


def _deny_medium(connection: Connection, token_id: str, at: int, reason: str, *, added: bool) -> bool:
    """The same for every token that the medium has had."""
    tokens = travellers.tokens_of_medium(connection, token_id)
    told = [_deny(connection, token.token_id, at, reason, added=added) for token in tokens]
    return any(told)


def _deny(connection: Connection, token_id: str, at: int, reason: str, *, added: bool) -> bool:
    token = travellers.find_terminal_token(connection, token_id)
    if token is None:
        return False
    deny.add_changes(connection, [token], at, reason, added=added)
    return True


def confirm(connection: Connection, now: int) -> int:
    """Say anew that the list is as it is: a version without a change, for terminals go by the age of theirs. The version."""
    deny.add_changes(connection, [bytes(deny.CUT_BYTES)], now, "confirmed", added=False)
    return deny.newest_version(connection)


def confirm_if_old(connection: Connection, now: int) -> int:
    """Confirm a list that nothing has changed for half a day, so that no terminal takes its own for stale; whether it was."""
    latest = deny.newest_at(connection)
    if latest is None or now - latest < CONFIRM_AFTER_MS:
        return 0
    confirm(connection, now)
    return 1


def publish_whole_list(connection: Connection, signers: Mapping[bytes, Ed25519PrivateKey], now: int) -> int:
    """Sign the whole list as it is, with persons: terminals that hold nothing, or an older one, begin with it. It is a version
    of its own, so that all hear of it; which one."""
    version = confirm(connection, now)
    payload = publications.make_snapshot(version, now, deny.denied_at(connection, version))
    deny.publish(connection, publications.Kind.DENY_LIST, version, now, publications.sign(payload, signers))
    return version


class DenyLists:
    """What terminals are given of the deny list; its changes are read once."""

    def __init__(self, database: Database, key: Ed25519PrivateKey) -> None:
        self.database = database
        self._signers = {SERVICE_KEY_ID: key}
        self._version = 0
        self._denied: set[bytes] = set()
        self._changes: list[deny.DenyChange] = []
        """Those that changed something: no token is added twice in a row."""
        self._signed: tuple[int, bytes] | None = None

    def newer_than(self, held: int, now: int) -> bytes | None:
        """What a terminal that holds a version (0: none) is given; None if nothing is newer.

        A whole list that persons signed goes before any change: a change as large as theirs would not be taken without them."""
        with self.database.read() as connection:
            self._read(connection)
        if held >= self._version:
            return None
        if self._signed is not None and self._signed[0] > held:
            return self._signed[1]
        return publications.sign(self._payload(held, now), self._signers)

    def _read(self, connection: Connection) -> None:
        """Take in what was changed since."""
        serial = deny.newest_serial(connection, publications.Kind.DENY_LIST)
        if serial and (self._signed is None or self._signed[0] < serial):
            self._signed = (serial, deny.get_publication(connection, publications.Kind.DENY_LIST, serial))
        newest = deny.newest_version(connection)
        if newest == self._version:
            return
        for change in deny.list_changes(connection, self._version, newest):
            if change.added != (change.token in self._denied):
                self._changes.append(change)
                (self._denied.add if change.added else self._denied.discard)(change.token)
        self._version = newest

    def _payload(self, held: int, now: int) -> bytes:
        """The change since a version, or the whole list where that is shorter."""
        added, removed = self._since(held)
        if held and len(added) + len(removed) < len(self._denied):
            return publications.make_delta(self._version, held, now, added, removed)
        return publications.make_snapshot(self._version, now, self._denied)

    def _since(self, held: int) -> tuple[set[bytes], set[bytes]]:
        """What was added and removed since a version: of tokens that came and went nothing is left."""
        added: set[bytes] = set()
        removed: set[bytes] = set()
        for change in self._changes[bisect_right(self._changes, held, key=lambda change: change.version) :]:
            gained, lost = (added, removed) if change.added else (removed, added)
            if change.token in lost:
                lost.discard(change.token)
            else:
                gained.add(change.token)
        return added, removed


# ---- rules


def read_rules_file(path: Path) -> TerminalRules:
    """Rules from a TOML file with the names of `TerminalRules`; what it leaves out is as before there were rules.

    PublicationError for an unknown name or a value of another type."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        unknown = found.keys() - set(TerminalRules.__dataclass_fields__)
        if unknown:
            raise ValueError(f"no rules are named {', '.join(sorted(unknown))}")
        return msgspec.convert(found, TerminalRules)
    except (OSError, ValueError, msgspec.ValidationError) as fault:
        raise PublicationError("bad_content", f"{path}: {fault}") from None


def publish_rules(
    connection: Connection, rules: TerminalRules, activates_at: int, signers: Mapping[bytes, Ed25519PrivateKey], now: int
) -> int:
    """Sign rules and keep them for terminals; their serial. PublicationError for rules that no terminal would read."""
    serial = deny.newest_serial(connection, publications.Kind.RULES) + 1
    payload = publications.make_rules(serial, now, rules, activates_at)
    deny.publish(connection, publications.Kind.RULES, serial, now, publications.sign(payload, signers))
    return serial


def newest_rules(connection: Connection, held: int) -> bytes | None:
    """The newest rules, if they are newer than those held."""
    serial = deny.newest_serial(connection, publications.Kind.RULES)
    return deny.get_publication(connection, publications.Kind.RULES, serial) if serial > held else None


def persons_in(signers: Mapping[bytes, Ed25519PrivateKey], known: Mapping[bytes, Publisher]) -> Sequence[str]:
    """The names of the persons among some signers, each once."""
    return sorted({known[key_id].name for key_id in signers if known[key_id].role is Role.PERSON})
