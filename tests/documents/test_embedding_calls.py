"""Passages on their way to a model that is paid for: what shares a call, and what becomes of it when that fails."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flaky_models import vector
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents.finished import Embedding, Finished
from unwait.documents.sqlite_store import SqliteStore
from unwait.web.errors import ConnectionFailed, InvalidAnswer

from .embedding_support import Embedder, Kept, Refusal, chunks_of, expected

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Opened = Callable[[], SqliteStore]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A store on the same file each time."""
    return lambda: SqliteStore(tmp_path / "kb.db")


def test_a_text_that_the_model_does_not_take_fails_its_document_alone(run: Run, opened: Opened) -> None:
    async def main() -> None:
        embedder = Embedder(wrong=lambda texts: Refusal(400) if "poison" in texts else None)
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            found = await asyncio.gather(
                embedding.vectors("good", chunks_of("a", "b", "c")),
                embedding.vectors("bad", chunks_of("d", "poison", "e")),
                embedding.vectors("also good", chunks_of("f", "g")),
                return_exceptions=True,
            )
            assert isinstance(found[1], Refusal)
            for rows, texts in ((found[0], "abc"), (found[2], "fg")):
                assert not isinstance(rows, BaseException)
                assert np.array_equal(rows[0], expected(chunks_of(*texts)))

    run(main())


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (Refusal(401), 1),
        (Refusal(404), 1),
        (ConnectionFailed("down"), 1),
        (Refusal(500), 15),
        (InvalidAnswer("NaN"), 15),
    ],
)
def test_a_call_is_made_in_halves_only_where_a_text_may_be_to_blame(
    run: Run, opened: Opened, error: Exception, calls: int
) -> None:
    async def main() -> None:
        embedder = Embedder(wrong=lambda texts: error)
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            documents = [embedding.vectors(f"doc{n}", chunks_of(f"text {n}")) for n in range(8)]
            found = await asyncio.gather(*documents, return_exceptions=True)
            assert found == [error] * 8
            assert len(embedder.asked) == calls

    run(main())


