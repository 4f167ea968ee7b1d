"""Whether a limiter keeps to its limit and uses all of it: a ledger of what was admitted, and its judgement."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from flow_peers import LIMIT, need

WAITERS = 500
RATE, RATE_SECONDS = 1000, 10.0
TOKENS, TOKEN_WINDOW, TOKEN_SECONDS = 60_000, 6.0, 18.0
ROUNDING = 1e-9  # s, of sums of the clock's floats

Ledger = list[tuple[float, float]]  # (time, amount)


def judge(ledger: Ledger, window: float, allowed: float) -> dict[str, float]:
    """The sliding windows, each beginning with an admission, that hold more than is allowed."""
    inside: deque[tuple[float, float]] = deque()
    held, exceeded, fullest = 0.0, 0, 0.0
    for when, amount in reversed(ledger):
        inside.appendleft((when, amount))
        held += amount
        while inside[-1][0] >= when + window - ROUNDING:
            held -= inside.pop()[1]
        exceeded += held > allowed
        fullest = max(fullest, held / allowed)
    return {"exceeded": exceeded, "fullest": fullest}


async def until(deadline: float, *work: Awaitable[Any]) -> None:
    """Run the work till the deadline of the loop's clock, then cancel what is left."""
    tasks = [asyncio.ensure_future(one) for one in work]
    loop = asyncio.get_running_loop()
    done, _ = await asyncio.wait(tasks, timeout=deadline - loop.time(), return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def measure_rate(contender: str, short: bool) -> Any:
    seconds = 2.0 if short else RATE_SECONDS
    now = asyncio.get_running_loop().time
    ledger: Ledger = []

    async def unwait_waiter(limits: Any) -> None:
        while True:
            permit = await limits.acquire()
            ledger.append((now(), 1))
            permit.release()

    async def aiolimiter_waiter(limiter: Any) -> None:
        while True:
            async with limiter:
                ledger.append((now(), 1))

    async def aiometer_call(_: int) -> None:
        ledger.append((now(), 1))

    if contender == "unwait":
        limits = need("unwait:Limits")(rate=f"{RATE}/s")
        work = [unwait_waiter(limits) for _ in range(WAITERS)]
    elif contender == "aiometer":
        calls = range(round(2 * RATE * seconds))
        work = [need("aiometer:run_on_each")(aiometer_call, calls, max_per_second=RATE)]
    else:
        rate = (1, 1 / RATE) if contender == "aiolimiter, 1 per ms" else (RATE, 1)
        limiter = need("aiolimiter:AsyncLimiter")(*rate)
        work = [aiolimiter_waiter(limiter) for _ in range(WAITERS)]
    began = now()
    await until(began + seconds, *work)
    ledger = [entry for entry in ledger if entry[0] < began + seconds]
    return judge(ledger, 1.0, RATE) | {"used": len(ledger) / (RATE * seconds)}


class FullBucket:
    """A bucket that starts full, asked every millisecond for the one call in front: what scripts often do."""

    def __init__(self, amount: float, seconds: float) -> None:
        self.size, self.per_second = amount, amount / seconds
        self.level = amount
        self.lock = asyncio.Lock()
        self.now = asyncio.get_running_loop().time
        self.updated = self.now()

    async def acquire(self, cost: float) -> None:
        async with self.lock:
            while True:
                now = self.now()
                self.level = min(self.size, self.level + (now - self.updated) * self.per_second)
                self.updated = now
                if self.level >= cost:
                    self.level -= cost
                    return
                await asyncio.sleep(0.001)


async def measure_tokens(contender: str, short: bool) -> Any:
    shorter = 10 if short else 1
    allowed, window, seconds = TOKENS / shorter, TOKEN_WINDOW / shorter, TOKEN_SECONDS / shorter
    now = asyncio.get_running_loop().time
    dice = random.Random(3)
    costs = (min(max(1, round(dice.lognormvariate(6, 1))), 6_000 // shorter) for _ in itertools.count())
    ledger: Ledger = []
    asked: dict[int, float] = {}
    waits: list[float] = []

    async def call(numbered: tuple[int, int]) -> None:
        number, cost = numbered
        ledger.append((now(), cost))
        waits.append(now() - asked.pop(number))
        await asyncio.sleep(cost * 0.0005)

    def taken() -> Iterator[tuple[int, int]]:
        for number, cost in enumerate(costs):
            asked[number] = now()
            yield number, cost

    async def waiter(acquire: Callable[[int], Awaitable[Any]], items: Iterator[tuple[int, int]]) -> None:
        for item in items:
            await acquire(item[1])
            await call(item)

    if contender == "unwait":
        limits = need("unwait:Limits")(tokens=f"{allowed:g}/{window:g}s")
        mapped = need("unwait:map")(
            call, taken(), limit=LIMIT, limits=limits, cost=lambda item: item[1], progress=False
        )
        work = [mapped]
    else:
        acquire = (
            need("aiolimiter:AsyncLimiter")(allowed, window).acquire
            if contender == "aiolimiter"
            else FullBucket(allowed, window).acquire
        )
        items = taken()
        work = [waiter(acquire, items) for _ in range(LIMIT)]
    began = now()
    await until(began + seconds, *work)
    waits += [began + seconds - when for when in asked.values()]
    ledger = [entry for entry in ledger if entry[0] < began + seconds]
    used = sum(cost for _, cost in ledger) / (allowed * seconds / window)
    return judge(ledger, window, allowed) | {"used": used, "longest_wait": max(waits)}
