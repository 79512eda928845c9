"""AgentPool: agents of one namespace that wait for its tasks.

The operator reads `spec` and alone writes `status`. Every field of `spec` may change; agents that
already run keep what they were started with.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from terrahalt_operator.core.credentials import MAX_SHOWN_CHARS
from terrahalt_operator.core.model import DEFAULT_IDLE_TIMEOUT_SECONDS, ApprovalMode, DrainPolicy
from terrahalt_protocol import budget

from . import names
from .conditions import UNSEEN, Conditions
from .pod_template import POD_TEMPLATE
from .providers import Providers
from .references import EnvFroms
from .schema import ApiModel, Column, DnsName, Keywords, Kind, Rule

MAX_AGENTS = 1000
"""What one operator is built for in all; a pool can't ask for more."""

MIN_TERMINATION_GRACE_S = budget.pod_grace_s(budget.MIN_CANCEL_GRACE_S)
MAX_TERMINATION_GRACE_S = budget.pod_grace_s(budget.MAX_CANCEL_GRACE_S)

MAX_POOL_NAME = 40
"""The pool's name is part of the names and labels (63 characters) of its agent pods and their anchor."""


MAX_OPERATOR_LOSS_SECONDS = 7 * 24 * 3600
MAX_TASKS_PER_AGENT = 1000
MAX_IDLE_TIMEOUT_SECONDS = 24 * 3600


class EngineType(StrEnum):
    TERRAFORM = "Terraform"
    OPENTOFU = "OpenTofu"


class OperatorLoss(StrEnum):
    CONTINUE = "Continue"
    CANCEL = "Cancel"


class Engine(ApiModel):
    """Which program runs the tasks."""

    type: EngineType = EngineType.TERRAFORM
    """The engine: Terraform or OpenTofu. Default Terraform."""


class PullSecretRef(ApiModel):
    """A Secret of the pool's namespace, of type kubernetes.io/dockerconfigjson."""

    name: DnsName
    """The name of the Secret, in the pool's namespace."""


