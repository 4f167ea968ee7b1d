"""Calls of models, and their answers, which are kept as soon as they are there: a crash pays for none of them twice.

An answer is kept in the store for the document that asked for it, and dropped when that document is stored, because
then its summary, its records and its vectors are. What is asked for twice at the same time is asked for once. Its
first asker leads: if that one fails or is cancelled, the next leads in its place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from unwait.documents.model import Chunk, digest
from unwait.documents.models import Chat, Embedder, ModelUnusable
from unwait.documents.report import Counts
from unwait.documents.store import Store
from unwait.flow.batches import Batch
from unwait.flow.faults import is_overload, retry_after
from unwait.web.errors import ClientError, InvalidAnswer, StatusError, TooLarge

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8  # calls for one document that run at the same time
_BLOCK = 256  # passages of a document that are looked up and asked for together
_IN_LOOP = 64  # chunks that are hashed within the loop: a quarter of a millisecond
_MAX_WAIT = 0.02  # s that a text waits for others to share its call
# A text may have been too much for the server, or not to its liking; with the other texts it would go on.
_MAY_BE_A_TEXTS = frozenset((400, 413, 422, 500))


async def each(func: Callable[[T], Awaitable[R]], items: Iterable[T], limit: int = _AT_ONCE) -> list[R]:
    """`[await func(item) for item in items]`, at most `limit` at a time.

    After the first error no more are begun; it is raised when those under way have ended, which are paid for anyway.
    Unlike `unwait.map`, an interruption of the program does not end it: the document it is for has been begun.
    """
    waiting = list(items)
    if len(waiting) == 1:
        return [await func(waiting[0])]
    found: list[Any] = [None] * len(waiting)
    failed: list[Exception] = []
    todo = iter(enumerate(waiting))

    async def work() -> None:
        for index, item in todo:
            if failed:
                return
            try:
                found[index] = await func(item)
            except Exception as error:
                failed.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(limit, len(waiting))):
            group.create_task(work())
    if failed:
        raise failed[0]
    return found


class Finished:
    """Answers of calls that are paid for, kept in a store until the document they belong to is stored."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls = 0  # that were made
        self.kept = 0  # answers that a run before has left
        self.tokens = 0.0  # of the calls: as the server says, where it does
        self._flights: dict[str, asyncio.Future[bytes]] = {}

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return Counts(self.calls, self.kept, round(self.tokens))

    async def once(self, uri: str, key: str, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer that is kept under this key; else `ask` for it, and keep it for this document.

        A key begins with what the call is for ("summary:"), and stands for all that is asked.
        """
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight])
            if not flight.cancelled():
                # It is kept for another document, with which it would go.
                await self.keep({uri: {key: flight.result()}})
                return flight.result()
        self._flights[key] = flight = asyncio.get_running_loop().create_future()
        try:
            kept = await self.store.kept_calls([key])
            if key in kept:
                self.kept += 1
                answer = kept[key]
            else:
                answer = await ask()
                self.calls += 1
            await self.keep({uri: {key: answer}})
            flight.set_result(answer)
            return answer
        finally:
            del self._flights[key]
            flight.cancel()  # of no effect once it has its result

    async def keep(self, answers: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep answers by document and key, to the end: whoever is cancelled meanwhile has paid for them."""

        keeping = asyncio.ensure_future(self.store.keep_calls(answers))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await asyncio.wait([keeping])
            if not keeping.cancelled():
                keeping.exception()  # nobody is there to be told
            raise

    async def complete(
        self,
        uri: str,
        purpose: str,
        chat: Chat,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
    ) -> str:
        """What the model answers, kept under a key that begins with "purpose:"; raises ClientError."""

        async def ask() -> bytes:
            answer = await chat.complete(messages, schema=schema, max_tokens=max_tokens)
            self.tokens += answer.prompt_tokens + answer.completion_tokens
            return answer.text.encode("utf-8", "surrogatepass")

        said = [part for message in messages for part in (message["role"], message["content"])]
        key = digest(chat.name, str(max_tokens), repr(schema), *said)
        return (await self.once(uri, f"{purpose}:{key}", ask)).decode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class _Passage:
    """A passage on its way to the model, and the first document that asks for it."""

    uri: str
    digest: str
    text: str
    tokens: float


@dataclass(frozen=True, slots=True)
class _Failed:
    """In the place of rows: an error that is not the passages', which another call would only meet again."""

    error: Exception


class Embedding:
    """The vectors of chunks, each passage embedded once: for one run, between `async with` and its end.

    Rows come from stored chunks of the same passage, from calls that a crash left, and for the rest from the model.
    For a model that is paid for, passages of all documents share calls; answers are kept before they are used, and the
    calls count in `finished`.
    """

    def __init__(self, embedder: Embedder, finished: Finished) -> None:
        self._embedder = embedder
        self._finished = finished
        self._store = finished.store
        self._flights: dict[str, asyncio.Future[Vectors]] = {}
        self._room = asyncio.Semaphore(embedder.at_once)
        # Of pieces of documents, each of which one call takes; its cost is the part that it takes of a call.
        self._batch: Batch[Sequence[_Passage], Vectors | _Failed] = Batch(
            self._embed_and_keep,
            size=embedder.batch,
            max_wait=_MAX_WAIT,
            max_cost=1.0,
            cost=self._share,
            limit=embedder.at_once,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._batch.aclose()

    async def vectors(self, uri: str, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        """A row for each chunk of this document, float32 and of unit length; and for how many the model was asked.

        Raises what the embedder or the store do. A passage that the model does not take is an error of the documents
        that have it, and of no other.
        """
        if not chunks:
            return np.empty((0, 0), np.float32), 0
        # So that nothing is done for all chunks of a huge document at once, and no task is there for each.
        blocks = [chunks[start : start + _BLOCK] for start in range(0, len(chunks), _BLOCK)]
        under_way = max(1, self._embedder.at_once * self._embedder.batch // _BLOCK)
        found = await each(lambda block: self._block(uri, block), blocks, under_way)
        if len(found) == 1:
            return found[0]
        return await asyncio.to_thread(np.concatenate, [rows for rows, _ in found]), sum(
            own for _, own in found
        )

    async def _block(self, uri: str, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        if len(chunks) <= _IN_LOOP:
            digests, passages = self._passages(uri, chunks)
        else:
            digests, passages = await asyncio.to_thread(self._passages, uri, chunks)
        if self._embedder.paid:
            rows, own = await self._paid(uri, passages)
        else:
            rows = await self._store.vectors(self._embedder.name, list(passages))
            missing = [passage for key, passage in passages.items() if key not in rows]
            rows.update(await self._embedded(missing))
            own = len(missing)
        return np.stack([rows[key] for key in digests]), own

    def _passages(self, uri: str, chunks: Sequence[Chunk]) -> tuple[list[str], dict[str, _Passage]]:
        """The digest of each chunk's passage, and the passages by it."""
        texts = [chunk.passage for chunk in chunks]
        digests = list(map(digest, texts))
        return digests, {
            key: _Passage(uri, key, text, self._embedder.tokens(text))
            for key, text in dict(zip(digests, texts, strict=True)).items()
        }

    # Models that cost nothing: each document's passages for themselves, in as few calls as may be.

    async def _embedded(self, passages: Sequence[_Passage]) -> dict[str, Vectors]:
        rows: dict[str, Vectors] = {}

        async def embed(some: list[_Passage]) -> None:
            async with self._room:
                found = await self._embedder.embed([passage.text for passage in some])
            rows.update(zip((passage.digest for passage in some), found, strict=True))

        if passages:
            await each(embed, self._slices(passages), self._embedder.at_once)
        return rows

    def _slices(self, passages: Sequence[_Passage]) -> Iterator[list[_Passage]]:
        """The passages in lists that one call takes."""
        some: list[_Passage] = []
        cost = 0.0
        for passage in passages:
            if some and (
                len(some) >= self._embedder.batch or cost + passage.tokens > self._embedder.batch_tokens
            ):
                yield some
                some, cost = [], 0.0
            some.append(passage)
            cost += passage.tokens
        yield some

    # Models that are paid for.

    async def _paid(self, uri: str, passages: Mapping[str, _Passage]) -> tuple[dict[str, Vectors], int]:
        """The rows by digest, and how many of them the model was asked for here."""
        rows: dict[str, Vectors] = {}
        own = 0
        left = list(passages)
        while left:
            # Claimed before anything is looked up: of two documents with the same passage, the second looks when the
            # first one's answer is kept, or stored.
            claimed = [key for key in left if key not in self._flights]
            if claimed:
                loop = asyncio.get_running_loop()
                flights = {key: loop.create_future() for key in claimed}
                self._flights.update(flights)
                try:
                    own += await self._lead(uri, [passages[key] for key in claimed], rows)
                finally:
                    for key, flight in flights.items():
                        if key in rows:
                            flight.set_result(rows[key])
                        else:
                            flight.cancel()
                        del self._flights[key]
            else:
                awaited = {key: self._flights[key] for key in left}
                await asyncio.wait(awaited.values())
                found = {key: it.result() for key, it in awaited.items() if not it.cancelled()}
                await self._keep(uri, [passages[key] for key in found], found)
                rows.update(found)
            left = [key for key in left if key not in rows]
        return rows, own

    async def _lead(self, uri: str, passages: Sequence[_Passage], rows: dict[str, Vectors]) -> int:
        """Put the rows of these passages into `rows`, whether or not all are found; the number that was asked for."""
        # In this order: what is dropped because its document was stored is found there.
        kept = await self._store.kept_calls([self._key(passage) for passage in passages])
        for passage in passages:
            if (data := kept.get(self._key(passage))) is not None:
                rows[passage.digest] = np.frombuffer(data, "<f4")
                self._finished.kept += 1
        await self._keep(uri, [passage for passage in passages if passage.digest in rows], rows)
        missing = [passage for passage in passages if passage.digest not in rows]
        if missing:
            rows.update(
                await self._store.vectors(self._embedder.name, [passage.digest for passage in missing])
            )
            missing = [passage for passage in missing if passage.digest not in rows]

        async def ask(piece: Sequence[_Passage]) -> None:
            try:
                found = await self._batch(piece)
            except ClientError as error:
                if len(piece) == 1 or is_overload(error) or retry_after(error) is not None:
                    raise
                # It was alone in its last call, and may have one that the model does not take. One half after
                # the other: together they would be that call again.
                middle = (len(piece) + 1) // 2
                await each(ask, (piece[:middle], piece[middle:]), 1)
                return
            if isinstance(found, _Failed):
                raise found.error
            rows.update(zip((passage.digest for passage in piece), found, strict=True))

        if missing:
            await each(ask, self._slices(missing), _BLOCK)
        return len(missing)

    def _share(self, piece: Sequence[_Passage]) -> float:
        tokens = sum(passage.tokens for passage in piece)
        return max(len(piece) / self._embedder.batch, tokens / self._embedder.batch_tokens)

    async def _embed_and_keep(self, pieces: list[Sequence[_Passage]]) -> Sequence[Vectors | _Failed]:
        passages = [passage for piece in pieces for passage in piece]
        try:
            found = await self._embedder.embed([passage.text for passage in passages])
        except ClientError as error:
            if _may_be_a_texts(error):
                raise
            return [_Failed(error)] * len(pieces)
        self._finished.calls += 1
        self._finished.tokens += sum(passage.tokens for passage in passages)
        kept: dict[str, dict[str, bytes]] = {}
        for passage, row in zip(passages, found, strict=True):
            kept.setdefault(passage.uri, {})[self._key(passage)] = _bytes(row)
        try:
            await self._finished.keep(kept)
        except Exception as error:
            # The batch would halve itself for it, and pay again.
            return [_Failed(error)] * len(pieces)
        ends = itertools.accumulate(map(len, pieces))
        return [found[end - len(piece) : end] for piece, end in zip(pieces, ends, strict=True)]

    async def _keep(self, uri: str, passages: Sequence[_Passage], rows: Mapping[str, Vectors]) -> None:
        """Keep for this document what was asked for another one, with which it would go."""
        if passages:
            calls = {self._key(passage): _bytes(rows[passage.digest]) for passage in passages}
            await self._finished.keep({uri: calls})

    def _key(self, passage: _Passage) -> str:
        return f"embed:{self._embedder.name}:{passage.digest}"


def _may_be_a_texts(error: ClientError) -> bool:
    if isinstance(error, ModelUnusable):
        return False
    if isinstance(error, StatusError):
        return error.response is None or error.response.status in _MAY_BE_A_TEXTS
    return isinstance(error, InvalidAnswer | TooLarge)


def _bytes(row: Vectors) -> bytes:
    return row.astype("<f4", copy=False).tobytes()
