"""What of a source's Secret is shown to which server, by which files, and what of it can't work."""

from __future__ import annotations

import base64

import pytest

from terrahalt_agent.core import git_access
from terrahalt_agent.core.access import Access, access, authority
from terrahalt_agent.core.source import CREDENTIALS_INVALID, SourceError

HTTPS, SSH = "https://git.example.com:8443/a", "ssh://git@git.example.com:2222/a"
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"


def a_key(cipher: str = "none", kind: str = "OPENSSH ", body: str = "") -> str:
    raw = b"openssh-key-v1\0" + len(cipher).to_bytes(4) + cipher.encode() + b"\0\0\0\x04none"
    body = body or base64.encodebytes(raw).decode()
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}-----END {kind}PRIVATE KEY-----\n"


def given(url: str, **values: str) -> Access:
    return access(url, "robot", {key: value.encode() for key, value in values.items()}, "CA")


def test_a_password_and_a_token_lose_the_end_of_the_line_that_a_file_has() -> None:
    assert given(HTTPS, username="me\n", password="a b:@\r\n") == Access(
        "robot", username="me", password="a b:@", ca="CA"
    )
    assert given(HTTPS, bearerToken="abc\n") == Access("robot", token="abc", ca="CA")


def test_a_key_gets_the_end_of_the_line_that_ssh_needs() -> None:
    windows = a_key().replace("\n", "\r\n").rstrip()
    found = access(SSH, "robot", {"identity": windows.encode(), "known_hosts": b"host key"})
    assert found == Access("robot", identity=a_key(), known_hosts="host key\n")


def test_what_else_the_secret_holds_is_not_asked_for() -> None:
    assert given(HTTPS, username="me", password="x", identity="y").identity == ""
    assert given(SSH, identity=a_key(), known_hosts="k", username="me").username == ""


@pytest.mark.parametrize(
    ("url", "values", "words"),
    [
        (HTTPS, {}, "has no username, which https needs: add username and password, or bearerToken"),
        (HTTPS, {"identity": "x"}, "has no username"),
        (HTTPS, {"username": "me"}, "has no password, which https needs: add username and password$"),
        (HTTPS, {"username": "me", "password": "\n"}, "has no password"),
        (HTTPS, {"password": "hidden"}, "has no username"),
        (HTTPS, {"username": "me", "password": "hidden\nhost=evil"}, "password has a control character"),
        (HTTPS, {"username": "m\x00e", "password": "hidden"}, "username has a control character"),
        (HTTPS, {"username": "m:e", "password": "hidden"}, "username has a colon"),
        (HTTPS, {"username": "me", "bearerToken": "hidden"}, "has bearerToken beside username or password"),
        (HTTPS, {"bearerToken": "hidden\nX-Evil: 1"}, "bearerToken has a blank or another character"),
        (SSH, {"username": "me", "password": "hidden"}, "has password beside a key for ssh"),
        (SSH, {"identity": a_key(), "known_hosts": "k", "password": "hidden"}, "no passphrase is used: store the key"),
        (SSH, {"known_hosts": "k"}, "has no identity, which ssh needs: add the private key"),
        (SSH, {"identity": a_key(), "known_hosts": "\n"}, "has no known_hosts, which ssh needs: .* ssh-keyscan"),
        (SSH, {"identity": "ssh-ed25519 hidden", "known_hosts": "k"}, "identity is no private key"),
        (SSH, {"identity": a_key("aes256-ctr"), "known_hosts": "k"}, "identity has a passphrase"),
        (SSH, {"identity": a_key(kind="ENCRYPTED ", body="hidden\n"), "known_hosts": "k"}, "identity has a passphrase"),
        (
            SSH,
            {"identity": a_key(kind="RSA ", body="Proc-Type: 4,ENCRYPTED\n\nhidden\n"), "known_hosts": "k"},
            "identity has a passphrase",
        ),
    ],
)
def test_what_can_not_work_is_told_with_the_key_of_the_secret_and_without_its_value(
    url: str, values: dict[str, str], words: str
) -> None:
    with pytest.raises(SourceError, match=f"Secret robot.*{words}") as caught:
        given(url, **values)
    assert caught.value.reason == CREDENTIALS_INVALID
    assert "hidden" not in str(caught.value)


def test_an_authority_is_whole_certificates_or_none() -> None:
    assert authority("ConfigMap ca", {"ca.crt": f"# ours\n{PEM}\n{PEM}".encode()}) == f"# ours\n{PEM}\n{PEM}\n"
    for values in ({}, {"ca.pem": PEM.encode()}, {"ca.crt": b"-----BEGIN CERTIFICATE-----\n"}):
        with pytest.raises(SourceError, match=r"ConfigMap ca has no certificate in its key ca\.crt"):
            authority("ConfigMap ca", values)


def test_nothing_is_written_where_nothing_is_needed() -> None:
    assert (
        git_access.files("https://git.example.com/a", access("https://git.example.com/a"), folder="/run/access") == {}
    )


def test_a_password_is_for_one_server_and_lies_beside_the_configuration() -> None:
    files = git_access.files(HTTPS, given(HTTPS, username="me", password='pa"ss'), folder="/run/it's")
    assert files["credentials"] == 'username=me\npassword=pa"ss\n'
    assert files[".gitconfig"].splitlines() == [
        '[credential "https://git.example.com:8443"]',
        """\thelper = "!f() { test $1 != get || cat '/run/it'\\"'\\"'s/credentials'; }; f\"""",
        '[http "https://git.example.com:8443"]',
        '\tsslCAInfo = "/run/it\'s/ca.crt"',
    ]


def test_a_token_is_for_one_server_and_goes_nowhere_else_with_it() -> None:
    text = git_access.files(HTTPS, Access("robot", token='a"b'), folder="/run/access")[".gitconfig"]
    assert text.splitlines() == [
        '[http "https://git.example.com:8443"]',
        '\textraHeader = "Authorization: Bearer a\\"b"',
        "\tfollowRedirects = false",
    ]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (SSH, "git.example.com"),
        ("ssh://a.b/c", "a.b"),
        ("ssh://me@[2001:db8::1]:22/c", "2001:db8::1"),
        ("ssh://Git.Example.com/c", "Git.Example.com git.example.com"),
    ],
)
def test_a_key_is_for_one_server_and_every_other_has_what_it_had_before(url: str, host: str) -> None:
    files = git_access.files(url, Access("robot", identity="i", known_hosts="k"), folder="/run/100%")
    assert files[".gitconfig"].splitlines() == ["[core]", '\tsshCommand = "ssh -F /run/100%/ssh_config"']
    mine, others = files["ssh_config"].split(f"Match !host {host.replace(' ', ',')}\n")
    assert mine.startswith(f"Host {host}\n")
    for setting in (
        'IdentityFile "/run/100%%/identity"',
        "IdentitiesOnly yes",
        "IdentityAgent none",
        'UserKnownHostsFile "/run/100%%/known_hosts"',
        "GlobalKnownHostsFile none",
        "StrictHostKeyChecking yes",
        "BatchMode yes",
    ):
        assert f"    {setting}\n" in mine
    assert others == "    Include ~/.ssh/config\n    Include /etc/ssh/ssh_config\n"
