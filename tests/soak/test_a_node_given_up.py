"""A node that Kubernetes has given up, pods and all, while it is only frozen: its run is still not believed to be over.

Slow: Kubernetes calls a node NotReady after 40 to 50 s of silence. `make test` leaves it to `make soak`.
"""

from __future__ import annotations

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import source, start_one

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone]

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""What an administrator says of a node that will not come back: its pods are then deleted by force."""


def test_a_pod_that_was_deleted_by_force_with_its_frozen_node_does_not_end_its_run(
    installation: Installation, worker: str
) -> None:
    task = start_one(installation, "given-up", source("sleeping_provider", count="1", duration="300s"), namespace=SOAK)
    task.until_operation()
    installation.pause_node(worker)
    try:
        installation.kubectl("wait", f"node/{worker}", "--for=condition=Ready=Unknown", "--timeout=120s", within_s=130)
        installation.kubectl("taint", "node", worker, f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute")

        def is_given_up() -> bool:
            pod = installation.timeline.history("pods", SOAK, task.pod_name)[-1]
            return pod.status["phase"] == "Failed" and "deletionTimestamp" in pod.object["metadata"]

        task.until(is_given_up, 90, "its pod to be given up")
        (status,) = installation.timeline.history("pods", SOAK, task.pod_name)[-1].status["containerStatuses"]
        assert "running" in status["state"], "then this shows nothing"
        task.cancel()
        task.until_phase("Cancelling")
        # The pool has looked at its pods since, and the operator at all that there is.
        epoch = installation.epoch()
        installation.replace_operator_pod()
        installation.wait_for_take_over(epoch)
        task.until(lambda: "waiting for the connection" in task.status["message"], 60, "it to say so")
        assert task.end is None, f"who knows that?\n{task.story()}"
        assert not any(claim.is_deleted for claim in evidence.claims_of(task)), task.story()
    finally:
        installation.kubectl.attempt("taint", "node", worker, f"{OUT_OF_SERVICE}-")
        installation.resume_node(worker)
    assert task.until_ended(within_s=180) in ("Cancelled", "Failed"), task.story()
    evidence.assert_over(task)
