"""One TCP connection: protocol calls, writing, flow control, half-close, ends and errors."""

from __future__ import annotations

import asyncio
import socket

import pytest

from .support import SINCE_312, BufferedPeer, Echo, Peer, connected, serving, socket_connected, turns

MIB = 1024 * 1024


async def test_protocol_calls_come_in_order(loop):
    async with connected() as (client, peer):
        client.transport.write(b"hello")
        await peer.until_received(5)
        client.transport.close()
        await client.until_called("lost")
        await peer.until_called("lost")
        assert client.calls == ["made", "lost"]
        assert peer.calls == ["made", "data", "eof", "lost"]
        assert client.reason is None
        assert peer.reason is None


async def test_echo(loop):
    async with connected(server_factory=Echo) as (client, _):
        for size in (1, 2, 1000, 65536, 300_000):
            client.data.clear()
            client.transport.write(b"x" * size)
            await client.until_received(size)
            assert client.data == b"x" * size


async def test_what_is_received_is_bytes(loop):
    kinds = set()

    class Kinds(Peer):
        def data_received(self, data):
            kinds.add(type(data))
            super().data_received(data)

    async with connected(server_factory=Kinds) as (client, peer):
        client.transport.write(bytearray(b"abc"))
        await peer.until_received(3)
        client.transport.write(b"y" * 500_000)
        await peer.until_received(500_003)
    assert kinds == {bytes}


async def test_received_data_is_not_changed_by_later_data(loop):
    chunks = []

    class Keeping(Peer):
        def data_received(self, data):
            chunks.append(data)
            super().data_received(data)

    async with connected(server_factory=Keeping) as (client, peer):
        for number in range(50):
            client.transport.write(bytes([number]) * 1000)
            await peer.until_received((number + 1) * 1000)
    assert b"".join(chunks) == b"".join(bytes([number]) * 1000 for number in range(50))


