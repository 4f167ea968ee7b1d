"""connect_read_pipe and connect_write_pipe: pipes, FIFOs, terminals, sockets."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import tty

import pytest

from .support import Peer, turns


async def reading(file, **options):
    return (await asyncio.get_running_loop().connect_read_pipe(lambda: Peer(**options), file))[1]


async def writing(file):
    return (await asyncio.get_running_loop().connect_write_pipe(Peer, file))[1]


def pipe_files():
    read_fd, write_fd = os.pipe()
    return os.fdopen(read_fd, "rb", 0), os.fdopen(write_fd, "wb", 0)


async def test_what_is_written_to_a_pipe_is_read(loop):
    read_end, write_end = pipe_files()
    reader, writer = await reading(read_end), await writing(write_end)
    writer.transport.write(b"hello")
    await reader.until_received(5)
    writer.transport.close()
    await reader.until_called("lost")
    await writer.until_called("lost")
    assert reader.calls == ["made", "data", "eof", "lost"]
    assert writer.calls == ["made", "lost"]
    assert read_end.closed
    assert write_end.closed


async def test_much_data_goes_through(loop):
    payload = bytes(range(256)) * 20_000
    read_end, write_end = pipe_files()
    reader, writer = await reading(read_end), await writing(write_end)
    writer.transport.write(payload)
    assert writer.transport.get_write_buffer_size() > 0
    writer.transport.write_eof()
    await reader.until_called("lost")
    await writer.until_called("lost")
    assert reader.data == payload
    assert writer.calls == ["made", "pause", "resume", "lost"]


async def test_writelines_and_buffers(loop):
    read_end, write_end = pipe_files()
    reader, writer = await reading(read_end), await writing(write_end)
    writer.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
    writer.transport.write(b"")
    writer.transport.write(bytearray(b"d"))
    writer.transport.close()
    await reader.until_called("lost")
    await writer.until_called("lost")
    assert reader.data == b"abcd"


async def test_reading_pauses_and_resumes(loop):
    read_end, write_end = pipe_files()
    reader = await reading(read_end)
    assert reader.transport.is_reading()
    reader.transport.pause_reading()
    assert not reader.transport.is_reading()
    write_end.write(b"later")
    await asyncio.sleep(0.01)
    assert reader.calls == ["made"]
    reader.transport.resume_reading()
    await reader.until_received(5)
    write_end.close()
    await reader.until_called("lost")


async def test_the_reader_going_away_ends_the_writer(loop):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    read_end.close()
    await writer.until_called("lost")
    assert isinstance(writer.reason, BrokenPipeError) or writer.reason is None


async def test_writing_to_a_reader_that_is_gone(loop):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    read_end.close()
    writer.transport.write(b"anyone?")
    await writer.until_called("lost")
    assert isinstance(writer.reason, BrokenPipeError)


async def test_closing_the_reader(loop):
    read_end, write_end = pipe_files()
    reader = await reading(read_end)
    reader.transport.close()
    assert reader.transport.is_closing()
    await reader.until_called("lost")
    assert reader.calls == ["made", "lost"]
    assert read_end.closed
    write_end.close()


async def test_aborting_the_writer_drops_what_is_queued(loop):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    writer.transport.write(b"x" * 1_000_000)
    writer.transport.abort()
    await writer.until_called("lost")
    received = 0
    while chunk := read_end.read(65536):
        received += len(chunk)
    assert received < 1_000_000
    read_end.close()


async def test_close_sends_what_is_queued(loop):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    writer.transport.write(b"x" * 1_000_000)
    writer.transport.close()
    reader = await reading(read_end)
    await reader.until_called("lost")
    await writer.until_called("lost")
    assert len(reader.data) == 1_000_000


async def test_watermarks_of_a_pipe(loop):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    assert writer.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    writer.transport.set_write_buffer_limits(high=100, low=10)
    assert writer.transport.get_write_buffer_limits() == (10, 100)
    writer.transport.write(b"x" * 200_000)
    assert writer.calls == ["made", "pause"]
    writer.transport.abort()
    await writer.until_called("lost")
    read_end.close()


@pytest.mark.parametrize("wrong", ["text", 7, None])
async def test_write_refuses_other_types(loop, wrong):
    read_end, write_end = pipe_files()
    writer = await writing(write_end)
    with pytest.raises((TypeError, AssertionError)):
        writer.transport.write(wrong)
    writer.transport.close()
    await writer.until_called("lost")
    read_end.close()


async def test_a_fifo_is_read_and_written(loop, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    reader = await reading(os.fdopen(read_fd, "rb", 0))
    writer = await writing(os.fdopen(write_fd, "wb", 0))
    writer.transport.write(b"through the fifo")
    await reader.until_received(16)
    writer.transport.close()
    await reader.until_called("lost")
    await writer.until_called("lost")


async def test_a_terminal_is_read_and_written(loop):
    master, slave = pty.openpty()
    tty.setraw(slave)
    reader = await reading(os.fdopen(master, "rb", 0))
    writer = await writing(os.fdopen(slave, "wb", 0))
    writer.transport.write(b"typed")
    await reader.until_received(5)
    assert reader.data == b"typed"
    reader.transport.close()
    await reader.until_called("lost")
    writer.transport.abort()
    await writer.until_called("lost")


async def test_a_socket_is_a_pipe_too(loop):
    one, two = socket.socketpair()
    reader, writer = await reading(one), await writing(two)
    writer.transport.write(b"hi")
    await reader.until_received(2)
    writer.transport.close()
    await writer.until_called("lost")
    await reader.until_called("lost")


async def test_pipes_tell_their_file(loop):
    read_end, write_end = pipe_files()
    reader, writer = await reading(read_end), await writing(write_end)
    assert reader.transport.get_extra_info("pipe") is read_end
    assert writer.transport.get_extra_info("pipe") is write_end
    assert isinstance(reader.transport, asyncio.ReadTransport)
    assert isinstance(writer.transport, asyncio.WriteTransport)
    assert writer.transport.can_write_eof()
    assert f"fd={read_end.fileno()}" in repr(reader.transport)
    writer.transport.close()
    await writer.until_called("lost")
    await reader.until_called("lost")
    assert "closed" in repr(reader.transport)


async def test_the_protocol_is_switched(loop):
    read_end, write_end = pipe_files()
    first, second = await reading(read_end), Peer()
    first.transport.set_protocol(second)
    assert first.transport.get_protocol() is second
    write_end.write(b"x")
    await second.until_received(1)
    write_end.close()
    await second.until_called("lost")
    assert first.calls == ["made"]


async def test_plain_files_are_refused(loop, tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        with pytest.raises(ValueError, match=r"Pipe transport is (only )?for pipes"):
            await reading(file)
        with pytest.raises(ValueError, match=r"Pipe transport is only for"):
            await writing(file)


async def test_an_exception_in_data_received(loop, loop_errors):
    class Failing(Peer):
        def data_received(self, data):
            super().data_received(data)
            raise LookupError

    read_end, write_end = pipe_files()
    _, reader = await loop.connect_read_pipe(Failing, read_end)
    write_end.write(b"x")
    await reader.until_called("data")
    await turns(3)
    write_end.close()
    await reader.until_called("lost")
    assert [type(context["exception"]) for context in loop_errors] == [LookupError]
    loop_errors.clear()


async def test_an_exception_in_connection_lost(loop, loop_errors):
    class Failing(Peer):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            raise LookupError

    read_end, write_end = pipe_files()
    _, reader = await loop.connect_read_pipe(Failing, read_end)
    write_end.close()
    await reader.until_called("lost")
    await turns(3)
    assert read_end.closed
    assert [type(context["exception"]) for context in loop_errors] == [LookupError]
    loop_errors.clear()
