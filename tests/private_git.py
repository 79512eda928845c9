"""Private git servers for tests: `git http-backend` behind a password or a token, with or without TLS, and a real sshd.

Both serve every repository of one folder to who has what they ask for, and remember who came with what.
/moved/ADDRESS of the first redirects there; /stalled/REPOSITORY takes the request and never answers.
"""

from __future__ import annotations

import base64
import getpass
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.backends import a_free_port, until_listening
from tests.cluster import debian


def basic(username: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    server: PrivateGitServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        shown = self.headers.get("Authorization", "")
        self.server.asked.append((parts.path, shown))
        if parts.path.startswith("/moved/"):
            self._say(302, ("Location", f"{parts.path.removeprefix('/moved/')}?{parts.query}"))
        elif shown != self.server.asks_for:
            self._say(401, ("WWW-Authenticate", 'Basic realm="git"'))
        elif parts.path.startswith("/stalled/"):
            self.rfile.read(1)  # until who asked is gone
        else:
            self._backend(parts.path, parts.query)

    def _backend(self, path: str, query: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        env = os.environ | {
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self._say(int(headers.pop("Status", "200").split()[0]), *headers.items(), body=content)

    def _say(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class PrivateGitServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, *, asks_for: str, tls: ssl.SSLContext | None = None) -> None:
        """`asks_for`: the header that lets in."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asks_for = asks_for
        self.asked: list[tuple[str, str]] = []
        """The path and the header of each request."""
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.scheme = "https" if tls is not None else "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"


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
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
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
