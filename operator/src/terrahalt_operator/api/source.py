"""Where a task's files come from, as a part of its spec. What a Secret has to hold only the agent
knows, which reads it."""

from __future__ import annotations

from typing import Annotated

from .references import ConfigMapRef, SecretRef
from .schema import ApiModel, Keywords, Rule

MAX_INLINE_BYTES = 128 * 1024
MAX_INLINE_FILES = 64

_HOST = r"([[:alnum:].-]+|[^/@]*@[^/]+|\\[[[:xdigit:].:]+\\])(:[0-9]+)?"
"""RE2, in a CEL string, as all below. Who is logged in before the host passes here: another rule says it better."""

_IN_PATH = r"[^?#\\\\[:space:][:cntrl:]]"

_ARCHIVE_URL_IS_GOOD = rf"^https?://{_HOST}(/[^#\\\\[:space:][:cntrl:]]*)?$"

_GIT_URL_IS_GOOD = rf"^(https?|ssh)://{_HOST}(/{_IN_PATH}*)?$"

_SSH_URL_IS_GOOD = (
    r"^ssh://([[:alnum:]_][[:alnum:]_.-]*@)?([[:alnum:]][[:alnum:].-]*|\\[[[:xdigit:].:]+\\])(:[0-9]+)?"
    rf"/{_IN_PATH}+$"
)

_REF_IS_BAD = r"^[-+/]|[[:space:][:cntrl:]~^:?*\\[\\\\]|[.][.]|@[{]"
"""An option, a refspec, a pattern or a revision, none of which names something to fetch."""

_PATH_IS_BAD = r"(^|/)[.]{0,2}(/|$)|[[:cntrl:]\\\\]"
"""An empty segment (so an absolute path too), `.`, `..`, a backslash, a control character."""


_PATH_RULE = Rule(
    f"!has(self.path) || !self.path.matches('{_PATH_IS_BAD}')",
    "path must be relative, without . or .. or empty parts, backslashes and control characters: use a path "
    "like envs/prod, or leave it out for the root of the source",
    ".path",
)


class AuthorityRef(ApiModel):
    """The certificates of an authority, as PEM, in the key `ca.crt`; exactly one of `configMapRef` and `secretRef`."""

    config_map_ref: ConfigMapRef | None = None
    """A ConfigMap of the task's namespace with the key `ca.crt`."""
    secret_ref: SecretRef | None = None
    """A Secret of the task's namespace with the key `ca.crt`."""

    RULES = (
        Rule(
            "has(self.configMapRef) != has(self.secretRef)",
            "caRef needs exactly one of configMapRef and secretRef: remove the other, or add one",
        ),
    )


def _access_rules(kind: str, other: str) -> tuple[Rule, ...]:
    """Of a source with an address, a Secret and an authority; `other`: how else a Secret may be used."""
    return (
        Rule(
            "!self.url.matches('^https?://[^/]*@')",
            "url holds a user name or a password, which whoever may read the task could read: remove it, and use "
            "secretRef",
            ".url",
        ),
        Rule(
            "!has(self.secretRef) || !self.url.startsWith('http:')",
            f"secretRef of {kind} would be sent over http, where everybody on the way can read it: use https{other}, "
            "or leave secretRef out",
            ".secretRef",
        ),
        Rule(
            "!has(self.caRef) || self.url.startsWith('https:')",
            f"caRef of {kind} is of the server's certificate, and only https has one: use https, or leave caRef out",
            ".caRef",
        ),
    )


class GitSource(ApiModel):
    """A directory of a git repository, at one commit."""

    url: Annotated[str, Keywords(minLength=1, maxLength=1024)]
    """The address of the repository, for example `https://git.example.com/infra/network.git` or
    `ssh://git@git.example.com/infra/network.git`. It begins with https://, http:// or ssh:// and holds no
    password: whoever may read the task reads it. Proxies and certificate authorities are those of the
    agent's environment and of `envFrom` (`HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`), unless there is `caRef`."""
    ref: Annotated[str | None, Keywords(minLength=1, maxLength=255)] = None
    """What to fetch: a branch, a tag or a full commit (40 digits), for example `main`, `v1.2.0`. Absent: the
    server's default branch. Only that commit is fetched, without history and LFS files, within
    5 minutes and 512 MiB; `status.source.commit` tells which one it was."""
    path: Annotated[str | None, Keywords(minLength=1, maxLength=255)] = None
    """The directory of the repository in which terraform runs, for example `envs/prod`; it may use modules
    of other directories, such as `../../modules/network`. Absent: the root."""
    secret_ref: SecretRef | None = None
    """A Secret with what the server asks for: for https `username` and `password`, or `bearerToken`; for ssh
    `identity` (a private key without a passphrase) and `known_hosts`. It is read by the agent with the
    pool's ServiceAccount, never by the operator, and serves the modules too that `terraform init` fetches by
    git from the same host. Absent: the repository can be read by everybody; ssh needs it."""
    ca_ref: AuthorityRef | None = None
    """Who has signed the certificate of an https server; nobody else is believed then. Absent: the
    authorities of the agent's environment."""
    submodules: bool = False
    """Whether the repository's submodules are fetched too, each at its one commit, by https or as the
    repository itself; those of the same host with the same `secretRef`. Absent: false, their directories stay empty."""

    RULES = (
        Rule(
            f"self.url.matches('{_GIT_URL_IS_GOOD}')",
            "url must begin with https://, http:// or ssh://, go on with a host, and hold no blank, backslash, ? or #: "
            "use ssh://git@git.example.com/network.git for git@git.example.com:network.git",
            ".url",
        ),
        Rule(
            f"!self.url.startsWith('ssh:') || self.url.matches('{_SSH_URL_IS_GOOD}')",
            "an address for ssh has at most a user name before the host, no password, and a path: use one like "
            "ssh://git@git.example.com/network.git",
            ".url",
        ),
        Rule(
            "!self.url.startsWith('ssh:') || has(self.secretRef)",
            "ssh needs a key and the server's: add secretRef, a Secret with identity and known_hosts",
            ".secretRef",
        ),
        *_access_rules("git", " or ssh"),
        Rule(
            f"!has(self.ref) || !self.ref.matches('{_REF_IS_BAD}')",
            "ref must be the name of a branch or a tag, or a full commit, and must not begin with - or +: give it "
            "without blanks and without any of ~ ^ : ? * [ and ..",
            ".ref",
        ),
        _PATH_RULE,
    )


