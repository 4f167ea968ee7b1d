"""create_task, futures, task factories, and what is logged of tasks that were forgotten."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys

import pytest

from .support import turns

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


async def test_create_task_runs_the_coroutine_in_the_next_round(loop):
    order = []

    async def work():
        order.append("task")
        return 7

    task = loop.create_task(work())
    order.append("caller")
    assert await task == 7
    assert order == ["caller", "task"]


async def test_tasks_are_cpythons_own(loop):
    task = loop.create_task(asyncio.sleep(0))
    assert type(task) is asyncio.Task
    assert type(loop.create_future()) is asyncio.Future
    assert task in asyncio.all_tasks()
    assert asyncio.current_task() is not task
    await task


async def test_create_task_takes_a_name(loop):
    named = loop.create_task(asyncio.sleep(0), name="named")
    default = loop.create_task(asyncio.sleep(0))
    assert named.get_name() == "named"
    assert default.get_name().startswith("Task-")
    await asyncio.gather(named, default)


async def test_create_task_takes_a_context(loop):
    async def work():
        VARIABLE.set("in the task")

    context = contextvars.copy_context()
    await loop.create_task(work(), context=context)
    assert context[VARIABLE] == "in the task"
    assert VARIABLE.get() == "unset"


async def test_a_task_has_a_copy_of_the_context(loop):
    async def work():
        assert VARIABLE.get() == "outside"
        VARIABLE.set("inside")

    VARIABLE.set("outside")
    await loop.create_task(work())
    assert VARIABLE.get() == "outside"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_the_eager_task_factory_starts_at_once(loop):
    order = []

    async def work():
        order.append("task")
        return 7

    loop.set_task_factory(asyncio.eager_task_factory)
    task = loop.create_task(work())
    order.append("caller")
    assert task.done()
    assert await task == 7
    assert order == ["task", "caller"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_an_eager_task_that_waits_goes_on_later(loop):
    order = []

    async def work():
        order.append("begin")
        await asyncio.sleep(0)
        order.append("end")

    task = asyncio.Task(work(), loop=loop, eager_start=True)
    order.append("caller")
    assert not task.done()
    await task
    assert order == ["begin", "caller", "end"]


@pytest.mark.asyncio_since((3, 14), "create_task(eager_start=)")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_create_task_takes_eager_start(loop):
    async def work():
        return 7

    eager = loop.create_task(work(), eager_start=True)
    assert eager.done()
    later = loop.create_task(work(), eager_start=False)
    assert not later.done()
    assert await later == 7


async def test_a_task_factory_makes_the_tasks(loop):
    made = []

    def factory(loop, coroutine, **options):
        made.append(options)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert await loop.create_task(asyncio.sleep(0, "made")) == "made"
    context = contextvars.copy_context()
    assert await loop.create_task(asyncio.sleep(0, "again"), context=context) == "again"
    assert made[1]["context"] is context
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    await loop.create_task(asyncio.sleep(0))
    assert len(made) == 2


async def test_a_task_factory_sees_names(loop):
    def factory(loop, coroutine, **options):
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(factory)
    task = loop.create_task(asyncio.sleep(0), name="named")
    assert task.get_name() == "named"
    await task


def test_a_task_factory_must_be_callable(loop):
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(7)


def test_create_task_refuses_what_is_no_coroutine(loop):
    with pytest.raises(TypeError, match="a coroutine was expected, got 7"):
        loop.create_task(7)


async def test_cancelling_a_task(loop):
    task = loop.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    assert task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_gather_keeps_order_over_many_tasks(loop):
    async def work(number):
        await asyncio.sleep(0)
        return number

    assert await asyncio.gather(*(work(number) for number in range(1000))) == list(range(1000))


async def test_task_groups_cancel_the_rest(loop):
    other = None

    async def fail():
        await asyncio.sleep(0)
        raise LookupError

    async def both():
        nonlocal other
        async with asyncio.TaskGroup() as group:
            other = group.create_task(asyncio.sleep(60))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(LookupError)
    assert other.cancelled()


async def test_timeouts_interrupt_a_wait(loop):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await loop.create_future()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.01)


async def test_a_future_set_from_a_callback_wakes_its_waiter(loop):
    future = loop.create_future()
    loop.call_soon(future.set_result, "woken")
    assert await future == "woken"


async def test_an_exception_never_retrieved_is_reported(loop, loop_errors):
    async def fail():
        raise LookupError("forgotten")

    task = loop.create_task(fail())
    await turns()
    del task
    gc.collect()
    (context,) = loop_errors
    assert context["message"] == "Task exception was never retrieved"
    assert isinstance(context["exception"], LookupError)
    loop_errors.clear()


async def test_a_future_exception_never_retrieved_is_reported(loop, loop_errors):
    future = loop.create_future()
    future.set_exception(LookupError("forgotten"))
    del future
    gc.collect()
    (context,) = loop_errors
    assert context["message"] == "Future exception was never retrieved"
    loop_errors.clear()


def test_a_pending_task_that_is_destroyed_is_reported(loop, loop_errors):
    async def wait_on_something_lost():
        await loop.create_future()

    task = loop.create_task(wait_on_something_lost())
    loop.run_until_complete(turns())
    del task
    gc.collect()
    (context,) = loop_errors
    assert context["message"] == "Task was destroyed but it is pending!"
    loop_errors.clear()


def test_a_coroutine_never_awaited_warns(loop):
    async def forgotten():
        pass

    async def main():
        with pytest.warns(RuntimeWarning, match="was never awaited"):
            forgotten()

    loop.run_until_complete(main())


def test_debug_says_where_a_forgotten_coroutine_was_created(loop):
    async def forgotten():
        pass

    async def main():
        with pytest.warns(
            RuntimeWarning, match=r"(?s)was never awaited.*Coroutine created at.*test_tasks\.py"
        ):
            forgotten()

    loop.set_debug(True)
    depth = sys.get_coroutine_origin_tracking_depth()
    loop.run_until_complete(main())
    assert sys.get_coroutine_origin_tracking_depth() == depth


def test_debug_tasks_say_where_they_were_created(loop):
    loop.set_debug(True)

    async def main():
        task = loop.create_task(asyncio.sleep(0))
        assert "created at" in repr(task)
        assert task._source_traceback[-1].name == "main"
        await task

    loop.run_until_complete(main())


async def test_set_debug_while_running_turns_origin_tracking_on(loop):
    assert not loop.get_debug()
    loop.set_debug(True)
    await turns(2)
    assert sys.get_coroutine_origin_tracking_depth() > 0
    loop.set_debug(False)
    await turns(2)
    assert sys.get_coroutine_origin_tracking_depth() == 0


async def test_queue_lock_event_and_condition_work(loop):
    queue, lock, event, condition = asyncio.Queue(1), asyncio.Lock(), asyncio.Event(), asyncio.Condition()
    seen = []

    async def produce():
        for number in range(100):
            await queue.put(number)
        event.set()

    async def consume():
        while len(seen) < 100:
            async with lock:
                seen.append(await queue.get())
        async with condition:
            condition.notify_all()

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        group.create_task(consume())
        async with condition:
            await condition.wait_for(lambda: len(seen) == 100)
        await event.wait()
    assert seen == list(range(100))
