"""Agents come and go with their pool, and what runs on one is not torn away with either."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests import engine
from tests.e2e import evidence
from tests.e2e.installation import NARROW, RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import source, start_one

pytestmark = pytest.mark.cluster


def a_pool(name: str, **spec: object) -> Json:
    """Of the suite's engine, unless `spec` says another."""
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": name, "namespace": RUNS},
        "spec": {"engine": {"type": engine.TYPE}, **spec},
    }


def test_an_idle_agent_that_is_deleted_is_replaced(installation: Installation) -> None:
    installation.wait_for_idle(NARROW, 1)

    def running() -> list[Json]:
        return [pod for pod in installation.agent_pods(NARROW, "default") if pod["status"]["phase"] == "Running"]

    installation.timeline.until(lambda: bool(running()), 15, "its pod to be seen to run, by another watch")
    (before,) = running()
    name = before["metadata"]["name"]
    installation.kubectl("--namespace", NARROW, "delete", "pod", name, "--wait=false")
    installation.timeline.until(
        lambda: installation.timeline.latest("pods", NARROW, name) is None, 60, f"{name} to be gone"
    )
    installation.wait_for_idle(NARROW, 1)
    assert name not in {p["metadata"]["name"] for p in installation.agent_pods(NARROW, "default")}


def test_a_pool_without_idle_agents_starts_one_for_a_task_and_keeps_none(installation: Installation) -> None:
    name = installation.name("cold")
    installation.kubectl.create(a_pool(name, minIdle=0, maxAgents=1))
    task = start_one(installation, "cold", source("greeting", text="x"), poolRef={"name": name})
    assert task.until_ended() == "Succeeded", task.story()
    assert task.phases[0] == "Queued"
    evidence.assert_over(task)

    def has_none() -> bool:
        return installation.timeline.history("agentpools", RUNS, name)[-1].status.get("agents") == 0

    installation.timeline.until(has_none, 60, f"the last agent of {name} to go")
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)


def test_a_pool_that_is_deleted_lets_its_run_finish_and_then_leaves_nothing(installation: Installation) -> None:
    name = installation.name("dropped")
    installation.kubectl.create(a_pool(name, minIdle=1, maxAgents=2))
    task = start_one(installation, "dropped", source("counted", task=name, seconds="600"), poolRef={"name": name})
    task.until_child("sleep 600")
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name, "--wait=false")
    waiting = start_one(installation, "late", source("greeting", text="x"), poolRef={"name": name})
    waiting.until_phase("Queued")
    assert f"pool {name}, which is being deleted" in waiting.status["queue"]["waitingFor"]

    def is_told() -> bool:
        pool = installation.timeline.latest("agentpools", RUNS, name)
        conditions = pool.status.get("conditions", ()) if pool else ()
        told = [c["message"] for c in conditions if c["reason"] == "Deleting"]
        return f"waits for the end of: {task.name}" in told

    task.until(is_told, 30, "its pool to say that it waits for it")
    task.end_sleep()
    assert task.until_ended() == "Succeeded", task.story()
    evidence.assert_over(task)
    assert task.end is not None
    gone = installation.timeline.until(
        lambda: next((s for s in installation.timeline.history("agentpools", RUNS, name) if s.is_deleted), None),
        60,
        f"pool {name} to go",
    )
    assert gone.version > task.end.version, "the pool went while its task ran"
    installation.timeline.until(lambda: not installation.agent_pods(RUNS, name), 60, f"no pod of {name}")
    anchor = ("--namespace", RUNS, "configmap", f"terrahalt-agents-{name}")
    # The operator takes it away once it has seen the last pod go, as this test has just now.
    installation.timeline.until(lambda: installation.kubectl.find(*anchor) is None, 30, f"the anchor of {name} to go")
    waiting.delete()
    waiting.until_gone()


def test_who_evicts_is_refused_while_a_run_is_there_where_drains_wait(installation: Installation) -> None:
    name = installation.name("patient")
    installation.kubectl.create(a_pool(name, minIdle=1, maxAgents=2, drainPolicy="Wait"))
    task = start_one(
        installation, "evicted", source("sleeping_provider", count="1", duration="300s"), poolRef={"name": name}
    )
    task.until_operation()
    installation.wait_for_idle(RUNS, 1, pool=name)
    (idle,) = [p for p in installation.agent_pods(RUNS, name) if "terrahalt.dev/run" not in p["metadata"]["labels"]]
    refused = evict(installation, task.pod_name)
    assert refused.returncode, refused.stdout
    assert "disruption budget" in refused.stderr
    done = evict(installation, idle["metadata"]["name"])
    assert done.returncode == 0, done.stderr
    assert task.phase == "Applying", task.story()
    assert task.terraform("apply").gone is None

    installation.kubectl(
        "--namespace", RUNS, "patch", "agentpool", name, "--type=merge", "--patch", '{"spec":{"drainPolicy":"Ladder"}}'
    )
    installation.timeline.until(lambda: evict(installation, task.pod_name).returncode == 0, 30, "the eviction to pass")
    assert task.until_ended() == "Cancelled", task.story()
    assert task.status["result"]["reason"] == "CancelledByPodTermination"
    evidence.assert_over(task)
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)
    assert installation.kubectl.find("--namespace", RUNS, "pdb", f"terrahalt-agents-{name}") is None


