"""Who gets the next task, which agents are made and which are taken away: whole action lists."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from terrahalt_operator.core.actions import (
    AddPoolFinalizer,
    CreateAgents,
    CreateBudget,
    CreateClaim,
    DeleteAgent,
    DeleteBudget,
    LabelAgent,
    RemoveAgentFinalizer,
    RemovePoolFinalizer,
    Send,
    UnlabelAgent,
)
from terrahalt_operator.core.identity import claim_name, label_value
from terrahalt_operator.core.model import DrainPolicy, Queueing
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot
from terrahalt_operator.core.retire import (
    CLOCKS_DIFFER_S,
    KEPT_ENDED,
    REACHED_WITHIN_S,
    TOLD_AGAIN_AFTER_S,
    TURNED_AWAY_AFTER_S,
)
from terrahalt_operator.core.schedule import (
    BEGINS_WITHIN_S,
    CREATE_AGAIN_AFTER_S,
    ENDS_WITHIN_S,
    SHOWN_POSITIONS,
    START_BACKOFF_S,
    STARTED_WITHIN_S,
    PoolCounts,
    Problem,
    schedule,
)
from terrahalt_protocol.messages import Leave
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, a_busy, a_pool, a_pool_snapshot, a_view, a_waiting, an_idle


def claimed(task_number: int, view: AgentView) -> CreateClaim:
    assert view.session is not None
    return CreateClaim(a_waiting(task_number), view.agent, view.session.fingerprint)


# ---- who is next


def test_first_come_is_first_served_by_the_agent_that_waited_longest() -> None:
    p = a_pool_snapshot(agents=(an_idle(2), an_idle(1)), waiting=(a_waiting(1), a_waiting(2)))
    assert schedule(p, NOW).actions == (claimed(1, an_idle(1)), claimed(2, an_idle(2)))


def test_who_comes_too_late_for_an_agent_waits_for_one_to_start() -> None:
    p = a_pool_snapshot(agents=(an_idle(1),), waiting=(a_waiting(1), a_waiting(2)))
    decision = schedule(p, NOW)
    assert decision.actions == (claimed(1, an_idle(1)), CreateAgents(1))
    assert decision.queueing == {"task-2": Queueing(position=1, waiting_for="an agent of pool default to start")}
    assert decision.counts == PoolCounts(agents=2, idle=0, busy=1, starting=1, queued=1)


def test_one_run_per_workspace_also_within_one_decision() -> None:
    older, younger = a_waiting(1, "network"), a_waiting(2, "network")
    p = a_pool_snapshot(agents=(an_idle(1), an_idle(2)), waiting=(older, younger))
    decision = schedule(p, NOW)
    assert [a.task.uid for a in decision.actions if isinstance(a, CreateClaim)] == ["task-1"]
    assert decision.queueing["task-2"].waiting_for == "workspace network, held by task task-1"


def test_a_held_workspace_is_waited_for_by_the_name_of_its_holder() -> None:
    name = claim_name("team-a", "network")
    p = a_pool_snapshot(agents=(an_idle(1),), waiting=(a_waiting(1, "network"),), holders={name: "network-6"})
    decision = schedule(p, NOW)
    assert not any(isinstance(a, CreateClaim) for a in decision.actions)
    assert decision.queueing["task-1"].waiting_for == "workspace network, held by task network-6"


def test_a_task_that_does_not_fit_into_its_pools_pods_gets_no_agent_and_none_is_made_for_it() -> None:
    misfit = a_waiting(1, cancel_grace_seconds=301)
    decision = schedule(a_pool_snapshot(agents=(an_idle(1),), waiting=(misfit, a_waiting(2))), NOW)
    assert decision.actions == (claimed(2, an_idle(1)),)
    assert "terminationGracePeriodSeconds of pool default is 403" in decision.queueing["task-1"].waiting_for


def test_an_agent_that_was_made_with_a_shorter_grace_gets_only_what_fits_into_its_own_pod() -> None:
    pool = a_pool(termination_grace_s=703)
    long, short = a_waiting(1, cancel_grace_seconds=600), a_waiting(2)
    old, new = an_idle(1, template_hash="old"), an_idle(2, termination_grace_s=703)
    decision = schedule(a_pool_snapshot(pool=pool, agents=(old,), waiting=(long, short)), NOW)
    assert decision.actions == (claimed(2, old), CreateAgents(1))
    decision = schedule(a_pool_snapshot(pool=pool, agents=(old, new), waiting=(long,)), NOW)
    assert decision.actions[0] == CreateClaim(long, new.agent, "sha256:2")


def test_a_blocked_head_does_not_block_the_others() -> None:
    name = claim_name("team-a", "network")
    waiting = (a_waiting(1, "network"), a_waiting(2))
    decision = schedule(a_pool_snapshot(agents=(an_idle(1),), waiting=waiting, holders={name: "network-6"}), NOW)
    assert decision.actions == (claimed(2, an_idle(1)),)
    assert decision.queueing["task-1"].position == 1


def test_the_older_task_of_a_workspace_goes_first_also_from_another_pool() -> None:
    first = {claim_name("team-a", "network"): "task-of-another-pool"}
    p = a_pool_snapshot(agents=(an_idle(1),), waiting=(a_waiting(1, "network"),), first_in_line=first)
    decision = schedule(p, NOW)
    assert not any(isinstance(a, CreateClaim) for a in decision.actions)
    assert decision.queueing["task-1"].waiting_for == "workspace network, another task is first"


def test_the_same_workspace_of_another_namespace_is_another() -> None:
    holders = {claim_name("team-b", "network"): "network-6"}
    p = a_pool_snapshot(agents=(an_idle(1),), waiting=(a_waiting(1, "network"),), holders=holders)
    assert any(isinstance(a, CreateClaim) for a in schedule(p, NOW).actions)


@pytest.mark.parametrize(
    "view",
    [
        a_view(1),
        a_view(1, session=b.holding("01OTHER")),
        a_view(1, session=b.a_session(is_used=True)),
        a_view(1, session=b.a_session(sent_start="01OTHER")),
        a_view(1, session=b.a_session(mismatch="another protocol")),
        an_idle(1, is_deleting=True),
        replace(an_idle(1), claim=b.a_claim()),
        an_idle(1, phase="Failed", ended=b.an_end()),
    ],
    ids=["starting", "holding", "used", "started", "mismatch", "deleting", "claimed", "ended"],
)
def test_only_a_fresh_connected_agent_is_given_a_task(view: AgentView) -> None:
    decision = schedule(a_pool_snapshot(agents=(view,), waiting=(a_waiting(1),)), NOW)
    assert not any(isinstance(a, CreateClaim) for a in decision.actions)
    assert "task-1" in decision.queueing


def test_only_the_head_of_the_queue_is_told_its_position() -> None:
    waiting = tuple(a_waiting(n) for n in range(1, 31))
    queueing = schedule(a_pool_snapshot(waiting=waiting, pool=a_pool(max_agents=0)), NOW).queueing
    positions = [queueing[f"task-{n}"].position for n in range(1, 31)]
    assert positions == [*range(1, SHOWN_POSITIONS + 1), *[None] * (30 - SHOWN_POSITIONS)]


def test_what_a_task_far_behind_waits_for_stays_the_same_while_the_head_moves() -> None:
    ahead = tuple(a_waiting(n) for n in range(1, SHOWN_POSITIONS + 1))
    behind = (a_waiting(98, "network"), a_waiting(99))
    name = claim_name("team-a", "network")
    moments = (
        a_pool_snapshot(waiting=(*ahead, *behind), holders={name: "network-1"}, pool=a_pool(max_agents=0)),
        a_pool_snapshot(waiting=(*ahead, *behind), holders={name: "team-b/network-2"}),
        a_pool_snapshot(waiting=(*ahead, *behind), first_in_line={name: "task-of-another-pool"}),
    )
    for p in moments:
        queueing = schedule(p, NOW).queueing
        assert queueing["task-98"] == Queueing(position=None, waiting_for="workspace network, other tasks are first")
        reason = "an agent of pool default, at least 20 tasks are first"
        assert queueing["task-99"] == Queueing(position=None, waiting_for=reason)


def test_a_pool_that_is_not_there_is_told_to_all_that_wait_for_it() -> None:
    waiting = tuple(a_waiting(n) for n in range(1, SHOWN_POSITIONS + 2))
    reasons = {q.waiting_for for q in schedule(a_pool_snapshot(waiting=waiting, pool=None), NOW).queueing.values()}
    assert reasons == {"pool default, which does not exist in namespace team-a: create it"}


def test_a_full_pool_says_so() -> None:
    p = a_pool_snapshot(pool=a_pool(max_agents=1), agents=(a_busy(1),), waiting=(a_waiting(1),))
    decision = schedule(p, NOW)
    assert decision.actions == ()
    text = "a free agent of pool default: all 1 of at most 1 are busy or starting"
    assert decision.queueing["task-1"] == Queueing(position=1, waiting_for=text)


# ---- making agents


def test_the_standbys_are_made_before_anyone_waits() -> None:
    assert schedule(a_pool_snapshot(pool=a_pool(min_idle=2)), NOW).actions == (CreateAgents(2),)


def test_a_standby_that_was_given_away_is_made_up_for_once_its_run_has_begun() -> None:
    pool = a_pool(min_idle=1)
    given = schedule(a_pool_snapshot(pool=pool, agents=(an_idle(1),), waiting=(a_waiting(1),)), NOW)
    assert given.actions == (claimed(1, an_idle(1)),)
    assert (given.is_brief, given.wake_after_s) == (True, BEGINS_WITHIN_S)

    unlabelled = a_pool_snapshot(pool=pool, agents=(a_busy(1, task_label=""),), begins_at=NOW)
    soon, later = schedule(unlabelled, NOW + BEGINS_WITHIN_S / 2), schedule(unlabelled, NOW + BEGINS_WITHIN_S)
    assert (soon.actions, soon.is_brief, soon.wake_after_s) == ((), True, BEGINS_WITHIN_S / 2)
    assert [type(action) for action in later.actions] == [LabelAgent, CreateAgents]
    assert (later.is_brief, later.wake_after_s) == (False, None)


def test_an_agent_that_a_task_waits_for_is_made_although_a_run_begins() -> None:
    p = a_pool_snapshot(pool=a_pool(min_idle=1), agents=(an_idle(1),), waiting=(a_waiting(1), a_waiting(2, "other")))
    given = schedule(p, NOW)
    assert given.actions == (claimed(1, an_idle(1)), CreateAgents(2))
    assert given.is_brief


def test_runs_that_go_on_beginning_hold_nothing_up_for_longer_than_one() -> None:
    p = a_pool_snapshot(
        pool=a_pool(min_idle=1), agents=(an_idle(1),), waiting=(a_waiting(1),), begins_at=NOW - BEGINS_WITHIN_S
    )
    assert schedule(p, NOW).actions == (claimed(1, an_idle(1)), CreateAgents(1))
    assert not schedule(p, NOW).is_brief


def test_agents_that_start_already_count() -> None:
    p = a_pool_snapshot(pool=a_pool(min_idle=1), agents=(a_view(1), a_view(2)), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == ()


def test_there_are_never_more_than_max_agents() -> None:
    waiting = tuple(a_waiting(n) for n in range(9))
    p = a_pool_snapshot(pool=a_pool(max_agents=4), agents=(a_busy(1), a_busy(2)), waiting=waiting)
    assert schedule(p, NOW).actions == (CreateAgents(2),)
    over_full = a_pool_snapshot(pool=a_pool(max_agents=1), agents=(a_busy(1), a_busy(2)), waiting=waiting)
    assert schedule(over_full, NOW).actions == ()


def test_pods_that_are_over_take_no_room() -> None:
    over = a_view(1, ended=b.an_end(), phase="Succeeded", last_task_label="x", has_finalizer=False)
    p = a_pool_snapshot(pool=a_pool(max_agents=1), agents=(over,), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (CreateAgents(1),)


def test_no_agent_is_made_for_a_task_that_its_workspace_holds_up() -> None:
    waiting = (a_waiting(1, "network"), a_waiting(2, "network"))
    holders = {claim_name("team-a", "network"): "network-6"}
    assert schedule(a_pool_snapshot(waiting=waiting, holders=holders), NOW).actions == ()
    assert schedule(a_pool_snapshot(waiting=waiting), NOW).actions == (CreateAgents(1),)


@pytest.mark.parametrize("failed", range(1, 9))
def test_after_failed_starts_the_next_agent_waits(failed: int) -> None:
    backoff_s = START_BACKOFF_S[min(failed, len(START_BACKOFF_S) - 1)]
    p = a_pool_snapshot(
        pool=a_pool(min_idle=1),
        failed_starts=failed,
        last_failed_start_at=NOW,
        last_failed_start="Error: tofu is missing",
    )
    early = schedule(p, NOW + backoff_s - 1)
    assert (early.actions, early.wake_after_s) == ((), 1.0)
    assert schedule(p, NOW + backoff_s).actions == (CreateAgents(1),)
    text = f"the last {failed} agents ended before they had a task: Error: tofu is missing"
    assert early.problem == Problem("AgentsDoNotStart", text)
    assert early.queueing == {}
    assert schedule(replace(p, agents=(an_idle(1),)), NOW).problem is None, "one that waits has started well"


def test_an_agent_that_a_quota_refuses_is_tried_again_while_one_is_missing_and_everybody_is_told() -> None:
    refusal = "403 pods is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3"
    p = a_pool_snapshot(waiting=(a_waiting(1),), refused=refusal, refused_at=NOW)
    early = schedule(p, NOW + 1)
    told = f"agents can't be created: {refusal}"
    assert (early.actions, early.wake_after_s) == ((), CREATE_AGAIN_AFTER_S - 1)
    assert early.problem == Problem("QuotaExceeded", told)
    assert early.queueing["task-1"].waiting_for == f"an agent of pool default: {told}"
    assert schedule(p, NOW + CREATE_AGAIN_AFTER_S).actions == (CreateAgents(1),)
    served = replace(p, agents=(an_idle(1),))
    assert schedule(served, NOW + 1).problem is None, "nobody needs the one that was refused"
    full = replace(p, agents=(a_busy(1),), pool=a_pool(max_agents=1))
    assert schedule(full, NOW + 1).queueing["task-1"].waiting_for.endswith("all 1 of at most 1 are busy or starting")


def test_a_pod_that_is_refused_for_another_reason_is_no_matter_of_quota() -> None:
    p = a_pool_snapshot(pool=a_pool(min_idle=1), refused="403 violates PodSecurity", refused_at=NOW)
    told = "agents can't be created: 403 violates PodSecurity"
    assert schedule(p, NOW).problem == Problem("PodsRefused", told)


def test_an_agent_whose_container_does_not_start_is_named() -> None:
    p = a_pool_snapshot(agents=(a_view(3, waiting_reason="ErrImagePull: no such image"),), waiting=(a_waiting(1),))
    told = "agent pod default-agent-3 does not start: ErrImagePull: no such image"
    assert schedule(p, NOW).problem == Problem("AgentsDoNotStart", told)
    assert schedule(p, NOW).queueing["task-1"].waiting_for == f"an agent of pool default: {told}"


def test_an_agent_for_which_no_node_has_room_says_so_in_the_schedulers_words() -> None:
    p = a_pool_snapshot(agents=(a_view(3, waiting_reason="Unschedulable: 0/2 nodes are available"),))
    told = "agent pod default-agent-3 does not start: Unschedulable: 0/2 nodes are available"
    assert schedule(p, NOW).problem == Problem("Unschedulable", told)


# ---- taking agents away


def test_standbys_above_min_idle_go_the_youngest_first() -> None:
    pool = a_pool(min_idle=1, idle_timeout_s=20)
    p = a_pool_snapshot(pool=pool, agents=(an_idle(1), an_idle(2), an_idle(3)))
    decision = schedule(p, NOW)
    assert decision.actions == (DeleteAgent(an_idle(2).agent), DeleteAgent(an_idle(3).agent))
    assert decision.counts.idle == 1, "whoever goes no longer waits for a task"


def test_a_standby_above_min_idle_waits_for_its_idle_timeout_from_when_it_was_connected() -> None:
    early = a_view(1, session=b.a_session(since=NOW - 50))
    late = a_view(2, session=b.a_session(since=NOW - 10))
    p = a_pool_snapshot(pool=a_pool(idle_timeout_s=60), agents=(early, late))
    decision = schedule(p, NOW)
    assert (decision.actions, decision.wake_after_s, decision.counts.idle) == ((), 10.0, 2)
    decision = schedule(p, NOW + 10)
    assert (decision.actions, decision.wake_after_s) == ((DeleteAgent(early.agent),), 40.0)
    kept = replace(p, pool=a_pool(idle_timeout_s=60, min_idle=2))
    assert schedule(kept, NOW + 3600).actions == ()


def test_an_agent_that_never_gets_a_node_is_not_waited_for_once_nobody_needs_it() -> None:
    stuck = a_view(1, container_id="", phase="Pending", waiting_reason="Unschedulable", created_at=NOW)
    p = a_pool_snapshot(pool=a_pool(idle_timeout_s=60), agents=(stuck,))
    assert (schedule(p, NOW).actions, schedule(p, NOW).wake_after_s) == ((), 60.0)
    assert schedule(p, NOW + 60).actions == (DeleteAgent(stuck.agent),)
    needed = replace(p, waiting=(a_waiting(1),))
    assert schedule(needed, NOW + 60).actions == ()
    slow = replace(p, agents=(a_view(1, created_at=NOW),))
    assert schedule(slow, NOW + 60).actions == (), "one that can start is let to"


def test_an_agent_whose_container_was_made_and_never_started_gives_its_place_to_another_one() -> None:
    made = a_view(1, phase="Pending", is_running=False, unstarted_since=NOW)
    p = a_pool_snapshot(pool=a_pool(min_idle=1, max_agents=2), agents=(made,))
    before = schedule(p, NOW + STARTED_WITHIN_S - 1)
    assert (before.actions, before.counts.starting, before.wake_after_s) == ((), 1, 1.0)
    after = schedule(p, NOW + STARTED_WITHIN_S)
    assert (after.actions, after.counts.starting) == ((DeleteAgent(made.agent), CreateAgents(1)), 1)
    only = replace(p, pool=a_pool(min_idle=1, max_agents=1), waiting=(a_waiting(1),))
    assert schedule(only, NOW + STARTED_WITHIN_S).actions == (DeleteAgent(made.agent),), "then there is room"


def test_a_busy_agent_is_not_counted_among_those_that_wait() -> None:
    p = a_pool_snapshot(pool=a_pool(min_idle=1, idle_timeout_s=1), agents=(a_busy(1), an_idle(2)))
    assert schedule(p, NOW + 3600).actions == ()


def test_idle_agents_of_an_old_template_go_as_soon_as_one_of_the_new_one_was_taken() -> None:
    old = an_idle(1, template_hash="old"), an_idle(2, template_hash="old")
    p = a_pool_snapshot(pool=a_pool(min_idle=2), agents=old)
    assert schedule(p, NOW).actions == (CreateAgents(2),)
    taken = replace(p, agents=(*old, a_view(3), a_view(4)))
    assert schedule(taken, NOW).actions == (DeleteAgent(old[0].agent), DeleteAgent(old[1].agent))


def test_idle_agents_of_an_old_template_stay_while_the_api_server_refuses_those_of_the_new_one() -> None:
    refused = {"refused": '403 violates PodSecurity "restricted"', "refused_at": NOW}
    old = an_idle(1, template_hash="old"), an_idle(2, template_hash="old")
    for max_agents in (10, 2):
        p = a_pool_snapshot(pool=a_pool(min_idle=2, max_agents=max_agents), agents=old, **refused)
        assert schedule(p, NOW).actions == ()
    unwanted = a_pool_snapshot(pool=a_pool(min_idle=0), agents=old, **refused)
    assert [type(action) for action in schedule(unwanted, NOW).actions] == [DeleteAgent, DeleteAgent]


def test_a_full_pool_risks_one_agent_to_see_whether_the_new_template_is_taken() -> None:
    old = an_idle(1, template_hash="old"), an_idle(2, template_hash="old")
    p = a_pool_snapshot(pool=a_pool(min_idle=2, max_agents=2), agents=old)
    assert schedule(p, NOW).actions == (DeleteAgent(old[0].agent),)
    going = an_idle(1, template_hash="old", is_deleting=True)
    assert schedule(replace(p, agents=(going, old[1])), NOW).actions == ()
    assert schedule(replace(p, agents=(old[1],)), NOW).actions == (CreateAgents(1),)


def test_agents_of_an_old_template_make_room_in_a_quota() -> None:
    old = an_idle(1, template_hash="old")
    p = a_pool_snapshot(pool=a_pool(min_idle=1), agents=(old,), refused="403 exceeded quota: pods", refused_at=NOW - 1)
    assert schedule(p, NOW).actions == (DeleteAgent(old.agent),)


def test_agents_of_the_present_template_are_given_away_first() -> None:
    old, new = an_idle(1, template_hash="old"), an_idle(2)
    p = a_pool_snapshot(agents=(old, new), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (claimed(1, new), DeleteAgent(old.agent))


def test_an_agent_of_an_old_template_gets_no_task_after_its_first_one() -> None:
    had_one = an_idle(1, template_hash="old", last_task_label="task-0")
    p = a_pool_snapshot(pool=a_pool(max_tasks_per_agent=2), agents=(had_one,), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (CreateAgents(1),)
    assert schedule(replace(p, agents=(had_one, a_view(2))), NOW).actions == (DeleteAgent(had_one.agent),)
    current = an_idle(1, last_task_label="task-0")
    assert schedule(replace(p, agents=(current,)), NOW).actions == (claimed(1, current),)


def test_an_agent_that_takes_no_other_run_has_its_label_until_it_has_ended_or_takes_too_long() -> None:
    """One write takes the label and the finalizer off."""
    labels: dict[str, Any] = {"task_label": "task-0", "run_label": "01BEFORE", "last_task_label": "task-0"}
    for session in (b.a_session(is_used=True), None):
        ends = replace(a_view(1, session=session, **labels), released_at=NOW)
        p = a_pool_snapshot(pool=a_pool(min_idle=0), agents=(ends,))
        before, after = schedule(p, NOW + 1), schedule(p, NOW + ENDS_WITHIN_S)
        assert (before.actions, before.wake_after_s) == ((), ENDS_WITHIN_S - 1)
        assert after.actions == (UnlabelAgent(ends.agent),)
        over = replace(ends, agent=replace(ends.agent, ended=b.an_end()))
        assert schedule(replace(p, agents=(over,)), NOW + 1).actions == (UnlabelAgent(over.agent),)
    again = replace(an_idle(1, **labels), released_at=NOW)
    assert schedule(replace(p, agents=(again,)), NOW + 1).actions == (UnlabelAgent(again.agent),)


def test_an_agent_that_is_given_the_next_task_at_once_is_not_unlabelled_in_between() -> None:
    back = an_idle(1, last_task_label="task-0", task_label="task-0", run_label="01BEFORE")
    p = a_pool_snapshot(agents=(back,), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (claimed(1, back),)
    assert schedule(replace(p, waiting=()), NOW).actions == (UnlabelAgent(back.agent),)


def test_an_agent_that_may_come_back_is_neither_idle_nor_taken_away() -> None:
    cleaning = a_view(1, session=b.a_session(is_used=True), last_task_label="task-0")
    decision = schedule(a_pool_snapshot(pool=a_pool(idle_timeout_s=0), agents=(cleaning,)), NOW)
    assert (decision.actions, decision.counts.idle, decision.counts.agents) == ((), 0, 1)


def test_an_agent_whose_key_is_not_known_from_before_its_first_run_is_replaced() -> None:
    unknown = a_view(1, session=b.a_session(mismatch="its key was not known before its first run"))
    p = a_pool_snapshot(pool=a_pool(min_idle=1), agents=(unknown,), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (DeleteAgent(unknown.agent), CreateAgents(2))


def test_an_agent_of_an_old_template_that_can_not_start_makes_room() -> None:
    """Else a pool that is full of pods with a wrong image never recovers once the image is put right."""
    stuck = a_view(1, template_hash="old", container_id="", phase="Pending", waiting_reason="ErrImagePull")
    p = a_pool_snapshot(pool=a_pool(max_agents=1), agents=(stuck,), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (DeleteAgent(stuck.agent),)


def test_an_agent_of_an_old_template_is_let_to_start_before_it_goes() -> None:
    """One of a former version that is told to end before it listens goes on for all of its pod's grace."""
    starts = a_view(1, template_hash="old", created_at=NOW - REACHED_WITHIN_S + 5)
    p = a_pool_snapshot(pool=a_pool(max_agents=1), agents=(starts,), waiting=(a_waiting(1),))
    assert (schedule(p, NOW).actions, schedule(p, NOW).wake_after_s) == ((), 5.0)
    assert schedule(p, NOW + 5).actions == (DeleteAgent(starts.agent),)
    listens = replace(p, agents=(an_idle(1, template_hash="old"),), waiting=())
    assert schedule(listens, NOW).actions == (DeleteAgent(listens.agents[0].agent),)


