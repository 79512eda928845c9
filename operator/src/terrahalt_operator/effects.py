"""Carries out what the core decided, through the cluster and the agents' sockets.

Each answer of the API server goes back to `world`, so that the next decision rests on it. Decides
nothing; an error ends the decision that it belongs to, and the key is looked at again. Called by
`reconciler` only.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never

from terrahalt_operator.adapters import cluster as api
from terrahalt_operator.adapters import objects, pod_logs
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.metrics import Metrics
from terrahalt_operator.core import actions as act
from terrahalt_operator.core import identity, names, network, pod
from terrahalt_operator.core.credentials import Refresh
from terrahalt_operator.core.model import Agent, Claim, Pool, StateLock, Task
from terrahalt_operator.core.pool_status import pool_status
from terrahalt_operator.core.schedule import PoolDecision
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused, Unreachable
from terrahalt_operator.worklist import Key, Worklist
from terrahalt_operator.world import NEVER, World
from terrahalt_protocol import state_lock
from terrahalt_protocol.backends import KUBERNETES

log = logging.getLogger(__name__)

POOL_STATUS_INTERVAL_S = 1.0
ANCHORED_S = 60.0
"""For so long a pool's anchor and policy are taken to be still there: each new agent would cost two requests more."""
MAX_HOW_CHARS = 1_024
"""Of what a container left when it ended: it goes into a pool's condition."""


