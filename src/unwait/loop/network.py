"""Resolving and connecting: from a name to addresses, to a connected socket, to a transport.

`getaddrinfo(3)` may read files, ask a resolver and wait for seconds, so it belongs in a thread; for a numeric
host and port it does neither and answers in microseconds, so there a thread would only cost a hand-over.
`connect(2)` on a non-blocking socket returns EINPROGRESS and the socket becomes writable when the handshake
has ended either way.

Which of several addresses answers is not known beforehand. Tried one after the other, an address that drops
packets costs minutes; so `happy_eyeballs_delay` races them as RFC 8305 describes: families interleaved, the
next attempt started when the newest one has failed or has had its delay, the first to connect kept, the rest
closed.

Ownership of a socket: whoever made it closes it, until a transport has taken it. A socket that the caller
passed in is never closed before that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

try:
    import ssl as ssl_module
except ImportError:  # a Python built without OpenSSL
    ssl_module = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from ssl import SSLContext

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)
ProtocolFactory: TypeAlias = Callable[[], ProtocolT]
AddressInfo: TypeAlias = tuple[int, int, int, str, Any]

logger = logging.getLogger("asyncio")


def check_plain_socket(sock: socket.socket | None) -> None:
    """Raise TypeError for a socket that does TLS itself: no transport can work on it."""
    if ssl_module is not None and isinstance(sock, ssl_module.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")


def check_tls_timeouts(
    ssl: object, ssl_handshake_timeout: float | None, ssl_shutdown_timeout: float | None
) -> None:
    """Raise ValueError for a TLS timeout given without TLS."""
    if ssl:
        return
    if ssl_handshake_timeout is not None:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if ssl_shutdown_timeout is not None:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")


def interleave_families(infos: Iterable[AddressInfo], first_family_count: int = 1) -> list[AddressInfo]:
    """RFC 8305, section 4: `first_family_count` addresses of the first family, then the families by turns."""
    families: dict[int, list[AddressInfo]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    queues = list(families.values())
    if not queues:
        return []
    head = max(first_family_count - 1, 0)
    ordered, queues[0] = queues[0][:head], queues[0][head:]
    for turn in range(max(map(len, queues))):
        ordered.extend(queue[turn] for queue in queues if turn < len(queue))
    return ordered


def bind_error(exc: OSError, address: object) -> OSError:
    """The error of a `bind` with the address in its message."""
    reason = (exc.strerror or str(exc)).lower()
    return OSError(exc.errno, f"error while attempting to bind on address {address!r}: {reason}")


def _is_numeric(host: object, port: object) -> bool:
    """Whether getaddrinfo answers for this host and port without reading a file or asking anybody."""
    if isinstance(port, (str, bytes)):
        if port and not (port.isascii() and port.isdigit()):
            return False
    elif not (port is None or isinstance(port, int)):
        return False
    if host is None:
        return True
    if isinstance(host, (bytes, bytearray)):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    if not isinstance(host, str) or "\0" in host:
        return False
    family = socket.AF_INET
    if ":" in host:
        family = socket.AF_INET6
        host = host.partition("%")[0]
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return True


def _connect_error(errors: list[OSError], all_errors: bool) -> Exception:
    """The one exception that tells why no address could be connected to."""
    if not errors:
        return TimeoutError("create_connection failed")
    if all_errors:
        return ExceptionGroup("create_connection failed", errors)
    if len({str(exc) for exc in errors}) == 1:
        return errors[0]
    return OSError("Multiple exceptions: " + ", ".join(map(str, errors)))


def _app_transport(tls_protocol: Any) -> asyncio.Transport:
    """The transport that a TLS protocol gives to the application's protocol."""
    transport: asyncio.Transport | None = getattr(tls_protocol, "app_transport", None)
    return transport or tls_protocol._app_transport


