"""Runs on the node, as root in its pid namespace: tells what processes live there, as JSON lines on stdout.

    python3 watch_node.py [--api [--states]]      commands: JSON lines on stdin

Looks at /proc every few milliseconds and tells when a process in an agent pod begins and ends; the
agent itself and the pod's pause process are left out, so what remains belongs to a run. In the pod of a
`bare-job`, which the bench sets beside it, nothing is left out: there the first process is the work. With `--api`
it also passes on what the API server says about tasks, pods, pools and Leases, stamped with the very
same clock, so that "the status said so while one was alive" is a comparison of two numbers. One of
the nodes does: told twice, by two watches, versions of an object would come in no order. `--states`: and
of terraform's states in Secrets, each version in whole.

Only the standard library, for whatever Python an agent image has. Times are seconds since the epoch.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import ssl
import sys
import threading
import time
from typing import Any

INTERVAL_S = 0.005
PULSE_S = 0.25
PAUSE_S = 0.02
"""Looks that are further apart are told: what lived and died in between was not seen."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_RUN_ID = re.compile(rb"[0-9A-HJKMNP-TV-Z]{26}")

_NAME_LABEL, BARE_JOB = "app.kubernetes.io/name", "bare-job"
_AGENTS = "labelSelector=app.kubernetes.io%2Fname%20in%20(terrahalt-agent%2Cterrahalt-operator%2Cbare-job)"
WATCHED = {
    "terraformtasks": "/apis/terrahalt.dev/v1alpha1/terraformtasks?",
    "agentpools": "/apis/terrahalt.dev/v1alpha1/agentpools?",
    "pods": f"/api/v1/pods?{_AGENTS}",
    "leases": "/apis/coordination.k8s.io/v1/leases?",
}
STATES = {"secrets": "/api/v1/secrets?labelSelector=tfstate%3Dtrue"}
_LEASES_OF_OURS = ("run-", "lock-tfstate-", "terrahalt-")

_out: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()


def tell(kind: str, **what: Any) -> None:
    _out.put({"kind": kind, **what})


def write_lines() -> None:
    """In a thread of its own: a slow reader must not stop the looking."""
    while True:
        line = json.dumps(_out.get(), separators=(",", ":")).encode() + b"\n"
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except OSError:
            os._exit(1)


# ---- /proc


