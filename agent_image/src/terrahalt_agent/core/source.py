"""Which files a source may bring, wherever they come from: none that would replace what is ours.

Called by `workdir` and `adapters.git` before terraform sees any; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from terrahalt_protocol.messages import Source

BACKEND_OVERRIDE = "terrahalt_backend_override.tf.json"
RESERVED = frozenset({BACKEND_OVERRIDE, "errored.tfstate"})
"""The first is ours; the second would make a saved state look like a lost one."""
_NAMES_A_BACKEND = re.compile(rb"\b(backend|cloud)\b")


INVALID = "SourceInvalid"
CREDENTIALS_INVALID = "SourceCredentialsInvalid"
"""A Secret, or an authority, is not there or can't be used; nobody was asked yet."""
ACCESS_DENIED = "SourceAccessDenied"
"""The server does not let in who asks."""
SERVER_NOT_TRUSTED = "SourceServerNotTrusted"
"""The server could not prove who it is."""


class SourceError(Exception):
    """The source can't be used as it is; a person has to change it. The text says which file and why."""

    def __init__(self, text: str, reason: str = INVALID) -> None:
        """`reason`: one of those above, for the task's status."""
        super().__init__(text)
        self.reason = reason


def preparing(source: Source) -> str:
    """What a person reads until terraform is started."""
    if (git := source.repository) is not None:
        return f"fetching {git.ref or 'HEAD'} of {git.url}"
    if source.archive is not None:
        return f"fetching {without_query(source.archive.url)}"
    return "preparing the working directory"


def without_query(url: str) -> str:
    """What may be shown of it: some servers give out addresses whose query lets in whoever has it."""
    return url.partition("?")[0]


def check_path(path: str, what: str = "file") -> None:
    """Raises SourceError for a path that could leave the directory that it is in."""
    parts = path.split("/")
    if not path or "\0" in path or path.startswith("/"):
        raise SourceError(f"{what} {path!r}: the path must be relative and not empty")
    if any(part in ("", ".", "..") for part in parts):
        raise SourceError(f"{what} {path!r}: the path must not hold '..', '.' or an empty part")


def check_files(files: Mapping[str, bytes]) -> None:
    """Raises SourceError for a path that could leave the module's directory or is not ours to take."""
    if not files:
        raise SourceError("the source has no files")
    for path, content in files.items():
        parts = path.split("/")
        check_path(path)
        if parts[0] == ".terraform" or path in RESERVED:
            raise SourceError(f"file {path!r}: this name is terraform's or the agent's own; take it out of the source")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise SourceError(f"file {path!r}: a part of its path is a file of the source too")
        if may_override(path) and _NAMES_A_BACKEND.search(content):
            raise SourceError(f"file {path!r}: it overrides the backend, which the task's workspace names; take it out")


def may_override(path: str) -> bool:
    """terraform merges override files of the root module in the order of their names; the last one wins."""
    return path.endswith(("_override.tf", "_override.tf.json")) and "/" not in path and path > BACKEND_OVERRIDE
