"""Whom a pool's agents may talk to: its NetworkPolicy. Pure.

In comes the operator alone, to the control port, and to the other port whoever the installation lets read the metrics.
Out goes everything but the addresses where a cloud tells
whoever asks what it knows of the node, its credentials too: user code runs in the pod, and the node's rights
are not the task's. The anchor owns the policy, so it goes with the pool's last agent. Called by `effects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from terrahalt_operator.core import names
from terrahalt_operator.core.model import Pool
from terrahalt_operator.core.pod import CONTROL_PORT, HEALTH_PORT, anchor_name, anchor_reference

METADATA = (
    "169.254.169.254/32",  # AWS, Azure, Google, Oracle, OpenStack and most others
    "fd00:ec2::254/128",  # AWS
    "fd20:ce::254/128",  # Google
    "fe80::a9fe:a9fe/128",  # OpenStack
    "169.254.170.2/32",  # AWS: the credentials of a container task
    "169.254.169.252/32",  # Google: where its own nodes send on what asks for the first
    "168.63.129.16/32",  # Azure: the settings and secrets of the node's own agent
    "100.100.100.200/32",  # Alibaba
    "169.254.0.23/32",  # Tencent
    "169.254.42.42/32",  # Scaleway
    "fd00:42::42/128",  # Scaleway
)
"""Not the whole of 169.254.0.0/16: the node's own DNS cache lives there, and AWS's agent for the identity of pods,
which gives a pod nothing but its own."""

_EVERYWHERE = ("0.0.0.0/0", "::/0")


def policy(
    pool: Pool, *, operator_namespace: str, anchor_uid: str, scraper: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`scraper`: the peer that may read the metrics; None: nobody."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": {names.NAME_LABEL: names.OPERATOR_NAME}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": anchor_name(pool.name),
            "namespace": pool.namespace,
            "labels": {names.NAME_LABEL: names.AGENT_NAME, names.POOL_LABEL: pool.name},
            "ownerReferences": [anchor_reference(pool.name, anchor_uid)],
        },
        "spec": {
            "podSelector": {"matchLabels": {names.NAME_LABEL: names.AGENT_NAME, names.POOL_LABEL: pool.name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_let_in(operator, CONTROL_PORT), *([_let_in(scraper, HEALTH_PORT)] if scraper else [])],
            # Some networks know their own pods by labels only, never by address.
            "egress": [{"to": [{"namespaceSelector": {}}, *map(_block, _but_metadata(pool.allow_metadata))]}],
        },
    }


def _let_in(peer: Mapping[str, Any], port: int) -> dict[str, Any]:
    return {"from": [dict(peer)], "ports": [{"protocol": "TCP", "port": port}]}


def _block(of: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
    cidr, left_out = of
    return {"ipBlock": {"cidr": cidr, **({"except": list(left_out)} if left_out else {})}}


@lru_cache(maxsize=256)
def _but_metadata(allowed: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each block, and the addresses in it that stay closed. Kept: pools are looked at often, and few differ in it."""
    closed = [
        network for network in map(ip_network, METADATA) if not any(_holds(_network(a), network) for a in allowed)
    ]
    blocks = [(cidr, ip_network(cidr).version) for cidr in _EVERYWHERE]
    return tuple((cidr, tuple(str(n) for n in closed if n.version == version)) for cidr, version in blocks)


def _network(block: str) -> IPv4Network | IPv6Network | None:
    """None: not readable, and so it opens nothing."""
    try:
        return ip_network(block, strict=False)
    except ValueError:
        return None


def _holds(block: IPv4Network | IPv6Network | None, network: IPv4Network | IPv6Network) -> bool:
    match block, network:
        case (IPv4Network(), IPv4Network()):
            return network.subnet_of(block)
        case (IPv6Network(), IPv6Network()):
            return network.subnet_of(block)
    return False
