"""`python -m tests.bench.scale`: measures step by step, prints a table for each, and writes JSON and the docs.

Progress goes to standard error, results to standard output. The exit code is 1 where something could not be measured,
or missed what it has to show (`limits`): all that was measured is shown all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from tests.bench import machine, written
from tests.bench.figures import Part
from tests.bench.kubernetes_api import ApiError
from tests.bench.progress import say
from tests.bench.scale import chart, limits, measure, plain, profiled, shown
from tests.bench.scale.operator_process import OperatorEnded
from tests.bench.scale.stage import NotToBeMeasured, a_stage
from tests.cluster import ClusterError

MARK, CHART = "scale", "scale.svg"
_ERRORS = (
    *(NotToBeMeasured, OperatorEnded, ClusterError, ApiError, aiohttp.ClientError, TimeoutError, OSError),
    BaseExceptionGroup,
)


def parsed(words: list[str]) -> tuple[argparse.Namespace, list[tuple[int, int]]]:
    """What was chosen, and how many tasks and agents each step has. Raises SystemExit."""
    arguments = argparse.ArgumentParser(prog="python -m tests.bench.scale", description="one operator, many tasks")
    arguments.add_argument("--tasks", type=int, default=10_000, help="that have not ended (10000)")
    arguments.add_argument("--agents", type=int, help="that run one each (a tenth of the tasks)")
    arguments.add_argument("--pools", type=int, default=10, help="two in a namespace (10)")
    arguments.add_argument("--steps", type=int, default=3, help="each with ten times the tasks of the one before (3)")
    arguments.add_argument("--starts", type=int, default=3, help="of the operator, the first after a SIGKILL (3)")
    arguments.add_argument("--idle", type=float, default=60.0, help="seconds for which it is watched at rest (60)")
    arguments.add_argument("--cancels", type=int, default=100, help="one at a time (100)")
    arguments.add_argument("--plain", type=int, default=30, help="plain tasks whose requests are counted (30)")
    arguments.add_argument(
        "--write", type=written.page, help="a file of the docs that gets the result; the plot lies beside it"
    )
    arguments.add_argument("--json", type=Path, help="a file for all samples")
    arguments.add_argument("--log", type=Path, help="a file for the operator's log")
    arguments.add_argument("--profile", type=Path, help="a file for cProfile's figures of the last step's operator")
    chosen = arguments.parse_args(words)
    sizes = [chosen.tasks // 10**step for step in reversed(range(chosen.steps))]
    agents = chosen.agents if chosen.agents is not None else chosen.tasks // 10
    steps = [(size, agents * size // chosen.tasks) for size in sizes]
    if agents > chosen.tasks // 2 or not 1 <= chosen.pools <= steps[0][1] or min(chosen.starts, chosen.cancels) < 1:
        arguments.error(
            "two tasks for each agent, an agent for each pool in the first step, a start and a cancel are needed"
        )
    return chosen, steps


def main(words: list[str]) -> int:
    chosen, sizes = parsed(words)
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.bench.scale", *words]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "load_before": machine.load(),
        "parts": [],
    }
    print(f"{found['command']}\n{machine.described(found['machine'])}", flush=True)
    steps: list[tuple[int, Part]] = []
    try:
        code = uvloop.run(_run(chosen, sizes, found, steps))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; what is measured so far is above", file=sys.stderr)
        code = 130
    machine.conclude(found, chosen.json)
    if chosen.write and len(steps) == len(sizes):
        text = chosen.write.read_text(encoding="utf-8")
        chosen.write.write_text(written.replaced(text, MARK, shown.text(steps, found, CHART)), encoding="utf-8")
        (chosen.write.parent / CHART).write_text(chart.svg(shown.curves(steps)), encoding="utf-8")
    if chosen.profile and chosen.profile.exists():
        print(profiled.told(chosen.profile))
    return code


async def _run(
    chosen: argparse.Namespace, sizes: list[tuple[int, int]], found: dict[str, Any], steps: list[tuple[int, Part]]
) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # as Ctrl-C: it cleans up
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        log = (chosen.log or folder / "operator.log").resolve()
        try:
            async with a_stage(chosen.pools, sizes[-1][1], log) as stage:
                found["cluster"] = stage.facts
                for tasks, agents in sizes:
                    is_last = (tasks, agents) == sizes[-1]
                    profile = chosen.profile.resolve() if is_last and chosen.profile else None
                    began = time.monotonic()
                    size = measure.Size(tasks, agents, chosen.starts, chosen.idle, chosen.cancels, profile)
                    part = await measure.measure(stage, size)
                    if is_last:
                        assert stage.operator is not None
                        await stage.operator.end()
                        await plain.measure(stage, part, chosen.plain, folder)
                        limits.judge(part)
                    steps.append((tasks, part))
                    if is_last:
                        limits.judge_growth(steps)
                    part.took_s = time.monotonic() - began
                    found["parts"].append(part.as_json())
                    print(f"\n{part.as_text()}", flush=True)
        except _ERRORS as error:
            print(f"\ncould not be measured to the end: {_told(error)}", file=sys.stderr)
            return 1
        say("done")
    return int(any(part.missed for _, part in steps))


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(each) for each in error.exceptions)
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
