"""`ingest`: documents from wherever they are into a store that can be searched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TextIO, cast
from weakref import WeakSet

from unwait.documents.model import Failure, Source
from unwait.documents.pipeline import Ingestion
from unwait.documents.report import IngestReport, LagMeter, Row, peak_memory
from unwait.documents.settings import resolve
from unwait.documents.sources import Listing
from unwait.documents.store import Store, StoreBusy, open_store
from unwait.flow.coprocess import possible
from unwait.flow.stats import Report
from unwait.flow.workers import cores
from unwait.web.client import Client

if TYPE_CHECKING:
    from pydantic import BaseModel

    from unwait.documents.ray_engine import RayIngestion

Named = str | os.PathLike[str]
# Open stores with a run of this process, which their lock lets in.
_writing: WeakSet[Store] = WeakSet()


async def ingest(
    sources: Named | Iterable[Named] = (),
    *,
    store: Store | Named = "kb.db",
    embed: str | None = None,
    summarise: str | None = None,
    records: type[BaseModel] | str | None = None,
    chat: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    chunk_size: int | None = None,
    overlap: int | None = None,
    text_field: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    crawl: int | None = None,
    limit: int = 64,
    per_host: int = 16,
    rate: str | None = None,
    tokens: str | None = None,
    max_bytes: int = 50 << 20,
    processes: int | None = None,
    prune: bool = False,
    retry_failed: bool = False,
    progress: bool | Callable[[Report], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    grace: float = 10.0,
    engine: Literal["local", "ray"] = "local",
    workers: int = 2,
    stdin: TextIO | None = None,
) -> IngestReport:
    """Bring documents into a store: download, extract, chunk, embed, summarise, extract records, save.

    `sources` are files, directories, patterns, URLs, sitemaps, or "-" for a list of them on standard input; with
    `crawl`, a URL is where a crawl of so many links' depth begins, within its prefix. `include` and `exclude` are
    patterns for files in directories. With `retry_failed`, what failed before is tried again, and `sources` may be
    empty.

    `store` is the path of a SQLite file, `postgresql://…`, or an open store. `embed` is "wordllama" (the default;
    static vectors, nothing is sent anywhere) or "openai:MODEL", for any server at `base_url` that speaks OpenAI's
    protocol (default: OPENAI_BASE_URL of the environment, then OpenAI's own); `summarise` is "extractive" (the
    default), "none" or "openai:MODEL". `records` is a pydantic model, or where one is ("invoices.py:Invoice"): a chat
    model, `chat` or that of the summaries, extracts what agrees with it. The key is `api_key`, or OPENAI_API_KEY of the
    environment. `chunk_size` (1,000) and `overlap` (0) are in characters; `text_field` ("text") is where JSON Lines
    have theirs.

    What is not said is as in the last run of this store. What has changed is done again, and what depends on it, and
    nothing else; a document is replaced when it is whole. With `prune`, what these sources no longer list is removed.

    `limit` bounds what waits at the same time, `per_host` the requests to one host, `rate` ("500/min") the calls of
    each model, `tokens` ("90000/min") what they take; `max_bytes` a source. Where much is to be read, `processes` of
    its own may extract, chunk and embed (one a core if not said, 0 for none), and one more writes a SQLite store that
    is not open yet. `progress` and `grace` are those of `map`. `on_row` is called for each source when what
    became of it is stored. With `engine="ray"`, `workers` actors share the work.

    A source that fails is a row and a count of the report, never an exception. Raises ValueError for what makes
    no sense, ImportError for a missing library, StoreError (StoreBusy) for a store that cannot be used, and ClientError
    for a model that answers nobody, as with a wrong key; what is stored by then stays.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not named and not retry_failed:
        raise ValueError("there are no sources; name files, directories or URLs")
    if engine not in ("local", "ray"):
        raise ValueError(f'engine must be "local" or "ray", not {engine!r}')
    if not all(map(os.fspath, named)):
        raise ValueError("a source has an empty name")
    if processes is None:
        processes = cores() if cores() > 1 and possible() else 0
    if processes < 0:
        raise ValueError(f"processes must not be negative, and is {processes}")
    if min(limit, per_host, max_bytes, workers) < 1:
        raise ValueError("limit, per_host, max_bytes and workers must be positive")
    started = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        address: str | None = None
        if isinstance(store, str | os.PathLike):
            address = os.fspath(store)
            opened = await stack.enter_async_context(
                open_store(address, process=processes > 0 and engine == "local")
            )
        else:
            opened = store
            if opened in _writing:
                raise StoreBusy(f"the store {opened.name} is being written by another run: wait for its end")
            _writing.add(opened)
            stack.callback(_writing.discard, opened)
        remembered = await opened.settings()
        settings = resolve(
            {
                "embed": embed,
                "summarise": summarise,
                "chat": chat,
                "base_url": base_url,
                "chunk_size": chunk_size,
                "overlap": overlap,
                "text_field": text_field,
            },
            remembered,
            records,
            limit=limit,
            per_host=per_host,
            rate=rate,
            tokens=tokens,
            max_bytes=max_bytes,
            processes=processes,
        )
        client = await stack.enter_async_context(Client(max_bytes=max_bytes, per_host=per_host))
        listing = Listing(
            named,
            client,
            include=include,
            exclude=exclude,
            crawl=crawl,
            text_field=settings.text_field,
            max_bytes=max_bytes,
            stdin=stdin,
            again=_failed_before(opened, lambda: run) if retry_failed else None,
        )
        work: Ingestion | RayIngestion
        if engine == "ray":
            from unwait.documents.ray_engine import RayIngestion

            if address is None:
                raise ValueError('engine="ray" needs the address of the store: its actors open it themselves')
            work = RayIngestion(settings, address, opened, client, api_key, workers)
        else:
            work = Ingestion(settings, opened, client, api_key)
        report = IngestReport(opened.name)
        await stack.enter_async_context(work)
        # What cannot be done is not what the store remembers: searches rely on it.
        if any(remembered.get(name) != settings.remembered[name] for name in ("embed", "base_url")):
            await work.check()
        run = await opened.begin(settings.remembered)
        with LagMeter() as lag:
            async with aclosing(
                work.rows(run, _listed(listing, address), progress=progress, grace=grace)
            ) as rows:
                async for row in rows:
                    report.add(row)
                    if on_row is not None:
                        on_row(row)
            if prune:
                report.not_pruned = sorted(listing.origins - listing.complete)
                for uri in await opened.prune(run, sorted(listing.complete), work.gone):
                    row = Row(uri, "pruned")
                    report.add(row)
                    if on_row is not None:
                        on_row(row)
        work.account(report)
        if remembered.get("embed", settings.embed) != settings.embed:
            report.other_vectors = await _with_other_vectors(opened, work.space)
        report.elapsed = asyncio.get_running_loop().time() - started
        report.lag_p99, report.lag_max, report.peak_memory = lag.p99, lag.most, peak_memory()
        return report


async def _failed_before(store: Store, run: Callable[[], int]) -> AsyncGenerator[Failure, None]:
    """What failed; a model whose answers were not valid is to be asked anew."""
    async with aclosing(cast(AsyncGenerator[Failure, None], store.failures())) as failures:
        async for failure in failures:
            if failure.kind == "invalid records":
                await store.forget_calls(failure.uri, "records:")
                # Only once: if this run is cut off, the next one finds what it has paid for.
                begun = replace(failure, kind="unfinished", error="a run that tried it again was cut off")
                await store.fail(begun, run())
            yield failure


async def _with_other_vectors(store: Store, space: str) -> int:
    """How many documents have vectors of another model."""
    count = 0
    async for listed in store.documents():
        state = await store.state(listed.uri)
        count += state is not None and state.versions.vectors != space
    return count


async def _listed(listing: Listing, store: str | None) -> AsyncGenerator[Source, None]:
    """The sources, without the files of the store itself, which may lie in a directory that was named."""
    own = (
        set()
        if store is None
        else {os.path.abspath(store) + suffix for suffix in ("", "-wal", "-shm", "-lock")}
    )
    async with aclosing(aiter(listing)) as sources:
        async for source in sources:
            if source.path is None or source.path not in own:
                yield source