async def test_a_huge_write_arrives_whole(loop):
    payload = bytes(range(256)) * (64 * MIB // 256)
    async with connected() as (client, peer):
        client.transport.write(payload)
        assert client.transport.get_write_buffer_size() > 0
        await peer.until_received(len(payload))
        assert peer.data == payload
        assert client.calls == ["made", "pause", "resume"]


async def test_write_takes_every_kind_of_buffer(loop):
    async with connected() as (client, peer):
        client.transport.write(b"bytes ")
        client.transport.write(bytearray(b"bytearray "))
        client.transport.write(memoryview(b"memoryview "))
        client.transport.write(memoryview(b"-c-u-t-")[1::2].tobytes())
        await peer.until_received(30)
        assert peer.data == b"bytes bytearray memoryview cut"


@pytest.mark.asyncio_flawed(SINCE_312, "queues a view of what the caller may change")
async def test_a_buffer_may_change_after_write_returned(loop):
    async with socket_connected() as (client, theirs):
        client.transport.write(b"x" * MIB)  # more than the socket takes: the next writes are queued
        scratch = bytearray(b"first")
        client.transport.write(scratch)
        scratch[:] = b"other"
        client.transport.write(memoryview(scratch))
        scratch[:] = b"third"
        client.transport.write_eof()
        received = bytearray()
        while chunk := await loop.sock_recv(theirs, MIB):
            received += chunk
        assert received == b"x" * MIB + b"firstother"


async def test_writing_nothing_is_allowed(loop):
    async with connected() as (client, peer):
        client.transport.write(b"")
        client.transport.writelines([])
        client.transport.writelines([b"", b""])
        client.transport.write(b"end")
        await peer.until_received(3)
        assert peer.data == b"end"


@pytest.mark.parametrize("wrong", ["text", 7, None, [b"list"]])
async def test_write_refuses_other_types(loop, wrong):
    async with connected() as (client, _):
        with pytest.raises(
            TypeError, match=r"data argument must be a bytes-like object|data: expecting a bytes-like"
        ):
            client.transport.write(wrong)
        assert client.calls == ["made"]


async def test_writelines_sends_all_in_order(loop):
    async with connected() as (client, peer):
        client.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c"), b"", b"d"])
        await peer.until_received(4)
        assert peer.data == b"abcd"


async def test_writelines_takes_any_iterable(loop):
    async with connected() as (client, peer):
        client.transport.writelines(bytes([number]) for number in range(5))
        await peer.until_received(5)
        assert peer.data == bytes(range(5))


async def test_writelines_of_more_buffers_than_one_call_takes(loop):
    lines = [b"%06d" % number for number in range(5000)]
    async with connected() as (client, peer):
        client.transport.writelines(lines)
        await peer.until_received(30_000)
        assert peer.data == b"".join(lines)


async def test_writelines_of_large_buffers_into_a_full_socket(loop):
    lines = [bytes([number % 256]) * 10_000 for number in range(2000)]
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        client.transport.writelines(lines)
        client.transport.write(b"last")
        peer.transport.resume_reading()
        await peer.until_received(20_000_004)
        assert peer.data == b"".join(lines) + b"last"


@pytest.mark.parametrize("wrong", [7, [7], [b"good", "text"]])
async def test_writelines_refuses_other_types(loop, wrong):
    async with connected() as (client, _):
        with pytest.raises(TypeError):
            client.transport.writelines(wrong)


async def test_many_small_queued_writes_keep_their_order(loop):
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        client.transport.write(b"x" * (8 * MIB))
        for number in range(5000):
            client.transport.write(b"%06d" % number)
        peer.transport.resume_reading()
        await peer.until_received(8 * MIB + 30_000)
        assert peer.data[8 * MIB :] == b"".join(b"%06d" % number for number in range(5000))


# Flow control


async def test_a_paused_reader_receives_nothing(loop):
    async with connected() as (client, peer):
        assert peer.transport.is_reading()
        peer.transport.pause_reading()
        assert not peer.transport.is_reading()
        client.transport.write(b"later")
        await asyncio.sleep(0.02)
        assert peer.calls == ["made"]
        peer.transport.resume_reading()
        assert peer.transport.is_reading()
        await peer.until_received(5)


async def test_pausing_twice_is_harmless(loop):
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        peer.transport.pause_reading()
        peer.transport.resume_reading()
        peer.transport.resume_reading()
        client.transport.write(b"once")
        await peer.until_received(4)
        assert peer.calls == ["made", "data"]


async def test_pausing_in_data_received_stops_at_once(loop):
    class OneAtATime(Peer):
        def data_received(self, data):
            super().data_received(data)
            self.calls.append(f"chunk {len(data) > 0}")
            self.transport.pause_reading()

    async with connected(server_factory=OneAtATime) as (client, peer):
        client.transport.write(b"x" * (4 * MIB))
        await peer.until_called("data")
        await asyncio.sleep(0.02)
        assert peer.calls.count("chunk True") == 1
        received = len(peer.data)
        peer.transport.resume_reading()
        await peer.until(lambda: len(peer.data) > received)


async def test_pausing_in_connection_made_holds_the_first_byte(loop):
    class Paused(Peer):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async with connected(server_factory=Paused) as (client, peer):
        client.transport.write(b"x")
        await asyncio.sleep(0.02)
        assert peer.calls == ["made"]
        peer.transport.resume_reading()
        await peer.until_received(1)


async def test_the_writer_is_paused_and_resumed_by_its_watermarks(loop):
    async with connected() as (client, peer):
        client.transport.set_write_buffer_limits(high=100_000, low=20_000)
        assert client.transport.get_write_buffer_limits() == (20_000, 100_000)
        peer.transport.pause_reading()
        while "pause" not in client.calls:
            client.transport.write(b"x" * 50_000)
            await asyncio.sleep(0)
        assert client.transport.get_write_buffer_size() > 100_000
        peer.transport.resume_reading()
        await client.until_called("resume")
        assert client.transport.get_write_buffer_size() <= 20_000
        assert client.calls == ["made", "pause", "resume"]


async def test_watermark_defaults(loop):
    async with connected() as (client, _):
        transport = client.transport
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=40)
        assert transport.get_write_buffer_limits() == (10, 40)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits()
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_limits() == (0, 0)


@pytest.mark.parametrize(("high", "low"), [(10, 20), (-1, None), (10, -1), (0, 1)])
async def test_wrong_watermarks_are_refused(loop, high, low):
    async with connected() as (client, _):
        with pytest.raises(ValueError, match=r"high \(-?\d+\) must be >= low \(-?\d+\) must be >= 0"):
            client.transport.set_write_buffer_limits(high=high, low=low)


