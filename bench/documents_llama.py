"""The work of bench/documents.py through LlamaIndex: IngestionPipeline.arun over all documents, with upserts.

Without its `num_workers`, which hands the documents to other processes: pickled, its SentenceSplitter loses the ways in
which it splits, and makes 2,500 chunks of these pages instead of 8,900.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from documents_peers import API_BATCH, LIMIT, SIZE, Api, Work, read_page, session
from llama_index.core import Document
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)")


def sentences(text: str) -> list[str]:
    return [part for part in SENTENCE_END.split(text) if part]


class ApiEmbedding(BaseEmbedding):
    """Its own batching makes the calls; `num_workers` is how many of them run at the same time."""

    api_base: str
    _api: Api | None = PrivateAttr(default=None)

    async def aget_text_embedding_batch(self, texts: list[str], *rest: Any, **more: Any) -> Any:
        async with session() as opened:
            self._api = Api(opened, self.api_base)
            try:
                return await super().aget_text_embedding_batch(texts, *rest, **more)
            finally:
                self._api = None

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        assert self._api is not None
        return [row.tolist() for row in await self._api.call(texts)]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aget_text_embeddings([query]))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        raise NotImplementedError

    def _get_query_embedding(self, query: str) -> list[float]:
        raise NotImplementedError


async def work(todo: Work) -> dict[str, float]:
    embedding = ApiEmbedding(
        model_name="bench",
        embed_batch_size=API_BATCH,
        num_workers=LIMIT,
        api_base=todo.api,
    )
    splitter = SentenceSplitter(
        chunk_size=SIZE, chunk_overlap=0, tokenizer=list, chunking_tokenizer_fn=sentences
    )
    vectors = SimpleVectorStore()
    pipeline = IngestionPipeline(
        transformations=[splitter, embedding],
        docstore=SimpleDocumentStore(),
        vector_store=vectors,
        disable_cache=True,
    )
    documents = []
    async with session() as opened:
        async for url, body in Api(opened, todo.api).loaded(todo.urls):
            title, text = read_page(body)
            documents.append(Document(text=text, id_=url, metadata={"title": title}))
    nodes = await pipeline.arun(documents=documents)
    if todo.kept:
        await asyncio.to_thread(pipeline.persist, str(todo.database.parent))
        await asyncio.to_thread(vectors.persist, str(todo.database))
    return {"pages": len(documents), "chunks": len(nodes)}
