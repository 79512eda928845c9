"""Where a task's state is, as a part of its spec. Which settings a backend takes, and which are refused, only the agent
knows: it reads the Secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from terrahalt_protocol import backends

from .references import OptionalConfigMapRef, OptionalSecretRef
from .schema import ApiModel, Keywords, Rule


def _cel(texts: Iterable[str]) -> str:
    """A list of CEL."""
    return "[" + ", ".join(f"'{text}'" for text in texts) + "]"


class BackendConfigFrom(ApiModel):
    """Settings of the backend, from the keys of a Secret or a ConfigMap."""

    secret_ref: OptionalSecretRef | None = None
    """A Secret, each key of which is a setting, for example `conn_str`. It is read by the agent with the
    pool's ServiceAccount, never by the operator."""
    config_map_ref: OptionalConfigMapRef | None = None
    """A ConfigMap, each key of which is a setting."""

    RULES = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "each entry of configFrom needs exactly one of secretRef and configMapRef: use one entry for each",
        ),
    )


class Backend(ApiModel):
    """Where terraform keeps the state and its lock."""

    type: Annotated[str, Keywords(minLength=1, maxLength=32)] = backends.KUBERNETES
    """A backend of terraform, by its own name: kubernetes, azurerm, consul, cos, gcs, http, oci, oss, pg or
    s3, as far as the pool's engine has it. Default kubernetes, in the task's namespace: there `namespace`,
    `secret_suffix` and the connection are the agent's own, and `config` may hold `labels` only. For the
    others the task's workspace is the terraform workspace, made if it is missing; http has none, so there
    the address alone names the state."""
    config: (
        Annotated[
            dict[str, Any],
            Keywords(**{"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 64}),
        ]
        | None
    ) = None
    """The settings of the backend, by terraform's names, for example `{bucket: states, key: network.tfstate,
    region: eu-west-1, use_lockfile: true}`. They are readable by whoever may read the task, and tasks of
    equal settings and workspace run one after another, in whatever namespace: keep in `configFrom` what is
    secret, and all else here."""
    config_from: (
        Annotated[list[BackendConfigFrom], Keywords(**{"maxItems": 8, "x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """More settings, from Secrets and ConfigMaps of the task's namespace; a later entry wins, and wins over
    `config`. At most 8 entries. Where state and lock are may not be told by them alone: of two tasks on one
    state, it is not seen that they are."""

    RULES = (
        Rule(
            f"!(self.type in {_cel(backends.RUN_ELSEWHERE)})",
            "type cloud and remote run terraform on other machines, where a cancel can't halt it: use a backend that "
            "keeps the state only, such as kubernetes, s3 or http",
            ".type",
        ),
        Rule(
            "self.type != 'local'",
            "type local would keep the state in the agent's pod, which is gone after the task: use kubernetes, which "
            "needs nothing else",
            ".type",
        ),
        Rule(
            f"self.type in {_cel((*backends.NAMES, *backends.RUN_ELSEWHERE, 'local'))}",
            f"type must be the name of a backend of terraform: use one of {', '.join(backends.NAMES)}",
            ".type",
        ),
    )
