"""What `Client` sends and gets: requests, answers, redirects, the cache, files, and its own life."""

from __future__ import annotations

import asyncio
import json
import pickle
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from unwait.flow.retry import Retry
from unwait.web.client import Client
from unwait.web.errors import (
    ClientError,
    ConnectionLost,
    InvalidAnswer,
    InvalidURL,
    RedirectError,
    StatusError,
)

from .handlers import Gate, Script, echo, redirect

pytestmark = pytest.mark.usefixtures("loop")

Serve = Callable[..., AbstractAsyncContextManager[str]]
QUICK = Retry(5, base=0.001, cap=0.01)


# Answers


async def test_an_answer_tells_all_about_itself(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            body="grüße".encode("latin-1"), headers={"Content-Type": "text/plain; charset=latin-1"}
        )

    async with serve({"/a": handler}) as base, Client() as client:
        response = await client.get(f"{base}/a")
    assert (response.status, response.reason, response.ok) == (200, "OK", True)
    assert (response.method, response.url) == ("GET", f"{base}/a")
    assert response.headers["CONTENT-length"] == "5"
    assert response.content == b"gr\xfc\xdfe"
    assert response.text == "grüße"
    assert (response.size, response.attempts, response.path) == (5, 1, None)
    assert not response.from_cache
    assert not response.deduplicated
    assert 0 <= response.waited <= response.elapsed < 5
    assert response.raise_for_status() is response
    assert repr(response) == f"<Response 200 GET {base}/a 5 bytes>"


async def test_an_answer_is_frozen_and_can_be_pickled(serve: Serve) -> None:
    async with serve({"/a": echo}) as base, Client() as client:
        response = await client.get(f"{base}/a")
    with pytest.raises(AttributeError):
        response.status = 500  # type: ignore[misc]
    copied = pickle.loads(pickle.dumps(response))
    assert copied.headers == response.headers
    assert copied.headers["content-TYPE"] == response.headers["Content-Type"]
    assert (copied.content, copied.url, copied.elapsed) == (response.content, response.url, response.elapsed)


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("é".encode(), "text/plain", "é"),
        ("é".encode("utf-16"), "text/plain; charset=latin-1", "é"),
        (b"\xef\xbb\xbfx", "text/plain", "x"),
        (b"\xff", "text/plain; charset=utf-8", "\N{REPLACEMENT CHARACTER}"),
        (b"x", "text/plain; charset=zip", "x"),
        (b"\\d", "text/plain; charset=unicode_escape", "\\d"),
        (b"x", 'text/plain; charset="UTF-8"', "x"),
        ("я".encode("cp1251"), "text/html;charset=windows-1251", "я"),
    ],
    ids=["default", "mark wins", "utf-8 mark", "undecodable", "no charset", "of Python", "quoted", "named"],
)
async def test_text_has_the_charset_of_its_mark_or_header(
    serve: Serve, body: bytes, kind: str, text: str
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": kind})

    async with serve({"/": handler}) as base, Client() as client:
        assert (await client.get(base)).text == text


async def test_a_body_that_is_no_json_says_what_it_is(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="<html>no", content_type="text/html")

    async def empty(_: web.Request) -> web.Response:
        return web.Response()

    async with serve({"/": handler, "/empty": empty}) as base, Client() as client:
        page, nothing = await client.get(base), await client.get(f"{base}/empty")
    with pytest.raises(InvalidAnswer, match=r"the body is not JSON \(text/html, begins '<html>no'\)"):
        page.json()
    with pytest.raises(ValueError, match="empty"):
        nothing.json()


async def test_an_error_status_is_an_answer_until_it_is_asked_to_be_an_error(serve: Serve) -> None:
    script = Script(429, headers={"Retry-After": "7"})
    async with serve({"/": script}) as base, Client(retry=None) as client:
        response = await client.get(f"{base}/?api_key=s3cret")
    assert not response.ok
    assert response.text == "answer 1"
    with pytest.raises(StatusError) as caught:
        response.raise_for_status()
    assert str(caught.value) == f"GET {base}/?api_key=***: HTTP 429 Too Many Requests"
    assert caught.value.response is response
    assert caught.value.retry_after == 7
    assert caught.value.overloaded


# Requests


async def test_each_method_has_its_function(serve: Serve) -> None:
    async with serve({"/": echo}, method="*") as base, Client() as client:
        for method in ("get", "post", "put", "patch", "delete", "options"):
            assert (await getattr(client, method)(base)).json()["method"] == method.upper()
        head = await client.head(base)
        assert (head.status, head.content, head.headers["Content-Type"]) == (
            200,
            b"",
            "application/json; charset=utf-8",
        )
        assert (await client.request("trace", base)).json()["method"] == "TRACE"


@pytest.mark.parametrize(
    ("options", "kind", "body"),
    [
        ({"json": {"a": ["é", None]}}, "application/json", '{"a":["é",null]}'.encode()),
        ({"data": b"\x00\xff"}, "application/octet-stream", b"\x00\xff"),
        ({"data": "é"}, "text/plain; charset=utf-8", "é".encode()),
        ({"data": {"a": "1 2", "b": "&"}}, "application/x-www-form-urlencoded", b"a=1+2&b=%26"),
        ({"data": [("a", "1"), ("a", "2")]}, "application/x-www-form-urlencoded", b"a=1&a=2"),
        ({"json": "\ud800é"}, "application/json", b'"\\ud800\\u00e9"'),
        ({"json": [], "headers": {"content-type": "text/x"}}, "text/x", b"[]"),
        ({"data": b"x" * (3 << 20)}, "application/octet-stream", b"x" * (3 << 20)),
    ],
    ids=["json", "bytes", "text", "form", "pairs", "half a character", "own type", "large"],
)
async def test_a_body_comes_with_its_type(
    serve: Serve, options: dict[str, Any], kind: str, body: bytes
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response([request.headers["Content-Type"], (await request.read()).decode("latin-1")])

    async with serve({"/": handler}, method="POST") as base, Client() as client:
        assert (await client.post(base, **options)).json() == [kind, body.decode("latin-1")]


@pytest.mark.parametrize("options", [{"json": 1, "data": b""}, {"data": 7}, {"data": open}])
async def test_a_body_that_cannot_be_sent_again_is_refused(options: dict[str, Any]) -> None:
    async with Client() as client:
        with pytest.raises(TypeError, match="data"):
            await client.post("http://127.0.0.1:1/", **options)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"X": "a\r\nY: b"}, ValueError),
        ({"X": "a\0"}, ValueError),
        ({"X": "\ud800"}, ValueError),
        ({"X: y": "a"}, ValueError),
        ({"": "a"}, ValueError),
        ({"Content-Length": "3"}, ValueError),
        ({"transfer-encoding": "chunked"}, ValueError),
        ({"X": 3}, TypeError),
    ],
)
async def test_headers_that_would_break_the_request_are_refused(
    headers: dict[str, Any], error: type[Exception]
) -> None:
    async with Client() as client:
        with pytest.raises(error, match="header"):
            await client.get("http://127.0.0.1:1/", headers=headers)
    with pytest.raises(error, match="header"):
        Client(headers=headers)


