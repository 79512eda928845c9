"""Copies of states that must outlive their pod: Secrets of the task's namespace.

Two kinds: the state as it was before an apply, and one that terraform could not save. Whoever may read
the namespace's Secrets may read the states of its kubernetes backend anyway. Nothing here deletes one but
the next copy of the same name. Called by `backend` (before an apply) and `driver` (errored.tfstate).
"""

from __future__ import annotations

from typing import Literal

from terrahalt_agent.adapters.cluster_api import ClusterApi, NotFoundError
from terrahalt_agent.adapters.secret_parts import SecretParts
from terrahalt_protocol.kept_secret import of_run
from terrahalt_protocol.messages import Start

DATA_KEY = "tfstate"


class StateCopies:
    def __init__(self, api: ClusterApi, namespace: str) -> None:
        self._parts = SecretParts(api, DATA_KEY)
        self._namespace = namespace

    async def keep(self, name: str, kind: Literal["previous", "errored"], state: bytes, start: Start) -> None:
        """`state` is compressed by gzip. Raises ApiError and TooLargeError."""
        metadata = of_run(start.task, workspace=start.workspace, run_id=start.run_id)
        metadata["labels"] |= {"terrahalt.dev/state": kind}
        await self._parts.keep(name, state, metadata)

    async def fetch_command(self, name: str, file: str) -> str:
        """What a person types to have the copy in a file; empty: there is no copy. Raises ApiError."""
        try:
            names = await self._parts.names(name)
        except NotFoundError:
            return ""
        get = f"kubectl -n {self._namespace} get secret $s -o jsonpath='{{.data.{DATA_KEY}}}' | base64 -d"
        return f"for s in {' '.join(names)}; do {get}; done | gunzip > {file}"
