"""The form of a kept log: within its bounds whatever was logged, with its beginning and its end."""

from __future__ import annotations

import base64
import gzip
import random

import pytest

from terrahalt_protocol.kept_log import name, pack, secret
from terrahalt_protocol.kept_secret import MAX_BYTES
from terrahalt_protocol.messages import TaskRef


def unpacked(packed: bytes) -> list[bytes]:
    return gzip.decompress(packed).splitlines()


def noise(count: int, seed: int) -> bytes:
    """Lines that can't be compressed to less than three quarters."""
    return b"".join(b"%d " % n + base64.b64encode(random.Random(seed + n).randbytes(150)) + b"\n" for n in range(count))


def test_what_fits_is_kept_as_it_is() -> None:
    assert gzip.decompress(pack(b"a\nb\n", b"c\n")) == b"a\nb\nc\n"
    assert pack(b"a\n", b"") == pack(b"a\n", b""), "no time is in it"


def test_what_is_missing_is_said_where_it_is_missing() -> None:
    assert unpacked(pack(b"a\n", b"z\n", 1000)) == [
        b"a",
        b"terrahalt: 1000 bytes are left out here: a kept log has its beginning and its end",
        b"z",
    ]


@pytest.mark.parametrize(("head", "tail"), [(1_200, 10_000), (0, 20_000), (20_000, 0)])
def test_what_can_not_be_compressed_enough_loses_its_middle_in_whole_lines(head: int, tail: int) -> None:
    first, last = noise(head, 1), noise(tail, 2)
    packed = pack(first, last)
    assert MAX_BYTES // 2 < len(packed) <= MAX_BYTES
    lines = unpacked(packed)
    (cut,) = [at for at, line in enumerate(lines) if b"bytes are left out here" in line]
    assert lines[:cut] == first.splitlines()[:cut]
    rest = lines[cut + 1 :]
    assert rest == last.splitlines()[len(last.splitlines()) - len(rest) :]
    missing = len(first) + len(last) - sum(len(line) + 1 for at, line in enumerate(lines) if at != cut)
    assert b": %d bytes" % missing in lines[cut]


def test_one_line_that_is_too_long_is_cut_too() -> None:
    packed = pack(b"", base64.b64encode(random.Random(1).randbytes(3_000_000)))
    assert len(packed) <= MAX_BYTES


def test_the_secret_has_a_name_that_the_run_gives_and_goes_with_its_task() -> None:
    task = TaskRef(namespace="team-a", name="network", uid="u")
    made = secret(b"packed", task, workspace="net", run_id="01JRUN")
    assert made["metadata"]["name"] == name("01JRUN") == "terrahalt-log-01jrun"
    assert [owner["uid"] for owner in made["metadata"]["ownerReferences"]] == ["u"]
    assert made["data"] == {"log.gz": base64.b64encode(b"packed").decode()}
