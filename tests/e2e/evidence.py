"""What has to be true after every end, judged by what was seen from outside; each failure tells the whole story.

Never by the status alone: processes are those that the watcher saw on the nodes, claims and locks are the
Leases themselves, and orders of writes are resourceVersions. Called by the tests of the cluster suite and by
`tests.soak.judge`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from datetime import datetime

from tests.e2e.installation import SYSTEM
from tests.e2e.tasks import RunningTask
from tests.e2e.timeline import Process, Sighting

RELEASED_WITHIN_S = 15.0
REPLACED_WITHIN_S = 90.0
TOLD_WITHIN_S = 15.0
SEEN_WITHIN_S = 10.0
SHORTEST_INIT_S = 0.04
"""A little less than the quickest that was seen, 50 ms."""


def assert_nothing_outlived(task: RunningTask) -> None:
    """No process of the run was alive when a terminal phase was seen, nor is one now (invariant 1)."""
    end = task.end
    assert end is not None, task.story()
    timeline = task.installation.timeline
    timeline.looked_after(end.at)
    late = [p for p in task.processes if p.gone is None or p.last_seen > end.at]
    assert not late, f"alive after the status said {task.phase} at {end.at:.3f}: {_listed(late)}\n{task.story()}"
    if task.installation.cluster.has_one_clock:
        # Sooner than any watch can deliver it: the moment at which the operator was sure.
        finished = seconds(task.status["finishedAt"])
        late = [p for p in task.processes if p.last_seen > finished]
        assert not late, f"alive after finishedAt {finished:.3f}: {_listed(late)}\n{task.story()}"
    living = task.installation.nodes.processes(pod_uid=task.pod_uid, run_id=task.run_id)
    left = [p for p in living if p["guest"] and p["run"] in ("", task.run_id)]
    assert not left, f"still on the node: {left}\n{task.story()}"


def assert_over(
    task: RunningTask, *, lock_holder: str = "", left_locks: Collection[str] = (), could_look: bool = True
) -> None:
    """And the claim is gone, the state's lock is as it was told, the agent is used up.

    `left_locks`: what runs before it may have left, and were judged for. `could_look`: its agent stood never still."""
    assert_nothing_outlived(task)
    if not task.run_id:
        return
    assert_claim_released(task)
    assert_lock_as_told(task, lock_holder, left_locks, could_look=could_look)
    assert_agent_used_up(task)


def assert_cancelled(task: RunningTask, *, by: str = "User") -> None:
    assert task.until_ended() == "Cancelled", task.story()
    cancel = task.status["cancel"]
    assert cancel["by"] == by
    stages = [cancel[k] for k in ("requestedAt", "sentAt", "signalledAt", "exitedAt", "sweptAt") if k in cancel]
    assert stages == sorted(stages), cancel
    assert task.status["finishedAt"] >= stages[-1]
    requested = task.condition("CancelRequested")
    assert (requested["status"], requested["reason"]) == ("True", by)
    assert [task.condition(kind)["status"] for kind in ("Finished", "Stalled", "Ready")] == ["True", "True", "False"]


def assert_failed(task: RunningTask, reason: str) -> None:
    assert task.until_ended() == "Failed", task.story()
    assert task.status["result"]["reason"] == reason, task.story()
    for kind, value in (("Finished", "True"), ("Stalled", "True"), ("Ready", "False")):
        condition = task.condition(kind)
        assert (condition["status"], condition["reason"]) == (value, reason)


def assert_handed_over(before: RunningTask, after: RunningTask) -> float:
    """The second began when nothing of the first was alive; the seconds in between."""

    def release() -> Sighting | None:
        return next((s for s in claims_of(before) if s.is_deleted), None)

    released = before.until(release, SEEN_WITHIN_S, "its claim to be gone")
    claimed = after.until(lambda: next(iter(claims_of(after)), None), SEEN_WITHIN_S, "its claim")
    assert claimed.version > released.version, "two claims on one workspace"
    assert min(p.first_seen for p in after.processes) > last_alive(before), before.story() + after.story()
    return first_start(after) - last_gone(before)


def assert_told_by_kubelet_first(task: RunningTask) -> float:
    """The end was written after the kubelet had reported the very container of the run as terminated, and soon.

    How many seconds after."""
    container = task.status["agent"]["containerID"]

    def is_reported(pod: Sighting) -> bool:
        states = [c.get("state", {}).get("terminated", {}) for c in pod.status.get("containerStatuses", [])]
        return any(state.get("containerID") == container for state in states)

    def report() -> Sighting | None:
        seen = task.installation.timeline.history("pods", task.namespace, task.pod_name)
        return next((s for s in seen if is_reported(s)), None)

    # Pods are told by another watch than tasks are: what was written first may be told last.
    seen = task.until(report, SEEN_WITHIN_S, f"the kubelet's report of the end of {container}")
    assert task.end is not None
    assert seen.version < task.end.version, f"the end was written before the kubelet's report\n{task.story()}"
    took_s = task.end.at - seen.at
    assert took_s <= TOLD_WITHIN_S, f"the end was written {took_s:.1f} s after the kubelet's report\n{task.story()}"
    return took_s


def claims_of(task: RunningTask) -> list[Sighting]:
    """Every version of the claim on the task's workspace that was this run's."""
    timeline = task.installation.timeline
    name = task.claim_name
    seen = timeline.history("leases", SYSTEM, name) if name else []
    return [s for s in seen if s.object["spec"].get("holderIdentity") == task.run_id]


def assert_claim_released(task: RunningTask) -> None:
    """After the terminal phase was on record, never before it."""
    if not task.run_id:
        return
    released = _release_of(task)
    assert task.end is not None
    if released is not None:
        assert released.version > task.end.version, f"released before the end was on record\n{task.story()}"


def _release_of(task: RunningTask) -> Sighting | None:
    """Of its claim; None: it is gone, and nobody was told when."""
    timeline = task.installation.timeline

    def is_released() -> bool:
        claims = claims_of(task)
        return any(s.is_deleted for s in claims) or (
            # It came and went unseen: what is there is listed after each gap.
            not claims and timeline.had_gap("leases", task.history[0].at)
        )

    task.until(is_released, RELEASED_WITHIN_S, f"the claim {task.claim_name} to be gone")
    return next((s for s in claims_of(task) if s.is_deleted and s.is_dated), None)


def assert_lock_as_told(
    task: RunningTask, another: str = "", left: Collection[str] = (), *, could_look: bool = True
) -> None:
    """`another` or one of `left` holds it, or nobody does, or the status says that it is held and what to type.

    Whoever could not look says what to type, too."""
    released = _release_of(task)
    if released is None:
        return
    # Up to here the workspace was this run's; both are Leases, so one watch has told them in their order.
    holder = _holder_before(task, released)
    result = task.status["result"]
    if result["lock"] == "Released":
        assert holder == another or holder in left, f"the lock is held by {holder!r}\n{task.story()}"
    else:
        if could_look or result["lock"] != "Unknown":
            assert (result["lock"], result.get("lockID")) == ("Held", holder), task.story()
        assert result.get("lockCommand"), f"a lock that may be held, without the way out\n{task.story()}"


def lock_left_by(task: RunningTask) -> str:
    """What whoever comes next may meet: as its end says or, where that does not know, as it was seen; "": nothing."""
    result = task.status.get("result", {})
    if result.get("lock") == "Unknown":
        assert task.end is not None
        return _holder_before(task, _release_of(task) or task.end)
    return str(result["lockID"]) if result.get("lock") == "Held" else ""


def _holder_before(task: RunningTask, moment: Sighting) -> str:
    """Of the lock of its state."""
    lock = f"lock-tfstate-default-{task.workspace}-tf"
    history = task.installation.timeline.history("leases", task.namespace, lock)
    seen = [s for s in history if s.version < moment.version]
    return str(seen[-1].object["spec"].get("holderIdentity") or "") if seen else ""


def assert_agent_used_up(task: RunningTask) -> None:
    """Its container has ended, and nobody gets that pod again; where its run never came, it may be free as before.

    A run that came was told with its age, so there is a time at which it started, though nothing was executed."""
    timeline = task.installation.timeline
    never_came = task.status.get("cancel", {}).get("rung") == "NotStarted" and "startedAt" not in task.status

    def is_over() -> bool:
        seen = timeline.history("pods", task.namespace, task.pod_name)
        if not seen:
            return False
        containers = [c.get("state", {}) for c in seen[-1].status.get("containerStatuses", [])]
        if never_came and not seen[-1].is_deleted and any("running" in state for state in containers):
            return "terrahalt.dev/run" not in seen[-1].object["metadata"].get("labels", {})
        return seen[-1].is_deleted or any("terminated" in state for state in containers)

    task.until(is_over, REPLACED_WITHIN_S, f"the end of its agent {task.pod_name}")


def assert_never_ran(task: RunningTask) -> None:
    """It has no run, so no agent, no claim, and no process."""
    assert not task.run_id, task.story()
    assert not task.status.get("agent"), task.story()
    assert task.state() is None, task.story()


def assert_steps(task: RunningTask, *verbs: str) -> None:
    """These terraform commands were executed, each once, and no other.

    Unseen is only what may have come and gone while nobody looked: an `init` takes less than a tenth of a second."""
    seen = steps(task)
    if tuple(seen) != verbs:
        assert seen == [verb for verb in verbs if verb in seen], task.story()
        assert set(verbs) - set(seen) == {"init"}, task.story()
        assert _may_have_hidden_init(task), task.story()


def _may_have_hidden_init(task: RunningTask) -> bool:
    """Whether, before anything was seen of the run, a node was looked at too seldom to see it."""
    assert task.end is not None, task.story()
    since, until = task.history[0].at, min((p.first_seen for p in task.processes), default=task.end.at)
    pauses = (p for p in task.installation.timeline.pauses if p.since < until and p.until > since)
    return any(p.until - p.since > SHORTEST_INIT_S for p in pauses)


def steps(task: RunningTask) -> list[str]:
    """The terraform commands that were executed, in their order."""
    processes = sorted(task.processes, key=lambda p: p.started)
    # What terraform starts is a copy of itself for a moment, between fork and exec.
    children = {p.pid for p in processes if any(q.pid == p.parent and q.is_terraform() for q in processes)}
    return [p.command[1] for p in processes if p.is_terraform() and p.pid not in children]


def assert_ended_once(task: RunningTask, *, runs_at_most: int = 1) -> None:
    """Its end was written once and stays (invariant 3); it had one run, and no step of that twice (6)."""
    assert task.end is not None, task.story()
    after = {s.status.get("phase") for s in task.history if s.version >= task.end.version}
    assert after == {task.end.status["phase"]}, f"an end that changed: {after}\n{task.story()}"
    runs = {s.status["runID"] for s in task.history if s.status.get("runID")}
    assert len(runs) <= runs_at_most, f"given out twice: {runs}\n{task.story()}"
    verbs = steps(task)
    assert len(verbs) == len(set(verbs)), f"a step was started twice: {verbs}\n{task.story()}"


def assert_one_at_a_time(tasks: Sequence[RunningTask]) -> None:
    """Of the tasks of one workspace: no process of one run was seen while another run's lived (invariant 2)."""
    ran = sorted((task for task in tasks if task.processes), key=lambda t: min(p.first_seen for p in t.processes))
    for before, after in itertools.pairwise(ran):
        began = min(p.first_seen for p in after.processes)
        assert began > last_alive(before), (
            f"{after.name} began at {began:.3f}, {before.name} was alive until {last_alive(before):.3f}\n"
            f"{before.story()}\n{after.story()}"
        )


def executions(task: RunningTask, counter: str = "") -> int:
    """How often the command of sources/counted.tf was executed, counted by what it left behind each time."""
    label = f"terrahalt.test/task={counter or task.name}"
    return len(task.kubectl("get", "secrets", f"--selector={label}", "--output=name").split())


def last_gone(task: RunningTask) -> float:
    """The moment at which the last process of the run was found to be gone."""
    moments = [p.gone for p in task.processes]
    assert moments, f"no process was ever seen\n{task.story()}"
    assert all(m is not None for m in moments), task.story()
    return max(m for m in moments if m is not None)


def gone_after_s(task: RunningTask, moment: float) -> float:
    """From then to the last process, without the seconds in which the machine stood still."""
    gone = last_gone(task)
    return gone - moment - task.installation.timeline.stalled_s(moment, gone)


def last_alive(task: RunningTask) -> float:
    """The last moment at which a process of the run was certainly alive."""
    return max(p.last_seen for p in task.processes)


def first_start(task: RunningTask) -> float:
    """The moment at which the run's first terraform was seen."""
    return min(p.first_seen for p in task.processes if p.is_terraform())


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def _listed(processes: list[Process]) -> str:
    return "; ".join(map(str, processes))
