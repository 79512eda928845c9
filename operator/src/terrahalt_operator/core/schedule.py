"""What to do about one pool: who gets the next task, which agents to make, which to take away.

In the order of `queue`; one run per workspace (its claim, invariant 2). An agent that has had its
runs takes no other: it is replaced (`retire`). Pure; called by `reconciler`, one pool at a time, so that
two decisions never give away the same agent. A pod that looks like an agent and was not made by the
operator gets no task and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from terrahalt_operator.core import fit, retire
from terrahalt_operator.core.actions import (
    AddPoolFinalizer,
    CreateAgents,
    CreateBudget,
    CreateClaim,
    DeleteAgent,
    DeleteBudget,
    LabelAgent,
    PoolAction,
    RemovePoolFinalizer,
    UnlabelAgent,
)
from terrahalt_operator.core.identity import claim_name_of, label_value
from terrahalt_operator.core.model import DrainPolicy, Pool, Queueing, Task
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot

SHOWN_POSITIONS = 20
"""Only the head of the queue is told its position: each change is a write."""
SHOWN_TASKS = 5
"""Of those for which a deletion waits."""
CREATE_AGAIN_AFTER_S = 5.0
"""Nobody tells when there is room in a quota again, or when what was refused is allowed."""
STARTED_WITHIN_S = 30.0
"""A container is started moments after it was made, or never."""
START_BACKOFF_S = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Wait before the next agent is made after so many in a row that ended before they had a task."""
ENDS_WITHIN_S = 5.0
"""An agent that takes no other run ends moments after its last one: then one write takes the run's label and the
finalizer off."""
BEGINS_WITHIN_S = 0.25
"""What nobody waits for is left until a run that was given away has begun, counted from the end of the one before where
that made room for it: a pod that starts takes its node's CPU, each write the API server's, and so do the label that the
run's reservation is about to write, that of the run before, the pool's counts, and a task's new reason to wait."""
UNSCHEDULABLE = "Unschedulable"
"""The word of Kubernetes' scheduler, and so ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    agents: int = 0
    idle: int = 0
    busy: int = 0
    starting: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pool has not the agents that it should have."""

    reason: str
    """One word in CamelCase."""
    message: str
    is_lasting: bool = False
    """It stays until somebody changes the pool or the installation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDecision:
    actions: tuple[PoolAction, ...] = ()
    queueing: Mapping[str, Queueing] = field(default_factory=dict)
    """Task UID -> where it waits; tasks that were given away are not in it."""
    counts: PoolCounts = PoolCounts()
    problem: Problem | None = None
    """For the pool's condition; None: agents start, as far as any are needed."""
    is_brief: bool = False
    """A run is about to begin: what nobody waits for is left for later."""
    wake_after_s: float | None = None