def test_no_task_is_given_to_an_agent_of_another_engine_than_its_pools() -> None:
    other = an_idle(1, engine="Terraform", template_hash="old")
    p = a_pool_snapshot(pool=a_pool(engine="OpenTofu"), agents=(other,), waiting=(a_waiting(1),))
    decision = schedule(p, NOW)
    assert decision.actions == (CreateAgents(1),)
    assert decision.queueing["task-1"].waiting_for == "an agent of pool default to start"


def test_without_an_image_of_its_engine_a_pool_makes_no_agent_and_says_what_to_do() -> None:
    p = a_pool_snapshot(pool=a_pool(engine="OpenTofu", min_idle=1), waiting=(a_waiting(1),), has_image=False)
    decision = schedule(p, NOW)
    todo = (
        "no image of OpenTofu agents is known: set spec.image of the pool, or agent.openTofu.image in the "
        "chart's values"
    )
    assert decision.actions == ()
    assert decision.problem == Problem("NoImage", todo, is_lasting=True)
    assert decision.queueing["task-1"].waiting_for == f"an agent of pool default: {todo}"


def test_a_refused_pod_template_makes_no_agents_and_takes_none_away_that_can_still_run_a_task() -> None:
    old = an_idle(1, template_hash="old")
    refusal = "spec.hostPID: hostPID would give every task the processes of its node: leave it out"
    p = a_pool_snapshot(pool=a_pool(min_idle=2), agents=(old,), refused_template=refusal)
    text = f"no agents are made by this podTemplate: {refusal}"
    told = Problem("PodTemplateRefused", text, is_lasting=True)
    assert (schedule(p, NOW).actions, schedule(p, NOW).problem) == ((), told)
    two = replace(p, waiting=(a_waiting(1), a_waiting(2)))
    decision = schedule(two, NOW)
    assert decision.actions == (claimed(1, old),)
    assert decision.queueing["task-2"].waiting_for == f"an agent of pool default: {told.message}"


