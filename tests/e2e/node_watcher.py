"""Looks at the processes of the nodes from outside of the product, and tells the timeline.

A privileged pod on each node runs node/watch_node.py, which belongs to the tests alone. Its lines come
over `kubectl exec`, on any cluster whose nodes take a privileged pod; on a kind cluster of the tool by
way of the node's runtime, so that they go on while the API server is away. A node that a test puts to
sleep is not asked meanwhile, and looked at again from `woke` on. Called by `installation`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests import cluster as test_cluster
from tests.cluster.model import Cluster
from tests.e2e.kubectl import Json, Kubectl
from tests.e2e.timeline import Timeline

NAMESPACE = "terrahalt-watcher"
NAME = "watch-node"
_SCRIPT = Path(__file__).parent / "node" / "watch_node.py"
_ANSWER_WITHIN_S = 30


class NodeWatcher:
    def __init__(self, cluster: Cluster, kubectl: Kubectl, timeline: Timeline) -> None:
        self._cluster, self._kubectl, self._timeline = cluster, kubectl, timeline
        self._streams: dict[str, subprocess.Popen[str]] = {}
        self._followed: dict[str, tuple[str, int]] = {}
        """Node -> the watcher's pod there, and how often its container had been restarted."""
        self._threads: list[threading.Thread] = []
        self._ids = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._asking = threading.Lock()
        self.asleep: set[str] = set()
        self._is_closing = False
        self._tells: Sequence[str] = ("--api",)

    def put(self, image: str) -> None:
        self._kubectl.apply(*_objects(image))
        self._kubectl("--namespace", NAMESPACE, "rollout", "status", f"daemonset/{NAME}", "--timeout=60s")

    def open(self, *, with_states: bool = False) -> None:
        """Begins to look, from the pods that were put there; `with_states`: also at each version of a state."""
        since, self._is_closing = time.time(), False
        self._tells = ("--api", "--states") if with_states else ("--api",)
        # The last one of a kind cluster's nodes may be put to sleep; the first has the API server.
        nodes = sorted(pod["spec"]["nodeName"] for pod in self._pods())
        for node in nodes:
            self._follow(node, with_api=node == nodes[0])

        def has_looked() -> bool:
            return all(self._timeline.looked_at.get(node, 0) > since for node in nodes)

        self._timeline.until(has_looked, 30, "a look at every node")

    def falls_asleep(self, node: str) -> None:
        """To be told before it is frozen or cut off."""
        self.asleep.add(node)

    def lost_power(self, node: str) -> None:
        """No process of it is alive any more."""
        stream = self._streams.pop(node)
        stream.terminate()
        stream.wait()
        self._timeline.look_again()
        for process in self._timeline.alive_on(node):
            self._timeline.note_gone(process, time.time())

    def woke(self, node: str) -> None:
        """Returns when it is looked at again."""
        since = time.time()
        if node not in self._streams:
            pod, restarts = self._followed[node]
            # Until the kubelet has looked, its pod is said to run as before.
            restarted = f"jsonpath={{.status.containerStatuses[0].restartCount}}={restarts + 1}"
            for condition in (restarted, "condition=Ready"):
                wait = ["wait", f"pod/{pod}", f"--for={condition}", "--timeout=120s"]
                self._kubectl("--namespace", NAMESPACE, *wait, within_s=130)
            self._follow(node, with_api=False)
        self._timeline.until(lambda: self._timeline.looked_at[node] > since, 60, f"a look at {node} again")
        self.asleep.discard(node)

    def close(self) -> None:
        self._is_closing = True
        for stream in self._streams.values():
            assert stream.stdin is not None
            stream.stdin.close()  # which ends it, on its node too
        for stream in self._streams.values():
            try:
                stream.wait(_ANSWER_WITHIN_S)
            except subprocess.TimeoutExpired:
                stream.terminate()
                stream.wait()
        for thread in self._threads:
            thread.join()
        self._streams.clear()
        self._threads.clear()

    def remove(self) -> None:
        self._kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
        self._kubectl("delete", "clusterrole,clusterrolebinding", NAMESPACE, "--ignore-not-found")

    def processes(self, *, pod_uid: str = "", run_id: str = "") -> list[Json]:
        """What lives now in that pod or with that run ID, the agent and the pause process included."""
        found: list[Json] = []
        for node in [node for node in self._streams if node not in self.asleep]:
            answer = self._ask(node, {"do": "processes", "pod": pod_uid, "run": run_id}, [])
            found += [{**about, "node": node} for about in answer]
        return found

    def kill(self, process: Json, number: int = signal.SIGKILL) -> bool:
        """Whether that very process was still there."""
        return self.killed_at(process, number) is not None

    def kill_at_once(self, processes: Iterable[Json], number: int = signal.SIGKILL) -> int:
        """How many of them were still there; those of one node get it within a millisecond or so."""
        return len(self._kill(processes, number))

    def killed_at(self, process: Json, number: int) -> float | None:
        """When that very process had got it; None: it was not there any more."""
        return next(iter(self._kill([process], number)), None)

    def _kill(self, processes: Iterable[Json], number: int) -> list[float]:
        """When each of them that was still there had got it."""
        by_node: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for process in processes:
            by_node[process["node"]].append((process["pid"], process["ticks"]))
        killed: list[float] = []
        for node in by_node.keys() - self.asleep:
            killed += self._ask(node, {"do": "kill", "processes": by_node[node], "signal": int(number)}, [])
        return killed

    def kill_container(self, process: Json) -> int:
        """SIGKILL to all processes of its container at once; how many there were."""
        command = {"do": "kill_container", "pid": process["pid"], "ticks": process["ticks"]}
        return int(self._ask(process["node"], command, 0))

    def parent_of(self, process: Json) -> Json:
        """Which may live outside of all pods."""
        about = self._ask(process["node"], {"do": "describe", "pid": process["parent"]}, {})
        return {**about, "node": process["node"]}

    def stop_at_sight(self, pod_uid: str, *words: str) -> None:
        """SIGSTOP to the first process of that pod whose command begins with these words, when it is seen."""
        for node in [node for node in self._streams if node not in self.asleep]:
            self._ask(node, {"do": "trap", "pod": pod_uid, "words": list(words)}, False)

    def _pods(self) -> list[Json]:
        pods: list[Json] = self._kubectl.get("--namespace", NAMESPACE, "pods", f"--selector=app={NAME}")["items"]
        # A rollout leaves the pods that it replaces behind for a while.
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _follow(self, node: str, *, with_api: bool) -> None:
        (found,) = [pod for pod in self._pods() if pod["spec"]["nodeName"] == node]
        pod, (status,) = found["metadata"]["name"], found["status"]["containerStatuses"]
        self._followed[node] = pod, status["restartCount"]
        command = ["python3", "/watch/watch_node.py", *(self._tells if with_api else ())]
        if self._cluster.is_ours:
            container = status["containerID"].partition("://")[2]
            stream = self._kubectl.stream_of(test_cluster.in_container(self._cluster, node, container, command))
        else:
            stream = self._kubectl.stream("--namespace", NAMESPACE, "exec", "--stdin", pod, "--", *command)
        self._streams[node] = stream
        thread = threading.Thread(target=self._read, args=(node, stream), name=f"watch {node}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read(self, node: str, stream: subprocess.Popen[str]) -> None:
        assert stream.stdout is not None
        why = "its stream ended"
        try:
            for text in stream.stdout:
                line = json.loads(text)
                if line["kind"] == "answer":
                    self._answers[line["id"]] = line["answer"]
                if line["kind"] == "pause" and node in self.asleep:
                    # Nobody was there to be missed: all of the node stood still.
                    continue
                self._timeline.note(node, line)
        except (ValueError, KeyError) as error:
            why = repr(error)
        finally:
            stream.stdout.close()
            if stream.stdin is not None:
                stream.stdin.close()
            if not self._is_closing and node not in self.asleep:
                self._timeline.break_off(f"{node}: {why}")

    def _ask(self, node: str, command: Json, if_lost: Any) -> Any:
        """`if_lost`: the answer of one that lost its power meanwhile."""
        number, stream = next(self._ids), self._streams.get(node)
        if stream is None:
            return if_lost
        assert stream.stdin is not None
        # A stream that broke is one of a node that lost its power, or nobody will ever answer.
        with self._asking, contextlib.suppress(OSError, ValueError):
            stream.stdin.write(json.dumps({**command, "id": number}) + "\n")
            stream.stdin.flush()

        def has_answer() -> bool:
            return number in self._answers or self._streams.get(node) is not stream

        self._timeline.until(has_answer, _ANSWER_WITHIN_S, f"an answer of {node} to {command}")
        return self._answers.pop(number, if_lost)


def _objects(image: str) -> list[Json]:
    named = {"name": NAME, "namespace": NAMESPACE}
    rules = [
        {"apiGroups": ["terrahalt.dev"], "resources": ["terraformtasks", "agentpools"], "verbs": ["list", "watch"]},
        {
            "apiGroups": ["", "coordination.k8s.io"],
            "resources": ["pods", "leases", "secrets"],
            "verbs": ["list", "watch"],
        },
    ]
    script = _SCRIPT.read_text()
    pod = {
        "serviceAccountName": NAME,
        "hostPID": True,
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": "watch",
                "image": image,
                "command": ["python3", "-c", "import signal; signal.pause()"],
                # Its share of a busy machine: without a request it would look once in half a second.
                "resources": {"requests": {"cpu": "100m"}},
                "securityContext": {"privileged": True, "runAsUser": 0},
                "volumeMounts": [{"name": "watch", "mountPath": "/watch"}],
            }
        ],
        "volumes": [{"name": "watch", "configMap": {"name": NAME}}],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": {_SCRIPT.name: script}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAMESPACE},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAMESPACE},
            "subjects": [{"kind": "ServiceAccount", **named}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": named,
            "spec": {
                "selector": {"matchLabels": {"app": NAME}},
                "template": {
                    # A new script means new pods: a mounted ConfigMap changes a minute later.
                    "metadata": {
                        "labels": {"app": NAME},
                        "annotations": {"script": sha256(script.encode()).hexdigest()},
                    },
                    "spec": pod,
                },
            },
        },
    ]
