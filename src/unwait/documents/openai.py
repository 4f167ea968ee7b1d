"""Models behind an API like OpenAI's: `/embeddings` and `/chat/completions`, as most servers of models speak them.

A repeated completion does no harm but to the purse, so the POSTs are retried like a GET. What a server does not know
of the API shows in a 400 (or 422) that names it; it is left out from then on.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from unwait.documents.models import Answer, ModelUnusable
from unwait.flow.faults import scrub
from unwait.flow.limits import Limits
from unwait.flow.rates import Rate
from unwait.flow.retry import Retry
from unwait.web.causes import status_cause
from unwait.web.client import Client
from unwait.web.errors import ConnectionFailed, InvalidAnswer, InvalidURL, StatusError
from unwait.web.response import Response
from unwait.web.text import first_characters, printable
from unwait.web.urls import parse, redact

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

R = TypeVar("R")

_OPENAI = "https://api.openai.com/v1"
_TOTAL = 3600.0  # s for a call with its retries and its turn in the limits
_AT_ONCE = 1 << 16  # bytes of an answer that are parsed within the loop: half a millisecond
_SHOWN = 300  # characters of what a server says
# Whatever the text: the key, the bill, the name of the model or the address is wrong. So is a 403 before any answer.
_UNUSABLE = frozenset((401, 402, 404, 405))
_SHORTEST_KEY = 8  # what is shorter ("none") keeps nobody out, and would be found in any text
# What UTF-8 cannot hold, and what C takes for the end of a text.
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


class Endpoint:
    """An API's address, its key, and its limits; open between `async with endpoint:` and its end.

    `base_url` ends in "/v1", as a rule; the environment's OPENAI_BASE_URL is the default, then OpenAI's own.
    `api_key` is by default OPENAI_API_KEY; local servers need none. `rate` ("500/min") bounds the requests, `tokens`
    ("90000/min") what they cost: the prompt and the longest answer. At most `limit` requests run at the same time.
    `timeout` is of one attempt, in seconds; `retry` how often a call is made again.

    Raises ValueError (InvalidURL is one) for an address or a key that cannot be used, and without a key for OpenAI.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        rate: str | Rate | None = None,
        tokens: str | Rate | None = None,
        limit: int = 64,
        timeout: float = 120.0,
        retry: Retry | int | None = 5,
    ) -> None:
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
        try:
            address = parse(self.base_url)
        except InvalidURL as error:
            raise InvalidURL(f"the base URL {redact(self.base_url)!r} cannot be used: {error}") from None
        key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        if key and not re.fullmatch(r"[!-~]+", key):
            raise ValueError("the API key has characters that no key has: check OPENAI_API_KEY")
        if not key and address.host == "api.openai.com":
            raise ValueError(
                "OPENAI_API_KEY is not set, and OpenAI wants a key; for another server, give its base URL"
            )
        self._key = key
        self._answered = False
        self.limit = limit
        self._client = Client(
            limits=Limits(concurrency=limit, rate=rate, tokens=tokens),
            per_host=limit,
            retry=retry,
            timeout=timeout,
            total=max(_TOTAL, timeout),
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )

    def __repr__(self) -> str:
        return f"<Endpoint {redact(self.base_url)}>"

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def call(self, path: str, asked: Mapping[str, Any], read: Callable[[Any], R], *, cost: float) -> R:
        """What `read` makes of the JSON that the endpoint answers; `cost` is in tokens.

        `read` may raise for JSON that is not what was asked for; of a large answer, it runs in a thread. Raises
        ClientError: StatusError with what the server said, InvalidAnswer, and others; ModelUnusable where it is not
        what was asked, and no other call would be answered either.
        """
        try:
            response = await self._client.post(
                f"{self.base_url}/{path}", json=asked, cost=cost, idempotent=True
            )
        except ConnectionFailed as error:
            if self._answered:
                raise
            unusable = ModelUnusable(error.cause, attempts=error.attempts)
            unusable.method, unusable.url = error.method, error.url
            unusable.hint = error.hint or self._is_it_the_api()
            raise unusable from error
        if not response.ok:
            raise self._refusal(response, str(asked.get("model")))
        if len(response.content) <= _AT_ONCE:
            found = self._read(response, read)
        else:
            found = await asyncio.to_thread(self._read, response, read)
        self._answered = True
        return found

    def _read(self, response: Response, read: Callable[[Any], R]) -> R:
        try:
            return read(response.json())
        except InvalidAnswer as error:
            if not self._answered:
                unusable = ModelUnusable(error.cause, response=response, attempts=response.attempts)
                unusable.hint = self._is_it_the_api()
                raise unusable from None
            error.hint = self._is_it_the_api()
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            begins = first_characters(response.content[:400], response.charset, 60)
            what = f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"
            cause = self._safe(f"not the answer that was asked for: {what} (it begins {begins!r})")
            invalid = InvalidAnswer(cause, method="POST", url=response.url, attempts=response.attempts)
            invalid.hint = self._is_it_the_api()
            raise invalid from None

    def _is_it_the_api(self) -> str:
        return f"check that {redact(self.base_url)} is the base URL of an API like OpenAI's"

    def _refusal(self, response: Response, model: str) -> StatusError:
        cause = status_cause(response.status, response.reason)
        if said := self._safe(_message(response)):
            cause += f": {said}"
        status = response.status
        no_credit = status == 429 and "insufficient_quota" in _said(response).values()
        unusable = status in _UNUSABLE or no_credit or (status == 403 and not self._answered)
        kind = ModelUnusable if unusable else StatusError
        refusal = kind(cause, response=response, attempts=response.attempts)
        match status:
            case 401:
                refusal.hint = "set OPENAI_API_KEY to a key of this server" + (
                    "" if not self._key else "; it does not take the one it was given"
                )
            case 403:
                refusal.hint = f"the key in OPENAI_API_KEY may not use the model {model!r}"
            case 404 | 405:
                refusal.hint = f"check the model's name, {model!r}, and the base URL, {redact(self.base_url)}"
        return refusal

    def _safe(self, text: str) -> str:
        """One line of what a server said, without the key, which some repeat."""
        if len(self._key) >= _SHORTEST_KEY:
            text = text.replace(self._key, "***")
        text = printable(scrub(text))
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _said(response: Response) -> Mapping[str, Any]:
    """The error in the body of an answer, in one of the ways in which servers write it."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _message(response: Response) -> str:
    said = _said(response)
    for name in ("message", "detail", "error"):
        if said.get(name):
            return str(said[name])
    return first_characters(response.content[:2000], response.charset, _SHOWN)


def model_of(spec: str) -> str:
    """The name of the model in "openai:MODEL"; ValueError for any other text."""
    kind, _, model = spec.partition(":")
    if kind.strip().lower() != "openai" or not model.strip():
        raise ValueError(f"a model is openai:MODEL, such as openai:gpt-4o-mini, and not {spec!r}")
    return model.strip()


def _sendable(text: str) -> str:
    return _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", text)


# Tokens. No vocabulary is at hand without a download; what is in a text says enough. Measured in bytes of UTF-8, the
# words of English take 4 to a token, code and numbers half as many, Chinese, Japanese and Korean 3, emoji 2.
_DENSE = bytes(range(0x21, 0x41)) + b"[\\]^_`{|}~"
_EAST = bytes(range(0xE3, 0xEE))  # the first of three bytes of a character
_EMOJI = bytes(range(0xF0, 0xF5))


def tokens(text: str) -> float:
    """About how many tokens the text has; takes a microsecond for a thousand characters."""
    data = text.encode("utf-8", "replace")
    size = len(data)
    count = size + size - len(data.translate(None, _DENSE))
    if not text.isascii():
        count += size - len(data.translate(None, _EAST)) + 6 * (size - len(data.translate(None, _EMOJI)))
    return count / 4 + 1


class OpenAIEmbedder:
    """An `Embedder` at an endpoint. `dimensions` asks for shorter vectors, of the models that have them."""

    paid = True
    batch = 96
    batch_tokens = (
        24_000.0  # so many passages of the default size; a server that takes fewer gets half of them
    )

    def __init__(self, endpoint: Endpoint, model: str, *, dimensions: int | None = None) -> None:
        if dimensions is not None and dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, and is {dimensions}")
        self.name = f"openai:{model}" + (f"@{dimensions}" if dimensions else "")
        self.at_once = endpoint.limit
        self._endpoint = endpoint
        self._model = model
        self._dimensions = dimensions
        self._width: int | None = dimensions
        self._unknown: set[str] = set()

    def tokens(self, text: str) -> float:
        """About how many tokens the text has."""
        return tokens(text)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of the texts, one call; raises ClientError where there are none."""
        if not texts:
            return np.empty((0, self._width or 0), np.float32)
        # An empty text is refused; a blank one is not.
        asked: dict[str, Any] = {"model": self._model, "input": [_sendable(text) or " " for text in texts]}
        if self._dimensions:
            asked["dimensions"] = self._dimensions
        cost = sum(map(tokens, texts))
        found = None
        while found is None:
            if "encoding_format" not in self._unknown:
                asked["encoding_format"] = "base64"
            try:
                found = await self._endpoint.call(
                    "embeddings", asked, lambda body: _vectors(body, len(texts)), cost=cost
                )
            except StatusError as error:
                if not ("encoding_format" in asked and _names(error, ("encoding_format", "base64"))):
                    raise
                self._unknown.add("encoding_format")
                del asked["encoding_format"]
        width = found.shape[1]
        if self._width not in (None, width):
            raise InvalidAnswer(
                f"{self.name} answered vectors of {width} dimensions, not {self._width}",
                hint="name a model that has them" if self._dimensions else "",
            )
        self._width = width
        return found


