"""Downloads a terraform release and checks it: the hash of the archive, and the signature of the hashes.

Standard library and gpg only, because it runs in three places: in the Dockerfile, in the cluster tool
(tests/cluster/terraform.py), and by hand. It must never leave a program behind that wasn't checked.
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

RELEASES = "https://releases.hashicorp.com/terraform"
# HashiCorp Security, https://www.hashicorp.com/security
KEY_FINGERPRINT = "C874011F0AB405110D02105534365D9472D7468F"
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
TIMEOUT_S = 60


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


def fetch(version: str, key: pathlib.Path, into: pathlib.Path, *, releases: str = RELEASES,
          fingerprint: str = KEY_FINGERPRINT, machine: str | None = None) -> None:  # fmt: skip
    """Writes the program to `into`, executable. Raises FetchFailed; then `into` is as it was."""
    machine = (machine or platform.machine()).lower()
    if machine not in MACHINES:
        raise FetchFailed(f"there is no release for the processor {machine}: only for {', '.join(sorted(MACHINES))}")
    architecture = MACHINES[machine]
    name = f"terraform_{version}_{sys.platform}_{architecture}.zip"
    if shutil.which("gpg") is None:
        raise FetchFailed("gpg is missing: install it (gnupg) to check terraform's signature")
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        work = pathlib.Path(folder)
        hashes = work / f"terraform_{version}_SHA256SUMS"
        for file in (hashes.name, f"{hashes.name}.sig", name):
            download(f"{releases}/{version}/{file}", work / file)
        check_signature(hashes, work / f"{hashes.name}.sig", key, fingerprint)
        check_hash(work / name, hashes)
        with zipfile.ZipFile(work / name) as archive:
            archive.extract("terraform", work)
        program = work / "terraform"
        program.chmod(0o755)
        os.replace(program, into)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--version", required=True)
    arguments.add_argument("--key", type=pathlib.Path, required=True)
    arguments.add_argument("--into", type=pathlib.Path, required=True)
    arguments.add_argument("--machine", help="as `uname -m` says it; without it, this one's")
    given = arguments.parse_args()
    try:
        fetch(given.version, given.key, given.into, machine=given.machine)
    except FetchFailed as failure:
        sys.exit(f"terraform {given.version}: {failure}")


if __name__ == "__main__":
    main()
