"""TLS connections dropped at every stage of the handshake, by either side, harm nobody else."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
from collections import Counter
from typing import Any

import pytest
import trustme

CONNECTIONS = 400
AT_ONCE = 16
SEED = 31
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    """A server's and a client's TLS context that trust each other."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line in capitals."""
    try:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        return
    finally:
        writer.transport.abort()


def only_tls_failures(errors: list[dict[str, Any]]) -> bool:
    """Whether the loop reported nothing but handshakes and connections that were broken off."""
    return all(isinstance(error.get("exception"), (ssl.SSLError, ConnectionError)) for error in errors)


class Handshake:
    """A client's handshake in memory, sent by hand as far as the test wants."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.done = False

    def step(self, received: bytes = b"") -> bytes:
        """Take what the server sent; return what is to be sent."""
        if received:
            self.incoming.write(received)
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()


async def drops_by_hand(address: tuple[str, int], context: ssl.SSLContext, rng: random.Random) -> str:
    """Sends a part of a handshake message, or garbage, and closes or resets."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        handshake = Handshake(context)
        hello = handshake.step()
        stage = rng.choice(
            ["nothing", "one byte", "half a hello", "a hello", "half a finish", "finish", "garbage"]
        )
        if stage == "garbage":
            await loop.sock_sendall(sock, rng.randbytes(rng.choice((1, 100, 5_000))))
        elif stage != "nothing":
            part = {"one byte": 1, "half a hello": len(hello) // 2}.get(stage, len(hello))
            await loop.sock_sendall(sock, hello[:part])
        if stage in ("half a finish", "finish"):
            finish = b""
            while not handshake.done:
                finish = handshake.step(await loop.sock_recv(sock, 100_000))
            await loop.sock_sendall(sock, finish if stage == "finish" else finish[: len(finish) // 2])
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return f"dropped: {stage}"


async def is_cancelled(address: tuple[str, int], context: ssl.SSLContext, rng: random.Random) -> str:
    """A whole client, cancelled after some turns of the loop."""
    connecting = asyncio.ensure_future(
        asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
    )
    for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 9, 15))):
        await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.wait([connecting])
    if connecting.cancelled():
        return "cancelled"
    _, writer = connecting.result()
    writer.transport.abort()
    return "connected before it was cancelled"


async def talks(address: tuple[str, int], context: ssl.SSLContext, rng: random.Random) -> str:
    """An honest client among them."""
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
    text = b"%x" % rng.getrandbits(rng.choice((8, 100_000)))
    writer.write(text + b"\n")
    assert await reader.readline() == text.upper() + b"\n"
    if rng.random() < 0.5:
        writer.close()
        await writer.wait_closed()
    else:
        writer.transport.abort()
    return "talked"


async def test_connections_dropped_in_the_handshake(
    contexts: Contexts, loop_errors: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(SEED)
    server = await asyncio.start_server(shout, "127.0.0.1", 0, ssl=contexts[0], backlog=1_024, limit=2**20)
    ended: Counter[str] = Counter()
    numbers = iter(range(CONNECTIONS))

    async def worker() -> None:
        for _ in numbers:
            kind = rng.choice([drops_by_hand, drops_by_hand, is_cancelled, talks])
            ended[await kind(server.sockets[0].getsockname(), contexts[1], rng)] += 1

    async with server:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        assert await talks(server.sockets[0].getsockname(), contexts[1], rng) == "talked"
    await server.wait_closed()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)
    assert ended.total() == CONNECTIONS
    assert ended["talked"] > 50
    assert ended["cancelled"] > 20
    assert sum(kind.startswith("dropped") for kind in ended) == 7
    assert only_tls_failures(loop_errors), loop_errors
    loop_errors.clear()


async def test_silent_and_babbling_servers_cost_a_client_only_its_own_connect(contexts: Contexts) -> None:
    """Clients of servers that never answer a handshake, hang up or send garbage get errors, in time."""
    loop = asyncio.get_running_loop()
    held: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()

    async def babbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is no TLS server\r\n" * 100)
        writer.close()

    for behaviour, expected in (
        (silent, ConnectionAbortedError),
        (hangs_up, ConnectionError),
        (babbles, ssl.SSLError),
    ):
        server = await asyncio.start_server(behaviour, "127.0.0.1", 0, backlog=1_024)
        async with server:
            connects = [
                loop.create_connection(
                    asyncio.Protocol,
                    *server.sockets[0].getsockname(),
                    ssl=contexts[1],
                    server_hostname="localhost",
                    ssl_handshake_timeout=0.5,
                )
                for _ in range(50)
            ]
            for error in await asyncio.gather(*connects, return_exceptions=True):
                assert isinstance(error, expected), f"{behaviour.__name__}: {error!r}"
            for writer in held:
                writer.transport.abort()
            held.clear()


async def test_shutdown_that_the_peer_never_answers_ends_by_its_timeout(contexts: Contexts) -> None:
    """`close()` of TLS connections to peers that read no more is over after `ssl_shutdown_timeout`."""
    loop = asyncio.get_running_loop()
    accepted: list[asyncio.Transport] = []

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            accepted.append(transport)

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost: asyncio.Future[Exception | None] = loop.create_future()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    server = await loop.create_server(Deaf, "127.0.0.1", 0, ssl=contexts[0])
    async with server:
        clients = [
            await loop.create_connection(
                Client,
                *server.sockets[0].getsockname(),
                ssl=contexts[1],
                server_hostname="localhost",
                ssl_shutdown_timeout=0.3,
            )
            for _ in range(20)
        ]
        while len(accepted) < len(clients):
            await asyncio.sleep(0.001)
        for transport in accepted:
            transport.pause_reading()
        for transport, _ in clients:
            transport.write(bytes(8_000_000))
            transport.close()
        async with asyncio.timeout(20):
            for _, client in clients:
                await client.lost
        for transport in accepted:
            transport.abort()
        await asyncio.sleep(0.05)
