"""Thousands of connections, dropped at every stage, on few fd numbers: no answer may reach the wrong request.

Every request is a run of its own 8-byte number, and so is every reply: a byte of another one shows at once.
Transports, streams, `sock_*` and bare `add_reader` users share the fd numbers with each other and the server.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CONNECTIONS = 5_000
AT_ONCE = 40
SEED = 20_261
NUMBER = struct.Struct("!Q")
REQUEST_SIZES = (
    1,
    16,
    512,
    8_192,
    40_000,
)  # in numbers of 8 bytes: from one packet to more than a socket takes at once


@dataclass
class Client:
    """One connection's life: what it was doing when it was dropped, and which fd number it had."""

    number: int
    sizes: list[int]
    stage: str = "connect"
    fd: int = -1
    replies: int = 0

    def request(self, size: int) -> bytes:
        return NUMBER.pack(self.number) * size

    def check(self, size: int, reply: bytes) -> None:
        assert reply == self.request(size), f"request {self.number} was given another's reply: {reply[:64]!r}"
        self.replies += 1


@dataclass
class EchoServer(asyncio.Protocol):
    """Echoes, and sees to it that one connection never carries two clients' bytes."""

    live: set[asyncio.Transport]
    number: bytes = b""
    partial: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.live.add(transport)

    def data_received(self, data: bytes) -> None:
        self.partial += data
        whole = len(self.partial) // NUMBER.size * NUMBER.size
        if whole:
            self.number = self.number or self.partial[: NUMBER.size]
            assert self.partial[:whole] == self.number * (whole // NUMBER.size)
            self.partial = self.partial[whole:]
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.live.discard(self.transport)


Address = tuple[str, int] | str


async def streams_client(client: Client, address: Address) -> None:
    if isinstance(address, str):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        client.fd = writer.get_extra_info("socket").fileno()
        for size in client.sizes:
            client.stage = "write"
            writer.write(client.request(size))
            await writer.drain()
            client.stage = "read"
            client.check(size, await reader.readexactly(size * NUMBER.size))
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    client.stage = "close"
    writer.close()
    await writer.wait_closed()


class Collector(asyncio.Protocol):
    """Gathers `wanted` bytes of a reply into `reply`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.wanted = 0
        self.reply: asyncio.Future[bytes] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    def expect(self, size: int) -> asyncio.Future[bytes]:
        self.buffer, self.wanted = bytearray(), size
        self.reply = asyncio.get_running_loop().create_future()
        return self.reply

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) >= self.wanted and not self.reply.done():
            self.reply.set_result(bytes(self.buffer))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def protocol_client(client: Client, address: Address) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(address, str):
        transport, protocol = await loop.create_unix_connection(Collector, address)
    else:
        transport, protocol = await loop.create_connection(Collector, *address)
    try:
        client.fd = transport.get_extra_info("socket").fileno()
        for size in client.sizes:
            client.stage = "write" if size > 1_000 else "read"
            reply = protocol.expect(size * NUMBER.size)
            request = client.request(size)
            transport.writelines([request[: size * 3], request[size * 3 :]])
            client.check(size, await reply)
    except asyncio.CancelledError:
        transport.abort()
        raise
    client.stage = "close"
    transport.close()
    await protocol.closed


def new_socket(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.setblocking(False)
    return sock


async def sock_client(client: Client, address: Address) -> None:
    loop = asyncio.get_running_loop()
    with new_socket(address) as sock:
        client.fd = sock.fileno()
        await loop.sock_connect(sock, address)
        for size in client.sizes:
            client.stage = "write"
            sending = asyncio.ensure_future(loop.sock_sendall(sock, client.request(size)))
            try:
                reply = bytearray()
                while len(reply) < size * NUMBER.size:
                    reply += await loop.sock_recv(sock, 100_000)
                    client.stage = "read"
                client.check(size, bytes(reply))
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        client.stage = "close"
        await asyncio.sleep(0)


async def ready(add: Callable[..., None], remove: Callable[..., bool], sock: socket.socket) -> None:
    """Wait for one readiness event through a bare `add_reader` or `add_writer`."""
    event = asyncio.get_running_loop().create_future()
    add(sock, lambda: event.done() or event.set_result(None))
    try:
        await event
    finally:
        remove(sock)


async def callback_client(client: Client, address: Address) -> None:
    loop = asyncio.get_running_loop()
    with new_socket(address) as sock:
        client.fd = sock.fileno()
        try:
            sock.connect(address)
        except BlockingIOError:
            if isinstance(address, str):  # a full Unix backlog refuses instead of waiting
                return
            await ready(loop.add_writer, loop.remove_writer, sock)
        for size in client.sizes:
            client.stage = "write"
            unsent, reply = memoryview(client.request(size)), bytearray()
            while unsent:
                await ready(loop.add_writer, loop.remove_writer, sock)
                unsent = unsent[sock.send(unsent[:60_000]) :]
                try:
                    reply += sock.recv(100_000)
                except BlockingIOError:
                    continue
            client.stage = "read"
            while len(reply) < size * NUMBER.size:
                await ready(loop.add_reader, loop.remove_reader, sock)
                reply += sock.recv(100_000)
            client.check(size, bytes(reply))
        client.stage = "close"
        await asyncio.sleep(0)


KINDS: dict[str, Callable[[Client, Address], Awaitable[None]]] = {
    "streams": streams_client,
    "protocol": protocol_client,
    "sock": sock_client,
    "callback": callback_client,
}


@dataclass
class Tally:
    """What the churn has covered."""

    finished: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kinds_of_fd: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))


async def live_and_drop(kind: str, client: Client, address: Address, ticks: int | None, tally: Tally) -> None:
    """Run one client; after `ticks` turns of the loop (None: never) it is cancelled, wherever it is then."""
    task = asyncio.ensure_future(KINDS[kind](client, address))
    for _ in range(ticks if ticks is not None else 0):
        await asyncio.sleep(0)
    if ticks is not None:
        task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        tally.dropped[client.stage] += 1
    else:
        task.result()
        assert client.replies == len(client.sizes)
        tally.finished += 1
    tally.kinds_of_fd[client.fd].add(kind)


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_replies_belong_to_their_requests(family: str, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    live: set[asyncio.Transport] = set()
    address: Address
    if family == "unix":
        address = str(tmp_path / "echo")
        server = await loop.create_unix_server(lambda: EchoServer(live), address, backlog=1_024)
    else:
        server = await loop.create_server(lambda: EchoServer(live), "127.0.0.1", 0, backlog=1_024)
        address = server.sockets[0].getsockname()[:2]
    rng = random.Random(SEED)
    plan = []
    for number in range(1, CONNECTIONS + 1):
        sizes = rng.choices(REQUEST_SIZES, weights=(30, 30, 20, 5, 3), k=rng.choice((1, 1, 2, 3)))
        ticks = None if rng.random() < 0.5 else rng.choice((0, 1, 1, 2, 3, 4, 5, 6, 8, 10, 15, 25, 50))
        plan.append((rng.choice(list(KINDS)), Client(number, sizes), address, ticks))
    remaining, tally = iter(plan), Tally()

    async def worker() -> None:
        for kind, client, where, ticks in remaining:
            await live_and_drop(kind, client, where, ticks, tally)

    async with server:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await until(lambda: not live)
    assert tally.finished + tally.dropped.total() == CONNECTIONS
    assert tally.finished > CONNECTIONS // 3
    assert tally.dropped.keys() >= {"connect", "write", "read", "close"}
    fds = tally.kinds_of_fd.keys() - {-1}
    assert len(fds) < CONNECTIONS // 10, "fd numbers were meant to be reused"
    assert sum(len(kinds) >= 3 for kinds in tally.kinds_of_fd.values()) > 20, "by several kinds of users"


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds (the test's own time limit ends a wait in vain)."""
    while not condition():
        await asyncio.sleep(0.001)


async def leave_closed_sockets_behind() -> None:
    """Sockets that `sock_recv` worked on and that their owner closed without a word to the loop."""
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(60)]
    for left, right in pairs:
        left.setblocking(False)
        right.send(b"x")
        assert await loop.sock_recv(left, 10) == b"x"
    for left, right in pairs:
        left.close()
        right.close()


