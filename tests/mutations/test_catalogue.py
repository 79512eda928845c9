"""Each guard of the catalogue is still in its file; what the judge says of one is what the tests have said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.__main__ import GUARDS, ROOT
from tests.mutations.catalogue import CatalogueError, Mutation, read
from tests.mutations.judge import Verdict, a_judge

MUTATIONS = list(read(GUARDS.read_text(encoding="utf-8")))


def test_no_guard_has_gone_from_its_file_and_what_is_left_can_be_read() -> None:
    wrong = []
    for mutation in MUTATIONS:
        try:
            ast.parse(mutation.applied((ROOT / mutation.file).read_text(encoding="utf-8")))
        except (CatalogueError, SyntaxError, OSError) as error:
            wrong.append(f"{mutation.what}: {error}")
    assert not wrong


def test_each_guard_has_a_name_of_its_own_and_tests_that_are_there() -> None:
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS) > 250
    for path in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, name = path.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")


def test_a_line_that_is_neither_taken_out_nor_put_in_is_an_error() -> None:
    with pytest.raises(CatalogueError, match="area: guard"):
        list(read("== area: f.py\n   t.py\n# guard\n-old\nnew\n"))


def test_a_guard_that_a_test_misses_is_killed_another_survives_and_the_tree_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["protocol"]\n')
    for folder in ("protocol", "tests"):
        (tmp_path / folder).mkdir()
    code = tmp_path / "protocol" / "code_under_trial.py"
    code.write_text("def guarded(n):\n    return max(n, 0)\n")
    test = "from code_under_trial import guarded\ndef test_it():\n    assert guarded(-1) == 0\n"
    (tmp_path / "tests" / "test_it.py").write_text(test)

    def taken_out(old: str, new: str) -> Mutation:
        return Mutation("guard", "protocol/code_under_trial.py", ("tests/test_it.py",), old, new)

    with a_judge(tmp_path, 1) as judge:
        assert judge.as_it_is(["tests/test_it.py"]) == ""
        assert judge.as_it_is(["tests/no_such_file.py"]) != ""
        missed = judge.try_(taken_out("max(n, 0)", "n"))
        assert (missed.verdict, missed.by) == (Verdict.KILLED, "tests/test_it.py::test_it")
        assert judge.try_(taken_out("max(n, 0)", "abs(n) * 0")).verdict is Verdict.SURVIVED
        assert judge.try_(taken_out("def guarded(n):", "def other(n):")).verdict is Verdict.BROKEN
        gone = judge.try_(taken_out("min", "max"))
        assert gone.verdict is Verdict.BROKEN
        assert "comes 0 times" in gone.by
    assert "max(n, 0)" in code.read_text()
