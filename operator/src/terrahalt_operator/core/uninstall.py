"""What forbids that the operator is taken away, and what to type about it.

Without it nobody ends a run, takes our finalizers off or starts what waits. So a task that has not ended forbids
it, and a run whose task is gone, and a pool that `helm uninstall` would leave, as its agents would stay. Must never
forbid it for what has ended: tasks are history then, and stay readable. Called by `uninstall`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from terrahalt_operator.core import names
from terrahalt_operator.core.model import TERMINAL

SHOWN = 20
"""Of each kind; who has more of them needs no list but a decision."""


@dataclass(frozen=True, slots=True)
class Release:
    name: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A task, a pool or an agent's pod, whichever list it is in."""

    namespace: str
    name: str
    version: str = ""
    phase: str = ""
    is_deleting: bool = False
    finalizers: frozenset[str] = frozenset()
    run: str = ""
    """Of a task the last one."""
    task: str = ""
    is_abandoned: bool = False
    """Its run may be alive."""
    release: Release | None = None
    """Whose helm made it."""


@dataclass(frozen=True, slots=True)
class Objection:
    text: str
    may_pass: bool
    """By waiting alone."""


def objection(
    tasks: Sequence[Thing], pools: Sequence[Thing], agents: Sequence[Thing], release: Release
) -> Objection | None:
    """None: the pools of the release may be deleted."""
    live = [task for task in tasks if task.phase not in TERMINAL or task.is_deleting]
    told = {(task.namespace, task.name) for task in live}
    # Whether that has ended or not: an agent goes some time after its run.
    runs = {task.run for task in tasks if not task.is_abandoned}
    orphans = [
        agent
        for agent in agents
        if agent.run and names.AGENT_FINALIZER in agent.finalizers and (agent.namespace, agent.task) not in told
        if agent.run not in runs
    ]
    foreign = [pool for pool in pools if pool.release != release]
    if not (live or orphans or foreign):
        return None
    again = f"{release.name} --namespace {release.namespace}"
    lines = [
        "helm uninstall is refused: without the operator nobody would end this.",
        *_some(live, lambda task: f"task {_full(task)}: {task.phase or 'not seen yet'}"),
        *_some(orphans, lambda agent: f"agent {_full(agent)}: run {agent.run} of a task that is gone or was abandoned"),
        *_some(foreign, lambda pool: f"pool {_full(pool)}: not of this release, so its agents would stay"),
        f"Nothing was removed. Wait for what runs to end{', or type:' if live or foreign else '.'}",
        *_some(live, _cancel),
        *_some(foreign, lambda pool: f"kubectl --namespace {pool.namespace} delete agentpool {pool.name}"),
        "Then again:",
        f"  helm uninstall {again}",
        "To keep the release, which helm upgrades only after that; REVISION is the last one of helm history:",
        f"  helm rollback {release.name} REVISION --namespace {release.namespace}",
        "In an emergency, without this check; docs/install.md says what stays then:",
        f"  helm uninstall {again} --no-hooks",
    ]
    return Objection("\n".join(lines), may_pass=not foreign)


def leftover(pools: Sequence[Thing], agents: Sequence[Thing]) -> str:
    """Once the pools are deleted: what still waits for the operator; empty: nothing."""
    held = [agent for agent in agents if names.AGENT_FINALIZER in agent.finalizers]
    if not (pools or held):
        return ""
    lines = [
        "helm uninstall is refused: the pools are deleted, and the operator has not let go of all that is theirs.",
        *_some(pools, lambda pool: f"pool {_full(pool)}"),
        *_some(held, lambda agent: f"agent {_full(agent)}{f': run {agent.run}' if agent.run else ''}"),
        "Look whether an operator is ready, and whether the agents' nodes are; then again.",
    ]
    return "\n".join(lines)


def held(tasks: Sequence[Thing]) -> list[Thing]:
    """What without the operator nobody could delete any more, though nothing of it is left to be done."""
    return [task for task in tasks if task.phase in TERMINAL and names.TASK_FINALIZER in task.finalizers]


def _full(thing: Thing) -> str:
    return f"{thing.namespace}/{thing.name}"


def _cancel(task: Thing) -> str:
    # Without double quotes, which helm writes with backslashes.
    patch = "'spec: {cancel: true}'"
    return f"kubectl --namespace {task.namespace} patch terraformtask {task.name} --type merge --patch {patch}"


def _some(things: Sequence[Thing], line: Callable[[Thing], str]) -> list[str]:
    ordered = sorted(things, key=lambda thing: (thing.namespace, thing.name))
    shown = [f"  {line(thing)}" for thing in ordered[:SHOWN]]
    return [*shown, f"  and {len(things) - SHOWN} more"] if len(things) > SHOWN else shown
