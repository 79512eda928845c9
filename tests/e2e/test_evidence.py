"""The judge is judged: what `evidence` has to find, told to it as lines that a watcher could have written.

Needs no cluster. A suite that never fails proves nothing until it is seen to fail.
"""

from __future__ import annotations

import threading

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SYSTEM
from tests.e2e.kubectl import Json
from tests.e2e.seen import OTHER_RUN, RUN, T0, Seen

APPLY = ["terraform", "apply"]


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
    seen.told("began", 0.5, pid=9, ticks=7, started=T0, pod=RUN, run="", command=["sleep", "600"], parent=1)
    seen.status(1.0, "Succeeded", "01.000000").looked_until(2)
    with pytest.raises(AssertionError, match=r"sleep 600.*still there"):
        evidence.assert_nothing_outlived(seen.task)


def test_an_agent_whose_run_never_came_gets_another_one_whose_processes_are_not_of_the_first() -> None:
    def seen() -> Seen:
        told = Seen().status(0, "Cancelling").status(0.5, "Cancelled", "00.400000")
        return told.process(5, 1.0, 1.6, "terraform init", run=OTHER_RUN, pod=RUN)

    child = seen().process(6, 1.1, 1.2, "sleep 1", run="", pod=RUN)
    evidence.assert_nothing_outlived(child.looked_until(2).task)
    # It is older than the other run, and bears no ID.
    daemon = seen().process(6, 0.2, 1.2, "sleep 1", run="", pod=RUN)
    with pytest.raises(AssertionError, match=r"alive after the status said Cancelled.*sleep 1"):
        evidence.assert_nothing_outlived(daemon.looked_until(2).task)


def test_what_was_in_the_pod_before_its_run_is_not_of_the_run() -> None:
    def seen() -> Seen:
        told = Seen().process(4, -2.0, -1.9, "terraform version", run="", pod=RUN)
        return told.process(5, -3.0, 3.0, "sleep 600", run="", pod=RUN).status(0, "Applying")

    begun = seen().process(6, 0.1, 0.8, "terraform apply").status(1.0, "Succeeded", "00.900000").looked_until(2)
    evidence.assert_nothing_outlived(begun.task)
    evidence.assert_steps(begun.task, "apply")
    never = Seen().process(4, -2.0, -1.9, "terraform version", run="", pod=RUN).status(0, "Cancelling")
    evidence.assert_steps(never.status(0.5, "Cancelled", "00.400000").task)


def test_a_process_between_the_operators_certainty_and_its_write_is_found_where_there_is_one_clock() -> None:
    def seen(*nodes: str, is_kind: bool = False) -> Seen:
        watched = Seen(nodes=nodes, is_kind=is_kind).status(0, "Applying").process(5, 0.1, 1.0, "terraform apply")
        return watched.status(1.2, "Failed", "00.900000").looked_until(2)

    for one_clock in (seen("node"), seen("node", "another", is_kind=True)):
        with pytest.raises(AssertionError, match="alive after finishedAt"):
            evidence.assert_nothing_outlived(one_clock.task)
    evidence.assert_nothing_outlived(seen("node", "another").task)


def told(seen: Seen, at: float) -> Seen:
    reported = {"status": {"containerStatuses": [{"state": {"terminated": {"containerID": "containerd://1"}}}]}}
    return seen.object(at, "pods", "ns", "agent", reported)


def ended(seen: Seen, at: float) -> Seen:
    return seen.status(at, "Failed", agent={"podUID": RUN, "podName": "agent", "containerID": "containerd://1"})


def test_an_end_before_the_kubelets_word_or_long_after_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert round(evidence.assert_told_by_kubelet_first(ended(told(Seen(), 1.0), 15.9).task), 3) == 14.9
    with pytest.raises(AssertionError, match=r"written 15\.1 s after the kubelet's report"):
        evidence.assert_told_by_kubelet_first(ended(told(Seen(), 1.0), 16.1).task)
    with pytest.raises(AssertionError, match="written before the kubelet's report"):
        evidence.assert_told_by_kubelet_first(told(ended(Seen(), 1.0), 1.1).task)
    monkeypatch.setattr(evidence, "SEEN_WITHIN_S", 0)
    with pytest.raises(AssertionError, match=r"not seen within 0 s: .*the kubelet's report of the end"):
        evidence.assert_told_by_kubelet_first(ended(Seen(), 1.0).task)


