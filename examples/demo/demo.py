"""`make demo`: a cluster, the chart, a task that runs, a task that is cancelled, shown as it happens.

Run by the Makefile from the project's root. Everything it shows is read from the cluster or from
the node's processes at that moment; it fails where what it promises is not true.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests import cluster as test_cluster

HERE = Path(__file__).parent
NAMESPACE = "terrahalt-demo"
SYSTEM = "terrahalt-system"
CHART = HERE.parent.parent / "charts" / "terrahalt"

_COLOURS = ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")
BOLD, DIM, GREEN, RED, RESET = _COLOURS if sys.stdout.isatty() else ("",) * 5


class DemoFailed(Exception):
    """What was promised did not happen; the text says what was seen instead."""


class Demo:
    def __init__(self) -> None:
        self.cluster = test_cluster.up()
        self.kubectl_path = str(test_cluster.tool("kubectl"))
        self.helm_path = str(test_cluster.tool("helm"))
        self.environment = {**os.environ, **self.cluster.environment}

    # ---- what a user would type

    def run(self, *command: str, text: str | None = None) -> str:
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=self.environment, check=False)
        if done.returncode:
            raise DemoFailed(f"{shlex.join(command)} failed:\n{done.stderr or done.stdout}")
        return done.stdout

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self.run(self.kubectl_path, *arguments, text=text)

    def show(self, *arguments: str) -> None:
        """Runs a kubectl command as the viewer could, and prints both."""
        print(f"\n  {BOLD}$ kubectl {shlex.join(arguments)}{RESET}")
        print(indent(self.kubectl(*arguments)))

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    # ---- what happens

    def watch(self, name: str) -> Generator[dict[str, Any], None, None]:
        """Each version of a task, from now on."""
        process = subprocess.Popen(
            [self.kubectl_path, "-n", NAMESPACE, "get", "terraformtask", name, "--watch", "-o", "json"],
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        limit = threading.Timer(180, process.kill)
        limit.start()
        assert process.stdout is not None
        decoder, waiting = json.JSONDecoder(), ""
        try:
            for line in process.stdout:
                waiting += line
                if line.rstrip() == "}":
                    obj, _ = decoder.raw_decode(waiting.lstrip())
                    waiting = ""
                    yield obj
            raise DemoFailed(f"task {name} did not get there within 180 s: {self.message(name)}")
        finally:
            limit.cancel()
            process.kill()
            process.wait()
            process.stdout.close()

    def message(self, name: str) -> str:
        status = self.get("terraformtask", name).get("status", {})
        return f"{status.get('phase')}: {status.get('message')}"

    def follow(self, name: str, *until: str) -> dict[str, Any]:
        """Prints each phase with the time since the first, until one of `until`; gives the last object."""
        start, last = time.monotonic(), ""
        with contextlib.closing(self.watch(name)) as versions:
            for obj in versions:
                status = obj.get("status", {})
                phase = status.get("phase", "")
                if phase and phase != last:
                    last = phase
                    after_s, message = time.monotonic() - start, status.get("message", "")
                    print(f"  {after_s:6.2f} s  {BOLD}{phase:<11}{RESET} {DIM}{message}{RESET}")
                if phase in until:
                    return obj
        raise DemoFailed(f"the watch of task {name} ended: {self.message(name)}")

    def await_progress(self, name: str) -> None:
        with contextlib.closing(self.watch(name)) as versions:
            for obj in versions:
                if (obj.get("status", {}).get("progress") or {}).get("done"):
                    return

    def processes(self) -> list[str]:
        """terraform and its providers, as the node's kernel lists them."""
        found = []
        script = "for p in /proc/[0-9]*; do { tr '\\0' ' ' < $p/cmdline; echo; } 2>/dev/null; done"
        for node in self.cluster.nodes:
            listed = self.run("docker", "exec", node, "sh", "-c", script)
            for line in listed.splitlines():
                program = line.split(" ")[0].rsplit("/", 1)[-1]
                if program == "terraform" or program.startswith("terraform-provider-"):
                    found.append(line.replace(line.split(" ")[0], program).strip())
        return sorted(found)


