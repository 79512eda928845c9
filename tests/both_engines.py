"""`make test-agent`: all that is tested of the agent without a cluster, with terraform and then with OpenTofu.

Both engines come from the cache, or are made first; each part tells what it is and how long it takes. Goes on
with the other engine where one has failed. Run by the Makefile with the venv's Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests import cluster
from tests.cluster import programs
from tests.cluster.programs import Program
from tests.everything import WHOLE_AGENT_SUITE, Stage, pytest, took_of

CORE = Stage("core", "the agent's pure core and its adapters, without an engine", "30 s", (pytest("tests/agent"),))


def suite(program: Program) -> Stage:
    with_engine = ("env", f"ENGINE={program.name}", *pytest(*WHOLE_AGENT_SUITE))
    return Stage(program.name, f"the agent with a real {program.title}", "4 min", (with_engine,))


def main() -> int:
    for program in programs.PROGRAMS.values():
        print(f"{program.title} {program.version}: {_found_or_made(program)}", flush=True)
    stages = (CORE, *(suite(program) for program in programs.PROGRAMS.values()))
    took = [took_of(stage, f"{number}/{len(stages)}") for number, stage in enumerate(stages, 1)]
    for stage, (passed, seconds) in zip(stages, took, strict=True):
        print(f"{stage.name}: {'passed' if passed else 'FAILED'} after {seconds:.0f} s")
    return 0 if all(passed for passed, _ in took) else 1


def _found_or_made(program: Program) -> Path:
    return programs.found(program) or cluster.tool(program.name)


if __name__ == "__main__":
    sys.exit(main())
