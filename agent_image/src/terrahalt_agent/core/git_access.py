"""The files by which git, and the ssh that it starts, reach one server with what a source's Secret gives: no command
line and no environment holds any of it.

They say it of this server alone, so they also lie where the git of `terraform init` reads them, and modules of the
same server need no more. Called by `workdir`; pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from urllib.parse import urlsplit

from terrahalt_agent.core.access import Access

CONFIG = ".gitconfig"
"""In the run's home; all others lie in its folder `access`."""

_SILENT_S = 15
_SILENCES = 4


def files(url: str, access: Access, *, folder: str) -> Mapping[str, str]:
    """Name to text: `CONFIG`, and what it leads to in `folder`. Empty where nothing is needed."""
    found: dict[str, str] = {}
    config: list[str] = []
    if access.identity:
        found |= {
            "identity": access.identity,
            "known_hosts": access.known_hosts,
            "ssh_config": _ssh_config(url, folder),
        }
        # The file takes the place of the system's and the user's, which it lets in for other servers only.
        command = f"ssh -F {shlex.quote(f'{folder}/ssh_config')}"
        config += ["[core]", f"\tsshCommand = {_quoted(command)}"]
    if access.password:
        found["credentials"] = f"username={access.username}\npassword={access.password}\n"
        # No helper of git's own: those forget what a server has refused once.
        helper = f"!f() {{ test $1 != get || cat {shlex.quote(f'{folder}/credentials')}; }}; f"
        config += [f"[credential {_quoted(_origin(url))}]", f"\thelper = {_quoted(helper)}"]
    http = []
    if access.token:
        # git would send the header wherever the server sends it on to.
        header = f"Authorization: Bearer {access.token}"
        http += [f"\textraHeader = {_quoted(header)}", "\tfollowRedirects = false"]
    if access.ca:
        found["ca.crt"] = access.ca
        path = _quoted(f"{folder}/ca.crt")
        http.append(f"\tsslCAInfo = {path}")
    if http:
        config += [f"[http {_quoted(_origin(url))}]", *http]
    if config:
        found[CONFIG] = "\n".join([*config, ""])
    return found


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _quoted(text: str) -> str:
    """As git's configuration, and ssh's where neither a quote nor a backslash is in it, has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ssh_config(url: str, folder: str) -> str:
    host = urlsplit(url).netloc.rpartition("@")[2]
    host = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    names = list(dict.fromkeys((host, host.lower())))  # ssh compares an address's letters as they are
    identity, known_hosts = (_quoted(f"{folder}/{name}".replace("%", "%%")) for name in ("identity", "known_hosts"))
    return f"""\
Host {" ".join(names)}
    User git
    IdentityFile {identity}
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    VerifyHostKeyDNS no
    BatchMode yes
    ClearAllForwardings yes
    PermitLocalCommand no
    ProxyCommand none
    ControlPath none
    ConnectTimeout {_SILENT_S * _SILENCES}
    ServerAliveInterval {_SILENT_S}
    ServerAliveCountMax {_SILENCES}
Match !host {",".join(names)}
    Include ~/.ssh/config
    Include /etc/ssh/ssh_config
"""