def evict(installation: Installation, pod: str) -> subprocess.CompletedProcess[str]:
    """As `kubectl drain` and autoscalers do it."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": RUNS}}
    path = f"/api/v1/namespaces/{RUNS}/pods/{pod}/eviction"
    return installation.kubectl.attempt("create", "--raw", path, "--filename=-", stdin=json.dumps(body))


def test_a_pool_says_what_keeps_its_agents_away(installation: Installation) -> None:
    """A quota, and a node that nobody has."""
    name, quota = installation.name("stuck"), installation.name("no-pods")
    nowhere = {"spec": {"nodeSelector": {"terrahalt.dev/nowhere": "x"}}}
    installation.kubectl.create(a_pool(name, minIdle=1, maxAgents=1, podTemplate=nowhere))
    task = start_one(installation, "stuck", source("greeting", text="x"), poolRef={"name": name})

    def condition(reason: str) -> Json | None:
        seen = installation.timeline.history("agentpools", RUNS, name)
        found = seen[-1].status.get("conditions", [{}])[0] if seen else {}
        return found if found.get("reason") == reason else None

    told = installation.timeline.until(lambda: condition("Unschedulable"), 30, "the scheduler's words")
    assert "node affinity/selector" in told["message"]
    installation.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": quota, "namespace": RUNS},
            "spec": {"hard": {"count/pods": "0"}},
        }
    )
    try:
        installation.kubectl(
            "--namespace", RUNS, "patch", "agentpool", name, "--type=merge",
            "--patch", '{"spec":{"podTemplate":{"spec":{"nodeSelector":null}}}}',
        )  # fmt: skip
        told = installation.timeline.until(lambda: condition("QuotaExceeded"), 30, "the quota's words")
        assert quota in told["message"]
        task.until(lambda: quota in task.status["queue"]["waitingFor"], 30, "the task to be told")
    finally:
        installation.kubectl("--namespace", RUNS, "delete", "resourcequota", quota)
    assert task.until_ended() == "Succeeded", task.story()
    assert installation.timeline.until(lambda: condition("AgentsStart"), 30, "all to be well")["message"] == ""
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)


def test_an_agents_pod_is_what_its_pools_template_says_and_runs_a_task(installation: Installation) -> None:
    name = installation.name("made")
    sidecar = {
        "name": "beside",
        "image": installation.images.agent_test,
        "restartPolicy": "Always",
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"],
    }
    template = {
        "metadata": {"labels": {"team": "network"}},
        "spec": {
            "containers": [{"name": "agent", "env": [{"name": "PROXY", "value": "x"}]}],
            "initContainers": [sidecar],
            "volumes": [{"name": "work", "emptyDir": {"medium": "Memory"}}],
        },
    }
    installation.kubectl.create(a_pool(name, minIdle=0, maxAgents=1, podTemplate=template))
    task = start_one(installation, "made", source("greeting", text="x"), poolRef={"name": name})
    assert task.until_ended() == "Succeeded", task.story()
    seen = [s.object for s in installation.timeline.history("pods", RUNS, task.pod_name)]
    busy = next(pod for pod in seen if "terrahalt.dev/run" in pod["metadata"]["labels"])
    assert busy["metadata"]["labels"]["team"] == "network"
    marks = busy["metadata"]["annotations"]
    assert marks["karpenter.sh/do-not-disrupt"] == "true"
    assert marks["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert "terrahalt.dev/since" in marks
    assert {"name": "work", "emptyDir": {"medium": "Memory"}} in busy["spec"]["volumes"]

    def is_over() -> bool:
        latest = installation.timeline.latest("pods", RUNS, task.pod_name)
        return latest is None or latest.status.get("phase") == "Succeeded"

    installation.timeline.until(is_over, 60, "the sidecar to end with its agent")
    evidence.assert_over(task)
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)


def test_an_agent_with_two_tasks_has_a_clean_room_for_each_and_is_then_replaced(installation: Installation) -> None:
    name = installation.name("twice")
    installation.kubectl.create(a_pool(name, minIdle=0, maxAgents=1, maxTasksPerAgent=2))
    tasks = []
    for label, text in (
        ("leaving", source("leaving_files")),
        ("looking", source("looking_for_files")),
        ("third", source("greeting", text="x")),
    ):
        task = start_one(installation, label, text, poolRef={"name": name})
        assert task.until_ended() == "Succeeded", task.story()
        evidence.assert_nothing_outlived(task)
        evidence.assert_claim_released(task)
        tasks.append(task)
    first, second, third = tasks
    assert first.pod_uid == second.pod_uid
    assert third.pod_uid != first.pod_uid
    assert len({task.run_id for task in tasks}) == 3
    evidence.assert_agent_used_up(second)
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)
    evidence.assert_agent_used_up(third)
