"""The driver's end of `simulator`: starts it, gives it orders, and ends it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.bench import PROJECT
from tests.bench.kubernetes_api import Json

_MORE_S = 30.0
"""For the answer to an order, beyond the time that it may take itself."""


class Agents:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, do: str, within_s: float = 0.0, **what: Any) -> Json:
        """Raises TimeoutError, also where the simulator has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"do": do, "within_s": within_s, **what}
        async with self._one_at_a_time, asyncio.timeout(within_s + _MORE_S):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            line = await self._process.stdout.readline()
        if not line:
            raise TimeoutError(f"the simulator has ended when it was asked to {do}")
        answer: Json = json.loads(line)
        return answer

    async def until(self, within_s: float, **counts: int) -> float:
        """When it was so, on the clock that both share. Raises TimeoutError."""
        found = await self.ask("until", within_s, counts=counts)
        at = found.pop("at")
        if any(found[name] != count for name, count in counts.items()):
            raise TimeoutError(f"not within {within_s:.0f} s: the agents should have {counts}, and have {found}")
        return float(at)


@asynccontextmanager
async def simulated(kubectl: str, environment: Mapping[str, str], agents: int) -> AsyncIterator[Agents]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.scale.simulator"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
        limit=2**24,
        start_new_session=True,  # Ctrl-C is for the driver: the pods are to end before their kubelet
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        settings = {"kubectl": kubectl, "environment": dict(environment), "agents": agents}
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        async with asyncio.timeout(_MORE_S):
            if not await process.stdout.readline():
                raise TimeoutError("the simulator did not start; what it said is above")
        yield Agents(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
