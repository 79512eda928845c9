"""One run, one life: what happens next, whatever comes in whatever order.

prepare -> init -> plan -> (apply) -> aftermath -> result. Where a person decides between plan and apply,
one run ends with the plan, and another begins with it. Outputs are published when the result is certain, and change
nothing of it. After every process: sweep to empty, then
drain its log; only then the next one, and never after a cancel. A run gives its result once, and
only when no process of it is alive. Called by `agent` with every event of this run; pure. It has more
than 500 lines because every event meets every stage of a run here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

import msgspec

from terrahalt_agent.core.classify import AWAITING_APPROVAL, Ending, Failure, classify
from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    ErroredState,
    ExecFailed,
    LinesLogged,
    OthersSeen,
    OutputDrained,
    OutputsPublished,
    PlanKept,
    PreparationFailed,
    ProcessExited,
    ProvidersShared,
    ResourcesSeen,
    RunEvent,
    RunPrepared,
    StateKept,
    SweepEmptied,
    SweepStalled,
    TerraformFrozen,
    TimePassed,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    CheckAftermath,
    DrainOutput,
    ExecTerraform,
    FreezeTerraform,
    InterruptTerraform,
    KeepPlan,
    KeepState,
    KillProviders,
    KillTerraform,
    LeaveToKernel,
    PrepareRun,
    PublishOutputs,
    RunInstruction,
    SendReport,
    ShareProviders,
    Sweep,
    ThawTerraform,
    WriteTerminationMessage,
)
from terrahalt_agent.core.ladder import Ladder, Times
from terrahalt_agent.core.resources import Cause, Disk, disk_pressure, out_of_memory
from terrahalt_agent.core.source import preparing
from terrahalt_agent.core.stream import StreamFacts
from terrahalt_agent.core.timeouts import AtWork, Timeout, next_timeout
from terrahalt_protocol.messages import (
    Action,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    KeptPlan,
    Lock,
    LockCondition,
    Outcome,
    OutputsTo,
    PlanSummary,
    PublishedOutputs,
    Report,
    Result,
    Rung,
    Start,
    StateCondition,
    Step,
)

_ORDER = list(Rung)
_MAX_PROBLEM_CHARS = 300
"""Of outputs: the termination message has room for more important things."""


class Stage(Enum):
    PREPARING = auto()
    RUNNING = auto()
    FREEZING = auto()
    SWEEPING = auto()
    DRAINING = auto()
    SHARING = auto()
    KEEPING = auto()
    KEEPING_PLAN = auto()
    CHECKING = auto()
    PUBLISHING = auto()
    ENDED = auto()


@dataclass(slots=True)
class _Cancel:
    """The first reason stays; a later cancel may only shorten the grace or climb."""

    reason: CancelReason
    mode: CancelMode
    grace_s: float
    received_at_s: float
    cause: Cause | None = None
    signalled_at_s: float | None = None
    exited_at_s: float | None = None
    swept_at_s: float | None = None
    rung: Rung = Rung.NOT_STARTED


@dataclass(slots=True)
class _Process:
    """The terraform process that runs, or ran last."""

    step: Step
    started_at_s: float
    heard_at_s: float
    facts: StreamFacts = field(default_factory=StreamFacts)
    exit_code: int | None = None
    ladder: Ladder | None = None
    begun_at_s: float | None = None
    """When its latest operation was begun, as far as the log was read."""
    stirred_at_s: float | None = None
    """The same, or later: when something was last seen to be at work on it."""
    was_interrupted: bool = False
    was_killed: bool = False
    killed_at_gate: bool = False
    """It stood still, and had begun no operation."""
    has_lock: bool = False
    """It was seen to hold the state's lock."""
    providers_killed: bool = False
    failed_before_signal: bool = False
    open_when_forced: tuple[str, ...] = ()


