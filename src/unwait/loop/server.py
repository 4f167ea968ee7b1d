"""Listening and accepting: `create_server`, `create_unix_server` and the Server they return.

A listening socket is readable while its queue of finished handshakes is not empty. epoll reports that
level-triggered, so a wake-up takes as many connections as the queue can have held (`backlog`) and whatever is
left makes the socket readable again. `accept4(2)` also fails for reasons that are not the listener's:
ECONNABORTED tells that a peer gave up while queued; EMFILE, ENFILE, ENOBUFS and ENOMEM that this process or
system has no room. In the latter case the connection stays queued and the socket readable, so that a loop
which tried on would spin: accepting pauses for a second instead.

Each connection gets its own copy of the context in which the server started to listen, so that what one
protocol factory sets in a context variable is not seen by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import socket
import stat
import sys
import weakref
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from unwait.loop.network import AddressInfo, bind_error, check_plain_socket, check_tls_timeouts

if TYPE_CHECKING:
    from ssl import SSLContext

ACCEPT_PAUSE = 1.0
"""Seconds without accepting after the system ran out of descriptors or memory."""

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# asyncio removes a Unix server's socket file by default since 3.13, and not before.
UNLINK_BY_DEFAULT = sys.version_info >= (3, 13)

# Since 3.12 a closed server's wait_closed() waits for its connections.
WAITS_FOR_CLIENTS = sys.version_info >= (3, 12)

logger = logging.getLogger("asyncio")


class Server(asyncio.Server):
    """Listening sockets and the connections that came in through them.

    A subclass of asyncio's, so that `isinstance(server, asyncio.Server)` holds and `wait_closed` does what it
    does on the running Python: on 3.11 it returns at once when the server is closed; since 3.12.1 it waits
    until the server is closed and its last connection is gone. `close_clients`, `abort_clients` and the rest
    work on every Python.
    """

    if TYPE_CHECKING:
        _waiters: list[asyncio.Future[None]] | None
        _serving: bool
        _serving_forever_fut: asyncio.Future[None] | None
        _wakeup: Callable[[], None]

    def __init__(
        self,
        loop: Any,
        sockets: list[socket.socket],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        ssl_context: SSLContext | None,
        backlog: int,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None = None,
        *,
        unlink: tuple[str | bytes, int] | None = None,
    ) -> None:
        """`unlink`: path and inode number of a socket file to remove at `close`, if it is still that file."""
        super().__init__(
            loop, sockets, protocol_factory, ssl_context, backlog, ssl_handshake_timeout, ssl_shutdown_timeout
        )
        self._loop: Any = loop
        self._sockets: list[socket.socket] | None = sockets
        self._protocol_factory = protocol_factory
        self._ssl_context = ssl_context
        self._backlog = backlog
        self._ssl_handshake_timeout = ssl_handshake_timeout
        self._ssl_shutdown_timeout = ssl_shutdown_timeout
        self._unlink = unlink
        # Weak, or a transport that nobody uses any more could never be found out.
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        # Transports of asyncio before 3.13 attach without saying who they are.
        self._unnamed_clients = 0
        self._handshakes: set[asyncio.Task[None]] = set()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}

    def _attach(self, transport: Any = None) -> None:
        if transport is None:
            self._unnamed_clients += 1
        else:
            self._clients.add(transport)

    def _detach(self, transport: Any = None) -> None:
        if transport is None:
            self._unnamed_clients -= 1
        else:
            self._clients.discard(transport)
        self._wake_if_done()

    def _wake_if_done(self) -> None:
        gone = self._sockets is None and not self._clients and not self._unnamed_clients
        if gone and self._waiters is not None:
            self._wakeup()

    def _start_serving(self) -> None:
        if self._serving:
            return
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        for sock in self._sockets:
            sock.listen(self._backlog)
        self._serving = True
        for sock in self._sockets:
            self._loop._start_serving(self, sock)

    def close(self) -> None:
        """Stop listening and close the listening sockets; accepted connections stay open."""
        sockets = self._sockets
        if sockets is None:
            return
        self._sockets = None
        self._serving = False
        for pause in self._paused.values():
            pause.cancel()
        self._paused.clear()
        for sock in sockets:
            self._loop._stop_serving(sock)
        if self._unlink is not None:
            _unlink_socket(*self._unlink)
        serving = self._serving_forever_fut
        if serving is not None and not serving.done():
            serving.cancel()
            self._serving_forever_fut = None
        self._wake_if_done()

    def close_clients(self) -> None:
        """Close every accepted connection after what it has still to send is sent."""
        for transport in list(self._clients):
            transport.close()

    def abort_clients(self) -> None:
        """Close every accepted connection at once; what it had still to send is lost."""
        for transport in list(self._clients):
            transport.abort()

    async def serve_forever(self) -> None:
        """Accept until cancelled; then close the server and, since Python 3.12, its connections."""
        if self._serving_forever_fut is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._start_serving()
        self._serving_forever_fut = self._loop.create_future()
        try:
            await self._serving_forever_fut
        except asyncio.CancelledError:
            self.close()
            if WAITS_FOR_CLIENTS:
                # Without this a client that never hangs up would keep the cancelled task from ending.
                self.close_clients()
            await self.wait_closed()
            raise
        finally:
            self._serving_forever_fut = None

    def _accept(self, sock: socket.socket) -> None:
        """Take the connections that wait in the queue of a listening socket."""
        loop = self._loop
        debug = loop.get_debug()
        for _ in range(max(self._backlog, 1)):
            try:
                conn, peer = sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                if exc.errno not in NO_ROOM:
                    raise
                loop.call_exception_handler(
                    {
                        "message": "socket.accept() out of system resource",
                        "exception": exc,
                        "socket": TransportSocket(sock),
                    }
                )
                if self._sockets is not None:
                    loop._remove_reader(sock.fileno())
                    self._paused[sock] = loop.call_later(ACCEPT_PAUSE, self._resume, sock)
                return
            if debug:
                logger.debug("%r got a new connection from %r: %r", self, peer, conn)
            conn.setblocking(False)
            contextvars.copy_context().run(self._start_client, conn, peer)
            if self._sockets is None:
                return  # the protocol factory closed the server

    def _resume(self, sock: socket.socket) -> None:
        del self._paused[sock]
        self._loop._start_serving(self, sock)

    def _start_client(self, conn: socket.socket, peer: Any) -> None:
        """Give an accepted connection its protocol and transport."""
        loop = self._loop
        protocol = transport = None
        try:
            protocol = self._protocol_factory()
            if self._sockets is None:
                conn.close()
                return
            extra = {"peername": peer}
            if not self._ssl_context:
                loop._make_socket_transport(conn, protocol, extra=extra, server=self)
                return
            waiter = loop.create_future()
            transport = loop._make_ssl_transport(
                conn,
                protocol,
                self._ssl_context,
                waiter,
                server_side=True,
                server_hostname=None,
                extra=extra,
                server=self,
                ssl_handshake_timeout=self._ssl_handshake_timeout,
                ssl_shutdown_timeout=self._ssl_shutdown_timeout,
            )
            handshake = loop.create_task(self._handshake(waiter, transport, protocol))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)
        except BaseException as exc:
            if transport is None:
                conn.close()
            else:
                transport.abort()
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            self._report(exc, transport, protocol)

    async def _handshake(self, waiter: asyncio.Future[None], transport: Any, protocol: Any) -> None:
        """See a TLS handshake to its end. One that fails is the peer's affair: told in debug mode only."""
        try:
            await waiter
        except BaseException as exc:
            transport.close()
            if not isinstance(exc, Exception):
                raise
            if self._loop.get_debug():
                self._report(exc, transport, protocol)
        finally:
            # The exception holds this frame, which would hold the exception through the future.
            del waiter

    def _report(self, exc: BaseException, transport: Any, protocol: Any) -> None:
        context = {"message": "Error on transport creation for incoming connection", "exception": exc}
        if protocol is not None:
            context["protocol"] = protocol
        if transport is not None:
            context["transport"] = transport
        self._loop.call_exception_handler(context)


