"""Input variables from the keys of Secrets and ConfigMaps: the one file that terraform reads them from.

A key that ends in `.json` holds JSON, any other one text, which terraform converts to the variable's type. JSON
goes through as it is written, so that no number loses a digit. Errors name keys, never values. Pure; called by
`adapters.workdir`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec

_JSON_SUFFIX = ".json"


class VariablesError(Exception):
    """What is in a key can't be the value of a variable. The text says which one, and why."""


def parse(found: Mapping[str, bytes]) -> dict[str, Any]:
    """The variables of one Secret or ConfigMap, as msgspec encodes them. Raises VariablesError."""
    values: dict[str, Any] = {}
    for key, raw in found.items():
        name = key.removesuffix(_JSON_SUFFIX)
        if name in values:
            raise VariablesError(f"variable {name} has two values, in keys {name} and {name}{_JSON_SUFFIX}: remove one")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise VariablesError(f"key {key} is not text (byte {error.start} is not UTF-8)") from None
        if key != name:
            _scalars_of(key, text)
        values[name] = text if key == name else msgspec.Raw(raw)
    return values


def secrets(found: Mapping[str, bytes]) -> list[str]:
    """Every text that must not be seen again, of what `parse` takes."""
    texts: list[str] = []
    for key, raw in found.items():
        text = raw.decode()
        texts.append(text)
        if key.endswith(_JSON_SUFFIX):
            texts += _scalars_of(key, text)
    return texts


def _scalars_of(key: str, text: str) -> list[str]:
    """Texts and numbers, as they are written."""
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise VariablesError(f"key {key} is not JSON (line {error.lineno}, column {error.colno})") from None
    except _NotJson:
        raise VariablesError(f"key {key} is not JSON, which knows no NaN and no Infinity") from None
    except RecursionError:
        raise VariablesError(f"key {key} is nested too deeply") from None
    return list(scalars(value))


def scalars(value: Any) -> Iterator[str]:
    """Texts inside of decoded JSON."""
    below = [value]
    while below:
        match below.pop():
            case str() as text:
                yield text
            case list() as items:
                below += items
            case dict() as fields:
                below += fields.values()


class _NotJson(Exception):
    pass


def _refuse(constant: str) -> NoReturn:
    raise _NotJson
