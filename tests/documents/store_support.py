"""Documents for the tests of stores, made from a few texts, with vectors that follow from the words; SQLite's store."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from unwait.documents import sqlite_schema
from unwait.documents.model import Chunk, Document, Record, Versions, digest
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.store import StoreBusy

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

DIMENSIONS = 16
SPACE = "test-16"


def vector(text: str, dimensions: int = DIMENSIONS) -> Vectors:
    """A unit vector: the sum of one for each word, so that texts that share words are near to each other."""
    total = np.zeros(dimensions, np.float32)
    for word in text.lower().split():
        seed = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        total += np.random.default_rng(seed).standard_normal(dimensions, np.float32)
    length = float(np.linalg.norm(total))
    return total / np.float32(length) if length else total


def make_document(
    uri: str,
    texts: Sequence[str] = ("alpha beta",),
    *,
    origin: str = "here",
    title: str = "A title",
    sections: Sequence[tuple[str, ...]] | None = None,
    pages: Sequence[int | None] | None = None,
    space: str = SPACE,
    dimensions: int = DIMENSIONS,
    summary: str = "",
    records: Sequence[Record] = (),
    metadata: Mapping[str, Any] | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
) -> Document:
    """A document of one chunk for each of the texts."""
    chunks, start = [], 0
    for position, text in enumerate(texts):
        chunks.append(
            Chunk(
                id=digest(uri, str(position), text),
                position=position,
                start=start,
                end=start + len(text),
                text=text,
                section=sections[position] if sections else (),
                page=pages[position] if pages else None,
            )
        )
        start += len(text)
    vectors = np.zeros((len(chunks), dimensions), np.float32)
    for chunk in chunks:
        vectors[chunk.position] = vector(chunk.text, dimensions)
    return Document(
        uri=uri,
        origin=origin,
        title=title,
        format="text",
        digest=digest(*texts),
        versions=Versions(chunks="c1", vectors=space, summary="s1", records="r1"),
        chunks=chunks,
        vectors=vectors,
        summary=summary,
        records=records,
        metadata=metadata or {},
        etag=etag,
        last_modified=last_modified,
    )


def assert_same(found: Document | None, expected: Document) -> None:
    """Assert that the document was read as it was saved, to the bit."""
    assert found is not None
    for name in (
        "uri",
        "origin",
        "title",
        "format",
        "digest",
        "versions",
        "summary",
        "etag",
        "last_modified",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    assert list(found.chunks) == list(expected.chunks)
    assert list(found.records) == list(expected.records)
    assert dict(found.metadata) == dict(expected.metadata)
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == expected.vectors.shape
    assert found.vectors.tobytes() == expected.vectors.tobytes()


def assert_whole(path: str) -> None:
    """Assert of a SQLite store that what belongs together is, nothing is left of what went, and the index agrees."""
    with closing(sqlite3.connect(path)) as connection:
        one = lambda query: connection.execute(query).fetchone()[0]  # noqa: E731
        assert one("PRAGMA integrity_check") == "ok"
        connection.execute("INSERT INTO full_text (full_text) VALUES ('integrity-check')")
        shift, block = sqlite_schema.SHIFT, sqlite_schema.BLOCK
        assert one("SELECT chunks FROM state") == one("SELECT count(*) FROM chunks")
        assert one("SELECT count(*) FROM chunks") == one("SELECT count(*) FROM full_text")
        for table, owner in [
            ("chunks", f"id >> {shift}"),
            ("vectors", f"id >> {shift}"),
            ("records", "document"),
        ]:
            assert one(f"SELECT count(*) FROM {table} WHERE {owner} NOT IN (SELECT id FROM documents)") == 0
        for id, chunks, records, dimensions in connection.execute(
            "SELECT id, chunks, records, dimensions FROM documents"
        ).fetchall():
            span = f"BETWEEN {id << shift} AND {((id + 1) << shift) - 1}"
            assert one(f"SELECT count(*) FROM chunks WHERE id {span}") == chunks
            assert (
                one(f"SELECT coalesce(max(id), -1) FROM chunks WHERE id {span}") == (id << shift) + chunks - 1
            )
            size = f"SELECT coalesce(sum(length(vectors)), 0) FROM vectors WHERE id {span}"
            assert one(size) == 4 * chunks * dimensions
            assert one(f"SELECT count(*) FROM vectors WHERE id {span}") == -(-chunks // block)
            assert one(f"SELECT count(*) FROM records WHERE document = {id}") == records


def positions(candidates: Iterable[Any]) -> list[tuple[str, int]]:
    """Which chunks these are, by the URI and where they start."""
    return [(candidate.uri, candidate.start) for candidate in candidates]


@asynccontextmanager
async def in_process(path: str) -> AsyncIterator[SqliteStore]:
    """The store with its process at work: at once if it may write, and if `sqlite_files.MANY` is 1."""
    async with SqliteStore(path, process=True) as store:
        with suppress(StoreBusy):
            await store._files.lock()
            await process_of(store)
        yield store


async def process_of(store: SqliteStore) -> int:
    """The id of the process of a store that may write, once it has started."""
    files = store._files
    await store.settings()
    assert files._starting is not None
    await files._starting
    assert files._process is not None
    return files._process._process._process.pid
