"""Where an export goes: a folder that is whole or is not there, and that says what it is.

It is written beside its place and moved there at its end. A folder that holds anything else is never touched."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fare_engine.errors import Fault, InputError

MANIFEST = "export.json"


@contextmanager
def written(target: Path, kind: str, period: str) -> Iterator[Path]:
    """A folder to write an export's files into; afterwards they stand in `target` with their hashes in `export.json`.

    InputError if there is anything in `target` that is not an export of the same kind and period."""
    place = target.resolve()
    _check(place, kind, period)
    place.parent.mkdir(parents=True, exist_ok=True)
    own = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    own.mkdir()
    try:
        yield own
        (own / MANIFEST).write_bytes(_manifest(own, kind, period))
        if place.exists() and any(place.iterdir()):
            former = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
            os.rename(place, former)
            os.rename(own, place)
            shutil.rmtree(former)
        else:
            os.rename(own, place)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _check(place: Path, kind: str, period: str) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError([Fault(str(place), "a file", "is no folder")])
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    if not names:
        return
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        held = (manifest["export"], manifest["period"])
        known = {file["name"] for file in manifest["files"]} | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError([Fault(str(place), sorted(names)[0], f"holds something that is not an export of {kind}")]) from None
    if held != (kind, period):
        raise InputError([Fault(str(place), f"{held[0]} {held[1]}", f"holds another export than {kind} {period}")])
    strange = sorted(names - known)
    if strange:
        raise InputError([Fault(str(place), strange[0], "is not of the export in this folder")])


def _manifest(folder: Path, kind: str, period: str) -> bytes:
    with ThreadPoolExecutor() as pool:
        files = list(pool.map(partial(_file, folder), sorted(found for found in folder.rglob("*") if found.is_file())))
    return (json.dumps({"export": kind, "period": period, "files": files}, indent=2) + "\n").encode()


def _file(folder: Path, path: Path) -> dict[str, object]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
