"""A pod that plays agent, and one that plays operator: neither is believed, and neither disturbs the real ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from kubernetes.aio import client, config

from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.trust import prove_pod
from terrahalt_operator.errors import AgentUntrusted
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.installation import CONTAINER_SECURITY, NARROW, POD_SECURITY, RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import source, start_one

pytestmark = pytest.mark.cluster

PODS = Path(__file__).parent / "pods"
GONE_WITHIN_S = 90.0
FAKES = 3
AUDIENCE = "terrahalt.dev/agent"
PRETENDER = {"app": "pretender"}
READER = """
import sys
for file in sys.argv[1:]:
    try:
        open(file, "rb").read(1)
        print("read")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.fixture
def small_pool(installation: Installation) -> Iterator[str]:
    """One agent in all, which is idle."""
    name = installation.name("guarded")
    installation.kubectl.create(
        {
            "apiVersion": "terrahalt.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": name, "namespace": RUNS},
            "spec": {"minIdle": 1, "maxAgents": 1},
        }
    )

    def is_idle() -> bool:
        pool = installation.timeline.latest("agentpools", RUNS, name)
        return pool is not None and pool.status.get("idle") == 1

    installation.timeline.until(is_idle, 60, f"an idle agent of {name}")
    yield name
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", name)


def a_perfect_copy(agent: Json, name: str) -> Json:
    """Of an agent's pod: labels, annotations, owner, finalizer, account, token, image; only its command is another."""
    meta, spec = agent["metadata"], agent["spec"]
    (container,) = (c for c in spec["containers"] if c["name"] == "agent")
    script = (PODS / "fake_agent.py").read_text()
    kept = ("name", "image", "imagePullPolicy", "env", "ports", "readinessProbe", "resources", "securityContext")
    mounts = [m for m in container["volumeMounts"] if not m["mountPath"].endswith("kubernetes.io/serviceaccount")]
    copied = {key: container[key] for key in kept if key in container}
    mounted = {m["name"] for m in mounts}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            **{key: meta[key] for key in ("labels", "annotations", "finalizers", "ownerReferences")},
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": spec["serviceAccountName"],
            "terminationGracePeriodSeconds": 1,
            "securityContext": spec["securityContext"],
            "containers": [{**copied, "volumeMounts": mounts, "command": ["python3", "-c", script]}],
            "volumes": [v for v in spec["volumes"] if v["name"] in mounted],
        },
    }


def listening(installation: Installation, agent: Json, name: str) -> Popen[str] | None:
    """What a copy under this name says once it listens; None: it was taken away before it could."""
    installation.kubectl.create(a_perfect_copy(agent, name))

    def has_begun() -> bool:
        seen = installation.timeline.history("pods", RUNS, name)
        states = [c["state"] for c in seen[-1].status.get("containerStatuses", ())] if seen else []
        return bool(seen) and (seen[-1].is_deleted or any("waiting" not in state for state in states))

    installation.timeline.until(has_begun, 60, f"{name} to run")
    log = installation.kubectl.stream("--namespace", RUNS, "logs", "--follow", name)
    assert log.stdout is not None
    if '"listening"' in log.stdout.readline():
        return log
    with log:
        return None


def test_a_pod_that_plays_agent_is_not_dialled_gets_no_task_and_is_taken_away(
    installation: Installation, small_pool: str
) -> None:
    (agent,) = installation.agent_pods(RUNS, small_pool)
    names = [installation.name("fake") for _ in range(FAKES)]
    heard = ((name, log) for name in names if (log := listening(installation, agent, name)))
    name, log = next(heard, ("", None))
    assert log is not None, f"{FAKES} copies of an agent were taken away before they listened"

    real = start_one(installation, "real", source("sleeping_command", seconds="600"), poolRef={"name": small_pool})
    real.until_child("sleep 600")
    assert real.pod_uid == agent["metadata"]["uid"]
    # To the operator's eyes this pod is as ready as that one was.
    waiting = start_one(installation, "lured", source("greeting", text="x"), poolRef={"name": small_pool})
    waiting.until(lambda: "all 1 of at most 1" in waiting.status.get("queue", {}).get("waitingFor", ""), 15, "to wait")
    installation.timeline.until(
        lambda: installation.timeline.latest("pods", RUNS, name) is None, GONE_WITHIN_S, f"{name} to go"
    )
    with log:  # it ends with its pod
        assert log.stdout is not None
        assert log.stdout.read() == ""
    evidence.assert_never_ran(waiting)
    for task in (waiting, real):
        task.cancel()
        assert_cancelled(task)
    evidence.assert_over(real)


