"""Work on a large date in a process of its own, beside the rest.

The process is told what to do by its standard input and gives what it found on its standard output; it ends by itself, whatever
becomes of this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar, get_type_hints

import msgspec

from fare_engine.errors import CloseError

Told = TypeVar("Told")
Found = TypeVar("Found")


def begin(work: Callable[[Told], Found], told: Told) -> Callable[[], Found]:
    """Begin `work`, a module's function of one argument named `told`. Gives what waits for it; CloseError if it died."""
    program = f"from clearing.apart import do; from {work.__module__} import {work.__name__} as work; do(work)"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.msgpack.encode(told))
    process.stdin.close()

    def wait() -> Found:
        assert process.stdout is not None
        with process.stdout:
            said = process.stdout.read()
        if process.wait() != 0:
            raise CloseError(f"the process of {work.__name__} ended with {process.returncode} before it was done")
        found: Found = msgspec.msgpack.decode(said, type=get_type_hints(work)["return"])
        return found

    return wait


def do(work: Callable[[Told], Found]) -> None:
    """What the process does."""
    told = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=get_type_hints(work)["told"])
    sys.stdout.buffer.write(msgspec.msgpack.encode(work(told)))
