"""What becomes of an operator's process when its time is over, as real processes; how it is put together."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_operator import app
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.health import Health
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.core.model import CANCELLING, CancelStatus
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.errors import Refused, Unreachable
from terrahalt_operator.worklist import MANY, Worklist
from tests.operator_core import builders as b
from tests.operator_core.measured import samples

ONE_LIFE = """
import asyncio, os, threading
from terrahalt_operator import app

async def run(settings):
    print("lives as", os.getpid(), flush=True)
    ending = os.environ.pop("ENDING", str(app.ASKED))
    await asyncio.get_running_loop().run_in_executor(None, print, "has a thread")
    if ending == "error":
        threading.Thread(target=threading.Event().wait).start()
        raise ExceptionGroup("unhandled errors", [RuntimeError("of ours")])
    return int(ending)

app._run = run
app.main()
"""

BLOCKS = """
import ctypes, os
from terrahalt_operator import app

class Blocks(ctypes.Structure):  # as mallinfo2 tells: the fifth is how much of memory lies apart
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

async def run(settings):
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes, libc.mallinfo2.restype = ctypes.c_void_p, [ctypes.c_void_p], Blocks
    for block in [libc.malloc(256 * 1024) for _ in range(64)]:
        libc.free(block)
    before = libc.mallinfo2().e
    for _ in range(64):
        libc.malloc(256 * 1024)
    print(libc.mallinfo2().e - before, flush=True)
    return app.ASKED

