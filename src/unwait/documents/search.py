"""`search`: what a store holds on a question, by full text and by meaning."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unwait.documents.model import Candidate, Filter
from unwait.documents.settings import STATIC
from unwait.documents.snippets import snippet
from unwait.documents.store import Store, StoreError, open_store

if TYPE_CHECKING:
    from unwait.documents.models import Embedder

# Reciprocal rank fusion: a place counts its ranking's weight / (4 + rank). Of the values that bench/documents.py was
# tried with, these put the fusion farthest before both of its parts for every kind of question; the usual 60 and equal
# weights let the better ranking be outvoted by what the other one has in its middle.
_DAMPING = 4
_WEIGHTS = (1.5, 1.0)  # of the full text and the vectors
_LEAST_DEPTH = 50
_DEPTH_PER_HIT = 10


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that answers, with its document.

    `snippet` is a line of it, `text` the whole; `start` and `end` are where it is in the document's text. `text_rank`
    and `vector_rank` tell which ranking found it, and in which place (from 1); None where one did not.
    """

    uri: str
    title: str
    section: tuple[str, ...]
    page: int | None
    snippet: str
    score: float
    start: int
    end: int
    chunk: str
    metadata: Mapping[str, Any]
    text: str
    text_rank: int | None
    vector_rank: int | None


async def search(
    query: str,
    *,
    store: str | os.PathLike[str] | Store = "kb.db",
    k: int = 5,
    source: str | None = None,
    metadata: Mapping[str, str | int | float] | None = None,
    mode: Literal["hybrid", "text", "vector"] = "hybrid",
    base_url: str | None = None,
    api_key: str | None = None,
    embedder: Embedder | None = None,
) -> list[Hit]:
    """The `k` best chunks for the query, the best first.

    `store` is the path of a SQLite file, `postgresql://…`, or an open store: keep one open for many searches, as what
    they need stays in memory. `mode` "hybrid" fuses the full text (BM25) and the vectors; the others are one
    of the two. `source` is a URI, the beginning of one, or a pattern with `*` for all of it; of `metadata`,
    every value must be that of the document.

    The model that made the store's vectors makes that of the query: the store knows which, and the `base_url` if it has
    one; the key is `api_key`, or OPENAI_API_KEY of the environment. Or give the `embedder`, which stays open.

    Raises StoreError for a store that is not there or cannot be read, ValueError for what makes no sense, ImportError
    for a missing library, and ClientError where the model does not answer.
    """
    if mode not in ("hybrid", "text", "vector"):
        raise ValueError(f'mode must be "hybrid", "text" or "vector", not {mode!r}')
    if k < 1:
        raise ValueError(f"k must be at least 1, and is {k}")
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()
    }
    where = Filter(source, values)
    async with AsyncExitStack() as stack:
        if isinstance(store, str | os.PathLike):
            store = await stack.enter_async_context(open_store(_there(os.fspath(store))))
        if not query.strip():
            return []
        vector, space = None, ""
        if mode != "text":
            if embedder is None:
                embedder = await stack.enter_async_context(_model(await store.settings(), base_url, api_key))
            if embedder is not None:
                vector, space = (await embedder.embed([query]))[0], embedder.name
            elif mode == "vector":
                raise StoreError(
                    f"the store {store.name} has no vectors: ingest documents first, or search its text"
                )
        depth = max(_LEAST_DEPTH, _DEPTH_PER_HIT * k)
        words = "" if mode == "vector" else query
        texts, near = await store.find(words, vector, space, depth, where)
        # The rankings may be long: not in the loop.
        return await asyncio.to_thread(fuse, query, texts, near, k)


def fuse(query: str, texts: Sequence[Candidate], near: Sequence[Candidate], k: int) -> list[Hit]:
    """The best `k` of two rankings by reciprocal rank; equal ones by URI and position."""
    found: dict[tuple[str, str], Candidate] = {}
    ranks: tuple[dict[tuple[str, str], int], ...] = ({}, {})
    for ranking, places in zip((texts, near), ranks, strict=True):
        for place, candidate in enumerate(ranking, 1):
            key = (candidate.uri, candidate.chunk)
            found[key] = candidate
            places[key] = place
    scores = {
        key: sum(
            weight / (_DAMPING + places[key])
            for weight, places in zip(_WEIGHTS, ranks, strict=True)
            if key in places
        )
        for key in found
    }
    best = sorted(found, key=lambda key: (-scores[key], key[0], found[key].start, key[1]))
    return [_hit(query, found[key], scores[key], *(places.get(key) for places in ranks)) for key in best[:k]]


def _hit(
    query: str, candidate: Candidate, score: float, text_rank: int | None, vector_rank: int | None
) -> Hit:
    return Hit(
        uri=candidate.uri,
        title=candidate.title,
        section=candidate.section,
        page=candidate.page,
        snippet=snippet(candidate.text, query),
        score=score,
        start=candidate.start,
        end=candidate.end,
        chunk=candidate.chunk,
        metadata=candidate.metadata,
        text=candidate.text,
        text_rank=text_rank,
        vector_rank=vector_rank,
    )


def _there(address: str) -> str:
    """The address, if it is not that of a file that is not there: a search makes none."""
    nothing = "://" not in address and (
        not os.path.exists(address) or (os.path.isfile(address) and not os.path.getsize(address))
    )
    if nothing:
        raise StoreError(f"there is no store {address}: ingest documents into it first")
    return address


@asynccontextmanager
async def _model(
    settings: Mapping[str, str], base_url: str | None, api_key: str | None
) -> AsyncIterator[Embedder | None]:
    """The model that made the store's vectors; None before the first run."""
    named = settings.get("embed")
    if named is None:
        yield None
    elif named == STATIC:
        from unwait.documents.static_vectors import StaticEmbedder

        async with aclosing(StaticEmbedder()) as embedder:
            yield embedder
    else:
        from unwait.documents.openai import Endpoint, OpenAIEmbedder, model_of

        async with Endpoint(base_url or settings.get("base_url") or None, api_key) as endpoint:
            yield OpenAIEmbedder(endpoint, model_of(named))
