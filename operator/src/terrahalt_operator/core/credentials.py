"""Which agents of a pool are still to read their credentials anew, and how many have: its `refresh-credentials`.

Counted are the agents that have a run, and those that are connected: any other one reads what there is before its
first step. Pure; called by `reconciler` beside `schedule`, with the same snapshot.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from terrahalt_operator.core.actions import Send
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot
from terrahalt_protocol.messages import RefreshCredentials

_TOLD = 5
"""Agents that the condition names."""
_MAX_PROBLEM_CHARS = 300
MAX_SHOWN_CHARS = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """Where a refresh is."""

    asked: str
    """As the annotation says it, or its beginning."""
    requested: int
    acknowledged: int
    missing: str
    """Which agents have not acknowledged it, and why; empty: all have."""
    has_problem: bool
    """Some won't, or can't yet."""
    actions: tuple[Send, ...] = ()


def refresh(p: PoolSnapshot) -> Refresh | None:
    """None: nobody has asked for any."""
    if p.pool is None or not p.pool.refresh_credentials:
        return None
    wanted = refresh_id(p.pool.refresh_credentials)
    alive = [v for v in p.agents if not v.agent.is_over and (v.is_claimed or (v.is_ours and v.session is not None))]
    missing = [(v, _why(v, wanted)) for v in alive if v.session is None or v.session.refreshed != wanted]
    told = "; ".join(f"agent {v.agent.name}: {why or 'asked'}" for v, why in missing[:_TOLD])
    return Refresh(
        asked=p.pool.refresh_credentials[:MAX_SHOWN_CHARS],
        requested=len(alive),
        acknowledged=len(alive) - len(missing),
        missing=f"{told}; and {len(missing) - _TOLD} more" if len(missing) > _TOLD else told,
        has_problem=any(why for _, why in missing),
        actions=tuple(
            Send(v.agent.uid, RefreshCredentials(epoch=p.epoch, refresh=wanted))
            for v, _ in missing
            if v.session is not None and v.session.refreshed is not None and v.session.sent_refresh != wanted
        ),
    )


def refresh_id(asked: str) -> str:
    """What agents call it: short, whatever a person wrote."""
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _why(view: AgentView, wanted: str) -> str:
    """Empty: it was asked, or is asked now, and has not answered yet."""
    if view.session is None:
        return "not connected"
    if view.session.refreshed is None:
        return "its image is too old to read them anew"
    return view.session.refresh_problem[:_MAX_PROBLEM_CHARS] if view.session.sent_refresh == wanted else ""
