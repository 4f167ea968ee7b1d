"""Functions that would block the loop, run where they do not: in threads, or in processes of their own.

Both kinds are reached through a pool of threads. A thread worker runs the function there. A process worker
is a spawned process at the other end of a pipe, and the thread talks with it, one item at a time: so nothing
here depends on what a loop can watch, and a process that dies takes one item with it and no more.

A process is started for an item that finds none idle, and the one that was idle last is taken first, so that
no more are started than are needed. It ends when its workers are closed, when the call it works on is
cancelled (nothing else stops a computation), or when its parent is gone, however that went.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import inspect
import io
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from unwait.flow.faults import is_overload, retry_after
from unwait.flow.retry import transient

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

_READY = b""  # what a process says when it can take items; why it cannot is never empty
_GOODBYE = 5.0  # seconds for a process to leave by itself
_GLANCE = 1.0  # seconds between two looks at a process whose end of the pipe a child of its own may keep open

# multiprocessing keeps a set of its children, and expects one thread to start, reap and close them.
_children = threading.Lock()


class WorkerCrashed(RuntimeError):
    """A worker ended while it had an item. `exitcode` is its process's: negative for a signal, None if unknown."""

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message, exitcode)
        self.exitcode = exitcode

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteError(Exception):
    """Stands for an error in a worker process that could not be brought over itself; its text begins with the type.

    What that error said to retries and limits is in `retryable`, `overloaded` and `retry_after`.
    """

    def __init__(
        self, text: str, retryable: bool = True, overloaded: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(text, retryable, overloaded, retry_after)
        self.retryable = retryable
        self.overloaded = overloaded
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteTraceback(Exception):
    """The cause of an error that was raised in a worker process: the traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def place(func: Callable[[T], R], where: Literal["thread", "process"], count: int) -> Workers[T, R]:
    """Workers that run the plain function `func`, each for one item at a time, `count` of them at most.

    `where="thread"`: in threads, with a copy of the caller's context variables. Cancelling a call, or its
    time-out, cannot stop the thread: the caller goes on, and the thread stays taken until `func` returns.

    `where="process"`: in spawned processes, started as calls need them. Cancelling a call, or its time-out (which
    includes the start), kills the process at work on it, and the next call gets another.
    The function, every item and every result must be picklable, and the main module importable: what starts
    work stands under `if __name__ == "__main__":`. The processes ignore SIGINT and SIGTERM: the parent decides
    when they end.

    Raises TypeError for a function that is async or, for processes, cannot be pickled, ValueError for another
    `where` or a count below 1, and RuntimeError in a worker process that still imports its main module.
    """
    check_placement(func, where)
    if count < 1:
        raise ValueError(f"the number of workers must be at least 1, not {count}")
    return ProcessWorkers(func, count) if where == "process" else Workers(func, count)


def check_placement(func: Callable[..., Any], where: str) -> None:
    """Raise what `place` would for another `where`, and for what is no plain function."""
    if where not in ("thread", "process"):
        raise ValueError(f'where must be "thread" or "process", not {where!r}')
    if not callable(func):
        raise TypeError(f"where={where!r} runs a function, and {func!r} is none")
    if inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None)):  # noqa: B004
        raise TypeError(
            f"{_name(func)} is async, and where={where!r} runs plain functions: leave where= out, "
            "or make it a plain function"
        )


def cores() -> int:
    """How many processes are worth having: the number of cores that this one may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# A value, or the error in its place. The error is no exception of the thread's future: that would refuse a
# StopIteration, and take a SystemExit or a CancelledError for its own.
_Reply = tuple[Any, Exception | None]


class Workers(Generic[T, R]):
    """`await workers(item)` gives `func(item)` from a thread. To be closed with `aclose()`."""

    def __init__(self, func: Callable[[T], R], count: int) -> None:
        self.__qualname__ = _name(func)  # for messages
        self._func = func
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=f"unwait-{_name(func)}")
        self._talks: set[Future[_Reply]] = set()

    async def __call__(self, item: T) -> R:
        """`func(item)`, or its error. Calls beyond the number of workers wait in their order."""
        result: R = await self._result(partial(contextvars.copy_context().run, _run, self._func, item))
        return result

    async def _result(self, work: Callable[[], _Reply]) -> Any:
        talk = self._threads.submit(work)
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        value, error = await asyncio.wrap_future(talk)
        if error is None:
            return value
        try:
            raise error
        finally:
            del error

    async def aclose(self) -> None:
        """End the workers once every running call has ended. Calls that have not begun are cancelled.

        Cancelling it ends the wait, and leaves the threads to end by themselves.
        """
        self._threads.shutdown(wait=False, cancel_futures=True)
        await _all_done(self._talks.copy())
        self._threads.shutdown()


