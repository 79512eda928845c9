"""The Lease is followed, taken, renewed, given back: the real adapter on one small API server, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import pytest

from terrahalt_operator.adapters.cluster import Json
from terrahalt_operator.adapters.leadership import SILENCE_S, Leadership
from terrahalt_operator.core.election import (
    LEASE_S,
    RENEW_DEADLINE_S,
    RENEW_INTERVAL_S,
    REQUEST_DEADLINE_S,
    SECOND_TRY_AFTER_S,
)
from terrahalt_operator.core.names import EPOCH_ANNOTATION
from terrahalt_operator.errors import AlreadyExists, Conflict, Deposed, NotFound, Unreachable
from tests.operator_core.merge import apply_merge_patch
from tests.operator_core.virtual_time import now, virtually

TAKES_S = 0.005
"""Each way of a request, and a watch's event."""


class Server:
    """One Lease, and whoever watches it."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.version = 100
        self.watches: list[asyncio.Queue[tuple[bool, Json]]] = []

    @property
    def holder(self) -> str:
        return str(self.lease["spec"].get("holderIdentity", "")) if self.lease else ""

    @property
    def epoch(self) -> int:
        assert self.lease is not None
        return int(self.lease["metadata"].get("annotations", {}).get(EPOCH_ANNOTATION, "0"))

    def put(self, obj: Json) -> Json:
        self.version += 1
        self.lease = apply_merge_patch(obj, {"metadata": {"resourceVersion": str(self.version)}})
        self._tell(False, self.lease)
        return self.lease

    def delete(self) -> None:
        assert self.lease is not None
        self.version += 1
        gone = apply_merge_patch(self.lease, {"metadata": {"resourceVersion": str(self.version)}})
        self.lease = None
        self._tell(True, gone)

    def _tell(self, is_gone: bool, obj: Json) -> None:
        for watch in self.watches:
            watch.put_nowait((is_gone, obj))


class Connection:
    """In the place of `Cluster`: one operator's way to the server, which may be cut or lose answers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_cut = False
        self.is_deaf = False
        """Its watch tells nothing any more."""
        self.to_hang = self.answers_to_lose = 0
        self.to_delay_s = 0.0
        """Once, the answer to what has been done."""
        self.writes = self.lists = 0
        self.deadline_s = 15.0
        self.takes_s = TAKES_S

    def within(self, deadline_s: float) -> Connection:
        self.deadline_s = deadline_s
        return self

    async def _request(self, act: Callable[[], Any]) -> Any:
        try:
            async with asyncio.timeout(self.deadline_s):
                return await self._answer(act)
        except TimeoutError:
            raise Unreachable("no answer") from None

    async def _answer(self, act: Callable[[], Any]) -> Any:
        if self.is_cut:
            await asyncio.Event().wait()
        if self.to_hang:
            self.to_hang -= 1
            await asyncio.Event().wait()
        await asyncio.sleep(self.takes_s)
        answer = act()
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            await asyncio.Event().wait()
        late_s, self.to_delay_s = self.to_delay_s, 0.0
        await asyncio.sleep(self.takes_s + late_s)
        return answer

    async def list(self, resource: Any, namespace: str, *, name: str) -> tuple[list[Json], str]:
        server = self.server
        self.lists += 1
        found: tuple[list[Json], str] = await self._request(
            lambda: ([server.lease] if server.lease else [], str(server.version))
        )
        return found

    async def create(self, resource: Any, namespace: str, body: Json) -> Json:
        def act() -> Json:
            if self.server.lease is not None:
                raise AlreadyExists("it is there")
            return self.server.put(body)

        return cast(Json, await self._request(act))

    async def patch(self, resource: Any, namespace: str, name: str, body: Json) -> Json:
        self.writes += 1

        def act() -> Json:
            if self.server.lease is None:
                raise NotFound("it is gone")
            if body["metadata"]["resourceVersion"] != self.server.lease["metadata"]["resourceVersion"]:
                raise Conflict("it changed")
            return self.server.put(apply_merge_patch(self.server.lease, body))

        return cast(Json, await self._request(act))

    async def watch(
        self, resource: Any, namespace: str, name: str, version: str, *, silence_s: float
    ) -> AsyncGenerator[tuple[bool, Json], None]:
        mine: asyncio.Queue[tuple[bool, Json]] = asyncio.Queue()
        self.server.watches.append(mine)
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        is_gone, obj = await mine.get()
                        if self.is_cut or self.is_deaf:
                            await asyncio.Event().wait()
                except TimeoutError:
                    raise Unreachable("silence") from None
                await asyncio.sleep(TAKES_S)
                if int(obj["metadata"]["resourceVersion"]) > int(version):
                    yield is_gone, obj
        finally:
            self.server.watches.remove(mine)


