"""What whoever can reach an agent's ports, or write a task for it, tries: the agent stays small, and halts its run.

Each with a real agent process, at work on a real run where that matters. What a pod of its own is needed for is
in tests/e2e/test_trust.py and tests/e2e/test_attacks.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import resource
import socket
import ssl
import struct
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from terrahalt_agent.adapters.doorway import MAX_STRANGERS, PATIENCE_S
from terrahalt_protocol.codec import encode
from terrahalt_protocol.messages import Outcome
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import AgentProcess, Operator, a_start, an_agent, an_operator
from tests.agent_terraform.modules import local_exec, sleeping

pytestmark = pytest.mark.terraform

MIB = 1024 * 1024
ROOM_BYTES = 48 * MIB
"""What an attack may cost an agent at most: 64 TLS connections that say nothing are 25 MiB."""
STRANGER = "127.0.0.2"
"""Another address of this machine than the operator's."""


def peak_bytes(agent: AgentProcess) -> int:
    """The most memory that it has ever had."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_sockets(agent: AgentProcess, port: int) -> int:
    """Established ones at this port, as the kernel counts them; whoever has them."""
    ours = f"0100007F:{port:04X}"
    lines = Path(f"/proc/{agent.process.pid}/net/tcp").read_text().splitlines()[1:]
    return sum(fields[1] == ours and fields[3] == "01" for fields in (line.split() for line in lines))


@contextmanager
def room_for_sockets() -> Iterator[None]:
    """Before the agent is started, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def roomy_agent(tmp_path: Path, authority: Authority) -> AsyncIterator[AgentProcess]:
    with room_for_sockets():
        async with an_agent(tmp_path, authority) as started:
            yield started


async def knock(port: int, source: str = STRANGER) -> socket.socket:
    """A connection that says nothing."""
    made = socket.socket()
    made.setblocking(False)
    made.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    return made


@asynccontextmanager
async def a_crowd(port: int, count: int, source: str = STRANGER) -> AsyncIterator[None]:
    """Connections that are kept open, as far as the other side lets them."""
    with contextlib.ExitStack() as kept:
        for _ in range(count // 100):
            for made in await asyncio.gather(*(knock(port, source) for _ in range(100))):
                kept.callback(made.close)
        yield


def holds_few(agent: AgentProcess, port: int) -> bool:
    return open_sockets(agent, port) <= MAX_STRANGERS + 1


@pytest.mark.parametrize(
    ("count", "source"),
    [(10_000, STRANGER), (1_000, "127.0.0.1")],
    ids=["10000 from elsewhere", "1000 from the operator's own address"],
)
async def test_a_crowd_of_connections_costs_an_agent_little_and_its_run_is_cancelled_all_the_same(
    roomy_agent: AgentProcess, count: int, source: str
) -> None:
    agent = roomy_agent
    async with an_operator(agent) as first:
        await first.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
    before = peak_bytes(agent)
    async with a_crowd(agent.control_port, count, source):
        await agent.until(lambda: holds_few(agent, agent.control_port), 20)
        async with an_operator(agent) as operator:
            await operator.cancel()
            result = await operator.result(20)
            assert holds_few(agent, agent.control_port)
            assert agent.descendants() == []
    assert result.outcome is Outcome.CANCELLED
    assert peak_bytes(agent) - before < ROOM_BYTES


async def test_a_crowd_at_the_health_port_costs_little_and_readiness_is_still_told(
    roomy_agent: AgentProcess,
) -> None:
    agent = roomy_agent
    before = peak_bytes(agent)
    async with a_crowd(agent.health_port, 1_000):
        await agent.until(lambda: holds_few(agent, agent.health_port), 20)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{agent.health_port}/readyz") as response,
        ):
            assert response.status == 200
    assert peak_bytes(agent) - before < ROOM_BYTES


