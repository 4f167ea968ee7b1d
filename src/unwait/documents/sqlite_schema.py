"""The file of the SQLite store: its tables, how it is recognised and opened, how text goes in and comes out.

A document's `id` is the number of the change that stored it. A new version has a new id, so what was read under an id
never changes; what is kept in memory follows the file by that. The id of a chunk is its document's with the position
behind it, and so needs no column for either. Vectors lie in blocks of up to `BLOCK` chunks, each under the
id of its first one. The full text has an index only: what is deleted from it is told to it again, from `chunks`. What
it is told are words already, see unwait.documents.words; with their stems, bench/documents.py found less by it and by
the fusion.

SQLite's text holds no half characters (lone surrogates). A text that has one is stored as bytes.

A file is recognised by the application id in its header, so that a file which is no store is never touched. While
it is open, and after a process was killed, there are `-wal` and `-shm` beside it, and `-lock` while a run writes.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from unwait.documents.store import StoreError
from unwait.flow.sqlite_header import NotRegular, identity, location

APPLICATION_ID = 0x756E7764  # "unwd"
JOURNAL_ID = 0x756E7774  # that of a journal of unwait.flow
FORMAT = 2
SHIFT = 24  # bits of a chunk's id for its position
BLOCK = 128
BUSY_SECONDS = 60.0
LOG_PAGES = 4000  # of 4 KiB, after which the log is taken into the file: less often, most pages are written fewer times
_NO_ROOM_BESIDE = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY_DIRECTORY,
    sqlite3.SQLITE_READONLY_CANTINIT,
)

_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE IF NOT EXISTS state (
    only INTEGER PRIMARY KEY CHECK (only = 1), changes INTEGER NOT NULL, chunks INTEGER NOT NULL
);
INSERT OR IGNORE INTO state VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, pid INTEGER NOT NULL, started REAL NOT NULL, settings NOT NULL
);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY, uri NOT NULL UNIQUE, origin NOT NULL, title NOT NULL, format NOT NULL, digest NOT NULL,
    made_chunks NOT NULL, made_vectors NOT NULL, made_summary NOT NULL, made_records NOT NULL, etag, last_modified,
    run INTEGER NOT NULL, saved REAL NOT NULL, dimensions INTEGER NOT NULL, chunks INTEGER NOT NULL,
    records INTEGER NOT NULL, characters INTEGER NOT NULL, facets BLOB NOT NULL, metadata NOT NULL, summary NOT NULL
);
CREATE INDEX IF NOT EXISTS documents_spaces ON documents (made_vectors, dimensions, chunks);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, chunk NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, page INTEGER, section,
    digest BLOB NOT NULL, text NOT NULL
);
CREATE INDEX IF NOT EXISTS chunks_digests ON chunks (digest);
CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, vectors BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    document INTEGER NOT NULL, position INTEGER NOT NULL, schema NOT NULL, data NOT NULL, start INTEGER NOT NULL,
    end INTEGER NOT NULL, PRIMARY KEY (document, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    uri NOT NULL PRIMARY KEY, origin NOT NULL, stage NOT NULL, kind NOT NULL, error NOT NULL, run INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (uri NOT NULL, key NOT NULL, answer BLOB NOT NULL, UNIQUE (uri, key));
CREATE INDEX IF NOT EXISTS calls_keys ON calls (key);
CREATE VIRTUAL TABLE IF NOT EXISTS full_text USING fts5(
    title, section, text, content = '', tokenize = 'ascii'
);
COMMIT;
"""


def prepare(path: str) -> None:
    """Make the store if there is no file, or an empty one. Raises StoreError for a file that is something else."""
    # What is beside a file in which somebody was killed while making it; later the log is another one.
    half_made = f"{os.path.realpath(path)}-journal"
    if refuse_foreign(path) or os.path.exists(half_made):
        with closing(_connect(path, "rwc")) as connection:
            connection.executescript(_SCHEMA)
            _write_ahead(connection)


def open_to_write(path: str) -> sqlite3.Connection:
    """A connection for the one thread that writes. Raises what SQLite raises."""
    connection = _connect(path, "rw")
    try:
        _write_ahead(connection)
        # NORMAL: a commit survives the death of the process; that of the machine may cost the last commits.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: str) -> sqlite3.Connection:
    """A connection that one thread at a time may use. Raises what SQLite raises."""
    connection = _connect(path, "rw")
    try:
        try:
            connection.execute("SELECT changes FROM state").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _NO_ROOM_BESIDE or log_size(os.path.realpath(path)):
                raise
            # A closed store in a directory where this user can make no files: nobody writes it now.
            connection.close()
            connection = _connect(path, "ro&immutable=1")
        connection.executescript("PRAGMA query_only = ON; PRAGMA cache_size = -16000;")
        connection.create_function("matches", 2, _matches, deterministic=True)
    except BaseException:
        connection.close()
        raise
    return connection


def log_size(file: str) -> int:
    """The bytes of the log beside the file (no symbolic link), which its connections write first."""
    try:
        return os.stat(f"{file}-wal").st_size
    except FileNotFoundError:
        return 0


def refuse_foreign(path: str) -> bool:
    """Raise StoreError for what is not a store of this format; whether there is no file, or an empty one."""
    try:
        found = identity(path)
    except NotRegular as error:
        raise StoreError(f"{path} is no store of documents: it is {error}; name another file") from None
    if found is None:
        return True
    application, written_as = found
    if application == JOURNAL_ID:
        raise StoreError(f"{path} is no store of documents: it is a journal of unwait; name another file")
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is no store of documents: it holds something else; name another file")
    if written_as > FORMAT:
        raise StoreError(
            f"the store {path} was written by a newer unwait (format {written_as}, this one knows {FORMAT}): update "
            "unwait, or name another file"
        )
    if written_as < FORMAT:
        raise StoreError(
            f"the store {path} was written by an older unwait (format {written_as}, this one writes {FORMAT}): ingest "
            "its sources again, into another file"
        )
    return False


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing, alone among the processes that write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk ends it by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def stored(text: str) -> str | bytes:
    """The text as SQLite can hold it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-8", "surrogatepass")
    return text


def restored(value: Any) -> Any:
    """The text that `stored` was given; what never was a text, as it is."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def range_of(prefix: str) -> tuple[str, str | None]:
    """The first text that begins so and the first one behind all that do, which there is none of for the last.

    In the order of code points, which is that of SQLite's text. Raises UnicodeEncodeError for half a character.
    """
    prefix.encode()
    for at in reversed(range(len(prefix))):
        code = ord(prefix[at]) + 1
        if code <= 0x10FFFF:
            return prefix, prefix[:at] + chr(0xE000 if code == 0xD800 else code)
    return prefix, None


def _matches(text: str, pattern: str) -> bool:
    """Whether the whole text is like the pattern, in which each `*` (there is one) stands for any text."""
    first, *between, last = pattern.split("*")
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in between:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _write_ahead(connection: sqlite3.Connection) -> None:
    # To change the mode SQLite wants the file for itself and does not wait for that.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _connect(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        location(path, mode),
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
