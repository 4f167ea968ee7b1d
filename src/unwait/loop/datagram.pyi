import asyncio
from socket import _Address, socket
from typing import Any, Final

from unwait.loop.core import Core
from unwait.loop.transport import FlowControlled

DATAGRAM_SIZE: Final[int]
READS_PER_EVENT: Final[int]
HEADER_SIZE: Final[int]

class Facade(asyncio.Transport, asyncio.DatagramTransport): ...

class DatagramTransport(FlowControlled, asyncio.DatagramTransport):
    def __init__(
        self,
        loop: Core,
        sock: socket,
        protocol: asyncio.DatagramProtocol,
        address: _Address | None = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None: ...
    def _begin(self, waiter: asyncio.Future[None] | None) -> None: ...
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def sendto(self, data: bytes | bytearray | memoryview[Any], addr: _Address | None = None) -> None: ...
    def close(self) -> None: ...
    def _call_connection_lost(self, exc: BaseException | None) -> None: ...
