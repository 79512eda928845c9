"""No secret value of 6 bytes and more leaves in a form that somebody would write it in."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from terrahalt_agent.core.redaction import Redactor

SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=6, max_size=40).filter(
    lambda text: text.strip() == text
)


def a_redactor(*values: str) -> Redactor:
    redactor = Redactor()
    redactor.add(values)
    return redactor


@given(SECRETS, st.text(max_size=10), st.text(max_size=10))
def test_each_form_is_taken_out(secret: str, before: str, after: str) -> None:
    encoded = base64.b64encode(secret.encode()).decode()
    forms = [
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        encoded,
        encoded.rstrip("="),
        base64.urlsafe_b64encode(secret.encode()).decode(),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
    ]
    redactor = a_redactor(secret)
    for form in forms:
        shown = redactor.redact(f"{before}{form}{after}")
        assume(form not in before + "[redacted]" + after)
        assert form not in shown
        assert "[redacted]" in shown


@pytest.mark.parametrize("user", ["u", "us", "use", "user"])
def test_base64_of_something_that_holds_the_secret_hides_it(user: str) -> None:
    secret = "correct horse battery"
    shown = a_redactor(secret).redact(base64.b64encode(f"{user}:{secret}:x".encode()).decode())
    assert "[redacted]" in shown
    assert len(shown) < 30


@pytest.mark.parametrize(
    "shown",
    [
        r"postgres://u:a\u003cb\u003e@host/?x=1\u0026y=\"2\"",
        r"postgres://u:a\\u003cb\\u003e@host/?x=1\\u0026y=\\\"2\\\"",
        r"postgres://u:a<b>@host/?x=1&y=\\\"2\\\"",
    ],
)
def test_json_as_go_writes_it_is_known_also_quoted_once_more_as_terraform_shows_commands(shown: str) -> None:
    assert a_redactor('postgres://u:a<b>@host/?x=1&y="2"').redact(f"Executing: {shown}.") == "Executing: [redacted]."


@pytest.mark.parametrize("leaf", ["MIIEvQIBADAN", 'with "quotes" and \\', "deep in a list", "12345678901234567890.50"])
def test_each_value_in_a_json_document_is_taken_out_alone_as_a_plan_lays_it_out_anew(leaf: str) -> None:
    document = r"""
        {"private_key": "MIIEvQIBADAN", "of": {"all": ["deep in a list", "with \"quotes\" and \\"]}, "short": "x",
         "n": 12345678901234567890.50, "is": true, "none": null}
    """
    assert a_redactor(document).redact(f'  + key = "{leaf}", x') == '  + key = "[redacted]", x'


@pytest.mark.parametrize(
    "text",
    ['{"is no JSON": "hunter2"', "[" * 100_000, '"a text in quotes"', "[]", r'["\ud800\ud800"]'],
    ids=["broken", "too deep", "a text", "empty", "what no text can hold"],
)
def test_what_only_begins_like_a_document_is_a_text_like_any_other(text: str) -> None:
    assert a_redactor(text).redact("a text in quotes, hunter2") == "a text in quotes, hunter2"


def test_a_key_of_many_lines_is_taken_out_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nshort\n-----END KEY-----\n"
    redactor = a_redactor(key)
    assert redactor.redact("  MIIEvQIBADANBgkqhkiG9w0") == "  [redacted]"
    assert redactor.redact("a short word") == "a short word"


def test_short_values_are_left_alone() -> None:
    assert a_redactor("12345", "").redact("12345") == "12345"


def test_the_longer_secret_wins_over_one_inside_of_it() -> None:
    assert a_redactor("secret", "secret-and-more").redact("secret-and-more") == "[redacted]"


def test_without_secrets_a_text_stays_as_it_is() -> None:
    assert Redactor().redact("anything") == "anything"


SOME = ["hunter2-hunter2", "hunter2", "nter2-hu", "日本", "日本の秘密です", "pass-phrase"]
FEW, AMONG_THOUSANDS = a_redactor(*SOME), a_redactor(*SOME, *(f"Zq{number:06}-generated" for number in range(1_000)))
PIECES = ["h", "x", "日", "pass-", "[", *SOME]


@given(st.lists(st.sampled_from(PIECES), max_size=20), st.integers(0, 60))
def test_among_thousands_of_secrets_the_same_ones_are_taken_out_of_a_line(pieces: list[str], chars: int) -> None:
    text = "".join(pieces)
    assert AMONG_THOUSANDS.redact(text) == FEW.redact(text)
    assert AMONG_THOUSANDS.redact_beginning(text, chars) == FEW.redact_beginning(text, chars)


def test_what_is_known_stays_out_of_the_log_while_more_is_learnt() -> None:
    redactor, is_over = a_redactor(*(f"Zq{number:06}-generated" for number in range(1_000))), threading.Event()

    def log() -> set[str]:
        shown = set()
        while not is_over.is_set():
            shown.add(redactor.redact("it is Zq000999-generated"))
        return shown

    with ThreadPoolExecutor(1) as pool:
        logged = pool.submit(log)
        for number in range(20):
            redactor.add([f"another-{number}"])
        is_over.set()
        assert logged.result() == {"it is [redacted]"}


@given(st.lists(st.sampled_from(["hunter2-hunter2", "h", "hunter2", "x", "xxxxxxx"]), max_size=30), st.integers(0, 60))
def test_no_part_of_a_secret_is_left_at_a_cut(pieces: list[str], chars: int) -> None:
    secret, text = "hunter2-hunter2", "".join(pieces)
    shown = a_redactor(secret).redact_beginning(text, chars)
    whole = a_redactor(secret).redact(text)
    assert secret not in shown
    if len(text) > chars:
        assert shown.endswith(" ...")
        kept = shown.removesuffix(" ...")
        assert whole.startswith(kept)
    else:
        assert shown == whole


def test_a_line_of_megabytes_is_no_more_work_than_what_of_it_is_shown() -> None:
    redactor = a_redactor(*(f"secret number {n} of many" for n in range(50)))

    def cpu_s(text: str) -> float:
        begun_s = time.thread_time()
        for _ in range(20):
            redactor.redact_beginning(text, 16_000)
        return time.thread_time() - begun_s

    # Two hundred times as long; on all of it, it would take two hundred times as long.
    assert cpu_s("x y" * 1_000_000) < 20 * cpu_s("x y" * 5_000)
