"""What `Client` does when servers, proxies and the environment misbehave, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from unwait.flow.retry import Retry
from unwait.web.client import Client
from unwait.web.connector import Connection
from unwait.web.deadline import Deadline
from unwait.web.environment import Environment
from unwait.web.errors import (
    ClientError,
    ConnectionFailed,
    ConnectionLost,
    InvalidAnswer,
    RedirectError,
    TimedOut,
    TooLarge,
)
from unwait.web.response import Response

pytestmark = pytest.mark.usefixtures("loop", "no_proxies")

Serve = Callable[..., AbstractAsyncContextManager[str]]
ServeProxy = Callable[..., AbstractAsyncContextManager[Any]]
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
QUICK = Retry(2, base=0)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that this computer's own environment may hold are out of the way."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in (
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        ):
            monkeypatch.delenv(name)


def reset(writer: Writer) -> None:
    """End the connection with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Wire:
    """A server that follows a script: for each connection, what to do with each of its requests."""

    def __init__(self, *connections: list[Any]) -> None:
        self.connections = list(connections)
        self.requests: list[str] = []
        self.accepted = 0

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.accepted += 1
        for act in self.connections.pop(0) if self.connections else [OK] * 10:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")),
                0,
            )
            await reader.readexactly(length)
            self.requests.append(head.split(" ", 1)[0])
            if isinstance(act, bytes):
                writer.write(act)
                await writer.drain()
            else:
                act(writer)


# Connections that end


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_closed_while_idle_costs_nothing(serve_wire: Serve, method: str, end: str) -> None:
    # It closes when the second request is there, before a byte of the answer: as if it had crossed it on the way.
    wire = Wire([OK, reset if end == "reset" else b""])
    async with serve_wire(wire) as base, Client(retry=QUICK) as client:
        assert (await client.request(method, base)).attempts == 1
        again = await client.request(method, base, data=b"x" if method == "POST" else None)
    assert (again.text, again.attempts) == ("ok", 2)
    assert wire.requests == [method] * 3
    assert wire.accepted == 2


@pytest.mark.parametrize(("method", "sent"), [("GET", 3), ("POST", 2)])
@pytest.mark.parametrize(
    "begun", [b"HTTP/1.1 2", b"HTTP/1.1 102 Processing\r\n\r\n"], ids=["a part", "interim"]
)
async def test_a_post_whose_answer_had_begun_is_not_sent_again(
    serve_wire: Serve, method: str, sent: int, begun: bytes
) -> None:
    wire = Wire([OK, begun])
    async with serve_wire(wire) as base, Client(retry=QUICK) as client:
        await client.request(method, base)
        if method == "POST":
            with pytest.raises(ConnectionLost, match="connection closed before the answer"):
                await client.post(base, data=b"x")
        else:
            assert (await client.get(base)).attempts == 2
    assert len(wire.requests) == sent


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_on_a_new_connection_only_what_may_be_done_twice_is_sent_again(
    serve_wire: Serve, end: str
) -> None:
    act = reset if end == "reset" else b""
    wire = Wire([act], [act], [act])
    async with serve_wire(wire) as base, Client(retry=Retry(3, base=0)) as client:
        assert (await client.get(base)).attempts == 4
    posts = Wire([act])
    async with serve_wire(posts) as base, Client(retry=QUICK) as client:
        with pytest.raises(ConnectionLost, match=r"connection closed before|Connection reset"):
            await client.post(base, data=b"x")
        assert posts.requests == ["POST"]
        posts.connections = [[act]]
        assert (await client.post(base, data=b"x", idempotent=True)).attempts == 2


async def test_each_request_that_is_sent_counts_as_an_attempt(serve_wire: Serve) -> None:
    wire = Wire([b""], [b""], [b""], [b""])
    async with serve_wire(wire) as base, Client(retry=QUICK) as client:
        with pytest.raises(ConnectionLost, match=r"connection closed before the answer \(3 attempts\)"):
            await client.get(base)
    assert len(wire.requests) == 3


