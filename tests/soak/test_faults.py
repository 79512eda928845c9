"""A fault is done once, undone again, and told as missed where there was nothing to do it to. Needs no cluster."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass, field, replace

import pytest

from tests.e2e.kubectl import Json, Kubectl
from tests.e2e.node_watcher import NodeWatcher
from tests.e2e.seen import Seen
from tests.soak.faults import Faults

DONE = ""
GONE = 'Error from server (NotFound): pods "agent" not found'
REFUSED = "The connection to the server 127.0.0.1:6443 was refused"
FORBIDDEN_BY_BUDGET = "Cannot evict pod as it would violate the pod's disruption budget."
WRONG = "error: unknown flag: --forse"


@dataclass(frozen=True)
class Scripted(Kubectl):
    """Answers with these, one after the other."""

    answers: list[str] = field(default_factory=list)

    def attempt(self, *arguments: str, stdin: str = "", within_s: float = 60) -> subprocess.CompletedProcess[str]:
        text = self.answers.pop(0)
        return subprocess.CompletedProcess(arguments, 1 if text else 0, "", text)


class SignalledNodes(NodeWatcher):
    def __init__(self, *, is_there: bool) -> None:
        self.signals: list[int] = []
        self._is_there = is_there

    def kill(self, process: Json, number: int = signal.SIGKILL) -> bool:
        self.signals.append(number)
        return self._is_there


def kubectl(*answers: str, api_goes_away: bool = True) -> bool:
    here = Seen().task.installation
    scripted = Scripted(program=here.kubectl.program, environment={}, answers=list(answers))
    was_done = Faults(replace(here, kubectl=scripted), api_goes_away).kubectl("delete", "pod", "agent")
    assert not scripted.answers
    return was_done


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_what_is_gone_or_forbidden_for_now_is_missed_and_a_mistake_is_an_error() -> None:
    assert kubectl(DONE)
    assert not kubectl(GONE)
    assert not kubectl(FORBIDDEN_BY_BUDGET)
    with pytest.raises(AssertionError, match="unknown flag"):
        kubectl(WRONG)


def test_a_command_is_given_again_while_the_api_server_is_away(slept_s: list[float]) -> None:
    assert kubectl(REFUSED, REFUSED, DONE)
    assert len(slept_s) == 2
    # The first one may have got there.
    assert kubectl(REFUSED, GONE)


def test_an_api_server_that_nobody_took_away_has_to_answer() -> None:
    with pytest.raises(AssertionError, match="refused"):
        kubectl(REFUSED, api_goes_away=False)


def test_what_is_frozen_goes_on_after_its_time(slept_s: list[float]) -> None:
    for is_there, signals in ((True, [signal.SIGSTOP, signal.SIGCONT]), (False, [signal.SIGSTOP])):
        nodes = SignalledNodes(is_there=is_there)
        faults = Faults(replace(Seen().task.installation, nodes=nodes), api_goes_away=False)
        assert faults.freeze({"pid": 7}, 3.0) is is_there
        assert nodes.signals == signals
    assert slept_s == [3.0]
    assert not faults.freeze(None, 3.0)