def _names(error: StatusError, words: Sequence[str]) -> bool:
    """Whether the server refused the request for something that is called so."""
    response = error.response
    if response is None or response.status not in (400, 422):
        return False
    said = _said(response)
    text = f"{said.get('param')} {said.get('code')} {_message(response)}".lower()
    return any(word in text for word in words)


def _vectors(body: Any, count: int) -> Vectors:
    data = body["data"]
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} texts")
    rows: list[Any] = [None] * count
    for place, item in enumerate(data):
        index, given = item.get("index", place), item["embedding"]
        if not (isinstance(index, int) and 0 <= index < count and rows[index] is None):
            raise ValueError(f"its index {index!r} is none, or there twice")
        if isinstance(given, str):
            try:
                rows[index] = np.frombuffer(base64.b64decode(given, validate=True), "<f4")
            except binascii.Error as error:
                raise ValueError(f"a vector that is not base64: {error}") from None
        else:
            rows[index] = np.asarray(given, np.float32)
        if rows[index].ndim != 1 or not rows[index].size:
            raise ValueError("a vector that is no list of numbers")
    widths = sorted({row.size for row in rows})
    if len(widths) > 1:
        raise ValueError(f"vectors of different dimensions: {', '.join(map(str, widths))}")
    found = np.stack(rows).astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ValueError("a vector with infinite numbers, or with what is no number")
    # Their squares may be beyond 32 bits.
    lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    normed: Vectors = (found / lengths).astype(np.float32)
    return normed


