#!/bin/sh
# install_dependencies.sh NAME FOLDER: installs /src/NAME.txt, hashes checked, into FOLDER, with byte
# code. From /src/wheels when there are any (an offline build), from the package index otherwise. Run
# by the Dockerfile.
set -eu
name=$1
folder=$2
if ls /src/wheels/*.whl > /dev/null 2>&1; then
    set -- --no-index --find-links=/src/wheels
else
    set --
fi
/venv/bin/pip install --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
    --require-hashes --only-binary=:all: --target="$folder" "$@" --requirement="/src/$name.txt"
# Programs of packages and their tests are never run in the image.
rm -rf "$folder/bin"
find "$folder" -type d -name tests -prune -exec rm -rf {} +
# Unchecked: no look at the time stamp of each source at each start.
/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /out "$folder"
