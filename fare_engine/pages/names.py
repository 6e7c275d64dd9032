"""Names of rules, places and parties, and formats of money and time, as people of one language read them."""

from __future__ import annotations

from typing import Any

from fare_engine.money import format_amount
from fare_engine.pages.words import WORDS
from fare_engine.pricing.lines import Leg, Line
from fare_engine.service_day import to_datetime
from fare_engine.tariff.checks import KINDS
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tariff.model import OPERATORS, Name

LANGUAGES = ("vi", "en")
MODES = {1: "metro", 3: "bus", 4: "river_bus"}


class Names:
    """Names as visitors of one language read them."""

    def __init__(self, tariff: CompiledTariff, language: str) -> None:
        self.tariff = tariff
        self.language = language
        self.words = {key: pair[LANGUAGES.index(language)] for key, pair in WORDS.items()}
        self._rules: dict[str, str] | None = None

    def text(self, name: Name) -> str:
        """The tariff's own name in this language."""
        return name.vi if self.language == "vi" else name.en

    def money(self, amount: int) -> str:
        """An amount in the city's currency."""
        return format_amount(amount, self.tariff.currency, self.language, self.tariff.minor_digits)

    def number(self, count: int) -> str:
        """A count with the language's separators."""
        return f"{count:,}".replace(",", ".") if self.language == "vi" else f"{count:,}"

    def clock(self, at: int | None) -> str:
        """Local time to the minute."""
        return to_datetime(at, self.tariff.zone).strftime("%H:%M") if at is not None else "–"

    def stop(self, stop_id: str | None) -> str:
        """A stop's name."""
        stop = self.tariff.network.stops.get(stop_id or "")
        return stop.name if stop else "–"

    def place(self, stop_id: str) -> str:
        """A stop's name, or what it was called where nobody knows it."""
        stop = self.tariff.network.stops.get(stop_id)
        return stop.name if stop else stop_id

    def party(self, party_id: str) -> str:
        """An operator's or a bearer's name."""
        known = self.tariff.network.parties.get(party_id)
        if known is not None:
            return known.name_vi if self.language == "vi" else known.name_en
        return self.words.get(f"bearer_{party_id.partition(':')[0]}", party_id)

    def line_of(self, leg: Leg) -> str:
        """The line ridden: mode and number."""
        route = self.tariff.network.routes.get(leg.route_id or "") or self._only_route(leg.from_stop_id or leg.to_stop_id)
        if route is None:
            return leg.network_id or "–"
        known = MODES.get(route.route_type)
        mode = self.words[f"mode_{known}"] if known else self.tariff.network.networks.get(leg.network_id or "", "–")
        return f"{mode} {route.short_name}" if route.route_type == 3 else route.long_name or mode

    def icon_of(self, leg: Leg) -> str:
        """Which sign to draw for the mode; the word stands beside it."""
        route = self.tariff.network.routes.get(leg.route_id or "") or self._only_route(leg.from_stop_id or leg.to_stop_id)
        mode = MODES.get(route.route_type if route else 3, "bus")
        return "brt" if leg.network_id == "brt" else mode

    def find_rule(self, rule_id: str) -> str | None:
        """The name that the tariff gives a rule or product, in whichever version it stands; None: it gives none."""
        if self._rules is None:
            self._rules = {}
            for version in self.tariff.versions.values():
                file = version.version.file
                for table in KINDS:
                    named = [row for row in getattr(file, table) if table != "products" and row.name is not None]
                    self._rules |= {row.rule_id: self.text(row.name) for row in named}
                for best in file.best_of:
                    self._rules |= {candidate.candidate_id: self.text(candidate.name) for candidate in best.candidates}
                self._rules |= {product.product_id: self.text(product.name) for product in file.products}
        what = rule_id.partition("/")[2]
        if what in ("missing_exit", "missing_entry", "hold"):
            return self.words[f"rule_{what}"]
        return self._rules.get(rule_id) or self._rules.get(what) or self._rules.get(rule_id.partition("/")[0])

    def rule(self, line: Line, leg: Leg | None) -> str:
        """What a line's rule is called."""
        found = self.find_rule(line.rule_id)
        if found is not None:
            return found
        return f"{self.words[f'kind_{line.kind}']}, {self.line_of(leg)}" if leg is not None else self.words[f"kind_{line.kind}"]

    def bearer(self, line: Line) -> str:
        """Who bears a line."""
        return self.words["bearer_operators"] if line.bearer == OPERATORS else self.party(line.bearer)

    def _only_route(self, stop_id: str | None) -> Any:
        routes = self.tariff.network.routes_of_stop.get(stop_id or "", ())
        return self.tariff.network.routes[routes[0]] if len(routes) == 1 else None
