import asyncio
from typing import Any

from unwait.loop.core import Core
from unwait.loop.transport import StreamTransport

class PipeTransport(StreamTransport):
    def _open(
        self, loop: Core, pipe: Any, protocol: asyncio.BaseProtocol, extra: dict[str, Any] | None
    ) -> int: ...

class ReadPipeTransport(PipeTransport):
    def __init__(
        self,
        loop: Core,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None: ...

class WritePipeTransport(PipeTransport):
    def __init__(
        self,
        loop: Core,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None: ...
    def _begin_watching(self, waiter: asyncio.Future[None] | None) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
