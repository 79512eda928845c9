"""The search is searched: each form of a planted secret is found where it is, and nowhere else. Needs no cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from tests.e2e.planted import SHAPES, Found, Place, plant, search

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps({"x": text})),
    "URL": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 after one": lambda text: base64.b64encode(f"x{text}".encode()).decode(),
    "base64 after two": lambda text: base64.b64encode(f"xx{text}yy".encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "upper hex": lambda text: text.encode().hex().upper(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_planted_secret_is_found_in_each_form_and_only_where_it_is(shape: str, form: str) -> None:
    secret, other = plant("of one", shape), plant("of another", shape)
    there = Place("there", f"before {FORMS[form](secret.value)} after".encode())
    elsewhere = Place("elsewhere", f"before {SHAPES[shape]} after".encode())
    assert search([secret, other], [there, elsewhere]) == {Found("there", "of one")}


def test_no_two_secrets_are_the_same() -> None:
    assert len({plant("x").core for _ in range(100)}) == 100