def test_busy_agents_of_an_old_template_finish() -> None:
    p = a_pool_snapshot(agents=(a_busy(1, template_hash="old"),))
    assert schedule(p, NOW).actions == ()


def test_a_spent_agent_that_nobody_claims_is_taken_away_and_one_that_leaves_by_itself_is_not() -> None:
    unclaimed, leaving = a_view(1, session=b.holding()), a_view(2, session=b.a_session(is_used=True))
    p = a_pool_snapshot(agents=(unclaimed, leaving))
    assert schedule(p, NOW).actions == (DeleteAgent(unclaimed.agent),)


def test_an_agent_of_another_version_is_replaced() -> None:
    other = a_view(1, session=b.a_session(mismatch="another protocol"))
    p = a_pool_snapshot(pool=a_pool(min_idle=1), agents=(other,))
    assert schedule(p, NOW).actions == (DeleteAgent(other.agent), CreateAgents(1))


# ---- agents that nobody can speak to


def test_an_agent_that_runs_and_can_not_be_connected_to_is_told_once_it_had_its_time() -> None:
    view = replace(a_view(1, created_at=NOW - REACHED_WITHIN_S + 1), unreached="no answer in time")
    p = a_pool_snapshot(agents=(view,), waiting=(a_waiting(1),))
    early, late = schedule(p, NOW), schedule(p, NOW + 1)
    assert (early.problem, early.wake_after_s) == (None, 1)
    text = "agent pod default-agent-1 runs, and can't be connected to: no answer in time"
    assert late.problem == Problem("AgentsNotReached", text)
    assert late.queueing["task-1"].waiting_for == f"an agent of pool default: {text}"


