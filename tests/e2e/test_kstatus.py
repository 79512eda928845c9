"""kstatus, the library itself, reads tasks and pools on the cluster as a person would, in each version seen."""

from __future__ import annotations

import pytest

from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import TERMINAL, RunningTask, source, start_one
from tests.e2e.test_approval import approve, manual
from tests.e2e.test_pools import a_pool
from tests.e2e.timeline import Sighting
from tests.kstatus.library import readings

pytestmark = pytest.mark.cluster


def read(seen: list[Sighting]) -> list[str]:
    """What kstatus says of each version."""
    return readings(sighting.object for sighting in seen if not sighting.is_deleted)


def as_a_person_would(task: RunningTask) -> list[str]:
    at_the_end = {"Succeeded": "Current", "Failed": "Failed", "Cancelled": "Failed"}
    return [at_the_end.get(s.status.get("phase", ""), "InProgress") for s in task.history]


def test_every_version_of_a_task_is_read_as_a_person_would(installation: Installation) -> None:
    cancelled = start_one(installation, "read", source("sleeping_command", seconds="600"))
    cancelled.until_child("sleep 600")
    failed = start_one(
        installation, "read-after", source("failing_precondition"), workspace=cancelled.workspace, cancelGraceSeconds=60
    )
    approved = manual(installation, "read-approved")
    failed.until_phase("Queued")
    approved.until_phase("AwaitingApproval")
    approve(approved)
    cancelled.cancel()
    tasks = (cancelled, failed, approved)
    assert [task.until_ended() for task in tasks] == ["Cancelled", "Failed", "Succeeded"], cancelled.story()
    for task in tasks:
        evidence.assert_over(task)
    # A field that may still be shortened after the end is another generation.
    failed.patch('{"spec":{"cancelGraceSeconds":30}}')
    failed.until(lambda: failed.status["observedGeneration"] == 2, 30, "the change to be seen")

    passed = {phase for task in tasks for phase in task.phases}
    assert passed >= {"Queued", "AwaitingApproval", "Applying", "Cancelling", *TERMINAL}
    for task in tasks:
        first = task.history[0]
        assert "phase" not in first.status, "the version as it was created"
        expected = as_a_person_would(task)
        behind = [s.status["observedGeneration"] != s.object["metadata"]["generation"] for s in task.history]
        expected = ["InProgress" if is_behind else each for each, is_behind in zip(expected, behind, strict=True)]
        assert read(task.history) == expected, task.story()
    assert read(failed.history)[-2:] == ["InProgress", "Failed"], failed.story()


def test_a_pool_is_current_once_its_agents_start_and_in_progress_while_they_can_not(installation: Installation) -> None:
    name = installation.name("read")
    nowhere = {"spec": {"nodeSelector": {"terrahalt.dev/nowhere": "x"}}}
    installation.kubectl.create(a_pool(name, minIdle=1, maxAgents=1, podTemplate=nowhere))

    def read_as(expected: str, reason: str) -> bool:
        seen = installation.timeline.history("agentpools", RUNS, name)
        ready = [c for s in seen[-1:] for c in s.status.get("conditions", ()) if c["type"] == "Ready"]
        return bool(ready) and ready[0]["reason"] == reason and read(seen[-1:]) == [expected]

    until = installation.timeline.until
    until(lambda: read_as("InProgress", "Unschedulable"), 30, "no node to be found, and the pool read so")
    assert read(installation.timeline.history("agentpools", RUNS, name)[:1]) == ["InProgress"], "as it was created"
    everywhere = '{"spec":{"podTemplate":{"spec":{"nodeSelector":null}}}}'
    installation.kubectl("--namespace", RUNS, "patch", "agentpool", name, "--type=merge", "--patch", everywhere)
    until(lambda: read_as("Current", "AgentsStart"), 30, "an agent to start, and the pool read so")
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)
