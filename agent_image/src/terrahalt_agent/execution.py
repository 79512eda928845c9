"""What this agent holds of one run: handed round by `driver`, and looked into by `aftermath`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from terrahalt_agent.adapters.backend import Backend
from terrahalt_agent.adapters.log_tail import LogTail
from terrahalt_agent.adapters.process import ChildProcess
from terrahalt_agent.adapters.workdir import Environment, Prepared
from terrahalt_protocol.messages import Start


@dataclass(slots=True)
class Execution:
    start: Start
    begun_at: float
    """Seconds since the epoch, to compare with what terraform writes into the state's lock."""
    preparation: asyncio.Task[None] | None = None
    """Or the sharing of its providers, or the keeping of its plan."""
    reading: asyncio.Task[None] | None = None
    """Of the credentials, once more."""
    credentials: Environment | None = None
    """What envFrom gave to the latest read of it, in the order in which reads began."""
    reads_begun: int = 0
    credentials_read: int = 0
    """Which of the reads `credentials` is from."""
    inputs: tuple[str, ...] = ()
    """Secret values of input variables, which its plan holds."""
    planned_with: Mapping[str, str] | None = None
    """The environment of the plan."""
    backend: Backend | None = None
    prepared: Prepared | None = None
    process: ChildProcess | None = None
    tail: LogTail | None = None
    last_message: str = ""
    sweeps: int = 0
    """That were asked for; only the latest one's answer counts."""
