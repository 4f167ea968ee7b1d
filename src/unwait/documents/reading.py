"""From bytes to text and chunks; for a document that is new, also to what follows without asking anybody.

That is Python, and libraries that hold its lock: one thread does as much as two, and one more is for PDFs, which are
read one at a time. Where there is much to read it moves to processes, if they are allowed: each is another core, and
what a document does to its reader it does to that process alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unwait.documents import chunk, extract, extractive
from unwait.documents.model import Chunk, Content
from unwait.flow.workers import Workers, place

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

_MANY = 48  # documents after which processes are worth their start, which takes about a second


@dataclass(frozen=True, slots=True)
class Job:
    """A document to be read. With `embed` the embedded model makes its vectors, with `summarise` its summary too."""

    content: Content
    uri: str
    metadata: Mapping[str, Any]
    text_field: str
    chunk_size: int
    overlap: int
    version: str
    embed: bool
    summarise: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read."""

    title: str
    format: str
    metadata: Mapping[str, Any]
    chunks: list[Chunk]
    vectors: Vectors | None
    summary: str


def read(job: Job) -> Reading:
    """Read the document. Raises SourceFailed."""
    text = extract.extract(job.content, job.uri, text_field=job.text_field)
    chunks = chunk.chunks(job.uri, text, size=job.chunk_size, overlap=job.overlap, version=job.version)
    vectors, summary = None, ""
    if job.embed:
        from unwait.documents.static_vectors import model

        vectors = model().embed([each.passage for each in chunks])
        if job.summarise:
            summary = extractive.summary(chunks, vectors)
    return Reading(text.title, text.format, {**text.metadata, **job.metadata}, chunks, vectors, summary)


_FIRST = Job(Content(b"a word", ""), "first.txt", {}, "text", 100, 0, "", embed=True, summarise=True)


class Readers:
    """`reading = await readers(job)`; to be closed with `aclose()`.

    `processes` is how many may be started; 0 for none. Starting them imports the main module, as multiprocessing does.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._thread = ThreadPoolExecutor(1, "unwait-read")
        # Those that wait for another must not keep the thread from other documents.
        self._pdf_thread = ThreadPoolExecutor(1, "unwait-pdf")
        self._seen = 0
        self._starting: asyncio.Task[None] | None = None
        self._workers: Workers[Job, Reading] | None = None
        self._ready = False

    async def __call__(self, job: Job) -> Reading:
        """Read the document. Raises SourceFailed, and WorkerCrashed if its process died of it."""
        self._seen += 1
        if self._seen == _MANY and self._processes:
            self._workers = place(read, "process", self._processes)
            self._starting = asyncio.get_running_loop().create_task(self._start(self._workers))
        if self._ready and self._workers is not None:
            return await self._workers(job)
        thread = self._pdf_thread if b"%PDF-" in job.content.body[:1024] else self._thread
        return await asyncio.get_running_loop().run_in_executor(thread, read, job)

    async def _start(self, workers: Workers[Job, Reading]) -> None:
        """Meanwhile the thread goes on. Where none can be started, it does so to the end."""
        started = await asyncio.gather(
            *(workers(_FIRST) for _ in range(self._processes)), return_exceptions=True
        )
        self._ready = not any(isinstance(each, BaseException) for each in started)

    async def aclose(self) -> None:
        """End the threads and the processes, once what they are at has ended."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._workers is not None:
            await self._workers.aclose()
        for thread in (self._thread, self._pdf_thread):
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)
