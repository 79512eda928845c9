"""Runs in a pod of the git server's image: two private repositories and an archive, over https and ssh.

    python3 private_git_server.py FOLDER, which has the files of the repositories

Keys, certificate and credentials are made here, where the address is known: what is to be known of them is in
/tmp/known.json. `network` has a branch for each way to come by its module: `https` and `ssh` take it from `modules`,
by that way, and in `submodule` that is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.agent_terraform.certificates import an_authority, server_context
from tests.git_repository import Repository
from tests.private_git import PrivateGitServer, basic, sshd_config

HTTPS_PORT, SSH_PORT = 8080, 2222
FOLDER = Path("/tmp/git")
USERNAME = "robot"
_OWN_MODULE = "./modules/greeting"


def a_key() -> tuple[str, str]:
    """The private one as ssh-keygen writes it, and the public one."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def repositories(given: Path, urls: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """The commit of each branch of `network`, and `modules` as an archive."""
    modules, network = (Repository.make(FOLDER / name) for name in ("modules", "network"))
    greeting = {"greeting/main.tf": (given / "module.tf").read_text()}
    of_modules = modules.commit(greeting)
    modules.git("tag", "v1")
    root, commits = (given / "main.tf").read_text(), {}
    for way, url in urls.items():
        network.git("checkout", "--quiet", "--orphan", way)
        text = root.replace("@MODULE@", f"git::{url}/modules//greeting?ref=v1")
        commits[way] = network.commit({"envs/prod/main.tf": text})
    network.git("checkout", "--quiet", "--orphan", "submodule")
    settings = '[submodule "modules"]\n\tpath = envs/prod/modules\n\turl = ../modules\n'
    network.commit({"envs/prod/main.tf": root.replace("@MODULE@", _OWN_MODULE), ".gitmodules": settings})
    network.git("update-index", "--add", "--cacheinfo", f"160000,{of_modules},envs/prod/modules")
    network.git("commit", "--quiet", "--message=x")
    commits["submodule"] = network.git("rev-parse", "HEAD")
    packed = subprocess.run(
        ["git", "-C", str(modules.folder), "archive", "--format=tar.gz", "--prefix=modules-1/", "v1"],
        capture_output=True,
        check=True,
    )
    return commits, packed.stdout


def main() -> None:
    FOLDER.mkdir()
    address = os.environ["POD_IP"]
    host = f"[{address}]" if ":" in address else address
    urls = {"https": f"https://{host}:{HTTPS_PORT}", "ssh": f"ssh://{host}:{SSH_PORT}{FOLDER}"}
    commits, archive = repositories(Path(sys.argv[1]), urls)

    keys = Path("/tmp/keys")
    keys.mkdir(mode=0o700)
    (host_key, host_public), (client, client_public), (stranger, _) = a_key(), a_key(), a_key()
    (keys / "host").write_text(host_key)
    (keys / "host").chmod(0o600)
    (keys / "authorized_keys").write_text(client_public + "\n")
    (keys / "sshd_config").write_text(sshd_config(keys, port=SSH_PORT, host=address))
    # With its whole path: it starts itself for each connection.
    subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(keys / "sshd_config")])

    password = secrets.token_urlsafe(16) + ' "\\$(x)/@:'  # what has a meaning to git, shells or addresses
    authority = an_authority(keys, "git", address=address)
    asks_for = basic(USERNAME, password)
    server = PrivateGitServer(FOLDER, asks_for=asks_for, tls=server_context(authority), host=address, port=HTTPS_PORT)
    server.files["/modules-1.tar.gz"] = archive
    known = {
        "urls": urls,
        "commits": commits,
        "sha256": hashlib.sha256(archive).hexdigest(),
        "username": USERNAME,
        "password": password,
        "ca": authority.ca,
        "identity": client,
        "stranger": stranger,
        "known_hosts": f"[{address}]:{SSH_PORT} {host_public}\n",
        "of_another_host": f"[{address}]:{SSH_PORT} {client_public}\n",
    }
    Path("/tmp/known.json").write_text(json.dumps(known))
    server.serve_forever()


if __name__ == "__main__":
    main()
