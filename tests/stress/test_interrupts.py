"""Ctrl-C stops a program promptly, in whatever it does, and costs no queued callback."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True)
def python_default_sigint() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_interrupt_in_the_middle_of_the_queue(loop: asyncio.AbstractEventLoop) -> None:
    """Every tenth callback is hit by a signal; the loop is started again each time, and all run, in order."""
    ran: list[int] = []
    total = 5_000

    def callback(number: int) -> None:
        ran.append(number)
        if number % 10 == 0:
            signal.raise_signal(signal.SIGINT)
        if number == total - 1:
            loop.stop()

    for number in range(total):
        loop.call_soon(callback, number)
    interrupts = 0
    while len(ran) < total:
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            interrupts += 1
    assert ran == list(range(total))
    assert interrupts == total // 10


def test_interrupt_among_timers_threads_and_sockets(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[str] = []

    def interrupted(name: str) -> None:
        ran.append(name)
        signal.raise_signal(signal.SIGINT)

    now = loop.time()
    for number in range(100):
        loop.call_at(now, interrupted if number % 7 == 0 else ran.append, f"timer {number}")
        loop.call_soon_threadsafe(interrupted if number % 7 == 1 else ran.append, f"thread {number}")
        loop.call_soon(interrupted if number % 7 == 2 else ran.append, f"soon {number}")
    loop.call_at(now + 0.01, ran.append, "last")
    while "last" not in ran:
        try:
            loop.call_later(0.02, loop.stop)
            loop.run_forever()
        except KeyboardInterrupt:
            continue
    expected = [f"{kind} {number}" for number in range(100) for kind in ("timer", "thread", "soon")]
    assert sorted(ran) == sorted([*expected, "last"])


def test_interrupts_at_any_moment_lose_no_callback(loop: asyncio.AbstractEventLoop, loop_name: str) -> None:
    """A timer signal raises KeyboardInterrupt wherever it strikes; what is written in C runs exactly once.

    (A callback in Python may itself be struck before its first line, so only C functions are counted.)
    """
    if loop_name == "asyncio":
        pytest.skip(
            "asyncio's loop is itself Python code: an interrupt between two of its lines can lose a callback"
        )
    ran: deque[int] = deque()
    total, made, interrupts = 200_000, 0, 0

    def feed() -> None:
        """Struck at any line; `made` and the queue move together, in one call that is not Python code."""
        for _ in range(100):
            if made < total:
                make()

    def busy() -> None:
        sum(range(300))

    numbers = iter(range(total))

    def make() -> None:
        nonlocal made
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            loop.call_soon(ran.append, next(numbers))
            made += 1
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    def strike(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Hypothesis has the collector call a function of its own, where an interrupt would be an unraisable exception.
    collector_callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    previous = signal.signal(signal.SIGALRM, strike)
    try:
        while made < total:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                for _ in range(20):
                    loop.call_soon(feed)
                    loop.call_soon(busy)
                loop.call_soon(loop.stop)
                signal.setitimer(signal.ITIMER_REAL, 0.0007)
                loop.run_forever()
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks[:] = collector_callbacks
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert interrupts > 20
    assert list(ran) == list(range(total))


PROGRAMS = {
    "idle": "await asyncio.Event().wait()",
    "asleep": "await asyncio.sleep(3600)",
    "spinning": "while True: await asyncio.sleep(0)",
    "callbacks": """
        def again(): loop.call_soon(again)
        again()
        await asyncio.Event().wait()""",
    "c callbacks": """
        def again():
            for _ in range(1000): loop.call_soon(int)
            loop.call_soon(again)
        again()
        await asyncio.Event().wait()""",
    "serving": """
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        await server.serve_forever()""",
    "computing": "while True: sum(range(1000))",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_ends_a_program(program: str, loop_name: str) -> None:
    """The main task is cancelled, its `finally` runs, and KeyboardInterrupt comes out."""
    body = textwrap.indent(textwrap.dedent(PROGRAMS[program]).strip(), " " * 8)
    factory = "unwait.new_event_loop" if loop_name == "unwait" else "asyncio.SelectorEventLoop"
    source = f"""
import asyncio, unwait
async def main():
    loop = asyncio.get_running_loop()
    print("started", flush=True)
    try:
{body}
    finally:
        print("cleaned up", flush=True)
with asyncio.Runner(loop_factory={factory}) as runner:
    try:
        runner.run(main())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise
"""
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n", child.communicate()[1]
            if (
                program == "computing"
            ):  # no task switch will ever come: the second Ctrl-C strikes the code itself
                child.send_signal(signal.SIGINT)
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(0.3)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert out.splitlines() == ["cleaned up", "interrupted"]
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert child.returncode == -signal.SIGINT


async def test_signal_storm_reaches_every_handler(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """`add_signal_handler` callbacks run for each raised signal that was waited for, and none is mixed up."""
    loop = asyncio.get_running_loop()
    counts = {signal.SIGUSR1: 0, signal.SIGUSR2: 0, signal.SIGHUP: 0}
    arrived = asyncio.Event()

    def handler(signum: signal.Signals) -> None:
        counts[signum] += 1
        arrived.set()

    for signum in counts:
        loop.add_signal_handler(signum, handler, signum)
    for _ in range(300):
        for signum in counts:
            arrived.clear()
            signal.raise_signal(signum)
            await arrived.wait()
    assert set(counts.values()) == {300}
    for signum in counts:
        assert loop.remove_signal_handler(signum)
