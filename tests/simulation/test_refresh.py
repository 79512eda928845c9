"""A refresh of credentials between the real cores of operator and agent: who is asked, and what is counted."""

from __future__ import annotations

from typing import Any

from terrahalt_operator.core.credentials import refresh_id
from terrahalt_protocol.messages import Step
from tests.simulation.pods import READING, Pod
from tests.simulation.test_queue import Cluster, a_cluster


def planning() -> tuple[Cluster, Pod]:
    """One of the agents has a run, which plans."""
    cluster = a_cluster()
    cluster.a_task("network")
    cluster.rest()
    cluster.goes_on("network", Step.PLAN)
    cluster.later(2.0)
    return cluster, cluster.run_of("network")[0]


def settle(cluster: Cluster) -> None:
    """A pool's status is written once a second: the last answer may have to wait for the next time."""
    for _ in range(2):
        cluster.later(2.0)


def ask(cluster: Cluster, value: str) -> None:
    annotations = {"terrahalt.dev/refresh-credentials": value}
    cluster.server.change("agentpools", "team-a", "default", {"metadata": {"annotations": annotations}})
    settle(cluster)


def reading(pod: Pod) -> list[str]:
    """The refreshes for which its adapter reads right now."""
    return [what.removeprefix(READING) for _, what in pod.jobs if what.startswith(READING)]


def counted(cluster: Cluster) -> tuple[str, int]:
    """Of which refresh, and how many agents have not acknowledged it."""
    found: dict[str, Any] = cluster.server.of("agentpools", "team-a", "default")["status"]["credentials"]
    return found["refresh"], found["requested"] - found["acknowledged"]


def test_the_agent_with_the_run_is_counted_once_it_has_read_and_a_restarted_operator_asks_nobody_again() -> None:
    cluster, pod = planning()
    ask(cluster, "monday")
    assert reading(pod) == [refresh_id("monday")]
    assert counted(cluster) == ("monday", 1), "the idle ones hold nothing that is old"
    pod.finish(0)
    settle(cluster)
    assert counted(cluster) == ("monday", 0)
    cluster.an_operator_dies(0)
    cluster.an_operator_starts_where_none_is(0)
    settle(cluster)
    assert pod.uid in cluster.life.sockets.connections
    assert reading(pod) == []
    assert not any(session.sent_refresh for session in map(cluster.life.sockets.session, cluster.pods) if session)
    assert counted(cluster) == ("monday", 0)


def test_a_refresh_that_was_asked_for_while_no_operator_was_there_is_carried_out_by_the_next_one() -> None:
    cluster, pod = planning()
    cluster.an_operator_dies(0)
    annotations = {"terrahalt.dev/refresh-credentials": "tuesday"}
    cluster.server.change("agentpools", "team-a", "default", {"metadata": {"annotations": annotations}})
    cluster.an_operator_starts_where_none_is(0)
    settle(cluster)
    assert reading(pod) == [refresh_id("tuesday")]
    assert counted(cluster) == ("tuesday", 1)


def test_what_can_not_be_read_is_in_the_pools_condition_until_it_can() -> None:
    cluster, pod = planning()
    ask(cluster, "monday")
    pod.finish(0, well=False)
    settle(cluster)
    conditions = cluster.server.of("agentpools", "team-a", "default")["status"]["conditions"]
    (told,) = [c for c in conditions if c["type"] == "CredentialsRefreshed"]
    assert (told["status"], told["reason"]) == ("False", "NotAcknowledged")
    assert told["message"] == f"agent {pod.name}: the API server does not answer"
    cluster.later(5.0)
    assert reading(pod) == [refresh_id("monday")], "it tries again"
    pod.finish(0)
    settle(cluster)
    assert counted(cluster) == ("monday", 0)


def test_an_agent_that_comes_later_counts_as_one_that_has_read() -> None:
    cluster, pod = planning()
    ask(cluster, "monday")
    pod.finish(0)
    cluster.ends("network")
    cluster.later(120.0)
    assert set(cluster.life.sockets.connections).isdisjoint({pod.uid})
    assert len(cluster.life.sockets.connections) >= 2
    assert counted(cluster) == ("monday", 0)
