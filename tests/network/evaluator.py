"""What NetworkPolicies mean, by somebody else's reading: cyclonus, compiled from the Go module proxy, once.

No pod network of a test cluster enforces policies, and what one does would be that network's reading only.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import cache, golang, pins
from tests.cluster.progress import Progress


def program() -> Path:
    package = "github.com/mattfenwick/cyclonus/cmd/cyclonus"
    product = golang.installed("cyclonus", package, pins.CYCLONUS, cold="2 min")
    if not product.is_built:
        with cache.lock():
            Progress().make(product)
    return product.path / "cyclonus"


@dataclass(frozen=True)
class Peer:
    """A pod; or with an address alone, what is none."""

    ip: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        if not self.namespace:
            return {"IP": self.ip}
        inside = {
            "PodLabels": dict(self.labels),
            "NamespaceLabels": {"kubernetes.io/metadata.name": self.namespace},
            "Namespace": self.namespace,
        }
        return {"IP": self.ip, "Internal": inside}


@dataclass(frozen=True)
class Traffic:
    source: Peer
    target: Peer
    port: int


def is_allowed(policies: Iterable[Mapping[str, Any]], traffic: Sequence[Traffic], folder: Path) -> list[bool]:
    """For each, in its order."""
    policy_file, traffic_file = folder / "policies.yaml", folder / "traffic.json"
    policy_file.write_text(yaml.safe_dump_all(policies))
    asked = [
        {"Source": each.source.as_json(), "Destination": each.target.as_json(), "ResolvedPort": each.port,
         "ResolvedPortName": "", "Protocol": "TCP"}
        for each in traffic
    ]  # fmt: skip
    traffic_file.write_text(json.dumps(asked))
    done = subprocess.run(
        [str(program()), "analyze", "--mode", "query-traffic", "--policy-path", str(policy_file),
         "--traffic-path", str(traffic_file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = re.findall(r"IS ALLOWED\? \|\s+(TRUE|FALSE)", done.stdout)
    assert len(answers) == len(traffic), done.stdout + done.stderr
    return [answer == "TRUE" for answer in answers]
