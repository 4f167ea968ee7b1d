"""What the pipeline and the search ask of a database, and how one is opened.

Rules for every store:

- `save` is one transaction: a reader sees the old version of a document or the new one with all its chunks,
  vectors, summary and records. When it returns, a `kill -9` loses nothing of it.
- Any text is stored as it is: NUL bytes, lone surrogates, quotes, the syntax of queries. No text is ever part of a
  statement.
- Nothing blocks the loop.
- Several processes may write at the same time; the one that began the run, or those it hands its number to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from unwait.documents.model import Candidate, Document, Failure, Filter, Listed, Record, State

if TYPE_CHECKING:
    from unwait.documents.model import Vectors


class StoreError(Exception):
    """The store cannot be used, or not any longer; the message names it and says what to do."""


class StoreBusy(StoreError):
    """Another run is writing into the store."""


class Store(Protocol):
    """A database of documents, open between `async with store:` and its end."""

    name: str
    """The path or the address, without a password."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    # A run.

    async def begin(self, settings: Mapping[str, str]) -> int:
        """Begin a run, alone; its number, higher than that of any before. The settings are kept for `settings`.

        The right to write ends with the store's `async with`, or with the process. Raises StoreBusy.
        """
        ...

    async def settings(self) -> dict[str, str]:
        """Those of the last run; empty before the first."""
        ...

    async def state(self, uri: str) -> State | None:
        """What is known of the document; None if there is none."""
        ...

    async def document(self, uri: str) -> Document | None:
        """The whole document, or None."""
        ...

    async def save(self, document: Document, run: int) -> None:
        """Store the document in place of any of that URI, and drop its failure and what `keep_calls` kept for it."""
        ...

    async def touch(self, uri: str, origin: str, run: int) -> None:
        """Note that this run found the document unchanged, and drop its failure.

        Need not be durable before the end, or before `documents` or `failures` tell the first.
        """
        ...

    async def fail(self, failure: Failure, run: int) -> None:
        """Note that this run found the source, and that it failed. An older version stays, as seen in this run."""
        ...

    async def prune(self, run: int, origins: Sequence[str], gone: Sequence[str] = ()) -> list[str]:
        """Remove the documents and failures of these origins that this run has not seen, and those of `gone`.

        With all that belongs to them, one transaction a document. Returns the URIs of the documents, sorted.
        """
        ...

    # Model calls that are finished, until their document is stored. A key begins with what it is for: "embed:…".

    async def keep_calls(self, answers: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep the answers: by the URI of the document they are for, then by key. Durable when it returns."""
        ...

    async def kept_calls(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of the answers that are kept, for whichever document."""
        ...

    async def forget_calls(self, uri: str, prefix: str) -> None:
        """Drop what is kept for this document under keys that begin so."""
        ...

    async def vectors(self, space: str, digests: Sequence[str]) -> dict[str, Vectors]:
        """The vectors (one dimension) of stored chunks of these digests, made by this model; no others."""
        ...

    # Reading.

    async def find(
        self, words: str, vector: Vectors | None, space: str, depth: int, where: Filter
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The best `depth` chunks by full text (BM25) for any of the words, and by cosine to the vector; best first.

        Both from the same state of the store. Vectors of other spaces are left out. `words` is what a person typed,
        `vector` None for no second ranking; no words, no first. Equal scores are in the order of URI and position.
        """
        ...

    def documents(self, where: Filter = ...) -> AsyncIterator[Listed]:
        """All documents, by URI."""
        ...

    def failures(self) -> AsyncIterator[Failure]:
        """All sources that failed in their last run, by URI."""
        ...

    def records(self, where: Filter = ..., schema: str | None = None) -> AsyncIterator[tuple[str, Record]]:
        """All records with the URI of their document, by URI and position."""
        ...


def open_store(address: str, *, process: bool = False) -> Store:
    """The store at `postgresql://…`, else in the SQLite file of this path; to be used in `async with`.

    With `process`, a long run may write a SQLite file in a process of its own, so that it does not wait for the loop.
    Raises ImportError naming the extra if its library is missing, ValueError for another scheme.
    """
    if address.startswith(("postgresql://", "postgres://")):
        from unwait.documents.postgres_store import PostgresStore

        return PostgresStore(address)
    if "://" in address:
        raise ValueError(
            f"a store is the path of a SQLite file or postgresql://…, not {address.partition('://')[0]}://…"
        )
    from unwait.documents.sqlite_store import SqliteStore

    return SqliteStore(address, process=process)
