"""The datagram transport: UDP and Unix datagram sockets, connected to one peer or not."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any

from unwait.loop import kernel
from unwait.loop.core import Core
from unwait.loop.transport import FlowControlled

ASK_READ = kernel.ASK_READ
ASK_WRITE = kernel.ASK_WRITE
CAN_READ = kernel.CAN_READ
CAN_WRITE = kernel.CAN_WRITE

# The largest datagram that is delivered whole; what UDP and Unix sockets can carry by default is below it.
DATAGRAM_SIZE = 256 * 1024
# Datagrams read per report, before others have their turn.
READS_PER_EVENT = 32
# What a queued datagram counts for beyond its bytes, so that empty ones are bounded as well; asyncio's figure.
HEADER_SIZE = 8


class Facade(asyncio.Transport, asyncio.DatagramTransport):
    """What a datagram transport passes for: in asyncio it is both."""


class DatagramTransport(FlowControlled):
    """A datagram socket. Passes for an `asyncio.DatagramTransport`."""

    def __init__(
        self,
        loop: Core,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        connection_made = protocol.connection_made  # what is no protocol fails before anything is taken over
        self._attach(loop, sock, protocol, extra)
        self.is_socket = True
        self.address = address
        if self.loop.datagram_buffer is None:
            self.loop.datagram_buffer = bytearray(DATAGRAM_SIZE)
        self.backlog = deque()
        self.note_peername()
        self.set_protocol(protocol)
        loop.call_soon(connection_made, self, context=self.context)
        loop.call_soon(self._begin, waiter, context=self.context)

    @property
    def __class__(self) -> type:
        return Facade

    def __repr__(self) -> str:
        state = "closed " if self.released else "closing " if self.closing else ""
        return f"<{type(self).__name__} {state}fd={self.fd} bufsize={self.backlog_size}>"

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        if self.loop is None:
            raise RuntimeError("the transport was never opened")
        if not self.closing:
            self.arm(self.interest | ASK_READ)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Send all calls to `protocol` from now on."""
        self.protocol = protocol
        self.datagram_received = getattr(protocol, "datagram_received", None)

    def serve_events(self, events: int) -> None:
        if events & CAN_READ and self.interest & ASK_READ:
            self.read_ready()
        if events & CAN_WRITE and self.interest & ASK_WRITE:
            self.write_ready()

    def read_ready(self) -> None:
        buffer = self.loop.datagram_buffer
        for _turn in range(READS_PER_EVENT):
            if self.closing:
                return
            try:
                count, addr = self.resource.recvfrom_into(buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self.protocol.error_received(exc)
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self.fail(exc, "Fatal read error on datagram transport")
                return
            data = bytes(memoryview(buffer)[:count])
            try:
                self.datagram_received(data, addr)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:  # one bad datagram does not end the endpoint
                self.loop.call_exception_handler(
                    {
                        "message": "protocol.datagram_received() failed",
                        "exception": exc,
                        "transport": self,
                        "protocol": self.protocol,
                    }
                )

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram, to `addr` unless the socket is connected. Never waits.

        Raises TypeError for anything but bytes, bytearray and memoryview, ValueError for an address other than the
        connected one. What the network refuses is told to `error_received`.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self.released:
            self.refuses_write(data)
            return
        if self.address is not None:
            if addr is not None and addr != self.address:
                raise ValueError(f"Invalid address: must be None or {self.address}")
            addr = self.address
            if self.refuses_write(data):
                return
        if not self.backlog and self.transmit_one(data, addr):
            return
        if self.closing and self.lost:
            return
        data = bytes(data)
        self.backlog.append((data, addr))
        self.backlog_size += len(data) + HEADER_SIZE
        self.arm(self.interest | ASK_WRITE)
        self.maybe_pause_protocol()

    def transmit_one(self, data: Any, addr: Any) -> bool:
        """Offer one datagram to the kernel; False if it has to wait."""
        try:
            if self.get_extra_info("peername") is not None:
                self.resource.send(data)
            else:
                self.resource.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self.protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal write error on datagram transport")
        return True

    def write_ready(self) -> None:
        while self.backlog:
            data, addr = self.backlog[0]
            if not self.transmit_one(data, addr):
                break
            if not self.backlog:  # aborted by error_received
                return
            self.backlog.popleft()
            self.backlog_size -= len(data) + HEADER_SIZE
        self.maybe_resume_protocol()
        if not self.backlog:
            self.arm(self.interest & ~ASK_WRITE)
            if self.closing:
                self._call_connection_lost(None)

    def close(self) -> None:
        """Stop receiving, send what is queued, then close; `connection_lost(None)` is called at the end."""
        if self.closing:
            return
        self.closing = True
        self.arm(self.interest & ~ASK_READ)
        if not self.backlog:
            self.lost += 1
            self.loop.call_soon(self._call_connection_lost, None, context=self.context)

    def drop_backlog(self) -> None:
        self.backlog.clear()
        self.backlog_size = 0

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self.arm(0)
        self.lost = max(self.lost, 1)
        try:
            if self.protocol is not None:
                self.protocol.connection_lost(exc)
        finally:
            self.close_resource()
            self.protocol = self.datagram_received = None