def indent(text: str) -> str:
    return "\n".join("    " + line for line in text.rstrip().splitlines())


def headline(text: str) -> None:
    print(f"\n{BOLD}== {text}{RESET}", flush=True)


def install(demo: Demo) -> None:
    images = test_cluster.images(engines=("terraform",), servers=False)
    demo.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    for namespace in (SYSTEM, NAMESPACE):
        manifest = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        demo.kubectl("apply", "-f", "-", text=manifest)
    values = {
        "operator": {"image": {"reference": images.operator}},
        "agent": {
            "image": {"reference": images.agent_test},
            "extraRules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "delete"]}],
        },
        "pools": [{"namespace": NAMESPACE, "name": "default", "minIdle": 1, "maxAgents": 4}],
    }
    print(f"  {BOLD}$ helm upgrade --install terrahalt charts/terrahalt -n {SYSTEM}{RESET}")
    demo.run(
        demo.helm_path,
        *("upgrade", "--install", "terrahalt", str(CHART), "-n", SYSTEM, "--values", "-", "--wait", "--timeout", "3m"),
        text=json.dumps(values),
    )
    demo.show("get", "pods", "-A", "-l", "app.kubernetes.io/part-of=terrahalt")


def start_clean(demo: Demo) -> None:
    """A second `make demo` begins where the first began."""
    demo.kubectl("-n", NAMESPACE, "delete", "terraformtask", "--all", "--wait", "--timeout=120s")
    demo.kubectl("-n", NAMESPACE, "delete", "configmap", "greeting", "--ignore-not-found")
    states = "tfstate=true"
    demo.kubectl("-n", NAMESPACE, "delete", "secret", "-l", states, "--ignore-not-found")


def run_to_the_end(demo: Demo) -> None:
    print(f"  {BOLD}$ kubectl apply -f examples/demo/hello.yaml{RESET}")
    demo.kubectl("apply", "-f", str(HERE / "hello.yaml"))
    end = demo.follow("hello", "Succeeded", "Failed", "Cancelled")
    if end["status"]["phase"] != "Succeeded":
        raise DemoFailed(f"task hello ended as {end['status']['phase']}: {end['status'].get('message')}")
    print("\n  What it made, in the cluster:")
    demo.show("-n", NAMESPACE, "get", "configmap", "greeting", "-o", "jsonpath={.data}")
    secret = demo.get("secret", "tfstate-default-greeting-tf")
    state = json.loads(gzip.decompress(base64.b64decode(secret["data"]["tfstate"])))
    print(f"\n  terraform's state, in Secret {secret['metadata']['name']} (serial {state['serial']}):")
    for resource in state["resources"]:
        print(f"    {resource['type']}.{resource['name']}")
    for name, output in state["outputs"].items():
        print(f"    output {name} = {json.dumps(output['value'])}")


def cancel_in_the_middle(demo: Demo) -> None:
    print("  (an apply of 5 minutes, and the next task of its workspace)")
    print(f"  {BOLD}$ kubectl apply -f examples/demo/network.yaml{RESET}")
    demo.kubectl("apply", "-f", str(HERE / "network.yaml"))
    demo.follow("network", "Applying", "Failed")
    demo.await_progress("network")
    demo.show("-n", NAMESPACE, "get", "terraformtasks")
    waiting = demo.get("terraformtask", "network-next")["status"]
    print(f"\n  network-next: {waiting['message']}")
    demo.show("-n", NAMESPACE, "get", "pods", "-L", "terrahalt.dev/task")
    before = demo.processes()
    print("\n  On the node, right now:")
    print(indent("\n".join(before)))
    if not any(line.startswith("terraform apply") for line in before):
        raise DemoFailed("terraform apply should be running on the node, and is not")

    patch = '{"spec":{"cancel":true}}'
    print(f"\n  {BOLD}$ kubectl -n {NAMESPACE} patch terraformtask network --type merge -p '{patch}'{RESET}")
    run_id = demo.get("terraformtask", "network")["status"]["runID"]
    asked = time.time()
    demo.kubectl("-n", NAMESPACE, "patch", "terraformtask", "network", "--type", "merge", "-p", patch)
    end = demo.follow("network", "Cancelled", "Succeeded", "Failed")
    still = demo.processes()
    following = demo.follow("network-next", "Succeeded", "Failed", "Cancelled")
    left = [line for line in still if run_id in line]
    status = end["status"]
    if status["phase"] != "Cancelled":
        raise DemoFailed(f"task network ended as {status['phase']}: {status.get('message')}")
    if left:
        raise DemoFailed(f"phase Cancelled, but on the node there is still: {left}")
    timeline(demo, asked, status, following["status"])
    print(f"\n  {GREEN}No terraform apply is left on the node{RESET} (looked at when the status said Cancelled).")
    demo.show("-n", NAMESPACE, "get", "terraformtasks", "-o", "wide")
    demo.show("-n", NAMESPACE, "get", "agentpools")


