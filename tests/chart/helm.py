"""The charts as functions: values go in, objects or a complaint come out."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.crds.api_server import ROOT, run

CHART = ROOT / "charts/terrahalt"
CRDS_CHART = ROOT / "charts/terrahalt-crds"
RELEASE = "terrahalt"
SYSTEM = "terrahalt-system"
HOOK = "helm.sh/hook"

Objects = list[dict[str, Any]]


class Helm:
    def __init__(self, program: Path) -> None:
        self._program = program

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run([str(self._program), *arguments], os.environ, stdin)

    def rendered(self, values: Mapping[str, Any] | None = None, *, namespace: str = SYSTEM, name: str = RELEASE) -> str:
        done = self._template(values, namespace, name)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def objects(
        self, values: Mapping[str, Any] | None = None, *, namespace: str = SYSTEM, name: str = RELEASE
    ) -> Objects:
        return [obj for obj in yaml.safe_load_all(self.rendered(values, namespace=namespace, name=name)) if obj]

    def complaint(self, values: Mapping[str, Any]) -> str:
        """What it says of values that it refuses."""
        done = self._template(values, SYSTEM, RELEASE)
        assert done.returncode != 0, "these values are let through"
        return done.stderr

    def notes(self, values: Mapping[str, Any] | None = None, *, namespace: str = SYSTEM) -> str:
        done = self(
            "install", RELEASE, str(CHART), "--namespace", namespace, "--dry-run=client",
            "--values", "-", stdin=json.dumps(values or {}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:\n")[2]

    def _template(
        self, values: Mapping[str, Any] | None, namespace: str, name: str
    ) -> subprocess.CompletedProcess[str]:
        return self(
            "template", name, str(CHART), "--namespace", namespace, "--values", "-", stdin=json.dumps(values or {})
        )


def without_hooks(objects: Sequence[Mapping[str, Any]]) -> Objects:
    """What `helm install` makes."""
    return [dict(obj) for obj in objects if HOOK not in obj["metadata"].get("annotations", {})]


def to_be_tried(objects: Sequence[Mapping[str, Any]]) -> str:
    """For a dry run, which makes no account for the pod that comes after it."""
    tried = copy.deepcopy(list(objects))
    for pod in of_kind(tried, "Pod"):
        pod["spec"]["serviceAccountName"] = "default"
    return yaml.safe_dump_all(tried)


def of_kind(objects: Sequence[Mapping[str, Any]], *kinds: str) -> Objects:
    return [dict(obj) for obj in objects if obj["kind"] in kinds]


def one(objects: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = of_kind(objects, kind)
    return found
