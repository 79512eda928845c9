"""What the tests of the core are made of: runs at a moment of their life, and lines of terraform's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    ErroredState,
    LinesLogged,
    OutputDrained,
    ProcessExited,
    RunEvent,
    RunPrepared,
    StateKept,
    SweepEmptied,
    TimePassed,
)
from terrahalt_agent.core.instructions import RunInstruction, SendReport
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.run import Run
from terrahalt_agent.core.stream import StreamFacts
from terrahalt_agent.core.terraform_log import Line, parse
from terrahalt_protocol.messages import (
    Action,
    CancelMode,
    CancelReason,
    Lock,
    LockCondition,
    Report,
    Result,
    Source,
    Start,
    Step,
    TaskRef,
)

RUN_ID = "01JRUN"
KEY = "aa" * 32
FREE = Lock(condition=LockCondition.RELEASED)
ADDRESS = "terraform_data.a"
TIMES = Times()
_WAKES = 1000


def a_start(**fields: Any) -> Start:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "run_id": RUN_ID,
        "task": TaskRef(namespace="team-a", name="network", uid="task-uid"),
        "action": Action.APPLY,
        "workspace": "network",
        "source": Source(inline={"main.tf": ""}),
        "report_key": KEY,
    }
    return Start(**(defaults | fields))


def a_line(kind: str, message: str = "", **fields: Any) -> Line:
    return parse(msgspec.json.encode({"type": kind, "@message": message, **fields}))


def version() -> Line:
    return a_line("version", "Terraform 1.11.4")


def hook(kind: str, address: str = ADDRESS, action: str = "create") -> Line:
    return a_line(kind, hook={"resource": {"addr": address}, "action": action})


def begun(address: str = ADDRESS) -> Line:
    return hook("apply_start", address)


def completed(address: str = ADDRESS) -> Line:
    return hook("apply_complete", address)


def errored(address: str = ADDRESS) -> Line:
    return hook("apply_errored", address)


def an_error(summary: str = "it broke", **fields: Any) -> Line:
    return a_line("diagnostic", f"Error: {summary}", diagnostic={"severity": "error", "summary": summary, **fields})


def summary(operation: str = "apply") -> Line:
    text = "Apply complete! Resources: 1 added, 0 changed, 0 destroyed."
    return a_line("change_summary", text, changes={"add": 1, "change": 0, "remove": 0, "operation": operation})


def interrupt_received() -> Line:
    return a_line("log", "\nInterrupt received.\nPlease wait for Terraform to exit or data loss may occur.\n")


def two_interrupts() -> Line:
    return a_line("log", "\nTwo interrupts received. Exiting immediately. Note that data loss may have occurred.\n")


def lock_not_acquired(who: str = "somebody@else") -> Line:
    detail = (
        "Error message: resource temporarily unavailable\nLock Info:\n  ID:        57904ab3\n  Path:      s.tfstate\n"
        f"  Operation: OperationTypeApply\n  Who:       {who}\n  Version:   1.11.4\n"
        "  Created:   2026-01-02 03:04:05.859587485 +0000 UTC\n  Info:      \n\n\nTerraform acquires a state lock"
    )
    return an_error("Error acquiring the state lock", detail=detail)


def operation_canceled() -> Line:
    return an_error("operation canceled")


def facts(*lines: Line) -> StreamFacts:
    stream = StreamFacts()
    for line in lines:
        stream.note(line)
    return stream


def logged(*lines: Line) -> LinesLogged:
    return LinesLogged(lines)


class Story:
    """A run, and a clock that the test turns. `done` is all that the run has asked for so far."""

    def __init__(
        self, *, engine: str = "terraform", times: Times = TIMES, frees_locks: bool = False, **fields: Any
    ) -> None:
        self.now_s = 1000.0
        self.prepared = RunPrepared(frees_locks=frees_locks)
        self.run = Run(a_start(**fields), engine=engine, boot_id="boot", times=times, now_s=self.now_s)
        self.done: list[RunInstruction] = []
        self._keep(self.run.begin(self.now_s))

    def tell(self, event: RunEvent, after_s: float = 0.0) -> list[RunInstruction]:
        """What the run wants done now, without its reports."""
        self.now_s += after_s
        return self._keep(self.run.handle(event, self.now_s))

    def cancel(
        self,
        mode: CancelMode = CancelMode.GRACEFUL,
        grace_s: float | None = None,
        reason: CancelReason = CancelReason.USER,
    ) -> list[RunInstruction]:
        return self.tell(CancelRequested(reason, mode, grace_s))

    def wait(self) -> tuple[float, list[RunInstruction]]:
        """Until time makes the run want something beside a report: how long that was, and what it wants."""
        total_s = 0.0
        for _ in range(_WAKES):
            waited_s, wanted = self.wake()
            total_s += waited_s
            if wanted or self.run.wake_at_s is None:
                return round(total_s, 6), wanted
        raise AssertionError("the run wakes up again and again, and wants nothing")

    def wake(self) -> tuple[float, list[RunInstruction]]:
        """Until the run wants to be woken, be it for a report only."""
        wake_at_s = self.run.wake_at_s
        assert wake_at_s is not None, "the run waits for nothing that time could bring"
        waited_s = wake_at_s - self.now_s
        return round(waited_s, 6), self.tell(TimePassed(), waited_s)

    def in_step(self, step: Step, *lines: Line) -> Story:
        """Goes on to a terraform process of that step that has logged `lines`, and has settled since."""
        if step is Step.PREPARE:
            return self
        self.tell(self.prepared)
        for earlier in (Step.INIT, Step.PLAN):
            if step is earlier:
                break
            self.end_process(0, *([summary("plan")] if earlier is Step.PLAN else []))
        if step is Step.APPLY:
            self.tell(StateKept())
        if lines:
            self.tell(logged(*lines))
            self.now_s += TIMES.settle_s
        return self

    def end_process(self, exit_code: int, *lines: Line) -> list[RunInstruction]:
        """Exit, sweep, drained log: what comes after that."""
        self.tell(ProcessExited(exit_code))
        self.tell(SweepEmptied(0))
        if lines:
            self.tell(logged(*lines))
        return self.tell(OutputDrained())

    def end(self, exit_code: int, *lines: Line, lock: Lock = FREE, errored_state: ErroredState | None = None) -> Result:
        self.end_process(exit_code, *lines)
        self.tell(AftermathChecked(lock, errored_state))
        assert self.run.result is not None
        return self.run.result

    @property
    def reports(self) -> list[Report]:
        return [instruction.report for instruction in self.done if isinstance(instruction, SendReport)]

    @property
    def last(self) -> Report:
        return self.reports[-1]

    def _keep(self, instructions: Sequence[RunInstruction]) -> list[RunInstruction]:
        self.done += instructions
        return [instruction for instruction in instructions if not isinstance(instruction, SendReport)]
