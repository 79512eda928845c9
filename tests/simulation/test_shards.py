"""Two installations, each with a namespace of its own, whose claims lie in one place: on a bucket that both use one
run is alive at a time, which the judge sees to, and neither touches what is the other's.
"""

from __future__ import annotations

import pytest

from terrahalt_operator.core import names
from terrahalt_operator.reconciler import STATES_EVERY_S
from terrahalt_protocol.messages import Step
from tests.simulation.api_server import WATCHED
from tests.simulation.operators import NAMESPACE, Life
from tests.simulation.simulation import Setting
from tests.simulation.test_queue import BUCKET, Cluster
from tests.simulation.test_races import begin, finish, hear_agents

SHARDS = {"team-a": "ops-a", "team-b": "ops-b"}
"""The namespace that each watches -> the one that its operator is in."""


class Shards(Cluster):
    starts_in = "team-a"
    """Where the next operator watches."""

    def a_life(self, number: int) -> Life:
        home = SHARDS[self.starts_in]
        return Life(number, self.server, lambda: self.now, (self.starts_in,), self.counts, home)

    def starts(self, namespace: str) -> None:
        self.starts_in = namespace
        self.an_operator_starts(0)
        self.start_up(self.lives[-1])

    def dies(self, namespace: str) -> None:
        self._end(self.of(namespace))

    def of(self, namespace: str) -> Life:
        (life,) = [life for life in self.lives if life.leadership.namespace == SHARDS[namespace]]
        return life

    def hears(self, life: Life) -> None:
        for plural in WATCHED:
            life.watch(plural, 1_000)

    def rest(self) -> None:
        for _ in range(6):
            for number, life in enumerate(self.lives):
                self.hears(life)
                life.finish_all()
                while self.an_agent_is_dialled(number):
                    pass
            while self.a_kubelet_acts(0):
                pass
            while self.a_command_arrives(0):
                pass
            hear_agents(self)

    def seen(self, namespace: str) -> set[str]:
        """Tasks that its operator knows."""
        world = self.of(namespace).world
        assert not world.unreadable
        return {task.name for task in world.tasks.values.values()}


@pytest.fixture
def shards() -> Shards:
    """An idle agent waits in each."""
    shards = Shards(Setting(min_idle=1, max_agents=3))
    shards.start_up(shards.lives[0])
    shards.a_pool("team-b", "default", agents=1)
    shards.starts("team-b")
    shards.rest()
    return shards


def with_a_run(shards: Shards) -> None:
    """Of `first` in team-a; `second` in team-b waits for its state."""
    shards.a_task("first", backend=BUCKET)
    shards.rest()
    shards.goes_on("first", Step.PLAN)
    shards.a_task("second", namespace="team-b", backend=BUCKET)
    shards.rest()
    assert shards.claimed() == ["first"]
    assert shards.waits_for("second") == "workspace network, held by task team-a/first"


def test_of_two_shards_on_one_bucket_one_runs_and_the_other_follows_within_seconds_of_its_claims_end(
    shards: Shards,
) -> None:
    with_a_run(shards)
    shards.goes_on("first")
    assert (shards.phase("first"), shards.phase("second"), shards.claimed()) == ("Succeeded", "Queued", [])
    shards.later(STATES_EVERY_S)
    assert (shards.phase("second"), shards.claimed()) == ("Preparing", ["second"])
    shards.goes_on("second")
    assert (shards.phase("second"), shards.claimed()) == ("Succeeded", [])
    assert (shards.seen("team-a"), shards.seen("team-b")) == ({"first"}, {"second"})
    assert shards.locks.serials == {"states/network": 2}


def test_each_leads_by_a_lease_of_its_own_namespace_and_claims_where_both_do(shards: Shards) -> None:
    with_a_run(shards)
    leases = shards.server.kinds["leases"]
    assert {namespace for namespace, name in leases if name == names.LEADER_LEASE} == {"ops-a", "ops-b"}
    assert {namespace for namespace, name in leases if name.startswith("run-")} == {NAMESPACE}


def test_of_two_shards_that_claim_one_state_at_once_one_is_first_and_the_other_waits_for_it(shards: Shards) -> None:
    shards.a_task("first", backend=BUCKET)
    shards.a_task("second", namespace="team-b", backend=BUCKET)
    for namespace in SHARDS:
        life, pool = shards.of(namespace), ("pool", namespace, "default")
        shards.hears(life)
        begin(life, pool)
        while life.asks[pool].verb != "create":
            life.go_on(pool)
    assert shards.claimed() == []
    for namespace in reversed(SHARDS):
        finish(shards.of(namespace), ("pool", namespace, "default"))
    assert shards.claimed() == ["second"]
    shards.rest()
    assert shards.waits_for("first") == "workspace network, held by task team-b/second"
    shards.goes_on("second")
    shards.later(STATES_EVERY_S)
    assert (shards.phase("second"), shards.phase("first")) == ("Succeeded", "Preparing")


@pytest.mark.parametrize("task_is_there", [True, False])
def test_a_run_whose_operator_is_away_is_left_alone_by_the_other_one_and_found_again_by_its_own(
    shards: Shards, task_is_there: bool
) -> None:
    """Also where somebody took its task away, which for its own operator is a reason to end it."""
    with_a_run(shards)
    pod, run_id = shards.run_of("first")
    for namespace in SHARDS:
        shards.dies(namespace)
    if not task_is_there:
        shards._remove_by_force("team-a", "first")
    shards.starts("team-b")
    for _ in range(20):
        shards.later(STATES_EVERY_S)
        shards.of("team-b").relist()
    assert (shards.phase("second"), pod.is_run_alive(run_id)) == ("Queued", True)
    assert [lease["spec"]["holderIdentity"] for lease in shards.server.all("leases", NAMESPACE)] == [run_id]
    assert (shards.seen("team-b"), shards.of("team-b").sockets.wanted.keys() & {pod.uid}) == ({"second"}, set())
    shards.starts("team-a")
    shards.rest()
    while pod.is_run_alive(run_id):
        assert shards.a_run_goes_well_for_a_while(0) or shards.terraform_goes_on(0)
    shards.rest()
    shards.later(STATES_EVERY_S)
    assert shards.claimed() == ["second"]