def test_the_kubelets_word_that_the_watch_tells_after_the_end_counts_by_when_it_was_written() -> None:
    seen = Seen()
    seen.version = 1
    ended(seen, 1.0)
    seen.version = 0
    late = threading.Timer(0.1, told, (seen, 1.2))
    late.start()
    assert evidence.assert_told_by_kubelet_first(seen.task) < 0
    late.join()


def test_a_claim_that_was_released_before_the_end_was_on_record_is_found() -> None:
    early = Seen().claim(0).status(0, "Applying").claim(1.0, "DELETED").status(1.1, "Cancelled", "01.000000")
    with pytest.raises(AssertionError, match="released before the end was on record"):
        evidence.assert_claim_released(early.task)
    late = Seen().claim(0).status(0, "Applying").status(1.0, "Cancelled", "01.000000").claim(1.1, "DELETED")
    evidence.assert_claim_released(late.task)


def test_a_claim_that_went_while_nobody_was_told_is_gone_and_orders_nothing() -> None:
    ended = Seen().claim(0).status(0, "Applying").status(1.0, "Cancelled", "01.000000").claim(1.1, "VANISHED")
    evidence.assert_claim_released(ended.task)
    # What lies between two such lists has no order that was seen.
    early = Seen().claim(0).status(0, "Applying").claim(0.1, "VANISHED").status(1.0, "Cancelled", "01.000000")
    evidence.assert_claim_released(early.task)


def test_a_claim_that_was_never_seen_is_an_error_unless_nobody_was_told_of_claims(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evidence, "RELEASED_WITHIN_S", 0.0)
    seen = Seen().status(0, "Applying").status(1.0, "Cancelled", "01.000000")
    for resource in ("", "pods"):
        seen.told("gap", 2.0, resource=resource, since=0.5)
        with pytest.raises(AssertionError, match="to be gone"):
            evidence.assert_claim_released(seen.task)
    seen.told("gap", 2.0, resource="leases", since=0.5)
    evidence.assert_claim_released(seen.task)


def test_what_has_ended_is_forgotten_and_what_lives_is_not() -> None:
    seen = Seen().status(0, "Applying").process(5, 0.1, 0.5, "terraform plan").claim(0.1).claim(1.0, "DELETED")
    seen.told("began", 0.5, pid=9, ticks=7, started=T0, pod=RUN, run="", command=["sleep", "600"], parent=1)
    seen.timeline.forget_ended()
    assert [p.text for p in seen.task.processes] == ["sleep 600"]
    assert seen.task.phase == "Applying"
    assert not evidence.claims_of(seen.task)


def test_a_step_that_was_executed_twice_is_found_and_a_fork_is_no_step() -> None:
    once = (
        Seen()
        .status(0, "Applying")
        .process(5, 0.1, 0.9, "terraform plan")
        .process(6, 0.5, 0.51, "terraform plan", parent=5)
    )
    evidence.assert_steps(once.task, "plan")
    # Whoever is killed right after a fork leaves its copy to the agent, until the sweep.
    orphan = Seen().status(0, "Applying").process(5, 0.1, 0.5, "terraform apply")
    orphan.told("began", 0.49, pid=6, ticks=7, started=T0 + 0.49, pod=RUN, run=RUN, command=APPLY, parent=5)
    orphan.told("became", 0.51, pid=6, ticks=7, run=RUN, command=APPLY, parent=1)
    evidence.assert_steps(orphan.task, "apply")
    twice = Seen().status(0, "Applying").process(5, 0.1, 0.3, "terraform apply").process(6, 0.4, 0.5, "terraform apply")
    with pytest.raises(AssertionError):
        evidence.assert_steps(twice.task, "apply")


