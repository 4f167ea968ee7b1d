"""Limits: how many calls at once, how many a second, how many tokens a minute; for all, or for each key.

Each key has a *lane*: what is in use, its rates, and one queue. Whoever finds the queue empty and room in
everything takes its permit at once; all others queue, first come, first served. The head of a queue holds
nothing while it waits: it takes concurrency, rate and tokens together, synchronously, at the first moment at
which all of them admit it. So nobody holds one thing while it waits for another, a waiter that is cancelled has
nothing to give back, and what a rate counts is leaving now and not in a while.

Where a call needs permits of several Limits (`acquire_all`) the same holds: its request becomes the head of one
queue after the other, always in one order of all Limits, and then takes everything together.

A permit that is *held* (`with permit:`) is known to what runs inside, in the same task and in those it
starts. When that asks for a permit of the same Limits, the outer one is lent: its concurrency is free for as
long as the inner one is waited for or held, and is taken back afterwards, even above the limit; then later
admissions wait. So a fan-out inside a fan-out can't wait for itself, and no more than the limit of the
innermost ones ever run.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from asyncio import get_running_loop
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from unwait.flow.adaptive import Aimd, Auto
from unwait.flow.faults import is_overload
from unwait.flow.permits import Permit, check_cost, held
from unwait.flow.rates import Limiter, Pause, Quota, Rate

__all__ = ["Auto", "Limits", "Permit", "Quota", "Rate", "acquire_all", "as_limits", "try_acquire_all"]

_LANES_KEPT = 1024  # below this many keys none is forgotten, so that a brief lull costs no adaptive limit
_LANES_SWEPT = 3  # that are looked at for each new one: more than one, so that they can't pile up
_NEVER = -math.inf

_numbers = itertools.count()


class _Lane:
    """What one key has in use, its rates and its queue."""

    __slots__ = (
        "aimd",
        "capacity",
        "in_use",
        "limits",
        "loop",
        "outstanding",
        "pausing",
        "queue",
        "rate",
        "timed",
        "timer",
        "tokens",
    )

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.loop = loop
        self.in_use = 0  # the weights of the permits that are not lent
        self.outstanding = 0  # permits, lent ones too
        self.queue: OrderedDict[_Request, None] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None
        auto = limits._auto
        self.aimd = None if auto is None else Aimd(auto)
        self.capacity = limits._concurrency if auto is None else auto.start
        self.rate = None if limits._rate is None else Limiter(limits._rate)
        self.tokens = None if limits._tokens is None else Limiter(limits._tokens)
        self.timed = self.rate is not None or self.tokens is not None  # whether it takes the clock to admit
        self.pausing = Pause()

    def carried_over(self, loop: asyncio.AbstractEventLoop, clock_goes_on: bool) -> _Lane:
        """This lane on a new loop: what was learnt and counted stays, who held or waited on the old one does not."""
        lane = _Lane(self.limits, loop)
        lane.aimd, lane.capacity = self.aimd, self.capacity
        if clock_goes_on:
            lane.rate, lane.tokens, lane.pausing, lane.timed = (
                self.rate,
                self.tokens,
                self.pausing,
                self.timed,
            )
        return lane

    def fits(self, in_use: int, weight: int) -> bool:
        # Alone, anything fits: an adaptive limit may have fallen below the weight.
        return not in_use or self.capacity is None or in_use + weight <= self.capacity

    def ready_at(self, cost: float, now: float) -> float:
        """The earliest time at which the rates and pauses admit a call of this cost, as things stand."""
        ready = self.pausing.opens
        if self.rate is not None:
            ready = max(ready, self.rate.ready_at(1, now))
        if self.tokens is not None and cost:
            ready = max(ready, self.tokens.ready_at(cost, now))
        return ready

    def take(self, permit: Permit, now: float) -> None:
        permit._released = False
        self.in_use += permit._weight
        self.outstanding += 1
        if self.aimd is not None:
            permit._epoch = self.aimd.epoch
        if self.timed:
            permit._rate_slot = None if self.rate is None else self.rate.take(1, now)
            cost = permit._cost
            permit._token_slot = None if self.tokens is None or not cost else self.tokens.take(cost, now)
            if not self.pausing.over:
                self.pausing.admitted(self.capacity or len(self.queue) + 1)
                self.timed = not self.pausing.over or self.rate is not None or self.tokens is not None
            self.limits._latest = now

    def pause(self, seconds: float) -> None:
        now = self.loop.time()
        if self.pausing.begin(seconds, now):
            self.timed = True
            self.limits._latest = now
            self.reconsider()

    def reconsider(self) -> None:
        """Something changed that the head of the queue did not know of when it last looked."""
        if self.queue:
            next(iter(self.queue)).not_before = _NEVER
            _pump(self)

    def pump(self) -> None:
        """Admit whom it now admits."""
        if self.queue:
            _pump(self)

    def wake_at(self, when: float) -> None:
        if self.timer is not None:
            if self.timer.when() == when:
                return
            self.timer.cancel()
        self.timer = self.loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self.timer = None
        # It may be early, by the resolution of the clock: whoever is not admitted then needs another timer.
        self.reconsider()

    def let_go(self) -> None:
        """Cancel the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def forgettable(self) -> bool:
        if self.outstanding or self.queue:
            return False
        if not self.timed:
            return True
        fresh_at = [limiter.fresh_at for limiter in (self.rate, self.tokens) if limiter is not None]
        return max(self.pausing.opens, *fresh_at, _NEVER) <= self.loop.time()


