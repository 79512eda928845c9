"""One life of an operator: its real world, effects, reconciler and sockets' memory, on modelled sockets and workers.

Each worker stands still at some call to the API server; who holds a `Life` drives it on, lets a call fail, or
never drives it again, which is a crash. Called by `simulation`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from msgspec import json
from msgspec.structs import replace

from terrahalt_operator.adapters.agents import Agents, _Connection
from terrahalt_operator.adapters.metrics import Metrics
from terrahalt_operator.core import measures, names, pod
from terrahalt_operator.core.model import Agent, Claim, Pool, Task, TaskStatus
from terrahalt_operator.core.schedule import PoolCounts
from terrahalt_operator.effects import Effects
from terrahalt_operator.errors import ClusterError, Deposed, Refused
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.worklist import Key
from terrahalt_operator.world import World
from terrahalt_protocol.codec import FromAgentDecoder
from terrahalt_protocol.messages import Hello
from tests.simulation.api_server import WATCHED, ApiServer, Door, Json, Pause
from tests.simulation.pods import Connection

RELIST: Key = ("relist",)
NAMESPACE = "ops"
"""Where claims are; operators are elsewhere, so that nothing is looked for in the wrong place."""
SECRET = b"the installation's secret"
_REFUSED_WAIT_S = 1.0
"""Whatever is refused is so for a while; any other error is tried again at once."""


_template_hash, _hashes = pod.template_hash, dict[tuple[bytes, str, str], str]()


def _known_template_hash(pool: Pool, *, image: str, operator_ca: str) -> str:
    """The product's own answer, remembered: each life begins with none, and the pools of all histories are alike."""
    lasting = replace(pool, generation=0, resource_version="", status={})  # what it never depends on
    asked = json.encode(lasting), image, operator_ca
    if (known := _hashes.get(asked)) is None:
        known = _hashes[asked] = _template_hash(pool, image=image, operator_ca=operator_ca)
    return known


pod.template_hash = _known_template_hash


class Restless(AssertionError):
    """The operator has something to do again and again, though nothing changes."""


class Leadership:
    """The leader's Lease, which the latest holds, and the epoch in it; in the place of `adapters.leadership`."""

    def __init__(self, server: ApiServer, holder: str, namespace: str) -> None:
        self.namespace = namespace
        leases = server.kinds.setdefault("leases", {})
        self._lease = leases.setdefault((namespace, names.LEADER_LEASE), {"metadata": {}, "epoch": 0})
        self._lease["holder"] = self._holder = holder
        self.epoch = 0
        self.raise_above(0)

    def check(self) -> None:
        """Whoever was frozen right after it has asked goes on, so it stops nobody here."""

    def raise_above(self, reported: int) -> None:
        """By a write that names the Lease's version: whoever does not hold it any more is told so."""
        if self.epoch > reported:
            return
        if self._lease["holder"] != self._holder:
            raise Deposed(f"{self._lease['holder']} leads")
        self.epoch = self._lease["epoch"] = max(self._lease["epoch"], reported) + 1


@dataclass(slots=True)
class Counts:
    """What all operators of a history have counted, as Prometheus would add it up."""

    ends: Counter[str] = field(default_factory=Counter)
    """Of tasks, by UID."""
    freed: Counter[str] = field(default_factory=Counter)
    """Workspaces, by the run whose claim was released."""


class Counting(Metrics):
    """One operator's; what it has counted outlives it."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._unanswered = {}

    def status_written(self, task: Task, new: TaskStatus, *, pool: str) -> None:
        self._unanswered.pop(task.uid, None)
        self._counts.ends[task.uid] += measures.has_ended(task, new)

    def claim_released(self, claim: Claim, task: Task | None, now: float) -> None:
        self._counts.freed[claim.run_id] += 1

    def pool_seen(self, key: Key, counts: PoolCounts, *, is_ready: bool) -> None:
        return

    def pool_gone(self, key: Key) -> None:
        return

    def pool_written(self) -> None:
        return


class _Frames:
    """The sending half of a socket, as `Agents` uses it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send_str(self, frame: str) -> None:
        if not self._connection.is_open_at_operator:
            raise ConnectionError("closed")
        if self._connection.is_open_at_agent:
            self._connection.to_agent.append(frame)


