"""Every message of the control socket, with its units and its sender.

`Hello`, `Cancel` and `Report` are frozen as v1: a field may be added with a default, none may be
removed, renamed or made stricter, so that any operator can halt a run on any agent. `Start` alone
may need equal versions. Ages are seconds before the message was sent, on the agent's monotonic
clock: the operator turns them into times of its own clock, so that no stage is ever negative.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

PROTOCOL_VERSION = 1


class Action(StrEnum):
    PLAN = "Plan"
    APPLY = "Apply"
    DESTROY = "Destroy"


class CancelMode(StrEnum):
    """Only climbs: Force begins at the providers, and never skips the sweep."""

    GRACEFUL = "Graceful"
    FORCE = "Force"


SUPERSEDED = "Superseded"
"""`CancelReport.cause` and `Result.reason` of a run that was ended for `Cancel.superseded_by`."""


class CancelReason(StrEnum):
    """Who asked for the end of a run; the first reason wins.

    It has no more values in version 1: who does not know one can't read the whole report. Which timeout it
    was, `Result.reason` tells."""

    USER = "User"
    DELETION = "Deletion"
    TIMEOUT = "Timeout"
    POD_TERMINATION = "PodTermination"


class Step(StrEnum):
    """How far a run has come; the order is the order of a run."""

    PREPARE = "Prepare"
    INIT = "Init"
    PLAN = "Plan"
    APPLY = "Apply"
    SWEEP = "Sweep"


class Outcome(StrEnum):
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class Rung(StrEnum):
    """The highest rung of the ladder that was used on a run; `None` ended by itself."""

    NOT_STARTED = "NotStarted"
    GATE = "Gate"
    INTERRUPT = "Interrupt"
    KILL_PROVIDERS = "KillProviders"
    SECOND_INTERRUPT = "SecondInterrupt"
    KILL = "Kill"


class StateCondition(StrEnum):
    """What is known of the terraform state after the end."""

    COMPLETE = "Complete"
    INCOMPLETE = "Incomplete"
    NOT_PERSISTED = "NotPersisted"
    CORRUPT = "Corrupt"
    UNKNOWN = "Unknown"


class LockCondition(StrEnum):
    """What is known of the state's lock after the end; never taken counts as Released."""

    RELEASED = "Released"
    HELD = "Held"
    UNKNOWN = "Unknown"


