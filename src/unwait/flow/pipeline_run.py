"""One run of a pipeline: an engine for each stage, and the queues, the journal and the interruptions of all of them."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

from unwait.flow.batches import Batch
from unwait.flow.buffer import Buffer
from unwait.flow.calls import CallCancelled, Caller, Interrupted, NotAwaitable, trimmed
from unwait.flow.engine import Engine
from unwait.flow.interrupt import graceful
from unwait.flow.journal import Journal, JournalError, function_name
from unwait.flow.outcome import Outcome
from unwait.flow.pipeline_report import PipelineReport, StageReport
from unwait.flow.progress import showing
from unwait.flow.stats import Report
from unwait.flow.workers import place

if TYPE_CHECKING:
    from unwait.flow.pipeline import Pipeline, Stage
    from unwait.flow.saving import Saver
    from unwait.flow.workers import Workers

T = TypeVar("T")
R = TypeVar("R")

_COMMITTING = 256  # rows that may wait for the journal, so that commits come in batches


@dataclass(slots=True, eq=False)
class PipelineOutcome(Outcome[T, R]):
    """What became of an item of a pipeline; `stage` names the one in which it failed, None if in none.

    Attempts and seconds are the sums over all stages; `elapsed` has the stages' time, and not the queues'.
    """

    stage: str | None = None

    def fail(self, error: BaseException, stage: str) -> None:
        """The item ends with this error, in the stage of this name."""
        self.value, self.error, self.stage = None, error, stage
        note = f"in stage {stage!r} of the pipeline"
        # Items of one batch may have one error.
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


class _Queue:
    """What waits in front of a stage, bounded in number and size; who has more to put waits in order."""

    def __init__(
        self,
        items: int,
        size: float,
        report: StageReport,
        *,
        relieved: Callable[[], None],
        exhausted: Callable[[], None],
    ) -> None:
        self._most = items
        self._most_size = size
        self._report = report
        self._on_relieved = relieved
        self._on_exhausted = exhausted
        self._held: deque[tuple[PipelineOutcome[Any, Any], float]] = deque()
        self._size = 0.0
        self._getter: asyncio.Future[None] | None = None
        self._putters: deque[tuple[asyncio.Future[None], PipelineOutcome[Any, Any], float]] = deque()
        self._closed = False
        self.exhausted = False  # and the stage knows

    @property
    def congested(self) -> bool:
        """Whether somebody waits to put more."""
        return bool(self._putters)

    async def put(self, item: PipelineOutcome[Any, Any], size: float) -> None:
        """Add it as soon as there is room."""
        if not self._putters and self._has_room(size):
            self._add(item, size)
            return
        putter = (asyncio.get_running_loop().create_future(), item, size)
        self._putters.append(putter)
        try:
            await putter[0]
        except asyncio.CancelledError:
            if putter in self._putters:
                self._putters.remove(putter)
                self._let_in()
            raise

    def close(self) -> None:
        """Nothing more will be put."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> _Queue:
        return self

    async def __anext__(self) -> PipelineOutcome[Any, Any]:
        # One task of the engine pulls at a time.
        while not self._held:
            if self._closed:
                self.exhausted = True
                self._on_exhausted()
                raise StopAsyncIteration
            self._getter = asyncio.get_running_loop().create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        item, size = self._held.popleft()
        self._report.queued = len(self._held)
        self._size -= size
        self._let_in()
        return item

    def _has_room(self, size: float) -> bool:
        return not self._held or (len(self._held) < self._most and self._size + size <= self._most_size)

    def _add(self, item: PipelineOutcome[Any, Any], size: float) -> None:
        self._held.append((item, size))
        self._size += size
        self._report.queued = queued = len(self._held)
        self._report.deepest = max(self._report.deepest, queued)
        self._wake()

    def _let_in(self) -> None:
        if not self._putters:
            return
        while self._putters and self._has_room(self._putters[0][2]):
            putter, item, size = self._putters.popleft()
            if not putter.done():
                self._add(item, size)
                putter.set_result(None)
        if not self._putters:
            self._on_relieved()

    def _wake(self) -> None:
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)


