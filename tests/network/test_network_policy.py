"""What the NetworkPolicy of a pool lets through, as an evaluator of policies reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terrahalt_operator.core import names, network
from terrahalt_operator.core.pod import CONTROL_PORT, HEALTH_PORT
from tests.network.evaluator import Peer, Traffic, is_allowed
from tests.operator_core import builders as b

SYSTEM = "terrahalt-system"
AGENT = Peer("10.0.0.5", "team-a", {names.NAME_LABEL: names.AGENT_NAME, names.POOL_LABEL: "default"})
OF_ANOTHER_POOL = Peer("10.0.0.6", "team-a", {names.NAME_LABEL: names.AGENT_NAME, names.POOL_LABEL: "other"})
OPERATOR = Peer("10.0.0.9", SYSTEM, {names.NAME_LABEL: names.OPERATOR_NAME})
BESIDE_IT = Peer("10.0.0.10", SYSTEM, {"app": "debug"})
PRETENDER = Peer("10.0.0.7", "team-a", {names.NAME_LABEL: names.OPERATOR_NAME})
PLAIN = Peer("10.0.0.8", "team-a", {"app": "web"})
SOMEWHERE = (
    "8.8.8.8", "2001:4860:4860::8888",
    "10.96.0.1",  # the API server's Service, as many clusters have it
    "169.254.20.10",  # the node's own DNS cache
    "169.254.170.23", "fd00:ec2::23",  # gives a pod its own identity
    "169.254.169.253",
)  # fmt: skip
METADATA = tuple(block.partition("/")[0] for block in network.METADATA)


def policy(**pool: Any) -> dict[str, Any]:
    return network.policy(b.a_pool(**pool), operator_namespace=SYSTEM, anchor_uid="anchor-uid")


def reached(folder: Path, source: Peer, addresses: tuple[str, ...], **pool: Any) -> list[str]:
    asked = [Traffic(source, Peer(address), 80) for address in addresses]
    answers = is_allowed([policy(**pool)], asked, folder)
    return [address for address, answer in zip(addresses, answers, strict=True) if answer]


def test_only_the_operator_reaches_an_agent_and_only_at_its_control_port(tmp_path: Path) -> None:
    asked = {
        "the operator": Traffic(OPERATOR, AGENT, CONTROL_PORT),
        "the operator, at another port": Traffic(OPERATOR, AGENT, HEALTH_PORT),
        "what lives beside the operator": Traffic(BESIDE_IT, AGENT, CONTROL_PORT),
        "a pod of the namespace with the operator's label": Traffic(PRETENDER, AGENT, CONTROL_PORT),
        "another agent": Traffic(OF_ANOTHER_POOL, AGENT, CONTROL_PORT),
        "another agent of the pool": Traffic(AGENT, AGENT, CONTROL_PORT),
        "somebody outside of the cluster": Traffic(Peer("192.0.2.1"), AGENT, CONTROL_PORT),
        "somebody with an IPv6 address": Traffic(Peer("2001:db8::1"), AGENT, CONTROL_PORT),
    }
    answers = is_allowed([policy()], list(asked.values()), tmp_path)
    assert [who for who, answer in zip(asked, answers, strict=True) if answer] == ["the operator"]


def test_who_scrapes_reaches_the_metrics_and_nothing_else_and_nobody_else_does(tmp_path: Path) -> None:
    prometheus = Peer("10.0.0.11", "monitoring", {"app": "prometheus"})
    beside_it = Peer("10.0.0.12", "monitoring", {"app": "grafana"})
    pretender = Peer("10.0.0.13", "team-a", {"app": "prometheus"})
    scraper = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchLabels": {"app": "prometheus"}},
    }
    opened = network.policy(b.a_pool(), operator_namespace=SYSTEM, anchor_uid="anchor-uid", scraper=scraper)
    asked = [
        Traffic(peer, AGENT, port)
        for peer in (prometheus, beside_it, pretender, OPERATOR)
        for port in (HEALTH_PORT, CONTROL_PORT)
    ]
    assert is_allowed([opened], asked, tmp_path) == [True, False, False, False, False, False, False, True]


def test_an_agent_reaches_everything_but_the_clouds_metadata(tmp_path: Path) -> None:
    assert reached(tmp_path, AGENT, (*SOMEWHERE, *METADATA)) == list(SOMEWHERE)
    pods = [Traffic(AGENT, peer, 5432) for peer in (PLAIN, OPERATOR, BESIDE_IT)]
    assert is_allowed([policy()], pods, tmp_path) == [True, True, True]


def test_pods_are_reached_too_where_a_network_does_not_count_them_to_any_block(tmp_path: Path) -> None:
    by_label = policy()
    (rule,) = by_label["spec"]["egress"]
    rule["to"] = [peer for peer in rule["to"] if "ipBlock" not in peer]
    assert rule["to"], "without a peer it would mean everybody"
    assert is_allowed([by_label], [Traffic(AGENT, peer, 5432) for peer in (PLAIN, BESIDE_IT)], tmp_path) == [True, True]


@pytest.mark.parametrize(
    ("allowed", "opened"),
    [
        (["169.254.169.254/32"], {"169.254.169.254"}),
        (["fd00:ec2::254/128"], {"fd00:ec2::254"}),
        # As whoever writes an address with its prefix does it.
        (["169.254.169.254/30"], {"169.254.169.254", "169.254.169.252"}),
        (["169.254.0.0/16"], {a for a in METADATA if a.startswith("169.254.")}),
        (["fd00::/8"], {"fd00:ec2::254", "fd20:ce::254", "fd00:42::42"}),
        (["0.0.0.0/0", "::/0"], set(METADATA)),
        (["10.0.0.0/8"], set()),
        (["what no version could read", "169.254.169.254/32"], {"169.254.169.254"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_a_pool_opens_the_addresses_that_its_cidrs_hold_and_no_others(
    tmp_path: Path, allowed: list[str], opened: set[str]
) -> None:
    found = reached(tmp_path, AGENT, (*SOMEWHERE, *METADATA), allow_metadata=tuple(allowed))
    assert set(found) == {*SOMEWHERE, *opened}


def test_what_is_no_agent_of_the_pool_is_as_free_as_before(tmp_path: Path) -> None:
    for peer in (PLAIN, OF_ANOTHER_POOL):
        assert reached(tmp_path, peer, METADATA) == list(METADATA)
        assert is_allowed([policy()], [Traffic(BESIDE_IT, peer, CONTROL_PORT)], tmp_path) == [True]
