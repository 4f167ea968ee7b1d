"""One item's calls: a permit for each attempt, its time-out, the back-off between two."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import CoroutineType, FrameType
from typing import Any, Generic, TypeVar

from unwait.flow.limits import Limits, Permit, acquire_all, try_acquire_all
from unwait.flow.outcome import Outcome
from unwait.flow.retry import Retry, cancellations_asked, is_cancelled_as
from unwait.flow.stats import Report

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=BaseException)


_PACKAGE = f"{__package__}."

# What is called for an item: it fills in the item's outcome, and raises nothing but a cancellation.
Calling = Callable[[Outcome[Any, Any]], Awaitable[None]]


class NotAwaitable(TypeError):
    """The function given is not asynchronous."""


class CallCancelled(Exception):
    """A call, or what gives the items, was cancelled by something inside it, not by whoever waits for the outcome."""


class Interrupted(asyncio.CancelledError):
    """A run was cut short by Ctrl-C or SIGTERM: what called it is neither done nor failed."""


class Caller(Generic[T, R]):
    """How `func` is called for an item: within which limits, how often, how long.

    NotAwaitable, for a function that is not async, is never retried.

    A permit of each of `limits` is held for exactly one attempt, never in back-off. `cost` is what an attempt
    takes of the token limits, a number or a function of the item. `timeout` bounds each attempt, once it has
    its permits; `item_timeout` everything, waiting included; both in seconds.

    Raises ValueError for a time-out that is not positive.
    """

    def __init__(
        self,
        func: Callable[[T], Awaitable[R]],
        *,
        limits: Limits | Sequence[Limits] = (),
        cost: float | Callable[[T], float] = 0,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        item_timeout: float | None = None,
        report: Report | None = None,
    ) -> None:
        check_timeouts(timeout=timeout, item_timeout=item_timeout)
        self._func = func
        self._limits = (limits,) if isinstance(limits, Limits) else tuple(limits)
        self._cost = cost
        self._retry = Retry.of(retry)
        self._timeout = timeout
        self._item_timeout = item_timeout
        self._report = report

    async def __call__(self, outcome: Outcome[T, R]) -> None:
        """Call the function for `outcome.item` and fill in the rest; raises nothing but a cancellation."""
        if self._item_timeout is None:
            await self._attempts(outcome, None)
            return
        scope = asyncio.timeout(self._item_timeout)
        try:
            async with scope:
                await self._attempts(outcome, scope)
        except TimeoutError:
            attempts = "1 attempt" if outcome.attempts == 1 else f"{outcome.attempts} attempts"
            message = f"not done within {self._item_timeout:g} s ({attempts})"
            outcome.value, outcome.error = None, TimeoutError(message)

    async def _attempts(self, outcome: Outcome[T, R], scope: asyncio.Timeout | None) -> None:
        clock = asyncio.get_running_loop().time
        report, retry = self._report, self._retry
        cancellations = cancellations_asked()
        started = clock()
        try:
            cost = self._cost(outcome.item) if callable(self._cost) else self._cost
        except Exception as error:
            error.add_note("raised by cost=")
            outcome.error = trimmed(error)
            return
        while True:
            permits: Sequence[Permit] = ()
            if self._limits:
                asked = clock()
                try:
                    permits = try_acquire_all(self._limits, outcome.item, cost=cost) or await acquire_all(
                        self._limits, outcome.item, cost=cost
                    )
                except Exception as error:
                    # The limits can't admit this item at all: its key or its cost makes no sense.
                    outcome.error = trimmed(error)
                    return
                finally:
                    waited = clock() - asked
                    outcome.waited += waited
                    if report is not None:
                        report.limited += waited
            outcome.attempts += 1
            if report is not None:
                report.attempts += 1
                report.retried += outcome.attempts > 1
            begun = clock()
            failed: Exception | None = None
            try:
                outcome.value = await self._attempt(permits, outcome.item)
            except Interrupted:
                raise
            except asyncio.CancelledError as cancelled:
                if cancellations_asked():
                    raise
                failed = CallCancelled("the call was cancelled from inside")
                failed.__cause__ = trimmed(cancelled)
            except Exception as error:
                failed = trimmed(error)
            finally:
                ended = clock()
                if report is not None:
                    report.calling += ended - begun
            if failed is None:
                if retry is not None:
                    retry.succeeded()
                return
            over = is_cancelled_as(failed, cancellations) or (scope is not None and scope.expired())
            if retry is None or over or isinstance(failed, NotAwaitable):
                outcome.error = failed
                return
            try:
                delay = retry.delay(failed, outcome.attempts, ended - started, ended)
            except Exception as error:
                error.__context__ = failed
                error.add_note("raised by retry=")
                outcome.error = trimmed(error)
                return
            if delay is None:
                outcome.error = failed
                return
            try:
                await retry.wait(delay, failed)
            finally:
                waited = clock() - ended
                outcome.waited += waited
                if report is not None:
                    report.backing_off += waited

    async def _attempt(self, permits: Sequence[Permit], item: T) -> R:
        if permits:
            with permits[0]:
                return await self._attempt(permits[1:], item)
        called = self._func(item)
        if type(called) is not CoroutineType:
            check_awaitable(self._func, called)
        if self._timeout is None:
            return await called
        scope = asyncio.timeout(self._timeout)
        try:
            async with scope:
                return await called
        except TimeoutError as error:
            if scope.expired() and not error.args:
                error.args = (f"timed out after {self._timeout:g} s",)
            raise


def check_timeouts(**timeouts: float | None) -> None:
    """Raise ValueError for one that is not positive, by its name."""
    for name, seconds in timeouts.items():
        if not (seconds is None or isinstance(seconds, int | float)):
            raise TypeError(f"{name} is a number of seconds, or None, and not {type(seconds).__name__}")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} is in seconds and must be positive, or None; it is {seconds!r}")


def check_awaitable(func: Callable[..., Any], called: object) -> None:
    """Raise NotAwaitable if what the function returned is not awaitable."""
    if not inspect.isawaitable(called):
        name = getattr(func, "__qualname__", repr(func))
        raise NotAwaitable(
            f"{name} returned {type(called).__name__}, which can't be awaited: make it an async function, or have it "
            'run in threads or processes with where="thread" or where="process"'
        )


def trimmed(error: E) -> E:
    """The error, its traceback without the frames of this package that it begins with.

    They are of no use to who reads it, and who keeps an error would keep what they refer to: the whole run.
    """
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback = traceback.tb_next
    error.__traceback__ = traceback
    return error


def empty_frames(error: BaseException) -> None:
    """Empty the frames of this package that a `trimmed` error came through, as far as they are over.

    From Python 3.12 on, a frame in a traceback keeps those of its callers: here, what holds the error itself.
    """
    traceback = error.__traceback__
    frame = None if traceback is None else traceback.tb_frame.f_back
    with suppress(RuntimeError):  # still running
        while frame is not None and _is_ours(frame):
            frame.clear()
            frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE)


async def call(
    func: Callable[[T], Awaitable[R]],
    item: T,
    *,
    limits: Limits | Sequence[Limits] = (),
    cost: float | Callable[[T], float] = 0,
    retry: Retry | int | None = None,
    timeout: float | None = None,
    item_timeout: float | None = None,
) -> Outcome[T, R]:
    """`Caller` for a single item: its outcome, whatever it is; raises nothing but a cancellation."""
    outcome: Outcome[T, R] = Outcome(0, item)
    clock = asyncio.get_running_loop().time
    started = clock()
    caller = Caller(func, limits=limits, cost=cost, retry=retry, timeout=timeout, item_timeout=item_timeout)
    await caller(outcome)
    outcome.elapsed = clock() - started
    return outcome
