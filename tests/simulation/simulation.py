"""The cluster, its people, its faults: every move that a history is made of, and what follows once faults stop.

A move is a name and a number that picks what it is about; where it can't be made, it does nothing and says so by
False. The same moves give the same history, byte by byte: no clock, no chance, no order of a set. Called by
`history`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from terrahalt_operator.adapters.objects import claim as claim_of
from terrahalt_operator.core import names
from terrahalt_operator.core.model import TERMINAL
from terrahalt_operator.errors import Unreachable
from terrahalt_protocol import signing
from tests.simulation import calm, remains
from tests.simulation.api_server import WATCHED, ApiServer, Json
from tests.simulation.judge import Judge, Violation
from tests.simulation.operators import NAMESPACE, RELIST, SECRET, Counts, Life, Restless
from tests.simulation.pods import Connection, Node, Pod
from tests.simulation.terraform import Locks, Temper

T = TypeVar("T")

MAX_TASKS, MAX_LIVES = 4, 3
KINDS: tuple[Json, ...] = (
    {},
    {"approval": "Manual", "approvalTimeoutSeconds": 90},
    {"supersede": "Planning"},
    {"priority": 1, "approval": "Manual", "queueTimeoutSeconds": 60},
    {"supersede": "Queued", "queueTimeoutSeconds": 60},
    {"ttlSecondsAfterFinished": 30},
    {"supersede": "Planning", "approval": "Manual", "ttlSecondsAfterFinished": 30},
    {},
)
"""What tasks have beside the least."""
MANUAL = tuple(number for number, kind in enumerate(KINDS) if "approval" in kind)
_ONLY_OF_ITS_OBJECT = ("cancel", "cancelMode", "approvedPlanDigest")
"""Fields of a spec that no other object may be created with, or that would make it a poor copy."""
_STEPS_S = (0.05, 0.3, 2.0, 10.0, 31.0, 61.0, 400.0, 3700.0)
_EXIT_CODES = (1, 1, 11, -9)
_OFF_BY_S = (-3600.0, 3600.0, -20.0, 20.0, -86_400.0, 0.0)
_ROUNDS = 80
_SETTLED_WITHIN_S = 2_500.0
"""A ladder takes 403 s, what went before it as much again; a run's own timeout of an hour is no way to end."""
_AFTER_ROUNDS_RELIST = 4
_FAR = 60
"""More steps than a run has."""


@dataclass(frozen=True, slots=True)
class Setting:
    min_idle: int = 1
    max_agents: int = 2
    pools: int = 1
    loss_s: int | None = None
    """After how long without an operator agents end their runs."""
    max_tasks: int = 1
    """How many runs an agent has."""
    has_bucket: bool = False
    """Some states lie in a bucket that two namespaces share."""
    is_taken_down: bool = False
    """Once everything has ended, all pools are deleted, and nothing may be left of them."""


POOLS = (("team-a", "default"), ("team-a", "other"), ("team-b", "default"))


