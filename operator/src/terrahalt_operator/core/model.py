"""What the operator knows, as immutable values: tasks, pools, agents, claims, sessions.

Built by `adapters.objects` from the API's JSON, put together by `world`, read by the rest of `core`.
Never holds behaviour beyond plain questions about itself. Times are seconds since the epoch, on the
operator's clock. It has more than 500 lines because every field of the API that is read or written is here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from terrahalt_protocol.backends import KUBERNETES
from terrahalt_protocol.messages import Action, Cancel, Hello, Refused, Report

QUEUED, ASSIGNED, PREPARING, PLANNING, AWAITING_APPROVAL, APPLYING, CANCELLING = (
    "Queued",
    "Assigned",
    "Preparing",
    "Planning",
    "AwaitingApproval",
    "Applying",
    "Cancelling",
)
SUCCEEDED, FAILED, CANCELLED = "Succeeded", "Failed", "Cancelled"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
INVALID_BUDGET = "InvalidBudget"
"""The reason of a task whose end does not fit into its pool's pods (`fit`)."""
ABANDONED = "Abandoned"
"""The reason of the one end that needs no evidence."""
APPROVAL_NOT_ALLOWED = "ApprovalNotAllowed"
"""The reason of a task whose pool allows no such approval."""
DEFAULT_IDLE_TIMEOUT_SECONDS = 600


class DrainPolicy(StrEnum):
    """What becomes of a run whose pod is evicted: by a drain of its node, or by an autoscaler."""

    LADDER = "Ladder"
    WAIT = "Wait"


class CancelMode(StrEnum):
    """How a person wants a run to end; only climbs. Agents know the first two (`terrahalt_protocol`)."""

    GRACEFUL = "Graceful"
    FORCE = "Force"
    ABANDON = "Abandon"


class Supersede(StrEnum):
    """Up to where older tasks of a workspace make way for a newer one; never once they apply."""

    NONE = "None"
    QUEUED = "Queued"
    PLANNING = "Planning"


class ApprovalMode(StrEnum):
    """What comes between a plan and its apply."""

    AUTOMATIC = "Automatic"
    MANUAL = "Manual"


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """JSON in the API's spelling; what is absent there is the default here."""


class Reference(_Camel, frozen=True, kw_only=True):
    name: str
    optional: bool = False


class ConfigFromSpec(_Camel, frozen=True, kw_only=True):
    secret_ref: Reference | None = None
    config_map_ref: Reference | None = None


class GitSpec(_Camel, frozen=True, kw_only=True):
    url: str
    ref: str = ""
    path: str = ""
    secret_ref: Reference | None = None
    ca_ref: ConfigFromSpec | None = None
    submodules: bool = False


class ArchiveSpec(_Camel, frozen=True, kw_only=True):
    url: str
    sha256: str
    path: str = ""
    secret_ref: Reference | None = None
    ca_ref: ConfigFromSpec | None = None


class SourceSpec(_Camel, frozen=True, kw_only=True):
    inline: dict[str, str] | None = None
    config_map_ref: Reference | None = None
    git: GitSpec | None = None
    archive: ArchiveSpec | None = None


class EnvFromSpec(_Camel, frozen=True, kw_only=True):
    secret_ref: Reference | None = None
    config_map_ref: Reference | None = None
    prefix: str = ""


class FilesystemMirrorSpec(_Camel, frozen=True, kw_only=True):
    claim_name: str
    include: tuple[str, ...] = ()


class NetworkMirrorSpec(_Camel, frozen=True, kw_only=True):
    url: str
    include: tuple[str, ...] = ()


class ProviderCacheSpec(_Camel, frozen=True, kw_only=True):
    claim_name: str


class ProvidersSpec(_Camel, frozen=True, kw_only=True):
    filesystem_mirror: FilesystemMirrorSpec | None = None
    network_mirror: NetworkMirrorSpec | None = None
    cache: ProviderCacheSpec | None = None


