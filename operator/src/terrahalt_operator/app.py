"""The composition root: what is made, in which order, and what ends the process.

One TaskGroup holds every task by name; nothing is fire-and-forget. A process stands by, leads once, and ends: on
SIGTERM, or where going on would be wrong (kopf died, its time as the leader is over). Another one leads on, and
finds everything again, because nothing is remembered here alone. Who was deposed begins anew in its own place; else
Kubernetes starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import aiohttp
import uvloop

from terrahalt_operator import __version__, logs
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.cluster import LEASES, PODS, POOLS, TASKS, Cluster
from terrahalt_operator.adapters.events import Events
from terrahalt_operator.adapters.health import Facts, Health
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.adapters.metrics import Metrics, Sights
from terrahalt_operator.adapters.trust import Trust
from terrahalt_operator.adapters.watch import Watch
from terrahalt_operator.core import measures
from terrahalt_operator.effects import Effects
from terrahalt_operator.errors import ClusterError
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.worklist import Key, Worklist
from terrahalt_operator.world import World

log = logging.getLogger(__name__)

WORKERS = 16
URGENT_WORKERS = 4
"""They only send frames."""
RELIST_INTERVAL_S = 60.0
RELIST_SOON_S = 15.0
"""A watch that begins after the list does not tell of what was deleted in between."""
READY_ONES_FIRST_S = 0.5
"""Whoever stands by takes a Lease that is free in a fraction of that."""
TRY_AGAIN_AFTER_S = 0.5
GIVES_WAY_AFTER_S = 0.0005
"""kopf's thread, to ours: what it computes of an event takes longer, and a cancel would wait for that."""
ASKED, FAILED, DEPOSED = 0, 1, 75
"""How a process ends; of several reasons the lowest counts."""
FINISH_WITHIN_S = 1.0
"""Of what is being written when it ends: an API server that is slower than that is not waited for."""


Work = Callable[[Key], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str
    """Where the operator itself lives: the leader's Lease, the trust Secret."""
    claims_namespace: str
    """The same, or one that several installations share, each with namespaces of its own."""
    watched: tuple[str, ...]
    """Empty: all namespaces."""
    agent_images: Mapping[str, str]
    """Engine -> image of its agents; what is missing here a pool has to name itself."""
    log_style: str
    instance: str
    scraper: Mapping[str, Any] | None
    """Who may read the agents' metrics, as a peer of their NetworkPolicies; None: nobody."""

    @classmethod
    def from_environment(cls) -> Settings:
        try:
            namespace, terraform = os.environ["TERRAHALT_NAMESPACE"], os.environ["TERRAHALT_AGENT_IMAGE"]
        except KeyError as error:
            sys.exit(f"{error.args[0]} is not set: the chart sets it; see charts/terrahalt/templates")
        watched = os.environ.get("TERRAHALT_WATCH_NAMESPACES", "")
        return cls(
            namespace=namespace,
            claims_namespace=os.environ.get("TERRAHALT_CLAIMS_NAMESPACE") or namespace,
            watched=tuple(n.strip() for n in watched.split(",") if n.strip()),
            agent_images={"Terraform": terraform, "OpenTofu": os.environ.get("TERRAHALT_AGENT_IMAGE_OPENTOFU", "")},
            log_style=os.environ.get("TERRAHALT_LOG_FORMAT", "text"),
            instance=os.environ.get("TERRAHALT_POD_NAME", "operator"),
            scraper=json.loads(os.environ.get("TERRAHALT_AGENT_METRICS_FROM") or "null"),
        )


M_MMAP_THRESHOLD = -3
"""As in malloc.h."""
APART_FROM_BYTES = 128 * 1024
"""glibc's own, to begin with."""


def main() -> None:
    settings = Settings.from_environment()
    logs.set_up(settings.log_style)
    sys.setswitchinterval(GIVES_WAY_AFTER_S)
    _keep_large_blocks_apart()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # full collections over all cached objects stall the loop for 50-70 ms
    try:
        ending = uvloop.run(_run(settings))
    except BaseException:
        log.exception("our own error; another operator goes on")
        ending = FAILED
    if ending == DEPOSED:
        # The kubelet would wait before it starts a container again, longer each time, up to five minutes: while a slow
        # API server deposes one after the other, there would be none.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    logging.shutdown()
    # No thread is waited for: kopf's, which an error leaves as they are, would never end.
    os._exit(ending)


async def _run(settings: Settings) -> int:
    """ASKED, FAILED or DEPOSED."""
    stopping = asyncio.Event()
    endings: list[int] = []

    def stop(ending: int, reason: str) -> None:
        endings.append(ending)
        log.info("stopping: %s", reason)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(stop, ASKED, number.name))

    cluster = await Cluster.connect()
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
            operator = Operator(settings, cluster, http, group, stop)
            running = group.create_task(operator.run(), name="operator")
            await stopping.wait()
            running.cancel()
            await operator.end()
    finally:
        await cluster.close()
    return min(endings)


