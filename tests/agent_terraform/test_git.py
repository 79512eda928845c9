"""Sources from git: a real git, a real server, and what must not come with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.adapters.backend import LocalBackend
from terrahalt_agent.adapters.cluster_api import ApiServer, ClusterApi
from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.fetched_tree import Fetched
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.adapters.kept_plans import PlanArchive
from terrahalt_agent.adapters.workdir import Environment, Workdir
from terrahalt_agent.core.source import BACKEND_OVERRIDE, SourceError
from terrahalt_protocol.messages import Approval, GitSource, Outcome, Rung, Source, Step
from tests.agent_terraform.certificates import an_authority, server_context
from tests.agent_terraform.harness import (
    AgentProcess,
    Operator,
    a_start,
    descendants,
    running,
    somebody_who_never_answers,
    until,
)
from tests.git_repository import Repository
from tests.git_server import GitServer
from tests.serving import serving

OUTPUT = 'output "said" { value = "hello" }\n'
Fetch = Callable[..., Awaitable[Fetched]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "repositories").mkdir()
    with serving(GitServer(tmp_path / "repositories", host="127.0.0.1")) as started:
        yield started


@pytest.fixture
def network(server: GitServer) -> Repository:
    return Repository.make(server.folder / "network")


@pytest.fixture
def fetch(server: GitServer, tmp_path: Path) -> Fetch:
    """What it leaves running where it fails is the sweep's, so only what ends by itself is tried with this."""

    async def fetch(
        url: str = "", env: dict[str, str] | None = None, bounds: dict[str, Any] | None = None, **fields: Any
    ) -> Fetched:
        run = tmp_path / "run"
        for folder in (run, run / "module", run / "logs"):
            folder.mkdir()
        source = GitSource(url=url or f"{server.url}/network", **fields)
        base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        git = Git(Descendants(), **(bounds or {}))
        return await git.fetch(source, into=run / "module", repository=run / "git", env=base | (env or {}))

    return fetch


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what is fetched


async def test_without_a_ref_the_default_branch_comes_as_files_and_nothing_else(
    fetch: Fetch, network: Repository, tmp_path: Path
) -> None:
    network.commit({"main.tf": "old"})
    commit = network.commit({"main.tf": "new", "modules/a/main.tf": "a"})
    fetched = await fetch()
    assert fetched.commit == commit
    assert fetched.module == tmp_path / "run/module"
    assert texts(fetched.module) == {"main.tf": "new", "modules/a/main.tf": "a"}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["logs", "module"], "the repository is still there"


@pytest.mark.parametrize("ref", ["feature/x", "v1", "refs/tags/v1", "a commit"])
async def test_a_branch_a_tag_and_a_commit_that_no_name_points_at_are_refs(
    fetch: Fetch, network: Repository, ref: str
) -> None:
    network.git("checkout", "--quiet", "-b", "feature/x")
    commit = network.commit({"main.tf": "wanted"})
    if ref != "feature/x":
        network.git("tag", "--annotate", "--message=x", "v1")
        network.commit({"main.tf": "newer"})
    fetched = await fetch(ref=commit if ref == "a commit" else ref)
    assert fetched.commit == commit
    assert texts(fetched.module) == {"main.tf": "wanted"}


async def test_an_approved_plan_is_applied_with_the_commit_and_the_providers_that_it_was_made_with(
    network: Repository, server: GitServer, tmp_path: Path
) -> None:
    """Wherever its branch is by now."""
    commit = network.commit({"main.tf": "planned", ".terraform.lock.hcl": "of the source"})
    network.commit({"main.tf": "newer"})
    api = ClusterApi(ApiServer("", tmp_path, tmp_path), "team-a")
    source = Source(git=GitSource(url=f"{server.url}/network"))
    start = a_start({}, source=Source(), approval=Approval(source=source))
    archive = PlanArchive(b"a plan", b"of the plan", f"commit:{commit}", b"")
    workdir = Workdir(tmp_path, api, Git(Descendants()), os.environ)
    prepared = await workdir.prepare(start, Environment({}, ()), LocalBackend(tmp_path), archive)
    assert texts(Path(prepared.paths.module)) | {BACKEND_OVERRIDE: ""} == {
        "main.tf": "planned",
        ".terraform.lock.hcl": "of the plan",
        BACKEND_OVERRIDE: "",
    }
    assert (tmp_path / "task-uid/plan.tfplan").read_text() == "a plan"
    assert "-lockfile=readonly" in prepared.init_args
    assert (prepared.commit, prepared.source) == (commit, f"commit:{commit}")