class _Feature(NamedTuple):
    """Something that a server may not know: by which words its refusal shows, and what takes its place."""

    words: tuple[str, ...]
    instead: str | None


_FEATURES = {
    "json_schema": _Feature(("json_schema", "response_format", "schema"), "json_object"),
    "json_object": _Feature(("json_object", "response_format"), None),
    "max_tokens": _Feature(("max_tokens",), "max_completion_tokens"),
    "temperature": _Feature(("temperature",), None),
}


class OpenAIChat:
    """A `Chat` at an endpoint.

    Where a server refuses schemas, it is asked for any JSON, with the schema in the prompt; where it refuses that as
    well, for a text.
    """

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self.name = f"openai:{model}"
        self._endpoint = endpoint
        self._model = model
        self._unknown: set[str] = set()

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
    ) -> Answer:
        """Ask once. Raises ClientError where there is no answer, also where the model refuses to give one."""
        while True:
            asked, used = self._request(messages, schema, max_tokens)
            cost = sum(tokens(message["content"]) + 4 for message in asked["messages"]) + max_tokens
            try:
                return await self._endpoint.call("chat/completions", asked, _answer, cost=cost)
            except StatusError as error:
                refused = [name for name in used if _names(error, _FEATURES[name].words)]
                if not refused:
                    raise
                self._unknown.add(refused[0])

    def _request(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None, max_tokens: int
    ) -> tuple[dict[str, Any], list[str]]:
        """The body of a request in what this server knows, and which features it makes use of."""
        told = [{**message, "content": _sendable(message["content"])} for message in messages]
        asked: dict[str, Any] = {"model": self._model, "messages": told}
        used = []
        if schema is not None:
            kind = self._known("json_schema")
            if kind == "json_schema":
                asked["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": schema, "strict": _is_strict(schema)},
                }
            else:
                told.insert(0, {"role": "system", "content": f"{_ONLY_JSON}\n{json.dumps(schema)}"})
                if kind is not None:
                    asked["response_format"] = {"type": kind}
            used += [kind] if kind else []
        if (name := self._known("max_tokens")) is not None:
            asked[name] = max_tokens
            used += [name] if name in _FEATURES else []
        if self._known("temperature"):
            asked["temperature"] = 0
            used.append("temperature")
        return asked, used

    def _known(self, name: str) -> str | None:
        """The feature, or the first in its place that the server has not refused."""
        found: str | None = name
        while found in self._unknown:
            found = _FEATURES[found].instead
        return found


_ONLY_JSON = "Answer with JSON only: one object that agrees with this JSON schema."


def _answer(body: Any) -> Answer:
    message = body["choices"][0]["message"]
    text = message.get("content")
    if not isinstance(text, str):
        refused = message.get("refusal")
        raise ValueError(f"the model refused: {refused}" if refused else "a message without a text")
    usage = body.get("usage") or {}
    return Answer(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _is_strict(schema: Mapping[str, Any]) -> bool:
    """Whether the schema is of the strict kind: all properties of an object are required, and it has no others."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if part.get("type") == "object" and (
                part.get("additionalProperties") is not False
                or set(part.get("required", ())) != set(part.get("properties", ()))
            ):
                return False
            waiting += part.values()
    return True