app._run = run
app.main()
"""


def a_life(ending: int | str, script: str = ONE_LIFE) -> tuple[str, subprocess.Popen[str]]:
    """What it said, and the process, which has ended."""
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent", "ENDING": str(ending)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            return child.communicate(timeout=120)[0], child
        finally:
            child.kill()


@pytest.mark.parametrize(("ending", "lives", "code"), [(app.ASKED, 1, 0), (app.FAILED, 1, 1), (app.DEPOSED, 2, 0)])
def test_who_was_deposed_begins_anew_in_its_own_place_and_nobody_else_does(ending: int, lives: int, code: int) -> None:
    said, child = a_life(ending)
    assert said.splitlines() == [f"lives as {child.pid}", "has a thread"] * lives
    assert child.returncode == code


def test_an_error_of_ours_is_told_and_ends_the_process_whatever_thread_goes_on() -> None:
    said, child = a_life("error")
    assert "our own error; another operator goes on" in said
    assert "RuntimeError: of ours" in said
    assert child.returncode == app.FAILED


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not tell")
def test_large_blocks_lie_apart_also_after_some_were_given_back() -> None:
    said, _ = a_life(app.ASKED, BLOCKS)
    assert int(said) >= 32 * 256 * 1024, "a few may fill gaps that the imports have left, not most"


@pytest.mark.parametrize(("value", "scraper"), [(None, None), ("", None), ('{"podSelector":{}}', {"podSelector": {}})])
def test_who_may_scrape_agents_is_what_the_chart_says(
    monkeypatch: pytest.MonkeyPatch, value: str | None, scraper: dict[str, object] | None
) -> None:
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent"}
    for name, said in (settings | ({"TERRAHALT_AGENT_METRICS_FROM": value} if value is not None else {})).items():
        monkeypatch.setenv(name, said)
    assert app.Settings.from_environment().scraper == scraper


@pytest.mark.parametrize(("value", "namespace"), [(None, "system"), ("", "system"), ("claims", "claims")])
def test_claims_are_in_its_own_namespace_unless_the_chart_names_another(
    monkeypatch: pytest.MonkeyPatch, value: str | None, namespace: str
) -> None:
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent"}
    for name, said in (settings | ({"TERRAHALT_CLAIMS_NAMESPACE": value} if value is not None else {})).items():
        monkeypatch.setenv(name, said)
    found = app.Settings.from_environment()
    assert (found.namespace, found.claims_namespace) == ("system", namespace)


async def test_what_prometheus_asks_for_is_answered_from_the_first_moment_and_from_what_is_seen_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = app.Settings("system", "system", (), {}, "text", "operator-1", None)
    async with asyncio.TaskGroup() as group:
        stop = cast(Any, None)
        operator = app.Operator(settings, Cluster(cast(Any, None)), cast(Any, None), group, stop)
        told = samples(operator._metrics)
        assert told["terrahalt_leader"] == 0
        assert "terrahalt_watch_age_seconds" not in told
        monkeypatch.setattr(Leadership, "leads", True)
        assert samples(operator._metrics)["terrahalt_cancel_pending_seconds"] == 0

        cancel = CancelStatus(by="User", requested_at=timestamp(time.time() - 700))
        task = b.a_task(status=b.a_status(CANCELLING, cancel=cancel))
        operator._world = cast(Any, SimpleNamespace(tasks=SimpleNamespace(values={task.uid: task})))
        operator._watch = cast(Any, SimpleNamespace(last_event_s=12.5))
        told = samples(operator._metrics)
        assert (told["terrahalt_leader"], told["terrahalt_watch_age_seconds"]) == (1, 12.5)
        assert 700 <= told["terrahalt_cancel_pending_seconds"] < 760


class Life:
    """An operator among doubles: what it does, in order, and what it waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.refused = ""
        """What it may not list, whatever else it may."""
        self._has_done = asyncio.Event()
        self.listed, self.is_free, self.is_led, self.can_list, self.gets_lease = (asyncio.Event() for _ in range(5))
        self.looks_for_a_leader = asyncio.Event()
        life = self

        class OneLease:
            epoch = 1
            check = leads = None

            def __init__(self, *_: object) -> None:
                self.begun = asyncio.Event()

            async def follow(self) -> None:
                await asyncio.Event().wait()

            async def is_free(self, for_s: float) -> None:
                assert for_s == app.READY_ONES_FIRST_S
                await life.is_free.wait()

            async def is_led(self) -> None:
                life.looks_for_a_leader.set()
                await life.is_led.wait()

            async def stand(self) -> str:
                life._does("stands")
                await life.gets_lease.wait()
                self.begun.set()
                return await asyncio.Future()

            def resign(self) -> None:
                life._does("resigns")

            async def release(self) -> None:
                life._does("releases")

        class Trust:
            @staticmethod
            async def load(*_: object) -> object:
                return SimpleNamespace(ca_pem="")

        def watch(*_: object) -> object:
            return SimpleNamespace(start=lambda: self._does("watches"), stop=lambda: None, last_event_s=0.0)

        async def serve(_: object) -> None:
            return

        monkeypatch.setattr(app, "Leadership", OneLease)
        monkeypatch.setattr(app, "Trust", Trust)
        monkeypatch.setattr(app, "Watch", watch)
        monkeypatch.setattr(app, "TRY_AGAIN_AFTER_S", 0.001)
        monkeypatch.setattr(Health, "serve", serve)
        agents = SimpleNamespace(close=lambda: None)
        self.changes: asyncio.Queue[tuple[bool, dict[str, Any]]] = asyncio.Queue()
        world = SimpleNamespace(
            stand_by=lambda: None,
            see=self._sees,
            relist=self._lists,
            lead=self._lead,
            in_each_namespace=lambda ask: ask(None),
            agents=agents,
        )
        monkeypatch.setattr(app.Operator, "_make_world", lambda *_: world)
        monkeypatch.setattr(app.Operator, "_make_reconciler", lambda *_: SimpleNamespace(work=None))
        monkeypatch.setattr(app.Operator, "_begin_to_work", lambda *_: self._does("works"))

    def _sees(self, plural: str, is_gone: bool, obj: dict[str, Any]) -> None:
        self._does(f"sees {plural} {obj['name']}{' go' if is_gone else ''}")

    async def _lists(self) -> None:
        self._does("lists to stand by")
        try:
            await self.listed.wait()
        except asyncio.CancelledError:
            self._does("has stopped")
            raise

    async def _lead(self) -> None:
        self._does("lists to lead")
        await asyncio.sleep(0)

    async def _version(self, resource: tuple[str, str], namespace: object) -> str:
        assert (resource[1] == "leases") is (namespace == "claims")
        if not self.can_list.is_set() or resource[1] == self.refused:
            self._does("may not list")
            raise Refused(f"may not list {resource[1]}")
        return "7"

    async def _changes(
        self, resource: tuple[str, str], namespace: object, name: str, version: str, *, silence_s: float
    ) -> AsyncIterator[tuple[bool, dict[str, Any]]]:
        assert (resource[1], namespace, name, version) == ("terraformtasks", None, "", "7")
        while True:
            yield await self.changes.get()

    @asynccontextmanager
    async def lived(self) -> AsyncIterator[tuple[app.Operator, asyncio.Task[None]]]:
        """It is asked to end at the end."""
        cluster: Any = SimpleNamespace(guarded=lambda _: None, version=self._version, watch=self._changes)
        settings = app.Settings("system", "claims", (), {}, "text", "operator-1", None)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            operator = app.Operator(settings, cluster, cast(Any, None), group, lambda *_: None)
            running = group.create_task(operator.run())
            yield operator, running
            running.cancel()
            await operator.end()

    async def until(self, does: str, times: int = 1) -> None:
        while self.did.count(does) < times:
            self._has_done.clear()
            await self._has_done.wait()

    def _does(self, what: str) -> None:
        self.did.append(what)
        self._has_done.set()


