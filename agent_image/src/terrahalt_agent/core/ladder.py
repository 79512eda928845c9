"""The escalation that ends one terraform process: which rung, for how long, and what comes next.

The times are data; grace, mode and the log's facts are asked anew at each look, so that a shorter
grace or Force take effect at once. Never skips to SIGKILL while terraform may be saving a state
earlier than the whole budget is spent. Called by `run` for the process that is alive; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrahalt_agent.core.stream import StreamFacts
from terrahalt_protocol import budget
from terrahalt_protocol.messages import CancelMode, Rung, Step


@dataclass(frozen=True, slots=True)
class Times:
    """All in seconds; those of `budget` are what the pod's grace is made of."""

    gate_s: float = budget.GATE_S
    gate_force_s: float = 5.0
    settle_s: float = 0.125
    """Without a new operation, and without work on one, before SIGINT: a provider stops only what has reached it
    by then. SIGINT at the first event left one of 30 resources running to its end in 9 of 24 tries, 0.1 s later
    in none; on a machine with four times as much to do as it has cores 0.125 s was too soon once in 190."""
    settle_max_s: float = 1.0
    """Where operations are begun or worked on all the time, SIGINT waits no longer for a pause."""
    plan_grace_s: float = 20.0
    init_grace_s: float = 30.0
    kill_providers_s: float = budget.KILL_PROVIDERS_S
    second_interrupt_s: float = budget.SECOND_INTERRUPT_S
    second_interrupt_canceled_s: float = 2.0
    kill_s: float = budget.KILL_S
    freeze_s: float = 2.0
    late_lock_s: float = 5.0
    """From the death of terraform until no request of it can be granted any more."""
    sweep_s: float = 5.0
    sweeps: int = 6
    """Tries before the agent leaves the rest to the kernel."""
    drain_s: float = 10.0
    share_providers_s: float = 60.0
    """For a copy of what init has just fetched, which took about as long; later runs are spared it."""
    keep_state_s: float = 30.0
    keep_plan_s: float = 60.0
    """For terraform to show it, which takes seconds with large providers, and for up to nine Secrets."""
    aftermath_s: float = 20.0
    ask_s: float = 10.0
    """Of it, for terraform to tell who holds the lock: it takes under 1 s where the backend answers."""
    keep_errored_s: float = 900.0
    """A state that could not be saved is not given up while its copy can't be made either: that may be one cause,
    and no status could be written meanwhile."""
    keep_errored_in_haste_s: float = 8.0
    """The same in a pod that is ending."""
    keep_log_s: float = 3.0
    """For one Secret, which takes some tens of milliseconds. Less than `backstop_s`, of which it is a part: what was
    found out before it must not be lost with it."""
    publish_s: float = 30.0
    """For terraform to tell the outputs, and for one Secret."""
    publish_in_haste_s: float = 5.0
    """The same in a pod that is ending."""
    backstop_s: float = 5.0
    """What an adapter may be late with its own bound before `run` goes on without it."""
    progress_s: float = 2.0
    farewell_s: float = 5.0
    """For the operator to acknowledge the last report of a terminating pod."""

    def grace_s(self, step: Step, cancel_grace_s: float) -> float:
        """Only an apply is worth the whole of cancelGraceSeconds; no step gets more than that."""
        match step:
            case Step.INIT:
                return min(self.init_grace_s, cancel_grace_s)
            case Step.PLAN:
                return min(self.plan_grace_s, cancel_grace_s)
            case _:
                return cancel_grace_s


