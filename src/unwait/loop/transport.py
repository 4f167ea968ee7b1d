"""Transports over a stream: sockets here, pipes in `pipes`.

Reading is one `recv` into the loop's buffer per report, copied out at its exact size. Writing tries the kernel at once;
only what it would not take is kept, in order, and gathered into one `sendmsg` when it would.

TCP is watched edge-triggered: one `epoll_ctl` for a connection's whole life, none for pausing, resuming or a full send
buffer, and the kernel does not look at each socket a second time after each report, as it does for level-triggered
ones. The price is to know when a socket is empty, for only then will the next edge come. A TCP read that did not fill
its buffer has emptied the socket, unless the report spoke of more than data (the peer's end, an error, urgent data);
a socket that may not be empty is read again in the next iteration. Unix sockets, pipes and terminals give short reads
for other reasons as well and stay level-triggered.
"""

from __future__ import annotations

import asyncio
import socket
import time
import warnings
from asyncio import constants, trsock
from asyncio.log import logger
from collections.abc import Iterable
from typing import Any

from cython.cimports.cpython.contextvars import PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit

from unwait.loop import kernel
from unwait.loop.core import Core
from unwait.loop.kernel import Channel

ASK_READ = kernel.ASK_READ
ASK_WRITE = kernel.ASK_WRITE
ASK_EDGES = kernel.ASK_EDGES
CAN_READ = kernel.CAN_READ
CAN_WRITE = kernel.CAN_WRITE
PLAIN_EVENTS = ASK_READ | ASK_WRITE

DEFAULT_HIGH_WATER = 64 * 1024  # bytes, asyncio's
READ_SIZE = 256 * 1024  # bytes, asyncio's
INTERNET = (socket.AF_INET, socket.AF_INET6)
NOISY_WRITES = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES


