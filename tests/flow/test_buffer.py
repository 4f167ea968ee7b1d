"""The bounded buffer between producers and consumers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.flow.buffer import Buffer, Closed

from .virtual_clock import VirtualLoop


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_producers_wait_for_room_and_consumers_for_items(loop):
    buffer = Buffer(2)
    taking = asyncio.ensure_future(buffer.get())
    await turns()
    buffer.put("a")
    assert await taking == "a"
    buffer.put("b")
    assert not buffer.full
    buffer.put("c")
    assert buffer.full
    waiting = asyncio.ensure_future(buffer.room())
    await turns()
    assert not waiting.done()
    assert buffer.take() == "b"
    await waiting
    assert buffer.deepest == 2


async def test_it_is_full_by_size_too(loop):
    buffer = Buffer(100, size=10)
    buffer.put("a", 4)
    assert not buffer.full
    buffer.put("b", 6)
    assert buffer.full
    buffer.take()
    assert not buffer.full


async def test_after_closing_what_is_there_can_be_taken(loop):
    buffer = Buffer(2)
    buffer.put("a")
    waiting = [asyncio.ensure_future(buffer.get()) for _ in range(3)]
    await turns()
    buffer.close()
    buffer.put("too late")
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] == "a"
    assert [type(result) for result in results[1:]] == [Closed, Closed]


async def test_closing_frees_the_producers(loop):
    buffer = Buffer(1)
    buffer.put("a")
    waiting = [asyncio.ensure_future(buffer.room()) for _ in range(3)]
    await turns()
    buffer.close()
    await asyncio.gather(*waiting)


@settings(deadline=None)
@given(
    producers=st.lists(st.integers(0, 5), max_size=5),
    consumers=st.integers(1, 4),
    bound=st.integers(1, 4),
    cancelled=st.lists(st.integers(1, 30), max_size=6),
)
def test_nothing_is_lost_doubled_or_stuck(producers, consumers, bound, cancelled):
    """Producers and consumers that come and go; consumers are cancelled at any turn, and others replace them."""
    loop = VirtualLoop()
    buffer = Buffer(bound)
    taken = []

    async def produce(name, count):
        for number in range(count):
            await buffer.room()
            buffer.put((name, number))
            assert len(buffer) < bound + len(producers)

    async def consume():
        while True:
            try:
                taken.append(await buffer.get())
            except Closed:
                return

    async def main():
        producing = [asyncio.ensure_future(produce(name, count)) for name, count in enumerate(producers)]
        consuming = [asyncio.ensure_future(consume()) for _ in range(consumers)]
        for turn in range(30):
            if turn in cancelled:
                consuming[turn % consumers].cancel()
                await asyncio.wait([consuming[turn % consumers]])
                consuming[turn % consumers] = asyncio.ensure_future(consume())
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await asyncio.gather(*producing)
            buffer.close()
            await asyncio.gather(*consuming)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert sorted(taken) == [
        (name, number) for name, count in enumerate(producers) for number in range(count)
    ]


@pytest.mark.parametrize("closed", [False, True])
async def test_a_cancelled_consumer_passes_its_turn_on(loop, closed):
    buffer = Buffer(1)
    first, second = asyncio.ensure_future(buffer.get()), asyncio.ensure_future(buffer.get())
    await turns()
    buffer.put("a")
    if closed:
        buffer.close()
    first.cancel()
    assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first