class _Request:
    """A waiter: the permits it wants together, and in how many of their lanes it queues so far."""

    __slots__ = ("future", "not_before", "permits", "queued")

    def __init__(self, permits: list[Permit], loop: asyncio.AbstractEventLoop) -> None:
        self.permits = permits
        self.future: asyncio.Future[None] = loop.create_future()
        self.queued = 1
        self.not_before = _NEVER  # what it is known to wait for; never too late
        permits[0]._lane.queue[self] = None

    def admit(self, now: float) -> bool:
        """Take everything if all of it is there. If not, False, and a timer is set if time will bring it."""
        if self.future.done():  # cancelled
            self.leave()
            return True
        if now < self.not_before:
            return False
        permits = self.permits
        latest, slowest = _NEVER, permits[0]._lane
        for place, permit in enumerate(permits, 1):
            lane = permit._lane
            if place > self.queued:
                if latest > now:
                    break
                lane.queue[self] = None
                self.queued = place
            if next(iter(lane.queue)) is not self or not lane.fits(lane.in_use, permit._weight):
                return False
            if lane.timed:
                ready = lane.ready_at(permit._cost, now)
                if ready > latest:
                    latest, slowest = ready, lane
        if latest > now:
            self.not_before = latest
            slowest.wake_at(latest)
            return False
        self.leave()
        for permit in permits:
            permit._lane.take(permit, now)
        self.future.set_result(None)
        return True

    def leave(self) -> None:
        for permit in self.permits[: self.queued]:
            lane = permit._lane
            lane.queue.pop(self, None)
            if not lane.queue:
                lane.let_go()

    def abandon(self) -> None:
        """Whoever waited no longer does, for whatever reason."""
        if not self.permits[0]._released:
            _refund(self.permits)
            return
        lanes = [permit._lane for permit in self.permits[: self.queued]]
        lanes = [lane for lane in lanes if lane.queue and next(iter(lane.queue)) is self]
        self.leave()
        for permit in self.permits:
            if permit._lender is not None:
                permit._lender._take_back()
        for lane in lanes:
            if lane.queue:
                _pump(lane)


def _pump(lane: _Lane) -> None:
    """Admit whom the lane now admits; where that concerns other lanes, see to them too."""
    loop = lane.loop
    if loop.is_closed():
        return
    now = loop.time()
    lanes = {lane: None}
    while lanes:
        lane, _ = lanes.popitem()
        queue = lane.queue
        while queue:
            request = next(iter(queue))
            if not request.admit(now):
                break
            if len(request.permits) > 1:
                lanes.update((permit._lane, None) for permit in request.permits if permit._lane.queue)


