"""What a terminal holds of the city's publications, what it wants next, and what it was offered and did not take.

Decides whether a publication is taken: signed as it must be, in time, newer, and no larger a step than one may take without
people. One that is not taken is kept out and remembered, so that the operator hears of it at the next contact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fare_engine.errors import PublicationError
from fare_engine.publications import CUT_BYTES, Delta, Kind, Publication, Publisher, open_publication
from validators.deny_list import DenyList, DenyListError, Limits, applied, check_change
from validators.rules import RuleBook, RulesError

PATHS: Final = {Kind.DENY_LIST: "/v1/publications/deny-list", Kind.RULES: "/v1/publications/rules"}
FIRST_PAUSE_MS: Final = 60_000
LONGEST_PAUSE_MS: Final = 3_600_000
LATELY_MS: Final = 24 * 3600 * 1000
"""What was added to the deny list within this time counts as one step."""
_SNAPSHOT_HELPS: Final = frozenset({"unknown_base", "wrong_base"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPublication:
    """A publication that was kept out."""

    kind: Kind
    serial: int | None
    """None: its signatures did not hold, so what it says of itself means nothing."""
    cause: str
    detail: str
    at: int
    """Milliseconds by the device's clock."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A publication to fetch: GET this path of the server."""

    kind: Kind
    path: str


@dataclass(slots=True)
class _Pause:
    """Nothing of a kind is fetched until then: one that is not taken once is large, and not taken soon after either."""

    until: int
    refusals: int


class Published:
    """What is held of both kinds."""

    def __init__(self, deny_list: DenyList, rules: RuleBook, publishers: Mapping[bytes, Publisher], limits: Limits) -> None:
        self.deny_list = deny_list
        self.rules = rules
        self.newest = {Kind.DENY_LIST: deny_list.version, Kind.RULES: rules.newest_serial}
        """What the server last spoke of."""
        self.refused: dict[Kind, RefusedPublication] = {}
        self._publishers = publishers
        self._limits = limits
        self._pauses: dict[Kind, _Pause] = {}
        self._from_nothing = False
        self._added: list[tuple[int, int]] = []

    def heard_of(self, kind: Kind, serial: int) -> None:
        """The server has this one."""
        self.newest[kind] = max(self.newest[kind], serial)

    def wanted(self, at: int) -> tuple[Wanted, ...]:
        """What to fetch now, of what the server is known to have."""
        return tuple(Wanted(kind, self.path(kind)) for kind in Kind if self._is_wanted(kind, at))

    def path(self, kind: Kind) -> str:
        """Where the next one of a kind is, for those who ask without having heard of one: they may add `&wait=25`."""
        return f"{PATHS[kind]}?from={0 if kind is Kind.DENY_LIST and self._from_nothing else self._serial(kind)}"

    def take(self, kind: Kind, data: bytes, at: int, now: int) -> RefusedPublication | None:
        """Take what was fetched, or say why not. `at` is the device's time, `now` the corrected one."""
        serial = None
        try:
            publication = open_publication(data, self._publishers)
            serial = publication.serial
            self._hold(kind, publication, now)
        except (PublicationError, DenyListError, RulesError) as fault:
            return self._refuse(RefusedPublication(kind=kind, serial=serial, cause=fault.cause, detail=fault.detail, at=at))
        self._pauses.pop(kind, None)
        self.refused.pop(kind, None)
        self.heard_of(kind, serial)
        return None

    def replace_deny_list(self, new: DenyList) -> None:
        """Hold a list that came by another way, which nobody signed; raises DenyListError."""
        check_change(self.deny_list, new, 0, self._limits)
        self.deny_list = new

    def _hold(self, kind: Kind, publication: Publication, now: int) -> None:
        if publication.kind is not kind:
            raise PublicationError("bad_content", f"{publication.kind} where {kind} was asked for")
        if publication.expires_at is not None and publication.expires_at <= now:
            raise PublicationError("expired", f"{publication.kind} {publication.serial} at {publication.expires_at}")
        if kind is Kind.DENY_LIST:
            self._hold_list(publication, now)
        else:
            self.rules = self.rules.with_publication(publication, now)

    def _hold_list(self, publication: Publication, now: int) -> None:
        new = applied(self.deny_list, publication)
        self._added = [(when, count) for when, count in self._added if abs(now - when) < LATELY_MS]
        lately = sum(count for _, count in self._added)
        content = publication.content
        counted = len(content.added) // CUT_BYTES if isinstance(content, Delta) else None
        added = check_change(self.deny_list, new, len(publication.persons), self._limits, lately, counted)
        self._added.append((now, added))
        self.deny_list = new
        self._from_nothing = False

    def _refuse(self, refused: RefusedPublication) -> RefusedPublication:
        """Remember it and leave the kind alone for a while; a delta of another list is followed by a snapshot at once."""
        self.refused[refused.kind] = refused
        if refused.cause in _SNAPSHOT_HELPS and not self._from_nothing:
            self._from_nothing = True
            return refused
        before = self._pauses.get(refused.kind)
        refusals = before.refusals + 1 if before else 1
        pause = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS << min(refusals - 1, 10))
        self._pauses[refused.kind] = _Pause(refused.at + pause, refusals)
        return refused

    def _is_wanted(self, kind: Kind, at: int) -> bool:
        if not self._publishers or self.newest[kind] <= self._serial(kind):
            return False
        pause = self._pauses.get(kind)
        return pause is None or not pause.until - LONGEST_PAUSE_MS <= at < pause.until

    def _serial(self, kind: Kind) -> int:
        return self.deny_list.version if kind is Kind.DENY_LIST else self.rules.newest_serial
