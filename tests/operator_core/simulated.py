"""An API server, kubelets, agents and their sockets as one small model, for the real operator to run on.

Every call of the operator stops twice, before the API server acts and before the answer arrives: who
drives the coroutine may let others act meanwhile, raise an error there, or never go on (a crash).
Nothing here knows a rule of the product but the agents' side of the protocol.
"""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from terrahalt_operator.adapters import cluster as api
from terrahalt_operator.core.model import Agent, ReceivedReport, Session
from terrahalt_operator.errors import AlreadyExists, Conflict, NotFound
from terrahalt_protocol import signing
from terrahalt_protocol.messages import (
    SUPERSEDED,
    Ack,
    Cancel,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    Command,
    FromAgent,
    Hello,
    KeptPlan,
    Lock,
    LockCondition,
    Outcome,
    RefusalCode,
    Refused,
    Report,
    Result,
    Rung,
    Start,
    StateCondition,
    Step,
)
from tests.operator_core.merge import apply_merge_patch

Json = dict[str, Any]
Objects = list[Json]


class Pause:
    """Where a coroutine stops until it is driven on."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


class ApiServer:
    """In the place of `Cluster`. `events` is what a watch would tell, in order."""

    def __init__(self, clock: Any) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.events: list[tuple[str, bool, Json]] = []
        self.deleted: set[str] = set()
        """UIDs that the operator has asked it to delete."""
        self._clock = clock
        self._version = 0

    @property
    def version(self) -> str:
        return str(self._version)

    # ---- what the operator calls

    async def get(self, resource: api.Resource, namespace: str, name: str) -> Json:
        await Pause()
        obj = self.of(resource[1], namespace, name)
        await Pause()
        return obj

    async def list(self, resource: api.Resource, namespace: str | None, labels: str = "") -> tuple[Objects, str]:
        await Pause()
        items, version = copy.deepcopy(self.all(resource[1], labels)), str(self._version)
        await Pause()
        return items, version

    async def create(self, resource: api.Resource, namespace: str, body: Json) -> Json:
        await Pause()
        obj = self.make(resource[1], namespace, body)
        await Pause()
        return obj

    async def patch(
        self, resource: api.Resource, namespace: str, name: str, body: Json, *, subresource: str = ""
    ) -> Json:
        await Pause()
        obj = self.change(resource[1], namespace, name, body, subresource=subresource)
        await Pause()
        return obj

    async def delete(
        self, resource: api.Resource, namespace: str, name: str, *, uid: str = "", version: str = ""
    ) -> Json:
        await Pause()
        answer = self.take_away(resource[1], namespace, name, uid=uid, version=version)
        self.deleted.add(uid)
        await Pause()
        return answer

    # ---- the same at once, for users and kubelets

    def all(self, plural: str, labels: str = "") -> Objects:
        key, _, value = labels.partition("=")
        found = [obj for (kind, _, _), obj in self.objects.items() if kind == plural]
        return [obj for obj in found if not labels or (obj["metadata"].get("labels") or {}).get(key) == value]

    def of(self, plural: str, namespace: str, name: str) -> Json:
        if (plural, namespace, name) not in self.objects:
            raise NotFound(name)
        return copy.deepcopy(self.objects[plural, namespace, name])

    def make(self, plural: str, namespace: str, body: Json) -> Json:
        obj = copy.deepcopy(body)
        meta = obj["metadata"]
        meta.setdefault("name", f"{meta.get('generateName', '')}{self._version + 1}")
        if (plural, namespace, meta["name"]) in self.objects:
            raise AlreadyExists(meta["name"])
        uid, created = f"{plural}-{self._version + 1}", self._clock.timestamp()
        meta |= {"namespace": namespace, "uid": uid, "generation": 1, "creationTimestamp": created}
        return self._store(plural, obj)

    def change(self, plural: str, namespace: str, name: str, body: Json, *, subresource: str = "") -> Json:
        old = self.of(plural, namespace, name)
        guards = {k: v for k, v in body.get("metadata", {}).items() if k in ("resourceVersion", "uid")}
        if any(old["metadata"][k] != v for k, v in guards.items()):
            raise Conflict(name)
        patch = {"status": body["status"]} if subresource else {k: v for k, v in body.items() if k != "status"}
        new = apply_merge_patch(old, patch)
        if new == old:
            return old
        new["metadata"]["generation"] += new.get("spec") != old.get("spec")
        return self._store(plural, new)

    def take_away(self, plural: str, namespace: str, name: str, *, uid: str = "", version: str = "") -> Json:
        """The object as it is now; of a Pod the API server says the kind too."""
        obj = self.of(plural, namespace, name)
        meta = obj["metadata"]
        if (uid and meta["uid"] != uid) or (version and meta["resourceVersion"] != version):
            raise Conflict(name)
        if "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = self._clock.timestamp()
            obj = self._store(plural, obj)
        return obj | {"kind": "Pod" if plural == "pods" else "Status"}

    def _store(self, plural: str, obj: Json) -> Json:
        self._version += 1
        meta = obj["metadata"]
        meta["resourceVersion"] = str(self._version)
        key = (plural, meta["namespace"], meta["name"])
        state = (obj.get("status", {}).get("containerStatuses") or [{"state": {}}])[0]["state"]
        is_gone = "deletionTimestamp" in meta and not meta.get("finalizers") and "running" not in state
        if is_gone:
            self.objects.pop(key, None)
        else:
            self.objects[key] = copy.deepcopy(obj)
        self.events.append((plural, is_gone, copy.deepcopy(obj)))
        return copy.deepcopy(obj)


# ---- agents


@dataclass
class Run:
    run_id: str
    task_uid: str
    workspace: str
    key: str
    is_alive: bool
    step: Step = Step.PREPARE
    keeps_plan: bool = False
    """It ends with its plan, for a person."""
    applies: str = ""
    """The digest of the plan that it was given; empty: it makes its own."""
    cancel: CancelReason | None = None
    superseded_by: str = ""
    """Whom the cancel was for."""
    result: Result | None = None
    sequence: int = 0


def digest_of(run: Run) -> str:
    """Of the plan that it makes."""
    return f"sha256:{hashlib.sha256(run.run_id.encode()).hexdigest()}"


@dataclass
class Link:
    """One connection: what is under way in each direction, in order."""

    to_agent: deque[Command] = field(default_factory=deque)
    to_operator: deque[FromAgent] = field(default_factory=deque)


@dataclass
class Process:
    """The agent in a pod, and terraform under it."""

    pod: Json
    is_alive: bool = True
    is_on_lost_node: bool = False
    is_terminating: bool = False
    epoch: int = 0
    runs: dict[str, Run] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    link: Link | None = None
    late: deque[Command] = field(default_factory=deque)
    """Commands of connections that the operator has lost, which may arrive all the same."""
    message: str = ""

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    def hello(self) -> Hello:
        meta = self.pod["metadata"]
        return Hello(
            protocol_version=1,
            agent_version="0",
            namespace=meta["namespace"],
            pod_name=meta["name"],
            pod_uid=self.uid,
            boot_id=self.uid,
            highest_epoch=self.epoch,
            runs=tuple(r for r in self.runs if r not in self.acknowledged),
            spares_apply=True,
            used=any(r.task_uid for r in self.runs.values()),
        )

    def obey_late(self) -> None:
        """The connection that its answer would go to is gone; a run that it starts tells the present one."""
        command = self.late.popleft()
        link, held = self.link, set(self.runs)
        self.link = None
        self.obey(command)
        self.link = link
        for run_id in set(self.runs) - held:
            self.tell(self.runs[run_id])

    def obey(self, command: Command) -> None:
        run = self.runs.get(command.run_id)
        if command.epoch < self.epoch:
            return self._refuse(RefusalCode.STALE_EPOCH, command)
        self.epoch = command.epoch
        match command:
            case Ack():
                if run is not None and run.result is not None:
                    self.acknowledged.add(command.run_id)
                if set(self.runs) <= self.acknowledged:
                    self.is_alive = False
            case Cancel():
                if run is None:
                    tombstone = Run(command.run_id, "", "", command.report_key, False, cancel=command.reason)
                    tombstone.superseded_by = command.superseded_by
                    self.runs[command.run_id] = run = tombstone
                    self.end(run, Outcome.CANCELLED)
                elif run.result is None and not (command.superseded_by and run.step is Step.APPLY):
                    if run.cancel is None:
                        run.superseded_by = command.superseded_by
                    run.cancel = run.cancel or command.reason
                    self.tell(run)
                else:
                    self.tell(run)
            case Start() if run is not None:
                self.tell(run)
            case Start() if self.is_terminating or any(r.task_uid for r in self.runs.values()):
                self._refuse(RefusalCode.USED, command)
            case Start():
                run = Run(command.run_id, command.task.uid, command.workspace, command.report_key, True)
                if command.approval is not None:
                    plan = command.approval.plan
                    run.keeps_plan, run.applies = plan is None, plan.digest if plan is not None else ""
                self.runs[command.run_id] = run
                self.tell(run)
        return None

    def end(self, run: Run, outcome: Outcome) -> None:
        """After the sweep: nothing of the run is alive."""
        run.is_alive, run.step = False, Step.SWEEP
        kept = None
        if run.keeps_plan and outcome is Outcome.SUCCEEDED:
            outcome, kept = Outcome.FAILED, KeptPlan(digest=digest_of(run), architecture="")
        run.result = Result(
            outcome=outcome,
            kept_plan=kept,
            reason=outcome.value,
            message="",
            state=StateCondition.COMPLETE,
            lock=Lock(condition=LockCondition.RELEASED),
        )
        if run.task_uid or not self.message:
            self.message = signing.seal(self._report(run), run.key).decode()
        self.tell(run)

    def terminate(self) -> None:
        """SIGTERM: its run is cancelled, and it leaves once nothing is alive."""
        self.is_terminating = True
        alive = [run for run in self.runs.values() if run.is_alive]
        for run in alive:
            run.cancel = run.cancel or CancelReason.POD_TERMINATION
            self.tell(run)
        self.is_alive = bool(alive)

    def die(self) -> None:
        """SIGKILL for all of the container: no report, and what was in the termination log stays."""
        self.is_alive = False
        for run in self.runs.values():
            run.is_alive = False

    def tell(self, run: Run) -> None:
        if self.link is not None:
            self.link.to_operator.append(self._report(run))

    def _report(self, run: Run) -> Report:
        run.sequence += 1
        cancel = None
        if run.cancel is not None:
            cancel = CancelReport(
                reason=run.cancel,
                mode=CancelMode.GRACEFUL,
                rung=Rung.INTERRUPT,
                ages=CancelAges(received_s=0.0),
                cause=SUPERSEDED if run.superseded_by else "",
            )
        return Report(
            run_id=run.run_id,
            task_uid=run.task_uid,
            boot_id=self.uid,
            sequence=run.sequence,
            step=run.step,
            started_s=1.0,
            cancel=cancel,
            result=run.result,
        )

    def _refuse(self, code: RefusalCode, command: Command) -> None:
        if self.link is not None:
            refused = Refused(code=code, message=code.value, run_id=command.run_id, highest_epoch=self.epoch)
            self.link.to_operator.append(refused)


@dataclass
class _Seen:
    """What the operator knows of one connection; see `adapters.agents`, which does the same on sockets."""

    hello: Hello
    runs: set[str]
    is_used: bool
    reports: dict[str, ReceivedReport] = field(default_factory=dict)
    sent_start: str = ""
    sent_cancel: Cancel | None = None
    refused: Refused | None = None


class Sockets:
    """In the place of `Agents`: one operator's connections."""

    def __init__(self, processes: dict[str, Process], clock: Any, changed: Any) -> None:
        self._processes, self._clock, self._changed = processes, clock, changed
        self.wanted: set[str] = set()
        self.seen: dict[str, _Seen] = {}

    def keep(self, agent: Agent) -> None:
        self.wanted.add(agent.uid)

    def drop(self, pod_uid: str) -> None:
        self.wanted.discard(pod_uid)
        self.cut(pod_uid)

    def session(self, pod_uid: str) -> Session | None:
        seen = self.seen.get(pod_uid)
        if seen is None:
            return None
        return Session(
            hello=seen.hello,
            fingerprint=f"sha256:{pod_uid}",
            runs=frozenset(seen.runs),
            is_used=seen.is_used,
            sent_start=seen.sent_start,
            sent_cancel=seen.sent_cancel,
            refused=seen.refused,
            mismatch=None,
        )

    def report(self, pod_uid: str, run_id: str) -> ReceivedReport | None:
        seen = self.seen.get(pod_uid)
        return seen.reports.get(run_id) if seen else None

    async def send(self, pod_uid: str, command: Command) -> None:
        seen, process = self.seen.get(pod_uid), self._processes[pod_uid]
        if seen is None or process.link is None:
            return
        match command:
            case Start(run_id=run_id):
                seen.sent_start, seen.is_used = run_id, True
            case Cancel():
                seen.sent_cancel = command
            case Ack(run_id=run_id):
                seen.runs.discard(run_id)
        process.link.to_agent.append(command)
        await Pause()

    # ---- what the network does

    def connect(self, pod_uid: str) -> None:
        process = self._processes.get(pod_uid)
        if process is None or not process.is_alive or process.is_on_lost_node or process.link is not None:
            return
        process.link = Link()
        hello = process.hello()
        self.seen[pod_uid] = _Seen(hello, set(hello.runs), hello.used)
        for run_id in hello.runs:
            process.tell(process.runs[run_id])
        self._changed(pod_uid)

    def cut(self, pod_uid: str) -> None:
        """What was sent may still arrive at the agent; what the agent sent is lost."""
        process = self._processes.get(pod_uid)
        if process is not None and process.link is not None:
            process.late.extend(process.link.to_agent)
            process.link = None
        if self.seen.pop(pod_uid, None):
            self._changed(pod_uid)

    def receive(self, pod_uid: str) -> None:
        link, seen = self._processes[pod_uid].link, self.seen.get(pod_uid)
        if link is None or seen is None or not link.to_operator:
            return
        message = link.to_operator.popleft()
        if isinstance(message, Report):
            seen.reports[message.run_id] = ReceivedReport(report=message, received_at=self._clock.now)
            seen.runs.add(message.run_id)
            seen.is_used = True
        elif isinstance(message, Refused):
            assert message.code is not RefusalCode.STALE_EPOCH, "nobody else leads"
            seen.refused = message
        self._changed(pod_uid)
