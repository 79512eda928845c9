"""Keys of Secrets and ConfigMaps as input variables: what is text, what is JSON, and what must not be seen of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_agent.core.variables import VariablesError, parse, secrets


def written(**found: bytes) -> bytes:
    return msgspec.json.encode(parse(found))


def test_a_value_is_text_unless_its_key_says_that_it_is_json() -> None:
    assert written(count=b"3", list=b'["a"]', multi=b"a\nb\n") == b'{"count":"3","list":"[\\"a\\"]","multi":"a\\nb\\n"}'


def test_json_arrives_as_it_was_written() -> None:
    found = {"big.json": b"123456789012345678901234567890", "small.json": b" 0.10\n", "map.json": b'{"a": [null]}'}
    assert msgspec.json.encode(parse(found)) == (
        b'{"big":123456789012345678901234567890,"small": 0.10\n,"map":{"a": [null]}}'
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a.json": b"{hunter2"}, r"key a\.json is not JSON \(line 1, column 2\)$"),
        ({"a.json": b""}, r"key a\.json is not JSON"),
        ({"a.json": b"[NaN]"}, "knows no NaN"),
        ({"a.json": b"[" * 100_000}, r"key a\.json is nested too deeply"),
        ({"a": b"\xffhunter2"}, r"key a is not text \(byte 0 is not UTF-8\)"),
        ({"a": b"1", "a.json": b"1"}, r"variable a has two values, in keys a and a\.json"),
    ],
)
def test_what_can_not_be_a_value_is_named_and_not_shown(found: dict[str, bytes], words: str) -> None:
    with pytest.raises(VariablesError, match=words) as caught:
        parse(found)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_all_texts_and_numbers_inside_of_json_are_secret_and_the_whole_too() -> None:
    raw = b'{"password": "first one", "ports": [12345678, {"deep": 1.2500000}], "on": true}'
    assert set(secrets({"a": b"plain", "b.json": raw})) == {
        "plain",
        raw.decode(),
        "first one",
        "12345678",
        "1.2500000",
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
)


@given(_JSON)
def test_every_json_value_arrives(value: Any) -> None:
    raw = msgspec.json.encode(value)
    assert msgspec.json.encode(parse({"a.json": raw})) == b'{"a":' + raw + b"}"
