"""What the end of a run was: the true result wins, whatever was asked for.

A table, read from the top; the first row that holds decides. `run` calls it once per run, when
terraform was reaped, the sweep was empty and the log was drained; `agent` for a run that never came.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from terrahalt_agent.core.resources import Cause
from terrahalt_agent.core.stream import StreamFacts
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
    """Of a cancel that is the agent's own."""
    was_interrupted: bool = False
    """We sent SIGINT to this process."""
    failed_before_signal: bool = False
    was_killed: bool = False
    """We sent SIGKILL to this process."""
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
    def is_torn(self) -> bool:
        """The process ended without having brought its state in order."""
        code = self.exit_code
        by_signal = code is None or code < 0 or code in _CRASH_CODES
        return by_signal or self.facts.twice_interrupted or bool(self.open_when_forced)


def _failure(ending: Ending) -> str:
    assert ending.failure is not None
    return ending.failure.reason


def _failed(ending: Ending) -> str:
    return _FAILED.get(ending.step, "AgentError")


def _cancelled(ending: Ending) -> str:
    if ending.cause is not None:
        return ending.cause.reason
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
        lambda e: e.exit_code is None or e.exit_code < 0 or e.exit_code in _CRASH_CODES,
        Outcome.FAILED,
        lambda e: "TerraformCrashed",
    ),
    Row("state not saved", lambda e: e.facts.save_failed, Outcome.FAILED, lambda e: "NotPersisted"),
    Row("failed", lambda e: True, Outcome.FAILED, _failed),
)


def classify(ending: Ending, lock: Lock, errored_state: str | None) -> Result:
    """The result of a run. `errored_state` is where terraform left what it could not save."""
    row = next(row for row in ROWS if row.holds(ending))
    outcome = row.outcome or (Outcome.FAILED if ending.cancel is CancelReason.TIMEOUT else Outcome.CANCELLED)
    state = _state(ending, errored_state)
    reason = row.reason(ending)
    if reason in _FAILED.values() and state is StateCondition.NOT_PERSISTED:
        reason = "NotPersisted"
    cause = ending.cause.text if ending.cause is not None and reason == ending.cause.reason else ""
    is_incomplete = state is not StateCondition.COMPLETE
    addresses = (ending.open_when_forced or ending.facts.open_addresses) if is_incomplete else ()
    return Result(
        outcome=outcome,
        reason=reason,
        message=_message(ending, outcome, cause, state, lock, errored_state),
        exit_code=ending.exit_code,
        state=state,
        lock=lock,
        forced=ending.was_killed or ending.facts.twice_interrupted or bool(ending.open_when_forced),
        open_addresses=addresses[:MAX_OPEN_ADDRESSES],
        open_address_count=len(addresses),
    )


def never_started(reason: CancelReason) -> Result:
    """The end of a run whose cancel came before it."""
    return Result(
        outcome=Outcome.FAILED if reason is CancelReason.TIMEOUT else Outcome.CANCELLED,
        reason=_CANCELLED.get(reason, "TimedOut"),
        message="cancelled before it was started: nothing ran",
        state=StateCondition.COMPLETE,
        lock=Lock(condition=LockCondition.RELEASED),
    )


def _state(ending: Ending, errored_state: str | None) -> StateCondition:
    if ending.facts.save_failed or errored_state is not None:
        return StateCondition.NOT_PERSISTED
    if ending.step is Step.APPLY and not ending.is_certain:
        return StateCondition.UNKNOWN
    if ending.step is not Step.APPLY or not ending.facts.mutated:
        return StateCondition.COMPLETE
    return StateCondition.INCOMPLETE if ending.is_torn else StateCondition.COMPLETE


def _message(
    ending: Ending, outcome: Outcome, cause: str, state: StateCondition, lock: Lock, errored_state: str | None
) -> str:
    engine = ending.engine
    texts = [_what(ending, outcome)]
    if cause:
        texts.append(cause)
    if state is StateCondition.INCOMPLETE:
        texts.append(f"the state may miss what {engine} was doing: plan with a refresh before the next apply")
    if state is StateCondition.NOT_PERSISTED:
        where = f"{engine} left it in {errored_state}: push it with `{engine} state push`" if errored_state else ""
        texts.append(f"the state was not saved; {where or 'no errored.tfstate was left either'}")
    if lock.condition is LockCondition.HELD:
        texts.append(f"the state's lock is still held by {lock.who}")
    return "; ".join(texts)


def _what(ending: Ending, outcome: Outcome) -> str:
    step = f"{ending.engine} {ending.step.value.lower()}"
    facts, code = ending.facts, ending.exit_code
    if ending.failure is not None:
        return ending.failure.message
    if outcome is Outcome.SUCCEEDED:
        return facts.summary_text.rstrip(".") or "done"
    if ending.cancel is not None and not ending.failed_first:
        why = "timed out" if ending.cancel is CancelReason.TIMEOUT else "cancelled"
        why = "ended by the agent" if ending.cause is not None else why
        if code is None and not ending.was_killed:
            return f"{why} before {ending.engine} was started"
        if code == 0 and not ending.is_last_step:
            return f"{why} after {step}; the next step was not started"
        if ending.was_killed and code in (-_SIGKILL, None):
            return f"{why} in {step}, which had to be killed"
        if ending.was_interrupted and code in (1, *_BEFORE_HANDLERS):
            return f"{why} in {step}, which stopped after SIGINT"
        if ending.providers_killed and code == 1:
            return f"{why} in {step}, which stopped without its providers"
    if code == 0:
        return f"{step} ended with exit code 0 without telling what it did"
    if code is not None and code < 0:
        name = _SIGNAL_NAMES.get(-code, f"signal {-code}")
        said = f": {facts.error_text}" if facts.error_text else ""
        return f"{step} was ended by {name}, which this agent did not send{said}"
    return f"{step}: {facts.error_text or f'exit code {code}'}"
