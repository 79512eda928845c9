"""What the end of a run was: the true result wins, whatever was asked for.

A table, read from the top; the first row that holds decides. `run` calls it once per run, when
terraform was reaped, the sweep was empty and the log was drained; `agent` for a run that never came.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from terrahalt_agent.core.events import AftermathChecked, ErroredState, TornState
from terrahalt_agent.core.resources import Cause
from terrahalt_agent.core.stream import StreamFacts
from terrahalt_agent.core.timeouts import LOCK_TIMED_OUT, Timeout
from terrahalt_protocol.messages import (
    Action,
    CancelReason,
    Lock,
    LockCondition,
    Outcome,
    Result,
    StateCondition,
    Step,
)

MAX_OPEN_ADDRESSES = 50
_SIGINT, _SIGKILL, _SIGTERM = 2, 9, 15
_SIGNAL_NAMES = {
    2: "SIGINT",
    3: "SIGQUIT",
    6: "SIGABRT",
    7: "SIGBUS",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
}
_BEFORE_HANDLERS = (-_SIGINT, -_SIGTERM)
_LAST_STEP = {Action.PLAN: Step.PLAN, Action.APPLY: Step.APPLY, Action.DESTROY: Step.APPLY}
_DONE = {Action.PLAN: "Planned", Action.APPLY: "Applied", Action.DESTROY: "Destroyed"}
_FAILED = {Step.INIT: "InitFailed", Step.PLAN: "PlanFailed", Step.APPLY: "ApplyFailed"}
_CANCELLED = {
    CancelReason.USER: "CancelledByUser",
    CancelReason.DELETION: "CancelledByDeletion",
    CancelReason.POD_TERMINATION: "CancelledByPodTermination",
}
_CRASH_CODES = (2, 11)
AWAITING_APPROVAL, PLAN_EXPIRED = "AwaitingApproval", "PlanExpired"
_ADVICE = {PLAN_EXPIRED: "; nothing was changed: plan anew, by a new task"}


@dataclass(frozen=True, slots=True)
class Failure:
    """An end without a terraform process of its own."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Ending:
    engine: str
    """What a person calls the program that ran."""
    action: Action
    step: Step
    facts: StreamFacts
    exit_code: int | None = None
    """Of the last process; None: none was started, or its code could not be read."""
    failure: Failure | None = None
    cancel: CancelReason | None = None
    cause: Cause | None = None
    """Of a cancel that is the agent's own, or for the sake of another task."""
    timeout: Timeout | None = None
    """Which one it was, where `cancel` is the agent's own timeout."""
    has_kept_plan: bool = False
    """A person decides what comes after it, in another run."""
    is_approved: bool = False
    """Its plan was made by an earlier run: what refuses it is no failure of the apply."""
    run_id: str = ""
    lock_timeout_s: int = 0
    was_interrupted: bool = False
    """We sent SIGINT to this process."""
    failed_before_signal: bool = False
    was_killed: bool = False
    """We sent SIGKILL to this process."""
    killed_at_gate: bool = False
    """It had begun no operation then."""
    providers_killed: bool = False
    open_when_forced: tuple[str, ...] = ()
    is_certain: bool = True
    """False: processes could not be killed, or the log could not be read to its end."""

    @property
    def is_last_step(self) -> bool:
        return self.step is _LAST_STEP[self.action]

    @property
    def is_done(self) -> bool:
        """The process did its work; a plan shows it by its summary too."""
        return self.exit_code == 0 and (self.step is not Step.PLAN or self.facts.summary is not None)

    @property
    def failed_first(self) -> bool:
        """It had failed by itself before the cancel reached it."""
        by_stream = self.facts.interrupted and self.facts.failed_before_interrupt and not self.providers_killed
        return self.failed_before_signal or by_stream

    @property
    def is_cut_off(self) -> bool:
        """The process did not come to an end of its own: it may save its state only now and then."""
        return self.exit_code is None or self.exit_code < 0 or self.exit_code in _CRASH_CODES

    @property
    def may_be_unsaved(self) -> bool:
        """What it has done too: after two interrupts terraform does not wait for its backend any more."""
        return self.is_cut_off or self.facts.twice_interrupted

    @property
    def is_clean(self) -> bool:
        """It was killed when it had nothing to lose."""
        return self.killed_at_gate and not self.facts.hook_seen

    @property
    def is_forced(self) -> bool:
        """What it was doing may be unrecorded."""
        is_killed = self.was_killed and not self.is_clean
        return is_killed or self.facts.twice_interrupted or bool(self.open_when_forced)

    @property
    def may_have_torn_state(self) -> bool:
        return self.step is Step.APPLY and (self.is_torn or self.facts.save_failed)

    @property
    def may_hold_lock(self) -> bool:
        """Whether the process may have left the state's lock: it did not end by itself, or told of trouble with it."""
        facts = self.facts
        if self.failure is not None:
            return False
        is_own = facts.lock_refused and (not facts.lock_holder or facts.lock_holder.startswith(f"{self.run_id}@"))
        return self.exit_code not in (0, 1) or facts.twice_interrupted or facts.unlock_failed or is_own

    @property
    def lacks_workspace(self) -> bool:
        return self.step is Step.INIT and self.exit_code == 1 and self.facts.workspace_missing

    @property
    def is_torn(self) -> bool:
        """The process ended without having brought its state in order."""
        facts = self.facts
        is_torn = self.is_cut_off or facts.twice_interrupted or facts.is_unanswered or bool(self.open_when_forced)
        return is_torn and not self.is_clean

    @property
    def torn_addresses(self) -> tuple[str, ...]:
        """Resources of which the state may not tell the truth."""
        facts = self.facts
        return tuple(dict.fromkeys((*(self.open_when_forced or facts.open_addresses), *facts.unanswered_addresses)))


