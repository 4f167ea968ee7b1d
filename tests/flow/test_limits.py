"""Limits: room for all at once or none, first come first served, and nothing lost when somebody gives up."""

from __future__ import annotations

import asyncio

import pytest

from unwait.flow.faults import Overloaded
from unwait.flow.limits import Auto, Limits, Quota, Rate

from .limits_support import Waiting, assert_untouched, now, release, settle, taken
from .virtual_clock import VirtualLoop


class TestMaking:
    @pytest.mark.parametrize("concurrency", [0, -1])
    def test_a_concurrency_below_one_is_refused(self, concurrency):
        with pytest.raises(ValueError, match=f"concurrency must be at least 1, not {concurrency}"):
            Limits(concurrency=concurrency)

    @pytest.mark.parametrize("concurrency", [True, 2.0, float("nan"), "many", [1]])
    def test_a_concurrency_that_is_no_int_is_refused(self, concurrency):
        with pytest.raises(TypeError, match='concurrency must be an int, "auto" or an Auto'):
            Limits(concurrency=concurrency)

    @pytest.mark.parametrize("name", ["rate", "tokens"])
    def test_a_rate_that_makes_no_sense_is_refused(self, name):
        with pytest.raises(ValueError, match="positive"):
            Limits(**{name: "-5/s"})
        with pytest.raises(TypeError, match="a rate is a text"):
            Limits(**{name: 5})

    @pytest.mark.parametrize("name", ["per", "overload"])
    def test_what_is_no_function_is_refused(self, name):
        with pytest.raises(TypeError, match=f"{name} must be a function, not str"):
            Limits(**{name: "host"})

    def test_its_text_tells_what_is_in_force(self, virtual):
        def host(item: str) -> str:
            return item

        async def main() -> None:
            plain = Limits(concurrency=10, rate="50/s", tokens=Rate(90_000, 60))
            with plain.try_acquire(cost=1):
                assert repr(plain) == (
                    "<Limits concurrency=10, rate=50/s, tokens=90000/min, 1 in use, 0 waiting>"
                )
            keyed = Limits(concurrency=Auto(start=7, high=9), per=host)
            release([keyed.try_acquire("a")], Overloaded())
            release([keyed.try_acquire("b")])
            assert repr(keyed) == (
                "<Limits concurrency=auto (now 6 to 7, from 1 to 9), per=host, 2 keys, 0 in use, 0 waiting>"
            )

        assert repr(Limits()) == "<Limits 0 in use, 0 waiting>"
        virtual(main())


