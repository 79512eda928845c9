"""Brings what is seen to the pure cores, and has their decisions carried out.

One key is one task, the cancel of one, one pool, one claim whose task is gone, or one state that another shard's run
holds; a snapshot, a decision, its actions in order. Holds no rule of its own: which task runs, ends or waits is decided
in `core`. Called by `app`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.core.actions import ForOneAgent, Send
from terrahalt_operator.core.credentials import refresh
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.orphan import decide_orphan
from terrahalt_operator.core.pool_snapshot import PoolSnapshot
from terrahalt_operator.core.schedule import PoolDecision, schedule
from terrahalt_operator.effects import Effects
from terrahalt_operator.errors import Refused
from terrahalt_operator.worklist import Key, Worklist
from terrahalt_operator.world import World

LOOKS_AGAIN_WITHIN_S = 300.0
"""Whoever waits for a later moment is looked at before: somebody may have set the clock."""
STATES_EVERY_S, STATES_PER_S = 5.0, 10.0
"""How often it is asked whether a state is free that another shard's run holds and a task here waits for, as nobody
tells; and how many such requests there are in a second at most. A list tells of all claims each minute anyway."""

log = logging.getLogger(__name__)


class Reconciler:
    def __init__(
        self, *, world: World, effects: Effects, worklist: Worklist, leadership: Leadership, clock: Callable[[], float]
    ) -> None:
        self._world, self._effects, self._worklist = world, effects, worklist
        self._leadership, self._clock = leadership, clock

    async def work(self, key: Key) -> None:
        match key:
            case ("task", uid):
                await self._work_on_task(uid)
            case ("cancel", uid):
                await self._send_first(uid)
            case ("claim", name):
                await self._work_on_orphan(name)
            case ("state", name):
                await self._world.look_at_state(name)
                self._look_at_states((name,))
            case ("pool", namespace, name):
                await self._work_on_pool(key, namespace, name)

    async def _work_on_task(self, uid: str) -> None:
        task = self._world.tasks.values.get(uid)
        if task is None:
            return
        decision = decide(self._world.snapshot(task), self._clock())
        for action in decision.actions:
            await self._effects.on_task(uid, action)
        self._look_again(("task", uid), decision.wake_after_s)

    async def _send_first(self, uid: str) -> None:
        """What agents are to be told before anything is written: of a task that is to be cancelled, that must not wait
        for what is being written of other tasks. As after a crash, its next look does all the rest."""
        task = self._world.tasks.values.get(uid)
        if task is None:
            return
        for action in decide(self._world.snapshot(task), self._clock()).actions:
            if not isinstance(action, Send):
                break
            await self._effects.on_task(uid, action)

    async def _work_on_orphan(self, name: str) -> None:
        claim = self._world.claims.by_name.get(name)
        if claim is None or self._world.claims.is_anothers(claim):
            return
        if claim.task_uid in self._world.tasks.values or claim.task_uid in self._world.unreadable:
            return
        if await self._effects.finds_task_of(claim):
            return
        agent = self._world.pods.values.get(claim.pod_uid)
        received = self._world.report(claim, agent)
        decision = decide_orphan(
            claim,
            agent,
            self._world.agents.session(claim.pod_uid),
            received.report if received else None,
            report_key=self._world.report_key(claim),
            epoch=self._leadership.epoch,
        )
        for action in decision.actions:
            log.info("claim %s of the vanished task %s: %s", name, claim.task_name, type(action).__name__)
            await self._effects.on_task(claim.task_uid, action)

    async def _work_on_pool(self, key: Key, namespace: str, name: str) -> None:
        await self._effects.clear_doubt(key)
        snapshot = self._world.pool_snapshot(namespace, name)
        decision, refreshing = schedule(snapshot, self._clock()), refresh(snapshot)
        self._note_queueing(snapshot, decision)
        if not decision.is_brief:
            self._world.begins_at.pop(key, None)
        refused: Refused | None = None
        # A refresh asks the API server for nothing, so nothing holds it up.
        for action in (*(refreshing.actions if refreshing else ()), *decision.actions):
            try:
                if await self._effects.on_pool(key, snapshot.pool, action):
                    return
            except Refused as error:
                if not isinstance(action, ForOneAgent):
                    raise
                refused = error  # the pool's other agents and its tasks do not wait for it
        if snapshot.pool is not None and not decision.is_brief:
            await self._effects.write_pool_status(key, snapshot.pool, decision, refreshing)
            await self._effects.guard_agents(key, snapshot.pool, [view.agent for view in snapshot.agents])
        elif snapshot.pool is None and not snapshot.agents:
            await self._effects.remove_traces(key, namespace, name)
        self._look_again(key, decision.wake_after_s)
        self._look_at_states(snapshot.holders)
        if refused is not None:
            raise refused

    def _look_at_states(self, claim_names: Iterable[str]) -> None:
        """In a while, at those that another shard's run holds and a task here waits for."""
        claims = self._world.claims
        others = {name for name in claim_names if (claim := claims.by_name.get(name)) and claims.is_anothers(claim)}
        if not others:
            return
        held = self._world.held_elsewhere()
        for name in sorted(others & held):
            self._worklist.wake_after(("state", name), max(STATES_EVERY_S, len(held) / STATES_PER_S))

    def _look_again(self, key: Key, wait_s: float | None) -> None:
        if wait_s is not None:
            self._worklist.wake_after(key, min(wait_s, LOOKS_AGAIN_WITHIN_S))

    def _note_queueing(self, snapshot: PoolSnapshot, decision: PoolDecision) -> None:
        queueing = self._world.queueing
        for task in snapshot.waiting:
            new = decision.queueing.get(task.uid)
            if new is None:
                queueing.pop(task.uid, None)
            elif queueing.get(task.uid) != new and not (decision.is_brief and task.uid in queueing):
                queueing[task.uid] = new
                self._worklist.wake(("task", task.uid))
