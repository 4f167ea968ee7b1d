# cython: nonecheck=True
"""TLS between a stream transport and an application protocol.

`TLSProtocol` is the protocol of the transport below: what that receives goes through OpenSSL (`tls_engine`)
to the application's protocol; what the application writes to its `TLSTransport` goes through OpenSSL to the
transport below, at once. That may be any asyncio transport: a socket's, a pipe's, another `TLSTransport`
(TLS in TLS).

What the application writes while it is being called is encrypted at once and sent when the call returns:
many writes, one packet. What the transport below has no room for is not encrypted but kept as it is.
"""

from __future__ import annotations

import asyncio
import collections
import ssl
from asyncio import constants
from asyncio.log import logger
from typing import Any

from unwait.loop.tls_engine import TLSEngine

# The states of a connection.
UNWRAPPED = 0  # not begun, or over
DO_HANDSHAKE = 1  # what the application writes waits in the backlog
WRAPPED = 2  # established
FLUSHING = 3  # closing: what was written goes out, what comes in is dropped
SHUTDOWN = 4  # our close_notify is sent, the peer's awaited
STATE_NAMES = ("UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING", "SHUTDOWN")

# The one state that may follow each, beside UNWRAPPED, which may follow any.
NEXT_STATE = {UNWRAPPED: DO_HANDSHAKE, DO_HANDSHAKE: WRAPPED, WRAPPED: FLUSHING, FLUSHING: SHUTDOWN}

# What the application protocol has been told: connection_made, perhaps eof_received, connection_lost.
APP_INIT = 0
APP_CONNECTED = 1
APP_EOF = 2
APP_LOST = 3

READ_HIGH_WATER = constants.FLOW_CONTROL_HIGH_WATER_SSL_READ * 1024
WRITE_HIGH_WATER = constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE * 1024
NOISY_WRITES = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
ANY_SIZE = 1 << 30


def flow_control_limits(high: int | None, low: int | None, default_high: int) -> tuple[int, int]:
    """Complete a pair of watermarks, in bytes: where one is missing, high is four times low.

    Raises ValueError unless high >= low >= 0.
    """
    if high is None:
        high = default_high if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


def positive_timeout(name: str, value: float | None, default: float) -> float:
    """A timeout in seconds, or the default for None. Raises ValueError unless it is positive."""
    if value is None:
        return default
    if value <= 0:
        raise ValueError(f"{name} should be a positive number, got {value}")
    return value


def default_context(server_side: bool, server_hostname: str | None) -> ssl.SSLContext:
    """A client's context when it only says `ssl=True`; without a host name none is checked.

    Raises ValueError for a server, which needs a certificate.
    """
    if server_side:
        raise ValueError("Server side SSL needs a valid SSLContext")
    context = ssl.create_default_context()
    if not server_hostname:
        context.check_hostname = False
    return context