@pytest.mark.parametrize("changes", [{"is_running": False}, {"unreached": ""}])
def test_one_that_does_not_run_yet_or_was_not_tried_is_no_such_problem(changes: dict[str, Any]) -> None:
    view = a_view(1, created_at=NOW - 2 * REACHED_WITHIN_S, is_running=changes.get("is_running", True))
    view = replace(view, unreached=changes.get("unreached", "no answer in time"))
    assert schedule(a_pool_snapshot(pool=a_pool(min_idle=1), agents=(view,)), NOW).problem is None


# ---- evictions


def test_a_pool_whose_drains_wait_has_its_budget_before_it_gives_a_run_away() -> None:
    pool = a_pool(drain_policy=DrainPolicy.WAIT)
    p = a_pool_snapshot(pool=pool, agents=(an_idle(1),), waiting=(a_waiting(1),))
    assert schedule(p, NOW).actions == (CreateBudget(pool), claimed(1, an_idle(1)))
    assert schedule(replace(p, has_budget=True), NOW).actions == (claimed(1, an_idle(1)),)


def test_a_budget_that_was_refused_is_told_and_tried_again_now_and_then_and_nothing_waits_for_it() -> None:
    pool = a_pool(drain_policy=DrainPolicy.WAIT)
    refused = {"refused_budget": "403 forbidden", "refused_budget_at": NOW - 1}
    p = a_pool_snapshot(pool=pool, agents=(an_idle(1),), waiting=(a_waiting(1), a_waiting(2)), **refused)
    decision = schedule(p, NOW)
    assert decision.actions == (claimed(1, an_idle(1)), CreateAgents(1))
    assert decision.problem == Problem("DrainNotGuarded", "a drain would not wait for its runs: 403 forbidden")
    assert decision.queueing["task-2"].waiting_for == "an agent of pool default to start", "not for the budget"
    idle = replace(p, agents=(), waiting=())
    assert schedule(idle, NOW).wake_after_s == CREATE_AGAIN_AFTER_S - 1
    assert schedule(idle, NOW + CREATE_AGAIN_AFTER_S - 1).actions == (CreateBudget(pool),)
    assert schedule(replace(idle, has_budget=True), NOW).problem is None
    ladder = replace(idle, pool=a_pool())
    assert schedule(ladder, NOW).problem is None, "nobody asks for it any more"