async def test_a_failing_pause_writing_is_reported(loop, loop_errors):
    class Failing(Peer):
        def pause_writing(self):
            raise ArithmeticError("in pause")

    async with connected(Failing) as (client, peer):
        peer.transport.pause_reading()
        client.transport.write(b"x" * (16 * MIB))
        (context,) = loop_errors
        assert isinstance(context["exception"], ArithmeticError)
        assert context["transport"] is client.transport
        assert context["protocol"] is client
        loop_errors.clear()


# Half-close and ends


async def test_write_eof_ends_our_side_only(loop):
    async with connected(lambda: Peer(keep_open_at_eof=True), lambda: Peer(keep_open_at_eof=True)) as (
        client,
        peer,
    ):
        assert client.transport.can_write_eof()
        client.transport.write(b"request")
        client.transport.write_eof()
        await peer.until_called("eof")
        assert peer.data == b"request"
        assert not peer.transport.is_closing()
        peer.transport.write(b"answer")
        await client.until_received(6)
        assert "lost" not in client.calls


async def test_write_eof_comes_after_all_queued_data(loop):
    async with connected(server_factory=lambda: Peer(keep_open_at_eof=True)) as (client, peer):
        client.transport.write(b"x" * (16 * MIB))
        client.transport.write_eof()
        client.transport.write_eof()
        await peer.until_called("eof")
        assert len(peer.data) == 16 * MIB


async def test_writing_after_write_eof_is_refused(loop):
    async with connected(server_factory=lambda: Peer(keep_open_at_eof=True)) as (client, _):
        client.transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            client.transport.write(b"late")


@pytest.mark.asyncio_since((3, 13), "a writelines that refuses after write_eof")
async def test_writelines_after_write_eof_is_refused(loop):
    async with connected(server_factory=lambda: Peer(keep_open_at_eof=True)) as (client, _):
        client.transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call writelines\(\) after write_eof\(\)|write\(\)"):
            client.transport.writelines([b"late"])


async def test_eof_closes_unless_the_protocol_keeps_it_open(loop):
    async with connected() as (client, peer):
        client.transport.write_eof()
        await peer.until_called("lost")
        await client.until_called("lost")
        assert peer.calls == ["made", "eof", "lost"]
        assert client.calls == ["made", "eof", "lost"]


async def test_eof_answered_from_eof_received(loop):
    class Answering(Peer):
        def eof_received(self):
            self.transport.write(b"bye")
            return super().eof_received()

    async with connected(server_factory=Answering) as (client, _):
        client.transport.write_eof()
        await client.until_called("lost")
        assert client.data == b"bye"


async def test_close_sends_what_is_queued(loop):
    async with connected() as (client, peer):
        client.transport.write(b"x" * (8 * MIB))
        client.transport.close()
        assert client.transport.is_closing()
        await peer.until_called("lost")
        assert len(peer.data) == 8 * MIB


async def test_close_stops_reading_at_once(loop):
    async with connected() as (client, peer):
        peer.transport.write(b"unread")
        client.transport.close()
        await client.until_called("lost")
        assert client.calls == ["made", "lost"]


async def test_connection_lost_is_never_called_from_inside_close(loop):
    async with connected() as (client, _):
        client.transport.close()
        assert client.calls == ["made"]
        await client.until_called("lost")


async def test_closing_twice_loses_the_connection_once(loop):
    async with connected() as (client, _):
        client.transport.close()
        client.transport.close()
        client.transport.abort()
        await client.until_called("lost")
        client.transport.close()
        await turns()
        assert client.calls == ["made", "lost"]


async def test_abort_drops_what_is_queued(loop):
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        client.transport.write(b"x" * (16 * MIB))
        client.transport.abort()
        assert client.transport.get_write_buffer_size() == 0
        assert client.transport.is_closing()
        await client.until_called("lost")
        assert client.reason is None
        peer.transport.resume_reading()
        await peer.until_called("lost")
        assert len(peer.data) < 16 * MIB


async def test_abort_after_close_does_not_wait_for_the_peer(loop):
    async with connected() as (client, peer):
        peer.transport.pause_reading()
        client.transport.write(b"x" * (16 * MIB))
        client.transport.close()
        await turns()
        assert "lost" not in client.calls
        client.transport.abort()
        await client.until_called("lost")


async def test_writes_after_close_go_nowhere(loop):
    async with connected() as (client, peer):
        client.transport.close()
        client.transport.write(b"late")
        await client.until_called("lost")
        client.transport.write(b"later")
        await peer.until_called("lost")
        assert peer.data == b""


