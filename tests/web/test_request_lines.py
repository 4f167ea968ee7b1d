"""A line of JSON as a request, and what became of it as a line of JSON, whatever is in either."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from unwait.web.errors import ConnectionFailed, StatusError
from unwait.web.request_lines import BadLine, Call, answered, bad_result, failed, parse_call, result_line
from unwait.web.response import Response

URL = "http://user:pw@host.example/v1?key=s3cret&q=1"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def call(**fields: Any) -> Call:
    return parse_call(json.dumps({"url": URL, **fields}).encode(), 3)


def test_what_a_line_may_leave_out() -> None:
    assert call() == Call(3, 3, "GET", URL, {}, None, 0.0, None, None)
    assert call(method=None, headers=None, body=None, cost=None, timeout=None, idempotent=None) == call()
    assert call(body="x").method == call(json={}).method == call(json=None).method == "POST"
    assert call(body="", method="delete").method == "DELETE"


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, 0),
        ({"cost": 7}, 7),
        ({"cost": 0, "body": "x" * 100}, 0),
        ({"body": "x" * 101}, 26),
        ({"json": {"text": "x" * 89}}, 25),
        ({"json": {"max_tokens": 50}}, 5 + 50),
        ({"json": {"max_completion_tokens": 50}}, 7 + 50),
        ({"json": {"max_output_tokens": 50.0}}, 7 + 50),
        ({"json": {"max_tokens": "many"}}, 6),
        ({"json": {"max_tokens": -5}}, 5),
        ({"json": [1, 2]}, 2),
    ],
)
def test_the_cost_is_given_or_estimated(fields: dict[str, Any], cost: float) -> None:
    assert call(**fields).cost == cost


def test_the_key_is_of_what_is_asked_and_not_of_who_asks() -> None:
    plain = call(id="a", json={"n": 1})
    assert plain.key.startswith('"a" ')
    for same in (
        call(id="a", json={"n": 1}, headers={"X": "y"}, timeout=5, cost=9, idempotent=True),
        call(id="a", json={"n": 1}, url=URL.replace("pw", "other").replace("s3cret", "other")),
        parse_call(json.dumps({"id": "a", "url": URL, "json": {"n": 1}}).encode(), 99),
    ):
        assert same.key == plain.key
    others = [
        call(id="b", json={"n": 1}),
        call(id="a", json={"n": 2}),
        call(id="a", json={"n": 1}, method="PUT"),
        call(id="a", json={"n": 1}, url=URL.replace("q=1", "q=2")),
        call(id="a"),
        call(id=1),
        call(id="1"),
    ]
    assert len({plain.key, *(other.key for other in others)}) == len(others) + 1
    assert "pw" not in plain.key


def parsed(line: bytes) -> Call | BadLine:
    try:
        return parse_call(line, 1)
    except BadLine as bad:
        return bad


@given(line=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_request_or_told_why_not(line: bytes) -> None:
    found = parsed(line)
    assert isinstance(found, Call) or (str(found) and str(found).isprintable())


OPTIONAL = dict.fromkeys(("id", "method", "headers", "json", "body", "cost", "timeout", "idempotent"), JSON)


@given(fields=st.fixed_dictionaries({"url": st.just(URL) | JSON}, optional=OPTIONAL))
@example(fields={"url": URL, "id": 10**400, "cost": 10**400, "timeout": 10**400})
@example(fields={"url": URL, "headers": {"content-type": "x", "a": "\ud800"}, "json": "\ud800"})
def test_any_fields_are_a_request_or_told_why_not(fields: dict[str, Any]) -> None:
    found = parsed(json.dumps(fields).encode())
    assert found.id == fields.get("id", 1) or not isinstance(found, Call)
    if isinstance(found, Call):
        assert found.key
        assert found.cost >= 0
    else:
        line = json.loads(bad_result(str(found), found.id, 1))
        assert line == {
            "id": found.id,
            "line": 1,
            "ok": False,
            "status": None,
            "attempts": 0,
            "error": str(found),
        }


KINDS = ["", "application/json", "text/plain", "application/x+json; charset=utf-16", "text/x; charset=zip"]


@given(
    content=st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value, indent=1).encode())
    | st.text().map(str.encode),
    kind=st.sampled_from(KINDS) | st.text(st.characters(codec="latin-1"), max_size=20),
    status=st.sampled_from([200, 204, 404, 503]),
    reason=st.text(st.characters(), max_size=5),
)
@example(content=b'{"a": 1e999}', kind="application/json", status=200, reason="OK")
@example(content=b'["\\ud800"]', kind="application/json", status=200, reason="OK")
@example(content="\u2028\x85".encode(), kind="text/plain", status=200, reason="OK")
def test_any_answer_is_one_line_of_json(content: bytes, kind: str, status: int, reason: str) -> None:
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": kind, "Set-Cookie": "session=c00kie"}))
    response = Response(status, reason, "GET", "http://host.example/", headers, content, len(content))
    line = result_line(call(id="x"), answered(call(id="x"), response))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    facts = json.loads(line, parse_constant=pytest.fail)
    assert (facts["id"], facts["line"], facts["status"], facts["ok"]) == ("x", 3, status, status < 400)
    assert facts["url"] == "http://***@host.example/v1?key=***&q=1"
    assert ("error" in facts) == (status >= 400)
    assert b"c00kie" not in line
    if kind == "application/json" and content:
        try:
            expected = json.loads(content.decode("utf-8-sig"))
        except ValueError:
            return
        if b"NaN" not in content and b"Infinity" not in content:
            assert facts["body"] == expected


def test_what_failed_tells_its_cause_without_secrets() -> None:
    plain = json.loads(failed(call(), ConnectionFailed("cannot connect", hint="look", url=URL), 4, 1.5, 2.0))
    assert plain == {
        "ok": False,
        "status": None,
        "attempts": 4,
        "waited": 1.5,
        "elapsed": 2.0,
        "method": "GET",
        "url": "http://***@host.example/v1?key=***&q=1",
        "error": "cannot connect; look",
    }
    strange = json.loads(failed(call(), ValueError("password=hunter2\nand more"), 0, 0, 0))
    assert strange["error"] == "password=*** and more"
    assert json.loads(failed(call(), KeyError(), 0, 0, 0))["error"] == "KeyError"
    response = Response(503, "", "GET", URL, CIMultiDictProxy(CIMultiDict()), b"down", 4, attempts=6)
    answer = json.loads(failed(call(), StatusError("HTTP 503", response=response), 6, 0, 0))
    assert (answer["status"], answer["attempts"], answer["body"]) == (503, 6, "down")
    assert answer["error"] == "HTTP 503 Service Unavailable"
