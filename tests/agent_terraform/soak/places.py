"""Where a round's state is, as the judge sees it: beside terraform, and beside the agent.

One of each kind of backend, behind the proxy that breaks it; servers are shared by the rounds, what is in
them is not. Called by `runs`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from terrahalt_protocol.messages import Backend, Source
from tests.backends.bucket import Bucket, S3Server, a_bucket
from tests.backends.faults import Faults
from tests.backends.http_state import HttpState, an_http_state
from tests.backends.postgres import Database, Server, a_database

FOREIGN = {
    "ID": "99999999-1111-2222-3333-444444444444", "Operation": "OperationTypeApply", "Info": "", "Version": "1.11.4",
    "Who": "somebody@else", "Created": "2026-01-01T00:00:00Z", "Path": "state",
}  # fmt: skip


def _held_files() -> str:
    return Path("/proc/locks").read_text()


class Place(Protocol):
    faults: Faults | None
    """None: nothing lies between terraform and it."""
    ends_with_process: bool
    """Its lock does."""

    def fields(self, files: dict[str, str]) -> dict[str, Any]:
        """Of the `Start` of a run whose state is here."""

    async def state(self) -> bytes:
        """What is saved; empty: nothing."""

    async def lock_id(self) -> str:
        """Of the lock that somebody has now; empty: nobody. It need not be one that terraform knows."""

    def put_lock(self, info: dict[str, Any]) -> None: ...

    def free(self) -> None:
        """As an administrator would, whoever has it."""


class LocalPlace:
    """Of its lock the kernel is asked whether somebody holds it."""

    ends_with_process = True

    def __init__(self, states: Path) -> None:
        self.faults: Faults | None = None
        self._file = states / "network.tfstate"

    def fields(self, files: dict[str, str]) -> dict[str, Any]:
        return {"source": Source(inline=files)}

    async def state(self) -> bytes:
        return self._file.read_bytes() if self._file.exists() else b""

    async def lock_id(self) -> str:
        if not self._file.exists():
            return ""
        inode = self._file.stat().st_ino
        held = re.search(rf"^\d+: POSIX .* \S+:\S+:{inode} ", _held_files(), re.MULTILINE)
        return held[0] if held else ""

    def put_lock(self, info: dict[str, Any]) -> None:
        raise AssertionError("only a process can hold it")

    def free(self) -> None:
        """Nobody can."""


class _OtherPlace:
    type: str
    ends_with_process = False
    settings: dict[str, Any]

    def fields(self, files: dict[str, str]) -> dict[str, Any]:
        backend = Backend(type=self.type, config=self.settings, source=Source(inline=files))
        return {"source": Source(), "backend": backend}


class HttpPlace(_OtherPlace):
    type = "http"

    def __init__(self, http: HttpState) -> None:
        self._http = http
        self.faults: Faults | None = http.faults
        self.settings = http.config | http.secret_config

    async def state(self) -> bytes:
        return self._http.content or b""

    async def lock_id(self) -> str:
        return str(self._http.lock["ID"]) if self._http.lock else ""

    def put_lock(self, info: dict[str, Any]) -> None:
        self._http.lock = dict(info)

    def free(self) -> None:
        self._http.lock = None


class S3Place(_OtherPlace):
    type = "s3"

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.faults: Faults | None = bucket.faults
        self.settings = bucket.config | bucket.secret_config

    async def state(self) -> bytes:
        file = self._bucket.file()
        return file.read_bytes() if file.exists() else b""

    async def lock_id(self) -> str:
        lock = self._bucket.lock
        return str(lock["ID"]) if lock else ""

    def put_lock(self, info: dict[str, Any]) -> None:
        self._bucket.put_lock(info)

    def free(self) -> None:
        self._bucket.remove_lock()


class PgPlace(_OtherPlace):
    """Its lock ends with the session, which is all that a server knows of it."""

    type = "pg"
    ends_with_process = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self.faults: Faults | None = database.faults
        self.settings = database.config | database.secret_config

    async def state(self) -> bytes:
        return (await asyncio.to_thread(self._saved)).encode()

    def _saved(self) -> str:
        database = self._database
        if not database.query(f"SELECT to_regclass('{database.schema}.states')"):
            return ""
        return database.query(f"SELECT data FROM {database.schema}.states WHERE name = 'network'")

    async def lock_id(self) -> str:
        lock = await asyncio.to_thread(lambda: self._database.lock)
        return str(lock["ID"]) if lock else ""

    def put_lock(self, info: dict[str, Any]) -> None:
        raise AssertionError("only a session can hold it")

    def free(self) -> None:
        """Nobody can."""


@dataclass(frozen=True)
class Servers:
    """Those that last for all rounds."""

    s3: S3Server
    postgres: Server


@asynccontextmanager
async def a_place(kind: str, name: str, states: Path, servers: Servers) -> AsyncIterator[Place]:
    """`name` is not used twice; `states` is the folder of a local one."""
    match kind:
        case "local":
            yield LocalPlace(states)
        case "http":
            async with an_http_state() as http:
                yield HttpPlace(http)
        case "s3":
            async with a_bucket(servers.s3, f"{name}.tfstate") as bucket:
                yield S3Place(bucket)
        case _:
            # A database of its own: the locks are those of all its schemas, and one is for making any state.
            await asyncio.to_thread(servers.postgres.query, f"CREATE DATABASE {name}")
            try:
                async with a_database(servers.postgres, "terraform_remote_state", name) as database:
                    yield PgPlace(database)
            finally:
                await asyncio.to_thread(servers.postgres.query, f"DROP DATABASE {name} WITH (FORCE)")
