"""Forty secrets come in by every way that there is, are shown by terraform and by commands, and are found nowhere.

Looked at is all that leaves a run: objects of every kind, every version of the tasks, events, logs, kept logs, metrics,
what the plugin shows, command lines and environments of all nodes, and the disks of the agents after their runs. That
each place was really looked at, and the search can find there, is shown by decoys, which are planted in each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests import cluster as test_cluster
from tests.backends.http_state import PASSWORD
from tests.e2e import evidence, places
from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.planted import Place, Planted, a_core, a_number, plant, search
from tests.e2e.servers import HttpStates
from tests.e2e.tasks import a_task, source, start
from tests.e2e.test_approval import approve
from tests.e2e.test_pools import a_pool
from tests.plugin.program import Program

pytestmark = pytest.mark.cluster

API = "https://kubernetes.default.svc"
"""A server that has a certificate, and refuses whatever it is shown."""
API_CA = {"caRef": {"configMapRef": {"name": "kube-root-ca.crt"}}}
SHAPES_OF_TEXT = ("token", "quoted", "unicode", "url", "template", "lines", "spaced", "document", "base64", "long")
SHAPES_OF_POOL = ("token", "unicode", "url", "template", "lines", "document")
OF_ENVIRONMENTS = {
    *(f"pool {shape}" for shape in SHAPES_OF_POOL),
    "variable of the pool",
    "task",
    "task that replaces one",
}
"""Which come by envFrom, so a process that runs for the task has them."""


def a_key() -> tuple[str, str]:
    """Private and public, as OpenSSH has them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


class Secrets:
    """What is planted, and the Secrets that it is planted in."""

    def __init__(self, installation: Installation, host: str, states: HttpStates) -> None:
        self.prefix = installation.name("planted")
        self.planted: list[Planted] = []
        self.objects: list[Json] = []
        self.texts = [f"v_{shape}" for shape in SHAPES_OF_TEXT]
        self._put_variables()
        self._put_environments()
        self._put_access(host)
        state = f"http://{states.host}/state/{self.prefix}?token={self._one('backend address').value}"
        address = dict.fromkeys(("address", "lock_address", "unlock_address"), state)
        self._put("backend", **address, username=self._one("backend username").value, password=PASSWORD)

    def name(self, label: str) -> str:
        return f"{self.prefix}-{label}"

    def ref(self, label: str, **more: str) -> Json:
        return {"secretRef": {"name": self.name(label)}, **more}

    def _put_variables(self) -> None:
        nested = {
            "shapes": {shape: self._one(f"JSON {shape}", shape).value for shape in SHAPES_OF_TEXT[:6]},
            "list": [self._one("JSON in a list").value, True, None, 1],
            "number": int(self._one("JSON number", core=a_number()).value),
        }
        values = {name: self._one(name, shape).value for name, shape in zip(self.texts, SHAPES_OF_TEXT, strict=True)}
        self._put(
            "variables",
            **values,
            **{"nested.json": json.dumps(nested), "single.json": json.dumps(self._one("JSON text").value)},
            v_twice=self._one("variable that another one replaces").value,
        )
        self._put(
            "more-variables",
            v_twice=self._one("variable that replaces another one").value,
            v_undeclared=self._one("variable that is not declared").value,
        )

    def _put_environments(self) -> None:
        of_pool = {f"POOL_{shape}".upper(): self._one(f"pool {shape}", shape).value for shape in SHAPES_OF_POOL}
        self._put("pool", **of_pool)
        self._put("pool-variables", from_environment=self._one("variable of the pool").value)
        self._put(
            "task", TASK_QUOTED=self._one("task", "quoted").value, POOL_TOKEN=self._one("task that replaces one").value
        )
        self._put("file", credentials=self._one("file").value)

    def _put_access(self, host: str) -> None:
        self._put("bearer", bearerToken=self._one("git token").value)
        self._put("basic", username=self._one("git user").value, password=self._one("git password", "quoted").value)
        private, public = a_key()
        self._one("git key", core=private.splitlines()[2])
        self._put("ssh", identity=private, known_hosts=f"{ssh_host(host)} {public}")
        self._put("archive", username=self._one("archive user").value, password=self._one("archive password").value)

    def _one(self, way: str, shape: str = "token", *, core: str = "") -> Planted:
        self.planted.append(plant(way, shape, core=core))
        return self.planted[-1]

    def _put(self, label: str, **values: str) -> None:
        metadata = {"name": self.name(label), "namespace": RUNS}
        self.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})

    def of(self, ways: str) -> list[Planted]:
        return [secret for secret in self.planted if secret.way.startswith(ways)]


def ssh_host(host: str) -> str:
    """As known_hosts has it."""
    name, _, port = host.rpartition(":")
    return f"[{name.strip('[]')}]:{port}"


