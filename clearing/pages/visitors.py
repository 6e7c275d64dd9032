"""Who looks at an operator's page, and what every such page shares: whose data it is, words, and the page that there is not.

An operator sees his own data and nobody else's: every page asks for things by the operator that is logged in, and what is
somebody else's is not found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from clearing.close import Rules
from clearing.commands import rules_of
from clearing.disputes.claims import AUDITOR, CLEARING_HOUSE
from clearing.pages.words import WORDS
from fare_engine.pages.base import HERE, environment, language_of, page
from fare_engine.pages.names import LANGUAGES, Names
from fare_engine.service_day import to_datetime
from fare_engine.store.database import Database

templates = environment(HERE.parents[1] / "clearing" / "templates")
HOME = "/operator"
ON_A_PAGE = 20
Item = TypeVar("Item")
Day = Annotated[str, Path(pattern=r"^\d{4}-\d{2}-\d{2}$")]
"""A date in an address."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The operator that is logged in, and how he reads."""

    operator_id: str
    names: Names
    words: Mapping[str, str]
    service: Any

    @property
    def database(self) -> Database:
        """The service's store."""
        found: Database = self.service.database
        return found

    @property
    def rules(self) -> Rules:
        """What closes go by now."""
        return rules_of(self.service.tariff, self.service.settings.tariff)

    def who(self, name: str) -> str:
        """A party's name, or the clearing house's or auditor's."""
        return self.words[name] if name in (AUDITOR, CLEARING_HOUSE, "fare planners") else self.names.party(name)

    def moment(self, at: int | None) -> str:
        """Local date and time."""
        return to_datetime(at, self.names.tariff.zone).strftime("%d/%m/%Y %H:%M:%S") if at is not None else "–"


def visitor_of(request: Request) -> Visitor | Response:
    """Who is logged in; the way to the login otherwise."""
    operator_id = request.session.get("operator")
    if operator_id is None:
        return RedirectResponse(HOME, status_code=303)
    service, language = request.app.state.service, language_of(request)
    words = {key: pair[LANGUAGES.index(language)] for key, pair in WORDS.items()}
    return Visitor(operator_id, Names(service.tariff, language), words, service)


def shown(request: Request, visitor: Visitor, template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A page for whoever is logged in."""
    common = {"w": visitor.words, "names": visitor.names, "who": visitor.who, "moment": visitor.moment}
    return page(request, templates, template, {**common, "operator": visitor.operator_id, **values}, status)


def not_found(request: Request, visitor: Visitor) -> HTMLResponse:
    """What there is not, or is somebody else's: nobody is told which, and nothing of what was asked for is repeated."""
    return shown(request, visitor, "operator_not_found.html", {"path": HOME}, 404)


def part_of(found: Sequence[Item], number: int) -> tuple[Sequence[Item], dict[str, int]]:
    """The things on a page of a long list, with the page's number and how many there are."""
    pages = max(1, -(-len(found) // ON_A_PAGE))
    number = min(max(number, 1), pages)
    return found[(number - 1) * ON_A_PAGE : number * ON_A_PAGE], {"number": number, "pages": pages}


def attachment(name: str, media_type: str, content: bytes) -> Response:
    """A file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=media_type, headers=headers)
