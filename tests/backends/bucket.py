"""A real S3 server for terraform's s3 backend: versitygw, whose objects are files that a test can look at.

Compiled from the Go module proxy into the cache, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.backends import a_free_port, until_listening
from tests.backends.faults import GET, LOCK, POST, UNLOCK, HttpFaults
from tests.backends.http_state import resources_of
from tests.cluster import cache, golang, pins
from tests.cluster.progress import Progress

ACCESS_KEY, SECRET_KEY = "the-access-key", "the-secret-key-of-the-bucket"
_BUCKET, _LOCK_SUFFIX = "states", ".tflock"


def verb_of(method: str, path: str) -> str:
    is_lock = path.endswith(_LOCK_SUFFIX)
    match method:
        case "PUT":
            return LOCK if is_lock else POST
        case "DELETE" if is_lock:
            return UNLOCK
        case _:
            return GET


def program() -> Path:
    package = "github.com/versity/versitygw/cmd/versitygw"
    product = golang.installed("versitygw", package, pins.VERSITYGW, cold="2 min")
    if not product.is_built:
        with cache.lock():
            Progress().make(product)
    return product.path / "versitygw"


@dataclass
class S3Server:
    objects: Path
    attributes: Path
    port: int


@contextmanager
def an_s3_server(folder: Path) -> Iterator[S3Server]:
    # Attributes of objects are files too: not every file system that a test may run on keeps them.
    objects, attributes, port = folder / "objects", folder / "attributes", a_free_port()
    (objects / _BUCKET).mkdir(parents=True)
    attributes.mkdir()
    command = [str(program()), "--port", f"127.0.0.1:{port}", "--quiet", "posix"]
    env = os.environ | {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--sidecar", str(attributes), str(objects)], env=env, stdout=log, stderr=log
        )
    try:
        until_listening(port, process)
        yield S3Server(objects, attributes, port)
    finally:
        process.kill()
        process.wait()


@dataclass
class Bucket:
    """One key of it, with a proxy of its own."""

    server: S3Server
    key: str
    faults: HttpFaults

    @property
    def secret_config(self) -> dict[str, str]:
        return {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}

    @property
    def config(self) -> dict[str, Any]:
        """Without credentials."""
        return {
            "bucket": _BUCKET,
            "key": self.key,
            "region": "us-east-1",
            "use_lockfile": True,
            "use_path_style": True,
            "skip_credentials_validation": True,
            "skip_requesting_account_id": True,
            "skip_metadata_api_check": True,
            "skip_region_validation": True,
            "skip_s3_checksum": True,
            "max_retries": 1,
            "endpoints": {"s3": self.faults.url},
        }

    def file(self, workspace: str = "network") -> Path:
        return self.server.objects / _BUCKET / "env:" / workspace / self.key

    @property
    def lock_file(self) -> Path:
        return self.file().with_name(self.key + _LOCK_SUFFIX)

    @property
    def resources(self) -> list[str]:
        return resources_of(self.file().read_bytes() if self.file().exists() else None)

    @property
    def lock(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(self.lock_file.read_bytes())
            assert isinstance(found, dict)
            return found
        return None

    def put_lock(self, info: dict[str, Any]) -> None:
        """Of somebody else. Without an ETag the server would let the next one overwrite it."""
        for path, text in ((self._lock_attributes / "meta" / "etag", '"x"'), (self.lock_file, json.dumps(info))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def remove_lock(self) -> None:
        """Whoever has it."""
        self.lock_file.unlink(missing_ok=True)
        shutil.rmtree(self._lock_attributes, ignore_errors=True)

    @property
    def _lock_attributes(self) -> Path:
        return self.server.attributes / self.lock_file.relative_to(self.server.objects)


@asynccontextmanager
async def a_bucket(server: S3Server, key: str) -> AsyncIterator[Bucket]:
    faults = HttpFaults(f"http://127.0.0.1:{server.port}", verb_of)
    async with faults.serving():
        yield Bucket(server, key, faults)
