"""`kubectl delete namespace` while tasks run in it: it ends, and so does every run, by the ladder."""

from __future__ import annotations

import pytest

from tests.e2e import evidence
from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import TERMINAL, RunningTask, source, start_one

pytestmark = pytest.mark.cluster

ACCOUNT = "terrahalt-agent"
GONE_WITHIN_S = 300
"""Seconds. Where a pod needs more than 5 s to end, Kubernetes looks at the namespace again only after half of the
longest grace in it."""


def a_namespace_like(installation: Installation, name: str) -> None:
    """With the agents' account and what it may do, as the chart makes them, and a pool."""
    role = installation.kubectl.get("--namespace", RUNS, "role", ACCOUNT)
    named = {"name": ACCOUNT, "namespace": name}
    group = "rbac.authorization.k8s.io"
    installation.kubectl.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": named, "rules": role["rules"]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", **named}],
        },
        a_pool(name),
    )
    installation.wait_for_idle(name, 2)


def a_pool(namespace: str) -> Json:
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": "default", "namespace": namespace},
        "spec": {"minIdle": 2, "maxAgents": 4},
    }


def assert_wound_down(task: RunningTask) -> None:
    """It had an end before its object went, and nothing of its run is left."""
    assert task.end is not None, f"it went without an end\n{task.story()}"
    assert task.end.status["phase"] == "Cancelled", task.story()
    evidence.assert_nothing_outlived(task)
    evidence.assert_claim_released(task)
    assert task.end.status["cancel"]["rung"] == "Interrupt", task.story()


def test_a_namespace_is_deleted_with_its_running_tasks_and_nothing_hangs(installation: Installation) -> None:
    namespace = installation.name("doomed")
    a_namespace_like(installation, namespace)
    applying = start_one(
        installation, "applying", source("sleeping_provider", count="1", duration="300s"), namespace=namespace
    )
    commanding = start_one(installation, "commanding", source("stubborn_commands"), namespace=namespace)
    applying.until_operation()
    commanding.until_child("sleep 600.5")
    queued = start_one(
        installation, "queued", source("greeting", text="never"), namespace=namespace, workspace=applying.workspace
    )
    queued.until_phase("Queued")

    installation.kubectl("delete", "namespace", namespace, f"--timeout={GONE_WITHIN_S}s", within_s=GONE_WITHIN_S + 10)
    for task in (applying, commanding):
        assert_wound_down(task)
    assert queued.run_id == ""
    assert queued.phase not in TERMINAL or queued.phase == "Cancelled"
    pods = installation.kubectl.get("pods", "--all-namespaces", f"--field-selector=metadata.namespace={namespace}")
    assert pods["items"] == []
    left = [
        lease["metadata"]["name"]
        for lease in installation.kubectl.get("--namespace", SYSTEM, "leases")["items"]
        if lease["metadata"].get("annotations", {}).get("terrahalt.dev/task-namespace") == namespace
    ]
    assert left == []


def test_a_namespace_whose_agents_lost_their_rights_first_goes_as_well(installation: Installation) -> None:
    """Kubernetes deletes pods first since 1.33; before, the agents' rights and the state may go under a live run."""
    namespace = installation.name("bereft")
    a_namespace_like(installation, namespace)
    task = start_one(
        installation, "bereft", source("sleeping_provider", count="1", duration="300s"), namespace=namespace
    )
    task.until_operation()
    task.kubectl("delete", "rolebinding", ACCOUNT)
    installation.kubectl("delete", "namespace", namespace, f"--timeout={GONE_WITHIN_S}s", within_s=GONE_WITHIN_S + 10)
    assert_wound_down(task)
    assert task.end is not None
    result = task.end.status["result"]
    # No resource was created, so there was nothing to save; the lock could neither be released nor looked at.
    assert (result["state"], result["lock"]) == ("Complete", "Unknown"), task.story()
    assert result["lockCommand"]
