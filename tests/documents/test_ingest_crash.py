"""A process that dies at any moment: the next run ends where an uninterrupted one would, and pays for nothing twice.

The processes are real, they die by SIGKILL, and a real server counts what the models were asked. Every other one has
processes itself, which read for it and write the store, and are gone with it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from flaky_api import Faults, FlakyApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unwait
from unwait.documents.pipeline import Ingestion
from unwait.documents.store import StoreError

from .ingest_support import dump, logged, run_child, write_corpus

KEY = "sk-test-0123456789abcdef"
SCHEMA = """
from pydantic import BaseModel


class Meeting(BaseModel):
    place: str
    number: int
"""
METHODS = {
    "_load": 1,
    "_read": 4,
    "_embed": 2,
    "_summary": 5,
    "_records": 3,
    "_save": 6,
    "save": 1,
    "keep_calls": 7,
}
BOUNDARIES = [(method, when, count) for method, count in METHODS.items() for when in ("before", "after")]
BOUNDARIES += [("fail", "before", 1), ("fail", "after", 1), ("begin", "after", 1)]


def write_sources(folder: Path, variant: str = "river") -> None:
    write_corpus(folder / "notes", documents=8, variant=variant)
    (folder / "notes" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "schema.py").write_text(SCHEMA)


@asynccontextmanager
async def models(
    folder: Path, address: str, processes: int = 0, **faults: Any
) -> AsyncIterator[tuple[FlakyApi, dict[str, Any]]]:
    """A server of models, and the options of an ingestion that uses all of them."""
    async with FlakyApi(Faults(seed=3, **faults)) as api:
        yield (
            api,
            {
                "sources": [str(folder / "notes")],
                "store": address,
                "embed": "openai:tiny-embedding",
                "summarise": "openai:tiny-chat",
                "records": f"{folder / 'schema.py'}:Meeting",
                "base_url": f"{api.url}/v1",
                "chunk_size": 300,
                "processes": processes,
                "progress": False,
            },
        )


def comparable(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Without what depends on the place, the port of the server, and the kind of store: its scores."""
    text = repr({**found, "settings": None, "found": [hit[0] for hit in found["found"]]})
    return {"all": text.replace(str(folder), "…")}


async def uninterrupted(folder: Path, address: str) -> dict[str, Any]:
    async with models(folder, address) as (_, options):
        await unwait.ingest(**options, api_key=KEY)
        return comparable(await dump(address), folder)


@pytest.mark.parametrize(
    ("at", "when", "count", "processes"),
    [(*boundary, (number + number // 2) % 2 * 2) for number, boundary in enumerate(BOUNDARIES)],
)
def test_a_kill_at_the_boundary_of_a_stage_is_as_if_nothing_had_been(
    address: str, tmp_path: Path, at: str, when: str, count: int, processes: int
) -> None:
    write_sources(tmp_path)

    async def scenario() -> None:
        async with models(tmp_path, address, processes) as (_, options):
            die = {"at": at, "when": when, "count": count}
            first, second = tmp_path / "first.log", tmp_path / "second.log"
            assert await run_child(die, options, first) == -9
            assert await run_child(None, options, second) == 0
            assert logged(first, "kept") & logged(second, "asked") == set()
            if at in ("_save", "save"):
                assert logged(first, "kept")
            seen = comparable(await dump(address), tmp_path)
        assert seen == await uninterrupted(tmp_path, str(tmp_path / "whole.db"))

    unwait.run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_at_random_moments_end_in_the_same_database(
    address: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    write_sources(tmp_path)

    async def scenario() -> None:
        async with models(tmp_path, address, seed % 2 * 2, latency=0.02) as (_, options):
            kills, runs, kept = 0, 0, set[str]()
            while kills < 10:
                runs += 1
                log = tmp_path / f"{runs}.log"
                code = await run_child(None, options, log, kill_after=chance.uniform(0.35, 1.0))
                assert logged(log, "asked") & kept == set()
                kept |= logged(log, "kept")
                if code == 0:
                    # It came to its end: there is new work for the next.
                    write_sources(tmp_path, variant=f"river{runs}")
                kills += code == -9
            write_sources(tmp_path)
            assert await run_child(None, options, tmp_path / "last.log") == 0
            seen = comparable(await dump(address), tmp_path)
        assert seen == await uninterrupted(tmp_path, str(tmp_path / "whole.db"))

    unwait.run(scenario())


class Crash(StoreError):
    """Ends a run in the middle, as a kill would: nothing is caught, nothing is tidied up in the store."""


@given(points=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_interleaving_of_crashes_ends_in_the_same_database(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[int, int]]
) -> None:
    names = ["_load", "_read", "_embed", "_summary", "_save", "_fail"]
    root = tmp_path_factory.mktemp("interleaved")
    folder = root / "notes"
    write_corpus(folder, documents=4)
    (folder / "empty.txt").write_text("")

    async def scenario() -> None:
        for stage, count in points:
            left = count
            method = getattr(Ingestion, names[stage])

            async def deadly(self: Any, *args: Any, method: Any = method) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Crash("the process is gone")
                return await method(self, *args)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Ingestion, names[stage], deadly)
                with suppress(Crash):
                    await unwait.ingest([folder], store=root / "crashed.db", progress=False)
        await unwait.ingest([folder], store=root / "crashed.db", progress=False)
        await unwait.ingest([folder], store=root / "whole.db", progress=False)
        assert await dump(str(root / "crashed.db")) == await dump(str(root / "whole.db"))

    asyncio.run(scenario())
