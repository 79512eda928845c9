"""What a cluster can leave behind on the machine it ran on: to record it, compare it and put it back.

Reading needs no rights beyond what the programs need (iptables takes root; without it that part is
empty). Restoring touches only what a record says was otherwise before. Called by `private_engine`,
`kind_cluster` and the tests that compare the machine before and after.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster import commands
from tests.cluster.failure import CommandFailed
from tests.cluster.speech import say

# The kubelet of a node sets the first group for the whole machine, dockerd the second. The order is
# the order of restoring: ip_forward resets what is under net.ipv4.conf.
SYSCTLS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding",
    "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding",
    "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables",
)  # fmt: skip
# Folders that dockerd and containerd make outside of those they are told to use.
FOLDERS = (
    "/lib/modules", "/opt/containerd", "/etc/docker", "/var/lib/docker", "/var/lib/containerd",
    "/run/docker", "/run/containerd",
)  # fmt: skip
CGROUPS = Path("/sys/fs/cgroup")
PROC_SYS = Path("/proc/sys")
TABLES = ("filter", "nat", "mangle", "raw")
PROGRAMS = ("iptables", "ip6tables")
PROCESS_NAMES = ("dockerd", "docker-proxy", "containerd", "runc", "kubelet")
PROCESS_CGROUPS = re.compile(r"/docker[/-]|kubepods|kubelet")
# Rules made by dockerd: its chains, its bridges, and the hairpin rule of a published port.
OF_DOCKER = re.compile(r"DOCKER|\bdocker0\b|\bbr-[0-9a-f]{12}\b|-s (\S+)/32 -d \1/32 .*-j MASQUERADE")


@dataclass(frozen=True)
class HostState:
    boot_id: str
    sysctls: dict[str, str]
    # "iptables nat" -> the lines of `iptables -t nat -S`, without those that an unused table has.
    rules: dict[str, list[str]]
    links: list[str]
    mounts: list[str]
    # Those of engines and of containers only: the others come and go by themselves.
    processes: list[str]
    folders: list[str]
    cgroups: list[str]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def load(path: Path) -> HostState | None:
    """None when there is no record, or when it is of another boot of the machine and says nothing."""
    try:
        state = HostState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return state if state.boot_id == boot_id() else None


def boot_id() -> str:
    try:
        return (PROC_SYS / "kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def snapshot() -> HostState:
    return HostState(
        boot_id=boot_id(),
        sysctls=_sysctls(),
        rules=_rules(),
        links=_links(),
        mounts=_mounts(),
        processes=_processes(),
        folders=[path for path in FOLDERS if Path(path).is_dir()],
        cgroups=_cgroups(),
    )


def differences(before: HostState, after: HostState) -> list[str]:
    """One sentence for each thing that is new, gone or changed."""
    found = [
        f"sysctl {name}: {value} before, {after.sysctls.get(name)} after"
        for name, value in before.sysctls.items()
        if after.sysctls.get(name) != value
    ]
    for table in sorted({*before.rules, *after.rules}):
        found += _compared(f"{table} rule", before.rules.get(table, []), after.rules.get(table, []))
    found += _compared("network link", before.links, after.links)
    found += _compared("mount", before.mounts, after.mounts)
    found += _compared("process", before.processes, after.processes)
    found += _compared("folder", before.folders, after.folders)
    return found + _compared("cgroup", before.cgroups, after.cgroups)


def _compared(kind: str, before: Iterable[str], after: Iterable[str]) -> list[str]:
    left, gone = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    return [f"{kind} left: {item}" for item in left] + [f"{kind} gone: {item}" for item in gone]


def restore_sysctls(before: HostState) -> None:
    for name, value in before.sysctls.items():
        if _read(PROC_SYS / name) == value:
            continue
        try:
            (PROC_SYS / name).write_text(value, encoding="ascii")
        except OSError as error:
            say(f"      sysctl {name} was {value} before the cluster and stays changed: {error}")


def remove_docker_network(before: HostState) -> None:
    """For after dockerd has ended: its bridges, rules, chains and policies, unless they were there."""
    for link in _links():
        if link not in before.links and re.fullmatch(r"docker0|br-[0-9a-f]{12}|veth[0-9a-f]+", link):
            _tolerated(["ip", "link", "delete", link])
    for program in PROGRAMS:
        if not shutil.which(program):
            continue
        for table in TABLES:
            _remove_rules(program, table, before.rules.get(f"{program} {table}", []))


def _remove_rules(program: str, table: str, before: list[str]) -> None:
    iptables = [program, "--wait", "--table", table]
    added = [line for line in _listed(program, table) if line not in before]
    for line in added:
        if line.startswith("-A ") and OF_DOCKER.search(line):
            _tolerated([*iptables, "-D", *line.split()[1:]])
    chains = [line.split()[1] for line in added if line.startswith("-N ") and OF_DOCKER.search(line)]
    # First all empty, then gone: they refer to each other.
    for action in ("-F", "-X"):
        for chain in chains:
            _tolerated([*iptables, action, chain])
    # dockerd sets the policy of FORWARD to DROP when it was the one to switch forwarding on.
    if "-P FORWARD DROP" in added:
        _tolerated([*iptables, "-P", "FORWARD", "ACCEPT"])


def remove_folders(before: HostState) -> None:
    """Only what has no file in it; the sockets of containers that have ended don't count as files."""
    for path in (Path(name) for name in FOLDERS if name not in before.folders):
        for child in sorted(path.rglob("*"), key=lambda found: len(found.parts), reverse=True):
            if child.is_socket() and not _is_listening(child):
                child.unlink(missing_ok=True)
            elif child.is_dir():
                _remove_if_empty(child)
        _remove_if_empty(path)


def remove_cgroups(before: HostState) -> None:
    for path in sorted(set(_cgroups()) - set(before.cgroups), key=len, reverse=True):
        _remove_if_empty(CGROUPS / path)


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return


def _tolerated(argv: list[str]) -> None:
    try:
        commands.output(argv)
    except CommandFailed as failure:
        say(f"      left as it is: {failure}")


def _sysctls() -> dict[str, str]:
    values = {name: _read(PROC_SYS / name) for name in SYSCTLS}
    return {name: value for name, value in values.items() if value is not None}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _rules() -> dict[str, list[str]]:
    return {
        f"{program} {table}": lines
        for program in PROGRAMS
        if shutil.which(program)
        for table in TABLES
        if (lines := _listed(program, table))
    }


def _listed(program: str, table: str) -> list[str]:
    try:
        lines = commands.output([program, "--wait", "--table", table, "-S"]).splitlines()
    except CommandFailed:
        return []
    return [line for line in lines if not re.fullmatch(r"-P \w+ ACCEPT", line)]


def _links() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return sorted(" ".join(line.split()[3:5]) for line in lines)


def _processes() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            cgroups = (folder / "cgroup").read_text(encoding="utf-8")
        except OSError:
            continue
        text = b" ".join(words).decode(errors="replace").strip()
        program = os.path.basename(text.split(" ")[0])
        if program.startswith(PROCESS_NAMES) or PROCESS_CGROUPS.search(cgroups):
            found.append(f"{folder.name} {text[:200]}")
    return sorted(found)


def _cgroups() -> list[str]:
    """Two levels under each controller: where engines and the kubelet put theirs."""
    found = []
    for depth in ("*", "*/*"):
        found += [str(path.relative_to(CGROUPS)) for path in CGROUPS.glob(depth) if path.is_dir()]
    return sorted(found)
