"""The service as a process of its own, over a folder, at a port that a test may use again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.builders import ROOT


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(data: Path, port: int, environment: Mapping[str, str] | None = None, *options: str) -> subprocess.Popen[bytes]:
    """`motthe serve` over a folder; it answers when this returns."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MOTTHE_")} | dict(environment or {})
    command = [sys.executable, "-m", "motthe", "serve", "--port", f"{port}", "--data", f"{data}", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert process.poll() is None, f"the service ended with exit code {process.returncode}"
            assert time.monotonic() < deadline, "the service did not answer within 30 s"
            time.sleep(0.05)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@contextmanager
def serving_process(data: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """A served folder; its address."""
    port = free_port()
    process = start(data, port, environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
