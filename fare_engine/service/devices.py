"""What devices ask for besides taps: their certificate, another key, and what the city publishes to them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from fare_engine import enrolment, publishing
from fare_engine.enrolment import Enrolled
from fare_engine.errors import CertificateError, EnrolmentError
from fare_engine.ids import DeviceId
from fare_engine.publications import Kind
from fare_engine.service.app import Service, get_service
from fare_engine.service.problems import MEDIA_TYPE

router = APIRouter()

COSE = "application/cose"
LONGEST_WAIT_S = 25
MAX_BODY = 16_384
MAX_POLLS = 20_000
"""So many requests wait for something new in one process; whoever comes beyond that is told to come again."""
STATUS = {
    "malformed": 400,
    "unsupported_algorithm": 400,
    "weak_key": 400,
    "too_large": 413,
    "wrong_code": 403,
    "wrong_name": 403,
    "bad_signature": 403,
    "revoked_device": 403,
    "unknown_device": 404,
    "known_device": 409,
    "key_in_use": 409,
    "same_key": 409,
    "locked": 429,
    "overloaded": 503,
}
TITLES = {
    "malformed": "The request is not what it should be",
    "unsupported_algorithm": "Only Ed25519 keys are taken",
    "weak_key": "The key is no key",
    "too_large": "The request is larger than allowed",
    "wrong_code": "The code is not good",
    "wrong_name": "The request is for another device",
    "bad_signature": "The signature does not hold",
    "revoked_device": "The device is revoked",
    "unknown_device": "The device is not enrolled",
    "known_device": "The device is enrolled already",
    "key_in_use": "The key was used before",
    "same_key": "The device has this key already",
    "locked": "Too many wrong codes; come back later",
    "overloaded": "Too many wait already; come back later",
}
LOCKED_S = 900
KEPT = 200
"""So many publications, each for one version held, are kept for whoever asks next."""


class EnrolIn(BaseModel):
    """A device's first request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    code: str = Field(max_length=64)
    request: str = Field(max_length=8192)


class RotateIn(BaseModel):
    """A device's request for another key, with its word by the current one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    request: str = Field(max_length=8192)
    signature: str = Field(max_length=128)


# ---- keys


@router.post("/v1/devices/enrol")
async def enrol(request: Request) -> Response:
    """A device's first certificate, for a one-time code and a certificate request (docs/keys.md)."""
    service = get_service(request)
    client = request.client.host if request.client else ""

    def work(body: bytes) -> Enrolled:
        asked = EnrolIn.model_validate_json(body)
        now = service.clock()
        return enrolment.enrol(
            service.database, service.settings.data, asked.code, _bytes(asked.request), client, now, os.urandom
        )

    return await _answered(request, service, work)


@router.post("/v1/devices/{device_id}/rotate")
async def rotate(request: Request, device_id: str) -> Response:
    """The certificate for a device's next key, for a request that the current key signed (docs/keys.md)."""
    service = get_service(request)

    def work(body: bytes) -> Enrolled:
        asked = RotateIn.model_validate_json(body)
        wanted, signature = _bytes(asked.request), _bytes(asked.signature)
        now = service.clock()
        return enrolment.rotate(service.database, service.settings.data, DeviceId(device_id), wanted, signature, now, os.urandom)

    return await _answered(request, service, work)


async def _answered(request: Request, service: Service, work: Callable[[bytes], Enrolled]) -> Response:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            return _problem("too_large", f"more than {MAX_BODY} bytes")
    try:
        found = await run_in_threadpool(work, bytes(body))
    except (EnrolmentError, CertificateError) as error:
        return _problem(error.cause, error.detail)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors())
        return _problem("malformed", places)
    return JSONResponse(
        {
            "device_id": found.device_id,
            "operator_id": found.operator_id,
            "certificate": base64.b64encode(found.certificate).decode(),
            "authority": base64.b64encode(found.authority).decode(),
            "server_time": service.clock(),
            "publishers": publishing.trust_anchors(service.settings.data),
        }
    )


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnrolmentError("malformed", f"not base 64: {error}") from None


