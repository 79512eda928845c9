"""What is known of one pool when somebody looks at it. Pure; made by `world`, for the modules beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from terrahalt_operator.core.model import Agent, Claim, Pool, Session, Task


class AgentView(msgspec.Struct, frozen=True):
    agent: Agent
    session: Session | None
    claim: Claim | None
    is_ours: bool
    """The operator made it. Whoever may create pods can make some that look like it."""
    unreached: str = ""
    """Why the last try to connect to it has failed; empty: none has, since it was connected."""
    released_at: float = -math.inf
    """When the claim of its last run was released, as far as is known."""

    @property
    def is_claimed(self) -> bool:
        return self.claim is not None


class PoolSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pool: Pool | None
    """None: the pool is gone, or was never there."""
    agents: tuple[AgentView, ...]
    waiting: tuple[Task, ...]
    """This pool's tasks that may be given to an agent, in the order of the queue."""
    first_in_line: Mapping[str, str]
    """Claim name -> UID of the first of several tasks that wait for it, of whatever pool and namespace."""
    holders: Mapping[str, str]
    """Claim name -> the task that holds it, with its namespace if that is another."""
    has_budget: bool
    """Nobody evicts its agents while they have a run."""
    refused_budget: str
    """Why the API server would not take that; empty: it did."""
    refused_budget_at: float
    has_image: bool
    """Somebody said which image has the pool's engine."""
    refused_template: str
    """Why nothing is made by the pool's podTemplate; empty: it can be."""
    template_hash: str
    refused: str
    """Why the API server would not take the last agent; empty: it did."""
    refused_at: float
    failed_starts: int
    """Agents in a row that ended before they had a task."""
    last_failed_start_at: float
    last_failed_start: str
    """What it left to say: its pod is gone."""
    begins_at: float
    """When the first run was about to begin since nothing was left for later: an agent was given a task, or is free for
    one that waits."""
    epoch: int

    def current(self, views: Iterable[AgentView]) -> list[AgentView]:
        """Of these, the ones as the pool makes them now."""
        return [v for v in views if v.agent.template_hash == self.template_hash]