def test_an_init_may_have_been_missed_while_nobody_looked_and_nothing_else_may() -> None:
    def seen(*verbs: str, pause: tuple[float, float] | None = None) -> Seen:
        told = Seen().status(0, "Preparing")
        if pause:
            told.told("pause", pause[1], since=T0 + pause[0])
        for at, verb in enumerate(verbs, 1):
            told.process(at + 4, at, at + 0.5, f"terraform {verb}")
        return told.status(9, "Succeeded")

    evidence.assert_steps(seen("plan", "apply", pause=(0.9, 0.95)).task, "init", "plan", "apply")
    evidence.assert_steps(seen(pause=(0.9, 0.95)).task, "init")
    for missed, wanted in (
        (seen("plan"), ["init", "plan"]),
        (seen("plan", pause=(0.90, 0.93)), ["init", "plan"]),
        (seen("plan", pause=(1.2, 1.4)), ["init", "plan"]),
        (seen("init", pause=(1.2, 1.4)), ["init", "plan"]),
        (seen("plan", "plan", pause=(0.9, 0.95)), ["init", "plan"]),
        (seen("plan", "apply", pause=(0.9, 0.95)), ["init", "plan"]),
        (seen("init", pause=(0.9, 0.95)), []),
    ):
        with pytest.raises(AssertionError):
            evidence.assert_steps(missed.task, *wanted)


def test_a_lock_that_nobody_tells_of_is_found_and_one_that_an_earlier_run_left_is_that_ones() -> None:
    released = {"lock": "Released"}
    seen = Seen().claim(0).lock(0.1, "a-lock").status(1.0, "Failed", result=released).claim(1.1, "DELETED")
    with pytest.raises(AssertionError, match="the lock is held by 'a-lock'"):
        evidence.assert_lock_as_told(seen.task)
    with pytest.raises(AssertionError, match="the lock is held by 'a-lock'"):
        evidence.assert_lock_as_told(seen.task, left=["another"])
    evidence.assert_lock_as_told(seen.task, left=["a-lock"])


def test_an_agent_that_stood_still_may_not_know_of_its_lock_and_tells_how_to_look() -> None:
    def seen(**result: str) -> Seen:
        told = Seen().claim(0).lock(0.1, "a-lock").status(1.0, "Failed", result={"lock": "Unknown", **result})
        return told.claim(1.1, "DELETED")

    evidence.assert_lock_as_told(seen(lockCommand="look").task, could_look=False)
    with pytest.raises(AssertionError, match="without the way out"):
        evidence.assert_lock_as_told(seen().task, could_look=False)
    with pytest.raises(AssertionError, match="Unknown"):
        evidence.assert_lock_as_told(seen(lockCommand="look").task)


@pytest.mark.parametrize(
    ("result", "left"),
    [
        ({"lock": "Unknown"}, "a-lock"),
        ({"lock": "Held", "lockID": "as-told"}, "as-told"),
        ({"lock": "Released", "lockID": "of-another"}, ""),
        ({}, ""),
    ],
)
def test_what_a_run_left_locked_is_what_was_seen_where_its_end_does_not_know(result: Json, left: str) -> None:
    seen = Seen().claim(0).lock(0.1, "a-lock").status(1.0, "Failed", result=result).claim(1.1, "DELETED")
    assert evidence.lock_left_by(seen.lock(1.2, "of-the-next").task) == left


def test_a_run_that_does_not_know_whether_it_left_a_lock_left_none_where_nobody_saw_one() -> None:
    seen = Seen().claim(0).status(1.0, "Failed", result={"lock": "Unknown"}).claim(1.1, "DELETED")
    assert evidence.lock_left_by(seen.task) == ""


def test_an_agent_that_goes_on_after_its_run_is_found_unless_that_run_never_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evidence, "REPLACED_WITHIN_S", 0.1)

    def judge(rung: str, container: str, *, labels: Json | None = None, **status: str) -> None:
        told = Seen().status(0, "Cancelled", cancel={"rung": rung}, **status)
        pod: Json = {"status": {"containerStatuses": [{"state": {container: {}}}]}}
        told.object(0.1, "pods", "ns", "agent", pod, labels=labels)
        evidence.assert_agent_used_up(told.task)

    judge("Interrupt", "terminated")
    judge("NotStarted", "terminated", startedAt="then")
    judge("NotStarted", "running")
    for rung, status, labels in (
        ("Interrupt", {}, {}),
        ("NotStarted", {"startedAt": "then"}, {}),
        ("NotStarted", {}, {"terrahalt.dev/run": RUN}),
    ):
        with pytest.raises(AssertionError, match="the end of its agent"):
            judge(rung, "running", labels=labels, **status)


