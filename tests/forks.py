"""`motthe` commands in processes of their own that need not load everything anew: one that has loaded it forks for each.

Most of a short command's time is spent on loading. What is proven of a command (how it ends, what it says, what it leaves in a
store that others have open) is the same; demos, services, providers and whatever is killed are started as anybody would."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_loaded: list[subprocess.Popen[str]] = []


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """A command in a folder and an environment. subprocess.TimeoutExpired if it takes longer, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        told = {"arguments": arguments, "folder": f"{folder}", "environment": dict(environment), "timeout": timeout}
        code = _tell(told | {"out": f"{out}", "err": f"{err}"})
        if code is None:
            raise subprocess.TimeoutExpired(["motthe", *arguments], timeout)
        return subprocess.CompletedProcess(["motthe", *arguments], code, out.read_text("utf-8"), err.read_text("utf-8"))


def _tell(told: dict[str, Any]) -> int | None:
    """The exit code of a command; None if it took too long."""
    if not _loaded:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=told["folder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        _loaded.append(process)
        atexit.register(process.communicate)
    (process,) = _loaded
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(told), file=process.stdin, flush=True)
        code: int | None = json.loads(process.stdout.readline())
    except BaseException:  # a test's time is over, say: whoever comes next must not get this one's answer
        process.kill()
        _loaded.clear()
        raise
    return code


# ---- in the process that forks


def serve() -> None:
    """Load every command; fork for each that is told on the standard input, and say how it ended; end with the input."""
    import motthe

    for module in (*motthe.COMMANDS, *motthe.SIMULATIONS):
        import_module(module)
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(told)
            motthe.main()
            return
        code = _ended(child, time.monotonic() + told["timeout"])
        sys.stdout.write(json.dumps(code) + "\n")
        sys.stdout.flush()


def _ended(child: int, deadline: float) -> int | None:
    """The exit code of a process; None, and it is killed, if it has none by then."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become(told: dict[str, Any]) -> None:
    """As a shell would start it."""
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    for number, (name, flags) in enumerate(((os.devnull, os.O_RDONLY), (told["out"], os.O_WRONLY), (told["err"], os.O_WRONLY))):
        opened = os.open(name, flags | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["motthe", *told["arguments"]]


if __name__ == "__main__":
    serve()
