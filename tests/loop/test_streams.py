"""Connections with the streams API, asyncio's and unwait's, each on both loops."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trustme

from unwait.loop import stream_reader
from unwait.loop import streams as own

from .support import SINCE_313, turns

UNWAIT = SimpleNamespace(
    StreamReader=stream_reader.StreamReader,
    StreamReaderProtocol=own.StreamReaderProtocol,
    StreamWriter=own.StreamWriter,
    open_connection=own.open_connection,
    open_unix_connection=own.open_unix_connection,
    start_server=own.start_server,
    start_unix_server=own.start_unix_server,
)


@pytest.fixture(params=[asyncio, UNWAIT], ids=["asyncio-streams", "unwait-streams"])
def streams(request):
    """Whose streams this run of the test uses."""
    return request.param


@asynccontextmanager
async def served(streams, handle, **options):
    """A server on a free local port, as its address; it is left once all that serves is over."""
    others = asyncio.all_tasks()
    server = await streams.start_server(handle, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()
        if tasks := asyncio.all_tasks() - others:
            await asyncio.wait(tasks)
            await turns()


@asynccontextmanager
async def connected(streams, **options):
    """The readers and writers of both ends of a connection: the client's, then the server's."""
    accepted = asyncio.get_running_loop().create_future()
    async with served(streams, lambda *ends: accepted.set_result(ends)) as address:
        reader, writer = await streams.open_connection(*address, **options)
        far_reader, far_writer = await accepted
        try:
            yield reader, writer, far_reader, far_writer
        finally:
            for end in (writer, far_writer):
                if not end.is_closing():
                    end.transport.abort()
            await turns()


async def finished(writer):
    writer.close()
    await writer.wait_closed()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    await finished(writer)


async def write_and_drain(writer):
    """Go on until drain raises."""
    while True:
        writer.write(b"x" * 1000)
        await writer.drain()


async def exchange(reader, writer):
    writer.write(b"hello ")
    writer.writelines([b"wor", bytearray(b"ld"), memoryview(b"!")])
    await writer.drain()
    assert writer.can_write_eof()
    writer.write_eof()
    assert await reader.read() == b"hello world!"
    assert not writer.is_closing()
    writer.close()
    assert writer.is_closing()
    await writer.wait_closed()
    await writer.wait_closed()


async def test_a_coroutine_function_serves(loop, streams):
    async with served(streams, echo) as address:
        await asyncio.gather(*[exchange(*await streams.open_connection(*address)) for _ in range(5)])


async def test_a_function_serves(loop, streams):
    tasks = []
    async with served(streams, lambda *ends: tasks.append(asyncio.create_task(echo(*ends)))) as address:
        await exchange(*await streams.open_connection(*address))
        await tasks.pop()


async def test_unix_sockets(loop, streams, tmp_path):
    path = tmp_path / "socket"
    server = await streams.start_unix_server(echo, path)
    await exchange(*await streams.open_unix_connection(str(path)))
    server.close()
    await server.wait_closed()


async def test_options_go_to_the_loop(loop, streams):
    ours, theirs = socket.socketpair()
    reader, writer = await streams.open_connection(sock=ours, limit=77)
    assert "limit=77" in repr(reader)
    theirs.sendall(b"hi")
    assert await reader.read(10) == b"hi"
    await finished(writer)
    theirs.close()
    with pytest.raises(TypeError):
        await streams.open_connection("127.0.0.1", 1, nonsense=True)


async def test_refused_connections(loop, streams):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await streams.open_connection(*unused.getsockname())


async def test_the_writer_knows_its_transport(loop, streams):
    async with connected(streams) as (reader, writer, _, far_writer):
        assert writer.transport.get_extra_info("peername") == far_writer.get_extra_info("sockname")
        assert writer.get_extra_info("nothing") is None
        assert writer.get_extra_info("nothing", 5) == 5
        assert repr(writer) == f"<StreamWriter transport={writer.transport!r} reader={reader!r}>"


async def test_they_pass_for_asyncio_s(loop, streams):
    async with connected(streams) as (reader, writer, _, _):
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(reader, streams.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        assert isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol)
        assert not isinstance(writer.transport.get_protocol(), asyncio.BufferedProtocol)


async def test_what_a_reader_may_buffer_is_bounded(loop, streams):
    async with connected(streams, limit=1000) as (reader, _, _, far_writer):
        far_writer.write(bytes(30_000_000))
        await turns(20)
        assert len(reader._buffer) <= 2000 + 256 * 1024
        total = 0
        while total < 30_000_000:
            total += len(await reader.read(100_000))
        assert total == 30_000_000


async def test_much_data_arrives_as_it_was_sent(loop, streams):
    lines = [b"%d %s\n" % (number, b"x" * (number * 37 % 3000)) for number in range(2000)]

    async def send(reader, writer):
        for line in lines:
            writer.write(line)
            writer.write(len(line).to_bytes(4) + line)
            await writer.drain()
        await finished(writer)

    async with served(streams, send) as address:
        reader, writer = await streams.open_connection(*address, limit=4096)
        for line in lines:
            assert await reader.readline() == line
            assert await reader.readexactly(int.from_bytes(await reader.readexactly(4))) == line
        assert await reader.read() == b""
        await finished(writer)


async def test_a_drain_never_awaited_is_warned_of(loop, streams):
    async with connected(streams) as (_, writer, _, _):
        with pytest.warns(RuntimeWarning, match="coroutine 'StreamWriter.drain' was never awaited"):
            writer.drain()


def test_a_half_made_writer_crashes_nothing():
    writer = UNWAIT.StreamWriter.__new__(UNWAIT.StreamWriter)
    with pytest.raises((AttributeError, TypeError)):
        writer.write(b"x")
    with pytest.raises((AttributeError, TypeError)):
        UNWAIT.StreamReaderProtocol.__new__(UNWAIT.StreamReaderProtocol).connection_made(None)


async def test_drain_waits_until_enough_is_sent(loop, streams):
    async with connected(streams) as (_, writer, far_reader, _):
        writer.transport.set_write_buffer_limits(0)
        writer.write(bytes(20_000_000))
        waiting = [asyncio.create_task(writer.drain()) for _ in range(3)]
        given_up = asyncio.create_task(writer.drain())
        await turns()
        assert not any(task.done() for task in waiting)
        given_up.cancel()
        await far_reader.readexactly(20_000_000)
        await asyncio.gather(*waiting)
        assert given_up.cancelled()
        await writer.drain()


async def test_drain_is_told_of_a_lost_connection(loop, streams):
    async with connected(streams) as (_, writer, _, _):
        writer.transport.set_write_buffer_limits(0)
        writer.write(bytes(20_000_000))
        waiting = asyncio.create_task(writer.drain())
        await turns()
        writer.transport.abort()
        await waiting
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        assert await writer.wait_closed() is None


async def test_writing_and_draining_in_a_loop_ends_when_the_peer_is_gone(loop, streams):
    async with connected(streams) as (_, writer, _, far_writer):
        far_writer.transport.abort()
        with pytest.raises(ConnectionError):
            await write_and_drain(writer)


async def test_drain_lets_a_closing_connection_be_lost(loop, streams):
    async with connected(streams) as (_, writer, _, _):
        writer.close()
        with pytest.raises(ConnectionResetError):
            await write_and_drain(writer)


async def test_drain_raises_what_reading_does(loop, streams):
    async with connected(streams) as (reader, writer, _, _):
        reader.set_exception(OSError("gone"))
        with pytest.raises(OSError, match="gone"):
            await writer.drain()


async def test_a_reset_connection(loop, streams):
    async with connected(streams) as (reader, writer, _, far_writer):
        far_writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        far_writer.transport.abort()
        for operation in (reader.read, writer.wait_closed, writer.drain, reader.readline):
            with pytest.raises(ConnectionResetError):
                await operation()


async def test_wait_closed_waits(loop, streams):
    async with connected(streams) as (_, writer, far_reader, _):
        writer.write(bytes(20_000_000))
        writer.close()
        closed = asyncio.create_task(writer.wait_closed())
        await turns()
        assert not closed.done()
        assert len(await far_reader.read()) == 20_000_000
        await closed


async def test_half_closed_connections(loop, streams):
    async with connected(streams) as (reader, writer, far_reader, far_writer):
        writer.write_eof()
        assert await far_reader.read() == b""
        far_writer.write(b"answer\n")
        assert await reader.readline() == b"answer\n"
        with pytest.raises(RuntimeError):
            writer.write(b"x")


async def test_writing_what_is_no_data(loop, streams):
    async with connected(streams) as (_, writer, _, _):
        with pytest.raises(TypeError):
            writer.write("text")


async def test_an_exception_in_the_callback_is_reported(loop, streams, loop_errors):
    async def fail(reader, writer):
        raise ZeroDivisionError

    async with served(streams, fail) as address:
        reader, writer = await streams.open_connection(*address)
        assert await reader.read() == b""
        await finished(writer)
    (context,) = loop_errors
    assert context["message"] == "Unhandled exception in client_connected_cb"
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["transport"].is_closing()
    loop_errors.clear()


async def test_an_exception_in_a_plain_callback_is_reported(loop, streams, loop_errors):
    def fail(reader, writer):
        writer.close()
        raise ZeroDivisionError

    async with served(streams, fail) as address:
        reader, writer = await streams.open_connection(*address)
        assert await reader.read() == b""
        await finished(writer)
    (context,) = loop_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    loop_errors.clear()


async def test_a_cancelled_callback_closes_its_connection(loop, streams):
    if streams is asyncio and not SINCE_313:
        pytest.skip("asyncio does so since Python 3.13")

    async def give_up(reader, writer):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async with served(streams, give_up) as address:
        reader, writer = await streams.open_connection(*address)
        assert await reader.read() == b""
        await finished(writer)


async def test_an_unclosed_writer_is_warned_of_and_closed(loop, streams):
    ended = loop.create_future()

    async def wait_for_the_end(reader, writer):
        ended.set_result(await reader.read())
        writer.close()

    async with served(streams, wait_for_the_end) as address:
        reader, writer = await streams.open_connection(*address)
        with pytest.warns(ResourceWarning, match="unclosed <StreamWriter"):
            del writer
        assert await ended == b""
        assert await reader.read() == b""


def test_a_writer_that_outlives_its_loop_is_warned_of(loop, streams, run):
    class Open:
        write = None

        def is_closing(self):
            return False

        def get_extra_info(self, name):
            return None

    reader = streams.StreamReader(loop=loop)
    protocol = streams.StreamReaderProtocol(reader, loop=loop)
    writer = streams.StreamWriter(Open(), protocol, reader, loop)
    loop.close()
    with pytest.warns(ResourceWarning, match="loop is closed"):
        del writer


@pytest.fixture(scope="module")
def contexts():
    """TLS contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_connections_over_tls(loop, streams, contexts):
    async def greet(reader, writer):
        writer.write(await reader.readline())
        await finished(writer)

    async with served(streams, greet, ssl=contexts[0]) as address:
        reader, writer = await streams.open_connection(*address, ssl=contexts[1], server_hostname="localhost")
        assert writer.get_extra_info("sslcontext") is contexts[1]
        assert not writer.can_write_eof()
        writer.write(b"secret\n")
        assert await reader.read() == b"secret\n"
        await finished(writer)