class Serving(asyncio.BaseEventLoop):
    """The loop's `create_server` and `create_unix_server`."""

    if TYPE_CHECKING:
        _debug: bool
        _ensure_resolved: Callable[..., Any]
        _add_reader: Callable[..., asyncio.Handle]
        _remove_reader: Callable[[int], bool]

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | Sequence[str] | None = None,
        port: int | str | None = None,
        *,
        family: int = socket.AF_UNSPEC,
        flags: int = socket.AI_PASSIVE,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: SSLContext | None = None,
        reuse_address: bool | None = None,
        reuse_port: bool | None = None,
        keep_alive: bool | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> Server:
        """Listen on the addresses of the host or hosts (None and "": all interfaces), or on the bound `sock`.

        `reuse_address` is on unless turned off. `keep_alive` makes the accepted connections probe their idle
        peers. With `start_serving=False` nothing is accepted until `Server.start_serving` or `serve_forever`.

        An address that this machine does not have is skipped if another one could be bound. OSError when none
        could be, or when one is in use or not permitted.
        """
        _check_server_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        check_plain_socket(sock)
        made_here = host is not None or port is not None
        if made_here:
            if sock is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            infos = await self._resolve_listeners(host, port, family, flags)
            sockets = self._bind_all(infos, reuse_address is None or reuse_address, reuse_port, keep_alive)
        elif sock is None:
            raise ValueError("Neither host/port nor sock were specified")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        else:
            sockets = [sock]

        server = Server(
            self, sockets, protocol_factory, ssl, backlog, ssl_handshake_timeout, ssl_shutdown_timeout
        )
        self._start_server(server, sockets, start_serving, made_here)
        if self._debug:
            logger.info("%r is serving", server)
        return server

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: SSLContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        cleanup_socket: bool = UNLINK_BY_DEFAULT,
    ) -> Server:
        """Listen on a Unix stream socket at `path`, or on the bound Unix socket `sock`.

        A socket file that is already at `path` is replaced. A path that starts with a null character is a
        name in Linux's abstract namespace. `cleanup_socket` removes the file when the server closes, unless
        it has been replaced meanwhile; as in asyncio it is on by default since Python 3.13 and off before.
        """
        _check_server_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        made_here = path is not None
        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            sock = _bind_unix(os.fspath(path))
        elif sock is None:
            raise ValueError("path was not specified, and no sock specified")
        elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")

        unlink = None
        if cleanup_socket:
            address = sock.getsockname()
            if _is_file(address):
                with contextlib.suppress(FileNotFoundError):
                    unlink = (address, os.stat(address).st_ino)
        server = Server(
            self,
            [sock],
            protocol_factory,
            ssl,
            backlog,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
            unlink=unlink,
        )
        self._start_server(server, [sock], start_serving, made_here)
        return server

    def _start_server(
        self, server: Server, sockets: list[socket.socket], start_serving: bool, made_here: bool
    ) -> None:
        try:
            for sock in sockets:
                sock.setblocking(False)
            if start_serving:
                server._start_serving()
        except BaseException:
            if made_here:
                server.close()
            raise

    def _start_serving(self, server: Server, sock: socket.socket) -> None:
        """Let `server` accept whenever a connection waits on a listening socket."""
        self._add_reader(sock.fileno(), server._accept, sock)

    def _stop_serving(self, sock: socket.socket) -> None:
        """Close a listening socket and hear no more of it."""
        self._remove_reader(sock.fileno())
        sock.close()

    async def _resolve_listeners(
        self, host: str | Sequence[str] | None, port: int | str | None, family: int, flags: int
    ) -> list[AddressInfo]:
        """The distinct addresses of a host or several, in their order."""
        hosts: Iterable[Any]
        if host is None or host == "":
            hosts = [None]
        elif isinstance(host, (str, bytes)) or not isinstance(host, Iterable):
            hosts = [host]
        else:
            hosts = host
        hosts = list(hosts)
        hints: dict[str, Any] = {"family": family, "type": socket.SOCK_STREAM, "flags": flags, "loop": self}
        answers = await asyncio.gather(*(self._ensure_resolved((name, port), **hints) for name in hosts))
        for name, infos in zip(hosts, answers, strict=True):
            if not infos:
                raise OSError(f"getaddrinfo({name!r}) returned empty list")
        return list(dict.fromkeys(info for infos in answers for info in infos))

    def _bind_all(
        self, infos: list[AddressInfo], reuse_address: bool, reuse_port: bool | None, keep_alive: bool | None
    ) -> list[socket.socket]:
        """A bound socket for each address that this machine has. OSError when there is none."""
        sockets: list[socket.socket] = []
        skipped: OSError | None = None
        try:
            for family, kind, proto, _, address in infos:
                try:
                    sock = socket.socket(family, kind, proto)
                except OSError as exc:
                    skipped = exc  # a family that the resolver knows and the kernel does not
                    if self._debug:
                        logger.warning(
                            "create_server() failed to create socket.socket(%r, %r, %r)",
                            family,
                            kind,
                            proto,
                            exc_info=True,
                        )
                    continue
                sockets.append(sock)
                if reuse_address:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
                if reuse_port:
                    if not hasattr(socket, "SO_REUSEPORT"):
                        raise ValueError("reuse_port not supported by socket module")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
                if keep_alive:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
                if family == socket.AF_INET6:
                    # Linux lets an IPv6 socket take the IPv4 port as well, which the IPv4 address's own
                    # socket needs.
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
                try:
                    sock.bind(address)
                except OSError as exc:
                    failure = bind_error(exc, address)
                    if exc.errno != errno.EADDRNOTAVAIL:
                        raise failure from None
                    skipped = failure
                    sockets.pop().close()
                    if self._debug:
                        logger.warning(failure.strerror)
            if not sockets:
                message = f"could not bind on any address out of {[info[4] for info in infos]!r}"
                if skipped is None:
                    raise OSError(message)
                raise OSError(skipped.errno, message) from skipped
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        finally:
            del skipped
        return sockets


def _check_server_tls(
    ssl: object, ssl_handshake_timeout: float | None, ssl_shutdown_timeout: float | None
) -> None:
    if isinstance(ssl, bool):
        raise TypeError("ssl argument must be an SSLContext or None")
    check_tls_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)


def _is_file(path: str | bytes) -> bool:
    """Whether a Unix socket's address is a path, not a name in the abstract namespace and not empty."""
    return bool(path) and path[0] not in (0, "\0")


def _bind_unix(path: str | bytes) -> socket.socket:
    """A Unix stream socket bound to a path, in the place of a socket file left there."""
    if _is_file(path):
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.remove(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            # Directory permissions may allow to make the socket and nothing else: let bind() decide.
            logger.error("Unable to check or remove stale UNIX socket %r: %r", path, exc)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            raise OSError(errno.EADDRINUSE, f"Address {path!r} is already in use") from None
        raise
    return sock


def _unlink_socket(path: str | bytes, inode: int) -> None:
    """Remove the socket file that was bound, unless another has taken its place."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.error("Unable to clean up listening UNIX socket %r: %r", path, exc)
