"""The flaky API's models: near vectors for near texts, JSON that is true to any schema, and a count of all of it."""

from __future__ import annotations

import asyncio
import base64
import datetime
import enum
import json
import math
import struct
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, Literal

import aiohttp
import pydantic
import pytest
from flaky_api import Faults, FlakyApi
from flaky_models import INPUTS, tokens, vector

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]

INVOICES = """Invoices of May.

Invoice number: A-17. Customer: Ada Ltd, due date: 2024-05-31, total: 120.50 EUR
Invoice number: B-18. Customer: Byron & Co, due date: 2024-06-30, total: 9.99 USD
"""


def asking(api: FlakyApi, session: aiohttp.ClientSession) -> Ask:
    async def ask(path: str, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
        body = {"model": "gpt-4o" if "chat" in path else "text-embedding-3-small", **body}
        async with session.post(f"{api.url}/v1/{path}", json=body, headers=headers) as response:
            return response.status, await response.json()

    return ask


def with_api(run: Run, test: Callable[[FlakyApi, Ask], Coroutine[Any, Any, None]], **faults: Any) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(**faults)) as api, aiohttp.ClientSession() as session:
            await test(api, asking(api, session))

    run(main())


def likeness(one: Any, other: Any) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def as_format(schema: dict[str, Any], strict: bool = False) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "records", "schema": schema, "strict": strict}}


# Embeddings.


def test_texts_that_share_words_are_near() -> None:
    keys = vector("how do I rotate an API key")
    near, far = vector("to rotate the key of the API, do this"), vector("cats sleep on warm window sills")
    assert math.isclose(likeness(keys, keys), 1, abs_tol=1e-6)
    assert likeness(keys, near) > 0.4 > 0.2 > likeness(keys, far)
    assert vector("x") == vector("x") != vector("x", model="other")
    assert len(vector("", 7)) == 7


def test_both_encodings_say_the_same_and_usage_counts_tokens(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        texts = ["one two", "three"]
        status, plain = await ask("embeddings", input=texts, dimensions=16)
        assert (status, plain["usage"]) == (200, {"prompt_tokens": 3, "total_tokens": 3})
        _, packed = await ask("embeddings", input=texts, dimensions=16, encoding_format="base64")
        for index in range(2):
            raw = base64.b64decode(packed["data"][index]["embedding"])
            assert list(struct.unpack("<16f", raw)) == plain["data"][index]["embedding"]
        _, single = await ask("embeddings", input="three", dimensions=16)
        assert single["data"][0]["embedding"] == plain["data"][1]["embedding"]

    with_api(run, test)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": []}, "must be a text or a list"),
        ({"input": [1]}, "must be a text or a list"),
        ({"input": ["a", ""]}, "input[1]' cannot be an empty string"),
        ({"input": ["a"] * (INPUTS + 1)}, "2049 texts; at most 2048"),
        ({"input": ["a", "b " * 9000]}, "maximum context length is 8192 tokens, and 'input[1]' has 9000"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": ""}, "model parameter"),
    ],
)
def test_what_cannot_be_embedded_is_a_400_with_the_reason(run: Run, body: Any, message: str) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        status, answer = await ask("embeddings", **body)
        assert (status, message in answer["error"]["message"]) == (400, True), answer
        assert not api.stats.embedded

    with_api(run, test)


# What both have in common.


