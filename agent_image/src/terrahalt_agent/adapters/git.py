"""Fetches a git source: git's processes, the bounds on their time and space, and the tree that they leave.

The processes are children like terraform: whoever cancels `fetch` sweeps them, and an error leaves them to the
sweep too, so nothing here kills or waits for any. What is asked of git is in `core.git`. Called by `workdir`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.fetched_tree import Fetched, module_of
from terrahalt_agent.adapters.process import ChildProcess
from terrahalt_agent.core import git
from terrahalt_agent.core.source import SourceError
from terrahalt_protocol.messages import GitSource

_LOOK_S = 0.5
_LEAST_BYTES = 4096
"""What an entry costs at least, an empty file too: so that their number is bounded with their size."""
_TOLD_BYTES = 8192


class Git:
    def __init__(
        self, descendants: Descendants, *, max_bytes: int = git.MAX_BYTES, within_s: float = git.WITHIN_S
    ) -> None:
        self._descendants = descendants
        self._max_bytes = max_bytes
        self._within_s = within_s

    async def fetch(
        self, source: GitSource, *, into: Path, repository: Path, env: Mapping[str, str], config: str = ""
    ) -> Fetched:
        """The tree of the commit, in the empty directory `into`. Raises SourceError; OSError goes through.

        `config`: git's configuration that says what the server is shown; empty: nothing is."""
        git.check(source)
        log = repository.parent / "logs" / "git.log"
        env = git.environment(env, source, repository=str(repository), tree=str(into), config=config)
        try:
            async with asyncio.timeout(self._within_s):
                for command in git.commands(source):
                    if await self._run(source, command, into, env, log) != 0:
                        raise git.failed(source, _end_of(log))
                return await asyncio.to_thread(self._finish, source, into, repository)
        except TimeoutError as error:
            raise SourceError(git.too_late(source, self._within_s)) from error

    async def _run(
        self, source: GitSource, command: Sequence[str], tree: Path, env: Mapping[str, str], log: Path
    ) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def end(exit_code: int) -> None:
            if not ended.done():
                ended.set_result(exit_code)

        try:
            ChildProcess(command, cwd=str(tree), env=env, log=log, descendants=self._descendants, on_exit=end)
        except OSError as error:
            text = f"git could not be started: {error.strerror or error}: use an agent image that has git"
            raise SourceError(text) from error
        is_over = False
        while not is_over:
            is_over = bool((await asyncio.wait([ended], timeout=_LOOK_S))[0])
            if await asyncio.to_thread(_size, tree.parent) > self._max_bytes:
                raise SourceError(git.too_large(source, self._max_bytes))
        return ended.result()

    def _finish(self, source: GitSource, tree: Path, repository: Path) -> Fetched:
        commit = (repository / "HEAD").read_text().strip()
        shutil.rmtree(repository)
        if source.submodules:
            _forget_repositories(tree)
        return Fetched(module_of(tree, source.path, kind="git", of=f"commit {commit}"), commit)


def _forget_repositories(root: Path) -> None:
    """Each submodule names its own, which lay in the one that is gone."""
    for parent, directories, files in os.walk(root):
        if ".git" in files:
            os.unlink(os.path.join(parent, ".git"))
        assert ".git" not in directories, "git itself lets none into a tree"


def _size(folder: Path) -> int:
    """What it takes on the disk; files may come and go meanwhile."""
    total = 0
    for parent, directories, files in os.walk(folder):
        for name in (*directories, *files):
            try:
                found = os.lstat(os.path.join(parent, name))
            except OSError:
                continue
            total += max(found.st_size, _LEAST_BYTES)
    return total


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TOLD_BYTES))
        return file.read().decode(errors="replace")
