"""Adaptive concurrency: what raises the limit, what lowers it, and what says nothing about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.flow.adaptive import Aimd, Auto


def window_of_successes(aimd: Aimd) -> None:
    for _ in range(aimd.limit):
        aimd.succeeded(aimd.epoch, aimd.limit)


@pytest.mark.parametrize(
    "bounds", [{"low": 0}, {"start": 0}, {"start": 5, "low": 6}, {"start": 5, "high": 4}, {"high": -1}]
)
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ValueError, match="1 <= low <= start <= high"):
        Auto(**bounds)


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_bounds_that_are_no_int_are_refused(value):
    with pytest.raises(TypeError, match="start must be an int"):
        Auto(start=value)


def test_a_window_of_successes_raises_the_limit_by_one():
    aimd = Aimd(Auto(start=10))
    for _ in range(9):
        aimd.succeeded(0, 10)
    assert aimd.limit == 10
    aimd.succeeded(0, 10)
    assert aimd.limit == 11
    window_of_successes(aimd)
    assert aimd.limit == 12


def test_with_less_than_half_in_use_it_stays():
    aimd = Aimd(Auto(start=10))
    for _ in range(1000):
        aimd.succeeded(0, 4)
    assert aimd.limit == 10
    for _ in range(10):
        aimd.succeeded(0, 5)
    assert aimd.limit == 11


def test_an_overload_takes_a_tenth():
    aimd = Aimd(Auto(start=100))
    aimd.overloaded(0)
    assert aimd.limit == 90


def test_an_overload_takes_at_least_one():
    aimd = Aimd(Auto(start=3))
    aimd.overloaded(0)
    assert aimd.limit == 2


def test_a_hundred_overloads_of_one_window_count_once():
    aimd = Aimd(Auto(start=100))
    for _ in range(100):
        aimd.overloaded(0)
    assert aimd.limit == 90
    aimd.overloaded(aimd.epoch)
    assert aimd.limit == 81


def test_successes_from_before_a_decrease_do_not_raise_the_limit():
    aimd = Aimd(Auto(start=10))
    aimd.overloaded(0)
    for _ in range(100):
        aimd.succeeded(0, 10)
    assert aimd.limit == 9


def test_an_overload_begins_a_new_window():
    aimd = Aimd(Auto(start=10))
    for _ in range(8):
        aimd.succeeded(0, 10)
    aimd.overloaded(0)
    for _ in range(8):
        aimd.succeeded(1, 9)
    assert aimd.limit == 9


def test_it_keeps_within_its_bounds():
    aimd = Aimd(Auto(start=5, low=4, high=6))
    for _ in range(5):
        aimd.overloaded(aimd.epoch)
    assert aimd.limit == 4
    for _ in range(5):
        window_of_successes(aimd)
    assert aimd.limit == 6


@given(
    bounds=st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50)).map(sorted),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 60)), max_size=200),
)
def test_whatever_happens_it_moves_in_small_steps_within_its_bounds(bounds, events):
    low, start, high = bounds
    aimd = Aimd(Auto(start=start, low=low, high=high))
    since_a_move = 0
    for success, age, in_use in events:
        limit, epoch = aimd.limit, aimd.epoch
        begun = max(epoch - age, 0)
        if success:
            since_a_move += 1
            aimd.succeeded(begun, in_use)
            assert aimd.epoch == epoch
            assert aimd.limit in (limit, limit + 1)
            if aimd.limit > limit:
                assert since_a_move >= limit
        else:
            aimd.overloaded(begun)
            if begun < epoch:
                assert (aimd.limit, aimd.epoch) == (limit, epoch)
            else:
                assert aimd.epoch == epoch + 1
                assert aimd.limit == max(low, min(limit - 1, int(limit * 0.9)))
        if aimd.limit != limit:
            since_a_move = 0
        assert low <= aimd.limit <= high
