"""A pod as it is on its node, whatever the API server believes: the agent's real core, its adapters as jobs that end
in any order, terraform below it.

What happens next is chosen by `simulation`; what it does is seen by a `Witness`, which `judge` is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never, cast

from terrahalt_agent.adapters.server import Server, _Connection
from terrahalt_agent.core.agent import Agent
from terrahalt_agent.core.classify import PLAN_EXPIRED
from terrahalt_agent.core.events import (
    AftermathChecked,
    AgentEvent,
    CommandReceived,
    CredentialsRead,
    LinesLogged,
    OfRun,
    OperatorConnected,
    OperatorDisconnected,
    OthersSeen,
    OutputDrained,
    PlanKept,
    PodTerminating,
    PreparationFailed,
    ProcessExited,
    RoomRestored,
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
    AgentInstruction,
    Answer,
    CheckAftermath,
    DrainOutput,
    ExecTerraform,
    Exit,
    ForRun,
    FreezeTerraform,
    InterruptTerraform,
    KeepPlan,
    KeepState,
    KillProviders,
    KillTerraform,
    LeaveToKernel,
    PrepareRun,
    ReadCredentials,
    RestoreRoom,
    RunInstruction,
    SendHello,
    SendReport,
    Sweep,
    ThawTerraform,
    WriteTerminationMessage,
)
from terrahalt_operator.core.status import timestamp
from terrahalt_protocol import signing
from terrahalt_protocol.codec import CommandDecoder
from terrahalt_protocol.messages import Command, Hello, Lock, LockCondition, Report, Start, Step
from tests.simulation.api_server import Json
from tests.simulation.terraform import Locks, Temper, Terraform

_FREE = Lock(condition=LockCondition.RELEASED)
_KILLED, _NODE_DIED = 137, 255
ARCHITECTURE = "x86_64"
READING = "read credentials for "


def digest_of(run_id: str) -> str:
    """Of the plan that this run makes."""
    return f"sha256:{hashlib.sha256(run_id.encode()).hexdigest()}"


@dataclass(eq=False)
class Connection:
    """One socket between an operator and an agent; one end may be lost long before the other notices."""

    number: int
    pod: Pod
    to_agent: deque[str] = field(default_factory=deque)
    to_operator: deque[str] = field(default_factory=deque)
    is_open_at_agent: bool = True
    is_open_at_operator: bool = True
    commands: CommandDecoder = field(default_factory=CommandDecoder)

    def put_nowait(self, frame: str) -> None:
        """As the queue that the agent's server writes to."""
        self.to_operator.append(frame)


@dataclass(eq=False)
class Node:
    name: str
    is_cut_off: bool = False
    """What runs there runs on, and nobody hears of it."""
    is_gone: bool = False
    """Its Node object was removed; it may come back all the same."""


class Witness(Protocol):
    def run_begins(self, pod: Pod, start: Start) -> None: ...
    def terraform_starts(self, pod: Pod, start: Start, step: Step) -> None: ...
    def command_arrives(self, pod: Pod, command: Command) -> None: ...
    def command_was_obeyed(self, pod: Pod, command: Command, answers: Sequence[AgentInstruction]) -> None: ...
    def run_ended(self, pod: Pod, report: Report) -> None: ...
    def end_is_told(self, pod: Pod, run_id: str) -> None: ...


