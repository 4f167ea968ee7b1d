"""Items gathered into calls: when a call is made, of what, and what becomes of each item whatever happens."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.flow.batches import Batch, NotABatch
from unwait.flow.calls import CallCancelled
from unwait.flow.faults import Overloaded
from unwait.flow.limits import Limits
from unwait.flow.retry import Retry

from .virtual_clock import Stuck, VirtualLoop

Virtual = Callable[[Coroutine[Any, Any, Any]], Any]


class Bad(Exception):
    """The error of a call that had bad items in it; `items` are all of the call's."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.items = items


@dataclass
class Service:
    """A function of lists that doubles, fails for what is in `bad`, and remembers its calls."""

    seconds: float = 0.0
    bad: set[Any] = field(default_factory=set)
    calls: list[list[Any]] = field(default_factory=list)
    ended: list[list[Any]] = field(default_factory=list)
    cancelled: list[list[Any]] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.calls.append(items)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled.append(items)
            raise
        finally:
            self.running -= 1
        if self.bad.intersection(items):
            raise Bad(items)
        self.ended.append(items)
        return [2 * item for item in items]


def now() -> float:
    return asyncio.get_running_loop().time()


def assert_nothing_left(loop: VirtualLoop) -> None:
    """No task and no timer."""
    assert not asyncio.all_tasks(loop)
    at = loop.time()
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())
    assert loop.time() == at, "a timer was left"


def runs(main: Coroutine[Any, Any, Any]) -> Any:
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(main)
        assert_nothing_left(loop)
        return result
    finally:
        loop.close()


