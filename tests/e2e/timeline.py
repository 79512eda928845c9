"""All that was seen from outside, in one order: processes on the nodes and objects of the API server.

Filled by `node_watcher` while the tests run; they wait for what they need to see, and judge by it
afterwards. It believes no status about processes. Times are seconds since the epoch on a node's clock.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Sighting:
    """One version of an object, at the moment at which a watch delivered it."""

    at: float
    event: str
    object: Json

    @property
    def version(self) -> int:
        """Orders it among all objects of the cluster: one counter stamps every write."""
        return int(self.object["metadata"]["resourceVersion"])

    @property
    def is_deleted(self) -> bool:
        return self.event in ("DELETED", "VANISHED")

    @property
    def is_dated(self) -> bool:
        """False: it went while nobody was told, some time before `version`."""
        return self.event != "VANISHED"

    @property
    def status(self) -> Json:
        found: Json = self.object.get("status") or {}
        return found


@dataclass
class Process:
    """A process of a run. It was certainly alive at `first_seen` and `last_seen`, and not at `gone`."""

    node: str
    pid: int
    ticks: int
    started: float
    first_seen: float
    last_seen: float
    pod_uid: str
    run_id: str
    command: list[str]
    parent: int
    """Of which it was born: another one may have it since."""
    exec_seen: float
    """The first look at which it had this command: at most a look after its exec."""
    gone: float | None = None

    @property
    def text(self) -> str:
        return " ".join(self.command)

    def is_terraform(self, verb: str = "") -> bool:
        """Terraform itself, or OpenTofu in its place."""
        words = self.command
        return (
            len(words) > 1 and words[0].rpartition("/")[2] in ("terraform", "tofu") and (not verb or words[1] == verb)
        )

    def __str__(self) -> str:
        end = "still there" if self.gone is None else f"gone at {self.gone:.3f}"
        return f"{self.pid} {self.text[:80]!r} {self.started:.3f}..{self.last_seen:.3f} ({end})"


@dataclass(frozen=True)
class Pause:
    """Between two looks at a node that are further apart than usual."""

    node: str
    since: float
    until: float


@dataclass(frozen=True)
class Gap:
    """What became of these objects in between, only a list told afterwards: versions may have been missed."""

    resource: str
    since: float
    until: float


USUAL_PAUSE_S = 0.02


@dataclass
class Timeline:
    processes: list[Process] = field(default_factory=list)
    looked_at: dict[str, float] = field(default_factory=dict)
    """Node -> when it was looked at, up to a quarter of a second ago."""
    pauses: list[Pause] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    _objects: dict[tuple[str, str, str], list[Sighting]] = field(default_factory=lambda: defaultdict(list))
    _alive: dict[tuple[str, int, int], Process] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _broken: str = ""

    # ---- filled by the watcher

    def note(self, node: str, line: Json) -> None:
        with self._changed:
            match line["kind"]:
                case "began":
                    self._note_began(node, line)
                case "became":
                    process = self._alive[node, line["pid"], line["ticks"]]
                    if process.command != line["command"]:
                        process.exec_seen = line["t"]
                    process.command = line["command"]
                    process.run_id = line["run"] or process.run_id
                case "ended":
                    process = self._alive.pop((node, line["pid"], line["ticks"]))
                    process.last_seen, process.gone = line["seen"], line["t"]
                case "object":
                    meta = line["object"]["metadata"]
                    key = line["resource"], meta.get("namespace", ""), meta["name"]
                    self._objects[key].append(Sighting(line["t"], line["event"], line["object"]))
                case "pulse":
                    self._note_pulse(node, line)
                case "pause":
                    self.pauses.append(Pause(node, line["since"], line["t"]))
                case "gap":
                    self.gaps.append(Gap(line["resource"], line["since"], line["t"]))
            self._changed.notify_all()

    def break_off(self, why: str) -> None:
        """Nobody looks any more: whoever waits is told so."""
        with self._changed:
            self._broken = self._broken or why
            self._changed.notify_all()

    def look_again(self) -> None:
        """For whoever waits for something that is not told here."""
        with self._changed:
            self._changed.notify_all()

    def note_gone(self, process: Process, at: float) -> None:
        """By what somebody else knows: the power of its node was cut."""
        with self._changed:
            if self._alive.pop((process.node, process.pid, process.ticks), None):
                process.gone = at
            self._changed.notify_all()

    def _note_began(self, node: str, line: Json) -> None:
        process = Process(
            node=node,
            pid=line["pid"],
            ticks=line["ticks"],
            started=line["started"],
            first_seen=line["t"],
            last_seen=line["t"],
            pod_uid=line["pod"],
            run_id=line["run"],
            command=line["command"],
            parent=line["parent"],
            exec_seen=line["t"],
        )
        self.processes.append(process)
        self._alive[node, process.pid, process.ticks] = process

    def _note_pulse(self, node: str, line: Json) -> None:
        self.looked_at[node] = line["t"]
        for process in self._alive.values():
            if process.node == node:
                process.last_seen = line["t"]

    # ---- read by the tests

    def until(self, look: Callable[[], T | None], within_s: float, what: Callable[[], str] | str) -> T:
        """The first answer that is not None or False, asked again at whatever happens."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while True:
                answer = look()
                if answer is not None and answer is not False:
                    return answer
                if self._broken:
                    raise AssertionError(f"the node watcher ended: {self._broken}")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
        text = what if isinstance(what, str) else what()
        raise AssertionError(f"not seen within {within_s:g} s: {text}")

    def history(self, resource: str, namespace: str, name: str) -> list[Sighting]:
        """Every version that was seen, the oldest first."""
        with self._changed:
            return list(self._objects.get((resource, namespace, name), ()))

    def latest(self, resource: str, namespace: str, name: str) -> Sighting | None:
        """None: never seen, or deleted."""
        seen = self.history(resource, namespace, name)
        return seen[-1] if seen and not seen[-1].is_deleted else None

    def all_latest(self, resource: str, namespace: str) -> Iterator[Sighting]:
        with self._changed:
            keys = [key for key in self._objects if key[:2] == (resource, namespace)]
        for key in keys:
            if (sighting := self.latest(*key)) is not None:
                yield sighting

    def names(self, resource: str, namespace: str, holds: Callable[[Sighting], bool]) -> Iterator[str]:
        """Of the objects, deleted ones too, whose last version is such a one."""
        with self._changed:
            found = [
                key[2] for key, seen in self._objects.items() if key[:2] == (resource, namespace) and holds(seen[-1])
            ]
        yield from found

    def of_run(self, run_id: str, pod_uid: str, given_at: float) -> list[Process]:
        """The run's processes, by what they inherited or, where they bear no ID, by where they live and since when.

        An agent whose run never came gets another one: what began in its pod after that is not of the first. Nor is
        what was there before: a sidecar, or the agent's look at its engine, which was over when the pod was given away.
        """
        with self._changed:
            in_pod = [p for p in self.processes if pod_uid and p.pod_uid == pod_uid]
            begun = sorted((p.started, p.run_id) for p in in_pod if p.run_id)
            has_begun = any(p.run_id == run_id for p in self.processes)

            def lives_in_its_pod(process: Process) -> bool:
                if not pod_uid or process.pod_uid != pod_uid:
                    return False
                if before := [run for since, run in begun if since <= process.started]:
                    return before[-1] == run_id
                return not has_begun and (process.gone is None or process.gone >= given_at)

            return [p for p in self.processes if (p.run_id == run_id if p.run_id else lives_in_its_pod(p))]

    def had_gap(self, resource: str, since: float) -> bool:
        with self._changed:
            return any(gap.resource == resource and gap.until > since for gap in self.gaps)

    def forget_ended(self) -> None:
        """Processes that are gone and objects that were deleted: a long trial would look through ever more of them."""
        with self._changed:
            self.processes = [process for process in self.processes if process.gone is None]
            for key in [key for key, seen in self._objects.items() if seen[-1].is_deleted]:
                del self._objects[key]

    def alive_on(self, node: str) -> list[Process]:
        with self._changed:
            return [process for process in self._alive.values() if process.node == node]

    def looked_after(self, moment: float) -> None:
        """Waits until every node was looked at after that moment."""

        def all_later() -> bool:
            return bool(self.looked_at) and all(at > moment for at in self.looked_at.values())

        self.until(all_later, 10, "a later look at the nodes")

    def stalled_s(self, since: float, until: float) -> float:
        """For how long of this span the machine let nobody look at a node, so hardly let anybody there do anything."""
        overlaps: dict[str, float] = defaultdict(float)
        for pause in self.pauses:
            overlaps[pause.node] += max(0.0, min(pause.until, until) - max(pause.since, since))
        return max(overlaps.values(), default=0.0)

    def blind_s(self, moment: float) -> float:
        """For how long after it nobody looked, at most."""
        with self._changed:
            covering = [pause.until - moment for pause in self.pauses if pause.since <= moment < pause.until]
        return max(covering, default=USUAL_PAUSE_S)
