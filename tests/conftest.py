"""Fixtures and options of all tests; what needs a cluster is made at its first use, once per session."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.e2e.installation import Installation

# The time of an example is the machine's mood; an example that failed is printed, for the test that keeps it.
settings.register_profile(
    "terrahalt", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("terrahalt")

LINES = pytest.StashKey[list[str]]()
_SAID = "said"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("terrahalt", "random trials")
    group.addoption(
        "--cancels", type=int, default=20, help="cancels at random moments (default 20; make soak: 200; 0: none)"
    )
    group.addoption(
        "--operator-kills", type=int, default=5, help="kill -9 of the operator (default 5; make soak: 50; 0: none)"
    )
    group.addoption(
        "--adopted",
        type=int,
        default=5,
        help="runs that a killed leader leaves behind (default 5; make soak: 15; 0: none)",
    )
    group.addoption(
        "--pool-tasks", type=int, default=200, help="on a pool of twenty agents (default and make soak: 200; 0: none)"
    )
    group.addoption(
        "--pool-chart", default=None, help="the docs' folder, where queue and agents of that pool are drawn"
    )
    group.addoption(
        "--drained", type=int, default=10, help="applies on a node that is drained (default and make soak: 10; 0: none)"
    )
    group.addoption(
        "--minutes", type=float, default=0.5, help="of random troubles (default 0.5; make soak: 10; 0: none)"
    )
    group.addoption("--away", type=float, default=8, help="seconds without an operator (default 8; make outages: 1800)")
    group.addoption(
        "--api-away", type=float, default=22, help="seconds without an API server (default 22; make outages: 180)"
    )
    group.addoption(
        "--applies",
        type=int,
        default=20,
        help="beside helm, where an update is tried at length (default 20, at most that; 0: none)",
    )
    group.addoption("--rounds", type=int, default=0, help="of chaos (default 0: none; make chaos: 500)")
    group.addoption(
        "--round", type=int, default=None, help="of random troubles or runs: only this one; of chaos: the first one"
    )
    group.addoption(
        "--agent-minutes", type=float, default=None, help="of random runs of the agent alone (default: 20 runs)"
    )
    group.addoption(
        "--rotation-minutes", type=float, default=None, help="of a new certificate a minute (default: some seconds)"
    )
    group.addoption("--every-row", action="store_true", help="each row of the agent's table of ends must be met")
    group.addoption("--seed", type=int, default=None, help="of the random trials; is printed, so that it can be given")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of a session in several processes: what one of them has to say goes to the one that has a terminal."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told[_SAID] = session.config.stash[LINES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LINES] += getattr(node, "workeroutput", {}).get(_SAID, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("measured")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A line at the end of the session, also when all tests pass."""
    return request.config.stash[LINES].append


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest, say: Callable[[str], None]) -> int:
    given = request.config.getoption("--seed")
    chosen: int = given if given is not None else random.SystemRandom().randrange(1_000_000)
    say(f"the random trials can be repeated with --seed {chosen}")
    return chosen


@pytest.fixture(scope="session")
def installation(say: Callable[[str], None]) -> Iterator[Installation]:
    """The product on the test cluster, as `helm install` puts it there."""
    from tests.e2e.installation import installed

    with installed() as here:
        yield here
        slowest_s = max((pause.until - pause.since for pause in here.timeline.pauses), default=0.0)
        say(f"nodes: looked at every 5 ms, the longest pause was {slowest_s * 1000:.0f} ms")


@pytest.fixture
def worker(installation: Installation) -> Iterator[str]:
    """The name of a node that may be frozen, cut off or drained; it has an agent and not the operator that leads."""
    from tests.e2e.worker import prepared

    cluster = installation.cluster
    if not cluster.is_ours or not cluster.workers:
        pytest.skip("needs a kind cluster of two nodes: make cluster-down, then make cluster-up WORKERS=1")
    with prepared(installation, cluster.workers[0]):
        yield cluster.workers[0]
