"""A real PostgreSQL for terraform's pg backend, from Debian's packages; it runs as a user of its own, as it insists on.

Locks are sessions' advisory locks: what is held is read from the server itself.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.backends import a_free_port, until_listening
from tests.backends.faults import GET, LOCK, POST, UNLOCK, TcpFaults
from tests.backends.http_state import resources_of
from tests.cluster import debian

USER, PASSWORD = "terrahalt", "the-password-of-the-database"
STARTED_WITHIN_S = 60.0
_VERBS = {b"pg_advisory_unlock": UNLOCK, b"pg_try_advisory_lock": LOCK, b"INSERT": POST, b"UPDATE": POST}


def verb_of(sent: bytes) -> str:
    return next((verb for words, verb in _VERBS.items() if words in sent), GET)


def _programs() -> Path:
    """The folder of PostgreSQL's own programs, which Debian keeps off PATH."""
    debian.install({"psql": "postgresql"}, why="the tests of the pg backend")
    on_path = shutil.which("initdb")
    if on_path is None and not (found := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        debian.install({"initdb": "postgresql"}, why="the tests of the pg backend")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(on_path).resolve().parent if on_path else found[-1].parent


@dataclass
class Server:
    port: int

    def query(self, text: str, database: str = "postgres") -> str:
        done = self._asked(text, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def until_started(self) -> None:
        """It listens before it answers: until then it says that it is starting up."""
        deadline = time.monotonic() + STARTED_WITHIN_S
        while "starting up" in (stderr := self._asked("SELECT 1", "postgres").stderr):
            assert time.monotonic() < deadline, stderr

    def _asked(self, text: str, database: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database, "-qtAc", text],
            env=os.environ | {"PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def a_postgres() -> Iterator[Server]:
    programs, port = _programs(), a_free_port()
    # Not in the tests' own folder: only their user may go there.
    folder = Path(tempfile.mkdtemp(prefix="terrahalt-postgres-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    password, data = folder / "password", folder / "data"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    with (folder / "log").open("wb") as log:
        output: dict[str, Any] = {"stdout": log, "stderr": log, "cwd": folder, **who}
        initdb = [
            str(programs / "initdb"),
            "--no-sync",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
        ]
        subprocess.run([*initdb, "-U", USER, "-D", str(data)], check=True, **output)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        options = [word for setting in settings for word in ("-c", setting)]
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), *options], **output
        )
    try:
        until_listening(port, process)
        server = Server(port)
        server.until_started()
        yield server
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@dataclass
class Database:
    """One schema of one of its databases, with a proxy of its own."""

    server: Server
    schema: str
    faults: TcpFaults
    name: str = "postgres"

    def query(self, text: str) -> str:
        return self.server.query(text, self.name)

    @property
    def secret_config(self) -> dict[str, str]:
        return {"conn_str": f"postgres://{USER}:{PASSWORD}@127.0.0.1:{self.faults.port}/{self.name}?sslmode=disable"}

    @property
    def config(self) -> dict[str, Any]:
        """Without the connection."""
        return {"schema_name": self.schema}

    @property
    def resources(self) -> list[str]:
        return resources_of(self.query(f"SELECT data FROM {self.schema}.states WHERE name = 'network'").encode())

    @property
    def workspaces(self) -> set[str]:
        return set(re.findall(r"\S+", self.query(f"SELECT name FROM {self.schema}.states")))

    @property
    def lock(self) -> dict[str, Any] | None:
        """Of any schema: they are the database's."""
        ours = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        found = self.query(f"SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND {ours}")
        return {"ID": found} if found else None


@asynccontextmanager
async def a_database(server: Server, schema: str, name: str = "postgres") -> AsyncIterator[Database]:
    """`name` is that of a database which is there."""
    faults = TcpFaults(server.port, verb_of)
    async with faults.serving():
        yield Database(server, schema, faults, name)
