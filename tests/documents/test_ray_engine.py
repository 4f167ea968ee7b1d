"""The pipeline in actors of a real Ray on this machine: the same database; an actor that dies loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flaky_api import Faults, FlakyApi

import unwait
from unwait.documents.models import ModelUnusable
from unwait.documents.report import Row

from .ingest_support import dump, write_corpus

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("default"),  # Ray's own
    pytest.mark.timeout(300),
]
KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "notes", documents=40)
    (tmp_path / "notes" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return tmp_path / "notes"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from unwait.documents import ray_engine

    monkeypatch.setattr(ray_engine, "BATCH", 4)


def actors() -> list[int]:
    """The processes of Ray that have an ingestion."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::Worker"):
                found.append(int(entry.name))
    return found


def without_scores(found: dict[str, Any]) -> dict[str, Any]:
    """Scores in the index depend on the order in which documents were stored, but only in the last digits."""
    return {**found, "settings": None, "found": [hit[:2] for hit in found["found"]]}


def run(folder: Path, store: str, on_row: Any = None, **options: Any) -> unwait.IngestReport:
    return asyncio.run(
        unwait.ingest([folder], store=store, progress=False, on_row=on_row, api_key=KEY, **options)
    )


def test_the_database_is_that_of_the_local_engine(folder: Path, tmp_path: Path, small_batches: None) -> None:
    rows: list[Row] = []
    report = run(folder, str(tmp_path / "ray.db"), rows.append, engine="ray", workers=2)
    assert report.outcomes == {"added": 40, "failed": 1}
    assert Counter(row.outcome for row in rows) == report.outcomes
    assert report.chunks == report.embedded + report.reused > 40
    run(folder, str(tmp_path / "local.db"))
    seen, expected = (asyncio.run(dump(str(tmp_path / name))) for name in ("ray.db", "local.db"))
    assert without_scores(seen) == without_scores(expected)
    (folder / "doc39.md").unlink()
    again = run(folder, str(tmp_path / "ray.db"), engine="ray", workers=2, prune=True)
    assert again.outcomes == {"unchanged": 39, "failed": 1, "pruned": 1}
    assert again.embedded == 0


def test_a_wrong_key_ends_the_run_with_what_the_server_said(
    folder: Path, tmp_path: Path, small_batches: None
) -> None:
    async def scenario() -> None:
        async with FlakyApi(Faults(seed=3, api_key="sk-another")) as api:
            models = {"embed": "openai:tiny-embedding", "base_url": f"{api.url}/v1", "progress": False}
            store = tmp_path / "ray.db"
            with pytest.raises(ModelUnusable, match=r"\APOST [^\n]*HTTP 401[^\n]*set OPENAI_API_KEY"):
                await unwait.ingest([folder], store=store, engine="ray", api_key=KEY, **models)
            assert len(api.stats.arrivals) <= 4

    asyncio.run(scenario())


def test_what_an_actor_could_not_open_is_said_before_there_are_any(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        run(folder, str(tmp_path / "ray.db"), engine="ray", records="nowhere:Model", chat="openai:x")


def test_an_actor_that_is_killed_loses_nothing_and_nothing_is_paid_twice(
    folder: Path, tmp_path: Path, small_batches: None
) -> None:
    async def scenario() -> None:
        async with FlakyApi(Faults(seed=3, latency=0.03)) as api:
            models = {
                "embed": "openai:tiny-embedding",
                "summarise": "openai:tiny-chat",
                "base_url": f"{api.url}/v1",
                "api_key": KEY,
                "progress": False,
            }
            killed: list[int] = []

            def kill_one(row: Row) -> None:
                if not killed and (found := actors()):
                    killed.append(found[0])
                    os.kill(found[0], signal.SIGKILL)

            store = tmp_path / "ray.db"
            report = await unwait.ingest(
                [folder], store=store, engine="ray", workers=2, on_row=kill_one, **models
            )
            assert killed
            assert report.failed == 1
            assert report.sources == 41
            under_way = 2 * 4  # documents that were with the actor
            assert api.stats.embedded_again <= 3 * under_way
            api.reset()
            await unwait.ingest([folder], store=tmp_path / "local.db", **models)
        seen, expected = [await dump(str(tmp_path / name)) for name in ("ray.db", "local.db")]
        assert without_scores(seen) == without_scores(expected)

    asyncio.run(scenario())
