"""The status of a pool, computed whole from what was decided about it; each write of it is `effects`'.

Must never move the time of a condition that stays as it is. Pure.
"""

from __future__ import annotations

from typing import Any

from terrahalt_operator.core.credentials import Refresh
from terrahalt_operator.core.model import Pool
from terrahalt_operator.core.schedule import PoolDecision, Problem
from terrahalt_operator.core.status import timestamp


def pool_status(pool: Pool, decision: PoolDecision, refreshing: Refresh | None, now: float) -> dict[str, Any]:
    problem = decision.problem or Problem("AgentsStart", "")
    conditions = [_condition(pool, "Ready", decision.problem is None, problem.reason, problem.message, now)]
    if problem.is_lasting:
        conditions.append(_condition(pool, "Stalled", True, problem.reason, problem.message, now))
    shown: dict[str, Any] = {}
    if refreshing is not None:
        reason = "NotAcknowledged" if refreshing.has_problem else "Asked" if refreshing.missing else "Acknowledged"
        is_done, missing = not refreshing.missing, refreshing.missing
        conditions.append(_condition(pool, "CredentialsRefreshed", is_done, reason, missing, now))
        counted = {"requested": refreshing.requested, "acknowledged": refreshing.acknowledged}
        shown = {"credentials": {"refresh": refreshing.asked, **counted}}
    counts = decision.counts
    return {
        "observedGeneration": pool.generation,
        "agents": counts.agents,
        "idle": counts.idle,
        "busy": counts.busy,
        "starting": counts.starting,
        "queued": counts.queued,
        "conditions": conditions,
        **shown,
    }


def _condition(pool: Pool, kind: str, holds: bool, reason: str, message: str, now: float) -> dict[str, Any]:
    status = "True" if holds else "False"
    old = next((c for c in pool.status.get("conditions", ()) if c["type"] == kind and c["status"] == status), None)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": pool.generation,
        "lastTransitionTime": old["lastTransitionTime"] if old else timestamp(now),
    }