async def test_a_path_is_where_terraform_runs_with_the_rest_of_the_repository_around_it(
    fetch: Fetch, network: Repository, tmp_path: Path
) -> None:
    network.commit({"envs/prod/main.tf": "prod", "modules/net/main.tf": "net"}, links={"live": "envs/prod"})
    fetched = await fetch(path="live")
    assert fetched.module == tmp_path / "run/module/envs/prod"
    assert (fetched.module / "../../modules/net/main.tf").read_text() == "net"


async def test_a_private_authority_is_found_by_the_name_that_terraform_knows(
    fetch: Fetch, network: Repository, server: GitServer, tmp_path: Path
) -> None:
    commit = network.commit({"main.tf": ""})
    authority = an_authority(tmp_path, "git")
    (tmp_path / "ca.pem").write_text(authority.ca)
    with serving(GitServer(server.folder, host="127.0.0.1", tls=server_context(authority))) as secure:
        fetched = await fetch(f"{secure.url}/network", env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")})
    assert fetched.commit == commit


async def test_an_unknown_authority_is_refused_with_the_way_to_name_it(
    fetch: Fetch, server: GitServer, tmp_path: Path
) -> None:
    tls = server_context(an_authority(tmp_path, "git"))
    with (
        serving(GitServer(server.folder, host="127.0.0.1", tls=tls)) as secure,
        pytest.raises(SourceError, match=r"certificate.*SSL_CERT_FILE"),
    ):
        await fetch(f"{secure.url}/network", env={"GIT_SSL_NO_VERIFY": "1"})


async def test_the_proxy_of_the_environment_is_used(fetch: Fetch, network: Repository, server: GitServer) -> None:
    commit = network.commit({"main.tf": ""})
    fetched = await fetch("http://git.invalid/network", env={"http_proxy": server.url})
    assert fetched.commit == commit


# -- what is not there


async def test_a_ref_that_is_not_there_is_told_in_the_words_of_git(fetch: Fetch, network: Repository) -> None:
    network.commit({"main.tf": ""})
    with pytest.raises(SourceError, match=r"fetch nope of .*couldn't find remote ref nope: source.git.ref must be"):
        await fetch(ref="nope")


async def test_a_path_that_is_not_there_is_told_with_the_commit(fetch: Fetch, network: Repository) -> None:
    commit = network.commit({"main.tf": ""})
    with pytest.raises(SourceError, match=f"'main.tf' is no directory of commit {commit}"):
        await fetch(path="main.tf")


async def test_a_server_that_is_not_there_is_told(fetch: Fetch) -> None:
    with pytest.raises(SourceError, match=r"check source\.git\.url, and that the agent's pod can reach it"):
        await fetch("http://127.0.0.1:1/network")


async def test_a_repository_that_wants_a_password_asks_nobody(fetch: Fetch, server: GitServer, tmp_path: Path) -> None:
    asked = a_trap(tmp_path)
    with pytest.raises(SourceError, match=r"needs source\.git\.secretRef"):
        await fetch(f"{server.url}/private/a", env={"SSH_ASKPASS": str(asked), "GIT_ASKPASS": str(asked)})
    assert not is_sprung(tmp_path)


async def test_without_git_it_says_that_the_image_has_none(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"git could not be started: .*: use an agent image that has git"):
        await fetch(env={"PATH": str(tmp_path)})


# -- what must not come with it


def a_trap(folder: Path) -> Path:
    trap = folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {folder}/sprung\ncat\n")
    trap.chmod(0o755)
    return trap


def is_sprung(folder: Path) -> bool:
    return (folder / "sprung").exists()


@pytest.mark.parametrize("target", ["/etc", "../../../..", "inside/../../../x", "another"])
async def test_a_link_that_leads_out_of_the_repository_is_refused(
    fetch: Fetch, network: Repository, target: str
) -> None:
    network.commit({"main.tf": "", "inside/main.tf": ""}, links={"another": "/proc", "deep": target})
    with pytest.raises(SourceError, match="it is a link that leads out of the source"):
        await fetch()


async def test_a_path_can_not_lead_out_by_a_link(fetch: Fetch, network: Repository) -> None:
    network.commit({"main.tf": ""}, links={"out": ".."})
    with pytest.raises(SourceError, match="'out': it is a link that leads out"):
        await fetch(path="out")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".terraform/modules/modules.json", "terraform's or the agent's own"),
        ("errored.tfstate", "terraform's or the agent's own"),
        ("terrahalt_backend_override.tf.json", "terraform's or the agent's own"),
        ("zz_override.tf", "it overrides the backend"),
    ],
)
async def test_what_no_source_may_hold_is_refused_where_terraform_runs_and_nowhere_else(
    fetch: Fetch, network: Repository, tmp_path: Path, name: str, words: str
) -> None:
    network.commit({f"envs/prod/{name}": 'terraform { backend "s3" {} }', "main.tf": ""})
    with pytest.raises(SourceError, match=words):
        await fetch(path="envs/prod")
    (tmp_path / "run").rename(tmp_path / "before")
    await fetch()


