"""What is to be done, in the imperative: all that `run` and `agent` can ask for.

`driver` carries them out in the order in which they come.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrahalt_protocol.messages import CredentialsRefreshed, OutputsTo, Refused, Report, Start, Step


@dataclass(frozen=True, slots=True)
class PrepareRun:
    start: Start


@dataclass(frozen=True, slots=True)
class AbandonPreparation:
    """Or the keeping of a plan, the sharing of providers, the publishing of outputs. What it still tells later is
    ignored."""


@dataclass(frozen=True, slots=True)
class ExecTerraform:
    step: Step
    in_default_workspace: bool = False
    """The run's own is not there yet, and init would refuse it; the plan makes it."""


@dataclass(frozen=True, slots=True)
class InterruptTerraform:
    """SIGINT to terraform's process alone: its group would take the providers with it."""


@dataclass(frozen=True, slots=True)
class KillProviders:
    """SIGKILL to everything of the run but terraform itself."""


@dataclass(frozen=True, slots=True)
class FreezeTerraform:
    """SIGSTOP, read its log to the end, look at the state's lock, tell `TerraformFrozen`."""


@dataclass(frozen=True, slots=True)
class ThawTerraform:
    pass


@dataclass(frozen=True, slots=True)
class KillTerraform:
    pass


@dataclass(frozen=True, slots=True)
class Sweep:
    """SIGKILL to every descendant of the agent until there is none; tell which way it ended."""


@dataclass(frozen=True, slots=True)
class DrainOutput:
    pass


@dataclass(frozen=True, slots=True)
class ShareProviders:
    """Those that init has fetched, with other agents; tell `ProvidersShared`."""


@dataclass(frozen=True, slots=True)
class KeepState:
    """Copy the state as it is, before it is changed; tell `StateKept`."""


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """Show the plan to people, and keep it for the agent that will apply it; tell `PlanKept`."""


@dataclass(frozen=True, slots=True)
class CheckAftermath:
    """Release the state's lock if it is this run's, and keep a state that was not saved."""

    may_hold_lock: bool = False
    """terraform may have left the lock; False: it ended by itself, and told of no trouble with it."""
    again_after_s: float | None = None
    """Where this run has no lock, look again after so long: it may be granted to who has died since."""
    reads_state: bool = False
    """See whether the state can still be read: its writer may have died in the middle."""


@dataclass(frozen=True, slots=True)
class PublishOutputs:
    """Of the state as it is now, into a Secret; tell `OutputsPublished`."""

    to: OutputsTo


@dataclass(frozen=True, slots=True)
class ReadCredentials:
    """What envFrom names, again, for the steps that are to come; tell `CredentialsRead`."""

    refresh: str


@dataclass(frozen=True, slots=True)
class SendReport:
    """To every operator that is connected."""

    report: Report


@dataclass(frozen=True, slots=True)
class WriteTerminationMessage:
    report: Report
    key: str


@dataclass(frozen=True, slots=True)
class LeaveToKernel:
    """Processes can't be killed: end the agent, so that the kernel ends its whole namespace."""

    alive: tuple[int, ...]


RunInstruction = (
    PrepareRun
    | AbandonPreparation
    | ExecTerraform
    | InterruptTerraform
    | KillProviders
    | FreezeTerraform
    | ThawTerraform
    | KillTerraform
    | Sweep
    | DrainOutput
    | ShareProviders
    | KeepState
    | KeepPlan
    | CheckAftermath
    | PublishOutputs
    | ReadCredentials
    | SendReport
    | WriteTerminationMessage
    | LeaveToKernel
)


@dataclass(frozen=True, slots=True)
class ForRun:
    run_id: str
    instruction: RunInstruction


@dataclass(frozen=True, slots=True)
class SendHello:
    connection: int
    highest_epoch: int
    runs: tuple[str, ...]
    used: bool
    refreshed: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """To the one operator that asked."""

    connection: int
    message: Refused | Report | CredentialsRefreshed


@dataclass(frozen=True, slots=True)
class RestoreRoom:
    """Leave nothing of this run, which has ended and is on record, for the next one."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Nothing is left to do or to tell."""


AgentInstruction = ForRun | SendHello | Answer | RestoreRoom | Exit
