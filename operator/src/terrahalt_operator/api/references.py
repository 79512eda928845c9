"""References to Secrets and ConfigMaps of the task's namespace; used by the parts of a task's and a pool's spec."""

from __future__ import annotations

from typing import Annotated

from .schema import ApiModel, DnsName, Keywords, Rule


class ConfigMapRef(ApiModel):
    """A ConfigMap of the task's namespace."""

    name: DnsName
    """The name of the ConfigMap, in the task's namespace."""


class OptionalConfigMapRef(ConfigMapRef):
    """A ConfigMap of the task's namespace that may be missing."""

    optional: bool = False
    """Whether the task may run without it. Absent: false, the task fails when it is missing."""


class SecretRef(ApiModel):
    """A Secret of the task's namespace."""

    name: DnsName
    """The name of the Secret, in the task's namespace."""


class OptionalSecretRef(SecretRef):
    """A Secret of the task's namespace that may be missing."""

    optional: bool = False
    """Whether the task may run without it. Absent: false, the task fails when it is missing."""


class EnvFrom(ApiModel):
    """Environment variables of terraform, from the keys of a Secret or a ConfigMap."""

    secret_ref: OptionalSecretRef | None = None
    """A Secret, each key of which becomes an environment variable. It is read by the agent with the
    pool's ServiceAccount, never by the operator."""
    config_map_ref: OptionalConfigMapRef | None = None
    """A ConfigMap, each key of which becomes an environment variable."""
    prefix: Annotated[str | None, Keywords(minLength=1, maxLength=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    """Text put before each key, for example `TF_VAR_`. Absent: nothing."""

    RULES = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "each entry of envFrom needs exactly one of secretRef and configMapRef: use one entry for each",
        ),
    )


class VariablesFrom(ApiModel):
    """Terraform's input variables, from the keys of a Secret or a ConfigMap."""

    secret_ref: OptionalSecretRef | None = None
    """A Secret, each key of which is a variable. It is read by the agent with the pool's ServiceAccount, never
    by the operator; its values are taken out of logs and status."""
    config_map_ref: OptionalConfigMapRef | None = None
    """A ConfigMap, each key of which is a variable."""

    RULES = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "each entry of variablesFrom needs exactly one of secretRef and configMapRef: use one entry for each",
        ),
    )


EnvFroms = Annotated[list[EnvFrom], Keywords(**{"maxItems": 32, "x-kubernetes-list-type": "atomic"})]
