"""Limits that are shared: by calls within calls, by several at once, by one event loop after another."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context

import pytest

from unwait.flow.faults import Overloaded
from unwait.flow.limits import Auto, Limits, Permit, Rate, acquire_all, try_acquire_all

from .limits_support import Waiting, assert_untouched, now, release, settle, taken


class TestNesting:
    @staticmethod
    def fan_out(limits: Limits, width: int, calls: Counter[str]) -> Callable[[int], object]:
        """A call that makes `width` calls of the level below, all under the same limits; leaves take time."""

        async def call(level: int) -> None:
            with await limits.acquire():
                if level:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(width):
                            group.create_task(call(level - 1))
                    return
                calls["running"] += 1
                calls["most"] = max(calls["most"], calls["running"])
                await asyncio.sleep(1)
                calls["running"] -= 1
                calls["done"] += 1

        return call

    @pytest.mark.parametrize("concurrency", [1, 2, 5])
    def test_three_levels_under_one_limit_do_not_wait_for_themselves(
        self, virtual, virtual_loop, concurrency
    ):
        limits = Limits(concurrency=concurrency)
        calls: Counter[str] = Counter()
        call = self.fan_out(limits, 3, calls)

        async def main() -> None:
            await asyncio.gather(*(call(3) for _ in range(4)))

        virtual(main())
        assert calls == {"running": 0, "most": concurrency, "done": 4 * 27}
        assert virtual_loop.now - 1000 < 4 * 27 / concurrency + 30
        assert_untouched(limits, virtual_loop)

    def test_it_may_be_taken_at_once(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=3)
            with await limits.acquire(weight=3):
                nested = limits.try_acquire(weight=3)
                assert nested is not None
                assert limits.try_acquire() is None
                nested.release()
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_room_that_is_lent_for_a_lighter_one_goes_to_who_waits(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2, per=str)
            held = await limits.acquire("a", weight=2)
            waiting = Waiting(limits)
            await waiting.add("next", item="a")
            with held:
                nested = await limits.acquire("b")
                await settle()
                assert waiting.order == ["next"]
                nested.release()
            (await waiting.tasks[0]).release()

        virtual(main())

    def test_keys_that_nest_crosswise_do_not_wait_for_each_other(self, virtual, virtual_loop):
        limits = Limits(concurrency=1, per=str)

        async def call(outer: str, inner: str) -> None:
            with await limits.acquire(outer):
                await asyncio.sleep(1)
                with await limits.acquire(inner):
                    await asyncio.sleep(1)

        async def main() -> None:
            await asyncio.gather(call("a", "b"), call("b", "a"))

        virtual(main())
        assert_untouched(limits, virtual_loop)

    def test_afterwards_the_outer_permit_counts_again(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2)
            with await limits.acquire():
                with await limits.acquire(), await limits.acquire():
                    assert "1 in use" in repr(limits)
                assert "1 in use" in repr(limits)
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_a_permit_taken_back_above_the_limit_holds_up_the_next(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            entered, go_on = asyncio.Event(), asyncio.Event()

            async def nesting() -> None:
                with await limits.acquire():
                    entered.set()
                    await go_on.wait()
                    inner = asyncio.ensure_future(limits.acquire())
                    await settle()
                    inner.cancel()
                    await settle()
                    assert "2 in use, 1 waiting" in repr(limits)

            task = asyncio.ensure_future(nesting())
            await entered.wait()
            others = Waiting(limits)
            await others.add("first", "second")
            go_on.set()
            await task
            assert others.order == ["first"]
            (await others.tasks[0]).release()
            (await others.tasks[1]).release()

        virtual(main())

    def test_a_nested_waiter_that_gives_up_returns_what_was_lent(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=2)
            other = limits.try_acquire()
            with await limits.acquire():
                with await limits.acquire():
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(1):
                            await limits.acquire(weight=2)
                    assert "2 in use" in repr(limits)
                assert "2 in use" in repr(limits)
            other.release()
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_what_runs_on_after_the_block_lends_nothing(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            over = asyncio.Event()

            async def straggler() -> None:
                await over.wait()
                with await limits.acquire():
                    assert "1 in use" in repr(limits)

            with await limits.acquire():
                task = asyncio.ensure_future(straggler())
                await asyncio.sleep(0)
            over.set()
            await task
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_an_outer_permit_that_ends_first_is_given_back_once(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            outer = await limits.acquire()
            with outer:
                inner = await limits.acquire()
            assert "1 in use" in repr(limits)
            inner.release()
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_a_permit_is_held_until_its_release(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            before = copy_context()
            permit = (await limits.acquire()).hold()
            assert permit.hold() is permit
            nested = await limits.acquire()
            nested.release()
            permit.release()
            assert copy_context() == before
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_a_released_permit_cannot_be_held(self, virtual):
        async def main() -> None:
            permit = await Limits(concurrency=1).acquire()
            permit.release()
            with pytest.raises(RuntimeError, match="was released"), permit:
                pass

        virtual(main())

    def test_a_permit_may_be_released_in_another_task(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            permit = (await limits.acquire()).hold()

            async def other() -> None:
                permit.release()

            await asyncio.ensure_future(other())
            (await limits.acquire()).release()
            assert "0 in use" in repr(limits)

        virtual(main())

    def test_the_rate_is_charged_for_each_level(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1, rate=Rate(2, 60, burst=2))
            with await limits.acquire():
                with await limits.acquire():
                    pass
                assert limits.try_acquire() is None

        virtual(main())

    def test_other_limits_are_not_lent(self, virtual):
        async def main() -> None:
            outer, inner = Limits(concurrency=1), Limits(concurrency=1)
            with await outer.acquire(), await inner.acquire():
                assert "1 in use" in repr(outer)

        virtual(main())

    def test_a_chain_of_tasks_keeps_only_living_permits(self, virtual):
        async def main() -> None:
            limits = Limits(concurrency=1)
            done = asyncio.get_running_loop().create_future()
            chain: list[Permit] = []
            tasks: list[asyncio.Task[None]] = []

            async def link(left: int, begun: asyncio.Event) -> None:
                permit = await limits.acquire()
                with permit:
                    begun.set()
                    chain.append(permit)
                    if left:
                        follows = asyncio.Event()
                        tasks.append(asyncio.ensure_future(link(left - 1, follows)))
                        await follows.wait()
                    else:
                        done.set_result(None)

            await link(50, asyncio.Event())
            await done
            depth, permit = 0, chain[-1]
            while permit is not None:
                depth, permit = depth + 1, permit._outer
            assert depth <= 3
            await asyncio.gather(*tasks)

        virtual(main())


class TestSeveral:
    def test_what_is_held_of_one_is_not_held_while_the_other_is_waited_for(self, virtual):
        async def main() -> None:
            gate, paced = Limits(concurrency=1), Limits(rate=Rate(1, 60))
            release(await acquire_all([gate, paced]))
            task = asyncio.ensure_future(acquire_all([gate, paced]))
            await settle()
            assert "0 in use" in repr(gate)
            started = now()
            permits = await task
            assert now() - started > 59
            assert gate.try_acquire() is None
            release(permits)

        virtual(main())

    def test_what_a_rate_counts_leaves_at_that_time(self, virtual):
        """A rate is not used up by those who then wait for something else and leave together."""

        async def main() -> None:
            rate, gate = Limits(rate="10/s"), Limits(concurrency=100)
            gate.pause(10)
            tasks = [asyncio.ensure_future(acquire_all([rate, gate])) for _ in range(40)]
            times = []
            for task in asyncio.as_completed(tasks):
                await task
                times.append(now())
            for begin in times:
                assert sum(begin <= time < begin + 1 for time in times) <= 10

        virtual(main())

    def test_it_is_first_come_first_served(self, virtual, virtual_loop):
        first, second = Limits(concurrency=1), Limits(concurrency=1)

        async def main() -> None:
            order = []

            async def one(place: int) -> None:
                # Named in either order, they never wait for each other.
                permits = await acquire_all([first, second] if place % 2 else [second, first])
                order.append(place)
                await asyncio.sleep(1)
                release(permits)

            await asyncio.gather(*(one(place) for place in range(20)))
            assert order == [*range(20)]

        virtual(main())
        assert_untouched(first, virtual_loop)
        assert_untouched(second, virtual_loop)

    def test_one_key_does_not_hold_up_the_rest(self, virtual):
        async def main() -> None:
            everything, hosts = Limits(concurrency=10), Limits(concurrency=1, per=str)
            held = await acquire_all([everything, hosts], "a")
            stuck = asyncio.ensure_future(acquire_all([everything, hosts], "a"))
            await settle()
            async with asyncio.timeout(1):
                release(await acquire_all([everything, hosts], "b"))
            release(held)
            release(await stuck)

        virtual(main())

    def test_one_paused_key_does_not_hold_up_the_rest(self, virtual):
        async def main() -> None:
            everything, hosts = Limits(concurrency=1), Limits(concurrency=5, per=str)
            hosts.pause(10, "a")
            paused = asyncio.ensure_future(acquire_all([everything, hosts], "a"))
            await settle()
            assert everything.try_acquire().release() is None
            release(await paused)
            assert now() == 1010

        virtual(main())

    def test_cancelled_at_any_stage_it_leaves_nothing(self, virtual, virtual_loop):
        first, second = Limits(concurrency=1, per=str), Limits(concurrency=1)

        async def main() -> None:
            for holding in ([first], [second], [first, second], []):
                held = try_acquire_all(holding, "a")
                tasks = [asyncio.ensure_future(acquire_all([first, second], "a")) for _ in range(3)]
                await settle()
                release(held)
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(ended, list):
                        release(ended)
                permits = try_acquire_all([first, second], "a")
                assert permits is not None
                release(permits)

        virtual(main())
        assert_untouched(first, virtual_loop)
        assert_untouched(second, virtual_loop)

    def test_nested_in_both_of_two_they_do_not_wait_for_each_other(self, virtual, virtual_loop):
        first, second = Limits(concurrency=1), Limits(concurrency=1)

        async def call(level: int) -> None:
            outer, inner = await acquire_all([first, second])
            with outer, inner:
                await asyncio.sleep(1)
                if level:
                    await asyncio.gather(call(level - 1), call(level - 1))

        async def main() -> None:
            await asyncio.gather(*(call(2) for _ in range(3)))

        virtual(main())
        assert_untouched(first, virtual_loop)
        assert_untouched(second, virtual_loop)

    @pytest.mark.parametrize("busy", [False, True])
    def test_where_one_refuses_nothing_is_taken_of_the_others(self, virtual, busy):
        async def main() -> None:
            first, keyed, small = (
                Limits(concurrency=5),
                Limits(concurrency=5, per=list),
                Limits(concurrency=2),
            )
            held = taken(first) if busy else []
            with pytest.raises(TypeError, match="can't be hashed"):
                await acquire_all([first, keyed], "a")
            with pytest.raises(ValueError, match="weight 3 can never be admitted"):
                await acquire_all([first, small], weight=3)
            release(held)
            assert len(taken(first)) == 5

        virtual(main())

    def test_what_is_there_at_once_is_taken_at_once_or_not_at_all(self, virtual):
        async def main() -> None:
            first, second = Limits(concurrency=1, rate=Rate(2, 60, burst=2)), Limits(concurrency=1)
            held = second.try_acquire()
            for _ in range(5):
                assert try_acquire_all([first, second]) is None
            held.release()
            assert len(try_acquire_all([first, second])) == 2

        virtual(main())


class TestLoops:
    def test_the_same_limits_work_on_one_loop_after_the_other(self, loop_factory):
        limits = Limits(concurrency=2)

        async def main() -> None:
            async def one() -> None:
                with await limits.acquire():
                    await asyncio.sleep(0)

            await asyncio.gather(*(one() for _ in range(10)))
            await limits.acquire()  # never released

        for _ in range(3):
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main())

    def test_what_a_dead_loop_held_or_waited_for_is_void(self, new_virtual_loop):
        limits = Limits(concurrency=1, rate=Rate(1, 3600))
        held = []

        async def first() -> None:
            held.append(await limits.acquire())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await limits.acquire()

        async def second() -> None:
            permit = await limits.acquire()
            held[0].release()
            assert "1 in use, 0 waiting" in repr(limits)
            permit.release()

        for main in (first(), second()):
            loop = new_virtual_loop()
            loop.run_until_complete(main)
            loop.close()

    def test_rates_and_pauses_carry_over_while_the_clock_goes_on(self, new_virtual_loop):
        limits = Limits(concurrency=Auto(start=10), rate=Rate(1, 60))

        async def first() -> None:
            limits.try_acquire().release(Overloaded())
            limits.pause(100)

        async def second() -> None:
            assert limits.in_force() == 9
            await limits.acquire()
            assert now() >= 1100

        for main in (first(), second()):
            loop = new_virtual_loop()
            loop.run_until_complete(main)
            loop.close()

    def test_they_start_anew_when_the_clock_went_back(self, new_virtual_loop):
        limits = Limits(rate=Rate(1, 60))

        async def main() -> None:
            assert limits.try_acquire() is not None
            assert limits.try_acquire() is None

        for start in (1000.0, 500.0):
            loop = new_virtual_loop()
            loop.now = start
            loop.run_until_complete(main())
            loop.close()

    def test_two_running_loops_at_once_are_refused(self, loop_factory):
        limits = Limits(concurrency=1)
        faults = []

        async def elsewhere() -> None:
            with pytest.raises(
                RuntimeError, match="in use by an event loop that runs in another thread"
            ) as raised:
                await limits.acquire()
            faults.append(raised.value)

        async def main() -> None:
            with await limits.acquire():
                thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
                thread.start()
                await asyncio.get_running_loop().run_in_executor(None, thread.join)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        assert len(faults) == 1

    def test_who_waited_on_a_loop_that_was_left_is_told(self, new_virtual_loop):
        limits = Limits(concurrency=1)
        left, other = new_virtual_loop(), new_virtual_loop()

        async def start() -> asyncio.Task[Permit]:
            limits.try_acquire()
            task = asyncio.ensure_future(limits.acquire())
            await settle()
            return task

        async def use() -> None:
            limits.try_acquire().release()

        task = left.run_until_complete(start())
        other.run_until_complete(use())
        with pytest.raises(RuntimeError, match="taken over by another event loop"):
            left.run_until_complete(task)
        left.close()
        other.close()

    def test_a_permit_may_be_released_after_its_loop_was_closed_with_waiters(self, new_virtual_loop):
        limits = Limits(concurrency=1)
        loop = new_virtual_loop()
        loop.set_exception_handler(lambda loop, context: None)  # of the tasks that it destroys

        async def start() -> Permit:
            waiting = Waiting(limits)
            permit = await limits.acquire()
            await waiting.add("first", "second")
            return permit

        permit = loop.run_until_complete(start())
        loop.close()
        permit.release()
        gc.collect()

    def test_the_real_clock_keeps_the_rate(self, loop_factory):
        limits = Limits(rate="1000/s")
        times = []

        async def worker() -> None:
            while not times or times[-1] < times[0] + 1.2:
                (await limits.acquire()).release()
                times.append(now())

        async def main() -> None:
            await asyncio.gather(*(worker() for _ in range(20)))

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        first = 0
        for last, time in enumerate(times):
            while times[first] <= time - 1:
                first += 1
            assert last - first + 1 <= 1000
        assert len(times) > 0.8 * 1200


async def test_a_cancellation_is_no_overload(loop):
    asked = []

    def overload(error):
        asked.append(error)
        return error.status == 429

    limits = Limits(concurrency="auto", overload=overload)
    with pytest.raises(asyncio.CancelledError), await limits.acquire():
        raise asyncio.CancelledError
    assert asked == []
