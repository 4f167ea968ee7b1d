"""`map` and `stream`: order, bounds, errors, clean-up, bad input."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest

from unwait.flow.calls import CallCancelled
from unwait.flow.fanout import map, stream
from unwait.flow.faults import Overloaded
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError
from unwait.flow.retry import Retry


async def double(n):
    await asyncio.sleep(0)
    return 2 * n


async def even_only(n):
    await asyncio.sleep(0)
    if n % 2:
        raise OSError(f"{n} is odd")
    return n


def other_tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


class Running:
    """A function that waits until it is let go, and counts how many calls of it there are."""

    def __init__(self):
        self.now = self.most = self.ended = 0
        self.go = asyncio.Event()

    async def __call__(self, item):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
            return item
        finally:
            self.now -= 1
            self.ended += 1


async def test_values_come_in_the_order_of_the_items(loop):
    async def slow_first(n):
        for _ in range(10 - n):
            await asyncio.sleep(0)
        return n

    assert await map(slow_first, range(10), limit=10) == list(range(10))


async def test_no_items_give_no_results(loop):
    results = await map(double, [])
    assert results == []
    assert results.report.taken == 0
    assert [outcome async for outcome in stream(double, [])] == []


async def test_items_may_come_from_an_async_generator(loop):
    async def numbers():
        for n in range(50):
            if n % 7 == 0:
                await asyncio.sleep(0)
            yield n

    assert await map(double, numbers(), limit=8) == [2 * n for n in range(50)]


async def test_results_tell_of_the_run(loop):
    results = await map(even_only, range(10), errors="return")
    assert results.report.total == 10
    assert (results.report.done, results.report.failed, results.report.attempts) == (5, 5, 10)
    assert results.report.causes["OSError: 3 is odd"] == 1
    assert [outcome.item for outcome in results.outcomes] == list(range(10))
    assert "5 done, 5 failed" in str(results.report)


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_never_more_calls_or_tasks_than_the_limit(loop, limit):
    running = Running()
    mapping = asyncio.ensure_future(map(running, iter(range(20)), limit=limit))
    await turns()
    assert running.now == limit
    assert len(other_tasks() - {mapping}) == limit
    running.go.set()
    await mapping
    assert running.most == limit


async def test_few_items_start_few_tasks(loop):
    running = Running()
    mapping = asyncio.ensure_future(map(running, [1, 2], limit=1000))
    await turns()
    assert len(other_tasks() - {mapping}) <= 3
    running.go.set()
    await mapping


async def test_infinite_items_are_pulled_as_calls_end(loop):
    pulled = 0

    def forever():
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    seen = 0
    async with stream(double, forever(), limit=5) as outcomes:
        async for _ in outcomes:
            seen += 1
            assert pulled <= seen + 2 * 5
            if seen == 100:
                break


async def test_a_slow_consumer_slows_the_run(loop):
    async with stream(double, iter(range(10_000)), limit=4) as outcomes:
        await anext(outcomes)
        await turns(200)
        assert outcomes.report.taken <= 1 + 2 * 4


async def test_calls_that_never_suspend_let_others_run(loop):
    async def at_once(n):
        return n

    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    await map(at_once, range(10_000), limit=2)
    ticking.cancel()
    assert ticks > 50


async def test_each_suspending_call_has_its_own_task_and_context(loop):
    from contextvars import ContextVar

    mine = ContextVar("mine", default=None)
    tasks = set()

    async def leave_a_mark(n):
        assert mine.get() is None
        mine.set(n)
        await asyncio.sleep(0)
        tasks.add(asyncio.current_task())
        assert mine.get() == n

    async def leave_a_mark_at_once(n):
        assert mine.get() is None
        mine.set(n)

    await map(leave_a_mark, range(10), limit=3)
    assert len(tasks) == 10
    await map(leave_a_mark_at_once, range(10), limit=3)
    assert mine.get() is None


async def test_a_failure_cancels_the_rest_and_keeps_what_was_done(loop):
    running = Running()

    async def fail_at_five(n):
        if n < 5:
            return n
        if n == 5:
            await turns()
            raise OSError("five")
        return await running(n)

    with pytest.raises(MapError) as caught:
        await map(fail_at_five, iter(range(100)), limit=3)
    assert [outcome.value for outcome in caught.value.outcomes if outcome.ok] == [0, 1, 2, 3, 4]
    assert [str(error) for error in caught.value.exceptions] == ["five"]
    assert caught.value.report.failed == 1
    assert running.now == 0
    assert running.ended == 2
    assert not other_tasks()


async def test_a_group_that_is_split_keeps_its_outcomes(loop):
    caught = []
    try:
        await map(even_only, [1])
    except* OSError as group:
        caught.append(group)
    assert isinstance(caught[0], MapError)
    assert len(caught[0].outcomes) == 1


async def test_errors_may_stand_in_their_places_or_be_left_out(loop):
    returned = await map(even_only, range(4), errors="return")
    assert [returned[0], returned[2]] == [0, 2]
    assert isinstance(returned[1], OSError)
    assert await map(even_only, range(4), errors="skip") == [0, 2]


async def test_leaving_a_stream_early_leaves_nothing_behind(loop):
    running = Running()

    async def first_at_once(n):
        return n if n == 0 else await running(n)

    async for outcome in stream(first_at_once, iter(range(100)), limit=10):
        assert outcome.item == 0
        break
    del outcome
    gc.collect()
    await turns()
    assert running.now == 0
    assert not other_tasks()


async def test_cancelling_from_outside_leaves_nothing_behind(loop):
    running = Running()
    limits = Limits(concurrency=3)
    mapping = asyncio.ensure_future(map(running, iter(range(100)), limit=5, limits=limits, timeout=1000))
    await turns()
    assert running.now == 3
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert running.now == 0
    assert not other_tasks()
    permits = [limits.try_acquire() for _ in range(3)]
    assert None not in permits
    for permit in permits:
        permit.refund()


async def test_a_function_that_resists_its_cancellation_is_waited_for(loop):
    let_go = asyncio.Event()
    ended = []

    async def stubborn(n):
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
            ended.append(n)

    mapping = asyncio.ensure_future(map(stubborn, range(3)))
    await turns()
    mapping.cancel()
    await turns()
    mapping.cancel()
    await turns()
    assert not mapping.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert sorted(ended) == [0, 1, 2]


async def test_items_that_raise_end_the_run_after_what_was_taken(loop):
    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    with pytest.raises(MapError) as caught:
        await map(double, items(), errors="return")
    assert [str(error) for error in caught.value.exceptions] == ["no third"]
    assert [outcome.value for outcome in caught.value.outcomes] == [2, 4]
    outcomes = stream(double, items())
    assert [(await anext(outcomes)).value for _ in range(2)] == [2, 4]
    with pytest.raises(ValueError, match="no third") as raised:
        await anext(outcomes)
    assert raised.value.__notes__ == ["raised by the items, after 2 of them"]


async def test_async_items_that_raise_end_the_run_too(loop):
    async def items():
        yield 1
        raise ValueError("no second")

    with pytest.raises(MapError) as caught:
        await map(double, items())
    assert [outcome.value for outcome in caught.value.outcomes] == [2]


async def test_an_async_generator_is_closed_when_the_run_ends_early(loop):
    closed = []

    async def items():
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async with stream(double, items(), limit=3) as outcomes:
        await anext(outcomes)
    assert closed == [True]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"limit": 0}, ValueError, "limit must be at least 1, and is 0"),
        ({"limit": -3}, ValueError, "limit must be at least 1, and is -3"),
        ({"limit": True}, TypeError, "limit must be a whole number"),
        ({"limit": "many"}, TypeError, 'a whole number or "auto"'),
        ({"rate": "-5/s"}, ValueError, "-5/s"),
        ({"rate": "fast"}, ValueError, "fast"),
        ({"tokens": "10/s"}, ValueError, "tokens= needs cost="),
        ({"cost": 3}, ValueError, "give tokens= or limits="),
        ({"cost": "x", "tokens": "10/s"}, TypeError, "cost= must be a number or a function"),
        ({"limits": "5/s"}, TypeError, "limits= must be a Limits or a list of them, and not str"),
        ({"limits": 5}, TypeError, "and not int"),
        ({"timeout": "5"}, TypeError, "timeout is a number of seconds, or None, and not str"),
        ({"grace": None}, TypeError, "grace is a number of seconds"),
        ({"key": "id", "journal": "run.db"}, TypeError, "key= must be a function"),
        ({"timeout": 0}, ValueError, "timeout is in seconds"),
        ({"item_timeout": -1}, ValueError, "item_timeout is in seconds"),
        ({"retry": -1}, ValueError, "retries must not be negative"),
        ({"retry": 2.5}, TypeError, "retries must be a whole number"),
        ({"errors": "ignore"}, ValueError, 'errors must be "raise", "return" or "skip"'),
        ({"key": str}, ValueError, "give journal= too"),
        ({"where": "cloud"}, ValueError, "where must be"),
        ({"grace": -1}, ValueError, "grace is in seconds"),
    ],
    ids=str,
)
async def test_bad_parameters_are_named(loop, arguments, error, words):
    with pytest.raises(error, match=words):
        await map(double, [1], **arguments)


@pytest.mark.parametrize(
    ("items", "words"),
    [("abc", "items is a str"), (7, "items must be an iterable"), (None, "must be an iterable")],
)
async def test_items_that_are_none_are_named(loop, items, words):
    with pytest.raises(TypeError, match=words):
        await map(double, items)


async def test_a_function_that_is_not_async_is_named(loop):
    def plain(n):
        return n

    with pytest.raises(TypeError, match=r"plain returned int, which can't be awaited.*where=\"thread\""):
        await map(plain, [1])
    with pytest.raises(TypeError, match="func must be a function"):
        await map(7, [1])


async def test_a_function_that_raises_before_it_can_be_awaited_fails_its_item(loop):
    results = await map(lambda n: double(6 // n), [1, 0, 3], errors="return")
    assert isinstance(results[1], ZeroDivisionError)
    assert [results[0], results[2]] == [12, 4]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_an_eager_task_factory_breaks_no_bound(loop):
    loop.set_task_factory(asyncio.eager_task_factory)
    running = Running()
    mapping = asyncio.ensure_future(map(running, iter(range(5000)), limit=3))
    await turns()
    assert running.now == 3
    running.go.set()
    await mapping
    assert running.most == 3


async def test_a_function_may_return_any_awaitable(loop):
    assert await map(lambda n: asyncio.ensure_future(double(n)), [1, 2]) == [2, 4]
    assert await map(lambda n: double(n), [1, 2], retry=1) == [2, 4]


async def test_a_call_cancelled_from_inside_is_its_items_failure(loop):
    async def cancelled(n):
        if n == 1:
            raise asyncio.CancelledError
        await asyncio.sleep(0)
        return n

    for options in ({}, {"retry": Retry(0)}):
        results = await map(cancelled, range(3), errors="return", **options)
        assert isinstance(results[1], CallCancelled)
        assert [results[0], results[2]] == [0, 2]


async def test_a_stream_goes_on_past_a_task_that_cancels_itself(loop):
    async def cancel_self(n):
        if n % 2:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return n

    for limit in (1, 3):
        outcomes = [outcome async for outcome in stream(cancel_self, range(4), limit=limit)]
        assert {outcome.index: outcome.ok for outcome in outcomes} == {0: True, 1: False, 2: True, 3: False}


async def test_a_task_that_cancels_itself_is_its_items_failure(loop):
    async def cancel_self(n):
        if n == 1:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return n

    results = await map(cancel_self, range(6), limit=2, errors="return")
    assert isinstance(results[1], CallCancelled)
    assert [results[n] for n in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]


async def test_nested_maps_share_limits_without_waiting_for_themselves(loop):
    limits = Limits(concurrency=2)
    running = most = 0

    async def leaf(n):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return n

    async def branch(n):
        return sum(await map(leaf, range(n), limits=limits))

    assert await map(branch, range(6), limits=limits) == [0, 0, 1, 3, 6, 10]
    assert most == 2


def test_limits_serve_one_loop_after_the_other(loop_factory):
    limits = Limits(concurrency=2, rate="1000/s")
    for _ in range(3):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(map(double, range(5), limits=limits)) == [0, 2, 4, 6, 8]


def test_time_outs_bound_the_attempt_and_the_item(virtual):
    calls = 0

    async def hang(n):
        nonlocal calls
        calls += 1
        await asyncio.sleep(1000)

    async def main():
        clock = asyncio.get_running_loop().time
        started = clock()
        each = await map(hang, [1], timeout=3, retry=Retry(2, base=0), errors="return")
        assert str(each[0]) == "timed out after 3 s"
        assert clock() - started == pytest.approx(9)
        started = clock()
        whole = await map(hang, [1], timeout=3, item_timeout=7, retry=Retry(9, base=0), errors="return")
        assert str(whole[0]) == "not done within 7 s (3 attempts)"
        assert clock() - started == pytest.approx(7)

    virtual(main())
    assert calls == 6


def test_a_permit_covers_exactly_one_attempt(virtual):
    limits = Limits(concurrency=1)
    order = []

    async def fail_first(n):
        order.append(n)
        await asyncio.sleep(1)
        if order.count(n) == 1:
            raise OSError("again")
        return n

    async def main():
        retry = Retry(1, base=60, random=lambda: 1.0)
        results = await map(fail_first, [1, 2, 3], limits=limits, retry=retry)
        assert results == [1, 2, 3]
        # While one is in back-off the others have their turn.
        assert order == [1, 2, 3, 1, 2, 3]
        assert results.report.backing_off == pytest.approx(180)
        assert results.outcomes[0].attempts == 2
        assert results.report.retried == 3

    virtual(main())


def test_where_the_time_went(virtual):
    async def call(n):
        await asyncio.sleep(2)

    async def main():
        results = await map(call, range(4), limits=Limits(concurrency=1))
        assert results.report.calling == pytest.approx(8)
        assert results.report.limited == pytest.approx(2 + 4 + 6)
        assert results.report.elapsed == pytest.approx(8)
        assert results.report.p50 == pytest.approx(4)
        assert results.report.p95 == pytest.approx(8)

    virtual(main())


async def test_a_run_that_cannot_begin_leaves_nothing_open(loop, tmp_path):
    path = tmp_path / "run.db"
    for begin in (
        lambda: map(double, [1], journal=path, progress="yes"),
        lambda: anext(stream(double, [1], journal=path, progress="yes")),
    ):
        with pytest.raises(TypeError):
            await begin()
    assert await map(double, [1], journal=path) == [2]


def test_an_automatic_limit_follows_what_the_other_side_bears(virtual):
    running = refused = 0
    bears = 40

    async def serve(n):
        nonlocal running, refused
        running += 1
        try:
            await asyncio.sleep(0.1)
            if running > bears:
                refused += 1
                raise Overloaded
            return n
        finally:
            running -= 1

    async def main():
        nonlocal bears
        seen = {}
        async with stream(serve, range(6000), limit="auto", retry=Retry(50, base=0.05)) as outcomes:
            async for outcome in outcomes:
                assert outcome.ok
                seen[len(seen)] = outcomes.report.in_force
                if len(seen) == 3000:
                    bears = 15
        assert seen[0] < 25
        assert all(30 <= seen[n] <= 45 for n in range(2000, 3000))
        assert all(10 <= seen[n] <= 20 for n in range(4000, 6000))
        assert refused < 300

    virtual(main())


@pytest.mark.parametrize("limit", [1, 50])
def test_a_rate_is_kept_and_used_with_any_limit(virtual, limit):
    times = []

    async def call(n):
        times.append(asyncio.get_running_loop().time())

    virtual(map(call, range(100), limit=limit, rate="10/s"))
    assert max(sum(first <= each < first + 1 for each in times) for first in times) <= 10
    assert times[-1] - times[0] <= 10.1
