"""A timeline as a watcher could have told it, for tests of those who judge by one. Needs no cluster."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.cluster.model import Cluster, Images
from tests.e2e.installation import SYSTEM, Installation
from tests.e2e.kubectl import Json, Kubectl
from tests.e2e.node_watcher import NodeWatcher
from tests.e2e.tasks import RunningTask
from tests.e2e.timeline import Timeline

RUN = "01JRUN00000000000000000000"
OTHER_RUN = "01JRUN00000000000000000001"
T0 = 1_800_000_000.0
"""2027-01-15T08:00:00Z"""


class NoKubectl(Kubectl):
    """Answers nothing."""

    def attempt(self, *arguments: str, stdin: str = "", within_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 1, "", "there is no cluster")


class SilentNodes(NodeWatcher):
    """Nothing lives now."""

    def processes(self, *, pod_uid: str = "", run_id: str = "") -> list[Json]:
        return []


class Seen:
    """What the watcher told, in seconds since T0; resourceVersions go up by one with each object."""

    def __init__(self, *, nodes: tuple[str, ...] = ("node",), is_kind: bool = False) -> None:
        self.timeline = Timeline()
        self.version = 0
        kubectl = NoKubectl(program=_NOWHERE, environment={})
        cluster = Cluster("c", _NOWHERE, "c", "https://c", is_kind, False, nodes, (), {})
        installation = Installation(
            cluster=cluster,
            images=Images("o", "a", "t"),
            kubectl=kubectl,
            helm=_NOWHERE,
            timeline=self.timeline,
            nodes=SilentNodes(cluster, kubectl, self.timeline),
            token="",
        )
        self.task = RunningTask(installation, "ns", "task", "network")
        self.other = RunningTask(installation, "ns", "other", "network")

    def told(self, kind: str, at: float, **line: Any) -> Seen:
        self.timeline.note("node", {"kind": kind, "t": T0 + at, **line})
        return self

    def process(
        self, pid: int, since: float, until: float, command: str, *, parent: int = 1, run: str = RUN, pod: str = ""
    ) -> Seen:
        words, ticks = command.split(), 7
        self.told(
            "began", since, pid=pid, ticks=ticks, started=T0 + since, pod=pod, run=run, command=words, parent=parent
        )
        return self.told("ended", until + 0.005, pid=pid, ticks=ticks, seen=T0 + until)

    def status(
        self, at: float, phase: str, finished: str = "", *, run: str = RUN, name: str = "task", **more: Any
    ) -> Seen:
        status = {"phase": phase, "runID": run, "agent": {"podUID": run, "podName": "agent"}}
        status |= {"finishedAt": f"2027-01-15T08:00:{finished}Z"} if finished else {}
        return self.object(at, "terraformtasks", "ns", name, {"spec": {}, "status": {**status, **more}})

    def claim(self, at: float, event: str = "ADDED") -> Seen:
        annotations = {"terrahalt.dev/state": "kubernetes/ns/network-tf"}
        return self.object(at, "leases", SYSTEM, "run-1", {"spec": {"holderIdentity": RUN}}, event, annotations)

    def lock(self, at: float, holder: str) -> Seen:
        return self.object(at, "leases", "ns", "lock-tfstate-default-network-tf", {"spec": {"holderIdentity": holder}})

    def object(
        self,
        at: float,
        resource: str,
        namespace: str,
        name: str,
        rest: Json,
        event: str = "MODIFIED",
        notes: Any = None,
        labels: Json | None = None,
    ) -> Seen:
        self.version += 1
        meta: Json = {"namespace": namespace, "name": name, "resourceVersion": str(self.version)}
        meta |= {"annotations": notes or {}, "labels": labels or {}}
        return self.told("object", at, resource=resource, event=event, object={"metadata": meta, **rest})

    def looked_until(self, at: float) -> Seen:
        return self.told("pulse", at)


_NOWHERE: Any = None
