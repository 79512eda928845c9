"""Two operators, one of which leads: handed over, killed, frozen, its Lease deleted; never two, and nothing twice.

Who leads, and since when, is judged by the Lease itself, as a watch on a node saw it.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from tests.e2e import evidence
from tests.e2e.installation import OPERATOR, RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import counted, source, start_one
from tests.e2e.timeline import Sighting

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

HANDED_OVER_WITHIN_S = 2.5
"""Tens of milliseconds, after what is being written then, which has a second. Where the Lease has to run out it takes
3 to 4 s."""
TAKEN_OVER_WITHIN_S = 8.0
"""4 s after the last renewal that was seen, and a write."""
BACK_WITHIN_S = 30.0
FROZEN_S = 10.0


def leader(installation: Installation) -> Json:
    """Its pod, once another one stands by."""
    installation.wait_for_standby()
    pod = installation.operator_pod()
    assert pod is not None
    return pod


def signal_leader(installation: Installation, number: int) -> tuple[int, float]:
    """The epoch that it had, and when it had got the signal."""
    epoch, process = installation.epoch(), installation.operator_process()
    assert process is not None, "the operator was not running"
    killed = installation.nodes.killed_at(process, number)
    assert killed is not None
    return epoch, killed


def terms(installation: Installation, since: float) -> list[str]:
    """Who has led since then, in order; empty: the Lease was released."""
    seen = [s for s in installation.timeline.history("leases", SYSTEM, OPERATOR) if s.at >= since and not s.is_deleted]
    holders = [str(s.object["spec"].get("holderIdentity") or "") for s in seen]
    return [h for i, h in enumerate(holders) if i == 0 or h != holders[i - 1]]


def pod_of(taken: Sighting) -> str:
    return str(taken.object["spec"]["holderIdentity"]).partition("_")[0]


def health(installation: Installation, pod: str) -> Json:
    found: Json = json.loads(
        installation.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/healthz")
    )
    return found


def log_until(
    installation: Installation, pod: str, since: float, words: str, *, namespace: str = SYSTEM
) -> list[tuple[float, str]]:
    """What it says from that moment on, as it is written and with its times, up to the line with these words."""
    moment = datetime.fromtimestamp(since, UTC).isoformat()
    follow = ["--namespace", namespace, "logs", "--follow", "--timestamps", f"--since-time={moment}", pod]
    said: list[tuple[float, str]] = []
    with installation.kubectl.stream(*follow) as stream:
        limit = threading.Timer(60, stream.kill)
        limit.start()
        assert stream.stdout is not None
        for line in stream.stdout:
            at, _, text = line.rstrip().partition(" ")
            said.append((_seconds(f"{at[:26]}+00:00"), text))
            # The API server goes by whole seconds.
            if words in text and said[-1][0] >= since:
                break
        else:
            raise AssertionError(f"not said: {words!r}, but {said}")
        limit.cancel()
        stream.kill()
    return said


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def test_each_says_by_its_health_who_leads(installation: Installation) -> None:
    leading, standing_by = leader(installation), installation.wait_for_standby()
    told = health(installation, leading["metadata"]["name"])
    assert told["leads"] is True
    assert told["epoch"] == installation.epoch()
    assert told["leader"].partition("_")[0] == leading["metadata"]["name"]
    assert 0 <= told["renewalAgeSeconds"] < 3
    other = health(installation, standing_by["metadata"]["name"])
    assert (other["leads"], other["epoch"], other["renewalAgeSeconds"]) == (False, 0, None)
    assert other["leader"] == told["leader"]


def test_on_sigterm_the_next_one_leads_at_once_and_the_run_goes_on(
    installation: Installation, say: Callable[[str], None]
) -> None:
    leader(installation)
    task = counted(installation, "handed-over", 6)
    task.until_child("sleep 6")
    epoch, sent = signal_leader(installation, signal.SIGTERM)
    taken = installation.wait_for_take_over(epoch)
    released = next(
        s
        for s in installation.timeline.history("leases", SYSTEM, OPERATOR)
        if s.at >= sent and not s.object["spec"].get("holderIdentity")
    )
    stalled_s = installation.timeline.stalled_s(sent, taken.at)
    assert taken.at - sent - stalled_s < HANDED_OVER_WITHIN_S, (sent, released.at, taken.at, stalled_s)
    say(
        f"leader, SIGTERM: the next one led after {(taken.at - sent) * 1000:.0f} ms,"
        f" {(taken.at - released.at) * 1000:.0f} ms after the Lease was released"
    )
    assert task.until_ended() == "Succeeded", task.story()
    assert evidence.executions(task) == 1
    evidence.assert_over(task)


@contextmanager
def frozen(installation: Installation) -> Iterator[list[float]]:
    """The one that leads, from SIGSTOP to SIGCONT, which is told afterwards: when it has got it."""
    process = installation.operator_process()
    assert process is not None, "the operator was not running"
    assert installation.nodes.kill(process, signal.SIGSTOP)
    stopped, thawed = time.time(), list[float]()
    try:
        yield thawed
        time.sleep(max(0.0, stopped + FROZEN_S - time.time()))
    finally:
        moment = installation.nodes.killed_at(process, signal.SIGCONT)
        assert moment is not None, "it is gone"
        thawed.append(moment)


def test_a_leader_that_was_frozen_writes_nothing_when_it_thaws_and_nothing_runs_twice(
    installation: Installation,
) -> None:
    installation.wait_for_idle(RUNS, 2)
    pod = leader(installation)
    name, restarts = pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["restartCount"]
    running = counted(installation, "left-frozen", 12)
    running.until_child("sleep 12")
    cancelled = start_one(installation, "cancelled-frozen", source("sleeping_provider", count="1", duration="300s"))
    cancelled.until_operation()
    epoch, stopped = installation.epoch(), time.time()
    with frozen(installation) as thaw:
        # Both are news to the one that is frozen, and work for the other.
        cancelled.cancel()
        fresh = counted(installation, "fresh", 1)
        taken = installation.wait_for_take_over(epoch)
        assert taken.at - stopped - installation.timeline.stalled_s(stopped, taken.at) < TAKEN_OVER_WITHIN_S
        assert pod_of(taken) != name
    (thawed,) = thaw
    said = [line for at, line in log_until(installation, name, thawed - 0.5, "stands by") if at >= thawed - 0.5]
    assert any("deposed" in line for line in said), said
    seen = installation.timeline.latest("pods", SYSTEM, name)
    assert seen is not None
    assert seen.status["containerStatuses"][0]["restartCount"] == restarts, "the kubelet would start it ever later"
    # It says what it does: phases that it writes, agents that it dials or makes.
    assert not [line for line in said if any(w in line for w in (" -> ", ": connected", " created"))], said
    told = installation.kubectl.get("--namespace", RUNS, "events.events.k8s.io")["items"]
    its_own = [e for e in told if e.get("reportingInstance") == name]
    assert its_own, "then this shows nothing"
    late = [e for e in its_own if _seconds(e["eventTime"]) > thawed - 0.5]
    assert not late, f"it went on: {late}"
    for task, phase in ((running, "Succeeded"), (cancelled, "Cancelled"), (fresh, "Succeeded")):
        assert task.until_ended() == phase, task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        evidence.assert_over(task)
        assert len({s.status["runID"] for s in task.history if s.status.get("runID")}) == 1
    assert (evidence.executions(running), evidence.executions(fresh)) == (1, 1)
    assert len(terms(installation, taken.at)) == 1, "the one that was frozen led again"


def test_a_lease_that_is_deleted_and_one_that_is_put_back_change_nothing(installation: Installation) -> None:
    leader(installation)
    task = counted(installation, "no-lease", 8)
    task.until_child("sleep 8")
    where = ("--namespace", SYSTEM)
    epoch, began = installation.epoch(), time.time()
    lease = installation.kubectl.get(*where, "lease", OPERATOR)
    holder = lease["spec"]["holderIdentity"]

    def is_back(uid: str) -> bool:
        seen = installation.timeline.latest("leases", SYSTEM, OPERATOR)
        return (
            seen is not None
            and seen.object["metadata"]["uid"] != uid
            and seen.object["spec"].get("holderIdentity") == holder
            and installation.epoch() == epoch
        )

    installation.kubectl(*where, "delete", "lease", OPERATOR)
    installation.timeline.until(lambda: is_back(lease["metadata"]["uid"]), BACK_WITHIN_S, "the Lease to be made anew")
    # And now by somebody's copy of it, which may be there before the one who leads knows.
    again = installation.kubectl.get(*where, "lease", OPERATOR)
    installation.kubectl(*where, "delete", "lease", OPERATOR)
    kept = {k: again["metadata"][k] for k in ("name", "namespace", "annotations")}
    installation.kubectl.attempt("create", "--filename=-", stdin=json.dumps(again | {"metadata": kept}))
    installation.timeline.until(lambda: is_back(again["metadata"]["uid"]), BACK_WITHIN_S, "the Lease to be there again")
    cancelled = start_one(installation, "led-on", source("sleeping_provider", count="1", duration="300s"))
    cancelled.until_operation()
    cancelled.cancel()
    assert cancelled.until_ended() == "Cancelled", cancelled.story()
    assert task.until_ended() == "Succeeded", task.story()
    assert evidence.executions(task) == 1
    for ended in (task, cancelled):
        evidence.assert_over(ended)
    assert set(terms(installation, began)) <= {holder, ""}, "another one has led"
    assert installation.epoch() == epoch
