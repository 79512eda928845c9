"""The names that are part of the API: group, kinds, finalizers, labels, annotations.

The models and `crd` take them from here. What runs has its own in `core.names`, because nothing of
`api` is imported at run time; a test compares the two. ARCHITECTURE.md lists them.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "terrahalt.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "terrahalt"

TASK_KIND: Final = "TerraformTask"
TASK_PLURAL: Final = "terraformtasks"
TASK_SINGULAR: Final = "terraformtask"
TASK_SHORT: Final = "tft"

POOL_KIND: Final = "AgentPool"
POOL_PLURAL: Final = "agentpools"
POOL_SINGULAR: Final = "agentpool"

TASK_FINALIZER: Final = f"{GROUP}/task"
AGENT_FINALIZER: Final = f"{GROUP}/agent"
POOL_FINALIZER: Final = f"{GROUP}/pool"

UID_ANNOTATION: Final = f"{GROUP}/uid"
"""On a task: its own UID, stamped with the finalizer; a copy has another UID and is refused."""

POOL_LABEL: Final = f"{GROUP}/pool"
TASK_LABEL: Final = f"{GROUP}/task"
RUN_LABEL: Final = f"{GROUP}/run"

DEFAULT_POOL: Final = "default"
DEFAULT_SERVICE_ACCOUNT: Final = "terrahalt-agent"
