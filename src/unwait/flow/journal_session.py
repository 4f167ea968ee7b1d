"""One run's hold on its journal: what it finds there, and the thread that writes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import Any

from unwait.flow import codec
from unwait.flow.faults import describe
from unwait.flow.journal import Journal, JournalError, Stored
from unwait.flow.journal_file import (
    DONE,
    FAILED,
    WriterLock,
    begin_run,
    open_to_read,
    open_to_write,
    reason,
    refuse_foreign,
)

LONGEST_ERROR = 500
_SLOTS = 1 << 20
# key, state, value, error, attempts, waited, elapsed, at.
_Row = tuple[str, int, bytes | None, str | None, int, float, float, float]
# A row and its tag; no row where one of an earlier run is used again.
_Batch = list[tuple[_Row | None, Any]]
_STORE = """
INSERT OR REPLACE INTO items (key, state, value, error, attempts, waited, elapsed, at, run)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, {run})
"""
_FIND = "SELECT id, state, value, error, attempts, elapsed FROM items WHERE key = ?"


class Session:
    """A journal opened for one run. Made by `Journal.session`; every method is called in the loop's thread."""

    resumes: bool

    def __init__(
        self,
        journal: Journal,
        function: str,
        committed: Callable[[list[Any]], None],
        broken: Callable[[JournalError], None],
    ) -> None:
        self._path = journal.path
        self._codec = journal.codec
        self._valid = journal.valid
        self._committed = committed
        self._broken = broken
        self._failure: JournalError | None = None
        self._loop = asyncio.get_running_loop()
        with ExitStack() as opened:
            try:
                # First what tells that the path is wrong: the lock would leave a file where it cannot be.
                refuse_foreign(journal.path)
                opened.callback(WriterLock(journal.path).release)
                self._connection = open_to_write(journal.path)
                opened.callback(self._connection.close)
                identity = {"function": function, "version": journal.version, "codec": journal.codec.name}
                self._run = begin_run(self._connection, journal.path, identity)
                self._reader = open_to_read(journal.path)
                opened.callback(self._reader.close)
                (self._last_earlier,) = self._reader.execute(
                    "SELECT coalesce(max(id), 0) FROM items"
                ).fetchone()
            except (OSError, sqlite3.Error) as error:
                raise JournalError(f"cannot open the journal {journal.path}: {reason(error)}") from error
            self._opened = opened.pop_all()
        self._statement = _STORE.format(run=self._run)
        self.resumes = self._last_earlier > 0
        # One bit for each row of earlier runs: whether this run has used it.
        self._reused = bytearray((self._last_earlier >> 3) + 1)
        self._reused_count = 0
        # Rows given and not yet known to be committed, by key.
        self._pending: dict[str, _Row] = {}
        # A slot, chosen by its hash, for each key stored in this run: where it is empty, the file need not be asked.
        self._stored = bytearray(_SLOTS)
        self._batch: _Batch = []
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._ended = asyncio.Event()
        self._closing = False
        self._files = threading.Lock()  # held while one thread reads, or the other closes
        self._shut = False
        # A daemon: a program that ends without `close` must not wait for it. What it loses was not reported.
        self._thread = threading.Thread(target=self._write, name="unwait-journal", daemon=True)
        self._thread.start()

    def find(self, key: str) -> Stored | None:
        """What is known of an item, also what is not committed yet. Raises JournalError if the file cannot be read."""
        row = self._pending.get(key)
        if row is not None:
            _, state, value, error, attempts, _, elapsed, _ = row
            this_run = True
        else:
            if not self.resumes and not self._stored[hash(key) % _SLOTS]:
                return None
            found = self._ask(key)
            if found is None:
                return None
            number, state, value, error, attempts, elapsed = found
            this_run = number > self._last_earlier or bool(self._reused[number >> 3] >> (number & 7) & 1)
        if state == FAILED or value is None:
            return Stored(False, None, error, attempts, elapsed, this_run)
        try:
            decoded = self._codec.decode(value)
        except Exception as cause:
            raise JournalError(
                f"the journal {self._path} has a result for item {key!r} that the codec {self._codec.name!r} "
                f"cannot read: {describe(cause)}"
            ) from cause
        if not this_run and self._valid is not None and not self._valid(decoded):
            return Stored(False, None, "its result is not valid any more", attempts, elapsed, this_run)
        return Stored(True, decoded, None, attempts, elapsed, this_run)

    def done(self, key: str, value: Any, tag: Any, *, attempts: int, waited: float, elapsed: float) -> Any:
        """Store an item's result; returns it as it will come back from the journal, in this run and later.

        Raises CodecError, with the result in it, if it cannot be stored; JournalError once storing has failed.
        """
        data, decoded = codec.encode(self._codec, key, value)
        self._give((key, DONE, data, None, attempts, waited, elapsed, time.time()), tag)
        return decoded

    def failed(
        self, key: str, error: BaseException, tag: Any, *, attempts: int, waited: float, elapsed: float
    ) -> None:
        """Store the error that an item's last attempt ended with, as text without secrets."""
        try:
            text = describe(error, LONGEST_ERROR)
        except Exception:
            text = type(error).__name__  # an error that cannot be shown
        text = text.encode("utf-8", "backslashreplace").decode()
        self._give((key, FAILED, None, text, attempts, waited, elapsed, time.time()), tag)

    def reused(self, key: str, tag: Any) -> None:
        """Note that this run has handed out what an earlier one stored: from now on `this_run` is true of it."""
        found = self._ask(key)
        if found is not None and found[0] <= self._last_earlier:
            self._reused[found[0] >> 3] |= 1 << (found[0] & 7)
            self._reused_count += 1
        self._hand(None, tag)

    async def close(self) -> None:
        """Commit what is queued, report it, close the file. Never raises; may be called again."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._queue.put(None)
        await self._ended.wait()
        self._thread.join()  # it has nothing left to do

    def _ask(self, key: str) -> Any:
        try:
            with self._files:
                if self._shut:
                    raise self._failure or JournalError(f"the journal {self._path} is closed")
                return self._reader.execute(_FIND, (key,)).fetchone()
        except sqlite3.Error as error:
            raise JournalError(f"cannot read the journal {self._path}: {reason(error)}") from error

    def _give(self, row: _Row, tag: Any) -> None:
        self._hand(row, tag)
        key = row[0]
        self._pending[key] = row
        self._stored[hash(key) % _SLOTS] = 1

    def _hand(self, row: _Row | None, tag: Any) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise JournalError(f"the journal {self._path} is closed")
        if not self._batch:
            # What ends in the same turn of the loop crosses to the thread together.
            self._loop.call_soon(self._hand_over)
        self._batch.append((row, tag))

    def _hand_over(self) -> None:
        if self._batch:
            self._queue.put(self._batch)
            self._batch = []

    def _report(self, batch: _Batch) -> None:
        for row, _ in batch:
            if row is not None and self._pending.get(row[0]) is row:
                del self._pending[row[0]]
        self._committed([tag for _, tag in batch])

    def _break(self, failure: JournalError) -> None:
        self._failure = failure
        self._broken(failure)

    # The rest runs in the thread.

    def _write(self) -> None:
        try:
            self._write_batches()
            with suppress(sqlite3.Error):  # all items are stored; this is for `unwait journal show`
                self._connection.execute(
                    "UPDATE runs SET ended = ?, reused = ? WHERE run = ?",
                    (time.time(), self._reused_count, self._run),
                )
        except Exception as error:
            failure = JournalError(
                f"cannot write the journal {self._path}: {reason(error)}; what was reported as done is in it, "
                "and the same run again goes on from there"
            )
            failure.__cause__ = error
            self._call(self._break, failure)
        finally:
            try:
                # The loop's thread may be reading: SQLite does not survive a connection that is closed meanwhile.
                with self._files:
                    self._shut = True
                    self._opened.close()
            finally:
                self._call(self._ended.set)

    def _write_batches(self) -> None:
        queue = self._queue
        open_for_more = True
        while open_for_more:
            batch = queue.get()
            if batch is None:
                return
            with suppress(Empty):
                while True:
                    more = queue.get_nowait()
                    if more is None:
                        open_for_more = False
                        break
                    batch += more
            rows = [row for row, _ in batch if row is not None]
            if rows:
                self._store(rows)
            self._call(self._report, batch)
            # What was reported must not live until the next commit.
            del batch, rows

    def _store(self, rows: list[_Row]) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(self._statement, rows)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite itself has rolled back after some errors.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        # The loop may have been closed without waiting for `close`.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)
