"""Whose a SQLite file is, by its header: read without locks or further files, so that another's is never touched."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from urllib.parse import quote


class NotRegular(Exception):
    """There is something else than a file; the message says what."""


def identity(path: str) -> tuple[int, int] | None:
    """The application id and the user version of a database; (0, 0) for a file of another kind.

    None where there is no file, or an empty one. Raises NotRegular, OSError, and what SQLite raises.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotRegular("a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file")
    if not found.st_size:
        return None
    # Through SQLite, which closes no descriptor that this process's locks depend on.
    with closing(sqlite3.connect(location(path, "ro&immutable=1"), uri=True)) as connection:
        # Pages that the header counts may be in a log alone, of which this connection knows nothing: a checkpoint
        # that met a full disk, or a death in the first commit. SQLite takes that for damage but for who may repair it.
        connection.execute("PRAGMA writable_schema = ON")
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                raise
            return 0, 0
    return application, version


def location(path: str, mode: str) -> str:
    """The URI by which SQLite opens the file in that mode, and with what follows it."""
    return f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode={mode}"
