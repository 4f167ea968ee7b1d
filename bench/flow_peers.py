"""The ways to call a function for many items that bench/flow.py compares: unwait's, and how others do it."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from loops import Unsupported

LIMIT = 100

Func = Callable[[Any], Awaitable[Any]]


def need(name: str) -> Any:
    """An attribute of unwait, or a module."""
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
    except ImportError:
        raise Unsupported(f"{module} is not installed") from None
    except AttributeError:
        raise Unsupported(f"this version of {module} has no {attribute}") from None


# All items: the results in the order of the items, and an exception in the place of a value.


async def map_unwait(func: Func, items: Iterable[Any]) -> list[Any]:
    return list(await need("unwait:map")(func, items, limit=LIMIT, progress=False))


async def map_unwait_with_all(func: Func, items: Iterable[Any]) -> list[Any]:
    """With a rate that holds nothing back, retries that are not needed, time-outs that do not strike."""
    more: dict[str, Any] = {"rate": "100000000/s", "retry": 5, "timeout": 30, "item_timeout": 60}
    return list(await need("unwait:map")(func, items, limit=LIMIT, progress=False, **more))


async def map_pool(func: Func, items: Iterable[Any]) -> list[Any]:
    """Workers on a bounded queue: items are pulled as there is room, a failure takes the value's place."""
    queue: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue(LIMIT)
    results: list[Any] = []

    async def work() -> None:
        while (entry := await queue.get()) is not None:
            index, item = entry
            try:
                results[index] = await func(item)
            except Exception as error:
                results[index] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(LIMIT):
            group.create_task(work())
        for entry in enumerate(items):
            results.append(None)
            await queue.put(entry)
        for _ in range(LIMIT):
            await queue.put(None)
    return results


async def map_prefilled(func: Func, items: Iterable[Any]) -> list[Any]:
    """Workers on a queue that holds all the items from the start."""
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    for entry in enumerate(items):
        queue.put_nowait(entry)
    results: list[Any] = [None] * queue.qsize()

    async def work() -> None:
        while not queue.empty():
            index, item = queue.get_nowait()
            try:
                results[index] = await func(item)
            except Exception as error:
                results[index] = error

    await asyncio.gather(*(work() for _ in range(LIMIT)))
    return results


async def map_gather(func: Func, items: Iterable[Any]) -> list[Any]:
    """A task for each item from the start, and a semaphore."""
    semaphore = asyncio.Semaphore(LIMIT)

    async def one(item: Any) -> Any:
        async with semaphore:
            return await func(item)

    return await asyncio.gather(*map(one, items), return_exceptions=True)


async def map_aiometer(func: Func, items: Iterable[Any]) -> list[Any]:
    calls = [functools.partial(func, item) for item in items]
    return list(await need("aiometer:run_all")(calls, max_at_once=LIMIT))


async def map_tqdm(func: Func, items: Iterable[Any]) -> list[Any]:
    """As `map_gather`, with a bar, which is what it is for; the bar is drawn to nowhere."""
    semaphore = asyncio.Semaphore(LIMIT)

    async def one(item: Any) -> Any:
        async with semaphore:
            return await func(item)

    with open(os.devnull, "w") as nowhere:
        return list(await need("tqdm.asyncio:tqdm").gather(*map(one, items), file=nowhere))


MAPS = {
    "unwait": map_unwait,
    "unwait, rate + retry + time-outs": map_unwait_with_all,
    "worker pool": map_pool,
    "worker pool, prefilled": map_prefilled,
    "gather + semaphore": map_gather,
    "tqdm.asyncio + semaphore": map_tqdm,
    "aiometer": map_aiometer,
}


# Items from a generator: the results as they come.


async def stream_unwait(func: Func, items: Iterator[int]) -> AsyncIterator[int]:
    async with need("unwait:stream")(func, items, limit=LIMIT, progress=False) as outcomes:
        async for outcome in outcomes:
            yield outcome.value


async def stream_pool(func: Func, items: Iterator[int]) -> AsyncIterator[int]:
    """Workers between two bounded queues."""
    queue: asyncio.Queue[int | None] = asyncio.Queue(LIMIT)
    results: asyncio.Queue[int] = asyncio.Queue(LIMIT)

    async def produce() -> None:
        for item in items:
            await queue.put(item)
        for _ in range(LIMIT):
            await queue.put(None)

    async def work() -> None:
        while (item := await queue.get()) is not None:
            await results.put(await func(item))

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            for _ in range(LIMIT):
                group.create_task(work())

    running = asyncio.create_task(run())
    while not (running.done() and results.empty()):
        getting = asyncio.ensure_future(results.get())
        await asyncio.wait((getting, running), return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            yield getting.result()
            while not results.empty():
                yield results.get_nowait()
        else:
            getting.cancel()
    await running


async def stream_aiometer(func: Func, items: Iterator[int]) -> AsyncIterator[int]:
    async with need("aiometer:amap")(func, list(items), max_at_once=LIMIT) as results:
        async for value in results:
            yield value


async def stream_tqdm(func: Func, items: Iterator[int]) -> AsyncIterator[int]:
    for done in need("tqdm.asyncio:tqdm").as_completed([func(item) for item in items], disable=True):
        yield await done


STREAMS = {
    "unwait": (stream_unwait, 1_000_000),
    "worker pool": (stream_pool, 1_000_000),
    "aiometer": (stream_aiometer, 200_000),
    "tqdm.asyncio": (stream_tqdm, 200_000),
}


# Bodies of URLs.


async def fetch_unwait(urls: list[str]) -> list[bytes]:
    responses = await need("unwait:fetch")(urls, limit=LIMIT, progress=False)
    return [response.content for response in responses]


async def fetch_aiohttp(urls: list[str]) -> list[bytes]:
    aiohttp = need("aiohttp")
    semaphore = asyncio.Semaphore(LIMIT)

    async def get(url: str) -> bytes:
        async with semaphore, session.get(url) as response:
            body: bytes = await response.read()
            return body

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=LIMIT)) as session:
        return await asyncio.gather(*map(get, urls))


async def fetch_httpx(urls: list[str]) -> list[bytes]:
    httpx = need("httpx")
    semaphore = asyncio.Semaphore(LIMIT)

    async def get(url: str) -> bytes:
        async with semaphore:
            response = await client.get(url)
        body: bytes = response.content
        return body

    bounds = httpx.Limits(max_connections=LIMIT, max_keepalive_connections=LIMIT)
    async with httpx.AsyncClient(limits=bounds) as client:
        return await asyncio.gather(*map(get, urls))


FETCHES = {"unwait": fetch_unwait, "aiohttp": fetch_aiohttp, "httpx": fetch_httpx}


# A function that retries: attempts, exponential back-off with jitter, a bound in time.


def retry_unwait(func: Func) -> Func:
    retrying: Func = need("unwait:Retry")(5, total=60.0)(func)
    return retrying


def retry_tenacity(func: Func) -> Func:
    tenacity = need("tenacity")
    retrying: Func = tenacity.retry(
        stop=tenacity.stop_after_attempt(6) | tenacity.stop_after_delay(60),
        wait=tenacity.wait_random_exponential(0.5, max=60),
    )(func)
    return retrying


def retry_stamina(func: Func) -> Func:
    retrying: Func = need("stamina").retry(on=Exception, attempts=6, timeout=60)(func)
    return retrying


RETRIES = {"unwait": retry_unwait, "tenacity": retry_tenacity, "stamina": retry_stamina}