class TestConcurrency:
    def test_so_many_permits_and_no_more_are_there_at_once(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=3)
            permits = taken(limits)
            assert len(permits) == 3
            permits.pop().release()
            assert len(taken(limits)) == 1

        virtual(main())

    def test_without_limits_everything_is_admitted(self, virtual):
        async def main() -> None:
            limits = Limits()
            assert len(taken(limits, cost=10**9, weight=10**6)) == 10_000
            assert limits.in_force() is None

        virtual(main())

    def test_waiters_are_served_in_their_order(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2)
            permits = taken(limits)
            waiting = Waiting(limits)
            await waiting.add(*range(5))
            assert waiting.order == []
            for served in range(2):
                permits.pop().release()
                await settle()
                assert waiting.order == [*range(served + 1)]
            for task in waiting.tasks:
                (await task).release()
            assert waiting.order == [0, 1, 2, 3, 4]

        virtual(main())

    def test_nobody_overtakes_a_heavy_waiter(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=4)
            permits = taken(limits)
            waiting = Waiting(limits)
            await waiting.add("heavy", weight=4)
            await waiting.add("light")
            release(permits[:3])
            await settle()
            assert limits.try_acquire() is None
            assert waiting.order == []
            release(permits)
            (await waiting.tasks[0]).release()
            (await waiting.tasks[1]).release()
            assert waiting.order == ["heavy", "light"]

        virtual(main())

    def test_a_weight_takes_as_much_of_it(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=10)
            assert len(taken(limits, weight=3)) == 3
            assert len(taken(limits)) == 1

        virtual(main())

    @pytest.mark.parametrize(("weight", "fault"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
    def test_a_weight_that_makes_no_sense_is_refused(self, virtual, weight, fault):
        async def main() -> None:
            with pytest.raises(fault, match="weight must be"):
                await Limits(concurrency=10).acquire(weight=weight)

        virtual(main())

    def test_a_weight_above_the_concurrency_is_refused(self, virtual):
        async def main() -> None:
            with pytest.raises(ValueError, match=r"weight 11 can never be admitted: the concurrency is 10"):
                await Limits(concurrency=10).acquire(weight=11)

        virtual(main())

    def test_a_weight_above_an_adaptive_concurrency_runs_alone(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=2, high=4))
            light = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add("heavy", weight=9)
            await waiting.add("light")
            assert waiting.order == []
            light.release()
            await settle()
            assert waiting.order == ["heavy"]
            (await waiting.tasks[0]).release()
            (await waiting.tasks[1]).release()

        virtual(main())

    @pytest.mark.parametrize("cost", [-1, float("nan"), float("inf")])
    def test_a_cost_that_makes_no_sense_is_refused(self, virtual, cost):
        async def main() -> None:
            limits = Limits(tokens="100/s")
            with pytest.raises(ValueError, match="cost must be a finite number of at least 0"):
                await limits.acquire(cost=cost)
            with pytest.raises(ValueError, match="cost must be a finite number of at least 0"):
                limits.try_acquire().spent(cost)

        virtual(main())

    def test_releasing_again_does_nothing(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2)
            permits = taken(limits)
            for _ in range(3):
                permits[0].release()
                permits[0].refund()
            assert len(taken(limits)) == 1

        virtual(main())

    def test_a_permit_is_released_by_its_block(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=1))
            permit = await limits.acquire()
            with permit:
                assert "1 in use" in repr(limits)
            assert "0 in use" in repr(limits)
            assert limits.in_force() == 2
            with pytest.raises(Overloaded), limits.try_acquire():
                raise Overloaded
            assert "0 in use" in repr(limits)
            assert limits.in_force() == 1

        virtual(main())


class TestRates:
    def test_a_rate_holds_for_those_who_wait(self, virtual):
        async def main() -> None:
            waiting = Waiting(Limits(rate="10/s"))
            started = now()
            await waiting.add(*range(35))
            await asyncio.gather(*waiting.tasks)
            assert waiting.order == [*range(35)]
            for begin in waiting.times:
                assert sum(begin <= time < begin + 1 for time in waiting.times) <= 10
            assert 3.3 < waiting.times[-1] - started < 3.6

        virtual(main())

    def test_tokens_count_by_cost(self, virtual):
        async def main() -> None:
            limits = Limits(tokens=Rate(1000, 60, burst=1000))
            assert len(taken(limits, cost=300)) == 3
            assert len(taken(limits, cost=100)) == 1
            assert len(taken(limits)) == 10_000, "what costs no tokens needs none"

        virtual(main())

    def test_what_costs_more_than_there_ever_is_runs_in_debt(self, virtual):
        async def main() -> None:
            waiting = Waiting(Limits(tokens="600/min"))
            started = now()
            await waiting.add("small", cost=60)
            await waiting.add("huge", cost=1800)
            await waiting.add("next", cost=60)
            await asyncio.gather(*waiting.tasks)
            huge, following = (time - started for time in waiting.times[1:])
            assert 60 <= huge <= 62
            assert 180 <= following - huge <= 190

        virtual(main())

    def test_all_of_it_is_taken_together_or_none(self, virtual):
        """Who waits for tokens holds no concurrency and has used up no rate."""

        async def main() -> None:
            limits = Limits(concurrency=1, rate=Rate(2, 60, burst=2), tokens=Rate(100, 10, burst=100))
            limits.try_acquire(cost=100).release()
            waiting = Waiting(limits)
            await waiting.add("tokens", cost=100)
            assert "0 in use, 1 waiting" in repr(limits)
            await waiting.cancel(0)
            assert len(taken(limits)) == 1

        virtual(main())

    def test_a_refund_gives_back_rate_and_tokens(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=5, rate=Rate(1, 60), tokens=Rate(100, 60, burst=100))
            limits.try_acquire(cost=100).refund()
            permit = limits.try_acquire(cost=100)
            assert permit is not None
            permit.release()
            assert limits.try_acquire(cost=100) is None

        virtual(main())

    def test_a_refund_wakes_who_waits_for_it(self, virtual):
        async def main() -> None:
            limits = Limits(rate=Rate(1, 60))
            permit = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add("next")
            permit.refund()
            await waiting.tasks[0]
            assert waiting.times == [now()] == [1000.0]

        virtual(main())

    def test_spending_less_makes_room_for_who_waits(self, virtual):
        async def main() -> None:
            limits = Limits(tokens=Rate(100, 60, burst=100))
            permit = limits.try_acquire(cost=100)
            waiting = Waiting(limits)
            await waiting.add("next", cost=60)
            permit.spent(50)
            await settle()
            assert waiting.order == []
            permit.release()
            permit.spent(40)
            await settle()
            assert waiting.times == [1000.0]

        virtual(main())

    def test_spending_more_is_paid_by_the_next(self, virtual):
        async def main() -> None:
            limits = Limits(tokens=Rate(100, 10, burst=100))
            permit = limits.try_acquire(cost=10)
            permit.spent(100)
            waiting = Waiting(limits)
            await waiting.add("next", cost=10)
            await waiting.tasks[0]
            assert waiting.times[0] >= 1010

        virtual(main())

    def test_what_was_not_estimated_can_be_spent(self, virtual):
        async def main() -> None:
            limits = Limits(tokens=Rate(100, 10, burst=100))
            limits.try_acquire().spent(100)
            assert limits.try_acquire(cost=1) is None

        virtual(main())

    def test_a_timer_that_fires_early_is_set_again(self):
        """asyncio's may, by the resolution of its clock."""

        class HastyLoop(VirtualLoop):
            def call_at(self, when, *arguments, **options):
                return super().call_at(when - 1e-4 if when > self.now + 1e-3 else when, *arguments, **options)

        async def main() -> None:
            limits = Limits(rate=Rate(1, 1))
            await limits.acquire()
            await limits.acquire()
            assert now() >= 1001

        loop = HastyLoop()
        loop.run_until_complete(main())
        loop.close()


