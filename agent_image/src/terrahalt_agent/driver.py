"""Feeds the core with events and carries out what it says: the one place where both meet.

Events are handled one at a time, on the event loop's thread, in the order in which they happened; before
each one the log of the live process is read up to now, so that no decision rests on old lines.
Decides nothing. An exception here is our bug: it ends the agent, and the kernel then ends what ran.
It has more than 500 lines because each instruction of the core is carried out here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, assert_never

import msgspec

from terrahalt_agent import __version__
from terrahalt_agent.adapters.backend import WORKSPACE_VARIABLE, Backends
from terrahalt_agent.adapters.clean_room import CleanRoom, UncleanError
from terrahalt_agent.adapters.cluster_api import ApiError
from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.kept_logs import KeptLogs
from terrahalt_agent.adapters.kept_plans import KeptPlans, PlanExpiredError
from terrahalt_agent.adapters.log_tail import LogTail
from terrahalt_agent.adapters.outputs import PublishedSecrets
from terrahalt_agent.adapters.pod_log import PodLog
from terrahalt_agent.adapters.process import ChildProcess, Said, ask
from terrahalt_agent.adapters.resources import Resources
from terrahalt_agent.adapters.secret_parts import TooLargeError
from terrahalt_agent.adapters.termination_log import keep_room, reserve_room, write_final_report
from terrahalt_agent.adapters.workdir import Environment, PreparationError, Workdir, plan_archive
from terrahalt_agent.aftermath import Aftermath
from terrahalt_agent.core.agent import Agent
from terrahalt_agent.core.backend import BackendError
from terrahalt_agent.core.classify import PLAN_EXPIRED
from terrahalt_agent.core.commands import argv, as_planned
from terrahalt_agent.core.events import (
    AgentEvent,
    CredentialsRead,
    ExecFailed,
    LinesLogged,
    OfRun,
    OthersSeen,
    OutputDrained,
    OutputsPublished,
    PlanKept,
    PreparationFailed,
    ProcessExited,
    ProvidersShared,
    ResourcesSeen,
    RoomRestored,
    RunEvent,
    RunPrepared,
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
    PublishOutputs,
    ReadCredentials,
    RestoreRoom,
    RunInstruction,
    SendHello,
    SendReport,
    ShareProviders,
    Sweep,
    ThawTerraform,
    WriteTerminationMessage,
)
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.outputs import OutputsError
from terrahalt_agent.core.outputs import read as read_outputs
from terrahalt_agent.core.redaction import Redactor
from terrahalt_agent.core.terraform_log import is_chatter, parse, readable
from terrahalt_agent.execution import Execution
from terrahalt_protocol.messages import (
    PROTOCOL_VERSION,
    FromAgent,
    Hello,
    OutputsTo,
    Report,
    Start,
    Step,
)

_POLL_S = 0.02
_REAP_PAUSE_S = 0.1
_WATCH_S = 0.25
_CHUNKS_BEFORE_EVENT = 8
_FAR_BEHIND_BYTES = 32 * 1024 * 1024
"""terraform can log 40 MB in a second, and nobody reads 110,000 lines as fast as that."""
_LEFT_TO_KERNEL_CODE = 70
_RESTORE_S = 60.0
"""Of removing what a run has left: a fresh agent is there sooner."""
_MAX_SHOWN_CHARS = 1_000_000
"""Of a plan as people read it."""
_log = logging.getLogger(__name__)


class Outbox(Protocol):
    def send(self, connection_id: int, message: FromAgent) -> None: ...

    def send_to_all(self, message: FromAgent) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    namespace: str
    pod_name: str
    pod_uid: str
    boot_id: str
    token_file: Path
    architecture: str


class Driver:
    def __init__(
        self,
        agent: Agent,
        *,
        identity: Identity,
        engine: str,
        program: str,
        workdir: Workdir,
        backends: Backends,
        aftermath: Aftermath,
        plans: KeptPlans,
        outputs: PublishedSecrets,
        logs: KeptLogs | None,
        descendants: Descendants,
        resources: Resources,
        pod_log: PodLog,
        redactor: Redactor,
        room: CleanRoom,
        termination_log: str,
        times: Times,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`logs`: None outside of a cluster."""
        self._agent = agent
        self._identity = identity
        self._engine = engine
        self._program = program
        self._workdir = workdir
        self._backends = backends
        self._aftermath = aftermath
        self._plans = plans
        self._outputs = outputs
        self._logs = logs
        self._descendants = descendants
        self._resources = resources
        self._pod_log = pod_log
        self._redactor = redactor
        self._room = room
        self._termination_log = termination_log
        self._times = times
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._outbox: Outbox | None = None
        self._events: deque[AgentEvent] = deque()
        self._is_handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_reaping_soon = False
        self._connecting: asyncio.Task[None] | None = None
        """To the API server, as the end of a run is near."""
        self._reserving: asyncio.Task[None] | None = None
        """Until the disk has the room of the run's last report."""
        self._executions: dict[str, Execution] = {}
        self.exited: asyncio.Future[int] = self._loop.create_future()

    def connect(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def post(self, event: AgentEvent) -> None:
        """Handles it now, or after the one that is being handled; never raises."""
        if not (isinstance(event, OfRun) and isinstance(event.event, LinesLogged | OthersSeen)):
            self._read_logs()
        if isinstance(event, TimePassed):
            self._count_others()
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                for instruction in self._agent.handle(self._events.popleft(), self._loop.time()):
                    self._carry_out(instruction)
            self._set_timer()
        except Exception as error:
            if not self.exited.done():
                self.exited.set_exception(error)
        finally:
            self._is_handling = False

    def child_ended(self) -> None:
        """SIGCHLD: an orphan may have become ours to reap; a storm of them costs one scan per pause."""
        if not self._is_reaping_soon:
            self._is_reaping_soon = True
            self._loop.call_later(_REAP_PAUSE_S, self._reap)

    # -- instructions

    def _carry_out(self, instruction: AgentInstruction) -> None:
        match instruction:
            case ForRun(run_id=run_id, instruction=for_run):
                self._carry_out_for(run_id, for_run)
            case SendHello():
                self._send(instruction.connection, self._hello(instruction))
            case Answer(connection=connection, message=message):
                self._send(connection, self._redacted(message) if isinstance(message, Report) else message)
            case RestoreRoom(run_id=run_id):
                self._spawn(run_id, "restore", self._restore_room(run_id))
            case Exit():
                for execution in self._executions.values():
                    if execution.reading is not None:  # nobody needs it any more, nor may it hold up the end
                        execution.reading.cancel()
                for work in (self._connecting, self._reserving):
                    if work is not None:
                        work.cancel()
                if not self.exited.done():
                    self.exited.set_result(0)
            case _:
                assert_never(instruction)

    def _carry_out_for(self, run_id: str, instruction: RunInstruction) -> None:
        match instruction:
            case PrepareRun(start=start):
                self._pod_log.begin()
                reserve_room(self._termination_log, run_id)
                keeping = asyncio.to_thread(keep_room, self._termination_log)
                self._reserving = self._spawn(run_id, "reserve", keeping)
                execution = self._executions[run_id] = Execution(start, time.time())
                execution.preparation = self._spawn(run_id, "prepare", self._prepare(execution))
                self._watch(run_id)
            case AbandonPreparation():
                if (preparation := self._executions[run_id].preparation) is not None:
                    preparation.cancel()
            case ExecTerraform(step=step, in_default_workspace=in_default_workspace):
                self._exec(run_id, step, in_default_workspace)
            case InterruptTerraform():
                self._signal(run_id, signal.SIGINT)
                if self._logs is not None and (self._connecting is None or self._connecting.done()):
                    self._connecting = self._spawn(run_id, "get-ready", self._logs.get_ready())
            case ThawTerraform():
                self._signal(run_id, signal.SIGCONT)
            case KillTerraform():
                self._signal(run_id, signal.SIGKILL)
            case KillProviders():
                if (process := self._executions[run_id].process) is not None:
                    _log.info("run %s: %d processes beside the engine's were killed", run_id, process.kill_others())
            case FreezeTerraform():
                self._spawn(run_id, "freeze", self._freeze(run_id))
            case Sweep():
                execution = self._executions[run_id]
                execution.sweeps += 1
                self._spawn(run_id, "sweep", self._sweep(run_id, execution, execution.sweeps))
            case DrainOutput():
                self._spawn(run_id, "drain", self._drain(run_id))
            case ShareProviders():
                execution = self._executions[run_id]
                execution.preparation = self._spawn(run_id, "share", self._share_providers(execution))
            case KeepState():
                self._spawn(run_id, "keep", self._keep_state(run_id))
            case KeepPlan():
                execution = self._executions[run_id]
                execution.preparation = self._spawn(run_id, "keep-plan", self._keep_plan(execution))
            case CheckAftermath():
                self._spawn(run_id, "aftermath", self._check_aftermath(run_id, instruction))
            case PublishOutputs(to=to):
                execution = self._executions[run_id]
                execution.preparation = self._spawn(run_id, "publish", self._publish_outputs(execution, to))
            case ReadCredentials(refresh=refresh):
                execution = self._executions[run_id]
                execution.reading = self._spawn(run_id, "credentials", self._read_again(execution, refresh))
            case SendReport(report=report):
                self._send_report(run_id, report)
            case WriteTerminationMessage(report=report, key=key):
                if (ended := self._executions.get(run_id)) is not None:
                    self._workdir.forget_access(ended.start)
                write_final_report(self._termination_log, self._redacted(report), key)
            case LeaveToKernel(alive=alive):
                self._leave_to_kernel(run_id, alive)
            case _:
                assert_never(instruction)

    def _exec(self, run_id: str, step: Step, in_default_workspace: bool) -> None:
        execution = self._executions[run_id]
        prepared = execution.prepared
        assert prepared is not None
        if step is not Step.INIT:
            self._workdir.forget_access(execution.start)
        name, env = step.value.lower(), self._environment(execution)
        if step is Step.PLAN:
            execution.planned_with = env
        elif step is Step.APPLY and execution.planned_with is not None:
            env = as_planned(env, execution.planned_with, engine=self._engine)
        if in_default_workspace:
            name, env = f"{name}-default", {key: env[key] for key in env if key != WORKSPACE_VARIABLE}
        log = Path(prepared.paths.logs) / f"{name}.jsonl"
        try:
            log.touch(mode=0o600)
            execution.tail = LogTail(log)
            execution.process = ChildProcess(
                argv(
                    self._program,
                    step,
                    execution.start.action,
                    prepared.paths,
                    prepared.init_args,
                    lock_timeout_s=execution.start.lock_timeout_s,
                ),
                cwd=prepared.paths.module,
                env=env,
                log=log,
                descendants=self._descendants,
                on_exit=lambda exit_code: self._post_of(run_id, ProcessExited(exit_code)),
            )
        except OSError as error:
            text = f"{self._program} could not be started: {error.strerror or error} ({error.filename or log})"
            self._post_of(run_id, ExecFailed(text))
            return
        self._loop.call_later(_POLL_S, self._poll, execution.tail)

    def _signal(self, run_id: str, number: signal.Signals) -> None:
        if (process := self._executions[run_id].process) is not None:
            process.send(number)

    async def _prepare(self, execution: Execution) -> None:
        start = execution.start
        try:
            self._redactor.add([start.report_key])
            credentials = await self._read_credentials(execution)
            execution.backend = await self._backends.of(start, lambda words: self._ask(execution, words))
            self._redactor.add(execution.backend.secrets)
            approved = start.approval.plan if start.approval is not None else None
            plan = await self._plans.fetch(approved) if approved is not None else None
            inputs = await self._workdir.read_variables(start) if plan is None else None
            execution.inputs = plan.secrets if plan is not None else inputs.secrets if inputs is not None else ()
            self._redactor.add(execution.inputs)
            secret = await self._workdir.read_source_secret(start)
            self._redactor.add(secret.texts)
            execution.prepared = await self._workdir.prepare(
                start, credentials, execution.backend, plan, inputs, secret
            )
        except PlanExpiredError as error:
            self._post_of(start.run_id, PreparationFailed(PLAN_EXPIRED, str(error)))
        except PreparationError as error:
            self._post_of(start.run_id, PreparationFailed(error.reason, str(error)))
        except BackendError as error:
            self._post_of(start.run_id, PreparationFailed("BackendInvalid", f"backend: {error}"))
        except Exception as error:
            _log.exception("run %s: preparing failed", start.run_id)
            self._post_of(start.run_id, PreparationFailed("AgentError", f"preparing failed: {error!r}"))
        else:
            backend = execution.backend
            command = backend.lock_command(start.workspace)
            prepared = RunPrepared(
                execution.prepared.commit, backend.frees_locks, command, self._workdir.shares_providers
            )
            self._post_of(start.run_id, prepared)

    async def _read_credentials(self, execution: Execution) -> Environment:
        """Raises PreparationError. Of two reads at once the one counts that began last."""
        execution.reads_begun += 1
        number = execution.reads_begun
        found = await self._workdir.read_environment(execution.start)
        self._redactor.add(found.secrets)  # what was known before stays: a process that runs still has it
        if number > execution.credentials_read:
            execution.credentials, execution.credentials_read = found, number
        return found

    async def _read_again(self, execution: Execution, refresh: str) -> None:
        problem = ""
        try:
            await self._read_credentials(execution)
        except PreparationError as error:
            problem = self._redactor.redact(str(error))
        except Exception as error:  # it must not end the run
            _log.exception("run %s: its credentials could not be read again", execution.start.run_id)
            problem = f"reading failed: {type(error).__name__}"
        else:
            _log.info("run %s: its credentials were read again", execution.start.run_id)
        self.post(CredentialsRead(refresh, problem))

    def _environment(self, execution: Execution) -> dict[str, str]:
        """Of a process that is started now."""
        assert execution.credentials is not None
        assert execution.backend is not None
        return self._workdir.environment(execution.start, execution.credentials, execution.backend)

    async def _freeze(self, run_id: str) -> None:
        execution = self._executions[run_id]
        if execution.process is not None:
            await execution.process.freeze(self._times.freeze_s / 2)
        until_s = self._loop.time() + self._times.freeze_s / 2
        look = asyncio.create_task(self._aftermath.has_lock(execution, self._times.freeze_s / 2))
        while self._read_log(run_id, execution):
            if self._loop.time() > until_s:
                break
            await asyncio.sleep(0)
        self._post_of(run_id, TerraformFrozen(await look))

    async def _sweep(self, run_id: str, execution: Execution, number: int) -> None:
        swept = await asyncio.to_thread(self._descendants.sweep, self._times.sweep_s)
        if number != execution.sweeps:
            return  # given up for another one; so late, it could be taken for the answer of one after the next step
        if swept.alive:
            self._post_of(run_id, SweepStalled(swept.alive))
            return
        if swept.killed:
            _log.info("run %s: %d processes that were left behind were killed", run_id, swept.killed)
        self._post_of(run_id, SweepEmptied(swept.killed))

    async def _drain(self, run_id: str) -> None:
        """Nobody writes any more: the end of the file is the end of the log."""
        execution, until_s = self._executions[run_id], self._loop.time() + self._times.drain_s
        is_whole = True
        while self._read_log(run_id, execution):
            if self._loop.time() > until_s:
                is_whole = False
                break
            await asyncio.sleep(0)
        if execution.tail is not None:
            self._post_lines(run_id, execution.tail.rest())
            is_whole = is_whole and not execution.tail.may_miss_lines
            execution.tail.close()
            execution.tail = None
        self._post_of(run_id, OutputDrained(is_whole))

    async def _share_providers(self, execution: Execution) -> None:
        assert execution.prepared is not None
        await self._workdir.share_providers(execution.prepared)
        self._post_of(execution.start.run_id, ProvidersShared())

    async def _keep_state(self, run_id: str) -> None:
        self._post_of(run_id, await self._aftermath.keep_state(self._executions[run_id]))

    async def _keep_plan(self, execution: Execution) -> None:
        run_id, prepared = execution.start.run_id, execution.prepared
        assert prepared is not None
        try:
            said = await self._ask(execution, ["show", "-no-color", prepared.paths.plan])
            text = self._redactor.redact(said)[:_MAX_SHOWN_CHARS]
            for line in text.splitlines():
                self._pod_log.line(line)
            archive = await asyncio.to_thread(plan_archive, prepared, text, execution.inputs)
            digest = await self._plans.keep(archive, execution.start)
        except TooLargeError as error:
            text = f"the plan is too large to be kept until it is approved: {error}; split the workspace"
            self._post_of(run_id, PlanKept(reason="PlanTooLarge", problem=text))
        except (ApiError, OSError) as error:
            text = f"the plan could not be kept until it is approved: {error}"
            self._post_of(run_id, PlanKept(reason="PlanNotKept", problem=text))
        else:
            self._post_of(run_id, PlanKept(digest, self._identity.architecture))

    async def _check_aftermath(self, run_id: str, check: CheckAftermath) -> None:
        execution = self._executions[run_id]
        known, log_kept = self._pod_log.given, False
        if self._aftermath.has_little_to_say(execution, check):
            checked, log_kept = await asyncio.gather(
                self._aftermath.check(execution, check), self._keep_log(execution.start)
            )
            is_whole = self._pod_log.given == known or not log_kept
        else:
            checked, is_whole = await self._aftermath.check(execution, check), False
        if not is_whole:
            log_kept = await self._keep_log(execution.start) or log_kept
        self._post_of(run_id, dataclasses.replace(checked, log_kept=log_kept))

    async def _keep_log(self, start: Start) -> bool:
        """All that was logged until now."""
        if self._logs is None:
            return False
        try:
            async with asyncio.timeout(self._times.keep_log_s):
                await asyncio.to_thread(self._pod_log.flush, self._times.keep_log_s / 3)
                await self._logs.keep(await asyncio.to_thread(self._pod_log.packed), start)
        except (ApiError, TimeoutError) as error:
            _log.warning("run %s: its log is not kept: %s", start.run_id, str(error) or "there was no time for it")
            return False
        except Exception:  # it must not cost the look at the lock
            _log.exception("run %s: its log is not kept", start.run_id)
            return False
        return True

    async def _publish_outputs(self, execution: Execution, to: OutputsTo) -> None:
        run_id, prepared = execution.start.run_id, execution.prepared
        assert prepared is not None
        logs = Path(prepared.paths.logs)
        errors = logs / "output-errors.log"
        try:
            said = await self._hear(execution, ["output", "-json", "-no-color"], errors)
            if said.exit_code != 0:
                why = "in time" if said.exit_code is None else errors.read_text(errors="replace")
                raise OutputsError(f"{self._program} output did not tell them {why}")
            outputs = await asyncio.to_thread(read_outputs, said.text, include_sensitive=to.include_sensitive)
            await self._outputs.publish(outputs, to, execution.start)
        except (OutputsError, ApiError, OSError) as error:
            told = OutputsPublished(problem=" ".join(str(error).split()))
        else:
            told = OutputsPublished(len(outputs.values))
        finally:
            (logs / "output.log").unlink(missing_ok=True)  # it has the sensitive ones, too
        self._post_of(run_id, told)

    async def _ask(self, execution: Execution, words: Sequence[str]) -> str:
        """What it says, on either output; empty where it did not end in time, or could not be started."""
        try:
            return (await self._hear(execution, words)).text
        except OSError as error:
            _log.warning("%s %s could not be started: %s", self._program, words[0], error)
            return ""

    async def _hear(self, execution: Execution, words: Sequence[str], errors: Path | None = None) -> Said:
        """Raises OSError where it can't be started."""
        prepared = execution.prepared
        if prepared is None:
            return Said(None)
        return await ask(
            [self._program, *words],
            cwd=prepared.paths.module,
            env=self._environment(execution),
            log=Path(prepared.paths.logs) / f"{words[0]}.log",
            descendants=self._descendants,
            within_s=self._times.ask_s,
            sweep_s=self._times.sweep_s,
            errors=errors,
        )

    async def _restore_room(self, run_id: str) -> None:
        problem = ""
        if (reading := self._executions[run_id].reading) is not None:
            reading.cancel()  # else the secrets that it finds would outlive the run
        try:
            async with asyncio.timeout(_RESTORE_S):
                await asyncio.to_thread(self._room.restore)
        except (UncleanError, OSError, TimeoutError, RecursionError) as error:
            problem = str(error) or type(error).__name__
            _log.warning("run %s: this agent takes no other run, something of this one is left: %s", run_id, problem)
        else:
            del self._executions[run_id]
            self._redactor.forget()
        self.post(RoomRestored(run_id, problem))

    def _leave_to_kernel(self, run_id: str, alive: tuple[int, ...]) -> NoReturn:
        _log.error("run %s: processes %s can't be killed; the agent exits, so that the kernel ends them", run_id, alive)
        self._pod_log.flush(1.0)
        os._exit(_LEFT_TO_KERNEL_CODE)

    def _watch(self, run_id: str) -> None:
        """Memory and disk, for as long as the run is alive."""
        if self._agent.is_alive(run_id):
            self._post_of(run_id, ResourcesSeen(self._resources.memory(), self._resources.disk()))
            self._loop.call_later(_WATCH_S, self._watch, run_id)

    # -- the log of terraform

    def _poll(self, tail: LogTail) -> None:
        for run_id, execution in self._executions.items():
            if execution.tail is tail:
                has_more = self._read_log(run_id, execution)
                if self._agent.wants_look(run_id, self._loop.time()):
                    self._look_at_others(run_id, execution)
                self._loop.call_later(0 if has_more else _POLL_S, self._poll, tail)
                return

    def _read_logs(self) -> None:
        for run_id, execution in self._executions.items():
            for _ in range(_CHUNKS_BEFORE_EVENT):
                if not self._read_log(run_id, execution):
                    break

    def _read_log(self, run_id: str, execution: Execution) -> bool:
        """Whether there may be more."""
        if execution.tail is None:
            return False
        lines, has_more = execution.tail.read()
        if has_more and execution.tail.behind_bytes > _FAR_BEHIND_BYTES:
            told = [line for line in lines if not is_chatter(line)] or lines[-1:]  # one says that it is not silent
            self._pod_log.pass_over(len(lines) - len(told))
            lines = told
        self._post_lines(run_id, lines)
        return has_more

    def _post_lines(self, run_id: str, raw: list[bytes]) -> None:
        if not raw:
            return
        lines = tuple(parse(line) for line in raw)
        for line in lines:
            for text in readable(line):
                self._pod_log.line(text)
        self._post_of(run_id, LinesLogged(lines))

    def _count_others(self) -> None:
        """For the rungs that come by time; the first SIGINT does not wait for this look."""
        for run_id, execution in self._executions.items():
            self._look_at_others(run_id, execution)

    def _look_at_others(self, run_id: str, execution: Execution) -> None:
        if execution.process is not None and execution.process.is_alive:
            alive, is_busy = execution.process.look()
            self._post_of(run_id, OthersSeen(alive, is_busy))

    # -- what leaves the pod

    def _send_report(self, run_id: str, report: Report) -> None:
        redacted, execution = self._redacted(report), self._executions[run_id]
        if report.message != execution.last_message:
            execution.last_message = report.message
            result = report.result
            end = "" if result is None else result.reason if result.kept_plan else f"{result.outcome} ({result.reason})"
            head = f"{end}: " if end else ""
            _log.info("run %s: %s%s", run_id, head, report.message)
        if self._outbox is not None:
            self._outbox.send_to_all(redacted)

    def _send(self, connection: int, message: FromAgent) -> None:
        if self._outbox is not None:
            self._outbox.send(connection, message)

    def _redacted(self, report: Report) -> Report:
        redact, result = self._redactor.redact, report.result
        if result is not None:
            result = msgspec.structs.replace(
                result,
                message=redact(result.message),
                outputs=result.outputs
                and msgspec.structs.replace(result.outputs, problem=redact(result.outputs.problem)),
                open_addresses=tuple(redact(address) for address in result.open_addresses),
            )
        return msgspec.structs.replace(
            report,
            message=redact(report.message),
            resources_current=redact(report.resources_current),
            result=result,
        )

    def _hello(self, hello: SendHello) -> Hello:
        token = ""
        with contextlib.suppress(OSError):  # outside of a pod there is none
            token = self._identity.token_file.read_text().strip()
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            agent_version=__version__,
            namespace=self._identity.namespace,
            pod_name=self._identity.pod_name,
            pod_uid=self._identity.pod_uid,
            boot_id=self._identity.boot_id,
            identity_token=token,
            highest_epoch=hello.highest_epoch,
            runs=hello.runs,
            used=hello.used,
            spares_apply=True,
            leaves=True,
            architecture=self._identity.architecture,
            refreshed=hello.refreshed,
        )

    # -- plumbing

    def _post_of(self, run_id: str, event: RunEvent) -> None:
        self.post(OfRun(run_id, event))

    def _spawn(self, run_id: str, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=f"{what}-{run_id}")

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wake_at_s = self._agent.wake_at_s
        self._timer = None if wake_at_s is None else self._loop.call_at(wake_at_s, self.post, TimePassed())

    def _reap(self) -> None:
        self._is_reaping_soon = False
        self._descendants.reap_orphans()
