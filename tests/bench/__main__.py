"""`python -m tests.bench`: runs the parts one after another, prints a table for each, and writes JSON.

Progress goes to standard error, results to standard output. The exit code says whether the parts could be
measured, and have shown what they have to, never whether they were quick.
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

from tests.bench import agent, cancel, floor, machine, sockets, start, written
from tests.bench.figures import Part
from tests.bench.kubernetes_api import ApiError
from tests.bench.progress import say
from tests.bench.system import NoOperator, a_system
from tests.cluster import ClusterError

PARTS = ("floor", "agent", "cancel", "start", "sockets")
_CLUSTER_PARTS = {"cancel": cancel.measure, "start": start.measure}


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description="measures ratios within one run")
    arguments.add_argument("--rounds", type=int, default=10, help="of the part cancel (10)")
    arguments.add_argument("--starts", type=int, default=30, help="tasks, and bare Jobs, of the part start (30)")
    arguments.add_argument("--runs", type=int, default=agent.ROUNDS, help=f"of the part agent ({agent.ROUNDS})")
    arguments.add_argument("--sockets", type=int, default=1000, help="how many agents connect (1000)")
    arguments.add_argument("--only", action="append", choices=PARTS, help="this part; may be given again")
    arguments.add_argument("--write", type=Path, help="a file of the docs that gets what start has shown")
    arguments.add_argument("--json", type=Path, help="a file for all samples")
    chosen = arguments.parse_args(words)
    if min(chosen.rounds, chosen.starts, chosen.runs) < 1 or chosen.sockets < 2:
        arguments.error("at least one round, one start, one run and two sockets are needed")
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
    found["load_after"] = machine.load()
    print(f"\nload of the last minute: {found['load_before']:.2f} before, {found['load_after']:.2f} after")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"all samples: {chosen.json}")
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
    if clustered := [name for name in wanted if name in _CLUSTER_PARTS]:
        counts = {"cancel": chosen.rounds, "start": chosen.starts}
        rounds = " and ".join(f"{counts[name]} rounds of {name}" for name in clustered)
        say(f"{rounds} on the cluster, about 8 s each, and 20 s around them")
        try:
            async with a_system() as system, floor.a_floor() as least:
                found["cluster"] = system.facts
                for name in clustered:
                    part = await _CLUSTER_PARTS[name](system, least, counts[name])
                    show(part)
                    if name == "start" and chosen.write:
                        text = chosen.write.read_text(encoding="utf-8")
                        table = written.start_table(part, found)
                        chosen.write.write_text(written.replaced(text, name, table), encoding="utf-8")
        except (NoOperator, ClusterError, ApiError, aiohttp.ClientError, TimeoutError) as error:
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
