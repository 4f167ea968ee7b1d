"""The store in one SQLite file: documents, chunks, vectors, full text, summaries, records, and what a run needs."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from unwait.documents.model import (
    Candidate,
    Chunk,
    Document,
    Failure,
    Filter,
    Listed,
    Record,
    State,
    Versions,
)
from unwait.documents.sqlite_files import Files
from unwait.documents.sqlite_find import (
    Matrix,
    allowed,
    by_text,
    by_vector,
    candidates,
    condition,
    facets,
    headings,
)
from unwait.documents.sqlite_schema import BLOCK, SHIFT, range_of, restored, stored, transaction
from unwait.documents.words import words

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

_PAGE = 256  # rows of a list that are read at once
_EVERYWHERE = Filter()
_AT_ONCE = 500  # parameters of a statement
_MANY = 256  # chunks of a document whose making into bytes would be felt in the loop
_INDEX = "INSERT INTO full_text (rowid, title, section, text) VALUES (?, ?, ?, ?)"
_UNINDEX = "INSERT INTO full_text (full_text, rowid, title, section, text) VALUES ('delete', ?, ?, ?, ?)"
_VERSIONS = "made_chunks, made_vectors, made_summary, made_records"


class SqliteStore:
    """A store in the SQLite file of this path, which is made if there is none; see `unwait.documents.store.Store`.

    Any number of processes may use the file, and write it. To be used in `async with`, once; every method raises
    StoreError if the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], *, process: bool = False) -> None:
        self.name = os.fspath(path)
        if not isinstance(self.name, str) or not self.name or "\x00" in self.name:
            raise ValueError(f"the path of a store is a str or a path, and not empty: {path!r}")
        self._files = Files(self.name, process=process)
        self._matrices: dict[tuple[str, int], Matrix] = {}
        # Held from before the snapshot of a read begins: the matrices never are of a later state than its own.
        self._finding = threading.Lock()

    def __repr__(self) -> str:
        return f"SqliteStore({self.name!r})"

    async def __aenter__(self) -> Self:
        await self._files.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._files.close()
        self._matrices.clear()

    async def begin(self, settings: Mapping[str, str]) -> int:
        """Begin a run, alone; see `Store`."""
        await self._files.lock()
        row = (os.getpid(), time.time(), stored(_json(dict(settings))))
        return await self._files.write(_begin, row)

    async def settings(self) -> dict[str, str]:
        """Those of the last run; see `Store`."""
        rows = await self._rows("SELECT settings FROM runs ORDER BY run DESC LIMIT 1")
        return dict(json.loads(restored(rows[0][0]))) if rows else {}

    async def state(self, uri: str) -> State | None:
        """What is known of the document; see `Store`."""
        rows = await self._rows(
            f"SELECT digest, {_VERSIONS}, run, etag, last_modified FROM documents WHERE uri = ?", stored(uri)
        )
        if not rows:
            return None
        digest, *versions, run, etag, last_modified = map(restored, rows[0])
        touched = self._files.touched(uri)
        return State(digest, Versions(*versions), run if touched is None else touched, etag, last_modified)

    async def document(self, uri: str) -> Document | None:
        """The whole document; see `Store`."""
        if self._files.touched(uri) is not None:
            await self._files.flush()
        return await self._files.read(_read, uri)

    async def save(self, document: Document, run: int) -> None:
        """Store the document whole; see `Store`."""
        await self._files.write(_save, document, run, much=len(document.chunks) > _MANY)

    async def touch(self, uri: str, origin: str, run: int) -> None:
        """Note that the document was found unchanged; see `Store`."""
        await self._files.touch(uri, origin, run)

    async def fail(self, failure: Failure, run: int) -> None:
        """Note that the source was found and failed; see `Store`."""
        uri, origin = stored(failure.uri), stored(failure.origin)
        row = (uri, origin, stored(failure.stage), stored(failure.kind), stored(failure.error), run)

        await self._files.write(_fail, row)

    async def prune(self, run: int, origins: Sequence[str], gone: Sequence[str] = ()) -> list[str]:
        """Remove what disappeared; see `Store`."""
        return await self._files.write_many(_prune, run, origins, gone)

    async def keep_calls(self, answers: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep the answers of finished calls; see `Store`."""
        rows = [
            (stored(uri), stored(key), answer)
            for uri, calls in answers.items()
            for key, answer in calls.items()
        ]

        if rows:
            await self._files.write(_keep, rows)

    async def kept_calls(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of the answers that are kept; see `Store`."""

        return await self._files.read(_kept, list(map(stored, keys))) if keys else {}

    async def forget_calls(self, uri: str, prefix: str) -> None:
        """Drop what is kept for this document under keys that begin so; see `Store`."""
        low, high = range_of(prefix)
        clause = "" if high is None else " AND key < ?"
        parameters = (stored(uri), low) if high is None else (stored(uri), low, high)

        await self._files.write(_forget, clause, parameters)

    async def vectors(self, space: str, digests: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of stored chunks of these digests; see `Store`."""
        return await self._files.read(_vectors, space, digests) if digests else {}

    async def find(
        self, words: str, vector: Vectors | None, space: str, depth: int, where: Filter
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The best chunks by full text and by vector; see `Store`."""

        def read(connection: sqlite3.Connection) -> tuple[list[Candidate], list[Candidate]]:
            rows = None
            if vector is not None and vector.any():
                with self._finding:
                    (changes,) = connection.execute("SELECT changes FROM state").fetchone()
                    matrix = self._matrices.setdefault((space, len(vector)), Matrix(space, len(vector)))
                    rows = matrix.rows_of(connection, changes)
            documents = allowed(connection, where)
            texts = by_text(connection, words, depth, documents)
            near = []
            if rows is not None and vector is not None:
                near = by_vector(connection, vector, rows, depth, documents)
            first, second = candidates(connection, texts, near)
            return first, second

        return await self._files.search(read) if depth > 0 else ([], [])

    async def documents(self, where: Filter = _EVERYWHERE) -> AsyncIterator[Listed]:
        """All documents, by URI."""
        clause, parameters = condition(where)
        await self._files.flush()
        after: Any = ""
        while True:
            rows = await self._rows(
                "SELECT uri, origin, title, format, chunks, records, characters, summary, metadata, saved "
                f"FROM documents WHERE uri > ? AND {clause} ORDER BY uri LIMIT {_PAGE}",
                after,
                *parameters,
            )
            for row in rows:
                uri, origin, title, kind, chunks, count, characters, summary, data, saved = map(restored, row)
                metadata = json.loads(data)
                yield Listed(uri, origin, title, kind, chunks, count, characters, summary, metadata, saved)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    async def failures(self) -> AsyncIterator[Failure]:
        """All sources that failed in their last run, by URI."""
        await self._files.flush()
        after: Any = ""
        while True:
            rows = await self._rows(
                f"SELECT uri, origin, stage, kind, error FROM failures WHERE uri > ? ORDER BY uri LIMIT {_PAGE}",
                after,
            )
            for row in rows:
                yield Failure(*map(restored, row))
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    async def records(
        self, where: Filter = _EVERYWHERE, schema: str | None = None
    ) -> AsyncIterator[tuple[str, Record]]:
        """All records with the URI of their document, by URI and position."""
        clause, parameters = condition(where)
        if schema is not None:
            clause += " AND r.schema = ?"
            parameters.append(stored(schema))
        after: tuple[Any, int] = ("", -1)
        while True:
            rows = await self._rows(
                "SELECT uri, position, r.schema, r.data, r.start, r.end FROM records r "
                f"JOIN documents d ON d.id = r.document WHERE (uri, position) > (?, ?) AND {clause} "
                f"ORDER BY uri, position LIMIT {_PAGE}",
                *after,
                *parameters,
            )
            for uri, _, name, data, start, end in rows:
                yield restored(uri), Record(restored(name), json.loads(restored(data)), start, end)
            if len(rows) < _PAGE:
                return
            after = rows[-1][:2]

    async def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await self._files.read(_fetch, query, parameters)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# Each in a transaction. No cursor must leave its thread: where it is freed, it touches the connection.


def _fetch(connection: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(query, parameters).fetchall()


def _begin(connection: sqlite3.Connection, row: tuple[Any, ...]) -> int:
    run = connection.execute("INSERT INTO runs (pid, started, settings) VALUES (?, ?, ?)", row).lastrowid
    assert run is not None
    return run


def _fail(connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    uri, origin, *_, run = row
    connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute("UPDATE documents SET origin = ?, run = max(run, ?) WHERE uri = ?", (origin, run, uri))


def _keep(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT OR REPLACE INTO calls VALUES (?, ?, ?)", rows)


def _kept(connection: sqlite3.Connection, keys: Sequence[Any]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for some in _some(keys):
        query = f"SELECT key, answer FROM calls WHERE key IN ({', '.join('?' * len(some))})"
        found.update((restored(key), answer) for key, answer in connection.execute(query, some))
    return found


def _forget(connection: sqlite3.Connection, clause: str, parameters: Sequence[Any]) -> None:
    connection.execute(f"DELETE FROM calls WHERE uri = ? AND key >= ?{clause}", parameters)


def _save(connection: sqlite3.Connection, document: Document, run: int) -> None:
    uri = stored(document.uri)
    _remove(connection, uri)
    connection.execute("DELETE FROM failures WHERE uri = ?", (uri,))
    connection.execute("DELETE FROM calls WHERE uri = ?", (uri,))
    chunks = document.chunks
    connection.execute("UPDATE state SET changes = changes + 1, chunks = chunks + ?", (len(chunks),))
    (id,) = connection.execute("SELECT changes FROM state").fetchone()
    first = id << SHIFT
    versions, vectors = document.versions, np.ascontiguousarray(document.vectors, np.float32)
    connection.execute(
        f"INSERT INTO documents VALUES ({', '.join('?' * 21)})",
        (
            id,
            uri,
            *map(stored, (document.origin, document.title, document.format, document.digest)),
            *map(stored, (versions.chunks, versions.vectors, versions.summary, versions.records)),
            *(text if text is None else stored(text) for text in (document.etag, document.last_modified)),
            run,
            time.time(),
            vectors.shape[1],
            len(chunks),
            len(document.records),
            chunks[-1].end if chunks else 0,
            facets(document.metadata),
            stored(_json(dict(document.metadata))),
            stored(document.summary),
        ),
    )
    sections = {chunk.section: stored(_json(chunk.section)) if chunk.section else None for chunk in chunks}
    connection.executemany(
        "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                first + position,
                stored(chunk.id),
                chunk.start,
                chunk.end,
                chunk.page,
                sections[chunk.section],
                bytes.fromhex(chunk.digest),
                stored(chunk.text),
            )
            for position, chunk in enumerate(chunks)
        ],
    )
    title = words(document.title)
    indexed = {section: words(" ".join(section)) for section in sections}
    connection.executemany(
        _INDEX,
        [
            (first + position, title, indexed[chunk.section], words(chunk.text))
            for position, chunk in enumerate(chunks)
        ],
    )
    if vectors.shape[1]:
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            [(first + at, vectors[at : at + BLOCK].data) for at in range(0, len(vectors), BLOCK)],
        )
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)",
        [
            (id, position, stored(record.schema), stored(_json(record.data)), record.start, record.end)
            for position, record in enumerate(document.records)
        ],
    )


def _remove(connection: sqlite3.Connection, uri: str | bytes) -> bool:
    """Remove the document and what belongs to it, if there is one; the failure and the kept calls stay."""
    found = connection.execute("SELECT id, title, chunks FROM documents WHERE uri = ?", (uri,)).fetchone()
    if found is None:
        return False
    id, title, chunks = found
    span = _span(id)
    title = words(restored(title))
    indexed = connection.execute("SELECT id, section, text FROM chunks WHERE id BETWEEN ? AND ?", span)
    for chunk, section, text in indexed:
        heading = words(" ".join(headings(section)))
        connection.execute(_UNINDEX, (chunk, title, heading, words(restored(text))))
    connection.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", span)
    connection.execute("DELETE FROM vectors WHERE id BETWEEN ? AND ?", span)
    connection.execute("DELETE FROM records WHERE document = ?", (id,))
    connection.execute("DELETE FROM documents WHERE id = ?", (id,))
    connection.execute("UPDATE state SET changes = changes + 1, chunks = chunks - ?", (chunks,))
    return True


def _prune(
    connection: sqlite3.Connection, run: int, origins: Sequence[str], gone: Sequence[str]
) -> list[str]:
    unseen = {stored(uri) for uri in gone}
    for origin in origins:
        query = "SELECT uri FROM documents WHERE origin = ? AND run < ?"
        unseen.update(uri for (uri,) in connection.execute(query, (stored(origin), run)))
        query = (
            "SELECT uri FROM failures WHERE origin = ? AND run < ? "
            "AND uri NOT IN (SELECT uri FROM documents WHERE run >= ?)"
        )
        unseen.update(uri for (uri,) in connection.execute(query, (stored(origin), run, run)))
    removed = []
    for uri in unseen:
        with transaction(connection):
            if _remove(connection, uri):
                removed.append(restored(uri))
            connection.execute("DELETE FROM failures WHERE uri = ?", (uri,))
            connection.execute("DELETE FROM calls WHERE uri = ?", (uri,))
    return sorted(removed)


def _read(connection: sqlite3.Connection, uri: str) -> Document | None:
    found = connection.execute(
        "SELECT id, dimensions, origin, title, format, digest, summary, metadata, etag, last_modified, "
        f"{_VERSIONS} FROM documents WHERE uri = ?",
        (stored(uri),),
    ).fetchone()
    if found is None:
        return None
    id, dimensions = found[:2]
    origin, title, kind, digest, summary, metadata, etag, last_modified, *versions = map(restored, found[2:])
    span = _span(id)
    chunks = [
        Chunk(restored(chunk), number - span[0], start, end, restored(text), headings(section), page)
        for number, chunk, start, end, page, section, text in connection.execute(
            "SELECT id, chunk, start, end, page, section, text FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id",
            span,
        )
    ]
    vectors = np.zeros((len(chunks), dimensions), np.float32)
    for first, data in connection.execute("SELECT id, vectors FROM vectors WHERE id BETWEEN ? AND ?", span):
        block = np.frombuffer(data, np.float32).reshape(-1, dimensions)
        vectors[first - span[0] : first - span[0] + len(block)] = block
    records = [
        Record(restored(schema), json.loads(restored(data)), start, end)
        for schema, data, start, end in connection.execute(
            "SELECT schema, data, start, end FROM records WHERE document = ? ORDER BY position", (id,)
        )
    ]
    return Document(
        uri=uri,
        origin=origin,
        title=title,
        format=kind,
        digest=digest,
        versions=Versions(*versions),
        chunks=chunks,
        vectors=vectors,
        summary=summary,
        records=records,
        metadata=json.loads(metadata),
        etag=etag,
        last_modified=last_modified,
    )


def _span(document: int) -> tuple[int, int]:
    """The ids that its chunks may have."""
    return document << SHIFT, ((document + 1) << SHIFT) - 1


def _some(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names in parts that one statement takes."""
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))


def _vectors(connection: sqlite3.Connection, space: str, digests: Sequence[str]) -> dict[str, Vectors]:
    # By block: neighbours are asked for together, and a block is read whole.
    blocks: dict[int, list[tuple[int, str]]] = {}
    dimensions: dict[int, int] = {}
    for some in _some(list(dict.fromkeys(digests))):
        # One statement for all of them, and of each the first chunk that has it: a passage may stand in every document.
        # CROSS JOIN keeps SQLite from looking through all documents of the space first.
        found = connection.execute(
            f"WITH wanted (digest) AS (VALUES {', '.join(['(?)'] * len(some))}), "
            "found AS MATERIALIZED (SELECT digest, (SELECT c.id FROM chunks c "
            f"CROSS JOIN documents d ON d.id = c.id >> {SHIFT} WHERE c.digest = wanted.digest AND d.made_vectors = ? "
            "AND d.dimensions > 0 LIMIT 1) AS id FROM wanted) "
            f"SELECT f.digest, f.id, d.dimensions FROM found f CROSS JOIN documents d ON d.id = f.id >> {SHIFT}",
            [*map(bytes.fromhex, some), stored(space)],
        ).fetchall()
        for digest, id, width in found:
            at = (id & ((1 << SHIFT) - 1)) % BLOCK
            blocks.setdefault(id - at, []).append((at, digest.hex()))
            dimensions[id - at] = width
    vectors = {}
    for first, wanted in blocks.items():
        (data,) = connection.execute("SELECT vectors FROM vectors WHERE id = ?", (first,)).fetchone()
        block = np.frombuffer(data, np.float32).reshape(-1, dimensions[first])
        for at, digest in wanted:
            vectors[digest] = block[at].copy()
    return vectors
