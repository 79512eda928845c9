"""Tasks of random kinds, all of which stop when they are asked to, or can be swept.

What is drawn follows from the generator that is given and from nothing else. Called by `plan` and by
the random trials.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.bench.figures import percentile
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, a_task, source, start


@dataclass(frozen=True)
class Shape:
    """What a task does; `text` is its terraform."""

    kind: str
    text: str

    @property
    def ends_by_itself(self) -> bool:
        return self.kind in ("short", "counted")


@dataclass(frozen=True)
class Trial:
    number: int
    kind: str
    task: RunningTask


def a_random_shape(chance: random.Random) -> Shape:
    kind = chance.choice(("provider", "providers", "short", "command", "stubborn"))
    match kind:
        case "provider":
            text = source("sleeping_provider", count="1", duration="300s")
        case "providers":
            text = source("sleeping_provider", count=str(chance.randint(2, 30)), duration="300s")
        case "short":  # the cancel may come in its last moments, or too late
            text = source("sleeping_provider", count="3", duration=f"{chance.randint(0, 3000)}ms")
        case "command":
            text = source("sleeping_command", seconds="600")
        case _:
            text = source("stubborn_commands")
    return Shape(kind, text)


def a_random_task(installation: Installation, chance: random.Random, number: int, workspace: str = "") -> Trial:
    """Created now; it waits where the workspace is taken."""
    shape = a_random_shape(chance)
    name = installation.name(f"trial-{number}")
    (task,) = start(installation, a_task(name, namespace=SOAK, workspace=workspace or name, text=shape.text))
    return Trial(number, shape.kind, task)


def spread(values: list[float], unit: str = "s") -> str:
    """The distribution in one line."""
    if not values:
        return "none"
    shown = {"min": min(values), "median": percentile(values, 50), "p90": percentile(values, 90), "max": max(values)}
    return f"{len(values)} values: {', '.join(f'{what} {value:.3f}' for what, value in shown.items())} {unit}"
