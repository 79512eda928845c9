"""The times that a run must not exceed, and what its end is called when it does.

Each of them only sets off the ladder, as a cancel does; the first one names the result. Another is
terraform's own: the wait for the state's lock, which `stream` reads of. Asked by `run` at each look at
its clock; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrahalt_protocol.messages import Start, Step

LOCK_TIMED_OUT = "LockTimedOut"


@dataclass(frozen=True, slots=True)
class Timeout:
    reason: str
    text: str
    """How the result's message begins: TEXT in terraform apply, which stopped after SIGINT."""


@dataclass(frozen=True, slots=True)
class AtWork:
    """The process that is alive."""

    step: Step
    started_at_s: float
    heard_at_s: float
    """When it was started, or has written a line of its own last."""


def next_timeout(start: Start, started_at_s: float, process: AtWork | None) -> tuple[float, Timeout]:
    """Which comes next, and when. Between two processes nobody could write a line: only the whole run counts."""
    due = [(started_at_s + start.timeout_s, Timeout("TimedOut", "timed out"))]
    if process is not None and start.no_output_timeout_s is not None:
        silence = Timeout("NoOutputTimedOut", f"timed out ({start.no_output_timeout_s} s without output)")
        due.append((process.heard_at_s + start.no_output_timeout_s, silence))
    if process is not None and process.step is Step.INIT and start.init_timeout_s is not None:
        init = Timeout("InitTimedOut", f"timed out ({start.init_timeout_s} s for init)")
        due.append((process.started_at_s + start.init_timeout_s, init))
    return min(due, key=lambda timeout: timeout[0])
