"""Handles of scheduled callbacks, and the heap that holds those with a deadline.

Handles are kept out of the garbage collector's sight: a hundred thousand of them alive would double the cost of each.
What makes that safe is that a handle which has run, or was cancelled, lets go of everything it held.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import weakref
from asyncio import format_helpers
from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.cpython.contextvars import PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit

# Cancelled timers stay in the heap until they are due or until this many, and more than half of all, are cancelled.
CANCELLED_KEPT = 100

# Newer Pythons show a callback's arguments in debug mode only.
HIDES_ARGUMENTS = "debug" in inspect.signature(format_helpers._format_callback_source).parameters


# Takes the place of a cancelled handle's arguments.
CANCELLED = object()


def cancelled_mark() -> object:
    """`CANCELLED`, for modules that cannot import this one's C variables."""
    return CANCELLED


class Origin:
    """What the handles of one loop share: the way back to the loop. References to it count the handles alive.

    The way back is weak: a loop that is dropped with callbacks still scheduled is collected all the same.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)


class Notes:
    """What debug mode keeps about a handle: where it was made, and what it was before it was cancelled."""

    def __init__(self, source_traceback: Any) -> None:
        self.source_traceback = source_traceback
        self.description: str | None = None


@cython.no_gc
@cython.freelist(1024)
@cython.cclass
class Handle:
    """A callback on its way, as `call_soon` returns it. Passes for an `asyncio.Handle`."""

    @property
    def __class__(self) -> type:
        return asyncio.Handle

    def fill(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        origin: Origin,
        context: contextvars.Context | None,
    ) -> None:
        self._callback = callback
        self.args = args
        self.origin = origin
        self._context = PyContext_CopyCurrent() if context is None else context

    def trace(self) -> None:
        """Note where the caller of the compiled loop stands, for debug mode."""
        self.notes = Notes(format_helpers.extract_stack(sys._getframe(0)))

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return None if self.origin is None else self.origin.loop()

    @property
    def _args(self) -> tuple[Any, ...] | None:
        return None if self.args is CANCELLED else self.args

    @property
    def _cancelled(self) -> bool:
        return self.args is CANCELLED

    @property
    def _source_traceback(self) -> Any:
        return None if self.notes is None else self.notes.source_traceback

    def run(self) -> None:
        """Call the callback in its context; what it raises comes out."""
        context = self._context
        args: tuple[Any, ...] = self.args
        PyContext_Enter(context)
        try:
            if len(args) == 1:
                self._callback(args[0])
            elif len(args) == 0:
                self._callback()
            else:
                self._callback(*args)
        finally:
            PyContext_Exit(context)

    def _run(self) -> None:
        """Run, and report what the callback raises, except for KeyboardInterrupt and SystemExit."""
        if self.args is not None and self.args is not CANCELLED:
            try:
                self.run()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self.report(exc)

    def source(self) -> str:
        """The callback and where it is defined, in asyncio's words."""
        options = {"debug": self._loop.get_debug()} if HIDES_ARGUMENTS else {}
        return format_helpers._format_callback_source(self._callback, self._args or (), **options)

    def report(self, exc: BaseException) -> None:
        """Tell the loop's exception handler that the callback failed."""
        source = self.source()
        context = {"message": f"Exception in callback {source}", "exception": exc, "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        self._loop.call_exception_handler(context)

    def release(self) -> None:
        """Let go of the callback, which has run; nothing the collector cannot see may stay behind."""
        self._callback = self._context = None
        if self.args is not CANCELLED:
            self.args = None

    def cancel(self) -> None:
        """Prevent the callback from being called; no effect once it has been."""
        if self.args is CANCELLED:
            return
        if self.notes is not None:
            self.notes.description = repr(self)
        self._callback = self._context = None
        self.args = CANCELLED

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self.args is CANCELLED

    def get_context(self) -> contextvars.Context:
        """The context that the callback runs in; None once it has run."""
        return self._context

    def _repr_info(self) -> list[str]:
        info = [type(self).__name__]
        if self.args is CANCELLED:
            info.append("cancelled")
        if self._callback is not None:
            info.append(self.source())
        if self._source_traceback:
            frame = self._source_traceback[-1]
            info.append(f"created at {frame[0]}:{frame[1]}")
        return info

    def __repr__(self) -> str:
        if self.notes is not None and self.notes.description is not None:
            return self.notes.description
        return f"<{' '.join(self._repr_info())}>"


@cython.no_gc
@cython.freelist(1024)
@cython.cclass
class TimerHandle(Handle):
    """A callback with a deadline, as `call_later` and `call_at` return it. Passes for an `asyncio.TimerHandle`."""

    @property
    def __class__(self) -> type:
        return asyncio.TimerHandle

    def when(self) -> float:
        """The deadline, in seconds of the loop's clock."""
        return self.deadline

    @property
    def _when(self) -> float:
        return self.deadline

    @property
    def _scheduled(self) -> bool:
        return self.heap is not None

    def before(self, other: TimerHandle) -> bool:
        """Whether this timer is due first; of two with one deadline, the one that was set first."""
        if self.deadline != other.deadline:
            return self.deadline < other.deadline
        return self.sequence < other.sequence

    def cancel(self) -> None:
        """Prevent the callback from being called; no effect once it has been."""
        if self.args is not CANCELLED:
            Handle.cancel(self)
            if self.heap is not None:
                self.heap.note_cancelled()

    def _repr_info(self) -> list[str]:
        info = Handle._repr_info(self)
        info.insert(2 if self.args is CANCELLED else 1, f"when={self.deadline}")
        return info

    def __hash__(self) -> int:
        return hash(self.deadline)

    def __lt__(self, other: object) -> bool:
        return self.deadline < other.when() if isinstance(other, asyncio.TimerHandle) else NotImplemented

    def __le__(self, other: object) -> bool:
        if not isinstance(other, asyncio.TimerHandle):
            return NotImplemented
        return self.deadline < other.when() or self == other

    def __gt__(self, other: object) -> bool:
        return self.deadline > other.when() if isinstance(other, asyncio.TimerHandle) else NotImplemented

    def __ge__(self, other: object) -> bool:
        if not isinstance(other, asyncio.TimerHandle):
            return NotImplemented
        return self.deadline > other.when() or self == other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, asyncio.TimerHandle):
            return NotImplemented
        return (
            self.deadline == other.when()
            and self._callback == other._callback
            and self._args == other._args
            and self._cancelled == other._cancelled
        )


