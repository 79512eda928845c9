"""A task as the tests handle it: written with `a_task`, followed, cancelled and judged through `RunningTask`."""

from __future__ import annotations

import base64
import gzip
import json
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.timeline import Process, Sighting

T = TypeVar("T")

SOURCES = Path(__file__).parent / "sources"
TERMINAL = ("Succeeded", "Failed", "Cancelled")
CANCEL = '{"spec":{"cancel":true}}'
START_WITHIN_S = 60.0
"""An agent may have to be started first, on a busy machine."""
END_WITHIN_S = 90.0


def source(name: str, **values: str) -> str:
    """The text of sources/<name>.tf, with @NAME@ replaced by values."""
    text = (SOURCES / f"{name}.tf").read_text()
    for key, value in values.items():
        text = text.replace(f"@{key.upper()}@", value)
    left = re.search(r"@[A-Z_]+@", text)
    assert left is None, f"sources/{name}.tf: no value for {left}"
    return text


def a_task(name: str, *, namespace: str = RUNS, workspace: str = "", text: str = "", **spec: Any) -> Json:
    """An apply of these terraform files, with further fields of its spec."""
    whole = {
        "action": "Apply",
        "workspace": workspace or name,
        "source": {"inline": {"main.tf": text}},
        "timeoutSeconds": 600,
        **spec,
    }
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": name, "namespace": namespace},
        "spec": whole,
    }


