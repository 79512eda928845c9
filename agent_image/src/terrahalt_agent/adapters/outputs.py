"""Writes a state's outputs into the Secret that the task names, and never over one that is somebody else's.

Replaced whole, so that an output that is gone goes there too. Between look and write nobody can slip in: the
write names the version that was seen, or that there was none. Called by `driver`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from terrahalt_agent.adapters.cluster_api import ClusterApi, ConflictError, NotFoundError
from terrahalt_agent.core.outputs import Outputs, OutputsError
from terrahalt_protocol.kept_secret import of_run, owned_by, secret
from terrahalt_protocol.messages import OutputsTo, Start

LABEL = "terrahalt.dev/outputs"
"""Whose outputs a Secret has: the workspace."""
LEFT_OUT = "terrahalt.dev/left-out"
_TRIES = 3


class PublishedSecrets:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api

    async def publish(self, outputs: Outputs, to: OutputsTo, start: Start) -> None:
        """Raises OutputsError where the name is taken, and ApiError."""
        for _ in range(_TRIES):
            version = await self._version(to.secret, start.workspace)
            made = _secret(outputs, to, start, version)
            try:
                await (self._api.replace_secret(made) if version else self._api.create_secret(made))
                return
            except (ConflictError, NotFoundError):
                continue  # somebody was quicker, or our own answer was lost: look again
        raise OutputsError(f"Secret {to.secret} is being changed by somebody else all the time")

    async def _version(self, name: str, workspace: str) -> str:
        """Of the Secret that may be replaced; empty: there is none."""
        try:
            metadata = (await self._api.secret_object(name))["metadata"]
        except NotFoundError:
            return ""
        whose = (metadata.get("labels") or {}).get(LABEL)
        if whose != workspace:
            what = f"has the outputs of workspace {whose}" if whose else "was not made by terrahalt"
            raise OutputsError(f"Secret {name} is there already and {what}: choose another secretName, or delete it")
        return str(metadata["resourceVersion"])


def _secret(outputs: Outputs, to: OutputsTo, start: Start, version: str) -> dict[str, Any]:
    metadata = (of_run if to.retain else owned_by)(start.task, workspace=start.workspace, run_id=start.run_id)
    metadata["labels"] |= {LABEL: start.workspace}
    if outputs.left_out:
        metadata["annotations"] |= {LEFT_OUT: msgspec.json.encode(outputs.left_out).decode()}
    if version:
        metadata["resourceVersion"] = version
    return secret(to.secret, metadata, outputs.values)
