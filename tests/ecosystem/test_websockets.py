"""The websockets library's asyncio client and server, both on the loop under test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve, unix_serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

MIB = 1024 * 1024


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


@asynccontextmanager
async def echoing(
    secure: bool, tls: Any, **options: Any
) -> AsyncIterator[tuple[Server, str, dict[str, Any]]]:
    """An echo server: itself, its URL, and what a client needs to connect."""
    async with serve(echo, "127.0.0.1", 0, ssl=tls.server if secure else None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        client = {"ssl": tls.client} if secure else {}
        yield server, f"{'wss' if secure else 'ws'}://localhost:{port}", client


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_every_client_gets_its_own_messages_back(secure: bool, tls: Any) -> None:
    async with echoing(secure, tls) as (_, url, options):

        async def talk(number: int) -> None:
            rng = random.Random(number)
            async with connect(url, compression="deflate" if number % 2 else None, **options) as websocket:
                for turn in range(20):
                    message: str | bytes = f"{number}:{turn};" * rng.choice((1, 100, 10_000))
                    if turn % 2:
                        message = message.encode()
                    await websocket.send(message)
                    assert await websocket.recv() == message

        await asyncio.gather(*(talk(number) for number in range(40)))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_large_and_fragmented_messages(secure: bool, tls: Any) -> None:
    async with (
        echoing(secure, tls, max_size=32 * MIB) as (_, url, options),
        connect(url, max_size=32 * MIB, compression=None, **options) as websocket,
    ):
        message = random.Random(0).randbytes(16 * MIB)
        await websocket.send(message)
        assert await websocket.recv() == message

        async def fragments() -> AsyncIterator[str]:
            for number in range(100):
                await asyncio.sleep(0)
                yield f"{number},"

        await websocket.send(fragments())
        assert await websocket.recv() == "".join(f"{number}," for number in range(100))


async def test_pings_are_answered_and_measured(tls: Any) -> None:
    async with echoing(False, tls) as (_, url, options), connect(url, **options) as websocket:
        for _ in range(50):
            latency = await (await websocket.ping())
            assert 0 < latency < 10


async def test_peer_that_is_silent_is_dropped(tls: Any) -> None:
    """Keep-alive: a peer that does not answer pings is given up after the time limit."""
    async with serve(echo, "127.0.0.1", 0, ping_interval=0.05, ping_timeout=0.1, close_timeout=0.1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", ping_interval=None, close_timeout=0.1) as websocket:
            websocket.transport.pause_reading()
            while server.connections:
                await asyncio.sleep(0.01)
            websocket.transport.abort()


async def test_reader_that_stops_holds_the_sender_back() -> None:
    async def flood(websocket: ServerConnection) -> None:
        nonlocal sent
        while True:
            await websocket.send(bytes(65_536))
            sent += 65_536

    sent = 0
    async with serve(flood, "127.0.0.1", 0, compression=None, close_timeout=1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", compression=None, close_timeout=0.1) as websocket:
            assert await websocket.recv() == bytes(65_536)
            before = -1
            while before != sent:  # until nothing has moved in a while
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 32 * MIB
            held_at = sent
            for _ in range(sent // 65_536 + 10):
                await websocket.recv()
            assert sent > held_at
            websocket.transport.abort()


async def test_close_codes_go_both_ways(tls: Any) -> None:
    async def leaves(websocket: ServerConnection) -> None:
        await websocket.close(4_321, "enough")

    async with serve(leaves, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as websocket:
            with pytest.raises(ConnectionClosedError) as raised:
                await websocket.recv()
            assert raised.value.rcvd is not None
            assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (4_321, "enough")
    async with echoing(False, tls) as (server, url, options):
        async with connect(url, **options) as websocket:
            receiving = asyncio.ensure_future(websocket.recv())
            await asyncio.sleep(0)
            server.close()
            with pytest.raises(ConnectionClosedOK) as closed:
                await receiving
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1_001
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await connect(url, **options)


async def test_lost_connection_is_an_error(tls: Any) -> None:
    async with echoing(False, tls) as (server, url, options), connect(url, **options) as websocket:
        (peer,) = server.connections
        peer.transport.abort()
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()


async def test_cancelled_receive_loses_no_message(tls: Any) -> None:
    async with echoing(False, tls) as (_, url, options), connect(url, **options) as websocket:
        got: list[str | bytes] = []
        cancelled = 0
        for number in range(500):
            await websocket.send(str(number))
        while len(got) < 500:
            receiving = asyncio.ensure_future(websocket.recv())
            for _ in range(len(got) % 3):
                await asyncio.sleep(0)
            if len(got) % 2 and cancelled < 400:
                receiving.cancel()
            await asyncio.wait([receiving])
            if receiving.cancelled():
                cancelled += 1
                await asyncio.sleep(0)
            else:
                got.append(receiving.result())
        assert got == [str(number) for number in range(500)]
        assert cancelled > 0


async def test_broadcast_reaches_every_client(tls: Any) -> None:
    async with echoing(False, tls) as (server, url, options):
        clients = [await connect(url, **options) for _ in range(50)]
        while len(server.connections) < 50:
            await asyncio.sleep(0.001)
        for turn in range(20):
            broadcast(server.connections, f"news {turn}")
        for client in clients:
            assert [await client.recv() for _ in range(20)] == [f"news {turn}" for turn in range(20)]
        await asyncio.gather(*(client.close() for client in clients))


async def test_refused_handshake() -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(403, "not today\n")

    async with serve(echo, "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(InvalidStatus) as raised:
            await connect(f"ws://127.0.0.1:{port}")
        assert raised.value.response.status_code == 403


async def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with unix_serve(echo, path), unix_connect(path) as websocket:
        await websocket.send("over a file")
        assert await websocket.recv() == "over a file"