async def test_who_finds_nobody_to_stand_by_for_lists_the_cluster_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of thousands takes seconds, and kopf's thread that sees them all for the first time more than that."""
    life = Life(monkeypatch)
    life.can_list.set()
    life.gets_lease.set()
    async with life.lived() as (operator, running):
        await life.until("lists to stand by")
        life.is_free.set()
        await running
        assert operator._health.is_ready
    assert life.did[:-2] == ["lists to stand by", "stands", "lists to lead", "has stopped", "watches", "works"]


@pytest.mark.parametrize("found_it_free", [False, True])
async def test_who_sees_another_one_lead_watches_and_is_ready_to_take_over(
    monkeypatch: pytest.MonkeyPatch, found_it_free: bool
) -> None:
    """Also where that one was quicker to take the Lease."""
    life = Life(monkeypatch)
    life.can_list.set()
    (life.is_free if found_it_free else life.listed).set()
    async with life.lived() as (operator, running):
        await life.until("stands")
        life.listed.set()
        await life.looks_for_a_leader.wait()
        assert not operator._health.is_ready
        life.is_led.set()
        await life.until("watches")
        assert operator._health.is_ready
        life.gets_lease.set()
        await running
    assert life.did[:-2] == ["lists to stand by", "stands", "watches", "lists to lead", "works"]


async def test_where_who_leads_is_not_seen_to_renew_nothing_is_watched_before_the_lease_is_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was killed, and nobody knows yet: kopf would see all for the first time while the cluster is listed."""
    life = Life(monkeypatch)
    life.can_list.set()
    life.listed.set()
    async with life.lived() as (operator, running):
        await life.until("stands")
        await life.looks_for_a_leader.wait()
        assert not operator._health.is_ready
        life.gets_lease.set()
        await running
        assert operator._health.is_ready
    assert life.did[:-2] == ["lists to stand by", "stands", "lists to lead", "watches", "works"]


async def test_a_change_of_a_task_is_seen_at_once_by_one_that_has_not_stood_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf tells of it when it has handed over all tasks, which takes seconds where there are thousands."""
    life = Life(monkeypatch)
    life.can_list.set()
    life.is_free.set()
    life.gets_lease.set()
    async with life.lived() as (_, running):
        life.changes.put_nowait((False, {"name": "dns"}))
        await life.until("sees terraformtasks dns")
        await running
        life.changes.put_nowait((True, {"name": "vpc"}))
        await life.until("sees terraformtasks vpc go")


async def test_a_watch_of_tasks_that_breaks_or_that_kopf_has_caught_up_with_ends_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def breaks() -> AsyncIterator[tuple[bool, dict[str, Any]]]:
        yield False, {"name": "dns"}
        raise Unreachable("gone")

    async def is_silent() -> AsyncIterator[tuple[bool, dict[str, Any]]]:
        yield False, {"name": "dns"}
        await asyncio.Event().wait()

    monkeypatch.setattr(app, "RELIST_INTERVAL_S", 0.01)
    for changes in (breaks, is_silent):
        seen = list[Any]()
        world = SimpleNamespace(see=lambda *what, seen=seen: seen.append(what))
        async with asyncio.timeout(10):
            await app._hand_over(cast(Any, changes()), cast(Any, world))
        assert seen == [("terraformtasks", False, {"name": "dns"})]


