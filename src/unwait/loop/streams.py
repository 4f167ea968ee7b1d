"""The streams API: asyncio's readers and writers, compiled.

`read`, `readline`, `drain` and their like return small awaitable objects in place of coroutines. When the answer is
already there, and it mostly is, `await` gets it without a frame, a future or an exception; otherwise the object waits
on a future as a coroutine would. It has `send`, `throw` and `close`, so tasks, `wait_for` and timeouts take it for one.

A chunk that arrives into an empty buffer is kept as the `bytes` it came in, and a read that wants all of it gets
that very object. Only when chunks have to be joined or split are they moved into a bytearray. A reader that needs more than is
there is not woken before it has arrived.

Everything works on any asyncio loop, and passes for the class of the same name in asyncio.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from asyncio import format_helpers
from asyncio.log import logger
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import cython
from cython.cimports.cpython.bytearray import PyByteArray_AS_STRING
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize

DEFAULT_LIMIT = 64 * 1024  # bytes, asyncio's

# The states of an operation.
NEW = 0
SUSPENDED = 1
DONE = 2

EVERYTHING = sys.maxsize

NEWLINE = [b"\n"]

ClientConnected = Callable[["StreamReader", "StreamWriter"], Awaitable[None] | None]


def as_size(number: float) -> int:
    """The number as a C size, the greatest there is if it is beyond."""
    return EVERYTHING if number > EVERYTHING else int(number)


@cython.freelist(256)
@cython.cclass
class Operation:
    """One call of a coroutine method, to be awaited once."""

    def __dealloc__(self) -> None:
        if self.state == NEW:
            warnings.warn(f"coroutine '{self.name()}' was never awaited", RuntimeWarning, stacklevel=1)
        elif self.waiter is not None:
            self.leave()

    def __getattr__(self, attribute: str) -> str:
        # asked for by the repr of a task; Cython lets no class define these two as properties
        if attribute == "__qualname__":
            return self.name()
        if attribute == "__name__":
            return self.name().rpartition(".")[2]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")

    def __repr__(self) -> str:
        return f"<coroutine object {self.name()} at {id(self):#x}>"

    def __await__(self) -> Operation:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Go on until the operation has to wait for what is returned; StopIteration holds the result."""
        outcome = self.advance()
        if self.state == DONE:
            raise StopIteration(outcome)
        return outcome

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Give the operation up with this exception."""
        if self.state == DONE:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.close()
        if isinstance(kind, BaseException):
            exc = kind
        elif isinstance(value, BaseException):
            exc = value
        else:
            exc = kind() if value is None else kind(value)
        raise exc if traceback is None else exc.with_traceback(traceback)

    def close(self) -> None:
        """Give the operation up; it can no longer be awaited."""
        self.state = DONE
        if self.waiter is not None:
            self.leave()
            self.waiter = None

    def name(self) -> str:
        """The qualified name of the method that was called."""
        raise NotImplementedError

    def attempt(self) -> Any:
        """Return the result, or what `suspend` returned."""
        raise NotImplementedError

    def leave(self) -> None:
        """Nobody waits on `waiter` any more."""
        raise NotImplementedError

    def suspend(self, waiter: asyncio.Future[None] | None) -> Any:
        """Wait for the future, or with None for the next iteration of the loop; then `attempt` is called again."""
        self.state = SUSPENDED
        self.waiter = waiter
        if waiter is not None:
            waiter._asyncio_future_blocking = True
        return waiter

    def advance(self) -> Any:
        """Go on: the result if the operation is done thereafter, else what it waits for."""
        if self.state != NEW:
            if self.state == DONE:
                raise RuntimeError("cannot reuse already awaited coroutine")
            self.state = DONE
            waiter = self.waiter
            if waiter is not None:
                self.leave()
                self.waiter = None
                waiter.result()
        self.state = DONE
        return self.attempt()


class Reading(Operation):
    """An operation on a reader."""

    def leave(self) -> None:
        if self.reader._waiter is self.waiter:
            self.reader._waiter = None

    def wait(self, wanted: int) -> Any:
        """Wait until so many bytes are buffered, or no more will come."""
        reader = self.reader
        if reader._waiter is not None:
            method = self.name().rpartition(".")[2]
            raise RuntimeError(f"{method}() called while another coroutine is already waiting for incoming data")
        if reader._exception is not None:
            raise reader._exception
        waiter = reader._loop.create_future()
        reader._waiter = waiter
        reader.wanted = wanted
        if reader._paused:
            reader._paused = False
            reader._transport.resume_reading()
        return self.suspend(waiter)


class Read(Reading):
    """`read()`: what there is, at most `count` bytes; a negative count wants all up to the end."""

    def name(self) -> str:
        return "StreamReader.read"

    def attempt(self) -> Any:
        reader = self.reader
        if self.stage == 0:
            self.stage = 1
            if reader._exception is not None:
                raise reader._exception
        if self.count == 0:
            return b""
        if reader._eof or (self.count > 0 and reader.available() > 0):
            return reader.take(self.count if self.count > 0 else EVERYTHING)
        return self.wait(1 if self.count > 0 else EVERYTHING)


class ReadExactly(Reading):
    """`readexactly()`: `count` bytes, no fewer."""

    def name(self) -> str:
        return "StreamReader.readexactly"

    def attempt(self) -> Any:
        reader = self.reader
        if self.stage == 0:
            self.stage = 1
            if self.count < 0:
                raise ValueError("readexactly size can not be less than zero")
            if reader._exception is not None:
                raise reader._exception
        if reader.available() >= self.count:
            return reader.take(self.count) if self.count else b""
        if reader._eof:
            raise asyncio.IncompleteReadError(reader.take(EVERYTHING), self.count)
        return self.wait(self.count)


class ReadUntil(Reading):
    """`readuntil()`: all up to the first end of one of the separators; `count` bytes hold the start of none."""

    def name(self) -> str:
        return "StreamReader.readuntil"

    def measure(self) -> None:
        """Check the separators and note the lengths of the shortest and the longest."""
        if not self.separators:
            raise ValueError("Separator should contain at least one element")
        lengths = [len(separator) for separator in self.separators]
        self.shortest = min(lengths)
        self.longest = max(lengths)
        if self.shortest == 0:
            raise ValueError("Separator should be at least one-byte string")

    def attempt(self) -> Any:
        reader = self.reader
        if self.stage == 0:
            self.stage = 1
            self.measure()
            if reader._exception is not None:
                raise reader._exception
        size = reader.available()
        if size - self.count >= self.shortest:
            haystack = reader.buffer if reader.held is None else reader.held
            start = end = -1
            for separator in self.separators:
                place = haystack.find(separator, self.count)
                if place >= 0 and (end < 0 or place + len(separator) < end):
                    start = place
                    end = place + len(separator)
            if end >= 0:
                if start > reader.limit:
                    return self.overrun("Separator is found, but chunk is longer than limit", start, end)
                return reader.take(end)
            if size >= self.longest:
                self.count = size + 1 - self.longest
            if self.count > reader.limit:
                return self.overrun("Separator is not found, and chunk exceed the limit", self.count, size)
        if reader._eof:
            return self.ended(reader.take(EVERYTHING))
        return self.wait(size + 1)

    def overrun(self, message: str, consumed: int, end: int) -> Any:
        """More bytes than the limit stand before a separator, which ends at `end`, or before none."""
        raise asyncio.LimitOverrunError(message, consumed)

    def ended(self, partial: bytes) -> Any:
        """The stream has ended without a separator."""
        raise asyncio.IncompleteReadError(partial, None)


class ReadLine(ReadUntil):
    """`readline()`: a line with its end, or what the stream ended with."""

    def name(self) -> str:
        return "StreamReader.readline"

    def overrun(self, message: str, consumed: int, end: int) -> Any:
        self.reader.take(end)
        raise ValueError(message)

    def ended(self, partial: bytes) -> Any:
        return partial


class NextLine(ReadLine):
    """`async for`'s next line."""

    def name(self) -> str:
        return "StreamReader.__anext__"

    def ended(self, partial: bytes) -> Any:
        if not partial:
            raise StopAsyncIteration
        return partial


