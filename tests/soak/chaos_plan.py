"""What one round of chaos will do, drawn before anything happens: short, and several faults at once.

A pure function of the seed and the round's number, as in `plan`. Of each costly fault there is one in every
`BLOCK` rounds, at a random one of them, so that no long trial goes without. Called by `test_chaos`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tests.soak.plan import OF_API, OF_TASKS, Plan, PlannedTask, Step, Trouble, a_counted_shape, a_shape, in_order

TROUBLED_S = 4.0
PATIENCE_S = 5.0
"""Tasks wait for their workspace and for terraform to start: at a random moment most have nothing that could be hit."""
BLOCK = 25
COSTLY = (Trouble.RESTART_API, Trouble.PAUSE_ETCD, Trouble.PAUSE, Trouble.STOP, Trouble.DRAIN)

OF_PEOPLE = (
    Trouble.CANCEL, Trouble.CANCEL, Trouble.CANCEL, Trouble.CANCEL_TWICE, Trouble.FORCE, Trouble.SHORTEN,
    Trouble.DELETE, Trouble.RECREATE,
)  # fmt: skip
OF_AGENTS = (*(t for t in OF_TASKS if t not in OF_PEOPLE), Trouble.FREEZE_AGENT, Trouble.CUT_AGENT)
OF_OPERATORS = (
    Trouble.KILL_OPERATOR, Trouble.KILL_STANDBY, Trouble.REPLACE_OPERATOR, Trouble.EVICT_OPERATOR,
    Trouble.FREEZE_OPERATOR, Trouble.FREEZE_STANDBY, Trouble.CUT_OPERATOR, Trouble.CUT_STANDBY, Trouble.DELETE_LEASE,
)  # fmt: skip
LASTS_S = {
    # From one that nobody notices to one that ends on the day of another leader: the Lease lasts 4 s.
    Trouble.FREEZE_OPERATOR: (2.0, 8.0),
    Trouble.FREEZE_STANDBY: (1.0, 6.0),
    Trouble.CUT_OPERATOR: (2.0, 7.0),
    Trouble.CUT_STANDBY: (2.0, 7.0),
    Trouble.FREEZE_AGENT: (0.5, 6.0),
    Trouble.CUT_AGENT: (0.5, 6.0),
    # The control plane's own leaders give up after 10 s without etcd.
    Trouble.PAUSE_ETCD: (1.0, 7.0),
    Trouble.PAUSE: (2.0, 12.0),
    Trouble.STOP: (0.5, 4.0),
}


def plan(seed: int, number: int, *, pools: Sequence[str], nodes: Sequence[str], may_freeze: Sequence[str]) -> Plan:
    """`nodes` may be drained; those of `may_freeze` may be frozen and stopped as well."""
    chance = random.Random(f"{seed}/chaos/{number}")
    costly = _costly(seed, number)
    tasks = _tasks(chance, pools)
    steps = [_step(chance, chance.choice(OF_PEOPLE), len(tasks)) for _ in range(chance.randint(1, 3))]
    # Before the first second is over, hardly one has a task.
    hits = [_step(chance, chance.choice(OF_AGENTS), len(tasks), from_s=0.8) for _ in range(chance.randint(1, 3))]
    steps += [replace(step, patience_s=PATIENCE_S) for step in hits]
    steps += [
        _step(chance, chance.choice(OF_OPERATORS)) for _ in range(chance.choices((0, 1, 2), weights=(2, 6, 2))[0])
    ]
    if costly is not None:
        at = chance.choice(nodes if costly is Trouble.DRAIN else may_freeze)
        steps = [step for step in steps if _goes_with(step.trouble, costly)]
        tasks = [replace(task, at_s=0.0) for task in tasks] if costly in OF_API else tasks
        steps.append(replace(_step(chance, costly), node="" if costly in OF_API else at))
    return Plan(number, tuple(tasks), in_order(steps))


def _costly(seed: int, number: int) -> Trouble | None:
    block, place = divmod(number, BLOCK)
    order: list[Trouble | None] = [*COSTLY, *[None] * (BLOCK - len(COSTLY))]
    random.Random(f"{seed}/chaos/block/{block}").shuffle(order)
    return order[place]


def _goes_with(trouble: Trouble, costly: Trouble) -> bool:
    if costly in OF_API:
        # A name is free only once the API server says so.
        return trouble is not Trouble.RECREATE
    # What was frozen or cut off on a node that then stands still could not be undone.
    return costly is Trouble.DRAIN or trouble not in LASTS_S


def _tasks(chance: random.Random, pools: Sequence[str]) -> list[PlannedTask]:
    # A state belongs to one engine.
    pool_of = [chance.choice(pools) for _ in range(chance.randint(1, 3))]
    tasks = []
    for _ in range(chance.randint(3, 5)):
        workspace = chance.randrange(len(pool_of))
        spec = (("priority", chance.randint(1, 9)),) if chance.random() < 0.3 else ()
        tasks.append(PlannedTask(a_shape(chance), workspace, pool_of[workspace], spec=spec))
    if chance.random() < 0.2:
        # In a later second, or it is not the newer one.
        older = chance.choice(tasks)
        spec_of_newer = (("supersede", chance.choice(("Queued", "Planning"))),)
        newer = replace(older, shape=a_counted_shape(chance), at_s=chance.uniform(1.1, 2.5), spec=spec_of_newer)
        tasks.append(newer)
    if chance.random() < 0.2:
        # Alone on its workspace, or another one's apply makes its plan stale.
        manual = PlannedTask(
            a_counted_shape(chance), len(pool_of), chance.choice(pools), spec=(("approval", "Manual"),)
        )
        tasks.append(manual)
    return tasks


def _step(chance: random.Random, trouble: Trouble, tasks: int = 0, *, from_s: float = 0.0) -> Step:
    at_s = chance.uniform(from_s, TROUBLED_S)
    task = chance.randrange(tasks) if tasks else None
    return Step(at_s, trouble, task=task, lasts_s=chance.uniform(*LASTS_S[trouble]) if trouble in LASTS_S else 0.0)
