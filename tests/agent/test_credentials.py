"""A refresh of the credentials: when they are read again, when it is acknowledged, and to whom."""

from __future__ import annotations

from terrahalt_agent.core.agent import Agent
from terrahalt_agent.core.credentials import AGAIN_AFTER_S
from terrahalt_agent.core.events import (
    AftermathChecked,
    AgentEvent,
    CommandReceived,
    CredentialsRead,
    OfRun,
    OperatorConnected,
    PreparationFailed,
    RoomRestored,
    SweepEmptied,
    TimePassed,
)
from terrahalt_agent.core.instructions import AgentInstruction, Answer, ForRun, ReadCredentials, SendHello
from terrahalt_protocol.messages import Ack, CredentialsRefreshed, RefreshCredentials, RefusalCode, Refused
from tests.agent.builders import FREE, RUN_ID, a_start

OPERATOR, SUCCESSOR = 1, 2


class Life:
    """An agent and its operator; `busy()` has a run that is alive."""

    def __init__(self, max_runs: int = 1) -> None:
        self.agent = Agent(engine="terraform", boot_id="boot", max_runs=max_runs)
        self.now_s = 1000.0
        self.tell(OperatorConnected(OPERATOR))

    def tell(self, event: AgentEvent, after_s: float = 0.0) -> list[AgentInstruction]:
        self.now_s += after_s
        return self.agent.handle(event, self.now_s)

    def ask(self, refresh: str = "r1", *, epoch: int = 1, by: int = OPERATOR) -> list[AgentInstruction]:
        return self.tell(CommandReceived(by, RefreshCredentials(epoch=epoch, refresh=refresh)))

    def end_run(self) -> list[AgentInstruction]:
        self.tell(OfRun(RUN_ID, PreparationFailed("SourceInvalid", "no")))
        self.tell(OfRun(RUN_ID, SweepEmptied(0)))
        return self.tell(OfRun(RUN_ID, AftermathChecked(FREE, None)))

    def hello(self) -> SendHello:
        hello = self.tell(OperatorConnected(SUCCESSOR))[0]
        assert isinstance(hello, SendHello)
        return hello


def busy(max_runs: int = 1) -> Life:
    life = Life(max_runs)
    life.tell(CommandReceived(OPERATOR, a_start()))
    return life


def read(refresh: str = "r1") -> ForRun:
    return ForRun(RUN_ID, ReadCredentials(refresh))


def acknowledged(refresh: str = "r1", *, to: int = OPERATOR) -> Answer:
    return Answer(to, CredentialsRefreshed(refresh=refresh))


def failed(problem: str, refresh: str = "r1") -> Answer:
    return Answer(OPERATOR, CredentialsRefreshed(refresh=refresh, problem=problem))


def test_an_agent_without_a_run_holds_no_credentials_so_a_refresh_is_done_at_once() -> None:
    life = Life()
    assert life.ask() == [acknowledged()]
    assert life.hello().refreshed == "r1"


def test_an_agent_with_a_run_acknowledges_only_what_it_has_read() -> None:
    life = busy()
    assert life.ask() == [read()]
    assert life.hello().refreshed == ""
    assert life.tell(CredentialsRead("r1")) == [acknowledged()]
    assert life.hello().refreshed == "r1"


def test_the_same_refresh_again_is_read_once_and_who_asked_last_is_told() -> None:
    life = busy()
    life.ask()
    life.tell(OperatorConnected(SUCCESSOR))
    assert life.ask(by=SUCCESSOR, epoch=2) == []
    assert life.tell(CredentialsRead("r1")) == [acknowledged(to=SUCCESSOR)]
    assert life.ask(epoch=2) == [acknowledged()]


def test_what_was_read_before_a_newer_refresh_was_asked_for_does_not_count_for_it() -> None:
    life = busy()
    life.ask("r1")
    assert life.ask("r2") == [read("r2")]
    assert life.tell(CredentialsRead("r1")) == []
    assert life.tell(CredentialsRead("r2")) == [acknowledged("r2")]


def test_what_cannot_be_read_is_told_once_and_read_again_until_it_can() -> None:
    life = busy()
    life.ask()
    assert life.tell(CredentialsRead("r1", "Secret aws was not found")) == [failed("Secret aws was not found")]
    assert life.hello().refreshed == ""
    assert life.tell(TimePassed(), AGAIN_AFTER_S - 0.1) == []
    assert life.agent.wake_at_s is not None
    assert round(life.agent.wake_at_s - life.now_s, 6) == 0.1
    assert life.tell(TimePassed(), 0.1) == [read()]
    assert life.tell(CredentialsRead("r1", "Secret aws was not found")) == []
    assert life.tell(TimePassed(), AGAIN_AFTER_S) == [read()]
    assert life.tell(CredentialsRead("r1", "HTTP 503")) == [failed("HTTP 503")]
    life.tell(TimePassed(), AGAIN_AFTER_S)
    assert life.tell(CredentialsRead("r1")) == [acknowledged()]
    assert life.tell(TimePassed(), 10 * AGAIN_AFTER_S) == []


def test_an_operator_that_asks_anew_is_told_of_the_problem_that_is_still_there() -> None:
    life = busy()
    life.ask()
    life.tell(CredentialsRead("r1", "HTTP 503"))
    life.tell(OperatorConnected(SUCCESSOR))
    assert life.ask(by=SUCCESSOR, epoch=2) == []
    life.tell(TimePassed(), AGAIN_AFTER_S)
    (told,) = life.tell(CredentialsRead("r1", "HTTP 503"))
    assert told == Answer(SUCCESSOR, CredentialsRefreshed(refresh="r1", problem="HTTP 503"))


def test_a_newer_refresh_does_not_wait_for_the_next_try_of_the_one_before() -> None:
    life = busy()
    life.ask("r1")
    life.tell(CredentialsRead("r1", "Secret aws was not found"))
    assert life.ask("r2") == [read("r2")]
    assert life.tell(CredentialsRead("r2", "Secret aws was not found")) == [failed("Secret aws was not found", "r2")]


def test_with_the_end_of_the_run_nothing_is_left_to_be_read() -> None:
    life = busy()
    life.ask()
    assert life.end_run()[-1] == acknowledged()
    assert life.tell(CredentialsRead("r1", "too late")) == []
    assert life.agent.wake_at_s is None


def test_an_agent_that_takes_another_run_says_with_it_which_refresh_it_has_carried_out() -> None:
    life = busy(max_runs=2)
    life.ask()
    life.end_run()
    life.tell(CommandReceived(OPERATOR, Ack(epoch=1, run_id=RUN_ID)))
    (hello,) = life.tell(RoomRestored(RUN_ID))
    assert isinstance(hello, SendHello)
    assert (hello.connection, hello.used, hello.refreshed) == (OPERATOR, False, "r1")
    life.tell(CommandReceived(OPERATOR, a_start(run_id="01JNEXTRUN")))
    assert life.ask("r2") == [ForRun("01JNEXTRUN", ReadCredentials("r2"))]


def test_an_operator_that_leads_no_more_refreshes_nothing() -> None:
    life = busy()
    life.ask("r1", epoch=5)
    text = "epoch 4 is over: an operator with epoch 5 has taken over"
    refused = Refused(code=RefusalCode.STALE_EPOCH, message=text, highest_epoch=5)
    assert life.ask("r2", epoch=4) == [Answer(OPERATOR, refused)]
    assert life.tell(CredentialsRead("r1")) == [acknowledged("r1")]
