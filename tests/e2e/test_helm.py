"""The release of the chart under runs: updated from and rolled back to the version before, tested, not uninstalled.

The version before is the one of which CHANGELOG.md says that upgrade tests start from it: its chart, its CRDs and its
images, from its commit. So there are operators of each version with agents of the other.

`make test` has the short ones; the slow one, from an empty cluster to an empty cluster, is `make upgrade`'s, with
`--applies` runs.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import cluster as test_cluster
from tests import engine
from tests.cluster.model import Images
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.helm import RELEASE
from tests.e2e.installation import CHART, CRDS, NAMESPACES, NARROW, OPERATOR, ROOT, RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, a_task, source, start
from tests.e2e.timeline import Process

pytestmark = pytest.mark.cluster

LEADS_WITHIN_S = 60.0
STARTED_WITHIN_S = 180.0
"""Twenty agents, one after another, on a small machine."""
REPLACED_WITHIN_S = 120.0
"""An agent that starts is let to, and one that never heard that it is to end stays for all of its pod's grace."""
KNOWN_TO_0_1_0 = ("name", "namespace", "engine", "minIdle", "maxAgents")
"""Of what the values say about a pool."""
OURS = (
    "app.kubernetes.io/part-of=terrahalt",
    "app.kubernetes.io/managed-by=terrahalt",
    "app.kubernetes.io/name in (terrahalt-agent, terrahalt-anchor, terrahalt-budget, terrahalt-claim)",
)
KINDS = (
    "deployments,jobs,services,serviceaccounts,configmaps,leases,roles,rolebindings,clusterroles"
    ",clusterrolebindings,poddisruptionbudgets,networkpolicies,validatingadmissionpolicies"
    ",validatingadmissionpolicybindings,agentpools.terrahalt.dev"
)


@dataclass(frozen=True)
class Version:
    """What a release is made of."""

    chart: Path
    crds: Path
    values: Json

    @property
    def operator(self) -> str:
        """Its image."""
        return str(self.values["operator"]["image"]["reference"])

    @property
    def agent(self) -> str:
        """The image of the pools' engine."""
        images = self.values["agent"]
        return str((images["image"] if engine.NAME == "terraform" else images["openTofu"]["image"])["reference"])

    def with_pool(self, **pool: int) -> Version:
        """With this one alone."""
        values = {**self.values, "pools": [{"name": "default", "namespace": RUNS, "engine": engine.TYPE, **pool}]}
        return Version(self.chart, self.crds, values)


@pytest.fixture(scope="module")
def ours(installation: Installation) -> Version:
    return Version(CHART, CRDS, installation.values())


@pytest.fixture(scope="module")
def former(installation: Installation, ours: Version) -> Version:
    changes = (ROOT / "CHANGELOG.md").read_text()
    (commit,) = re.findall(r"^Upgrade tests start from this version, commit ([0-9a-f]+)\.$", changes, re.MULTILINE)
    project = test_cluster.checkout(commit)
    made: Images = test_cluster.images(installation.cluster.name, engines=[engine.NAME], servers=False, project=project)
    # There are none of the other engine's: no test needs an agent with it.
    agent, tofu = made.agent_test or made.agent_tofu_test, made.agent_tofu_test or made.agent_test
    values = {
        "operator": {"image": {"reference": made.operator}},
        "agent": {"image": {"reference": agent}, "openTofu": {"image": {"reference": tofu}}},
        "pools": [{key: pool[key] for key in KNOWN_TO_0_1_0 if key in pool} for pool in ours.values["pools"]],
    }
    return Version(project / "charts" / "terrahalt", project / "crds", values)


@dataclass(frozen=True)
class Applying:
    """A run in the middle of its apply, and what has to stay as it is."""

    task: RunningTask
    terraform: Process
    container: str

    def assert_undisturbed(self) -> None:
        """The very process, in the very container, and nobody has asked it for anything."""
        task = self.task
        about = {"pid": self.terraform.pid, "ticks": self.terraform.ticks, "node": self.terraform.node}
        assert task.installation.nodes.kill(about, 0), f"{self.terraform} is gone\n{task.story()}"
        assert self.terraform.gone is None, task.story()
        pod = task.installation.kubectl.get("--namespace", task.namespace, "pod", task.pod_name)
        (status,) = pod["status"]["containerStatuses"]
        assert (status["containerID"], status["restartCount"]) == (self.container, 0), task.story()
        assert "running" in status["state"], task.story()
        assert task.phase == "Applying", task.story()
        assert "Cancelling" not in task.phases, task.story()
        evidence.assert_steps(task, "init", "plan", "apply")


def applying(installation: Installation, label: str, count: int) -> list[Applying]:
    text = source("sleeping_provider", count="1", duration="3000s")
    named = [a_task(installation.name(label), text=text, timeoutSeconds=3600) for _ in range(count)]
    runs = []
    for task in start(installation, *named):
        task.until_terraform("apply", within_s=STARTED_WITHIN_S)
        task.until_operation()
        runs.append(Applying(task, task.terraform("apply"), str(task.status["agent"]["containerID"])))
    return runs


