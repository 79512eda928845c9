"""What operators and agents say when they are scraped, and the runbooks of docs/monitoring.md, typed as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import evidence
from tests.e2e.installation import CONTAINER_SECURITY, OPERATOR, POD_SECURITY, ROOT, RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, counted, source, start_one
from tests.e2e.test_pools import a_pool
from tests.e2e.test_states import Person, saving_forbidden
from tests.monitoring.promtool import complaints

pytestmark = pytest.mark.cluster

SECTIONS = re.split(r"^### ", (ROOT / "docs/monitoring.md").read_text().partition("\n## Runbooks\n")[2], flags=re.M)
RUNBOOKS = {
    section.split("\n", 1)[0]: [
        line for block in re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S) for line in block.splitlines()
    ]
    for section in SECTIONS[1:]
}
"""Alert -> its commands."""
OF_POOLS_AND_OPERATORS = {
    "TerrahaltOperatorDown",
    "TerrahaltNoLeader",
    "TerrahaltPoolNotReady",
    "TerrahaltWatchStalled",
    "TerrahaltReconcileSlow",
}


class Runbook:
    """Somebody who types what it says; the pool in `team-a` is one of the tests'."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._person = Person(installation, folder)
        self.typed: set[str] = set()

    def answers(self, alert: str, *, system: str = SYSTEM) -> list[str]:
        """What each of its commands prints. Fails with the first that does."""
        self.typed.add(alert)
        return [self.answer(command, system=system) for command in RUNBOOKS[alert]]

    def answer(self, command: str, *, system: str = SYSTEM) -> str:
        return self._person.types(re.sub(r"\bteam-a\b", RUNS, command).replace(SYSTEM, system))


@pytest.fixture
def runbook(installation: Installation, tmp_path: Path) -> Runbook:
    return Runbook(installation, tmp_path)


def test_promtool_has_nothing_to_say_of_what_is_scraped(installation: Installation) -> None:
    task = start_one(installation, "scraped", source("sleeping_command", seconds="600"))
    task.until_child("sleep 600")
    # One that has just started runs before it listens.
    ready = [pod for pod in installation.idle_agents(RUNS) if pod["status"]["containerStatuses"][0]["ready"]]
    agents = [pod["metadata"]["name"] for pod in ready]
    standby, leader = names_of_operators(installation)
    pages = {name: scraped(installation, SYSTEM, f"{name}:8080") for name in (standby, leader)}
    pages |= {name: scraped(installation, RUNS, f"{name}:8081") for name in (*agents, task.pod_name)}
    assert numbers(pages[leader])["terrahalt_leader"] == 1
    assert numbers(pages[standby])["terrahalt_leader"] == 0
    assert numbers(pages[task.pod_name])["terrahalt_agent_run_alive"] == 1
    for page in pages.values():
        assert complaints("check", "metrics", stdin=page.encode()) == ""
    task.cancel()
    assert task.until_ended() == "Cancelled", task.story()


def names_of_operators(installation: Installation) -> tuple[str, str]:
    """The one that stands by, and the one that leads; both are ready."""
    standby, leader = installation.wait_for_standby(), installation.operator_pod()
    assert leader is not None
    return standby["metadata"]["name"], leader["metadata"]["name"]


def scraped(installation: Installation, namespace: str, pod: str) -> str:
    return installation.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}/proxy/metrics")


def numbers(page: str) -> dict[str, float]:
    """By metric with its labels."""
    samples = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def told(installation: Installation) -> dict[str, float]:
    """By the operator that leads."""
    return numbers(scraped(installation, SYSTEM, f"{names_of_operators(installation)[1]}:8080"))


def test_the_runbooks_of_runs_show_what_the_alerts_are_about(installation: Installation, runbook: Runbook) -> None:
    pool = f'namespace="{RUNS}",pool="default"'
    counters = [f"terrahalt_{name}_total{{{pool}}}" for name in ("agents_lost", "forced_ends", "leaked_locks")]
    counters.append(f'terrahalt_states_in_doubt_total{{{pool},state="NotPersisted"}}')
    before = told(installation)
    unsaved = counted(installation, "unsaved")
    stuck = start_one(installation, "stuck", source("sleeping_provider", count="1", duration="300s"))
    lost = start_one(installation, "lost", source("sleeping_provider", count="1", duration="300s"))
    unsaved.until_child("sleep 600")
    with saving_forbidden(installation, unsaved):
        unsaved.end_sleep()
        lost.until_operation()
        assert installation.nodes.kill(installation.agent_process(lost.pod_uid))
        stuck.until_operation()
        stuck.freeze_providers()
        stuck.cancel()
        stuck.until_phase("Cancelling")
        pending, pods, nodes = runbook.answers("TerrahaltCancelPending")
        assert stuck.pod_name in row_of(stuck, pending)
        assert "Cancelling" in row_of(stuck, pending)
        assert stuck.pod_name in pods
        assert installation.cluster.nodes[0] in nodes
        assert told(installation)["terrahalt_cancel_pending_seconds"] > 0
        stuck.patch('{"spec":{"cancelMode":"Force"}}')
        ended = [stuck.until_ended(), lost.until_ended(), unsaved.until_ended()]
        assert ended == ["Cancelled", "Failed", "Failed"], stuck.story()
    after = told(installation)
    assert [after[name] - before.get(name, 0) for name in counters] == [1, 1, 1, 1]

    (forced,) = runbook.answers("TerrahaltForcedEnds")
    assert row_of(stuck, forced)[2:5] == ["true", stuck.status["cancel"]["rung"], "1"]
    losses, events, _ = runbook.answers("TerrahaltAgentLost")
    assert row_of(lost, losses)[2:4] == ["AgentLost", "Held"]
    assert f"terraformtask/{lost.name}" in events
    (leaks,) = runbook.answers("TerrahaltLockLeaked")
    assert row_of(lost, leaks)[2:4] == ["Held", lost.state_lock_holder()]
    states, kept = runbook.answers("TerrahaltStateNotSaved")
    assert row_of(unsaved, states)[2:4] == [unsaved.workspace, "NotPersisted"]
    assert f"terrahalt-errored-state-{unsaved.run_id.lower()}" in kept
    for task in (stuck, lost, unsaved):
        evidence.assert_over(task)
    assert runbook.typed == set(RUNBOOKS) - OF_POOLS_AND_OPERATORS


