"""What an ingestion does when it cannot go on, what the next one knows of it, and how much is under way at a time."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flaky_api import Faults, FlakyApi

import unwait
from unwait.documents import pipeline
from unwait.documents.models import ModelUnusable
from unwait.documents.pipeline import Ingestion, Work
from unwait.documents.report import Row
from unwait.documents.settings import resolve
from unwait.documents.store import StoreBusy, StoreError, open_store

from .ingest_support import write_corpus

KEY = "sk-test-0123456789abcdef"
SCHEMA = "from pydantic import BaseModel\n\n\nclass Meeting(BaseModel):\n    place: str\n    number: int\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "notes")
    return tmp_path / "notes"


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "kb.db")


async def settings_of(address: str) -> dict[str, str]:
    async with open_store(address) as store:
        return await store.settings()


async def failures_of(address: str) -> Counter[str]:
    async with open_store(address) as store:
        return Counter([failure.kind async for failure in store.failures()])


class TestAModelThatAnswersNobody:
    @pytest.mark.parametrize("option", ["embed", "summarise"])
    async def test_ends_the_run_and_is_not_asked_for_each_document(
        self, loop: Any, folder: Path, address: str, option: str
    ) -> None:
        write_corpus(folder, documents=60)
        async with FlakyApi(Faults(api_key="sk-right", latency=0.005)) as api:
            models = {option: "openai:m", "base_url": f"{api.url}/v1", "limit": 4, "progress": False}
            with pytest.raises(ModelUnusable, match="HTTP 401") as failed:
                await unwait.ingest([folder], store=address, api_key=KEY, **models)
            assert KEY not in str(failed.value)
            assert len(api.stats.arrivals) <= 8
            assert await failures_of(address) == {}
            report = await unwait.ingest([folder], store=address, api_key="sk-right", **models)
        assert report.sources == 60
        assert report.failed == 0


class TestTryingAgain:
    async def test_asks_a_model_anew_whose_records_were_invalid_and_pays_for_that_once(
        self, loop: Any, folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "meetings_here.py").write_text(SCHEMA)
        async with FlakyApi(Faults(seed=3, invalid=3)) as api:
            models = {
                "records": f"{tmp_path / 'meetings_here.py'}:Meeting",
                "chat": "openai:tiny-chat",
                "base_url": f"{api.url}/v1",
                "store": address,
                "progress": False,
            }
            report = await unwait.ingest([folder], **models)
            assert report.causes == {"invalid records": 6}
            again = await unwait.ingest([folder], **models)
            assert (again.causes, again.model_calls) == ({"invalid records": 6}, 0)

            async def full(*_: Any) -> None:
                raise StoreError("the disk is full")

            with monkeypatch.context() as patch:
                patch.setattr(Ingestion, "_save", full)
                patch.setattr(Ingestion, "_fail", full)
                with pytest.raises(StoreError):
                    await unwait.ingest(retry_failed=True, limit=1, **models)
            assert max(seen.completed for seen in api.stats.seen.values()) == 2
            last = await unwait.ingest(retry_failed=True, **models)
            assert last.kept_calls > 0
            assert last.causes == {"invalid records": 6}
            assert max(seen.completed for seen in api.stats.seen.values()) == 2

    async def test_keeps_what_was_paid_for_documents_that_had_not_failed(
        self, loop: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "meetings_here.py").write_text(SCHEMA)
        write_corpus(tmp_path / "one", documents=1)
        async with FlakyApi(Faults(seed=3)) as api:
            models = {
                "records": f"{tmp_path / 'meetings_here.py'}:Meeting",
                "chat": "openai:tiny-chat",
                "base_url": f"{api.url}/v1",
                "store": address,
                "progress": False,
            }

            async def dies(*_: Any) -> None:
                raise StoreError("the disk is full")

            with monkeypatch.context() as patch:
                patch.setattr(Ingestion, "_save", dies)
                with pytest.raises(StoreError):
                    await unwait.ingest([tmp_path / "one"], **models)
            report = await unwait.ingest([tmp_path / "one"], retry_failed=True, **models)
            assert (report.kept_calls, report.model_calls) == (1, 0)


class TestWhatIsRemembered:
    async def test_the_model_of_the_records_is_found_from_another_folder(
        self, loop: Any, folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "meetings_here.py").write_text(SCHEMA)
        monkeypatch.chdir(tmp_path)
        async with FlakyApi(Faults(seed=3)) as api:
            models = {"chat": "openai:tiny-chat", "base_url": f"{api.url}/v1", "progress": False}
            await unwait.ingest([folder], store=address, records="meetings_here.py:Meeting", **models)
            monkeypatch.chdir("/")
            report = await unwait.ingest([folder], store=address, progress=False)
            assert report.outcomes == {"unchanged": 6}
            (tmp_path / "meetings_here.py").unlink()
            with pytest.raises(ValueError, match=r"meetings_here\.py.*name the model anew with records="):
                await unwait.ingest([folder], store=address, progress=False)

    async def test_the_address_of_the_environment_is_without_its_password(
        self, loop: Any, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with FlakyApi(Faults(seed=3)) as api:
            host = api.url.partition("://")[2]
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:hunter2@{host}/v1")
            await unwait.ingest([folder], store=address, embed="openai:m", progress=False)
            assert (await settings_of(address))["base_url"] == f"http://{host}/v1"
            monkeypatch.delenv("OPENAI_BASE_URL")
            monkeypatch.delenv("OPENAI_API_KEY", raising=False)
            report = await unwait.ingest([folder], store=address, chunk_size=100, progress=False)
            assert report.model_calls > 0

    async def test_documents_with_vectors_of_the_model_before_are_counted(
        self, loop: Any, folder: Path, address: str, tmp_path: Path
    ) -> None:
        write_corpus(tmp_path / "more", documents=2)
        report = await unwait.ingest([folder, tmp_path / "more"], store=address, progress=False)
        assert report.other_vectors == 0
        async with FlakyApi(Faults(seed=3)) as api:
            models = {"embed": "openai:m", "base_url": f"{api.url}/v1", "progress": False}
            report = await unwait.ingest([tmp_path / "more"], store=address, **models)
            assert report.other_vectors == 6
            assert "6 documents keep vectors of another model" in str(report)
        report = await unwait.ingest([tmp_path / "more"], store=address, embed="wordllama", progress=False)
        assert report.other_vectors == 0


class TestWhatIsUnderWay:
    async def test_is_bounded_in_bytes_and_the_largest_has_the_room_to_itself(
        self, loop: Any, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "large"
        folder.mkdir()
        for number in range(12):
            (folder / f"{number:02}.txt").write_text(f"number {number} " * (500 if number == 5 else 100))
        monkeypatch.setattr(pipeline, "_SMALL", 100)
        monkeypatch.setattr(pipeline, "_UNDER_WAY", 2500)
        under_way: dict[str, int] = {}
        seen: list[list[int]] = []
        load = Ingestion._load

        async def loaded(self: Ingestion, work: Work) -> Work:
            work = await load(self, work)
            assert work.content is not None
            under_way[work.source.uri] = os.stat(work.source.uri).st_size
            seen.append(list(under_way.values()))
            return work

        def left(row: Row) -> None:
            del under_way[row.uri]

        monkeypatch.setattr(Ingestion, "_load", loaded)
        report = await unwait.ingest([folder], store=address, on_row=left, progress=False)
        assert report.outcomes == {"added": 12}
        assert all(sum(sizes) <= 2500 or len(sizes) == 1 for sizes in seen)
        assert max(map(len, seen)) == 2

    async def test_an_open_store_has_one_run_at_a_time(self, loop: Any, folder: Path, address: str) -> None:
        async with open_store(address) as store:
            done = await asyncio.gather(
                *(unwait.ingest([folder], store=store, progress=False) for _ in range(2)),
                return_exceptions=True,
            )
            assert sorted(type(one).__name__ for one in done) == ["IngestReport", StoreBusy.__name__]
            assert (await unwait.ingest([folder], store=store, progress=False)).outcomes == {"unchanged": 6}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://me:pw@host:80/v1", "http://host:80/v1"),
        ("me:pw@host/v1", "host/v1"),
        ("https://me:p/w@host/v1", "https://host/v1"),
        ("https://host/v1?key=secret#secret", "https://host/v1"),
        ("https://host/v1", "https://host/v1"),
    ],
)
def test_no_secret_of_an_address_is_remembered(given: str, kept: str) -> None:
    settings = resolve({"embed": "openai:m", "base_url": given}, {}, None)
    assert settings.remembered["base_url"] == kept
    # What nobody opens is not known to be an address at all.
    assert resolve({"base_url": given}, {}, None).remembered["base_url"] == ""


async def test_a_model_that_does_not_answer_is_not_what_the_store_remembers(
    loop: Any, folder: Path, address: str
) -> None:
    await unwait.ingest([folder], store=address, progress=False)
    before = await settings_of(address)
    async with FlakyApi(Faults(models="tiny-embedding")) as api:
        with pytest.raises(ModelUnusable):
            await unwait.ingest(
                [folder], store=address, embed="openai:nope", base_url=f"{api.url}/v1", progress=False
            )
    assert await settings_of(address) == before
    assert await unwait.search("falcon", store=address)
