"""Takes the connections of one port, and few of strangers at a time: each pod of the cluster may knock.

A TLS connection costs 300 KiB before anybody has proven anything, so ten thousand that say nothing would cost a
run its memory. Whoever is let in, by its certificate, stays and counts no more; where no certificate is asked
for, nobody stays. One that makes a crowd loses its own oldest first, so it shuts nobody else out. Decides
nothing of what is said. Called by `server`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

MAX_STRANGERS = 64
PATIENCE_S = 5.0
"""As long as an operator waits for its own connection."""
_BACKLOG = 512
_PAUSE_S = 0.05
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_log = logging.getLogger(__name__)


class Doorway:
    def __init__(self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> None:
        self._protocol = protocol
        self._context = context
        self._listening: list[socket.socket] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._strangers: dict[asyncio.Task[None], str] = {}
        """In the order in which they came; each with its address."""

    def open(self, host: str | None, port: int) -> int:
        """The port, chosen by the kernel for 0. Raises OSError. `host`: None is every address of the pod."""
        self._listening = _listening(host, port)
        chosen = int(self._listening[0].getsockname()[1])
        self._acceptors = [
            asyncio.create_task(self._accept(each), name=f"doorway-{chosen}-{number}")
            for number, each in enumerate(self._listening)
        ]
        return chosen

    def close(self) -> None:
        """Nobody else comes in; who is in stays."""
        for task in (*self._acceptors, *self._strangers):
            task.cancel()
        for each in self._listening:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors, or it was gone before it was taken
                _log.warning("a connection can't be taken: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._strangers) >= MAX_STRANGERS:
                self._turn_one_away()
            task = asyncio.create_task(self._receive(connection), name=f"stranger-{address[0]}")
            self._strangers[task] = address[0]
            task.add_done_callback(lambda done: self._strangers.pop(done, None))
            await asyncio.sleep(0)  # so that it has begun before it may be cancelled, and others have their turn

    def _turn_one_away(self) -> None:
        (crowd, _), *_ = Counter(self._strangers.values()).most_common(1)
        oldest = next(task for task, address in self._strangers.items() if address == crowd)
        del self._strangers[oldest]
        oldest.cancel()

    async def _receive(self, connection: socket.socket) -> None:
        """Cancelled, it hangs up."""
        within_s = None if self._context is None else PATIENCE_S
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=within_s
            )
        except OSError:  # of TLS, too: it is told what is wrong by an alert, and nobody else cares
            return
        if self._context is None:
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                transport.abort()


def _listening(host: str | None, port: int) -> list[socket.socket]:
    """One for IPv4 and one for IPv6, where the pod has both."""
    found: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        try:
            made = socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                for each in found:
                    each.close()
                raise
            failed = error
            continue
        made.setblocking(False)
        found.append(made)
    if not found:
        raise failed or OSError(f"no address to listen on at port {port}")
    return found