@pytest.mark.parametrize("method", ["", "GET /x HTTP/1.1\r\n", "CONNECT", "G T"])
async def test_what_is_no_method_is_refused(method: str) -> None:
    async with Client() as client:
        with pytest.raises(ValueError, match="not a method"):
            await client.request(method, "http://127.0.0.1:1/")


async def test_parameters_and_headers_are_added(serve: Serve) -> None:
    async with serve({"/": echo}) as base, Client(headers={"X-One": "1", "X-Two": "2"}) as client:
        seen = (
            await client.get(f"{base}/?a=1", params={"b": "2 3", "c": [4, 5]}, headers={"x-two": "3"})
        ).json()
    assert seen["path"] in ("/?a=1&b=2+3&c=4&c=5", "/?a=1&b=2%203&c=4&c=5")
    assert (seen["headers"]["x-one"], seen["headers"]["x-two"]) == ("1", "3")
    assert seen["headers"]["user-agent"].startswith("unwait/")


async def test_credentials_in_a_url_are_sent_and_not_shown(serve: Serve) -> None:
    async with serve({"/": echo, "/missing/": Script(404)}) as base, Client() as client:
        url = base.replace("//", "//us%40r:pa%3Ass%C3%A9@")
        response = await client.get(url)
        assert (
            response.json()["headers"]["authorization"]
            == "Basic " + b64encode("us@r:pa:ssé".encode()).decode()
        )
        assert response.url == base
        own = await client.get(url, headers={"Authorization": "Bearer x"})
        assert own.json()["headers"]["authorization"] == "Bearer x"
        with pytest.raises(StatusError) as caught:
            (await client.get(f"{url}/missing/")).raise_for_status()
    assert "pa" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "example.org", "ftp://host/", "http:///x", "http://h:0/", "http://a..b/"]
)
async def test_what_is_no_url_is_told(url: str) -> None:
    async with Client() as client:
        with pytest.raises(InvalidURL, match=r"^GET.*: "):
            await client.get(url)


# Redirects


async def test_redirects_are_followed_and_the_last_url_told(serve: Serve) -> None:
    routes = {"/a": redirect("b?x=1"), "/b": redirect("/c#part", 308), "/c": echo}
    async with serve(routes) as base, Client() as client:
        response = await client.get(f"{base}/a")
    assert (response.status, response.json()["path"], response.attempts) == (200, "/c", 1)
    assert response.url.startswith(f"{base}/c")


