"""`Loop`: the compiled core and the plain-Python parts, put together into one asyncio event loop.

What happens per callback or per packet is compiled (`core`, `transport`, `pipes`, `datagram`, `sockets`, `tls`); what
happens per connection, process or loop is plain Python (`network`, `server`, `files`, `signals`, `processes`); and what
needs no change at all is asyncio's own `BaseEventLoop`, which therefore always is of the running Python's version.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from unwait.loop.datagram import DatagramTransport
from unwait.loop.files import Files
from unwait.loop.kernel import live_channels
from unwait.loop.network import Network
from unwait.loop.pipes import ReadPipeTransport, WritePipeTransport
from unwait.loop.processes import Processes
from unwait.loop.server import Serving
from unwait.loop.signals import Signals
from unwait.loop.sockets import SocketCalls
from unwait.loop.tls import TLSProtocol
from unwait.loop.transport import StreamTransport


class SocketTransport(StreamTransport):
    """A stream transport that, as asyncio's, lets callers set attributes of their own on it."""


class Loop(SocketCalls, Network, Serving, Files, Signals, Processes):
    """asyncio's event loop over epoll, compiled. Make one with `unwait.new_event_loop()`."""

    if TYPE_CHECKING:  # BaseEventLoop's
        _check_running: Callable[[], None]
        _set_coroutine_origin_tracking: Callable[[bool], None]
        _asyncgen_firstiter_hook: Callable[[AsyncGenerator[Any, Any]], None]
        _asyncgen_finalizer_hook: Callable[[AsyncGenerator[Any, Any]], None]

    def __init__(self) -> None:
        super().__init__()
        _loops.add(self)

    def run_forever(self) -> None:
        """Run until `stop` is called, or a callback raises KeyboardInterrupt or SystemExit."""
        self._check_closed()
        self._check_running()
        hooks = sys.get_asyncgen_hooks()
        previous = self._enter_main_thread()
        self._set_coroutine_origin_tracking(self._debug)
        self._thread_id = threading.get_ident()
        try:
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook
            )
            asyncio._set_running_loop(self)
            self._spin()
        finally:
            self._stopping = False
            self._thread_id = None
            asyncio._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)
            self._leave_main_thread(previous)

    def close(self) -> None:
        """Drop what is queued and close every descriptor of the loop's own. The loop must not be running."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self._closed:
            return
        self._close_signals()
        self._close_processes()
        super().close()
        self._close_core()

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> SocketTransport:
        return SocketTransport(self, sock, protocol, waiter, extra, server)

    def _make_tls_protocol(
        self,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None,
        server_side: bool = False,
        server_hostname: str | None = None,
        *,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        call_connection_made: bool = True,
    ) -> TLSProtocol:
        return TLSProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=call_connection_made,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        **options: Any,
    ) -> Any:
        tls = self._make_tls_protocol(protocol, sslcontext, waiter, **options)
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        return tls.app_transport

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> DatagramTransport:
        return DatagramTransport(self, sock, protocol, address, waiter, extra)

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> ReadPipeTransport:
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> WritePipeTransport:
        return WritePipeTransport(self, pipe, protocol, waiter, extra)


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def live_objects() -> dict[str, int]:
    """How many native objects are alive: `{"handles": of all loops, "channels": transports and watchers}`."""
    return {"handles": sum(loop._live_handles() for loop in _loops), "channels": live_channels()}


def _disown_after_fork() -> None:
    for loop in _loops:
        loop.poller.disown()
        loop._release_wakeup_fd()  # or a signal to the child would be handled by the parent


os.register_at_fork(after_in_child=_disown_after_fork)