class Operator:
    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.connection = Connection(server)
        self.slept_s = 0.0
        """How far its clock is ahead of what its loop knows: it was frozen."""
        self.leadership = Leadership(cast(Any, self.connection), "ops", name, lambda: now() + self.slept_s)
        self.tasks = [
            asyncio.ensure_future(self.leadership.follow()),
            asyncio.ensure_future(self.leadership.stand()),
        ]

    @property
    def leads(self) -> bool:
        return self.leadership.leads

    async def until_it_leads(self) -> float:
        async with asyncio.timeout(60):
            await self.leadership.begun.wait()
        return now()

    async def terminate(self) -> None:
        self.leadership.resign()
        await self.leadership.release()
        await self.kill()

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def play(script: Callable[[Server, Operator, Operator], Awaitable[None]]) -> None:
    """`a` leads from the beginning, for a while; `b` stands by."""

    async def main() -> None:
        server = Server()
        a, b = Operator(server, "a"), Operator(server, "b")
        await a.until_it_leads()
        await asyncio.sleep(10)
        assert (a.leads, b.leads) == (True, False)
        try:
            await script(server, a, b)
        finally:
            for operator in (a, b):
                await operator.kill()

    virtually(main())


def test_the_first_one_waits_as_long_as_a_lease_lasts_and_begins_with_epoch_one() -> None:
    async def main() -> None:
        operator = Operator(Server(), "a")
        assert LEASE_S < await operator.until_it_leads() < LEASE_S + 0.1
        assert (operator.server.holder, operator.server.epoch, operator.leadership.epoch) == ("a", 1, 1)
        await operator.kill()

    virtually(main())


def test_who_leads_renews_and_who_stands_by_writes_nothing() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.connection.writes = b.connection.writes = 0
        epoch = server.epoch
        await asyncio.sleep(100)
        assert 90 <= a.connection.writes <= 100 / RENEW_INTERVAL_S
        assert b.connection.writes == 0
        assert (server.holder, server.epoch) == ("a", epoch)
        assert b.leadership.holder == "a"
        with pytest.raises(Deposed):
            b.leadership.check()

    play(script)


def test_a_hand_over_takes_as_long_as_its_three_requests() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        began, epoch = now(), server.epoch
        await a.terminate()
        assert await b.until_it_leads() - began < 6 * TAKES_S
        assert (server.holder, server.epoch) == ("b", epoch + 1)

    play(script)


def test_who_has_resigned_writes_and_commands_nothing_though_the_lease_is_its_own() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.leadership.resign()
        with pytest.raises(Deposed):
            a.leadership.check()
        assert await a.tasks[1] == ""
        assert (server.holder, b.leads) == ("a", False)

    play(script)


def test_who_is_killed_is_followed_before_five_seconds_have_passed() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        killed, epoch = now(), server.epoch
        await a.kill()
        assert LEASE_S - RENEW_INTERVAL_S < await b.until_it_leads() - killed < LEASE_S + 0.1
        assert (server.holder, server.epoch) == ("b", epoch + 1)

    play(script)