async def test_who_says_its_hello_a_byte_at_a_time_is_cut_off_at_both_ports(agent: AgentProcess) -> None:
    """A slow loris: neither a handshake nor a request is waited for longer than an operator would wait."""

    async def drip(port: int, text: bytes) -> float:
        begun_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        closed = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            for byte in text:
                writer.write(bytes([byte]))
                await writer.drain()
                if (await asyncio.wait([closed], timeout=0.1))[0]:
                    break
        with contextlib.suppress(ConnectionError):
            await closed
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return time.monotonic() - begun_s

    request = b"GET /readyz HTTP/1.1\r\n" + b"X-Slow: " + b"x" * 500
    took_s = await asyncio.gather(drip(agent.control_port, client_hello()), drip(agent.health_port, request))
    assert [PATIENCE_S - 0.5 < each < PATIENCE_S + 5 for each in took_s] == [True, True], took_s


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="agent").do_handshake()
    return outgoing.read()


async def test_a_frame_of_a_gigabyte_is_refused_at_its_first_bytes(agent: AgentProcess) -> None:
    """From somebody with the operator's own certificate: the size is believed, and nothing of it is read."""
    before, sent = peak_bytes(agent), 0
    async with an_operator(agent) as operator:
        connection = operator.socket._conn
        assert connection is not None
        assert connection.transport is not None
        await operator.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
        header = bytes([0x81, 0x80 | 127]) + struct.pack(">Q", 1024 * MIB) + b"\0\0\0\0"
        connection.transport.write(header)
        async with asyncio.timeout(20):
            while not connection.transport.is_closing() and sent < 1024 * MIB:
                connection.transport.write(b"x" * MIB)
                sent += MIB
                await asyncio.sleep(0)
    assert sent < 1024 * MIB
    assert peak_bytes(agent) - before < ROOM_BYTES
    async with an_operator(agent) as again:
        await again.cancel()
        assert (await again.result()).outcome is Outcome.CANCELLED
    assert agent.descendants() == []


async def test_a_message_in_parts_that_never_ends_is_refused(agent: AgentProcess) -> None:
    before = peak_bytes(agent)
    async with an_operator(agent) as operator:
        for index in range(1000):
            part = f'{{"type":"Part","index":{index},"count":1000000000,"text":"{"x" * 4000}"}}'
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await operator.socket.send_str(part)
        await operator.until(lambda: operator.refusals)
    assert "grew over" in operator.refusals[0].message
    assert peak_bytes(agent) - before < ROOM_BYTES


async def test_an_operator_that_reads_nothing_for_ever_is_cut_off_and_costs_little(agent: AgentProcess) -> None:
    async with an_operator(agent) as deaf, an_operator(agent) as operator:
        await operator.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
        before = peak_bytes(agent)
        connection = deaf.socket._conn
        assert connection is not None
        transport = connection.transport
        assert transport is not None
        transport.pause_reading()
        # Each is refused, with an answer that nobody takes.
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            async with asyncio.timeout(60):
                while "does not read" not in agent.log:
                    await deaf.start({"main.tf": ""}, run_id="../out")
        await agent.until_logged("does not read: its connection is closed")
        assert peak_bytes(agent) - before < ROOM_BYTES
        await operator.cancel()
        assert (await operator.result()).outcome is Outcome.CANCELLED
        transport.resume_reading()


