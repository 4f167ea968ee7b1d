"""Who uses the SQLite store's file: one thread that writes, a few that read, and the order in which they end.

SQLite waits for the disk and for other processes, so nothing of it is called in the loop's thread. A connection that is
closed while another thread uses it takes the interpreter with it: all are closed by the thread that writes, once the
threads that read have ended and after all that was asked before.

A long run may have a process that does what the threads do; see unwait.documents.sqlite_process. It comes when there
is much to do, which the threads go on with until then, and again if it dies.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from unwait.documents.sqlite_connections import ReadConnections, Touch, WriteConnection, failed
from unwait.documents.sqlite_schema import prepare
from unwait.documents.store import StoreBusy, StoreError
from unwait.flow.coprocess import CoprocessEnded

if TYPE_CHECKING:
    from unwait.documents.sqlite_process import StoreProcess
    from unwait.flow.journal_file import WriterLock

READERS = 4
MOST_TOUCHES = 256
MANY = 64  # reads and writes of a run after which a process is worth its start, which takes 0.2 s
LOCK_WAIT = 10.0  # s for the process of a run that was killed to be gone as well
Result = TypeVar("Result")


class Files:
    """The open file, its connections, threads and process. All methods but those with an underscore are the loop's.

    What is to be done is a function and its arguments; the first is a connection. Where a `process` may do it, the
    function must be one of a module.
    """

    def __init__(self, path: str, *, process: bool = False) -> None:
        self.path = path
        self._write_connection = WriteConnection(path)
        self._read_connections = ReadConnections(path)
        self._writer = ThreadPoolExecutor(1, "unwait-store-writer")
        self._readers = ThreadPoolExecutor(READERS, "unwait-store-reader")
        self._may_start = process
        self._starting: asyncio.Task[None] | None = None
        self._process: StoreProcess | None = None
        self._asked = 0
        self._doing: set[asyncio.Future[Any]] = set()  # with touches
        self._lock: WriterLock | None = None
        self._closing = False
        # Documents seen unchanged, and not committed yet.
        self._touches: deque[Touch] = deque()
        self._touched: dict[str, int] = {}

    async def open(self) -> None:
        """Make the file if there is none. Raises StoreError."""
        try:
            await self._run(self._writer, self._opening)
        except BaseException:
            await self.close()
            raise

    async def write(self, work: Callable[..., Result], *arguments: Any, much: bool = False) -> Result:
        """What `work` returns, in a transaction of its own; touches that wait go along. Raises StoreError.

        `much` says that the arguments are not to be made bytes of within the loop's thread.
        """
        return await self._writing("write", work, arguments, much)

    async def write_many(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """What `work` returns, which makes its transactions itself, after the touches that wait."""
        return await self._writing("write_many", work, arguments)

    async def read(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """What `work` returns, which sees one state of the file. Raises StoreError."""
        self._refuse_closed()
        self._count()
        if self._process is not None:
            with suppress(CoprocessEnded):
                found: Result = await self._process.read(work, *arguments)
                return found
        return await self.search(work, *arguments)

    async def search(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The same, always in a thread of this process."""
        return await self._run(self._readers, self._read_connections.read, work, *arguments)

    async def touch(self, uri: str, origin: str, run: int) -> None:
        """Note it for the next transaction."""
        self._refuse_closed()
        self._touches.append((uri, origin, run))
        self._touched[uri] = run
        if len(self._touches) >= MOST_TOUCHES:
            await self.flush()

    async def flush(self) -> None:
        """Commit the touches that wait."""
        if self._touches:
            await self.write(_nothing)

    def touched(self, uri: str) -> int | None:
        """The run of a touch that waits."""
        return self._touched.get(uri)

    async def lock(self) -> None:
        """Take the right to write, until the end. Raises StoreBusy."""
        await self._run(self._writer, self._locking)

    async def close(self) -> None:
        """End all that was begun, commit what waits, close. Not to be interrupted. Raises StoreError."""
        if self._closing:
            return
        self._closing = True
        end = asyncio.ensure_future(self._end())
        cancelled = None
        while not end.done():
            try:
                await asyncio.wait([end])
            except asyncio.CancelledError as error:
                cancelled = error
        self._writer.shutdown()
        if cancelled is not None:
            end.exception()
            raise cancelled
        end.result()

    def _refuse_closed(self) -> None:
        if self._closing:
            raise StoreError(f"the store {self.path} is closed")

    async def _run(
        self, threads: ThreadPoolExecutor, function: Callable[..., Result], *arguments: object
    ) -> Result:
        self._refuse_closed()
        return await asyncio.get_running_loop().run_in_executor(
            threads, _leaving_nothing, function, *arguments
        )

    async def _writing(
        self, method: str, work: Callable[..., Result], arguments: tuple[Any, ...], much: bool = False
    ) -> Result:
        self._refuse_closed()
        self._count()
        touches = list(self._touches)
        if not touches:
            return await self._do(method, (), work, arguments, much)
        self._touches.clear()
        # To the end, whoever is cancelled meanwhile: they may be those of others.
        doing = asyncio.ensure_future(self._do(method, touches, work, arguments, much))
        self._doing.add(doing)
        doing.add_done_callback(lambda done: self._settle(done, touches))
        return await asyncio.shield(doing)

    def _count(self) -> None:
        if self._may_start and self._lock is not None:
            self._asked += 1
            if self._asked == MANY:
                self._starting = asyncio.create_task(self._start(self._lock))

    async def _do(
        self,
        method: str,
        touches: Sequence[Touch],
        work: Callable[..., Result],
        arguments: tuple[Any, ...],
        much: bool,
    ) -> Result:
        if self._process is not None:
            # What it has not answered when it dies is done again: each is whole or nothing, and may be done twice.
            with suppress(CoprocessEnded):
                found: Result
                if method == "write":
                    found = await self._process.write(touches, work, *arguments, much=much)
                else:
                    found = await self._process.write_many(touches, work, *arguments)
                return found
        write = self._write_connection.write if method == "write" else self._write_connection.write_many
        return await self._run(self._writer, write, touches, work, *arguments)

    def _settle(self, done: asyncio.Future[Any], touches: list[Touch]) -> None:
        self._doing.discard(done)
        if done.cancelled() or done.exception() is not None:
            self._touches.extendleft(reversed(touches))
            return
        for uri, _, run in touches:
            if self._touched.get(uri) == run:
                del self._touched[uri]

    async def _start(self, lock: WriterLock) -> None:
        from unwait.documents.sqlite_process import StoreProcess

        # Where there can be none, the threads go on.
        with suppress(OSError, CoprocessEnded):
            self._process = await StoreProcess.start(self.path, lock.fileno())

    def _opening(self) -> None:
        try:
            prepare(self.path)
        except (OSError, sqlite3.Error) as error:
            raise failed("open", self.path, error) from error

    def _locking(self) -> None:
        if self._lock is not None:
            return
        from unwait.flow.journal import JournalBusy
        from unwait.flow.journal_file import WriterLock

        deadline = time.monotonic() + LOCK_WAIT
        while self._lock is None:
            try:
                self._lock = WriterLock(self.path)
            except JournalBusy:
                pid = ""
                with suppress(OSError), open(f"{os.path.realpath(self.path)}-lock", encoding="ascii") as file:
                    pid = file.read(20)
                if _alive(pid) or time.monotonic() > deadline:
                    raise StoreBusy(
                        f"the store {self.path} is being written by another run{pid and f' (pid {pid})'}: wait for "
                        "its end, or give each run a store of its own"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                raise failed("write", self.path, error) from error

    async def _end(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._process is not None:
            await self._process.aclose()
        if self._doing:
            await asyncio.wait(self._doing)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._shut)

    def _shut(self) -> None:
        self._readers.shutdown()
        try:
            if self._touches:
                self._write_connection.write(self._touches, _nothing)
        finally:
            self._read_connections.close()
            self._write_connection.close()
            if self._lock is not None:
                self._lock.release()


def _leaving_nothing(function: Callable[..., Result], *arguments: object) -> Result:
    """What the function returns; an error takes no cursor along, which touches its connection where it is freed."""
    try:
        return function(*arguments)
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


def _nothing(_: sqlite3.Connection) -> None:
    """For the touches alone."""


def _alive(pid: str) -> bool:
    """Whether there is such a process. What holds the lock of one that was killed is its own, and about to end."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (ValueError, PermissionError):
        return True
    return True
