"""`map` and `stream`: how a stream ends, what stays alive after a run, and what its report says then."""

from __future__ import annotations

import asyncio
import copy
import errno
import gc
import os
import pickle
import sqlite3
import threading
import weakref

import pytest

from unwait.flow.fanout import map, stream
from unwait.flow.journal import JournalError
from unwait.flow.journal_session import Session
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError
from unwait.flow.retry import Retry
from unwait.flow.stats import Samples


async def double(n):
    await asyncio.sleep(0)
    return 2 * n


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def other_tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}


# The life of a stream.


async def test_a_stream_that_was_closed_before_it_began_does_not_begin(loop):
    outcomes = stream(double, range(3))
    await outcomes.aclose()
    assert [outcome async for outcome in outcomes] == []
    async with outcomes:
        assert not other_tasks()


async def test_a_stream_that_cannot_begin_says_so_each_time(loop, tmp_path):
    path = tmp_path / "run.db"
    path.write_text("something else, and longer than nothing")
    outcomes = stream(double, range(3), journal=path)
    with pytest.raises(JournalError):
        await anext(outcomes)
    async with asyncio.timeout(5):
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)
        await outcomes.aclose()
    assert not other_tasks()


async def test_a_call_may_close_the_stream_that_makes_it(loop):
    ended = 0

    async def close_at_five(n):
        nonlocal ended
        try:
            await asyncio.sleep(0)
            if n == 5:
                await outcomes.aclose()
            return n
        finally:
            ended += 1

    outcomes = stream(close_at_five, iter(range(1000)), limit=3)
    async with asyncio.timeout(5):
        seen = [outcome.item async for outcome in outcomes]
    assert set(range(4)) <= set(seen) <= set(range(8))
    await turns()
    assert not other_tasks()
    assert ended == outcomes.report.taken


class Broken(Exception):
    pass


@pytest.mark.parametrize(
    "end", ["whole", "failed", "source failed", "cancelled", "left", "interrupted source"]
)
@pytest.mark.parametrize("where", [None, "thread"])
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
async def test_whatever_the_end_no_task_thread_or_descriptor_is_left(loop, tmp_path, end, where):
    async def call(n):
        await asyncio.sleep(0)
        if end == "failed" and n == 20:
            raise Broken
        return n

    def blocking(n):
        if end == "failed" and n == 20:
            raise Broken
        return n

    async def items():
        for n in range(40):
            if end == "source failed" and n == 20:
                raise Broken
            if end == "interrupted source" and n == 20:
                raise asyncio.CancelledError
            yield n

    function = call if where is None else blocking
    options = {"limit": 4, "where": where, "timeout": 60, "retry": 1}

    async def run(journal):
        async with asyncio.timeout(20):
            if end == "left":
                async with stream(function, items(), journal=journal, **options) as outcomes:
                    await anext(outcomes)
                return
            running = asyncio.ensure_future(map(function, items(), journal=journal, **options))
            if end == "cancelled":
                await turns(30)
                running.cancel()
            await asyncio.wait([running])
            if end == "whole":
                assert running.result() == list(range(40))
            elif end == "cancelled":
                assert running.cancelled()
            else:
                assert isinstance(running.exception(), MapError)

    await run(tmp_path / "first.db")  # loads what is loaded on first use
    threads, descriptors = threading.enumerate(), os.listdir("/proc/self/fd")
    await run(tmp_path / "second.db")
    assert not other_tasks()
    for thread in threading.enumerate():
        if thread.name == "unwait-journal":
            thread.join(5)  # its last step tells the loop that it is at its end
    assert threading.enumerate() == [thread for thread in threads if thread.is_alive()]
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.db", "second.db"]


async def test_a_stream_may_be_closed_while_it_is_waited_for(loop):
    async def never(n):
        await asyncio.Event().wait()

    outcomes = stream(never, range(3))
    waiting = [asyncio.ensure_future(anext(outcomes, "ended")) for _ in range(2)]
    await turns()
    await asyncio.gather(outcomes.aclose(), outcomes.aclose())
    assert await asyncio.gather(*waiting) == ["ended", "ended"]
    await outcomes.aclose()
    assert await anext(outcomes, "ended") == "ended"
    assert not other_tasks()


async def test_two_consumers_share_a_stream(loop):
    outcomes = stream(double, range(100), limit=5)

    async def consume():
        return [outcome.value async for outcome in outcomes]

    first, second = await asyncio.gather(consume(), consume())
    assert sorted(first + second) == [2 * n for n in range(100)]


async def test_a_stream_dropped_in_another_thread_is_closed_in_its_loop(loop):
    ended = asyncio.Event()

    async def never(n):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    outcomes = [stream(never, range(3))]
    await outcomes[0].__aenter__()
    await turns()
    thread = threading.Thread(target=outcomes.clear)
    thread.start()
    thread.join()
    await asyncio.wait_for(ended.wait(), 5)
    await turns()
    assert not other_tasks()


def test_a_stream_dropped_after_its_loop_is_nobodys_business(loop_factory):
    async def begin():
        outcomes = stream(double, range(100), limit=2)
        await anext(outcomes)
        return outcomes

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        outcomes = runner.run(begin())
    del outcomes
    gc.collect()


async def test_a_source_that_fails_to_close_takes_no_outcome_away(loop):
    async def items():
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            raise ValueError("the source's own")

    async def fail(n):
        await asyncio.sleep(0)
        raise OSError

    with pytest.raises(MapError) as caught:
        await map(fail, items(), limit=1)
    assert {type(error) for error in caught.value.exceptions} == {ValueError, OSError}
    assert caught.value.outcomes


# What stays alive.