class Operator:
    """One life: it stands by with all that it will need, leads once, and hands over."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        http: aiohttp.ClientSession,
        group: asyncio.TaskGroup,
        stop: Callable[[int, str], None],
    ) -> None:
        self._settings, self._cluster, self._http, self._group, self._stop = settings, cluster, http, group, stop
        # Another one of the same pod, after a crash, is another candidate.
        identity = f"{settings.instance}_{secrets.token_hex(4)}"
        # It goes on while the machine is suspended, unlike the loop's own.
        self._uptime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        self._leadership = Leadership(cluster, settings.namespace, identity, self._uptime)
        self._as_leader = cluster.guarded(self._leadership.check)
        self._events = Events(self._as_leader, settings.instance)
        self._worklist, self._urgent = Worklist(), Worklist(is_urgent=True)
        self._watch: Watch | None = None
        self._world: World | None = None
        self._metrics = Metrics(
            __version__,
            Sights(
                leads=lambda: self._leadership.leads,
                watch_age_s=lambda: None if self._watch is None else self._watch.last_event_s,
                cancel_pending_s=self._cancel_pending_s,
            ),
        )
        self._health = Health(self._facts, self._metrics.page)
        self._workers: list[asyncio.Task[None]] = []
        self._others: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until cancelled; what it has begun goes on until `end`."""
        self._others.append(self._spawn(self._health.serve(), name="health"))
        self._others.append(self._spawn(self._leadership.follow(), name="leader's lease"))
        namespace = self._settings.namespace
        trust = await _tried("read the trust Secret", lambda: Trust.load(self._cluster, namespace, time.time))
        self._world = world = self._make_world(trust)
        reconciler = self._make_reconciler(world, trust)
        world.stand_by()
        listing = self._spawn(_tried("list the cluster", world.relist), name="list")
        is_free = self._spawn(self._until_nobody_leads(world), name="nobody leads")
        standing_by = self._spawn(self._stand_by(world, listing), name="stand by")
        self._others += [listing, is_free, standing_by]
        # Where nobody leads, nobody is stood by for: what is listed now would be listed once more by who leads.
        await asyncio.wait((listing, is_free), return_when=asyncio.FIRST_COMPLETED)
        is_free.cancel()
        self._others.append(self._spawn(self._stand(), name="leadership"))
        await self._leadership.begun.wait()
        if self._watch is None:
            standing_by.cancel()
            await _tried("begin to watch tasks", partial(self._see_changes_at_once, world))
        await _tried("list the cluster", world.lead)
        if self._watch is None:
            self._begin_to_watch(world, relist_after_s=RELIST_SOON_S)
        log.info("operator %s leads with epoch %d", __version__, self._leadership.epoch)
        self._others.append(self._spawn(self._events.run(), name="events"))
        self._begin_to_work(self._metrics.timed(reconciler.work), reconciler.work)

    async def _stand_by(self, world: World, listing: asyncio.Task[None]) -> None:
        """Once somebody is seen to lead: who was killed holds the Lease for a while yet, and kopf, which sees all for
        the first time, would hold up the list of who leads next."""
        await listing
        await self._leadership.is_led()
        self._begin_to_watch(world)
        log.info("operator %s stands by", __version__)

    async def _until_nobody_leads(self, world: World) -> None:
        """One that can't list what it would need must not take the Lease: it would keep it."""
        await _tried("list the cluster", partial(self._try_to_list, world))
        await self._leadership.is_free(READY_ONES_FIRST_S)

    async def _try_to_list(self, world: World) -> None:
        async def try_in(namespace: str | None) -> None:
            for resource in (TASKS, POOLS, PODS):
                await self._cluster.version(resource, namespace)

        await world.in_each_namespace(try_in)
        await self._cluster.version(LEASES, self._settings.claims_namespace)

    def _begin_to_watch(self, world: World, relist_after_s: float = RELIST_INTERVAL_S) -> None:
        """kopf hands over all that there is first, and then each change."""
        self._watch = Watch(world.see, partial(self._stop, FAILED), self._settings.watched)
        self._watch.start()
        self._others.append(self._spawn(_relist_now_and_then(world, relist_after_s), name="relist"))
        self._health.is_ready = True

    async def _see_changes_at_once(self, world: World) -> None:
        """Of tasks, for RELIST_INTERVAL_S: of thousands kopf tells of no change before it has handed over all that
        there is, and a cancel would wait for that."""
        versions: dict[str | None, str] = {}

        async def begin(namespace: str | None) -> None:
            versions[namespace] = await self._cluster.version(TASKS, namespace)

        await world.in_each_namespace(begin)
        for namespace, version in versions.items():
            changes = self._cluster.watch(TASKS, namespace, "", version, silence_s=RELIST_INTERVAL_S)
            self._others.append(self._spawn(_hand_over(changes, world), name="changes"))

    def _begin_to_work(self, work: Work, urgent_work: Work) -> None:
        for number in range(WORKERS):
            self._workers.append(self._spawn(self._worklist.run_worker(work), name=f"worker {number}"))
        for number in range(URGENT_WORKERS):
            self._workers.append(self._spawn(self._urgent.run_worker(urgent_work), name=f"urgent worker {number}"))

    async def end(self) -> None:
        """Nothing new is written or commanded; what is under way may end; then the next one may lead."""
        self._leadership.resign()
        for task in self._others:
            task.cancel()
        self._worklist.close()
        self._urgent.close()
        if self._workers:
            await asyncio.wait(self._workers, timeout=FINISH_WITHIN_S)
        await self._leadership.release()
        for task in self._workers:
            task.cancel()
        if self._watch is not None:
            self._watch.stop()
        if self._world is not None:
            self._world.agents.close()

    async def _stand(self) -> None:
        if why := await self._leadership.stand():
            self._stop(DEPOSED, f"deposed: {why}")

    def _spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        return self._group.create_task(coroutine, name=name)

    def _facts(self) -> Facts:
        age_s = self._leadership.renewal_age_s
        return {
            "leads": self._leadership.leads,
            "epoch": self._leadership.epoch,
            "leader": self._leadership.holder,
            "renewalAgeSeconds": None if age_s is None else round(age_s, 3),
            "refusedNamespaces": ", ".join(sorted(self._world.refused)) if self._world is not None else "",
            "lastEventSeconds": None if self._watch is None else round(self._watch.last_event_s, 1),
        }

    def _cancel_pending_s(self) -> float:
        tasks = list(self._world.tasks.values.values()) if self._world is not None else []
        return measures.cancel_pending_s(tasks, time.time())

    def _make_world(self, trust: Trust) -> World:
        def agents(world: World) -> Agents:
            return Agents(
                trust=trust,
                cluster=self._as_leader,
                leadership=self._leadership,
                http=self._http,
                spawn=self._spawn,
                clock=time.time,
                changed=world.agent_changed,
                reported=world.agent_reported,
                pinned=world.pinned,
                had_run=world.had_run,
                deposed=lambda why: self._stop(DEPOSED, f"deposed: {why}"),
            )

        return World(
            cluster=self._cluster,
            agents=agents,
            trust=trust,
            leadership=self._leadership,
            claims_namespace=self._settings.claims_namespace,
            watched=self._settings.watched,
            agent_images=self._settings.agent_images,
            clock=time.time,
            uptime=self._uptime,
            wake=self._wake,
        )

    def _wake(self, key: Key) -> None:
        if key[0] == "cancel":
            self._worklist.make_way()
            self._urgent.wake(key)
        else:
            self._worklist.wake(key)

    def _make_reconciler(self, world: World, trust: Trust) -> Reconciler:
        effects = Effects(
            cluster=self._as_leader,
            world=world,
            worklist=self._worklist,
            namespace=self._settings.namespace,
            operator_ca=trust.ca_pem,
            clock=time.time,
            uptime=self._uptime,
            new_run_id=new_run_id,
            metrics=self._metrics,
            scraper=self._settings.scraper,
            tell=lambda task, phase, reason, note: self._events.tell(task, phase, reason, note, time.time()),
        )
        return Reconciler(
            world=world, effects=effects, worklist=self._worklist, leadership=self._leadership, clock=time.time
        )


