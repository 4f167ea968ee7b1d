"""`map` and `stream` under random durations, failures, retries, limits and cancellations, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.flow.fanout import map, stream
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError
from unwait.flow.retry import Retry

from .virtual_clock import VirtualLoop

# Of each item: how long each of its attempts takes (0 is not even a turn), and how many of them fail.
ITEMS = st.lists(st.tuples(st.sampled_from([None, 0, 0.5, 1, 3]), st.integers(0, 3)), max_size=25)


class Calls:
    def __init__(self):
        self.made = Counter()
        self.running = self.most = 0

    async def __call__(self, item):
        index, (duration, failures) = item
        self.made[index] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if duration is not None:
                await asyncio.sleep(duration)
            if self.made[index] <= failures:
                raise OSError(index)
            return index
        finally:
            self.running -= 1


def on(main):
    loop = VirtualLoop()
    errors = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        result = loop.run_until_complete(main())
        assert asyncio.all_tasks(loop) == set()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    assert errors == []
    return result


@settings(deadline=None)
@given(
    items=ITEMS,
    limit=st.integers(1, 6),
    concurrency=st.integers(1, 4),
    retries=st.integers(0, 3),
    lazy=st.booleans(),
)
def test_each_item_has_one_outcome(items, limit, concurrency, retries, lazy):
    calls, limits = Calls(), Limits(concurrency=concurrency)

    async def feed():
        for item in enumerate(items):
            await asyncio.sleep(0.1 if item[0] % 3 == 0 else 0)
            yield item

    async def main():
        source = feed() if lazy else enumerate(items)
        retry = Retry(retries, base=0.25)
        return await map(calls, source, limit=limit, limits=limits, retry=retry, errors="return")

    results = on(main)
    for index, (_, failures) in enumerate(items):
        assert calls.made[index] == min(failures, retries) + 1
        assert results[index] == index if failures <= retries else isinstance(results[index], OSError)
    assert calls.most <= min(limit, concurrency)
    assert (results.report.done + results.report.failed, results.report.running) == (len(items), 0)
    assert results.report.attempts == sum(calls.made.values())


@settings(deadline=None)
@given(items=ITEMS, limit=st.integers(1, 6), leave_after=st.integers(0, 25), slow=st.booleans())
def test_a_stream_that_is_left_leaves_nothing(items, limit, leave_after, slow):
    calls = Calls()
    seen = []

    async def main():
        async with stream(calls, enumerate(items), limit=limit) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.index)
                if len(seen) > leave_after:
                    break
                if slow:
                    await asyncio.sleep(0.7)

    on(main)
    assert calls.running == 0
    assert len(set(seen)) == len(seen) == min(len(items), leave_after + 1)
    assert calls.most <= limit


@settings(deadline=None)
@given(items=ITEMS, limit=st.integers(1, 6), seconds=st.floats(0, 12))
def test_a_cancelled_map_gives_every_permit_back(items, limit, seconds):
    calls, limits = Calls(), Limits(concurrency=2, rate="5/s")

    async def main():
        try:
            async with asyncio.timeout(seconds):
                await map(calls, enumerate(items), limit=limit, limits=limits, retry=Retry(2, base=1))
        except (TimeoutError, MapError):
            pass
        permits = [limits.try_acquire() or await limits.acquire() for _ in range(2)]
        for permit in permits:
            permit.release()

    on(main)
    assert calls.running == 0
