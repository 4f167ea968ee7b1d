"""An API as bad as the real ones: limits, delays, errors and broken connections, all seeded, and all counted.

    python examples/flaky_api.py --seed 7 --rpm 600 --tpm 90000 --bad-day

It prints its address once it answers. In a test, on whichever loop runs there:

    async with FlakyApi(Faults(seed=7, rpm=300, window=5, errors=0.1)) as api:
        ...                                        # GET f"{api.url}/items/1"
        assert api.stats.most_requests() <= 300    # no window was ever exceeded

What it answers:

    GET  /items/{id}     a small JSON object, always the same for an id
    GET  /pages/{n}      an HTML page
    POST /v1/complete    JSON {"id", "prompt", "max_tokens"}: costs the words of the prompt and max_tokens
    POST /v1/embeddings  as OpenAI's: vectors of the texts in "input", near for texts that share words
    POST /v1/chat/completions   as OpenAI's: a text, or JSON true to the schema of "response_format"
    GET  /v1/models      the names of the models that these two know
    GET  /etag/{id}      a body with ETag and Last-Modified, fresh for ?max_age=; PUT it for a new version
    GET  /redirect/{n}   n redirects in a row; /redirect/loop is endless; ?status= chooses one of the four
    GET  /slow           a body that trickles for ?seconds=, in ?pieces=
    GET  /gzip-bomb      ?mib= MiB of zeros, compressed
    GET  /stats          what it counted; ?window= and ?burst= in seconds choose what the maxima are of
    POST /reset          forgets all it counted and admitted

Only items, pages and POSTs to /v1/ meet faults by chance. ?faults=503,reset,ok names those of the first
attempts instead, and 429 and 503 then come with a Retry-After of 1 s. The limits hold for all but the last two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import math
import random
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple, Self

from aiohttp import web
from flaky_faults import BAD_DAY, REDIRECTS, Fate, Faults, Seen, Stats, Window, draws, lognormal, options
from flaky_models import Call, Refused, chat, embeddings, models

_EPOCH = 1_700_000_000  # what Last-Modified counts from
_PHRASE = "the quick brown fox jumps over a lazy dog while nobody waits for any answer"
_WORDS = _PHRASE.split()


class Answer(NamedTuple):
    body: bytes
    headers: dict[str, str]
    status: int = 200
    delay: float | None = None  # seconds that its Retry-After names


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Answer(body, {"Content-Type": "application/json", **(headers or {})}, status)


def as_error(status: int, kind: str, message: str, code: str | None = None) -> Answer:
    return as_json({"error": {"type": kind, "code": code or status, "message": message}}, status)


_UNKNOWN_KEY = as_error(401, "invalid_request_error", "incorrect API key provided", "invalid_api_key")


def as_span(seconds: float) -> str:
    """A duration as large APIs write it in x-ratelimit-reset headers: 120ms, 1.5s, 2m0.25s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes:.0f}m{seconds:.3g}s" if minutes else f"{seconds:.3f}s"


@cache
def words(seed: int) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=20_000))


@cache
def bomb(mib: int) -> bytes:
    squeeze = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    return b"".join([*(squeeze.compress(zeros) for _ in range(mib)), squeeze.flush()])


def number_of(request: web.Request, name: str, default: float) -> float:
    """A positive number from the query."""
    text = request.query.get(name)
    with contextlib.suppress(ValueError):
        if 0 < (number := default if text is None else float(text)) < math.inf:
            return number
    raise web.HTTPBadRequest(text=f"{name} must be a positive number, not {text!r}")


def abort(request: web.Request) -> None:
    """Reset the connection, so that the client sees an error and not an orderly end."""
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        request.transport.abort()