class Effects:
    def __init__(
        self,
        *,
        cluster: Cluster,
        world: World,
        worklist: Worklist,
        namespace: str,
        operator_ca: str,
        clock: Callable[[], float],
        uptime: Callable[[], float],
        new_run_id: Callable[[], str],
        tell: Callable[[Task, str, str, str], None],
        metrics: Metrics,
        scraper: Mapping[str, Any] | None = None,
    ) -> None:
        self._cluster, self._world, self._worklist = cluster, world, worklist
        self._namespace, self._operator_ca = namespace, operator_ca
        self._clock, self._uptime, self._new_run_id, self._tell = clock, uptime, new_run_id, tell
        self._metrics, self._scraper = metrics, scraper
        self._pool_written_at: dict[Key, float] = {}
        self._unanswered: dict[Key, Claim] = {}
        """A pool's claim that the API server may have created, without our having heard so."""
        self._guarded: dict[Key, tuple[str, tuple[str, ...]]] = {}
        """Of what the NetworkPolicy is made that a pool was given last: its anchor's UID, and `allowMetadata`."""
        self._anchored: dict[Key, tuple[str, float]] = {}
        """The UID of a pool's anchor, and when (in uptime) both it and the policy were last seen to be there."""

    async def on_task(self, uid: str, action: act.TaskAction) -> None:
        self._metrics.status_seen(uid, self._world.tasks.values.get(uid))
        match action:
            case act.StampTask(task):
                meta = self._raw(task)["metadata"]
                finalizers = [*meta.get("finalizers", ()), names.TASK_FINALIZER]
                annotations = {names.UID_ANNOTATION: uid, names.ARRIVED_ANNOTATION: str(task.arrived)}
                stamp = {"finalizers": list(dict.fromkeys(finalizers)), "annotations": annotations}
                await self._patch_task(task, {"metadata": stamp | {"resourceVersion": meta["resourceVersion"]}})
            case act.RemoveTaskFinalizer(task):
                meta = self._raw(task)["metadata"]
                finalizers = [f for f in meta.get("finalizers", ()) if f != names.TASK_FINALIZER]
                patch = {"finalizers": finalizers, "resourceVersion": meta["resourceVersion"]}
                await self._patch_task(task, {"metadata": patch})
            case act.DeleteTask(task):
                await self._delete_task(task)
            case act.WriteStatus(task, status):
                old = self._raw(task)
                if old["metadata"]["resourceVersion"] != task.resource_version:
                    raise Conflict(f"task {task.namespace}/{task.name} changed since it was decided upon")
                self._world.status_written_at[uid] = self._uptime()
                pool = task.spec.pool_ref.name
                pool = pool if self._world.pool(task.namespace, pool) is not None else ""
                try:
                    await self._patch_task(task, objects.status_patch(old, status), subresource="status")
                except Unreachable:
                    self._metrics.status_unanswered(task, status, pool=pool)
                    raise
                self._metrics.status_written(task, status, pool=pool)
                if status.phase != task.status.phase:
                    reason = status.result.reason if status.result else status.phase
                    came = f"{task.status.phase or 'new'} -> {status.phase}"
                    log.info("task %s/%s: %s: %s %s", task.namespace, task.name, came, reason, status.message)
                    self._tell(task, status.phase, reason, status.message)
                elif status.cancel and status.cancel.superseded_by and not task.status.cancel:
                    self._tell(task, status.phase, status.cancel.by, status.message)
            case act.ReserveAgent(claim):
                await self._reserve_agent(claim)
            case act.Send(pod_uid, command):
                await self._world.agents.send(pod_uid, command)
            case act.ReleaseClaim(claim):
                await self._release(claim)
            case act.ReadStateLock(task):
                self._world.state_locks[uid] = await self._read_state_lock(task)
                self._worklist.wake(("task", uid))
            case act.KeepLog(task, claim):
                self._world.logs_kept[uid] = claim.run_id, await pod_logs.keep(self._cluster, task, claim)
                self._worklist.wake(("task", uid))
            case act.DeleteAgent(agent):
                await self._delete_agent(agent)
            case _:
                assert_never(action)

    async def _patch_task(self, task: Task, patch: dict[str, Any], *, subresource: str = "") -> None:
        try:
            obj = await self._cluster.patch(api.TASKS, task.namespace, task.name, patch, subresource=subresource)
        except Conflict:
            await self._look_at_task(task)
            raise
        except NotFound:
            self._world.see("terraformtasks", True, {"metadata": {"uid": task.uid}})
            raise
        self._world.see("terraformtasks", False, obj)

    async def _look_at_task(self, task: Task) -> None:
        obj = await self._cluster.get(api.TASKS, task.namespace, task.name)
        if obj["metadata"]["uid"] != task.uid:  # deleted, and another made under its name
            self._world.see("terraformtasks", True, {"metadata": {"uid": task.uid}})
        self._world.see("terraformtasks", False, obj)

    async def _delete_task(self, task: Task) -> None:
        guards = {"uid": task.uid, "version": task.resource_version}
        try:
            await self._cluster.delete(api.TASKS, task.namespace, task.name, **guards)
        except Conflict:
            await self._look_at_task(task)
            raise
        except NotFound:
            self._world.see("terraformtasks", True, {"metadata": {"uid": task.uid}})
            return
        log.info("task %s/%s: deleted, its ttlSecondsAfterFinished is over", task.namespace, task.name)

    def _raw(self, task: Task) -> dict[str, Any]:
        obj = self._world.tasks.raw(task.uid)
        if obj is None:
            raise NotFound(f"task {task.namespace}/{task.name} vanished since it was decided upon")
        return obj

    async def finds_task_of(self, claim: Claim) -> bool:
        """Before a run is wound down for want of its task: a list may tell of another operator's claim before the watch
        tells of the task that it is for."""
        try:
            obj = await self._cluster.get(api.TASKS, claim.task_namespace, claim.task_name)
        except NotFound:
            return False
        if obj["metadata"]["uid"] != claim.task_uid:
            return False
        self._world.see("terraformtasks", False, obj)
        return True

    async def _release(self, claim: Claim) -> None:
        known = self._world.claims.by_name.get(claim.name)
        if known is not None and known.run_id == claim.run_id:
            claim = known  # what was known of it from the status alone has no version to delete it by
        if claim.resource_version:
            try:
                await self._cluster.delete(
                    api.LEASES, self._world.claims_namespace, claim.name, version=claim.resource_version
                )
                self._metrics.claim_released(claim, self._world.tasks.values.get(claim.task_uid), self._clock())
            except NotFound:
                pass
            except Conflict:
                found = objects.claim(await self._cluster.get(api.LEASES, self._world.claims_namespace, claim.name))
                self._world.claims.put(found)
                self._worklist.wake(("task", found.task_uid))  # which may have ended before its claim was known here
                raise
        self._world.claims.release(claim)
        self._world.wake_state(claim)

    async def _read_state_lock(self, task: Task) -> StateLock:
        if task.spec.backend.type != KUBERNETES:
            return StateLock(is_readable=False, holder="")
        name = state_lock.lease_name(task.spec.workspace)
        try:
            lease = await self._cluster.get(api.LEASES, task.namespace, name)
        except NotFound:
            return StateLock(is_readable=True, holder="")
        except ClusterError as error:
            log.warning("task %s/%s: the state's lock can't be read: %s", task.namespace, task.name, error)
            return StateLock(is_readable=False, holder="")
        who = str(state_lock.info(lease).get("Who", ""))
        return StateLock(is_readable=True, holder=state_lock.holder(lease), who=who)

    # ---- pools

    async def clear_doubt(self, key: Key) -> None:
        """Before a pool is decided upon: an agent or a workspace that may be claimed must not be given away,
        nor the agent's pod let go, as if it were not."""
        if claim := self._unanswered.get(key):
            with contextlib.suppress(NotFound):
                self._hold(key, claim, await self._cluster.get(api.LEASES, self._world.claims_namespace, claim.name))
            self._unanswered.pop(key, None)

    async def on_pool(self, key: Key, pool: Pool | None, action: act.PoolAction) -> bool:
        """True: it was refused, and the pool is to be decided upon anew."""
        match action:
            case act.Send(pod_uid, command):
                await self._world.agents.send(pod_uid, command)
            case act.CreateClaim(task, agent, fingerprint):
                await self._claim(key, task, agent, fingerprint)
            case act.AddPoolFinalizer(wanted):
                try:
                    await self._set_pool_finalizer(wanted, is_wanted=True)
                except Refused as error:  # nothing else of the pool waits for it
                    log.warning("pool %s/%s: its deletion will not wait: %s", wanted.namespace, wanted.name, error)
            case act.RemovePoolFinalizer(unwanted):
                await self._set_pool_finalizer(unwanted, is_wanted=False)
            case act.CreateBudget(waiting):
                await self._create_budget(key, waiting)
            case act.DeleteBudget(other):
                await self._delete_budget(key, other.namespace, other.name)
            case act.CreateAgents(count):
                assert pool is not None
                try:
                    await self._create_agents(key, pool, count)
                    self._world.refused_agents.pop(key, None)
                except Refused as error:
                    self._world.refused_agents[key] = _without_names(str(error)), self._uptime()
                    self._worklist.wake(key)
                    return True
            case act.DeleteAgent(agent):
                if not self._world.is_ours(agent):
                    log.warning("pod %s has an agent's labels and no proof that it was made here: deleted", agent.name)
                elif agent.is_over and not agent.is_deleting and not agent.last_task_label:
                    how = f"{agent.ended.reason}: {agent.ended.message.strip()}" if agent.ended else agent.phase
                    count, _, _ = self._world.failed_starts.get(key, (0, NEVER, ""))
                    self._world.failed_starts[key] = count + 1, self._uptime(), how[:MAX_HOW_CHARS]
                    log.warning("agent %s ended before it had a task: %s", agent.name, how)
                elif agent.unstarted_since is not None:
                    log.warning("agent %s: its container was made and never started", agent.name)
                if not await self._is_claimed(agent):
                    await self._delete_agent(agent, version="" if agent.is_over else agent.resource_version)
            case act.RemoveAgentFinalizer(agent):
                if (without := self._without_finalizer(agent)) and not await self._is_claimed(agent):
                    await self._patch_agent(agent, without | {"resourceVersion": agent.resource_version})
            case act.LabelAgent(agent, claim):
                await self._patch_agent(agent, self._busy(claim))
            case act.UnlabelAgent(agent):
                if not await self._is_claimed(agent):
                    without = self._without_finalizer(agent) if agent.is_over else {}
                    at = {"resourceVersion": agent.resource_version}
                    await self._patch_agent(agent, pod.idle_metadata() | without | at)
            case _:
                assert_never(action)
        return False

    def _without_finalizer(self, agent: Agent) -> dict[str, Any]:
        """Metadata; empty: it has none of ours."""
        raw = self._world.pods.raw(agent.uid)
        finalizers = raw["metadata"].get("finalizers", ()) if raw else ()
        others = [f for f in finalizers if f != names.AGENT_FINALIZER]
        return {"finalizers": others} if len(others) < len(finalizers) else {}

    async def _set_pool_finalizer(self, pool: Pool, *, is_wanted: bool) -> None:
        raw = self._world.pools.raw(pool.uid)
        if raw is None:
            raise NotFound(f"pool {pool.namespace}/{pool.name} vanished since it was decided upon")
        others = [f for f in raw["metadata"].get("finalizers", ()) if f != names.POOL_FINALIZER]
        finalizers = [*others, names.POOL_FINALIZER] if is_wanted else others
        patch = {"finalizers": finalizers, "uid": pool.uid, "resourceVersion": raw["metadata"]["resourceVersion"]}
        try:
            obj = await self._cluster.patch(api.POOLS, pool.namespace, pool.name, {"metadata": patch})
        except Conflict:
            found = await self._cluster.get(api.POOLS, pool.namespace, pool.name)
            if found["metadata"]["uid"] != pool.uid:  # deleted, and another made under its name
                self._world.see("agentpools", True, raw)
            self._world.see("agentpools", False, found)
            raise
        except NotFound:
            self._world.see("agentpools", True, raw)
            raise
        self._world.see("agentpools", False, obj)

    async def _claim(self, key: Key, task: Task, agent: Agent, fingerprint: str) -> None:
        claim = Claim(
            name=identity.claim_name_of(task),
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
        body = objects.claim_lease(claim, task, timestamp(self._clock()))
        self._unanswered[key] = claim
        try:
            lease = await self._cluster.create(api.LEASES, self._world.claims_namespace, body)
        except AlreadyExists:
            await self.clear_doubt(key)
        except Refused:
            del self._unanswered[key]
            raise
        else:
            del self._unanswered[key]
            self._world.begins_at.setdefault(key, self._uptime())
            self._hold(key, claim, lease)
        self._world.failed_starts.pop(key, None)

    async def _is_claimed(self, agent: Agent) -> bool:
        """No watch tells of the claim of a run that another operator has given to this agent; its label, and what it
        tells of that run, are younger than the claim, so a list of now has it. None is needed for a run whose claim
        was released here: with a thousand agents, each end would cost a list of a thousand claims."""
        session = self._world.agents.session(agent.uid)
        runs = {agent.run_label, *(session.runs if session is not None else ())} - {""}
        if all(map(self._world.claims.is_released, runs)):
            return False
        leases, _ = await self._cluster.list(api.LEASES, self._world.claims_namespace, names.CLAIM_LABEL)
        for claim in map(objects.claim, leases):
            if claim.pod_uid == agent.uid and not self._world.claims.is_anothers(claim):
                self._world.claims.put(claim)
                self._world.agent_changed(agent.uid)
                return True
        return False

    def _hold(self, key: Key, asked: Claim, lease: dict[str, Any]) -> None:
        """Whose claim it is, the Lease says: another task may have been first."""
        held = objects.claim(lease)
        self._world.claims.put(held)
        self._world.wake_line(held.name)
        for woken in (("task", asked.task_uid), ("task", held.task_uid), ("claim", held.name), key):
            self._worklist.wake(woken)

    async def _create_agents(self, key: Key, pool: Pool, count: int) -> None:
        """The policy comes before the pods that it is for."""
        uid, image = await self._anchor(key, pool), self._world.image(pool)
        body = pod.agent_pod(pool, image=image, operator_ca=self._operator_ca, anchor_uid=uid)
        for _ in range(count):
            meta = (await self._cluster.create(api.PODS, pool.namespace, body))["metadata"]
            log.info("pool %s/%s: agent %s created", pool.namespace, pool.name, meta["name"])
            # Of the UID, which only the API server gives: nobody can have it for another pod.
            proof = {"uid": meta["uid"], "annotations": {names.PROOF_ANNOTATION: self._world.proof(meta["uid"])}}
            proven = await self._cluster.patch(api.PODS, pool.namespace, meta["name"], {"metadata": proof})
            self._world.see("pods", False, proven)

    async def _anchor(self, key: Key, pool: Pool) -> str:
        """Its UID. It is looked for, and the policy written, now and then and where an agent was deleted while it
        lived: somebody may have deleted them, and pods whose owner is gone are collected at once."""
        uid, seen_at = self._anchored.get(key, ("", NEVER))
        is_old = self._uptime() - seen_at >= ANCHORED_S or key in self._world.lost
        if is_old or self._guarded.get(key) != (uid, pool.allow_metadata):
            self._anchored.pop(key, None)
            self._world.traces.add(key)
            self._world.lost.discard(key)  # what is lost from now on is looked for the next time
            try:
                anchor = await self._cluster.get(api.CONFIG_MAPS, pool.namespace, pod.anchor_name(pool.name))
            except NotFound:
                anchor = await self._cluster.create(api.CONFIG_MAPS, pool.namespace, pod.anchor(pool))
            uid = str(anchor["metadata"]["uid"])
            await self._guard(key, pool, uid)
            self._anchored[key] = uid, self._uptime()
        return uid

    async def guard_agents(self, key: Key, pool: Pool, agents: Iterable[Agent]) -> None:
        """Those that are there already, where the pool's policy is to be another, or nobody here knows what it is."""
        lasting = (agent for agent in agents if not (agent.is_deleting or agent.is_over) and self._world.is_ours(agent))
        raw = (self._world.pods.raw(agent.uid) for agent in lasting)
        owners = (owner["uid"] for obj in raw if obj for owner in obj["metadata"].get("ownerReferences", ()))
        if (anchor_uid := next(owners, "")) and self._guarded.get(key) != (anchor_uid, pool.allow_metadata):
            await self._guard(key, pool, anchor_uid)

    async def _guard(self, key: Key, pool: Pool, anchor_uid: str) -> None:
        policy = network.policy(pool, operator_namespace=self._namespace, anchor_uid=anchor_uid, scraper=self._scraper)
        await self._cluster.apply(api.NETWORK_POLICIES, pool.namespace, policy)
        self._guarded[key] = anchor_uid, pool.allow_metadata

    async def _create_budget(self, key: Key, pool: Pool) -> None:
        try:
            await self._cluster.create(api.BUDGETS, pool.namespace, pod.budget(pool))
        except AlreadyExists:
            pass
        except Refused as error:  # nothing else of the pool waits for it: its namespace may be going
            self._world.refused_budgets[key] = str(error)[:MAX_HOW_CHARS], self._uptime()
            self._worklist.wake(key)
            return
        self._world.budgets.add(key)
        if self._world.refused_budgets.pop(key, None):
            self._worklist.wake(key)  # its condition still says so

    async def _delete_budget(self, key: Key, namespace: str, pool_name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._cluster.delete(api.BUDGETS, namespace, pod.anchor_name(pool_name))
        self._world.budgets.discard(key)

    async def remove_traces(self, key: Key, namespace: str, pool_name: str) -> None:
        """Of a pool that is gone with all its agents, once, however long tasks go on to name it. Its policy goes with
        the anchor."""
        self._metrics.pool_gone(key)
        if key not in self._world.traces and key not in self._world.budgets:
            return
        self._guarded.pop(key, None)
        self._anchored.pop(key, None)
        self._world.lost.discard(key)
        if key in self._world.budgets:
            await self._delete_budget(key, namespace, pool_name)
        with contextlib.suppress(NotFound):
            await self._cluster.delete(api.CONFIG_MAPS, namespace, pod.anchor_name(pool_name))
        self._world.traces.discard(key)

    async def _reserve_agent(self, claim: Claim) -> None:
        at = claim.task_namespace, claim.pod_name, claim.pod_uid
        obj = await self._patch_pod(*at, self._busy(claim))
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            raise Conflict(f"agent {claim.task_namespace}/{claim.pod_name} goes, and has not been given its run yet")

    def _busy(self, claim: Claim) -> dict[str, Any]:
        return pod.busy_metadata(claim, timestamp(self._clock()))

    async def _delete_agent(self, agent: Agent, *, version: str = "") -> None:
        try:
            answer = await self._cluster.delete(api.PODS, agent.namespace, agent.name, uid=agent.uid, version=version)
        except (NotFound, Conflict):
            await self._look_at_pod(agent.namespace, agent.name, agent.uid)
            return
        if answer.get("kind") == "Pod":
            self._world.see("pods", False, answer)

    async def _patch_agent(self, agent: Agent, metadata: dict[str, Any]) -> None:
        await self._patch_pod(agent.namespace, agent.name, agent.uid, metadata)

    async def _patch_pod(self, namespace: str, name: str, uid: str, metadata: dict[str, Any]) -> dict[str, Any] | None:
        """The pod as it is then; None: it is gone, or was not patched because it has changed."""
        patch = {"metadata": metadata | {"uid": uid}}
        try:
            obj = await self._cluster.patch(api.PODS, namespace, name, patch)
        except (NotFound, Conflict):
            await self._look_at_pod(namespace, name, uid)
            return None
        self._world.see("pods", False, obj)
        return obj

    async def _look_at_pod(self, namespace: str, name: str, uid: str) -> None:
        """Gone, replaced by another of its name, or just changed: only the API server knows. What was to be done to it
        is decided upon anew, whatever has changed."""
        try:
            obj = await self._cluster.get(api.PODS, namespace, name)
        except NotFound:
            obj = None
        if obj is None or obj["metadata"]["uid"] != uid:
            self._world.see("pods", True, {"metadata": {"uid": uid}})
        else:
            self._world.see("pods", False, obj)
            self._world.agent_changed(uid)

    async def write_pool_status(self, key: Key, pool: Pool, decision: PoolDecision, refreshing: Refresh | None) -> None:
        self._metrics.pool_seen(key, decision.counts, is_ready=decision.problem is None)
        wanted = pool_status(pool, decision, refreshing, self._clock())
        patch = objects.merge_patch(pool.status, wanted)
        if not patch:
            return
        uptime = self._uptime()
        wait_s = self._pool_written_at.get(key, NEVER) + POOL_STATUS_INTERVAL_S - uptime
        if wait_s > 0:
            self._worklist.wake_after(key, wait_s)
            return
        self._pool_written_at[key] = uptime
        try:
            obj = await self._cluster.patch(
                api.POOLS, pool.namespace, pool.name, {"status": patch}, subresource="status"
            )
        except NotFound:
            return
        self._metrics.pool_written()
        self._world.see("agentpools", False, obj, is_own=obj.get("status") == wanted)


def _without_names(refusal: str) -> str:
    """Each pod that is tried has a new name: a reason that changes each time would be written to all who wait."""
    return re.sub(r'\b([Pp]ods?) "[^"]*"', r"\1", refusal)[:MAX_HOW_CHARS]