def schedule(p: PoolSnapshot, now: float) -> PoolDecision:
    """The actions for one pool, in the order in which they are to be carried out."""
    agents = [v for v in p.agents if v.is_ours or v.is_claimed]
    strangers = [v for v in p.agents if not v.is_ours and not v.is_claimed]
    alive = [v for v in agents if not v.agent.is_over]
    over = [v for v in agents if v.agent.is_over]
    busy = [v for v in alive if v.is_claimed]
    fresh = [v for v in alive if not v.is_claimed and not v.agent.is_deleting]
    idle = sorted(
        (v for v in fresh if v.session is not None and v.session.is_usable),
        key=lambda v: (v.agent.template_hash != p.template_hash, v.agent.created_at, v.agent.name),
    )
    never_start, never_s = _never_start([v for v in fresh if v.session is None], now)
    starting = [v for v in fresh if v.session is None and v not in never_start]
    spent = [v for v in fresh if v.session is not None and not v.session.is_usable]

    refused = p.refused if p.pool and len(alive) < p.pool.max_agents else ""
    unreached, unreached_s = _unreached(starting, now)
    problem = _problem(p, busy, idle, starting, refused=refused) or unreached
    unguarded, budget_s = _budget(p, now)
    actions: list[PoolAction] = [*_keep_pool(p, agents), *unguarded]
    queueing: dict[str, Queueing] = {}
    free = [v for v in idle if p.pool is not None and not p.pool.is_deleting]
    unserved = position = 0
    holders = dict(p.holders)
    for task in p.waiting:
        name = claim_name_of(task)
        out_of_pool, out_of_turn = _pool_wait(p, task), _workspace_wait(p, task, name, holders)
        is_blocked = bool(out_of_pool or out_of_turn)
        # One whose image is outdated will do for its first task, one of another engine or of a shorter grace never.
        view = next((v for v in free if _suits(v, p, task)), None)
        if not is_blocked and view is not None:
            free.remove(view)
            holders[name] = task.name
            assert view.session is not None
            actions.append(CreateClaim(task, view.agent, view.session.fingerprint))
            continue
        expired = "" if is_blocked else _expired(p, alive, task)
        position += 1
        unserved += not (is_blocked or expired)
        if position <= SHOWN_POSITIONS:
            shown, reason = position, out_of_pool or out_of_turn or _agent_wait(p, len(alive), problem)
        else:
            shown, reason = None, out_of_pool or _long_wait(p, task, is_out_of_turn=bool(out_of_turn))
        queueing[task.uid] = Queueing(position=shown, waiting_for=reason, expired=expired)
    beyond, idle_s = retire.surplus(p, now, [*p.current(free), *p.current(starting)], unserved)
    useless, starts_s = retire.without_use(p, now, alive, free, starting, [*spent, *never_start], beyond, unserved)
    actions += useless
    actions += retire.bury(over, alive, kept=retire.KEPT_ENDED if p.pool is not None else 0)
    told_again, deaf_s = retire.tell_again(p, alive, now)
    actions += told_again
    given_away = {a.agent.uid for a in actions if isinstance(a, CreateClaim)}
    given = len(given_away)
    begins_s = p.begins_at + BEGINS_WITHIN_S - now
    if given and p.begins_at == -math.inf:
        begins_s = BEGINS_WITHIN_S
    is_brief = 0 < begins_s <= BEGINS_WITHIN_S
    labels_s = None
    if not is_brief:
        labels, labels_s = _label([v for v in agents if v.agent.uid not in given_away], now)
        actions += labels
    turned_away, strangers_wait_s = retire.turn_away(strangers, now)
    actions += turned_away
    current = len(p.current(free)) + len(p.current(starting))
    missing = _missing(p, unserved, current=current, alive=len(alive))
    wait_s = _create_after_s(p, now) if missing else None
    made = missing if wait_s is None and (unserved > current or not is_brief) else 0
    if made:
        actions.append(CreateAgents(made))
    brief_s = begins_s if is_brief else None
    going = {a.agent.uid for a in actions if isinstance(a, DeleteAgent)}
    waits_s = (wait_s, strangers_wait_s, idle_s, brief_s, budget_s, unreached_s, never_s, starts_s, deaf_s, labels_s)
    told = _problem(p, busy, idle, starting, refused=p.refused if missing else "") or unreached or _not_guarded(p)
    return PoolDecision(
        actions=tuple(actions),
        queueing=queueing,
        counts=PoolCounts(
            agents=len(alive) + made,
            idle=sum(v.agent.uid not in going for v in idle) - given,
            busy=len(busy) + given,
            starting=len(starting) + made,
            queued=len(queueing),
        ),
        problem=told,
        is_brief=is_brief,
        wake_after_s=min((s for s in waits_s if s is not None), default=None),
    )


def _keep_pool(p: PoolSnapshot, agents: list[AgentView]) -> list[PoolAction]:
    """Its deletion waits for what runs in it. Who wears a run's label is claimed, as far as is known by somebody else,
    until `_label` has taken that off."""
    if p.pool is None or p.pool.has_finalizer is not p.pool.is_deleting:
        return []
    if not p.pool.is_deleting:
        return [AddPoolFinalizer(p.pool)]
    return [] if any(v.is_claimed or v.agent.run_label for v in agents) else [RemovePoolFinalizer(p.pool)]