async def outcomes(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


# When a call is made, and of what.


def test_a_full_batch_goes_at_once() -> None:
    async def main() -> None:
        service = Service()
        batch = Batch(service, size=3, max_wait=10, limit=2)
        started = now()
        assert await asyncio.gather(*map(batch, range(6))) == [0, 2, 4, 6, 8, 10]
        assert service.calls == [[0, 1, 2], [3, 4, 5]]
        assert now() == started

    runs(main())


def test_a_batch_goes_when_its_first_item_has_waited_long_enough() -> None:
    async def main() -> None:
        service = Service()
        batch = Batch(service, size=10, max_wait=0.05)
        started = now()
        first = asyncio.create_task(batch(1))
        await asyncio.sleep(0.04)
        second = asyncio.create_task(batch(2))
        await first
        assert now() - started == pytest.approx(0.05)
        assert await second == 4
        assert service.calls == [[1, 2]]

    runs(main())


def test_a_batch_goes_before_the_item_that_would_exceed_its_cost() -> None:
    async def main() -> None:
        service = Service()
        batch = Batch(service, max_wait=1, max_cost=10, cost=float)
        await asyncio.gather(*map(batch, [4, 5, 3, 8, 99, 1, 9]))
        assert service.calls == [[4, 5], [3], [8], [99], [1, 9]]

    runs(main())


def test_while_no_call_can_be_made_the_next_batch_fills_up() -> None:
    async def main() -> None:
        service = Service(seconds=1)
        batch = Batch(service, size=4, max_wait=0.01, limit=1)
        calls = [asyncio.create_task(batch(0))]
        for number in range(1, 4):
            await asyncio.sleep(0.1)
            calls.append(asyncio.create_task(batch(number)))
        await asyncio.gather(*calls)
        assert service.calls == [[0], [1, 2, 3]]
        assert service.most == 1

    runs(main())


def test_flush_does_not_wait_for_more() -> None:
    async def main() -> None:
        batch = Batch(Service(), max_wait=10)
        started = now()
        call = asyncio.create_task(batch(1))
        await asyncio.sleep(0)
        batch.flush()
        assert await call == 2
        assert now() == started

    runs(main())


def test_leaving_it_sends_what_waits() -> None:
    async def main() -> None:
        service = Service(seconds=1)
        async with Batch(service, max_wait=10) as batch:
            calls = [asyncio.create_task(batch(number)) for number in range(3)]
            await asyncio.sleep(0)
            started = now()
        assert now() - started == 1
        assert [call.result() for call in calls] == [0, 2, 4]
        with pytest.raises(RuntimeError, match="closed"):
            await batch(1)

    runs(main())


def test_while_there_is_no_hurry_only_full_batches_go() -> None:
    async def main() -> None:
        hold = True
        service = Service()
        batch = Batch(service, size=3, max_wait=0.1, hold=lambda: hold)
        calls = [asyncio.create_task(batch(number)) for number in range(4)]
        await asyncio.sleep(1)
        assert service.calls == [[0, 1, 2]]
        hold = False
        batch.proceed()
        await asyncio.wait(calls)
        assert service.calls == [[0, 1, 2], [3]]

    runs(main())


# Failures.


def test_a_failing_batch_is_halved_until_the_bad_item_stands_alone() -> None:
    async def main() -> None:
        service = Service(bad={5})
        batch = Batch(service, size=8, max_wait=1)
        results = await outcomes([batch(number) for number in range(8)])
        assert [result for result in results if not isinstance(result, Bad)] == [0, 2, 4, 6, 8, 12, 14]
        assert results[5].items == [5]
        assert [len(call) for call in service.calls] == [8, 4, 4, 2, 1, 1, 2]

    runs(main())


def test_all_bad_items_take_2n_minus_1_calls() -> None:
    async def main() -> None:
        service = Service(bad=set(range(64)))
        batch = Batch(service, limit=3)
        results = await outcomes([batch(number) for number in range(64)])
        assert [result.items for result in results] == [[number] for number in range(64)]
        assert len(service.calls) == 2 * 64 - 1

    runs(main())


@pytest.mark.parametrize(
    "error", [Overloaded(), TimeoutError(), type("Later", (Exception,), {"retry_after": 2.0})()]
)
def test_an_overload_is_not_halved_but_concerns_all_items(error: Exception) -> None:
    async def main() -> None:
        calls = 0

        async def overloaded(items: list[int]) -> list[int]:
            nonlocal calls
            calls += 1
            raise error

        batch = Batch(overloaded, size=4)
        assert await outcomes([batch(number) for number in range(4)]) == [error] * 4
        assert calls == 1

    runs(main())


def test_retries_are_made_of_the_whole_batch_with_a_permit_for_each_attempt_only() -> None:
    async def main() -> None:
        limits = Limits(concurrency=1)
        calls: list[list[int]] = []

        async def busy_at_first(items: list[int]) -> list[int]:
            calls.append(items.copy())
            await asyncio.sleep(1)
            items.pop()  # what it does with its list is its own affair
            if len(calls) < 3:
                raise Overloaded
            return [*items, 0]

        retry = Retry(5, base=4, random=lambda: 1.0)
        batch = Batch(busy_at_first, size=4, limits=limits, retry=retry)
        waiting = asyncio.gather(*(batch.outcome(number) for number in range(4)))
        free = []
        for _ in range(15):  # calls at 0, 5 and 14 s, of 1 s each
            await asyncio.sleep(0.5)
            permit = limits.try_acquire()
            free.append(permit is not None)
            if permit is not None:
                permit.release()
            await asyncio.sleep(0.5)
        assert free == [second not in (0, 5, 14) for second in range(15)]
        results = await waiting
        assert [result.value for result in results] == [0, 1, 2, 0]
        assert [result.attempts for result in results] == [3] * 4
        assert [result.waited for result in results] == [pytest.approx(12)] * 4
        assert calls == [[0, 1, 2, 3]] * 3

    runs(main())


def test_the_cost_of_a_call_is_the_sum_of_its_items() -> None:
    async def main() -> None:
        service = Service()
        limits = Limits(tokens="60/min")
        batch = Batch(service, size=3, cost=float, limits=limits, limit=9)
        started = now()
        await asyncio.gather(*map(batch, [10, 20, 20]))
        first = now() - started
        await asyncio.gather(*map(batch, [10, 10, 40]))
        assert now() - started - first > 30

    runs(main())


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([1], "returned 1 values for 3 items"),
        ([1, 2, 3, 4], "returned 4 values for 3 items"),
        ("abc", "not str"),
        ({1: 1, 2: 2, 3: 3}, "not dict"),
        ({1, 2, 3}, "not set"),
        (None, "not NoneType"),
        (iter([1, 2, 3]), "not list_iterator"),
    ],
)
def test_a_function_that_does_not_return_a_value_for_each_item_is_told_so_once(
    returned: Any, told: str
) -> None:
    """Halved, a sum over the batch would pass for the value of each item at last."""

    async def main() -> None:
        calls = 0

        async def wrong(items: list[int]) -> Any:
            nonlocal calls
            calls += 1
            return returned

        batch = Batch(wrong, size=3)
        results = await outcomes([batch(number) for number in range(3)])
        assert [type(result) for result in results] == [NotABatch] * 3
        assert told in str(results[0])
        assert "wrong" in str(results[0])
        assert calls == 1

    runs(main())