class TestObserving:
    def test_nothing_left_waits_for_the_reset(self, virtual):
        async def main() -> None:
            for limits in (Limits(rate="100/s"), Limits(concurrency=5), Limits()):
                limits.observe(requests=Quota(100, 0, 30))
                assert limits.try_acquire() is None
                started = now()
                await limits.acquire()
                assert now() - started == pytest.approx(30)

        virtual(main())

    def test_tokens_that_are_used_up_hold_only_what_costs_tokens(self, virtual):
        async def main() -> None:
            limits = Limits(tokens="1000/min")
            limits.observe(tokens=Quota(1000, 0, 30))
            assert limits.try_acquire() is not None
            assert limits.try_acquire(cost=1) is None

        virtual(main())

    def test_without_a_configured_rate_what_is_left_counts_for_nothing(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=50)
            limits.observe(requests=Quota(100, 1, 30), tokens=Quota(100, 1, 30))
            assert len(taken(limits)) == 50

        virtual(main())

    @pytest.mark.parametrize(
        "quota", [Quota(), Quota(10), Quota(10, None, 5), Quota(10, 0, -5), Quota(10, 0, float("nan"))]
    )
    def test_what_says_nothing_changes_nothing(self, virtual, quota):
        async def main() -> None:
            limits = Limits(rate="10/s", tokens="10/s")
            limits.observe(requests=quota, tokens=quota)
            assert limits.try_acquire(cost=1) is not None

        virtual(main())

    def test_it_counts_for_the_key_of_the_item(self, virtual):
        async def main() -> None:
            limits = Limits(rate="10/s", per=str)
            limits.observe("a", requests=Quota(10, 0, 5))
            assert limits.try_acquire("a") is None
            assert limits.try_acquire("b") is not None

        virtual(main())


