"""The work of bench/documents.py through LangChain: `aindex` over chunks as their pages arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from documents_peers import SIZE, Api, Work, read_page, session
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter


class ApiEmbeddings(Embeddings):
    def __init__(self, api: Api) -> None:
        self.api = api

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self.api.lists(texts)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


async def work(todo: Work, batch: int) -> dict[str, float]:
    """`batch` is batch_size of `aindex`, which embeds and stores one batch after another."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=SIZE, chunk_overlap=0)
    pages = made = 0
    async with session() as opened:
        api = Api(opened, todo.api)

        async def chunks() -> AsyncIterator[Document]:
            nonlocal pages, made
            async for url, body in api.loaded(todo.urls):
                title, text = read_page(body)
                page = Document(page_content=text, metadata={"source": url, "title": title})
                pages += 1
                for chunk in splitter.split_documents([page]):
                    made += 1
                    yield chunk

        records, vectors = InMemoryRecordManager("bench"), InMemoryVectorStore(ApiEmbeddings(api))
        await records.acreate_schema()
        done = await aindex(
            chunks(),
            records,
            vectors,
            batch_size=batch,
            cleanup="incremental",
            source_id_key="source",
            key_encoder="blake2b",
        )
    assert done["num_added"] + done["num_skipped"] == made
    if todo.kept:
        await asyncio.to_thread(vectors.dump, str(todo.database))
    return {"pages": pages, "chunks": made}
