"""A writer whose peer never reads is told to stop, waits, and holds no more than its watermark."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress

import pytest
import trustme

HIGH = 256 * 1024
CHUNK = bytes(range(256)) * 64
MIB = 1024 * 1024
KERNEL_LIMIT = 16 * MIB  # what two socket buffers hold at most (net.ipv4.tcp_wmem and tcp_rmem, with room)


class Paused(asyncio.Protocol):
    """Records pauses and resumes."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.calls: list[str] = []
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.paused.set()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def fill(transport: asyncio.WriteTransport, protocol: Paused) -> int:
    """Write chunks until `pause_writing` is called; return how many bytes it took."""
    written = 0
    while not protocol.paused.is_set():
        transport.write(CHUNK)
        written += len(CHUNK)
        assert written < KERNEL_LIMIT + HIGH
        if written % (16 * len(CHUNK)) == 0:
            await asyncio.sleep(0)
    return written


async def drain_peer(peer: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < size:
        data = await loop.sock_recv(peer, min(MIB, size - len(got)))
        assert data
        got += data
    return bytes(got)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_watermarks_bound_a_transport(family: int) -> None:
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair() if family == socket.AF_UNIX else tcp_pair()
    with closing(peer):
        peer.setblocking(False)
        transport, protocol = await loop.connect_accepted_socket(Paused, ours)
        transport.set_write_buffer_limits(high=HIGH, low=HIGH // 4)
        assert transport.get_write_buffer_limits() == (HIGH // 4, HIGH)
        total = 0
        for round_ in range(1, 4):
            protocol.paused.clear()
            protocol.resumed.clear()
            total += await fill(transport, protocol)
            assert HIGH < transport.get_write_buffer_size() <= HIGH + len(CHUNK)
            assert protocol.calls == ["pause", "resume"] * (round_ - 1) + ["pause"]
            kernel_holds = total - transport.get_write_buffer_size()
            early = await drain_peer(peer, kernel_holds)
            await protocol.resumed.wait()
            assert transport.get_write_buffer_size() <= HIGH // 4
            late = await drain_peer(peer, total - kernel_holds)
            assert early + late == CHUNK * (total // len(CHUNK))
            total = 0
        transport.abort()
        assert await protocol.lost is None


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS context that trust each other."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_drain_blocks_a_streams_writer_and_memory_stays(
    tls: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext], resident: Callable[[], int]
) -> None:
    """64 writers of 64 MiB each hold their watermarks and no more; closing the peer frees them."""
    holding: list[asyncio.StreamWriter] = []

    async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way: a reader buffers unasked
        holding.append(writer)

    server = await asyncio.start_server(never_reads, "127.0.0.1", 0, ssl=contexts[0] if tls else None)
    written: dict[int, int] = {}

    async def writes(number: int) -> BaseException | None:
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_connect(ours, server.sockets[0].getsockname())
        _, writer = await asyncio.open_connection(
            sock=ours, ssl=contexts[1] if tls else None, server_hostname="localhost" if tls else None
        )
        try:
            for written[number] in range(0, 64 * MIB, len(CHUNK)):
                writer.write(CHUNK)
                await writer.drain()
        except ConnectionError as error:
            return error
        finally:
            writer.transport.abort()
            # The writer's own future holds the same error, and wants to be asked for it.
            with suppress(ConnectionError):
                await writer.wait_closed()
        return None

    async with server:
        before = resident()
        writers = [asyncio.ensure_future(writes(number)) for number in range(64)]
        # All stand still when not one has moved in a while.
        still, last = 0, -1
        while still < 10:
            await asyncio.sleep(0.02)
            still = still + 1 if len(written) == 64 and last == sum(written.values()) else 0
            last = sum(written.values())
        assert not any(writer.done() for writer in writers)
        assert max(written.values()) < KERNEL_LIMIT
        # Plain: one watermark of 64 KiB and a chunk. TLS: buffers of 256 KiB and 512 KiB on both sides.
        assert resident() - before < 64 * (4 * MIB if tls else MIB // 2)
        for writer in holding:
            writer.transport.abort()
        for error in await asyncio.gather(*writers):
            assert isinstance(error, ConnectionError)


async def test_pipe_writer_is_bounded() -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with open(read_end, "rb", buffering=0) as reading:
        writing = open(write_end, "wb", buffering=0)  # noqa: SIM115  # the transport owns and closes it
        transport, protocol = await loop.connect_write_pipe(Paused, writing)
        transport.set_write_buffer_limits(high=HIGH)
        written = await fill(transport, protocol)
        assert HIGH < transport.get_write_buffer_size() <= HIGH + len(CHUNK)
        got = bytearray()
        while len(got) < written:
            got += reading.read(65_536) or b""
            await asyncio.sleep(0)
        assert got == CHUNK * (written // len(CHUNK))
        await protocol.resumed.wait()
        transport.close()
        assert await protocol.lost is None


async def test_stdin_of_a_process_that_never_reads_is_bounded() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(100)", stdin=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        written = 0

        async def write_on(stdin: asyncio.StreamWriter) -> None:
            nonlocal written
            while True:
                stdin.write(CHUNK)
                written += len(CHUNK)
                await stdin.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_on(process.stdin), 0.5)
        assert 64 * 1024 < written < MIB
    finally:
        process.kill()
        await process.wait()