def test_a_pool_whose_drains_do_not_wait_any_more_loses_its_budget() -> None:
    p = a_pool_snapshot(agents=(a_busy(1),), has_budget=True)
    assert schedule(p, NOW).actions == (DeleteBudget(a_pool()),)
    assert schedule(replace(p, has_budget=False), NOW).actions == ()


def test_a_pool_that_goes_keeps_the_budget_of_its_runs() -> None:
    going = a_pool(drain_policy=DrainPolicy.WAIT, is_deleting=True)
    for pool in (going, None):
        assert schedule(a_pool_snapshot(pool=pool, agents=(a_busy(1),), has_budget=True), NOW).actions == ()
    lost = a_pool_snapshot(pool=going, agents=(a_busy(1),))
    assert schedule(lost, NOW).actions == (CreateBudget(going),)


# ---- pods whose end was seen


def an_ended(number: int, **pod: Any) -> AgentView:
    plain: dict[str, Any] = {
        "phase": "Succeeded",
        "is_running": False,
        "ended": b.an_end(),
        "last_task_label": f"task-{number}",
    }
    return a_view(number, **{**plain, **pod})


def test_the_latest_ended_pods_are_kept_for_their_logs_without_finalizer() -> None:
    over = tuple(an_ended(n) for n in range(KEPT_ENDED + 2))
    actions = schedule(a_pool_snapshot(agents=over), NOW).actions
    assert [a.agent for a in actions if isinstance(a, RemoveAgentFinalizer)] == [v.agent for v in over]
    assert [a.agent for a in actions if isinstance(a, DeleteAgent)] == [over[0].agent, over[1].agent]