def _budget(p: PoolSnapshot, now: float) -> tuple[list[PoolAction], float | None]:
    """Before a run is given away, and when to try again. Of a pool that is gone it goes with its last agent."""
    if p.pool is None or p.has_budget is (p.pool.drain_policy is DrainPolicy.WAIT):
        return [], None
    if p.has_budget:
        return [DeleteBudget(p.pool)], None
    wait_s = p.refused_budget_at + CREATE_AGAIN_AFTER_S - now
    return ([], wait_s) if p.refused_budget and wait_s > 0 else ([CreateBudget(p.pool)], None)


def _not_guarded(p: PoolSnapshot) -> Problem | None:
    """Its tasks run all the same: what a drain does to them is what `drainPolicy: Ladder` does."""
    if p.pool is None or p.has_budget or p.pool.drain_policy is not DrainPolicy.WAIT or not p.refused_budget:
        return None
    return Problem("DrainNotGuarded", f"a drain would not wait for its runs: {p.refused_budget}")


def _unreached(starting: list[AgentView], now: float) -> tuple[Problem | None, float | None]:
    """The first that runs and that nobody can speak to, and when there may be one."""
    waits_s: list[float] = []
    for view in starting:
        left_s = view.agent.created_at + retire.REACHED_WITHIN_S - now
        if not view.agent.is_running or not view.unreached:
            continue
        if left_s <= 0:
            text = f"agent pod {view.agent.name} runs, and can't be connected to: {view.unreached}"
            return Problem("AgentsNotReached", text), None
        waits_s.append(left_s)
    return None, min(waits_s, default=None)


def _never_start(unconnected: list[AgentView], now: float) -> tuple[list[AgentView], float | None]:
    """And when there may be others: each holds the place of one that would."""
    since = [(view, view.agent.unstarted_since) for view in unconnected]
    left_s = [(view, at + STARTED_WITHIN_S - now) for view, at in since if at is not None]
    return [view for view, s in left_s if s <= 0], min((s for _, s in left_s if s > 0), default=None)


def _pool_wait(p: PoolSnapshot, task: Task) -> str:
    """Why its pool can't serve a task; empty: it can."""
    if p.pool is None:
        return f"pool {p.name}, which does not exist in namespace {task.namespace}: create it"
    if p.pool.is_deleting:
        return f"pool {p.name}, which is being deleted: create it anew once it is gone"
    if misfit := fit.misfit(task.spec, p.pool.termination_grace_s):
        return misfit  # `decide` refuses it
    if refused := fit.refused_approval(task.spec, p.pool.allowed_approval):
        return refused  # the same
    return ""


def _workspace_wait(p: PoolSnapshot, task: Task, name: str, holders: Mapping[str, str]) -> str:
    """Why its state is not to be had; empty: it is."""
    if name in holders:
        return f"workspace {task.spec.workspace}, held by task {holders[name]}"
    if p.first_in_line.get(name, task.uid) != task.uid:
        return f"workspace {task.spec.workspace}, another task is first"
    return ""


def _long_wait(p: PoolSnapshot, task: Task, *, is_out_of_turn: bool) -> str:
    """What stays true while the head of the queue moves: far behind it, each change would be a write in vain."""
    if is_out_of_turn:
        return f"workspace {task.spec.workspace}, other tasks are first"
    return f"an agent of pool {p.name}, at least {SHOWN_POSITIONS} tasks are first"


def _suits(view: AgentView, p: PoolSnapshot, task: Task) -> bool:
    if p.pool is None or (view.agent.last_task_label and view.agent.template_hash != p.template_hash):
        return False
    fits = view.agent.engine == p.pool.engine and fit.fits(task.spec, view.agent.termination_grace_s)
    return fits and not _differs(view, task)


def _differs(view: AgentView, task: Task) -> str:
    """What this agent has that the maker of the task's kept plan had not; empty: nothing, as far as is known."""
    if (kept := task.kept_plan) is None:
        return ""
    architecture = view.session.hello.architecture if view.session is not None else ""
    for what, planned, present in (
        ("image", kept.image, view.agent.image),
        ("architecture", kept.architecture, architecture),
    ):
        if planned and present and planned != present:
            return f"the plan was made with {what} {planned}, and agent {view.agent.name} has {present}"
    return ""


