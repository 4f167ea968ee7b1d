"""The journal's file: a SQLite database in WAL mode, with one process that writes and any number that read.

The tables: `meta`, whose rows say whose journal it is; `runs`, one row for each time it was opened to be
written; `items`, one row for each item that ended, in the order in which they did. An item that ends in a
later run again (it had failed) gets a new row in place of the old.

A file is recognised by the application id in its header, which is read without locks or further files, so
that a file which is no journal is never touched. While a run writes, and after one was killed, there are three more
files: `-wal` and `-shm` are SQLite's, and hold what is not in the journal yet; `-lock` is the WriterLock's. A run
that ends removes them; who only reads may leave the first two behind, empty.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import suppress

from unwait.flow.journal import JournalBusy, JournalError, JournalMismatch
from unwait.flow.sqlite_header import NotRegular, identity, location

APPLICATION_ID = 0x756E7774  # "unwt"
FORMAT = 1
DONE, FAILED = 1, 0
BUSY_SECONDS = 10.0
_NO_ROOM_BESIDE = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY_DIRECTORY,
    sqlite3.SQLITE_READONLY_CANTINIT,
)

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, pid INTEGER NOT NULL, started REAL NOT NULL, ended REAL,
    reused INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, state INTEGER NOT NULL, value BLOB, error TEXT,
    attempts INTEGER NOT NULL, waited REAL NOT NULL, elapsed REAL NOT NULL, run INTEGER NOT NULL, at REAL NOT NULL
);
"""


class WriterLock:
    """The right to write a journal, which one session at a time has. Raises JournalBusy, or OSError, without it.

    It is a `flock` on a file beside the journal: the system ends it with the process, however that ends. Not on
    the journal itself: there it would meet SQLite's own locks on some systems, and closing a descriptor of
    the journal would drop those of this process on all.
    """

    def __init__(self, path: str) -> None:
        # Whoever comes by a symbolic link meets the same lock.
        self._path = f"{os.path.realpath(path)}-lock"
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                        break
            except BlockingIOError:
                pid = os.pread(self._descriptor, 20, 0).decode("ascii", "replace")
                os.close(self._descriptor)
                raise JournalBusy(
                    f"the journal {path} is being written by another run{pid and f' (pid {pid})'}: wait for its end, "
                    "or give each run a file of its own"
                ) from None
            # The one who had it removed the file between our two steps.
            os.close(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def fileno(self) -> int:
        """The descriptor: a process that inherits it has the same right, until both have ended."""
        return self._descriptor

    def release(self) -> None:
        """To be called once the journal is closed."""
        with suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)


def open_to_write(path: str) -> sqlite3.Connection:
    """A connection that any thread may use, with the schema if the file is new; the WriterLock is held.

    Raises JournalMismatch, and what SQLite raises.
    """
    refuse_foreign(path)
    connection = _connect(path, "rwc")
    try:
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            # In one transaction, and before the file is in WAL mode: the file is a journal or it is empty.
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        # NORMAL: a commit survives the death of the process; that of the machine may cost the last commits.
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
    except BaseException:
        connection.close()
        raise
    return connection


def begin_run(connection: sqlite3.Connection, path: str, identity: dict[str, str]) -> int:
    """Check whose journal it is, or make it ours if it is new; the number of this run.

    Raises JournalMismatch naming both sides.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        if not meta:
            meta = {**identity, "created": repr(time.time())}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        _refuse_other(path, meta, identity)
        run = connection.execute(
            "INSERT INTO runs (pid, started) VALUES (?, ?)", (os.getpid(), time.time())
        ).lastrowid
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    assert run is not None
    return run


def open_to_read(path: str) -> sqlite3.Connection:
    """A read-only connection to a journal, which another process may be writing. Raises JournalError."""
    try:
        os.stat(path)
        if refuse_foreign(path):
            raise JournalMismatch(f"{path} is no journal: it is empty")
        connection = _connect(path, "ro")
        try:
            connection.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
                raise JournalMismatch(
                    f"{path} is no journal yet: the run that was making it was killed; the next run goes on"
                ) from None
            log = f"{os.path.realpath(path)}-wal"
            if error.sqlite_errorcode not in _NO_ROOM_BESIDE or (
                os.path.exists(log) and os.path.getsize(log)
            ):
                raise
            # A closed journal in a directory where this user can make no files: nobody writes it now.
            connection = _connect(path, "ro&immutable=1")
        except BaseException:
            connection.close()
            raise
        return connection
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"cannot read the journal {path}: {reason(error)}") from error


def refuse_foreign(path: str) -> bool:
    """Raise JournalMismatch for what is not a journal of this format; whether there is no file, or an empty one."""
    try:
        found = identity(path)
    except NotRegular as error:
        raise JournalMismatch(f"{path} is no journal: it is {error}; name another file") from None
    if found is None:
        return True
    application, written_as = found
    if application != APPLICATION_ID:
        raise JournalMismatch(f"{path} is no journal: it holds something else; name another file")
    if written_as > FORMAT:
        raise JournalMismatch(
            f"the journal {path} was written by a newer unwait (format {written_as}, this one knows {FORMAT}): "
            "update unwait, or name another file"
        )
    return False


def _connect(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        location(path, mode),
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=16,
    )


def reason(error: Exception) -> str:
    """The system's or SQLite's words for an error."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _refuse_other(path: str, meta: dict[str, str], ours: dict[str, str]) -> None:
    for what, otherwise in (
        ("function", "rename the function back"),
        ("version", f"give version={meta['version']!r} if its results are still right"),
        ("codec", f"use the codec {meta['codec']!r}"),
    ):
        if meta[what] != ours[what]:
            raise JournalMismatch(
                f"the journal {path} holds results of the {what} {meta[what]!r}, and this run is of the {what} "
                f"{ours[what]!r}: name another file, delete this one if its results are not needed, or {otherwise}"
            )