def test_a_pod_that_ended_without_a_task_goes_at_once() -> None:
    over = an_ended(1, last_task_label="")
    expected = (RemoveAgentFinalizer(over.agent), DeleteAgent(over.agent))
    assert schedule(a_pool_snapshot(agents=(over,)), NOW).actions == expected


def test_an_ended_pod_keeps_its_finalizer_while_it_is_claimed() -> None:
    """Its end is the evidence that its task still has to see."""
    over = replace(an_ended(1, is_deleting=True, task_label="busy"), claim=b.a_claim(a_waiting(1)))
    over = replace(over, agent=replace(over.agent, task_label="task-1", run_label=b.RUN))
    assert schedule(a_pool_snapshot(agents=(over,)), NOW).actions == ()


def test_an_ended_pod_with_a_run_that_nobody_here_knows_keeps_it_until_its_label_is_off() -> None:
    """Another operator may have claimed it: that is asked for before the label goes."""
    over = an_ended(1, is_deleting=True, run_label=b.RUN)
    assert schedule(a_pool_snapshot(agents=(over,)), NOW).actions == (UnlabelAgent(over.agent),)


def test_a_deleted_pod_whose_end_was_not_seen_keeps_its_finalizer() -> None:
    alive = an_idle(1, is_deleting=True)
    assert schedule(a_pool_snapshot(agents=(alive,)), NOW).actions == ()


def told_to_end(view: AgentView, *, since_s: float = 60, **pod: Any) -> AgentView:
    agent = replace(view.agent, is_deleting=True, deleted_at=NOW - since_s, **pod)
    return replace(view, agent=agent)


def of_session(view: AgentView, *, leaves: bool = True, **changes: Any) -> AgentView:
    assert view.session is not None
    hello = msgspec.structs.replace(view.session.hello, leaves=leaves)
    return replace(view, session=replace(view.session, hello=hello, **changes))


def test_an_idle_agent_that_has_not_heard_that_it_is_to_end_is_told_again() -> None:
    early = told_to_end(of_session(an_idle(1)), since_s=TOLD_AGAIN_AFTER_S - 4)
    decision = schedule(a_pool_snapshot(agents=(early,)), NOW)
    assert (decision.actions, decision.wake_after_s) == ((), 4.0)
    late = told_to_end(of_session(an_idle(1)), since_s=TOLD_AGAIN_AFTER_S)
    decision = schedule(a_pool_snapshot(agents=(late,)), NOW)
    assert (decision.actions, decision.wake_after_s) == ((Send("pod-1", Leave(epoch=b.EPOCH)),), None)


@pytest.mark.parametrize(
    "view",
    [
        told_to_end(of_session(an_idle(1), sent_leave=True)),
        told_to_end(of_session(an_idle(1), leaves=False)),
        told_to_end(replace(of_session(an_idle(1)), claim=b.a_claim(a_waiting(1)))),
        told_to_end(of_session(a_view(1, session=b.holding()))),
        told_to_end(of_session(a_view(1, session=b.a_session(is_used=True)))),
        told_to_end(a_view(1)),
        told_to_end(of_session(an_idle(1)), run_label=b.RUN),
        of_session(an_idle(1)),
    ],
    ids=["told", "older", "claimed", "with a run", "used", "not connected", "claimed by somebody else", "not to end"],
)
def test_no_other_agent_is_told_to_leave(view: AgentView) -> None:
    actions = schedule(a_pool_snapshot(agents=(view,)), NOW).actions
    assert not any(isinstance(action, Send) for action in actions)