class FlowControlled(Channel):
    """What stream and datagram transports share: the protocol's side of flow control, and how failures are told."""

    def _attach(
        self, loop: Core, resource: Any, protocol: asyncio.BaseProtocol, extra: dict[str, Any] | None
    ) -> None:
        """Bind to an open, non-blocking socket or pipe, which the transport owns from here on."""
        self.loop = loop
        self.poller = loop.poller
        self.fd = resource.fileno()
        self.resource = resource
        self.context = PyContext_CopyCurrent()
        self.extra = extra
        self.high_water = DEFAULT_HIGH_WATER
        self.low_water = DEFAULT_HIGH_WATER // 4

    @property
    def _loop(self) -> Any:
        return self.loop

    @property
    def _sock(self) -> Any:
        return None if self.released else self.resource

    @property
    def _protocol_paused(self) -> bool:
        return self.protocol_paused

    def note_peername(self) -> None:
        """Learn the peer's address while the socket still knows it: after a reset it does not."""
        if self.extra is not None and "peername" in self.extra:
            return
        try:
            self.peername = self.resource.getpeername()
        except OSError:
            self.peername = None

    def note_sockname(self) -> None:
        """Learn our own address: when it is asked for, or at the last moment."""
        if self.sockname is None and self.is_socket:
            try:
                self.sockname = self.resource.getsockname()
            except OSError:
                self.sockname = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket`, `sockname`, `peername` (a pipe: `pipe`), or `default`."""
        if self.extra is not None and name in self.extra:
            return self.extra[name]
        if self.is_socket:
            if name == "peername":
                return self.peername
            if name == "sockname":
                if not self.released:
                    self.note_sockname()
                return self.sockname
            if name == "socket":
                if self.extra is None:
                    self.extra = {}
                view = self.extra["socket"] = trsock.TransportSocket(self.resource)
                return view
        return default

    def close_resource(self) -> None:
        if not self.released:
            self.released = True
            self.note_sockname()
            self.resource.close()
            self.fd = -1  # the number is anybody's from now on

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that receives this transport's calls."""
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Send all calls to `protocol` from now on."""
        self.protocol = protocol

    def is_closing(self) -> bool:
        """Whether the transport is closed or on its way there."""
        return self.closing

    def is_reading(self) -> bool:
        """Whether data is delivered as it arrives: neither paused nor closing."""
        return not self.closing and not self.paused

    def abort(self) -> None:
        """Close at once; what was not yet written is lost."""
        self._force_close(None)

    def on_events(self, events: int) -> int:
        PyContext_Enter(self.context)
        try:
            if self.loop._debug:
                started = time.monotonic()
                self.serve_events(events)
                self.loop.note_slow(self, started)
            else:
                self.serve_events(events)
        finally:
            PyContext_Exit(self.context)
        return 0

    def serve_events(self, events: int) -> None:
        """Act on a report of the poller."""
        raise NotImplementedError

    def drop_backlog(self) -> None:
        """Forget what was not yet written."""
        raise NotImplementedError

    def _force_close(self, exc: BaseException | None) -> None:
        if self.lost:
            return
        self.drop_backlog()
        self.closing = True
        self.arm(0)
        self.lost += 1
        self.loop.call_soon(self._call_connection_lost, exc, context=self.context)

    def get_write_buffer_size(self) -> int:
        """Bytes accepted by `write` that the kernel has not taken yet."""
        return self.backlog_size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The watermarks `(low, high)`, in bytes."""
        return self.low_water, self.high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Pause the protocol above `high` bytes (64 KiB), resume it at `low` (a quarter of `high`).

        Raises ValueError unless high >= low >= 0.
        """
        if high is None:
            high = DEFAULT_HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high_water = high
        self.low_water = low
        self.maybe_pause_protocol()

    def maybe_pause_protocol(self) -> None:
        if self.backlog_size > self.high_water and not self.protocol_paused:
            self.protocol_paused = True
            self.notify_protocol("pause_writing")

    def maybe_resume_protocol(self) -> None:
        if self.protocol_paused and self.backlog_size <= self.low_water:
            self.protocol_paused = False
            self.notify_protocol("resume_writing")

    def notify_protocol(self, method: str) -> None:
        try:
            getattr(self.protocol, method)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler(
                {
                    "message": f"protocol.{method}() failed",
                    "exception": exc,
                    "transport": self,
                    "protocol": self.protocol,
                }
            )

    def fail(self, exc: BaseException, message: str) -> None:
        """Report an error that ends the connection, unless it is the network's everyday, and end it."""
        if isinstance(exc, OSError):
            if self.loop._debug:
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self.loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": self, "protocol": self.protocol}
            )
        self._force_close(exc)

    def refuses_write(self, data: Any) -> bool:
        """Whether a write is to be ignored because the connection is lost; says so if it goes on."""
        if not self.lost:
            return False
        if self.lost >= NOISY_WRITES:
            logger.warning("socket.send() raised exception.")
        self.lost += 1
        return True

    def __del__(self) -> None:
        if self.resource is not None and not self.released:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.resource.close()
            self.detach_server()

    def detach_server(self) -> None:
        """Let the server that accepted this connection, if one did, know that it is gone."""
        if self.server is not None:
            self.server._detach(self)
            self.server = None


class StreamTransport(FlowControlled):
    """A connected stream socket. Passes for an `asyncio.Transport`."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    def __init__(
        self,
        loop: Core,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        connection_made = protocol.connection_made  # what is no protocol fails before anything is taken over
        self._attach(loop, sock, protocol, extra)
        self.is_socket = True
        self.note_peername()
        self.set_protocol(protocol)
        self.server = server
        if server is not None:
            server._attach(self)
        self.edge = sock.family in INTERNET and sock.proto in (0, socket.IPPROTO_TCP)
        if self.edge:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.call_soon(connection_made, self, context=self.context)
        loop.call_soon(self._begin, waiter, context=self.context)

    @property
    def __class__(self) -> type:
        return asyncio.Transport

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self.released:
            info.append("closed")
        elif self.closing:
            info.append("closing")
        info.append(f"fd={self.fd}")
        if not self.released:
            info.append(f"read={'polling' if self.interest & ASK_READ and not self.paused else 'idle'}")
            info.append(f"write=<{'polling' if self.backlog_size else 'idle'}, bufsize={self.backlog_size}>")
        return f"<{' '.join(info)}>"

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        """Start reading, once `connection_made` has been called."""
        if self.loop is None:
            raise RuntimeError("the transport was never opened")
        try:
            if self.edge:
                self.drained = True
                if not self.lost:  # it may be closing already, with something left to write
                    self.arm(ASK_EDGES)
            elif self.is_reading():
                self.arm(self.interest | ASK_READ)
        except PermissionError:  # a device or file that is always ready, which epoll does not watch
            self.edge = True
            self.queue_read()
        except OSError as exc:
            if waiter is not None and not waiter.done():
                waiter.set_exception(exc)
            self._force_close(exc)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Send all calls to `protocol` from now on, also in the middle of one."""
        self.protocol = protocol
        self.buffered = isinstance(protocol, asyncio.BufferedProtocol)
        if self.buffered:
            self.get_buffer = protocol.get_buffer
            self.buffer_updated = protocol.buffer_updated
            self.data_received = None
        else:
            self.get_buffer = self.buffer_updated = None
            self.data_received = getattr(protocol, "data_received", None)

    def pause_reading(self) -> None:
        """Deliver no data until `resume_reading`; no effect if paused or closing."""
        if self.is_reading():
            self.paused = True
            if not self.edge:
                self.arm(self.interest & ~ASK_READ)
            if self.loop._debug:
                logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Deliver data again; no effect if not paused or closing."""
        if self.paused and not self.closing:
            self.paused = False
            if self.edge:
                if not self.drained:
                    self.queue_read()
            elif not self.eof_read:
                self.arm(self.interest | ASK_READ)
            if self.loop._debug:
                logger.debug("%r resumes reading", self)

    def serve_events(self, events: int) -> None:
        try:
            if events & CAN_READ:
                if self.edge:
                    self.drained = False
                    self.sure = events & ~PLAIN_EVENTS == 0
                    self.read_some()
                elif self.interest & ASK_READ:
                    self.read_some()
        finally:  # an edge is reported once: an interrupt in the reading half must not lose the writing half
            if events & CAN_WRITE and self.backlog_size:
                self.write_ready()

    def read_some(self) -> None:
        if self.paused or self.closing or self.eof_read:
            return
        if self.buffered:
            self.read_ready_into()
        else:
            self.read_ready()

    def _read_more(self) -> None:
        """Read again what an edge-triggered report of the past may have left behind."""
        self.read_queued = False
        if not self.drained:
            self.read_some()

    def queue_read(self) -> None:
        if not self.read_queued:
            self.read_queued = True
            self.loop.call_soon(self._read_more, context=self.context)

    def note_read(self) -> None:
        """After a read from an edge-triggered socket: see that what is left in it is read as well."""
        if self.sure and not self.full:
            self.drained = True
        else:
            self.queue_read()

    def read_ready(self) -> None:
        try:
            data = self.receive(READ_SIZE)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal read error on socket transport")
            return
        if data is None:
            self.drained = self.sure = True
            return
        if not data:
            self.read_eof()
            return
        if self.edge:
            self.note_read()
        try:
            self.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal error: protocol.data_received() call failed.")

    def read_ready_into(self) -> None:
        try:
            buffer = self.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            if self.edge:
                self.queue_read()
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal error: protocol.get_buffer() call failed.")
            return
        try:
            count = self.receive_into(buffer)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal read error on socket transport")
            return
        if count < 0:
            self.drained = self.sure = True
            return
        if count == 0:
            self.read_eof()
            return
        if self.edge:
            self.note_read()
        try:
            self.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal error: protocol.buffer_updated() call failed.")

    def read_eof(self) -> None:
        if self.loop._debug:
            logger.debug("%r received EOF", self)
        try:
            keep_open = self.protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        self.eof_read = True
        if keep_open:
            if not self.edge:
                self.arm(self.interest & ~ASK_READ)
        else:
            self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`; what the kernel does not take now is kept and sent later, in order. Never waits.

        Raises TypeError for anything but bytes, bytearray and memoryview, RuntimeError after `write_eof`.
        """
        if type(data) is bytes or isinstance(data, (bytes, bytearray)):
            size = len(data)
        elif isinstance(data, memoryview):
            size = data.nbytes
        else:
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self.eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if size == 0 or self.refuses_write(data):
            return
        count = 0
        if self.backlog_size == 0:
            try:
                count = self.send(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self.fail(exc, "Fatal write error on socket transport")
                return
            if count == size:
                return
            if count < 0:
                count = 0
            self.keep(data, count)
            self.watch_writing()
        else:
            self.keep(data, 0)
        self.maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several buffers, in one system call if the kernel takes them; as `write` otherwise."""
        if self.eof_written:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        buffers = [data if type(data) is bytes else bytes(memoryview(data)) for data in list_of_data]
        buffers = [data for data in buffers if data]
        if not buffers or self.refuses_write(buffers):
            return
        idle = self.backlog_size == 0
        if self.backlog is None:
            self.backlog = []
        self.backlog += buffers
        self.backlog_size += sum(map(len, buffers))
        if idle:
            self.write_some()
            if self.backlog_size and not self.lost:
                self.watch_writing()
        self.maybe_pause_protocol()

    def watch_writing(self) -> None:
        if not self.edge:
            self.arm(self.interest | ASK_WRITE)

    def keep(self, data: bytes | bytearray | memoryview, sent: int) -> None:
        """Keep what the kernel has not taken of `data`; what its owner may change is copied."""
        if type(data) is not bytes:
            data = bytes(memoryview(data).cast("B")[sent:])
            sent = 0
        if not self.backlog:
            self.backlog = []
            self.backlog_start = sent
        self.backlog.append(data)
        self.backlog_size += len(data) - sent

    def write_some(self) -> bool:
        """Offer the backlog to the kernel until it takes no more; False if that ended the connection.

        A write cut short, or refused, is what makes the kernel report the next chance to an edge-triggered socket.
        """
        try:
            while self.backlog_size:
                if len(self.backlog) == 1:
                    count = self.send_from(self.backlog[0], self.backlog_start)
                else:
                    count = self.send_many(self.backlog, 0, self.backlog_start)
                if count < 0:
                    break
                self.consume(count)
                if self.backlog_start:
                    break
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fail(exc, "Fatal write error on socket transport")
            return False
        return True

    def consume(self, count: int) -> None:
        """Drop the first `count` bytes of the backlog."""
        self.backlog_size -= count
        taken = 0
        count += self.backlog_start
        for first in self.backlog:
            size = len(first)
            if count < size:
                break
            count -= size
            taken += 1
        self.backlog_start = count
        del self.backlog[:taken]

    def write_ready(self) -> None:
        if not self.write_some():
            return
        self.maybe_resume_protocol()  # may write more
        if self.backlog_size == 0:
            if not self.edge:
                self.arm(self.interest & ~ASK_WRITE)
            self.flushed()

    def flushed(self) -> None:
        """The backlog is empty: do what waited for that."""
        if self.empty_waiter is not None and not self.empty_waiter.done():
            self.empty_waiter.set_result(None)
        if self.closing:
            self._call_connection_lost(None)
        elif self.eof_written:
            self.resource.shutdown(socket.SHUT_WR)

    def can_write_eof(self) -> bool:
        """True: a stream can be closed in one direction."""
        return True

    def write_eof(self) -> None:
        """Close the writing side once everything is written; the peer can still send."""
        if self.closing or self.eof_written:
            return
        self.eof_written = True
        if self.backlog_size == 0:
            self.resource.shutdown(socket.SHUT_WR)

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        """A future for the moment when nothing waits to be written; until it is reset, writing is refused."""
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self.empty_waiter = self.loop.create_future()
        if self.backlog_size == 0:
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _reset_empty_waiter(self) -> None:
        self.empty_waiter = None

    def close(self) -> None:
        """Stop reading, write what is kept, then close; `connection_lost(None)` is called at the end."""
        if self.closing:
            return
        self.closing = True
        if not self.edge:
            self.arm(self.interest & ~ASK_READ)
        if self.backlog_size == 0:
            self.lost += 1
            self.arm(0)
            self.loop.call_soon(self._call_connection_lost, None, context=self.context)

    def drop_backlog(self) -> None:
        if self.backlog_size:
            self.backlog.clear()
            self.backlog_size = self.backlog_start = 0

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self.arm(0)
        self.lost = max(self.lost, 1)
        if self.empty_waiter is not None and not self.empty_waiter.done():
            self.empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))
        try:
            if self.protocol is not None:
                self.protocol.connection_lost(exc)
        finally:
            self.close_resource()
            self.protocol = None
            self.data_received = self.get_buffer = self.buffer_updated = None
            self.detach_server()