class Drain(Operation):
    """`drain()`: wait while the protocol is paused; of a protocol alone where there is no writer."""

    def name(self) -> str:
        return "StreamWriter.drain"

    def leave(self) -> None:
        self.protocol.drain_waiters.remove(self.waiter)

    def attempt(self) -> Any:
        writer = self.writer
        protocol = self.protocol
        if self.stage == 0 and writer is not None:
            self.stage = 1
            if writer.own_reader is not None and writer.own_reader._exception is not None:
                raise writer.own_reader._exception
            if writer._transport.is_closing():
                # Whoever writes and drains in a loop must let `connection_lost` be called, to hear of it below.
                return self.suspend(None)
        if self.stage < 2:
            self.stage = 2
            if protocol._connection_lost:
                raise ConnectionResetError("Connection lost")
            if protocol._paused:
                waiter = protocol._loop.create_future()
                protocol.drain_waiters.append(waiter)
                return self.suspend(waiter)
        return None


for kind in (Read, ReadExactly, ReadUntil, ReadLine, NextLine, Drain):
    set_slots(kind)


class StreamReader:
    """Buffers what a transport delivers, for coroutines to read. Passes for an `asyncio.StreamReader`.

    `limit` (64 KiB) bounds a line, and stops the transport once more than twice as much is buffered. `loop` is the
    running loop unless it is given. Raises ValueError unless the limit is above zero.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._limit = limit
        self._loop = asyncio.get_event_loop() if loop is None else loop
        self.buffer = bytearray()
        if self._loop.get_debug():
            self._source_traceback = format_helpers.extract_stack(sys._getframe(0))

    @property
    def __class__(self) -> type:
        return asyncio.StreamReader

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self.available():
            info.append(f"{self.available()} bytes")
        if self._eof:
            info.append("eof")
        if self.limit_given != DEFAULT_LIMIT:
            info.append(f"limit={self.limit_given}")
        if self._waiter is not None:
            info.append(f"waiter={self._waiter!r}")
        if self._exception is not None:
            info.append(f"exception={self._exception!r}")
        if self._transport is not None:
            info.append(f"transport={self._transport!r}")
        if self._paused:
            info.append("paused")
        return f"<{' '.join(info)}>"

    @property
    def _limit(self) -> int:
        return self.limit_given

    @_limit.setter
    def _limit(self, limit: int) -> None:
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self.limit_given = limit
        self.limit = as_size(limit)
        self.high_water = as_size(2 * limit)

    @property
    def _buffer(self) -> bytearray:
        """What is buffered, live: what is taken from it or added to it is taken from or added to the stream."""
        self.spill()
        return self.buffer

    def available(self) -> int:
        """How many bytes are buffered."""
        return len(self.buffer) if self.held is None else len(self.held)

    def spill(self) -> None:
        """Move the chunk that was kept as it came into the buffer."""
        if self.held is not None:
            self.buffer += self.held
            self.held = None

    def take(self, count: int) -> bytes:
        """Remove the first `count` bytes, or all if they are fewer, and read on if too many were buffered before."""
        held = self.held
        if held is not None and count >= len(held):
            self.held = None
            data = held
        else:
            self.spill()
            if count > len(self.buffer):
                count = len(self.buffer)
            data = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(self.buffer), count)
            del self.buffer[:count]
        if self._paused:
            self.maybe_resume()
        return data

    def maybe_resume(self) -> None:
        if self.available() <= self.limit:
            self._paused = False
            self._transport.resume_reading()

    def pause(self) -> None:
        try:
            self._transport.pause_reading()
        except NotImplementedError:
            self._transport = None  # it cannot be paused, and need not be asked again
        else:
            self._paused = True

    def wake(self) -> None:
        """Let the operation that waits for data, if there is one, look again."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise AssertionError("feed_data after feed_eof")
        if not data:
            return
        if type(data) is bytes and self.held is None and len(self.buffer) == 0:
            self.held = data
        else:
            self.spill()
            self.buffer += data
        size = self.available()
        if self._waiter is not None:
            if size < self.wanted:
                return
            self.wake()
        if size > self.high_water and not self._paused and self._transport is not None:
            self.pause()

    def feed_data(self, data: bytes | bytearray | memoryview) -> None:
        """Append data to the buffer; AssertionError after `feed_eof`."""
        self.feed(data)

    def feed_eof(self) -> None:
        """Note that nothing more will come."""
        self._eof = True
        self.wake()

    def at_eof(self) -> bool:
        """Whether all was read and nothing more will come."""
        return self._eof and self.available() == 0

    def exception(self) -> BaseException | None:
        """The exception that the stream ended with, if any."""
        return self._exception

    def set_exception(self, exc: BaseException) -> None:
        """End the stream: reading raises `exc` from now on."""
        self._exception = exc
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_exception(exc)

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Set the transport to pause when too much is buffered; AssertionError if there is one."""
        if self._transport is not None:
            raise AssertionError("Transport already set")
        self._transport = transport

    def begin(self, operation: Operation, count: int, separators: list[bytes] | None) -> Operation:
        operation.reader = self
        operation.count = count
        operation.separators = separators
        return operation

    def read(self, n: int = -1) -> Any:
        """Read what there is, at least a byte and at most `n`; with -1 all up to the end. Empty at the end only."""
        return self.begin(Read.__new__(Read), n, None)

    def readexactly(self, n: int) -> Any:
        """Read exactly `n` bytes. Raises `asyncio.IncompleteReadError` with what there was if the stream ends before."""
        return self.begin(ReadExactly.__new__(ReadExactly), n, None)

    def readuntil(self, separator: bytes | bytearray | tuple[bytes, ...] = b"\n") -> Any:
        """Read up to and with the separator, or the one of a tuple of them that ends first.

        Raises `asyncio.IncompleteReadError` with the rest of the stream if none comes, and `asyncio.LimitOverrunError`,
        the data staying in the buffer, if more than the limit stands before it.
        """
        separators = list(separator) if isinstance(separator, tuple) else [separator]
        return self.begin(ReadUntil.__new__(ReadUntil), 0, separators)

    def readline(self) -> Any:
        """Read a line with its end; what is left if the stream ends before, so empty at the end.

        Raises ValueError, the line or what there was of it being dropped, if it is longer than the limit.
        """
        return self.begin(ReadLine.__new__(ReadLine), 0, NEWLINE)

    def __aiter__(self) -> StreamReader:
        return self

    def __anext__(self) -> Any:
        return self.begin(NextLine.__new__(NextLine), 0, NEWLINE)


class StreamReaderProtocol:
    """Feeds a reader, and makes writers wait while the transport is full. Passes for asyncio's class of that name.

    With `client_connected_cb`, a function or a coroutine function, each connection made is handed to it as a reader
    and a writer.
    """

    def __init__(
        self,
        stream_reader: Any,
        client_connected_cb: ClientConnected | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = asyncio.get_event_loop() if loop is None else loop
        self._stream_reader = stream_reader
        self._client_connected_cb = client_connected_cb
        self.drain_waiters = []
        if type(stream_reader) is StreamReader:
            self.own_reader = stream_reader

    @property
    def __class__(self) -> type:
        return asyncio.StreamReaderProtocol

    def connection_made(self, transport: Any) -> None:
        """Called by the transport; calls `client_connected_cb`."""
        self._replace_transport(transport)
        reader = self._stream_reader
        if reader is not None:
            reader.set_transport(transport)
        if self._client_connected_cb is None:
            return
        outcome = self._client_connected_cb(reader, StreamWriter(transport, self, reader, self._loop))
        if asyncio.iscoroutine(outcome):
            self._task = self._loop.create_task(outcome)
            self._task.add_done_callback(lambda task: self._served(task, transport))

    def _served(self, task: asyncio.Task[None], transport: asyncio.Transport) -> None:
        if task.cancelled():
            transport.close()
            return
        exc = task.exception()
        if exc is not None:
            self._loop.call_exception_handler(
                {
                    "message": "Unhandled exception in client_connected_cb",
                    "exception": exc,
                    "transport": transport,
                }
            )
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport; ends the reader, and all waiting."""
        reader = self._stream_reader
        if reader is not None:
            if exc is None:
                reader.feed_eof()
            else:
                reader.set_exception(exc)
        self._connection_lost = True
        self.reason = exc
        for waiter in self.drain_waiters:
            self.settle(waiter)
        if self.close_waiter is not None:
            self.settle(self.close_waiter)
        self._stream_reader = self.own_reader = None
        self._task = self._transport = None

    def settle(self, waiter: asyncio.Future[None]) -> None:
        """Tell one who waits that the connection is lost."""
        if waiter.done():
            return
        if self.reason is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(self.reason)
            waiter.exception()  # nobody need hear of it

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        if self.own_reader is not None:
            self.own_reader.feed(data)
        elif self._stream_reader is not None:
            self._stream_reader.feed_data(data)

    def eof_received(self) -> bool:
        """Called by the transport, which stays open for writing unless TLS forbids it."""
        if self._stream_reader is not None:
            self._stream_reader.feed_eof()
        return not self._over_ssl

    def pause_writing(self) -> None:
        """Called by the transport when too much waits to be sent; from now on `drain` waits."""
        self._paused = True
        if self._loop.get_debug():
            logger.debug("%r pauses writing", self)

    def resume_writing(self) -> None:
        """Called by the transport when enough has been sent; ends all waiting in `drain`."""
        self._paused = False
        if self._loop.get_debug():
            logger.debug("%r resumes writing", self)
        for waiter in self.drain_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _drain_helper(self) -> Any:
        return self.begin_drain(None)

    def begin_drain(self, writer: StreamWriter | None) -> Drain:
        operation = Drain.__new__(Drain)
        operation.protocol = self
        operation.writer = writer
        return operation

    def _get_close_waiter(self, stream: Any) -> asyncio.Future[None]:
        if self.close_waiter is None:
            self.close_waiter = self._loop.create_future()
            if self._connection_lost:
                self.settle(self.close_waiter)
        return self.close_waiter

    def _replace_transport(self, transport: Any) -> None:
        self._transport = transport
        self._over_ssl = transport.get_extra_info("sslcontext") is not None

    def _replace_writer(self, writer: Any) -> None:
        self._replace_transport(writer.transport)


