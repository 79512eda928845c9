"""What git is asked to fetch a source: command lines, environment, and what its errors mean to a person.

Nothing but the commit of a public repository over http(s): no other protocol, no credentials, no prompt, no
configuration but ours, no hook, no submodule. The repository itself lies outside of the tree that is checked
out, so no `.git` is in the module. Called by `adapters.git`; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from terrahalt_agent.core.source import SourceError, check_path
from terrahalt_protocol.messages import GitSource

MAX_BYTES = 512 * 1024 * 1024
"""On the disk, repository and files together: the volume is the node's, and has no limit of its own."""
WITHIN_S = 300.0
"""From the first command to the last; `timeoutSeconds` may end it sooner."""

_SILENT_S = 60
"""A server that sends nothing for so long is given up, so that its own error is told and not only ours."""
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[^?#\\\s\x00-\x1f\x7f]*)?")
_REF_IS_BAD = re.compile(r"^[-+/]|[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|@\{")
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.logAllRefUpdates=false",  # a log would need a name for the user
    "core.fsmonitor=false",
    "core.symlinks=true",
    "core.bigFileThreshold=1m",  # larger ones are streamed, not held in memory
    "credential.helper=",
    "fetch.unpackLimit=1",  # one file, whatever comes
    "gc.auto=0",  # nothing goes on in the background
    "maintenance.auto=false",
    "http.lowSpeedLimit=1",
    f"http.lowSpeedTime={_SILENT_S}",
    "submodule.recurse=false",
)
_KEPT = frozenset({"GIT_SSL_CAINFO", "GIT_SSL_CAPATH"})
_AUTHORITIES = {"GIT_SSL_CAINFO": "SSL_CERT_FILE", "GIT_SSL_CAPATH": "SSL_CERT_DIR"}
"""The names by which terraform finds private CAs, which git's library does not know."""
_MAX_ERROR_LINES = 3
_MAX_ERROR_CHARS = 600
_NOT_READABLE = re.compile(r"[^ -~\u00a0-\uffff]+")
_ADVICE = (
    (
        r"couldn't find remote ref|not our ref|unadvertised object|not a tree|non-commit",
        "source.git.ref must be a branch, a tag or a full commit of the repository",
    ),
    (
        r"could not read Username|Authentication failed|[Rr]epository .*not found|error: 40[134]|denied",
        "check source.git.url; only repositories that can be read without credentials can be fetched",
    ),
    (
        r"certificate",
        "give the agents the server's CA: SSL_CERT_FILE in their environment names the file",
    ),
    (
        r"[Cc]ould(n't| not) (resolve|connect)|Failed to connect|[Tt]imed out|Operation too slow|unreachable|reset",
        "check source.git.url, and that the agent's pod can reach it (DNS, HTTPS_PROXY, network policies)",
    ),
    (r"No space left", "give the agent's volume /work more room"),
    (r"dumb http", "use a server that speaks git's smart http protocol"),
)


def check(source: GitSource) -> None:
    """Raises SourceError: the API server has refused the same, but a command line is made of it here."""
    if not _URL.fullmatch(source.url):
        raise SourceError("source.git.url must be an http:// or https:// address without a user name: correct it")
    if _REF_IS_BAD.search(source.ref):
        raise SourceError(f"source.git.ref {source.ref!r} is no branch, tag or full commit: correct it")
    if source.path:
        check_path(source.path, "source.git.path")


def commands(source: GitSource) -> Sequence[Sequence[str]]:
    """One after another; after the last one the commit is in the repository's file HEAD."""
    git = ["git", *(word for setting in _CONFIG for word in ("-c", setting))]
    only_this = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"]
    return (
        [*git, "init", "--quiet", "--template="],
        [*git, "fetch", *only_this, "--", source.url, source.ref or "HEAD"],
        [*git, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"],
    )


def environment(terraform: Mapping[str, str], source: GitSource, *, repository: str, tree: str) -> dict[str, str]:
    """What terraform gets, so that proxies and CAs are the same, without what would change how git works."""
    env = {name: value for name, value in terraform.items() if not _is_denied(name)}
    for name, known_as in _AUTHORITIES.items():
        if name not in env and known_as in env:
            env[name] = env[known_as].partition(":")[0] if known_as == "SSL_CERT_DIR" else env[known_as]
    return env | {
        "GIT_DIR": repository,
        "GIT_WORK_TREE": tree,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        # A server that is asked by https can't send us on to anything else.
        "GIT_ALLOW_PROTOCOL": "https" if source.url.startswith("https:") else "http:https",
        "LC_ALL": "C.UTF-8",  # its errors are read below
    }


def failed(source: GitSource, said: str) -> str:
    """The last lines of what git said, and what to do about it."""
    lines = [_NOT_READABLE.sub(" ", line).strip() for line in said.splitlines()]
    text = "; ".join([line for line in lines if line][-_MAX_ERROR_LINES:])[-_MAX_ERROR_CHARS:]
    advice = next((advice for words, advice in _ADVICE if re.search(words, text)), "check source.git")
    return f"git could not fetch {source.ref or 'HEAD'} of {source.url}: {text or 'it said nothing'}: {advice}"


def too_late(source: GitSource, within_s: float) -> str:
    return (
        f"git could not fetch {source.ref or 'HEAD'} of {source.url} within {within_s:.0f} s: "
        "check that the server answers, and use a smaller repository where it is too large"
    )


def too_large(source: GitSource, max_bytes: int) -> str:
    return (
        f"{source.ref or 'HEAD'} of {source.url} takes more than {max_bytes} bytes: "
        "keep terraform's files in a smaller repository"
    )


def _is_denied(name: str) -> bool:
    return (name.startswith("GIT_") and name not in _KEPT) or name == "SSH_ASKPASS"