@pytest.mark.parametrize(
    ("documents", "bad"),
    [
        (1, ["0.37"]),
        (1, ["0.0"]),
        (1, ["0.95"]),
        (1, ["0.5", "0.90"]),
        (3, ["1.7"]),
        (3, ["0.0", "2.31"]),
        (12, ["3.4"]),
        (96, ["50.0"]),
    ],
)
def test_a_text_that_is_not_taken_costs_few_calls_and_no_other_document(
    run: Run, opened: Opened, documents: int, bad: list[str]
) -> None:
    """Of a full call, however many documents share it."""

    async def main() -> None:
        answered: list[str] = []

        def wrong(texts: Sequence[str]) -> Exception | None:
            if set(bad) & set(texts):
                return Refusal(400)
            answered.extend(texts)
            return None

        embedder = Embedder(wrong=wrong)
        embedder.batch = 96
        chunks = [chunks_of(*(f"{n}.{m}" for m in range(96 // documents))) for n in range(documents)]
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", each) for n, each in enumerate(chunks)), return_exceptions=True
            )
            failing = {int(text.partition(".")[0]) for text in bad}
            for n, (each, rows) in enumerate(zip(chunks, found, strict=True)):
                if n in failing:
                    assert isinstance(rows, Refusal)
                else:
                    assert not isinstance(rows, BaseException)
                    assert np.array_equal(rows[0], expected(each))
            assert len(answered) == len(set(answered))
            # What was answered of those that fail is kept too.
            digests = [chunk.digest for each in chunks for chunk in each if chunk.text in answered]
            assert len(await store.kept_calls([f"embed:test:{digest}" for digest in digests])) == len(
                answered
            )
            assert len(embedder.asked[0]) == 96
            assert len(embedder.asked) <= 1 + 2 * len(bad) * 7  # 2 ** 7 > 96

    run(main())


@pytest.mark.parametrize(("documents", "texts"), [(1, 96), (12, 8), (8, 1)])
def test_a_server_that_says_when_to_come_back_is_asked_once(
    run: Run, opened: Opened, documents: int, texts: int
) -> None:
    error = Refusal(500)
    error.retry_after = 3.0

    async def main() -> None:
        embedder = Embedder(wrong=lambda texts: error)
        embedder.batch = 96
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            chunks = [chunks_of(*(f"{n}.{m}" for m in range(texts))) for n in range(documents)]
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", each) for n, each in enumerate(chunks)), return_exceptions=True
            )
            assert found == [error] * documents
            assert len(embedder.asked) == 1

    run(main())


@pytest.mark.parametrize("documents", [1, 12, 96])
def test_a_server_that_takes_nothing_is_asked_no_more_often_than_there_are_halves(
    run: Run, opened: Opened, documents: int
) -> None:
    async def main() -> None:
        embedder = Embedder(wrong=lambda texts: Refusal(500))
        embedder.batch = 96
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            chunks = [chunks_of(*(f"{n}.{m}" for m in range(96 // documents))) for n in range(documents)]
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", each) for n, each in enumerate(chunks)), return_exceptions=True
            )
            assert {type(each) for each in found} == {Refusal}
            assert len(embedder.asked) <= 2 * 96 - 1

    run(main())


@given(
    documents=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=40), min_size=1, max_size=12),
    batch=st.integers(1, 12),
    batch_tokens=st.floats(10, 100),
    bad=st.sets(st.integers(0, 11)),
)
@settings(deadline=None)
def test_no_call_is_larger_than_the_model_takes(
    documents: list[list[int]], batch: int, batch_tokens: float, bad: set[int]
) -> None:
    """Documents of texts of these lengths, the middle one of which is not taken of some."""

    async def main() -> None:
        poison = {texts_of(n)[len(documents[n]) // 2] for n in bad if n < len(documents)}
        embedder = Embedder(wrong=lambda texts: Refusal(413) if poison & set(texts) else None)
        embedder.batch, embedder.batch_tokens = batch, batch_tokens
        store: Any = Kept()
        async with Embedding(embedder, Finished(store)) as embedding:
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", chunks_of(*texts_of(n))) for n in range(len(documents))),
                return_exceptions=True,
            )
        for n, rows in enumerate(found):
            if n in bad:
                assert isinstance(rows, Refusal)
            else:
                assert not isinstance(rows, BaseException)
                assert np.array_equal(rows[0], expected(chunks_of(*texts_of(n))))
        for asked in embedder.asked:
            assert len(asked) <= batch
            assert len(asked) == 1 or sum(map(len, asked)) <= batch_tokens + 1e-6

    def texts_of(n: int) -> list[str]:
        return [f"{n}.{m}".ljust(length, "x") for m, length in enumerate(documents[n])]

    asyncio.run(main())


def test_answers_are_kept_for_each_passage_and_each_document(
    run: Run, opened: Opened, tmp_path: Path
) -> None:
    async def main() -> None:
        embedder = Embedder()
        documents = {f"doc{n}": chunks_of(*(f"{n}.{m}" for m in range(5)), "everywhere") for n in range(5)}
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            await asyncio.gather(*(embedding.vectors(uri, chunks) for uri, chunks in documents.items()))
        assert any(len({text.partition(".")[0] for text in asked}) > 1 for asked in embedder.asked)
        assert len(embedder.texts) == 26
        with closing(sqlite3.connect(tmp_path / "kb.db")) as connection:
            kept = set(connection.execute("SELECT uri, key, answer FROM calls"))
        assert kept == {
            (uri, f"embed:test:{chunk.digest}", np.array(vector(chunk.passage, 8), "<f4").tobytes())
            for uri, chunks in documents.items()
            for chunk in chunks
        }

    run(main())
