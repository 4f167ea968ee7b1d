"""Rates such as "50/s", and the limiter that keeps to one: pure arithmetic on times that are given.

A server counts what reaches it in windows of a period: fixed ones, sliding ones or a bucket. What satisfies all
of them is that no window of that length, wherever it begins, ever holds more than the amount. A token bucket
does not do that: full, it lets a whole bucket through at once and a period's refill after it, up to twice the
amount in the first window. So two things are kept here. A *bucket*, small, spreads admissions over the period
and lets a late timer catch up. A *ledger* of what was admitted in the last period says whether there is room at
all; it is what the promise rests on, and the bucket may be as large as one likes.

Messages do not all take the same time to the server, so what left in one window may arrive in a shorter one:
the ledger remembers for one per cent longer than the period (at most a second longer). The ledger is a row of
at most about a thousand slots, each counted until its latest admission has left the window, so that memory does
not grow with the rate.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_SHORT_UNITS = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}
_PER = re.compile(r"([\d._]*)\s*([a-z]+)", re.IGNORECASE)

_MARGIN = 0.01  # of the period, by which the ledger remembers longer
_MARGIN_AT_MOST = 1.0  # s
_SLOTS = 1024
_PACED_PERIOD = 60.0  # s; a longer period is a quota to use when needed, and not paced unless asked for

_SPREAD = 1.0  # s at most over which the first admissions after a pause are spread

_NEVER = -math.inf  # the time of what has not happened


class Quota(NamedTuple):
    """What a server said of its own limit: so much in all, so much left, and the seconds until it is whole again.

    None where the server did not say.
    """

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `amount` in every window of `period` seconds.

    `burst` is how much of it may go at once, from 0 up to the amount; what exceeds it is spread over the period.
    Left out, it is a tenth of the amount (and at least 1) for periods up to a minute, and the whole amount for
    longer ones. Raises ValueError for what is not a positive, finite number.
    """

    amount: float
    period: float
    burst: float | None = None

    def __post_init__(self) -> None:
        for name in ("amount", "period", "burst"):
            value = getattr(self, name)
            if name == "burst" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} of a rate must be a number, not {type(value).__name__}")
            if not 0 < value < math.inf:
                raise ValueError(f"{name} of a rate must be positive and finite, not {value}")
        if self.burst is not None and self.burst > max(self.amount, 1):
            raise ValueError(
                f"burst of a rate must not exceed its amount, {self.amount:g}, but is {self.burst:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Rate:
        """The rate that a text like "50/s", "90000/min", "3/h", "100/day" or "10/5s" names.

        Raises ValueError for any other text.
        """
        amount, slash, per = text.partition("/")
        match = _PER.fullmatch(per.strip())
        try:
            if not slash or match is None:
                raise ValueError
            number, unit = match.groups()
            value, count, seconds = _number(amount), _number(number or "1"), _UNITS[unit.lower()]
        except (ValueError, KeyError):
            raise ValueError(
                f'{text!r} is not a rate: write a number, "/" and ms, s, min, h or day, as in "50/s" or "10/5s"'
            ) from None
        try:
            return cls(value, count * seconds)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a rate: {error}") from None

    @classmethod
    def of(cls, rate: str | Rate) -> Rate:
        """The rate itself, or the one that a text names. Raises TypeError for anything else."""
        if isinstance(rate, Rate):
            return rate
        if isinstance(rate, str):
            return cls.parse(rate)
        raise TypeError(f'a rate is a text like "50/s" or a Rate, not {type(rate).__name__}')

    def __str__(self) -> str:
        return f"{_text(self.amount)}/{_SHORT_UNITS.get(self.period) or f'{_text(self.period)}s'}"


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _text(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


class Slot:
    """What was admitted from `since` to `last`, while the ledger still counts it."""

    __slots__ = ("cost", "last", "live", "since")

    def __init__(self, now: float, cost: float) -> None:
        self.since = self.last = now
        self.cost = cost
        self.live = True


class Limiter:
    """Keeps to one rate. Times are in seconds on any clock that does not go back.

    `ready_at` says from when on a cost is admitted as things stand now; `take` admits it, without asking. A cost
    above the burst waits for a full bucket, one above the amount also for an empty window; both then leave a debt
    that the later ones wait for.
    """

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._window = rate.period + min(rate.period * _MARGIN, _MARGIN_AT_MOST)
        self._grain = self._window / _SLOTS
        self._pace = rate.amount / self._window
        share = 0.1 if rate.period <= _PACED_PERIOD else 1.0
        self._burst = rate.burst if rate.burst is not None else max(1.0, rate.amount * share)
        self._full_at = _NEVER  # when the bucket is full again
        self._slots: deque[Slot] = deque()
        self._gone: deque[Slot] = deque()  # out of the ledger for less than a window
        self._used: float = 0  # the sum of the slots
        self._withheld: float = 0  # what the server counts and the ledger does not, until
        self._withheld_until = _NEVER
        self._closed_until = _NEVER

    def ready_at(self, cost: float, now: float) -> float:
        """The earliest time at which `cost` is admitted; no later than `now` if it is admitted now."""
        self._forget(now)
        ready = self._full_at
        if cost < self._burst:
            ready -= (self._burst - cost) / self._pace
        room_for_others = max(self.rate.amount - cost, 0)
        room = self._falls_to(room_for_others)
        if now < self._withheld_until:
            room = max(room, self._withheld_until)
            if self._withheld <= room_for_others:
                room = min(room, self._falls_to(room_for_others - self._withheld))
        return max(ready, room, self._closed_until)

    def take(self, cost: float, now: float) -> Slot:
        """Admit `cost`, whether there is room or not."""
        self._forget(now)
        self._full_at = max(self._full_at, now) + cost / self._pace
        self._used += cost
        if self._slots:
            slot = self._slots[-1]
            if now - slot.since < self._grain:
                slot.last = max(now, slot.last)
                slot.cost += cost
                return slot
        slot = Slot(now, cost)
        self._slots.append(slot)
        return slot

    def give_back(self, slot: Slot, cost: float) -> None:
        """Undo `cost` of what `take` put into the slot."""
        self._full_at -= cost / self._pace
        if slot.live:
            slot.cost -= cost
            self._used -= cost

    def observe(self, remaining: float, reset: float | None, now: float, age: float = 0.0) -> None:
        """Take over from the server that it has less left than is believed here, until `reset` seconds from now.

        It never makes more room than the rate has. Without a time for the reset, it is a period from now. What the
        server says may be `age` seconds old: it then counted what has left the ledger since.
        """
        until = now + (self.rate.period if reset is None else reset)
        self._forget(now)
        gone = sum(slot.cost for slot in self._gone if slot.last + self._window > now - age)
        excess = self.rate.amount - self._used - gone - remaining
        if remaining <= 0 and excess > 0:
            # Somebody else has used it, and when that leaves the server's window is not known. Where it was used from
            # here, the ledger knows: at full use nothing is ever left, and there is nothing to wait for.
            self._closed_until = max(self._closed_until, until)
            return
        if now >= self._withheld_until:
            self._withheld = 0
        if excess > self._withheld:
            self._withheld = excess
            self._withheld_until = max(self._withheld_until, until)

    @property
    def fresh_at(self) -> float:
        """From when on it is in the state of a new one."""
        counted_until = self._slots[-1].last + self._window if self._slots else _NEVER
        return max(self._full_at, counted_until, self._withheld_until, self._closed_until)

    def _forget(self, now: float) -> None:
        slots = self._slots
        while slots and slots[0].last + self._window <= now:
            slot = slots.popleft()
            slot.live = False
            self._gone.append(slot)
            # Sums of fractions drift: an empty ledger is zero.
            self._used = self._used - slot.cost if slots else 0
        while self._gone and self._gone[0].last + 2 * self._window <= now:
            self._gone.popleft()

    def _falls_to(self, level: float) -> float:
        """When the ledger will count no more than `level`."""
        excess = self._used - level
        when = _NEVER
        for slot in self._slots:
            if excess <= 0:
                break
            excess -= slot.cost
            when = slot.last + self._window
        return when


class Pause:
    """Nothing is admitted before `opens`; afterwards, for as long as the pause but a second at most, one by one."""

    __slots__ = ("_gap", "_spread_until", "opens")

    def __init__(self) -> None:
        self.opens = _NEVER
        self._spread_until = _NEVER
        self._gap = 0.0

    @property
    def over(self) -> bool:
        return self.opens == _NEVER

    def begin(self, seconds: float, now: float) -> bool:
        """Pause from now on; False if that changes nothing."""
        if seconds <= 0 or now + seconds <= self.opens:
            return False
        self.opens = now + seconds
        # Not less than before: a short pause at the end of a long one lets nobody rush in.
        self._spread_until = max(self._spread_until, self.opens + min(seconds, _SPREAD))
        self._gap = 0.0
        return True

    def admitted(self, count: int) -> None:
        """One was admitted; at the first after a pause, `count` is over how many the admissions are spread."""
        if not self._gap:
            self._gap = (self._spread_until - self.opens) / count
        self.opens += self._gap
        if self.opens >= self._spread_until:
            self.opens = _NEVER