def _problem(cause: str, detail: str) -> Response:
    """A problem as in RFC 9457."""
    status = STATUS.get(cause, 400)
    body = {
        "type": f"urn:motthe:problem:{cause}",
        "title": TITLES.get(cause, cause),
        "status": status,
        "detail": detail,
        "cause": cause,
    }
    headers = {"Retry-After": str(LOCKED_S)} if cause == "locked" else {"Retry-After": "5"} if status == 503 else {}
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)


# ---- publications

From = Annotated[int, Query(alias="from", ge=0, le=1 << 48)]
Wait = Annotated[int, Query(ge=0, le=3600)]


@router.get("/v1/publications/deny-list")
async def deny_list(request: Request, held: From = 0, wait: Wait = 0) -> Response:
    """What is newer than the deny list that a terminal holds (docs/terminal-protocol.md); 204: nothing."""
    return await _desk(request).answer(Kind.DENY_LIST, held, wait)


@router.get("/v1/publications/rules")
async def rules(request: Request, held: From = 0, wait: Wait = 0) -> Response:
    """What is newer than the rules that a terminal holds (docs/terminal-protocol.md); 204: nothing."""
    return await _desk(request).answer(Kind.RULES, held, wait)


class PublicationDesk:
    """Where terminals wait for something new, in one process. What many ask for is made and signed once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.lists = publishing.DenyLists(service.database, publishing.service_key(service.settings.data))
        self.waiting = 0
        self._turn = asyncio.Lock()
        self._made: dict[tuple[Kind, int, int], bytes | None] = {}

    def newest(self, kind: Kind) -> int:
        """The newest version of a kind that this process has heard of."""
        published = self.service.receipt.published
        return published.deny_list_version if kind is Kind.DENY_LIST else published.rules_version

    async def answer(self, kind: Kind, held: int, wait: int) -> Response:
        """What is newer than what is held, at once or as soon as there is something within `wait` seconds."""
        if self.waiting >= MAX_POLLS:
            return _problem("overloaded", f"{self.waiting} requests wait for something new")
        self.waiting += 1
        try:
            await self._wait(kind, held, wait)
        finally:
            self.waiting -= 1
        body = await self._newer(kind, held) if self.newest(kind) > held else None
        return Response(status_code=204) if body is None else Response(body, media_type=COSE)

    async def _wait(self, kind: Kind, held: int, wait: int) -> None:
        """Until there is something newer, or the time is over. Nothing is awaited between the look at the version and the
        wait for another, so no change falls between them."""
        published = self.service.receipt.published
        if not wait and self.newest(kind) <= held and await run_in_threadpool(published.refresh):
            published.wake()  # heard of before this process's own turn to ask
        clock = asyncio.get_running_loop().time
        ends = clock() + min(wait, LONGEST_WAIT_S)
        while self.newest(kind) <= held and clock() < ends:
            await published.changed(ends - clock())

    async def _newer(self, kind: Kind, held: int) -> bytes | None:
        key = (kind, held, self.newest(kind))
        async with self._turn:  # one makes it, the others find it made
            if key not in self._made:
                if len(self._made) >= KEPT:
                    self._made.clear()
                self._made[key] = await run_in_threadpool(self._make, kind, held)
            return self._made[key]

    def _make(self, kind: Kind, held: int) -> bytes | None:
        if kind is Kind.DENY_LIST:
            return self.lists.newer_than(held, self.service.clock())
        with self.service.database.read() as connection:
            return publishing.newest_rules(connection, held)


def _desk(request: Request) -> PublicationDesk:
    """The desk of this process, made when it is first asked for."""
    state: Any = request.app.state
    if not hasattr(state, "publications"):
        state.publications = PublicationDesk(get_service(request))
    found: PublicationDesk = state.publications
    return found