class ProcessWorkers(Workers[T, R]):
    """`await workers(item)` gives `func(item)` from a process. To be closed with `aclose()`."""

    def __init__(self, func: Callable[[T], R], count: int) -> None:
        import multiprocessing.util

        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise RuntimeError(
                "this is a worker process that still imports the main module, and the module starts work as it "
                f"is imported: {_GUARD}"
            )
        try:
            self._pickled = _pickle(func)
        except Exception as error:
            raise TypeError(
                f'{_name(func)} cannot be sent to a process ({error}): where="process" needs a function defined '
                "at the top level of a module"
            ) from error
        super().__init__(func, count)
        self._lock = threading.Lock()
        self._alive: set[_Process] = set()
        self._idle: list[_Process] = []
        self._useless: Callable[[], Exception] | None = None  # why no process will ever be ready
        self._proven = False  # one has been ready
        self._closed = False
        if not _open:
            # Registered again, and so called before the exit handler of multiprocessing, which waits for children.
            atexit.unregister(_kill_all)
            atexit.register(_kill_all)
        _open.add(self)

    async def __call__(self, item: T) -> R:
        """`func(item)`, or its error. Calls beyond the number of workers wait in their order."""
        call = _Call(item)
        try:
            result: R = await self._result(partial(self._talk, call))
        except asyncio.CancelledError:
            with self._lock:
                call.abandoned = True
                # One that only starts is not killed, or a time-out shorter than that would never see any ready.
                if call.process is not None:
                    call.process.kill()
            raise
        return result

    async def aclose(self) -> None:
        """End the processes once every running call has ended. Calls that have not begun are cancelled.

        Cancelling it kills the processes.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._alive:
                if process.starts_for is not None and process.starts_for.abandoned:
                    process.kill()
        for talk in self._talks.copy():
            talk.cancel()
        try:
            await _all_done({self._threads.submit(self._bury, process) for process in idle})
            await super().aclose()
        except asyncio.CancelledError:
            self._kill()
            self._threads.shutdown(wait=False)
            raise

    def _kill(self) -> None:
        with self._lock:
            for process in self._alive:
                process.kill()

    # The rest runs in the threads.

    def _talk(self, call: _Call) -> _Reply:
        try:
            message = _pickle(call.item)
        except Exception as error:
            return None, _because(TypeError(f"the item cannot be sent to a process: {error}"), error)
        try:
            process = self._ready_process(call)
        except Exception as error:
            return None, error
        with self._lock:
            wanted = not call.abandoned
            if wanted:
                call.process = process
        reply = process.ask(message) if wanted else None
        with self._lock:
            call.process = None
            keep = not self._closed and (not wanted or (reply is not None and not call.abandoned))
            if keep:
                self._idle.append(process)
        exitcode = None if keep else self._bury(process)
        if reply is None:
            story = f"the process that ran {_name(self._func)} for this item {ending(exitcode)}"
            return None, WorkerCrashed(story, exitcode)
        return _opened(reply, self._func)

    def _ready_process(self, call: _Call) -> _Process:
        """An idle process, or a new one. Raises the error that there is in its place."""
        while (process := self._last_idle()) is not None:
            if process.alive():
                return process
            self._bury(process)
        if self._useless is not None:
            raise self._useless()
        process = _Process(_name(self._func), call)
        with self._lock:
            self._alive.add(process)
            if self._closed and call.abandoned:
                process.kill()
        greeting = process.ask(self._pickled)
        if greeting == _READY:
            with self._lock:
                process.starts_for = None
                self._proven = True
            return process
        exitcode = self._bury(process)
        if greeting is not None:
            story = (
                f"{_name(self._func)} cannot be loaded in a process ({greeting.decode()}): it must be defined in "
                "a module that can be imported, and not in an interactive session or under the main guard"
            )
            self._useless = partial(TypeError, story)
            raise self._useless()
        story = f"a worker process {ending(exitcode)} before it was ready"
        if exitcode is not None and exitcode >= 0 and not self._proven:
            # It failed, or ran to its end, as it imported the main module. So will the next.
            story += f" (what it has to say is on stderr): {_FILE if _main_is_no_file() else _GUARD}"
            self._useless = partial(WorkerCrashed, story, exitcode)
        raise WorkerCrashed(story, exitcode)

    def _last_idle(self) -> _Process | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _bury(self, process: _Process) -> int | None:
        """Let a process end, see to it that it does, and forget it. Gives its exit code."""
        exitcode = process.end()
        with self._lock:
            self._alive.discard(process)
        process.close()
        return exitcode


_open: weakref.WeakSet[ProcessWorkers[Any, Any]] = weakref.WeakSet()


def _kill_all() -> None:
    """A program that ends without `aclose` must not wait for processes that wait for it."""
    for workers in _open:
        workers._kill()


class _Call:
    """A call of a process worker, as its two threads see it; guarded by the lock of the workers."""

    __slots__ = ("abandoned", "item", "process")

    def __init__(self, item: Any) -> None:
        self.item = item
        self.process: _Process | None = None
        self.abandoned = False


class _Process:
    """A spawned process and this end of the pipe to it."""

    def __init__(self, name: str, starts_for: _Call) -> None:
        import multiprocessing

        self.starts_for: _Call | None = starts_for  # None once it is ready
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        try:
            self._process = spawn.Process(target=_serve, args=(theirs,), name=f"unwait-{name}")
            with _children, _signals_held_back():
                self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()

    def ask(self, message: bytes) -> bytes | None:
        """Its reply to a message; None if it ended without one."""
        try:
            self._connection.send_bytes(message)
            while not self._connection.poll(_GLANCE):
                if not self.alive() and not self._connection.poll():
                    return None
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def alive(self) -> bool:
        with _children:
            return self._process.exitcode is None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int | None:
        """Hang up and wait for the end; kill it if it takes too long. Gives the exit code."""
        self._connection.close()
        patience = time.monotonic() + _GOODBYE
        # Looked at and not waited for: a child of its own may hold open what would tell.
        pause = 0.0005
        while self.alive():
            if time.monotonic() > patience:
                self.kill()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return self._process.exitcode

    def close(self) -> None:
        with _children:
            self._process.close()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process started inside begins with SIGINT and SIGTERM blocked, until it has said how it takes them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    # Started later, inside, it would unblock them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _opened(reply: bytes, func: Callable[[Any], Any]) -> _Reply:
    try:
        value, failure = pickle.loads(reply)
    except Exception as error:
        story = f"what {_name(func)} returned could not be rebuilt from its process's reply: {error}"
        return None, _because(TypeError(story), error)
    if failure is None:
        return value, None
    pickled, stand_in, remote = failure
    try:
        original = pickle.loads(pickled)
    except Exception:
        original = None
    known = original if isinstance(original, Exception) else stand_in
    return None, _because(known, RemoteTraceback(remote))


# What runs in a worker process.


def _serve(connection: Connection) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not ignored outright: that would be handed down to the programs which the function starts.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        process = os.getpid()
        func = _received(connection)
        while func is not None:
            reply = _reply(func, connection.recv_bytes())
            if os.getpid() != process:
                os._exit(0)  # forked by the function, and come back from it: this would be a second reply
            connection.send_bytes(reply)


def _received(connection: Connection) -> Callable[[Any], Any] | None:
    pickled = connection.recv_bytes()
    try:
        func: Callable[[Any], Any] = pickle.loads(pickled)
    except Exception as error:
        connection.send_bytes(f"{type(error).__name__}: {error}".encode())
        return None
    connection.send_bytes(_READY)
    return func


def _end_with_parent() -> None:
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _reply(func: Callable[[Any], Any], message: bytes) -> bytes:
    try:
        item = pickle.loads(message)
    except Exception as error:
        story = f"the item could not be rebuilt in the process for {_name(func)}: {error}"
        return _failure(_because(TypeError(story), error))
    try:
        value = _plain(func, item)
    except Exception as error:
        return _failure(error)
    try:
        return _pickle((value, None))
    except Exception as error:
        story = f"what {_name(func)} returned cannot be sent back from its process: {error}"
        return _failure(_because(TypeError(story), error))


def _failure(error: Exception) -> bytes:
    try:
        pickled = _pickle(error)
    except Exception:
        pickled = b""
    text = "".join(traceback.format_exception_only(error)).strip()
    stand_in = RemoteError(text, transient(error), is_overload(error), retry_after(error))
    remote = "".join(traceback.format_exception(error))
    return _pickle((None, (pickled, stand_in, remote)))


# What both ends and both kinds need.


def _pickle(value: Any) -> bytes:
    # Also what only multiprocessing can take: connections, and what libraries have taught it.
    from multiprocessing.reduction import ForkingPickler

    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _run(func: Callable[[Any], Any], item: Any) -> _Reply:
    try:
        return _plain(func, item), None
    except Exception as error:
        return None, error
    except BaseException as error:
        return None, _because(WorkerCrashed(f"{_name(func)} ended its thread with {error!r}"), error)


def _plain(func: Callable[[Any], Any], item: Any) -> Any:
    value = func(item)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(f"{_name(func)} returned a coroutine: what is async runs in the loop, without where=")
    return value


async def _all_done(futures: set[Future[Any]]) -> None:
    if futures:
        await asyncio.wait([asyncio.wrap_future(future) for future in futures])


def _because(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def _name(func: Callable[..., Any]) -> str:
    while isinstance(func, partial):
        func = func.func
    return str(getattr(func, "__qualname__", None) or type(func).__qualname__)


def _main_is_no_file() -> bool:
    """Whether the program was read from standard input: a process that is started would look for it in a file."""
    return str(getattr(sys.modules["__main__"], "__file__", "")).endswith("<stdin>")


def ending(exitcode: int | None) -> str:
    """How a process ended, to be put behind its name."""
    if exitcode is None:
        return "ended"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}" + (" (was memory short?)" if name == "SIGKILL" else "")


_HELD_BACK = {signal.SIGINT, signal.SIGTERM}
_FILE = "it imports the main module, which was read from standard input: put the program into a file"
_GUARD = 'what starts work in the main module must stand under `if __name__ == "__main__":`'
