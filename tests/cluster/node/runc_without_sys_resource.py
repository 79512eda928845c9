"""The OCI runtime of the private Docker engine where CAP_SYS_RESOURCE may not be given on.

Some machines (virtual machines of build services, nested containers) lack that capability in their
bounding set, and runc then refuses every privileged container. This program takes it out of what the
engine asks for, keeps oom_score_adj from being lowered, which needs the same capability, and then
becomes the real runc. Called by dockerd and containerd; tests/cluster/private_engine.py installs it
only where the capability is missing. It must never add a right.
"""

import json
import os
import sys

RUNC = "/usr/sbin/runc"
MISSING = "CAP_SYS_RESOURCE"


def option(arguments: list[str], *names: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument in names and index + 1 < len(arguments):
            return arguments[index + 1]
        for name in names:
            if argument.startswith(name + "="):
                return argument[len(name) + 1 :]
    return None


def lower(path: str, *, is_bundle: bool) -> None:
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    process = document.get("process", {}) if is_bundle else document
    for kind, granted in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in granted or [] if name != MISSING]
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        own_score = int(file.read())
    if (process.get("oomScoreAdj") or 0) < own_score:
        process["oomScoreAdj"] = own_score
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file)


def main(arguments: list[str]) -> None:
    # `exec` gets its process in a file of its own; the other two read it from the bundle.
    if "exec" in arguments:
        if path := option(arguments, "--process", "-p"):
            lower(path, is_bundle=False)
    elif "create" in arguments or "run" in arguments:
        bundle = option(arguments, "--bundle", "-b") or "."
        lower(os.path.join(bundle, "config.json"), is_bundle=True)
    os.execv(RUNC, [RUNC, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
