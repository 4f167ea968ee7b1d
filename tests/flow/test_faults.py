"""What errors say, and their text without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.flow.faults import describe, scrub

SECRET = "hunter2Hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach https://me:{SECRET}@example.org/a?b=c",
        f"cannot reach postgresql://{SECRET}@db/x",
        f"https://example.org/?api_key={SECRET}&n=1",
        f"https://example.org/?access_token={SECRET}",
        f"https://example.org/?key={SECRET}",
        f"https://example.org/?n=1&key={SECRET}#top",
        f"the key AIza{SECRET} is not valid",
        f"https://example.org/a?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}==",
        f"Authorization: Token {SECRET}",
        f"{{'authorization': 'ApiKey {SECRET}'}}",
        f"Authorization: {SECRET}",
        f"proxy-authorization: Negotiate {SECRET}",
        f"Cookie: theme=dark; sid={SECRET}; n=1",
        f"{{'Set-Cookie': 'sid={SECRET}; HttpOnly'}}",
        f"https://example.org/?sessionid={SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f'{{"password": "{SECRET}"}}',
        f"PASSWORD={SECRET}",
        f"client-secret: {SECRET}",
        f"Incorrect API key provided: sk-{SECRET}",
        f"ghp_{SECRET} is not valid",
    ],
)
def test_secrets_do_not_survive(text):
    assert SECRET not in scrub(text)
    assert "***" in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "connection refused",
        "https://example.org/a?b=c&page=2",
        "me@example.org did not answer",
        "12 tokens left",
        "authorization failed",
        "no cookie: ask for consent",
        "task-12 failed",
    ],
)
def test_other_text_stays(text):
    assert scrub(text) == text


@given(st.text())
def test_any_text_can_be_scrubbed(text):
    assert scrub(scrub(text)) == scrub(text)


def test_an_error_is_described_on_one_line():
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines"
    assert describe(KeyError()) == "KeyError"
    told = OSError("GET https://example.org/7: connection refused")
    told.cause = "connection refused"
    assert describe(told) == "OSError: connection refused"
    assert len(describe(ValueError("x" * 9999))) == 300
