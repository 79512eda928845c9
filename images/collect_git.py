"""Copies git, ssh and the libraries they link to into a folder, without what the image has already.

For the Dockerfile. git's package pulls in perl, its commands in perl included; the agent and terraform
run only `git init`, `clone`, `fetch`, `checkout` and `submodule`, which are C and shell. It must never
copy a file that is in the list it is given: that layer would hold it twice.

The names of the copied files go to /usr/share/terrahalt/git-files, for what measures the image, and the
packages they are of to /var/lib/dpkg/status.d, where scanners look.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess

INFO = pathlib.Path("/var/lib/dpkg/info")
STATUS = pathlib.Path("/var/lib/dpkg/status")
MAIN_PROGRAM = "/usr/bin/git"
WANTED = re.compile(r"/usr/bin/(git|ssh)|/usr/lib/git-core/.*|/usr/share/git-core/templates/.*|/etc/ssh/ssh_config")
# Servers, mail, and pushing without git's own protocols.
UNUSED = (
    "git-daemon", "git-http-backend", "git-http-fetch", "git-http-push", "git-imap-send", "git-instaweb",
    "git-shell", "git-subtree", "scalar",
)  # fmt: skip
NAME_LIST = pathlib.Path("usr/share/terrahalt/git-files")


def files_of(package: str) -> list[str]:
    lists = [*INFO.glob(f"{package}.list"), *INFO.glob(f"{package}:*.list")]
    return [line for path in lists for line in path.read_text(encoding="utf-8").splitlines()]


def is_wanted(path: str) -> bool:
    if not WANTED.fullmatch(path) or os.path.basename(path) in UNUSED or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"perl" not in file.read(64).split(b"\n")[0]


def libraries_of(paths: list[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        found |= {word for word in listed.split() if word.startswith("/")}
    return found


def with_link_targets(paths: set[str]) -> set[str]:
    """Each link and the file behind it, both by their real folder (/lib is a link to /usr/lib)."""
    complete = set()
    for path in paths:
        folder, name = os.path.split(path)
        complete |= {os.path.join(os.path.realpath(folder), name), os.path.realpath(path)}
    return complete


def copy(path: str, into: pathlib.Path) -> None:
    target = into / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(path):
        target.symlink_to(os.readlink(path))
    elif path != MAIN_PROGRAM and os.path.samefile(path, MAIN_PROGRAM):
        target.symlink_to(MAIN_PROGRAM)
    else:
        shutil.copy(path, target)


def write_packages(copied: set[str], into: pathlib.Path) -> None:
    folder = into / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True)
    for stanza in STATUS.read_text(encoding="utf-8").split("\n\n"):
        name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        if name and with_link_targets(set(files_of(name[1]))) & copied:
            (folder / name[1]).write_text(stanza.strip("\n") + "\n", encoding="utf-8")
            notice = f"/usr/share/doc/{name[1]}/copyright"
            if os.path.exists(notice):
                copy(notice, into)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--listed", type=pathlib.Path, required=True)
    arguments.add_argument("--into", type=pathlib.Path, required=True)
    given = arguments.parse_args()
    present = set(given.listed.read_text(encoding="utf-8").splitlines())
    wanted = [path for package in ("git", "openssh-client") for path in files_of(package) if is_wanted(path)]
    copied = with_link_targets({*wanted, *libraries_of(wanted)}) - present
    for path in sorted(copied):
        copy(path, given.into)
    write_packages(copied, given.into)
    names = given.into / NAME_LIST
    names.parent.mkdir(parents=True)
    files = sorted(str(path.relative_to(given.into)) for path in given.into.rglob("*") if not path.is_dir())
    names.write_text("\n".join(files) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