@pytest.mark.parametrize(
    ("status", "method", "then", "body"),
    [
        (301, "POST", "GET", ""),
        (302, "POST", "GET", ""),
        (303, "PUT", "GET", ""),
        (307, "POST", "POST", "data"),
        (308, "PUT", "PUT", "data"),
        (302, "PUT", "PUT", "data"),
    ],
)
async def test_a_redirect_keeps_or_drops_the_body(
    serve: Serve, status: int, method: str, then: str, body: str
) -> None:
    async with serve({"/a": redirect("/b", status), "/b": echo}, method="*") as base, Client() as client:
        seen = (await client.request(method, f"{base}/a", data="data", headers={"X-Kept": "1"})).json()
    assert (seen["method"], seen["body"], seen["headers"]["x-kept"]) == (then, body, "1")
    assert ("content-type" in seen["headers"]) is bool(body)


async def test_redirects_are_bounded(serve: Serve) -> None:
    async with serve({"/a": redirect("/a"), "/b": redirect("/c"), "/c": echo}) as base:
        async with Client(max_redirects=3, retry=QUICK) as client:
            with pytest.raises(RedirectError, match=r"more than 3 redirects$"):
                await client.get(f"{base}/a")
        async with Client(max_redirects=1) as client:
            assert (await client.get(f"{base}/b")).status == 200
        async with Client(max_redirects=0) as client:
            response = await client.get(f"{base}/b")
            assert (response.status, response.headers["Location"]) == (302, "/c")


@pytest.mark.parametrize("location", ["ftp://host/", "mailto:a@b", "http://a:b:c/", "http://h:0/"])
async def test_a_redirect_to_elsewhere_is_refused(serve: Serve, location: str) -> None:
    async with serve({"/": redirect(location)}) as base, Client(retry=QUICK) as client:
        with pytest.raises(RedirectError, match="not http or https"):
            await client.get(base)


async def test_secrets_stay_with_their_origin(serve: Serve) -> None:
    secrets = {"Authorization": "Bearer t", "Cookie": "a=b", "X-Api-Key": "k", "X-Auth-Token": "t"}
    kept = {"Accept-Language": "de", "Idempotency-Key": "1"}
    async with (
        serve({"/": echo}) as other,
        serve({"/out": redirect(other), "/in": redirect("/"), "/": echo}) as base,
    ):
        for client, given in ((Client(headers=secrets), kept), (Client(), {**kept, **secrets})):
            async with client:
                away = (await client.get(f"{base}/out", headers=given)).json()["headers"]
                home = (await client.get(f"{base}/in", headers=given)).json()["headers"]
            assert not {name.lower() for name in secrets} & away.keys()
            assert {name.lower() for name in [*secrets, *kept]} <= home.keys()
            assert {name.lower() for name in kept} <= away.keys()


async def test_credentials_of_a_url_do_not_follow_to_another_origin(serve: Serve) -> None:
    async with serve({"/": echo}) as other, serve({"/": redirect(other)}) as base, Client() as client:
        response = await client.get(base.replace("//", "//user:pass@"))
    assert "authorization" not in response.json()["headers"]


async def test_a_host_that_the_caller_named_stays_with_its_origin(serve: Serve) -> None:
    async with (
        serve({"/": echo}) as other,
        serve({"/": redirect(other), "/in": redirect("/echo"), "/echo": echo}) as base,
        Client(headers={"Host": "virtual"}) as client,
    ):
        away = (await client.get(base)).json()["headers"]
        home = (await client.get(f"{base}/in")).json()["headers"]
    assert (away["host"], home["host"]) == (other.partition("//")[2], "virtual")


# Cache