class _Station:
    """A stage in one run."""

    def __init__(self, stage: Stage, name: str, number: int, run: PipelineRun) -> None:
        assert run.report is not None
        self.stage = stage
        self.name = name
        self.number = number
        self._run = run
        self._clock = clock = asyncio.get_running_loop().time
        calls = Report(clock)
        tasks = stage.concurrency * (stage.batch or 1)
        self.report = StageReport(name, stage.concurrency, tasks, calls)
        run.report.stages.append(self.report)
        self.workers: Workers[Any, Any] | None = None
        func = stage.func
        if stage.where is not None:
            func = self.workers = place(func, stage.where, stage.concurrency)
        self.batch: Batch[Any, Any] | None = None
        if stage.batch is None:
            self._call: Callable[[Outcome[Any, Any]], Awaitable[None]] = stage.caller(
                self._awaited(func), calls
            )
        else:
            self.batch = stage.batches(func, calls, self._congested)
            self._call = partial(_in_batch, self.batch)
        self.queue = _Queue(
            stage.queue, stage.queue_bytes, self.report, relieved=self._relieved, exhausted=self._exhausted
        )
        self.engine = Engine(
            func,
            run.items if number == 0 else self.queue,
            limit=tasks,
            caller=cast(Caller[Any, Any], self._enter if number == 0 else self._go_on),
            report=calls,
            sink=lambda _: None,
        )

    def _awaited(self, func: Callable[..., Any]) -> Callable[[Any], Awaitable[Any]]:
        async def awaited(item: Any) -> Any:
            called = func(item)
            if not hasattr(called, "__await__"):
                raise NotAwaitable(
                    f"stage {self.name!r}: its function returned {type(called).__name__}, which can't be awaited: make "
                    'it async, or have it run in threads or processes with where="thread" or where="process"'
                )
            return await called

        return awaited

    def _exhausted(self) -> None:
        if self.batch is not None:
            self.batch.flush()

    def _congested(self) -> bool:
        """Whether there is no hurry: small batches would do no good."""
        following = self._run.after(self)
        return following is not None and following.queue.congested

    def _relieved(self) -> None:
        before = self._run.before(self)
        if before is not None and before.batch is not None:
            before.batch.proceed()

    async def _enter(self, outcome: Outcome[Any, Any]) -> None:
        """The first stage's calls: of what is in the journal, only the rest is to be done."""
        item: PipelineOutcome[Any, Any] = PipelineOutcome(outcome.index, outcome.item, value=outcome.item)
        entrance = self._run.entrance(item)
        if entrance is self:
            await self._work(item, outcome)
        elif entrance is None:
            await self._run.leave(item)
        else:
            try:
                size = entrance.size_of(item.value)
            except Exception as error:
                item.fail(error, entrance.name)
                await self._run.leave(item)
            else:
                await entrance.queue.put(item, size)

    async def _go_on(self, outcome: Outcome[Any, Any]) -> None:
        await self._work(outcome.item, outcome)

    async def _work(self, item: PipelineOutcome[Any, Any], outcome: Outcome[Any, Any]) -> None:
        """Have the function called, and send the item on; `outcome` is the engine's own, for its counts."""
        report, clock, run = self.report, self._clock, self._run
        report.taken += 1
        started = clock()
        call: Outcome[Any, Any] = Outcome(item.index, item.value)
        cancelled: asyncio.CancelledError | None = None
        try:
            await self._call(call)
        except Interrupted:
            raise
        except asyncio.CancelledError as cut_off:
            if self.engine.closing:
                raise
            # By itself: the item has failed, and whether the run goes on is for the engine to say.
            cancelled = trimmed(cut_off)
            call.error = CallCancelled("the call was cancelled from inside")
            call.error.__cause__ = cancelled
        if isinstance(call.error, NotAwaitable):
            raise call.error
        called = clock()
        run.count(call.attempts)
        item.attempts += call.attempts
        item.waited += call.waited
        item.elapsed += called - started
        report.samples.add(called - started)
        item.value, error = call.value, call.error
        # While it waits for room, only the new value is held.
        del call
        following = run.after(self)
        if error is None and following is not None:
            try:
                if self.stage.save:
                    run.save(item, self.name, called - started)
                size = following.size_of(item.value)
            except Exception as failed:
                error = failed
        if error is None:
            report.passed += 1
        else:
            report.failed += 1
            item.fail(error, self.name)
            outcome.error = error
        waits = clock()
        if error is None and following is not None:
            await following.queue.put(item, size)
        else:
            await run.leave(item)
        report.blocked_seconds += clock() - waits
        if cancelled is not None:
            raise cancelled

    def size_of(self, value: Any) -> float:
        """What the value counts in the queue in front of this stage."""
        try:
            size = self.stage.size(value)
            if not 0 <= size < math.inf:
                raise ValueError(f"a size must not be negative or infinite, and this is {size!r}")
            return size
        except Exception as error:
            error.add_note("raised by size=")
            raise


