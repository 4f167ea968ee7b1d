"""`map` and `stream` where things go wrong: callbacks that raise, calls that resist, sources that hold on to things."""

from __future__ import annotations

import asyncio
import threading
import types
from contextvars import ContextVar

import pytest

from unwait.flow.calls import CallCancelled, NotAwaitable, call
from unwait.flow.fanout import map, stream
from unwait.flow.faults import Overloaded
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError
from unwait.flow.retry import Retry


async def double(n):
    await asyncio.sleep(0)
    return 2 * n


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def other_tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}


# What users' callbacks raise.


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("options", [{}, {"retry": 0}, {"journal": "run.db"}], ids=str)
async def test_an_error_that_cannot_be_shown_fails_its_item_alone(loop, tmp_path, options):
    async def fail(n):
        if n == 1:
            raise Unspeakable
        return n

    if "journal" in options:
        options = {"journal": tmp_path / "run.db"}
    results = await map(fail, range(3), errors="return", **options)
    assert isinstance(results[1], Unspeakable)
    assert [results[0], results[2]] == [0, 2]
    assert results.report.causes == {"Unspeakable": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"on": lambda error: error.status == 429},
        {"after": lambda error: error.headers["retry-after"]},
    ],
    ids=["on", "after"],
)
async def test_a_retry_that_fails_itself_fails_its_item_and_keeps_the_error(loop, wrong):
    async def fail(n):
        raise OSError("the call's own")

    outcome = await call(fail, 1, retry=Retry(3, **wrong))
    assert isinstance(outcome.error, AttributeError)
    assert str(outcome.error.__context__) == "the call's own"
    assert outcome.error.__notes__ == ["raised by retry="]
    assert outcome.attempts == 1
    results = await map(fail, [1], retry=Retry(3, **wrong), item_timeout=5, errors="return")
    assert isinstance(results[0], AttributeError)


@pytest.mark.parametrize("named", [float("nan"), float("inf"), -5.0])
def test_a_named_delay_that_is_none_is_ignored(named):
    retry = Retry(3, base=1, after=lambda error: named, random=lambda: 0.5)
    assert retry.delay(OSError(), 1, 0, 0) == 0.5


async def test_an_overload_predicate_that_raises_costs_no_permit(loop):
    limits = Limits(concurrency=1, overload=lambda error: error.status == 429)

    async def fail(n):
        raise OSError(n)

    results = await map(fail, range(3), limits=limits, errors="return")
    assert [type(error) for error in results] == [AttributeError] * 3
    assert limits.try_acquire() is not None


class Unsized:
    """A sequence that does not want to tell its length, as those of some data loaders."""

    def __len__(self):
        raise TypeError("streamed")

    def __iter__(self):
        return iter(range(3))


async def test_items_that_will_not_tell_their_number_are_mapped(loop):
    results = await map(double, Unsized())
    assert results == [0, 2, 4]
    assert results.report.total is None


# What is no coroutine.


class Connection:
    """Something with a method that is called as one of coroutines is."""

    def __init__(self):
        self.sent = []

    def send(self, what):
        self.sent.append(what)


@pytest.mark.parametrize(
    "options", [{}, {"retry": 3}, {"retry": Retry(3, on=Exception)}, {"timeout": 5}], ids=str
)
async def test_a_function_that_is_not_async_ends_the_run_whatever_else_is_asked_for(loop, options):
    calls = []

    def plain(n):
        calls.append(n)
        return n

    with pytest.raises(NotAwaitable, match=r"plain returned int, .*where=\"thread\""):
        await map(plain, iter(range(1000)), limit=10, errors="return", **options)
    assert len(calls) <= 10


async def test_what_a_function_returns_is_not_touched_to_find_out_whether_it_is_a_coroutine(loop):
    connection = Connection()
    with pytest.raises(NotAwaitable, match="returned Connection"):
        await map(lambda n: connection, [1])
    assert connection.sent == []


