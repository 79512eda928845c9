"""What of `make bench-scale` needs no cluster: agents speak as real ones, and what is found is told as it is."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from terrahalt_operator.adapters import objects
from terrahalt_protocol.messages import (
    Action,
    Cancel,
    CancelReason,
    Outcome,
    Report,
    Rung,
    Source,
    Start,
    Step,
    TaskRef,
)
from terrahalt_protocol.signing import unseal
from tests.bench import machine
from tests.bench.figures import Part
from tests.bench.kubernetes_api import Api, ApiError, Json
from tests.bench.scale import chart, limits, measure, plain, shown
from tests.bench.scale.__main__ import parsed
from tests.bench.scale.agent import SimulatedAgent, ended, running
from tests.bench.scale.counting import counted
from tests.bench.scale.following import follow
from tests.bench.scale.operator_process import NAMESPACE
from tests.bench.written import replaced

KEY = "ab" * 32
START = Start(
    epoch=1,
    run_id="01RUN",
    task=TaskRef(namespace="n", name="t", uid="task"),
    action=Action.APPLY,
    workspace="w",
    source=Source(inline={}),
    report_key=KEY,
)
POD: Json = {
    "metadata": {
        "namespace": "n",
        "name": "a",
        "uid": "pod",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {"containers": [{"name": "agent", "image": "agent:1"}]},
    "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
}


def an_agent() -> SimulatedAgent:
    return SimulatedAgent("n", "a", "pod", "127.77.0.1", token="token")


def a_cancel(reason: CancelReason = CancelReason.USER) -> Cancel:
    return Cancel(epoch=1, run_id="01RUN", reason=reason, report_key=KEY)


def test_a_cancelled_agent_ends_as_one_that_stopped_when_interrupted_and_leaves_a_proof() -> None:
    agent = an_agent()
    assert (agent.hello().runs, agent.hello().used) == ((), False)
    agent.begin(START, 10.0)
    agent.step = Step.APPLY
    assert agent.is_applying
    agent.end_for(a_cancel(), 12.0)
    agent.end_for(a_cancel(CancelReason.DELETION), 13.0)
    told = agent.report(12.5)
    assert told.cancel is not None
    assert (told.result, told.cancel.rung, told.cancel.ages.signalled_s) == (None, Rung.INTERRUPT, 0.5)
    agent.finish()
    last = unseal(agent.last_words(12.6), KEY, "01RUN")
    assert isinstance(last, Report)
    assert last.result is not None
    assert (last.result.outcome, last.result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    assert last.sequence > told.sequence
    assert not agent.is_applying
    assert (agent.hello().runs, agent.hello().used) == (("01RUN",), True)


def test_a_run_whose_cancel_came_first_never_began() -> None:
    agent = an_agent()
    agent.end_for(a_cancel(), 1.0)
    agent.finish()
    report = agent.report(1.0)
    assert (report.started_s, report.result and report.result.exit_code) == (None, None)
    assert unseal(agent.last_words(1.0), KEY, "01RUN") is not None


def test_the_operator_reads_a_simulated_pod_as_one_that_runs_and_then_has_ended() -> None:
    agent = an_agent()
    agent.begin(START, 0.0)
    agent.finish()
    at = "2026-01-01T00:00:00Z"
    seen = objects.agent(POD | {"status": running(agent, POD, at)})
    assert (seen.is_running, seen.ip, seen.container_id) == (True, "127.77.0.1", agent.container_id)
    over = objects.agent(POD | {"status": ended(agent, POD, at, agent.last_words(1.0))})
    assert over.ended is not None
    assert over.ended.container_id == seen.container_id
    report = unseal(over.ended.message, KEY, "01RUN")
    assert report is not None
    assert report.result is not None
    assert report.result.outcome is Outcome.SUCCEEDED


class _Watched:
    """An API server with one object, whose watches end as they are told to."""

    def __init__(self, *watches: list[str] | int) -> None:
        self._watches, self.asked = list(watches), list[str]()

    async def get(self, path: str) -> Json:
        self.asked.append("list")
        return {"items": [{"metadata": {"name": "old"}}], "metadata": {"resourceVersion": "5"}}

    async def lines(self, path: str) -> AsyncIterator[str]:
        self.asked.append(path.partition("resourceVersion=")[2])
        watch = self._watches.pop(0)
        if isinstance(watch, int):
            raise ApiError(watch, "gone")
        for line in watch:
            yield line


def _event(kind: str, name: str, version: int) -> str:
    return f'{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}}}'


async def test_a_watch_that_is_cut_goes_on_where_it_was_and_a_forgotten_one_lists_anew() -> None:
    api = _Watched([_event("ADDED", "a", 6), _event("BOOKMARK", "", 8)], [_event("DELETED", "a", 9)], 503, 410, [], 403)
    changes = follow(cast(Api, api), "/things")
    seen = [(is_gone, thing["metadata"]["name"]) for is_gone, thing in [await anext(changes) for _ in range(4)]]
    with pytest.raises(ApiError):
        await anext(changes)
    assert seen == [(False, "old"), (False, "a"), (True, "a"), (False, "old")]
    assert api.asked == ["list", "5", "8", "9", "9", "list", "5", "5"]


async def test_what_is_passed_on_is_counted_and_answered_as_it_was() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers
        return web.json_response({"got": await request.text(), "as": request.content_type}, status=409)

    upstream = web.Application()
    upstream.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(upstream)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as behind,
            counted(Api(behind)) as counting,
            aiohttp.ClientSession(counting.url, headers={"Authorization": "Bearer x"}) as before,
        ):
            kind = {"Content-Type": "application/merge-patch+json"}
            async with before.patch("/api/v1/pods/a?b=c%3Dd", data="{}", headers=kind) as response:
                assert response.status == 409
                assert await response.json() == {"got": "{}", "as": "application/merge-patch+json"}
            assert counting.requests == {("PATCH", "/api/v1/pods/a?b=c%3Dd"): 1}
            assert counting.sent_bytes[("PATCH", "/api/v1/pods/a?b=c%3Dd")] == 2
    finally:
        await runner.cleanup()


def test_a_plain_task_is_charged_with_its_requests_and_not_with_what_goes_on_anyway() -> None:
    tasks = f"/apis/terrahalt.dev/v1alpha1/namespaces/{plain.PLAIN}/terraformtasks"
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    requests = Counter(
        {
            ("PATCH", f"{tasks}/a/status"): 4,
            ("PATCH", f"{tasks}/b/status"): 5,
            ("POST", leases): 2,
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"): 2,
            # Three pages each: one comes with the list of pools, two are looks for the claim of an agent.
            ("GET", f"{leases}?limit=500&labelSelector=x"): 3,
            ("GET", f"{leases}?limit=500&labelSelector=x&continue=y"): 6,
            ("GET", "/apis/terrahalt.dev/v1alpha1/agentpools?limit=500"): 1,
            ("PATCH", f"{leases}/terrahalt-operator"): 60,
            ("GET", f"{leases}?watch=true"): 1,
            ("GET", "/apis/terrahalt.dev/v1alpha1/terraformtasks?limit=500"): 20,
        }
    )
    part = Part("a part", "for a test")
    plain.tell(part, requests, Counter({("POST", leases): 300}), 2, 60.0)
    found = {row.what: row.median for row in part.rows}
    assert found == {plain.WRITES: 4.5, plain.REQUESTS: (9 + 2 + 2 + 6) / 2, plain.SENT: 150.0}
    assert "3.00 lists of claims" in part.notes[0]
    assert "60 PATCH leases" in part.notes[1]
    assert "3 GET leases" in part.notes[1]


def _a_step(worst: float = 1.0) -> Part:
    part = Part("a step", "for a test")
    for limit in limits.LIMITS:
        part.add(limit.what, "ms", [limit.most * worst * 0.5] * 2 + [limit.most * worst])
    part.add(measure.CONNECTED, "s", [1.0])
    return part


def test_what_is_above_a_limit_or_was_not_measured_is_missed() -> None:
    good, bad = _a_step(), _a_step(1.01)
    limits.judge(good)
    assert not good.missed
    limits.judge(bad)
    assert len(bad.missed) == len(limits.LIMITS)
    bad.missed, bad.rows = [], bad.rows[1:]
    limits.judge(bad)
    assert f"{limits.LIMITS[0].what}: nothing was measured" in bad.missed


def test_growth_beyond_proportion_is_missed() -> None:
    for grown, is_missed in ((14.0, False), (16.0, True)):
        few, many = Part("few", ""), Part("many", "")
        few.add(measure.RSS, "MiB", [10.0])
        many.add(measure.RSS, "MiB", [10.0 * grown])
        limits.judge_growth([(100, few), (1000, many)])
        assert bool(many.missed) is is_missed
        assert many.notes == [f"10 times the tasks, {grown:.2g} times: {measure.RSS}"]


def test_the_docs_get_a_column_for_each_step_all_that_was_missed_and_a_plot_with_each_point() -> None:
    steps = [(100, _a_step(0.1)), (1000, _a_step(0.2)), (10_000, _a_step(2.0))]
    limits.judge(steps[-1][1])
    found = {
        "machine": machine.facts(),
        "command": "a command",
        "at": "2026-01-01T00:00:00",
        "load_before": 0.5,
        "cluster": {"kubernetes": "v1", "nodes": ["a"]},
    }
    text = replaced("before\n<!-- scale -->\nold\n<!-- /scale -->\nafter\n", "scale", shown.text(steps, found, "c.svg"))
    assert "| tasks | 100 | 1,000 | 10,000 |\n|---|---|---|---|\n" in text
    assert "| memory, MiB | 12.5 | 25 | 250 |" in text
    assert text.count("**Missed: ") == len(limits.LIMITS)
    drawn = ElementTree.fromstring(chart.svg(shown.curves(steps)))
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}circle")) == 4 * len(steps)


@pytest.mark.parametrize("words", ["--tasks 500", "--tasks 100 --agents 60 --steps 1", "--pools 0", "--starts 0"])
def test_a_bench_that_would_measure_nothing_is_refused(words: str) -> None:
    with pytest.raises(SystemExit):
        parsed(words.split())


def test_each_step_has_ten_times_the_tasks_of_the_one_before_and_its_share_of_agents() -> None:
    assert parsed([])[1] == [(100, 10), (1000, 100), (10_000, 1000)]
    assert parsed(["--tasks", "300", "--agents", "20", "--steps", "2", "--pools", "2"])[1] == [(30, 2), (300, 20)]
