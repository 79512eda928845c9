"""The generated files are what their sources say, and whoever forgot to run the generator is told how."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from terrahalt_operator.api import generate
from tests.crds.api_server import ROOT


def test_the_generated_files_equal_their_sources() -> None:
    assert generate.differences(ROOT) == ""


def test_a_difference_is_shown_with_the_command_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.main(["--root", str(tmp_path), "--check"]) == 0
    file = tmp_path / "crds/agentpools.yaml"
    file.write_text(file.read_text().replace("maximum: 1000", "maximum: 9"))
    (tmp_path / "crds/left-over.yaml").write_text("kind: Left\n")
    before = file.read_text()

    assert generate.main(["--root", str(tmp_path), "--check"]) == 1

    printed = capsys.readouterr().out
    assert "-                  maximum: 9" in printed
    assert "+                  maximum: 1000" in printed
    assert "crds/left-over.yaml: nothing generates it" in printed
    assert printed.endswith(f"run\n  {generate.COMMAND}\n")
    assert file.read_text() == before


def test_the_charts_carry_the_same_crds_and_one_of_them_keeps_them() -> None:
    for source in sorted((ROOT / "crds").glob("*.yaml")):
        assert (ROOT / "charts/terrahalt/crds" / source.name).read_text() == source.read_text()
        kept = yaml.safe_load((ROOT / "charts/terrahalt-crds/templates" / source.name).read_text())
        assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert kept == yaml.safe_load(source.read_text())
