"""The judge is judged: what `evidence` has to find, told to it as lines that a watcher could have written.

Needs no cluster. A suite that never fails proves nothing until it is seen to fail.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.cluster.model import Cluster, Images
from tests.e2e import evidence
from tests.e2e.installation import SYSTEM, Installation
from tests.e2e.kubectl import Json, Kubectl
from tests.e2e.node_watcher import NodeWatcher
from tests.e2e.tasks import RunningTask
from tests.e2e.timeline import Timeline

RUN = "01JRUN00000000000000000000"
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
        installation = Installation(
            cluster=Cluster("c", _NOWHERE, "c", "https://c", is_kind, False, nodes, (), {}),
            images=Images("o", "a", "t"),
            kubectl=kubectl,
            helm=_NOWHERE,
            timeline=self.timeline,
            nodes=SilentNodes(kubectl, self.timeline),
            token="",
        )
        self.task = RunningTask(installation, "ns", "task", "network")

    def told(self, kind: str, at: float, **line: Any) -> Seen:
        self.timeline.note("node", {"kind": kind, "t": T0 + at, **line})
        return self

    def process(self, pid: int, since: float, until: float, command: str, *, parent: int = 1) -> Seen:
        words, ticks = command.split(), 7
        self.told(
            "began", since, pid=pid, ticks=ticks, started=T0 + since, pod="pod", run=RUN, command=words, parent=parent
        )
        return self.told("ended", until + 0.005, pid=pid, ticks=ticks, seen=T0 + until)

    def status(self, at: float, phase: str, finished: str = "") -> Seen:
        status = {"phase": phase, "runID": RUN, "agent": {"podUID": "pod", "podName": "agent"}}
        status |= {"finishedAt": f"2027-01-15T08:00:{finished}Z"} if finished else {}
        return self.object(at, "terraformtasks", "ns", "task", {"spec": {}, "status": status})

    def claim(self, at: float, event: str = "ADDED") -> Seen:
        annotations = {"terrahalt.dev/state": "kubernetes/ns/network-tf"}
        return self.object(at, "leases", SYSTEM, "run-1", {"spec": {"holderIdentity": RUN}}, event, annotations)

    def object(
        self,
        at: float,
        resource: str,
        namespace: str,
        name: str,
        rest: Json,
        event: str = "MODIFIED",
        notes: Any = None,
    ) -> Seen:
        self.version += 1
        meta = {"namespace": namespace, "name": name, "resourceVersion": str(self.version), "annotations": notes or {}}
        return self.told("object", at, resource=resource, event=event, object={"metadata": meta, **rest})

    def looked_until(self, at: float) -> Seen:
        return self.told("pulse", at)


_NOWHERE: Any = None


def test_a_run_that_was_gone_before_the_status_said_so_is_well() -> None:
    seen = Seen().status(0, "Applying").process(5, 0.1, 1.0, "terraform apply").status(1.2, "Cancelled", "01.100000")
    evidence.assert_nothing_outlived(seen.looked_until(2).task)


def test_a_process_that_was_alive_after_the_status_said_cancelled_is_found() -> None:
    seen = Seen().status(0, "Applying").status(1.0, "Cancelled", "01.900000")
    seen.process(5, 0.1, 1.5, "terraform apply").looked_until(2)
    with pytest.raises(AssertionError, match=r"alive after the status said Cancelled at .*terraform apply"):
        evidence.assert_nothing_outlived(seen.task)


def test_a_process_that_never_went_is_found() -> None:
    seen = Seen().status(0, "Applying")
    seen.told("began", 0.5, pid=9, ticks=7, started=T0, pod="pod", run="", command=["sleep", "600"], parent=1)
    seen.status(1.0, "Succeeded", "01.000000").looked_until(2)
    with pytest.raises(AssertionError, match=r"sleep 600.*still there"):
        evidence.assert_nothing_outlived(seen.task)


def test_a_process_between_the_operators_certainty_and_its_write_is_found_where_there_is_one_clock() -> None:
    def seen(*nodes: str, is_kind: bool = False) -> Seen:
        watched = Seen(nodes=nodes, is_kind=is_kind).status(0, "Applying").process(5, 0.1, 1.0, "terraform apply")
        return watched.status(1.2, "Failed", "00.900000").looked_until(2)

    for one_clock in (seen("node"), seen("node", "another", is_kind=True)):
        with pytest.raises(AssertionError, match="alive after finishedAt"):
            evidence.assert_nothing_outlived(one_clock.task)
    evidence.assert_nothing_outlived(seen("node", "another").task)


def test_a_claim_that_was_released_before_the_end_was_on_record_is_found() -> None:
    early = Seen().claim(0).status(0, "Applying").claim(1.0, "DELETED").status(1.1, "Cancelled", "01.000000")
    with pytest.raises(AssertionError, match="released before the end was on record"):
        evidence.assert_claim_released(early.task)
    late = Seen().claim(0).status(0, "Applying").status(1.0, "Cancelled", "01.000000").claim(1.1, "DELETED")
    evidence.assert_claim_released(late.task)


def test_a_step_that_was_executed_twice_is_found_and_a_fork_is_no_step() -> None:
    once = (
        Seen()
        .status(0, "Applying")
        .process(5, 0.1, 0.9, "terraform plan")
        .process(6, 0.5, 0.51, "terraform plan", parent=5)
    )
    evidence.assert_steps(once.task, "plan")
    twice = Seen().status(0, "Applying").process(5, 0.1, 0.3, "terraform apply").process(6, 0.4, 0.5, "terraform apply")
    with pytest.raises(AssertionError):
        evidence.assert_steps(twice.task, "apply")


def test_a_pause_of_the_watcher_is_told_where_it_hides_something() -> None:
    seen = Seen().told("pause", 2.0, since=T0 + 1.0)
    assert seen.timeline.blind_s(T0 + 1.25) == 0.75
    assert seen.timeline.blind_s(T0 + 2.5) == 0.02


def test_whoever_waits_is_told_that_nobody_looks_any_more() -> None:
    seen = Seen()
    seen.timeline.break_off("node: its stream ended")
    with pytest.raises(AssertionError, match="the node watcher ended: node: its stream ended"):
        seen.timeline.until(lambda: False, 5, "never")
