"""The processor architectures that the images are made for, each in the words of who names it.

Only data, and which one this machine is. Used by whatever fetches or builds for a machine.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    # Of Debian, Go, releases of terraform and the platforms of images.
    debian: str
    # Of the kernel, wheels and qemu.
    kernel: str


AMD64 = Architecture("amd64", "x86_64")
ARM64 = Architecture("arm64", "aarch64")


def ours() -> Architecture:
    machine = platform.machine().lower()
    known = {name: each for each in (AMD64, ARM64) for name in (each.debian, each.kernel)}
    return known.get(machine, Architecture(machine, machine))
