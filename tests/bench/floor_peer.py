"""The far end of the floor: a WebSocket server that sends a signal, and a process that waits for it.

Run by `floor` as a process of its own, so that frame and signal each cross a real process boundary. The
stamps are CLOCK_MONOTONIC, which all processes of a machine share. Prints its port.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time

import uvloop
from aiohttp import WSMsgType, web

_STAMP = struct.Struct("d")
_ORPHAN_CHECK_S = 1.0


def _wait_for_signals(stamps: int, parent: int) -> None:
    """The child's whole life: as quick as a Python process can see a signal."""
    os.write(stamps, _STAMP.pack(0.0))
    while os.getppid() == parent:
        if signal.sigtimedwait([signal.SIGINT], _ORPHAN_CHECK_S) is not None:
            os.write(stamps, _STAMP.pack(time.monotonic()))


async def _serve(child: int, stamps: int) -> None:
    async def control(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for frame in socket:
            if frame.type is WSMsgType.TEXT:
                received = time.monotonic()
                os.kill(child, signal.SIGINT)
                (signalled,) = _STAMP.unpack(os.read(stamps, _STAMP.size))
                await socket.send_json([received, signalled])
        over.set()
        return socket

    over = asyncio.Event()
    application = web.Application()
    application.router.add_get("/", control)
    runner = web.AppRunner(application, handle_signals=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await over.wait()
    await runner.cleanup()


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _wait_for_signals(writer, parent)
        os._exit(0)
    os.read(reader, _STAMP.size)  # the child waits by now
    try:
        uvloop.run(_serve(child, reader))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
