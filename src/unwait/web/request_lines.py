"""Requests as JSON Lines: what a line may hold, and the line that says what became of it.

{"id": "a1", "url": "https://api.example/v1/complete", "json": {"prompt": "…", "max_tokens": 50}}
{"id": "a1", "line": 1, "ok": true, "status": 200, "attempts": 1, …, "body": {"text": "…"}}
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from unwait.flow.faults import scrub
from unwait.web.causes import status_cause
from unwait.web.connector import check_headers, check_method
from unwait.web.errors import ClientError, InvalidURL, StatusError
from unwait.web.response import Response
from unwait.web.text import printable
from unwait.web.urls import parse, redact

LONGEST_LINE = 64 << 20  # bytes
_FIELDS = ("id", "method", "url", "headers", "json", "body", "cost", "timeout", "idempotent")
# How a request names the most tokens that its answer may have.
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CHARACTERS_A_TOKEN = 4
# Of the answer's headers, those that help to read it, to ask again or to complain.
_SHOWN = ("content-type", "location", "etag", "last-modified", "retry-after", "x-request-id", "request-id")


class BadLine(Exception):
    """A line that is no request; `id` is the one that it names, if it names one."""

    def __init__(self, problem: str, id: str | int | None = None) -> None:
        super().__init__(problem)
        self.id = id


@dataclass(frozen=True, slots=True)
class Call:
    """A request to be made: the line's number and what is on it. `cost` is in tokens, `timeout` in seconds."""

    line: int
    id: str | int
    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None
    cost: float
    timeout: float | None
    idempotent: bool | None

    @property
    def key(self) -> str:
        """Its name in a journal. Another method, URL or body makes it another call; another password does not."""
        digest = hashlib.sha256(f"{self.method} {redact(self.url)}\n".encode("utf-8", "surrogatepass"))
        digest.update(self.body or b"")
        return f"{json.dumps(self.id, ensure_ascii=False)} {digest.hexdigest()[:16]}"


