"""Signals: Python's wake-up descriptor carries their numbers into the loop.

CPython's C-level handler only notes a signal, and writes its number to the wake-up descriptor; the Python-level handler
runs later, between two bytecodes of the main thread. A signal that comes just before `epoll_wait` would therefore be
noticed only after it. While the loop runs in the main thread the wake-up descriptor is in its epoll set, which closes
that gap for every handler, also for those set with `signal.signal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import signal
import sys
import threading
import warnings
import weakref
from asyncio.log import logger
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVarTuple

Ts = TypeVarTuple("Ts")


def _ignore(signum: int, frame: Any) -> None:
    """The Python-level handler of a signal whose real handler is a callback of the loop."""


def _read_signals_of(reference: weakref.ref[Signals]) -> None:
    """The callback of a loop's signal pipe, which must not keep the loop alive."""
    loop = reference()
    if loop is not None:
        loop._read_signals()


def _restore_wakeup_fd(fd: int) -> None:
    """Put a wake-up descriptor back, unless it has been closed since."""
    if fd >= 0:
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(fd, warn_on_full_buffer=False)


def _check_signal(sig: object) -> None:
    if not isinstance(sig, int):
        raise TypeError(f"sig must be an int, not {sig!r}")
    if sig not in signal.valid_signals():
        raise ValueError(f"invalid signal number {sig}")


class Signals(asyncio.BaseEventLoop):
    """The part of the loop that handles signals."""

    if TYPE_CHECKING:
        _check_closed: Callable[[], None]

        def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle: ...
        def _remove_reader(self, fd: int) -> bool: ...

    def __init__(self) -> None:
        super().__init__()
        self._signal_handlers: dict[int, asyncio.Handle] = {}
        self._signal_pipe: tuple[int, int] | None = None

    def _watch_signals(self) -> int:
        """Put the wake-up descriptor in place; the previous one. RuntimeError outside of the main thread."""
        if self._signal_pipe is None:
            self._signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._add_reader(self._signal_pipe[0], _read_signals_of, weakref.ref(self))
        try:
            return signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
        except (ValueError, OSError) as exc:
            raise RuntimeError(str(exc)) from exc

    def _enter_main_thread(self) -> int | None:
        """Called as the loop starts: the wake-up descriptor to put back as it stops, None in other threads."""
        if threading.current_thread() is not threading.main_thread():
            return None
        return self._watch_signals()

    def _leave_main_thread(self, previous: int | None) -> None:
        # While it has handlers it keeps the descriptor: signals that come between two runs are handled in the next.
        if previous is not None and not self._signal_handlers:
            self._release_wakeup_fd()
            if self._signal_pipe is None or previous != self._signal_pipe[1]:
                _restore_wakeup_fd(previous)

    def _release_wakeup_fd(self) -> None:
        """Take our wake-up descriptor back, and leave anybody else's in place."""
        try:
            current = signal.set_wakeup_fd(-1)
        except (ValueError, OSError) as exc:
            logger.info("set_wakeup_fd(-1) failed: %s", exc)
            return
        if isinstance(current, int) and (self._signal_pipe is None or current != self._signal_pipe[1]):
            _restore_wakeup_fd(current)

    def _read_signals(self) -> None:
        assert self._signal_pipe is not None
        for signum in os.read(self._signal_pipe[0], 4096):
            handle: Any = self._signal_handlers.get(signum)
            if handle is None:
                continue
            if handle.cancelled():
                self.remove_signal_handler(signum)
            else:
                self.call_soon(handle._callback, *handle._args, context=handle._context)

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call `callback(*args)` in the loop at each signal `sig`.

        Raises TypeError or ValueError for what is no signal, RuntimeError for one that cannot be caught and outside
        of the main thread.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        _check_signal(sig)
        self._check_closed()
        previous = self._watch_signals()
        handle = asyncio.Handle(callback, args, self, None)
        try:
            signal.signal(sig, _ignore)
            signal.siginterrupt(sig, False)  # fewer system calls end with EINTR
        except OSError as exc:
            if not self._signal_handlers:
                signal.set_wakeup_fd(previous)
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise
        self._signal_handlers[sig] = handle

    def remove_signal_handler(self, sig: int) -> bool:
        """Give `sig` its default handler back; whether it had one here."""
        _check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        try:
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise
        if not self._signal_handlers and not self.is_running():
            self._release_wakeup_fd()
        return True

    def _close_signals(self) -> None:
        """Give every signal its default handler back and close the pipe."""
        if sys.is_finalizing():
            if self._signal_handlers:
                warnings.warn(
                    f"Closing the loop {self!r} on interpreter shutdown stage, skipping signal handlers removal",
                    ResourceWarning,
                    stacklevel=3,
                    source=self,
                )
        elif threading.current_thread() is threading.main_thread():
            for sig in list(self._signal_handlers):
                self.remove_signal_handler(sig)
        self._signal_handlers.clear()
        if self._signal_pipe is not None:
            self._remove_reader(self._signal_pipe[0])
            for fd in self._signal_pipe:
                os.close(fd)
            self._signal_pipe = None