def _failure(ending: Ending) -> str:
    assert ending.failure is not None
    return ending.failure.reason


def _failed(ending: Ending) -> str:
    if ending.is_approved and ending.facts.plan_refused:
        return PLAN_EXPIRED
    return LOCK_TIMED_OUT if ending.facts.lock_holder else _FAILED.get(ending.step, "AgentError")


def _cancelled(ending: Ending) -> str:
    if ending.cause is not None:
        return ending.cause.reason
    if ending.timeout is not None:
        return ending.timeout.reason
    return _CANCELLED.get(ending.cancel or CancelReason.USER, "TimedOut")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: when it holds, what the outcome is and why."""

    observed: str
    holds: Callable[[Ending], bool]
    outcome: Outcome | None
    """None: as the cancel asked, Cancelled, or Failed where the cause was a timeout."""
    reason: Callable[[Ending], str]


ROWS: tuple[Row, ...] = (
    Row("could not be prepared or started", lambda e: e.failure is not None, Outcome.FAILED, _failure),
    Row(
        "the last step did its work",
        lambda e: e.is_done and e.is_last_step,
        Outcome.SUCCEEDED,
        lambda e: _DONE[e.action],
    ),
    Row(
        "its plan was kept for a person",
        lambda e: e.has_kept_plan and e.cancel is None,
        Outcome.FAILED,  # why: Result.kept_plan
        lambda e: AWAITING_APPROVAL,
    ),
    Row(
        "cancelled before a process or between two steps",
        lambda e: e.cancel is not None and (e.is_done or (e.exit_code is None and not e.was_killed)),
        None,
        _cancelled,
    ),
    Row("an error came before our signal", lambda e: e.failed_first, Outcome.FAILED, _failed),
    Row(
        "killed by us",
        lambda e: e.was_killed and e.exit_code in (-_SIGKILL, None),
        None,
        _cancelled,
    ),
    Row(
        "ended by our first signal, before it had a handler",
        lambda e: e.was_interrupted and e.exit_code in _BEFORE_HANDLERS,
        None,
        _cancelled,
    ),
    Row(
        "stopped after our SIGINT",
        lambda e: e.exit_code == 1 and e.was_interrupted and (e.facts.interrupted or e.step is Step.INIT),
        None,
        _cancelled,
    ),
    Row("lost its providers to us", lambda e: e.exit_code == 1 and e.providers_killed, None, _cancelled),
    Row("killed, and not by us", lambda e: e.exit_code == -_SIGKILL, Outcome.FAILED, lambda e: "TerraformKilled"),
    Row(
        "crashed",
        lambda e: e.is_cut_off,
        Outcome.FAILED,
        lambda e: "TerraformCrashed",
    ),
    Row("state not saved", lambda e: e.facts.save_failed, Outcome.FAILED, lambda e: "NotPersisted"),
    Row("failed", lambda e: True, Outcome.FAILED, _failed),
)


def classify(ending: Ending, left: AftermathChecked) -> Result:
    """The result of a run, by how its last process ended and what it left."""
    row = next(row for row in ROWS if row.holds(ending))
    outcome = row.outcome or (Outcome.FAILED if ending.cancel is CancelReason.TIMEOUT else Outcome.CANCELLED)
    state = _state(ending, left)
    reason = row.reason(ending)
    if reason in _FAILED.values() and state is StateCondition.NOT_PERSISTED:
        reason = "NotPersisted"
    cause = ending.cause.text if ending.cause is not None and reason == ending.cause.reason else ""
    is_incomplete = state is not StateCondition.COMPLETE
    addresses = ending.torn_addresses if is_incomplete else ()
    return Result(
        outcome=outcome,
        reason=reason,
        message=_message(ending, outcome, cause, state, left) + _ADVICE.get(reason, ""),
        exit_code=ending.exit_code,
        state=state,
        lock=left.lock,
        forced=ending.is_forced,
        open_addresses=addresses[:MAX_OPEN_ADDRESSES],
        open_address_count=len(addresses),
    )


def never_started(reason: CancelReason, cause: Cause | None = None) -> Result:
    """The end of a run whose cancel came before it."""
    why = f"; {cause.text}" if cause is not None else ""
    return Result(
        outcome=Outcome.FAILED if reason is CancelReason.TIMEOUT else Outcome.CANCELLED,
        reason=cause.reason if cause is not None else _CANCELLED.get(reason, "TimedOut"),
        message=f"cancelled before it was started: nothing ran{why}",
        state=StateCondition.COMPLETE,
        lock=Lock(condition=LockCondition.RELEASED),
    )


def _state(ending: Ending, left: AftermathChecked) -> StateCondition:
    if left.torn_state is not None:
        return StateCondition.CORRUPT
    if ending.facts.save_failed or left.errored_state is not None:
        return StateCondition.NOT_PERSISTED
    if ending.step is Step.APPLY and not ending.is_certain:
        return StateCondition.UNKNOWN
    if ending.step is not Step.APPLY or not ending.facts.mutated:
        return StateCondition.COMPLETE
    return StateCondition.INCOMPLETE if ending.is_torn else StateCondition.COMPLETE


def _message(ending: Ending, outcome: Outcome, cause: str, state: StateCondition, left: AftermathChecked) -> str:
    engine, errored, torn = ending.engine, left.errored_state, left.torn_state
    texts = [_what(ending, outcome)]
    if cause:
        texts.append(cause)
    if state is StateCondition.INCOMPLETE:
        done = ", and what it had done since it last saved it" if ending.may_be_unsaved else ""
        texts.append(f"the state may miss what {engine} was doing{done}: plan with a refresh before the next apply")
    if ending.facts.save_failed or errored is not None:
        texts.append(f"the state was not saved; {_where(errored, engine)}")
    if torn is not None:
        texts.append(f"what is saved can't be read any more: {_way_back(torn, errored, engine)}")
    if left.lock.condition is LockCondition.HELD:
        texts.append(f"the state's lock is still held by {left.lock.who}")
    if left.lock.condition is LockCondition.UNKNOWN and left.lock.command:
        texts.append("whether the state's lock was released is not known: see status.result.lockCommand")
    return "; ".join(texts)


def _where(errored: ErroredState | None, engine: str) -> str:
    if errored is None:
        return "no errored.tfstate was left either"
    if errored.fetch:
        return f"get it with `{errored.fetch}` and push it with `{engine} state push`, never with -force"
    return f"{engine} left it in {errored.file} of this pod, and it could not be kept: {errored.problem}"


def _way_back(torn: TornState, errored: ErroredState | None, engine: str) -> str:
    remove = f"remove what is left of it with `{torn.remove}`"
    if errored is not None and errored.fetch:
        return f"{remove} before that push"
    if torn.fetch:
        return f"get the one from before this apply with `{torn.fetch}`, {remove}, push with `{engine} state push`"
    return f"{remove}; there was none before this apply"


def _what(ending: Ending, outcome: Outcome) -> str:
    step = f"{ending.engine} {ending.step.value.lower()}"
    facts, code = ending.facts, ending.exit_code
    if ending.failure is not None:
        return ending.failure.message
    if outcome is Outcome.SUCCEEDED or (ending.has_kept_plan and ending.cancel is None):
        return facts.summary_text.rstrip(".") or "done"
    if ending.cancel is not None and not ending.failed_first:
        why = "timed out" if ending.cancel is CancelReason.TIMEOUT else "cancelled"
        why = ending.timeout.text if ending.timeout is not None else why
        why = "ended by the agent" if ending.cause is not None and ending.cancel is CancelReason.TIMEOUT else why
        if code is None and not ending.was_killed:
            return f"{why} before {ending.engine} was started"
        if code == 0 and not ending.is_last_step:
            return f"{why} after {step}; the next step was not started"
        if ending.is_clean:
            return f"{why} in {step} before its first operation: it was killed, and nothing was changed"
        if ending.was_killed and code in (-_SIGKILL, None):
            return f"{why} in {step}, which had to be killed"
        if ending.was_interrupted and code in (1, *_BEFORE_HANDLERS):
            return f"{why} in {step}, which stopped after SIGINT"
        if ending.providers_killed and code == 1:
            return f"{why} in {step}, which stopped without its providers"
    if facts.lock_holder:
        # Where a backend can't tell, terraform shows its own attempt.
        is_known = not facts.lock_holder.startswith(f"{ending.run_id}@")
        holder = facts.lock_holder if is_known else "somebody whom the backend does not name"
        return f"{step} waited {ending.lock_timeout_s} s for the state's lock, which is held by {holder}"
    if code == 0:
        return f"{step} ended with exit code 0 without telling what it did"
    if code is not None and code < 0:
        name = _SIGNAL_NAMES.get(-code, f"signal {-code}")
        said = f": {facts.error_text}" if facts.error_text else ""
        return f"{step} was ended by {name}, which this agent did not send{said}"
    return f"{step}: {facts.error_text or f'exit code {code}'}"