class Pod:
    def __init__(
        self, obj: Json, node: Node, locks: Locks, witness: Witness, now: Callable[[], float], loss_s: float | None
    ) -> None:
        meta = obj["metadata"]
        self.namespace, self.name, self.uid = str(meta["namespace"]), str(meta["name"]), str(meta["uid"])
        self.node = node
        self.container_id = f"containerd://{self.uid}"
        self.image_id = f"registry.example/agent@sha256:{obj['spec']['containers'][0]['image']}"
        env = {entry["name"]: entry.get("value") for entry in obj["spec"]["containers"][0]["env"]}
        runs = int(env.get("TERRAHALT_MAX_TASKS") or 1)
        self.agent = Agent(engine="terraform", boot_id=f"boot-{self.uid}", max_runs=runs, operator_loss_s=loss_s)
        self.is_alive = True
        self.exit_code = 0
        self.finished_at = 0.0
        self.message = ""
        """What is in /dev/termination-log."""
        self.terraforms: list[Terraform] = []
        self.starts: dict[str, Start] = {}
        self.jobs: list[tuple[str, str]] = []
        """What adapters are about to answer: run ID, and what they do."""
        self.connections: dict[int, Connection] = {}
        self.temper = Temper.OBEYS
        self.stalled_sweeps = 0
        """So many more sweeps meet a process that does not end."""
        self.dies_after: int | None = None
        """So many instructions are carried out yet, then everything in the container is killed at once."""
        self.is_terminating = False
        self.is_unreachable = False
        """For operators; its kubelet is not."""
        self.killed_at: float | None = None
        """When the kubelet has no more patience."""
        self._locks, self._witness, self._now = locks, witness, now
        self._server = Server(lambda event: None, lambda: (b"", ""))
        """The agent's own, of which no socket is opened: it says what goes to whom."""

    @property
    def is_cut_off(self) -> bool:
        """No operator and it hear of each other."""
        return self.is_unreachable or self.node.is_cut_off

    @property
    def live_runs(self) -> list[str]:
        """Those of which a process is alive, or that the agent has not ended yet."""
        return [run_id for run_id in self.starts if self.is_run_alive(run_id)]

    @property
    def unacknowledged(self) -> list[str]:
        """Runs that have ended, or never began, and of which the agent has not heard that this is on record."""
        return [run_id for run_id in self.agent._held if self.agent._has_ended(run_id)] if self.is_alive else []

    def is_run_alive(self, run_id: str) -> bool:
        if not self.is_alive:
            return False
        has_processes = any(t.has_processes and t.start.run_id == run_id for t in self.terraforms)
        return has_processes or self.agent.is_alive(run_id)

    # ---- what happens to the agent

    def tell(self, event: AgentEvent) -> Sequence[AgentInstruction]:
        """What its core wants; it is carried out already."""
        if not self.is_alive:
            return ()
        for terraform in self.terraforms:  # before each event, as `driver` does
            if terraform.unread:
                lines, terraform.unread = tuple(terraform.unread), []
                self._handle(OfRun(terraform.start.run_id, LinesLogged(lines)))
        if isinstance(event, TimePassed):
            for terraform in self.terraforms:
                if terraform.is_alive:
                    self._handle(OfRun(terraform.start.run_id, OthersSeen(int(terraform.has_providers))))
        return self._handle(event)

    def _handle(self, event: AgentEvent) -> Sequence[AgentInstruction]:
        instructions = self.agent.handle(event, self._now()) if self.is_alive else []
        for instruction in instructions:
            if self.dies_after is not None:
                if self.dies_after == 0:
                    self.die(_KILLED)
                self.dies_after -= 1
            if not self.is_alive:
                break
            self._carry_out(instruction)
        return instructions

    def time_passes(self) -> None:
        while self.is_alive and (at := self.agent.wake_at_s) is not None and at <= self._now():
            self.tell(TimePassed())

    def terminate(self, grace_s: float, *, is_heard: bool = True) -> None:
        """The kubelet's SIGTERM, which a process that has hardly begun ignores; its SIGKILL follows after the grace."""
        self.is_terminating = True
        self.killed_at = self._now() + grace_s
        if is_heard:
            self.tell(PodTerminating())

    def die(self, exit_code: int) -> None:
        """The kernel ends all of the container at once; what was in the termination log stays."""
        if not self.is_alive:
            return
        self.is_alive, self.exit_code, self.finished_at = False, exit_code, self._now()
        for terraform in self.terraforms:
            terraform.is_alive = terraform.has_providers = False
        for connection in self.connections.values():
            connection.is_open_at_agent = False
        self.jobs.clear()

    # ---- its sockets

    def connect(self, connection: Connection) -> None:
        self.connections[connection.number] = connection
        served = _Connection(socket=cast(Any, None), transport=None, peer="", frames=cast(Any, connection))
        self._server._connections[connection.number] = served
        self.tell(OperatorConnected(connection.number))

    def hang_up(self, connection: Connection) -> None:
        if self.connections.pop(connection.number, None) is not None:
            connection.is_open_at_agent = False
            del self._server._connections[connection.number]
            self.tell(OperatorDisconnected(connection.number))

    def receive(self, connection: Connection) -> bool:
        """The next frame of an operator; False where none can arrive."""
        if not (self.is_alive and connection.is_open_at_agent and connection.to_agent):
            return False
        command = connection.commands.feed(connection.to_agent.popleft())
        if command is not None:
            self._witness.command_arrives(self, command)
            self._witness.command_was_obeyed(self, command, self.tell(CommandReceived(connection.number, command)))
        return True

    # ---- its adapters

    def finish(self, job: int, *, well: bool = True) -> None:
        """One answer of an adapter; `well=False`: that it could not do what it should."""
        run_id, what = self.jobs.pop(job)
        if what.startswith(READING):
            self.tell(CredentialsRead(what.removeprefix(READING), "" if well else "the API server does not answer"))
        elif what == "restore":
            self.tell(RoomRestored(run_id, "" if well else "a file can't be removed"))
        else:
            self.tell(OfRun(run_id, self._answer(run_id, what, well)))

    def _answer(self, run_id: str, what: str, well: bool) -> RunEvent:
        terraform = self._terraform(run_id)
        match what:
            case "prepare":
                approval = self.starts[run_id].approval
                plan = approval.plan if approval is not None else None
                if plan is not None and plan.digest != digest_of(plan.run_id):
                    return PreparationFailed(PLAN_EXPIRED, "this is not the plan that was approved")
                frees_locks = self.starts[run_id].backend is None
                return RunPrepared("", frees_locks) if well else PreparationFailed("SourceInvalid", "no such source")
            case "exit":
                assert terraform is not None
                return ProcessExited(terraform.exit_code)
            case "freeze":
                return TerraformFrozen(terraform is not None and terraform.has_lock)
            case "sweep":
                return SweepEmptied(0)
            case "stalled sweep":
                return SweepStalled((7,))
            case "drain":
                return OutputDrained(well)
            case "keep-plan":
                return PlanKept(digest_of(run_id), ARCHITECTURE) if well else PlanKept(reason="PlanNotKept")
            case "keep":
                return StateKept("" if well else "the API server does not answer")
            case _:
                if well:
                    self._locks.release(self.starts[run_id])
                is_held = terraform is not None and terraform.has_lock
                return AftermathChecked(Lock(condition=LockCondition.HELD, id=run_id) if is_held else _FREE)

    def terraform_goes_on(self, exit_code: int = 0) -> bool:
        """It has its next turn, or ends by something else than its work; False where none can."""
        for terraform in self.terraforms:
            if terraform.fail(exit_code) if exit_code else terraform.go_on():
                if not terraform.is_alive:
                    self.jobs.append((terraform.start.run_id, "exit"))
                return True
        return False

    def _terraform(self, run_id: str) -> Terraform | None:
        return next((t for t in reversed(self.terraforms) if t.start.run_id == run_id), None)

    # ---- what its core wants

    def _carry_out(self, instruction: AgentInstruction) -> None:
        match instruction:
            case ForRun(run_id=run_id, instruction=for_run):
                self._carry_out_for(run_id, for_run)
            case SendHello(connection=connection):
                self._server.send(connection, self._hello(instruction))
            case Answer(connection=connection, message=message):
                self._server.send(connection, message)
            case RestoreRoom(run_id=run_id):
                self.jobs.append((run_id, "restore"))
            case Exit():
                self.die(0)
            case _:
                assert_never(instruction)

    def _carry_out_for(self, run_id: str, instruction: RunInstruction) -> None:
        terraform = self._terraform(run_id)
        match instruction:
            case PrepareRun(start=start):
                self._witness.run_begins(self, start)
                self.starts[run_id] = start
                self.jobs.append((run_id, "prepare"))
            case AbandonPreparation():
                self.jobs = [job for job in self.jobs if job not in ((run_id, "prepare"), (run_id, "keep-plan"))]
            case ExecTerraform(step=step):
                start = self.starts[run_id]
                self._witness.terraform_starts(self, start, step)
                self.terraforms.append(Terraform(start, step, self.name, self._locks, self.temper))
            case InterruptTerraform() if terraform is not None:
                terraform.interrupt()
            case ThawTerraform() if terraform is not None:
                terraform.is_frozen = False
            case KillTerraform() if terraform is not None:
                if terraform.is_alive:
                    terraform.exit(-9)
                    self.jobs.append((run_id, "exit"))
            case KillProviders() if terraform is not None:
                terraform.kill_providers()
            case FreezeTerraform():
                if terraform is not None:
                    terraform.is_frozen = terraform.is_alive
                self.jobs.append((run_id, "freeze"))
            case Sweep():
                self._sweep(run_id)
            case DrainOutput():
                self.jobs.append((run_id, "drain"))
            case KeepState():
                self.jobs.append((run_id, "keep"))
            case KeepPlan():
                self.jobs.append((run_id, "keep-plan"))
            case ReadCredentials(refresh=refresh):
                self.jobs.append((run_id, READING + refresh))
            case CheckAftermath():
                self.jobs.append((run_id, "aftermath"))
            case SendReport(report=report):
                if report.result is not None:
                    self._witness.end_is_told(self, run_id)
                self._server.send_to_all(report)
            case WriteTerminationMessage(report=report, key=key):
                self._witness.run_ended(self, report)
                self.message = signing.seal(report, key).decode()
            case LeaveToKernel():
                self.die(70)
            case _:
                pass

    def _sweep(self, run_id: str) -> None:
        """It kills at once, within its own bound; its answer may be late: then only that of the next one counts."""
        self.jobs = [job for job in self.jobs if job not in ((run_id, "sweep"), (run_id, "stalled sweep"))]
        if self.stalled_sweeps:
            self.stalled_sweeps -= 1
            self.jobs.append((run_id, "stalled sweep"))
            return
        for terraform in self.terraforms:
            if terraform.is_alive:
                terraform.exit(-9)
                self.jobs.append((terraform.start.run_id, "exit"))
            terraform.has_providers = False
        self.jobs.append((run_id, "sweep"))

    def _hello(self, hello: SendHello) -> Hello:
        return Hello(
            protocol_version=1,
            agent_version="0",
            namespace=self.namespace,
            pod_name=self.name,
            pod_uid=self.uid,
            boot_id=f"boot-{self.uid}",
            highest_epoch=hello.highest_epoch,
            runs=hello.runs,
            used=hello.used,
            spares_apply=True,
            leaves=True,
            architecture=ARCHITECTURE,
            refreshed=hello.refreshed,
        )

    # ---- what its kubelet would say

    def container_status(self) -> Json:
        what = {"name": "agent", "containerID": self.container_id, "imageID": self.image_id}
        if self.is_alive:
            return what | {"state": {"running": {}}}
        ended = {
            "containerID": self.container_id,
            "exitCode": self.exit_code,
            "message": self.message,
            "finishedAt": timestamp(self.finished_at),
        }
        return what | {"state": {"terminated": ended}}