@pytest.mark.asyncio_flawed(SINCE_312, "writelines on a closed transport raises an accidental TypeError")
async def test_writelines_after_close_go_nowhere(loop):
    async with connected() as (client, peer):
        client.transport.close()
        client.transport.writelines([b"late"])
        await client.until_called("lost")
        client.transport.writelines([b"later"])
        await peer.until_called("lost")
        assert peer.data == b""


async def test_a_reset_reaches_the_protocol(loop):
    async with connected() as (client, peer):
        raw = client.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.transport.abort()
        await peer.until_called("lost")
        assert isinstance(peer.reason, ConnectionResetError)
        assert peer.calls == ["made", "lost"]


async def test_writing_to_a_peer_that_is_gone_ends_the_connection(loop):
    async with socket_connected(lambda: Peer(keep_open_at_eof=True)) as (client, theirs):
        theirs.close()
        await client.until_called("eof")
        client.transport.write(b"anyone?")
        await client.until_called("lost")
        assert isinstance(client.reason, BrokenPipeError)


async def test_repeated_writes_to_a_lost_connection_warn_only_after_some(loop, caplog):
    async with socket_connected(lambda: Peer(keep_open_at_eof=True)) as (client, theirs):
        theirs.close()
        await client.until_called("eof")
        for _ in range(10):
            client.transport.write(b"anyone?")
        messages = [record.getMessage() for record in caplog.records]
        assert messages
        assert set(messages) == {"socket.send() raised exception."}


async def test_an_exception_in_data_received_ends_the_connection(loop, loop_errors):
    class Failing(Peer):
        def data_received(self, data):
            raise LookupError("in data_received")

    async with connected(server_factory=Failing) as (client, peer):
        client.transport.write(b"x")
        await peer.until_called("lost")
        assert isinstance(peer.reason, LookupError)
        (context,) = loop_errors
        assert context["message"] == "Fatal error: protocol.data_received() call failed."
        assert context["exception"] is peer.reason
        assert context["transport"] is peer.transport
        assert context["protocol"] is peer
        loop_errors.clear()


async def test_an_exception_in_eof_received_ends_the_connection(loop, loop_errors):
    class Failing(Peer):
        def eof_received(self):
            raise LookupError("in eof_received")

    async with connected(server_factory=Failing) as (client, peer):
        client.transport.write_eof()
        await peer.until_called("lost")
        assert isinstance(peer.reason, LookupError)
        assert [context["message"] for context in loop_errors] == [
            "Fatal error: protocol.eof_received() call failed."
        ]
        loop_errors.clear()


async def test_an_exception_in_connection_lost_is_reported(loop, loop_errors):
    class Failing(Peer):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            raise LookupError("in connection_lost")

    async with connected(Failing) as (client, _):
        client.transport.close()
        await client.until_called("lost")
        await turns()
    assert [type(context["exception"]) for context in loop_errors] == [LookupError]
    loop_errors.clear()


async def test_an_exception_in_connection_made_is_reported(loop, loop_errors):
    class Failing(Peer):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise LookupError("in connection_made")

    async with connected(server_factory=Failing) as (client, peer):
        await turns()
        assert [type(context["exception"]) for context in loop_errors] == [LookupError]
        loop_errors.clear()
        client.transport.write(b"still connected")
        await peer.until_received(15)


# Buffered protocols and switching


async def test_a_buffered_protocol_fills_its_own_buffer(loop):
    async with connected(server_factory=lambda: BufferedPeer(100)) as (client, peer):
        client.transport.write(bytes(range(250)))
        await peer.until_received(250)
        assert peer.data == bytes(range(250))
        assert peer.hints == {-1}
        client.transport.write_eof()
        await peer.until_called("lost")
        assert peer.calls == ["made", "data", "eof", "lost"]


async def test_a_buffered_protocol_receives_much(loop):
    payload = bytes(range(256)) * 40_000
    async with connected(server_factory=lambda: BufferedPeer(64 * 1024)) as (client, peer):
        client.transport.write(payload)
        await peer.until_received(len(payload))
        assert peer.data == payload


