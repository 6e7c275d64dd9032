"""Disputes as their two sides see them: claim, evidence, what is held, decision. Whoever was given the money sees what is held of
his own rows only."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response

from clearing import store as clearing_store
from clearing.disputes import store
from clearing.disputes.store import Evidence
from clearing.pages.visitors import HOME, not_found, part_of, shown, visitor_of
from fare_engine.store import registry

router = APIRouter(prefix=HOME)
DisputeId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]


@router.get("/disputes", response_class=HTMLResponse)
def disputes(request: Request) -> Response:
    """What one claims, and what is claimed from one."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        found = store.list_disputes(connection, visitor.operator_id)
        held = {
            one.dispute_id: sum(
                item.amount for item in store.items_of(connection, one.dispute_id) if item.party_id == visitor.operator_id
            )
            for one in found
        }
    sides = [
        ("claimed_by_you", [(one, one.amount) for one in found if one.claimant == visitor.operator_id]),
        ("claimed_from_you", [(one, held[one.dispute_id]) for one in found if one.claimant != visitor.operator_id]),
    ]
    return shown(request, visitor, "disputes.html", {"sides": sides})


@router.get("/disputes/{name}", response_class=HTMLResponse)
def dispute(request: Request, name: DisputeId, number: int = 1) -> Response:
    """One dispute, for one of its sides."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        found = store.find(connection, name)
        items = store.items_of(connection, name)
        evidence = store.evidence_of(connection, name)
        own = {one.device_id for one in registry.list_devices(connection) if one.operator_id == visitor.operator_id}
        published = set(clearing_store.published_dates(connection))
    claims = found is not None and found.claimant == visitor.operator_id
    seen = [item for item in items if claims or item.party_id == visitor.operator_id]
    if found is None or not seen:
        return not_found(request, visitor)
    told = [one for one in evidence if claims or _is_own(one, visitor.operator_id, own)]
    part, turned = part_of(sorted(told, key=lambda one: one.kind in ("tap", "device")), number)
    values = {
        "dispute": found,
        "claims": claims,
        "items": seen,
        "held": sum(item.amount for item in seen),
        "granted": sum(item.granted or 0 for item in seen),
        "evidence": part,
        **turned,
        "published": published,
    }
    return shown(request, visitor, "dispute.html", values)


def _is_own(found: Evidence, party: str, devices: set[str]) -> bool:
    """Whether something is about a holder's own statement, devices and taps; of what others were given too, he sees nothing."""
    if found.kind == "statement":
        return found.key.endswith(f"/{party}")
    if found.kind in ("tap", "audit"):
        return found.key.rsplit("/", 2)[0] in devices
    if found.kind == "not_explained":
        return found.key.startswith(f"{party} ")
    return found.kind == "tariff" or found.key in devices
