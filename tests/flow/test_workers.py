"""Functions in threads and in processes: their results, their errors, their ends, and that nothing stays."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import unwait
from unwait.flow.faults import is_overload, retry_after
from unwait.flow.retry import transient
from unwait.flow.workers import RemoteError, WorkerCrashed, Workers, place

from ..processes import error_of, pid_in, until

HERE = Path(__file__).parent
SOURCE = Path(unwait.__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def resource_tracker_running() -> None:
    """The standard library's one process that stays: it must not count as left behind by a test."""
    resource_tracker.ensure_running()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert set(threading.enumerate()) <= threads


@pytest.fixture(scope="module")
def functions() -> Iterator[Any]:
    """The module of the functions, under a name by which worker processes can import it."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("worker_functions")
    sys.path.remove(str(HERE))


@asynccontextmanager
async def placed(func: Callable[..., Any], where: Any, count: int = 1) -> AsyncIterator[Workers[Any, Any]]:
    workers = place(func, where, count)
    try:
        yield workers
    finally:
        await workers.aclose()


# What is refused.


@pytest.mark.parametrize("where", ["thread", "process"])
def test_an_async_function_is_refused(functions: Any, where: Any) -> None:
    class Callable_:
        async def __call__(self, item: object) -> None: ...

    for func in (functions.asynchronous, partial(functions.asynchronous), Callable_()):
        with pytest.raises(TypeError, match=r"async.*leave where= out"):
            place(func, where, 1)


def test_a_function_that_a_process_cannot_import_is_refused() -> None:
    def local(item: object) -> object:
        return item

    for func in (local, lambda item: item):
        with pytest.raises(TypeError, match="top level of a module"):
            place(func, "process", 1)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        place(abs, "thread", 0)
    with pytest.raises(ValueError, match="'fiber'"):
        place(abs, "fiber", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is none"):
        place(3, "thread", 1)  # type: ignore[arg-type]


# Both kinds.


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_results_belong_to_their_items(loop: Any, functions: Any, where: Any) -> None:
    async with placed(functions.square, where, 2) as workers:
        assert await asyncio.gather(*map(workers, range(50))) == [number**2 for number in range(50)]


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_an_error_keeps_its_type_its_notes_and_where_it_was_raised(
    loop: Any, functions: Any, where: Any
) -> None:
    async with placed(functions.fail, where) as workers:
        error = await error_of(workers("bad"))
    assert isinstance(error, ValueError)
    assert error.args == ("bad", 7)
    assert error.__notes__ == ["a note"]
    told = str(error.__cause__) if where == "process" else "".join(traceback.format_tb(error.__traceback__))
    assert "worker_functions.py" in told
    assert "in fail" in told


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_a_function_that_returns_a_coroutine_is_told_apart(
    loop: Any, functions: Any, where: Any
) -> None:
    async with placed(functions.give_coroutine, where) as workers:
        error = await error_of(workers(1))
    assert isinstance(error, TypeError)
    assert "returned a coroutine" in str(error)


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_a_stop_iteration_is_an_error_like_others(loop: Any, where: Any) -> None:
    """A future refuses it, and the caller would wait for ever."""
    async with placed(next, where) as workers:
        error = await error_of(workers(iter(())))
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_sys_exit_ends_the_item_and_not_the_program(loop: Any, functions: Any, where: Any) -> None:
    async with placed(functions.leave, where) as workers:
        error = await error_of(workers(3))
        assert isinstance(error, WorkerCrashed)
        assert "3" in str(error)
        assert isinstance(await error_of(workers(4)), WorkerCrashed)


# Threads.


async def test_threads_see_the_callers_context_and_leave_the_loop_free(loop: Any) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    go = threading.Event()

    def work(_: object) -> tuple[str, bool]:
        go.wait(10)
        return variable.get(), threading.current_thread() is threading.main_thread()

    async with placed(work, "thread") as workers:
        variable.set("the caller's")
        call = asyncio.create_task(workers(None))
        await asyncio.sleep(0)
        go.set()
        assert await call == ("the caller's", False)


async def test_no_more_threads_than_asked_for_run_at_once(loop: Any) -> None:
    together = threading.Barrier(3)
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        inside.append(number)
        most = max(most, len(inside))
        together.wait(10)
        inside.remove(number)

    async with placed(work, "thread", 3) as workers:
        await asyncio.gather(*map(workers, range(12)))
    assert most == 3


async def test_a_cancelled_call_goes_on_in_its_thread_and_closing_waits_for_it(loop: Any) -> None:
    go, began, ended = threading.Event(), threading.Event(), threading.Event()

    def work(_: object) -> None:
        began.set()
        go.wait(10)
        ended.set()

    workers = place(work, "thread", 1)
    call = asyncio.create_task(workers(None))
    await until(began.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    closing = asyncio.create_task(workers.aclose())
    await asyncio.sleep(0.01)  # the loop is free meanwhile
    assert not closing.done()
    go.set()
    await closing
    assert ended.is_set()


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_closing_cancels_the_calls_that_have_not_begun(
    loop: Any, functions: Any, where: Any, tmp_path: Path
) -> None:
    signal_file = tmp_path / "go"
    workers = place(functions.wait_for, where, 1)
    running, waiting = (asyncio.create_task(workers(str(signal_file))) for _ in range(2))
    await until(lambda: len(workers._talks) == 2 and any(talk.running() for talk in workers._talks))
    if where == "process":
        await until(lambda: any(process.starts_for is None for process in workers._alive))  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)
    closing = asyncio.create_task(workers.aclose())
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not running.done()
    signal_file.touch()
    await closing
    assert isinstance(await running, int)


# Processes.


async def test_a_process_is_started_when_it_is_needed_and_used_again(loop: Any, functions: Any) -> None:
    async with placed(functions.pid, "process", 4) as workers:
        assert multiprocessing.active_children() == []
        pids = {await workers(None) for _ in range(5)}
        assert len(pids) == 1
        assert os.getpid() not in pids
        assert len(multiprocessing.active_children()) == 1


@pytest.mark.parametrize(
    ("name", "item", "told", "exitcode"),
    [
        ("end", 3, "exit code 3", 3),
        ("leave", 4, "exit code 4", 4),
        ("kill", signal.SIGKILL, "SIGKILL", -9),
        ("kill", signal.SIGSEGV, "SIGSEGV", -11),
        ("hang_up", None, "exit code", 0),
    ],
)
async def test_a_crash_is_the_error_of_its_item_alone(
    loop: Any, functions: Any, name: str, item: Any, told: str, exitcode: int, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    async with (
        placed(functions.wait_for, "process", 1) as others,
        placed(getattr(functions, name), "process", 1) as workers,
    ):
        other = asyncio.create_task(others(str(go)))
        error = await error_of(workers(item))
        go.touch()
        assert isinstance(error, WorkerCrashed)
        assert told in str(error)
        assert error.exitcode == exitcode
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        await other
        again = await error_of(workers(item))
        assert isinstance(again, WorkerCrashed)


async def test_after_a_crash_the_next_item_gets_a_new_process(loop: Any, functions: Any) -> None:
    async with placed(functions.kill, "process", 2) as workers:
        items = [signal.SIGKILL, 0, signal.SIGKILL, 0, 0, signal.SIGKILL]
        results = await asyncio.gather(*map(workers, items), return_exceptions=True)
    assert [result if item == 0 else type(result) for item, result in zip(items, results, strict=True)] == [
        "alive" if item == 0 else WorkerCrashed for item in items
    ]


async def test_an_idle_process_that_died_costs_no_item(loop: Any, functions: Any) -> None:
    async with placed(functions.pid, "process") as workers:
        first = await workers(None)
        watch = os.pidfd_open(first)
        os.kill(first, signal.SIGKILL)
        select.select([watch], [], [])
        os.close(watch)
        assert await workers(None) != first


async def test_a_crash_is_seen_though_a_child_of_the_process_holds_its_pipe(
    loop: Any, functions: Any, tmp_path: Path
) -> None:
    async with placed(functions.end_with_a_child_left, "process") as workers:
        error = await error_of(workers(str(tmp_path / "end")))
        (tmp_path / "end").touch()
    assert isinstance(error, WorkerCrashed)
    assert error.exitcode == -9


async def test_a_forked_child_that_comes_back_from_the_function_gives_no_second_reply(
    loop: Any, functions: Any
) -> None:
    async with placed(functions.fork_and_return_twice, "process") as workers:
        assert [await workers(number) for number in range(4)] == [0, 1, 2, 3]


async def test_cancelling_a_call_kills_its_process_and_no_other(
    loop: Any, functions: Any, tmp_path: Path
) -> None:
    go, told = tmp_path / "go", tmp_path / "pid"
    dispatch = placed(functions.wait_for, "process")
    async with dispatch as others, placed(functions.tell_pid_and_sleep, "process") as workers:
        other = asyncio.create_task(others(str(go)))
        call = asyncio.create_task(workers(str(told)))
        process = await pid_in(told)
        watch = os.pidfd_open(process)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: select.select([watch], [], [], 0)[0])
        os.close(watch)
        go.touch()
        await other
        told.unlink()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await workers(str(told))
        assert int(told.read_text()) != process


async def test_a_call_cancelled_while_its_process_starts_leaves_it_to_the_next(
    loop: Any, functions: Any
) -> None:
    """Else a time-out shorter than the start would kill one process after the other."""
    async with placed(functions.pid, "process") as workers:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await workers(None)
        await until(multiprocessing.active_children)
        (started,) = multiprocessing.active_children()
        assert await workers(None) == started.pid


async def test_what_cannot_be_pickled_is_the_error_of_its_item(loop: Any, functions: Any) -> None:
    async with placed(functions.give_lock, "process") as workers:
        error = await error_of(workers(threading.Lock()))
        assert isinstance(error, TypeError)
        assert "the item cannot be sent" in str(error)
        error = await error_of(workers(functions.Explosive()))
        assert "the item could not be rebuilt" in str(error)
        error = await error_of(workers(None))
        assert "what give_lock returned cannot be sent back" in str(error)
        assert not transient(error)
        assert len(multiprocessing.active_children()) == 1, "no process had to be replaced"


async def test_a_result_that_cannot_be_rebuilt_is_the_error_of_its_item(loop: Any, functions: Any) -> None:
    async with placed(functions.give_explosive, "process") as workers:
        error = await error_of(workers(None))
        assert "what give_explosive returned could not be rebuilt" in str(error)
        assert isinstance(await error_of(workers(None)), TypeError)


async def test_an_error_that_cannot_be_rebuilt_has_a_stand_in_that_says_the_same(
    loop: Any, functions: Any
) -> None:
    async with placed(functions.fail_picky, "process") as workers:
        error = await error_of(workers(None))
    assert isinstance(error, RemoteError)
    assert str(error) == "worker_functions.Picky: 429 slow down"
    assert is_overload(error)
    assert retry_after(error) == 3.5
    assert "fail_picky" in str(error.__cause__)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


async def test_an_error_that_cannot_be_pickled_has_a_stand_in(loop: Any, functions: Any) -> None:
    async with placed(functions.fail_locked, "process") as workers:
        error = await error_of(workers(None))
    assert isinstance(error, RemoteError)
    assert "KeyError" in str(error)
    assert not transient(error)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_processes_ignore_what_ctrl_c_sends_to_all(loop: Any, functions: Any, number: int) -> None:
    async with placed(functions.kill, "process") as workers:
        call = asyncio.create_task(workers(number))
        await until(multiprocessing.active_children)
        # At this moment it is only being started: Python's own handlers would end it.
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, number)
        assert await call == "alive"
        assert await workers(0) == "alive"


async def test_cancelling_the_closing_kills_what_runs(loop: Any, functions: Any, tmp_path: Path) -> None:
    workers = place(functions.tell_pid_and_sleep, "process", 1)
    call = asyncio.create_task(workers(str(tmp_path / "pid")))
    watch = os.pidfd_open(await pid_in(tmp_path / "pid"))
    closing = asyncio.create_task(workers.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await until(lambda: select.select([watch], [], [], 0)[0])
    os.close(watch)
    assert isinstance(await error_of(call), WorkerCrashed)
    await until(lambda: not any(thread.name.startswith("unwait") for thread in threading.enumerate()))


async def test_closing_twice_and_closing_unused_workers_is_fine(loop: Any, functions: Any) -> None:
    workers = place(functions.square, "process", 2)
    await workers.aclose()
    await workers.aclose()
    with pytest.raises(RuntimeError):
        await workers(1)


# Whole programs.


def script(path: Path, body: str) -> list[str]:
    path.write_text(textwrap.dedent(body))
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE}"}


def test_processes_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    command = script(
        tmp_path / "parent.py",
        """
        import asyncio, sys, worker_functions
        from unwait.flow.workers import place

        async def main():
            workers = place(worker_functions.tell_pid_and_sleep, "process", 2)
            await asyncio.gather(*map(workers, sys.argv[1:]))

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    files = [tmp_path / "one", tmp_path / "two"]
    with subprocess.Popen([*command, *map(str, files)], env=environment()) as parent:
        asyncio.run(until(lambda: all(file.exists() for file in files)))
        watched = {os.pidfd_open(int(file.read_text())) for file in files}
        parent.kill()
    while watched:
        ready, _, _ = select.select(watched, [], [], 10)
        assert ready, "a process outlived its parent"
        for watch in ready:
            os.close(watch)
        watched -= set(ready)