class StreamWriter:
    """Writes to a transport. Passes for an `asyncio.StreamWriter`."""

    def __init__(self, transport: Any, protocol: Any, reader: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._reader = reader
        self._loop = loop
        self._transport = transport
        if type(protocol) is StreamReaderProtocol and (reader is None or type(reader) is StreamReader):
            self.own_protocol = protocol
            self.own_reader = reader

    @property
    def __class__(self) -> type:
        return asyncio.StreamWriter

    def __repr__(self) -> str:
        info = [type(self).__name__, f"transport={self.current!r}"]
        if self._reader is not None:
            info.append(f"reader={self._reader!r}")
        return f"<{' '.join(info)}>"

    def __del__(self) -> None:
        if self.current is None or self.current.is_closing():
            return
        if self._loop.is_closed():
            warnings.warn("loop is closed", ResourceWarning, stacklevel=1)
        else:
            self.close()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1)

    @property
    def transport(self) -> Any:
        """The transport that is written to."""
        return self.current

    @property
    def _transport(self) -> Any:
        return self.current

    @_transport.setter
    def _transport(self, transport: Any) -> None:
        self.current = transport
        self.transport_write = transport.write

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data, or keep what cannot be sent now; follow it with `await writer.drain()`."""
        self.transport_write(data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send one after the other, as `write` does."""
        self.current.writelines(data)

    def write_eof(self) -> None:
        """Close the sending direction once all is sent."""
        self.current.write_eof()

    def can_write_eof(self) -> bool:
        """Whether the transport has `write_eof`."""
        return self.current.can_write_eof()

    def close(self) -> None:
        """Close the transport once all is sent; `wait_closed` waits for it."""
        self.current.close()

    def is_closing(self) -> bool:
        """Whether the writer is closed or on its way there."""
        return self.current.is_closing()

    async def wait_closed(self) -> None:
        """Wait until the connection is lost; raises what it was lost by."""
        await self._protocol._get_close_waiter(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows under this name, or `default`."""
        return self.current.get_extra_info(name, default)

    def drain(self) -> Any:
        """Wait while too much waits to be sent. Raises what reading would, and ConnectionResetError once it is lost."""
        if self.own_protocol is None:
            return self._drain_other()
        return self.own_protocol.begin_drain(self)

    async def _drain_other(self) -> None:
        """`drain` for a reader or a protocol that is not one of ours."""
        if self._reader is not None:
            exc = self._reader.exception()
            if exc is not None:
                raise exc
        if self.current.is_closing():
            await asyncio.sleep(0)
        await self._protocol._drain_helper()

    async def start_tls(
        self,
        sslcontext: Any,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Encrypt the connection from here on, in place; on the side that has a `client_connected_cb`, as the server."""
        protocol = self._protocol
        await self.drain()
        transport = await self._loop.start_tls(
            self.current,
            protocol,
            sslcontext,
            server_side=protocol._client_connected_cb is not None,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._transport = transport
        if hasattr(protocol, "_replace_transport"):
            protocol._replace_transport(transport)
        else:
            protocol._replace_writer(self)  # asyncio's before Python 3.13
        reader = self.own_reader
        if reader is not None:
            reader._transport = transport
            if reader._paused:
                transport.pause_reading()


async def open_connection(
    host: str | None = None, port: int | str | None = None, *, limit: int = DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, StreamWriter]:
    """Connect as `loop.create_connection` does, with all its options: a reader and a writer.

    `limit` (64 KiB) is the reader's.
    """
    loop = asyncio.get_running_loop()
    reader = StreamReader(limit, loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: ClientConnected,
    host: Any = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Serve as `loop.create_server` does, with all its options: the server.

    `client_connected_cb` is called with a reader and a writer for each connection; a coroutine that it returns is run
    as a task. `limit` (64 KiB) is the readers'.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_server(protocol_factory(client_connected_cb, limit, loop), host, port, **kwds)


async def open_unix_connection(
    path: str | bytes | os.PathLike[str] | None = None, *, limit: int = DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, StreamWriter]:
    """`open_connection` over a Unix socket, as `loop.create_unix_connection` connects."""
    loop = asyncio.get_running_loop()
    reader = StreamReader(limit, loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_unix_connection(lambda: protocol, path, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_unix_server(
    client_connected_cb: ClientConnected,
    path: str | bytes | os.PathLike[str] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """`start_server` over a Unix socket, as `loop.create_unix_server` serves."""
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(protocol_factory(client_connected_cb, limit, loop), path, **kwds)


def protocol_factory(
    client_connected_cb: ClientConnected, limit: int, loop: asyncio.AbstractEventLoop
) -> Callable[[], StreamReaderProtocol]:
    """What makes the protocol of each accepted connection."""
    return lambda: StreamReaderProtocol(StreamReader(limit, loop), client_connected_cb, loop)
