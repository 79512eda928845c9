"""The standard condition, as `kubectl wait --for=condition=...` and kstatus read it, and what stands for them before
there is one. Used by `task` and `pool`."""

from __future__ import annotations

from typing import Annotated

from .schema import ApiModel, Keywords, Time

UNSEEN = -1
"""The generation that a status has by default: kstatus takes what has neither conditions nor a generation for done."""


class Condition(ApiModel):
    """One thing that is true, false or unknown of the object."""

    type: Annotated[str, Keywords(minLength=1, maxLength=316)]
    """What it is about; one entry for each type."""
    status: Annotated[str, Keywords(enum=["True", "False", "Unknown"])]
    """Whether it holds: True, False or Unknown."""
    reason: Annotated[str, Keywords(minLength=1, maxLength=1024)]
    """Why it holds or not, as one word in CamelCase, for programs."""
    message: Annotated[str, Keywords(maxLength=32768)] = ""
    """Why it holds or not, as a sentence, for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Annotated[int | None, Keywords(format="int64")] = None
    """The metadata.generation that this condition was computed from."""


Conditions = Annotated[
    list[Condition],
    Keywords(**{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]