@pytest.mark.parametrize("view", [a_view(1), a_busy(1)], ids=["unclaimed", "claimed"])
@pytest.mark.parametrize(
    "pod", [{"container_id": "", "phase": "Pending"}, {"phase": "Failed"}], ids=["no container", "node gone"]
)
def test_a_deleted_pod_that_will_never_end_is_let_go_unless_it_is_claimed(
    view: AgentView, pod: dict[str, object]
) -> None:
    agent = replace(view.agent, is_deleting=True, **pod)
    expected = () if view.is_claimed else (RemoveAgentFinalizer(agent),)
    assert schedule(a_pool_snapshot(agents=(replace(view, agent=agent),)), NOW).actions == expected


# ---- a pool that goes, or never was


def test_a_deleted_pool_keeps_its_busy_agents_and_gives_nothing_away() -> None:
    """One that holds a run that nobody claims is told by nobody that it may forget it."""
    agents = (a_busy(1), an_idle(2), a_view(3), a_view(4, session=b.holding(b.RUN)), a_view(5, is_deleting=True))
    for pool in (None, a_pool(is_deleting=True, min_idle=3)):
        p = a_pool_snapshot(pool=pool, agents=agents, waiting=(a_waiting(1),))
        assert schedule(p, NOW).actions == tuple(DeleteAgent(view.agent) for view in agents[1:4])


def test_nothing_of_a_deleted_pool_stays_for_its_logs() -> None:
    over = an_ended(1)
    p = a_pool_snapshot(pool=None, agents=(over,))
    assert schedule(p, NOW).actions == (RemoveAgentFinalizer(over.agent), DeleteAgent(over.agent))


def test_a_task_of_an_unknown_pool_is_told_what_to_do() -> None:
    p = a_pool_snapshot(pool=None, name="fast", waiting=(a_waiting(1),))
    text = "pool fast, which does not exist in namespace team-a: create it"
    assert schedule(p, NOW).queueing == {"task-1": Queueing(position=1, waiting_for=text)}


def test_a_task_of_a_pool_that_goes_is_told_what_to_do() -> None:
    p = a_pool_snapshot(pool=a_pool(is_deleting=True), waiting=(a_waiting(1),))
    told = "pool default, which is being deleted: create it anew once it is gone"
    assert schedule(p, NOW).queueing["task-1"].waiting_for == told


def test_the_deletion_of_a_pool_waits_for_its_runs_and_says_for_which() -> None:
    pool = a_pool(is_deleting=True)
    waits = schedule(a_pool_snapshot(pool=pool, agents=(a_busy(2, task="b"), a_busy(1, task="a"))), NOW)
    assert (waits.actions, waits.problem) == ((), Problem("Deleting", "waits for the end of: a, b"))
    over = replace(a_busy(1), agent=replace(a_busy(1).agent, ended=b.an_end()))
    assert schedule(a_pool_snapshot(pool=pool, agents=(over,)), NOW).actions == (), "its end is not on record yet"
    idle = an_idle(1)
    expected = (RemovePoolFinalizer(pool), DeleteAgent(idle.agent))
    assert schedule(a_pool_snapshot(pool=pool, agents=(idle,)), NOW).actions == expected
    labelled = replace(idle, agent=replace(idle.agent, run_label="of-another-operator"))
    decided = schedule(a_pool_snapshot(pool=pool, agents=(labelled,)), NOW).actions
    assert decided == (DeleteAgent(labelled.agent), UnlabelAgent(labelled.agent)), "whose run it is, a list will tell"
    many = tuple(a_busy(n, task=f"t{n}") for n in range(1, 8))
    assert schedule(a_pool_snapshot(pool=pool, agents=many), NOW).problem == Problem(
        "Deleting", "waits for the end of: t1, t2, t3, t4, t5 and 2 more"
    )


def test_a_pool_is_held_before_anything_runs_in_it_and_never_once_it_goes() -> None:
    pool = a_pool(has_finalizer=False, min_idle=1)
    assert schedule(a_pool_snapshot(pool=pool), NOW).actions == (AddPoolFinalizer(pool), CreateAgents(1))
    going = a_pool(has_finalizer=False, is_deleting=True)
    assert schedule(a_pool_snapshot(pool=going), NOW).actions == ()


# ---- labels


def test_the_pod_shows_who_runs_there_and_nothing_that_has_ended() -> None:
    new, old, right = a_busy(1, task_label=""), a_view(2, session=b.holding(), task_label="gone"), a_busy(3)
    second = a_busy(4, run_label="the run before")
    assert new.claim is not None
    assert second.claim is not None
    actions = schedule(a_pool_snapshot(agents=(new, old, right, second)), NOW).actions
    assert [a for a in actions if isinstance(a, LabelAgent | UnlabelAgent)] == [
        LabelAgent(new.agent, new.claim),
        UnlabelAgent(old.agent),
        LabelAgent(second.agent, second.claim),
    ]


def test_a_long_name_is_labelled_once() -> None:
    view = a_busy(1, task="n" * 100, task_label=label_value("n" * 100))
    assert schedule(a_pool_snapshot(agents=(view,)), NOW).actions == ()


# ---- pods that only look like agents


def a_stranger(number: int, **pod: Any) -> AgentView:
    """Dressed as an idle agent, as far as whoever may create pods can dress one."""
    return replace(an_idle(number, **pod), is_ours=False)


def test_a_pod_that_the_operator_did_not_make_gets_no_task_and_counts_for_nothing() -> None:
    pool = a_pool(min_idle=1, max_agents=1)
    p = a_pool_snapshot(pool=pool, agents=(a_stranger(1, created_at=NOW),), waiting=(a_waiting(1),))
    decision = schedule(p, NOW)
    assert decision.actions == (CreateAgents(1),)
    assert decision.counts == PoolCounts(queued=1, agents=1, starting=1), "the one that is made"


