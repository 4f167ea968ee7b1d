"""A bounded buffer between those who produce and one or more who consume, in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The buffer is empty, and nothing more will come."""


class Buffer(Generic[T]):
    """What was put and not yet taken, in order; full at `items` of them, or at `size` in the sum of theirs.

    `put` never waits: who produces asks for `room` before making the next. So there is at most one item more
    than its bound for each producer.
    """

    def __init__(self, items: int, size: float = float("inf")) -> None:
        self._ready: deque[tuple[T, float]] = deque()
        self._items = items
        self._size = size
        self._held = 0.0
        self._closed = False
        self._consumers: deque[asyncio.Future[None]] = deque()
        self._producers: deque[asyncio.Future[None]] = deque()
        self.deepest = 0

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def full(self) -> bool:
        """Whether who produces should wait."""
        return len(self._ready) >= self._items or self._held >= self._size

    def put(self, item: T, size: float = 0) -> None:
        """Add an item of the given size; after `close` it is dropped."""
        if self._closed:
            return
        self._ready.append((item, size))
        self._held += size
        if len(self._ready) > self.deepest:
            self.deepest = len(self._ready)
        if self._consumers:
            _wake(self._consumers)

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full and not self._closed:
            await _wait(self._producers)
        if not self.full and self._producers:
            # Room for more than the one that was woken.
            _wake(self._producers)

    def take(self) -> T | None:
        """The oldest item at once; None if there is none."""
        if not self._ready:
            return None
        item, size = self._ready.popleft()
        self._held -= size
        if self._producers and not self.full:
            _wake(self._producers)
        return item

    async def get(self) -> T:
        """The oldest item, when there is one; `Closed` if there never will be."""
        while not self._ready:
            if self._closed:
                raise Closed
            await _wait(self._consumers)
        item = self.take()
        if self._ready and self._consumers:
            _wake(self._consumers)
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Nothing more will be put; what is in there can still be taken."""
        self._closed = True
        for waiters in (self._consumers, self._producers):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _wake(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


async def _wait(waiters: deque[asyncio.Future[None]]) -> None:
    waiter = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    try:
        await waiter
    except BaseException:
        if waiter.done() and not waiter.cancelled():
            # Woken and cancelled at once: the next one goes in its place.
            _wake(waiters)
        elif waiter in waiters:
            waiters.remove(waiter)
        raise