class OptionsSpec(_Camel, frozen=True, kw_only=True):
    lock_timeout_seconds: int = 60


class BackendSpec(_Camel, frozen=True, kw_only=True):
    type: str = KUBERNETES
    config: dict[str, Any] = {}
    config_from: tuple[ConfigFromSpec, ...] = ()

    @property
    def is_default(self) -> bool:
        """The kubernetes backend as every agent has it."""
        return self == BackendSpec()


class OutputsToSpec(_Camel, frozen=True, kw_only=True):
    secret_name: str
    include_sensitive: bool = False
    retain: bool = False


class TaskSpec(_Camel, frozen=True, kw_only=True):
    action: Action
    workspace: str
    source: SourceSpec
    backend: BackendSpec = BackendSpec()
    variables: dict[str, Any] = {}
    variables_from: tuple[ConfigFromSpec, ...] = ()
    env_from: tuple[EnvFromSpec, ...] = ()
    approval: ApprovalMode = ApprovalMode.AUTOMATIC
    approved_plan_digest: str = ""
    approval_timeout_seconds: int = 86_400
    pool_ref: Reference = Reference(name="default")
    options: OptionsSpec = OptionsSpec()
    priority: int = 0
    supersede: Supersede = Supersede.NONE
    queue_timeout_seconds: int | None = None
    timeout_seconds: int = 3600
    no_output_timeout_seconds: int | None = None
    init_timeout_seconds: int | None = None
    cancel: bool = False
    cancel_mode: CancelMode = CancelMode.GRACEFUL
    cancel_grace_seconds: int = 300
    outputs_to: OutputsToSpec | None = None
    ttl_seconds_after_finished: int | None = None

    @property
    def needs_approval(self) -> bool:
        """A Plan applies nothing."""
        return self.approval is ApprovalMode.MANUAL and self.action is not Action.PLAN


class Condition(_Camel, frozen=True, kw_only=True, omit_defaults=False):
    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int


class QueueStatus(_Camel, frozen=True, kw_only=True):
    position: int | None = None
    waiting_for: str = ""


class AgentStatus(_Camel, frozen=True, kw_only=True):
    pod_name: str
    pod_uid: str = msgspec.field(name="podUID")
    container_id: str = msgspec.field(name="containerID")
    boot_id: str = msgspec.field(name="bootID", default="")


class SourceStatus(_Camel, frozen=True, kw_only=True):
    commit: str


class PlanStatus(_Camel, frozen=True, kw_only=True):
    add: int
    change: int
    destroy: int
    digest: str = ""
    """With all below: of a plan that is kept until it is approved."""
    ready_at: str = ""
    run_id: str = msgspec.field(name="runID", default="")
    image: str = ""
    """The digest of the agent's image; empty: it is not known."""
    architecture: str = ""


class ProgressStatus(_Camel, frozen=True, kw_only=True):
    done: int = 0
    planned: int = 0
    current: str = ""
    summary: str = ""


class CancelStatus(_Camel, frozen=True, kw_only=True):
    by: str
    superseded_by: str = ""
    requested_at: str = ""
    sent_at: str = ""
    signalled_at: str = ""
    exited_at: str = ""
    swept_at: str = ""
    rung: str = ""


class ResultStatus(_Camel, frozen=True, kw_only=True):
    reason: str
    state: str
    lock: str
    exit_code: int | None = None
    forced: bool = False
    lock_id: str = msgspec.field(name="lockID", default="")
    lock_command: str = ""
    open_addresses: tuple[str, ...] = ()
    open_address_count: int = 0


class OutputsStatus(_Camel, frozen=True, kw_only=True):
    secret_name: str
    count: int = 0
    problem: str = ""


class LogStatus(_Camel, frozen=True, kw_only=True):
    secret_name: str


