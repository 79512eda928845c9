"""Which of a pool's agents are to go, and whose pods may go with them.

Must never delete an agent that holds a claim, nor take the finalizer from a pod whose run has not been seen
to end. Pure; called by `schedule`.
"""

from __future__ import annotations

from terrahalt_operator.core.actions import DeleteAgent, PoolAction, RemoveAgentFinalizer, Send
from terrahalt_operator.core.model import Agent, Pool
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot
from terrahalt_protocol.messages import Leave

KEPT_ENDED = 5
"""Ended agents whose pods stay for a while, so that `kubectl logs` can still be read."""
REACHED_WITHIN_S = 60.0
"""An agent that runs is connected to within seconds of its pod's making, but its image may have to be pulled first."""
TURNED_AWAY_AFTER_S = 10.0
"""The proof is written right after the pod was created; an operator that is killed in between leaves one without."""
CLOCKS_DIFFER_S = 60.0
"""One that was created so much later than now was so by another clock: how long ago, nobody knows."""
TOLD_AGAIN_AFTER_S = 10.0
"""An agent that nothing runs in ends moments after its kubelet told it to. One that was told before its process could
take a signal never heard it, and would hold its place in the pool for all of its pod's grace: the kubelet tells once,
whatever grace a second deletion has."""


def surplus(
    p: PoolSnapshot, now: float, waiting: list[AgentView], unserved: int
) -> tuple[list[AgentView], float | None]:
    """Those beyond what the pool is to have waiting whose time is over, and when the next one's is. The youngest are
    beyond, and before them those that can't start; one that can is let to."""
    if p.pool is None:
        return [], None
    over: list[AgentView] = []
    waits_s: list[float] = []
    waiting = sorted(waiting, key=lambda v: bool(v.agent.waiting_reason))
    for view in waiting[p.pool.min_idle + unserved :]:
        if view.session is None and not view.agent.waiting_reason:
            continue
        since = view.session.since if view.session is not None else view.agent.created_at
        left_s = since + p.pool.idle_timeout_s - now
        if left_s > 0:
            waits_s.append(left_s)
        else:
            over.append(view)
    return over, min(waits_s, default=None)


def without_use(
    p: PoolSnapshot,
    now: float,
    alive: list[AgentView],
    free: list[AgentView],
    starting: list[AgentView],
    spent: list[AgentView],
    beyond: list[AgentView],
    unserved: int,
) -> tuple[list[PoolAction], float | None]:
    """Agents that the pool has no use for, and when there may be others. One with a run that nobody claims ends by its
    own ladder."""
    if p.pool is None or p.pool.is_deleting:
        return [DeleteAgent(v.agent) for v in alive if not v.is_claimed and not v.agent.is_deleting], None
    stuck, starts_s = _stuck([v for v in starting if v.agent.template_hash != p.template_hash], now)
    outdated = [*(v for v in free if v.agent.template_hash != p.template_hash), *stuck]
    outdated = outdated[: _replaceable(p, p.pool, alive, unserved)]
    useless = [v for v in spent if v.session is None or v.session.runs or v.session.mismatch]
    return [DeleteAgent(v.agent) for v in (*outdated, *beyond, *useless)], starts_s


def _stuck(starting: list[AgentView], now: float) -> tuple[list[AgentView], float | None]:
    """Those that can't start, or take too long, so that a pool full of pods with a wrong image recovers once it is put
    right; and when the next one does. Any other is let to: agents of a former version that are told to end while
    Python starts never hear it, and hold their place in the pool for all of their pods' grace."""
    stuck: list[AgentView] = []
    waits_s: list[float] = []
    for view in starting:
        left_s = view.agent.created_at + REACHED_WITHIN_S - now
        if view.agent.waiting_reason or left_s <= 0:
            stuck.append(view)
        else:
            waits_s.append(left_s)
    return stuck, min(waits_s, default=None)


def _replaceable(p: PoolSnapshot, pool: Pool, alive: list[AgentView], unserved: int) -> int | None:
    """How many outdated agents may go; None: all. Until the API server has taken one as the pool makes them now, nobody
    knows that anything can be made in their place."""
    if p.refused_template:
        return 0
    is_taken = any(v.agent.template_hash == p.template_hash for v in alive)
    if is_taken or not pool.min_idle + unserved or "exceeded quota" in p.refused:
        return None
    has_room = len(alive) < pool.max_agents or any(v.agent.is_deleting for v in alive)
    return 0 if p.refused or has_room else 1


def bury(over: list[AgentView], alive: list[AgentView], *, kept: int) -> list[PoolAction]:
    """Pods whose end was seen lose their finalizer; the latest with a log worth reading stay. One that wears a run's
    label is claimed, as far as is known by somebody else: its end is evidence, until `_label` has taken that off."""
    actions: list[PoolAction] = []
    ran = sorted((v for v in over if v.agent.last_task_label), key=lambda v: v.agent.created_at, reverse=True)
    readable = {v.agent.uid for v in ran[:kept]}
    for view in over:
        if view.is_claimed or view.agent.run_label:
            continue
        if view.agent.has_finalizer:
            actions.append(RemoveAgentFinalizer(view.agent))
        if view.agent.uid not in readable and not view.agent.is_deleting:
            actions.append(DeleteAgent(view.agent))
    actions += [RemoveAgentFinalizer(v.agent) for v in alive if not v.is_claimed and _is_given_up(v.agent)]
    return actions


def _is_given_up(agent: Agent) -> bool:
    """Without a claim no run is there, or a person has given it up; a container that still runs is left to end by
    itself, but a pod that the API server has given up (its node is gone) is not waited for."""
    never_ends = not agent.container_id or agent.phase in ("Failed", "Succeeded")
    return agent.is_deleting and agent.has_finalizer and never_ends


def turn_away(strangers: list[AgentView], now: float) -> tuple[list[PoolAction], float | None]:
    """They wear an agent's labels, so they are the operator's to take away."""
    actions: list[PoolAction] = []
    waits_s: list[float] = []
    for agent in (v.agent for v in strangers):
        age_s = now - agent.created_at
        if agent.is_deleting:
            if agent.has_finalizer and (agent.is_over or _is_given_up(agent)):
                actions.append(RemoveAgentFinalizer(agent))
        elif -CLOCKS_DIFFER_S < age_s < TURNED_AWAY_AFTER_S:
            waits_s.append(TURNED_AWAY_AFTER_S - age_s)
        else:
            actions.append(DeleteAgent(agent))
    return actions, min(waits_s, default=None)


def tell_again(p: PoolSnapshot, alive: list[AgentView], now: float) -> tuple[list[PoolAction], float | None]:
    """The idle ones that were told to end and go on, and when there may be others."""
    actions: list[PoolAction] = []
    waits_s: list[float] = []
    for view in alive:
        agent, session = view.agent, view.session
        if session is None or not session.is_usable or not session.hello.leaves or session.sent_leave:
            continue
        if view.is_claimed or agent.run_label or agent.deleted_at is None:
            continue
        told_s = now - agent.deleted_at
        if told_s < TOLD_AGAIN_AFTER_S:
            waits_s.append(TOLD_AGAIN_AFTER_S - told_s)
        else:
            actions.append(Send(agent.uid, Leave(epoch=p.epoch)))
    return actions, min(waits_s, default=None)
