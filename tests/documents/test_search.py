from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from unwait.documents.model import Candidate
from unwait.documents.search import Hit, fuse, search
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.store import StoreError

from .store_support import DIMENSIONS, SPACE, make_document, vector

if TYPE_CHECKING:
    from unwait.documents.model import Vectors


class WordEmbedder:
    """An Embedder whose vectors are those of store_support."""

    name = SPACE
    paid = False
    at_once = 1
    batch = 16
    batch_tokens = 1000.0

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return np.stack([vector(text) for text in texts])

    def tokens(self, text: str) -> float:
        return len(text) / 4


class NoEmbedder(WordEmbedder):
    async def embed(self, texts: Sequence[str]) -> Vectors:
        raise AssertionError("it was asked")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "kb.db")


async def fill(path: str, texts: dict[str, list[str]], **settings: str) -> None:
    async with SqliteStore(path) as store:
        run = await store.begin(settings)
        for uri, chunks in texts.items():
            await store.save(make_document(uri, chunks, metadata={"first": uri[0]}), run)


def candidate(uri: str, start: int, score: float = 0.0) -> Candidate:
    return Candidate(f"{uri}-{start}", uri, "title", (), None, start, start + 10, "some text", {}, score)


class TestFusion:
    def test_it_is_reciprocal_rank_fusion_as_a_naive_one_does_it(self) -> None:
        chance = random.Random(7)
        for _ in range(200):
            everything = [candidate(uri, start) for uri in "abcd" for start in (0, 10, 20)]
            texts = chance.sample(everything, chance.randrange(13))
            near = chance.sample(everything, chance.randrange(13))
            k = chance.randrange(1, 14)
            scores = {}
            for each in everything:
                score = 0.0
                for weight, ranking in ((1.5, texts), (1, near)):
                    if each in ranking:
                        score += weight / (4 + ranking.index(each) + 1)
                if score:
                    scores[each.uri, each.start] = score
            expected = sorted(scores, key=lambda key: (-scores[key], key))[:k]
            hits = fuse("some", texts, near, k)
            assert [(hit.uri, hit.start) for hit in hits] == expected
            for hit in hits:
                assert hit.score == pytest.approx(scores[hit.uri, hit.start])
                for rank, ranking in ((hit.text_rank, texts), (hit.vector_rank, near)):
                    where = [each.chunk for each in ranking]
                    assert rank == (where.index(hit.chunk) + 1 if hit.chunk in where else None)

    def test_what_both_rankings_find_is_before_what_one_puts_first(self) -> None:
        texts = [candidate("a", 0), candidate("both", 0)]
        near = [candidate("b", 0), candidate("both", 0)]
        assert [hit.uri for hit in fuse("", texts, near, 3)] == ["both", "a", "b"]


