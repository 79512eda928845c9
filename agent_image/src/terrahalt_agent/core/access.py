"""What a source's Secret says to its server, and who the server has to be: read from the keys that Flux uses too.

Whatever can't work is refused here, in words that name the Secret and its key and never hold a value. Called by
`workdir`, before anything is fetched; pure.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from terrahalt_agent.core.source import CREDENTIALS_INVALID, SourceError

CA_KEY = "ca.crt"
_NOT_VISIBLE = re.compile(r"[\x00-\x1f\x7f]")
_NO_TOKEN = re.compile(r"[^!-~]")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----(.*)-----END \1PRIVATE KEY-----", re.DOTALL)
_OPENSSH = b"openssh-key-v1\0"
_NO_CIPHER = b"\0\0\0\x04none"


@dataclass(frozen=True, slots=True)
class Access:
    """Empty: there is none of it."""

    secret: str = ""
    """The Secret's name, for what people read."""
    username: str = ""
    password: str = ""
    token: str = ""
    identity: str = ""
    known_hosts: str = ""
    ca: str = ""


def access(url: str, secret: str = "", values: Mapping[str, bytes] | None = None, ca: str = "") -> Access:
    """What the Secret `secret` with the keys `values` gives to `url`. Raises SourceError."""
    if not secret:
        return Access(ca=ca)
    texts = {key: value.decode(errors="replace") for key, value in (values or {}).items()}
    return _by_ssh(secret, texts) if url.startswith("ssh:") else _by_https(secret, texts, ca)


def authority(what: str, values: Mapping[str, bytes]) -> str:
    """The certificates that `what`, an object's kind and name, holds. Raises SourceError."""
    text = values.get(CA_KEY, b"").decode(errors="replace")
    if not _PEM.search(text):
        raise _wrong(f"{what} has no certificate in its key {CA_KEY}: put the authority's there, as PEM")
    return text.rstrip() + "\n"


def _by_https(secret: str, texts: Mapping[str, str], ca: str) -> Access:
    # A file that became a Secret ends with a newline, and none of these can hold one.
    username, password, token = (texts.get(key, "").rstrip("\r\n") for key in ("username", "password", "bearerToken"))
    if token and (username or password):
        raise _wrong(f"Secret {secret} has bearerToken beside username or password: remove what is not asked for")
    if token:
        if _NO_TOKEN.search(token):
            raise _wrong(f"Secret {secret}: bearerToken has a blank or another character that no header may hold")
        return Access(secret=secret, token=token, ca=ca)
    for key, value in (("username", username), ("password", password)):
        if not value:
            others = "" if texts.keys() & {"username", "password"} else ", or bearerToken"
            raise _wrong(f"Secret {secret} has no {key}, which https needs: add username and password{others}")
        if _NOT_VISIBLE.search(value):
            raise _wrong(f"Secret {secret}: {key} has a control character, for example a line break: remove it")
    if ":" in username:
        raise _wrong(f"Secret {secret}: username has a colon, which no server can tell from the password's: remove it")
    return Access(secret=secret, username=username, password=password, ca=ca)


def _by_ssh(secret: str, texts: Mapping[str, str]) -> Access:
    if texts.get("password"):
        text = "no passphrase is used: store the key without one (ssh-keygen -p), and remove password"
        raise _wrong(f"Secret {secret} has password beside a key for ssh, but {text}")
    keys = {"identity": "the private key", "known_hosts": "the server's keys, as ssh-keyscan prints them"}
    for key, what in keys.items():
        if not texts.get(key, "").strip():
            raise _wrong(f"Secret {secret} has no {key}, which ssh needs: add {what}")
    # ssh takes no key whose last line has no end, or that has come over Windows.
    identity, known_hosts = (texts[key].replace("\r\n", "\n").strip() + "\n" for key in ("identity", "known_hosts"))
    _check_key(secret, identity)
    return Access(secret=secret, identity=identity, known_hosts=known_hosts)


def _check_key(secret: str, identity: str) -> None:
    found = _KEY.fullmatch(identity.strip())
    if found is None or "\0" in identity:
        raise _wrong(f"Secret {secret}: identity is no private key as ssh-keygen writes it: put the whole file there")
    kind, body = found[1].strip(), found[2]
    is_encrypted = "ENCRYPTED" in kind or "ENCRYPTED" in body
    if kind == "OPENSSH":
        try:
            raw = base64.b64decode(body, validate=False)
        except binascii.Error:
            raw = b""
        is_encrypted = is_encrypted or (raw.startswith(_OPENSSH) and not raw[len(_OPENSSH) :].startswith(_NO_CIPHER))
    if is_encrypted:
        raise _wrong(f"Secret {secret}: identity has a passphrase, which nobody types here: ssh-keygen -p removes it")


def _wrong(text: str) -> SourceError:
    return SourceError(text, CREDENTIALS_INVALID)
