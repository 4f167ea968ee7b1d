"""What the models behind examples/flaky_api.py answer: seeded, without any model, and true to the schema asked for.

`embeddings`, `chat` and `models` take the body of a request as OpenAI's API does and give a `Call`: what it costs and
how to make its answer. What that API refuses raises `Refused`.

    vector     a hashed bag of words, of unit length: texts that share words are near one another
    text       the first sentences of the document in the prompt
    JSON       true to the schema, with values found in the document where it has any of their kind: behind the name
               of a property first ("Due date: 2024-05-01" for `due_date`), else the next of the kind; as many items
               of a list as the document names, up to the bounds of the schema and 20

A document in a prompt is what stands between `<tag>` and `</tag>` on lines of their own; without such, the first
message of the user. One token is up to six letters or digits, or one other character.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from flaky_faults import Faults, draws

MODELS = (
    "text-embedding-3-small",
    "gpt-4o-mini",
)  # that are listed; any name is a model, unless they are limited
INPUTS = 2048  # texts of a call, at most
INPUT_TOKENS = 8192  # of one text
CALL_TOKENS = 300_000  # of all texts of a call
DIMENSIONS = 256  # unless asked for
_MOST_DIMENSIONS = 3072
_SPREAD = 4  # places of a vector that each word counts in
_SENTENCES = 2
_MOST_ITEMS = 20
_DEEPEST = 12  # levels of a schema that refers to itself
_CREATED = 1_700_000_000

_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")
_WORD = re.compile(r"\w+")
_DOCUMENT = re.compile(r"^<([\w-]+)>\n(.*?)\n</\1>$", re.DOTALL | re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")
_DATE = re.compile(r"(?<![\w-])\d{4}-\d{2}-\d{2}(?![\w-])")
_NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:\.\d+)?(?![\w-]|[.,]\d)")
_CODE = re.compile(r"\w[\w/-]*")
_NAME = re.compile(r"(?<!\w)[^\W\d_]{3,}(?!\w)")


class Refused(Exception):
    """A request that the API does not take: its status, its error's code, and what it says."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Call(NamedTuple):
    """A request that is understood."""

    payload: str  # stands for all that was asked
    cost: int  # tokens that it takes from the limits
    answer: Callable[[], dict[str, Any]]
    texts: Sequence[str] = ()  # stands for each text to embed


def tokens(text: str) -> int:
    """How many tokens the text has."""
    return sum(1 for _ in _TOKEN.finditer(text))


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _asked(sent: bytes, faults: Faults) -> dict[str, Any]:
    try:
        asked = json.loads(sent)
    except (ValueError, RecursionError) as error:
        raise Refused(f"we could not parse the JSON body of your request: {error}") from None
    if not isinstance(asked, dict):
        raise Refused("the body must be a JSON object")
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise Refused("you must provide a model parameter")
    if faults.models and model not in _names(faults):
        raise Refused(f"the model {model!r} does not exist", 404, "model_not_found")
    return asked


def _names(faults: Faults) -> Sequence[str]:
    return faults.models.split(",") if faults.models else MODELS


def _whole(asked: Mapping[str, Any], name: str, default: int, most: int) -> int:
    number = asked.get(name)
    if number is None:
        return default
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise Refused(f"'{name}' must be an integer from 1 to {most}, not {number!r}")
    return number


def models(faults: Faults) -> dict[str, Any]:
    """What GET /v1/models answers."""
    data = [
        {"id": name, "object": "model", "created": _CREATED, "owned_by": "flaky"} for name in _names(faults)
    ]
    return {"object": "list", "data": data}


# Embeddings.


def embeddings(sent: bytes, faults: Faults) -> Call:
    """What POST /v1/embeddings with this body asks for."""
    asked = _asked(sent, faults)
    texts = asked.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused("'input' must be a text or a list of texts, and not empty")
    if len(texts) > INPUTS:
        raise Refused(f"'input' has {len(texts)} texts; at most {INPUTS} are allowed")
    if "" in texts:
        raise Refused(f"'input[{texts.index('')}]' cannot be an empty string")
    costs = [tokens(text) for text in texts]
    if max(costs) > INPUT_TOKENS:
        most = f"this model's maximum context length is {INPUT_TOKENS} tokens"
        raise Refused(f"{most}, and 'input[{costs.index(max(costs))}]' has {max(costs)}")
    cost = sum(costs)
    if cost > CALL_TOKENS:
        raise Refused(f"at most {CALL_TOKENS} tokens are allowed in a request, and this has {cost}")
    model, dimensions = asked["model"], _whole(asked, "dimensions", DIMENSIONS, _MOST_DIMENSIONS)
    form = asked.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Refused(f"'encoding_format' must be 'float' or 'base64', not {form!r}")

    def answer() -> dict[str, Any]:
        data = []
        for index, text in enumerate(texts):
            row = vector(text, dimensions, model)
            data.append({"object": "embedding", "index": index, "embedding": _encoded(row, form)})
        usage = {"prompt_tokens": cost, "total_tokens": cost}
        return {"object": "list", "model": model, "data": data, "usage": usage}

    names = [_digest(model, str(dimensions), text) for text in texts]
    return Call(_digest(form, *names), max(1, cost), answer, names)