class TestSearch:
    async def test_a_hit_says_where_it_is_and_where_it_came_from(self, loop: Any, path: str) -> None:
        async with SqliteStore(path) as store:
            document = make_document(
                "https://a.example/x",
                ["nothing here ", "rotate the signing key"],
                sections=[(), ("Keys", "Rotation")],
                pages=[1, 2],
                metadata={"language": "en"},
            )
            await store.save(document, await store.begin({}))
        (hit, other) = await search("rotate key", store=path, embedder=WordEmbedder())
        chunk = document.chunks[1]
        assert hit == Hit(
            uri="https://a.example/x",
            title="A title",
            section=("Keys", "Rotation"),
            page=2,
            snippet="rotate the signing key",
            score=1.5 / 5 + 1 / 5,
            start=13,
            end=35,
            chunk=chunk.id,
            metadata={"language": "en"},
            text=chunk.text,
            text_rank=1,
            vector_rank=1,
        )
        assert (other.start, other.text_rank, other.vector_rank) == (0, None, 2)

    async def test_modes_ask_for_one_ranking_or_both(self, loop: Any, path: str) -> None:
        await fill(path, {"a": ["copper"], "b": ["zinc"]})
        embedder = WordEmbedder()
        async with SqliteStore(path) as store:
            hits = await search("copper", store=store, embedder=embedder)
            assert [(hit.uri, hit.text_rank, hit.vector_rank) for hit in hits] == [
                ("a", 1, 1),
                ("b", None, 2),
            ]
            hits = await search("copper", store=store, embedder=embedder, mode="vector")
            assert [(hit.uri, hit.text_rank, hit.vector_rank) for hit in hits] == [
                ("a", None, 1),
                ("b", None, 2),
            ]
            assert embedder.asked == ["copper", "copper"]
            hits = await search("copper", store=store, embedder=NoEmbedder(), mode="text")
            assert [(hit.uri, hit.text_rank, hit.vector_rank) for hit in hits] == [("a", 1, None)]
            assert len(await search("copper zinc", store=store, embedder=embedder, k=1)) == 1
            # It stays open.
            assert await store.state("a") is not None

    async def test_filters_are_those_of_the_store(self, loop: Any, path: str) -> None:
        await fill(path, {f"{letter}/{n}": ["copper"] for letter in "abc" for n in range(40)})
        embedder = WordEmbedder()
        hits = await search("copper", store=path, k=200, embedder=embedder)
        assert len(hits) == 120
        hits = await search("copper", store=path, k=200, source="b/*9", embedder=embedder)
        assert [hit.uri for hit in hits] == ["b/19", "b/29", "b/39", "b/9"]
        hits = await search("copper", store=path, k=200, metadata={"first": "c"}, embedder=embedder)
        assert {hit.uri[0] for hit in hits} == {"c"}
        assert len(hits) == 40
        assert await search("copper", store=path, metadata={"first": 7}, embedder=embedder) == []

    async def test_vectors_of_another_model_are_left_out_and_the_text_answers(
        self, loop: Any, path: str
    ) -> None:
        await fill(path, {"a": ["copper"]})
        embedder = WordEmbedder()
        embedder.name = "another"
        (hit,) = await search("copper", store=path, embedder=embedder)
        assert (hit.text_rank, hit.vector_rank) == (1, None)
        assert await search("copper", store=path, embedder=embedder, mode="vector") == []

    async def test_a_store_that_names_no_model_answers_by_text(self, loop: Any, path: str) -> None:
        await fill(path, {"a": ["copper"]})
        (hit,) = await search("copper", store=path)
        assert (hit.text_rank, hit.vector_rank) == (1, None)
        with pytest.raises(StoreError, match="no vectors"):
            await search("copper", store=path, mode="vector")

    async def test_a_store_that_is_not_there_is_not_made(self, loop: Any, tmp_path: Path) -> None:
        (tmp_path / "empty.db").touch()
        for name in ("none.db", "no/none.db", "empty.db"):
            with pytest.raises(StoreError, match=r"there is no store .*ingest"):
                await search("copper", store=tmp_path / name)
        assert os.listdir(tmp_path) == ["empty.db"]
        assert not (tmp_path / "empty.db").read_bytes()
        with pytest.raises(StoreError, match="a directory"):
            await search("copper", store=tmp_path)
        with pytest.raises(ValueError, match="mysql"):
            await search("copper", store="mysql://host/db")

    async def test_what_makes_no_sense_is_refused(self, loop: Any, path: str) -> None:
        await fill(path, {"a": ["copper"]})
        with pytest.raises(ValueError, match="k must"):
            await search("copper", store=path, k=0)
        with pytest.raises(ValueError, match="mode must"):
            await search("copper", store=path, mode="fuzzy")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "query", ["", " \n", "?!", '"', "\x00", "\ud800", "a" * 100_000, "word " * 20_000]
    )
    async def test_any_query_has_an_answer(self, loop: Any, path: str, query: str) -> None:
        await fill(path, {"a": ["copper"]})
        hits = await search(query, store=path, embedder=WordEmbedder())
        assert all(hit.text_rank is None for hit in hits)
        assert await search(query, store=path, mode="text") == []

    async def test_the_loop_goes_on_while_it_searches(self, loop: Any, path: str) -> None:
        await fill(path, {f"u{n}": [f"copper {i} filler" for i in range(40)] for n in range(50)})
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        async with SqliteStore(path) as store:
            ticking = asyncio.create_task(tick())
            await search("copper filler", store=store, k=100, embedder=WordEmbedder())
            ticking.cancel()
        assert ticks > 20


class TestModels:
    async def test_the_store_names_the_static_model(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unwait.documents import static_vectors

        closed = []

        class Static(WordEmbedder):
            async def aclose(self) -> None:
                closed.append(True)

        monkeypatch.setattr(static_vectors, "StaticEmbedder", Static)
        await fill(path, {"a": ["copper"]}, embed="wordllama", base_url="http://ignored.example")
        (hit,) = await search("copper", store=path)
        assert (hit.text_rank, hit.vector_rank) == (1, 1)
        assert closed == [True]
        with pytest.raises(AssertionError):
            await search("copper", store=path, embedder=NoEmbedder())
        assert closed == [True]

    async def test_the_store_names_an_endpoint_and_its_address(
        self, loop: Any, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from aiohttp import web

        asked: list[tuple[str, str | None, Any]] = []

        async def answer(request: web.Request) -> web.Response:
            body = json.loads(await request.read())
            asked.append((request.path, request.headers.get("Authorization"), body["model"]))
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            data = [{"index": n, "embedding": vector(text).tolist()} for n, text in enumerate(texts)]
            return web.json_response({"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        async with serving(answer) as address:
            async with SqliteStore(path) as store:
                run = await store.begin({"embed": "openai:small", "base_url": f"{address}/v1"})
                await store.save(make_document("a", ["copper"], space="openai:small"), run)
            (hit,) = await search("copper", store=path, api_key="secret")
            assert (hit.text_rank, hit.vector_rank) == (1, 1)
            await search("copper", store=path, base_url=f"{address}/other")
            await search("copper", store=path, mode="text", base_url="http://127.0.0.1:1")
        assert asked == [
            ("/v1/embeddings", "Bearer secret", "small"),
            ("/other/embeddings", None, "small"),
        ]

    def test_a_text_search_loads_no_model(self, path: str) -> None:
        asyncio.run(fill(path, {"a": ["copper"]}, embed="wordllama"))
        code = (
            "import asyncio, sys\n"
            "from unwait.documents.search import search\n"
            f"assert asyncio.run(search('copper', store={path!r}, mode='text'))\n"
            "loaded = {'wordllama', 'tokenizers', 'aiohttp', 'pydantic', 'selectolax', 'asyncpg'} & set(sys.modules)\n"
            "assert not loaded, loaded\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def serving(handler: Any) -> Any:
    from contextlib import asynccontextmanager

    from aiohttp import web

    @asynccontextmanager
    async def run() -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post("/{path:.*}", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return run()


def test_the_support_makes_unit_vectors() -> None:
    assert np.linalg.norm(vector("some words")) == pytest.approx(1.0, abs=1e-6)
    assert vector("").shape == (DIMENSIONS,)
