"""What one round of random troubles will do, drawn before anything happens.

A pure function of the seed and the round's number (and of what the cluster has), so that a seed repeats
the same tasks and the same troubles at the same moments, however long anything takes. Called by
`test_random_troubles`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tests.e2e.tasks import source
from tests.soak.random_tasks import Shape, a_random_shape

TROUBLED_S = 8.0
"""Tasks are in their queue, in init, plan and apply meanwhile; a run of its own takes about a second."""
COUNTED = "the-name-of-this-task"


class Trouble(Enum):
    """Its value says how it is told."""

    CANCEL = "cancel"
    CANCEL_TWICE = "cancel it twice at once"
    FORCE = "cancel it and force that"
    SHORTEN = "cancel it, then shorten its grace"
    DELETE = "delete it"
    RECREATE = "delete it and create it anew under its name"
    DELETE_POD = "delete its pod"
    FORCE_DELETE_POD = "delete its pod by force"
    EVICT = "evict its pod"
    KILL_AGENT = "kill -9 its agent"
    KILL_POD = "kill -9 all of its pod at once"
    KILL_TERRAFORM = "kill -9 its terraform"
    KILL_PROVIDER = "kill -9 its provider"
    KILL_OPERATOR = "kill -9 the operator"
    REPLACE_OPERATOR = "replace the operator's pod"
    DRAIN = "drain the node and uncordon it"
    PAUSE = "freeze the node and resume it"
    FREEZE_AGENT = "freeze its agent and let it go on"
    CUT_AGENT = "cut its pod off from all others"
    KILL_STANDBY = "kill -9 the operator that stands by"
    FREEZE_OPERATOR = "freeze the operator that leads and let it go on"
    FREEZE_STANDBY = "freeze the operator that stands by and let it go on"
    CUT_OPERATOR = "cut the operator that leads off from all others"
    CUT_STANDBY = "cut the operator that stands by off from all others"
    EVICT_OPERATOR = "evict the pod of the operator that leads"
    DELETE_LEASE = "delete the leader's Lease"
    RESTART_API = "kill -9 the API server"
    PAUSE_ETCD = "freeze etcd and let it go on"
    STOP = "take the power from the node and give it back"


OF_TASKS = (
    Trouble.CANCEL, Trouble.CANCEL_TWICE, Trouble.FORCE, Trouble.SHORTEN, Trouble.DELETE, Trouble.RECREATE,
    Trouble.DELETE_POD, Trouble.FORCE_DELETE_POD, Trouble.EVICT, Trouble.KILL_AGENT, Trouble.KILL_POD,
    Trouble.KILL_TERRAFORM, Trouble.KILL_PROVIDER,
)  # fmt: skip
OF_OPERATOR = (Trouble.KILL_OPERATOR, Trouble.REPLACE_OPERATOR)
OF_API = (Trouble.RESTART_API, Trouble.PAUSE_ETCD)
"""Meanwhile nobody can be asked anything."""


@dataclass(frozen=True)
class PlannedTask:
    shape: Shape
    workspace: int
    pool: str
    at_s: float = 0.0
    """When it is created; 0: before anything happens."""
    spec: tuple[tuple[str, str | int], ...] = ()
    """Further fields."""

    @property
    def needs_approval(self) -> bool:
        """It gets one as soon as it waits for it."""
        return ("approval", "Manual") in self.spec

    @property
    def supersedes(self) -> bool:
        return any(key == "supersede" for key, _ in self.spec)

    def __str__(self) -> str:
        spec = "".join(f", {key} {value}" for key, value in self.spec)
        since = f" from {self.at_s:.3f} s on" if self.at_s else ""
        return f"{self.shape.kind} on workspace {self.workspace} by pool {self.pool}{spec}{since}"


@dataclass(frozen=True)
class Step:
    at_s: float
    trouble: Trouble
    task: int | None = None
    node: str = ""
    lasts_s: float = 0.0
    patience_s: float = 0.0
    """For how long it waits for something to do it to, be it of another task; 0: it is for its task, now or never."""

    def __str__(self) -> str:
        about = f"task {self.task}: " if self.task is not None else f"{self.node}: " if self.node else ""
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:.3f} s: {about}{self.trouble.value}{lasts}"


@dataclass(frozen=True)
class Plan:
    number: int
    tasks: tuple[PlannedTask, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        tasks = [f"  task {number}: {task}" for number, task in enumerate(self.tasks)]
        return "\n".join([f"round {self.number}", *tasks, *(f"  {step}" for step in self.steps)])


def plan(seed: int, number: int, *, pools: Sequence[str], nodes: Sequence[str], may_freeze: Sequence[str]) -> Plan:
    """`nodes` may be drained where there is another; `may_freeze` are those that can come back from it."""
    chance = random.Random(f"{seed}/troubles/{number}")
    # A state belongs to one engine.
    pool_of = [chance.choice(pools) for _ in range(chance.randint(1, 3))]
    workspaces = [chance.randrange(len(pool_of)) for _ in range(chance.randint(3, 6))]
    tasks = tuple(PlannedTask(a_shape(chance), w, pool_of[w]) for w in workspaces)
    steps = [
        Step(chance.uniform(0, TROUBLED_S), chance.choice(OF_TASKS), task=chance.randrange(len(tasks)))
        for _ in range(chance.randint(2, 6))
    ]
    if chance.random() < 0.4:
        steps.append(Step(chance.uniform(0, TROUBLED_S), chance.choice(OF_OPERATOR)))
    # Drawn whether or not they can be done: what follows stays the same on any cluster.
    happens, which, at_s, lasts_s = chance.random(), chance.random(), chance.uniform(1, TROUBLED_S), _frozen_s(chance)
    if happens < 0.08 and may_freeze:
        node = may_freeze[int(which * len(may_freeze))]
        steps.append(Step(at_s, Trouble.PAUSE, node=node, lasts_s=lasts_s))
    elif happens < 0.30 and len(nodes) > 1:
        steps.append(Step(at_s, Trouble.DRAIN, node=nodes[int(which * len(nodes))]))
    return Plan(number, tasks, in_order(steps))


def in_order(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Each task is made anew once at most: of two people who do that at once, one finds the name taken."""
    kept: list[Step] = []
    made_anew: set[int | None] = set()
    for step in sorted(steps, key=lambda step: step.at_s):
        if step.trouble is Trouble.RECREATE:
            if step.task in made_anew:
                continue
            made_anew.add(step.task)
        kept.append(step)
    return tuple(kept)


def a_shape(chance: random.Random) -> Shape:
    return a_counted_shape(chance) if chance.random() < 0.3 else a_random_shape(chance)


def a_counted_shape(chance: random.Random) -> Shape:
    return Shape("counted", source("counted", task=COUNTED, seconds=str(chance.randint(0, 4))))


def _frozen_s(chance: random.Random) -> float:
    """Not noticed, noticed by the operator's heartbeat, and noticed by Kubernetes: NotReady after 40 to 50 s."""
    return chance.choice((chance.uniform(1, 10), chance.uniform(25, 35), chance.uniform(50, 65)))