@dataclass(slots=True)
class Ladder:
    """One per cancelled process, from the moment of the cancel to the process's end."""

    step: Step
    mode: CancelMode
    cancel_grace_s: float
    times: Times
    rung: Rung
    entered_s: float
    looks_at_once: bool = False
    """A gate that does not wait for the first operation: where none was begun, a kill loses nothing."""
    stirred_at_s: float | None = None
    """When an operation was begun last, or was seen to be still on its way to its provider."""
    opened_at_s: float | None = None
    """When the gate found the graph walk begun; from then on it waits for a pause only."""
    has_others: bool = True
    """Processes beside terraform were alive at the last look, or nobody has looked yet."""
    canceled_at_s: float | None = None
    """When "operation canceled" was read."""

    @classmethod
    def begin(
        cls,
        *,
        step: Step,
        mode: CancelMode,
        cancel_grace_s: float,
        times: Times,
        facts: StreamFacts,
        now_s: float,
        stirred_at_s: float | None = None,
        may_kill: bool = False,
    ) -> Ladder:
        """`may_kill`: before its first operation this process can be killed without a loss."""
        is_unsettled = stirred_at_s is not None and now_s < stirred_at_s + times.settle_s
        may_kill = may_kill and not facts.hook_seen
        if may_kill or (step is Step.APPLY and (not facts.hook_seen or is_unsettled)):
            rung = Rung.GATE
        elif step is Step.INIT and mode is CancelMode.FORCE:
            rung = Rung.KILL
        else:
            rung = Rung.INTERRUPT
        return cls(
            step=step,
            mode=mode,
            cancel_grace_s=cancel_grace_s,
            times=times,
            rung=rung,
            entered_s=now_s,
            looks_at_once=may_kill,
            stirred_at_s=stirred_at_s,
            opened_at_s=now_s if facts.hook_seen else None,
        )

    def wait_s(self, facts: StreamFacts) -> float:
        """How long this rung may take before the next one's turn."""
        times, is_forced = self.times, self.mode is CancelMode.FORCE
        match self.rung:
            case Rung.GATE if self.opened_at_s is not None:
                return 0.0 if is_forced else self._settled_at_s(self.opened_at_s) - self.entered_s
            case Rung.GATE if self.looks_at_once:
                return 0.0
            case Rung.GATE:
                return times.gate_force_s if is_forced else times.gate_s
            case Rung.INTERRUPT:
                grace_s = 0.0 if is_forced else times.grace_s(self.step, self.cancel_grace_s)
                if self.is_in_backend(facts):
                    return grace_s + times.kill_providers_s + times.second_interrupt_s
                return grace_s
            case Rung.KILL_PROVIDERS:
                if self.is_in_backend(facts):
                    return times.kill_providers_s + times.second_interrupt_s
                return times.kill_providers_s
            case Rung.SECOND_INTERRUPT:
                if self.canceled_at_s is None:
                    return times.second_interrupt_s
                soon_s = self.canceled_at_s + times.second_interrupt_canceled_s - self.entered_s
                return min(times.second_interrupt_s, soon_s)
            case _:
                return times.kill_s

    def deadline_s(self, facts: StreamFacts) -> float:
        return self.entered_s + self.wait_s(facts)

    def _settled_at_s(self, opened_at_s: float) -> float:
        stirred_at_s = opened_at_s if self.stirred_at_s is None else self.stirred_at_s
        return min(stirred_at_s + self.times.settle_s, opened_at_s + self.times.settle_max_s)

    def next_rung(self, facts: StreamFacts) -> Rung | None:
        """What follows when this rung's time is over; None after SIGKILL.

        A gate that never opened ends in a decision on the frozen process, which `run` takes.
        """
        match self.rung:
            case Rung.INTERRUPT if self.step is Step.INIT:
                return Rung.KILL  # init ignores a second signal
            case Rung.INTERRUPT if not self.is_in_backend(facts):
                return Rung.KILL_PROVIDERS
            case Rung.KILL_PROVIDERS if not self.is_in_backend(facts):
                return Rung.SECOND_INTERRUPT
            case Rung.KILL:
                return None
            case _:
                return Rung.KILL

    def climb(self, rung: Rung, now_s: float) -> None:
        self.rung, self.entered_s = rung, now_s

    def is_in_backend(self, facts: StreamFacts) -> bool:
        """An apply that saves or unlocks its state: a second SIGINT would lose it.

        The walk is over then and its providers are closed: where one is alive, terraform hangs on that.
        """
        is_idle = facts.hook_seen and facts.is_idle and facts.summary is None
        return self.step is Step.APPLY and is_idle and not self.has_others

    def text(self, facts: StreamFacts, engine: str) -> str:
        """What a person reads while this rung lasts; `engine` is the program's name."""
        wait_s = round(self.wait_s(facts))
        match self.rung:
            case Rung.GATE if self.opened_at_s is not None:
                return "cancelling: what was begun has to reach its provider, so that SIGINT ends it too"
            case Rung.GATE if self.looks_at_once:
                return f"cancelling: {engine} stands still, to be killed unless it has begun an operation"
            case Rung.GATE:
                return f"cancelling: SIGINT would be lost now, waiting up to {wait_s} s for the first operation"
            case Rung.INTERRUPT:
                return f"cancelling: SIGINT sent, waiting up to {wait_s} s for {engine} to stop and save its state"
            case Rung.KILL_PROVIDERS:
                return f"cancelling: providers killed, waiting up to {wait_s} s for {engine} to save its state"
            case Rung.SECOND_INTERRUPT:
                return f"cancelling: second SIGINT sent, waiting up to {wait_s} s"
            case _:
                return f"cancelling: {engine} killed"
