"""The loop's own costs: `python micro.py NAME LOOP [TIMES]` prints the CPU time of one operation as JSON.

Each function here is one benchmark: it gets a running loop and a count, does the count's worth of work and
returns when the loop has run all of it. What is timed is the CPU of the whole process (all its threads, user
and system), after a tenth of the work has been done once as a warm-up. The garbage collector stays on, as it
is in programs. TIMES (1) repeats the work, for a profiler to see more of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable

from loops import Unsupported, new_loop


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


async def call_soon_chained(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A callback that schedules itself again."""
    done = loop.create_future()
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(None)

    loop.call_soon(step)
    await done


async def call_soon_bulk(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """All callbacks scheduled at once, then run."""
    for _ in range(count):
        loop.call_soon(nothing)
    await asyncio.sleep(0)


async def sleep_zero(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """One task that yields to the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def task(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """create_task of an empty coroutine, awaited before the next."""
    for _ in range(count):
        await loop.create_task(nothing_async())


async def gather(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """One gather of all the (empty) coroutines."""
    await asyncio.gather(*[nothing_async() for _ in range(count)])


async def future(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A future whose set_result is scheduled by call_soon, awaited."""
    for _ in range(count):
        waiter = loop.create_future()
        loop.call_soon(waiter.set_result, None)
        await waiter


async def queue(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Items handed from one task to another through a Queue(1)."""
    channel: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for number in range(count):
            await channel.put(number)

    producer = loop.create_task(produce())
    for _ in range(count):
        await channel.get()
    await producer


async def timeout(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """`async with asyncio.timeout(10)` around a sleep(0)."""
    for _ in range(count):
        async with asyncio.timeout(10):
            await asyncio.sleep(0)


async def timers_cancelled(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """All timers set (due in 10 to 20 s, in a scattered order), then all cancelled."""
    handles = [loop.call_later(10 + index * 7919 % count / count * 10, nothing) for index in range(count)]
    for handle in handles:
        handle.cancel()
    await asyncio.sleep(0)


async def sleeps_fired(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """One gather of sleeps that end 100 to 300 ms later, in a scattered order."""
    await asyncio.gather(*[asyncio.sleep(0.1 + index * 7919 % count / count * 0.2) for index in range(count)])


async def threadsafe_thread(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """call_soon_threadsafe of empty callbacks, as fast as one other thread can, while the loop runs them."""
    done = loop.create_future()

    def send() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(nothing)
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=send)
    thread.start()
    await done
    thread.join()


async def threadsafe_own(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """call_soon_threadsafe from a callback of the loop itself that schedules itself again."""
    done = loop.create_future()
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon_threadsafe(step)
        else:
            done.set_result(None)

    loop.call_soon_threadsafe(step)
    await done


BENCHMARKS: dict[str, tuple[Callable[[asyncio.AbstractEventLoop, int], Awaitable[None]], int]] = {
    "call_soon_chained": (call_soon_chained, 300_000),
    "call_soon_bulk": (call_soon_bulk, 100_000),
    "sleep_zero": (sleep_zero, 150_000),
    "task": (task, 60_000),
    "gather": (gather, 50_000),
    "future": (future, 80_000),
    "queue": (queue, 60_000),
    "timeout": (timeout, 40_000),
    "timers_cancelled": (timers_cancelled, 50_000),
    "sleeps_fired": (sleeps_fired, 20_000),
    "threadsafe_thread": (threadsafe_thread, 100_000),
    "threadsafe_own": (threadsafe_own, 100_000),
}


async def measure(name: str, times: int) -> float:
    """CPU microseconds of one operation."""
    benchmark, count = BENCHMARKS[name]
    loop = asyncio.get_running_loop()
    await benchmark(loop, count // 10)
    before = time.process_time()
    for _ in range(times):
        await benchmark(loop, count)
    return (time.process_time() - before) / count / times * 1e6


def main() -> int:
    name, loop_name = sys.argv[1:3]
    times = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    try:
        loop = new_loop(loop_name)
    except Unsupported as error:
        print(json.dumps({"unsupported": str(error)}))
        return 3
    asyncio.set_event_loop(loop)
    print(json.dumps({"cpu_us": loop.run_until_complete(measure(name, times))}))
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
