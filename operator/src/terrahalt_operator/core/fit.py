"""Whether the end of a task fits into the grace of its agent's pod, or the kubelet could cut it short.

The formula is `terrahalt_protocol.budget`. Asked by `decide`, which refuses a task that fits into no pod of
its pool, and by `schedule`, which gives it to none. Pure.
"""

from __future__ import annotations

from terrahalt_operator.core.model import TaskSpec
from terrahalt_protocol import budget


def fits(spec: TaskSpec, pod_grace_s: int) -> bool:
    return budget.pod_grace_s(spec.cancel_grace_seconds) <= pod_grace_s


def misfit(spec: TaskSpec, pool_grace_s: int) -> str:
    """Why no pod of its pool can hold it, and what to do; empty: they can."""
    if fits(spec, pool_grace_s):
        return ""
    needed_s = budget.pod_grace_s(spec.cancel_grace_seconds)
    return (
        f"the end of this task could take {needed_s} s ({budget.formula(spec.cancel_grace_seconds)}), but "
        f"terminationGracePeriodSeconds of pool {spec.pool_ref.name} is {pool_grace_s}: create it with "
        f"cancelGraceSeconds of at most {budget.cancel_grace_s(pool_grace_s)}, or set the pool's "
        f"terminationGracePeriodSeconds to {needed_s}"
    )
