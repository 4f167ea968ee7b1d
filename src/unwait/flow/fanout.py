"""`map` and `stream`: a function called for many items at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence, Sized
from contextlib import ExitStack, suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from unwait.flow.buffer import Buffer, Closed
from unwait.flow.calls import Caller, Calling, Interrupted, NotAwaitable, check_timeouts, trimmed
from unwait.flow.engine import Engine
from unwait.flow.interrupt import graceful
from unwait.flow.limits import Limits, as_limits
from unwait.flow.outcome import MapError, Outcome, Results
from unwait.flow.progress import showing
from unwait.flow.rates import Rate
from unwait.flow.retry import Retry
from unwait.flow.stats import Report

if TYPE_CHECKING:
    from unwait.flow.journal import Journal
    from unwait.flow.workers import Workers

T = TypeVar("T")
R = TypeVar("R")

Where = Literal["thread", "process"]
OnError = Literal["raise", "return", "skip"]

_AUTO_TASKS = 1000  # with limit="auto"; the limit in force is found below it


class Run:
    """One run of a function over items: its engine, and around it workers, progress and interruptions.

    The parameters are those of `map`. `caller` is for functions that keep limits and retry on their own: given the
    run's report, it makes what is called for each item in place of `func`, which then only names the run.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        limit: int | Literal["auto"] = 100,
        limits: Limits | Sequence[Limits] | None = None,
        rate: str | Rate | None = None,
        tokens: str | Rate | None = None,
        cost: float | Callable[[Any], float] | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        item_timeout: float | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        key: Callable[[Any], Any] | None = None,
        where: Where | None = None,
        progress: bool | Callable[[Report], None] | None = None,
        grace: float = 10.0,
        caller: Callable[[Report], Calling] | None = None,
    ) -> None:
        tasks = _tasks(limit)
        _check_items(items)
        if not callable(func):
            raise TypeError(f"func must be a function, and is {type(func).__name__}")
        if key is not None and journal is None:
            raise ValueError("key= names items in a journal: give journal= too")
        if key is not None and not callable(key):
            raise TypeError(f"key= must be a function that names an item, and is {type(key).__name__}")
        if tokens is not None and cost is None:
            raise ValueError("tokens= needs cost=, a function that tells how many tokens an item takes")
        if cost is not None and tokens is None and limits is None and caller is None:
            raise ValueError("cost= counts for a limit on tokens: give tokens= or limits= too")
        if not (cost is None or callable(cost) or isinstance(cost, int | float)):
            raise TypeError(f"cost= must be a number or a function of the item, and is {type(cost).__name__}")
        check_timeouts(timeout=timeout, item_timeout=item_timeout)
        if where not in (None, "thread", "process"):
            raise ValueError(f'where must be None, "thread" or "process", not {where!r}')
        if not isinstance(grace, int | float):
            raise TypeError(f"grace is a number of seconds, and not {type(grace).__name__}")
        if not grace >= 0:
            raise ValueError(f"grace is in seconds and must not be negative; it is {grace!r}")
        each = as_limits(limits)
        if rate is not None or tokens is not None or limit == "auto":
            concurrency: Literal["auto"] | None = "auto" if limit == "auto" else None
            each.append(Limits(concurrency=concurrency, rate=rate, tokens=tokens))
        self._func = func
        self._items = items
        self._tasks = tasks
        self._limits = each
        self._cost = 0 if cost is None else cost
        self._retry = Retry.of(retry)
        self._timeout = timeout
        self._item_timeout = item_timeout
        self._journal = journal
        self._key = key
        self._where = where
        self._progress = progress
        self._grace = grace
        self._make_caller = caller
        self._stack = ExitStack()
        self._workers: Workers[Any, Any] | None = None
        self._engine: Engine | None = None
        self.report: Report | None = None

    @property
    def engine(self) -> Engine:
        """The engine, once it was started."""
        assert self._engine is not None
        return self._engine

    def start(
        self,
        sink: Callable[[Outcome[Any, Any]], None],
        buffer: Buffer[Any] | None = None,
    ) -> Report:
        """Begin, on the running loop; returns the report, which counts from now on."""
        clock = asyncio.get_running_loop().time
        func = self._func
        self._streaming = buffer is not None
        if self._where is not None:
            from unwait.flow.workers import cores, place

            if self._where == "process":
                self._tasks = min(self._tasks, cores())
            func = self._workers = place(self._func, self._where, self._tasks)
        self.report = report = Report(clock, _number(self._items))
        report.watch(self._in_force)
        timeouts = self._timeout is not None or self._item_timeout is not None
        caller: Calling | None = None
        if self._make_caller is not None:
            caller = self._make_caller(report)
        elif self._limits or self._retry is not None or timeouts or self._journal is not None:
            caller = Caller(
                func,
                limits=self._limits,
                cost=self._cost,
                retry=self._retry,
                timeout=self._timeout,
                item_timeout=self._item_timeout,
                report=report,
            )
        journal, name = None, ""
        if self._journal is not None:
            from unwait.flow.journal import Journal, function_name

            journal = self._journal if isinstance(self._journal, Journal) else Journal(self._journal)
            name = function_name(self._func)
            self._saved_in = str(journal.path)
        self._engine = Engine(
            func,
            self._items,
            limit=self._tasks,
            caller=caller,
            report=report,
            sink=sink,
            buffer=buffer,
            journal=journal,
            key=self._key,
            name=name,
        )
        self._engine.start()
        try:
            self._stack.enter_context(graceful(self._stop, self._abort, self._saved, self._grace))
            self._stack.enter_context(showing(self._progress, report, _label(self._func)))
        except BaseException:
            self._engine.abort()
            raise
        return report

    async def aclose(self) -> None:
        """End whatever still runs. If an interruption stopped the run, this raises what that ends in."""
        try:
            if self._engine is not None:
                await self._engine.aclose()
        finally:
            try:
                if self._workers is not None:
                    await self._workers.aclose()
            finally:
                if self.report is not None:
                    self.report.end()
                self._stack.close()
        if self._engine is not None and self._engine.cut_short:
            # Handing the interruption on has cancelled the main task. Whoever is not part of it must not take
            # what there is for the whole.
            await asyncio.sleep(0)
            raise Interrupted

    def _abort(self) -> None:
        self.engine.cut_short = True
        self.engine.abort()

    def _stop(self) -> int:
        return self.engine.stop()

    def _saved(self) -> str:
        if self.report is None or (self._journal is None and self._streaming):
            return ""
        if self._journal is None:
            return f"{self.report.done} done, and lost: give journal= to keep what is done"
        return f"{self.report.done} done and saved in {self._saved_in}; run again to resume"

    def _in_force(self) -> int | None:
        found = [each for limits in self._limits if (each := limits.in_force()) is not None]
        return min(self._tasks, *found) if found else self._tasks


