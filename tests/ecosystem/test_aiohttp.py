"""aiohttp's client and server, both on the loop under test: HTTP, WebSocket, TLS, files, Unix sockets."""

from __future__ import annotations

import asyncio
import gzip
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MIB = 1024 * 1024


@asynccontextmanager
async def served(
    routes: dict[str, Handler], *, ssl_context: ssl.SSLContext | None = None, unix: str = "", **options: Any
) -> AsyncIterator[str]:
    """Serve until the block ends; gives the base URL."""
    app = web.Application(client_max_size=64 * MIB)
    for path, handler in routes.items():
        app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5, **options)
    await runner.setup()
    try:
        tcp = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
        await (web.UnixSite(runner, unix) if unix else tcp).start()
        port = "" if unix else f":{runner.addresses[0][1]}"
        yield f"{'https' if ssl_context else 'http'}://localhost{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def session(**options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), **options) as client:
        yield client


@asynccontextmanager
async def exchange(
    routes: dict[str, Handler], secure: Any
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """A server and a client of it, over TLS if `secure` has the contexts: the URL and the session."""
    connector = aiohttp.TCPConnector(limit=50, ssl=secure.client if secure else True)
    ssl_context = secure.server if secure else None
    async with served(routes, ssl_context=ssl_context) as url, session(connector=connector) as client:
        yield url, client


@pytest.fixture(params=["plain", "tls"])
def secure(request: pytest.FixtureRequest, tls: Any) -> Any:
    return tls if request.param == "tls" else None


async def echo(request: web.Request) -> web.StreamResponse:
    return web.Response(body=await request.read(), headers={"X-Number": request.headers.get("X-Number", "")})


async def test_keep_alive_uses_one_connection() -> None:
    peers: set[Any] = set()

    async def peer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text=str(len(peers)))

    async with served({"/peer": peer}) as url, session() as client:
        for _ in range(100):
            async with client.get(f"{url}/peer") as response:
                assert await response.text() == "1"
        async with client.get(f"{url}/peer", headers={"Connection": "close"}) as response:
            assert await response.text() == "1"
        async with client.get(f"{url}/peer") as response:
            assert await response.text() == "2"


async def test_many_at_once_each_gets_its_own_answer(secure: Any) -> None:
    rng = random.Random(1)
    async with exchange({"/": echo}, secure) as (url, client):

        async def ask(number: int) -> None:
            body = f"{number}:".encode() * rng.choice((1, 100, 50_000))
            async with client.post(url, data=body, headers={"X-Number": str(number)}) as response:
                assert response.headers["X-Number"] == str(number)
                assert await response.read() == body

        await asyncio.gather(*(ask(number) for number in range(500)))


async def test_streams_both_ways_at_once(secure: Any) -> None:
    """32 MiB up and down in chunks, the answer sent while the request still comes in."""
    block = random.Random(2).randbytes(MIB)

    async def relay(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield block

    async with exchange({"/": relay}, secure) as (url, client):
        got = bytearray()
        async with client.post(url, data=upload()) as response:
            async for chunk in response.content.iter_any():
                got += chunk
                if len(got) >= MIB:
                    assert got[:MIB] == block
                    del got[:MIB]
        assert got == b""


async def test_slow_reader_holds_the_sender_back(secure: Any) -> None:
    sent = 0
    gone = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65_536))
                sent += 65_536
        except ConnectionError:
            gone.set()
            raise

    async with exchange({"/": flood}, secure) as (url, client):
        async with client.get(url) as response:
            assert await response.content.read(1)
            before = -1
            while before != sent:  # until nothing has moved in a while
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 32 * MIB
        await gone.wait()