@dataclass(frozen=True)
class Decoys:
    """What no secret is. Each is put where it has to be found."""

    printed: str
    refused: str
    on_command_lines: str
    in_environments: str
    on_disk: str

    @classmethod
    def new(cls) -> Decoys:
        return cls(*(a_core() for _ in range(5)))

    def all(self) -> list[Planted]:
        return [Planted(way, core, core) for way, core in vars(self).items()]


class Stage:
    """The tasks, and the pool that most of them run in. Its name is a decoy, as pools are labels of metrics."""

    def __init__(self, installation: Installation, secrets: Secrets, decoys: Decoys, host: str) -> None:
        self.installation, self.secrets, self.decoys = installation, secrets, decoys
        self.pool = installation.name("decoy-pool")
        self.outputs = secrets.name("outputs")
        # Agents live on after their run, so that one can look at what it has left with them.
        installation.kubectl.create(*secrets.objects, a_pool(self.pool, **self._pool()))
        silent, here = f"https://{host}/network", {"poolRef": {"name": self.pool}}
        own = here | {"envFrom": [secrets.ref("task")]}
        refused = {"sha256": "0" * 64, "url": f"{API}/network.tar.gz", **secrets.ref("archive"), **API_CA}
        states = {"type": "http", "configFrom": [secrets.ref("backend")]}
        outputs = {"secretName": self.outputs, "includeSensitive": True}
        tasks = {
            "approved": self._telling("end", approval="Manual", outputsTo=outputs, **own),
            "failing": self._telling("fail", **own),
            "refused": self._telling("refuse", action="Plan", **own),
            "cancelled": self._telling("sleep", **own),
            "elsewhere": {"text": source("sleeping_command", seconds="3"), "backend": states, **here},
            "bearer": self._fetching(git={"url": f"{API}/network", **secrets.ref("bearer"), **API_CA}),
            "archive": self._fetching(archive=refused),
            "basic": self._fetching(git={"url": silent, **secrets.ref("basic")}),
            "ssh": self._fetching(git={"url": f"ssh://git@{host}/network", **secrets.ref("ssh")}),
        }
        made = start(installation, *(a_task(secrets.name(name), **fields) for name, fields in tasks.items()))
        self.tasks = dict(zip(tasks, made, strict=True))

    def _pool(self) -> Json:
        mount = {"name": "credentials", "mountPath": "/credentials", "readOnly": True}
        volume = {"name": "credentials", "secret": {"secretName": self.secrets.name("file")}}
        container = {"name": "agent", "volumeMounts": [mount]}
        return {
            "minIdle": 2,
            "maxAgents": 5,
            "maxTasksPerAgent": 10,
            "envFrom": [self.secrets.ref("pool"), self.secrets.ref("pool-variables", prefix="TF_VAR_")],
            "podTemplate": {"spec": {"containers": [container], "volumes": [volume]}},
        }

    def _telling(self, then: str, **fields: Any) -> Json:
        names = [*self.secrets.texts, "nested", "single", "v_twice", "from_environment"]
        text = source(
            "telling",
            declared="\n".join(f'variable "{name}" {{}}' for name in names),
            given=", ".join(f"{name} = var.{name}" for name in names),
            hidden="var.v_lines",
            then=then,
            printed=self.decoys.printed,
            on_command_lines=self.decoys.on_command_lines,
            in_environments=self.decoys.in_environments,
        )
        given = [self.secrets.ref("variables"), self.secrets.ref("more-variables")]
        return {
            "text": text,
            "variables": {"then": then, "public": self.decoys.refused},
            "variablesFrom": given,
            **fields,
        }

    def _fetching(self, **source: Json) -> Json:
        return {"source": source}

    def play(self) -> None:
        """Every task to its end."""
        tasks = self.tasks
        for name, child in (("basic", "remote-https"), ("ssh", "ssh "), ("cancelled", "sleep 600")):
            tasks[name].until_child(child)
            tasks[name].cancel()
        tasks["approved"].until_phase("AwaitingApproval")
        approve(tasks["approved"])
        reasons = {
            "approved": "Applied",
            "failing": "ApplyFailed",
            "refused": "PlanFailed",
            "cancelled": "CancelledByUser",
            "elsewhere": "Applied",
            "bearer": "SourceAccessDenied",
            "archive": "SourceAccessDenied",
            "basic": "CancelledByUser",
            "ssh": "CancelledByUser",
        }
        for name, task in tasks.items():
            task.until_ended()
            assert task.status["result"]["reason"] == reasons[name], task.story()
            evidence.assert_nothing_outlived(task)

    def agents(self) -> list[Json]:
        """All that ran one of them, as far as their pods are there."""
        found = (self.installation.timeline.latest("pods", RUNS, name) for name in self._names_of_agents())
        return [seen.object for seen in found if seen is not None]

    def _names_of_agents(self) -> set[str]:
        told = (seen.status.get("agent", {}) for task in self.tasks.values() for seen in task.history)
        return {agent["podName"] for agent in told if "podName" in agent}

    def _used_and_idle(self) -> list[str] | None:
        """What ends after its run keeps that run's label."""

        def lives_on(pod: Json) -> bool:
            is_running = "running" in pod["status"]["containerStatuses"][0]["state"]
            return is_running and "terrahalt.dev/run" not in pod["metadata"]["labels"]

        return [pod["metadata"]["name"] for pod in self.agents() if lives_on(pod)] or None

    def look_everywhere(self) -> Iterator[Place]:
        installation = self.installation
        names = installation.timeline.until(self._used_and_idle, 60, "an agent that lives on after its runs")
        pods = self.agents()
        for name in names:
            plant_file = f"echo {self.decoys.on_disk} > /tmp/decoy"
            installation.kubectl("--namespace", RUNS, "exec", name, "--", "sh", "-c", plant_file)
        operators = [pod["metadata"]["name"] for pod in installation.operator_pods()]
        yield from places.disk(installation, pods)
        yield from places.metrics(installation, names)
        yield from places.logs(installation, RUNS, [pod["metadata"]["name"] for pod in pods])
        yield from places.logs(installation, SYSTEM, operators)
        plugin = Program(test_cluster.plugin(), installation.kubectl.environment, RUNS)
        for what in ("plan", "status", "logs"):
            yield Place(f"kubectl terrahalt {what}", plugin(what, self.tasks["approved"].name).encode())
        for task in self.tasks.values():
            yield from places.versions(task)
        yield from places.objects(installation)

    def may_hold(self) -> dict[str, str]:
        """The Secrets that have secrets on purpose, and why: how their names begin."""
        states = [task.workspace for task in self.tasks.values()]
        plan = self.tasks["approved"].status["plan"]["runID"].lower()
        return {
            **{obj["metadata"]["name"]: "where they come from" for obj in self.secrets.objects},
            **{f"tfstate-default-{name}-tf": "terraform's state has what the module puts there" for name in states},
            **{f"terrahalt-previous-state-{name}": "it is the state from before an apply" for name in states},
            f"terrahalt-plan-{plan}": "terraform's plan has them, and an apply has to know what to take out of its log",
            self.outputs: "they are asked for, by outputsTo and includeSensitive",
        }


