"""References to Secrets and ConfigMaps of the task's namespace; used by the parts of a task's spec."""

from __future__ import annotations

from .schema import ApiModel, DnsName


class ConfigMapRef(ApiModel):
    """A ConfigMap of the task's namespace."""

    name: DnsName
    """The name of the ConfigMap, in the task's namespace."""


class OptionalConfigMapRef(ConfigMapRef):
    """A ConfigMap of the task's namespace that may be missing."""

    optional: bool = False
    """Whether the task may run without it. Absent: false, the task fails when it is missing."""


class OptionalSecretRef(ApiModel):
    """A Secret of the task's namespace that may be missing."""

    name: DnsName
    """The name of the Secret, in the task's namespace."""
    optional: bool = False
    """Whether the task may run without it. Absent: false, the task fails when it is missing."""