def test_a_pod_that_the_operator_did_not_make_is_taken_away_once_its_proof_is_overdue() -> None:
    stranger = a_stranger(1, created_at=NOW)
    p = a_pool_snapshot(agents=(stranger,))
    early, due = schedule(p, NOW + 1), schedule(p, NOW + TURNED_AWAY_AFTER_S)
    assert (early.actions, early.wake_after_s) == ((), TURNED_AWAY_AFTER_S - 1)
    assert (due.actions, due.wake_after_s) == ((DeleteAgent(stranger.agent),), None)


def test_one_that_was_created_in_the_future_is_not_waited_for_until_then() -> None:
    """The operator's clock is behind: by seconds, as they are; by an hour, and nobody knows how old it is."""
    stranger = a_stranger(1, created_at=NOW)
    p = a_pool_snapshot(agents=(stranger,))
    ahead, far_ahead = schedule(p, NOW - 5), schedule(p, NOW - CLOCKS_DIFFER_S)
    assert (ahead.actions, ahead.wake_after_s) == ((), TURNED_AWAY_AFTER_S + 5)
    assert (far_ahead.actions, far_ahead.wake_after_s) == ((DeleteAgent(stranger.agent),), None)


@pytest.mark.parametrize(
    ("pod", "is_let_go"), [({}, False), ({"container_id": ""}, True), ({"ended": b.an_end()}, True)]
)
def test_a_stranger_that_goes_loses_our_finalizer_when_it_is_over(pod: dict[str, Any], is_let_go: bool) -> None:
    stranger = a_stranger(1, is_deleting=True, **pod)
    expected = (RemoveAgentFinalizer(stranger.agent),) if is_let_go else ()
    assert schedule(a_pool_snapshot(agents=(stranger,)), NOW).actions == expected


def test_an_agent_with_a_claim_and_no_proof_finishes_its_run() -> None:
    """An earlier version wrote none, and somebody may take it off."""
    busy = replace(a_busy(1), is_ours=False)
    decision = schedule(a_pool_snapshot(agents=(busy,)), NOW + 2 * TURNED_AWAY_AFTER_S)
    assert (decision.actions, decision.counts.busy) == ((), 1)


# ---- any pool


@st.composite
def pool_snapshots(draw: st.DrawFn) -> PoolSnapshot:
    sessions = [None, b.a_session(), b.holding(), b.a_session(is_used=True), b.a_session(mismatch="x")]
    views = []
    for number in range(draw(st.integers(0, 6))):
        is_over = draw(st.booleans())
        view = a_view(
            number,
            session=draw(st.sampled_from(sessions)),
            claim=b.a_claim(a_waiting(number, f"w{number}")) if draw(st.booleans()) else None,
            engine=draw(st.sampled_from(["Terraform", "OpenTofu"])),
            template_hash=draw(st.sampled_from(["new", "old"])),
            is_ours=draw(st.sampled_from([True, True, False])),
            is_deleting=draw(st.booleans()),
            has_finalizer=draw(st.booleans()),
            phase=draw(st.sampled_from(["Pending", "Running", "Failed"])),
            ended=b.an_end() if is_over else None,
            last_task_label=draw(st.sampled_from(["", "x"])),
        )
        views.append(view)
    waiting = tuple(a_waiting(n, f"w{draw(st.integers(0, 8))}") for n in range(10, 10 + draw(st.integers(0, 6))))
    pool = a_pool(min_idle=draw(st.integers(0, 3)), max_agents=draw(st.integers(0, 6)))
    held = {view.claim.name: view.claim.task_name for view in views if view.claim}
    return a_pool_snapshot(
        pool=draw(st.sampled_from([None, pool, pool, pool])), agents=tuple(views), waiting=waiting, holders=held
    )


@given(pool_snapshots())
def test_2_no_workspace_and_no_agent_is_given_away_twice(p: PoolSnapshot) -> None:
    given_away = [a for a in schedule(p, NOW).actions if isinstance(a, CreateClaim)]
    names = [claim_name(a.task.namespace, a.task.spec.workspace, a.task.spec.backend) for a in given_away]
    assert len(names) == len(set(names))
    assert not set(names) & set(p.holders)
    assert len({a.agent.uid for a in given_away}) == len(given_away)
    assert not {a.agent.uid for a in given_away} & {v.agent.uid for v in p.agents if not v.is_ours}
    taken_away = {a.agent.uid for a in schedule(p, NOW).actions if isinstance(a, DeleteAgent)}
    assert not taken_away & {a.agent.uid for a in given_away}
    assert all(p.pool is not None and a.agent.engine == p.pool.engine for a in given_away)


@given(pool_snapshots())
def test_1_no_agent_with_a_claim_is_deleted_or_let_go(p: PoolSnapshot) -> None:
    of_claims = {v.agent.uid for v in p.agents if v.is_claimed}
    for action in schedule(p, NOW).actions:
        if isinstance(action, DeleteAgent | RemoveAgentFinalizer):
            assert action.agent.uid not in of_claims


@given(pool_snapshots())
def test_every_waiting_task_is_given_away_or_told_why_not(p: PoolSnapshot) -> None:
    decision = schedule(p, NOW)
    given_away = {a.task.uid for a in decision.actions if isinstance(a, CreateClaim)}
    assert given_away | set(decision.queueing) == {t.uid for t in p.waiting}
    assert not given_away & set(decision.queueing)
    assert all(q.waiting_for for q in decision.queueing.values())


@given(pool_snapshots())
def test_a_pool_never_grows_over_its_bound(p: PoolSnapshot) -> None:
    made = sum(a.count for a in schedule(p, NOW).actions if isinstance(a, CreateAgents))
    alive = sum(not v.agent.is_over for v in p.agents if v.is_ours or v.is_claimed)
    assert made == 0 or (p.pool is not None and alive + made <= p.pool.max_agents)