class TaskStatus(_Camel, frozen=True, kw_only=True):
    phase: str = ""
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    queue: QueueStatus | None = None
    agent: AgentStatus | None = None
    run_id: str = msgspec.field(name="runID", default="")
    source: SourceStatus | None = None
    plan: PlanStatus | None = None
    progress: ProgressStatus | None = None
    cancel: CancelStatus | None = None
    outputs: OutputsStatus | None = None
    log: LogStatus | None = None
    result: ResultStatus | None = None
    started_at: str = ""
    finished_at: str = ""

    @property
    def is_terminal(self) -> bool:
        return self.phase in TERMINAL

    @property
    def is_abandoned(self) -> bool:
        return self.is_terminal and self.result is not None and self.result.reason == ABANDONED


class Task(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created_at: float
    is_deleting: bool
    has_finalizer: bool
    stamp: str | None
    """The UID that the stamping patch wrote; another task's UID on a restored copy."""
    arrived: int
    """Its resourceVersion when it was first seen, as the stamping patch has it; 0: an earlier version stamped it."""
    spec: TaskSpec
    status: TaskStatus

    @property
    def is_restored_copy(self) -> bool:
        return self.stamp is not None and self.stamp != self.uid

    @property
    def is_stamped(self) -> bool:
        return self.stamp == self.uid and (self.has_finalizer or self.is_deleting)

    @property
    def wants_cancel(self) -> bool:
        return self.spec.cancel or self.is_deleting

    @property
    def kept_plan(self) -> PlanStatus | None:
        """Its run is over, and this is on record."""
        plan = self.status.plan
        return plan if plan is not None and plan.digest else None

    @property
    def awaits_approval(self) -> bool:
        kept = self.kept_plan
        return kept is not None and kept.digest != self.spec.approved_plan_digest

    @property
    def is_given_up(self) -> bool:
        """By a person, in so many words: a deletion alone never is."""
        return self.spec.cancel and self.spec.cancel_mode is CancelMode.ABANDON


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The Lease that holds one workspace for one run; it exists before the run may start."""

    name: str
    resource_version: str
    run_id: str
    task_namespace: str
    task_name: str
    task_uid: str
    pod_name: str
    pod_uid: str
    container_id: str
    fingerprint: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """`state.terminated` of the agent's container, as the kubelet reported it."""

    container_id: str
    exit_code: int
    reason: str
    message: str
    """The termination message: whatever was in `/dev/termination-log`, true or not."""
    finished_at: float
    """When, on the node's clock, to the second."""


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent pod."""

    namespace: str
    name: str
    uid: str
    pool: str
    engine: str
    resource_version: str
    template_hash: str
    proof: str
    """What says that the operator made it (`pod.proof`); empty until that was written, or where it did not."""
    created_at: float
    termination_grace_s: int
    """The grace of this very pod, whatever its pool says now."""
    is_deleting: bool
    deleted_at: float | None
    """When its end was asked for, where it is given time for that."""
    killed_at: float | None
    """When its kubelet kills what is left of it, on the API server's clock, to the second; None: nobody deletes it, or
    by force, which gives it no time at all."""
    has_finalizer: bool
    ip: str
    phase: str
    container_id: str
    """Empty until the container was created."""
    image: str
    """The digest of its image, as the kubelet says it; empty: it does not."""
    is_running: bool
    ended: Ended | None
    waiting_reason: str
    """Why the container does not start (`ErrImagePull`, ...); empty where it does."""
    unstarted_since: float | None
    """Since when its container is made, not started, and without a sandbox to start in: its node lost its power in
    between, and its kubelet leaves it so for good. None: it is otherwise."""
    task_label: str
    run_label: str
    """The run that it was given to; no run is started before this is on record (`decide`)."""
    last_task_label: str
    """The task that it last ran, kept after the end for `kubectl logs`."""

    @property
    def is_over(self) -> bool:
        """No container of it runs or will; by the phase alone only where it never had a container."""
        return self.ended is not None or (not self.container_id and self.phase in ("Failed", "Succeeded"))


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A live, trusted connection to an agent."""

    hello: Hello
    fingerprint: str
    runs: frozenset[str]
    """Run IDs that the agent holds, as of now."""
    is_used: bool
    """It has had its run, or runs, and takes no other; it exits once its last report was acknowledged. One that may
    take another says so when nothing of the last one is left."""
    sent_start: str
    """The run ID of the Start that went out on this connection; empty: none."""
    sent_cancel: Cancel | None
    refused: Refused | None
    mismatch: str | None
    """Why it can take no run (protocol version, a key that is not known from before its first run), or None."""
    since: float
    """When it was connected, or has last said that it takes a run."""
    refreshed: str | None
    """The last refresh of credentials that it has carried out; None: it is too old to be asked."""
    sent_refresh: str
    """The one that it was asked for on this connection; empty: none."""
    refresh_problem: str
    """Why that is not carried out yet, as far as it says."""
    sent_leave: bool
    """It was told on this connection that its pod is to end."""

    @property
    def is_usable(self) -> bool:
        return not self.is_used and not self.runs and self.mismatch is None and not self.sent_start


class ReceivedReport(msgspec.Struct, frozen=True, kw_only=True):
    report: Report
    received_at: float


class Queueing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the scheduler left a task that waits."""

    position: int | None
    """From 1; None beyond the first 20."""
    waiting_for: str
    expired: str = ""
    """Why the plan that was approved can't be applied in this pool any more; empty: it can."""


class StateLock(msgspec.Struct, frozen=True, kw_only=True):
    """The state's own Lease, as the operator reads it where an agent was lost."""

    is_readable: bool
    holder: str
    """The ID of the lock; empty: nobody holds it."""
    who: str = ""
    """USER@hostname of the terraform that took it."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one task."""

    task: Task
    claim: Claim | None
    """This task's own claim; None: it has none."""
    agent: Agent | None
    """The pod that the claim names; None: it is gone, or was not seen yet."""
    agent_is_gone: bool
    """The API server had that pod, and has it no more."""
    session: Session | None
    report: ReceivedReport | None
    """The latest of this run, from the session or, signed, from the termination message."""
    pool_grace_s: int | None
    """`terminationGracePeriodSeconds` of the task's pool; None: there is no such pool, or it no longer matters."""
    allowed_approval: frozenset[ApprovalMode] | None
    """The same for the pool's `allowedApproval`."""
    pool_env_from: tuple[EnvFromSpec, ...] | None
    """The pool's `envFrom` as it is now; None: there is no such pool."""
    queueing: Queueing | None
    """None: the scheduler has not looked at it yet."""
    superseded_by: str
    """The newer task for which this one has to make way, unless it applies already; empty: none."""
    state_lock: StateLock | None
    """Read only once the agent is lost."""
    log_kept: bool | None
    """Whether the operator has kept the run's log; None: it has not tried."""
    report_key: str
    epoch: int
    last_status_write_at: float
    runs: int
    """Of all tasks, by their claims."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    is_deleting: bool
    has_finalizer: bool
    engine: str
    """Terraform or OpenTofu."""
    image: str
    """Empty: the installation's image for the engine."""
    min_idle: int
    max_agents: int
    max_tasks_per_agent: int
    idle_timeout_s: int
    drain_policy: DrainPolicy
    service_account: str
    image_pull_secrets: tuple[str, ...]
    pod_template: Mapping[str, Any]
    """As the user wrote it, refused parts and all (`pod_template`)."""
    operator_loss_s: int | None
    """After how long without an operator an agent ends its run; None: never."""
    termination_grace_s: int
    allowed_approval: frozenset[ApprovalMode]
    allow_metadata: tuple[str, ...]
    """CIDRs; what they hold of the clouds' metadata addresses is open to its agents."""
    env_from: tuple[EnvFromSpec, ...]
    providers: ProvidersSpec
    refresh_credentials: str
    """Whatever a person wrote to have them read anew; empty: nobody did."""
    status: dict[str, Any]