@pytest.mark.parametrize(("way", "free_after_s"), [("terminate", 0.0), ("kill", LEASE_S)])
def test_one_that_begins_knows_that_nobody_leads_a_moment_after_one_that_stands_by_would_have_begun(
    way: str, free_after_s: float
) -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        late = Leadership(cast(Any, Connection(server)), "ops", "late", now)
        following = asyncio.ensure_future(late.follow())
        free = asyncio.ensure_future(late.is_free(0.5))
        await asyncio.sleep(10)
        assert not free.done(), "a leads"
        await getattr(a, way)()
        await b.until_it_leads()
        await asyncio.sleep(10)
        assert not free.done(), "b leads"
        await getattr(b, way)()
        began = now()
        await free
        assert free_after_s - RENEW_INTERVAL_S < now() - began - 0.5 < free_after_s + 0.1
        following.cancel()

    play(script)


def test_one_that_begins_sees_that_another_one_leads_once_that_one_renews_or_takes_the_lease() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        late = Leadership(cast(Any, Connection(server)), "ops", "late", now)
        following = asyncio.ensure_future(late.follow())
        async with asyncio.timeout(RENEW_INTERVAL_S + 0.1):
            await late.is_led()
        await a.kill()
        led = asyncio.ensure_future(late.is_led())
        taken = await b.until_it_leads()
        await asyncio.sleep(0.1)
        assert led.done()
        assert now() - taken < RENEW_INTERVAL_S, "by that it was taken"
        following.cancel()

    play(script)


def test_whoever_has_taken_the_lease_itself_has_seen_nobody_lead() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        await a.kill()
        led = asyncio.ensure_future(b.leadership.is_led())
        await b.until_it_leads()
        await asyncio.sleep(3 * RENEW_INTERVAL_S)
        assert not led.done()
        led.cancel()

    play(script)


def test_who_is_cut_off_from_the_api_server_stops_before_the_other_begins() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.connection.is_cut, cut = True, now()
        why = await a.tasks[1]
        stopped = now()
        assert "not renewed" in str(why)
        assert RENEW_DEADLINE_S - RENEW_INTERVAL_S - 0.1 < stopped - cut <= RENEW_DEADLINE_S + REQUEST_DEADLINE_S
        assert not a.leads
        assert await b.until_it_leads() > stopped

    play(script)


def test_leadership_ends_with_the_deadline_even_while_a_renewal_hangs() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        while b.leadership.begun.is_set() is False:
            a.connection.is_cut = True
            await asyncio.sleep(0.05)
            assert not (a.leads and b.leads)
        assert not a.leads

    play(script)


def test_who_was_frozen_knows_at_once_that_it_does_not_lead() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.leadership.check()
        a.slept_s = 10.0
        with pytest.raises(Deposed):
            a.leadership.check()
        assert "not renewed" in str(await a.tasks[1])

    play(script)


def test_a_lease_that_somebody_deletes_stays_with_who_leads_and_its_epoch_too() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        for _ in range(3):
            epoch = server.epoch
            server.delete()
            await asyncio.sleep(0.1)
            assert (server.holder, server.epoch) == ("a", epoch)
            await asyncio.sleep(10)
            assert (a.leads, b.leads) == (True, False)

    play(script)


def test_an_answer_that_is_lost_costs_a_renewal_and_not_the_lease() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        epoch = server.epoch
        for _ in range(5):
            a.connection.answers_to_lose = 1
            await asyncio.sleep(5)
            assert (a.leads, b.leads) == (True, False)
        assert (server.holder, server.epoch) == ("a", epoch)

    play(script)


def test_it_goes_on_leading_while_each_answer_takes_almost_two_seconds() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.connection.takes_s, epoch = 0.95, server.epoch
        await asyncio.sleep(60)
        assert (a.leads, b.leads) == (True, False)
        assert (server.holder, server.epoch) == ("a", epoch)

    play(script)


def test_a_slow_answer_counts_although_the_second_try_found_the_lease_changed_before_it_came() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        epoch, a.connection.lists = server.epoch, 0
        for _ in range(5):
            a.connection.to_delay_s = SECOND_TRY_AFTER_S + 0.1
            await asyncio.sleep(5)
            assert a.connection.to_delay_s == 0
            assert (a.leads, b.leads) == (True, False)
        assert (server.holder, server.epoch, a.connection.lists) == ("a", epoch, 0)

    play(script)