def parse_call(line: bytes, number: int) -> Call:
    """The call on a line. Raises BadLine."""
    fields = _object(line)
    id = fields.get("id", number)
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise BadLine(f"id must be text or a whole number, not {_kind(id)}")
    try:
        return _call(fields, id, number)
    except BadLine as bad:
        bad.id = id
        raise


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8: byte {error.start + 1} of the line cannot be decoded") from None
    try:
        fields = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise BadLine("not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise BadLine(f"not JSON that can be read: {printable(str(error))[:100]}") from None
    if not isinstance(fields, dict):
        raise BadLine(f"a request is an object, not {_kind(fields)}")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _call(fields: dict[str, Any], id: str | int, number: int) -> Call:
    if unknown := [name for name in fields if name not in _FIELDS]:
        raise BadLine(f"unknown field {_quoted(unknown[0])}; a request has {', '.join(_FIELDS)}")
    if "url" not in fields:
        raise BadLine("url is missing")
    headers = dict(_checked(fields, "headers", dict, {}))
    body = _body(fields, headers)
    method = _checked(fields, "method", str, "GET" if body is None else "POST")
    url = _checked(fields, "url", str)
    try:
        method = check_method(method)
        check_headers(headers)
        parse(url)
    except InvalidURL as error:
        raise BadLine(f"url: {error}") from None
    except (TypeError, ValueError) as error:
        raise BadLine(printable(scrub(str(error)))) from None
    cost = fields.get("cost")
    if cost is None:
        cost = _estimate(fields, body)
    elif not _is_number(cost) or cost < 0:
        raise BadLine(f"cost must be a number of tokens, not {_kind(cost)}")
    timeout = fields.get("timeout")
    if timeout is not None and (not _is_number(timeout) or not timeout > 0):
        raise BadLine(f"timeout must be a number of seconds above 0, not {_kind(timeout)}")
    idempotent = _checked(fields, "idempotent", bool, None)
    return Call(number, id, method, url, headers, body, float(cost), timeout, idempotent)


def _checked(fields: dict[str, Any], name: str, kind: type, otherwise: Any = None) -> Any:
    value = fields.get(name, otherwise)
    if value is None and name != "url":
        return otherwise
    if not isinstance(value, kind):
        wanted = {dict: "an object", str: "text", bool: "true or false"}[kind]
        raise BadLine(f"{name} must be {wanted}, not {_kind(value)}")
    return value


def _body(fields: dict[str, Any], headers: dict[str, str]) -> bytes | None:
    """The bytes of the body; a content type for it joins the headers."""
    has_json, text = "json" in fields, fields.get("body")
    if has_json and text is not None:
        raise BadLine("a request has one body: json or body, not both")
    if text is not None and not isinstance(text, str):
        raise BadLine(f"body must be text, not {_kind(text)}; what is to be sent as JSON goes into json")
    if not has_json and text is None:
        return None
    kind = "application/json" if has_json else "text/plain; charset=utf-8"
    if not any(isinstance(name, str) and name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = kind
    if has_json:
        text = json.dumps(fields["json"], separators=(",", ":"), ensure_ascii=False)
    try:
        return str(text).encode()
    except UnicodeEncodeError:
        # Half a character, as \ud800: JSON can say it, UTF-8 cannot.
        if has_json:
            return json.dumps(fields["json"], separators=(",", ":")).encode()
        raise BadLine("body has half a character in it (a lone surrogate), which cannot be sent") from None


def _estimate(fields: dict[str, Any], body: bytes | None) -> float:
    """Tokens, roughly: those of the body, and the most that the answer may have."""
    cost = math.ceil(len(body or b"") / _CHARACTERS_A_TOKEN)
    asked = fields.get("json")
    if isinstance(asked, dict):
        most = next((asked[name] for name in _MAX_TOKENS if name in asked), 0)
        if _is_number(most) and most > 0:
            return float(cost + most)
    return float(cost)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return "text" if value else "empty text"
    if isinstance(value, int | float):
        return f"{value:g}" if _is_number(value) else "a number out of range"
    return "a list" if isinstance(value, list) else "an object"


def _quoted(name: str) -> str:
    return f'"{printable(name)[:40]}"'


# Results.


def bad_result(problem: str, id: str | int | None, line: int) -> bytes:
    """The result line for a line that is no request."""
    return _line(
        id, line, json.dumps({"ok": False, "status": None, "attempts": 0, "error": problem}).encode()
    )


def result_line(call: Call, result: bytes) -> bytes:
    """The line for what `answered` or `failed` made, under the call's id."""
    return _line(call.id, call.line, result)


def _line(id: str | int | None, line: int, result: bytes) -> bytes:
    return b'{"id": %s, "line": %d, %s\n' % (json.dumps(id).encode(), line, result[1:])


def answered(call: Call, response: Response) -> bytes:
    """What becomes of a call that got an answer, as JSON: its status, its times and its body."""
    return _result(
        call,
        response.ok,
        response.status,
        response.attempts,
        response.waited,
        response.elapsed,
        {
            "headers": {name: response.headers[name] for name in _SHOWN if name in response.headers},
            **({} if response.ok else {"error": status_cause(response.status, response.reason)}),
        },
        _body_text(response),
    )


def failed(call: Call, error: BaseException | None, attempts: int, waited: float, elapsed: float) -> bytes:
    """What becomes of a call that failed in the end, as JSON."""
    if isinstance(error, StatusError) and error.response is not None:
        return answered(call, error.response)
    if isinstance(error, ClientError):
        text = f"{error.cause}; {error.hint}" if error.hint else error.cause
    else:
        text = printable(scrub(str(error)))[:300] or type(error).__name__
    return _result(call, False, None, attempts, waited, elapsed, {"error": text}, None)


def _result(
    call: Call,
    ok: bool,
    status: int | None,
    attempts: int,
    waited: float,
    elapsed: float,
    more: dict[str, Any],
    body: str | None,
) -> bytes:
    head = {
        "ok": ok,
        "status": status,
        "attempts": attempts,
        "waited": round(waited, 6),
        "elapsed": round(elapsed, 6),
        "method": call.method,
        "url": redact(call.url),
        **more,
    }
    text = json.dumps(head)
    if body is not None:
        text = f'{text[:-1]}, "body": {body}}}'
    return text.encode("utf-8", "backslashreplace")


def _body_text(response: Response) -> str:
    """The body as JSON: itself if that is what it is, else its text, else its bytes in base64."""
    content = response.content
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    charset = (response.charset or "utf-8").lower()
    if kind in ("application/json", "text/json") or kind.endswith("+json"):
        try:
            text = content.decode("utf-8-sig" if charset.startswith("utf") else charset)
            json.loads(text, parse_constant=_no_constant)
        except (ValueError, LookupError, RecursionError):
            pass
        else:
            # As it came, for a number may have more digits than Python keeps; outside of strings, breaks are spaces.
            return text.replace("\r", " ").replace("\n", " ").strip()
    try:
        return json.dumps(content.decode(charset))
    except (ValueError, LookupError):
        return json.dumps({"base64": base64.b64encode(content).decode()})
