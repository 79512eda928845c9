"""A mirror and a cache on volumes: the first run unpacks its provider and shares it, the next one runs that."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import engine
from tests.cluster.images import REGISTRIES
from tests.e2e import evidence, node_watcher
from tests.e2e.installation import RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import source, start_one

pytestmark = pytest.mark.cluster
MIRROR, CACHE = "mirror", "cache"
_PACK = """
import os, pathlib, signal, zipfile
os.umask(0o022)
for folder in ("mirror", "cache"):
    pathlib.Path("/volumes", folder).mkdir()
(binary,) = pathlib.Path("/usr/share/terraform/plugins").glob("*/*/*/*/*/*")
*_, host, namespace, kind, version, platform, name = binary.parts
home = pathlib.Path("/volumes/mirror", host, namespace, kind)
home.mkdir(parents=True)
with zipfile.ZipFile(home / f"terraform-provider-{kind}_{version}_{platform}.zip", "w") as archive:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o755 << 16
    archive.writestr(entry, binary.read_bytes())
open("/tmp/packed", "w").close()
signal.pause()
"""
_REMOVE = "import shutil; [shutil.rmtree(f'/volumes/{folder}') for folder in ('mirror', 'cache')]"


@pytest.fixture
def pool(installation: Installation) -> Iterator[str]:
    """Its providers come from a mirror of packed ones, and it has an empty cache; both lie on the first node."""
    name, node = installation.name("provided"), installation.cluster.nodes[0]
    folder = f"/var/lib/{name}"
    images = installation.images
    keeper: Json = {
        "name": "keeper",
        "image": images.agent_test if engine.NAME == "terraform" else images.agent_tofu_test,
        "command": ["python3", "-c", _PACK],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "volumes", "mountPath": "/volumes"}],
        "startupProbe": {"exec": {"command": ["ls", "/tmp/packed"]}, "periodSeconds": 1, "failureThreshold": 60},
    }
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [keeper],
        "volumes": [{"name": "volumes", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}],
    }
    within, beside = ("--namespace", RUNS), ("--namespace", node_watcher.NAMESPACE)
    made = {"name": name, "namespace": RUNS}
    # Where tasks run, no such pod starts.
    root = {"name": name, "namespace": node_watcher.NAMESPACE}
    installation.kubectl.create({"apiVersion": "v1", "kind": "Pod", "metadata": root, "spec": spec})
    installation.kubectl(*beside, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=90s", within_s=100)
    claims = {kind: f"{name}-{kind}" for kind in (MIRROR, CACHE)}
    for kind, claim in claims.items():
        installation.kubectl.create(*a_volume(claim, f"{folder}/{kind}", node))
    providers = {"filesystemMirror": {"claimName": claims[MIRROR]}, "cache": {"claimName": claims[CACHE]}}
    pool_spec = {"engine": {"type": engine.TYPE}, "minIdle": 1, "maxAgents": 3, "providers": providers}
    installation.kubectl.create(
        {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "AgentPool", "metadata": made, "spec": pool_spec}
    )
    yield name
    installation.kubectl(*within, "delete", "agentpool", name)
    installation.timeline.until(lambda: not installation.agent_pods(RUNS, name), 60, f"no agent of {name}")
    installation.kubectl(*beside, "exec", name, "--", "python3", "-c", _REMOVE)
    installation.kubectl(*beside, "delete", "pod", name, "--wait=false")
    installation.kubectl(*within, "delete", "pvc", *claims.values(), "--wait=false")
    installation.kubectl("delete", "pv", *claims.values(), "--wait=false")


def a_volume(claim: str, path: str, node: str) -> tuple[Json, Json]:
    """A folder of one node, and the claim that has it."""
    size = {"storage": "1Gi"}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume: Json = {
        "capacity": size,
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": RUNS, "name": claim},
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    wanted: Json = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": claim,
        "resources": {"requests": size},
    }
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": claim}, "spec": volume},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": RUNS},
            "spec": wanted,
        },
    )


def test_what_the_first_run_has_unpacked_the_next_one_runs_and_neither_can_change_it(
    installation: Installation, pool: str
) -> None:
    text, said = source("where_from"), []
    for _ in range(2):
        task = start_one(installation, "provided", text, poolRef={"name": pool})
        assert task.until_ended() == "Succeeded", task.story()
        task.until_logged("(local-exec): nothing is added to the mirror")
        log = installation.kubectl("--namespace", RUNS, "logs", task.pod_name)
        (place,) = [place for line in log.splitlines() if (place := line.partition("(local-exec): it runs from ")[2])]
        said.append((place, "(local-exec): nothing is added there" in log, "is in the pool's cache now" in log))
        evidence.assert_over(task)
    (first, was_read_only, was_shared), (second, is_read_only, is_shared) = said
    assert f"/plugins/{REGISTRIES[engine.NAME]}/hashicorp/time/" in first
    assert (was_read_only, was_shared) == (False, True)
    assert second.startswith(f"/var/cache/terrahalt/providers/{REGISTRIES[engine.NAME]}/hashicorp/time/")
    assert (is_read_only, is_shared) == (True, False)


def test_a_pool_whose_mirror_is_empty_says_so_and_gives_no_task_to_an_agent(
    installation: Installation, pool: str
) -> None:
    empty = {"spec": {"providers": {"filesystemMirror": {"claimName": f"{pool}-{CACHE}"}, "cache": None}}}
    installation.kubectl("--namespace", RUNS, "patch", "agentpool", pool, "--type=merge", "-p", json.dumps(empty))

    def told() -> bool:
        conditions = installation.pool_status(RUNS, pool).get("conditions", ())
        return any(c["type"] == "Ready" and "providers is empty" in c["message"] for c in conditions)

    installation.timeline.until(told, 60, lambda: f"{installation.pool_status(RUNS, pool)}")
    assert installation.pool_status(RUNS, pool)["idle"] == 0
