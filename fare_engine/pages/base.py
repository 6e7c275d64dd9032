"""What all pages share: templates, headers, the visitor's language.

A page is Vietnamese unless the visitor asked for English (`?lang=en`, remembered in the session)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, select_autoescape

from fare_engine.money import format_amount
from fare_engine.pages.names import LANGUAGES
from fare_engine.pages.words import WORDS

HERE = Path(__file__).parent
STATIC = HERE / "static"
POLICY = ("default-src 'self'", "style-src 'self' 'unsafe-inline'", "img-src 'self' data:", "frame-ancestors 'none'")
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def environment(*folders: Path) -> Environment:
    """Templates of some folders over the base's own; every missing name is an error, everything is escaped."""
    loaders = [FileSystemLoader(folder) for folder in (*folders, HERE / "templates")]
    found = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["money"] = format_amount
    return found


def language_of(request: Request) -> str:
    """The visitor's language; asking for one is remembered."""
    asked = request.query_params.get("lang")
    if asked in LANGUAGES:
        request.session["lang"] = asked
    found = request.session.get("lang", "vi")
    return found if found in LANGUAGES else "vi"


def page(request: Request, templates: Environment, template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A page in the visitor's language."""
    language = language_of(request)
    words = {key: pair[LANGUAGES.index(language)] for key, pair in WORDS.items()}
    text = templates.get_template(template).render(
        {"t": words, "lang": language, "path": request.url.path, "session": request.session, **values}
    )
    return HTMLResponse(text, status, headers=HEADERS)