class TaskRef(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    name: str
    uid: str


class ConfigFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of `secret` and `config_map` is set; the agent reads it with its own account."""

    secret: str | None = None
    config_map: str | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        """With its kind, as people read it."""
        return f"ConfigMap {self.config_map}" if self.secret is None else f"Secret {self.secret}"


class GitSource(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of a repository."""

    url: str
    ref: str = ""
    """A branch, a tag or a full commit; empty: the branch that the server names as its HEAD."""
    path: str = ""
    """Empty: the root of the repository."""
    secret: str = ""
    """With what its server is asked; the agent reads it with its own account. Empty: with nothing."""
    authority: ConfigFrom | None = None
    """Of the server's certificate, as the key ca.crt; None: those of the environment."""
    submodules: bool = False

    @property
    def is_plain(self) -> bool:
        """Every agent that knows repositories can fetch it."""
        return not (self.secret or self.authority or self.submodules)


class ArchiveSource(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of a tar.gz or zip."""

    url: str
    sha256: str
    """In hex; nothing of another file is opened."""
    path: str = ""
    """Empty: the root of the archive."""
    secret: str = ""
    """As of a repository."""
    authority: ConfigFrom | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one is set: files by relative path, the name of a ConfigMap of the namespace, a repository or an archive.

    An agent that does not know a kind reads that none is set, and fails the run before anything of it is started.
    """

    inline: dict[str, str] | None = None
    config_map: str | None = None
    git: GitSource | None = None
    """A plain one."""
    private_git: GitSource | None = None
    """Any other: an agent that does not know what it needs would fetch something else, so this is a kind of its own."""

    archive: ArchiveSource | None = None

    @property
    def repository(self) -> GitSource | None:
        return self.git or self.private_git

    @property
    def remote(self) -> GitSource | ArchiveSource | None:
        """What has to be fetched from a server."""
        return self.repository or self.archive


class EnvFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of `secret` and `config_map` is set; the agent reads it with its own account."""

    secret: str | None = None
    config_map: str | None = None
    prefix: str = ""
    optional: bool = False


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """Where the state is, if not where it is by default."""

    type: str
    config: dict[str, Any] = {}
    config_from: tuple[ConfigFrom, ...] = ()
    """Later ones win, and win over `config`."""
    source: Source
    """The run's. It travels here, and `Start.source` is empty: an agent that does not know backends reads that there
    is no source, and fails the run before anything of it is started, where it would else use its own backend."""


class ApprovedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that a person has approved; nothing else may be applied."""

    run_id: str
    """The run that made and kept it."""
    digest: str
    summary: PlanSummary


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A person decides between plan and apply, so each is a run of its own."""

    source: Source
    """The run's. It travels here, `Start.source` and `Backend.source` are empty: an agent that does not know approvals
    would plan and apply in one go; it reads that there is no source, and starts nothing."""
    plan: ApprovedPlan | None = None
    """None: plan, keep the plan, and end."""


class OutputsTo(msgspec.Struct, frozen=True, kw_only=True):
    """The Secret that gets the outputs of an apply."""

    secret: str
    include_sensitive: bool = False
    retain: bool = False
    """It outlives the task."""


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a module beside `Start.variables`, and what comes out of it."""

    source: Source
    """The run's. It travels here, and `source` of `Start`, `Backend` and `Approval` is empty: an agent that does not
    know values would run without them; it reads that there is no source, and starts nothing."""
    variables_from: tuple[ConfigFrom, ...] = ()
    """Later ones win; `Start.variables` win over all of them."""
    outputs_to: OutputsTo | None = None
    """None: they stay in the state."""


class Start(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Start"):
    """Operator -> agent: run this, once. The same run ID again changes nothing."""

    epoch: int
    run_id: str
    task: TaskRef
    action: Action
    workspace: str
    source: Source
    """Empty where there is a `backend`, an `approval` or `values`: read `files_from`."""
    backend: Backend | None = None
    """None: terraform's kubernetes backend, in the task's namespace."""
    approval: Approval | None = None
    """None: an apply follows its plan at once."""
    values: Values | None = None
    """None: there is nothing of it."""
    variables: dict[str, Any] = {}
    env_from: tuple[EnvFrom, ...] = ()
    timeout_s: int = 3600
    no_output_timeout_s: int | None = None
    """None: none; so too on an agent that does not know it."""
    init_timeout_s: int | None = None
    """The same."""
    lock_timeout_s: int = 60
    """terraform's own `-lock-timeout`."""
    cancel_grace_s: int = 300
    report_key: str
    """Hex; signs the reports of this run (`signing`). Never logged, never in an environment."""

    @property
    def files_from(self) -> Source:
        if self.values is not None:
            return self.values.source
        if self.approval is not None:
            return self.approval.source
        return self.source if self.backend is None else self.backend.source


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Cancel"):
    """Operator -> agent: end this run. For a run that is not known it leaves a tombstone."""

    epoch: int
    run_id: str
    reason: CancelReason
    mode: CancelMode = CancelMode.GRACEFUL
    grace_s: int | None = None
    """Replaces the grace of `Start` if shorter; None keeps it."""
    report_key: str = ""
    """So that the report of a run that never came can be signed too."""
    superseded_by: str = ""
    """The task that takes this one's place: then the run is ended only if its apply has not begun, which the agent
    alone can tell. Empty: it is ended in any case; so too on an agent that does not know it (`Hello.spares_apply`)."""


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Ack"):
    """Operator -> agent: the final report of this run is on record; it may be forgotten."""

    epoch: int
    run_id: str


class RefreshCredentials(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="RefreshCredentials"):
    """Operator -> agent: read what `Start.env_from` names again; what is running is not disturbed.

    Only to one whose `Hello.refreshed` is not None: an older agent can't read this, and hangs up."""

    epoch: int
    refresh: str
    """Which one; another one takes its place."""


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Leave"):
    """Operator -> agent: your pod is to end. SIGTERM says the same, and is lost on a process that has hardly begun.

    Only to one whose `Hello.leaves` is true: an older agent can't read this, and hangs up."""

    epoch: int


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Hello"):
    """Agent -> operator, first on every connection; and again when an agent that takes several runs may take the
    next one."""

    protocol_version: int
    agent_version: str
    namespace: str
    pod_name: str
    pod_uid: str
    boot_id: str
    """New with every start of the agent process."""
    identity_token: str = ""
    """The pod's projected ServiceAccount token for the audience `terrahalt.dev/agent`."""
    highest_epoch: int = 0
    runs: tuple[str, ...] = ()
    """The run IDs it holds: alive, or ended and not acknowledged. A report for each follows."""
    used: bool = False
    """It has had its run, and takes no other."""
    spares_apply: bool = False
    """It knows `Cancel.superseded_by`. To who does not, such a Cancel must not be sent."""
    architecture: str = ""
    """As the machine calls itself, for example x86_64; empty: the agent is older than this field."""
    refreshed: str | None = None
    """The last `RefreshCredentials` that it has carried out; empty: none; None: it knows no such command."""
    leaves: bool = False
    """It knows `Leave`."""


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    add: int = 0
    change: int = 0
    destroy: int = 0


class CancelAges(msgspec.Struct, frozen=True, kw_only=True):
    """How long ago, in seconds; None has not happened."""

    received_s: float | None = None
    signalled_s: float | None = None
    exited_s: float | None = None
    swept_s: float | None = None


class CancelReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent has done about a cancel so far."""

    reason: CancelReason
    mode: CancelMode
    rung: Rung
    ages: CancelAges
    cause: str = ""
    """CamelCase; why the run is ended, where `reason` is only the nearest that every operator knows: a reason
    that it does not know would keep an operator from reading the report. Empty: `reason` says it."""


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    condition: LockCondition
    id: str = ""
    who: str = ""
    command: str = ""
    """What a person types to release it, where that is needed."""


class KeptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that waits for a person, in Secrets of the task."""

    digest: str
    """`sha256:` and, in hex, the SHA-256 of all that an apply of it gets."""
    architecture: str
    """Of the machine that it was made on: another one has other providers."""


class PublishedOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `Values.outputs_to`."""

    secret: str
    count: int = 0
    problem: str = ""
    """Why they are not there; the apply was done all the same. Empty: they are."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run, told after the sweep: no process of it is alive when this is sent."""

    outcome: Outcome
    reason: str
    message: str
    exit_code: int | None = None
    """Of the last terraform process; negative is the signal that ended it; None: none ran."""
    state: StateCondition
    lock: Lock
    forced: bool = False
    open_addresses: tuple[str, ...] = ()
    """At most 50; resources whose operation was under way when terraform was killed."""
    open_address_count: int = 0
    outputs: PublishedOutputs | None = None
    log_kept: bool = False
    """In the Secret of `kept_log.name`."""
    kept_plan: KeptPlan | None = None
    """The run has ended well, and its task has not: `outcome` is then Failed, the nearest that every operator knows, so
    that none takes a task for done that nobody has approved."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Report"):
    """Agent -> operator: all that is true of a run now. A later `sequence` replaces an earlier."""

    run_id: str
    task_uid: str
    boot_id: str
    sequence: int
    step: Step
    started_s: float | None = None
    """Age of the run's start; None: it never began."""
    message: str = ""
    plan: PlanSummary | None = None
    resources_done: int = 0
    resources_current: str = ""
    cancel: CancelReport | None = None
    result: Result | None = None
    """Set on the final report, which is kept until it is acknowledged."""
    source_commit: str = ""
    """The commit that a git source's `ref` stood for when it was fetched; empty: none was."""


class RefusalCode(StrEnum):
    STALE_EPOCH = "StaleEpoch"
    BUSY = "Busy"
    USED = "Used"
    VERSION = "Version"
    MALFORMED = "Malformed"


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Refused"):
    """Agent -> operator: a command was not carried out, and why."""

    code: RefusalCode
    message: str
    run_id: str = ""
    highest_epoch: int = 0


class CredentialsRefreshed(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="CredentialsRefreshed"):
    """Agent -> operator, to the one that asked: each step from now on gets what was read after it was asked."""

    refresh: str
    problem: str = ""
    """Why it could not be read: what was read before stays, and the agent tries again. Empty: it was."""


Command = Start | Cancel | Ack | RefreshCredentials | Leave
FromAgent = Hello | Report | Refused | CredentialsRefreshed
