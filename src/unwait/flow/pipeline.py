"""Functions one behind the other, each for many items at once, with bounded queues in between.

Every stage is a run of the engine, whose items are what its queue holds. What goes from stage to stage is the
item's outcome, with the value of the last stage in it: a task of the engine that has a new value waits until the
next queue has room for it, and meanwhile takes no other item. So a slow stage slows those in front of it, down
to the source. An item that fails leaves at once, past the stages behind.

With a journal there is a row for each item that has left, under the item's key, and one for each stage with
`save=True`, under the key and the stage's name. The next run hands out the first again, and lets items of which
only the second is there in behind that stage.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from unwait.flow.batches import Batch
from unwait.flow.calls import Caller
from unwait.flow.fanout import OnError, Run, Stream, collect
from unwait.flow.limits import Limits
from unwait.flow.outcome import Results
from unwait.flow.pipeline_report import PipelineReport
from unwait.flow.pipeline_run import PipelineRun
from unwait.flow.rates import Rate
from unwait.flow.retry import Retry
from unwait.flow.stats import Report
from unwait.flow.workers import check_placement, cores

if TYPE_CHECKING:
    from unwait.flow.journal import Journal

_LIMIT = 100  # calls of a stage at the same time, unless it says otherwise
_BATCHES = 4  # the same for calls of batches
_AUTO = 1000  # tasks of a stage with limit="auto"
_CAPACITY = 100  # outcomes that may wait for the consumer of a stream


def shallow_size(value: Any) -> int:
    """About how many bytes a value takes: a string's or bytes' length; for a container or object also its contents."""
    size = _flat_size(value)
    if isinstance(value, Mapping):
        return size + sum(_flat_size(key) + _flat_size(inner) for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return size + sum(map(_flat_size, value))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, type):
        return size + sum(map(_flat_size, attributes.values()))
    return size


def _flat_size(value: Any) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    held = getattr(value, "nbytes", None)  # of arrays, and of views
    return held if isinstance(held, int) else sys.getsizeof(value)


class Stage:
    """A function in a pipeline, and how it is called.

    `func` is async; a plain function runs with `where="thread"` or `"process"`. At most `limit` calls run at the
    same time (100 by default; of batches 4; of processes no more than there are cores), or `"auto"`. `limits`,
    `rate`, `tokens`, `cost`, `retry` and `timeout` are those of `map`.

    With `batch`, `func` takes a list of at most so many items, and returns a list with a value for each; for
    `max_wait`, `max_cost` and what becomes of a batch that fails see `Batch`.

    In front of it there is a queue of at most `queue` items, and `queue_bytes` in the sum of their `size(item)`; an
    item above that waits until it has the queue to itself. The first stage has none: it pulls items as it goes.

    With `save`, its values are kept in the journal, and no later run makes these calls again. `name` is what
    reports and the journal call it; the function's name by default.

    Raises ValueError and TypeError for what makes no sense.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        limit: int | Literal["auto"] | None = None,
        where: Literal["thread", "process"] | None = None,
        limits: Limits | Sequence[Limits] = (),
        rate: str | Rate | None = None,
        tokens: str | Rate | None = None,
        cost: float | Callable[[Any], float] | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        batch: int | None = None,
        max_wait: float = 0.05,
        max_cost: float | None = None,
        queue: int = 100,
        queue_bytes: int = 64 << 20,
        size: Callable[[Any], float] = shallow_size,
        save: bool = False,
        name: str | None = None,
    ) -> None:
        if not callable(func):
            raise TypeError(f"a stage needs a function, not {type(func).__name__}")
        if where is not None:
            check_placement(func, where)
        if limit is None:
            limit = _LIMIT if batch is None else _BATCHES
        if limit != "auto" and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise TypeError(f'limit must be a whole number or "auto", not {limit!r}')
        if limit != "auto" and limit < 1:
            raise ValueError(f"limit must be at least 1, and is {limit}")
        if queue < 1 or queue_bytes < 1:
            raise ValueError(f"queue and queue_bytes must be at least 1, and are {queue} and {queue_bytes}")
        if tokens is not None and cost is None:
            raise ValueError("tokens= needs cost=, a function that tells how many tokens an item takes")
        if max_cost is not None and batch is None:
            raise ValueError("max_cost= bounds a batch: give batch= too")
        self.func = func
        self.where = where
        self.cost: float | Callable[[Any], float] = 0 if cost is None else cost
        self.retry = Retry.of(retry)
        self.timeout = timeout
        self.batch = batch
        self.max_wait = max_wait
        self.max_cost = max_cost
        self.queue = queue
        self.queue_bytes = queue_bytes
        self.size = size
        self.save = save
        self.name = name or str(getattr(func, "__name__", type(func).__name__))
        if not self.name.isprintable():
            raise ValueError(f"the name of a stage must be printable, and is {self.name!r}")
        self.limits: list[Limits] = [limits] if isinstance(limits, Limits) else list(limits)
        if rate is not None or tokens is not None or limit == "auto":
            concurrency: Literal["auto"] | None = "auto" if limit == "auto" else None
            self.limits.append(Limits(concurrency=concurrency, rate=rate, tokens=tokens))
        self.concurrency = _AUTO if limit == "auto" else limit
        if where == "process":
            self.concurrency = min(self.concurrency, cores())
        # What is wrong with the rest is said now, and not by the first run.
        report = Report(lambda: 0.0)
        _ = self.caller(func, report) if batch is None else self.batches(func, report)

    def caller(self, func: Callable[..., Any], report: Report) -> Caller[Any, Any]:
        """How a run calls the function for one item."""
        return Caller(
            func, limits=self.limits, cost=self.cost, retry=self.retry, timeout=self.timeout, report=report
        )

    def batches(
        self, func: Callable[..., Any], report: Report, hold: Callable[[], bool] = lambda: False
    ) -> Batch[Any, Any]:
        """How a run calls the function for several items; for `hold` see `Batch`."""
        assert self.batch is not None
        cost = self.cost
        return Batch(
            func,
            size=self.batch,
            max_wait=self.max_wait,
            max_cost=self.max_cost,
            cost=cost if callable(cost) else lambda _: cost,
            limit=self.concurrency,
            limits=self.limits,
            retry=self.retry,
            timeout=self.timeout,
            report=report,
            hold=hold,
        )


