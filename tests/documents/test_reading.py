"""Documents read in processes: the same as in threads, and one that takes its process along harms no other."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import unwait
from unwait.documents import reading
from unwait.documents.model import Content
from unwait.documents.reading import Job, Readers, Reading, read
from unwait.documents.report import Row

from .ingest_support import dump, write_corpus

DEADLY = "dies.txt"


def read_or_die(job: Job) -> Reading:
    if job.uri.endswith(DEADLY):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(job)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes for the second document already, and for all that come after them."""
    monkeypatch.setattr(reading, "_MANY", 2)


def job(number: int) -> Job:
    content = Content(f"# Title {number}\n\nsome words of {number}".encode(), str(number))
    return Job(content, f"{number}.md", {}, "text", 1000, 0, "1", embed=True, summarise=True)


async def test_what_processes_read_is_what_threads_read(loop: Any, at_once: None) -> None:
    in_processes, in_threads = Readers(2), Readers(0)
    try:
        await in_processes(job(0))
        await in_processes(job(1))
        assert in_processes._starting is not None
        await in_processes._starting
        assert in_processes._ready
        for number in range(8):
            there, here = await in_processes(job(number)), await in_threads(job(number))
            assert (there.title, there.format, there.chunks, there.summary) == (
                here.title,
                here.format,
                here.chunks,
                here.summary,
            )
            assert there.vectors is not None
            assert here.vectors is not None
            assert there.vectors.tobytes() == here.vectors.tobytes()
    finally:
        await in_processes.aclose()
        await in_threads.aclose()


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


async def test_a_document_that_kills_its_reader_is_a_failure_of_its_own(
    loop: Any, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "notes", documents=30)
    read_when_ready = Readers.__call__

    async def wait_for_processes(self: Readers, job: Job) -> Reading:
        # The deadly one must not be read in a thread of this process.
        if self._starting is None:
            self._starting = loop.create_task(self._start(job))
        await self._starting
        return await read_when_ready(self, job)

    monkeypatch.setattr(Readers, "__call__", wait_for_processes)
    monkeypatch.setattr(reading, "read", read_or_die)
    (tmp_path / "notes" / DEADLY).write_text("words that kill")
    rows: list[Row] = []
    report = await unwait.ingest(
        [tmp_path / "notes"], store=tmp_path / "kb.db", processes=2, progress=False, on_row=rows.append
    )
    assert report.outcomes == {"added": 30, "failed": 1}
    (failed,) = [row for row in rows if row.outcome == "failed"]
    assert (Path(failed.uri).name, failed.stage, failed.kind) == (DEADLY, "read", "crashed")
