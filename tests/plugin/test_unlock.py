"""A lock that an ended run has left is released; anybody else's is shown, and stays."""

from __future__ import annotations

import json
from typing import Any

import pytest

from terrahalt_protocol import state_lock
from tests.plugin.broken_api import BrokenApi, Log, a_version
from tests.plugin.test_broken_connections import Serve, serve

__all__ = ["serve"]

RUN, ID = "01JRUN", "57904ab3"


def held_by(who: str) -> dict[str, Any]:
    info = {"ID": ID, "Who": who, "Operation": "OperationTypeApply", "Created": "2026-01-02T03:04:05Z"}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": state_lock.lease_name("network"),
            "annotations": {"app.terraform.io/lock-info": json.dumps(info)},
        },
        "spec": {"holderIdentity": ID},
    }


def ended(reason: str = "AgentLost") -> dict[str, Any]:
    return a_version("Failed", pod="agent-1", runID=RUN, result={"reason": reason, "lock": "Held"})


def is_held(api: BrokenApi) -> bool:
    assert api.lock is not None
    return "holderIdentity" in api.lock["spec"]


@pytest.mark.parametrize("who", [f"{RUN}@agent-1", "nonroot@agent-1", f"{RUN}@elsewhere"])
def test_the_lock_of_a_run_that_has_ended_is_shown_and_released_when_asked_for(serve: Serve, who: str) -> None:
    api = BrokenApi([ended()], lock=held_by(who))
    program = serve(api)
    shown = program("unlock", "network")
    for words in (f"by       {who}, since 2026-01-02T03:04:05Z", f"lock ID  {ID}", "task     network, Failed"):
        assert words in shown
    assert "unlock network -n team-a --yes` releases it" in shown
    assert is_held(api)
    assert program("unlock", "network", "--yes").endswith("released\n")
    assert not is_held(api)
    assert "nobody holds the lock of workspace network" in program("unlock", "network")


def test_while_a_run_has_the_workspace_nothing_is_released(serve: Serve) -> None:
    api = BrokenApi([a_version("Applying", pod="agent-1", runID=RUN)], lock=held_by(f"{RUN}@agent-1"))
    assert "a run of task network has the workspace" in serve(api).refused("unlock", "network", "--yes")
    assert is_held(api)


def test_the_lock_of_somebody_who_is_no_run_is_left_to_a_person(serve: Serve) -> None:
    api = BrokenApi([ended()], lock=held_by("me@laptop"))
    refused = serve(api).attempt("unlock", "network", "--yes")
    assert refused.returncode == 1
    assert "me@laptop" in refused.stdout
    assert "ask me@laptop" in refused.stderr
    assert state_lock.release_command("team-a", "network", ID) in refused.stderr
    assert is_held(api)


def test_a_run_that_was_given_up_and_may_be_alive_keeps_its_lock(serve: Serve) -> None:
    logs = {"agent-1": Log([])}
    api = BrokenApi([ended("Abandoned")], logs, lock=held_by(f"{RUN}@agent-1"))
    assert "may be at work still" in serve(api).refused("unlock", "network", "--yes")
    assert is_held(api)
    logs["agent-1"].ends = "2026-01-02T03:06:00Z"
    assert serve(api)("unlock", "network", "--yes").endswith("released\n")


def test_a_lock_that_another_has_taken_meanwhile_stays_his(serve: Serve) -> None:
    class Quicker(BrokenApi):
        def version(self) -> dict[str, Any]:
            assert self.lock is not None
            if any("terraformtasks?" in path for path in self.asked):
                self.lock["spec"]["holderIdentity"] = "another"
            return super().version()

    api = Quicker([ended()], lock=held_by(f"{RUN}@agent-1"))
    assert "taken by somebody else" in serve(api).refused("unlock", "network", "--yes")
    assert api.lock is not None
    assert api.lock["spec"]["holderIdentity"] == "another"


def test_a_workspace_may_be_named_too_and_a_backend_that_is_not_ours_is_refused(serve: Serve) -> None:
    api = BrokenApi([ended()])
    assert "nobody holds the lock of workspace other" in serve(api)("unlock", "other")
    elsewhere = ended()
    elsewhere["spec"]["backend"] = {"type": "s3"}
    assert "is in backend s3" in serve(BrokenApi([elsewhere])).refused("unlock", "network")
