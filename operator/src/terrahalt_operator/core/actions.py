"""What `decide` and `schedule` ask the adapters to do; each is idempotent or guarded by the API server.

Carried out in order by `effects`; the first that fails ends the decision, and the task is decided anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from terrahalt_operator.core.model import Agent, Claim, Pool, Task, TaskStatus
from terrahalt_protocol.messages import Command


@dataclass(frozen=True, slots=True)
class StampTask:
    """Adds the finalizer and the task's own UID, in one patch."""

    task: Task


@dataclass(frozen=True, slots=True)
class RemoveTaskFinalizer:
    task: Task


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """The object as it was decided upon, and no other of its name."""

    task: Task


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Refused by the API server if the task changed since the snapshot."""

    task: Task
    status: TaskStatus


@dataclass(frozen=True, slots=True)
class Send:
    """To the agent's session; lost silently with the connection, decided again on the next."""

    pod_uid: str
    command: Command


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    claim: Claim


@dataclass(frozen=True, slots=True)
class ReadStateLock:
    """The state's own Lease is read into the next snapshot."""

    task: Task


@dataclass(frozen=True, slots=True)
class KeepLog:
    """What can be had of the pod's log is kept in a Secret, and the next snapshot knows whether. Tried once."""

    task: Task
    claim: Claim


@dataclass(frozen=True, slots=True)
class CreateClaim:
    """Gives one task of the queue to one agent; the API server decides any race."""

    task: Task
    agent: Agent
    fingerprint: str


@dataclass(frozen=True, slots=True)
class AddPoolFinalizer:
    """From then on a deletion of the pool waits for the runs of its agents."""

    pool: Pool


@dataclass(frozen=True, slots=True)
class RemovePoolFinalizer:
    pool: Pool


@dataclass(frozen=True, slots=True)
class CreateBudget:
    """From then on nobody evicts the pool's agents while they have a run."""

    pool: Pool


@dataclass(frozen=True, slots=True)
class DeleteBudget:
    pool: Pool


@dataclass(frozen=True, slots=True)
class CreateAgents:
    count: int


@dataclass(frozen=True, slots=True)
class DeleteAgent:
    """Deletes the pod of this UID; its finalizer keeps the object until its end was seen. Where it is its pool that
    has no use for it, only as it was when that was decided."""

    agent: Agent


@dataclass(frozen=True, slots=True)
class RemoveAgentFinalizer:
    """Of the pod as it was when that was decided."""

    agent: Agent


@dataclass(frozen=True, slots=True)
class LabelAgent:
    """Shows on the pod who runs there, to people, and to an operator that knows nothing of the claim."""

    agent: Agent
    claim: Claim


@dataclass(frozen=True, slots=True)
class ReserveAgent:
    """Labels the pod, and ends the decision where it goes, or is gone: so nothing is given to an agent that somebody
    else has deleted, and whoever would delete it after that, or let it go, meets the label."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class UnlabelAgent:
    """Nothing runs there any more; the label `terrahalt.dev/last-task` stays, for `kubectl logs`. Of a pod that is over
    the finalizer goes with it: that end is evidence for nobody any more."""

    agent: Agent


TaskAction = (
    StampTask
    | RemoveTaskFinalizer
    | DeleteTask
    | WriteStatus
    | ReserveAgent
    | Send
    | ReleaseClaim
    | ReadStateLock
    | KeepLog
    | DeleteAgent
)
ForOneAgent = DeleteAgent | RemoveAgentFinalizer | LabelAgent | UnlabelAgent
"""Nothing else of its pool follows from what becomes of it."""
PoolAction = (
    AddPoolFinalizer
    | RemovePoolFinalizer
    | CreateBudget
    | DeleteBudget
    | CreateClaim
    | CreateAgents
    | ForOneAgent
    | Send
)


class Decision(msgspec.Struct, frozen=True):
    actions: tuple[TaskAction, ...] = ()
    wake_after_s: float | None = None