class Limits:
    """How much at once, how many a second, how many tokens a minute; shared by all that use the same object.

    `concurrency` is the number of permits at once, a fixed one, or "auto" (or `Auto`) for one that adapts to what the
    other side bears. `rate` bounds the permits of any period and `tokens` their costs: "50/s", "90000/min" or a
    `Rate`. What is left out is not limited. `per` is a function of the item: each key that it gives has limits of
    its own. `overload` says which errors mean that the other side asks for less; by default time-outs and those with
    a true attribute `overloaded`.

    Permits are given first come, first served for each key. A Limits may be made anywhere and used by one event loop
    after another, but not by two at once. Raises ValueError or TypeError for limits that make no sense.
    """

    def __init__(
        self,
        *,
        concurrency: int | Literal["auto"] | Auto | None = None,
        rate: str | Rate | None = None,
        tokens: str | Rate | None = None,
        per: Callable[[Any], Hashable] | None = None,
        overload: Callable[[BaseException], bool] = is_overload,
    ) -> None:
        self._auto = (
            Auto() if concurrency == "auto" else concurrency if isinstance(concurrency, Auto) else None
        )
        self._concurrency = None if self._auto or concurrency is None else _checked_concurrency(concurrency)
        self._rate = None if rate is None else Rate.of(rate)
        self._tokens = None if tokens is None else Rate.of(tokens)
        for name, function in (("per", per), ("overload", overload)):
            if not callable(function) and (name, function) != ("per", None):
                raise TypeError(f"{name} must be a function, not {type(function).__name__}")
        self._per = per
        self._overload = overload
        self._loop: asyncio.AbstractEventLoop | None = None
        self._only: _Lane | None = None  # without `per`
        self._lanes: OrderedDict[Hashable, _Lane] = OrderedDict()
        self._latest = _NEVER  # the last time at which anything was counted
        self._order = (per is None, next(_numbers))

    def try_acquire(self, item: Any = None, *, cost: float = 0, weight: int = 1) -> Permit | None:
        """A permit at once, or None if that would mean to wait, for room or behind others.

        `cost` is in tokens; `weight` is how much of the concurrency it takes. Raises ValueError for a weight below 1
        or above a fixed concurrency (above an adaptive one it runs alone) and for a cost that is negative or not
        finite, TypeError for a key that can't be hashed, RuntimeError if another running loop uses these Limits.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        lane = self._only
        if lane is None:
            lane = self._lane_of(item, loop)
        if weight != 1:
            self._check_weight(weight)
        if cost:
            check_cost(cost)
        if lane.queue:
            return None
        lender = None
        if lane.capacity is not None:
            lender = self._lender()
            in_use = lane.in_use
            if in_use:
                if lender is not None and lender._lane is lane and not lender._lent:
                    in_use -= lender._weight
                if in_use and in_use + weight > lane.capacity:
                    return None
        now = 0.0
        if lane.timed:
            now = loop.time()
            if now < lane.ready_at(cost, now):
                return None
        permit = Permit(lane, cost, weight, lender)
        lane.take(permit, now)
        if lender is not None:
            _lend(lender)
        return permit

    async def acquire(self, item: Any = None, *, cost: float = 0, weight: int = 1) -> Permit:
        """A permit as soon as there is room, after those who asked before for the same key.

        Takes and raises what `try_acquire` does.
        """
        permit = self.try_acquire(item, cost=cost, weight=weight)
        return permit if permit is not None else (await _wait((self,), item, cost, weight))[0]

    def pause(self, seconds: float, item: Any = None) -> None:
        """Admit nobody for so long, for the item's key; afterwards those who wait come one by one, not all at once.

        Raises ValueError for a time that is negative or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a pause is a finite number of seconds of at least 0, not {seconds!r}")
        self._current_lane(item).pause(seconds)

    def observe(
        self,
        item: Any = None,
        *,
        requests: Quota | None = None,
        tokens: Quota | None = None,
        age: float = 0.0,
    ) -> None:
        """Take note of what the other side said, at most `age` seconds ago, is left; it only ever makes slower.

        With nothing left, nobody is admitted until the reset. With less left than is believed here, so much less is
        admitted until then. Without a configured rate only the former counts.
        """
        lane = self._current_lane(item)
        now = lane.loop.time()
        for quota, limiter in ((requests, lane.rate), (tokens, lane.tokens)):
            if quota is None or quota.remaining is None:
                continue
            reset = quota.reset
            if reset is not None and not 0 <= reset < math.inf:
                continue
            if limiter is not None:
                limiter.observe(quota.remaining, reset, now, age)
                self._latest = now
            elif quota.remaining <= 0:
                lane.pause(reset or 0)

    def in_force(self, item: Any = None) -> int | None:
        """The concurrency limit of the item's key at this moment; without an item, the highest of all keys.

        None if there is none.
        """
        if self._auto is None:
            return self._concurrency
        if self._per is None:
            lanes = [self._only]
        elif item is None:
            lanes = [*self._lanes.values()]
        else:
            lanes = [self._lanes.get(self._per(item))]
        return max((lane.capacity or 0 for lane in lanes if lane is not None), default=self._auto.start)

    def __repr__(self) -> str:
        lanes = list(self._lanes.values()) if self._only is None else [self._only]
        parts = []
        if self._concurrency is not None:
            parts.append(f"concurrency={self._concurrency}")
        elif self._auto is not None:
            auto, now = self._auto, sorted({lane.capacity or 0 for lane in lanes}) or [self._auto.start]
            at = f"{now[0]}" if len(now) == 1 else f"{now[0]} to {now[-1]}"
            parts.append(f"concurrency=auto (now {at}, from {auto.low} to {auto.high})")
        parts += [f"{name}={rate}" for name, rate in (("rate", self._rate), ("tokens", self._tokens)) if rate]
        if self._per is not None:
            parts.append(f"per={getattr(self._per, '__name__', type(self._per).__name__)}")
            parts.append(f"{len(lanes)} keys")
        parts.append(f"{sum(lane.in_use for lane in lanes)} in use")
        parts.append(f"{sum(len(lane.queue) for lane in lanes)} waiting")
        return f"<Limits {', '.join(parts)}>"

    def _lender(self) -> Permit | None:
        """The innermost permit of these Limits that the running code holds."""
        permit = held.get()
        while permit is not None and (permit._released or permit._lane.limits is not self):
            permit = permit._outer
        return permit

    def _check_weight(self, weight: int) -> None:
        if isinstance(weight, bool) or not isinstance(weight, int):
            raise TypeError(f"weight must be an int, not {type(weight).__name__}")
        if weight < 1:
            raise ValueError(f"weight must be at least 1, not {weight}")
        if self._concurrency is not None and weight > self._concurrency:
            raise ValueError(f"weight {weight} can never be admitted: the concurrency is {self._concurrency}")

    def _current_lane(self, item: Any) -> _Lane:
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        return self._only or self._lane_of(item, loop)

    def _lane_of(self, item: Any, loop: asyncio.AbstractEventLoop) -> _Lane:
        if self._per is None:
            self._only = _Lane(self, loop)
            return self._only
        key = self._per(item)
        try:
            lane = self._lanes.get(key)
        except TypeError:
            # Not its text: keys may be secrets.
            raise TypeError(
                f"per= gave a key of type {type(key).__name__}, which can't be hashed; let it give a str or a tuple"
            ) from None
        if lane is None:
            self._forget_idle()
            lane = self._lanes[key] = _Lane(self, loop)
        return lane

    def _forget_idle(self) -> None:
        lanes = self._lanes
        for _ in range(_LANES_SWEPT):
            if len(lanes) < _LANES_KEPT:
                return
            key, lane = next(iter(lanes.items()))
            if lane.forgettable():
                del lanes[key]
            else:
                lanes.move_to_end(key)

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """A new loop begins to use these Limits; what was held on the last one is void."""
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError(
                "these Limits are in use by an event loop that runs in another thread; "
                "make Limits for each loop, each with its share"
            )
        clock_goes_on = loop.time() >= self._latest
        if not clock_goes_on:
            self._latest = _NEVER
        lanes = [*self._lanes.values()] if self._only is None else [self._only]
        for key, lane in self._lanes.items():
            self._lanes[key] = lane.carried_over(loop, clock_goes_on)
        if self._only is not None:
            self._only = self._only.carried_over(loop, clock_goes_on)
        self._loop = loop
        for lane in lanes:
            lane.let_go()
            for request in lane.queue:
                if not lane.loop.is_closed() and not request.future.done():
                    # Its loop was stopped and may yet run again.
                    request.future.set_exception(
                        RuntimeError("these Limits were taken over by another event loop")
                    )