def test_a_renewal_that_hangs_is_overtaken_by_another_one() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        for _ in range(5):
            a.connection.to_hang = 1
            await asyncio.sleep(5)
            assert a.connection.to_hang == 0
            assert (a.leads, b.leads) == (True, False)

    play(script)


def test_a_take_over_whose_answer_is_lost_is_one_all_the_same() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        await a.kill()
        b.connection.answers_to_lose = 1
        await b.until_it_leads()
        assert (server.holder, server.epoch) == ("b", b.leadership.epoch)
        await asyncio.sleep(10)
        assert b.leads

    play(script)


def test_it_is_released_although_the_answer_to_the_last_renewal_was_lost() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        assert server.lease is not None
        a.connection.is_deaf = True
        server.put(server.lease)  # as that renewal did
        await a.terminate()
        assert server.holder == ""
        assert server.epoch > 0

    play(script)


def test_who_can_not_look_what_has_become_of_the_lease_ends_all_the_same() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        assert server.lease is not None
        a.connection.is_deaf = True
        server.put(server.lease)  # so its release is refused

        async def cut_off(*_: Any, **__: Any) -> Any:
            raise Unreachable("no answer")

        a.connection.list = cut_off  # type: ignore[method-assign]
        await a.terminate()
        assert server.holder == "a"
        await b.until_it_leads()

    play(script)


def test_who_was_deposed_releases_nothing_of_the_others() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        a.connection.is_cut = True
        await b.until_it_leads()
        a.connection.is_cut = False
        await a.terminate()
        assert server.holder == "b"

    play(script)


def test_a_watch_that_hangs_is_given_up_and_harms_nobody() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        b.connection.is_deaf = True
        await asyncio.sleep(3 * SILENCE_S)
        assert (a.leads, b.leads) == (True, False)
        b.connection.is_deaf = False
        await asyncio.sleep(2 * SILENCE_S)
        await a.terminate()
        released = now()
        assert await b.until_it_leads() - released < 1

    play(script)


def test_an_epoch_that_an_agent_reports_is_gone_above_and_renewals_keep_it() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        await asyncio.sleep(RENEW_INTERVAL_S / 2)
        a.connection.writes = 0
        await asyncio.gather(a.leadership.raise_above(41), a.leadership.raise_above(7))
        assert (server.epoch, a.leadership.epoch, a.connection.writes) == (42, 42, 1)
        await a.leadership.raise_above(41)
        assert a.leadership.epoch == 42
        await asyncio.sleep(5)
        assert server.epoch == 42
        with pytest.raises(Deposed):
            await b.leadership.raise_above(100)

    play(script)


def test_8_who_leads_no_more_and_has_not_heard_so_ends_where_an_agent_tells_of_the_next_ones_epoch() -> None:
    """By its own clock its term goes on, and its watch is silent: the write of the higher epoch is refused."""

    async def script(server: Server, a: Operator, b: Operator) -> None:
        assert server.lease is not None
        a.connection.is_deaf = True
        taken = {"spec": {"holderIdentity": "b"}, "metadata": {"annotations": {EPOCH_ANNOTATION: "9"}}}
        server.put(apply_merge_patch(server.lease, taken))
        assert a.leads
        with pytest.raises(Deposed):
            await a.leadership.raise_above(9)
        assert (server.holder, server.epoch) == ("b", 9)
        assert await a.tasks[1] == "b leads"

    play(script)


def test_the_health_of_the_lease_is_how_long_ago_it_was_renewed() -> None:
    async def script(server: Server, a: Operator, b: Operator) -> None:
        assert b.leadership.renewal_age_s is None
        age_s = a.leadership.renewal_age_s
        assert age_s is not None
        assert 0 <= age_s <= RENEW_INTERVAL_S + 2 * TAKES_S
        a.connection.is_cut = True
        await asyncio.sleep(2)
        later_s = a.leadership.renewal_age_s
        assert later_s is not None
        assert later_s > 2

    play(script)
