"""What a user would do without the product: a bare pod that is deleted, a bare Job that is created.

Both have the agent's image, so that nothing is pulled. The pod stamps its own moments to its log; the Job is looked
at from its node, as the agent is. Called by `cancel` and `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator

from tests.bench.kubernetes_api import Api, ApiError, Json, within
from tests.bench.system import NAMESPACE, PODS, System
from tests.bench.watched import first_init
from tests.e2e.node.watch_node import BARE_JOB
from tests.e2e.timeline import Timeline

_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
_WITHIN_S = 60.0
# As PID 1 it ignores SIGTERM unless it waits for it: blocked first, so that none is lost.
_WAIT_FOR_SIGTERM = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", time.time(), flush=True)
signal.sigwait([signal.SIGTERM])
print("SIGTERM", time.time(), flush=True)
"""


async def delete_to_sigterm_ms(api: Api, name: str, image: str) -> tuple[float, float]:
    """DELETE sent -> SIGTERM in the process, and -> answer of the API server; both in milliseconds."""
    await api.create(PODS, _pod(name, ["python3", "-c", _WAIT_FOR_SIGTERM], image))
    path = f"{PODS}/{name}"
    try:
        await api.until(
            path, lambda pod: pod["status"].get("phase") == "Running", _WITHIN_S, f"pod {name} does not run"
        )
        log = _stamps(api, f"{path}/log?follow=true")
        async with contextlib.aclosing(log):
            await within(_WITHIN_S, anext(log), lambda: f"pod {name} is not ready")
            await asyncio.sleep(random.uniform(0.7, 1.7))  # at any moment of the kubelet's own period
            asked = time.time()
            await api.delete(path)
            answered = time.time()
            seen = await within(_WITHIN_S, anext(log), lambda: f"pod {name} saw no SIGTERM")
    finally:
        await api.delete(f"{path}?gracePeriodSeconds=0")
    return (seen - asked) * 1000, (answered - asked) * 1000


async def create_to_init_ms(system: System, timeline: Timeline, name: str, source: str, resources: Json) -> float:
    """POST of a Job answered -> `terraform init` is the program of its container, in milliseconds.

    Returns once its pod is gone, so that it disturbs nobody who comes after it."""
    api = system.api
    await api.create(_JOBS, a_job(name, system.image, system.node, source, resources))
    answered = time.time()
    of_job = f"{PODS}?labelSelector=job-name%3D{name}"
    try:
        pods = await api.until(of_job, lambda pods: pods["items"], _WITHIN_S, f"job {name} has no pod")
        at = await first_init(timeline, pods["items"][0]["metadata"]["uid"], _WITHIN_S)
        await api.until(
            f"{_JOBS}/{name}", lambda job: job["status"].get("succeeded"), _WITHIN_S, f"job {name} did not succeed"
        )
    finally:
        with contextlib.suppress(ApiError):
            await api.delete(f"{_JOBS}/{name}?propagationPolicy=Background")
    await api.until(of_job, lambda pods: not pods["items"], _WITHIN_S, f"the pod of job {name} should be gone")
    return (at - answered) * 1000


def a_job(name: str, image: str, node: str, source: str, resources: Json) -> Json:
    """One container that runs terraform on the files of a ConfigMap. The label is for whoever looks at the node."""
    container: Json = {
        "name": "terraform",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["terraform", "init", "-input=false"],
        "workingDir": "/source",
        # What is mounted there can't be written to.
        "env": [{"name": "TF_DATA_DIR", "value": "/tmp/terraform"}],
        "resources": resources,
        "volumeMounts": [{"name": "source", "mountPath": "/source"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": BARE_JOB}},
                "spec": {
                    "restartPolicy": "Never",
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "containers": [container],
                    "volumes": [{"name": "source", "configMap": {"name": source}}],
                },
            },
        },
    }


async def _stamps(api: Api, path: str) -> AsyncGenerator[float, None]:
    async for line in api.lines(path):
        yield float(line.split()[1])


def _pod(name: str, command: list[str], image: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [{"name": "bare", "image": image, "imagePullPolicy": "IfNotPresent", "command": command}],
        },
    }
