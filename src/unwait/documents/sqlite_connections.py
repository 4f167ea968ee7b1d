"""The connections to the SQLite store's file, for the threads or the process that use them. All of this blocks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from unwait.documents.sqlite_schema import (
    BUSY_SECONDS,
    log_size,
    open_to_read,
    open_to_write,
    stored,
    transaction,
)
from unwait.documents.store import StoreError

MOST_LOG = 64 << 20  # bytes, and as many more for each time that somebody reads for too long
LOG_WAIT_MS = 250
Result = TypeVar("Result")
Touch = tuple[str, str, int]
"""A document that was found unchanged: its URI, its origin, the run."""


def failed(doing: str, path: str, error: Exception) -> StoreError:
    """The error to raise for one of the system, or of SQLite."""
    cause = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return StoreError(f"cannot {doing} the store {path}: {cause}")


class WriteConnection:
    """The one that writes, opened when there is something to write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.path.realpath(path)
        self._connection: sqlite3.Connection | None = None
        self._most_log = MOST_LOG

    def write(self, touches: Sequence[Touch], work: Callable[..., Result], *arguments: object) -> Result:
        """What `work(connection, *arguments)` returns, in a transaction with the touches. Raises StoreError."""
        try:
            if self._connection is None:
                self._connection = open_to_write(self._path)
            with transaction(self._connection):
                if touches:
                    _touch(self._connection, touches)
                result = work(self._connection, *arguments)
        except (OSError, sqlite3.Error) as error:
            raise failed("write", self._path, error) from error
        self._bound_log(self._connection)
        return result

    def write_many(self, touches: Sequence[Touch], work: Callable[..., Result], *arguments: object) -> Result:
        """What `work` returns, which makes its transactions itself. Raises StoreError."""
        if touches or self._connection is None:
            self.write(touches, lambda _: None)
        assert self._connection is not None
        try:
            return work(self._connection, *arguments)
        except sqlite3.Error as error:
            raise failed("write", self._path, error) from error

    def close(self) -> None:
        """The last connection that is closed takes what is in the log into the file."""
        if self._connection is not None:
            self._connection.close()

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Begin the log anew where it is long: by itself SQLite does so only in a moment when nobody reads."""
        size = log_size(self._file)
        if size <= self._most_log:
            return
        # What was to be written is; a full disk, or a file that somebody else waits for, is the next one's.
        with suppress(sqlite3.OperationalError):
            connection.execute(f"PRAGMA busy_timeout = {LOG_WAIT_MS}")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        self._most_log = MOST_LOG + log_size(self._file)


class ReadConnections:
    """Those that read, each for one thread at a time; opened when they are needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []

    def read(self, work: Callable[..., Result], *arguments: object) -> Result:
        """What `work(connection, *arguments)` returns, which sees one state of the file. Raises StoreError."""
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = open_to_read(self._path)
            try:
                connection.execute("BEGIN")
                return work(connection, *arguments)
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
                self._idle.append(connection)
        except (OSError, sqlite3.Error) as error:
            raise failed("read", self._path, error) from error

    def close(self) -> None:
        """To be called when no thread reads any more."""
        for connection in self._idle:
            connection.close()


def _touch(connection: sqlite3.Connection, touches: Sequence[Touch]) -> None:
    rows = [(stored(origin), run, stored(uri)) for uri, origin, run in touches]
    connection.executemany("UPDATE documents SET origin = ?, run = max(run, ?) WHERE uri = ?", rows)
    connection.executemany("DELETE FROM failures WHERE uri = ?", [row[2:] for row in rows])
