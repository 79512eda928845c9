"""What the figures were measured on, and what a process costs, as /proc tells it.

A figure without its machine, its load and its versions can't be compared with anything. Called by
`__main__` and by the two sides of the sockets part.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Any

_LIBRARIES = ("aiohttp", "uvloop", "msgspec", "kopf", "kubernetes")


def facts() -> dict[str, Any]:
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    models = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_gib": round(int(memory["MemTotal"].split()[0]) / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def described(found: dict[str, Any]) -> str:
    """Facts as two lines, for people."""
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items())
    return (
        f"{found['usable_cores']} cores ({found['cpu']}), {found['memory_gib']} GiB, {found['kernel']}\n"
        f"Python {found['python']}, {found['openssl']}, {libraries}"
    )


def load() -> float:
    """Of the last minute: above the number of cores, every figure is one of a busy machine."""
    return os.getloadavg()[0]


def conclude(found: dict[str, Any], file: Path | None) -> None:
    """Tells under which load it was found, and keeps all of it in the file, if there is to be one."""
    found["load_after"] = load()
    print(f"\nload of the last minute: {found['load_before']:.2f} before, {found['load_after']:.2f} after")
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"all samples: {file}")


def rss_bytes() -> int:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def allow_open_files(wanted: int) -> None:
    """Raises OSError where the hard limit is lower: then fewer sockets fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(f"at most {hard} files may be open here, {wanted} are needed: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
