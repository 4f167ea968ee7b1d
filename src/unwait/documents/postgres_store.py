"""The store in PostgreSQL with pgvector: documents, chunks, vectors, full text, records, and what a run needs."""

from __future__ import annotations

import asyncio
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
    digest,
)
from unwait.documents.postgres_connections import Connections, decode_vector, encode_vectors
from unwait.documents.postgres_find import allowed, by_text, by_vector, condition
from unwait.documents.postgres_rank import POSITION_BITS
from unwait.documents.postgres_schema import LOCKS, SAVING_LOCK
from unwait.documents.postgres_text import (
    facets,
    original,
    original_json,
    original_or_none,
    stored,
    stored_json,
    stored_or_none,
    terms,
)
from unwait.documents.store import StoreError

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

_PAGE = 256  # rows of a list that are read at once
_MOST_TOUCHES = 256
_BATCH_CHUNKS = 128  # sent at once, and
_BATCH_CHARACTERS = 250_000
_IN_LOOP = 20_000  # characters of a document whose rows are made within the loop: about half a millisecond
_EVERYWHERE = Filter()


class PostgresStore:
    """A store in the PostgreSQL database of this address; see `unwait.documents.store.Store`.

    Its tables are in the schema `unwait`, made if they are missing, and need the extension `vector` (pgvector). Any
    number of processes may use it, and write. To be used in `async with`, once; every method raises StoreError if the
    database cannot be reached, or refuses. Raises ValueError for an address that cannot be read.
    """

    def __init__(self, address: str) -> None:
        self._connections = Connections(address)
        self.name = self._connections.name
        # Documents seen unchanged, and not written yet: origin and run by URI.
        self._touches: dict[str, tuple[str, int]] = {}
        self._flushing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"PostgresStore({self.name!r})"

    async def __aenter__(self) -> Self:
        await self._connections.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._flush()
        except StoreError:
            if error is None:
                raise
        finally:
            await self._connections.close()

    # A run.

    async def begin(self, settings: Mapping[str, str]) -> int:
        """Begin a run, alone; see `Store`."""
        await self._connections.claim()

        async def write(connection: Any) -> int:
            # After what the server still does for a run whose process is gone.
            await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", LOCKS, SAVING_LOCK)
            run: int = await connection.fetchval(
                "UPDATE unwait.store SET run = run + 1, settings = $1 RETURNING run",
                stored_json(dict(settings)),
            )
            return run

        return await self._connections.transaction(write)

    async def settings(self) -> dict[str, str]:
        """Those of the last run; see `Store`."""
        return dict(original_json(await self._value("SELECT settings FROM unwait.store")))

    async def state(self, uri: str) -> State | None:
        """What is known of the document; see `Store`."""
        row = await self._row(
            "SELECT digest, versions, run, etag, last_modified FROM unwait.documents WHERE name = $1",
            digest(uri),
        )
        if row is None:
            return None
        touched = self._touches.get(uri)
        return State(
            digest=original(row["digest"]),
            versions=Versions(**original_json(row["versions"])),
            run=row["run"] if touched is None else touched[1],
            etag=original_or_none(row["etag"]),
            last_modified=original_or_none(row["last_modified"]),
        )

    async def document(self, uri: str) -> Document | None:
        """The whole document; see `Store`."""
        if uri in self._touches:
            await self._flush()

        async def read(connection: Any) -> tuple[Any, list[Any], list[Any], list[Any]] | None:
            row = await connection.fetchrow("SELECT * FROM unwait.documents WHERE name = $1", digest(uri))
            if row is None:
                return None
            chunks = await connection.fetch(
                "SELECT position, id, begins, ends, page, section, text FROM unwait.chunks WHERE document = $1 "
                "ORDER BY position",
                row["id"],
            )
            vectors = await connection.fetch(
                "SELECT position, vector FROM unwait.vectors WHERE document = $1", row["id"]
            )
            records = await connection.fetch(
                "SELECT schema, data, begins, ends FROM unwait.records WHERE document = $1 ORDER BY position",
                row["id"],
            )
            return row, chunks, vectors, records

        found = await self._connections.transaction(read, snapshot=True)
        if found is None:
            return None
        if found[0]["characters"] > _IN_LOOP:
            return await asyncio.to_thread(_document, *found)
        return _document(*found)

    async def save(self, document: Document, run: int) -> None:
        """Store the document whole; see `Store`."""
        chunks = document.chunks
        if len(chunks) >= 1 << POSITION_BITS:
            raise StoreError(f"{document.uri} has {len(chunks):,} chunks, more than a store can hold")
        row = _document_row(document, run)
        batches = list(_batches(chunks))
        small = len(batches) == 1 and sum(len(chunk.text) for chunk in chunks) <= _IN_LOOP

        async def rows(batch: range) -> tuple[Any, ...]:
            return (
                _chunk_rows(document, batch)
                if small
                else await asyncio.to_thread(_chunk_rows, document, batch)
            )

        if len(batches) == 1:
            only = await rows(batches[0])
            await self._connections.run(lambda connection: connection.execute(_SAVE_WHOLE, *row, *only))
        else:

            async def write(connection: Any) -> None:
                id = await connection.fetchval(_SAVE_FIRST, *row)
                for batch in batches:
                    await connection.execute(_SAVE_MORE, id, *await rows(batch))

            await self._connections.transaction(write)
        self._touches.pop(document.uri, None)

    async def touch(self, uri: str, origin: str, run: int) -> None:
        """Note that the document was found unchanged; see `Store`."""
        self._touches[uri] = (origin, max(run, self._touches.get(uri, (origin, run))[1]))
        if len(self._touches) >= _MOST_TOUCHES:
            await self._flush()

    async def fail(self, failure: Failure, run: int) -> None:
        """Note that the source was found and failed; see `Store`."""
        # What this says of the run that saw the document is not to be lost.
        _, touched = self._touches.pop(failure.uri, ("", run))
        seen = max(run, touched)
        name = digest(failure.uri)
        texts = (failure.uri, failure.origin, failure.stage, failure.kind, failure.error)

        async def write(connection: Any) -> None:
            await connection.execute(
                """
                INSERT INTO unwait.failures (name, uri, origin, stage, kind, error, run)
                VALUES ($1, $2, $3, $4, $5, $6, $7)
                ON CONFLICT (name) DO UPDATE SET origin = excluded.origin, stage = excluded.stage,
                    kind = excluded.kind, error = excluded.error, run = excluded.run
                """,
                name,
                *map(stored, texts),
                run,
            )
            await connection.execute(
                "UPDATE unwait.documents SET origin = $2, run = greatest(run, $3) WHERE name = $1",
                name,
                stored(failure.origin),
                seen,
            )

        await self._connections.transaction(write)

    async def prune(self, run: int, origins: Sequence[str], gone: Sequence[str] = ()) -> list[str]:
        """Remove what disappeared; see `Store`."""
        await self._flush()
        unseen = [stored(origin) for origin in origins], run, [digest(uri) for uri in gone]
        rows = await self._rows(
            "SELECT name, uri FROM unwait.documents WHERE origin = ANY ($1) AND run < $2 OR name = ANY ($3)",
            *unseen,
        )
        for row in rows:
            await self._do("SELECT unwait.remove($1)", row["name"])
        await self._do(
            """
            WITH failed AS (
                DELETE FROM unwait.failures WHERE origin = ANY ($1) AND run < $2 OR name = ANY ($3) RETURNING name
            )
            DELETE FROM unwait.calls USING failed WHERE calls.name = failed.name
            """,
            *unseen,
        )
        # Known from before: an answer that was lost must not lose their names.
        return sorted(original(row["uri"]) for row in rows)

    # Model calls that are finished.

    async def keep_calls(self, answers: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep the answers of finished calls; see `Store`."""
        rows = [
            (digest(uri), stored(key), answer)
            for uri, calls in sorted(answers.items())
            for key, answer in calls.items()
        ]
        if not rows:
            return
        await self._do(
            """
            WITH given AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[]) AS given (name, key, answer)
            ),
            old AS (
                DELETE FROM unwait.calls USING given WHERE calls.name = given.name AND calls.key = given.key
            )
            INSERT INTO unwait.calls SELECT name, key, answer FROM given
            """,
            *map(list, zip(*rows, strict=True)),
        )

    async def kept_calls(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of the answers that are kept; see `Store`."""
        if not keys:
            return {}
        rows = await self._rows(
            "SELECT DISTINCT ON (key) key, answer FROM unwait.calls WHERE key = ANY ($1)",
            [stored(key) for key in keys],
        )
        return {original(row["key"]): row["answer"] for row in rows}

    async def forget_calls(self, uri: str, prefix: str) -> None:
        """Drop what is kept for this document under keys that begin so; see `Store`."""
        await self._do(
            "DELETE FROM unwait.calls WHERE name = $1 AND starts_with(key, $2)", digest(uri), stored(prefix)
        )

    async def vectors(self, space: str, digests: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of stored chunks of these digests; see `Store`."""
        if not digests:
            return {}
        rows = await self._rows(
            "SELECT DISTINCT ON (digest) digest, vector FROM unwait.vectors WHERE space = $1 AND digest = ANY ($2)",
            stored(space),
            list(digests),
        )
        return {row["digest"]: decode_vector(row["vector"]) for row in rows}

    # Reading.

    async def find(
        self, words: str, vector: Vectors | None, space: str, depth: int, where: Filter
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The best chunks by full text and by vector; see `Store`."""
        if depth <= 0:
            return [], []

        async def read(connection: Any) -> tuple[list[Candidate], list[Candidate]]:
            documents = await allowed(connection, where)
            extension = self._connections.extension
            return (
                await by_text(connection, words, depth, documents),
                await by_vector(connection, extension, vector, space, depth, documents),
            )

        return await self._connections.transaction(read, snapshot=True)

    async def documents(self, where: Filter = _EVERYWHERE) -> AsyncIterator[Listed]:
        """All documents, by URI."""
        await self._flush()
        clause, parameters = condition(where, 2)
        after = ""
        while True:
            rows = await self._rows(
                "SELECT uri, origin, title, format, chunks, records, characters, summary, metadata, saved "
                "FROM unwait.documents d WHERE (left(uri, 500), uri) > (left($1, 500), $1) "
                f"AND {clause} ORDER BY left(uri, 500), uri LIMIT {_PAGE}",
                after,
                *parameters,
            )
            for row in rows:
                yield Listed(
                    uri=original(row["uri"]),
                    origin=original(row["origin"]),
                    title=original(row["title"]),
                    format=original(row["format"]),
                    chunks=row["chunks"],
                    records=row["records"],
                    characters=row["characters"],
                    summary=original(row["summary"]),
                    metadata=original_json(row["metadata"]),
                    saved=row["saved"],
                )
            if len(rows) < _PAGE:
                return
            after = rows[-1]["uri"]

    async def failures(self) -> AsyncIterator[Failure]:
        """All sources that failed in their last run, by URI."""
        await self._flush()
        after = ""
        while True:
            rows = await self._rows(
                "SELECT uri, origin, stage, kind, error FROM unwait.failures "
                "WHERE (left(uri, 500), uri) > (left($1, 500), $1) "
                f"ORDER BY left(uri, 500), uri LIMIT {_PAGE}",
                after,
            )
            for row in rows:
                yield Failure(*map(original, row))
            if len(rows) < _PAGE:
                return
            after = rows[-1]["uri"]

    async def records(
        self, where: Filter = _EVERYWHERE, schema: str | None = None
    ) -> AsyncIterator[tuple[str, Record]]:
        """All records with the URI of their document, by URI and position."""
        clause, parameters = condition(where, 3)
        if schema is not None:
            clause += f" AND r.schema = ${3 + len(parameters)}"
            parameters.append(stored(schema))
        after, last = "", -1
        while True:
            rows = await self._rows(
                "SELECT uri, position, r.schema, r.data, r.begins, r.ends "
                "FROM unwait.documents d JOIN unwait.records r ON r.document = d.id "
                "WHERE (left(uri, 500), uri, position) > (left($1, 500), $1, $2) "
                f"AND {clause} ORDER BY left(uri, 500), uri, position LIMIT {_PAGE}",
                after,
                last,
                *parameters,
            )
            for row in rows:
                yield (
                    original(row["uri"]),
                    Record(original(row["schema"]), original_json(row["data"]), row["begins"], row["ends"]),
                )
            if len(rows) < _PAGE:
                return
            after, last = rows[-1]["uri"], rows[-1]["position"]

    async def _flush(self) -> None:
        """Write the touches that wait."""
        async with self._flushing:
            touches = dict(self._touches)
            if not touches:
                return
            # In one order: two who write the same documents do not wait for each other in a circle.
            rows = sorted((digest(uri), stored(origin), run) for uri, (origin, run) in touches.items())
            names, origins, runs = zip(*rows, strict=True)

            async def write(connection: Any) -> None:
                await connection.execute("DELETE FROM unwait.failures WHERE name = ANY ($1)", names)
                await connection.execute(
                    """
                    UPDATE unwait.documents SET origin = given.origin, run = greatest(documents.run, given.run)
                    FROM unnest($1::text[], $2::text[], $3::bigint[]) AS given (name, origin, run)
                    WHERE documents.name = given.name
                    """,
                    names,
                    origins,
                    runs,
                )

            await self._connections.transaction(write)
            for uri, touch in touches.items():
                if self._touches.get(uri) == touch:
                    del self._touches[uri]

    async def _rows(self, query: str, *parameters: Any) -> list[Any]:
        rows: list[Any] = await self._connections.run(lambda connection: connection.fetch(query, *parameters))
        return rows

    async def _row(self, query: str, *parameters: Any) -> Any:
        return await self._connections.run(lambda connection: connection.fetchrow(query, *parameters))

    async def _value(self, query: str, *parameters: Any) -> Any:
        return await self._connections.run(lambda connection: connection.fetchval(query, *parameters))

    async def _do(self, query: str, *parameters: Any) -> None:
        await self._connections.run(lambda connection: connection.execute(query, *parameters))


def _parameters(first: int, count: int) -> str:
    return ", ".join(f"${n}" for n in range(first, first + count))


_DOCUMENT_COLUMNS, _CHUNK_COLUMNS = 18, 14
_SAVE_FIRST = f"SELECT unwait.replace({_parameters(1, _DOCUMENT_COLUMNS)})"
_SAVE_MORE = f"SELECT unwait.add($1, {_parameters(2, _CHUNK_COLUMNS)})"
_SAVE_WHOLE = (
    f"SELECT unwait.add(unwait.replace({_parameters(1, _DOCUMENT_COLUMNS)}), "
    f"{_parameters(1 + _DOCUMENT_COLUMNS, _CHUNK_COLUMNS)})"
)


def _batches(chunks: Sequence[Chunk]) -> Iterator[range]:
    """The positions of the chunks that are sent at once; a document without chunks has one batch of none."""
    start = characters = 0
    for position, chunk in enumerate(chunks):
        if position > start and (
            position - start >= _BATCH_CHUNKS or characters + len(chunk.text) > _BATCH_CHARACTERS
        ):
            yield range(start, position)
            start, characters = position, 0
        characters += len(chunk.text)
    yield range(start, len(chunks))


def _document_row(document: Document, run: int) -> tuple[Any, ...]:
    """What `unwait.replace` takes."""
    records = document.records
    return (
        digest(document.uri),
        stored(document.uri),
        stored(document.origin),
        run,
        stored(document.digest),
        stored_json(document.versions.to_json()),
        stored_or_none(document.etag),
        stored_or_none(document.last_modified),
        stored(document.title),
        stored(document.format),
        stored(document.summary),
        stored_json(dict(document.metadata)),
        facets(document.metadata),
        document.vectors.shape[1],
        [stored(record.schema) for record in records],
        [stored_json(dict(record.data)) for record in records],
        [record.start for record in records],
        [record.end for record in records],
    )


def _chunk_rows(document: Document, batch: range) -> tuple[Any, ...]:
    """What `unwait.add` takes, for the chunks at these positions."""
    chunks = document.chunks[batch.start : batch.stop]
    vectors = document.vectors[batch.start : batch.stop]
    title, title_words = terms(document.title)
    headings = {section: terms(" ".join(section)) for section in {chunk.section for chunk in chunks}}
    indexed = [terms(chunk.text) for chunk in chunks]
    return (
        list(batch),
        [stored(chunk.id) for chunk in chunks],
        [chunk.start for chunk in chunks],
        [chunk.end for chunk in chunks],
        [chunk.page for chunk in chunks],
        [stored_json(chunk.section) for chunk in chunks],
        [stored(chunk.text) for chunk in chunks],
        stored(document.versions.vectors),
        [chunk.digest for chunk in chunks],
        encode_vectors(vectors) if vectors.shape[1] else [],
        " ".join(title),
        [" ".join(headings[chunk.section][0]) for chunk in chunks],
        [" ".join(found) for found, _ in indexed],
        [
            title_words + headings[chunk.section][1] + count
            for chunk, (_, count) in zip(chunks, indexed, strict=True)
        ],
    )


def _document(row: Any, chunks: list[Any], vectors: list[Any], records: list[Any]) -> Document:
    matrix = np.zeros((len(chunks), row["dimensions"]), np.float32)
    for position, vector in vectors:
        matrix[position] = decode_vector(vector)
    return Document(
        uri=original(row["uri"]),
        origin=original(row["origin"]),
        title=original(row["title"]),
        format=original(row["format"]),
        digest=original(row["digest"]),
        versions=Versions(**original_json(row["versions"])),
        chunks=[
            Chunk(
                id=original(chunk["id"]),
                position=chunk["position"],
                start=chunk["begins"],
                end=chunk["ends"],
                text=original(chunk["text"]),
                section=tuple(original_json(chunk["section"])),
                page=chunk["page"],
            )
            for chunk in chunks
        ],
        vectors=matrix,
        summary=original(row["summary"]),
        records=[
            Record(
                original(record["schema"]), original_json(record["data"]), record["begins"], record["ends"]
            )
            for record in records
        ],
        metadata=original_json(row["metadata"]),
        etag=original_or_none(row["etag"]),
        last_modified=original_or_none(row["last_modified"]),
    )