class Network(asyncio.BaseEventLoop):
    """The loop's look-ups, `create_connection`, `create_unix_connection` and `start_tls`."""

    if TYPE_CHECKING:
        _debug: bool
        _getaddrinfo_debug: Callable[..., Any]
        _ensure_resolved: Callable[..., Any]
        _make_socket_transport: Callable[..., asyncio.Transport]
        _make_ssl_transport: Callable[..., asyncio.Transport]
        _make_tls_protocol: Callable[..., asyncio.BaseProtocol]

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, Any, int, str, Any]]:
        """`socket.getaddrinfo`: in the default executor, or at once where host and port are numeric.

        In debug mode a look-up is logged, at INFO when it took longer than `slow_callback_duration`.
        """
        if _is_numeric(host, port):
            return socket.getaddrinfo(host, port, family, type, proto, flags)
        look_up = self._getaddrinfo_debug if self._debug else socket.getaddrinfo
        return await self.run_in_executor(None, look_up, host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """`socket.getnameinfo`: in the default executor, or at once where `flags` ask for numbers only."""
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        if flags & numeric == numeric:
            return socket.getnameinfo(sockaddr, flags)
        return await self.run_in_executor(None, socket.getnameinfo, sockaddr, flags)

    async def create_connection(
        self,
        protocol_factory: ProtocolFactory[ProtocolT],
        host: str | None = None,
        port: int | str | None = None,
        *,
        ssl: bool | SSLContext | None = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        local_addr: tuple[str, int] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        happy_eyeballs_delay: float | None = None,
        interleave: int | None = None,
        all_errors: bool = False,
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """Connect to host and port, or use the connected stream socket `sock`; return (transport, protocol).

        The addresses of the host are tried in the order the resolver gave, one at a time; with
        `happy_eyeballs_delay` (seconds; RFC 8305 recommends 0.25) they are raced. `interleave` is how many
        addresses of the first family come before the families alternate: 0 keeps the resolver's order; the
        default is 1 for a race and 0 otherwise.

        When no address connects, OSError: the only error, or one that lists them all ("Multiple exceptions:
        …"); an ExceptionGroup of them with `all_errors`.
        """
        if server_hostname is not None and not ssl:
            raise ValueError("server_hostname is only meaningful with ssl")
        if server_hostname is None and ssl:
            # An empty server_hostname is the caller's explicit way to skip the check; an empty host is a
            # mistake.
            if not host:
                raise ValueError("You must set server_hostname when using ssl without a host")
            server_hostname = host
        check_tls_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        check_plain_socket(sock)

        made_here = host is not None or port is not None
        if made_here:
            if sock is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            if interleave is None:
                interleave = 0 if happy_eyeballs_delay is None else 1
            hints: dict[str, Any] = {
                "family": family,
                "type": socket.SOCK_STREAM,
                "proto": proto,
                "flags": flags,
                "loop": self,
            }
            infos = await self._ensure_resolved((host, port), **hints)
            if not infos:
                raise OSError("getaddrinfo() returned empty list")
            local_infos = None
            if local_addr is not None:
                local_infos = await self._ensure_resolved(local_addr, **hints)
                if not local_infos:
                    raise OSError("getaddrinfo() returned empty list")
            if interleave:
                infos = interleave_families(infos, interleave)
            sock = await self._connect_first(infos, local_infos, happy_eyeballs_delay, all_errors)
        elif sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")

        transport, protocol = await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            close_sock=made_here,
        )
        if self._debug:
            logger.debug(
                "%r connected to %s:%r: (%r, %r)",
                transport.get_extra_info("socket"),
                host,
                port,
                transport,
                protocol,
            )
        return transport, protocol

    async def create_unix_connection(
        self,
        protocol_factory: ProtocolFactory[ProtocolT],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        ssl: bool | SSLContext | None = None,
        sock: socket.socket | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """Connect to the Unix stream socket at `path`, or use the connected `sock`.

        A path that starts with a null character names a socket in Linux's abstract namespace. With `ssl`,
        `server_hostname` must be given.
        """
        assert server_hostname is None or isinstance(server_hostname, str)
        if ssl and server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        if server_hostname is not None and not ssl:
            raise ValueError("server_hostname is only meaningful with ssl")
        check_tls_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)

        made_here = path is not None
        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            address = os.fspath(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
            try:
                sock.setblocking(False)
                await self.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
        elif sock is None:
            raise ValueError("no path and sock were specified")
        elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")

        return await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            close_sock=made_here,
        )

    async def start_tls(  # type: ignore[override]
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """Do a TLS handshake over a transport; return the transport that `protocol` uses from then on."""
        if ssl_module is None:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, ssl_module.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        stream: Any = transport

        waiter = self.create_future()
        tls_protocol: Any = self._make_tls_protocol(
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        app_transport = _app_transport(tls_protocol)
        # What the peer has sent already must not reach the TLS protocol before it knows its transport.
        stream.pause_reading()
        stream.set_protocol(tls_protocol)
        started = self.call_soon(tls_protocol.connection_made, stream)
        resumed = self.call_soon(stream.resume_reading)
        try:
            await waiter
        except BaseException:
            stream.close()
            started.cancel()
            resumed.cancel()
            raise
        return app_transport

    async def _create_connection_transport(
        self,
        sock: socket.socket,
        protocol_factory: ProtocolFactory[ProtocolT],
        ssl: bool | SSLContext | None,
        server_hostname: str | None,
        server_side: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        *,
        close_sock: bool = False,
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """Put a transport on a connected socket and wait for `connection_made` (with TLS: for the handshake).

        `close_sock` closes the socket when no transport could be made for it.
        """
        waiter = self.create_future()
        try:
            sock.setblocking(False)
            protocol = protocol_factory()
            if ssl:
                transport = self._make_ssl_transport(
                    sock,
                    protocol,
                    None if isinstance(ssl, bool) else ssl,
                    waiter,
                    server_side=server_side,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=ssl_handshake_timeout,
                    ssl_shutdown_timeout=ssl_shutdown_timeout,
                )
            else:
                transport = self._make_socket_transport(sock, protocol, waiter)
        except BaseException:
            if close_sock:
                sock.close()
            raise
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        finally:
            # A failed handshake's exception holds this frame, which would hold the exception through the
            # future.
            del waiter
        return transport, protocol

    async def _connect_sock(
        self,
        exceptions: list[list[OSError]],
        addr_info: AddressInfo,
        local_addr_infos: Sequence[AddressInfo] | None = None,
    ) -> socket.socket:
        """Make a socket, bind it to a local address if asked, connect it. Errors go to `exceptions` too."""
        errors: list[OSError] = []
        exceptions.append(errors)
        family, kind, proto, _, address = addr_info
        sock = None
        try:
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            if local_addr_infos is not None:
                self._bind_local(sock, family, local_addr_infos, errors)
            await self.sock_connect(sock, address)
            return sock
        except BaseException as exc:
            if sock is not None:
                sock.close()
            if isinstance(exc, OSError):
                errors.append(exc)
            raise
        finally:
            # The exceptions' tracebacks hold this frame: without this, frame and exceptions keep each other
            # alive.
            del errors, exceptions

    def _bind_local(
        self, sock: socket.socket, family: int, local_infos: Sequence[AddressInfo], errors: list[OSError]
    ) -> None:
        """Bind to the first local address that fits and allows it; raise the last error if none does."""
        failure = None
        try:
            for local_family, _, _, _, address in local_infos:
                if local_family != family:
                    continue
                if failure is not None:
                    errors.append(failure)
                try:
                    sock.bind(address)
                    return
                except OSError as exc:
                    failure = bind_error(exc, address)
            if failure is None:
                raise OSError(f"no matching local address with {family=} found")
            raise failure
        finally:
            del failure, errors

    async def _connect_first(
        self,
        infos: Sequence[AddressInfo],
        local_infos: Sequence[AddressInfo] | None,
        delay: float | None,
        all_errors: bool,
    ) -> socket.socket:
        """A socket connected to the first address that answers; raises when none does."""
        attempts: list[list[OSError]] = []
        try:
            if delay is not None:
                sock = await self._connect_race(attempts, infos, local_infos, delay)
                if sock is not None:
                    return sock
            else:
                for info in infos:
                    try:
                        return await self._connect_sock(attempts, info, local_infos)
                    except OSError:
                        continue
            raise _connect_error([error for attempt in attempts for error in attempt], all_errors)
        finally:
            # The errors' tracebacks hold the frames that hold this list.
            attempts.clear()

    async def _connect_race(
        self,
        attempts: list[list[OSError]],
        infos: Sequence[AddressInfo],
        local_infos: Sequence[AddressInfo] | None,
        delay: float,
    ) -> socket.socket | None:
        """The first socket to connect, None if every address failed.

        An attempt starts when the one before it has failed, or `delay` seconds after that one started.
        When this returns or raises, every other attempt has ended and its socket is closed.
        """
        winner: socket.socket | None = None

        async def attempt(info: AddressInfo) -> None:
            nonlocal winner
            try:
                sock = await self._connect_sock(attempts, info, local_infos)
            except OSError:
                return
            if winner is None:
                winner = sock
            else:
                sock.close()

        untried = list(reversed(infos))
        running: set[asyncio.Task[None]] = set()
        newest = None
        next_start = 0.0
        try:
            try:
                while winner is None and (untried or running):
                    if untried and (newest is None or newest.done() or self.time() >= next_start):
                        newest = self.create_task(attempt(untried.pop()))
                        running.add(newest)
                        next_start = self.time() + delay
                    ended, running = await asyncio.wait(
                        running,
                        timeout=max(next_start - self.time(), 0) if untried else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for task in ended:
                        task.result()  # anything but an OSError is not about this address: let it out
            finally:
                for task in running:
                    task.cancel()
                if running:
                    await asyncio.wait(running)
        except BaseException:
            if winner is not None:
                winner.close()
            raise
        return winner
