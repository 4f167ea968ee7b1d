"""Readiness of other people's descriptors: `add_reader`, `add_writer` and the `sock_*` calls.

The loop does not own these descriptors. Their owner may close one without a word, and its number may then be another
file's. So a socket's watcher is bound to the socket object, and `add_reader` always asks the kernel anew.

The `sock_*` calls leave read interest standing between calls: a server that receives, sends and receives again then
costs no `epoll_ctl`. After a read that did not fill its buffer the socket is known to be empty, so the next call waits
at once instead of asking in vain; epoll is level-triggered, so nothing that arrived in between is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any

from unwait.loop import kernel
from unwait.loop.core import Core
from unwait.loop.handles import Handle
from unwait.loop.kernel import Channel
from unwait.loop.network import check_plain_socket

ASK_READ = kernel.ASK_READ
ASK_WRITE = kernel.ASK_WRITE
CAN_READ = kernel.CAN_READ
CAN_WRITE = kernel.CAN_WRITE
# Waiters of one socket and direction from which on those that were cancelled are dropped.
WAITERS_KEPT = 8


class Watcher(Channel):
    """One descriptor that is not the loop's own: who waits for it."""

    def __init__(self, loop: SocketCalls, fd: int, owner: weakref.ref[Any] | None) -> None:
        self.loop = loop
        self.poller = loop.poller
        self.fd = fd
        self.owner = owner
        self.read_waiters = []
        self.write_waiters = []

    def on_events(self, events: int) -> int:
        if events & CAN_READ:
            self.readable()
        if events & CAN_WRITE and self.interest & ASK_WRITE:
            self.writable()
        return 0

    def readable(self) -> None:
        self.drained = False
        waiters = self.read_waiters
        if waiters:
            self.read_waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        elif self.reader is None:
            self.arm(self.interest & ~ASK_READ)
        if self.reader is not None:
            self.loop.run_handle(self.reader)

    def writable(self) -> None:
        waiters = self.write_waiters
        if waiters:
            self.write_waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self.writer is not None:
            self.loop.run_handle(self.writer)
        elif not self.write_waiters:
            self.arm(self.interest & ~ASK_WRITE)

    def wait_readable(self) -> asyncio.Future[None]:
        """A future for the moment when a read would not wait."""
        waiter = self.loop.create_future()
        if len(self.read_waiters) >= WAITERS_KEPT:
            self.read_waiters = [earlier for earlier in self.read_waiters if not earlier.done()]
        self.read_waiters.append(waiter)
        self.watch(ASK_READ)
        return waiter

    def wait_writable(self) -> asyncio.Future[None]:
        """A future for the moment when a write would not wait."""
        waiter = self.loop.create_future()
        if len(self.write_waiters) >= WAITERS_KEPT:
            self.write_waiters = [earlier for earlier in self.write_waiters if not earlier.done()]
        self.write_waiters.append(waiter)
        self.watch(ASK_WRITE)
        return waiter

    def watch(self, event: int) -> None:
        """Have `event` reported, if it is not already. RuntimeError where a transport works on the descriptor."""
        if self.interest & event and self.attached():
            return
        if not self.attached():
            self.interest = 0
            self.loop.check_no_transport(self.fd, self.fd)
        self.rearm(self.interest | event)

    def belongs_to(self, fd: int) -> bool:
        """Whether whoever gave us this number still holds it, as far as that can be known."""
        if self.owner is None:
            return self.reader is not None or self.writer is not None
        owner = self.owner()
        return owner is not None and owner.fileno() == fd

    def check_open(self, sock: socket.socket) -> None:
        """After a wait: the number may be somebody else's by now."""
        if sock.fileno() != self.fd:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def forget(self) -> None:
        """The loop is closed: let go of the callbacks."""
        for handle in (self.reader, self.writer):
            if handle is not None:
                handle.cancel()
        self.reader = self.writer = None
        self.read_waiters = []
        self.write_waiters = []

    def settle(self) -> None:
        """Ask for just what is waited for."""
        wanted = 0
        if self.reader is not None or self.read_waiters:
            wanted |= ASK_READ
        if self.writer is not None or self.write_waiters:
            wanted |= ASK_WRITE
        self.rearm(wanted)