@pytest.mark.parametrize("reuser", ["reader", "sock_recv", "transport"])
async def test_late_event_of_a_closed_fd_reaches_nobody(reuser: str) -> None:
    """Two sockets turn readable in one poll; the first one's callback replaces the other by a silent one."""
    loop = asyncio.get_running_loop()
    wrong: list[str] = []
    await leave_closed_sockets_behind()
    for _ in range(200):
        pairs = [socket.socketpair() for _ in range(2)]
        (first, first_peer), (second, second_peer) = pairs
        for sock in (first, second):
            sock.setblocking(False)
        replaced = loop.create_future()
        replaced_by: list[socket.socket] = []
        waiting: list[asyncio.Future[bytes]] = []
        transports: list[asyncio.Transport] = []

        def replace(
            mine: socket.socket,
            other: socket.socket,
            replaced: asyncio.Future[None] = replaced,
            replaced_by: list[socket.socket] = replaced_by,
        ) -> None:
            # Whichever of the two comes first takes the other's place.
            loop.remove_reader(mine)
            loop.remove_reader(other)
            number = other.fileno()
            other.close()
            fresh = socket.socketpair()
            assert number in (fresh[0].fileno(), fresh[1].fileno())
            if fresh[1].fileno() == number:
                fresh = (fresh[1], fresh[0])
            fresh[0].setblocking(False)
            replaced_by.extend(fresh)
            if reuser == "reader":
                loop.add_reader(fresh[0], wrong.append, "add_reader callback of a silent socket was called")
            replaced.set_result(None)

        loop.add_reader(first, replace, first, second)
        loop.add_reader(second, replace, second, first)
        first_peer.send(b"for the first")
        second_peer.send(b"for the second")
        await replaced
        fresh, fresh_peer = replaced_by
        if reuser == "sock_recv":
            waiting.append(asyncio.ensure_future(loop.sock_recv(fresh, 100)))
        elif reuser == "transport":
            transport, protocol = await loop.connect_accepted_socket(Collector, fresh)
            transports.append(transport)
            waiting.append(protocol.expect(1))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not any(future.done() for future in waiting)
        fresh_peer.send(b"fresh")
        if reuser == "reader":
            loop.remove_reader(fresh)
        for future in waiting:
            assert await future == b"fresh"
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)
        for sock in (first, second, first_peer, second_peer, fresh, fresh_peer):
            sock.close()
    assert wrong == []