def test_an_unknown_model_and_an_unknown_key_are_refused(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        key = {"Authorization": "Bearer k-1"}
        assert (await ask("embeddings", input="a"))[0] == 401
        assert (await ask("chat/completions", headers={"Authorization": "Bearer k-2"}))[0] == 401
        assert (await ask("embeddings", headers=key, input="a"))[0] == 200
        status, answer = await ask("embeddings", headers=key, input="a", model="missing")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        async with (
            aiohttp.ClientSession(headers=key) as session,
            session.get(f"{api.url}/v1/models") as listed,
        ):
            assert [model["id"] for model in (await listed.json())["data"]] == ["text-embedding-3-small", "b"]

    with_api(run, test, api_key="k-1", models="text-embedding-3-small,b")


def test_tokens_are_taken_from_the_limits(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        assert (await ask("embeddings", input=["a b", "c"]))[0] == 200
        assert (await ask("chat/completions", messages=user("a b c"), max_tokens=84))[0] == 200
        status, answer = await ask("embeddings", input="a " * 11)
        assert (status, answer["error"]["type"]) == (429, "rate_limit")
        assert (await ask("embeddings", input="a " * 10))[0] == 200
        assert api.stats.most_tokens(admitted=True) == 100

    with_api(run, test, tpm=100)


def test_what_was_answered_is_counted_by_endpoint_payload_and_text(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        await ask("embeddings", input=["a", "b"])
        await ask("embeddings", input=["b", "a"])
        await ask("chat/completions", messages=user("a"), max_tokens=5)
        await ask("chat/completions", messages=user("a"), max_tokens=5)
        await ask("chat/completions", messages=user("b"), max_tokens=5)
        names = ("payloads", "received", "completed", "repeated", "tokens")
        assert api.stats.endpoints == {
            "/v1/embeddings": dict(zip(names, (2, 2, 2, 0, 4), strict=True)),
            "/v1/chat/completions": dict(zip(names, (2, 3, 3, 1, 18), strict=True)),
        }
        # The order of the texts is another payload, but no other texts.
        assert (len(api.stats.embedded), api.stats.embedded_again) == (2, 2)
        async with aiohttp.ClientSession() as session, session.get(f"{api.url}/stats") as response:
            summary = await response.json()
        assert summary["endpoints"] == api.stats.endpoints
        assert summary["embedded"] == {"texts": 2, "again": 2}

    with_api(run, test)


def test_what_a_fault_took_is_not_counted_as_answered(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await ask("embeddings?faults=drop,reset,500", input="a")
        assert (await ask("embeddings?faults=drop,reset,500", input="a"))[0] == 500
        assert not api.stats.embedded
        assert (await ask("embeddings?faults=drop,reset,500", input="a"))[0] == 200
        assert (api.stats.embedded.total(), api.stats.repeated) == (1, [])

    with_api(run, test)


# Chat.


def test_a_text_is_the_first_sentences_of_the_document(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        prompt = "Summarise this.\n<doc-1>\nOne is\nfirst. Two is second! Three?\n</doc-1>"
        _, answer = await ask("chat/completions", messages=user(prompt))
        choice = answer["choices"][0]
        assert choice["message"]["content"] == "One is first. Two is second!"
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == tokens("One is first. Two is second!")
        _, answer = await ask("chat/completions", messages=user(prompt), max_tokens=2)
        assert answer["choices"][0]["message"]["content"] == "One is"
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)

    with_api(run, test)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "'messages' must be a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": user("x"), "max_tokens": 0}, "max_tokens"),
        ({"messages": user("x"), "response_format": {"type": "xml"}}, "'xml' is not supported"),
        ({"messages": user("x"), "response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"messages": user("x"), "response_format": {"type": "json_object"}}, "must contain the word 'json'"),
        (
            {"messages": user("x"), "response_format": as_format({"type": "mystery"})},
            "no such type as 'mystery'",
        ),
        ({"messages": user("x"), "response_format": as_format({"$ref": "#/$defs/x"})}, "leads nowhere"),
        (
            {"messages": user("x"), "response_format": as_format({"type": "object"}, True)},
            "additionalProperties",
        ),
    ],
)
def test_what_chat_cannot_answer_is_a_400_with_the_reason(run: Run, body: Any, message: str) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        status, answer = await ask("chat/completions", **body)
        assert (status, message in answer["error"]["message"]) == (400, True), answer

    with_api(run, test)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=4, max_length=12)
    weight: float = pydantic.Field(gt=0, le=10)


class Everything(pydantic.BaseModel):
    colour: Colour
    size: Literal[1, 2, 3]
    parts: list[Part] = pydantic.Field(min_length=2, max_length=3)
    pair: tuple[int, str]
    made: datetime.date
    seen: datetime.datetime
    price: Decimal
    note: str | None
    count: int = pydantic.Field(ge=1000, multiple_of=7)
    ratio: float = pydantic.Field(ge=0.25, lt=0.5)
    code: str = pydantic.Field(pattern=r"^[A-Z]\d+$")
    at: datetime.time
    good: bool
    nested: Everything | None = None


def chat_json(run: Run, schema: dict[str, Any], text: str, **faults: Any) -> list[str]:
    """Three answers of one conversation."""
    found: list[str] = []

    async def test(api: FlakyApi, ask: Ask) -> None:
        messages = user(text)
        for _ in range(3):
            status, answer = await ask(
                "chat/completions", messages=messages, response_format=as_format(schema)
            )
            assert status == 200, answer
            found.append(answer["choices"][0]["message"]["content"])
            messages = [*messages, {"role": "assistant", "content": found[-1]}, *user("No. Again.")]

    with_api(run, test, **faults)
    return found


@pytest.mark.parametrize(
    "text", ["", "Red parts, size: 2, made 2023-02-30 and 2023-03-01; price: 12.50, B12.", "7 " * 50]
)
def test_json_is_true_to_the_schema(run: Run, text: str) -> None:
    answers = chat_json(run, Everything.model_json_schema(), text)
    for answer in answers:
        Everything.model_validate_json(answer)
    assert answers[0] == answers[1]
    if "size" in text:
        made = Everything.model_validate_json(answers[0])
        assert (made.colour, made.size, made.made) == (Colour.RED, 2, datetime.date(2023, 3, 1))
        assert (made.price, made.code) == (Decimal("12.50"), "B12")


def test_json_holds_what_the_document_says(run: Run) -> None:
    class Invoice(pydantic.BaseModel):
        number: str
        customer: str
        due_date: datetime.date
        total: float
        discount: float | None

    schema = pydantic.create_model("Records", records=(list[Invoice], ...)).model_json_schema()
    answer = chat_json(run, schema, f"Extract.\n<x>\n{INVOICES}\n</x>\nThank you.")[0]
    assert json.loads(answer)["records"] == [
        {"number": "A-17", "customer": "Ada Ltd", "due_date": "2024-05-31", "total": 120.5, "discount": None},
        {
            "number": "B-18",
            "customer": "Byron & Co",
            "due_date": "2024-06-30",
            "total": 9.99,
            "discount": None,
        },
    ]


def test_the_first_answers_of_a_conversation_can_be_wrong(run: Run) -> None:
    schema = Everything.model_json_schema()
    first, second, third = chat_json(run, schema, "Blue.", invalid=2)
    for wrong in (first, second):
        with pytest.raises(pydantic.ValidationError):
            Everything.model_validate_json(wrong)
    assert json.loads(first)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(second)
    Everything.model_validate_json(third)


def test_a_server_that_knows_no_schemas_takes_one_from_the_prompt(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        schema = Part.model_json_schema()
        status, answer = await ask("chat/completions", messages=user("x"), response_format=as_format(schema))
        assert (status, "response_format" in answer["error"]["message"]) == (400, True)
        told = [{"role": "system", "content": f"Answer in JSON like this:\n{json.dumps(schema)}"}, *user("x")]
        _, answer = await ask("chat/completions", messages=told, response_format={"type": "json_object"})
        Part.model_validate_json(answer["choices"][0]["message"]["content"])

    with_api(run, test, response_format="json_object")


def test_answers_do_not_depend_on_what_else_is_asked(run: Run) -> None:
    async def test(api: FlakyApi, ask: Ask) -> None:
        async def one(number: int) -> str:
            _, answer = await ask("chat/completions", messages=user(f"Number {number}. Last."))
            return str(answer["choices"][0]["message"]["content"])

        assert await asyncio.gather(*map(one, range(20))) == [
            f"Number {number}. Last." for number in range(20)
        ]

    with_api(run, test, latency=0.002)
