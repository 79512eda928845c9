"""Logs stay whole and waits go on where connections break, in front of an API server that breaks them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.plugin.broken_api import BrokenApi, Log, a_version, serving
from tests.plugin.program import Program

FINISHED = a_version("Succeeded", pod="one", startedAt="2026-01-02T03:04:05Z", result={"reason": "Applied"})
RUNNING = a_version("Applying", pod="one")
CANCELLED = a_version("Cancelled", result={"reason": "CancelledByUser", "state": "Complete", "lock": "Released"})
# Four lines of one moment, two of which are written before a break.
LINES = [
    *[(f"2026-01-02T03:04:05.{number:09}Z", f"line {number}") for number in range(20)],
    *[("2026-01-02T03:04:06.500000000Z", f"burst {number}") for number in range(4)],
    *[(f"2026-01-02T03:04:07.{number:09}Z", f"late {number}") for number in range(20)],
]
WHOLE = "".join(f"{text}\n" for _, text in LINES)

Serve = Callable[[BrokenApi], Program]


@pytest.fixture
def serve(path: Path, tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def begin(api: BrokenApi) -> Program:
            kubeconfig = tmp_path / "kubeconfig"
            stack.enter_context(serving(api, kubeconfig))
            return Program(path, {"KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)})

        yield begin


@pytest.mark.parametrize("is_polite", [False, True])
@pytest.mark.parametrize("breaks", [[], [0], [22], [21, 1, 3, 22], [44, 0]], ids=str)
def test_a_followed_log_is_whole_and_in_order_however_often_its_stream_breaks(
    serve: Serve, breaks: list[int], is_polite: bool
) -> None:
    log = Log(LINES, breaks=list(breaks), ends="2026-01-02T03:04:08Z", is_polite=is_polite)
    api = BrokenApi([RUNNING, FINISHED], {"one": log})
    assert serve(api)("logs", "-f", "network") == WHOLE
    streams = [each for each in api.asked if "/log?" in each]
    assert len(streams) >= 1 + len(breaks)


def test_a_log_that_is_not_followed_is_whole_and_a_break_is_an_error(serve: Serve) -> None:
    api = BrokenApi([RUNNING], {"one": Log(LINES, breaks=[30])})
    program = serve(api)
    assert program.attempt("logs", "network").returncode == 1
    assert program("logs", "network") == WHOLE
    assert program("logs", "network", "--tail=3") == "late 17\nlate 18\nlate 19\n"
    assert program("logs", "network", "--timestamps").startswith("2026-01-02T03:04:05.000000000Z line 0\n")


def test_the_log_of_an_approved_task_begins_with_that_of_its_plan(serve: Serve) -> None:
    time = "2026-01-02T03:04:05.0Z"
    logs = {
        "two": Log([(time, "applies")], ends="2026-01-02T03:06:00Z"),
        "one": Log([(time, "plans")], ends="2026-01-02T03:05:00Z"),
        "other": Log([(time, "was another task of this name")], ends="2026-01-02T02:59:59Z"),
    }
    done = serve(BrokenApi([FINISHED], logs)).attempt("logs", "network")
    assert done.stdout == "plans\napplies\n"
    assert done.stderr == "==> agent two\n"


def test_a_followed_log_goes_on_with_the_agent_that_applies_an_approved_plan(serve: Serve) -> None:
    time = "2026-01-02T03:04:05.0Z"
    logs = {"one": Log([(time, "plans")], ends="2026-01-02T03:05:00Z")}
    waits, applies = a_version("AwaitingApproval"), a_version("Applying", pod="two")

    class Approved(BrokenApi):
        def version(self) -> dict[str, object]:
            if len(self.versions) == 2:
                self.logs["two"] = Log([(time, "applies")], ends="2026-01-02T03:06:00Z")
            return super().version()

    ended = {**FINISHED, "status": {**FINISHED["status"], "agent": {"podName": "two"}}}
    api = Approved([RUNNING, waits, waits, applies, ended], logs)
    assert serve(api)("logs", "-f", "network") == "plans\napplies\n"


def test_waiting_goes_on_while_the_api_server_does_not_answer_and_says_so_once(serve: Serve) -> None:
    done = serve(BrokenApi([RUNNING, RUNNING, {}, {}, {}, CANCELLED])).attempt("cancel", "network", "--wait")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not answer") == 1
    assert "network: Cancelled" in done.stdout


def test_another_task_of_the_same_name_is_not_taken_for_the_one_that_was_asked_for(serve: Serve) -> None:
    another = {**CANCELLED, "metadata": {**CANCELLED["metadata"], "uid": "another"}}
    done = serve(BrokenApi([RUNNING, RUNNING, another])).attempt("cancel", "network", "--wait")
    assert done.returncode == 7
    assert "was deleted" in done.stderr


def test_with_output_the_object_alone_is_on_stdout_and_the_story_beside_it(serve: Serve) -> None:
    done = serve(BrokenApi([RUNNING, RUNNING, RUNNING, CANCELLED])).attempt("cancel", "network", "--wait", "-o", "json")
    assert json.loads(done.stdout)["status"]["phase"] == "Cancelled"
    assert "Applying" in done.stderr


def test_what_an_admission_policy_refuses_is_told_in_its_own_words(serve: Serve) -> None:
    words = "to cancel this task, its role needs the verb cancel"
    refusal = {
        "kind": "Status",
        "status": "Failure",
        "reason": "Forbidden",
        "code": 403,
        "message": f"task network is forbidden: ValidatingAdmissionPolicy denied request: {words}",
        "details": {"name": "network", "causes": [{"message": words}]},
    }
    said = serve(BrokenApi([RUNNING, refusal])).refused("cancel", "network")
    assert words in said
    assert "you may not patch" not in said
