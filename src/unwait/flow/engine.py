"""The engine behind `map`, `stream` and `Pipeline`: a bounded number of tasks that pull items and report outcomes.

A task takes one item after the other as long as the calls end without ever suspending: then a task of its
own would cost more than the call. After a call that suspended, the next item gets a new task: so whatever
waits has its own task and context, as with `asyncio.gather`, and there are never more of them than `limit`. One
task more runs the items if they are an async generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from unwait.flow.buffer import Buffer
from unwait.flow.calls import (
    CallCancelled,
    Caller,
    Calling,
    Interrupted,
    NotAwaitable,
    check_awaitable,
    empty_frames,
    trimmed,
)
from unwait.flow.outcome import Outcome
from unwait.flow.sources import OneByOne, OwnTask, shared
from unwait.flow.stats import Report

if TYPE_CHECKING:
    from unwait.flow.journal import Journal
    from unwait.flow.saving import Saver

_IN_A_ROW = 64  # calls without suspension after which the other tasks get their turn
_COMMITTING = 256  # outcomes that may wait for the journal at least, so that commits come in batches


class Engine:
    """One run of `func` over `items`; used as start, then `finished`, then always `aclose`.

    `caller` makes the calls with limits, retries and time-outs; None if there are none. `sink` gets each outcome
    once it is final, which with a `journal` is when it is committed. While `buffer`, which the sink puts them
    into, is full, no more items are pulled. `name` is the function's in the journal.
    """

    def __init__(
        self,
        func: Callable[[Any], Awaitable[Any]],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        limit: int,
        caller: Calling | None = None,
        report: Report,
        sink: Callable[[Outcome[Any, Any]], None],
        buffer: Buffer[Any] | None = None,
        journal: Journal | None = None,
        key: Callable[[Any], Any] | None = None,
        name: str = "",
    ) -> None:
        self._func = func
        self._items = items
        self._limit = limit
        self._caller = caller
        self._report = report
        self._sink = sink
        self._buffer = buffer
        self._journal = journal
        self._key = key
        self._name = name
        self._saver: Saver[Outcome[Any, Any]] | None = None
        self._next: Callable[[], Any] | None = None
        self._source: OneByOne[Any] | OwnTask[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pulling: set[asyncio.Task[None]] = set()
        self._calling: dict[asyncio.Task[Any], Outcome[Any, Any]] = {}  # with limits and retries
        self._index = 0
        self._turn = 0  # of the loop, counted while calls are begun
        self._turning = False  # whether the next one will be counted
        self.cut_short = False  # whether items were left out because of an interruption
        self._exhausted = False
        self.closing = False  # whether what was taken is being cancelled
        self.awaited = False  # whether somebody waits for the outcomes
        self._fault: BaseException | None = None
        self._ended: asyncio.Future[None] | None = None

    # Its life.

    def start(self) -> None:
        """Begin. Raises JournalError if the journal can't serve this run."""
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._ended = self._loop.create_future()
        if self._journal is not None:
            from unwait.flow.saving import Saver

            self._saver = Saver(
                self._journal,
                self._name,
                self._key,
                settle=self._settle,
                broken=self._fail,
                changed=self._end_if_idle,
                most=max(_COMMITTING, 2 * self._limit),
            )
        if isinstance(self._items, AsyncIterable):
            self._source = shared(aiter(self._items), self._context)
        else:
            iterator = iter(self._items)
            self._next = iterator.__next__
            if not isinstance(self._items, list | tuple | range):
                # A generator may set context variables, and take that back at the end: always in the same context.
                self._next = partial(self._context.run, self._next)
        self._spawn()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when all that was taken has ended and been reported."""
        assert self._ended is not None
        self._ended.add_done_callback(lambda _: callback())

    async def finished(self) -> None:
        """Wait until all items have ended and been reported; raises what ended the run before that."""
        assert self._ended is not None
        if not self._ended.done():
            self.awaited = True
            await asyncio.shield(self._ended)
        await self._close_saver()
        if self._fault is not None:
            raise self._fault

    def stop(self) -> int:
        """Take no more items, and drop those that still wait for their first call; how many go on."""
        if not self._exhausted and self._index != self._report.total:
            self.cut_short = True
        self._exhausted = True
        for task in self._pulling:
            task.cancel()
        waiting = [task for task, outcome in self._calling.items() if not outcome.attempts]
        for task in waiting:
            self._calling[task].error = Interrupted()
            task.cancel()
        return len(self._calling) - len(waiting) if isinstance(self._caller, Caller) else self._report.running

    def abort(self) -> None:
        """Take no more items, and cancel those that were taken."""
        self._exhausted = self.closing = True
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Abort what still runs, and wait for its end and the journal's; leaves nothing behind, even if cancelled."""
        self.abort()
        cancelled: asyncio.CancelledError | None = None
        caller = {asyncio.current_task()}  # which may be one of them: a call that ends its own run
        while (tasks := self._tasks - caller) or self._saver is not None:
            try:
                if tasks:
                    await asyncio.wait(tasks)
                else:
                    await self._close_saver()
            except asyncio.CancelledError as error:
                cancelled = error
        source = self._source
        self._source = self._next = None
        # Who keeps the report or an error of this run must not keep its items and outcomes.
        self._items, self._sink = (), _nowhere
        try:
            if source is not None:
                # An async generator cut off in the middle must not wait for the collector.
                await source.aclose()
        except Exception as error:
            error.add_note("raised as the items were closed")
            raise
        finally:
            if cancelled is not None:
                raise cancelled

    async def _close_saver(self) -> None:
        if self._saver is not None:
            await self._saver.close()
            self._saver = None

    # Its tasks.

    def _spawn(self) -> None:
        # A copy for each: what one item's call leaves in its context must not reach the next. Not by way of the
        # loop's task factory: an eager one would begin the task before it is counted.
        task = asyncio.Task(self._work(), loop=self._loop, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self.closing and not self._tasks and not self.cut_short:
                # The last task was cancelled, and not by this engine. If somebody still waits for the run, it was
                # by its own call; if not, all tasks were, and so is the run.
                if not self.awaited:
                    self._fail(asyncio.CancelledError())
                elif not self._exhausted:
                    self._spawn()
        elif (error := task.exception()) is not None:
            self._fail(error)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        idle = not self._tasks and (self._saver is None or self._saver.idle)
        if idle and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, fault: BaseException) -> None:
        if self._fault is None:
            self._fault = fault
        self.abort()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        context = self._context
        clock = self._loop.time
        report = self._report
        func = self._func
        plain = self._caller is None and self._saver is None
        buffer, saver = self._buffer, self._saver
        called: Any = None
        in_a_row = 0
        while True:
            if (buffer is not None and buffer.full) or (saver is not None and saver.full):
                await self._downstream()
            if self._exhausted:
                return
            if self._next is None:
                pulled = await self._pull(task)
                if pulled is None:
                    return
                outcome, pulled = pulled, None
            else:
                try:
                    outcome = Outcome(self._index, self._next())
                except StopIteration:
                    self._exhausted = True
                    return
                except (Exception, asyncio.CancelledError) as error:
                    self._source_failed(error)
                    return
            self._index += 1
            report.taken += 1
            if len(self._tasks) < self._limit and not self._exhausted:
                self._spawn()
            if not self._turning:
                # Before whatever the call may wait for: a call during which no turn was counted never suspended.
                self._turning = True
                self._loop.call_soon(self._next_turn, context=context)
            turn = self._turn
            journalled = stopped = False
            taken = clock()
            try:
                if plain:
                    called = func(outcome.item)
                    if type(called) is not CoroutineType:
                        check_awaitable(func, called)
                    outcome.value = await called
                else:
                    journalled = await self._call(outcome, taken)
                    if outcome.error is not None:
                        empty_frames(outcome.error)
            except NotAwaitable:
                raise
            except Interrupted:
                self.cut_short = True
                raise
            except asyncio.CancelledError as cancelled:
                if self.closing:
                    raise
                stopped = task.cancelling() > 0
                outcome.error = CallCancelled("the call was cancelled from inside")
                outcome.error.__cause__ = trimmed(cancelled)
            except Exception as error:
                outcome.error = trimmed(error)
            if plain:
                outcome.attempts = 1
                outcome.elapsed = elapsed = clock() - taken
                report.add_call(elapsed, outcome.error)
                self._sink(outcome)
            elif not journalled:
                outcome.elapsed = clock() - taken
                self._settle(outcome)
            # What this item held must not live until there is another one.
            del outcome
            called = None
            if stopped:
                raise asyncio.CancelledError  # perhaps all tasks are: see `_task_ended`
            if self._turn != turn or task.cancelling() or copy_context() != context:
                if not self._exhausted:
                    self._spawn()
                return
            in_a_row += 1
            if in_a_row == _IN_A_ROW:
                in_a_row = 0
                await asyncio.sleep(0)

    def _next_turn(self) -> None:
        self._turn += 1
        self._turning = False

    async def _downstream(self) -> None:
        """Wait until outcomes can be taken on: by the consumer, by the journal."""
        started = self._loop.time()
        if self._buffer is not None:
            await self._buffer.room()
        if self._saver is not None:
            await self._saver.room()
        self._report.blocked += self._loop.time() - started

    async def _pull(self, task: asyncio.Task[None]) -> Outcome[Any, Any] | None:
        """The next item of an async iterable in its outcome; None if there is none."""
        assert self._source is not None
        started = self._loop.time()
        self._pulling.add(task)
        try:
            item = await self._source.next()
            return Outcome(self._index, item)
        except StopAsyncIteration:
            self._exhausted = True
        except asyncio.CancelledError as cancelled:
            if not task.cancelling():
                self._source_failed(cancelled)
            elif self.closing or not self._exhausted:
                raise
            else:
                task.uncancel()  # it was `stop`
        except Exception as error:
            self._source_failed(error)
        finally:
            self._pulling.discard(task)
            self._report.starved += self._loop.time() - started
        return None

    def _source_failed(self, error: Exception | asyncio.CancelledError) -> None:
        """What was taken before still ends as it will; then the error is the run's."""
        fault = trimmed(error)
        if isinstance(error, asyncio.CancelledError):
            # As it is, it would look as if the run had been cancelled.
            fault = CallCancelled("the items were cancelled from inside")
            fault.__cause__ = error
        fault.add_note(f"raised by the items, after {self._index} of them")
        self._exhausted = True
        if self._fault is None:
            self._fault = fault

    async def _call(self, outcome: Outcome[Any, Any], taken: float) -> bool:
        """Fill in the outcome; whether it now waits for its commit to the journal."""
        if self._saver is None:
            await self._called(outcome)
            return False
        return await self._journalled(self._saver, outcome, taken)

    async def _called(self, outcome: Outcome[Any, Any]) -> None:
        assert self._caller is not None
        if not isinstance(self._caller, Caller):
            await self._caller(outcome)
            return
        task = asyncio.current_task()
        assert task is not None
        self._calling[task] = outcome
        try:
            await self._caller(outcome)
        except asyncio.CancelledError:
            if isinstance(outcome.error, Interrupted):
                raise outcome.error from None
            raise
        finally:
            del self._calling[task]
        if isinstance(outcome.error, NotAwaitable):
            raise outcome.error

    async def _journalled(
        self, saver: Saver[Outcome[Any, Any]], outcome: Outcome[Any, Any], taken: float
    ) -> bool:
        if saver.begin(outcome) is not None:
            outcome.elapsed = self._loop.time() - taken
            saver.reuse(outcome)
            return True
        try:
            await self._called(outcome)
        except BaseException:
            saver.drop(outcome)
            raise
        outcome.elapsed = self._loop.time() - taken
        saver.save(outcome)
        return True

    # Outcomes.

    def _settle(self, outcome: Outcome[Any, Any]) -> None:
        self._report.add(outcome.elapsed, outcome.error, outcome.resumed)
        self._sink(outcome)


def _nowhere(outcome: Outcome[Any, Any]) -> None:
    """Where outcomes go after the end."""
