"""TerraformTask: one plan, apply or destroy, which runs once and can be cancelled at any moment.

People write `spec`; the operator alone writes `status`. Everything in `spec` is immutable but
`TerraformTaskSpec.MUTABLE`; only fields that work are here. It has more than 500 lines because each field has its
text of `kubectl explain` here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from terrahalt_operator.core.model import QUEUED, ApprovalMode, CancelMode, Supersede
from terrahalt_protocol import budget
from terrahalt_protocol.messages import Action

from . import names
from .backend import Backend
from .conditions import UNSEEN, Conditions
from .references import EnvFroms, VariablesFrom
from .schema import ApiModel, Column, DnsName, Keywords, Kind, Rule, Time, rules
from .source import Source

MAX_TASK_NAME = 63
"""The task's name is a label of the pod that runs it, and a label's value has 63 characters."""

MAX_TIMEOUT_S = 7 * 24 * 3600
MAX_TTL_S = 365 * 24 * 3600
MAX_PRIORITY = 1000
MAX_APPROVAL_TIMEOUT_S = 30 * 24 * 3600
MAX_OPEN_ADDRESSES = 50


class PoolRef(ApiModel):
    """The pool whose agents run the task."""

    name: Annotated[str, Keywords(minLength=1, maxLength=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = (
        names.DEFAULT_POOL
    )
    """The name of an AgentPool in the task's namespace. Default default."""


class Options(ApiModel):
    """How terraform is called."""

    lock_timeout_seconds: Annotated[int, Keywords(minimum=0, maximum=MAX_TIMEOUT_S, format="int32")] = 60
    """How long plan and apply wait for the state's lock while somebody else has it, in seconds; then the
    task ends as Failed, reason LockTimedOut, and says who has it. From 0, which does not wait, to 604800.
    Default 60."""


class OutputsTo(ApiModel):
    """The Secret that gets the outputs of an apply."""

    secret_name: DnsName
    """The name of the Secret, in the task's namespace: each output is a key, text as it is and all else as JSON. One
    that is there already is replaced only if it has the outputs of the same workspace; else the apply succeeds
    all the same, and `status.outputs.problem` says so."""
    include_sensitive: bool = False
    """Whether outputs that are `sensitive` go there, too. Absent: false, the annotation terrahalt.dev/left-out
    names them."""
    retain: bool = False
    """Whether the Secret stays when the task is deleted. Absent: false, it is owned by the task, and goes with it."""

    RULES = (
        Rule(
            "!self.secretName.matches('^(tfstate|terrahalt)-')",
            "secretName begins like the Secrets that hold states, plans and logs: choose another name, for example "
            "network-outputs",
            ".secretName",
        ),
    )


Digest = Annotated[str, Keywords(pattern=r"^sha256:[0-9a-f]{64}$", maxLength=71)]


