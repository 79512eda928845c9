"""A token that is renewed while a plan is under way: the plan goes on, its apply has the new one, the pool counts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import engine
from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, source, start_one

pytestmark = pytest.mark.cluster
SECRET = "cloud-token"


@pytest.fixture
def pool(installation: Installation) -> Iterator[str]:
    """Its tasks have the token of the Secret."""
    name = installation.name("tokens")
    put_token(installation, "secret-1")
    spec = {"engine": {"type": engine.TYPE}, "minIdle": 1, "maxAgents": 4, "envFrom": [{"secretRef": {"name": SECRET}}]}
    metadata = {"name": name, "namespace": RUNS}
    installation.kubectl.create(
        {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "AgentPool", "metadata": metadata, "spec": spec}
    )
    yield name
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)
    installation.kubectl("--namespace", RUNS, "delete", "secret", SECRET)


def put_token(installation: Installation, token: str) -> None:
    metadata = {"name": SECRET, "namespace": RUNS}
    installation.kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"CLOUD_TOKEN": token}}
    )


def refresh(installation: Installation, pool: str, value: str) -> None:
    annotation = f"terrahalt.dev/refresh-credentials={value}"
    installation.kubectl("--namespace", RUNS, "annotate", "agentpool", pool, annotation, "--overwrite")


def until_refreshed(installation: Installation, pool: str, value: str) -> Json:
    """The status in which every agent that was asked has acknowledged this very refresh."""

    def look() -> Json | None:
        status = installation.pool_status(RUNS, pool)
        told = [c for c in status.get("conditions", ()) if c["type"] == "CredentialsRefreshed"]
        is_of_this = status.get("credentials", {}).get("refresh") == value
        return status if is_of_this and told and told[0]["status"] == "True" else None

    return installation.timeline.until(look, 60, lambda: f"{value}: {installation.pool_status(RUNS, pool)}")


def hold_lock(installation: Installation, task: RunningTask, holder: str | None) -> None:
    """Of the state that `task` has left: a plan waits for it. None: it is free again."""
    info = {"ID": "somebody-else", "Operation": "OperationTypePlan", "Who": "somebody@elsewhere", "Version": "1"}
    lock = {
        "metadata": {"annotations": {"app.terraform.io/lock-info": json.dumps(info) if holder else None}},
        "spec": {"holderIdentity": holder},
    }
    lease = f"lock-tfstate-default-{task.workspace}-tf"
    installation.kubectl("--namespace", RUNS, "patch", "lease", lease, "--type=merge", "-p", json.dumps(lock))


@pytest.mark.alone
def test_a_plan_that_runs_is_left_alone_its_apply_has_the_new_token_and_a_restarted_operator_asks_nobody_again(
    installation: Installation, pool: str
) -> None:
    text = source("with_token")
    first = start_one(installation, "token", text, poolRef={"name": pool}, variables={"round": "1"})
    assert first.until_ended() == "Succeeded", first.story()
    first.until_logged("this is the first token")
    evidence.assert_over(first)
    hold_lock(installation, first, "somebody-else")
    task = start_one(
        installation,
        "token-renewed",
        text,
        workspace=first.workspace,
        poolRef={"name": pool},
        variables={"round": "2"},
        options={"lockTimeoutSeconds": 500},
    )
    plan = task.until_terraform("plan")
    put_token(installation, "secret-2-renewed")
    refresh(installation, pool, "renewed")
    status = until_refreshed(installation, pool, "renewed")
    counted = status["credentials"]
    assert counted["requested"] == counted["acknowledged"] >= 1
    # It counts the agent that plans: while it is asked, nobody may say that all have read.
    assert status["busy"] == 1
    assert plan.gone is None, f"the plan was disturbed\n{task.story()}"

    epoch = installation.epoch()
    assert installation.kill_operator(), "the operator was not running"
    installation.wait_for_take_over(epoch)
    installation.wait_for_idle(RUNS, 1, pool=pool)
    assert until_refreshed(installation, pool, "renewed")["busy"] == 1
    assert plan.gone is None, f"the plan was disturbed\n{task.story()}"

    hold_lock(installation, first, None)
    assert task.until_ended() == "Succeeded", task.story()
    task.until_logged("this is the renewed token")
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)
    log = installation.kubectl("--namespace", RUNS, "logs", task.pod_name)
    assert log.count("its credentials were read again") == 1
    assert "secret-2" not in log
