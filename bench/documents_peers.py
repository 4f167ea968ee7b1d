"""The same work without unwait: by hand, with LlamaIndex, with LangChain.

Each is written as its documentation says for speed. `chunks` of what each returns is how many chunks it made; all
cut at 1,000 characters and send 96 texts a call, which is what unwait does.

This machine may be offline, so nothing here downloads a vocabulary: LlamaIndex's SentenceSplitter counts characters
instead of tiktoken's tokens and splits sentences with a regular expression instead of NLTK's model, both of which
are cheaper than what they stand in for. Both frameworks keep everything in memory (SimpleVectorStore and
SimpleDocumentStore; InMemoryVectorStore and InMemoryRecordManager), and so are spared the database that unwait writes.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loops import Unsupported

SIZE = 1000
LOCAL_BATCH = 64
API_BATCH = 96
LIMIT = 64
AT_ONCE = API_BATCH * LIMIT
"""Texts that keep all permitted calls busy."""

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE documents (id INTEGER PRIMARY KEY, uri TEXT UNIQUE, title TEXT);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, document INTEGER REFERENCES documents, position INTEGER, text TEXT, vector BLOB
);
CREATE INDEX chunks_of ON chunks (document);
CREATE VIRTUAL TABLE words USING fts5(text, content = chunks, content_rowid = id);
"""


@dataclass(frozen=True)
class Work:
    """What is to be done: pages as files or URLs, into a database; `api` is the base URL of the embeddings.

    `kept` asks those that work in memory to write what they have, so that another process could search it.
    """

    pages: Sequence[Path]
    database: Path
    site: str = ""
    kept: bool = False

    @property
    def urls(self) -> list[str]:
        return [f"{self.site}/pages/{page.name}" for page in self.pages]

    @property
    def api(self) -> str:
        return f"{self.site}/v1"


Way = Callable[[Work], Awaitable[dict[str, float]]]


def batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def read_page(body: bytes) -> tuple[str, str]:
    """(title, text) of an HTML page."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(body.decode())
    title = tree.css_first("title")
    tree.strip_tags(["script", "style"])
    text = tree.body.text(separator="\n", strip=True) if tree.body else ""
    return title.text(strip=True) if title else "", text


class Saver:
    """The script's database: one transaction a document."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)
        self.connection.executescript(SCHEMA)

    def save(self, uri: str, title: str, chunks: Sequence[str], vectors: Any) -> None:
        connection = self.connection
        with connection:
            row = connection.execute("INSERT INTO documents (uri, title) VALUES (?, ?)", (uri, title))
            first = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM chunks").fetchone()[0]
            connection.executemany(
                "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)",
                (
                    (first + position, row.lastrowid, position, text, vector.tobytes())
                    for position, (text, vector) in enumerate(zip(chunks, vectors, strict=True))
                ),
            )
            connection.executemany(
                "INSERT INTO words (rowid, text) VALUES (?, ?)", zip(itertools.count(first), chunks)
            )


def sequential() -> Way:
    """A page at a time from files: read, extract, chunk, embed, save."""
    import numpy as np
    import wordllama
    from semantic_text_splitter import TextSplitter
    from wordllama import WordLlama

    async def work(todo: Work) -> dict[str, float]:
        model = WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        splitter, saver, made = TextSplitter(SIZE), Saver(todo.database), 0
        for page in todo.pages:
            title, text = read_page(page.read_bytes())
            chunks = splitter.chunks(text)
            if not chunks:
                continue
            found = [model.embed(list(some), norm=True) for some in batches(chunks, LOCAL_BATCH)]
            saver.save(str(page), title, chunks, np.concatenate(found))
            made += len(chunks)
        saver.connection.close()
        return {"pages": len(todo.pages), "chunks": made}

    return work


class Api:
    """The pages and the embeddings by aiohttp, as one writes it: a session, a semaphore, base64 and numpy."""

    def __init__(self, session: Any, api: str) -> None:
        self.session, self.api = session, api
        self.pages, self.calls = asyncio.Semaphore(LIMIT), asyncio.Semaphore(LIMIT)

    async def page(self, url: str) -> tuple[str, bytes]:
        async with self.pages, self.session.get(url) as response:
            response.raise_for_status()
            return url, await response.read()

    async def loaded(self, urls: Sequence[str]) -> AsyncIterator[tuple[str, bytes]]:
        """All pages as they arrive."""
        for next_one in asyncio.as_completed([self.page(url) for url in urls]):
            yield await next_one

    async def call(self, texts: Sequence[str]) -> list[Any]:
        import numpy as np

        asked = {"model": "bench", "input": list(texts), "encoding_format": "base64"}
        async with self.calls, self.session.post(f"{self.api}/embeddings", json=asked) as response:
            response.raise_for_status()
            answer = await response.json()
        return [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]]

    async def lists(self, texts: Sequence[str]) -> list[list[float]]:
        """The vectors as frameworks want them, in as many calls at the same time as are permitted."""
        found = await asyncio.gather(*(self.call(some) for some in batches(texts, API_BATCH)))
        return [row.tolist() for rows in found for row in rows]


def session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def one_at_a_time() -> Way:
    """The sequential script, with pages and vectors from the server."""
    from semantic_text_splitter import TextSplitter

    async def work(todo: Work) -> dict[str, float]:
        splitter, saver, made = TextSplitter(SIZE), Saver(todo.database), 0
        async with session() as opened:
            api = Api(opened, todo.api)
            for url in todo.urls:
                title, text = read_page((await api.page(url))[1])
                chunks = splitter.chunks(text)
                vectors = [row for some in batches(chunks, API_BATCH) for row in await api.call(some)]
                saver.save(url, title, chunks, vectors)
                made += len(chunks)
        saver.connection.close()
        return {"pages": len(todo.pages), "chunks": made}

    return work


def llama_index() -> Way:
    try:
        import documents_llama
    except ImportError:
        raise Unsupported("llama-index-core is not installed") from None
    return documents_llama.work


def langchain(batch: int) -> Way:
    try:
        import documents_langchain
    except ImportError:
        raise Unsupported("langchain-core and langchain-text-splitters are not installed") from None
    return lambda todo: documents_langchain.work(todo, batch)


PEERS: dict[str, Callable[[], Way]] = {
    "sequential script": sequential,
    "one at a time": one_at_a_time,
    "LlamaIndex": llama_index,
    "LangChain": lambda: langchain(AT_ONCE),
    "LangChain, batches of 100": lambda: langchain(100),
}


def first(pages: Iterable[Path], count: int) -> list[Path]:
    """So many pages, evenly taken from all."""
    pages = list(pages)
    return pages[:: max(1, len(pages) // count)][:count]