async def _in_batch(batch: Batch[Any, Any], call: Outcome[Any, Any]) -> None:
    done = await batch.outcome(call.item)
    call.value, call.error, call.attempts, call.waited = done.value, done.error, done.attempts, done.waited


class PipelineRun:
    """One run of a pipeline: its stages, the journal, progress and interruptions around them."""

    def __init__(
        self,
        pipeline: Pipeline,
        items: Iterable[Any] | AsyncIterable[Any],
        progress: bool | Callable[[Report], None] | None,
        grace: float,
    ) -> None:
        self._stages = pipeline.stages
        self._journal = pipeline.journal
        self._key = pipeline.key
        self._saved_in = pipeline.saved_in
        self.items = items
        self._progress = progress
        self._grace = grace
        self._stack = ExitStack()
        self._stations: list[_Station] = []
        self._saver: Saver[PipelineOutcome[Any, Any]] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._running = 0  # stages that have not ended
        self._aborted = False
        self._fault: Exception | None = None
        self.report: PipelineReport | None = None
        self._cut_short = False

    # What `collect` and `Stream` use.

    def start(
        self,
        sink: Callable[[Outcome[Any, Any]], None],
        buffer: Buffer[Any] | None = None,
    ) -> PipelineReport:
        """Begin, on the running loop; returns the report, which counts from now on."""
        loop = asyncio.get_running_loop()
        self._sink = sink
        self._buffer = buffer
        self._ended = loop.create_future()
        total = len(self.items) if isinstance(self.items, Sized) else None
        self.report = report = PipelineReport(loop.time, total)
        names: list[str] = []
        for number, stage in enumerate(self._stages):
            name = stage.name
            while name in names:
                name = f"{name} ({number + 1})"
            names.append(name)
            self._stations.append(_Station(stage, name, number, self))
        self._running = len(self._stations)
        try:
            for station in self._stations:
                station.engine.start()
                station.engine.when_ended(partial(self._stage_ended, station))
            # Its tasks have not begun yet: what comes now can still fail, and leaves nothing behind.
            self._open_journal()
            self._stack.enter_context(graceful(self._stop, self._cut, self._saved, self._grace))
            self._stack.enter_context(showing(self._progress, report, " → ".join(names)))
        except BaseException:
            self.abort()
            self._stack.close()
            raise
        return report

    @property
    def engine(self) -> PipelineRun:
        """Itself: its stages end as one."""
        return self

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the outcomes."""
        return any(station.engine.awaited for station in self._stations)

    @awaited.setter
    def awaited(self, awaited: bool) -> None:
        for station in self._stations:
            station.engine.awaited = awaited

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when all that was taken has left, or the run was aborted."""
        assert self._ended is not None
        self._ended.add_done_callback(lambda _: callback())

    async def finished(self) -> None:
        """Wait until all items have left; raises what ended the run before that."""
        assert self._ended is not None
        if not self._ended.done():
            self.awaited = True
            await asyncio.shield(self._ended)
        if self._fault is not None:
            raise self._fault
        for station in self._stations:
            await station.engine.finished()
        if self._saver is not None:
            await self._saver.close()

    def abort(self) -> None:
        """Take no more items, and cancel those that were taken."""
        self._aborted = True
        for station in self._stations:
            station.engine.abort()

    async def aclose(self) -> None:
        """End whatever still runs. If an interruption stopped the run, this raises what that ends in."""
        self.abort()
        fault: BaseException | None = None
        endings = [station.engine.aclose for station in self._stations]
        endings += [station.batch.aclose for station in self._stations if station.batch is not None]
        endings += [] if self._saver is None else [self._saver.close]
        while endings:
            try:
                await endings[0]()
            except asyncio.CancelledError as error:
                # What it ends is being cancelled already; a second time it only waits for that.
                fault = error
                continue
            except Exception as error:
                fault = fault or error
            del endings[0]
        try:
            if fault is not None:
                raise fault
        finally:
            try:
                await asyncio.gather(
                    *(station.workers.aclose() for station in self._stations if station.workers)
                )
            finally:
                if self.report is not None:
                    self.report.end()
                self._stack.close()
        if self._cut_short or any(station.engine.cut_short for station in self._stations):
            # Handing the interruption on has cancelled the main task: what there is must not pass for the whole.
            await asyncio.sleep(0)
            raise Interrupted

    # What its stages use.

    def entrance(self, item: PipelineOutcome[Any, Any]) -> _Station | None:
        """The stage at which the item begins; None if it has come to its end already."""
        assert self.report is not None
        self.report.taken += 1
        saver = self._saver
        if saver is None:
            return self._stations[0]
        try:
            if saver.begin(item) is not None:
                return None
            for station, following in reversed(list(pairwise(self._stations))):
                if station.stage.save and (saved := saver.find_step(item, station.name)) is not None:
                    item.value = saved.value
                    return following
        except JournalError as error:
            self._fail(error)
            raise
        except Exception as error:
            item.value, item.error = None, error
            return None
        return self._stations[0]

    def after(self, station: _Station) -> _Station | None:
        """The next stage; None behind the last."""
        return self._stations[station.number + 1] if station.number + 1 < len(self._stations) else None

    def before(self, station: _Station) -> _Station | None:
        """The stage before; None for the first."""
        return self._stations[station.number - 1] if station.number else None

    def count(self, attempts: int) -> None:
        """Count the calls that a stage made for an item."""
        assert self.report is not None
        self.report.attempts += attempts
        self.report.retried += max(0, attempts - 1)

    def save(self, item: PipelineOutcome[Any, Any], stage: str, elapsed: float) -> None:
        """Store what a stage made of an item; its value then is as a later run will find it."""
        if self._saver is not None and item.key is not None:
            self._saver.save_step(item, stage, elapsed)

    async def leave(self, item: PipelineOutcome[Any, Any]) -> None:
        """Report the item's outcome when there is room for it and, with a journal, when it is stored."""
        saver, buffer = self._saver, self._buffer
        while (saver is not None and saver.full) or (buffer is not None and buffer.full):
            if buffer is not None:
                await buffer.room()
            if saver is not None:
                await saver.room()
        if saver is None or item.key is None:
            self._settle(item)
            return
        try:
            if item.resumed:
                saver.reuse(item)
                return
            whole = item.error is None
            saver.save(item)
            if whole and item.error is not None:
                item.fail(item.error, self._stations[-1].name)
        except JournalError as error:
            self._fail(error)
            raise

    def _settle(self, item: PipelineOutcome[Any, Any]) -> None:
        report = self.report
        assert report is not None
        report.add(item.elapsed, item.error, item.resumed)
        self._sink(item)

    # The journal.

    def _open_journal(self) -> None:
        if self._journal is None:
            return
        from unwait.flow.saving import Saver

        journal = self._journal if isinstance(self._journal, Journal) else Journal(self._journal)
        name = f"Pipeline[{', '.join(function_name(stage.func) for stage in self._stages)}]"
        self._saver = Saver(
            journal,
            name,
            self._key,
            settle=self._settle,
            broken=self._fail,
            changed=self._end_if_idle,
            most=_COMMITTING,
        )

    # Its end.

    def _stage_ended(self, station: _Station) -> None:
        self._running -= 1
        report = self.report
        if report is not None and station.number == 0 and not (self._aborted or station.engine.cut_short):
            # Also where the items could not tell how many they are: these were all.
            report.total = report.taken
        following = self.after(station)
        if not self._aborted and station.number and not station.queue.exhausted:
            # It failed, and nobody takes from its queue any more. `finished` tells why.
            self.abort()
        elif following is not None:
            following.queue.close()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        idle = not self._running and (self._saver is None or self._saver.idle)
        if idle and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
        self.abort()

    # An interruption.

    def _stop(self) -> int:
        self._stations[0].engine.stop()
        return 0 if self.report is None else self.report.running

    def _cut(self) -> None:
        self._cut_short = True
        self.abort()

    def _saved(self) -> str:
        place = self._saved_in if self._saver is None else self._saver.path
        if place is None or self.report is None:
            return ""
        return f"{self.report.done} done and saved in {place}; run again to resume"
