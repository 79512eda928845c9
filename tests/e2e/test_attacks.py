"""User code against its agent and its node, where a pod is needed to try it; the rest is in tests/agent_terraform."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from terrahalt_operator.core import network
from tests.agent_terraform import reads_memory
from tests.cluster.kind_cluster import PODS_PIDS_LIMIT
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import source, start_one
from tests.e2e.test_pools import a_pool

pytestmark = pytest.mark.cluster

NEARLY_ALL = 0.95
"""A container has fewer than its pod, whose other processes are not seen here."""


@pytest.mark.alone
def test_a_run_that_takes_every_process_of_its_pod_is_cancelled_and_disturbs_nobody(
    installation: Installation,
) -> None:
    if not installation.cluster.is_ours:
        pytest.skip("without podPidsLimit, as our own kind clusters have it, this would take the node down")
    bomb = start_one(installation, "bomb", source("fork_bomb"))
    bomb.until_child("sleep 711")

    def is_full() -> bool:
        return len(installation.nodes.processes(pod_uid=bomb.pod_uid)) > NEARLY_ALL * PODS_PIDS_LIMIT

    installation.timeline.until(is_full, 60, "the pod to have no process left")
    other = start_one(installation, "beside-a-bomb", source("greeting", text="x"))
    assert other.until_ended() == "Succeeded", other.story()
    bomb.cancel()
    assert bomb.until_ended() == "Cancelled", bomb.story()
    assert_cancelled(bomb)
    for task in (bomb, other):
        evidence.assert_over(task)


def test_user_code_neither_reads_nor_changes_nor_stops_the_agent_that_runs_it(installation: Installation) -> None:
    files = {"main.tf": source("spy"), "reads_memory.py": Path(reads_memory.__file__).read_text()}
    task = start_one(installation, "spy", "", source={"inline": files})
    assert task.until_ended() == "Succeeded", task.story()
    evidence.assert_over(task)
    log = installation.kubectl("--namespace", RUNS, "logs", task.pod_name)
    said = re.findall(r"\(local-exec\): (READ|WROTE|refused|survived)(?: (\S+))?", log)
    tried = ("environ", "mem", "maps", "auxv", "cwd", "exe", "fd", "ptrace", "file", "file")
    assert said == [*(("refused", what) for what in tried), ("survived", "")], log


def test_a_pools_network_policy_comes_with_its_agents_changes_with_it_and_goes_with_them(
    installation: Installation,
) -> None:
    kubectl, name = installation.kubectl, installation.name("guarded")
    policy = ("--namespace", RUNS, "networkpolicy", f"terrahalt-agents-{name}")

    def closed() -> set[str] | None:
        if (found := kubectl.find(*policy)) is None:
            return None
        (rule,) = found["spec"]["egress"]
        return {block for peer in rule["to"] for block in peer.get("ipBlock", {}).get("except", ())}

    assert closed() is None
    kubectl.create(a_pool(name, minIdle=1, maxAgents=1))
    (agent,) = installation.timeline.until(
        lambda: installation.agent_pods(RUNS, name) or None, 60, f"an agent of {name}"
    )
    assert closed() == set(network.METADATA)
    assert is_for(kubectl.get(*policy), agent)

    opened = "169.254.169.254/32"
    patch = f'{{"spec":{{"allowMetadata":["{opened}"]}}}}'
    kubectl("--namespace", RUNS, "patch", "agentpool", name, "--type=merge", f"--patch={patch}")
    installation.timeline.until(lambda: closed() == {*network.METADATA} - {opened}, 15, "the address to be open")
    (still,) = installation.agent_pods(RUNS, name)
    assert still["metadata"]["uid"] == agent["metadata"]["uid"]

    kubectl("--namespace", RUNS, "delete", "agentpool", name)
    installation.timeline.until(lambda: closed() is None, 90, "the policy to go")


def is_for(policy: Json, agent: Json) -> bool:
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    return bool(
        wanted.items() <= agent["metadata"]["labels"].items()
        and peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": SYSTEM}
    )
