"""A journal as `unwait journal` shows it: read-only, also while a run writes it or after one was killed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from unwait.flow.journal import STAGE, JournalError, JournalMismatch
from unwait.flow.journal_file import DONE, FAILED, open_to_read, reason


@dataclass(slots=True, frozen=True)
class Item:
    """One item's row: `data` is its value as the codec wrote it; `at` is when it ended, seconds since 1970.

    `stage` names the stage of a pipeline that made the value; it is empty for what the whole of it made.
    """

    key: str
    stage: str
    ok: bool
    data: bytes | None
    error: str | None
    attempts: int
    waited: float
    elapsed: float
    run: int
    at: float


@dataclass(slots=True, frozen=True)
class Run:
    """One run: what it stored (as far as no later run replaced it), and how many items it reused.

    `took` is the time to its end, or to the last item of a run that has none: `running` tells whether its
    process still exists.
    """

    number: int
    pid: int
    started: float
    took: float
    ended: bool
    running: bool
    done: int
    failed: int
    reused: int


@dataclass(slots=True, frozen=True)
class Cause:
    """A kind of error: how many items failed with it, and the text of the latest."""

    kind: str
    count: int
    latest: str


_WHOLE = f"instr(key, char({ord(STAGE)})) = 0"  # not what one stage saved


class JournalReader:
    """One consistent view of a journal, of the moment it was opened; a context manager. Raises JournalError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._connection = open_to_read(self.path)
        try:
            self._connection.execute("BEGIN")
            meta = dict(self._rows("SELECT name, value FROM meta"))
            if not meta:
                raise JournalMismatch(f"{self.path} is no journal yet: no run has begun")
        except BaseException:
            self._connection.close()
            raise
        self.function: str = meta["function"]
        self.version: str = meta["version"]
        self.codec: str = meta["codec"]
        self.created = float(meta["created"])

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._connection.close()

    def count(self) -> tuple[int, int]:
        """How many items are done, and how many failed."""
        counts = dict(self._rows(f"SELECT state, count(*) FROM items WHERE {_WHOLE} GROUP BY state"))
        return counts.get(DONE, 0), counts.get(FAILED, 0)

    def stages(self) -> dict[str, int]:
        """Of how many items each stage of a pipeline has saved its value."""
        return dict(
            self._rows(
                f"SELECT substr(key, instr(key, char({ord(STAGE)})) + 1) AS stage, count(*) FROM items "
                f"WHERE NOT {_WHOLE} GROUP BY stage ORDER BY stage"
            )
        )

    def runs(self) -> list[Run]:
        """All runs, the first one first."""
        rows = self._rows(
            f"""
            SELECT run, pid, started, ended, reused, coalesce(done, 0), coalesce(failed, 0), last
            FROM runs LEFT JOIN (
                SELECT run, sum(state = 1) AS done, sum(state = 0) AS failed, max(at) AS last FROM items
                WHERE {_WHOLE} GROUP BY run
            ) USING (run) ORDER BY run
            """
        )
        return [
            Run(
                number=number,
                pid=pid,
                started=started,
                took=max(0.0, (ended or last or started) - started),
                ended=ended is not None,
                running=ended is None and _exists(pid),
                done=done,
                failed=failed,
                reused=reused,
            )
            for number, pid, started, ended, reused, done, failed, last in rows
        ]

    def causes(self) -> list[Cause]:
        """The kinds of errors, the most frequent one first."""
        # SQLite takes the other columns from the row that has the maximum.
        rows = self._rows(
            """
            SELECT substr(error, 1, instr(error || ':', ':') - 1) AS kind, count(*), error, max(id)
            FROM items WHERE state = 0 GROUP BY kind ORDER BY count(*) DESC, kind
            """
        )
        return [Cause(kind, count, latest) for kind, count, latest, _ in rows]

    def items(self, *, failed: bool = False) -> Iterator[Item]:
        """The items in the order in which they ended; only those that failed if `failed`."""
        rows = self._rows(
            "SELECT key, state, value, error, attempts, waited, elapsed, run, at FROM items "
            f"{'WHERE state = 0 ' if failed else ''}ORDER BY id"
        )
        for key, state, *rest in rows:
            name, _, stage = key.partition(STAGE)
            yield Item(name, stage, state == DONE, *rest)

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query)
        except sqlite3.Error as error:
            raise JournalError(f"cannot read the journal {self.path}: {reason(error)}") from error


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