async def test_only_the_token_of_the_very_pod_proves_it(installation: Installation) -> None:
    """As the API server reviews real tokens, by the operator's own check."""
    installation.wait_for_idle(RUNS, 2)
    pod, other = [agent["metadata"] for agent in installation.idle_agents(RUNS, 2)][:2]

    def token(*options: str) -> str:
        return installation.kubectl("--namespace", RUNS, "create", "token", "terrahalt-agent", *options).strip()

    def of(meta: Json) -> tuple[str, ...]:
        return "--bound-object-kind=Pod", f"--bound-object-name={meta['name']}", f"--bound-object-uid={meta['uid']}"

    configuration = client.Configuration()
    await config.load_kube_config(str(installation.cluster.kubeconfig), client_configuration=configuration)
    cluster = Cluster(client.ApiClient(configuration))
    try:
        await prove_pod(cluster, token(f"--audience={AUDIENCE}", *of(pod)), pod["uid"])
        with pytest.raises(AgentUntrusted, match="token of another pod"):
            await prove_pod(cluster, token(f"--audience={AUDIENCE}", *of(other)), pod["uid"])
        with pytest.raises(AgentUntrusted, match="token of another pod"):
            await prove_pod(cluster, token(f"--audience={AUDIENCE}"), pod["uid"])
        with pytest.raises(AgentUntrusted, match="the API server refuses"):
            await prove_pod(cluster, token(*of(pod)), pod["uid"])
        with pytest.raises(AgentUntrusted, match="the API server refuses"):
            await prove_pod(cluster, "made up", pod["uid"])
    finally:
        await cluster.close()


def let_in(name: str) -> Json:
    """Where the cluster enforces policies, the pool's own keeps strangers from the port that this is about."""
    peer = {"podSelector": {"matchLabels": PRETENDER}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NARROW},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "terrahalt-agent"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peer]}],
        },
    }


def test_a_pod_that_plays_operator_is_refused_and_the_agent_stays_as_usable(installation: Installation) -> None:
    (agent,) = installation.idle_agents(NARROW)
    name = installation.name("fake-operator")
    trust = installation.kubectl.get("--namespace", SYSTEM, "secret", "terrahalt-trust")["data"]
    # So that the test can tell a refusal from an agent that answers nobody.
    key_of_ours = {"name": "REAL_CA_KEY", "value": base64.b64decode(trust["ca.key"]).decode()}
    command = ["python3", "-c", (PODS / "fake_operator.py").read_text(), agent["status"]["podIP"]]
    kubectl = installation.kubectl
    kubectl.create(let_in(name))
    kubectl.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NARROW, "labels": PRETENDER},
            "spec": {
                "restartPolicy": "Never",
                "securityContext": POD_SECURITY,
                "containers": [
                    {
                        "name": "dial",
                        "securityContext": CONTAINER_SECURITY,
                        "image": installation.images.agent_test,
                        "command": command,
                        "env": [key_of_ours],
                    }
                ],
            },
        }
    )
    kubectl("--namespace", NARROW, "wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")
    outcomes = json.loads(kubectl("--namespace", NARROW, "logs", name))
    address = kubectl.get("--namespace", NARROW, "pod", name)["status"]["podIP"]
    assert outcomes.pop("the real CA").startswith("answered: b'HTTP/1.1 101"), outcomes
    assert outcomes == dict.fromkeys(("no certificate", "self-signed", "another CA of the same name"), "refused")
    log = kubectl("--namespace", NARROW, "logs", agent["metadata"]["name"])
    assert log.count(f"operator at {address} connected") == 1, log

    task = start_one(installation, "unimpressed", source("greeting", text="x"), namespace=NARROW)
    assert task.until_ended() == "Succeeded", task.story()
    assert task.pod_uid == agent["metadata"]["uid"]
    evidence.assert_over(task)
    kubectl("--namespace", NARROW, "delete", f"pod/{name}", f"networkpolicy/{name}", "--wait=false")


def test_what_runs_beside_the_agent_can_not_read_its_memory(installation: Installation) -> None:
    agent = installation.idle_agents(RUNS)[0]
    files = ("/proc/self/environ", "/proc/1/environ", "/proc/1/mem", "/proc/1/fd/1")
    said = installation.kubectl(
        "--namespace", RUNS, "exec", agent["metadata"]["name"], "--", "python3", "-c", READER, *files
    )
    assert said.split() == ["read", "PermissionError", "PermissionError", "PermissionError"]
