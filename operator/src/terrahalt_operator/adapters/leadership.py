"""The epoch: a number in the operator's Lease that every take-over raises, and every command carries.

Agents refuse commands of an older epoch, so an operator that was frozen and comes back can do no harm
(invariant 8). One operator runs at a time (the Deployment's strategy is Recreate); the epoch holds even
where Kubernetes starts a second before the first is gone. Called by `app`; `agents`, `world` and
`reconciler` read the epoch.
"""

from __future__ import annotations

import asyncio
import datetime as dt

from terrahalt_operator.adapters.cluster import LEASES, Cluster, Json
from terrahalt_operator.core import names
from terrahalt_operator.errors import AlreadyExists, Conflict, NotFound


class Leadership:
    def __init__(self, cluster: Cluster, namespace: str, identity: str) -> None:
        self._cluster, self._namespace, self._identity = cluster, namespace, identity
        self._raising = asyncio.Lock()
        self.epoch = 0

    async def take_over(self) -> None:
        """Raises the epoch over every earlier operator's, by compare-and-swap on the Lease."""
        await self.raise_above(0)

    async def raise_above(self, reported: int) -> None:
        """And over an epoch that an agent has seen: the Lease may have been deleted and made anew."""
        async with self._raising:
            while self.epoch <= reported:
                lease = await self._lease()
                annotations = lease["metadata"].get("annotations") or {}
                epoch = max(int(annotations.get(names.EPOCH_ANNOTATION, "0")), reported) + 1
                now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                patch = {
                    "metadata": {
                        "resourceVersion": lease["metadata"]["resourceVersion"],
                        "annotations": {names.EPOCH_ANNOTATION: str(epoch)},
                    },
                    "spec": {"holderIdentity": self._identity, "acquireTime": now},
                }
                try:
                    await self._cluster.patch(LEASES, self._namespace, names.LEADER_LEASE, patch)
                except Conflict:
                    continue
                self.epoch = epoch

    async def _lease(self) -> Json:
        try:
            return await self._cluster.get(LEASES, self._namespace, names.LEADER_LEASE)
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": names.LEADER_LEASE},
                "spec": {},
            }
            try:
                return await self._cluster.create(LEASES, self._namespace, body)
            except AlreadyExists:
                return await self._cluster.get(LEASES, self._namespace, names.LEADER_LEASE)
