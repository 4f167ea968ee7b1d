"""`fetch_as_completed` against real servers that behave, misbehave, and break."""

import asyncio
import contextlib
import gzip
import itertools
import os
import socket
import ssl
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from unwait.web.fetch import Fetched, fetch_as_completed

Serve = Callable[..., Any]
Run = Callable[..., Any]


async def fetch_all(urls: Iterable[str], **options: Any) -> list[Fetched]:
    async with aclosing(fetch_as_completed(urls, **{"retry": 0, **options})) as fetching:
        results = [result async for result in fetching]
    return sorted(results, key=lambda result: result.index)


async def fetch_one(url: str, **options: Any) -> Fetched:
    (result,) = await fetch_all([url], **options)
    return result


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.path}")


def replying(answer: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return reply


def refused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_every_body_is_saved_under_a_name_from_its_url(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        async with serve({"/{name:.*}": hello}) as base:
            urls = [f"{base}/page/{number}.html" for number in range(30)]
            results = await fetch_all(urls, directory=tmp_path, limit=7)
        assert [result.url for result in results] == urls
        for number, result in enumerate(results):
            body = f"hello /page/{number}.html"
            assert (result.status, result.error, result.size) == (200, None, len(body))
            assert result.begins == body
            assert result.path is not None
            assert result.path.read_text() == body
            assert result.path.name == f"{base.removeprefix('http://').replace(':', '_')}_page_{number}.html"
            assert result.elapsed > 0

    run(main())
    assert len(list(tmp_path.iterdir())) == 30


def test_without_a_directory_nothing_is_saved(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> Fetched:
        async with serve({"/": hello}) as base:
            return await fetch_one(base)

    assert run(main()).path is None
    assert not list(tmp_path.iterdir())


async def _not_found(_: web.Request) -> web.Response:
    raise web.HTTPNotFound(text="no such thing")


async def _unauthorised_gzip(_: web.Request) -> web.Response:
    return web.Response(status=503, body=b"not gzip at all", headers={"Content-Encoding": "gzip"})


async def _to_itself(request: web.Request) -> web.Response:
    raise web.HTTPFound(request.path)


async def _to_a_file(_: web.Request) -> web.Response:
    raise web.HTTPFound("file:///etc/passwd")


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 65536)
    return response


async def _bomb(_: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(bytes(30_000_000)), headers={"Content-Encoding": "gzip"})


async def _cut_gzip(_: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(os.urandom(5000))[:-20], headers={"Content-Encoding": "gzip"})


async def _not_gzip(_: web.Request) -> web.Response:
    return web.Response(body=b"plain", headers={"Content-Encoding": "gzip"})


async def _brotli(_: web.Request) -> web.Response:
    return web.Response(body=b"whatever", headers={"Content-Encoding": "br"})


async def _silent(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def _stalls(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"some")
    await asyncio.Event().wait()
    return response


CAUSES: dict[str, tuple[Callable[[web.Request], Awaitable[web.StreamResponse]], str]] = {
    "/404": (_not_found, "HTTP 404 Not Found"),
    "/503": (_unauthorised_gzip, "HTTP 503 Service Unavailable"),
    "/loop": (_to_itself, "more than 10 redirects"),
    "/file": (_to_a_file, "redirected to an address that is not http or https"),
    "/endless": (_endless, "body is larger than 1000000 bytes"),
    "/bomb": (_bomb, "body is larger than 1000000 bytes"),
    "/cut": (_cut_gzip, "body cut short: its compressed data is not complete"),
    "/notgzip": (_not_gzip, "body is not what its content encoding says"),
    "/br": (_brotli, "unsupported content encoding 'br'"),
    "/silent": (_silent, "timed out after 1 s without an answer"),
    "/stalls": (_stalls, "timed out after 1 s with 4 bytes of the body read"),
}


def test_failures_have_clear_causes_and_cost_the_others_nothing(
    run: Run, serve: Serve, serve_raw: Serve, tmp_path: Path
) -> None:
    raw = {
        b"HTTP/1.1 418 \xc2\x9b1mred\r\nContent-Length: 0\r\n\r\n": "HTTP 418 \N{REPLACEMENT CHARACTER}1mred",
        b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n": "HTTP 404 Not Found",
        b"": "connection closed before the answer",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n": "not a valid HTTP answer: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc": "body cut short after 3 of 10 bytes",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab": "body cut short after 2 bytes",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": "not a valid HTTP answer: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n": "body is larger than 1000000 bytes",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n": "not a valid HTTP answer: ",
    }
    unfetchable = {
        "ftp://127.0.0.1/": "unsupported URL scheme 'ftp'",
        "127.0.0.1/x": "not a URL: http:// or https:// is missing",
        "http://": "no host in the URL",
        "http://127.0.0.1:99999/": "invalid URL: bad host or port",
        "http://[::1/": "invalid URL: bad host or port",
        f"http://127.0.0.1:{refused_port()}/": "cannot connect: Connection refused",
        "http://nothing.invalid/": "cannot resolve host 'nothing.invalid': ",
        "http://" + "a" * 64 + ".example/": "invalid URL: bad host or port",
        "http://\udcff/": "invalid URL: bad host or port",
    }

    async def main() -> None:
        async with AsyncExitStack() as stack:
            routes = {path: handler for path, (handler, _) in CAUSES.items()}
            base = await stack.enter_async_context(serve({"/good/{name}": hello, **routes}))
            expected: dict[str, str] = {base + path: error for path, (_, error) in CAUSES.items()}
            for answer, error in raw.items():
                expected[await stack.enter_async_context(serve_raw(replying(answer)))] = error
            expected |= unfetchable
            urls: list[str] = []
            for number, bad in enumerate(expected):
                urls += [bad, f"{base}/good/{number}"]
            results = await fetch_all(urls, directory=tmp_path, timeout=1, max_bytes=1_000_000, limit=8)
        # A cause that ends in ": " goes on in the words of the system or of the HTTP parser.
        causes = {urls[result.index]: result.error or "" for result in results[0::2]}
        told = {
            url: causes[url][: len(error)] if error.endswith(": ") else causes[url]
            for url, error in expected.items()
        }
        assert told == expected
        assert all(error.isprintable() for error in causes.values())
        assert not [result.path for result in results[0::2] if result.path]
        assert [result.begins for result in results[1::2]] == [
            f"hello /good/{n}" for n in range(len(expected))
        ]
        assert all(result.error is None for result in results[1::2])
        # Nothing half-written is left, under no name.
        assert sorted(tmp_path.iterdir()) == sorted(r.path for r in results[1::2] if r.path is not None)

    run(main())


def test_reset_in_the_middle_of_a_body(run: Run, serve_raw: Serve) -> None:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await writer.drain()
        linger = bytes.fromhex("0100000000000000")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def main() -> Fetched:
        async with serve_raw(reply) as base:
            return await fetch_one(base)

    error = run(main()).error
    assert error in (
        "body cut short after 3 of 10 bytes",
        "Connection reset by peer",
        "body cut short after 0 of 10 bytes",
    )


def test_error_answers_show_their_body(run: Run, serve: Serve) -> None:
    async def main() -> Fetched:
        async with serve({"/": _not_found}) as base:
            return await fetch_one(base)

    result = run(main())
    assert (result.status, result.size, result.begins) == (404, 13, "no such thing")


def test_largest_body_allowed(run: Run, serve: Serve) -> None:
    async def exact(_: web.Request) -> web.Response:
        return web.Response(body=bytes(1000))

    async def main() -> list[Fetched]:
        async with serve({"/": exact}) as base:
            return [await fetch_one(base, max_bytes=limit) for limit in (1000, 999)]

    fits, too_large = run(main())
    assert (fits.error, fits.size) == (None, 1000)
    assert too_large.error == "body is larger than 999 bytes"


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:1000]) + gzip.compress(body[1000:])),
        ("gzip", lambda body: gzip.compress(body) + bytes(100)),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("identity", bytes),
        ("gzip", lambda body: b"" if not body else gzip.compress(body, 0)),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 700_000])