class Run:
    def __init__(self, start: Start, *, engine: str, boot_id: str, times: Times, now_s: float) -> None:
        self.start = start
        self.result: Result | None = None
        self._engine, self._boot_id, self._times = engine, boot_id, times
        self._started_at_s = now_s
        self._stage = Stage.PREPARING
        self._stage_until_s: float | None = None
        self._step = Step.PREPARE
        self._process: _Process | None = None
        self._failure: Failure | None = None
        self._cancel: _Cancel | None = None
        self._disk_at_begin: Disk | None = None
        self._timeout: Timeout | None = None  # that was the cause of the cancel
        self._frees_locks, self._lock_command, self._warning = False, "", ""
        self._shares_providers = False
        self._message = preparing(start.files_from)
        self._commit = ""
        self._approved = start.approval.plan if start.approval is not None else None
        self._plan: PlanSummary | None = self._approved.summary if self._approved is not None else None
        self._kept: PlanKept | None = None
        self._certain: Result | None = None  # nothing that comes changes it but what is said of the outputs
        self._sequence = self._sweeps = 0
        self._is_certain, self._makes_workspace = True, False
        self._progress_sent_at_s = now_s
        self._has_progress = False

    def begin(self, now_s: float) -> list[RunInstruction]:
        return [PrepareRun(self.start), self._tell(now_s)]

    def handle(self, event: RunEvent, now_s: float) -> list[RunInstruction]:
        """What to do now. An event that comes too late or twice changes nothing."""
        if self._stage is Stage.ENDED:
            return []
        match event:
            case RunPrepared():
                return self._note_prepared(event, now_s) if self._stage is Stage.PREPARING else []
            case PreparationFailed(reason=reason, message=message):
                return self._fail(reason, message, now_s) if self._stage is Stage.PREPARING else []
            case ExecFailed(message=message):
                reason = "InitFailed" if self._step is Step.INIT else f"{self._step.value}Failed"
                return self._fail(reason, message, now_s) if self._stage is Stage.RUNNING else []
            case LinesLogged():
                return self._note(event, now_s)
            case OthersSeen(alive=alive, is_busy=is_busy):
                return self._note_others(alive > 0, is_busy, now_s)
            case TerraformFrozen(has_lock=has_lock):
                return self._judge_frozen(has_lock, now_s) if self._stage is Stage.FREEZING else []
            case ProcessExited(exit_code=exit_code):
                return self._note_exit(exit_code, now_s)
            case SweepEmptied():
                return self._note_swept(now_s) if self._stage is Stage.SWEEPING else []
            case SweepStalled(alive=alive):
                return self._sweep_again(alive, now_s) if self._stage is Stage.SWEEPING else []
            case OutputDrained(is_whole=is_whole):
                return self._after_process(is_whole, now_s) if self._stage is Stage.DRAINING else []
            case ProvidersShared():
                return self._after_init(now_s) if self._stage is Stage.SHARING else []
            case StateKept():
                return self._after_keeping(event, now_s) if self._stage is Stage.KEEPING else []
            case PlanKept():
                return self._after_keeping_plan(event, now_s) if self._stage is Stage.KEEPING_PLAN else []
            case AftermathChecked():
                return self._conclude(event, now_s) if self._stage is Stage.CHECKING else []
            case OutputsPublished(count=count, problem=problem):
                return self._after_publishing(count, problem, now_s) if self._stage is Stage.PUBLISHING else []
            case CancelRequested(spares_apply=True) if self._step is Step.APPLY:
                return [self._tell(now_s)]
            case CancelRequested(reason=reason, mode=mode, grace_s=grace_s, cause=cause):
                return self._cancel_for(reason, mode, grace_s, now_s, cause)
            case ResourcesSeen():
                return self._judge_resources(event, now_s)
            case TimePassed():
                return self._look_at_clock(now_s)
            case _:
                assert_never(event)

    def wants_look(self, now_s: float) -> bool:
        """Whether an operation may still be on its way from terraform to its provider."""
        process = self._process
        if self._stage is not Stage.RUNNING or process is None or process.begun_at_s is None:
            return False
        is_at_gate = process.ladder is not None and process.ladder.rung is Rung.GATE
        return is_at_gate or now_s < process.begun_at_s + self._times.settle_max_s

    @property
    def wake_at_s(self) -> float | None:
        """When `TimePassed` is due; None once it has ended."""
        if self._stage is Stage.ENDED:
            return None
        times = [self._stage_until_s]
        if self._cancel is None:
            times.append(self._next_timeout[0])
        if self._stage is Stage.RUNNING and self._process is not None:
            if self._process.ladder is not None:
                times.append(self._process.ladder.deadline_s(self._process.facts))
            if self._has_progress:
                times.append(self._progress_sent_at_s + self._times.progress_s)
        return min((time for time in times if time is not None), default=None)

    def report(self, now_s: float) -> Report:
        """All that is true now; each one has the next sequence number."""
        self._sequence += 1
        facts = self._process.facts if self._process is not None and self._process.step is Step.APPLY else None
        current = facts.open_addresses[-1:] if facts is not None and self.result is None else ()
        return Report(
            run_id=self.start.run_id,
            task_uid=self.start.task.uid,
            boot_id=self._boot_id,
            sequence=self._sequence,
            step=self._step,
            started_s=now_s - self._started_at_s,
            message=self._message,
            plan=self._plan,
            resources_done=facts.done if facts is not None else 0,
            resources_current=current[0] if current else "",
            cancel=self._cancel_report(now_s),
            result=self.result,
            source_commit=self._commit,
        )

    # -- a cancel, from whatever cause

    def _cancel_for(
        self, reason: CancelReason, mode: CancelMode, grace_s: float | None, now_s: float, cause: Cause | None = None
    ) -> list[RunInstruction]:
        asked_grace_s = self.start.cancel_grace_s if grace_s is None else grace_s
        if self._cancel is None:
            grace = min(float(self.start.cancel_grace_s), asked_grace_s)
            self._cancel = _Cancel(reason=reason, mode=mode, grace_s=grace, received_at_s=now_s, cause=cause)
        else:
            self._cancel.grace_s = min(self._cancel.grace_s, asked_grace_s)
            if mode is CancelMode.FORCE:
                self._cancel.mode = mode
        if self._stage in (Stage.PREPARING, Stage.SHARING, Stage.KEEPING_PLAN):
            return [AbandonPreparation(), *self._sweep(now_s), self._tell(now_s)]
        if self._stage is Stage.RUNNING:
            return [*self._climb_down_to(now_s), self._tell(now_s)]
        if self._stage is Stage.KEEPING:
            return [*self._check_aftermath(now_s), self._tell(now_s)]
        if reason is CancelReason.POD_TERMINATION and self._stage_until_s is not None:
            if self._stage is Stage.CHECKING:
                self._stage_until_s = min(self._stage_until_s, now_s + self._check_s(in_haste=True))
            if self._stage is Stage.PUBLISHING:
                self._stage_until_s = min(self._stage_until_s, now_s + self._times.publish_in_haste_s)
        return [self._tell(now_s)]

    def _judge_resources(self, seen: ResourcesSeen, now_s: float) -> list[RunInstruction]:
        """Too full a disk ends a run as a timeout does; memory does not wait, not even at the gate."""
        self._disk_at_begin = self._disk_at_begin or seen.disk
        if self._stage not in (Stage.PREPARING, Stage.RUNNING, Stage.FREEZING):
            return []
        if (self._cancel is None or self._cancel.mode is not CancelMode.FORCE) and (
            cause := out_of_memory(seen.memory)
        ):
            todo = self._cancel_for(CancelReason.TIMEOUT, CancelMode.FORCE, None, now_s, cause)
            process = self._process
            is_at_gate = process is not None and process.ladder is not None and process.ladder.rung is Rung.GATE
            return [*self._kill_providers(), *todo] if is_at_gate else todo
        if self._cancel is None and (cause := disk_pressure(seen.disk, self._disk_at_begin)):
            return self._cancel_for(CancelReason.TIMEOUT, CancelMode.GRACEFUL, None, now_s, cause)
        return []

    def _kill_providers(self) -> list[RunInstruction]:
        process, cancel = self._running, self._the_cancel
        if _ORDER.index(Rung.KILL_PROVIDERS) > _ORDER.index(cancel.rung):
            cancel.rung = Rung.KILL_PROVIDERS
        process.providers_killed = True
        process.open_when_forced = process.facts.open_addresses
        return [KillProviders()]

    def _climb_down_to(self, now_s: float) -> list[RunInstruction]:
        """Begins the ladder of the process that runs, or gives it the new mode and grace."""
        process, cancel = self._running, self._the_cancel
        if process.ladder is None:
            process.ladder = Ladder.begin(
                step=process.step,
                mode=cancel.mode,
                cancel_grace_s=cancel.grace_s,
                times=self._times,
                facts=process.facts,
                now_s=now_s,
                stirred_at_s=process.stirred_at_s,
                may_kill=self._frees_locks and self._will_begin(process),
            )
            process.failed_before_signal = process.facts.failed
            return [*self._enter(process.ladder.rung, now_s), *self._climb(now_s)]
        process.ladder.mode, process.ladder.cancel_grace_s = cancel.mode, cancel.grace_s
        return self._climb(now_s)

    def _climb(self, now_s: float) -> list[RunInstruction]:
        """Every rung whose time is over; in Force mode that may be several at once."""
        process = self._running
        ladder, todo = process.ladder, list[RunInstruction]()
        while ladder is not None and self._stage is Stage.RUNNING and now_s >= ladder.deadline_s(process.facts):
            if ladder.rung is Rung.GATE and process.facts.hook_seen:
                todo += self._enter(Rung.INTERRUPT, now_s)
                continue
            if ladder.rung is Rung.GATE:
                self._stage, self._stage_until_s = Stage.FREEZING, now_s + self._times.freeze_s
                todo.append(FreezeTerraform())
                break
            rung = ladder.next_rung(process.facts)
            if rung is None:
                todo += self._sweep(now_s)  # it outlives SIGKILL: the sweep has the last resort
                break
            todo += self._enter(rung, now_s)
        return todo

    def _enter(self, rung: Rung, now_s: float) -> list[RunInstruction]:
        process, cancel = self._running, self._the_cancel
        assert process.ladder is not None
        process.ladder.climb(rung, now_s)
        if _ORDER.index(rung) > _ORDER.index(cancel.rung):
            cancel.rung = rung
        self._message = process.ladder.text(process.facts, self._engine)
        if rung is not Rung.GATE and cancel.signalled_at_s is None:
            cancel.signalled_at_s = now_s
        match rung:
            case Rung.INTERRUPT | Rung.SECOND_INTERRUPT:
                if not process.was_interrupted and not process.providers_killed:
                    process.failed_before_signal = process.facts.failed
                process.was_interrupted = True
                return [InterruptTerraform()]
            case Rung.KILL_PROVIDERS:
                return self._kill_providers()
            case Rung.KILL:
                process.was_killed = True
                process.open_when_forced = process.open_when_forced or process.facts.open_addresses
                return [KillTerraform()]
            case _:
                return []

    def _judge_frozen(self, has_lock: bool, now_s: float) -> list[RunInstruction]:
        """At the end of the gate: no operation was begun, so a kill is clean; else SIGINT is honoured from now on."""
        process = self._running
        ladder = process.ladder
        assert ladder is not None
        self._stage, self._stage_until_s = Stage.RUNNING, None
        process.has_lock = has_lock
        if not process.facts.hook_seen:
            process.killed_at_gate = True
            return [*self._enter(Rung.KILL, now_s), self._tell(now_s)]
        ladder.opened_at_s, ladder.stirred_at_s = now_s, process.stirred_at_s
        return [ThawTerraform(), *self._climb(now_s), self._tell(now_s)]

    def _will_begin(self, process: _Process) -> bool:
        """Operations are to come. An apply that has none may be writing its state already, unseen in its log."""
        match process.step:
            case Step.PLAN:
                return process.facts.summary is None
            case Step.APPLY:
                return self._plan is not None and bool(self._plan.add + self._plan.change + self._plan.destroy)
            case _:
                return False

    # -- processes

    def _note_prepared(self, prepared: RunPrepared, now_s: float) -> list[RunInstruction]:
        self._commit, self._frees_locks = prepared.commit, prepared.frees_locks
        self._lock_command, self._shares_providers = prepared.lock_command, prepared.shares_providers
        return self._exec(Step.INIT, now_s)

    def _exec(self, step: Step, now_s: float) -> list[RunInstruction]:
        self._stage, self._stage_until_s, self._step = Stage.RUNNING, None, step
        self._process = _Process(step, started_at_s=now_s, heard_at_s=now_s)
        self._message = f"{self._engine} {step.value.lower()}"
        return [ExecTerraform(step, self._makes_workspace and step is Step.INIT), self._tell(now_s)]

    def _note(self, event: LinesLogged, now_s: float) -> list[RunInstruction]:
        process = self._process
        if process is None:
            return []
        facts, todo = process.facts, list[RunInstruction]()
        progress, begun, was_canceled = self._progress_of(facts), facts.begun, facts.canceled
        for line in event.lines:
            facts.note(line)
            if not line.is_heartbeat:
                process.heard_at_s = now_s
        if facts.begun != begun:
            process.begun_at_s = process.stirred_at_s = now_s
        ladder = process.ladder if self._stage is Stage.RUNNING else None
        if ladder is not None and facts.canceled and not was_canceled:
            ladder.canceled_at_s = now_s
        if ladder is not None and ladder.rung is Rung.GATE and facts.hook_seen:
            ladder.stirred_at_s = process.stirred_at_s
            ladder.opened_at_s = now_s if ladder.opened_at_s is None else ladder.opened_at_s
            if climbed := self._climb(now_s):
                todo += [*climbed, self._tell(now_s)]
        if process.step is Step.PLAN and self._plan is None and facts.summary is not None:
            self._plan = facts.summary
            todo.append(self._tell(now_s))
        elif self._progress_of(facts) != progress:
            self._has_progress = True
            todo += self._tell_progress(now_s)
        return todo

    def _note_others(self, has_others: bool, is_busy: bool, now_s: float) -> list[RunInstruction]:
        if (process := self._process) is None:
            return []
        if is_busy and self.wants_look(now_s):
            process.stirred_at_s = now_s
        if process.ladder is not None:
            process.ladder.has_others = has_others
            process.ladder.stirred_at_s = process.stirred_at_s
        return []

    def _note_exit(self, exit_code: int, now_s: float) -> list[RunInstruction]:
        if self._process is None:
            return []
        self._process.exit_code = exit_code
        if self._cancel is not None and self._cancel.exited_at_s is None:
            self._cancel.exited_at_s = now_s
        return self._sweep(now_s) if self._stage in (Stage.RUNNING, Stage.FREEZING) else []

    def _sweep(self, now_s: float) -> list[RunInstruction]:
        self._stage, self._sweeps = Stage.SWEEPING, 0
        self._stage_until_s = now_s + self._times.sweep_s + self._times.backstop_s
        return [Sweep()]

    def _sweep_again(self, alive: tuple[int, ...], now_s: float) -> list[RunInstruction]:
        self._sweeps += 1
        if self._sweeps >= self._times.sweeps:
            return self._leave_to_kernel(alive, now_s)
        self._message = f"{len(alive)} processes of the run do not end although they were killed; trying on"
        self._stage_until_s = now_s + self._times.sweep_s + self._times.backstop_s
        return [Sweep(), self._tell(now_s)]

    def _note_swept(self, now_s: float) -> list[RunInstruction]:
        if self._cancel is not None:
            self._cancel.swept_at_s = now_s
        if self._certain is not None:
            return self._finish(self._certain, now_s)
        if self._process is None:
            return self._check_aftermath(now_s)
        self._stage = Stage.DRAINING
        self._stage_until_s = now_s + self._times.drain_s + self._times.backstop_s
        return [DrainOutput()]

    def _after_process(self, is_whole: bool, now_s: float) -> list[RunInstruction]:
        self._is_certain = self._is_certain and is_whole
        ending = self._ending()
        if self._cancel is None and self._failure is None and ending.is_done and not ending.is_last_step:
            if self._step is Step.PLAN and self.start.approval is not None:
                self._stage, self._stage_until_s = Stage.KEEPING_PLAN, now_s + self._times.keep_plan_s
                self._message = "keeping the plan"
                return [KeepPlan(), self._tell(now_s)]
            if self._step is Step.INIT and self._shares_providers:
                self._stage, self._stage_until_s = Stage.SHARING, now_s + self._times.share_providers_s
                self._message = "keeping its providers for the runs to come"
                return [ShareProviders(), self._tell(now_s)]
            return self._keep_state(now_s) if self._step is Step.PLAN else self._after_init(now_s)
        if self._cancel is None and ending.lacks_workspace and not self._makes_workspace:
            self._makes_workspace = True
            return self._exec(Step.INIT, now_s)
        return self._check_aftermath(now_s)

    def _after_init(self, now_s: float) -> list[RunInstruction]:
        return self._exec(Step.PLAN, now_s) if self._approved is None else self._keep_state(now_s)

    def _keep_state(self, now_s: float) -> list[RunInstruction]:
        self._stage, self._stage_until_s = Stage.KEEPING, now_s + self._times.keep_state_s
        return [KeepState()]

    def _after_keeping(self, kept: StateKept, now_s: float) -> list[RunInstruction]:
        """An apply that breaks the state must leave a way back, and one that could not save it must not begin."""
        self._warning = kept.warning
        if kept.problem:
            return self._fail("StateNotKept", f"the apply was not started: {kept.problem}", now_s)
        return self._exec(Step.APPLY, now_s)

    def _after_keeping_plan(self, kept: PlanKept, now_s: float) -> list[RunInstruction]:
        if kept.reason:
            return [AbandonPreparation(), *self._fail(kept.reason, kept.problem, now_s)]
        self._kept = kept
        return self._check_aftermath(now_s)

    def _check_aftermath(self, now_s: float) -> list[RunInstruction]:
        ending, cancel = self._ending(), self._cancel
        in_haste = cancel is not None and cancel.reason is CancelReason.POD_TERMINATION
        self._stage, self._stage_until_s = Stage.CHECKING, now_s + self._check_s(in_haste=in_haste)
        self._message = "no process is left; looking at the state's lock"
        may_hold_lock = self._process is not None and ending.may_hold_lock
        again_after_s = self._times.late_lock_s if self._may_be_granted_late(ending) else None
        return [CheckAftermath(may_hold_lock, again_after_s, reads_state=ending.may_have_torn_state)]

    def _check_s(self, *, in_haste: bool) -> float:
        times, process = self._times, self._process
        if process is None or not process.facts.save_failed:
            return times.aftermath_s + times.backstop_s
        return times.aftermath_s + (times.keep_errored_in_haste_s if in_haste else times.keep_errored_s)

    def _may_be_granted_late(self, ending: Ending) -> bool:
        """terraform died between its first request for the state's lock and the answer, as far as is known."""
        process = self._process
        if process is None or process.has_lock or process.facts.hook_seen:
            return False
        return process.facts.version_seen and ending.is_cut_off

    # -- the end

    def _fail(self, reason: str, message: str, now_s: float) -> list[RunInstruction]:
        self._failure = Failure(reason, message)
        return self._sweep(now_s)

    def _conclude(self, left: AftermathChecked, now_s: float) -> list[RunInstruction]:
        result = msgspec.structs.replace(classify(self._ending(), left), log_kept=left.log_kept)
        if result.reason == AWAITING_APPROVAL and self._kept is not None:
            kept = KeptPlan(digest=self._kept.digest, architecture=self._kept.architecture)
            result = msgspec.structs.replace(result, kept_plan=kept)
        if self._warning:
            result = msgspec.structs.replace(result, message=f"{result.message}; {self._warning}")
        outputs_to = self.start.values.outputs_to if self.start.values is not None else None
        if outputs_to is None or not self._has_outputs(result):
            return self._finish(result, now_s)
        return self._publish(outputs_to, result, now_s)

    def _has_outputs(self, result: Result) -> bool:
        is_saved = result.outcome is Outcome.SUCCEEDED and result.state is StateCondition.COMPLETE
        return is_saved and self.start.action is Action.APPLY

    def _publish(self, to: OutputsTo, result: Result, now_s: float) -> list[RunInstruction]:
        """The result is written down before: it must not be lost where something ends the pod now."""
        in_haste = self._cancel is not None and self._cancel.reason is CancelReason.POD_TERMINATION
        within_s = self._times.publish_in_haste_s if in_haste else self._times.publish_s
        self._stage, self._stage_until_s = Stage.PUBLISHING, now_s + within_s
        self._message = f"writing its outputs into Secret {to.secret}"
        self._certain = result
        told = _with_outputs(result, to.secret, 0, "the agent ended before they were written")
        report = msgspec.structs.replace(self.report(now_s), step=Step.SWEEP, message=told.message, result=told)
        return [WriteTerminationMessage(report, self.start.report_key), PublishOutputs(to), self._tell(now_s)]

    def _after_publishing(self, count: int, problem: str, now_s: float) -> list[RunInstruction]:
        return self._finish(self._told_of_outputs(count, problem), now_s)

    def _told_of_outputs(self, count: int, problem: str) -> Result:
        values = self.start.values
        assert self._certain is not None
        assert values is not None
        assert values.outputs_to is not None
        return _with_outputs(self._certain, values.outputs_to.secret, count, problem)

    def _finish(self, result: Result, now_s: float) -> list[RunInstruction]:
        report = self._end(result, now_s)
        return [WriteTerminationMessage(report, self.start.report_key), SendReport(report)]

    def _leave_to_kernel(self, alive: tuple[int, ...], now_s: float) -> list[RunInstruction]:
        """The result goes where it counts only once the container has ended, and nowhere else."""
        self._is_certain = False
        report = self._end(self._certain or classify(self._ending(), self._unknown_aftermath), now_s)
        return [WriteTerminationMessage(report, self.start.report_key), LeaveToKernel(alive)]

    @property
    def _unknown_aftermath(self) -> AftermathChecked:
        """Nobody could look; what terraform said that it left is not called lost."""
        left = ErroredState("errored.tfstate", problem="there was no time for it")
        has_left = self._process is not None and self._process.facts.save_failed
        lock = Lock(condition=LockCondition.UNKNOWN, command=self._lock_command)
        return AftermathChecked(lock, left if has_left else None)

    def _end(self, result: Result, now_s: float) -> Report:
        self._stage, self._stage_until_s = Stage.ENDED, None
        self.result, self._message, self._step = result, result.message, Step.SWEEP
        return self.report(now_s)

    def _ending(self) -> Ending:
        process = self._process or _Process(self._step, started_at_s=0.0, heard_at_s=0.0)
        return Ending(
            run_id=self.start.run_id,
            engine=self._engine,
            action=self.start.action,
            step=process.step,
            facts=process.facts,
            exit_code=process.exit_code,
            failure=self._failure,
            cancel=self._cancel.reason if self._cancel is not None else None,
            cause=self._cancel.cause if self._cancel is not None else None,
            timeout=self._timeout,
            has_kept_plan=self._kept is not None,
            is_approved=self._approved is not None,
            lock_timeout_s=self.start.lock_timeout_s,
            was_interrupted=process.was_interrupted,
            failed_before_signal=process.failed_before_signal
            and (process.was_interrupted or process.was_killed or process.providers_killed),
            was_killed=process.was_killed,
            killed_at_gate=process.killed_at_gate,
            providers_killed=process.providers_killed,
            open_when_forced=process.open_when_forced,
            is_certain=self._is_certain,
        )

    # -- time and telling

    def _look_at_clock(self, now_s: float) -> list[RunInstruction]:
        todo: list[RunInstruction] = []
        timeout_at_s, timeout = self._next_timeout
        if self._cancel is None and now_s >= timeout_at_s:
            self._timeout = timeout
            todo += self._cancel_for(CancelReason.TIMEOUT, CancelMode.GRACEFUL, None, now_s)
        if self._stage_until_s is not None and now_s >= self._stage_until_s:
            return todo + self._go_on_without(now_s)
        if self._stage is Stage.RUNNING:
            if self._cancel is not None and (climbed := self._climb(now_s)):
                todo += [*climbed, self._tell(now_s)]
            todo += self._tell_progress(now_s)
        return todo

    def _go_on_without(self, now_s: float) -> list[RunInstruction]:
        """An adapter did not answer within its own bound and ours."""
        match self._stage:
            case Stage.FREEZING:
                return self._judge_frozen(False, now_s)
            case Stage.SWEEPING:
                return self._sweep_again((), now_s)
            case Stage.DRAINING:
                return self._after_process(False, now_s)
            case Stage.SHARING:
                return [AbandonPreparation(), *self._after_init(now_s)]
            case Stage.KEEPING:
                return self._after_keeping(StateKept("the state could not be copied in time"), now_s)
            case Stage.KEEPING_PLAN:
                text = "its plan could not be kept in time; nothing waits for approval"
                return self._after_keeping_plan(PlanKept(reason="PlanNotKept", problem=text), now_s)
            case Stage.CHECKING:
                return self._conclude(self._unknown_aftermath, now_s)
            case Stage.PUBLISHING:
                self._certain = self._told_of_outputs(0, "there was no time for it")
                return [AbandonPreparation(), *self._sweep(now_s)]
            case _:
                return []

    def _tell(self, now_s: float) -> SendReport:
        self._progress_sent_at_s, self._has_progress = now_s, False
        return SendReport(self.report(now_s))

    def _tell_progress(self, now_s: float) -> list[RunInstruction]:
        if not self._has_progress or now_s < self._progress_sent_at_s + self._times.progress_s:
            return []
        return [self._tell(now_s)]

    def _cancel_report(self, now_s: float) -> CancelReport | None:
        if (cancel := self._cancel) is None:
            return None

        def age_s(moment_s: float | None) -> float | None:
            return None if moment_s is None else now_s - moment_s

        ages = CancelAges(
            received_s=age_s(cancel.received_at_s),
            signalled_s=age_s(cancel.signalled_at_s),
            exited_s=age_s(cancel.exited_at_s),
            swept_s=age_s(cancel.swept_at_s),
        )
        cause = cancel.cause.reason if cancel.cause is not None else ""
        return CancelReport(reason=cancel.reason, mode=cancel.mode, rung=cancel.rung, ages=ages, cause=cause)

    @property
    def _next_timeout(self) -> tuple[float, Timeout]:
        process = self._process if self._stage is Stage.RUNNING else None
        at_work = AtWork(process.step, process.started_at_s, process.heard_at_s) if process is not None else None
        return next_timeout(self.start, self._started_at_s, at_work)

    @staticmethod
    def _progress_of(facts: StreamFacts) -> tuple[int, tuple[str, ...]]:
        return facts.done, facts.open_addresses[-1:]

    @property
    def _running(self) -> _Process:
        assert self._process is not None
        return self._process

    @property
    def _the_cancel(self) -> _Cancel:
        assert self._cancel is not None
        return self._cancel


def _with_outputs(result: Result, secret: str, count: int, problem: str) -> Result:
    problem = problem[:_MAX_PROBLEM_CHARS]
    told = f"; its outputs are not in Secret {secret}: {problem}" if problem else ""
    outputs = PublishedOutputs(secret=secret, count=count, problem=problem)
    return msgspec.structs.replace(result, message=result.message + told, outputs=outputs)
