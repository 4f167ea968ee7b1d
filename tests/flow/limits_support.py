"""What the tests of Limits share: tasks that acquire, permits taken and released, nothing left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from unwait.flow.limits import Limits, Permit

from .virtual_clock import Stuck, VirtualLoop


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


class Waiting:
    """Tasks that acquire, in order; which have their permit by now, and when they got it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tasks: list[asyncio.Task[Permit]] = []
        self.order: list[object] = []
        self.times: list[float] = []

    async def add(self, *names: object, **asked) -> None:
        for name in names:
            self.tasks.append(asyncio.ensure_future(self.one(name, asked)))
        await settle()

    async def one(self, name: object, asked: dict) -> Permit:
        permit = await self.limits.acquire(**asked)
        self.order.append(name)
        self.times.append(now())
        return permit

    async def cancel(self, *places: int) -> None:
        for place in places:
            self.tasks[place].cancel()
        await asyncio.gather(*(self.tasks[place] for place in places), return_exceptions=True)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        for permit in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(permit, Permit):
                permit.release()


def taken(limits: Limits, **asked) -> list[Permit]:
    """As many permits as there are at once."""
    permits = []
    while len(permits) < 10_000 and (permit := limits.try_acquire(**asked)) is not None:
        permits.append(permit)
    return permits


def release(permits: Iterable[Permit], error: BaseException | None = None) -> None:
    for permit in permits:
        permit.release(error)


def assert_untouched(limits: Limits, loop: VirtualLoop) -> None:
    """Nobody holds or waits for anything, and no timer is left."""
    assert "0 in use, 0 waiting" in repr(limits)
    ended = loop.now
    nothing = loop.create_future()
    with pytest.raises(Stuck):
        loop.run_until_complete(nothing)
    assert loop.now == ended, "a timer was left"