class TestPausing:
    def test_nobody_is_admitted_until_its_end(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=4)
            limits.pause(2.5)
            assert limits.try_acquire() is None
            await limits.acquire()
            assert now() == 1002.5

        virtual(main())

    def test_it_also_holds_for_those_who_wait_already(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            permit = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add("next")
            limits.pause(3)
            permit.release()
            await waiting.tasks[0]
            assert waiting.times == [1003.0]

        virtual(main())

    def test_a_shorter_pause_does_not_end_a_longer_one(self, virtual):
        async def main() -> None:
            limits = Limits()
            limits.pause(5)
            limits.pause(1)
            limits.pause(0)
            await limits.acquire()
            assert now() == 1005.0

        virtual(main())

    @pytest.mark.parametrize(("pause", "spread"), [(5, 1), (0.2, 0.2)])
    @pytest.mark.parametrize("concurrency", [10, None])
    def test_after_it_waiters_do_not_rush_in_together(self, virtual, pause, spread, concurrency):
        async def main() -> None:
            limits = Limits(concurrency=concurrency)
            limits.pause(pause)
            waiting = Waiting(limits)
            await waiting.add(*range(10))
            await asyncio.gather(*waiting.tasks)
            after = [time - 1000 - pause for time in waiting.times]
            assert after == pytest.approx([spread * place / 10 for place in range(10)])

        virtual(main())

    def test_a_short_one_at_the_end_of_a_long_one_makes_nobody_rush(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=10)
            limits.pause(5)
            waiting = Waiting(limits)
            await waiting.add(*range(10))
            await asyncio.sleep(4.99)
            limits.pause(0.02)
            await asyncio.gather(*waiting.tasks)
            assert waiting.times[0] == pytest.approx(1005.01)
            assert waiting.times[-1] > 1005.85

        virtual(main())

    def test_long_after_it_nothing_is_left_of_it(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=10)
            limits.pause(1)
            await asyncio.sleep(5)
            assert len(taken(limits)) == 10

        virtual(main())

    @pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
    def test_a_time_that_makes_no_sense_is_refused(self, virtual, seconds):
        async def main() -> None:
            with pytest.raises(ValueError, match="a pause is a finite number of seconds"):
                Limits().pause(seconds)

        virtual(main())

    def test_an_overload_that_names_a_delay_pauses_its_key(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=4, per=str)
            limits.try_acquire("a").release(Overloaded(retry_after=7))
            assert limits.try_acquire("b") is not None
            await limits.acquire("a")
            assert now() == 1007.0

        virtual(main())

    def test_an_error_that_is_no_overload_does_not(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=4, overload=lambda error: False)
            limits.try_acquire().release(Overloaded(retry_after=7))
            assert limits.try_acquire() is not None

        virtual(main())


class TestAdapting:
    def test_successes_raise_it_overloads_lower_it_and_other_errors_neither(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=10))
            assert limits.in_force() == 10
            release(taken(limits), ValueError())
            assert limits.in_force() == 10
            for _ in range(2):
                release(taken(limits))
            assert limits.in_force() == 11
            release(taken(limits), TimeoutError())
            assert limits.in_force() == 9
            release(taken(limits), asyncio.CancelledError())
            assert limits.in_force() == 9

        virtual(main())

    def test_the_limit_in_force_is_kept(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=10))
            release(taken(limits), Overloaded())
            assert len(taken(limits)) == 9

        virtual(main())

    def test_a_raise_admits_who_waits(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=1))
            waiting = Waiting(limits)
            await waiting.add("first", "second", "third")
            (await waiting.tasks[0]).release()
            await settle()
            assert waiting.order == ["first", "second", "third"]
            await waiting.end()

        virtual(main())

    def test_a_predicate_that_raises_loses_no_permit(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1, overload=lambda error: 1 / 0)
            permit = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add("next")
            with pytest.raises(ZeroDivisionError):
                permit.release(ValueError())
            (await waiting.tasks[0]).release()

        virtual(main())

    def test_a_refund_is_no_success(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=1))
            for _ in range(5):
                limits.try_acquire().refund()
            assert limits.in_force() == 1

        virtual(main())