@dataclass(frozen=True)
class RunningTask:
    installation: Installation
    namespace: str
    name: str
    workspace: str
    uid: str = ""
    """Of one of several that had this name; empty: all of them."""

    # ---- what a user types

    def kubectl(self, *arguments: str, within_s: float = 60) -> str:
        return self.installation.kubectl("--namespace", self.namespace, *arguments, within_s=within_s)

    def cancel(self) -> float:
        """As documented. When kubectl returned, on this machine's clock."""
        self.patch(CANCEL)
        return time.time()

    def patch(self, patch: str) -> None:
        self.kubectl("patch", "terraformtask", self.name, "--type", "merge", "-p", patch)

    def delete(self) -> None:
        self.kubectl("delete", "terraformtask", self.name, "--wait=false")

    def evict(self, **options: Any) -> None:
        """Its agent's pod, as a drain does it; with further options of the deletion."""
        made = {"name": self.pod_name, "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": made, "deleteOptions": options}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod_name}/eviction"
        self.installation.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))

    def delete_pod(self, *how: str) -> None:
        self.kubectl("delete", "pod", self.pod_name, "--wait=false", *how)

    # ---- what is seen of it

    @property
    def history(self) -> list[Sighting]:
        seen = self.installation.timeline.history("terraformtasks", self.namespace, self.name)
        return [s for s in seen if not self.uid or s.object["metadata"]["uid"] == self.uid]

    @property
    def now(self) -> Json:
        """The object as it was seen last, deleted or not."""
        seen = self.history
        return seen[-1].object if seen else {"metadata": {"name": self.name}, "status": {}}

    @property
    def status(self) -> Json:
        found: Json = self.now.get("status") or {}
        return found

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def phases(self) -> list[str]:
        """Each phase that was seen, in order, without repetitions."""
        phases = [str(s.status.get("phase", "")) for s in self.history]
        return [p for i, p in enumerate(phases) if p and (i == 0 or p != phases[i - 1])]

    @property
    def run_id(self) -> str:
        return str(self.status.get("runID", ""))

    @property
    def pod_uid(self) -> str:
        return str(self.status.get("agent", {}).get("podUID", ""))

    @property
    def pod_name(self) -> str:
        return str(self.status.get("agent", {}).get("podName", ""))

    @property
    def processes(self) -> list[Process]:
        if not (run_id := self.run_id):
            return []
        given_at = min(s.at for s in self.history if s.status.get("runID") == run_id)
        return self.installation.timeline.of_run(run_id, self.pod_uid, given_at)

    @property
    def end(self) -> Sighting | None:
        """The first version with a terminal phase."""
        return next((s for s in self.history if s.status.get("phase") in TERMINAL), None)

    @property
    def cancel_seen(self) -> Sighting | None:
        """The first version in which a cancel was asked for by its spec."""
        return next((s for s in self.history if s.object["spec"].get("cancel")), None)

    def condition(self, kind: str) -> Json:
        found = [c for c in self.status.get("conditions", []) if c["type"] == kind]
        return found[0] if found else {}

    @property
    def claim_name(self) -> str:
        """Of the claim on its state; found by what the claim says, not by how it is named."""
        state = f"kubernetes/{self.namespace}/{self.workspace}-tf"
        is_elsewhere = self.now.get("spec", {}).get("backend", {}).get("type", "kubernetes") != "kubernetes"

        def holds(lease: Sighting) -> bool:
            if is_elsewhere:
                # No other run of the tests has such a state.
                return bool(self.run_id) and lease.object["spec"].get("holderIdentity") == self.run_id
            return str(lease.object["metadata"].get("annotations", {}).get("terrahalt.dev/state")) == state

        return next(self.installation.timeline.names("leases", SYSTEM, holds), "")

    # ---- waiting

    def until(self, look: Callable[[], T | None], within_s: float, what: str) -> T:
        """The first answer that is not None or False."""
        return self.installation.timeline.until(look, within_s, lambda: f"{self.name}: {what}; {self.story()}")

    def until_phase(self, *phases: str, within_s: float = START_WITHIN_S) -> None:
        """Seen at some time; it may have gone on since."""
        self.until(lambda: any(p in phases for p in self.phases), within_s, f"phase {' or '.join(phases)}")

    def until_process(self, holds: Callable[[Process], bool], what: str, within_s: float = START_WITHIN_S) -> Process:
        return self.until(lambda: next((p for p in self.processes if holds(p)), None), within_s, f"a process {what}")

    def until_terraform(self, verb: str, within_s: float = START_WITHIN_S) -> Process:
        return self.until_process(lambda p: p.is_terraform(verb), f"terraform {verb}", within_s)

    def terraform(self, verb: str) -> Process:
        """The run's own, seen already: what it starts is a copy of it for a moment, and younger."""
        return min((p for p in self.processes if p.is_terraform(verb)), key=lambda p: p.started)

    def until_operation(self) -> None:
        """terraform is in the middle of an operation, and says so."""
        self.until_terraform("apply")
        self.until(lambda: bool(self.status.get("progress", {}).get("current")), 30, "an operation under way")

    def until_child(self, words: str, within_s: float = START_WITHIN_S) -> Process:
        return self.until_process(lambda p: words in p.text and not p.is_terraform(), f"with {words!r}", within_s)

    def until_ended(self, within_s: float = END_WITHIN_S) -> str:
        """The terminal phase."""
        self.until(lambda: self.end is not None, within_s, "the end")
        assert self.end is not None
        return str(self.end.status["phase"])

    def until_logged(self, words: str, within_s: float = START_WITHIN_S) -> None:
        """Its agent's log, as it is written."""
        follow = ["--namespace", self.namespace, "logs", "--follow", self.pod_name]
        stream = self.installation.kubectl.stream(*follow)
        limit = threading.Timer(within_s, stream.kill)
        limit.start()
        try:
            assert stream.stdout is not None
            assert any(words in line for line in stream.stdout), f"not logged: {words!r}\n{self.story()}"
        finally:
            limit.cancel()
            stream.kill()
            stream.communicate()

    def until_gone(self, within_s: float = END_WITHIN_S) -> None:
        def look() -> bool:
            seen = self.history
            return bool(seen) and seen[-1].is_deleted

        self.until(look, within_s, "the object to be gone")

    # ---- its processes

    def signal(self, process: Process, number: int) -> None:
        about = {"pid": process.pid, "ticks": process.ticks, "node": process.node}
        assert self.installation.nodes.kill(about, number), f"{process} is gone\n{self.story()}"

    def end_sleep(self) -> None:
        """What its command waits for, in sources with one that sleeps, is over."""
        self.signal(self.until_process(lambda p: p.command[:1] == ["sleep"], "that sleeps"), signal.SIGTERM)

    def until_quiet(self, within_s: float = END_WITHIN_S) -> None:
        """Nothing of its run is alive any more."""
        self.until(lambda: all(p.gone is not None for p in self.processes), within_s, "the end of its processes")

    def until_agent_terminated(self, within_s: float = END_WITHIN_S) -> None:
        """The kubelet says so."""

        def look() -> bool:
            seen = self.installation.timeline.history("pods", self.namespace, self.pod_name)
            return any("terminated" in c.get("state", {}) for c in seen[-1].status.get("containerStatuses", []))

        self.until(look, within_s, f"the end of its agent {self.pod_name}")

    def freeze_providers(self) -> list[Process]:
        """Nothing that is asked of them is done from here on, nor can terraform end by itself."""
        found = [p for p in self.processes if "terraform-provider-" in p.text and p.gone is None]
        assert found, f"no provider is alive\n{self.story()}"
        for provider in found:
            self.signal(provider, signal.SIGSTOP)
        return found

    # ---- its state

    def state(self) -> Json | None:
        """What terraform keeps of the workspace; None: nothing was ever saved."""
        name = f"tfstate-default-{self.workspace}-tf"
        secret = self.installation.kubectl.find("--namespace", self.namespace, "secret", name)
        if secret is None:
            return None
        state: Json = json.loads(gzip.decompress(base64.b64decode(secret["data"]["tfstate"])))
        return state

    def state_lock_holder(self) -> str:
        """Read from the API server now; empty: the state is free."""
        name = f"lock-tfstate-default-{self.workspace}-tf"
        lease = self.installation.kubectl.find("--namespace", self.namespace, "lease", name)
        return str((lease or {}).get("spec", {}).get("holderIdentity") or "")

    def story(self) -> str:
        """For a person who has to find out what went wrong."""
        lines = [f"status {json.dumps({k: v for k, v in self.status.items() if k != 'conditions'})}"]
        lines += [
            f"  {s.at:.3f} {s.event} {s.status.get('phase', '-')}: {s.status.get('message', '')}" for s in self.history
        ]
        lines += [f"  process {p}" for p in self.processes]
        if self.pod_name:
            # Of a node that is frozen there is no answer.
            arguments = ["logs", self.pod_name, "--tail=60", "--request-timeout=10s"]
            log = self.installation.kubectl.attempt("--namespace", self.namespace, *arguments)
            lines += [f"  log {line}" for line in log.stdout.splitlines()]
        return "\n".join(lines)


