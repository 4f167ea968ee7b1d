"""`engine="ray"`: the same stages in several processes, on one machine or many.

The driver lists the sources and sends them in batches to actors; each actor runs our loop, with a pipeline of its own
for each batch and its models open all the time. The journal is the store, which all of them write: a document is saved
in one transaction by whichever actor has it. So an actor that dies takes nothing along but what was under way, and its
batch goes to another one, where what it had saved is found unchanged, and what it had paid for is found kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise ImportError('engine="ray" needs Ray: pip install "unwait[ray]"', name="ray") from None

from unwait.documents.model import Failure, Source
from unwait.documents.pipeline import Ingestion
from unwait.documents.report import Counts, IngestReport, Row
from unwait.documents.settings import Settings
from unwait.documents.store import Store, open_store
from unwait.flow.fanout import Stream, stream
from unwait.flow.faults import describe
from unwait.flow.rates import Rate
from unwait.flow.stats import Report
from unwait.loop import Runner
from unwait.web.client import Client

BATCH = 32  # sources that go to an actor at a time: a call of an actor costs about a millisecond
_AHEAD = 2  # batches at each actor, so that one is there when the other is done
_LONGEST_ERROR = 1000  # characters
_LOST = 3  # actors that a batch may take along before it is its sources that are to blame


@dataclass(frozen=True, slots=True)
class Done:
    """What an actor tells of a batch."""

    rows: list[Row]
    gone: list[str]
    counts: Counts


class Worker:
    """What runs in an actor: an ingestion that is open from the first batch to the last, on a loop of ours.

    No method of it is async, or Ray would run all of them on a loop of its own.
    """

    def __init__(self, settings: Settings, address: str, run: int, api_key: str | None) -> None:
        self._runner = Runner()
        self._run = run
        self._store = open_store(address)
        self._ingestion = self._runner.run(_opened(settings, self._store, api_key))

    def ingest(self, batch: Sequence[Source]) -> Done:
        """Bring the sources into the store."""
        return self._runner.run(_ingested(self._ingestion, self._store, self._run, batch))


async def _opened(settings: Settings, store: Store, api_key: str | None) -> Ingestion:
    """Open for as long as the actor lives: the store loses nothing by its end."""
    await store.__aenter__()
    client = await Client(max_bytes=settings.max_bytes, per_host=settings.per_host).__aenter__()
    return await Ingestion(settings, store, client, api_key).__aenter__()


async def _ingested(ingestion: Ingestion, store: Store, run: int, batch: Sequence[Source]) -> Done:
    before = ingestion.counts
    rows = [row async for row in ingestion.rows(run, _each(batch), progress=False, grace=0.0)]
    # What it has only touched must be written before the driver prunes what this run has not seen: a list does that.
    async for _ in store.failures():
        break
    gone, ingestion.gone = ingestion.gone, []
    return Done(rows, gone, ingestion.counts - before)


async def _each(batch: Sequence[Source]) -> AsyncGenerator[Source, None]:
    for source in batch:
        yield source


@dataclass(slots=True)
class _Place:
    """An actor, and the one that takes over when it is gone."""

    actor: Any


class RayIngestion:
    """An `Ingestion` whose work is done by actors; to be used in `async with`.

    Joins the cluster that Ray knows of (`RAY_ADDRESS`), or starts one on this machine for as long as it lasts.
    """

    def __init__(
        self,
        settings: Settings,
        address: str,
        store: Store,
        client: Client,
        api_key: str | None,
        workers: int,
    ) -> None:
        # Actors may have another working directory and another environment.
        if "://" not in address:
            address = os.path.abspath(address)
        if api_key is None:
            api_key = os.environ.get("OPENAI_API_KEY")
        rate, tokens = (_share(each, workers) for each in (settings.rate, settings.tokens))
        limit = max(1, settings.limit // workers)
        per_host = max(1, settings.per_host // workers)
        shared = replace(settings, rate=rate, tokens=tokens, limit=limit, per_host=per_host, processes=0)
        self._make: Callable[[], Any] = lambda: actor.remote(shared, address, self._run, api_key)
        # A batch at a time: its pipeline has the actor's loop for itself.
        actor = ray.remote(scheduling_strategy="SPREAD", max_restarts=0)(Worker)
        self._store = store
        self._trial = Ingestion(settings, store, client, api_key)
        self._run = 0
        self._workers = workers
        self._started = False
        self._idle: asyncio.Queue[_Place] = asyncio.Queue()
        self.gone: list[str] = []
        self.counts = Counts()

    @property
    def space(self) -> str:
        """The space of the vectors it makes."""
        return self._trial.space

    async def check(self) -> None:
        """See `Ingestion.check`."""
        await self._trial.check()

    async def __aenter__(self) -> Self:
        # What an actor could not open is said here, and once.
        await self._trial.__aenter__()
        try:
            if not ray.is_initialized():
                self._started = True
                await asyncio.to_thread(
                    ray.init, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
        except BaseException:
            await self._trial.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._trial.__aexit__(kind, error, trace)
        if self._started:
            await asyncio.to_thread(ray.shutdown)
            return
        while not self._idle.empty():
            ray.kill(self._idle.get_nowait().actor)

    async def rows(
        self,
        run: int,
        sources: AsyncGenerator[Source, None],
        *,
        progress: bool | Callable[[Report], None] | None,
        grace: float,
    ) -> AsyncGenerator[Row, None]:
        """Bring the sources into the store, as this run of it; their rows as their batches are done."""
        self._run = run
        for _ in range(self._workers):
            place = _Place(self._make())
            for _ in range(_AHEAD):
                self._idle.put_nowait(place)
        done: Stream[list[Source], list[Row]] = stream(
            self._send, _batches(sources), limit=self._workers * _AHEAD, progress=progress, grace=grace
        )
        async with done:
            async for outcome in done:
                for row in outcome.unwrap():
                    yield row

    def account(self, report: IngestReport) -> None:
        """Add what the models did."""
        report.count(self.counts)

    async def _send(self, batch: list[Source]) -> list[Row]:
        place = await self._idle.get()
        lost = ""
        try:
            for _ in range(_LOST):
                actor = place.actor
                try:
                    done: Done = await asyncio.wrap_future(actor.ingest.remote(batch).future())
                except RayActorError as error:
                    lost = describe(error, _LONGEST_ERROR)
                    # Both batches that were with it come by here.
                    if place.actor is actor:
                        place.actor = self._make()
                    continue
                except RayTaskError as error:
                    # Its own text is that of a traceback in the actor.
                    raise error.cause from None
                self.gone += done.gone
                self.counts += done.counts
                return done.rows
        finally:
            self._idle.put_nowait(place)
        return [await self._lose(source, lost) for source in batch]

    async def _lose(self, source: Source, lost: str) -> Row:
        text = (
            f"{_LOST} actors ended while they had this source and those listed beside it: try it with another engine; "
            f"the last one said: {lost}"
        )
        await self._store.fail(Failure(source.uri, source.origin, "actor", "actor lost", text), self._run)
        return Row(source.uri, "failed", "actor", "actor lost", text)


async def _batches(sources: AsyncGenerator[Source, None]) -> AsyncGenerator[list[Source], None]:
    batch: list[Source] = []
    async with aclosing(sources):
        async for source in sources:
            batch.append(source)
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _share(rate: str | None, workers: int) -> str | None:
    """Each actor's part of a rate that is for all of them."""
    if rate is None:
        return None
    whole = Rate.parse(rate)
    return str(Rate(whole.amount / workers, whole.period))