class TestKeys:
    def test_the_limit_in_force_is_that_of_the_key_or_the_highest_of_all(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=Auto(start=10), per=lambda item: item[0])
            assert limits.in_force() == limits.in_force("a") == 10
            release([limits.try_acquire("a")], Overloaded())
            assert limits.in_force() == limits.in_force("a") == 9
            limits.try_acquire("b").release()
            assert [limits.in_force(), limits.in_force("a"), limits.in_force("b")] == [10, 9, 10]

        virtual(main())

    def test_each_key_has_limits_of_its_own(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2, rate=Rate(3, 60, burst=3), per=lambda item: item[0])
            assert [len(taken(limits, item=item)) for item in ("a", "b", "a2")] == [2, 2, 0]

        virtual(main())

    def test_waiting_for_one_key_holds_up_no_other(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1, per=str)
            taken(limits, item="a")
            waiting = Waiting(limits)
            await waiting.add("a", item="a")
            await waiting.add("b", item="b")
            assert waiting.order == ["b"]
            await waiting.end()

        virtual(main())

    def test_a_key_that_cannot_be_hashed_is_refused_without_its_text(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1, per=lambda item: [item])
            with pytest.raises(
                TypeError, match="per= gave a key of type list, which can't be hashed"
            ) as raised:
                await limits.acquire("secret")
            assert "secret" not in str(raised.value)

        virtual(main())

    def test_idle_keys_are_forgotten(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1, rate="10/s", per=lambda item: item)
            held = limits.try_acquire("held")
            for item in range(20_000):
                await asyncio.sleep(0.01)
                limits.try_acquire(item).release()
            assert len(limits._lanes) < 2000
            assert limits.try_acquire("held") is None
            held.release()

        virtual(main())

    def test_a_key_whose_rate_is_used_up_is_not_forgotten(self, virtual):
        async def main() -> None:
            limits = Limits(rate="1/min", per=lambda item: item)
            for item in range(5000):
                limits.try_acquire(item).release()
            assert not any(limits.try_acquire(item) for item in range(5000))

        virtual(main())


class TestCancelling:
    def test_a_waiter_that_gives_up_leaves_its_place(self, virtual, virtual_loop):
        limits = Limits(concurrency=1)

        async def main() -> None:
            permit = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add(*range(4))
            await waiting.cancel(0, 2)
            permit.release()
            (await waiting.tasks[1]).release()
            (await waiting.tasks[3]).release()
            assert waiting.order == [1, 3]

        virtual(main())
        assert_untouched(limits, virtual_loop)

    def test_a_heavy_waiter_that_gives_up_lets_the_light_ones_pass(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=4, tokens=Rate(100, 60, burst=100))
            permit = limits.try_acquire(weight=2)
            waiting = Waiting(limits)
            await waiting.add("heavy", weight=3)
            await waiting.add("light")
            await waiting.cancel(0)
            assert waiting.order == ["light"]
            release([permit, await waiting.tasks[1]])
            limits.try_acquire(cost=90)
            await waiting.add("costly", cost=90)
            await waiting.add("cheap", cost=5)
            await waiting.cancel(2)
            assert waiting.order == ["light", "cheap"]

        virtual(main())

    def test_a_waiter_cancelled_after_it_was_granted_gives_everything_back(self, virtual, virtual_loop):
        limits = Limits(concurrency=1, rate=Rate(2, 60, burst=2))

        async def main() -> None:
            permit = limits.try_acquire()
            waiting = Waiting(limits)
            await waiting.add("cancelled", "next")
            permit.release()
            waiting.tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting.tasks[0]
            (await waiting.tasks[1]).release()
            assert waiting.times == [1000.0], "the rate was not given back"

        virtual(main())
        assert_untouched(limits, virtual_loop)

    def test_no_timer_is_left_when_the_last_waiter_gives_up(self, virtual, virtual_loop):
        limits = Limits(rate=Rate(1, 3600))

        async def main() -> None:
            limits.try_acquire().release()
            waiting = Waiting(limits)
            await waiting.add(*range(5))
            await waiting.cancel(*range(5))

        virtual(main())
        assert_untouched(limits, virtual_loop)

    def test_a_time_out_leaves_nothing(self, virtual, virtual_loop):
        limits = Limits(concurrency=1)

        async def main() -> None:
            permit = limits.try_acquire()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await limits.acquire()
            permit.release()

        virtual(main())
        assert_untouched(limits, virtual_loop)
