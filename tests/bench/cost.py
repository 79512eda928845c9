"""The cost part: what the operator asks of the API server for one plain task, and how much it sends and reads.

An apply in a warm agent, which is replaced: so the pod of the next agent is in it. The API server itself counts: a
FlowSchema for each kind of request of the operator's account, whose requests it tells in its metrics; the leader's
Lease and the watches have one each, and are not counted. Status writes are the versions that a watch of the bench got.
Bytes are those of the operators' pods, in which are the watches, the Lease and the agents' connections, less what goes
over in the same time without a task. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.kubernetes_api import Api, Json, within
from tests.bench.limits import Limit, judge
from tests.bench.system import SYSTEM, TASKS, System
from tests.bench.tasks import QUICK, a_name, a_task, watched_tasks

WRITES, REQUESTS = "status writes a task", "API requests a task"
SENT, READ = "bytes sent a task", "bytes read a task"
# Once a minute the operator lists everything anew: that is in some tasks' requests, but in no task's status.
LIMITS = (Limit(WRITES, 100, 5), Limit(REQUESTS, 50, 18))
IDLE_S = 60.0
"""In which the operator lists everything once."""
_SCHEMAS = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
_PREFIX = "terrahalt-bench-"
_SEEN_S = 30.0
_QUIET_S, _SETTLES_S = 5.0, 120.0
LEADER, WATCHES, OTHERS = "leader", "watches", "others"
_LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
_OURS = {"apiGroups": ["terrahalt.dev"]}
# In this order, for the first one that fits counts a request. The claims are Leases of that namespace too, but each is
# made and deleted once and never renewed.
_KINDS: dict[str, Json] = {
    WATCHES: {"verbs": ["watch"], "apiGroups": ["*"], "resources": ["*"]},
    LEADER: {**_LEASES, "verbs": ["get", "list", "patch", "update"], "namespaces": [SYSTEM]},
    "claims": _LEASES,
    "tasks": {**_OURS, "resources": ["terraformtasks", "terraformtasks/status"]},
    "pools": {**_OURS, "resources": ["agentpools", "agentpools/status"]},
    "pods": {"apiGroups": [""], "resources": ["pods", "pods/status", "pods/log"]},
    "events": {"apiGroups": ["", "events.k8s.io"], "resources": ["events"]},
    "token reviews": {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]},
    "network policies": {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"]},
    "config maps": {"apiGroups": [""], "resources": ["configmaps"]},
    OTHERS: {"apiGroups": ["*"], "resources": ["*"]},
}
ASIDE = (WATCHES, LEADER)
_COUNTED = re.compile(
    r'^apiserver_flowcontrol_dispatched_requests_total\{.*flow_schema="' + _PREFIX + r'([^"]+)".*\} (\S+)'
)
_NETWORK = "import pathlib; print(pathlib.Path('/proc/net/dev').read_text())"


@dataclass(frozen=True, slots=True)
class Sums:
    """Until a moment, or within so many seconds."""

    at: float
    requests: dict[str, float]
    sent: int
    read: int

    def since(self, before: Sums) -> Sums:
        requests = {kind: count - before.requests.get(kind, 0) for kind, count in self.requests.items()}
        return Sums(self.at - before.at, requests, self.sent - before.sent, self.read - before.read)


async def measure(system: System, floor: Floor, tasks_wanted: int) -> Part:
    part = Part("cost", f"what the operator asks of the API server for a plain task, {tasks_wanted} tasks")
    meter = _Meter(system)
    spent: list[Sums] = []
    writes: list[float] = []
    phases: list[str] = []
    before = await system.identity()
    async with _counted(system.api, await _account(system)), watched_tasks(system.api) as tasks:
        await _until_counted(system.api)
        await system.await_idle_agent()
        await _until_quiet(system.api)
        began = await meter.read()
        await asyncio.sleep(IDLE_S)
        idle = (await meter.read()).since(began)
        for number in range(tasks_wanted):
            name, began = a_name("cost", number), await meter.read()
            await system.api.create(TASKS, a_task(name, "Apply", QUICK))
            await tasks.until_ended(name, "Succeeded")
            await system.await_idle_agent()  # the next one's pod is of the price
            spent.append((await meter.read()).since(began))
            phases = status_writes([task for _, task in tasks.versions(name)])
            writes.append(len(phases))
    part.notes.append(f"the last task's status writes, by the phase in them: {', '.join(phases)}")
    if (after := await system.identity()) != before:
        part.notes.append(f"the operator was replaced meanwhile, by others: {before} -> {after}")
    add_rows(part, spent, writes, idle)
    judge(part, tasks_wanted, LIMITS)
    return part


def add_rows(part: Part, spent: Sequence[Sums], writes: Sequence[float], idle: Sums) -> None:
    kinds = [kind for kind in _KINDS if kind not in ASIDE]
    part.add(WRITES, "", writes)
    part.add(REQUESTS, "", [counted(each.requests) for each in spent])
    for kind in kinds:
        if any(each.requests.get(kind) for each in spent):
            part.add(f"of it, {kind}", "", [each.requests.get(kind, 0) for each in spent])
    part.add(SENT, "KiB", [(each.sent - idle.sent / idle.at * each.at) / 1024 for each in spent])
    part.add(READ, "KiB", [(each.read - idle.read / idle.at * each.at) / 1024 for each in spent])
    part.add("without a task: API requests a minute", "", [counted(idle.requests) / idle.at * 60])
    if counted(idle.requests):
        asked = (f"{kind} {idle.requests[kind]:.0f}" for kind in kinds if idle.requests.get(kind))
        part.notes.append(f"without a task, in {idle.at:.0f} s: {', '.join(asked)}")
    for kind in ASIDE:
        part.add(f"without a task, not counted: {kind} a minute", "", [idle.requests.get(kind, 0) / idle.at * 60])
    part.add("without a task: bytes sent and read a second", "KiB", [(idle.sent + idle.read) / idle.at / 1024])


def counted(requests: dict[str, float]) -> float:
    return sum(count for kind, count in requests.items() if kind not in ASIDE)


def status_writes(versions: Sequence[Json]) -> list[str]:
    """The phase of each of a task's versions, in their order, that has another status than the one before.

    The first one is as it was created: what its status says is a default of the CRD."""
    statuses = [version.get("status", {}) for version in versions]
    return [new.get("phase", "") for old, new in pairwise(statuses) if new != old]


def requests_of(lines: Iterable[str]) -> dict[str, float]:
    """Of a metrics page: kind -> requests that were let through to be answered."""
    found = dict.fromkeys(_KINDS, 0.0)
    for line in lines:
        if (match := _COUNTED.match(line)) and (kind := match[1].replace("-", " ")) in found:
            found[kind] += float(match[2])
    return found


def network_of(text: str) -> tuple[int, int]:
    """Of /proc/net/dev: bytes sent and read, by all but the loopback."""
    sent = read = 0
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if numbers and name.strip() != "lo":
            fields = [int(field) for field in numbers.split()]
            read, sent = read + fields[0], sent + fields[8]
    return sent, read


class _Meter:
    def __init__(self, system: System) -> None:
        self._system = system

    async def read(self) -> Sums:
        run, requests = self._system.run, await _requests(self._system.api)
        sent = read = 0
        for pod in await self._system.operators():
            at = ("-n", SYSTEM, "exec", pod["metadata"]["name"], "--", "python3", "-c", _NETWORK)
            more_sent, more_read = network_of(await run(run.kubectl, *at))
            sent, read = sent + more_sent, read + more_read
        return Sums(time.monotonic(), requests, sent, read)


async def _account(system: System) -> str:
    name: str = (await system.operators())[0]["spec"]["serviceAccountName"]
    return name


@asynccontextmanager
async def _counted(api: Api, account: str) -> AsyncIterator[None]:
    """Requests of that account are told by their kinds, with the priority that they have without it."""
    try:
        for precedence, (kind, rule) in enumerate(_KINDS.items()):
            await api.delete(f"{_SCHEMAS}/{_name(kind)}")
            await api.create(_SCHEMAS, _schema(kind, rule, account, 500 + precedence))
        yield
    finally:
        for kind in _KINDS:
            with contextlib.suppress(Exception):
                await api.delete(f"{_SCHEMAS}/{_name(kind)}")


async def _until_counted(api: Api) -> None:
    """The leader renews its Lease each second: when that is counted, so is the rest. Raises TimeoutError."""

    async def told() -> float:
        return (await _requests(api))[LEADER]

    async def until_more(before: float) -> None:
        while True:
            if await told() > before:
                return
            await asyncio.sleep(0.5)

    await within(_SEEN_S, until_more(await told()), lambda: "the API server should count the leader's requests")


async def _until_quiet(api: Api) -> None:
    """What parts before this one have left for the operator to do is none of a task's price. Raises TimeoutError."""

    async def quiet() -> None:
        now = counted(await _requests(api))
        while True:
            await asyncio.sleep(_QUIET_S)
            before, now = now, counted(await _requests(api))
            if now == before:
                return

    await within(_SETTLES_S, quiet(), lambda: f"for {_QUIET_S:.0f} s the operator should ask for nothing")


async def _requests(api: Api) -> dict[str, float]:
    return requests_of([line async for line in api.lines("/metrics")])


def _name(kind: str) -> str:
    return _PREFIX + kind.replace(" ", "-")


def _schema(kind: str, rule: Json, account: str, precedence: int) -> Json:
    resources = {"verbs": ["*"], "namespaces": ["*"], "clusterScope": True} | rule
    rules: Json = {
        "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": account, "namespace": SYSTEM}}],
        "resourceRules": [resources],
    }
    if kind == OTHERS:
        rules["nonResourceRules"] = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": _name(kind)},
        "spec": {
            "priorityLevelConfiguration": {"name": "workload-low"},
            "matchingPrecedence": precedence,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [rules],
        },
    }
