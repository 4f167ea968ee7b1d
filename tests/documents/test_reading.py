"""Documents read in processes: the same as in threads, and one that takes its process along harms no other."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import unwait
from unwait.documents import reading
from unwait.documents.model import Content, SourceFailed
from unwait.documents.reading import Job, Readers, Reading
from unwait.documents.report import Row
from unwait.flow.workers import WorkerCrashed

from ..processes import Gate, children, gone
from ..steps import at_step
from .ingest_support import dump, write_corpus
from .test_pdf import lines, written

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    processes = children()
    yield
    assert children() <= processes


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes for the second document already, and for all that come after them."""
    monkeypatch.setattr(reading, "_MANY", 2)


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some documents do something to their reader."""
    monkeypatch.syspath_prepend(str(HERE))
    functions = importlib.import_module("reading_functions")
    monkeypatch.setattr(reading, "read", functions.read_or_die)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


def job(number: int, name: str = "", *, body: bytes = b"", **metadata: Any) -> Job:
    body = body or f"# Title {number}\n\nsome words of {number}".encode()
    name = name or f"{number}.md"
    return Job(Content(body, name), name, metadata, "text", 1000, 0, "1", embed=True, summarise=True)


async def ready(readers: Readers) -> None:
    """Wait until all processes are there."""
    await readers(job(0))
    await readers(job(1))
    assert readers._starting is not None
    await readers._starting
    assert readers._ready


def later(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(call) for call in calls]


def assert_same(there: Reading, here: Reading) -> None:
    assert (there.title, there.format, there.metadata, there.chunks, there.summary) == (
        here.title,
        here.format,
        here.metadata,
        here.chunks,
        here.summary,
    )
    assert there.vectors is not None
    assert here.vectors is not None
    assert there.vectors.tobytes() == here.vectors.tobytes()


async def test_what_processes_read_is_what_threads_read(loop: Any, at_once: None) -> None:
    in_processes, in_threads = Readers(2), Readers(0)
    jobs = [job(number) for number in range(8)]
    pages = [lines(f"Page {page}", "has words") for page in range(4)]
    jobs += [job(n, f"{n}.pdf", body=written(pages[: n + 1], info="/Title (A PDF)")) for n in range(4)]
    jobs += [job(9, body="# Großes\n\n".encode() + b"words and more words\n\n" * 60_000)]
    try:
        await ready(in_processes)
        there = await asyncio.gather(*map(in_processes, jobs))
        here = await asyncio.gather(*map(in_threads, jobs))
        for one, other in zip(there, here, strict=True):
            assert_same(one, other)
        assert {each.format for each in there} == {"markdown", "pdf"}
        assert sum(process.waiting for process in in_processes._processes) == 0
    finally:
        await in_processes.aclose()
        await in_threads.aclose()
        await loop.shutdown_default_executor()


async def test_what_is_wrong_with_a_document_is_told_as_in_a_thread(
    loop: Any, at_once: None, deadly: None
) -> None:
    readers = Readers(1)
    try:
        await ready(readers)
        broken, gone, error, good = await asyncio.gather(
            readers(job(2, "broken.pdf", body=b"%PDF-1.4 nothing")),
            readers(job(3, "goes.txt")),
            readers(job(4, "errs.txt")),
            readers(job(5)),
            return_exceptions=True,
        )
        assert isinstance(broken, SourceFailed)
        assert (broken.kind, broken.gone) == ("broken", False)
        assert isinstance(gone, SourceFailed)
        assert (str(gone), gone.kind, gone.gone) == ("it is not there any more", "not found", True)
        assert isinstance(error, LookupError)
        assert isinstance(good, Reading)
    finally:
        await readers.aclose()


async def test_an_ingestion_with_processes_ends_in_the_same_database(
    loop: Any, at_once: None, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "notes", documents=40)
    (tmp_path / "notes" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    for name, processes in (("threads", 0), ("processes", 2)):
        report = await unwait.ingest(
            [tmp_path / "notes"], store=tmp_path / name, processes=processes, progress=False
        )
        assert report.outcomes == {"added": 40, "failed": 1}
    assert await dump(str(tmp_path / "threads")) == await dump(str(tmp_path / "processes"))


async def test_documents_that_kill_their_reader_are_failures_of_their_own(
    loop: Any, at_once: None, deadly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "notes", documents=38)
    read_when_ready = Readers.__call__

    async def wait_for_processes(self: Readers, job: Job) -> Reading:
        # A deadly one must not be read in a thread of this process.
        if self._starting is None:
            self._starting = loop.create_task(self._start(job))
        await self._starting
        return await read_when_ready(self, job)

    monkeypatch.setattr(Readers, "__call__", wait_for_processes)
    for name in ("doc1 dies.txt", "doc33 dies.txt"):
        (tmp_path / "notes" / name).write_text("words that kill")
    rows: list[Row] = []
    report = await unwait.ingest(
        [tmp_path / "notes"], store=tmp_path / "kb.db", processes=2, progress=False, on_row=rows.append
    )
    assert report.outcomes == {"added": 38, "failed": 2}
    failed = sorted((Path(row.uri).name, row.stage, row.kind) for row in rows if row.outcome == "failed")
    assert failed == [("doc1 dies.txt", "read", "crashed"), ("doc33 dies.txt", "read", "crashed")]


async def test_when_all_processes_die_at_once_only_what_kills_another_is_lost(
    loop: Any, at_once: None, deadly: None, gate: Gate
) -> None:
    readers = Readers(2)
    try:
        await ready(readers)
        before = [process._process.pid for process in readers._processes]
        held = later(*(readers(job(n, f"{n} waits.txt", pipe=gate.path)) for n in (2, 3)))
        await gate.reached()
        others = later(*(readers(job(n, "9 dies.txt" if n == 9 else "")) for n in range(4, 40)))
        while sum(process.waiting for process in readers._processes) < 16:  # what they may have in advance
            await asyncio.sleep(0.002)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        while not all(map(gone, before)):  # which may read on until they know that they are dead
            await asyncio.sleep(0.002)
        gate.open()
        gate.open()
        found = await asyncio.gather(*held, *others, return_exceptions=True)
        (crash,) = [each for each in found if isinstance(each, BaseException)]
        assert found.index(crash) == 2 + 9 - 4
        assert isinstance(crash, WorkerCrashed)
        assert crash.exitcode == -signal.SIGKILL
        assert "SIGKILL" in str(crash)
        assert [each.title for each in found[-3:] if isinstance(each, Reading)] == [
            "Title 37",
            "Title 38",
            "Title 39",
        ]
        now = {process._process.pid for process in readers._processes}
        assert 1 <= len(now) <= 2
        assert not now & set(before)
        assert isinstance(await readers(job(40)), Reading)
    finally:
        await readers.aclose()


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
async def test_where_none_can_be_started_the_threads_go_on(
    loop: Any, at_once: None, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    readers = Readers(2)
    try:
        found = await asyncio.gather(*(readers(job(number)) for number in range(20)))
        assert readers._starting is not None
        await readers._starting
        assert not readers._ready
        found += await asyncio.gather(*(readers(job(number)) for number in range(20, 40)))
        assert [each.title for each in found] == [f"Title {number}" for number in range(40)]
    finally:
        await readers.aclose()


async def test_where_no_other_can_be_started_a_document_fails_as_crashed(
    loop: Any, at_once: None, deadly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = Readers(1)
    try:
        await ready(readers)
        for program in ("/nonexistent", "/bin/false"):
            monkeypatch.setattr(sys, "executable", program)
            with pytest.raises(WorkerCrashed, match="no other can be started"):
                await readers(job(2, "dies.txt"))
        monkeypatch.undo()
        assert isinstance(await readers(job(3)), Reading)
    finally:
        await readers.aclose()


@pytest.mark.parametrize("end", ["cancel", "error"])
async def test_a_process_that_reads_one_alone_is_kept_whatever_becomes_of_that(
    loop: Any, at_once: None, deadly: None, gate: Gate, end: str
) -> None:
    readers = Readers(1)
    try:
        await ready(readers)
        os.kill(readers._processes[0]._process.pid, signal.SIGKILL)
        name = "waits.txt" if end == "cancel" else "errs.txt"
        (alone,) = later(readers(job(2, name, pipe=gate.path)))
        if end == "cancel":
            await gate.reached()
            alone.cancel()
        await asyncio.wait([alone])
        assert alone.cancelled() if end == "cancel" else isinstance(alone.exception(), LookupError)
        (process,) = readers._processes
        gate.open()
        assert isinstance(await readers(job(3)), Reading)
        assert readers._processes == [process]
    finally:
        await readers.aclose()


async def test_they_may_be_closed_while_processes_are_started(
    loop: Any, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begin, step = children(), Readers._begin, 0
    reached = asyncio.Event()
    monkeypatch.setattr(
        Readers, "_begin", lambda *arguments: at_step(begin(*arguments), step, lambda _: reached.set())
    )
    while True:
        readers = Readers(2)
        await readers(job(0))
        (call,) = later(readers(job(1)))
        while readers._starting is None:
            await asyncio.sleep(0)
        reaching = asyncio.ensure_future(reached.wait())
        await asyncio.wait([reaching, readers._starting], return_when=asyncio.FIRST_COMPLETED)
        await call
        await readers.aclose()
        assert children() == before, f"at step {step}"
        if not reached.is_set():
            break
        reached.clear()
        step += 1
    reaching.cancel()
    assert step > 3


async def test_those_who_read_are_ended_with_what_they_are_at(
    loop: Any, at_once: None, deadly: None, gate: Gate
) -> None:
    before = children()
    readers = Readers(1)
    await ready(readers)
    held = later(readers(job(2, "waits.txt", pipe=gate.path)), *(readers(job(n)) for n in range(3, 20)))
    await gate.reached()
    for call in held:
        call.cancel()
    await asyncio.wait(held)
    await readers.aclose()
    assert children() == before
