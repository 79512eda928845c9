"""Brings what is seen to the pure cores, and carries out what they decide.

Builds one snapshot per key, asks `decide`, `decide_orphan` or `schedule`, and does the actions in
order through the cluster and the agents' sockets. Holds no rule of its own: which task runs, ends or
waits is decided in `core`. Only it turns errors into another look. Called by `app`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Any, assert_never

from terrahalt_operator.adapters import cluster as api
from terrahalt_operator.adapters import objects
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.adapters.trust import Trust
from terrahalt_operator.adapters.watch import AGENT_SELECTOR
from terrahalt_operator.core import actions as act
from terrahalt_operator.core import identity, names, pod
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import (
    Agent,
    Claim,
    Pool,
    Queueing,
    ReceivedReport,
    Snapshot,
    StateLock,
    Task,
)
from terrahalt_operator.core.orphan import decide_orphan
from terrahalt_operator.core.schedule import AgentView, PoolDecision, PoolSnapshot, schedule
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused
from terrahalt_operator.store import Claims, Shelf
from terrahalt_operator.worklist import Key, Worklist
from terrahalt_protocol.signing import report_key, unseal

log = logging.getLogger(__name__)

POOL_STATUS_INTERVAL_S = 1.0
CREATE_AGAIN_AFTER_S = 5.0


class Reconciler:
    def __init__(
        self,
        *,
        cluster: Cluster,
        agents: Callable[[Reconciler], Agents],
        trust: Trust,
        leadership: Leadership,
        namespace: str,
        watched: Collection[str],
        agent_image: str,
        clock: Callable[[], float],
        new_run_id: Callable[[], str],
        tell: Callable[[Task, str, str, str], None],
    ) -> None:
        self._cluster, self._trust, self._leadership = cluster, trust, leadership
        self._namespace, self._watched, self._agent_image = namespace, watched, agent_image
        self._clock, self._new_run_id, self._tell = clock, new_run_id, tell
        self.worklist = Worklist(self._work)
        self._tasks: Shelf[Task] = Shelf()
        self._pools: Shelf[Pool] = Shelf()
        self._pods: Shelf[Agent] = Shelf()
        self._claims = Claims()
        self._queueing: dict[str, Queueing] = {}
        self._state_locks: dict[str, StateLock] = {}
        self._status_written_at: dict[str, float] = {}
        self._pool_written_at: dict[Key, float] = {}
        self._failed_starts: dict[Key, tuple[int, float]] = {}
        self._not_created: dict[Key, str] = {}
        """Why the API server would not take a pool's last agent."""
        self._agents = agents(self)

    # ---- what is seen

    async def relist(self) -> None:
        """Everything from the API: at the start, and now and then, for deletes that a watch lost."""
        leases, _ = await self._cluster.list(api.LEASES, self._namespace, names.CLAIM_LABEL)
        present = {lease["metadata"]["name"] for lease in leases}
        for name in set(self._claims.by_name) - present:
            self._claims.remove(name)
        for lease in leases:
            claim = objects.claim(lease)
            self._claims.put(claim)
            self.worklist.wake(("claim", claim.name))
        shelves: tuple[tuple[api.Resource, str, Shelf[Any]], ...] = (
            (api.POOLS, "", self._pools),
            (api.PODS, AGENT_SELECTOR, self._pods),
            (api.TASKS, "", self._tasks),
        )
        for resource, labels, shelf in shelves:
            for namespace in self._watched or (None,):
                items, version = await self._cluster.list(resource, namespace, labels)
                for obj in items:
                    self.see(resource[1], False, obj)
                uids = [obj["metadata"]["uid"] for obj in items]
                for uid in shelf.gone(uids, int(version)):
                    if namespace in (None, shelf.raw[uid]["metadata"]["namespace"]):
                        self.see(resource[1], True, shelf.raw[uid])

    def see(self, plural: str, is_gone: bool, obj: dict[str, Any]) -> None:
        """One object as the API has it now, from the watch, a list or an answer to a write."""
        try:
            match plural:
                case "terraformtasks":
                    self._see_task(is_gone, obj)
                case "agentpools":
                    self._see_pool(is_gone, obj)
                case "pods":
                    self._see_pod(is_gone, obj)
        except ValueError as error:
            log.error("%s", error)

    def pinned(self, pod_uid: str) -> str:
        """The fingerprint that this pod's claim holds it to; empty: it has no claim."""
        claim = self._claims.by_pod.get(pod_uid)
        return claim.fingerprint if claim else ""

    def agent_changed(self, pod_uid: str) -> None:
        agent = self._pods.values.get(pod_uid)
        claim = self._claims.by_pod.get(pod_uid)
        if claim is not None:
            self.worklist.wake(("task", claim.task_uid))
            self.worklist.wake(("claim", claim.name))
        if agent is not None:
            self.worklist.wake(("pool", agent.namespace, agent.pool))

    def disconnect(self) -> None:
        """Closes every agent's socket; their runs go on."""
        for uid in list(self._pods.values):
            self._agents.drop(uid)

    def _see_task(self, is_gone: bool, obj: dict[str, Any]) -> None:
        uid = obj["metadata"]["uid"]
        if is_gone:
            task = self._tasks.remove(uid)
            self._queueing.pop(uid, None)
            self._state_locks.pop(uid, None)
            self._status_written_at.pop(uid, None)
            if claim := self._claims.by_task.get(uid):
                self.worklist.wake(("claim", claim.name))
            if task is not None:
                self._wake_pools(task.namespace)
            return
        task = objects.task(obj)
        if self._tasks.put(obj, task):
            self.worklist.wake(("task", uid))
            if not task.status.is_terminal and uid not in self._claims.by_task:
                self.worklist.wake(("pool", task.namespace, task.spec.pool_ref.name))

    def _see_pool(self, is_gone: bool, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        if is_gone:
            self._pools.remove(meta["uid"])
        else:
            self._pools.put(obj, objects.pool(obj))
        self._wake_pools(meta["namespace"])
        self.worklist.wake(("pool", meta["namespace"], meta["name"]))

    def _see_pod(self, is_gone: bool, obj: dict[str, Any]) -> None:
        uid = obj["metadata"]["uid"]
        if is_gone:
            agent = self._pods.remove(uid)
            self._agents.drop(uid)
            if agent is not None:
                self.worklist.wake(("pool", agent.namespace, agent.pool))
        else:
            agent = objects.agent(obj)
            if not self._pods.put(obj, agent):
                return
            if agent.is_over:
                self._agents.drop(uid)
            elif agent.ip and agent.is_running:
                self._agents.keep(agent)
        self.agent_changed(uid)

    def _wake_pools(self, namespace: str) -> None:
        """A workspace or a pool may have become free: all pools of the namespace look again."""
        keys = {(p.namespace, p.name) for p in self._pools.values.values() if p.namespace == namespace}
        keys |= {(t.namespace, t.spec.pool_ref.name) for t in self._tasks.values.values() if self._waits(t, namespace)}
        for key in keys:
            self.worklist.wake(("pool", *key))

    def _waits(self, task: Task, namespace: str) -> bool:
        return (
            task.namespace == namespace
            and not task.status.is_terminal
            and not task.status.run_id
            and task.uid not in self._claims.by_task
            and not task.wants_cancel
            and not task.is_restored_copy
        )

    # ---- one key

    async def _work(self, key: Key) -> None:
        match key:
            case ("task", uid):
                await self._work_on_task(uid)
            case ("claim", name):
                await self._work_on_orphan(name)
            case ("pool", namespace, name):
                await self._work_on_pool(key, namespace, name)

    async def _work_on_task(self, uid: str) -> None:
        task = self._tasks.values.get(uid)
        if task is None:
            return
        decision = decide(self._snapshot(task), self._clock())
        for action in decision.actions:
            await self._act_on_task(uid, action)
        if decision.wake_after_s is not None:
            self.worklist.wake_after(("task", uid), decision.wake_after_s)

    def _snapshot(self, task: Task) -> Snapshot:
        claim = self._claims.by_task.get(task.uid) or _remembered_claim(task)
        key = report_key(self._trust.report_secret, claim.run_id) if claim else ""
        agent = self._pods.values.get(claim.pod_uid) if claim else None
        return Snapshot(
            task=task,
            claim=claim,
            agent=agent,
            session=self._agents.session(claim.pod_uid) if claim else None,
            report=self._report(claim, agent, key) if claim else None,
            queueing=self._queueing.get(task.uid),
            state_lock=self._state_locks.get(task.uid),
            report_key=key,
            epoch=self._leadership.epoch,
            last_status_write_at=self._status_written_at.get(task.uid, 0.0),
        )

    def _report(self, claim: Claim, agent: Agent | None, key: str) -> ReceivedReport | None:
        """What the run said last: over the socket, or, signed, as its pod's termination message."""
        if agent is not None and agent.ended is not None and agent.ended.container_id == claim.container_id:
            sealed = unseal(agent.ended.message, key, claim.run_id)
            if sealed is not None:
                # Its ages count from when it was written: the run's last act, however long ago.
                return ReceivedReport(report=sealed, received_at=agent.ended.finished_at or self._clock())
        return self._agents.report(claim.pod_uid, claim.run_id)

    async def _act_on_task(self, uid: str, action: act.TaskAction) -> None:
        match action:
            case act.StampTask(task):
                meta = self._tasks.raw[uid]["metadata"]
                finalizers = [*meta.get("finalizers", ()), names.TASK_FINALIZER]
                stamp = {"finalizers": list(dict.fromkeys(finalizers)), "annotations": {names.UID_ANNOTATION: uid}}
                await self._patch_task(task, {"metadata": stamp | {"resourceVersion": meta["resourceVersion"]}})
            case act.RemoveTaskFinalizer(task):
                meta = self._tasks.raw[uid]["metadata"]
                finalizers = [f for f in meta.get("finalizers", ()) if f != names.TASK_FINALIZER]
                patch = {"finalizers": finalizers, "resourceVersion": meta["resourceVersion"]}
                await self._patch_task(task, {"metadata": patch})
            case act.WriteStatus(task, status):
                old = self._tasks.raw[uid]
                self._status_written_at[uid] = self._clock()
                await self._patch_task(task, objects.status_patch(old, status), subresource="status")
                if status.phase != task.status.phase:
                    reason = status.result.reason if status.result else status.phase
                    log.info(
                        "task %s/%s: %s -> %s: %s %s",
                        task.namespace,
                        task.name,
                        task.status.phase or "new",
                        status.phase,
                        reason,
                        status.message,
                    )
                    self._tell(task, status.phase, reason, status.message)
            case act.Send(pod_uid, command):
                await self._agents.send(pod_uid, command)
            case act.ReleaseClaim(claim):
                await self._release(claim)
            case act.ReadStateLock(task):
                self._state_locks[uid] = await self._read_state_lock(task)
                self.worklist.wake(("task", uid))
            case _:
                assert_never(action)

    async def _patch_task(self, task: Task, patch: dict[str, Any], *, subresource: str = "") -> None:
        try:
            obj = await self._cluster.patch(api.TASKS, task.namespace, task.name, patch, subresource=subresource)
        except Conflict:
            self.see("terraformtasks", False, await self._cluster.get(api.TASKS, task.namespace, task.name))
            raise
        except NotFound:
            self.see("terraformtasks", True, self._tasks.raw[task.uid])
            raise
        if obj["metadata"]["uid"] == task.uid:
            self.see("terraformtasks", False, obj)

    async def _release(self, claim: Claim) -> None:
        if claim.resource_version:
            try:
                await self._cluster.delete(api.LEASES, self._namespace, claim.name, version=claim.resource_version)
            except NotFound:
                pass
            except Conflict:
                self._claims.put(objects.claim(await self._cluster.get(api.LEASES, self._namespace, claim.name)))
                raise
        self._claims.remove(claim.name)
        self._wake_pools(claim.task_namespace)

    async def _read_state_lock(self, task: Task) -> StateLock:
        name = identity.state_lock_name(task.spec.workspace)
        try:
            lease = await self._cluster.get(api.LEASES, task.namespace, name)
        except NotFound:
            return StateLock(is_readable=True, holder="")
        except ClusterError as error:
            log.warning("task %s/%s: the state's lock can't be read: %s", task.namespace, task.name, error)
            return StateLock(is_readable=False, holder="")
        return StateLock(is_readable=True, holder=(lease.get("spec") or {}).get("holderIdentity") or "")

    # ---- claims whose task is gone

    async def _work_on_orphan(self, name: str) -> None:
        claim = self._claims.by_name.get(name)
        if claim is None or claim.task_uid in self._tasks.values:
            return
        key = report_key(self._trust.report_secret, claim.run_id)
        agent = self._pods.values.get(claim.pod_uid)
        received = self._report(claim, agent, key)
        decision = decide_orphan(
            claim,
            agent,
            self._agents.session(claim.pod_uid),
            received.report if received else None,
            report_key=key,
            epoch=self._leadership.epoch,
        )
        for action in decision.actions:
            log.info("claim %s of the vanished task %s: %s", name, claim.task_name, type(action).__name__)
            await self._act_on_task(claim.task_uid, action)

    # ---- pools

    async def _work_on_pool(self, key: Key, namespace: str, name: str) -> None:
        pool = next((p for p in self._pools.values.values() if (p.namespace, p.name) == (namespace, name)), None)
        snapshot = self._pool_snapshot(key, pool, namespace, name)
        decision = schedule(snapshot, self._clock())
        self._note_queueing(snapshot, decision)
        for action in decision.actions:
            await self._act_on_pool(key, pool, action)
        if pool is not None:
            await self._write_pool_status(key, pool, decision)
        elif not snapshot.agents:
            await self._remove_anchor(namespace, name)
        if decision.wake_after_s is not None:
            self.worklist.wake_after(key, decision.wake_after_s)

    def _pool_snapshot(self, key: Key, pool: Pool | None, namespace: str, name: str) -> PoolSnapshot:
        pools = {(p.namespace, p.name) for p in self._pools.values.values()}
        waiting = sorted(
            (t for t in self._tasks.values.values() if self._waits(t, namespace)),
            key=lambda t: (t.created_at, t.name, t.uid),
        )
        first: dict[str, str] = {}
        for task in waiting:
            if (task.namespace, task.spec.pool_ref.name) in pools:
                first.setdefault(identity.claim_name(task.namespace, task.spec.workspace), task.uid)
        agents = [a for a in self._pods.values.values() if a.namespace == namespace and a.pool == name]
        failed, failed_at = self._failed_starts.get(key, (0, 0.0))
        return PoolSnapshot(
            name=name,
            pool=pool,
            agents=tuple(AgentView(a, self._agents.session(a.uid), self._claims.by_pod.get(a.uid)) for a in agents),
            waiting=tuple(t for t in waiting if t.spec.pool_ref.name == name),
            first_in_line=first,
            holders={c.name: c.task_name for c in self._claims.by_name.values()},
            template_hash=pod.template_hash(pool, image=self._image(pool), operator_ca=self._trust.ca_pem)
            if pool
            else "",
            failed_starts=failed,
            last_failed_start_at=failed_at,
        )

    def _note_queueing(self, snapshot: PoolSnapshot, decision: PoolDecision) -> None:
        for task in snapshot.waiting:
            new = decision.queueing.get(task.uid)
            if new is None:
                self._queueing.pop(task.uid, None)
            elif self._queueing.get(task.uid) != new:
                self._queueing[task.uid] = new
                self.worklist.wake(("task", task.uid))

    async def _act_on_pool(self, key: Key, pool: Pool | None, action: act.PoolAction) -> None:
        match action:
            case act.CreateClaim(task, agent, fingerprint):
                await self._claim(task, agent, fingerprint)
            case act.CreateAgents(count):
                assert pool is not None
                try:
                    await self._create_agents(pool, count)
                    self._not_created.pop(key, None)
                except Refused as error:
                    self._not_created[key] = f"agents can't be created: {error}"
                    self.worklist.wake_after(key, CREATE_AGAIN_AFTER_S)
            case act.DeleteAgent(agent):
                if agent.is_over and not agent.is_deleting and not agent.last_task_label:
                    self._failed_starts[key] = (self._failed_starts.get(key, (0, 0.0))[0] + 1, self._clock())
                    how = f"{agent.ended.reason}: {agent.ended.message}" if agent.ended else agent.phase
                    log.warning("agent %s ended before it had a task: %s", agent.name, how)
                await self._delete_agent(agent)
            case act.RemoveAgentFinalizer(agent):
                finalizers = self._pods.raw[agent.uid]["metadata"].get("finalizers", ())
                await self._patch_agent(agent, {"finalizers": [f for f in finalizers if f != names.AGENT_FINALIZER]})
            case act.LabelAgent(agent, claim):
                value = identity.label_value(claim.task_name)
                labels = {names.TASK_LABEL: value, names.LAST_TASK_LABEL: value, names.RUN_LABEL: claim.run_id}
                await self._patch_agent(agent, {"labels": labels})
            case act.UnlabelAgent(agent):
                await self._patch_agent(agent, {"labels": {names.TASK_LABEL: None, names.RUN_LABEL: None}})
            case _:
                assert_never(action)

    async def _claim(self, task: Task, agent: Agent, fingerprint: str) -> None:
        now = self._clock()
        claim = Claim(
            name=identity.claim_name(task.namespace, task.spec.workspace),
            resource_version="",
            run_id=self._new_run_id(),
            task_namespace=task.namespace,
            task_name=task.name,
            task_uid=task.uid,
            pod_name=agent.name,
            pod_uid=agent.uid,
            container_id=agent.container_id,
            fingerprint=fingerprint,
        )
        try:
            lease = await self._cluster.create(
                api.LEASES, self._namespace, objects.claim_lease(claim, task, timestamp(now))
            )
        except AlreadyExists:
            lease = await self._cluster.get(api.LEASES, self._namespace, claim.name)
        held = objects.claim(lease)
        self._claims.put(held)
        self._failed_starts.pop(("pool", agent.namespace, agent.pool), None)
        for key in (("task", task.uid), ("claim", held.name), ("pool", task.namespace, task.spec.pool_ref.name)):
            self.worklist.wake(key)

    async def _create_agents(self, pool: Pool, count: int) -> None:
        """The anchor is looked up each time: pods whose owner is gone would be collected at once."""
        name = pod.anchor_name(pool.name)
        try:
            anchor = await self._cluster.get(api.CONFIG_MAPS, pool.namespace, name)
        except NotFound:
            anchor = await self._cluster.create(api.CONFIG_MAPS, pool.namespace, pod.anchor(pool))
        body = pod.agent_pod(
            pool,
            image=self._image(pool),
            operator_ca=self._trust.ca_pem,
            anchor_uid=anchor["metadata"]["uid"],
        )
        for _ in range(count):
            obj = await self._cluster.create(api.PODS, pool.namespace, body)
            log.info("pool %s/%s: agent %s created", pool.namespace, pool.name, obj["metadata"]["name"])
            self.see("pods", False, obj)

    async def _remove_anchor(self, namespace: str, pool_name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._cluster.delete(api.CONFIG_MAPS, namespace, pod.anchor_name(pool_name))

    async def _delete_agent(self, agent: Agent) -> None:
        try:
            await self._cluster.delete(api.PODS, agent.namespace, agent.name, uid=agent.uid)
        except (NotFound, Conflict):
            self.see("pods", True, self._pods.raw.get(agent.uid, {"metadata": {"uid": agent.uid}}))

    async def _patch_agent(self, agent: Agent, metadata: dict[str, Any]) -> None:
        patch = {"metadata": metadata | {"uid": agent.uid}}
        try:
            obj = await self._cluster.patch(api.PODS, agent.namespace, agent.name, patch)
        except (NotFound, Conflict):
            self.see("pods", True, self._pods.raw.get(agent.uid, {"metadata": {"uid": agent.uid}}))
            return
        self.see("pods", False, obj)

    def _image(self, pool: Pool) -> str:
        return pool.image or self._agent_image

    async def _write_pool_status(self, key: Key, pool: Pool, decision: PoolDecision) -> None:
        now = self._clock()
        problem = self._not_created.get(key) or decision.problem
        ready = not problem
        old = {c["type"]: c for c in pool.status.get("conditions", ())}.get("Ready")
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "AgentsStart" if ready else "AgentsDoNotStart",
            "message": problem,
            "observedGeneration": pool.generation,
            "lastTransitionTime": old["lastTransitionTime"]
            if old and old["status"] == ("True" if ready else "False")
            else timestamp(now),
        }
        counts = decision.counts
        wanted = {
            "observedGeneration": pool.generation,
            "agents": counts.agents,
            "idle": counts.idle,
            "busy": counts.busy,
            "starting": counts.starting,
            "queued": counts.queued,
            "conditions": [condition],
        }
        patch = objects.merge_patch(pool.status, wanted)
        if not patch:
            return
        wait_s = self._pool_written_at.get(key, 0.0) + POOL_STATUS_INTERVAL_S - now
        if wait_s > 0:
            self.worklist.wake_after(key, wait_s)
            return
        self._pool_written_at[key] = now
        try:
            obj = await self._cluster.patch(
                api.POOLS, pool.namespace, pool.name, {"status": patch}, subresource="status"
            )
        except NotFound:
            return
        self.see("agentpools", False, obj)


def _remembered_claim(task: Task) -> Claim | None:
    """The claim of a run that was given out, where somebody deleted its Lease: that pair goes on."""
    status = task.status
    if status.is_terminal or not status.run_id or status.agent is None:
        return None
    return Claim(
        name=identity.claim_name(task.namespace, task.spec.workspace),
        resource_version="",
        run_id=status.run_id,
        task_namespace=task.namespace,
        task_name=task.name,
        task_uid=task.uid,
        pod_name=status.agent.pod_name,
        pod_uid=status.agent.pod_uid,
        container_id=status.agent.container_id,
        fingerprint="",
    )
