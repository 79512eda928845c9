"""Names that stand in the cluster: changing one orphans what an earlier version wrote.

Read by `core` and by the adapters; a test compares those that `api.names` has too. ARCHITECTURE.md
lists those that other parts rely on.
"""

GROUP = "terrahalt.dev"
VERSION = "v1alpha1"

TASK_FINALIZER = "terrahalt.dev/task"
AGENT_FINALIZER = "terrahalt.dev/agent"
POOL_FINALIZER = "terrahalt.dev/pool"
UID_ANNOTATION = "terrahalt.dev/uid"
ARRIVED_ANNOTATION = "terrahalt.dev/arrived"
TEMPLATE_ANNOTATION = "terrahalt.dev/template-hash"
PROOF_ANNOTATION = "terrahalt.dev/proof"
REFRESH_ANNOTATION = "terrahalt.dev/refresh-credentials"
EPOCH_ANNOTATION = "terrahalt.dev/epoch"
SINCE_ANNOTATION = "terrahalt.dev/since"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"

NAME_LABEL = "app.kubernetes.io/name"
AGENT_NAME = "terrahalt-agent"
OPERATOR_NAME = "terrahalt-operator"
POOL_LABEL = "terrahalt.dev/pool"
ENGINE_LABEL = "terrahalt.dev/engine"
TASK_LABEL = "terrahalt.dev/task"
RUN_LABEL = "terrahalt.dev/run"
LAST_TASK_LABEL = "terrahalt.dev/last-task"
BUDGET_NAME = "terrahalt-budget"
CLAIM_LABEL = "app.kubernetes.io/name=terrahalt-claim"

AGENT_CONTAINER = "agent"
TOKEN_AUDIENCE = "terrahalt.dev/agent"
LEADER_LEASE = "terrahalt-operator"
TRUST_SECRET = "terrahalt-trust"
