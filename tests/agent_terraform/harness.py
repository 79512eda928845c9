"""A real agent process, a small operator that talks to it, and a look at what really runs.

The operator here only sends what a test says, and remembers what came. Whether a process is alive is
asked of /proc, by a mark that each run's children carry and by their parentage, never of a report.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from terrahalt_protocol.codec import FromAgentDecoder, encode
from terrahalt_protocol.messages import (
    Ack,
    Action,
    Cancel,
    CancelMode,
    CancelReason,
    Command,
    FromAgent,
    Hello,
    Refused,
    Report,
    Result,
    Source,
    Start,
    Step,
    TaskRef,
)
from terrahalt_protocol.signing import report_key
from tests import engine
from tests.agent_terraform.certificates import Authority
from tests.cluster import programs, tool

ROOT = Path(__file__).resolve().parents[2]
RUN_ID = "01JTESTRUN"
KEY = report_key(b"a secret of the installation", RUN_ID)
PATIENCE_S = 60.0
ROWS_MET = Counter[str]()
"""Rows of the table of ends, by what they say was observed: how many runs of this session each has decided."""
_READY = re.compile(r"is ready: control on port (\d+), health on port (\d+)")


@functools.cache
def program() -> Path:
    """The engine that the suite runs with; nobody's build is waited for where it is there."""
    return programs.found(programs.PROGRAMS[engine.NAME]) or tool(engine.NAME)


@dataclass
class AgentProcess:
    process: asyncio.subprocess.Process
    folder: Path
    authority: Authority
    control_port: int = 0
    health_port: int = 0

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def module(self) -> Path:
        return self.work / RUN_ID / "module"

    @property
    def states(self) -> Path:
        return self.folder / "states"

    @property
    def termination_message(self) -> str:
        return (self.folder / "termination-log").read_text()

    def descendants(self) -> list[int]:
        """Every process below the agent: it is their subreaper, so nothing gets away from it."""
        return descendants(self.process.pid)

    async def freeze(self) -> None:
        """SIGSTOP, and until it has taken effect."""
        self.process.send_signal(signal.SIGSTOP)
        await self.until(lambda: state_of(self.process.pid) == "T")

    async def ended(self, within_s: float = PATIENCE_S) -> int:
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def until_logged(self, pattern: str, within_s: float = PATIENCE_S) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            if (found := re.search(pattern, self.log)) is None and self.process.returncode is not None:
                raise AssertionError(f"the agent has ended:\n{self.log}")
            return found

        found = await self.until(look, within_s)
        assert isinstance(found, re.Match)
        return found

    async def until(self, condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
        return await until(condition, within_s)


async def until(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """For what no event tells: processes and files."""
    async with asyncio.timeout(within_s):
        while True:
            if found := condition():
                return found
            await asyncio.sleep(0.005)


@asynccontextmanager
async def an_agent(
    folder: Path, authority: Authority, stdout: int | None = None, /, **env: str
) -> AsyncIterator[AgentProcess]:
    """Ends it, and all that runs below it, whatever the test did. With `stdout` it is the test that writes its log."""
    for name in ("work", "states"):
        (folder / name).mkdir(exist_ok=True)
    base = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    ours = {
        "PYTHONPATH": f"{ROOT}/protocol/src:{ROOT}/agent_image/src:{ROOT}",
        "TERRAHALT_POD_NAME": "agent-0",
        "TERRAHALT_POD_NAMESPACE": "team-a",
        "TERRAHALT_POD_UID": "pod-uid",
        "TERRAHALT_OPERATOR_CA": authority.ca,
        "TERRAHALT_ENGINE": engine.TYPE,
        "TERRAHALT_ENGINE_PATH": str(program()),
        "TERRAHALT_LISTEN_HOST": "127.0.0.1",
        "TERRAHALT_CONTROL_PORT": "0",
        "TERRAHALT_HEALTH_PORT": "0",
        "TERRAHALT_WORK": str(folder / "work"),
        "TERRAHALT_BACKEND": "Local",
        "TERRAHALT_LOCAL_STATES": str(folder / "states"),
        "TERRAHALT_TERMINATION_LOG": str(folder / "termination-log"),
        "TERRAHALT_IDENTITY_TOKEN_FILE": str(folder / "token"),
    }
    (folder / "token").write_text("a-projected-token")
    rows = folder / "rows"
    rows.unlink(missing_ok=True)
    with (folder / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.agent_terraform.recording_agent",
            str(rows),
            env=base | ours | env,
            stdin=subprocess.DEVNULL,
            stdout=log if stdout is None else stdout,
            stderr=log,
        )
    agent = AgentProcess(process, folder, authority)
    try:
        ready = await agent.until_logged(_READY.pattern)
        agent.control_port, agent.health_port = int(ready[1]), int(ready[2])
        yield agent
    finally:
        for pid in agent.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.returncode is None:
            process.kill()
        await process.wait()
        if rows.exists():
            ROWS_MET.update(rows.read_text().splitlines())


def api_access(folder: Path, authority: Authority, url: str) -> dict[str, str]:
    """What an agent's environment and folder need so that it asks the API server there."""
    (folder / "sa-token").write_text("t")
    (folder / "sa-ca").write_text(authority.ca)
    return {
        "TERRAHALT_API_URL": url,
        "TERRAHALT_API_TOKEN_FILE": str(folder / "sa-token"),
        "TERRAHALT_API_CA_FILE": str(folder / "sa-ca"),
    }


@dataclass
class Operator:
    """One connection. `reports` are those that came, in order."""

    socket: aiohttp.ClientWebSocketResponse
    epoch: int = 1
    received: list[FromAgent] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def hello(self) -> Hello:
        assert isinstance(self.received[0], Hello)
        return self.received[0]

    @property
    def reports(self) -> list[Report]:
        return [message for message in self.received if isinstance(message, Report)]

    @property
    def refusals(self) -> list[Refused]:
        return [message for message in self.received if isinstance(message, Refused)]

    async def send(self, command: Command) -> None:
        for frame in encode(command):
            await self.socket.send_str(frame)

    async def start(self, files: dict[str, str], **fields: Any) -> None:
        await self.send(a_start(files, **({"epoch": self.epoch} | fields)))

    async def cancel(self, mode: CancelMode = CancelMode.GRACEFUL, **fields: Any) -> None:
        fields = {"reason": CancelReason.USER, "run_id": RUN_ID, "report_key": KEY} | fields
        await self.send(Cancel(epoch=self.epoch, mode=mode, **fields))

    async def ack(self, run_id: str = RUN_ID) -> None:
        await self.send(Ack(epoch=self.epoch, run_id=run_id))

    async def until(self, condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
        """Looks again with each message."""
        async with asyncio.timeout(within_s):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
            return found

    async def until_step(self, step: Step) -> None:
        await self.until(lambda: any(report.step is step for report in self.reports))

    async def result(self, within_s: float = PATIENCE_S) -> Result:
        final = await self.final_report(within_s)
        assert final.result is not None
        return final.result

    async def final_report(self, within_s: float = PATIENCE_S) -> Report:
        final = await self.until(lambda: [r for r in self.reports if r.result is not None], within_s)
        assert isinstance(final[0], Report)
        return final[0]

    async def read(self) -> None:
        decoder = FromAgentDecoder()
        async for frame in self.socket:
            if (message := decoder.feed(frame.data)) is not None:
                self.received.append(message)
                self._changed.set()


@asynccontextmanager
async def an_operator(agent: AgentProcess, epoch: int = 1) -> AsyncIterator[Operator]:
    url = f"wss://127.0.0.1:{agent.control_port}/control"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, ssl=agent.authority.client_context()) as socket,
    ):
        operator = Operator(socket, epoch)
        reader = asyncio.create_task(operator.read())
        try:
            await operator.until(lambda: operator.received)
            yield operator
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader


def a_start(files: dict[str, str], **fields: Any) -> Start:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "run_id": RUN_ID,
        "task": TaskRef(namespace="team-a", name="network", uid="task-uid"),
        "action": Action.APPLY,
        "workspace": "network",
        "source": Source(inline=files),
        "report_key": KEY,
    }
    return Start(**(defaults | fields))


