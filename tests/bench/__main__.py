"""`python -m tests.bench`: runs the parts one after another, prints a table for each, and writes JSON.

Progress goes to standard error, results to standard output. The exit code says whether the parts could be
measured, never whether they were quick. PYTHONPATH must hold the packages' sources, as `make bench` sets it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from tests.bench import agent, cancel, floor, machine, sockets, start
from tests.bench.figures import Part
from tests.bench.kubernetes_api import ApiError
from tests.bench.progress import say
from tests.bench.system import NoOperator, a_system
from tests.cluster import ClusterError

PARTS = ("floor", "agent", "cancel", "start", "sockets")
_CLUSTER_PARTS = {"cancel": cancel.measure, "start": start.measure}


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description="measures ratios within one run")
    arguments.add_argument("--rounds", type=int, default=10, help="of the parts cancel and start (10)")
    arguments.add_argument("--runs", type=int, default=agent.ROUNDS, help=f"of the part agent ({agent.ROUNDS})")
    arguments.add_argument("--sockets", type=int, default=1000, help="how many agents connect (1000)")
    arguments.add_argument("--only", action="append", choices=PARTS, help="this part; may be given again")
    arguments.add_argument("--json", type=Path, help="a file for all samples")
    chosen = arguments.parse_args(words)
    if chosen.rounds < 1 or chosen.runs < 1 or chosen.sockets < 2:
        arguments.error("at least one round, one run and two sockets are needed")
    wanted = [name for name in PARTS if not chosen.only or name in chosen.only]
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.bench", *words]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "load_before": machine.load(),
        "parts": [],
    }
    print(
        f"{found['command']}\n{describe(found['machine'])}\nload of the last minute: {machine.load():.2f}", flush=True
    )
    try:
        code = uvloop.run(_run(wanted, chosen.rounds, chosen.runs, chosen.sockets, found))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; what is measured so far follows", file=sys.stderr)
        code = 130
    found["load_after"] = machine.load()
    print(f"\nload of the last minute: {found['load_before']:.2f} before, {found['load_after']:.2f} after")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"all samples: {chosen.json}")
    return code


def describe(facts: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items())
    return (
        f"{facts['usable_cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, {facts['kernel']}\n"
        f"Python {facts['python']}, {facts['openssl']}, {libraries}"
    )


async def _run(wanted: list[str], rounds: int, runs: int, socket_count: int, found: dict[str, Any]) -> int:
    """The exit code: 1 where a part could not be measured; the others are, all the same."""
    code = 0
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # as Ctrl-C: it cleans up
    began = time.monotonic()

    def show(part: Part) -> None:
        nonlocal began
        part.took_s = time.monotonic() - began
        began = time.monotonic()
        found["parts"].append(part.as_json())
        print(f"\n{part.as_text()}", flush=True)

    if "floor" in wanted:
        say(f"floor: {floor.ROUNDS} frames and signals, about 2 s")
        show(await floor.measure())
    if "agent" in wanted:
        try:
            show(await agent.measure(runs))
        except (AssertionError, TimeoutError, OSError) as error:
            print(f"\nagent could not be measured: {error or type(error).__name__}", file=sys.stderr)
            code = 1
        began = time.monotonic()
    if clustered := [name for name in wanted if name in _CLUSTER_PARTS]:
        say(f"{' and '.join(clustered)}: {rounds} rounds on the cluster, about 8 s each, and 20 s around them")
        try:
            async with a_system() as system, floor.a_floor() as least:
                found["cluster"] = system.facts
                for name in clustered:
                    show(await _CLUSTER_PARTS[name](system, least, rounds))
        except (NoOperator, ClusterError, ApiError, aiohttp.ClientError, TimeoutError) as error:
            print(f"\n{' and '.join(clustered)} could not be measured to the end: {error}", file=sys.stderr)
            code = 1
        began = time.monotonic()
    if "sockets" in wanted:
        say(f"sockets: {socket_count:,} sockets in 4 variants, about 2 minutes with 1,000")
        try:
            show(await sockets.measure(socket_count))
        except (RuntimeError, TimeoutError, OSError) as error:
            print(f"\nsockets could not be measured: {error or type(error).__name__}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
