"""`python -m terrahalt_operator.uninstall`: what `helm uninstall` runs first, while there is an operator.

Refuses, with the names and what to type, while there is what only the operator can end; then deletes the pools of the
release, as helm would do too late, waits until the operator has let go of their agents, and takes its finalizer off
tasks that have ended: nobody else could delete them. Must never end a run, or let go of what has not ended. Called by
the chart's hook.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass

from terrahalt_operator.adapters.cluster import BUDGETS, CONFIG_MAPS, PODS, POOLS, TASKS, Cluster, Json, Resource
from terrahalt_operator.core import names
from terrahalt_operator.core.model import ABANDONED
from terrahalt_operator.core.pod import anchor_name
from terrahalt_operator.core.uninstall import Release, Thing, held, leftover, objection
from terrahalt_operator.errors import ClusterError, Conflict, NotFound

LOOKS_EVERY_S = 1.0
GONE_WITHIN_S = 120.0
"""Agents without a run end in seconds; a node that does not answer is a person's decision."""
AGENTS = f"{names.NAME_LABEL}={names.AGENT_NAME}"


@dataclass(frozen=True, slots=True)
class Settings:
    release: Release
    watched: tuple[str, ...]
    """Empty: all namespaces."""
    wait_s: float
    """For tasks to end, before it is refused."""
    job: str
    """Its own."""

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(
            release=Release(os.environ["TERRAHALT_RELEASE"], os.environ["TERRAHALT_NAMESPACE"]),
            watched=tuple(filter(None, os.environ["TERRAHALT_WATCH_NAMESPACES"].split(","))),
            wait_s=float(os.environ["TERRAHALT_UNINSTALL_WAIT_SECONDS"]),
            job=os.environ["TERRAHALT_UNINSTALL_JOB"],
        )


def main() -> None:
    settings = Settings.from_environment()
    refusal = asyncio.run(_run(settings))
    print(told(refusal, settings) if refusal else "nothing is left that needs the operator")
    sys.exit(bool(refusal))


def told(refusal: str, settings: Settings) -> str:
    """Helm 4 makes one line of its log of all that a hook says, so it ends with where it can be read."""
    command = f"kubectl --namespace {settings.release.namespace} logs job/{settings.job}"
    return f"{refusal}\nWhere helm has made one line of this, read it by:\n  {command}"


async def _run(settings: Settings) -> str:
    cluster = await Cluster.connect()
    try:
        return await make_way(cluster, settings)
    except ClusterError as error:
        return f"helm uninstall is refused, as it can't be seen what needs the operator: {error}"
    finally:
        await cluster.close()


async def make_way(cluster: Cluster, settings: Settings) -> str:
    """Why the operator has to stay; empty: it may go, all pools of the release are gone, and no task waits for it.

    Cancelled or failed halfway it may be tried again: what it deletes, helm was asked to delete.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + settings.wait_s
    while True:
        pools = await _things(cluster, settings, POOLS)
        # Tasks before agents: a run that ends in between is told of once too often, not once too seldom.
        tasks = await _things(cluster, settings, TASKS)
        found = objection(tasks, pools, await _things(cluster, settings, PODS, AGENTS), settings.release)
        if found is None:
            break
        if not found.may_pass or clock() >= until:
            return found.text
        await asyncio.sleep(LOOKS_EVERY_S)
    for pool in pools:
        with contextlib.suppress(NotFound):
            await cluster.delete(POOLS, pool.namespace, pool.name)
    until = clock() + GONE_WITHIN_S
    while True:
        agents = await _things(cluster, settings, PODS, AGENTS)
        text = leftover(await _things(cluster, settings, POOLS), agents)
        if not text:
            break
        if clock() >= until:
            return text
        await asyncio.sleep(LOOKS_EVERY_S)
    for pool in pools:
        await _remove_traces(cluster, pool)
    await _let_go(cluster, settings)
    return ""


async def _remove_traces(cluster: Cluster, pool: Thing) -> None:
    """Of one that is gone with its agents: the operator does so too, and may be deleted before it comes to it. The
    NetworkPolicy goes with the anchor."""
    for resource in (BUDGETS, CONFIG_MAPS):
        with contextlib.suppress(NotFound):
            await cluster.delete(resource, pool.namespace, anchor_name(pool.name))


async def _let_go(cluster: Cluster, settings: Settings) -> None:
    """Of tasks that have ended. One that somebody changes meanwhile is looked at again."""
    while tasks := held(await _things(cluster, settings, TASKS)):
        for task in tasks:
            left = sorted(task.finalizers - {names.TASK_FINALIZER})
            patch = {"metadata": {"finalizers": left, "resourceVersion": task.version}}
            with contextlib.suppress(NotFound, Conflict):
                await cluster.patch(TASKS, task.namespace, task.name, patch)


async def _things(cluster: Cluster, settings: Settings, resource: Resource, labels: str = "") -> list[Thing]:
    found: list[Thing] = []
    for namespace in settings.watched or (None,):
        # Without the CRDs there is none of it.
        with contextlib.suppress(NotFound):
            found += map(_thing, (await cluster.list(resource, namespace, labels))[0])
    return found


def _thing(obj: Json) -> Thing:
    meta = obj["metadata"]
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    status = obj.get("status") or {}
    release = annotations.get("meta.helm.sh/release-name"), annotations.get("meta.helm.sh/release-namespace")
    return Thing(
        namespace=meta["namespace"],
        name=meta["name"],
        version=meta["resourceVersion"],
        phase=status.get("phase", ""),
        is_deleting="deletionTimestamp" in meta,
        finalizers=frozenset(meta.get("finalizers", ())),
        run=status.get("runID", "") or labels.get(names.RUN_LABEL, ""),
        task=labels.get(names.TASK_LABEL, ""),
        is_abandoned=(status.get("result") or {}).get("reason") == ABANDONED,
        release=Release(release[0], release[1]) if release[0] and release[1] else None,
    )


if __name__ == "__main__":
    main()
