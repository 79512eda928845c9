"""Private repositories and archives, of a server in the cluster that asks who comes: by a password or by a key."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent_terraform.certificates import an_authority
from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.servers import PRIVATE_GREETING, PrivateRepositories
from tests.e2e.tasks import RunningTask, a_task, plan_run, start, start_one
from tests.e2e.test_approval import approve, planned

pytestmark = pytest.mark.cluster


class Access:
    """Secrets and ConfigMaps of this test, by which its tasks reach the server."""

    def __init__(self, installation: Installation, private: PrivateRepositories) -> None:
        self.private = private
        self._installation = installation
        self.ca = self.put_ca(private.ca)

    def secret(self, way: str, **other: str) -> str:
        """What opens the server's repositories, with other values of some keys."""
        return self._put("Secret", stringData={**self.private.secret(way), **other})

    def put_ca(self, text: str) -> Json:
        """What names it in a source."""
        return {"configMapRef": {"name": self._put("ConfigMap", data={"ca.crt": text})}}

    def git(self, way: str, secret: str = "", **fields: Any) -> Json:
        """The source of a task."""
        named = {"name": secret or self.secret(way)}
        given = {"url": f"{self.private.urls[way]}/network", "ref": way, "path": "envs/prod", "secretRef": named}
        authority = {"caRef": self.ca} if way == "https" else {}
        return {"git": {**given, **authority, **fields}}

    def _put(self, kind: str, **values: Json) -> str:
        name = self._installation.name("git")
        made = {"name": name, "namespace": RUNS}
        self._installation.kubectl.create({"apiVersion": "v1", "kind": kind, "metadata": made, **values})
        return name


@pytest.fixture
def access(installation: Installation, private: PrivateRepositories) -> Access:
    return Access(installation, private)


def outputs_of(task: RunningTask) -> Json:
    """In its state."""
    state = task.state()
    assert state is not None
    return {name: output["value"] for name, output in state["outputs"].items()}


@pytest.mark.parametrize("way", ["https", "ssh"])
def test_a_private_repository_with_a_module_from_a_second_one_is_planned_approved_and_applied_and_its_outputs_are_told(
    installation: Installation, access: Access, way: str
) -> None:
    commit, outputs = access.private.commits[way], installation.name("outputs")
    to: Json = {"secretName": outputs, **({"includeSensitive": True} if way == "ssh" else {})}
    task = start_one(installation, f"by-{way}", "", source=access.git(way), approval="Manual", outputsTo=to)
    task.until_phase("AwaitingApproval")
    assert task.status["source"] == {"commit": commit}
    assert outputs_of(task) == {}
    plan = plan_run(task)
    assert planned(plan) == ["init", "plan"], task.story()

    approve(task)
    assert task.until_ended() == "Succeeded", task.story()
    assert task.now["spec"]["approvedPlanDigest"] == task.status["plan"]["digest"]
    assert task.status["source"] == {"commit": commit}
    assert task.run_id != plan.run_id
    assert [verb for verb in evidence.steps(task) if verb != "output"] == ["init", "apply"], task.story()
    assert outputs_of(task)["greeting"] == PRIVATE_GREETING
    evidence.assert_over(task)

    secret = installation.kubectl.get("--namespace", RUNS, "secret", outputs)
    told = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    sensitive = {"password": "not for everybody"} if way == "ssh" else {}
    assert told == {"greeting": PRIVATE_GREETING, **sensitive}
    left_out = json.loads(secret["metadata"].get("annotations", {}).get("terrahalt.dev/left-out", "[]"))
    assert left_out == ([] if sensitive else ["password"])
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == [task.uid]
    assert task.status["outputs"] == {"secretName": outputs, "count": len(told)}


def test_submodules_and_an_archive_bring_their_modules_along(installation: Installation, access: Access) -> None:
    submodule = access.git("https", ref="submodule", submodules=True)
    archive = {
        "url": f"{access.private.urls['https']}/modules-1.tar.gz",
        "sha256": access.private.sha256,
        "path": "modules-1/greeting",
        "secretRef": {"name": access.secret("https")},
        "caRef": access.ca,
    }
    sources = {"submodule": submodule, "archive": {"archive": archive}}
    tasks = start(installation, *(a_task(installation.name(label), source=given) for label, given in sources.items()))
    for task, output in zip(tasks, ("greeting", "text"), strict=True):
        assert task.until_ended() == "Succeeded", task.story()
        assert outputs_of(task)[output] == PRIVATE_GREETING
        evidence.assert_steps(task, "init", "plan", "apply")
        evidence.assert_over(task)
    assert tasks[0].status["source"] == {"commit": access.private.commits["submodule"]}


def test_who_is_not_let_in_and_a_server_that_is_another_one_are_told_apart_and_nothing_is_run(
    installation: Installation, access: Access, tmp_path: Path
) -> None:
    private = access.private
    wrong = {
        "SourceAccessDenied": {
            "Authentication failed": access.git("https", access.secret("https", password="not the password")),
            "Permission denied": access.git("ssh", access.secret("ssh", identity=private.stranger)),
        },
        "SourceServerNotTrusted": {
            "certificate": access.git("https", caRef=access.put_ca(an_authority(tmp_path).ca)),
            "Host key": access.git("ssh", access.secret("ssh", known_hosts=private.of_another_host)),
        },
    }
    expected = [(reason, words, given) for reason, each in wrong.items() for words, given in each.items()]
    tasks = start(installation, *(a_task(installation.name("refused"), source=given) for _, _, given in expected))
    for task, (reason, words, _) in zip(tasks, expected, strict=True):
        evidence.assert_failed(task, reason)
        assert words in task.status["message"]
        assert "source" not in task.status
        evidence.assert_steps(task)
        evidence.assert_over(task)
