"""images/fetch_engine.py against a release server and a signing key of our own."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
VERSION = "9.9.9"
ARCHIVE = f"program_{VERSION}_linux_amd64.zip"
ARCHIVE_FOR_ARM64 = f"program_{VERSION}_linux_arm64.zip"
HASHES = f"program_{VERSION}_SHA256SUMS"

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="needs gpg")


@pytest.fixture(scope="module")
def fetching() -> ModuleType:
    specification = importlib.util.spec_from_file_location("fetch_engine", PROJECT / "images/fetch_engine.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Signer:
    """A person with a key: signs, and gives the key away."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self._gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes", "--passphrase", ""]
        self._run("--quick-gen-key", "Release Signer <signer@example.org>", "ed25519", "sign", "never")
        listed = self._run("--with-colons", "--list-keys")
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
        self.key = home / "key.asc"
        self._run("--armor", "--output", str(self.key), "--export")

    def sign(self, file: Path) -> None:
        self._run("--output", f"{file}.signature", "--detach-sign", str(file))

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._gpg, *arguments], capture_output=True, text=True, check=True).stdout

    def end_agent(self) -> None:
        subprocess.run(["gpgconf", "--homedir", self._gpg[2], "--kill", "gpg-agent"], check=False)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signer, Signer]]:
    """The one who may sign releases, and another. A short path: gpg's sockets lie in it."""
    home = tmp_path_factory.mktemp("g")
    both = (Signer(home / "a"), Signer(home / "b"))
    yield both
    for signer in both:
        signer.end_agent()


@pytest.fixture
def release(tmp_path: Path, signers: tuple[Signer, Signer]) -> Path:
    """What a server offers for VERSION, as it should be."""
    folder = tmp_path / "releases" / VERSION
    folder.mkdir(parents=True)
    for name in (ARCHIVE, ARCHIVE_FOR_ARM64):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("LICENSE.txt", "license")
            archive.writestr("program", f"#!/bin/sh\necho the program of {name}\n")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ARCHIVE_FOR_ARM64, ARCHIVE)}
    (folder / HASHES).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    signers[0].sign(folder / HASHES)
    return folder


@pytest.fixture
def fetch(fetching: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program will lie."""
    monkeypatch.setattr(fetching.sys, "platform", "linux")
    return tmp_path / "program"


def run(
    fetching: ModuleType,
    release: Path,
    signer: Signer,
    into: Path,
    *,
    fingerprint: str = "",
    machine: str = "x86_64",
) -> None:
    releases = fetching.Releases(
        program="program",
        folder=f"{release.parent.as_uri()}/{{version}}",
        signature=".signature",
        key=signer.key,
        fingerprint=fingerprint or signer.fingerprint,
    )
    fetching.fetch(releases, VERSION, into, machine=machine)


def test_a_signed_release_becomes_an_executable_program(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    run(fetching, release, signers[0], fetch)

    assert subprocess.run([fetch], capture_output=True, text=True, check=True).stdout == f"the program of {ARCHIVE}\n"


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_a_machine_of_arm64_gets_the_release_for_it(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path, machine: str
) -> None:
    run(fetching, release, signers[0], fetch, machine=machine)

    said = subprocess.run([fetch], capture_output=True, text=True, check=True).stdout
    assert said == f"the program of {ARCHIVE_FOR_ARM64}\n"


def test_a_machine_that_has_no_release_is_told_so(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    with pytest.raises(fetching.FetchFailed, match="no release for the processor riscv64"):
        run(fetching, release, signers[0], fetch, machine="riscv64")


def test_an_archive_with_another_hash_is_refused(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    with (release / ARCHIVE).open("ab") as file:
        file.write(b"x")

    with pytest.raises(fetching.FetchFailed, match="SHA-256"):
        run(fetching, release, signers[0], fetch)
    assert not fetch.exists()


def test_hashes_changed_after_signing_are_refused(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    with (release / HASHES).open("a") as file:
        file.write(f"{'1' * 64}  more.zip\n")

    with pytest.raises(fetching.FetchFailed, match="not signed by"):
        run(fetching, release, signers[0], fetch)
    assert not fetch.exists()


def test_a_signature_of_another_key_is_refused(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    (release / f"{HASHES}.signature").unlink()
    signers[1].sign(release / HASHES)

    with pytest.raises(fetching.FetchFailed, match="not signed by"):
        run(fetching, release, signers[0], fetch)


def test_a_good_signature_by_a_key_with_another_fingerprint_is_refused(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    with pytest.raises(fetching.FetchFailed, match="not signed by"):
        run(fetching, release, signers[0], fetch, fingerprint=signers[1].fingerprint)


def test_a_release_that_is_not_there_is_named_in_the_error(
    fetching: ModuleType, release: Path, signers: tuple[Signer, Signer], fetch: Path
) -> None:
    (release / ARCHIVE).unlink()

    with pytest.raises(fetching.FetchFailed, match=ARCHIVE):
        run(fetching, release, signers[0], fetch)


@pytest.mark.parametrize("maker", ["TERRAFORM", "TOFU"])
def test_the_key_in_the_project_is_its_makers(fetching: ModuleType, tmp_path: Path, maker: str) -> None:
    releases = getattr(fetching, maker)
    shown = subprocess.run(
        ["gpg", "--homedir", tmp_path, "--batch", "--with-colons", "--show-keys", releases.key],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    prints = [line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr")]
    assert prints[0] == releases.fingerprint
