"""The process that stands for all agents and for the kubelet of their node.

It sees the pods that the operator makes, gives each an address of its own in 127.0.0.0/8 and tells that it runs; no
container is ever started. One port answers for all: the address that was dialled tells the pod. TLS context, codec and
socket settings are a real agent's; one key serves all. Told what to do by lines of JSON on its standard input, it
answers each with one on its standard output, and ends with its input. Run by `agents`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp
import uvloop
from aiohttp import WSMsgType, web

from terrahalt_agent.adapters.trust import server_context
from terrahalt_operator.core import names
from terrahalt_operator.core.pod import CONTROL_PORT
from terrahalt_protocol.codec import MAX_FRAME_BYTES, CommandDecoder, encode
from terrahalt_protocol.messages import Ack, Cancel, CancelReason, FromAgent, Start
from tests.bench import kubernetes_api, machine
from tests.bench.kubernetes_api import Api, ApiError, Json
from tests.bench.scale import node
from tests.bench.scale.agent import STEPS, STOPS_WITHIN_S, SimulatedAgent, ended, running
from tests.bench.scale.following import follow

_FIRST_ADDRESS = int(ipaddress.IPv4Address("127.77.0.1"))
_HEARTBEAT_S = 20.0
"""As in terrahalt_agent.adapters.server, where it is private."""
_END_IS_TOLD_AFTER_S = 0.5
"""A real kubelet takes 0.2 to 1.5 s from a run's release to its pod's status (the median of 39 ends: 0.58)."""
_AT_ONCE = 16
_TOKEN_S = 3600
_TOKEN_RENEWED_AFTER_S = 0.7 * _TOKEN_S
_TRIES = 20
_LOOKS_EVERY_S = 0.02
"""Counting them at each change of a thousand would cost what is measured; the change itself has its time."""
_SELECTOR = f"&labelSelector=app.kubernetes.io%2Fname%3D{names.AGENT_NAME}&fieldSelector=spec.nodeName%3D{node.NAME}"


class Simulator:
    def __init__(self, api: Api, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._api, self._spawn = api, spawn
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._agents: dict[str, SimulatedAgent] = {}
        self._at: dict[str, SimulatedAgent] = {}
        self._pods: dict[str, Json] = {}
        self._tokens_from: dict[str, float] = {}
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._addresses = 0
        self._listening: asyncio.Task[None] | None = None
        self._starts: dict[str, float] = {}
        self._cancels: dict[str, float] = {}
        self._progress_s = 0.0
        self._changed = asyncio.Event()
        self._changed_at = time.monotonic()

    # ---- the kubelet

    async def watch(self) -> None:
        async for is_gone, pod in follow(self._api, "/api/v1/pods", _SELECTOR):
            uid = pod["metadata"]["uid"]
            if is_gone:
                self._forget(uid)
                continue
            self._pods[uid] = pod
            is_deleting = "deletionTimestamp" in pod["metadata"]
            agent = self._agents.get(uid)
            if agent is None and pod["status"].get("phase") == "Pending" and not is_deleting:
                self._addresses += 1
                ip = str(ipaddress.IPv4Address(_FIRST_ADDRESS + self._addresses))
                agent = SimulatedAgent(pod["metadata"]["namespace"], pod["metadata"]["name"], uid, ip)
                self._agents[uid] = agent
                self._spawn(self._start_pod(agent, pod))
            elif agent is not None and is_deleting and not agent.is_over:
                self._terminate(agent)

    def _forget(self, uid: str) -> None:
        agent = self._agents.pop(uid, None)
        self._pods.pop(uid, None)
        self._tokens_from.pop(uid, None)
        if agent is not None:
            agent.is_over = True
            self._at.pop(agent.ip, None)
            self._hang_up(agent)
        self._note()

    async def _start_pod(self, agent: SimulatedAgent, pod: Json) -> None:
        if self._listening is None:
            environment = {e["name"]: e.get("value", "") for e in pod["spec"]["containers"][0]["env"]}
            self._listening = asyncio.create_task(self._listen(environment["TERRAHALT_OPERATOR_CA"]))
        await self._listening
        await self._give_token(agent)
        self._at[agent.ip] = agent
        await self._tell_status(agent, running(agent, pod, _now()))

    async def _give_token(self, agent: SimulatedAgent) -> None:
        """As a kubelet gives a pod its projected token, and another one before that is over."""
        now = time.monotonic()
        if now - self._tokens_from.get(agent.uid, -_TOKEN_S) < _TOKEN_RENEWED_AFTER_S:
            return
        pod = {"apiVersion": "v1", "kind": "Pod", "name": agent.name, "uid": agent.uid}
        account = self._pods[agent.uid]["spec"]["serviceAccountName"]
        path = f"/api/v1/namespaces/{agent.namespace}/serviceaccounts/{account}/token"
        spec = {"audiences": [names.TOKEN_AUDIENCE], "expirationSeconds": _TOKEN_S, "boundObjectRef": pod}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._tried(lambda: self._api.create(path, body))
        if answer is not None:
            agent.token, self._tokens_from[agent.uid] = answer["status"]["token"], now

    async def _tell_status(self, agent: SimulatedAgent, status: Json) -> None:
        path = f"/api/v1/namespaces/{agent.namespace}/pods/{agent.name}/status"
        await self._tried(lambda: self._api.patch(path, {"metadata": {"uid": agent.uid}, "status": status}))

    async def _tried(self, request: Callable[[], Coroutine[Any, Any, Json]]) -> Json | None:
        """As a kubelet does: again, unless the pod is gone. None: it is, or this was of no use."""
        for _ in range(_TRIES):
            try:
                async with self._gate:
                    return await request()
            except ApiError as error:
                if error.status in (404, 409):
                    return None
                last: Exception = error
            except (aiohttp.ClientError, TimeoutError) as error:
                last = error
            await asyncio.sleep(0.5)
        print(f"simulator: given up: {last}", file=sys.stderr, flush=True)
        return None

    def _terminate(self, agent: SimulatedAgent) -> None:
        """SIGTERM: a run is ended and told first; the container's end follows at once where none is alive. A real agent
        waits a moment for the acknowledgement of its run; its termination message tells of that all the same."""
        if agent.run_id and agent.result is None:
            self._end_run(agent, Cancel(epoch=agent.epoch, run_id=agent.run_id, reason=CancelReason.POD_TERMINATION))
        else:
            self._leave(agent)

    def _leave(self, agent: SimulatedAgent) -> None:
        if not agent.is_over:
            agent.is_over = True
            self._spawn(self._end_pod(agent))
            self._note()

    async def _end_pod(self, agent: SimulatedAgent) -> None:
        self._hang_up(agent)
        await asyncio.sleep(_END_IS_TOLD_AFTER_S)
        pod = self._pods.get(agent.uid)
        if pod is None:
            return
        await self._tell_status(agent, ended(agent, pod, _now(), agent.last_words(time.monotonic())))
        if "deletionTimestamp" in self._pods.get(agent.uid, pod)["metadata"]:
            await self._tried(lambda: self._delete(agent))

    async def _delete(self, agent: SimulatedAgent) -> Json:
        """What a kubelet does once the containers of a pod that is deleted have ended."""
        await self._api.delete(f"/api/v1/namespaces/{agent.namespace}/pods/{agent.name}?gracePeriodSeconds=0")
        return {}

    # ---- the agents

    async def _listen(self, operator_ca: str) -> None:
        application = web.Application()
        application.router.add_get("/control", self._control)
        runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        context = server_context(operator_ca, "bench")
        await web.TCPSite(runner, "0.0.0.0", CONTROL_PORT, ssl_context=context, backlog=4096).start()

    async def _control(self, request: web.Request) -> web.StreamResponse:
        dialled = request.transport.get_extra_info("sockname") if request.transport is not None else None
        agent = self._at.get(dialled[0]) if dialled else None
        if agent is None or agent.is_over:
            return web.Response(status=503)
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=2 * MAX_FRAME_BYTES)
        await socket.prepare(request)
        await self._give_token(agent)
        await _send(socket, agent.hello())
        if agent.run_id and not agent.is_acknowledged:
            await _send(socket, agent.report(time.monotonic()))
        self._sockets[agent.uid] = socket
        self._note()
        decoder = CommandDecoder()
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT and (command := decoder.feed(message.data)) is not None:
                    at = time.monotonic()
                    agent.epoch = command.epoch
                    match command:
                        case Start():
                            self._starts[f"{command.task.namespace}/{command.task.name}"] = at
                            self._begin_run(agent, command)
                        case Cancel():
                            if agent.start is not None:
                                self._cancels[f"{agent.start.task.namespace}/{agent.start.task.name}"] = at
                            self._end_run(agent, command)
                        case Ack() if agent.result is not None and command.run_id == agent.run_id:
                            agent.is_acknowledged = True
                            self._leave(agent)
        finally:
            if self._sockets.get(agent.uid) is socket:
                del self._sockets[agent.uid]
                self._note()
        return socket

    def _begin_run(self, agent: SimulatedAgent, start: Start) -> None:
        if not agent.run_id:
            agent.begin(start, time.monotonic())
            self._runs[agent.uid] = self._spawn(self._run(agent, float(start.variables.get("seconds", 0.5))))

    async def _run(self, agent: SimulatedAgent, applies_s: float) -> None:
        await self._say(agent)
        for step, after_s in STEPS:
            await asyncio.sleep(after_s)
            agent.step = step
            await self._say(agent)
            self._note()
        await asyncio.sleep(applies_s)
        agent.done = 1
        agent.finish()
        self._runs.pop(agent.uid, None)
        await self._say(agent)
        self._note()

    def _end_run(self, agent: SimulatedAgent, command: Cancel) -> None:
        is_news = agent.cancel is None and agent.result is None
        agent.end_for(command, time.monotonic())
        if is_news:
            self._spawn(self._stop_run(agent))
        else:
            self._spawn(self._say(agent))

    async def _stop_run(self, agent: SimulatedAgent) -> None:
        if (run := self._runs.pop(agent.uid, None)) is not None:
            run.cancel()
        await self._say(agent)
        await asyncio.sleep(STOPS_WITHIN_S)
        agent.finish()
        await self._say(agent)
        self._note()

    async def _say(self, agent: SimulatedAgent) -> None:
        if (socket := self._sockets.get(agent.uid)) is not None:
            await _send(socket, agent.report(time.monotonic()))

    def _hang_up(self, agent: SimulatedAgent) -> None:
        if (run := self._runs.pop(agent.uid, None)) is not None:
            run.cancel()
        if (socket := self._sockets.get(agent.uid)) is not None:
            self._spawn(_close(socket))

    async def tell_progress(self) -> None:
        """Each agent that applies says now and then how far it is, if it is told to."""
        while True:
            applying = [a for a in self._agents.values() if a.is_applying] if self._progress_s else []
            if not applying:
                await asyncio.sleep(0.2)
            for agent in applying:
                await asyncio.sleep(self._progress_s / len(applying))
                if agent.is_applying and self._progress_s:
                    agent.done += 1
                    await self._say(agent)

    # ---- orders

    async def obey(self, order: Json) -> Json:
        match order["do"]:
            case "count":
                return self._counts()
            case "until":
                wanted = order["counts"]
                with suppress(TimeoutError):
                    async with asyncio.timeout(order["within_s"]):
                        while not wanted.items() <= self._counts().items():
                            self._changed.clear()
                            await self._changed.wait()
                            await asyncio.sleep(_LOOKS_EVERY_S)
                return {"at": self._changed_at, **self._counts()}
            case "frames":
                starts, self._starts = self._starts, {}
                cancels, self._cancels = self._cancels, {}
                return {"starts": starts, "cancels": cancels}
            case "progress":
                self._progress_s = order["every_s"]
                return {}
            case unknown:
                raise ValueError(f"the simulator can't {unknown}")

    def _counts(self) -> Json:
        alive = [a for a in self._agents.values() if not a.is_over]
        return {
            "pods": len(alive),
            "connected": len(self._sockets),
            "missing": sum(a.uid not in self._sockets for a in alive),
            "applying": sum(a.is_applying for a in alive),
            "starts": len(self._starts),
            "cancels": len(self._cancels),
        }

    def _note(self) -> None:
        self._changed_at = time.monotonic()
        self._changed.set()


async def _send(socket: web.WebSocketResponse, message: FromAgent) -> None:
    with suppress(ConnectionError):
        for frame in encode(message):
            await socket.send_str(frame)


async def _close(socket: web.WebSocketResponse) -> None:
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(1):
            await socket.close()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = json.loads(await orders.readline())
    machine.allow_open_files(settings["agents"] * 3 + 1000)
    at_work: set[asyncio.Task[None]] = set()
    failed: asyncio.Future[None] = loop.create_future()

    def over(task: asyncio.Task[None]) -> None:
        at_work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
            failed.set_exception(error)

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = loop.create_task(work)
        at_work.add(task)
        task.add_done_callback(over)
        return task

    async with kubernetes_api.connected(settings["kubectl"], settings["environment"]) as api:
        await node.make(api)
        simulator = Simulator(api, spawn)
        for forever in (node.keep_fresh(api), simulator.watch(), simulator.tell_progress()):
            spawn(forever)
        print(json.dumps({"ready": True}), flush=True)

        async def obey() -> None:
            while line := await orders.readline():
                print(json.dumps(await simulator.obey(json.loads(line))), flush=True)

        obeying = loop.create_task(obey())
        await asyncio.wait((obeying, failed), return_when=asyncio.FIRST_COMPLETED)
        for task in (*at_work, obeying):
            task.cancel()
        if failed.done():
            failed.result()


if __name__ == "__main__":
    uvloop.run(_serve())
