"""In a container of the agent's image: the agent's own fetch, over https, from a server with a private CA.

Expects git_server.py, ca.pem and server.pem in /work; prints what the module holds.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path

from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.git import Git
from terrahalt_protocol.messages import GitSource

WORK = Path("/work")
COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=x")


async def fetch(url: str) -> None:
    run = WORK / "run"
    for folder in (run, run / "module", run / "logs"):
        folder.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(WORK), "SSL_CERT_FILE": str(WORK / "ca.pem")}
    fetched = await Git(Descendants()).fetch(GitSource(url=url), into=run / "module", repository=run / "git", env=env)
    print(*sorted(path.name for path in fetched.module.iterdir()))


def main() -> None:
    sys.path.insert(0, str(WORK))
    from git_server import GitServer  # type: ignore[import-not-found]

    repository = WORK / "repositories" / "network"
    repository.mkdir(parents=True)
    (repository / "main.tf").touch()
    for arguments in (("init", "--quiet"), ("add", "main.tf"), COMMIT):
        subprocess.run(["git", "-C", str(repository), *arguments], check=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(WORK / "server.pem")
    server = GitServer(repository.parent, host="127.0.0.1", tls=tls)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asyncio.run(fetch(f"{server.url}/network"))


if __name__ == "__main__":
    main()
