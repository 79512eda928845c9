"""The budget: how long the end of a run may take, and so which grace its pod needs.

One formula for both sides (docs/timeouts.md has it for people): the agent climbs the ladder by these
times, the operator gives the pod its grace by their sum and refuses a task that does not fit. All in
seconds. Pure.
"""

from __future__ import annotations

GATE_S = 60
"""From exec to the first hook event: a large provider takes 3.5 s, a slow state read longer."""
KILL_PROVIDERS_S = 10
"""terraform saves, unlocks and exits in 38-67 ms where the backend answers."""
SECOND_INTERRUPT_S = 8
"""Inside of a backend call it exits after 5 s."""
KILL_S = 5
RESERVE_S = 20
"""For sweep, lock and report, once the ladder is at its end."""

DEFAULT_CANCEL_GRACE_S = 300
MIN_CANCEL_GRACE_S, MAX_CANCEL_GRACE_S = 1, 3600

FORCE_S = KILL_PROVIDERS_S + SECOND_INTERRUPT_S + KILL_S + RESERVE_S
"""What is left of the ladder once terraform has had its grace, or in Force mode gets none."""
_BESIDE_GRACE_S = GATE_S + FORCE_S


def pod_grace_s(cancel_grace_s: int) -> int:
    """What a pod needs so that the kubelet never cuts the end of such a run short."""
    return _BESIDE_GRACE_S + cancel_grace_s


def formula(cancel_grace_s: int) -> str:
    """The same for a person, with its sum."""
    return (
        f"gate {GATE_S} + cancelGraceSeconds {cancel_grace_s} + providers {KILL_PROVIDERS_S} "
        f"+ second interrupt {SECOND_INTERRUPT_S} + kill {KILL_S} + report {RESERVE_S} = {pod_grace_s(cancel_grace_s)}"
    )


def cancel_grace_s(pod_grace_s: int) -> int:
    """The most that fits into a pod's grace; below MIN_CANCEL_GRACE_S: none does."""
    return pod_grace_s - _BESIDE_GRACE_S