class FlakyApi:
    """The server, on 127.0.0.1 and the running loop, while the `async with` block lasts; port 0 picks one."""

    url: str

    def __init__(self, faults: Faults | None = None, *, port: int = 0) -> None:
        self.faults = faults or Faults()
        self._port = port
        self.reset()
        app = web.Application(client_max_size=16 << 20)
        app.add_routes(
            [
                web.get("/items/{id}", self._item, allow_head=False),
                web.get("/pages/{n}", self._page, allow_head=False),
                web.post("/v1/complete", self._complete),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models, allow_head=False),
                web.get("/etag/{id}", self._etag, allow_head=False),
                web.put("/etag/{id}", self._new_version),
                web.get("/redirect/{n}", self._redirect, allow_head=False),
                web.get("/slow", self._slow, allow_head=False),
                web.get("/gzip-bomb", self._bomb, allow_head=False),
                web.get("/stats", self._stats),
                web.post("/reset", self._reset),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, keepalive_timeout=600
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def reset(self) -> None:
        """Forget all that was counted and admitted; the same requests then meet the same faults again."""
        faults = self.faults
        self.stats = Stats(faults.window)
        self._requests = Window(faults.rpm, faults.window) if faults.rpm else None
        self._tokens = Window(faults.tpm, faults.window) if faults.tpm else None
        self._versions: Counter[str] = Counter()

    # The resources.

    async def _item(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]

        def answer() -> Answer:
            chosen = draws(self.faults.seed, "item", name)
            noun = _WORDS[int(chosen[0] * len(_WORDS))]
            return as_json({"id": name, "name": f"{noun} {name}", "price": round(chosen[1] * 100, 2)})

        return await self._serve(request, request.path, 1, answer)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        def answer() -> Answer:
            number = request.match_info["n"]
            size, start, *_ = draws(self.faults.seed, "page", number)
            text = words(self.faults.seed)
            first = int(start * len(text))
            length = int(lognormal(size, self.faults.page_bytes, 0.7))
            text = (text[first:] + text * (length // len(text) + 1))[:length]
            page = f"<!doctype html><title>Page {number}</title><h1>Page {number}</h1><p>{text}</p>\n"
            return Answer(page.encode(), {"Content-Type": "text/html; charset=utf-8"})

        return await self._serve(request, request.path, 1, answer)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        sent = await request.read()
        try:
            asked = json.loads(sent)
            prompt, max_tokens = asked["prompt"].split(), int(asked.get("max_tokens", 0))
            if max_tokens < 0:
                raise ValueError("max_tokens is negative")
        except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
            problem = as_error(400, "invalid_request", f"needs a prompt: {type(error).__name__}: {error}")
            return await self._serve(request, request.path, 1, lambda: problem, otherwise="ok")
        if (name := asked.get("id")) is None:
            name = blake2b(sent, digest_size=8).hexdigest()

        def answer() -> Answer:
            start = int(draws(self.faults.seed, "complete", name)[0] * len(_WORDS))
            text = " ".join(_WORDS[(start + index) % len(_WORDS)] for index in range(max_tokens))
            usage = {"prompt_tokens": len(prompt), "completion_tokens": max_tokens}
            usage["total_tokens"] = len(prompt) + max_tokens
            return as_json({"id": name, "text": text, "usage": usage})

        cost = max(1, len(prompt) + max_tokens)
        return await self._serve(request, f"{request.path}#{name}", cost, answer)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._model(request, embeddings)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._model(request, chat)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        answer = as_json(models(self.faults)) if self._is_known(request) else _UNKNOWN_KEY
        return await self._serve(request, request.path, 1, lambda: answer, otherwise="ok")

    def _is_known(self, request: web.Request) -> bool:
        key = self.faults.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    async def _model(
        self, request: web.Request, understood: Callable[[bytes, Faults], Call]
    ) -> web.StreamResponse:
        sent = await request.read()
        problem = None if self._is_known(request) else _UNKNOWN_KEY
        if problem is None:
            try:
                call = understood(sent, self.faults)
            except Refused as refused:
                problem = as_error(refused.status, "invalid_request_error", str(refused), refused.code)
        if problem is not None:
            return await self._serve(request, request.path, 1, lambda: problem, otherwise="ok")
        name = f"{request.path}#{call.payload}"
        return await self._serve(request, name, call.cost, lambda: as_json(call.answer()), texts=call.texts)

    async def _etag(self, request: web.Request) -> web.StreamResponse:
        version = self._versions[request.path]
        tag = f'"{self.faults.seed}-{version}"'
        headers = {
            "ETag": tag,
            "Last-Modified": formatdate(_EPOCH + 60 * version, usegmt=True),
            "Cache-Control": f"max-age={age}" if (age := request.query.get("max_age")) else "no-cache",
        }

        def answer() -> Answer:
            tags = request.headers.get("If-None-Match")
            since = request.if_modified_since
            if tags is None and since is not None:
                fresh = since.timestamp() >= _EPOCH + 60 * version
            else:
                fresh = tags is not None and ("*" in tags or tag in tags)
            if fresh:
                return Answer(b"", headers, 304)
            return as_json({"id": request.match_info["id"], "version": version}, headers=headers)

        return await self._serve(request, request.path, 1, answer, otherwise="ok")

    async def _new_version(self, request: web.Request) -> web.StreamResponse:
        def answer() -> Answer:
            self._versions[request.path] += 1
            return Answer(b"", {}, 204)

        return await self._serve(request, f"PUT {request.path}", 1, answer, otherwise="ok")

    async def _redirect(self, request: web.Request) -> web.StreamResponse:
        left = request.match_info["n"]
        if left == "loop":
            number, following = 0, "loop"
        elif not (left.isascii() and left.isdigit()):
            raise web.HTTPNotFound
        else:
            number, following = int(left), str(int(left) - 1)
        status = int(number_of(request, "status", REDIRECTS[number % 4]))
        location = f"/redirect/{following}" + (f"?{request.query_string}" if request.query_string else "")
        if number % 2:
            # Servers name the next place both ways.
            location = f"{self.url}{location}"
        answer = as_json({"arrived": True}) if left == "0" else Answer(b"", {"Location": location}, status)
        return await self._serve(request, request.path, 1, lambda: answer, otherwise="ok")

    async def _slow(self, request: web.Request) -> web.StreamResponse:
        seconds, pieces = number_of(request, "seconds", 5), int(number_of(request, "pieces", 50))
        body = b"".join(b"%8d\n" % index for index in range(pieces))
        answer = Answer(body, {"Content-Type": "text/plain"})
        return await self._serve(
            request, request.path, 1, lambda: answer, otherwise="slow", trickle=(seconds, pieces)
        )

    async def _bomb(self, request: web.Request) -> web.StreamResponse:
        body = await asyncio.to_thread(bomb, int(number_of(request, "mib", 64)))
        answer = Answer(body, {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"})
        return await self._serve(request, request.path, 1, lambda: answer, otherwise="ok")

    async def _stats(self, request: web.Request) -> web.Response:
        window, burst = number_of(request, "window", self.faults.window), number_of(request, "burst", 0.1)
        return web.json_response(self.stats.summary(window, burst))

    async def _reset(self, request: web.Request) -> web.Response:
        self.reset()
        return web.Response(status=204)

    # What happens to each request.

    async def _serve(
        self,
        request: web.Request,
        identity: str,
        tokens: int,
        make: Callable[[], Answer],
        *,
        otherwise: str | None = None,
        trickle: tuple[float, int] | None = None,
        texts: Sequence[str] = (),
    ) -> web.StreamResponse:
        """Count the request, hold it against the limits, then let happen what is its fate.

        `otherwise` is the fate of what meets no fault by chance; `trickle` the seconds and pieces of a slow body;
        `texts` what counts as embedded once it is answered.
        """
        stats, faults = self.stats, self.faults
        now = time.monotonic()
        seen = stats.arrived(identity, tokens, now)
        stats.concurrent += 1
        stats.concurrent_max = max(stats.concurrent, stats.concurrent_max)
        exchange = _Exchange(request, stats, seen, tokens, texts)
        try:
            refusal = self._refusal(identity, seen, tokens, now)
            exchange.headers = self._quota(now)
            if refusal:
                return await exchange.answer(refusal)
            script = request.query["faults"].split(",") if "faults=" in request.query_string else ()
            attempt = stats.admit(seen)
            if otherwise and not script:
                fate = Fate(otherwise, 200, 0.0)
            else:
                try:
                    fate = faults.fate(identity, attempt, script)
                except ValueError as problem:
                    return await exchange.answer(as_error(400, "invalid_request", str(problem)))
            if fate.latency:
                await asyncio.sleep(fate.latency)
            if fate.kind != "ok":
                stats.faults[fate.kind] += 1
            match fate.kind:
                case "status":
                    error = as_error(fate.status, "fault", "a fault of the server")
                    if script and fate.status in (429, 503):
                        error = self._delayed(error, identity, seen, 1.0)
                    return await exchange.answer(error)
                case "redirect":
                    # Only these two have a client repeat a POST as a POST.
                    status = fate.status if request.method == "GET" else 307 + fate.status % 2
                    return await exchange.answer(Answer(b"", {"Location": request.path_qs}, status))
                case "stall":
                    await asyncio.Event().wait()
                case "drop":
                    return exchange.drop()
                case "close":
                    request.protocol.close()
            answer = self._compressed(request, identity, make())
            if fate.kind == "reset":
                return await exchange.break_off(answer)
            if fate.kind == "slow":
                return await exchange.trickle(answer, *(trickle or (faults.slow_seconds, 20)))
            return await exchange.answer(answer)
        except ConnectionError:
            # The client is gone; there is nobody to tell.
            return web.Response(status=499)
        finally:
            stats.concurrent -= 1

    def _refusal(self, identity: str, seen: Seen, tokens: int, now: float) -> Answer | None:
        """The answer to what exceeds a limit; what exceeds none is taken from both windows."""
        costs = [(window, cost) for window, cost in ((self._requests, 1), (self._tokens, tokens)) if window]
        wait = max((window.wait(now, cost) for window, cost in costs), default=0.0)
        if wait == math.inf:
            limit = f"{self.faults.tpm} tokens in {self.faults.window:g} s"
            return as_error(413, "tokens", f"{tokens} tokens are more than the limit: {limit}")
        if any(cost > window.remaining(now) for window, cost in costs):
            error = as_error(429, "rate_limit", f"limit reached; try again in {wait:.3f} s")
            return self._delayed(error, identity, seen, wait)
        for window, cost in costs:
            window.admit(now, cost)
        return None

    def _quota(self, now: float) -> dict[str, str]:
        headers = {}
        for name, window in (("requests", self._requests), ("tokens", self._tokens)):
            if window:
                headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(window.remaining(now))
                headers[f"x-ratelimit-reset-{name}"] = as_span(window.reset(now))
        return headers

    def _delayed(self, answer: Answer, identity: str, seen: Seen, seconds: float) -> Answer:
        """The answer with Retry-After in one of its forms."""
        form = self.faults.retry_after
        if form == "none":
            return answer
        if form == "both":
            chosen, *_ = draws(self.faults.seed, "retry-after", identity, seen.received)
            form = "seconds" if chosen < 0.5 else "date"
        # Both forms know whole seconds only: later rather than too early.
        if form == "seconds":
            delay = float(math.ceil(seconds))
            text = f"{delay:.0f}"
        else:
            now = time.time()
            date = math.ceil(now + seconds)
            delay = date - now
            text = formatdate(date, usegmt=True)
        return answer._replace(headers={**answer.headers, "Retry-After": text}, delay=delay)

    def _compressed(self, request: web.Request, identity: str, answer: Answer) -> Answer:
        share = self.faults.gzip
        if (
            not share
            or answer.status != 200
            or "Content-Encoding" in answer.headers
            or "gzip" not in request.headers.get("Accept-Encoding", "")
            or draws(self.faults.seed, "gzip", identity)[0] >= share
        ):
            return answer
        headers = {**answer.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Answer(gzip.compress(answer.body, 6, mtime=0), headers)


class _Exchange:
    """One request and the ways to answer it or not; only what was sent to its end is counted as answered."""

    def __init__(
        self, request: web.Request, stats: Stats, seen: Seen, tokens: int, texts: Sequence[str]
    ) -> None:
        self._request = request
        self._stats = stats
        self._seen = seen
        self._tokens = tokens
        self._texts = texts
        self.headers: dict[str, str] = {}  # of every answer

    async def answer(self, answer: Answer) -> web.StreamResponse:
        response = web.Response(
            status=answer.status, body=answer.body, headers={**answer.headers, **self.headers}
        )
        await response.prepare(self._request)
        await response.write_eof()
        self._answered(answer)
        return response

    async def trickle(self, answer: Answer, seconds: float, pieces: int) -> web.StreamResponse:
        response = await self._begin(answer)
        size = max(1, math.ceil(len(answer.body) / pieces))
        for start in range(0, len(answer.body), size):
            await asyncio.sleep(seconds / pieces)
            await response.write(answer.body[start : start + size])
        await response.write_eof()
        self._answered(answer)
        return response

    async def break_off(self, answer: Answer) -> web.StreamResponse:
        response = await self._begin(answer)
        await response.write(answer.body[: len(answer.body) // 2])
        abort(self._request)
        return response

    def drop(self) -> web.StreamResponse:
        abort(self._request)
        return web.Response(status=499)

    def _answered(self, answer: Answer) -> None:
        not_before = -math.inf if answer.delay is None else time.monotonic() + answer.delay
        self._stats.answered(self._seen, answer.status, not_before, self._tokens)
        if answer.status == 200:
            self._stats.embedded.update(self._texts)

    async def _begin(self, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={**answer.headers, **self.headers})
        response.content_length = len(answer.body)
        await response.prepare(self._request)
        return response


_CHOICES = {
    "retry_after": ["both", "seconds", "date", "none"],
    "response_format": ["json_schema", "json_object"],
}


def parse(arguments: list[str] | None = None) -> tuple[int, Faults]:
    """The port and the faults that a command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one (default: 8080)")
    parser.add_argument("--bad-day", action="store_true", help=f"as if given: {as_options(BAD_DAY)}")
    for name, default, meaning in options():
        kind = {"rpm": int, "tpm": int, "api_key": str}.get(name, type(default))
        choices = _CHOICES.get(name)
        text = f"{meaning} (default: {'none' if default is None else default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            default=argparse.SUPPRESS,
            help=text,
        )
    given = vars(parser.parse_args(arguments))
    port, bad_day = given.pop("port"), given.pop("bad_day")
    try:
        return port, Faults(**{**(BAD_DAY if bad_day else {}), **given})
    except ValueError as error:
        parser.error(str(error))


def as_options(values: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


async def serve(port: int, faults: Faults) -> None:
    """Serve until cancelled; prints the address once it answers."""
    async with FlakyApi(faults, port=port) as api:
        print(api.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    port, faults = parse()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(port, faults))


if __name__ == "__main__":
    main()
