"""What agents have kept is shown when their pods are gone: logs, and the plan that a person approves."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from typing import Any, cast

import pytest

from terrahalt_agent.adapters.cluster_api import NotFoundError
from terrahalt_agent.adapters.kept_plans import KeptPlans, PlanArchive
from terrahalt_protocol import kept_log
from tests.agent.builders import a_start
from tests.plugin.broken_api import BrokenApi, Log, a_version
from tests.plugin.test_broken_connections import Serve, serve

__all__ = ["serve"]

ENDED: dict[str, Any] = {"runID": "01JRUN", "startedAt": "2026-01-02T03:04:05Z", "result": {"reason": "Applied"}}
TEXT = """Terraform will perform the following actions:

  # terraform_data.new will be created
  + resource "terraform_data" "new" {
      + input = "a"
    }
  # terraform_data.old will be destroyed
  - resource "terraform_data" "old" {
    }
  # terraform_data.other must be replaced
-/+ resource "terraform_data" "other" {
      ~ input = "x" -> "\x1b[2Jy"
    }

Plan: 2 to add, 0 to change, 2 to destroy.
"""


def a_log(run_id: str, *lines: str) -> dict[str, dict[str, bytes]]:
    return {kept_log.name(run_id): {kept_log.KEY: kept_log.pack("".join(f"{line}\n" for line in lines).encode(), b"")}}


def a_kept_plan(noise: int = 0) -> tuple[dict[str, dict[str, bytes]], str]:
    """Its Secrets as an agent writes them, and its digest."""
    written: dict[str, dict[str, bytes]] = {}

    class Api:
        async def put_secret(self, secret: dict[str, Any]) -> None:
            data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
            written[secret["metadata"]["name"]] = data

        async def delete_secret(self, name: str) -> None:
            raise NotFoundError(name)

    archive = PlanArchive(b"a plan" + os.urandom(noise), None, "files:", TEXT.encode(), ("hunter2hunter2",))
    digest = asyncio.run(KeptPlans(cast(Any, Api())).keep(archive, a_start(run_id="01JPLAN")))
    return written, digest


def waits(digest: str) -> dict[str, Any]:
    plan = {
        "add": 2,
        "change": 0,
        "destroy": 2,
        "digest": digest,
        "readyAt": "2026-01-02T03:04:05Z",
        "runID": "01JPLAN",
    }
    version = a_version("AwaitingApproval", plan=plan)
    version["spec"] |= {"approval": "Manual", "approvalTimeoutSeconds": 86400}
    return version


# ---- logs


def test_the_log_of_a_run_whose_pod_is_gone_is_the_kept_one(serve: Serve) -> None:
    api = BrokenApi([a_version("Cancelled", pod="one", **ENDED)], secrets=a_log("01JRUN", "first", "second", "third"))
    program = serve(api)
    assert program("logs", "network") == "first\nsecond\nthird\n"
    assert program("logs", "-f", "network") == "first\nsecond\nthird\n"
    assert program("logs", "network", "--tail=2") == "second\nthird\n"
    assert program("logs", "network", "--tail=0") == ""
    assert "has no times" in program.attempt("logs", "network", "--timestamps").stderr


def test_while_there_is_a_pod_its_own_log_is_shown(serve: Serve) -> None:
    logs = {"one": Log([("2026-01-02T03:04:05.0Z", "of the pod")], ends="2026-01-02T03:06:00Z")}
    api = BrokenApi([a_version("Succeeded", pod="one", **ENDED)], logs, a_log("01JRUN", "kept"))
    assert serve(api)("logs", "network") == "of the pod\n"
    assert not any("secrets" in path for path in api.asked)


def test_of_two_runs_the_one_whose_pod_is_gone_comes_from_its_secret_and_first(serve: Serve) -> None:
    logs = {"two": Log([("2026-01-02T03:04:05.0Z", "applies")], ends="2026-01-02T03:06:00Z")}
    plan = {"add": 1, "change": 0, "destroy": 0, "digest": "sha256:0", "runID": "01JPLAN"}
    version = a_version("Succeeded", pod="two", plan=plan, **ENDED)
    secrets = a_log("01JPLAN", "plans") | a_log("01JRUN", "applies, kept")
    done = serve(BrokenApi([version], logs, secrets)).attempt("logs", "network")
    assert (done.stdout, done.stderr) == ("plans\napplies\n", "==> agent two\n")
    gone = serve(BrokenApi([version], {}, secrets)).attempt("logs", "network")
    assert (gone.stdout, gone.stderr) == ("plans\napplies, kept\n", "==> kept log of run 01JRUN\n")


def test_a_log_that_was_not_kept_is_said_to_be_gone(serve: Serve) -> None:
    assert "its log was not kept" in serve(BrokenApi([a_version("Failed", pod="one", **ENDED)])).refused(
        "logs", "network"
    )


# ---- plan


@pytest.mark.parametrize("noise", [0, 2_500_000])
def test_a_plan_is_shown_as_it_is_with_its_digest_and_the_command_that_approves_it(serve: Serve, noise: int) -> None:
    secrets, digest = a_kept_plan(noise)
    assert len(secrets) == 1 + noise // 1_000_000
    shown = serve(BrokenApi([waits(digest)], secrets=secrets))("plan", "network")
    text, _, rest = shown.partition("\ndigest ")
    assert text == TEXT.replace("\x1b", "\ufffd")
    assert rest.split("\n") == [
        f"  {digest}",
        f"approve  kubectl terrahalt approve network -n team-a --digest {digest}",
        "",
    ]
    assert "hunter2" not in shown


def test_on_a_terminal_what_comes_is_green_what_goes_red_and_what_changes_yellow(serve: Serve) -> None:
    secrets, digest = a_kept_plan()
    with serve(BrokenApi([waits(digest)], secrets=secrets)).at_a_terminal("plan", "network") as terminal:
        assert terminal.until_ended() == 0
    lines = terminal.screen.replace("\r\n", "\n").split("\n")
    colours = {
        re.sub(r"\x1b\[[0-9]*m", "", line): line[: line.find("m") + 1] for line in lines if line.startswith("\x1b")
    }
    assert colours == {
        "  # terraform_data.new will be created": "\x1b[1m",
        '  + resource "terraform_data" "new" {': "\x1b[32m",
        '      + input = "a"': "\x1b[32m",
        "  # terraform_data.old will be destroyed": "\x1b[1m",
        '  - resource "terraform_data" "old" {': "\x1b[31m",
        "  # terraform_data.other must be replaced": "\x1b[1m",
        '-/+ resource "terraform_data" "other" {': "\x1b[31m",
        '      ~ input = "x" -> "\ufffd[2Jy"': "\x1b[33m",
        "Plan: 2 to add, 0 to change, 2 to destroy.": "\x1b[1m",
    }


def test_what_is_not_the_plan_of_that_digest_is_not_shown(serve: Serve) -> None:
    secrets, _ = a_kept_plan()
    refused = serve(BrokenApi([waits("sha256:" + "0" * 64)], secrets=secrets)).attempt("plan", "network")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is not the plan of this task" in refused.stderr


def test_a_plan_that_is_not_there_is_explained(serve: Serve) -> None:
    assert "is gone" in serve(BrokenApi([waits("sha256:0")])).refused("plan", "network")
    automatic = serve(BrokenApi([a_version("Applying", pod="one")]))
    assert "keeps no plan" in automatic.refused("plan", "network")


def test_a_plan_that_was_approved_is_shown_without_the_command(serve: Serve) -> None:
    secrets, digest = a_kept_plan()
    version = waits(digest)
    version["spec"]["approvedPlanDigest"] = digest
    shown = serve(BrokenApi([version], secrets=secrets))("plan", "network")
    assert "was approved already" in shown
    assert "kubectl terrahalt approve" not in shown


# ---- what there is of it


def test_status_names_the_secrets_with_outputs_and_log(serve: Serve) -> None:
    log, outputs = {"secretName": "terrahalt-log-01jrun"}, {"secretName": "network-outputs", "count": 3}
    program = serve(BrokenApi([a_version("Succeeded", pod="one", log=log, outputs=outputs, **ENDED)]))
    shown = program("status", "network")
    assert "outputs    3 in Secret network-outputs\n" in shown
    assert "log        Secret terrahalt-log-01jrun\n" in shown
    failed = {"secretName": "network-outputs", "problem": "it is there already"}
    shown = serve(BrokenApi([a_version("Succeeded", pod="one", outputs=failed, **ENDED)]))("status", "network")
    assert "outputs: not in Secret network-outputs: it is there already\n" in shown