def descendants(root: int, *, with_zombies: bool = False) -> list[int]:
    """Processes below `root`, those too whose parent is a zombie: it keeps them until its last thread is gone."""
    parents, zombies = dict[int, int](), set[int]()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                parents[int(name)] = int(fields[1])
                if fields[0] == b"Z":
                    zombies.add(int(name))
    found, todo = [], [root]
    while todo:
        parent = todo.pop()
        below = [pid for pid, its in parents.items() if its == parent]
        found += below
        todo += below
    return found if with_zombies else [pid for pid in found if pid not in zombies]


def state_of(pid: int) -> str:
    """As the kernel calls it: "T" is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def running(mark: str) -> list[int]:
    """Processes anywhere on this machine whose command line holds `mark`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def command_lines(pids: list[int]) -> list[str]:
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def freeze_provider(agent: AgentProcess, name: str) -> None:
    for pid in agent.descendants():
        if any(f"terraform-provider-{name}" in line for line in command_lines([pid])):
            os.kill(pid, signal.SIGSTOP)
            return
    raise AssertionError(f"no provider {name} is alive")


@asynccontextmanager
async def somebody_who_never_answers() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A port, and the event that somebody has asked there."""
    asked = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writers.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextmanager
def a_held_lock(states: Path, workspace: str = "network") -> Iterator[None]:
    """Somebody else works on the state: terraform waits for its lock, up to -lock-timeout."""
    state = states / f"{workspace}.tfstate"
    info = states / f".{workspace}.tfstate.lock.info"
    who = {"ID": "1", "Operation": "OperationTypeApply", "Who": "somebody@else", "Created": "2026-01-01T00:00:00Z"}
    with state.open("a") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        info.write_text(json.dumps(who))  # without it terraform gives up at once
        yield
        info.unlink(missing_ok=True)
