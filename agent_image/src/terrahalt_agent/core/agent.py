"""Which run this agent takes, what it refuses, and what it still has to tell.

A map of run ID -> run: one that is alive or ended, or the tombstone of one whose cancel came first. Of those before
the latest, which an agent with several runs has, it keeps what their end was called and nothing else.
Never runs two at once, never one twice, and obeys no operator whose epoch is lower than the highest
that it has seen. Called by `driver` with every event of the process; pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import assert_never

import msgspec

from terrahalt_agent.core.classify import never_started
from terrahalt_agent.core.credentials import Refreshes
from terrahalt_agent.core.events import (
    AgentEvent,
    CancelRequested,
    CommandMangled,
    CommandReceived,
    CredentialsRead,
    OfRun,
    OperatorConnected,
    OperatorDisconnected,
    PodTerminating,
    RoomRestored,
    TimePassed,
)
from terrahalt_agent.core.instructions import (
    AgentInstruction,
    Answer,
    Exit,
    ForRun,
    RestoreRoom,
    RunInstruction,
    SendHello,
    WriteTerminationMessage,
)
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.resources import Cause, operator_lost, superseded
from terrahalt_agent.core.run import Run
from terrahalt_protocol.messages import (
    Ack,
    Cancel,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    Command,
    Leave,
    Lock,
    LockCondition,
    RefreshCredentials,
    RefusalCode,
    Refused,
    Report,
    Result,
    Rung,
    Start,
    StateCondition,
    Step,
)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
"""It becomes a directory, a label and the USER of terraform."""
_RELEASED = Lock(condition=LockCondition.RELEASED)


@dataclass(slots=True)
class _Tombstone:
    """A run whose cancel came before it: it never starts here."""

    run_id: str
    reason: CancelReason
    mode: CancelMode
    received_at_s: float
    boot_id: str
    cause: Cause | None = None
    sequence: int = 0

    def report(self, now_s: float) -> Report:
        self.sequence += 1
        result = never_started(self.reason, self.cause)
        ages = CancelAges(received_s=now_s - self.received_at_s)
        return Report(
            run_id=self.run_id,
            task_uid="",
            boot_id=self.boot_id,
            sequence=self.sequence,
            step=Step.PREPARE,
            message=result.message,
            cancel=CancelReport(
                reason=self.reason,
                mode=self.mode,
                rung=Rung.NOT_STARTED,
                ages=ages,
                cause=self.cause.reason if self.cause is not None else "",
            ),
            result=result,
        )


@dataclass(slots=True)
class _Past:
    """A run that ended, is on record, and of which nothing is left."""

    last: Report

    @classmethod
    def of(cls, report: Report) -> _Past:
        text = "this run has ended, and its end is on record"
        assert report.result is not None
        result = msgspec.structs.replace(report.result, message=text, open_addresses=(), lock=_RELEASED)
        return cls(msgspec.structs.replace(report, message=text, resources_current="", result=result))

    def report(self, now_s: float) -> Report:
        self.last = msgspec.structs.replace(self.last, sequence=self.last.sequence + 1)
        return self.last


class Agent:
    def __init__(
        self,
        *,
        engine: str,
        boot_id: str,
        times: Times | None = None,
        max_runs: int = 1,
        operator_loss_s: float | None = None,
    ) -> None:
        """`engine` is what a person calls the program that runs: terraform, or tofu. `max_runs` of them begin here, one
        after the other. `operator_loss_s` is for how long a run goes on without an operator; None: to its end."""
        self._engine = engine
        self._boot_id = boot_id
        self._times = times or Times()
        self._max_runs = max_runs
        self._runs: dict[str, Run | _Tombstone | _Past] = {}
        self._begun = 0
        """How many runs have begun here."""
        self._restoring = ""
        """The run after which the agent is being made as fresh as before; empty: none."""
        self._is_unclean = False
        self._acknowledged: set[str] = set()
        self._highest_epoch = 0
        self._connections: set[int] = set()
        self._operator_loss_s = operator_loss_s
        self._alone_since_s: float | None = None
        """When the last operator was lost; None: one is here, or its loss was acted upon."""
        self._leave_at_s: float | None = None
        """Set once the pod is terminating and no run is alive."""
        self._is_terminating = False
        self._refreshes = Refreshes()

    def handle(self, event: AgentEvent, now_s: float) -> list[AgentInstruction]:
        match event:
            case OperatorConnected(connection=connection):
                todo = self._greet(connection, now_s)
            case OperatorDisconnected(connection=connection):
                self._connections.discard(connection)
                self._alone_since_s = None if self._connections else now_s
                todo = []
            case CommandMangled(connection=connection, message=message):
                todo = [self._refuse(connection, RefusalCode.MALFORMED, message, "")]
            case CommandReceived(connection=connection, command=command):
                todo = self._obey(connection, command, now_s)
            case CredentialsRead(refresh=refresh, problem=problem):
                todo = self._refreshes.note(refresh, problem, now_s)
            case PodTerminating():
                todo = self._terminate(now_s)
            case RoomRestored(run_id=run_id, problem=problem):
                todo = self._go_on_after(run_id, problem, now_s)
            case OfRun(run_id=run_id, event=run_event):
                run = self._runs.get(run_id)
                todo = _for(run_id, run.handle(run_event, now_s)) if isinstance(run, Run) else []
            case TimePassed():
                todo = [
                    instruction
                    for run in self._started
                    if run.wake_at_s is not None and now_s >= run.wake_at_s
                    for instruction in _for(run.start.run_id, run.handle(event, now_s))
                ]
                todo += self._miss_operator(now_s)
            case _:
                assert_never(event)
        return todo + self._refreshes.go_on(self._alive_run, now_s) + self._leave(now_s)

    def wants_look(self, run_id: str, now_s: float) -> bool:
        """Whether `OthersSeen` of this run, every few milliseconds, helps to choose the moment of a SIGINT."""
        run = self._runs.get(run_id)
        return isinstance(run, Run) and run.wants_look(now_s)

    def is_alive(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        return isinstance(run, Run) and run.result is None

    @property
    def has_run(self) -> bool:
        """Something of one is alive here."""
        return self._alive_run is not None

    @property
    def is_terminating(self) -> bool:
        """Its pod is to end, or it was told to leave."""
        return self._is_terminating

    @property
    def wake_at_s(self) -> float | None:
        times = [run.wake_at_s for run in self._started]
        times += [self._leave_at_s, self._operator_missed_at_s, self._refreshes.wake_at_s]
        return min((time for time in times if time is not None), default=None)

    # -- operators

    def _greet(self, connection: int, now_s: float) -> list[AgentInstruction]:
        self._connections.add(connection)
        self._alone_since_s = None
        held = self._held
        return [self._hello(connection), *(Answer(connection, self._runs[run_id].report(now_s)) for run_id in held)]

    def _hello(self, connection: int) -> SendHello:
        is_used = self._is_used or bool(self._restoring)
        return SendHello(connection, self._highest_epoch, tuple(self._held), is_used, self._refreshes.done)

    def _obey(self, connection: int, command: Command, now_s: float) -> list[AgentInstruction]:
        if command.epoch < self._highest_epoch:
            text = f"epoch {command.epoch} is over: an operator with epoch {self._highest_epoch} has taken over"
            run_id = "" if isinstance(command, RefreshCredentials | Leave) else command.run_id
            return [self._refuse(connection, RefusalCode.STALE_EPOCH, text, run_id)]
        self._highest_epoch = command.epoch
        if isinstance(command, RefreshCredentials):
            self._refreshes.ask(command.refresh, connection)
            return []
        if isinstance(command, Leave):
            return self._terminate(now_s)
        if not _RUN_ID.fullmatch(command.run_id):
            text = f"run ID {command.run_id[:80]!r} is not made of at most 63 letters, digits and dashes"
            return [self._refuse(connection, RefusalCode.MALFORMED, text, "")]
        match command:
            case Start():
                return self._start(connection, command, now_s)
            case Cancel():
                return self._cancel(connection, command, now_s)
            case Ack(run_id=run_id):
                return self._note_ack(run_id) if run_id in self._runs and self._has_ended(run_id) else []
            case _:
                assert_never(command)

    def _start(self, connection: int, start: Start, now_s: float) -> list[AgentInstruction]:
        if known := self._runs.get(start.run_id):
            return [Answer(connection, known.report(now_s))]
        if self._is_terminating:
            return [self._refuse(connection, RefusalCode.USED, "this agent's pod is terminating", start.run_id)]
        if alive := self._alive_run:
            return [self._refuse(connection, RefusalCode.BUSY, f"run {alive} is alive here", start.run_id)]
        if self._is_used:
            text = "this agent takes no other run than those that it has had"
            return [self._refuse(connection, RefusalCode.USED, text, start.run_id)]
        if ended := [run.start.run_id for run in self._started]:
            text = f"nothing of run {ended[0]} may be left here, and is not yet known to be gone"
            return [self._refuse(connection, RefusalCode.BUSY, text, start.run_id)]
        self._begun += 1
        run = Run(start, engine=self._engine, boot_id=self._boot_id, times=self._times, now_s=now_s)
        self._runs[start.run_id] = run
        return _for(start.run_id, run.begin(now_s))

    def _cancel(self, connection: int, cancel: Cancel, now_s: float) -> list[AgentInstruction]:
        known = self._runs.get(cancel.run_id)
        cause = superseded(cancel.superseded_by) if cancel.superseded_by else None
        if isinstance(known, Run) and known.result is None:
            event = CancelRequested(
                cancel.reason, cancel.mode, cancel.grace_s, cause=cause, spares_apply=cause is not None
            )
            return _for(cancel.run_id, known.handle(event, now_s))
        if known is not None:
            return [Answer(connection, known.report(now_s))]
        tombstone = _Tombstone(cancel.run_id, cancel.reason, cancel.mode, now_s, self._boot_id, cause)
        self._runs[cancel.run_id] = tombstone
        report = tombstone.report(now_s)
        todo: list[AgentInstruction] = [Answer(connection, report)]
        if cancel.report_key and not self._started:
            # It must not overwrite the message of a run that was real.
            todo.insert(0, ForRun(cancel.run_id, WriteTerminationMessage(report, cancel.report_key)))
        return todo

    def _refuse(self, connection: int, code: RefusalCode, message: str, run_id: str) -> Answer:
        return Answer(connection, Refused(code=code, message=message, run_id=run_id, highest_epoch=self._highest_epoch))

    @property
    def _operator_missed_at_s(self) -> float | None:
        if self._operator_loss_s is None or self._alone_since_s is None:
            return None
        return self._alone_since_s + self._operator_loss_s if self._alive_run else None

    def _miss_operator(self, now_s: float) -> list[AgentInstruction]:
        missed_at_s = self._operator_missed_at_s
        if self._operator_loss_s is None or missed_at_s is None or now_s < missed_at_s:
            return []
        self._alone_since_s = None
        cause = operator_lost(self._operator_loss_s)
        return self._cancel_all(CancelRequested(CancelReason.TIMEOUT, cause=cause), now_s)

    # -- the pod's end

    def _terminate(self, now_s: float) -> list[AgentInstruction]:
        self._is_terminating = True
        return self._cancel_all(CancelRequested(CancelReason.POD_TERMINATION), now_s)

    def _cancel_all(self, event: CancelRequested, now_s: float) -> list[AgentInstruction]:
        return [
            instruction
            for run in self._started
            if run.result is None
            for instruction in _for(run.start.run_id, run.handle(event, now_s))
        ]

    def _leave(self, now_s: float) -> list[AgentInstruction]:
        """When nothing is alive: once used and acknowledged, for a fresh agent takes its place; in a
        terminating pod as soon as all is told, or it takes too long."""
        if self._alive_run:
            return []
        is_told = set(self._runs) <= self._acknowledged
        if self._is_used and is_told:
            return [Exit()]
        if not self._is_terminating:
            return []
        if self._leave_at_s is None:
            self._leave_at_s = now_s + self._times.farewell_s
        return [Exit()] if is_told or not self._connections or now_s >= self._leave_at_s else []

    # -- one run after the other

    def _note_ack(self, run_id: str) -> list[AgentInstruction]:
        is_news = run_id not in self._acknowledged
        self._acknowledged.add(run_id)
        if not is_news or self._is_used or self._is_terminating or not isinstance(self._runs[run_id], Run):
            return []
        self._restoring = run_id
        return [RestoreRoom(run_id)]

    def _go_on_after(self, run_id: str, problem: str, now_s: float) -> list[AgentInstruction]:
        """Each operator that is here hears that this agent takes another run."""
        self._restoring, self._is_unclean = "", bool(problem)
        if problem:
            return []
        self._runs[run_id] = _Past.of(self._runs[run_id].report(now_s))
        return [self._hello(connection) for connection in sorted(self._connections)]

    # -- what it holds

    @property
    def _held(self) -> list[str]:
        return [run_id for run_id in self._runs if run_id not in self._acknowledged]

    @property
    def _started(self) -> list[Run]:
        return [run for run in self._runs.values() if isinstance(run, Run)]

    @property
    def _alive_run(self) -> str | None:
        for run in self._runs.values():
            if isinstance(run, Run) and run.result is None:
                return run.start.run_id
        return None

    @property
    def _is_used(self) -> bool:
        """A state that is not whole may still lie here; and who has killed terraform begins anew."""
        is_in_doubt = any(run.result is not None and not is_clean(run.result) for run in self._started)
        return self._begun >= self._max_runs or self._is_unclean or is_in_doubt

    def _has_ended(self, run_id: str) -> bool:
        run = self._runs[run_id]
        return not isinstance(run, Run) or run.result is not None


def _for(run_id: str, instructions: list[RunInstruction]) -> list[AgentInstruction]:
    return [ForRun(run_id, instruction) for instruction in instructions]


def is_clean(result: Result) -> bool:
    """The next run may begin where this one has ended."""
    is_whole = result.state is StateCondition.COMPLETE and result.lock.condition is LockCondition.RELEASED
    return is_whole and not result.forced
