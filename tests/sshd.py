"""OpenSSH's server on this machine, for tests of git over ssh: every repository, for whoever has the right key."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.backends import a_free_port, until_listening
from tests.cluster import debian
from tests.private_git import sshd_config


@dataclass
class SshServer:
    port: int
    folder: Path
    """Of its keys: `client` is let in, `stranger` is not, `silent` gets no answer once it is in."""
    log: Path
    user: str = field(default_factory=getpass.getuser)

    def key(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def known_hosts(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.key('host.pub')}"

    def url(self, repository: Path) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}{repository}"


def make_key(file: Path, passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "x", "-f", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@contextmanager
def an_ssh_server(folder: Path) -> Iterator[SshServer]:
    """OpenSSH's own, as the user that the tests run as."""
    packages = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
    debian.install(packages, why="the tests of git over ssh")
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "client", "stranger", "silent"):
        make_key(folder / name)
    silent = f'command="cat > /dev/null" {(folder / "silent.pub").read_text()}'
    (folder / "authorized_keys").write_text((folder / "client.pub").read_text() + silent)
    port, log = a_free_port(), folder / "sshd.log"
    (folder / "sshd_config").write_text(sshd_config(folder, port=port, host="127.0.0.1"))
    with log.open("wb") as output:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=output
        )
    try:
        until_listening(port, process)
        yield SshServer(port, folder, log)
    finally:
        process.terminate()
        process.wait()
