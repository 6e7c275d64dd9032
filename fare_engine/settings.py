"""What a running service is told from outside: environment variables that begin with MOTTHE_, or arguments."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fare_engine.store.database import sqlite_url

PROJECT = Path(__file__).resolve().parents[1]


def default_tariff() -> Path:
    """The city that `tariffs/default.txt` names."""
    tariffs = PROJECT / "tariffs"
    return tariffs / (tariffs / "default.txt").read_text(encoding="utf-8").strip()


class Settings(BaseSettings):
    """`data` is the folder of the embedded database, its keys and statements; `database_url` overrides the database."""

    model_config = SettingsConfigDict(env_prefix="MOTTHE_")

    data: Path = Path("motthe-data")
    database_url: str | None = None
    redis_url: str | None = None
    """Redis or Valkey, where several processes serve; without it each asks the database once a second."""
    provider_url: str | None = None
    """The payment provider that riders' money is collected through; without it nobody is charged."""
    tariff: Path = Field(default_factory=default_tariff)
    adopt: Annotated[tuple[str, ...], NoDecode] = ()
    public_delay_minutes: int = 5
    """The public page shows counts up to this long ago."""
    demo: bool = False
    """Shows engineers' figures on the live page; never set where riders' taps are real."""

    @field_validator("adopt", mode="before")
    @classmethod
    def _versions(cls, said: object) -> object:
        """MOTTHE_ADOPT=a,b; a JSON list as well."""
        if not isinstance(said, str):
            return said
        if said.startswith("["):
            return msgspec.json.decode(said)
        return tuple(version.strip() for version in said.split(",") if version.strip())

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or sqlite_url(self.data / "motthe.db")

    @property
    def server_key(self) -> bytes:
        """The key under which tokens and card numbers are hashed; made on first use, readable by its owner only."""
        return secret_file(self.data / "keys" / "server.key")

    @property
    def at_rest_key(self) -> bytes:
        """The key under which messages and tokens are encrypted in the database."""
        return secret_file(self.data / "keys" / "at-rest.key")


def secret_file(path: Path) -> bytes:
    """32 secret bytes kept in a file, made if it is not there; whole or not at all, also for who reads at the same moment."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        own.touch(mode=0o600)
        own.write_bytes(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process was quicker: its bytes hold
            os.link(own, path)
        own.unlink()
    return path.read_bytes()
