"""call_soon, call_soon_threadsafe, call_later, call_at: order, contexts, cancelling, what a handle shows."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from .support import turns

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


def run_once(loop):
    loop.stop()
    loop.run_forever()


def test_call_soon_runs_in_order(loop):
    order = []
    for number in range(1000):
        loop.call_soon(order.append, number)
    run_once(loop)
    assert order == list(range(1000))


def test_call_soon_passes_any_number_of_arguments(loop):
    seen = []
    for count in range(12):
        loop.call_soon(lambda *args: seen.append(args), *range(count))
    run_once(loop)
    assert seen == [tuple(range(count)) for count in range(12)]


def test_what_a_callback_schedules_runs_in_the_next_round(loop):
    order = []
    loop.call_soon(lambda: loop.call_soon(order.append, "later"))
    loop.call_soon(order.append, "now")
    run_once(loop)
    assert order == ["now"]
    run_once(loop)
    assert order == ["now", "later"]


def test_a_cancelled_callback_does_not_run(loop):
    order = []
    handles = [loop.call_soon(order.append, number) for number in range(6)]
    for handle in handles[::2]:
        handle.cancel()
    run_once(loop)
    assert order == [1, 3, 5]
    assert [handle.cancelled() for handle in handles] == [True, False] * 3


def test_a_callback_cancels_one_of_its_own_round(loop):
    order = []
    loop.call_soon(lambda: handle.cancel())
    handle = loop.call_soon(order.append, "cancelled")
    run_once(loop)
    assert order == []


def test_cancelling_twice_or_after_the_run_is_harmless(loop):
    order = []
    handle = loop.call_soon(order.append, 1)
    run_once(loop)
    handle.cancel()
    handle.cancel()
    assert handle.cancelled()
    assert order == [1]


def test_cancel_releases_the_callback_and_its_arguments(loop):
    class Held:
        pass

    held = Held()
    reference = weakref.ref(held)
    handles = [loop.call_soon(print, held), loop.call_later(1000, print, held)]
    for handle in handles:
        handle.cancel()
    del held
    gc.collect()
    assert reference() is None


def test_a_run_callback_and_its_arguments_are_released(loop):
    class Held:
        def call(self, _):
            pass

    held = Held()
    reference = weakref.ref(held)
    loop.call_soon(held.call, held)
    run_once(loop)
    del held
    gc.collect()
    assert reference() is None


def test_handles_are_handles(loop):
    soon, later, at_once = loop.call_soon(print), loop.call_later(1000, print), loop.call_later(0, print)
    threadsafe = loop.call_soon_threadsafe(print)
    at = loop.call_at(loop.time() + 1000, print)
    for handle in (soon, threadsafe, later, at_once, at):
        assert isinstance(handle, asyncio.Handle)
        assert not handle.cancelled()
    for handle in (later, at_once, at):
        assert isinstance(handle, asyncio.TimerHandle)
    assert not isinstance(soon, asyncio.TimerHandle)
    for handle in (soon, threadsafe, later, at_once, at):
        handle.cancel()


def test_handle_repr_names_the_callback_and_its_state(loop):
    def announce(*args):
        pass

    handle = loop.call_soon(announce, 1, "two")
    assert "Handle" in repr(handle)
    assert "announce" in repr(handle)
    assert "test_callbacks.py:" in repr(handle)
    assert "cancelled" not in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)


def test_timer_repr_tells_when(loop):
    handle = loop.call_later(1000, print)
    assert "TimerHandle" in repr(handle)
    assert f"when={handle.when()}" in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)


def test_debug_handles_say_where_they_were_created(loop):
    loop.set_debug(True)
    handle = loop.call_soon(print)
    timer = loop.call_later(1000, print)
    for each in (handle, timer):
        assert "created at" in repr(each)
        assert "test_callbacks.py" in repr(each)
        assert each._source_traceback[-1].name == "test_debug_handles_say_where_they_were_created"
        each.cancel()


def test_handles_know_their_context(loop):
    if sys.version_info < (3, 12):
        pytest.skip("Handle.get_context came with Python 3.12")
    context = contextvars.copy_context()
    handle = loop.call_soon(print, context=context)
    assert handle.get_context() is context
    handle.cancel()


def test_handles_have_no_dict_and_can_be_weakly_referenced(loop):
    handle = loop.call_later(1000, print)
    assert weakref.ref(handle)() is handle
    with pytest.raises(AttributeError):
        handle.anything = 1
    handle.cancel()


def test_timer_handles_compare_by_time(loop):
    at = loop.time() + 1000
    early, late = loop.call_at(at, print), loop.call_at(at + 1, print)
    assert early < late
    assert early <= late
    assert late > early
    assert late >= early
    assert early != late
    assert early == early
    assert len({early, late, early}) == 2
    early.cancel()
    late.cancel()


# Contexts


def test_callbacks_run_in_the_context_they_were_scheduled_from(loop):
    seen = []

    def schedule():
        VARIABLE.set("scheduled")
        loop.call_soon(lambda: seen.append(VARIABLE.get()))
        loop.call_soon_threadsafe(lambda: seen.append(VARIABLE.get()))
        loop.call_later(0, lambda: seen.append(VARIABLE.get()))

    contextvars.copy_context().run(schedule)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == ["scheduled"] * 3
    assert VARIABLE.get() == "unset"


def test_a_given_context_is_used_itself(loop):
    context = contextvars.copy_context()
    loop.call_soon(VARIABLE.set, "soon", context=context)
    run_once(loop)
    assert context[VARIABLE] == "soon"
    loop.call_soon_threadsafe(VARIABLE.set, "threadsafe", context=context)
    run_once(loop)
    assert context[VARIABLE] == "threadsafe"
    loop.call_later(0, VARIABLE.set, "later", context=context)
    loop.call_later(0, loop.stop)
    loop.run_forever()
    assert context[VARIABLE] == "later"
    loop.call_at(loop.time(), VARIABLE.set, "at", context=context)
    loop.call_later(0, loop.stop)
    loop.run_forever()
    assert context[VARIABLE] == "at"
    assert VARIABLE.get() == "unset"


def test_a_failing_callback_leaves_its_context(loop, loop_errors):
    def fail():
        VARIABLE.set("inside")
        raise ValueError

    seen = []
    loop.call_soon(fail, context=contextvars.copy_context())
    loop.call_soon(lambda: seen.append(VARIABLE.get()))
    run_once(loop)
    assert seen == ["unset"]
    assert VARIABLE.get() == "unset"
    loop_errors.clear()


# Threads and signals


def test_call_soon_threadsafe_wakes_a_sleeping_loop(loop):
    threading.Timer(0.02, lambda: loop.call_soon_threadsafe(loop.stop)).start()
    timer = loop.call_later(60, print)
    start = time.monotonic()
    loop.run_forever()
    assert time.monotonic() - start < 5
    timer.cancel()


def test_no_call_from_other_threads_is_lost_and_each_threads_order_is_kept(loop):
    seen = []
    threads_left = 8

    def last():
        nonlocal threads_left
        threads_left -= 1
        if not threads_left:
            loop.stop()

    def schedule(name):
        for number in range(2000):
            loop.call_soon_threadsafe(seen.append, (name, number))
        loop.call_soon_threadsafe(last)

    threads = [threading.Thread(target=schedule, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert len(seen) == 16000
    for name in range(8):
        assert [number for who, number in seen if who == name] == list(range(2000))


def test_calls_from_threads_before_the_run_are_kept(loop):
    seen = []
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, "before"))
    thread.start()
    thread.join()
    run_once(loop)
    assert seen == ["before"]


async def test_a_thread_may_cancel_what_it_scheduled(loop):
    seen = []

    def work():
        handle = loop.call_soon_threadsafe(seen.append, 1)
        handle.cancel()
        assert handle.cancelled()

    # The loop's thread is held here, so that it cannot run the callback before it is cancelled.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    await turns()
    assert seen == []


async def test_run_coroutine_threadsafe_from_another_thread(loop):
    async def double(number):
        await asyncio.sleep(0)
        return 2 * number

    def work():
        return [asyncio.run_coroutine_threadsafe(double(n), loop).result(10) for n in range(50)]

    assert await loop.run_in_executor(None, work) == [2 * n for n in range(50)]


def test_call_soon_threadsafe_from_a_python_signal_handler(loop):
    seen = []
    before = signal.signal(
        signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(lambda: (seen.append(1), loop.stop()))
    )
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    timer = loop.call_later(60, print)
    try:
        loop.run_forever()
    finally:
        signal.signal(signal.SIGUSR1, before)
        timer.cancel()
    assert seen == [1]


def test_many_signals_while_the_loop_is_busy_lose_no_call(loop):
    handled, called = [], []

    def handler(*_):
        handled.append(1)
        loop.call_soon_threadsafe(called.append, 1)

    before = signal.signal(signal.SIGUSR1, handler)

    def storm():
        for _ in range(300):
            os.kill(os.getpid(), signal.SIGUSR1)
        loop.call_soon_threadsafe(loop.call_later, 0.01, loop.stop)

    def busy():
        loop.call_soon(busy_again)

    def busy_again():
        nonlocal handle
        handle = loop.call_soon(busy)

    handle = loop.call_soon(busy)
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        loop.run_forever()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        handle.cancel()
    assert handled
    assert len(called) == len(handled)


def test_keyboard_interrupt_in_a_callback_loses_no_queued_callback(loop):
    order = []

    def interrupt():
        raise KeyboardInterrupt

    loop.call_soon(order.append, "before")
    loop.call_soon(interrupt)
    for number in range(10):
        loop.call_soon(order.append, number)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert order == ["before"]
    run_once(loop)
    assert order == ["before", *range(10)]


def test_ctrl_c_during_a_long_queue_loses_no_callback(loop):
    order = []

    def work(number):
        order.append(number)
        if number == 500:
            signal.raise_signal(signal.SIGINT)

    for number in range(2000):
        loop.call_soon(work, number)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert len(order) < 2000
    run_once(loop)
    assert order == list(range(2000))


def test_ctrl_c_interrupts_a_sleeping_loop(loop):
    timer = loop.call_later(60, print)
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert time.monotonic() - start < 5
    timer.cancel()


# Timers


def test_timers_fire_in_the_order_of_their_times(loop):
    order = []
    now = loop.time()
    delays = [0.012, 0.004, 0.02, 0.008, 0.016, 0.0]
    for delay in delays:
        loop.call_at(now + delay, order.append, delay)
    loop.call_at(now + 0.03, loop.stop)
    loop.run_forever()
    assert order == sorted(delays)


def test_timers_never_fire_early(loop):
    early = []

    def check(at):
        if loop.time() < at:
            early.append(loop.time() - at)

    now = loop.time()
    for step in range(200):
        at = now + 0.001 + step * 0.00037
        loop.call_at(at, check, at)
    loop.call_at(now + 0.1, loop.stop)
    # asyncio takes what falls within the clock's resolution (1 ns) as due
    loop.run_forever()
    assert [gap for gap in early if gap < -time.get_clock_info("monotonic").resolution] == []


def test_sleep_never_returns_early(loop):
    async def main():
        for delay in (0.0003, 0.001, 0.0017, 0.0101):
            start = loop.time()
            await asyncio.sleep(delay)
            assert loop.time() - start >= delay - 1e-9

    loop.run_until_complete(main())


def test_call_later_returns_at_once_for_zero_and_negative_delays(loop):
    order = []
    loop.call_later(0, order.append, "zero")
    loop.call_later(-5, order.append, "negative")
    loop.call_at(0, order.append, "long ago")
    loop.call_soon(order.append, "soon")
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    assert sorted(order) == ["long ago", "negative", "soon", "zero"]


def test_when_is_the_time_asked_for(loop):
    at = loop.time() + 500
    handle = loop.call_at(at, print)
    assert handle.when() == at
    before = loop.time()
    later = loop.call_later(500, print)
    assert before + 500 <= later.when() <= loop.time() + 500
    handle.cancel()
    later.cancel()


def test_a_cancelled_timer_does_not_fire(loop):
    order = []
    handles = [loop.call_later(0.001, order.append, number) for number in range(10)]
    for handle in handles[1::2]:
        handle.cancel()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert order == [0, 2, 4, 6, 8]


def test_a_timer_cancels_another_due_in_the_same_round(loop):
    order = []
    at = loop.time() + 0.002
    loop.call_at(at, lambda: second.cancel())
    second = loop.call_at(at + 1e-7, order.append, "second")
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert order == []


def test_many_cancelled_timers_do_not_pile_up(loop):
    class Held:
        pass

    references = []
    for _ in range(5000):
        held = Held()
        references.append(weakref.ref(held))
        loop.call_later(3600, print, held).cancel()
    del held
    run_once(loop)
    gc.collect()
    assert not any(reference() for reference in references)


def test_a_timer_set_by_a_timer_fires(loop):
    order = []

    def first():
        order.append("first")
        loop.call_later(0, second)

    def second():
        order.append("second")
        loop.stop()

    loop.call_later(0.001, first)
    loop.run_forever()
    assert order == ["first", "second"]


def test_ready_callbacks_do_not_starve_timers(loop):
    spins = 0

    def spin():
        nonlocal spins, handle
        spins += 1
        handle = loop.call_soon(spin)

    handle = loop.call_soon(spin)
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    handle.cancel()
    assert spins > 1


def test_a_far_away_timer_is_accepted(loop):
    far = [loop.call_later(10.0**9, print), loop.call_at(float("inf"), print), loop.call_later(1e300, print)]
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    for handle in far:
        assert not handle.cancelled()
        handle.cancel()


def test_debug_refuses_coroutines_as_callbacks(loop):
    async def coroutine():
        pass

    loop.set_debug(True)
    with pytest.raises(TypeError, match=r"coroutines cannot be used with call_soon\(\)"):
        loop.call_soon(coroutine)
    with pytest.raises(TypeError, match=r"coroutines cannot be used with call_at\(\)|call_later\(\)"):
        loop.call_later(1, coroutine)
    with pytest.raises(TypeError, match=r"a callable object was expected by call_soon\(\)"):
        loop.call_soon(7)


def test_a_timer_that_is_always_late_shuts_nobody_out(loop):
    """A timer set for the past by a timer runs in the next iteration, after everything else."""
    rounds = []

    def late():
        rounds.append("late")
        if len(rounds) < 1000:
            loop.call_later(-1, late)

    loop.call_later(-1, late)
    loop.call_later(0, loop.stop)
    loop.run_forever()
    assert len(rounds) < 10
    while len(rounds) < 1000:
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_a_time_that_is_no_number(loop):
    with contextlib.suppress(ValueError):  # asyncio takes it, and loses its timers' order
        loop.call_at(float("nan"), print).cancel()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
