"""What is refused about nodes, and with which words. What the operations do is seen in tests/e2e/test_nodes.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import api_server, nodes
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.model import Cluster

OURS = Cluster(
    name="two",
    kubeconfig=Path("/nowhere"),
    context="kind-two",
    server="https://nowhere",
    is_kind=True,
    is_ours=True,
    nodes=("two-control-plane", "two-worker"),
    workers=("two-worker",),
    docker_environment={},
)
OF_A_CONTAINER = (nodes.pause, nodes.resume, nodes.stop, nodes.start)
Operation = Callable[[Cluster, str], None]


@pytest.mark.parametrize("operation", OF_A_CONTAINER, ids=lambda operation: operation.__name__)
def test_the_machines_of_a_cluster_that_was_given_are_not_touched(operation: Operation) -> None:
    with pytest.raises(ClusterError, match=r"is yours.*do it by hand.*without TERRAHALT_KUBECONFIG"):
        operation(replace(OURS, is_ours=False), "two-worker")


@pytest.mark.parametrize("operation", OF_A_CONTAINER, ids=lambda operation: operation.__name__)
def test_the_node_with_the_api_server_is_not_taken_away(operation: Operation) -> None:
    with pytest.raises(ClusterError, match=r"it has the API server of two; take a worker \(two-worker\)"):
        operation(OURS, "two-control-plane")


def test_a_cluster_without_a_worker_says_how_to_get_one() -> None:
    with pytest.raises(ClusterError, match="make cluster-up WORKERS=1"):
        nodes.pause(replace(OURS, nodes=("two-control-plane",), workers=()), "two-control-plane")


@pytest.mark.parametrize("operation", OF_A_CONTAINER, ids=lambda operation: operation.__name__)
def test_a_node_that_does_not_exist_is_told_with_those_that_do(operation: Operation) -> None:
    with pytest.raises(ClusterError, match=r"no node three-worker; it has two-control-plane, two-worker"):
        operation(OURS, "three-worker")


def test_a_drain_of_an_unknown_node_is_refused_before_kubectl_is_asked() -> None:
    for operation in (nodes.drain, nodes.uncordon):
        with pytest.raises(ClusterError, match="no node three-worker"):
            operation(OURS, "three-worker", Path("/there/is/no/kubectl"))


def test_the_api_server_of_a_cluster_that_was_given_stays() -> None:
    given = replace(OURS, is_ours=False)
    for operation in (api_server.take_away, partial(api_server.bring_back, kubectl=Path("/there/is/no/kubectl"))):
        with pytest.raises(ClusterError, match="is yours, and is not touched"):
            operation(given)


def test_only_kind_nodes_and_single_ones_have_one_clock() -> None:
    assert OURS.has_one_clock
    assert not replace(OURS, is_kind=False).has_one_clock
    assert replace(OURS, is_kind=False, nodes=("only",)).has_one_clock


class Reluctant:
    """An engine that can't freeze a container as often as that, and says why."""

    def __init__(self, refusals: int, why: str) -> None:
        self.asked, self._refusals, self._why = 0, refusals, why

    def output(self, arguments: list[str]) -> str:
        if arguments[:2] == ["container", "inspect"]:
            return "running"
        self.asked += 1
        if self.asked <= self._refusals:
            raise CommandFailed(["docker", *arguments], 1, None, self._why)
        return ""


BUSY = "Cannot pause container: OCI runtime pause failed: unable to freeze: unknown"


@pytest.mark.parametrize(
    ("refusals", "why", "asked", "fails"), [(2, BUSY, 3, False), (3, BUSY, 3, True), (1, "no such container", 1, True)]
)
def test_a_node_that_the_engine_could_not_freeze_for_a_moment_is_frozen_all_the_same(
    monkeypatch: pytest.MonkeyPatch, refusals: int, why: str, asked: int, fails: bool
) -> None:
    engine = Reluctant(refusals, why)
    monkeypatch.setattr(nodes, "_engine_of", lambda *_: engine)
    with pytest.raises(CommandFailed, match=why) if fails else contextlib.nullcontext():
        nodes.pause(OURS, "two-worker")
    assert engine.asked == asked
