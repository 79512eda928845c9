"""How many strangers wait at a port of the agent, how long, and who goes first.

Real agents are in tests/agent_terraform/test_attacks.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from terrahalt_agent.adapters import doorway as module
from terrahalt_agent.adapters.doorway import Doorway
from terrahalt_agent.adapters.trust import server_context
from tests.agent_terraform.certificates import Authority, an_authority
from tests.backends import a_free_port, is_free

BOUND = 8


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Knocker:
    """One connection, from the client's side."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    async def come_in(self, context: ssl.SSLContext | None) -> None:
        name = "agent" if context else None
        self.reader, self.writer = await asyncio.open_connection(sock=self.socket, ssl=context, server_hostname=name)

    async def is_heard(self) -> bool:
        self.writer.write(b"hello")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                return await self.reader.readexactly(5) == b"hello"
        return False

    async def was_hung_up(self) -> None:
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(self.socket, 1) == b""


class Street:
    """Those who knock at one door."""

    def __init__(self, door: Doorway, port: int, authority: Authority) -> None:
        self.door, self.port, self.authority = door, port, authority
        self.knockers: list[Knocker] = []

    async def knock(self, source: str = "127.0.0.1") -> Knocker:
        made = socket.socket()
        made.setblocking(False)
        made.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        self.knockers.append(Knocker(made))
        return self.knockers[-1]

    async def close(self) -> None:
        self.door.close()
        for each in self.knockers:
            if hasattr(each, "writer"):
                each.writer.close()
                with contextlib.suppress(OSError):
                    await each.writer.wait_closed()
            each.socket.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return an_authority(tmp_path)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", BOUND)
    # So that nobody is hung up for being slow, unless a test says otherwise.
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)


@asynccontextmanager
async def a_street(authority: Authority, *, is_guarded: bool = True) -> AsyncIterator[Street]:
    door = Doorway(Echo, server_context(authority.ca, "agent") if is_guarded else None)
    street = Street(door, door.open("127.0.0.1", 0), authority)
    try:
        yield street
    finally:
        await street.close()


async def test_one_stranger_too_many_sends_the_oldest_of_the_largest_crowd_away(authority: Authority) -> None:
    async with a_street(authority) as street:
        operator = await street.knock("127.0.0.1")
        crowd = [await street.knock("127.0.0.2") for _ in range(BOUND - 1)]
        another = await street.knock("127.0.0.3")
        await crowd[0].was_hung_up()
        latest = [await street.knock("127.0.0.2") for _ in range(3)]
        for gone in crowd[1:4]:
            await gone.was_hung_up()
        for stays in (operator, another, crowd[4], latest[-1]):
            await stays.come_in(authority.client_context())
            assert await stays.is_heard()


async def test_those_that_come_all_at_once_are_hung_up_too(authority: Authority) -> None:
    """They are taken from the backlog one after another, without a pause for anything that the first ones need."""
    async with a_street(authority) as street:
        at_once = []
        for _ in range(3 * BOUND):
            made = socket.create_connection(("127.0.0.1", street.port))
            made.setblocking(False)
            at_once.append(Knocker(made))
        street.knockers += at_once
        for gone in at_once[: 2 * BOUND]:
            await gone.was_hung_up()
        await at_once[-1].come_in(authority.client_context())
        assert await at_once[-1].is_heard()


async def test_who_was_let_in_stays_and_is_no_stranger_any_more(authority: Authority) -> None:
    async with a_street(authority) as street:
        friends = []
        for _ in range(2 * BOUND):
            friends.append(await street.knock())
            await friends[-1].come_in(authority.client_context())
            assert await friends[-1].is_heard()
        for _ in range(2 * BOUND):
            await street.knock()
        assert [await each.is_heard() for each in friends] == [True] * len(friends)


async def test_who_has_no_certificate_of_the_operators_authority_is_not_heard(
    authority: Authority, tmp_path: Path
) -> None:
    async with a_street(authority) as street:
        for context in (
            authority.client_context(with_certificate=False),
            an_authority(tmp_path, "stranger").client_context(),
        ):
            stranger = await street.knock()
            with contextlib.suppress(OSError):  # in TLS 1.3 the client learns of it later
                await stranger.come_in(context)
                assert not await stranger.is_heard()


@pytest.mark.parametrize("is_guarded", [True, False], ids=["with TLS", "plain"])
async def test_nobody_waits_longer_than_an_operator_would(
    authority: Authority, is_guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    async with a_street(authority, is_guarded=is_guarded) as street:
        await (await street.knock()).was_hung_up()


async def test_where_no_certificate_is_asked_for_everybody_is_heard(authority: Authority) -> None:
    async with a_street(authority, is_guarded=False) as street:
        for _ in range(3 * BOUND):
            somebody = await street.knock()
            await somebody.come_in(None)
            assert await somebody.is_heard()


async def test_a_connection_that_can_not_be_taken_closes_the_door_to_nobody(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept: Callable[[socket.socket], object] = loop.sock_accept
    failures = iter([OSError(errno.EMFILE, "too many open files"), OSError(errno.ECONNABORTED, "gone")])

    async def accept_or_fail(listening: socket.socket) -> object:
        if (failure := next(failures, None)) is not None:
            raise failure
        return await accept(listening)  # type: ignore[misc]

    monkeypatch.setattr(loop, "sock_accept", accept_or_fail)
    async with a_street(authority, is_guarded=False) as street:
        somebody = await street.knock()
        await somebody.come_in(None)
        assert await somebody.is_heard()


def free_in_all(addresses: dict[str, socket.AddressFamily]) -> int:
    return a_free_port(lambda port: all(is_free(port, *each) for each in addresses.items()))


def addresses_here() -> dict[str, socket.AddressFamily]:
    """Not every machine has IPv6."""
    families = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
    return {address: family for address, family in families.items() if is_free(0, address, family)}


async def test_a_pod_of_both_families_is_reached_in_both() -> None:
    door, addresses = Doorway(Echo, None), addresses_here()
    port = free_in_all(addresses)
    door.open(None, port)
    try:
        for address in addresses:
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()
    finally:
        door.close()


@pytest.mark.parametrize("taken", addresses_here().items(), ids=lambda taken: taken[0])
async def test_a_port_that_is_taken_in_one_family_is_told(taken: tuple[str, socket.AddressFamily]) -> None:
    """Whoever looks for the agent there would find another."""
    port = free_in_all(addresses_here())
    with socket.create_server((taken[0], port), family=taken[1]), pytest.raises(OSError, match="in use"):
        Doorway(Echo, None).open(None, port)


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Doorway(Echo, None).open("127.0.0.1", taken.getsockname()[1])
