"""From bytes to text and chunks; for a document that is new, also to what follows without asking anybody.

That is Python, and libraries that hold its lock: one thread does as much as two, and one more is for PDFs, which are
read one at a time. Where there is much to read it moves to processes, if they are allowed: each is another core, and
what a document does to its reader it does to that process alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unwait.documents import chunk, extract, extractive
from unwait.documents.model import Chunk, Content
from unwait.flow.coprocess import Coprocess, CoprocessEnded
from unwait.flow.workers import WorkerCrashed, ending

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

_MANY = 32  # documents after which processes are worth their start, which takes half a second
_AHEAD = 8  # documents that a process has, so that it never waits for the next
_MUCH = 1 << 20  # bytes of a document


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
    """`reading = await readers(job)`; to be closed with `aclose()`. `processes` is how many may be started."""

    def __init__(self, processes: int) -> None:
        self._most = processes
        self._thread = ThreadPoolExecutor(1, "unwait-read")
        # Those that wait for another must not keep the thread from other documents.
        self._pdf_thread = ThreadPoolExecutor(1, "unwait-pdf")
        self._seen = 0
        self._starting: asyncio.Task[None] | None = None
        self._ready = False
        self._processes: list[Coprocess] = []
        self._turns = asyncio.Semaphore(processes * _AHEAD)
        self._alone = asyncio.Lock()
        self._spare: Coprocess | None = None

    async def __call__(self, job: Job) -> Reading:
        """Read the document. Raises SourceFailed, and WorkerCrashed if its process died of it."""
        self._seen += 1
        if self._seen == _MANY and self._most:
            self._starting = asyncio.get_running_loop().create_task(self._start(job))
        if self._ready:
            return await self._by_process(job)
        thread = self._pdf_thread if b"%PDF-" in job.content.body[:1024] else self._thread
        return await asyncio.get_running_loop().run_in_executor(thread, read, job)

    async def _start(self, job: Job) -> None:
        """Meanwhile the thread goes on. Where none can be started, it does so to the end."""

        async def start() -> None:
            with suppress(OSError, CoprocessEnded):
                self._processes.append(await self._begin(job))
                self._ready = True

        async with asyncio.TaskGroup() as group:
            for _ in range(self._most):
                group.create_task(start())

    async def _begin(self, job: Job) -> Coprocess:
        """A process that has loaded what such jobs need."""
        process = await Coprocess.start()
        try:
            await process.call(read, replace(_FIRST, embed=job.embed))
        except BaseException:
            await process.kill()
            raise
        return process

    async def _by_process(self, job: Job) -> Reading:
        async with self._turns:
            if self._processes:
                process = min(self._processes, key=lambda each: each.waiting)
                with suppress(CoprocessEnded):
                    return await self._ask(process, job)
                if process in self._processes:
                    self._processes.remove(process)
                    await process.kill()
        # Another one may have been too much for it. All that it had are tried again, each alone.
        async with self._alone:
            try:
                process, self._spare = self._spare or await self._begin(job), None
            except (OSError, CoprocessEnded):
                raise WorkerCrashed("the process that read it ended, and no other can be started") from None
            try:
                reading = await self._ask(process, job)
            except CoprocessEnded:
                exitcode = await process.kill()
                raise WorkerCrashed(f"the process that read it {ending(exitcode)}", exitcode) from None
            except BaseException:
                self._keep(process)
                raise
            self._keep(process)
            return reading

    async def _ask(self, process: Coprocess, job: Job) -> Reading:
        reading: Reading = await process.call(read, job, much=len(job.content.body) > _MUCH)
        return reading

    def _keep(self, process: Coprocess) -> None:
        if len(self._processes) < self._most:
            self._processes.append(process)
        else:
            self._spare = process

    async def aclose(self) -> None:
        """End the threads, once what they are at has ended, and the processes."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        for process in (*self._processes, *filter(None, [self._spare])):
            await process.kill()
        for thread in (self._thread, self._pdf_thread):
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)