def test_a_function_that_is_not_async_is_told_so() -> None:
    async def main() -> None:
        batch: Batch[int, int] = Batch(lambda items: items, size=2)  # type: ignore[arg-type, return-value]
        with pytest.raises(NotABatch, match="must be async, and returned list"):
            await batch(1)

    runs(main())


@pytest.mark.parametrize("cost", [-1, math.nan, math.inf, "text"])
def test_a_cost_that_makes_no_sense_is_the_error_of_its_item(cost: Any) -> None:
    async def main() -> None:
        batch = Batch(Service(), size=2, cost=lambda item: cost if item == 1 else 1, max_cost=5)
        results = await outcomes([batch(0), batch(1), batch(2)])
        assert results[0::2] == [0, 4]
        assert results[1].__notes__ == ["raised by cost="]

    runs(main())


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"limit": 0},
        {"max_wait": -1},
        {"max_wait": math.inf},
        {"max_cost": 3},
        {"max_cost": 0, "cost": float},
        {"timeout": 0},
    ],
)
def test_what_makes_no_sense_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        Batch(Service(), **options)


# Cancellation.


def test_a_cancelled_caller_that_was_not_sent_is_left_out() -> None:
    async def main() -> None:
        service = Service()
        batch = Batch(service, size=3, max_wait=1, max_cost=9, cost=float)
        calls = [asyncio.create_task(batch(number)) for number in (1, 7)]
        await asyncio.sleep(0.1)
        calls[1].cancel()
        await asyncio.sleep(0)
        calls += [asyncio.create_task(batch(number)) for number in (3, 4)]
        await asyncio.wait(calls)
        assert service.calls == [[1, 3, 4]], "neither its place nor its cost is counted any more"
        assert calls[1].cancelled()

    runs(main())


def test_when_all_callers_are_cancelled_before_it_goes_nothing_is_left() -> None:
    async def main() -> None:
        service = Service(seconds=1)
        batch = Batch(service, size=2, max_wait=5, limit=1)
        calls = [asyncio.create_task(batch(number)) for number in range(5)]
        await asyncio.sleep(0.5)
        for call in calls[2:]:
            call.cancel()
        await asyncio.wait(calls)
        assert service.calls == [[0, 1]]
        assert await batch(9) == 18

    runs(main())


def test_a_running_call_is_cancelled_with_its_last_caller_and_not_before() -> None:
    async def main() -> None:
        service = Service(seconds=1)
        batch = Batch(service, size=2)
        first, second = (asyncio.create_task(batch(number)) for number in range(2))
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0)
        assert service.cancelled == []
        second.cancel()
        await asyncio.wait([first, second])
        await asyncio.sleep(0)
        assert service.cancelled == [[0, 1]]

    runs(main())


