"""anyio and httpx on the loop under test: `anyio.run(…, backend_options={"loop_factory": …})`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from aiohttp import web
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSListener, TLSStream

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Run = Callable[..., Any]


@pytest.fixture
def run(loop_factory: LoopFactory, loop_name: str) -> Run:
    """`anyio.run` on the loop under test, within a time limit."""

    async def limited(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        assert type(asyncio.get_running_loop()).__module__.startswith(loop_name)
        with anyio.fail_after(60):
            return await main(*args)

    return partial(anyio.run, limited, backend_options={"loop_factory": loop_factory})


async def echo(stream: SocketStream | TLSStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_sockets(run: Run, tls: Any, secure: bool) -> None:
    async def talk(port: int, number: int) -> None:
        options = {"ssl_context": tls.client, "tls_hostname": "localhost", "tls_standard_compatible": False}
        stream = await anyio.connect_tcp("127.0.0.1", port, tls=secure, **(options if secure else {}))
        async with stream:
            text = b"%d;" % number * 20_000
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, text)
                got = b""
                while len(got) < len(text):
                    got += await stream.receive()
            assert got == text

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=256)
        port = listener.extra(SocketAttribute.local_port)
        served = TLSListener(listener, tls.server, standard_compatible=False) if secure else listener
        async with anyio.create_task_group() as group:
            group.start_soon(partial(served.serve, echo))  # type: ignore[arg-type]
            async with anyio.create_task_group() as clients:
                for number in range(40):
                    clients.start_soon(talk, port, number)
            group.cancel_scope.cancel()
        await served.aclose()

    run(main)


def test_unix_sockets_and_datagrams(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
            group.start_soon(partial(listener.serve, echo))  # type: ignore[arg-type]
            async with await anyio.connect_unix(path) as stream:
                await stream.send(b"over a file")
                assert await stream.receive() == b"over a file"
                left, right = socket.socketpair()
                with left, right:  # a descriptor sent through it
                    await stream.send_fds(b"with a descriptor", [left.fileno()])
                    assert await stream.receive() == b"with a descriptor"
            group.cancel_scope.cancel()
        async with (
            await anyio.create_udp_socket(family=socket.AF_INET, local_host="127.0.0.1") as receiver,
            await anyio.create_connected_udp_socket(
                "127.0.0.1", receiver.extra(SocketAttribute.local_port), family=socket.AF_INET
            ) as sender,
        ):
            for number in range(100):
                await sender.send(b"%d" % number)
                data, address = await receiver.receive()
                assert data == b"%d" % number
                await receiver.sendto(data + b"!", *address)
                assert await sender.receive() == data + b"!"

    run(main)


def test_bare_sockets_wait_for_readiness(run: Run) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            for number in range(100):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.wait_readable, left)
                    await anyio.wait_writable(right)
                    right.send(b"%d" % number)
                assert left.recv(10) == b"%d" % number
            with anyio.move_on_after(0.01) as scope:
                await anyio.wait_readable(left)
            assert scope.cancelled_caught

    run(main)


def test_happy_eyeballs(run: Run) -> None:
    """`localhost` is ::1 first where the machine says so, and nobody listens there."""

    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as group:
                group.start_soon(partial(listener.serve, echo))  # type: ignore[arg-type]
                async with await anyio.connect_tcp("localhost", port, happy_eyeballs_delay=0.05) as stream:
                    assert stream.extra(SocketAttribute.remote_address) == ("127.0.0.1", port)
                group.cancel_scope.cancel()
        with pytest.raises(OSError, match="connection"):
            await anyio.connect_tcp("127.0.0.1", port)

    run(main)


def test_processes(run: Run) -> None:
    async def main() -> None:
        finished = await anyio.run_process(
            [sys.executable, "-c", "print(input()[::-1])"], input=b"desserts\n"
        )
        assert finished.stdout == b"stressed\n"
        async with await anyio.open_process(["cat"]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(50):
                await process.stdin.send(b"%d\n" % number)
                assert await process.stdout.receive() == b"%d\n" % number
            await process.stdin.aclose()
            assert await process.wait() == 0
        with anyio.move_on_after(0.1) as scope:
            await anyio.run_process(["sleep", "1000"])
        assert scope.cancelled_caught

    run(main)


def test_threads_both_ways(run: Run) -> None:
    def in_thread(number: int) -> int:
        anyio.from_thread.check_cancelled()
        return anyio.from_thread.run_sync(int.__add__, number, 1) + anyio.from_thread.run(later, number)

    async def later(number: int) -> int:
        await anyio.sleep(0.001)
        return number

    async def main() -> None:
        results: dict[int, int] = {}

        async def one(number: int) -> None:
            results[number] = await anyio.to_thread.run_sync(in_thread, number)

        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(one, number)
        assert results == {number: 2 * number + 1 for number in range(200)}
        async with anyio.from_thread.BlockingPortal() as portal:
            assert await anyio.to_thread.run_sync(portal.call, later, 3) == 3

    run(main)


def test_blocking_portal_from_outside(loop_factory: LoopFactory, loop_name: str) -> None:
    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__

    with anyio.from_thread.start_blocking_portal(backend_options={"loop_factory": loop_factory}) as portal:
        assert portal.call(module).startswith(loop_name)
        futures = [portal.start_task_soon(anyio.sleep, 0.01) for _ in range(100)]
        assert [future.result() for future in futures] == [None] * 100


def test_signals(run: Run) -> None:
    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            for signum in (signal.SIGUSR1, signal.SIGUSR2) * 20:
                os.kill(os.getpid(), signum)
                async for received in signals:
                    assert received == signum
                    break

    run(main)


def test_cancelled_scopes_leave_connections_usable(run: Run) -> None:
    async def main() -> None:
        cancelled = 0
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(partial(listener.serve, echo))  # type: ignore[arg-type]
            port = listener.extra(SocketAttribute.local_port)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for number in range(300):
                    with anyio.CancelScope() as scope:
                        async with anyio.create_task_group() as inner:
                            inner.start_soon(stream.receive)
                            await anyio.sleep(0)
                            scope.cancel()
                    cancelled += scope.cancelled_caught
                    await stream.send(b"%d" % number)
                    assert await stream.receive() == b"%d" % number
            group.cancel_scope.cancel()
        assert cancelled == 300

    run(main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_httpx(run: Run, tls: Any, secure: bool) -> None:
    """httpx, which does its I/O through anyio, against an aiohttp server on the same loop."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Number": request.headers.get("X-Number", "")})
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        return response

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server if secure else None).start()
            url = f"{'https' if secure else 'http'}://localhost:{runner.addresses[0][1]}"
            limits = httpx.Limits(max_connections=20)
            async with httpx.AsyncClient(verify=tls.client, limits=limits, timeout=60) as client:

                async def ask(number: int) -> None:
                    body = b"%d;" % number * (1 + 3_000 * (number % 7))
                    answer = await client.post(url, content=body, headers={"X-Number": str(number)})
                    assert answer.headers["X-Number"] == str(number)
                    assert answer.content == body

                async with anyio.create_task_group() as group:
                    for number in range(200):
                        group.start_soon(ask, number)

                async with client.stream("POST", url, content=b"x" * 3_000_000) as response:
                    size = 0
                    async for chunk in response.aiter_bytes():
                        size += len(chunk)
                    assert size == 3_000_000

                with anyio.move_on_after(0.05) as scope:
                    await client.post(url, content=endless())
                assert scope.cancelled_caught
                await ask(1)
        finally:
            await runner.cleanup()
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(url)

    run(main)


async def endless() -> Any:
    while True:
        yield b"never done"
        await anyio.sleep(0.001)


def test_httpx_refuses_a_certificate_that_is_not_trusted(run: Run, tls: Any) -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=tls.server)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        async with server, httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://localhost:{server.sockets[0].getsockname()[1]}")

    errors: list[dict[str, Any]] = []
    run(main)
    assert all(isinstance(error.get("exception"), ssl.SSLError) for error in errors)