class TerraformTaskSpec(ApiModel):
    """What to run. A task runs once: nothing can be changed afterwards but `cancel`, `cancelMode`,
    `cancelGraceSeconds`, `approvedPlanDigest`, `ttlSecondsAfterFinished` and, in the queue, `priority`."""

    action: Action
    """What to do: Plan shows what would change, Apply plans and applies exactly that plan, Destroy
    removes everything in the state."""
    workspace: Annotated[str, Keywords(pattern=r"^[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?$", maxLength=60)]
    """What the task works on: the name of the terraform state in this namespace (Secret
    `tfstate-default-<workspace>-tf`), or with another `backend` the terraform workspace there. Tasks of
    one workspace run one after another, by `priority`, then first come first served. Lower case letters,
    digits and hyphens, at most 60 characters."""
    source: Source
    """Where the terraform files come from: exactly one of `inline`, `configMapRef`, `git` and
    `archive`; docs/sources.md says more of each."""
    backend: Backend | None = None
    """Where the state is. Absent: terraform's kubernetes backend, in the task's namespace. What a cancel means for
    the lock of each is in docs/backends.md."""
    variables: (
        Annotated[dict[str, Any], Keywords(**{"type": "object", "x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """Terraform's input variables, name to any JSON value, for example `{region: eu-west-1, zones: [a, b]}`.
    They win over `variablesFrom`, and are readable by whoever may read the task: keep there what is secret."""
    variables_from: (
        Annotated[list[VariablesFrom], Keywords(**{"maxItems": 32, "x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """More input variables, from Secrets and ConfigMaps of the task's namespace. A key is the name of a variable and
    its value text, which terraform converts to a number or a bool where the variable is one; a key like `zones.json`
    is the variable `zones`, and its value JSON, as lists and objects need it. A later entry wins. They are read once,
    when the task plans, and win over `envFrom` with `TF_VAR_`. At most 32 entries. See docs/variables.md."""
    env_from: EnvFroms | None = None
    """Environment variables of terraform and its providers, such as credentials, from Secrets and
    ConfigMaps of the task's namespace; a later entry wins, and wins over the pool's. At most 32 entries."""
    approval: ApprovalMode = ApprovalMode.AUTOMATIC
    """What comes between the plan of an Apply or a Destroy and its execution. Automatic: nothing. Manual: the plan
    is kept, its agent ends and the workspace is free, until a person sets `approvedPlanDigest`; a fresh agent then
    executes exactly that plan, or the task ends as Failed, reason PlanExpired. A pool may allow one of them only
    (`allowedApproval`). See docs/approval.md. Default Automatic."""
    approved_plan_digest: Digest | None = None
    """Set to `status.plan.digest` of a task in phase AwaitingApproval by a person who has read its plan; the message
    of the status has the whole command. Any other digest is refused, and it can't be changed or removed."""
    approval_timeout_seconds: Annotated[int, Keywords(minimum=1, maximum=MAX_APPROVAL_TIMEOUT_S, format="int32")] = (
        86_400
    )
    """How long a plan waits for its approval, in seconds; then the task ends as Failed, reason ApprovalTimedOut.
    From 1 to 2592000 (30 days). Default 86400 (1 day)."""
    pool_ref: PoolRef = PoolRef()
    """The AgentPool whose agents run the task, in the task's namespace. Default: the pool default."""
    options: Options = Options()
    """How terraform is called. Default: that of each of its fields."""
    priority: Annotated[int, Keywords(minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY, format="int32")] = 0
    """Its place in the queue: higher first, and of equal ones first come first served. It halts nothing that
    runs. May be changed while the task is Queued. From -1000 to 1000. Default 0."""
    supersede: Supersede = Supersede.NONE
    """Which older tasks of the workspace, in its namespace, make way for this one once it is Queued: Queued,
    those that wait for their first agent; Planning, also those that have had one and do not apply yet. They end as
    Cancelled, reason Superseded. An apply that has begun is never ended by this: it is waited for. Older is
    what was created in an earlier second, whatever its `priority`. Default None."""
    queue_timeout_seconds: Annotated[int | None, Keywords(minimum=1, maximum=MAX_TIMEOUT_S, format="int32")] = None
    """How long the task may wait for its first agent, in seconds since its creation; then it ends as Failed, reason
    QueueTimedOut, and has not run. From 1 to 604800. Absent: it waits for ever."""
    timeout_seconds: Annotated[int, Keywords(minimum=1, maximum=MAX_TIMEOUT_S, format="int32")] = 3600
    """How long the task may run, in seconds; waiting in the queue or for an approval does not count. Afterwards it is
    cancelled like by `cancel`, and ends as Failed, reason TimedOut. From 1 to 604800 (7 days). Default 3600."""
    no_output_timeout_seconds: Annotated[int | None, Keywords(minimum=1, maximum=MAX_TIMEOUT_S, format="int32")] = None
    """How long terraform may write nothing, in seconds, before it is cancelled like by `cancel`; the task
    ends as Failed, reason NoOutputTimedOut. Its "Still creating... [10s elapsed]" does not count: it says so
    of a provider that hangs, too. So it must be longer than the slowest resource that reports nothing, and
    than `options.lockTimeoutSeconds`. From 1 to 604800, at most `timeoutSeconds`. Absent: no such timeout."""
    init_timeout_seconds: Annotated[int | None, Keywords(minimum=1, maximum=MAX_TIMEOUT_S, format="int32")] = None
    """How long `terraform init` may take, in seconds, before it is cancelled like by `cancel`; the task ends
    as Failed, reason InitTimedOut. From 1 to 604800, at most `timeoutSeconds`. Absent: no timeout but
    `timeoutSeconds`."""
    cancel: (
        Annotated[
            Literal[True],
            rules(
                Rule(
                    "self",
                    "cancel is either absent or true: leave it out to let the task run, set it to true to halt it",
                )
            ),
        ]
        | None
    ) = None
    """Set to true to halt the task, at any moment: `kubectl patch terraformtask NAME --type merge -p
    '{"spec":{"cancel":true}}'`. Absent or true; it can't be taken back. The phase becomes Cancelled only
    once no process of the run is alive. A task that has already succeeded stays Succeeded."""
    cancel_mode: Annotated[
        CancelMode,
        rules(
            Rule(
                # From the lowest, to the highest, or as it was. `indexOf` would cost more than a rule may.
                f"oldSelf == '{CancelMode.GRACEFUL}' || self == '{CancelMode.ABANDON}' || self == oldSelf",
                f"cancelMode only climbs, {' to '.join(CancelMode)}: leave it as it is, or raise it",
            )
        ),
    ] = CancelMode.GRACEFUL
    """How a cancel begins. Graceful interrupts terraform, which stops after the resources under way, and
    climbs further after `cancelGraceSeconds`; Force starts by killing the providers, so the state may
    miss what was under way. Abandon, which needs `cancel`, is for a node that is gone for good: the task
    ends at once as Failed, reason Abandoned, and its workspace is free, though terraform may still run.
    May be raised, during a cancel too, never lowered. Default Graceful."""
    cancel_grace_seconds: Annotated[
        int,
        Keywords(minimum=budget.MIN_CANCEL_GRACE_S, maximum=budget.MAX_CANCEL_GRACE_S, format="int32"),
        rules(
            Rule(
                "self <= oldSelf",
                "cancelGraceSeconds can only be made shorter (300 when it is absent): keep it, give a smaller number, "
                "or create a new task with a longer one",
            )
        ),
    ] = budget.DEFAULT_CANCEL_GRACE_S
    """How long terraform gets to end by itself after the interrupt of a cancel, in seconds, before its
    providers are killed. May be made shorter, during a cancel too, never longer. It must fit into the pool's
    `terminationGracePeriodSeconds`, into whose default 300 do; else the task is refused before it starts, as
    Failed, reason InvalidBudget. From 1 to 3600. Default 300."""

    outputs_to: OutputsTo | None = None
    """Where the outputs of the state go after an Apply that has succeeded and whose state is saved: a Secret. See
    docs/outputs.md. Absent: they stay in the state."""
    ttl_seconds_after_finished: Annotated[int | None, Keywords(minimum=1, maximum=MAX_TTL_S, format="int32")] = None
    """How long the task stays after its end, in seconds; then it is deleted, with its status. The state stays.
    May be changed at any time. From 1 to 31536000 (365 days). Absent: it stays until somebody deletes it."""

    MUTABLE = frozenset(
        {
            "cancel",
            "cancel_mode",
            "cancel_grace_seconds",
            "approved_plan_digest",
            "priority",
            "ttl_seconds_after_finished",
        }
    )
    HINT_IMMUTABLE = (
        "a task runs once; create a new task instead, with the change in it: kubectl create -f FILE "
        "(metadata.generateName gives each a name of its own)"
    )
    RULES = (
        Rule(
            "!has(oldSelf.cancel) || has(self.cancel)",
            "a cancel can't be taken back: leave cancel: true in place; create a new task to run it again",
            ".cancel",
        ),
        Rule(
            "!has(oldSelf.approvedPlanDigest) || has(self.approvedPlanDigest)",
            "an approval can't be taken back: leave approvedPlanDigest as it is, and set cancel: true to halt the task",
            ".approvedPlanDigest",
        ),
        Rule(
            f"self.cancelMode != '{CancelMode.ABANDON}' || has(self.cancel)",
            "cancelMode Abandon gives up a run that may still be alive, and alone does nothing: set cancel: true in "
            "the same patch, or use Force",
            ".cancelMode",
        ),
        Rule(
            f"!has(self.outputsTo) || self.action == '{Action.APPLY}'",
            "outputsTo needs action Apply, as a Plan changes no output and a Destroy removes them: leave it out",
            ".outputsTo",
        ),
        *(
            Rule(
                f"!has(self.{field}) || self.{field} <= self.timeoutSeconds",
                f"{field} is longer than timeoutSeconds (3600 when it is absent), which would come first: lower it, or "
                "raise timeoutSeconds",
                f".{field}",
            )
            for field in ("noOutputTimeoutSeconds", "initTimeoutSeconds")
        ),
    )


class OutputsStatus(ApiModel):
    """Where the outputs of the apply are."""

    secret_name: str | None = None
    """The name of the Secret, in the task's namespace."""
    count: Annotated[int, Keywords(format="int32")] = 0
    """How many are there. Sensitive ones that were left out do not count: the Secret's annotation
    terrahalt.dev/left-out names them."""
    problem: str | None = None
    """Why they are not there, though the apply was done; absent: they are."""


class LogStatus(ApiModel):
    """Where the log is when the pod is gone."""

    secret_name: str | None = None
    """The name of the Secret, in the task's namespace, that goes with the task; `kubectl terrahalt logs` reads it."""


class Queue(ApiModel):
    """Where the task is in the queue."""

    position: Annotated[int | None, Keywords(format="int32")] = None
    """Its place among the waiting tasks of its pool, 1 is next; only the first 20 have one, and it may be 10 s
    old."""
    waiting_for: str | None = None
    """What it waits for: a workspace and who has it, or an agent and why there is none."""


class AgentRef(ApiModel):
    """The agent that has the run."""

    pod_name: str | None = None
    """The name of the agent's pod, in the task's namespace."""
    pod_uid: str | None = None
    """The UID of that pod; a later pod of the same name is another agent."""
    container_id: str | None = None
    """The ID of its container, as the pod's status had it at the assignment."""
    boot_id: str | None = None
    """New with every start of the agent's process."""


class SourceStatus(ApiModel):
    """Which version of its source the task ran."""

    commit: str | None = None
    """The commit of a git source, in full."""


class PlanSummary(ApiModel):
    """What terraform planned, in numbers of resources; and, where it is kept until it is approved, which plan it is."""

    add: Annotated[int, Keywords(format="int32")] = 0
    """How many resources it creates."""
    change: Annotated[int, Keywords(format="int32")] = 0
    """How many resources it changes in place."""
    destroy: Annotated[int, Keywords(format="int32")] = 0
    """How many resources it removes."""
    digest: str | None = None
    """What `spec.approvedPlanDigest` is to be set to: sha256 of the kept plan. Absent: it needs no approval, or is
    not kept yet."""
    ready_at: Time | None = None
    """When it began to wait for its approval."""
    run_id: str | None = None
    """The ID of the run that made it; its apply has another one. Secret terrahalt-plan-<run ID> has the plan."""
    image: str | None = None
    """The digest of the image of the agent that made it; only the same one applies it."""
    architecture: str | None = None
    """The same for the machine, for example x86_64."""


class Progress(ApiModel):
    """How far an apply has come."""

    done: Annotated[int, Keywords(format="int32")] = 0
    """How many resource operations are complete."""
    planned: Annotated[int, Keywords(format="int32")] = 0
    """How many there are in all."""
    current: str | None = None
    """The address of a resource that is being worked on, for example aws_vpc.main."""
    summary: str | None = None
    """The same for people: done/planned, for example 7/12."""


class CancelStatus(ApiModel):
    """How far a cancel has come: the times are stamped by the operator's clock, with microseconds."""

    by: str | None = None
    """What asked for it first: User, Deletion, Timeout, PodTermination or Superseded; or, where the agent
    itself ended the run, OutOfMemory, DiskPressure or OperatorLost; more may be added."""
    superseded_by: str | None = None
    """The newer task that asked for it by its `supersede`. Such a cancel comes too late once the apply has
    begun; `rung` is absent then."""
    requested_at: Time | None = None
    """When the operator learned of the cancel."""
    sent_at: Time | None = None
    """When it was first sent to the agent."""
    signalled_at: Time | None = None
    """When terraform got its first signal; absent if no process of it ran."""
    exited_at: Time | None = None
    """When terraform itself was gone."""
    swept_at: Time | None = None
    """When no process of the run was alive any more, providers and their children included."""
    rung: str | None = None
    """The highest rung of the ladder so far: NotStarted, Gate (nothing had to be signalled), Interrupt,
    KillProviders, SecondInterrupt, Kill; more may be added."""


class Result(ApiModel):
    """How the task ended."""

    exit_code: Annotated[int | None, Keywords(format="int32")] = None
    """The exit code of the last terraform process; negative is the signal that ended it; absent: none
    ran."""
    reason: str | None = None
    """Why it ended so, as one word in CamelCase, for example CancelledByUser; more may be added."""
    state: str | None = None
    """What is known of the terraform state: Complete, Incomplete, NotPersisted, Corrupt or Unknown; more
    may be added."""
    lock: str | None = None
    """What is known of the state's lock: Released, Held or Unknown. Never taken counts as Released."""
    lock_id: str | None = None
    """The ID of the lock that is held, as terraform knows it: by this run, or where lock is Released by another."""
    lock_command: str | None = None
    """What to type to look at the lock or to release it; present when it is Held or Unknown."""
    forced: bool | None = None
    """Whether a process of the run had to be killed, so that what it was doing may be unrecorded."""
    open_addresses: Annotated[
        list[str] | None, Keywords(**{"maxItems": MAX_OPEN_ADDRESSES, "x-kubernetes-list-type": "atomic"})
    ] = None
    """Resources whose operation was under way when terraform was killed: look whether they exist. At most
    50; `openAddressCount` has their full number."""
    open_address_count: Annotated[int | None, Keywords(format="int32")] = None
    """How many resources were under way when terraform was killed."""


class TerraformTaskStatus(ApiModel):
    """What became of the task; written by the operator only."""

    phase: str | None = None
    """Where the task is, for people: Queued, Assigned, Preparing, Planning, AwaitingApproval, Applying,
    Cancelling, and at the end Succeeded, Failed or Cancelled, which never change. More may be added: programs read
    `conditions`."""
    observed_generation: Annotated[int | None, Keywords(format="int64")] = None
    """The metadata.generation of the task that this status was computed from; -1: no operator has seen it yet."""
    conditions: Conditions = []
    """What is true of the task, one entry for each type, for programs: `Finished` once it has ended
    (`kubectl wait --for=condition=Finished`), `Ready` if it succeeded, `Stalled` if it failed or was
    cancelled, `Reconciling` until it has ended, `Accepted` unless it is refused as a restored copy, for its
    budget or its approval, `Scheduled` while it has an agent, and afterwards, `PlanReady` once terraform has planned,
    `CancelRequested` once a cancel was asked for, `OutputsPublished` where `outputsTo` asks for that."""
    message: str | None = None
    """What is going on, as a sentence."""
    queue: Queue | None = None
    """Where it is in the queue; absent once it has an agent."""
    agent: AgentRef | None = None
    """The agent that has the run; absent while a plan waits for its approval."""
    run_id: str | None = None
    """The ID of its run; the label terrahalt.dev/run of the agent's pod. An approved plan is applied by a second
    run."""
    source: SourceStatus | None = None
    """Which version of its source the run has; absent until a git source was fetched."""
    plan: PlanSummary | None = None
    """What terraform planned; absent until it has."""
    progress: Progress | None = None
    """How far an apply has come; absent before it begins. Every 2 s at most, of more than 100 runs less often."""
    cancel: CancelStatus | None = None
    """How far a cancel has come; absent until one is asked for, by whatever means."""
    outputs: OutputsStatus | None = None
    """Where the outputs of the apply are; absent unless `spec.outputsTo` asks for them and the apply is done."""
    log: LogStatus | None = None
    """Where the log of its last run is when the pod is gone; absent until a run has ended."""
    result: Result | None = None
    """How the task ended; absent until it has."""
    started_at: Time | None = None
    """When the run began on its agent."""
    finished_at: Time | None = None
    """When the end of the run was known, with no process of it alive; or when it was abandoned."""


class TerraformTask(ApiModel):
    """A terraform plan, apply or destroy that runs once, in an agent pod of its namespace. To halt it, at
    any moment: `kubectl patch terraformtask NAME --type merge -p '{"spec":{"cancel":true}}'`. Deleting it
    halts it first, too."""

    spec: TerraformTaskSpec
    """What to run; it can't be changed afterwards, except to cancel it or to approve its plan."""
    status: TerraformTaskStatus = TerraformTaskStatus(observed_generation=UNSEEN)
    """What became of the task; written by the operator only."""

    RULES = (
        Rule(
            f"size(self.metadata.name) <= {MAX_TASK_NAME}",
            f"the task's name is a label of the pod that runs it: choose one of at most {MAX_TASK_NAME} characters "
            "(58 in generateName)",
        ),
        Rule(
            # At the root, which alone sees the status.
            "self.spec.priority == oldSelf.spec.priority || !has(oldSelf.status) || !has(oldSelf.status.phase) "
            f"|| oldSelf.status.phase == '{QUEUED}'",
            "priority says who is next in the queue, and this task has left it: leave it as it is, and give the next "
            "task one of its own",
            ".spec.priority",
        ),
        Rule(
            # Of a new object too: it has no status.
            "!has(self.spec.approvedPlanDigest) || has(self.status) && has(self.status.plan) "
            "&& has(self.status.plan.digest) && self.status.plan.digest == self.spec.approvedPlanDigest",
            "approvedPlanDigest is not the digest of a plan of this task that waits for approval: once the phase is "
            "AwaitingApproval, read the plan and set it to status.plan.digest",
            ".spec.approvedPlanDigest",
        ),
    )


TASK = Kind(
    kind=names.TASK_KIND,
    plural=names.TASK_PLURAL,
    singular=names.TASK_SINGULAR,
    short_names=(names.TASK_SHORT,),
    model=TerraformTask,
    columns=(
        Column("Phase", ".status.phase", description="Where the task is."),
        Column("Action", ".spec.action", description="Plan, Apply or Destroy."),
        Column("Workspace", ".spec.workspace", description="The state it works on."),
        Column("Agent", ".status.agent.podName", description="The pod that runs it."),
        Column("Progress", ".status.progress.summary", description="Resources done of those planned."),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Queue", ".status.queue.position", "integer", wide=True, description="Its place in the queue."),
        Column("Reason", ".status.result.reason", wide=True, description="Why it ended as it did."),
        Column("Rung", ".status.cancel.rung", wide=True, description="How far up the ladder a cancel had to go."),
    ),
)
