"""The one end without evidence: a person gives a run up, and it is wound down all the same if it can be."""

from __future__ import annotations

import shlex
import signal

import pytest

from tests.e2e import evidence
from tests.e2e.installation import Installation
from tests.e2e.tasks import RunningTask, a_task, source, start, start_one

pytestmark = pytest.mark.cluster

ABANDON = '{"spec":{"cancel":true,"cancelMode":"Abandon"}}'
WOUND_DOWN_WITHIN_S = 60.0


def terraform_lives(task: RunningTask) -> bool:
    task.installation.timeline.looked_after(task.end.at if task.end else 0.0)
    return any(p.is_terraform("apply") and p.gone is None for p in task.processes)


def assert_pod_was_kept_until_its_container_had_ended(task: RunningTask) -> None:
    for seen in task.installation.timeline.history("pods", task.namespace, task.pod_name):
        if "terrahalt.dev/agent" not in seen.object["metadata"].get("finalizers", []):
            states = [c["state"] for c in seen.status.get("containerStatuses", [])]
            assert all("terminated" in state for state in states), task.story()


def test_an_agent_that_does_not_answer_is_abandoned_and_wound_down_when_it_can_be(installation: Installation) -> None:
    text = source("sleeping_provider", count="1", duration="300s")
    task = start_one(installation, "abandoned", text)
    task.until_terraform("apply")
    task.until(lambda: bool(task.status.get("progress", {}).get("current")), 30, "an operation under way")
    (agent,) = [p for p in installation.nodes.processes(pod_uid=task.pod_uid) if "terrahalt_agent" in p["command"]]
    assert installation.nodes.kill(agent, signal.SIGSTOP)
    try:
        task.cancel()
        task.until_phase("Cancelling")
        assert task.end is None
        task.patch(ABANDON)
        assert task.until_ended() == "Failed", task.story()
        told = task.status
        assert (told["result"]["reason"], told["result"]["state"]) == ("Abandoned", "Unknown")
        assert terraform_lives(task), f"nothing was left to be given up\n{task.story()}"
        assert told["result"]["lock"] == "Unknown"
        look = shlex.split(told["result"]["lockCommand"])
        assert (holder := task.state_lock_holder()), "the state is not locked, so there is nothing to look at"
        assert holder in installation.kubectl(*look[1:])
        evidence.assert_claim_released(task)

        again = a_task(installation.name("after"), workspace=task.workspace, text=text, action="Plan")
        (following,) = start(installation, again)
        following.until_terraform("plan")
        assert following.pod_uid != task.pod_uid
        assert terraform_lives(task), f"it went by itself\n{task.story()}"
    finally:
        installation.nodes.kill(agent, signal.SIGCONT)

    task.until(lambda: all(p.gone is not None for p in task.processes), WOUND_DOWN_WITHIN_S, "the end of its processes")
    evidence.assert_agent_used_up(task)
    assert_pod_was_kept_until_its_container_had_ended(task)
    left = installation.nodes.processes(pod_uid=task.pod_uid, run_id=task.run_id)
    assert not [p for p in left if p["guest"]], left
    # It had waited for the lock of the state, which the one before it gave back at its end.
    assert following.until_ended() == "Succeeded", following.story()
    evidence.assert_over(following)
    assert {k: task.status[k] for k in ("phase", "result")} == {k: told[k] for k in ("phase", "result")}
