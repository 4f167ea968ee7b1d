"""Each stage of the pipeline alone, over all pages: the slowest of them is as fast as a pipeline of them can be.

What a stage gets is in memory before the clock starts, and what it makes is thrown away. They are unwait's own
functions, so that the figure says what is lost by doing them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from documents_peers import LIMIT, Work

READERS = 2
SAVERS = 4

Stage = Callable[[], Awaitable[None]]


async def all_of(func: Callable[[Any], Awaitable[Any]], items: Iterable[Any], limit: int) -> list[Any]:
    import unwait

    return list(await unwait.map(func, items, limit=limit, progress=False))


async def download(todo: Work, stack: Any) -> Stage:
    import unwait

    client = await stack.enter_async_context(unwait.Client(per_host=LIMIT))

    async def work() -> None:
        await all_of(client.get, todo.urls, LIMIT)

    return work


def read_one(page: tuple[str, bytes]) -> tuple[Any, Any]:
    from unwait.documents.chunk import chunks
    from unwait.documents.extract import extract
    from unwait.documents.model import Content, digest

    uri, body = page
    text = extract(Content(body, digest(body), "text/html", "utf-8"), uri)
    return text, chunks(uri, text, size=1000, overlap=0, version="bench")


async def read(todo: Work, stack: Any) -> Stage:
    threads = stack.enter_context(ThreadPoolExecutor(READERS))
    pages = list(zip(todo.urls, (page.read_bytes() for page in todo.pages), strict=True))
    read_one(pages[0])

    async def work() -> None:
        loop = asyncio.get_running_loop()
        await all_of(lambda page: loop.run_in_executor(threads, read_one, page), pages, READERS)

    return work


def read_all(todo: Work) -> list[tuple[str, Any, Any]]:
    return [
        (url, *read_one((url, page.read_bytes()))) for url, page in zip(todo.urls, todo.pages, strict=True)
    ]


async def embed(todo: Work, stack: Any) -> Stage:
    from unwait.documents.openai import Endpoint, OpenAIEmbedder

    endpoint = await stack.enter_async_context(Endpoint(todo.api, limit=LIMIT))
    embedder = OpenAIEmbedder(endpoint, "bench")
    passages = [chunk.passage for _, _, chunks in read_all(todo) for chunk in chunks]
    batches = list(full(passages, embedder))

    async def work() -> None:
        await all_of(embedder.embed, batches, LIMIT)

    return work


def full(texts: Sequence[str], embedder: Any) -> Iterable[list[str]]:
    """The texts in as few calls as the embedder allows."""
    some: list[str] = []
    cost = 0.0
    for text in texts:
        more = embedder.tokens(text)
        if some and (len(some) == embedder.batch or cost + more > embedder.batch_tokens):
            yield some
            some, cost = [], 0.0
        some.append(text)
        cost += more
    yield some


async def save(todo: Work, stack: Any) -> Stage:
    import numpy as np

    from unwait.documents.model import Document, Versions
    from unwait.documents.store import open_store

    store = await stack.enter_async_context(open_store(str(todo.database)))
    run = await store.begin({})
    made = np.random.default_rng(1)
    documents = []
    for url, text, chunks in read_all(todo):
        vectors = made.standard_normal((len(chunks), 256), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        documents.append(
            Document(
                uri=url,
                origin=todo.site,
                title=text.title,
                format=text.format,
                digest=url,
                versions=Versions("bench", "bench"),
                chunks=chunks,
                vectors=vectors,
            )
        )

    async def work() -> None:
        await all_of(lambda document: store.save(document, run), documents, SAVERS)

    return work


STAGES: dict[str, Callable[[Work, Any], Awaitable[Stage]]] = {
    "download": download,
    "extract and chunk": read,
    "embed": embed,
    "save": save,
}
