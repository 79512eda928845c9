"""Keeps the log of a run in a Secret of its task, where it outlives the pod.

Called by `driver` at each run's end, and where a cancel brings that near.
"""

from __future__ import annotations

from terrahalt_agent.adapters.cluster_api import ClusterApi
from terrahalt_protocol import kept_log
from terrahalt_protocol.messages import Start


class KeptLogs:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api

    async def get_ready(self) -> None:
        """A run is about to end; never raises."""
        await self._api.connect()

    async def keep(self, packed: bytes, start: Start) -> None:
        """Raises ApiError."""
        await self._api.put_secret(kept_log.secret(packed, start.task, workspace=start.workspace, run_id=start.run_id))
