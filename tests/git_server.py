"""A git server for tests: git's smart http protocol, every repository of one folder, read only.

    python3 git_server.py FOLDER PORT

Needs nothing but Python and git, so that it runs in a pod of the agent's image too, which has no
`git http-backend`. It is also a proxy to itself, whatever the host. What is special by its path:
/moved/ADDRESS redirects there, /private/ asks for a password, /stalled/REPOSITORY sends the first
half of what was asked for, and then nothing.
"""

from __future__ import annotations

import gzip
import os
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_SERVICE = "git-upload-pack"
_STALLED = "/stalled/"
_ADVERTISEMENT = b"001e# service=git-upload-pack\n0000"


class _Handler(BaseHTTPRequestHandler):
    server: GitServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/moved/"):
            self._refer(302, "Location", f"{parts.path.removeprefix('/moved/')}?{parts.query}")
            return
        if parts.path.startswith("/private"):
            self._refer(401, "WWW-Authenticate", 'Basic realm="git"')
            return
        repository = self._repository(parts.path, "/info/refs")
        if repository is None or parse_qs(parts.query).get("service") != [_SERVICE]:
            self.send_error(404)
            return
        answer = self._upload_pack(repository, b"", "--http-backend-info-refs")
        is_plain = "version=" not in self.headers.get("Git-Protocol", "")
        self._answer("advertisement", (_ADVERTISEMENT if is_plain else b"") + answer)

    def do_POST(self) -> None:
        repository = self._repository(urlsplit(self.path).path, f"/{_SERVICE}")
        if repository is None:
            self.send_error(404)
            return
        asked = self._body()
        if self.headers.get("Content-Encoding") == "gzip":
            asked = gzip.decompress(asked)
        answer = self._upload_pack(repository, asked)
        is_fetch = b"want " in asked
        self._answer("result", answer, half=is_fetch and urlsplit(self.path).path.startswith(_STALLED))

    def log_message(self, *args: object) -> None:
        pass

    def _repository(self, path: str, end: str) -> Path | None:
        if not path.endswith(end):
            return None
        found = self.server.folder / path.removesuffix(end).removeprefix(_STALLED).strip("/")
        return found if found.is_dir() else None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _upload_pack(self, repository: Path, asked: bytes, *more: str) -> bytes:
        env = os.environ | {"GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        command = ["git", "-c", "safe.directory=*", "upload-pack", "--stateless-rpc", *more, str(repository)]
        return subprocess.run(command, input=asked, env=env, capture_output=True, check=False).stdout

    def _refer(self, status: int, header: str, value: str) -> None:
        self.send_response(status)
        self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, kind: str, body: bytes, *, half: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"application/x-{_SERVICE}-{kind}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.rfile.read(1)  # until who asked is gone


class GitServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, *, host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__((host, port), _Handler)
        self.folder = folder
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.scheme = "https" if tls is not None else "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"


if __name__ == "__main__":
    GitServer(Path(sys.argv[1]), host="", port=int(sys.argv[2])).serve_forever()
