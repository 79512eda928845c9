"""`python listing.py FOLDER`: every file below it as JSON, path -> type, mode, owner, and content or target.

For comparing the root file systems of images. Times are left out: no two builds have the same. So is the
folder itself: its mode is of who unpacks the image. Standard library only, because `builders` runs it
where the image is mounted.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys


def described(path: str) -> list[str | int]:
    status = os.lstat(path)
    kind = stat.filemode(status.st_mode)[0]
    about: list[str | int] = [kind, oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid]
    if kind == "l":
        about.append(os.readlink(path))
    elif kind == "-":
        with open(path, "rb") as file:
            about.append(hashlib.file_digest(file, "sha256").hexdigest())
    return about


def main(root: str) -> None:
    paths = [os.path.join(folder, name) for folder, names, files in os.walk(root) for name in (*names, *files)]
    print(json.dumps({os.path.relpath(path, root): described(path) for path in sorted(paths)}))


if __name__ == "__main__":
    main(sys.argv[1])
