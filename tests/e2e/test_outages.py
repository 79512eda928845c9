"""The operator is away, or the API server is, for a while: nothing is lost, and each run ends with its true result.

Runs end, fail, are cancelled and lose their pods meanwhile. `--away` and `--api-away` say for how many seconds
(`make test`: 8 and 22, `make outages`: 1800 and 180).
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled, assert_failed
from tests.e2e.installation import Installation
from tests.e2e.kubectl import Json
from tests.e2e.servers import HttpStates
from tests.e2e.tasks import RunningTask, a_task, source, start, start_one

pytestmark = pytest.mark.cluster

ENDED_WITHIN_S = 90.0
"""After the return: agents are dialled, and claims that waited are taken."""
A_DAY = "86400"
"""As seconds of a sleep that a test ends."""
SERIES_STEP_S = 4
STARTING_S = 20
"""How long the first run may be at work before the absence begins."""


def a_run(installation: Installation, label: str, text: Callable[[str], str], away_s: float, **spec: Any) -> Json:
    name = installation.name(label)
    return a_task(name, text=text(name), timeoutSeconds=int(away_s) + 900, **spec)


def counted(name: str) -> str:
    return source("counted", task=name, seconds=A_DAY)


def failing(_name: str) -> str:
    return source("failing_command", seconds=A_DAY)


def endless(_name: str) -> str:
    return source("sleeping_provider", count="1", duration=f"{A_DAY}s")


def at(began: float, share: float, away_s: float) -> None:
    """Waits until so much of the absence is over."""
    time.sleep(max(0.0, began + share * away_s - time.time()))


def is_applying(task: RunningTask) -> bool:
    """Its terraform of before the absence is alive."""
    applies = [p for p in task.processes if p.is_terraform("apply")]
    return any(p.gone is None for p in applies)


def ends_and_loses_its_pod(task: RunningTask, lose: Callable[[], None] | None) -> None:
    task.end_sleep()
    task.until_quiet()
    if lose is not None:
        lose()
        task.until_agent_terminated()


def test_while_the_operator_is_away_no_run_is_lost_or_killed_and_each_ends_with_its_true_result(
    installation: Installation, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    away_s: float = request.config.getoption("--away")
    texts = {
        "evicted": counted, "deleted": failing, "forced": counted, "left-alone": counted, "lasting": counted,
        "interrupted": endless, "killed": endless, "cancelled": endless,
    }  # fmt: skip
    objects = [a_run(installation, f"away-{label}", text, away_s) for label, text in texts.items()]
    tasks = dict(zip(texts, start(installation, *objects), strict=True))
    for label, task in tasks.items():
        if texts[label] is endless:
            task.until_operation()
        else:
            task.until_process(lambda p: p.command[:1] == ["sleep"], "that sleeps")

    def kill() -> None:
        lost = tasks["killed"]
        assert installation.nodes.kill_container(installation.agent_process(lost.pod_uid)) >= 3
        lost.until_agent_terminated()

    def interrupt() -> None:
        tasks["interrupted"].evict()
        tasks["interrupted"].until_agent_terminated()

    forced = tasks["forced"]
    steps: list[tuple[float, Callable[[], object]]] = [
        (0.0, tasks["cancelled"].cancel),
        (0.1, lambda: ends_and_loses_its_pod(tasks["evicted"], tasks["evicted"].evict)),
        (0.3, lambda: ends_and_loses_its_pod(tasks["deleted"], tasks["deleted"].delete_pod)),
        (0.4, lambda: ends_and_loses_its_pod(forced, lambda: forced.delete_pod("--force", "--grace-period=0"))),
        (0.6, lambda: ends_and_loses_its_pod(tasks["left-alone"], None)),
        (0.7, interrupt),
        (0.8, kill),
    ]
    with installation.without_operator():
        began = time.time()
        tasks["meanwhile"] = start_one(installation, "away-meanwhile", source("greeting", text="x"))
        for share, act in steps:
            at(began, share, away_s)
            act()
        at(began, 1.0, away_s)
        for task in tasks.values():
            assert task.end is None, f"who wrote that?\n{task.story()}"
        for label in ("lasting", "cancelled"):
            assert is_applying(tasks[label]), tasks[label].story()
        absent_s = time.time() - began
    returned = time.time()
    tasks["lasting"].end_sleep()
    for task in tasks.values():
        task.until_ended(ENDED_WITHIN_S)

    for label in ("evicted", "forced", "left-alone", "lasting", "meanwhile"):
        assert tasks[label].phase == "Succeeded", tasks[label].story()
        evidence.assert_steps(tasks[label], "init", "plan", "apply")
    for label in ("evicted", "forced", "left-alone", "lasting"):
        assert evidence.executions(tasks[label]) == 1, tasks[label].story()
    assert_failed(tasks["deleted"], "ApplyFailed")
    assert tasks["deleted"].status["result"]["exitCode"] == 1
    assert_failed(tasks["killed"], "AgentLost")
    assert_cancelled(tasks["interrupted"], by="PodTermination")
    assert_cancelled(tasks["cancelled"])
    for label in ("interrupted", "cancelled"):
        assert (tasks[label].status["result"]["state"], tasks[label].status["result"]["lock"]) == (
            "Complete",
            "Released",
        )
    for task in tasks.values():
        evidence.assert_over(task)
        evidence.assert_ended_once(task)
    last_s = max(task.end.at for task in tasks.values() if task.end) - returned
    say(f"operator away for {absent_s:.0f} s, {len(tasks)} tasks: all had ended {last_s:.1f} s after the next one led")


def series(seconds: float) -> str:
    """One short operation after another: terraform saves its state in between, every 20 s."""
    text = source("sleeping_provider", count="1", duration=f"{SERIES_STEP_S}s")
    head, resource = text.split("\nresource ", 1)
    resources = []
    for number in range(int(seconds / SERIES_STEP_S)):
        after = f"  depends_on = [time_sleep.wait_{number - 1:03}]\n" if number else ""
        resources.append("resource " + resource.replace('"wait" {\n', f'"wait_{number:03}" {{\n{after}'))
    return head + "\n" + "\n".join(resources)


def test_while_the_api_server_is_away_runs_finish_or_keep_what_they_could_not_save(
    installation: Installation, http_states: HttpStates, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    if not installation.cluster.is_ours:
        pytest.skip("takes the API server of a kind cluster away: make cluster-down, then make cluster-up")
    away_s: float = request.config.getoption("--api-away")

    def begun(*labels: str, text: Callable[[str], str]) -> dict[str, RunningTask]:
        objects = [a_run(installation, label, text, away_s) for label in labels]
        for made in objects:
            if made["metadata"]["name"].startswith("http"):
                made["spec"]["backend"] = http_states.backend(made["metadata"]["name"])
        return dict(zip(labels, start(installation, *objects), strict=True))

    going_on = begun("http-series", "series", text=lambda _: series(away_s + STARTING_S))
    sleeping = begun("http-over", "http-lasting", "over", "lasting", text=counted)
    for run in sleeping.values():
        run.until_process(lambda p: p.command[:1] == ["sleep"], "that sleeps")
    for run in going_on.values():
        run.until_operation()
    runs = {**sleeping, **going_on}

    restarted = _restarts(installation)
    with installation.without_api():
        began = time.time()
        at(began, 0.2, away_s)
        for label in ("http-over", "over"):
            runs[label].end_sleep()
            runs[label].until_quiet()
        at(began, 1.0, away_s)
        for label in ("http-lasting", "lasting"):
            assert is_applying(runs[label]), runs[label].story()
        absent_s = time.time() - began
    returned = time.time()
    for label in ("http-lasting", "lasting"):
        runs[label].end_sleep()
    for run in runs.values():
        run.until_ended(ENDED_WITHIN_S)

    outcomes = []
    for label, run in runs.items():
        if label.startswith("http"):
            assert run.phase == "Succeeded", run.story()
            kept = http_states.seen(run.name)
            assert (kept["resources"], kept["lock"]) == (_resources(run), None), run.story()
        else:
            outcomes.append(f"{label}: {_judge_kubernetes(run)}")
        evidence.assert_steps(run, "init", "plan", "apply")
        evidence.assert_over(run)
        evidence.assert_ended_once(run)
    for run in sleeping.values():
        assert evidence.executions(run) == 1, run.story()
    last_s = max(run.end.at for run in runs.values() if run.end) - returned
    say(f"API server away for {absent_s:.0f} s: all runs on the http backend finished; on kubernetes {outcomes};")
    say(
        f"  all had ended {last_s:.1f} s after it was back, and the kubelet had restarted"
        f" {_restarts(installation) - restarted} containers of operators"
    )


def _restarts(installation: Installation) -> int:
    statuses = [pod["status"].get("containerStatuses", []) for pod in installation.operator_pods()]
    return sum(status["restartCount"] for of_pod in statuses for status in of_pod)


def _resources(run: RunningTask) -> list[str]:
    """What its source declares."""
    text = run.now["spec"]["source"]["inline"]["main.tf"]
    return [f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)]


def _judge_kubernetes(run: RunningTask) -> str:
    """Finished, or not persisted and kept; and nothing else."""
    result, wanted = run.status["result"], _resources(run)
    assert (result["lock"], run.state_lock_holder()) == ("Released", ""), run.story()
    if run.phase == "Succeeded":
        assert result["state"] == "Complete", run.story()
        assert _made(run.state()) == wanted, run.story()
        return "finished"
    assert_failed(run, "NotPersisted")
    assert result["state"] == "NotPersisted", run.story()
    name = f"terrahalt-errored-state-{run.run_id.lower()}"
    secret = run.installation.kubectl.find("--namespace", run.namespace, "secret", name)
    assert secret is not None, run.story()
    assert name in run.status["message"], run.story()
    made = _made(json.loads(gzip.decompress(base64.b64decode(secret["data"]["tfstate"]))))
    # Of several, terraform begins no more once it could not save.
    assert made == wanted[: len(made)] != [], run.story()
    return f"not persisted, {len(made)} of {len(wanted)} resources kept"


def _made(state: Json | None) -> list[str]:
    assert state is not None
    return [f"{resource['type']}.{resource['name']}" for resource in state["resources"]]