def until_told(installation: Installation, label: str) -> RunningTask:
    """A run that succeeds as soon as it is told to end."""
    name = installation.name(label)
    (task,) = start(installation, a_task(name, text=source("counted", task=name, seconds="3000"), timeoutSeconds=3600))
    task.until_child("sleep 3000")
    return task


def assert_succeeds_when_told(task: RunningTask) -> None:
    task.end_sleep()
    assert task.until_ended() == "Succeeded", task.story()
    assert evidence.executions(task) == 1
    evidence.assert_over(task)
    evidence.assert_ended_once(task)


def assert_undisturbed(runs: Sequence[Applying]) -> None:
    for run in runs:
        run.assert_undisturbed()


def assert_cancelled_all(runs: Sequence[Applying]) -> None:
    """As documented; what a cancel leaves behind is looked at on the nodes."""
    for run in runs:
        run.task.cancel()
    for run in runs:
        assert_cancelled(run.task)
        evidence.assert_steps(run.task, "init", "plan", "apply")
        evidence.assert_over(run.task)
        evidence.assert_ended_once(run.task)


def await_leader(installation: Installation, version: Version) -> None:
    """An operator of that version leads, and no other is there."""

    def look() -> bool:
        leader, pods = installation.operator_pod(), installation.operator_pods()
        images = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
        return leader is not None and images == {version.operator}

    installation.timeline.until(look, LEADS_WITHIN_S, lambda: f"an operator that leads, of {version.operator}")


@contextmanager
def put_back(installation: Installation) -> Iterator[None]:
    """Where it fails, this version is there again all the same, as other tests need it."""
    try:
        yield
    except BaseException:
        installation.put()
        raise


@pytest.mark.alone
def test_an_update_and_a_rollback_disturb_no_run_and_all_can_be_cancelled(
    installation: Installation, former: Version, ours: Version
) -> None:
    helm, revision = installation.helm, installation.helm.revision()
    first, second = applying(installation, "of-ours", 2)
    with put_back(installation):
        helm.upgrade(former.chart, former.values, "--wait")
        await_leader(installation, former)
        assert_undisturbed([first, second])
        (third,) = applying(installation, "of-former", 1)
        assert_cancelled_all([first])
        helm("rollback", RELEASE, str(revision), "--wait")
        await_leader(installation, ours)
        assert_undisturbed([second, third])
        await_only_agents_of(installation, ours, third)
    assert_cancelled_all([second, third])


