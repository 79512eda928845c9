"""Whose terraform and tofu are taken: only those that report the pinned version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import programs
from tests.cluster.failure import ClusterError
from tests.cluster.programs import Program

ALL = pytest.mark.parametrize("program", programs.PROGRAMS.values(), ids=lambda program: program.name)


def a_program(folder: Path, program: Program, version: str) -> Path:
    """Says that it is this one, after a warning, as both do where their configuration can't be read."""
    file = folder / program.name
    file.write_text(f"#!/bin/sh\necho Warning\necho '{program.title} v{version}'\n")
    file.chmod(0o755)
    return file


@ALL
def test_a_file_that_the_user_names_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    named = a_program(tmp_path, program, program.version)
    monkeypatch.setenv(program.variable, str(named))
    assert programs.found(program) == named


@ALL
def test_a_named_file_of_another_version_is_refused_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    monkeypatch.setenv(program.variable, str(a_program(tmp_path, program, f"{program.version}-dev")))
    with pytest.raises(ClusterError, match=rf"{program.variable}=.* is not {program.name} .*reports .*-dev"):
        programs.found(program)


@ALL
def test_the_one_on_path_is_taken_in_the_pinned_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    monkeypatch.delenv(program.variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    ours = a_program(tmp_path, program, program.version)
    assert programs.found(program) == ours


@ALL
def test_where_it_is_compiled_the_source_is_of_the_pinned_version(program: Program) -> None:
    required = (Path(programs.__file__).parent / program.name / "go.mod").read_text().splitlines()
    assert [program.module, f"v{program.version}"] in [line.split()[:2] for line in required]
