"""Which refresh of the credentials this agent has carried out, and what is still to be done for the one that was asked.

Credentials are read at the beginning of a run. Who has no run that is alive holds none, so for it a refresh is done at
once; else they are read again, as often as it takes, and only what was read after the refresh was asked for counts.
Called by `agent`; pure.
"""

from __future__ import annotations

from terrahalt_agent.core.instructions import AgentInstruction, Answer, ForRun, ReadCredentials
from terrahalt_protocol.messages import CredentialsRefreshed

AGAIN_AFTER_S = 5.0
"""A Secret that is being replaced is there again soon; an API server is asked several times by each read already."""


class Refreshes:
    def __init__(self) -> None:
        self.done = ""
        """The last that was carried out; empty: none."""
        self._asked: str | None = None
        """What is still to be carried out, and by whom it was asked for last."""
        self._asker = 0
        self._is_reading = False
        self._again_at_s: float | None = None
        self._problem = ""

    def ask(self, refresh: str, connection: int) -> None:
        """The same one again changes nothing but who is told, of a problem too."""
        self._asker, self._problem = connection, ""
        if refresh != self._asked:
            self._asked, self._is_reading, self._again_at_s = refresh, False, None

    def note(self, refresh: str, problem: str, now_s: float) -> list[AgentInstruction]:
        """A read that began before the latest refresh was asked for may have found what was there before."""
        if refresh != self._asked:
            return []
        self._is_reading = False
        if not problem:
            return self._finish(refresh)
        self._again_at_s = now_s + AGAIN_AFTER_S
        if problem == self._problem:
            return []
        self._problem = problem
        return [Answer(self._asker, CredentialsRefreshed(refresh=refresh, problem=problem))]

    def go_on(self, alive_run: str | None, now_s: float) -> list[AgentInstruction]:
        """What is to be done now; `alive_run` None: nothing of a run is to come."""
        if self._asked is None:
            return []
        if alive_run is None or self._asked == self.done:
            return self._finish(self._asked)
        if self._is_reading or (self._again_at_s is not None and now_s < self._again_at_s):
            return []
        self._is_reading, self._again_at_s = True, None
        return [ForRun(alive_run, ReadCredentials(self._asked))]

    @property
    def wake_at_s(self) -> float | None:
        return self._again_at_s

    def _finish(self, refresh: str) -> list[AgentInstruction]:
        self.done, self._asked, self._is_reading, self._again_at_s = refresh, None, False, None
        return [Answer(self._asker, CredentialsRefreshed(refresh=refresh))]
