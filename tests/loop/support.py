"""Protocols that write down what happened to them, and pairs of connected transports."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

SINCE_312 = sys.version_info >= (3, 12)
SINCE_313 = sys.version_info >= (3, 13)


class Peer(asyncio.Protocol):
    """Records every call; `until` waits for a condition on what was recorded."""

    def __init__(self, *, keep_open_at_eof: bool = False) -> None:
        self.keep_open_at_eof = keep_open_at_eof
        self.transport: Any = None
        self.calls: list[str] = []
        self.data = bytearray()
        self.reason: Exception | None = None
        self._changed = asyncio.Event()

    def note(self, call: str) -> None:
        if call != "data" or self.calls[-1:] != ["data"]:
            self.calls.append(call)
        self._changed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.note("data")

    def eof_received(self) -> bool:
        self.note("eof")
        return self.keep_open_at_eof

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = exc
        self.note("lost")

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_called(self, call: str) -> None:
        await self.until(lambda: call in self.calls)

    async def until_received(self, count: int) -> None:
        await self.until(lambda: len(self.data) >= count)


class BufferedPeer(Peer, asyncio.BufferedProtocol):
    """The same through `get_buffer`/`buffer_updated`, with a buffer of the given size."""

    def __init__(self, size: int = 4096, *, keep_open_at_eof: bool = False) -> None:
        super().__init__(keep_open_at_eof=keep_open_at_eof)
        self.buffer = bytearray(size)
        self.hints: set[int] = set()

    def get_buffer(self, sizehint: int) -> bytearray:
        self.hints.add(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self.note("data")


class Echo(Peer):
    """Sends everything back."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


async def turns(count: int = 5) -> None:
    """Let the loop go round that many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(protocol: Peer) -> None:
    """Abort the connection unless it is lost already, and wait until it is."""
    if "lost" not in protocol.calls:
        protocol.transport.abort()
        await protocol.until_called("lost")


@asynccontextmanager
async def serving(factory: Callable[[], Any], **options: Any) -> AsyncIterator[tuple[str, int]]:
    """A TCP server of Peers on a free local port, as its address; at its end every connection must end."""
    made: list[Peer] = []
    others = asyncio.all_tasks()

    def recording() -> Peer:
        made.append(factory())
        return made[-1]

    server = await asyncio.get_running_loop().create_server(recording, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()
        if handshakes := asyncio.all_tasks() - others:
            await asyncio.wait(handshakes)
        await turns()
        for protocol in made:
            if "made" in protocol.calls:
                await protocol.until_called("lost")


@asynccontextmanager
async def connected(
    client_factory: Callable[[], Any] = Peer, server_factory: Callable[[], Any] = Peer, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """The two protocols of one TCP connection, both connected; both are lost after it."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Any] = loop.create_future()

    class Accepting:
        def __call__(self) -> Any:
            protocol = server_factory()
            accepted.set_result(protocol)
            return protocol

    server = await loop.create_server(Accepting(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    _, client = await loop.create_connection(client_factory, host, port, **options)
    peer = await accepted
    await peer.until_called("made")
    server.close()
    try:
        yield client, peer
    finally:
        for protocol in (client, peer):
            await ended(protocol)
        await server.wait_closed()


@asynccontextmanager
async def socket_connected(factory: Callable[[], Any] = Peer) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A protocol on one end of a socket pair, and the bare non-blocking socket of the other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, protocol = await asyncio.get_running_loop().create_connection(factory, sock=ours)
    try:
        yield protocol, theirs
    finally:
        await ended(protocol)
        theirs.close()


def listener(host: str = "127.0.0.1", *, backlog: int = 8) -> socket.socket:
    """A non-blocking listening TCP socket on a free port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock
