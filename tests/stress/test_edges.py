"""Edge-triggered sockets: what is left unread must be read without another report from the kernel."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest

MIB = 1 << 20
COUNT = 5 * MIB


class Counting(asyncio.Protocol):
    """Counts what arrives, and stops and resumes reading at random, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.received = 0
        self.at_eof = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.random.random() < 0.2:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    def eof_received(self) -> bool:
        self.at_eof.set_result(self.received)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class CountingInto(Counting, asyncio.BufferedProtocol):  # type: ignore[misc]
    """The same through a buffer so small that most reads fill it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.buffer = bytearray(997)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        self.data_received(self.buffer[:count])


async def pair(protocols: list[Counting]) -> tuple[Any, Any, asyncio.Server]:
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()

    def accept() -> Counting:
        accepted.set_result(protocols[0])
        return protocols[0]

    server = await loop.create_server(accept, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(lambda: protocols[1], *server.sockets[0].getsockname())
    await accepted
    return protocols[0], transport, server


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [Counting, CountingInto])
async def test_both_ways_at_once_with_pauses(kind: type[Counting], seed: int) -> None:
    count = COUNT if kind is Counting else COUNT // 10
    ends = [kind(seed), kind(seed + 100)]
    _, _, server = await pair(ends)
    async with server:
        for end in ends:
            end.transport.write(bytes(count))
            end.transport.write_eof()
        assert await asyncio.gather(*(end.at_eof for end in ends)) == [count, count]
        for end in ends:
            end.transport.close()
        assert await asyncio.gather(*(end.lost for end in ends)) == [None, None]


async def test_data_and_end_that_came_in_one_report() -> None:
    """Written and closed by the peer before the loop looks: all of it, then the end."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    raw.sendall(b"x" * 10_000)
    raw.close()
    protocol = Counting(0)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    assert await protocol.at_eof == 10_000
    transport.close()
    assert await protocol.lost is None


async def test_urgent_data_does_not_stop_what_follows() -> None:
    """A read ends at the urgent mark with more behind it, and no second report comes for that."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    raw.send(b"before")
    raw.send(b"!", socket.MSG_OOB)
    raw.send(b"after")
    raw.close()
    protocol = Counting(0)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    assert await protocol.at_eof == len(b"beforeafter")
    transport.close()
    assert await protocol.lost is None


async def test_closing_with_much_to_write_in_connection_made() -> None:
    """The connection is watched from the first moment on, also if it is to be written and closed at once."""
    loop = asyncio.get_running_loop()

    class Farewell(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(bytes(4 * COUNT))
            transport.close()

    server = await loop.create_server(Farewell, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert len(await reader.read()) == 4 * COUNT
        writer.close()
        await writer.wait_closed()


async def test_a_lost_transport_writes_to_nobody() -> None:
    """Its number may belong to somebody else by now."""
    loop = asyncio.get_running_loop()
    ends = [Counting(0), Counting(1)]
    _, transport, server = await pair(ends)
    async with server:
        number = transport.get_extra_info("socket").fileno()
        transport.write(bytes(4 * COUNT))  # more than fits: the close has to wait for it
        transport.close()
        assert await ends[1].lost is None
        near, far = socket.socketpair()
        taken = [near]
        while near.fileno() != number and len(taken) < 50:
            near = near.dup()
            taken.append(near)
        assert number in {sock.fileno() for sock in taken} | {far.fileno()}
        try:
            transport.write(b"secret")
        except AttributeError:
            assert type(loop).__module__.startswith("asyncio")  # asyncio refuses by accident
        far.setblocking(False)
        near.setblocking(False)
        for end in (near, far):
            with pytest.raises(BlockingIOError):
                end.recv(10)
        for end in [*taken, far]:
            end.close()
        await ends[0].at_eof
        ends[0].transport.close()
        await ends[0].lost
