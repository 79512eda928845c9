"""A task that is left alone: what it does, what it leaves, and what it tells meanwhile."""

from __future__ import annotations

import hashlib

import pytest

from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import a_task, counted, source, start, start_one

pytestmark = pytest.mark.cluster


def test_an_apply_runs_to_the_end_and_leaves_its_outputs_in_the_state(installation: Installation) -> None:
    task = start_one(installation, "apply", source("greeting", text="hello"))
    assert task.until_ended() == "Succeeded", task.story()

    state = task.state()
    assert state is not None
    assert state["outputs"]["greeting"]["value"] == "hello"
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)
    assert task.status["plan"] == {"add": 1, "change": 0, "destroy": 0}
    assert task.status["result"] == {"exitCode": 0, "lock": "Released", "reason": "Applied", "state": "Complete"}
    assert task.status["progress"]["summary"] == "1/1"
    assert {kind: task.condition(kind)["status"] for kind in ("Finished", "Ready", "Stalled", "Reconciling")} == {
        "Finished": "True",
        "Ready": "True",
        "Stalled": "False",
        "Reconciling": "False",
    }


def test_the_phases_come_in_their_order_and_each_once(installation: Installation) -> None:
    task = counted(installation, "phases")
    task.until_phase("Applying")
    task.end_sleep()
    assert task.until_ended() == "Succeeded", task.story()
    order = ["Queued", "Assigned", "Preparing", "Planning", "Applying", "Succeeded"]
    assert [order.index(phase) for phase in task.phases] == sorted({order.index(phase) for phase in task.phases})
    assert len({s.object["status"]["runID"] for s in task.history if s.status.get("runID")}) == 1


def test_source_variables_and_secrets_come_from_where_the_task_says(installation: Installation) -> None:
    name = installation.name("inputs")
    installation.kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": RUNS},
            "data": {"main.tf": source("outputs")},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": RUNS},
            "stringData": {"password": "correct horse battery staple"},
        },
    )
    (task,) = start(
        installation,
        a_task(
            name,
            source={"configMapRef": {"name": name}},
            variables={"region": "eu-west-1", "zones": ["b", "a"]},
            envFrom=[{"secretRef": {"name": name}, "prefix": "TF_VAR_"}],
        ),
    )
    assert task.until_ended() == "Succeeded", task.story()
    state = task.state()
    assert state is not None
    assert state["outputs"]["zones"]["value"] == ["eu-west-1a", "eu-west-1b"]
    hashed = hashlib.sha256(b"correct horse battery staple").hexdigest()
    assert state["outputs"]["password_hash"]["value"] == hashed
    assert "correct horse" not in task.kubectl("logs", task.pod_name), "the secret is in the pod's log"


def test_a_plan_creates_nothing_and_changes_no_state(installation: Installation) -> None:
    applied = start_one(installation, "planned", source("greeting", text="before"))
    assert applied.until_ended() == "Succeeded", applied.story()
    before = applied.state()
    planned = start_one(
        installation, "plan", source("greeting", text="after"), action="Plan", workspace=applied.workspace
    )
    assert planned.until_ended() == "Succeeded", planned.story()

    assert planned.status["plan"] == {"add": 0, "change": 1, "destroy": 0}
    assert planned.status["result"]["reason"] == "Planned"
    assert planned.condition("PlanReady")["status"] == "True"
    assert planned.state() == before
    evidence.assert_steps(planned, "init", "plan")
    evidence.assert_over(planned)


def test_a_plan_of_a_new_workspace_leaves_no_resource(installation: Installation) -> None:
    task = start_one(installation, "new-plan", source("greeting", text="never"), action="Plan")
    assert task.until_ended() == "Succeeded", task.story()
    state = task.state()
    assert state is None or (state["resources"], state["outputs"]) == ([], {})
    assert task.status["plan"] == {"add": 1, "change": 0, "destroy": 0}
    evidence.assert_steps(task, "init", "plan")
    evidence.assert_over(task)


def test_a_destroy_empties_the_state(installation: Installation) -> None:
    text = source("greeting", text="soon gone")
    applied = start_one(installation, "destroyed", text)
    assert applied.until_ended() == "Succeeded", applied.story()
    destroyed = start_one(installation, "destroy", text, action="Destroy", workspace=applied.workspace)
    assert destroyed.until_ended() == "Succeeded", destroyed.story()

    state = destroyed.state()
    assert state is not None
    assert (state["resources"], state["outputs"]) == ([], {})
    assert destroyed.status["plan"] == {"add": 0, "change": 0, "destroy": 1}
    evidence.assert_steps(destroyed, "init", "plan", "apply")
    evidence.assert_over(destroyed)


def test_what_terraform_leaves_running_in_the_background_is_gone_when_it_succeeds(installation: Installation) -> None:
    task = start_one(installation, "background", source("leaving_children"))
    assert task.until_ended() == "Succeeded", task.story()
    children = [p for p in task.processes if "sleep 700" in p.text]
    assert children, f"the watcher saw no child\n{task.story()}"
    evidence.assert_over(task)


def test_an_agent_runs_one_task_and_a_fresh_one_takes_its_place(installation: Installation) -> None:
    wanted = installation.kubectl.get("--namespace", RUNS, "agentpool", "default")["spec"]["minIdle"]
    first = start_one(installation, "first", source("greeting", text="1"))
    assert first.until_ended() == "Succeeded", first.story()
    evidence.assert_agent_used_up(first)
    installation.wait_for_idle(RUNS, wanted)
    second = start_one(installation, "second", source("greeting", text="2"), workspace=first.workspace)
    assert second.until_ended() == "Succeeded", second.story()
    assert second.pod_uid != first.pod_uid
    assert second.run_id != first.run_id
