# cython: nonecheck=True
"""The reading half of the streams API: `StreamReader` and the operations that its methods return.

`read` and its like, and a writer's `drain`, return small awaitable objects in place of coroutines. When the
answer is there already, `await` gets it without a frame or a future; otherwise the object waits on a
future, as a coroutine would. It has `send`, `throw` and `close`, so tasks, timeouts and `gather` take it
for a coroutine.

A chunk that comes into an empty buffer is kept as it is, and a read that wants all of it gets that very
object; chunks that a read wants together are joined once. Only what must be split, or searched across chunks,
goes through a bytearray. An operation that needs more than there is sleeps until that much has arrived.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from asyncio import format_helpers
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

# Smaller chunks are copied together, lest very many of them take far more memory than the limit says.
WORTH_KEEPING = 1024  # bytes


def as_size(number: float) -> int:
    """The number as a C size, the greatest there is if it is beyond."""
    return EVERYTHING if number > EVERYTHING else int(number)


def as_count(number: int) -> int:
    """The same for what a caller counts in; TypeError for what is no whole number."""
    try:
        return number
    except OverflowError:
        return EVERYTHING if number > 0 else -1


@cython.freelist(256)
@cython.cclass
class Operation:
    """One call of a coroutine method, to be awaited once."""

    def __dealloc__(self) -> None:
        if self.state == NEW:
            warnings.warn(f"coroutine '{self.name()}' was never awaited", RuntimeWarning, stacklevel=1)
        elif self.waiter is not None:
            self.leave()

    def __getattr__(self, attribute: str) -> Any:
        # The repr of a task asks for them; Cython lets no class define them as properties.
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
        """Wait for the future, or with None for the loop's next iteration; `attempt` is then called again."""
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
            raise RuntimeError(
                f"{self.__name__}() called while another coroutine is already waiting for incoming data"
            )
        if reader._exception is not None:
            raise reader._exception
        if reader._paused:
            reader._paused = False
            reader._transport.resume_reading()
        reader._waiter = reader._loop.create_future()
        reader.wanted = wanted
        return self.suspend(reader._waiter)


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
    """`readuntil()`: all up to the separator that ends first; none starts in the first `count` bytes."""

    def name(self) -> str:
        return "StreamReader.readuntil"

    def measure(self) -> None:
        """Check the separators, and sort them: of two that end together the shorter counts as found."""
        separators = self.separators
        if not separators:
            raise ValueError("Separator should contain at least one element")
        separators.sort(key=len)
        self.shortest = len(separators[0])
        self.longest = len(separators[-1])
        if self.shortest == 0:
            raise ValueError("Separator should be at least one-byte string")

    def attempt(self) -> Any:
        reader = self.reader
        if self.stage == 0:
            self.stage = 1
            if self.shortest == 0:
                self.measure()
            if reader._exception is not None:
                raise reader._exception
        size = reader.available()
        if size - self.count >= self.shortest:
            if reader.chunked:
                reader.spill()
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


for _kind in (Read, ReadExactly, ReadUntil, ReadLine, NextLine):
    set_slots(_kind)  # noqa: F821 - a function of the .pxd


class StreamReader:
    """Buffers what a transport delivers, for coroutines to read. Passes for an `asyncio.StreamReader`.

    `limit` (64 KiB) bounds a line, and the transport is paused while more than twice as much is buffered.
    `loop` is the running loop by default. Raises ValueError unless the limit is above zero.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._limit = limit
        self._loop = asyncio.get_event_loop() if loop is None else loop
        self.buffer = bytearray()
        self.chunks = []
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
        """What is buffered, live: what the caller removes from it is removed from the stream."""
        self.spill()
        return self.buffer

    def available(self) -> int:
        """How many bytes are buffered: in order, those of `held` or of `buffer`, then those of `chunks`."""
        return (len(self.buffer) if self.held is None else len(self.held)) + self.chunked

    def spill(self) -> None:
        """Move the chunks that were kept as they came into the buffer."""
        if self.held is not None:
            self.buffer += self.held
            self.held = None
        if self.chunked:
            for chunk in self.chunks:
                self.buffer += chunk
            self.chunks.clear()
            self.chunked = 0

    def take(self, count: int) -> bytes:
        """Remove the first `count` bytes, or all if there are fewer; may resume the transport."""
        held = self.held
        if held is not None and (count == len(held) or (count > len(held) and self.chunked == 0)):
            self.held = None
            data = held
        elif self.chunked and count > self.available() - self.chunked:
            data = self.take_chunks(count)
        else:
            if held is not None:
                self.buffer += held
                self.held = None
            if count > len(self.buffer):
                count = len(self.buffer)
            data = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(self.buffer), count)
            del self.buffer[:count]
        if self._paused:
            self.maybe_resume()
        return data

    def take_chunks(self, count: int) -> bytes:
        """`take` for more than the first chunk: one join in place of a copy at each arrival."""
        pieces = [bytes(self.buffer) if self.held is None else self.held]
        count -= len(pieces[0])
        self.held = None
        self.buffer.clear()
        taken = 0
        for chunk in self.chunks:
            if count <= 0:
                break
            taken += 1
            self.chunked -= len(chunk)
            if count >= len(chunk):
                pieces.append(chunk)
            else:
                pieces.append(chunk[:count])
                self.buffer += memoryview(chunk)[count:]
            count -= len(chunk)
        del self.chunks[:taken]
        return b"".join(pieces)

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
        if type(data) is bytes and self.available() == 0:
            self.held = data
        elif type(data) is bytes and len(data) >= WORTH_KEEPING:
            self.chunks.append(data)
            self.chunked += len(data)
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

    def begin_line(self, operation: ReadLine) -> ReadLine:
        operation.reader = self
        operation.separators = NEWLINE
        operation.shortest = operation.longest = 1
        return operation

    def read(self, n: int = -1) -> Any:
        """Read what there is, at least a byte and at most `n`; with -1 all up to the end. At the end, b""."""
        return self.begin(Read.__new__(Read), as_count(n), None)

    def readexactly(self, n: int) -> Any:
        """Read `n` bytes; if the stream ends before, `asyncio.IncompleteReadError` has what there was."""
        return self.begin(ReadExactly.__new__(ReadExactly), as_count(n), None)

    def readuntil(self, separator: bytes | bytearray | tuple[bytes, ...] = b"\n") -> Any:
        """Read up to and with the separator; of a tuple of separators, the one that ends first.

        Raises `asyncio.IncompleteReadError` with what there was if the stream ends before, and
        `asyncio.LimitOverrunError` if more than the limit stands before it, which then stays there.
        """
        separators = list(separator) if isinstance(separator, tuple) else [separator]
        return self.begin(ReadUntil.__new__(ReadUntil), 0, separators)

    def readline(self) -> Any:
        """Read a line with its b"\\n"; where the stream ends before, what is left, at the end b"".

        Raises ValueError if the line is longer than the limit; it, or what there was of it, is then dropped.
        """
        return self.begin_line(ReadLine.__new__(ReadLine))

    def __aiter__(self) -> StreamReader:
        return self

    def __anext__(self) -> Any:
        return self.begin_line(NextLine.__new__(NextLine))
