"""The scheduler: callbacks, timers and the one iteration of the loop that runs them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import time
from asyncio.log import logger
from collections.abc import Callable, Coroutine
from typing import Any

import cython
from cython.cimports.cpython.pythread import PyThread_get_thread_ident

from unwait.loop.handles import Handle, Origin, TimerHandle, TimerHeap, cancelled_mark
from unwait.loop.kernel import Poller

Future = asyncio.Future
Task = asyncio.Task

# While callbacks wait to run, are quick (seconds between two polls) and the kernel has had no events for a while, it is
# asked for some only once in so many callbacks: the question costs as much as a small callback does.
CALLBACKS_PER_POLL = 16
QUICK = 0.0005

# Since Python 3.14 a task's name is handed to the task factory.
FACTORIES_TAKE_NAMES = "name" not in inspect.signature(asyncio.BaseEventLoop.create_task).parameters

# The phases of an iteration.
POLL = 0
RUN_READY = 1
RUN_EVENTS = 2
RUN_TIMERS = 3

CANCELLED = cancelled_mark()


@cython.final
@cython.cclass
class ReadyQueue:
    """The callbacks to run, first in first out: a list linked through the handles themselves."""

    def __dealloc__(self) -> None:
        while self.head is not None:
            self.pop()

    def push(self, handle: Handle) -> None:
        if self.head is None:
            self.head = handle
        else:
            self.tail.next = handle
        self.tail = handle
        self.length += 1

    def pop(self) -> Handle:
        """Take the first handle; the queue must not be empty."""
        handle: Handle = self.head
        self.head = handle.next
        if self.head is None:
            self.tail = None
        else:
            handle.next = None
        self.length -= 1
        return handle

    def clear(self) -> None:
        """Drop every callback without calling it."""
        while self.head is not None:
            self.pop().release()


class Core:
    """What runs per callback; the compiled base of the event loop."""

    def __cinit__(self) -> None:
        self.origin = Origin(self)
        self.other_references = sys.getrefcount(self.origin)
        self.poller = Poller()
        self.ready = ReadyQueue()
        self.timers = TimerHeap()
        self.due = ReadyQueue()
        self.other_clock = type(self).time is not Core.time

    def time(self) -> float:
        """Seconds of the monotonic clock that deadlines are given in."""
        return self.poller.now()

    def clock(self) -> float:
        """`time`, also where a subclass has another clock; without the call where it has not."""
        return self.time() if self.other_clock else self.poller.now()

    def is_running(self) -> bool:
        """Whether the loop runs now, in any thread."""
        return self._thread_id is not None

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def get_debug(self) -> bool:
        """Whether debug mode is on."""
        return self._debug

    def stop(self) -> None:
        """Let `run_forever` return once the callbacks that are ready now have run."""
        self._stopping = True

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """Call `callback(*args)` in the next iteration, in order. Raises RuntimeError once the loop is closed."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_soon")
        return self.enqueue(callback, args, context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        """`call_soon` from any thread or signal handler; wakes the loop."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._debug:
            self._check_callback(callback, "call_soon_threadsafe")
        handle = self.enqueue(callback, args, context)
        self.poller.wake()
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> TimerHandle:
        """Call `callback(*args)` in `delay` seconds, never sooner."""
        if delay is None:
            raise TypeError("delay must not be None")
        return self.schedule(self.clock() + delay, callback, args, context, "call_later")

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> TimerHandle:
        """Call `callback(*args)` when the loop's clock shows `when`, never sooner."""
        if when is None:
            raise TypeError("when cannot be None")
        return self.schedule(when, callback, args, context, "call_at")

    def schedule(
        self,
        deadline: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        method: str,
    ) -> TimerHandle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._debug:
            self._check_thread()
            self._check_callback(callback, method)
        if deadline != deadline:
            raise ValueError(f"{method}() needs a time, not NaN")
        timer = TimerHandle.__new__(TimerHandle)
        timer.fill(callback, args, self.origin, context)
        timer.deadline = deadline
        if self._debug:
            timer.trace()
        self.timers.push(timer)
        return timer

    def enqueue(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> Handle:
        handle = self.make_handle(callback, args, context)
        self.ready.push(handle)
        return handle

    def make_handle(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> Handle:
        handle = Handle.__new__(Handle)
        handle.fill(callback, args, self.origin, context)
        if self._debug:
            handle.trace()
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """A new future of this loop."""
        if self.thread == PyThread_get_thread_ident():
            return Future()  # finds the running loop, this one, faster than it takes a keyword
        return Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        """Schedule a coroutine as a task; `options` (such as `eager_start`) go to the Task, or to the task factory."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._task_factory is not None:
            if context is not None:
                options["context"] = context
            if name is not None and FACTORIES_TAKE_NAMES:
                options["name"] = name
            task = self._task_factory(self, coro, **options)
            if name is not None and not FACTORIES_TAKE_NAMES:
                task.set_name(name)
        elif name is None and context is None and not options and self.thread == PyThread_get_thread_ident():
            task = Task(coro)
        else:
            task = Task(coro, loop=self, name=name, context=context, **options)
        return task

    def _spin(self) -> None:
        """Iterate until `stop`; raises what a callback raised of KeyboardInterrupt and SystemExit.

        One `try` around many iterations instead of one a callback: entering it is a good part of a callback's cost.
        """
        self.unpolled = self.poll_interval = 1
        self.thread = PyThread_get_thread_ident()
        self.phase = RUN_TIMERS if self.due.length else POLL  # what an interrupt left of the last run
        self.remaining = self.due.length
        try:
            while True:
                self.spin_until_failure()
                if self._stopping and self.phase == POLL:
                    break
        finally:
            self.thread = 0
            self.current = self.poller.active = None

    def spin_until_failure(self) -> None:
        """Iterate until `stop`, or until a callback has failed and been reported."""
        try:
            while True:
                self.run_once()
                if self._stopping:
                    break
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if self.current is not None:
                self.current.report(exc)
                self.current.release()
            elif self.poller.active is not None:
                channel = self.poller.active
                message = f"Exception in a callback of {channel!r}"
                self.call_exception_handler({"message": message, "exception": exc, "transport": channel})
            else:
                raise

    def _live_handles(self) -> int:
        """How many handles of this loop are alive, whoever holds them."""
        return sys.getrefcount(self.origin) - self.other_references

    def _close_core(self) -> None:
        """Drop every callback and timer, and close the poller."""
        self.ready.clear()
        self.timers.clear()
        self.due.clear()
        self.poller.close()

    def run_once(self) -> None:
        """One iteration, or the rest of one that an exception has ended.

        In asyncio's order: the callbacks that were ready before, then the events, then the timers that are due.
        """
        if self.phase == POLL:
            if self.ready.length == 0 or self.unpolled >= self.poll_interval:
                self.poll()
            if self.timers.items:
                self.now = self.clock()
                self.collect_timers()
            self.remaining = self.ready.length
            self.unpolled += self.remaining
            self.phase = RUN_READY
        if self.phase == RUN_READY:
            self.run_handles(self.ready)
            self.phase = RUN_EVENTS
        if self.phase == RUN_EVENTS:
            if self.poller.next < self.poller.count:
                self.current = None
                self.poller.dispatch()
            self.remaining = self.due.length
            self.phase = RUN_TIMERS
        if self.remaining > 0:
            self.run_handles(self.due)
        self.current = None
        self.phase = POLL

    def poll(self) -> None:
        """Fetch events. As long as there are none and callbacks are quick, ask less and less often."""
        timeout = self.longest_wait()
        self.poller.wait(timeout)
        self.poller.check_signals()
        previous = self.polled_at
        self.polled_at = self.poller.now()
        if timeout == 0 and self.poller.count == 0 and self.polled_at - previous < QUICK:
            self.poll_interval = min(self.poll_interval * 2, CALLBACKS_PER_POLL)
        else:
            self.poll_interval = 1
        self.unpolled = 0

    def run_handles(self, queue: ReadyQueue) -> None:
        """Run the first `remaining` handles of a queue; what they add to it waits for the next iteration."""
        while self.remaining > 0:
            self.remaining -= 1
            handle = queue.pop()
            if handle.args is not CANCELLED:
                if self._debug:
                    self.run_handle(handle)
                else:
                    self.current = handle
                    handle.run()
                handle.release()

    def collect_timers(self) -> None:
        """Take the timers that were due when the iteration began, before one of them can set another."""
        timer = self.timers.first()
        while timer is not None and timer.deadline <= self.now:
            self.due.push(self.timers.pop())
            timer = self.timers.first()

    def longest_wait(self) -> float:
        """How long the kernel may keep us, in seconds: for ever is -1."""
        if self.ready.length or self._stopping:
            return 0
        timer = self.timers.first()
        if timer is None:
            return -1
        delay = timer.deadline - self.clock()
        return delay if delay > 0 else 0

    def run_handle(self, handle: Handle) -> None:
        """Run a handle and report its failure; in debug mode note it as the current one, and log it if it was slow."""
        if not self._debug:
            handle._run()
            return
        self._current_handle = handle
        started = time.monotonic()
        try:
            handle._run()
        finally:
            self._current_handle = None
        self.note_slow(handle, started)

    def note_slow(self, subject: Any, started: float) -> None:
        """In debug mode, log what ran since `started` if it kept the loop for `slow_callback_duration` or longer."""
        elapsed = time.monotonic() - started
        if elapsed >= self.slow_callback_duration:
            owner = getattr(getattr(subject, "_callback", None), "__self__", None)
            description = repr(owner if isinstance(owner, Task) else subject)
            logger.warning("Executing %s took %.3f seconds", description, elapsed)
