"""Transports over one end of a pipe, a FIFO, a terminal or a socket: one direction each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from asyncio import constants
from asyncio.log import logger
from typing import Any

from unwait.loop import kernel
from unwait.loop.core import Core
from unwait.loop.transport import StreamTransport

ASK_READ = kernel.ASK_READ
BROKEN = kernel.BROKEN


class PipeTransport(StreamTransport):
    """What both ends share."""

    _start_tls_compatible = False
    _sendfile_compatible = constants._SendfileMode.UNSUPPORTED

    def _open(
        self, loop: Core, pipe: Any, protocol: asyncio.BaseProtocol, extra: dict[str, Any] | None
    ) -> int:
        """Take over `pipe`; its file type. ValueError unless it can be waited for."""
        mode = os.fstat(pipe.fileno()).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
            raise ValueError("Pipe transport is only for pipes, sockets and character devices")
        os.set_blocking(pipe.fileno(), False)
        self._attach(loop, pipe, protocol, {"pipe": pipe, **(extra or {})})
        self.set_protocol(protocol)
        return mode

    def __repr__(self) -> str:
        state = "closed" if self.released else "closing" if self.closing else "open"
        return f"<{type(self).__name__} {state} fd={self.fd} bufsize={self.backlog_size}>"


class ReadPipeTransport(PipeTransport):
    """The reading end. Passes for an `asyncio.ReadTransport`."""

    def __init__(
        self,
        loop: Core,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        connection_made = protocol.connection_made  # what is no protocol fails before anything is taken over
        self._open(loop, pipe, protocol, extra)
        loop.call_soon(connection_made, self, context=self.context)
        loop.call_soon(self._begin, waiter, context=self.context)

    @property
    def __class__(self) -> type:
        return asyncio.ReadTransport

    def read_eof(self) -> None:
        if self.loop._debug:
            logger.info("%r was closed by peer", self)
        self.closing = True
        self.arm(0)
        self.lost += 1
        self.loop.call_soon(self.protocol.eof_received, context=self.context)
        self.loop.call_soon(self._call_connection_lost, None, context=self.context)


class WritePipeTransport(PipeTransport):
    """The writing end; notices when the reader goes away. Passes for an `asyncio.WriteTransport`."""

    def __init__(
        self,
        loop: Core,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        connection_made = protocol.connection_made  # what is no protocol fails before anything is taken over
        mode = self._open(loop, pipe, protocol, extra)
        # A socket says that its reader is gone by becoming readable, a pipe by an error, which is
        # reported unasked: to ask for it just keeps the descriptor in the set. A terminal says nothing.
        self.watched = ASK_READ if stat.S_ISSOCK(mode) else BROKEN
        self.paused = True
        loop.call_soon(connection_made, self, context=self.context)
        loop.call_soon(self._begin_watching, waiter, context=self.context)

    @property
    def __class__(self) -> type:
        return asyncio.WriteTransport

    def _begin_watching(self, waiter: asyncio.Future[None] | None) -> None:
        if self.loop is None:
            raise RuntimeError("the transport was never opened")
        if not self.closing:
            with contextlib.suppress(
                PermissionError
            ):  # a device that is always ready, and has no reader to lose
                self.arm(self.interest | self.watched)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def serve_events(self, events: int) -> None:
        if events & BROKEN or events & ASK_READ:
            if self.loop._debug:
                logger.info("%r was closed by peer", self)
            self._force_close(BrokenPipeError() if self.backlog_size else None)
        else:
            self.write_ready()

    def flushed(self) -> None:
        if self.closing or self.eof_written:
            self.arm(0)
            self._call_connection_lost(None)

    def write_eof(self) -> None:
        """Close once everything is written: on a pipe, the end of writing is the end."""
        self.close()

    def close(self) -> None:
        """Write what is kept, then close; `connection_lost(None)` is called at the end."""
        if not self.closing:
            self.closing = True
            if self.backlog_size == 0:
                self.arm(0)
                self.lost += 1
                self.loop.call_soon(self._call_connection_lost, None, context=self.context)
