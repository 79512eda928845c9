"""A terraform process and what it leaves: it logs, ends, fails, ignores signals, leaks its lock.

It does what real ones were measured to do: a SIGINT before an apply's first operation is lost, a killed process
leaves its lock, its providers outlive it, and a plan is refused for a state that has changed since. Called by `pods`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from terrahalt_agent.core.terraform_log import Line
from terrahalt_protocol import state_lock
from terrahalt_protocol.messages import Start, Step
from tests.agent import builders as said
from tests.simulation.api_server import ApiServer

_PLANNED, _APPLIED, _BEGUN, _COMPLETED = said.summary("plan"), said.summary(), said.begun(), said.completed()
_VERSION, _ERROR, _REFUSED = said.version(), said.an_error(), said.lock_not_acquired()
_STALE = said.an_error("Saved plan is stale")
_INTERRUPTED, _TWICE = said.interrupt_received(), said.two_interrupts()
_SCRIPT: dict[Step, tuple[Line, ...]] = {
    Step.INIT: (_VERSION,),
    Step.PLAN: (_VERSION, _PLANNED),
    Step.APPLY: (_VERSION, _BEGUN, _COMPLETED, _APPLIED),
}
"""What a process logs, turn by turn; after the last one it exits."""
_BEFORE_FIRST_OPERATION = 2


def state_of(start: Start) -> str:
    """The state that a run works on, by no rule of the product: what a person would say."""
    where = start.backend.config["bucket"] if start.backend else start.task.namespace
    return f"{where}/{start.workspace}"


class Locks:
    """Of the states; those of terraform's kubernetes backend are Leases that the operator can read."""

    def __init__(self, server: ApiServer) -> None:
        self.held: dict[str, str] = {}
        """State -> run ID."""
        self.serials: dict[str, int] = {}
        """State -> how often it was changed."""
        self.planned: dict[str, int] = {}
        """Run ID -> the serial that its plan was made for."""
        self._server = server

    def take(self, start: Start, pod_name: str) -> bool:
        state = state_of(start)
        if state in self.held:
            return False
        self.held[state] = start.run_id
        if start.backend is not None:
            return True
        info = msgspec.json.encode({"Who": f"{start.run_id}@{pod_name}", "ID": start.run_id}).decode()
        name = state_lock.lease_name(start.workspace)
        self._server.kinds.setdefault("leases", {})[start.task.namespace, name] = {
            "metadata": {"annotations": {"app.terraform.io/lock-info": info}},
            "spec": {"holderIdentity": start.run_id},
        }
        return True

    def release(self, start: Start) -> None:
        if self.held.get(state := state_of(start)) == start.run_id:
            del self.held[state]
            if start.backend is None:
                del self._server.kinds["leases"][start.task.namespace, state_lock.lease_name(start.workspace)]

    def note_plan(self, start: Start) -> None:
        self.planned[start.run_id] = self.serials.get(state_of(start), 0)

    def note_change(self, start: Start) -> None:
        self.serials[state_of(start)] = self.serials.get(state_of(start), 0) + 1

    def is_stale(self, start: Start) -> bool:
        """Somebody has changed the state since the plan was made that this run applies."""
        plan = start.approval.plan if start.approval is not None else None
        made_by = plan.run_id if plan is not None else start.run_id
        return self.planned.get(made_by, 0) != self.serials.get(state_of(start), 0)


class Temper(IntEnum):
    OBEYS = 0
    HANGS_IN_PROVIDER = 1
    """The first SIGINT is heeded once its providers are killed."""
    HEEDS_KILL_ALONE = 2


@dataclass(eq=False)
class Terraform:
    start: Start
    step: Step
    pod_name: str
    locks: Locks
    temper: Temper
    turn: int = 0
    is_alive: bool = True
    is_frozen: bool = False
    is_stopping: bool = False
    """A signal was heeded: it exits at its next turn."""
    was_interrupted: bool = False
    has_providers: bool = True
    exit_code: int = 0
    unread: list[Line] = field(default_factory=list)

    @property
    def has_processes(self) -> bool:
        """It, or what it has started."""
        return self.is_alive or self.has_providers

    @property
    def has_lock(self) -> bool:
        return self.locks.held.get(state_of(self.start)) == self.start.run_id

    def go_on(self) -> bool:
        """One turn; False where it can't."""
        if not self.is_alive or self.is_frozen:
            return False
        if self.is_stopping:
            self.unread.append(_INTERRUPTED)
            self.exit(1)
        elif self.turn == len(_SCRIPT[self.step]):
            self.exit(0)
        elif self.step is Step.APPLY and self.turn == 0 and not self.locks.take(self.start, self.pod_name):
            self.unread += [_VERSION, _REFUSED]
            self.exit(1)
        elif self.step is Step.APPLY and self.turn == 0 and self.locks.is_stale(self.start):
            self.unread += [_VERSION, _STALE]
            self.exit(1)
        else:
            self.unread.append(line := _SCRIPT[self.step][self.turn])
            if line is _PLANNED:
                self.locks.note_plan(self.start)
            elif line is _BEGUN:
                self.locks.note_change(self.start)
            self.turn += 1
        return True

    def fail(self, exit_code: int) -> bool:
        """Of its own accord, or by somebody who is not the agent."""
        if not self.is_alive or self.is_frozen:
            return False
        if exit_code == 1:
            self.unread.append(_ERROR)
        self.exit(exit_code)
        return True

    def interrupt(self) -> None:
        if not self.is_alive or (self.step is Step.APPLY and self.turn < _BEFORE_FIRST_OPERATION):
            return
        if self.was_interrupted:
            self.unread.append(_TWICE)
        if self.temper is Temper.OBEYS or (self.was_interrupted and self.temper is Temper.HANGS_IN_PROVIDER):
            self.is_stopping = True
        self.was_interrupted = True

    def kill_providers(self) -> None:
        self.has_providers = False
        if self.is_alive and self.temper is not Temper.HEEDS_KILL_ALONE:
            self.is_stopping = True

    def exit(self, exit_code: int) -> None:
        self.is_alive, self.is_frozen, self.exit_code = False, False, exit_code
        if exit_code in (0, 1):
            self.locks.release(self.start)