async def test_a_generator_function_is_not_async(loop):
    def generates(n):
        yield n

    with pytest.raises(NotAwaitable, match="generates returned generator"):
        await map(generates, [1])


async def test_an_old_style_coroutine_can_be_awaited(loop):
    @types.coroutine
    def old(n):
        yield from asyncio.sleep(0).__await__()
        return n

    assert await map(old, range(3)) == [0, 1, 2]
    assert await map(old, range(3), retry=1) == [0, 1, 2]


# Cancellations.


async def test_a_source_that_is_cancelled_from_inside_does_not_end_the_run_quietly(loop):
    async def items():
        yield 1
        yield 2
        raise asyncio.CancelledError

    for limit in (1, 5):
        with pytest.raises(MapError) as caught:
            await map(double, items(), limit=limit)
        assert isinstance(caught.value.exceptions[0], CallCancelled)
        assert [outcome.value for outcome in caught.value.outcomes] == [2, 4]


async def test_a_plain_source_that_is_cancelled_from_inside_does_not_end_the_run_quietly(loop):
    def items():
        yield 1
        raise asyncio.CancelledError

    for limit in (1, 5):
        with pytest.raises(MapError) as caught:
            await map(double, items(), limit=limit)
        assert isinstance(caught.value.exceptions[0], CallCancelled)
        assert [outcome.value for outcome in caught.value.outcomes] == [2]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("options", [{}, {"retry": 0}], ids=["plain", "retry"])
async def test_calls_that_leave_their_task_marked_as_cancelled_do_not_end_the_run(loop, limit, options):
    """As time-outs of older libraries do: they cancel the task, catch that, and never take it back."""

    async def times_out(n):
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise TimeoutError from None

    results = await map(times_out, range(6), limit=limit, errors="return", **options)
    assert [type(error) for error in results] == [TimeoutError] * 6


async def test_a_task_that_cancels_itself_is_its_items_failure_even_alone(loop):
    async def cancel_self(n):
        if n == 1:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return n

    results = await map(cancel_self, range(4), limit=1, errors="return")
    assert isinstance(results[1], CallCancelled)
    assert [results[n] for n in (0, 2, 3)] == [0, 2, 3]


@pytest.mark.parametrize("options", [{}, {"item_timeout": 1000}], ids=str)
async def test_a_call_that_turns_its_cancellation_into_an_error_is_not_made_again(loop, options):
    calls = 0

    async def converts(n):
        nonlocal calls
        calls += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    mapping = asyncio.ensure_future(map(converts, [1], retry=Retry(5, base=0), **options))
    await turns()
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert calls == 1
    assert not other_tasks()


async def test_a_decorated_call_that_turns_its_cancellation_into_an_error_is_not_made_again(loop):
    calls = 0

    @Retry(5, base=0)
    async def converts():
        nonlocal calls
        calls += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    calling = asyncio.ensure_future(converts())
    await turns()
    calling.cancel()
    await asyncio.wait([calling])
    assert isinstance(calling.exception(), ConnectionError)
    assert calls == 1


def test_an_items_time_out_ends_its_attempts_whatever_the_call_makes_of_it(virtual):
    calls = 0

    async def converts(n):
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    async def main():
        results = await map(converts, [1], retry=Retry(5, base=0), item_timeout=3, errors="return")
        assert isinstance(results[0], ConnectionError)
        assert results.report.elapsed == pytest.approx(3)

    virtual(main())
    assert calls == 1


async def test_cancelled_while_the_workers_close_it_still_cleans_up(loop):
    started, let_go, ticks = threading.Event(), threading.Event(), []

    def block(n):
        started.set()
        let_go.wait(20)

    mapping = asyncio.ensure_future(
        map(block, [1], where="thread", progress=lambda report: ticks.append(report))
    )
    while not started.is_set():
        await asyncio.sleep(0.001)
    mapping.cancel()
    await turns()
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    let_go.set()
    assert len(ticks) == 1  # that of the end
    await asyncio.sleep(0.4)
    assert len(ticks) == 1