def row_of(task: RunningTask, table: str) -> list[str]:
    """The line of a task in a table of all namespaces."""
    (cells,) = [cells for line in table.splitlines() if (cells := line.split())[:2] == [task.namespace, task.name]]
    return cells


def test_the_runbooks_of_pools_and_operators_work(installation: Installation, runbook: Runbook) -> None:
    _, name = names_of_operators(installation)
    shown, described, _ = runbook.answers("TerrahaltOperatorDown")
    assert name in shown
    assert re.search(rf"^Name: +{name}$", described, re.M)
    lease, log, ready = runbook.answers("TerrahaltNoLeader")
    assert f"holderIdentity: {name}_" in lease
    assert log.strip()
    assert "readyz check passed" in ready
    asked, log, ready = runbook.answers("TerrahaltReconcileSlow")
    assert numbers(asked)["process_cpu_seconds_total"] > 0
    assert numbers(asked)['terrahalt_reconcile_duration_seconds_sum{kind="pool"}'] > 0
    assert log.strip()
    assert "readyz check passed" in ready

    with in_place_of_operators(installation, name):
        ready, shown, restarted = runbook.answers("TerrahaltWatchStalled", system=RUNS)
        assert "readyz check passed" in ready
        assert f"{OPERATOR}-restarting" in shown
        assert restarted == f"deployment.apps/{OPERATOR} restarted\n"
        assert runbook.answers("TerrahaltOperatorDown", system=RUNS)[2] == "last words\n"

    pool, quota = installation.name("stuck"), installation.name("roomy")
    nowhere = {"spec": {"nodeSelector": {"terrahalt.dev/nowhere": "x"}}}
    a_quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": quota, "namespace": RUNS}}
    installation.kubectl.create(
        a_pool(pool, minIdle=1, maxAgents=1, podTemplate=nowhere), {**a_quota, "spec": {"hard": {"count/pods": "500"}}}
    )

    def is_told() -> bool:
        conditions = installation.pool_status(RUNS, pool).get("conditions", ())
        return any(c["reason"] == "Unschedulable" for c in conditions)

    installation.timeline.until(is_told, 30, "the scheduler's words")
    pools, agents, quotas = runbook.answers("TerrahaltPoolNotReady")
    assert re.search(rf"^{pool} .*Unschedulable.*node affinity/selector", pools, re.M)
    assert f"{pool}-agent-" in agents
    assert quota in quotas
    assert told(installation)[f'terrahalt_pool_ready{{namespace="{RUNS}",pool="{pool}"}}'] == 0
    installation.kubectl("--namespace", RUNS, "delete", f"agentpool/{pool}", f"resourcequota/{quota}")
    assert runbook.typed == OF_POOLS_AND_OPERATORS


@contextmanager
def in_place_of_operators(installation: Installation, name: str) -> Iterator[None]:
    """For what needs one that has restarted, or restarts them: their Deployment without pods, and one that ends."""
    found = installation.kubectl.get("--namespace", SYSTEM, "deployment", OPERATOR)
    labels = installation.kubectl.get("--namespace", SYSTEM, "pod", name)["metadata"]["labels"]
    once = "test -e /kept/once && exec sleep 600; touch /kept/once; echo last words"
    container: Json = {
        "name": "operator",
        "image": installation.images.agent_test,
        "command": ["sh", "-c", once],
        "volumeMounts": [{"name": "kept", "mountPath": "/kept"}],
        "securityContext": CONTAINER_SECURITY,
    }
    restarting = f"{OPERATOR}-restarting"
    installation.kubectl.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": OPERATOR, "namespace": RUNS, "labels": found["metadata"]["labels"]},
            "spec": {**found["spec"], "replicas": 0},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            # Not those by which the ReplicaSet would have it.
            "metadata": {"name": restarting, "namespace": RUNS, "labels": labels | {"pod-template-hash": "none"}},
            "spec": {
                "securityContext": POD_SECURITY,
                "containers": [container],
                "volumes": [{"name": "kept", "emptyDir": {}}],
            },
        },
    )
    within = ("--namespace", RUNS)
    try:
        has_restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1"
        installation.kubectl(*within, "wait", f"pod/{restarting}", has_restarted, "--timeout=30s")
        yield
    finally:
        installation.kubectl(
            *within, "delete", f"deployment/{OPERATOR}", f"pod/{restarting}", "--grace-period=0", "--force"
        )
