"""A process in which a run writes its SQLite store, and looks things up in it.

SQLite's calls are short and many, and each gives up the interpreter's lock: where the loop is busy, a thread waits at
every one of them for its turn, and so does the loop for the thread. Here they are made beside it, one after the other.
The process has the lock of the run as well, so that nobody else writes while it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from unwait.documents.sqlite_connections import ReadConnections, Touch, WriteConnection
from unwait.flow.coprocess import Coprocess


class StoreProcess:
    """What a run asks of it; to be started with `start`, and ended with `aclose`."""

    def __init__(self, process: Coprocess) -> None:
        self._process = process

    @classmethod
    async def start(cls, path: str, lock: int) -> Self:
        """Begin one, which holds the lock of this descriptor too. Raises OSError and CoprocessEnded."""
        process = await Coprocess.start(inherited=[lock])
        try:
            await process.call(_open, path)
        except BaseException:
            await process.kill()
            raise
        return cls(process)

    async def read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work(connection, *arguments)` returns; raises StoreError and CoprocessEnded, as do the others."""
        return await self._process.call(_read, work, arguments)

    async def write(
        self, touches: Sequence[Touch], work: Callable[..., Any], *arguments: Any, much: bool = False
    ) -> Any:
        """The same in a transaction, with the touches; of `much` the bytes are made in a thread."""
        return await self._process.call(_write, touches, work, arguments, much=much)

    async def write_many(self, touches: Sequence[Touch], work: Callable[..., Any], *arguments: Any) -> Any:
        """The same, in transactions that `work` makes."""
        return await self._process.call(_write_many, touches, work, arguments)

    async def aclose(self) -> None:
        """Let it finish what it was asked, and end."""
        await self._process.aclose()


# In the process.

_readers: ReadConnections
_writer: WriteConnection


def _open(path: str) -> None:
    global _readers, _writer
    _readers, _writer = ReadConnections(path), WriteConnection(path)


def _read(work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return _readers.read(work, *arguments)


def _write(touches: Sequence[Touch], work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return _writer.write(touches, work, *arguments)


def _write_many(touches: Sequence[Touch], work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return _writer.write_many(touches, work, *arguments)
