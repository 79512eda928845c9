"""Tasks whose status a test writes, as no operator is there that would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.crds.api_server import ApiServer, a_task, path_of

DIGEST = "sha256:" + "4" * 64
STAGES = {
    "requestedAt": "2026-01-02T03:04:05.000000Z",
    "sentAt": "2026-01-02T03:04:05.030000Z",
    "signalledAt": "2026-01-02T03:04:05.050000Z",
    "exitedAt": "2026-01-02T03:04:06.250000Z",
    "sweptAt": "2026-01-02T03:04:06.260000Z",
}
LATEST_STAGE = STAGES["sweptAt"]


@dataclass(frozen=True)
class Tasks:
    api: ApiServer
    namespace: str

    def create(self, name: str, *, labels: Mapping[str, str] | None = None, **spec: Any) -> str:
        task = a_task(name, **{"action": "Apply", **spec})
        task["metadata"]["labels"] = dict(labels or {})
        answer = self.api.create(task, self.namespace, for_real=True)
        assert answer.is_accepted, answer.body
        return name

    def say(self, name: str, **status: Any) -> None:
        """Writes these fields of its status, over those that were there."""
        answer = self.api.patch(a_task(name), self.namespace, {"status": status}, subresource="/status", for_real=True)
        assert answer.is_accepted, answer.body

    def end(self, name: str, phase: str, reason: str, **result: Any) -> None:
        whole = {"reason": reason, "state": "Complete", "lock": "Released", "exitCode": 1, **result}
        self.say(
            name,
            phase=phase,
            message=f"it is {phase}",
            result=whole,
            conditions=[a_condition("Finished", reason)],
            finishedAt=LATEST_STAGE,
        )

    def get(self, name: str) -> dict[str, Any]:
        return self.api.request("GET", f"{path_of('TerraformTask', self.namespace)}/{name}").body

    def delete(self, name: str) -> None:
        self.api.request("DELETE", f"{path_of('TerraformTask', self.namespace)}/{name}")

    def is_cancelled(self, name: str) -> bool:
        return "cancel" in self.get(name)["spec"]


def a_condition(kind: str, reason: str, *, at: str = LATEST_STAGE, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": at}


def a_plan() -> dict[str, Any]:
    made = {"digest": DIGEST, "readyAt": STAGES["requestedAt"], "runID": "01JPLAN"}
    return {"add": 3, "change": 0, "destroy": 1, **made}