def test_an_end_that_is_written_anew_is_found() -> None:
    def seen(*phases: str) -> Seen:
        told = Seen().process(5, 0.1, 0.5, "terraform apply")
        for moment, phase in enumerate(phases, 1):
            told.status(moment, phase)
        return told

    evidence.assert_ended_once(seen("Applying", "Cancelled", "Cancelled").task)
    with pytest.raises(AssertionError, match="an end that changed"):
        evidence.assert_ended_once(seen("Applying", "Cancelled", "Failed").task)
    with pytest.raises(AssertionError, match="an end that changed"):
        evidence.assert_ended_once(seen("Cancelled", "Applying").task)


def test_a_task_that_was_given_out_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="given out twice"):
        evidence.assert_ended_once(Seen().status(0, "Applying", run=OTHER_RUN).status(1, "Succeeded").task)
    twice = Seen().status(0, "Applying").process(5, 0.1, 0.3, "terraform apply").process(6, 0.4, 0.5, "terraform apply")
    with pytest.raises(AssertionError, match="a step was started twice"):
        evidence.assert_ended_once(twice.status(1, "Succeeded").task)


def test_two_runs_that_lived_at_one_time_on_a_workspace_are_found() -> None:
    def seen(second_began: float) -> Seen:
        told = Seen().status(0, "Applying").process(5, 0.1, 1.0, "terraform apply")
        told.status(0.2, "Applying", run=OTHER_RUN, name="other")
        return told.process(6, second_began, 2.0, "terraform init", run=OTHER_RUN)

    apart, together = seen(1.1), seen(0.9)
    evidence.assert_one_at_a_time([apart.other, apart.task])
    with pytest.raises(AssertionError, match=r"other began at .* task was alive until"):
        evidence.assert_one_at_a_time([together.other, together.task])


def test_the_processes_of_a_node_that_lost_its_power_are_gone_from_then_on() -> None:
    seen = Seen().status(0, "Applying")
    seen.told("began", 0.5, pid=9, ticks=7, started=T0, pod="", run=RUN, command=["terraform", "apply"], parent=1)
    seen.looked_until(0.7)
    for process in seen.timeline.alive_on("node"):
        seen.timeline.note_gone(process, T0 + 1.0)
    (process,) = seen.task.processes
    assert (process.last_seen, process.gone) == (T0 + 0.7, T0 + 1.0)
    assert seen.timeline.alive_on("node") == []


def test_a_pause_of_the_watcher_is_told_where_it_hides_something() -> None:
    seen = Seen().told("pause", 2.0, since=T0 + 1.0)
    assert seen.timeline.blind_s(T0 + 1.25) == 0.75
    assert seen.timeline.blind_s(T0 + 2.5) == 0.02


def test_whoever_waits_is_told_that_nobody_looks_any_more() -> None:
    seen = Seen()
    seen.timeline.break_off("node: its stream ended")
    with pytest.raises(AssertionError, match="the node watcher ended: node: its stream ended"):
        seen.timeline.until(lambda: False, 5, "never")


def test_an_operator_that_has_ended_by_an_error_is_found_also_when_its_pod_is_gone() -> None:
    seen = Seen()
    ours = {"terrahalt-operator-1": seen.task.installation.images.operator}

    def operator(at: float, event: str = "MODIFIED", name: str = "terrahalt-operator-1", **status: Json) -> None:
        pod: Json = {"spec": {"containers": [{"image": ours.get(name, "of another version")}]}}
        pod["status"] = {"containerStatuses": [{"name": "operator", **status}]}
        seen.object(at, "pods", SYSTEM, name, pod, event)

    def ended(exit_code: int) -> Json:
        when = f"2027-01-15T08:00:0{exit_code % 10}Z"
        return {"terminated": {"exitCode": exit_code, "containerID": f"containerd://{exit_code}", "finishedAt": when}}

    judge = seen.task.installation.assert_no_operator_had_an_error
    for at, exit_code in enumerate((0, 137, 143)):
        operator(at, state={"running": {}}, lastState=ended(exit_code))
    operator(4, name="terrahalt-operator-0", state=ended(1))
    judge()
    operator(5, state=ended(1))
    operator(6, state={"running": {}}, lastState=ended(137))
    operator(7, "DELETED", state=ended(137))
    with pytest.raises(AssertionError, match=r"terrahalt-operator-1 at 2027-01-15T08:00:01Z"):
        judge()
