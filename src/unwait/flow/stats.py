"""The account of a run: how many, how long, what failed of what, and where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from unwait.flow.faults import describe

_SAMPLES = 2048
_CAUSES = 100  # distinct causes counted; what comes after is counted together
_CAUSES_SHOWN = 10
_LONGEST_CAUSE = 120  # characters
OTHER = "other causes"


class Samples:
    """Percentiles in bounded memory: exact up to 2,048 values, of every second, fourth … one beyond."""

    __slots__ = ("_kept", "_left_out", "_skip")

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._left_out = 0  # between two that are kept
        self._skip = 0

    def add(self, value: float) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._left_out
        self._kept.append(value)
        if len(self._kept) == _SAMPLES:
            self._kept = self._kept[::2]
            self._left_out = 2 * self._left_out + 1

    def percentile(self, share: float) -> float:
        """The value that `share` (0 to 1) of the values are not above; 0.0 without any."""
        ordered = sorted(self._kept)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Report:
    """The counters of one run, true at any time while it lasts.

    `total` is the number of items if it is known; `taken` those pulled from the source, `done` those that
    ended with a value, `failed` with an error, `resumed` (counted in `done` too) with a value from the
    journal. `attempts` are the calls made, `retried` those that were not an item's first. `causes` counts
    failures by their error's text.

    The seconds, summed over everything that ran at the same time: `calling` in calls, `limited` waiting for
    permits, `backing_off` between attempts, `starved` waiting for items, `blocked` waiting for the consumer
    or the journal.
    """

    def __init__(self, clock: Callable[[], float], total: int | None = None) -> None:
        self._clock: Callable[[], float] | None = clock
        self._started = clock()
        self._elapsed = 0.0  # at the end
        self.total = total
        self.taken = 0
        self.done = 0
        self.failed = 0
        self.resumed = 0
        self.attempts = 0
        self.retried = 0
        self.causes: Counter[str] = Counter()
        self._samples = Samples()
        self.calling = 0.0
        self.limited = 0.0
        self.backing_off = 0.0
        self.starved = 0.0
        self.blocked = 0.0
        self._in_force: Callable[[], int | None] | None = None
        self._limit: int | None = None  # in force at the end

    def watch(self, in_force: Callable[[], int | None]) -> None:
        """Name where `in_force` comes from."""
        self._in_force = in_force

    def add_call(self, elapsed: float, error: BaseException | None) -> None:
        """Count an item that was one call and nothing else; `elapsed` is in seconds."""
        self.attempts += 1
        self.calling += elapsed
        self.add(elapsed, error)

    def add(self, elapsed: float, error: BaseException | None, resumed: bool = False) -> None:
        """Count an item that ended, `elapsed` seconds after it was taken, or came from the journal."""
        if resumed:
            self.resumed += 1
        else:
            self._samples.add(elapsed)
        if error is None:
            self.done += 1
            return
        self.failed += 1
        cause = describe(error, _LONGEST_CAUSE)
        if len(self.causes) >= _CAUSES and cause not in self.causes:
            cause = OTHER
        self.causes[cause] += 1

    def end(self) -> None:
        """Stop the clock, and let go of the run: from now on this is a record, which can be pickled."""
        self._elapsed, self._limit = self.elapsed, self.in_force
        self._clock = self._in_force = None

    @property
    def running(self) -> int:
        """Items that were taken and have not ended; with a journal, ended and saved. After the end 0."""
        return 0 if self._clock is None else self.taken - self.done - self.failed

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the end, or to now."""
        return self._elapsed if self._clock is None else self._clock() - self._started

    @property
    def in_force(self) -> int | None:
        """How many calls may run at the same time at this moment."""
        return self._limit if self._in_force is None else self._in_force()

    @property
    def throughput(self) -> float:
        """Items that ended, without those from the journal, per second."""
        return (self.done + self.failed - self.resumed) / elapsed if (elapsed := self.elapsed) > 0 else 0.0

    @property
    def p50(self) -> float:
        """The median of the seconds that an item took, from being taken to its end."""
        return self._samples.percentile(0.50)

    @property
    def p95(self) -> float:
        """What 95 of 100 items did not take longer than, in seconds."""
        return self._samples.percentile(0.95)

    def __str__(self) -> str:
        counts = [f"{self.done} done"]
        counts += [f"{self.resumed} of them from the journal"] if self.resumed else []
        counts += [f"{self.failed} failed", f"{self.attempts} calls, {self.retried} of them again"]
        lines = [
            f"{', '.join(counts)} in {self.elapsed:.2f} s ({self.throughput:.0f}/s); "
            f"p50 {self.p50:.3f} s, p95 {self.p95:.3f} s"
        ]
        parts = {
            "in calls": self.calling,
            "waiting for limits": self.limited,
            "in back-off": self.backing_off,
            "waiting for items": self.starved,
            "waiting for the consumer or the journal": self.blocked,
        }
        if (whole := sum(parts.values())) > 0:
            shown = (
                f"{100 * part / whole:.0f} % {name}" for name, part in parts.items() if part / whole >= 0.005
            )
            lines.append(f"time: {', '.join(shown)}")
        shown_causes = self.causes.most_common(_CAUSES_SHOWN)
        lines += [f"{count:6} time{'' if count == 1 else 's'} {cause}" for cause, count in shown_causes]
        if (more := len(self.causes) - len(shown_causes)) > 0:
            lines.append(f"       and {more} other cause{'' if more == 1 else 's'}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {str(self).partition(chr(10))[0]}>"