class Sockets(Agents):
    """The real memory of what agents said; dialled by the simulation instead of by tasks of a loop."""

    def __init__(
        self, clock: Callable[[], float], world: World, leadership: Leadership, deposed: Callable[[str], None]
    ) -> None:
        unused = cast(Any, None)
        super().__init__(
            trust=unused,
            cluster=unused,
            leadership=cast(Any, leadership),
            http=unused,
            spawn=unused,
            clock=clock,
            changed=world.agent_changed,
            reported=world.agent_reported,
            pinned=world.pinned,
            had_run=world.had_run,
            deposed=deposed,
        )
        self._raise_above = leadership.raise_above
        self.wanted: dict[str, Agent] = {}
        self.connections: dict[str, Connection] = {}
        """Pod UID -> the one that is open at this end."""
        self._decoders: dict[int, FromAgentDecoder] = {}

    def keep(self, agent: Agent) -> None:
        self.wanted[agent.uid] = agent

    def drop(self, pod_uid: str) -> None:
        self.wanted.pop(pod_uid, None)
        if (connection := self.connections.get(pod_uid)) is not None:
            self.hang_up(connection)
        super().drop(pod_uid)

    def opened(self, connection: Connection) -> None:
        self.connections[connection.pod.uid] = connection
        self._decoders[connection.number] = FromAgentDecoder()

    def hang_up(self, connection: Connection) -> None:
        connection.is_open_at_operator = False
        uid = connection.pod.uid
        if self.connections.get(uid) is connection:
            del self.connections[uid]
        if self._connections.pop(uid, None) is not None:
            self._changed(uid)

    def receive(self, connection: Connection) -> None:
        """The next frame of an agent; the first is Hello, by which `_prove` decides what this is."""
        message = self._decoders[connection.number].feed(connection.to_operator.popleft())
        uid = connection.pod.uid
        known, agent = self._connections.get(uid), self.wanted.get(uid)
        if agent is None:
            return
        if known is not None:
            self._receive(agent, known, message)
            return
        assert isinstance(message, Hello)
        expected = self._pinned(uid) or self._proven.get(uid, "")
        key = f"sha256:{connection.pod.container_id}"
        if expected not in ("", key):
            self.hang_up(connection)
            return
        if expected or not self._had_run(uid):
            self._proven[uid] = key
        try:
            self._raise_above(message.highest_epoch)
        except Deposed as error:
            self.hang_up(connection)
            self._deposed(str(error))
            return
        self._connections[uid] = _Connection(
            socket=cast(Any, _Frames(connection)),
            hello=message,
            fingerprint=key,
            runs=set(message.runs),
            is_used=message.used,
            since=self._clock(),
            refreshed=message.refreshed,
        )
        self._changed(uid)