def _expired(p: PoolSnapshot, alive: list[AgentView], task: Task) -> str:
    """Why the plan that was approved waits in vain: agents as the pool makes them now are connected, and differ."""
    if task.kept_plan is None:
        return ""
    current = [v for v in alive if v.session is not None and v.agent.template_hash == p.template_hash]
    differences = [_differs(v, task) for v in current]
    return differences[0] if differences and all(differences) else ""


def _agent_wait(p: PoolSnapshot, alive: int, problem: Problem | None) -> str:
    assert p.pool is not None
    if problem is not None:
        return f"an agent of pool {p.name}: {problem.message}"
    if alive >= p.pool.max_agents:
        return f"a free agent of pool {p.name}: all {alive} of at most {p.pool.max_agents} are busy or starting"
    return f"an agent of pool {p.name} to start"


def _without_image(pool: Pool) -> str:
    return (
        f"no image of {pool.engine} agents is known: set spec.image of the pool, or agent.openTofu.image in the "
        "chart's values"
    )


def _label(agents: list[AgentView], now: float) -> tuple[list[PoolAction], float | None]:
    """`kubectl get pods -L terrahalt.dev/task` shows who runs what, and what an agent that ends has run; and when
    there may be others."""
    actions: list[PoolAction] = []
    waits_s: list[float] = []
    for view in agents:
        if view.claim is not None:
            shown = (view.agent.task_label, view.agent.run_label)
            if shown != (label_value(view.claim.task_name), view.claim.run_id):
                actions.append(LabelAgent(view.agent, view.claim))
        elif view.agent.task_label or view.agent.run_label:
            left_s = view.released_at + ENDS_WITHIN_S - now
            is_free = view.session is not None and view.session.is_usable
            if view.agent.is_over or is_free or not 0 < left_s <= ENDS_WITHIN_S:
                actions.append(UnlabelAgent(view.agent))
            else:
                waits_s.append(left_s)
    return actions, min(waits_s, default=None)


def _missing(p: PoolSnapshot, unserved: int, *, current: int, alive: int) -> int:
    """How many agents are to be made, as soon as that may be tried."""
    if p.pool is None or p.pool.is_deleting or not p.has_image or p.refused_template:
        return 0
    return max(0, min(p.pool.min_idle + unserved - current, p.pool.max_agents - alive))


def _create_after_s(p: PoolSnapshot, now: float) -> float | None:
    """None: at once."""
    backoff_s = START_BACKOFF_S[min(p.failed_starts, len(START_BACKOFF_S) - 1)]
    wait_s = p.last_failed_start_at + backoff_s - now
    if p.refused:
        wait_s = max(wait_s, p.refused_at + CREATE_AGAIN_AFTER_S - now)
    return wait_s if wait_s > 0 else None


def _problem(
    p: PoolSnapshot, busy: list[AgentView], idle: list[AgentView], starting: list[AgentView], *, refused: str
) -> Problem | None:
    if p.pool is not None and p.pool.is_deleting:
        names = sorted(v.claim.task_name for v in busy if v.claim is not None)
        more = f" and {len(names) - SHOWN_TASKS} more" if len(names) > SHOWN_TASKS else ""
        return Problem("Deleting", f"waits for the end of: {', '.join(names[:SHOWN_TASKS])}{more}" if names else "")
    if p.pool is not None and not p.has_image:
        return Problem("NoImage", _without_image(p.pool), is_lasting=True)
    if p.refused_template:
        text = f"no agents are made by this podTemplate: {p.refused_template}"
        return Problem("PodTemplateRefused", text, is_lasting=True)
    if refused:
        reason = "QuotaExceeded" if "exceeded quota" in refused else "PodsRefused"
        return Problem(reason, f"agents can't be created: {refused}")
    if stuck := [v.agent for v in starting if v.agent.waiting_reason]:
        reason = UNSCHEDULABLE if stuck[0].waiting_reason.startswith(UNSCHEDULABLE) else "AgentsDoNotStart"
        return Problem(reason, f"agent pod {stuck[0].name} does not start: {stuck[0].waiting_reason}")
    if p.failed_starts and not p.current(idle):
        text = f"the last {p.failed_starts} agents ended before they had a task: {p.last_failed_start}"
        return Problem("AgentsDoNotStart", text)
    return None
