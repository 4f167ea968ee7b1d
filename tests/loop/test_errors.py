"""The exception handler, and what debug mode tells: slow callbacks, calls from the wrong thread."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time

import pytest

from .support import Peer, connected, socket_connected, turns


def run_once(loop):
    loop.stop()
    loop.run_forever()


def fail():
    raise LookupError("in the callback")


@pytest.fixture
def plain_loop(loop_factory):
    """A loop with asyncio's own exception handling."""
    return loop_factory()


def test_a_failing_callback_is_told_to_the_handler(loop, loop_errors):
    handle = loop.call_soon(fail)
    run_once(loop)
    (context,) = loop_errors
    assert context["message"].startswith("Exception in callback ")
    assert "fail" in context["message"]
    assert isinstance(context["exception"], LookupError)
    assert context["handle"] is handle
    loop_errors.clear()


def test_a_failing_timer_is_told_to_the_handler(loop, loop_errors):
    handle = loop.call_later(0, fail)
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    (context,) = loop_errors
    assert context["handle"] is handle
    loop_errors.clear()


def test_the_callbacks_after_a_failing_one_run(loop, loop_errors):
    order = []
    loop.call_soon(fail)
    loop.call_soon(order.append, "next")
    run_once(loop)
    assert order == ["next"]
    loop_errors.clear()


def test_the_default_handler_logs(plain_loop, caplog):
    plain_loop.call_soon(fail)
    run_once(plain_loop)
    (record,) = [record for record in caplog.records if record.name == "asyncio"]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("Exception in callback fail()")
    assert isinstance(record.exc_info[1], LookupError)


def test_debug_says_where_the_handle_was_created(loop, loop_errors):
    loop.set_debug(True)
    loop.call_soon(fail)
    run_once(loop)
    (context,) = loop_errors
    assert context["source_traceback"][-1].name == "test_debug_says_where_the_handle_was_created"
    loop_errors.clear()


def test_the_default_handler_logs_where_the_handle_was_created(plain_loop, caplog):
    plain_loop.set_debug(True)
    plain_loop.call_soon(fail)
    run_once(plain_loop)
    assert "Object created at (most recent call last):" in caplog.text
    assert "test_the_default_handler_logs_where_the_handle_was_created" in caplog.text


def test_the_handler_is_set_and_given(plain_loop):
    seen = []

    def handler(loop, context):
        seen.append((loop, context["message"]))

    assert plain_loop.get_exception_handler() is None
    plain_loop.set_exception_handler(handler)
    assert plain_loop.get_exception_handler() is handler
    plain_loop.call_exception_handler({"message": "told"})
    assert seen == [(plain_loop, "told")]
    plain_loop.set_exception_handler(None)
    assert plain_loop.get_exception_handler() is None


def test_a_handler_must_be_callable(plain_loop):
    with pytest.raises(TypeError, match="A callable object or None is expected, got 7"):
        plain_loop.set_exception_handler(7)


def test_a_handler_that_fails_is_logged(plain_loop, caplog):
    def handler(loop, context):
        raise ArithmeticError("in the handler")

    plain_loop.set_exception_handler(handler)
    plain_loop.call_soon(fail)
    run_once(plain_loop)
    assert "Unhandled error in exception handler" in caplog.text


def test_keyboard_interrupt_in_the_handler_comes_out(plain_loop):
    def handler(loop, context):
        raise KeyboardInterrupt

    plain_loop.set_exception_handler(handler)
    plain_loop.call_soon(fail)
    with pytest.raises(KeyboardInterrupt):
        plain_loop.run_forever()
    plain_loop.set_exception_handler(None)


def test_the_default_handler_tells_all_it_knows(plain_loop, caplog):
    plain_loop.default_exception_handler({"message": "told", "detail": "a detail"})
    assert "told" in caplog.text
    assert "detail: 'a detail'" in caplog.text