def timeline(demo: Demo, asked: float, status: dict[str, Any], following: dict[str, Any]) -> None:
    cancel = status["cancel"]
    lease = demo.get("lease", "lock-tfstate-default-network-tf")
    holder = lease["spec"].get("holderIdentity")
    assigned = next(c for c in following["conditions"] if c["type"] == "Scheduled")
    if holder:
        raise DemoFailed(f"the state's lock is still held by {holder}")
    steps = [
        ("asked", asked),
        ("operator saw it", moment(cancel["requestedAt"])),
        ("sent to the agent", moment(cancel["sentAt"])),
        ("SIGINT to terraform", moment(cancel["signalledAt"])),
        ("terraform saved its state, released the lock, exited", moment(cancel["exitedAt"])),
        ("swept: nothing of it is alive", moment(cancel["sweptAt"])),
        ("status says Cancelled", moment(status["finishedAt"])),
        ("agent and workspace free: next task assigned", moment(assigned["lastTransitionTime"])),
        ("next task runs", moment(following["startedAt"])),
    ]
    print(f"\n  The cancel, rung {BOLD}{cancel['rung']}{RESET}, in milliseconds after `kubectl patch` was typed:")
    for what, when in steps:
        print(f"    {(when - asked) * 1000:8.0f} ms   {what}")
    result = status["result"]
    print(
        f"    state: {result['state']}; lock: {result['lock']}; the state's Lease is held by {holder or 'nobody'} now"
    )


def moment(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def clean_up(was_up: bool) -> int:
    """After Ctrl-C: what this run brought up goes again; a cluster that was there before stays."""
    if was_up:
        print("\nStopped. The cluster was up before and stays; `make demo-down` removes it.", file=sys.stderr)
    else:
        print("\nStopped: removing the cluster; what was built stays in the cache.", file=sys.stderr)
        test_cluster.down()
    return 130


def main() -> int:
    started = time.monotonic()
    was_up = test_cluster.status() is not None
    try:
        headline("1/4  A Kubernetes cluster")
        demo = Demo()
        headline("2/4  Terrahalt, by its chart")
        install(demo)
        start_clean(demo)
        headline("3/4  A task that runs to its end")
        run_to_the_end(demo)
        headline("4/4  A task that is cancelled in the middle of its apply")
        cancel_in_the_middle(demo)
    except (DemoFailed, test_cluster.ClusterError) as error:
        print(f"\n{RED}The demo failed:{RESET} {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return clean_up(was_up)
    headline(f"Done in {time.monotonic() - started:.0f} s. What to type next")
    print(f"""
  export KUBECONFIG={demo.cluster.kubeconfig}
  {demo.kubectl_path} -n {NAMESPACE} describe terraformtask network
  {demo.kubectl_path} -n {NAMESPACE} logs -l terrahalt.dev/last-task=network --tail=-1
  {demo.kubectl_path} explain terraformtask.spec.cancel
  make demo-down        # removes all of it
""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
