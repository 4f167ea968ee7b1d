"""What tests of the SQLite store run in its process, which imports it from here. The first argument is a connection."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path


def wait(_: sqlite3.Connection, pipe: str) -> int:
    """Say that it has begun, by a file beside the pipe, and wait until there is a byte in the pipe."""
    Path(f"{pipe}.begun").touch()
    with open(pipe, "rb", buffering=0) as file:
        return len(file.read(1))


def change_and_wait(connection: sqlite3.Connection, pipe: str, nowhere: int = 0) -> int:
    """The same within a transaction that has changed something; in the process `nowhere` do nothing."""
    if os.getpid() == nowhere:
        return 0
    connection.execute("DELETE FROM documents")
    connection.execute("UPDATE state SET chunks = 1000000")
    return wait(connection, pipe)


def fail(connection: sqlite3.Connection, text: str) -> None:
    connection.execute("DELETE FROM documents")
    raise LookupError(text)


def bound(connection: sqlite3.Connection, pages: int) -> None:
    """The store cannot grow beyond so many pages."""
    connection.execute(f"PRAGMA max_page_count = {pages}")


def pid(_: sqlite3.Connection) -> int:
    return os.getpid()


def end(_: object) -> None:
    os._exit(1)