def test_a_custom_handler_may_fall_back(plain_loop, caplog):
    plain_loop.set_exception_handler(lambda loop, context: loop.default_exception_handler(context))
    plain_loop.call_exception_handler({"message": "passed on"})
    plain_loop.set_exception_handler(None)
    assert "passed on" in caplog.text


# Debug mode


def test_debug_is_off_and_can_be_set(plain_loop):
    assert plain_loop.get_debug() is False
    plain_loop.set_debug(True)
    assert plain_loop.get_debug() is True


def test_debug_comes_from_the_environment(loop_kind):
    code = (
        "import asyncio, sys, unwait\n"
        "loop = {'unwait': unwait.Loop, 'asyncio': asyncio.SelectorEventLoop}[sys.argv[1]]()\n"
        "print(loop.get_debug())\n"
        "loop.close()\n"
    )
    for options in (["-X", "dev"], []):
        result = subprocess.run(
            [sys.executable, *options, "-c", code, loop_kind], capture_output=True, text=True, check=True
        )
        assert result.stdout == f"{bool(options)}\n"


def test_a_slow_callback_is_logged(loop, caplog):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    loop.call_soon(time.sleep, 0.02)
    with caplog.at_level(logging.WARNING, "asyncio"):
        run_once(loop)
    assert "Executing <Handle sleep(0.02)" in caplog.text
    assert "took 0.0" in caplog.text


def test_a_slow_task_is_logged_by_its_name(loop, caplog):
    async def slow():
        time.sleep(0.02)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_until_complete(slow())
    assert "Executing <Task" in caplog.text
    assert "slow" in caplog.text


def test_a_slow_reader_and_timer_are_logged(loop, caplog):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    loop.call_later(0, time.sleep, 0.02)
    loop.call_later(0.01, loop.stop)
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_forever()
    assert "Executing <TimerHandle" in caplog.text


def test_a_slow_protocol_is_logged(loop, caplog):
    class Slow(Peer):
        def data_received(self, data):
            time.sleep(0.02)
            super().data_received(data)

    async def main():
        async with connected(server_factory=Slow) as (client, peer):
            client.transport.write(b"x")
            await peer.until_received(1)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.015
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_until_complete(main())
    assert "Executing <" in caplog.text


def test_quick_callbacks_are_not_logged(loop, caplog):
    loop.set_debug(True)
    loop.slow_callback_duration = 5
    loop.call_soon(int)
    with caplog.at_level(logging.WARNING, "asyncio"):
        run_once(loop)
    assert "Executing" not in caplog.text


def test_nothing_is_logged_outside_debug_mode(loop, caplog):
    loop.slow_callback_duration = 0.001
    loop.call_soon(time.sleep, 0.005)
    run_once(loop)
    assert caplog.text == ""


async def test_calls_from_other_threads_are_refused_in_debug(loop):
    loop.set_debug(True)
    errors = []

    def work():
        for use in (
            lambda: loop.call_soon(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
        ):
            try:
                use()
            except RuntimeError as exc:
                errors.append(str(exc))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ["Non-thread-safe operation invoked on an event loop other than the current one"] * 3


async def test_calls_from_other_threads_are_not_checked_outside_debug(loop):
    seen = []
    thread = threading.Thread(target=loop.call_soon, args=(seen.append, 1))
    thread.start()
    thread.join()
    await turns()
    assert seen == [1]


async def test_debug_mode_changes_nothing_else(loop):
    loop.set_debug(True)
    async with connected() as (client, peer):
        client.transport.write(b"x" * 1_000_000)
        await peer.until_received(1_000_000)
    async with socket_connected() as (client, theirs):
        theirs.send(b"hi")
        await client.until_received(2)
    assert await loop.run_in_executor(None, int, "7") == 7


async def test_an_unretrieved_future_says_where_it_was_made_in_debug(loop, loop_errors):
    loop.set_debug(True)
    future = loop.create_future()
    future.set_exception(LookupError())
    del future
    await asyncio.sleep(0)
    (context,) = loop_errors
    assert context["source_traceback"]
    loop_errors.clear()