@pytest.mark.parametrize(
    "options", [{}, {"limits": True, "retry": 2, "timeout": 50, "item_timeout": 60}], ids=str
)
@pytest.mark.parametrize("source", ["plain", "async"])
async def test_cancelled_at_any_turn_it_leaves_nothing(loop, options, source):
    async def items():
        for n in range(6):
            await asyncio.sleep(0)
            yield n

    if options:
        options["limits"] = limits = Limits(concurrency=2)
    ended = False
    for turn in range(200):
        running = 0

        async def work(n):
            nonlocal running
            running += 1
            try:
                await asyncio.sleep(0)
                if n % 2 and options:
                    raise Overloaded(retry_after=0)
                await asyncio.sleep(0)
            finally:
                running -= 1

        given = items() if source == "async" else range(6)
        mapping = asyncio.ensure_future(map(work, given, limit=3, errors="return", **options))
        await turns(turn)
        ended = mapping.done()
        mapping.cancel()
        await asyncio.wait([mapping])
        assert ended or mapping.cancelled()
        assert running == 0
        assert not other_tasks()
        if options:
            permits = [limits.try_acquire() for _ in range(2)]
            assert None not in permits
            for permit in permits:
                permit.refund()
        if ended and not options:
            break
    assert ended or options


# What is open in a source while it waits to be asked.


def test_a_time_out_in_an_async_generator_is_that_of_the_generator(virtual):
    steps = []

    async def items():
        try:
            async with asyncio.timeout(10):
                for n in range(100):
                    yield n
                    await asyncio.sleep(3)
        finally:
            steps.append(asyncio.current_task())

    async def slow(n):
        await asyncio.sleep(2)
        return n

    async def main():
        with pytest.raises(MapError) as caught:
            await map(slow, items(), limit=2, errors="return")
        assert isinstance(caught.value.exceptions[0], TimeoutError)
        assert [outcome.value for outcome in caught.value.outcomes] == [0, 1, 2, 3]

    virtual(main())
    assert len(steps) == 1


async def test_an_async_generator_runs_in_one_task_from_its_begin_to_its_end(loop):
    variable = ContextVar("variable", default=0)
    tasks = []

    async def items():
        token = variable.set(1)
        try:
            async with asyncio.TaskGroup():
                while True:
                    tasks.append(asyncio.current_task())
                    yield len(tasks)
                    await asyncio.sleep(0)
        finally:
            tasks.append(asyncio.current_task())
            variable.reset(token)

    async with stream(double, items(), limit=5) as outcomes:
        async for outcome in outcomes:
            if outcome.index == 20:
                break
    assert len(tasks) > 20
    assert len(set(tasks)) == 1
    assert tasks[0].done()
    assert not other_tasks()


async def test_a_generator_runs_in_one_context(loop):
    variable = ContextVar("variable", default=0)

    def items():
        token = variable.set(1)
        yield from range(5)
        variable.reset(token)

    assert await map(double, items(), limit=2) == [0, 2, 4, 6, 8]
    assert variable.get() == 0


async def test_a_source_that_is_slow_to_close_can_be_cancelled(loop):
    async def items():
        try:
            while True:
                yield 1
        finally:
            await asyncio.Event().wait()

    async def fail(n):
        await asyncio.sleep(0)
        raise OSError

    mapping = asyncio.ensure_future(map(fail, items(), limit=2))
    await turns(50)
    assert not mapping.done()
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert not other_tasks()


async def test_an_async_generator_is_not_asked_before_an_item_is_wanted(loop):
    asked = 0

    async def items():
        nonlocal asked
        while True:
            asked += 1
            yield asked

    async def never(n):
        await asyncio.Event().wait()

    async with stream(never, items(), limit=3) as outcomes:
        await turns(50)
        assert asked == outcomes.report.taken == 3
