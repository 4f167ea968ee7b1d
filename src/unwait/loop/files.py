"""Sending files: `sendfile` and `sock_sendfile` over `sendfile(2)`.

`sendfile(2)` moves pages from the page cache to a socket without passing them through the process. It needs a
file that can be mapped: for a pipe or a socket it fails with EINVAL, and then (as with TLS, where the bytes
have to be encrypted) the file is read in the default executor and written. On a non-blocking socket it sends
what fits and returns; it still waits for the disk where the page cache does not hold the file.

A transport's file goes through a duplicate of its descriptor, which has an epoll registration of its own: the
transport may be closed and its number be reused meanwhile, and neither meets the other's events.

What checks arguments and chooses between the two ways is asyncio's own code in BaseEventLoop.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

READ_SIZE = 256 * 1024
"""Bytes read at a time where `sendfile(2)` cannot be used."""

SEND_SIZE = 1 << 30
"""The most bytes asked for in one call; Linux itself sends at most 2 GiB - 4 KiB."""


class SendfileProtocol(asyncio.Protocol):
    """Stands in for a transport's protocol while a file is sent, with reading paused.

    The real protocol neither writes nor reads meanwhile; it hears of the end of the connection, and
    afterwards of a change in flow control. Whoever sends the file is woken when the connection is lost.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol = transport.get_protocol()
        self._was_reading = transport.is_reading()
        self._was_paused = self._paused = transport._protocol_paused
        self._lost: BaseException | None = None
        self._waiting: asyncio.Future[Any] | None = None
        self._draining: asyncio.Future[Any] | None = None
        transport.pause_reading()
        transport.set_protocol(self)

    def watch(self, waiting: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """Let `waiting` end with an error when the connection is lost, and return it."""
        self._waiting = waiting
        if self._lost is not None and not waiting.done():
            waiting.set_exception(self._lost)
        return waiting

    async def drain(self) -> None:
        """Wait until the transport takes more. ConnectionError if it is closing."""
        if self._transport.is_closing():
            raise ConnectionError("Connection closed by peer")
        if self._paused:
            self._draining = asyncio.get_running_loop().create_future()
            await self.watch(self._draining)

    def restore(self) -> None:
        """Give the transport back to its protocol as it was, with what changed meanwhile."""
        transport = self._transport
        self._waiting = self._draining = None
        if transport.get_protocol() is self:
            transport.set_protocol(self._protocol)
        if self._lost is not None:
            return
        if self._was_reading:
            transport.resume_reading()
        if self._was_paused and not self._paused:
            self._protocol.resume_writing()
        elif self._paused and not self._was_paused:
            self._protocol.pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc if exc is not None else ConnectionError("Connection is closed by peer")
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self._lost)
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._draining is not None and not self._draining.done():
            self._draining.set_result(None)

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("Invalid state: reading should be paused")

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open


class Files(asyncio.BaseEventLoop):
    """What the loop's `sendfile` and `sock_sendfile` (from BaseEventLoop) use to move the bytes."""

    if TYPE_CHECKING:
        _check_sendfile_params: Callable[..., None]

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        return await self._send_pages(sock, file, offset, count, None)

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        sock = transp.get_extra_info("socket")
        self._check_sendfile_params(sock, file, offset, count)
        # From here on the transport refuses to write, until _reset_empty_waiter().
        flushed = transp._make_empty_waiter()
        try:
            stand_in = SendfileProtocol(transp)
            try:
                await stand_in.watch(flushed)
                with sock.dup() as duplicate:
                    return await self._send_pages(duplicate, file, offset, count, stand_in)
            finally:
                stand_in.restore()
        finally:
            transp._reset_empty_waiter()

    async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if offset:
            file.seek(offset)
        sent = 0
        stand_in = SendfileProtocol(transp)
        try:
            while count is None or sent < count:
                size = READ_SIZE if count is None else min(count - sent, READ_SIZE)
                data = await self.run_in_executor(None, file.read, size)
                if not data:
                    break
                await stand_in.drain()
                transp.write(data)
                sent += len(data)
            return sent
        finally:
            if sent and hasattr(file, "seek"):
                file.seek(offset + sent)
            stand_in.restore()

    async def _send_pages(
        self,
        sock: socket.socket,
        file: Any,
        offset: int,
        count: int | None,
        stand_in: SendfileProtocol | None,
    ) -> int:
        """Send a file's bytes with `sendfile(2)`, leave its position behind the last; return their number.

        SendfileNotAvailableError when nothing was sent and this file and socket do not go together.
        """
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, OSError) as exc:  # io.UnsupportedOperation is an OSError
            raise asyncio.SendfileNotAvailableError("not a regular file") from exc
        sent = 0
        try:
            while count is None or sent < count:
                left = size - offset - sent if count is None else count - sent
                if left <= 0:
                    left = SEND_SIZE  # a file that grew, or has no size (/proc): ask until the end is told
                try:
                    n = os.sendfile(sock.fileno(), source, offset + sent, min(left, SEND_SIZE))
                except BlockingIOError:
                    n = -1
                except OSError as exc:
                    if sent:
                        raise
                    raise asyncio.SendfileNotAvailableError("os.sendfile call failed") from exc
                if n == 0:
                    break
                sent += max(n, 0)
                if n < left:
                    await self._until_writable(sock, stand_in)
            return sent
        finally:
            if sent:
                os.lseek(source, offset + sent, io.SEEK_SET)

    async def _until_writable(self, sock: socket.socket, stand_in: SendfileProtocol | None) -> None:
        fd = sock.fileno()
        writable: asyncio.Future[None] = self.create_future()
        self.add_writer(fd, _finish, writable)
        try:
            await (stand_in.watch(writable) if stand_in is not None else writable)
        finally:
            # The caller may have closed its socket, and the number may be another's by now.
            if sock.fileno() == fd:
                self.remove_writer(fd)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
