"""Adaptive concurrency: additive increase, multiplicative decrease (AIMD), with no I/O in it.

How many calls at once the other side bears is not known beforehand and changes. So the limit goes up by one for
each window of successes, as many as the limit is, and down by a tenth when the other side says that it is too
much. What was begun before a decrease says nothing about the limit after it: each attempt carries the epoch in
which it began, and those of an earlier epoch count neither way. So a hundred refusals that arrive together
lower the limit once.
"""

from __future__ import annotations

from dataclasses import dataclass

_DECREASE = 0.9


@dataclass(frozen=True, slots=True)
class Auto:
    """A concurrency limit that begins at `start` and finds its own way between `low` and `high`.

    Raises ValueError unless 1 <= low <= start <= high, and TypeError for what is not an int.
    """

    start: int = 20
    low: int = 1
    high: int = 1000

    def __post_init__(self) -> None:
        for name in ("start", "low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Auto: {name} must be an int, not {type(value).__name__}")
        if not 1 <= self.low <= self.start <= self.high:
            raise ValueError(
                f"Auto: 1 <= low <= start <= high must hold, but low={self.low}, start={self.start}, high={self.high}"
            )


class Aimd:
    """The limit at this moment, `limit`, and the number of decreases so far, `epoch`."""

    __slots__ = ("_high", "_low", "_successes", "epoch", "limit")

    def __init__(self, auto: Auto) -> None:
        self.limit = auto.start
        self.epoch = 0
        self._low = auto.low
        self._high = auto.high
        self._successes = 0

    def succeeded(self, epoch: int, in_use: int) -> None:
        """An attempt begun in `epoch` succeeded while `in_use` of the limit was in use, itself included.

        With less than half in use the limit was not what held the work back, so it says nothing about a higher one.
        """
        if epoch != self.epoch or 2 * in_use < self.limit:
            return
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self.limit + 1, self._high)

    def overloaded(self, epoch: int) -> None:
        """An attempt begun in `epoch` was refused, or not served in time."""
        if epoch != self.epoch:
            return
        self.epoch += 1
        self._successes = 0
        self.limit = max(min(self.limit - 1, int(self.limit * _DECREASE)), self._low)