def await_only_agents_of(installation: Installation, version: Version, *runs: Applying) -> None:
    """Those of another one that have none of these runs go soon, also where they were about to start."""
    busy = {run.task.pod_name for run in runs}

    def others() -> list[str]:
        pods = [pod for namespace in (RUNS, NARROW) for pod in installation.agent_pods(namespace, "default")]
        alive = [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        images = {pod["metadata"]["name"]: {each["image"] for each in pod["spec"]["containers"]} for pod in alive}
        return sorted(name for name, has in images.items() if has != {version.agent} and name not in busy)

    installation.timeline.until(
        lambda: not others(), REPLACED_WITHIN_S, lambda: f"these agents of another version to go: {others()}"
    )


def test_helm_test_says_that_it_works_and_leaves_nothing(installation: Installation) -> None:
    done = installation.helm.attempt("test", RELEASE)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "the CRDs are served, and every operator is ready" in said
    left = ["get", "pods,serviceaccounts,roles,rolebindings", "--selector=app.kubernetes.io/name=terrahalt-test"]
    assert installation.kubectl("--namespace", SYSTEM, *left, "--output=name") == ""


@pytest.mark.alone
def test_an_uninstall_is_refused_while_there_is_a_run_and_then_all_goes_on(installation: Installation) -> None:
    runs = applying(installation, "not-left", 1)
    with put_back(installation):
        said = refused(installation, runs)
    type_what_ends(installation, said, runs)


def refused(installation: Installation, runs: Sequence[Applying]) -> str:
    """What is said of an uninstall; nothing is removed, and after what it says to type the release is as before."""
    helm, revision, pods = installation.helm, installation.helm.revision(), uids(installation.operator_pods())
    objects = helm("get", "manifest", RELEASE)
    done = helm.attempt("uninstall", RELEASE)
    said = done.stdout + done.stderr
    assert done.returncode, said
    for run in runs:
        assert f"task {run.task.namespace}/{run.task.name}: Applying" in said
    assert helm.state() == "uninstalling"
    installation.kubectl("get", "--filename=-", "--output=name", stdin=objects)
    log = f"kubectl --namespace {SYSTEM} logs job/{RELEASE}-uninstall"
    assert log in said
    said = installation.kubectl(*shlex.split(log)[1:])
    assert helm.attempt_upgrade(CHART, installation.values()).returncode, "docs/install.md says that it has to be told"
    assert f"  helm rollback {RELEASE} REVISION --namespace {SYSTEM}\n" in said
    helm("rollback", RELEASE, str(revision), "--wait")
    assert helm.state() == "deployed"
    assert uids(installation.operator_pods()) == pods
    assert_undisturbed(runs)
    return said


def type_what_ends(installation: Installation, said: str, runs: Sequence[Applying]) -> None:
    """The commands by which the refusal says that these runs are cancelled."""
    lines = [line.strip() for line in said.splitlines()]
    commands = [line for line in lines if line.startswith("kubectl ") and " patch terraformtask " in line]
    for run in runs:
        (command,) = [command for command in commands if f" {run.task.name} " in command]
        installation.kubectl(*shlex.split(command)[1:])
    for run in runs:
        assert_cancelled(run.task)
        evidence.assert_over(run.task)


def uids(pods: Sequence[Json]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


@pytest.mark.slow
@pytest.mark.alone
def test_many_runs_from_an_installation_of_the_version_before_to_an_uninstall(
    installation: Installation,
    former: Version,
    ours: Version,
    request: pytest.FixtureRequest,
    say: Callable[[str], None],
) -> None:
    count: int = request.config.getoption("--applies") or pytest.skip("--applies 0")
    helm, kubectl, few = installation.helm, installation.kubectl, max(1, count // 5)
    room = {"minIdle": 1, "maxAgents": count + few}
    former, ours = former.with_pool(**room), ours.with_pool(**room)
    with put_back(installation):
        # Those of tests that have failed, too.
        for namespace in NAMESPACES:
            kubectl("--namespace", namespace, "delete", "agentpools", "--all", "--timeout=60s", within_s=70)
        assert_uninstalled(installation)
        kubectl("delete", "--filename", str(ours.crds), "--timeout=60s", within_s=70)
        first = helm.upgrade(former.chart, former.values, "--wait")
        runs, finite = applying(installation, "first", count), until_told(installation, "first")
        took: list[str] = []

        def change(what: str, version: Version, do: Callable[[], object]) -> None:
            """The runs go on; one succeeds, a few are cancelled, and as many are new."""
            nonlocal runs, finite
            began = time.monotonic()
            do()
            await_leader(installation, version)
            took.append(f"{what} {time.monotonic() - began:.0f} s")
            assert_undisturbed(runs)
            assert_succeeds_when_told(finite)
            assert_cancelled_all(runs[:few])
            runs, finite = [*runs[few:], *applying(installation, what, few)], until_told(installation, what)

        def upgrade() -> None:
            kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(ours.crds))
            helm.upgrade(ours.chart, ours.values, "--wait")

        change("upgrade", ours, upgrade)
        change("rollback", former, lambda: helm("rollback", RELEASE, str(first), "--wait"))
        change("again", ours, upgrade)
        assert_succeeds_when_told(finite)
        said = refused(installation, runs)
        helm.upgrade(ours.chart, ours.values, "--wait")
        assert_undisturbed(runs)
        type_what_ends(installation, said, runs)
        assert_uninstalled(installation)
        kubectl("--namespace", RUNS, "delete", "terraformtasks", "--all", "--timeout=60s", within_s=70)
    installation.put()
    say(f"{count} applies beside helm: {', '.join(took)}")


def assert_uninstalled(installation: Installation) -> None:
    """By helm alone; only what docs/install.md says is left, and that can be read."""
    kubectl = installation.kubectl
    tasks = set(kubectl("--namespace", RUNS, "get", "terraformtasks", "--output=name").split())
    installation.helm("uninstall", RELEASE)
    installation.timeline.until(lambda: not installation.operator_pods(), 60, "the operators to be gone")

    def left() -> str:
        get = ("get", KINDS, "--all-namespaces", "--output=name")
        return "".join(kubectl(*get, f"--selector={selector}") for selector in OURS)

    # What anchors own is collected some time after them.
    installation.timeline.until(lambda: not left(), 30, lambda: f"nothing to be left of {left()}")

    def only_kubelets_are_needed() -> bool:
        agents = kubectl.get("pods", "--all-namespaces", "--selector=app.kubernetes.io/managed-by=terrahalt")["items"]
        return all("deletionTimestamp" in p["metadata"] and not p["metadata"].get("finalizers") for p in agents)

    installation.timeline.until(only_kubelets_are_needed, 30, "the agents' pods to be on their way out")
    theirs = kubectl("--namespace", SYSTEM, "get", "leases,secrets", "--output=name").split()
    assert sorted(theirs) == [f"lease.coordination.k8s.io/{OPERATOR}", "secret/terrahalt-trust"]
    assert set(kubectl("--namespace", RUNS, "get", "terraformtasks", "--output=name").split()) == tasks