def _checked_concurrency(concurrency: object) -> int:
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        raise TypeError(f'concurrency must be an int, "auto" or an Auto, not {concurrency!r}')
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    return concurrency


def _lend(lender: Permit) -> None:
    lender._lend()
    lender._lane.pump()


@contextmanager
def lent(limits: Sequence[Limits]) -> Iterator[None]:
    """While inside, what the running code holds of these takes no room: it waits for work that takes its own."""
    lenders = [lender for each in limits if (lender := each._lender()) is not None]
    for lender in lenders:
        _lend(lender)
    try:
        yield
    finally:
        for lender in lenders:
            lender._take_back()


def try_acquire_all(
    limits: Sequence[Limits], item: Any = None, *, cost: float = 0, weight: int = 1
) -> list[Permit] | None:
    """A permit of each of `limits` at once, or None if that would mean to wait; see `Limits.try_acquire`."""
    permits: list[Permit] = []
    try:
        for each in limits:
            permit = each.try_acquire(item, cost=cost, weight=weight)
            if permit is None:
                break
            permits.append(permit)
        else:
            return permits
    except BaseException:
        _refund(permits)
        raise
    _refund(permits)
    return None


def _refund(permits: list[Permit]) -> None:
    for permit in permits:
        permit.refund()


async def acquire_all(
    limits: Sequence[Limits], item: Any = None, *, cost: float = 0, weight: int = 1
) -> list[Permit]:
    """A permit of each of `limits`, all taken at one moment, so that none is held while another is waited for.

    The permits come in no particular order. Takes and raises what `Limits.try_acquire` does.
    """
    permits = try_acquire_all(limits, item, cost=cost, weight=weight)
    if permits is not None:
        return permits
    # One order for all, or two could wait for each other; the keyed ones first, or one key would hold up the rest.
    return await _wait(sorted(limits, key=lambda each: each._order), item, cost, weight)


async def _wait(limits: Sequence[Limits], item: Any, cost: float, weight: int) -> list[Permit]:
    loop = get_running_loop()
    permits = []
    for each in limits:
        if weight != 1:
            each._check_weight(weight)
        lane = each._current_lane(item)
        lender = each._lender() if lane.capacity is not None else None
        permits.append(Permit(lane, cost, weight, lender))
    request = _Request(permits, loop)
    try:
        for permit in permits:
            if permit._lender is not None:
                _lend(permit._lender)
        if not request.future.done():
            _pump(permits[0]._lane)
        await request.future
    except BaseException:
        request.abandon()
        raise
    return permits


def as_limits(limits: Limits | Sequence[Limits] | None) -> list[Limits]:
    """What a parameter `limits=` stands for. Raises TypeError for what is neither Limits nor several of them."""
    each = [limits] if isinstance(limits, Limits) else [] if limits is None else limits
    if not isinstance(each, list | tuple) or not all(isinstance(one, Limits) for one in each):
        raise TypeError(f"limits= must be a Limits or a list of them, and not {type(limits).__name__}")
    return list(each)
