# cython: nonecheck=True
"""What the application sees of a TLS connection: an `asyncio.Transport`, plain text in, plain text out.

It has no logic of its own; `tls.TLSProtocol` does the work.
"""

from __future__ import annotations

import asyncio
import warnings
from asyncio import constants
from asyncio.transports import _FlowControlMixin
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unwait.loop.tls import TLSProtocol


class SSLTransport(_FlowControlMixin, asyncio.Transport):
    """What a `TLSTransport` passes for: an `asyncio.Transport` that asyncio's sendfile fallback accepts.

    A compiled class cannot inherit asyncio's transports; it names this one as its `__class__` instead.
    """


class TLSTransport:
    """The application's transport over a `TLSProtocol`."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: TLSProtocol) -> None:
        self._loop = loop
        self._ssl_protocol = protocol
        self._closed = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return SSLTransport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else 'open'} {self._ssl_protocol!r}>"

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sslcontext`; after a handshake `ssl_object`, `peercert`, `cipher`, `compression`; or as below."""
        return self._ssl_protocol.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Send all calls to `protocol` from now on, also in the middle of one."""
        self._ssl_protocol.set_app_protocol(protocol)

    def get_protocol(self) -> Any:
        """The protocol that receives this transport's calls; None once the connection is lost."""
        return self._ssl_protocol.app_protocol

    def is_closing(self) -> bool:
        """Whether the transport is closed or on its way there."""
        return self._closed

    def close(self) -> None:
        """Send what is buffered, exchange close_notify with the peer, then close what is below."""
        if not self._closed:
            self._closed = True
            self._ssl_protocol.start_shutdown()

    def abort(self) -> None:
        """Close at once; what was not yet sent is lost."""
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        self._closed = True
        self._ssl_protocol.abort(exc)

    def is_reading(self) -> bool:
        """Whether data is delivered as it arrives."""
        return not self._ssl_protocol._app_reading_paused

    def pause_reading(self) -> None:
        """Deliver no data until `resume_reading`; above the high watermark receive none either."""
        self._ssl_protocol.pause_app_reading()

    def resume_reading(self) -> None:
        """Deliver data again, what has come in meanwhile first; no effect if not paused."""
        self._ssl_protocol.resume_app_reading()

    def set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many received bytes may wait while reading is paused: 256 KiB, and 64 KiB to receive again.

        Raises ValueError unless high >= low >= 0.
        """
        self._ssl_protocol.set_read_limits(high, low)

    def get_read_buffer_limits(self) -> tuple[int, int]:
        """The read buffer's watermarks `(low, high)`, in bytes."""
        return self._ssl_protocol._read_low, self._ssl_protocol._read_high

    def get_read_buffer_size(self) -> int:
        """Bytes received and not yet decrypted."""
        return self._ssl_protocol.read_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Pause the protocol above `high` bytes (512 KiB), resume it at `low` (a quarter of `high`).

        Limits that are given are set below as well, where most of what is not yet sent waits.
        Raises ValueError unless high >= low >= 0.
        """
        self._ssl_protocol.set_write_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The watermarks `(low, high)`, in bytes."""
        return self._ssl_protocol._write_low, self._ssl_protocol._write_high

    def get_write_buffer_size(self) -> int:
        """Bytes written and not yet sent: to be encrypted, encrypted, and kept by the transport below."""
        return self._ssl_protocol.write_buffer_size()

    @property
    def _protocol_paused(self) -> bool:
        return self._ssl_protocol._app_writing_paused

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send `data`; what cannot go now is kept and sent later, in order. Never waits.

        Raises TypeError for anything but bytes, bytearray and memoryview.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
        if isinstance(data, memoryview) and (data.itemsize != 1 or data.ndim != 1 or not data.c_contiguous):
            data = data.tobytes()
        self._ssl_protocol.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several buffers as if they were one."""
        self._ssl_protocol.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """False: there is no half-closed state in TLS that peers agree on."""
        return False

    def write_eof(self) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def _test__append_write_backlog(self, data: bytes) -> None:
        # The name by which CPython's TLS tests, which run on this class too, fill the backlog.
        self._ssl_protocol.append_backlog(data)
