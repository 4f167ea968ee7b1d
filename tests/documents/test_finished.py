"""Finished calls: what is answered is kept, whatever happens next, and nothing is asked for twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flaky_api import Faults, FlakyApi
from flaky_models import vector

from unwait.documents.finished import Embedding, Finished
from unwait.documents.model import Chunk, Document, Versions
from unwait.documents.openai import Endpoint, OpenAIEmbedder
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.store import StoreError
from unwait.flow.retry import Retry
from unwait.web.errors import ConnectionFailed, StatusError

from .chat_support import Chat, Messages
from .embedding_support import Embedder, chunks_of, expected

if TYPE_CHECKING:
    from unwait.documents.model import Vectors

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Opened = Callable[[], SqliteStore]
MODEL = "text-embedding-3-small"


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A store on the same file each time."""
    return lambda: SqliteStore(tmp_path / "kb.db")


async def save(store: SqliteStore, uri: str, chunks: Sequence[Chunk], vectors: Vectors, space: str) -> None:
    run = await store.begin({})
    versions = Versions("1", space)
    await store.save(Document(uri, "here", uri, "text", "d", versions, chunks, vectors), run)


# Single calls.


def test_an_answer_is_kept_before_it_is_given(run: Run, opened: Opened) -> None:
    async def main() -> None:
        asked = []

        async def ask() -> bytes:
            asked.append(1)
            return b"\x00answer\xff"

        for turn in range(2):
            async with opened() as store:
                finished = Finished(store)
                assert await finished.once("a", "summary:1", ask) == b"\x00answer\xff"
                assert (finished.counts.calls, finished.counts.kept) == (1 - turn, turn)
        assert len(asked) == 1

    run(main())


