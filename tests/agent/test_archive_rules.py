"""Whom an archive is asked of, and who is shown what; what may be in one is tried with real ones elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_agent.core import archive
from terrahalt_agent.core.access import Access
from terrahalt_agent.core.source import ACCESS_DENIED, INVALID, SourceError, preparing
from terrahalt_protocol.messages import ArchiveSource, Source

URL, SHA256 = "https://files.example.com/a.tar.gz", "0f" * 32
ROBOT = Access("robot", username="me", password="a:b")


def a_source(url: str = URL, sha256: str = SHA256, **fields: Any) -> ArchiveSource:
    return ArchiveSource(url=url, sha256=sha256, **fields)


@pytest.mark.parametrize(
    "source",
    [
        a_source(),
        a_source("http://source-controller.flux-system.svc.cluster.local./gitrepository/a/b/c.tar.gz"),
        a_source("https://[2001:db8::1]:8443/a?X-Amz-Signature=1/2&b=?", path="envs/prod", secret="robot"),
    ],
)
def test_what_the_api_server_lets_in_is_fetched(source: ArchiveSource) -> None:
    archive.check(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (a_source("file:///etc/passwd"), "url must be"),
        (a_source("https://me:hidden@files.example.com/a"), "url must be"),
        (a_source("https://files.example.com/a\nb"), "url must be"),
        (a_source("http://files.example.com/a", secret="robot"), "would be readable on the way"),
        (a_source(sha256="0F" * 32), "sha256 must be"),
        (a_source(sha256="0f"), "sha256 must be"),
        (a_source(path="../a"), r"source\.archive\.path"),
    ],
)
def test_what_would_be_more_than_an_archive_is_refused(source: ArchiveSource, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        archive.check(source)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_shown"),
    [
        (URL, True),
        ("https://FILES.example.com:443/another", True),
        ("https://files.example.com:8443/a.tar.gz", False),
        ("http://files.example.com/a.tar.gz", False),
        ("https://example.com/a.tar.gz", False),
        ("https://files.example.com.evil.com/a.tar.gz", False),
    ],
)
def test_credentials_are_for_the_server_of_the_source_alone(url: str, is_shown: bool) -> None:
    assert ("Authorization" in archive.headers(url, a_source(), ROBOT)) is is_shown


def test_a_password_and_a_token_are_shown_as_such_and_nothing_where_there_is_none() -> None:
    assert archive.headers(URL, a_source(), ROBOT)["Authorization"] == "Basic bWU6YTpi"
    assert archive.headers(URL, a_source(), Access(token="t"))["Authorization"] == "Bearer t"
    assert "Authorization" not in archive.headers(URL, a_source(), Access())
    assert archive.headers(URL, a_source(), Access())["Accept-Encoding"] == "identity"


def test_a_redirect_is_followed_to_another_place_and_never_to_another_kind_of_place() -> None:
    assert archive.sent_on(URL, "/b?x=1#y") == "https://files.example.com/b?x=1"
    assert archive.sent_on(URL, "https://cdn.example.com/b") == "https://cdn.example.com/b"
    assert archive.sent_on("http://a/b", "https://a/b") == "https://a/b"
    for location in ("http://files.example.com/b", "file:///etc/passwd", "https://me@a/b", "ftp://a/b", "//a b/c"):
        with pytest.raises(SourceError, match="sends on to what is not asked"):
            archive.sent_on(URL, location)


@pytest.mark.parametrize(
    ("url", "env", "expected"),
    [
        (URL, {}, None),
        (URL, {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        (URL, {"https_proxy": "proxy:3128", "HTTPS_PROXY": "http://other"}, "http://proxy:3128"),
        (URL, {"HTTP_PROXY": "http://proxy:3128"}, None),
        *(
            (URL, {"HTTPS_PROXY": "http://proxy", "NO_PROXY": exempt}, expected)
            for exempt, expected in (
                ("example.com", None),
                (".example.com", None),
                ("*.example.com", None),
                ("10.0.0.0/8, FILES.example.com:443", None),
                ("*", None),
                ("files.example.com:8443", "http://proxy"),
                ("ample.com", "http://proxy"),
                ("", "http://proxy"),
            )
        ),
        *(
            (url, {"http_proxy": "http://proxy", "no_proxy": "10.0.0.0/8,[2001:db8::1]:8080,fd00::/8"}, expected)
            for url, expected in (
                ("http://10.1.2.3:9090/a", None),
                ("http://11.1.2.3/a", "http://proxy"),
                ("http://[2001:db8::1]:8080/a", None),
                ("http://[2001:db8::1]/a", "http://proxy"),
                ("http://[fd00::1]/a", None),
            )
        ),
    ],
)
def test_proxies_are_those_of_the_environment(url: str, env: dict[str, str], expected: str | None) -> None:
    assert archive.proxy(url, env) == expected


def test_who_is_not_let_in_reads_which_secret_to_look_at_or_to_add() -> None:
    assert archive.answered(a_source(), 200) is None
    for source, status, reason, words in (
        (a_source(), 401, ACCESS_DENIED, "it needs source.archive.secretRef"),
        (a_source(secret="robot"), 403, ACCESS_DENIED, "what is in Secret robot may read it"),
        (a_source(), 404, INVALID, "HTTP 404: check source.archive.url"),
        (a_source(), 206, INVALID, "HTTP 206"),
    ):
        error = archive.answered(source, status)
        assert error is not None
        assert error.reason == reason
        assert words in str(error)


def test_what_comes_after_a_question_mark_is_shown_to_nobody() -> None:
    source = a_source(f"{URL}?token=hidden")
    assert preparing(Source(archive=source)) == f"fetching {URL}"
    for error in (archive.unreachable(source, "no route"), archive.too_large(source, 1), archive.another(source, "0")):
        assert "hidden" not in str(error)
        assert URL in str(error)
