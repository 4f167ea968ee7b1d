"""Retries: which errors, how many, how long after, within which budget."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.flow.calls import call
from unwait.flow.fanout import map
from unwait.flow.faults import Overloaded, is_overload, retry_after
from unwait.flow.limits import Limits
from unwait.flow.retry import Retry, RetryBudget, transient


class Flaky:
    """Fails with the given errors, one a call, and then succeeds; keeps the time of each call."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.times = []

    async def __call__(self, *_):
        self.times.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_at_most_so_many_calls_follow_the_first(virtual):
    flaky = Flaky(*[OSError(str(n)) for n in range(10)])
    outcome = virtual(call(flaky, 1, retry=3))
    assert outcome.attempts == len(flaky.times) == 4
    assert str(outcome.error) == "3"
    assert virtual(call(Flaky(OSError()), 1, retry=0)).attempts == 1
    assert virtual(call(Flaky(OSError()), 1)).attempts == 1


def test_delays_double_up_to_the_cap_and_are_waited(virtual):
    flaky = Flaky(*[OSError()] * 5)
    outcome = virtual(call(flaky, 1, retry=Retry(9, base=1, cap=6, random=lambda: 1.0)))
    assert outcome.value == "done"
    gaps = [later - sooner for sooner, later in zip(flaky.times, flaky.times[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 6, 6])
    assert outcome.waited == pytest.approx(19)
    assert outcome.elapsed == pytest.approx(19)


@given(attempts=st.integers(1, 2000), seed=st.integers())
def test_jitter_is_full(attempts, seed):
    retry = Retry(10**6, base=0.5, cap=60, random=random.Random(seed).random)
    delay = retry.delay(OSError(), attempts, 0, 0)
    assert 0 <= delay <= min(60, 0.5 * 2.0 ** min(attempts - 1, 64))


@given(named=st.floats(0, 1e6), attempts=st.integers(1, 10), seed=st.integers())
def test_a_named_delay_is_a_floor_and_jitter_only_adds(named, attempts, seed):
    retry = Retry(10, base=0.5, cap=60, random=random.Random(seed).random)
    delay = retry.delay(Overloaded(retry_after=named), attempts, 0, 0)
    assert named <= delay <= named + min(60, 0.5 * 2 ** (attempts - 1))


def test_total_time_is_bounded(virtual):
    flaky = Flaky(*[OSError()] * 50)
    outcome = virtual(call(flaky, 1, retry=Retry(50, base=4, cap=4, total=10, random=lambda: 1.0)))
    assert outcome.attempts == 3
    assert outcome.elapsed == pytest.approx(8)
    late = virtual(call(Flaky(Overloaded(retry_after=60)), 1, retry=Retry(5, total=30)))
    assert late.attempts == 1
    assert late.elapsed == 0


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (OSError(), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (Overloaded(), True),
        (Exception("of a library"), True),
        (TypeError(), False),
        (ValueError(), False),
        (KeyError(), False),
        (AssertionError(), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
    ],
    ids=repr,
)
def test_bugs_and_wrong_arguments_are_not_retried(virtual, error, retried):
    assert transient(error) is retried
    assert virtual(call(Flaky(error), 1, retry=Retry(1, base=0))).attempts == 1 + retried


def test_an_error_may_decide_for_itself():
    class Wrong(OSError):
        retryable = False

    class Odd(ValueError):
        retryable = True

    assert not transient(Wrong())
    assert transient(Odd())


def test_which_errors_may_be_named(virtual):
    assert virtual(call(Flaky(ValueError()), 1, retry=Retry(1, on=ValueError, base=0))).ok
    assert not virtual(call(Flaky(OSError()), 1, retry=Retry(1, on=(ValueError, KeyError), base=0))).ok
    assert virtual(
        call(Flaky(OSError("yes")), 1, retry=Retry(1, on=lambda error: "yes" in str(error), base=0))
    ).ok


def test_a_decorated_function_retries(virtual):
    flaky = Flaky(OSError(), OSError())

    @Retry(2, base=1, random=lambda: 1.0)
    async def fetch(a, *, b):
        """What it does."""
        return a, b, await flaky()

    assert virtual(fetch(1, b=2)) == (1, 2, "done")
    assert fetch.__name__ == "fetch"
    assert fetch.__doc__ == "What it does."
    flaky.errors = [OSError("again")] * 3
    with pytest.raises(OSError, match="again") as raised:
        virtual(fetch(1, b=2))
    assert raised.value.__notes__ == ["3 attempts in 3.0 s"]


def test_an_outage_is_probed_and_not_stormed(virtual):
    budget = RetryBudget(0.1, rate=2, burst=10)
    retry = Retry(1000, base=0.001, cap=0.001, budget=budget)
    times = []

    async def down(n):
        times.append(asyncio.get_running_loop().time())
        raise ConnectionRefusedError

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await map(down, range(50), retry=retry)

    virtual(main())
    # 50 first calls, the burst, and then two a second.
    assert len(times) <= 50 + 10 + 2 * 100 + 1
    assert len(times) >= 50 + 10 + 2 * 90


def test_an_outage_costs_time_and_no_items(virtual):
    back = 1000 + 30.0

    async def down_for_a_while(n):
        await asyncio.sleep(0.01)
        if asyncio.get_running_loop().time() < back:
            raise ConnectionRefusedError
        return n

    results = virtual(map(down_for_a_while, range(200), limit=50, retry=Retry(12, budget=RetryBudget())))
    assert results == list(range(200))


def test_retries_that_the_server_named_take_nothing_from_the_budget(virtual):
    budget = RetryBudget(0, rate=0.001, burst=1)
    flaky = Flaky(*[Overloaded(retry_after=1)] * 5)
    outcome = virtual(call(flaky, 1, retry=Retry(5, base=0, budget=budget)))
    assert outcome.elapsed == pytest.approx(5)


def test_a_cancelled_wait_gives_its_retry_back(virtual):
    budget = RetryBudget(0, rate=0.001, burst=1)

    async def main():
        for _ in range(3):
            waiting = asyncio.ensure_future(
                call(Flaky(OSError()), 1, retry=Retry(1, base=500, budget=budget))
            )
            await asyncio.sleep(1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert budget.take(asyncio.get_running_loop().time()) == 0

    virtual(main())


@given(st.lists(st.one_of(st.floats(0, 5), st.none()), max_size=60))
def test_a_budget_never_lets_more_through_than_it_holds(steps):
    """None is a success; a number is that many seconds passing before the next retry."""
    budget = RetryBudget(0.5, rate=2, burst=5)
    now, successes, made = 0.0, 0, []
    for step in steps:
        if step is None:
            budget.deposit()
            successes += 1
        else:
            now += step
            made.append(now + budget.take(now))
    for index, first in enumerate(made):
        for last in made[index:]:
            inside = sum(first <= each <= last for each in made)
            assert inside <= 5 + 2 * (last - first) + 0.5 * successes + 1 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"retries": -1}, "must not be negative"),
        ({"base": -1}, "base and cap"),
        ({"cap": float("nan")}, "base and cap"),
        ({"total": 0}, "total is in seconds"),
    ],
    ids=str,
)
def test_bad_numbers_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Retry(**arguments)


def test_bad_budgets_are_named():
    with pytest.raises(ValueError, match="a retry budget needs"):
        RetryBudget(rate=0)


def test_what_an_error_says():
    assert retry_after(Overloaded(retry_after=2)) == 2
    for nonsense in (None, -1, float("inf"), float("nan"), "3"):
        assert retry_after(Overloaded(retry_after=nonsense)) is None
    assert is_overload(Overloaded())
    assert is_overload(TimeoutError())
    assert not is_overload(OSError())


def test_an_overload_pauses_everyone_and_nobody_comes_back_at_once(virtual):
    """The delay that the server names holds for calls that did not fail too, and jitter spreads the return."""
    limits = Limits(concurrency=20)
    times = []
    refused = False

    async def refuse_once(n):
        nonlocal refused
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        if not refused:
            refused = True
            raise Overloaded(retry_after=30)
        await asyncio.sleep(1)

    virtual(map(refuse_once, range(60), limit=60, limits=limits, retry=5))
    first = times[0]
    between = [each for each in times if first + 0.1 < each < first + 30]
    assert between == []
    back = sorted(each for each in times if each >= first + 30)
    assert len(back) == 61 - 20
    assert max(sum(start <= each < start + 0.01 for each in back) for start in back) <= 5