def test_ctrl_c_in_a_terminal_lets_processes_finish(tmp_path: Path) -> None:
    """The signal goes to the whole foreground group, the processes included."""
    command = script(
        tmp_path / "program.py",
        """
        import asyncio, sys, unwait, worker_functions

        async def main():
            async with unwait.stream(worker_functions.wait_for_go, sys.argv[1:], where="process", limit=1) as stream:
                async for outcome in stream:
                    print(outcome.item, outcome.value, outcome.error, flush=True)

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    items = [tmp_path / "one", tmp_path / "two"]
    with subprocess.Popen(
        [*command, *map(str, items)],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stderr is not None
        asyncio.run(until(lambda: (tmp_path / "one.begun").exists()))
        os.killpg(program.pid, signal.SIGINT)
        assert "finishing 1 running item" in program.stderr.readline()
        items[0].touch()
        out, err = program.communicate(timeout=20)
    assert out == f"{items[0]} done None\n"
    assert program.returncode == -signal.SIGINT
    assert "WorkerCrashed" not in err


def test_a_program_that_never_closes_its_workers_still_ends(tmp_path: Path) -> None:
    command = script(
        tmp_path / "parent.py",
        """
        import asyncio, worker_functions
        from unwait.flow.workers import place

        async def main():
            print(await workers(7))

        if __name__ == "__main__":
            workers = place(worker_functions.square, "process", 1)
            asyncio.run(main())
        """,
    )
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr, done.returncode) == ("49\n", "", 0)


def test_a_program_from_standard_input_is_told_that_it_must_be_a_file() -> None:
    program = """if __name__ == "__main__":
        import asyncio, math, unwait
        print(asyncio.run(unwait.map(math.sqrt, [4], where="process", errors="return"))[0])
    """
    done = subprocess.run(
        [sys.executable, "-"], input=program, env=environment(), capture_output=True, text=True, timeout=20
    )
    assert "put the program into a file" in done.stdout
    assert "guard" not in done.stdout
    assert done.returncode == 0


def test_a_main_module_without_a_guard_is_explained(tmp_path: Path) -> None:
    command = script(
        tmp_path / "unguarded.py",
        """
        import asyncio, worker_functions
        from unwait.flow.workers import place

        async def main():
            workers = place(worker_functions.square, "process", 2)
            for number in range(3):
                try:
                    await workers(number)
                except RuntimeError as error:
                    print(error)
            await workers.aclose()

        asyncio.run(main())
        """,
    )
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert all('`if __name__ == "__main__":`' in line for line in told)
    assert done.stderr.count("still imports the main module") == 1, "only one process was tried"


def test_a_function_that_only_the_parent_has_is_explained(tmp_path: Path) -> None:
    code = """
        import asyncio
        from unwait.flow.workers import place

        def double(number):
            return 2 * number

        async def main():
            workers = place(double, "process", 1)
            try:
                await workers(1)
            except TypeError as error:
                print(error)
            await workers.aclose()

        asyncio.run(main())
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "double cannot be loaded in a process" in done.stdout
    assert "interactive session" in done.stdout
    assert done.stderr == ""
