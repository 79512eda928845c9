"""What became of a pool's agents and of its queue: from the pods' and the tasks' histories, and the processes there.

It believes no status of the pool. Pure; called by `test_a_pool_of_twenty`, and by `pool_chart` for its figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask
from tests.e2e.timeline import Process, Sighting

GONE, STARTING, IDLE, BUSY = "gone", "starting", "idle", "busy"
History = Sequence[Sighting]


def state_of(pod: Sighting) -> str:
    """Of an agent that has one task in its life: busy from its reservation until its container has ended."""
    meta, status = pod.object["metadata"], pod.status
    containers = [each.get("state", {}) for each in status.get("containerStatuses", ())]
    has_ended = status.get("phase") in ("Succeeded", "Failed") or any("terminated" in state for state in containers)
    if pod.is_deleted or "deletionTimestamp" in meta or has_ended:
        return GONE
    if "terrahalt.dev/last-task" in meta.get("labels", {}):
        return BUSY
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    return IDLE if is_ready else STARTING


@dataclass(frozen=True, slots=True)
class Count:
    """From `at` on."""

    at: float
    starting: int
    idle: int
    busy: int

    @property
    def agents(self) -> int:
        return self.starting + self.idle + self.busy

    @property
    def without_a_run(self) -> int:
        return self.starting + self.idle


def counts(pods: Iterable[History]) -> list[Count]:
    """One for each moment at which they changed."""
    changes = sorted(
        ((sighting.at, number, state_of(sighting)) for number, seen in enumerate(pods) for sighting in seen),
        key=lambda change: change[0],
    )
    states: dict[int, str] = {}
    now: Counter[str] = Counter()
    found: list[Count] = []
    for at, number, state in changes:
        before = states.get(number, GONE)
        if state != before:
            now[before] -= 1
            now[state] += 1
            states[number] = state
            found.append(Count(at, now[STARTING], now[IDLE], now[BUSY]))
    return found


def settled_at(found: Sequence[Count], since: float, holds: Callable[[Count], bool]) -> float | None:
    """From when on, not before `since`, it has held without a break until now; None: it does not hold now."""
    at = None
    for count in reversed(found):
        if not holds(count):
            break
        at = max(count.at, since)
        if count.at <= since:
            break
    return at


def waits(tasks: Iterable[RunningTask]) -> list[tuple[float, float]]:
    """When each was given to an agent, and how many seconds after it was first seen; in the order of the first."""
    given = [
        (next(s.at for s in seen if s.status.get("runID")), seen[0].at) for seen in (task.history for task in tasks)
    ]
    return sorted((at, at - since) for at, since in given)


def taken_with_a_run(pods: Mapping[str, History], ended: Mapping[str, int]) -> list[str]:
    """Pods that were to be deleted before the end of a run that they had was on record; `ended`: run -> its version."""
    found = []
    for name, seen in pods.items():
        deleted = next((s for s in seen if s.is_deleted or "deletionTimestamp" in s.object["metadata"]), None)
        if deleted is None:
            continue
        for run in runs_of(seen):
            if run not in ended:
                found.append(f"{name} was deleted with run {run}, which has no end on record")
            elif deleted.version < ended[run]:
                found.append(f"{name} was deleted before the end of its run {run} was on record")
    return found


def runs_of(pod: History) -> set[str]:
    """By its labels."""
    labels: list[Json] = [sighting.object["metadata"].get("labels", {}) for sighting in pod]
    return {str(each["terrahalt.dev/run"]) for each in labels if "terrahalt.dev/run" in each}


def used_otherwise_than_once(
    pods: Mapping[str, History], processes: Iterable[Process], given: Mapping[str, str]
) -> list[str]:
    """`given`: run -> the UID of its agent's pod, by the tasks. By labels, and by the processes in it, each of these
    pods has had that run and no other, and each of the others none."""
    by_pod: dict[str, set[str]] = {}
    for process in processes:
        if process.run_id:
            by_pod.setdefault(process.pod_uid, set()).add(process.run_id)
    found = []
    for name, seen in pods.items():
        uid = seen[0].object["metadata"]["uid"]
        wanted = {run for run, pod in given.items() if pod == uid}
        labelled, ran = runs_of(seen), by_pod.get(uid, set())
        if len(wanted) > 1 or labelled != wanted or ran != wanted:
            told = f"its labels {sorted(labelled)}, its processes {sorted(ran)}"
            found.append(f"{name} had by the tasks {sorted(wanted)}, by {told}")
    unknown = set(given.values()) - {seen[0].object["metadata"]["uid"] for seen in pods.values()}
    return found + [f"nobody has seen the pod {uid}" for uid in sorted(unknown)]
