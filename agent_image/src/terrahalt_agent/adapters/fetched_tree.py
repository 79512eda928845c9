"""A tree of files that was fetched: where terraform runs in it, and that nothing in it leads out of it.

Called by `git` and `archive` once all of it is there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from terrahalt_agent.core.source import SourceError, check_files, may_override

_MAX_OVERRIDE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    module: Path
    """Where terraform runs: the source's path in the tree, without links in it."""
    commit: str = ""
    """Of a repository."""


def module_of(tree: Path, path: str, *, kind: str, of: str) -> Path:
    """Blocks. `kind`: the field of `source`; `of`: which one of its kind. Raises SourceError; OSError goes through."""
    root = tree.resolve()
    _check_links(root)
    module = Path(os.path.realpath(root / path))
    if not module.is_dir():
        raise SourceError(f"source.{kind}.path {path!r} is no directory of {of}: correct it")
    check_files({entry.name: _content(entry) for entry in module.iterdir()})
    return module


def _check_links(root: Path) -> None:
    """Raises SourceError for a link that leads out of the tree: terraform would write and read through it."""
    for parent, directories, files in os.walk(root):
        for path in (Path(parent, name) for name in (*directories, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                text = f"file {str(path.relative_to(root))!r}: it is a link that leads out of the source"
                raise SourceError(f"{text}; take it out")


def _content(path: Path) -> bytes:
    """Of what terraform would merge with our own override; nothing of the rest is looked into."""
    if not may_override(path.name) or not path.is_file():
        return b""
    if path.stat().st_size > _MAX_OVERRIDE_BYTES:
        raise SourceError(f"file {path.name!r}: more than {_MAX_OVERRIDE_BYTES} bytes; make it smaller")
    return path.read_bytes()
