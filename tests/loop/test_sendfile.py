"""loop.sendfile over plain transports, and its fallback."""

from __future__ import annotations

import asyncio
import io
import socket

import pytest

from .support import connected, socket_connected

CONTENT = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        yield file


async def test_a_file_arrives_whole(loop, file):
    async with connected() as (client, peer):
        assert await loop.sendfile(client.transport, file) == len(CONTENT)
        assert file.tell() == len(CONTENT)
        await peer.until_received(len(CONTENT))
        assert peer.data == CONTENT


async def test_offset_and_count_cut_a_piece(loop, file):
    async with connected() as (client, peer):
        assert await loop.sendfile(client.transport, file, 1000, 5000) == 5000
        assert file.tell() == 6000
        await peer.until_received(5000)
        assert peer.data == CONTENT[1000:6000]


async def test_a_count_past_the_end_sends_what_there_is(loop, file):
    async with connected() as (client, peer):
        sent = await loop.sendfile(client.transport, file, len(CONTENT) - 10, 100)
        assert sent == 10
        await peer.until_received(10)
        assert await loop.sendfile(client.transport, file, len(CONTENT) + 10) == 0


async def test_it_keeps_its_place_among_writes(loop, file):
    async with connected() as (client, peer):
        client.transport.write(b"before" * 500_000)
        await loop.sendfile(client.transport, file)
        client.transport.write(b"after")
        await peer.until_received(3_000_000 + len(CONTENT) + 5)
        assert peer.data == b"before" * 500_000 + CONTENT + b"after"


async def test_reading_is_held_meanwhile_and_goes_on_after(loop, file):
    async with connected() as (client, peer):
        peer.transport.write(b"meanwhile")
        await loop.sendfile(client.transport, file)
        await client.until_received(9)
        assert client.transport.is_reading()


async def test_an_object_without_a_descriptor_falls_back(loop):
    async with connected() as (client, peer):
        assert await loop.sendfile(client.transport, io.BytesIO(CONTENT), 7, 100_000) == 100_000
        await peer.until_received(100_000)
        assert peer.data == CONTENT[7:100_007]


async def test_without_fallback_such_an_object_is_refused(loop):
    async with connected() as (client, _):
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(client.transport, io.BytesIO(CONTENT), fallback=False)


async def test_a_unix_socket_is_sent_to(loop, file):
    async with socket_connected() as (client, theirs):
        sending = loop.create_task(loop.sendfile(client.transport, file))
        received = bytearray()
        while len(received) < len(CONTENT):
            received += await loop.sock_recv(theirs, 1 << 20)
        assert await sending == len(CONTENT)
        assert received == CONTENT


async def test_the_paused_writer_waits_in_the_fallback(loop):
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        sending = loop.create_task(loop.sendfile(client.transport, io.BytesIO(CONTENT * 16)))
        await asyncio.sleep(0.05)
        assert not sending.done()
        peer.transport.resume_reading()
        assert await sending == len(CONTENT) * 16
        await peer.until_received(len(CONTENT) * 16)


async def test_a_peer_that_goes_away_raises(loop, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(64 * 1024 * 1024)
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        with path.open("rb") as large:
            sending = loop.create_task(loop.sendfile(client.transport, large))
            await asyncio.sleep(0.02)
            peer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
            )
            peer.transport.abort()
            with pytest.raises(ConnectionError):
                await sending


async def test_cancelling_stops_it(loop, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(64 * 1024 * 1024)
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        with path.open("rb") as large:
            sending = loop.create_task(loop.sendfile(client.transport, large))
            await asyncio.sleep(0.02)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending


async def test_a_closing_transport_is_refused(loop, file):
    async with connected() as (client, _):
        client.transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(client.transport, file)


async def test_a_transport_that_cannot_is_refused(loop, file):
    class Foreign(asyncio.Transport):
        def is_closing(self):
            return False

    with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
        await loop.sendfile(Foreign(), file)
