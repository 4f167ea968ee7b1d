"""Documents for the tests of stores: made from a few texts, with vectors that follow from the words."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unwait.documents.model import Chunk, Document, Record, Versions, digest

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


def positions(candidates: Iterable[Any]) -> list[tuple[str, int]]:
    """Which chunks these are, by the URI and where they start."""
    return [(candidate.uri, candidate.start) for candidate in candidates]
