"""What may not be left behind, once faults have stopped and everything had its time to end.

Asked after each round until there is nothing of it any more: what never goes is a leak. Called by `simulation`.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrahalt_operator.core import names
from tests.simulation.api_server import ApiServer, Json
from tests.simulation.judge import Judge, is_over

_TRACES = {"configmaps": "anchor", "poddisruptionbudgets": "disruption budget"}
"""Of a pool: what is made for it, beside its agents."""


def of(server: ApiServer, judge: Judge) -> Iterator[str]:
    """In words; nothing: all is as it has to be."""
    pools = {(meta["namespace"], meta["name"]) for meta in (p["metadata"] for p in server.all("agentpools"))}
    for obj in server.all("pods"):
        meta = obj["metadata"]
        if names.AGENT_FINALIZER in meta.get("finalizers", ()) and _never_ends(judge, obj):
            yield f"pod {meta['name']} is over, and keeps its finalizer"
        if (meta["namespace"], meta["labels"][names.POOL_LABEL]) not in pools:
            yield f"pod {meta['name']} is of a pool that is gone"
    for pod in judge.pods.values():
        # One whose cancel came first is told to whoever sent that alone: it may be another operator, and dead.
        held = [run_id for run_id in pod.unacknowledged if run_id in pod.starts]
        if held and not pod.is_cut_off:
            yield f"pod {pod.name} holds {', '.join(held)}, whose end nobody has acknowledged"
    for plural, what in _TRACES.items():
        for meta in (obj["metadata"] for obj in server.all(plural)):
            if (meta["namespace"], meta["labels"][names.POOL_LABEL]) not in pools:
                yield f"the {what} {meta['namespace']}/{meta['name']} is of a pool that is gone"
    for pool in server.all("agentpools"):
        meta = pool["metadata"]
        alive = sum(not is_over(obj) for obj in judge.agents_of(meta["namespace"], meta["name"]))
        if alive > pool["spec"]["maxAgents"]:
            yield f"pool {meta['namespace']}/{meta['name']} has {alive} agents"
        budget = server.find("poddisruptionbudgets", meta["namespace"], f"terrahalt-agents-{meta['name']}")
        if (pool["spec"].get("drainPolicy") == "Wait") is not (budget is not None):
            yield f"pool {meta['namespace']}/{meta['name']} has {'a' if budget else 'no'} disruption budget"


def _never_ends(judge: Judge, obj: Json) -> bool:
    """Nothing of it is alive, or its node is gone for good."""
    pod = judge.pods.get(obj["metadata"]["uid"])
    if pod is None:
        return "deletionTimestamp" in obj["metadata"]
    return not pod.is_alive or pod.node.is_gone
