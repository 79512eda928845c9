"""`--wait` beside a person: what is shown, what Ctrl-C asks, and how the exit code tells the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from tests.plugin.program import Program, Terminal
from tests.plugin.tasks import DIGEST, STAGES, Tasks, a_plan

pytestmark = pytest.mark.cluster

QUESTION = "cancel it (c), go on waiting (w) or detach (d, or Ctrl-C again)? "
APPLYING = {"phase": "Applying", "message": "terraform apply", "agent": {"podName": "default-agent-x7k2p"}}


def until(child: subprocess.Popen[str], words: str) -> str:
    """The line with these words."""
    assert child.stdout is not None
    for line in child.stdout:
        if words in line:
            return line
    raise AssertionError(f"never said: {words}")


def run(name: str, *more: str) -> list[str]:
    return ["run", "--config-map=net", "--workspace=network", "--action=apply", f"--name={name}", "--wait", *more]


def test_each_stage_of_a_cancel_is_shown_as_it_happens_at_the_time_that_it_had(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("rungs")
    tasks.say(name, **APPLYING)
    with plugin.started("cancel", name, "--wait") as child:
        until(child, "Applying")
        assert tasks.is_cancelled(name)
        known: dict[str, Any] = {"by": "User"}

        def reach(message: str, **stage: str) -> None:
            known.update(stage)
            tasks.say(name, phase="Cancelling", message=message, cancel=dict(known))

        reach("waiting for the connection to agent pod x", requestedAt=STAGES["requestedAt"])
        asked = until(child, "requested ")
        assert asked.endswith("by User, with kubectl-terrahalt; waiting for the connection to agent pod x\n")
        reach("waiting for the connection to agent pod x; if its node is gone for good ...")
        until(child, "if its node is gone for good ...")
        reach("cancel sent to agent pod x", sentAt=STAGES["sentAt"])
        until(child, "sent ")
        reach("cancelling: SIGINT sent, waiting up to 300 s", rung="Interrupt", signalledAt=STAGES["signalledAt"])
        assert until(child, "Interrupt ").endswith(" SIGINT sent, waiting up to 300 s\n")
        reach("cancelling: providers killed, waiting up to 10 s", rung="KillProviders")
        assert until(child, "KillProviders ").endswith(" providers killed, waiting up to 10 s\n")
        reach("no process is left", exitedAt=STAGES["exitedAt"])
        until(child, "terraform is gone")
        reach("no process is left", sweptAt=STAGES["sweptAt"])
        until(child, "no process of the run is alive")
        tasks.end(name, "Cancelled", "CancelledByUser", forced=True)
        assert until(child, f"{name}: Cancelled") == (
            f"{name}: Cancelled, CancelledByUser; exit code 1, state Complete, lock Released, forced\n"
        )
        assert child.wait(30) == 0


def test_stages_that_are_seen_together_are_told_in_order_with_the_times_between_them(
    plugin: Program, tasks: Tasks
) -> None:
    name = tasks.create("stamps")
    with plugin.started("cancel", name, "--wait") as child:
        until(child, "Queued")
        waiting = "cancelling: SIGINT sent, waiting up to 300 s"
        tasks.say(name, phase="Cancelling", message=waiting, cancel={"by": "User", "rung": "Interrupt", **STAGES})
        lines = [until(child, f"  {word} ") for word in ("requested", "sent", "Interrupt", "exited")]
    assert lines[2].endswith(" SIGINT to terraform\n"), "what it was waiting for is over"
    at = [float(line.split()[0]) for line in lines]
    assert [moment - at[0] for moment in at] == pytest.approx([0, 0.03, 0.05, 1.25], abs=0.011)


ENDS = [
    ("Cancelled", {}, {"cancel": 0, "run": 5}),
    ("Succeeded", {}, {"cancel": 3, "run": 0}),
    ("Failed", {}, {"cancel": 4, "run": 4}),
    ("Cancelled", {"state": "Incomplete"}, {"cancel": 6, "run": 6}),
    ("Failed", {"state": "NotPersisted"}, {"cancel": 6, "run": 6}),
    ("Failed", {"state": "Unknown", "lock": "Unknown"}, {"cancel": 6, "run": 6}),
    ("Cancelled", {"lock": "Held", "lockCommand": "kubectl patch lease x"}, {"cancel": 6, "run": 6}),
]


@pytest.mark.parametrize("command", ["cancel", "run"])
@pytest.mark.parametrize(("phase", "result", "codes"), ENDS, ids=str)
def test_the_exit_code_tells_how_it_has_ended(
    plugin: Program, tasks: Tasks, command: str, phase: str, result: dict[str, str], codes: dict[str, int]
) -> None:
    name = f"ends-{command}-{ENDS.index((phase, result, codes))}"
    if command == "cancel":
        tasks.create(name)
    with plugin.started(*(["cancel", name, "--wait"] if command == "cancel" else run(name))) as child:
        until(child, "Queued")
        tasks.end(name, phase, "AReason", **result)
        said = until(child, f"{name}: {phase}, AReason")
        assert child.stdout is not None
        said += child.stdout.read()
        assert child.wait(30) == codes[command]
    assert ("docs/cancellation.md" in said) == (6 in codes.values())
    assert ("kubectl patch lease x" in said) == ("lockCommand" in result)


def test_what_had_ended_already_is_not_cancelled_any_more(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("ended")
    tasks.end(name, "Succeeded", "Applied", exitCode=0)
    done = plugin.attempt("cancel", name, "--wait")
    assert done.returncode == 3
    assert "has ended already" in done.stderr
    assert not tasks.is_cancelled(name)


def test_a_task_that_is_deleted_before_its_end_was_seen_has_an_exit_code_of_its_own(
    plugin: Program, tasks: Tasks
) -> None:
    with plugin.started(*run("deleted")) as child:
        until(child, "Queued")
        tasks.delete("deleted")
        tasks.create("deleted")  # another task, of which nobody has asked
        until(child, "was deleted")
        assert child.wait(30) == 7


def test_the_end_of_a_task_that_was_deleted_is_told_as_its_last_version_has_it(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("finalized")
    tasks.say(name, **APPLYING)
    kept = {"metadata": {"finalizers": ["terrahalt.dev/plugin-test"]}}
    tasks.api.kubectl("-n", tasks.namespace, "patch", "tft", name, "--type=merge", "-p", json.dumps(kept))
    with plugin.started("cancel", name, "--wait") as child:
        until(child, "Applying")
        tasks.delete(name)
        tasks.end(name, "Cancelled", "CancelledByDeletion")
        tasks.api.kubectl(
            "-n", tasks.namespace, "patch", "tft", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
        until(child, "CancelledByDeletion")
        assert child.wait(30) == 0


def test_waiting_ends_at_its_timeout_and_the_task_goes_on(plugin: Program, tasks: Tasks) -> None:
    done = plugin.attempt(*run("late", "--timeout=1s"))
    assert done.returncode == 2
    assert f"kubectl terrahalt cancel late -n {tasks.namespace} --wait" in done.stderr
    assert not tasks.is_cancelled("late")


# ---- Ctrl-C


def asked(terminal: Terminal, tasks: Tasks, name: str) -> None:
    """Ctrl-C was pressed while it applies, and the question stands."""
    terminal.until("Queued")
    tasks.say(name, **APPLYING)
    terminal.until("Applying")
    terminal.press_ctrl_c()
    terminal.until(QUESTION)


def test_ctrl_c_asks_and_cancel_cancels_and_waits_on(plugin: Program, tasks: Tasks) -> None:
    with plugin.at_a_terminal(*run("halted")) as terminal:
        asked(terminal, tasks, "halted")
        assert not tasks.is_cancelled("halted")
        terminal.type("cancel\n")
        tasks.say("halted", phase="Cancelling", cancel={"by": "User", "rung": "Interrupt", **STAGES})
        terminal.until("no process of the run is alive")
        assert tasks.is_cancelled("halted")
        tasks.end("halted", "Cancelled", "CancelledByUser")
        terminal.until("halted: ")
        assert terminal.until_ended() == 5


def test_waiting_on_shows_what_comes(plugin: Program, tasks: Tasks) -> None:
    with plugin.at_a_terminal(*run("patient")) as terminal:
        asked(terminal, tasks, "patient")
        terminal.type("wait\n")
        tasks.say("patient", progress={"done": 1, "planned": 2, "current": "aws_vpc.main", "summary": "1/2"})
        terminal.until("1/2")
        tasks.end("patient", "Succeeded", "Applied", exitCode=0)
        assert terminal.until_ended() == 0
    assert terminal.text.count(QUESTION) == 1
    assert not tasks.is_cancelled("patient")


@pytest.mark.parametrize(("name", "keys"), [("word", "detach\n"), ("again", "\x03"), ("end-of-file", "\x04")], ids=str)
def test_detaching_leaves_the_task_alone(plugin: Program, tasks: Tasks, name: str, keys: str) -> None:
    name = f"detached-{name}"
    with plugin.at_a_terminal(*run(name)) as terminal:
        asked(terminal, tasks, name)
        terminal.type(keys)
        terminal.until(f"kubectl terrahalt cancel {name} -n {tasks.namespace} --wait")
        assert terminal.until_ended() == 2
    assert not tasks.is_cancelled(name)


def test_an_answer_that_is_none_is_asked_for_again(plugin: Program, tasks: Tasks) -> None:
    with plugin.at_a_terminal(*run("unclear")) as terminal:
        asked(terminal, tasks, "unclear")
        terminal.type("yes\n")
        terminal.until(QUESTION)
        terminal.type("d\n")
        assert terminal.until_ended() == 2
    assert not tasks.is_cancelled("unclear")


def test_a_task_that_ends_while_the_question_stands_needs_no_answer_and_nothing_was_written_over_it(
    plugin: Program, tasks: Tasks
) -> None:
    with plugin.at_a_terminal(*run("quick")) as terminal:
        asked(terminal, tasks, "quick")
        tasks.say("quick", progress={"done": 1, "planned": 2, "current": "aws_vpc.main", "summary": "1/2"})
        tasks.end("quick", "Succeeded", "Applied", exitCode=0)
        terminal.until("has ended meanwhile")
        terminal.until("1/2")
        terminal.until("Succeeded")
        assert terminal.until_ended() == 0


def test_during_a_cancel_ctrl_c_offers_no_other_one(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("twice")
    with plugin.at_a_terminal("cancel", name, "--wait") as terminal:
        terminal.until("Queued")
        terminal.press_ctrl_c()
        terminal.until("its cancel goes on; go on waiting (w) or detach")
        terminal.type("w\n")
        tasks.end(name, "Cancelled", "CancelledByUser")
        assert terminal.until_ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_where_nobody_can_be_asked_it_says_what_to_type(plugin: Program, tasks: Tasks, number: signal.Signals) -> None:
    name = f"unasked-{number.name.lower()}"
    with plugin.started(*run(name)) as child:
        until(child, "Queued")
        child.send_signal(number)
        until(child, f"kubectl terrahalt cancel {name} -n {tasks.namespace} --wait")
        assert child.wait(30) == 130
    assert not tasks.is_cancelled(name)


def test_who_is_ended_by_another_asks_nothing(plugin: Program, tasks: Tasks) -> None:
    with plugin.at_a_terminal(*run("terminated")) as terminal:
        terminal.until("Queued")
        os.kill(terminal.pid, signal.SIGTERM)
        terminal.until("kubectl terrahalt cancel terminated")
        assert terminal.until_ended() == 130
    assert not tasks.is_cancelled("terminated")


# ---- approve


def waits(tasks: Tasks, name: str) -> str:
    tasks.create(name, approval="Manual")
    tasks.say(name, phase="AwaitingApproval", message="waits", plan=a_plan())
    return name


def approved(tasks: Tasks, name: str) -> str:
    digest: str = tasks.get(name)["spec"].get("approvedPlanDigest", "")
    return digest


def test_approve_shows_the_plan_asks_and_approves_it_by_its_digest(plugin: Program, tasks: Tasks) -> None:
    name = waits(tasks, "approved")
    with plugin.at_a_terminal("approve", name) as terminal:
        terminal.until("3 to add, 0 to change, 1 to destroy")
        terminal.until(DIGEST)
        terminal.until("until 2026-01-03T03:04:05Z")
        terminal.until("Approve it? [y/N] ")
        assert not approved(tasks, name)
        terminal.type("y\n")
        assert terminal.until_ended() == 0
    assert approved(tasks, name) == DIGEST
    assert "was approved already" in plugin.refused("approve", name, "--yes")


def test_no_answer_is_no_approval(plugin: Program, tasks: Tasks) -> None:
    name = waits(tasks, "unapproved")
    with plugin.at_a_terminal("approve", name) as terminal:
        terminal.until("[y/N] ")
        terminal.type("\n")
        assert terminal.until_ended() == 1
    assert DIGEST in plugin.refused("approve", name)
    assert "another digest" in plugin.refused("approve", name, f"--digest=sha256:{'5' * 64}")
    assert not approved(tasks, name)
    plugin("approve", name, f"--digest={DIGEST}")
    assert approved(tasks, name) == DIGEST


def test_a_task_that_waits_for_no_approval_gets_none(plugin: Program, tasks: Tasks) -> None:
    assert "needs no approval" in plugin.refused("approve", tasks.create("automatic"), "--yes")
    assert "has no plan that waits" in plugin.refused("approve", tasks.create("early", approval="Manual"), "--yes")
