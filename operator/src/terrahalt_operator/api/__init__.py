"""The API that users see: typed models of TerraformTask and AgentPool, and the names that go with them.

`TerraformTask.model_validate(obj)` reads an object as the API server gave it. The only package that
imports pydantic; `generate` writes the CRDs from it.
"""

from .conditions import Condition
from .names import (
    AGENT_FINALIZER,
    API_VERSION,
    DEFAULT_POOL,
    DEFAULT_SERVICE_ACCOUNT,
    GROUP,
    POOL_KIND,
    POOL_LABEL,
    POOL_PLURAL,
    RUN_LABEL,
    TASK_FINALIZER,
    TASK_KIND,
    TASK_LABEL,
    TASK_PLURAL,
    UID_ANNOTATION,
    VERSION,
)
from .pool import AgentPool, AgentPoolSpec, AgentPoolStatus, EngineType
from .references import EnvFrom
from .source import Source
from .task import (
    MAX_OPEN_ADDRESSES,
    AgentRef,
    CancelStatus,
    PlanSummary,
    Progress,
    Queue,
    Result,
    TerraformTask,
    TerraformTaskSpec,
    TerraformTaskStatus,
)

__all__ = [
    "AGENT_FINALIZER",
    "API_VERSION",
    "DEFAULT_POOL",
    "DEFAULT_SERVICE_ACCOUNT",
    "GROUP",
    "MAX_OPEN_ADDRESSES",
    "POOL_KIND",
    "POOL_LABEL",
    "POOL_PLURAL",
    "RUN_LABEL",
    "TASK_FINALIZER",
    "TASK_KIND",
    "TASK_LABEL",
    "TASK_PLURAL",
    "UID_ANNOTATION",
    "VERSION",
    "AgentPool",
    "AgentPoolSpec",
    "AgentPoolStatus",
    "AgentRef",
    "CancelStatus",
    "Condition",
    "EngineType",
    "EnvFrom",
    "PlanSummary",
    "Progress",
    "Queue",
    "Result",
    "Source",
    "TerraformTask",
    "TerraformTaskSpec",
    "TerraformTaskStatus",
]
