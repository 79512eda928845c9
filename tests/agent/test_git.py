"""What git is asked, with what around it, and what a person reads where it fails."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from terrahalt_agent.core import git
from terrahalt_agent.core.events import RunPrepared, StateKept
from terrahalt_agent.core.instructions import ExecTerraform
from terrahalt_agent.core.source import ACCESS_DENIED, INVALID, SERVER_NOT_TRUSTED, SourceError
from terrahalt_protocol.messages import ConfigFrom, GitSource, Source, Step
from tests.agent.builders import Story, summary

URL = "https://git.example.com/network.git"
COMMIT = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def a_source(url: str = URL, **fields: Any) -> GitSource:
    return GitSource(url=url, **fields)


def environment(url: str = URL, **terraform: str) -> dict[str, str]:
    return git.environment(terraform, a_source(url), repository="/run/git", tree="/run/module")


@pytest.mark.parametrize(
    "source",
    [
        a_source(),
        a_source("http://git.team-a.svc:8080/a"),
        a_source("https://[2001:db8::1]:8443/a@b"),
        a_source(ref="feature/a-b_c(d)+e@f", path="envs/prod"),
        a_source(ref=COMMIT, path="a..b"),
        a_source(secret="robot", authority=ConfigFrom(secret="ca"), submodules=True),
        a_source("ssh://git@git.example.com:2222/~me/a b".replace(" ", "%20"), secret="robot"),
        a_source("ssh://[2001:db8::1]/a", secret="robot"),
    ],
)
def test_what_the_api_server_lets_in_is_fetched(source: GitSource) -> None:
    git.check(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (a_source("ssh://git.example.com/a"), "add source.git.secretRef with identity and known_hosts"),
        (a_source("ssh://me:secret@git.example.com/a", secret="robot"), "url must be"),
        (a_source("ssh://-oProxyCommand=id/a", secret="robot"), "url must be"),
        (a_source("ssh://-oProxyCommand=id@git.example.com/a", secret="robot"), "url must be"),
        (a_source("ssh://git.example.com", secret="robot"), "url must be"),
        (a_source("ssh://git.example.com\nProxyCommand id/a", secret="robot"), "url must be"),
        (a_source("http://git.example.com/a", secret="robot"), "would be readable on the way"),
        (a_source("file:///etc"), "url must be"),
        (a_source("ext::sh -c id"), "url must be"),
        (a_source("--upload-pack=id"), "url must be"),
        (a_source("https://me:secret@git.example.com/a"), "url must be"),
        (a_source("https://git.example.com/a\nb"), "url must be"),
        (a_source("https://git.example.com/a?token=x"), "url must be"),
        (a_source(ref="-main"), "ref '-main' is no branch"),
        (a_source(ref="+main"), "ref"),
        (a_source(ref="main:main"), "ref"),
        (a_source(ref="a b"), "ref"),
        (a_source(ref="main..x"), "ref"),
        (a_source(path="/etc"), "source.git.path '/etc'"),
        (a_source(path="a/../.."), "source.git.path"),
    ],
)
def test_what_would_be_more_than_a_place_to_fetch_from_is_refused(source: GitSource, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        git.check(source)
    assert "secret@" not in str(caught.value)


def test_one_commit_is_fetched_and_nothing_of_it_can_be_an_option() -> None:
    init, fetch, checkout = git.commands(a_source(ref="v1"))
    assert fetch[-3:] == ["--", URL, "v1"]
    assert {"--depth=1", "--no-tags", "--no-recurse-submodules"} <= set(fetch)
    assert init[-3:] == ["init", "--quiet", "--template="]
    assert checkout[-1] == "FETCH_HEAD"
    assert git.commands(a_source())[1][-1] == "HEAD"


def test_git_gets_proxies_and_authorities_and_nothing_that_changes_how_it_works() -> None:
    env = environment(
        USER="01JRUN",
        PATH="/bin",
        HTTPS_PROXY="http://proxy:3128",
        SSL_CERT_FILE="/ca/own.pem",
        SSL_CERT_DIR="/ca/one:/ca/two",
        SSH_ASKPASS="/bin/ask",
        GIT_ASKPASS="/bin/ask",
        GIT_SSL_NO_VERIFY="1",
        GIT_CONFIG_COUNT="1",
        GIT_TRACE="1",
    )
    passed = ("USER", "PATH", "HTTPS_PROXY", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
    assert [env[name] for name in passed] == ["01JRUN", "/bin", "http://proxy:3128", "/ca/own.pem", "/ca/one"]
    denied = {"SSH_ASKPASS", "GIT_ASKPASS", "GIT_SSL_NO_VERIFY", "GIT_CONFIG_COUNT", "GIT_TRACE"}
    assert denied.isdisjoint(env)
    assert (env["GIT_CONFIG_GLOBAL"], env["GIT_CONFIG_NOSYSTEM"], env["GIT_TERMINAL_PROMPT"]) == ("/dev/null", "1", "0")


def test_an_authority_that_was_named_for_git_itself_stays() -> None:
    env = environment(SSL_CERT_FILE="/ca/own.pem", GIT_SSL_CAINFO="/ca/git.pem")
    assert env["GIT_SSL_CAINFO"] == "/ca/git.pem"


def test_the_authority_of_the_source_takes_the_place_of_those_of_the_environment() -> None:
    """git prefers these to what its configuration says of one server."""
    source = a_source(authority=ConfigFrom(config_map="ca"))
    env = {"SSL_CERT_FILE": "/ca/own.pem", "GIT_SSL_CAINFO": "/ca/git.pem", "GIT_SSL_CAPATH": "/ca"}
    found = git.environment(env, source, repository="/run/git", tree="/run/module", config="/run/home/.gitconfig")
    assert {"GIT_SSL_CAINFO", "GIT_SSL_CAPATH"}.isdisjoint(found)
    assert found["GIT_CONFIG_GLOBAL"] == "/run/home/.gitconfig"


def test_submodules_are_fetched_only_where_they_are_asked_for_and_from_where_a_server_can_be_known() -> None:
    plain, asked = (git.commands(a_source(submodules=submodules)) for submodules in (False, True))
    assert asked[:3] == plain
    assert asked[3][-2:] == ["remote.origin.url", URL]
    assert asked[4][asked[4].index("submodule") :][:2] == ["submodule", "--quiet"]
    assert {"--init", "--recursive", "--depth=1"} <= set(asked[4])
    ssh = a_source("ssh://git@git.example.com/a", secret="robot")
    for source, protocols in (
        (ssh, "ssh"),
        (msgspec.structs.replace(ssh, submodules=True), "ssh:https"),
        (a_source(submodules=True), "https"),
    ):
        found = git.environment({}, source, repository="/run/git", tree="/run/module")
        assert found["GIT_ALLOW_PROTOCOL"] == protocols


def test_who_was_asked_by_https_can_send_nowhere_else() -> None:
    assert environment()["GIT_ALLOW_PROTOCOL"] == "https"
    assert environment("http://git.example.com/a")["GIT_ALLOW_PROTOCOL"] == "http:https"


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("fatal: couldn't find remote ref nope", "must be a branch, a tag or a full commit"),
        ("fatal: remote error: upload-pack: not our ref 4b82", "must be a branch, a tag or a full commit"),
        ("error: Server does not allow request for unadvertised object 4b82", "AcceptEnv GIT_PROTOCOL"),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", "needs source.git.secretRef"),
        ("fatal: repository 'https://x/' not found", "needs source.git.secretRef"),
        ("fatal: unable to access 'https://x/': server certificate verification failed.", "SSL_CERT_FILE"),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", "HTTPS_PROXY"),
        ("fatal: unable to access 'https://x/': Failed to connect to x port 443", "network policies"),
        ("fatal: write error: No space left on device", "more room"),
        ("fatal: dumb http transport does not support shallow capabilities", "smart http"),
        ("fatal: something else", "check source.git"),
    ],
)
def test_an_error_comes_with_what_to_do_about_it(said: str, advice: str) -> None:
    text = str(git.failed(a_source(ref="main"), said))
    assert text.startswith(f"git could not fetch main of {URL}: {said}: ")
    assert advice in text


@pytest.mark.parametrize(
    ("said", "reason", "advice"),
    [
        ("fatal: Authentication failed for 'https://x/'", ACCESS_DENIED, "what is in Secret robot may read"),
        ("fatal: repository 'https://x/' not found", INVALID, "what is in Secret robot may read"),
        ("error: The requested URL returned error: 403", ACCESS_DENIED, "what is in Secret robot may read"),
        ("error: The requested URL returned error: 302", INVALID, "give source.git.url the one it leads to"),
        (
            "No ED25519 host key is known for x\nHost key verification failed.",
            SERVER_NOT_TRUSTED,
            "known_hosts of Secret",
        ),
        ("git@x: Permission denied (publickey).", ACCESS_DENIED, "public half of identity in Secret robot"),
        ("ERROR: Repository not found.", INVALID, "what is in Secret robot may read"),
        ("ssh: connect to host x port 22: Connection refused", INVALID, "network policies"),
        ("No user exists for uid 1000", INVALID, "/etc/passwd"),
        ("error: cannot run ssh: No such file or directory", INVALID, "image that has ssh"),
        ("fatal: server certificate verification failed.", SERVER_NOT_TRUSTED, "source.git.caRef"),
    ],
)
def test_an_error_with_a_secret_says_which_and_what_ssh_said_is_not_hidden(said: str, reason: str, advice: str) -> None:
    after = "\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\n"
    error = git.failed(a_source(secret="robot"), f"{said}{after}and the repository exists.\n")
    assert error.reason == reason
    assert said.splitlines()[-1] in str(error)
    assert "Please make sure" not in str(error)
    assert advice in str(error)


def test_an_error_is_the_end_of_what_git_said_and_nothing_that_a_terminal_obeys() -> None:
    said = "one\n\ntwo\nremote: \x1b[2Jthree\x9b\r\x00four\nfive\n"
    text = str(git.failed(a_source(), said))
    assert "fetch HEAD" in text
    assert ": remote:  [2Jthree; four; five: " in text
    assert "it said nothing" in str(git.failed(a_source(), "\n"))
    assert len(str(git.failed(a_source(), "x" * 10_000))) < 900


def test_a_run_tells_what_it_fetches_and_then_the_commit_to_its_end() -> None:
    story = Story(source=Source(git=a_source(ref="main")))
    assert story.last.message == f"fetching main of {URL}"
    assert story.last.source_commit == ""
    assert story.tell(RunPrepared(COMMIT)) == [ExecTerraform(Step.INIT)]
    assert (story.last.step, story.last.source_commit) == (Step.INIT, COMMIT)
    for lines in ([], [summary("plan")]):
        story.end_process(0, *lines)
    story.tell(StateKept())
    story.end(0, summary())
    assert story.last.source_commit == COMMIT
