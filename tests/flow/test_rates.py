"""Rates as text, and the limiter: no window ever holds more than the amount, and hardly less under demand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.flow.rates import Limiter, Rate

Log = list[tuple[float, float]]


def busiest(log: Log, period: float) -> float:
    """The most that any half-open window of that length holds; `log` is in the order of time."""
    most = held = 0.0
    first = 0
    for time, cost in log:
        held += cost
        while log[first][0] <= time - period:
            held -= log[first][1]
            first += 1
        most = max(most, held)
    return most


def demand(
    limiter: Limiter, costs: Iterator[float], seconds: float, lateness: Callable[[], float] = lambda: 0.0
) -> Log:
    """What is admitted when somebody always waits, woken `lateness` after the time that the limiter names."""
    log: Log = []
    start = now = 5000.0
    for cost in costs:
        ready = limiter.ready_at(cost, now)
        if ready > now:
            now = ready + lateness()
        if now >= start + seconds:
            break
        limiter.take(cost, now)
        log.append((now, cost))
    return log


def jitter(most: float) -> Callable[[], float]:
    seeded = random.Random(7)
    return lambda: seeded.uniform(0, most)


class TestRate:
    @pytest.mark.parametrize(
        ("text", "amount", "period"),
        [
            ("50/s", 50, 1),
            ("90000/min", 90000, 60),
            ("3/h", 3, 3600),
            ("10/5s", 10, 5),
            ("100/day", 100, 86400),
            ("1/500ms", 1, 0.5),
            (" 2.5 / Second ", 2.5, 1),
            ("90_000/m", 90000, 60),
            ("6/1.5 minutes", 6, 90),
        ],
    )
    def test_a_text_names_an_amount_and_a_period(self, text, amount, period):
        rate = Rate.parse(text)
        assert (rate.amount, rate.period, rate.burst) == (amount, period, None)

    @pytest.mark.parametrize(
        "text",
        ["", "50", "/s", "50/", "s/50", "50/fortnight", "50/s/s", "fifty/s", "50 per s", "50//s", "5/1.2.3s"],
    )
    def test_another_text_is_refused_with_an_example(self, text):
        with pytest.raises(ValueError, match=r'is not a rate: .*"50/s"'):
            Rate.parse(text)

    @pytest.mark.parametrize("text", ["-1/s", "0/s", "nan/s", "inf/s", "5/0s", "1e999/s"])
    def test_a_text_that_names_no_positive_number_is_refused(self, text):
        with pytest.raises(ValueError, match=r"is not a rate: .* must be positive and finite"):
            Rate.parse(text)

    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
    @pytest.mark.parametrize("name", ["amount", "period", "burst"])
    def test_a_number_that_is_not_positive_and_finite_is_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} of a rate must be positive and finite"):
            Rate(**{"amount": 10, "period": 1, "burst": 1, name: value})

    @pytest.mark.parametrize("value", ["10", True, [1]])
    def test_what_is_no_number_is_refused(self, value):
        with pytest.raises(TypeError, match="amount of a rate must be a number"):
            Rate(value, 1)

    def test_a_burst_above_the_amount_is_refused(self):
        with pytest.raises(ValueError, match="must not exceed its amount"):
            Rate(10, 1, burst=11)

    @pytest.mark.parametrize("text", ["50/s", "90000/min", "1234567/min", "3/h", "2/day", "10/5s", "0.5/s"])
    def test_its_text_is_the_one_it_was_made_from(self, text):
        assert str(Rate.parse(text)) == text

    def test_neither_text_nor_rate_is_refused(self):
        with pytest.raises(TypeError, match='"50/s" or a Rate, not int'):
            Rate.of(50)


rates = st.builds(
    lambda amount, period, share: Rate(amount, period, None if share is None else max(1, amount * share)),
    st.integers(1, 60),
    st.sampled_from([0.1, 1.0, 7.3, 60.0, 3600.0]),
    st.sampled_from([None, 0.05, 0.5, 1]),
)


class TestNoWindow:
    @given(rate=rates, data=st.data())
    def test_holds_more_than_the_amount_whatever_the_demand(self, rate, data):
        """Waves of demand with lulls between them, of any size up to the amount, served late, some given back."""
        limiter = Limiter(rate)
        costs = st.floats(0.01, 1).map(lambda share: share * rate.amount) | st.integers(
            1, math.ceil(rate.amount)
        )
        steps = data.draw(
            st.lists(
                st.tuples(
                    costs.filter(lambda cost: cost <= rate.amount),
                    st.sampled_from([0, 0, 0, 0.001, 0.3, 0.99, 1.5]),
                    st.sampled_from([0, 0, 0.0001, 0.02, 0.4]),
                    st.booleans(),
                ),
                max_size=60,
            )
        )
        now, log = 1000.0, []
        for cost, lull, late, kept in steps:
            now += lull * rate.period
            ready = limiter.ready_at(cost, now)
            if ready > now:
                now = ready + late * rate.period
            assert limiter.ready_at(cost, now) <= now, "ready, but not when the time has come"
            slot = limiter.take(cost, now)
            if kept:
                log.append((now, cost))
            else:
                limiter.give_back(slot, cost)
        assert busiest(log, rate.period) <= rate.amount * (1 + 1e-9)

    @pytest.mark.parametrize("burst", [None, 1, 500, 1000])
    def test_holds_more_than_the_amount_and_the_first_window_is_none_to_burst_in(self, burst):
        log = demand(Limiter(Rate(1000, 1, burst)), repeat(1), 3)
        first = [cost for time, cost in log if time < log[0][0] + 1]
        assert 950 <= sum(first) <= 1000
        assert busiest(log, 1) <= 1000

    def test_holds_more_than_the_amount_when_late_timers_catch_up(self):
        log = demand(Limiter(Rate(1000, 1)), repeat(1), 10, jitter(0.05))
        assert busiest(log, 1) <= 1000

    def test_holds_more_than_the_amount_at_a_server_that_messages_reach_after_different_times(self):
        delay = random.Random(3)
        for burst in (None, 1000):
            log = demand(Limiter(Rate(1000, 1, burst)), repeat(1), 5, jitter(0.002))
            arrived = sorted((time + delay.uniform(0.001, 0.010), cost) for time, cost in log)
            assert busiest(arrived, 1) <= 1000

    def test_holds_more_than_the_amount_although_a_slot_holds_many(self):
        """In a day a slot spans more time than the margin."""
        limiter = Limiter(Rate(3000, 86400))
        log = []
        for place in range(3000):
            limiter.take(1, place * 7.0)
            log.append((place * 7.0, 1))
        now = log[-1][0]
        for _ in range(300):
            now = max(now, limiter.ready_at(1, now))
            limiter.take(1, now)
            log.append((now, 1))
        assert busiest(log, 86400) <= 3000

    def test_holds_more_than_the_amount_after_a_lull(self):
        limiter = Limiter(Rate(100, 1))
        log = demand(limiter, repeat(1), 0.95)
        now = log[-1][0] + 0.5
        for _ in range(200):
            now = max(now, limiter.ready_at(1, now))
            limiter.take(1, now)
            log.append((now, 1))
        assert busiest(log, 1) <= 100


class TestUse:
    def test_a_thousand_a_second_are_used_for_ten_seconds(self):
        log = demand(Limiter(Rate.parse("1000/s")), repeat(1), 10, jitter(0.002))
        assert len(log) >= 0.98 * 10_000

    @pytest.mark.parametrize("sizes", ["uniform", "lognormal"])
    def test_tokens_of_mixed_sizes_are_used(self, sizes):
        seeded = random.Random(11)

        def size() -> float:
            if sizes == "uniform":
                return seeded.randint(100, 4000)
            return min(1 + int(seeded.lognormvariate(6.7, 0.8)), 20_000)

        log = demand(Limiter(Rate.parse("90000/min")), iter(size, None), 600, jitter(0.002))
        assert sum(cost for _, cost in log) >= 0.95 * 900_000
        assert busiest(log, 60) <= 90_000

    def test_without_a_burst_the_amount_is_spread_over_the_period(self):
        log = demand(Limiter(Rate(10, 1, burst=1)), repeat(1), 3)
        gaps = [after[0] - before[0] for before, after in pairwise(log)]
        assert min(gaps) >= 0.1
        assert max(gaps) < 0.11

    def test_a_quota_of_a_day_may_be_used_at_once(self):
        log = demand(Limiter(Rate.parse("100/day")), repeat(1), 1)
        assert len(log) == 100


class TestDebt:
    def test_a_cost_above_the_burst_waits_for_a_full_bucket_and_the_next_pay(self):
        limiter = Limiter(Rate(100, 1, burst=10))
        limiter.take(5, 0.0)
        ready = limiter.ready_at(40, 0.0)
        assert ready == pytest.approx(0.05, rel=0.02)
        limiter.take(40, ready)
        assert limiter.ready_at(10, ready) - ready == pytest.approx(0.40, rel=0.02)

    def test_a_cost_above_the_amount_waits_for_an_empty_window_and_the_next_wait_as_many_periods(self):
        limiter = Limiter(Rate(100, 1))
        limiter.take(10, 0.0)
        ready = limiter.ready_at(350, 0.0)
        assert 1.0 <= ready <= 1.02
        limiter.take(350, ready)
        assert limiter.ready_at(1, ready) - ready == pytest.approx(3.4, rel=0.02)

    @given(costs=st.lists(st.floats(0.5, 1000), max_size=40), rate=rates)
    def test_nothing_waits_longer_than_what_was_admitted_before_it_is_worth(self, costs, rate):
        limiter = Limiter(rate)
        now, total = 0.0, 0.0
        for cost in costs:
            now = max(now, limiter.ready_at(cost, now))
            limiter.take(cost, now)
            total += cost
        assert now <= (total / rate.amount + len(costs) + 1) * (rate.period * 1.02)


class TestLedger:
    def test_its_memory_does_not_grow_with_the_rate(self):
        limiter = Limiter(Rate(100_000, 1))
        demand(limiter, repeat(1), 1)
        assert len(limiter._slots) <= 1025

    @given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=30), data=st.data())
    def test_what_is_given_back_at_once_leaves_no_trace(self, costs, data):
        limiter, untouched = Limiter(Rate(100, 1)), Limiter(Rate(100, 1))
        now = 0.0
        for cost in costs:
            now = max(now, untouched.ready_at(cost, now)) + 0.002
            slot = limiter.take(7, now)
            limiter.give_back(slot, 7)
            limiter.take(cost, now)
            untouched.take(cost, now)
            probe = data.draw(st.integers(1, 120))
            assert limiter.ready_at(probe, now) == pytest.approx(untouched.ready_at(probe, now), abs=1e-9)

    def test_what_is_given_back_after_its_window_makes_no_room_twice(self):
        limiter = Limiter(Rate(10, 1, burst=10))
        slot = limiter.take(10, 0.0)
        for _ in range(10):
            limiter.take(1, 1.5)
        limiter.give_back(slot, 10)
        assert limiter.ready_at(1, 1.6) >= 2.5

    def test_it_is_fresh_once_all_is_forgotten(self):
        limiter = Limiter(Rate(10, 1))
        assert limiter.fresh_at == -math.inf
        limiter.take(5, 100.0)
        assert 101.0 <= limiter.fresh_at <= 101.02


class TestObserve:
    def test_nothing_left_waits_for_the_reset(self):
        limiter = Limiter(Rate(100, 1))
        limiter.observe(0, 30, now=10.0)
        assert limiter.ready_at(1, 10.0) == 40.0

    def test_without_a_reset_it_is_a_period_away(self):
        limiter = Limiter(Rate(100, 60))
        limiter.observe(0, None, now=10.0)
        assert limiter.ready_at(1, 10.0) == 70.0

    def test_less_left_than_believed_is_all_there_is_until_the_reset(self):
        limiter = Limiter(Rate(100, 60, burst=100))
        limiter.observe(30, 20, now=0.0)
        for _ in range(30):
            assert limiter.ready_at(1, 0.0) <= 0.0
            limiter.take(1, 0.0)
        assert limiter.ready_at(1, 0.0) == 20.0

    def test_what_the_server_counted_and_the_ledger_forgot_since_is_not_withheld(self):
        """The answer to a call that took 3 s: the server had counted what left the window meanwhile."""
        limiter = Limiter(Rate(100, 10, burst=100))
        limiter.take(60, 0)
        limiter.take(20, 8)
        limiter.observe(20, 5, 11, age=3.0)
        assert limiter.ready_at(80, 11) <= 11
        limiter.observe(20, 5, 11)
        assert limiter.ready_at(80, 11) > 11

    def test_at_full_use_nothing_left_is_nothing_to_wait_for(self):
        limiter = Limiter(Rate(10, 10, burst=10))
        for _ in range(10):
            limiter.take(1, 0)
        before = limiter.ready_at(1, 1)
        limiter.observe(0, 60, 1)
        assert limiter.ready_at(1, 1) == before

    def test_of_several_observations_the_lowest_counts(self):
        limiter = Limiter(Rate(100, 60, burst=100))
        limiter.observe(20, 30, now=0.0)
        limiter.observe(50, 30, now=0.1)
        assert limiter.ready_at(21, 0.2) == 30.0
        limiter.observe(10, 25, now=0.2)
        assert limiter.ready_at(11, 0.2) == 30.0
        assert limiter.ready_at(10, 0.2) <= 0.2

    def test_as_much_left_as_believed_changes_nothing(self):
        limiter = Limiter(Rate(100, 1, burst=100))
        limiter.take(60, 0.0)
        limiter.observe(40, 20, now=0.0)
        assert limiter.ready_at(40, 0.0) <= 0.0

    def test_more_left_than_believed_changes_nothing(self):
        limiter = Limiter(Rate(100, 1, burst=100))
        limiter.take(100, 0.0)
        before = limiter.ready_at(1, 0.0)
        limiter.observe(5000, 1, now=0.0)
        assert limiter.ready_at(1, 0.0) == before

    @given(
        observed=st.lists(
            st.tuples(st.integers(0, 200), st.none() | st.floats(0, 100)), min_size=1, max_size=8
        ),
        taken=st.integers(0, 100),
        cost=st.integers(1, 150),
    )
    def test_it_only_ever_makes_slower_and_never_for_ever(self, observed, taken, cost):
        limiter = Limiter(Rate(100, 1))
        limiter.take(taken, 0.0)
        for remaining, reset in observed:
            before = limiter.ready_at(cost, 0.0)
            limiter.observe(remaining, reset, now=0.0)
            assert before <= limiter.ready_at(cost, 0.0) <= max(before, 102.0)