def test_what_failed_is_not_kept(run: Run, opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            finished = Finished(store)
            answers: list[Any] = [ConnectionFailed("no"), b"yes"]

            async def ask() -> bytes:
                answer = answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return bytes(answer)

            with pytest.raises(ConnectionFailed):
                await finished.once("a", "summary:1", ask)
            assert await finished.once("a", "summary:1", ask) == b"yes"
            assert finished.counts.calls == 1

    run(main())


@pytest.mark.parametrize("end", ["answer", "error", "cancel"])
def test_the_same_at_the_same_time_is_asked_once_whatever_becomes_of_the_first(
    run: Run, opened: Opened, end: str
) -> None:
    async def main() -> None:
        async with opened() as store:
            finished = Finished(store)
            begun, go = asyncio.Event(), asyncio.Event()
            asked = 0

            async def ask() -> bytes:
                nonlocal asked
                asked += 1
                first = asked == 1
                begun.set()
                await go.wait()
                if first and end == "error":
                    raise ConnectionFailed("of the first")
                return b"x"

            tasks = [asyncio.create_task(finished.once(uri, "k:1", ask)) for uri in "abc"]
            await begun.wait()
            if end == "cancel":
                tasks[0].cancel()
            go.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert found[1:] == [b"x", b"x"]
            wrong = {"answer": bytes, "error": ConnectionFailed, "cancel": asyncio.CancelledError}[end]
            assert isinstance(found[0], wrong)
            assert asked == (1 if end == "answer" else 2)
            # Each document has it: those of the others may go.
            await save(store, "b", [], np.empty((0, 8), np.float32), "test")
            assert await store.kept_calls(["k:1"]) == {"k:1": b"x"}

    run(main())


def test_a_waiter_that_is_cancelled_costs_the_others_nothing(run: Run, opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            finished = Finished(store)
            begun, go = asyncio.Event(), asyncio.Event()

            async def ask() -> bytes:
                begun.set()
                await go.wait()
                return b"x"

            tasks = [asyncio.create_task(finished.once(uri, "k:1", ask)) for uri in "abc"]
            await begun.wait()
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
            go.set()
            assert [await tasks[0], await tasks[2]] == [b"x", b"x"]

    run(main())


def test_a_conversation_is_known_by_all_that_is_asked(run: Run, opened: Opened) -> None:
    class Numbered(Chat):
        def reply(self, messages: Messages) -> str:
            return f"half \ud83d {len(self.asked)}"

    async def main() -> None:
        async with opened() as store:
            chat, finished = Numbered(), Finished(store)
            one = [{"role": "user", "content": "ab"}]
            for messages, schema, most in [
                (one, None, 5),
                ([{"role": "user", "content": "a"}, {"role": "b", "content": ""}], None, 5),
                (one, {"type": "object"}, 5),
                (one, None, 6),
                (one, None, 5),
            ]:
                await finished.complete("a", "summary", chat, messages, schema=schema, max_tokens=most)
            assert len(chat.asked) == 4
            assert (finished.counts.calls, finished.counts.kept, finished.counts.tokens) == (4, 1, 60)
            answer = await finished.complete("a", "summary", chat, one, max_tokens=5)
            assert answer == "half \ud83d 1"
            await store.forget_calls("a", "summary:")
            await finished.complete("a", "summary", chat, one, max_tokens=5)
            assert len(chat.asked) == 5

    run(main())


# Vectors.


@pytest.mark.parametrize("paid", [True, False])
def test_each_chunk_has_its_row_and_each_passage_is_embedded_once(
    run: Run, opened: Opened, paid: bool
) -> None:
    async def main() -> None:
        embedder = Embedder(paid=paid)
        chunks = chunks_of(*(f"text {number % 30}" for number in range(100)))
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            found, asked = await embedding.vectors("a", chunks)
            assert np.array_equal(found, expected(chunks))
            assert (found.dtype, asked) == (np.float32, 30)
            assert embedder.texts == sorted({chunk.text for chunk in chunks})
            assert max(map(len, embedder.asked)) <= 8
            assert embedder.most <= 4
            assert (await embedding.vectors("b", []))[0].shape == (0, 0)

    run(main())


@pytest.mark.parametrize("paid", [True, False])
def test_calls_are_bounded_by_tokens(run: Run, opened: Opened, paid: bool) -> None:
    async def main() -> None:
        embedder = Embedder(paid=paid)
        embedder.batch_tokens = 25.0
        chunks = chunks_of(*(f"{number:>10}" for number in range(9)), "x" * 90, "y")
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            found, _ = await embedding.vectors("a", chunks)
            assert np.array_equal(found, expected(chunks))
            assert max(sum(map(len, texts)) for texts in embedder.asked if len(texts) > 1) <= 25
            assert ["x" * 90] in embedder.asked

    run(main())


def test_only_chunks_that_changed_are_embedded(run: Run, opened: Opened) -> None:
    async def main() -> None:
        for paid in (True, False):
            embedder = Embedder(paid=paid)
            old, new = chunks_of("one", "two", "three"), chunks_of("zero", "one", "2", "three")
            async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
                await save(store, "a", old, expected(old), "test")
                found, asked = await embedding.vectors("a", new)
                assert (embedder.texts, asked) == (["2", "zero"], 2)
                assert np.array_equal(found, expected(new))
                # Those of another model are of no use.
                embedder.name = "another"
                assert (await embedding.vectors("a", old))[1] == 3

    run(main())


def test_documents_share_calls(run: Run, opened: Opened) -> None:
    async def main() -> None:
        embedder = Embedder()
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            documents = [chunks_of(f"a{n}", f"b{n}", f"c{n}") for n in range(16)]
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", chunks) for n, chunks in enumerate(documents))
            )
            assert all(
                np.array_equal(rows, expected(chunks))
                for (rows, _), chunks in zip(found, documents, strict=True)
            )
            assert len(embedder.texts) == 48
            assert len(embedder.asked) < 16

    run(main())


def test_a_crash_pays_for_no_vector_twice(run: Run, opened: Opened) -> None:
    chunks = chunks_of(*(f"text {number}" for number in range(50)))

    async def main() -> None:
        calls = 0

        def fails_after_four(texts: Sequence[str]) -> Exception | None:
            nonlocal calls
            calls += 1
            return ConnectionFailed("cut off") if calls > 4 else None

        first = Embedder(wrong=fails_after_four)
        async with opened() as store, Embedding(first, Finished(store)) as embedding:
            with pytest.raises(ConnectionFailed, match="cut off"):
                await embedding.vectors("a", chunks)
        second = Embedder()
        async with opened() as store:
            finished = Finished(store)
            async with Embedding(second, finished) as embedding:
                found, asked = await embedding.vectors("a", chunks)
            assert np.array_equal(found, expected(chunks))
            assert asked == 50 - 4 * 8
            assert not set(second.texts) & {text for texts in first.asked[:4] for text in texts}
            assert (finished.counts.calls, finished.counts.kept) == (len(second.asked), 32)

    run(main())


def test_an_answer_that_came_is_kept_though_nobody_waits_for_it_any_longer(
    run: Run, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        real = SqliteStore.keep_calls
        keeping, go = asyncio.Event(), asyncio.Event()

        async def slow(self: SqliteStore, answers: Mapping[str, Mapping[str, bytes]]) -> None:
            keeping.set()
            await go.wait()
            await real(self, answers)

        monkeypatch.setattr(SqliteStore, "keep_calls", slow)

        async def ask() -> bytes:
            return b"x"

        chunks = chunks_of("one")
        async with opened() as store:
            finished = Finished(store)
            async with Embedding(Embedder(), finished) as embedding:
                for paid in (embedding.vectors("a", chunks), finished.once("a", "k:1", ask)):
                    task = asyncio.ensure_future(paid)
                    await keeping.wait()
                    task.cancel()
                    await asyncio.sleep(0)
                    go.set()
                    await asyncio.wait([task])
                    keeping.clear()
                    go.clear()
            keys = [f"embed:test:{chunks[0].digest}", "k:1"]
            assert list(await store.kept_calls(keys)) == keys

    run(main())


def test_a_huge_document_is_embedded_block_by_block(run: Run, opened: Opened) -> None:
    async def main() -> None:
        for paid in (True, False):
            embedder = Embedder(paid=paid)
            embedder.batch, embedder.batch_tokens = 64, 1e9
            chunks = chunks_of(*(f"text {number % 1500}" for number in range(2000)))
            async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
                found, asked = await embedding.vectors(f"{paid}", chunks)
                assert np.array_equal(found, expected(chunks))
                assert asked == len(embedder.texts)
                if paid:
                    assert asked == 1500

    run(main())


def test_models_that_cost_nothing_leave_nothing_in_the_store(run: Run, opened: Opened) -> None:
    async def main() -> None:
        embedder = Embedder(paid=False)
        chunks = chunks_of("one")
        async with opened() as store:
            finished = Finished(store)
            async with Embedding(embedder, finished) as embedding:
                await embedding.vectors("a", chunks)
                await embedding.vectors("a", chunks)
            assert len(embedder.asked) == 2
            assert finished.counts.calls == 0
            assert await store.kept_calls([f"embed:test:{chunks[0].digest}"]) == {}

    run(main())


@pytest.mark.parametrize("end", ["answer", "error", "cancel"])
def test_the_same_passage_of_two_documents_is_embedded_once(run: Run, opened: Opened, end: str) -> None:
    async def main() -> None:
        calls = 0

        def wrong(texts: Sequence[str]) -> Exception | None:
            nonlocal calls
            calls += 1
            return ConnectionFailed("of the first") if end == "error" and calls == 1 else None

        embedder = Embedder(wrong=wrong)
        embedder.gate = asyncio.Event()
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            first = asyncio.create_task(embedding.vectors("a", chunks_of("same", "one")))
            await embedder.begun.wait()
            others = [asyncio.create_task(embedding.vectors(uri, chunks_of("two", "same"))) for uri in "bc"]
            await asyncio.sleep(0)
            if end == "cancel":
                first.cancel()
                await asyncio.wait([first])
            embedder.gate.set()
            found = await asyncio.gather(first, *others, return_exceptions=True)
            for rows in found[1:]:
                assert not isinstance(rows, BaseException)
                assert np.array_equal(rows[0], expected(chunks_of("two", "same")))
            wrong_kind = {"answer": tuple, "error": ConnectionFailed, "cancel": asyncio.CancelledError}[end]
            assert isinstance(found[0], wrong_kind)
            assert embedder.texts.count("same") == (1 if end == "answer" else 2)
            assert embedder.texts.count("two") == 1

    run(main())


def test_two_documents_that_wait_for_each_other_both_end(run: Run, opened: Opened) -> None:
    async def main() -> None:
        embedder = Embedder()
        texts = [f"text {number}" for number in range(40)]
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            async with asyncio.timeout(10):
                found = await asyncio.gather(
                    *(
                        embedding.vectors(f"doc{n}", chunks_of(*texts[n:], *texts[:n]))
                        for n in range(0, 40, 7)
                    )
                )
            assert sum(asked for _, asked in found) == 40
            assert embedder.texts == sorted(texts)

    run(main())


def test_a_store_that_fails_is_not_paid_for_again(
    run: Run, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def fails(self: SqliteStore, answers: Mapping[str, Mapping[str, bytes]]) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(SqliteStore, "keep_calls", fails)
        embedder = Embedder()
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            with pytest.raises(StoreError, match="the disk is full"):
                await embedding.vectors("a", chunks_of("one", "two", "three"))
            assert len(embedder.asked) == 1

    run(main())


def test_a_document_that_is_saved_between_two_looks_is_seen(
    run: Run, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept for it is dropped then: who looked for what is stored, then for what is kept, saw neither."""

    async def main() -> None:
        embedder = Embedder()
        chunks = chunks_of("same")
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            rows, _ = await embedding.vectors("a", chunks)
            real, looked = SqliteStore.kept_calls, 0

            async def kept_calls(self: SqliteStore, keys: Sequence[str]) -> dict[str, bytes]:
                nonlocal looked
                looked += 1
                await save(store, "a", chunks, rows, "test")
                return await real(self, keys)

            monkeypatch.setattr(SqliteStore, "kept_calls", kept_calls)
            assert (await embedding.vectors("b", chunks))[1] == 0
            assert looked == 1
            assert len(embedder.asked) == 1

    run(main())


# Against a server.


@asynccontextmanager
async def remote(opened: Opened, **faults: Any) -> AsyncIterator[tuple[FlakyApi, Embedding]]:
    async with (
        FlakyApi(Faults(**faults)) as api,
        Endpoint(f"{api.url}/v1", "k", retry=Retry(5, base=0.0)) as endpoint,
        opened() as store,
        Embedding(OpenAIEmbedder(endpoint, MODEL), Finished(store)) as embedding,
    ):
        yield api, embedding


def test_on_a_bad_day_every_text_is_still_embedded_once(run: Run, opened: Opened) -> None:
    async def main() -> None:
        async with remote(opened, seed=5, errors=0.3, drops=0.1, burst=1) as (api, embedding):
            documents = [chunks_of(*(f"document {n} chunk {m % 40}" for m in range(60))) for n in range(8)]
            found = await asyncio.gather(
                *(embedding.vectors(f"doc{n}", chunks) for n, chunks in enumerate(documents))
            )
            assert sum(asked for _, asked in found) == 320
            assert (len(api.stats.embedded), api.stats.embedded_again) == (320, 0)
            for (rows, _), chunks in zip(found, documents, strict=True):
                assert np.allclose(rows, [vector(chunk.passage, model=MODEL) for chunk in chunks], atol=1e-6)

    run(main())


def test_a_text_beyond_the_models_context_fails_its_document_with_the_servers_reason(
    run: Run, opened: Opened
) -> None:
    async def main() -> None:
        async with remote(opened) as (_, embedding):
            found = await asyncio.gather(
                embedding.vectors("a", chunks_of("long " * 9000)),
                embedding.vectors("b", chunks_of("short")),
                return_exceptions=True,
            )
            assert isinstance(found[0], StatusError)
            assert "maximum context length is 8192 tokens" in str(found[0])
            assert not isinstance(found[1], BaseException)

    run(main())


def test_a_passage_is_kept_for_each_document_that_has_it(run: Run, opened: Opened) -> None:
    async def main() -> None:
        embedder = Embedder()
        embedder.gate = asyncio.Event()
        shared = chunks_of("the same words")
        async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
            first = asyncio.create_task(embedding.vectors("a", shared))
            await embedder.begun.wait()
            second = asyncio.create_task(embedding.vectors("b", shared))
            await asyncio.sleep(0.01)
            embedder.gate.set()
            await asyncio.gather(first, second)
        assert len(embedder.asked) == 1
        # The process ends here; "a" is edited and stored, and what was kept for it goes. "c" has those words too.
        for gone, uri in (("a", "c"), ("b", "d"), ("c", "d")):
            async with opened() as store, Embedding(embedder, Finished(store)) as embedding:
                await store.forget_calls(gone, "embed:")
                await embedding.vectors(uri, shared)
        assert len(embedder.asked) == 1

    run(main())


# What it costs.


@pytest.mark.parametrize("paid", [True, False])
def test_the_way_to_the_model_and_back_is_short(run: Run, opened: Opened, paid: bool) -> None:
    async def main() -> None:
        row = np.ones((1, 256), np.float32) / 16

        class Instant(Embedder):
            batch = 64
            at_once = 16
            batch_tokens = 1e9

            async def embed(self, texts: Sequence[str]) -> Vectors:
                return np.repeat(row, len(texts), axis=0)

        documents = [
            chunks_of(*(f"{n} {m} " + "some words of a chunk " * 40 for m in range(8))) for n in range(250)
        ]
        async with opened() as store, Embedding(Instant(paid=paid), Finished(store)) as embedding:
            room = asyncio.Semaphore(64)

            async def one(n: int) -> None:
                async with room:
                    await embedding.vectors(f"doc{n}", documents[n])

            started = time.process_time()
            await asyncio.gather(*(one(n) for n in range(len(documents))))
            spent = time.process_time() - started
        # 2,000 chunks: 0.1 s; what is quadratic takes minutes.
        assert spent < 5

    run(main())
