"""The scheduler: callbacks, timers and the one iteration of the loop that runs them."""

from __future__ import annotations

import asyncio
import contextvars
import time
from asyncio.log import logger
from collections.abc import Callable, Coroutine
from typing import Any

from unwait.loop.handles import Handle, ReadyQueue, TimerHandle, TimerHeap
from unwait.loop.kernel import Poller

Future = asyncio.Future
Task = asyncio.Task

# While callbacks wait to run, the kernel is asked for events only once in so many callbacks: the question costs as much
# as running a small callback does. (tokio asks once in 61 tasks, for the same reason.)
CALLBACKS_PER_POLL = 61


class Core:
    """What runs per callback; the compiled base of the event loop."""

    def __cinit__(self) -> None:
        self.poller = Poller()
        self.ready = ReadyQueue()
        self.timers = TimerHeap()

    def time(self) -> float:
        """Seconds of the monotonic clock that deadlines are given in."""
        return self.poller.now()

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
        return self.schedule(self.poller.now() + delay, callback, args, context, "call_later")

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
        timer = TimerHandle.__new__(TimerHandle)
        timer.fill(callback, args, self, context)
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
        handle.fill(callback, args, self, context)
        if self._debug:
            handle.trace()
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """A new future of this loop."""
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
            task = self._task_factory(self, coro, **options)
            if name is not None:
                task.set_name(name)
        elif name is None and context is None and not options:
            task = Task(coro, loop=self)
        else:
            task = Task(coro, loop=self, name=name, context=context, **options)
        return task

    def _spin(self) -> None:
        """Iterate until `stop`; raises what a callback raised of KeyboardInterrupt and SystemExit."""
        self.unpolled = CALLBACKS_PER_POLL
        while True:
            self.run_once()
            if self._stopping:
                break

    def _close_core(self) -> None:
        """Drop every callback and timer, and close the poller."""
        self.ready.clear()
        self.timers.clear()
        self.poller.close()

    def run_once(self) -> None:
        poller = self.poller
        ready = self.ready
        timers = self.timers
        if ready.length == 0 or self.unpolled >= CALLBACKS_PER_POLL:
            self.unpolled = 0
            poller.wait(self.longest_wait())
            poller.check_signals()
            poller.dispatch()
        if timers.items:
            now = poller.now()
            timer = timers.first()
            while timer is not None and timer.deadline <= now:
                ready.push(timers.pop())
                timer = timers.first()
        count = ready.length
        self.unpolled += count
        while count > 0:
            count -= 1
            handle = ready.pop()
            if not handle._cancelled:
                if self._debug:
                    self.run_handle(handle)
                else:
                    handle.run()
                handle.release()

    def longest_wait(self) -> float:
        """How long the kernel may keep us, in seconds: for ever is -1."""
        if self.ready.length or self._stopping:
            return 0
        timer = self.timers.first()
        if timer is None:
            return -1
        delay = timer.deadline - self.poller.now()
        return delay if delay > 0 else 0

    def run_handle(self, handle: Handle) -> None:
        """Run a handle; in debug mode note it as the current one, and log it if it was slow."""
        if not self._debug:
            handle.run()
            return
        self._current_handle = handle
        started = time.monotonic()
        try:
            handle.run()
        finally:
            self._current_handle = None
        self.note_slow(handle, started)

    def note_slow(self, subject: Any, started: float) -> None:
        """In debug mode, log what ran since `started` if it kept the loop for `slow_callback_duration` or longer."""
        elapsed = time.monotonic() - started
        if elapsed >= self.slow_callback_duration:
            owner = getattr(getattr(subject, "_callback", None), "__self__", None)
            logger.warning("Executing %r took %.3f seconds", owner if isinstance(owner, Task) else subject, elapsed)