@cython.final
@cython.cclass
class TimerHeap:
    """Timers in a binary heap, the earliest deadline first. A cancelled one is removed late, many at a time."""

    def __cinit__(self) -> None:
        self.items = []

    def __len__(self) -> int:
        return len(self.items)

    def push(self, timer: TimerHandle) -> None:
        self.sequence += 1
        timer.sequence = self.sequence
        timer.heap = self
        self.items.append(timer)
        self.rise(len(self.items) - 1)

    def first(self) -> TimerHandle | None:
        """The earliest timer that is not cancelled, or None."""
        while self.items and cython.cast(TimerHandle, self.items[0]).args is CANCELLED:
            self.pop()
            self.cancelled -= 1
        return cython.cast(TimerHandle, self.items[0]) if self.items else None

    def pop(self) -> TimerHandle:
        """Take the earliest timer, cancelled or not; the heap must not be empty."""
        top: TimerHandle = self.items[0]
        last = self.items.pop()
        if self.items:
            self.items[0] = last
            self.sink(0)
        top.heap = None
        return top

    def rise(self, place: int) -> None:
        timer: TimerHandle = self.items[place]
        while place > 0:
            parent = (place - 1) >> 1
            above: TimerHandle = self.items[parent]
            if not timer.before(above):
                break
            self.items[place] = above
            place = parent
        self.items[place] = timer

    def sink(self, place: int) -> None:
        timer: TimerHandle = self.items[place]
        size = len(self.items)
        while True:
            child = 2 * place + 1
            if child >= size:
                break
            below: TimerHandle = self.items[child]
            if child + 1 < size and cython.cast(TimerHandle, self.items[child + 1]).before(below):
                child += 1
                below = self.items[child]
            if not below.before(timer):
                break
            self.items[place] = below
            place = child
        self.items[place] = timer

    def note_cancelled(self) -> None:
        """Called by a timer of this heap that was cancelled."""
        self.cancelled += 1
        if self.cancelled > CANCELLED_KEPT and self.cancelled * 2 > len(self.items):
            kept = []
            for item in self.items:
                timer = cython.cast(TimerHandle, item)
                if timer.args is CANCELLED:
                    timer.heap = None
                else:
                    kept.append(timer)
            self.items = kept
            self.cancelled = 0
            for place in range(len(kept) // 2 - 1, -1, -1):
                self.sink(place)

    def clear(self) -> None:
        """Drop every timer without calling it."""
        for item in self.items:
            timer = cython.cast(TimerHandle, item)
            timer.heap = None
            timer.release()
        self.items.clear()
        self.cancelled = 0
