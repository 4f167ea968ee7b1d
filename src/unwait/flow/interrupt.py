"""Ctrl-C and SIGTERM: the first lets what runs finish, the second stops it, then the program ends as it would have.

All runs of the main thread, nested ones and concurrent ones, share one handler a signal. It is put in place with the
first run and taken back with the last, and only where the signal would do what Python or asyncio have it do: a handler
that is the program's own stays, and then that signal is none of our business.

    first signal       stop() of every run: no new items; those running have `grace` seconds
    grace time over    abort() of that run
    second signal      abort() of every run
    third signal       KeyboardInterrupt wherever the program is: the way out if the event loop is blocked

When the last run has left, the interruption is handed on as if Ctrl-C were pressed just then: `asyncio.run` cancels its
main task and raises KeyboardInterrupt, a loop run by hand raises it from `run_until_complete`. SIGTERM is handed on as
the same, so that it too ends the program through its ordinary clean-up. Python ends a process with an uncaught
KeyboardInterrupt by SIGINT: exit code 130 in a shell, `returncode == -2` in `subprocess`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from unwait.flow.progress import write_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# After abort() a run needs moments. Whoever consumes it may wait for something else, for ever: it must be cancelled
# too, so the interruption is handed on after this many seconds though the run has not left.
SECONDS_TO_LEAVE = 2.0


@dataclass(eq=False, slots=True)
class _Run:
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], int | None]
    abort: Callable[[], None]
    saved: Callable[[], str]
    grace: float
    aborted: bool = False
    timer: asyncio.TimerHandle | None = None  # the end of the grace time, then that of the time to leave

    def after(self, seconds: float, callback: Callable[[_Run], None]) -> None:
        self.cancel_timer()
        self.timer = self.loop.call_later(seconds, callback, self)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Interrupts:
    """The runs of the main thread, and how far an interruption has come."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._previous: dict[signal.Signals, Any] = {}  # the handlers in whose place ours are
        self._signals = 0
        self._handed_on = False
        self._written: set[str] = set()

    def enter(self, run: _Run) -> None:
        """Register a run; during an interruption it is stopped before it begins."""
        self._runs.append(run)
        if self._signals:
            run.stop()
            run.after(0 if self._signals > 1 else run.grace, self._abort)
        elif not self._previous:
            self._install()

    def leave(self, run: _Run) -> None:
        """Take a run out; after the last one of an interruption, hand that on. May raise KeyboardInterrupt."""
        if run not in self._runs:
            return  # forgotten in a forked child
        self._runs.remove(run)
        run.cancel_timer()
        try:
            if self._signals:
                self._write(run.saved())
        finally:
            if not self._running():
                self._finish()

    def forget(self) -> None:
        """In a forked child: everything as if there had been no runs."""
        self._runs.clear()
        self._signals, self._handed_on = 0, False
        self._written.clear()
        self._restore()

    def _running(self) -> list[_Run]:
        """Runs whose loop does not run cannot be waited for: they may never go on."""
        return [run for run in self._runs if run.loop.is_running()]

    def _install(self) -> None:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if _is_standard(number, handler):
                try:
                    signal.signal(number, self._on_signal)
                except ValueError:
                    return  # a sub-interpreter: its signals are the main interpreter's
                self._previous[number] = handler

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            if signal.getsignal(number) == self._on_signal:
                # ValueError: a coroutine that nobody finished was thrown away in another thread.
                with suppress(ValueError):
                    signal.signal(number, _still_valid(handler))

    def _finish(self) -> None:
        interrupted = self._signals > 0 and not self._handed_on
        self._signals, self._handed_on = 0, False
        self._written.clear()
        self._restore()
        if interrupted:
            _interrupt()

    def _on_signal(self, number: int, frame: object) -> None:
        running = self._running()
        if not running:
            self._restore()
            signal.raise_signal(number)
            return
        self._signals += 1
        if self._signals > 2:
            self._handed_on = True
            self._restore()
            raise KeyboardInterrupt
        react = self._stop_all if self._signals == 1 else self._abort_all
        running[-1].loop.call_soon_threadsafe(react)

    def _stop_all(self) -> None:
        # Without a timer: not those that began after the signal, and were stopped then.
        runs = [run for run in self._running() if run.timer is None] if self._signals else []
        if not runs:
            return
        counts = []
        for run in runs:
            counts.append(run.stop())
            run.after(run.grace, self._abort)
        if None in counts:
            what = "what is running"
        else:
            count = sum(count or 0 for count in counts)
            what = f"{count} running item{'' if count == 1 else 's'}"
        longest = max(run.grace for run in runs)
        self._write(f"interrupted: finishing {what}, at most {longest:g} s; again to stop at once")

    def _abort_all(self) -> None:
        for run in self._running() if self._signals else ():
            self._abort(run, "interrupted again: stopping at once")

    def _abort(self, run: _Run, why: str = "the grace time is over: stopping what is still running") -> None:
        if not run.aborted:
            run.aborted = True
            self._write(why)
            run.after(SECONDS_TO_LEAVE, self._give_up)
            run.abort()

    def _give_up(self, run: _Run) -> None:
        if not self._handed_on:
            self._handed_on = True
            self._restore()
            _interrupt()

    def _write(self, line: str) -> None:
        # Runs that share a journal say the same, and an abort concerns all of them.
        if line and line not in self._written:
            self._written.add(line)
            write_line(line)


def _is_standard(number: signal.Signals, handler: Any) -> bool:
    """Whether a signal does what Python or asyncio have it do, and nobody else handles it."""
    if number != signal.SIGINT:
        return handler is signal.SIG_DFL
    return handler is signal.default_int_handler or _is_runners(handler)


def _is_runners(handler: Any) -> bool:
    """Whether this is the handler of SIGINT that `asyncio.Runner.run` sets."""
    return isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )


def _still_valid(handler: Any) -> Any:
    """The handler, or Python's own in place of that of a Runner whose `run` is over.

    Such a Runner has not taken its handler back, for it found ours in its place.
    """
    if _is_runners(handler) and (main := handler.keywords.get("main_task")) is not None and main.done():
        return signal.default_int_handler
    return handler


def _interrupt() -> None:
    """Do what Ctrl-C would; where the program has its own mind about that, or ignores it, raise KeyboardInterrupt."""
    if not _is_standard(signal.SIGINT, signal.getsignal(signal.SIGINT)):
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


_interrupts = Interrupts()
os.register_at_fork(after_in_child=_interrupts.forget)


@contextmanager
def graceful(
    stop: Callable[[], int | None], abort: Callable[[], None], saved: Callable[[], str], grace: float
) -> Iterator[None]:
    """While inside, let the first Ctrl-C or SIGTERM end the run in an orderly way, and the second at once.

    `stop` is called in the loop at the first signal: take no more items; it returns how many are running, or None if
    that is not known. If an interruption is under way already, it is called before the body begins. `abort` is called
    in the loop, once, at the second signal or `grace` seconds after the first: cancel what is running. `saved` is
    asked as an interrupted run leaves; its text goes to stderr unless it is empty.

    Leaving the last of all runs hands the interruption on. That cancels the main task of `asyncio.run`, so the
    next `await` in it raises CancelledError; on a loop that is run by hand KeyboardInterrupt is raised here.

    Outside of the main thread, and for a signal that the program handles itself, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    run = _Run(asyncio.get_running_loop(), stop, abort, saved, grace)
    _interrupts.enter(run)
    try:
        yield
    finally:
        _interrupts.leave(run)