class Stream(Generic[T, R]):
    """The outcomes of a run as they come; what `stream` returns.

    Iterate over it with `async for`. Leaving the loop early cancels what still runs; as a context manager
    (`async with`) it also waits for the end of that. A consumer that is slow slows the run. One that is cancelled
    while it waits for an outcome ends the run, as with an async generator.
    """

    def __init__(self, run: Run, capacity: int) -> None:
        self._run = run
        self._buffer: Buffer[Outcome[T, R]] = Buffer(capacity)
        self._started = False
        self._done = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def report(self) -> Report:
        """The counters, from the first outcome on. Raises RuntimeError before."""
        if self._run.report is None:
            raise RuntimeError("the stream has not begun: its report is there from the first outcome on")
        return self._run.report

    async def _start(self) -> None:
        self._started = True
        self._loop = asyncio.get_running_loop()
        try:
            self._run.start(self._buffer.put, self._buffer)
        except BaseException:
            await self.aclose()
            raise
        self._run.engine.when_ended(self._buffer.close)

    def __aiter__(self) -> Stream[T, R]:
        return self

    async def __anext__(self) -> Outcome[T, R]:
        outcome = self._buffer.take()
        if outcome is not None:
            return outcome
        if self._done:
            raise StopAsyncIteration
        if not self._started:
            await self._start()
        engine = self._run.engine
        engine.awaited = True
        try:
            return await self._buffer.get()
        except Closed:
            pass
        except BaseException:
            await self.aclose()
            raise
        finally:
            engine.awaited = False
        try:
            await self._run.engine.finished()
        finally:
            await self.aclose()
        raise StopAsyncIteration

    async def __aenter__(self) -> Stream[T, R]:
        if not self._started and not self._done:
            await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what still runs and wait for its end; outcomes not taken yet can still be taken."""
        if not self._done:
            self._done = True
            self._buffer.close()
            if self._started:
                await self._run.aclose()

    def __del__(self) -> None:
        if not self._started or self._done or self._loop is None:
            return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(_close_later, self._run)


_closing: set[asyncio.Task[None]] = set()


def _close_later(run: Run) -> None:
    """End a run whose stream was dropped in the middle."""
    task = asyncio.get_running_loop().create_task(run.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def stream(
    func: Callable[[T], Awaitable[R]] | Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: int | Literal["auto"] = 100,
    limits: Limits | Sequence[Limits] | None = None,
    rate: str | Rate | None = None,
    tokens: str | Rate | None = None,
    cost: float | Callable[[T], float] | None = None,
    retry: Retry | int | None = None,
    timeout: float | None = None,
    item_timeout: float | None = None,
    journal: str | os.PathLike[str] | Journal | None = None,
    key: Callable[[T], Any] | None = None,
    where: Where | None = None,
    progress: bool | Callable[[Report], None] | None = None,
    grace: float = 10.0,
) -> Stream[T, R]:
    """The outcomes of `func` for each of `items`, as they are completed; a failure is an outcome too.

    The parameters are those of `map`. Items are pulled as outcomes are taken: while `limit` outcomes wait for
    the consumer, no more items are pulled. With a journal a few hundred more may be on their way through it.

    If `items` itself raises, the outcomes of what was pulled before come first, and then that error.
    """
    run = Run(
        func,
        items,
        limit=limit,
        limits=limits,
        rate=rate,
        tokens=tokens,
        cost=cost,
        retry=retry,
        timeout=timeout,
        item_timeout=item_timeout,
        journal=journal,
        key=key,
        where=where,
        progress=progress,
        grace=grace,
    )
    return Stream(run, _tasks(limit))


async def map(
    func: Callable[[T], Awaitable[R]] | Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: int | Literal["auto"] = 100,
    limits: Limits | Sequence[Limits] | None = None,
    rate: str | Rate | None = None,
    tokens: str | Rate | None = None,
    cost: float | Callable[[T], float] | None = None,
    retry: Retry | int | None = None,
    timeout: float | None = None,
    item_timeout: float | None = None,
    errors: OnError = "raise",
    journal: str | os.PathLike[str] | Journal | None = None,
    key: Callable[[T], Any] | None = None,
    where: Where | None = None,
    progress: bool | Callable[[Report], None] | None = None,
    grace: float = 10.0,
) -> Results[R]:
    """Call `func` for each of `items`, many at once; the values, in the order of the items.

    `items` is any iterable or async iterable, pulled as calls end. At most `limit` calls run at the same time,
    each in a task of its own; `"auto"` finds the number that the other side bears. `rate` ("50/s") bounds the
    calls, `tokens` ("90000/min") the sum of `cost(item)`; `limits` are such bounds shared with other calls.

    A failed call is made again as `retry` says: a number of times, or a `Retry`. `timeout` bounds each attempt,
    `item_timeout` an item with all its attempts and waits; both in seconds.

    `errors` says what becomes of an item that fails in the end: `"raise"` cancels the rest and raises MapError, an
    ExceptionGroup that carries the outcomes so far; `"return"` puts the error in the place of the value; `"skip"`
    leaves it out. The result is a list with a `report` (and `outcomes`).

    With `journal`, a file, each value is saved as soon as it is there, under `key(item)` or a key made of the item
    itself, and a second run calls only for what is missing. Values must be what JSON can hold, or see `Journal`.

    `where="thread"` or `"process"` runs a function that is not async there. `progress` shows how far it is: None
    only on a terminal and after a second, True always, False never, or a function that gets the report.

    The first Ctrl-C or SIGTERM takes no more items and gives running calls `grace` seconds; the second ends them.

    Raises ValueError and TypeError for parameters that make no sense, JournalError for a journal that can't
    serve this run.
    """
    if errors not in ("raise", "return", "skip"):
        raise ValueError(f'errors must be "raise", "return" or "skip", not {errors!r}')
    run = Run(
        func,
        items,
        limit=limit,
        limits=limits,
        rate=rate,
        tokens=tokens,
        cost=cost,
        retry=retry,
        timeout=timeout,
        item_timeout=item_timeout,
        journal=journal,
        key=key,
        where=where,
        progress=progress,
        grace=grace,
    )
    return await collect(run, errors)


async def collect(run: Run, errors: OnError) -> Results[Any]:
    """Run it to its end; the values in order, with failures as `errors` says."""
    outcomes: list[Outcome[Any, Any]] = []

    def append_or_abort(outcome: Outcome[Any, Any]) -> None:
        outcomes.append(outcome)
        if outcome.error is not None:
            run.engine.abort()

    faults: list[Exception] = []
    report: Report | None = None
    try:
        report = run.start(append_or_abort if errors == "raise" else outcomes.append)
        await run.engine.finished()
    except Exception as error:
        if report is None or isinstance(error, NotAwaitable):
            raise
        faults.append(trimmed(error))
    finally:
        try:
            await run.aclose()
        except Exception as error:
            faults.append(trimmed(error))
    outcomes.sort(key=attrgetter("index"))
    for outcome in outcomes:
        if outcome.error is not None and errors == "raise":
            outcome.error.add_note(f"of item {outcome.index}" + (f", {outcome.key}" if outcome.key else ""))
    failed = [_as_exception(outcome.error) for outcome in outcomes if outcome.error is not None]
    if faults:
        others = [error for error in failed if error not in faults]
        raise MapError("the run ended early", [*faults, *others], outcomes, report)
    if failed and errors == "raise":
        raise MapError(f"{len(failed)} of {report.taken} items failed", failed, outcomes, report)
    if failed and errors == "skip":
        values = [outcome.value for outcome in outcomes if outcome.error is None]
    elif failed:
        values = [outcome.value if outcome.error is None else outcome.error for outcome in outcomes]
    else:
        values = [outcome.value for outcome in outcomes]
    return Results(values, outcomes, report)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _tasks(limit: int | Literal["auto"]) -> int:
    if limit == "auto":
        return _AUTO_TASKS
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f'limit must be a whole number or "auto", not {limit!r}')
    if limit < 1:
        raise ValueError(f"limit must be at least 1, and is {limit}")
    return limit


def _check_items(items: object) -> None:
    if isinstance(items, str | bytes):
        raise TypeError(
            f"items is a {type(items).__name__}: its characters would be the items; give a list of them"
        )
    if not isinstance(items, AsyncIterable | Iterable) and not hasattr(items, "__getitem__"):
        raise TypeError(f"items must be an iterable or an async iterable, and is {type(items).__name__}")


def _number(items: object) -> int | None:
    """How many items there are, if they tell."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except Exception:
        return None  # it has the method, and does not mean it


def _label(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", type(func).__name__))
