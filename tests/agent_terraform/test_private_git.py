"""Private repositories: real servers that ask for a password, a token or a key; what is shown to whom, and where."""

from __future__ import annotations

import base64
import gzip
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from terrahalt_protocol import kept_log
from terrahalt_protocol.messages import ConfigFrom, GitSource, Outcome, OutputsTo, Report, Result, Source, Values
from tests.agent.fake_api import FakeApi, a_fake_api
from tests.agent_terraform.certificates import Authority, an_authority, server_context
from tests.agent_terraform.harness import (
    RUN_ID,
    AgentProcess,
    Operator,
    a_held_lock,
    an_agent,
    an_operator,
    api_access,
    command_lines,
    running,
)
from tests.agent_terraform.modules import local_exec
from tests.git_repository import Repository
from tests.private_git import PrivateGitServer, basic
from tests.serving import serving
from tests.sshd import SshServer, an_ssh_server, make_key

USERNAME, PASSWORD, TOKEN = "robot-of-team-a", 'pass"word\\of $(the) robot/@:', "token.of-the_robot"
OUTPUT = 'output "said" { value = "hello" }\n'


@dataclass
class Stage:
    """An agent with the Secrets that it reads, and a repository `network` in a folder that servers have."""

    api: FakeApi
    agent: AgentProcess
    operator: Operator
    folder: Path
    network: Repository

    async def start(self, url: str, *, secret: str = "git", **fields: Any) -> None:
        source = GitSource(url=url, secret=secret, **fields)
        await self.operator.start({}, source=Source(private_git=source))

    async def end(self) -> tuple[Report, Result]:
        final = await self.operator.final_report()
        assert final.result is not None
        return final, final.result

    def put(self, **values: str | bytes) -> None:
        self.api.put_secret("git", **values)

    async def fails(self, reason: str, *words: str) -> None:
        _, result = await self.end()
        assert (result.outcome, result.reason) == (Outcome.FAILED, reason), result.message
        for word in words:
            assert word in result.message
        assert self.agent.descendants() == []

    def said(self) -> str:
        """All that has left the pod."""
        return self.agent.log + self.agent.termination_message + repr(self.operator.received)

    def is_kept_in(self, *secrets: str) -> list[str]:
        """The files below the agent's own folder that hold one of them."""
        files = [path for path in self.agent.work.rglob("*") if path.is_file() and not path.is_symlink()]
        return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


@pytest.fixture
async def stage(tmp_path: Path, authority: Authority) -> AsyncIterator[Stage]:
    async with a_fake_api() as api:
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            network = Repository.make(tmp_path / "repositories/network")
            yield Stage(api, agent, operator, tmp_path / "repositories", network)


@asynccontextmanager
async def an_https_server(stage: Stage, asks_for: str, folder: Path) -> AsyncIterator[PrivateGitServer]:
    """Its authority is in the ConfigMap `ca`."""
    authority = an_authority(folder, "git")
    stage.api.put("configmaps", "ca", data={"ca.crt": authority.ca})
    with serving(PrivateGitServer(stage.folder, asks_for=asks_for, tls=server_context(authority))) as server:
        yield server


