"""When a failed call is made again: which errors, how often, how long after, and how many of all calls at most."""

from __future__ import annotations

import asyncio
import functools
import math
import random as _random
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import ParamSpec, TypeVar

from unwait.flow.faults import retry_after

P = ParamSpec("P")
R = TypeVar("R")

ErrorFilter = (
    type[BaseException] | tuple[type[BaseException], ...] | UnionType | Callable[[BaseException], bool]
)

# A second call meets the same bug, or the same wrong argument.
_PERMANENT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def transient(error: BaseException) -> bool:
    """Whether another call may end differently: not after what shows a bug, a wrong argument or a missing file.

    An error with an attribute `retryable` that is True or False decides for itself.
    """
    said = getattr(error, "retryable", None)
    if isinstance(said, bool):
        return said
    return isinstance(error, Exception) and not isinstance(error, _PERMANENT)


def cancellations_asked() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def is_cancelled_as(error: BaseException, before: int) -> bool:
    """Whether `error` is what a call made of its cancellation, which was asked for after `before` others.

    A TimeoutError may be that of a library which cancels the task for it, and never takes that back.
    """
    return cancellations_asked() > before and not isinstance(error, TimeoutError)


class RetryBudget:
    """How many retries there may be beside the first calls, so that an outage is probed and not stormed.

    A bucket of `burst` retries: each retry takes one, each success adds `ratio`, each second adds `rate`. A
    retry that finds it empty is not refused but waits its turn, so that an outage costs time and no items.
    Retries whose delay the other side named take nothing: it has planned for them.
    """

    def __init__(self, ratio: float = 0.5, *, rate: float = 10.0, burst: float = 100.0) -> None:
        if not (0 <= ratio < math.inf and 0 < rate < math.inf and 1 <= burst < math.inf):
            raise ValueError("a retry budget needs ratio ≥ 0, rate > 0 and burst ≥ 1")
        self.ratio = ratio
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._updated = -math.inf

    def deposit(self) -> None:
        """Count a success."""
        self._level = min(self.burst, self._level + self.ratio)

    def take(self, now: float) -> float:
        """Take one retry; how many seconds from `now` (of the loop's clock) it must wait for its turn."""
        # A clock that went back is another loop's.
        passed = now - self._updated if now > self._updated else 0.0
        self._updated = now
        self._level = min(self.burst, self._level + passed * self.rate) - 1
        return max(0.0, -self._level / self.rate)

    def give_back(self) -> None:
        """Return a retry that was taken and not made."""
        self._level = min(self.burst, self._level + 1)


class Retry:
    """A policy of retries, for `map`, `stream`, `Pipeline` and `Client`, or as a decorator of one function.

    At most `retries` calls follow the first. `on` says which errors are retried: exception types, or a
    function of the error; by default `transient`. `total` bounds the seconds from the first call's start to
    the last one's; None is no bound.

    The delay before retry n is random between 0 and min(`cap`, `base` · 2ⁿ⁻¹) seconds ("full jitter", from
    Marc Brooker's "Exponential Backoff And Jitter", AWS 2015). Where `after(error)` names a delay, that is a
    floor to which the random one is added. `budget` bounds the retries of everything that shares this object;
    None is no bound. `random` gives numbers from 0 to 1.

    Raises ValueError for numbers that make no sense.
    """

    def __init__(
        self,
        retries: int = 5,
        *,
        on: ErrorFilter = transient,
        total: float | None = None,
        base: float = 0.5,
        cap: float = 60.0,
        after: Callable[[BaseException], float | None] = retry_after,
        budget: RetryBudget | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError(f"retries must be a whole number, not {type(retries).__name__}")
        if retries < 0:
            raise ValueError(f"retries must not be negative, and is {retries}")
        if not (0 <= base < math.inf and 0 <= cap < math.inf):
            raise ValueError("base and cap are seconds and must not be negative")
        if total is not None and not total > 0:
            raise ValueError("total is in seconds and must be positive, or None")
        self.retries = retries
        self.on = on
        self.total = total
        self.base = base
        self.cap = cap
        self.after = after
        self.budget = budget
        self._random = random
        self._retried: Callable[[BaseException], bool]
        if isinstance(on, type | tuple | UnionType):
            self._retried = lambda error: isinstance(error, on)
        else:
            self._retried = on
        for name, function in (("on", self._retried), ("after", after)):
            if not callable(function):
                kinds = "exception types or a function" if name == "on" else "a function"
                raise TypeError(f"{name} must be {kinds}, not {type(function).__name__}")

    @classmethod
    def of(cls, given: Retry | int | None) -> Retry | None:
        """The policy that a parameter `retry=` stands for; a number means that many, within a budget."""
        if given is None or isinstance(given, Retry):
            return given
        return cls(given, budget=RetryBudget())

    def delay(self, error: BaseException, attempts: int, spent: float, now: float) -> float | None:
        """Seconds to wait after `attempts` calls, the last of which ended with `error`; None to give up.

        `spent` are the seconds since the first call's start, `now` is the loop's clock. A retry taken from the
        budget and then not made must be given back to it.
        """
        if attempts > self.retries or not self._retried(error):
            return None
        jitter = self._random() * min(self.cap, self.base * 2.0 ** min(attempts - 1, 64))
        floor = self._named(error)
        delay = jitter if floor is None else floor + jitter
        if self.total is not None and spent + delay >= self.total:
            return None
        if self.budget is not None and floor is None:
            delay = max(delay, self.budget.take(now))
            if self.total is not None and spent + delay >= self.total:
                self.budget.give_back()
                return None
        return delay

    async def wait(self, delay: float, error: BaseException) -> None:
        """Sleep the `delay` that followed `error`; a cancelled wait gives its retry back to the budget."""
        try:
            await asyncio.sleep(delay)
        except BaseException:
            if self.budget is not None and self._named(error) is None:
                self.budget.give_back()
            raise

    def _named(self, error: BaseException) -> float | None:
        """The delay that the other side named, if that makes sense."""
        named = self.after(error)
        return named if named is not None and 0 <= named < math.inf else None

    def succeeded(self) -> None:
        """Count a success for the budget."""
        if self.budget is not None:
            self.budget.deposit()

    def __call__(self, func: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Make a coroutine function retry by this policy; what it raises in the end is its last error."""

        @functools.wraps(func)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> R:
            clock = asyncio.get_running_loop().time
            started = clock()
            cancellations = cancellations_asked()
            attempts = 0
            while True:
                attempts += 1
                try:
                    value = await func(*args, **kwargs)
                except Exception as error:
                    if is_cancelled_as(error, cancellations):
                        raise
                    delay = self.delay(error, attempts, clock() - started, clock())
                    if delay is None:
                        if attempts > 1:
                            error.add_note(f"{attempts} attempts in {clock() - started:.1f} s")
                        raise
                    await self.wait(delay, error)
                else:
                    self.succeeded()
                    return value

        return retried

    def __repr__(self) -> str:
        total = "" if self.total is None else f", total={self.total:g}"
        return f"Retry({self.retries}, base={self.base:g}, cap={self.cap:g}{total})"