async def test_files_are_sent_whole_and_in_ranges(secure: Any, tmp_path: Path) -> None:
    """Plain TCP goes through the kernel's sendfile, TLS through the fallback."""
    path = tmp_path / "file"
    content = random.Random(3).randbytes(5 * MIB + 123)
    path.write_bytes(content)

    async def file(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    async with exchange({"/": file}, secure) as (url, client):
        for _ in range(3):
            async with client.get(url) as response:
                assert response.content_length == len(content)
                assert await response.read() == content
        for first, last in ((0, 0), (1, 70_000), (MIB, 4 * MIB), (len(content) - 1, len(content) - 1)):
            async with client.get(url, headers={"Range": f"bytes={first}-{last}"}) as response:
                assert response.status == 206
                assert await response.read() == content[first : last + 1]
        # A reader that leaves in the middle does not harm the next one.
        async with client.get(url) as response:
            await response.content.readexactly(1_000)
        async with client.get(url) as response:
            assert await response.read() == content


async def test_websockets(secure: Any) -> None:
    closed: Counter[int | None] = Counter()

    async def talk(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(heartbeat=20, max_msg_size=16 * MIB)
        await websocket.prepare(request)
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await websocket.send_str(message.data)
            else:
                await websocket.send_bytes(message.data)
        closed[websocket.close_code] += 1
        return websocket

    async with exchange({"/": talk}, secure) as (url, client):

        async def converse(number: int) -> None:
            async with client.ws_connect(url, max_msg_size=16 * MIB, compress=15 * (number % 2)) as websocket:
                for turn in range(20):
                    text = f"{number}:{turn}:" * (1 + 300 * turn)
                    await websocket.send_str(text)
                    assert await websocket.receive_str() == text
                await websocket.ping()
                await websocket.send_bytes(bytes(3 * MIB))
                assert await websocket.receive_bytes() == bytes(3 * MIB)
                await websocket.close(code=4_000 + number)

        await asyncio.gather(*(converse(number) for number in range(10)))
        while closed.total() < 10:
            await asyncio.sleep(0.001)
        assert closed == Counter(range(4_000, 4_010))


async def test_tls_that_is_not_trusted_is_refused(
    tls: Any, loop_errors: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async with served({"/": echo}, ssl_context=tls.server) as url, session() as client:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(url)
    assert all(isinstance(error["exception"], ssl.SSLError) for error in loop_errors)
    loop_errors.clear()


async def test_answer_that_breaks_off() -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 100)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with served({"/": breaks}) as url, session() as client, client.get(url) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_cancelled_and_timed_out_requests_mix_up_no_answers() -> None:
    """1,000 requests over 20 connections, every third one cancelled or out of time somewhere on its way."""
    rng = random.Random(4)

    async def slow_echo(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.002 * rng.random())
        return await echo(request)

    outcomes: Counter[str] = Counter()
    async with served({"/": slow_echo}) as url, session(connector=aiohttp.TCPConnector(limit=20)) as client:

        async def ask(number: int) -> None:
            body = b"%d:" % number * rng.choice((1, 50, 20_000))
            limit = aiohttp.ClientTimeout(total=0.001 * rng.random() if number % 6 == 3 else 60)
            async with client.post(
                url, data=body, headers={"X-Number": str(number)}, timeout=limit
            ) as response:
                assert response.headers["X-Number"] == str(number)
                assert await response.read() == body

        async def ask_or_cancel(number: int) -> None:
            task = asyncio.ensure_future(ask(number))
            if number % 6 == 0:
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                outcomes["cancelled"] += 1
            elif isinstance(task.exception(), TimeoutError):
                outcomes["out of time"] += 1
            else:
                task.result()
                outcomes["answered"] += 1

        numbers = iter(range(1_000))

        async def worker() -> None:
            for number in numbers:
                await ask_or_cancel(number)

        await asyncio.gather(*(worker() for _ in range(40)))
        assert outcomes.total() == 1_000
        assert outcomes["answered"] >= 660
        assert min(outcomes["cancelled"], outcomes["out of time"]) > 20


async def test_refused_connection_and_unknown_host() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with session() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(f"http://127.0.0.1:{port}")
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await client.get("http://no-such-host.invalid")


async def test_unix_socket_and_compression(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def compressed(request: web.Request) -> web.StreamResponse:
        response = web.Response(text="line\n" * 100_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    connector = aiohttp.UnixConnector(path=path)
    async with (
        served({"/": compressed}, unix=path) as url,
        session(connector=connector, auto_decompress=False) as client,
        client.get(url) as response,
    ):
        body = await response.read()
        assert len(body) < 10_000
        assert gzip.decompress(body) == b"line\n" * 100_000


async def test_shutdown_lets_the_request_in_flight_end() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        entered.set()
        await leave.wait()
        return web.Response(text="done")

    async with session() as client:
        async with served({"/": hold}) as url:
            request = asyncio.ensure_future(client.get(url))
            await entered.wait()
            asyncio.get_running_loop().call_later(0.05, leave.set)
        async with await request as response:
            assert await response.text() == "done"