class Life:
    def __init__(
        self,
        number: int,
        server: ApiServer,
        uptime: Callable[[], float],
        namespaces: Sequence[str],
        counts: Counts,
        home: str = "system",
    ) -> None:
        """`namespaces`: which it watches; empty: all. `home`: its own."""
        self.name = f"operator {number}"
        self._server, self._uptime, self._watched = server, uptime, namespaces
        self.clock_is_off_s = 0.0
        self.leadership = Leadership(server, self.name, home)
        self.woken: dict[Key, None] = {}
        self.timers: dict[Key, float] = {}
        self.workers: dict[Key, Coroutine[Any, Any, None]] = {}
        self.asks: dict[Key, Pause] = {}
        """Where each worker stands still."""
        self.told: list[tuple[Any, ...]] = []
        """Events, in order: task, phase, reason, note."""
        self.is_ready = False
        """It leads, and has listed everything once more; before that it works on nothing."""
        self.deposed = ""
        self._seen_of = {plural: len(log) for plural, log in server.log.items()}
        """Kind -> how much of the watch has arrived."""
        self._runs = itertools.count()
        trust = SimpleNamespace(report_secret=SECRET, ca_pem="CA")
        worklist = SimpleNamespace(wake=self.wake, wake_after=self.wake_after)

        def clock() -> float:
            return uptime() + self.clock_is_off_s

        common: dict[str, Any] = {"cluster": Door(server, self.name, (*namespaces, NAMESPACE) if namespaces else ())}
        common |= {"clock": clock, "uptime": uptime}

        def sockets(world: World) -> Sockets:
            self.sockets = Sockets(clock, world, self.leadership, self._depose)
            return self.sockets

        self.world = World(
            agents=sockets,
            trust=cast(Any, trust),
            leadership=cast(Any, self.leadership),
            claims_namespace=NAMESPACE,
            watched=namespaces,
            agent_images={"Terraform": "agent:1"},
            wake=self.wake,
            **common,
        )
        self._effects = Effects(
            world=self.world,
            worklist=cast(Any, worklist),
            namespace=home,
            operator_ca="CA",
            new_run_id=lambda: f"run-{number}-{next(self._runs)}",
            tell=lambda *told: self.told.append(told),
            metrics=Counting(counts),
            **common,
        )
        self._reconciler = Reconciler(
            world=self.world,
            effects=self._effects,
            worklist=cast(Any, worklist),
            leadership=cast(Any, self.leadership),
            clock=clock,
        )
        self.world.stand_by()
        standing = self.world.relist()
        with suppress(StopIteration):
            while True:
                standing.send(None)
        self.relist()

    def _depose(self, why: str) -> None:
        self.deposed = why

    # ---- its worklist

    def wake(self, key: Key) -> None:
        self.woken[key] = None

    def wake_after(self, key: Key, delay_s: float) -> None:
        at = self._uptime() + delay_s
        self.timers[key] = min(at, self.timers.get(key, at))

    def ring(self) -> None:
        for key in [key for key, at in self.timers.items() if at <= self._uptime()]:
            del self.timers[key]
            self.wake(key)

    def idle_keys(self) -> list[Key]:
        """Those that can be begun: sorted, because the product wakes some in the order of a set."""
        if not (self.woken and self.is_ready):
            return []
        return sorted(key for key in self.woken if key not in self.workers)

    def begin(self, key: Key) -> None:
        del self.woken[key]
        self.workers[key] = self._reconciler.work(key)
        self.go_on(key)

    def relist(self) -> bool:
        if RELIST in self.workers:
            return False
        self.workers[RELIST] = self.world.relist() if self.is_ready else self.world.lead()
        self.go_on(RELIST)
        return True

    def go_on(self, key: Key, error: Exception | None = None) -> None:
        """To the next call, or to the end; an error is tried again, as the worklist does."""
        try:
            step = self.workers[key].throw(error) if error else self.workers[key].send(None)
            assert isinstance(step, Pause)
            self.asks[key] = step
        except StopIteration:
            del self.workers[key]
            if key == RELIST and not self.is_ready:
                self.is_ready = True
                self.watch_breaks()
        except ClusterError as problem:
            del self.workers[key]
            if isinstance(problem, Refused) and key != RELIST:
                self.wake_after(key, _REFUSED_WAIT_S)
            elif key != RELIST:
                self.wake(key)
            elif not self.is_ready:
                self.deposed = f"it could not start: {problem}"

    def finish_all(self) -> None:
        for _ in range(300):
            for key in self.idle_keys():
                self.begin(key)
            if not self.workers:
                return
            for key in list(self.workers):
                self.go_on(key)
        raise Restless(f"{self.name} never rests: {list(self.woken)} {list(self.workers)}")

    def die(self) -> None:
        """Its workers are never driven on; the generators are closed, so that nothing is left to the interpreter."""
        for worker in self.workers.values():
            worker.close()
        for connection in list(self.sockets.connections.values()):
            connection.is_open_at_operator = False

    # ---- its watch

    def watch_breaks(self) -> None:
        """410 Gone: what is there now is listed anew; what was deleted meanwhile is never told."""
        for plural in WATCHED:
            log = self._server.log[plural]
            before = self._seen_of[plural]
            missed = {obj["metadata"]["uid"]: obj for _, is_gone, obj in log[before:] if not is_gone}
            gone = {obj["metadata"]["uid"] for _, is_gone, obj in log[before:] if is_gone}
            self._seen_of[plural] = len(log)
            for uid, obj in missed.items():
                if uid not in gone:
                    self._see(plural, False, obj)

    def has_news(self, plural: str) -> int:
        return len(self._server.log[plural]) - self._seen_of[plural] if self.is_ready else 0

    def watch(self, plural: str, count: int) -> None:
        log = self._server.log[plural]
        begin = self._seen_of[plural]
        self._seen_of[plural] = end = min(len(log), begin + count)
        for at in range(begin, end):
            self._see(*log[at])

    def _see(self, plural: str, is_gone: bool, obj: Json) -> None:
        if not self._watched or obj["metadata"]["namespace"] in self._watched:
            self.world.see(plural, is_gone, obj)
