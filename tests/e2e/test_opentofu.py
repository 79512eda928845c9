"""OpenTofu beside Terraform in one installation: its pool runs tofu and nothing else, and a cancel halts it too.

The whole suite runs with it by `ENGINE=tofu make test-e2e`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import pins
from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import RunningTask, source, start_one
from tests.e2e.test_cancel import GONE_WITHIN_S
from tests.e2e.test_pools import a_pool

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def pool(installation: Installation) -> Iterator[str]:
    name = installation.name("tofu")
    installation.kubectl.create(a_pool(name, engine={"type": "OpenTofu"}, minIdle=1, maxAgents=3))
    yield name
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)


def assert_only_tofu_ran(task: RunningTask) -> None:
    assert {p.command[0] for p in task.processes if p.is_terraform()} == {"tofu"}, task.story()
    state = task.state()
    assert state is not None, "the state was not saved"
    assert state["terraform_version"] == pins.TOFU  # as tofu calls the field
    read = " / ".join(str(s.status.get("message", "")) for s in task.history)
    assert "tofu apply" in read, read
    assert "terraform " not in read, read


def test_a_task_of_an_opentofu_pool_runs_to_its_end(installation: Installation, pool: str) -> None:
    text = source("sleeping_provider", count="1", duration="3s")
    task = start_one(installation, "tofu-apply", text, poolRef={"name": pool})
    assert task.until_ended() == "Succeeded", task.story()
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)
    assert_only_tofu_ran(task)
    assert task.status["result"] == {"exitCode": 0, "lock": "Released", "reason": "Applied", "state": "Complete"}


def test_a_cancel_in_mid_apply_halts_tofu_and_its_state_is_saved(installation: Installation, pool: str) -> None:
    text = source("sleeping_provider", count="2", duration="300s")
    task = start_one(installation, "tofu-cancel", text, poolRef={"name": pool})
    task.until_operation()
    task.until_child("terraform-provider-time")
    patched = task.cancel()
    evidence.assert_cancelled(task)
    evidence.assert_over(task)
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()
    assert_only_tofu_ran(task)
    assert task.status["cancel"]["rung"] == "Interrupt"
    assert (task.status["result"]["state"], task.status["result"]["lock"]) == ("Complete", "Released")