@lru_cache(1 << 16)
def _places(word: str, dimensions: int, model: str) -> tuple[tuple[int, float], ...]:
    numbers = draws(model, word)
    return tuple(
        (int(numbers[2 * n] * dimensions), 1.0 if numbers[2 * n + 1] < 0.5 else -1.0) for n in range(_SPREAD)
    )


def vector(text: str, dimensions: int = DIMENSIONS, model: str = MODELS[0]) -> array[float]:
    """The text's vector: 32-bit floats of unit length."""
    row = [0.0] * dimensions
    for word, count in Counter(_WORD.findall(text.lower()) or [text]).items():
        # Whatever stands a hundred times in a text says little more of it than what stands there ten times.
        weight = 1 + math.log(count)
        for place, sign in _places(word, dimensions, model):
            row[place] += sign * weight
    length = math.sqrt(math.fsum(value * value for value in row))
    if not length:
        row[0] = length = 1.0
    return array("f", [value / length for value in row])


def _encoded(row: array[float], form: str) -> Any:
    if form == "float":
        return row.tolist()
    if sys.byteorder == "big":
        row.byteswap()
    return base64.b64encode(row.tobytes()).decode()


# Chat.


def chat(sent: bytes, faults: Faults) -> Call:
    """What POST /v1/chat/completions with this body asks for.

    The first `faults.invalid` answers of a conversation that asks for JSON are not what was asked for.
    """
    asked = _asked(sent, faults)
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("'messages' must be a list, and not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise Refused(f"'messages[{index}].role' must be 'system', 'user' or 'assistant'")
        if not isinstance(message.get("content"), str):
            raise Refused(f"'messages[{index}].content' must be a text")
    most = _whole(asked, "max_completion_tokens", _whole(asked, "max_tokens", 4096, 16384), 16384)
    schema = _schema_for(asked.get("response_format"), messages, faults)
    prompt = sum(tokens(message["content"]) for message in messages)
    payload = _digest(json.dumps(asked, sort_keys=True))

    def answer() -> dict[str, Any]:
        document = _document(messages)
        given = sum(message["role"] == "assistant" for message in messages)
        if schema is None:
            text = " ".join(
                sentence for sentence, _ in zip(_sentences(document), range(_SENTENCES), strict=False)
            )
        else:
            value = _Filler(schema, document, faults.seed).value(schema, "", 0, 0)
            text = _broken(value, given) if given < faults.invalid else json.dumps(value, ensure_ascii=False)
        ends = [found.end() for found in _TOKEN.finditer(text)]
        cut = len(ends) > most
        message = {"role": "assistant", "content": text[: ends[most - 1]] if cut else text, "refusal": None}
        usage = {"prompt_tokens": prompt, "completion_tokens": min(len(ends), most)}
        usage["total_tokens"] = sum(usage.values())
        return {
            "id": f"chatcmpl-{payload}",
            "object": "chat.completion",
            "created": _CREATED,
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
            "usage": usage,
        }

    return Call(payload, prompt + most, answer)


def _document(messages: Sequence[Mapping[str, str]]) -> str:
    """What the prompt is about."""
    told = [message["content"] for message in messages if message["role"] == "user"] or [""]
    found = [match[2] for text in told for match in _DOCUMENT.finditer(text)]
    return max(found, key=len) if found else told[0]


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        yield " ".join(text[start : match.end()].split())
        start = match.end()
    if not start:
        yield " ".join(text.split()[:40])


def _schema_for(wanted: Any, messages: Sequence[Mapping[str, str]], faults: Faults) -> dict[str, Any] | None:
    """The schema of the answer; None if it is to be a text."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        if not any("json" in message["content"].lower() for message in messages):
            raise Refused("'messages' must contain the word 'json' to use 'response_format' of 'json_object'")
        return next(
            filter(None, (_schema_in(message["content"]) for message in messages)), {"type": "object"}
        )
    if kind != "json_schema" or faults.response_format != "json_schema":
        raise Refused(
            f"invalid parameter: 'response_format' of type {kind!r} is not supported with this model"
        )
    named = wanted.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise Refused("missing required parameter: 'response_format.json_schema.schema'")
    if not re.fullmatch(r"[\w-]{1,64}", str(named.get("name", "")), re.ASCII):
        raise Refused("invalid 'response_format.json_schema.name': letters, digits, _ and -, at most 64")
    schema: dict[str, Any] = named["schema"]
    if named.get("strict"):
        _check_strict(schema)
    _Filler(schema, "", 0).value(schema, "", 0, 0)  # what it cannot fill is refused now
    return schema


def _schema_in(text: str) -> dict[str, Any] | None:
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"^\{", text, re.MULTILINE)):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "properties" in found:
            return found
    return None


def _check_strict(schema: dict[str, Any]) -> None:
    """What strict schemas must have: all properties required, and no others."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        if "$ref" in part and len(part) > 1:
            raise Refused(
                f"invalid schema for response_format: $ref cannot have other keywords, as in {part}"
            )
        if "default" in part or "oneOf" in part:
            raise Refused("invalid schema for response_format: 'default' and 'oneOf' are not permitted")
        if part.get("type") == "object":
            if part.get("additionalProperties") is not False:
                raise Refused("invalid schema for response_format: 'additionalProperties' must be false")
            if set(part.get("required", ())) != set(part.get("properties", ())):
                raise Refused("invalid schema for response_format: 'required' must name every property")
        waiting += [*part.get("properties", {}).values(), *part.get("$defs", {}).values()]
        waiting += [part.get("items"), part.get("anyOf")]


def _broken(value: Any, which: int) -> str:
    """An answer that is not what was asked for, in one of three ways."""
    whole = json.dumps(value, ensure_ascii=False)
    if which % 3 == 1:
        return f"Here you are: {whole[: len(whole) // 2]}"
    wrong, place = json.loads(whole), None
    waiting: list[tuple[Any, Any, Any]] = [(None, None, wrong)]
    while waiting:
        holder, key, part = waiting.pop()
        if isinstance(part, dict | list):
            waiting += [
                (part, *item) for item in (part.items() if isinstance(part, dict) else enumerate(part))
            ]
        elif holder is not None:
            place = (holder, key)
    if place is None:
        return "[]"
    holder, key = place
    if which % 3 == 0 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = {"not": "this"}
    return json.dumps(wrong, ensure_ascii=False)


class _Filler:
    """Fills a schema with what a document says."""

    def __init__(self, schema: dict[str, Any], document: str, seed: int) -> None:
        self._root = schema
        self._document = document
        self._seed = seed
        self._dates = [text for text in _DATE.findall(document) if _is_date(text)]
        self._numbers = _NUMBER.findall(document)
        self._names = _NAME.findall(document)

    def value(self, schema: Any, name: str, item: int, depth: int) -> Any:
        """A value that agrees with the schema, for the property of this name, in the item of this number."""
        schema = self._resolved(schema)
        if depth > _DEEPEST:
            raise Refused("invalid schema for response_format: it has no end")
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], name, item)
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return self._option(options, name, item, depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            options = [{**schema, "type": one} for one in kind]
            return self._option(options, name, item, depth)
        match kind:
            case "object":
                properties = schema.get("properties", {})
                return {key: self.value(part, key, item, depth + 1) for key, part in properties.items()}
            case "array":
                return self._array(schema, name, item, depth)
            case "string":
                return self._string(schema, name, item)
            case "integer" | "number":
                return self._number(schema, name, item)
            case "boolean":
                return self._draw(name, item) < 0.5
            case "null":
                return None
        raise Refused(f"invalid schema for response_format: no such type as {kind!r}")

    def _resolved(self, schema: Any) -> dict[str, Any]:
        for _ in range(_DEEPEST):
            if isinstance(schema, dict) and len(schema.get("allOf", ())) == 1:
                schema = {**schema, **schema["allOf"][0]}
                del schema["allOf"]
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            found: Any = self._root
            for step in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
                found = (
                    found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
                )
            schema = found
        if not isinstance(schema, dict) or "$ref" in schema or "allOf" in schema:
            raise Refused(
                "invalid schema for response_format: a part of it is not an object, or leads nowhere"
            )
        return schema

    def _draw(self, *parts: object) -> float:
        return draws(self._seed, self._document, *parts)[0]

    def _choice(self, values: Sequence[Any], name: str, item: int) -> Any:
        said = self._said(name, item, r"[^\n]*").lower()
        for text in (said, self._document.lower()):
            for value in values:
                if re.search(rf"(?<!\w){re.escape(str(value).lower())}(?!\w)", text):
                    return value
        return values[int(self._draw(name, item) * len(values))]

    def _option(self, options: Sequence[Any], name: str, item: int, depth: int) -> Any:
        parts = [self._resolved(part) for part in options]
        nullable = any(part.get("type") == "null" for part in parts)
        if nullable and (depth > _DEEPEST // 2 or not self._has(name, item)):
            return None
        return self.value(next(part for part in parts if part.get("type") != "null"), name, item, depth)

    def _array(self, schema: dict[str, Any], name: str, item: int, depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(part, name, item, depth + 1) for part in schema["prefixItems"]]
        least = schema.get("minItems", 0)
        part = schema.get("items", {"type": "string"})
        count = least if depth > _DEEPEST // 2 else max(least, self._count(part))
        count = min(count, schema.get("maxItems", count))
        # A list within an item of a list is of that item.
        places = [item] * count if item or depth > 2 else range(count)
        values = [self.value(part, name, place, depth + 1) for place in places]
        if schema.get("uniqueItems"):
            values = [value for index, value in enumerate(values) if value not in values[:index]]
        return values

    def _count(self, part: Any) -> int:
        """How many items the document has: how often it names the property that it names most."""
        properties = self._resolved(part).get("properties", {})
        counts = [len(self._labels(name)) for name in properties]
        return min(max(1, *counts, 1), _MOST_ITEMS)

    def _labels(self, name: str) -> list[re.Match[str]]:
        label = r"[\W_]+".join(map(re.escape, re.findall(r"[A-Za-z0-9]+", name)))
        return list(re.finditer(rf"(?i)(?<!\w){label}[ \t]*[:=][ \t]*", self._document)) if label else []

    def _has(self, name: str, item: int) -> bool:
        return len(self._labels(name)) > item

    def _said(self, name: str, item: int, pattern: str) -> str:
        """What the document says behind the item's label of this name, if it says that."""
        labels = self._labels(name)
        if item < len(labels) and (found := re.compile(pattern).match(self._document, labels[item].end())):
            return found[0].strip()
        return ""

    def _next(self, values: Sequence[str], name: str, item: int) -> str | None:
        return values[(item + int(self._draw(name) * len(values))) % len(values)] if values else None

    def _string(self, schema: dict[str, Any], name: str, item: int) -> str:
        kind, pattern = schema.get("format"), schema.get("pattern")
        if kind == "date":
            said = self._said(name, item, _DATE.pattern)
            return said if _is_date(said) else self._next(self._dates, name, item) or "2000-01-01"
        if kind == "date-time":
            return f"{self._next(self._dates, name, item) or '2000-01-01'}T00:00:00Z"
        fixed = {
            "time": "12:00:00Z",
            "duration": "PT1H",
            "email": "someone@example.org",
            "uri": "https://example.org/",
            "uuid": "00000000-0000-4000-8000-000000000000",
            "ipv4": "192.0.2.1",
            "ipv6": "2001:db8::1",
            "hostname": "example.org",
        }
        if kind in fixed:
            return fixed[kind]
        found = [
            self._said(name, item, r"[^\n,;]*?(?=\.?\s*(?:[\n,;]|\Z)|\.\s)"),
            self._next(self._names, name, item),
        ]
        if pattern is not None:
            found += _CODE.findall(self._document)[:200]
        found += ["0", "a", "A1", "0.0", "AB", "ABC", "abc", "something"]
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if pattern is None:
            text = next(filter(None, found))
            return f"{text:x<{least}}"[:most]
        try:
            fitting = re.compile(pattern)
        except re.error:
            fitting = re.compile(r"(?!)")
        for text in filter(None, found):
            if fitting.search(text) and least <= len(text) <= (math.inf if most is None else most):
                return text
        raise Refused(f"invalid schema for response_format: the pattern {pattern!r} is not supported")

    def _number(self, schema: dict[str, Any], name: str, item: int) -> int | float:
        whole = schema["type"] == "integer"
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        step = schema.get("multipleOf", 1 if whole else 0)

        def fits(number: float) -> bool:
            return low <= number <= high and above < number < below and not (step and number % step)

        said = _NUMBER.search(self._said(name, item, r"[^\w\n]{0,3}" + _NUMBER.pattern))
        found = [said[0]] if said else []
        found += [self._next(self._numbers, name, item) or "1", *self._numbers[:50]]
        least, most = max(low, above), min(high, below)
        for number in (*map(float, found), least, most, (least + most) / 2, least + 1, most - 1, 0.0):
            if step and math.isfinite(number) and not fits(number):
                number = math.ceil(number / step) * step
            if fits(number) and math.isfinite(number):
                return int(number) if whole else number
        raise Refused("invalid schema for response_format: no number is within its bounds")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