def _keep_large_blocks_apart() -> None:
    """uvloop takes 256 KiB for each TLS connection and uses little of it. glibc gives each its own pages, so that the
    rest takes no memory, but only until the first was given back, unless it is told to go on. Other C libraries have no
    such setting."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, APART_FROM_BYTES)


T = TypeVar("T")


async def _tried(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Again and again: an API server that is away is no reason to end, and be started ever later."""
    while True:
        try:
            return await attempt()
        except ClusterError as error:
            log.warning("can't %s: %s; trying again in %s s", what, error, TRY_AGAIN_AFTER_S)
        await asyncio.sleep(TRY_AGAIN_AFTER_S)


async def _hand_over(changes: AsyncGenerator[tuple[bool, dict[str, Any]], None], world: World) -> None:
    """For RELIST_INTERVAL_S at most; where it ends before, kopf tells the same, and later."""
    try:
        async with contextlib.aclosing(changes), asyncio.timeout(RELIST_INTERVAL_S):
            async for is_gone, obj in changes:
                world.see(TASKS[1], is_gone, obj)
    except (ClusterError, TimeoutError) as error:
        log.debug("changes of tasks are told by kopf alone from now on: %s", error)


async def _relist_now_and_then(world: World, wait_s: float) -> None:
    while True:
        await asyncio.sleep(wait_s)
        wait_s = RELIST_INTERVAL_S
        try:
            await world.relist()
        except Exception as error:
            log.warning("can't list the cluster anew: %s; trying again in %s s", error, RELIST_INTERVAL_S)


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_run_id() -> str:
    """A ULID: 26 characters that sort by time, in Crockford's base 32."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))