async def test_tls_may_start_later(loop, streams, contexts):
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.start_tls(contexts[0])
        await echo(reader, writer)

    async with served(streams, serve) as address:
        reader, writer = await streams.open_connection(*address, limit=1000)
        plain = writer.transport
        writer.write(b"plain\n")
        assert await reader.readline() == b"plain\n"
        await writer.start_tls(contexts[1], server_hostname="localhost")
        assert writer.transport is not plain
        assert writer.get_extra_info("sslcontext") is contexts[1]
        for size in (10, 300_000):
            writer.write(b"s" * size)
            await writer.drain()
            assert await reader.readexactly(size) == b"s" * size
        await finished(writer)


# Mixtures: ours with asyncio's


async def test_our_reader_behind_asyncio_s_protocol(loop):
    read_end, write_end = os.pipe()
    reader = UNWAIT.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0))
    os.write(write_end, b"through a pipe")
    os.close(write_end)
    assert await reader.read() == b"through a pipe"
    transport.close()
    await turns()


@pytest.mark.parametrize("mixture", ["reader", "protocol", "writer"])
async def test_one_of_three_is_asyncio_s(loop, mixture):
    def kind(name, part):
        return getattr(asyncio if part == mixture else UNWAIT, name)

    async with served(UNWAIT, echo) as address:
        reader = kind("StreamReader", "reader")()
        protocol = kind("StreamReaderProtocol", "protocol")(reader)
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        writer = kind("StreamWriter", "writer")(transport, protocol, reader, loop)
        transport.set_write_buffer_limits(0)
        writer.write(bytes(20_000_000))
        drained = asyncio.create_task(writer.drain())
        assert await reader.readexactly(20_000_000) == bytes(20_000_000)
        await drained
        writer.close()
        with pytest.raises(ConnectionResetError):
            await write_and_drain(writer)
        await writer.wait_closed()


async def test_classes_are_derived_from_ours(loop):
    class Counting(UNWAIT.StreamReader):
        count = 0

        def feed_data(self, data):
            self.count += len(data)
            super().feed_data(data)

    async with served(UNWAIT, echo) as address:
        reader = Counting(limit=10)
        protocol = UNWAIT.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        writer = UNWAIT.StreamWriter(transport, protocol, reader, loop)
        writer.write(bytes(100))
        await writer.drain()
        assert await reader.readexactly(100) == bytes(100)
        assert reader.count == 100
        await finished(writer)


async def test_a_transport_put_into_the_writer_by_hand(loop, contexts):
    async def serve(reader, writer):
        await writer.start_tls(contexts[0])
        await echo(reader, writer)

    async with served(UNWAIT, serve) as address:
        reader, writer = await UNWAIT.open_connection(*address)
        protocol = writer.transport.get_protocol()
        writer._transport = await loop.start_tls(
            writer.transport, protocol, contexts[1], server_hostname="localhost"
        )
        protocol._over_ssl = True
        writer.write(b"secret")
        assert await reader.readexactly(6) == b"secret"
        await finished(writer)
