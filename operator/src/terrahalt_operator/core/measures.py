"""What a write of a task's status says of times and ends, for the metrics: read from the old status and the new.

Each answer is of one change, so whoever asks once for each write that the API server took counts nothing twice,
whatever was tried again, or by whom. Must never measure by what is not on record: an operator that takes over knows no
more. Pure; called by `adapters.metrics` and `app`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from terrahalt_operator.core.model import AWAITING_APPROVAL, CANCELLING, CancelStatus, Task, TaskStatus
from terrahalt_operator.core.status import seconds

_MOMENTS = (
    ("asked", "requested_at"),
    ("sent", "sent_at"),
    ("signalled", "signalled_at"),
    ("exited", "exited_at"),
)


def has_ended(task: Task, new: TaskStatus) -> bool:
    """By this very write."""
    return new.is_terminal and not task.status.is_terminal


def queue_wait_s(task: Task, new: TaskStatus) -> float | None:
    """From its creation, a whole second, until it was given to its first agent; None: that is not what was written."""
    was_given = new.run_id and not task.status.run_id and not new.is_terminal
    if not was_given or task.kept_plan is not None:
        return None
    return max(0.0, seconds(_given_at(new)) - task.created_at)


def start_latency_s(task: Task, new: TaskStatus) -> float | None:
    """From when it was given to its first agent until its run began there; None: no such write."""
    given_at = _given_at(task.status)
    if task.status.started_at or not new.started_at or not given_at:
        return None
    return max(0.0, seconds(new.started_at) - seconds(given_at))


def run_duration_s(task: Task, new: TaskStatus) -> float | None:
    """Of a run that began, when it has ended; of a task that was approved, each of its two. None: no such write."""
    is_planned = new.phase == AWAITING_APPROVAL
    given_at = _given_at(task.status)
    if not (has_ended(task, new) or is_planned) or not new.started_at or not given_at:
        return None
    ended_at = new.plan.ready_at if is_planned and new.plan else new.finished_at
    return max(0.0, seconds(ended_at) - seconds(max(new.started_at, given_at)))


def cancel_duration_s(task: Task, new: TaskStatus) -> float | None:
    """From when its end was asked for until it is on record; None: no such write, or the run ended by itself."""
    if not has_ended(task, new) or new.cancel is None or not new.cancel.rung:
        return None
    return max(0.0, seconds(new.finished_at) - seconds(new.cancel.requested_at))


def stages_s(cancel: CancelStatus) -> Iterator[tuple[str, float]]:
    """Between each two moments that are on record: an agent that ends a run by itself is sent nothing, and one whose
    terraform ends by itself first gives no signal."""
    known = [(name, at) for name, field in _MOMENTS if (at := getattr(cancel, field))]
    for (earlier, began), (later, ended) in pairwise(known):
        yield f"{earlier}_to_{later}", max(0.0, seconds(ended) - seconds(began))


def freeing_s(status: TaskStatus, run_id: str, now: float) -> float | None:
    """From the exit of this cancelled run's terraform until its workspace is free, which is now; None: it had none, or
    the claim was one that came late, of no run on record."""
    if status.run_id != run_id or status.cancel is None or not status.cancel.exited_at:
        return None
    return max(0.0, now - seconds(status.cancel.exited_at))


def cancel_pending_s(tasks: Iterable[Task], now: float) -> float:
    """For how long the oldest cancel of a run has not ended; 0: there is none."""
    cancels = (task.status.cancel for task in tasks if task.status.phase == CANCELLING)
    asked = [seconds(cancel.requested_at) for cancel in cancels if cancel is not None]
    return max(0.0, now - min(asked)) if asked else 0.0


def _given_at(status: TaskStatus) -> str:
    """Empty: it is not with an agent."""
    if not status.run_id:
        return ""
    return next((c.last_transition_time for c in status.conditions if c.type == "Scheduled" and c.status == "True"), "")