def test_content_encodings(
    run: Run, serve: Serve, tmp_path: Path, encoding: str, encode: Callable[[bytes], bytes], size: int
) -> None:
    body = bytes(itertools.islice(itertools.cycle(range(251)), size))

    async def encoded(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "gzip, deflate"
        return web.Response(body=encode(body), headers={"Content-Encoding": encoding})

    async def main() -> Fetched:
        async with serve({"/": encoded}) as base:
            return await fetch_one(base, directory=tmp_path)

    result = run(main())
    assert (result.error, result.size) == (None, size)
    assert result.path.read_bytes() == body


@pytest.mark.parametrize(
    ("body", "content_type", "begins"),
    [
        ("grüße".encode(), "text/plain; charset=utf-8", "grüße"),
        ("grüße".encode("latin-1"), "text/plain; charset=ISO-8859-1", "grüße"),
        ("grüße".encode("utf-16"), "text/plain", "grüße"),
        ("\ufeffgrüße".encode(), "text/plain", "grüße"),
        ("grüße".encode(), "text/plain; charset=no-such", "grüße"),
        ("grüße".encode(), "text/plain; charset=zip", "grüße"),
        (b"a\tb\r\n\r\n c", "text/plain", "a b c"),
        (b"\x1b[2J[red]x\x00\x9b", "text/plain", "�[2J[red]x��"),
        ("\u202egpj.exe\u2028".encode(), "text/plain", "�gpj.exe"),
        (b"abc\xc3", "text/plain", "abc"),
        (b"x" * 100, "text/plain", "x" * 60),
        (b"", "text/plain", ""),
    ],
)
def test_first_characters(run: Run, serve: Serve, body: bytes, content_type: str, begins: str) -> None:
    async def main() -> Fetched:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=body, headers={"Content-Type": content_type})

        async with serve({"/": answer}) as base:
            return await fetch_one(base)

    assert run(main()).begins == begins


