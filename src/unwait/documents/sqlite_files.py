"""Who uses the SQLite store's file: one thread that writes, a few that read, and the order in which they end.

SQLite waits for the disk and for other processes, so nothing of it is called in the loop's thread. A connection that is
closed while another thread uses it takes the interpreter with it: all are closed by the thread that writes, once the
threads that read have ended and after all that was asked before.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from unwait.documents.sqlite_schema import (
    BUSY_SECONDS,
    log_size,
    open_to_read,
    open_to_write,
    prepare,
    stored,
    transaction,
)
from unwait.documents.store import StoreBusy, StoreError

if TYPE_CHECKING:
    from unwait.flow.journal_file import WriterLock

READERS = 4
MOST_TOUCHES = 256
MOST_LOG = 64 << 20  # bytes, and as many more for each time that somebody reads for too long
LOG_WAIT_MS = 250
Result = TypeVar("Result")


class Files:
    """The open file, its connections and threads. All methods but those with an underscore belong to the loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer = ThreadPoolExecutor(1, "unwait-store-writer")
        self._readers = ThreadPoolExecutor(READERS, "unwait-store-reader")
        self._write_connection: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        self._most_log = MOST_LOG
        self._lock: WriterLock | None = None
        self._closing = False
        # Documents seen unchanged, and not committed yet: uri, origin, run.
        self._touches: deque[tuple[str, str, int]] = deque()
        self._touched: dict[str, int] = {}
        self._touching = threading.Lock()

    async def open(self) -> None:
        """Make the file if there is none. Raises StoreError."""
        try:
            await self._run(self._writer, self._opening)
        except BaseException:
            await self.close()
            raise

    async def write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `work` returns, in a transaction of its own; touches that wait go along. Raises StoreError."""
        return await self._run(self._writer, self._writing, work)

    async def write_many(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `work` returns, which makes its transactions itself, after the touches that wait."""
        return await self._run(self._writer, self._writing_many, work)

    async def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `work` returns, which sees one state of the file. Raises StoreError."""
        return await self._run(self._readers, self._reading, work)

    async def touch(self, uri: str, origin: str, run: int) -> None:
        """Note it for the next transaction."""
        self._refuse_closed()
        with self._touching:
            self._touches.append((uri, origin, run))
            self._touched[uri] = run
        if len(self._touches) >= MOST_TOUCHES:
            await self.flush()

    async def flush(self) -> None:
        """Commit the touches that wait."""
        if self._touches:
            await self.write(lambda _: None)

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
        end = asyncio.get_running_loop().run_in_executor(self._writer, self._shut)
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

    def _failed(self, doing: str, error: Exception) -> StoreError:
        cause = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return StoreError(f"cannot {doing} the store {self.path}: {cause}")

    def _opening(self) -> None:
        try:
            prepare(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error

    def _writing(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            if self._write_connection is None:
                self._write_connection = open_to_write(self.path)
            touches = self._take_touches()
            try:
                with transaction(self._write_connection):
                    if touches:
                        _touch(self._write_connection, touches)
                    result = work(self._write_connection)
            except BaseException:
                with self._touching:
                    self._touches.extendleft(reversed(touches))
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._failed("write", error) from error
        with self._touching:
            for uri, _, run in touches:
                if self._touched.get(uri) == run:
                    del self._touched[uri]
        self._bound_log(self._write_connection)
        return result

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Begin the log anew where it is long: by itself SQLite does so only in a moment when nobody reads."""
        size = log_size(self.path)
        if size <= self._most_log:
            return
        # What was to be written is; a full disk, or a file that somebody else waits for, is the next one's.
        with suppress(sqlite3.OperationalError):
            connection.execute(f"PRAGMA busy_timeout = {LOG_WAIT_MS}")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        self._most_log = MOST_LOG + log_size(self.path)

    def _writing_many(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        self._writing(lambda _: None)
        assert self._write_connection is not None
        try:
            return work(self._write_connection)
        except sqlite3.Error as error:
            raise self._failed("write", error) from error

    def _take_touches(self) -> list[tuple[str, str, int]]:
        with self._touching:
            touches = list(self._touches)
            self._touches.clear()
        return touches

    def _reading(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = open_to_read(self.path)
            try:
                connection.execute("BEGIN")
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
                self._idle.append(connection)
        except (OSError, sqlite3.Error) as error:
            raise self._failed("read", error) from error

    def _locking(self) -> None:
        if self._lock is not None:
            return
        from unwait.flow.journal import JournalBusy
        from unwait.flow.journal_file import WriterLock

        try:
            self._lock = WriterLock(self.path)
        except JournalBusy:
            pid = ""
            with suppress(OSError), open(f"{os.path.realpath(self.path)}-lock", encoding="ascii") as file:
                pid = file.read(20)
            raise StoreBusy(
                f"the store {self.path} is being written by another run{pid and f' (pid {pid})'}: wait for its end, "
                "or give each run a store of its own"
            ) from None
        except OSError as error:
            raise self._failed("write", error) from error

    def _shut(self) -> None:
        self._readers.shutdown()
        try:
            if self._touches:
                self._writing(lambda _: None)
        finally:
            for connection in self._idle:
                connection.close()
            # The last one: it takes what is in the log into the file.
            if self._write_connection is not None:
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


def _touch(connection: sqlite3.Connection, touches: list[tuple[str, str, int]]) -> None:
    rows = [(stored(origin), run, stored(uri)) for uri, origin, run in touches]
    connection.executemany("UPDATE documents SET origin = ?, run = max(run, ?) WHERE uri = ?", rows)
    connection.executemany("DELETE FROM failures WHERE uri = ?", [row[2:] for row in rows])
