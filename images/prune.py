"""Removes from the root file system it runs in what no container of ours needs.

For the Dockerfile, which copies the rest into an empty image. Works on Debian with Python as a package
and on the official Python images. Whole packages go by dpkg's own lists of files and are taken out of
its status file, so that what a scanner reads there stays true. It must never leave a program without a
library that it links to (it looks, and fails), and never run on a real machine.
"""

from __future__ import annotations

import compileall
import os
import pathlib
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig

# Installing and administrating a system; an image is never changed from inside.
PACKAGES = (
    "adduser", "apt", "base-passwd", "bsdutils", "debconf", "debian-archive-keyring", "dpkg", "e2fsprogs",
    "gpgv", "init-system-helpers", "libapt-pkg6.0", "libaudit-common", "libaudit1", "libblkid1", "libcap-ng0",
    "libdebconfclient0", "libext2fs2", "libgcrypt20", "libgnutls30", "libgpg-error0", "libhogweed6",
    "libidn2-0", "liblz4-1", "libmount1", "libnettle8", "libp11-kit0", "libpam-modules", "libpam-modules-bin",
    "libpam-runtime", "libpam0g", "libproc2-0", "libsemanage-common", "libsemanage2", "libsepol2",
    "libsmartcols1", "libss2", "libsystemd0", "libtasn1-6", "libudev1", "libunistring2", "libxxhash0",
    "login", "logsave", "mawk", "mount", "ncurses-base", "ncurses-bin", "openssl", "passwd", "perl-base",
    "procps", "python3-distutils", "python3-lib2to3", "python3-pip-whl", "python3-setuptools-whl",
    "python3-venv", "python3.11-venv", "sysvinit-utils", "tzdata", "usr-is-merged", "usrmerge", "util-linux",
    "util-linux-extra",
)  # fmt: skip
FOLDERS = (
    "/etc/apt", "/etc/cron.d", "/etc/cron.daily", "/etc/dpkg", "/etc/init.d", "/etc/logrotate.d",
    "/etc/pam.d", "/etc/security", "/etc/systemd", "/usr/include", "/usr/lib/apt", "/usr/lib/dpkg",
    "/usr/lib/init", "/usr/lib/systemd", "/usr/lib/udev", "/usr/local/share/man", "/usr/share/bash-completion",
    "/usr/share/bug", "/usr/share/debconf", "/usr/share/dpkg", "/usr/share/info", "/usr/share/lintian",
    "/usr/share/locale", "/usr/share/man", "/usr/share/menu", "/usr/share/perl5", "/usr/share/pixmaps",
    "/usr/share/python-wheels", "/usr/share/zoneinfo", "/var/backups", "/var/cache", "/var/lib/apt",
    "/var/lib/dpkg/alternatives", "/var/lib/dpkg/info", "/var/lib/dpkg/triggers", "/var/lib/dpkg/updates",
    "/var/lib/pam", "/var/lib/systemd", "/var/log", "/root/.cache",
)  # fmt: skip
# Character sets other than those that the C library has built in.
PATTERNS = ("/usr/lib/*/gconv", "/usr/lib/*/perl*", "/usr/lib/*/security", "/usr/local/lib/*.a")
STANDARD_LIBRARY = (
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo", "turtle.py",
)  # fmt: skip
STATUS = pathlib.Path("/var/lib/dpkg/status")
PASSWD_LINE = "terrahalt:x:65532:65532:terrahalt:/work:/usr/sbin/nologin\n"
GROUP_LINE = "terrahalt:x:65532:\n"


def remove_packages() -> None:
    kept = []
    for stanza in STATUS.read_text(encoding="utf-8").split("\n\n"):
        name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        if name and name[1] in PACKAGES:
            remove_files_of(name[1])
        elif stanza.strip():
            kept.append(stanza.strip("\n"))
    STATUS.write_text("\n\n".join(kept) + "\n", encoding="utf-8")


def remove_files_of(package: str) -> None:
    folder = pathlib.Path("/var/lib/dpkg/info")
    for listing in (*folder.glob(f"{package}.list"), *folder.glob(f"{package}:*.list")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            path = pathlib.Path(line)
            # /bin and /lib are links to folders that all packages list.
            if not path.is_dir():
                path.unlink(missing_ok=True)


def remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_from_standard_library() -> None:
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = [library / name for name in STANDARD_LIBRARY]
    paths += library.glob("config-*")
    packages = [pathlib.Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    for folder in packages:
        for name in ("pip", "setuptools", "wheel", "_distutils_hack"):
            paths += [folder / name, *folder.glob(f"{name}-*.dist-info"), *folder.glob("distutils-*.pth")]
    for path in paths:
        remove(path)


def compile_standard_library() -> None:
    library = sysconfig.get_path("stdlib")
    for cached in pathlib.Path(library).rglob("__pycache__"):
        shutil.rmtree(cached)
    # Unchecked: no look at the time stamp of each source at each start.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(library, quiet=2, workers=0, invalidation_mode=unchecked)


def remove_special_modes() -> None:
    """Nobody becomes somebody else in a container of ours."""
    for folder in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/local"):
        for parent, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(parent, name)
                mode = os.lstat(path).st_mode
                if not os.path.islink(path) and mode & 0o6000:
                    os.chmod(path, mode & 0o1777)


def add_user() -> None:
    """Not needed to run, but ssh refuses a user without an entry."""
    for path, line in (("/etc/passwd", PASSWD_LINE), ("/etc/group", GROUP_LINE)):
        with open(path, "a", encoding="ascii") as file:
            file.write(line)


def programs_without_their_libraries() -> list[str]:
    missing = []
    for folder in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/local"):
        for parent, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(parent, name)
                if not os.path.islink(path) and is_elf(path):
                    found = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
                    missing += [f"{path}:{line}" for line in found.stdout.splitlines() if "not found" in line]
    return missing


def is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def main() -> None:
    if pathlib.Path("/run/systemd/system").exists() or "--in-a-build" not in sys.argv:
        sys.exit("prune.py removes most of the system that it runs in: it is for image builds only")
    remove_packages()
    for folder in FOLDERS:
        remove(pathlib.Path(folder))
    for pattern in PATTERNS:
        for path in pathlib.Path("/").glob(pattern.lstrip("/")):
            remove(path)
    for path in pathlib.Path("/usr/share/doc").rglob("*"):
        if path.is_file() and path.name != "copyright":
            path.unlink()
    remove_from_standard_library()
    compile_standard_library()
    remove_special_modes()
    add_user()
    if missing := programs_without_their_libraries():
        sys.exit("prune.py removed what is needed:\n" + "\n".join(missing))


if __name__ == "__main__":
    main()
