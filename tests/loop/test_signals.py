"""add_signal_handler, remove_signal_handler, and Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from .support import turns


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_handler_is_called_with_its_arguments(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "called")
    os.kill(os.getpid(), signal.SIGUSR1)
    await until(lambda: calls)
    assert calls == ["called"]
    assert loop.remove_signal_handler(signal.SIGUSR1) is True


async def test_it_runs_in_the_loop_and_wakes_it(loop):
    future = loop.create_future()

    def handler():
        assert asyncio.get_running_loop() is loop
        future.set_result(threading.current_thread())

    loop.add_signal_handler(signal.SIGUSR1, handler)
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    start = time.monotonic()
    assert await future is threading.main_thread()
    assert time.monotonic() - start < 5
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_a_second_handler_replaces_the_first(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "second")
    signal.raise_signal(signal.SIGUSR1)
    await until(lambda: calls)
    assert calls == ["second"]
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_several_signals_have_their_own_handlers(loop):
    calls = []
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        loop.add_signal_handler(number, calls.append, number)
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
        signal.raise_signal(number)
        await until(lambda expected=number: calls[-1:] == [expected])
    assert calls == [signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1]
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        loop.remove_signal_handler(number)


async def test_removing_restores_the_default(loop):
    loop.add_signal_handler(signal.SIGUSR1, print)
    assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, None)
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


async def test_removing_sigint_restores_ctrl_c(loop):
    loop.add_signal_handler(signal.SIGINT, print)
    assert loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_a_handler_of_sigint_takes_ctrl_c(loop):
    calls = []
    loop.add_signal_handler(signal.SIGINT, calls.append, 1)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: calls)
    loop.remove_signal_handler(signal.SIGINT)


def test_close_removes_all_handlers(loop):
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGUSR2, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


async def test_a_failing_handler_is_reported(loop, loop_errors):
    def fail():
        raise LookupError

    loop.add_signal_handler(signal.SIGUSR1, fail)
    signal.raise_signal(signal.SIGUSR1)
    await until(lambda: loop_errors)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert [type(context["exception"]) for context in loop_errors] == [LookupError]
    loop_errors.clear()


async def test_a_handler_may_remove_itself(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append(loop.remove_signal_handler(signal.SIGUSR1)))
    signal.raise_signal(signal.SIGUSR1)
    await until(lambda: calls)
    assert calls == [True]


async def test_system_calls_are_restarted(loop):
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"import os, signal; [os.kill({os.getpid()}, signal.SIGUSR1) for _ in range(50)]",
    )
    assert await child.wait() == 0
    await turns()
    loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize(
    ("number", "error"),
    [("text", TypeError), (1.5, TypeError), (0, ValueError), (-1, ValueError), (10_000, ValueError)],
)
def test_wrong_signals_are_refused(loop, number, error):
    with pytest.raises(error):
        loop.add_signal_handler(number, print)
    with pytest.raises(error):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_nobody_can_catch_are_refused(loop, number):
    with pytest.raises(RuntimeError, match=f"sig {int(number)} cannot be caught"):
        loop.add_signal_handler(number, print)


def test_coroutines_are_refused(loop):
    async def coroutine():
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)
    made = coroutine()
    with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
        loop.add_signal_handler(signal.SIGUSR1, made)
    made.close()


def test_other_threads_are_refused(loop):
    errors = []

    def work():
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        except (RuntimeError, ValueError) as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert type(errors[0]) is RuntimeError


def test_python_handlers_run_promptly_without_a_loop_handler(loop):
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
    timer = loop.call_later(5, loop.stop)

    async def main():
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: calls)

    try:
        loop.run_until_complete(main())
    finally:
        signal.signal(signal.SIGUSR1, before)
        timer.cancel()


PROGRAM = """
import asyncio, signal, sys, unwait
factory = {"unwait": unwait.Loop, "asyncio": asyncio.SelectorEventLoop}[sys.argv[1]]

async def main():
    print("ready", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise

try:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_program_promptly(loop_kind):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, loop_kind], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert output == "cancelled\ninterrupted\n"
    assert process.returncode == 0
    assert time.monotonic() - start < 5
