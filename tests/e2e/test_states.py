"""No state is lost in silence: what is kept, and the commands that a person is told, tried as they are told."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import engine
from tests.agent_terraform.harness import program
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled, assert_failed
from tests.e2e.installation import RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, counted, source, start_one

pytestmark = pytest.mark.cluster
BACKEND = 'terraform {\n  backend "kubernetes" {\n    secret_suffix = "%s-tf"\n    namespace = "%s"\n  }\n}\n'


@pytest.fixture
def person(installation: Installation, tmp_path: Path) -> Person:
    return Person(installation, tmp_path)


class Person:
    """Somebody with a kubeconfig, kubectl, the engine, and an empty folder."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._folder = folder
        programs = [str(installation.kubectl.program.parent), str(program().parent)]
        path = os.pathsep.join([*programs, os.environ["PATH"]])
        self._environment = {**os.environ, **installation.kubectl.environment, "PATH": path}
        self._environment["KUBE_CONFIG_PATH"] = self._environment["KUBECONFIG"]

    def types(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def has(self, file: str) -> Json:
        state: Json = json.loads((self._folder / file).read_text())
        return state

    def pushes(self, file: str, task: RunningTask) -> None:
        (self._folder / "main.tf").write_text(BACKEND % (task.workspace, task.namespace))
        self.types(f"{engine.NAME} init -input=false && {engine.NAME} state push {file}")


def told(task: RunningTask) -> list[str]:
    """The commands in its message."""
    return re.findall(r"`([^`]+)`", task.status["message"])


def state_in(secret: Json) -> Json:
    state: Json = json.loads(gzip.decompress(base64.b64decode(secret["data"]["tfstate"])))
    return state


def secret(installation: Installation, name: str) -> Json | None:
    return installation.kubectl.find("--namespace", RUNS, "secret", name)


def finished(task: RunningTask) -> RunningTask:
    assert task.until_ended() == "Succeeded", task.story()
    return task


def test_an_apply_keeps_the_state_from_before_it(installation: Installation) -> None:
    first = finished(start_one(installation, "kept", source("greeting", text="before")))
    name = f"terrahalt-previous-state-{first.workspace}"
    kept = secret(installation, name)
    assert kept is not None, "init makes an empty state"
    assert state_in(kept)["resources"] == []
    before = first.state()
    second = finished(start_one(installation, "kept-next", source("greeting", text="after"), workspace=first.workspace))
    kept = secret(installation, name)
    assert kept is not None
    assert state_in(kept) == before
    assert kept["metadata"]["annotations"]["terrahalt.dev/task"] == second.name
    assert second.state() != before


@contextmanager
def saving_forbidden(installation: Installation, task: RunningTask) -> Iterator[None]:
    """Nobody may change a Secret of the state of this task's workspace."""
    name = installation.name("no-saving")
    about = f"object.metadata.name.startsWith('tfstate-default-{task.workspace}-tf')"
    rules = [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]},
    ]
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": rules},
        "matchConditions": [{"name": "state", "expression": about}],
        "validations": [{"expression": "false", "message": "not now"}],
    }
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": RUNS}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": where}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    installation.kubectl.create(
        api | {"kind": "ValidatingAdmissionPolicy", "spec": spec},
        api | {"kind": "ValidatingAdmissionPolicyBinding", "spec": binding},
    )
    metadata = {"name": f"tfstate-default-{task.workspace}-tf-probe", "namespace": RUNS}
    probe = json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})

    def denied() -> bool:
        done = installation.kubectl.attempt("create", "--dry-run=server", "--filename=-", stdin=probe)
        return "not now" in done.stderr

    try:
        task.until(denied, 30, "the policy to apply")
        yield
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            installation.kubectl("delete", kind, name)
    # The API server goes by its own watch of policies: some time after they are gone, too.
    task.until(lambda: not denied(), 30, "the policy to be forgotten")


