"""Single items in, batched calls out: an async function of a list becomes one of an item.

The batch that is open takes items until it is full, or its first item has waited long enough; then it is due,
and runs as soon as fewer than `limit` others do. While it cannot run it goes on taking items: nothing is
gained by sending it small and late. A batch that fails is put back in two halves, ahead of the others.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

from unwait.flow.calls import CallCancelled, Caller, Interrupted
from unwait.flow.faults import is_overload, retry_after
from unwait.flow.limits import Limits, lent
from unwait.flow.outcome import Outcome
from unwait.flow.retry import Retry
from unwait.flow.stats import Report

T = TypeVar("T")
R = TypeVar("R")


class NotABatch(TypeError):
    """The function did not return one value for each item of its list."""


class Batch(Generic[T, R]):
    """`value = await batch(item)`, by calls of `async def func(items: list[T]) -> Sequence[R]`.

    `func` returns a value for each item of its list, in its order. A call has at most `size` items, and a
    `cost` (a function of an item) of at most `max_cost` in their sum; an item above it goes alone. A batch that is
    not full goes `max_wait` seconds after its first item. At most `limit` calls run at the same time; `limits`,
    `retry` and `timeout` are those of `map`, for each call: what it takes of token limits is the sum of its items'
    costs, and what `per` of limits gets is the list. `report` counts the calls.

    A call that fails is made again for each half of its items, until the items that cannot be had stand
    alone: only they get the error, after at most 2n-1 calls for n items. No item is to blame for an overload, for
    an error that says when to come back, or for `NotABatch`: those all items of the call get.

    An item whose caller is cancelled is left out; a call whose items' callers are all cancelled is cancelled.
    While `hold()` is true, only full batches go: there is no hurry, and they are fewer. Call `proceed` after it.

    Leaving `async with`, or `aclose()`, sends what waits and waits for it.

    Raises ValueError for numbers that make no sense, and for `max_cost` without `cost`.
    """

    def __init__(
        self,
        func: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        size: int = 64,
        max_wait: float = 0.05,
        max_cost: float | None = None,
        cost: Callable[[T], float] | None = None,
        limit: int = 1,
        limits: Limits | Sequence[Limits] = (),
        retry: Retry | int | None = None,
        timeout: float | None = None,
        report: Report | None = None,
        hold: Callable[[], bool] = lambda: False,
    ) -> None:
        if size < 1 or limit < 1:
            raise ValueError(f"size and limit must be at least 1, and are {size} and {limit}")
        if not 0 <= max_wait < math.inf:
            raise ValueError(
                f"max_wait is in seconds and must not be negative or endless; it is {max_wait!r}"
            )
        if max_cost is not None and (cost is None or not max_cost > 0):
            raise ValueError("max_cost must be positive, and needs cost=, a function of an item")
        self._func = func
        self._size = size
        self._max_wait = max_wait
        self._max_cost = math.inf if max_cost is None else max_cost
        self._cost = cost
        self._limit = limit
        self._limits = (limits,) if isinstance(limits, Limits) else tuple(limits)
        self._retry = Retry.of(retry)
        self._timeout = timeout
        self._report = report
        self._hold = hold
        self._open: _Part[T, R] = _Part([])
        self._overdue = False  # the open one would run, if it could
        self._timer: asyncio.TimerHandle | None = None
        self._due: deque[_Part[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self._caller(0)  # what is wrong with its time-out is said now

    async def __call__(self, item: T) -> R:
        """The value of `func` for this item, or the error. Raises RuntimeError once it is closed."""
        return (await self.outcome(item)).unwrap()

    async def outcome(self, item: T) -> Outcome[T, R]:
        """What becomes of the item; its attempts are the calls that it was part of."""
        if self._closed:
            raise RuntimeError("the batch is closed")
        loop = asyncio.get_running_loop()
        started = loop.time()
        outcome: Outcome[T, R] = Outcome(0, item)
        try:
            waiter = _Waiter(outcome, self._cost_of(item), loop.create_future(), copy_context())
        except Exception as error:
            outcome.error = error
            return outcome
        self._add(waiter, loop)
        try:
            # Permits held here must not keep out the call that is waited for.
            with lent(self._limits) if self._limits else nullcontext():
                await waiter.ended
        except asyncio.CancelledError:
            self._drop(waiter)
            raise
        if isinstance(outcome.error, Interrupted):
            raise outcome.error
        outcome.elapsed = loop.time() - started
        return outcome

    def flush(self) -> None:
        """Send what waits without waiting for more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._overdue = False
        if self._open.waiters:
            self._due.append(self._open)
            self._open = _Part([])
        self._pump()

    def proceed(self) -> None:
        """To be called when `hold` no longer says to send nothing but full batches."""
        self._pump()

    async def aclose(self) -> None:
        """Send what waits, and wait for all calls. Cancelling it cancels them: their items get an error."""
        self._closed = True
        self.flush()
        try:
            while self._running:
                await asyncio.wait(self._running)
        except asyncio.CancelledError:
            for part in self._due:
                part.fail(CallCancelled("the batch was closed before this item was sent"))
            self._due.clear()
            while self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.wait(self._running)
            raise

    async def __aenter__(self) -> Batch[T, R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # Items on their way into a call.

    def _cost_of(self, item: T) -> float:
        if self._cost is None:
            return 0
        try:
            cost = self._cost(item)
            if not 0 <= cost < math.inf:
                raise ValueError(f"a cost must not be negative or infinite, and this is {cost!r}")
        except Exception as error:
            error.add_note("raised by cost=")
            raise
        return cost

    def _add(self, waiter: _Waiter[T, R], loop: asyncio.AbstractEventLoop) -> None:
        if self._open.waiters and self._open.cost + waiter.cost > self._max_cost:
            self.flush()
        part = self._open
        part.waiters.append(waiter)
        part.cost += waiter.cost
        waiter.part = part
        if len(part.waiters) >= self._size or part.cost >= self._max_cost:
            self.flush()
        elif self._timer is None and not self._overdue:
            self._timer = loop.call_at(loop.time() + self._max_wait, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._overdue = True
        self._pump()

    def _drop(self, waiter: _Waiter[T, R]) -> None:
        part = waiter.part
        assert part is not None
        if part.task is not None:
            if all(other.ended.done() for other in part.waiters):
                part.task.cancel()
            return
        part.waiters.remove(waiter)
        part.cost = math.fsum(other.cost for other in part.waiters)
        if not part.waiters:
            if part is self._open:
                self.flush()
            else:
                self._due.remove(part)

    def _pump(self) -> None:
        while len(self._running) < self._limit:
            if not self._due:
                if self._overdue and not self._hold():
                    self.flush()
                return
            part = self._due.popleft()
            # In the context of its first item's caller, and not of whoever happened to make room for it.
            part.task = task = asyncio.get_running_loop().create_task(
                self._run(part), context=part.waiters[0].context
            )
            self._running.add(task)
            task.add_done_callback(part.ended)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._pump()

    # Calls.

    def _caller(self, cost: float) -> Caller[list[T], Sequence[R]]:
        return Caller(
            self._checked,
            limits=self._limits,
            cost=cost,
            retry=self._retry,
            timeout=self._timeout,
            report=self._report,
        )

    async def _run(self, part: _Part[T, R]) -> None:
        call: Outcome[list[T], Sequence[R]] = Outcome(0, [waiter.outcome.item for waiter in part.waiters])
        try:
            await self._caller(part.cost)(call)
        except Interrupted as interrupted:
            part.fail(interrupted)
            return
        for waiter in part.waiters:
            waiter.outcome.attempts += call.attempts
            waiter.outcome.waited += call.waited
        if call.error is None:
            for waiter, value in zip(part.waiters, call.unwrap(), strict=True):
                waiter.outcome.value = value
                waiter.end()
        elif len(part.waiters) == 1 or not _may_be_an_items(call.error):
            part.fail(call.error)
        else:
            waiters = [waiter for waiter in part.waiters if not waiter.ended.done()]
            middle = (len(waiters) + 1) // 2
            self._due.extendleft(_Part(half) for half in (waiters[middle:], waiters[:middle]) if half)

    async def _checked(self, items: list[T]) -> Sequence[R]:
        name = getattr(self._func, "__qualname__", repr(self._func))
        called = self._func(items.copy())
        if not hasattr(called, "__await__"):
            raise NotABatch(f"{name} must be async, and returned {type(called).__name__}")
        values = await called
        if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
            raise NotABatch(
                f"{name} must return a list with a value for each item, not {type(values).__name__}"
            )
        if len(values) != len(items):
            raise NotABatch(f"{name} returned {len(values)} values for {len(items)} items")
        return values


def _may_be_an_items(error: BaseException) -> bool:
    return not (isinstance(error, NotABatch) or is_overload(error) or retry_after(error) is not None)


class _Waiter(Generic[T, R]):
    """An item, and the caller that waits for what becomes of it."""

    __slots__ = ("context", "cost", "ended", "outcome", "part")

    def __init__(
        self, outcome: Outcome[T, R], cost: float, ended: asyncio.Future[None], context: Context
    ) -> None:
        self.outcome = outcome
        self.cost = cost
        self.ended = ended
        self.context = context
        self.part: _Part[T, R] | None = None

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class _Part(Generic[T, R]):
    """The items of one call."""

    __slots__ = ("cost", "task", "waiters")

    def __init__(self, waiters: list[_Waiter[T, R]]) -> None:
        self.waiters = waiters
        self.cost = math.fsum(waiter.cost for waiter in waiters)
        self.task: asyncio.Task[None] | None = None
        for waiter in waiters:
            waiter.part = self

    def fail(self, error: BaseException) -> None:
        for waiter in self.waiters:
            if not waiter.ended.done():
                waiter.outcome.error = error
                waiter.end()

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Nobody waits for ever for a call that was cut off."""
        if task.cancelled():
            self.fail(CallCancelled("the call of the batch was cancelled"))
        elif (error := task.exception()) is not None:
            self.fail(CallCancelled(f"the call of the batch was ended by {error!r}"))
