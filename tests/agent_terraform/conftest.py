"""Fixtures: a fresh agent per test, real providers from a folder instead of a registry, and a cloud for one of them.

And with `--every-row`, which a whole run of the suite is given: the session fails where a row of the table of ends
was met by no real process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.core.classify import ROWS
from tests.agent_terraform.certificates import Authority, an_authority
from tests.agent_terraform.harness import ROWS_MET, AgentProcess, Operator, an_agent, an_operator
from tests.cloud import Cloud, a_cloud
from tests.providers import mirrored

_ROWS = "rows met"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of a session in several processes this is called in each, and in the one that has started them at last."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told[_ROWS] = dict(ROWS_MET)
    elif session.config.getoption("--every-row") and never_met(ROWS_MET):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    ROWS_MET.update(getattr(node, "workeroutput", {}).get(_ROWS, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--every-row"):
        terminalreporter.section("the table of ends: runs of real processes that each row has decided")
        for row in ROWS:
            terminalreporter.write_line(f"{ROWS_MET[row.observed]:>4}  {row.observed}")
        for observed in never_met(ROWS_MET):
            terminalreporter.write_line(f"FAILED: decided no run of a real process: {observed!r}")


def never_met(met: Counter[str]) -> list[str]:
    return [row.observed for row in ROWS if not met[row.observed]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return an_authority(tmp_path)


@pytest.fixture
async def agent(tmp_path: Path, authority: Authority) -> AsyncIterator[AgentProcess]:
    async with an_agent(tmp_path, authority) as started:
        yield started


@pytest.fixture
async def operator(agent: AgentProcess) -> AsyncIterator[Operator]:
    async with an_operator(agent) as connected:
        yield connected


@pytest.fixture(scope="session")
def providers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment with which the engine finds `time` and `trial`; compiling them takes a minute, once."""
    return mirrored(tmp_path_factory.mktemp("providers"))


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with a_cloud() as running:
        yield running