async def test_a_fresh_answer_comes_from_the_cache(serve: Serve, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    async def handler(request: web.Request) -> web.Response:
        seen[request.method] += 1
        return web.Response(text=f"version {seen['GET']}", headers={"Cache-Control": "max-age=60"})

    async with serve({"/": handler}, method="*") as base, Client(cache=tmp_path / "cache") as client:
        first = await client.get(base)
        second = await client.get(base)
        saved = await client.get(base, save_to=tmp_path / "file")
        await client.post(base)
        third = await client.get(base)
    assert (first.from_cache, second.from_cache, third.from_cache) == (False, True, False)
    assert (second.text, second.attempts, second.status) == ("version 1", 0, 200)
    assert (saved.from_cache, (tmp_path / "file").read_text(), saved.content) == (True, "version 1", b"")
    assert third.text == "version 2"
    assert seen["GET"] == 2


async def test_a_stale_answer_is_revalidated(serve: Serve, tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.headers.get("If-None-Match"))
        if asked[-1] == '"1"':
            return web.Response(status=304, headers={"ETag": '"1"'})
        return web.Response(text="body", headers={"ETag": '"1"'})

    async with serve({"/": handler}) as base, Client(cache=tmp_path) as client:
        responses = [await client.get(base) for _ in range(3)]
    assert asked == [None, '"1"', '"1"']
    assert [response.text for response in responses] == ["body"] * 3
    assert [response.status for response in responses] == [200] * 3
    assert [response.from_cache for response in responses] == [False, True, True]
    assert responses[1].attempts == 1


async def test_what_is_cached_for_one_url_is_not_asked_of_another(serve: Serve, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("If-None-Match")))
        if len(asked) == 2:
            return web.Response(status=302, headers={"Location": "/b"})
        return web.Response(text=request.path, headers={"ETag": '"1"'})

    async with serve({"/{name}": handler}) as base, Client(cache=tmp_path) as client:
        assert (await client.get(f"{base}/a")).text == "/a"
        assert (await client.get(f"{base}/a")).text == "/b"
    assert asked == [("/a", None), ("/a", '"1"'), ("/b", None)]


async def test_a_saved_answer_is_cached_too(serve: Serve, tmp_path: Path) -> None:
    script = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal script
        script += 1
        return web.Response(text="body", headers={"Cache-Control": "max-age=60"})

    async with serve({"/": handler}) as base, Client(cache=tmp_path / "cache") as client:
        first = await client.get(base, save_to=tmp_path / "one", keep=2)
        second = await client.get(base)
    assert (first.content, (tmp_path / "one").read_bytes()) == (b"bo", b"body")
    assert (second.from_cache, second.text, script) == (True, "body", 1)


# Files


async def test_a_body_is_saved_when_it_is_complete(serve: Serve, tmp_path: Path) -> None:
    async with serve({"/{name}": echo, "/missing/": Script(404)}) as base, Client() as client:
        response = await client.get(f"{base}/a", save_to=tmp_path / "a.json")
        named = await client.get(
            f"{base}/b",
            save_to=lambda head: tmp_path / f"{head.status}{head.headers['Content-Type'][-5:]}",
            keep=5,
        )
        missing = await client.get(f"{base}/missing/", save_to=tmp_path / "missing")
    assert (response.content, response.path) == (b"", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["path"] == "/a"
    assert response.size == (tmp_path / "a.json").stat().st_size
    assert named.path == tmp_path / "200utf-8"
    assert named.content == named.path.read_bytes()[:5]
    assert (missing.path, missing.status) == (None, 404)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["200utf-8", "a.json"]


async def test_a_file_that_cannot_be_written_is_an_error_of_its_own(serve: Serve, tmp_path: Path) -> None:
    async with serve({"/": echo}) as base, Client(retry=QUICK) as client:
        with pytest.raises(ClientError, match="cannot save the body: No such file or directory"):
            await client.get(base, save_to=tmp_path / "none" / "file")


async def test_only_the_beginning_is_kept_where_that_is_asked_for(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"0123456789" * 100_000)

    async with serve({"/": handler}) as base, Client() as client:
        response = await client.get(base, keep=15)
        nothing = await client.get(base, keep=0)
    assert (response.content, response.size) == (b"012345678901234", 1_000_000)
    assert (nothing.content, nothing.size) == (b"", 1_000_000)


# The client's own life


async def test_a_client_is_used_inside_async_with(serve: Serve) -> None:
    client = Client()
    with pytest.raises(RuntimeError, match="not open"):
        await client.get("http://127.0.0.1:1/")
    async with client:
        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        await client.get("http://127.0.0.1:1/")
    async with serve({"/": echo}) as base, client:
        assert (await client.get(base)).ok


async def test_a_client_belongs_to_its_loop() -> None:
    async with Client() as client:

        def elsewhere() -> None:
            asyncio.run(client.get("http://127.0.0.1:1/"))

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


async def test_requests_that_wait_for_their_turn_fail_when_the_client_is_closed(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/{n}": gate}) as base:
        async with Client(per_host=1) as client:
            tasks = [asyncio.create_task(client.get(f"{base}/{n}")) for n in range(3)]
            await gate.reached(1)
        async with asyncio.timeout(10):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        gate.open.set()
    assert [type(end) for end in ends] == [ConnectionLost] * 3
    assert "closed before the request was sent" in str(ends[2])


async def test_requests_under_way_fail_when_the_client_is_closed(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base:
        async with Client(retry=QUICK) as client:
            task = asyncio.create_task(client.get(base))
            await gate.reached(1)
        with pytest.raises(ClientError, match="the client was closed while the request was under way"):
            await task
        gate.open.set()