def test_a_cancelled_caller_does_not_take_part_in_the_halves() -> None:
    async def main() -> None:
        service = Service(seconds=1, bad={0})
        batch = Batch(service, size=4)
        calls = [asyncio.create_task(batch(number)) for number in range(4)]
        await asyncio.sleep(0.5)
        calls[1].cancel()
        await asyncio.wait(calls)
        assert service.calls == [[0, 1, 2, 3], [0, 2], [0], [2], [3]]
        assert [call.result() for call in calls[2:]] == [4, 6]

    runs(main())


def test_a_function_that_is_cancelled_from_inside_fails_and_cancels_no_caller() -> None:
    async def main() -> None:
        async def cancelled(items: list[int]) -> list[int]:
            if 1 in items:
                raise asyncio.CancelledError
            return items

        batch = Batch(cancelled, size=3)
        results = await outcomes([batch(number) for number in range(3)])
        assert isinstance(results[1], CallCancelled)
        assert results[0::2] == [0, 2]

    runs(main())


def test_a_call_whose_task_is_cancelled_by_somebody_else_leaves_no_caller_waiting() -> None:
    async def main() -> None:
        batch = Batch(Service(seconds=1), size=2)
        mine = asyncio.all_tasks()
        calls = [asyncio.create_task(batch(number)) for number in range(2)]
        await asyncio.sleep(0.5)
        (task,) = asyncio.all_tasks() - mine - set(calls)
        task.cancel()
        assert [type(result) for result in await outcomes(calls)] == [CallCancelled] * 2  # type: ignore[arg-type]

    runs(main())


def test_an_exit_from_inside_leaves_no_caller_waiting() -> None:
    async def leaves(items: list[int]) -> list[int]:
        raise SystemExit(3)

    batch = Batch(leaves, size=2)
    loop = VirtualLoop()
    calls = [loop.create_task(batch(number)) for number in range(2)]
    with pytest.raises(SystemExit):
        loop.run_until_complete(asyncio.wait(calls))
    results = loop.run_until_complete(outcomes(calls))  # type: ignore[arg-type]
    assert [type(result) for result in results] == [CallCancelled] * 2
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
    assert_nothing_left(loop)
    loop.close()


def test_cancelling_the_closing_ends_everything() -> None:
    async def main() -> None:
        service = Service(seconds=100, bad={0})
        batch = Batch(service, size=2, limit=1)
        calls = [asyncio.create_task(batch(number)) for number in range(4)]
        await asyncio.sleep(1)
        closing = asyncio.create_task(batch.aclose())
        await asyncio.sleep(1)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert [type(result) for result in await outcomes(calls)] == [CallCancelled] * 4  # type: ignore[arg-type]
        assert service.calls == [[0, 1]]

    runs(main())


def test_the_next_event_loop_can_use_it() -> None:
    batch = Batch(Service(seconds=1), size=2)

    async def cut_off() -> None:
        calls = [asyncio.create_task(batch(number)) for number in range(5)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)

    async def main() -> None:
        assert await asyncio.gather(*map(batch, range(5))) == [0, 2, 4, 6, 8]

    runs(cut_off())
    runs(main())


# On the real loops.


async def test_it_works_on_a_real_loop(loop: Any) -> None:
    service = Service(bad={17})
    async with Batch(service, size=8, max_wait=0.001, limit=4) as batch:
        results = await outcomes([batch(number) for number in range(100)])
    assert results[17].items == [17]
    assert results[:17] + results[18:] == [2 * number for number in range(100) if number != 17]


# Whatever comes in whatever order.


@dataclass
class Item:
    number: int
    arrives: float
    cost: int
    bad: bool
    cancelled: float | None  # seconds after it arrived


items = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.integers(0, 6),
        st.booleans() | st.just(False),
        st.none() | st.none() | st.integers(0, 40),
    ),
    max_size=25,
).map(
    lambda drawn: [
        Item(number, arrives / 10, cost, bad, None if cancelled is None else cancelled / 10)
        for number, (arrives, cost, bad, cancelled) in enumerate(drawn)
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    items=items,
    size=st.integers(1, 8),
    max_wait=st.sampled_from([0, 0.1, 1]),
    max_cost=st.none() | st.integers(1, 12),
    limit=st.integers(1, 3),
    seconds=st.sampled_from([0, 0.3, 1]),
)
def test_each_item_has_exactly_its_own_outcome(
    items: list[Item], size: int, max_wait: float, max_cost: int | None, limit: int, seconds: float
) -> None:
    service = Service(seconds=seconds, bad={item.number for item in items if item.bad})
    batch: Batch[int, int] = Batch(
        service,
        size=size,
        max_wait=max_wait,
        max_cost=max_cost,
        cost=lambda number: items[number].cost,
        limit=limit,
    )

    async def caller(item: Item) -> Any:
        await asyncio.sleep(item.arrives)
        call = asyncio.create_task(batch(item.number))
        if item.cancelled is not None:
            asyncio.get_running_loop().call_later(item.cancelled, call.cancel)
        await asyncio.wait([call])
        return "cancelled" if call.cancelled() else call.exception() or call.result()

    async def main() -> list[Any]:
        async with asyncio.timeout(1000):
            return await asyncio.gather(*map(caller, items))

    loop = VirtualLoop()
    try:
        results = loop.run_until_complete(main())
        loop.run_until_complete(asyncio.sleep(10))  # cancelling timers of the test itself
        assert_nothing_left(loop)
    finally:
        loop.close()

    succeeded = Counter(number for call in service.ended for number in call)
    alone = Counter(call[0] for call in service.calls if len(call) == 1)
    for item, result in zip(items, results, strict=True):
        if result == "cancelled":
            assert item.cancelled is not None
        elif item.bad:
            assert result.items == [item.number]
            assert alone[item.number] == 1
        else:
            assert result == 2 * item.number
            assert succeeded[item.number] == 1
    assert max(succeeded.values(), default=0) <= 1
    assert all(len(call) <= size and len(set(call)) == len(call) for call in service.calls)
    if max_cost is not None:
        costs = [sum(items[number].cost for number in call) for call in service.calls if len(call) > 1]
        assert max(costs, default=0) <= max_cost
    assert service.most <= limit
    assert len(service.calls) <= max(0, 2 * len(items) - 1)


# Limits that the callers of a batch hold, and its calls need.


def test_callers_that_hold_permits_of_the_limits_of_the_batch_do_not_keep_it_out() -> None:
    limits = Limits(concurrency=2)
    service = Service(seconds=0.1)
    batch = Batch(service, size=2, max_wait=0.01, limit=3, limits=limits)

    async def caller(number: int) -> int:
        with await limits.acquire():
            result: int = await batch(number)
            return result

    async def main() -> list[int]:
        async with asyncio.timeout(1000):
            return await asyncio.gather(*map(caller, range(20)))

    loop = VirtualLoop()
    try:
        assert loop.run_until_complete(main()) == [2 * number for number in range(20)]
        loop.run_until_complete(asyncio.sleep(1000))
        assert_nothing_left(loop)
    finally:
        loop.close()
    assert service.most <= 2
    assert "0 in use, 0 waiting" in repr(limits)


def test_a_call_runs_in_the_context_of_a_caller_that_waits_for_it() -> None:
    name: ContextVar[str] = ContextVar("name")
    seen: list[tuple[str, list[int]]] = []

    async def service(items: list[int]) -> list[int]:
        seen.append((name.get(), items))
        await asyncio.sleep(1)
        return items

    batch = Batch(service, size=1)

    async def caller(number: int) -> None:
        name.set(f"caller {number}")
        await batch(number)

    async def main() -> None:
        await asyncio.gather(*map(caller, range(3)))

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert seen == [(f"caller {number}", [number]) for number in range(3)]
