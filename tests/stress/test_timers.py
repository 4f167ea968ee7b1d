"""Timers under load: none early, none lost, none after its cancellation, and nobody starves."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import time
import weakref

TIMERS = 20_000
SPAN = 0.5  # seconds over which the timers are spread
SEED = 7


async def test_none_early_none_lost_none_out_of_order(loop_name: str) -> None:
    loop = asyncio.get_running_loop()
    rng = random.Random(SEED)
    # asyncio fires up to one tick of its clock early; unwait promises that it never does.
    tolerance = 0.0 if loop_name == "unwait" else time.get_clock_info("monotonic").resolution
    fired: list[tuple[float, int]] = []
    early: list[float] = []
    handles: dict[int, asyncio.TimerHandle] = {}

    def fire(number: int, when: float) -> None:
        now = loop.time()
        if now < when - tolerance:
            early.append(when - now)
        fired.append((when, number))

    start = loop.time()
    for number in range(TIMERS):
        when = start + rng.random() * SPAN
        handles[number] = loop.call_at(when, fire, number, when)
        assert handles[number].when() == when
    cancelled = set(rng.sample(range(TIMERS), TIMERS // 3))
    at_once, later = list(cancelled)[::2], list(cancelled)[1::2]
    for number in at_once:
        handles[number].cancel()
    load_until = loop.time() + SPAN / 2

    def load() -> None:
        """Keeps the loop busy for the first half, so that many timers come due at once."""
        if loop.time() < load_until:
            time.sleep(0.002)
            loop.call_soon(load)

    loop.call_soon(load)
    while later:  # the rest is cancelled while the timers run
        number = later.pop()
        if handles[number].when() > loop.time() + 0.1:
            handles[number].cancel()
        else:
            cancelled.discard(number)
        if len(later) % 500 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(start + SPAN - loop.time())
    while len(fired) < TIMERS - len(cancelled):
        await asyncio.sleep(0.001)
    assert early == []
    assert {number for _, number in fired} == set(range(TIMERS)) - cancelled
    assert len(fired) == TIMERS - len(cancelled)
    assert [when for when, _ in fired] == sorted(when for when, _ in fired)


async def test_sleeps_are_never_short() -> None:
    loop = asyncio.get_running_loop()
    rng = random.Random(SEED)

    async def nap(seconds: float) -> float:
        start = loop.time()
        await asyncio.sleep(seconds)
        return loop.time() - start - seconds

    over = await asyncio.gather(*(nap(rng.random() * 0.3) for _ in range(10_000)))
    assert min(over) > -1e-6


async def test_cancelled_timers_hold_nothing() -> None:
    """A hundred thousand time-outs set and cancelled: what they would have called is free at once."""
    loop = asyncio.get_running_loop()

    class Held:
        def callback(self) -> None:
            raise AssertionError("a cancelled timer fired")

    kept = [loop.call_later(3_600, Held().callback) for _ in range(100)]
    gone: list[weakref.ref[Held]] = []
    for number in range(100_000):
        held = Held()
        handle = loop.call_later(0.0001 if number % 2 else 3_600, held.callback)
        handle.cancel()
        handle.cancel()
        if number % 1_000 == 0:
            gone.append(weakref.ref(held))
    del held, handle
    gc.collect()
    assert not any(ref() for ref in gone)
    await asyncio.sleep(0.01)
    for handle in kept:
        assert not handle.cancelled()
        handle.cancel()


async def test_endless_callbacks_starve_neither_timers_nor_sockets() -> None:
    loop = asyncio.get_running_loop()
    spinning = True

    def spin() -> None:
        if spinning:
            loop.call_soon(spin)

    for _ in range(10):
        loop.call_soon(spin)
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        start = loop.time()
        for number in range(200):
            await loop.sock_sendall(left, b"%d" % number)
            assert await loop.sock_recv(right, 10) == b"%d" % number
            await asyncio.sleep(0.0005)
        assert loop.time() - start < 20
    spinning = False


async def test_due_timers_that_set_due_timers_starve_no_socket() -> None:
    """A timer that always sets another one that is due already leaves turns for the rest."""
    loop = asyncio.get_running_loop()
    turning = True

    def turn() -> None:
        if turning:
            loop.call_at(0, turn)

    turn()
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.send(b"here")
        assert await loop.sock_recv(left, 10) == b"here"
    turning = False


async def test_timeouts_race_with_what_they_guard() -> None:
    """Time-outs and results that come at the same moment: one of the two, never both and never neither."""
    loop = asyncio.get_running_loop()
    rng = random.Random(SEED)

    async def race() -> bool:
        result: asyncio.Future[int] = loop.create_future()
        moment = loop.time() + rng.random() * 0.2
        loop.call_at(moment, lambda: result.done() or result.set_result(1))
        try:
            async with asyncio.timeout_at(moment):
                assert await result == 1
            return True
        except TimeoutError:
            return False

    outcomes = await asyncio.gather(*(race() for _ in range(3_000)))
    assert len(outcomes) == 3_000
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