@asynccontextmanager
async def an_eavesdropper(port: int, heard: list[bytes]) -> AsyncIterator[int]:
    """Between operator and agent: passes all on, and keeps what the operator said."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if keep:
                    heard.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_agent, from_us = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, from_us, True), pass_on(to_agent, writer, False))

    async with await asyncio.start_server(between, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_what_an_operator_once_said_can_not_be_said_again_by_somebody_who_heard_it(
    tmp_path: Path, authority: Authority
) -> None:
    heard: list[bytes] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with an_agent(tmp_path / "first", authority) as agent:
        async with an_eavesdropper(agent.control_port, heard) as port:
            between = AgentProcess(agent.process, agent.folder, authority, control_port=port)
            async with an_operator(between) as operator:
                await operator.start({"main.tf": ""})
                await operator.result()
        said = b"".join(heard)
        assert said
        connected = agent.log.count(" connected")
        # To this agent, and to one that would take a run.
        async with an_agent(tmp_path / "second", authority) as another:
            for victim in (agent, another):
                reader, writer = await asyncio.open_connection("127.0.0.1", victim.control_port)
                writer.write(said)
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(10):
                        assert b"Hello" not in await reader.read()
                writer.close()
            assert "operator at" not in another.log
            async with an_operator(another) as operator:
                assert operator.hello.runs == ()
        assert agent.log.count(" connected") == connected == 1


async def test_a_frame_that_comes_twice_starts_one_run(agent: AgentProcess, tmp_path: Path) -> None:
    """The very bytes of a Start, on the same connection, on another one, and after the run has ended."""
    frames = encode(a_start({"main.tf": local_exec(f"echo ran >> {tmp_path}/runs")}))

    async def say(operator: Operator) -> None:
        for frame in frames:
            await operator.socket.send_str(frame)

    async def is_heard(operator: Operator) -> None:
        """All that it has said."""
        await operator.start({"main.tf": ""}, run_id="../out")
        await operator.until(lambda: operator.refusals)

    async with an_operator(agent) as operator, an_operator(agent) as another:
        for each in (operator, operator, another):
            await say(each)
        await operator.result()
        await say(another)
        await say(operator)
        for each in (operator, another):
            await is_heard(each)
    assert (tmp_path / "runs").read_text() == "ran\n"


READS_MEMORY = Path(__file__).with_name("reads_memory.py")


async def test_what_terraform_starts_reads_nothing_of_the_agents_memory_environment_or_files(
    tmp_path: Path, authority: Authority
) -> None:
    async with (
        an_agent(tmp_path, authority, TRIAL_NO_CAPABILITIES="1") as agent,
        an_operator(agent) as operator,
    ):
        await operator.start({"main.tf": local_exec(f"{sys.executable} {READS_MEMORY} {agent.process.pid}")})
        assert (await operator.result()).outcome is Outcome.SUCCEEDED, agent.log
        said = re.findall(r"\(local-exec\): (READ|refused) (\w+)", agent.log)
    assert said == [("refused", n) for n in ("environ", "mem", "maps", "auxv", "cwd", "exe", "fd", "ptrace")]


async def test_a_run_that_uses_up_the_pods_processes_is_cancelled_all_the_same(
    tmp_path: Path, authority: Authority
) -> None:
    """As a fork bomb does it; where one really does, tests/e2e/test_attacks.py sees it."""
    no_more = tmp_path / "no-more-threads"
    async with (
        an_agent(tmp_path, authority, TRIAL_NO_THREADS_ONCE=str(no_more)) as agent,
        an_operator(agent) as operator,
    ):
        no_more.touch()
        await operator.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
        await operator.cancel()
        assert (await operator.result()).outcome is Outcome.CANCELLED
        assert agent.descendants() == []


def an_archive(members: dict[str, str], links: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, text in members.items():
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text.encode()))
    return packed.getvalue()


@asynccontextmanager
async def a_download(content: bytes) -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content)

    application = web.Application()
    application.router.add_get("/module.tar.gz", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/module.tar.gz"
    finally:
        await runner.cleanup()


MODULE = 'output "x" { value = "x" }'


@pytest.mark.parametrize("way", ["../" * 8 + "{outside}/escaped.tf", "link/escaped.tf", "harmless/inside.tf"])
async def test_a_modules_archive_writes_nothing_outside_of_its_place(
    agent: AgentProcess, operator: Operator, tmp_path: Path, way: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    name = way.format(outside=str(outside).lstrip("/"))
    archive = an_archive({"main.tf": MODULE, name: MODULE}, {"link": str(outside)} if "link" in way else {})
    async with a_download(archive) as url:
        await operator.start({"main.tf": f'module "m" {{ source = "{url}" }}'})
        result = await operator.result()
    assert list(outside.iterdir()) == []
    if "harmless" in way:
        assert result.outcome is Outcome.SUCCEEDED, agent.log
        assert list(agent.module.rglob("inside.tf"))
    else:
        assert result.outcome is Outcome.FAILED
