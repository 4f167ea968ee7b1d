"""The stages between a source and the store, in one process.

    load → read → embed → summarise → records → save

Each takes and returns the `Work` of one source. The journal of the run is the store itself: what is saved of a
document says what it was made with, so that each stage knows whether there is anything to do; and what a model that
is paid for has answered is kept there before it is used.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from unwait.documents import chunk, extract, extractive
from unwait.documents.finished import Embedding, Finished
from unwait.documents.load import load, load_files
from unwait.documents.model import (
    Chunk,
    Content,
    Document,
    Failure,
    Record,
    Source,
    SourceFailed,
    State,
    Versions,
    text_of,
)
from unwait.documents.models import Chat, Embedder, ModelUnusable
from unwait.documents.reading import Job, Readers
from unwait.documents.report import Counts, IngestReport, Row, StageSummary
from unwait.documents.settings import EXTRACTIVE, NONE, STATIC, Settings
from unwait.documents.store import Store, StoreError
from unwait.flow.batches import Batch
from unwait.flow.faults import describe, scrub
from unwait.flow.pipeline import Pipeline, Stage
from unwait.flow.pipeline_run import PipelineOutcome
from unwait.flow.stats import Report
from unwait.flow.workers import WorkerCrashed
from unwait.web.errors import ClientError

if TYPE_CHECKING:
    from unwait.documents.model import Vectors
    from unwait.documents.openai import Endpoint
    from unwait.documents.records import Extractor
    from unwait.documents.summarise import ChatSummariser
    from unwait.web.client import Client

_QUEUE = 64  # documents in front of a stage
_QUEUE_BYTES = 16 << 20
_READING = 64  # documents that are being read, or wait for a thread or a process that does it
_EMBEDDING = 256  # documents that are being embedded
_SAVERS = 16  # documents on their way into the store
_UNDER_WAY = 48 << 20  # bytes of the documents in all stages; in memory they are several times that
_SMALL = 256 << 10  # bytes of a file that is read before there is room for it
_FILES = 16  # such files that are read one after the other
_THREADS = 4  # that do it
_INLINE = 200  # chunks that a summary is made of in the loop's thread; it takes some 100 µs
_LONGEST_ERROR = 2000  # characters


@dataclass(slots=True)
class Work:
    """A source on its way. `old` is the stored document, where some of it can be kept.

    `told` is a stored document of the same text, though of other chunks: what a chat model said of it still holds.
    """

    source: Source
    row: Row
    content: Content | None = None
    known: State | None = None
    old: Document | None = None
    told: Document | None = None
    title: str = ""
    format: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    chunks: Sequence[Chunk] = ()
    vectors: Vectors | None = None
    summary: str = ""
    records: Sequence[Record] = ()
    unchanged: bool = False
    room: int = 0  # that it has taken

    @property
    def size(self) -> float:
        """About how many bytes it holds."""
        body = 0 if self.content is None else len(self.content.body)
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        return body + vectors + 2 * sum(chunk.end - chunk.start for chunk in self.chunks)


class _Room:
    """Bounds the bytes of all documents that are under way; a larger one waits until it has the room to itself."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, work: Work, size: int) -> None:
        """Wait for that much, behind those that were here before."""
        size = min(size, self._most)
        if self._waiting or size > self._free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((turn, size))
            await turn
        else:
            self._free -= size
        work.room += size

    def give(self, work: Work) -> None:
        """The document has left, or takes up nothing any more."""
        self._free += work.room
        work.room = 0
        while self._waiting and (self._waiting[0][0].done() or self._waiting[0][1] <= self._free):
            turn, size = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


def _stage(func: Callable[[Work], Awaitable[Work]], limit: int, name: str) -> Stage:
    return Stage(
        func, limit=limit, name=name, queue=_QUEUE, queue_bytes=_QUEUE_BYTES, size=lambda work: work.size
    )