def test_forty_secrets_are_found_nowhere_and_decoys_everywhere(
    installation: Installation, silent_host: str, http_states: HttpStates, say: Callable[[str], None]
) -> None:
    secrets, decoys = Secrets(installation, silent_host, http_states), Decoys.new()
    assert len({secret.core for secret in secrets.planted}) == 40
    with places.processes(installation) as seen:
        stage = Stage(installation, secrets, decoys, silent_host)
        stage.play()
    looked_at = [*stage.look_everywhere(), *seen]
    installation.kubectl("--namespace", RUNS, "delete", "agentpool", stage.pool)
    size = sum(len(place.content) for place in looked_at) / 1e6
    say(f"planted secrets were looked for in {len(looked_at)} places, {size:.1f} MB")
    pool = Planted("pool", stage.pool, stage.pool)

    found = search([*decoys.all(), pool], looked_at)
    for way, beginnings in {
        "printed": ("log of ", f"Secret {RUNS}/terrahalt-log-"),
        "refused": ("version of TerraformTask ", "TerraformTask ", "Event ", "log of ", "kubectl terrahalt plan"),
        "on_command_lines": ("commands: ",),
        "in_environments": ("environments: ",),
        "on_disk": ("disk: proc/", "disk: proc/1/root/var/lib/kubelet/"),
        "pool": (
            "metrics of operator ",
            "AgentPool ",
            "kubectl terrahalt status",
            f"disk: proc/1/root/var/log/pods/{RUNS}_",
        ),
    }.items():
        for beginning in beginnings:
            there = {place for place, of in found if of == way}
            assert any(place.startswith(beginning) for place in there), f"{way} is not in {beginning}: {sorted(there)}"
    assert any(b"terrahalt_agent_run_alive" in place.content for place in looked_at)

    found = search(secrets.planted, looked_at)
    # Which proves that there was something to be read, and when.
    in_environments = {of for place, of in found if place.startswith("environments: ")}
    assert in_environments == {secret.way for secret in secrets.planted if secret.way in OF_ENVIRONMENTS}
    aside = tuple(f"Secret {RUNS}/{name}" for name in stage.may_hold())
    leaked = sorted(f"{of}: {place}" for place, of in found if not place.startswith(("environments: ", *aside)))
    assert not leaked, "\n".join(leaked)
    assert {of for _, of in found} == {secret.way for secret in secrets.planted}, "one was never there"
