# cython: nonecheck=True
"""The streams API: asyncio's, with the reader of `stream_reader`, on any asyncio loop.

Each class passes for the one of the same name in asyncio, and works with asyncio's own of the others.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from asyncio.log import logger
from collections.abc import Callable, Iterable
from typing import Any

from unwait.loop.stream_reader import DEFAULT_LIMIT, Operation, StreamReader

ClientConnected = Callable[["StreamReader", "StreamWriter"], Any]  # what it returns is run, if a coroutine


class Drain(Operation):
    """`drain()`: wait while the protocol is paused; of a protocol alone where there is no writer."""

    def name(self) -> str:
        return "StreamWriter.drain"

    def leave(self) -> None:
        protocol = self.protocol
        protocol.drain_waiters.remove(self.waiter)

    def attempt(self) -> Any:
        writer = self.writer
        protocol = self.protocol
        if self.stage == 0 and writer is not None:
            self.stage = 1
            if writer.own_reader is not None and writer.own_reader._exception is not None:
                raise writer.own_reader._exception
            if writer._transport.is_closing():
                # Who writes and drains in a loop must let `connection_lost` be called, to hear of it below.
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


set_slots(Drain)  # noqa: F821 - a function of the .pxd


class StreamReaderProtocol:
    """Feeds a reader, and makes `drain` wait while the transport is full. Passes for asyncio's own.

    A connection made is handed to `client_connected_cb`, a function or a coroutine function, as a reader and
    a writer. `loop` is the running loop by default.
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
        if self.close_waiter is not None:
            self.settle(self.close_waiter)
        for waiter in self.drain_waiters:
            self.settle(waiter)
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
        """Wait while too much is yet to be sent. Raises what reading would, or ConnectionResetError."""
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
        """Encrypt the connection from here on; as the server where a `client_connected_cb` was called."""
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

    `client_connected_cb` is called with a reader and a writer for each connection; if it returns a coroutine,
    that is run as a task. `limit` (64 KiB) is the readers'.
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
