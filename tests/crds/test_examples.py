"""Every example is accepted by the real API server as it is."""

from __future__ import annotations

import pytest
import yaml

from tests.crds.api_server import ROOT, ApiServer

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_there_is_an_example_of_each_use() -> None:
    names = {path.stem for path in EXAMPLES}
    assert names >= {
        "plan",
        "apply",
        "destroy",
        "cancel",
        "configmap-source",
        "git-source",
        "private-git-source",
        "archive-source",
        "variables",
        "variables-from",
        "env-from",
        "outputs",
        "backend",
        "queue",
        "pool",
        "pool-credentials",
        "pool-providers",
    }


def test_every_example_says_what_it_is_for_before_its_first_line() -> None:
    for path in EXAMPLES:
        assert path.read_text().startswith("# "), path


def test_no_two_examples_have_an_object_of_the_same_name() -> None:
    found = [
        (obj["kind"], obj["metadata"]["name"]) for path in EXAMPLES for obj in yaml.safe_load_all(path.read_text())
    ]
    assert len(found) == len(set(found))


@pytest.mark.cluster
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted_as_it_is(api: ApiServer, namespace: str, path: object) -> None:
    strictly = ("--dry-run=server", "--validate=strict", "-f", str(path))
    api.kubectl("-n", namespace, "create", *strictly)
    api.kubectl("-n", namespace, "apply", *strictly)
