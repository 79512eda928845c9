"""What the operator has seen, and the snapshots that the core decides upon.

Takes objects from the watch, from lists and from answers to our own writes, keeps dialling the agents
that can be dialled, and wakes the keys that what it saw is about. Holds no rule of the product but one:
which image a pool's agents get. Called by `app` (what comes in), `reconciler` (snapshots) and `effects`
(answers). It has more than 500 lines because whom a change wakes is said where the change is seen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from msgspec.structs import replace

from terrahalt_operator.adapters import cluster as api
from terrahalt_operator.adapters import objects
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.adapters.trust import Trust
from terrahalt_operator.adapters.watch import AGENT_SELECTOR
from terrahalt_operator.core import names, pod, queue
from terrahalt_operator.core.identity import claim_name_of, claim_of_status, label_value
from terrahalt_operator.core.model import Agent, Claim, Pool, Queueing, ReceivedReport, Snapshot, StateLock, Task
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot
from terrahalt_operator.errors import NotFound, Refused
from terrahalt_operator.store import Claims, Groups, Shelf, Templates
from terrahalt_operator.worklist import Key
from terrahalt_protocol.signing import report_key, unseal

NEVER = -math.inf

log = logging.getLogger(__name__)


class World:
    def __init__(
        self,
        *,
        cluster: Cluster,
        agents: Callable[[World], Agents],
        trust: Trust,
        leadership: Leadership,
        claims_namespace: str,
        watched: Collection[str],
        agent_images: Mapping[str, str],
        clock: Callable[[], float],
        uptime: Callable[[], float],
        wake: Callable[[Key], None],
    ) -> None:
        """`clock`: seconds since 1970, which somebody may set; `uptime`: seconds that only pass."""
        self._cluster, self._trust, self._leadership = cluster, trust, leadership
        self.claims_namespace = claims_namespace
        """Shards share one; else it is the operator's own."""
        self._watched, self._agent_images = watched, agent_images
        self._clock, self._uptime, self._pass_on = clock, uptime, wake
        self._stands_by = False
        self.tasks: Shelf[Task] = Shelf(with_status=True)
        self.pools: Shelf[Pool] = Shelf()
        self.pods: Shelf[Agent] = Shelf()
        self.claims = Claims(watched)
        self.queueing: dict[str, Queueing] = {}
        self.state_locks: dict[str, StateLock] = {}
        self.logs_kept: dict[str, tuple[str, bool]] = {}
        """Task -> of which of its runs the operator has tried to keep the log, and whether it could."""
        self._of_state: Groups[str, Task] = Groups()
        """Claim name -> the tasks that work on this state and have not ended, by UID."""
        self._superseding: Groups[str, Task] = Groups()
        """Of these, the few for which older ones make way."""
        self._of_pool: Groups[tuple[str, str], Task] = Groups()
        """Namespace and pool -> its tasks that have not ended, by UID."""
        self.unreadable: set[str] = set()
        """Tasks that are there, but can't be read (a later version wrote them): their runs go on."""
        self.status_written_at: dict[str, float] = {}
        """Task -> when, in uptime."""
        self._led_at = NEVER
        """When this operator began to lead, in uptime: who led before has written until then at the latest."""
        self.failed_starts: dict[Key, tuple[int, float, str]] = {}
        """Pool -> how many agents in a row ended before they had a task, and when (in uptime) and how the last did."""
        self.refused_agents: dict[Key, tuple[str, float]] = {}
        """Pool -> why the API server would not take its last agent, and when (in uptime) it said so."""
        self._released_at: dict[str, float] = {}
        """Pod -> when, in uptime, the claim of its last run was released."""
        self.lost: set[Key] = set()
        """Pools of which an agent was deleted before it had ended: what owns it may be gone."""
        self.begins_at: dict[Key, float] = {}
        """Pool -> when (in uptime) the first run was about to begin since nothing of it was left for later: an agent
        was given a task, or is free for one that waits."""
        self.refused_budgets: dict[Key, tuple[str, float]] = {}
        """Pool -> why the API server would not take what keeps evictions from it, and when (in uptime) it said so."""
        self.refused: set[str] = set()
        """Of several namespaces that are watched those that can't be listed."""
        self.traces: set[Key] = set()
        """Pools, of now or of before, that have an anchor, as far as is known."""
        self.budgets: set[Key] = set()
        """Pools whose agents nobody evicts while they have a run."""
        self._templates = Templates(trust.ca_pem)
        self.agents = agents(self)

    # ---- whether anything follows from it

    def stand_by(self) -> None:
        """Until `lead` it only sees: no agent is dialled, no key is woken, and claims, which nobody watches, are
        not known."""
        self._stands_by = True

    async def lead(self) -> None:
        """Lists all once more, then dials every agent and wakes every key; raises ClusterError, to be called again.

        What was seen before this operator led is not enough to decide upon: a task that is believed to wait, and
        has ended meanwhile, would run twice.
        """
        self.claims = Claims(self._watched)
        await self._relist_claims()
        await self._relist_budgets()
        await self.relist()
        await self._relist_traces()
        self._stands_by, self._led_at = False, self._uptime()
        for task in self.tasks.values.values():
            self._hold_by_status(task)
        for claim in self.claims.by_task.values():
            if not claim.resource_version:  # somebody deleted it, or has changed claimsNamespace
                where = f"task {claim.task_namespace}/{claim.task_name}: no claim in {self.claims_namespace}"
                log.warning("%s names its run, so only this operator keeps others from its state", where)
        for agent in sorted(self.pods.values.values(), key=lambda agent: self._cancelled_in(agent.uid) is None):
            if not agent.is_over:
                self._dial(agent)
        self._wake_all()

    async def _relist_traces(self) -> None:
        """By the NetworkPolicies, of which each anchor owns one: of a pool that is gone with all its agents, as an
        operator died, or made them late, nothing else tells."""
        try:
            found, _ = await self._pools_of(api.NETWORK_POLICIES, AGENT_SELECTOR)
            self.traces |= found
        except Refused as error:
            log.warning("what pools that are gone have left is not looked for: %s", error)
        for key in self.traces - {("pool", pool.namespace, pool.name) for pool in self.pools.values.values()}:
            self._wake(key)

    def _wake_all(self) -> None:
        """What somebody has asked for first, then what runs or waits."""
        for task in self.tasks.values.values():
            if not task.status.is_terminal and (task.wants_cancel or not task.is_stamped):
                self._wake(("task", task.uid))
                self._wake(("pool", task.namespace, task.spec.pool_ref.name))
        for claim in self.claims.by_name.values():
            self._wake(("task", claim.task_uid))
            self._wake(("claim", claim.name))
        pools = {(p.namespace, p.name) for p in self.pools.values.values()}
        pools |= {(a.namespace, a.pool) for a in self.pods.values.values()}
        pools |= {pool for pool in self._of_pool if self._is_waited_for(pool)}
        for key in {("pool", namespace, name) for namespace, name in pools} | self.budgets | self.traces:
            self._wake(key)
        for task in sorted(self.tasks.values.values(), key=lambda task: task.status.is_terminal):
            self._wake(("task", task.uid))

    def _wake(self, key: Key) -> None:
        if not self._stands_by:
            self._pass_on(key)

    # ---- what comes in

    async def relist(self) -> None:
        """Everything from the API: at the start, and now and then, for deletes that a watch lost."""
        if not self._stands_by:
            await self._relist_claims()
            await self._relist_budgets()
        shelves: tuple[tuple[api.Resource, str, Shelf[Any]], ...] = (
            (api.POOLS, "", self.pools),
            (api.PODS, AGENT_SELECTOR, self.pods),
            (api.TASKS, "", self.tasks),
        )
        refused: set[str] = set()
        for resource, labels, shelf in shelves:
            refused |= await self.in_each_namespace(partial(self._relist, resource, labels, shelf))
        for namespace in self.refused - refused:
            log.info("namespace %s can be listed again", namespace)
        self.refused &= refused
        if not self._stands_by:
            await self._relist_traces()
        for namespace in {pool.namespace for pool in self.pools.values.values()}:  # nobody tells all that they wait for
            self.wake_pools(namespace)

    async def in_each_namespace(self, ask: Callable[[str | None], Awaitable[None]]) -> set[str]:
        """The namespaces in which it is refused: one that is deleted takes the operator's Role there with it, and all
        others go on. Where it is refused in each, or whoever watches everything is refused, raises ClusterError."""
        refused: dict[str, Refused] = {}
        for namespace in self._watched or (None,):
            try:
                await ask(namespace)
            except Refused as error:
                if namespace is None or len(refused) + 1 == len(self._watched):
                    raise
                refused[namespace] = error
        for namespace in refused.keys() - self.refused:
            log.error("namespace %s is not watched until it can be listed again: %s", namespace, refused[namespace])
        self.refused |= refused.keys()
        return set(refused)

    async def _relist(self, resource: api.Resource, labels: str, shelf: Shelf[Any], namespace: str | None) -> None:
        uids: list[str] = []

        def is_known(uid: str, version: str) -> bool:
            uids.append(uid)
            return shelf.has(uid, int(version))

        see = partial(self.see, resource[1], False)
        version = await self._cluster.each(resource, namespace, see, labels, is_known=is_known)
        for uid in shelf.gone(uids, int(version)):
            obj = shelf.raw(uid)
            if obj is not None and namespace in (None, obj["metadata"]["namespace"]):
                obj["metadata"]["resourceVersion"] = version
                self.see(resource[1], True, obj)

    async def _relist_claims(self) -> None:
        leases, version = await self._cluster.list(api.LEASES, self.claims_namespace, names.CLAIM_LABEL)
        for claim in self.claims.missing((lease["metadata"]["name"] for lease in leases), int(version)):
            task = self.tasks.values.get(claim.task_uid)
            if task is None or task.status.is_terminal:
                self.claims.remove(claim.name)
                self.wake_state(claim)
            elif claim.resource_version:
                log.warning("claim %s of task %s: somebody deleted its Lease", claim.name, claim.task_name)
                self.claims.remove(claim.name)
                self.claims.put(replace(claim, resource_version=""))
        for lease in leases:
            meta = lease["metadata"]
            known = self.claims.by_name.get(meta["name"])
            if known is not None and known.resource_version == meta["resourceVersion"]:
                claim = known
            else:
                claim = objects.claim(lease)
            self.claims.put(claim)
            if known is not None and self.claims.is_anothers(claim):
                self._hold_what_lost_its_claim(known)
            self._wake(("claim", claim.name))
            if claim is not known:  # no watch tells of claims: another operator may have made it
                self._wake(("task", claim.task_uid))

    def _hold_what_lost_its_claim(self, claim: Claim) -> None:
        """To another shard, before a list could tell that somebody has deleted it."""
        task = self.tasks.values.get(claim.task_uid)
        if task is None or task.uid in self.claims.by_task:
            return
        self._hold_by_status(task)
        if task.uid in self.claims.by_task:
            log.error("claim %s of task %s: somebody deleted it, another shard has it now", claim.name, claim.task_name)

    def held_elsewhere(self) -> set[str]:
        """Claims of other shards, by name, for whose states tasks wait here."""
        others = (name for name, claim in self.claims.by_name.items() if self.claims.is_anothers(claim))
        return {name for name in others if any(map(self._waits, self._of_state.get(name, {}).values()))}

    async def look_at_state(self, claim_name: str) -> None:
        """Nobody tells that another shard has released its claim."""
        known = self.claims.by_name.get(claim_name)
        if known is None or not self.claims.is_anothers(known):
            return
        try:
            found = objects.claim(await self._cluster.get(api.LEASES, self.claims_namespace, claim_name))
        except NotFound:
            found = None
        if found == known or self.claims.by_name.get(claim_name) != known:  # meanwhile a list has told
            return
        self.claims.remove(claim_name)
        if found is not None:
            self.claims.put(found)
            self._wake(("task", found.task_uid))
        self.wake_line(claim_name)

    async def _relist_budgets(self) -> None:
        """Nobody watches them."""
        found, refused = await self._pools_of(api.BUDGETS, f"{names.NAME_LABEL}={names.BUDGET_NAME}")
        found |= {key for key in self.budgets if key[1] in refused}
        changed, self.budgets = found ^ self.budgets, found
        for key in changed:
            self._wake(key)

    async def _pools_of(self, resource: api.Resource, labels: str) -> tuple[set[Key], set[str]]:
        """Those that an object of this kind is labelled with, and the namespaces in which nobody could look."""
        found: set[Key] = set()

        async def find(namespace: str | None) -> None:
            objs, _ = await self._cluster.list(resource, namespace, labels)
            for meta in (obj["metadata"] for obj in objs):
                found.add(("pool", meta["namespace"], meta["labels"].get(names.POOL_LABEL, "")))

        refused = await self.in_each_namespace(find)
        return found, refused

    def see(self, plural: str, is_gone: bool, obj: dict[str, Any], *, is_own: bool = False) -> None:
        """One object as the API has it now, from the watch, a list or an answer; `is_own`: with the status we wrote."""
        try:
            match plural:
                case "terraformtasks":
                    self._see_task(is_gone, obj)
                case "agentpools":
                    self._see_pool(is_gone, obj, is_own=is_own)
                case "pods":
                    self._see_pod(is_gone, obj)
        except ValueError as error:
            log.error("%s", error)

    def agent_changed(self, pod_uid: str) -> None:
        """A connection to this pod came, went or said something new; or the pod itself changed."""
        self.agent_reported(pod_uid)
        if (agent := self.pods.values.get(pod_uid)) is not None:
            self._wake(("pool", agent.namespace, agent.pool))
        if (task := self._cancelled_in(pod_uid)) is not None and self.agents.awaits_cancel(pod_uid):
            self._wake(("cancel", task.uid))

    def _cancelled_in(self, pod_uid: str) -> Task | None:
        """The task whose run is in this pod, where that is to be ended."""
        claim = self.claims.by_pod.get(pod_uid)
        task = self.tasks.values.get(claim.task_uid) if claim else None
        return task if task is not None and task.wants_cancel and not task.status.is_terminal else None

    def agent_reported(self, pod_uid: str) -> None:
        """The run of this pod has come further."""
        if (claim := self.claims.by_pod.get(pod_uid)) is not None:
            self._wake(("task", claim.task_uid))
            self._wake(("claim", claim.name))

    def wake_pools(self, namespace: str) -> None:
        """All pools of the namespace look again: one of them came or goes, or nobody tells all that they wait for."""
        names_ = {p.name for p in self.pools.values.values() if p.namespace == namespace}
        names_ |= {pool[1] for pool in self._of_pool if pool[0] == namespace and self._is_waited_for(pool)}
        for name in names_:
            self._wake(("pool", namespace, name))

    def _is_waited_for(self, pool: tuple[str, str]) -> bool:
        return any(map(self._waits, self._of_pool.get(pool, {}).values()))

    def wake_state(self, claim: Claim) -> None:
        """The state of a released claim is free: one in a bucket may be waited for in other namespaces too; and another
        claim of its agent is to be looked at again, and its task, which may be cancelled in the queue now."""
        if (agent := self.pods.values.get(claim.pod_uid)) is not None:
            self._released_at[agent.uid] = self._uptime()
            if not agent.is_deleting and self._is_waited_for((agent.namespace, agent.pool)):
                self.begins_at.setdefault(("pool", agent.namespace, agent.pool), self._uptime())
        self.agents.forget_end(claim.pod_uid)
        self.agent_changed(claim.pod_uid)
        self.wake_line(claim.name)
        self._wake(("task", claim.task_uid))

    def wake_line(self, claim_name: str) -> None:
        """Who is the next for this state, or for whom all wait, may have changed."""
        for task in self._of_state.get(claim_name, {}).values():
            if self._waits(task):
                self._wake(("pool", task.namespace, task.spec.pool_ref.name))

    def _see_task(self, is_gone: bool, obj: dict[str, Any]) -> None:
        uid = obj["metadata"]["uid"]
        if is_gone:
            task = self.tasks.remove(uid)
            self.unreadable.discard(uid)
            self.queueing.pop(uid, None)
            self.state_locks.pop(uid, None)
            self.logs_kept.pop(uid, None)
            self.status_written_at.pop(uid, None)
            if claim := self.claims.by_task.get(uid):
                held = self.claims.by_name.get(claim.name)
                if held is None or held.run_id != claim.run_id:  # nobody would look at it any more
                    self.claims.release(claim)
                    self.wake_state(claim)
                self._wake(("claim", claim.name))
            if task is not None:
                self._note_state(task, None)
                self._wake(("pool", task.namespace, task.spec.pool_ref.name))
            return
        if self.tasks.knows(obj):
            return
        try:
            task = objects.task(obj)
        except ValueError:
            self.unreadable.add(uid)
            raise
        self.unreadable.discard(uid)
        old = self.tasks.values.get(uid)
        if self.tasks.put(obj, task):
            self._note_state(old, task)
            self._hold_by_status(task)
            is_news = old is None or (old.generation, old.is_deleting) != (task.generation, task.is_deleting)
            if is_news and task.wants_cancel and uid in self.claims.by_task:
                self._wake(("cancel", uid))
            self._wake(("task", uid))
            if uid not in self.claims.by_task and (old is None or queue.stand(old) != queue.stand(task)):
                self._wake(("pool", task.namespace, task.spec.pool_ref.name))

    def _hold_by_status(self, task: Task) -> None:
        if task.uid not in self.claims.by_task and (claim := claim_of_status(task)) is not None:
            self.claims.put(claim)
            if (agent := self.pods.values.get(claim.pod_uid)) is not None:
                self._dial(agent)

    def _note_state(self, old: Task | None, new: Task | None) -> None:
        """Others of its state look again where it leaves their line, or its place there, or is to take theirs."""
        task = new or old
        assert task is not None
        if old is not None and claim_name_of(old) != claim_name_of(task):
            self._note_state(old, None)  # a rule of the CRD alone sees no setting that has got another name
        name, pool = claim_name_of(task), (task.namespace, task.spec.pool_ref.name)
        did, does = (t is not None and queue.supersedes(t) for t in (old, new))
        unfinished = None if new is None or new.status.is_terminal else new
        self._of_state.note(name, task.uid, unfinished)
        self._of_pool.note(pool, task.uid, unfinished)
        self._superseding.note(name, task.uid, new if does else None)
        if old is not None and (new is None or queue.place(old) != queue.place(new) or _is_over(old) != _is_over(new)):
            self.wake_line(name)
        if did != does:
            for uid in self._of_state.get(name, ()):
                self._wake(("task", uid))

    def _see_pool(self, is_gone: bool, obj: dict[str, Any], *, is_own: bool) -> None:
        meta, old = obj["metadata"], self.pools.values.get(obj["metadata"]["uid"])
        if is_gone:
            self.pools.remove(meta["uid"])
            self._wake_for_pool(meta["namespace"], meta["name"])
        elif self.pools.knows(obj):
            return
        else:
            pool = objects.pool(obj)
            self.pools.put(obj, pool)
            if old is None:  # a task that was given to an agent of its forerunner may wait for it
                for claim in self.claims.by_task.values():
                    if claim.task_namespace == meta["namespace"]:
                        self._wake(("task", claim.task_uid))
            elif is_own and pool == replace(old, resource_version=pool.resource_version, status=pool.status):
                return
            if old is None or old.is_deleting is not pool.is_deleting:  # else others wait as they did
                self._wake_for_pool(meta["namespace"], meta["name"])
        self._wake(("pool", meta["namespace"], meta["name"]))

    def _wake_for_pool(self, namespace: str, name: str) -> None:
        """It is there, or is to go: others may be first for the states that its tasks wait for, in other namespaces
        too."""
        self.wake_pools(namespace)
        for claim_name in set(map(claim_name_of, self._of_pool.get((namespace, name), {}).values())):
            self.wake_line(claim_name)

    def _see_pod(self, is_gone: bool, obj: dict[str, Any]) -> None:
        uid = obj["metadata"]["uid"]
        if is_gone:
            agent = self.pods.remove(uid, float(obj["metadata"].get("resourceVersion", "inf")))
            if uid in self.pods.values:
                return
            self.agents.drop(uid)
            self._released_at.pop(uid, None)
            if uid not in self.claims.by_pod:
                self.agents.forget_end(uid)
            if agent is not None:
                self._note_loss(agent)
                self._wake(("pool", agent.namespace, agent.pool))
        elif self.pods.knows(obj):
            return
        else:
            old, agent = self.pods.values.get(uid), objects.agent(obj)
            self.pods.put(obj, agent)
            if agent.is_over:
                self.agents.drop(uid)
            else:
                self._dial(agent)
            if agent.is_deleting:
                self._note_loss(agent)
            if old is None or agent != replace(old, **self._unasked(agent)):
                self.agent_changed(uid)

    def _note_loss(self, agent: Agent) -> None:
        if not agent.is_over:
            self.lost.add(("pool", agent.namespace, agent.pool))

    def _unasked(self, agent: Agent) -> dict[str, Any]:
        """What may have changed of it and changes nothing. Of a pod that starts the kubelet tells much that nobody asks
        for before it is connected; a label may have come to say which run it has; or its finalizer is off."""
        fields = ["resource_version"]
        claim = self.claims.by_pod.get(agent.uid)
        if claim is None:
            if not (agent.is_over or agent.is_deleting or self.agents.session(agent.uid)):
                fields += "ip", "phase", "container_id", "image", "is_running"
        elif (agent.run_label, agent.task_label) == (claim.run_id, label_value(claim.task_name)):
            fields += "run_label", "task_label", "last_task_label"
        if not agent.has_finalizer:
            fields.append("has_finalizer")
        return {field: getattr(agent, field) for field in fields}

    def _dial(self, agent: Agent) -> None:
        """A claim was given to agents of ours only, those of a version that wrote no proof included."""
        if self._stands_by:
            return
        if agent.ip and agent.is_running and (self.is_ours(agent) or agent.uid in self.claims.by_pod):
            self.agents.keep(agent)

    # ---- what the core decides upon

    def pinned(self, pod_uid: str) -> str:
        """The fingerprint that this pod's claim holds it to; empty: it has no claim."""
        claim = self.claims.by_pod.get(pod_uid)
        return claim.fingerprint if claim else ""

    def had_run(self, pod_uid: str) -> bool:
        agent = self.pods.values.get(pod_uid)
        return agent is not None and bool(agent.last_task_label)

    def proof(self, pod_uid: str) -> str:
        return pod.proof(self._trust.report_secret, pod_uid)

    def is_ours(self, agent: Agent) -> bool:
        """Whether the operator made this pod."""
        return pod.is_proven(agent.proof, self._trust.report_secret, agent.uid)

    def snapshot(self, task: Task) -> Snapshot:
        claim = self.claims.by_task.get(task.uid)
        agent = self.pods.values.get(claim.pod_uid) if claim else None
        pool = self.pool(task.namespace, task.spec.pool_ref.name)
        bounds = None if claim else pool
        return Snapshot(
            task=task,
            claim=claim,
            agent=agent,
            agent_is_gone=claim is not None and self.pods.is_gone(claim.pod_uid),
            session=self.agents.session(claim.pod_uid) if claim else None,
            report=self.report(claim, agent) if claim else None,
            pool_grace_s=bounds.termination_grace_s if bounds else None,
            allowed_approval=bounds.allowed_approval if bounds else None,
            pool_env_from=pool.env_from if pool else None,
            queueing=self.queueing.get(task.uid),
            superseded_by=self._superseder(task, has_agent=claim is not None),
            state_lock=self.state_locks.get(task.uid),
            log_kept=self._log_kept(task, claim),
            report_key=self.report_key(claim) if claim else "",
            epoch=self._leadership.epoch,
            last_status_write_at=self.status_written_at.get(task.uid, self._led_at) + self._clock() - self._uptime(),
            runs=len(self.claims.by_task),
        )

    def _log_kept(self, task: Task, claim: Claim | None) -> bool | None:
        run_id, is_kept = self.logs_kept.get(task.uid, ("", False))
        return is_kept if claim is not None and claim.run_id == run_id else None

    def report_key(self, claim: Claim) -> str:
        return report_key(self._trust.report_secret, claim.run_id)

    def report(self, claim: Claim, agent: Agent | None) -> ReceivedReport | None:
        """What the run said last: over the socket, or, signed, as its pod's termination message."""
        if agent is not None and agent.ended is not None and agent.ended.container_id == claim.container_id:
            sealed = unseal(agent.ended.message, self.report_key(claim), claim.run_id)
            if sealed is not None:
                # Its ages count from when it was written: the run's last act, however long ago.
                return ReceivedReport(report=sealed, received_at=agent.ended.finished_at or self._clock())
        return self.agents.report(claim.pod_uid, claim.run_id)

    def pool(self, namespace: str, name: str) -> Pool | None:
        for pool in self.pools.values.values():
            if pool.name == name and pool.namespace == namespace:
                return pool
        return None

    def image(self, pool: Pool) -> str:
        """Empty: nobody said which image has the pool's engine."""
        return pool.image or self._agent_images.get(pool.engine, "")

    def pool_snapshot(self, namespace: str, name: str) -> PoolSnapshot:
        pool = self.pool(namespace, name)
        pools = {(p.namespace, p.name) for p in self.pools.values.values() if not p.is_deleting}
        waiting = sorted(filter(self._waits, self._of_pool.get((namespace, name), {}).values()), key=queue.place)
        states = set(map(claim_name_of, waiting))
        first: dict[str, str] = {}
        for state in states:
            line = [t for t in self._of_state[state].values() if (t.namespace, t.spec.pool_ref.name) in pools]
            if len(line) > 1 and (line := list(filter(self._waits, line))):
                first[state] = min(line, key=queue.place).uid
        agents = [a for a in self.pods.values.values() if a.namespace == namespace and a.pool == name]
        key: Key = ("pool", namespace, name)
        refused, refused_at = self.refused_agents.get(key, ("", NEVER))
        unguarded, unguarded_at = self.refused_budgets.get(key, ("", NEVER))
        failed, failed_at, how = self.failed_starts.get(key, (0, NEVER, ""))
        shift_s = self._clock() - self._uptime()  # from uptime to the clock
        image = template = refused_template = ""
        if pool is not None:
            image = self.image(pool)
            template, refused_template = self._templates.of(pool, image)
        return PoolSnapshot(
            name=name,
            pool=pool,
            agents=tuple(
                AgentView(
                    a,
                    self.agents.session(a.uid),
                    self.claims.by_pod.get(a.uid),
                    self.is_ours(a),
                    self.agents.unreached(a.uid),
                    self._released_at.get(a.uid, NEVER) + shift_s,
                )
                for a in agents
            ),
            waiting=tuple(waiting),
            first_in_line=first,
            holders={
                c.name: c.task_name if c.task_namespace == namespace else f"{c.task_namespace}/{c.task_name}"
                for c in map(self.claims.by_name.get, states)
                if c is not None
            },
            has_budget=key in self.budgets,
            refused_budget=unguarded,
            refused_budget_at=unguarded_at + shift_s,
            has_image=bool(image),
            refused_template=refused_template,
            template_hash=template,
            refused=refused,
            refused_at=refused_at + shift_s,
            failed_starts=failed,
            last_failed_start_at=failed_at + shift_s,
            last_failed_start=how,
            begins_at=self.begins_at.get(key, NEVER) + shift_s,
            epoch=self._leadership.epoch,
        )

    def _superseder(self, task: Task, *, has_agent: bool) -> str:
        if not self._superseding:
            return ""
        return queue.superseder(task, self._superseding.get(claim_name_of(task), {}).values(), has_agent=has_agent)

    def _waits(self, task: Task) -> bool:
        until = queue.waits_until(task)
        return (
            not task.status.is_terminal
            and not task.status.run_id
            and task.uid not in self.claims.by_task
            and not task.wants_cancel
            and not task.awaits_approval
            and not task.is_restored_copy
            and (until is None or self._clock() < until)
            and not self._superseder(task, has_agent=False)
        )


def _is_over(task: Task | None) -> bool:
    """It waits for nothing any more, whether it has run or not."""
    return task is None or task.status.is_terminal or task.wants_cancel