async def test_one_that_may_not_list_the_cluster_leaves_the_lease_to_one_that_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would renew it for ever, and decide nothing."""
    life = Life(monkeypatch)
    life.is_free.set()
    life.gets_lease.set()
    async with life.lived() as (_, running):
        await life.until("may not list", times=3)
        assert set(life.did) == {"lists to stand by", "may not list"}
        life.can_list.set()
        await running
    assert "works" in life.did


async def test_one_that_may_list_all_but_claims_where_they_are_leaves_the_lease_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody took away its Role there, or the namespace."""
    life = Life(monkeypatch)
    life.can_list.set()
    life.is_free.set()
    life.gets_lease.set()
    life.refused = "leases"
    async with life.lived() as (_, running):
        await life.until("may not list", times=3)
        assert "stands" not in life.did
        life.refused = ""
        await running
    assert "works" in life.did


async def test_it_looks_for_claims_where_they_are_and_lets_in_who_comes_from_where_it_is() -> None:
    settings = app.Settings("system", "claims", ("team-a",), {}, "text", "operator-1", None)
    trust = cast(Any, SimpleNamespace(ca_pem="CA", report_secret=b"secret"))
    async with asyncio.TaskGroup() as group:
        operator = app.Operator(settings, Cluster(cast(Any, None)), cast(Any, None), group, cast(Any, None))
        world = operator._make_world(trust)
        effects = operator._make_reconciler(world, trust)._effects
    assert (world.claims_namespace, effects._namespace) == ("claims", "system")
    assert world.claims.is_anothers(b.a_claim(b.a_task(namespace="team-b")))


@pytest.mark.parametrize("phase", ["lists to stand by", "stands", "works"])
async def test_one_that_is_asked_to_end_ends_in_each_phase(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    life = Life(monkeypatch)
    life.can_list.set()
    if phase != "lists to stand by":
        life.is_free.set()
    if phase == "works":
        life.gets_lease.set()
    async with life.lived():
        await life.until(phase)
    assert "releases" in life.did


async def test_a_cancel_goes_out_while_all_workers_wait_for_the_api_server() -> None:
    woken = [("cancel", "uid"), *(("task", str(number)) for number in range(app.WORKERS)), ("cancel", "another")]
    looked_at, has_looked, answer = list[Any](), asyncio.Condition(), asyncio.Event()

    async def work(key: Any) -> None:
        async with has_looked:
            looked_at.append(key)
            has_looked.notify_all()
        if key[0] == "task":
            await answer.wait()

    operator = object.__new__(app.Operator)
    operator._worklist, operator._urgent = Worklist(), Worklist(is_urgent=True)
    async with asyncio.TaskGroup() as group:
        operator._group, operator._workers = group, []
        operator._begin_to_work(work, work)
        for key in woken:
            operator._wake(key)
        async with asyncio.timeout(10), has_looked:
            await has_looked.wait_for(lambda: len(looked_at) == len(woken))
        answer.set()
        operator._worklist.close()
        operator._urgent.close()


async def test_of_many_cancels_the_last_one_goes_out_before_anything_is_begun_for_the_first() -> None:
    looked_at, all_is_done, count = list[Any](), asyncio.Event(), 10 * MANY

    async def work(key: Any) -> None:
        looked_at.append(key[0])
        if len(looked_at) == 2 * count:
            all_is_done.set()

    settings = app.Settings("system", "system", (), {}, "text", "operator-1", None)
    async with asyncio.TaskGroup() as group:
        operator = app.Operator(settings, Cluster(cast(Any, None)), cast(Any, None), group, cast(Any, None))
        for number in range(count):
            operator._wake(("cancel", str(number)))
            operator._wake(("task", str(number)))
        operator._begin_to_work(work, work)
        turns = 0
        while len(looked_at) < count:
            await asyncio.sleep(0)
            turns += 1
        assert turns <= count // app.URGENT_WORKERS + 5, "each urgent worker looks at one in each turn"
        async with asyncio.timeout(10):
            await all_is_done.wait()
        operator._worklist.close()
        operator._urgent.close()
    assert looked_at == ["cancel"] * count + ["task"] * count
