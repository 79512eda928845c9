"""Programs of another architecture, run by qemu: the words to put before a command, and what they need.

The kernel is told of qemu within the mount namespace that the command runs in, so the caller puts it
into one of its own. Since Linux 6.7 that ends with the namespace; an older kernel remembers it until
the machine starts again. It must never replace what a machine has told its kernel already. Called by
`debian` and `builders`.
"""

from __future__ import annotations

from tests.cluster.architecture import Architecture

# What Debian's own qemu-user-static gives to systemd, where there is one. It has the flag F: the
# kernel keeps qemu open, so it also serves a root file system that has no qemu.
_TELL_THE_KERNEL = """
registry=/proc/sys/fs/binfmt_misc
[ -e $registry/register ] || mount -t binfmt_misc binfmt_misc $registry
[ -e $registry/$1 ] || cat /usr/lib/binfmt.d/$1.conf > $registry/register
shift
exec "$@"
"""


def programs(architecture: Architecture) -> dict[str, str]:
    """For `debian.install`."""
    return {f"qemu-{architecture.kernel}-static": "qemu-user-static"}


def prefix(architecture: Architecture) -> list[str]:
    return ["sh", "-euc", _TELL_THE_KERNEL, "sh", f"qemu-{architecture.kernel}"]
