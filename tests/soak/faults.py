"""Faults of operators, networks, the API server and nodes: done, and undone again after their time.

Each tells whether there was something to do it to. Called by `troubles`, each from a thread of its own.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass

from tests.e2e.installation import OPERATOR, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.soak.plan import Step, Trouble

AWAY_WITHIN_S = 90.0
# What kubectl prints of an API server that is down, not yet whole, or without etcd.
AWAY = (
    "refused", "EOF", "reset by peer", "etcdserver", "timed out", "timeout", "Timeout", "unable to connect",
    "Unable to connect", "currently unable to handle", "deadline exceeded", "could not find the requested resource",
    "doesn't have a resource type", "forbidden", "Forbidden", "no endpoints available", "InternalError",
    "connection lost", "GOAWAY", "storage is (re)initializing", "failed calling", "apiserver not ready",
)  # fmt: skip
# Of an object that is gone, and of an eviction that a budget forbids for now.
NOTHING_TO_DO = ("NotFound", "disruption budget")


@dataclass(frozen=True)
class Faults:
    installation: Installation
    api_goes_away: bool
    """Then a command is given again until there is an answer, as a person would."""

    def kubectl(self, *arguments: str, stdin: str = "") -> bool:
        """False where there is no such object any more."""
        deadline, was_away = time.monotonic() + AWAY_WITHIN_S, False
        while True:
            done = self.installation.kubectl.attempt(*arguments, stdin=stdin)
            text = (done.stderr or done.stdout).strip()
            if done.returncode == 0:
                return True
            if self.api_goes_away and any(words in text for words in AWAY) and time.monotonic() < deadline:
                was_away = True
                time.sleep(0.3)
                continue
            assert any(words in text for words in NOTHING_TO_DO), f"kubectl {' '.join(arguments)}: {text}"
            # What got no answer may have been done.
            return was_away

    def delete_pod(self, namespace: str, name: str, *how: str) -> bool:
        return self.kubectl("--namespace", namespace, "delete", "pod", name, "--wait=false", *how)

    def evict(self, namespace: str, name: str) -> bool:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        return self.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))

    def freeze(self, process: Json | None, lasts_s: float) -> bool:
        """SIGSTOP, and SIGCONT once it has stood still for so long."""
        if process is None or not self.installation.nodes.kill(process, signal.SIGSTOP):
            return False
        try:
            time.sleep(lasts_s)
        finally:
            self.installation.nodes.kill(process, signal.SIGCONT)
        return True

    def cut_off(self, pod_uid: str, lasts_s: float) -> bool:
        with self.installation.cut_off(pod_uid) as was_cut:
            if was_cut:
                time.sleep(lasts_s)
        return was_cut

    def of_operator(self, step: Step) -> bool:
        here = self.installation
        leads = here.operator_pod()
        match step.trouble:
            case Trouble.KILL_OPERATOR:
                return self._kill_operator(leads)
            case Trouble.KILL_STANDBY:
                process = here.process_of(here.standby())
                return process is not None and here.nodes.kill(process)
            case Trouble.REPLACE_OPERATOR:
                return leads is not None and self.delete_pod(SYSTEM, _name(leads), "--grace-period=0", "--force")
            case Trouble.EVICT_OPERATOR:
                return leads is not None and self.evict(SYSTEM, _name(leads))
            case Trouble.FREEZE_OPERATOR:
                return self.freeze(here.process_of(leads), step.lasts_s)
            case Trouble.FREEZE_STANDBY:
                return self.freeze(here.process_of(here.standby()), step.lasts_s)
            case Trouble.CUT_OPERATOR:
                return leads is not None and self.cut_off(leads["metadata"]["uid"], step.lasts_s)
            case Trouble.CUT_STANDBY:
                standby = here.standby()
                return standby is not None and self.cut_off(standby["metadata"]["uid"], step.lasts_s)
            case Trouble.DELETE_LEASE:
                return self.kubectl("--namespace", SYSTEM, "delete", "lease", OPERATOR)
        raise AssertionError(f"not of an operator: {step}")

    def of_cluster(self, step: Step) -> bool:
        here = self.installation
        match step.trouble:
            case Trouble.RESTART_API:
                here.restart_api_server()
            case Trouble.PAUSE_ETCD:
                with here.etcd_frozen():
                    time.sleep(step.lasts_s)
            case Trouble.PAUSE:
                here.pause_node(step.node)
                try:
                    time.sleep(step.lasts_s)
                finally:
                    here.resume_node(step.node)
            case Trouble.STOP:
                here.stop_node(step.node)
                try:
                    time.sleep(step.lasts_s)
                finally:
                    here.start_node(step.node)
            case Trouble.DRAIN:
                here.drain_node(step.node)
                here.uncordon_node(step.node)
            case _:
                raise AssertionError(f"not of the cluster: {step}")
        return True

    def _kill_operator(self, pod: Json | None) -> bool:
        process = self.installation.process_of(pod)
        done = process is not None and self.installation.nodes.kill(process)
        statuses = (pod or {}).get("status", {}).get("containerStatuses", [])
        # The kubelet starts it ever later.
        if pod is not None and any(status["restartCount"] > 1 for status in statuses):
            self.delete_pod(SYSTEM, _name(pod), "--grace-period=0", "--force")
        return done


def _name(pod: Json) -> str:
    return str(pod["metadata"]["name"])
