"""One simulated agent: what it knows of its pod and its run, and what it says, in the words of a real one.

Speaks for a terraform that is not there: a run goes through its steps in a fixed time, applies for as long as its
task's variable `seconds` says, and stops soon after it is asked to. Pure; `simulator` carries messages and times.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from terrahalt_protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    Hello,
    Lock,
    LockCondition,
    Outcome,
    PlanSummary,
    Report,
    Result,
    Rung,
    Start,
    StateCondition,
    Step,
)
from terrahalt_protocol.signing import seal
from tests.bench.kubernetes_api import Json

STEPS = ((Step.INIT, 0.02), (Step.PLAN, 0.3), (Step.APPLY, 0.5))
"""And after how many seconds in the one before each begins; that of a run's first is preparing."""
STOPS_WITHIN_S = 0.01
"""From SIGINT to the end of the sweep, of an apply that stops when it is asked to."""
_REASONS = {
    CancelReason.USER: "CancelledByUser",
    CancelReason.DELETION: "CancelledByDeletion",
    CancelReason.POD_TERMINATION: "CancelledByPodTermination",
}


@dataclass(slots=True)
class SimulatedAgent:
    namespace: str
    name: str
    uid: str
    ip: str
    token: str = ""
    container_id: str = field(default_factory=lambda: f"containerd://{secrets.token_hex(32)}")
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    start: Start | None = None
    run_id: str = ""
    """Also of a run whose cancel came first."""
    report_key: str = ""
    step: Step = Step.PREPARE
    began_at: float = 0.0
    sequence: int = 0
    done: int = 0
    epoch: int = 0
    cancel: CancelReason | None = None
    mode: CancelMode = CancelMode.GRACEFUL
    cancelled_at: float = 0.0
    result: Result | None = None
    is_acknowledged: bool = False
    is_over: bool = False
    """Its container has ended: nobody answers there any more."""

    @property
    def is_applying(self) -> bool:
        return self.step is Step.APPLY and self.result is None and self.cancel is None

    def hello(self) -> Hello:
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            agent_version="bench",
            namespace=self.namespace,
            pod_name=self.name,
            pod_uid=self.uid,
            boot_id=self.boot_id,
            identity_token=self.token,
            highest_epoch=self.epoch,
            runs=(self.run_id,) if self.run_id and not self.is_acknowledged else (),
            used=bool(self.run_id),
            spares_apply=True,
            architecture="x86_64",
            refreshed="",
        )

    def begin(self, start: Start, now: float) -> None:
        self.start, self.run_id, self.report_key, self.began_at = start, start.run_id, start.report_key, now

    def end_for(self, command: Cancel, now: float) -> None:
        """The first reason counts. Of a run that never came nothing is left but its end."""
        if self.cancel is None:
            self.cancel, self.mode, self.cancelled_at = command.reason, command.mode, now
        if not self.run_id:
            self.run_id, self.report_key = command.run_id, command.report_key

    def finish(self) -> None:
        """The last report says so."""
        outcome, reason, message, exit_code = Outcome.SUCCEEDED, "Applied", "Apply complete! Resources: 1 added.", 0
        if self.cancel is not None:
            message = "the run was cancelled and terraform ended when it was interrupted"
            outcome, reason, exit_code = Outcome.CANCELLED, _REASONS.get(self.cancel, "TimedOut"), 1
        self.result = Result(
            outcome=outcome,
            reason=reason,
            message=message,
            exit_code=exit_code if self.start is not None else None,
            state=StateCondition.COMPLETE,
            lock=Lock(condition=LockCondition.RELEASED),
            log_kept=True,
        )
        self.step = Step.SWEEP

    def report(self, now: float) -> Report:
        self.sequence += 1
        has_plan = self.start is not None and self.step in (Step.APPLY, Step.SWEEP)
        return Report(
            run_id=self.run_id,
            task_uid=self.start.task.uid if self.start is not None else "",
            boot_id=self.boot_id,
            sequence=self.sequence,
            step=self.step,
            started_s=now - self.began_at if self.start is not None else None,
            message=self.result.message if self.result is not None else "",
            plan=PlanSummary(add=1) if has_plan else None,
            resources_done=self.done,
            cancel=self._cancel_report(now),
            result=self.result,
        )

    def last_words(self, now: float) -> str:
        """What its container leaves in the termination message."""
        return seal(self.report(now), self.report_key).decode() if self.result is not None else ""

    def _cancel_report(self, now: float) -> CancelReport | None:
        if self.cancel is None:
            return None
        age_s = now - self.cancelled_at
        rung, ended_s = Rung.NOT_STARTED, None
        if self.start is not None:
            rung, ended_s = Rung.INTERRUPT, 0.0 if self.result is not None else None
        signalled_s = age_s if self.start is not None else None
        ages = CancelAges(received_s=age_s, signalled_s=signalled_s, exited_s=ended_s, swept_s=ended_s)
        return CancelReport(reason=self.cancel, mode=self.mode, rung=rung, ages=ages)


def running(agent: SimulatedAgent, pod: Json, at: str) -> Json:
    """The status of its pod, as a kubelet tells it once the container runs."""
    return {
        "phase": "Running",
        "startTime": at,
        "podIP": agent.ip,
        "podIPs": [{"ip": agent.ip}],
        "conditions": _conditions(pod, at, "True"),
        "containerStatuses": [_container(agent, pod, {"running": {"startedAt": at}}, is_ready=True)],
    }


def ended(agent: SimulatedAgent, pod: Json, at: str, last_words: str) -> Json:
    state = {
        "exitCode": 0,
        "reason": "Completed",
        "message": last_words,
        "startedAt": at,
        "finishedAt": at,
        "containerID": agent.container_id,
    }
    return {
        "phase": "Succeeded",
        "conditions": _conditions(pod, at, "False"),
        "containerStatuses": [_container(agent, pod, {"terminated": state}, is_ready=False)],
    }


def _conditions(pod: Json, at: str, ready: str) -> list[Json]:
    kept = [c for c in pod["status"].get("conditions", ()) if c["type"] == "PodScheduled"]
    told = {"Initialized": "True", "Ready": ready, "ContainersReady": ready}
    return kept + [{"type": kind, "status": status, "lastTransitionTime": at} for kind, status in told.items()]


def _container(agent: SimulatedAgent, pod: Json, state: Json, *, is_ready: bool) -> Json:
    (container,) = pod["spec"]["containers"]
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"{container['image']}@sha256:{'0' * 64}",
        "containerID": agent.container_id,
        "ready": is_ready,
        "started": is_ready,
        "restartCount": 0,
        "state": state,
    }