class Thing:
    pass


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "options", [{}, {"retry": 0, "timeout": 9, "item_timeout": 9}, {"errors": "return"}], ids=str
)
async def test_what_a_run_held_goes_with_its_results(loop, no_collector, options):
    async def give(thing):
        await asyncio.sleep(0)
        made = Thing()
        alive.append(weakref.ref(made))
        return made

    items = [Thing() for _ in range(5)]
    alive = [weakref.ref(item) for item in items]
    results = await map(give, items, limit=2, **options)
    report = results.report
    del items, results
    await turns(3)
    assert [ref() for ref in alive] == [None] * 10
    assert report.done == 5


@pytest.mark.parametrize(
    "options", [{}, {"retry": Retry(1, base=0), "timeout": 9, "item_timeout": 9}], ids=str
)
async def test_an_error_that_is_kept_keeps_nothing_else_of_the_run(loop, no_collector, options):
    async def fail(pair):
        await asyncio.sleep(0)
        if pair[0] == 3:
            raise OSError
        return pair[1]

    things = [Thing() for _ in range(5)]
    alive = [weakref.ref(thing) for thing in things]
    results = await map(fail, list(enumerate(things)), limit=2, errors="return", **options)
    error = results[3]
    del things, results
    await turns(3)
    assert [ref() is None for ref in alive] == [True, True, True, False, True]
    del error
    assert alive[3]() is None


@pytest.mark.parametrize("options", [{}, {"retry": Retry(1, base=0), "timeout": 9}], ids=str)
async def test_a_stream_keeps_nothing_of_what_it_gave(loop, no_collector, options):
    async def fail_some(n):
        await asyncio.sleep(0)
        made = Thing()
        alive.append(weakref.ref(made))
        if n % 3 == 0:
            raise OSError
        return made

    alive = []
    async with stream(fail_some, range(100), limit=3, **options) as outcomes:
        async for outcome in outcomes:
            del outcome
            assert sum(ref() is not None for ref in alive) <= 2 * 3
    assert len(alive) >= 100


async def test_results_and_errors_can_be_pickled_and_copied(loop):
    results = await map(double, range(3), limits=Limits(concurrency=2))
    again = pickle.loads(pickle.dumps(results))
    assert again == copy.copy(results) == results
    assert again.report.done == 3
    assert again.report.elapsed == results.report.elapsed
    assert again.report.in_force == 2
    assert [outcome.value for outcome in again.outcomes] == [0, 2, 4]
    with pytest.raises(MapError) as caught:
        await map(double, ["no", None], limit=1)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, MapError)
    assert error.message == caught.value.message
    assert len(error.outcomes) == len(caught.value.outcomes)
    assert error.report.failed == 1


# Numbers.


def test_the_time_of_attempts_that_were_cut_off_is_counted(virtual):
    async def hang(n):
        await asyncio.sleep(1000)

    async def fail(n):
        raise OSError

    async def main():
        results = await map(hang, [1], item_timeout=7, errors="return")
        assert results.report.calling == pytest.approx(7)
        assert results.report.running == 0
        retry = Retry(3, base=60, random=lambda: 1.0)
        results = await map(fail, [1], retry=retry, item_timeout=7, errors="return")
        assert results.report.backing_off == pytest.approx(7)
        assert results.outcomes[0].waited == pytest.approx(7)

    virtual(main())


@pytest.mark.parametrize("wrong", [{"on": [OSError]}, {"on": None}, {"after": 3}], ids=str)
def test_a_retry_that_could_only_fail_later_is_refused(wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
        Retry(3, **wrong)


def test_a_union_of_exception_types_may_be_retried():
    retry = Retry(3, on=OSError | KeyError)
    assert retry.delay(KeyError(), 1, 0, 0) is not None
    assert retry.delay(ValueError(), 1, 0, 0) is None


async def test_nothing_is_running_once_a_run_is_over(loop):
    async def fail_first(n):
        if n == 0:
            await turns()
            raise OSError
        await asyncio.Event().wait()

    with pytest.raises(MapError) as caught:
        await map(fail_first, range(5))
    report = caught.value.report
    assert (report.taken, report.failed, report.running) == (5, 1, 0)


def test_percentiles_are_those_of_the_nearest_rank():
    samples = Samples()
    for n in range(1, 101):
        samples.add(n)
    assert [samples.percentile(share) for share in (0, 0.5, 0.95, 1)] == [1, 50, 95, 100]
    for n in range(101, 50_001):
        samples.add(n)
    assert samples.percentile(0.5) == pytest.approx(25_000, rel=0.01)
    assert samples.percentile(0.95) == pytest.approx(47_500, rel=0.01)


# A journal that breaks.


async def test_values_that_a_broken_journal_did_not_take_are_not_lost(loop, tmp_path, monkeypatch):
    store, stores = Session._store, 0

    def fill_up(self, rows):
        nonlocal stores
        stores += 1
        if stores > 1:
            raise sqlite3.OperationalError("database or disk is full") from OSError(errno.ENOSPC, "full")
        store(self, rows)

    monkeypatch.setattr(Session, "_store", fill_up)
    made = []

    async def call(n):
        await asyncio.sleep(0)
        made.append(n)
        return n

    with pytest.raises(MapError, match="the run ended early") as caught:
        await map(call, iter(range(10_000)), limit=5, journal=tmp_path / "run.db", errors="return")
    assert any(isinstance(error, JournalError) for error in caught.value.exceptions)
    outcomes = caught.value.outcomes
    assert sorted(outcome.item for outcome in outcomes) == sorted(made)
    assert all(outcome.value == outcome.item for outcome in outcomes)
    assert any(outcome.ok for outcome in outcomes)
    assert all(isinstance(outcome.error, JournalError) for outcome in outcomes if not outcome.ok)