class ArchiveSource(ApiModel):
    """A directory of a tar.gz or zip, known by its digest."""

    url: Annotated[str, Keywords(minLength=1, maxLength=1024)]
    """The address of the archive, for example `https://files.example.com/network-1.2.0.tar.gz`. It begins with
    https:// or http:// and holds no password; whoever may read the task reads it, with what may come after a
    `?`. Proxies and certificate authorities are those of the agent's environment and of `envFrom`, unless there
    is `caRef`."""
    sha256: Annotated[str, Keywords(pattern=r"^[0-9a-f]{64}$", maxLength=64)]
    """The SHA-256 of the file as it is downloaded, 64 hexadecimal digits in lower case: nothing of any other file
    is opened, or planned with. `sha256sum` prints it."""
    path: Annotated[str | None, Keywords(minLength=1, maxLength=255)] = None
    """The directory of the archive in which terraform runs, for example `network-1.2.0/envs/prod`. Absent: the
    root."""
    secret_ref: SecretRef | None = None
    """A Secret with `username` and `password`, or `bearerToken`, which only the server of `url` is shown, by https.
    It is read by the agent with the pool's ServiceAccount, never by the operator. Absent: everybody may have the
    archive."""
    ca_ref: AuthorityRef | None = None
    """Who has signed the certificate of an https server; nobody else is believed then. Absent: the authorities of
    the agent's environment."""

    RULES = (
        Rule(
            f"self.url.matches('{_ARCHIVE_URL_IS_GOOD}')",
            "url must begin with https:// or http://, go on with a host, and hold no blank, backslash or #: use the "
            "address of the archive itself",
            ".url",
        ),
        *_access_rules("archive", ""),
        _PATH_RULE,
    )


class Source(ApiModel):
    """Where the terraform files come from; exactly one of `inline`, `configMapRef`, `git` and `archive`."""

    inline: (
        Annotated[
            dict[str, Annotated[str, Keywords(maxLength=MAX_INLINE_BYTES)]],
            Keywords(maxProperties=MAX_INLINE_FILES),
        ]
        | None
    ) = None
    """The files themselves: relative path to text, for example `main.tf: 'output "x" {value = 1}'`. At
    most 64 files of together 128 KiB (131072 bytes); for more, use `configMapRef`."""
    config_map_ref: ConfigMapRef | None = None
    """A ConfigMap of the task's namespace: each key is a file's name, its value the text. It is read
    once, when the task starts."""
    git: GitSource | None = None
    """A directory of a git repository. It is fetched once, when the task starts."""
    archive: ArchiveSource | None = None
    """A directory of a tar.gz or zip on a server, also what Flux's source-controller serves: at most 128 MiB, and
    unpacked 512 MiB and 20000 files. It is fetched once, when the task starts."""

    RULES = (
        Rule(
            "[has(self.inline), has(self.configMapRef), has(self.git), has(self.archive)]"
            ".filter(given, given).size() == 1",
            "source needs exactly one of inline, configMapRef, git and archive: remove the others, or add one",
        ),
        Rule(
            "!has(self.inline) || self.inline.size() > 0",
            "inline has no files: add at least one, for example main.tf",
            ".inline",
        ),
        Rule(
            f"!has(self.inline) || self.inline.all(path, size(path) <= 255 && !path.matches('{_PATH_IS_BAD}'))",
            "a file's path in inline must be relative, without . or .. or empty parts, backslashes and control "
            "characters, and at most 255 characters long: use a path like modules/network/main.tf",
            ".inline",
        ),
        Rule(
            f"!has(self.inline) || self.inline.map(path, size(bytes(self.inline[path]))).sum() <= {MAX_INLINE_BYTES}",
            f"the files in inline have more than {MAX_INLINE_BYTES} bytes together: put them into a ConfigMap "
            "and use configMapRef",
            ".inline",
        ),
    )