async def test_an_empty_buffer_ends_the_connection(loop, loop_errors):
    async with connected(server_factory=lambda: BufferedPeer(0)) as (client, peer):
        client.transport.write(b"x")
        await peer.until_called("lost")
        assert isinstance(peer.reason, RuntimeError)
        (context,) = loop_errors
        assert context["message"] == "Fatal error: protocol.get_buffer() call failed."
        assert str(peer.reason) == "get_buffer() returned an empty buffer"
        loop_errors.clear()


@pytest.mark.parametrize("wrong", [None, b"read-only", 7])
async def test_a_buffer_that_cannot_be_written_ends_the_connection(loop, loop_errors, wrong):
    class Wrong(BufferedPeer):
        def get_buffer(self, sizehint):
            return wrong

    async with connected(server_factory=Wrong) as (client, peer):
        client.transport.write(b"x")
        await peer.until_called("lost")
        assert isinstance(peer.reason, TypeError)
        assert len(loop_errors) == 1
        loop_errors.clear()


async def test_an_exception_in_buffer_updated_ends_the_connection(loop, loop_errors):
    class Failing(BufferedPeer):
        def buffer_updated(self, nbytes):
            raise LookupError("in buffer_updated")

    async with connected(server_factory=Failing) as (client, peer):
        client.transport.write(b"x")
        await peer.until_called("lost")
        assert isinstance(peer.reason, LookupError)
        assert [context["message"] for context in loop_errors] == [
            "Fatal error: protocol.buffer_updated() call failed."
        ]
        loop_errors.clear()


async def test_the_protocol_is_switched_in_data_received(loop):
    second = Peer()

    class First(Peer):
        def data_received(self, data):
            super().data_received(data)
            second.transport = self.transport
            self.transport.set_protocol(second)
            assert self.transport.get_protocol() is second

    async with connected(server_factory=First) as (client, peer):
        client.transport.write(b"one")
        await peer.until_received(3)
        client.transport.write(b"two")
        await second.until_received(3)
        client.transport.close()
        await second.until_called("lost")
        assert peer.calls == ["made", "data"]
        peer.note("lost")  # what `connected` waits for


async def test_a_protocol_becomes_buffered_and_plain_again(loop):
    buffered, plain = BufferedPeer(), Peer()
    async with connected() as (client, peer):
        peer.transport.set_protocol(buffered)
        client.transport.write(b"one")
        await buffered.until_received(3)
        peer.transport.set_protocol(plain)
        client.transport.write(b"two")
        await plain.until_received(3)
        peer.transport.set_protocol(peer)
        assert peer.calls == ["made"]


# What a transport tells


async def test_extra_info_has_addresses_and_a_real_socket(loop):
    async with connected() as (client, peer):
        ours, theirs = client.transport, peer.transport
        assert ours.get_extra_info("peername") == theirs.get_extra_info("sockname")
        assert ours.get_extra_info("sockname") == theirs.get_extra_info("peername")
        sock = ours.get_extra_info("socket")
        assert sock.getpeername() == ours.get_extra_info("peername")
        assert (sock.family, sock.type, sock.proto) == (
            socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
        )
        assert sock.fileno() >= 0
        assert sock.gettimeout() == 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert ours.get_extra_info("nothing") is None
        assert ours.get_extra_info("nothing", "default") == "default"


async def test_the_socket_view_cannot_read_or_write(loop):
    async with connected() as (client, _):
        sock = client.transport.get_extra_info("socket")
        for name in ("recv", "send", "sendall", "close", "connect", "accept"):
            assert not hasattr(sock, name)


async def test_transport_repr_tells_its_state(loop):
    async with connected() as (client, _):
        assert f"fd={client.transport.get_extra_info('socket').fileno()}" in repr(client.transport)
        client.transport.close()
        assert "clos" in repr(client.transport)
        await client.until_called("lost")
        assert "closed" in repr(client.transport)


async def test_transports_are_asyncio_transports(loop):
    async with connected() as (client, peer):
        for protocol in (client, peer):
            assert isinstance(protocol.transport, asyncio.Transport)


async def test_a_transport_dropped_unclosed_warns(loop):
    async with serving(Peer) as address:
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        transport.pause_reading()
        text = repr(transport)
        assert text
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            transport.__del__()
        await turns()
        transport.abort()
        await turns()


async def test_streams_over_it(loop):
    async def handle(reader, writer):
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for number in range(200):
        writer.write(b"line %d\n" % number)
        await writer.drain()
        assert await reader.readline() == b"LINE %d\n" % number
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