class Pipeline:
    """Functions one behind the other: `results = await Pipeline([download, Stage(parse, where="process")]).run(urls)`.

    `stages` are functions, or a `Stage` where there is more to say. With `journal`, a file, each item's result is
    saved under `key(item)` or a key made of the item itself, and a second run works only on what is missing. Where a
    stage saves by itself what is done, `saved_in` names the place to whoever interrupts a run.

    Raises ValueError for no stages, and for `key=` or a stage that saves without a journal.
    """

    def __init__(
        self,
        stages: Iterable[Stage | Callable[..., Any]],
        *,
        journal: str | os.PathLike[str] | Journal | None = None,
        key: Callable[[Any], Any] | None = None,
        saved_in: str | None = None,
    ) -> None:
        self.stages = [stage if isinstance(stage, Stage) else Stage(stage) for stage in stages]
        if not self.stages:
            raise ValueError("a pipeline needs at least one stage")
        if journal is None and (key is not None or any(stage.save for stage in self.stages)):
            raise ValueError("key= and save= concern a journal: give journal= too")
        self.journal = journal
        self.key = key
        self.saved_in = saved_in
        self._run: PipelineRun | None = None

    @property
    def report(self) -> PipelineReport:
        """The account of the last run, also while it goes on. Raises RuntimeError before the first."""
        if self._run is None or self._run.report is None:
            raise RuntimeError("the pipeline has not run yet")
        return self._run.report

    async def run(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        errors: OnError = "raise",
        progress: bool | Callable[[Report], None] | None = None,
        grace: float = 10.0,
    ) -> Results[Any]:
        """The values of the last stage, in the order of the items; all parameters are those of `map`.

        After the first Ctrl-C or SIGTERM what is in the pipeline has `grace` seconds to reach its end.
        """
        if errors not in ("raise", "return", "skip"):
            raise ValueError(f'errors must be "raise", "return" or "skip", not {errors!r}')
        return await collect(self._new_run(items, progress, grace), errors)

    def stream(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        progress: bool | Callable[[Report], None] | None = None,
        grace: float = 10.0,
    ) -> Stream[Any, Any]:
        """The outcome of each item as it leaves the pipeline, which waits while 100 of them are not taken."""
        return Stream(self._new_run(items, progress, grace), _CAPACITY)

    def _new_run(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        progress: bool | Callable[[Report], None] | None,
        grace: float,
    ) -> Run:
        if not isinstance(items, AsyncIterable | Iterable) or isinstance(items, str | bytes):
            raise TypeError(
                f"items must be an iterable or an async iterable of items, not {type(items).__name__}"
            )
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False, None or a callable, not {progress!r}")
        if not grace >= 0:
            raise ValueError(f"grace is in seconds and must not be negative; it is {grace!r}")
        self._run = run = PipelineRun(self, items, progress, grace)
        # To `collect` and `Stream` it is what a run of one function is.
        return cast(Run, run)