@pytest.fixture
async def secure(stage: Stage, tmp_path: Path) -> AsyncIterator[PrivateGitServer]:
    """Asks for the password."""
    stage.put(username=USERNAME, password=PASSWORD)
    async with an_https_server(stage, basic(USERNAME, PASSWORD), tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with an_ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


CA = ConfigFrom(config_map="ca")


def environments_and_command_lines(pids: list[int]) -> str:
    found = [Path(f"/proc/{pid}/{name}").read_bytes() for pid in pids for name in ("environ", "cmdline")]
    return b"".join(found).decode(errors="replace")


def modes(folder: Path) -> Mapping[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


# -- https


async def test_a_password_opens_a_repository_and_the_modules_that_it_takes_from_the_same_server(
    stage: Stage, secure: PrivateGitServer
) -> None:
    modules = Repository.make(stage.folder / "modules")
    modules.commit({"said/main.tf": OUTPUT})
    module = f'module "said" {{ source = "git::{secure.url}/modules//said" }}\n'
    commit = stage.network.commit({"main.tf": module + 'output "said" { value = module.said.said }\n'})
    with a_held_lock(stage.agent.states):
        await stage.start(f"{secure.url}/network", authority=CA)
        await stage.agent.until(lambda: [line for line in command_lines(stage.agent.descendants()) if " plan " in line])
        assert stage.is_kept_in(PASSWORD) == [], "nothing needs it once init is over"
    final, result = await stage.end()
    assert (result.outcome, final.source_commit) == (Outcome.SUCCEEDED, commit), stage.agent.log
    assert '"hello"' in (stage.agent.states / "network.tfstate").read_text()
    assert {path.split("/")[1] for path, shown in secure.asked if shown} == {"network", "modules"}
    configuration = (stage.agent.module / ".terraform/modules/said/.git/config").read_text()
    assert f"url = {secure.url}/modules" in configuration
    assert PASSWORD not in stage.said()
    assert stage.is_kept_in(PASSWORD, basic(USERNAME, PASSWORD)) == []


async def test_a_token_opens_a_repository_and_can_not_be_printed(stage: Stage, tmp_path: Path) -> None:
    commit = stage.network.commit({"main.tf": local_exec(f"echo printed {TOKEN}")})
    stage.put(bearerToken=TOKEN + "\n")
    async with an_https_server(stage, f"Bearer {TOKEN}", tmp_path) as server:
        await stage.start(f"{server.url}/network", authority=CA)
        final, result = await stage.end()
    assert (result.outcome, final.source_commit) == (Outcome.SUCCEEDED, commit), result.message
    assert "printed [redacted]" in stage.agent.log
    assert TOKEN not in stage.said()


async def test_variables_and_outputs_of_a_private_repository_are_had_and_the_secrets_of_none_are_in_the_kept_log(
    stage: Stage, tmp_path: Path
) -> None:
    variable = 'variable "given" { type = string }\n'
    output = 'output "given" { value = "got ${var.given}" }\n'
    stage.network.commit({"main.tf": variable + output + local_exec(f"echo printed {TOKEN} ${{var.given}}")})
    stage.put(bearerToken=TOKEN)
    stage.api.put_secret("variables", given="hunter2hunter2")
    async with an_https_server(stage, f"Bearer {TOKEN}", tmp_path) as server:
        source = Source(private_git=GitSource(url=f"{server.url}/network", secret="git", authority=CA))
        variables, outputs = (ConfigFrom(secret="variables"),), OutputsTo(secret="network-outputs")
        values = Values(source=source, variables_from=variables, outputs_to=outputs)
        await stage.operator.start({}, source=Source(), values=values)
        _, result = await stage.end()
    assert (result.outcome, result.log_kept) == (Outcome.SUCCEEDED, True), result.message
    published, kept = stage.api.secret("network-outputs"), stage.api.secret(kept_log.name(RUN_ID))
    assert base64.b64decode(published["data"]["given"]) == b"got hunter2hunter2"
    log = gzip.decompress(base64.b64decode(kept["data"][kept_log.KEY])).decode()
    assert "printed [redacted] [redacted]" in log
    assert not [secret for secret in (TOKEN, "hunter2") if secret in log + stage.said()]


async def test_while_it_is_fetched_what_is_secret_is_in_files_of_the_agent_and_nowhere_else(
    stage: Stage, secure: PrivateGitServer
) -> None:
    stage.network.commit({"main.tf": OUTPUT})
    await stage.start(f"{secure.url}/stalled/network", authority=CA)
    await stage.agent.until(lambda: [path for path, shown in secure.asked if shown])
    (git,) = [pid for pid in stage.agent.descendants() if pid in running("git-remote-http")][:1] or [0]
    assert git, "git has ended"
    shown = environments_and_command_lines(stage.agent.descendants())
    assert "GIT_CONFIG_GLOBAL" in shown
    assert USERNAME not in shown
    assert PASSWORD not in shown
    run = stage.agent.module.parent
    assert stage.is_kept_in(PASSWORD) == [str(run / "access/credentials")]
    assert set(modes(run / "access").values()) == {0o600}
    assert modes(run)["access"] == 0o700
    assert modes(run / "home") == {".gitconfig": 0o600}
    await stage.operator.cancel()
    _, result = await stage.end()
    assert result.outcome is Outcome.CANCELLED
    assert stage.agent.descendants() == []
    assert stage.is_kept_in(PASSWORD) == []


async def test_a_wrong_password_is_told_with_the_secret_to_look_at(stage: Stage, secure: PrivateGitServer) -> None:
    stage.network.commit({"main.tf": OUTPUT})
    stage.put(username=USERNAME, password="not the password")
    await stage.start(f"{secure.url}/network", authority=CA)
    await stage.fails("SourceAccessDenied", "Authentication failed", "check that what is in Secret git may read")
    assert "not the password" not in stage.said()
    assert stage.is_kept_in("not the password") == []


async def test_a_server_of_another_authority_is_shown_nothing(stage: Stage, tmp_path: Path) -> None:
    stage.network.commit({"main.tf": OUTPUT})
    stage.put(bearerToken=TOKEN)
    async with an_https_server(stage, f"Bearer {TOKEN}", tmp_path) as server:
        stage.api.put("configmaps", "ca", data={"ca.crt": an_authority(tmp_path, "another").ca})
        await stage.start(f"{server.url}/network", authority=CA)
        await stage.fails("SourceServerNotTrusted", "certificate", "source.git.caRef")
        assert server.asked == []


@pytest.mark.parametrize("way", ["password", "token"])
async def test_whoever_a_server_sends_us_on_to_gets_no_credentials(stage: Stage, tmp_path: Path, way: str) -> None:
    """git itself would show a header to all that follows a redirect, so with a token none is followed."""
    stage.network.commit({"main.tf": OUTPUT})
    asks_for = f"Bearer {TOKEN}" if way == "token" else basic(USERNAME, PASSWORD)
    stage.put(**({"bearerToken": TOKEN} if way == "token" else {"username": USERNAME, "password": PASSWORD}))
    async with an_https_server(stage, asks_for, tmp_path) as server:
        context = server_context(Authority("", tmp_path / "git.pem"))
        # One that asks for no password is shown a header with the second request, by a git that follows.
        asks_there = "" if way == "token" else asks_for
        with serving(PrivateGitServer(stage.folder, asks_for=asks_there, tls=context)) as other:
            await stage.start(f"{server.url}/moved/{other.url}/network", authority=CA)
            await stage.end()
            assert {shown for _, shown in other.asked} == (set() if way == "token" else {""})
            if way == "token":
                await stage.fails("SourceInvalid", "give source.git.url the one it leads to")
            else:
                await stage.fails("SourceAccessDenied", "could not read Username")


@pytest.mark.parametrize("member", ["password", "known_hosts", "object"])
async def test_what_a_secret_lacks_is_told_before_anybody_is_asked(
    stage: Stage, secure: PrivateGitServer, member: str
) -> None:
    url, words = f"{secure.url}/network", f"Secret git has no {member}"
    match member:
        case "password":
            stage.put(username=USERNAME)
        case "known_hosts":
            url = "ssh://git@git.invalid/network"
            stage.put(identity="-----BEGIN")
        case _:
            stage.api.objects.clear()
            words = "the source's secretRef: Secret git was not found in namespace team-a"
    await stage.start(url)
    await stage.fails("SourceCredentialsInvalid", words)
    assert secure.asked == []


async def test_submodules_come_with_the_same_credentials_and_without_a_repository(
    stage: Stage, secure: PrivateGitServer
) -> None:
    deep = Repository.make(stage.folder / "deep")
    deep.commit({"main.tf": OUTPUT})
    said = Repository.make(stage.folder / "said")
    add_submodule(said, deep, "deep", "../deep")
    said.commit({"main.tf": 'module "deep" { source = "./deep" }\noutput "said" { value = module.deep.said }\n'})
    add_submodule(stage.network, said, "modules/said", f"{secure.url}/said")
    stage.network.commit(
        {"main.tf": 'module "said" { source = "./modules/said" }\noutput "said" { value = module.said.said }\n'}
    )
    await stage.start(f"{secure.url}/network", authority=CA, submodules=True)
    _, result = await stage.end()
    assert result.outcome is Outcome.SUCCEEDED, stage.agent.log
    assert '"hello"' in (stage.agent.states / "network.tfstate").read_text()
    assert [path for path in stage.agent.module.rglob(".git") if ".terraform" not in path.parts] == []


async def test_a_submodule_of_another_server_is_fetched_without_them(
    stage: Stage, secure: PrivateGitServer, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    authority = an_authority(tmp_path / "other", "git")
    with serving(PrivateGitServer(stage.folder, asks_for="", tls=server_context(authority))) as other:
        add_submodule(stage.network, stage.network, "m", f"{other.url}/network")
        await stage.start(f"{secure.url}/network", authority=CA, submodules=True)
        _, result = await stage.end()
        assert result.outcome is Outcome.FAILED, "its authority is not known"
        assert other.asked == []


def add_submodule(repository: Repository, of: Repository, path: str, url: str) -> None:
    """As `git submodule add` does, with no server to ask yet."""
    commit = of.git("rev-parse", "HEAD") if of is not repository else of.commit({"main.tf": OUTPUT})
    (repository.folder / path).mkdir(parents=True)
    (repository.folder / ".gitmodules").write_text(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
    repository.git("add", ".gitmodules")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    repository.git("commit", "--quiet", "--message=x")


# -- ssh


async def test_a_key_opens_a_repository_and_the_modules_that_it_takes_from_the_same_server(
    stage: Stage, ssh: SshServer
) -> None:
    modules = Repository.make(stage.folder / "modules")
    modules.commit({"main.tf": OUTPUT})
    module = f'module "said" {{ source = "git::{ssh.url(modules.folder)}" }}\n'
    commit = stage.network.commit({"main.tf": module + 'output "said" { value = module.said.said }\n'})
    key = ssh.key("client")
    stage.put(identity=key.replace("\n", "\r\n").strip(), known_hosts=ssh.known_hosts)
    await stage.start(ssh.url(stage.network.folder))
    final, result = await stage.end()
    assert (result.outcome, final.source_commit) == (Outcome.SUCCEEDED, commit), stage.agent.log
    assert '"hello"' in (stage.agent.states / "network.tfstate").read_text()
    body = "".join(key.splitlines()[1:-1])
    assert body[:70] not in stage.said()
    assert stage.is_kept_in(key.splitlines()[1]) == []


@pytest.mark.parametrize("what", ["unknown", "changed"])
async def test_a_server_whose_key_is_not_known_gets_no_request(
    stage: Stage, ssh: SshServer, tmp_path: Path, what: str
) -> None:
    make_key(tmp_path / "other")
    host = f"[127.0.0.1]:{ssh.port}" if what == "changed" else "git.example.com"
    stage.put(identity=ssh.key("client"), known_hosts=f"{host} {(tmp_path / 'other.pub').read_text()}")
    before = ssh.log.read_text().count("Accepted publickey")
    await stage.start(ssh.url(stage.network.folder))
    await stage.fails("SourceServerNotTrusted", "Host key verification failed", "known_hosts of Secret git")
    assert ssh.log.read_text().count("Accepted publickey") == before


async def test_a_key_that_the_server_does_not_know_is_told(stage: Stage, ssh: SshServer) -> None:
    stage.put(identity=ssh.key("stranger"), known_hosts=ssh.known_hosts)
    await stage.start(ssh.url(stage.network.folder))
    await stage.fails("SourceAccessDenied", "Permission denied (publickey", "public half of identity in Secret git")


async def test_a_key_with_a_passphrase_is_refused_before_anybody_is_asked(
    stage: Stage, ssh: SshServer, tmp_path: Path
) -> None:
    make_key(tmp_path / "locked", passphrase="a passphrase")
    stage.put(identity=(tmp_path / "locked").read_text(), known_hosts=ssh.known_hosts)
    before = ssh.log.read_text()
    await stage.start(ssh.url(stage.network.folder))
    await stage.fails("SourceCredentialsInvalid", "identity has a passphrase")
    assert ssh.log.read_text() == before


async def test_a_cancel_while_ssh_hangs_ends_all_that_git_started(stage: Stage, ssh: SshServer) -> None:
    key = ssh.key("silent")
    stage.put(identity=key, known_hosts=ssh.known_hosts)
    before = ssh.log.read_text().count("Accepted publickey")
    await stage.start(ssh.url(stage.network.folder))
    await stage.agent.until(lambda: ssh.log.read_text().count("Accepted publickey") > before)
    assert set(stage.agent.descendants()) & set(running("ssh_config"))
    assert key.splitlines()[1] not in environments_and_command_lines(stage.agent.descendants())
    await stage.operator.cancel()
    _, result = await stage.end()
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    assert stage.agent.descendants() == []
    assert stage.is_kept_in(key.splitlines()[1]) == []


@pytest.mark.parametrize("of", ["the source", "a submodule"])
async def test_a_server_that_gives_out_no_commit_but_the_tips_is_told(stage: Stage, ssh: SshServer, of: str) -> None:
    """As sshd is by itself: git's newer protocol is asked for in an environment that it does not take."""
    moved_on = stage.network if of == "the source" else Repository.make(stage.folder / "modules")
    commit = moved_on.commit({"main.tf": OUTPUT})
    if moved_on is not stage.network:
        add_submodule(stage.network, moved_on, "modules", ssh.url(moved_on.folder))
    moved_on.commit({"main.tf": OUTPUT})
    stage.put(identity=ssh.key("client"), known_hosts=ssh.known_hosts)
    ref = commit if moved_on is stage.network else ""
    await stage.start(ssh.url(stage.network.folder), ref=ref, submodules=not ref)
    await stage.fails("SourceInvalid", "unadvertised object", "AcceptEnv GIT_PROTOCOL")
