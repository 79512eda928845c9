"""The sockets part: what a thousand mutual-TLS control sockets cost the operator, and what decides it.

The product's own combination first (uvloop, TLS, frames of at most MAX_FRAME_BYTES), then each choice
undone, one at a time: asyncio's loop, no TLS, large messages in one frame. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import msgspec

from terrahalt_protocol.codec import MAX_FRAME_BYTES
from tests.bench import PROJECT
from tests.bench.figures import Part, Row
from tests.bench.operator_side import LARGE_BYTES, Settings
from tests.bench.progress import say

IDLE_S = 20.0
BURSTS = 5
_TIMEOUT_S = 180.0
_WHOLE_FRAME_BYTES = 64 * 1024


async def measure(sockets: int, *, idle_s: float = IDLE_S, bursts: int = BURSTS) -> Part:
    part = Part("sockets", f"{sockets:,} control sockets to one operator process, agents in another")
    product = Settings(
        sockets=sockets, loop="uvloop", tls=True, max_frame_bytes=MAX_FRAME_BYTES, idle_s=idle_s, bursts=bursts
    )
    replace = msgspec.structs.replace
    variants = {
        "product": product,
        "asyncio loop": replace(product, loop="asyncio", idle_s=0.0),
        "no TLS": replace(product, tls=False, idle_s=0.0),
        "one frame": replace(product, max_frame_bytes=_WHOLE_FRAME_BYTES, idle_s=0.0),
    }
    rows: dict[str, dict[str, Row]] = {}
    for name, settings in variants.items():
        say(f"sockets: {name} ({settings.loop}, {'TLS' if settings.tls else 'plain'}, "
            f"frames of at most {settings.max_frame_bytes} bytes)")  # fmt: skip
        rows[name] = _rows(part, name, await _run(settings))
    _compare(part, rows)
    part.notes += [
        f"rss: growth of the operator's process for each socket; large = a message of {LARGE_BYTES:,} bytes, "
        f"in parts except in 'one frame'; steps are cumulative, in the order shown",
        "burst: from the moment at which all cancels were known until the agents' side had decoded each; "
        "that side is one process here, so part of the tail is its own",
        f"idle cpu: of one core, over {idle_s:.0f} s with heartbeats",
    ]
    return part


async def _run(settings: Settings) -> dict[str, Any]:
    """What that process found. Raises RuntimeError where it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.operator_side", msgspec.json.encode(settings).decode()),
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its agents' side with it
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the operator's side ended with code {process.returncode}: its error is above")
    found: dict[str, Any] = json.loads(out)
    return found


def _rows(part: Part, name: str, found: dict[str, Any]) -> dict[str, Row]:
    rows = {
        f"rss {step}": part.add(f"{name}: rss a socket, {step}", "KiB", [kib]) for step, kib in found["rss_kib"].items()
    }
    rows["rss total"] = part.add(f"{name}: rss of the process at the end", "MiB", [found["rss_total_mib"]])
    rows["dial"] = part.add(f"{name}: cpu to dial one", "ms", [found["dial_cpu_ms"]])
    if "idle_cpu_percent" in found:
        rows["idle"] = part.add(f"{name}: idle cpu", "%", [found["idle_cpu_percent"]])
    rows["one"] = part.add(f"{name}: one cancel until received", "ms", found["one_cancel_ms"])
    rows["burst"] = part.add(f"{name}: burst, all asked -> received", "ms", found["burst_ms"])
    if name == "product":
        part.add(f"{name}: burst, own frame -> received", "ms", found["burst_own_frame_ms"])
    return rows


def _compare(part: Part, rows: dict[str, dict[str, Row]]) -> None:
    product = rows["product"]
    for other, what in (
        ("asyncio loop", "memory of an idle socket, asyncio's TLS : uvloop's"),
        ("no TLS", "memory of an idle socket, plain : TLS"),
    ):
        part.compare(what, rows[other]["rss idle"], product["rss idle"])
    for direction in ("sent", "received"):
        step = f"rss large {direction}"
        part.compare(
            f"memory after a large message {direction}, one frame : parts", rows["one frame"][step], product[step]
        )
        part.compare(f"memory after a large message {direction} : idle", product[step], product["rss idle"])
    part.compare("burst of cancels, asyncio : uvloop", rows["asyncio loop"]["burst"], product["burst"])
    part.compare("burst of cancels, plain : TLS", rows["no TLS"]["burst"], product["burst"])
    part.compare("a cancel within a burst : one alone", product["burst"], product["one"])