@pytest.mark.parametrize(
    ("part", "cause"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "body cut short after 3 of 10 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "body cut short after 3 bytes",
        ),
    ],
    ids=["sized", "chunked"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_body_cut_short_is_an_error(serve_wire: Serve, method: str, part: bytes, cause: str) -> None:
    wire = Wire(*[[part]] * 3)
    async with serve_wire(wire) as base, Client(retry=QUICK) as client:
        with pytest.raises(ConnectionLost, match=cause):
            await client.request(method, base)
    assert len(wire.requests) == (3 if method == "GET" else 1)


async def test_a_reset_ends_no_body_that_the_connections_end_would_end(
    serve_wire: Serve, tmp_path: Path
) -> None:
    heard = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await heard.wait()
        reset(writer)

    def hear(response: Response) -> Path:
        heard.set()
        return tmp_path / "body"

    async def closing(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")

    async with serve_wire(talk) as base, Client(retry=None) as client:
        with pytest.raises(ConnectionLost, match=r"body cut short after [03] bytes"):
            await client.get(base, save_to=hear)
    assert not list(tmp_path.iterdir())
    async with serve_wire(closing) as base, Client(retry=None) as client:
        assert (await client.get(base)).text == "abc"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not a valid HTTP answer"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            "a protocol that was not asked for",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a valid HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", "not a valid HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "not a valid HTTP answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Encoding: br\r\n\r\nx",
            "unsupported content encoding",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nxx",
            "not what its content encoding says",
        ),
    ],
    ids=["another protocol", "switch", "bad length", "long header", "many headers", "encoding", "decoding"],
)
async def test_what_is_no_answer_is_not_asked_for_again(serve_wire: Serve, answer: bytes, cause: str) -> None:
    wire = Wire([answer])
    async with serve_wire(wire) as base, Client(retry=QUICK) as client:
        with pytest.raises(InvalidAnswer, match=cause) as caught:
            await client.get(f"{base}/?token=s3cret")
    assert len(wire.requests) == 1
    assert "s3cret" not in str(caught.value)


async def test_what_is_left_of_a_request_does_not_precede_the_next(serve_wire: Serve) -> None:
    heads: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        if b"POST" not in heads[-1]:
            return
        await writer.drain()
        await reader.read(-1)

    async with serve_wire(talk) as base, Client(retry=None) as client:
        assert (await client.post(base, data=b"GET /smuggled HTTP/1.1\r\n" * 400_000)).text == "ok"
        assert (await client.get(base)).text == "ok"
    assert [head.split(b" ")[0] for head in heads] == [b"POST", b"GET"]


# Connections that can't be made


def refused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_refused_connection_is_tried_again_whatever_the_method() -> None:
    async with Client(retry=QUICK) as client:
        with pytest.raises(
            ConnectionFailed, match=r"cannot connect: Connection refused \(3 attempts\)"
        ) as caught:
            await client.post(f"http://user:s3cret@127.0.0.1:{refused_port()}/?key=s3cret")
    assert "s3cret" not in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("status", [303, 307])
