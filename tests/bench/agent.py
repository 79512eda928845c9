"""The agent alone, as a real process without a cluster: how quick a cancel and its report are, and what waiting costs.

* frame -> SIGINT: from before the operator's send until a program in terraform's place has the signal
  (`stand_in`, which says why), for an apply whose operation has reached its provider, so that no gate waits;
* exit -> report: from the stand-in's last statement until the operator has read the final report; what lies
  between is its end in the kernel, the sweep, the drained log, the look at the state's lock (none for a local
  state, one GET over TLS for the kubernetes backend, whose API server is a fake here), and the message on disk;
* an idle agent with an operator connected and the kubelet's probes: memory, CPU time; and from exec to ready.

Each round is an agent of its own, because an agent takes one run, and has a sample of the floor beside it.
Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import resource
import shlex
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from terrahalt_agent.core.ladder import Times
from terrahalt_protocol.messages import Rung
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority, an_authority, server_context
from tests.agent_terraform.harness import AgentProcess, an_agent, an_operator, api_access
from tests.bench import floor
from tests.bench.figures import Part, Row, percentile
from tests.bench.floor import Floor
from tests.bench.progress import say

ROUNDS = 200
IDLE_S = 30.0
LOCAL, KUBERNETES = "local state", "kubernetes lock"
_LEASE = "/apis/coordination.k8s.io/v1/namespaces/team-a/leases/lock-tfstate-default-network-tf"
_PROBE_S = 5.0
"""Of the readiness probe that the operator gives an agent's pod."""
_SPARE = 1.5
"""So many times as many rounds are tried, where some do not count."""
_SETTLED_S = 2 * Times().settle_s
_STAND_IN = Path(__file__).with_name("stand_in.py")


@dataclass(slots=True)
class Samples:
    ready_s: list[float] = field(default_factory=list)
    signal_ms: list[float] = field(default_factory=list)
    report_ms: list[float] = field(default_factory=list)


class Unsettled(Exception):
    """The gate has waited in this round, so it measured the gate."""


async def measure(rounds: int = ROUNDS, idle_s: float = IDLE_S) -> Part:
    part = Part("agent", "one agent process: frame -> SIGINT, exit -> report on the wire, and idle")
    with TemporaryDirectory(prefix="terrahalt-bench-") as folder:
        root = Path(folder)
        bench = _Bench(root, an_authority(root))
        async with floor.a_floor() as least:
            found = {kind: await bench.rounds(part, kind, rounds, least) for kind in (LOCAL, KUBERNETES)}
        say(f"agent: idle for {idle_s:.0f} s")
        rss_mib, cpu_percent = await bench.idle(idle_s)
    frame = part.add("floor: frame -> signal seen", "ms", least.totals_ms)
    signals = part.add("frame -> SIGINT", "ms", [ms for samples in found.values() for ms in samples.signal_ms])
    part.compare("frame -> SIGINT : the floor", signals, frame)
    _aim(part, signals, 5, frame)
    for kind, samples in found.items():
        _aim(part, part.add(f"exit -> report, {kind}", "ms", samples.report_ms), 100, frame)
    _aim(part, part.add("exec -> ready", "s", [s for samples in found.values() for s in samples.ready_s]), 1, frame)
    _aim(part, part.add("idle: memory", "MiB", [rss_mib]), 64)
    _aim(part, part.add("idle: CPU time", "% of a core", [cpu_percent]), 0.5)
    return part


def _aim(part: Part, row: Row, at_most: float, least: Row | None = None) -> None:
    """Said beside the figure, and never more than that. Where the floor itself is slow, it was the machine."""
    if row.samples:
        worst = percentile(row.samples, 99)
        word = "met" if worst <= at_most else "MISSED"
        beside = "" if least is None else f", the floor {percentile(least.samples, 99):.3g} {least.unit}"
        part.notes.append(f"aim: {row.what} at most {at_most} {row.unit} at p99: {word} ({worst:.3g}{beside})")


class _Bench:
    def __init__(self, root: Path, authority: Authority) -> None:
        self._root = root
        self._authority = authority
        self._count = 0
        self._program = root / "terraform"
        self._program.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(str(_STAND_IN))} "$1"\n'
        )
        self._program.chmod(0o755)

    async def rounds(self, part: Part, kind: str, rounds: int, least: Floor) -> Samples:
        samples = Samples()
        say(f"agent: {rounds} runs with a {kind}, about 1 s each")
        for tried in range(round(rounds * _SPARE)):
            if len(samples.signal_ms) == rounds:
                break
            try:
                await self._one(kind, samples)
            except Unsettled as error:
                part.notes.append(f"{kind}: round {tried + 1} does not count: {error}")
                continue
            await least.sample()
        return samples

    async def _one(self, kind: str, samples: Samples) -> None:
        async with self._an_agent(kind) as (agent, ready_s), an_operator(agent) as operator:
            await operator.start({"main.tf": ""})
            await agent.until_logged(r"stand_in\.a: Creating")
            await asyncio.sleep(_SETTLED_S + random.uniform(0, 0.04))  # at any moment of the agent's own clock
            sent = time.monotonic()
            await operator.cancel()
            final = await operator.final_report()
            received = time.monotonic()
            seen, left = map(float, (agent.folder / "stamps").read_text().split())
        assert final.cancel is not None
        if final.cancel.rung is not Rung.INTERRUPT or final.cancel.ages.received_s != final.cancel.ages.signalled_s:
            raise Unsettled("something was at work, and the gate waited for it")
        samples.ready_s.append(ready_s)
        samples.signal_ms.append((seen - sent) * 1000)
        samples.report_ms.append((received - left) * 1000)

    async def idle(self, idle_s: float) -> tuple[float, float]:
        """MiB, and % of a core."""
        async with (
            self._an_agent(KUBERNETES) as (agent, _),
            an_operator(agent),
            aiohttp.ClientSession(headers={"Connection": "close"}) as kubelet,
        ):
            await asyncio.sleep(min(1.0, idle_s))  # what its start has left to do
            began, before = time.monotonic(), _cpu_s(agent.process.pid)
            while (left_s := began + idle_s - time.monotonic()) > 0:
                await kubelet.get(f"http://127.0.0.1:{agent.health_port}/readyz")
                await asyncio.sleep(min(_PROBE_S, left_s))
            spent, took = _cpu_s(agent.process.pid) - before, time.monotonic() - began
            return _rss_mib(agent.process.pid), spent / took * 100

    @asynccontextmanager
    async def _an_agent(self, kind: str) -> AsyncIterator[tuple[AgentProcess, float]]:
        """And the seconds until it was ready, on a look every 5 ms."""
        self._count += 1
        folder = self._root / str(self._count)
        folder.mkdir()
        env = {"TERRAHALT_ENGINE_PATH": str(self._program), "STAND_IN_STAMPS": str(folder / "stamps")}
        async with AsyncExitStack() as stack:
            if kind == KUBERNETES:
                api = await stack.enter_async_context(a_fake_api(server_context(self._authority)))
                api.objects[_LEASE] = {"metadata": {}, "spec": {}}  # there from an earlier run, and free
                env |= {"TERRAHALT_BACKEND": "Kubernetes"} | api_access(folder, self._authority, api.url)
            began = time.monotonic()
            agent = await stack.enter_async_context(an_agent(folder, self._authority, **env))
            yield agent, time.monotonic() - began


def _cpu_s(pid: int) -> float:
    """What all threads of a process have computed, in the scheduler's nanoseconds: ticks are too coarse here."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
