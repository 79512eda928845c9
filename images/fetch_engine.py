"""Downloads a release of terraform or tofu and checks it: the hash of the archive, and the signature of the hashes.

Standard library and gpg only, because it runs in three places: in the Dockerfile, in the cluster tool
(tests/cluster/programs.py), and by hand. It must never leave a program behind that wasn't checked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
TIMEOUT_S = 60


class Releases(NamedTuple):
    """Who publishes a program, where, and with which key. The files' names are the same everywhere."""

    program: str
    folder: str
    """The address of one version's files, with {version} in it."""
    signature: str
    """What is added to the name of the file that it signs."""
    key: pathlib.Path
    fingerprint: str


TERRAFORM = Releases(
    program="terraform",
    folder="https://releases.hashicorp.com/terraform/{version}",
    signature=".sig",
    # HashiCorp Security, https://www.hashicorp.com/security
    key=HERE / "hashicorp.asc",
    fingerprint="C874011F0AB405110D02105534365D9472D7468F",
)
TOFU = Releases(
    program="tofu",
    folder="https://github.com/opentofu/opentofu/releases/download/v{version}",
    signature=".gpgsig",  # .sig is cosign's
    # https://get.opentofu.org/opentofu.asc
    key=HERE / "opentofu.asc",
    fingerprint="E3E6E43D84CB852EADB0051D0C0AF313E5FD9F80",
)


class FetchFailed(Exception):
    """What failed, on which address or file, what to do."""


def download(url: str, path: pathlib.Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, OSError) as error:
        raise FetchFailed(f"download of {url} failed: {error}") from error


def check_signature(signed: pathlib.Path, signature: pathlib.Path, key: pathlib.Path, fingerprint: str) -> None:
    """Against this one key in an empty keyring: no other key that the machine knows counts."""
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--no-tty", "--quiet", "--no-autostart"]
        imported = subprocess.run([*gpg, "--import", str(key)], capture_output=True, text=True, check=False)
        if imported.returncode != 0:
            raise FetchFailed(f"gpg can't read the key {key}: {imported.stderr.strip()}")
        checked = subprocess.run(
            [*gpg, "--status-fd", "1", "--verify", str(signature), str(signed)],
            capture_output=True,
            text=True,
            check=False,
        )
    # VALIDSIG <key that signed> ... <primary key>: gpg's own words for "good, and by this key".
    lines = [line.split() for line in checked.stdout.splitlines()]
    valid = [words for words in lines if words[:2] == ["[GNUPG:]", "VALIDSIG"]]
    if checked.returncode != 0 or not any(words[-1] == fingerprint for words in valid):
        raise FetchFailed(
            f"{signed.name} is not signed by {fingerprint}: {checked.stderr.strip()}\n"
            "do not use the file; download it again, and if this stays so, report it"
        )


def check_hash(archive: pathlib.Path, hashes: pathlib.Path) -> None:
    expected = [
        line.split()[0]
        for line in hashes.read_text(encoding="ascii").splitlines()
        if line.split()[1:] == [archive.name]
    ]
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if expected != [actual]:
        raise FetchFailed(
            f"{archive.name} has SHA-256 {actual}, {hashes.name} says {' '.join(expected) or 'nothing'}: "
            "the download is broken; run it again"
        )


def fetch(releases: Releases, version: str, into: pathlib.Path, *, machine: str | None = None) -> None:
    """Writes the program to `into`, executable. Raises FetchFailed; then `into` is as it was."""
    machine = (machine or platform.machine()).lower()
    if machine not in MACHINES:
        raise FetchFailed(f"there is no release for the processor {machine}: only for {', '.join(sorted(MACHINES))}")
    named = f"{releases.program}_{version}"
    name = f"{named}_{sys.platform}_{MACHINES[machine]}.zip"
    if shutil.which("gpg") is None:
        raise FetchFailed("gpg is missing: install it (gnupg) to check the signature")
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        work = pathlib.Path(folder)
        hashes = work / f"{named}_SHA256SUMS"
        signature = work / f"{hashes.name}{releases.signature}"
        for file in (hashes.name, signature.name, name):
            download(f"{releases.folder.format(version=version)}/{file}", work / file)
        check_signature(hashes, signature, releases.key, releases.fingerprint)
        check_hash(work / name, hashes)
        with zipfile.ZipFile(work / name) as archive:
            archive.extract(releases.program, work)
        program = work / releases.program
        program.chmod(0o755)
        os.replace(program, into)


def main() -> None:
    known = {releases.program: releases for releases in (TERRAFORM, TOFU)}
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("program", choices=known)
    arguments.add_argument("--version", required=True)
    arguments.add_argument("--into", type=pathlib.Path, required=True)
    arguments.add_argument("--machine", help="as `uname -m` says it; without it, this one's")
    given = arguments.parse_args()
    releases = known[given.program]
    try:
        fetch(releases, given.version, given.into, machine=given.machine)
    except FetchFailed as failure:
        sys.exit(f"{given.program} {given.version}: {failure}")


if __name__ == "__main__":
    main()