async def test_hooks_filters_and_templates_of_an_environment_are_not_executed(
    fetch: Fetch, network: Repository, tmp_path: Path
) -> None:
    trap = a_trap(tmp_path)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/post-checkout").symlink_to(trap)
    text = f'[core]\nhooksPath = {tmp_path}/hooks\n[filter "t"]\nsmudge = {trap}\nprocess = {trap}\n'
    (tmp_path / ".gitconfig").write_text(text)
    network.commit({"main.tf": "text", ".gitattributes": "*.tf filter=t"})
    (tmp_path / "template").mkdir()
    (tmp_path / "hooks").rename(tmp_path / "template/hooks")
    (tmp_path / "hooks").symlink_to("template/hooks")
    fetched = await fetch(
        env={
            "GIT_CONFIG_GLOBAL": str(tmp_path / ".gitconfig"),
            "GIT_CONFIG_SYSTEM": str(tmp_path / ".gitconfig"),
            "GIT_TEMPLATE_DIR": str(tmp_path / "template"),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "filter.t.smudge",
            "GIT_CONFIG_VALUE_0": str(trap),
        }
    )
    assert (fetched.module / "main.tf").read_text() == "text"
    assert not is_sprung(tmp_path)


async def test_a_submodule_is_an_empty_directory_and_its_address_is_not_asked(
    fetch: Fetch, network: Repository, tmp_path: Path
) -> None:
    commit = network.commit({"main.tf": ""})
    network.commit({".gitmodules": f'[submodule "m"]\npath = m\nurl = ext::{a_trap(tmp_path)}\nupdate = !{tmp_path}\n'})
    network.git("update-index", "--add", "--cacheinfo", f"160000,{commit},m")
    network.git("commit", "--quiet", "--message=x")
    fetched = await fetch()
    assert list((fetched.module / "m").iterdir()) == []
    assert not is_sprung(tmp_path)


