"""How kstatus (sigs.k8s.io/cli-utils, as Flux and `kubectl wait` helpers use it) reads an object of ours.

Its generic part only, in its order: deletion, generation, Reconciling, Stalled, Ready.
"""

from __future__ import annotations

from terrahalt_operator.core.model import Task


def kstatus(task: Task) -> str:
    if task.is_deleting:
        return "Terminating"
    if task.status.observed_generation != task.generation:
        return "InProgress"
    conditions = {c.type: c.status for c in task.status.conditions}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready") == "True" else "InProgress"
