"""The composition root: what is made, in which order, and what ends the process.

One TaskGroup holds every task by name; nothing is fire-and-forget. The process ends on SIGTERM, or
where going on would be wrong (kopf died, another operator leads): Kubernetes starts it anew and the
next one finds everything again, because nothing is remembered here alone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import uvloop

from terrahalt_operator import __version__, logs
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.events import Events
from terrahalt_operator.adapters.health import Health
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.adapters.trust import Trust
from terrahalt_operator.adapters.watch import Watch
from terrahalt_operator.effects import Effects
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.worklist import Worklist
from terrahalt_operator.world import World

log = logging.getLogger(__name__)

WORKERS = 16
RELIST_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str
    """Where the operator itself lives: claims, the leader's Lease, the trust Secret."""
    watched: tuple[str, ...]
    """Empty: all namespaces."""
    agent_images: Mapping[str, str]
    """Engine -> image of its agents; what is missing here a pool has to name itself."""
    log_style: str
    instance: str

    @classmethod
    def from_environment(cls) -> Settings:
        try:
            namespace, terraform = os.environ["TERRAHALT_NAMESPACE"], os.environ["TERRAHALT_AGENT_IMAGE"]
        except KeyError as error:
            sys.exit(f"{error.args[0]} is not set: the chart sets it; see charts/terrahalt/templates")
        watched = os.environ.get("TERRAHALT_WATCH_NAMESPACES", "")
        return cls(
            namespace=namespace,
            watched=tuple(n.strip() for n in watched.split(",") if n.strip()),
            agent_images={"Terraform": terraform, "OpenTofu": os.environ.get("TERRAHALT_AGENT_IMAGE_OPENTOFU", "")},
            log_style=os.environ.get("TERRAHALT_LOG_FORMAT", "text"),
            instance=os.environ.get("TERRAHALT_POD_NAME", "operator"),
        )


def main() -> None:
    settings = Settings.from_environment()
    logs.set_up(settings.log_style)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # full collections over all cached objects stall the loop for 50-70 ms
    sys.exit(uvloop.run(_run(settings)))


async def _run(settings: Settings) -> int:
    """The exit code: 0 after SIGTERM, 1 where Kubernetes should start another."""
    stopping = asyncio.Event()
    reasons: list[str] = []

    def stop(reason: str, *, failed: bool) -> None:
        if failed:
            reasons.append(reason)
        log.info("stopping: %s", reason)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(stop, number.name, failed=False))

    cluster = await Cluster.connect()
    try:
        leadership = Leadership(cluster, settings.namespace, settings.instance)
        await leadership.take_over()
        trust = await Trust.load(cluster, settings.namespace, time.time)
        log.info("operator %s leads with epoch %d", __version__, leadership.epoch)
        events = Events(cluster, settings.instance)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:

            def spawn(coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
                return group.create_task(coroutine, name=name)

            def agents(world: World) -> Agents:
                return Agents(
                    trust=trust,
                    cluster=cluster,
                    leadership=leadership,
                    http=http,
                    spawn=spawn,
                    clock=time.time,
                    changed=world.agent_changed,
                    pinned=world.pinned,
                    deposed=lambda why: stop(f"deposed: {why}", failed=True),
                )

            worklist = Worklist()
            world = World(
                cluster=cluster,
                agents=agents,
                trust=trust,
                leadership=leadership,
                namespace=settings.namespace,
                watched=settings.watched,
                agent_images=settings.agent_images,
                clock=time.time,
                wake=worklist.wake,
            )
            effects = Effects(
                cluster=cluster,
                world=world,
                worklist=worklist,
                namespace=settings.namespace,
                operator_ca=trust.ca_pem,
                clock=time.time,
                new_run_id=new_run_id,
                tell=lambda task, phase, reason, note: events.tell(task, phase, reason, note, time.time()),
            )
            reconciler = Reconciler(
                world=world, effects=effects, worklist=worklist, leadership=leadership, clock=time.time
            )
            await world.relist()
            watch = Watch(world.see, lambda why: stop(why, failed=True), settings.watched)
            watch.start()
            health = Health(lambda: {"epoch": leadership.epoch, "lastEventSeconds": round(watch.last_event_s, 1)})
            running = [
                *(spawn(worklist.run_worker(reconciler.work), name=f"worker {i}") for i in range(WORKERS)),
                spawn(_relist_now_and_then(world), name="relist"),
                spawn(events.run(), name="events"),
                spawn(health.serve(), name="health"),
            ]
            await stopping.wait()
            watch.stop()
            for task in running:
                task.cancel()
            world.disconnect()
    finally:
        await cluster.close()
    return 1 if reasons else 0


async def _relist_now_and_then(world: World) -> None:
    while True:
        await asyncio.sleep(RELIST_INTERVAL_S)
        try:
            await world.relist()
        except Exception as error:
            log.warning("can't list the cluster anew: %s; trying again in %s s", error, RELIST_INTERVAL_S)


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_run_id() -> str:
    """A ULID: 26 characters that sort by time, in Crockford's base 32."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))
