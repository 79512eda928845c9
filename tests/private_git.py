"""Private git servers for tests: `git http-backend` behind a password or a token, with or without TLS, and a real sshd.

The first serves every repository of one folder, and files, to who has what it asks for, and remembers who came with
what. /moved/ADDRESS redirects there; /stalled/REPOSITORY takes the request and never answers. Needs nothing but
Python, git and sshd, so that it runs in a pod, too.
"""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


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
        elif parts.path in self.server.files:
            self._say(200, body=self.server.files[parts.path])
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

    def __init__(
        self, folder: Path, *, asks_for: str, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        """`asks_for`: the header that lets in."""
        super().__init__((host, port), _Handler)
        self.folder = folder
        self.files: dict[str, bytes] = {}
        """By their path."""
        self.asks_for = asks_for
        self.asked: list[tuple[str, str]] = []
        """The path and the header of each request."""
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.scheme = "https" if tls is not None else "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"


def sshd_config(folder: Path, *, port: int, host: str) -> str:
    """`folder` has the keys: `host`, and in `authorized_keys` those that are let in."""
    settings = {
        "Port": port,
        "ListenAddress": host,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())