class PlanRun(RunningTask):
    """The first of the two runs, in the words that fit any run."""

    @property
    def _given(self) -> Json:
        return next(s.status for s in self.history if s.status.get("runID"))

    @property
    def run_id(self) -> str:
        return str(self._given["runID"])

    @property
    def pod_uid(self) -> str:
        return str(self._given["agent"]["podUID"])

    @property
    def pod_name(self) -> str:
        return str(self._given["agent"]["podName"])


def plan_run(task: RunningTask) -> PlanRun:
    return PlanRun(task.installation, task.namespace, task.name, task.workspace, task.uid)


def start(installation: Installation, *tasks: Json) -> list[RunningTask]:
    """Creates them all at once."""
    uids = installation.kubectl.create(*tasks)
    return [
        RunningTask(installation, t["metadata"]["namespace"], t["metadata"]["name"], t["spec"]["workspace"], uid)
        for t, uid in zip(tasks, uids, strict=True)
    ]


def counted(installation: Installation, label: str, seconds: int = 600) -> RunningTask:
    """An apply that says by a Secret how often it was executed, and then sleeps: `end_sleep` ends that."""
    name = installation.name(label)
    (task,) = start(installation, a_task(name, text=source("counted", task=name, seconds=str(seconds))))
    return task


def start_one(installation: Installation, label: str, text: str, **options: Any) -> RunningTask:
    (task,) = start(installation, a_task(installation.name(label), text=text, **options))
    return task
