"""Plans that wait for a person: Secrets of their task, with all that an apply needs beside the task itself.

One archive: plan, lock file of the providers, what the source was, the plan as people read it, and the secrets that
went into it, which its apply takes out of logs: by then their own Secret may hold others. Its SHA-256 is what is
approved, so nothing else can be applied. The Secrets are owned by the task and go with it. Called by `driver`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import tarfile
import zlib
from dataclasses import dataclass

import msgspec

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi
from terrahalt_agent.adapters.secret_parts import SecretParts
from terrahalt_protocol.kept_secret import owned_by
from terrahalt_protocol.messages import ApprovedPlan, Start

DATA_KEY = "plan"
MAX_BYTES = 8 * 1024 * 1024
_PLAN, _LOCK_FILE, _SOURCE, _TEXT, _SECRETS = (
    "plan.tfplan",
    ".terraform.lock.hcl",
    "source",
    "plan.txt",
    "secrets.json",
)


class PlanExpiredError(Exception):
    """What was approved can't be applied any more. The text says why."""


@dataclass(frozen=True, slots=True)
class PlanArchive:
    plan: bytes
    lock_file: bytes | None
    """None: terraform wrote none, as no provider is needed."""
    source: str
    """What the source was, as `workdir` names it."""
    text: bytes
    """What terraform shows of it, without secret values."""
    secrets: tuple[str, ...] = ()
    """Values of variables."""


class KeptPlans:
    def __init__(self, api: ClusterApi, max_bytes: int = MAX_BYTES) -> None:
        self._parts = SecretParts(api, DATA_KEY, max_bytes)

    async def keep(self, kept: PlanArchive, start: Start) -> str:
        """Its digest. Raises ApiError and TooLargeError."""
        archive = _packed(kept)
        packed = await asyncio.to_thread(gzip.compress, archive)
        metadata = owned_by(start.task, workspace=start.workspace, run_id=start.run_id)
        await self._parts.keep(_name(start.run_id), packed, metadata)
        return _digest(archive)

    async def fetch(self, approved: ApprovedPlan) -> PlanArchive:
        """Raises PlanExpiredError where this very plan can't be had."""
        name = _name(approved.run_id)
        try:
            archive = await asyncio.to_thread(gzip.decompress, await self._parts.read(name))
        except ApiError as error:
            raise PlanExpiredError(f"the plan that was kept can't be read: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise PlanExpiredError(f"the plan in Secret {name} is damaged: {error}") from error
        if _digest(archive) != approved.digest:
            raise PlanExpiredError(f"what is in Secret {name} is not the plan that was approved")
        return _unpacked(archive)


def _name(run_id: str) -> str:
    return f"terrahalt-plan-{run_id.lower()}"


def _digest(archive: bytes) -> str:
    return f"sha256:{hashlib.sha256(archive).hexdigest()}"


def _packed(kept: PlanArchive) -> bytes:
    files = {
        _PLAN: kept.plan,
        _LOCK_FILE: kept.lock_file,
        _SOURCE: kept.source.encode(),
        _TEXT: kept.text,
        _SECRETS: msgspec.json.encode(kept.secrets) if kept.secrets else None,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _unpacked(archive: bytes) -> PlanArchive:
    """Of one that was packed here: its digest says so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        contents = {entry.name: file.read() for entry in files if (file := files.extractfile(entry)) is not None}
    secrets = msgspec.json.decode(contents.get(_SECRETS, b"[]"), type=tuple[str, ...])
    return PlanArchive(contents[_PLAN], contents.get(_LOCK_FILE), contents[_SOURCE].decode(), contents[_TEXT], secrets)
