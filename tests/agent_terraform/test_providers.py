"""Where a real engine finds its providers: mirrors, and a cache that ten agents fill and use at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import zipfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from terrahalt_protocol.messages import Action, Outcome, Result
from terrahalt_protocol.providers import VARIABLE, FilesystemMirror, NetworkMirror, Providers, encode
from tests import engine
from tests.agent_terraform.certificates import Authority, server_context
from tests.agent_terraform.harness import (
    RUN_ID,
    AgentProcess,
    Operator,
    an_agent,
    an_operator,
    program,
)
from tests.agent_terraform.test_several_runs import ANOTHER, NEXT_ID, end_of, fresh
from tests.cluster.architecture import ours
from tests.cluster.images import REGISTRIES, time_provider

PLATFORM = f"linux_{ours().debian}"
VERSION = "0.13.0"
PROVIDER = f"{REGISTRIES[engine.NAME]}/hashicorp/time"
WHERE = f"{PROVIDER}/{VERSION}/{PLATFORM}"
CODE = """
terraform {
  required_providers {
    time = { source = "hashicorp/time" }
  }
}
resource "time_static" "a" {}
"""
AGENTS = 10
_homes = itertools.count()


@pytest.fixture(scope="session")
def package(providers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The provider as a registry has it."""
    file = tmp_path_factory.mktemp("package") / f"terraform-provider-time_{VERSION}_{PLATFORM}.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            ("LICENSE", b"MPL"),
            (f"terraform-provider-time_v{VERSION}", (time_provider().path / "terraform-provider-time").read_bytes()),
        ):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, content)
    return file


@pytest.fixture
def packed(package: Path, tmp_path: Path) -> Path:
    """A mirror of packed packages: an engine unpacks one as if it had fetched it."""
    home = tmp_path / "packed" / PROVIDER
    home.mkdir(parents=True)
    (home / package.name).symlink_to(package)
    return tmp_path / "packed"