def test_credentials_reach_the_server_and_nothing_else(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def private(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Basic {b64encode(b'user:s3cret').decode()}"
        return web.Response(text="in")

    async def main() -> list[Fetched]:
        async with serve({"/": private}) as base:
            bad = f"http://user:s3cret@127.0.0.1:{refused_port()}/"
            urls = [
                base.replace("//", "//user:s3cret@"),
                bad,
                "http://user:s3/cret@host/",
                "ftp://user:s3cret@x/",
            ]
            return await fetch_all(urls, directory=tmp_path)

    results = run(main())
    assert results[0].begins == "in"
    assert [result.error is None for result in results] == [True, False, False, False]
    for result in results:
        assert "user" not in repr(result)
        assert "cret" not in repr(result)
        assert "***@" in result.url


class TestTLS:
    def test_unknown_authority(self, run: Run, serve: Serve, server_tls: ssl.SSLContext) -> None:
        async def main() -> Fetched:
            async with serve({"/": hello}, server_tls) as base:
                return await fetch_one(base)

        result = run(main())
        assert result.error == "bad certificate: unable to get local issuer certificate"

    def test_certificate_for_another_host(
        self, run: Run, serve: Serve, authority: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("elsewhere.example").configure_cert(context)

        async def main() -> Fetched:
            async with serve({"/": hello}, context) as base:
                return await fetch_one(base)

        error = run(main()).error
        assert error.startswith("bad certificate: ")

    def test_no_tls_at_the_other_end(self, run: Run, serve: Serve) -> None:
        async def main() -> Fetched:
            async with serve({"/": hello}) as base:
                return await fetch_one(base.replace("http:", "https:"))

        error = run(main()).error
        assert error.startswith("TLS failure: ")
        assert ".c:" not in error


def test_no_more_than_limit_at_once_and_no_less(run: Run, serve: Serve) -> None:
    async def main() -> None:
        now = most = 0
        full = asyncio.Event()

        async def count(_: web.Request) -> web.Response:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 5:
                full.set()
            await full.wait()
            now -= 1
            return web.Response()

        async with serve({"/{n}": count}) as base:
            before = len(asyncio.all_tasks())
            async with aclosing(fetch_as_completed((f"{base}/{n}" for n in range(40)), limit=5)) as fetching:
                async for result in fetching:
                    assert result.error is None
        assert most == 5
        assert len(asyncio.all_tasks()) <= before + 5

    run(main())


def test_urls_are_pulled_lazily_and_stopping_early_stops_all(run: Run, serve: Serve, tmp_path: Path) -> None:
    pulled = 0

    def endless(base: str) -> Iterator[str]:
        nonlocal pulled
        while True:
            yield f"{base}/{pulled}"
            pulled += 1

    async def main() -> None:
        async with serve({"/{n}": hello}) as base:
            mine = asyncio.current_task()
            async with aclosing(fetch_as_completed(endless(base), limit=4, directory=tmp_path)) as fetching:
                for _ in range(10):
                    assert (await anext(fetching)).error is None
            ours = [task for task in asyncio.all_tasks() if "Engine" in repr(task.get_coro())]
            assert ours == []
            assert mine is not None

    run(main())
    assert pulled <= 14
    assert not list(tmp_path.glob(".*"))


def test_cancelling_leaves_no_task_and_no_part_file(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Semaphore(0)

        async def stalls(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"x" * 100_000)
            begun.release()
            await asyncio.Event().wait()
            return response

        async with serve({"/{n}": stalls}) as base:
            fetching = asyncio.create_task(fetch_all([f"{base}/{n}" for n in range(5)], directory=tmp_path))
            for _ in range(5):
                await begun.acquire()
            while len(list(tmp_path.glob(".*.part"))) < 5:
                await asyncio.sleep(0)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            assert not [task for task in asyncio.all_tasks() if "Engine" in repr(task.get_coro())]

    run(main())
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_urls_reaches_the_caller(run: Run, serve: Serve) -> None:
    def urls(base: str) -> Iterator[str]:
        yield base
        raise LookupError("the list broke")

    async def main() -> None:
        async with serve({"/": hello}) as base:
            with pytest.raises(LookupError, match="the list broke"):
                await fetch_all(urls(base), limit=1)

    run(main())


def test_a_body_that_cannot_be_saved_fails_alone(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> list[Fetched]:
        async with serve({"/{n}": hello}) as base:
            host = base.removeprefix("http://").replace(":", "_")
            (tmp_path / f"{host}_taken.html").mkdir()
            (tmp_path / "outside").write_text("mine")
            (tmp_path / f"{host}_link.html").symlink_to(tmp_path / "outside")
            return await fetch_all(
                [f"{base}/{n}.html" for n in ("taken", "link", "fine")], directory=tmp_path
            )

    taken, link, fine = run(main())
    assert taken.error == "cannot save the body: Is a directory"
    assert link.error is None  # it took the link's place, and did not go where that led
    assert (tmp_path / "outside").read_text() == "mine"
    assert fine.error is None


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"max_bytes": 0}])
def test_wrong_options(run: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive|at least 1"):
        run(fetch_all([], **wrong))


def test_no_urls(run: Run) -> None:
    assert run(fetch_all([])) == []
