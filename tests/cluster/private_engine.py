"""A Docker engine of our own, for a machine without one: Debian's dockerd with its own folders.

Data lies in the cache and stays (images are built once); sockets, the process record and what the
machine was like before lie in a folder under /run. `stop` ends only the process that `start` recorded
and puts the machine back. It must never touch another engine's files. Called by `engine` and
`kind_cluster`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.cluster import cache, commands, debian, host_state
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.speech import say, spoken

PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
}
CAP_SYS_RESOURCE = 24
ANSWER_WITHIN_S = 60
END_WITHIN_S = 60


def _state_folder() -> Path:
    # Short: a socket's path may have 107 bytes, and the cache may lie deep.
    name = hashlib.sha256(str(cache.root()).encode()).hexdigest()[:8]
    return Path("/run") / f"terrahalt-{name}"


def host() -> str:
    return f"unix://{_state_folder() / 'docker.sock'}"


def is_running() -> bool:
    return _recorded_pid() is not None and _answers()


def start() -> None:
    """No-op while it runs. Raises ClusterError."""
    if is_running():
        return
    debian.install(PACKAGES, why="the private Docker engine")
    stop()
    folder = _state_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    host_state.snapshot().save(folder / "before.json")
    configuration = folder / "daemon.json"
    configuration.write_text(json.dumps(_configuration(folder), indent=1), encoding="utf-8")
    log = cache.log_file("dockerd")
    pid = _spawn(["dockerd", "--config-file", str(configuration)], log)
    _record(pid)
    began = time.monotonic()
    while not _answers():
        if _start_time(pid) is None or time.monotonic() - began > ANSWER_WITHIN_S:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-commands.TAIL_LINES :])
            stop()
            raise CommandFailed(["dockerd"], "no answer", log, tail)
        time.sleep(0.1)


def _spawn(argv: list[str], log: Path) -> int:
    """Its own session: Ctrl-C of the terminal is for us, the engine outlives us."""
    to_log = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    from_nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    actions = [from_nothing, to_log, (os.POSIX_SPAWN_DUP2, 1, 2)]
    # What we inherited is not the engine's: it would hold the lock of a `flock` that we run under, long after us.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, False)
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsid=True)


def stop() -> None:
    """Ends the engine, and with it its containers, and restores what was before. No-op without one."""
    folder = _state_folder()
    pid = _recorded_pid()
    if pid is not None:
        _end(pid)
    before = host_state.load(folder / "before.json")
    if before:
        host_state.remove_docker_network(before)
        host_state.restore_sysctls(before)
        host_state.remove_cgroups(before)
        host_state.remove_folders(before)
    if folder.is_dir():
        shutil.rmtree(folder)


def _configuration(folder: Path) -> dict[str, object]:
    data = cache.folder("docker")
    configuration: dict[str, object] = {
        "data-root": str(data),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "docker.pid"),
        "hosts": [host()],
        # Its default is a file in /etc/docker.
        "deprecated-key-path": str(data / "key.json"),
    }
    if not may_use(CAP_SYS_RESOURCE):
        configuration |= {
            "oom-score-adjust": 0,
            "default-runtime": "without-sys-resource",
            "runtimes": {"without-sys-resource": {"path": str(_install_runtime())}},
        }
    return configuration


def may_use(capability: int) -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    bounding = next(line for line in status.splitlines() if line.startswith("CapBnd:"))
    return bool(int(bounding.split()[1], 16) >> capability & 1)


def _install_runtime() -> Path:
    """In the cache, because /run is often mounted without the right to execute."""
    source = cache.SOURCE / "node" / "runc_without_sys_resource.py"
    python = next((p for p in ("/usr/bin/python3",) if os.access(p, os.X_OK)), sys.executable)
    path = cache.folder("docker-runtime") / "runc"
    path.write_text(f"#!{python} -ES\n{source.read_text(encoding='utf-8')}", encoding="utf-8")
    path.chmod(0o755)
    return path


def _answers() -> bool:
    return commands.succeeds(["docker", "--host", host(), "version"], timeout_s=10)


def _record(pid: int) -> None:
    document = {"pid": pid, "started": _start_time(pid), "boot_id": host_state.boot_id()}
    (_state_folder() / "process.json").write_text(json.dumps(document), encoding="ascii")


def _recorded_pid() -> int | None:
    """Of the process that we started, while it lives: a number alone may be another's by now."""
    try:
        record = json.loads((_state_folder() / "process.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    pid = int(record["pid"])
    same_boot = record["boot_id"] == host_state.boot_id()
    return pid if same_boot and record["started"] == _start_time(pid) else None


def _start_time(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat, counted from behind the name, which may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    while _recorded_pid() == pid:
        if time.monotonic() - began > END_WITHIN_S:
            raise ClusterError(
                f"the private dockerd (process {pid}) did not end within {spoken(END_WITHIN_S)}: "
                f"look into {cache.log_file('dockerd')}, end it and run this again"
            )
        time.sleep(0.1)
    with contextlib.suppress(ChildProcessError):
        # Only a child when this same run started it.
        os.waitpid(pid, os.WNOHANG)
    say("      the private Docker engine has ended")
