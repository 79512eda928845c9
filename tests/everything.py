"""`make test`: every stage in its order, with what it does and how long it takes, and nothing left behind.

Run by the Makefile with the venv's Python. Stops at the first stage that fails and leaves the cluster
up, so that one can look; Ctrl-C takes the cluster down. Decides only the order: the cheap stages first.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

from tests import cluster
from tests.e2e.kubectl import Kubectl

SYSTEM = "terrahalt-system"
WORKERS = 1
"""Nodes of the cluster besides the first."""


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    what: str
    about: str
    """How long it takes on 2 cores, warm."""
    commands: tuple[tuple[str, ...], ...]


def pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "--quiet", "--durations=5", *arguments)


IN_TWO_PROCESSES = "--numprocesses=2"
"""For tests that share nothing, or a cluster where they keep out of each other's way."""
ON_CLUSTER = ("tests/e2e", "tests/soak")
WHOLE_AGENT_SUITE = (IN_TWO_PROCESSES, "--every-row", "tests/agent_terraform")

STAGES = (
    Stage("lint", "ruff, mypy, import contracts, generated files", "1 min", (("make", "lint"),)),
    Stage(
        "unit",
        "the pure cores of both sides, the protocol, the shape of the repository, simulated histories and a search",
        "2 min",
        (
            pytest(
                IN_TWO_PROCESSES,
                *("tests/repository", "tests/protocol", "tests/operator_core", "tests/agent"),
                *("tests/bench", "tests/mutations", "tests/simulation"),
            ),
            ("make", "simulate", "SEEDS=2000"),
            ("make", "search", "DEPTH=16"),
        ),
    ),
    Stage(
        "cluster",
        "a kind cluster of two nodes with this checkout's images",
        "3 min; 14 the first time",
        (("make", f"WORKERS={WORKERS}", "cluster-up", "images"), pytest("tests/images")),
    ),
    Stage("terraform", "the agent alone, with a real terraform", "3 min", (pytest(*WHOLE_AGENT_SUITE),)),
    Stage(
        "api",
        "CRDs, chart and plugin, against the API server; what policies, alerts, metrics and statuses mean to others",
        "2 min",
        (pytest("tests/network", "tests/monitoring", "tests/kstatus", "tests/crds", "tests/chart", "tests/plugin"),),
    ),
    Stage(
        "e2e",
        "everything, on the cluster, through the chart",
        "15 min",
        (
            ("env", "TERRAHALT_E2E_KEEP=1", *pytest(IN_TWO_PROCESSES, "-m", "not slow and not alone", *ON_CLUSTER)),
            pytest("-m", "not slow and alone", *ON_CLUSTER),
        ),
    ),
    Stage(
        "down",
        "taking a cluster down leaves nothing behind: no process, mount, network device or iptables rule",
        "1 min",
        (("make", "cluster-down"), pytest("tests/cluster_tool")),
    ),
)


def took_of(stage: Stage, which: str) -> tuple[bool, float]:
    """Whether it passed, and after how many seconds."""
    print(f"\n== {which} {stage.name}: {stage.what} (about {stage.about})", flush=True)
    begun = time.monotonic()
    passed = all(subprocess.run(command, check=False).returncode == 0 for command in stage.commands)
    return passed, time.monotonic() - begun


def main() -> int:
    took: list[tuple[str, float]] = []
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        for number, stage in enumerate(STAGES, 1):
            if stage.name == "cluster":
                _remove_other_cluster()
            passed, seconds = took_of(stage, f"{number}/{len(STAGES)}")
            took.append((stage.name, seconds))
            if not passed:
                print(f"\nStage {stage.name} failed. If the cluster is up, it stays: `make cluster-status` says how to")
                print("use it, `make cluster-down` removes it.")
                return 1
    except KeyboardInterrupt:
        print("\nStopped: removing the cluster; what was built stays in the cache.", flush=True)
        cluster.down()
        return 130
    print("\nAll stages passed: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took))
    return 0


def _remove_other_cluster() -> None:
    """What `make demo`, `make cluster-up` or a trial that was broken off has left; it would go at the end anyway."""
    found = cluster.status()
    if found is None or not found.is_ours:
        return
    count, wanted = 1 + len(found.workers), 1 + WORKERS
    why = f"has {count} nodes, the tests need {wanted}" if count != wanted else _what_is_installed(found)
    if why:
        print(f"The cluster {found.name} {why}: it is made anew.", flush=True)
        cluster.down()


def _what_is_installed(on: cluster.Cluster) -> str:
    """Its policies would refuse what the stage `api` writes, and its operator would act upon it."""
    kubectl = Kubectl(cluster.tool("kubectl"), on.environment)
    found = kubectl.attempt("get", "namespace", SYSTEM, "--ignore-not-found", "--output=name", "--request-timeout=10s")
    return f"has an installation in namespace {SYSTEM}" if found.stdout else ""


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
