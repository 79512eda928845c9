"""Copies of states that must outlive their pod: Secrets of the task's namespace.

Two kinds: the state as it was before an apply, and one that terraform could not save. Whoever may read
the namespace's Secrets may read the states of its kubernetes backend anyway. Nothing here deletes one but
the next copy of the same name. Called by `backend` (before an apply) and `driver` (errored.tfstate).
"""

from __future__ import annotations

import base64
from typing import Any, Literal

from terrahalt_agent.adapters.cluster_api import ClusterApi, NotFoundError
from terrahalt_protocol.messages import Start

DATA_KEY = "tfstate"
PART_BYTES = 1_000_000
"""A Secret holds 1 MiB in all."""
MAX_PARTS = 32


class TooLargeError(Exception):
    """More than all parts together hold."""


class StateCopies:
    def __init__(self, api: ClusterApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def keep(self, name: str, kind: Literal["previous", "errored"], state: bytes, start: Start) -> None:
        """`state` is compressed by gzip. Raises ApiError and TooLargeError."""
        parts = [state[at : at + PART_BYTES] for at in range(0, len(state), PART_BYTES)]
        if len(parts) > MAX_PARTS:
            raise TooLargeError(f"compressed, it has {len(state)} bytes; {MAX_PARTS * PART_BYTES} can be kept")
        metadata = {
            "labels": {
                "app.kubernetes.io/managed-by": "terrahalt",
                "terrahalt.dev/state": kind,
                "terrahalt.dev/workspace": start.workspace,
            },
            "annotations": {"terrahalt.dev/task": start.task.name, "terrahalt.dev/run": start.run_id},
        }
        for number, part in enumerate(parts):
            await self._api.put_secret(_secret(metadata | {"name": part_name(name, number)}, part))
        await self._drop_parts(name, len(parts))

    async def fetch_command(self, name: str, file: str) -> str:
        """What a person types to have the copy in a file; empty: there is no copy. Raises ApiError."""
        names = list[str]()
        try:
            while len(names) < MAX_PARTS:
                part = part_name(name, len(names))
                await self._api.secret(part)
                names.append(part)
        except NotFoundError:
            if not names:
                return ""
        get = f"kubectl -n {self._namespace} get secret $s -o jsonpath='{{.data.{DATA_KEY}}}' | base64 -d"
        return f"for s in {' '.join(names)}; do {get}; done | gunzip > {file}"

    async def _drop_parts(self, name: str, number: int) -> None:
        """Of a larger copy that was here before: they would be taken for the end of this one."""
        try:
            while number < MAX_PARTS:
                await self._api.delete_secret(part_name(name, number))
                number += 1
        except NotFoundError:
            pass


def part_name(name: str, number: int) -> str:
    """As terraform names the Secrets of a state that needs more than one."""
    return f"{name}-part-{number}" if number else name


def _secret(metadata: dict[str, Any], content: bytes) -> dict[str, Any]:
    data = {DATA_KEY: base64.b64encode(content).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
