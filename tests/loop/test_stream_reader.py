"""Reading from streams that are fed by hand, asyncio's and unwait's, each on both loops."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Coroutine

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unwait
from unwait.loop.stream_reader import StreamReader

from .support import SINCE_313, turns


@pytest.fixture(params=[asyncio.StreamReader, StreamReader], ids=["asyncio-streams", "unwait-streams"])
def reader_type(request):
    """Whose reader this run of the test uses."""
    return request.param


class Throttled:
    """A transport that only notes whether it is paused."""

    paused = False

    def pause_reading(self):
        assert not self.paused
        self.paused = True

    def resume_reading(self):
        assert self.paused
        self.paused = False


# Reading, from a reader that is fed by hand


async def test_read_returns_what_there_is(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"one")
    reader.feed_data(b"two")
    assert await reader.read(100) == b"onetwo"


async def test_read_returns_no_more_than_asked(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"onetwo")
    assert await reader.read(2) == b"on"
    reader.feed_data(b"three")
    assert await reader.read(2) == b"et"
    assert await reader.read(2**100) == b"wothree"


async def test_read_waits_for_data(loop, reader_type):
    reader = reader_type()
    loop.call_soon(reader.feed_data, b"late")
    assert await reader.read(100) == b"late"


@pytest.mark.parametrize("arguments", [(), (-1,), (-7,)])
async def test_read_to_the_end(loop, reader_type, arguments):
    reader = reader_type(limit=4)
    for chunk in (b"a" * 10, b"b", b"c" * 30):
        loop.call_soon(reader.feed_data, chunk)
    loop.call_soon(reader.feed_eof)
    assert await reader.read(*arguments) == b"a" * 10 + b"b" + b"c" * 30
    assert await reader.read(*arguments) == b""


async def test_read_nothing_needs_no_data(loop, reader_type):
    assert await reader_type().read(0) == b""


async def test_an_empty_chunk_wakes_nobody(loop, reader_type):
    reader = reader_type()
    task = asyncio.create_task(reader.read(10))
    await turns()
    reader.feed_data(b"")
    await turns()
    assert not task.done()
    reader.feed_data(b"x")
    assert await task == b"x"


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_chunks_need_not_be_bytes(loop, reader_type, kind):
    reader = reader_type()
    reader.feed_data(kind(b"data"))
    data = await reader.read(10)
    assert type(data) is bytes
    assert data == b"data"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("read", (256,)), ("read", ()), ("readexactly", (256,)), ("readuntil", (b"\xff",)), ("readline", ())],
)
async def test_a_chunk_read_whole_is_not_copied(loop, method, arguments):
    reader = StreamReader()
    chunk = bytes(byte for byte in range(256) if byte != 10) + b"\n"
    chunk = chunk if method == "readline" else bytes(range(256))
    reader.feed_data(chunk)
    reader.feed_eof()
    assert await getattr(reader, method)(*arguments) is chunk


async def test_chunks_read_together_are_joined(loop, reader_type):
    reader = reader_type()
    chunks = [bytes([number]) * size for number, size in enumerate((4000, 3000, 10, 2000, 5000, 1024))]
    for chunk in chunks:
        reader.feed_data(chunk)
    whole = b"".join(chunks)
    sizes = (4000, 1000, 2005, 2, 5000, 3027)
    assert [await reader.readexactly(size) for size in sizes] == [
        whole[sum(sizes[:index]) : sum(sizes[: index + 1])] for index in range(len(sizes))
    ]


async def test_the_end(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"last")
    assert not reader.at_eof()
    reader.feed_eof()
    assert not reader.at_eof()
    assert await reader.read(100) == b"last"
    assert reader.at_eof()
    assert await reader.read(100) == b""
    assert await reader.readline() == b""
    with pytest.raises(AssertionError):
        reader.feed_data(b"more")


async def test_the_end_wakes_a_reader(loop, reader_type):
    reader = reader_type()
    loop.call_soon(reader.feed_eof)
    assert await reader.read(100) == b""


async def test_read_exactly(loop, reader_type):
    reader = reader_type(limit=2)
    reader.feed_data(b"abc")
    loop.call_soon(reader.feed_data, b"def")
    loop.call_soon(reader.feed_data, b"ghi")
    assert await reader.readexactly(2) == b"ab"
    assert await reader.readexactly(6) == b"cdefgh"
    assert await reader.readexactly(0) == b""
    assert await reader.readexactly(1) == b"i"


async def test_read_exactly_refuses_negative_sizes(loop, reader_type):
    reader = reader_type()
    with pytest.raises(ValueError, match="less than zero"):
        await reader.readexactly(-1)


async def test_read_exactly_at_the_end(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"abc")
    loop.call_soon(reader.feed_eof)
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readexactly(5)
    assert (caught.value.partial, caught.value.expected) == (b"abc", 5)
    assert reader.at_eof()


async def test_read_until_a_separator(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"one\r")
    loop.call_soon(reader.feed_data, b"two\r")
    loop.call_soon(reader.feed_data, b"\nthree\r\n\r\n")
    assert await reader.readuntil(b"\r\n") == b"one\rtwo\r\n"
    assert await reader.readuntil(bytearray(b"\r\n")) == b"three\r\n"
    assert await reader.readuntil() == b"\r\n"


async def test_read_until_the_first_of_several_separators(loop, reader_type):
    if reader_type is asyncio.StreamReader and not SINCE_313:
        pytest.skip("asyncio has tuples of separators since Python 3.13")
    reader = reader_type()
    reader.feed_data(b"ABCDEFG")
    assert await reader.readuntil((b"DEF", b"BCDE")) == b"ABCDE"
    assert await reader.readuntil((b"G", b"FG")) == b"FG"
    with pytest.raises(ValueError, match="at least one element"):
        await reader.readuntil(())
    with pytest.raises(ValueError, match="at least one-byte"):
        await reader.readuntil((b"x", b""))


async def test_of_separators_that_end_together_the_shortest_counts(loop, reader_type):
    if reader_type is asyncio.StreamReader and not SINCE_313:
        pytest.skip("asyncio has tuples of separators since Python 3.13")
    reader = reader_type(limit=3)
    reader.feed_data(b"some dataA")
    with pytest.raises(asyncio.LimitOverrunError, match="is found") as caught:
        await reader.readuntil((b"ome dataA", b"A"))
    assert caught.value.consumed == 9


async def test_a_long_separator_comes_in_pieces_beside_a_short_one(loop, reader_type):
    if reader_type is asyncio.StreamReader and not SINCE_313:
        pytest.skip("asyncio has tuples of separators since Python 3.13")
    reader = reader_type()
    for chunk in (b"data", b"Z", b"Aaaa"):
        loop.call_soon(reader.feed_data, chunk)
    assert await reader.readuntil((b"A", b"long sep")) == b"dataZA"


async def test_an_empty_separator_is_refused(loop, reader_type):
    with pytest.raises(ValueError, match="at least one-byte"):
        await reader_type().readuntil(b"")


@pytest.mark.parametrize("separator", ["\n", 10, None])
async def test_a_separator_must_be_bytes(loop, reader_type, separator):
    reader = reader_type()
    reader.feed_data(b"data\n")
    with pytest.raises(TypeError):
        await reader.readuntil(separator)


async def test_read_until_at_the_end(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"partly\r")
    reader.feed_eof()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readuntil(b"\r\n")
    assert (caught.value.partial, caught.value.expected) == (b"partly\r", None)
    assert reader.at_eof()


async def test_the_limit_of_read_until(loop, reader_type):
    reader = reader_type(limit=3)
    reader.feed_data(b"some dataAA")
    with pytest.raises(asyncio.LimitOverrunError, match="not found") as caught:
        await reader.readuntil(b"AAA")
    assert caught.value.consumed == 9
    reader.feed_data(b"A")
    with pytest.raises(asyncio.LimitOverrunError, match="is found") as caught:
        await reader.readuntil(b"AAA")
    assert caught.value.consumed == 9
    assert await reader.readexactly(12) == b"some dataAAA"


async def test_lines(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"one\ntwo\nth")
    loop.call_soon(reader.feed_data, b"ree\nfour")
    loop.call_soon(reader.feed_eof)
    assert [await reader.readline() for _ in range(5)] == [b"one\n", b"two\n", b"three\n", b"four", b""]


async def test_lines_are_iterated(loop, reader_type):
    reader = reader_type()
    loop.call_soon(reader.feed_data, b"one\n\ntwo")
    loop.call_soon(reader.feed_eof)
    assert [line async for line in reader] == [b"one\n", b"\n", b"two"]


async def test_a_line_above_the_limit_is_dropped(loop, reader_type):
    reader = reader_type(limit=7)
    reader.feed_data(b"1234567\n12345678\nnext\n12345678")
    assert await reader.readline() == b"1234567\n"
    with pytest.raises(ValueError, match="longer than limit"):
        await reader.readline()
    assert await reader.readline() == b"next\n"
    with pytest.raises(ValueError, match="exceed the limit"):
        await reader.readline()
    reader.feed_data(b"new\n")
    assert await reader.readline() == b"new\n"


async def test_an_exception_ends_reading(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"never seen")
    assert reader.exception() is None
    reader.set_exception(OSError("gone"))
    assert str(reader.exception()) == "gone"
    for read in (reader.read, reader.readline, reader.readuntil, reader.__anext__):
        with pytest.raises(OSError, match="gone"):
            await read()
    with pytest.raises(OSError, match="gone"):
        await reader.readexactly(1)


@pytest.mark.parametrize("method", ["read", "readline", "readuntil", "readexactly"])
async def test_an_exception_wakes_a_reader(loop, reader_type, method):
    reader = reader_type()
    loop.call_soon(reader.set_exception, OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await getattr(reader, method)(*[5] * (method == "readexactly"))


async def test_data_before_an_exception_reaches_who_waited(loop, reader_type):
    reader = reader_type()
    task = asyncio.create_task(reader.read(10))
    await turns()
    reader.feed_data(b"data")
    reader.set_exception(OSError("gone"))
    assert await task == b"data"


async def test_one_reads_at_a_time(loop, reader_type):
    reader = reader_type()
    first = asyncio.create_task(reader.readexactly(2))
    await turns()
    for read in (reader.read, reader.readline):
        with pytest.raises(RuntimeError, match="while another coroutine is already waiting"):
            await read()
    reader.feed_data(b"ok")
    assert await first == b"ok"


@pytest.mark.parametrize("method", ["read", "readline", "readexactly"])
async def test_a_cancelled_read_loses_nothing(loop, reader_type, method):
    reader = reader_type()
    task = asyncio.create_task(getattr(reader, method)(*[5] * (method != "readline")))
    await turns()
    reader.feed_data(b"data\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reader.readline() == b"data\n"


async def test_a_read_that_timed_out_may_be_repeated(loop, reader_type):
    reader = reader_type()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await reader.read()
    reader.feed_data(b"data\n")
    assert await reader.readline() == b"data\n"


async def test_an_exception_after_a_cancelled_read(loop, reader_type):
    reader = reader_type()
    task = asyncio.create_task(reader.readline())
    await turns()
    task.cancel()
    reader.set_exception(OSError("gone"))
    with pytest.raises(asyncio.CancelledError):
        await task


# Limits


@pytest.mark.parametrize("limit", [0, -1])
async def test_limits_are_positive(loop, reader_type, limit):
    with pytest.raises(ValueError, match="imit"):
        reader_type(limit=limit)


@pytest.mark.parametrize("limit", [2**70, float("inf"), sys.maxsize])
async def test_limits_may_be_huge(loop, reader_type, limit):
    reader = reader_type(limit=limit)
    transport = Throttled()
    reader.set_transport(transport)
    reader.feed_data(bytes(200_000))
    assert not transport.paused
    reader.feed_data(b"\n")
    assert len(await reader.readline()) == 200_001


async def test_too_much_data_pauses_the_transport(loop, reader_type):
    reader = reader_type(limit=4)
    transport = Throttled()
    reader.set_transport(transport)
    with pytest.raises(AssertionError):
        reader.set_transport(transport)
    reader.feed_data(b"12345678")
    assert not transport.paused
    reader.feed_data(b"9")
    assert transport.paused
    await reader.read(4)
    assert transport.paused
    await reader.read(1)
    assert not transport.paused


@pytest.mark.parametrize("method", ["read", "readexactly"])
async def test_a_read_that_needs_more_resumes_the_transport(loop, reader_type, method):
    reader = reader_type(limit=4)
    transport = Throttled()
    reader.set_transport(transport)
    reader.feed_data(b"x" * 9)
    assert transport.paused
    task = asyncio.create_task(getattr(reader, method)(30 if method == "readexactly" else -1))
    for _ in range(2):
        await turns()
        assert not transport.paused
        reader.feed_data(b"x" * 10)
    await turns()
    reader.feed_data(b"x")
    reader.feed_eof()
    assert await task == b"x" * 30


async def test_a_transport_need_not_be_pausable(loop, reader_type):
    class Unstoppable:
        def pause_reading(self):
            raise NotImplementedError

    reader = reader_type(limit=4)
    reader.set_transport(Unstoppable())
    for _ in range(3):
        reader.feed_data(b"x" * 10)
    assert await reader.read(100) == b"x" * 30


async def test_reprs(loop, reader_type):
    reader = reader_type(limit=123)
    assert repr(reader) == "<StreamReader limit=123>"
    reader.feed_data(b"data")
    reader.feed_eof()
    reader.set_exception(OSError())
    assert repr(reader) == "<StreamReader 4 bytes eof limit=123 exception=OSError()>"
    assert repr(reader_type()) == "<StreamReader>"


def test_a_reader_without_a_loop(reader_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop(None)
        with pytest.raises(RuntimeError, match="no current event loop"):
            reader_type()


# Operations pass for coroutines


async def test_operations_are_coroutines_to_asyncio(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"abcdefgh\n")
    operation = reader.read(1)
    assert isinstance(operation, Coroutine)
    assert asyncio.iscoroutine(operation)
    assert (operation.__name__, operation.__qualname__) == ("read", "StreamReader.read")
    assert await operation == b"a"
    assert await asyncio.create_task(reader.readexactly(1)) == b"b"
    assert await asyncio.gather(reader.read(1), reader.read(1)) == [b"c", b"d"]
    assert await asyncio.wait_for(reader.read(1), 5) == b"e"
    assert await asyncio.shield(reader.readline()) == b"fgh\n"
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reader.readline())
        assert "coro=<StreamReader.readline()" in repr(task)
        await turns()
        reader.feed_data(b"\n")
    assert task.result() == b"\n"


def test_operations_are_run_by_the_loop(loop, reader_type, run):
    reader = reader_type(loop=loop)
    loop.call_soon(reader.feed_data, b"data")
    assert run(reader.read(10)) == b"data"


async def test_operations_are_awaited_once(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"data")
    operation = reader.read(10)
    await operation
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await operation
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        operation.throw(OSError())


async def test_an_operation_does_nothing_before_it_is_awaited(loop, reader_type):
    reader = reader_type()
    reader.feed_data(b"onetwo")
    later = reader.read(3)
    assert await reader.read(3) == b"one"
    assert await later == b"two"


async def test_an_operation_never_awaited_is_warned_of(loop, reader_type):
    reader = reader_type()
    with pytest.warns(RuntimeWarning, match=r"coroutine 'StreamReader.readline' was never awaited"):
        reader.readline()
    reader.readline().close()


async def test_operations_are_driven_by_hand(loop, reader_type):
    reader = reader_type()
    operation = reader.read(10)
    future = operation.send(None)
    assert asyncio.isfuture(future)
    reader.feed_data(b"data")
    with pytest.raises(StopIteration) as caught:
        operation.send(None)
    assert caught.value.value == b"data"


async def test_operations_given_up_let_others_read(loop, reader_type):
    reader = reader_type()
    thrown, closed, dropped = reader.read(1), reader.read(1), reader.read(1)
    thrown.send(None)
    with pytest.raises(OSError, match="thrown"):
        thrown.throw(OSError("thrown"))
    closed.send(None)
    closed.close()
    closed.close()
    dropped.send(None)
    del dropped
    reader.feed_data(b"x")
    assert await reader.read(1) == b"x"


async def test_an_operation_sent_on_too_early(loop, reader_type):
    operation = reader_type().read(1)
    operation.send(None)
    with pytest.raises((asyncio.InvalidStateError, RuntimeError)):
        operation.send(None)


def test_half_made_objects_crash_nothing():
    reader = StreamReader.__new__(StreamReader)
    with pytest.raises((AttributeError, TypeError)):
        reader.feed_data(b"x")
    operation = reader.read(0)
    operation.close()
    with pytest.raises((AttributeError, TypeError)):
        type(operation)().send(None)


# Whatever is fed and read in whatever order, both readers do the same

letters = st.binary(max_size=12).map(lambda data: bytes(b"ab\r\n"[byte % 4] for byte in data))
chunks = st.builds(lambda data, times: data * times, letters, st.sampled_from([1, 1, 300]))
sizes = st.integers(-1, 12) | st.integers(0, 9000)
feeds = st.tuples(st.just("feed_data"), chunks)
reads = st.one_of(
    st.tuples(st.sampled_from(["read", "readexactly"]), sizes),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"\r\n", b"ab", b"aba"])),
)


async def transcript(reader, calls):
    """What came of each call; a read that waits is fed one chunk after the other, then the end."""
    loop = asyncio.get_running_loop()
    transport = Throttled()
    reader.set_transport(transport)
    late = [b"a", b"bba" * 700, b"b\n", b"\r", b"\nab", b"bb" * 600, b"aab"]
    seen = []
    for name, *arguments in calls:
        if name == "feed_data":
            reader.feed_data(*arguments)
            seen.append(transport.paused)
            continue
        task = loop.create_task(getattr(reader, name)(*arguments))
        await turns(2)
        while not task.done() and late:
            reader.feed_data(late.pop())
            await turns(2)
        if not task.done():
            reader.feed_eof()
        try:
            seen.append(await task)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as exc:
            seen.append((type(exc), str(exc)))
        if reader.at_eof():
            break
    return seen, bytes(reader._buffer), transport.paused


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.one_of(feeds, reads), max_size=12), st.sampled_from([2, 5, 1000, 3000]))
def test_both_readers_agree(calls, limit):
    async def main():
        expected = await transcript(asyncio.StreamReader(limit), calls)
        assert await transcript(StreamReader(limit), calls) == expected

    with asyncio.Runner(loop_factory=unwait.new_event_loop) as runner:
        runner.run(main())
