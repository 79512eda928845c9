"""What git is asked to fetch a source: command lines, environment, and what its errors mean to a person.

Nothing but one commit, over http(s) or ssh, and those of its submodules where they are asked for: no other protocol,
no prompt, no configuration but ours, no hook. What a server is shown is in a file (`git_access`). The repository
itself lies outside of the tree that is checked out, so no `.git` is in the module. Called by `adapters.git`; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from terrahalt_agent.core.source import ACCESS_DENIED, INVALID, SERVER_NOT_TRUSTED, SourceError, check_path
from terrahalt_protocol.messages import GitSource

MAX_BYTES = 512 * 1024 * 1024
"""On the disk, repository and files together: the volume is the node's, and has no limit of its own."""
WITHIN_S = 300.0
"""From the first command to the last; `timeoutSeconds` may end it sooner."""

_SILENT_S = 60
"""A server that sends nothing for so long is given up, so that its own error is told and not only ours."""
_IN_PATH = r"[^?#\\\s\x00-\x1f\x7f]"
_URL = re.compile(rf"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/{_IN_PATH}*)?")
_SSH_URL = re.compile(
    rf"ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?/{_IN_PATH}+"
)
_REF_IS_BAD = re.compile(r"^[-+/]|[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|@\{")
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.logAllRefUpdates=false",  # a log would need a name for the user
    "core.fsmonitor=false",
    "core.symlinks=true",
    "core.bigFileThreshold=1m",  # larger ones are streamed, not held in memory
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
_SAYS_NOTHING = re.compile(
    "^(fatal: Could not read from remote repository|Please make sure you have the correct access|and the repository ex)"
)
"""What git adds to whatever ssh has said."""
_PUBLIC = "check source.git.url; a repository that not everybody may read needs source.git.secretRef"
_REACH = "check source.git.url, and that the agent's pod can reach it (DNS, HTTPS_PROXY, network policies)"
_ADVICE = (
    (
        r"unadvertised object",
        INVALID,
        "its server gives out no commit but those that a branch or a tag points to: allow it there (sshd: AcceptEnv "
        "GIT_PROTOCOL, or git: uploadpack.allowAnySHA1InWant), or let a tag point to this one",
    ),
    (
        r"couldn't find remote ref|not our ref|not a tree|non-commit",
        INVALID,
        "source.git.ref must be a branch, a tag or a full commit of the repository",
    ),
    (
        r"[Hh]ost key",
        SERVER_NOT_TRUSTED,
        "add the server's key to known_hosts of Secret {secret} (ssh-keyscan prints it), once you have compared it "
        "with what the server's owner says",
    ),
    (
        r"Permission denied \(|Too many authentication failures|Load key",
        ACCESS_DENIED,
        "give the public half of identity in Secret {secret} the right to read this repository",
    ),
    (r"No user exists for uid", INVALID, "ssh needs an agent image whose user has a line in /etc/passwd"),
    (r"cannot run ssh|ssh: not found", INVALID, "use an agent image that has ssh"),
    (r"could not read Username|Authentication failed|error: 40[13]|denied", ACCESS_DENIED, "{access}"),
    (r"[Rr]epository .*not found|error: 404|does not appear to be a git repository", INVALID, "{access}"),
    (
        r"certificate",
        SERVER_NOT_TRUSTED,
        "give the agents the server's CA: in what source.git.caRef names, or SSL_CERT_FILE in their environment names "
        "the file",
    ),
    (
        r"error: 30[12378]",
        INVALID,
        "with a bearerToken no other address is gone to: give source.git.url the one it leads to",
    ),
    (
        r"[Cc]ould(n't| not) (resolve|connect)|Failed to connect|[Tt]imed out|Operation too slow|unreachable|reset"
        r"|Connection (refused|closed)",
        INVALID,
        _REACH,
    ),
    (r"No space left", INVALID, "give the agent's volume /work more room"),
    (r"dumb http", INVALID, "use a server that speaks git's smart http protocol"),
)


def check(source: GitSource) -> None:
    """Raises SourceError: the API server has refused the same, but a command line is made of it here."""
    if not (_SSH_URL if source.url.startswith("ssh:") else _URL).fullmatch(source.url):
        text = "source.git.url must be an http://, https:// or ssh:// address without a password"
        raise SourceError(f"{text}, and a user name for ssh alone: correct it")
    if source.url.startswith("ssh:") and not source.secret:
        raise SourceError("source.git.url is for ssh: add source.git.secretRef with identity and known_hosts")
    if source.secret and source.url.startswith("http:"):
        raise SourceError("source.git.secretRef would be readable on the way: use an https:// or ssh:// address")
    if _REF_IS_BAD.search(source.ref):
        raise SourceError(f"source.git.ref {source.ref!r} is no branch, tag or full commit: correct it")
    if source.path:
        check_path(source.path, "source.git.path")


def commands(source: GitSource) -> Sequence[Sequence[str]]:
    """One after another; after the last one the commit is in the repository's file HEAD."""
    git = ["git", *(word for setting in _CONFIG for word in ("-c", setting))]
    only_this = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"]
    submodules = (
        [*git, "config", "remote.origin.url", source.url],  # what their own addresses may be relative to
        [*git, "submodule", "--quiet", "update", "--init", "--recursive", "--force", "--depth=1"],
    )
    return (
        [*git, "init", "--quiet", "--template="],
        [*git, "fetch", *only_this, "--", source.url, source.ref or "HEAD"],
        [*git, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"],
        *(submodules if source.submodules else ()),
    )


def environment(
    terraform: Mapping[str, str], source: GitSource, *, repository: str, tree: str, config: str = ""
) -> dict[str, str]:
    """What terraform gets, so that proxies and CAs are the same, without what would change how git works.

    `config`: the file that says what the server is shown; empty: nothing is."""
    env = {name: value for name, value in terraform.items() if not _is_denied(name)}
    if source.authority is not None:  # these would win over it
        env = {name: value for name, value in env.items() if name not in _KEPT}
    for name, known_as in _AUTHORITIES.items():
        if name not in env and known_as in env and source.authority is None:
            env[name] = env[known_as].partition(":")[0] if known_as == "SSL_CERT_DIR" else env[known_as]
    return env | {
        "GIT_DIR": repository,
        "GIT_WORK_TREE": tree,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": config or "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        # A server that is asked by https can't send us on to anything else.
        "GIT_ALLOW_PROTOCOL": _protocols(source),
        "LC_ALL": "C.UTF-8",  # its errors are read below
    }


def _protocols(source: GitSource) -> str:
    allowed = {"https": "https", "http": "http:https", "ssh": "ssh"}[source.url.partition(":")[0]]
    # Of a submodule somewhere else; a key for ssh is there for one host only.
    return f"{allowed}:https" if source.submodules and allowed == "ssh" else allowed


def failed(source: GitSource, said: str) -> SourceError:
    """The last lines of what git said, and what to do about it."""
    lines = [_NOT_READABLE.sub(" ", line).strip() for line in said.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if not _SAYS_NOTHING.match(line)] or lines
    text = "; ".join(telling[-_MAX_ERROR_LINES:])[-_MAX_ERROR_CHARS:]
    reason, advice = next(
        ((reason, advice) for words, reason, advice in _ADVICE if re.search(words, text)), (INVALID, "check source.git")
    )
    private = f"check that what is in Secret {source.secret} may read this repository, and source.git.url"
    advice = advice.format(secret=source.secret, access=private if source.secret else _PUBLIC)
    text = f"git could not fetch {source.ref or 'HEAD'} of {source.url}: {text or 'it said nothing'}: {advice}"
    return SourceError(text, reason)


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
