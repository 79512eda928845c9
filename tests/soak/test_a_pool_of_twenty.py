"""Many tasks on a pool of twenty: each agent is used once, none is taken with a run, and then as many wait as should.

Slow: 200 agents start. `--pool-tasks` says how many tasks (`make soak`: 200, 0: none), `--pool-chart` where the chart
of queue and agents is drawn. The last tasks run until they are told to end, so that agents are taken away beside them.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bench import machine
from tests.bench.written import circumstances, replaced
from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, a_task, source, start
from tests.e2e.test_pools import a_pool
from tests.soak.pool_chart import Drawn, svg
from tests.soak.pool_story import Count, History, counts, settled_at, taken_with_a_run, used_otherwise_than_once, waits
from tests.soak.random_tasks import spread

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone]

MAX_AGENTS, MIN_IDLE, SCALED_UP = 20, 2, 12
IDLE_TIMEOUT_S = 5
SETTLES_S = 3.0
"""For the last agent that was made to start, from when on its idle time counts, and for the pods to go."""
HELD = 5
"""Tasks that run while agents are taken away; with those that were scaled up they fit into the pool."""
SECONDS_OF_A_TASK, HELD_S = 2, 3000
A_TASK_WITHIN_S = 15.0
"""A fresh agent for each, on a small machine."""
MARK = "pool-of-twenty"


def test_each_agent_is_used_once_none_is_taken_with_a_run_and_the_pool_goes_back_to_its_idle_ones(
    room: Installation, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    count: int = request.config.getoption("--pool-tasks") or pytest.skip("--pool-tasks 0")
    name, held_count = room.name("twenty"), min(HELD, count)
    pool = a_pool(name, minIdle=MIN_IDLE, maxAgents=MAX_AGENTS, maxTasksPerAgent=1, idleTimeoutSeconds=IDLE_TIMEOUT_S)
    pool["metadata"]["namespace"] = SOAK
    room.kubectl.create(pool)
    room.wait_for_idle(SOAK, MIN_IDLE, pool=name)

    began = time.time()
    short = _created(room, name, count - held_count, SECONDS_OF_A_TASK)
    held = _created(room, name, held_count, HELD_S)
    for task in short:
        assert task.until_ended(within_s=60 + A_TASK_WITHIN_S * count) == "Succeeded", task.story()
    for task in held:
        task.until_child(f"sleep {HELD_S}", within_s=120)

    room.scale_pool(SOAK, SCALED_UP, pool=name)
    room.scale_pool(SOAK, MIN_IDLE, pool=name)
    scaled = time.time()
    taken_s = _settled_s(room, name, scaled, lambda now: now.without_a_run == MIN_IDLE)
    for task in held:
        sleeping = [p for p in task.processes if p.gone is None and p.command == ["sleep", str(HELD_S)]]
        assert sleeping, f"it was to run while others were taken away\n{task.story()}"

    for task in held:
        task.end_sleep()
    for task in held:
        assert task.until_ended() == "Succeeded", task.story()
    last_end = max(task.end.at for task in held if task.end is not None)
    back_s = _settled_s(room, name, last_end, lambda now: (now.agents, now.busy) == (MIN_IDLE, 0))

    tasks = [*held, *short]
    for task in tasks:
        evidence.assert_over(task)
        evidence.assert_ended_once(task)
        assert evidence.executions(task) == 1, task.story()
    pods = _histories(room, name)
    ended = {task.run_id: task.end.version for task in tasks if task.end is not None}
    assert not taken_with_a_run(pods, ended)
    given = {task.run_id: task.pod_uid for task in tasks}
    assert len(set(given.values())) == count
    assert not used_otherwise_than_once(pods, list(room.timeline.processes), given)
    found = counts(pods.values())
    assert max(each.agents for each in found) <= MAX_AGENTS
    waited = waits(tasks)
    say(
        f"pool of {MAX_AGENTS}: {count} tasks, {len(pods)} agents, in {last_end - began:.0f} s; {MIN_IDLE} idle ones"
        f" {taken_s:.1f} s after it was scaled down beside {held_count} runs, and {back_s:.1f} s after the last end;"
        f" waited: {spread([wait for _, wait in waited])}"
    )
    if folder := request.config.getoption("--pool-chart"):
        write_chart(Path(folder), found, waited, count)
    room.kubectl("--namespace", SOAK, "delete", "agentpool", name, within_s=120)


def _created(installation: Installation, pool: str, count: int, seconds: int) -> list[RunningTask]:
    names = [installation.name(f"pooled-{number}") for number in range(count)]
    text = {name: source("counted", task=name, seconds=str(seconds)) for name in names}
    options: dict[str, Any] = {"namespace": SOAK, "poolRef": {"name": pool}, "timeoutSeconds": 3600}
    return start(installation, *(a_task(name, text=text[name], **options) for name in names)) if names else []


def _histories(installation: Installation, pool: str) -> dict[str, History]:
    timeline = installation.timeline
    names = timeline.names("pods", SOAK, lambda pod: pod.object["metadata"]["labels"].get("terrahalt.dev/pool") == pool)
    return {name: timeline.history("pods", SOAK, name) for name in names}


def _settled_s(installation: Installation, pool: str, since: float, holds: Callable[[Count], bool]) -> float:
    """After how many seconds it holds for good: it is looked at until no other agent might go any more."""
    timeline = installation.timeline

    def settled() -> float | None:
        at = settled_at(counts(_histories(installation, pool).values()), since, holds)
        looked = min(timeline.looked_at.values())
        return at if at is not None and looked > at + 2 * IDLE_TIMEOUT_S else None

    at = timeline.until(
        settled, 60, lambda: f"{pool} with {MIN_IDLE} agents that wait: {installation.pool_status(SOAK, pool)}"
    )
    took_s = at - since
    assert took_s - timeline.stalled_s(since, at) <= IDLE_TIMEOUT_S + SETTLES_S, f"{took_s:.1f} s"
    return took_s


def write_chart(folder: Path, found: list[Count], waited: list[tuple[float, float]], count: int) -> None:
    began = min(at - wait for at, wait in waited)
    drawn = Drawn(
        title=f"{count} tasks on a pool of at most {MAX_AGENTS} agents",
        max_agents=MAX_AGENTS,
        agents=[(round(max(0.0, each.at - began), 1), each.agents, each.busy) for each in found],
        waits=[(round(at - began, 1), round(wait, 1)) for at, wait in waited],
    )
    facts, command = machine.facts(), shlex.join(["pytest", *sys.argv[1:]])
    (folder / f"{MARK}.svg").write_text(svg(drawn), encoding="utf-8")
    data = {"machine": facts, "command": command, "agents": drawn.agents, "waits": drawn.waits}
    (folder / f"{MARK}.json").write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    page = folder / "pools.md"
    text = [
        f"![{drawn.title}: agents over time, and how long each task waited]({MARK}.svg)",
        "",
        f"{count} tasks of {SECONDS_OF_A_TASK} s, each on an agent of its own;"
        f" [the figures]({MARK}.json). Waited: {spread([wait for _, wait in waited])}.",
        circumstances(facts, command, datetime.now(UTC).isoformat()),
    ]
    page.write_text(replaced(page.read_text(encoding="utf-8"), MARK, "\n".join(text)), encoding="utf-8")