class TLSProtocol:
    """One TLS connection. `app_transport` is the application's transport, None once the connection is lost.

    loop: any asyncio loop. sslcontext: None for a client's default. waiter: None, or a future that is done
    when the handshake is, or fails as it does. call_connection_made: False where the application protocol has
    had that call (`start_tls`). The timeouts, in seconds, are 60 for the handshake, 30 for the shutdown.

    Raises ValueError for timeouts that are not positive and for a server without a context, and what
    `SSLContext.wrap_bio` raises.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app_protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None,
        server_side: bool = False,
        server_hostname: str | None = None,
        call_connection_made: bool = True,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        # Imported here because its C types are built on this module's.
        from unwait.loop.tls_transport import TLSTransport

        self._handshake_timeout = positive_timeout(
            "ssl_handshake_timeout", ssl_handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT
        )
        self._shutdown_timeout = positive_timeout(
            "ssl_shutdown_timeout", ssl_shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT
        )
        self._sslcontext = sslcontext or default_context(server_side, server_hostname)
        self._engine = TLSEngine(
            self._sslcontext, server_side, server_hostname if server_hostname and not server_side else None
        )
        self._peercert: Any = None
        self._cipher: Any = None
        self._compression: Any = None
        self._loop = loop
        self._waiter = waiter
        self._transport: Any = None
        self._raw_write: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._handshake_started = 0.0
        self._state = UNWRAPPED
        self._app_state = APP_INIT if call_connection_made else APP_CONNECTED
        self._established = False
        self._eof_received = False
        self._in_app = False
        self._writes_after_close = 0

        self._app_reading_paused = False
        self._app_writing_paused = False
        self._raw_reading_paused = False
        self._raw_writing_paused = False
        self._backlog: collections.deque[bytes | memoryview] | None = None
        self._backlog_size = 0
        self._read_high, self._read_low = flow_control_limits(None, None, READ_HIGH_WATER)
        self._write_high, self._write_low = flow_control_limits(None, None, WRITE_HIGH_WATER)
        self.set_app_protocol(app_protocol)
        self.app_transport: Any = TLSTransport(loop, self)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # A compiled class cannot inherit it; transports ask isinstance() how to deliver.
        return asyncio.Protocol

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {STATE_NAMES[self._state]} {self.app_protocol!r}>"

    def _set_state(self, new_state: int) -> None:
        if new_state != UNWRAPPED and NEXT_STATE.get(self._state) != new_state:
            names = STATE_NAMES[self._state], STATE_NAMES[new_state]
            raise RuntimeError(f"cannot switch state from {names[0]} to {names[1]}")
        self._state = new_state

    def set_app_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.app_protocol: Any = protocol
        self._app_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_extra_info(self, name: str, default: Any) -> Any:
        if name == "sslcontext":
            return self._sslcontext
        if self._established:
            if name == "ssl_object":
                return self._engine.sslobj
            if name == "peercert":
                return self._peercert
            if name == "cipher":
                return self._cipher
            if name == "compression":
                return self._compression
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    # What the transport below calls

    def connection_made(self, transport: Any) -> None:
        if self._app_state == APP_LOST:
            return
        self._transport = transport
        self._raw_write = transport.write
        if self.app_transport.is_closing():
            self._force_close_raw(None)
            return
        if self._loop.get_debug():
            logger.debug("%r starts SSL handshake", self)
            self._handshake_started = self._loop.time()
        self._set_state(DO_HANDSHAKE)
        self._timer = self._loop.call_later(self._handshake_timeout, self._on_handshake_timeout)
        self._do_handshake()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._app_state == APP_LOST:
            return
        app_protocol = self.app_protocol
        was_connected = self._app_state != APP_INIT and self._state != DO_HANDSHAKE
        self.app_transport._closed = True
        self._app_state = APP_LOST
        self._set_state(UNWRAPPED)
        self._writes_after_close += 1
        self._backlog = None
        self._backlog_size = 0
        self._engine.take()
        self._cancel_timer()
        # All that leads back here ends, so that nothing of it waits for the garbage collector.
        self._transport = None
        self._raw_write = None
        self.app_transport = None
        self.app_protocol = None
        if exc is None:
            self._wake_waiter(ConnectionAbortedError("connection closed during the SSL handshake"))
        else:
            self._wake_waiter(exc)
        if was_connected:
            app_protocol.connection_lost(exc)

    def data_received(self, data: Any) -> None:
        state = self._state
        if state == UNWRAPPED:
            return
        self._engine.feed(data)
        if state == WRAPPED:
            if self._app_reading_paused:
                self._control_raw_reading()
            else:
                self._read(len(data))
        elif state == DO_HANDSHAKE:
            self._do_handshake()
        elif state == FLUSHING:
            self._do_flush()
        else:
            self._do_shutdown()

    def eof_received(self) -> bool:
        """True while there is something to deliver or to send before the transport below may close."""
        self._eof_received = True
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        if self._state == DO_HANDSHAKE:
            self._on_handshake_complete(ConnectionResetError("connection closed during the SSL handshake"))
        elif self._state == WRAPPED:
            self._read_on()
        elif self._state == FLUSHING:
            self._do_flush()
        elif self._state == SHUTDOWN:
            self._do_shutdown()
        return self._state in (WRAPPED, FLUSHING)

    def pause_writing(self) -> None:
        self._raw_writing_paused = True

    def resume_writing(self) -> None:
        self._raw_writing_paused = False
        if self._state == FLUSHING:
            self._do_flush()
            return
        try:
            self._flush()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")

    # Handshake

    def _do_handshake(self) -> None:
        try:
            done = self._engine.handshake()
        except Exception as exc:
            self._on_handshake_complete(exc)
            return
        if done:
            self._on_handshake_complete(None)
        else:
            self._send()

    def _on_handshake_timeout(self) -> None:
        self._timer = None
        if self._state == DO_HANDSHAKE:
            message = f"SSL handshake is taking longer than {self._handshake_timeout} seconds"
            exc = ConnectionAbortedError(f"{message}: aborting the connection")
            self._fatal_error(exc, "Fatal error on transport")

    def _on_handshake_complete(self, exc: BaseException | None) -> None:
        self._cancel_timer()
        sslobj = self._engine.sslobj
        if exc is None:
            try:
                self._peercert = sslobj.getpeercert()
            except Exception as error:
                exc = error
        if exc is not None:
            self._set_state(UNWRAPPED)
            message = "SSL handshake failed"
            if isinstance(exc, ssl.CertificateError):
                message = "SSL handshake failed on verifying the certificate"
            self._fatal_error(exc, message)
            self._wake_waiter(exc)
            return

        self._set_state(WRAPPED)
        if self._loop.get_debug():
            took = (self._loop.time() - self._handshake_started) * 1e3
            logger.debug("%r: SSL handshake took %.1f ms", self, took)
        self._cipher = sslobj.cipher()
        self._compression = sslobj.compression()
        self._established = True
        if self._app_state == APP_INIT:
            self._app_state = APP_CONNECTED
            self._in_app = True
            try:
                self.app_protocol.connection_made(self.app_transport)
            finally:
                self._in_app = False
                self._send()
        self._wake_waiter(None)
        self._flush()
        self._read_on()

    def _wake_waiter(self, exc: BaseException | None) -> None:
        waiter = self._waiter
        self._waiter = None
        if waiter is None or waiter.done():
            return
        if exc is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(exc)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Reading

    def _read(self, expected: int) -> None:
        """Decrypt what has come and deliver it. expected: as `TLSEngine.decrypt` has it."""
        try:
            self._in_app = True
            try:
                if self._app_buffered:
                    self._fill_buffers()
                else:
                    data = self._engine.decrypt(expected)
                    if data is not None:
                        self.app_protocol.data_received(data)
                if self._engine.peer_closed:
                    self._on_peer_closed()
            finally:
                self._in_app = False
                self._flush()
            if self._raw_reading_paused:
                self._control_raw_reading()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")

    def _fill_buffers(self) -> None:
        engine = self._engine
        while self._app_buffered:
            buffer = self.app_protocol.get_buffer(engine.received())
            size = len(buffer)
            if size == 0:
                raise RuntimeError("get_buffer() returned an empty buffer")
            filled = engine.decrypt_into(buffer, size)
            if filled:
                self.app_protocol.buffer_updated(filled)
            if filled < size or self._app_reading_paused or self._state != WRAPPED:
                return
        # The application has changed to a protocol without buffers, half way.
        data = engine.decrypt(ANY_SIZE)
        if data is not None:
            self.app_protocol.data_received(data)

    def _read_on(self) -> None:
        """Deliver what has come in unasked, and the end of it if that has come."""
        if self._state == WRAPPED and not self._app_reading_paused:
            if self._engine.readable():
                self._read(ANY_SIZE)
            if self._eof_received and not self._app_reading_paused:
                self._on_peer_closed()

    def _on_peer_closed(self) -> None:
        if self._state == WRAPPED:
            self._call_eof_received()
            self.start_shutdown()

    def _call_eof_received(self) -> None:
        if self._app_state != APP_CONNECTED:
            return
        self._app_state = APP_EOF
        try:
            if self.app_protocol.eof_received():
                logger.warning("returning true from eof_received() has no effect when using ssl")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Error calling eof_received()")

    def pause_app_reading(self) -> None:
        self._app_reading_paused = True

    def resume_app_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            self._loop.call_soon(self._read_on)

    def read_buffer_size(self) -> int:
        return self._engine.received()

    def set_read_limits(self, high: int | None, low: int | None) -> None:
        self._read_high, self._read_low = flow_control_limits(high, low, READ_HIGH_WATER)
        self._control_raw_reading()

    def _control_raw_reading(self) -> None:
        if self._transport is None:
            return
        size = self._engine.received()
        if self._raw_reading_paused:
            if size <= self._read_low:
                self._raw_reading_paused = False
                self._transport.resume_reading()
        elif size > self._read_high:
            self._raw_reading_paused = True
            self._transport.pause_reading()

    # Writing

    def write(self, data: Any) -> None:
        size = len(data)
        if size == 0:
            return
        state = self._state
        if state != WRAPPED and state != DO_HANDSHAKE:
            if self._writes_after_close >= NOISY_WRITES:
                logger.warning("SSL connection is closed")
            self._writes_after_close += 1
            return
        if state == DO_HANDSHAKE or self._backlog_size or self._raw_writing_paused:
            self.append_backlog(data)
        else:
            try:
                done = self._encrypt(data, size)
                if done < size:
                    self.append_backlog(memoryview(data)[done:])
                if not self._in_app or self._engine.full():
                    self._send()
            except Exception as exc:
                self._fatal_error(exc, "Fatal error on SSL protocol")
                return
        if self._raw_writing_paused or self._app_writing_paused or self._backlog_size:
            self._control_app_writing()

    def append_backlog(self, data: Any) -> None:
        if type(data) is not bytes and (type(data) is not memoryview or type(data.obj) is not bytes):
            # Its owner may change it as soon as it is written.
            data = bytes(data)
        if self._backlog is None:
            self._backlog = collections.deque()
        self._backlog.append(data)
        self._backlog_size += len(data)

    def _encrypt(self, data: Any, size: int) -> int:
        """Encrypt as much of `data` as the transport below and the peer allow; returns how much."""
        engine = self._engine
        done = engine.encrypt(data, 0, size)
        while done < size and not engine.waits_for_peer:
            self._send()
            if self._raw_writing_paused:
                break
            done = engine.encrypt(data, done, size)
        return done

    def _encrypt_backlog(self) -> None:
        backlog = self._backlog
        self._send()
        while backlog and not self._raw_writing_paused:
            data = backlog[0]
            size = len(data)
            done = self._encrypt(data, size)
            self._backlog_size -= done
            if done < size:
                backlog[0] = memoryview(data)[done:]
                return
            backlog.popleft()

    def _send(self) -> None:
        if not self._raw_writing_paused and self._engine.unsent() and self._transport is not None:
            self._raw_write(self._engine.take())

    def _flush(self) -> None:
        """Send all that may go, and tell the application whether it may write."""
        if self._backlog_size and self._state != DO_HANDSHAKE:
            self._encrypt_backlog()
        self._send()
        if self._raw_writing_paused or self._app_writing_paused:
            self._control_app_writing()

    def write_buffer_size(self) -> int:
        size = self._backlog_size + self._engine.unsent()
        return size if self._transport is None else size + self._transport.get_write_buffer_size()

    def set_write_limits(self, high: int | None, low: int | None) -> None:
        self._write_high, self._write_low = flow_control_limits(high, low, WRITE_HIGH_WATER)
        if self._transport is not None and (high is not None or low is not None):
            self._transport.set_write_buffer_limits(high, low)
        self._control_app_writing()

    def _control_app_writing(self) -> None:
        if self._state == DO_HANDSHAKE or self._app_state not in (APP_CONNECTED, APP_EOF):
            return
        # What is below counts only while it is too much there: below that its going is not announced.
        size = self.write_buffer_size() if self._raw_writing_paused else self._backlog_size
        if self._app_writing_paused:
            if size > self._write_low:
                return
            name = "resume_writing"
        else:
            if size <= self._write_high:
                return
            name = "pause_writing"
        self._app_writing_paused = not self._app_writing_paused
        try:
            getattr(self.app_protocol, name)()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": exc,
                    "transport": self.app_transport,
                    "protocol": self,
                }
            )

    # Closing

    def start_shutdown(self) -> None:
        if self._state == DO_HANDSHAKE:
            self.abort(None)
        elif self._state == WRAPPED:
            self.app_transport._closed = True
            self._set_state(FLUSHING)
            self._timer = self._loop.call_later(self._shutdown_timeout, self._on_shutdown_timeout)
            if self._raw_reading_paused:
                # The peer's close_notify comes behind what the application did not want to read.
                self._raw_reading_paused = False
                self._transport.resume_reading()
            self._do_flush()

    def _on_shutdown_timeout(self) -> None:
        self._timer = None
        if self._state in (FLUSHING, SHUTDOWN):
            self._force_close_raw(TimeoutError("SSL shutdown timed out"))

    def _do_flush(self) -> None:
        try:
            if not self._eof_received:
                self._engine.discard()
            self._flush()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")
            return
        if self._state == FLUSHING and not self._backlog_size and not self._engine.unsent():
            self._set_state(SHUTDOWN)
            self._do_shutdown()

    def _do_shutdown(self) -> None:
        done = True
        if not self._eof_received:
            try:
                self._engine.discard()
                done = self._engine.shutdown()
            except ssl.SSLError as exc:
                self._cancel_timer()
                self._fatal_error(exc, "Fatal error on transport")
                return
        # A few bytes, which need not wait for room.
        self._raw_writing_paused = False
        self._send()
        if done:
            self._cancel_timer()
            self._call_eof_received()
            if self._transport is not None:
                self._loop.call_soon(self._transport.close)

    def abort(self, exc: BaseException | None) -> None:
        if self._in_app:
            # Written before in the same call; outside of one it would have been sent already.
            self._send()
        self._set_state(UNWRAPPED)
        self._force_close_raw(exc)

    def _force_close_raw(self, exc: BaseException | None) -> None:
        transport = self._transport
        if transport is None:
            return
        force_close = getattr(transport, "_force_close", None)
        if force_close is None:
            transport.abort()
        else:
            force_close(exc)

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        transport = self._transport
        # The alert that tells the peer why, if OpenSSL has made one.
        self._send()
        if self._state != DO_HANDSHAKE:
            self._set_state(UNWRAPPED)
        if self.app_transport is not None:
            self.app_transport._closed = True
        self._force_close_raw(exc)
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        elif not isinstance(exc, asyncio.CancelledError):
            self._loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": transport, "protocol": self}
            )