async def test_a_post_that_was_redirected_is_not_made_again_for_what_happens_then(
    serve: Serve, serve_wire: Serve, status: int
) -> None:
    posts = 0

    async def closing(_: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")

    async def away(request: web.Request) -> web.Response:
        nonlocal posts
        posts += 1
        return web.Response(status=status, headers={"Location": request.query["to"]})

    async with (
        serve({"/": away}, method="POST") as base,
        serve_wire(closing) as limited,
        Client(retry=QUICK) as client,
    ):
        nowhere = f"http://127.0.0.1:{refused_port()}/"
        with pytest.raises(ConnectionFailed, match="Connection refused"):
            await client.post(base, params={"to": nowhere})
        assert posts == 1
        assert (await client.post(base, params={"to": limited})).status == 429
        assert posts == 2
        with pytest.raises(ConnectionFailed, match="Connection refused"):
            await client.post(base, params={"to": nowhere}, idempotent=True)
        assert posts == 5


async def test_an_unknown_host_is_not_asked_for_again() -> None:
    async with Client(retry=QUICK) as client:
        with pytest.raises(ConnectionFailed, match=r"cannot resolve host 'nowhere.invalid'") as caught:
            await client.get("http://nowhere.invalid/")
    assert caught.value.attempts in (1, 3)  # 3 where the resolver itself is out of reach


async def test_what_timed_out_while_connecting_was_not_sent_and_is_tried_again(
    serve_wire: Serve, trusted: None
) -> None:
    accepted = 0

    async def silent(reader: Reader, _: Writer) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read()

    async with serve_wire(silent) as base, Client(timeout=0.1, retry=QUICK) as client:
        with pytest.raises(TimedOut, match=r"timed out after 0\.1 s connecting \(3 attempts\)"):
            await client.post(base.replace("http:", "https:"), data=b"x")
    assert accepted == 3


# TLS


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE names the test's authority."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.headers.get('Authorization')}")


async def test_the_environments_authority_is_trusted(
    serve: Serve, server_tls: ssl.SSLContext, trusted: None
) -> None:
    async with serve({"/": hello}, tls=server_tls) as base, Client() as client:
        assert (await client.get(base)).text == "hello None"


async def test_a_directory_of_authorities_is_trusted(
    serve: Serve,
    server_tls: ssl.SSLContext,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "bundle.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    async with serve({"/": hello}, tls=server_tls) as base, Client() as client:
        assert (await client.get(base)).ok


async def test_a_certificate_that_is_not_trusted_is_told_with_a_way_out(
    serve: Serve, server_tls: ssl.SSLContext, loop_errors: list[Any]
) -> None:
    async with serve({"/": hello}, tls=server_tls) as base, Client(retry=QUICK) as client:
        with pytest.raises(ConnectionFailed, match=r"bad certificate: .*; if its .*SSL_CERT_FILE") as caught:
            await client.get(base)
    assert caught.value.attempts == 1


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_authorities_that_are_not_there_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    async with Client() as client:
        with pytest.raises(ConnectionFailed, match=f"{name} names no readable certificates: No such file"):
            await client.get("https://127.0.0.1:1/")


async def test_secrets_do_not_follow_a_redirect_into_the_clear(
    serve: Serve, server_tls: ssl.SSLContext, trusted: None
) -> None:
    async with serve({"/": hello}) as clear:

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": clear})

        async with serve({"/": redirect}, tls=server_tls, method="*") as base, Client() as client:
            assert (await client.get(base)).text == "hello None"
            for options in ({"headers": {"Authorization": "Bearer x"}}, {"data": b"x", "method": "POST"}):
                with pytest.raises(RedirectError, match="from https to http"):
                    await client.request(**{"method": "GET", "url": base, **options})  # type: ignore[arg-type]


# Proxies


async def test_requests_go_through_the_proxy_of_the_environment(
    serve: Serve, serve_proxy: ServeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "Basic " + b64encode(b"us:p:w").decode()
    async with serve({"/a": hello}) as base, serve_proxy(password=password) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address.replace("//", "//us:p%3Aw@"))
        async with Client() as client:
            assert (await client.get(f"{base}/a", headers={"Authorization": "x"})).text == "hello x"
        assert proxy.requests == [("GET", f"{base}/a")]
        monkeypatch.setenv("http_proxy", proxy.address.replace("//", "//us:wrong@"))
        async with Client() as client:
            assert (await client.get(f"{base}/a")).status == 407
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        async with Client() as client:
            assert (await client.get(f"{base}/a")).ok
    assert len(proxy.requests) == 2


async def test_https_goes_through_a_tunnel(
    serve: Serve,
    serve_proxy: ServeProxy,
    server_tls: ssl.SSLContext,
    trusted: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = "Basic " + b64encode(b"us:pw").decode()
    async with serve({"/a": hello}, tls=server_tls) as base, serve_proxy(password=password) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.address.replace("//", "//us:pw@"))
        async with Client() as client:
            for _ in range(2):
                assert (await client.get(f"{base}/a")).text == "hello None"
        assert proxy.requests == [("CONNECT", base.removeprefix("https://"))]
        assert proxy.authorizations == [password]
        monkeypatch.setenv("ALL_PROXY", proxy.address)
        async with Client(retry=QUICK) as client:
            with pytest.raises(
                ConnectionFailed, match=r"the proxy refused: HTTP 407 .*; put the credentials"
            ) as caught:
                await client.get(f"{base}/a")
        assert caught.value.attempts == 1


async def test_a_proxy_that_hangs_up_is_tried_again(
    serve_proxy: ServeProxy, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_proxy(hang_up=True) as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        async with Client(retry=QUICK) as client:
            with pytest.raises(ClientError, match=r"\(3 attempts\)"):
                await client.post("https://127.0.0.1:1/")
    assert len(proxy.requests) == 3


async def test_a_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://us:s3cret@127.0.0.1:{refused_port()}")
    async with Client(retry=None) as client:
        with pytest.raises(
            ConnectionFailed, match="cannot connect to the proxy: Connection refused"
        ) as caught:
            await client.get("http://127.0.0.1:1/")
        assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "socks5://us:s3cret@127.0.0.1:1")
    async with Client() as client:
        with pytest.raises(ConnectionFailed, match="unsupported scheme 'socks5'") as caught:
            await client.get("http://127.0.0.1:1/")
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://h/", None),
        ({"http_proxy": "http://p:1"}, "http://h/", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://h/", None),
        ({"HTTP_PROXY": "p:1"}, "http://h/", "http://p:1"),
        ({"HTTP_PROXY": "http://up:1", "http_proxy": "http://low:1"}, "http://h/", "http://low:1"),
        ({"HTTP_PROXY": "http://up:1", "http_proxy": ""}, "http://h/", None),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://h/", None),
        ({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "http://h/", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "https://h/", "http://p:1"),
        ({"all_proxy": "http://p:1"}, "https://h/", "http://p:1"),
        ({"ALL_PROXY": "http://a:1", "http_proxy": "http://p:1"}, "http://h/", "http://p:1"),
        ({"all_proxy": "http://p:1", "no_proxy": "*"}, "http://h/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "x, H"}, "http://h/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "h"}, "http://ah/", "http://p:1"),
        ({"all_proxy": "http://p:1", "no_proxy": "h.de"}, "http://a.h.de/", None),
        ({"all_proxy": "http://p:1", "no_proxy": ".h.de"}, "http://a.h.de./", None),
        ({"all_proxy": "http://p:1", "no_proxy": "*.h.de"}, "http://a.h.de/", None),
        ({"all_proxy": "http://p:1", "NO_PROXY": "h:81"}, "http://h/", "http://p:1"),
        ({"all_proxy": "http://p:1", "NO_PROXY": "h:81"}, "http://h:81/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,192.168.1.1"}, "http://10.9.8.7/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,192.168.1.1"}, "http://192.168.1.1/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,x/y"}, "http://11.9.8.7/", "http://p:1"),
        ({"all_proxy": "http://p:1", "no_proxy": "fd00::/8"}, "http://[fd00::1]/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "[::1]:80"}, "http://[::1]/", None),
        ({"all_proxy": "http://p:1", "no_proxy": "::1"}, "http://[::1]:81/", None),
        ({"all_proxy": "http://p:1", "no_proxy": ","}, "http://h/", "http://p:1"),
    ],
)
def test_which_proxy_the_environment_names(variables: dict[str, str], url: str, proxy: str | None) -> None:
    found = Environment(variables).proxy(URL(url))
    assert (found and str(found.url)) == proxy


# Nothing is left


def sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
    return count


async def until(condition: Callable[[], bool]) -> None:
    """The server's end of a connection goes when it sees ours gone: a moment later."""
    while not condition():
        await asyncio.sleep(0.001)


async def never(reader: Reader, _: Writer) -> None:
    await reader.read()


def sending(data: bytes) -> Callable[[Reader, Writer], Awaitable[None]]:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        await reader.read()

    return talk


@pytest.mark.parametrize(
    ("talk", "options", "error"),
    [
        (never, {"timeout": 0.05}, TimedOut),
        (never, {}, asyncio.CancelledError),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), {"timeout": 0.1}, TimedOut),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), {}, asyncio.CancelledError),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nabc"), {}, TooLarge),
        (
            sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7ff\r\n" + b"x" * 1999),
            {},
            TooLarge,
        ),
        (sending(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n"), {}, InvalidAnswer),
        (sending(b"HTTP/1.1 2"), {"timeout": 0.05}, TimedOut),
        (sending(b"no HTTP\r\n\r\n"), {}, InvalidAnswer),
        (sending(b"HTTP/1.1 302 F\r\nLocation: x:y\r\nContent-Length: 9\r\n\r\nabc"), {}, RedirectError),
        (sending(b"HTTP/1.1 404 N\r\nContent-Length: 99999999\r\n\r\nabc"), {}, None),
        (sending(b"HTTP/1.1 503 N\r\nContent-Length: 2\r\n\r\nno"), {"retry": 0}, None),
        (sending(OK), {}, None),
    ],
    ids=[
        "silent",
        "cancelled",
        "slow body",
        "cancelled body",
        "large",
        "large in chunks",
        "encoding",
        "half a head",
        "no HTTP",
        "bad redirect",
        "large error",
        "error",
        "fine",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_whatever_happens_nothing_stays_behind(
    serve_wire: Serve, tmp_path: Path, method: str, talk: Any, options: Any, error: type[BaseException] | None
) -> None:
    async with serve_wire(talk) as base:
        sockets_before, tasks_before = sockets(), asyncio.all_tasks()
        async with Client(retry=QUICK, max_bytes=1000) as client:
            data = b"x" * 100_000 if method == "POST" else None
            request = client.request(method, base, data=data, save_to=tmp_path / "body", **options)
            if error is asyncio.CancelledError:
                task = asyncio.create_task(request)
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif error is not None:
                with pytest.raises(error):
                    await request
            else:
                await request
            # Without an error the connection may be kept for the next request; with one it is closed.
            if error is not None:
                await until(lambda: sockets() == sockets_before)
                assert asyncio.all_tasks() == tasks_before
        await until(lambda: sockets() == sockets_before)
        assert asyncio.all_tasks() == tasks_before
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


async def test_a_cancelled_wait_for_a_turn_leaves_the_turn_to_others(serve_wire: Serve) -> None:
    async with serve_wire(never) as base, Client(per_host=1, retry=QUICK) as client:
        tasks = [asyncio.create_task(client.get(f"{base}/{number}")) for number in range(3)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(TimedOut) as caught:
            await client.get(f"{base}/x", timeout=0.05, retry=0)
    assert caught.value.attempts == 1
    del caught
    gc.collect()


async def test_what_a_server_does_not_read_is_not_waited_for(serve_wire: Serve) -> None:
    seen = asyncio.Event()
    end = asyncio.Event()

    async def talk(_: Reader, writer: Writer) -> None:
        assert isinstance(writer.transport, asyncio.ReadTransport)
        writer.transport.pause_reading()
        seen.set()
        await end.wait()

    async with serve_wire(talk) as base:
        before = sockets()
        async with Client(retry=None) as client:
            task = asyncio.create_task(client.post(base, data=b"x" * (16 << 20)))
            await seen.wait()
            await asyncio.sleep(0.02)
            assert sockets() == before + 2
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert sockets() == before + 1  # the server's
        end.set()


# The parts


async def test_nothing_is_written_to_a_connection_that_has_ended() -> None:
    connection = Connection(asyncio.get_running_loop())
    with pytest.raises(aiohttp.ClientConnectionResetError):
        connection.send("POST", b"", None)
    assert not connection.unheard


async def test_a_deadline_does_not_hide_a_cancellation() -> None:
    loop = asyncio.get_running_loop()
    ours: list[bool] = []

    async def run(cancelled: bool) -> None:
        task = asyncio.current_task()
        assert task is not None
        when = loop.time() + 0.01
        deadline = Deadline(loop, when)
        if cancelled:
            loop.call_at(when, task.cancel)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ours.append(deadline.close())
            assert task.cancelling() == cancelled
            raise

    for cancelled in (False, True):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(run(cancelled))
    assert ours == [True, False]
