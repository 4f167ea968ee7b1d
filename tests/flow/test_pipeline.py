"""Stages one behind the other: order, bounds, failures, the journal, the bottleneck, and that nothing is left."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unwait
from unwait.flow.calls import NotAwaitable
from unwait.flow.faults import Overloaded
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError, Outcome
from unwait.flow.pipeline import Pipeline, Stage, shallow_size
from unwait.flow.pipeline_report import PipelineReport
from unwait.flow.retry import Retry

from .virtual_clock import Stuck, VirtualLoop

SOURCE = Path(unwait.__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def resource_tracker_running() -> None:
    """The standard library's one process that stays: it must not count as left behind by a test."""
    resource_tracker.ensure_running()


def assert_nothing_left(loop: VirtualLoop) -> None:
    """No task and no timer."""
    assert not asyncio.all_tasks(loop)
    at = loop.time()
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())
    assert loop.time() == at, "a timer was left"


def runs(main: Coroutine[Any, Any, Any]) -> Any:
    loop = VirtualLoop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        result = loop.run_until_complete(main)
        assert_nothing_left(loop)
        assert errors == []
        return result
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


async def inc(number: int) -> int:
    return number + 1


async def double(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number


def taking(seconds: float, name: str = "sleeper") -> Callable[[Any], Awaitable[Any]]:
    async def sleeper(item: Any) -> Any:
        await asyncio.sleep(seconds)
        return item

    sleeper.__name__ = name
    return sleeper


class Endless:
    """Counts up for ever, and how far it was pulled."""

    def __init__(self) -> None:
        self.pulled = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.pulled += 1
            yield self.pulled - 1


# Values and their order.


async def test_values_are_in_the_order_of_the_items(loop: Any) -> None:
    async def uneven(number: int) -> int:
        await asyncio.sleep(number % 3 / 1000)
        return number + 1

    results = await Pipeline([uneven, double, Stage(inc, limit=1)]).run(range(50))
    assert results == [2 * (number + 1) + 1 for number in range(50)]
    assert [outcome.item for outcome in results.outcomes] == list(range(50))
    assert [outcome.index for outcome in results.outcomes] == list(range(50))
    assert [outcome.attempts for outcome in results.outcomes] == [3] * 50


async def test_one_stage_and_no_items_are_pipelines_too(loop: Any) -> None:
    assert await Pipeline([inc]).run([1, 2]) == [2, 3]
    assert await Pipeline([inc, inc]).run([]) == []


async def test_the_items_may_be_an_async_iterable(loop: Any) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(10):
            await asyncio.sleep(0)
            yield number

    assert await Pipeline([inc, double]).run(source()) == [2 * number + 2 for number in range(10)]


async def test_a_pipeline_runs_again(loop: Any) -> None:
    pipeline = Pipeline([inc, Stage(inc, rate="1000/s", limit="auto")])
    assert await pipeline.run([1]) == await pipeline.run([1]) == [3]


def test_a_stream_gives_outcomes_as_they_come() -> None:
    async def main() -> None:
        async def sleep(seconds: int) -> int:
            await asyncio.sleep(seconds)
            return seconds

        stream = Pipeline([sleep, sleep]).stream([3, 1, 2])
        assert [outcome.value async for outcome in stream] == [1, 2, 3]
        assert isinstance(stream.report, PipelineReport)

    runs(main())


async def test_stages_run_in_threads_and_processes(loop: Any) -> None:
    def in_thread(number: int) -> tuple[int, bool]:
        return number, threading.current_thread() is threading.main_thread()

    async def first(pair: tuple[int, bool]) -> int:
        assert not pair[1]
        return pair[0]

    stages = [Stage(in_thread, where="thread", limit=2), first, Stage(abs, where="process", limit=1), inc]
    assert await Pipeline(stages).run([-3, -2, -1]) == [4, 3, 2]


async def test_batches_run_in_threads(loop: Any) -> None:
    def in_thread(numbers: list[int]) -> list[int]:
        assert threading.current_thread() is not threading.main_thread()
        return [number + len(numbers) for number in numbers]

    stage = Stage(in_thread, where="thread", limit=1, batch=5, max_wait=1)
    assert await Pipeline([stage]).run(range(10)) == [number + 5 for number in range(10)]


# Failures.


async def fail_on_13(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    return number


async def test_an_item_that_fails_leaves_with_the_error_and_its_stage(loop: Any) -> None:
    later: list[int] = []

    async def last(number: int) -> int:
        later.append(number)
        return number

    pipeline = Pipeline([inc, Stage(fail_on_13, name="check"), last])
    results = await pipeline.run(range(20), errors="return")
    error = results[12]
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["in stage 'check' of the pipeline"]
    outcome: Any = results.outcomes[12]
    assert (outcome.item, outcome.value, outcome.stage, outcome.attempts) == (12, None, "check", 2)
    assert sorted(later) == [*range(1, 13), *range(14, 21)]
    assert await pipeline.run(range(20), errors="skip") == [*range(1, 13), *range(14, 21)]
    counts = [(stage.taken, stage.passed, stage.failed) for stage in pipeline.report.stages]
    assert counts == [(20, 20, 0), (20, 19, 1), (19, 19, 0)]
    assert (pipeline.report.done, pipeline.report.failed) == (19, 1)
    assert pipeline.report.causes == {"ValueError: unlucky": 1}


def test_with_raise_the_first_failure_cancels_the_rest() -> None:
    async def main() -> None:
        cancelled = 0

        async def last(number: int) -> int:
            nonlocal cancelled
            try:
                await asyncio.sleep(0.1 if number < 5 else 1000)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return number

        async def slow_check(number: int) -> int:
            await asyncio.sleep(number)
            return await fail_on_13(number)

        with pytest.raises(MapError) as caught:
            await Pipeline([slow_check, last]).run(range(100))
        assert [str(error) for error in caught.value.exceptions] == ["unlucky"]
        assert [outcome.value for outcome in caught.value.outcomes if outcome.ok] == [0, 1, 2, 3, 4]
        assert cancelled == 8

    runs(main())


async def test_items_that_raise_end_the_run_after_what_was_taken(loop: Any) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    outcomes = []

    async def consume() -> None:
        async for outcome in Pipeline([double, double]).stream(source()):
            outcomes.append(outcome.value)

    with pytest.raises(OSError, match="the disk is gone") as caught:
        await consume()
    assert sorted(outcomes) == [0, 4, 8, 12, 16]
    assert caught.value.__notes__ == ["raised by the items, after 5 of them"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_function_that_is_not_async_ends_the_run(number: int) -> None:
    async def main() -> None:
        stages: list[Any] = [inc, Stage(double, queue=1), Stage(double, queue=1)]
        stages[number] = Stage(abs, name="absolute")
        with pytest.raises(NotAwaitable, match=r"'absolute'.*returned int.*where=\"thread\""):
            await Pipeline(stages).run(range(1000), errors="return")

    runs(main())


def test_a_stage_with_batches_has_failures_by_item() -> None:
    async def main() -> None:
        async def halve(numbers: list[int]) -> list[float]:
            await asyncio.sleep(1)
            return [1 / number for number in numbers]

        stages = [inc, Stage(halve, batch=16, max_wait=1), taking(1)]
        results = await Pipeline(stages).run(range(-1, 39), errors="return")
        assert isinstance(results[0], ZeroDivisionError)
        assert results[1:] == [1 / number for number in range(1, 40)]
        outcomes: list[Any] = results.outcomes
        assert outcomes[0].stage == "halve"
        assert outcomes[0].attempts == 1 + 5
        assert outcomes[39].attempts == 3

    runs(main())


# Bounds.


def test_each_stage_runs_no_more_than_its_limit() -> None:
    async def main() -> None:
        running, most = Counter[str](), Counter[str]()

        def stage(name: str, limit: int, seconds: float, **options: Any) -> Stage:
            async def func(item: Any) -> Any:
                running[name] += 1
                most[name] = max(most[name], running[name])
                await asyncio.sleep(seconds)
                running[name] -= 1
                return item

            return Stage(func, limit=limit, name=name, **options)

        stages = [stage("a", 3, 0.1), stage("b", 7, 0.5), stage("c", 2, 0.1, batch=5), stage("d", 1, 0.01)]
        await Pipeline(stages).run(range(200))
        assert most == {"a": 3, "b": 7, "c": 2, "d": 1}

    runs(main())


def test_a_consumer_that_stops_stops_the_source() -> None:
    """Memory is bounded by the queues, the limits and what the consumer has not taken."""

    async def main() -> None:
        items = Endless()
        stages = [Stage(taking(1), limit=5), Stage(taking(1), limit=3, queue=4), Stage(inc, limit=2, queue=6)]
        async with Pipeline(stages).stream(items) as stream:
            assert (await anext(stream)).ok
            await asyncio.sleep(10_000)
            assert items.pulled <= 1 + (5 + 4 + 3 + 6 + 2) + 100
            before = items.pulled
            for _ in range(50):
                await anext(stream)
            await asyncio.sleep(10_000)
            assert 0 < items.pulled - before <= 50

    runs(main())


def test_a_slow_stage_stops_the_source() -> None:
    async def main() -> None:
        items = Endless()
        stages = [Stage(inc, limit=2), Stage(taking(1_000_000), limit=3, queue=7), inc]
        async with Pipeline(stages).stream(items) as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1000):
                    await anext(stream)
            assert items.pulled == 2 + 7 + 3
            assert stream.report.stages[1].deepest == 7  # type: ignore[attr-defined]

    runs(main())


@pytest.mark.parametrize(
    ("sizes", "taken"), [([10] * 50, 10), ([60] * 50, 1), ([500] * 50, 1), ([0] * 50, 50)]
)
def test_queues_are_bounded_in_bytes(sizes: list[int], taken: int) -> None:
    """What is larger than the bound has the queue to itself."""

    async def main() -> None:
        pulled = 0

        async def make(size: int) -> bytes:
            nonlocal pulled
            pulled += 1
            return bytes(size)

        last = Stage(taking(1_000_000), limit=1, queue=100, queue_bytes=100)
        async with Pipeline([Stage(make, limit=1), last]).stream(sizes) as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1000):
                    await anext(stream)
            # One is worked on, `taken` are in the queue, and one waits for room in it.
            assert pulled == min(50, 1 + taken + 1)

    runs(main())


def test_a_small_item_does_not_overtake_a_large_one() -> None:
    async def main() -> None:
        order: list[int] = []

        async def make(size: int) -> bytes:
            return bytes(size)

        async def take(value: bytes) -> None:
            order.append(len(value))
            await asyncio.sleep(1)

        stages = [Stage(make, limit=10), Stage(take, limit=1, queue_bytes=100)]
        await Pipeline(stages).run([50, 60, 90, 5, 5, 200, 5])
        assert order == [50, 60, 90, 5, 5, 200, 5]

    runs(main())


def test_sizes_are_shallow() -> None:
    class Document:
        def __init__(self) -> None:
            self.text = "x" * 5000

    assert shallow_size(b"12345") == 5
    assert shallow_size("12345") == 5
    assert shallow_size(memoryview(bytes(5000)).cast("I")) == 5000
    for value in (["x" * 5000], ("x" * 5000,), {"text": "x" * 5000}, {"x" * 5000}, Document()):
        assert 5000 < shallow_size(value) < 6000
    assert shallow_size(Document) < 5000
    assert shallow_size(7) < 50


def test_a_size_that_fails_is_the_error_of_its_item() -> None:
    async def main() -> None:
        stages = [inc, Stage(inc, size=lambda value: 10 // abs(value - 3), name="second")]
        results = await Pipeline(stages).run(range(4), errors="return")
        assert results[:2] + results[3:] == [2, 3, 5]
        assert isinstance(results[2], ZeroDivisionError)
        assert "raised by size=" in results[2].__notes__

    runs(main())


# Limits, retries and time-outs.


def test_limits_retries_and_timeouts_are_those_of_the_stage() -> None:
    async def main() -> None:
        attempts: Counter[int] = Counter()

        async def flaky(number: int) -> int:
            attempts[number] += 1
            await asyncio.sleep(0.5)
            if attempts[number] < 3:
                raise Overloaded(retry_after=2)
            return number

        async def hangs(number: int) -> int:
            await asyncio.sleep(1000 if number == 2 else 0.25)
            return number

        stages = [Stage(flaky, retry=Retry(5, base=0)), Stage(hangs, timeout=1), Stage(inc, rate="1/s")]
        results = await Pipeline(stages).run(range(4), errors="return")
        outcomes: list[Any] = results.outcomes
        assert isinstance(results[2], TimeoutError)
        assert outcomes[2].stage == "hangs"
        assert [outcome.attempts for outcome in outcomes] == [5, 5, 4, 5]
        assert outcomes[0].elapsed == pytest.approx(3 * 0.5 + 2 * 2 + 0.25)
        assert outcomes[0].waited == pytest.approx(4)
        assert outcomes[3].waited == pytest.approx(4 + 2, rel=0.02)
        assert results.report.attempts == 19
        assert results.report.retried == 8
        first = results.report.stages[0]  # type: ignore[attr-defined]
        assert (first.calls.attempts, first.calls.backing_off) == (12, pytest.approx(16))

    runs(main())


def test_limits_can_be_shared_between_stages() -> None:
    async def main() -> None:
        limits = Limits(concurrency=3)
        running = most = 0

        async def func(item: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(1)
            running -= 1
            return item

        await Pipeline([Stage(func, limits=limits), Stage(func, limits=limits)]).run(range(30))
        assert most == 3

    runs(main())


def test_no_small_batches_go_while_the_next_stage_has_enough_to_do() -> None:
    async def main() -> None:
        sizes: list[int] = []

        async def embed(items: list[int]) -> list[int]:
            sizes.append(len(items))
            await asyncio.sleep(1)
            return items

        pipeline = Pipeline([Stage(embed, batch=10, limit=2), Stage(taking(0.3), limit=1, queue=20)])
        await pipeline.run(range(500))
        assert len(sizes) <= 500 / 10 + 2
        assert pipeline.report.elapsed == pytest.approx(500 * 0.3, rel=0.02)

    runs(main())


def test_a_small_batch_that_was_held_back_goes_when_the_next_stage_has_room() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            for number in range(27):
                yield number
            await asyncio.sleep(1_000_000)

        async def embed(items: list[int]) -> list[int]:
            return items

        stages = [Stage(embed, batch=10, limit=2, max_wait=0.1), Stage(taking(1), limit=1, queue=1)]
        started = now()
        async with Pipeline(stages).stream(source()) as stream:
            assert sorted([(await anext(stream)).value for _ in range(27)]) == list(range(27))
        assert now() - started < 30

    runs(main())


def test_the_last_batch_does_not_wait_for_items_that_cannot_come() -> None:
    async def main() -> None:
        async def batched(items: list[int]) -> list[int]:
            return items

        started = now()
        await Pipeline([double, Stage(batched, batch=64, max_wait=1000)]).run(range(70))
        assert now() - started < 1

    runs(main())


# The end.


@pytest.mark.parametrize("seconds", [0, 0.005, 0.015, 0.5, 3, 17])
def test_cancelling_leaves_nothing(seconds: float) -> None:
    async def main() -> None:
        async def batched(items: list[int]) -> list[int]:
            await asyncio.sleep(0.3)
            if 7 in items:
                raise ValueError
            return items

        stages = [
            Stage(taking(0.01), limit=3, rate="50/s"),
            Stage(batched, batch=4, limit=2, max_wait=2, queue=5),
            Stage(taking(1), limit=4, timeout=30, retry=3),
        ]
        run = asyncio.create_task(Pipeline(stages).run(Endless(), errors="skip"))
        await asyncio.sleep(seconds)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()

    runs(main())


def test_breaking_off_a_stream_leaves_nothing() -> None:
    async def main() -> None:
        items = Endless()
        async with Pipeline([taking(1), Stage(taking(2), batch=3)]).stream(items) as stream:
            async for outcome in stream:
                if outcome.index == 5:
                    break
        pulled = items.pulled
        await asyncio.sleep(100)
        assert items.pulled == pulled

    runs(main())


def test_an_async_source_is_closed() -> None:
    async def main() -> None:
        closed = False

        async def source() -> AsyncIterator[int]:
            nonlocal closed
            try:
                for number in itertools.count():
                    yield number
            finally:
                closed = True

        async with Pipeline([taking(1), taking(1)]).stream(source()) as stream:
            await anext(stream)
        assert closed

    runs(main())


async def test_an_item_that_cancels_itself_fails_alone(loop: Any) -> None:
    async def cancels(number: int) -> int:
        if number == 1:
            raise asyncio.CancelledError
        return number

    results = await Pipeline([cancels, double]).run(range(3), errors="return")
    assert results[0::2] == [0, 4]
    assert "cancelled from inside" in str(results[1])


# What is refused.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit": 0}, "limit"),
        ({"queue": 0}, "queue"),
        ({"queue_bytes": 0}, "queue_bytes"),
        ({"tokens": "5/s"}, "cost="),
        ({"max_cost": 5}, "batch="),
        ({"batch": 0}, "size"),
        ({"batch": 5, "max_wait": -1}, "max_wait"),
        ({"timeout": 0}, "timeout"),
        ({"rate": "fast"}, "fast"),
        ({"where": "fiber"}, "fiber"),
        ({"name": "a\x1fb"}, "printable"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Stage(inc if "where" not in options else abs, **options)


def test_a_pipeline_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(TypeError, match="leave where= out"):
        Stage(inc, where="thread")
    with pytest.raises(TypeError, match="needs a function"):
        Stage(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limit"):
        Stage(inc, limit=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one stage"):
        Pipeline([])
    with pytest.raises(ValueError, match="give journal="):
        Pipeline([inc], key=str)
    with pytest.raises(ValueError, match="give journal="):
        Pipeline([Stage(inc, save=True)])
    with pytest.raises(TypeError, match="not str"):
        Pipeline([inc]).stream("abc")


async def test_a_run_that_makes_no_sense_is_refused(loop: Any) -> None:
    with pytest.raises(ValueError, match="errors"):
        await Pipeline([inc]).run([1], errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="items"):
        await Pipeline([inc]).run(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress"):
        await Pipeline([inc]).run([3], progress="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grace"):
        await Pipeline([inc]).run([3], grace=-1)


# Whatever comes.

stages = st.fixed_dictionaries(
    {
        "limit": st.integers(1, 4),
        "queue": st.integers(1, 3),
        "queue_bytes": st.sampled_from([1, 8, 1000]),
        "batch": st.none() | st.integers(1, 4),
        "seconds": st.sampled_from([0, 0.01, 1]),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    options=st.lists(stages, min_size=1, max_size=4),
    bad=st.dictionaries(st.integers(0, 30), st.integers(0, 3)),
    count=st.integers(0, 30),
    pause=st.sampled_from([0, 0.005, 5]),
)
def test_each_item_leaves_exactly_once_with_what_became_of_it(
    options: list[dict[str, Any]], bad: dict[int, int], count: int, pause: float
) -> None:
    def stage(
        number: int, limit: int, queue: int, queue_bytes: int, batch: int | None, seconds: float
    ) -> Stage:
        async def one(item: tuple[int, int]) -> tuple[int, int]:
            await asyncio.sleep(seconds)
            if bad.get(item[0]) == number:
                raise ValueError(item[0], number)
            assert item[1] == number, "each stage once, in order"
            return item[0], number + 1

        async def many(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
            return await asyncio.gather(*map(one, items))

        sizes = {"queue": queue, "queue_bytes": queue_bytes, "size": lambda item: item[0] % 10}
        return Stage(
            one if batch is None else many, limit=limit, batch=batch, name=f"stage {number}", **sizes
        )

    async def main() -> list[Outcome[Any, Any]]:
        pipeline = Pipeline([stage(number, **each) for number, each in enumerate(options)])
        found = []
        async for outcome in pipeline.stream((number, 0) for number in range(count)):
            found.append(outcome)
            await asyncio.sleep(pause)
        for report, each in zip(pipeline.report.stages, options, strict=True):
            assert report.deepest <= each["queue"]
        return found

    found: list[Any] = runs(main())
    assert sorted(outcome.index for outcome in found) == list(range(count))
    for outcome in found:
        failing = bad.get(outcome.index)
        assert outcome.item == (outcome.index, 0)
        if failing is not None and failing < len(options):
            assert outcome.error.args == (outcome.index, failing)
            assert outcome.stage == f"stage {failing}"
        else:
            assert outcome.value == (outcome.index, len(options))