class AgentPoolSpec(ApiModel):
    """What the pool should be."""

    engine: Engine = Engine()
    """Which program runs the tasks of this pool. Default: Terraform. After a change, agents with
    the other one finish their run and get no task more."""
    image: Annotated[str | None, Keywords(minLength=1, maxLength=1024, pattern=r"^\S+$")] = None
    """The container image of the agents, as a full reference with its tag or digest; it must have the
    pool's engine. Absent: the agent image that the operator was installed with for this engine. Agents
    that wait are replaced when it changes; agents with a run finish it first."""
    min_idle: Annotated[int, Keywords(minimum=0, maximum=MAX_AGENTS, format="int32")] = 1
    """How many warm agents wait for a task, so that it starts in milliseconds. With 0 an agent is
    started only when a task needs one. From 0 to 1000, and at most `maxAgents`. Default 1.
    `kubectl scale agentpool NAME --replicas=N` changes it."""
    max_agents: Annotated[int, Keywords(minimum=1, maximum=MAX_AGENTS, format="int32")] = 10
    """The most agent pods at one time, busy ones included; further tasks wait in the queue. From 1
    to 1000. Default 10."""
    max_tasks_per_agent: Annotated[int, Keywords(minimum=1, maximum=MAX_TASKS_PER_AGENT, format="int32")] = 1
    """How many tasks an agent runs, one after the other, before it is replaced. With more than 1 its files, variables
    and secrets of one task are removed before the next one, which is no boundary between people who must not
    trust each other. From 1, a clean room for each task, to 1000. Default 1."""
    idle_timeout_seconds: Annotated[int, Keywords(minimum=0, maximum=MAX_IDLE_TIMEOUT_SECONDS, format="int32")] = (
        DEFAULT_IDLE_TIMEOUT_SECONDS
    )
    """How long an agent above `minIdle` waits for a task before it is taken away, in seconds. One with a run is
    never taken away. From 0, at once, to 86400. Default 600."""
    drain_policy: DrainPolicy = DrainPolicy.LADDER
    """What becomes of a run when its node is drained, or an autoscaler wants it. Ladder: it is ended as by a cancel,
    within its pod's grace, and tells how. Wait: nobody can evict the pod, so that the drain waits for the end of
    the run. Default Ladder. Agents without a run are evicted either way."""
    service_account_name: DnsName = names.DEFAULT_SERVICE_ACCOUNT
    """The ServiceAccount of the agents, in the pool's namespace. Terraform keeps its state, and reads
    ConfigMaps and Secrets of tasks, with this account. Default terrahalt-agent, which the chart
    creates with its Role."""
    env_from: EnvFroms | None = None
    """Environment variables of terraform and its providers, such as credentials, for all tasks of this pool, from
    Secrets and ConfigMaps of its namespace; a later entry wins, and a task's own `envFrom` wins over these. The
    agents read them when a task starts, and anew with the annotation `terrahalt.dev/refresh-credentials`
    (docs/credentials.md). At most 32 entries."""
    providers: Providers | None = None
    """Where the agents get providers from (docs/providers.md). Agents that wait are replaced when it changes; agents
    with a run keep what they were started with. Absent: from the registries that the sources name."""

    allow_metadata: (
        Annotated[
            list[Annotated[str, Keywords(format="cidr", minLength=1, maxLength=43)]],
            Keywords(**{"maxItems": 20, "x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Which of the clouds' metadata addresses, as 169.254.169.254, the agents may reach: those that are in one of
    these CIDRs, as in `["169.254.169.254/32"]`. A node's credentials are had there; some clouds give pods their own
    identity at the same place. A change holds for agents with a run too. Absent: none. docs/security.md lists the
    addresses."""

    image_pull_secrets: Annotated[list[PullSecretRef], Keywords(maxItems=16)] = []
    """Secrets of the pool's namespace with which the nodes pull the agents' images."""
    pod_template: Annotated[dict[str, Any] | None, POD_TEMPLATE] = None
    """What the agents' pods have beside or in place of their defaults, as a part of a pod: resources, nodeSelector,
    tolerations, affinity, volumes, sidecars and so on, merged as `kubectl patch` merges. What would take an agent's
    safety away is refused. Agents that wait are replaced when it changes; agents with a run keep theirs."""

    allowed_approval: (
        Annotated[list[ApprovalMode], Keywords(**{"minItems": 1, "maxItems": 2, "x-kubernetes-list-type": "set"})]
        | None
    ) = None
    """Which `approval` tasks of this pool may have that apply or destroy: Automatic, Manual or both; others are
    refused as Failed, reason ApprovalNotAllowed. Absent: both."""
    on_operator_loss: OperatorLoss = OperatorLoss.CONTINUE
    """What becomes of a run whose agent has had no connection to an operator for a long time. Continue: it
    goes on to its end, and an operator that comes back finds it or its result. Cancel: after
    `operatorLossSeconds` the agent ends it as a timeout would, with the reason OperatorLost. Default Continue.
    Agents that wait are replaced when it changes; agents with a run keep what they were started with."""
    operator_loss_seconds: Annotated[
        int | None, Keywords(minimum=60, maximum=MAX_OPERATOR_LOSS_SECONDS, format="int32")
    ] = None
    """With onOperatorLoss Cancel: how long an agent waits for an operator, in seconds, before it ends its run.
    Longer than an upgrade of the operator or of its node takes. From 60 to 604800 (7 days). Absent: 1800."""
    termination_grace_period_seconds: Annotated[
        int, Keywords(minimum=MIN_TERMINATION_GRACE_S, maximum=MAX_TERMINATION_GRACE_S, format="int32")
    ] = budget.pod_grace_s(budget.DEFAULT_CANCEL_GRACE_S)
    """How long an agent's pod gets to end its run and to report, in seconds, when it is itself terminated. It
    must hold the `cancelGraceSeconds` of each task and 103 more (docs/timeouts.md); a task that asks for more
    is refused as InvalidBudget. Agents that wait are replaced when it changes; agents with a run keep theirs.
    From 104 to 3703. Default 403."""

    RULES = (
        Rule(
            "!has(self.operatorLossSeconds) || self.onOperatorLoss == 'Cancel'",
            "operatorLossSeconds says nothing while onOperatorLoss is Continue: set onOperatorLoss to Cancel, or "
            "remove operatorLossSeconds",
            ".operatorLossSeconds",
        ),
        Rule(
            "self.maxAgents >= self.minIdle",
            "maxAgents must be at least minIdle: raise maxAgents or lower minIdle",
            ".maxAgents",
        ),
    )


class CredentialsStatus(ApiModel):
    """How far the refresh has come that the annotation `terrahalt.dev/refresh-credentials` asks for."""

    refresh: Annotated[str, Keywords(maxLength=MAX_SHOWN_CHARS)]
    """The value of the annotation that the counts are of, or its first 253 characters."""
    requested: Annotated[int, Keywords(format="int32")]
    """How many agents are to read their credentials anew: those that have a run, and those that are connected.
    Others read what there is when their task starts."""
    acknowledged: Annotated[int, Keywords(format="int32")]
    """How many of them have done so: each step of theirs that starts from now on gets what they have read."""


class AgentPoolStatus(ApiModel):
    """What the operator last saw of the pool; written by the operator only. Who runs what is on the
    labels of the agents' pods: `kubectl get pods -L terrahalt.dev/task`."""

    observed_generation: Annotated[int | None, Keywords(format="int64")] = None
    """The metadata.generation of the pool that this status was computed from; -1: no operator has seen it yet."""
    agents: Annotated[int | None, Keywords(format="int32")] = None
    """How many agent pods there are that have not ended."""
    idle: Annotated[int | None, Keywords(format="int32")] = None
    """How many agents are connected and wait for a task."""
    busy: Annotated[int | None, Keywords(format="int32")] = None
    """How many agents have a run."""
    starting: Annotated[int | None, Keywords(format="int32")] = None
    """How many agent pods are not connected yet."""
    queued: Annotated[int | None, Keywords(format="int32")] = None
    """How many tasks wait for an agent of this pool, or for their workspace."""
    credentials: CredentialsStatus | None = None
    """How far the last refresh of the credentials has come. Absent: none was asked for."""
    conditions: Conditions = []
    """What is true of the pool, one entry for each type. `Ready`: agents can be started and reached. `Stalled`: they
    can't until the pool or the installation is changed; absent otherwise.
    `CredentialsRefreshed`: all agents have carried out the refresh of `credentials`; its message says which have
    not."""


class AgentPool(ApiModel):
    """A pool of agents, pods that run the TerraformTasks of their own namespace. The operator keeps
    `minIdle` of them waiting, and at most `maxAgents` in all. An agent runs one task, or
    `maxTasksPerAgent`, and is then replaced by a fresh one."""

    spec: AgentPoolSpec = AgentPoolSpec()
    """What the pool should be."""
    status: AgentPoolStatus = AgentPoolStatus(observed_generation=UNSEEN)
    """What the operator last saw; written by the operator only."""

    RULES = (
        Rule(
            f"size(self.metadata.name) <= {MAX_POOL_NAME} && !self.metadata.name.contains('.')",
            f"the pool's name goes into names and labels of its pods: choose one of at most {MAX_POOL_NAME} "
            "characters without dots",
        ),
    )


POOL = Kind(
    kind=names.POOL_KIND,
    plural=names.POOL_PLURAL,
    singular=names.POOL_SINGULAR,
    model=AgentPool,
    columns=(
        Column("Engine", ".spec.engine.type", description="The program that runs the tasks."),
        Column("Agents", ".status.agents", "integer", description="Agent pods in all."),
        Column("Idle", ".status.idle", "integer", description="Agents that wait for a task."),
        Column("Busy", ".status.busy", "integer", description="Agents with a run."),
        Column("Starting", ".status.starting", "integer", description="Agent pods that are not connected yet."),
        Column("Queued", ".status.queued", "integer", description="Tasks that wait."),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column(
            "Reason",
            '.status.conditions[?(@.type=="Ready")].reason',
            wide=True,
            description="AgentsStart, or why agents are missing.",
        ),
    ),
    # minIdle is the wish, so what it is compared with is the number of agents that wait.
    scale={"specReplicasPath": ".spec.minIdle", "statusReplicasPath": ".status.idle"},
)