async def test_transport_aborted_by_a_neighbour_in_the_same_poll() -> None:
    """A transport aborted while its own event waits in the batch hears nothing but `connection_lost`."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []

    class Neighbour(asyncio.Protocol):
        other: asyncio.Transport | None = None
        aborted = False

        def __init__(self, name: str) -> None:
            self.name = name
            self.lost = loop.create_future()

        def data_received(self, data: bytes) -> None:
            assert not self.aborted
            heard.append(self.name)
            assert self.other is not None
            self.other.abort()
            peer = self.other.get_protocol()
            assert isinstance(peer, Neighbour)
            peer.aborted = True

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(None)

    for _ in range(300):
        heard.clear()
        pairs = [socket.socketpair() for _ in range(2)]
        ends = [
            await loop.connect_accepted_socket(lambda n=n: Neighbour(n), pairs[i][0])
            for i, n in enumerate("ab")
        ]
        ends[0][1].other, ends[1][1].other = ends[1][0], ends[0][0]
        await asyncio.sleep(0)
        for _ours, theirs in pairs:
            theirs.send(b"x")
        await asyncio.wait([end[1].lost for end in ends], return_when=asyncio.FIRST_COMPLETED)
        assert len(heard) == 1
        for transport, protocol in ends:
            transport.abort()
            await protocol.lost
        for _ours, theirs in pairs:
            theirs.close()
