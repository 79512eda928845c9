"""Sources from archives: real servers, real packers, and what somebody may have made up inside of one."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import pytest

from terrahalt_agent.adapters import archive as adapter
from terrahalt_agent.adapters.archive import Archives
from terrahalt_agent.adapters.backend import LocalBackend
from terrahalt_agent.adapters.cluster_api import ApiServer, ClusterApi
from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.fetched_tree import Fetched
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.adapters.kept_plans import PlanArchive
from terrahalt_agent.adapters.workdir import Environment, PreparationError, Workdir
from terrahalt_agent.core.access import Access
from terrahalt_agent.core.archive import Contents
from terrahalt_agent.core.source import ACCESS_DENIED, CREDENTIALS_INVALID, SERVER_NOT_TRUSTED, SourceError
from terrahalt_protocol.messages import Approval, ArchiveSource, ConfigFrom, Outcome, Source
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority, an_authority, server_context
from tests.agent_terraform.harness import AgentProcess, Operator, a_start, an_agent, an_operator, api_access, until
from tests.agent_terraform.modules import local_exec
from tests.private_git import basic
from tests.serving import serving

OUTPUT = b'output "said" { value = "hello" }\n'
USERNAME, PASSWORD, TOKEN = "robot-of-team-a", "the password: of the robot", "token-of-the-robot"
Entry = tuple[tarfile.TarInfo, bytes]
Fetch = Callable[..., Awaitable[Fetched]]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        shown = self.headers.get("Authorization", "")
        self.server.asked.append((self.path, shown))
        if path.startswith("/moved/"):
            self._begin(302, 0, ("Location", self.path.removeprefix("/moved/")))
        elif shown != self.server.asks_for:
            self._begin(401, 0, ("WWW-Authenticate", 'Basic realm="files"'))
        elif path.startswith("/half/"):
            content = self.server.files[path.removeprefix("/half")]
            self._begin(200, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.server.is_half.set()
            self.rfile.read(1)  # until who asked is gone
        elif (found := self.server.files.get(path)) is None:
            self._begin(404, 0)
        else:
            self._begin(200, len(found))
            self.wfile.write(found)

    def log_message(self, *args: object) -> None:
        pass

    def _begin(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(length))):
            self.send_header(name, value)
        self.end_headers()


class FileServer(ThreadingHTTPServer):
    """/moved/ADDRESS redirects there, /half/FILE sends the half of it and then nothing; it is a proxy to itself too."""

    daemon_threads = True

    def __init__(self, *, asks_for: str = "", tls: SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asks_for = asks_for
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        """What of each request: the path and the credentials."""
        self.is_half = threading.Event()
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.server_port}"

    def put(self, content: bytes, path: str = "/network") -> ArchiveSource:
        self.files[path] = content
        return ArchiveSource(url=f"{self.url}{path}", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer()) as started:
        yield started


@pytest.fixture
def fetch(server: FileServer, tmp_path: Path) -> Fetch:
    async def fetch(
        given: ArchiveSource | bytes,
        access: Access | None = None,
        env: dict[str, str] | None = None,
        path: str = "",
        **bounds: Any,
    ) -> Fetched:
        source = given if isinstance(given, ArchiveSource) else server.put(given)
        if path:
            source = ArchiveSource(url=source.url, sha256=source.sha256, path=path)
        (tmp_path / "run/module").mkdir(parents=True)
        where = {"into": tmp_path / "run/module", "file": tmp_path / "run/archive"}
        return await Archives(**bounds).fetch(source, access or Access(), env=env or {}, **where)

    return fetch


def an_entry(name: str, content: bytes = b"x", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def a_tar(*entries: Entry, **how: Any) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", **how) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def a_zip(*entries: Entry, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Of entries of a tar, as a packer on Unix writes them."""
    packed = io.BytesIO()
    kinds = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.DIRTYPE: stat.S_IFDIR}
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
        warnings.simplefilter("ignore")  # two entries of one name are what is tried
        for entry, content in entries:
            info = zipfile.ZipInfo(entry.name + ("/" if entry.isdir() else ""))
            info.external_attr = (kinds.get(entry.type, stat.S_IFREG) | entry.mode) << 16
            info.compress_type = method
            archive.writestr(info, entry.linkname.encode() if entry.issym() else content)
    return packed.getvalue()