class Ingestion:
    """The stages with their models, for one store; to be used in `async with`.

    Raises what opening a model raises: ValueError for a name that is none, ImportError for a missing library.
    """

    def __init__(self, settings: Settings, store: Store, client: Client, api_key: str | None) -> None:
        self._settings = settings
        self._store = store
        self._run = 0
        self._client = client
        self._api_key = api_key
        self._stack = AsyncExitStack()
        self._endpoints: dict[str, Endpoint] = {}
        self.finished = Finished(store)
        self.gone: list[str] = []
        """Sources that were named and no longer exist."""
        self._pipeline: Pipeline | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        try:
            # Without vectors to make, reading takes about as long as what the loop does.
            many = settings.processes if settings.embed == STATIC else (settings.processes + 1) // 2
            self._readers = Readers(many)
            self._stack.push_async_callback(self._readers.aclose)
            self._model = embedder = await self._embedder()
            self.embedding = Embedding(embedder, self.finished)
            await self._stack.enter_async_context(self.embedding)
            self._summariser: ChatSummariser | None = None
            summary = "" if settings.summarise == NONE else f"{extractive.VERSION}:{embedder.name}"
            if settings.summarise not in (NONE, EXTRACTIVE):
                from unwait.documents.summarise import ChatSummariser

                self._summariser = ChatSummariser(await self._chat(settings.summarise), self.finished)
                summary = self._summariser.version
            self._extractor: Extractor | None = None
            if settings.records != NONE:
                from unwait.documents.records import Extractor, load_model

                try:
                    model = settings.schema or load_model(settings.records)
                except ValueError as error:
                    # They may be those of a run long ago.
                    hint = 'name the model anew with records= (--records), or "none" to extract none'
                    raise ValueError(f"{error}; {hint}") from error
                self._extractor = Extractor(await self._chat(settings.chat), self.finished, model)
            made_by = f"{extract.VERSION}.{chunk.VERSION}:{settings.chunk_size}:{settings.overlap}"
            self._versions = Versions(
                chunks=f"{made_by}:{settings.text_field}",
                vectors=embedder.name,
                summary=summary,
                records="" if self._extractor is None else self._extractor.version,
            )
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def check(self) -> None:
        """Have a model that is paid for embed a word: one that nobody has asked before. Raises ClientError."""
        if self._model.paid:
            await self._model.embed(["unwait"])

    async def _embedder(self) -> Embedder:
        if self._settings.embed == STATIC:
            from unwait.documents.static_vectors import StaticEmbedder

            embedder = StaticEmbedder()
            self._stack.push_async_callback(embedder.aclose)
            return embedder
        from unwait.documents.openai import OpenAIEmbedder, model_of

        model = model_of(self._settings.embed)
        return OpenAIEmbedder(await self._endpoint(self._settings.embed), model)

    async def _chat(self, spec: str) -> Chat:
        from unwait.documents.openai import OpenAIChat, model_of

        model = model_of(spec)
        return OpenAIChat(await self._endpoint(spec), model)

    async def _endpoint(self, spec: str) -> Endpoint:
        """Each model has limits of its own; who uses it twice shares them."""
        if spec not in self._endpoints:
            from unwait.documents.openai import Endpoint

            settings = self._settings
            self._endpoints[spec] = await self._stack.enter_async_context(
                Endpoint(
                    settings.base_url or None,
                    self._api_key,
                    rate=settings.rate,
                    tokens=settings.tokens,
                    limit=settings.limit,
                )
            )
        return self._endpoints[spec]

    @property
    def space(self) -> str:
        """The space of the vectors it makes."""
        return self._versions.vectors

    @property
    def counts(self) -> Counts:
        """What models that are paid for did so far."""
        return self.finished.counts

    def account(self, report: IngestReport) -> None:
        """Add what the stages and the models did."""
        report.count(self.counts)
        if self._pipeline is not None:
            stages = self._pipeline.report
            report.bottleneck = stages.bottleneck
            report.stages = [StageSummary.of(stage) for stage in stages.stages]

    async def rows(
        self,
        run: int,
        sources: AsyncGenerator[Source, None],
        *,
        progress: bool | Callable[[Report], None] | None,
        grace: float,
    ) -> AsyncGenerator[Row, None]:
        """Bring the sources into the store, as this run of it; the row of each as soon as that is stored."""
        self._run = run
        self._room = _Room(_UNDER_WAY)
        # Together, as the way to a thread and back takes as long as reading several.
        self._small_files: Batch[str, Content | SourceFailed] = Batch(
            lambda paths: load_files(paths, min(self._settings.max_bytes, _SMALL)),
            size=_FILES,
            max_wait=0,
            limit=_THREADS,
        )
        limit = self._settings.limit
        stages = [
            Stage(self._load, limit=limit, name="load"),
            _stage(self._read, _READING, "read"),
            # A document waits for its chunks, which go into calls with those of others.
            _stage(self._embed, max(limit, _EMBEDDING), "embed"),
            _stage(self._summary, limit, "summarise"),
            _stage(self._save, _SAVERS, "save"),
        ]
        if self._extractor is not None:
            stages.insert(-1, _stage(self._records, limit, "records"))
        self._pipeline = Pipeline(stages, saved_in=self._store.name)
        stream = self._pipeline.stream(_works(sources), progress=progress, grace=grace)
        async with stream:
            async for outcome in stream:
                assert isinstance(outcome, PipelineOutcome)
                work: Work = outcome.item
                self._room.give(work)
                work.row.seconds = outcome.elapsed
                if outcome.error is not None:
                    await self._fail(work, outcome.error, outcome.stage or "list")
                yield work.row

    # The stages.

    async def _load(self, work: Work) -> Work:
        source = work.source
        if source.problem is not None:
            raise source.problem
        known = await self._store.state(source.uri)
        same_chunks = known is not None and known.versions.chunks == self._versions.chunks
        # A server that says "unchanged" sends nothing: then the stored text must be of use.
        content = await self._content(work, known if same_chunks else None)
        work.known, work.content = known, content
        if known is None:
            return work
        work.row.outcome = "updated"
        if same_chunks and (content is None or content.digest == known.digest):
            work.content = content and replace(content, body=b"")
            if known.versions == self._versions:
                work.unchanged, work.row.outcome = True, "unchanged"
                self._room.give(work)
            else:
                work.old = await self._store.document(source.uri)
                if content is None and work.old is not None:
                    await self._room.take(work, sum(len(chunk.text) for chunk in work.old.chunks))
        elif self._has_told(known.versions):
            work.told = await self._store.document(source.uri)
        return work

    def _has_told(self, made: Versions) -> bool:
        """Whether the answers of chat models that a document was made with are those that are wanted."""
        wanted = self._versions
        summary = self._summariser is not None and made.summary == wanted.summary
        return summary or (self._extractor is not None and made.records == wanted.records)

    async def _content(self, work: Work, known: State | None) -> Content | None:
        """What the source consists of, when there is room for it. What a server sends is there before that."""
        source, most = work.source, self._settings.max_bytes
        content: Content | SourceFailed | None
        if source.path is None or source.content is not None:
            content = await load(source, known, self._client, max_bytes=most)
        else:
            content = await self._small_files(source.path)
            if isinstance(content, SourceFailed):
                if content.kind != "too large" or most <= _SMALL:
                    raise content
                size = await asyncio.to_thread(_size, source.path)
                if size <= most:
                    await self._room.take(work, size)
                return await load(source, known, self._client, max_bytes=most)
        if content is not None:
            await self._room.take(work, len(content.body))
        return content

    async def _read(self, work: Work) -> Work:
        if work.unchanged:
            return work
        if work.old is not None:
            old = work.old
            work.title, work.format, work.metadata, work.chunks = (
                old.title,
                old.format,
                old.metadata,
                old.chunks,
            )
        else:
            assert work.content is not None
            settings = self._settings
            # Of a document that is known, much may be: its vectors are looked up first.
            new = work.known is None and settings.embed == STATIC
            reading = await self._readers(
                Job(
                    work.content,
                    work.source.uri,
                    work.source.metadata,
                    settings.text_field,
                    settings.chunk_size,
                    settings.overlap,
                    self._versions.chunks,
                    embed=new,
                    summarise=new and settings.summarise == EXTRACTIVE,
                )
            )
            work.title, work.format, work.metadata = reading.title, reading.format, reading.metadata
            work.chunks, work.vectors, work.summary = reading.chunks, reading.vectors, reading.summary
            # The bytes have had their day; what is stored of them stays.
            work.content = replace(work.content, body=b"")
            if (told := work.told) is not None:
                same = told.title == work.title and await asyncio.to_thread(
                    lambda: told.text == text_of(reading.chunks)
                )
                work.told = replace(told, chunks=(), vectors=told.vectors[:0].copy()) if same else None
        work.row.format, work.row.chunks = work.format, len(work.chunks)
        return work

    async def _embed(self, work: Work) -> Work:
        if work.unchanged:
            return work
        old = work.old
        if work.vectors is not None:
            work.row.embedded = len(work.chunks)
        elif old is not None and old.versions.vectors == self._versions.vectors:
            work.vectors = old.vectors
            work.row.reused = len(work.chunks)
        else:
            work.vectors, work.row.embedded = await self.embedding.vectors(work.source.uri, work.chunks)
            work.row.reused = len(work.chunks) - work.row.embedded
        return work

    async def _summary(self, work: Work) -> Work:
        if work.unchanged:
            return work
        old, wanted = work.old, self._versions.summary
        assert work.vectors is not None
        if work.summary:
            pass  # it was made as the document was read
        elif old is not None and old.versions.summary == wanted:
            work.summary = old.summary
        elif self._summariser is not None and work.told is not None and work.told.versions.summary == wanted:
            work.summary = work.told.summary
        elif self._summariser is not None:
            work.summary = await self._summariser.summarise(work.source.uri, work.title, work.chunks)
        elif wanted and len(work.chunks) > _INLINE:
            work.summary = await asyncio.to_thread(extractive.summary, work.chunks, work.vectors)
        elif wanted:
            work.summary = extractive.summary(work.chunks, work.vectors)
        return work

    async def _records(self, work: Work) -> Work:
        if work.unchanged:
            return work
        old = work.old or work.told
        assert self._extractor is not None
        if old is not None and old.versions.records == self._versions.records:
            work.records = old.records
        else:
            work.records = await self._extractor.extract(work.source.uri, work.title, work.chunks)
        work.row.records = len(work.records)
        return work

    async def _save(self, work: Work) -> Work:
        source, run = work.source, self._run
        if work.unchanged:
            await self._store.touch(source.uri, source.origin, run)
            return work
        # Without content, the server said that nothing has changed.
        stored = work.content or work.known
        assert stored is not None
        assert work.vectors is not None
        await self._store.save(
            Document(
                uri=source.uri,
                origin=source.origin,
                title=work.title,
                format=work.format,
                digest=stored.digest,
                versions=self._versions,
                chunks=work.chunks,
                vectors=work.vectors,
                summary=work.summary,
                records=work.records,
                metadata=work.metadata,
                etag=stored.etag,
                last_modified=stored.last_modified,
            ),
            run,
        )
        return work

    async def _fail(self, work: Work, error: BaseException, stage: str) -> None:
        if isinstance(error, StoreError | ModelUnusable):
            # Nothing more can be kept, and going on would pay for what is lost; or all would fail alike.
            raise error
        kind, text = "error", describe(error, _LONGEST_ERROR)
        if isinstance(error, SourceFailed):
            kind, text = error.kind, scrub(str(error))[:_LONGEST_ERROR]
            if error.gone:
                self.gone.append(work.source.uri)
        elif isinstance(error, ClientError):
            kind = "model"
        elif isinstance(error, WorkerCrashed):
            kind = "crashed"
        row = work.row
        row.outcome, row.stage, row.kind, row.error = "failed", stage, kind, text
        row.chunks = row.records = 0
        await self._store.fail(Failure(work.source.uri, work.source.origin, stage, kind, text), self._run)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # reading it tells why


async def _works(sources: AsyncGenerator[Source, None]) -> AsyncGenerator[Work, None]:
    async with aclosing(sources):
        async for source in sources:
            yield Work(source, Row(source.uri))
