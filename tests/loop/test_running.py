"""Starting, stopping and closing the loop; async generators; the default executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import warnings
import weakref

import pytest

import unwait

from .support import turns


def test_run_until_complete_returns_the_result(loop):
    async def main():
        await asyncio.sleep(0)
        return 42

    assert loop.run_until_complete(main()) == 42


def test_run_until_complete_takes_a_future(loop):
    future = loop.create_future()
    loop.call_soon(future.set_result, "done")
    assert loop.run_until_complete(future) == "done"


def test_run_until_complete_takes_any_awaitable(loop):
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    assert loop.run_until_complete(Awaitable()) == "awaited"


def test_run_until_complete_raises_what_the_coroutine_raised(loop):
    async def main():
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        loop.run_until_complete(main())


def test_run_until_complete_refuses_what_cannot_be_awaited(loop):
    with pytest.raises(TypeError, match=r"An asyncio.Future, a coroutine or an awaitable is required"):
        loop.run_until_complete(1)


def test_run_until_complete_refuses_the_future_of_another_loop(loop, loop_factory):
    future = loop_factory().create_future()
    with pytest.raises(ValueError, match="The future belongs to a different loop"):
        loop.run_until_complete(future)


def test_run_until_complete_stopped_early(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(future)


def test_run_until_complete_leaves_no_callback_on_a_pending_future(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError):
        loop.run_until_complete(future)
    future.set_result(1)
    calls = []
    loop.call_soon(calls.append, 1)
    loop.call_soon(loop.call_soon, loop.stop)
    loop.run_forever()
    assert calls == [1]


def test_run_forever_runs_until_stop(loop):
    order = []
    loop.call_soon(order.append, "a")
    loop.call_soon(loop.call_soon, loop.stop)
    loop.call_soon(order.append, "b")
    loop.run_forever()
    assert order == ["a", "b"]
    assert not loop.is_running()


def test_stop_finishes_the_current_round_only(loop):
    order = []

    def first():
        loop.stop()
        loop.call_soon(order.append, "next round")

    loop.call_soon(first)
    loop.call_soon(order.append, "this round")
    loop.run_forever()
    assert order == ["this round"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["this round", "next round"]


def test_stop_before_run_forever_runs_one_round(loop):
    order = []
    loop.call_soon(lambda: (order.append("one"), loop.call_soon(order.append, "two")))
    loop.stop()
    loop.run_forever()
    assert order == ["one"]


def test_the_loop_can_be_run_again(loop):
    for expected in range(5):
        assert loop.run_until_complete(asyncio.sleep(0, expected)) == expected


def test_is_running_and_is_closed_tell_the_state(loop):
    states = []
    loop.call_soon(lambda: states.append((loop.is_running(), loop.is_closed())))
    loop.call_soon(loop.stop)
    assert not loop.is_running()
    loop.run_forever()
    assert states == [(True, False)]
    loop.close()
    assert (loop.is_running(), loop.is_closed()) == (False, True)


def test_the_running_loop_is_known_inside_only(loop):
    async def main():
        assert asyncio.get_running_loop() is loop
        assert asyncio.get_event_loop() is loop

    loop.run_until_complete(main())
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_repr_tells_the_state(loop):
    assert "running=False closed=False debug=False>" in repr(loop)
    loop.close()
    assert "running=False closed=True debug=False>" in repr(loop)


def test_it_is_an_abstract_event_loop(loop):
    assert isinstance(loop, asyncio.AbstractEventLoop)


flawed_reentry = pytest.mark.asyncio_flawed(
    sys.version_info[:3] == (3, 13, 0),
    "run_forever of Python 3.13.0 forgets the running loop when it refuses",
)


@flawed_reentry
async def test_running_a_running_loop_is_refused(loop):
    with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
        loop.run_forever()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
        loop.run_until_complete(coroutine)
    coroutine.close()


async def test_running_a_second_loop_inside_the_first_is_refused(loop, loop_factory):
    other = loop_factory()
    with pytest.raises(RuntimeError, match=r"^Cannot run the event loop while another loop is running$"):
        other.run_forever()
    other.close()


async def test_closing_a_running_loop_is_refused(loop):
    with pytest.raises(RuntimeError, match=r"^Cannot close a running event loop$"):
        loop.close()
    await asyncio.sleep(0)


@flawed_reentry
async def test_running_a_loop_that_runs_in_another_thread_is_refused(loop):
    def elsewhere():
        with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
            loop.run_forever()
        with pytest.raises(RuntimeError, match=r"^Cannot close a running event loop$"):
            loop.close()
        return "refused"

    assert await loop.run_in_executor(None, elsewhere) == "refused"


def test_a_loop_runs_in_a_thread_of_its_own(loop_factory):
    results = []

    def work():
        loop = loop_factory()
        results.append(loop.run_until_complete(asyncio.sleep(0.001, "slept")))
        loop.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["slept"] * 4


def test_close_may_be_called_twice(loop):
    loop.close()
    loop.close()
    assert loop.is_closed()


@pytest.mark.parametrize(
    "use",
    [
        lambda loop: loop.run_forever(),
        lambda loop: loop.call_soon(print),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.call_later(1, print),
        lambda loop: loop.call_at(1, print),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.add_writer(0, print),
        lambda loop: loop.add_signal_handler(10, print),
    ],
    ids=["run_forever", "soon", "threadsafe", "later", "at", "executor", "reader", "writer", "signal"],
)
def test_a_closed_loop_refuses(loop, use):
    loop.close()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        use(loop)


def test_a_closed_loop_refuses_tasks_and_coroutines(loop):
    loop.close()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.create_task(coroutine)
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.run_until_complete(coroutine)
    coroutine.close()


def test_close_drops_what_was_scheduled(loop):
    class Held:
        def call(self):
            pass

    held = [Held(), Held(), Held()]
    references = [weakref.ref(each) for each in held]
    loop.call_soon(held[0].call)
    loop.call_later(1000, held[1].call)
    loop.call_soon_threadsafe(held[2].call)
    loop.close()
    held.clear()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_closed_loop_is_freed(loop_kind):
    loop = unwait.Loop() if loop_kind == "unwait" else asyncio.SelectorEventLoop()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None


def test_a_loop_dropped_unclosed_warns_and_closes(loop_kind):
    loops = [unwait.Loop() if loop_kind == "unwait" else asyncio.SelectorEventLoop()]

    def drop():
        loops.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        drop()


def test_time_is_monotonic(loop):
    times = [loop.time() for _ in range(100)]
    assert times == sorted(times)


def test_keyboard_interrupt_leaves_the_loop_usable(loop):
    def interrupt():
        raise KeyboardInterrupt

    loop.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0, "usable")) == "usable"


def test_system_exit_in_a_task_ends_the_run(loop):
    async def main():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        loop.run_until_complete(main())
    assert not loop.is_running()


def test_runner_takes_the_loop(loop_factory):
    async def main():
        return type(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        kind = runner.run(main())
        assert runner.get_loop().__class__ is kind
        assert runner.run(main()) is kind


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run takes loop_factory since Python 3.12")
def test_asyncio_run_takes_the_loop(loop_factory):
    async def main():
        return asyncio.get_running_loop()

    assert asyncio.run(main(), loop_factory=loop_factory).is_closed()


# Async generators


async def first(generator):
    """Take the first item with the loop running: only then does the loop learn of the generator."""
    return await generator.__anext__()


async def numbers(closed):
    try:
        yield 1
        yield 2
    finally:
        await asyncio.sleep(0)
        closed.append(True)


def test_shutdown_asyncgens_closes_what_is_open(loop):
    closed = []
    generator = numbers(closed)
    loop.run_until_complete(first(generator))
    assert closed == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == [True]


def test_a_dropped_async_generator_is_closed_by_the_loop(loop):
    closed = []

    async def main():
        generator = numbers(closed)
        await first(generator)
        del generator
        gc.collect()
        await turns(10)

    loop.run_until_complete(main())
    assert closed == [True]


def test_shutdown_asyncgens_reports_a_failing_generator(loop, loop_errors):
    async def failing():
        try:
            yield 1
        finally:
            raise ArithmeticError("in finally")

    generator = failing()
    loop.run_until_complete(first(generator))
    loop.run_until_complete(loop.shutdown_asyncgens())
    (context,) = loop_errors
    assert isinstance(context["exception"], ArithmeticError)
    assert context["asyncgen"] is generator
    loop_errors.clear()


def test_a_generator_begun_after_shutdown_warns(loop):
    async def main():
        await loop.shutdown_asyncgens()
        generator = numbers([])
        with pytest.warns(ResourceWarning, match="was scheduled after"):
            await generator.__anext__()
        await generator.aclose()

    loop.run_until_complete(main())


def test_the_hooks_of_the_caller_are_put_back(loop):
    calls = []
    before = sys.get_asyncgen_hooks()
    mine = calls.append
    sys.set_asyncgen_hooks(firstiter=mine)
    try:
        loop.run_until_complete(asyncio.sleep(0))
        assert sys.get_asyncgen_hooks().firstiter is mine
    finally:
        sys.set_asyncgen_hooks(*before)


# The default executor


async def test_run_in_executor_uses_another_thread(loop):
    here = threading.get_ident()
    assert await loop.run_in_executor(None, threading.get_ident) != here


async def test_run_in_executor_passes_arguments_and_exceptions(loop):
    assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, divmod, 7, 0)


async def test_run_in_executor_takes_an_executor(loop):
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        name = await loop.run_in_executor(executor, lambda: threading.current_thread().name)
    assert name.startswith("mine")


async def test_set_default_executor_is_used(loop):
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="default"))
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("default")


def test_set_default_executor_wants_threads(loop):
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(object())


def test_shutdown_default_executor_joins_its_threads(loop):
    loop.run_until_complete(loop.run_in_executor(None, int))
    executor = loop._default_executor
    loop.run_until_complete(loop.shutdown_default_executor())
    assert not any(thread.is_alive() for thread in executor._threads)


def test_the_executor_is_gone_after_its_shutdown(loop):
    loop.run_until_complete(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, int)


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="shutdown_default_executor keeps to its timeout since 3.13"
)
def test_shutdown_default_executor_gives_up_after_its_timeout(loop):
    release = threading.Event()
    future = loop.run_in_executor(None, release.wait)
    try:
        with pytest.warns(RuntimeWarning, match="did not finishing joining its threads"):
            loop.run_until_complete(loop.shutdown_default_executor(timeout=0.01))
    finally:
        release.set()
    assert loop.run_until_complete(future) is True


def test_run_in_executor_refuses_coroutines_in_debug(loop):
    async def coroutine():
        pass

    loop.set_debug(True)
    with pytest.raises(TypeError, match="coroutine"):
        loop.run_in_executor(None, coroutine)


def test_no_warning_is_given_by_a_plain_life(loop_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = loop_factory()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        gc.collect()
