"""`python -m tests.bench`: runs the parts one after another, prints a table for each, and writes JSON.

Progress goes to standard error, results to standard output. The exit code says whether the parts could be
measured, and have shown what they have to, never whether they were quick.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from tests.bench import agent, cancel, cost, floor, hand_over, machine, sockets, start, throughput, written
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.kubernetes_api import ApiError
from tests.bench.progress import say
from tests.bench.system import NoOperator, System, a_system
from tests.cluster import ClusterError

PARTS = ("floor", "agent", "cancel", "start", "hand-over", "throughput", "cost", "sockets")


@dataclass(frozen=True, slots=True)
class _OnCluster:
    measure: Callable[[System, Floor, int], Awaitable[Part]]
    option: str
    """How much of it is measured."""
    drawn: tuple[str, ...] = ()


CLUSTER_PARTS = {
    "cancel": _OnCluster(cancel.measure, "rounds", cancel.DRAWN),
    "start": _OnCluster(start.measure, "starts", start.DRAWN),
    "hand-over": _OnCluster(hand_over.measure, "handovers", hand_over.DRAWN),
    "throughput": _OnCluster(throughput.measure, "plans"),
    "cost": _OnCluster(cost.measure, "applies"),
}
_TWO_CLOCKS = "this machine and the node may have different clocks: times between them are wrong by the difference"
# AssertionError: of the node watcher, that nobody can look any more.
_TROUBLES = (NoOperator, ClusterError, ApiError, aiohttp.ClientError, TimeoutError, AssertionError)


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description="measures ratios within one run")
    arguments.add_argument("--rounds", type=int, default=20, help="of the part cancel (20)")
    arguments.add_argument("--starts", type=int, default=30, help="tasks, and bare Jobs, of the part start (30)")
    arguments.add_argument("--handovers", type=int, default=10, help="of each kind, of the part hand-over (10)")
    arguments.add_argument("--plans", type=int, default=20, help="in the queue of the part throughput (20)")
    arguments.add_argument("--applies", type=int, default=10, help="of the part cost (10)")
    arguments.add_argument("--runs", type=int, default=agent.ROUNDS, help=f"of the part agent ({agent.ROUNDS})")
    arguments.add_argument("--sockets", type=int, default=1000, help="how many agents connect (1000)")
    arguments.add_argument("--only", action="append", choices=PARTS, help="this part; may be given again")
    arguments.add_argument(
        "--write", type=written.page, help="a page of the docs that gets what the cluster parts show"
    )
    arguments.add_argument("--json", type=Path, help="a file for all samples")
    chosen = arguments.parse_args(words)
    counts = [chosen.runs, *(getattr(chosen, part.option) for part in CLUSTER_PARTS.values())]
    if min(counts) < 1 or chosen.sockets < 2:
        arguments.error("at least one of each and two sockets are needed")
    wanted = [name for name in PARTS if not chosen.only or name in chosen.only]
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.bench", *words]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "load_before": machine.load(),
        "parts": [],
    }
    print(f"{found['command']}\n{machine.described(found['machine'])}")
    print(f"load of the last minute: {machine.load():.2f}", flush=True)
    try:
        code = uvloop.run(_run(wanted, chosen, found))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; what is measured so far follows", file=sys.stderr)
        code = 130
    machine.conclude(found, chosen.json)
    return code


async def _run(wanted: list[str], chosen: argparse.Namespace, found: dict[str, Any]) -> int:
    """The exit code: 1 where a part could not be measured, or missed what it had to show; the others are measured
    all the same."""
    code = 0
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # as Ctrl-C: it cleans up
    began = time.monotonic()

    def show(part: Part) -> None:
        nonlocal began, code
        part.took_s = time.monotonic() - began
        began = time.monotonic()
        found["parts"].append(part.as_json())
        print(f"\n{part.as_text()}", flush=True)
        code = max(code, bool(part.missed))

    if "floor" in wanted:
        say(f"floor: {floor.ROUNDS} frames and signals, about 2 s")
        show(await floor.measure())
    if "agent" in wanted:
        try:
            show(await agent.measure(chosen.runs))
        except (AssertionError, TimeoutError, OSError) as error:
            print(f"\nagent could not be measured: {error or type(error).__name__}", file=sys.stderr)
            code = 1
        began = time.monotonic()
    if clustered := [name for name in wanted if name in CLUSTER_PARTS]:
        counts = {name: getattr(chosen, CLUSTER_PARTS[name].option) for name in clustered}
        say(f"on the cluster: {', '.join(f'{name} {count}' for name, count in counts.items())}")
        try:
            async with a_system() as system, floor.a_floor() as least:
                found["cluster"] = system.facts
                for name in clustered:
                    about = CLUSTER_PARTS[name]
                    try:
                        part = await about.measure(system, least, counts[name])
                    except _TROUBLES as error:
                        why = str(error) or type(error).__name__
                        print(f"\n{name} could not be measured to the end: {why}", file=sys.stderr)
                        code, began = 1, time.monotonic()
                        continue
                    if not system.facts["one_clock"]:
                        part.notes.append(_TWO_CLOCKS)
                    show(part)
                    if chosen.write:
                        written.write(chosen.write, part, found, about.drawn)
        except _TROUBLES as error:
            print(f"\n{' and '.join(clustered)} could not be measured to the end: {error}", file=sys.stderr)
            code = 1
        began = time.monotonic()
    if "sockets" in wanted:
        say(f"sockets: {chosen.sockets:,} sockets in 4 variants, about 2 minutes with 1,000")
        try:
            show(await sockets.measure(chosen.sockets))
        except (RuntimeError, TimeoutError, OSError) as error:
            print(f"\nsockets could not be measured: {error or type(error).__name__}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