def read(pid: str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.read(1_000_000)


def stat_of(pid: str) -> tuple[str, bool, int, int, tuple[str, str]]:
    """(program, whether it is alive, parent, start in clock ticks, where its command lies in its memory).

    Raises OSError when it is gone.
    """
    text = read(pid, "stat").decode(errors="replace")
    program = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    # A zombie whose threads go on is alive.
    alive = fields[0] not in "ZXx" or int(fields[17]) > 1
    return program, alive, int(fields[1]), int(fields[19]), (fields[45], fields[46])


def pod_of(pid: str) -> str:
    found = _POD.search(read(pid, "cgroup").decode(errors="replace"))
    return found.group(1).replace("_", "-") if found else ""


def run_of(pid: str) -> str:
    """Every process of a run inherits USER=<run ID>, unless it threw its environment away."""
    for entry in read(pid, "environ").split(b"\0"):
        if entry.startswith(b"USER=") and _RUN_ID.fullmatch(entry[5:]):
            return entry[5:].decode()
    return ""


def number_inside(pid: str) -> int:
    """Its PID as its container counts: 1 for the first process (the agent, pause); 0: it is in none, as the runtime."""
    for line in read(pid, "status").splitlines():
        if line.startswith(b"NSpid:"):
            pids = line.split()[1:]
            return int(pids[-1]) if len(pids) > 1 else 0
    return 0


def is_guest(pid: str) -> bool:
    """Whether it lives in a container, and is not its first process."""
    return number_inside(pid) > 1


def command_of(pid: str) -> list[str]:
    return [word.decode(errors="replace") for word in read(pid, "cmdline").split(b"\0")[:-1]]


def started_at(ticks: int) -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / TICKS_PER_S


def describe(pid: str) -> dict[str, Any]:
    """Raises OSError when it is gone."""
    program, alive, parent, ticks, command_at = stat_of(pid)
    return {
        "pid": int(pid),
        "ticks": ticks,
        "started": started_at(ticks),
        "parent": parent,
        "program": program,
        "alive": alive,
        "guest": is_guest(pid),
        "pod": pod_of(pid),
        "run": run_of(pid),
        "command": command_of(pid),
        "command_at": command_at,
    }


class Sampler:
    def __init__(self) -> None:
        self.agent_pods: set[str] = set()
        self.bare_pods: set[str] = set()
        """Those of them whose first processes are told too."""
        self._new_pods = threading.Event()
        self._known: set[str] = set()
        self._elsewhere: dict[str, str] = {}
        self._tracked: dict[str, dict[str, Any]] = {}
        self._traps: list[tuple[str, list[str]]] = []
        self._seen: dict[str, float] = {}

    def add_agent_pod(self, uid: str, *, is_bare: bool = False) -> None:
        if uid not in self.agent_pods:
            if is_bare:
                self.bare_pods.add(uid)
            self.agent_pods.add(uid)
            self._new_pods.set()

    def set_trap(self, pod: str, words: list[str]) -> None:
        """The first process of this pod whose command begins so is stopped as soon as it is seen."""
        self._traps.append((pod, words))

    def run(self) -> None:
        last, pulse_at = time.time(), 0.0
        while True:
            now = time.time()
            self._sample(now)
            if now - last > PAUSE_S:
                tell("pause", t=now, since=last)
            if now >= pulse_at:
                tell("pulse", t=now)
                pulse_at = now + PULSE_S
            last = now
            time.sleep(INTERVAL_S)

    def _sample(self, now: float) -> None:
        """`now` is taken before the look, so what is found alive was alive no earlier than then."""
        listed = set(os.listdir("/proc"))
        if self._new_pods.is_set():
            self._new_pods.clear()
            again = {pid for pid, pod in self._elsewhere.items() if pod in self.agent_pods}
            self._known -= again
        for pid in listed - self._known:
            if pid.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    self._meet(pid, now)
        for pid in self._known - listed:
            self._elsewhere.pop(pid, None)
        self._known = listed
        for pid in list(self._tracked):
            self._look_again(pid, now)

    def _meet(self, pid: str, now: float) -> None:
        pod = pod_of(pid)
        if not pod:
            return
        self._elsewhere[pid] = pod
        if pod not in self.agent_pods or number_inside(pid) < (1 if pod in self.bare_pods else 2):
            return
        about = describe(pid)
        if about["alive"]:
            del self._elsewhere[pid]
            self._tracked[pid], self._seen[pid] = about, now
            tell("began", t=now, **about)
            self._spring_trap(about)

    def _spring_trap(self, about: dict[str, Any]) -> None:
        for trap in self._traps:
            pod, words = trap
            if about["pod"] == pod and about["command"][: len(words)] == words:
                self._traps.remove(trap)
                kill(about["pid"], about["ticks"], signal.SIGSTOP)
                return

    def _look_again(self, pid: str, now: float) -> None:
        about = self._tracked[pid]
        try:
            program, alive, parent, ticks, command_at = stat_of(pid)
        except (OSError, ValueError):
            alive, ticks = False, about["ticks"]
        if not alive or ticks != about["ticks"]:
            tell("ended", t=time.time(), pid=about["pid"], ticks=about["ticks"], seen=self._seen.pop(pid))
            del self._tracked[pid]
            return
        self._seen[pid] = now
        # It was met between fork and exec, or has exec'd again, as git becomes another git, or has another parent now.
        is_other = (program, parent, command_at) != (about["program"], about["parent"], about["command_at"])
        if is_other or (not about["run"] and now - about["started"] < 1):
            with contextlib.suppress(OSError, ValueError):
                new = describe(pid)
                if {**new, "started": 0} != {**about, "started": 0}:
                    self._tracked[pid] = new
                    tell("became", t=now, **new)
                    self._spring_trap(new)


# ---- the API server


class ApiWatch:
    """Lists, then watches, for ever; whatever goes wrong, it begins anew."""

    def __init__(self, resource: str, sampler: Sampler, *, tells: bool) -> None:
        self._resource, self._path, self._sampler = resource, (WATCHED | STATES)[resource], sampler
        self._tells = tells
        self._broke_at: float | None = None
        self._told: dict[str, tuple[str, dict[str, Any]]] = {}

    def run(self) -> None:
        while True:
            try:
                self._follow()
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                tell("trouble", t=time.time(), text=f"{self._resource}: {error!r}")
                self._broke_at = self._broke_at or time.time()
                time.sleep(0.2)
            else:
                self._broke_at = time.time()

    def _follow(self) -> None:
        listed = json.load(self._get(""))
        version = listed["metadata"]["resourceVersion"]
        present = {obj["metadata"]["uid"] for obj in listed.get("items", [])}
        for uid, (_, obj) in list(self._told.items()):
            if uid not in present:
                # Before what has its name now; when it went nobody has seen: not after this list.
                obj["metadata"]["resourceVersion"] = version
                self._pass_on("VANISHED", obj, time.time())
        for obj in listed.get("items", []):
            self._pass_on("ADDED", obj, time.time())
        if self._broke_at is not None and self._tells:
            # What happened in the last moment before may not have got here any more.
            tell("gap", t=time.time(), resource=self._resource, since=self._broke_at - 1)
        self._broke_at = None
        answer = self._get(f"&watch=1&timeoutSeconds=600&resourceVersion={version}")
        while line := answer.readline():
            now = time.time()
            event = json.loads(line)
            if event["type"] == "ERROR":
                return
            self._pass_on(event["type"], event["object"], now)

    def _get(self, query: str) -> http.client.HTTPResponse:
        context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=700)
        with open(f"{ACCOUNT}/token") as file:
            token = file.read()
        connection.request("GET", self._path + query, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {answer.read(500)!r}")
        return answer

    def _pass_on(self, event: str, obj: dict[str, Any], now: float) -> None:
        meta = obj["metadata"]
        if self._resource == "leases" and not meta["name"].startswith(_LEASES_OF_OURS):
            return
        if self._resource == "pods":
            name = meta.get("labels", {}).get(_NAME_LABEL)
            self._sampler.add_agent_pod(meta["uid"], is_bare=name == BARE_JOB)
        told = self._told.get(meta["uid"])
        if event in ("DELETED", "VANISHED"):
            self._told.pop(meta["uid"], None)
        elif told is not None and told[0] == meta["resourceVersion"]:
            return
        else:
            self._told[meta["uid"]] = meta["resourceVersion"], obj
        meta.pop("managedFields", None)
        if self._tells:
            tell("object", t=now, resource=self._resource, event=event, object=obj)


# ---- commands


def processes(pod: str, run: str) -> list[dict[str, Any]]:
    """Everything alive in this pod, or with this run ID wherever it is."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            about = describe(pid)
            if about["alive"] and ((pod and about["pod"] == pod) or (run and about["run"] == run)):
                found.append(about)
    return found


def kill(pid: int, ticks: int, number: int) -> bool:
    """Whether exactly that process was there to be signalled."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if stat_of(str(pid))[3] != ticks:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def kill_container(pid: int, ticks: int) -> int:
    """SIGKILL to every process of the container that this one is in, in one go: an OOM kill on cgroup v2.

    How many there were; 0: that process was not there. Children go before their parents, so that none of
    those lives to see another's end, if only by luck.
    """
    try:
        cgroup = read(str(pid), "cgroup")
        if stat_of(str(pid))[3] != ticks:
            return 0
    except OSError:
        return 0
    inside = []
    for other in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            if read(other, "cgroup") == cgroup:
                inside.append((int(other), stat_of(other)[3]))
    return sum(kill(*process, signal.SIGKILL) for process in sorted(inside, reverse=True))


def obey(sampler: Sampler) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        now = time.time()
        answer: Any
        match command["do"]:
            case "processes":
                answer = processes(command["pod"], command["run"])
            case "describe":
                answer = describe(str(command["pid"]))
            case "kill":
                answer = [time.time() for pid, ticks in command["processes"] if kill(pid, ticks, command["signal"])]
            case "kill_container":
                answer = kill_container(command["pid"], command["ticks"])
            case "trap":
                sampler.set_trap(command["pod"], command["words"])
                answer = True
            case _:
                answer = None
        tell("answer", t=now, done=time.time(), id=command["id"], answer=answer)
    os._exit(0)


def main() -> None:
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    sampler = Sampler()
    threads = [threading.Thread(target=write_lines), threading.Thread(target=obey, args=(sampler,))]
    # The API tells which pods are agents, so every node follows those; one of them tells, and all the rest.
    tells = "--api" in sys.argv
    watched = [*WATCHED, *(STATES if "--states" in sys.argv else ())] if tells else ["pods"]
    watches = [ApiWatch(resource, sampler, tells=tells) for resource in watched]
    threads += [threading.Thread(target=watch.run) for watch in watches]
    for thread in threads:
        thread.daemon = True
        thread.start()
    sampler.run()


if __name__ == "__main__":
    main()
