"""Every policy of `decide`, and each of its refusals: whole decisions, in virtual time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.core import model, status
from terrahalt_operator.core.actions import (
    Decision,
    DeleteAgent,
    KeepLog,
    ReadStateLock,
    ReleaseClaim,
    RemoveTaskFinalizer,
    ReserveAgent,
    Send,
    StampTask,
    WriteStatus,
)
from terrahalt_operator.core.decide import PROGRESS_INTERVAL_S, QUEUE_INTERVAL_S, decide
from terrahalt_operator.core.model import (
    Agent,
    ApprovalMode,
    ArchiveSpec,
    BackendSpec,
    ConfigFromSpec,
    EnvFromSpec,
    GitSpec,
    OptionsSpec,
    OutputsToSpec,
    Queueing,
    Reference,
    Snapshot,
    SourceSpec,
    StateLock,
    Task,
)
from terrahalt_protocol.messages import (
    ArchiveSource,
    Backend,
    CancelMode,
    CancelReason,
    ConfigFrom,
    EnvFrom,
    GitSource,
    Outcome,
    OutputsTo,
    RefusalCode,
    Source,
    Start,
    Step,
)
from tests.operator_core.builders import (
    NOW,
    OTHER_RUN,
    POD_UID,
    RUN,
    a_cancel,
    a_cancel_report,
    a_claim,
    a_final_report,
    a_free_lock,
    a_given_task,
    a_held_lock,
    a_plan,
    a_refusal,
    a_report,
    a_result,
    a_session,
    a_snapshot,
    a_start,
    a_status,
    a_task,
    a_terminal_status,
    an_ack,
    an_agent,
    an_unreadable_lock,
    collected_pod,
    ended_pod,
    holding,
    in_line,
    lost,
    pod_of_another_container,
    running_pod,
)

NOTHING = Decision()


def written(snapshot: Snapshot, now: float = NOW) -> Snapshot:
    """The snapshot after the status that `decide` wants was written."""
    for action in decide(snapshot, now).actions:
        if isinstance(action, WriteStatus):
            task = replace(snapshot.task, status=action.status)
            return replace(snapshot, task=task, last_status_write_at=now)
    return snapshot


def phase_after(snapshot: Snapshot) -> str:
    return written(snapshot).task.status.phase


# ---- a task that has ended


def test_a_terminal_task_with_nothing_left_over_is_left_alone() -> None:
    task = a_task(status=a_terminal_status())
    assert decide(a_snapshot(task=task, claimed=False), NOW) == NOTHING


def test_the_claim_that_a_crash_left_is_released_and_the_agent_may_forget() -> None:
    task = a_task(status=a_terminal_status())
    snapshot = a_snapshot(task=task, session=holding(RUN))
    assert decide(snapshot, NOW) == Decision((Send(POD_UID, an_ack), ReleaseClaim(a_claim())))


def test_an_agent_that_does_not_hold_the_run_gets_no_ack() -> None:
    task = a_task(status=a_terminal_status())
    assert decide(a_snapshot(task=task, session=holding(OTHER_RUN)), NOW) == Decision((ReleaseClaim(a_claim()),))
    assert decide(a_snapshot(task=task, session=None), NOW) == Decision((ReleaseClaim(a_claim()),))


def test_deleting_a_terminal_task_releases_its_claim_before_the_finalizer() -> None:
    task = a_task(status=a_terminal_status(), is_deleting=True)
    assert decide(a_snapshot(task=task, session=None), NOW) == Decision(
        (ReleaseClaim(a_claim()), RemoveTaskFinalizer(task))
    )


def test_a_deleted_terminal_task_without_our_finalizer_is_left_alone() -> None:
    task = a_task(status=a_terminal_status(), is_deleting=True, has_finalizer=False)
    assert decide(a_snapshot(task=task, claimed=False), NOW) == NOTHING


def test_a_terminal_task_follows_its_generation_and_nothing_else_changes() -> None:
    task = a_task(status=a_terminal_status(), generation=4, cancel=True)
    expected = WriteStatus(task, status.observed(task, NOW))
    assert decide(a_snapshot(task=task, claimed=False), NOW) == Decision((expected,))
    assert msgspec.structs.replace(expected.status, observed_generation=1, conditions=()) == task.status


def test_a_report_that_comes_after_the_end_changes_nothing() -> None:
    task = a_task(status=a_terminal_status(model.FAILED, "AgentLost"))
    snapshot = a_snapshot(task=task, report=a_final_report(Outcome.SUCCEEDED), session=None)
    assert decide(snapshot, NOW) == Decision((ReleaseClaim(a_claim()),))


# ---- restored copies (invariant 3)


def test_a_restored_copy_is_refused_and_says_what_to_do() -> None:
    task = a_task(stamp="uid-of-the-original")
    decision = decide(a_snapshot(task=task, claimed=False), NOW)
    (action,) = decision.actions
    assert isinstance(action, WriteStatus)
    assert (action.status.phase, action.status.result and action.status.result.reason) == ("Failed", "RestoredCopy")
    assert "uid-of-the-original" in action.status.message
    assert "under a new name" in action.status.message


def test_a_restored_copy_is_not_stamped_anew_even_without_the_finalizer() -> None:
    task = a_task(stamp="uid-of-the-original", has_finalizer=False, cancel=True)
    assert [type(a) for a in decide(a_snapshot(task=task, claimed=False), NOW).actions] == [WriteStatus]


def test_a_restored_copy_that_is_deleted_goes_at_once() -> None:
    task = a_task(stamp="uid-of-the-original", is_deleting=True)
    assert decide(a_snapshot(task=task, claimed=False), NOW) == Decision((RemoveTaskFinalizer(task),))
    bare = replace(task, has_finalizer=False)
    assert decide(a_snapshot(task=bare, claimed=False), NOW) == NOTHING


@pytest.mark.parametrize("pod", [running_pod, collected_pod, lost])
def test_a_stamp_that_somebody_changed_ends_no_run_and_is_put_right(pod: Agent | None) -> None:
    task = a_task(stamp="of-another", status=a_status(model.APPLYING))
    assert decide(a_snapshot(task=task, pod=pod), NOW) == Decision((StampTask(task),))


# ---- stamp


@pytest.mark.parametrize(
    "task",
    [a_task(stamp=None, has_finalizer=False), a_task(stamp=None), a_task(has_finalizer=False)],
    ids=["new", "only the finalizer", "only the stamp"],
)
def test_a_task_is_stamped_before_anything_else(task: Task) -> None:
    assert decide(a_snapshot(task=task, claimed=False, queueing=in_line), NOW) == Decision((StampTask(task),))
    assert decide(a_snapshot(task=task), NOW) == Decision((StampTask(task),))


# ---- deletion before a run


def test_a_task_deleted_in_the_queue_goes_at_once() -> None:
    task = a_task(is_deleting=True, phase=model.QUEUED)
    assert decide(a_snapshot(task=task, claimed=False), NOW) == Decision((RemoveTaskFinalizer(task),))


def test_a_deleted_task_that_only_others_hold_is_theirs() -> None:
    task = a_task(is_deleting=True, has_finalizer=False, stamp=None)
    assert decide(a_snapshot(task=task, claimed=False), NOW) == NOTHING


# ---- the queue


def test_a_cancel_in_the_queue_ends_the_task_without_an_agent() -> None:
    snapshot = a_snapshot(task=a_task(cancel=True, phase=model.QUEUED), claimed=False, queueing=in_line)
    message = "cancelled before it was given to an agent; nothing ran"
    expected = status.ended_unstarted(snapshot, "Cancelled", "CancelledByUser", message, NOW)
    assert decide(snapshot, NOW) == Decision((WriteStatus(snapshot.task, expected),))
    assert expected.cancel is not None
    assert expected.cancel.rung == "NotStarted"


@pytest.mark.parametrize("queueing", [None, in_line])
def test_a_task_whose_end_does_not_fit_into_its_pools_pods_is_refused_with_the_formula(
    queueing: Queueing | None,
) -> None:
    task = a_task(cancel_grace_seconds=301, phase=model.QUEUED)
    (action,) = decide(a_snapshot(task=task, claimed=False, queueing=queueing), NOW).actions
    assert isinstance(action, WriteStatus)
    assert action.status.result is not None
    assert (action.status.phase, action.status.result.reason) == ("Failed", "InvalidBudget")
    assert (action.status.run_id, action.status.result.state, action.status.result.lock) == ("", "Complete", "Released")
    assert action.status.message == (
        "the end of this task could take 404 s (gate 60 + cancelGraceSeconds 301 + providers 10 + second interrupt 8 "
        "+ kill 5 + report 20 = 404), but terminationGracePeriodSeconds of pool default is 403: create it with "
        "cancelGraceSeconds of at most 300, or set the pool's terminationGracePeriodSeconds to 404"
    )


def test_a_task_that_fits_just_so_waits_and_one_that_runs_is_refused_no_more() -> None:
    just_so = a_snapshot(task=a_task(cancel_grace_seconds=300), claimed=False)
    assert decide(just_so, NOW) == NOTHING
    of_no_pool = a_snapshot(task=a_task(cancel_grace_seconds=301), claimed=False, pool_grace_s=None)
    assert decide(of_no_pool, NOW) == NOTHING
    claimed = a_snapshot(task=a_task(cancel_grace_seconds=301), pool_grace_s=403)
    assert phase_after(claimed) == model.ASSIGNED


def test_a_cancel_in_the_queue_is_a_cancel_although_the_task_would_not_fit() -> None:
    task = a_task(cancel=True, cancel_grace_seconds=301, phase=model.QUEUED)
    assert phase_after(a_snapshot(task=task, claimed=False)) == model.CANCELLED


def test_a_task_that_the_scheduler_has_not_seen_waits_without_a_write() -> None:
    assert decide(a_snapshot(claimed=False), NOW) == NOTHING


def test_a_waiting_task_says_what_it_waits_for() -> None:
    snapshot = a_snapshot(claimed=False, queueing=in_line)
    assert decide(snapshot, NOW) == Decision((WriteStatus(snapshot.task, status.queued(snapshot.task, in_line, NOW)),))
    assert decide(written(snapshot), NOW) == NOTHING


def test_a_place_in_the_queue_is_written_at_most_every_ten_seconds() -> None:
    waiting = written(a_snapshot(claimed=False, queueing=in_line))
    moved = replace(waiting, queueing=replace(in_line, position=2))
    assert decide(moved, NOW + 3) == Decision(wake_after_s=QUEUE_INTERVAL_S - 3)
    later = NOW + QUEUE_INTERVAL_S
    assert decide(moved, later) == Decision(
        (WriteStatus(moved.task, status.queued(moved.task, replace(in_line, position=2), later)),)
    )


def test_what_a_task_waits_for_is_told_as_soon_as_the_budget_of_writes_allows() -> None:
    waiting = written(a_snapshot(claimed=False, queueing=in_line))
    moved = replace(waiting, queueing=Queueing(position=1, waiting_for="other"))
    assert decide(moved, NOW + 0.5) == Decision(wake_after_s=PROGRESS_INTERVAL_S - 0.5)
    later = NOW + PROGRESS_INTERVAL_S
    assert moved.queueing is not None
    assert decide(moved, later) == Decision(
        (WriteStatus(moved.task, status.queued(moved.task, moved.queueing, later)),)
    )


# ---- the start of a run


@pytest.mark.parametrize("changes", [{}, {"cancel": True}, {"is_deleting": True}])
def test_nothing_follows_from_a_claim_where_another_run_is_on_record(changes: dict[str, Any]) -> None:
    """It was released since, and who did that has given the task away anew: that run is not written over."""
    task = a_given_task(**changes)
    other = replace(a_claim(task), run_id=OTHER_RUN)
    silent = a_session(runs=frozenset())
    for session in (None, silent, a_session(runs=frozenset({RUN})), a_session(runs=frozenset({OTHER_RUN}))):
        for pod in (None, running_pod):
            known = replace(a_snapshot(task=task, pod=pod, session=session), claim=other)
            assert decide(known, NOW) == Decision()


def test_a_claimed_tasks_agent_is_reserved_then_it_is_written_down_and_then_started() -> None:
    """Whoever else would delete the pod as idle, or let it go, meets the label, or has been seen to be first."""
    snapshot = a_snapshot(pod=an_agent())
    expected = status.running(snapshot, a_claim(), NOW, cancel_sent=False)
    actions = ReserveAgent(a_claim()), WriteStatus(snapshot.task, expected), Send(POD_UID, a_start())
    assert decide(snapshot, NOW) == Decision(actions)
    assert expected.phase == model.ASSIGNED


going_before_it_is_given_the_run = pytest.mark.parametrize(
    ("pod", "is_gone"),
    [(collected_pod, False), (an_agent(is_deleting=True), False), (ended_pod, False), (None, True)],
    ids=["PodGC", "deleted", "ended", "gone"],
)


@going_before_it_is_given_the_run
@pytest.mark.parametrize("cancel", [False, True])
def test_a_task_whose_agent_goes_before_it_is_given_the_run_waits_again_and_that_is_written_before_its_claim_is_free(
    pod: Agent | None, is_gone: bool, cancel: bool
) -> None:
    snapshot = a_snapshot(task=a_task(cancel=cancel), pod=pod, agent_is_gone=is_gone)
    write, release = decide(snapshot, NOW).actions
    assert isinstance(write, WriteStatus)
    assert (write.status.phase, write.status.run_id) == (model.QUEUED, "")
    assert write.status.message == "waiting for another agent: default-agent-1 was gone before it was given the run"
    assert release == ReleaseClaim(a_claim())
    assert decide(written(snapshot), NOW) == Decision((release,))


@going_before_it_is_given_the_run
@pytest.mark.parametrize(
    "begun",
    [{"session": holding(RUN)}, {"report": a_report(), "session": None}, {"task": a_task(status=a_status("Assigned"))}],
    ids=["held", "reported", "on record"],
)
def test_it_does_not_where_the_run_may_have_begun(pod: Agent | None, is_gone: bool, begun: dict[str, Any]) -> None:
    snapshot = a_snapshot(pod=pod, agent_is_gone=is_gone, state_lock=a_free_lock, **begun)
    assert phase_after(snapshot) != model.QUEUED


def test_an_agent_that_was_not_seen_yet_is_no_agent_that_is_gone() -> None:
    assert phase_after(a_snapshot(pod=lost)) == model.ASSIGNED


def test_start_says_all_that_the_spec_says() -> None:
    secret, config_map = Reference(name="aws"), Reference(name="proxy", optional=True)
    task = a_task(
        source=SourceSpec(config_map_ref=Reference(name="network-tf")),
        variables={"zones": ["a", {"b": None}]},
        env_from=(
            EnvFromSpec(secret_ref=secret, prefix="TF_VAR_"),
            EnvFromSpec(config_map_ref=config_map),
        ),
        options=OptionsSpec(lock_timeout_seconds=5),
        timeout_seconds=60,
        no_output_timeout_seconds=50,
        init_timeout_seconds=40,
        cancel_grace_seconds=20,
    )
    expected = a_start(
        source=Source(config_map="network-tf"),
        variables={"zones": ["a", {"b": None}]},
        env_from=(EnvFrom(secret="aws", prefix="TF_VAR_"), EnvFrom(config_map="proxy", optional=True)),
        timeout_s=60,
        no_output_timeout_s=50,
        init_timeout_s=40,
        lock_timeout_s=5,
        cancel_grace_s=20,
    )
    assert decide(a_snapshot(task=task), NOW).actions[-1] == Send(POD_UID, expected)


@pytest.mark.parametrize("others", [{}, {"approval": ApprovalMode.MANUAL}, {"backend": BackendSpec(type="pg")}])
def test_an_agent_that_knows_no_variables_from_finds_no_source_and_starts_nothing(others: dict[str, Any]) -> None:
    optional = Reference(name="map", optional=True)
    refs = (ConfigFromSpec(secret_ref=Reference(name="net")), ConfigFromSpec(config_map_ref=optional))
    sent = decide(a_snapshot(task=a_task(variables_from=refs, **others)), NOW).actions[-1]
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Start)
    start, nothing = sent.command, Source()
    assert start.values is not None
    assert start.values.variables_from == (ConfigFrom(secret="net"), ConfigFrom(config_map="map", optional=True))
    assert start.files_from == start.values.source != nothing
    assert [part.source for part in (start, start.backend, start.approval) if part] == [nothing] * (1 + len(others))


def test_what_needs_several_things_that_an_older_agent_lacks_has_its_source_in_the_innermost_alone() -> None:
    git = GitSpec(url="https://git.example.com/net.git", secret_ref=Reference(name="robot"))
    refs = (ConfigFromSpec(secret_ref=Reference(name="net")),)
    both: dict[str, Any] = {"approval": ApprovalMode.MANUAL, "backend": BackendSpec(type="pg")}
    task = a_task(source=SourceSpec(git=git), variables_from=refs, **both)
    sent = decide(a_snapshot(task=task), NOW).actions[-1]
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Start)
    start, private = sent.command, GitSource(url=git.url, secret="robot")
    assert start.values is not None
    assert start.files_from == start.values.source == Source(private_git=private)
    assert [part.source for part in (start, start.backend, start.approval) if part] == [Source()] * 3


def test_where_outputs_go_is_told_beside_the_source_too() -> None:
    to = OutputsToSpec(secret_name="network-outputs", include_sensitive=True)
    sent = decide(a_snapshot(task=a_task(outputs_to=to)), NOW).actions[-1]
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Start)
    assert sent.command.source == Source()
    assert sent.command.values is not None
    assert sent.command.values.outputs_to == OutputsTo(secret="network-outputs", include_sensitive=True)


def test_what_the_pool_gives_comes_first_so_that_the_task_wins() -> None:
    task = a_task(env_from=(EnvFromSpec(secret_ref=Reference(name="of-the-task")),))
    pools = (EnvFromSpec(config_map_ref=Reference(name="of-the-pool", optional=True), prefix="P_"),)
    expected = a_start(
        env_from=(EnvFrom(config_map="of-the-pool", prefix="P_", optional=True), EnvFrom(secret="of-the-task"))
    )
    assert decide(a_snapshot(task=task, pool_env_from=pools), NOW).actions[-1] == Send(POD_UID, expected)


def test_a_run_that_was_not_started_before_its_pool_was_deleted_waits_for_one_as_nobody_knows_its_credentials() -> None:
    s = a_snapshot(pool_env_from=None)
    reserved, written = decide(s, NOW).actions
    assert reserved == ReserveAgent(a_claim())
    assert isinstance(written, WriteStatus)
    message = "waiting for pool default, which was deleted: create it anew, or cancel the task"
    assert written.status.message == message
    started = a_snapshot(pool_env_from=None, session=holding(), report=a_report())
    assert message not in [a.status.message for a in decide(started, NOW).actions if isinstance(a, WriteStatus)]
    cancelled = a_snapshot(task=a_task(cancel=True), pool_env_from=None)
    assert decide(cancelled, NOW).actions[0] == Send(POD_UID, a_cancel())


def test_start_names_the_repository_the_ref_and_the_path() -> None:
    task = a_task(source=SourceSpec(git=GitSpec(url="https://git.example.com/a", ref="v1", path="envs/prod")))
    expected = a_start(source=Source(git=GitSource(url="https://git.example.com/a", ref="v1", path="envs/prod")))
    assert decide(a_snapshot(task=task), NOW).actions[-1] == Send(POD_UID, expected)


def test_start_names_secret_and_authority_of_a_repository_where_an_older_agent_does_not_look() -> None:
    secret, config_map = Reference(name="robot"), Reference(name="ca")
    url = "https://git.example.com/a"
    for spec, expected in (
        (GitSpec(url=url, secret_ref=secret), GitSource(url=url, secret="robot")),
        (
            GitSpec(url=url, ca_ref=ConfigFromSpec(config_map_ref=config_map)),
            GitSource(url=url, authority=ConfigFrom(config_map="ca")),
        ),
        (
            GitSpec(url=url, ca_ref=ConfigFromSpec(secret_ref=secret), submodules=True),
            GitSource(url=url, authority=ConfigFrom(secret="robot"), submodules=True),
        ),
    ):
        start = a_start(source=Source(private_git=expected))
        assert decide(a_snapshot(task=a_task(source=SourceSpec(git=spec))), NOW).actions[-1] == Send(POD_UID, start)


def test_start_names_the_archive_its_digest_and_who_is_to_be_believed() -> None:
    url, digest, ref = "https://files.example.com/a", "0f" * 32, Reference(name="robot")
    authority = ConfigFromSpec(config_map_ref=Reference(name="ca"))
    spec = ArchiveSpec(url=url, sha256=digest, path="envs", secret_ref=ref, ca_ref=authority)
    sent = ArchiveSource(url=url, sha256=digest, path="envs", secret="robot", authority=ConfigFrom(config_map="ca"))
    expected = a_start(source=Source(archive=sent))
    assert decide(a_snapshot(task=a_task(source=SourceSpec(archive=spec))), NOW).actions[-1] == Send(POD_UID, expected)


def test_start_hides_the_source_behind_a_backend_that_an_older_agent_does_not_know() -> None:
    secret, config_map = Reference(name="states"), Reference(name="more", optional=True)
    spec = BackendSpec(
        type="s3",
        config={"bucket": "states"},
        config_from=(ConfigFromSpec(secret_ref=secret), ConfigFromSpec(config_map_ref=config_map)),
    )
    expected = a_start(
        source=Source(),
        backend=Backend(
            type="s3",
            config={"bucket": "states"},
            config_from=(ConfigFrom(secret="states"), ConfigFrom(config_map="more", optional=True)),
            source=Source(inline={"main.tf": ""}),
        ),
    )
    assert decide(a_snapshot(task=a_task(backend=spec)), NOW).actions[-1] == Send(POD_UID, expected)


def test_the_default_backend_said_in_so_many_words_is_the_default_backend() -> None:
    task = a_task(backend=BackendSpec(type="kubernetes"))
    assert decide(a_snapshot(task=task), NOW).actions[-1] == Send(POD_UID, a_start())


def test_start_goes_out_once_on_a_connection_and_again_on_the_next() -> None:
    snapshot = written(a_snapshot())
    same = replace(snapshot, session=a_session(sent_start=RUN, is_used=True))
    following = replace(snapshot, session=a_session())
    assert decide(same, NOW) == NOTHING
    assert decide(following, NOW) == Decision((Send(POD_UID, a_start()),))


def test_an_agent_that_holds_the_run_is_not_started_again() -> None:
    snapshot = written(a_snapshot())
    assert decide(replace(snapshot, session=holding(RUN)), NOW) == NOTHING


def test_an_agent_of_another_version_is_given_no_start_and_the_task_says_why() -> None:
    other = a_session(mismatch="agent x speaks protocol 2, this operator speaks 1")
    snapshot = a_snapshot(session=other)
    _, action = decide(snapshot, NOW).actions
    assert isinstance(action, WriteStatus)
    assert "speaks protocol 2" in action.status.message


def test_an_agent_of_another_version_can_still_be_cancelled() -> None:
    snapshot = a_snapshot(task=a_task(cancel=True), session=holding(RUN, mismatch="another protocol"))
    assert decide(snapshot, NOW).actions[0] == Send(POD_UID, a_cancel())


def test_nothing_is_sent_without_a_session_and_the_task_says_what_it_waits_for() -> None:
    snapshot = a_snapshot(session=None)
    assert [type(a) for a in decide(snapshot, NOW).actions] == [ReserveAgent, WriteStatus]
    assert written(snapshot).task.status.message == "waiting for the connection to agent pod default-agent-1"


# ---- cancels of a run


@pytest.mark.parametrize("session", [a_session(), holding(RUN), a_session(sent_start=RUN)])
def test_a_cancel_goes_out_before_it_is_written_down_whether_the_run_began_or_not(session: model.Session) -> None:
    snapshot = a_snapshot(task=a_task(cancel=True), session=session)
    expected = status.running(snapshot, a_claim(), NOW, cancel_sent=True)
    actions = Send(POD_UID, a_cancel()), ReserveAgent(a_claim()), WriteStatus(snapshot.task, expected)
    assert decide(snapshot, NOW) == Decision(actions)
    assert expected.phase == model.CANCELLING


def test_a_cancel_is_sent_once_on_a_connection_and_again_on_each_new_one() -> None:
    snapshot = written(a_snapshot(task=a_task(cancel=True), session=holding(RUN)))
    told = replace(snapshot, session=holding(RUN, sent_cancel=a_cancel()))
    assert decide(told, NOW) == NOTHING
    assert decide(snapshot, NOW) == Decision((Send(POD_UID, a_cancel()),))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cancel_mode": model.CancelMode.FORCE}, a_cancel(mode=CancelMode.FORCE)),
        ({"cancel_grace_seconds": 5}, a_cancel(grace_s=5)),
    ],
)
def test_a_cancel_that_became_more_urgent_is_sent_again(changes: dict[str, object], expected: object) -> None:
    snapshot = a_snapshot(task=a_task(cancel=True, **changes), session=holding(RUN, sent_cancel=a_cancel()))
    assert decide(snapshot, NOW).actions[0] == Send(POD_UID, expected)  # type: ignore[arg-type]


def test_deleting_a_task_with_a_run_cancels_it_first_and_keeps_it() -> None:
    task = a_task(is_deleting=True, status=a_status(model.APPLYING))
    snapshot = a_snapshot(task=task, session=holding(RUN))
    assert decide(snapshot, NOW) == Decision(
        (
            Send(POD_UID, a_cancel(reason=CancelReason.DELETION)),
            WriteStatus(task, status.running(snapshot, a_claim(), NOW, cancel_sent=True)),
        )
    )


def test_a_cancelled_task_whose_agent_can_not_be_reached_stays_cancelling() -> None:
    for pod in (running_pod, collected_pod, pod_of_another_container, lost):
        task = a_given_task(cancel=True)
        snapshot = a_snapshot(task=task, pod=pod, session=None)
        assert phase_after(snapshot) == model.CANCELLING
        assert decide(written(snapshot), NOW + 1e6) == NOTHING


@pytest.mark.parametrize("pod", [running_pod, lost, collected_pod])
def test_a_task_deleted_before_its_stamp_but_claimed_is_wound_down_not_let_go(pod: Agent | None) -> None:
    """The stamp is an annotation, which its author can take away while the run is alive."""
    task = a_task(is_deleting=True, stamp=None, status=a_status(model.APPLYING))
    actions = decide(a_snapshot(task=task, pod=pod, session=holding(RUN)), NOW).actions
    assert [type(a) for a in actions] == [Send, WriteStatus]
    assert actions[0] == Send(POD_UID, a_cancel(reason=CancelReason.DELETION))


# ---- a pod that is ended with less than the whole of its grace


def going(killed_in_s: float | None, **task: Any) -> Snapshot:
    """A run that goes on in a pod that its kubelet kills so soon; None: which nobody deletes."""
    killed_at = None if killed_in_s is None else NOW + killed_in_s
    pod = an_agent(is_deleting=killed_in_s is not None, killed_at=killed_at)
    snapshot = a_snapshot(task=a_task(**task), pod=pod, session=holding(RUN), report=a_report())
    return written(snapshot)


def test_a_run_is_ended_with_force_when_its_pod_leaves_no_time_for_more() -> None:
    forced = a_cancel(reason=CancelReason.POD_TERMINATION, mode=CancelMode.FORCE)
    assert decide(going(30), NOW) == Decision((Send(POD_UID, forced),))
    sent = replace(going(30), session=holding(RUN, sent_cancel=forced))
    assert decide(sent, NOW) == NOTHING


def test_until_then_the_agents_own_ladder_is_left_alone() -> None:
    assert decide(going(403), NOW) == Decision(wake_after_s=360.0)
    assert decide(going(403), NOW + 360) == decide(going(43), NOW)


def test_a_graceful_cancel_becomes_force_in_a_pod_that_goes() -> None:
    forced = a_cancel(mode=CancelMode.FORCE)
    session = holding(RUN, sent_cancel=a_cancel())
    snapshot = replace(going(30, cancel=True), session=session)
    assert Send(POD_UID, forced) in decide(snapshot, NOW).actions


def hearing(reason: CancelReason, received_s: float) -> Snapshot:
    """Of a run that its agent ends for this reason, since so long, in a pod that nobody deletes."""
    cancel = msgspec.structs.replace(a_cancel_report(received_s=received_s), reason=reason)
    return written(replace(going(None), report=a_report(cancel=cancel)))


def test_a_pod_that_its_kubelet_ends_unasked_gets_five_seconds_before_force() -> None:
    snapshot = hearing(CancelReason.POD_TERMINATION, 1.0)
    assert decide(snapshot, NOW) == Decision(wake_after_s=4.0)
    forced = a_cancel(reason=CancelReason.POD_TERMINATION, mode=CancelMode.FORCE)
    assert decide(snapshot, NOW + 4) == Decision((Send(POD_UID, forced),))
    assert decide(hearing(CancelReason.TIMEOUT, 60.0), NOW) == NOTHING


def test_what_was_heard_late_waits_for_the_news_of_a_deletion_that_may_have_been_its_cause() -> None:
    assert decide(hearing(CancelReason.POD_TERMINATION, 60.0), NOW) == Decision(wake_after_s=1.0)


def test_a_run_that_its_agent_does_not_hold_is_not_hurried() -> None:
    """It would leave a tombstone of a run that can still be refused."""
    snapshot = replace(going(30), session=a_session(sent_start=RUN))
    assert not any(isinstance(action, Send) for action in decide(snapshot, NOW).actions)


# ---- the end of a run: its own report


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("asked", [False, True])
def test_the_report_of_a_run_ends_it_with_its_true_outcome(outcome: Outcome, asked: bool) -> None:
    received = a_final_report(outcome)
    snapshot = a_snapshot(task=a_task(cancel=asked), session=holding(RUN), report=received)
    assert received.report.result is not None
    expected = status.finished(snapshot, received, received.report.result, NOW)
    assert decide(snapshot, NOW) == Decision(
        (WriteStatus(snapshot.task, expected), Send(POD_UID, an_ack), ReleaseClaim(a_claim()))
    )
    assert expected.phase == outcome.value


@pytest.mark.parametrize("pod", [ended_pod, lost, collected_pod])
def test_the_report_counts_when_the_pod_is_gone_by_then(pod: Agent | None) -> None:
    snapshot = a_snapshot(pod=pod, session=None, report=a_final_report(), state_lock=a_free_lock)
    decision = decide(snapshot, NOW)
    assert [type(a) for a in decision.actions] == [WriteStatus, ReleaseClaim]
    assert phase_after(snapshot) == model.SUCCEEDED


def test_a_deleted_task_ends_first_and_loses_its_finalizer_only_then() -> None:
    snapshot = a_snapshot(task=a_task(is_deleting=True), session=holding(RUN), report=a_final_report(Outcome.CANCELLED))
    assert [type(a) for a in decide(snapshot, NOW).actions] == [WriteStatus, Send, ReleaseClaim]
    ended = replace(written(snapshot), claim=None, session=None, agent=None, report=None)
    assert decide(ended, NOW) == Decision((RemoveTaskFinalizer(ended.task),))


def test_a_report_that_has_no_result_ends_nothing() -> None:
    snapshot = a_snapshot(session=holding(RUN), report=a_report(Step.SWEEP))
    assert phase_after(snapshot) not in model.TERMINAL


# ---- the end of a run: its container (invariant 1)


def test_the_end_of_the_container_makes_the_operator_look_at_the_lock_first() -> None:
    snapshot = a_snapshot(task=a_given_task(), pod=ended_pod, session=None)
    assert decide(snapshot, NOW) == Decision((KeepLog(snapshot.task, a_claim()), ReadStateLock(snapshot.task)))


def test_a_log_is_kept_once_and_not_for_a_task_that_goes_with_it() -> None:
    tried = a_snapshot(task=a_given_task(), pod=ended_pod, session=None, log_kept=False)
    assert decide(tried, NOW) == Decision((ReadStateLock(tried.task),))
    going = a_snapshot(task=a_given_task(is_deleting=True), pod=ended_pod, session=None)
    assert decide(going, NOW) == Decision((ReadStateLock(going.task),))


def test_what_an_agent_could_not_keep_before_it_ended_is_kept_before_its_end_is_written() -> None:
    report = a_final_report(result=a_result(log_kept=False))
    ended = a_snapshot(task=a_given_task(), pod=ended_pod, session=None, report=report)
    assert decide(ended, NOW) == Decision((KeepLog(ended.task, a_claim()),))
    for others in ({"log_kept": False}, {"log_kept": True}, {"pod": running_pod}):
        written = decide(replace(ended, **_agent_of(others)), NOW).actions[0]
        assert isinstance(written, WriteStatus)
        assert written.status.phase == "Succeeded"
    unstarted = a_final_report(result=a_result(log_kept=False), started_s=None)
    assert KeepLog not in [type(a) for a in decide(replace(ended, report=unstarted), NOW).actions]


def _agent_of(changes: dict[str, Any]) -> dict[str, Any]:
    return {"agent" if name == "pod" else name: value for name, value in changes.items()}


@pytest.mark.parametrize("lock", [a_free_lock, a_held_lock, an_unreadable_lock])
def test_an_agent_that_ended_without_a_report_is_lost(lock: StateLock) -> None:
    snapshot = a_snapshot(task=a_given_task(), pod=ended_pod, session=None, state_lock=lock)
    expected = status.lost(snapshot, a_claim(), lock, "OOMKilled, exit code 137", NOW)
    assert decide(snapshot, NOW) == Decision((WriteStatus(snapshot.task, expected), ReleaseClaim(a_claim())))


@pytest.mark.parametrize("phase", [model.ASSIGNED, model.PREPARING, model.PLANNING, model.APPLYING, model.CANCELLING])
@pytest.mark.parametrize(
    "pod",
    [
        collected_pod,
        an_agent(phase="Failed"),
        an_agent(phase="Succeeded"),
        an_agent(phase="Unknown"),
        lost,
        pod_of_another_container,
        an_agent(is_running=False, container_id=""),
        an_agent(phase="Failed", is_running=False, container_id=""),
    ],
    ids=["PodGC", "Failed", "Succeeded", "Unknown", "NotFound", "another container", "no container", "evicted"],
)
def test_without_evidence_a_run_stays_whatever_the_pod_looks_like(phase: str, pod: Agent | None) -> None:
    task = a_task(status=a_status(phase))
    snapshot = a_snapshot(task=task, pod=pod, session=None, state_lock=a_free_lock)
    assert phase_after(snapshot) == phase
    assert decide(written(snapshot), NOW + 1e6) == NOTHING


def test_a_lost_pod_is_named_and_its_workspace_said_to_stay_claimed() -> None:
    message = written(a_snapshot(pod=lost, session=None)).task.status.message
    assert "default-agent-1 is gone" in message
    assert "stays claimed" in message
    assert "cancelMode Abandon" in message


# ---- refusals


@pytest.mark.parametrize("code", [RefusalCode.BUSY, RefusalCode.USED, RefusalCode.VERSION, RefusalCode.MALFORMED])
def test_a_run_that_the_agent_refused_never_began(code: RefusalCode) -> None:
    snapshot = a_snapshot(session=a_session(refused=a_refusal(code), sent_start=RUN))
    message = "agent pod default-agent-1 refused the run: this agent has had its run"
    expected = status.ended_unstarted(snapshot, "Failed", "AgentRefused", message, NOW)
    assert decide(snapshot, NOW) == Decision((WriteStatus(snapshot.task, expected), ReleaseClaim(a_claim())))


@pytest.mark.parametrize(
    "session",
    [
        a_session(refused=a_refusal(RefusalCode.STALE_EPOCH), sent_start=RUN),
        a_session(refused=a_refusal(run_id=OTHER_RUN), sent_start=RUN),
        holding(RUN, refused=a_refusal()),
    ],
    ids=["a newer operator leads", "it was about another run", "it holds the run all the same"],
)
def test_a_refusal_that_says_nothing_of_this_run_ends_nothing(session: model.Session) -> None:
    assert phase_after(a_snapshot(session=session)) == model.ASSIGNED


# ---- a run that a person abandons (the exception of invariant 1)

ABANDON: dict[str, Any] = {"cancel": True, "cancel_mode": model.CancelMode.ABANDON}


def an_abandoned_status(snapshot: Snapshot) -> model.TaskStatus:
    return status.abandoned(snapshot, a_claim(), NOW)


def test_an_abandoned_run_is_still_told_to_end_and_its_agent_goes_before_its_workspace_is_free() -> None:
    snapshot = a_snapshot(task=a_task(**ABANDON), session=holding(RUN))
    assert decide(snapshot, NOW) == Decision(
        (
            Send(POD_UID, a_cancel(mode=CancelMode.FORCE)),
            WriteStatus(snapshot.task, an_abandoned_status(snapshot)),
            DeleteAgent(running_pod),
            ReleaseClaim(a_claim()),
        )
    )
    assert phase_after(snapshot) == model.FAILED


@pytest.mark.parametrize(
    ("pod", "deletes"),
    [(running_pod, True), (pod_of_another_container, True), (collected_pod, False), (lost, False)],
    ids=["running", "another container", "PodGC", "NotFound"],
)
def test_an_agent_that_can_not_be_reached_is_abandoned_whatever_its_pod_looks_like(
    pod: Agent | None, deletes: bool
) -> None:
    snapshot = a_snapshot(task=a_given_task(**ABANDON), pod=pod, session=None)
    written = WriteStatus(snapshot.task, an_abandoned_status(snapshot))
    deleted = (DeleteAgent(pod),) if pod and deletes else ()
    assert decide(snapshot, NOW) == Decision((written, *deleted, ReleaseClaim(a_claim())))


def test_a_crash_after_the_end_of_an_abandoned_task_still_deletes_its_agent_and_never_says_ack() -> None:
    task = a_task(status=a_terminal_status(model.FAILED, model.ABANDONED), **ABANDON)
    assert decide(a_snapshot(task=task, session=holding(RUN)), NOW) == Decision(
        (DeleteAgent(running_pod), ReleaseClaim(a_claim()))
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_report_that_is_there_wins_over_abandon(outcome: Outcome) -> None:
    snapshot = a_snapshot(task=a_task(**ABANDON), session=holding(RUN), report=a_final_report(outcome))
    assert phase_after(snapshot) == outcome.value
    assert DeleteAgent(running_pod) not in decide(snapshot, NOW).actions


def test_the_end_of_the_container_wins_over_abandon() -> None:
    snapshot = a_snapshot(task=a_given_task(**ABANDON), pod=ended_pod, session=None, state_lock=a_free_lock)
    result = written(snapshot).task.status.result
    assert result is not None
    assert result.reason == "AgentLost"


def test_abandon_in_the_queue_is_a_cancel_as_nothing_ran() -> None:
    snapshot = a_snapshot(task=a_task(phase=model.QUEUED, **ABANDON), claimed=False, queueing=in_line)
    assert phase_after(snapshot) == model.CANCELLED


def test_neither_a_deletion_nor_the_mode_alone_abandons_a_run() -> None:
    deleted = a_given_task(is_deleting=True, cancel_mode=model.CancelMode.ABANDON)
    kept = a_given_task(cancel_mode=model.CancelMode.ABANDON)
    for pod in (running_pod, collected_pod, lost):
        assert phase_after(a_snapshot(task=deleted, pod=pod, session=None)) == model.CANCELLING
        assert phase_after(a_snapshot(task=kept, pod=pod, session=None)) == model.ASSIGNED


def test_an_abandoned_task_that_is_deleted_goes_once_it_has_ended() -> None:
    snapshot = a_snapshot(task=a_task(is_deleting=True, **ABANDON), session=None)
    assert [type(a) for a in decide(snapshot, NOW).actions] == [WriteStatus, DeleteAgent, ReleaseClaim]
    ended = replace(written(snapshot), claim=None, agent=None)
    assert decide(ended, NOW) == Decision((RemoveTaskFinalizer(ended.task),))


# ---- progress


def test_progress_is_written_at_most_every_two_seconds() -> None:
    first = written(a_snapshot(session=holding(RUN), report=a_report(plan=a_plan, resources_done=1)))
    more = replace(first, report=a_report(plan=a_plan, resources_done=2))
    assert decide(more, NOW + 0.5) == Decision(wake_after_s=PROGRESS_INTERVAL_S - 0.5)
    later = NOW + PROGRESS_INTERVAL_S
    expected = status.running(more, a_claim(), later, cancel_sent=False)
    assert decide(more, later) == Decision((WriteStatus(more.task, expected),))
    assert expected.progress is not None
    assert expected.progress.summary == "2/4"


def test_a_new_phase_is_written_at_once() -> None:
    first = written(a_snapshot(session=holding(RUN), report=a_report(Step.PLAN)))
    following = replace(first, report=a_report(Step.APPLY))
    assert [type(a) for a in decide(following, NOW + 0.1).actions] == [WriteStatus]


def test_a_new_stage_of_a_cancel_is_written_at_once() -> None:
    task, session = a_task(cancel=True), holding(RUN, sent_cancel=a_cancel())
    first = written(a_snapshot(task=task, session=session, report=a_report(cancel=a_cancel_report(received_s=0.1))))
    signalled = a_report(cancel=a_cancel_report(received_s=0.2, signalled_s=0.1))
    decision = decide(replace(first, report=signalled), NOW + 0.1)
    assert [type(a) for a in decision.actions] == [WriteStatus]