both = pytest.mark.parametrize("pack", [a_tar, a_zip], ids=["tar", "zip"])
Pack = Callable[..., bytes]


def texts(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def holding(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


# -- what is fetched


@both
async def test_files_directories_and_links_come_and_nothing_else_is_left(
    fetch: Fetch, tmp_path: Path, pack: Pack
) -> None:
    packed = pack(
        an_entry("./", b"", type=tarfile.DIRTYPE),
        an_entry("./live", b"", type=tarfile.SYMTYPE, linkname="envs/prod"),
        an_entry("./envs/prod/main.tf", OUTPUT),
        an_entry("./envs/prod/run.sh", b"#!/bin/sh\n", mode=0o6755),
        an_entry("./empty", b"", type=tarfile.DIRTYPE),
        an_entry("modules/net/main.tf", b"net"),
    )
    fetched = await fetch(packed, path="live")
    assert fetched == Fetched(tmp_path / "run/module/envs/prod")
    assert texts(fetched.module) == {"main.tf": OUTPUT, "run.sh": b"#!/bin/sh\n"}
    modes = {name: stat.S_IMODE((fetched.module / name).stat().st_mode) for name in ("main.tf", "run.sh")}
    assert modes == {"main.tf": 0o644, "run.sh": 0o755}
    assert (fetched.module / "../../modules/net/main.tf").read_text() == "net"
    assert (tmp_path / "run/module/empty").is_dir()
    assert names(tmp_path / "run") == {"module"}


async def test_what_it_is_is_told_by_its_content_and_not_by_its_name(fetch: Fetch, server: FileServer) -> None:
    await fetch(server.put(a_zip(an_entry("main.tf")), "/network.tar.gz"))


@pytest.mark.parametrize("content", [b"", b"main.tf", b"BZh91AY", b"PK\x03", b"\x1f\x8b", b"PK\x05\x06" + bytes(18)])
async def test_what_is_neither_or_empty_or_torn_is_told(fetch: Fetch, content: bytes) -> None:
    with pytest.raises(SourceError, match=r"can't be unpacked|no files"):
        await fetch(content)


@both
@pytest.mark.parametrize("cut", [30, 0.5])
async def test_what_ends_too_early_is_told(fetch: Fetch, pack: Pack, cut: float) -> None:
    whole = pack(*(an_entry(f"{n}.tf", bytes(range(256)) * 20) for n in range(20)))
    with pytest.raises(SourceError, match="can't be unpacked"):
        await fetch(whole[: int(cut if cut > 1 else len(whole) * cut)])


async def test_a_directory_that_is_not_there_is_told(fetch: Fetch) -> None:
    with pytest.raises(SourceError, match=r"source\.archive\.path 'envs' is no directory of the archive: correct it"):
        await fetch(a_tar(an_entry("main.tf")), path="envs")


async def test_of_another_file_than_the_task_means_nothing_is_opened(
    fetch: Fetch, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.put(a_tar(an_entry("main.tf")))
    server.files["/network"] = a_tar(an_entry("evil.tf"))
    monkeypatch.setattr(Archives, "_unpack", None)
    other = hashlib.sha256(server.files["/network"]).hexdigest()
    with pytest.raises(SourceError, match=f"has the sha256 {other}, and source.archive.sha256 is {source.sha256}"):
        await fetch(source)
    assert texts(tmp_path / "run/module") == {}


# -- what must not come with it


@both
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([an_entry("/etc/passwd")], "the path must be relative"),
        ([an_entry("../x")], "must not hold '..'"),
        ([an_entry("a/../../x")], "must not hold '..'"),
        ([an_entry("a//b")], "must not hold"),
        ([an_entry("a\\..\\x")], "backslash"),
        ([an_entry("a\nb")], "control character"),
        ([an_entry("a/" * 600 + "b")], "too long"),
        ([an_entry("a" * 256)], "more than 255 bytes"),
        ([an_entry("a.tf"), an_entry("a.tf")], "another entry has the same name"),
        ([an_entry("a.tf"), an_entry("./a.tf")], "another entry has the same name"),
        ([an_entry("a"), an_entry("a/b")], "'a' is no directory of the archive"),
        ([an_entry("a/b"), an_entry("a")], "another entry has the same name"),
        ([an_entry("a", b"", type=tarfile.DIRTYPE), an_entry("a")], "another entry has the same name"),
        ([an_entry("a", b"", type=tarfile.SYMTYPE, linkname="/tmp"), an_entry("a/b")], "'a' is no directory"),
        ([an_entry("a/b"), an_entry("a", b"", type=tarfile.SYMTYPE, linkname="/tmp")], "the same name"),
        ([an_entry("a", b"", type=tarfile.SYMTYPE, linkname="/etc"), an_entry("b")], "leads out of the source"),
        ([an_entry("a/b", b"", type=tarfile.SYMTYPE, linkname="../../x"), an_entry("b")], "leads out of the source"),
        (
            [
                an_entry("a", b"", type=tarfile.SYMTYPE, linkname="."),
                an_entry("b", b"", type=tarfile.SYMTYPE, linkname="a/../.."),
            ],
            "leads out of the source",
        ),
        ([an_entry("a", b"", type=tarfile.FIFOTYPE)], "no plain file, directory or symbolic link"),
        ([an_entry(".terraform/modules/modules.json")], "terraform's or the agent's own"),
        ([an_entry("errored.tfstate")], "terraform's or the agent's own"),
        ([an_entry("zz_override.tf", b'terraform { backend "s3" {} }')], "overrides the backend"),
    ],
)
async def test_what_no_archive_may_hold_is_refused_and_nothing_is_written_outside(
    fetch: Fetch, tmp_path: Path, pack: Pack, entries: list[Entry], words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        await fetch(pack(*entries))
    assert names(tmp_path) == {"run"}
    assert names(tmp_path / "run") <= {"archive", "archive.tar", "module"}


@pytest.mark.parametrize(
    "entry",
    [
        an_entry("a", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        an_entry("a", b"", type=tarfile.LNKTYPE, linkname="main.tf"),
        an_entry("a", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        an_entry("a", b"", type=tarfile.BLKTYPE, devmajor=8),
    ],
    ids=["hard link out", "hard link", "character device", "block device"],
)
async def test_devices_and_hard_links_of_a_tar_are_refused(fetch: Fetch, entry: Entry) -> None:
    with pytest.raises(SourceError, match="'a': it is no plain file, directory or symbolic link"):
        await fetch(a_tar(an_entry("main.tf"), entry))


async def test_a_sparse_file_is_refused_whatever_size_it_claims(fetch: Fetch) -> None:
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "9" * 12,
    }
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
    with pytest.raises(SourceError, match="no plain file"):
        await fetch(a_tar(an_entry("a", content, pax_headers=headers), format=tarfile.PAX_FORMAT))


async def test_an_encrypted_entry_and_another_packing_are_refused(fetch: Fetch, tmp_path: Path) -> None:
    locked = bytearray(a_zip(an_entry("main.tf")))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + offset] |= 1
    with pytest.raises(SourceError, match=r"'main\.tf': it is encrypted"):
        await fetch(bytes(locked))
    (tmp_path / "run").rename(tmp_path / "before")
    with pytest.raises(SourceError, match=r"'main\.tf': it is packed by another method than deflate"):
        await fetch(a_zip(an_entry("main.tf"), method=zipfile.ZIP_LZMA))


# -- bounds


async def test_a_file_that_is_too_large_is_given_up_while_it_comes(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it has more than 1000 bytes: make it smaller"):
        await fetch(bytes(2000), max_packed_bytes=1000)
    assert (tmp_path / "run/archive").stat().st_size <= 1000


@both
async def test_what_grows_over_its_bound_once_it_is_unpacked_is_given_up(
    fetch: Fetch, tmp_path: Path, pack: Pack
) -> None:
    packed = pack(an_entry("a", bytes(40_000_000)))
    assert len(packed) < 100_000
    with pytest.raises(SourceError, match="more than 3000000 bytes once it is unpacked"):
        await fetch(packed, max_bytes=3_000_000)
    assert size(tmp_path) < 4_000_000


@both
@pytest.mark.parametrize("names", [[f"{n}.tf" for n in range(21)], ["/".join("abcdefghijklmnopqrstu")]])
async def test_too_many_files_or_directories_are_given_up(fetch: Fetch, pack: Pack, names: list[str]) -> None:
    with pytest.raises(SourceError, match="more than 20 files and directories"):
        await fetch(pack(*(an_entry(name) for name in names)), max_files=20)


async def test_a_zip_whose_list_alone_would_fill_the_memory_is_given_up(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_MAX_LIST_BYTES", 100_000)
    packed = a_zip(*(an_entry(f"{n:0200}", b"") for n in range(1000)))
    with pytest.raises(SourceError, match="list of its files, or a header, that is too long"):
        await fetch(packed)


async def test_a_tar_whose_header_alone_would_fill_the_memory_is_given_up(fetch: Fetch) -> None:
    packed = a_tar(an_entry("a", pax_headers={"comment": "x" * 5_000_000}), format=tarfile.PAX_FORMAT)
    with pytest.raises(SourceError, match="list of its files, or a header, that is too long"):
        await fetch(packed)


async def test_headers_that_follow_headers_for_ever_are_no_archive(fetch: Fetch) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    with pytest.raises(SourceError, match="can't be unpacked"):
        await fetch(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024)))


async def test_a_server_that_stops_in_the_middle_is_given_up_after_the_bound(fetch: Fetch, server: FileServer) -> None:
    source = server.put(a_tar(an_entry("main.tf")))
    half = ArchiveSource(url=f"{server.url}/half/network", sha256=source.sha256)
    with pytest.raises(SourceError, match="it took more than 1 s: check that the server answers"):
        await fetch(half, within_s=1.0)


# -- who is asked, and who is shown what


@contextmanager
def secure(folder: Path, asks_for: str) -> Iterator[tuple[FileServer, str]]:
    """And the authority that has signed its certificate."""
    folder.mkdir(exist_ok=True)
    authority = an_authority(folder, "files")
    with serving(FileServer(asks_for=asks_for, tls=server_context(authority))) as started:
        yield started, authority.ca


@pytest.mark.parametrize("way", ["password", "token"])
async def test_who_asks_shows_what_the_secret_holds(fetch: Fetch, tmp_path: Path, way: str) -> None:
    asks_for = basic(USERNAME, PASSWORD) if way == "password" else f"Bearer {TOKEN}"
    with secure(tmp_path, asks_for) as (server, ca):
        shown = {"username": USERNAME, "password": PASSWORD} if way == "password" else {"token": TOKEN}
        await fetch(server.put(a_tar(an_entry("main.tf"))), Access("robot", ca=ca, **shown))


async def test_a_wrong_password_is_told_with_the_secret_to_look_at(fetch: Fetch, tmp_path: Path) -> None:
    with secure(tmp_path, basic(USERNAME, PASSWORD)) as (server, ca):
        found = server.put(a_tar(an_entry("main.tf")))
        source = ArchiveSource(url=found.url, sha256=found.sha256, secret="robot")
        with pytest.raises(SourceError, match="HTTP 401: check whether what is in Secret robot may read it") as caught:
            await fetch(source, Access("robot", username=USERNAME, password="another one", ca=ca))
    assert caught.value.reason == ACCESS_DENIED


async def test_a_server_that_redirects_may_send_to_another_one_which_is_shown_nothing(
    fetch: Fetch, server: FileServer, tmp_path: Path
) -> None:
    with secure(tmp_path, f"Bearer {TOKEN}") as (first, ca):
        context = server_context(Authority(ca, tmp_path / "files.pem"))
        with serving(FileServer(tls=context)) as second:
            packed = second.put(a_tar(an_entry("main.tf")))
            url = f"{first.url}/moved//moved/{second.url}/network?signature=1"
            await fetch(ArchiveSource(url=url, sha256=packed.sha256), Access("robot", token=TOKEN, ca=ca))
    assert [shown for _, shown in first.asked] == [f"Bearer {TOKEN}"] * 2
    assert second.asked == [("/network?signature=1", "")]


async def test_nobody_is_sent_on_from_https_to_http_or_for_ever(
    fetch: Fetch, server: FileServer, tmp_path: Path
) -> None:
    with secure(tmp_path, "") as (first, ca):
        packed = server.put(a_tar(an_entry("main.tf")))
        url = f"{first.url}/moved/{server.url}/network"
        with pytest.raises(SourceError, match="sends on to what is not asked, 'http://127"):
            await fetch(ArchiveSource(url=url, sha256=packed.sha256), Access(ca=ca))
    assert server.asked == []
    (tmp_path / "run").rename(tmp_path / "before")
    url = server.url + "/moved/" * 7 + "/network"
    with pytest.raises(SourceError, match="sent on more than 5 times"):
        await fetch(ArchiveSource(url=url, sha256=packed.sha256))


async def test_an_authority_is_that_of_the_source_or_else_of_terraforms_environment(
    fetch: Fetch, tmp_path: Path
) -> None:
    with secure(tmp_path, "") as (server, ca):
        (tmp_path / "ca.pem").write_text(ca)
        env = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        packed = server.put(a_tar(an_entry("main.tf")))
        await fetch(packed, env=env)
        (tmp_path / "run").rename(tmp_path / "before")
        (tmp_path / "other").mkdir()
        other = an_authority(tmp_path / "other").ca
        for access in (Access(), Access(ca=other)):
            with pytest.raises(SourceError, match=r"source\.archive\.caRef") as caught:
                await fetch(packed, access, env=env if access.ca else None)
            assert caught.value.reason == SERVER_NOT_TRUSTED
            (tmp_path / "run").rename(tmp_path / f"before-{bool(access.ca)}")
        with pytest.raises(SourceError, match="can't be read") as caught:
            await fetch(packed, Access(ca="no certificate"))
        assert caught.value.reason == CREDENTIALS_INVALID


async def test_the_proxy_of_terraforms_environment_is_asked(fetch: Fetch, server: FileServer) -> None:
    packed = server.put(a_tar(an_entry("main.tf")), "/network")
    source = ArchiveSource(url="http://files.invalid/network", sha256=packed.sha256)
    server.files["http://files.invalid/network"] = server.files["/network"]
    await fetch(source, env={"http_proxy": server.url})
    assert [path for path, _ in server.asked] == ["http://files.invalid/network"]


async def test_a_server_or_a_file_that_is_not_there_is_told(fetch: Fetch, server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"check source\.archive\.url, and that the agent's pod can reach it"):
        await fetch(ArchiveSource(url="http://127.0.0.1:1/a?token=hidden", sha256="0" * 64))
    (tmp_path / "run").rename(tmp_path / "before")
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:[0-9]+/a could not be used: HTTP 404") as caught:
        await fetch(ArchiveSource(url=f"{server.url}/a?token=hidden", sha256="0" * 64))
    assert "hidden" not in str(caught.value)


async def test_a_server_that_speaks_something_else_is_told_without_what_the_address_lets_in_with(fetch: Fetch) -> None:
    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(SourceError, match=r"check source\.archive\.url") as caught:
            await fetch(ArchiveSource(url=f"http://127.0.0.1:{port}/a?token=hidden", sha256="0" * 64))
    assert "hidden" not in str(caught.value)


# -- the agent


@asynccontextmanager
async def a_stage(tmp_path: Path, authority: Authority, **values: str) -> AsyncIterator[tuple[AgentProcess, Operator]]:
    async with a_fake_api() as api:
        api.put_secret("robot", **values)
        env = api_access(tmp_path, authority, api.url)
        api.put("configmaps", "ca", data={"ca.crt": authority.ca})
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            yield agent, operator


async def test_a_run_from_an_archive_ends_with_its_outputs_and_its_password_can_not_be_printed(
    tmp_path: Path, authority: Authority
) -> None:
    context = server_context(authority)
    async with a_stage(tmp_path, authority, username=USERNAME, password=PASSWORD) as (agent, operator):
        with serving(FileServer(asks_for=basic(USERNAME, PASSWORD), tls=context)) as server:
            code = local_exec(f"echo 'printed {PASSWORD}'").encode()
            found = server.put(a_tar(an_entry("envs/main.tf", OUTPUT + code)))
            source = ArchiveSource(
                url=f"{found.url}?x=1",
                sha256=found.sha256,
                path="envs",
                secret="robot",
                authority=ConfigFrom(config_map="ca"),
            )
            await operator.start({}, source=Source(archive=source))
            result = await operator.result()
        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert '"hello"' in (agent.states / "network.tfstate").read_text()
        said = agent.log + agent.termination_message + repr(operator.received)
        assert f"fetching {found.url}\n" in agent.log
        assert "printed [redacted]" in agent.log
        assert PASSWORD not in said
        assert holding(agent.work, basic(USERNAME, PASSWORD)) == []


async def test_an_unpacking_that_nobody_waits_for_stops_at_its_next_megabyte(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on, grow = threading.Event(), threading.Event(), Contents.grow

    def hold(contents: Contents, size: int) -> None:
        begun.set()
        assert may_go_on.wait(30)
        grow(contents, size)

    monkeypatch.setattr(Contents, "grow", hold)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    fetching = asyncio.ensure_future(fetch(a_zip(*(an_entry(f"{n}", bytes(1_000_000)) for n in range(5)))))
    await until(begun.is_set)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    may_go_on.set()
    await asyncio.to_thread(lambda: None)  # its only thread is free once the unpacking is over
    assert names(tmp_path / "run/module") <= {"0", "1"}


@pytest.mark.parametrize("where", ["download", "unpacking"])
async def test_a_cancel_ends_a_download_and_an_unpacking(
    agent: AgentProcess, operator: Operator, server: FileServer, where: str
) -> None:
    if where == "download":
        source = server.put(a_tar(an_entry("main.tf", OUTPUT)))
        source = ArchiveSource(url=f"{server.url}/half/network", sha256=source.sha256)
    else:
        source = server.put(a_tar(*(an_entry(f"{n}", bytes(1_000_000)) for n in range(400)), compresslevel=1))
    await operator.start({}, source=Source(archive=source))
    if where == "download":
        await agent.until(server.is_half.is_set)
    else:
        await agent.until((agent.module.parent / "archive.tar").exists)
    await operator.cancel()
    result = await operator.result(within_s=15.0)
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    await operator.ack()
    assert await agent.ended(10) == 0


async def test_an_approved_plan_is_applied_with_the_archive_that_it_was_made_with(
    server: FileServer, tmp_path: Path
) -> None:
    source = Source(archive=server.put(a_tar(an_entry("main.tf", b"planned"))))
    start = a_start({}, source=Source(), approval=Approval(source=source))
    workdir = Workdir(tmp_path, ClusterApi(ApiServer("", tmp_path, tmp_path), "team-a"), Git(Descendants()), {})
    assert source.archive is not None
    identity = f"archive:{source.archive.sha256}"
    for planned_from in (identity, f"archive:{'0' * 64}"):
        plan = PlanArchive(b"a plan", None, planned_from, b"")
        prepared = workdir.prepare(start, Environment({}, ()), LocalBackend(tmp_path), plan)
        if planned_from == identity:
            assert (await prepared).source == identity
            (tmp_path / "task-uid").rename(tmp_path / "before")
        else:
            with pytest.raises(PreparationError, match="the source has changed since the plan was made") as caught:
                await prepared
            assert caught.value.reason == "PlanExpired"
    assert (tmp_path / "before/plan.tfplan").read_text() == "a plan"
    assert not (tmp_path / "task-uid/plan.tfplan").exists()
