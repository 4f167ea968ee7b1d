"""Async iterators that many tasks pull from, each item when it is wanted and not before."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def shared(iterator: AsyncIterator[T], context: Context) -> OneByOne[T] | OwnTask[T]:
    """The iterator, so that any number of tasks may await its next item at the same time.

    A generator runs in `context`. To be closed with `aclose`, which closes what can be closed.
    """
    return OwnTask(iterator, context) if isinstance(iterator, AsyncGenerator) else OneByOne(iterator)


class OneByOne(Generic[T]):
    """Any async iterator: whoever asks waits until those who asked before have their items."""

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self._iterator = iterator
        self._lock = asyncio.Lock()
        self._ended = False

    async def next(self) -> T:
        """The next item. Raises StopAsyncIteration at the end, and what the iterator raises."""
        async with self._lock:
            if self._ended:
                raise StopAsyncIteration
            try:
                return await anext(self._iterator)
            except StopAsyncIteration:
                self._ended = True
                raise

    async def aclose(self) -> None:
        """Close the iterator if it has a method for that."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class OwnTask(Generic[T]):
    """An async generator, run by one task from its first step to its end.

    What is open across a `yield` (a TaskGroup, a time-out, a context variable that was set) belongs to the task that
    opened it: a time-out would otherwise cancel whatever the task that pulled first does by then.
    """

    def __init__(self, generator: AsyncGenerator[T, Any], context: Context) -> None:
        self._generator = generator
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._asked: deque[asyncio.Future[T]] = deque()
        self._idle: asyncio.Future[None] | None = None  # while nobody asks
        self._in_step = False
        self._closing = False

    async def next(self) -> T:
        """The next item. Raises StopAsyncIteration at the end, and what the generator raises."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = asyncio.Task(self._run(), loop=loop, context=self._context)
        elif self._task.done():
            raise StopAsyncIteration
        answer: asyncio.Future[T] = loop.create_future()
        self._asked.append(answer)
        self._wake()
        return await answer

    async def aclose(self) -> None:
        """Close the generator, in its task, and wait for that; raises what it raises."""
        task = self._task
        if task is None:
            await self._close()
            return
        self._closing = True
        if self._in_step:
            task.cancel()
        else:
            self._wake()
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def _wake(self) -> None:
        if self._idle is not None:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None

    async def _run(self) -> None:
        try:
            while not self._closing:
                if not self._asked:
                    self._idle = asyncio.get_running_loop().create_future()
                    await self._idle
                    continue
                self._in_step = True
                item = await anext(self._generator)
                self._in_step = False
                self._answer(item)
                del item
        except BaseException as error:
            # Its end, its failure, or it is closed: whoever asked first is told, the others that there is no more.
            told = self._refuse(error)
            if not (told or isinstance(error, StopAsyncIteration | asyncio.CancelledError)):
                raise
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            self._in_step = False
            await self._close()

    def _answer(self, item: T) -> None:
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(item)
                return

    def _refuse(self, error: BaseException) -> bool:
        told = False
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(StopAsyncIteration() if told else error)
                told = True
        return told

    async def _close(self) -> None:
        try:
            await self._generator.aclose()
        except* GeneratorExit:
            pass  # a TaskGroup makes a group of it
