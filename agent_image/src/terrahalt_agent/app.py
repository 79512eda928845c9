"""The composition root: everything is made here, once, and all tasks live in one TaskGroup.

The order at the start matters: subreaper and key first, then the memory is sealed, then the ports are
opened; user code comes only with a run. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
import uuid
from pathlib import Path

from terrahalt_agent import __version__
from terrahalt_agent.adapters import trust
from terrahalt_agent.adapters.backend import Backends
from terrahalt_agent.adapters.clean_room import IPC, CleanRoom
from terrahalt_agent.adapters.cluster_api import ApiServer, ClusterApi
from terrahalt_agent.adapters.descendants import Descendants, become_subreaper
from terrahalt_agent.adapters.engine import check_mirror, look_at
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.adapters.kept_logs import KeptLogs
from terrahalt_agent.adapters.kept_plans import KeptPlans
from terrahalt_agent.adapters.metrics import Metrics
from terrahalt_agent.adapters.outputs import PublishedSecrets
from terrahalt_agent.adapters.pod_log import PodLog, PodLogHandler
from terrahalt_agent.adapters.provider_cache import ProviderCache
from terrahalt_agent.adapters.resources import Resources
from terrahalt_agent.adapters.server import Server
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.adapters.threads import started_threads
from terrahalt_agent.adapters.workdir import Workdir
from terrahalt_agent.aftermath import Aftermath
from terrahalt_agent.core import providers
from terrahalt_agent.core.agent import Agent
from terrahalt_agent.core.events import PodTerminating
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.redaction import Redactor
from terrahalt_agent.driver import Driver, Identity
from terrahalt_agent.settings import Settings, SettingsError

_FLUSH_S = 1.0
GOES_AFTER_S = 0.2
"""The end of a container takes its node's CPU for a moment, just when the next run of the workspace begins: that comes
first."""
_log = logging.getLogger(__name__)


def main() -> None:
    """Ends the process itself: no exit handler or blocked thread may hold up a terminating pod."""
    redactor = Redactor()
    pod_log = PodLog(redactor)
    logging.basicConfig(level=logging.INFO, handlers=[PodLogHandler(pod_log)])
    code = 1
    try:
        settings = Settings.read(os.environ)
        cache = _look_round(settings)
        become_subreaper()
        context = trust.server_context(settings.operator_ca, settings.pod_name)
        trust.seal_memory()
        code = asyncio.run(_serve(settings, context, pod_log, redactor, cache))
    except (SettingsError, ValueError, OSError) as error:
        _log.error("the agent can't work here: %s", error)
    except BaseException:
        _log.exception("the agent failed")
    finally:
        pod_log.flush(_FLUSH_S)
        sys.stderr.flush()
        os._exit(code)


async def _serve(
    settings: Settings, context: ssl.SSLContext, pod_log: PodLog, redactor: Redactor, cache: ProviderCache | None
) -> int:
    """The exit code; raises what went wrong inside."""
    times, loop = Times(), asyncio.get_running_loop()
    loop.set_default_executor(started_threads())
    api = ClusterApi(ApiServer(settings.api_url, settings.api_token, settings.api_ca), settings.namespace)
    local = settings.local_states if settings.backend == "Local" else None
    copies = StateCopies(api, settings.namespace)
    backends = Backends(api, copies, settings.namespace, os.uname().nodename, settings.engine, local)
    descendants = Descendants()
    boot_id = str(uuid.uuid4())
    identity = Identity(
        settings.namespace,
        settings.pod_name,
        settings.pod_uid,
        boot_id,
        settings.identity_token,
        os.uname().machine,
    )
    resources = Resources(settings.cgroup, settings.work)
    agent = Agent(
        engine=settings.engine,
        boot_id=boot_id,
        times=times,
        max_runs=settings.max_runs,
        operator_loss_s=settings.operator_loss_s,
    )
    async with asyncio.TaskGroup() as tasks:
        driver = Driver(
            agent,
            identity=identity,
            engine=settings.engine,
            program=settings.program,
            workdir=Workdir(
                settings.work,
                api,
                Git(descendants),
                os.environ,
                cli_config=providers.cli_config(settings.providers),
                cache=cache,
            ),
            backends=backends,
            aftermath=Aftermath(copies if local is None else None, times),
            plans=KeptPlans(api),
            outputs=PublishedSecrets(api),
            logs=_logs(api, settings),
            descendants=descendants,
            resources=resources,
            pod_log=pod_log,
            redactor=redactor,
            room=CleanRoom(
                settings.work,
                settings.scratch,
                kept=(settings.local_states, *((Path(settings.providers.cache),) if settings.providers.cache else ())),
                cache=cache,
                ipc=IPC if os.getpid() == 1 else (),
                descendants=descendants,
                pod_log=pod_log,
                termination_log=settings.termination_log,
            ),
            termination_log=settings.termination_log,
            times=times,
            tasks=tasks,
        )
        metrics = Metrics(__version__, settings.engine, resources, lambda: agent.has_run)
        server = Server(driver.post, metrics.page)
        driver.connect(server)
        for number in (signal.SIGTERM, signal.SIGINT):  # PID 1 ignores what it has no handler for
            loop.add_signal_handler(number, driver.post, PodTerminating())
        # The image starts us with it blocked, so that none is lost while Python starts.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        loop.add_signal_handler(signal.SIGCHLD, driver.child_ended)
        control, health = await server.listen(
            settings.listen_host, settings.control_port, settings.health_port, context
        )
        _log.info("agent %s is ready: control on port %d, health on port %d", settings.pod_name, control, health)
        code = await driver.exited
        if not agent.is_terminating:  # while it is connected, nobody takes it for one that can't be reached
            await asyncio.sleep(GOES_AFTER_S)
        await server.close()
    await api.close()
    return code


def _logs(api: ClusterApi, settings: Settings) -> KeptLogs | None:
    """Outside of a cluster nobody would answer."""
    return KeptLogs(api) if settings.api_token.exists() else None


def _look_round(settings: Settings) -> ProviderCache | None:
    """All that a run would else find out: whether the engine starts, and providers can be had. Raises SettingsError."""
    engine = look_at(settings)
    _log.info("%s %s", settings.engine, engine.version or "of a version that it does not say")
    if (mirror := settings.providers.filesystem_mirror) is not None:
        check_mirror(mirror.path)
    if not settings.providers.cache:
        return None
    if not engine.platform:
        raise SettingsError(f"{settings.program} does not say its platform, so there can be no cache of its providers")
    cache = ProviderCache(Path(settings.providers.cache), engine.platform)
    try:
        cache.check()
    except OSError as error:
        raise SettingsError(f"the cache of the pool's providers can't be written: {error}") from error
    return cache