async def test_a_server_can_not_send_from_https_to_http(
    fetch: Fetch, network: Repository, server: GitServer, tmp_path: Path
) -> None:
    network.commit({"main.tf": ""})
    authority = an_authority(tmp_path, "git")
    (tmp_path / "ca.pem").write_text(authority.ca)
    moved = f"moved/{server.url}/network"
    with (
        serving(GitServer(server.folder, host="127.0.0.1", tls=server_context(authority))) as secure,
        pytest.raises(SourceError, match=r"rotocol"),
    ):
        await fetch(f"{secure.url}/{moved}", env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")})
    (tmp_path / "run").rename(tmp_path / "before")
    await fetch(f"{server.url}/{moved}")


# -- bounds


@pytest.mark.parametrize(
    "files", [{"large": b"\0" * 3_000_000}, {f"{n}.txt": "" for n in range(700)}], ids=["bytes", "empty files"]
)
async def test_what_grows_over_its_bound_once_it_is_unpacked_is_refused(
    fetch: Fetch, network: Repository, files: dict[str, str | bytes]
) -> None:
    network.commit(files)
    with pytest.raises(SourceError, match="takes more than 2500000 bytes: keep"):
        await fetch(bounds={"max_bytes": 2_500_000})


async def test_a_server_that_never_answers_is_given_up_after_the_bound(fetch: Fetch) -> None:
    async with somebody_who_never_answers() as (port, asked):
        with pytest.raises(SourceError, match="within 5 s: check that the server answers"):
            await fetch(f"http://127.0.0.1:{port}/a", bounds={"within_s": 5.0})
        assert asked.is_set()
        left = running(f"127.0.0.1:{port}/a")
        assert left, "it says that the sweep ends what it leaves; there is nothing to end"
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not set(left) & set(descendants(os.getpid(), with_zombies=True)))


# -- the agent


def source_of(url: str, **fields: Any) -> Source:
    return Source(git=GitSource(url=url, **fields))


async def test_a_run_from_git_ends_with_its_outputs_and_tells_its_commit(
    agent: AgentProcess, operator: Operator, network: Repository, server: GitServer
) -> None:
    commit = network.commit({"envs/prod/main.tf": OUTPUT})
    await operator.start({}, source=source_of(f"{server.url}/network", ref="main", path="envs/prod"))
    final = await operator.final_report()
    assert final.result is not None
    assert (final.result.outcome, final.source_commit) == (Outcome.SUCCEEDED, commit)
    assert {report.source_commit for report in operator.reports if report.step is Step.PREPARE} <= {""}
    assert '"hello"' in (agent.states / "network.tfstate").read_text()


async def test_what_git_said_is_the_result_of_the_run(
    operator: Operator, network: Repository, server: GitServer
) -> None:
    network.commit({"main.tf": OUTPUT})
    await operator.start({}, source=source_of(f"{server.url}/network", ref="nope"))
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "SourceInvalid")
    assert "couldn't find remote ref nope" in result.message
    assert result.exit_code is None


@pytest.mark.parametrize("child", ["git-remote-http", "index-pack"])
async def test_a_cancel_while_the_fetch_hangs_ends_all_that_git_started(
    agent: AgentProcess, operator: Operator, network: Repository, server: GitServer, child: str
) -> None:
    network.commit({"main.tf": OUTPUT, "large": os.urandom(1_000_000)})
    async with somebody_who_never_answers() as (port, _):
        silent = f"http://127.0.0.1:{port}/network"
        url = silent if child == "git-remote-http" else f"{server.url}/stalled/network"
        await operator.start({}, source=source_of(url))
        await agent.until(lambda: set(agent.descendants()) & set(running(child)))
        await operator.cancel()
        result = await operator.result(within_s=15.0)
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    assert agent.descendants() == []
    cancel = (await operator.final_report()).cancel
    assert cancel is not None
    assert cancel.rung is Rung.NOT_STARTED


async def test_the_tasks_own_timeout_ends_a_fetch_that_hangs(agent: AgentProcess, operator: Operator) -> None:
    async with somebody_who_never_answers() as (port, asked):
        await operator.start({}, source=source_of(f"http://127.0.0.1:{port}/a"), timeout_s=8)
        result = await operator.result(within_s=30.0)
        assert asked.is_set()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "TimedOut")
    assert agent.descendants() == []
