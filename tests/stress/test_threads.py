"""`call_soon_threadsafe` from eight threads loses no call, on a busy, an idle or a stopping loop."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable

import pytest

THREADS = 8
CALLS = 5_000  # of each thread
WAIT = 30.0  # seconds that a thread waits for the loop before it calls it lost


@pytest.fixture
def gang() -> Callable[[Callable[[int], None]], Callable[[], None]]:
    """Start `THREADS` threads at once; the result joins them and raises what the first failed one raised."""

    def start(work: Callable[[int], None]) -> Callable[[], None]:
        barrier, errors = threading.Barrier(THREADS), list[BaseException]()

        def body(number: int) -> None:
            try:
                barrier.wait()
                work(number)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=body, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()

        def join() -> None:
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]

        return join

    return start


Gang = Callable[[Callable[[int], None]], Callable[[], None]]


def check_all_in_order(seen: list[tuple[int, int]], calls: int = CALLS) -> None:
    """Every thread's calls ran once each, and in the order in which that thread made them."""
    for thread in range(THREADS):
        assert [call for number, call in seen if number == thread] == list(range(calls))


@pytest.mark.parametrize("busy", [False, True], ids=["sleeping", "busy"])
def test_no_call_is_lost(loop: asyncio.AbstractEventLoop, gang: Gang, busy: bool) -> None:
    seen: list[tuple[int, int]] = []
    total = THREADS * CALLS

    def called(number: int, call: int) -> None:
        seen.append((number, call))
        if len(seen) == total:
            loop.stop()

    def work(number: int) -> None:
        for call in range(CALLS):
            loop.call_soon_threadsafe(called, number, call)

    def spin() -> None:
        loop.call_soon(spin)

    if busy:
        loop.call_soon(spin)
    join = gang(work)
    loop.run_forever()
    join()
    check_all_in_order(seen)


def test_each_call_wakes_an_idle_loop(loop: asyncio.AbstractEventLoop, gang: Gang) -> None:
    """The threads wait for each call before they make the next: a single missed wake-up is a hang."""
    rounds, done = 300, [0]

    def finished() -> None:
        done[0] += 1
        if done[0] == THREADS:
            loop.stop()

    def work(number: int) -> None:
        try:
            for _ in range(rounds):
                ran = threading.Event()
                loop.call_soon_threadsafe(ran.set)
                assert ran.wait(WAIT), "the loop was not woken"
        finally:
            loop.call_soon_threadsafe(finished)

    join = gang(work)
    loop.run_forever()
    join()


def test_stopping_and_starting_loses_no_call(loop: asyncio.AbstractEventLoop, gang: Gang) -> None:
    """The loop is stopped by every 50th call, started again, and meanwhile not running at all.

    Each thread waits for every 500th of its calls to have run, so that no run of the loop can take them all.
    """
    seen: list[tuple[int, int]] = []
    ran = [threading.Event() for _ in range(THREADS)]
    total = THREADS * CALLS
    runs = 0

    def called(number: int, call: int) -> None:
        seen.append((number, call))
        if call % 50 == 49:
            loop.stop()
        if call % 500 == 499:
            ran[number].set()

    def work(number: int) -> None:
        for call in range(CALLS):
            loop.call_soon_threadsafe(called, number, call)
            if call % 500 == 499:
                assert ran[number].wait(WAIT), "a call was lost while the loop was stopped"
                ran[number].clear()

    join = gang(work)
    while len(seen) < total:
        loop.run_forever()
        runs += 1
    join()
    assert runs >= CALLS // 500
    check_all_in_order(seen)


def test_close_refuses_but_never_crashes_the_callers(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], gang: Gang
) -> None:
    """Threads call on while the loop closes under them: RuntimeError from then on, nothing else."""
    for _ in range(20):
        loop = loop_factory()
        refused = []

        def work(
            number: int, loop: asyncio.AbstractEventLoop = loop, refused: list[tuple[int, str]] = refused
        ) -> None:
            while True:
                time.sleep(0)  # gives way: eight greedy threads would keep the loop from its turn for long
                try:
                    loop.call_soon_threadsafe(int)
                except RuntimeError as error:
                    refused.append((number, str(error)))
                    return

        join = gang(work)
        loop.call_later(0.005, loop.stop)
        loop.run_forever()
        loop.close()
        join()
        assert sorted(refused) == [(number, "Event loop is closed") for number in range(THREADS)]


async def test_coroutines_sent_from_threads_answer_their_sender(gang: Gang) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    running = [THREADS]

    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    def leave() -> None:
        running[0] -= 1
        if not running[0]:
            done.set()

    def work(number: int) -> None:
        try:
            for call in range(200):
                value = number * 10_000 + call
                assert asyncio.run_coroutine_threadsafe(double(value), loop).result(WAIT) == 2 * value
        finally:
            loop.call_soon_threadsafe(leave)

    join = gang(work)
    await done.wait()
    join()


async def test_signal_handlers_and_threads_at_once(gang: Gang) -> None:
    """`call_soon_threadsafe` from a Python signal handler, in the midst of the threads' calls."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[int, int]] = []
    from_signals, raised = [0], [0]
    all_calls = asyncio.Event()

    def count_signal() -> None:
        from_signals[0] += 1

    def on_signal(signum: int, frame: object) -> None:
        raised[0] += 1
        loop.call_soon_threadsafe(count_signal)

    def called(number: int, call: int) -> None:
        seen.append((number, call))
        if len(seen) == THREADS * CALLS:
            all_calls.set()

    def work(number: int) -> None:
        for call in range(CALLS):
            loop.call_soon_threadsafe(called, number, call)

    previous = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        join = gang(work)
        await all_calls.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    join()
    await asyncio.sleep(0)
    check_all_in_order(seen)
    assert raised[0] > 0
    assert from_signals == raised
