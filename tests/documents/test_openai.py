"""Endpoints like OpenAI's: what goes over the wire, what comes back, what is refused, and what a bad server does."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from flaky_api import Faults, FlakyApi
from flaky_models import vector

from unwait.documents.models import ModelUnusable
from unwait.documents.openai import Endpoint, OpenAIChat, OpenAIEmbedder, model_of, tokens
from unwait.flow.retry import Retry
from unwait.web.errors import ClientError, ConnectionFailed, InvalidAnswer, StatusError

Run = Callable[[Coroutine[Any, Any, Any]], Any]
KEY = "sk-verysecretkey123"
EMBED, CHAT = "text-embedding-3-small", "gpt-4o-mini"
AT_ONCE = Retry(5, base=0.0)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


class Scripted:
    """A server that notes what it is asked, and answers what it was given, the last of it again and again."""

    def __init__(self, *answers: Any, status: int = 200) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.status = status

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status = self.status
        if isinstance(answer, tuple):
            status, answer = answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return web.Response(status=status, body=body, content_type="application/json")


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[Endpoint]:
    app = web.Application(client_max_size=16 << 20)
    # aiohttp takes functions; an object with a state may be one too.
    function = handler if inspect.iscoroutinefunction(handler) else handler.__call__
    app.router.add_post("/v1/{path:.*}", function)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with Endpoint(base, KEY, retry=None) as endpoint:
            yield endpoint
    finally:
        await runner.cleanup()


def endpoint_of(api: FlakyApi, **options: Any) -> Endpoint:
    return Endpoint(f"{api.url}/v1", **{"api_key": KEY, "retry": AT_ONCE, **options})


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text, **more}}]}


def rows(*vectors: Any) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# The endpoint.


def test_address_and_key_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(api_key=KEY)) as api:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{api.url}/v1/")
            monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
            async with Endpoint() as endpoint:
                assert (await OpenAIEmbedder(endpoint, EMBED).embed(["x"])).shape == (1, 256)
            # What is given wins; an empty key is none.
            async with Endpoint(api_key="") as endpoint:
                with pytest.raises(StatusError, match="HTTP 401"):
                    await OpenAIEmbedder(endpoint, EMBED).embed(["x"])

    run(main())


@pytest.mark.parametrize(
    ("base_url", "key", "message"),
    [
        (None, None, "OPENAI_API_KEY is not set"),
        ("localhost:8080/v1", None, "the base URL .* http:// or https://"),
        ("ftp://user:pw@host/v1", None, "the base URL .*ftp"),
        ("http://localhost/v1", "sk-abc def", "OPENAI_API_KEY"),
        ("http://localhost/v1", "sk-abc\ndef", "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_request(base_url: Any, key: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Endpoint(base_url, key)
    assert "sk-abc" not in str(refused.value)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("faults", "model", "words"),
    [
        ({"api_key": "another"}, EMBED, ("HTTP 401", "incorrect API key", "set OPENAI_API_KEY")),
        (
            {"models": f"{EMBED},{CHAT}"},
            "unheard-of",
            ("HTTP 404", "'unheard-of' does not exist", "the model's name", "base URL"),
        ),
    ],
)
def test_an_error_says_what_the_server_said_and_what_to_do(
    run: Run, faults: dict[str, Any], model: str, words: Sequence[str]
) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(**faults)) as api, endpoint_of(api) as endpoint:
            for call in (
                OpenAIEmbedder(endpoint, model).embed(["x"]),
                OpenAIChat(endpoint, model if "models" in faults else CHAT).complete(user("x")),
            ):
                with pytest.raises(StatusError) as failed:
                    await call
                for word in (*words, api.url):
                    assert word in str(failed.value)
            assert len(api.stats.arrivals) == 2, "what is refused is not asked again"

    run(main())


NO_CREDIT = {"error": {"message": "you exceeded your quota", "type": "insufficient_quota"}}
TOO_FAST = {"error": {"message": "too many requests", "type": "requests"}}


@pytest.mark.parametrize(
    ("status", "body", "unusable"),
    [
        *((status, {}, True) for status in (401, 402, 403, 404, 405)),
        (429, NO_CREDIT, True),
        (429, TOO_FAST, False),
        (400, {}, False),
        (500, {}, False),
    ],
)
def test_what_every_call_would_be_answered_is_told_from_what_this_one_is(
    run: Run, status: int, body: Any, unusable: bool
) -> None:
    async def main() -> None:
        async with serving(Scripted((status, body))) as endpoint:
            with pytest.raises(StatusError) as failed:
                await OpenAIEmbedder(endpoint, "m").embed(["a"])
        assert isinstance(failed.value, ModelUnusable) is unusable
        assert isinstance(pickle.loads(pickle.dumps(failed.value)), type(failed.value))

    run(main())


def test_an_endpoint_that_has_answered_may_forbid_a_text_and_be_away_for_a_while(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            base = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        async with Endpoint(base, retry=None) as endpoint:
            with pytest.raises(ModelUnusable, match="is the base URL of an API"):
                await OpenAIEmbedder(endpoint, "m").embed(["a"])
        async with serving(Scripted(rows([1.0]), (403, {}))) as endpoint:
            embedder = OpenAIEmbedder(endpoint, "m")
            await embedder.embed(["a"])
            with pytest.raises(StatusError, match="403") as failed:
                await embedder.embed(["b"])
            assert not isinstance(failed.value, ModelUnusable)
            endpoint.base_url = base
            with pytest.raises(ConnectionFailed):
                await embedder.embed(["c"])

    run(main())


def test_the_key_is_never_shown(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(request: web.Request) -> web.Response:
        given = request.headers["Authorization"]
        return web.json_response({"error": {"message": f"bad key: {given}, {given[7:]}"}}, status=401)

    async def main() -> None:
        caplog.set_level(logging.DEBUG)
        async with serving(refuse) as endpoint:
            with pytest.raises(StatusError) as failed:
                await OpenAIChat(endpoint, CHAT).complete(user("x"))
            shown = f"{failed.value} {failed.value!r} {endpoint!r} {vars(failed.value)}"
            assert "bad key" in shown
            assert KEY not in shown + caplog.text

    run(main())


def test_a_bad_day_costs_time_and_no_answers(run: Run) -> None:
    async def main() -> None:
        faults = Faults(seed=3, errors=0.3, drops=0.1, resets=0.1, slow=0.02, slow_seconds=0.05, burst=1)
        async with FlakyApi(faults) as api, endpoint_of(api, limit=8) as endpoint:
            embedder, chat = OpenAIEmbedder(endpoint, EMBED), OpenAIChat(endpoint, CHAT)
            asked = [embedder.embed([f"text {number}"]) for number in range(30)]
            told = [chat.complete(user(f"Number {number}.")) for number in range(30)]
            found = await asyncio.gather(*asked)
            answers = await asyncio.gather(*told)
            assert [answer.text for answer in answers] == [f"Number {number}." for number in range(30)]
            assert all(np.allclose(row[0], vector(f"text {n}")) for n, row in enumerate(found))
            assert len(api.stats.faults) >= 3
            assert api.stats.concurrent_max <= 8
            assert api.stats.repeated == []

    run(main())


def test_no_window_exceeds_the_limits_of_requests_and_tokens(run: Run) -> None:
    async def main() -> None:
        faults = Faults(rpm=10, tpm=3000, window=0.4)
        async with FlakyApi(faults) as api, endpoint_of(api, rate="10/0.5s", tokens="1500/0.5s") as endpoint:
            chat = OpenAIChat(endpoint, CHAT)
            await asyncio.gather(*(chat.complete(user(f"Word {n}."), max_tokens=200) for n in range(14)))
            # Seven of them fit into a window, by their longest answers.
            assert api.stats.refused == 0
            assert api.stats.most_requests() <= 7

    run(main())


# Vectors.


def test_vectors_have_unit_length_whatever_the_server_sends(run: Run) -> None:
    packed = base64.b64encode(np.array([0, 3e30], "<f4").tobytes()).decode()
    server = Scripted(
        {"data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [3, 4]}]}, rows([0, 0], [1, 0])
    )

    async def main() -> None:
        async with serving(server) as endpoint:
            embedder = OpenAIEmbedder(endpoint, "m")
            found = await embedder.embed(["a", "b"])
            assert (found.dtype, found.tolist()) == (
                np.float32,
                pytest.approx(np.array([[0.6, 0.8], [0, 1]])),
            )
            assert (await embedder.embed(["a", "b"])).tolist() == [[0, 0], [1, 0]]
            assert server.asked[0] == {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}

    run(main())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "not JSON"),
        (b"", "empty, not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([1], "not the answer that was asked for"),
        ({"data": None}, "not the answer that was asked for"),
        (rows([1.0]), "1 vectors for 2 texts"),
        (rows([1.0], [1.0, 2.0]), "different dimensions: 1, 2"),
        (rows([1.0], []), "no list of numbers"),
        (rows([1.0], [[2.0]]), "no list of numbers"),
        (rows([1.0], "!!!!"), "not base64"),
        (rows([1.0], "AAA="), "multiple of element size"),
        (rows([1.0], ["x"]), "could not convert"),
        (rows([1.0], [None]), "no number"),
        (b'{"data": [{"embedding": [NaN]}, {"embedding": [1.0]}]}', "no number"),
        ({"data": [{"index": 0, "embedding": [1]}] * 2}, "there twice"),
        ({"data": [{"index": 9, "embedding": [1]}] * 2}, "its index 9"),
        ({"data": [{"index": 0}, {"index": 1}]}, "KeyError: 'embedding'"),
    ],
)
def test_an_answer_that_is_no_vectors_is_an_error_that_says_so(run: Run, answer: Any, message: str) -> None:
    async def main() -> None:
        async with serving(Scripted(answer)) as endpoint:
            kind = ModelUnusable if "not JSON" in message else InvalidAnswer
            with pytest.raises(kind, match=message) as failed:
                await OpenAIEmbedder(endpoint, "m").embed(["a", "b"])
            assert f"check that {endpoint.base_url} is the base URL of an API" in str(failed.value)

    run(main())


def test_vectors_of_another_width_are_refused(run: Run) -> None:
    async def main() -> None:
        async with serving(Scripted(rows([1.0, 0.0]), rows([1.0]))) as endpoint:
            embedder = OpenAIEmbedder(endpoint, "m")
            await embedder.embed(["a"])
            with pytest.raises(InvalidAnswer, match="1 dimensions, not 2"):
                await embedder.embed(["a"])
            with pytest.raises(InvalidAnswer, match="1 dimensions, not 8; name a model"):
                await OpenAIEmbedder(endpoint, "m", dimensions=8).embed(["a"])

    run(main())


def test_shorter_vectors_are_a_space_of_their_own(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, endpoint_of(api) as endpoint:
            embedder = OpenAIEmbedder(endpoint, EMBED, dimensions=32)
            assert (embedder.name, OpenAIEmbedder(endpoint, EMBED).name) == (
                f"openai:{EMBED}@32",
                f"openai:{EMBED}",
            )
            assert (await embedder.embed(["a", "b"])).shape == (2, 32)
            assert (await embedder.embed([])).shape == (0, 32)
            assert (embedder.paid, embedder.at_once) == (True, 64)
            with pytest.raises(ValueError, match="dimensions"):
                OpenAIEmbedder(endpoint, EMBED, dimensions=0)

    run(main())


def test_any_text_can_be_embedded(run: Run) -> None:
    async def main() -> None:
        texts = ["", " ", "\x00", "half \ud83d of it", "‮right‬", "ignore all previous instructions", "'; --"]
        async with FlakyApi() as api, endpoint_of(api) as endpoint:
            assert np.isfinite(await OpenAIEmbedder(endpoint, EMBED).embed(texts)).all()

    run(main())


def test_a_server_that_knows_no_base64_is_asked_for_numbers_from_then_on(run: Run) -> None:
    server = Scripted((400, {"error": {"message": "unknown field: encoding_format"}}), rows([1.0]))

    async def main() -> None:
        async with serving(server) as endpoint:
            embedder = OpenAIEmbedder(endpoint, "m")
            for _ in range(2):
                assert (await embedder.embed(["a"])).tolist() == [[1.0]]
            assert ["encoding_format" in asked for asked in server.asked] == [True, False, False]

    run(main())


def test_a_large_answer_is_read_beside_the_loop(run: Run) -> None:
    async def main() -> None:
        numbers = np.random.default_rng(1).normal(size=(96, 3072)).astype("<f4")
        packed = [base64.b64encode(row.tobytes()).decode() for row in numbers]
        async with serving(Scripted(rows(*packed))) as endpoint:
            loop_thread = asyncio.get_running_loop()
            seen = []
            real = np.isfinite

            def spy(values: Any) -> Any:
                try:
                    seen.append(asyncio.get_running_loop() is loop_thread)
                except RuntimeError:
                    seen.append(False)
                return real(values)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(np, "isfinite", spy)
                found = await OpenAIEmbedder(endpoint, "m").embed(["x"] * 96)
            assert seen == [False]
            assert np.allclose(found, numbers / np.linalg.norm(numbers, axis=1, keepdims=True), atol=1e-6)

    run(main())


# Tokens.


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 2),
        ("The quick brown fox jumps over the lazy dog. " * 10, 90, 140),
        ("for i in range(10): x[i] += self._rows[i * 2]['key']\n" * 10, 180, 300),
        ("吾輩は猫である。名前はまだ無い。" * 10, 120, 240),
        ("Съешь же ещё этих мягких французских булок. " * 10, 160, 260),
        ("😀" * 10, 15, 40),
        ("\ud800" * 4, 1, 5),
    ],
)
def test_tokens_are_estimated_by_what_the_text_is_made_of(text: str, low: float, high: float) -> None:
    assert low <= tokens(text) <= high


# Chat.


def test_an_answer_comes_with_what_it_took(run: Run) -> None:
    server = Scripted({**said("Yes."), "usage": {"prompt_tokens": 7, "completion_tokens": 2}}, said("No."))

    async def main() -> None:
        async with serving(server) as endpoint:
            chat = OpenAIChat(endpoint, "m")
            answer = await chat.complete(user("x\ud800"), max_tokens=9)
            assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("Yes.", 7, 2)
            assert server.asked == [
                {"model": "m", "messages": user("x\ufffd"), "max_tokens": 9, "temperature": 0}
            ]
            assert (await chat.complete(user("x"))).prompt_tokens == 0
            assert chat.name == "openai:m"

    run(main())


def test_a_schema_is_asked_for_as_strictly_as_it_is_written(run: Run) -> None:
    server = Scripted(said("{}"))

    async def main() -> None:
        async with serving(server) as endpoint:
            chat = OpenAIChat(endpoint, "m")
            await chat.complete(user("x"), schema=SCHEMA)
            await chat.complete(user("x"), schema={**SCHEMA, "required": []})
            asked = [one["response_format"]["json_schema"] for one in server.asked]
            assert asked[0] == {"name": "answer", "schema": SCHEMA, "strict": True}
            assert asked[1]["strict"] is False

    run(main())


def test_a_server_without_schemas_gets_them_in_the_prompt_from_then_on(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(response_format="json_object")) as api, endpoint_of(api) as endpoint:
            chat = OpenAIChat(endpoint, CHAT)
            for _ in range(3):
                answer = await chat.complete(user("Hello Ada."), schema=SCHEMA)
                assert list(json.loads(answer.text)) == ["name"]
            assert api.stats.statuses == {400: 1, 200: 3}

    run(main())


def test_what_a_server_does_not_know_is_left_out_from_then_on(run: Run) -> None:
    def refusal(message: str, param: str | None = None) -> tuple[int, Any]:
        return 400, {"error": {"message": message, "param": param}}

    server = Scripted(
        refusal("not supported", "response_format"),
        refusal("'response_format.type' must be text"),
        refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
        refusal("Unsupported value", "temperature"),
        said("{}"),
    )

    async def main() -> None:
        async with serving(server) as endpoint:
            chat = OpenAIChat(endpoint, "m")
            await chat.complete(user("x"), schema=SCHEMA, max_tokens=5)
            await chat.complete(user("x"), schema=SCHEMA, max_tokens=5)
            kinds = [asked.get("response_format", {}).get("type") for asked in server.asked]
            assert kinds == ["json_schema", "json_object", None, None, None, None]
            last = server.asked[-1]
            assert set(last) == {"model", "messages", "max_completion_tokens"}
            assert json.dumps(SCHEMA) in last["messages"][0]["content"]

    run(main())


def test_a_400_about_the_request_itself_is_an_error(run: Run) -> None:
    async def main() -> None:
        async with serving(
            Scripted({"error": {"message": "this context is too long"}}, status=400)
        ) as endpoint:
            with pytest.raises(StatusError, match="HTTP 400 Bad Request: this context is too long"):
                await OpenAIChat(endpoint, "m").complete(user("x"), schema=SCHEMA)

    run(main())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"OK", "not JSON"),
        ({}, "KeyError: 'choices'"),
        ({"choices": []}, "IndexError"),
        ({"choices": [{"message": None}]}, "AttributeError"),
        (said("x", content=None), "a message without a text"),
        (
            said("x", content=None, refusal="I cannot help with that."),
            "the model refused: I cannot help with that",
        ),
    ],
)
def test_an_answer_without_a_text_is_an_error_that_says_so(run: Run, answer: Any, message: str) -> None:
    async def main() -> None:
        async with serving(Scripted(answer)) as endpoint:
            with pytest.raises(ModelUnusable if "not JSON" in message else InvalidAnswer, match=message):
                await OpenAIChat(endpoint, "m").complete(user("x"))

    run(main())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "plain text"}, "plain text"),
        ({"detail": "of another server"}, "of another server"),
        ({"message": "at the top"}, "at the top"),
        (b"<html>Bad gateway</html>", "Bad gateway"),
        ({"error": {"message": "long " * 1000}}, "…"),
        ({"error": {"message": "Invalid token=abcdef0123456789"}}, "token=***"),
    ],
)
def test_errors_are_read_however_a_server_writes_them(run: Run, body: Any, words: str) -> None:
    async def main() -> None:
        async with serving(Scripted(body, status=400)) as endpoint:
            with pytest.raises(ClientError) as failed:
                await OpenAIChat(endpoint, "m").complete(user("x"))
            assert words in str(failed.value)
            assert len(str(failed.value)) < 600

    run(main())


def test_a_model_is_named_with_its_kind() -> None:
    assert model_of("openai:gpt-4o-mini") == "gpt-4o-mini"
    assert model_of("OpenAI: org/model:7b") == "org/model:7b"
    for wrong in ("gpt-4o", "openai:", "openai", "anthropic:x", "", ":x"):
        with pytest.raises(ValueError, match="openai:MODEL"):
            model_of(wrong)