class SocketCalls(Core):
    """The part of the loop that watches descriptors and works on the caller's sockets."""

    def __cinit__(self) -> None:
        self.watchers = {}

    def _close_core(self) -> None:
        for watcher in self.watchers.values():
            watcher.forget()
        self.watchers.clear()
        super()._close_core()

    def socket_watcher(self, sock: socket.socket) -> Watcher:
        """The watcher bound to this socket object. TypeError, ValueError for what cannot be worked on."""
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        fd = sock.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        watcher = self.watchers.get(fd)
        if watcher is None or not watcher.is_socket or watcher.owner is None or watcher.owner() is not sock:
            check_plain_socket(sock)
            watcher = self.number_watcher(fd, sock)
            watcher.is_socket = True
        return watcher

    def number_watcher(self, fd: int, owner: Any) -> Watcher:
        """The watcher of a descriptor, which may have been given by an object with `fileno()`."""
        watcher = self.watchers.get(fd)
        if watcher is None or not watcher.belongs_to(fd):
            watcher = Watcher(self, fd, None)
            self.watchers[fd] = watcher
        if watcher.owner is None and not isinstance(owner, int):
            with contextlib.suppress(TypeError):  # no weak references to it
                watcher.owner = weakref.ref(owner)
        return watcher

    def check_no_transport(self, fileno: int, fd: Any) -> None:
        """RuntimeError if a transport works on this descriptor."""
        holder = self.poller.holder(fileno)
        if holder is not None and not isinstance(holder, Watcher) and not holder.is_closing():
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {holder!r}")

    def _fileno(self, fd: Any) -> int:
        """The number of a descriptor or of an object with `fileno()`, if no transport works on it."""
        if isinstance(fd, int):
            fileno = fd
        else:
            try:
                fileno = int(fd.fileno())
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"Invalid file object: {fd!r}") from None
        if fileno < 0:
            raise ValueError(f"Invalid file descriptor: {fileno}")
        self.check_no_transport(fileno, fd)
        return fileno

    def _last_fileno(self, fd: Any) -> int:
        """`_fileno`, also of an object that was closed while it was watched."""
        try:
            return self._fileno(fd)
        except ValueError:
            for watcher in self.watchers.values():
                if watcher.owner is not None and watcher.owner() is fd:
                    return watcher.fd
            raise

    def _watch(
        self, fd: Any, writing: bool, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> Handle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        fileno = self._fileno(fd)
        if self._debug:
            self._check_callback(callback, "add_writer" if writing else "add_reader")
        handle = self.make_handle(callback, args, None)
        watcher = self.number_watcher(fileno, fd)
        if writing:
            previous, watcher.writer = watcher.writer, handle
        else:
            previous, watcher.reader = watcher.reader, handle
        try:
            watcher.settle()
        except BaseException:
            if writing:
                watcher.writer = None
            else:
                watcher.reader = None
            raise
        if previous is not None:
            previous.cancel()
        return handle

    def _unwatch(self, fd: Any, writing: bool) -> bool:
        if self._closed:
            return False
        watcher = self.watchers.get(self._last_fileno(fd))
        if watcher is None:
            return False
        if writing:
            previous, watcher.writer = watcher.writer, None
        else:
            previous, watcher.reader = watcher.reader, None
        if previous is None:
            return False
        if watcher.attached():
            watcher.settle()
        previous.cancel()
        return True

    def _add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> Handle:
        return self._watch(fd, False, callback, args)

    def _remove_reader(self, fd: Any) -> bool:
        return self._unwatch(fd, False)

    def _add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> Handle:
        return self._watch(fd, True, callback, args)

    def _remove_writer(self, fd: Any) -> bool:
        return self._unwatch(fd, True)

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` whenever `fd` (a number, or anything with `fileno()`) can be read."""
        self._watch(fd, False, callback, args)

    def remove_reader(self, fd: Any) -> bool:
        """Stop watching `fd` for reading; whether it was watched."""
        return self._unwatch(fd, False)

    def add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` whenever `fd` (a number, or anything with `fileno()`) can be written."""
        self._watch(fd, True, callback, args)

    def remove_writer(self, fd: Any) -> bool:
        """Stop watching `fd` for writing; whether it was watched."""
        return self._unwatch(fd, True)

    async def sock_recv(self, sock: socket.socket, nbytes: int) -> bytes:
        """Receive up to `nbytes` (at most 256 KiB at a time); empty at the end of the stream."""
        watcher = self.socket_watcher(sock)
        if nbytes < 0:
            raise ValueError("negative buffersize in recv")
        if watcher.drained:
            await watcher.wait_readable()
            watcher.check_open(sock)
        while True:
            data = watcher.receive(nbytes)
            if data is not None:
                watcher.drained = 0 < len(data) < nbytes
                return data
            await watcher.wait_readable()
            watcher.check_open(sock)

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """Receive into a writable buffer; the count, 0 at the end of the stream."""
        watcher = self.socket_watcher(sock)
        while True:
            count = watcher.receive_into(buf)
            if count >= 0:
                return count
            await watcher.wait_readable()
            watcher.check_open(sock)

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """Receive one datagram of up to `bufsize` bytes: `(data, address)`."""
        watcher = self.socket_watcher(sock)
        while True:
            try:
                return sock.recvfrom(bufsize)
            except (BlockingIOError, InterruptedError):
                await watcher.wait_readable()

    async def sock_recvfrom_into(self, sock: socket.socket, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
        """Receive one datagram of up to `nbytes` (0: the buffer's length) into `buf`: `(count, address)`."""
        watcher = self.socket_watcher(sock)
        if not nbytes:
            nbytes = len(buf)
        while True:
            try:
                return sock.recvfrom_into(buf, nbytes)
            except (BlockingIOError, InterruptedError):
                await watcher.wait_readable()

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """Send all of `data`; after an error there is no telling how much was sent."""
        watcher = self.socket_watcher(sock)
        if type(data) is bytes:
            size = len(data)
        else:
            data = memoryview(data).cast("B")
            size = data.nbytes
        if size == 0:
            return
        count = watcher.send(data)
        sent = count if count > 0 else 0
        if sent < size:
            view = memoryview(data)
            while sent < size:
                await watcher.wait_writable()
                watcher.check_open(sock)
                count = watcher.send(view[sent:])
                if count > 0:
                    sent += count

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Send one datagram to `address`; the count of bytes sent."""
        watcher = self.socket_watcher(sock)
        while True:
            try:
                return sock.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                await watcher.wait_writable()

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect to `address`; a host name in it is resolved first."""
        watcher = self.socket_watcher(sock)
        if sock.family == socket.AF_INET or sock.family == socket.AF_INET6:
            infos = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = infos[0][4]
        try:
            sock.connect(address)
            return
        except (BlockingIOError, InterruptedError):
            pass
        await watcher.wait_writable()
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"Connect call failed {address}")

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept one connection: `(socket, address)`, the socket non-blocking."""
        watcher = self.socket_watcher(sock)
        while True:
            try:
                connection, address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                await watcher.wait_readable()
            else:
                connection.setblocking(False)
                return connection, address
