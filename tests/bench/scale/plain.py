"""What a plain task costs the API server: one that finds a warm agent, plans, applies and ends, beside all the others.

An operator of its own goes through `counting`; a pool of its own has idle agents. Counted is what names the task's
namespace, claims and token reviews: all that the task, its agent and the agent's successor need. Lists of
everything, watches and the leader's Lease go on whatever tasks do, and are told as a rate. Called by `measure`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from terrahalt_operator.core.model import SUCCEEDED
from terrahalt_operator.core.names import LEADER_LEASE
from tests.bench import kubernetes_api
from tests.bench.figures import Part
from tests.bench.progress import say
from tests.bench.scale.counting import counted
from tests.bench.scale.operator_process import NAMESPACE
from tests.bench.scale.tasks import make_pool

if TYPE_CHECKING:
    from tests.bench.scale.stage import Stage

Request = tuple[str, str]
"""Method, and path with its query."""
PLAIN = "terrahalt-scale-plain"
WRITES, REQUESTS, SENT = (
    "status writes a plain task",
    "API requests a plain task",
    "bytes sent to the API, a plain task",
)
_POOL, _IDLE = "plain", 3
_APPLIES_S = 0.5
_SETTLES_S = 3.0


async def measure(stage: Stage, part: Part, count: int, folder: Path) -> None:
    """With no operator at the beginning, and none at the end."""
    say(f"plain: {count} tasks, one after the other, through a pass-through that counts")
    async with (
        kubernetes_api.connected(stage.kubectl, stage.environment) as api,
        counted(api) as counting,
    ):
        alive = (await stage.agents.ask("count"))["pods"]
        operator = await stage.start(KUBECONFIG=str(counting.kubeconfig(folder / "counted.kubeconfig")))
        await make_pool(stage.api, PLAIN, _POOL, min_idle=_IDLE, max_agents=2 * _IDLE)
        await stage.agents.until(120, connected=alive + _IDLE, missing=0)
        await stage.tasks.until_quiet(60)
        await asyncio.sleep(_SETTLES_S)
        requests, sent, began = counting.requests.copy(), counting.sent_bytes.copy(), time.monotonic()
        for number in range(count):
            key = PLAIN, f"plain-{number:04}"
            await stage.tasks.create(*key, _POOL, _APPLIES_S)
            await stage.tasks.until_phase(key, SUCCEEDED, 60)
            await stage.agents.until(60, connected=alive + _IDLE, missing=0)
        await asyncio.sleep(_SETTLES_S)
        took_s = time.monotonic() - began
        requests, sent = counting.requests - requests, counting.sent_bytes - sent
        await operator.end()
    tell(part, requests, sent, count, took_s)


def tell(part: Part, requests: Counter[Request], sent: Counter[Request], count: int, took_s: float) -> None:
    lists = Counter({key: n for key, n in requests.items() if _is_list_of_claims(*key)})
    own_lists = _share_of_looks(requests) * sum(lists.values())
    of_tasks = Counter({key: n for key, n in requests.items() if _is_of_a_task(*key)})
    kinds: Counter[str] = Counter()
    for (method, path), n in of_tasks.items():
        kinds[f"{method} {_kind(path)}"] += n
    part.add(WRITES, "", [kinds["PATCH tasks/status"] / count])
    part.add(REQUESTS, "", [(of_tasks.total() + own_lists) / count])
    part.add(SENT, "B", [sum(sent[key] for key in of_tasks) / count])
    told = [f"{n / count:.2f} {kind}" for kind, n in kinds.most_common()] + [f"{own_lists / count:.2f} lists of claims"]
    part.notes.append(f"a plain task asks for: {', '.join(told)}")
    others: Counter[str] = Counter()
    for (method, path), n in (requests - of_tasks - lists).items():
        others[f"{'WATCH' if 'watch=true' in path else method} {_kind(path)}"] += n
    others["GET leases"] += round(lists.total() - own_lists)
    rates = (f"{n * 60 / took_s:.0f} {kind}" for kind, n in others.most_common() if n)
    part.notes.append(f"a minute, whatever tasks do: {', '.join(rates)}")


def _is_of_a_task(method: str, path: str) -> bool:
    if "watch=true" in path or _is_list_of_claims(method, path):
        return False
    claims = f"/namespaces/{NAMESPACE}/leases"
    is_claim = claims in path and f"{claims}/{LEADER_LEASE}" not in path
    return f"/namespaces/{PLAIN}/" in path or is_claim or path.endswith("/tokenreviews")


def _is_list_of_claims(method: str, path: str) -> bool:
    return method == "GET" and f"/namespaces/{NAMESPACE}/leases?" in path and "labelSelector=" in path


def _share_of_looks(requests: Counter[Request]) -> float:
    """Of the lists of claims: those that ask for one agent's. The others come with a list of all pools each."""
    looks = lists = 0
    for (method, path), n in requests.items():
        if method == "GET" and "continue=" not in path and "watch=true" not in path:
            looks += n if _is_list_of_claims(method, path) else 0
            lists += n if path.partition("?")[0].endswith("v1alpha1/agentpools") else 0
    return max(0, looks - lists) / looks if looks else 0.0


def _kind(path: str) -> str:
    """What is asked for, without names."""
    words = path.partition("?")[0].strip("/").split("/")
    if "namespaces" in words:
        words = words[words.index("namespaces") + 2 :]
    else:
        words = words[2:] if words[0] == "api" else words[3:]
    kind = {"terraformtasks": "tasks"}.get(words[0], words[0]) if words else "namespaces"
    return re.sub(r"\W+$", "", f"{kind}/{words[2]}" if len(words) > 2 else kind)
