"""Agents come and go with their pool, and what runs on one is not torn away with either."""

from __future__ import annotations

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
    (before,) = [p for p in installation.agent_pods(NARROW, "default") if p["status"]["phase"] == "Running"]
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
    task = start_one(installation, "dropped", source("sleeping_command", seconds="5"), poolRef={"name": name})
    task.until_child("sleep 5")
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name, "--wait=false")
    waiting = start_one(installation, "late", source("greeting", text="x"), poolRef={"name": name})
    waiting.until_phase("Queued")
    assert f"pool {name}, which is being deleted" in waiting.status["queue"]["waitingFor"]
    assert task.until_ended() == "Succeeded", task.story()
    evidence.assert_over(task)
    seen = installation.timeline.history("agentpools", RUNS, name)
    assert seen[-1].is_deleted or "deletionTimestamp" in seen[-1].object["metadata"]
    told = [c["message"] for s in seen for c in s.status.get("conditions", ()) if c["reason"] == "Deleting"]
    assert f"waits for the end of: {task.name}" in told
    assert task.end is not None
    gone = installation.timeline.until(
        lambda: next((s for s in installation.timeline.history("agentpools", RUNS, name) if s.is_deleted), None),
        60,
        f"pool {name} to go",
    )
    assert gone.version > task.end.version, "the pool went while its task ran"
    installation.timeline.until(lambda: not installation.agent_pods(RUNS, name), 60, f"no pod of {name}")
    assert installation.kubectl.find("--namespace", RUNS, "configmap", f"terrahalt-agents-{name}") is None
    waiting.delete()
    waiting.until_gone()