def test_a_state_that_can_not_be_saved_is_kept_and_pushed_by_the_commands_that_are_told(
    installation: Installation, person: Person
) -> None:
    task = counted(installation, "unsaved")
    task.until_child("sleep 600")
    with saving_forbidden(installation, task):
        task.end_sleep()
        assert_failed(task, "NotPersisted")
        assert task.status["result"]["state"] == "NotPersisted"
        evidence.assert_over(task)
    before = task.state()
    assert before is None or before["resources"] == []

    fetch, push = told(task)
    assert push == f"{engine.NAME} state push"
    person.types(fetch)
    assert [r["type"] for r in person.has("errored.tfstate")["resources"]] == ["terraform_data"]
    person.pushes("errored.tfstate", task)
    state = task.state()
    assert state is not None
    assert [r["type"] for r in state["resources"]] == ["terraform_data"]


@pytest.mark.skipif(engine.NAME == "tofu", reason="OpenTofu never splits a state: it is whole, or not there")
def test_a_state_that_a_kill_has_torn_is_told_and_the_way_back_works(
    installation: Installation, person: Person, silent_host: str
) -> None:
    first = finished(start_one(installation, "torn", source("large_state", text="one", thousands="40")))
    name = f"tfstate-default-{first.workspace}-tf"
    assert secret(installation, f"{name}-part-4") is not None

    text = source("large_state", text="two", thousands="40")
    watch = ("get", "secret", name, "--watch", "--output=jsonpath={.metadata.resourceVersion}{'\\n'}")
    with (
        saving_hangs(installation, f"{name}-part-3", silent_host),
        installation.kubectl.stream("--namespace", RUNS, *watch) as changes,
    ):
        assert changes.stdout is not None
        assert changes.stdout.readline(), "the state as it is: every change from here on is seen"
        task = start_one(installation, "tearing", text, workspace=first.workspace)
        apply = task.until_terraform("apply")
        assert changes.stdout.readline(), "the first part of the state is not written"
        task.signal(apply, signal.SIGKILL)
        changes.terminate()
    assert_failed(task, "TerraformKilled")
    assert (task.status["result"]["state"], task.status["result"]["lock"]) == ("Corrupt", "Released")
    evidence.assert_over(task)

    fetch, remove, push = told(task)
    assert push == "terraform state push"
    person.types(fetch)
    person.types(remove)
    assert secret(installation, name) is None
    person.pushes("previous.tfstate", task)
    finished(start_one(installation, "mended", text, workspace=first.workspace))


@contextmanager
def saving_hangs(installation: Installation, saved: str, silent_host: str) -> Iterator[None]:
    """The API server asks somebody who does not answer before it makes or changes this Secret of a state."""
    name = installation.name("asks-first")
    about = f"object.metadata.name == '{saved}'"
    made = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]}
    asked = {
        "name": f"{name}.terrahalt.test",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 30,
        "clientConfig": {"url": f"https://{silent_host}/"},
        "rules": [made],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": RUNS}},
        "matchConditions": [{"name": "state", "expression": about}],
    }
    installation.kubectl.create(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [asked],
        }
    )
    probe = json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": saved, "namespace": RUNS}})
    create = ("create", "--dry-run=server", "--filename=-", "--request-timeout=1s")

    def hangs() -> bool:
        return "Client.Timeout" in installation.kubectl.attempt(*create, stdin=probe).stderr

    try:
        installation.timeline.until(hangs, 30, "the webhook to be asked")
        yield
    finally:
        installation.kubectl("delete", "validatingwebhookconfiguration", name)


def test_a_lock_that_init_has_left_before_there_is_a_state_is_released(
    installation: Installation, silent_host: str
) -> None:
    workspace = installation.name("stateless")
    text = source("greeting", text="after all")
    with saving_hangs(installation, f"tfstate-default-{workspace}-tf", silent_host):
        task = start_one(installation, "first-save", text, workspace=workspace, cancelGraceSeconds=1)
        task.until_terraform("init")
        task.until(lambda: bool(task.state_lock_holder()), 30, "init to have the lock")
        task.cancel()
        assert_cancelled(task)
        assert task.status["cancel"]["rung"] == "Kill", task.story()
        assert task.status["result"]["lock"] == "Released", task.story()
        evidence.assert_steps(task, "init")
        evidence.assert_over(task)
        assert (task.state(), task.state_lock_holder()) == (None, "")
    finished(start_one(installation, "first-save-again", text, workspace=workspace))
