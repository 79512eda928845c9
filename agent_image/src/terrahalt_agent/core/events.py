"""What has happened, in the past tense: all that `run` and `agent` ever learn.

An event carries facts, never a wish; the time comes beside it, as monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrahalt_agent.core.resources import Cause, Disk, Memory
from terrahalt_agent.core.terraform_log import Line
from terrahalt_protocol.messages import CancelMode, CancelReason, Command, Lock


@dataclass(frozen=True, slots=True)
class RunPrepared:
    """Working directory, source, variables and environment are there."""

    commit: str = ""
    """Of a git source, in full."""
    frees_locks: bool = False
    """No lock of the state outlives a terraform that is killed: it goes with the process, or is released here."""
    lock_command: str = ""
    """How a person sees whether the state's lock is held, should nobody here find the time; empty: no need."""
    shares_providers: bool = False
    """What init fetches may be new to other agents."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ExecFailed:
    """terraform could not be started at all."""

    message: str


@dataclass(frozen=True, slots=True)
class LinesLogged:
    """terraform wrote these, in this order; a line comes once, and never after `OutputDrained`."""

    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class OthersSeen:
    """So many processes of the run are alive beside terraform itself: providers, and what user code started."""

    alive: int
    is_busy: bool = False
    """They or terraform computed, or waited for a CPU, since the look before."""


@dataclass(frozen=True, slots=True)
class TerraformFrozen:
    """It is stopped, and all that it wrote before came as `LinesLogged`."""

    has_lock: bool = False
    """It was seen to hold the state's lock."""


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """terraform was reaped; a negative code is the signal that ended it."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class SweepEmptied:
    """The kernel says that the agent has no child left, alive or dead."""

    killed: int


@dataclass(frozen=True, slots=True)
class SweepStalled:
    """Some were still there when the sweep's time was over."""

    alive: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputDrained:
    """All that was ever written has come; `is_whole` is False where time was over before the end."""

    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class ErroredState:
    """A state that terraform could not save."""

    file: str
    """In the agent's container."""
    fetch: str = ""
    """What a person types to have it in a file of its own, from the Secrets that it is kept in; empty: from none."""
    problem: str = ""
    """Why it is not kept in any."""


@dataclass(frozen=True, slots=True)
class TornState:
    """It can't be read any more: what a person types about it."""

    remove: str
    """Removes what is left of it: over that, nothing can be pushed."""
    fetch: str = ""
    """Writes the state from before the apply into a file; empty: there was none."""


@dataclass(frozen=True, slots=True)
class ProvidersShared:
    """Or it was tried: no run depends on it."""


@dataclass(frozen=True, slots=True)
class StateKept:
    """The state as it is before the apply was copied, or there is nothing that has to be."""

    problem: str = ""
    """Why it could not be, or must not be changed."""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class PlanKept:
    """The plan lies where another agent can get it, with all that its apply needs; or it does not."""

    digest: str = ""
    architecture: str = ""
    reason: str = ""
    """CamelCase; why the run has failed by it. Empty: it has not."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AftermathChecked:
    lock: Lock
    errored_state: ErroredState | None = None
    """What terraform left because it could not save it."""
    torn_state: TornState | None = None
    log_kept: bool = False


@dataclass(frozen=True, slots=True)
class OutputsPublished:
    """So many are in the Secret now; or none is."""

    count: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    reason: CancelReason
    mode: CancelMode = CancelMode.GRACEFUL
    grace_s: float | None = None
    cause: Cause | None = None
    """What `reason`, which every operator has to know, says too roughly."""
    spares_apply: bool = False
    """It comes too late once the apply has begun."""


@dataclass(frozen=True, slots=True)
class ResourcesSeen:
    """A look at memory and disk; None: there is no limit, or it can't be read."""

    memory: Memory | None = None
    disk: Disk | None = None


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The moment of `wake_at_s` has come."""


RunEvent = (
    RunPrepared
    | PreparationFailed
    | ExecFailed
    | LinesLogged
    | OthersSeen
    | TerraformFrozen
    | ProcessExited
    | SweepEmptied
    | SweepStalled
    | OutputDrained
    | ProvidersShared
    | StateKept
    | PlanKept
    | AftermathChecked
    | OutputsPublished
    | CancelRequested
    | ResourcesSeen
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class OperatorConnected:
    connection: int


@dataclass(frozen=True, slots=True)
class OperatorDisconnected:
    connection: int


@dataclass(frozen=True, slots=True)
class CommandReceived:
    connection: int
    command: Command


@dataclass(frozen=True, slots=True)
class CommandMangled:
    """What came could not be read."""

    connection: int
    message: str


@dataclass(frozen=True, slots=True)
class CredentialsRead:
    """What the run's envFrom names was read, after this refresh was asked for; or it could not be."""

    refresh: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PodTerminating:
    """SIGTERM: the kubelet ends this pod after its grace."""


@dataclass(frozen=True, slots=True)
class OfRun:
    run_id: str
    event: RunEvent


@dataclass(frozen=True, slots=True)
class RoomRestored:
    """Nothing of the run is left; or something is, and then it says what."""

    run_id: str
    problem: str = ""


AgentEvent = (
    OperatorConnected
    | OperatorDisconnected
    | CommandReceived
    | CommandMangled
    | CredentialsRead
    | PodTerminating
    | OfRun
    | RoomRestored
    | TimePassed
)