class Simulation:
    def __init__(self, setting: Setting = Setting(), tell: Callable[[str], None] | None = None) -> None:
        self.now = 1_750_000_000.0
        self.setting = setting
        self.judge = Judge()
        self.server = ApiServer(lambda: self.now, self.judge.written, self.judge.answered)
        self.locks = Locks(self.server)
        self.judge.watch_over(self.server, self.locks)
        self.pods = self.judge.pods
        self.nodes = [Node("one"), Node("two")]
        self.lives: list[Life] = []
        self.counts = Counts()
        self.connections: list[Connection] = []
        self._tell = tell
        self._operators = self._names = self._sockets = 0
        for namespace, name in POOLS[: setting.pools]:
            self._make_pool(namespace, name)
        self.an_operator_starts(0)

    def say(self, text: str) -> bool:
        if self._tell is not None:
            self._tell(text)
        return True

    def close(self) -> None:
        """Nothing is left to the interpreter to end."""
        for life in self.lives:
            life.die()

    # ---- people

    def a_task_is_created(self, pick: int) -> bool:
        if len(self.server.kinds.get("terraformtasks", ())) >= MAX_TASKS:
            return False
        namespace, pool = POOLS[pick % self.setting.pools]
        spec: Json = {
            "action": ("Apply", "Plan")[pick // 8 % 2],
            "workspace": ("network", "dns")[pick // 3 % 2],
            "source": {"inline": {"main.tf": ""}},
            "poolRef": {"name": pool},
        }
        if self.setting.has_bucket and pick // 16 % 2:
            spec["backend"] = {"type": "s3", "config": {"bucket": "bucket", "key": "k"}}
        if pick % 32 == 31:
            spec["cancelGraceSeconds"] = 301
        spec |= KINDS[pick // 512 % len(KINDS)]
        self._names += 1
        name = f"task-{self._names}"
        self.server.make("terraformtasks", namespace, {"metadata": {"name": name}, "spec": spec})
        more = {field: spec[field] for field in KINDS[pick // 512 % len(KINDS)]}
        what = f"{spec['action']} of workspace {spec['workspace']}"
        return self.say(f"{namespace}/{name} is created: {what}" + (f", {more}" if more else ""))

    def a_plan_is_approved(self, pick: int) -> bool:
        """By somebody who has read it; the API server lets no other digest pass."""
        waiting = [(t, d) for t in self.tasks if (d := _digest(t)) and t["spec"].get("approvedPlanDigest") is None]
        if (found := chosen(waiting, pick)) is None:
            return False
        (task, digest), change = found, {"spec": {"approvedPlanDigest": found[1]}}
        self.server.change("terraformtasks", task["metadata"]["namespace"], task["metadata"]["name"], change)
        return self.say(f"the plan {digest[:15]} of {task['metadata']['name']} is approved")

    def a_task_in_the_queue_gets_another_priority(self, pick: int) -> bool:
        queued = [t for t in self.tasks if (t.get("status") or {}).get("phase") in (None, "", "Queued")]
        if (task := chosen(queued, pick)) is None:
            return False
        meta, priority = task["metadata"], pick // 8 % 4 - 1
        self.server.change("terraformtasks", meta["namespace"], meta["name"], {"spec": {"priority": priority}})
        return self.say(f"{meta['name']} gets priority {priority}")

    def a_task_is_cancelled(self, pick: int) -> bool:
        return self._patch_task(pick, {"spec": {"cancel": True}}, "is cancelled")

    def a_task_is_cancelled_by_force(self, pick: int) -> bool:
        return self._patch_task(pick, {"spec": {"cancel": True, "cancelMode": "Force"}}, "is cancelled by Force")

    def a_task_is_abandoned(self, pick: int) -> bool:
        return self._patch_task(pick, {"spec": {"cancel": True, "cancelMode": "Abandon"}}, "is abandoned")

    def a_task_is_edited(self, pick: int) -> bool:
        return self._patch_task(pick, {"metadata": {"labels": {"edited": str(self.server.version)}}}, "is edited")

    def a_task_is_deleted(self, pick: int) -> bool:
        if (task := self._some_task(pick)) is None or "deletionTimestamp" in task["metadata"]:
            return False
        self.server.take_away("terraformtasks", task["metadata"]["namespace"], task["metadata"]["name"])
        return self.say(f"{task['metadata']['name']} is deleted")

    def a_task_is_deleted_by_force(self, pick: int) -> bool:
        """Its finalizers are taken off, and what is left is deleted."""
        if (task := self._some_task(pick)) is None:
            return False
        meta = task["metadata"]
        self._remove_by_force(meta["namespace"], meta["name"])
        return self.say(f"{meta['name']} is deleted by force")

    def a_task_is_made_anew(self, pick: int) -> bool:
        """Deleted by force, and another of its name and spec is there before anybody looks."""
        if (task := self._some_task(pick)) is None:
            return False
        meta = task["metadata"]
        self._remove_by_force(meta["namespace"], meta["name"])
        spec = {k: v for k, v in task["spec"].items() if k not in _ONLY_OF_ITS_OBJECT}
        self.server.make("terraformtasks", meta["namespace"], {"metadata": {"name": meta["name"]}, "spec": spec})
        return self.say(f"{meta['name']} is deleted by force and made anew")

    def a_copy_is_restored(self, pick: int) -> bool:
        """From a backup: with the annotations, with or without the status."""
        if (task := chosen(self.tasks, pick)) is None or len(self.tasks) >= MAX_TASKS:
            return False
        meta = task["metadata"]
        if not (annotations := meta.get("annotations")):
            return False
        self._names += 1
        name = f"task-{self._names}"
        spec = {k: v for k, v in task["spec"].items() if k not in _ONLY_OF_ITS_OBJECT}
        body = {"metadata": {"name": name, "annotations": annotations}, "spec": spec}
        self.server.make("terraformtasks", meta["namespace"], body)
        return self.say(f"{name} is restored from a backup of {meta['name']}")

    def a_pool_is_changed(self, pick: int) -> bool:
        if (pool := chosen(self.server.all("agentpools"), pick)) is None:
            return False
        meta = pool["metadata"]
        change = ({"minIdle": pick % 3}, {"image": f"agent:{pick % 5}"}, {"maxAgents": 1 + pick % 3})[pick // 4 % 3]
        self.server.change("agentpools", meta["namespace"], meta["name"], {"spec": change})
        return self.say(f"pool {meta['namespace']}/{meta['name']} is changed: {change}")

    def a_pool_gets_another_drain_policy(self, pick: int) -> bool:
        if (pool := chosen(self.server.all("agentpools"), pick)) is None:
            return False
        meta, policy = pool["metadata"], "Ladder" if pool["spec"].get("drainPolicy") == "Wait" else "Wait"
        self.server.change("agentpools", meta["namespace"], meta["name"], {"spec": {"drainPolicy": policy}})
        return self.say(f"pool {meta['namespace']}/{meta['name']} gets drainPolicy {policy}")

    def a_pool_is_deleted(self, pick: int) -> bool:
        if (pool := chosen(self.server.all("agentpools"), pick)) is None:
            return False
        self.server.take_away("agentpools", pool["metadata"]["namespace"], pool["metadata"]["name"])
        return self.say(f"pool {pool['metadata']['namespace']}/{pool['metadata']['name']} is deleted")

    def a_pool_is_made_again(self, _: int) -> bool:
        for namespace, name in POOLS[: self.setting.pools]:
            if self.server.find("agentpools", namespace, name) is None:
                self._make_pool(namespace, name)
                return self.say(f"pool {namespace}/{name} is made again")
        return False

    def a_pod_is_deleted(self, pick: int) -> bool:
        """By a person, an eviction or a drain."""
        return self._delete_pod(pick, None, "is deleted")

    def a_pod_is_deleted_by_force(self, pick: int) -> bool:
        return self._delete_pod(pick, 0, "is deleted by force")

    def a_pod_is_evicted(self, pick: int) -> bool:
        """By a kubelet that is short of something: it hardly waits."""
        return self._delete_pod(pick, 1 + pick // 8 % 2, "is evicted, with hardly any grace")

    def a_pod_is_torn_out(self, pick: int) -> bool:
        """Its finalizer is taken off, and it is deleted by force: no sign of its end is left."""
        if (obj := chosen(self.server.all("pods"), pick)) is None:
            return False
        meta = obj["metadata"]
        self.server.change("pods", meta["namespace"], meta["name"], {"metadata": {"finalizers": None}})
        if self.server.find("pods", meta["namespace"], meta["name"]) is not None:
            self.server.take_away("pods", meta["namespace"], meta["name"], grace_s=0)
        return self.say(f"{meta['name']} is deleted by force, its finalizer too")

    def writes_to_a_pod_are_refused(self, pick: int) -> bool:
        """Those of operators: by somebody's webhook, say."""
        pods = [obj["metadata"]["name"] for obj in self.server.all("pods")]
        if (name := chosen([name for name in pods if name not in self.server.refused], pick)) is None:
            return False
        self.server.refused.add(name)
        return self.say(f"what operators write to {name} is refused from now on")

    def writes_to_a_pod_are_taken_again(self, pick: int) -> bool:
        if (name := chosen(sorted(self.server.refused), pick)) is None:
            return False
        self.server.refused.remove(name)
        return self.say(f"what operators write to {name} is not refused any more")

    # ---- operators

    def an_operator_starts(self, _: int) -> bool:
        if len(self.lives) >= MAX_LIVES:
            return False
        self._operators += 1
        life = self.a_life(self._operators)
        self.lives.append(life)
        return self.say(f"{life.name} has stood by, and begins to lead, with epoch {life.leadership.epoch}")

    def a_life(self, number: int) -> Life:
        namespaces = tuple(dict.fromkeys(namespace for namespace, _ in POOLS[: self.setting.pools]))
        return Life(number, self.server, lambda: self.now, namespaces, self.counts)

    def an_operator_starts_where_none_is(self, pick: int) -> bool:
        return not self.lives and self.an_operator_starts(pick) and self.start_up(self.lives[-1])

    def an_operators_clock_is_set(self, pick: int) -> bool:
        """Also back: what it has stamped lies in its future then."""
        if (life := chosen(self.lives, pick)) is None:
            return False
        off_s = _OFF_BY_S[pick // 4 % len(_OFF_BY_S)]
        life.clock_is_off_s = off_s
        # What it does now may have been decided before.
        self.judge.ahead_s[life.name] = max(off_s, self.judge.ahead_s.get(life.name, 0.0))
        return self.say(f"the clock of {life.name} is set: it is off by {off_s} s")

    def an_operator_dies(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None:
            return False
        self._end(life)
        return self.say(f"{life.name} is killed, while it is at {', '.join(map(str, life.workers)) or 'nothing'}")

    def start_up(self, life: Life) -> bool:
        while not life.is_ready and not life.deposed:
            life.go_on(RELIST)
        return True

    def _end(self, life: Life) -> None:
        life.die()
        self.lives.remove(life)

    def a_worker_begins(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None or (key := chosen(life.idle_keys(), pick // 4)) is None:
            return False
        life.begin(key)
        return self.say(f"{life.name} begins to look at {key}")

    def a_worker_goes_on(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None or (key := chosen(list(life.workers), pick // 4)) is None:
            return False
        steps = 1 + pick // 16 % 6
        for _ in range(steps):
            if key in life.workers:
                life.go_on(key)
        self._bury_the_deposed()
        return self.say(f"{life.name} goes on with {key}, {steps} steps")

    def a_worker_looks_from_end_to_end(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None or (key := chosen(life.idle_keys(), pick // 4)) is None:
            return False
        life.begin(key)
        while key in life.workers:
            life.go_on(key)
        return self.say(f"{life.name} looks at {key} from end to end")

    def a_request_or_its_answer_is_lost(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None or (key := chosen(list(life.workers), pick // 4)) is None:
            return False
        life.go_on(key, Unreachable("the API server did not answer"))
        self._bury_the_deposed()
        return self.say(f"{life.name} loses a request or its answer at {key}")

    def the_watch_tells(self, pick: int) -> bool:
        life, plural = chosen(self.lives, pick), WATCHED[pick // 4 % len(WATCHED)]
        if life is None or not life.has_news(plural):
            return False
        count = 1 + pick // 16 % 8
        life.watch(plural, count)
        return self.say(f"{life.name} hears of {count} changes of {plural}")

    def the_watch_breaks(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None or not any(map(life.has_news, WATCHED)):
            return False
        life.watch_breaks()
        return self.say(f"the watch of {life.name} breaks: it misses what was deleted meanwhile")

    def all_is_listed_anew(self, pick: int) -> bool:
        life = chosen(self.lives, pick)
        return life is not None and life.relist() and self.say(f"{life.name} begins to list all anew")

    # ---- the network

    def an_agent_is_dialled(self, pick: int) -> bool:
        if (life := chosen(self.lives, pick)) is None:
            return False
        uids = [uid for uid in life.sockets.wanted if self.can_connect(life, uid)]
        if (uid := chosen(uids, pick // 4)) is None:
            return False
        self.connect(life, self.pods[uid])
        return self.say(f"{life.name} dials {self.pods[uid].name}")

    def can_connect(self, life: Life, uid: str) -> bool:
        pod = self.pods.get(uid)
        return pod is not None and pod.is_alive and not pod.is_cut_off and uid not in life.sockets.connections

    def connect(self, life: Life, pod: Pod) -> None:
        self._sockets += 1
        connection = Connection(self._sockets, pod)
        self.connections = [c for c in self.connections if c.is_open_at_agent or c.is_open_at_operator]
        self.connections.append(connection)
        life.sockets.opened(connection)
        pod.connect(connection)

    def a_command_arrives(self, pick: int) -> bool:
        """Also over a connection that its operator has lost: late, and after what was sent over a newer one."""
        waiting = [c for c in self.connections if c.to_agent and c.is_open_at_agent and not c.pod.is_cut_off]
        if (connection := chosen(waiting, pick)) is None:
            return False
        frame = connection.to_agent[0]
        if not connection.pod.receive(connection):
            return False
        return self.say(f"{connection.pod.name} receives {_short(frame)}")

    def a_command_arrives_twice(self, pick: int) -> bool:
        waiting = [c for c in self.connections if c.to_agent and c.is_open_at_agent and not c.pod.is_cut_off]
        if (connection := chosen(waiting, pick)) is None:
            return False
        connection.to_agent.append(frame := connection.to_agent[0])
        if not connection.pod.receive(connection):
            return False
        return self.say(f"{connection.pod.name} receives {_short(frame)}, and will once more")

    def a_report_arrives(self, pick: int) -> bool:
        heard = [(life, c) for life in self.lives for c in life.sockets.connections.values() if c.to_operator]
        if (found := chosen([(life, c) for life, c in heard if not c.pod.is_cut_off], pick)) is None:
            return False
        life, connection = found
        frame = connection.to_operator[0]
        life.sockets.receive(connection)
        self._bury_the_deposed()
        return self.say(f"{life.name} receives {_short(frame)} from {connection.pod.name}")

    def a_report_arrives_twice(self, pick: int) -> bool:
        heard = [c for life in self.lives for c in life.sockets.connections.values() if len(c.to_operator) > 1]
        if (connection := chosen(heard, pick)) is None:
            return False
        connection.to_operator.append(connection.to_operator[1])
        return self.say(f"a report of {connection.pod.name} will arrive twice")

    def an_operator_loses_a_connection(self, pick: int) -> bool:
        """Rather one over which something is under way, which may arrive all the same."""
        held = [(life, c) for life in self.lives for c in life.sockets.connections.values()]
        busy = [(life, c) for life, c in held if c.to_agent]
        if (found := chosen(busy if busy and pick // 4 % 4 else held, pick)) is None:
            return False
        life, connection = found
        life.sockets.hang_up(connection)
        return self.say(f"{life.name} loses its connection to {connection.pod.name}")

    def a_task_is_cancelled_whose_start_is_under_way(self, pick: int) -> bool:
        """And its operator dials the agent anew: what was under way may arrive after what is sent over that."""
        busy = [(life, c) for life in self.lives for c in life.sockets.connections.values() if c.to_agent]
        found = [(life, c) for life, c in busy if '"type":"Start"' in c.to_agent[0] and not c.pod.is_cut_off]
        given = [t for t in self.tasks if (t.get("status") or {}).get("phase") == "Assigned"]
        if (which := chosen(found, pick)) is None or (task := chosen(given, pick)) is None:
            return False
        (life, before), meta = which, task["metadata"]
        life.sockets.hang_up(before)
        if self.can_connect(life, before.pod.uid):
            self.connect(life, before.pod)
        self.server.change("terraformtasks", meta["namespace"], meta["name"], {"spec": {"cancel": True}})
        return self.say(
            f"{life.name} dials {before.pod.name} anew, where a start is under way; {meta['name']} is cancelled"
        )

    def an_agent_loses_a_connection(self, pick: int) -> bool:
        held = [c for c in self.connections if c.is_open_at_agent]
        if (connection := chosen(held, pick)) is None:
            return False
        connection.pod.hang_up(connection)
        return self.say(f"{connection.pod.name} loses a connection")

    # ---- agents, and what runs there

    def an_adapter_answers(self, pick: int) -> bool:
        return self._finish_job(pick, well=True)

    def an_adapter_fails(self, pick: int) -> bool:
        return self._finish_job(pick, well=False)

    def _finish_job(self, pick: int, *, well: bool) -> bool:
        jobs = [(pod, n) for pod in self.pods.values() if pod.jobs for n in range(len(pod.jobs))]
        if (found := chosen(jobs, pick)) is None:
            return False
        pod, number = found
        text = f"{pod.name} is done with {' '.join(pod.jobs[number])}" + ("" if well else ", not well")
        pod.finish(number, well=well)
        return self.say(text)

    def terraform_goes_on(self, pick: int) -> bool:
        pod = chosen([p for p in self.pods.values() if p.is_alive and p.terraforms], pick)
        if pod is None or not pod.terraform_goes_on():
            return False
        return self.say(f"terraform goes on in {pod.name}")

    def terraform_fails(self, pick: int) -> bool:
        pod = chosen([p for p in self.pods.values() if p.is_alive and p.terraforms], pick)
        code = _EXIT_CODES[pick // 8 % len(_EXIT_CODES)]
        if pod is None or not pod.terraform_goes_on(code):
            return False
        return self.say(f"terraform ends in {pod.name} with {code}")

    def a_run_goes_well_for_a_while(self, pick: int) -> bool:
        pod = chosen([p for p in self.pods.values() if p.is_alive and p.starts], pick)
        if pod is None:
            return False
        for _ in range(2 + pick // 8 % 16):
            if pod.jobs:
                pod.finish(0)
            elif not pod.terraform_goes_on():
                break
        return self.say(f"the run in {pod.name} goes on for a while")

    def user_code_forges_an_end(self, pick: int) -> bool:
        """It may write into the termination log: words, or what another run has written."""
        pod = chosen([p for p in self.pods.values() if any(t.is_alive for t in p.terraforms)], pick)
        if pod is None:
            return False
        others = [p.message for p in self.pods.values() if p is not pod and p.message]
        end = next((end for run_id, end in self.judge.ends.items() if run_id not in pod.starts), None)
        if end is not None and pick // 8 % 2:
            run_id = next(reversed(pod.starts))
            others = [signing.seal(msgspec.structs.replace(end, run_id=run_id), "00" * 32).decode()]
        pod.message = chosen(others, pick // 16) or "all is well"
        return self.say(f"user code in {pod.name} writes its own end into the termination log")

    def a_sweep_will_stall(self, pick: int) -> bool:
        pod = chosen([p for p in self.pods.values() if p.is_alive and p.terraforms], pick)
        if pod is None or pod.stalled_sweeps:
            return False
        pod.stalled_sweeps = (1, 3, 99)[pick // 8 % 3]
        return self.say(f"a process in {pod.name} can't be killed for {pod.stalled_sweeps} sweeps")

    def an_agent_is_killed(self, pick: int) -> bool:
        if (pod := chosen([p for p in self.pods.values() if p.is_alive], pick)) is None:
            return False
        pod.die(137)
        return self.say(f"all in {pod.name} is killed")

    def an_agent_will_be_killed(self, pick: int) -> bool:
        """Between two instructions of its core."""
        pod = chosen([p for p in self.pods.values() if p.is_alive and p.dies_after is None], pick)
        if pod is None:
            return False
        pod.dies_after = pick // 8 % 6
        return self.say(f"all in {pod.name} will be killed after {pod.dies_after} more instructions")

    # ---- nodes

    def a_kubelet_acts(self, pick: int) -> bool:
        pods = self.server.all("pods")
        for n in range(len(pods)):
            if self._kubelet(pods[(pick + n) % len(pods)], pick):
                return True
        return self._kill_what_has_no_object()

    def _kill_what_has_no_object(self) -> bool:
        for pod in self.pods.values():
            if pod.is_alive and not pod.node.is_cut_off and self._object(pod) is None:
                pod.die(137)
                return self.say(f"the kubelet kills {pod.name}, which the API server has no more")
        return False

    def a_node_is_cut_off(self, pick: int) -> bool:
        if (node := chosen([n for n in self.nodes if not n.is_cut_off], pick)) is None:
            return False
        node.is_cut_off = True
        return self.say(f"node {node.name} is cut off; what runs there runs on")

    def a_node_loses_its_power(self, pick: int) -> bool:
        node = chosen(self.nodes, pick)
        assert node is not None
        node.is_cut_off = True
        for pod in self.pods.values():
            if pod.node is node:
                pod.die(255)
        return self.say(f"node {node.name} loses its power")

    def a_node_object_is_removed(self, pick: int) -> bool:
        """And PodGC gives its pods up, in no hurry."""
        if (node := chosen([n for n in self.nodes if n.is_cut_off and not n.is_gone], pick)) is None:
            return False
        node.is_gone = True
        return self.say(f"the Node object of {node.name} is removed")

    def pod_gc_acts(self, pick: int) -> bool:
        """It writes Failed, leaves the container's status as it was, and deletes by force."""
        lost = [p for p in self.pods.values() if p.node.is_gone and self._object(p) is not None]
        pod = chosen([p for p in lost if not self._is_collected(p)], pick)
        if pod is None:
            return False
        self.server.change("pods", pod.namespace, pod.name, {"status": {"phase": "Failed"}}, subresource="status")
        self.server.take_away("pods", pod.namespace, pod.name, grace_s=0)
        return self.say(f"PodGC collects {pod.name}")

    def an_agent_can_not_be_reached(self, pick: int) -> bool:
        """By any operator; API server and kubelet hear of its pod."""
        if (pod := chosen([p for p in self.pods.values() if p.is_alive and not p.is_unreachable], pick)) is None:
            return False
        pod.is_unreachable = True
        return self.say(f"no operator can reach {pod.name} any more")

    def an_agent_can_be_reached_again(self, pick: int) -> bool:
        if (pod := chosen([p for p in self.pods.values() if p.is_unreachable], pick)) is None:
            return False
        pod.is_unreachable = False
        return self.say(f"{pod.name} can be reached again")

    def a_node_returns(self, pick: int) -> bool:
        if (node := chosen([n for n in self.nodes if n.is_cut_off], pick)) is None:
            return False
        self._bring_back(node)
        return self.say(f"node {node.name} returns")

    def _bring_back(self, node: Node) -> None:
        """Its kubelet ends at once what the API server has no more."""
        node.is_cut_off = node.is_gone = False
        for pod in self.pods.values():
            if pod.node is node and self._object(pod) is None:
                pod.die(137)

    # ---- time

    def time_passes(self, pick: int) -> bool:
        """Longer pauses are rarer."""
        step_s = _STEPS_S[min(pick % 8, pick // 8 % 8)]
        self._advance(step_s)
        return self.say(f"{step_s} s pass")

    def all_goes_well_for_a_moment(self, pick: int) -> bool:
        """Runs come a few steps further meanwhile, and hardly ever to their end."""
        if not self.lives:
            return False
        self._round(steps=pick % 5, may_relist=False)
        return self.say("all goes well for a moment")

    def _advance(self, step_s: float) -> None:
        until = self.now + step_s
        while True:
            if (at := min(self._moments(), default=until)) >= until:
                break
            self.now = max(self.now, at)
            self._let_time_work()
        self.now = until
        self._let_time_work()
        for life in self.lives:
            life.ring()

    def _let_time_work(self) -> None:
        for pod in self.pods.values():
            if pod.is_alive and pod.killed_at is not None and pod.killed_at <= self.now:
                pod.die(137)
            pod.time_passes()

    # ---- the kubelet

    def _kubelet(self, obj: Json, pick: int) -> bool:
        """The next thing that a pod's kubelet does; False: nothing."""
        meta, pod = obj["metadata"], self.pods.get(obj["metadata"]["uid"])
        if pod is None:
            return "deletionTimestamp" not in meta and self._start_pod(obj, pick)
        if pod.node.is_cut_off:
            return False
        status = obj.get("status") or {}
        reported = (status.get("containerStatuses") or [None])[0]
        if "deletionTimestamp" in meta and pod.is_alive:
            grace_s = meta.get("deletionGracePeriodSeconds") or 0
            if not grace_s:
                pod.die(137)
                return self.say(f"the kubelet kills {pod.name}")
            if not pod.is_terminating:  # once: it does not tell again, whatever grace a second deletion has
                is_heard = bool(pod.connections or pod.starts) or pick // 4 % 4 != 3
                pod.terminate(grace_s, is_heard=is_heard)
                how = "" if is_heard else ", and it does not hear that"
                return self.say(f"the kubelet ends {pod.name}, with {grace_s} s of grace{how}")
        if reported != (actual := pod.container_status()):
            phase = "Running" if pod.is_alive else "Succeeded" if pod.exit_code == 0 else "Failed"
            new = {"phase": phase, "podIP": "10.0.0.1", "containerStatuses": [actual]}
            self.server.change("pods", pod.namespace, pod.name, {"status": new}, subresource="status")
            return self.say(f"the kubelet reports {pod.name}: {phase}")
        if "deletionTimestamp" in meta and not pod.is_alive and meta.get("deletionGracePeriodSeconds"):
            self.server.take_away("pods", pod.namespace, pod.name, grace_s=0)
            return self.say(f"the kubelet lets {pod.name} go")
        return False

    def _start_pod(self, obj: Json, pick: int) -> bool:
        if (node := chosen([n for n in self.nodes if not n.is_cut_off], pick // 4)) is None:
            return False
        meta = obj["metadata"]
        pod = Pod(obj, node, self.locks, self.judge, lambda: self.now, self.setting.loss_s)
        pod.temper = Temper((0, 0, 0, 0, 0, 0, 1, 2)[pick // 8 % 8])
        self.pods[meta["uid"]] = pod
        self.server.change("pods", meta["namespace"], meta["name"], {"spec": {"nodeName": node.name}})
        return self.say(f"{pod.name} starts on node {node.name}, with a terraform that {pod.temper.name}")

    # ---- the end of all faults

    def settle(self) -> None:
        """One operator, nodes that are back or given up, messages that arrive: every task has to end."""
        self.say("the faults stop")
        for life in self.lives[:-1]:
            self._end(life)
        if not self.lives:
            self.an_operator_starts(0)
        self.start_up(self.lives[-1])
        for node in self.nodes:
            if not node.is_gone:
                self._bring_back(node)
        self.nodes.append(Node("three"))
        self.server.refused.clear()
        for pod in self.pods.values():
            pod.dies_after, pod.is_unreachable = None, False
        self._widen_pools()
        self.lives[-1].relist()
        self._play_on()
        if self.setting.is_taken_down:
            for meta in [pool["metadata"] for pool in self.server.all("agentpools")]:
                self.server.take_away("agentpools", meta["namespace"], meta["name"])
            self.say("all pools are deleted")
            self._play_on()
        self._check_secrets()

    def _play_on(self) -> None:
        until = self.now + _SETTLED_WITHIN_S
        for number in range(_ROUNDS):
            if self.now > until:
                raise Violation(f"5: not everything ends in time once the faults stop: {self._unsettled()}")
            self._widen_pools()
            while self.a_plan_is_approved(0):
                pass
            if number % 8 == 2:
                self._give_up_what_is_lost()
            self._round(may_relist=number % _AFTER_ROUNDS_RELIST == 3)
            if self._is_settled():
                return
        raise Violation(f"5: not everything ends once the faults stop: {self._unsettled()}")

    def _widen_pools(self) -> None:
        """Those are there that somebody waits for, once those that go are gone."""
        unended = [t for t in self.tasks if (t.get("status") or {}).get("phase") not in TERMINAL]
        for at in dict.fromkeys((t["metadata"]["namespace"], t["spec"]["poolRef"]["name"]) for t in unended):
            if self.server.find("agentpools", *at) is None:
                self._make_pool(*at)
                self.say(f"pool {'/'.join(at)} is made again")
        for meta in [pool["metadata"] for pool in self.server.all("agentpools")]:
            self.server.change("agentpools", meta["namespace"], meta["name"], {"spec": {"maxAgents": 3}})

    def _is_settled(self) -> bool:
        phases = [(t.get("status") or {}).get("phase") for t in self.tasks]
        return (
            all(phase in TERMINAL for phase in phases)
            and not any("deletionTimestamp" in t["metadata"] for t in self.tasks)
            and not any("deletionTimestamp" in p["metadata"] for p in self.server.all("agentpools"))
            and not self.server.all("leases", NAMESPACE, names.CLAIM_LABEL)
            and not any(life.workers or life.woken for life in self.lives)
            and not any(self._shown_of_pools())
            and not any(remains.of(self.server, self.judge))
        )

    def _unsettled(self) -> str:
        tasks = {t["metadata"]["name"]: (t.get("status") or {}).get("phase", "new") for t in self.tasks}
        leases = [lease["spec"]["holderIdentity"] for lease in self.server.all("leases", NAMESPACE, names.CLAIM_LABEL)]
        left = "; ".join(remains.of(self.server, self.judge))
        return f"{tasks}, claims {leases}, shown as busy and queued {self._shown_of_pools()}, left: {left or 'nothing'}"

    def _shown_of_pools(self) -> list[int]:
        status = [pool.get("status") or {} for pool in self.server.all("agentpools")]
        return [shown.get("busy", 0) + shown.get("queued", 0) for shown in status]

    def _give_up_what_is_lost(self) -> None:
        """A person does, where a node never comes back or a pod is gone: the task, or, without one, the claim."""
        for lease in self.server.all("leases", NAMESPACE, names.CLAIM_LABEL):
            claim = claim_of(lease)
            pod = self.pods[claim.pod_uid]
            if self._object(pod) is not None and not pod.node.is_gone:
                continue
            task = self.server.find("terraformtasks", claim.task_namespace, claim.task_name)
            if task is not None and task["metadata"]["uid"] == claim.task_uid:
                if task.get("status", {}).get("runID") != claim.run_id:
                    continue  # nothing says so yet
                change = {"spec": {"cancel": True, "cancelMode": "Abandon"}}
                self.server.change("terraformtasks", claim.task_namespace, claim.task_name, change)
            else:
                pod.die(255)  # who deletes the claim makes sure of that first
                self.server.take_away("leases", NAMESPACE, claim.name)

    def _round(self, *, may_relist: bool, steps: int | None = None) -> None:
        """Everything that is under way arrives, everybody who can act does. `steps`: how far each run comes; None:
        as far as it can, but terraform of a task that somebody wants to end does not end by itself, and time passes.
        """
        life = self.lives[-1]
        is_idle = not life.workers
        for uid in list(life.sockets.wanted):
            if self.can_connect(life, uid):
                self.connect(life, self.pods[uid])
        for connection in list(self.connections):
            if not connection.pod.is_cut_off:
                while connection.pod.receive(connection):
                    pass
        for pod in list(self.pods.values()):
            self._let_run(pod, steps)
        for connection in list(life.sockets.connections.values()):
            pod = connection.pod
            while connection.to_operator and connection.is_open_at_operator and not pod.is_cut_off:
                life.sockets.receive(connection)
            if not connection.is_open_at_agent and not pod.is_cut_off:
                life.sockets.hang_up(connection)
        for obj in self.server.all("pods"):
            self._kubelet(obj, 0)
        while self._kill_what_has_no_object():
            pass
        while self.pod_gc_acts(0):
            pass
        self._bury_the_deposed()
        if life not in self.lives:
            self.an_operator_starts(0)
            life = self.lives[-1]
            self.start_up(life)
        if not life.is_ready:
            self.start_up(life)
        for plural in WATCHED:
            life.watch(plural, life.has_news(plural))
        if may_relist:
            life.relist()
        self.judge.released.clear()
        try:
            life.finish_all()
        except Restless as error:
            raise Violation(f"5: {error}") from error
        if is_idle:  # nothing was decided before it had heard all
            calm.check(self.judge, life, self.now)
        if steps is None and not any(c.to_agent or c.to_operator for c in life.sockets.connections.values()):
            self._advance(self._until_next())

    def _let_run(self, pod: Pod, steps: int | None) -> None:
        for _ in range(_FAR if steps is None else steps):
            if pod.jobs:
                pod.finish(0)
                continue
            terraform = next((t for t in pod.terraforms if t.is_alive), None)
            if terraform is None:
                return
            task = self.judge.tasks[terraform.start.task.uid]
            may_hang = steps is None and (task.was_cancelled or task.was_deleted or task.is_gone)
            if (may_hang and not terraform.is_stopping) or not pod.terraform_goes_on():
                return

    def _until_next(self) -> float:
        at = min((*self.lives[-1].timers.values(), *self._moments()), default=self.now + 61.0)
        return min(61.0, max(0.1, at - self.now))

    def _moments(self) -> list[float]:
        """When a pod has something to do that only time brings."""
        alive = [pod for pod in self.pods.values() if pod.is_alive]
        return [at for pod in alive for at in (pod.agent.wake_at_s, pod.killed_at) if at is not None]

    def _check_secrets(self) -> None:
        text = repr(self.tasks)
        for run_id in self.judge.runs:
            if signing.report_key(SECRET, run_id) in text:
                raise Violation(f"10: the report key of {run_id} is in a task")

    # ---- what there is

    @property
    def tasks(self) -> list[Json]:
        return self.server.all("terraformtasks")

    def _object(self, pod: Pod) -> Json | None:
        return self.judge.object_of(pod)

    def _is_collected(self, pod: Pod) -> bool:
        if (obj := self._object(pod)) is None:
            return True
        is_failed = (obj.get("status") or {}).get("phase") == "Failed"
        return is_failed and obj["metadata"].get("deletionGracePeriodSeconds") == 0

    def _make_pool(self, namespace: str, name: str) -> None:
        spec = {
            "minIdle": self.setting.min_idle,
            "maxAgents": self.setting.max_agents,
            "maxTasksPerAgent": self.setting.max_tasks,
            "idleTimeoutSeconds": 0,
        }
        self.server.make("agentpools", namespace, {"metadata": {"name": name}, "spec": spec})

    def _some_task(self, pick: int) -> Json | None:
        """More often than not one that was given to an agent."""
        given = [t for t in self.tasks if (t.get("status") or {}).get("runID") and t["status"]["phase"] not in TERMINAL]
        return chosen(given if given and pick // 4 % 4 else self.tasks, pick)

    def _patch_task(self, pick: int, patch: Json, what: str) -> bool:
        if (task := self._some_task(pick)) is None:
            return False
        meta = task["metadata"]
        if self.server.change("terraformtasks", meta["namespace"], meta["name"], patch) is task:
            return False
        return self.say(f"{meta['name']} {what}")

    def _remove_by_force(self, namespace: str, name: str) -> None:
        self.server.change("terraformtasks", namespace, name, {"metadata": {"finalizers": None}})
        if self.server.find("terraformtasks", namespace, name) is not None:
            self.server.take_away("terraformtasks", namespace, name)

    def _delete_pod(self, pick: int, grace_s: int | None, what: str) -> bool:
        if (obj := chosen(self.server.all("pods"), pick)) is None:
            return False
        meta = obj["metadata"]
        version = self.server.version
        self.server.take_away("pods", meta["namespace"], meta["name"], grace_s=grace_s)
        return version != self.server.version and self.say(f"{meta['name']} {what}")

    def _bury_the_deposed(self) -> None:
        for life in [life for life in self.lives if life.deposed]:
            self._end(life)
            self.say(f"{life.name} ends: {life.deposed}")


def _digest(task: Json) -> str:
    """Of the plan that waits for its approval, or was approved; empty: there is none."""
    return str(((task.get("status") or {}).get("plan") or {}).get("digest", ""))


def chosen(things: list[T], pick: int) -> T | None:
    return things[pick % len(things)] if things else None


def _short(frame: str) -> str:
    return frame if len(frame) < 300 else frame[:300] + "..."
