"""The order of the queue, for how long a task waits in it, and which tasks make way for a newer one.

Must never let a task of one namespace end one of another: who may create tasks may cancel those of the
same namespace only. Whether an apply has begun is not asked here: its agent decides. Pure; called by
`world`, `decide` and `schedule`.
"""

from __future__ import annotations

from collections.abc import Iterable

from terrahalt_operator.core.model import Supersede, Task


def place(task: Task) -> tuple[int, float, int, str, str]:
    """Sorts by it: higher priority first, then first come, first served."""
    return -task.spec.priority, task.created_at, task.arrived, task.name, task.uid


def stand(task: Task) -> tuple[object, ...]:
    """All that a pool asks of a task without a claim: while this is the same, so is what follows for the pool."""
    own = task.generation, task.is_deleting, task.is_restored_copy, task.arrived
    return *own, task.status.is_terminal, task.status.run_id, task.kept_plan


def waits_until(task: Task) -> float | None:
    """When it gives up waiting for an agent; None: never. Counted from its creation, an operator's absence included. A
    task with a kept plan has had its agent: how long a person may take is bounded by another timeout."""
    timeout_s = task.spec.queue_timeout_seconds
    return None if timeout_s is None or task.kept_plan is not None else task.created_at + timeout_s


def supersedes(task: Task) -> bool:
    """Whether older tasks make way for it: it was taken into the queue, and has not ended or been cancelled since."""
    if task.spec.supersede is Supersede.NONE or not task.is_stamped or task.wants_cancel:
        return False
    return bool(task.status.phase) and not task.status.is_terminal


def superseder(task: Task, same_state: Iterable[Task], *, has_agent: bool) -> str:
    """The newest task for which this one has to make way, by name; empty: none. One whose plan is kept counts as one
    that has an agent.

    Times of creation are whole seconds: of two tasks of one second, neither is the older."""
    newer = [
        other
        for other in same_state
        if (other.namespace, other.spec.workspace) == (task.namespace, task.spec.workspace)
        and other.created_at > task.created_at
        and supersedes(other)
        and (other.spec.supersede is Supersede.PLANNING or not (has_agent or task.kept_plan))
    ]
    return max(newer, key=lambda other: (other.created_at, other.name)).name if newer else ""