@asynccontextmanager
async def agents(
    folder: Path, authority: Authority, providers: Providers, count: int = 1, **env: str
) -> AsyncIterator[list[tuple[AgentProcess, Operator]]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            home = folder / f"agent-{next(_homes)}"
            home.mkdir()
            agent = await stack.enter_async_context(an_agent(home, authority, **{VARIABLE: encode(providers)}, **env))
            found.append((agent, await stack.enter_async_context(an_operator(agent))))
        yield found


async def planned(operator: Operator, files: dict[str, str] | None = None) -> Result:
    await operator.start({"main.tf": CODE, **(files or {})}, action=Action.PLAN)
    result = await operator.result()
    assert result.outcome is Outcome.SUCCEEDED, result
    return result


def used(agent: AgentProcess, run_id: str = RUN_ID) -> Path:
    """The package that the run's engine has executed."""
    return (agent.work / run_id / "module" / ".terraform" / "providers" / WHERE).resolve()


def a_cache(folder: Path) -> Path:
    (folder / "cache").mkdir(exist_ok=True)
    return folder / "cache"


def from_mirror(packed: Path, cache: Path | None = None) -> Providers:
    return Providers(filesystem_mirror=FilesystemMirror(path=str(packed)), cache=str(cache or ""))


async def test_ten_agents_fill_one_cache_at_once_and_the_next_run_gets_its_provider_from_there(
    tmp_path: Path, authority: Authority, packed: Path
) -> None:
    cache = a_cache(tmp_path)
    async with agents(tmp_path, authority, from_mirror(packed, cache), AGENTS) as started:
        await asyncio.gather(*(planned(operator) for _, operator in started))
        assert {used(agent) for agent, _ in started}.isdisjoint({cache / WHERE / "package"})
        lock_files = {(agent.module / ".terraform.lock.hcl").read_text() for agent, _ in started}
        logs = [agent.log for agent, _ in started]
    assert not [log for log in logs if "could not be" in log]
    assert len([log for log in logs if f"provider {PROVIDER}/{VERSION} is in the pool's cache now" in log]) == 1
    assert [entry.name for entry in (cache / ".incoming").iterdir()] == []
    (lock_file,) = lock_files
    # What the agent has computed of the copy is what the engine has of its own package.
    assert (cache / WHERE / "h1").read_text() in lock_file
    packed.joinpath(PROVIDER).rename(tmp_path / "unused")
    packed.joinpath(PROVIDER).mkdir()
    (packed / PROVIDER / f"terraform-provider-time_{VERSION}_{PLATFORM}.zip").write_bytes(b"nobody may unpack this")
    async with agents(tmp_path, authority, from_mirror(packed, cache)) as ((agent, operator),):
        await planned(operator)
        assert used(agent) == cache / WHERE / "package"


async def test_an_agent_that_takes_another_run_still_has_the_cache_and_its_provider_from_there(
    tmp_path: Path, authority: Authority, packed: Path
) -> None:
    """Also where it lies in what is emptied in between."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cache = a_cache(scratch)
    started = agents(
        tmp_path, authority, from_mirror(packed, cache), TERRAHALT_MAX_TASKS="2", TERRAHALT_SCRATCH=str(scratch)
    )
    async with started as ((agent, operator),):
        await planned(operator)
        assert not used(agent).is_relative_to(cache)
        await operator.ack()
        await fresh(operator)
        await operator.start({"main.tf": CODE}, action=Action.PLAN, run_id=NEXT_ID, **ANOTHER)
        end = await end_of(operator, NEXT_ID)
        assert end.result is not None
        assert end.result.outcome is Outcome.SUCCEEDED, end.result.message
        assert used(agent, NEXT_ID) == cache / WHERE / "package"


async def test_a_lock_file_that_knows_another_package_is_obeyed_as_if_there_were_no_cache(
    tmp_path: Path, authority: Authority, packed: Path
) -> None:
    """terraform would fail on a package of the cache that the lock file has other checksums of."""
    cache = a_cache(tmp_path)
    async with agents(tmp_path, authority, from_mirror(packed, cache)) as ((agent, operator),):
        await planned(operator)
        lock_file = (agent.module / ".terraform.lock.hcl").read_text()
    entry = cache / WHERE
    (entry / "h1").write_text("h1:of-another-package=")
    async with agents(tmp_path, authority, from_mirror(packed, cache)) as ((agent, operator),):
        await planned(operator, {".terraform.lock.hcl": lock_file})
        assert used(agent).is_relative_to(agent.work / RUN_ID / "plugins")


async def test_a_cache_whose_content_was_changed_is_not_run_where_the_lock_file_knows_the_provider(
    tmp_path: Path, authority: Authority, packed: Path
) -> None:
    cache = a_cache(tmp_path)
    async with agents(tmp_path, authority, from_mirror(packed, cache)) as ((agent, operator),):
        await planned(operator)
        lock_file = (agent.module / ".terraform.lock.hcl").read_text()
    changed = cache / WHERE / "package" / "LICENSE"
    changed.chmod(0o644)
    changed.write_text("of somebody else")
    async with agents(tmp_path, authority, from_mirror(packed, cache)) as ((agent, operator),):
        await operator.start({"main.tf": CODE, ".terraform.lock.hcl": lock_file}, action=Action.PLAN)
        result = await operator.result()
        assert (result.outcome, result.reason) == (Outcome.FAILED, "InitFailed")
        assert not (agent.work / RUN_ID / "plan.tfplan").exists()
    assert changed.read_text() == "of somebody else", "an engine has written through a link"


async def test_a_network_mirror_is_the_only_server_that_is_asked(
    tmp_path: Path, authority: Authority, package: Path
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        base = f"/providers/{PROVIDER}/"
        answers = {
            f"{base}index.json": {"versions": {VERSION: {}}},
            f"{base}{VERSION}.json": {"archives": {PLATFORM: {"url": package.name}}},
        }
        if request.path == base + package.name:
            return web.FileResponse(package)
        return web.json_response(answers.get(request.path), status=200 if request.path in answers else 404)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(authority)).start()
    try:
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/providers/"
        ca = tmp_path / "ca.pem"
        ca.write_text(authority.ca)
        mirrored = Providers(network_mirror=NetworkMirror(url=url))
        async with agents(tmp_path, authority, mirrored, SSL_CERT_FILE=str(ca)) as ((agent, operator),):
            await planned(operator)
            config = (agent.work / RUN_ID / "cli.tfrc").read_text()
    finally:
        await runner.cleanup()
    assert asked[-1].endswith(package.name)
    assert "direct" not in config


async def test_the_engine_is_looked_at_before_a_task_comes_and_not_again_in_its_run(
    tmp_path: Path, authority: Authority, packed: Path
) -> None:
    asked, noting = tmp_path / "asked", tmp_path / "bin" / engine.NAME
    noting.parent.mkdir()
    noting.write_text(f'#!/bin/sh\necho "$1" >> {asked}\nexec {program()} "$@"\n')
    noting.chmod(0o755)
    mirrored = from_mirror(packed)
    path = f"{noting.parent}:{os.environ['PATH']}"
    async with agents(tmp_path, authority, mirrored, TERRAHALT_ENGINE_PATH=engine.NAME, PATH=path) as (
        (agent, operator),
    ):
        before = asked.read_text().split()
        await planned(operator)
    assert before == ["version"]
    assert asked.read_text().split() == ["version", "init", "plan"]
    assert re.search(rf"{engine.NAME} \d+\.\d+\.\d+$", agent.log, re.MULTILINE)


async def test_an_agent_that_could_run_no_task_does_not_become_ready(tmp_path: Path, authority: Authority) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such instruction >&2\nexit 3\n")
    broken.chmod(0o755)
    (tmp_path / "empty" / "lost+found").mkdir(parents=True)  # as a new volume is
    for number, (env, words) in enumerate(
        (
            ({"TERRAHALT_ENGINE_PATH": str(broken)}, "can't work in this image: exit code 3: no such instruction"),
            ({VARIABLE: encode(from_mirror(tmp_path / "empty"))}, "providers is empty"),
            ({VARIABLE: encode(from_mirror(tmp_path / "nowhere"))}, "can't be read: .*No such file"),
            ({VARIABLE: encode(Providers(cache="/proc/nowhere"))}, "can't be written: .*No such file"),
            ({VARIABLE: json.dumps({"cache": 1})}, f"{VARIABLE} can't be read"),
        )
    ):
        home = tmp_path / str(number)
        home.mkdir()
        with pytest.raises(AssertionError, match=words):
            async with an_agent(home, authority, **env):
                pass
