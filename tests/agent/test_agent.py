"""Which run the agent takes, what it refuses, what it keeps until it is acknowledged."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_agent.core.agent import Agent, is_clean
from terrahalt_agent.core.events import (
    AftermathChecked,
    AgentEvent,
    CommandMangled,
    CommandReceived,
    OfRun,
    OperatorConnected,
    OperatorDisconnected,
    PodTerminating,
    PreparationFailed,
    RoomRestored,
    SweepEmptied,
    TimePassed,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    AgentInstruction,
    Answer,
    Exit,
    ForRun,
    PrepareRun,
    RestoreRoom,
    SendHello,
    SendReport,
    Sweep,
    WriteTerminationMessage,
)
from terrahalt_protocol.messages import (
    Ack,
    Cancel,
    CancelMode,
    CancelReason,
    CredentialsRefreshed,
    Leave,
    Lock,
    LockCondition,
    Outcome,
    RefusalCode,
    Refused,
    Report,
    Result,
    Rung,
    StateCondition,
    Step,
)
from tests.agent.builders import FREE, KEY, RUN_ID, a_start

OPERATOR = 1


class Life:
    """One agent, one clock, one connected operator."""

    def __init__(self, *, is_connected: bool = True, operator_loss_s: float | None = None, max_runs: int = 1) -> None:
        self.agent = Agent(engine="terraform", boot_id="boot", max_runs=max_runs, operator_loss_s=operator_loss_s)
        self.now_s = 1000.0
        if is_connected:
            self.tell(OperatorConnected(OPERATOR))

    def tell(self, event: AgentEvent, after_s: float = 0.0) -> list[AgentInstruction]:
        self.now_s += after_s
        return self.agent.handle(event, self.now_s)

    def start(self, **fields: Any) -> list[AgentInstruction]:
        return self.tell(CommandReceived(OPERATOR, a_start(**fields)))

    def cancel(self, **fields: Any) -> list[AgentInstruction]:
        defaults: dict[str, Any] = {"epoch": 1, "run_id": RUN_ID, "reason": CancelReason.USER, "report_key": KEY}
        return self.tell(CommandReceived(OPERATOR, Cancel(**(defaults | fields))))

    def ack(self, run_id: str = RUN_ID, epoch: int = 1) -> list[AgentInstruction]:
        return self.tell(CommandReceived(OPERATOR, Ack(epoch=epoch, run_id=run_id)))

    def end_run(self, run_id: str = RUN_ID, lock: Lock = FREE) -> list[AgentInstruction]:
        self.tell(OfRun(run_id, PreparationFailed("SourceInvalid", "no")))
        self.tell(OfRun(run_id, SweepEmptied(0)))
        return self.tell(OfRun(run_id, AftermathChecked(lock, None)))


def answers(instructions: list[AgentInstruction]) -> list[Refused | Report | CredentialsRefreshed]:
    return [instruction.message for instruction in instructions if isinstance(instruction, Answer)]


def refusal(instructions: list[AgentInstruction]) -> Refused:
    (answer,) = answers(instructions)
    assert isinstance(answer, Refused)
    return answer


def a_report(instructions: list[AgentInstruction]) -> Report:
    (answer,) = answers(instructions)
    assert isinstance(answer, Report)
    return answer


def has(kind: type, instructions: list[AgentInstruction]) -> bool:
    flat = [i.instruction if isinstance(i, ForRun) else i for i in instructions]
    return any(isinstance(instruction, kind) for instruction in flat)


def test_an_idle_agent_says_hello_and_has_nothing_to_tell() -> None:
    life = Life(is_connected=False)
    assert life.tell(OperatorConnected(7)) == [SendHello(7, 0, (), False)]
    assert life.agent.wake_at_s is None


def test_a_start_prepares_the_run() -> None:
    first, second = Life().start()
    assert first == ForRun(RUN_ID, PrepareRun(a_start()))
    assert isinstance(second, ForRun)
    assert isinstance(second.instruction, SendReport)


def test_the_same_start_again_only_reports() -> None:
    life = Life()
    life.start()
    again = life.start(epoch=2)
    assert a_report(again).run_id == RUN_ID
    assert not has(PrepareRun, again)


def test_another_start_while_one_is_alive_is_refused() -> None:
    life = Life()
    life.start()
    refused = refusal(life.start(run_id="01JOTHER"))
    assert (refused.code, refused.run_id) == (RefusalCode.BUSY, "01JOTHER")


def test_another_start_after_the_run_is_refused_for_ever() -> None:
    life = Life()
    life.start()
    life.end_run()
    assert refusal(life.start(run_id="01JOTHER")).code is RefusalCode.USED


def test_the_run_itself_never_starts_again_not_even_after_it_was_acknowledged() -> None:
    life = Life()
    life.start()
    life.end_run()
    life.ack()
    assert a_report(life.start()).result is not None


def test_a_new_connection_hears_of_each_run_that_is_held() -> None:
    life = Life()
    life.start()
    hello, report = life.tell(OperatorConnected(2))
    assert hello == SendHello(2, 1, (RUN_ID,), True)
    assert isinstance(report, Answer)
    assert isinstance(report.message, Report)
    assert report.message.step is Step.PREPARE


def test_the_final_report_is_kept_until_it_is_acknowledged() -> None:
    life = Life()
    life.start()
    life.end_run()
    for connection in (2, 3):
        hello, report = life.tell(OperatorConnected(connection))
        assert hello == SendHello(connection, 1, (RUN_ID,), True)
        assert isinstance(report, Answer)
        assert isinstance(report.message, Report)
        assert report.message.result is not None


def test_a_used_agent_leaves_once_its_last_report_was_acknowledged() -> None:
    life = Life()
    life.start()
    life.end_run()
    assert life.ack(run_id="01JOTHER") == []
    assert life.ack() == [Exit()]


def test_an_ack_of_a_run_that_is_alive_forgets_nothing() -> None:
    life = Life()
    life.start()
    life.ack()
    assert life.tell(OperatorConnected(2))[0] == SendHello(2, 1, (RUN_ID,), True)


def test_a_lower_epoch_commands_nothing() -> None:
    life = Life()
    life.start(epoch=5)
    for todo in (life.start(epoch=4, run_id="01JOTHER"), life.cancel(epoch=4), life.ack(epoch=4)):
        refused = refusal(todo)
        assert (refused.code, refused.highest_epoch) == (RefusalCode.STALE_EPOCH, 5)
        assert not has(AbandonPreparation, todo)
    assert has(AbandonPreparation, life.cancel(epoch=6))
    assert life.tell(OperatorConnected(2))[0] == SendHello(2, 6, (RUN_ID,), True)


def test_a_cancel_reaches_its_own_run_only() -> None:
    life = Life()
    life.start()
    other = life.cancel(run_id="01JOTHER")
    assert not has(AbandonPreparation, other)
    assert a_report(other).run_id == "01JOTHER"
    assert [i for i in life.cancel() if isinstance(i, ForRun)][:2] == [
        ForRun(RUN_ID, AbandonPreparation()),
        ForRun(RUN_ID, Sweep()),
    ]


def test_a_cancel_before_its_start_leaves_a_tombstone_that_no_start_gets_past() -> None:
    life = Life()
    written, answered = life.cancel(mode=CancelMode.FORCE)
    assert isinstance(answered, Answer)
    report = answered.message
    assert isinstance(report, Report)
    assert written == ForRun(RUN_ID, WriteTerminationMessage(report, KEY))
    assert report.result is not None
    assert (report.result.outcome, report.result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    assert report.cancel is not None
    assert report.cancel.rung is Rung.NOT_STARTED
    for _ in range(2):
        again = life.start()
        assert a_report(again).result == report.result
        assert not has(PrepareRun, again)
        life.ack()


def test_a_timeout_before_the_start_is_a_failure_there_too() -> None:
    report = a_report(Life().cancel(reason=CancelReason.TIMEOUT, report_key=""))
    assert report.result is not None
    assert (report.result.outcome, report.result.reason) == (Outcome.FAILED, "TimedOut")


def test_a_tombstone_is_kept_until_acknowledged_and_does_not_use_the_agent_up() -> None:
    life = Life()
    life.cancel()
    assert life.tell(OperatorConnected(2))[0] == SendHello(2, 1, (RUN_ID,), False)
    life.ack()
    assert life.tell(OperatorConnected(3)) == [SendHello(3, 1, (), False)]
    assert has(PrepareRun, life.start(run_id="01JOTHER"))


def test_a_tombstone_does_not_overwrite_the_message_of_a_real_run() -> None:
    life = Life()
    life.start()
    assert not has(WriteTerminationMessage, life.cancel(run_id="01JOTHER"))


def test_a_cancel_after_the_end_gets_the_same_result_again() -> None:
    life = Life()
    life.start()
    life.end_run()
    report = a_report(life.cancel())
    assert report.result is not None
    assert report.result.reason == "SourceInvalid"


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", "-x", "a" * 64])
def test_a_run_id_that_is_no_name_is_refused(run_id: str) -> None:
    assert refusal(Life().start(run_id=run_id)).code is RefusalCode.MALFORMED
    assert refusal(Life().cancel(run_id=run_id)).code is RefusalCode.MALFORMED


def test_what_cannot_be_read_is_refused_with_its_cause() -> None:
    refused = refusal(Life().tell(CommandMangled(OPERATOR, "expected `int`")))
    assert (refused.code, refused.message) == (RefusalCode.MALFORMED, "expected `int`")


# -- one run after the other

NEXT_ID = "01JNEXT"


def test_an_agent_with_several_runs_is_made_as_fresh_as_before_after_each_and_says_so_to_all() -> None:
    life = Life(max_runs=3)
    life.tell(OperatorConnected(2))
    for run_id in ("01JA", "01JB"):
        life.start(run_id=run_id)
        life.end_run(run_id)
        assert life.ack(run_id) == [RestoreRoom(run_id)]
        assert life.ack(run_id) == [], "it is told twice"
        fresh = [SendHello(connection, 1, (), False) for connection in (1, 2)]
        assert life.tell(RoomRestored(run_id)) == fresh
    assert has(PrepareRun, life.start(run_id=NEXT_ID))
    life.end_run(NEXT_ID)
    assert life.ack(NEXT_ID) == [Exit()]


def test_until_nothing_of_its_run_is_left_it_takes_no_other() -> None:
    life = Life(max_runs=2)
    life.start()
    life.end_run()
    refused = refusal(life.start(run_id=NEXT_ID))
    assert (refused.code, refused.run_id) == (RefusalCode.BUSY, NEXT_ID)
    life.ack()
    assert life.tell(OperatorConnected(2)) == [SendHello(2, 1, (), True)]
    assert refusal(life.start(run_id=NEXT_ID)).code is RefusalCode.BUSY
    life.tell(RoomRestored(RUN_ID))
    assert has(PrepareRun, life.start(run_id=NEXT_ID))


def test_where_something_of_a_run_is_left_the_agent_leaves() -> None:
    life = Life(max_runs=2)
    life.start()
    life.end_run()
    life.ack()
    assert life.tell(RoomRestored(RUN_ID, "a file can't be removed")) == [Exit()]
    assert refusal(life.start(run_id=NEXT_ID)).code is RefusalCode.USED


@pytest.mark.parametrize(
    "lock", [Lock(condition=condition) for condition in (LockCondition.HELD, LockCondition.UNKNOWN)]
)
def test_after_an_end_that_is_in_doubt_it_takes_no_other_run(lock: Lock) -> None:
    life = Life(max_runs=2)
    life.start()
    life.end_run(lock=lock)
    assert life.tell(OperatorConnected(2))[0] == SendHello(2, 1, (RUN_ID,), True)
    assert life.ack() == [Exit()]


@pytest.mark.parametrize(
    ("state", "lock", "forced", "expected"),
    [
        (StateCondition.COMPLETE, LockCondition.RELEASED, False, True),
        (StateCondition.COMPLETE, LockCondition.RELEASED, True, False),
        (StateCondition.COMPLETE, LockCondition.HELD, False, False),
        (StateCondition.COMPLETE, LockCondition.UNKNOWN, False, False),
        *((state, LockCondition.RELEASED, False, False) for state in StateCondition if state != "Complete"),
    ],
)
def test_an_end_is_clean_where_state_and_lock_are_and_nothing_was_forced(
    state: StateCondition, lock: LockCondition, forced: bool, expected: bool
) -> None:
    for outcome in Outcome:
        result = Result(outcome=outcome, reason="x", message="", state=state, lock=Lock(condition=lock), forced=forced)
        assert is_clean(result) is expected


def test_of_a_past_run_nothing_is_known_but_how_it_ended() -> None:
    life = Life(max_runs=2)
    life.start()
    life.end_run()
    told = a_report(life.cancel())
    life.ack()
    life.tell(RoomRestored(RUN_ID))
    for todo in (life.start(), life.cancel()):
        report = a_report(todo)
        assert not has(PrepareRun, todo)
        assert report.result is not None
        assert told.result is not None
        assert (report.result.outcome, report.result.reason) == (told.result.outcome, told.result.reason)
        assert report.message == report.result.message == "this run has ended, and its end is on record"
        assert report.sequence > told.sequence
        told = report
    assert life.tell(OperatorConnected(2)) == [SendHello(2, 1, (), False)]


def test_a_pod_that_ends_between_two_runs_ends_at_once() -> None:
    life = Life(max_runs=2)
    life.start()
    life.end_run()
    life.ack()
    assert life.tell(PodTerminating()) == [Exit()]


# -- the pod's end


def test_an_idle_agent_leaves_at_once() -> None:
    assert Life().tell(PodTerminating()) == [Exit()]
    assert Life(is_connected=False).tell(PodTerminating()) == [Exit()]
    assert Life().tell(CommandReceived(OPERATOR, Leave(epoch=1))) == [Exit()]


def test_whoever_leads_no_more_can_not_tell_an_agent_to_leave() -> None:
    life = Life()
    life.tell(CommandReceived(OPERATOR, Cancel(epoch=2, run_id="never-came", reason=CancelReason.USER)))
    (answer,) = life.tell(CommandReceived(OPERATOR, Leave(epoch=1)))
    assert isinstance(answer, Answer)
    assert isinstance(answer.message, Refused)
    assert answer.message.code is RefusalCode.STALE_EPOCH


def test_an_agent_with_a_run_that_is_told_to_leave_ends_it_as_its_pods_end_does() -> None:
    life = Life()
    life.start()
    life.tell(CommandReceived(OPERATOR, Leave(epoch=1)))
    (report,) = [i.message for i in life.tell(OperatorConnected(2)) if isinstance(i, Answer)]
    assert isinstance(report, Report)
    assert report.cancel is not None
    assert report.cancel.reason is CancelReason.POD_TERMINATION


def test_a_busy_agent_cancels_its_run_and_leaves_after_the_ack() -> None:
    life = Life()
    life.start()
    todo = life.tell(PodTerminating())
    assert has(AbandonPreparation, todo)
    assert not has(Exit, todo)
    life.tell(OfRun(RUN_ID, SweepEmptied(0)))
    ended = life.tell(OfRun(RUN_ID, AftermathChecked(FREE, None)))
    assert not has(Exit, ended)
    report = [i.instruction.report for i in ended if isinstance(i, ForRun) and isinstance(i.instruction, SendReport)]
    assert report[0].result is not None
    assert report[0].result.reason == "CancelledByPodTermination"
    assert life.ack() == [Exit()]


def test_without_an_ack_it_leaves_a_few_seconds_later() -> None:
    life = Life()
    life.start()
    life.end_run()
    assert life.tell(PodTerminating()) == []
    assert life.agent.wake_at_s == life.now_s + 5.0
    assert life.tell(TimePassed(), after_s=4.9) == []
    assert life.tell(TimePassed(), after_s=0.2) == [Exit()]


def test_without_an_operator_it_leaves_as_soon_as_the_report_is_written() -> None:
    life = Life(is_connected=False)
    life.start()
    assert not has(Exit, life.tell(PodTerminating()))
    assert not has(Exit, life.tell(OfRun(RUN_ID, SweepEmptied(0)), after_s=9.0))
    assert life.tell(OfRun(RUN_ID, AftermathChecked(FREE, None)))[-1] == Exit()
    life = Life()
    life.start()
    life.end_run()
    life.tell(PodTerminating())
    assert life.tell(OperatorDisconnected(OPERATOR)) == [Exit()]


def test_a_terminating_agent_takes_no_run() -> None:
    life = Life()
    life.start()
    life.tell(PodTerminating())
    assert refusal(life.start(run_id="01JOTHER")).code is RefusalCode.USED


def test_time_wakes_the_run_whose_moment_has_come() -> None:
    life = Life()
    life.start(timeout_s=60)
    assert life.agent.wake_at_s == life.now_s + 60
    assert has(AbandonPreparation, life.tell(TimePassed(), after_s=60.0))


# -- the operator's absence


def test_without_an_operator_a_run_goes_on_for_ever_unless_its_pool_says_otherwise() -> None:
    life = Life()
    life.start(timeout_s=86400)
    life.tell(OperatorDisconnected(OPERATOR))
    assert life.agent.wake_at_s == 1000.0 + 86400
    assert life.tell(TimePassed(), after_s=80000) == []


def test_a_run_whose_operator_stays_away_ends_as_the_pool_wants_it() -> None:
    life = Life(operator_loss_s=1800)
    life.start(timeout_s=86400)
    life.tell(OperatorDisconnected(OPERATOR), after_s=500)
    assert life.agent.wake_at_s == life.now_s + 1800
    assert life.tell(TimePassed(), after_s=1799) == []
    todo = life.tell(TimePassed(), after_s=1)
    assert [i.instruction for i in todo if isinstance(i, ForRun)][:2] == [AbandonPreparation(), Sweep()]
    life.tell(OfRun(RUN_ID, SweepEmptied(0)))
    ended = life.tell(OfRun(RUN_ID, AftermathChecked(FREE, None)))
    (report,) = [i.instruction.report for i in ended if isinstance(i, ForRun) and isinstance(i.instruction, SendReport)]
    assert report.result is not None
    assert (report.result.outcome, report.result.reason) == (Outcome.FAILED, "OperatorLost")
    assert "no operator was connected for 1800 s, and onOperatorLoss of the pool is Cancel" in report.result.message
    assert report.cancel is not None
    assert (report.cancel.reason, report.cancel.cause) == (CancelReason.TIMEOUT, "OperatorLost")


def test_an_operator_that_comes_back_in_time_starts_the_wait_anew() -> None:
    life = Life(operator_loss_s=1800)
    life.start(timeout_s=86400)
    life.tell(OperatorDisconnected(OPERATOR))
    life.tell(OperatorConnected(2), after_s=1799)
    assert not has(AbandonPreparation, life.tell(TimePassed(), after_s=3600))
    life.tell(OperatorDisconnected(2))
    assert not has(AbandonPreparation, life.tell(TimePassed(), after_s=1799))
    assert has(AbandonPreparation, life.tell(TimePassed(), after_s=1))


def test_one_operator_of_two_is_enough() -> None:
    life = Life(operator_loss_s=1800)
    life.tell(OperatorConnected(2))
    life.start(timeout_s=86400)
    life.tell(OperatorDisconnected(OPERATOR))
    assert not has(AbandonPreparation, life.tell(TimePassed(), after_s=3600))


def test_the_absence_is_acted_upon_once_and_only_while_a_run_is_alive() -> None:
    life = Life(operator_loss_s=1800)
    life.tell(OperatorDisconnected(OPERATOR))
    assert life.agent.wake_at_s is None
    life.tell(OperatorConnected(2), after_s=3600)
    life.start(timeout_s=86400)
    life.tell(OperatorDisconnected(2))
    assert has(AbandonPreparation, life.tell(TimePassed(), after_s=1800))
    assert life.tell(TimePassed()) == []
